"""What data and which split a model was trained on, in a form that two runs can compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from torch import Tensor


class Identity(TypedDict):
    """What data and which split.

    Attributes:
        vocabulary: digest of the tokens of each field, in the order of their ids.
        columns: digest of each column of each table, labels included, in the order of the rows.
        split: digest of the rows of ``train``, ``validation`` and ``test``.
    """

    vocabulary: dict[str, str]
    columns: dict[str, str]
    split: dict[str, str]


def digest_of(content: Any = b"") -> Any:
    """The hash that columns, splits and checkpoints are known by.

    BLAKE2b: about as fast as memory on 64-bit processors, and no two contents share it by accident.
    """
    return hashlib.blake2b(content, digest_size=16)


def rows_digest(rows: Tensor | slice) -> str:
    """The digest of positions in a table, in their order; a stretch of it costs nothing."""
    if isinstance(rows, slice):
        return f"rows {rows.start} to {rows.stop}"
    return str(digest_of(np.ascontiguousarray(rows.numpy(), dtype="<i8").data).hexdigest())


def difference(trained: Identity, here: Identity) -> str | None:
    """What of two identities differs, in words; None where they are the same.

    Args:
        trained: of a checkpoint.
        here: of the data that is at hand.
    """
    if changed := _changed(trained["vocabulary"], here["vocabulary"]):
        return (
            f"it was trained on other data: field {changed} has another vocabulary here, so that "
            "its ids mean other tokens"
        )
    if changed := _changed(trained["columns"], here["columns"]):
        return (
            f"it was trained on other data: here {changed} hold other values, or the same ones in "
            "another order"
        )
    if changed := _changed(trained["split"], here["split"]):
        return (
            f"it was trained on another split: {changed} hold other impressions here, so that some "
            "of what it was trained on would be scored as unseen"
        )
    return None


def _changed(trained: Mapping[str, str], here: Mapping[str, str]) -> str:
    names = sorted(name for name in {*trained, *here} if trained.get(name) != here.get(name))
    return ", ".join(names)
