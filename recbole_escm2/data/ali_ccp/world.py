"""The simulated world: who is shown what, and the true click and conversion probability.

Nothing of it is stored. Every draw is a hash of (seed, what it is for, its number), so that a user,
an item or an impression can be had at any time, in any order, and always comes out the same. All
vocabularies are numbered from 0; :mod:`draw` turns the numbers into the ids of the files.

An impression has two latent scores that are sums of effects of its features (normal by hash):
``click`` and ``own``, both with the same parts in other draws. :func:`mixed` makes them the logits:

    click logit      = a + SPREAD · (√(1 − POSITION) · click' + √POSITION · position')
    conversion logit = b + SPREAD · (selection · click' + √(1 − selection²) · own')

with a prime for "mean 0 and variance 1 over the impressions", and own' uncorrelated to click'.
Effects belong to what the files show: where a field is missing, "missing" has an effect. So click
and conversion are independent given the features.

Sums of effects are what a linear model can learn, tastes for topics aside. With an
``interaction_share`` s each latent becomes √(1 − s) times that sum plus √s, on its scale, times

    1/√FACTORS · Σ_f (u_f − mean)·(v_f − mean)

with normal factors u of the user (of the group 121 and one's own) and v of the item (of the
category and its own): less the means over the impressions, so that of each user and item by itself
little is left.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

#: Standard deviation of either logit over the impressions.
SPREAD = 1.2
#: Share of the click logit's variance that the position 301 makes.
POSITION = 0.1
#: What users like and items are about; a category has one topic.
TOPICS = 12
#: Factors of the interaction of a user and an item.
FACTORS = 4
#: Levels of the user fields 121, 122, 124 ... 129, as many as the real data has.
LEVELS = (98, 14, 3, 8, 4, 4, 3, 5)
#: How often a position of 301 occurs, and its effect on the click latent.
POSITION_SHARES = (0.4, 0.3, 0.2, 0.1)
POSITION_EFFECTS = (0.9, 0.2, -0.5, -1.4)
#: An item serves 0 to so many intentions.
MOST_INTENTIONS = 9
#: Largest count behind a weighted value, log(1 + count).
MAX_COUNT = 4095

# Shares of a latent's variance before it is scaled; LEVELS share theirs as listed.
_LEVEL_SHARES = np.sqrt(np.array([0.08, *(7 * [0.02])]))
_USER = math.sqrt(0.08)
_CATEGORY = math.sqrt(0.15)
_ITEM = math.sqrt(0.10)
_SHOP = math.sqrt(0.07)
_BRAND = math.sqrt(0.06)
_TASTE = math.sqrt(0.22)
# Taste is that of the user group 121 and, for the rest, one's own; so are the factors, and those of
# an item are its category's and its own.
_GROUP_TASTE, _OWN_TASTE = math.sqrt(0.6), math.sqrt(0.4)

# How often topics come from the user's interests and not from what is popular with everybody.
_EXPOSURE_BY_INTEREST, _BEHAVIOUR_BY_INTEREST = 0.6, 0.85
# How often an impression shows again what one of so many behaviours was about; with it, an
# impression has about as many features as in the real data.
_AGAIN, _AGAIN_OF = 0.6, 25
_ANONYMOUS = 0.03  # common rows without 101
_MISSING_LEVEL = 0.02  # a user field, 121 aside
_NO_BRAND = 0.06  # items without 216

# What a hash is for. Effects come in pairs: the latent ``click``, then ``own``.
_USER_OF, _LEVEL_OF, _SHOWN, _PAST, _SIZE, _IMPRESSION, _KEY, _ACTIVITY = range(8)
_SHOP_OF, _BRAND_OF, _INTENTION_OF, _VALUE_OF = range(8, 12)
_USER_EFFECT, _LEVEL_EFFECT, _GROUP_LIKES, _USER_LIKES = 20, 30, 50, 52
_CATEGORY_EFFECT, _ITEM_EFFECT, _SHOP_EFFECT, _BRAND_EFFECT = 54, 56, 58, 60
_GROUP_FACTOR, _USER_FACTOR, _CATEGORY_FACTOR, _ITEM_FACTOR = 62, 64, 66, 68

#: The four fields of behaviours: their share of the behaviours of a common row.
HISTORY_SHARES = np.array([0.2, 0.3, 0.2, 0.3])
_MOST_ACTIVE = 6.0  # the largest history over the mean one

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S24, _S27, _S30, _S31, _S40 = (np.uint64(n) for n in (11, 24, 27, 30, 31, 40))
_LOW_40 = np.uint64(2**40 - 1)


class World(NamedTuple):
    """What every draw needs.

    Attributes:
        key: hash of the seed.
        users, items, shops, brands, intentions, categories: sizes of the vocabularies.
        category_start: ``[categories + 1]``; items of a category are numbered in one piece.
        popular: ``[TOPICS]`` cumulative shares of the topics with everybody.
        behaviours: of a person, in the mean.
        mix: ``[6]``, coefficients of the logits, see :func:`mixed`; zeros until they are solved.
        mistaken: share of the potential conversions without click that are recorded as purchases.
        interaction: ``[2, 2]``, by latent the factors of its sum of effects and of its interaction,
            see :func:`interacting`; (1, 0) where there is none.
        factor_means: ``[2, 2, FACTORS]``, by latent, of users and of items.
    """

    key: np.uint64
    users: int
    items: int
    shops: int
    brands: int
    intentions: int
    categories: int
    category_start: np.ndarray
    popular: np.ndarray
    behaviours: int
    mix: np.ndarray
    mistaken: float
    interaction: np.ndarray
    factor_means: np.ndarray


class Person(NamedTuple):
    """What a common row says of its user; filled in place, anew for each common row.

    Attributes:
        split: number of the split that the common rows are of.
        levels: int64 ``[1 + len(LEVELS)]``, the user's number and the levels of 121 ... 129; −1
            where the field is missing.
        base: ``[2]``, the person's part of each latent.
        taste: ``[2, TOPICS]``, what a topic adds to each latent.
        factors: ``[2, FACTORS]``, by latent, of the interaction with items.
        interest: ``[TOPICS]`` cumulative shares of the topics with this person.
        history_size: int64 ``[4]``, numbers of behaviours.
        history_room: int64 ``[4]``, how many there may be.
        history: int64 ``[4, capacity]``, what the behaviours were about: categories, shops, brands
            and intentions, none twice in a row of it.
        history_count: int64 ``[4, capacity]``, how often, from 1 to MAX_COUNT.
        slot: int32, the four vocabularies one after the other: 1 + the place in the history of
            what is in it, else 0.
        slot_start: ``[4]``, where a vocabulary starts in ``slot``.
        intentions: int64 ``[MOST_INTENTIONS]``, room for those of an item.
    """

    split: int
    levels: np.ndarray
    base: np.ndarray
    taste: np.ndarray
    factors: np.ndarray
    interest: np.ndarray
    history_size: np.ndarray
    history_room: np.ndarray
    history: np.ndarray
    history_count: np.ndarray
    slot: np.ndarray
    slot_start: np.ndarray
    intentions: np.ndarray


def make_world(seed: int, users: int, items: int, behaviours: int) -> World:
    """A world with the real data's proportions of items, categories, shops and brands.

    4.3 M items have about 7,000 categories, as in Ali-CCP; at least two categories a topic.
    """
    categories = max(2 * TOPICS, int(items**0.58))
    rank = np.arange(categories) // TOPICS  # within the category's topic
    share = 1 / (rank + 3.0) ** 0.6
    edges = np.concatenate(([0.0], np.cumsum(share / share.sum())))
    edges[-1] = 1.0
    # every category has an item, and the last edge is exactly `items`
    start = (edges * (items - categories)).astype(np.int64) + np.arange(categories + 1)
    popular = np.cumsum(1 / (np.arange(TOPICS) + 2.0))
    return World(
        key=np.uint64(_mix(np.uint64(seed) ^ _STEP)),  # compiled code returns a Python int
        users=users,
        items=items,
        shops=max(4 * TOPICS, items // 6),
        brands=max(4 * TOPICS, items // 15),
        intentions=5 * categories,
        categories=categories,
        category_start=start,
        popular=popular / popular[-1],
        behaviours=behaviours,
        mix=np.zeros(6),
        mistaken=0.0,
        interaction=np.array([[1.0, 0.0], [1.0, 0.0]]),
        factor_means=np.zeros((2, 2, FACTORS)),
    )


def make_person(world: World, split: int) -> Person:
    """Room for a person at the time of a split."""
    vocabularies = np.array([world.categories, world.shops, world.brands, world.intentions])
    capacity = int(world.behaviours * HISTORY_SHARES.max() * _MOST_ACTIVE) + 1
    return Person(
        split=split,
        levels=np.zeros(1 + len(LEVELS), dtype=np.int64),
        base=np.zeros(2),
        taste=np.zeros((2, TOPICS)),
        factors=np.zeros((2, FACTORS)),
        interest=np.zeros(TOPICS),
        history_size=np.zeros(4, dtype=np.int64),
        history_room=np.zeros(4, dtype=np.int64),
        history=np.zeros((4, capacity), dtype=np.int64),
        history_count=np.zeros((4, capacity), dtype=np.int64),
        slot=np.zeros(vocabularies.sum(), dtype=np.int32),
        slot_start=np.concatenate(([0], np.cumsum(vocabularies)[:-1])).astype(np.int64),
        intentions=np.empty(MOST_INTENTIONS, dtype=np.int64),
    )


@njit(cache=True)
def _mix(x: np.uint64) -> np.uint64:
    # the finaliser of splitmix64: a bijection
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@njit(cache=True)
def _hash(key: np.uint64, purpose: int, number: int) -> np.uint64:
    return _mix(_mix(key + np.uint64(purpose) * _STEP) + np.uint64(number) * _STEP)


@njit(cache=True)
def _draw(key: np.uint64, n: int) -> np.uint64:
    """The n-th draw of a stream."""
    return _mix(key + np.uint64(n + 1) * _STEP)


@njit(cache=True)
def _unit(x: np.uint64) -> float:
    """A hash as a number in [0, 1)."""
    return float(x >> _S11) * 2.0**-53


@njit(cache=True)
def _normal(x: np.uint64) -> float:
    """A hash as a standard normal, by Box and Muller, from its upper 24 and lower 40 bits."""
    radius = math.sqrt(-2.0 * math.log((float(x >> _S40) + 1.0) * 2.0**-24))
    return radius * math.cos(2.0 * math.pi * 2.0**-40 * float(x & _LOW_40))


@njit(cache=True)
def _effect(world: World, purpose: int, number: int) -> float:
    return _normal(_hash(world.key, purpose, number))


@njit(cache=True)
def _factor(world: World, group: tuple[int, int], own: tuple[int, int], n: int) -> float:
    """The n-th factor of what is one of a group; either is a purpose and a number."""
    of_group = _effect(world, group[0], FACTORS * group[1] + n)
    return _GROUP_TASTE * of_group + _OWN_TASTE * _effect(world, own[0], FACTORS * own[1] + n)


@njit(cache=True)
def _item_factor(world: World, side: int, item: int, category: int, n: int) -> float:
    return _factor(world, (_CATEGORY_FACTOR + side, category), (_ITEM_FACTOR + side, item), n)


@njit(cache=True)
def common_key(world: World, common: int) -> np.uint64:
    """The key of a common row, the same in train and test: no two rows have the same one."""
    return _mix(_hash(world.key, _KEY, 0) + np.uint64(common) * _STEP)


@njit(cache=True)
def size_weights(world: World, split: int, count: int) -> np.ndarray:
    """``[count]`` heavy-tailed (log-normal) relative numbers of impressions of common rows."""
    weights = np.empty(count)
    key = _hash(world.key, _SIZE, split)
    for common in range(count):
        weights[common] = math.exp(1.1 * _normal(_draw(key, common)))
    return weights


@njit(cache=True)
def meet(world: World, common: int, person: Person) -> None:
    """Fill in who a common row is about; the history is :func:`remember`'s."""
    user = int(world.users * _unit(_hash(world.key, _USER_OF, common)) ** 2)
    shown = _hash(world.key, _SHOWN, common)
    person.levels[0] = -1 if _unit(_draw(shown, 0)) < _ANONYMOUS else user
    own = _hash(world.key, _LEVEL_OF, user)
    for n in range(len(LEVELS)):
        level = int(LEVELS[n] * _unit(_draw(own, n)) ** 1.5)
        missing = n > 0 and _unit(_draw(shown, 1 + n)) < _MISSING_LEVEL
        person.levels[1 + n] = -1 if missing else level
    for side in range(2):
        person.base[side] = _USER * _effect(world, _USER_EFFECT + side, person.levels[0])
        for n in range(len(LEVELS)):
            person.base[side] += _LEVEL_SHARES[n] * _effect(
                world, _LEVEL_EFFECT + 2 * n + side, person.levels[1 + n]
            )
        for topic in range(TOPICS):
            number = TOPICS * (1 + person.levels[0]) + topic
            group = TOPICS * (1 + person.levels[1]) + topic
            person.taste[side, topic] = _GROUP_TASTE * _effect(
                world, _GROUP_LIKES + side, group
            ) + _OWN_TASTE * _effect(world, _USER_LIKES + side, number)
        for n in range(FACTORS):
            person.factors[side, n] = _factor(
                world,
                (_GROUP_FACTOR + side, 1 + person.levels[1]),
                (_USER_FACTOR + side, 1 + person.levels[0]),
                n,
            )
    total = 0.0
    for topic in range(TOPICS):
        popular = world.popular[topic] - (world.popular[topic - 1] if topic else 0.0)
        total += popular * math.exp(person.taste[0, topic])
        person.interest[topic] = total
    for topic in range(TOPICS):
        person.interest[topic] /= total


