"""What several seeds say about a metric: mean, interval, and a paired test against a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from recbole_escm2.evaluator.catalogue import (
    bigger_is_better,
    is_neutral,
    score_of,
    target_of,
)

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Sample:
    """A metric over seeds.

    Attributes:
        values: by seed.
        mean: their mean.
        std: their standard deviation (n − 1), None with a single value.
        low: lower end of the 95 % interval of the mean (Student's t), None with a single value.
        high: its upper end.
    """

    values: Mapping[int, float]
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline on the seeds that both have.

    The difference is that of the values; for a metric with a target (PCOC, IEB, PIP), that of the
    distances from it, row minus baseline.

    Attributes:
        pairs: the number of seeds.
        difference: mean over seeds.
        low: lower end of its 95 % interval (Student's t on the differences).
        high: its upper end.
        gain: whether the difference is to the good, in the direction of the metric.
        p: of the two-sided paired t test.
        p_adjusted: the same after Holm's correction over all comparisons of the table.
    """

    pairs: int
    difference: float
    low: float
    high: float
    gain: bool
    p: float
    p_adjusted: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``undecided`` where the corrected test sees no difference."""
        if self.p_adjusted >= ALPHA:
            return "undecided"
        return "better" if self.gain else "worse"


@dataclass(frozen=True)
class Cell:
    """One row's metric: the sample, whether its mean is the column's best, the comparison."""

    sample: Sample
    best: bool
    comparison: Comparison | None


def cost(metric: str, value: float) -> float:
    """What is better when smaller: the value, its negative, or its distance from the target."""
    return -value if bigger_is_better(metric) else score_of(metric, value)


def sample(values: Mapping[int, float]) -> Sample:
    """The mean of values by seed, with its interval.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("a sample needs a value")
    numbers = np.array(list(values.values()), dtype=np.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Sample(dict(values), mean, None, None, None)
    low, high = _interval(numbers)
    return Sample(dict(values), mean, float(numbers.std(ddof=1)), low, high)


def compare(metric: str, row: Sample, baseline: Sample) -> Comparison | None:
    """The paired comparison of two samples, None where fewer than two seeds are in both.

    Nor is there one where a value isn't finite, or the metric knows no better or worse.

    ``p_adjusted`` is ``p`` yet: :func:`tabulate` corrects it.
    """
    seeds = [seed for seed in row.values if seed in baseline.values]
    if len(seeds) < 2 or is_neutral(metric):
        return None
    if target_of(metric) is None:
        pairs = [(row.values[seed], baseline.values[seed]) for seed in seeds]
    else:
        pairs = [(cost(metric, row.values[s]), cost(metric, baseline.values[s])) for s in seeds]
    ours, theirs = np.array(pairs, dtype=np.float64).T
    difference = ours - theirs
    if not np.isfinite(difference).all():
        return None
    mean = float(difference.mean())
    low, high = _interval(difference)
    if np.ptp(difference) > 0:
        p = float(stats.ttest_rel(ours, theirs).pvalue)
    else:  # no spread at all: the test statistic is 0/0, or infinite
        p = 0.0 if mean else 1.0
    down_is_gain = target_of(metric) is not None or not bigger_is_better(metric)
    return Comparison(len(seeds), mean, low, high, (mean < 0) is down_is_gain, p, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: a family-wise error rate under any dependence.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat., 1979.
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def tabulate(
    values: Mapping[str, Mapping[str, Mapping[int, float]]], baseline: str
) -> dict[str, dict[str, Cell]]:
    """The cells of a table.

    Args:
        values: values by row, metric and seed; a metric that a row doesn't have is left out.
        baseline: the row that the others are compared with.

    Returns:
        Cells by row and metric. Best of a column are all whose mean cost equals the least; no one
        is where fewer than two rows have the metric.
    """
    samples = {
        row: {metric: sample(seeds) for metric, seeds in metrics.items() if seeds}
        for row, metrics in values.items()
    }
    comparisons: dict[tuple[str, str], Comparison] = {}
    for row, metrics in samples.items():
        for metric, own in metrics.items():
            reference = samples.get(baseline, {}).get(metric)
            if row != baseline and reference is not None:
                compared = compare(metric, own, reference)
                if compared is not None:
                    comparisons[row, metric] = compared
    for key, p in zip(comparisons, holm([c.p for c in comparisons.values()]), strict=True):
        comparisons[key] = replace(comparisons[key], p_adjusted=p)
    costs = {
        row: {metric: _mean_cost(metric, own) for metric, own in metrics.items()}
        for row, metrics in samples.items()
    }
    in_column: dict[str, list[float]] = {}
    for by_metric in costs.values():
        for metric, mean in by_metric.items():
            in_column.setdefault(metric, []).append(mean)
    return {
        row: {
            metric: Cell(
                own,
                len(in_column[metric]) > 1
                and not is_neutral(metric)
                and costs[row][metric] == min(in_column[metric]),
                comparisons.get((row, metric)),
            )
            for metric, own in metrics.items()
        }
        for row, metrics in samples.items()
    }


def _mean_cost(metric: str, own: Sample) -> float:
    return math.fsum(cost(metric, value) for value in own.values.values()) / len(own.values)


def _interval(numbers: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of at least two numbers."""
    mean, error = float(numbers.mean()), float(stats.sem(numbers))
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(numbers) - 1, loc=mean, scale=error)
    return float(low), float(high)
