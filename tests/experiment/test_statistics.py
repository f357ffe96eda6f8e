import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_escm2.evaluator.clusters import Noise, cluster_variance
from recbole_escm2.experiment.statistics import (
    INDEPENDENT,
    Comparison,
    Design,
    Draws,
    Estimate,
    compare,
    cost,
    holm,
    sample,
    tabulate,
)

few = settings(deadline=None, max_examples=80, derandomize=True)
numbers = st.floats(-10, 10).map(lambda x: round(x, 3))
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)

PLAIN = Design(INDEPENDENT, "base", ("CTR_AUC", "IEB"))
OF_A = Design(INDEPENDENT, "a")
OURS = {1: 0.71, 2: 0.74, 3: 0.73, 4: 0.78}
THEIRS = {1: 0.70, 2: 0.71, 3: 0.72, 4: 0.74}


def by_seed(values):
    return dict(enumerate(values, start=1))


class TestSample:
    def test_interval_is_students(self):
        found = sample(OURS)
        values = list(OURS.values())
        assert found.mean == pytest.approx(0.74)
        assert found.std == pytest.approx(np.std(values, ddof=1))
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))

    def test_interval_by_hand(self):
        # mean 2, s = 1, s/sqrt(3) = 0.57735, t(0.975, 2) = 4.30265
        found = sample({1: 1.0, 2: 2.0, 3: 3.0})
        assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)

    def test_one_value_has_no_interval(self):
        found = sample({7: 0.5})
        assert (found.mean, found.std, found.low, found.high) == (0.5, None, None, None)

    def test_equal_values_are_an_interval_of_no_width(self):
        found = sample({1: 0.25, 2: 0.25, 3: 0.25})
        assert (found.std, found.low, found.high) == (0, 0.25, 0.25)

    def test_no_value_is_refused(self):
        with pytest.raises(ValueError, match="needs a value"):
            sample({})

    @few
    @given(st.lists(numbers, min_size=2, max_size=8), numbers)
    def test_shifting_values_shifts_the_interval(self, values, shift):
        one = sample(by_seed(values))
        other = sample(by_seed([v + shift for v in values]))
        assert other.mean == pytest.approx(one.mean + shift, abs=1e-9)
        assert other.low == pytest.approx(one.low + shift, abs=1e-9)
        assert one.low <= one.mean <= one.high

    def test_interval_covers_the_mean_as_often_as_it_says(self):
        rng = np.random.default_rng(0)
        draws = rng.normal(3, 2, size=(2000, 4))
        samples = [sample(by_seed(row)) for row in draws]
        covered = np.mean([s.low <= 3 <= s.high for s in samples])
        assert 0.935 < covered < 0.965


class TestCost:
    @pytest.mark.parametrize(
        ("metric", "value", "expected"),
        [
            ("CTR_AUC", 0.7, -0.7),
            ("CTR_LogLoss", 0.2, 0.2),
            ("CVR_MAE_ES", 0.1, 0.1),
            ("CVR_PCOC", 0.5, math.log(2)),
            ("CVR_PCOC", 2.0, math.log(2)),
            ("IEB", -0.02, 0.02),
        ],
    )
    def test_direction(self, metric, value, expected):
        assert cost(metric, value) == pytest.approx(expected)


