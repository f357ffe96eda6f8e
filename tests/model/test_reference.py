"""What others are compared with: a logistic regression, the base rates, the true probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.model.reference.base import pieces
from recbole_escm2.model.reference.features import OneHot, features_of
from recbole_escm2.quick_start import run
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
    settings = write("two", header, rows, rows, [*rows, ("new", "i", 1, 0)])
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
