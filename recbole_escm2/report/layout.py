"""The table of a study: rows, headings, numbers as text, notes, what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_escm2.experiment.statistics import Cell, Comparison, sample
from recbole_escm2.experiment.study import Study
from recbole_escm2.metric_names import score_of, target_of
from recbole_escm2.report.lift import share_of_lift
from recbole_escm2.report.notes import (
    BETTER,
    RIVAL_BETTER,
    RIVAL_WORSE,
    WORSE,
    decimals,
    direction,
    humanise,
    notes,
    one_line,
    p_value,
)

MARKS = {"better": BETTER, "worse": WORSE}
RIVAL_MARKS = {"better": RIVAL_BETTER, "worse": RIVAL_WORSE}
#: What a run costs, beside its metrics: key of its result file and name.
COSTS = {"seconds": "time", "epochs": "epochs", "parameters": "parameters"}


@dataclass(frozen=True)
class Heading:
    """A column of numbers.

    Attributes:
        key: the metric, ``share of METRIC``, or a key of :data:`COSTS`.
        name: as it is shown, with the unit.
        arrow: ``↑`` or ``↓`` for the better direction, ``→ 1`` for a target, empty for a cost.
    """

    key: str
    name: str
    arrow: str

    def __str__(self) -> str:
        return f"{self.name} {self.arrow}".rstrip()


@dataclass(frozen=True)
class Compared:
    """A difference from another row as text; all empty where nothing was compared.

    Attributes:
        verdict: ``better``, ``worse`` or ``undecided``; None where nothing was tested.
        difference: in the metric, or in the distance from its target.
        interval: of the difference, ``low to high``.
        p: after correction.
    """

    verdict: str | None = None
    difference: str = ""
    interval: str = ""
    p: str = ""


@dataclass(frozen=True)
class Entry:
    """A number of the table as text; all empty where a row has none.

    Attributes:
        mean: over seeds.
        std: standard deviation over seeds, empty with a single one.
        seeds: how many it is the mean of, where that isn't every finished run of its row.
        best: whether it is the best of its column.
        order: what to sort by, the best first; None sorts last.
        interval: of the mean, ``low to high``.
        by_seed: seed and value.
        baseline: compared with the baseline.
        rival: compared with the logistic regression.
    """

    mean: str = ""
    std: str = ""
    seeds: int | None = None
    best: bool = False
    order: float | None = None
    interval: str = ""
    by_seed: tuple[tuple[int, str], ...] = ()
    baseline: Compared = Compared()
    rival: Compared = Compared()

    @property
    def mark(self) -> str:
        """▲ or ▼ where it differs from the baseline."""
        return MARKS.get(self.baseline.verdict or "", "")

    @property
    def rival_mark(self) -> str:
        """△ or ▽ where it differs from the logistic regression."""
        return RIVAL_MARKS.get(self.rival.verdict or "", "")

    @property
    def value(self) -> str:
        """``mean ± std``, with the number of seeds where that needs saying."""
        few = f" (n={self.seeds})" if self.seeds is not None else ""
        return self.mean + (f" ± {self.std}" if self.std else "") + few


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        label: its name on one line.
        baseline: whether the others are compared with it.
        aa: whether it is the baseline again, with other initial weights.
        finished: its finished runs.
        planned: the runs it should have.
        entries: one a heading.
    """

    label: str
    baseline: bool
    aa: bool
    finished: int
    planned: int
    entries: tuple[Entry, ...]

    @property
    def seeds(self) -> str:
        """``4 of 5``, or the number where all have finished."""
        if self.finished == self.planned:
            return str(self.planned)
        return f"{self.finished} of {self.planned}"


@dataclass(frozen=True)
class Problem:
    """A run without a result, a metric that some runs of a row don't have, or a verdict that can't
    be had: where and why."""

    label: str
    seeds: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        if not self.seeds:
            return f"{self.label}: {self.reason}"
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.label}, seed{'s' * (len(self.seeds) > 1)} {seeds}: {self.reason}"


