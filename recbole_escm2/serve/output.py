"""Where scores go: Parquet, CSV or Arrow by the name of a file, or standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from recbole_escm2.errors import UsageError
from recbole_escm2.output import replacing
from recbole_escm2.serve.new_data import STREAM

#: Of files that scores go to.
SUFFIXES = (".parquet", ".csv", ".arrow", ".feather")


class Output:
    """Takes record batches of one schema, and writes them as they come.

    Args:
        stream: to write into.
        kind: ``.parquet``, ``.csv``, ``.arrow``, or ``.arrows`` for a stream of record batches.

    Attributes:
        rows: written so far.
    """

    def __init__(self, stream: BinaryIO, kind: str) -> None:
        self._stream, self._kind = stream, kind
        self._writer: Any = None
        self.rows = 0

    def write(self, rows: pa.RecordBatch) -> None:
        """Add rows; the first ones say which columns there are."""
        if self._writer is None:
            if self._kind == ".csv" and any(pa.types.is_nested(kind) for kind in rows.schema.types):
                raise UsageError("CSV holds no lists: write Parquet, or leave such columns out")
            make = {
                ".parquet": pa.parquet.ParquetWriter,
                ".csv": pa.csv.CSVWriter,
                ".arrows": pa.ipc.new_stream,
            }.get(self._kind, pa.ipc.new_file)
            self._writer = make(self._stream, rows.schema)
        self._writer.write_batch(rows)
        self.rows += len(rows)

    def close(self) -> None:
        """Write what ends the file."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def writing(target: str, as_arrow: bool = False) -> Iterator[Output]:
    """Where to write, a file beside that is renamed at the end.

    Args:
        target: the file; or ``-``, standard output, as CSV.
        as_arrow: whether standard output is a stream of record batches instead.

    Raises:
        UsageError: the file's name has no suffix that says a format, or its folder isn't there.
    """
    if target == STREAM:
        output = Output(sys.stdout.buffer, ".arrows" if as_arrow else ".csv")
        yield output
        output.close()
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    with replacing(path) as stream:
        output = Output(stream, path.suffix)
        try:
            yield output
        finally:
            output.close()  # while there is a file: a writer that is left closes itself later


def check_target(option: str, path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Make sure that a file can be written, before anything is computed.

    Raises:
        UsageError: its name has no suffix that says a format, or its folder isn't there.
    """
    if path.suffix not in suffixes:
        raise UsageError(f"--{option}={path} must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--{option}={path}: there is no folder {path.absolute().parent}")
