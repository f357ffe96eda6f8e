"""Exact metrics of scored binary tasks (click, conversion), as functions of arrays.

Two sufficient statistics carry the cost, one sort each; every metric then reads the statistic:

* ``tie_groups(label, score)``: the task over all rows, for ``auc`` ... ``ece``.
* ``user_ranking(label, score, user)``: the task within each user, for ``gauc``, ``ndcg_at_k``
  and ``recall_at_k`` at any number of cut-offs.

Rows of equal score are exchangeable: no value depends on the order of the rows. Counts are int64
and exact below 2**32 rows; everything else is float64. Float32 scores are widened, never rounded,
so a threshold is compared in float64 (``float32(0.7) < 0.7``).
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Bins",
    "TieGroups",
    "UndefinedMetricError",
    "UserRanking",
    "auc",
    "ece",
    "equal_mass_bins",
    "f1",
    "gauc",
    "ks",
    "log_loss",
    "mean_absolute_error",
    "mean_difference",
    "ndcg_at_k",
    "pcoc",
    "pr_auc",
    "recall",
    "recall_at_k",
    "tie_groups",
    "user_ranking",
]

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

_PROBABILITY_FLOOR = 1e-15  # recbole.evaluator.metrics.LogLoss


class UndefinedMetricError(ValueError):
    """The metric has no value on these rows; the message says why."""


class TieGroups(NamedTuple):
    """A scored binary task, one entry per distinct score, in ascending order of score.

    Attributes:
        score: The distinct scores, ``[G]``.
        rows: Number of rows with that score (>= 1), ``[G]``.
        positives: Number of those rows with label 1, ``[G]``.
    """

    score: NDArray[np.float32] | Floats
    rows: Ints
    positives: Ints


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


def tie_groups(label: ArrayLike, score: ArrayLike) -> TieGroups:
    """Groups the rows by score.

    Args:
        label: 0 or 1, any bool or numeric dtype, ``[N]``.
        score: Finite, ``[N]``.

    Raises:
        ValueError: An argument is not 1-d, has another length, a label other than 0 and 1, or a
            score that is not a finite number.
        UndefinedMetricError: There are no rows.
    """
    positive, values = _labelled_scores(label, score)
    # Sorting values, and the positives' values again, is 2-3 times faster than one argsort: numpy
    # vectorises the former, and the latter must gather labels from all over memory.
    positive_values = np.sort(values[positive])
    values.sort()
    start = _starts(values)
    distinct = values[start]
    # Positives are few: what is counted where they occur needs no pass over all groups.
    group, count = np.unique(np.searchsorted(distinct, positive_values), return_counts=True)
    positives = np.zeros(distinct.size, dtype=np.int64)
    positives[group] = count
    rows = np.empty(distinct.size, dtype=np.int64)
    np.subtract(start[1:], start[:-1], out=rows[:-1])
    rows[-1] = values.size - start[-1]
    return TieGroups(score=distinct, rows=rows, positives=positives)


def auc(groups: TieGroups) -> float:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-) / 2 (Mann-Whitney), in [0, 1].

    Raises:
        UndefinedMetricError: There is no positive or no negative.
    """
    positives, negatives = _positives(groups), _negatives(groups)
    at = np.flatnonzero(groups.positives)  # few, where the rest is only counted
    positive, rows = groups.positives[at], groups.rows[at]
    below = np.cumsum(groups.rows)[at] - rows - (np.cumsum(positive) - positive)
    twice_won = int(np.sum(positive * (2 * below + rows - positive)))
    return twice_won / (2 * positives * negatives)


