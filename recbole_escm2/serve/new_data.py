"""New rows in every format that a training reads, as a stream of record batches."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.chunks import Options, Reader, schema_of
from recbole_escm2.data.ali_ccp.files import find_raw, open_texts, splits_in
from recbole_escm2.data.ali_ccp.lines import Text
from recbole_escm2.data.checks import packed_kind
from recbole_escm2.data.labels import labels_of
from recbole_escm2.data.sources.atomic_text import read_header
from recbole_escm2.data.sources.csv_text import csv_batches
from recbole_escm2.data.sources.table_files import FORMATS, check_batch, open_table
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.serve.scorer import Scorer, blocks_of, one_batch

STREAM = "-"  # standard input, or output
_ARROW = b"\xff\xff\xff\xff"  # begins a stream of record batches
_HEADER = 1 << 20  # bytes of a CSV stream in which its first line must end
_SIDES = ("user", "item")

Batches = Iterator[tuple[Sequence[int], pa.RecordBatch]]


@dataclass(frozen=True)
class Block:
    """Some rows of a file.

    Attributes:
        file: where they come from.
        unit: what is counted there, ``row`` or ``line``.
        numbers: of each row.
        rows: the columns that were asked for.
    """

    file: str
    unit: str
    numbers: Sequence[int]
    rows: pa.RecordBatch

    def place(self, row: int) -> str:
        """Where a row is, for a message."""
        return f"{self.file} {self.unit} {self.numbers[row]:,}"


class SideTable:
    """What belongs to many rows, in memory: the features of users or of items.

    Args:
        rows: one for each key; of several the first counts.
        key: the column by which they are joined.
        name: where they come from, for messages.

    Attributes:
        unmatched: rows joined so far whose key it hasn't.
    """

    def __init__(self, rows: pa.Table, key: str, name: str) -> None:
        if key not in rows.column_names:
            raise UsageError(f"{name} has no column '{key}', by which its rows are joined")
        keys = pd.Index(_texts(one_batch(rows.select([key])).column(0)))
        first = ~keys.duplicated()
        self.keys = keys[first]
        self.rows = one_batch(rows.drop_columns([key]).filter(pa.array(first)))
        self.key, self.name = key, name
        self.unmatched = 0

    @property
    def columns(self) -> list[str]:
        """What it adds."""
        names: list[str] = self.rows.schema.names
        return names

    def joined(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows with its columns, null where it hasn't their key."""
        encoded = rows.column(self.key).dictionary_encode()
        place = np.append(self.keys.get_indexer(_texts(encoded.dictionary)), -1)
        found = place[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        self.unmatched += int(np.count_nonzero(found < 0))
        taken = self.rows.take(pa.array(found, mask=found < 0))
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        columns |= dict(zip(taken.schema.names, taken.columns, strict=True))
        return pa.RecordBatch.from_pydict(columns)


def _texts(column: pa.Array) -> NDArray[Any]:
    kind = column.type
    text = column if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) else None
    return (column.cast(pa.string()) if text is None else text).to_numpy(zero_copy_only=False)


