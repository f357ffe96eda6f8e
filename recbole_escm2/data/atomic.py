"""The text of RecBole's atomic files: what a reader would take silently for something else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recbole.utils import FeatureType

from recbole_escm2.errors import UsageError

_TYPES = tuple(kind.value for kind in FeatureType)


def read_header(path: Path, separator: str, encoding: str | None) -> dict[str, str]:
    """Type by column name, in the order of the file.

    Raises:
        UsageError: the first line isn't ``name:type`` in every column, or a name stands twice.
    """
    line = next(_lines(path, encoding), "")
    if line.startswith("\ufeff"):
        raise UsageError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    header: dict[str, str] = {}
    for name in line.split(separator):
        field, _, kind = name.partition(":")
        if not field or kind not in _TYPES:
            raise UsageError(
                f"{path}, line 1: the header has {name!r}, and must have 'name:type' in every "
                f"column (separator {separator!r}), with a type of {', '.join(_TYPES)}"
            )
        if field in header:
            raise UsageError(f"{path}, line 1: the column '{field}' stands there twice")
        header[field] = kind
    return header


def lines_below_header(path: Path, encoding: str | None) -> Iterator[tuple[int, str]]:
    """Number and text of each line that holds something; the first one below the header is 2."""
    for number, text in enumerate(_lines(path, encoding), start=1):
        if number > 1 and text.strip(" "):  # a reader skips a line of spaces too
            yield number, text


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    try:
        with open(path, encoding=encoding) as file:
            for line in file:
                yield line.rstrip("\n")
    except UnicodeError as error:
        raise UsageError(
            f"{path} isn't text in {encoding or 'UTF-8'} ({error}): set encoding"
        ) from error


def check_lines(path: Path, columns: int, separator: str, encoding: str | None) -> None:
    """Make sure that every line is a row of its own.

    Raises:
        UsageError: there is no row, a line has more cells than the header, or a quote opens in one
            cell and closes in another, which makes a reader join lines.
    """
    any_line = False
    for number, text in lines_below_header(path, encoding):
        any_line = True
        if text.count(separator) >= columns:
            raise UsageError(
                f"{path}, line {number} has {text.count(separator) + 1} cells, the header {columns}"
            )
        if '"' in text:
            for cell in text.split(separator):
                if cell.startswith('"') and cell.count('"') % 2:
                    raise UsageError(
                        f"{path}, line {number}: a quote opens in {cell!r} and doesn't close in "
                        "that cell; leave quotes out"
                    )
    if not any_line:
        raise UsageError(f"{path} has no row below the header")
