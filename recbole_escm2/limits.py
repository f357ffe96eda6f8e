"""How large and how deep what is parsed may be: more than this program ever writes is a mistake or
an attack, and would take memory or minutes to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

#: Bytes of a file of settings, and values in it.
SETTINGS_BYTES, SETTINGS_VALUES = 1_000_000, 100_000
#: Bytes of other files that are parsed as a whole, values in them, and how deep they nest.
BYTES, VALUES, DEPTH = 1 << 26, 10_000_000, 50


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it can't be read.
        ValueError: it isn't JSON in UTF-8, or is larger than :data:`BYTES`, :data:`VALUES` or
            :data:`DEPTH` say.
    """
    with open(path, "rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise ValueError(f"it has more than {BYTES:,} bytes")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEPTH}") from None
    check_extent(value)
    return value


def check_extent(value: Any, check: Callable[[Any], None] | None = None) -> None:
    """Make sure that dicts and lists in one another are neither too many nor too deep.

    Args:
        value: the outermost. A list that several share counts for each, as it does for whoever
            walks through them.
        check: looks at what is neither dict nor list, once for each list that it is in.

    Raises:
        ValueError: they are, or one contains itself.
    """
    _extent(value, DEPTH, {}, check)


def _extent(
    value: Any,
    left: int,
    known: dict[int, tuple[int, int]],
    check: Callable[[Any], None] | None,
) -> tuple[int, int]:
    """How many values are in one, itself too, and how deep they nest.

    Args:
        value: any.
        left: how deep they may.
        known: what this gave of others, by their identity.
        check: of leaves.
    """
    if not isinstance(value, dict | list | tuple | set):
        if check is not None:
            check(value)
        return 1, 0
    values, depth = known.get(id(value), (1, 1))
    if id(value) not in known:
        known[id(value)] = 1, DEPTH + 1  # until it is known: who contains itself has no end
        inner: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for own in inner:
            if left <= 0:
                break
            count, below = _extent(own, left - 1, known, check)
            values, depth = values + count, max(depth, below + 1)
        known[id(value)] = values, depth
    if depth > left:
        raise ValueError(f"it nests deeper than {DEPTH}")
    if values > VALUES:
        raise ValueError(f"it has more than {VALUES:,} values")
    return values, depth
