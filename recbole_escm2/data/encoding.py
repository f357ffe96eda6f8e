"""From new rows to batches, by what a training knew of its fields: no data set is needed.

What is kept of a data set (:func:`encoding_state`) is plain data and tensors, small beside a
model's tables: what a store says of each field, the vocabularies, how often train has each id, and
the spread of its numbers. :class:`Encoder` reads rows by it exactly as the builder did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_escm2.bags import Bags
from recbole_escm2.data.batch import Batch
from recbole_escm2.data.checks import faulty_values
from recbole_escm2.data.columns import (
    Lists,
    Numbers,
    is_text,
    list_array,
    list_of_pairs,
    with_codes,
    without_empty,
)
from recbole_escm2.data.schema import Field
from recbole_escm2.data.sources.table import as_numbers
from recbole_escm2.data.store import PADDING, UNKNOWN
from recbole_escm2.data.vocabulary import codes
from recbole_escm2.errors import UsageError

#: Quantiles of a number in train between which its spread is compared: deciles.
DECILES = 10
_LOOKED_AT = 100_000  # rows of train, evenly spaced, from which those are
_SPAN = 8  # whole numbers are looked up in a table of so many times their number, and a little
_LITTLE = 1 << 20
_ENTRY = {
    **dict.fromkeys(("name", "type", "source", "table"), str),
    **dict.fromkeys(("seqlen", "length", "buckets"), int),
}
_NUMBER = {"count": int, "mean": float, "squares": float}


def encoding_state(train: Any) -> dict[str, Any]:
    """What a checkpoint keeps of a data set, to read new rows by.

    Args:
        train: the training part, built.

    Returns:
        ``fields``: ``described`` (as in a store's schema, in the order in which models see them),
        ``time`` (the field of times, or None), ``unseen_filled`` (whether ids that train lacks
        were given their field's mean), ``train_rate`` (by task); ``vocabularies``: of each a uint8
        tensor ``text`` and an int64 one ``ends``; ``train_ids``: by field how often train has each
        id, int64 ``[ids]``; ``deciles``: by numerical feature, float64 ``[2, 10]``, upper edges
        and shares of train.
    """
    described = [own for own in train.store.schema["fields"] if own["name"] in train.field2type]
    for entry in described:
        if entry.get("discretized"):
            nothing: dict[str, Any] = {"vocabularies": [], "train_ids": {}, "deciles": {}}
            return {"fields": {"discretized": entry["name"]}, **nothing}
    return {
        "fields": {
            "described": described,
            "time": train.store.schema["time"],
            "unseen_filled": train.seen_ids is not None,
            "train_rate": dict(train.train_rates),
        },
        "vocabularies": [own.tensors() for own in train.store.vocabularies],
        "train_ids": {name: own.long() for name, own in train.train_ids.items()},
        "deciles": _deciles(train, [own["name"] for own in described if own.get("numerical")]),
    }


def _deciles(train: Any, names: Sequence[str]) -> dict[str, Tensor]:
    if not names:
        return {}
    step = max(1, len(train) // _LOOKED_AT)
    batch = train[torch.arange(0, len(train), step)]
    shares = np.arange(1, DECILES) / DECILES
    deciles = {}
    for name in names:
        numbers = numbers_in(batch[name])
        edges = np.quantile(numbers, shares)
        bins = np.bincount(np.searchsorted(edges, numbers, side="right"), minlength=DECILES)
        deciles[name] = torch.from_numpy(np.stack([np.append(edges, np.inf), bins / len(numbers)]))
    return deciles


def numbers_in(pairs: Tensor) -> NDArray[np.float64]:
    """The numbers of a numerical feature's pairs, those of a list one after the other."""
    flat = pairs.reshape(-1, 2).double().numpy()
    there = flat[flat[:, 1] != 0, 0]
    return there if len(there) else np.zeros(1)


# --------------------------------------------------------------------------- vocabularies


class Tokens(Sequence[str]):
    """The ids of a vocabulary that was kept.

    Args:
        kept: what :meth:`recbole_escm2.data.store.Vocabulary.plain` gave.
        spare: whether unknown tokens have an id of their own, after all others, where the
            vocabulary has none for them.

    Attributes:
        trained: ids that the training had, 0 for no value included.
        unknown: the id of an unknown token.

    Raises:
        ValueError: it isn't a vocabulary.
    """

    def __init__(self, kept: Mapping[str, Tensor], spare: bool) -> None:
        text, ends = kept["text"].numpy(), kept["ends"].numpy()
        if text.dtype != np.uint8 or ends.dtype != np.int64 or text.ndim != 1 or ends.ndim != 1:
            raise ValueError("its types aren't those of a vocabulary")
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        if (np.diff(offsets) < 0).any() or offsets[-1] != len(text):
            raise ValueError("its tokens don't end where its text does")
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))]
        self.tokens = pa.Array.from_buffers(pa.large_string(), len(ends), buffers)
        self.tokens.validate(full=True)  # that it is UTF-8
        self.trained = len(ends) + 1
        has_own = bool(len(ends)) and self.tokens[0].as_py() == UNKNOWN
        self.unknown = 1 if has_own else len(ends) + 1 if spare else 0
        self.spare = spare and not has_own

    def __len__(self) -> int:
        return self.trained + self.spare

    def __getitem__(self, index: Any) -> Any:
        return [PADDING, *self.tokens.to_pylist(), *[UNKNOWN] * self.spare][index]

    def ids(self, column: pa.Array) -> NDArray[np.int64]:
        """0 where there is no value, :attr:`unknown` for an unknown token, ``[rows]``."""
        if pa.types.is_dictionary(column.type):
            return np.append(self.ids(column.dictionary), 0)[codes(column)]  # the last one for -1
        if pa.types.is_integer(column.type) and self._integers is not None:
            return self._of_integers(column)
        text = column.cast(pa.string()).dictionary_encode()
        tokens = text.dictionary.to_numpy(zero_copy_only=False)
        return np.append(self._known(self._index.get_indexer(tokens)), 0)[codes(text)]

    def _known(self, places: NDArray[Any]) -> NDArray[np.int64]:
        return np.where(places >= 0, places + 1, self.unknown)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.tokens.to_numpy(zero_copy_only=False))

    @cached_property
    def _integers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The tokens as sorted whole numbers, and the id of each, where all are such."""
        own = self.tokens[1:] if self.unknown == 1 and not self.spare else self.tokens
        first = 1 + len(self.tokens) - len(own)
        try:
            whole = own.cast(pa.int64())
        except pa.ArrowInvalid:
            return None
        if not len(own) or not whole.cast(pa.large_string()).equals(own):  # 007 isn't 7
            return None
        numbers = whole.to_numpy()
        order = np.argsort(numbers)
        return numbers[order], order + first

    @cached_property
    def _table(self) -> NDArray[np.int64] | None:
        """The id of each whole number from the least token on, where there aren't too many."""
        assert self._integers is not None
        numbers, ids = self._integers
        span = int(numbers[-1]) - int(numbers[0]) + 1
        if span > _SPAN * len(numbers) + _LITTLE:
            return None
        table = np.full(span, self.unknown, np.int64)
        table[numbers - numbers[0]] = ids
        return table

    def _of_integers(self, column: pa.Array) -> NDArray[np.int64]:
        assert self._integers is not None
        numbers, ids = self._integers
        there = None if not column.null_count else column.is_valid().to_numpy(zero_copy_only=False)
        column = column.cast(pa.int64(), safe=column.type == pa.uint64())
        values = (column if there is None else column.fill_null(0)).to_numpy()
        if self._table is not None:
            inside = (values >= numbers[0]) & (values <= numbers[-1])
            if inside.all():
                encoded = self._table[values - numbers[0]]
            else:
                encoded = np.where(inside, self._table[np.where(inside, values - numbers[0], 0)], 0)
                encoded[~inside] = self.unknown
        else:
            place = np.minimum(np.searchsorted(numbers, values), len(numbers) - 1)
            encoded = np.where(numbers[place] == values, ids[place], self.unknown)
        return encoded if there is None else np.where(there, encoded, 0)


