"""A training that is killed goes on, and ends bit-equal to one that nothing has happened to."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_escm2.quick_start import run
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.trainer import EntireSpaceTrainer

#: What differs between two runs of the same, and may.
OF_THE_RUN = ("run_dir", "seconds", "config")


class KilledError(Exception):
    """In place of a kill: nothing in the program expects it."""


def killed_at(patch: Any, step: int) -> None:
    """Have the process fail before an optimizer step, counted over all trainings."""
    optimize, steps = EntireSpaceTrainer._optimize, itertools.count()

    def failing(self: Any, *arguments: Any) -> None:
        if next(steps) == step:
            raise KilledError
        optimize(self, *arguments)

    patch.setattr(EntireSpaceTrainer, "_optimize", failing)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run has come to but for its seconds: its result, and its checkpoints' content."""
    result = json.loads((folder / "result.json").read_text())
    for training in result["trainings"]:
        training.pop("seconds")
        for epoch in training["epochs"]:
            epoch.pop("seconds")
    kept = {
        file.relative_to(folder).as_posix(): load_checkpoint(file)
        for file in sorted(folder.rglob("*.pth"))
    }
    return {**{k: v for k, v in result.items() if k not in OF_THE_RUN}, "files": kept}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """To the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{n}")
    else:
        assert one == other, where


@pytest.fixture
def case(settings, tmp_path, monkeypatch):
    """Does a run once undisturbed, and once killed at some steps and gone on with."""

    def do(model: str, kills: list[int], **changes: Any) -> str:
        given = {**settings, "save_interval": 0, "train_batch_size": 512, **changes}
        places = {name: {**given, "output_dir": str(tmp_path / name)} for name in ("whole", "cut")}
        whole = run(model, "tiny", config_dict=places["whole"])
        for step in kills:
            with monkeypatch.context() as patch:
                killed_at(patch, step)
                with pytest.raises(KilledError):
                    run(model, "tiny", config_dict=places["cut"])
        gone_on = run(model, "tiny", config_dict=places["cut"])
        (folder,) = (tmp_path / "cut").iterdir()
        assert folder == Path(gone_on["run_dir"])
        assert_same(outcome(Path(whole["run_dir"])), outcome(folder))
        assert not (folder / "lock").exists()
        return (folder / "run.log").read_text()

    return do


#: Of 3,200 impressions of train in batches of 512: seven steps an epoch.
CASES: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "dropout": ("ESCM2_IPS", [10, 3], {"dropout_prob": 0.3}),
    "before the first epoch ends": ("ESMM", [4], {}),
    "sparse rows": ("ESCM2_DR", [9, 2, 1], {"sparse_embedding": True, "dropout_prob": 0.1}),
    "sparse rows that sleep": (
        "ESCM2_IPS",
        [10, 3],
        {
            "sparse_embedding": True,
            "embedding_weight_decay": 1e-3,
            "train_batch_size": 32,
            "impression_sample": 0.1,
            "epochs": 3,
        },
    ),
    "early stopping": ("ESMM", [17], {"epochs": 30, "stopping_step": 1, "learning_rate": 0.03}),
    "bfloat16": ("ESCM2_DR", [8], {"enable_amp": True}),
    "two steps a batch": (
        "ESCM2_DR",
        [17, 5],  # the latter between the two steps of a batch
        {"imputation_schedule": "alternate", "imputation": "error"},
    ),
    "a model of RecBole's": ("DeepFM", [10], {"dropout_prob": 0.2}),
    "batch statistics": ("xDeepFM", [9], {}),
    "sgd": ("ESMM", [9], {"learner": "sgd", "sparse_embedding": True}),
    "adagrad": ("ESMM", [9], {"learner": "adagrad"}),
    "no validation for two epochs": ("ESMM", [17], {"epochs": 4, "eval_step": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_training_ends_as_an_undisturbed_one(case, name):
    model, kills, changes = CASES[name]
    log = case(model, kills, **changes)
    assert log.count("going on with ") == len(kills)


@pytest.mark.parametrize("kills", [[9], [16], [9, 8]], ids=["ctr", "cvr", "both"])
def test_each_of_two_trainings_goes_on(case, kills):
    log = case("DeepFM", kills, task="both", dropout_prob=0.2, epochs=2)
    assert "-ctr from epoch" in log or "-ctr to score it" in log


def test_random_moments(case):
    steps = random.Random(0).sample(range(1, 20), 3)
    case("ESCM2_DR", steps, epochs=10, dropout_prob=0.2, save_interval=0.001)
