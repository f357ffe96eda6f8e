"""What each row contributes to a metric: its influence, by which the metric's variance is known.

The influence of a row is the derivative of the metric by the row's weight. Influences sum to 0, the
sum of their squares is the metric's variance where rows are independent, and that of their sums by
cluster where clusters are (``clusters.cluster_variance``). Of a difference of two metrics on the
same rows it is the difference of the influences.

Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.evaluator import metrics
from recbole_escm2.evaluator.catalogue import Setting, mean_truth, spec_of
from recbole_escm2.evaluator.predictions import Predictions, Scored
from recbole_escm2.metric_names import OF_CLICKS, PER_USER, space_of, statistic_of

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contributions:
    """The influences on a metric.

    Attributes:
        values: one a row that the metric is over, or one a user that it is a mean of.
        rows: positions of those rows in D; None: all of D.
        by_user: whether there is one a user.
    """

    values: Floats
    rows: Array | None = None
    by_user: bool = False


def contributions(predictions: Predictions, name: str, setting: Setting) -> Contributions | None:
    """The influences on a metric, None where they aren't known.

    Args:
        predictions: on which the metric has a value.
        name: as it is shown.
        setting: of the metric, with its K.

    Raises:
        UndefinedMetricError: the metric has no value.
        NotPredictedError: the model doesn't predict what it scores.
    """
    spec = spec_of(name)
    if spec is None or predictions.truth.has_weights:
        return None
    if spec.name in _OF_PREDICTIONS:
        return Contributions(_OF_PREDICTIONS[spec.name](predictions))
    statistic, space = statistic_of(spec.name)[0], space_of(spec.name)
    if statistic in PER_USER:
        scored = predictions.scored(space)
        return Contributions(_BY_USER[statistic](scored, setting), by_user=True)
    if statistic not in _BY_ROW:
        return None
    scored = predictions.scored(space)
    rows = np.flatnonzero(predictions.clicks > 0) if space in OF_CLICKS else None
    return Contributions(_BY_ROW[statistic](scored, setting), rows)


def _mean(terms: Floats) -> Floats:
    """Of a mean of terms."""
    return (terms - terms.mean()) / len(terms)


def _columns(scored: Scored) -> tuple[Floats, Floats]:
    return np.asarray(scored.label, np.float64), np.asarray(scored.score, np.float64)


def _auc(scored: Scored, _: Setting) -> Floats:
    return metrics.auc_influence(scored.classes, scored.label, scored.score)


def _log_loss(scored: Scored, _: Setting) -> Floats:
    label, score = _columns(scored)
    return _mean(metrics.row_log_loss(label, score))


def _pcoc(scored: Scored, _: Setting) -> Floats:
    label, score = _columns(scored)
    return (score - metrics.pcoc(scored.classes) * label) / label.sum()


def _recall(scored: Scored, setting: Setting) -> Floats:
    label, score = _columns(scored)
    threshold = setting.threshold_of(scored)
    return label * ((score >= threshold) - metrics.recall(scored.classes, threshold)) / label.sum()


def _f1(scored: Scored, setting: Setting) -> Floats:
    label, score = _columns(scored)
    threshold = setting.threshold_of(scored)
    predicted = score >= threshold
    value = metrics.f1(scored.classes, threshold)
    return (2 * label * predicted - value * (predicted + label)) / (predicted.sum() + label.sum())


def _ks(scored: Scored, _: Setting) -> Floats:
    """At the score where the two classes are furthest apart, which is taken as given."""
    label, score = _columns(scored)
    sign, threshold = metrics.ks_at(scored.classes)
    above = np.asarray(score > threshold, np.float64)
    ends = []
    for one in (label, 1 - label):
        share = float(above @ one) / one.sum()
        ends.append(one * (above - share) / one.sum())
    return sign * (ends[0] - ends[1])


def _pr_auc(scored: Scored, _: Setting) -> Floats:
    """The weight of a row moves its own precision, and that at all positives that score lower."""
    label = np.asarray(scored.label, np.float64)
    positive = scored.classes.positive
    count = len(positive)
    at_least = count - np.searchsorted(positive, positive)
    predicted = at_least + len(scored.classes.negative) - scored.classes.below
    precision = at_least / predicted
    own = np.concatenate(([0.0], np.cumsum(1 / predicted)))
    other = np.concatenate(([0.0], np.cumsum(precision / predicted)))
    upto = np.searchsorted(positive, scored.score, side="right")
    at_row = np.concatenate(([0.0], precision))[upto]
    return (label * (at_row - precision.mean() + own[upto]) - other[upto]) / count


_BY_ROW: dict[str, Callable[[Scored, Setting], Floats]] = {
    "AUC": _auc,
    "LogLoss": _log_loss,
    "PR_AUC": _pr_auc,
    "KS": _ks,
    "Recall": _recall,
    "F1": _f1,
    "PCOC": _pcoc,
}


def _gauc(scored: Scored, _: Setting) -> Floats:
    each, weight = metrics.user_auc(scored.ranking)
    mean = np.sum(weight * each) / weight.sum()
    return weight * (each - mean) / weight.sum()


_BY_USER: dict[str, Callable[[Scored, Setting], Floats]] = {
    "GAUC": _gauc,
    "NDCG@K": lambda scored, s: _mean(metrics.user_ndcg(scored.ranking, s.k)),
    "Recall@K": lambda scored, s: _mean(metrics.user_recall(scored.ranking, s.k)),
}


def _mae(predictions: Predictions) -> Floats:
    truth, score = np.asarray(predictions.truth.true_cvr, np.float64), predictions.of("cvr")
    return _mean(np.abs(score - truth))


def _ieb(predictions: Predictions) -> Floats:
    return _mean(np.subtract(predictions.of("cvr"), mean_truth(predictions), dtype=np.float64))


def _gap(predictions: Predictions) -> Floats:
    influence = _mean(np.asarray(predictions.of("cvr"), np.float64))
    clicked = np.flatnonzero(predictions.clicks > 0)
    influence[clicked] -= _mean(np.asarray(predictions.scored("cvr").label, np.float64))
    return influence


_OF_PREDICTIONS: dict[str, Callable[[Predictions], Floats]] = {
    "CVR_MAE_ES": _mae,
    "IEB": _ieb,
    "CVR_Gap": _gap,
}
