"""What a benchmark compared, and what came out: all that its reports are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.evaluator.clusters import Noise, cluster_variance
from recbole_escm2.evaluator.influence import Influence, NoInfluenceError
from recbole_escm2.experiment.statistics import (
    Cell,
    Comparison,
    Design,
    Draws,
    cost,
    tabulate,
)
from recbole_escm2.metric_names import primary_metrics

#: Shown by default, where the models and the data have them.
DEFAULT_COLUMNS = (
    "CTR_AUC",
    "CVR_AUC",
    "CTCVR_AUC",
    "CTR_LogLoss",
    "CTCVR_LogLoss",
    "CVR_PCOC",
    "CVR_AUC_ES",
    "CVR_LogLoss_ES",
    "CVR_MAE_ES",
    "IEB",
    "PIP",
)


#: Models that learn nothing: the base rates and the true probabilities.
BOUNDS = ("Constant", "Oracle")


@dataclass(frozen=True)
class Row:
    """One line of the table: a model with its settings.

    Attributes:
        label: its name in the table.
        model: as ``--model`` takes it.
        settings: its own config keys, over those that all rows share.
        swept: those of them that a sweep has set.
        params_file: of the ranges that it is tuned in; by default those that ship for the model.
        aa: the baseline once more, with other training seeds on the same splits.
    """

    label: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Any] = field(default_factory=dict)
    params_file: str | None = None
    aa: bool = False


@dataclass(frozen=True)
class Trial:
    """Settings that were tried for a row.

    Attributes:
        chosen: by config key; empty where the row was tried as it is.
        score: the best on validation, None where the run failed.
        bigger: whether a larger score is better.
        run: the run's name.
        reason: why there is no score.
        metric: of validation, where it isn't that of all rows.
        worse: whether a constant prediction is better: the best only where all are.
        pruned: whether it was ended before its time, with its best score until then.
        seconds: that its trainings took; of one of two models, its own.
        about: of its run: ``settings``, ``digests``, ``processor``, ``versions``, as far as known.
    """

    chosen: Mapping[str, Any]
    score: float | None
    bigger: bool
    run: str
    reason: str = ""
    metric: str | None = None
    worse: bool = False
    pruned: bool = False
    seconds: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def part_label(label: str, task: str) -> str:
    """What one of the two models of a row is called, which are tuned one by one."""
    return f"{label}, {task.upper()} model"


@dataclass(frozen=True)
class Tuning:
    """How the settings of the rows were chosen.

    Attributes:
        trials: settings that were tried a row.
        seed: of their runs.
        metric: of validation, which chose.
        by_row: what was tried, by the row's label, or that of each of its two models.
        rows: what it was tried on, so that no seed tests on it; the rest of a sentence.
    """

    trials: int
    seed: int
    metric: str
    by_row: Mapping[str, Sequence[Trial]]
    rows: str = ""

    def best(self, label: str) -> Trial:
        """What was best for a row; the row as it is where no trial came to its end."""
        return best_trial(self.by_row[label])


def best_trial(tried: Sequence[Trial]) -> Trial:
    """What was best on validation; the first where no trial came to its end."""
    scored = [trial for trial in tried if trial.score is not None and not trial.pruned]

    def rank(trial: Trial) -> tuple[bool, float]:
        return not trial.worse, (trial.score or 0) * (1 if trial.bigger else -1)

    return max(scored, key=rank, default=tried[0])


@dataclass(frozen=True)
class Screened:
    """How a row was screened.

    Attributes:
        label: the row's.
        model: its model.
        score: the best on validation, None where it has none.
        why: it goes on: ``by right`` or ``by validation``; empty where it doesn't.
        by_part: what was tried, by its label or that of each of its two models.
    """

    label: str
    model: str
    score: float | None
    why: str
    by_part: Mapping[str, Sequence[Trial]]


@dataclass(frozen=True)
class Screening:
    """How few rows were chosen of many, on validation alone.

    Attributes:
        settings: tried a row.
        metric: of validation, which chose.
        rows: all of them.
    """

    settings: int
    metric: str
    rows: Sequence[Screened]

    @property
    def left(self) -> list[Screened]:
        """The rows that don't go on, the best first."""
        left = [row for row in self.rows if not row.why]
        scored = [row for row in left if row.score is not None]
        scored.sort(key=lambda row: cost(self.metric, row.score or 0.0))
        return [*scored, *(row for row in left if row.score is None)]


