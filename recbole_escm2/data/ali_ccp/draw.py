"""Impressions and common features of a simulated world, drawn as arrays.

The same draws become a store (:class:`SimulatedPart`) or the text of the raw files
(:mod:`simulate`). The functions that fill arrays stop before a row that might not fit and say where
to go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

from recbole_escm2.data.ali_ccp import raw
from recbole_escm2.data.ali_ccp import world as sim
from recbole_escm2.data.ali_ccp.lines import UNWANTED, Lines, Part
from recbole_escm2.data.ali_ccp.world import Person, World
from recbole_escm2.errors import UsageError

if TYPE_CHECKING:
    from recbole_escm2.data.ali_ccp.simulate import Simulation

_SKELETON_FEATURES = 8 + 2 * sim.MOST_INTENTIONS  # the single ones; 210 and 853
_ROWS_AT_ONCE, _FEATURES_AT_ONCE = 1 << 13, 1 << 17
_SAMPLE_ROWS = 200_000  # impressions that the intercepts are solved on: 0.3 % of error in a rate
_NOTE = "Simulated, not Ali-CCP: numbers measured on these files say nothing about the real data."

_NUMBER = {field.name: n for n, field in enumerate(raw.FIELDS)}
_ITEM, _CATEGORY, _SHOP, _BRAND, _INTENTION, _POSITION, _BY_CATEGORY, _BY_SHOP, _BY_BRAND = (
    _NUMBER[name] for name in ("205", "206", "207", "216", "210", "301", "508", "509", "702")
)
_BY_INTENTION = _NUMBER["853"]
_PROFILE_NAMES = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
_PROFILE = np.array([_NUMBER[name] for name in _PROFILE_NAMES])
_HISTORY = np.array([_NUMBER[name] for name in ("109_14", "110_14", "127_14", "150_14")])

_SPREAD_IDS = 1_000_003  # a prime: consecutive numbers get ids that are far apart
#: Texts of values by count: the real data writes log(1 + count) to 5 decimals without trailing
#: zeros (0.69315, 2.3979), and 1.0 for a feature without a weight, number 0.
VALUES = (
    "1.0",
    *(f"{math.log1p(n):.5f}".rstrip("0") for n in range(1, sim.MAX_COUNT + 1)),
)


class Drawn(NamedTuple):
    """Impressions, or common features, of a split.

    Attributes:
        sample: int64 ``[rows]``. click, purchase: bool. All three are 0 for common features.
        key: bytes ``[rows]``, the join key.
        size: int64 ``[rows]``, how many features.
        field: int64 ``[features]``, the place in raw.FIELDS. id: int64. value: int64, the place in
            :data:`VALUES`.
        truth: float32 ``[rows, 3]``, raw.TRUTH_COLUMNS; of common features ``[0, 3]``.
    """

    sample: np.ndarray
    click: np.ndarray
    purchase: np.ndarray
    key: np.ndarray
    size: np.ndarray
    field: np.ndarray
    id: np.ndarray
    value: np.ndarray
    truth: np.ndarray


class Draws:
    """All that a simulation draws; the same for the same settings, whoever asks and when.

    Args:
        simulation: what to simulate.

    Attributes:
        splits: of each split the rows, clicks, conversions, conversions without click, potential
            conversions and common rows; filled while they are drawn.

    Raises:
        UsageError: ``conversions_without_click`` can't be had.
    """

    def __init__(self, simulation: Simulation) -> None:
        about = simulation.seed, *simulation.vocabulary(), simulation.behaviours
        self.world = sim.make_world(*map(int, about))
        sizes = zip(
            simulation.split_rows().values(), simulation.common_rows().values(), strict=True
        )
        self._first = [
            _first_rows(rows, sim.size_weights(self.world, number, commons))
            for number, (rows, commons) in enumerate(sizes)
        ]
        self.world = _solved(simulation, self.world, self._first)
        self._id_start, self._id_span = _id_ranges(self.world)
        self._settings = simulation.settings()
        self.splits: dict[str, dict[str, int]] = {}

    def rows(self, kind: str, split: str) -> int:
        """Impressions or common rows of a split."""
        first = self._first[raw.SPLITS.index(split)]
        return int(first[-1]) if kind == "skeleton" else len(first) - 1

    def about(self) -> dict[str, Any]:
        """What is to be known of it: ``note``, ``settings``, ``vocabulary`` and ``splits``."""
        names = ("users", "items", "categories", "shops", "brands", "intentions")
        return {
            "note": _NOTE,
            "settings": self._settings,
            "vocabulary": {name: int(getattr(self.world, name)) for name in names},
            "splits": self.splits,
        }

    def of(self, kind: str, split: str) -> Iterator[Drawn]:
        """All impressions or common rows of a split in their order, a bounded number at once."""
        return self._skeleton(split) if kind == "skeleton" else self._commons(split)

    def _commons(self, split: str) -> Iterator[Drawn]:
        count = self.rows("common", split)
        person = sim.make_person(self.world, raw.SPLITS.index(split))
        most = len(_PROFILE) + person.history.size
        # The order of the real file says nothing about that of the skeleton. Steps of about the
        # golden ratio of a circle meet every line once if step and circle have no common divisor.
        step = max(1, int(count * 0.618))
        while math.gcd(step, count) > 1:
            step += 1
        features = np.empty((max(_FEATURES_AT_ONCE, most), 3), np.int64)
        rows = np.empty((_ROWS_AT_ONCE, 2), np.int64)
        truth = np.empty((0, len(raw.TRUTH_COLUMNS)), np.float32)
        line = 0
        while line < count:
            lines = np.arange(line, min(line + len(rows), count))
            commons = (lines * step + count // 3) % count
            done, size = _draw_commons(self.world, person, commons, rows, features)
            yield self._drawn(np.zeros((3, done)), rows[:done], features[:size], truth)
            line += done

    def _skeleton(self, split: str) -> Iterator[Drawn]:
        number, first = raw.SPLITS.index(split), self._first[raw.SPLITS.index(split)]
        person = sim.make_person(self.world, number)
        features = np.empty((max(_FEATURES_AT_ONCE, _SKELETON_FEATURES), 3), np.int64)
        rows = np.empty((_ROWS_AT_ONCE, 4), np.int64)
        truth = np.empty((len(rows), len(raw.TRUTH_COLUMNS)), np.float32)
        counts = np.zeros(4, np.int64)
        row = 0
        while row < first[-1]:
            shown = np.arange(row, min(row + len(rows), first[-1]))
            commons = np.searchsorted(first, shown, side="right") - 1
            done, size = _draw_impressions(self.world, person, row, commons, rows, features, truth)
            click, purchase = rows[:done, 2] > 0, rows[:done, 3] > 0
            unclicked = purchase & ~click
            potential = truth[:done, 2].sum(dtype=np.int64)
            counts += click.sum(), (click & purchase).sum(), unclicked.sum(), potential
            heads = shown[:done] + 1, click, purchase
            yield self._drawn(heads, rows[:done, :2], features[:size], truth[:done].copy())
            row += done
        names = ("clicks", "conversions", "conversions_without_click", "potential_conversions")
        self.splits[split] = {
            "rows": row,
            **dict(zip(names, counts.tolist(), strict=True)),
            "common_rows": len(first) - 1,
        }

    def _drawn(
        self, heads: Iterable[np.ndarray], rows: np.ndarray, features: np.ndarray, truth: np.ndarray
    ) -> Drawn:
        common, count = rows.T.copy()
        field, number, value = features.T.copy()
        spread = number * _SPREAD_IDS % self._id_span[field]
        keys = _common_keys(self.world, common).astype(">u8").tobytes().hex().encode()
        sample, click, purchase = heads
        return Drawn(
            sample,
            click.astype(bool),
            purchase.astype(bool),
            np.frombuffer(keys, "S16"),
            count,
            field,
            self._id_start[field] + spread,
            value,
            truth,
        )


class SimulatedPart(Part):
    """The impressions or the common features of a split, as what a store is made of.

    Args:
        draws: of the simulation.
        split: train or test. kind: common or skeleton.
        wanted: names of the fields that have a target, in the order of the targets.
    """

    def __init__(self, draws: Draws, split: str, kind: str, wanted: Sequence[str]) -> None:
        super().__init__(split, kind, raw.NAMES[kind](split))
        self._draws = draws
        self._target = np.array(
            [wanted.index(f.name) if f.name in wanted else UNWANTED for f in raw.FIELDS]
        )
        self._weights = np.array([float(text) for text in VALUES], np.float32)

    def lines(self, advance: Callable[[int], Any]) -> Iterator[Lines]:
        for drawn in self._draws.of(self.kind, self.split):
            target = self._target[drawn.field]
            kept = target != UNWANTED
            rows = len(drawn.key)
            yield Lines(
                self.rows + np.arange(rows),
                drawn.sample.astype(np.uint64),
                drawn.click,
                drawn.purchase,
                drawn.key,
                np.repeat(np.arange(rows), drawn.size)[kept],
                target[kept],
                drawn.id[kept].astype(np.uint64),
                self._weights[drawn.value[kept]],
                drawn.truth if self.kind == "skeleton" else None,
            )
            self.rows += rows
            advance(rows)


def _first_rows(rows: int, weights: np.ndarray) -> np.ndarray:
    """First impression of each common row, then ``rows``: sizes ≥ 1, the rest by weight."""
    count = len(weights)
    edges = np.concatenate(([0.0], np.cumsum(weights)))
    shares = edges / edges[-1]  # the last one is exactly 1
    return (shares * (rows - count)).astype(np.int64) + np.arange(count + 1)


def _solved(simulation: Simulation, world: World, first: list[np.ndarray]) -> World:
    """The world with the coefficients of its logits, and how many conversions lack their click.

    Solved on all impressions, or on _SAMPLE_ROWS of them, evenly spaced.
    """
    sample = _sampled(world, first, sim.sample_latents)
    if simulation.interaction_share:
        factors = _sampled(world, first, sim.sample_factors)
        world = sim.interacting(world, sample, factors, simulation.interaction_share)
        sample = _sampled(world, first, sim.sample_latents)
    mix = sim.mixed(sample, simulation.click_rate, simulation.conversion_rate, simulation.selection)
    ctr, cvr = sim.truth(mix, *sample.T)
    unclicked = float(((1 - ctr) * cvr).mean())
    mistaken = simulation.conversions_without_click / unclicked
    if mistaken > 1:
        raise UsageError(
            f"conversions_without_click must be at most {unclicked:.3g}, the share of impressions"
            " that would convert but aren't clicked at these rates, got"
            f" {simulation.conversions_without_click:g}"
        )
    return world._replace(mix=mix, mistaken=mistaken)


def _sampled(world: World, first: list[np.ndarray], of_rows: Callable[..., Any]) -> np.ndarray:
    """What a function of a world, a person, rows and their common rows finds, ``[rows, ...]``."""
    total = sum(int(edges[-1]) for edges in first)
    size = min(total, _SAMPLE_ROWS)
    # not arange(size) * total // size, which overflows for very many rows
    sampled = np.arange(size) * (total // size) + np.arange(size) * (total % size) // size
    samples = []
    start = 0
    for number, edges in enumerate(first):
        rows = sampled[(sampled >= start) & (sampled < start + edges[-1])] - start
        commons = np.searchsorted(edges, rows, side="right") - 1
        person = sim.make_person(world, number)
        samples.append(of_rows(world, person, rows, commons))
        start += int(edges[-1])
    return np.concatenate(samples)


def _id_ranges(world: World) -> tuple[np.ndarray, np.ndarray]:
    """First and number of the ids of each field, by the place in raw.FIELDS; no two ranges meet.

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
    return start, span


