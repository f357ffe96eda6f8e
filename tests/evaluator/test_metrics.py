import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn import metrics as sk

from recbole_escm2.evaluator.metrics import (
    UndefinedMetricError,
    auc,
    class_scores,
    ece,
    f1,
    gauc,
    ks,
    log_loss,
    mean_absolute_error,
    mean_difference,
    ndcg_at_k,
    pcoc,
    pr_auc,
    recall,
    recall_at_k,
    user_ranking,
)

many = settings(deadline=None, max_examples=120, derandomize=True)
few = settings(deadline=None, max_examples=50, derandomize=True)

# Six rows; a tie of a positive and a negative at 0.5.
#   score   0.125  0.25  0.5  0.5  0.75  0.875
#   label     0      1    0    1    0      1
SCORE = [0.5, 0.875, 0.125, 0.75, 0.5, 0.25]
LABEL = [0, 1, 0, 0, 1, 1]

# Three users of different sizes, rows shuffled; the third has no positive.
#   user 7:   0.9:1  0.6:0  0.6:1  0.1:0
#   user -2:  0.8:0  0.3:1  0.2:0
#   user 5:   0.4:0
RANKED_USER = [7, -2, 5, 7, -2, 7, -2, 7]
RANKED_SCORE = [0.6, 0.2, 0.4, 0.9, 0.8, 0.6, 0.3, 0.1]
RANKED_LABEL = [0, 0, 0, 1, 0, 1, 1, 0]


def approx(value: float):
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def scores(dtype: type) -> st.SearchStrategy:
    """Tenths, so that ties are many; as float32 they are not multiples of each other."""
    return st.integers(0, 10).map(lambda tenths: dtype(tenths) / dtype(10))


@st.composite
def tasks(draw, both_classes=False, max_size=40, dtypes=(np.float32, np.float64)):
    """Label and score."""
    dtype = draw(st.sampled_from(dtypes))
    size = draw(st.integers(2 if both_classes else 1, max_size))
    label = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    if both_classes:
        label[:2] = [0, 1]
    else:
        label[0] = 1
    score = draw(st.lists(scores(dtype), min_size=size, max_size=size))
    return np.array(label), np.array(score, dtype=dtype)


@st.composite
def user_tasks(draw, max_size=40):
    """Label, score and user; some user has both classes."""
    label, score = draw(tasks(both_classes=True, max_size=max_size))
    ids = draw(st.sampled_from([(-3, 0, 1, 12), (-(2**63), 5, 6, 2**63 - 1)]))
    user = draw(st.lists(st.sampled_from(ids), min_size=label.size, max_size=label.size))
    user[1] = user[0]
    return label, score, np.array(user)


def per_user(label, score, user):
    for u in np.unique(user):
        yield label[user == u], score[user == u].astype(np.float64)


# --- by hand ---------------------------------------------------------------------------------


def test_class_scores_by_hand():
    classes = class_scores(LABEL, SCORE)
    assert classes.positive.tolist() == [0.25, 0.5, 0.875]
    assert classes.negative.tolist() == [0.125, 0.5, 0.75]
    assert classes.below.tolist() == [1, 1, 3]
    assert classes.upto.tolist() == [1, 2, 3]
    assert classes.positive.dtype == classes.negative.dtype == np.float64
    assert classes.below.dtype == classes.upto.dtype == np.int64


def test_auc_by_hand():
    # Negatives beaten: by 0.25 one (0.125); by 0.5 one and a tie; by 0.875 all three.
    assert auc(class_scores(LABEL, SCORE)) == approx((1 + 1.5 + 3) / 9)


def test_pr_auc_by_hand():
    # A positive is reached at 0.875 (1 of 1), 0.5 (2 of 4) and 0.25 (3 of 5).
    assert pr_auc(class_scores(LABEL, SCORE)) == approx((1 / 1 + 2 / 4 + 3 / 5) / 3)


