"""From record batches to a column store: what is done once for all sources.

Rows are gone through twice. The first time labels are checked and tokens are counted; that makes
the vocabularies. The second time ids are written. In between, the batches of a source that streams
lie in temporary files beside the store to be, so that the source is read once; what grows in memory
is the vocabularies, the keys of joins and a few numbers per row of a joined table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_escm2.data.ahead import ahead
from recbole_escm2.data.checks import (
    RowDigests,
    alike_tokens,
    check_schema,
    check_values,
    empty_field,
    grouped_values,
    idle_numbers,
    is_idle,
    lacking_in_a_part,
    not_joined,
    not_matched,
    poor_field,
    repeated_keys,
    suspicious_features,
    unknown_everywhere,
)
from recbole_escm2.data.columns import (
    Lists,
    Numbers,
    numbers_of,
    row_by_row,
    shape_of,
    with_codes,
)
from recbole_escm2.data.labels import (
    Contradictions,
    UnclickedConversions,
    check_labels,
    label_columns,
)
from recbole_escm2.data.page import REPORT_FILE, markdown
from recbole_escm2.data.schema import PARTS, Chunk, Field, Join, Schema
from recbole_escm2.data.store import Column, Layout, StoreWriter, Table, TableWriter
from recbole_escm2.data.vocabulary import Counts, Numbering, encoded, merged
from recbole_escm2.errors import UsageError

_ROWS_AT_ONCE = 1 << 16
_STRETCHES, _STRETCH = 100, 1000  # of rows of train in which features are compared with labels
_AHEAD = 2  # chunks that are read while one is built
_PLACE: dict[str | None, int] = {None: 0, "train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Rules:
    """What a user may say of a build.

    Attributes:
        min_count: a token that fewer impressions have (of train, where the vocabulary is that of
            train) becomes unknown, id 1. A list counts once, however often it has a token.
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
        The report, which is in the store's schema as ``report``: ``parts`` with rows, clicks and
        conversions; how many conversions had no click; of the ``fields`` with tokens the size of
        the ``vocabulary``, how many tokens were ``seen`` where it is from, and by part how many
        values there are, how many of them are unknown, and how many impressions lack one; of the
        ``joins`` rows, repeated keys, and impressions without a row; and what the source itself has
        to report.

    Raises:
        UsageError: a label, a number or a token isn't as it must be, a conversion has no click and
            the user wants to know, a field has no value at all, a joined table has none of the
            keys, two parts hold the same, there is no row, or no room on the disk. The message
            names file and row.
    """
    check_schema(schema)
    with StoreWriter(target) as writer:
        report = _Build(schema, rules, writer).run(chunks, dict(about or {}))
    for level, text in schema.notes:
        getLogger().debug("%s: %s", level, text)  # the data set says them whenever it is used
    getLogger().info(f"what was found: {target / REPORT_FILE}")
    return report


# --------------------------------------------------------------------------- rows in between


class _Buffer:
    """Chunks between the two passes: in memory, or in a file for each table and part."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._chunks: dict[tuple[str, str | None], list[Chunk]] = {}
        self._files: dict[tuple[str, str | None], Any] = {}
        #: Where the chunks of joined tables came from, without their rows, and how many there are.
        self._origins: dict[tuple[str, str | None], list[tuple[Chunk, int]]] = {}

    def _path(self, table: str, part: str | None) -> Path:
        assert self._folder is not None
        return self._folder / f"temporary-{table}-{part}.arrows"

    def add(self, chunk: Chunk) -> None:
        key = chunk.table, chunk.part
        if chunk.table != "inter":
            origin = replace(chunk, rows=chunk.rows.slice(0, 0)), len(chunk.rows)
            self._origins.setdefault(key, []).append(origin)
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
            batches = iter(pa.ipc.open_stream(pa.OSFile(str(self._path(table, part)))))
        else:
            batches = iter(())
        for batch in batches:
            for first in range(0, max(len(batch), 1), _ROWS_AT_ONCE):
                yield batch.slice(first, _ROWS_AT_ONCE)

    def place(self, table: str, row: int) -> str:
        """Where a row of a joined table came from, by its number among those of all parts."""
        for part in self.parts(table):
            for chunk, count in self._origins[table, part]:
                if row < count:
                    return chunk.place(row)
                row -= count
        raise IndexError(f"'{table}' has no row {row}")

    def remove(self) -> None:
        """Give the room on the disk free."""
        for key in self._files:
            self._path(*key).unlink(missing_ok=True)


