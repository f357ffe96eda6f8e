"""How each metric is computed, and over which rows; its name is in ``metric_names``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from recbole_escm2.errors import UsageError, place_in_own_code
from recbole_escm2.evaluator import metrics, weighted
from recbole_escm2.evaluator.metrics import ClassScores
from recbole_escm2.evaluator.predictions import (
    NotPredictedError,
    NoTruthError,
    Predictions,
    Scored,
)
from recbole_escm2.evaluator.weighted import WeightedScores
from recbole_escm2.metric_names import (
    METRICS,
    Combined,
    Metric,
    combined,
    metric_of,
    own_function,
    space_of,
    statistic_of,
)

#: Where the metrics find the predictions among what RecBole's collector gathers.
PREDICTIONS = "entire_space.predictions"


@dataclass(frozen=True)
class Setting:
    """The config keys that a metric may depend on.

    Attributes:
        threshold: probability from which F1 and Recall predict a positive; None: the task's share
            of positives in train.
        bins: equal-mass bins of ECE.
        k: the cut of a top-K metric.
    """

    threshold: float | None = None
    bins: int = 10
    k: int = 10

    @classmethod
    def of(cls, config: Any) -> Setting:
        """The setting of a config, without a K."""
        threshold = config["decision_threshold"]
        return cls(
            None if threshold in (None, "base_rate") else float(threshold),
            config["calibration_bins"] or cls.bins,
        )

    def threshold_of(self, scored: Scored) -> float:
        """The decision threshold on these rows.

        Raises:
            UndefinedMetricError: it is the base rate of train, and nobody has told that.
        """
        threshold = scored.train_rate if self.threshold is None else self.threshold
        if threshold is None:
            raise metrics.UndefinedMetricError(
                "the share of positives in train isn't known here: give a decision_threshold"
            )
        return threshold


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Metric):
    """A metric that can be computed.

    Attributes:
        value: the metric of predictions under a setting; raises ``UndefinedMetricError`` or
            ``NotPredictedError`` where there is none.
    """

    value: Callable[[Predictions, Setting], float]


def _no_weights(name: str) -> metrics.UndefinedMetricError:
    return metrics.UndefinedMetricError(
        f"{name} has no form for impressions that have weights (weighted_metrics)"
    )


_Statistic: TypeAlias = Callable[[Scored, Setting], float]


def _of_classes(
    unweighted: Callable[[ClassScores], float], of_weights: Callable[[WeightedScores], float]
) -> _Statistic:
    """A statistic of labels and scores, and its form for rows that have weights."""

    def value(rows: Scored, _: Setting) -> float:
        return unweighted(rows.classes) if rows.weight is None else of_weights(rows.weighted)

    return value


def _at_threshold(
    unweighted: Callable[[ClassScores, float], float],
    of_weights: Callable[[WeightedScores, float], float],
) -> _Statistic:
    """The same of one that decides from a probability on."""

    def value(rows: Scored, setting: Setting) -> float:
        threshold = setting.threshold_of(rows)
        if rows.weight is None:
            return unweighted(rows.classes, threshold)
        return of_weights(rows.weighted, threshold)

    return value


def _without_weights(name: str, unweighted: _Statistic) -> _Statistic:
    """A statistic that has no form for rows that have weights."""

    def value(rows: Scored, setting: Setting) -> float:
        if rows.weight is not None:
            raise _no_weights(name)
        return unweighted(rows, setting)

    return value


_WITHOUT_WEIGHTS: dict[str, _Statistic] = {
    "GAUC": lambda rows, _: metrics.gauc(rows.ranking),
    "ECE": lambda rows, s: metrics.ece(rows.classes, s.bins),
    "NDCG@K": lambda rows, s: metrics.ndcg_at_k(rows.ranking, s.k),
    "Recall@K": lambda rows, s: metrics.recall_at_k(rows.ranking, s.k),
}
# of a task's predictions on the rows that they are scored on
_STATISTICS: dict[str, _Statistic] = {
    "AUC": _of_classes(metrics.auc, weighted.auc),
    "LogLoss": _of_classes(metrics.log_loss, weighted.log_loss),
    "PR_AUC": _of_classes(metrics.pr_auc, weighted.pr_auc),
    "KS": _of_classes(metrics.ks, weighted.ks),
    "Recall": _at_threshold(metrics.recall, weighted.recall),
    "F1": _at_threshold(metrics.f1, weighted.f1),
    "PCOC": _of_classes(metrics.pcoc, weighted.pcoc),
    **{name: _without_weights(name, unweighted) for name, unweighted in _WITHOUT_WEIGHTS.items()},
}


def _true_cvr(predictions: Predictions) -> Any:
    if predictions.truth.true_cvr is None:
        raise NoTruthError("the data doesn't hold the true CVR")
    return predictions.truth.true_cvr


def _mae(predictions: Predictions, _: Setting) -> float:
    if (weight := predictions.truth.conversion_weight) is not None:
        return weighted.mean(np.abs(predictions.of("cvr") - _true_cvr(predictions)), weight)
    return metrics.mean_absolute_error(_true_cvr(predictions), predictions.of("cvr"))


def mean_truth(predictions: Predictions) -> Any:
    """What the mean of pCVR over D is to be that of.

    Raises:
        NoTruthError: the data doesn't hold it.
    """
    # the mean of potential conversions estimates that of the true CVR
    potential = predictions.truth.potential_conversion
    if predictions.truth.true_cvr is None and potential is not None:
        return potential
    return _true_cvr(predictions)


def _ieb(predictions: Predictions, _: Setting) -> float:
    wanted = mean_truth(predictions)
    if (weight := predictions.truth.conversion_weight) is not None:
        return weighted.mean(np.subtract(predictions.of("cvr"), wanted, dtype=np.float64), weight)
    return metrics.mean_difference(wanted, predictions.of("cvr"))


def _gap(predictions: Predictions, _: Setting) -> float:
    pcvr, weight = predictions.of("cvr"), predictions.truth.conversion_weight
    if weight is None:
        over_d = float(np.mean(pcvr, dtype=np.float64))
    else:
        over_d = weighted.mean(pcvr, weight)
    clicked = predictions.scored("cvr")
    if len(clicked.label) == 0 or (clicked.weight is not None and not clicked.weight.any()):
        raise metrics.UndefinedMetricError("no click")
    return over_d - clicked.base_rate


def _crr(predictions: Predictions, outcome: Any) -> float:
    if predictions.truth.has_weights:
        raise _no_weights("a ratio of matched impressions")
    return metrics.causal_risk_ratio(predictions.clicks, predictions.of("ctr"), outcome)


def _crr_of_pcvr(predictions: Predictions, _: Setting) -> float:
    return _crr(predictions, predictions.of("cvr"))


def _crr_of_truth(predictions: Predictions, _: Setting) -> float:
    return _crr(predictions, _true_cvr(predictions))


def _pip(predictions: Predictions, setting: Setting) -> float:
    return _crr_of_pcvr(predictions, setting) - _crr_of_truth(predictions, setting)


_OF_PREDICTIONS: dict[str, Callable[[Predictions, Setting], float]] = {
    "CVR_MAE_ES": _mae,
    "IEB": _ieb,
    "CVR_Gap": _gap,
    "CVR_CRR": _crr_of_pcvr,
    "CVR_CRR_True": _crr_of_truth,
    "PIP": _pip,
}


def _value_of(metric: Metric) -> Callable[[Predictions, Setting], float]:
    if metric.name in _OF_PREDICTIONS:
        return _OF_PREDICTIONS[metric.name]
    statistic, space = _STATISTICS[statistic_of(metric.name)[0]], space_of(metric.name)
    return lambda predictions, setting: statistic(predictions.scored(space), setting)


SPECS: Mapping[str, MetricSpec] = {
    key: MetricSpec(**asdict(metric), value=_value_of(metric)) for key, metric in METRICS.items()
}


def spec_of(name: str) -> MetricSpec | None:
    """The metric of a name with its value, None for one of RecBole's."""
    metric = metric_of(name)
    if metric is None:
        return None
    if own_function(name):
        return MetricSpec(**asdict(metric), value=partial(_own_value, name))
    if (several := combined(name)) is not None:
        return MetricSpec(**asdict(metric), value=partial(_combined_value, several))
    return SPECS[metric.name.lower()]


