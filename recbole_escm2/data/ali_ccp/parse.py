"""Compiled kernels that read the raw text, and those that read what was made of it.

The text goes in as blocks of whole lines. What comes out are records of 32-bit words: a head, then
a word for each single-valued field (an id, 0 where the field is missing), then a word for each bag
(how many values it has); the values of the bags lie apart, row by row and within a row bag by bag.
Ids are provisional: numbered from 1 on as they are first seen, over all fields of a file together.
The columns and the bags of a file are its *targets*, numbered columns first.

Every kernel releases the lock of the interpreter, and none allocates: what it needs is in the
arrays that it is given. The hash tables are kept small while there is little in them, because they
are what the kernels wait for: a line that finds one full is given back, to be read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.raw import FIELDS

Array = NDArray[Any]

#: Digits of a sample id or a feature id that still fit, together with a field, into 64 bits.
MAX_DIGITS = 18
MAX_KEY_DIGITS = 32
#: Decimal exponent of the leading digit of a value that a float32 can't hold.
MAX_EXPONENT = 38
#: A field name is a 64-bit number; a longer one can't be any that we know.
MAX_NAME = 8
MAX_UNKNOWN = 100
MAX_PLACES = 5

#: What is wrong with a line, by number; the last is never shown: the line is read once more.
REASONS = (
    "",
    "{parts} comma-separated parts instead of {expected}",
    "sample_id is not a number of up to 18 digits",
    "click is not 0 or 1",
    "purchase is not 0 or 1",
    "common_feature_index is not a hex string of up to 32 digits",
    "feature_num is not a number",
    "feature_num is {stated}, but there are {found} features",
    "a feature is not FIELD\\x02ID\\x03VALUE",
    "a feature id is not a decimal integer of up to 18 digits",
    "a value is not a number",
    "a value is beyond ±1e38",
    "a purchase without a click",
    "no room in a hash table",
)
(
    _FINE,
    _PARTS,
    _SAMPLE,
    _CLICK,
    _PURCHASE,
    _KEY,
    _FEATURE_NUM,
    _FEATURE_COUNT,
    _SEPARATORS,
    _FEATURE_ID,
    _VALUE,
    _LARGE,
    PURCHASE_WITHOUT_CLICK,
    _FULL,
) = range(len(REASONS))

DROP, UNCONVERT, RAISE = range(3)
CONVERSION_WITHOUT_CLICK = {"drop": DROP, "unconvert": UNCONVERT, "raise": RAISE}

# Places in the state of a file.
LINES = 0  # of the text, blank ones too
ROWS = 1  # lines that are not blank
CLICKS = 2
CONVERSIONS = 3  # with a click
UNCLICKED = 4  # conversions without a click
LEFT_OUT = 5
DUPLICATES = 6  # common rows whose key was there before
MALFORMED = 7
STATE_SIZE = 8
# Places in the sizes of what a block has become.
VALUES = 2  # behind the rows of both parts
STATUSES = 4
SLOW = 5
PLACES = 6
SIZES = 7

#: Status of a line that is in no part.
NOWHERE = 255

_NEWLINE, _RETURN, _SPACE, _COMMA = 10, 13, 32, 44
_FEATURE_END, _NAME_END, _ID_END = 1, 2, 3  # raw.FEATURE_SEPARATOR and so on

_SALT = np.uint64(0xA11CC95EED2018)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFTS = tuple(np.uint64(n) for n in (30, 27, 31, 56, 4, 8, 32))
_S30, _S27, _S31, _S56, _S4, _S8, _S32 = _SHIFTS
_ONE = np.uint64(1)
_SIXTEEN = np.uint64(16)
_LOW_WORD = np.uint64(0xFFFFFFFF)
_DISPATCH = 512
_DISPATCH_MASK = np.uint64(_DISPATCH - 1)
_POWERS = 10.0 ** np.arange(23)  # exact as float64
_EXACT_MANTISSA = 1 << 53

_helper = njit(cache=True, nogil=True)
_kernel = njit(cache=True, nogil=True)


# --------------------------------------------------------------------------- arrays of the kernels


class Dispatch(NamedTuple):
    """From the name of a field to its target: an open-addressing table that also learns names.

    Attributes:
        names: uint64 ``[slots]``, the bytes of a name as a number; 0 where free.
        targets: int64 ``[slots]``; -1 for a field that is known but not wanted, -2 - n for the
            n-th unknown name.
        unknown: uint64 ``[MAX_UNKNOWN]``, unknown names in the order they were found.
        unknown_count: int64 ``[MAX_UNKNOWN + 1]``, features of each, the last for the rest.
        extra: int64 ``[targets]``, further values of single-valued fields.
        size: int64 ``[1]``, how many unknown names there are.
    """

    names: Array
    targets: Array
    unknown: Array
    unknown_count: Array
    extra: Array
    size: Array


class Scratch(NamedTuple):
    """The values of one row in their order in the text, and what is to be counted if it is fine.

    Attributes:
        bag: int32 ``[values]``. ids: int32. weights: float32, nan where it takes more than one
            rounding. starts: int64, where a value stands in the text. pending: int64, a target or
            -2 - n for an unknown name.
        fill: int64 ``[bags]``.
    """

    bag: Array
    ids: Array
    weights: Array
    starts: Array
    pending: Array
    fill: Array


class Output(NamedTuple):
    """What a block has become. Part 0 is training or test, part 1 is validation.

    Attributes:
        records: int32 ``[2, rows, words]``.
        ids: int32 ``[2, values]``. weights: float32 ``[2, values]``.
        status: uint8 ``[rows]``, the part of each line that is not blank, or ``NOWHERE``.
        slow: int64 ``[values, 3]``: part, place and text position of a weight left to Python.
        places: int64 ``[MAX_PLACES + 1, 6]``, the first malformed lines and behind them the latest:
            line number, start, end, reason and the two numbers that its message needs.
        sizes: int64 ``[SIZES]``.
    """

    records: Array
    ids: Array
    weights: Array
    status: Array
    slow: Array
    places: Array
    sizes: Array


def new_output(size: int, words: int) -> Output:
    """Arrays for blocks of up to ``size`` bytes and records of ``words``.

    The shortest row takes 5 bytes and the shortest feature 5 with its separator. Pages that are
    never touched cost nothing.
    """
    rows, values = size // 5 + 2, size // 5 + 2
    return Output(
        np.empty((2, rows, words), np.int32),
        np.empty((2, values), np.int32),
        np.empty((2, values), np.float32),
        np.empty(rows, np.uint8),
        np.empty((values, 3), np.int64),
        np.zeros((MAX_PLACES + 1, 6), np.int64),
        np.zeros(SIZES, np.int64),
    )


def new_scratch(size: int, bags: int) -> Scratch:
    """Arrays for a row of up to ``size`` bytes."""
    values = size // 5 + 2
    return Scratch(
        np.empty(values, np.int32),
        np.empty(values, np.int32),
        np.empty(values, np.float32),
        np.empty(values, np.int64),
        np.empty(values, np.int64),
        np.zeros(max(bags, 1), np.int64),
    )


def new_dispatch(wanted: Sequence[str], user: bool) -> Dispatch:
    """A table that sends the wanted fields of a file to their places in the sequence.

    Args:
        wanted: their names.
        user: whether the file holds user fields, or else item and cross fields.
    """
    dispatch = Dispatch(
        np.zeros(_DISPATCH, np.uint64),
        np.zeros(_DISPATCH, np.int64),
        np.zeros(MAX_UNKNOWN, np.uint64),
        np.zeros(MAX_UNKNOWN + 1, np.int64),
        np.zeros(max(len(wanted), 1), np.int64),
        np.zeros(1, np.int64),
    )
    for field in FIELDS:
        if (field.source == "user") == user:
            target = wanted.index(field.name) if field.name in wanted else -1
            _learn(dispatch.names, dispatch.targets, np.uint64(packed(field.name)), target)
    return dispatch


def packed(name: str) -> int:
    """The bytes of a name as a number."""
    return int.from_bytes(name.encode(), "big")


def unpacked(name: int) -> str:
    """The name that :func:`packed` took, made printable."""
    text = int(name).to_bytes(MAX_NAME, "big").lstrip(b"\0")
    return text.decode("ascii", "backslashreplace")


# --------------------------------------------------------------------------- hash tables


@_helper
def _mixed(number):  # type: ignore[no-untyped-def]
    """A bijection that spreads 64-bit numbers (the finaliser of splitmix64)."""
    number = (number ^ (number >> _S30)) * _MIX_1
    number = (number ^ (number >> _S27)) * _MIX_2
    return number ^ (number >> _S31)


@_helper
def splitmix64(number):  # type: ignore[no-untyped-def]
    """The hash of a sample id, uint64, that decides between training and validation."""
    return _mixed((number ^ _SALT) + _GOLDEN)


@_helper
def _is_full(slots, size):  # type: ignore[no-untyped-def]
    """Whether a table has no room for a further entry; one is left free in any case."""
    return size[0] * 5 >= slots.shape[0] * 3


@_helper
def _intern(slots, size, key):  # type: ignore[no-untyped-def]
    """The provisional id of a feature; a new one where it wasn't seen before."""
    mask = np.uint64(slots.shape[0] - 1)
    place = _mixed(key) & mask
    while True:
        found = slots[place, 1]
        if found == 0:
            size[0] += 1
            slots[place, 0] = key
            slots[place, 1] = np.uint64(size[0])
            return size[0]
        if slots[place, 0] == key:
            return np.int64(found)
        place = (place + _ONE) & mask


