"""Checkpoints: plain data and tensors, written beside and renamed, read without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from recbole_escm2.errors import UsageError

FORMAT = "recbole_escm2 checkpoint 1"


def plain(value: Any) -> Any:
    """The value with everything that isn't plain data turned into text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)  # numpy's numbers are instances, and no plain data
    return str(value)


def vocabulary_digest(dataset: Any) -> dict[str, str]:
    """A digest of each token field's vocabulary: ids mean the same where it is the same."""
    return {str(field): vocabulary.digest for field, vocabulary in dataset.field2id_token.items()}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a run that is killed meanwhile leaves the one before."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    torch.save({"format": FORMAT, **state}, unfinished)
    os.replace(unfinished, path)


def load_checkpoint(path: str | Path, device: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        UsageError: there is no such file, or it isn't a checkpoint of ours. A pickle, such as
            RecBole's checkpoints, is refused: loading one can run any code that is in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"checkpoint {path}: there is no such file")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises nearly anything on a file that isn't its own
        raise UsageError(
            f"checkpoint {path} can't be read as plain data. Checkpoints of RecBole itself and "
            "other pickles are refused, because loading one can run any code that is in it: train "
            f"the model again with this program ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"checkpoint {path} wasn't written by this program")
    return state