# --------------------------------------------------------------------------- the build


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
        self.contradictions = Contradictions()
        self.unclicked = UnclickedConversions(rules.conversion_without_click)
        self.labels = label_columns(schema.labels)
        self.counts: dict[tuple[str, str], Counts] = defaultdict(lambda: Counts(self.unknown))
        self.numbers: dict[tuple[str, str], Numbers] = defaultdict(Numbers)
        #: By table and part: keys of the impressions, keys of the joined rows.
        self.references: dict[tuple[str, str | None], Counts] = defaultdict(lambda: Counts(True))
        self.keys: dict[tuple[str, str | None], Counts] = defaultdict(lambda: Counts(True))
        self.shape: dict[str, tuple[int, ...]] = {}
        self.longest: dict[str, int] = defaultdict(int)
        self.weight: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        self.split = False
        self.parts = np.zeros((len(PARTS), 3), np.int64)  # rows, clicks and conversions
        #: Of each field impressions without a value, values, and unknown values, by part.
        self.tallies: dict[str, NDArray[np.int64]] = defaultdict(
            lambda: np.zeros((3, len(PARTS)), np.int64)
        )
        self.joins: dict[str, dict[str, Any]] = {}  # what to report of them
        self.numbering: dict[str, Numbering] = {}
        other = None if schema.group is None else Field(schema.group)  # that is no feature
        self.group = next((own for own in schema.fields if own.name == schema.group), other)
        self.counts_groups = self.unknown or self.group not in schema.fields
        # Where tokens share the id of unknown ones, a column of its own tells the groups.
        self.group_column = schema.group or ""
        while self.unknown and any(own.name == self.group_column for own in schema.fields):
            self.group_column = f"group-{self.group_column}"
        self.groups: dict[tuple[str, str | None], Counts] = defaultdict(lambda: Counts(False))
        # A split by time compares times to the second, which float32 doesn't hold for a year.
        self.exact_time = f"exact-{schema.time}"
        while any(own.name == self.exact_time for own in schema.fields):
            self.exact_time = f"exact-{self.exact_time}"
        self.group_of_row: list[NDArray[np.int32]] = []  # where the group is in a joined table
        self.digests = RowDigests()
        self.files: dict[str, dict[str, None]] = defaultdict(dict)  # by table, in their order

    def run(self, chunks: Iterable[Chunk], about: dict[str, Any]) -> dict[str, Any]:
        """Build the store; returns the report."""
        kept = _Buffer(None if isinstance(chunks, Sequence) else self.writer.folder)
        try:
            self._read(chunks if isinstance(chunks, Sequence) else ahead(chunks, _AHEAD), kept)
            row_of = {join: self._count_joined(join, kept) for join in self.schema.joins}
            self._number()
            with self._bar("writing", int(self.parts[:, 0].sum())) as self.bar:
                for join in self.schema.joins:
                    self._write_joined(join, row_of, kept)
                self._write_inter(row_of, kept)
        finally:
            kept.remove()
        return self._commit(about)

    def _bar(self, what: str, total: int | None, unit: str = " rows") -> tqdm:
        hidden = not self.rules.progress
        return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=hidden)

    # ------------------------------------------------------------------ first pass

    def _read(self, chunks: Iterable[Chunk], kept: _Buffer) -> None:
        with self._bar("reading", self.schema.size, self.schema.unit) as bar:
            for chunk in chunks:
                table, part = chunk.table, chunk.part
                check_values(self.schema.of_table(table), chunk)
                self.files[table][chunk.file] = None
                if table == "inter":
                    self.digests.saw(part, chunk.file)
                rows = self._labelled(chunk) if table == "inter" else chunk.rows
                rows = self._encoded(rows, table)
                kept.add(replace(chunk, rows=rows))
                if table == "inter" and self._is_counted(part):
                    self._count("inter", rows, None)
                for join in self.schema.joins:
                    if table in ("inter", join.table):
                        own = self.references if table == "inter" else self.keys
                        own[join.table, part].add(rows.column(join.key), None)
                if self.counts_groups and self.group and self.group.table == table:
                    self.groups[table, part].add(rows.column(self.group.name), None)
                bar.update(len(chunk.rows) if chunk.size is None else chunk.size)
        kept.complete()
        if not self.parts[:, 0].sum():
            raise UsageError(f"{', '.join(self.files['inter']) or 'the data'}: no impression")
        if note := self.unclicked.note():
            self.schema.notes.append(("warning", note))
        self.schema.notes.extend(("warning", note) for note in self.contradictions.notes())

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
        known = chunk.part is None or chunk.part in self.schema.truth_parts
        if known and self.schema.clicks_known:
            self.contradictions.add(names, values, chunk.place)
        rows, keep, conversion = chunk.rows, None, np.zeros(len(click))
        if names.conversion is not None:
            conversion, keep = self.unclicked.apply(click, values[names.conversion], chunk.place)
            values[names.conversion] = conversion
        for field, numbers in values.items():
            place = rows.schema.get_field_index(field)
            rows = rows.set_column(place, field, pa.array(numbers.astype(np.float32)))
        if keep is not None and not keep.all():
            rows, click, conversion = rows.filter(pa.array(keep)), click[keep], conversion[keep]
        self.split |= chunk.part is not None
        self.parts[_PLACE[chunk.part]] += len(click), int(click.sum()), int(click @ conversion)
        return rows

    def _encoded(self, rows: pa.RecordBatch, table: str) -> pa.RecordBatch:
        """Only the columns that a store has, tokens as dictionaries."""
        columns = {own.name: with_codes(rows.column(own.name), own) for own in self._of(table)}
        for join in self.schema.joins:
            if join.key not in columns and table in ("inter", join.table):
                columns[join.key] = encoded(rows.column(join.key))
        if table == "inter":
            columns |= {label.field: rows.column(label.field) for label in self.labels}
            if self.group and self.group.table == table and self.group.name not in columns:
                columns[self.group.name] = encoded(rows.column(self.group.name))
        for own in self._of(table):
            column = columns[own.name]
            if own.kind == "float_seq":
                self._note_longest(own, pc.max(pc.list_value_length(column)).as_py() or 0)
            if own.kind.startswith("float"):
                self.shape[own.name] = shape_of(column.type)
        return pa.RecordBatch.from_pydict(columns)

    def _note_longest(self, own: Field, length: int) -> None:
        self.longest[own.name] = max(self.longest[own.name], length)

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
            elif own.kind.startswith("float") and not self.shape[own.name]:
                if times is not None:
                    column = column.filter(pa.array(times > 0))
                self.numbers[key].add(Lists.of(column).values if own.kind != "float" else column)
            elif own.kind == "token_seq":
                lists = Lists.of(column)
                self.counts[key].add(*lists.once(times))
                if lists.weights is not None:
                    weights = lists.weights.astype(np.float64)
                    if times is None:
                        self.weight[own.name] += weights.sum(), len(weights)
                    else:
                        often = np.repeat(times, lists.lengths)
                        self.weight[own.name] += weights @ often, often.sum()

    def _count_joined(self, join: Join, kept: _Buffer) -> Numbering:
        """Count the values of a joined table as often as impressions refer to them.

        Returns:
            The row of each key: row 0 is that of none, then those of the keys as they appear.
        """
        counted = merged(_in_order(self.keys, join.table))
        row_of = Numbering(counted)
        references = self._references(join.table, row_of)
        if repeated := int(counted["count"].to_numpy().sum()) - len(counted):
            several, places = _shared(_all(kept, join.table), join.key, counted)
            said = repeated_keys(
                several, join, lambda n: kept.place(join.table, int(places[n])), repeated
            )
            self.schema.notes.append(("warning", said))
        referenced = merged(_in_order(self.references, join.table))["token"]
        if len(referenced) and len(counted) and not references[1:].any():
            raise not_joined(referenced, counted["token"], join, list(self.files[join.table]))
        self.joins[join.table] = {
            "rows": len(counted),
            "repeated": repeated,
            "unmatched": self._by_part(references[0]),
        }
        if not self.unknown:  # rows of a key that isn't counted are tokens as well
            for rows in _all(kept, join.table):
                self._count(join.table, rows, None)
            return row_of
        is_counted = [self._is_counted(part) for part in PARTS]
        times, row = references[:, is_counted].sum(axis=1), 0
        for rows in _first_rows(_all(kept, join.table), join.key, row_of):
            self._count(join.table, rows, times[row : row + len(rows)])
            row += len(rows)
        return row_of

    def _references(self, table: str, row_of: Numbering) -> NDArray[np.int64]:
        """How many impressions of each part have each row of a joined table, ``[rows, parts]``."""
        impressions = np.zeros((len(row_of), len(PARTS)), np.int64)
        for (own, part), counts in self.references.items():
            if own == table:
                counted = merged(counts.pieces)
                rows = row_of.ids(encoded(counted["token"]))
                np.add.at(impressions[:, _PLACE[part]], rows, counted["count"].to_numpy())
        impressions[0] = self.parts[:, 0] - impressions[1:].sum(axis=0)  # also those without a key
        return impressions

    def _number(self) -> None:
        pieces: dict[str, list[pa.Table]] = {}
        by_name = sorted(self.schema.fields, key=lambda own: own.name != own.vocabulary)
        for own in by_name:  # as RecBole numbers aliases: first the field that they are one of
            if own.kind.startswith("token"):
                tables = [own.table, *(j.table for j in self.schema.joins if j.key == own.name)]
                for table in dict.fromkeys(tables):
                    counted = self.counts[table, own.name].pieces
                    pieces.setdefault(own.vocabulary or own.name, []).extend(counted)
        how = self.rules.min_count, self.unknown, self.schema.order == "count"
        for name, counted in pieces.items():
            self.numbering[name] = Numbering(merged(counted), *how)

    @cached_property
    def _group_number(self) -> Numbering:
        """The number of each token of the group."""
        assert self.group is not None
        if not self.counts_groups:
            return self.numbering[self.group.vocabulary or self.group.name]
        return Numbering(merged(_in_order(self.groups, self.group.table)))

    # ------------------------------------------------------------------ second pass

    def _write_joined(self, join: Join, row_of: dict[Join, Numbering], kept: _Buffer) -> None:
        """Write a joined table, row 0 for what has none."""
        batches = _all(kept, join.table)
        if self._by_id(join.key):
            own = next(own for own in self.schema.fields if own.name == join.key)
            row_of[join] = self.numbering[own.vocabulary or own.name]
            ordered = _by_row(batches, join.key, row_of[join])
        else:
            ordered = _first_rows(batches, join.key, row_of[join])
        times, row = self._references(join.table, row_of[join]), 0
        writer = self.writer.table(join.table, self._layout(join.table))
        for rows in ordered:
            if self.group and self.group.table == join.table:
                self.group_of_row.append(self._group_number.ids(rows.column(self.group.name)))
            self._append(writer, rows, {}, times[row : row + len(rows)])
            row += len(rows)
        self.writer.close(writer)

    def _write_inter(self, row_of: Mapping[Join, Numbering], kept: _Buffer) -> None:
        writer = self.writer.table("inter", self._layout("inter"))
        group, column = self.group, self.group_column
        group_of_row = np.concatenate([np.empty(0, np.int32), *self.group_of_row])
        for part in kept.parts("inter"):
            self.part = part
            times = np.eye(len(PARTS), dtype=np.int64)[_PLACE[part]]
            for rows in kept.rows("inter", part):
                extra = {
                    label.field: rows.column(label.field).to_numpy(zero_copy_only=False)
                    for label in self.labels
                }
                if group and group.table == "inter":
                    extra[column] = self._group_number.ids(rows.column(group.name))
                if self._has_time():
                    known = self.numbers["inter", str(self.schema.time)]
                    extra[self.exact_time] = numbers_of(rows.column(self.schema.time), known.mean)
                for join, numbering in row_of.items():
                    place = numbering.ids(rows.column(join.key))
                    if not self._by_id(join.key):
                        extra[_row_column(join)] = place
                    if group and group.table == join.table:
                        extra[column] = group_of_row[place]
                self._append(writer, rows, extra, times)
                self.bar.update(len(rows))
        self.writer.close(writer)

    def _has_time(self) -> bool:
        """Whether each impression has a time of its own that is one number."""
        name = self.schema.time
        return any(own.name == name and not self.shape[name] for own in self._of("inter"))

    def _layout(self, table: str) -> Layout:
        kind = {"token": "int", "float": "float", "float_seq": "float"}
        columns, bags, columnar = [], [], {}
        if table == "inter":
            labels = self.schema.labels
            columns = [Column(n, "float") for n in (labels.click, labels.conversion) if n]
            columns += [Column(_row_column(j)) for j in self.schema.joins if not self._by_id(j.key)]
            columnar = {
                label.field: "uint8" if label.is_event else "float32" for label in self.labels
            }
            if self.group is not None:
                columnar[self.group_column] = "int32"
            if self._has_time():
                columnar[self.exact_time] = "float64"
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
        return Layout(tuple(columns), tuple(bags), weighted, columnar)

    def _append(
        self,
        writer: TableWriter,
        rows: pa.RecordBatch,
        columns: dict[str, NDArray[Any]],
        times: NDArray[np.int64],
    ) -> None:
        """Write rows.

        Args:
            writer: of their table.
            rows: the fields.
            columns: what there is beside them.
            times: how many impressions of each part have each row, ``[rows, parts]``, or all of
                them, ``[parts]``.
        """
        bags = []
        for own in self._of(writer.name):
            column = rows.column(own.name)
            if own.kind == "token":
                ids = columns[own.name] = self._ids(own, column)
                self._tally(own, writer.name, ids[ids > 0], (ids > 0).astype(np.int32), times)
            elif own.kind == "float":
                known, is_time = self.numbers[writer.name, own.name], own.name == self.schema.time
                columns[own.name] = known.column(column, own, is_time)
                there = column.is_valid().to_numpy(zero_copy_only=False)
                self._tally(own, writer.name, np.full(there.sum(), 2, np.int32), there, times)
            elif own.kind == "float_seq":
                known, width = self.numbers[writer.name, own.name], max(self.longest[own.name], 1)
                columns[own.name] = known.lists(Lists.of(column), own, width)
            else:
                bag = Lists.of(column)
                ids = self._ids(own, bag.values)
                self._note_longest(own, int(bag.lengths.max(initial=0)))
                bags.append((bag.lengths, ids, bag.weights))
                self._tally(own, writer.name, ids, bag.lengths, times)
        if writer.name == "inter" and len(rows):
            self.digests.add(self.part, columns, bags)
        writer.append(columns, *(row_by_row(bags, writer.layout.weighted) if bags else ()))

    def _tally(
        self,
        own: Field,
        table: str,
        ids: NDArray[np.int32],
        lengths: NDArray[Any],
        times: NDArray[np.int64],
    ) -> None:
        """Add to the report of a field: ids ``[values]`` of rows with so many values each."""
        if own.table != table:  # a key, which stands in both
            return
        unknown = (ids == 1) & self.unknown
        if times.ndim == 1:
            counted = [np.count_nonzero(lengths == 0), len(ids), np.count_nonzero(unknown)]
            self.tallies[own.name] += np.outer(np.array(counted), times)
            return
        row = np.repeat(np.arange(len(lengths)), lengths)
        each = lengths == 0, lengths, np.bincount(row, unknown, len(lengths))
        self.tallies[own.name] += np.stack(each).astype(np.int64) @ times

    def _ids(self, own: Field, column: pa.DictionaryArray) -> NDArray[np.int32]:
        return self.numbering[own.vocabulary or own.name].ids(column)

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
            if own.kind.startswith("float"):
                known = self.numbers[own.table, own.name]
                flags = ("numerical", "scaled", "standardized")
                entry |= {flag: getattr(own, flag) for flag in flags}
                entry["numbers"] = known.as_dict()
                entry["discretized"] = bool(self.shape[own.name])
                if own.standardized:
                    entry |= {"mean": known.mean, "deviation": known.deviation}
            fields.append(entry)
        report = self._report()
        self._check_features(report["fields"])
        joins = [
            {"table": j.table, "key": j.key if self._by_id(j.key) else _row_column(j)}
            for j in schema.joins
        ]
        whole = {
            **about,
            "fields": fields,
            "joins": joins,
            "group": self.group_column if self.group else None,
            "time": schema.time,
            "exact_time": self.exact_time if self._has_time() else None,
            "truth": schema.truth,
            "truth_parts": schema.truth_parts,
            "clicks_known": schema.clicks_known,
            "sizes": self.parts[:, 0].tolist() if self.split else None,
            "simulated": schema.simulated,
            "notes": schema.notes,
            "report": report,
        }
        (self.writer.folder / REPORT_FILE).write_text(markdown(whole), encoding="utf-8")
        self.writer.commit(whole)
        return report

    def _check_features(self, fields: Mapping[str, Any]) -> None:
        """Look at what was written: fields without a value, copies of rows, labels given away."""
        notes = self.schema.notes
        part = "train" if self.split else "all"
        rows = self._by_part(self.parts[:, 0])[part]
        for own in self.schema.fields:
            count = 1  # at least: of lists of fixed size it isn't known
            if own.kind.startswith("token"):
                count = fields[own.name]["values"][part]
            elif not self.shape[own.name]:
                count = self.numbers[own.table, own.name].count
                if own.name == self.schema.time and 0 < count < rows:
                    lacking = f"{rows - count:,} of {rows:,} impressions have no time"
                    text = f"{lacking} ('{own.name}'): they are given the mean of the others"
                    notes.append(("warning", text))
            if not count:
                notes.append(("warning", empty_field(own.name, part, self.schema.leave_out)))
            elif own.kind.startswith("token"):
                said = self._poor(own, fields[own.name], rows)
                notes += [("warning", said)] if said else []
        for name, numbering in self.numbering.items():
            if alike := alike_tokens(name, numbering.tokens):
                notes.append(("warning", alike))
        notes += self.digests.notes()
        if idle := idle_numbers(self.schema):
            notes.append(("warning", idle))
        notes += [("warning", said) for said in self._suspicious(rows)]

    def _poor(self, own: Field, known: Mapping[str, Any], rows: int) -> str | None:
        values = known["values"]["train" if self.split else "all"]
        return poor_field(own, known["seen"], values, rows, self.longest[own.name])

    def _suspicious(self, size: int) -> Iterator[str]:
        """Of features in the first rows, which are train where the source is split.

        Args:
            size: number of those rows. Of many, stretches are read: rows far apart would map most
                of a table's pages.
        """
        if not size:
            return
        tables = {
            name: Table(self.writer.folder, name, entry)
            for name, entry in self.writer.tables.items()
        }
        rows = torch.arange(size)
        if size > _STRETCHES * _STRETCH:
            starts = torch.linspace(0, size - _STRETCH, _STRETCHES, dtype=torch.float64).long()
            rows = (starts[:, None] + torch.arange(_STRETCH)).flatten()
        features = grouped_values(*tables["inter"].gather(rows))
        for join in self.schema.joins:
            key = join.key if self._by_id(join.key) else _row_column(join)
            joined = tables["inter"].column(key, rows).long()
            features |= grouped_values(*tables[join.table].gather(joined))
        labels = self.schema.labels
        seen = {own.name for own in self.schema.fields if not is_idle(own)}
        yield from suspicious_features(
            {name: own for name, own in features.items() if name in seen},
            {name: features[name] for name in (labels.click, labels.conversion) if name},
        )

    def _report(self) -> dict[str, Any]:
        names = ("rows", "clicks", "conversions")
        parts = [dict(zip(names, counted, strict=True)) for counted in self.parts.tolist()]
        fields = {}
        for own in self.schema.fields:
            if own.kind.startswith("token"):
                numbering = self.numbering[own.vocabulary or own.name]
                counted = map(self._by_part, self.tallies[own.name])
                fields[own.name] = {
                    "vocabulary": numbering.size,
                    "seen": numbering.seen,
                    **dict(zip(("lacking", "values", "unknown"), counted, strict=True)),
                }
        rows = self._by_part(self.parts[:, 0])
        values = {name: self._by_part(own[1]) for name, own in self.tallies.items()}
        said = [*unknown_everywhere(fields), *lacking_in_a_part(values, rows)]
        said += not_matched(self.schema.joins, self.joins, rows)
        self.schema.notes.extend(("warning", text) for text in said)
        return {
            **self.schema.report,
            "parts": self._by_part(parts),
            "conversions_without_click": self.unclicked.count,
            "fields": fields,
            "joins": self.joins,
        }

    def _by_part(self, values: Iterable[Any]) -> dict[str, Any]:
        """What is known of each part, for JSON."""
        each = values.tolist() if isinstance(values, np.ndarray) else values
        return dict(zip(PARTS if self.split else ("all",), each, strict=False))