@njit(cache=True)
def _choose_item(
    world: World, interest: np.ndarray, by_interest: float, key: np.uint64, n: int
) -> tuple[int, int]:
    """An item and its category, from three draws from the n-th on.

    Topic by interest or popularity; category in the topic and item in the category by Zipf's law.
    """
    u = _unit(_draw(key, n))
    if u < by_interest:
        u, shares = u / by_interest, interest
    else:
        u, shares = (u - by_interest) / (1.0 - by_interest), world.popular
    topic = 0
    while topic < TOPICS - 1 and u >= shares[topic]:
        topic += 1
    choice = (world.categories - topic + TOPICS - 1) // TOPICS
    category = topic + TOPICS * _zipf(choice, _draw(key, n + 1))
    start = world.category_start[category]
    return start + _zipf(world.category_start[category + 1] - start, _draw(key, n + 2)), category


@njit(cache=True)
def _zipf(count: int, x: np.uint64) -> int:
    """A rank below ``count``; rank r has a share of about 1/(r + 1)."""
    return min(count - 1, int((count + 1.0) ** _unit(x)) - 1)


@njit(cache=True)
def shop_of(world: World, item: int, category: int) -> int:
    """The shop of an item: shops keep to a category, and a few in it hold most items."""
    start = world.category_start[category] * world.shops // world.items
    count = max(1, world.category_start[category + 1] * world.shops // world.items - start)
    return start + int(count * _unit(_hash(world.key, _SHOP_OF, item)) ** 2)


@njit(cache=True)
def brand_of(world: World, item: int, category: int) -> int:
    """The brand of an item, or −1: brands keep to a topic."""
    key = _hash(world.key, _BRAND_OF, item)
    if _unit(_draw(key, 0)) < _NO_BRAND:
        return -1
    topic = category % TOPICS
    count = (world.brands - topic + TOPICS - 1) // TOPICS
    return topic + TOPICS * int(count * _unit(_draw(key, 1)) ** 3)


@njit(cache=True)
def intentions_of(world: World, item: int, category: int, intentions: np.ndarray) -> int:
    """Fill in the intentions that an item serves (none twice) and return how many."""
    key = _hash(world.key, _INTENTION_OF, item)
    wanted = int((MOST_INTENTIONS + 1) * _unit(_draw(key, 0)))
    topic = category % TOPICS
    count = (world.intentions - topic + TOPICS - 1) // TOPICS
    size = 0
    for n in range(wanted):
        intention = topic + TOPICS * int(count * _unit(_draw(key, 1 + n)) ** 3)
        known = False
        for k in range(size):
            known = known or intentions[k] == intention
        if not known:
            intentions[size] = intention
            size += 1
    return size


@njit(cache=True)
def _past_key(world: World, split: int, common: int) -> np.uint64:
    """The stream of what a person has done by the time of a split."""
    return _hash(_hash(world.key, _PAST, split), 0, common)


@njit(cache=True)
def remember(world: World, common: int, person: Person) -> None:
    """Fill in the person's history at the time of the split; :func:`forget` the last one before.

    A behaviour is about an item that is chosen as those to be shown are, only more by interest,
    and goes into each of the four fields that isn't full. They get about ``behaviours`` ids in the
    mean of the persons, fewer where that is more than half of a vocabulary.
    """
    past = _past_key(world, person.split, common)
    activity = 0.1 - 0.9 * math.log(1.0 - _unit(_hash(past, _ACTIVITY, 0)))
    wanted = person.history_room
    total = 0
    for field in range(4):
        start = person.slot_start[field]
        end = person.slot_start[field + 1] if field < 3 else len(person.slot)
        size = int(world.behaviours * HISTORY_SHARES[field] * min(_MOST_ACTIVE, activity) + 0.5)
        wanted[field] = min(size, person.history.shape[1], (end - start) // 2)
        total += wanted[field]
    for n in range(2 * total):  # repeated ids only count up
        if person.history_size.sum() == total:
            break
        item, category = _choose_item(world, person.interest, _BEHAVIOUR_BY_INTEREST, past, 4 * n)
        weight = (1.0 - _unit(_draw(past, 4 * n + 3))) ** -0.7
        count = int(min(float(MAX_COUNT), weight))
        for field in range(4):
            if person.history_size[field] == wanted[field]:
                continue
            if field == 0:
                what = category
            elif field == 1:
                what = shop_of(world, item, category)
            elif field == 2:
                what = brand_of(world, item, category)
            else:
                served = intentions_of(world, item, category, person.intentions)
                what = person.intentions[0] if served else -1
            if what >= 0:
                _note(person, field, what, count)


@njit(cache=True)
def _note(person: Person, field: int, what: int, count: int) -> None:
    slot = person.slot_start[field] + what
    place = person.slot[slot] - 1
    if place < 0:
        place = person.history_size[field]
        person.history[field, place] = what
        person.history_count[field, place] = 0
        person.history_size[field] += 1
        person.slot[slot] = place + 1
    known = person.history_count[field, place]
    person.history_count[field, place] = min(MAX_COUNT, known + count)


@njit(cache=True)
def forget(person: Person) -> None:
    """Empty the history."""
    for field in range(4):
        for n in range(person.history_size[field]):
            person.slot[person.slot_start[field] + person.history[field, n]] = 0
        person.history_size[field] = 0


@njit(cache=True)
def count_behaviour(person: Person, field: int, what: int) -> int:
    """How often something is in the history: 0 if it isn't, or is missing (−1)."""
    if what < 0:
        return 0
    slot = person.slot[person.slot_start[field] + what]
    return person.history_count[field, slot - 1] if slot else 0


@njit(cache=True)
def impression_key(world: World, split: int, row: int) -> np.uint64:
    """The stream of an impression; draws 0 to 4 are :func:`show`'s, 5 to 7 :func:`outcomes`'."""
    return _hash(_hash(world.key, _IMPRESSION, split), 0, row)


@njit(cache=True)
def show(
    world: World, person: Person, common: int, key: np.uint64
) -> tuple[int, int, int, int, int]:
    """What an impression shows: item, category, shop, brand (−1: none) and position."""
    again = _unit(_draw(key, 3)) / _AGAIN
    if again < 1.0:
        behaviour = int(_AGAIN_OF * again)
        item, category = _choose_item(
            world,
            person.interest,
            _BEHAVIOUR_BY_INTEREST,
            _past_key(world, person.split, common),
            4 * behaviour,
        )
    else:
        item, category = _choose_item(world, person.interest, _EXPOSURE_BY_INTEREST, key, 0)
    u = _unit(_draw(key, 4))
    position = 0
    while position < len(POSITION_SHARES) - 1 and u >= POSITION_SHARES[position]:
        u -= POSITION_SHARES[position]
        position += 1
    shop, brand = shop_of(world, item, category), brand_of(world, item, category)
    return item, category, shop, brand, position


@njit(cache=True)
def latents(
    world: World, person: Person, item: int, category: int, shop: int, brand: int
) -> tuple[float, float]:
    """The latents ``click`` and ``own`` of an impression, not scaled, without the position."""
    click, own = person.base[0], person.base[1]
    topic = category % TOPICS
    click += _TASTE * person.taste[0, topic] + _CATEGORY * _effect(
        world, _CATEGORY_EFFECT, category
    )
    own += _TASTE * person.taste[1, topic] + _CATEGORY * _effect(
        world, _CATEGORY_EFFECT + 1, category
    )
    click += _ITEM * _effect(world, _ITEM_EFFECT, item)
    own += _ITEM * _effect(world, _ITEM_EFFECT + 1, item)
    click += _SHOP * _effect(world, _SHOP_EFFECT, shop)
    own += _SHOP * _effect(world, _SHOP_EFFECT + 1, shop)
    click += _BRAND * _effect(world, _BRAND_EFFECT, brand)
    own += _BRAND * _effect(world, _BRAND_EFFECT + 1, brand)
    if world.interaction[0, 1] != 0.0:
        of_effects, of_both = world.interaction[0]
        click = of_effects * click + of_both * _interaction(world, person, 0, item, category)
        of_effects, of_both = world.interaction[1]
        own = of_effects * own + of_both * _interaction(world, person, 1, item, category)
    return click, own


@njit(cache=True)
def _interaction(world: World, person: Person, side: int, item: int, category: int) -> float:
    """1/√FACTORS · Σ_f (u_f − mean)·(v_f − mean) of a person and an item."""
    total = 0.0
    means = world.factor_means[side]
    for n in range(FACTORS):
        of_item = _item_factor(world, side, item, category, n) - means[1, n]
        total += (person.factors[side, n] - means[0, n]) * of_item
    return total / math.sqrt(FACTORS)


@njit(cache=True)
def truth(mix: np.ndarray, click: Any, own: Any, position_effect: Any) -> tuple[Any, Any]:
    """True CTR and true CVR from latents (numbers or arrays) and :func:`mixed`'s coefficients."""
    click_logit = mix[0] + mix[1] * click + mix[2] * position_effect
    conversion_logit = mix[3] + mix[4] * click + mix[5] * own
    return 1.0 / (1.0 + np.exp(-click_logit)), 1.0 / (1.0 + np.exp(-conversion_logit))


@njit(cache=True)
def outcomes(key: np.uint64, ctr: float, cvr: float, mistaken: float) -> tuple[int, int, int]:
    """Click, purchase and potential conversion of an impression.

    Click and potential conversion are independent draws. A purchase is both, except that a share
    ``mistaken`` of the potential conversions without a click is recorded as a purchase, too.
    """
    click = int(_unit(_draw(key, 5)) < ctr)
    potential = int(_unit(_draw(key, 6)) < cvr)
    recorded = click or _unit(_draw(key, 7)) < mistaken
    return click, int(potential and recorded), potential


@njit(cache=True)
def sample_latents(
    world: World, person: Person, rows: np.ndarray, commons: np.ndarray
) -> np.ndarray:
    """Latents of some impressions: ``[rows, 3]`` of click, own and the position's effect."""
    sampled = np.empty((len(rows), 3))
    for n in range(len(rows)):
        if n == 0 or commons[n] != commons[n - 1]:
            meet(world, commons[n], person)
        item, category, shop, brand, position = show(
            world, person, commons[n], impression_key(world, person.split, rows[n])
        )
        sampled[n, 0], sampled[n, 1] = latents(world, person, item, category, shop, brand)
        sampled[n, 2] = POSITION_EFFECTS[position]
    return sampled


@njit(cache=True)
def sample_factors(
    world: World, person: Person, rows: np.ndarray, commons: np.ndarray
) -> np.ndarray:
    """Factors of some impressions: ``[rows, 2, 2, FACTORS]``, by latent, of user and item."""
    sampled = np.empty((len(rows), 2, 2, FACTORS))
    for n in range(len(rows)):
        if n == 0 or commons[n] != commons[n - 1]:
            meet(world, commons[n], person)
        item, category, _, _, _ = show(
            world, person, commons[n], impression_key(world, person.split, rows[n])
        )
        for side in range(2):
            for f in range(FACTORS):
                sampled[n, side, 0, f] = person.factors[side, f]
                sampled[n, side, 1, f] = _item_factor(world, side, item, category, f)
    return sampled


def interacting(world: World, sample: np.ndarray, factors: np.ndarray, share: float) -> World:
    """A world in which interactions make a share of each latent's variance.

    Args:
        world: without.
        sample: ``[rows, 3]`` from :func:`sample_latents`.
        factors: ``[rows, 2, 2, FACTORS]`` of the same impressions, from :func:`sample_factors`.
        share: in (0, 1].
    """
    means = factors.mean(axis=0)
    both = (factors - means).prod(axis=2).sum(axis=2) / math.sqrt(FACTORS)
    scale = sample[:, :2].std(axis=0) / np.maximum(both.std(axis=0), 1e-6)
    weights = np.stack([np.full(2, math.sqrt(1 - share)), math.sqrt(share) * scale], axis=1)
    return world._replace(interaction=weights, factor_means=means)


def mixed(
    sample: np.ndarray, click_rate: float, conversion_rate: float, selection: float
) -> np.ndarray:
    """Coefficients that turn latents into the logits of the module's head.

    Args:
        sample: ``[rows, 3]`` from :func:`sample_latents`.
        click_rate: mean true CTR that the sample gets.
        conversion_rate: mean true CVR that the sample gets, weighted by the true CTR.
        selection: correlation of the click logit, the position aside, and the conversion logit.

    Returns:
        ``[6]``: constant and factors of ``click`` and of the position's effect in the click
        logit; constant and factors of ``click`` and ``own`` in the conversion logit.
    """
    mean = sample.mean(axis=0)
    deviation = sample - mean
    # in a handful of rows a latent may not vary; then it has no effect, not a huge one
    spread = np.where(deviation.std(axis=0) > 1e-6, deviation.std(axis=0), np.inf)
    # own' = (own − slope · click) / rest, each from its mean
    slope = (deviation[:, 0] * deviation[:, 1]).mean() / spread[0] ** 2
    rest = (deviation[:, 1] - slope * deviation[:, 0]).std()
    rest = rest if rest > 1e-6 else np.inf
    from_own = SPREAD * math.sqrt(1 - selection**2) / rest
    factors = np.array(
        [
            [
                SPREAD * math.sqrt(1 - POSITION) / spread[0],
                0,
                SPREAD * math.sqrt(POSITION) / spread[2],
            ],
            [SPREAD * selection / spread[0] - from_own * slope, from_own, 0],
        ]
    )
    click, conversion = factors @ deviation.T

    everywhere = np.full(len(sample), 1 / len(sample))
    a = _constant(click, everywhere, click_rate)
    clicked = _sigmoid(a + click)
    b = _constant(conversion, clicked / clicked.sum(), conversion_rate)
    a, b = (a, b) - factors @ mean
    return np.array([a, factors[0, 0], factors[0, 2], b, factors[1, 0], factors[1, 1]])


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _constant(logit: np.ndarray, weights: np.ndarray, rate: float) -> float:
    """What to add to logits so that their weighted mean probability is a rate; by bisection."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if weights @ _sigmoid(logit + middle) < rate:
            low = middle
        else:
            high = middle
    return middle
