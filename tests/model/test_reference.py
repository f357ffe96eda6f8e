"""What others are compared with: a logistic regression, the base rates, the true probabilities."""

from __future__ import annotations

import json
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.utils import FeatureType
from scipy.optimize import brentq
from scipy.special import expit
from threadpoolctl import threadpool_info, threadpool_limits

from recbole_escm2.bags import Bags
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.data.batch import Batch
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.request import read_request
from recbole_escm2.experiment.trials import candidates
from recbole_escm2.keys import KEYS, TRAINING_KEYS
from recbole_escm2.lookup import find_model
from recbole_escm2.model.reference import logistic_regression
from recbole_escm2.model.reference.base import pieces
from recbole_escm2.model.reference.features import Feature, OneHot, features_of, one_number
from recbole_escm2.model_names import CONTEXT_PACKAGE, REFERENCE_NAMES
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.run import Run
from recbole_escm2.train.training import Training


def training_of(model, settings, tmp_path, dataset="tiny", **own):
    """A training, fitted."""
    (tmp_path / "run").mkdir(exist_ok=True)
    config = Config(model, dataset, config_dict={**settings, **own})
    training = Training(config, Run(tmp_path / "run"))
    training.fit()
    return training


def result_of(outcome):
    return json.loads((Path(outcome["run_dir"]) / "result.json").read_text())


@pytest.fixture
def settings(settings):
    """Without what takes gradient steps."""
    return {key: settings[key] for key in ("data_path", "output_dir", "numerical_features")}


@pytest.fixture
def write(tmp_path):
    """Writes a data set of one table, split by its files, and gives the settings to read it."""

    def table(name, header, train, valid, test):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for part, rows in (("train", train), ("valid", valid), ("test", test)):
            lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
            (folder / f"{name}.{part}.inter").write_text("\n".join(lines) + "\n")
        return {
            "data_path": str(tmp_path / "data"),
            "output_dir": str(tmp_path / "output"),
            "benchmark_filename": ["train", "valid", "test"],
            "show_progress": False,
        }

    return table


# ------------------------------------------------------------------ logistic regression


def two_groups(rows_a, clicks_a, rows_b, clicks_b):
    """Impressions of two users, of which so many are clicked; each second click converts."""
    return [
        (user, "i", int(n < clicks), int(n < clicks and n % 2))
        for user, rows, clicks in (("a", rows_a, clicks_a), ("b", rows_b, clicks_b))
        for n in range(rows)
    ]


def test_the_optimum_of_two_groups(write, tmp_path):
    """w_a = −w_b = w by symmetry of the penalty, each group with its own equation."""
    rows = two_groups(60, 45, 40, 4)
    header = ["user_id:token", "item_id:token", "click:float", "conversion:float"]
    settings = write("two", header, rows, rows[1:], [*rows[:-1], ("new", "i", 1, 0)])
    penalty = 2.0
    training = training_of("LogisticRegression", settings, tmp_path, "two", l2_penalty=penalty)
    model, vocabulary = training.trainer.model, training.splits["train"].dataset.field2id_token
    ids = {token: number for number, token in enumerate(vocabulary["user_id"])}
    w_a, w_b, new = (model.weight[ids[token]].item() for token in ("a", "b", "new"))
    bias = model.bias.item()
    # the gradients of Σ BCE + λ/2·|w|² are zero: of b, of w_a and of w_b
    miss_a, miss_b = 60 * expit(bias + w_a) - 45, 40 * expit(bias + w_b) - 4
    assert miss_a + miss_b == pytest.approx(0, abs=0.02)
    assert miss_a + penalty * w_a == pytest.approx(0, abs=0.02)
    assert miss_b + penalty * w_b == pytest.approx(0, abs=0.02)
    # the same by another way: one unknown, since w_b = −w_a and b follows from w_a
    w = brentq(lambda w: 60 * expit(w + bias_of(w)) - 45 + penalty * w, 0, 10)
    assert w_a == pytest.approx(w, abs=1e-3)
    assert new == 0  # an id that train lacks
    scores = training.score("test")[1].of("ctr")
    item = next(iter(model.weight[model.one_hot.features[0].size :][1:])).item()  # of all rows
    np.testing.assert_allclose(scores[:60], expit(bias + item + w_a), rtol=1e-6)
    assert scores[-1] == pytest.approx(expit(bias + item), rel=1e-6)


