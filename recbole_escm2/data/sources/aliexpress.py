"""AliExpress search (Tianchi 74690), one data set a country, joined and split as in MTReclib."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from recbole_escm2.data.schema import Chunk, Field, Labels, Schema
from recbole_escm2.data.sources.csv_text import csv_columns
from recbole_escm2.data.sources.raw import RawFiles

_GROUP = "search_id"
_TOKENS = tuple(f"categorical_{number}" for number in range(1, 17))
_NUMBERS = tuple(f"numerical_{number}" for number in range(1, 64))


class AliExpress(RawFiles):
    """Neither user nor item has an id; ``search_id`` groups impressions and is no feature."""

    names = MappingProxyType({part: (f"{part}.csv",) for part in ("train", "test")})
    keys = (
        *("CLICK_FIELD", "CONVERSION_FIELD", "numerical_features", "normalize_field"),
        "normalize_all",
    )

    def read(self, config: Any) -> tuple[Schema, Iterator[Chunk]]:
        """Each row is an impression.

        Raises:
            UsageError: a file isn't as it must be.
        """
        schema = Schema(
            fields=(
                *(Field(name) for name in _TOKENS),
                *(Field.number(name, config) for name in _NUMBERS),
            ),
            labels=Labels(config["CLICK_FIELD"], config["CONVERSION_FIELD"]),
            vocabulary="train",
            group=_GROUP,
        )
        return schema, self._chunks(config)

    def _chunks(self, config: Any) -> Iterator[Chunk]:
        labels = (config["CLICK_FIELD"], config["CONVERSION_FIELD"])
        types = {
            **dict.fromkeys(_TOKENS, pa.string()),
            **dict.fromkeys(_NUMBERS, pa.float64()),
            **dict.fromkeys(labels, pa.int64()),
            _GROUP: pa.string(),
        }
        for part, file in self.paths(config).items():
            for lines, rows in csv_columns(file, types, whole=[_GROUP]):
                yield Chunk(rows, part=part, file=str(file), numbers=lines, unit="line")


SOURCE = AliExpress()
