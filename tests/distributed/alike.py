"""What one process and several have to do alike: this script under torchrun, or in one process.

    torchrun --nproc_per_node=2 tests/distributed/alike.py DATA_PATH FOLDER

The first process writes FOLDER/outcome.pth; a test compares those of 1, 2 and 3 processes. All
cases are in one start of the processes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from recbole.utils import init_seed

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, ImpressionLoader, prepare_data
from recbole_escm2.distributed import (
    from_main,
    is_main,
    main_first,
    process_group,
    rank,
    seed_of,
    sum_over_ranks,
    world_size,
)
from recbole_escm2.model_names import MODEL_NAMES
from recbole_escm2.quick_start import run
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer

SMALL = {
    **{"numerical_features": ["age"], "embedding_size": 4, "mlp_hidden_size": [8]},
    **{"dropout_prob": 0.0, "embedding_dropout": 0.0, "show_progress": False, "state": "error"},
}
#: A model of RecBole's own hasn't these.
SINGLE = {"embedding_dropout": None}
#: Whose gradients of one step are compared: every model as it is, and what may go wrong.
STEPS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in MODEL_NAMES},
    "snips": ("ESCM2_DR", {"propensity_normalization": "snips"}),
    "label": ("ESCM2_DR", {"imputation": "label", "imputation_schedule": "alternate"}),
    "two steps": ("ESCM2_STABLE_DR", {"imputation_schedule": "alternate"}),
    "no imputation": ("ESCM2_DR", {"counterfactual_weight": 0.0}),
    "sparse": ("ESCM2_DR", {"sparse_embedding": True, "first_order": True}),
    "sparse, two steps": (
        "ESCM2_DR",
        {"sparse_embedding": True, "imputation_schedule": "alternate"},
    ),
    "regularised": ("ESCM2_IPS", {"backbone": "xDeepFM", "reg_weight": 0.01}),
    "shared": ("ESCM2_IPS", {"backbone": "mmoe", "pos_weight": {"ctcvr": 3.0}}),
    "one task": ("DeepFM", SINGLE),
    "one task, regularised": (
        "xDeepFM",
        {"reg_weight": 0.01, "sparse_embedding": True, **SINGLE},
    ),
}
#: Impressions of a batch: uneven parts, a process without a click, processes without a row.
BATCHES = (97, 2, 1)
#: Trainings of three epochs in float64, and what they have beside.
TRAININGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "joint": (
        "ESCM2_DR",
        {"weight_decay": 1e-4, "clip_grad_norm": {"max_norm": 0.05}, "final_fit": True},
    ),
    "alternate": (
        "ESCM2_DR",
        {
            **{"imputation_schedule": "alternate", "propensity_normalization": "snips"},
            **{"weight_averaging": 0.5, "validations_per_epoch": 2, "calibrate": "platt"},
        },
    ),
    "sleeping": (
        "DCMT",
        {"sparse_embedding": True, "weight_decay": 1e-3, "train_batch_size": 60},
    ),
    "fitted": (
        "ESCM2_IPS",
        {"propensity_calibration": "platt", "propensity_floor": "slope"},
    ),
    "pair": ("AFM", {"task": "both", "reg_weight": 0.01, **SINGLE}),
}
#: Whose processes draw other masks than one would, and the same where they go on after a kill.
MASKS = {"dropout_prob": 0.3, "save_interval": 0}
ALL_METRICS = ["CTR_AUC", "CTR_GAUC", "CVR_AUC", "CTCVR_AUC", "CTCVR_GAUC", "PIP", "CVR_AUC_ES"]


def settings_of(data_path: str, folder: Path, **settings: Any) -> dict[str, Any]:
    given = {
        **{"data_path": data_path, "output_dir": str(folder / "output")},
        **{"train_batch_size": 100, "eval_batch_size": 64, "epochs": 3, "stopping_step": 9},
        **SMALL,
        **settings,
    }
    return {key: value for key, value in given.items() if value is not None}


def trainer_of(model: str, settings: Mapping[str, Any], folder: Path) -> tuple[Any, Any, Any]:
    """A trainer with the loaders of train and validation, as a run has them."""
    config = Config(model, "tiny", None, dict(settings))
    with main_first():
        data = EntireSpaceDataset(config)
    train, valid, _ = prepare_data(config, data)
    init_seed(7, True)
    built = config.model_class(config, train.dataset)
    folder.mkdir(exist_ok=True)
    return EntireSpaceTrainer(config, built, Run(folder, written=is_main())), train, valid


def gradients(model: str, settings: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Losses and gradients of the steps of a few batches, from equal weights."""
    trainer, train, _ = trainer_of(model, settings, folder)
    found = []
    for rows in BATCHES:
        loader = ImpressionLoader(train.dataset, rows)
        if world_size() > 1:
            trainer._parallel = trainer._in_parallel(loader)
        steps = trainer._loss_steps(next(iter(loader)), None)
        while losses := trainer._next_losses(steps):
            trainer.model.zero_grad()
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
            own = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
            dense = {name: gradient.to_dense().clone() for name, gradient in own.items()}
            found.append({"losses": trainer._of_all_ranks(losses), "gradients": dense})
        trainer._parallel = None
    return found


