"""A CTR model and a CVR model as a pair: its product, what stops it, settings of its two models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_escm2.config import Config, part_config
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.evaluator import EntireSpaceEvaluator
from recbole_escm2.evaluator.metrics import auc, class_scores, log_loss
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.pair import keep_pace
from recbole_escm2.train.training import Training


@pytest.fixture
def asked(settings):
    """A pair whose CVR model is soon over-fitted."""
    own = {"epochs": 4, "learning_rate": 0.03, "train_batch_size": 128, "stopping_step": 2}
    return {**settings, **own, "task": "both"}


def result_of(outcome):
    return json.loads((Path(outcome["run_dir"]) / "result.json").read_text())


@pytest.fixture
def scored(monkeypatch):
    """The predictions of each validation and test, as the evaluator got them."""
    seen = []
    evaluate = EntireSpaceEvaluator.evaluate

    def spy(self, data):
        predictions = data.get("entire_space.predictions")
        seen.append(predictions)
        return evaluate(self, data)

    monkeypatch.setattr(EntireSpaceEvaluator, "evaluate", spy)
    return seen


def test_the_product_is_the_product(asked, scored):
    outcome = run("DeepFM", "tiny", config_dict=asked)
    last = scored[-1]
    ctr, cvr, product = (last.of(task) for task in ("ctr", "cvr", "ctcvr"))
    np.testing.assert_array_equal(product, ctr * cvr)
    # neither factor is near to a constant, so that the product is neither of them
    assert all(np.std(factor) > 0.05 for factor in (ctr, cvr))
    bought = (last.truth.click > 0) & (last.truth.conversion > 0)
    expected = {
        "CTCVR_AUC": auc(class_scores(bought, ctr * cvr)),
        "CTCVR_LogLoss": log_loss(class_scores(bought, ctr * cvr)),
    }
    for name, value in expected.items():
        assert outcome["test_result"][name] == pytest.approx(value, abs=1e-6)
    # each factor is what the two checkpoints predict
    for task, factor in (("ctr", ctr), ("cvr", cvr)):
        again = evaluate_checkpoint(
            f"{outcome['run_dir']}/{task}/checkpoint.pth",
            config_dict={key: asked[key] for key in ("data_path", "output_dir")},
        )
        np.testing.assert_array_equal(scored[-1].of(task), factor)
        for name, value in again["test_result"].items():
            assert outcome["test_result"][name] == value
    valid = outcome["best_valid_result"]
    assert outcome["best_valid_score"] == valid["CTCVR_AUC"]
    single = run("DeepFM", "tiny", config_dict={**asked, "task": "ctr"}, saved=False)
    for name, value in single["test_result"].items():
        assert outcome["test_result"][name] == value


@pytest.mark.parametrize(
    ("metric", "of_ctr", "of_cvr"),
    [
        (None, "CTR_AUC", "CTCVR_LogLoss"),
        ("CTCVR_AUC", "CTR_AUC", "CTCVR_AUC"),
        ("ctcvr_gauc", "CTR_GAUC", "CTCVR_GAUC"),
        ("CVR_AUC", "CTR_AUC", "CVR_AUC"),
        ("CVR_AUC_ES", "CTR_AUC", "CVR_AUC_ES"),
        ("CTR_LogLoss", "CTR_LogLoss", "CTCVR_LogLoss"),
        ("LogLoss", "LogLoss", "LogLoss"),
    ],
)
def test_the_epoch_of_the_cvr_model_is_the_best_of_the_product(asked, metric, of_ctr, of_cvr):
    changes = {} if metric is None else {"valid_metric": metric}
    content = result_of(run("DeepFM", "tiny", config_dict={**asked, **changes}))
    ctr, cvr = content["trainings"]
    assert (ctr["valid_metric"], cvr["valid_metric"]) == (of_ctr, of_cvr)
    for training in (ctr, cvr):
        found = {
            epoch["epoch"]: epoch["valid"][training["valid_metric"]]
            for epoch in training["epochs"]
            if "valid" in epoch
        }
        best = (max if training["valid_score_bigger"] else min)(found.values())
        assert training["best_valid_score"] == best == found[training["best_epoch"]]
        assert training["valid_score_bigger"] == ("LogLoss" not in training["valid_metric"])
    if metric is None:  # the last epochs are over-fitted, and aren't what is kept
        assert cvr["best_epoch"] < cvr["epochs"][-1]["epoch"]
        assert content["best_valid_result"]["CTCVR_LogLoss"] == pytest.approx(
            cvr["best_valid_score"], abs=1e-9
        )


def test_validation_scores_the_product_with_the_best_ctr_model(asked, scored):
    content = result_of(run("DeepFM", "tiny", config_dict=asked))
    ctr = [p for p in scored if set(p.score) == {"ctr"}]
    validated = sum("valid" in epoch for epoch in content["trainings"][0]["epochs"])
    best = ctr[validated]  # after its validations the CTR model's best epoch is scored once more
    products = [p for p in scored if set(p.score) == {"cvr", "ctcvr"}]
    assert len(products) == sum("valid" in epoch for epoch in content["trainings"][1]["epochs"])
    for product in products:
        np.testing.assert_array_equal(product.of("ctcvr"), best.of("ctr") * product.of("cvr"))


def test_a_predict_task_of_clicks_leaves_the_cvr_model_to_the_product(settings):
    config = Config(
        "DeepFM",
        "tiny",
        config_dict={**settings, "task": "both", "predict_task": "ctr", "valid_metric": "AUC"},
    )
    assert part_config(config, "cvr")["valid_metric"] == "CTCVR_AUC"


# ------------------------------------------------------------------ epochs and patience


@pytest.mark.parametrize(
    ("times", "epochs", "every"), [(1, 10, 2), (4, 40, 2), (5, 50, 2), (22, 220, 8)]
)
def test_epochs_are_counted_in_steps_and_patience_in_validations(times, epochs, every):
    trainer = SimpleNamespace(epochs=10, eval_step=2, stopping_step=3)
    keep_pace(trainer, times)
    assert (trainer.epochs, trainer.eval_step, trainer.stopping_step) == (epochs, every, 3)


def test_a_cvr_model_whose_first_validation_is_the_best_stops_early(asked, monkeypatch):
    evaluate = EntireSpaceEvaluator.evaluate

    def worse_and_worse(self, data):
        result = evaluate(self, data)
        if "CTCVR_LogLoss" in result:
            result["CTCVR_LogLoss"] = worse_and_worse.value = worse_and_worse.value + 1
        return result

    worse_and_worse.value = 0
    monkeypatch.setattr(EntireSpaceEvaluator, "evaluate", worse_and_worse)
    content = result_of(run("DeepFM", "tiny", config_dict={**asked, "train_batch_size": 64}))
    cvr = content["trainings"][1]
    validated = [epoch["epoch"] for epoch in cvr["epochs"] if "valid" in epoch]
    assert cvr["best_epoch"] == validated[0]
    assert len(validated) == 1 + asked["stopping_step"] + 1  # RecBole stops beyond its patience
    assert len(cvr["epochs"]) < 4 * 3


# ------------------------------------------------------------------ settings of the two


def test_each_model_has_settings_of_its_own(asked, monkeypatch):
    built = {}
    fit = Training.fit

    def spy(training):
        built[training.task] = training.trainer
        fit(training)

    monkeypatch.setattr(Training, "fit", spy)
    own = {
        "ctr_settings": {"learning_rate": 0.01, "epochs": 1},
        "cvr_settings": "{embedding_size: 3, weight_decay: 0.1, valid_metric: cvr_logloss}",
    }
    outcome = run("DeepFM", "tiny", config_dict={**asked, **own})
    ctr, cvr = (built[task] for task in ("ctr", "cvr"))
    assert (ctr.learning_rate, cvr.learning_rate) == (0.01, 0.03)
    assert (ctr.weight_decay, cvr.weight_decay) == (0.0, 0.1)
    assert (ctr.model.embedding_size, cvr.model.embedding_size) == (4, 3)
    assert ctr.epochs == 1
    content = result_of(outcome)
    assert [t["valid_metric"] for t in content["trainings"]] == ["CTR_AUC", "CVR_LogLoss"]
    assert content["config"]["ctr_settings"] == own["ctr_settings"]
    for task in ("ctr", "cvr"):
        again = evaluate_checkpoint(
            f"{outcome['run_dir']}/{task}/checkpoint.pth",
            config_dict={key: asked[key] for key in ("data_path", "output_dir")},
        )
        name = f"{task.upper()}_AUC"
        assert again["test_result"][name] == outcome["test_result"][name]


def test_the_same_settings_twice_are_those_of_all(asked):
    asked = {**asked, "epochs": 2}
    plain = run("DeepFM", "tiny", config_dict=asked, saved=False)
    own = {f"{task}_settings": {"learning_rate": 0.03} for task in ("ctr", "cvr")}
    twice = run("DeepFM", "tiny", config_dict={**asked, "learning_rate": 0.5, **own}, saved=False)
    assert plain["test_result"] == twice["test_result"]


@pytest.mark.parametrize(
    ("settings_of_two", "message"),
    [
        (
            {"ctr_settings": {"learnin_rate": 1}},
            r"ctr_settings has 'learnin_rate', .*learning_rate",
        ),
        ({"cvr_settings": {"seed": 1}}, "cvr_settings has 'seed', which the two models share"),
        ({"cvr_settings": {"task": "cvr"}}, "cvr_settings has 'task', which the two"),
        ({"ctr_settings": {"eval_args": {}}}, "ctr_settings has 'eval_args', which the two"),
        ({"ctr_settings": {"dataset": "x"}}, "ctr_settings has 'dataset', which the two"),
        ({"ctr_settings": {"metrics": ["AUC"]}}, "ctr_settings has 'metrics', which the two"),
        ({"ctr_settings": {"cvr_settings": {}}}, "ctr_settings has 'cvr_settings', which the two"),
        ({"ctr_settings": {"impression_sample": 0.1}}, "has 'impression_sample', which the two"),
        ({"cvr_settings": {"train_neg_sample_args": 1}}, "has 'train_neg_sample_args', which"),
        ({"cvr_settings": {"learning_rate": -1}}, "cvr_settings: learning_rate must be"),
        (
            {"cvr_settings": {"cin_layer_size": [3]}},
            "cvr_settings has 'cin_layer_size', which isn't",
        ),
        ({"cvr_settings": [1]}, "cvr_settings must be a mapping of config keys"),
        ({"cvr_settings": "fast"}, "cvr_settings must be a mapping of config keys"),
        ({"ctr_settings": {"valid_metric": "CTCVR_AUC"}}, "CTCVR_AUC doesn't score pCTR"),
        ({"cvr_settings": {"valid_metric": "CTR_AUC"}}, "CTR_AUC doesn't score pCVR or the prod"),
        (
            {"cvr_settings": {"valid_metric": "CVR_AUX"}},
            "cvr_settings: there is no metric 'CVR_AUX'",
        ),
        ({"cvr_settings": {"valid_metric": 3}}, "cvr_settings: there is no metric '3'"),
        ({"cvr_settings": {"valid_metric": "CVR_CRR"}}, "cvr_settings: valid_metric CVR_CRR knows"),
        (
            {"cvr_settings": {1: 2}},
            "cvr_settings must be a mapping of config keys to values, got {1: 2}",
        ),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_before_anything_trains(settings, settings_of_two, message):
    with pytest.raises(UsageError, match=message):
        Config("DeepFM", "tiny", config_dict={**settings, "task": "both", **settings_of_two})


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ("DeepFM", "ctr", "DeepFM learns one task: cvr_settings does nothing there"),
        ("DeepFM", "ctcvr", "DeepFM learns one task: cvr_settings does nothing there"),
        ("ESMM", None, "ESMM is one model of all tasks: cvr_settings does nothing there"),
    ],
)
def test_one_model_has_no_settings_of_two(settings, model, task, message):
    changes = {"cvr_settings": {"learning_rate": 0.1}, **({"task": task} if task else {})}
    with pytest.raises(UsageError, match=message):
        Config(model, "tiny", config_dict={**settings, **changes})


def test_an_uncertain_cvr_model_is_not_one_that_ranks_its_few_conversions(asked):
    """Its own AUC would choose later epochs, whose product is worse."""
    by_itself = {"cvr_settings": {"valid_metric": "CVR_AUC", "stopping_step": 30}}
    longer = {**asked, "epochs": 12, "learning_rate": 0.1}
    own = run("DeepFM", "tiny", config_dict={**longer, **by_itself}, saved=False)
    product = run("DeepFM", "tiny", config_dict=longer, saved=False)
    assert torch.isfinite(torch.tensor(list(product["test_result"].values()))).all()
    name = "CTCVR_LogLoss"
    assert product["best_valid_result"][name] <= own["best_valid_result"][name]
