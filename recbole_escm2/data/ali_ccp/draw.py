"""Simulated impressions and common features as the bytes of the raw files.

The functions that fill a buffer stop before a line that might not fit and say where to go on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from recbole_escm2.data.ali_ccp import raw
from recbole_escm2.data.ali_ccp import world as sim
from recbole_escm2.data.ali_ccp.world import Person, World

# A feature is at most field (6), \x02, id (8), \x03, value (7), separator.
_FEATURE_BYTES = 24
# Numbers before a feature list: 20 digits of sample_id, two labels, the key, feature_num.
_HEAD_BYTES = 64
_SKELETON_FEATURES = 8 + 2 * sim.MOST_INTENTIONS  # the single ones; 210 and 853

_NUMBER = {field.name: n for n, field in enumerate(raw.FIELDS)}
_ITEM, _CATEGORY, _SHOP, _BRAND, _INTENTION, _POSITION, _BY_CATEGORY, _BY_SHOP, _BY_BRAND = (
    _NUMBER[name] for name in ("205", "206", "207", "216", "210", "301", "508", "509", "702")
)
_BY_INTENTION = _NUMBER["853"]
_PROFILE_NAMES = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
_PROFILE = np.array([_NUMBER[name] for name in _PROFILE_NAMES])
_HISTORY = np.array([_NUMBER[name] for name in ("109_14", "110_14", "127_14", "150_14")])

_ZERO, _COMMA, _NEWLINE = ord("0"), ord(","), ord("\n")
_FEATURE_END = raw.FEATURE_SEPARATOR[0]
_FIELD_END = raw.ID_SEPARATOR[0]
_ID_END = raw.VALUE_SEPARATOR[0]
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_SPREAD_IDS = 1_000_003  # a prime: consecutive numbers get ids that are far apart


class Text(NamedTuple):
    """How numbers are written.

    Attributes:
        id_start, id_span: ``[fields]``, by the place in raw.FIELDS: ids of a field are in
            ``id_start ... id_start + id_span − 1``, and no two fields' ranges meet.
        name, name_length: uint8 ``[fields, 8]`` and ``[fields]``: field names.
        value, value_length: uint8 ``[1 + MAX_COUNT, 8]`` and their lengths: values by count;
            number 0 is the value 1.0 of a feature without weight.
    """

    id_start: np.ndarray
    id_span: np.ndarray
    name: np.ndarray
    name_length: np.ndarray
    value: np.ndarray
    value_length: np.ndarray


def make_text(world: World) -> Text:
    """Texts for a world.

    Ids are spread over 7 digits as in the real data, or over 8 if they don't fit.
    """
    size = {
        **{"101": world.users, "205": world.items, "301": len(sim.POSITION_SHARES)},
        **dict(zip(_PROFILE_NAMES[1:], sim.LEVELS, strict=True)),
        **dict.fromkeys(("109_14", "206", "508"), world.categories),
        **dict.fromkeys(("110_14", "207", "509"), world.shops),
        **dict.fromkeys(("127_14", "216", "702"), world.brands),
        **dict.fromkeys(("150_14", "210", "853"), world.intentions),
    }
    # some ids of a range are never used; the prime must not divide the span
    span = np.array([size[field.name] + size[field.name] // 4 for field in raw.FIELDS])
    span += span % _SPREAD_IDS == 0
    room = 9_900_000 if span.sum() < 9_000_000 else 10**8
    gap = (room - int(span.sum())) // len(span)
    start = np.concatenate(([0], np.cumsum(span + gap)[:-1])) + gap
    names = [field.name.encode() for field in raw.FIELDS]
    # the real data writes log(1 + count) to 5 decimals without trailing zeros: 0.69315, 2.3979
    values = [b"1.0"]
    values += [f"{math.log1p(n):.5f}".rstrip("0").encode() for n in range(1, sim.MAX_COUNT + 1)]
    return Text(start, span, *_padded(names), *_padded(values))


def _padded(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(b"".join(t.ljust(8, b" ") for t in texts), dtype=np.uint8)
    return rows.reshape(-1, 8).copy(), np.array([len(t) for t in texts])


def skeleton_line_bytes() -> int:
    """Room that any line of a skeleton fits in."""
    return _HEAD_BYTES + _SKELETON_FEATURES * _FEATURE_BYTES


def common_line_bytes(person: Person) -> int:
    """Room that any line of common features fits in."""
    return _HEAD_BYTES + (len(_PROFILE) + person.history.size) * _FEATURE_BYTES


@njit(cache=True)
def _put_number(buffer: np.ndarray, at: int, number: int) -> int:
    digits = 1
    rest = number // 10
    while rest:
        rest //= 10
        digits += 1
    for n in range(at + digits - 1, at - 1, -1):
        buffer[n] = _ZERO + number % 10
        number //= 10
    return at + digits


@njit(cache=True)
def _put_key(buffer: np.ndarray, at: int, key: np.uint64) -> int:
    for n in range(16):
        buffer[at + n] = _HEX[(key >> np.uint64(60 - 4 * n)) & np.uint64(15)]
    return at + 16


@njit(cache=True)
def _put_feature(
    text: Text, buffer: np.ndarray, at: int, field: int, number: int, count: int
) -> int:
    """Write a feature and the separator after it."""
    for n in range(text.name_length[field]):
        buffer[at + n] = text.name[field, n]
    at += text.name_length[field]
    buffer[at] = _FIELD_END
    spread = number * _SPREAD_IDS % text.id_span[field]
    at = _put_number(buffer, at + 1, text.id_start[field] + spread)
    buffer[at] = _ID_END
    at += 1
    for n in range(text.value_length[count]):
        buffer[at + n] = text.value[count, n]
    at += text.value_length[count]
    buffer[at] = _FEATURE_END
    return at + 1


@njit(cache=True)
def write_commons(
    world: World,
    person: Person,
    text: Text,
    split: int,
    behaviours: int,
    order: tuple[int, int, int],
    line: int,
    buffer: np.ndarray,
    line_bytes: int,
) -> tuple[int, int]:
    """Fill the buffer with lines of common features.

    Args:
        order: (count, step, shift): line n holds the common row (n · step + shift) mod count.
        line: number of the line to begin with.
        buffer: uint8, to be filled.
        line_bytes: from :func:`common_line_bytes`.

    Returns:
        Bytes written, and the number of the line to go on with.
    """
    at = 0
    count, step, shift = order
    found = np.empty(sim.MOST_INTENTIONS, dtype=np.int64)
    while line < count and at + line_bytes <= len(buffer):
        common = (line * step + shift) % count
        sim.meet(world, common, person)
        sim.remember(world, split, common, behaviours, person, found)
        features = person.history_size.sum()
        for n in range(len(_PROFILE)):
            features += person.levels[n] >= 0
        at = _put_key(buffer, at, sim.common_key(world, common))
        buffer[at] = _COMMA
        at = _put_number(buffer, at + 1, features)
        buffer[at] = _COMMA
        at += 1
        for n in range(len(_PROFILE)):
            if person.levels[n] >= 0:
                at = _put_feature(text, buffer, at, _PROFILE[n], person.levels[n], 0)
        for field in range(4):
            for n in range(person.history_size[field]):
                at = _put_feature(
                    text,
                    buffer,
                    at,
                    _HISTORY[field],
                    person.history[field, n],
                    person.history_count[field, n],
                )
        sim.forget(person)
        buffer[at - 1] = _NEWLINE
        line += 1
    return at, line


@njit(cache=True)
def write_skeleton(
    world: World,
    person: Person,
    text: Text,
    split: int,
    behaviours: int,
    mix: np.ndarray,
    mistaken: float,
    first: np.ndarray,
    row: int,
    buffer: np.ndarray,
    line_bytes: int,
    truth: np.ndarray,
    counts: np.ndarray,
) -> tuple[int, int]:
    """Fill the buffer with impressions.

    Args:
        mix: coefficients from ``world.mixed``.
        mistaken: share of the potential conversions without click that are written as purchases.
        first: int64 ``[common rows + 1]``: first impression of each common row, then their number.
        row: number of the impression to begin with.
        buffer: uint8, to be filled.
        line_bytes: from :func:`skeleton_line_bytes`.
        truth: float32 ``[rows of the buffer, 3]``, to be filled from its start.
        counts: int64 ``[4]``: clicks, conversions, purchases without click and potential
            conversions are added to it.

    Returns:
        Bytes written, and the number of the impression to go on with.
    """
    at = 0
    begun = row
    common = int(np.searchsorted(first, row, side="right")) - 1
    found = np.empty(sim.MOST_INTENTIONS, dtype=np.int64)
    features = np.empty((_SKELETON_FEATURES, 3), dtype=np.int64)
    loaded = False
    while row < first[-1] and row - begun < len(truth) and at + line_bytes <= len(buffer):
        if row == first[common + 1] or not loaded:
            common += row == first[common + 1]
            sim.forget(person)
            sim.meet(world, common, person)
            sim.remember(world, split, common, behaviours, person, found)
            loaded = True
        key = sim.impression_key(world, split, row)
        item, category, shop, brand, position = sim.show(world, person, split, common, key)
        click_latent, own_latent = sim.latents(world, person, item, category, shop, brand)
        ctr, cvr = sim.truth(mix, click_latent, own_latent, sim.POSITION_EFFECTS[position])
        click, purchase, potential = sim.outcomes(key, ctr, cvr, mistaken)
        truth[row - begun, 0] = ctr
        truth[row - begun, 1] = cvr
        truth[row - begun, 2] = potential
        counts[0] += click
        counts[1] += click and purchase
        counts[2] += purchase and not click
        counts[3] += potential

        by_category = sim.count_behaviour(person, 0, category)
        by_shop = sim.count_behaviour(person, 1, shop)
        by_brand = sim.count_behaviour(person, 2, brand)
        size = 0
        for field, number, count in (
            (_POSITION, position, 0),
            (_ITEM, item, 0),
            (_CATEGORY, category, 0),
            (_SHOP, shop, 0),
            (_BRAND, brand, 0),
            (_BY_CATEGORY, category if by_category else -1, by_category),
            (_BY_SHOP, shop if by_shop else -1, by_shop),
            (_BY_BRAND, brand if by_brand else -1, by_brand),
        ):
            if number >= 0:
                features[size] = field, number, count
                size += 1
        for n in range(sim.intentions_of(world, item, category, found)):
            features[size] = _INTENTION, found[n], 0
            size += 1
            by_intention = sim.count_behaviour(person, 3, found[n])
            if by_intention:
                features[size] = _BY_INTENTION, found[n], by_intention
                size += 1

        at = _put_number(buffer, at, row + 1)
        buffer[at] = _COMMA
        buffer[at + 1] = _ZERO + click
        buffer[at + 2] = _COMMA
        buffer[at + 3] = _ZERO + purchase
        buffer[at + 4] = _COMMA
        at = _put_key(buffer, at + 5, sim.common_key(world, common))
        buffer[at] = _COMMA
        at = _put_number(buffer, at + 1, size)
        buffer[at] = _COMMA
        at += 1
        # no field has a place of its own: begin anywhere in the circle
        turn = row % size
        for n in range(size):
            field, number, count = features[(turn + n) % size]
            at = _put_feature(text, buffer, at, field, number, count)
        buffer[at - 1] = _NEWLINE
        row += 1
    sim.forget(person)
    return at, row
