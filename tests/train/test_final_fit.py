"""After early stopping a model is trained anew on train and validation, and counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import evaluate_checkpoint, run, show
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.trainer import EntireSpaceTrainer

LONGER = {"epochs": 8, "stopping_step": 1, "learning_rate": 0.01}


def trained(settings: dict[str, Any], model: str = "ESCM2_IPS", **changes: Any) -> Any:
    given = {**settings, **LONGER, **changes}
    return run(model, "tiny", config_dict={"final_fit": True, **given})


def test_it_is_a_training_on_both_for_the_epochs_that_were_best(settings, places, monkeypatch):
    """As a run without validation, on a split whose train is that train and that validation."""
    outcome = trained(settings)
    final = outcome["final_fit"]
    assert final["epochs"] == [outcome["best_epoch"] + 1]
    assert final["train"]["impressions"] == 3200 + 400
    without = run("ESCM2_IPS", "tiny", config_dict={**settings, **LONGER})
    assert without["final_fit"] is None
    assert final["best_epoch_test_result"] == without["test_result"]
    assert outcome["best_valid_result"] == without["best_valid_result"]
    assert outcome["test_result"] != without["test_result"]

    joined = {"eval_args": {"split": {"RS": [0.9, 0, 0.1]}}, "epochs": final["epochs"][0]}
    same = run("ESCM2_IPS", "tiny", config_dict={**settings, **joined, "learning_rate": 0.01})
    decided = ("_F1", "_Recall")  # by the share of positives in train
    names = [name for name in same["test_result"] if not name.endswith(decided)]
    assert len(names) > 20
    for name in names:
        assert same["test_result"][name] == outcome["test_result"][name], name

    file = Path(outcome["run_dir"]) / "checkpoint.pth"
    assert [kept.name for kept in Path(outcome["run_dir"]).rglob("*.pth")] == [file.name]
    assert evaluate_checkpoint(file, config_dict=places)["test_result"] == outcome["test_result"]
    assert "Final fit on train and validation, " in show(outcome)


def test_the_rows_are_those_of_train_and_validation(settings):
    config = Config("ESMM", "tiny", config_dict=settings)
    apart = [loader.dataset for loader in prepare_data(config, EntireSpaceDataset(config))]
    config["fits_validation"] = True
    both, none, test = [x.dataset for x in prepare_data(config, EntireSpaceDataset(config))]
    rows = torch.cat([part.inter_feat.positions for part in apart[:2]])
    assert torch.equal(both.inter_feat.positions, rows)
    assert len(none) == 0
    assert torch.equal(test.inter_feat.positions, apart[2].inter_feat.positions)
    assert both.identity == apart[0].identity
    assert len(both.truth.click) == len(rows)
    counts = [part.id_counts()["item_id"] for part in apart[:2]]
    assert torch.equal(both.train_ids["item_id"], sum(counts))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("DeepFM", {"task": "both"}),
        ("LogisticRegression", {"task": "ctr"}),
        ("LightGBM", {"task": "both"}),
        ("ESCM2_DR", {"validations_per_epoch": 3, "weight_averaging": 0.5}),
        ("ESCM2_DR", {"propensity": "oracle", "sparse_embedding": True}),
    ],
)
def test_of_two_models_of_reference_rows_and_with_logged_weights(settings, places, model, changes):
    own = {k: v for k, v in settings.items() if k not in ("epochs", "train_batch_size")}
    own = settings if model in ("DeepFM", "ESCM2_DR") else own
    own = {k: v for k, v in own.items() if k not in ("embedding_size", "mlp_hidden_size")}
    outcome = run(model, "tiny", config_dict={**own, **changes, "final_fit": True})
    result = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
    best = [training["best_epoch"] + 1 for training in result["trainings"]]
    assert result["final_fit"]["epochs"] == best
    assert [len(history) for history in result["final_fit"]["trainings"]] == best
    assert result["test_result"] != result["final_fit"]["best_epoch_test_result"]
    files = sorted(Path(outcome["run_dir"]).rglob("*.pth"))
    assert {file.name for file in files} == {"checkpoint.pth"}
    if len(files) == 1:
        again = evaluate_checkpoint(files[0], config_dict=places)
        assert again["test_result"] == outcome["test_result"]
    assert all(load_checkpoint(file)["training_ended"] for file in files)


def test_killed_in_it_a_run_goes_on(settings, tmp_path, monkeypatch):
    given = {**settings, "save_interval": 0, "final_fit": True}
    whole = run("ESMM", "tiny", config_dict={**given, "output_dir": str(tmp_path / "whole")})
    train, epochs = EntireSpaceTrainer._train_epoch, []

    def stopped_at_last(self: Any, data: Any, epoch: int, *arguments: Any, **named: Any) -> Any:
        epochs.append(epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return train(self, data, epoch, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(EntireSpaceTrainer, "_train_epoch", stopped_at_last)
        with pytest.raises(KeyboardInterrupt):
            run("ESMM", "tiny", config_dict=given)
    assert epochs == [0, 1, 0, 1]
    outcome = run("ESMM", "tiny", config_dict=given)
    log = (Path(outcome["run_dir"]) / "run.log").read_text()
    assert ", whose training is done" in log
    assert "-final from epoch 0, step 15" in log  # all of its 15
    assert outcome["test_result"] == whole["test_result"]
    assert outcome["best_valid_result"] == whole["best_valid_result"]


def test_without_validation_there_is_nothing_to_add(settings):
    split = {"eval_args": {"split": {"RS": [0.9, 0, 0.1]}}, "final_fit": True}
    with pytest.raises(UsageError, match="no validation, which final_fit would train on"):
        run("ESMM", "tiny", config_dict={**settings, **split})


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("calibrate", "platt", "calibrate"),
        ("propensity_calibration", "platt", "propensity_calibration"),
        ("propensity_floor", "slope", "propensity_floor: slope"),
    ],
)
def test_nothing_is_left_to_calibrate_on(settings, key, value, named):
    given = {**settings, "final_fit": True, key: value}
    with pytest.raises(UsageError, match=f"{named} is fitted to validation, which final_fit"):
        Config("ESCM2_IPS", "tiny", config_dict=given)


def test_a_part_of_an_epoch_is_counted_as_one_there_too(settings):
    parts = {"validations_per_epoch": 3, "train_batch_size": 512, "embedding_weight_decay": 0.0}
    outcome = trained(settings, **parts)
    assert outcome["final_fit"]["epochs"] == [outcome["best_epoch"] + 1]
    folder = Path(outcome["run_dir"])
    content = json.loads((folder / "result.json").read_text())
    assert [len(history) for history in content["final_fit"]["trainings"]] == [
        outcome["best_epoch"] + 1
    ]