def test_ks_by_hand():
    # (TPR, FPR) from the top: (1/3, 0) (1/3, 1/3) (2/3, 2/3) (1, 2/3) (1, 1).
    assert ks(class_scores(LABEL, SCORE)) == approx(1 / 3)
    # The sign does not matter: with the classes swapped TPR < FPR.
    assert ks(class_scores([1, 1, 0, 0], [0.1, 0.2, 0.2, 0.3])) == approx(1 / 2)


def test_log_loss_by_hand():
    # Positives 0.25, 0.5, 0.875; negatives' complements 0.875, 0.5, 0.25: the product of all
    # six is (0.25 * 0.5 * 0.875)^2.
    expected = -math.log((0.25 * 0.5 * 0.875) ** 2) / 6
    assert log_loss(class_scores(LABEL, SCORE)) == approx(expected)


def test_log_loss_is_clipped_as_recbole_clips():
    # A certain and wrong prediction costs -ln 1e-15 = 34.538776...; a certain and right one 0.
    assert log_loss(class_scores([1, 0], [0.0, 0.0])) == approx(15 * math.log(10) / 2)
    # 1 - (1 - 1e-15) is 9.992e-16 in float64, for RecBole too.
    assert log_loss(class_scores([0], [1.0])) == approx(-math.log(1 - (1 - 1e-15)))


def test_recall_and_f1_by_hand():
    classes = class_scores(LABEL, SCORE)
    # At 0.5: four rows predicted positive, the threshold's own tie among them; TP 2, FP 2, FN 1.
    assert recall(classes, 0.5) == approx(2 / 3)
    assert f1(classes, 0.5) == approx(4 / (4 + 2 + 1))
    # Just above 0.5: TP 1, FP 1, FN 2.
    assert recall(classes, 0.5 + 1e-9) == approx(1 / 3)
    assert f1(classes, 0.5 + 1e-9) == approx(2 / (2 + 1 + 2))
    # All, and none.
    assert (recall(classes, -math.inf), f1(classes, -math.inf)) == (1.0, approx(6 / 9))
    assert (recall(classes, 0.9), f1(classes, 0.9)) == (0.0, 0.0)


def test_threshold_is_compared_in_float64():
    score = np.array([0.7], dtype=np.float32)  # 0.699999988...
    assert recall(class_scores([1], score), 0.7) == 0.0
    assert recall(class_scores([1], score), np.float32(0.7)) == 1.0


def test_pcoc_by_hand():
    # Scores sum to 3, labels to 3; then 0.9 over 1.
    assert pcoc(class_scores(LABEL, SCORE)) == approx(1.0)
    assert pcoc(class_scores([0, 1], [0.4, 0.5])) == approx(0.9)


def test_ece_by_hand():
    classes = class_scores(LABEL, SCORE)
    # Two bins of 3. The tie (sum of scores 1, of labels 1) gives one row to each, label 1/2:
    # low 0.125 + 0.25 + 0.5 = 0.875 against 0 + 1 + 0.5; high 0.5 + 0.75 + 0.875 = 2.125
    # against 0.5 + 0 + 1.
    assert ece(classes, 2) == approx((0.625 + 0.625) / 6)
    # Four bins, of 2, 2, 1, 1 rows: 0.375 - 1; 1 - 1; 0.75 - 0; 0.875 - 1.
    assert ece(classes, 4) == approx((0.625 + 0 + 0.75 + 0.125) / 6)
    # One bin: 3 - 3. One row a bin: 0.125, 0.75, 0, 0, 0.75, 0.125.
    assert ece(classes, 1) == approx(0)
    assert ece(classes, 6) == approx(1.75 / 6)
    assert ece(classes) == approx(1.75 / 6)


def test_mean_errors_by_hand():
    # Errors 0.25, -0.5, 0.5.
    truth, score = [0.25, 0.75, 0.0], [0.5, 0.25, 0.5]
    assert mean_absolute_error(truth, score) == approx(1.25 / 3)
    assert mean_difference(truth, score) == approx(0.25 / 3)


def test_mean_errors_are_taken_in_float64():
    truth, score = np.float32([1.0]), np.array([1.0 + 1e-12])
    assert mean_difference(truth, score) == approx(1e-12)
    assert mean_difference(truth, score) > 9e-13
    # 1 - 1e-9 is 1 in float32.
    assert mean_difference(np.float32([1e-9]), np.float32([1.0])) == 1.0 - float(np.float32(1e-9))
    score = np.full(3_000_001, 0.1, dtype=np.float32)
    assert mean_difference(np.zeros(score.size), score) == approx(float(np.float32(0.1)))