def pr_auc(groups: TieGroups) -> float:
    """Average precision: sum_n (R_n - R_{n-1}) P_n over the distinct thresholds, in (0, 1].

    R_n and P_n are recall and precision when the rows scoring at least the n-th highest score are
    predicted positive; no interpolation (``sklearn.metrics.average_precision_score``).

    Raises:
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(groups)
    positive = groups.positives[::-1]
    precision = np.cumsum(positive) / np.cumsum(groups.rows[::-1])
    return float(np.sum(positive * precision)) / positives


def ks(groups: TieGroups) -> float:
    """Kolmogorov-Smirnov distance max_t |TPR(t) - FPR(t)| of the two classes' scores, in [0, 1].

    Raises:
        UndefinedMetricError: There is no positive or no negative.
    """
    positives, negatives = _positives(groups), _negatives(groups)
    positive = np.cumsum(groups.positives)
    negative = np.cumsum(groups.rows) - positive
    gap = np.abs(positive * negatives - negative * positives)
    return int(gap.max()) / (positives * negatives)


def log_loss(groups: TieGroups) -> float:
    """Mean of -y ln p - (1 - y) ln(1 - p), in nats, in [0, 34.54].

    p is the score clipped to [1e-15, 1 - 1e-15], as ``recbole.evaluator.metrics.LogLoss`` does.

    Raises:
        ValueError: A score lies outside [0, 1].
    """
    low, high = float(groups.score[0]), float(groups.score[-1])
    if low < 0 or high > 1:
        raise ValueError(f"score must lie in [0, 1], not in [{low!r}, {high!r}]")
    p = np.clip(groups.score.astype(np.float64), _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    negative = groups.rows - groups.positives
    loss = -np.sum(groups.positives * np.log(p) + negative * np.log1p(-p))
    return float(loss) / _rows(groups)


def recall(groups: TieGroups, threshold: float) -> float:
    """Share of the positives with score >= threshold, in [0, 1].

    Raises:
        ValueError: The threshold is NaN.
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(groups)
    return _confusion(groups, threshold)[0] / positives


