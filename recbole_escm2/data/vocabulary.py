"""The tokens of a field: counted while they are read, numbered, and turned into ids."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recbole_escm2.data.store import UNKNOWN

_COMPACT = 1 << 20  # counted tokens from which repeats are merged
_CALLS_WITHOUT_INDEX = 4


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


class Counts:
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
        places = codes(column)
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


class Numbering:
    """The ids of a vocabulary.

    Args:
        counted: tokens with their counts.
        min_count: with ``unknown``, a token that occurs less often has its id.
        unknown: whether id 1 is that of unknown tokens.
        by_count: whether the most frequent token comes first, and of equal ones the least; by
            default they stay in their order.
    """

    def __init__(
        self, counted: pa.Table, min_count: int = 0, unknown: bool = False, by_count: bool = False
    ) -> None:
        kept = counted
        if unknown:  # also what is in a joined table, and train doesn't refer to
            kept = counted.filter(pc.greater_equal(counted["count"], min_count))
        if by_count:
            kept = kept.sort_by([("count", "descending"), ("token", "ascending")])
        #: Tokens that were counted at least once, rare ones too.
        self.seen = int(np.count_nonzero(counted["count"]))
        #: Those that have an id of their own, in the order of their ids.
        self.tokens: pa.Array = kept["token"].combine_chunks()
        self._first = 2 if unknown else 1
        self._calls = 0
        self._latest: pa.Array | None = None  # many batches in a row share a dictionary
        self._id_of = np.zeros(1, np.int32)

    def __len__(self) -> int:
        """Ids, with those of no value and of unknown ones."""
        return self._first + self.size

    @property
    def size(self) -> int:
        """Tokens that have an id of their own."""
        return len(self.tokens)

    def ids(self, column: pa.DictionaryArray) -> NDArray[np.int32]:
        """0 where there is no value, 1 for an unknown one, ``[rows]``."""
        tokens = column.dictionary
        if self._latest is None or not _same_memory(self._latest, tokens):
            places = self._places(tokens)
            id_of = np.where(places >= 0, places + self._first, self._first - 1).astype(np.int32)
            self._latest, self._id_of = tokens, np.append(id_of, np.int32(0))
        return self._id_of[codes(column)]  # the last one for -1

    def _places(self, tokens: pa.Array) -> NDArray[np.int64]:
        if tokens.type != self.tokens.type:
            tokens = tokens.cast(self.tokens.type)
        self._calls += 1
        if self._calls < _CALLS_WITHOUT_INDEX:  # each of them hashes all tokens
            places = pc.index_in(tokens, value_set=self.tokens)
            return places.fill_null(-1).to_numpy(zero_copy_only=False)
        return self._index.get_indexer(tokens.to_numpy(zero_copy_only=False))

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.tokens.to_numpy(zero_copy_only=False))

    def written(self) -> pa.Array:
        """The tokens for a store, as text."""
        tokens = self.tokens.cast(pa.string())
        return pa.concat_arrays([pa.array([UNKNOWN] * (self._first - 1), pa.string()), tokens])


def codes(column: pa.DictionaryArray) -> NDArray[Any]:
    """Places in the dictionary, -1 for none."""
    places = column.indices
    if places.null_count:
        places = places.fill_null(-1)
    return places.to_numpy(zero_copy_only=False)


def _same_memory(one: pa.Array, other: pa.Array) -> bool:
    def places(array: pa.Array) -> list[int]:
        return [array.offset, len(array), *(b.address for b in array.buffers() if b is not None)]

    return places(one) == places(other)