def metrics(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Of equal weights on validation, and what is known of the weights of clicks there."""
    trainer, _, valid = trainer_of("ESCM2_DR", {**settings, "metrics": ALL_METRICS}, folder)
    result = trainer.evaluate(valid, load_best_model=False)
    own = trainer_of("MTL_EIB", settings, folder)[0]
    own._estimates_weights = True  # as a model of the user's own with another propensity
    own.evaluate(valid, load_best_model=False)
    weights = own.denominator() if is_main() else None
    return {"metrics": dict(result), "undefined": result.undefined, "weights": weights}


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Have models compute in it, which they would leave where their risks begin."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def loss(self: Any, logit: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logit, label.double(), self.weight)

    try:
        with (
            patch.object(torch.Tensor, "float", torch.Tensor.double),
            patch.object(torch.nn.BCEWithLogitsLoss, "forward", loss),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def training(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a whole run comes to, as every process is given it."""
    result = run(model, "tiny", config_dict=dict(settings))
    losses = [
        (training["task"], epoch["losses"], epoch.get("valid"))
        for training in result._trainings
        for epoch in training["epochs"]
    ]
    return {"losses": losses, "test": dict(result["test_result"]), "best": result["best_epoch"]}


def primitives() -> dict[str, Any]:
    """Sums with their gradients, objects, and seeds, of each process."""
    own = torch.tensor([1.0 + rank()], requires_grad=True)
    total = sum_over_ranks(own * own)
    ((rank() + 1.0) * total).sum().backward()
    return {
        "sum": total.item(),
        "gradient": own.grad,
        "object": from_main(f"of {rank()}"),
        "seeds": float(sum_over_ranks(torch.tensor(float(seed_of(1, 2, 3) != seed_of(1, 2, 4))))),
    }


def outcome(data_path: str, folder: Path) -> dict[str, Any]:
    """Of all cases, in the processes that are here."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"primitives": primitives(), "processes": world_size()}
    found["steps"] = {
        name: gradients(model, settings_of(data_path, folder, **own), folder / "step")
        for name, (model, own) in STEPS.items()
    }
    found["metrics"] = metrics(settings_of(data_path, folder), folder / "step")
    with in_float64():
        found["trainings"] = {
            name: training(model, settings_of(data_path, folder, **own))
            for name, (model, own) in TRAININGS.items()
        }
    found["float32"] = training("ESCM2_DR", settings_of(data_path, folder))
    found["masks"] = training("ESCM2_DR", settings_of(data_path, folder, **MASKS))
    return found


def main() -> None:
    """Write what this number of processes comes to."""
    torch.set_num_threads(1)
    data_path, folder = sys.argv[1], Path(sys.argv[2])
    with process_group():
        found = outcome(data_path, folder)
        if is_main():
            torch.save(found, folder / "outcome.pth")


if __name__ == "__main__":
    main()