# --------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Fault:
    """A value that no model can read: in which row of a batch, in which column, and why not."""

    row: int
    column: str
    value: Any
    why: str


_NOT_AS_WRITTEN = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    pa.ArrowException,
    RuntimeError,
)


class Known:
    """What a checkpoint keeps of the fields that it was trained on, checked.

    Args:
        kept: a checkpoint with the entries of :func:`encoding_state`.
        spare: as :class:`Tokens` takes it.

    Attributes:
        described: of each field what a store's schema says.
        fields: the same as :class:`~recbole_escm2.data.schema.Field` objects, by name.
        tokens: the vocabulary of each field of tokens.
        numbers: of each field of numbers.

    Raises:
        UsageError: it isn't as a training writes it, or has numbers cut into buckets.
    """

    def __init__(self, kept: Mapping[str, Any], spare: bool) -> None:
        about = kept["fields"]
        if name := about.get("discretized"):
            raise UsageError(
                f"it was trained with discretization of '{name}', whose buckets depend on all rows "
                "of its data: new rows can't be read by it. Train without discretization"
            )
        try:
            self.described: list[dict[str, Any]] = [dict(own) for own in about["described"]]
            self.time: str | None = about["time"]
            self.unseen_filled = bool(about["unseen_filled"])
            self.train_rate = {task: float(rate) for task, rate in about["train_rate"].items()}
            vocabularies = [Tokens(own, spare) for own in kept["vocabularies"]]
            self.vocabularies = vocabularies
            for entry in self.described:
                _check_entry(entry, len(vocabularies))
            of_tokens = [own for own in self.described if own["type"].startswith("token")]
            self.tokens = {own["name"]: vocabularies[own["vocabulary"]] for own in of_tokens}
            self.fields = {own["name"]: _field(own) for own in self.described}
            of_numbers = [own for own in self.described if "numbers" in own]
            self.numbers = {own["name"]: Numbers.of(own["numbers"]) for own in of_numbers}
            self.train_ids = {name: kept["train_ids"][name].double() for name in self.tokens}
            for name, counts in self.train_ids.items():
                if counts.shape != (self.tokens[name].trained,) or bool((counts < 0).any()):
                    raise ValueError(f"the counts of '{name}' aren't those of its vocabulary")
            numerical = [name for name, own in self.fields.items() if own.numerical]
            self.deciles = {name: kept["deciles"][name].double().numpy() for name in numerical}
            for name, own in self.deciles.items():
                if own.shape != (2, DECILES) or (np.diff(own[0]) < 0).any():
                    raise ValueError(f"the deciles of '{name}' aren't such")
        except _NOT_AS_WRITTEN as error:
            raise UsageError(f"its fields aren't as this program writes them ({error})") from error

    @property
    def features(self) -> list[str]:
        """The fields that a model reads."""
        return [own.name for own in self.fields.values() if own.kind in _TOKENS or own.numerical]


