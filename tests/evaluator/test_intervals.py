"""Intervals of metrics: what they say of small data, and what each row contributes."""

from dataclasses import replace

import numpy as np
import pytest

from recbole_escm2.data.truth import Truth
from recbole_escm2.evaluator import intervals as module
from recbole_escm2.evaluator.catalogue import Setting, spec_of
from recbole_escm2.evaluator.contributions import contributions
from recbole_escm2.evaluator.intervals import differences, intervals
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.metric_names import METRIC_NAMES

SETTING = Setting(threshold=0.3, k=5)
OF_ROWS = [n for n in METRIC_NAMES if not n.endswith("_RI") and "CRR" not in n and n != "PIP"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def world(users, items, rows, seed):
    """Impressions whose users and items differ; the model knows neither. Predictions and items."""
    rng = np.random.default_rng(seed)
    user = rng.integers(1, users + 1, rows)
    item = rng.integers(1, items + 1, rows)
    of_user, of_item = rng.normal(0, 0.7, users + 1), rng.normal(0, 0.5, items + 1)
    known, common = rng.normal(size=rows), of_user[user] + of_item[item]
    cvr = sigmoid(-0.5 + 0.5 * common + known)
    click = (rng.random(rows) < sigmoid(-1 + known + common)).astype(np.int8)
    potential = (rng.random(rows) < cvr).astype(np.int8)
    pctr, pcvr = sigmoid(-1 + 1.5 * known), sigmoid(-0.2 + 0.8 * known)
    truth = Truth(click, click * potential, user, potential, true_cvr=cvr)
    score = {"ctr": pctr, "cvr": pcvr, "ctcvr": pctr * pcvr}
    return Predictions(truth, {k: v.astype(np.float32) for k, v in score.items()}), item


def values_of(predictions, names, setting=SETTING):
    return {name: spec_of(name).value(predictions, setting) for name in names}


class TestInfluence:
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize(
        "name",
        [n for n in OF_ROWS if n.startswith(("CVR", "IEB")) and "ECE" not in n],
    )
    def test_is_the_derivative_by_the_weight_of_a_cluster(self, name, ties):
        """A user's rows once more, as another user's: so much changes the metric."""
        predictions, _ = world(300, 50, 3000, seed=1)
        if ties:
            rounded = {task: np.round(s, 1) for task, s in predictions.score.items()}
            predictions = Predictions(predictions.truth, rounded)
        one = contributions(predictions, name, SETTING)
        value = spec_of(name).value(predictions, SETTING)
        assert one.values.sum() == pytest.approx(0, abs=1e-9)
        user = predictions.truth.user
        of_users = user if one.rows is None else user[one.rows]
        found, wanted = [], []
        for number in range(1, 40):
            rows = np.concatenate([np.arange(3000), np.flatnonzero(user == number)])
            again = predictions.of_rows(rows)
            ids = again.truth.user.copy()
            ids[3000:] = 9999
            again = Predictions(replace(again.truth, user=ids), again.score)
            wanted.append(spec_of(name).value(again, SETTING) - value)
            if not one.by_user:
                found.append(one.values[of_users == number].sum())
        if one.by_user:  # those of users that the metric leaves out aren't there
            assert np.sum(one.values**2) == pytest.approx(
                300 / 39 * np.sum(np.square(wanted)), rel=0.5
            )
        else:
            scale = np.abs(wanted).max()
            # KS moves in steps; the others are smooth
            assert np.allclose(found, wanted, atol=(0.5 if "KS" in name else 0.06) * scale)


class TestCoverage:
    @pytest.fixture(scope="class")
    def population(self):
        return values_of(world(20_000, 20_000, 300_000, seed=99)[0], OF_ROWS)

    # of 300 intervals that hold the value with probability .95, .905 or fewer do in 1 of 2,000
    NAMES = ("CTR_AUC", "CVR_AUC", "CTCVR_PR_AUC", "CTR_LogLoss", "CTR_PCOC", "CTR_F1", "IEB")
    NAMES += ("CVR_MAE_ES", "CVR_AUC_ES", "CTR_GAUC", "CVR_Gap")

    def covered(self, population, names, users, items, by_item):
        held = dict.fromkeys(names, 0)
        for seed in range(300):
            predictions, item = world(users, items, 1000, seed)
            found = intervals(predictions, names, SETTING, item=item if by_item else None)
            for name, (_, low, high) in found.items():
                held[name] += low <= population[name] <= high
        return {name: count / 300 for name, count in held.items()}

    def test_of_users_and_items(self, population):
        found = self.covered(population, self.NAMES, users=60, items=60, by_item=True)
        assert min(found.values()) > 0.905, found

    def test_of_ks_and_ece_is_less(self, population):
        found = self.covered(
            population, ("CTR_KS", "CTR_ECE"), users=60, items=10_000, by_item=False
        )
        assert 0.84 < min(found.values()) <= max(found.values()) < 0.99, found

    def test_without_clusters_is_too_small(self, population):
        """Which shows that the test above can fail."""
        held = 0
        for seed in range(200):
            predictions, _ = world(20, 10_000, 1000, seed)
            alone = replace(predictions.truth, user=None)
            _, low, high = intervals(Predictions(alone, predictions.score), ["IEB"])["IEB"]
            held += low <= population["IEB"] <= high
        assert held / 200 < 0.85

    def test_of_a_difference(self):
        def both(*size):
            first, item = world(*size)
            noise = np.random.default_rng(size[-1]).normal(size=len(item))
            worse = {
                task: sigmoid(np.log(s / (1 - s)) + noise).astype(np.float32)
                for task, s in first.score.items()
            }
            return first, Predictions(first.truth, worse), item

        names = ("CTR_AUC", "CTR_LogLoss", "IEB", "CTR_PCOC", "CTR_ECE")
        first, second, _ = both(20_000, 20_000, 300_000, 98)
        wanted = {n: d.value for n, d in differences(first, second, names, SETTING).items()}
        held = dict.fromkeys(names, 0)
        for seed in range(150):
            first, second, item = both(60, 60, 1000, seed)
            for name, d in differences(first, second, names, SETTING, item=item).items():
                held[name] += d.low <= wanted[name] <= d.high
        assert min(held.values()) / 150 > 0.89, held

    def test_of_matched_rows_by_drawing_clusters(self):
        wanted = values_of(world(20_000, 20_000, 100_000, seed=97)[0], ["PIP"])["PIP"]
        held = 0
        for seed in range(25):
            predictions, _ = world(50, 10_000, 300, seed)
            _, low, high = intervals(predictions, ["PIP"], draws=40)["PIP"]
            held += low <= wanted <= high
        assert held >= 20  # fewer in 1 of 1,000 at 95 %


class TestWhatIsSaid:
    def test_names_reasons_and_order(self):
        predictions, _ = world(50, 50, 400, seed=0)
        without = Predictions(
            replace(predictions.truth, true_cvr=None), {"ctr": predictions.of("ctr")}
        )
        found = intervals(without, ["ctr_ndcg", "CVR_AUC", "CTR_AUC", "CTR_F1"], Setting(k=3))
        assert list(found) == ["CTR_NDCG@3", "CTR_AUC"]
        assert "predict cvr" in found.undefined["CVR_AUC"]
        assert "decision_threshold" in found.undefined["CTR_F1"]
        value, low, high = found["CTR_AUC"]
        assert low < value < high

    def test_ends_lie_inside_the_range(self):
        label = np.array([0, 0, 0, 0, 1, 0, 1, 1])
        score = np.linspace(0.01, 0.9, 8)
        found = intervals(
            Predictions(Truth(label), {"ctr": score}), ["CTR_AUC", "CTR_PR_AUC", "CTR_LogLoss"]
        )
        for value, low, high in found.values():
            assert 0 < low < value < high
        assert found["CTR_AUC"].high < 1

    def test_perfect_ranking_shows_no_spread(self):
        perfect = Predictions(
            Truth(np.array([0, 0, 1, 1])), {"ctr": np.array([0.1, 0.2, 0.8, 0.9])}
        )
        found = intervals(perfect, ["CTR_AUC"])
        assert found["CTR_AUC"].value == 1
        assert np.isnan(found["CTR_AUC"].low)
        assert "bound" in found.unknown["CTR_AUC"]

    def test_one_user_is_no_sample(self):
        predictions, _ = world(1, 50, 300, seed=0)
        found = intervals(predictions, ["CTR_AUC", "CTR_ECE", "PIP"])
        assert set(found.unknown) == {"CTR_AUC", "CTR_ECE", "PIP"}
        assert "two users" in found.unknown["CTR_AUC"]

    def test_ece_of_a_calibrated_model_begins_at_0(self):
        rng = np.random.default_rng(3)
        score = rng.random(3000)
        calibrated = Predictions(Truth((rng.random(3000) < score).astype(int)), {"ctr": score})
        _, low, high = intervals(calibrated, ["CTR_ECE"])["CTR_ECE"]
        assert low == 0 < high < 0.03

    def test_the_same_seed_gives_the_same(self):
        predictions, item = world(30, 30, 300, seed=0)
        one, two, three = (
            intervals(predictions, ["PIP", "CTR_ECE"], item=item, draws=20, seed=seed)
            for seed in (1, 1, 2)
        )
        assert one == two
        assert one["PIP"] != three["PIP"]

    def test_of_many_rows_nothing_is_drawn(self, monkeypatch):
        monkeypatch.setattr(module, "MOST_ROWS", 299)
        predictions, _ = world(30, 30, 300, seed=0)
        found = intervals(predictions, ["PIP", "CTR_AUC"])
        assert "more than 299 rows" in found.unknown["PIP"]
        assert not np.isnan(found["CTR_AUC"].low)

    def test_ids_may_be_any_numbers(self):
        predictions, item = world(30, 30, 500, seed=0)
        wide = replace(predictions.truth, user=predictions.truth.user * 10**12)
        again = Predictions(wide, predictions.score)
        names = ["CTR_AUC", "CTR_ECE"]
        found = intervals(again, names, item=-item * 10**9)
        for name, wanted in intervals(predictions, names, item=item).items():
            assert found[name] == pytest.approx(wanted, rel=1e-9)

    def test_a_model_less_itself_is_0(self):
        predictions, item = world(30, 30, 500, seed=0)
        for one in differences(
            predictions, predictions, ["CTR_AUC", "CTR_ECE", "PIP"], item=item
        ).values():
            assert one.value == 0
            assert one.error == pytest.approx(0, abs=1e-8)

    def test_a_ratio_of_0_has_a_difference_without_an_interval(self):
        predictions, item = world(30, 30, 500, seed=0)
        nothing = Predictions(predictions.truth, {"ctr": np.zeros(500, np.float32)})
        for pair in ((nothing, predictions), (predictions, nothing)):
            found = differences(*pair, ["CTR_PCOC"], item=item)
            assert np.isfinite(found["CTR_PCOC"].value)
            assert np.isnan(found["CTR_PCOC"].low)
            assert "bound" in found.unknown["CTR_PCOC"]

    def test_freedom_of_a_bias_over_all_impressions_is_that_of_all(self):
        """Clicks of few users leave the users of the other rows known."""
        predictions, _ = world(100, 50, 1000, seed=0)
        truth = replace(
            predictions.truth, click=np.where(predictions.truth.user < 10, predictions.clicks, 0)
        )
        first, second = (
            Predictions(truth, {**predictions.score, "cvr": predictions.of("cvr") * factor})
            for factor in (1, np.float32(0.9))
        )
        found = differences(first, second, ["IEB", "CVR_Gap", "CVR_PCOC"])
        assert found["IEB"].freedom == found["CVR_Gap"].freedom == 99
        assert found["CVR_PCOC"].freedom < 9

    def test_a_difference_is_drawn_once(self, monkeypatch):
        monkeypatch.setattr(module, "_LEAST_DRAWS", 5)
        monkeypatch.setattr(module, "_ROWS_OF_DRAWS", 0)
        computed = []
        value = module._value
        monkeypatch.setattr(module, "_value", lambda *a: computed.append(a) or value(*a))
        predictions, item = world(30, 30, 300, seed=0)
        differences(predictions, predictions, ["PIP"], item=item)
        assert len(computed) == 2 + 2 * 5
