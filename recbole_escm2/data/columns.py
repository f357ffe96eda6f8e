"""Columns of record batches as arrays: numbers, lists, tokens in lists, and rows of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recbole_escm2.data.schema import Field
from recbole_escm2.data.vocabulary import codes, encoded


def without_empty(column: pa.Array) -> pa.Array:
    """A column of text with null in place of each empty one."""
    # A scalar null would do, but for a slice of a column pyarrow then gives the text of other rows.
    return pc.if_else(pc.equal(column, ""), pa.nulls(len(column), column.type), column)


@dataclass(frozen=True)
class Lists:
    """A column of lists: how many values each row has, and all of them one after the other."""

    lengths: NDArray[np.int32]
    values: pa.Array
    weights: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, column: pa.Array) -> Lists:
        column = list_of_pairs(column)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        values = column.flatten()
        if not pa.types.is_struct(values.type):
            return cls(lengths.astype(np.int32), values)
        tokens, weights = values.flatten()
        return cls(lengths.astype(np.int32), tokens, numbers_of(weights, 1.0, np.float32))

    def once(
        self, times: NDArray[np.int64] | None
    ) -> tuple[pa.DictionaryArray, NDArray[np.int64] | None]:
        """The different tokens of each list, and how often each counts that counts so often."""
        if self.lengths.max(initial=0) <= 1:
            return self.values, None if times is None else times[self.lengths > 0]
        size = max(len(self.values.dictionary), 1)
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        row, code = np.divmod(pd.unique(row * size + codes(self.values)), size)
        tokens = pa.DictionaryArray.from_arrays(pa.array(code), self.values.dictionary)
        return tokens, None if times is None else times[row]


def list_of_pairs(column: pa.Array) -> pa.Array:
    """A column of maps as one of lists of (id, weight); any other one as it is."""
    if not pa.types.is_map(column.type):
        return column
    pair = [("id", column.type.key_type), ("weight", column.type.item_type)]
    return column.cast(pa.list_(pa.struct(pair)))


def numbers_of(column: pa.Array, missing: float, dtype: Any = np.float64) -> NDArray[Any]:
    """A column of numbers, with something else for null and NaN; ``[rows, *shape]``."""
    if pa.types.is_fixed_size_list(column.type):
        there = column.is_valid().to_numpy(zero_copy_only=False)
        inner = numbers_of(column.flatten(), missing, dtype)  # of the lists that are there
        whole = np.full((len(column), column.type.list_size, *inner.shape[1:]), missing, dtype)
        whole[there] = inner.reshape(-1, *whole.shape[1:])
        return whole
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), missing, values).astype(dtype)


class Numbers:
    """Of a column of numbers: how many, mean and deviation, the least and the largest one."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        self.least, self.largest = np.inf, -np.inf

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the least and the largest one where there is no number."""
        known = {"count": self.count, "mean": self.mean, "squares": self._squares}
        return known | ({"least": self.least, "largest": self.largest} if self.count else {})

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Numbers:
        """What :meth:`as_dict` gave, to the last bit."""
        numbers = cls()
        numbers.count, numbers.mean = int(content["count"]), float(content["mean"])
        numbers._squares = float(content["squares"])
        numbers.least = float(content.get("least", np.inf))
        numbers.largest = float(content.get("largest", -np.inf))
        return numbers

    def add(self, column: pa.Array) -> None:
        values = numbers_of(column, np.nan)
        known = values[~np.isnan(values)]
        if not known.size:
            return
        # Chan et al.'s update: squares of a time in seconds would have no digit left for its spread
        mean, count = float(known.mean()), self.count + known.size
        shift = mean - self.mean
        self._squares += float(((known - mean) ** 2).sum())
        self._squares += shift**2 * self.count * known.size / count
        self.mean += shift * known.size / count
        self.count = count
        self.least = min(self.least, float(known.min()))
        self.largest = max(self.largest, float(known.max()))

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 where all numbers are the same."""
        deviation = float(np.sqrt(self._squares / self.count)) if self.count else 0.0
        return deviation if deviation > 1e-12 * abs(self.mean) else 1.0

    def line(self, own: Field, since_first: bool = False) -> tuple[float, float] | None:
        """What is subtracted from a number, and what it is then divided by, as its field says.

        ``scaled``: into [0, 1], as RecBole normalises; ``standardized``: to mean 0 and standard
        deviation 1.

        Args:
            own: the field.
            since_first: whether the least number is subtracted from one that stays as it is, since
                float32 has 24 bits for a time.

        Returns:
            None where each becomes 1, since all numbers to be scaled are the same.
        """
        if own.scaled:
            width = self.largest - self.least
            return (self.least, width) if width > 0 else None
        if own.standardized:
            return self.mean, self.deviation
        return (self.least if since_first else 0.0), 1.0

    def in_form(
        self, values: NDArray[np.float64], own: Field, since_first: bool = False
    ) -> NDArray[np.float64]:
        """Numbers as a field says, see :meth:`line`."""
        if (line := self.line(own, since_first)) is None:
            return np.ones_like(values)
        shift, divisor = line
        return (values - shift) / divisor

    def column(self, column: pa.Array, own: Field, since_first: bool) -> NDArray[np.float64]:
        """A column of one number a row as a batch has it, ``[rows]`` or ``[rows, 2]``.

        Args:
            column: null and NaN become the mean.
            own: its field.
            since_first: as :meth:`line` has it.
        """
        values = self.in_form(numbers_of(column, self.mean), own, since_first)
        return np.stack([values, np.ones_like(values)], axis=-1) if own.numerical else values

    def lists(self, lists: Lists, own: Field, width: int) -> NDArray[np.float32]:
        """A column of any number of numbers a row, padded, ``[rows, width]`` or ``[…, 2]``."""
        values = self.in_form(numbers_of(lists.values, 0.0), own)
        return padded(values, lists.lengths, width, own.numerical)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's types of text."""
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def shape_of(kind: pa.DataType) -> tuple[int, ...]:
    """Of one value of a column of numbers, or of a list of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return shape_of(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return (kind.list_size, *shape_of(kind.value_type))
    return ()


def list_array(values: pa.Array, lengths: NDArray[Any]) -> pa.ListArray:
    """A column of lists: all values one after the other, and how many each row has."""
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), values)


def with_codes(column: pa.Array, own: Field) -> pa.Array:
    """A column with tokens as dictionaries; in a list, without what is no value."""
    if own.kind == "token":
        return encoded(column)
    if own.kind != "token_seq":
        return column
    lists = Lists.of(column)
    tokens, lengths, weights = encoded(lists.values), lists.lengths, lists.weights
    if tokens.null_count:
        there = tokens.is_valid().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(row[there], minlength=len(lengths)).astype(np.int32)
        tokens = tokens.filter(pa.array(there))
        weights = None if weights is None else weights[there]
    if not own.weighted:
        return list_array(tokens, lengths)
    weights = np.ones(len(tokens), np.float32) if weights is None else weights
    pairs = pa.StructArray.from_arrays([tokens, pa.array(weights)], ["id", "weight"])
    return list_array(pairs, lengths)


def padded(
    values: NDArray[np.float64], lengths: NDArray[np.int32], width: int, numerical: bool
) -> NDArray[np.float32]:
    """Lists of numbers, or of pairs of a number and 1, with zeros behind, ``[rows, width, …]``."""
    if numerical:
        values = np.stack([values, np.ones_like(values)], axis=-1)
    padded = np.zeros((len(lengths), width, *values.shape[1:]), np.float32)
    padded[np.arange(width) < lengths[:, None]] = values
    return padded


def row_by_row(
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