class TestCompare:
    def test_against_scipy(self):
        found = compare("CTR_AUC", sample(OURS), sample(THEIRS))
        test = stats.ttest_rel(list(OURS.values()), list(THEIRS.values()))
        interval = test.confidence_interval(0.95)
        assert found.pairs == 4
        assert found.difference == pytest.approx(0.0225)
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.gain

    def test_smaller_is_better(self):
        up = compare("CTR_LogLoss", sample(OURS), sample(THEIRS))
        down = compare("CTR_LogLoss", sample(THEIRS), sample(OURS))
        assert up.difference == pytest.approx(0.0225)
        assert (up.gain, down.gain) == (False, True)

    def test_target_compares_distances_seed_by_seed(self):
        # a ratio's distance is that of its logarithm: log 2, log 2 and log 1.25 against 0, .02, .03
        ours = sample({1: 0.5, 2: 2.0, 3: 1.25})
        theirs = sample({1: 1.0, 2: math.exp(0.02), 3: math.exp(-0.03)})
        found = compare("CVR_PCOC", ours, theirs)
        distances = [math.log(2), math.log(2), math.log(1.25)]
        expected = stats.ttest_rel(distances, [0.0, 0.02, 0.03])
        assert found.difference == pytest.approx((sum(distances) - 0.05) / 3)
        assert found.p == pytest.approx(expected.pvalue)
        assert not found.gain

    def test_pairs_are_the_seeds_of_both(self):
        found = compare("CTR_AUC", sample({2: 0.72, 3: 0.76, 9: 0.1}), sample(THEIRS))
        assert found.pairs == 2
        assert found.difference == pytest.approx((0.01 + 0.04) / 2)

    def test_order_of_seeds_does_not_matter(self):
        shuffled = sample({seed: THEIRS[seed] for seed in (3, 1, 4, 2)})
        assert compare("CTR_AUC", sample(OURS), shuffled).p == pytest.approx(
            compare("CTR_AUC", sample(OURS), sample(THEIRS)).p
        )

    @pytest.mark.parametrize("other", [{1: 0.5}, {8: 0.5, 9: 0.6}])
    def test_fewer_than_two_pairs_are_no_comparison(self, other):
        assert compare("CTR_AUC", sample(OURS), sample(other)) is None

    def test_no_spread(self):
        same = compare("CTR_AUC", sample(OURS), sample(OURS))
        assert (same.difference, same.p) == (0, 1)
        shifted = compare("CTR_AUC", sample({1: 0.75, 2: 0.5}), sample({1: 0.5, 2: 0.25}))
        assert (shifted.difference, shifted.p, shifted.gain) == (0.25, 0, True)

    @few
    @given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8))
    def test_turning_the_pair_round_turns_the_difference_round(self, pairs):
        ours, theirs = (sample(by_seed(side)) for side in zip(*pairs, strict=True))
        one, other = compare("CTR_AUC", ours, theirs), compare("CTR_AUC", theirs, ours)
        assert one.difference == pytest.approx(-other.difference)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert one.p == pytest.approx(other.p)
        if one.difference:
            assert one.gain != other.gain


class TestVerdict:
    @pytest.mark.parametrize(
        ("gain", "p", "expected"),
        [(True, 0.049, "better"), (False, 0.049, "worse"), (True, 0.051, "undecided")],
    )
    def test_follows_the_corrected_p(self, gain, p, expected):
        assert Comparison(5, 0.1, 0, 0.2, gain, 0.001, p).verdict == expected


class TestHolm:
    @pytest.mark.parametrize(
        ("p", "expected"),
        [
            # sorted .01 .02 .03 .04: 4·.01, 3·.02, then 2·.03 = .06 and 1·.04 raised to .06
            ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
            # Wikipedia's example: .005·4, .01·3 raised to .03, .03·2, .04 raised to .06
            ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
            ([0.5, 0.6], [1.0, 1.0]),
            ([0.2], [0.2]),
            ([], []),
            ([0.01, 0.01], [0.02, 0.02]),
        ],
    )
    def test_by_hand(self, p, expected):
        assert holm(p) == pytest.approx(expected)

    @few
    @given(p_values)
    def test_between_p_and_bonferroni_and_in_order(self, p):
        adjusted = holm(p)
        for own, corrected in zip(p, adjusted, strict=True):
            assert own <= corrected <= min(1.0, len(p) * own) + 1e-12
        order = np.argsort(p, kind="stable")
        assert np.all(np.diff(np.array(adjusted)[order]) >= 0)

    def test_rejects_wrongly_no_more_often_than_alpha(self):
        rng = np.random.default_rng(1)
        wrong = np.mean([min(holm(rng.random(10))) < 0.05 for _ in range(2000)])
        assert wrong < 0.065


