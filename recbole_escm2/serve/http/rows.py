"""Rows of a request as columns, by the types that JSON has; what is wrong is said by its row."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.checks import LARGEST
from recbole_escm2.data.columns import list_array
from recbole_escm2.data.encoding import Fault
from recbole_escm2.data.schema import Field
from recbole_escm2.errors import did_you_mean

#: What a request looks like, for messages.
SHAPE = '{"rows": [{"FIELD": VALUE, …}, …]}'
#: Faults that an answer lists.
LISTED = 20
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_EXACT = 2**53  # above it not every whole number is a float
_SHOWN = 80  # characters of a text that was refused
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
_KINDS |= {list: "a list", dict: "an object", type(None): "null"}
_WANTED = {
    "token": "a text, a whole number, or null where there is none",
    "float": "a number, or null where there is none",
    "token_seq": "a list of texts or whole numbers, or null where there is none",
    "float_seq": "a list of numbers, or null where there is none",
}


class Refused(Exception):
    """A request that gets no scores.

    Args:
        status: of HTTP.
        error: what is wrong and what to do.
        faults: of single rows, as an answer lists them.
    """

    def __init__(self, status: int, error: str, faults: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(error)
        self.status, self.error, self.faults = status, error, faults

    def __reduce__(self) -> tuple[Any, ...]:
        """Its arguments: an exception's own way from process to process keeps the message alone."""
        return type(self), (self.status, self.error, self.faults)


def rows_in(body: bytes, most: int) -> list[Any]:
    """The rows of a request.

    Args:
        body: of the request.
        most: rows that it may have.

    Raises:
        Refused: it isn't JSON, has another shape, an object with the same key twice, or too many
            rows.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is no JSON ({error}): send {SHAPE}") from None
    if not isinstance(content, dict):
        raise Refused(422, f"the body is {_KINDS[type(content)]}: send {SHAPE}")
    if list(content) != ["rows"] or not isinstance(content["rows"], list):
        raise Refused(422, f"the body must have one key, rows, with a list: send {SHAPE}")
    rows: list[Any] = content["rows"]
    if len(rows) > most:
        raise Refused(
            413, f"{len(rows):,} rows, and a request may have {most:,} (--max_rows): send several"
        )
    _check_keys(body, rows)
    return rows


def _check_keys(body: bytes, rows: Sequence[Any]) -> None:
    """Refuse a key that an object has twice, of which a parser keeps the last one in silence."""
    keys = 1 + sum([len(row) for row in rows if type(row) is dict])
    # Each key has one colon; those in texts are looked for only where the numbers differ.
    if body.count(b":") == keys or _STRING.sub(b"", body).count(b":") == keys:
        return
    try:
        json.loads(body, object_pairs_hook=_pairs)
    except (ValueError, RecursionError):  # it is nested, or has a number that is too long
        return
    except _Twice as twice:
        raise Refused(422, f"an object has the key {_shown(str(twice))!r} twice") from None


class _Twice(Exception):
    """A key that an object has twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def columns_of(
    rows: Sequence[Any], features: Sequence[Field], ignored: Collection[str]
) -> pa.RecordBatch:
    """A column for each feature, of the values that the rows have under its name.

    Values are as in JSON: a text or a whole number for a token, a number or its text for a number,
    a list of them for a list; of weighted lists each element is a token, or a list of a token and
    its weight. A row's values are read in the same way whatever other rows have.

    Args:
        rows: objects, by name of field.
        features: what the model reads.
        ignored: further keys that rows may have.

    Raises:
        Refused: a row is no object, lacks a feature, has a key that is none, or a value of another
            type.
    """
    values = _transposed(rows, features, ignored)
    faults: list[Fault] = []
    columns = {}
    for own, column in zip(features, values, strict=True):
        make = _lists if own.kind.endswith("_seq") else _scalars
        columns[own.name] = make(column, own, faults)
    if faults:
        raise refusal(faults, features)
    return pa.RecordBatch.from_pydict(columns)


def _transposed(
    rows: Sequence[Any], features: Sequence[Field], ignored: Collection[str]
) -> list[list[Any]]:
    """The values of each feature.

    Raises:
        Refused: a row is no object, lacks a feature, or has a key that is none.
    """
    names = {own.name for own in features}
    if set(map(type, rows)) <= {dict} and set().union(*rows) <= names.union(ignored):
        with contextlib.suppress(KeyError):
            return [list(map(itemgetter(own.name), rows)) for own in features]
    raise refusal(list(_of_shape(rows, names, ignored)), features)


def _of_shape(rows: Sequence[Any], names: set[str], ignored: Collection[str]) -> Iterator[Fault]:
    for number, row in enumerate(rows):
        if type(row) is not dict:
            yield Fault(number, "", row, "a row is an object with a value for each field")
            continue
        for name in sorted(names - row.keys()):
            yield Fault(number, name, None, "the row lacks the field")
        for name in sorted(row.keys() - names.union(ignored)):
            why = f"the model has no such field{did_you_mean(name[:_SHOWN], names)}"
            yield Fault(number, name, row[name], why)


def _scalars(
    values: list[Any], own: Field, faults: list[Fault], rows: NDArray[Any] | None = None
) -> pa.Array:
    """A column of tokens or of numbers.

    Args:
        values: as JSON has them.
        own: the field.
        faults: to which those of another type are added.
        rows: of each value; by default they are counted.
    """
    make = _tokens if own.kind.startswith("token") else _numbers
    within: list[Fault] = []
    column = make(values, own, within)
    for fault in within:
        row = fault.row if rows is None else int(rows[fault.row])
        faults.append(Fault(row, fault.column, fault.value, fault.why))
    return column