_TOKENS = ("token", "token_seq")
_KINDS = (*_TOKENS, "float", "float_seq")


def _check_entry(entry: Mapping[str, Any], vocabularies: int) -> None:
    if any(not isinstance(entry[key], kind) for key, kind in _ENTRY.items()):
        raise ValueError("a field lacks what is said of all")
    if entry["type"] not in _KINDS:
        raise ValueError(f"there are no fields of type {entry['type']!r}")
    if entry["type"] in _TOKENS and not 0 <= entry["vocabulary"] < vocabularies:
        raise ValueError(f"'{entry['name']}' has no vocabulary")
    if entry["type"] not in _TOKENS:
        for key, kind in _NUMBER.items():
            if not isinstance(entry["numbers"][key], kind):
                raise ValueError(f"'{entry['name']}' has no {key}")


def _field(entry: Mapping[str, Any]) -> Field:
    flags: dict[str, Any] = {
        flag: bool(entry.get(flag)) for flag in ("numerical", "scaled", "standardized")
    }
    return Field(
        entry["name"],
        entry["type"],
        entry["source"],
        entry["table"],
        weighted="scale" in entry,
        longest=entry["seqlen"],
        buckets=entry["buckets"],
        **flags,
    )


class Encoder:
    """Rows as the batches that a model was trained on.

    Args:
        known: of the fields.
        lengths: values that padded ids keep, by multi-valued field.
        scales: what the weights of a multi-valued field are divided by.
        separator: between the values of a list that is text.
        cut: values that a list keeps at most, by field.

    Attributes:
        unknown: how many values had no id, by field.
        values: how many there were.
    """

    def __init__(
        self,
        known: Known,
        lengths: Mapping[str, int],
        scales: Mapping[str, float],
        separator: str = " ",
        cut: Mapping[str, int] | None = None,
    ) -> None:
        self.known = known
        self.lengths = dict(lengths)
        self.scales = dict(scales)
        self.separator = separator
        self.cut = dict(cut or {})
        weighted = {own.table for own in known.fields.values() if own.weighted}
        self._in_weighted = {n: own.table in weighted for n, own in known.fields.items()}
        self.unknown: dict[str, int] = dict.fromkeys(known.tokens, 0)
        self.values: dict[str, int] = dict.fromkeys(known.tokens, 0)

    def check_columns(self, names: list[str], where: str) -> None:
        """Make sure that each feature has a column.

        Raises:
            UsageError: one has none, or two; the message says which.
        """
        if twice := [name for name in self.known.features if names.count(name) > 1]:
            raise UsageError(f"{where} has the column '{twice[0]}' twice")
        if lacking := [name for name in self.known.features if name not in names]:
            s = "s" * (len(lacking) > 1)
            raise UsageError(
                f"{where} lacks the column{s} {', '.join(lacking)}, which the model reads; it has "
                f"{', '.join(names)}"
            )

    def conformed(self, rows: pa.RecordBatch, where: str) -> tuple[pa.RecordBatch, list[Fault]]:
        """The columns of the fields that are there, in the types that fields have.

        Returns:
            They, and what can't be read of them; such a value is null.

        Raises:
            UsageError: a column's type isn't that of its field.
        """
        columns: dict[str, pa.Array] = {}
        faults: list[Fault] = []
        for name in rows.schema.names:
            if own := self.known.fields.get(name):
                columns[name] = self._conformed(rows.column(name), own, where, faults)
                for row, value, why in faulty_values(columns[name], own):
                    faults.append(Fault(row, name, value, why))
        if not columns:
            return rows.select([]), faults
        return pa.RecordBatch.from_pydict(columns), faults

    def _conformed(self, column: pa.Array, own: Field, where: str, faults: list[Fault]) -> pa.Array:
        kind = column.type
        if own.kind.endswith("_seq"):
            return self._conformed_list(column, own, where, faults)
        if pa.types.is_null(kind):
            return column.cast(pa.string() if own.kind == "token" else pa.float64())
        if own.kind == "token":
            if pa.types.is_floating(kind):  # what pandas makes of whole numbers, some missing
                return _as_integers(column, own, faults)
            inner = kind.value_type if pa.types.is_dictionary(kind) else kind
            if pa.types.is_boolean(kind):
                return column.cast(pa.string())
            if is_text(inner) or pa.types.is_integer(inner):
                return column
        elif is_text(kind) or pa.types.is_dictionary(kind):
            return _as_numbers_of_text(column, own, faults)
        elif not (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
            return as_numbers(column, "float")
        raise _wrong_type(where, own, kind)

    def _conformed_list(
        self, column: pa.Array, own: Field, where: str, faults: list[Fault]
    ) -> pa.Array:
        if pa.types.is_null(column.type):
            column = pa.nulls(len(column), pa.list_(pa.string()))
        if is_text(column.type) and not own.weighted:
            column = _split(column.cast(pa.string()), self.separator)
        column = list_of_pairs(as_numbers(column, own.kind))
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise _wrong_type(where, own, column.type)
        if longest := self.cut.get(own.name):
            column = pc.list_slice(column, 0, longest)
        inner = column.type.value_type
        if own.kind == "float_seq":
            if pa.types.is_nested(inner):
                raise _wrong_type(where, own, column.type)
            if is_text(inner):
                column = _numbers_of_lists(column, own, faults)
        elif pa.types.is_struct(inner) and inner.num_fields == 2:
            inner = inner.field(0).type
        if own.kind == "token_seq" and not (
            is_text(inner)
            or pa.types.is_integer(inner)
            or pa.types.is_null(inner)
            or pa.types.is_dictionary(inner)
        ):
            raise _wrong_type(where, own, column.type)
        return column

    def encode(self, rows: pa.RecordBatch) -> Batch:
        """A batch of rows that :meth:`conformed` gave."""
        columns: dict[str, Tensor] = {}
        bags: dict[str, Bags] = {}
        for name in rows.schema.names:
            own, column = self.known.fields[name], rows.column(name)
            if own.kind == "token":
                columns[name] = torch.from_numpy(self._ids(name, column))
            elif own.kind == "token_seq":
                bags[name] = self._bag(column, own)
            else:
                columns[name] = torch.from_numpy(self._numbers(column, own).astype(np.float32))
        return _batch(columns, bags, self.lengths, len(rows))

    def _ids(self, name: str, column: pa.Array) -> NDArray[np.int64]:
        tokens = self.known.tokens[name]
        ids = tokens.ids(column)
        self.values[name] += len(ids) - column.null_count
        if tokens.unknown:
            self.unknown[name] += int(np.count_nonzero(ids == tokens.unknown))
        else:
            self.unknown[name] += int(np.count_nonzero(ids == 0)) - column.null_count
        return ids

    def _bag(self, column: pa.Array, own: Field) -> Bags:
        lists = Lists.of(with_codes(column, own))
        weights = lists.weights
        if weights is None and self._in_weighted[own.name]:
            weights = np.ones(len(lists.values), np.float32)
        ids = torch.from_numpy(self._ids(own.name, lists.values))
        lengths = torch.from_numpy(lists.lengths.astype(np.int64)).unsqueeze(0)
        bag = Bags((own.name,), ids, None if weights is None else torch.tensor(weights), lengths)
        return bag.scaled(self.scales.get(own.name, 1.0))

    def _numbers(self, column: pa.Array, own: Field) -> NDArray[Any]:
        known = self.known.numbers[own.name]
        if own.kind == "float":
            return known.column(column, own, own.name == self.known.time)
        lists = Lists.of(column)
        width = max(1, self.lengths.get(own.name, 1), int(lists.lengths.max(initial=0)))
        return known.lists(lists, own, width)


def _wrong_type(where: str, own: Field, kind: pa.DataType) -> UsageError:
    wanted = {
        "token": "text or whole numbers",
        "float": "numbers",
        "token_seq": "lists of text or of whole numbers",
        "float_seq": "lists of numbers",
    }[own.kind]
    weights = ", each with a weight" if own.weighted else ""
    return UsageError(
        f"{where}: column '{own.name}' is of type {kind}, and the model reads {wanted}{weights} "
        f"there ({own.kind})"
    )


def _as_integers(column: pa.Array, own: Field, faults: list[Fault]) -> pa.Array:
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    bad = ~np.isnan(values) & ((values != np.floor(values)) | (np.abs(values) >= 2**53))
    for row in np.flatnonzero(bad).tolist():
        faults.append(Fault(row, own.name, values[row].item(), "a token isn't a fraction"))
    there = ~(np.isnan(values) | bad)
    return pa.array(np.where(there, values, 0).astype(np.int64), mask=~there)


def _as_numbers_of_text(column: pa.Array, own: Field, faults: list[Fault]) -> pa.Array:
    column = column.cast(pa.string())
    column = without_empty(column)
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        texts = column.to_pandas()
        values = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64)
        for row in np.flatnonzero(np.isnan(values) & texts.notna().to_numpy()).tolist():
            faults.append(Fault(row, own.name, texts[row], "it is no number"))
        return pa.array(values, from_pandas=True)