def test_user_ranking_by_hand():
    ranking = user_ranking(RANKED_LABEL, RANKED_SCORE, RANKED_USER)
    # Users -2, 5, 7.
    assert ranking.first.tolist() == [0, 3, 4]
    assert ranking.above.tolist() == [0, 1, 2, 0, 0, 1, 3]
    assert ranking.rows.tolist() == [1, 1, 1, 1, 1, 2, 1]
    assert ranking.positives.tolist() == [0, 1, 0, 0, 1, 1, 0]
    assert {array.dtype for array in ranking} == {np.dtype(np.int64)}


def test_gauc_by_hand():
    # User 7: 0.9 beats two, 0.6 ties one and beats one: 3.5 / 4, weight 4.
    # User -2: 0.3 beats one of two, weight 3. User 5 has one class.
    ranking = user_ranking(RANKED_LABEL, RANKED_SCORE, RANKED_USER)
    assert gauc(ranking) == approx((4 * 3.5 / 4 + 3 * 1 / 2) / 7)


def test_ndcg_by_hand():
    ranking = user_ranking(RANKED_LABEL, RANKED_SCORE, RANKED_USER)
    d1, d2, d3 = 1.0, 1 / math.log2(3), 1 / 2
    # k = 1: user 7 hits, user -2 does not.
    assert ndcg_at_k(ranking, 1) == approx((1 + 0) / 2)
    # k = 2: user 7's rank 2 is one of the tied two, positive half the time; user -2 hits there.
    assert ndcg_at_k(ranking, 2) == approx(((d1 + d2 / 2) / (d1 + d2) + d2 / d1) / 2)
    # k = 3 and more: the positive of user 7's tie is at rank 2 or 3.
    expected = ((d1 + (d2 + d3) / 2) / (d1 + d2) + d2 / d1) / 2
    assert ndcg_at_k(ranking, 3) == approx(expected)
    assert ndcg_at_k(ranking, 10**30) == approx(expected)


def test_recall_at_k_by_hand():
    ranking = user_ranking(RANKED_LABEL, RANKED_SCORE, RANKED_USER)
    # User 7 finds 1, 1.5, 2 of 2; user -2 finds 0, 1, 1 of 1.
    assert recall_at_k(ranking, 1) == approx((1 / 2 + 0) / 2)
    assert recall_at_k(ranking, 2) == approx((1.5 / 2 + 1) / 2)
    assert recall_at_k(ranking, 3) == approx(1.0)
    assert recall_at_k(ranking, 10**30) == approx(1.0)


# --- against scikit-learn and scipy ----------------------------------------------------------


@given(tasks(both_classes=True))
@many
def test_agrees_with_scikit_learn_and_scipy(task):
    label, score = task
    classes = class_scores(label, score)
    assert auc(classes) == approx(sk.roc_auc_score(label, score.astype(np.float64)))
    assert pr_auc(classes) == approx(sk.average_precision_score(label, score.astype(np.float64)))
    distance = ks_2samp(score[label == 1], score[label == 0], method="exact").statistic
    assert ks(classes) == approx(distance)


@given(tasks(), st.integers(-1, 11))
@many
def test_threshold_metrics_agree_with_scikit_learn(task, tenths):
    label, score = task
    classes = class_scores(label, score)
    # A score of the grid, so that >= and > differ.
    threshold = float(score.dtype.type(tenths) / score.dtype.type(10))
    predicted = score.astype(np.float64) >= threshold
    assert recall(classes, threshold) == approx(sk.recall_score(label, predicted))
    assert f1(classes, threshold) == approx(sk.f1_score(label, predicted))