def rival_of(rows: Sequence[Row], baseline: str) -> str | None:
    """The label of the logistic regression, where it is a row and not the baseline."""
    labels = [
        row.label
        for model in ("LogisticRegression", "LR")  # ours is at its optimum
        for row in rows
        if row.model == model and not row.aa
    ]
    return labels[0] if labels and baseline not in labels else None


def _test_share(run: Mapping[str, Any]) -> float | None:
    """n_test / n_train of a run's split, None where it isn't known.

    The split is one of impressions, also for a metric over clicks, which it divides in the same
    ratio but for chance. A model that learned on clicks alone has only those in train.

    Where test is drawn from a part of the impressions (``test_pool`` of them, the others being kept
    for tuning), two seeds share a fraction n_test / test_pool of their test rows, as they would if
    the rest of the pool were all that there is to train on; the larger ratio counts.
    """
    data = run.get("data") or {}
    train, test = data.get("train"), data.get("test")
    if not train or not test:
        return None
    unit = "clicks" if train["clicks"] == train["impressions"] else "impressions"
    share = _ratio(test[unit], train[unit])
    if (pool := run.get("test_pool")) is None:
        return share
    return max(share, _ratio(test["impressions"], pool - test["impressions"]))


def _ratio(part: float, rest: float) -> float:
    return part / rest if rest > 0 else math.inf


