"""CSV files with a header, in Arrow batches whose lines are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from recbole_escm2.errors import UsageError

_BLOCK = 4 << 20  # bytes that are parsed at once


def csv_batches(
    file: Path, types: Mapping[str, pa.DataType]
) -> tuple[pa.Schema, Iterator[tuple[range, pa.RecordBatch]]]:
    """The columns of a file, and its rows in batches with the number of each one's line.

    Args:
        file: its first line names the columns; no cell holds a line break.
        types: of columns; other columns have the types that the first rows look like.

    Raises:
        UsageError: a line has too few or too many cells, or a cell isn't of its column's type; the
            message names file and line.
    """
    with _faults(file):
        reader = pa.csv.open_csv(
            file,
            # A row's number is known in one thread only.
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            parse_options=pa.csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(column_types=dict(types)),
        )
    return reader.schema, _batches(file, reader)


def _batches(file: Path, reader: Any) -> Iterator[tuple[range, pa.RecordBatch]]:
    line = 2
    with _faults(file):
        for batch in reader:
            yield range(line, line + len(batch)), _without_empty(batch)
            line += len(batch)


def _without_empty(batch: pa.RecordBatch) -> pa.RecordBatch:
    """An empty cell is no text; ``NA`` is one, of a country for example."""
    for number, column in enumerate(batch.columns):
        if pa.types.is_string(column.type):
            there = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            batch = batch.set_column(number, batch.schema.names[number], there)
    return batch


@contextlib.contextmanager
def _faults(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if "UTF8" in str(error) or isinstance(error, UnicodeError):
            raise UsageError(f"{file} isn't text in UTF-8 ({error}): save it as UTF-8") from error
        raise UsageError(f"{file}: {str(error).replace('Row #', 'line ')}") from error