@dataclass(frozen=True)
class Layout:
    """The table as all formats show it.

    Attributes:
        headings: the columns of numbers.
        lines: the rows.
        notes: sentences that belong under the table, as text.
        simulated: what to say first, on simulated data.
        problems: runs that are missing, metrics that are missing in finished runs, and verdicts
            that can't be had.
        rival: the row that the others are compared with as well, where there is one.
    """

    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    simulated: str | None
    problems: tuple[Problem, ...]
    rival: str | None = None

    def caption(self, best: str) -> list[str]:
        """The notes, and how the best of a column is marked."""
        marked = any(entry.best for line in self.lines for entry in line.entries)
        targets = any(heading.arrow.startswith("→") for heading in self.headings)
        of_targets = " (with a target: the smallest mean distance from it)" if targets else ""
        note = (
            f"{best}: the best mean of its column{of_targets}, which by itself says nothing about "
            "chance."
        )
        return [*self.notes, *([note] if marked else [])]

    @property
    def uneven(self) -> bool:
        """Whether some row lacks a run: then the number of seeds is a column."""
        return any(line.finished != line.planned for line in self.lines)


def layout(study: Study) -> Layout:
    """What the table of a study shows: its columns, training time, epochs and parameters."""
    metrics = [Heading(m, m, direction(m)) for m in study.shown]
    costs = [column for key in COSTS if (column := _cost_column(study, key))]
    shares = [column for metric in study.primary if (column := _lift_column(study, metric))]
    digits = {metric: decimals(study, metric) for metric in study.shown}
    lines = []
    for n, row in enumerate(study.rows):
        runs, cells = len(study.of(row.label)), study.table[row.label]
        entries = [_entry(cells.get(m), m, digits[m], runs) for m in study.shown]
        entries += [column[n] for _, column in (*shares, *costs)]
        first = row.label == study.baseline
        label, planned = one_line(row.label), len(study.seeds)
        lines.append(Line(label, first, row.aa, runs, planned, tuple(entries)))
    return Layout(
        (*metrics, *(heading for heading, _ in (*shares, *costs))),
        tuple(lines),
        tuple(notes(study)),
        one_line(study.simulated) if study.simulated else None,
        (*_missing_runs(study), *_missing_metrics(study), *_missing_verdicts(study)),
        one_line(study.rival) if study.rival else None,
    )


def _lift_column(study: Study, metric: str) -> tuple[Heading, list[Entry]] | None:
    """A metric's share of the oracle's lift, where the table has both ends of it."""
    shares = share_of_lift(study, metric)
    if not shares:
        return None
    entries = [
        Entry(f"{share:.1%}", order=-share)
        if (share := shares.get(row.label)) is not None
        else Entry()
        for row in study.rows
    ]
    return Heading(f"share of {metric}", f"{metric}, share of lift", ""), entries


def _cost_column(study: Study, key: str) -> tuple[Heading, list[Entry]] | None:
    """A key of :data:`COSTS` in one unit and as many decimals for all rows, where a run has it."""
    by_row = [cost_values(study.of(row.label), key) for row in study.rows]
    largest = max((value for by_seed in by_row for value in by_seed.values()), default=None)
    if largest is None:
        return None
    minutes = key == "seconds" and largest >= 600
    digits = 0 if key == "seconds" and 100 <= largest < 600 else 1
    unit = f" ({'min' if minutes else 's'})" if key == "seconds" else ""

    def shown(value: float) -> str:
        if key == "parameters":
            return humanise(value)
        return f"{value / 60 if minutes else value:.{digits}f}"

    entries = []
    for by_seed in by_row:
        mean = sample(by_seed).mean if by_seed else math.nan
        values = tuple((seed, shown(value)) for seed, value in by_seed.items())
        entries.append(Entry(shown(mean), order=mean, by_seed=values) if by_seed else Entry())
    return Heading(key, COSTS[key] + unit, ""), entries