def _combined_value(several: Combined, predictions: Predictions, setting: Setting) -> float:
    values = []
    for _, part in several.parts:
        spec = spec_of(part)
        assert spec is not None, "no part is RecBole's"
        values.append(spec.value(predictions, setting))
    return several.mean(values)


def _own_value(name: str, predictions: Predictions, _: Setting) -> float:
    """What a user's own function returns.

    Raises:
        UndefinedMetricError: the function raises that.
        UsageError: it fails in another way, or returns no finite number.
    """
    own = own_function(name)
    assert own is not None, "whoever calls has looked it up"
    function, marked = own
    value: Any
    try:
        parameters = signature(function).parameters
        if "predictions" in parameters:
            value = function(predictions)
        else:
            scored = predictions.scored(marked["space"])
            given = {"label": scored.label, "score": scored.score, "user": scored.user}
            given["weight"] = scored.weight
            if scored.weight is not None and "weight" not in parameters:
                raise _no_weights(name)
            value = function(**{k: _unwritable(given[k]) for k in given if k in parameters})
    except (metrics.UndefinedMetricError, NotPredictedError, UsageError):
        raise
    except Exception as error:
        files = [getattr(sys.modules.get(function.__module__), "__file__", None) or ""]
        place = place_in_own_code(error, files) or f"{type(error).__name__}: {error}"
        raise UsageError(f"metric {name}: {place}") from error
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not np.isreal(value) or not np.isfinite(value):
        raise UsageError(
            f"metric {name} has returned {value!r}, and must return a finite number, or raise "
            "recbole_escm2.evaluator.metrics.UndefinedMetricError where it has no value"
        )
    return float(value)


def _unwritable(column: Any) -> Any:
    """A view of a column: other metrics read the column itself."""
    if column is None:
        return None
    view = np.asarray(column).view()
    view.flags.writeable = False
    return view
