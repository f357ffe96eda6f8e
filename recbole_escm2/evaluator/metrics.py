"""Exact metrics of scored binary tasks (click, conversion), as functions of arrays.

Two sufficient statistics carry the cost, one sort each; every metric then reads the statistic:

* ``class_scores(label, score)``: the task over all rows, for ``auc`` ... ``ece``.
* ``user_ranking(label, score, user)``: the task within each user, for ``gauc``, ``ndcg_at_k``
  and ``recall_at_k`` at any number of cut-offs.

Rows of equal score are exchangeable: no value depends on the order of the rows. Counts are int64
and exact below 2**32 rows; everything else is float64. Float32 scores are widened, never rounded,
so a threshold is compared in float64 (``float32(0.7) < 0.7``).
"""

import math
from bisect import bisect_left
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_escm2.evaluator.sorting import sort_in_place

__all__ = [
    "Bins",
    "ClassScores",
    "UndefinedMetricError",
    "UserRanking",
    "auc",
    "auc_influence",
    "causal_risk_ratio",
    "class_scores",
    "ece",
    "equal_mass_bins",
    "f1",
    "gauc",
    "ks",
    "ks_at",
    "log_loss",
    "mean_absolute_error",
    "mean_difference",
    "ndcg_at_k",
    "pcoc",
    "pr_auc",
    "recall",
    "recall_at_k",
    "row_log_loss",
    "user_auc",
    "user_ndcg",
    "user_ranking",
    "user_recall",
]

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = NDArray[np.float32] | Floats

_ROWS_AT_ONCE = 1 << 20  # of influence values: ranks take several times their memory
_PROBABILITY_FLOOR = 1e-15  # recbole.evaluator.metrics.LogLoss


class UndefinedMetricError(ValueError):
    """The metric has no value on these rows; the message says why."""


class ClassScores(NamedTuple):
    """A scored binary task: the scores of its P positives and of its N - P negatives.

    Attributes:
        positive: The positives' scores, ascending, ``[P]``.
        negative: The negatives' scores, ascending, of the same dtype, ``[N - P]``.
        below: Number of negatives that score lower than each positive, ``[P]``.
        upto: Number of negatives that score no higher than each positive, ``[P]``.
    """

    positive: Scores
    negative: Scores
    below: Ints
    upto: Ints


class UserRanking(NamedTuple):
    """A scored binary task within each user, one entry per (user, distinct score).

    Entries are in ascending order of user and, within a user, descending order of score.

    Attributes:
        first: Index of each user's first entry, ``[U]``.
        above: Number of rows of the same user with a higher score, ``[G]``.
        rows: Number of rows of this user with this score (>= 1), ``[G]``.
        positives: Number of those rows with label 1, ``[G]``.
    """

    first: Ints
    above: Ints
    rows: Ints
    positives: Ints


def class_scores(label: ArrayLike, score: ArrayLike) -> ClassScores:
    """Sorts the rows of each class by score.

    Args:
        label: 0 or 1, any bool or numeric dtype, ``[N]``.
        score: Finite, ``[N]``.

    Raises:
        ValueError: An argument is not 1-d, has another length, a label other than 0 and 1, or a
            score that is not a finite number.
        UndefinedMetricError: There are no rows.
    """
    is_positive, scores = labelled_scores(label, score)
    positive, negative = scores[is_positive], scores[~is_positive]
    for ordered in (positive, negative):
        sort_in_place(ordered)
        # The ends tell, without another pass over all rows.
        if not np.isfinite(ordered[:1]).all() or not np.isfinite(ordered[-1:]).all():
            _require_finite("score", scores)
    return ClassScores(positive, negative, *_ranks(negative, positive))


