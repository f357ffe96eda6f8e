"""KuaiRand-Pure (Gao et al., CIKM 2022): videos that users were recommended, and random ones.

``is_click`` is the click. The conversion is one of the other signals, by ``CONVERSION_FIELD``.
Train is the standard log up to 21 April, validation the rest of it, test the random log: there
impressions were drawn at random, clicks on them weren't.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recbole_escm2.data.schema import Chunk, Field, Join, Labels, Schema
from recbole_escm2.data.sources.csv_text import csv_columns
from recbole_escm2.data.sources.kuaishou import USER_FEATURES, features
from recbole_escm2.data.sources.raw import RawFiles
from recbole_escm2.errors import UsageError

_VIDEO_FEATURES = {
    **dict.fromkeys(("author_id", "video_type", "upload_dt", "upload_type", "music_type"), "token"),
    "tag": "token_seq",
}
_PARTS = {"train": "standard_4_08_to_4_21", "valid": "standard_4_22_to_5_08",
          "test": "random_4_22_to_5_08"}  # fmt: skip


class KuaiRandPure(RawFiles):
    """Three logs, features of users and of videos.

    ``video_features_statistic_pure.csv`` isn't read: it counts what the logs are to predict.
    """

    names = MappingProxyType(
        {
            name: (f"{file}_pure.csv", f"data/{file}_pure.csv")
            for name, file in (
                *((part, f"log_{log}") for part, log in _PARTS.items()),
                *(("user", "user_features"), ("item", "video_features_basic")),
            )
        }
    )
    named = ("USER_ID_FIELD", "ITEM_ID_FIELD")
    keys = (*named, "CLICK_FIELD", "CONVERSION_FIELD")

    def read(self, config: Any) -> tuple[Schema, Iterator[Chunk]]:
        """Each row of a log is an impression.

        Raises:
            UsageError: a file isn't as it must be.
        """
        user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        kinds = {**dict.fromkeys(USER_FEATURES, "token"), **_VIDEO_FEATURES}
        schema = Schema(
            fields=(
                *(Field(user, origin="user_id"), Field(item, origin="item_id")),
                *(Field("tab"), Field("hour")),
                *(
                    Field(name, kind, own, own)
                    for name, kind in kinds.items()
                    for own in ("user" if name in USER_FEATURES else "item",)
                ),
            ),
            labels=Labels(config["CLICK_FIELD"], config["CONVERSION_FIELD"]),
            truth="random_impressions",
            truth_parts=("test",),
            vocabulary="train",
            group=user,
            joins=(Join("user", user), Join("item", item)),
        )
        return schema, self._chunks(config)

    def _chunks(self, config: Any) -> Iterator[Chunk]:
        paths = self.paths(config)
        user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        of_users = dict.fromkeys(USER_FEATURES, "token")
        of_items = features(paths["item"], "video_id", item, _VIDEO_FEATURES)
        yield Chunk(
            features(paths["user"], "user_id", user, of_users), "user", file=str(paths["user"])
        )
        yield Chunk(of_items, "item", file=str(paths["item"]))
        for part in _PARTS:
            yield from self._impressions(config, paths[part], part)

    @staticmethod
    def _impressions(config: Any, file: Path, part: str) -> Iterator[Chunk]:
        labels = [config[key] for key in ("CLICK_FIELD", "CONVERSION_FIELD")]
        ids = ("user_id", "video_id")
        types = {
            **dict.fromkeys((*ids, "tab"), pa.string()),
            **dict.fromkeys(("hourmin", "is_rand"), pa.int64()),
            **dict.fromkeys(labels, pa.int64()),
        }
        at_random = int(part == "test")
        for lines, batch in csv_columns(file, types, whole=[*ids, "hourmin", "is_rand"]):
            other = pc.index(pc.not_equal(batch.column("is_rand"), at_random), True).as_py()
            if other >= 0:
                raise UsageError(f"{file} line {lines[other]:,}: is_rand must be {at_random}")
            columns = {
                config["USER_ID_FIELD"]: batch.column("user_id"),
                config["ITEM_ID_FIELD"]: batch.column("video_id"),
                "tab": batch.column("tab"),
                "hour": pc.divide(batch.column("hourmin"), 100),
                **{name: batch.column(name) for name in labels},
            }
            rows = pa.RecordBatch.from_pydict(columns)
            yield Chunk(rows, part=part, file=str(file), numbers=lines, unit="line")


SOURCE = KuaiRandPure()
