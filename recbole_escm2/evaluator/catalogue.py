"""Every metric by name: what it scores, over which rows, and which way is better."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_escm2.evaluator import metrics
from recbole_escm2.evaluator.predictions import NotPredictedError, Predictions, Scored

ALL_TASKS = ("ctr", "cvr", "ctcvr")
TOP_K = "@K"
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


@dataclass(frozen=True)
class MetricSpec:
    """A metric.

    Attributes:
        name: as it is shown; a top-K metric ends in ``@K``.
        task: the prediction it scores, one of :data:`ALL_TASKS`.
        value: the metric of predictions under a setting; raises ``UndefinedMetricError`` or
            ``NotPredictedError`` where there is none.
        smaller: whether a smaller value is better.
        target: the best value where that is neither the largest nor the smallest.
        ratio: whether half and twice the target are equally far from it.
        neutral: whether no value of it is better than another by itself.
    """

    name: str
    task: str
    value: Callable[[Predictions, Setting], float]
    smaller: bool = False
    target: float | None = None
    ratio: bool = False
    neutral: bool = False

    @property
    def judged_smaller(self) -> bool:
        """Whether what is judged, the value or its distance from the target, is better small."""
        return self.smaller or self.target is not None


# statistic: (its value on scored rows, smaller is better, target)
_STATISTICS: dict[str, tuple[Callable[[Scored, Setting], float], bool, float | None]] = {
    "AUC": (lambda rows, _: metrics.auc(rows.classes), False, None),
    "GAUC": (lambda rows, _: metrics.gauc(rows.ranking), False, None),
    "LogLoss": (lambda rows, _: metrics.log_loss(rows.classes), True, None),
    "PR_AUC": (lambda rows, _: metrics.pr_auc(rows.classes), False, None),
    "KS": (lambda rows, _: metrics.ks(rows.classes), False, None),
    "Recall": (lambda rows, s: metrics.recall(rows.classes, s.threshold_of(rows)), False, None),
    "F1": (lambda rows, s: metrics.f1(rows.classes, s.threshold_of(rows)), False, None),
    "PCOC": (lambda rows, _: metrics.pcoc(rows.classes), False, 1.0),
    "ECE": (lambda rows, s: metrics.ece(rows.classes, s.bins), True, None),
    "NDCG@K": (lambda rows, s: metrics.ndcg_at_k(rows.ranking, s.k), False, None),
    "Recall@K": (lambda rows, s: metrics.recall_at_k(rows.ranking, s.k), False, None),
}
#: Statistics of the impressions of each user.
PER_USER = ("GAUC", "NDCG@K", "Recall@K")
_ENTIRE_SPACE_STATISTICS = ("AUC", "LogLoss", "PR_AUC", "KS", "PCOC", "ECE")


def _true_cvr(predictions: Predictions) -> Any:
    if predictions.truth.true_cvr is None:
        raise NotPredictedError("the data doesn't hold the true CVR")
    return predictions.truth.true_cvr


def _mae(predictions: Predictions, _: Setting) -> float:
    return metrics.mean_absolute_error(_true_cvr(predictions), predictions.of("cvr"))


def _ieb(predictions: Predictions, _: Setting) -> float:
    return metrics.mean_difference(_true_cvr(predictions), predictions.of("cvr"))


def _gap(predictions: Predictions, _: Setting) -> float:
    over_d = float(np.mean(predictions.of("cvr"), dtype=np.float64))
    clicked = predictions.scored("cvr")
    if len(clicked.label) == 0:
        raise metrics.UndefinedMetricError("no click")
    return over_d - clicked.base_rate


def _crr(predictions: Predictions, outcome: Any) -> float:
    return metrics.causal_risk_ratio(predictions.truth.click, predictions.of("ctr"), outcome)


def _crr_of_pcvr(predictions: Predictions, _: Setting) -> float:
    return _crr(predictions, predictions.of("cvr"))


def _crr_of_truth(predictions: Predictions, _: Setting) -> float:
    return _crr(predictions, _true_cvr(predictions))


def _pip(predictions: Predictions, setting: Setting) -> float:
    return _crr_of_pcvr(predictions, setting) - _crr_of_truth(predictions, setting)


def _specs() -> dict[str, MetricSpec]:
    specs = []
    for space, task, suffix in (
        ("ctr", "ctr", ""),
        ("cvr", "cvr", ""),
        ("ctcvr", "ctcvr", ""),
        ("cvr_es", "cvr", "_ES"),
    ):
        for statistic, (value, smaller, target) in _STATISTICS.items():
            if suffix and statistic not in _ENTIRE_SPACE_STATISTICS:
                continue

            def of_predictions(
                predictions: Predictions,
                setting: Setting,
                value: Callable[[Scored, Setting], float] = value,
                space: str = space,
            ) -> float:
                return value(predictions.scored(space), setting)

            name = f"{task.upper()}_{statistic}{suffix}"
            ratio = statistic == "PCOC"
            specs.append(MetricSpec(name, task, of_predictions, smaller, target, ratio))
    specs += [
        # |pcvr - true CVR|, mean over D
        MetricSpec("CVR_MAE_ES", "cvr", _mae, smaller=True),
        # inherent estimation bias: mean pcvr - mean true CVR, over D
        MetricSpec("IEB", "cvr", _ieb, target=0.0),
        # mean pcvr over D - conversions per click: not a bias, as the click space is selected
        MetricSpec("CVR_Gap", "cvr", _gap, target=0.0),
        # causal risk ratio of click on pcvr, matched on pctr; on the true CVR; their difference,
        # potential independence priority: < 0 where pcvr depends less on the click than the truth
        MetricSpec("CVR_CRR", "cvr", _crr_of_pcvr, neutral=True),
        MetricSpec("CVR_CRR_True", "cvr", _crr_of_truth, neutral=True),
        MetricSpec("PIP", "cvr", _pip, target=0.0),
    ]
    return {spec.name.lower(): spec for spec in specs}


SPECS: Mapping[str, MetricSpec] = _specs()
#: Measures of CVR that verdicts are about by default, the best first.
PRIMARY_CVR = ("CVR_AUC_ES", "CVR_AUC")
METRIC_NAMES = tuple(spec.name for spec in SPECS.values())
# RecBole's own metrics of a label and a score; they score the task of predict().
_RECBOLE_METRICS = {"auc": "AUC", "logloss": "LogLoss", "mae": "MAE", "rmse": "RMSE"}
_RECBOLE_SMALLER = ("logloss", "mae", "rmse")


def _parse(name: str) -> tuple[str, str]:
    """The key in SPECS or RecBole's register, and what stands behind the @ ('' without one)."""
    key = name.strip().lower().replace("-", "_")
    stem, at, cut = key.partition("@")
    if at and f"{stem}@k" in SPECS:
        return f"{stem}@k", cut
    if not at and stem not in SPECS and f"{stem}@k" in SPECS:
        return f"{stem}@k", "k"
    return key, ""


