"""Metrics by name: which task each scores and which way is better. How: ``evaluator``."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

ALL_TASKS = ("ctr", "cvr", "ctcvr")
TOP_K = "@K"


@dataclass(frozen=True)
class Metric:
    """What a metric is called, and how its values are judged.

    Attributes:
        name: as it is shown; a top-K metric ends in ``@K``.
        task: the prediction it scores, one of :data:`ALL_TASKS`.
        smaller: whether a smaller value is better.
        target: the best value where that is neither the largest nor the smallest.
        ratio: whether half and twice the target are equally far from it.
        neutral: whether no value of it is better than another by itself.
    """

    name: str
    task: str
    smaller: bool = False
    target: float | None = None
    ratio: bool = False
    neutral: bool = False

    @property
    def judged_smaller(self) -> bool:
        """Whether what is judged, the value or its distance from the target, is better small."""
        return self.smaller or self.target is not None


_STATISTICS = (
    *("AUC", "GAUC", "LogLoss", "PR_AUC", "KS", "Recall", "F1", "PCOC", "ECE", "NDCG@K"),
    "Recall@K",
)
_SMALLER = ("LogLoss", "ECE")
_RATIO = "PCOC"  # predicted by observed positives, best at 1
#: Statistics of the impressions of each user.
PER_USER = ("GAUC", "NDCG@K", "Recall@K")
#: What ends the name of a metric over all impressions, clicked or not.
ENTIRE_SPACE = "_ES"
#: What ends the name of a metric over impressions that were drawn at random.
RANDOM_IMPRESSIONS = "_RI"
_OF_ANY_IMPRESSIONS = tuple(name for name in _STATISTICS if not name.endswith(TOP_K))
_ENTIRE_SPACE_STATISTICS = ("AUC", "LogLoss", "PR_AUC", "KS", "PCOC", "ECE")


def _metrics() -> dict[str, Metric]:
    metrics = [
        Metric(
            f"{task.upper()}_{statistic}{suffix}",
            task,
            smaller=statistic in _SMALLER,
            target=1.0 if statistic == _RATIO else None,
            ratio=statistic == _RATIO,
        )
        for task, suffix, statistics in (
            *((task, "", _STATISTICS) for task in ALL_TASKS),
            ("cvr", ENTIRE_SPACE, _ENTIRE_SPACE_STATISTICS),
            *((task, RANDOM_IMPRESSIONS, _OF_ANY_IMPRESSIONS) for task in ALL_TASKS),
        )
        for statistic in statistics
    ]
    metrics += [
        # |pcvr - true CVR|, mean over D
        Metric("CVR_MAE_ES", "cvr", smaller=True),
        # inherent estimation bias: mean pcvr - mean true CVR, over D
        Metric("IEB", "cvr", target=0.0),
        # mean pcvr over D - conversions per click: not a bias, as the click space is selected
        Metric("CVR_Gap", "cvr", target=0.0),
        # causal risk ratio of click on pcvr, matched on pctr; on the true CVR; their difference,
        # potential independence priority: < 0 where pcvr depends less on the click than the truth
        Metric("CVR_CRR", "cvr", neutral=True),
        Metric("CVR_CRR_True", "cvr", neutral=True),
        Metric("PIP", "cvr", target=0.0),
    ]
    return {metric.name.lower(): metric for metric in metrics}


#: Every metric of ours by its name in lower case.
METRICS: Mapping[str, Metric] = _metrics()
#: Measures of CVR that verdicts are about by default, the best first.
PRIMARY_CVR = ("CVR_AUC_ES", "CVR_AUC")
METRIC_NAMES = tuple(metric.name for metric in METRICS.values())
# RecBole's own metrics of a label and a score; they score the task of predict().
_RECBOLE_METRICS = {"auc": "AUC", "logloss": "LogLoss", "mae": "MAE", "rmse": "RMSE"}
_RECBOLE_SMALLER = ("logloss", "mae", "rmse")


def _parse(name: str) -> tuple[str, str]:
    """The key in METRICS or RecBole's register, and what stands behind the @ ('' without one)."""
    key = name.strip().lower().replace("-", "_")
    stem, at, cut = key.partition("@")
    if at and f"{stem}@k" in METRICS:
        return f"{stem}@k", cut
    if not at and stem not in METRICS and f"{stem}@k" in METRICS:
        return f"{stem}@k", "k"
    return key, ""