@given(tasks())
@many
def test_log_loss_and_calibration_agree_with_their_definitions(task):
    label, score = task
    classes = class_scores(label, score)
    wide = score.astype(np.float64)
    assert pcoc(classes) == approx(wide.mean() / label.mean())
    p = np.clip(wide, 1e-15, 1 - 1e-15)
    recbole = np.mean(-label * np.log(p) - (1 - label) * np.log(1 - p))
    assert log_loss(classes) == approx(recbole)
    inner = np.clip(score, 0.01, 0.99).astype(np.float64)
    expected = sk.log_loss(label, inner, labels=[0, 1])
    assert log_loss(class_scores(label, inner)) == approx(expected)


@given(user_tasks(), st.integers(1, 45))
@many
def test_ndcg_agrees_with_scikit_learn(task, k):
    label, score, user = task
    expected = [
        # scikit-learn refuses a single document.
        sk.ndcg_score([y], [s], k=k) if y.size > 1 else 1.0
        for y, s in per_user(label, score, user)
        if y.any()
    ]
    assert ndcg_at_k(user_ranking(label, score, user), k) == approx(np.mean(expected))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_scikit_learn_at_size(dtype):
    rng = np.random.default_rng(0)
    # So many rows that they are sorted by radix; some tie, within a class and across.
    score = rng.beta(1, 20, 1_500_000).astype(dtype)
    score[::7] = np.round(score[::7], 2)
    label = rng.random(score.size) < score
    classes = class_scores(label, score)
    assert np.array_equal(classes.positive, np.sort(score[label]))
    assert np.array_equal(classes.negative, np.sort(score[~label]))
    assert auc(classes) == approx(sk.roc_auc_score(label, score))
    assert pr_auc(classes) == approx(sk.average_precision_score(label, score))
    score[np.flatnonzero(~label)[5]] = -math.nan
    with refuses("^score is not finite in 1 of 1,500,000 rows"):
        class_scores(label, score)


# --- against brute force ---------------------------------------------------------------------


def pairwise_auc(label, score):
    gap = score[label == 1][:, None] - score[label == 0][None, :]
    return np.mean((gap > 0) + (gap == 0) / 2)


@given(user_tasks())
@many
def test_gauc_agrees_with_pairs_of_each_user(task):
    label, score, user = task
    both = [(y, s) for y, s in per_user(label, score, user) if 0 < y.sum() < y.size]
    expected = np.average([pairwise_auc(y, s) for y, s in both], weights=[y.size for y, _ in both])
    assert gauc(user_ranking(label, score, user)) == approx(expected)


@given(user_tasks(max_size=9), st.integers(1, 6))
@few
def test_top_k_agrees_with_all_tie_orders(task, k):
    label, score, user = task
    # At most five rows a user, for the sake of the factorial.
    keep = np.concatenate([np.flatnonzero(user == u)[:5] for u in np.unique(user)])
    label, score, user = label[keep], score[keep], user[keep]
    label[0] = 1
    found, gained = [], []
    for y, s in per_user(label, score, user):
        if not y.any():
            continue
        orders = np.array(list(itertools.permutations(range(y.size))))
        # A stable sort by score of every order of the rows.
        ranked = np.take_along_axis(orders, np.argsort(-s[orders], axis=1, kind="stable"), axis=1)
        top = y[ranked][:, :k]
        discount = 1 / np.log2(np.arange(2, y.size + 2))[:k]
        found.append(top.sum(axis=1).mean() / y.sum())
        gained.append((top * discount).sum(axis=1).mean() / discount[: y.sum()].sum())
    ranking = user_ranking(label, score, user)
    assert recall_at_k(ranking, k) == approx(np.mean(found))
    assert ndcg_at_k(ranking, k) == approx(np.mean(gained))


def binned_error(label, score, bins):
    """Of rows in ascending order of score."""
    pairs = zip(
        np.array_split(label, min(bins, label.size)),
        np.array_split(score, min(bins, label.size)),
        strict=True,
    )
    return sum(abs(s.sum() - y.sum()) for y, s in pairs) / label.size


@given(tasks(max_size=60), st.integers(1, 70))
@many
def test_ece_without_ties_agrees_with_array_split(task, bins):
    label, _ = task
    score = np.random.default_rng(label.size).permutation(label.size) / label.size
    order = np.argsort(score)
    expected = binned_error(label[order], score[order], bins)
    assert ece(class_scores(label, score), bins) == approx(expected)


