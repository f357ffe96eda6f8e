"""What a benchmark compared, and what came out: all that its reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from recbole_escm2.benchmark.statistics import Cell, tabulate

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


@dataclass(frozen=True)
class Row:
    """One line of the table: a model with its settings.

    Attributes:
        label: its name in the table.
        model: as ``--model`` takes it.
        settings: its own config keys, over those that all rows share.
        swept: those of them that a sweep has set.
        params_file: of the ranges that it is tuned in; by default those that ship for the model.
    """

    label: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Any] = field(default_factory=dict)
    params_file: str | None = None


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
    """

    chosen: Mapping[str, Any]
    score: float | None
    bigger: bool
    run: str
    reason: str = ""
    metric: str | None = None


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
    """

    trials: int
    seed: int
    metric: str
    by_row: Mapping[str, Sequence[Trial]]

    def best(self, label: str) -> Trial:
        """What was best for a row; the row as it is where no trial came to its end."""
        tried = self.by_row[label]
        scored = [trial for trial in tried if trial.score is not None]
        return max(scored, key=_goodness, default=tried[0])


def _goodness(trial: Trial) -> float:
    score = float("nan") if trial.score is None else trial.score
    return score if trial.bigger else -score


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

    def of(self, label: str) -> dict[int, Mapping[str, Any]]:
        """The results of a row by seed."""
        return {
            seed: self.results[label, seed] for seed in self.seeds if (label, seed) in self.results
        }

    def values(self, label: str, metric: str) -> dict[int, float]:
        """A test metric of a row by seed, of the runs that have it."""
        found = {seed: result["test_result"].get(metric) for seed, result in self.of(label).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    @cached_property
    def shown(self) -> list[str]:
        """The columns that at least one run has."""
        return [
            metric
            for metric in self.columns
            if any(metric in result["test_result"] for result in self.results.values())
        ]

    @cached_property
    def table(self) -> dict[str, dict[str, Cell]]:
        """The cells by label and metric; p values are corrected over all of this table."""
        return tabulate(
            {
                row.label: {metric: self.values(row.label, metric) for metric in self.shown}
                for row in self.rows
            },
            self.baseline,
        )

    @cached_property
    def metrics(self) -> list[str]:
        """Every test metric that a run has, in the order of the first that has it."""
        return list(
            dict.fromkeys(
                name for result in self.results.values() for name in result["test_result"]
            )
        )

    @property
    def simulated(self) -> str | None:
        """What to say with every number on simulated data."""
        return next(
            (result["simulated"] for result in self.results.values() if result["simulated"]), None
        )
