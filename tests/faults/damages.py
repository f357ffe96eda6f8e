"""Published data sets as small files, and damages of a cell, a line or a whole file of each."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import hillstrom_file
import published

LINE = 5  # that is damaged, from 1 on


class Place(NamedTuple):
    """Where a source is damaged.

    Attributes:
        dataset: its name.
        write: its files into a folder ``raw``.
        file: in that folder.
        separator: between cells.
        has_header: whether the first line names the columns.
        label: column of a label, from 0 on; None where no column is one.
        number: column of a number.
        token: column of an id or a token.
    """

    dataset: str
    write: Callable[[Path], Any]
    file: str
    separator: str
    has_header: bool
    label: int | None
    number: int | None
    token: int | None


def _hillstrom(raw: Path) -> None:
    hillstrom_file.write(raw / "hillstrom.csv", hillstrom_file.customers(200))


_YAHOO = "ydata-ymusic-rating-study-v1_0"
_KUAIRAND_USERS = "user_features_pure.csv"
_ATTRIBUTION = "criteo_attribution_dataset.tsv.gz"
_UPLIFT = "criteo-uplift-v2.1.csv.gz"

PLACES = {
    "hillstrom": Place("hillstrom", _hillstrom, "hillstrom.csv", ",", True, 9, 2, 7),
    "criteo-uplift": Place(
        "criteo-uplift", published.write_criteo_uplift, _UPLIFT, ",", True, 14, 3, 12
    ),
    "criteo-attribution": Place(
        "criteo-attribution", published.write_criteo_attribution, _ATTRIBUTION, "\t", True, 7, 0, 2
    ),
    "aliexpress": Place(
        "aliexpress-nl", published.write_aliexpress, "train.csv", ",", True, 80, 20, 3
    ),
    "kuairand, log": Place(
        "kuairand-pure",
        published.write_kuairand,
        "log_standard_4_08_to_4_21_pure.csv",
        ",",
        True,
        5,
        3,
        0,
    ),
    "kuairand, users": Place(
        "kuairand-pure", published.write_kuairand, _KUAIRAND_USERS, ",", True, None, None, 0
    ),
    "kuairec, plays": Place(
        "kuairec", published.write_kuairec, "big_matrix.csv", ",", True, None, 7, 0
    ),
    "kuairec, tags": Place(
        "kuairec", published.write_kuairec, "item_categories.csv", ",", True, None, None, 0
    ),
    "yahoo-r3": Place(
        "yahoo-r3", published.write_yahoo, f"{_YAHOO}-test.txt", "\t", False, None, 2, 0
    ),
    "coat": Place("coat", published.write_coat, "train.ascii", " ", False, None, 3, None),
}


def read(path: Path) -> bytes:
    """Its content, unpacked."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def rewrite(path: Path, content: bytes) -> None:
    """Another content, packed as the file was."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def with_cell(content: bytes, column: int, cell: bytes, separator: str, line: int = LINE) -> bytes:
    """With another cell in a line."""
    lines = content.split(b"\n")
    cells = lines[line - 1].split(separator.encode())
    cells[column] = cell
    lines[line - 1] = separator.encode().join(cells)
    return b"\n".join(lines)


def with_line(content: bytes, change: Callable[[bytes], bytes], line: int = LINE) -> bytes:
    """With another line."""
    lines = content.split(b"\n")
    lines[line - 1] = change(lines[line - 1])
    return b"\n".join(lines)


def in_header(content: bytes, change: Callable[[list[bytes]], list[bytes]], sep: str) -> bytes:
    """With other names of columns."""
    first, end, rest = content.partition(b"\n")
    return sep.encode().join(change(first.split(sep.encode()))) + end + rest
