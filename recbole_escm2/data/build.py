"""From record batches to a column store: what is done once for all sources.

Rows are gone through twice. The first time labels are checked and tokens are counted; that makes
the vocabularies. The second time ids are written. In between, the batches of a source that streams
lie in temporary files beside the store to be, so that the source is read once; what grows in memory
is the vocabularies, the keys of joins and a few numbers per row of a joined table.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_escm2.data.labels import StrayConversions, check_labels, label_columns
from recbole_escm2.data.schema import PARTS, Chunk, Field, Join, Schema
from recbole_escm2.data.store import UNKNOWN, Column, Layout, StoreWriter, TableWriter
from recbole_escm2.errors import UsageError

_ROWS_AT_ONCE = 1 << 16
_COMPACT = 1 << 20  # counted tokens from which repeats are merged
_CALLS_WITHOUT_INDEX = 4


@dataclass(frozen=True)
class Rules:
    """What a user may say of a build.

    Attributes:
        min_count: a token that fewer rows have (of train, where the vocabulary is that of train)
            becomes unknown, id 1.
        conversion_without_click: ``drop`` such impressions, ``unconvert`` them, or ``raise``.
        progress: whether to show a bar on standard error.
    """

    min_count: int = 1
    conversion_without_click: str = "drop"
    progress: bool = False


def build(
    schema: Schema,
    chunks: Iterable[Chunk],
    target: Path,
    rules: Rules,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the store of a source.

    Args:
        schema: of the data.
        chunks: all rows, as :meth:`Source.read` gives them.
        target: folder of the store; one that is there is replaced when the new one is complete.
        rules: what the user says of it.
        about: further entries of the store's schema.

    Returns:
        The report, which is in the store's schema as ``report``: ``parts`` with rows, clicks,
        conversions and how many of them had no click; ``fields`` with the size of the vocabulary,
        the share of rows without a value and the share of unknown values; and what the source
        itself has to report.

    Raises:
        UsageError: a label isn't as it must be, a conversion has no click and the user wants to
            know, there is no row, or no room on the disk. The message names file and row.
    """
    try:
        with StoreWriter(target) as writer:
            report = _Build(schema, rules, writer).run(chunks, dict(about or {}))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(f"{target}: no room left on the disk") from error
    for level, text in schema.notes:
        getLogger().debug("%s: %s", level, text)  # the data set says them whenever it is used
    return report


# --------------------------------------------------------------------------- columns


