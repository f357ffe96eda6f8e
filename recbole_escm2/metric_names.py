"""Metrics by name: which task each scores and which way is better. How: ``evaluator``.

A name is one of :data:`METRICS`, one of RecBole's, ``path.to.module:function`` for a function that
:func:`metric` marks (found where the module is loaded already: no look-up imports anything), or
several of these with weights, ``0.7*CTCVR_AUC+0.3*CTR_AUC`` (:class:`Combined`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
#: Spaces of metrics over the clicked impressions.
OF_CLICKS = ("cvr", f"cvr{RANDOM_IMPRESSIONS.lower()}")
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
#: Other names of metrics in the literature. PIP, potential independence priority in ESCM² (SIGIR
#: 2022), is FIP, false independence prior, in its extended version (arXiv 2210.11039). IEB is short
#: for inherent estimation bias in the one and for intrinsic estimation bias in the other.
ALSO_CALLED = {"fip": "pip"}
#: Measures of CVR that verdicts are about by default, the best first.
PRIMARY_CVR = ("CVR_AUC_ES", "CVR_AUC")
METRIC_NAMES = tuple(metric.name for metric in METRICS.values())
# RecBole's own metrics of a label and a score; they score the task of predict().
_RECBOLE_METRICS = {"auc": "AUC", "logloss": "LogLoss", "mae": "MAE", "rmse": "RMSE"}
_RECBOLE_SMALLER = ("logloss", "mae", "rmse")


# --------------------------------------------------------------------------- of one's own

_MARK = "entire_space_metric"
#: What a function that is a metric may take.
ARGUMENTS = ("label", "score", "user", "predictions")
#: Config keys, and one of benchmarks, that name metrics.
METRIC_KEYS = ("metrics", "valid_metric", "primary", "columns")


def metric(
    task: str = "ctcvr",
    bigger: bool = True,
    target: float | None = None,
    entire_space: bool = False,
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Mark a function as a metric, which is then named ``path.to.module:function``.

    The function takes ``label`` and ``score``, and ``user`` if it has such a parameter: arrays of
    the rows that the task is scored on, ``[N]``, that can't be written into; or one parameter
    ``predictions``, a :class:`~recbole_escm2.evaluator.predictions.Predictions`. A parameter
    ``weight`` gets the weights of the rows, or None; with ``weighted_metrics`` a function of labels
    and scores without it is left out. It returns a finite number, or raises
    ``UndefinedMetricError`` where there is none.

    Args:
        task: whose prediction it scores, ``ctr``, ``cvr`` or ``ctcvr``.
        bigger: whether a larger value is better.
        target: the best value, where that is neither the largest nor the smallest.
        entire_space: for ``cvr``: over all impressions, against their potential conversions.

    Raises:
        ValueError: there is no such task, or ``entire_space`` isn't of ``cvr``.
    """
    if task not in ALL_TASKS:
        raise ValueError(f"task must be one of {', '.join(ALL_TASKS)}, got {task!r}")
    if entire_space and task != "cvr":
        raise ValueError("entire_space is for task cvr, whose label clicks select")

    def mark(function: Callable[..., float]) -> Callable[..., float]:
        space = "cvr_es" if entire_space else task
        setattr(function, _MARK, {"task": task, "space": space, "smaller": not bigger})
        getattr(function, _MARK)["target"] = target
        return function

    return mark


def own_function(name: str) -> tuple[Callable[..., float], Mapping[str, Any]] | None:
    """A marked function of a loaded module, and what it was marked with."""
    module, colon, attribute = name.strip().partition(":")
    function = getattr(sys.modules.get(module), attribute, None) if colon else None
    marked = getattr(function, _MARK, None)
    return None if function is None or not isinstance(marked, dict) else (function, marked)


def name_of(function: Any) -> str:
    """What a marked function is named by; text as it is."""
    if isinstance(function, str):
        return function
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', function)}"


def own_names(value: Any) -> Iterator[str]:
    """The names of functions in what a key of :data:`METRIC_KEYS` holds."""
    if isinstance(value, Mapping):
        value = list(value)
    texts = value if isinstance(value, list | tuple) else str(value or "").strip("[]").split(",")
    for text in texts:
        for part in str(text).split("+"):
            if ":" in (name := part.rpartition("*")[2].strip(" '\"")):
                yield name


# --------------------------------------------------------------------------- several as one


@dataclass(frozen=True)
class Combined:
    """Several metrics as one: the weighted mean of what each is judged by, larger being better.

    A metric counts with its value; one that is better small with its negative, and one with a
    target with its distance from that (of a ratio, of the logarithm), negative.

    Attributes:
        parts: weight, above 0, and name of each metric.
    """

    parts: Sequence[tuple[float, str]]

    @property
    def name(self) -> str:
        """As it is shown: without weights where none are needed."""
        alike = len({weight for weight, _ in self.parts}) == len(self.scales) == 1
        return "+".join(n if alike else f"{weight:g}*{n}" for weight, n in self.parts)

    @property
    def scales(self) -> set[str]:
        """The statistics that the metrics are: those of one are on one scale."""
        return {statistic_of(name)[0] or name for _, name in self.parts}

    def mean(self, values: Sequence[float]) -> float:
        """Of the values of the metrics, in their order."""
        total = math.fsum(weight for weight, _ in self.parts)
        judged = (
            weight * (1 if bigger_is_better(name) else -1) * score_of(name, value)
            for (weight, name), value in zip(self.parts, values, strict=True)
        )
        return math.fsum(judged) / total


