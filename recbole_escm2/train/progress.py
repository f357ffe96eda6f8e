"""How far a training has come: a file with all that it takes to go on after a kill.

It is sealed as a checkpoint is, and lies beside it: a checkpoint is the best epoch's model, this is
the training as it stands. What it has is taken as it is, without waking sleeping rows or anything
else that a training wouldn't do by itself, so that saving it changes nothing. It is there as long
as the run isn't done.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
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
from recbole_escm2.identity import is_identity
from recbole_escm2.output import to_builtins
from recbole_escm2.train.checkpoint import load_sealed, save_checkpoint

#: What an epoch that has begun goes on with.
OF_EPOCH = ("step", "epoch_seconds", "totals", "scaler", "random")
# Saving takes at most this share of a training's time, however large its tables are.
_SHARE = 0.05
_OF_TRAINER = ("cur_step", "best_epoch", "best_valid_score", "train_loss_dict", "loss_names")

Form = Any  # see _fits


def _fits(value: Any, form: Form) -> bool:
    """Whether a value has a form: a type, or one of several; a list of a form; entries of a dict,
    each with its own; or what a function says of it.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            name in value and _fits(value[name], own) for name, own in form.items()
        )
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(own, form[0]) for own in value)
    if isinstance(form, tuple):
        return any(_fits(value, own) for own in form)
    if isinstance(form, type):
        return isinstance(value, form) and (form is bool or not isinstance(value, bool))
    return bool(form(value))


def _is_count(value: Any) -> bool:
    return _fits(value, int) and 0 <= value < 1 << 62


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(own) for name, own in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _by(names: type, form: Form) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(_fits(name, names) and _fits(own, form) for name, own in value.items())
    )


def _is_random_state(value: Any) -> bool:
    """Whether generators take it; those of the process stay as they are."""
    try:
        torch.Generator().set_state(value["torch"].cpu())
        np.random.RandomState().set_state(_numpy_state(value))
        random.Random().setstate(_python_state(value))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError):
        return False
    return isinstance(value["device"], torch.Tensor | None)


_NONE, _NUMBER = type(None), (int, float)
_NUMBERS = _by(str, _NUMBER)
_TENSORS = _by(str, torch.Tensor)
_EPOCH = {"epoch": _is_count, "seconds": _NUMBER, "losses": _NUMBERS}
_BESIDE = {"task": str, "log_loss": _NUMBER, "constant": _NUMBER}
_RESULT = {
    **{"values": _NUMBERS, "undefined": _by(str, str)},
    **{"threshold": _NUMBERS, "without_user": _is_count},
}

# What the file holds; an ended training has its result instead of weights.
_FORMS: Mapping[str, Form] = {
    # See Run.about: nothing, where the folder's name tells it all.
    "of": lambda about: about == {} or (_is_plain(about) and _fits(about, {"config": dict})),
    "data": is_identity,
    "threads": _is_count,
    "processes": _is_count,
    "ended": bool,
    "epoch": _is_count,  # that it is in
    "step": _is_count,  # batches of that epoch that it has behind it
    "seconds": _NUMBER,  # of the training, validations included
    "epoch_seconds": _NUMBER,  # of that epoch's batches
    "history": lambda own: _is_plain(own) and _fits(own, [_EPOCH]),
    "trainer": {
        "cur_step": _is_count,
        "best_epoch": int,
        "best_valid_score": (*_NUMBER, _NONE),
        "train_loss_dict": _by(int, float),
        "loss_names": [str],
        "best_valid_result": (_NONE, _RESULT),
        "beside_constant": (_NONE, _BESIDE),
        "weights": (_NONE, dict.fromkeys(WeightDiagnostics.__annotations__, _NUMBER)),
    },
}
_WHILE_IT_LASTS: Mapping[str, Form] = {
    "totals": _by(str, lambda total: _fits(total, torch.Tensor) and total.numel() == 1),
    "state_dict": _TENSORS,
    "average": _TENSORS,  # of the weights, where there is one
    "optimizer": _by(str, dict),
    "scaler": _NUMBERS,
    "random": _is_random_state,
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
    forms = {**_FORMS, **({} if state.get("ended") is True else _WHILE_IT_LASTS)}
    for name, form in forms.items():
        if not _fits(state.get(name), form):
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
    np.random.set_state(_numpy_state(state))
    random.setstate(_python_state(state))


def _numpy_state(state: Mapping[str, Any]) -> tuple[Any, ...]:
    name, numbers, *rest = state["numpy"]
    return (name, numbers.cpu().numpy().astype(np.uint32), *rest)


def _python_state(state: Mapping[str, Any]) -> tuple[Any, ...]:
    version, numbers, following = state["python"]
    return version, tuple(numbers), following
