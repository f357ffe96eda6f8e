"""What several seeds say about a metric: mean, interval, and a paired test against other rows.

Which variance is right depends on what a seed draws, which :class:`Draws` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from recbole_escm2.evaluator.clusters import Noise
from recbole_escm2.evaluator.influence import NoInfluenceError
from recbole_escm2.metric_names import bigger_is_better, is_neutral, score_of, target_of

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
#: Of the smallest difference that could have been seen.
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with what is needed to judge it.

    Attributes:
        mean: of the numbers.
        error: its standard error.
        freedom: degrees of freedom of the error, for Student's t.
    """

    mean: float
    error: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval."""
        half = float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Of the two-sided test that the mean is that of something that is 0."""
        if self.error == 0:  # no spread at all: the test statistic is 0/0, or infinite
            return 0.0 if self.mean else 1.0
        return 2 * float(stdtr(self.freedom, -abs(self.mean) / self.error))

    def smallest(self, comparisons: int) -> float:
        """The difference that a test with this error sees in 80 % of all cases.

        The test is two-sided, at the level 0.05 / comparisons that the first of Holm's has to pass;
        the difference is the noncentrality at which Student's t exceeds its bound with probability
        0.8, times the standard error, which is taken as what it is expected to be.

        Source: Cohen, Statistical power analysis for the behavioral sciences, 1988, chapter 2; the
        minimum detectable effect of Bloom, Evaluation Review 19, 1995, with the exact power.
        """
        bound = stdtrit(self.freedom, 1 - ALPHA / comparisons / 2)
        return float(nctdtrinc(self.freedom, 1 - POWER, bound)) * self.error


@dataclass(frozen=True)
class Draws:
    """What each seed draws anew, which decides what the variance of a mean over seeds is.

    Attributes:
        kind: ``split``, ``fold``, ``weights`` or ``world``.

            - ``split``: seeds split one data set, so that their training and test rows overlap.
              Variance of the mean of n numbers: s²(1/n + n_test/n_train), n - 1 degrees of freedom
              (Nadeau & Bengio, Inference for the generalization error, Machine Learning 52, 2003).
            - ``fold``: one of the folds of one partition, so that test rows are apart and training
              rows overlap, which no estimator of the variance from one cross-validation can see
              (Bengio & Grandvalet, JMLR 5, 2004). The same variance as for ``split`` (Bouckaert &
              Frank, Evaluating the replicability of significance tests, PAKDD 2004), for k folds
              s²(1/k + 1/(k - 1)) and a little more where a part of the rest validates.
            - ``weights``: one test set, and training rows that are the same but for a validation
              part; seeds draw initial weights. Variance: s²/n + :class:`Noise` of the test rows,
              which no number of seeds makes smaller, with Satterthwaite's degrees of freedom
              (Biometrics Bulletin 2, 1946). It is about models trained on this one training set.
            - ``world``: everything. Variance s²/n, n - 1 degrees of freedom: the paired t test.
        test_share: n_test / n_train, for ``split`` and ``fold``.
        refused: why nothing can be said beyond the mean; empty where something can.
    """

    kind: str
    test_share: float = math.nan
    refused: str = ""

    def estimate(self, numbers: Sequence[float], noise: Noise | None = None) -> Estimate:
        """The mean of at least two numbers by seed, with its standard error.

        Args:
            numbers: one a seed.
            noise: of the test rows in their mean, where the kind is ``weights``; without it the
                error is that of other initial weights on the same test rows.
        """
        values = np.asarray(numbers, dtype=np.float64)
        mean, count = float(values.mean()), len(values)
        spread = float(values.var(ddof=1)) if np.ptp(values) > 0 else 0.0
        if self.kind in ("split", "fold"):
            spread *= 1 / count + self.test_share
        else:
            spread /= count
        if noise is None:
            return Estimate(mean, math.sqrt(spread), count - 1)
        total = spread + noise.variance
        known = spread**2 / (count - 1) + (
            noise.variance**2 / noise.freedom if noise.variance else 0.0
        )
        freedom = total**2 / known if known else count - 1.0
        return Estimate(mean, math.sqrt(total), freedom)


#: Numbers that have nothing in common but the way they were made.
INDEPENDENT = Draws("world")