def encoded(column: pa.Array) -> pa.DictionaryArray:
    """A column of tokens with each token once, text or int64."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    tokens = column.dictionary
    whole = pa.types.is_integer(tokens.type) and tokens.type != pa.uint64()
    wanted = pa.int64() if whole else pa.string()
    if tokens.type != wanted:
        tokens = tokens.cast(wanted)
    if tokens is column.dictionary:
        return column
    return pa.DictionaryArray.from_arrays(column.indices, tokens)


@dataclass(frozen=True)
class _Lists:
    """A column of lists: how many values each row has, and all of them one after the other."""

    lengths: NDArray[np.int32]
    values: pa.Array
    weights: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, column: pa.Array) -> _Lists:
        if pa.types.is_map(column.type):
            pair = [("id", column.type.key_type), ("weight", column.type.item_type)]
            column = column.cast(pa.list_(pa.struct(pair)))
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        values = column.flatten()
        if not pa.types.is_struct(values.type):
            return cls(lengths.astype(np.int32), values)
        tokens, weights = values.flatten()
        return cls(lengths.astype(np.int32), tokens, numbers_of(weights, 1.0, np.float32))


def numbers_of(column: pa.Array, missing: float, dtype: Any = np.float64) -> NDArray[Any]:
    """A column of numbers, with something else for null and NaN; ``[rows, *shape]``."""
    if pa.types.is_fixed_size_list(column.type):
        there = column.is_valid().to_numpy(zero_copy_only=False)
        inner = numbers_of(column.flatten(), missing, dtype)  # of the lists that are there
        whole = np.full((len(column), column.type.list_size, *inner.shape[1:]), missing, dtype)
        whole[there] = inner.reshape(-1, *whole.shape[1:])
        return whole
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), missing, values).astype(dtype)


class _Counts:
    """How often each token of a column occurs, in the order of appearance.

    Args:
        matter: whether the counts are asked for, or only the tokens.
    """

    def __init__(self, matter: bool) -> None:
        self._matter = matter
        self._pieces: list[pa.Table] = []
        self._size = 0
        self._merged = 0

    def add(self, column: pa.DictionaryArray, times: NDArray[np.int64] | None) -> None:
        """Count the values of a column, each as often as ``times`` says; once by default."""
        places = _codes(column)
        if column.indices.null_count:
            there = places >= 0
            places, times = places[there], None if times is None else times[there]
        appearing = pd.unique(places)
        counted = np.ones(len(appearing))
        if self._matter:
            counted = np.bincount(places, times, len(column.dictionary))[appearing]
        self._pieces.append(
            pa.table(
                {
                    "token": column.dictionary.take(pa.array(appearing)),
                    "count": counted.astype(np.int64),
                }
            )
        )
        self._size += len(appearing)
        if self._size > 2 * self._merged + _COMPACT:
            self._pieces = [merged(self._pieces)]
            self._size = self._merged = len(self._pieces[0])

    @property
    def pieces(self) -> list[pa.Table]:
        """Tokens with their counts."""
        return self._pieces


def merged(pieces: list[pa.Table]) -> pa.Table:
    """Tokens with their counts, each token once, in the order of appearance."""
    if not pieces:
        return pa.table({"token": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
    if len(pieces) == 1:
        return pieces[0]
    if len({piece.schema.field("token").type for piece in pieces}) > 1:  # 1 and "1" are one token
        pieces = [
            piece.set_column(0, "token", piece.column("token").cast(pa.string()))
            for piece in pieces
        ]
    whole = pa.concat_tables(pieces).combine_chunks()
    each = whole["token"].combine_chunks().dictionary_encode()  # in the order of appearance
    total = np.bincount(each.indices, whole["count"], len(each.dictionary)).astype(np.int64)
    return pa.table({"token": each.dictionary, "count": total})


class _Numbering:
    """The ids of a vocabulary."""

    def __init__(self, counted: pa.Table, min_count: int, unknown: bool) -> None:
        kept = counted
        if unknown:  # also what is in a joined table, and train doesn't refer to
            kept = counted.filter(pc.greater_equal(counted["count"], min_count))
        self._tokens = kept["token"].combine_chunks()
        self._first = 2 if unknown else 1
        self._calls = 0
        self._latest: pa.Array | None = None  # many batches in a row share a dictionary
        self._id_of = np.zeros(1, np.int32)

    def __len__(self) -> int:
        """Ids, with that of no value."""
        return self._first + len(self._tokens)

    def ids(self, column: pa.DictionaryArray) -> NDArray[np.int32]:
        """0 where there is no value, 1 for an unknown one, ``[rows]``."""
        tokens = column.dictionary
        if self._latest is None or not _same_memory(self._latest, tokens):
            places = self._places(tokens)
            id_of = np.where(places >= 0, places + self._first, self._first - 1).astype(np.int32)
            self._latest, self._id_of = tokens, np.append(id_of, np.int32(0))
        return self._id_of[_codes(column)]  # the last one for -1

    def _places(self, tokens: pa.Array) -> NDArray[np.int64]:
        if tokens.type != self._tokens.type:
            tokens = tokens.cast(self._tokens.type)
        self._calls += 1
        if self._calls < _CALLS_WITHOUT_INDEX:  # each of them hashes all tokens
            places = pc.index_in(tokens, value_set=self._tokens)
            return places.fill_null(-1).to_numpy(zero_copy_only=False)
        return self._index.get_indexer(tokens.to_numpy(zero_copy_only=False))

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self._tokens.to_numpy(zero_copy_only=False))

    def written(self) -> pa.Array:
        """The tokens for a store, as text."""
        tokens = self._tokens.cast(pa.string())
        return pa.concat_arrays([pa.array([UNKNOWN] * (self._first - 1), pa.string()), tokens])


def _codes(column: pa.DictionaryArray) -> NDArray[Any]:
    """Places in the dictionary, -1 for none."""
    places = column.indices
    if places.null_count:
        places = places.fill_null(-1)
    return places.to_numpy(zero_copy_only=False)


def _same_memory(one: pa.Array, other: pa.Array) -> bool:
    def places(array: pa.Array) -> list[int]:
        return [array.offset, len(array), *(b.address for b in array.buffers() if b is not None)]

    return places(one) == places(other)


# --------------------------------------------------------------------------- rows in between


class _Kept:
    """Chunks between the two passes: in memory, or in a file for each table and part."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._chunks: dict[tuple[str, str | None], list[Chunk]] = {}
        self._files: dict[tuple[str, str | None], Any] = {}

    def _path(self, table: str, part: str | None) -> Path:
        assert self._folder is not None
        return self._folder / f"temporary-{table}-{part}.arrows"

    def add(self, chunk: Chunk) -> None:
        key = chunk.table, chunk.part
        if self._folder is None:
            self._chunks.setdefault(key, []).append(chunk)
            return
        if key not in self._files:
            self._files[key] = pa.ipc.new_stream(str(self._path(*key)), chunk.rows.schema)
        self._files[key].write_batch(chunk.rows)

    def complete(self) -> None:
        """No more chunks will be added."""
        for file in self._files.values():
            file.close()

    def parts(self, table: str) -> list[str | None]:
        """The parts of a table that there are, in the order of :data:`PARTS`."""
        there = [part for own, part in {**self._chunks, **self._files} if own == table]
        return sorted(there, key=lambda part: -1 if part is None else PARTS.index(part))

    def rows(self, table: str, part: str | None) -> Iterator[pa.RecordBatch]:
        """Batches in the order in which they were added, none of them very large."""
        if self._folder is None:
            batches = iter([chunk.rows for chunk in self._chunks.get((table, part), ())])
        elif (table, part) in self._files:
            batches = iter(pa.ipc.open_stream(pa.memory_map(str(self._path(table, part)))))
        else:
            batches = iter(())
        for batch in batches:
            for first in range(0, len(batch), _ROWS_AT_ONCE):
                yield batch.slice(first, _ROWS_AT_ONCE)

    def remove(self) -> None:
        """Give the room on the disk free."""
        for key in self._files:
            self._path(*key).unlink(missing_ok=True)