def _numbers_of_lists(column: pa.Array, own: Field, faults: list[Fault]) -> pa.Array:
    within: list[Fault] = []
    values = _as_numbers_of_text(column.flatten(), own, within)
    rows = pc.list_parent_indices(column)
    faults.extend(Fault(rows[f.row].as_py(), f.column, f.value, f.why) for f in within)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return list_array(values, lengths)


def _split(column: pa.Array, separator: str) -> pa.Array:
    """Lists of what stands between separators, without what is empty."""
    lists = pc.split_pattern(column.fill_null(""), separator)
    values = lists.flatten()
    there = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
    row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    lengths = np.bincount(row[there], minlength=len(column))
    return list_array(values.filter(pa.array(there)), lengths)


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some rows of a batch, of :meth:`Encoder.encode`."""
    if start == 0 and stop == len(batch):
        return batch
    bags = {}
    for name, bag in batch.bags.items():
        ends = torch.cat([torch.zeros(1, dtype=torch.long), bag.lengths[0].cumsum(0)])
        values = slice(int(ends[start]), int(ends[stop]))
        weights = None if bag.weights is None else bag.weights[values]
        bags[name] = Bags(bag.fields, bag.ids[values], weights, bag.lengths[:, start:stop])
    columns = {name: own[start:stop] for name, own in batch.interaction.items()}
    return _batch(columns, bags, batch.lengths, stop - start)


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Rows of a batch, of :meth:`Encoder.encode`, in another order or several times."""
    bags = {}
    for name, bag in batch.bags.items():
        (lengths,) = bag.lengths
        chosen = lengths[rows]
        shift = (lengths.cumsum(0) - lengths)[rows] - (chosen.cumsum(0) - chosen)
        places = torch.repeat_interleave(shift, chosen) + torch.arange(int(chosen.sum()))
        weights = None if bag.weights is None else bag.weights[places]
        bags[name] = Bags(bag.fields, bag.ids[places], weights, chosen.unsqueeze(0))
    columns = {name: own[rows] for name, own in batch.interaction.items()}
    return _batch(columns, bags, batch.lengths, len(rows))


def _batch(
    columns: dict[str, Tensor], bags: dict[str, Bags], lengths: Mapping[str, int], rows: int
) -> Batch:
    batch = Batch(columns, bags, lengths)
    batch.length = rows  # which no column tells where all are bags
    return batch