class Files:
    """Opens tables and atomic files.

    Args:
        scorer: whose fields are read.
        skip: whether lines that aren't rows are left out and counted, instead of an error.
    """

    def __init__(self, scorer: Scorer, skip: bool = False) -> None:
        self.scorer, self.config, self.skip = scorer, scorer.config, skip
        self._skipped: list[int] = []

    def side(self, kind: str, file: Path) -> SideTable:
        """A file with the features of users or of items, which stays in memory.

        Args:
            kind: ``user`` or ``item``.
            file: Parquet, CSV, Arrow, Feather, ``.user`` or ``.item``.

        Raises:
            UsageError: it can't be read, or has no ids.
        """
        return SideTable(self.whole(file), self.key(kind), str(file))

    def key(self, kind: str) -> str:
        """The column of users or of items.

        Raises:
            UsageError: the model's data has none.
        """
        if (name := self.config[key := f"{kind.upper()}_ID_FIELD"]) is None:
            raise UsageError(f"the model was trained on data without {kind}s ({key})")
        return str(name)

    def whole(self, file: Path) -> pa.Table:
        """The columns of a file that are fields, and those of ids.

        Raises:
            UsageError: it can't be read, or has no row.
        """
        names, batches = self._opened(file)
        ids = self.config["USER_ID_FIELD"], self.config["ITEM_ID_FIELD"]
        rows = [b for _, b in batches([n for n in names if n in (*self.scorer.known.fields, *ids)])]
        if not any(map(len, rows)):
            raise UsageError(f"{file} has no row")
        return pa.Table.from_batches(rows)

    def _opened(self, file: Path) -> tuple[list[str], Any]:
        """The columns of a file, and how to get some of them in batches."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
        if file.suffix == ".inter" or file.suffix[1:] in _SIDES:
            return self._opened_atomic(file)
        if file.suffix not in FORMATS:
            raise UsageError(f"{file} is none of {', '.join([*FORMATS, '.inter'])}")
        if file.suffix != ".csv":
            header, batches = open_table(file, {})
            return list(header.names), batches
        header, _ = csv_batches(file, {}, skipped=[])  # which are told when rows are read
        return list(header.names), lambda columns: self._csv(file, columns)

    def _csv(self, file: Path, columns: Sequence[str], stream: Any = None) -> Batches:
        """All as text, so that what isn't a number is told by its line, and 007 isn't 7."""
        types = dict.fromkeys(columns, pa.string())
        skipped = self._skipped if self.skip else None
        _, batches = csv_batches(file, types, only=columns, stream=stream, skipped=skipped)
        return _without_blank_lines(file, batches, stream is None)

    def _opened_atomic(self, file: Path) -> tuple[list[str], Any]:
        separator, encoding = self.config["field_separator"], self.config["encoding"]
        header = read_header(file, separator, encoding)

        def batches(columns: Sequence[str]) -> Batches:
            name = {column: f"{column}:{header[column]}" for column in columns}
            types = dict.fromkeys(name.values(), pa.string())
            skipped = self._skipped if self.skip else None
            only = list(name.values())
            _, found = csv_batches(file, types, separator, only=only, skipped=skipped)
            for numbers, rows in _without_blank_lines(file, found):
                yield numbers, rows.rename_columns(list(columns))

        return list(header), batches


class NewData(Files):
    """New rows: a file, a folder of parts, raw files of Ali-CCP, or standard input.

    Args:
        data: Parquet, CSV, Arrow or Feather, an ``.inter`` file with ``.user`` and ``.item`` files
            beside it, a folder of such files or of Ali-CCP's raw ones, or ``-``.
        scorer: that scores them.
        passed: further columns that are wanted.
        skip: whether lines that aren't rows are left out and counted, instead of an error.
        sides: files with the features of users and items, by ``user`` and ``item``.

    Attributes:
        labels: the label columns that the rows have, by role; known once the first block is read.
        skipped: lines left out so far.
        is_arrow: whether standard input is a stream of record batches.

    Raises:
        UsageError: there is no such file, or it isn't of such a format.
    """

    def __init__(
        self,
        data: str,
        scorer: Scorer,
        passed: Sequence[str] = (),
        skip: bool = False,
        sides: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scorer, skip)
        self.passed = list(passed)
        self.name = "standard input" if data == STREAM else data
        self.labels: dict[str, str] = {}
        self._malformed = 0
        self.is_arrow = False
        self._stream = _standard_input() if data == STREAM else None
        self._files = [] if self._stream else paths_of(Path(data))
        given = {kind: Path(file) for kind, file in (sides or {}).items()}
        self.sides = [self.side(kind, file) for kind, file in given.items()]
        if self._files and self._files[0].suffix == ".inter":
            beside = _beside(self._files[0])
            new = {kind: file for kind, file in beside.items() if kind not in given}
            self.sides += [self.side(kind, file) for kind, file in new.items()]

    @property
    def skipped(self) -> int:
        """Lines left out so far, since they aren't rows."""
        return len(self._skipped) + self._malformed

    # ------------------------------------------------------------------ files

    def blocks(self) -> Iterator[Block]:
        """All rows in their order, a block of the scorer's size at most at once.

        Raises:
            UsageError: a feature or a column that is passed through has no column, a label isn't
                one, or a file can't be read; the message says where.
        """
        size = self.scorer.block
        if self._stream:
            names, batches = self._opened_stream()
            yield from self._blocks_of(self.name, names, batches, self._unit(None))
        elif self._files and self._files[0].is_dir():
            yield from self._of_ali_ccp(self._files[0], size)
        for file in self._files:
            if not file.is_dir():
                names, batches = self._opened(file)
                yield from self._blocks_of(str(file), names, batches, self._unit(file))

    def _unit(self, file: Path | None) -> str:
        is_text = not self.is_arrow if file is None else file.suffix in (".csv", ".inter")
        return "line" if is_text else "row"

    def _blocks_of(
        self, file: str, names: Sequence[str], batches: Any, unit: str
    ) -> Iterator[Block]:
        columns = self.columns_of(file, names)
        for numbers, rows in blocks_of(batches(columns), self.scorer.block):
            yield Block(file, unit, numbers, self._joined(rows))

    def columns_of(self, file: str, names: Sequence[str]) -> list[str]:
        """The columns of a file that are read, all that are needed being there.

        Raises:
            UsageError: one isn't; the message says which.
        """
        added = [name for side in self.sides for name in side.columns]
        for side in self.sides:
            if side.key not in names:
                raise UsageError(f"{file} has no column '{side.key}', to join {side.name} by")
            if twice := set(side.columns) & set(names):
                raise UsageError(f"{file} and {side.name} both have a column '{min(twice)}'")
        self.scorer.encoders[0].check_columns([*names, *added], file)
        for name in self.passed:
            if name not in names:
                raise UsageError(
                    f"{file} has no column '{name}' to pass through{did_you_mean(name, names)}"
                )
        roles = vars(labels_of(self.config))
        self.labels = {role: name for role, name in roles.items() if name in names}
        user = self.config["USER_ID_FIELD"]
        wanted = {*self.scorer.known.fields, *self.passed, *self.labels.values(), user}
        wanted |= {side.key for side in self.sides}
        return [name for name in names if name in wanted]

    def _joined(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        for side in self.sides:
            rows = side.joined(rows)
        return rows

    # ------------------------------------------------------------------ standard input

    def _opened_stream(self) -> tuple[list[str], Any]:
        stream = self._stream
        assert stream is not None
        if stream.peek(len(_ARROW))[: len(_ARROW)] == _ARROW:
            self.is_arrow = True
            try:
                reader = pa.ipc.open_stream(stream)
            except pa.ArrowException as error:
                raise UsageError(f"standard input: {error}") from error
            return list(reader.schema.names), lambda columns: _of_stream(reader, columns)
        if kind := packed_kind(stream.peek(4)[:4]):
            raise UsageError(
                f"standard input is {kind}, which a pipe can't be read as: name the file, or pipe "
                "CSV or a stream of Arrow's record batches"
            )
        line, ended, _ = stream.peek(_HEADER).partition(b"\n")
        if not ended:
            raise UsageError("standard input is neither CSV nor a stream of Arrow's record batches")
        try:
            names = next(csv.reader([line.decode("utf-8-sig")]))
        except (UnicodeError, csv.Error, StopIteration) as error:
            raise UsageError(f"standard input: its first line isn't CSV ({error})") from error
        return names, lambda columns: self._csv(Path(self.name), columns, stream)

    # ------------------------------------------------------------------ Ali-CCP

    def _of_ali_ccp(self, folder: Path, size: int) -> Iterator[Block]:
        """Each text of impressions, joined to the common features of its split."""
        fields = tuple(self.scorer.known.fields)
        chosen = Options(fields, 0.0, "skip" if self.skip else "raise", "unconvert")
        raw = find_raw(folder, splits_in(folder))
        schema = schema_of(chosen, bool(raw.truth), None, 0, "B")
        reader, (join,) = Reader(chosen, schema), schema.joins
        common: dict[str, list[pa.RecordBatch]] = {}
        labels = [name for name in vars(schema.labels).values() if name]
        for text in open_texts(raw):
            own = Text(text, chosen.wanted(text.kind), chosen.on_bad_line, False)
            if text.kind == "common":
                common[text.split] = [chunk.rows for chunk in reader.chunks_of(own)]
                continue
            if text.split not in common:
                raise UsageError(
                    f"{text.name} comes before its common features in its archive: unpack it"
                )
            table = pa.Table.from_batches(common.pop(text.split))
            side = SideTable(table, join.key, text.name)
            names = [*chosen.wanted("skeleton"), *labels, *side.columns]
            self.columns_of(text.name, names)
            chunks = (
                (() if chunk.numbers is None else chunk.numbers, chunk.rows)
                for chunk in reader.chunks_of(own)
            )
            for numbers, rows in blocks_of(chunks, size):
                yield Block(text.name, "line", numbers, side.joined(rows))
        self._malformed = sum(file["malformed"] for file in schema.report["files"])


def _without_blank_lines(file: Path, batches: Batches, is_there: bool = True) -> Batches:
    """Rows without those of blank lines, which a reader of CSV takes for a row of nothing.

    Args:
        file: that they are of.
        batches: rows, all as text, with the numbers of their lines.
        is_there: whether the file can be looked into again, for what such a line holds.

    Raises:
        UsageError: there is such a row, and it can't be.
    """
    lines = _lines_of(file)  # which goes on where the last batch has left it
    for numbers, rows in batches:
        if rows.num_columns < 2 or not all(column.null_count for column in rows.columns):
            yield numbers, rows
            continue
        lacking = [~column.is_valid().to_numpy(zero_copy_only=False) for column in rows.columns]
        empty = np.flatnonzero(np.logical_and.reduce(lacking))
        if len(empty) and not is_there:
            raise UsageError(
                f"{file} line {numbers[int(empty[0])]:,} has no value in any column that the model "
                "reads"
            )
        blank = _blank_among(lines, {numbers[row] for row in empty.tolist()})
        kept = [row for row, number in enumerate(numbers) if number not in blank]
        yield [numbers[row] for row in kept], rows.take(pa.array(kept, pa.int64()))


def _lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers; it is opened when the first is asked for."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        yield from enumerate(lines, 1)


def _blank_among(lines: Iterator[tuple[int, str]], numbers: set[int]) -> set[int]:
    """Those of some lines that hold nothing; the others up to the last of them are passed over."""
    blank = set()
    last = max(numbers, default=0)
    for number, line in lines if numbers else ():
        if number in numbers and not line.strip():
            blank.add(number)
        if number >= last:
            break
    return blank


def _of_stream(reader: Any, columns: Sequence[str]) -> Batches:
    first = 1
    try:
        for batch in reader:
            check_batch("standard input", first, batch)
            yield range(first, first + len(batch)), batch.select(columns)
            first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"standard input: {error}") from error


def _standard_input() -> io.BufferedReader:
    return io.BufferedReader(sys.stdin.buffer, _HEADER)  # type: ignore[arg-type]


def paths_of(path: Path) -> list[Path]:
    """The files at a path, in the order of their names; a folder of Ali-CCP's is one of them.

    Raises:
        UsageError: there is none.
    """
    if not path.is_dir():
        return [path]
    if splits_in(path):
        return [path]
    kinds = [*FORMATS, ".inter"]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in kinds)
    if not files:
        raise UsageError(f"{path} is a folder without any file of {', '.join(kinds)}")
    if len(suffixes := sorted({file.suffix for file in files})) > 1:
        raise UsageError(f"{path} holds files of several kinds ({', '.join(suffixes)}): name one")
    return files


def _beside(inter: Path) -> dict[str, Path]:
    """The ``.user`` and ``.item`` files of an ``.inter`` file, or of the data set it is part of."""
    stems = dict.fromkeys([inter.stem, inter.stem.partition(".")[0]])
    found = {}
    for kind in _SIDES:
        there = [file for stem in stems if (file := inter.with_name(f"{stem}.{kind}")).is_file()]
        found.update({kind: there[0]} if there else {})
    return found