@given(tasks(max_size=6), st.integers(1, 8))
@few
def test_ece_with_ties_agrees_with_the_mean_of_all_tie_orders(task, bins):
    label, score = task
    orders = np.array(list(itertools.permutations(range(label.size))))
    ranked = np.take_along_axis(orders, np.argsort(score[orders], axis=1, kind="stable"), axis=1)
    expected_label = label[ranked].mean(axis=0)
    expected = binned_error(expected_label, np.sort(score).astype(np.float64), bins)
    assert ece(class_scores(label, score), bins) == approx(expected)


# --- order of the rows, dtypes ---------------------------------------------------------------


@given(user_tasks(), st.randoms(use_true_random=False))
@many
def test_order_of_rows_does_not_matter(task, random):
    label, score, user = task
    order = list(range(label.size))
    random.shuffle(order)
    shuffled = label[order], score[order], user[order]
    for ours, theirs in zip(
        (*class_scores(label, score), *user_ranking(label, score, user)),
        (*class_scores(*shuffled[:2]), *user_ranking(*shuffled)),
        strict=True,
    ):
        assert np.array_equal(ours, theirs)
    truth = np.sqrt(score.astype(np.float64)) / 2
    for metric in (mean_absolute_error, mean_difference):
        assert metric(truth[order], score[order]) == approx(metric(truth, score))


@given(user_tasks(), st.sampled_from(["<f4", ">f4", "<f8", ">f8", "f2"]))
@many
def test_dtypes_do_not_matter(task, dtype):
    label, score, user = task
    score = np.round(score * 8) / 8 - 0.5  # exact in any dtype, of both signs
    for a, b in zip(
        (*class_scores(label, score), *user_ranking(label, score, user)),
        (
            *class_scores(label.astype(bool), score.astype(dtype)),
            *user_ranking(label.astype(np.float32), score.astype(dtype), user),
        ),
        strict=True,
    ):
        assert np.array_equal(a, b)


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30
    ).map(np.float32)
)
@many
def test_any_float32_ranks_as_its_float64(score):
    label, user = np.arange(score.size) % 2, np.arange(score.size) % 3 % 2
    narrow, wide = (user_ranking(label, s, user) for s in (score, score.astype(np.float64)))
    assert all(np.array_equal(a, b) for a, b in zip(narrow, wide, strict=True))
    for u, start in enumerate(narrow.first):
        mine = np.sort(score[user == u])[::-1]
        stop = [*narrow.first, narrow.rows.size][u + 1]
        distinct, rows = np.unique(-mine, return_counts=True)
        assert narrow.rows[start:stop].tolist() == rows.tolist()
        assert narrow.above[start:stop].tolist() == [np.sum(-mine < s) for s in distinct]


def test_scores_that_differ_only_in_float64_are_no_tie():
    score = np.array([0.1, 0.1 + 1e-15])
    assert auc(class_scores([0, 1], score)) == 1.0
    assert gauc(user_ranking([0, 1], score, [3, 3])) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_of_either_sign_are_a_tie(dtype):
    score = np.array([-0.0, 0.0], dtype=dtype)
    classes = class_scores([0, 1], score)
    assert classes.below.tolist() == [0]
    assert classes.upto.tolist() == [1]
    assert auc(classes) == 0.5
    assert gauc(user_ranking([0, 1], score, [3, 3])) == 0.5


@pytest.mark.parametrize("score_dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "user",
    [
        np.array([-128, 127, 127], dtype=np.int8),
        np.array([0, 2**64 - 1, 2**64 - 1], dtype=np.uint64),
        np.array([2**64 - 2, 2**64 - 1, 2**64 - 1], dtype=np.uint64),
        np.array([-(2**63), 2**63 - 1, 2**63 - 1]),
        np.array([0, 2**31 - 1, 2**31 - 1]),
        np.array([0, 2**31, 2**31]),
        np.array([0, 2**32, 2**32]),
    ],
    ids=lambda user: f"{user.dtype}-{user[0]}-{user[1]}",
)
def test_any_integers_are_users(user, score_dtype):
    # The first user's row is above the second's and would spoil its AUC.
    score = np.array([0.9, 0.2, 0.8], dtype=score_dtype)
    ranking = user_ranking([0, 0, 1], score, user)
    assert ranking.first.tolist() == [0, 1]
    assert ranking.above.tolist() == [0, 0, 1]
    assert ranking.positives.tolist() == [0, 1, 0]