class TestTabulate:
    VALUES = {  # noqa: RUF012
        "base": {"CTR_AUC": {1: 0.5, 2: 0.6, 3: 0.7}, "IEB": {1: 0.2, 2: 0.21, 3: 0.2}},
        "near": {"CTR_AUC": {1: 0.5, 2: 0.61, 3: 0.7}, "IEB": {1: -0.01, 2: 0.02, 3: -0.03}},
        "far": {"CTR_AUC": {1: 0.4, 2: 0.5, 3: 0.61}, "IEB": {1: -0.5, 2: -0.55, 3: -0.52}},
    }

    def test_corrects_over_all_cells(self):
        table = tabulate(self.VALUES, PLAIN)
        raw = [
            compare(m, sample(self.VALUES[row][m]), sample(self.VALUES["base"][m])).p
            for row in ("near", "far")
            for m in ("CTR_AUC", "IEB")
        ]
        found = [
            table[row][m].comparison.p_adjusted
            for row in ("near", "far")
            for m in ("CTR_AUC", "IEB")
        ]
        assert found == pytest.approx(holm(raw))
        assert found != pytest.approx(raw)

    def test_baseline_has_no_comparison(self):
        assert all(c.comparison is None for c in tabulate(self.VALUES, PLAIN)["base"].values())

    def test_best_is_nearest_to_the_target(self):
        table = tabulate(self.VALUES, PLAIN)
        assert [row for row in table if table[row]["IEB"].best] == ["near"]
        assert table["near"]["IEB"].comparison.verdict == "better"
        assert table["far"]["IEB"].comparison.verdict == "worse"

    def test_best_is_smallest_where_smaller_is_better(self):
        table = tabulate({"a": {"CTR_LogLoss": {1: 0.3}}, "b": {"CTR_LogLoss": {1: 0.2}}}, OF_A)
        assert (table["a"]["CTR_LogLoss"].best, table["b"]["CTR_LogLoss"].best) == (False, True)
        assert table["b"]["CTR_LogLoss"].comparison is None

    def test_ties_are_all_best_and_a_lone_row_is_not(self):
        tied = tabulate({"a": {"CTR_AUC": {1: 0.5}}, "b": {"CTR_AUC": {1: 0.5}}}, OF_A)
        assert all(row["CTR_AUC"].best for row in tied.values())
        assert not tabulate({"a": {"CTR_AUC": {1: 0.5}}, "b": {}}, OF_A)["a"]["CTR_AUC"].best

    def test_a_metric_without_values_is_left_out(self):
        assert tabulate({"a": {"CTR_AUC": {}}}, OF_A) == {"a": {}}

    def test_missing_baseline_compares_nothing(self):
        table = tabulate({"a": {"CTR_AUC": {1: 0.5, 2: 0.6}}}, Design(INDEPENDENT, "gone"))
        assert table["a"]["CTR_AUC"].comparison is None

    def test_best_of_a_target_metric_is_by_distance_not_by_mean(self):
        # the mean of "spread" is exactly 1, yet each of its seeds is farther away
        values = {
            "spread": {"CVR_PCOC": {1: 0.5, 2: 1.5}},
            "steady": {"CVR_PCOC": {1: 1.1, 2: 1.1}},
        }
        table = tabulate(values, Design(INDEPENDENT, "spread"))
        assert table["steady"]["CVR_PCOC"].best
        assert math.isclose(table["spread"]["CVR_PCOC"].sample.mean, 1)


def test_what_is_not_finite_is_not_compared():
    first, second = sample({1: 0.5, 2: math.nan}), sample({1: 0.4, 2: 0.5})
    assert compare("CTR_AUC", first, second) is None


def test_a_metric_without_a_direction_is_not_judged():
    table = tabulate({"a": {"CVR_CRR": {1: 1.0, 2: 1.1}}, "b": {"CVR_CRR": {1: 2.0, 2: 2.2}}}, OF_A)
    assert table["b"]["CVR_CRR"].comparison is None
    assert not any(table[row]["CVR_CRR"].best for row in table)


