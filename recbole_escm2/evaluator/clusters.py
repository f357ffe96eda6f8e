"""The variance of a sum over test rows, of which those of a user or of an item are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """What drawing the test rows does to a number: its variance, and how well that is known.

    Attributes:
        variance: of the number, at least 0.
        freedom: degrees of freedom of the variance.
    """

    variance: float
    freedom: float


def cluster_variance(influence: NDArray[Any], clusters: Sequence[NDArray[Any]]) -> Noise:
    """The variance of a sum over test rows, of which those of a user or of an item are alike.

    V_user + V_item - V_row, each the sum of squares of the influence summed by user, by item and
    not at all; with one kind of cluster, V of that; with none, V_row. The three terms may come out
    below one of the first two, even below 0: the largest of the three numbers is taken.

    A sum of squares of few large terms is itself uncertain. Its degrees of freedom are
    Satterthwaite's, 2 V² / Var(V), with Var(V) from the fourth powers: for G normal terms G, for
    the 40 conversions that carry an AUC about 40, whatever the number of users.

    Source: Cameron, Gelbach & Miller, Robust inference with multiway clustering, JBES 29, 2011.

    Args:
        influence: of each row, ``[rows]``.
        clusters: ids of the users and of the items, as far as there are, each ``[rows]``; rows
            with the id 0 belong to nobody.
    """
    values = np.asarray(influence, dtype=np.float64)
    by_row = _sum_of_squares(values)
    sums = [_sum_of_squares(_by_cluster(values, ids)) for ids in clusters]
    if not sums:
        return by_row
    freedom = min(one.freedom for one in sums)
    variances = [one.variance for one in sums]
    if len(sums) > 1:
        variances.append(sum(variances) - by_row.variance)
    return Noise(max(variances), freedom)


def _by_cluster(values: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
    totals = np.bincount(ids, values)
    nobody = values[ids == 0]
    return np.concatenate([totals[1:], nobody])


def _sum_of_squares(terms: NDArray[Any]) -> Noise:
    """The variance of a sum of independent terms of mean 0."""
    squares = terms[terms != 0] ** 2
    total = float(squares.sum())
    if total == 0:
        return Noise(0.0, 1.0)
    count = len(squares)
    own = float(np.sum(squares**2)) - total**2 / count
    effective = 2 * total**2 / own if own > 0 else math.inf
    return Noise(total, max(1.0, min(effective, count - 1)))