def combined(name: str) -> Combined | None:
    """Several metrics with weights, None for one metric.

    Raises:
        ValueError: they can't be combined; the message says why.
    """
    if "+" not in name:
        return None
    parts = []
    for part in name.split("+"):
        weight, times, own = part.strip().rpartition("*")
        try:
            number = float(weight) if times else 1.0
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"the weight {weight!r} must be a number above 0")
        own = own.strip()
        if not is_metric(own):
            raise ValueError(f"there is no metric {own!r}")
        if metric_of(own) is None:
            raise ValueError(f"{own} is RecBole's: name it with its task, CTCVR_{own} for example")
        if is_neutral(own) or "@" in canonical_name(own):
            why = "knows no better or worse" if is_neutral(own) else "is one metric for each K"
            raise ValueError(f"{own} {why}")
        parts.append((number, canonical_name(own)))
    if len({own for _, own in parts}) < len(parts):
        raise ValueError("a metric stands there twice")
    several = Combined(parts)
    if len(several.scales) > 1 and not all("*" in part for part in name.split("+")):
        listed = ", ".join(sorted(several.scales))
        raise ValueError(
            f"{listed} have scales of their own, so that each needs a weight: "
            + "+".join(f"1*{own}" for _, own in parts)
        )
    return several


def _combined(name: str) -> Combined | None:
    """Several metrics that can be combined."""
    try:
        return combined(name)
    except ValueError:
        return None


def _parse(name: str) -> tuple[str, str]:
    """The key in METRICS or RecBole's register, and what stands behind the @ ('' without one)."""
    key = name.strip().lower().replace("-", "_")
    key = ALSO_CALLED.get(key, key)
    stem, at, cut = key.partition("@")
    if at and f"{stem}@k" in METRICS:
        return f"{stem}@k", cut
    if not at and stem not in METRICS and f"{stem}@k" in METRICS:
        return f"{stem}@k", "k"
    return key, ""


def is_metric(name: str) -> bool:
    """Whether a metric of this name exists, here or (with a label and a score) in RecBole."""
    if own_function(name) or _combined(name):
        return True
    key, cut = _parse(name)
    if key in METRICS:
        return not cut or cut == "k" or (cut.isascii() and cut.isdigit() and int(cut) >= 1)
    return key in _RECBOLE_METRICS


def canonical_name(name: str) -> str:
    """The name as it is shown; ``CTR_NDCG`` is ``CTR_NDCG@K``, for every K of ``topk``.

    Raises:
        KeyError: there is no such metric.
    """
    if own_function(name):
        return name.strip()
    if (several := _combined(name)) is not None:
        return several.name
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
    """The metric of a name, None for one of RecBole's; of several tasks it has the task ''."""
    if (own := own_function(name)) is not None:
        marked = own[1]
        kind = {key: marked[key] for key in ("task", "smaller", "target")}
        return Metric(name.strip(), **kind)
    if (several := _combined(name)) is not None:
        tasks = {task_of(part) for _, part in several.parts}
        return Metric(several.name, (tasks.pop() or "") if len(tasks) == 1 else "")
    return METRICS.get(_parse(name)[0])


def statistic_of(name: str) -> tuple[str, str]:
    """The statistic in a shown name, and what ends that: CVR_PR_AUC_ES has PR_AUC and _ES.

    A function of one's own and several metrics as one have none.
    """
    if ":" in name or "+" in name:
        return "", ""
    statistic = name.partition("_")[2]
    for suffix in (ENTIRE_SPACE, RANDOM_IMPRESSIONS):
        if statistic.endswith(suffix):
            return statistic.removesuffix(suffix), suffix
    return statistic, ""


def space_of(name: str) -> str:
    """What a shown name is over, as in ``Predictions.scored``: CVR_PR_AUC_ES is over cvr_es."""
    metric = metric_of(name)
    return f"{metric.task}{statistic_of(metric.name)[1].lower()}" if metric else ""


def task_of(name: str) -> str | None:
    """The task that a metric scores, None for one of RecBole's or of several tasks."""
    metric = metric_of(name)
    return (metric.task or None) if metric else None


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


def direction(name: str) -> str:
    """``higher``, ``lower``, ``target X``, or nothing where no value is better by itself."""
    if is_neutral(name):
        return ""
    target = target_of(name)
    if target is not None:
        return f"target {target:g}"
    return "higher" if bigger_is_better(name) else "lower"


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
