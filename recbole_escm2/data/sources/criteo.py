"""Criteo's two data sets: uplift (Diemert et al., AdKDD 2018) and attribution (same, 2017).

Neither has a truth: the first randomises a treatment, which tells what an advertisement does, not
what a visit does.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from recbole_escm2.data.schema import Chunk, Field, Labels, Schema
from recbole_escm2.data.sources.csv_text import csv_columns
from recbole_escm2.data.sources.raw import RawFiles


class Criteo(RawFiles):
    """One file, whose rows are impressions; a subclass names the columns that are features."""

    keys = (
        *("CLICK_FIELD", "CONVERSION_FIELD", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"),
        *("numerical_features", "normalize_field", "normalize_all"),
    )
    delimiter: str
    #: Columns whose values are tokens, and whose values are numbers; all others are no features.
    tokens: tuple[str, ...]
    numbers: tuple[str, ...]

    def read(self, config: Any) -> tuple[Schema, Iterator[Chunk]]:
        """Each row is an impression; all are in one part.

        Raises:
            UsageError: the file isn't as it must be.
        """
        user, item, time = (config[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME"))
        origins = {user: "user_id", item: "item_id"}
        schema = Schema(
            fields=(
                *(Field(name, origin=origins.get(name, "inter")) for name in self.tokens),
                *(Field.number(name, config) for name in self.numbers),
            ),
            labels=Labels(config["CLICK_FIELD"], config["CONVERSION_FIELD"]),
            group=user if user in self.tokens else None,
            time=time if time in self.numbers else None,
        )
        return schema, self._chunks(config)

    def _chunks(self, config: Any) -> Iterator[Chunk]:
        (file,) = self.files(config)
        labels = (config["CLICK_FIELD"], config["CONVERSION_FIELD"])
        types = {
            **dict.fromkeys(self.tokens, pa.string()),
            **dict.fromkeys(self.numbers, pa.float64()),
            **dict.fromkeys(labels, pa.int64()),
        }
        for lines, rows in csv_columns(file, types, self.delimiter):
            yield Chunk(rows, file=str(file), numbers=lines, unit="line")


class CriteoUplift(Criteo):
    """A visit is the click. ``exposure`` is known after the treatment: it is no feature."""

    names = MappingProxyType(
        {
            "log": tuple(
                f"criteo-{name}-v2.1.csv{ending}"
                for name in ("uplift", "research-uplift")
                for ending in (".gz", "")
            )
        }
    )
    delimiter = ","
    tokens = ("treatment",)
    numbers = tuple(f"f{number}" for number in range(12))


class CriteoAttribution(Criteo):
    """The conversion is one within 30 days of the impression, whoever is credited with it.

    What is known after the impression is no feature: ``conversion_timestamp``, ``conversion_id``,
    ``attribution``, ``click_pos``, ``click_nb``, ``cost`` and ``cpo``.
    """

    names = MappingProxyType(
        {"log": ("criteo_attribution_dataset.tsv.gz", "criteo_attribution_dataset.tsv")}
    )
    delimiter = "\t"
    tokens = ("uid", "campaign", *(f"cat{number}" for number in range(1, 10)))
    numbers = ("timestamp", "time_since_last_click")


UPLIFT = CriteoUplift()
ATTRIBUTION = CriteoAttribution()