@_kernel
def _rehash(old, slots):  # type: ignore[no-untyped-def]
    mask = np.uint64(slots.shape[0] - 1)
    for n in range(old.shape[0]):
        if old[n, 1] != 0:
            place = _mixed(old[n, 0]) & mask
            while slots[place, 1] != 0:
                place = (place + _ONE) & mask
            slots[place, 0] = old[n, 0]
            slots[place, 1] = old[n, 1]


@_helper
def _find_key(slots, high, low, length):  # type: ignore[no-untyped-def]
    """Slot of a join key: where it is, or where it would go."""
    mask = np.uint64(slots.shape[0] - 1)
    place = _mixed(high ^ _mixed(low + length)) & mask
    while True:
        tag = slots[place, 2]
        if tag == 0:
            return place
        if slots[place, 0] == high and slots[place, 1] == low and (tag >> _S32) == length:
            return place
        place = (place + _ONE) & mask


@_kernel
def _rehash_keys(old, slots):  # type: ignore[no-untyped-def]
    for n in range(old.shape[0]):
        if old[n, 2] != 0:
            place = _find_key(slots, old[n, 0], old[n, 1], old[n, 2] >> _S32)
            slots[place] = old[n]


@_kernel
def join(left, right, rows):  # type: ignore[no-untyped-def]
    """For each key of ``left`` by its number, its number in ``right``, or 0; into ``rows``."""
    for n in range(left.shape[0]):
        if left[n, 2] != 0:
            place = _find_key(right, left[n, 0], left[n, 1], left[n, 2] >> _S32)
            rows[left[n, 2] & _LOW_WORD] = np.int64(right[place, 2] & _LOW_WORD)


