"""Writes files as publishers of data sets describe them; shares nothing with what reads them."""

import random

import numpy as np

COAT_USER = (
    *("gender:men", "gender:women", "age:20-30", "age:30-40", "age:40-50", "age:50-60"),
    *("age:over 60", "age:under 20", "location:rural", "location:suburban", "location:urban"),
    *("fashioninterest:moderately", "fashioninterest:not at all", "fashioninterest:very"),
)
COAT_ITEM = (
    *("gender:men", "gender:women", "jackettype:bomber", "jackettype:parkas", "color:beige"),
    *("color:black", "color:blue", "onfrontpage:yes", "onfrontpage:no"),
)


def ratings(users, items, chosen, shown, seed=0):
    """Two matrices of ratings from 1 to 5, 0 for none, as people chose and as chance showed.

    Each user rates ``chosen`` items that they choose and ``shown`` other ones, drawn from all of
    them; a pair has one rating, wherever it stands.
    """
    rng = np.random.default_rng(seed)
    like = rng.normal(size=(users, 2)) @ rng.normal(size=(2, items))
    rating = np.clip(np.rint(3 + like + rng.normal(size=like.shape)), 1, 5).astype(int)
    picked, drawn = np.zeros((2, users, items), dtype=bool)
    for user in range(users):
        weight = np.exp(like[user])
        picked[user, rng.choice(items, chosen, replace=False, p=weight / weight.sum())] = True
        drawn[user, rng.choice(items, shown, replace=False)] = True
    return rating * picked, rating * drawn


def _one_hot(names, rows, rng):
    groups = {}
    for place, name in enumerate(names):
        groups.setdefault(name.split(":")[0], []).append(place)
    for _ in range(rows):
        on = {rng.choice(places) for places in groups.values()}
        yield [int(place in on) for place in range(len(names))]


def write_coat(raw, users=30, items=40, chosen=8, shown=6, seed=0):
    """Coat Shopping: lines of numbers with blanks between (and behind) them, no header.

    Returns:
        Both matrices, the users' and the items' one-hot rows, and the propensities.
    """
    rng = random.Random(seed)
    train, test = ratings(users, items, chosen, shown, seed)
    features = raw / "user_item_features"
    features.mkdir(parents=True)
    for name, matrix in (("train", train), ("test", test)):
        lines = (" ".join(map(str, row)) + " \n" for row in matrix)
        (raw / f"{name}.ascii").write_text("".join(lines))
    hot = []
    for side, names, count in (("user", COAT_USER, users), ("item", COAT_ITEM, items)):
        rows = list(_one_hot(names, count, rng))
        lines = (" ".join(map(str, row)) + "\r\n" for row in rows)
        (features / f"{side}_features.ascii").write_text("".join(lines), newline="")
        (features / f"{side}_features_map.txt").write_text("\n".join(names))
        hot.append(rows)
    propensity = [[rng.uniform(0.01, 0.6) for _ in range(items)] for _ in range(users)]
    lines = (" ".join(f"{value:.18e}" for value in row) + " \n" for row in propensity)
    (raw / "propensities.ascii").write_text("".join(lines))
    return train, test, *hot, np.array(propensity)