def cost_values(runs: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    """One of :data:`COSTS` by seed, of the runs that have it."""
    return {seed: float(run[key]) for seed, run in runs.items() if run.get(key) is not None}


def _entry(cell: Cell | None, metric: str, digits: int, finished: int) -> Entry:
    if cell is None:
        return Entry()
    own = cell.sample
    order = own.mean if not direction(metric).startswith("↑") else -own.mean
    if target_of(metric) is not None:
        order = float(np.mean([score_of(metric, v) for v in own.values.values()]))
    return Entry(
        mean=f"{own.mean:.{digits}f}",
        std="" if own.std is None else f"{own.std:.{digits}f}",
        seeds=len(own.values) if len(own.values) != finished else None,
        best=cell.best,
        order=order,
        interval=_range(own.low, own.high, digits),
        by_seed=tuple((seed, f"{value:.{digits}f}") for seed, value in own.values.items()),
        baseline=_compared(cell.comparison, digits),
        rival=_compared(cell.rival, digits),
    )


def _compared(comparison: Comparison | None, digits: int) -> Compared:
    if comparison is None:
        return Compared()
    return Compared(
        comparison.verdict,
        f"{comparison.difference:+.{digits}f}",
        _range(comparison.low, comparison.high, digits, "+"),
        "" if comparison.p_adjusted is None else p_value(comparison.p_adjusted),
    )


def _range(low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def state_of(study: Study, label: str, seed: int) -> tuple[str, str]:
    """What became of a run without a result, ``failed`` or ``missing``, and why."""
    reason = study.failures.get((label, seed))
    return ("failed", reason) if reason is not None else ("missing", "not run yet")


def _missing_runs(study: Study) -> Iterable[Problem]:
    for row in study.rows:
        seeds_of: dict[str, list[int]] = {}
        for seed in study.seeds:
            if (row.label, seed) not in study.results:
                state, reason = state_of(study, row.label, seed)
                words = f"failed: {one_line(reason)}" if state == "failed" else reason
                seeds_of.setdefault(words, []).append(seed)
        for words, seeds in seeds_of.items():
            yield Problem(one_line(row.label), tuple(seeds), words)


def _missing_metrics(study: Study) -> Iterable[Problem]:
    for row in study.rows:
        runs = study.of(row.label)
        why = {
            (metric, seed): reason
            for seed, run in runs.items()
            for metric, reason in (run.get("undefined") or {}).items()
            if metric in study.shown
        }
        for metric in study.shown:
            for reason in dict.fromkeys(r for (m, _), r in why.items() if m == metric):
                seeds = tuple(s for s in runs if why.get((metric, s)) == reason)
                yield Problem(one_line(row.label), seeds, f"no {metric}, {one_line(reason)}")
    absent = (
        (one_line(reason), row.label, metric)
        for row in study.rows
        for run in study.of(row.label).values()
        for metric, reason in (run.get("undefined") or {}).items()
        if metric in study.named and metric not in study.metrics
    )
    for reason, labels, metrics in _by_reason(absent):
        yield Problem(labels, (), f"no {metrics}, {reason}")


def _missing_verdicts(study: Study) -> Iterable[Problem]:
    """Comparisons that should have a verdict and can't, those with one reason together."""
    refused = (
        (compared.refused, label, metric)
        for label, _, metric, compared in study.comparisons
        if compared.refused
    )
    for reason, labels, metrics in _by_reason(refused):
        yield Problem(labels, (), f"no verdict in {metrics}: {reason}")


def _by_reason(cases: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Reasons, each with all rows and metrics that have it, of reason, row and metric."""
    together: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for reason, label, metric in cases:
        labels, metrics = together.setdefault(reason, ({}, {}))
        labels[one_line(label)] = metrics[metric] = None
    for reason, (rows, names) in together.items():
        yield reason, ", ".join(rows), ", ".join(names)
