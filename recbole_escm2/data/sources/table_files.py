"""Tables as files: Parquet, CSV, Arrow and Feather, each one file or a folder of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from recbole_escm2.data.sources.csv_text import csv_batches
from recbole_escm2.errors import UsageError

#: Formats by the suffix of a file, or of a folder of parts.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".arrow": "ipc", ".feather": "ipc"}


def as_arrow(table: Any) -> pa.Table:
    """A table of pandas, Polars or Arrow as one of Arrow.

    Raises:
        UsageError: it is none of these.
    """
    if hasattr(table, "to_arrow"):  # Polars
        table = table.to_arrow()
    elif type(table).__module__.startswith("pandas.") and hasattr(table, "columns"):
        table = pa.Table.from_pandas(table, preserve_index=False)
    if not isinstance(table, pa.Table):
        raise UsageError(f"a table of pandas, Polars or Arrow is needed, got {type(table)}")
    return table


def table_files(path: Path) -> list[Path]:
    """The file, or the files of a folder, in the order of their names."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob(f"*{path.suffix}") if file.is_file())
    if not found:
        raise UsageError(f"{path} is a folder without any *{path.suffix} file")
    return found


def open_table(
    file: Path, types: Mapping[str, pa.DataType]
) -> tuple[pa.Schema, Callable[[list[str]], Iterator[tuple[range, pa.RecordBatch]]]]:
    """The columns of a file, and how to get some of them in batches, with the rows' numbers.

    Args:
        file: of one of :data:`FORMATS`.
        types: of columns of a CSV file; others have the types that the first rows look like.

    Raises:
        UsageError: it can't be read as what its name says.
    """
    if file.suffix == ".csv":
        found, batches = csv_batches(file, types)
        return found, lambda columns: ((lines, rows.select(columns)) for lines, rows in batches)
    try:
        data = pyarrow.dataset.dataset(file, format=FORMATS[file.suffix])
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file}: {error}") from error
    return data.schema, lambda columns: _counted(file, data.to_batches(columns=columns))


def _counted(
    file: Path, batches: Iterator[pa.RecordBatch]
) -> Iterator[tuple[range, pa.RecordBatch]]:
    first = 1
    try:
        for batch in batches:
            yield range(first, first + len(batch)), batch
            first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file}: {error}") from error
