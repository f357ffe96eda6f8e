"""Impressions of Ali-CCP's size, made up: the same arrays for every contender of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Fields of Ali-CCP with the number of ids that published code keeps of each, rare ones put
#: together; 205 is cut by 3,090 so that they sum to 1,280,000.
FIELDS = {
    "101": 238_635,
    "121": 98,
    "122": 14,
    "124": 3,
    "125": 8,
    "126": 4,
    "127": 4,
    "128": 3,
    "129": 5,
    "205": 464_208,
    "206": 6_929,
    "207": 263_942,
    "216": 106_399,
    "301": 4,
    "508": 5_888,
    "509": 104_830,
    "702": 51_878,
    "853": 37_148,
}
#: The id of rank k is drawn with a probability in proportion to k^-EXPONENT.
EXPONENT = 1.0
CLICK_RATE, CONVERSION_RATE = 0.04, 0.1  # of impressions, and of clicks
_EFFECT = 0.25  # standard deviation of one id's effect on a logit: 18 of them make about 1


def write_once(folder: Path, rows: int, seed: int = 2024) -> Path:
    """The ``.npz`` file with the data of a size and a seed; made if it isn't there.

    It holds ``ids`` (int32 ``[rows, 18]``, from 0), ``click`` and ``conversion`` (int32, 0 or 1),
    ``fields`` (names) and ``sizes`` (ids of each field).
    """
    path = folder.absolute() / f"impressions-{rows}-{seed}.npz"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    ids = np.empty((rows, len(FIELDS)), np.int32)
    click_logit, conversion_logit = np.zeros(rows), np.zeros(rows)
    for column, size in enumerate(FIELDS.values()):
        ids[:, column] = _heavy_tailed(generator, rows, size)
        for logit in (click_logit, conversion_logit):
            logit += _EFFECT * generator.standard_normal(size)[ids[:, column]]
    click = generator.random(rows) < _probability(click_logit, CLICK_RATE)
    conversion = np.zeros(rows, bool)
    conversion[click] = generator.random(int(click.sum())) < _probability(
        conversion_logit[click], CONVERSION_RATE
    )
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        ids=ids,
        click=click.astype(np.int32),
        conversion=conversion.astype(np.int32),
        fields=np.array(list(FIELDS)),
        sizes=np.array(list(FIELDS.values())),
    )
    partial.replace(path)  # a run that was stopped leaves no half a file under the name
    return path


def _heavy_tailed(generator: np.random.Generator, rows: int, size: int) -> NDArray[np.int64]:
    cumulative = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -EXPONENT)
    ranks = np.searchsorted(cumulative, generator.random(rows) * cumulative[-1], side="right")
    # Which ids are the frequent ones is left to chance: side by side they'd share cache lines.
    return generator.permutation(size)[np.minimum(ranks, size - 1)]


def _probability(logit: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Sigmoids whose mean is ``rate``, the intercept found by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-logit - middle))).mean() < rate:
            low = middle
        else:
            high = middle
    return 1 / (1 + np.exp(-logit - low))


def describe(path: Path) -> str:
    """One line of JSON about a file: rows, rates and how many ids occur."""
    with np.load(path) as data:
        ids, click, conversion = data["ids"], data["click"], data["conversion"]
    return json.dumps(
        {
            "rows": len(ids),
            "click": round(float(click.mean()), 4),
            "conversion of clicked": round(float(conversion[click == 1].mean()), 4),
            "ids that occur": sum(len(np.unique(column)) for column in ids.T),
        }
    )