# --------------------------------------------------------------------------- the build


class _Numbers:
    """Of a column of numbers: how many, their sum, the least and the largest one."""

    def __init__(self) -> None:
        self._count, self._sum, self.least, self.largest = 0, 0.0, np.inf, -np.inf

    def add(self, column: pa.Array) -> None:
        values = numbers_of(column, np.nan)
        known = values[~np.isnan(values)]
        self._count += known.size
        self._sum += float(known.sum())
        self.least = min(self.least, float(known.min(initial=np.inf)))
        self.largest = max(self.largest, float(known.max(initial=-np.inf)))

    @property
    def mean(self) -> float:
        """0 where there is none."""
        return self._sum / self._count if self._count else 0.0

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """In [0, 1], as RecBole normalises; those that all are the same become 1."""
        width = self.largest - self.least
        return (values - self.least) / width if width > 0 else np.ones_like(values)


class _Build:
    """The state of one build.

    Args:
        schema: of the data.
        rules: what the user says.
        writer: of the store.
    """

    def __init__(self, schema: Schema, rules: Rules, writer: StoreWriter) -> None:
        self.schema = schema
        self.rules = rules
        self.writer = writer
        self.unknown = schema.vocabulary == "train" or rules.min_count > 1
        counter = partial(_Counts, self.unknown)
        self.strays = StrayConversions(rules.conversion_without_click)
        self.labels = label_columns(schema.labels)
        self.counts: dict[tuple[str, str], _Counts] = defaultdict(counter)  # by table and field
        self.numbers: dict[tuple[str, str], _Numbers] = defaultdict(_Numbers)
        self.references: dict[str, _Counts] = defaultdict(counter)  # of a join's keys in train
        self.shape: dict[str, tuple[int, ...]] = {}
        self.longest: dict[str, int] = defaultdict(int)
        self.weight: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        self.parts: dict[str | None, NDArray[np.int64]] = {}
        self.group_of_row: list[NDArray[np.int32]] = []  # where the group is in a joined table
        self.numbering: dict[str, _Numbering] = {}

    def run(self, chunks: Iterable[Chunk], about: dict[str, Any]) -> dict[str, Any]:
        """Build the store; returns the report."""
        kept = _Kept(None if isinstance(chunks, Sequence) else self.writer.folder)
        try:
            self._read(chunks, kept)
            for join in self.schema.joins:
                self._count_joined(join, kept)
            self._number()
            row_of = {join: self._write_joined(join, kept) for join in self.schema.joins}
            self._write_inter(row_of, kept)
        finally:
            kept.remove()
        return self._commit(about)

    # ------------------------------------------------------------------ first pass

    def _read(self, chunks: Iterable[Chunk], kept: _Kept) -> None:
        with tqdm(
            desc="reading", unit=" rows", unit_scale=True, disable=not self.rules.progress
        ) as bar:
            for chunk in chunks:
                rows = self._labelled(chunk) if chunk.table == "inter" else chunk.rows
                rows = self._encoded(rows, chunk.table)
                kept.add(replace(chunk, rows=rows))
                if chunk.table == "inter" and self._is_counted(chunk.part):
                    self._count("inter", rows, None)
                    for join in self.schema.joins:
                        self.references[join.table].add(rows.column(join.key), None)
                bar.update(len(chunk.rows))
        kept.complete()
        if not sum(int(counted[0]) for counted in self.parts.values()):
            raise UsageError("the data has no impression")
        if note := self.strays.note():
            self.schema.notes.append(("warning", note))

    def _is_counted(self, part: str | None) -> bool:
        return self.schema.vocabulary == "all" or part in (None, "train")

    def _labelled(self, chunk: Chunk) -> pa.RecordBatch:
        """Impressions with checked labels, without those that a rule drops."""
        names = self.schema.labels
        values = {
            label.field: check_labels(
                chunk.rows.column(label.field), label, chunk.file, chunk.place
            )
            for label in self.labels
        }
        click = values[names.click]
        rows, keep, conversion = chunk.rows, None, np.zeros(len(click))
        if names.conversion is not None:
            conversion, keep = self.strays.settle(click, values[names.conversion], chunk.place)
            values[names.conversion] = conversion
        for field, numbers in values.items():
            place = rows.schema.get_field_index(field)
            rows = rows.set_column(place, field, pa.array(numbers.astype(np.float32)))
        if keep is not None and not keep.all():
            rows, click, conversion = rows.filter(pa.array(keep)), click[keep], conversion[keep]
        counted = len(click), int(click.sum()), int((click * conversion).sum())
        self.parts[chunk.part] = self.parts.get(chunk.part, 0) + np.array(counted)
        return rows

    def _encoded(self, rows: pa.RecordBatch, table: str) -> pa.RecordBatch:
        """Only the columns that a store has, tokens as dictionaries."""
        columns = {own.name: _with_codes(rows.column(own.name), own) for own in self._of(table)}
        for join in self.schema.joins:
            if join.key not in columns and table in ("inter", join.table):
                columns[join.key] = encoded(rows.column(join.key))
        if table == "inter":
            columns |= {label.field: rows.column(label.field) for label in self.labels}
            if self._group_number is not None:
                columns[self._group_number] = rows.column(self._group_number)
        for own in self._of(table):
            column = columns[own.name]
            if own.kind.endswith("seq"):
                longest = pc.max(pc.list_value_length(column)).as_py() or 0
                self.longest[own.name] = max(self.longest[own.name], longest)
            if own.kind.startswith("float"):
                self.shape[own.name] = _shape(column.type)
        return pa.RecordBatch.from_pydict(columns)

    @property
    def _group_number(self) -> str | None:
        """The group's column, where that holds numbers and is no field."""
        names = {own.name for own in self.schema.fields}
        return None if self.schema.group in names else self.schema.group

    def _of(self, table: str) -> list[Field]:
        """The fields that a table of the store has."""
        fields = self.schema.of_table(table)
        return [own for own in fields if own.table == table or self._by_id(own.name)]

    def _by_id(self, key: str) -> bool:
        """Whether the rows of a joined table lie in the order of the ids of its key.

        Where several tokens share the id of unknown ones they don't: impressions have a column of
        their own then, which says the row.
        """
        return not self.unknown and any(own.name == key for own in self.schema.fields)

    def _count(self, table: str, rows: pa.RecordBatch, times: NDArray[np.int64] | None) -> None:
        for own in self._of(table):
            column, key = rows.column(own.name), (table, own.name)
            if own.kind == "token":
                self.counts[key].add(column, times)
            elif own.kind == "float" and not self.shape[own.name]:
                self.numbers[key].add(column)
            elif own.kind == "token_seq":
                lists = _Lists.of(column)
                each = None if times is None else np.repeat(times, lists.lengths)
                self.counts[key].add(lists.values, each)
                if lists.weights is not None:
                    often = np.ones(len(lists.weights), np.int64) if each is None else each
                    self.weight[own.name] += np.dot(lists.weights, often), often.sum()

    def _count_joined(self, join: Join, kept: _Kept) -> None:
        """Count the values of a joined table, as often as train refers to them."""
        counted = merged(self.references[join.table].pieces)
        known = _Numbering(counted, 0, unknown=False)
        references = np.append(0, counted["count"].to_numpy())
        for rows in _all(kept, join.table):
            times = references[known.ids(rows.column(join.key))] if self.unknown else None
            self._count(join.table, rows, times)

    def _number(self) -> None:
        pieces: dict[str, list[pa.Table]] = {}
        by_name = sorted(self.schema.fields, key=lambda own: own.name != own.vocabulary)
        for own in by_name:  # as RecBole numbers aliases: first the field that they are one of
            if own.kind.startswith("token"):
                tables = [own.table, *(j.table for j in self.schema.joins if j.key == own.name)]
                for table in dict.fromkeys(tables):
                    counted = self.counts[table, own.name].pieces
                    pieces.setdefault(own.vocabulary or own.name, []).extend(counted)
        for name, counted in pieces.items():
            self.numbering[name] = _Numbering(merged(counted), self.rules.min_count, self.unknown)

    # ------------------------------------------------------------------ second pass

    def _write_joined(self, join: Join, kept: _Kept) -> _Numbering:
        """Write a joined table, row 0 for what has none; returns the row of each key."""
        keys = _Counts(matter=False)
        rows = 0
        for batch in _all(kept, join.table):
            keys.add(batch.column(join.key), None)
            rows += len(batch) - batch.column(join.key).null_count
        found = merged(keys.pieces)
        if rows > len(found):
            note = f"{rows - len(found):,} rows of '{join.table}' repeat their {join.key}"
            self.schema.notes.append(("warning", f"{note}: the first row of each counts"))
        writer = self.writer.table(join.table, self._layout(join.table))
        if self._by_id(join.key):
            own = next(own for own in self.schema.fields if own.name == join.key)
            row_of = self.numbering[own.vocabulary or own.name]
            ordered = _by_row(_all(kept, join.table), join.key, row_of)
        else:
            row_of = _Numbering(found, 0, unknown=False)
            ordered = _first_rows(_all(kept, join.table), join.key, row_of)
        for batch in ordered:
            self._append(writer, join.table, batch)
        self.writer.close(writer)
        return row_of

    def _write_inter(self, row_of: Mapping[Join, _Numbering], kept: _Kept) -> None:
        writer = self.writer.table("inter", self._layout("inter"))
        group = next((own for own in self.schema.fields if own.name == self.schema.group), None)
        group_of_row = np.concatenate([np.empty(0, np.int32), *self.group_of_row])
        for part in kept.parts("inter"):
            for rows in kept.rows("inter", part):
                extra = {
                    label.field: rows.column(label.field).to_numpy(zero_copy_only=False)
                    for label in self.labels
                }
                if self._group_number is not None:  # 0 is that of an impression without one
                    extra[self._group_number] = rows.column(self._group_number).to_numpy() + 1
                for join, numbering in row_of.items():
                    place = numbering.ids(rows.column(join.key))
                    if not self._by_id(join.key):
                        extra[_row_column(join)] = place
                    if group is not None and group.table == join.table:
                        extra[group.name] = group_of_row[place]
                self._append(writer, "inter", rows, extra)
        self.writer.close(writer)

    def _layout(self, table: str) -> Layout:
        kind = {"token": "int", "float": "float", "float_seq": "float"}
        columns, bags, apart = [], [], {}
        if table == "inter":
            labels = self.schema.labels
            columns = [Column(n, "float") for n in (labels.click, labels.conversion) if n]
            columns += [Column(_row_column(j)) for j in self.schema.joins if not self._by_id(j.key)]
            apart = {
                label.field: "float32" if label.probability else "uint8" for label in self.labels
            }
            if self.schema.group is not None:
                apart[self.schema.group] = "int32"
        for own in self._of(table):
            if own.kind == "token_seq":
                bags.append(own.name)
                continue
            shape = self.shape.get(own.name, ())
            if own.numerical:
                shape = (2,)
            if own.kind == "float_seq":
                shape = (max(self.longest[own.name], 1), *shape)
            columns.append(Column(own.name, kind[own.kind], shape))
        weighted = any(own.weighted for own in self._of(table))
        return Layout(tuple(columns), tuple(bags), weighted, apart)

    def _append(
        self,
        writer: TableWriter,
        table: str,
        rows: pa.RecordBatch,
        extra: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        columns = dict(extra or {})
        bags = []
        for own in self._of(table):
            column = rows.column(own.name)
            if own.kind == "token":
                columns[own.name] = self._ids(own, column)
            elif own.kind == "float":
                columns[own.name] = self._numbers(own, table, column)
            elif own.kind == "float_seq":
                width = max(self.longest[own.name], 1)
                columns[own.name] = _padded(_Lists.of(column), width, own.numerical)
            else:
                bag = _Lists.of(column)
                bags.append((bag.lengths, self._ids(own, bag.values), bag.weights))
        if table != "inter" and self.schema.group in columns:
            self.group_of_row.append(columns[self.schema.group])
        writer.append(columns, *(_row_by_row(bags, writer.layout.weighted) if bags else ()))

    def _ids(self, own: Field, column: pa.DictionaryArray) -> NDArray[np.int32]:
        return self.numbering[own.vocabulary or own.name].ids(column)

    def _numbers(self, own: Field, table: str, column: pa.Array) -> NDArray[np.float64]:
        known = self.numbers[table, own.name]
        values = numbers_of(column, known.mean)
        if own.name == self.schema.time:  # float32 has 24 bits for a time
            values = values - known.least
        if own.scaled:
            values = known.scaled(values)
        return np.stack([values, np.ones_like(values)], axis=-1) if own.numerical else values

    # ------------------------------------------------------------------ what is known of it

    def _commit(self, about: dict[str, Any]) -> dict[str, Any]:
        schema = self.schema
        number = {
            name: self.writer.vocabulary(numbering.written())
            for name, numbering in self.numbering.items()
        }
        fields = []
        for own in schema.fields:
            longest = max(self.longest[own.name], 1)
            entry = {
                "name": own.name,
                "type": own.kind,
                "source": own.origin,
                "table": own.table,
                "seqlen": own.longest or longest,
                "length": longest,
                "buckets": own.buckets,
                "vocabulary": number.get(own.vocabulary or own.name)
                if own.kind.startswith("token")
                else None,
            }
            if own.weighted:
                total, count = self.weight[own.name]
                mean = total / count if count else 1.0
                entry["scale"] = mean if mean and np.isfinite(mean) else 1.0
            fields.append(entry)
        report = self._report()
        joins = [
            {"table": j.table, "key": j.key if self._by_id(j.key) else _row_column(j)}
            for j in schema.joins
        ]
        split = any(part is not None for part in self.parts)
        self.writer.commit(
            {
                **about,
                "fields": fields,
                "joins": joins,
                "group": schema.group,
                "time": schema.time,
                "truth": schema.truth,
                "truth_parts": schema.truth_parts,
                "clicks_known": schema.clicks_known,
                "sizes": [report["parts"][part]["rows"] for part in PARTS] if split else None,
                "simulated": schema.simulated,
                "notes": schema.notes,
                "report": report,
            }
        )
        return report

    def _report(self) -> dict[str, Any]:
        names = ("rows", "clicks", "conversions")
        nothing = np.zeros(3, np.int64)
        parts = PARTS if set(self.parts) - {None} else (None,)
        return {
            **self.schema.report,
            "parts": {
                part or "all": dict(zip(names, self.parts.get(part, nothing).tolist(), strict=True))
                for part in parts
            },
            "conversions_without_click": self.strays.count,
            "vocabularies": {name: len(one) - 1 for name, one in self.numbering.items()},
        }


def _row_column(join: Join) -> str:
    """The column of impressions that says the row of a joined table; no field has its name."""
    return f"{join.table}:row"


def _all(kept: _Kept, table: str) -> Iterator[pa.RecordBatch]:
    for part in kept.parts(table):
        yield from kept.rows(table, part)


def _by_row(
    batches: Iterable[pa.RecordBatch], key: str, row_of: _Numbering
) -> Iterator[pa.RecordBatch]:
    """One row for each id of a key, in their order; empty where the table has none."""
    whole = pa.Table.from_batches(batches).combine_chunks()
    ids = row_of.ids(encoded(whole.column(key)))
    place = np.full(len(row_of), -1)
    place[ids[::-1]] = np.arange(len(ids))[::-1]  # the first row of each key
    place[0] = -1
    yield from whole.take(pa.array(place, mask=place < 0)).combine_chunks().to_batches()


def _first_rows(
    batches: Iterable[pa.RecordBatch], key: str, row_of: _Numbering
) -> Iterator[pa.RecordBatch]:
    """An empty row, then the first row of each key, which are numbered by their appearance."""
    seen = 0
    for number, rows in enumerate(batches):
        if not number:
            none = [pa.nulls(1, column.type) for column in rows.columns]
            yield pa.RecordBatch.from_arrays(none, schema=rows.schema)
        ids = row_of.ids(rows.column(key))
        before = np.maximum.accumulate(np.append(seen, ids))
        yield rows.filter(pa.array(ids > before[:-1]))
        seen = int(before[-1])


def _shape(kind: pa.DataType) -> tuple[int, ...]:
    """Of one value of a column of numbers, or of a list of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _shape(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return (kind.list_size, *_shape(kind.value_type))
    return ()


def _with_codes(column: pa.Array, own: Field) -> pa.Array:
    """A column with tokens as dictionaries; in a list, without what is no value."""
    if own.kind == "token":
        return encoded(column)
    if own.kind != "token_seq":
        return column
    lists = _Lists.of(column)
    tokens, lengths, weights = encoded(lists.values), lists.lengths, lists.weights
    if tokens.null_count:
        there = tokens.is_valid().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(row[there], minlength=len(lengths)).astype(np.int32)
        tokens = tokens.filter(pa.array(there))
        weights = None if weights is None else weights[there]
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    if not own.weighted:
        return pa.ListArray.from_arrays(offsets, tokens)
    weights = np.ones(len(tokens), np.float32) if weights is None else weights
    pairs = pa.StructArray.from_arrays([tokens, pa.array(weights)], ["id", "weight"])
    return pa.ListArray.from_arrays(offsets, pairs)


def _padded(lists: _Lists, width: int, numerical: bool) -> NDArray[np.float32]:
    """Lists of numbers, or of pairs of a number and 1, with zeros behind, ``[rows, width, …]``."""
    values = numbers_of(lists.values, 0.0, np.float32)
    if numerical:
        values = np.stack([values, np.ones_like(values)], axis=-1)
    padded = np.zeros((len(lists.lengths), width, *values.shape[1:]), np.float32)
    padded[np.arange(width) < lists.lengths[:, None]] = values
    return padded


def _row_by_row(
    bags: Sequence[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32] | None]],
    weighted: bool,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32] | None]:
    """Lengths ``[rows, bags]``, ids and weights ``[values]``: from bag by bag to row by row."""
    lengths = np.stack([own for own, _, _ in bags], axis=1)
    ends = lengths.ravel().cumsum(dtype=np.int64).reshape(lengths.shape)
    starts = ends - lengths
    ids = np.empty(int(lengths.sum()), np.int32)
    weights = np.ones(len(ids), np.float32) if weighted else None
    for bag, (own, values, own_weights) in enumerate(bags):
        shift = starts[:, bag] - (own.cumsum(dtype=np.int64) - own)
        place = np.repeat(shift, own) + np.arange(len(values))
        ids[place] = values
        if weights is not None and own_weights is not None:
            weights[place] = own_weights
    return lengths.astype(np.int32), ids, weights
