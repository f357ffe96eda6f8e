"""A split without validation: epochs are fixed, the last one is scored, nothing is chosen."""

import json

import numpy as np
import pytest
import torch

from recbole_escm2.command_line import main
from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.checkpoint import load_checkpoint

NO_VALIDATION = {"eval_args": {"split": {"RS": [0.8, 0, 0.2]}}}


def test_the_last_epoch_is_scored(settings, places):
    outcome = run("ESCM2_DR", "tiny", config_dict={**settings, **NO_VALIDATION, "epochs": 3})
    assert outcome["best_epoch"] == 2
    assert outcome["best_valid_score"] is None
    assert outcome["best_valid_result"] == {}
    assert 0.5 < outcome["test_result"]["CTR_AUC"] < 1
    file = f"{outcome['run_dir']}/checkpoint.pth"
    state = load_checkpoint(file)
    assert (state["epoch"], state["training_ended"]) == (2, True)
    again = evaluate_checkpoint(file, config_dict=places)
    assert again["test_result"] == outcome["test_result"]
    # the same as training with a validation, whose epochs are none better than the third
    longer = run("ESCM2_DR", "tiny", config_dict={**settings, **NO_VALIDATION, "epochs": 4})
    weights = load_checkpoint(f"{longer['run_dir']}/checkpoint.pth")["state_dict"]
    assert any(not torch.equal(weights[name], own) for name, own in state["state_dict"].items())


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("DeepFM", {"task": "both"}),
        ("LogisticRegression", {"task": "both", "l2_penalty": 10.0}),
        ("Constant", {}),
    ],
)
def test_other_models_train_without_validation(settings, model, more):
    keys = ("data_path", "output_dir", "numerical_features", "show_progress")
    given = {**{key: settings[key] for key in keys}, **NO_VALIDATION, **more}
    if model == "DeepFM":
        given["epochs"] = 1
    outcome = run(model, "tiny", config_dict=given, saved=False)
    assert outcome["best_valid_score"] is None
    assert np.isfinite(outcome["test_result"]["CTR_LogLoss"])


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("ESMM", {"valid_metric": "CTR_AUC"}, "no validation, on which valid_metric would act"),
        ("ESMM", {"stopping_step": 2, "eval_step": 1}, "stopping_step, eval_step would act"),
        ("ESMM", {"epochs": None}, "on which the best epoch would be chosen: give epochs"),
        ("LogisticRegression", {"epochs": None}, "would choose among 10 values of l2_penalty"),
        (
            "DeepFM",
            {"task": "both", "cvr_settings": {"stopping_step": 1}},
            "no validation, on which stopping_step would act",
        ),
    ],
)
def test_what_needs_a_validation_is_refused(settings, model, more, message):
    given = {k: v for k, v in {**settings, **NO_VALIDATION, **more}.items() if v is not None}
    if model == "LogisticRegression":
        given = {k: given[k] for k in ("data_path", "output_dir", "eval_args")}
    with pytest.raises(UsageError, match=message):
        run(model, "tiny", config_dict=given, saved=False)


def test_a_table_says_that_nothing_was_chosen(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [
        f"--{key}={value}"
        for key, value in {**settings, **NO_VALIDATION, "epochs": 1}.items()
        if key != "output_dir"
    ]
    assert main(["--model=ESMM,ESCM2_IPS", "--dataset=tiny", "--seeds=2", *line]) == 0
    (report,) = tmp_path.glob("output/benchmark-*/report.json")
    assert "after the last epoch, of a number fixed in advance" in " ".join(
        json.loads(report.read_text())["notes"]
    )
    for command in (["--model=ESMM,ESCM2_IPS", "--trials=2"], ["search", "--model=ESMM"]):
        assert main([*command, "--dataset=tiny", *line]) == 2
        assert "chosen on validation, and the split has none" in capsys.readouterr().err
