"""RecBole's atomic files: a fast reader, and what it would take silently for something else."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from recbole.utils import FeatureType

from recbole_escm2.data.checks import LARGEST, not_text
from recbole_escm2.data.labels import SHOWN, LabelColumn, label_error
from recbole_escm2.data.sources.csv_text import no_traceback_of_bytes
from recbole_escm2.errors import UsageError

_TYPES = tuple(kind.value for kind in FeatureType)
_BLOCK = 4 << 20  # bytes that are parsed at once
# What pandas, and so RecBole, takes for a missing number.
_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


def read_header(path: Path, separator: str, encoding: str | None) -> dict[str, str]:
    """Type by column name, in the order of the file.

    Raises:
        UsageError: the first line isn't ``name:type`` in every column, or a name stands twice.
    """
    line = next(_lines(path, encoding), "").removeprefix("\ufeff")  # as a reader of UTF-8 does
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
        raise not_text(path, encoding, error) from error


def check_lines(
    path: Path, columns: int, separator: str, encoding: str | None, whole: bool = False
) -> None:
    """Make sure that every line is a row of its own.

    Raises:
        UsageError: there is no row, a line has more cells than the header (or less, where it must
            be ``whole``), or a quote opens in one cell and closes in another, which makes a reader
            join lines.
    """
    any_line = False
    for number, text in lines_below_header(path, encoding):
        any_line = True
        cells = text.count(separator) + 1
        if cells > columns or (whole and cells < columns):
            raise UsageError(f"{path}, line {number} has {cells} cells, the header {columns}")
        if '"' in text:
            for cell in text.split(separator):
                if cell.startswith('"') and cell.count('"') % 2:
                    raise UsageError(
                        f"{path}, line {number}: a quote opens in {cell!r} and doesn't close in "
                        "that cell; leave quotes out"
                    )
    if not any_line:
        raise UsageError(f"{path} has no row below the header")


def check_numbers(
    path: Path, header: Mapping[str, str], fields: list[str], separator: str, encoding: str | None
) -> None:
    """Make sure that columns hold numbers that have 32 bits, or nothing.

    Raises:
        UsageError: a cell doesn't.
    """
    place = {field: number for number, field in enumerate(header)}
    for number, text in lines_below_header(path, encoding):
        cells = text.split(separator)
        for field in fields:
            cell = cells[place[field]].strip().strip('"') if place[field] < len(cells) else ""
            if cell not in _MISSING and not abs(_number(cell)) <= LARGEST:
                why = "no number" if math.isnan(_number(cell)) else f"beyond ±{LARGEST:.3g}"
                raise UsageError(
                    f"{path}, line {number}: column '{field}:{header[field]}' holds {cell!r}, "
                    f"which is {why}. A missing number is left empty"
                )


class UnreadableError(ValueError):
    """A file isn't what its header says; the message is the reader's."""


def read_columns(
    path: Path,
    header: Mapping[str, str],
    is_number: Mapping[str, bool],
    separator: str,
    encoding: str | None,
) -> pd.DataFrame:
    """Columns of an atomic file: numbers as float64, all others as categories of text.

    Args:
        path: the file.
        header: type by column name, as :func:`read_header` gives it.
        is_number: the columns to read, and whether they hold numbers.
        separator: between cells, one character.
        encoding: of the file; UTF-8 by default.

    Returns:
        A frame with the columns in the order of the file; what is missing is NaN. Of text that is
        an empty cell alone: ``NA`` is a token, of a country for example.

    Raises:
        UnreadableError: a line has another number of cells than the header, or a number isn't one.
        UsageError: as :func:`check_lines`, where the file has quotes.
    """
    if len(separator) != 1:
        raise UsageError(f"field_separator must be one character, got {separator!r}")
    if _holds_quotes(path):
        check_lines(path, len(header), separator, encoding)
    name = {field: f"{field}:{kind}" for field, kind in header.items()}
    fields = [field for field in header if field in is_number]
    category = pa.dictionary(pa.int32(), pa.string())
    try:
        with no_traceback_of_bytes():
            table = pa.csv.read_csv(
                path,
                pa.csv.ReadOptions(encoding=encoding or "utf8", block_size=_BLOCK),
                pa.csv.ParseOptions(delimiter=separator, invalid_row_handler=_skip_spaces),
                pa.csv.ConvertOptions(
                    include_columns=[name[field] for field in fields],
                    column_types={
                        name[field]: pa.float64() if is_number[field] else category
                        for field in fields
                    },
                    null_values=_MISSING,
                ),
            )
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise UnreadableError(str(error)) from error
    rows = table.num_rows
    columns = dict(zip(fields, table.columns, strict=True))
    del table
    values = {}
    for field in fields:  # one by one, so that there never are two whole copies
        values[field] = _values(columns.pop(field))
        pa.default_memory_pool().release_unused()
    return pd.DataFrame(values, index=range(rows), copy=False)


def _holds_quotes(path: Path) -> bool:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b'"') >= 0


def _skip_spaces(row: pa.csv.InvalidRow) -> str:
    return "error" if row.text.strip(" ") else "skip"


def _values(column: pa.ChunkedArray) -> np.ndarray | pd.Categorical:
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy().copy()  # what arrow holds is read-only
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # without any chunk
        whole = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    tokens = whole.dictionary
    codes = whole.indices.to_numpy(zero_copy_only=False)
    empty = pc.index(tokens, "").as_py()
    if empty >= 0:
        tokens = pa.concat_arrays([tokens[:empty], tokens[empty + 1 :]])
        codes = np.where(codes == empty, -1, codes - (codes > empty))
    return pd.Categorical.from_codes(codes, categories=tokens.to_numpy(False))


def _number(text: str) -> float:
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan  # as Arrow reads
    except ValueError:
        return math.nan


def faulty_rows(
    path: Path, column: LabelColumn, position: int, separator: str, encoding: str | None
) -> UsageError | None:
    """Find the faulty values of a column in the text of its file.

    Only called once something is known to be wrong: line numbers need the text itself, since
    readers skip blank lines.

    Args:
        path: the file.
        column: what the column has to hold.
        position: where it stands, 0 for the first column.
        separator: between cells.
        encoding: of the file.

    Returns:
        An error that names the file and the first faulty lines; None if there is none.
    """
    faults, count = [], 0
    for number, line in lines_below_header(path, encoding):
        cells = line.split(separator)
        text = cells[position] if position < len(cells) else ""
        if column.is_valid(np.array(_number(text))):
            continue
        count += 1
        if count <= SHOWN:
            faults.append((f"line {number}", text))
    if not count:
        return None
    return label_error(str(path), column, faults, count)