def auc(classes: ClassScores) -> float:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-) / 2 (Mann-Whitney), in [0, 1].

    Raises:
        UndefinedMetricError: There is no positive or no negative.
    """
    positives, negatives = _positives(classes), _negatives(classes)
    twice_won = int(np.sum(classes.below + classes.upto))
    return twice_won / (2 * positives * negatives)


def auc_influence(classes: ClassScores, label: NDArray[Any], score: Scores) -> Floats:
    """Each row's influence on :func:`auc`: their sum is 0, that of their squares its variance.

    With P positives and N negatives a positive has (F_neg(s) - AUC) / P and a negative
    (1 - F_pos(s) - AUC) / N, where F counts a tie as a half. Rows may be summed by cluster first,
    and the influence on a difference of two AUCs on the same rows is the difference of influences.
    The sum of squares is DeLong's variance, but for P - 1 and N - 1 in the place of P and N.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988; by influence values: Bamber, Journal
    of Mathematical Psychology 1975, and LeDell, Petersen & van der Laan, EJS 2015.

    Args:
        classes: of these rows.
        label: 0 or 1, ``[N]``.
        score: of the dtype that ``classes`` was made of, ``[N]``.

    Raises:
        UndefinedMetricError: There is no positive or no negative.
    """
    positives, negatives = _positives(classes), _negatives(classes)
    area = auc(classes)
    influence = np.empty(score.size, dtype=np.float64)
    for start in range(0, score.size, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        positive = label[rows] > 0
        below, upto = _ranks(classes.negative, score[rows][positive])
        influence[rows][positive] = ((below + upto) / (2 * negatives) - area) / positives
        below, upto = _ranks(classes.positive, score[rows][~positive])
        influence[rows][~positive] = (1 - (below + upto) / (2 * positives) - area) / negatives
    return influence


def pr_auc(classes: ClassScores) -> float:
    """Average precision: sum_n (R_n - R_{n-1}) P_n over the distinct thresholds, in (0, 1].

    R_n and P_n are recall and precision when the rows scoring at least the n-th highest score are
    predicted positive; no interpolation (``sklearn.metrics.average_precision_score``).

    Raises:
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(classes)
    # Recall changes at the positives' scores only.
    start = _starts(classes.positive)
    true_positives = positives - start
    false_positives = classes.negative.size - classes.below[start]
    precision = true_positives / (true_positives + false_positives)
    return float(np.sum(np.diff(start, append=positives) * precision)) / positives


def ks(classes: ClassScores) -> float:
    """Kolmogorov-Smirnov distance max_t |TPR(t) - FPR(t)| of the two classes' scores, in [0, 1].

    Raises:
        UndefinedMetricError: There is no positive or no negative.
    """
    below, upto, _ = _ks_distances(classes)
    largest = max(np.abs(below).max(), np.abs(upto).max())
    return int(largest) / (classes.positive.size * classes.negative.size)


def ks_at(classes: ClassScores) -> tuple[int, float]:
    """Where :func:`ks` finds the greatest distance.

    Returns:
        The sign of TPR - FPR there, and the threshold t: TPR and FPR are the shares of the two
        classes that score more than t.

    Raises:
        UndefinedMetricError: There is no positive or no negative.
    """
    below, upto, score = _ks_distances(classes)
    distances = np.concatenate((below, upto))
    at = int(np.argmax(np.abs(distances)))
    # Just below a score, or at it.
    where = np.nextafter(score[at], -np.inf) if at < below.size else score[at - below.size]
    return (-1 if distances[at] > 0 else 1), float(where)


def _ks_distances(classes: ClassScores) -> tuple[Ints, Ints, Scores]:
    """FNR - TNR, times P (N - P), just below each distinct score of the positives and at it."""
    positives, negatives = _positives(classes), _negatives(classes)
    # From one distinct score of the positives to the next only the FPR moves, and one way: the
    # distance is greatest just below a positive's score or at it.
    start = _starts(classes.positive)
    end = np.append(start[1:], positives)
    below = start * negatives - classes.below[start] * positives
    upto = end * negatives - classes.upto[start] * positives
    return below, upto, classes.positive[start]