def bias_of(w):
    return brentq(lambda b: 60 * expit(b + w) + 40 * expit(b - w) - 49, -10, 10)


def matrix_of(settings, name, pooling="mean", **own):
    """The matrix of train, and the place of each token: field and token to column."""
    config = Config("LogisticRegression", name, config_dict={**settings, **own})
    train, _, _ = (loader.dataset for loader in prepare_data(config, EntireSpaceDataset(config)))
    one_hot = OneHot(features_of(config, train), pooling)
    ends = np.cumsum([0, *(feature.size for feature in one_hot.features)])
    place = {
        (feature.name, token): start + number
        for start, feature in zip(ends[:-1], one_hot.features, strict=True)
        if not feature.is_number
        for number, token in enumerate(train.field2id_token[feature.name])
    }
    return train, one_hot, place


def test_the_matrix_is_the_features(settings):
    """Against the batches of the loader, value by value."""
    train, one_hot, _ = matrix_of(settings, "tiny")
    matrix = one_hot.of_split(train)
    assert [f.name for f in one_hot.features] == [
        *("user_id", "item_id", "hour", "age", "category", "tags")
    ]
    assert matrix.shape == (len(train), sum(f.size for f in one_hot.features))
    dense, row = matrix.toarray(), 0
    for batch in pieces(train):
        for n in range(len(batch)):
            wanted, start = np.zeros(matrix.shape[1]), 0
            for feature in one_hot.features:
                if feature.name == "tags":
                    ids = [i for i in batch["tags"][n].tolist() if i]
                    for i in ids:
                        wanted[start + i] += 1 / len(ids)
                elif feature.name == "age":
                    wanted[start + 1] = batch["age"][n, 0]
                else:
                    wanted[start + int(batch[feature.name][n])] = 1
                start += feature.size
            np.testing.assert_allclose(dense[row], wanted, rtol=1e-6)
            row += 1
    assert row == len(train)


def test_numbers_have_mean_0_and_variance_1_in_train(settings, tmp_path):
    model = (training := training_of("LogisticRegression", settings, tmp_path)).trainer.model
    train = training.splits["train"].dataset
    (column,) = model.one_hot.numbers
    ages = model._standardised(model.one_hot.of_split(train))[:, [column]].toarray()
    assert ages.mean() == pytest.approx(0, abs=1e-9)
    assert ages.std() == pytest.approx(1, abs=1e-9)


def test_weights_of_values_and_what_is_pooled():
    lengths = torch.tensor([[2, 0, 1]])
    weights = torch.tensor([0.5, 3.0, 2.0])
    bag = Bags(("tags",), torch.tensor([4, 1, 4]), weights, lengths)
    batch = Batch({"user": torch.tensor([1, 0, 2])}, {"tags": bag}, {"tags": 2})
    features = [Feature("user", FeatureType.TOKEN, 3), Feature("tags", FeatureType.TOKEN_SEQ, 5)]
    users = [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    values = {
        "sum": [[0, 3, 0, 0, 0.5], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2]],
        "mean": [[0, 1.5, 0, 0, 0.25], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2]],
    }
    for pooling, expected in values.items():
        matrix = OneHot(features, pooling).matrix(batch).toarray()
        np.testing.assert_array_equal(matrix, np.hstack([users, expected]))


