"""What single rows contribute to an AUC, and how it is kept."""

import numpy as np
import pytest

from recbole_escm2.evaluator.influence import (
    INFLUENCE_FILE,
    Influence,
    NoInfluenceError,
    TestRows,
    influence_values,
    read_influence,
    write_influence,
)
from recbole_escm2.evaluator.metrics import (
    UndefinedMetricError,
    auc,
    auc_influence,
    class_scores,
)
from recbole_escm2.evaluator.predictions import Predictions, Truth


def drawn(rows, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    label = rng.random(rows) < 0.2
    score = rng.normal(size=rows) + label
    return label, np.round(score, 1 if ties else 9)


def influence(label, score):
    return auc_influence(class_scores(label, score), label, score)


def weighted_auc(label, score, weight):
    wins = (score[label][:, None] > score[~label]) + 0.5 * (score[label][:, None] == score[~label])
    pairs = weight[label][:, None] * weight[~label]
    return (wins * pairs).sum() / pairs.sum()


@pytest.mark.parametrize("ties", [False, True])
class TestAucInfluence:
    def test_is_the_derivative_by_the_weight_of_the_row(self, ties):
        label, score = drawn(60, ties=ties)
        found = influence(label, score)
        for row in range(60):
            up, down = np.ones(60), np.ones(60)
            up[row], down[row] = 1 + 1e-5, 1 - 1e-5
            slope = (weighted_auc(label, score, up) - weighted_auc(label, score, down)) / 2e-5
            assert found[row] == pytest.approx(slope, abs=1e-7)

    def test_squares_are_delongs_variance(self, ties):
        label, score = drawn(300, ties=ties)
        wins = (score[label][:, None] > score[~label]) + 0.5 * (
            score[label][:, None] == score[~label]
        )
        positives, negatives = wins.shape
        delong = wins.mean(1).var(ddof=1) / positives + wins.mean(0).var(ddof=1) / negatives
        squares = influence(label, score) ** 2
        ours = squares[label].sum() * positives / (positives - 1)
        ours += squares[~label].sum() * negatives / (negatives - 1)
        assert ours == pytest.approx(delong)

    def test_squares_are_the_variance_that_a_bootstrap_finds(self, ties):
        label, score = drawn(400, ties=ties)
        rng = np.random.default_rng(1)
        again = []
        for _ in range(1000):
            rows = rng.integers(400, size=400)
            again.append(auc(class_scores(label[rows], score[rows])))
        assert np.sum(influence(label, score) ** 2) == pytest.approx(np.var(again), rel=0.15)

    def test_of_a_difference_is_the_difference(self, ties):
        label, score = drawn(400, ties=ties)
        other = score + np.random.default_rng(2).normal(size=400)
        rng = np.random.default_rng(3)
        again = []
        for _ in range(1000):
            rows = rng.integers(400, size=400)
            one, two = (auc(class_scores(label[rows], s[rows])) for s in (score, other))
            again.append(one - two)
        found = np.sum((influence(label, score) - influence(label, other)) ** 2)
        assert found == pytest.approx(np.var(again), rel=0.15)

    def test_sums_to_nothing(self, ties):
        label, score = drawn(500, ties=ties)
        found = influence(label, score)
        assert found[label].sum() == pytest.approx(0, abs=1e-12)
        assert found[~label].sum() == pytest.approx(0, abs=1e-12)


def test_one_class_alone_has_none():
    with pytest.raises(UndefinedMetricError, match="no positive"):
        influence(np.zeros(5, dtype=bool), np.arange(5.0))


def test_more_rows_than_are_done_at_once(monkeypatch):
    label, score = drawn(50)
    whole = influence(label, score)
    monkeypatch.setattr("recbole_escm2.evaluator.metrics._ROWS_AT_ONCE", 7)
    assert np.array_equal(influence(label, score), whole)


def predictions(seed=0, rows=200, **changes):
    rng = np.random.default_rng(7)
    labels = {
        "click": (rng.random(rows) < 0.5).astype(np.float32),
        "conversion": (rng.random(rows) < 0.4).astype(np.float32),
        "user": rng.integers(1, 20, rows),
        "potential_conversion": (rng.random(rows) < 0.4).astype(np.float32),
    }
    score = np.random.default_rng(seed).random((3, rows)).astype(np.float32)
    return Predictions(
        Truth(**{**labels, **changes}), dict(zip(("ctr", "cvr", "ctcvr"), score, strict=True))
    )


ITEM = np.random.default_rng(8).integers(1, 15, 200)


class TestValues:
    def test_are_over_the_rows_of_the_metric(self):
        made = predictions()
        found = influence_values(made, ["CTCVR_AUC", "CVR_AUC", "CVR_AUC_ES", "CTR_LogLoss"])
        clicks = int(made.truth.click.sum())
        assert {m: len(v) for m, v in found.items()} == {
            "CTCVR_AUC": 200,
            "CVR_AUC": clicks,
            "CVR_AUC_ES": 200,
        }
        assert all(values.dtype == np.float32 for values in found.values())

    def test_what_is_not_predicted_or_not_defined_has_none(self):
        made = predictions(potential_conversion=None, click=np.zeros(200))
        assert influence_values(made, ["CTCVR_AUC", "CVR_AUC", "CVR_AUC_ES"]) == {}


class TestTestRows:
    def digest(self, item=ITEM, **changes):
        return TestRows.of(predictions(**changes).truth, item).digest

    def test_a_digest_is_of_labels_users_and_items_and_their_order(self):
        truth = predictions().truth
        flipped = truth.click.copy()
        flipped[3] = 1 - flipped[3]
        others = [
            self.digest(click=flipped),
            self.digest(user=truth.user[::-1].copy()),
            self.digest(user=None),
            self.digest(item=None),
            self.digest(item=ITEM[::-1]),
            self.digest(potential_conversion=1 - truth.potential_conversion),
        ]
        assert len({self.digest(), *others}) == 1 + len(others)

    def test_the_same_rows_have_the_same(self):
        truth = predictions().truth
        hidden = np.where(truth.click > 0, truth.conversion, 1 - truth.conversion)
        assert self.digest() == self.digest(conversion=hidden)  # unclicked: it means nothing
        assert self.digest() == self.digest(user=truth.user.astype(np.int32))

    def test_clusters_of_a_metric_over_clicks(self):
        truth = predictions().truth
        rows = TestRows.of(truth, ITEM)
        user, item = rows.clusters_of("CVR_AUC")
        assert np.array_equal(user, truth.user[truth.click > 0])
        assert np.array_equal(item, ITEM[truth.click > 0])
        assert np.array_equal(rows.clusters_of("CTCVR_AUC")[0], truth.user)


class TestKept:
    METRICS = ("CTCVR_AUC", "CVR_AUC_ES")

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        write_influence(folder, predictions(), ITEM, self.METRICS)
        return folder

    def test_comes_back(self, folder):
        found, made = read_influence(folder), predictions()
        for metric, values in influence_values(made, self.METRICS).items():
            assert np.array_equal(found.of(metric), values)
        rows = TestRows.of(made.truth, ITEM)
        assert found.rows.digest == rows.digest
        for read, written in zip(found.rows.clusters, rows.clusters, strict=True):
            assert np.array_equal(read, written)

    def test_rows_are_written_once_for_all_runs(self, folder):
        (shared,) = folder.parent.glob("test-rows-*")
        before = shared.stat().st_mtime_ns
        other = folder.parent / "other"
        other.mkdir()
        write_influence(other, predictions(seed=1), ITEM, self.METRICS)
        assert list(folder.parent.glob("test-rows-*")) == [shared]
        assert shared.stat().st_mtime_ns == before
        assert [path.name for path in other.iterdir()] == [INFLUENCE_FILE]

    def test_a_metric_without_is_told(self, folder):
        found = read_influence(folder)
        with pytest.raises(NoInfluenceError, match="kept no influence values of it"):
            found.of("CTR_AUC")
        with pytest.raises(NoInfluenceError, match=r"known for CTR_AUC, CVR_AUC, .* alone"):
            found.of("CTR_LogLoss")

    def test_nothing_there_is_told(self, tmp_path):
        with pytest.raises(NoInfluenceError, match="kept no influence values"):
            read_influence(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06"])
    def test_what_is_no_archive_is_told(self, folder, content):
        (folder / INFLUENCE_FILE).write_bytes(content)
        with pytest.raises(NoInfluenceError, match=INFLUENCE_FILE):
            read_influence(folder)

    def test_a_single_array_is_told(self, folder):
        with open(folder / INFLUENCE_FILE, "wb") as file:
            np.save(file, np.arange(3))
        with pytest.raises(NoInfluenceError, match=INFLUENCE_FILE):
            read_influence(folder)

    def test_a_pickle_is_not_opened(self, folder):
        values = np.array([{"an": "object"}], dtype=object)
        digest = read_influence(folder).rows.digest
        np.savez(folder / INFLUENCE_FILE, digest=np.array(digest), CTCVR_AUC=values)
        with pytest.raises(NoInfluenceError, match="pickle"):
            read_influence(folder).of("CTCVR_AUC")

    def test_a_file_chooses_no_path(self, folder):
        np.savez(folder / INFLUENCE_FILE, digest=np.array("../../elsewhere"))
        with pytest.raises(NoInfluenceError, match="isn't what a run writes"):
            read_influence(folder)

    def test_values_of_other_rows_are_told(self, folder):
        whole = read_influence(folder)
        short = Influence(whole.rows, {"CTCVR_AUC": np.zeros(7)})
        with pytest.raises(NoInfluenceError, match="aren't of its test rows"):
            short.of("CTCVR_AUC")
