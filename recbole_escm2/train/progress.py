"""How far a training has come: a file with all that it takes to go on after a kill.

It is sealed as a checkpoint is, and lies beside it: a checkpoint is the best epoch's model, this is
the training as it stands. What it has is taken as it is, without waking sleeping rows or anything
else that a training wouldn't do by itself, so that saving it changes nothing. It is there as long
as the run isn't done.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.constant import BesideConstant
from recbole_escm2.evaluator.evaluator import MetricResult
from recbole_escm2.evaluator.weights import WeightDiagnostics
from recbole_escm2.output import to_builtins
from recbole_escm2.train.checkpoint import load_sealed, save_checkpoint

#: What an epoch that has begun goes on with.
OF_EPOCH = ("step", "epoch_seconds", "totals", "scaler", "random")
# Saving takes at most this share of a training's time, however large its tables are.
_SHARE = 0.05
_OF_TRAINER = ("cur_step", "best_epoch", "best_valid_score", "train_loss_dict", "loss_names")

# What the file holds; an ended training has its result instead of weights.
_ENTRIES: Mapping[str, type] = {
    "of": dict,  # see Run.about
    "data": dict,  # see identity.Identity
    "threads": int,
    "ended": bool,
    "epoch": int,  # that it is in
    "step": int,  # batches of that epoch that it has behind it
    "seconds": float,  # of the training, validations included
    "epoch_seconds": float,  # of that epoch's batches
    "history": list,
    "trainer": dict,
}
_WHILE_IT_LASTS: Mapping[str, type] = {
    "totals": dict,
    "state_dict": dict,
    "average": dict,  # of the weights, where there is one
    "optimizer": dict,
    "scaler": dict,
    "random": dict,
}


class ProgressFile:
    """The file of a training, and when it is written anew.

    Args:
        path: of it.
        interval: seconds between two of its versions within an epoch; at 0 each batch is followed
            by one. None: it is never written.
    """

    def __init__(self, path: Path, interval: float | None) -> None:
        self.path = path
        self._interval = interval
        self._saved = perf_counter()
        self._took = 0.0

    @property
    def is_kept(self) -> bool:
        """Whether it is ever written."""
        return self._interval is not None

    def is_due(self, after_epoch: bool = False) -> bool:
        """Whether to save it now.

        Args:
            after_epoch: whether an epoch has just come to its end.
        """
        if self._interval is None:
            return False
        pause = 0.0 if after_epoch else self._interval
        if self._interval:
            pause = max(pause, self._took / _SHARE)
        return perf_counter() - self._saved >= pause

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace it."""
        started = perf_counter()
        save_checkpoint(self.path, state)
        self._saved = perf_counter()
        self._took = self._saved - started

    def remove(self) -> None:
        """Have none."""
        self.path.unlink(missing_ok=True)


def load_progress(path: Path) -> dict[str, Any]:
    """Read the progress of a training, whose tensors stay in the file: they are to be copied.

    Args:
        path: of its file.

    Raises:
        UsageError: there is none, or it isn't as it was written.
    """
    state = load_sealed(path, mapped=True)
    entries = dict(_ENTRIES)
    if not state.get("ended"):
        entries.update(_WHILE_IT_LASTS)
    for name, kind in entries.items():
        if not isinstance(state.get(name), kind):
            raise UsageError(f"{path}: its {name} isn't as this program writes it")
    return state


def bookkeeping_of(trainer: Any) -> dict[str, Any]:
    """What a trainer knows beside weights, as plain data."""
    best, beside, weights = trainer.best_valid_result, trainer.beside_constant, trainer.weights
    return {
        **to_builtins({name: getattr(trainer, name) for name in _OF_TRAINER}),
        "train_loss_dict": {epoch: float(loss) for epoch, loss in trainer.train_loss_dict.items()},
        "best_valid_result": best
        and {"values": to_builtins(dict(best)), **to_builtins(vars(best))},
        "beside_constant": beside and to_builtins(beside._asdict()),
        "weights": weights and to_builtins(asdict(weights)),
    }


def restore_bookkeeping(trainer: Any, known: Mapping[str, Any]) -> None:
    """Have a trainer know what :func:`bookkeeping_of` another one has given."""
    for name in _OF_TRAINER:
        setattr(trainer, name, known[name])
    trainer.loss_names = tuple(known["loss_names"])
    if (best := known["best_valid_result"]) is not None:
        trainer.best_valid_result = MetricResult(best["values"])
        vars(trainer.best_valid_result).update({k: v for k, v in best.items() if k != "values"})
    beside, weights = known["beside_constant"], known["weights"]
    trainer.beside_constant = beside and BesideConstant(**beside)
    trainer.weights = weights and WeightDiagnostics(**weights)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of the generators that a training may draw from: torch's, numpy's and Python's."""
    name, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(numbers, dtype=np.int64)),
            *to_builtins(rest),
        ],
        "python": random.getstate(),
    }


def restore_random(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to what :func:`random_state` has given."""
    torch.set_rng_state(state["torch"].cpu())
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"].cpu(), device)
    name, numbers, *rest = state["numpy"]
    np.random.set_state((name, numbers.cpu().numpy().astype(np.uint32), *rest))
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