def is_metric(name: str) -> bool:
    """Whether a metric of this name exists, here or (with a label and a score) in RecBole."""
    key, cut = _parse(name)
    if key in METRICS:
        return not cut or cut == "k" or (cut.isascii() and cut.isdigit() and int(cut) >= 1)
    return key in _RECBOLE_METRICS


def canonical_name(name: str) -> str:
    """The name as it is shown; ``CTR_NDCG`` is ``CTR_NDCG@K``, for every K of ``topk``.

    Raises:
        KeyError: there is no such metric.
    """
    key, cut = _parse(name)
    if key not in METRICS:
        return _RECBOLE_METRICS[key]
    shown = METRICS[key].name
    return shown if cut in ("", "k") else f"{shown[:-1]}{int(cut)}"


def primary_metrics(defined: Collection[str], named: Sequence[str] | None = None) -> list[str]:
    """The metrics that verdicts are about: those that a user names in advance, or two.

    The two are CTCVR_AUC and the best measure of CVR that the data defines: over all impressions
    where it holds potential conversions, else over the clicked ones.

    Args:
        defined: names of the metrics that have a value.
        named: config ``primary``.
    """
    return list(named or ["CTCVR_AUC", next(m for m in PRIMARY_CVR if m in (*defined, "CVR_AUC"))])


def metric_of(name: str) -> Metric | None:
    """The metric of a name, None for one of RecBole's."""
    return METRICS.get(_parse(name)[0])


def statistic_of(name: str) -> tuple[str, str]:
    """The statistic in a shown name, and what ends that: CVR_PR_AUC_ES has PR_AUC and _ES."""
    statistic = name.partition("_")[2]
    for suffix in (ENTIRE_SPACE, RANDOM_IMPRESSIONS):
        if statistic.endswith(suffix):
            return statistic.removesuffix(suffix), suffix
    return statistic, ""


def task_of(name: str) -> str | None:
    """The task that a metric scores, None for one of RecBole's."""
    metric = metric_of(name)
    return metric.task if metric else None


def target_of(name: str) -> float | None:
    """The best value of a metric that is best neither large nor small."""
    metric = metric_of(name)
    return metric.target if metric else None


def is_ratio(name: str) -> bool:
    """Whether half and twice a metric's target are equally far from it."""
    metric = metric_of(name)
    return metric is not None and metric.ratio


def bigger_is_better(name: str) -> bool:
    """The direction of a metric; one with a target is judged by its distance from it."""
    metric = metric_of(name)
    if metric is None:
        return name.lower() not in _RECBOLE_SMALLER
    return not metric.judged_smaller


def is_neutral(name: str) -> bool:
    """Whether a metric knows no better or worse by itself."""
    metric = metric_of(name)
    return metric is not None and metric.neutral


def is_per_user(name: str) -> bool:
    """Whether a metric looks at each user's impressions by themselves."""
    metric = metric_of(name)
    return metric is not None and statistic_of(metric.name)[0] in PER_USER


def score_of(name: str, value: float) -> float:
    """What a model is chosen by: the value of a metric, or its distance from the target.

    Of a ratio (PCOC) that is |log(value/target)|: 0.5 is as far from 1 as 2.0, and 0 or infinity
    are further than any other value, at a finite distance.
    """
    metric = metric_of(name)
    if metric is None or metric.target is None:
        return value
    if metric.ratio:
        ends = sys.float_info
        return abs(math.log(min(max(value / metric.target, ends.min), ends.max)))
    return abs(value - metric.target)


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