def test_arguments_are_left_alone():
    arguments = [np.array(LABEL), np.float32(SCORE), np.arange(6) // 2]
    for array in arguments:
        array.flags.writeable = False
    class_scores(*arguments[:2])
    user_ranking(*arguments)
    mean_absolute_error(arguments[1], arguments[1])


# --- undefined -------------------------------------------------------------------------------

NO_POSITIVE = class_scores(np.zeros(1234), np.linspace(0, 1, 1234))
NO_NEGATIVE = class_scores(np.ones(1234), np.linspace(0, 1, 1234))


@pytest.mark.parametrize(
    "metric",
    [auc, pr_auc, ks, pcoc, lambda g: recall(g, 0.5), lambda g: f1(g, 0.5)],
    ids=["auc", "pr_auc", "ks", "pcoc", "recall", "f1"],
)
def test_undefined_without_a_positive(metric):
    with pytest.raises(UndefinedMetricError, match=r"^no positive among 1,234 rows$"):
        metric(NO_POSITIVE)


@pytest.mark.parametrize("metric", [auc, ks])
def test_undefined_without_a_negative(metric):
    with pytest.raises(UndefinedMetricError, match=r"^no negative among 1,234 rows$"):
        metric(NO_NEGATIVE)


def test_defined_with_one_class():
    assert pr_auc(NO_NEGATIVE) == 1.0
    assert recall(NO_NEGATIVE, 0.0) == f1(NO_NEGATIVE, 0.0) == 1.0
    assert pcoc(NO_NEGATIVE) == approx(0.5)
    assert ece(NO_POSITIVE) == approx(0.5)
    assert log_loss(class_scores([0], [0.5])) == approx(math.log(2))


def test_undefined_without_a_user_of_both_classes():
    # Both classes, but never of one user.
    ranking = user_ranking([0, 1, 1], [0.1, 0.2, 0.3], [4, 9, 9])
    with pytest.raises(UndefinedMetricError, match=r"^no user with both classes among 2 users$"):
        gauc(ranking)


@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k])
def test_undefined_without_a_user_with_a_positive(metric):
    ranking = user_ranking([0, 0, 0], [0.1, 0.2, 0.3], [4, 9, 9])
    with pytest.raises(UndefinedMetricError, match=r"^no user with a positive among 2 users$"):
        metric(ranking, 2)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(class_scores, 2), (user_ranking, 3), (mean_absolute_error, 2), (mean_difference, 2)],
)
def test_undefined_without_rows(function, arguments):
    with pytest.raises(UndefinedMetricError, match=r"^no rows$"):
        function(*[[]] * arguments)


# --- refused ---------------------------------------------------------------------------------


@contextmanager
def refuses(match: str):
    """A ValueError, and not the subclass that a caller may take for 'no value'."""
    with pytest.raises(ValueError, match=match) as caught:
        yield
    assert caught.type is ValueError


BAD_LABELS_AND_SCORES = [
    ("^label must be 1-d", [[0], [1]], [0.5, 0.5]),
    ("^label must be 1-d", 1, [0.5]),
    ("^score must be 1-d", [0, 1], [[0.5], [0.5]]),
    ("^label has 3 rows but score has 2 rows", [0, 1, 1], [0.5, 0.5]),
    ("^label has 0 rows but score has 2 rows", [], [0.5, 0.5]),
    ("^label is neither 0 nor 1 in 1 of 2 rows", [0, 2], [0.5, 0.5]),
    ("^label is neither 0 nor 1 in 1 of 2 rows", [-1, 1], [0.5, 0.5]),
    ("^label is neither 0 nor 1 in 1 of 2 rows", [0.5, 1], [0.5, 0.5]),
    ("^label is neither 0 nor 1 in 1 of 2 rows", [math.nan, 1], [0.5, 0.5]),
    ("^label must be of a bool or numeric dtype", ["0", "1"], [0.5, 0.5]),
    ("^score is not finite in 1 of 2 rows", [0, 1], [0.5, math.nan]),
    ("^score is not finite in 2 of 2 rows", [0, 1], [-math.inf, math.inf]),
    ("^score is not finite in 1 of 2 rows", [0, 1], np.float32([0.5, math.nan])),
    ("^score must be of a real dtype", [0, 1], ["0.5", "0.5"]),
    ("^score must be of a real dtype", [0, 1], [0.5, 0.5j]),
]