class HashTable:
    """An open-addressing table that numbers what it is given from 1 on.

    Args:
        words: of a slot; 2 for features (field and id as one number, provisional id), 3 for join
            keys (upper and lower half, length and number).
        capacity: slots to begin with, a power of two.
    """

    def __init__(self, words: int, capacity: int = 1 << 10) -> None:
        self.slots: Array = np.zeros((capacity, words), np.uint64)
        self.size: Array = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self.size[0])

    def make_room(self) -> None:
        """Grow when the table is full, so that no more than 15 % of it is in use."""
        capacity = len(self.slots)
        if len(self) * 5 >= capacity * 3:
            slots = np.zeros((4 * capacity, self.slots.shape[1]), np.uint64)
            (_rehash if slots.shape[1] == 2 else _rehash_keys)(self.slots, slots)
            self.slots = slots

    def features(self) -> tuple[Array, Array]:
        """Target and feature id by provisional id, both int64 ``[size + 1]``; 0 is none."""
        used = self.slots[self.slots[:, 1] != 0]
        keys = np.zeros(len(self) + 1, np.uint64)
        keys[used[:, 1].astype(np.int64)] = used[:, 0]
        sixteen = np.uint64(16)
        return (keys % sixteen).astype(np.int64), (keys // sixteen).astype(np.int64)


# --------------------------------------------------------------------------- pieces of a line


@_helper
def _integer(text, at):  # type: ignore[no-untyped-def]
    """A decimal integer: its value, -1 where it is none or too long, and where it ends."""
    value = np.int64(0)
    start = at
    while True:
        digit = np.int64(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        value = value * 10 + digit  # may wrap around: then it is too long as well
        at += 1
    if at == start or at - start > MAX_DIGITS:
        value = np.int64(-1)
    return value, at


@_helper
def _key(text, at):  # type: ignore[no-untyped-def]
    """A hex string: upper and lower 64 bits, its length, 0 where it is none, and where it ends."""
    high, low = np.uint64(0), np.uint64(0)
    start = at
    while True:
        letter = np.int64(text[at])
        digit = letter - 48
        if digit < 0 or digit > 9:
            digit = (letter | 32) - 87  # either case
            if digit < 10 or digit > 15:
                break
        high = (high << _S4) | (low >> np.uint64(60))
        low = (low << _S4) | np.uint64(digit)
        at += 1
    length = at - start
    if length > MAX_KEY_DIGITS:
        length = 0
    return high, low, np.uint64(length), at


@_helper
def _number(text, at):  # type: ignore[no-untyped-def]
    """A value as the nearest float32 of the nearest float64.

    With a mantissa below 2^53 and a power of ten up to 22 both are exact and one operation rounds
    correctly. Anything else comes out as nan, for Python to read.

    Returns:
        The value, where it ends, and what is wrong with it.
    """
    if text[at] == 49 and text[at + 1] == 46 and text[at + 2] == 48 and text[at + 3] <= _RETURN:
        return np.float32(1.0), at + 3, _FINE  # "1.0", which most values are
    sign = 1.0
    if text[at] == 45 or text[at] == 43:
        if text[at] == 45:
            sign = -1.0
        at += 1
    mantissa = np.int64(0)
    significant = 0  # digits of the mantissa, also those that no longer fit
    exponent = np.int64(0)
    digits = 0
    while True:
        digit = np.int64(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        digits += 1
        if significant < MAX_DIGITS:
            mantissa = mantissa * 10 + digit
        if mantissa != 0:
            significant += 1
        at += 1
    if text[at] == 46:
        at += 1
        while True:
            digit = np.int64(text[at]) - 48
            if digit < 0 or digit > 9:
                break
            digits += 1
            exponent -= 1
            if significant < MAX_DIGITS:
                mantissa = mantissa * 10 + digit
            if mantissa != 0:
                significant += 1
            at += 1
    if digits == 0:
        return np.float32(0.0), at, _VALUE
    if text[at] == 101 or text[at] == 69:
        at += 1
        down = text[at] == 45
        if text[at] == 45 or text[at] == 43:
            at += 1
        stated = np.int64(0)
        start = at
        while True:
            digit = np.int64(text[at]) - 48
            if digit < 0 or digit > 9:
                break
            if stated < 1 << 40:
                stated = stated * 10 + digit
            at += 1
        if at == start:
            return np.float32(0.0), at, _VALUE
        exponent += -stated if down else stated
    if mantissa == 0:
        return np.float32(sign * 0.0), at, _FINE
    if significant - 1 + exponent >= MAX_EXPONENT:
        return np.float32(0.0), at, _LARGE
    if significant > MAX_DIGITS or mantissa > _EXACT_MANTISSA or exponent < -22 or exponent > 22:
        return np.float32(np.nan), at, _FINE
    if exponent < 0:
        return np.float32(sign * (np.float64(mantissa) / _POWERS[-exponent])), at, _FINE
    return np.float32(sign * (np.float64(mantissa) * _POWERS[exponent])), at, _FINE


@_helper
def _ends_line(text, at):  # type: ignore[no-untyped-def]
    return text[at] == _NEWLINE or (text[at] == _RETURN and text[at + 1] == _NEWLINE)


@_helper
def _learn(names, targets, name, target):  # type: ignore[no-untyped-def]
    """Slot of a name, which is entered with this target where it is new."""
    place = ((name * _GOLDEN) >> _S56) & _DISPATCH_MASK
    while names[place] != name:
        if names[place] == 0:
            names[place] = name
            targets[place] = target
            break
        place = (place + _ONE) & _DISPATCH_MASK
    return place


@_helper
def _target(dispatch, name, length):  # type: ignore[no-untyped-def]
    """Target of a field name; -2 - n for the n-th unknown one."""
    known = dispatch.size[0]
    if length > MAX_NAME:
        return np.int64(-2 - MAX_UNKNOWN)
    place = ((name * _GOLDEN) >> _S56) & _DISPATCH_MASK
    while dispatch.names[place] != name:
        if dispatch.names[place] == 0:
            if known == MAX_UNKNOWN:
                return np.int64(-2 - MAX_UNKNOWN)
            dispatch.names[place] = name
            dispatch.targets[place] = -2 - known
            dispatch.unknown[known] = name
            dispatch.size[0] = known + 1
            break
        place = (place + _ONE) & _DISPATCH_MASK
    return dispatch.targets[place]


@_helper
def _features(text, at, record, columns, dispatch, slots, size, scratch):  # type: ignore[no-untyped-def]
    """The feature list of a line: ids of columns and lengths of bags into ``record``.

    Args:
        text: uint8 ``[bytes]``, ending with a newline.
        at: where the list starts.
        record: int32 ``[targets]``, zeros.
        columns: how many targets are columns.

    Returns:
        What is wrong (0: nothing), where the list ends, the number of features, of values in the
        scratch, and of what is pending there.
    """
    number = values = pending = 0
    if _ends_line(text, at):
        return _FINE, at, number, values, pending
    last_name = np.uint64(0)
    target = np.int64(-1)
    while True:
        name = np.uint64(0)
        start = at
        while text[at] != _NAME_END:
            letter = text[at]
            if letter <= _SPACE or letter == _COMMA:
                return _SEPARATORS, at, number, values, pending
            name = (name << _S8) | np.uint64(letter)
            at += 1
        length = at - start
        if length == 0:
            return _SEPARATORS, at, number, values, pending
        if name != last_name or length > MAX_NAME:
            target = _target(dispatch, name, length)
            last_name = name if length <= MAX_NAME else np.uint64(0)
        feature, at = _integer(text, at + 1)
        if text[at] != _ID_END:
            if text[at] == _FEATURE_END or _ends_line(text, at):
                return _SEPARATORS, at, number, values, pending
            return _FEATURE_ID, at, number, values, pending
        if feature < 0:
            return _FEATURE_ID, at, number, values, pending
        at += 1
        start = at
        value, at, wrong = _number(text, at)
        if wrong != _FINE:
            return wrong, at, number, values, pending
        number += 1
        if target >= columns or (target >= 0 and record[target] == 0):
            if _is_full(slots, size):
                return _FULL, at, number, values, pending
            key = np.uint64(feature) * _SIXTEEN + np.uint64(target)
            provisional = _intern(slots, size, key)
            if target >= columns:
                scratch.bag[values] = target - columns
                scratch.ids[values] = provisional
                scratch.weights[values] = value
                scratch.starts[values] = start
                values += 1
                record[target] += 1
            else:
                record[target] = provisional
        elif target != -1:
            scratch.pending[pending] = target
            pending += 1
        if text[at] != _FEATURE_END:
            break
        at += 1
    if not _ends_line(text, at):
        return _VALUE, at, number, values, pending
    return _FINE, at, number, values, pending


@_helper
def _keep(record, columns, dispatch, scratch, values, pending, output, part):  # type: ignore[no-untyped-def]
    """Put the values of a row that is fine behind those of its part, bag by bag."""
    first = output.sizes[VALUES + part]
    place = first
    for bag in range(record.shape[0] - columns):
        scratch.fill[bag] = place
        place += record[columns + bag]
    for n in range(values):
        bag = scratch.bag[n]
        place = scratch.fill[bag]
        scratch.fill[bag] = place + 1
        output.ids[part, place] = scratch.ids[n]
        weight = scratch.weights[n]
        output.weights[part, place] = weight
        if np.isnan(weight):
            slow = output.sizes[SLOW]
            output.slow[slow, 0] = part
            output.slow[slow, 1] = place
            output.slow[slow, 2] = scratch.starts[n]
            output.sizes[SLOW] = slow + 1
    output.sizes[VALUES + part] = first + values
    output.sizes[part] += 1
    for n in range(pending):
        target = scratch.pending[n]
        if target >= 0:
            dispatch.extra[target] += 1
        else:
            dispatch.unknown_count[-2 - target] += 1


@_helper
def _reject(text, start, at, reason, expected, stated, found, state, output):  # type: ignore[no-untyped-def]
    """Note a malformed line; returns where it ends."""
    commas = 0
    for n in range(start, at):
        commas += text[n] == _COMMA
    while text[at] != _NEWLINE:
        commas += text[at] == _COMMA
        at += 1
    if commas + 1 != expected and reason != PURCHASE_WITHOUT_CLICK:  # it explains the rest
        reason, stated, found = _PARTS, commas + 1, expected
    place = output.places[min(output.sizes[PLACES], MAX_PLACES)]
    place[0] = state[LINES]
    place[1] = start
    place[2] = at
    place[3] = reason
    place[4] = stated
    place[5] = found
    output.sizes[PLACES] += 1
    state[MALFORMED] += 1
    return at


# --------------------------------------------------------------------------- blocks of text


@_kernel
def parse_common(  # type: ignore[no-untyped-def]
    text, at, stop, columns, dispatch, slots, size, keys, rows, state, scratch, output
):
    """Read a block of common features, until its end or until a hash table is full.

    Args:
        text: uint8 ``[bytes]``, whole lines.
        at: where to begin; 0, or what the last call returned.
        stop: whether to return at the first malformed line.
        columns: how many targets are columns.
        dispatch: :class:`Dispatch` of the wanted fields.
        slots: of the table of features. size: its size.
        keys: slots of the table of join keys. rows: its size, the common rows.
        state: int64 ``[STATE_SIZE]``, counted on.
        scratch: :class:`Scratch`.
        output: :class:`Output`, to which the rows are added.

    Returns:
        Where it stopped: the end of the text unless a table has to grow before the rest.
    """
    while at < text.shape[0]:
        start = at
        state[LINES] += 1
        if _ends_line(text, at):
            at += 1 if text[at] == _NEWLINE else 2
            continue
        state[ROWS] += 1
        record = output.records[0, output.sizes[0]]
        record[:] = 0
        wrong = _FINE
        stated = np.int64(0)
        number = values = pending = 0
        high, low, length, at = _key(text, at)
        if length == 0 or text[at] != _COMMA:
            wrong = _KEY
        if wrong == _FINE:
            stated, at = _integer(text, at + 1)
            if stated < 0 or text[at] != _COMMA:
                wrong = _FEATURE_NUM
        if wrong == _FINE:
            wrong, at, number, values, pending = _features(
                text, at + 1, record, columns, dispatch, slots, size, scratch
            )
            if wrong == _FINE and number != stated:
                wrong = _FEATURE_COUNT
        if wrong == _FULL or _is_full(keys, rows):
            state[LINES] -= 1
            state[ROWS] -= 1
            return start
        if wrong != _FINE:
            at = _reject(text, start, at, wrong, 3, stated, number, state, output) + 1
            if stop:
                break
            continue
        at += 1 if text[at] == _NEWLINE else 2
        place = _find_key(keys, high, low, length)
        if keys[place, 2] != 0:
            state[DUPLICATES] += 1
            continue
        rows[0] += 1
        keys[place, 0] = high
        keys[place, 1] = low
        keys[place, 2] = (length << _S32) | np.uint64(rows[0])
        _keep(record, columns, dispatch, scratch, values, pending, output, 0)
    return text.shape[0]


@_helper
def _label(text, at):  # type: ignore[no-untyped-def]
    """A label between commas: 0 or 1, or -1 where it is neither, and where it ends."""
    value = np.int64(text[at]) - 48
    if value != 0 and value != 1:
        return np.int64(-1), at
    if text[at + 1] != _COMMA:
        return np.int64(-1), at + 1
    return value, at + 1


@_helper
def _labels(text, at):  # type: ignore[no-untyped-def]
    """Sample id, click, purchase: what is wrong, where they end, and the three."""
    click = purchase = np.int64(0)
    sample, at = _integer(text, at)
    if sample < 0 or text[at] != _COMMA:
        return _SAMPLE, at, sample, click, purchase
    click, at = _label(text, at + 1)
    if click < 0:
        return _CLICK, at, sample, click, purchase
    purchase, at = _label(text, at + 1)
    if purchase < 0:
        return _PURCHASE, at, sample, click, purchase
    return _FINE, at + 1, sample, click, purchase


@_kernel
def parse_skeleton(  # type: ignore[no-untyped-def]
    text,
    at,
    stop,
    unclicked,
    threshold,
    columns,
    dispatch,
    slots,
    size,
    keys,
    known_keys,
    state,
    scratch,
    output,
):
    """Read a block of impressions; the head of a record is the number of the join key, and the
    click in bit 0 and the purchase in bit 1.

    Args:
        text, at, columns, dispatch, slots, size, state, scratch, output: of :func:`parse_common`.
        stop: whether to return at the first malformed line.
        unclicked: ``DROP``, ``UNCONVERT`` or ``RAISE`` for a purchase without a click; the last
            one returns at it, as a malformed line.
        threshold: uint64; below it the hash of a sample id means validation.
        keys: slots of the table of join keys. known_keys: its size.

    Returns:
        As :func:`parse_common`.
    """
    while at < text.shape[0]:
        start = at
        state[LINES] += 1
        if _ends_line(text, at):
            at += 1 if text[at] == _NEWLINE else 2
            continue
        state[ROWS] += 1
        line = output.sizes[STATUSES]
        output.sizes[STATUSES] = line + 1
        output.status[line] = NOWHERE
        stated = np.int64(0)
        number = values = pending = part = 0
        high = low = length = np.uint64(0)
        wrong, at, sample, click, purchase = _labels(text, at)
        if wrong == _FINE:
            high, low, length, at = _key(text, at)
            if length == 0 or text[at] != _COMMA:
                wrong = _KEY
        if wrong == _FINE:
            stated, at = _integer(text, at + 1)
            if stated < 0 or text[at] != _COMMA:
                wrong = _FEATURE_NUM
        if wrong == _FINE:
            if splitmix64(np.uint64(sample)) < threshold:
                part = 1
            row = output.records[part, output.sizes[part]]
            row[:] = 0
            wrong, at, number, values, pending = _features(
                text, at + 1, row[2:], columns, dispatch, slots, size, scratch
            )
            if wrong == _FINE and number != stated:
                wrong = _FEATURE_COUNT
        if wrong == _FULL or _is_full(keys, known_keys):
            state[LINES] -= 1
            state[ROWS] -= 1
            output.sizes[STATUSES] = line
            return start
        raised = wrong == _FINE and unclicked == RAISE and purchase > click
        if raised:
            wrong = PURCHASE_WITHOUT_CLICK
        if wrong != _FINE:
            at = _reject(text, start, at, wrong, 6, stated, number, state, output) + 1
            if stop or raised:
                break
            continue
        at += 1 if text[at] == _NEWLINE else 2
        state[CLICKS] += click
        state[CONVERSIONS] += click & purchase
        if purchase > click:
            state[UNCLICKED] += 1
            if unclicked == DROP:
                state[LEFT_OUT] += 1
                continue
            purchase = np.int64(0)
        place = _find_key(keys, high, low, length)
        if keys[place, 2] == 0:
            known_keys[0] += 1
            keys[place, 0] = high
            keys[place, 1] = low
            keys[place, 2] = (length << _S32) | np.uint64(known_keys[0])
        row = output.records[part, output.sizes[part]]
        row[0] = np.int32(keys[place, 2] & _LOW_WORD)
        row[1] = click | purchase << 1
        output.status[line] = part
        _keep(row[2:], columns, dispatch, scratch, values, pending, output, part)
    return text.shape[0]


# --------------------------------------------------------------------------- records

#: Places in what is counted of a feature: impressions of the training part that have it, its values
#: in each part, and the last row that had it.
IMPRESSIONS, TRAIN, VALIDATION, TEST, LAST_ROW = range(5)


@_kernel
def tally(records, part, references):  # type: ignore[no-untyped-def]
    """Count the impressions of a part by join key, into int64 ``[keys, 3]``."""
    for n in range(records.shape[0]):
        references[records[n, 0], part] += 1


@_kernel
def count(records, head, columns, ids, references, step, first, seen, present, longest):  # type: ignore[no-untyped-def]
    """Count in how many impressions features occur.

    Args:
        records: int32 ``[rows, words]``. head: words in front. columns: number of columns.
        ids: int32 ``[values]`` of the bags.
        references: int64 ``[rows or 1, 3]``, impressions of train, validation and test that have a
            row; ``step`` is 1, or 0 where its first row stands for all.
        first: number of the first row, from 1 on and never the same in two calls.
        seen: int64 ``[provisional ids, 5]``, counted on.
        present: int64 ``[targets, 3]``, impressions that have the field at all, counted on.
        longest: int64 ``[targets]``, the largest number of values of a row.
    """
    value = 0
    bags = records.shape[1] - head - columns
    for n in range(records.shape[0]):
        train = references[n * step, 0]
        validation = references[n * step, 1]
        test = references[n * step, 2]
        for column in range(columns):
            feature = records[n, head + column]
            if feature != 0:
                longest[column] = 1
                present[column, 0] += train
                present[column, 1] += validation
                present[column, 2] += test
                seen[feature, IMPRESSIONS] += train
                seen[feature, TRAIN] += train
                seen[feature, VALIDATION] += validation
                seen[feature, TEST] += test
        for bag in range(columns, columns + bags):
            length = records[n, head + bag]
            if length == 0:
                continue
            if length > longest[bag]:
                longest[bag] = length
            present[bag, 0] += train
            present[bag, 1] += validation
            present[bag, 2] += test
            for place in range(value, value + length):
                feature = ids[place]
                if seen[feature, LAST_ROW] != first + n:
                    seen[feature, LAST_ROW] = first + n
                    seen[feature, IMPRESSIONS] += train
                seen[feature, TRAIN] += train
                seen[feature, VALIDATION] += validation
                seen[feature, TEST] += test
            value += length


@_kernel
def translate(records, head, columns, ids, weights, references, step, lookup, sums):  # type: ignore[no-untyped-def]
    """Replace provisional ids by those of the vocabularies, in place, and sum up weights.

    Args:
        records, head, columns, ids, references, step: as in :func:`count`.
        weights: float32 ``[values]``.
        lookup: int32 ``[provisional ids]``.
        sums: float64 ``[targets]``, of the weights in training impressions, summed on.
    """
    value = 0
    for n in range(records.shape[0]):
        train = references[n * step, 0]
        for column in range(head, head + columns):
            records[n, column] = lookup[records[n, column]]
        for bag in range(columns, records.shape[1] - head):
            length = records[n, head + bag]
            for place in range(value, value + length):
                ids[place] = lookup[ids[place]]
                sums[bag] += train * np.float64(weights[place])
            value += length


@_kernel
def look_up(ids, lookup):  # type: ignore[no-untyped-def]
    """``lookup[ids]`` of int32 ``[rows]``, in place."""
    for n in range(ids.shape[0]):
        ids[n] = lookup[ids[n]]
