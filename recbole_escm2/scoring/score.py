"""Every metric of predictions that were made elsewhere, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.evaluator.catalogue import Setting
from recbole_escm2.evaluator.curves import calibration
from recbole_escm2.evaluator.intervals import (
    Difference,
    Differences,
    Intervals,
    differences,
    intervals,
)
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.evaluator.summary import scope_notes
from recbole_escm2.experiment.statistics import ALPHA, Estimate, holm
from recbole_escm2.metric_names import (
    ALL_TASKS,
    METRIC_NAMES,
    bigger_is_better,
    direction,
    expand,
    is_metric,
    is_neutral,
    is_per_user,
    own_names,
    primary_metrics,
    target_of,
)
from recbole_escm2.own_code import import_own_metric, with_names
from recbole_escm2.property_files import PROPERTIES, read_yaml
from recbole_escm2.scoring.options import COLUMNS
from recbole_escm2.scoring.read import Given, read

#: The row that knows nothing but how often things happen.
CONSTANT = "constant"
_OF_CONSTANT = ("_LogLoss", "_LogLoss_ES", "_PR_AUC", "_MAE_ES", "IEB", "_Gap")
ABOUT_ROWS = (
    "Intervals and verdicts are about other rows of this kind, with these predictions as they are: "
    "what training the models once more would do is not in them."
)


@dataclass(frozen=True)
class Options:
    """How predictions are scored.

    Attributes:
        key: columns that pair up the rows of two tables; none: rows pair up as they stand.
        baseline: the model that the others are compared with; the first by default.
        metrics: names; by default those of a run.
        primary: what verdicts are about, one or two metrics; by default CTCVR_AUC, and CVR_AUC_ES
            or, without potential conversions, CVR_AUC.
        topk: K of the metrics that end in @K.
        decision_threshold: probability from which F1 and Recall predict a positive, of all tasks
            or by task; by default the share of positives of each task in these rows.
        calibration_bins: of ECE.
        columns: names of columns, by the keys of ``scoring.options.COLUMNS``.
    """

    key: Sequence[str] = ()
    baseline: str | None = None
    metrics: Sequence[str] | None = None
    primary: Sequence[str] | None = None
    topk: Sequence[int] = (10,)
    decision_threshold: float | Mapping[str, float] | None = None
    calibration_bins: int = 10
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*(self.metrics or ()), *(self.primary or ())]
        for name in names:
            if not is_metric(name):
                raise UsageError(f"there is no metric '{name}'{did_you_mean(name, METRIC_NAMES)}")
        if not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in self.topk):
            raise UsageError(f"topk must be whole numbers above 0, got {list(self.topk)}")
        if not isinstance(self.calibration_bins, int) or self.calibration_bins < 1:
            raise UsageError(
                f"calibration_bins must be a whole number above 0, got {self.calibration_bins!r}"
            )
        given = self.decision_threshold
        by_task = given if isinstance(given, Mapping) else {} if given is None else {"ctr": given}
        for task, value in by_task.items():
            if task not in ALL_TASKS or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UsageError(
                    "decision_threshold must be a probability, or one for each of "
                    f"{', '.join(ALL_TASKS)}, got {given!r}"
                )


@dataclass(frozen=True)
class Compared:
    """A model against the baseline, in one metric.

    Attributes:
        difference: model less baseline, on the same rows.
        p: of the two-sided test, in primary metrics.
        p_adjusted: after Holm's correction over all of them.
        verdict: ``better``, ``worse`` or ``undecided`` in primary metrics, else None.
    """

    difference: Difference
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Scores:
    """What came out.

    Attributes:
        values: metrics with intervals by model, in the order in which they were given; the last
            is the constant prediction.
        comparisons: by model and metric, with the baseline.
        baseline: the model that the others are compared with.
        primary: the metrics that verdicts are about.
        skill: share of the constant prediction's log loss that a model takes off, by model and
            metric; below 0 it is worse than a constant.
        curves: calibration by model and space, as ``evaluator.curves.calibration`` has it.
        counts: impressions, clicks, conversions, users and items.
        notes: what to know, in sentences.
    """

    values: Mapping[str, Intervals]
    comparisons: Mapping[str, Mapping[str, Compared]]
    baseline: str
    primary: Sequence[str]
    skill: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    counts: Mapping[str, int]
    notes: Sequence[str]

    @property
    def table(self) -> pd.DataFrame:
        """A line a model and metric: value, ends of the interval, skill, and why one is missing."""
        lines = []
        for model, own in self.values.items():
            for metric, (value, low, high) in own.items():
                lines.append(
                    {
                        **{"model": model, "metric": metric, "direction": direction(metric)},
                        **{"value": value, "low": low, "high": high},
                        "skill": self.skill.get(model, {}).get(metric, np.nan),
                        "note": own.unknown.get(metric, ""),
                    }
                )
            lines += [
                {"model": model, "metric": metric, "direction": direction(metric), "note": why}
                for metric, why in own.undefined.items()
            ]
        columns = ["model", "metric", "direction", "value", "low", "high", "skill", "note"]
        return pd.DataFrame(lines, columns=columns)

    @property
    def comparison(self) -> pd.DataFrame:
        """A line a model and metric: its difference from the baseline, and the verdict."""
        lines = [
            {
                **{"model": model, "baseline": self.baseline, "metric": metric},
                **{"direction": direction(metric), "difference": one.difference.value},
                **{"low": one.difference.low, "high": one.difference.high, "p": one.p},
                **{"p_adjusted": one.p_adjusted, "verdict": one.verdict},
                "primary": metric in self.primary,
            }
            for model, own in self.comparisons.items()
            for metric, one in own.items()
        ]
        columns = ["model", "baseline", "metric", "direction", "difference", "low", "high", "p"]
        return pd.DataFrame(lines, columns=[*columns, "p_adjusted", "verdict", "primary"])

    @property
    def calibration(self) -> pd.DataFrame:
        """A line a bin: its rows, mean prediction and share of positives, by model and space."""
        frames = [
            pd.DataFrame({"model": model, "space": space, **bins})
            for model, curves in self.curves.items()
            for space, bins in curves.items()
        ]
        empty = pd.DataFrame(columns=["model", "space", "rows", "predicted", "observed"])
        return pd.concat(frames, ignore_index=True) if frames else empty

    def report(self, folder: str | Path) -> dict[str, Path]:
        """Write the page, tables and data; see :func:`recbole_escm2.scoring.show.report`."""
        from recbole_escm2.scoring.show import report

        return report(self, folder)

    def __str__(self) -> str:
        from recbole_escm2.scoring.show import text

        return text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from recbole_escm2.scoring.show import fragment

        return fragment(self)


def score(labels: Any, predictions: Any = None, **options: Any) -> Scores:
    """Score predictions, whoever made them.

    Args:
        labels: a table (of pandas, Polars or Arrow) or the path of one (Parquet, CSV, Arrow,
            Feather) with the columns ``click`` and ``conversion``, and as far as they are known
            ``user_id``, ``item_id``, ``potential_conversion``, ``true_ctr``, ``true_cvr``; None:
            the first table of predictions has them.
        predictions: a table or path with the columns ``pctr``, ``pcvr`` and ``pctcvr``, or some of
            them (``pctr_NAME`` and the like for several models in one); several are a list of
            paths, or a mapping of names to tables or paths. None: they are in the table of labels.
        **options: attributes of :class:`Options`, and names of columns: ``CLICK_FIELD="clicked"``,
            ``pctr="score"``.

    Raises:
        UsageError: something is missing, no label, no probability, or doesn't pair up.
    """
    columns = {name: options.pop(name) for name in COLUMNS if name in options}
    known = [name for name in Options.__dataclass_fields__ if name != "columns"]
    for name in options:
        if name not in known:
            similar = did_you_mean(name, [*known, *COLUMNS])
            raise UsageError(f"score knows no {name}{similar}")
    for name in ("key", "metrics", "primary", "topk"):
        if isinstance(options.get(name), str | int) or callable(options.get(name)):
            options[name] = [options[name]]
    for key in ("metrics", "primary"):
        if options.get(key):
            options[key] = with_names(options[key])
            for name in own_names(options[key]):
                import_own_metric(name)
    chosen = Options(columns=columns, **options)
    if predictions is None:
        labels, predictions = None, labels
    given = read(labels, named(predictions), columns, list(chosen.key))
    return scores(given, chosen)


def named(predictions: Any) -> dict[str, Any]:
    """Tables or paths by name: those of paths are their stems, or folders where stems are alike.

    Raises:
        UsageError: there are none, or tables have no names.
    """
    if isinstance(predictions, Mapping):
        if not predictions:
            raise UsageError("there are no predictions to score")
        return {str(name): source for name, source in predictions.items()}
    if not isinstance(predictions, list | tuple):
        predictions = [predictions]
    paths = [Path(one) for one in predictions if isinstance(one, str | Path)]
    if len(paths) < len(predictions):
        if len(predictions) > 1:
            raise UsageError("several tables in memory need names: {'mine': table, ...}")
        return {"model": predictions[0]}
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [path.absolute().parent.name for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("files of the same name and folder need names: NAME=FILE,NAME=FILE")
    return dict(zip(names, paths, strict=True))


def scores(given: Given, options: Options) -> Scores:
    """Score what was read.

    Raises:
        UsageError: there is no such baseline, or a primary metric that has no value.
    """
    baseline = _baseline(given, options)
    models = {name: _decided(own, options) for name, own in given.models.items()}
    constant = _constant(next(iter(models.values())))
    setting = Setting(bins=options.calibration_bins)
    metrics = _names(options)
    values = {
        model: intervals(own, metrics, setting, item=given.item) for model, own in models.items()
    }
    shared = [m for m in metrics if m.endswith(_OF_CONSTANT)]
    values[CONSTANT] = intervals(constant, shared, setting, item=given.item)
    for own in values.values():
        _hide_defaults(own, options, constant.truth.user is not None)
    compared = {
        model: differences(own, models[baseline], list(values[model]), setting, item=given.item)
        for model, own in models.items()
        if model != baseline
    }
    defined = {metric for model in models for metric in values[model]}
    if not defined:
        reasons = {why for model in models for why in values[model].undefined.values()}
        raise UsageError(
            "nothing can be scored: "
            + ("; ".join(sorted(reasons)) or "no column of labels is what a prediction is about")
        )
    primary = _expanded(primary_metrics(defined, options.primary), options)
    primary = [metric for metric in primary if metric in defined]
    skill = _skill(values)
    notes = _notes(values, compared, primary, skill, options, models)
    return Scores(
        values,
        _verdicts(compared, primary),
        baseline,
        primary,
        skill,
        {model: calibration(own) for model, own in models.items()},
        _counts(given),
        [*given.notes, *notes],
    )


def _baseline(given: Given, options: Options) -> str:
    names = list(given.models)
    if options.baseline is not None and options.baseline not in names:
        raise UsageError(
            f"there is no model '{options.baseline}'{did_you_mean(options.baseline, names)} to be "
            f"the baseline; there are {', '.join(names)}"
        )
    if CONSTANT in names:
        raise UsageError(f"'{CONSTANT}' is the name of the constant prediction: choose another")
    return options.baseline or names[0]


def _names(options: Options) -> list[str]:
    chosen = options.metrics or read_yaml(PROPERTIES / "overall.yaml")["metrics"]
    return _expanded([*chosen, *(options.primary or ())], options)


def _expanded(names: Sequence[str], options: Options) -> list[str]:
    """Each as it is shown, ``X@K`` once for every K."""
    return list(expand(list(names), list(options.topk)))


def _decided(predictions: Predictions, options: Options) -> Predictions:
    """With the threshold of each task, where metrics look for the share of positives in train."""
    given = options.decision_threshold
    rates = predictions.truth.base_rates()
    if isinstance(given, Mapping):
        rates |= given
    elif given is not None:
        rates = dict.fromkeys(ALL_TASKS, float(given))
    return Predictions(replace(predictions.truth, train_rate=rates), predictions.score)


def _constant(predictions: Predictions) -> Predictions:
    """The share of positives of each task in these rows, whatever the impression."""
    truth = predictions.truth
    rates = truth.base_rates()
    rows = len(truth.click)
    return Predictions(
        truth, {task: np.full(rows, rates[task]) for task in predictions.score if task in rates}
    )


def _hide_defaults(values: Intervals, options: Options, with_users: bool) -> None:
    """Leave out why a metric has no value that nobody asked for, where it can have none here."""
    if options.metrics is None:
        requested = _expanded(options.primary or (), options)
        for metric in [m for m in values.undefined if m not in requested]:
            if metric in values.lacking or (is_per_user(metric) and not with_users):
                del values.undefined[metric]


def _verdicts(
    compared: Mapping[str, Differences], primary: Sequence[str]
) -> dict[str, dict[str, Compared]]:
    """Differences with their tests, corrected over all models and primary metrics."""
    tested = {
        (model, metric): Estimate(own[metric].value, own[metric].error, own[metric].freedom).p
        for model, own in compared.items()
        for metric in primary
        if metric in own and np.isfinite(own[metric].error) and not is_neutral(metric)
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True)) if tested else {}
    result: dict[str, dict[str, Compared]] = {}
    for model, own in compared.items():
        result[model] = {}
        for metric, difference in own.items():
            p = tested.get((model, metric))
            adjusted = corrected.get((model, metric))
            verdict = None
            if adjusted is not None:
                larger = target_of(metric) is None and bigger_is_better(metric)
                gain = (difference.value > 0) == larger
                verdict = "undecided" if adjusted >= ALPHA else "better" if gain else "worse"
            result[model][metric] = Compared(difference, p, adjusted, verdict)
    return result


def _skill(values: Mapping[str, Intervals]) -> dict[str, dict[str, float]]:
    constant = values[CONSTANT]
    return {
        model: {
            metric: 1 - value / constant[metric].value
            for metric, (value, _, _) in own.items()
            if metric.endswith("_LogLoss") and metric in constant and constant[metric].value
        }
        for model, own in values.items()
        if model != CONSTANT
    }


def _counts(given: Given) -> dict[str, int]:
    truth = next(iter(given.models.values())).truth
    counts = truth.counts()
    for name, ids in (("users", truth.user), ("items", given.item)):
        if ids is not None:
            counts[name] = len(np.unique(ids[ids != 0]))
    return counts


def _notes(
    values: Mapping[str, Intervals],
    compared: Mapping[str, Differences],
    primary: Sequence[str],
    skills: Mapping[str, Mapping[str, float]],
    options: Options,
    models: Mapping[str, Predictions],
) -> list[str]:
    """What to know about the numbers."""
    metrics = list(dict.fromkeys(metric for model in models for metric in values[model]))
    notes = [ABOUT_ROWS]
    if compared and not primary:
        notes.append(
            "There is no verdict, as no primary metric has a value here: --primary=METRIC names "
            "what verdicts are to be about."
        )
    elif compared:
        notes.append(
            f"Verdicts are about {' and '.join(primary)} alone, p < {ALPHA:.2g} after Holm's "
            "correction over models and metrics; in other columns an interval without 0 is none."
        )
    notes.append(
        f"{CONSTANT}: the share of positives of these rows, for every row. Skill is the share of "
        "its log loss that a model takes off."
    )
    for model in models:
        for metric, skill in skills[model].items():
            if skill < 0:
                notes.append(f"{model} is worse than the constant prediction in {metric}.")
    notes += scope_notes(metrics)
    if any(name.endswith(("_F1", "_Recall")) for name in metrics):
        whose = "these rows" if options.decision_threshold is None else "decision_threshold"
        rates = next(iter(models.values())).truth.train_rate
        shown = ", ".join(f"{task.upper()} {value:.4g}" for task, value in rates.items())
        notes.append(f"F1 and Recall predict a positive from a probability of {shown} ({whose}).")
    user = next(iter(models.values())).truth.user
    if user is not None and any(map(is_per_user, metrics)) and (none := int((user == 0).sum())):
        notes.append(f"Metrics by user leave out {none:,} rows that have no user id.")
    for model, own in values.items():
        if model == CONSTANT:
            continue
        notes += [f"{model}: {m} is left out: {why}." for m, why in own.undefined.items()]
    return notes
