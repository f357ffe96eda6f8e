"""Training as a whole: what it reports, keeps, refuses and repeats."""

import contextlib
import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.model import ESCM2_DR, ESCM2_IPS, ESMM
from recbole_escm2.output import JsonList, write_json
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.trainer import EntireSpaceTrainer

MODELS = [ESMM, ESCM2_IPS, ESCM2_DR]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_learns_and_leaves_its_files(model, settings):
    outcome = run(model, "tiny", config_dict={**settings, "epochs": 30, "learning_rate": 0.02})
    assert outcome["test_result"]["CTR_AUC"] > 0.65
    assert outcome["test_result"]["CTCVR_AUC"] > 0.65
    assert outcome["best_valid_score"] == outcome["best_valid_result"]["CTCVR_AUC"]
    folder = Path(outcome["run_dir"])
    assert {file.name for file in folder.iterdir()} == {
        "checkpoint.pth",
        "history.json",
        "result.json",
        "run.log",
        "tensorboard",
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["test_result"] == outcome["test_result"]
    assert result["seed"] == 2020
    assert result["config"]["learning_rate"] == 0.02
    assert result["versions"]["torch"] == torch.__version__
    assert sum(split["impressions"] for split in result["data"].values()) == 4000
    assert (result["weights"] is None) == (model is ESMM)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (ESMM, {}),
        (ESCM2_IPS, {}),
        (ESCM2_DR, {}),
        (ESCM2_DR, {"imputation": "label", "imputation_schedule": "alternate"}),
        (ESCM2_DR, {"sparse_embedding": True}),
        (ESCM2_DR, {"sparse_embedding": True, "embedding_weight_decay": 0.01}),
        (ESCM2_DR, {"enable_amp": True}),
        ("DCNV2", {"task": "cvr"}),
    ],
)
def test_the_same_run_twice_gives_the_same_numbers(model, changes, settings):
    first, second = (run(model, "tiny", config_dict={**settings, **changes}) for _ in range(2))
    assert first["test_result"] == second["test_result"]
    assert first["best_valid_result"] == second["best_valid_result"]
    assert first["run_dir"] != second["run_dir"]
    other = run(model, "tiny", config_dict={**settings, **changes, "seed": 7})
    assert other["test_result"] != first["test_result"]


def rows_of(loader):
    return loader.dataset.inter_feat.positions.tolist()


def test_the_split_has_the_seed_and_training_may_have_one_of_its_own(settings):
    def prepared(**seeds):
        config = Config(ESMM, "tiny", config_dict={**settings, **seeds})
        train, *others = prepare_data(config, EntireSpaceDataset(config))
        train.set_epoch(0)
        order = torch.cat([batch["user_id"] for batch in train]).tolist()
        return [sorted(rows_of(train)), *map(rows_of, others)], order

    split, order = prepared(seed=5)
    assert prepared(seed=5, training_seed=5) == (split, order)
    same_split, other_order = prepared(seed=5, training_seed=6)
    assert same_split == split
    assert other_order != order
    assert prepared(seed=6, training_seed=5)[0] != split


@pytest.mark.parametrize("model", [ESMM, "DeepFM"])
def test_another_training_seed_is_another_training_on_the_same_split(model, settings):
    settings |= {"seed": 5, "dropout_prob": 0.2}
    settings |= {} if model is ESMM else {"task": "both"}
    first, same, other = (
        run(model, "tiny", config_dict={**settings, **seeds})
        for seeds in ({}, {"training_seed": 5}, {"training_seed": 6})
    )
    assert first["test_result"] == same["test_result"]
    assert first["test_result"] != other["test_result"]
    first, other = (
        json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
        for outcome in (first, other)
    )
    assert first["data"] == other["data"]
    assert (first["seed"], first["training_seed"]) == (5, 5)
    assert (other["seed"], other["training_seed"]) == (5, 6)
    assert "seed 5, training_seed 6" in (Path(other["run_dir"]) / "run.log").read_text()


