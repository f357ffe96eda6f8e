"""Tables as files: Parquet, CSV, Arrow and Feather, each one file or a folder of parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from recbole_escm2.data.sources.csv_text import csv_batches
from recbole_escm2.errors import UsageError

_ROWS_AT_ONCE = 1 << 16
#: Formats by the suffix of a file, or of a folder of parts.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".arrow": "ipc", ".feather": "ipc"}


def as_arrow(table: Any) -> pa.Table:
    """A table of pandas, Polars or Arrow as one of Arrow.

    Raises:
        UsageError: it is none of these, or a column's values are of several types.
    """
    if hasattr(table, "to_arrow"):  # Polars
        table = table.to_arrow()
    elif type(table).__module__.startswith("pandas.") and hasattr(table, "columns"):
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()][0]
            raise UsageError(f"the table has the column '{twice}' twice")
        try:
            table = pa.Table.from_pandas(table, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise _of_several_types(table, error) from error
    if not isinstance(table, pa.Table):
        raise UsageError(f"a table of pandas, Polars or Arrow is needed, got {type(table)}")
    return table


def _of_several_types(table: Any, error: Exception) -> UsageError:
    """The error of a pandas table with a column whose values are no one type."""
    for name in table:
        try:
            pa.array(table[name], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kinds: dict[type, tuple[int, str]] = {}  # with the first row of each
            for row, own in enumerate(table[name], 1):
                said = f"row {row:,}: column '{name}' holds {own!r}, a {type(own).__name__}"
                kinds.setdefault(type(own), (row, said))
            _, said = max(kinds.values())
            return UsageError(f"the table's {said}, and other types before it")
    return UsageError(f"the table can't be read: {error}")


def table_files(path: Path) -> list[Path]:
    """The file, or the files of a folder, in the order of their names."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob(f"*{path.suffix}") if file.is_file())
    if not files:
        raise UsageError(f"{path} is a folder without any *{path.suffix} file")
    return files


def open_table(
    file: Path, types: Mapping[str, pa.DataType]
) -> tuple[pa.Schema, Callable[[list[str]], Iterator[tuple[Sequence[int], pa.RecordBatch]]]]:
    """The columns of a file, and how to get some of them in batches, with the rows' numbers.

    Args:
        file: of one of :data:`FORMATS`.
        types: of columns of a CSV file; others have the types that the first rows look like.

    Raises:
        UsageError: it can't be read as what its name says.
    """
    if file.suffix == ".csv":
        schema, batches = csv_batches(file, types)
        return schema, lambda columns: ((lines, rows.select(columns)) for lines, rows in batches)
    try:
        if FORMATS[file.suffix] == "parquet":
            about = parquet_metadata(file)
            return about.schema.to_arrow_schema(), lambda columns: (
                batch
                for part in parquet_parts(about)
                for batch in rows_of_part(file, part, columns, about)
            )
        data = pyarrow.dataset.dataset(file, format=FORMATS[file.suffix])
        _ = data.schema.names
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    return data.schema, lambda columns: _counted(file, data.to_batches(columns=columns))


class ParquetPart(NamedTuple):
    """Row groups one after the other, and the number of their first row, from 1."""

    groups: tuple[int, ...]
    first: int


def parquet_metadata(file: Path) -> pyarrow.parquet.FileMetaData:
    """What a Parquet file says of itself.

    Raises:
        UsageError: it isn't one, or is damaged.
    """
    with _told(file), pyarrow.parquet.ParquetFile(file) as parquet:
        about = parquet.metadata
        _ = parquet.schema_arrow.names  # are text
    _check_counts(file, about)
    return about


def parquet_parts(about: pyarrow.parquet.FileMetaData) -> Iterator[ParquetPart]:
    """The parts of a file, each of a row group, or of small ones that have enough rows together."""
    groups: list[int] = []
    first = begin = 1
    for group in range(about.num_row_groups):
        groups.append(group)
        begin += about.row_group(group).num_rows
        if begin - first >= _ROWS_AT_ONCE or group == about.num_row_groups - 1:
            yield ParquetPart(tuple(groups), first)
            groups, first = [], begin


def rows_of_part(
    file: Path,
    part: ParquetPart,
    columns: list[str],
    about: pyarrow.parquet.FileMetaData | None = None,
) -> Iterator[tuple[range, pa.RecordBatch]]:
    """Some columns of a part of a Parquet file in batches, with the rows' numbers.

    pyarrow's data sets would read ahead, which is most of a file for a slow consumer.

    Args:
        file: to read.
        part: of it.
        columns: that are wanted.
        about: :func:`parquet_metadata` of it, where it is known: it isn't read again then.

    Raises:
        UsageError: the file is damaged.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        with pyarrow.parquet.ParquetFile(file, metadata=about) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, part.groups, columns):
                yield batch.select(columns)  # in the order that is wanted

    return _counted(file, batches(), part.first)


def _check_counts(file: Path, about: Any) -> None:
    """Make sure that all parts of a Parquet file have as many rows as it says: pyarrow reads those
    of the shortest.

    Raises:
        UsageError: they don't, the file is damaged.
    """
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    flat = [n for n in range(about.num_columns) if not about.schema.column(n).max_repetition_level]
    said = [about.num_rows, sum(group.num_rows for group in groups)]
    said += [sum(group.column(n).num_values for group in groups) for n in flat]
    if len(set(said)) > 1:
        numbers = " and ".join(f"{number:,}" for number in sorted(set(said)))
        raise UsageError(f"{file}: the file is damaged: its numbers of rows are {numbers}")


def _counted(
    file: Path, batches: Iterator[pa.RecordBatch], first: int = 1
) -> Iterator[tuple[range, pa.RecordBatch]]:
    with _told(file):
        for batch in batches:
            check_batch(file, first, batch)
            yield range(first, first + len(batch)), batch
            first += len(batch)


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise UsageError(f"{file}: {error}") from error


def check_batch(file: Path | str, first: int, batch: pa.RecordBatch) -> None:
    """Make sure that what a file says of its content is so: text is text, lists end.

    Args:
        file: that rows were read from, for the message.
        first: number of the first one.
        batch: the rows.

    Raises:
        UsageError: it isn't, the file is damaged; reading on would read elsewhere in memory.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        rows = f"rows {first:,} to {first + len(batch) - 1:,}"
        raise UsageError(f"{file}, {rows}: the file is damaged: {error}") from error