class TestDraws:
    NUMBERS = (0.01, 0.02, 0.04, 0.01)  # s² = 0.0002

    def test_splits_of_one_data_set_by_hand(self):
        found = Draws("split", test_share=0.5).estimate(self.NUMBERS)
        assert found.error**2 == pytest.approx(0.0002 * (1 / 4 + 0.5))
        assert found.freedom == 3
        assert found.p == pytest.approx(2 * stats.t.sf(0.02 / found.error, 3))
        assert found.interval == pytest.approx(stats.t.interval(0.95, 3, 0.02, found.error))

    def test_a_new_world_is_the_paired_t_test(self):
        found = Draws("world").estimate(self.NUMBERS)
        test = stats.ttest_1samp(self.NUMBERS, 0)
        assert (found.p, found.freedom) == pytest.approx((test.pvalue, 3))

    def test_weights_by_hand(self):
        found = Draws("weights").estimate(self.NUMBERS, Noise(0.0001, 20))
        assert found.error**2 == pytest.approx(0.0002 / 4 + 0.0001)
        # Satterthwaite: (.00005 + .0001)² / (.00005² / 3 + .0001² / 20)
        assert found.freedom == pytest.approx(1.5**2 / (0.5**2 / 3 + 1 / 20))

    def test_more_seeds_never_shrink_what_the_test_rows_do(self):
        rng = np.random.default_rng(0)
        numbers = rng.normal(0.02, 0.01, size=10_000)
        found = Draws("weights").estimate(numbers, Noise(0.0001, 20))
        assert found.error > 0.01
        assert found.freedom == pytest.approx(20, rel=0.01)

    def test_without_noise_it_is_that_of_the_seeds(self):
        assert Draws("weights").estimate(self.NUMBERS) == Draws("world").estimate(self.NUMBERS)

    def test_no_spread_and_no_noise(self):
        for noise in (None, Noise(0.0, 1.0)):
            assert Draws("weights").estimate([0.1, 0.1], noise).p == 0
            assert Draws("weights").estimate([0.0, 0.0], noise).p == 1

    def test_what_is_refused_has_neither_interval_nor_test(self):
        draws = Draws("split", refused="why")
        own = sample(OURS, draws)
        assert (own.low, own.high) == (None, None)
        assert own.std is not None
        found = compare("CTR_AUC", own, sample(THEIRS, draws), draws)
        assert (found.low, found.high, found.p, found.verdict) == (None, None, None, None)
        assert found.refused == "why"
        assert found.difference == pytest.approx(0.0225)

    @pytest.mark.parametrize(("seeds", "comparisons"), [(4, 1), (5, 6), (10, 20)])
    def test_the_smallest_difference_is_seen_in_four_of_five_cases(self, seeds, comparisons):
        rng = np.random.default_rng(1)
        differences = rng.normal(0, 1, size=(4000, seeds))
        # what a page with an average spread would call the smallest
        error = math.sqrt(1 / seeds)
        effect = Estimate(0, error, seeds - 1).smallest(comparisons)
        seen = [Draws("world").estimate(row + effect).p < 0.05 / comparisons for row in differences]
        assert 0.78 < np.mean(seen) < 0.82


class TestClusterVariance:
    def drawn(self, rows=2000, users=40, items=30):
        rng = np.random.default_rng(0)
        return rng.normal(size=rows), rng.integers(1, users, rows), rng.integers(1, items, rows)

    def test_is_that_of_sums_by_user_and_by_item(self):
        value, user, item = self.drawn()
        value = value + 0.3 * np.random.default_rng(1).normal(size=40)[user]
        by_user = sum(value[user == u].sum() ** 2 for u in np.unique(user))
        by_item = sum(value[item == i].sum() ** 2 for i in np.unique(item))
        found = cluster_variance(value, [user, item])
        assert found.variance == pytest.approx(
            max(by_user + by_item - (value**2).sum(), by_user, by_item)
        )
        assert cluster_variance(value, [user]).variance == pytest.approx(by_user)
        assert cluster_variance(value, []).variance == pytest.approx((value**2).sum())

    def test_is_what_drawing_users_and_items_anew_does(self):
        rng = np.random.default_rng(2)
        sums, variances = [], []
        for _ in range(400):
            user, item = rng.integers(1, 40, 600), rng.integers(1, 30, 600)
            value = rng.normal(size=40)[user] + rng.normal(size=30)[item] + rng.normal(size=600)
            sums.append(value.sum())
            variances.append(cluster_variance(value, [user, item]).variance)
        assert np.mean(variances) == pytest.approx(np.var(sums), rel=0.15)

    def test_is_never_negative(self):
        # within each user and each item values cancel out: the three terms give 0 + 0 - 4
        value, user, item = np.array([1.0, -1, -1, 1]), np.array([1, 1, 2, 2]), np.array([1, 2] * 2)
        assert cluster_variance(value, [user, item]).variance == 0

    def test_rows_without_an_id_belong_to_nobody(self):
        value, nobody = np.array([1.0, 1, 1]), np.array([0, 0, 5])
        assert cluster_variance(value, [nobody]).variance == 3
        assert cluster_variance(value, [np.array([5, 5, 5])]).variance == 9

    def test_degrees_of_freedom_count_what_carries_it(self):
        rng = np.random.default_rng(3)
        many = cluster_variance(rng.normal(size=4000), [])
        assert many.freedom == pytest.approx(4000, rel=0.1)
        few = np.concatenate([rng.normal(0, 100, 40), rng.normal(0, 0.01, 4000)])
        assert cluster_variance(few, []).freedom < 60
        assert cluster_variance(np.ones(8), []).freedom == 7
        assert cluster_variance(np.array([1.0, 0, 0]), []).freedom == 1
        assert cluster_variance(np.zeros(3), []).variance == 0