def f1(groups: TieGroups, threshold: float) -> float:
    """2 TP / (2 TP + FP + FN) when score >= threshold predicts positive, in [0, 1].

    Raises:
        ValueError: The threshold is NaN.
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(groups)
    true_positives, predicted = _confusion(groups, threshold)
    return 2 * true_positives / (predicted + positives)


def pcoc(groups: TieGroups) -> float:
    """Predicted click over click: mean score / mean label; 1 is calibrated, > 1 overestimates.

    Raises:
        UndefinedMetricError: There is no positive.
    """
    positives = _positives(groups)
    return float(np.sum(groups.rows * groups.score)) / positives


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


def equal_mass_bins(groups: TieGroups, bins: int = 10) -> Bins:
    """Cuts the rows, in ascending order of score, into bins of as equal a number as possible.

    There are ``min(bins, N)``, the larger ones first (``numpy.array_split``). A tie group that
    straddles a border gives each side its share of rows at the group's mean label, that is the
    expected content of the bins over random tie orders.

    Source: Nguyen & O'Connor, EMNLP 2015.

    Raises:
        ValueError: ``bins`` is not an int >= 1.
    """
    _require_positive_int("bins", bins)
    rows = _rows(groups)
    bins = min(int(bins), rows)
    size, larger = divmod(rows, bins)
    # A bin's content is the change across it of a cumulative sum, which is piecewise linear in the
    # row number with a knot at each end of a tie group.
    edge = np.arange(bins + 1)
    edge = edge * size + np.minimum(edge, larger)
    knot = np.concatenate(([0], np.cumsum(groups.rows)))

    def content(amount: NDArray[np.generic]) -> Floats:
        return np.diff(np.interp(edge, knot, np.concatenate(([0.0], np.cumsum(amount)))))

    return Bins(np.diff(edge), content(groups.rows * groups.score), content(groups.positives))


def ece(groups: TieGroups, bins: int = 10) -> float:
    """Expected calibration error: sum_b n_b / N |mean score_b - mean label_b|, in [0, 1] for a p.

    The bins are those of :func:`equal_mass_bins`.

    Source: Naeini et al., AAAI 2015.

    Raises:
        ValueError: ``bins`` is not an int >= 1.
    """
    cut = equal_mass_bins(groups, bins)
    return float(np.sum(np.abs(cut.predicted - cut.positives))) / _rows(groups)


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


def user_ranking(label: ArrayLike, score: ArrayLike, user: ArrayLike) -> UserRanking:
    """Ranks each user's rows by descending score.

    Args:
        label: 0 or 1, any bool or numeric dtype, ``[N]``.
        score: Finite, ``[N]``. Float32 takes a third of the time of float64.
        user: Any integers, ``[N]``.

    Raises:
        ValueError: As ``tie_groups``; also when ``user`` is not of an integer dtype.
        UndefinedMetricError: There are no rows.
    """
    owner = _column("user", user)
    positive, values = _labelled_scores(label, score, owner)
    if owner.dtype.kind not in "iu":
        raise ValueError(f"user must be of an integer dtype, not {owner.dtype}")
    # One integer key (user, descending score, label) per row: sorting values is several times
    # faster than a lexsort, and the sorted key still holds all that is needed of the row.
    code, width = _descending_code(values)
    key = _user_code(owner, 63 - width)
    key <<= np.uint64(width)
    key |= code
    key <<= np.uint64(1)
    key |= positive
    key.sort()
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

    sum_u n_u AUC_u / sum_u n_u over the users with both classes.

    Source: Zhu et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018.

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
    weight = positives + negatives
    user_auc = twice_won[both] / (2 * positives * negatives)
    return float(np.sum(weight * user_auc) / np.sum(weight))


def ndcg_at_k(ranking: UserRanking, k: int) -> float:
    """NDCG of the top k per user, averaged over the users with at least one positive, in [0, 1].

    DCG = sum of label / log2(rank + 1) over ranks 1..k; NDCG = DCG / the greatest DCG. Tied rows
    count at the expected value over random tie orders (``sklearn.metrics.ndcg_score``).

    Source: McSherry & Najork, ECIR 2008.

    Raises:
        ValueError: ``k`` is not an int >= 1.
        UndefinedMetricError: No user has a positive.
    """
    depth = _depth(ranking, k)
    discount = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, depth + 2)))))
    dcg, positives = _expected_gain(ranking, discount)
    return float(np.mean(dcg / discount[np.minimum(positives, depth)]))


def recall_at_k(ranking: UserRanking, k: int) -> float:
    """Share of a user's positives in the top k, averaged over users with a positive, in [0, 1].

    Tied rows count at the expected value over random tie orders.

    Source (ties): McSherry & Najork, ECIR 2008.

    Raises:
        ValueError: ``k`` is not an int >= 1.
        UndefinedMetricError: No user has a positive.
    """
    depth = _depth(ranking, k)
    found, positives = _expected_gain(ranking, np.arange(depth + 1.0))
    return float(np.mean(found / positives))


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


def _finite(name: str, column: NDArray[np.generic]) -> NDArray[np.float32] | Floats:
    """A new array, of float32 when that is exact; without -0.0, which equals but is not 0.0."""
    if column.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be of a real dtype, not {column.dtype}")
    dtype = np.float32 if np.can_cast(column.dtype, np.float32) else np.float64
    values: NDArray[np.float32] | Floats = np.add(column, 0, dtype=dtype, casting="unsafe")
    finite = np.isfinite(values)
    if not finite.all():
        bad = values.size - np.count_nonzero(finite)
        raise ValueError(f"{name} is not finite in {bad:,} of {values.size:,} rows")
    return values


def _labelled_scores(
    label: ArrayLike, score: ArrayLike, user: NDArray[np.generic] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float32] | Floats]:
    labels, scores = _column("label", label), _column("score", score)
    if user is None:
        _require_equal_length(label=labels, score=scores)
    else:
        _require_equal_length(label=labels, user=user, score=scores)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"label must be of a bool or numeric dtype, not {labels.dtype}")
    positive = labels.astype(bool)
    bad = np.count_nonzero(labels != positive)
    if bad:
        raise ValueError(f"label is neither 0 nor 1 in {bad:,} of {labels.size:,} rows")
    return positive, _finite("score", scores)


def _error(truth: ArrayLike, score: ArrayLike) -> Floats:
    truths, scores = _column("truth", truth), _column("score", score)
    _require_equal_length(truth=truths, score=scores)
    return np.subtract(_finite("score", scores), _finite("truth", truths), dtype=np.float64)


def _require_positive_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, not {value!r}")


def _rows(groups: TieGroups) -> int:
    return int(groups.rows.sum())


def _positives(groups: TieGroups) -> int:
    positives = int(groups.positives.sum())
    if positives == 0:
        raise UndefinedMetricError(f"no positive among {_rows(groups):,} rows")
    return positives


def _negatives(groups: TieGroups) -> int:
    negatives = _rows(groups) - int(groups.positives.sum())
    if negatives == 0:
        raise UndefinedMetricError(f"no negative among {_rows(groups):,} rows")
    return negatives


def _confusion(groups: TieGroups, threshold: float) -> tuple[int, int]:
    """True positives and predicted positives."""
    if math.isnan(threshold):
        raise ValueError("threshold must not be NaN")
    at = int(np.searchsorted(groups.score, threshold, side="left"))
    return int(groups.positives[at:].sum()), int(groups.rows[at:].sum())


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


def _descending_code(score: NDArray[np.float32] | Floats) -> tuple[NDArray[np.uint64], int]:
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
