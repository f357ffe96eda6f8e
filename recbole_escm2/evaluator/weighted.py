"""Metrics of scored binary tasks whose rows have weights, as functions of arrays.

A row of weight w counts as w rows with its label and score would: with whole weights each value is
that of the repeated rows, and one weight for all gives the value without weights. A row of weight 0
isn't there. What has no such form isn't here: ECE, whose bins hold whole rows, and metrics by user,
whose ranks do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_escm2.evaluator.metrics import UndefinedMetricError, clipped, labelled_scores

__all__ = [
    "WeightedScores",
    "auc",
    "f1",
    "ks",
    "log_loss",
    "mean",
    "pcoc",
    "pr_auc",
    "recall",
    "weighted_scores",
]

Floats = NDArray[np.float64]


class WeightedScores(NamedTuple):
    """A scored binary task as the weight of each class at each distinct score, ascending.

    Attributes:
        score: the distinct scores of rows with a weight, ``[S]``.
        positive: the weight of the positives with each score, ``[S]``.
        negative: that of the negatives, ``[S]``.
    """

    score: NDArray[Any]
    positive: Floats
    negative: Floats


def weighted_scores(label: ArrayLike, score: ArrayLike, weight: ArrayLike) -> WeightedScores:
    """Sums the weights of each class by score.

    Args:
        label: 0 or 1, ``[N]``.
        score: finite, ``[N]``.
        weight: finite, >= 0, ``[N]``.

    Raises:
        ValueError: an argument has another length, or isn't as it must be.
        UndefinedMetricError: no row has a weight.
    """
    is_positive, scores = labelled_scores(label, score)
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != scores.shape:
        raise ValueError(f"weight has shape {weights.shape}, score {scores.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and np.isfinite(scores).all()):
        raise ValueError("weights must be finite and >= 0, and scores finite")
    counts = weights > 0
    if not counts.any():
        raise UndefinedMetricError("all weights are 0")
    distinct, place = np.unique(scores[counts], return_inverse=True)
    size, own, positive = len(distinct), weights[counts], is_positive[counts]
    return WeightedScores(
        distinct,
        np.bincount(place[positive], own[positive], size).astype(np.float64),
        np.bincount(place[~positive], own[~positive], size).astype(np.float64),
    )


def auc(rows: WeightedScores) -> float:
    """P(s+ > s-) + P(s+ = s-) / 2 of a positive and a negative drawn by weight, in [0, 1].

    Raises:
        UndefinedMetricError: no positive or no negative has a weight.
    """
    positives, negatives = _positives(rows), _negatives(rows)
    below = np.cumsum(rows.negative) - rows.negative
    return float(rows.positive @ (below + rows.negative / 2)) / (positives * negatives)


def pr_auc(rows: WeightedScores) -> float:
    """Average precision, as :func:`recbole_escm2.evaluator.metrics.pr_auc`, in (0, 1].

    Raises:
        UndefinedMetricError: no positive has a weight.
    """
    positives = _positives(rows)
    hit = np.cumsum(rows.positive[::-1])[::-1]
    miss = np.cumsum(rows.negative[::-1])[::-1]
    some = rows.positive > 0
    return float(rows.positive[some] @ (hit[some] / (hit[some] + miss[some]))) / positives


def ks(rows: WeightedScores) -> float:
    """max_t |TPR(t) - FPR(t)|, in [0, 1].

    Raises:
        UndefinedMetricError: no positive or no negative has a weight.
    """
    shares = (
        np.cumsum(rows.positive) / _positives(rows),
        np.cumsum(rows.negative) / _negatives(rows),
    )
    return float(np.max(np.abs(shares[0] - shares[1])))


def log_loss(rows: WeightedScores) -> float:
    """Weighted mean of -y ln p - (1 - y) ln(1 - p), in nats, p clipped to [1e-15, 1 - 1e-15].

    Raises:
        ValueError: a score lies outside [0, 1].
    """
    if rows.score[0] < 0 or rows.score[-1] > 1:
        raise ValueError(f"score must lie in [0, 1], not in [{rows.score[0]}, {rows.score[-1]}]")
    p = clipped(rows.score)
    total = rows.positive @ np.log(p) + rows.negative @ np.log1p(-p)
    return -float(total) / float(np.sum(rows.positive) + np.sum(rows.negative))


def recall(rows: WeightedScores, threshold: float) -> float:
    """Share of the positives' weight with score >= threshold, in [0, 1].

    Raises:
        UndefinedMetricError: no positive has a weight.
    """
    positives = _positives(rows)
    return float(np.sum(rows.positive[rows.score >= np.float64(threshold)])) / positives


def f1(rows: WeightedScores, threshold: float) -> float:
    """2 TP / (2 TP + FP + FN) of weights when score >= threshold predicts positive, in [0, 1].

    Raises:
        UndefinedMetricError: no positive has a weight.
    """
    positives, predicted = _positives(rows), rows.score >= np.float64(threshold)
    hit, miss = float(np.sum(rows.positive[predicted])), float(np.sum(rows.negative[predicted]))
    return 2 * hit / (hit + miss + positives)


def pcoc(rows: WeightedScores) -> float:
    """Weighted mean score / weighted mean label; 1 is calibrated, > 1 overestimates.

    Raises:
        UndefinedMetricError: no positive has a weight.
    """
    both = rows.positive + rows.negative
    return float(rows.score.astype(np.float64) @ both) / _positives(rows)


def mean(value: ArrayLike, weight: ArrayLike) -> float:
    """Weighted mean of numbers.

    Raises:
        UndefinedMetricError: no row has a weight.
    """
    values, weights = np.asarray(value, np.float64), np.asarray(weight, np.float64)
    total = float(np.sum(weights))
    if not total:
        raise UndefinedMetricError("all weights are 0")
    return float(values @ weights) / total


def _positives(rows: WeightedScores) -> float:
    total = float(np.sum(rows.positive))
    if not total:
        raise UndefinedMetricError("no positive has a weight")
    return total


def _negatives(rows: WeightedScores) -> float:
    total = float(np.sum(rows.negative))
    if not total:
        raise UndefinedMetricError("no negative has a weight")
    return total