def test_no_matrix_is_ever_dense():
    """1,000 impressions of vocabularies of 10^9 ids: 16 terabytes, if zeros were kept."""
    size, rows = 10**9, 1000
    ids = torch.randint(size, (rows,), generator=torch.Generator().manual_seed(1))
    bag = Bags(("b",), ids.repeat(3), None, torch.full((1, rows), 3))
    batch = Batch({"a": ids}, {"b": bag}, {"b": 3})
    features = [Feature("a", FeatureType.TOKEN, size), Feature("b", FeatureType.TOKEN_SEQ, size)]
    tracemalloc.start()
    matrix = OneHot(features, "mean").matrix(batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert matrix.shape == (rows, 2 * size)
    assert matrix.nnz <= 4 * rows
    assert peak < 2e6


def test_recboles_lr_with_decay_has_the_same_optimum(settings, tmp_path):
    """λ/2·|w|² over the sum of the losses is weight_decay λ/rows over their mean."""
    small = {"rows": 40_000, "conversion_rate": 0.1, "behaviours": 20}
    del settings["numerical_features"]
    settings |= {"simulation": small, "store_dir": str(tmp_path / "store"), "task": "ctr"}
    ours = training_of("LogisticRegression", settings, tmp_path, "ali-ccp-sim", l2_penalty=10.0)
    rows = len(ours.splits["train"].dataset)
    trained = {"learning_rate": 0.01, "epochs": 60, "stopping_step": 60, "train_batch_size": 1024}
    by_decay = {}
    for penalty in (10.0, 0.0):
        own = {**trained, "sparse_embedding": False, "weight_decay": penalty / rows}
        recboles = training_of("LR", settings, tmp_path, "ali-ccp-sim", **own)
        # the last epoch: an early one may be better, and is no optimum
        scores = [epoch["valid"]["CTR_AUC"] for epoch in recboles.trainer.history]
        by_decay[penalty] = scores[-1]
    best = ours.best_valid["CTR_AUC"]
    assert by_decay[10.0] == pytest.approx(best, abs=0.005)
    assert abs(by_decay[0.0] - best) > 0.02


# ------------------------------------------------------------------ base rates, true probabilities


def test_the_constant_is_the_base_rates_of_train(settings):
    outcome = run("Constant", "tiny", config_dict={**settings, "task": "both"})
    content = result_of(outcome)
    counts, test = content["data"]["train"], outcome["test_result"]
    clicks, conversions = counts["clicks"], counts["conversions"]
    rates = {
        "CTR": clicks / counts["impressions"],
        "CVR": conversions / clicks,
        "CTCVR": conversions / counts["impressions"],
    }
    of_test = content["data"]["test"]
    shares = {
        "CTR": of_test["clicks"] / of_test["impressions"],
        "CVR": of_test["conversions"] / of_test["clicks"],
        "CTCVR": of_test["conversions"] / of_test["impressions"],
    }
    for task, rate in rates.items():
        p = shares[task]
        assert test[f"{task}_AUC"] == 0.5
        assert test[f"{task}_PCOC"] == pytest.approx(rate / p, rel=1e-6)
        loss = -p * np.log(rate) - (1 - p) * np.log(1 - rate)
        assert test[f"{task}_LogLoss"] == pytest.approx(loss, rel=1e-6)


def test_the_oracle_is_the_true_probabilities(settings, tmp_path):
    for task in ("ctr", "cvr", "ctcvr"):
        training = training_of("Oracle", settings, tmp_path, task=task)
        for split in ("valid", "test"):
            _, predictions = training.score(split)
            truth = training.splits[split].dataset.truth
            known = {"ctr": truth.true_ctr, "cvr": truth.true_cvr}
            known["ctcvr"] = known["ctr"] * known["cvr"]
            np.testing.assert_allclose(predictions.of(task), known[task], rtol=1e-6)
    pair = run("Oracle", "tiny", config_dict={**settings, "task": "both"})["test_result"]
    assert pair["CVR_MAE_ES"] == pytest.approx(0, abs=1e-6)
    assert pair["IEB"] == pytest.approx(0, abs=1e-6)


def test_without_true_probabilities_there_is_no_oracle(settings):
    with pytest.raises(UsageError, match="Leave this row out"):
        run("Oracle", "ml-100k", config_dict={"output_dir": settings["output_dir"]})


# ------------------------------------------------------------------ gradient-boosted trees


def test_a_row_of_train_has_a_rate_that_its_own_label_is_not_in(write, tmp_path):
    """Ids that are seen once tell nothing: their rate in train is the base rate, whatever r is."""
    rng = np.random.default_rng(1)
    rows = [(f"u{n}", "ab"[n % 2], int(c), 0) for n, c in enumerate(rng.random(2000) < 0.3)]
    test = [(f"new{n}", "ab"[n % 2], int(c), 0) for n, c in enumerate(rng.random(500) < 0.3)]
    header = ["user_id:token", "item_id:token", "click:float", "conversion:float"]
    settings = write("once", header, rows, test, test[1:])
    training = training_of("LightGBM", settings, tmp_path, "once", task="ctr", epochs=30)
    model = training.trainer.model
    train = training.splits["train"].dataset
    seen, positive = model._count(
        train, model.labels_of(train), np.random.default_rng(model.seed).integers(5, size=2000)
    )
    rates = model._rates(seen.sum(0) - seen, positive.sum(0) - positive)
    user = model.one_hot.features[0]
    assert user.name == "user_id"
    fold = seen[:, : user.size].argmax(axis=0)
    np.testing.assert_allclose(rates[fold[1:], np.arange(1, user.size)], model.rate.item())
    # so the trees can't remember the clicks of train
    _, predictions = training.score("valid")
    assert predictions.of("ctr").std() < 0.05
    assert abs(predictions.of("ctr").mean() - 0.3) < 0.05


def test_trees_find_what_no_sum_of_features_can(write, tmp_path):
    """A click where two tokens differ: exclusive or, which a logistic regression can't learn."""
    rng = np.random.default_rng(2)
    first, second = rng.integers(2, size=(2, 6000))
    noise = rng.random(6000)
    click = (noise < np.where(first != second, 0.8, 0.2)).astype(int)
    rows = [
        (f"u{n % 7}", f"i{n % 5}", float(a), float(b), int(c), 0)
        for n, (a, b, c) in enumerate(zip(first, second, click, strict=True))
    ]
    header = [
        *("user_id:token", "item_id:token", "a:float", "b:float"),
        *("click:float", "conversion:float"),
    ]
    settings = write("xor", header, rows[:4000], rows[4000:5000], rows[5000:])
    settings["numerical_features"] = ["a", "b"]
    auc = {
        model: run(model, "xor", config_dict={**settings, "task": "ctr"})["test_result"]["CTR_AUC"]
        for model in ("LightGBM", "LogisticRegression")
    }
    assert auc["LightGBM"] > 0.77  # 0.8 is the best that there is
    assert auc["LogisticRegression"] < 0.56


def test_the_tables_of_tokens_are_counted_by_hand(write, tmp_path):
    rows = [
        ("u", "a", "x:1 y:3", 1, 0),
        ("u", "a", "x:2", 0, 0),
        ("v", "b", "", 1, 0),
        ("v", "a", "y:1", 0, 0),
    ] * 10
    header = [
        *("user_id:token", "item_id:token", "tags:token_seq"),
        *("click:float", "conversion:float"),
    ]
    rows = [
        (u, i, " ".join(t.split(":")[0] for t in tags.split()), o, r) for u, i, tags, o, r in rows
    ]
    settings = write("hand", header, rows, rows[1:], rows[:-1])
    training = training_of("LightGBM", settings, tmp_path, "hand", rate_smoothing=2.0, epochs=1)
    model, split = training.trainer.model, training.splits["test"].dataset
    known = model._integers(model.seen), model._integers(model.positive)
    table = model._table(split[:4], *known, np.zeros(4, np.int64))
    p = 0.5

    def rate(positive, seen):
        return (positive + 2 * p) / (seen + 2)

    x, y = rate(10, 20), rate(10, 20)
    expected = [
        [rate(10, 20), np.log1p(20), rate(10, 30), np.log1p(30), (x + y) / 2, np.log1p(20), 2],
        [rate(10, 20), np.log1p(20), rate(10, 30), np.log1p(30), x, np.log1p(20), 1],
        [rate(10, 20), np.log1p(20), rate(10, 10), np.log1p(10), np.nan, np.nan, 0],
        [rate(10, 20), np.log1p(20), rate(10, 30), np.log1p(30), y, np.log1p(20), 1],
    ]
    np.testing.assert_allclose(table, expected)


def test_numbers_that_are_discretised_or_several():
    buckets = np.array([[1.0, 3.0], [1.0, 1.0]])
    several = np.array([[[1.5, 1.0], [2.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(one_number(buckets), [3, 1])
    np.testing.assert_array_equal(one_number(several), [2, np.nan])
    batch = Batch({"b": torch.tensor(buckets), "s": torch.tensor(several)})
    features = [Feature("b", FeatureType.FLOAT, 4), Feature("s", FeatureType.FLOAT_SEQ, 2)]
    one_hot = OneHot(features, "mean")
    expected = [[0, 0, 0, 1, 0, 2], [0, 1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(one_hot.matrix(batch).toarray(), expected)
    assert one_hot.numbers.tolist() == [5]  # a bucket isn't brought to mean 0


@pytest.mark.parametrize("model", ["LogisticRegression", "LightGBM"])
def test_a_handful_of_impressions_is_enough(model, write):
    rows = [(f"u{n % 3}", "i", n % 2, int(n % 4 == 1)) for n in range(24)]
    header = ["user_id:token", "item_id:token", "click:float", "conversion:float"]
    settings = write("few", header, rows[:10], rows[10:17], rows[17:])
    outcome = run(model, "few", config_dict={**settings, "task": "both"})
    assert 0 <= outcome["test_result"]["CTCVR_AUC"] <= 1


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("model", ["LogisticRegression", "LightGBM", "Constant", "Oracle"])
@pytest.mark.parametrize("task", ["ctr", "cvr", "ctcvr"])
def test_a_checkpoint_scores_as_its_training_did(model, task, settings):
    outcome = run(model, "tiny", config_dict={**settings, "task": task})
    places = {key: settings[key] for key in ("data_path", "output_dir")}
    again = evaluate_checkpoint(f"{outcome['run_dir']}/checkpoint.pth", config_dict=places)
    assert again["test_result"] == outcome["test_result"]
    assert again["training_ended"]


@pytest.mark.parametrize("model", ["LogisticRegression", "LightGBM"])
def test_the_same_seed_gives_the_same_numbers(model, settings):
    own = {**settings, "task": "both"}
    first, second = (run(model, "tiny", config_dict=own, saved=False) for _ in range(2))
    assert first["test_result"] == second["test_result"]


@pytest.mark.parametrize("model", ["LogisticRegression", "LightGBM"])
def test_a_label_of_one_value_is_said(model, write):
    header = ["user_id:token", "item_id:token", "click:float", "conversion:float"]
    train = [("u", "i", n % 2, 0) for n in range(20)]
    valid = [("u", "i", n % 2, int(n % 4 == 1)) for n in range(20)]
    settings = write("none", header, train, valid, valid[1:])
    with pytest.raises(UsageError, match="its label is 0 in all 10 impressions"):
        run(model, "none", config_dict={**settings, "task": "cvr"})


@pytest.mark.parametrize("model", ["LogisticRegression", "LightGBM", "Constant", "Oracle"])
def test_what_acts_on_gradient_steps_is_refused(model, settings):
    with pytest.raises(UsageError, match=f"{model} is a reference model.* learning_rate does no"):
        run(model, "tiny", config_dict={**settings, "learning_rate": 0.1})


@pytest.mark.parametrize(
    ("model", "trials"),
    [("Constant", 1), ("Oracle", 1), ("LightGBM", 6), ("LogisticRegression", 6)],
)
def test_a_row_without_ranges_is_tried_once_as_it_is(model, trials, settings):
    options = {"model": model, "dataset": "tiny", "data_path": settings["data_path"]}
    for task, models in (("ctr", 1), ("both", 2)):
        request = read_request({**options, "task": task, "trials": "6"})
        (row,) = request.rows()
        tried = candidates(request, row, 6, 1, lambda row, config: config)
        assert len(tried) == max(trials, models)  # a model of each task


def test_in_one_command_with_the_others(program, settings):
    done = program(
        "--model=ESMM,DeepFM,LogisticRegression,LightGBM,Constant,Oracle",
        *("--dataset=tiny", "--task=both", "--seeds=2", "--epochs=2", "--name=rows"),
        *(f"--{key}={settings[key]}" for key in ("data_path", "output_dir", "numerical_features")),
        *("--learning_rate=0.01", "--saved=True"),
    )
    assert done.returncode == 0, done.stderr
    folder = Path(settings["output_dir"]) / "rows"
    rows = {row["model"]: row for row in json.loads((folder / "report.json").read_text())["rows"]}
    assert list(rows) == ["ESMM", "DeepFM", "LogisticRegression", "LightGBM", "Constant", "Oracle"]
    metrics = {"CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CVR_AUC_ES", "CVR_MAE_ES", "IEB"}
    for model, row in rows.items():
        assert len(row["runs"]) == 2
        assert metrics <= set(row["metrics"])
        share = row["share_of_lift"]["CTCVR_AUC"]
        assert share == {"Constant": 0, "Oracle": 1}.get(model, share)
        for run_of in row["runs"].values():
            checkpoints = sorted(Path(run_of["run_dir"]).rglob("*.pth"))
            assert len(checkpoints) == (1 if model == "ESMM" else 2)
    assert "CTCVR_AUC, share of lift" in done.stdout
    assert "Constant, Oracle: no learners, and so without a verdict." in done.stdout


def test_keys_act_where_they_are_declared_to():
    for name in REFERENCE_NAMES:
        own = find_model(name).config_keys
        assert {key for key, declared in KEYS.items() if name in declared.acts_on} <= own
        assert own <= TRAINING_KEYS


def test_names_that_may_be_taken_for_others(settings, caplog):
    with caplog.at_level("INFO"):
        run("LightGBM", "tiny", config_dict={**settings, "task": "both", "epochs": 1}, saved=False)
    assert caplog.text.count("RecBole's model of that name is a general recommender") == 1
    assert find_model("LightGBM").__module__.startswith("recbole_escm2.")
    with pytest.raises(UsageError, match="trees on impressions are LightGBM here"):
        find_model("XGBoost")
    assert find_spec(f"{CONTEXT_PACKAGE}.lightgbm") is None  # stock RecBole keeps its own


def test_the_solver_has_the_threads_of_the_run(settings, monkeypatch):
    threads = []

    class Solver(logistic_regression.Solver):
        def fit(self, *arguments):
            pools = threadpool_info()
            threads.extend(pool["num_threads"] for pool in pools if pool["user_api"] == "blas")
            return super().fit(*arguments)

    monkeypatch.setattr(logistic_regression, "Solver", Solver)
    with threadpool_limits(3, user_api="blas"):
        before = {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}
        run("LogisticRegression", "tiny", config_dict={**settings, "task": "ctr"}, saved=False)
    assert set(threads) == {torch.get_num_threads()}
    assert before == {3}, "the test would not see it"
