"""Digests that tell data from other data: of a file, of columns, of a split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from torch import Tensor

_WHOLE = 1 << 20  # bytes up to which all of a file is read
_ROWS_AT_ONCE = 1 << 20
_SAMPLES, _SAMPLE = 128, 4096  # of a larger one: pieces, and bytes of each


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


def is_identity(value: Any) -> bool:
    """Whether what a file holds is one."""
    return isinstance(value, dict) and all(
        isinstance(own := value.get(part), dict)
        and all(isinstance(text, str) for text in (*own, *own.values()))
        for part in Identity.__annotations__
    )


def digest_of(content: Any = b"") -> Any:
    """The hash that columns, splits and checkpoints are known by.

    BLAKE2b: about as fast as memory on 64-bit processors, and no two contents share it by accident.
    """
    return hashlib.blake2b(content, digest_size=16)


def file_digest(path: Path) -> str:
    """A digest of a file, of which few pieces are read if it is large.

    Of a file of up to 1 MiB all bytes count. Of a larger one its size does, its first and its last
    4 KiB and 126 pieces of 4 KiB evenly between them: that tells another file, one that is cut or
    of which a stretch of 1 % is zeroed, and not a change of few bytes.

    Raises:
        OSError: it can't be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = digest_of(str(size).encode())
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for place in np.linspace(0, size - _SAMPLE, _SAMPLES, dtype=np.int64).tolist():
                file.seek(place)
                digest.update(file.read(_SAMPLE))
    return str(digest.hexdigest())


def rows_digest(rows: Tensor | slice) -> str:
    """The digest of positions in a table, in their order; a stretch of it costs nothing."""
    if isinstance(rows, slice):
        return f"rows {rows.start} to {rows.stop}"
    digest = digest_of()
    for block in rows.split(_ROWS_AT_ONCE):
        digest.update(np.ascontiguousarray(block.numpy(), dtype="<i8").data)
    return str(digest.hexdigest())


def digests(identity: Identity) -> dict[str, str]:
    """One digest of the ``data`` (vocabulary and columns) and one of the ``split``."""
    about = {
        "data": [identity["vocabulary"], identity["columns"]],
        "split": identity["split"],
    }
    return {
        name: digest_of(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in about.items()
    }


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
