"""KuaiRec (Gao et al., CIKM 2022): plays of videos, and a part where everyone was shown everything.

A pair that was played is a click, a long play the conversion. Of a pair's plays the first one
counts. In the small matrix nearly every pair was played whether its user would have or not, so that
clicks of test say nothing, and conversions are those under do(click = 1).
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.checks import LARGEST
from recbole_escm2.data.sources.csv_text import csv_columns
from recbole_escm2.data.sources.kuaishou import USER_FEATURES, features
from recbole_escm2.data.sources.rating_pairs import RatedPairs, RatingPairs, Ratings
from recbole_escm2.errors import UsageError

_TYPES = {
    **dict.fromkeys(("user_id", "video_id"), pa.int64()),
    **dict.fromkeys(("timestamp", "watch_ratio"), pa.float64()),
}


class KuaiRec(RatingPairs):
    """Two matrices, features of users and tags of videos.

    ``item_daily_features.csv`` isn't read: it counts the very plays that are to be predicted.
    """

    names = MappingProxyType(
        {
            name: (f"{name}.csv", f"data/{name}.csv")
            for name in ("big_matrix", "small_matrix", "user_features", "item_categories")
        }
    )
    rating = "watch_ratio"
    converts = staticmethod(np.greater)
    clicks_random_pairs = False

    def pairs(self, config: Any) -> RatedPairs:
        """Every user and every video of either matrix is in D."""
        paths = self.paths(config)
        plays = [_plays(paths[name]) for name in ("big_matrix", "small_matrix")]
        users, videos = (
            np.unique(np.concatenate([own[side] for own in plays]))
            for side in ("user_id", "video_id")
        )
        chosen, random = (
            Ratings(
                np.searchsorted(users, own["user_id"]),
                np.searchsorted(videos, own["video_id"]),
                own["watch_ratio"],
            )
            for own in plays
        )
        of_users = dict.fromkeys(USER_FEATURES, "token")
        tables = {
            "user": features(paths["user_features"], "user_id", config["USER_ID_FIELD"], of_users),
            "item": features(
                paths["item_categories"], "video_id", config["ITEM_ID_FIELD"], {"feat": "token_seq"}
            ),
        }
        user, item = (pa.array(ids.astype(str)) for ids in (users, videos))
        files = {"user": paths["user_features"], "item": paths["item_categories"]}
        return RatedPairs(user, item, chosen, random, tables, files=files)


SOURCE = KuaiRec()


def _plays(file: Path) -> dict[str, NDArray[Any]]:
    """The columns of a matrix, in the order of time; plays without a time come last."""
    whole = ("user_id", "video_id", "watch_ratio")
    batches = []
    for lines, batch in csv_columns(file, _TYPES, whole=whole):
        ratio = batch.column("watch_ratio").to_numpy()
        if (bad := np.flatnonzero(~((ratio >= 0) & (ratio <= LARGEST)))).size:
            raise UsageError(
                f"{file} line {lines[bad[0]]:,}: watch_ratio must be a number >= 0, got "
                f"{ratio[bad[0]]:g}"
            )
        batches.append(batch)
    table = pa.Table.from_batches(batches, pa.schema(_TYPES))
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    return {name: table[name].to_numpy()[order] for name in whole}