@dataclass(frozen=True)
class Sample:
    """A metric over seeds.

    Attributes:
        values: by seed.
        mean: their mean.
        std: their standard deviation (n − 1), None with a single value.
        low: lower end of the 95 % interval of the mean, None where there is none.
        high: its upper end.
    """

    values: Mapping[int, float]
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A row against another one on the seeds that both have.

    The difference is that of the values; for a metric with a target (PCOC, IEB, PIP), that of the
    distances from it, row minus other.

    Attributes:
        pairs: the number of seeds.
        difference: mean over seeds.
        low: lower end of its 95 % interval, None where it can't be known.
        high: its upper end.
        gain: whether the difference is to the good, in the direction of the metric.
        p: of the two-sided test, None where no verdict is asked for, or it can't be known.
        p_adjusted: the same after Holm's correction over all comparisons of the table.
        estimate: of the difference.
        smallest: the difference that could have been seen, see :meth:`Estimate.smallest`; None
            where no verdict is asked for.
        refused: why there is no interval and no verdict; empty where there is one.
    """

    pairs: int
    difference: float
    low: float | None
    high: float | None
    gain: bool
    p: float | None
    p_adjusted: float | None
    estimate: Estimate | None = None
    smallest: float | None = None
    refused: str = ""

    @property
    def verdict(self) -> str | None:
        """``better``, ``worse``, or ``undecided`` where the corrected test sees no difference.

        None where there is no test.
        """
        if self.p_adjusted is None:
            return None
        if self.p_adjusted >= ALPHA:
            return "undecided"
        return "better" if self.gain else "worse"


@dataclass(frozen=True)
class Cell:
    """One row's metric.

    Attributes:
        sample: the numbers.
        best: whether their mean is the column's best.
        comparison: with the baseline.
        rival: with the logistic regression, of a primary metric.
    """

    sample: Sample
    best: bool
    comparison: Comparison | None
    rival: Comparison | None = None


@dataclass(frozen=True)
class Design:
    """What was decided of a table before its numbers were known.

    Attributes:
        draws: what a seed draws.
        baseline: the row that the others are compared with.
        primary: the metrics that verdicts are about.
        rival: the row of the logistic regression, which the others are compared with as well.
        again: rows that are the baseline again, with other initial weights.
        noise: of the test rows in a metric's mean over seeds of a row, or in its difference from
            another row: called with the metric, the row, the other row or None, and the seeds;
            raises NoInfluenceError. Where ``draws`` needs it.
        bounds: rows that learn nothing: no claim is about them, and none is a column's best.
    """

    draws: Draws
    baseline: str
    primary: Sequence[str] = ()
    rival: str | None = None
    again: Collection[str] = ()
    noise: Callable[[str, str, str | None, Sequence[int]], Noise] | None = None
    bounds: Collection[str] = ()


def cost(metric: str, value: float) -> float:
    """What is better when smaller: the value, its negative, or its distance from the target."""
    return -value if bigger_is_better(metric) else score_of(metric, value)


def sample(
    values: Mapping[int, float], draws: Draws = INDEPENDENT, noise: Noise | None = None
) -> Sample:
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
    std = float(numbers.std(ddof=1))
    if draws.refused:
        return Sample(dict(values), mean, std, None, None)
    return Sample(dict(values), mean, std, *draws.estimate(list(numbers), noise).interval)


def compare(
    metric: str,
    row: Sample,
    other: Sample,
    draws: Draws = INDEPENDENT,
    noise: Noise | None = None,
) -> Comparison | None:
    """The paired comparison of two samples, None where fewer than two seeds are in both.

    Nor is there one where a value isn't finite, or the metric knows no better or worse.

    ``p_adjusted`` is ``p`` yet: :func:`tabulate` corrects it.
    """
    seeds = paired(row, other)
    if len(seeds) < 2 or is_neutral(metric):
        return None
    distances = target_of(metric) is not None
    differences = [
        cost(metric, row.values[seed]) - cost(metric, other.values[seed])
        if distances
        else row.values[seed] - other.values[seed]
        for seed in seeds
    ]
    if not np.isfinite(differences).all():
        return None
    mean = float(np.mean(differences))
    gain = (mean < 0) is (distances or not bigger_is_better(metric))
    if draws.refused:
        return Comparison(len(seeds), mean, None, None, gain, None, None, refused=draws.refused)
    estimate = draws.estimate(differences, noise)
    p = estimate.p
    return Comparison(len(seeds), mean, *estimate.interval, gain, p, p, estimate)


def paired(row: Sample, other: Sample) -> list[int]:
    """The seeds that both have."""
    return [seed for seed in row.values if seed in other.values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: a family-wise error rate under any dependence.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat., 1979.
    """
    order = np.argsort(p_values)
    scaled = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def tabulate(
    values: Mapping[str, Mapping[str, Mapping[int, float]]], design: Design
) -> dict[str, dict[str, Cell]]:
    """The cells of a table.

    Verdicts exist in primary metrics alone, and are corrected over all of them; those of an A/A
    row, which belongs to no claim, are a family of their own. The logistic regression is compared
    with the baseline once, in its own row.

    Args:
        values: values by row, metric and seed; a metric that a row doesn't have is left out.
        design: what is compared with what.

    Returns:
        Cells by row and metric. Best of a column are all whose mean cost equals the least; no one
        is where fewer than two rows have the metric, and an A/A row never is.
    """
    samples = {
        row: {
            metric: sample(by_seed, *_draws(design, metric, row, None, list(by_seed)))
            for metric, by_seed in metrics.items()
            if by_seed
        }
        for row, metrics in values.items()
    }
    compared: dict[tuple[str, str, str], Comparison] = {}
    for row, metric, other in _pairs(samples, design):
        if (comparison := _compare(design, samples, metric, row, other)) is not None:
            compared[row, metric, other] = comparison
    families: dict[str | None, list[tuple[str, str, str]]] = {}
    for key, comparison in compared.items():
        if comparison.p is not None:
            families.setdefault(key[0] if key[0] in design.again else None, []).append(key)
    for family in families.values():
        corrected = holm([compared[key].p or 0.0 for key in family])
        for key, p in zip(family, corrected, strict=True):
            estimate = compared[key].estimate
            smallest = estimate.smallest(len(family)) if estimate else None
            compared[key] = replace(compared[key], p_adjusted=p, smallest=smallest)
    best = _best(samples, design)
    return {
        row: {
            metric: Cell(
                own,
                (row, metric) in best,
                compared.get((row, metric, design.baseline)),
                compared.get((row, metric, design.rival or "")),
            )
            for metric, own in metrics.items()
        }
        for row, metrics in samples.items()
    }