@njit(cache=True)
def _common_keys(world: World, commons: np.ndarray) -> np.ndarray:
    keys = np.empty(len(commons), np.uint64)
    for n in range(len(commons)):
        keys[n] = sim.common_key(world, commons[n])
    return keys


@njit(cache=True, nogil=True)
def _draw_commons(
    world: World, person: Person, commons: np.ndarray, rows: np.ndarray, features: np.ndarray
) -> tuple[int, int]:
    """Fill arrays with common features.

    Args:
        commons: int64 ``[≤ rows]``, the common rows to draw.
        rows: int64 ``[rows, 2]``, common row and number of features, to be filled.
        features: int64 ``[features, 3]``, field, number and count, to be filled.

    Returns:
        How many rows and features there are now.
    """
    most = len(_PROFILE) + person.history.size
    done = size = 0
    while done < len(commons) and size + most <= len(features):
        common = commons[done]
        sim.meet(world, common, person)
        sim.remember(world, common, person)
        before = size
        for n in range(len(_PROFILE)):
            if person.levels[n] >= 0:
                features[size] = _PROFILE[n], person.levels[n], 0
                size += 1
        for field in range(4):
            for n in range(person.history_size[field]):
                features[size, 0] = _HISTORY[field]
                features[size, 1] = person.history[field, n]
                features[size, 2] = person.history_count[field, n]
                size += 1
        sim.forget(person)
        rows[done] = common, size - before
        done += 1
    return done, size


