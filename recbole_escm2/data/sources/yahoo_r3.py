"""Yahoo! R3 (Marlin & Zemel, RecSys 2009): ratings of songs, chosen by users and drawn for them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from recbole_escm2.data.sources.csv_text import csv_columns
from recbole_escm2.data.sources.rating_pairs import RatedPairs, RatingPairs, Ratings
from recbole_escm2.errors import UsageError

_COLUMNS = ("user", "song", "rating")


class YahooR3(RatingPairs):
    """Two files without a header: user, song and a rating from 1 to 5, tab-separated."""

    names = MappingProxyType(
        {part: (f"ydata-ymusic-rating-study-v1_0-{part}.txt",) for part in ("train", "test")}
    )

    def pairs(self, config: Any) -> RatedPairs:
        """Every user and every song of either file is in D."""
        paths = self.paths(config)
        chosen, random = (_rated(paths[part]) for part in ("train", "test"))
        users, items = (np.unique(np.append(chosen[side], random[side])) for side in (0, 1))

        def placed(rated: list[np.ndarray]) -> Ratings:
            user, item = np.searchsorted(users, rated[0]), np.searchsorted(items, rated[1])
            return Ratings(user, item, rated[2].astype(np.float64))

        return RatedPairs(pa.array(users), pa.array(items), placed(chosen), placed(random))


SOURCE = YahooR3()


def _rated(file: Path) -> list[np.ndarray]:
    """Users, songs and ratings."""
    types = dict.fromkeys(_COLUMNS, pa.int64())
    batches = []
    for lines, batch in csv_columns(file, types, "\t", _COLUMNS, whole=_COLUMNS):
        rating = batch.column("rating").to_numpy()
        if (bad := np.flatnonzero((rating < 1) | (rating > 5))).size:
            raise UsageError(f"{file} line {lines[bad[0]]:,}: {rating[bad[0]]} isn't from 1 to 5")
        batches.append(batch)
    if not batches:
        raise UsageError(f"{file} is empty")
    return [column.to_numpy() for column in pa.Table.from_batches(batches).columns]
