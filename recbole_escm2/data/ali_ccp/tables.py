"""Rows of a table on their way into a store: in a temporary file, counted, numbered, written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.lines import Lines
from recbole_escm2.data.ali_ccp.raw import Field
from recbole_escm2.data.store import UNKNOWN, TableWriter

PARTS = ("train", "validation", "test")
SIXTEEN = np.uint64(16)  # a feature is its id · 16 + its target
_MERGE = 1 << 20  # features
_COUNTS = 4  # impressions of train; values in train, validation and test


class Rows(NamedTuple):
    """Rows of a table, with the features that they have numbered from 1 on.

    Attributes:
        features: uint64 ``[features]``, id · 16 + target, ascending.
        head: int32 ``[rows, 2]``: number of the join key; click in bit 0 and purchase in bit 1.
        columns: int32 ``[rows, columns]``, a feature, or 0 where the field is missing.
        lengths: int32 ``[rows, bags]``, how many values each bag has.
        ids, weights: int32 and float32 ``[values]``, row by row and within a row bag by bag.
        truth: float32 ``[rows, 3]``, or ``[rows, 0]``.
    """

    features: NDArray[np.uint64]
    head: NDArray[np.int32]
    columns: NDArray[np.int32]
    lengths: NDArray[np.int32]
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    truth: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.head)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


class Spool:
    """Rows on their way to a table, in a file that is written once and read in its order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shapes: list[list[tuple[np.dtype[Any], tuple[int, ...]]]] = []
        self.rows = 0
        self.bytes = 0

    def append(self, rows: Rows) -> None:
        with open(self.path, "ab") as file:  # a handle that stayed open would outlive an error
            for array in rows:
                file.write(np.ascontiguousarray(array).data if array.size else b"")
        self._shapes.append([(array.dtype, array.shape) for array in rows])
        self.rows += len(rows)
        self.bytes += rows.nbytes

    def __iter__(self) -> Iterator[Rows]:
        if not self._shapes:
            return
        with open(self.path, "rb") as file:
            for shapes in self._shapes:
                arrays = (np.fromfile(file, dtype, math.prod(shape)) for dtype, shape in shapes)
                yield Rows(*(a.reshape(s) for a, (_, s) in zip(arrays, shapes, strict=True)))