class TestFamilies:
    def values(self, **shifts):
        rng = np.random.default_rng(4)
        noise = rng.normal(0, 0.001, size=5)
        return {
            row: {
                metric: by_seed(list(0.7 + shift + noise + rng.normal(0, 0.001, size=5)))
                for metric in ("CTCVR_AUC", "CVR_AUC", "CTR_AUC")
            }
            for row, shift in shifts.items()
        }

    PRIMARY = ("CTCVR_AUC", "CVR_AUC")

    def test_verdicts_exist_in_primary_metrics_alone(self):
        table = tabulate(self.values(base=0, far=0.1), Design(INDEPENDENT, "base", self.PRIMARY))
        for metric in self.PRIMARY:
            assert table["far"][metric].comparison.verdict == "better"
            assert table["far"][metric].comparison.smallest > 0
        other = table["far"]["CTR_AUC"].comparison
        assert (other.verdict, other.p, other.p_adjusted, other.smallest) == (None,) * 4
        assert other.low < other.difference < other.high

    def test_the_logistic_regression_is_a_second_reference(self):
        design = Design(INDEPENDENT, "base", self.PRIMARY, rival="LR")
        table = tabulate(self.values(base=0, LR=0.05, a=0.02, b=0.1), design)
        assert table["a"]["CVR_AUC"].comparison.verdict == "better"
        assert table["a"]["CVR_AUC"].rival.verdict == "worse"
        assert table["b"]["CVR_AUC"].rival.verdict == "better"
        assert table["b"]["CTR_AUC"].rival is None
        for row in ("base", "LR"):  # one comparison of the two, in the row of the regression
            assert all(cell.rival is None for cell in table[row].values())
        family = [
            (c.p, c.p_adjusted)
            for row in ("LR", "a", "b")
            for m in self.PRIMARY
            for c in (table[row][m].comparison, table[row][m].rival)
            if c is not None
        ]
        p, adjusted = zip(*family, strict=True)
        assert len(family) == 10
        assert adjusted == pytest.approx(holm(p))

    def test_an_aa_row_is_a_family_of_its_own(self):
        design = Design(INDEPENDENT, "base", self.PRIMARY, rival="LR", again=["again"])
        values = self.values(base=0, again=0.2, LR=0.05, a=0.02)
        table, without = (
            tabulate({k: v for k, v in values.items() if k in rows}, design)
            for rows in (values, ("base", "LR", "a"))
        )
        assert table["a"] == without["a"]
        again = [table["again"][m].comparison for m in self.PRIMARY]
        assert [c.p_adjusted for c in again] == pytest.approx(holm([c.p for c in again]))
        assert all(cell.rival is None for cell in table["again"].values())
        assert not any(cell.best for cell in table["again"].values())

    def test_noise_goes_into_primary_metrics_of_fixed_test_rows(self):
        asked = []

        def noise(metric, row, other, seeds):
            asked.append((metric, row, other))
            return Noise(1.0, 50)

        values = self.values(base=0, far=0.1)
        design = Design(Draws("weights"), "base", self.PRIMARY, noise=noise)
        table = tabulate(values, design)
        assert {metric for metric, *_ in asked} == set(self.PRIMARY)
        assert ("CVR_AUC", "far", "base") in asked
        assert ("CVR_AUC", "base", None) in asked
        assert table["far"]["CVR_AUC"].comparison.verdict == "undecided"
        assert table["far"]["CVR_AUC"].sample.low < 0
        assert table["far"]["CTR_AUC"].comparison.low > 0

    def test_without_noise_fixed_test_rows_give_no_verdict(self):
        table = tabulate(
            self.values(base=0, far=0.1), Design(Draws("weights"), "base", self.PRIMARY)
        )
        found = table["far"]["CVR_AUC"].comparison
        assert (found.verdict, found.low) == (None, None)
        assert "influence" in found.refused