def log_loss(classes: ClassScores) -> float:
    """Mean of -y ln p - (1 - y) ln(1 - p), in nats, in [0, 34.54].

    p is the score clipped to [1e-15, 1 - 1e-15], as ``recbole.evaluator.metrics.LogLoss`` does.

    Raises:
        ValueError: A score lies outside [0, 1].
    """
    some = [ordered for ordered in (classes.positive, classes.negative) if ordered.size]
    low, high = min(float(s[0]) for s in some), max(float(s[-1]) for s in some)
    if low < 0 or high > 1:
        raise ValueError(f"score must lie in [0, 1], not in [{low!r}, {high!r}]")
    p, q = clipped(classes.positive), clipped(classes.negative)
    log_p, log_1q = np.log(p, out=p), np.log1p(np.negative(q, out=q), out=q)
    return -float(np.sum(log_p) + np.sum(log_1q)) / _rows(classes)


def row_log_loss(label: NDArray[Any], score: Scores) -> Floats:
    """The log loss of each row, in nats, whose mean is :func:`log_loss`.

    Args:
        label: 0 or 1, ``[N]``.
        score: in [0, 1], ``[N]``.
    """
    p = clipped(score)
    return -np.where(np.asarray(label) > 0, np.log(p), np.log1p(-p))


def recall(classes: ClassScores, threshold: float) -> float:
    """Share of the positives with score >= threshold, in [0, 1].

    Raises:
        ValueError: The threshold is NaN.
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(classes)
    return _confusion(classes, threshold)[0] / positives


def f1(classes: ClassScores, threshold: float) -> float:
    """2 TP / (2 TP + FP + FN) when score >= threshold predicts positive, in [0, 1].

    Raises:
        ValueError: The threshold is NaN.
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(classes)
    true_positives, predicted = _confusion(classes, threshold)
    return 2 * true_positives / (predicted + positives)