def _pairs(
    samples: Mapping[str, Mapping[str, Sample]], design: Design
) -> list[tuple[str, str, str]]:
    """Row, metric and other row of all comparisons, metric by metric."""
    metrics = dict.fromkeys(metric for own in samples.values() for metric in own)
    rows = [row for row in samples if row not in (design.baseline, *design.bounds)]
    pairs = []
    for metric in metrics:
        for row in (row for row in rows if metric in samples[row]):
            others = [design.baseline]
            if metric in design.primary and row not in (design.rival, *design.again):
                others += [design.rival] if design.rival else []
            pairs += [(row, metric, o) for o in others if metric in samples.get(o, {})]
    return pairs


def _draws(
    design: Design, metric: str, row: str, other: str | None, seeds: Sequence[int]
) -> tuple[Draws, Noise | None]:
    """What a seed draws, and the noise of the test rows, where it belongs into the variance of a
    primary metric; without that noise nothing can be said of it."""
    if design.draws.kind != "weights" or metric not in design.primary or len(seeds) < 2:
        return design.draws, None
    try:
        if design.noise is None:
            raise NoInfluenceError("the influence of single test rows isn't known")
        return design.draws, design.noise(metric, row, other, seeds)
    except NoInfluenceError as error:
        return replace(design.draws, refused=str(error)), None


def _compare(
    design: Design,
    samples: Mapping[str, Mapping[str, Sample]],
    metric: str,
    row: str,
    other: str,
) -> Comparison | None:
    """A comparison, with a p value only where there is to be a verdict."""
    own, theirs = samples[row][metric], samples[other][metric]
    draws, noise = _draws(design, metric, row, other, paired(own, theirs))
    compared = compare(metric, own, theirs, draws, noise)
    if compared is not None and metric not in design.primary:
        return replace(compared, p=None, p_adjusted=None, estimate=None, refused="")
    return compared


def _best(samples: Mapping[str, Mapping[str, Sample]], design: Design) -> set[tuple[str, str]]:
    """The best of each column, by row and metric."""
    columns: dict[str, dict[str, float]] = {}
    for row, metrics in samples.items():
        if row not in (*design.again, *design.bounds):
            for metric, own in metrics.items():
                costs = [cost(metric, value) for value in own.values.values()]
                columns.setdefault(metric, {})[row] = math.fsum(costs) / len(costs)
    return {
        (row, metric)
        for metric, costs in columns.items()
        if len(costs) > 1 and not is_neutral(metric)
        for row, mean in costs.items()
        if mean == min(costs.values())
    }