def _tokens(values: list[Any], own: Field, faults: list[Fault]) -> pa.Array:
    if (column := _of_one_kind(values, (pa.int64(), pa.string()), pa.string())) is not None:
        return column
    texts: list[str | None] = []
    for place, value in enumerate(values):
        text, why = _token(value)
        texts.append(text)
        if why:
            faults.append(Fault(place, own.name, value, why))
    return pa.array(texts, pa.string())


def _of_one_kind(
    values: list[Any], kinds: Collection[pa.DataType], of_none: pa.DataType
) -> pa.Array | None:
    """A column, where its values are all of one of some kinds, or none is there."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return None
    if pa.types.is_null(column.type):
        return column.cast(of_none)
    return column if column.type in kinds else None


def _token(value: Any) -> tuple[str | None, str]:
    """A token as text, or why it is none."""
    if value is None or type(value) is str:
        return value, ""
    if type(value) is bool:
        return str(value).lower(), ""
    if type(value) is int:
        return str(value), ""
    if type(value) is float:
        if abs(value) >= _EXACT:
            return None, "the number is too large to be exact: write it as a text"
        if value != int(value):
            return None, "a token isn't a fraction"
        return str(int(value)), ""
    return None, f"it is {_KINDS[type(value)]}"


def _numbers(values: list[Any], own: Field, faults: list[Fault]) -> pa.Array:
    column = _of_one_kind(values, (pa.float64(), pa.string()), pa.float64())
    if column is not None:
        return column
    if set(map(type, values)) <= {int, float, bool, type(None)}:
        return pa.array(np.array(values, np.float64), from_pandas=True)
    texts: list[str | None] = []
    for place, value in enumerate(values):
        if value is None or type(value) is str:
            texts.append(value)
        elif type(value) in (list, dict):
            texts.append(None)
            faults.append(Fault(place, own.name, value, f"it is {_KINDS[type(value)]}"))
        else:
            texts.append(repr(float(value)))
    return pa.array(texts, pa.string())


def _lists(values: list[Any], own: Field, faults: list[Fault]) -> pa.Array:
    for row, value in enumerate(values):
        if value is not None and type(value) is not list:
            faults.append(Fault(row, own.name, value, f"it is {_KINDS[type(value)]}, and no list"))
    lists = [value if type(value) is list else () for value in values]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    rows = np.repeat(np.arange(len(lists)), lengths)
    leaves = [value for one in lists for value in one]
    if not own.weighted:
        return list_array(_scalars(leaves, own, faults, rows), lengths)
    tokens, weights = [], []
    for value in leaves:
        pair = type(value) is list and len(value) == 2
        tokens.append(value[0] if pair else value)
        weights.append(value[1] if pair else None)
    for place, weight in enumerate(weights):
        why = _wrong_weight(weight)
        if why:
            faults.append(Fault(int(rows[place]), own.name, weight, why))
            weights[place] = None
    found = _scalars(tokens, own, faults, rows)
    of_found = pa.array(np.array(weights, np.float64), from_pandas=True)
    return list_array(pa.StructArray.from_arrays([found, of_found], ["id", "weight"]), lengths)


def _wrong_weight(weight: Any) -> str:
    """Why a value is no weight, or nothing."""
    if type(weight) not in (int, float, type(None)):
        return f"a weight is a number, and this is {_KINDS[type(weight)]}"
    if weight is not None and abs(weight) > LARGEST:
        return f"a weight must lie within ±{LARGEST:.3g}"
    return ""


def refusal(faults: Sequence[Fault], features: Sequence[Field]) -> Refused:
    """The answer to rows that can't be scored: the first fault in a sentence, and a list of them.

    Args:
        faults: at least one.
        features: what the model reads.
    """
    of_name = {own.name: own for own in features}
    faults = sorted(faults, key=lambda fault: fault.row)
    listed = [
        {
            "row": fault.row + 1,
            "field": fault.column[:_SHOWN],
            "value": _shown(fault.value),
            "problem": fault.why,
            "expected": wanted(of_name.get(fault.column), features),
        }
        for fault in faults[:LISTED]
    ]
    first = listed[0]
    field = f", field {first['field']!r}" if first["field"] else ""
    more = len(faults) - 1
    also = f" ({more:,} more faults)" if more else ""
    error = f"row {first['row']:,}{field}: {first['problem']}; give {first['expected']}{also}"
    return Refused(422, error, listed)


def wanted(own: Field | None, features: Sequence[Field]) -> str:
    """What a field takes, in words."""
    if own is None:
        return f"the fields {', '.join(field.name for field in features)}"
    pair = "; an element may be a list of a token and its weight" if own.weighted else ""
    return _WANTED[own.kind] + pair


def _shown(value: Any) -> Any:
    """A value as an answer repeats it: short, and nothing that is nested."""
    if isinstance(value, str):
        return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    if isinstance(value, list | dict):
        return _KINDS[type(value)]
    if value is None or isinstance(value, bool | int):
        return value
    is_number = isinstance(value, float) and math.isfinite(value)  # JSON has no others
    return value if is_number else str(value)[:_SHOWN]