def is_metric(name: str) -> bool:
    """Whether a metric of this name exists, here or (with a label and a score) in RecBole."""
    key, cut = _parse(name)
    if key in SPECS:
        return not cut or cut == "k" or (cut.isascii() and cut.isdigit() and int(cut) >= 1)
    return key in _RECBOLE_METRICS


def canonical_name(name: str) -> str:
    """The name as it is shown; ``CTR_NDCG`` is ``CTR_NDCG@K``, for every K of ``topk``.

    Raises:
        KeyError: there is no such metric.
    """
    key, cut = _parse(name)
    if key not in SPECS:
        return _RECBOLE_METRICS[key]
    shown = SPECS[key].name
    return shown if cut in ("", "k") else f"{shown[:-1]}{int(cut)}"


def primary_metrics(defined: Collection[str], asked: Sequence[str] | None = None) -> list[str]:
    """The metrics that verdicts are about: those that a user names in advance, or two.

    The two are CTCVR_AUC and the best measure of CVR that the data defines: over all impressions
    where it holds potential conversions, else over the clicked ones.

    Args:
        defined: names of the metrics that have a value.
        asked: config ``primary``.
    """
    return list(asked or ["CTCVR_AUC", next(m for m in PRIMARY_CVR if m in (*defined, "CVR_AUC"))])


def spec_of(name: str) -> MetricSpec | None:
    """The metric of a name, None for one of RecBole's."""
    return SPECS.get(_parse(name)[0])


def task_of(name: str) -> str | None:
    """The task that a metric scores, None for one of RecBole's."""
    spec = spec_of(name)
    return spec.task if spec else None


def target_of(name: str) -> float | None:
    """The best value of a metric that is best neither large nor small."""
    spec = spec_of(name)
    return spec.target if spec else None


def bigger_is_better(name: str) -> bool:
    """The direction of a metric; one with a target is judged by its distance from it."""
    spec = spec_of(name)
    if spec is None:
        return name.lower() not in _RECBOLE_SMALLER
    return not spec.judged_smaller


def is_neutral(name: str) -> bool:
    """Whether a metric knows no better or worse by itself."""
    spec = spec_of(name)
    return spec is not None and spec.neutral


def is_per_user(name: str) -> bool:
    """Whether a metric looks at each user's impressions by themselves."""
    spec = spec_of(name)
    return spec is not None and spec.name.partition("_")[2] in PER_USER


def score_of(name: str, value: float) -> float:
    """What a model is chosen by: the value of a metric, or its distance from the target.

    Of a ratio (PCOC) that is |log(value/target)|: 0.5 is as far from 1 as 2.0, and 0 or infinity
    are further than any other value, at a finite distance.
    """
    spec = spec_of(name)
    if spec is None or spec.target is None:
        return value
    if spec.ratio:
        ends = sys.float_info
        return abs(math.log(min(max(value / spec.target, ends.min), ends.max)))
    return abs(value - spec.target)


def expand(names: list[str], topk: list[int]) -> dict[str, int]:
    """Each metric to compute with its K: ``X@K`` once for every K of ``topk``; 0: it has none."""
    expanded: dict[str, int] = {}
    for name in map(canonical_name, names):
        stem, at, cut = name.partition("@")
        if not at:
            expanded[name] = 0
        else:
            for k in topk if cut == "K" else [int(cut)]:
                expanded[f"{stem}@{k}"] = k
    return expanded