@dataclass(frozen=True)
class Study:
    """Rows, seeds and the result file of each run.

    Attributes:
        title: of the reports.
        command: what makes them again.
        dataset: the data set's name.
        rows: in the order of the table.
        seeds: in the order of the runs.
        baseline: label of the row that the others are compared with.
        columns: metrics of the table; those that no run has are left out of it.
        results: what ``result.json`` of a run holds, by label and seed.
        failures: why a run has no result, by label and seed.
        shared: config keys that are the user's and the same for all rows.
        tuning: how the settings of the rows were chosen, where they were.
        screening: how the rows were, where they were.
        protocol: what was the same for all rows, by its name: a row of another study belongs to
            this one only where it is the same there.
        named: metrics that the user named: where no run has one, the reports say why.
        primary: the metrics that verdicts are about; by default those of
            :func:`~recbole_escm2.evaluator.catalogue.primary_metrics`.
        influence: what single test rows contribute to a run's metrics, by label and seed: called
            for runs whose seeds draw initial weights alone; raises NoInfluenceError.
    """

    title: str
    command: str
    dataset: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    baseline: str
    columns: Sequence[str]
    results: Mapping[tuple[str, int], Mapping[str, Any]]
    failures: Mapping[tuple[str, int], str] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None
    screening: Screening | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    named: Sequence[str] = ()
    primary: tuple[str, ...] = ()
    influence: Callable[[str, int], Influence] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "primary", tuple(primary_metrics(self.metrics, self.primary)))

    def of(self, label: str) -> dict[int, Mapping[str, Any]]:
        """The results of a row by seed."""
        return {
            seed: self.results[label, seed] for seed in self.seeds if (label, seed) in self.results
        }

    def values(self, label: str, metric: str) -> dict[int, float]:
        """A test metric of a row by seed, of the runs that have it."""
        values = {seed: run["test_result"].get(metric) for seed, run in self.of(label).items()}
        return {seed: value for seed, value in values.items() if value is not None}

    @cached_property
    def shown(self) -> list[str]:
        """The columns that at least one run has, and the primary metrics."""
        return [m for m in dict.fromkeys([*self.columns, *self.primary]) if m in self.metrics]

    @cached_property
    def draws(self) -> Draws:
        """What a seed draws anew: the same for all runs, or nothing can be said."""
        runs = self.results.values()
        kinds = sorted({str(run.get("seed_draws") or "split") for run in runs}) or ["split"]
        if len(kinds) > 1:
            why = f"seeds don't draw the same in all runs ({', '.join(kinds)})"
            return Draws("mixed", refused=why)
        if kinds[0] in ("weights", "world"):
            return Draws(kinds[0])
        if kinds[0] not in ("split", "fold"):
            return Draws(kinds[0], refused=f"it isn't known what '{kinds[0]}' draws anew")
        shares = [_test_share(run) for run in runs]
        known = [share for share in shares if share is not None]
        if not known or len(known) < len(shares):
            return Draws(kinds[0], refused="a run doesn't say how large its train and test are")
        share = float(np.mean(known))
        refused = "" if math.isfinite(share) else "each seed tests on all that test is drawn from"
        return Draws(kinds[0], share, refused)

    @property
    def rival(self) -> str | None:
        """The label of the logistic regression, where it is a row and not the baseline."""
        return rival_of(self.rows, self.baseline)

    @property
    def again(self) -> list[str]:
        """The labels of A/A rows."""
        return [row.label for row in self.rows if row.aa]

    @property
    def bounds(self) -> list[str]:
        """The labels of rows that learn nothing: the base rates and the true probabilities."""
        return [row.label for row in self.rows if row.model in BOUNDS]

    @cached_property
    def table(self) -> dict[str, dict[str, Cell]]:
        """The cells by label and metric; p values are corrected over all of this table."""
        return tabulate(
            {
                row.label: {metric: self.values(row.label, metric) for metric in self.shown}
                for row in self.rows
            },
            Design(
                *(self.draws, self.baseline, self.primary, self.rival, self.again, self._noise),
                bounds=self.bounds,
            ),
        )

    @property
    def comparisons(self) -> list[tuple[str, str, str, Comparison]]:
        """All that have a verdict or should have one: row, other row and metric, A/A rows too."""
        return [
            (label, other, metric, compared)
            for label, cells in self.table.items()
            for metric, cell in cells.items()
            if metric in self.primary
            for other, compared in ((self.baseline, cell.comparison), (self.rival, cell.rival))
            if compared is not None and other is not None
        ]

    @property
    def verdicts(self) -> list[tuple[str, str, str, Comparison]]:
        """The comparisons that Holm's correction is over: those of the page's claims."""
        again = self.again
        return [c for c in self.comparisons if c[3].verdict is not None and c[0] not in again]

    def _noise(self, metric: str, label: str, other: str | None, seeds: Sequence[int]) -> Noise:
        """What drawing the test rows does to a mean over seeds, or to a difference of two."""
        rows = {
            self._influence(one, s).rows.digest for one in (label, other or label) for s in seeds
        }
        if len(rows) > 1:
            raise NoInfluenceError("its runs weren't scored on the same test rows")
        total = self.mean_influence(label, metric, tuple(seeds))
        if other is not None:
            total = total - self.mean_influence(other, metric, tuple(seeds))
        return cluster_variance(total, self._influence(label, seeds[0]).rows.clusters_of(metric))

    def mean_influence(self, label: str, metric: str, seeds: tuple[int, ...]) -> NDArray[Any]:
        """What single test rows contribute to a mean over seeds; the last ones are kept, as others
        are compared with them.

        Raises:
            NoInfluenceError: it isn't known.
        """
        key = (label, metric, seeds)
        if key not in self._means:
            total = np.zeros(1)
            for seed in seeds:
                total = total + self._influence(label, seed).of(metric)
            while len(self._means) > 2:
                del self._means[next(iter(self._means))]
            self._means[key] = total / len(seeds)
        self._means[key] = mean = self._means.pop(key)
        return mean

    @cached_property
    def _means(self) -> dict[tuple[str, str, tuple[int, ...]], NDArray[Any]]:
        return {}

    def _influence(self, label: str, seed: int) -> Influence:
        if self.influence is None:
            raise NoInfluenceError("the influence of single test rows isn't known")
        return self.influence(label, seed)

    @cached_property
    def metrics(self) -> list[str]:
        """Every test metric that a run has, in the order of the first that has it."""
        return list(dict.fromkeys(m for run in self.results.values() for m in run["test_result"]))

    @property
    def simulated(self) -> str | None:
        """What to say with every number on simulated data."""
        return next((run["simulated"] for run in self.results.values() if run["simulated"]), None)