def test_losses_are_named_in_the_log(settings):
    outcome = run(ESCM2_DR, "tiny", config_dict={**settings, "imputation_schedule": "alternate"})
    log = (Path(outcome["run_dir"]) / "run.log").read_text()
    for name in ("imputation", "ctr", "cvr", "ctcvr"):
        assert re.search(rf"train .*\b{name} -?\d", log)
    assert "clicks at the floor" in log
    assert "\x1b" not in log


def test_a_second_run_logs_into_its_own_file(settings):
    handlers = list(logging.getLogger().handlers)
    first, second = (run(ESMM, "tiny", config_dict={**settings, "seed": s}) for s in (1, 2))
    assert "seed 2" not in (Path(first["run_dir"]) / "run.log").read_text()
    assert "seed 1" not in (Path(second["run_dir"]) / "run.log").read_text()
    assert logging.getLogger().handlers == handlers


def test_nothing_is_written_into_the_working_directory(settings, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(ESMM, "tiny", config_dict=settings)
    assert list(Path().iterdir()) == []


def test_unsaved_runs_score_their_best_epoch_and_keep_no_checkpoint(settings):
    longer = {**settings, "epochs": 6, "learning_rate": 0.05}
    kept = run(ESMM, "tiny", config_dict=longer)
    unsaved = run(ESMM, "tiny", config_dict=longer, saved=False)
    assert unsaved["test_result"] == kept["test_result"]
    assert not list(Path(unsaved["run_dir"]).glob("*.pth"))


def test_a_checkpoint_scores_the_same_again(settings, places):
    outcome = run(ESCM2_IPS, "tiny", config_dict=settings)
    checkpoint = Path(outcome["run_dir"]) / "checkpoint.pth"
    again = evaluate_checkpoint(checkpoint, config_dict=places)
    assert again["test_result"] == outcome["test_result"]
    only = evaluate_checkpoint(checkpoint, config_dict={**places, "metrics": ["CVR_AUC"]})
    assert only["test_result"]["CVR_AUC"] == outcome["test_result"]["CVR_AUC"]


def test_f1_and_recall_decide_by_the_base_rate_of_train(settings, places):
    """Also on validation, for a checkpoint, and where train is cut down to the clicks."""
    given = {**settings, "valid_metric": "CTR_F1", "epochs": 1}
    outcome = run(ESMM, "tiny", config_dict=given)
    result = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
    train = result["data"]["train"]
    expected = {
        "ctr": train["clicks"] / train["impressions"],
        "cvr": train["conversions"] / train["clicks"],
        "ctcvr": train["conversions"] / train["impressions"],
    }
    assert result["decision_threshold"] == expected
    assert outcome["best_valid_result"].threshold == expected
    again = evaluate_checkpoint(Path(outcome["run_dir"]) / "checkpoint.pth", config_dict=places)
    assert again["test_result"].threshold == expected
    for task in ("cvr", "both"):
        single = run("FM", "tiny", config_dict={**settings, "task": task, "epochs": 1})
        assert single["test_result"].threshold["cvr"] == expected["cvr"]


class OwnPropensity(ESCM2_IPS):
    """Divides clicks by what it says itself, which each validation keeps."""

    def propensity(self, logit, interaction):
        return super().propensity(logit, interaction).sqrt()


def test_after_its_end_the_propensity_is_still_that_of_validation(settings, tmp_path, monkeypatch):
    """Not of the clicks of train too, which are looked at last."""
    monkeypatch.chdir(tmp_path)
    config = Config(OwnPropensity, "tiny", config_dict=settings)
    config["checkpoint_dir"] = settings["output_dir"]
    train, valid, _ = prepare_data(config, EntireSpaceDataset(config))
    trainer = EntireSpaceTrainer(config, config.model_class(config, train.dataset))
    trainer.fit(train, valid)
    assert len(trainer.propensity()) == len(trainer.predictions.truth.click) == len(valid.dataset)


def test_each_epoch_has_an_order_of_its_own(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(ESMM, "tiny", config_dict=settings)
    config["checkpoint_dir"] = settings["output_dir"]
    train, valid, _ = prepare_data(config, EntireSpaceDataset(config))
    trainer = EntireSpaceTrainer(config, config.model_class(config, train.dataset))
    epochs = []
    monkeypatch.setattr(train, "set_epoch", epochs.append)
    trainer.fit(train, valid)
    assert epochs == [0, 1]


def moved(settings, scaled, clip):
    """How far each parameter of ESCM2_DR has moved after an epoch of SGD."""
    config = Config(
        ESCM2_DR,
        "tiny",
        config_dict={**settings, "learner": "sgd", "learning_rate": 0.01, "clip_grad_norm": clip},
    )
    config["checkpoint_dir"] = settings["output_dir"]
    train, _, _ = prepare_data(config, EntireSpaceDataset(config))
    torch.manual_seed(0)
    trainer = EntireSpaceTrainer(config, config.model_class(config, train.dataset))
    trainer.enable_scaler = scaled  # RecBole leaves it off without a GPU
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer._train_epoch(train, 0)
    trainer.tensorboard.close()
    after = zip(trainer.model.parameters(), before, strict=True)
    return torch.cat([(p.detach() - b).flatten() for p, b in after]), len(train)


@pytest.mark.parametrize("clip", [None, {"max_norm": 1e-2}])
def test_a_scaler_changes_nothing_in_float32(settings, tmp_path, monkeypatch, clip):
    """Gradients are scaled by a power of 2, and back before they are clipped."""
    monkeypatch.chdir(tmp_path)
    plain, steps = moved(settings, False, clip)
    scaled, _ = moved(settings, True, clip)
    torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-7)
    if clip:  # no step is longer than the learning rate times the norm that is asked for
        assert plain.norm() <= 0.01 * clip["max_norm"] * steps * (1 + 1e-3)
    assert plain.norm() > 0.01 * 1e-3 * steps


def test_a_growing_list_is_written_as_a_whole_one_and_each_item_encoded_once(tmp_path, monkeypatch):
    items = [{"epoch": n, "text": "two\nlines", "valid": {"AUC": math.nan}} for n in range(3)]
    write_json(tmp_path / "whole.json", items)
    growing = JsonList(tmp_path / "growing.json")
    for count in (1, 3):
        growing.write(items[:count])
        assert len(json.loads((tmp_path / "growing.json").read_text())) == count
    assert (tmp_path / "growing.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    encoded = []
    monkeypatch.setattr(json, "dumps", lambda item, **how: encoded.append(item) or "{}")
    growing.write([*items, {"epoch": 3}])
    assert encoded == [{"epoch": 3}]


def test_result_files_are_strict_json(settings, tmp_path):
    def refuse(constant):
        raise ValueError(constant)

    content = {"a": [math.nan, {"b": math.inf}], "c": (1.5, -math.inf), 3: np.float64("nan")}
    write_json(tmp_path / "x.json", content)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"a": [None, {"b": None}], "c": [1.5, None], "3": None}
    # logits that no float32 probability can hold: weights are infinite
    sure = {**settings, "learning_rate": 1e3, "propensity_floor": 0, "epochs": 3}
    with contextlib.suppress(UsageError):
        run(ESCM2_IPS, "tiny", config_dict={**sure, "counterfactual_weight": 0})
    files = [*Path(settings["output_dir"]).rglob("*.json")]
    assert files
    for file in files:
        json.loads(file.read_text(), parse_constant=refuse)


def test_a_checkpoint_of_a_run_on_recboles_model(settings, places):
    outcome = run("FM", "tiny", config_dict={**settings, "task": "cvr"})
    again = evaluate_checkpoint(Path(outcome["run_dir"]) / "checkpoint.pth", config_dict=places)
    assert again["test_result"] == outcome["test_result"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"embedding_weight_decay": 0.01},
        {"embedding_weight_decay": 0.01, "sparse_embedding": True},
    ],
)
def test_resumed_training_goes_on_with_the_optimizer(changes, settings):
    """Two epochs in one go equal one epoch, a checkpoint, and another one."""

    def trainer(epochs):
        config = Config(ESCM2_DR, "tiny", config_dict={**settings, **changes, "epochs": epochs})
        config["checkpoint_dir"] = settings["output_dir"]
        parts = prepare_data(config, EntireSpaceDataset(config))
        torch.manual_seed(0)
        return EntireSpaceTrainer(config, config.model_class(config, parts[0].dataset)), parts

    whole, (train, valid, _) = trainer(2)
    whole.fit(train, valid)
    half, (train, valid, _) = trainer(1)
    half.fit(train, valid)
    rest, (train, valid, _) = trainer(2)
    rest.resume_checkpoint(half.saved_model_file)
    rest.fit(train, valid)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, rest.model.state_dict()[name]), name