class _Tally:
    """In how many impressions features occur, and how often: counts by feature, summed up."""

    def __init__(self) -> None:
        self._pieces: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._size = self._merged = 0

    def add(self, features: NDArray[np.uint64], counts: NDArray[np.int64]) -> None:
        """Add to the counts of features, ``[features, counts]``; each of them once."""
        self._pieces.append((features, counts))
        self._size += len(features)
        if self._size > 2 * self._merged + _MERGE:
            self.merged()

    def merged(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Features, ascending, and their counts."""
        if len(self._pieces) != 1:
            pieces = self._pieces or [(np.empty(0, np.uint64), np.empty((0, _COUNTS), np.int64))]
            each = np.concatenate([features for features, _ in pieces])
            features, place = np.unique(each, return_inverse=True)
            counts = np.zeros((len(features), _COUNTS), np.int64)
            done = 0
            for own, more in pieces:  # a feature is once in a piece
                counts[place[done : done + len(own)]] += more
                done += len(own)
            self._pieces = [(features, counts)]
            self._size = self._merged = len(features)
        return self._pieces[0]


class TableBuilder:
    """Makes the table of the common features, or of the impressions, of both splits.

    Args:
        kind: ``common`` or ``skeleton``.
        targets: the fields that its table has, those with bags last.
    """

    def __init__(self, kind: str, targets: Sequence[Field]) -> None:
        self.kind = kind
        self.targets = targets
        self.columns = [field for field in self.targets if not field.is_bag]
        self.bags = self.targets[len(self.columns) :]
        self.keys: dict[str, dict[bytes, int]] = {}  # numbers of join keys from 0 on, by split
        self.tally = _Tally()
        self.present = np.zeros((len(self.targets), 3), np.int64)
        self.longest = np.zeros(len(self.targets), np.int64)
        self.sums = np.zeros(max(len(self.bags), 1))
        self.features = np.empty(0, np.uint64)
        self.final_ids = np.empty(0, np.int32)
        self.tokens: dict[str, pa.Array] = {}
        self.reports: dict[str, dict[str, Any]] = {}

    def rows(self, lines: Lines, key: NDArray[np.int64], further: NDArray[np.int64]) -> Rows:
        """Lines as rows of the table.

        Args:
            key: ``[lines]``, numbers of their join keys.
            further: ``[targets]``, to which further values of single-valued fields are added.
        """
        count = len(lines.number)
        wanted = lines.target >= 0
        line, target = lines.line[wanted], lines.target[wanted]
        code, features = pd.factorize(
            lines.feature[wanted] * SIXTEEN + target.astype(np.uint64), sort=True
        )
        code = code + 1  # 0 is no value
        single = len(self.columns)
        columns = np.zeros((count, single), np.int32)
        first = target < single
        order = np.flatnonzero(first)[::-1]  # of several values the first one stays
        columns[line[order], target[order]] = code[order]
        further[:single] += np.bincount(target[first], minlength=single)
        further[:single] -= np.count_nonzero(columns, axis=0)
        bags = len(self.bags)
        place = line[~first] * bags + target[~first] - single
        order = np.argsort(place, kind="stable")
        lengths = np.bincount(place, minlength=count * bags).reshape(count, bags)
        return Rows(
            features,
            np.stack([key, lines.click + 2 * lines.purchase], axis=1).astype(np.int32),
            columns,
            lengths.astype(np.int32),
            code[~first][order].astype(np.int32),
            lines.weight[wanted][~first][order],
            np.empty((count, 0), np.float32) if lines.truth is None else lines.truth,
        )

    def count(self, rows: Rows, references: NDArray[np.int64]) -> None:
        """Count the features of rows.

        Args:
            references: ``[rows, 3]``, impressions of train, validation and test that have a row.
        """
        there = [rows.columns > 0, rows.lengths > 0]
        self.present += np.concatenate(there, axis=1).T.astype(np.int64) @ references
        longest = np.concatenate([there[0], rows.lengths], axis=1).max(axis=0, initial=0)
        self.longest = np.maximum(self.longest, longest)
        of_column, column = np.nonzero(there[0])
        of_value = np.repeat(np.arange(len(rows)), rows.lengths.sum(axis=1))
        single, value = rows.columns[of_column, column] - 1, rows.ids - 1
        code, row = np.concatenate([single, value]), np.concatenate([of_column, of_value])
        size = len(rows.features)
        counts = np.zeros((size, _COUNTS), np.int64)
        for part in np.flatnonzero(references.any(axis=0)):  # float64 is exact up to 2^53
            counts[:, 1 + part] = np.bincount(code, references[row, part], size)
        pairs = np.sort(of_value * size + value)  # a row counts once, however often it has a value
        once, again = pairs[:1], pairs[1:][np.diff(pairs) > 0]
        of_row, feature = np.divmod(np.concatenate([once, again]), max(size, 1))
        counts[:, 0] = np.bincount(single, references[of_column, 0], size)
        counts[:, 0] += np.bincount(feature, references[of_row, 0], size).astype(np.int64)
        self.tally.add(rows.features, counts)

    def make_vocabularies(self, min_count: int) -> None:
        """Final ids of all features, tokens and what there is to report of each field."""
        self.features, counts = self.tally.merged()
        target = (self.features % SIXTEEN).astype(np.int64)
        feature = (self.features // SIXTEEN).astype(np.int64)
        self.final_ids = np.ones(len(target), np.int32)
        for number, field in enumerate(self.targets):
            own = np.flatnonzero(target == number)
            kept = own[counts[own, 0] >= min_count]
            kept = kept[np.lexsort((feature[kept], -counts[kept, 0]))]
            self.final_ids[kept] = np.arange(2, len(kept) + 2, dtype=np.int32)
            tokens = pa.array(feature[kept]).cast(pa.string())
            self.tokens[field.name] = pa.concat_arrays([pa.array([UNKNOWN]), tokens])
            values, known = counts[own, 1:], counts[kept, 1:].sum(axis=0).tolist()
            totals = values.sum(axis=0).tolist()
            trained, tested = values[:, 0] > 0, values[:, 2] > 0
            oov = [1 - k / total if total else None for k, total in zip(known, totals, strict=True)]
            self.reports[field.name] = {
                "vocabulary": len(kept),
                "ids_in_training": int(trained.sum()),
                "ids_in_test": int(tested.sum()),
                "ids_in_both": int((trained & tested).sum()),
                "values": by_part(totals),
                "oov_rate": by_part(oov),
                "longest": int(self.longest[number]),
                "present": self.present[number].tolist(),
            }
        self.tally = _Tally()

    def append(
        self,
        table: TableWriter,
        rows: Rows,
        head: Mapping[str, NDArray[Any]],
        training: NDArray[np.int64],
    ) -> None:
        """Write rows with their final ids, and sum up weights.

        Args:
            head: columns that are no fields.
            training: ``[rows]``, training impressions that have a row.
        """
        ids = np.append(0, self.final_ids[np.searchsorted(self.features, rows.features)])
        ids = ids.astype(np.int32)
        columns = ids[rows.columns]
        own = {field.name: columns[:, number] for number, field in enumerate(self.columns)}
        table.append(
            {**head, **own}, rows.lengths if self.bags else None, ids[rows.ids], rows.weights
        )
        if self.bags:
            bag = np.tile(np.arange(len(self.bags)), len(rows))
            lengths = rows.lengths.ravel()
            times = np.repeat(np.repeat(training, len(self.bags)), lengths)
            np.add.at(self.sums, np.repeat(bag, lengths), times * rows.weights.astype(np.float64))

    def scale(self, name: str) -> float:
        """Mean weight of a field in training; 1 where it says nothing."""
        number = [field.name for field in self.targets].index(name) - len(self.columns)
        values = self.reports[name]["values"]["train"]
        mean = float(self.sums[number]) / values if number >= 0 and values else 1.0
        return mean if mean and np.isfinite(mean) else 1.0


def by_part(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(PARTS, values, strict=True))