def pcoc(classes: ClassScores) -> float:
    """Predicted click over click: mean score / mean label; 1 is calibrated, > 1 overestimates.

    Raises:
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(classes)
    total = np.sum(classes.positive, dtype=np.float64) + np.sum(classes.negative, dtype=np.float64)
    return float(total) / positives


class Bins(NamedTuple):
    """A scored binary task in bins of equal mass, in ascending order of score.

    Attributes:
        rows: Number of rows, ``[B]``.
        predicted: Sum of their scores, ``[B]``.
        positives: Number of those with label 1, ``[B]``; a fraction where a bin ends amid ties.
    """

    rows: Ints
    predicted: Floats
    positives: Floats


def equal_mass_bins(classes: ClassScores, bins: int = 10) -> Bins:
    """Cuts the rows, in ascending order of score, into bins of as equal a number as possible.

    There are ``min(bins, N)``, the larger ones first (``numpy.array_split``). A tie group that
    straddles a border gives each side its share of rows at the group's mean label, that is the
    expected content of the bins over random tie orders.

    Source: Nguyen & O'Connor, EMNLP 2015.

    Raises:
        ValueError: ``bins`` is not an int >= 1.
    """
    _require_positive_int("bins", bins)
    rows = _rows(classes)
    bins = min(int(bins), rows)
    size, larger = divmod(rows, bins)
    edge = np.arange(bins + 1)
    edge = edge * size + np.minimum(edge, larger)
    # Each bin's rows, as slices of the two classes; which of the tied rows it takes makes no
    # difference to the sum of its scores.
    positive_edge = np.searchsorted(classes.upto + np.arange(classes.positive.size), edge)
    negative_edge = edge - positive_edge
    predicted = _sums(classes.positive, positive_edge) + _sums(classes.negative, negative_edge)
    # The row after an edge shows the tie group that the edge may cut.
    cut = np.minimum(
        _entry(classes.positive, positive_edge), _entry(classes.negative, negative_edge)
    )
    positives, positives_upto = _ranks(classes.positive, cut)
    negatives, negatives_upto = _ranks(classes.negative, cut)
    tied_positives, tied_negatives = positives_upto - positives, negatives_upto - negatives
    share = (edge - positives - negatives) / np.maximum(tied_positives + tied_negatives, 1)
    labels = np.diff(positives + share * tied_positives)
    return Bins(np.diff(edge), predicted, labels)


def ece(classes: ClassScores, bins: int = 10) -> float:
    """Expected calibration error: sum_b n_b / N |mean score_b - mean label_b|, in [0, 1] for a p.

    The bins are those of :func:`equal_mass_bins`.

    Source: Naeini et al., AAAI 2015.

    Raises:
        ValueError: ``bins`` is not an int >= 1.
    """
    cut = equal_mass_bins(classes, bins)
    return float(np.sum(np.abs(cut.predicted - cut.positives))) / _rows(classes)


def mean_absolute_error(truth: ArrayLike, score: ArrayLike) -> float:
    """Mean of abs(score - truth), in the unit of the score.

    Args:
        truth: The true probabilities, finite, ``[N]``.
        score: The predicted ones, finite, ``[N]``.

    Raises:
        ValueError: An argument is not 1-d, has another length, or is not finite.
        UndefinedMetricError: There are no rows.
    """
    return float(np.mean(np.abs(_error(truth, score))))


def mean_difference(truth: ArrayLike, score: ArrayLike) -> float:
    """Mean score - mean truth, in the unit of the score; > 0 overestimates.

    Args:
        truth: The true probabilities, finite, ``[N]``.
        score: The predicted ones, finite, ``[N]``.

    Raises:
        ValueError: An argument is not 1-d, has another length, or is not finite.
        UndefinedMetricError: There are no rows.
    """
    return float(np.mean(_error(truth, score)))


def causal_risk_ratio(
    click: ArrayLike, propensity: ArrayLike, outcome: ArrayLike, caliper: float = 0.2
) -> float:
    """Mean outcome of clicked rows over that of unclicked rows of the same propensity, >= 0.

    The average effect on the treated (ATT) as a ratio: each clicked row is matched, with
    replacement, to the unclicked rows whose logit of the propensity is nearest, to all of them
    where several are equally near. A row without any within the caliper is left out. What differs
    between the two groups beyond the propensity isn't matched, so the ratio of the true outcome
    needn't be 1: compare with it.

    Source: Rosenbaum & Rubin, Biometrika 1983; caliper: Austin, Pharmaceutical Statistics 2011.

    Args:
        click: 0 or 1, ``[N]``.
        propensity: in (0, 1), ``[N]``; 0 and 1 are matched as the nearest float64 inside.
        outcome: finite, >= 0, ``[N]``.
        caliper: the largest distance of a match, in standard deviations of the logit over all rows.

    Raises:
        ValueError: An argument is not 1-d, has another length, or is not finite.
        UndefinedMetricError: No clicked row has a match, or all matches have outcome 0.
    """
    clicks, chances, outcomes = _numbers(click=click, propensity=propensity, outcome=outcome)
    inside = np.clip(chances.astype(np.float64), 1e-300, 1 - 2**-53)
    logit = np.log(inside) - np.log1p(-inside)
    result = outcomes.astype(np.float64)
    clicked = clicks > 0
    if clicked.all() or not clicked.any():
        raise UndefinedMetricError("matching needs clicked and unclicked rows")
    place, which, many = np.unique(logit[~clicked], return_inverse=True, return_counts=True)
    mean = np.bincount(which, result[~clicked]) / many
    wanted = logit[clicked]
    right = np.minimum(np.searchsorted(place, wanted), place.size - 1)
    left = np.maximum(right - 1, 0)
    to_left, to_right = np.abs(wanted - place[left]), np.abs(wanted - place[right])
    nearest = np.where(to_left < to_right, mean[left], mean[right])
    tied = to_left == to_right
    both = (many[left] * mean[left] + many[right] * mean[right]) / (many[left] + many[right])
    nearest = np.where(tied, both, nearest)
    near = np.minimum(to_left, to_right) <= caliper * np.std(logit)
    if not near.any():
        raise UndefinedMetricError(f"no match within {caliper} standard deviations of the logit")
    matched = float(np.mean(nearest[near]))
    if matched == 0:
        raise UndefinedMetricError("all matched unclicked rows have outcome 0")
    return float(np.mean(result[clicked][near])) / matched


def user_ranking(label: ArrayLike, score: ArrayLike, user: ArrayLike) -> UserRanking:
    """Ranks each user's rows by descending score.

    Args:
        label: 0 or 1, any bool or numeric dtype, ``[N]``.
        score: Finite, ``[N]``. Float32 takes a third of the time of float64.
        user: Any integers, ``[N]``.

    Raises:
        ValueError: As ``class_scores``; also when ``user`` is not of an integer dtype.
        UndefinedMetricError: There are no rows.
    """
    owner = _column("user", user)
    positive, values = labelled_scores(label, score, owner)
    _require_finite("score", values)
    if owner.dtype.kind not in "iu":
        raise ValueError(f"user must be of an integer dtype, not {owner.dtype}")
    # One integer key (user, descending score, label) per row: sorting values is several times
    # faster than a lexsort, and the sorted key still holds all that is needed of the row.
    # Without -0.0, whose bits are not those of its equal.
    code, width = _descending_code(values + 0)
    key = _user_code(owner, 63 - width)
    key <<= np.uint64(width)
    key |= code
    key <<= np.uint64(1)
    key |= positive
    sort_in_place(key)
    positive = (key & np.uint64(1)).astype(bool)
    key >>= np.uint64(1)
    start = _starts(key)
    first = _starts(key[start] >> np.uint64(width))
    rows = np.diff(start, append=key.size)
    return UserRanking(
        first=first,
        above=_before(rows, first),
        rows=rows,
        positives=np.add.reduceat(positive, start, dtype=np.int64),
    )


def gauc(ranking: UserRanking) -> float:
    """AUC per user, averaged with the user's number of rows (impressions) as weight, in [0, 1].

    sum_u n_u AUC_u / sum_u n_u over the users with both classes. RecBole's metric of the same name
    has the user's number of positives as weight, and so another value.

    Source: Zhu et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018.

    Raises:
        UndefinedMetricError: No user has both classes.
    """
    each, weight = user_auc(ranking)
    return math.fsum((weight * each).tolist()) / int(np.sum(weight))


def user_auc(ranking: UserRanking) -> tuple[Floats, Ints]:
    """AUC and number of rows of each user with both classes, in ascending order of user, ``[U]``.

    Raises:
        UndefinedMetricError: No user has both classes.
    """
    first, positive = ranking.first, ranking.positives
    negative = ranking.rows - positive
    twice_won = np.add.reduceat(negative * (2 * _before(positive, first) + positive), first)
    positives = np.add.reduceat(positive, first)
    negatives = np.add.reduceat(negative, first)
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        raise UndefinedMetricError(f"no user with both classes among {first.size:,} users")
    positives, negatives = positives[both], negatives[both]
    return twice_won[both] / (2 * positives * negatives), positives + negatives


def ndcg_at_k(ranking: UserRanking, k: int) -> float:
    """NDCG of the top k per user, averaged over the users with at least one positive, in [0, 1].

    DCG = sum of label / log2(rank + 1) over ranks 1..k; NDCG = DCG / the greatest DCG. Tied rows
    count at the expected value over random tie orders (``sklearn.metrics.ndcg_score``).

    Source: McSherry & Najork, ECIR 2008.

    Raises:
        ValueError: ``k`` is not an int >= 1.
        UndefinedMetricError: No user has a positive.
    """
    return _mean(user_ndcg(ranking, k))


def user_ndcg(ranking: UserRanking, k: int) -> Floats:
    """NDCG of the top k of each user with a positive, in ascending order of user, ``[U]``.

    Raises:
        ValueError: ``k`` is not an int >= 1.
        UndefinedMetricError: No user has a positive.
    """
    depth = _depth(ranking, k)
    discount = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, depth + 2)))))
    dcg, positives = _expected_gain(ranking, discount)
    return dcg / discount[np.minimum(positives, depth)]


def recall_at_k(ranking: UserRanking, k: int) -> float:
    """Share of a user's positives in the top k, averaged over users with a positive, in [0, 1].

    Tied rows count at the expected value over random tie orders.

    Source (ties): McSherry & Najork, ECIR 2008.

    Raises:
        ValueError: ``k`` is not an int >= 1.
        UndefinedMetricError: No user has a positive.
    """
    return _mean(user_recall(ranking, k))


def user_recall(ranking: UserRanking, k: int) -> Floats:
    """Share of the positives of each user that has one in the user's top k, by user, ``[U]``.

    Raises:
        ValueError: ``k`` is not an int >= 1.
        UndefinedMetricError: No user has a positive.
    """
    depth = _depth(ranking, k)
    hits, positives = _expected_gain(ranking, np.arange(depth + 1.0))
    return hits / positives


def _mean(values: Floats) -> float:
    """The mean, the same whatever the order: users may be numbered in any."""
    return math.fsum(values.tolist()) / values.size


def _column(name: str, values: ArrayLike) -> NDArray[np.generic]:
    column = np.asarray(values)
    if column.ndim != 1:
        raise ValueError(f"{name} must be 1-d, not of shape {column.shape}")
    return column


def _require_equal_length(**columns: NDArray[np.generic]) -> None:
    """Compares with the last column, and refuses empty ones."""
    *others, (reference, column) = columns.items()
    for name, other in others:
        if other.size != column.size:
            raise ValueError(
                f"{name} has {other.size:,} rows but {reference} has {column.size:,} rows"
            )
    if column.size == 0:
        raise UndefinedMetricError("no rows")


def _real(name: str, column: NDArray[np.generic]) -> Scores:
    """The column itself where it is float32 or float64, else as float32 when that is exact."""
    if column.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be of a real dtype, not {column.dtype}")
    if np.can_cast(column.dtype, np.float32):
        return column.astype(np.float32, copy=False)
    return column.astype(np.float64, copy=False)


def _require_finite(name: str, values: Scores) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        bad = values.size - np.count_nonzero(finite)
        raise ValueError(f"{name} is not finite in {bad:,} of {values.size:,} rows")


def labelled_scores(
    label: ArrayLike, score: ArrayLike, user: NDArray[np.generic] | None = None
) -> tuple[NDArray[np.bool_], Scores]:
    """The columns, checked but for finiteness; they may be the arguments themselves."""
    labels, scores = _column("label", label), _column("score", score)
    if user is None:
        _require_equal_length(label=labels, score=scores)
    else:
        _require_equal_length(label=labels, user=user, score=scores)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"label must be of a bool or numeric dtype, not {labels.dtype}")
    positive = labels.astype(bool, copy=False)
    bad = 0 if positive is labels else np.count_nonzero(labels != positive)
    if bad:
        raise ValueError(f"label is neither 0 nor 1 in {bad:,} of {labels.size:,} rows")
    return positive, _real("score", scores)


def _numbers(**given: ArrayLike) -> list[Scores]:
    """Finite columns of one length, by name."""
    columns = {name: _column(name, values) for name, values in given.items()}
    _require_equal_length(**columns)
    numbers = {name: _real(name, column) for name, column in columns.items()}
    for name, column in numbers.items():
        _require_finite(name, column)
    return list(numbers.values())


def _error(truth: ArrayLike, score: ArrayLike) -> Floats:
    truths, scores = _numbers(truth=truth, score=score)
    return np.subtract(scores, truths, dtype=np.float64)


def _require_positive_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, not {value!r}")


def _rows(classes: ClassScores) -> int:
    return classes.positive.size + classes.negative.size


def _positives(classes: ClassScores) -> int:
    positives = classes.positive.size
    if positives == 0:
        raise UndefinedMetricError(f"no positive among {_rows(classes):,} rows")
    return positives


def _negatives(classes: ClassScores) -> int:
    negatives = classes.negative.size
    if negatives == 0:
        raise UndefinedMetricError(f"no negative among {_rows(classes):,} rows")
    return negatives


def _confusion(classes: ClassScores, threshold: float) -> tuple[int, int]:
    """True positives and predicted positives."""
    if math.isnan(threshold):
        raise ValueError("threshold must not be NaN")
    # A NumPy scalar is compared in float64, and nothing but the entries that are looked at.
    wide = np.float64(threshold)
    true, false = (s.size - bisect_left(s, wide) for s in (classes.positive, classes.negative))
    return true, true + false


def clipped(scores: Scores) -> Floats:
    """A new array of probabilities whose logarithms, and their complements', are finite."""
    p = scores.astype(np.float64)
    return np.clip(p, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR, out=p)