def _in_order(counts: Mapping[tuple[str, str | None], Counts], table: str) -> list[pa.Table]:
    """What was counted of a table, part by part."""
    own = sorted((_PLACE[part], part) for name, part in counts if name == table)
    return [piece for _, part in own for piece in counts[table, part].pieces]


def _row_column(join: Join) -> str:
    """The column of impressions that says the row of a joined table; no field has its name."""
    return f"{join.table}:row"


def _all(kept: _Buffer, table: str) -> Iterator[pa.RecordBatch]:
    for part in kept.parts(table):
        yield from kept.rows(table, part)


def _shared(
    batches: Iterable[pa.RecordBatch], key: str, counted: pa.Table
) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows whose key other rows have as well, and their numbers in the table."""
    several = Numbering(counted.filter(pc.greater(counted["count"], 1)))
    shared, numbers, first = [], [], 0
    for rows in batches:
        own = np.flatnonzero(several.ids(encoded(rows.column(key))))
        shared.append(rows.take(pa.array(own)))
        numbers.append(first + own)
        first += len(rows)
    return pa.Table.from_batches(shared), np.concatenate(numbers)


def _by_row(
    batches: Iterable[pa.RecordBatch], key: str, row_of: Numbering
) -> Iterator[pa.RecordBatch]:
    """One row for each id of a key, in their order; empty where the table has none."""
    whole = pa.Table.from_batches(batches).combine_chunks()
    ids = row_of.ids(encoded(whole.column(key)))
    place = np.full(len(row_of), -1)
    place[ids[::-1]] = np.arange(len(ids))[::-1]  # the first row of each key
    place[0] = -1
    yield from whole.take(pa.array(place, mask=place < 0)).combine_chunks().to_batches()


def _first_rows(
    batches: Iterable[pa.RecordBatch], key: str, row_of: Numbering
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
