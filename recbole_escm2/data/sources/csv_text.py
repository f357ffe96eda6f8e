"""CSV files and their kin, plain or gzipped, in Arrow batches whose lines are counted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from recbole_escm2.data.checks import check_text
from recbole_escm2.data.columns import without_empty
from recbole_escm2.errors import UsageError

_BLOCK = 4 << 20  # bytes that are parsed at once
_PACKED = (".gz", ".bz2", ".zst", ".lz4")  # which pyarrow unpacks by their name


def csv_columns(
    file: Path,
    types: Mapping[str, pa.DataType],
    delimiter: str = ",",
    names: Sequence[str] = (),
    whole: Collection[str] = (),
) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
    """Some columns of a file in batches, with the number of each row's line.

    Args:
        file: as :func:`csv_batches` takes it.
        types: of the columns that are read; others aren't looked at.
        delimiter: between cells.
        names: of all columns, where the first line is a row.
        whole: columns that have a value in every row.

    Raises:
        UsageError: as :func:`csv_batches`, a column isn't there, or a value, or there is no row.
    """
    header, _ = csv_batches(file, {}, delimiter, names)
    for name in types:
        if name not in header.names:
            raise UsageError(f"{file} has no column '{name}'; it has {', '.join(header.names)}")
    _, batches = csv_batches(file, types, delimiter, names, list(types))
    any_row = False
    for lines, batch in batches:
        any_row |= len(batch) > 0
        for name in whole:
            if batch.column(name).null_count:
                row = int(pc.index(batch.column(name).is_null(), True).as_py())
                raise UsageError(f"{file} line {lines[row]:,} has no {name}")
        yield lines, batch
    if not any_row:
        raise UsageError(f"{file} has no row{'' if names else ' below the header'}")


def csv_batches(
    file: Path,
    types: Mapping[str, pa.DataType],
    delimiter: str = ",",
    names: Sequence[str] = (),
    only: Sequence[str] = (),
    stream: Any = None,
    skipped: list[int] | None = None,
) -> tuple[pa.Schema, Iterator[tuple[Sequence[int], pa.RecordBatch]]]:
    """The columns of a file, and its rows in batches with the number of each one's line.

    Args:
        file: its first line names the columns; no cell holds a line break.
        types: of columns; other columns have the types that the first rows look like.
        delimiter: between cells.
        names: of the columns, where the first line is a row.
        only: the columns to read; by default all.
        stream: what to read, where it isn't the file of that name.
        skipped: takes the numbers of lines with too few or too many cells, which are left out
            then.

    Raises:
        UsageError: a line has too few or too many cells, or a cell isn't of its column's type; the
            message names file and line.
    """

    def skip(row: pa.csv.InvalidRow) -> str:
        assert skipped is not None
        skipped.append(row.number)
        return "skip"

    with _faults(file), no_traceback_of_bytes():
        if stream is None and file.suffix not in _PACKED:
            check_text(file)
        reader = pa.csv.open_csv(
            file if stream is None else stream,
            # A row's number is known in one thread only.
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=_BLOCK, column_names=list(names)
            ),
            parse_options=pa.csv.ParseOptions(
                ignore_empty_lines=False,
                delimiter=delimiter,
                invalid_row_handler=None if skipped is None else skip,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict(types), include_columns=list(only)
            ),
        )
        columns = reader.schema.names
    if len(columns) == 1 and (other := next((c for c in ";\t|," if c in columns[0]), None)):
        raise UsageError(
            f"{file} has no column but {columns[0]!r}: are they separated by {other!r}? Here it is "
            f"{delimiter!r}"
        )
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UsageError(f"{file}: the column '{twice[0]}' stands there twice")
    return reader.schema, _batches(file, reader, 1 if names else 2, skipped)


def _batches(
    file: Path, reader: Any, line: int, skipped: list[int] | None
) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
    with _faults(file):
        while (batch := _next_of(reader)) is not None:
            lines: Sequence[int] = range(line, line + len(batch))
            if skipped:
                lines = _without(skipped, line, len(batch))
            yield lines, _without_empty(batch)
            line = lines[-1] + 1 if len(batch) else line


def _next_of(reader: Any) -> pa.RecordBatch | None:
    with no_traceback_of_bytes():
        return next(iter(reader), None)


@contextlib.contextmanager
def no_traceback_of_bytes() -> Iterator[None]:
    """While pyarrow reads with a handler of malformed rows.

    It decodes such a row first, and prints a traceback where that can't be done; what it raises
    then says all that there is to say.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _without(skipped: list[int], first: int, count: int) -> Sequence[int]:
    """The numbers of so many lines, from one on, of which some are left out."""
    numbers = np.arange(first, first + count + len(skipped))
    kept: list[int] = numbers[~np.isin(numbers, skipped)][:count].tolist()
    return kept


def _without_empty(batch: pa.RecordBatch) -> pa.RecordBatch:
    """An empty cell is no text; ``NA`` is one, of a country for example."""
    for number, column in enumerate(batch.columns):
        if pa.types.is_string(column.type):
            batch = batch.set_column(number, batch.schema.names[number], without_empty(column))
    return batch


@contextlib.contextmanager
def _faults(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        said = str(error).replace("Row #", "line ")
        if "UTF8" in said or "\0" in said or isinstance(error, UnicodeError):
            raise UsageError(f"{file} isn't text in UTF-8 ({said}): save it as UTF-8") from error
        raise UsageError(f"{file}: {said}") from error