def _ranks(ordered: Scores, values: Scores) -> tuple[Ints, Ints]:
    """For each value, the number of ordered entries that are lower, and that are no higher."""
    below = np.searchsorted(ordered, values, side="left")
    upto = below.copy()
    if ordered.size:
        # Most values are none of the entries, which is cheaper to see than to search for.
        equal = ordered.take(below, mode="clip") == values
        upto[equal] = np.searchsorted(ordered, values[equal], side="right")
    return below, upto


def _sums(values: Scores, edge: Ints) -> Floats:
    """The sum of the values between each two successive edges."""
    return np.array([np.sum(values[a:b], dtype=np.float64) for a, b in pairwise(edge)])


def _entry(values: Scores, at: Ints) -> Scores:
    """The values at some indices, infinity beyond the last."""
    entry = np.full(at.shape, np.inf, dtype=values.dtype)
    inside = at < values.size
    entry[inside] = values[at[inside]]
    return entry


def _starts(ordered: NDArray[np.generic]) -> Ints:
    """Index of the first entry of each run of equal values."""
    new = np.empty(ordered.size, dtype=bool)
    new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new).astype(np.int64, copy=False)


def _before(count: Ints, first: Ints) -> Ints:
    """Sum of the counts of the same user's earlier entries."""
    before = np.cumsum(count) - count
    before -= np.repeat(before[first], np.diff(first, append=count.size))
    return before