@pytest.mark.parametrize("name", ["CTR_LogLoss", "CTR_PCOC", "IEB", "CVR_AUC_ES", "CTR_NDCG@3"])
def test_any_metric_can_choose_the_epoch(name, settings):
    outcome = run(
        ESMM,
        "tiny",
        config_dict={**settings, "epochs": 5, "learning_rate": 0.02, "valid_metric": name},
    )
    log = (Path(outcome["run_dir"]) / "run.log").read_text()
    values = [
        float(line.split(f"{name} ")[1].split(",")[0].split()[0])
        for line in log.splitlines()
        if f"{name} " in line
    ]
    target = {"CTR_PCOC": 1.0, "IEB": 0.0}.get(name)
    if target is not None:
        away = [abs(math.log(v)) if name == "CTR_PCOC" else abs(v - target) for v in values]
        best = away.index(min(away))
        assert outcome["best_valid_score"] == pytest.approx(away[best], abs=1e-4)
    else:
        pick = min if name == "CTR_LogLoss" else max
        best = values.index(pick(values))
        assert outcome["best_valid_score"] == pytest.approx(values[best], abs=1e-5)
    assert outcome["best_epoch"] == best


def test_an_undefined_valid_metric_stops_before_training(settings, data_path, tmp_path):
    source = (data_path / "tiny" / "tiny.inter").read_text().splitlines()
    folder = tmp_path / "few" / "few"
    folder.mkdir(parents=True)
    rows = [line.split("\t") for line in source[1:]]
    for row in rows:
        row[4] = row[5] = "0"  # no conversion at all
    (folder / "few.inter").write_text("\n".join([source[0], *("\t".join(r) for r in rows)]) + "\n")
    with pytest.raises(UsageError, match="CTCVR_AUC has no value on the validation set"):
        run(
            ESMM,
            "few",
            config_dict={**settings, "data_path": str(folder.parent), "numerical_features": []},
        )
    assert not Path(settings["output_dir"]).exists()  # no folder of a run that did not start