@njit(cache=True, nogil=True)
def _draw_impressions(
    world: World,
    person: Person,
    row: int,
    commons: np.ndarray,
    rows: np.ndarray,
    features: np.ndarray,
    truth: np.ndarray,
) -> tuple[int, int]:
    """Fill arrays with impressions.

    Args:
        row: number of the first impression in its split.
        commons: int64 ``[≤ rows]``, the common row of each impression.
        rows: int64 ``[rows, 4]``, common row, number of features, click and purchase, to be filled.
        features: int64 ``[features, 3]``, field, number and count, to be filled.
        truth: float32 ``[rows, 3]``, to be filled.

    Returns:
        How many rows and features there are now.
    """
    done = end = 0
    own = np.empty((_SKELETON_FEATURES, 3), dtype=np.int64)
    while done < len(commons) and end + _SKELETON_FEATURES <= len(features):
        common = commons[done]
        if done == 0 or common != commons[done - 1]:
            sim.forget(person)
            sim.meet(world, common, person)
            sim.remember(world, common, person)
        key = sim.impression_key(world, person.split, row + done)
        item, category, shop, brand, position = sim.show(world, person, common, key)
        click_latent, own_latent = sim.latents(world, person, item, category, shop, brand)
        effect = sim.POSITION_EFFECTS[position]
        ctr, cvr = sim.truth(world.mix, click_latent, own_latent, effect)
        click, purchase, potential = sim.outcomes(key, ctr, cvr, world.mistaken)
        truth[done, 0] = ctr
        truth[done, 1] = cvr
        truth[done, 2] = potential
        size = _describe(world, person, (item, category, shop, brand, position), own)
        rows[done, 0] = common
        rows[done, 1] = size
        rows[done, 2] = click
        rows[done, 3] = purchase
        # no field has a place of its own: begin anywhere in the circle
        turn = (row + done) % size
        for n in range(size):
            features[end + n] = own[(turn + n) % size]
        end += size
        done += 1
    sim.forget(person)
    return done, end


@njit(cache=True, nogil=True)
def _describe(
    world: World, person: Person, shown: tuple[int, int, int, int, int], own: np.ndarray
) -> int:
    """Fill in field, number and count of an impression's features and return how many.

    Args:
        shown: item, category, shop, brand and position.
        own: int64 ``[_SKELETON_FEATURES, 3]``, to be filled.
    """
    item, category, shop, brand, position = shown
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
            own[size] = field, number, count
            size += 1
    for n in range(sim.intentions_of(world, item, category, person.intentions)):
        intention = person.intentions[n]
        own[size] = _INTENTION, intention, 0
        size += 1
        by_intention = sim.count_behaviour(person, 3, intention)
        if by_intention:
            own[size] = _BY_INTENTION, intention, by_intention
            size += 1
    return size