def _descending_code(score: Scores) -> tuple[NDArray[np.uint64], int]:
    """Unsigned codes, equal or descending as the scores, and their width in bits."""
    if score.dtype == np.float32:
        # IEEE 754: the bits order as a signed integer does, once a negative's magnitude is flipped.
        bits = score.view(np.int32)
        bits = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
        return (0x7FFFFFFF - bits.astype(np.int64)).astype(np.uint64), 32
    order = np.argsort(score)[::-1]
    ordered = score[order]
    rank = np.zeros(score.size, dtype=np.uint64)
    rank[1:] = np.cumsum(ordered[1:] != ordered[:-1])
    code = np.empty_like(rank)
    code[order] = rank
    return code, int(rank[-1]).bit_length()


def _user_code(user: NDArray[np.generic], width: int) -> NDArray[np.uint64]:
    """Unsigned codes, equal or ascending as the users, of at most so many bits."""
    wide = user.astype(np.uint64 if user.dtype == np.uint64 else np.int64)
    low = wide.min()
    if (int(wide.max()) - int(low)).bit_length() <= width:
        code: NDArray[np.uint64] = (wide - low).astype(np.uint64, copy=False)
        return code
    # Sparse ids, hashes for example. Their ranks fit: the width is at least 31 bits.
    rank: NDArray[np.intp] = np.unique(wide, return_inverse=True)[1]
    return rank.astype(np.uint64)


def _depth(ranking: UserRanking, k: int) -> int:
    """k, or the most rows of any user if that is less."""
    _require_positive_int("k", k)
    return min(int(k), int(np.max(ranking.above + ranking.rows)))


def _expected_gain(ranking: UserRanking, gain: Floats) -> tuple[Floats, Ints]:
    """Expected gain and number of positives of each user that has a positive.

    ``gain[r]`` is the gain of r positives on ranks 1..r, for r up to the cut-off: a tie group
    spreads its positives evenly over the gain between its ends.
    """
    positives = np.add.reduceat(ranking.positives, ranking.first)
    some = positives > 0
    if not some.any():
        raise UndefinedMetricError(f"no user with a positive among {positives.size:,} users")
    cutoff = gain.size - 1
    end = gain[np.minimum(ranking.above + ranking.rows, cutoff)]
    begin = gain[np.minimum(ranking.above, cutoff)]
    expected = np.add.reduceat(ranking.positives * (end - begin) / ranking.rows, ranking.first)
    return expected[some], positives[some]