@pytest.mark.parametrize("saved", [True, False])
def test_a_diverging_loss_is_named_and_its_log_kept(settings, saved):
    wild = {**settings, "learning_rate": 1e30, "epochs": 5}
    with pytest.raises(UsageError, match="training loss isn't finite"):
        run(ESMM, "tiny", config_dict=wild, saved=saved)
    (folder,) = Path(settings["output_dir"]).iterdir()
    assert (folder / "run.log").stat().st_size > 0


@pytest.mark.parametrize("key", ["store_dir", "checkpoint_dir", "output_dir"])
def test_a_folder_that_cant_be_made_is_named_with_its_key(settings, tmp_path, key):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=key):
        run(ESMM, "tiny", config_dict={**settings, key: str(tmp_path / "file" / "nope")})
    assert not list((tmp_path / "output").glob("*"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("amp", [False, True])
def test_on_a_gpu(amp, settings):
    changes = {"gpu_id": "0", "enable_amp": amp, "enable_scaler": amp}
    outcome = run(ESCM2_DR, "tiny", config_dict={**settings, **changes})
    assert outcome["test_result"]["CTR_AUC"] > 0.4


# ------------------------------------------------------------------ validation within an epoch


def fitted(settings, tmp_path, monkeypatch, **changes):
    """A trainer of ESMM after its training, with what its loader was asked for and what it kept."""
    monkeypatch.chdir(tmp_path)
    config = Config(ESMM, "tiny", config_dict={**settings, **changes})
    config["checkpoint_dir"] = settings["output_dir"]
    train, valid, _ = prepare_data(config, EntireSpaceDataset(config))
    torch.manual_seed(0)
    trainer = EntireSpaceTrainer(config, config.model_class(config, train.dataset))
    weights, asked, set_epoch = [], [], train.set_epoch
    monkeypatch.setattr(train, "set_epoch", lambda n: (asked.append(n), set_epoch(n)))
    valid_epoch = trainer._valid_epoch

    def validated(*arguments, **options):
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
        return valid_epoch(*arguments, **options)

    monkeypatch.setattr(trainer, "_valid_epoch", validated)
    trainer.fit(train, valid, verbose=False)
    return trainer, train, asked, weights


def test_validations_within_an_epoch_see_the_same_training(settings, tmp_path, monkeypatch):
    patient = {"epochs": 2, "stopping_step": 100, "train_batch_size": 64}
    _, train, asked, once = fitted(settings, tmp_path, monkeypatch, **patient)
    assert asked == [0, 1]
    steps = train.batches
    trainer, train, asked, often = fitted(
        settings, tmp_path, monkeypatch, **patient, validations_per_epoch=3
    )
    assert steps == train.batches >= 3
    assert asked == [0, 1, 2, 3, 4, 5]
    assert len(often) == len(trainer.history) == 6
    assert trainer.epochs == 2  # as it was asked for
    for whole, part in zip(once, often[2::3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once[0], often[0], strict=True))


def test_patience_counts_validations(settings, tmp_path, monkeypatch):
    changes = {"epochs": 20, "stopping_step": 1, "learning_rate": 0.1}
    trainer, *_ = fitted(settings, tmp_path, monkeypatch, **changes, validations_per_epoch=3)
    scores = [epoch["valid"]["CTCVR_AUC"] for epoch in trainer.history]
    best = max(range(len(scores)), key=lambda n: (scores[n], n))
    assert len(scores) == best + 3  # stopping_step + 1 validations that are worse
    assert trainer.best_epoch == best


def test_two_ways_to_say_when_to_validate_are_refused(settings):
    with pytest.raises(UsageError, match="eval_step 2 validates after so many epochs, and valida"):
        Config(ESMM, "tiny", config_dict={**settings, "eval_step": 2, "validations_per_epoch": 2})


# ------------------------------------------------------------------ average of the weights


def test_the_average_is_scored_and_saved_and_training_goes_on_without_it(
    settings, tmp_path, monkeypatch
):
    patient = {"epochs": 3, "stopping_step": 100, "learning_rate": 0.02}
    *_, bare = fitted(settings, tmp_path, monkeypatch, **patient)
    averaged = {**patient, "weight_averaging": 0.75}
    trainer, *_, same = fitted(settings, tmp_path, monkeypatch, **averaged)
    for a, b in zip(bare, same, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    by_hand = [0.75 * (0.75 * a + 0.25 * b) + 0.25 * c for a, b, c in zip(*bare, strict=True)]
    for ours, expected in zip(trainer.model.parameters(), by_hand, strict=True):
        torch.testing.assert_close(ours.detach(), expected)
    assert trainer.best_epoch == 2
    saved = load_checkpoint(trainer.saved_model_file)["state_dict"]
    assert all(torch.equal(saved[n], weight) for n, weight in trainer.model.state_dict().items())


def test_what_is_averaged_of_sparse_rows_is_awake(settings, tmp_path, monkeypatch):
    """As it is after the steps that they have slept through."""
    sleepy = {"sparse_embedding": True, "embedding_weight_decay": 0.01, "weight_averaging": 0.9}
    trainer, *_ = fitted(settings, tmp_path, monkeypatch, **sleepy, epochs=1)
    for ours, awake in zip(trainer.model.parameters(), trainer._learning.parameters(), strict=True):
        assert torch.equal(ours, awake)  # the average of one


def test_an_average_is_nothing_to_go_on_from(settings, tmp_path, monkeypatch):
    trainer, *_ = fitted(settings, tmp_path, monkeypatch, weight_averaging=0.5)
    with pytest.raises(UsageError, match="with weight_averaging: it holds their average"):
        trainer.resume_checkpoint(trainer.saved_model_file)
