"""Random damages: to bytes, lines, cells and nested settings."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

#: What a cell of text may be replaced by.
CELLS = (
    *(b"", b" ", b"nan", b"inf", b"-inf", b"1e39", b"1e400", b"NA", b"None", b"null", b"0x10"),
    *(b"1_000", "٣".encode(), b"\0", b'"', b'""', b'"a"', b"'", b"\\", b"=1+1", b"<script>"),
    *(b"../../x", b"9" * 400, b"1" * 20, b"-0", b"+1", b"true", b"0.5", b"2", b"-1", b"1.0"),
    *(b"\xef\xbb\xbf", "é".encode(), b"\xff", b"\r", b"\x1a", b",", b"\t", b"[", b"{", b"a b"),
    *(b" a", b"a ", b"\x01", b"\x02", b"\x03", b"01", b"1e0", b"!!python/name:os.system", b"&a *a"),
)
#: What a value of a nested structure may be replaced by.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**40, -(2**70), 0.5, float("nan"), float("inf"), 1e308),
    *("", "x", "../../x", "/etc/passwd", "\0", "planted:Planted", "x" * 5000, b"x", [], {}, [[]]),
    *([None], {"a": {}}, {"x": 1}, [0] * 3, (1, 2)),
    *(torch.zeros(3), torch.zeros(0), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(1)),
)


def damaged(content: bytes, draw: random.Random, separator: bytes = b"") -> bytes:
    """Content with one to three damages.

    Args:
        content: of a file.
        draw: what is damaged how.
        separator: between the cells of a line; none for what isn't text.
    """
    ways: list[Callable[[bytes, random.Random], bytes]] = [_flip, _replace, _insert, _remove]
    ways += [_repeat, _swap, _cut]
    if separator:
        ways += [_lines, _lines, lambda text, own: _cells(text, own, separator)] * 2
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(ways)(content, draw)
    return content


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    longest = draw.choice((1, 4, 64, len(content)))
    return start, min(len(content), start + draw.randint(1, max(longest, 1)))


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    place = draw.randrange(len(content))
    flipped = bytes([content[place] ^ (1 << draw.randrange(8))])
    return content[:place] + flipped + content[place + 1 :]


def _replace(content: bytes, draw: random.Random) -> bytes:
    start, stop = _span(content, draw)
    return content[:start] + draw.randbytes(min(stop - start, 64)) + content[stop:]


def _insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.choice(CELLS) + content[place:]


def _remove(content: bytes, draw: random.Random) -> bytes:
    start, stop = _span(content, draw)
    return content[:start] + content[stop:]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    start, stop = _span(content, draw)
    return content[:stop] + content[start:stop] * draw.choice((1, 2, 20)) + content[stop:]


def _swap(content: bytes, draw: random.Random) -> bytes:
    one, other = sorted((_span(content, draw), _span(content, draw)))
    (a, b), (c, d) = one, (max(other[0], one[1]), max(other[1], one[1]))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    way = draw.randrange(6)
    if way == 0:
        del lines[place]
    elif way == 1:
        lines.insert(other, lines[place])
    elif way == 2:
        lines[place], lines[other] = lines[other], lines[place]
    elif way == 3:
        lines[place] = lines[place][: draw.randrange(len(lines[place]) + 1)]
    elif way == 4:
        lines.insert(place, draw.choice((b"", b" ", b"\t", b"\r", b"#", b",,,")))
    else:
        lines[place : place + 2] = [b"".join(lines[place : place + 2])]
    return b"\n".join(lines)


def _cells(content: bytes, draw: random.Random, separator: bytes) -> bytes:
    lines = content.split(b"\n")
    place = draw.randrange(len(lines)) if draw.random() < 0.8 else 0
    cells = lines[place].split(separator)
    column, way = draw.randrange(len(cells)), draw.randrange(6)
    if way <= 2:
        cells[column] = draw.choice(CELLS)
    elif way == 3:
        del cells[column]
    elif way == 4:
        cells.insert(column, cells[column])
    else:
        other = draw.randrange(len(cells))
        cells[column], cells[other] = cells[other], cells[column]
    lines[place] = separator.join(cells)
    return b"\n".join(lines)


def damaged_values(state: Any, draw: random.Random) -> Any:
    """A nested structure of which one to three entries are other ones, gone, or others' names."""
    state = copy.deepcopy(state)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place: Any = state
        while True:
            keys: Sequence[Any] = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = draw.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw.random() < 0.75:
                place = inner
                continue
            _change(place, key, draw)
            break
    return state


def _change(place: Any, key: Any, draw: random.Random) -> None:
    way = draw.randrange(6)
    if way == 0:
        del place[key]
    elif way == 1 and isinstance(place, dict):
        place[draw.choice(("x", "../x", 3, "", "\0"))] = place.pop(key)
    elif way == 2 and len(place) > 1:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        place[key] = place[draw.choice(keys)]
    elif way == 3 and isinstance(place[key], torch.Tensor) and place[key].numel():
        place[key] = place[key].clone().flatten()[: draw.randrange(place[key].numel())]
    else:
        place[key] = copy.deepcopy(draw.choice(VALUES))
