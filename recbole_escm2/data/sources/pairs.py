"""Ratings as an entire space: every user-item pair is an impression, a rated one a click."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd

from recbole_escm2.errors import UsageError

_BYTES = 100  # of memory that a pair takes until it is in the store


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

    Raises:
        UsageError: they take more than the memory of the machine.
    """
    needed, there = len(users) * len(items) * _BYTES, memory()
    if needed > there:
        raise UsageError(
            f"impressions: pairs makes {len(users) * len(items):,} pairs of {len(users):,} users "
            f"and {len(items):,} items, which take about {needed / 1e9:,.0f} GB of memory, and "
            f"this machine has {there / 1e9:,.0f} GB. Leave users or items out of the files "
            "(user_inter_num_interval acts on the pairs), or set impressions: rows"
        )
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


def memory() -> int:
    """Bytes of memory that the machine has."""
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 62
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