@pytest.mark.parametrize(("match", "label", "score"), BAD_LABELS_AND_SCORES)
def test_bad_label_or_score_is_refused(match, label, score):
    with refuses(match):
        class_scores(label, score)
    with refuses(match):
        user_ranking(label, score, np.zeros(np.size(score), dtype=int))


@pytest.mark.parametrize(
    ("match", "user"),
    [
        ("^user must be 1-d", [[1], [1]]),
        ("^user has 3 rows but score has 2 rows", [1, 1, 1]),
        ("^user must be of an integer dtype", [1.0, 1.0]),
        ("^user must be of an integer dtype", ["a", "b"]),
    ],
)
def test_bad_user_is_refused(match, user):
    with refuses(match):
        user_ranking([0, 1], [0.5, 0.5], user)


@pytest.mark.parametrize("metric", [mean_absolute_error, mean_difference])
@pytest.mark.parametrize(
    ("match", "truth", "score"),
    [
        ("^truth must be 1-d", [[0.5]], [0.5]),
        ("^score must be 1-d", [0.5], [[0.5]]),
        ("^truth has 2 rows but score has 1 rows", [0.5, 0.5], [0.5]),
        ("^truth is not finite in 1 of 1 rows", [math.nan], [0.5]),
        ("^score is not finite in 1 of 1 rows", [0.5], [math.inf]),
        ("^truth must be of a real dtype", ["0.5"], [0.5]),
    ],
)
def test_bad_truth_or_score_is_refused(metric, match, truth, score):
    with refuses(match):
        metric(truth, score)


@pytest.mark.parametrize("bad", [-1e-9, 1 + 1e-9])
def test_log_loss_refuses_a_score_that_is_no_probability(bad):
    with refuses(r"^score must lie in \[0, 1\]"):
        log_loss(class_scores([0, 1], [0.5, bad]))


@pytest.mark.parametrize("metric", [recall, f1])
def test_nan_threshold_is_refused(metric):
    with refuses("^threshold must not be NaN"):
        metric(class_scores(LABEL, SCORE), math.nan)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "3", None])
def test_counts_are_positive_ints(bad):
    with refuses("^bins must be an int >= 1"):
        ece(class_scores(LABEL, SCORE), bad)
    ranking = user_ranking(RANKED_LABEL, RANKED_SCORE, RANKED_USER)
    for metric in (ndcg_at_k, recall_at_k):
        with refuses("^k must be an int >= 1"):
            metric(ranking, bad)


def test_counts_may_be_numpy_ints():
    ranking = user_ranking(RANKED_LABEL, RANKED_SCORE, RANKED_USER)
    assert recall_at_k(ranking, np.int32(2)) == recall_at_k(ranking, 2)
    assert ece(class_scores(LABEL, SCORE), np.int32(2)) == ece(class_scores(LABEL, SCORE), 2)


def test_numbering_of_users_does_not_matter():
    """To the last digit: a file of predictions may know users by other ids than the run did."""
    rng = np.random.default_rng(7)
    user, score = rng.integers(300, size=5000), rng.random(5000)
    label = rng.random(5000) < 0.3
    one, other = (user_ranking(label, score, ids) for ids in (user, rng.permutation(300)[user]))
    assert gauc(one) == gauc(other)
    assert ndcg_at_k(one, 5) == ndcg_at_k(other, 5)
    assert recall_at_k(one, 5) == recall_at_k(other, 5)
