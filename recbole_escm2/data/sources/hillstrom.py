"""Hillstrom's e-mail campaigns (MineThatData, 2008): visits and purchases of 64,000 customers.

A visit within two weeks is the click, a purchase the conversion. Campaigns were drawn at random,
which tells what an e-mail does, not what a visit does: there is no truth about the CVR of customers
who didn't visit.
"""

from __future__ import annotations

from logging import getLogger
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recbole_escm2.data.schema import Chunk, Field, Labels, Schema
from recbole_escm2.data.sources.csv_text import csv_batches
from recbole_escm2.data.sources.raw import RawFiles
from recbole_escm2.errors import UsageError

#: Names that the file may have in the folder ``raw``: as it is mostly called, and its publisher's.
NAMES = (
    "hillstrom.csv",
    "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv",
)
_CAMPAIGN = ("segment", "treatment")  # the publisher's name, and that in copies for causal studies
_NO_CAMPAIGN = "No E-Mail"
_TOKENS = ("recency", "history_segment", "mens", "womens", "zip_code", "newbie", "channel")
# ``spend`` is known after the visit only: it is no feature.


class Hillstrom(RawFiles):
    """The one file; a visit is a click."""

    names = MappingProxyType({"customers": NAMES})
    keys = (
        *("customers", "CLICK_FIELD", "CONVERSION_FIELD", "numerical_features", "normalize_field"),
        "normalize_all",
    )

    def read(self, config: Any) -> tuple[Schema, list[Chunk]]:
        """Each customer is an impression, of their campaign or of none.

        Raises:
            UsageError: the file isn't CSV, or lacks a column.
        """
        (file,) = self.files(config)
        getLogger().info(f"reading {file.name}")
        names = (*_TOKENS, *_CAMPAIGN, "visit", "conversion")
        types = dict.fromkeys(names, pa.string()) | {"history": pa.float64()}
        header, batches = csv_batches(file, types)
        table = pa.Table.from_batches((batch for _, batch in batches), header)
        if not len(table):
            raise UsageError(f"{file} has no row below the header")
        campaign = next((name for name in _CAMPAIGN if name in table.column_names), _CAMPAIGN[0])
        for name in (*_TOKENS, "history", campaign, "visit", "conversion"):
            if name not in table.column_names:
                raise UsageError(
                    f"{file} has no column '{name}'; it has {', '.join(table.column_names)}"
                )
        click, conversion = config["CLICK_FIELD"], config["CONVERSION_FIELD"]
        columns = {name: table[name] for name in (*_TOKENS, "history")}
        columns |= {"segment": table[campaign], click: table["visit"]}
        columns[conversion] = table["conversion"]
        rows = pa.table(columns).combine_chunks().to_batches()[0]
        lines = range(2, len(rows) + 2)
        if config["customers"] == "emailed":
            kept = pc.not_equal(rows.column("segment"), _NO_CAMPAIGN)
            rows, lines = rows.filter(kept), (pc.indices_nonzero(kept).to_numpy() + 2).tolist()
        schema = Schema(
            fields=(
                *(Field(name, origin="user") for name in _TOKENS),
                Field.number("history", config, origin="user"),
                Field("segment", origin="item"),
            ),
            labels=Labels(click, conversion),
            truth="none",
        )
        return schema, [Chunk(rows, file=str(file), numbers=lines, unit="line")]


SOURCE = Hillstrom()
