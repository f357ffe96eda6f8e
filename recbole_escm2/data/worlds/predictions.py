"""Predicted CVR matrices with known mistakes, for estimators to estimate the error of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Names of the matrices of :func:`prediction_matrices`.
MATRICES = ("ONE", "THREE", "FIVE", "ROTATE", "SKEW", "CRS")


def prediction_matrices(
    true_cvr: Floats, levels: Sequence[float], rng: np.random.Generator
) -> dict[str, Floats]:
    """Predictions r̂ by the name of their mistake, each ``[pairs]``.

    With the five levels q of the true CVR, lowest first:

    * ONE, THREE, FIVE: the true CVR, but as many pairs as have the highest level, drawn among
      those of the first, second and third level, are predicted to have the highest (MRDR, Guo et
      al., SIGIR 2021; after REC_ONES and REC_FOURS of Schnabel et al., ICML 2016).
    * ROTATE: one level lower, and the highest for the lowest (ROTATED of Schnabel et al. 2016, and
      DR-JL, Wang et al., ICML 2019, on ratings: r − 1, and 5 for 1).
    * SKEW: N(q, ((1 − q)/2)²), clipped to the lowest and highest level (MRDR; SKEWED on ratings).
    * CRS, coarsened: the lowest level for the upper two, the middle one for the rest (MRDR, which
      turns the order round; COARSENED on ratings keeps it).

    Args:
        true_cvr: q of each pair, every one a level, ``[pairs]``.
        levels: the five levels in rising order.
        rng: draws the pairs of ONE, THREE and FIVE, and SKEW.

    Raises:
        ValueError: there aren't five levels, or one of the first three has fewer pairs than the
            highest.
    """
    if len(levels) != 5:
        raise ValueError(f"the matrices are defined for five levels, got {len(levels)}")
    level = np.searchsorted(np.asarray(levels) + 1e-9, true_cvr)
    value = np.asarray(levels, dtype=np.float64)
    matrices = {}
    highest = int((level == 4).sum())
    for name, mistaken in (("ONE", 0), ("THREE", 1), ("FIVE", 2)):
        predicted = value[level]
        among = np.flatnonzero(level == mistaken)
        predicted[rng.choice(among, highest, replace=False)] = value[4]
        matrices[name] = predicted
    matrices["ROTATE"] = value[(level - 1) % 5]
    skewed = rng.normal(value[level], (1 - value[level]) / 2)
    matrices["SKEW"] = np.clip(skewed, value[0], value[4])
    matrices["CRS"] = np.where(level >= 3, value[0], value[2])
    return matrices
