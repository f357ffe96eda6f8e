"""Ratings as an entire space: every user-item pair is an impression, a rated one a click."""

from __future__ import annotations

import numpy as np
import pandas as pd


def all_pairs(
    rated: pd.DataFrame, user_field: str, item_field: str, users: np.ndarray, items: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """All pairs of ``users`` and ``items``, and the row of ``rated`` that each one has.

    Args:
        rated: the rated pairs, one row each; a pair that stands twice counts once, by its last row.
        user_field: column of the user.
        item_field: column of the item.
        users: every user, without repeats.
        items: every item, without repeats.

    Returns:
        The pairs, user by user, and ``[users × items]`` positions in ``rated``, −1 for a pair that
        isn't there. Rows of ``rated`` with a user or an item that isn't listed are left out.
    """
    user = pd.Index(users).get_indexer(rated[user_field])
    item = pd.Index(items).get_indexer(rated[item_field])
    listed = (user >= 0) & (item >= 0)
    row = np.full(len(users) * len(items), -1, dtype=np.int64)
    row[user[listed] * len(items) + item[listed]] = np.flatnonzero(listed)
    places = {
        user_field: (np.repeat(np.arange(len(users), dtype=np.int32), len(items)), users),
        item_field: (np.tile(np.arange(len(items), dtype=np.int32), len(users)), items),
    }
    pairs = {name: pd.Categorical.from_codes(*column) for name, column in places.items()}
    return pd.DataFrame(pairs), row
