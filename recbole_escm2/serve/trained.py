"""A model as it was trained, made of its checkpoint alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_escm2.data.batch import Batch
from recbole_escm2.data.encoding import Encoder, Known
from recbole_escm2.data.stand_in import StandInDataset
from recbole_escm2.errors import UsageError, own_files, place_in_own_code
from recbole_escm2.evaluator.calibration import Calibration
from recbole_escm2.model.embedding import with_unknown_rows
from recbole_escm2.model.reference.base import ReferenceRecommender
from recbole_escm2.model.single_task import hold_loose_weights, pool_all_values
from recbole_escm2.quick_start import NOT_CALIBRATED, config_to_score
from recbole_escm2.tasks import is_entire_space, is_reference, scored_tasks
from recbole_escm2.train.checkpoint import SUPPORT_STEPS, load_checkpoint, load_weights
from recbole_escm2.train.trainer import CUT_SHORT


class TrainedModel:
    """A model that scores batches, and what its checkpoint says of its data.

    Args:
        checkpoint: the file.
        model: its class or ``path.to.module:Class``, where it is the user's own.
        device: where to compute; by default a GPU where there is one.
        settings: of scoring, as text, such as ``metrics``.

    Attributes:
        tasks: what it predicts, of ``ctr``, ``cvr`` and ``ctcvr``.
        known: of its fields.
        support: quantiles of the pCTR of train's clicks, float64 ``[1001]``, or None.
        calibration: what is done to probabilities last, or None.
        data: the digests of what it was trained on.

    Raises:
        UsageError: the file is no checkpoint, or its model can't be made of it.
    """

    def __init__(
        self,
        checkpoint: Path,
        model: str | type | None = None,
        device: Any = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        state = load_checkpoint(checkpoint)
        self.checkpoint = checkpoint
        self.config = config_to_score(checkpoint, state, model, None, {}, settings)
        if "metrics" not in (settings or {}):  # those of the training aren't asked for here
            self.config.external_config_dict.pop("metrics", None)
        if device is not None:
            self.config["device"] = _device(device)
        self.device = self.config["device"]
        self.tasks = scored_tasks(self.config)
        self.data: Mapping[str, Any] = state["data"]
        self.support = _support(state["support"], checkpoint)
        if not state["training_ended"]:
            getLogger().warning(CUT_SHORT.format(**state))
        self.calibration: Calibration | None = None
        if state["calibration"]:
            self.calibration = Calibration.of_state(state["calibration"])
        elif self.config["calibrate"]:
            getLogger().warning(NOT_CALIBRATED)
        kind = self.config.model_class
        if is_reference(kind) and not kind.scores_new_rows:
            raise UsageError(f"{self.config['model']} knows its own rows, and can't score new ones")
        try:
            self._make(state)
        except UsageError as error:
            raise UsageError(f"checkpoint {checkpoint}: {error}") from error

    def _make(self, state: Mapping[str, Any]) -> None:
        """Build the model, with a row for unknown ids where its tables are of the usual kind."""
        weights = state["state_dict"]
        for spare in (True, False):
            self.known = Known(state, spare)
            self.dataset = StandInDataset(self.config, self.known)
            # Which draws initial weights, that nobody sees.
            with torch.random.fork_rng(devices=[]), _errors_in_words(self.config):
                self.model: Any = self.config.model_class(self.config, self.dataset)
            if not (is_entire_space(self.config) or is_reference(self.config.model_class)):
                hold_loose_weights(self.model)
                pool_all_values(self.model, self.config["bag_pooling"])
            if isinstance(self.model, ReferenceRecommender):
                self.model.make_room(weights)
            own = self._with_unknown_ids(weights) if spare else weights
            if _fits(self.model, own):
                break
        load_weights(self.model, own)
        if not spare:
            getLogger().info(
                f"{self.config['model']} has tables of its own kind: unknown ids are no value, id 0"
            )
        self.model.to(self.device).eval()

    def _with_unknown_ids(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        tokens = self.known.tokens
        if isinstance(self.model, ReferenceRecommender):
            added = {name: int(own.spare) for name, own in tokens.items()}
            one_hot: Any = getattr(self.model, "one_hot", None)
            wide = [name for name in self.model.of_columns if isinstance(weights.get(name), Tensor)]
            return {**weights, **{name: one_hot.widened(weights[name], added) for name in wide}}
        counts = self.known.train_ids
        learned = {
            name: not own.spare and (self.known.unseen_filled or bool(counts[name][own.unknown]))
            for name, own in tokens.items()
        }
        rows = {name: None if learned[name] else own.unknown for name, own in tokens.items()}
        return with_unknown_rows(self.model, weights, rows, counts)

    def encoder(self) -> Encoder:
        """From rows to its batches."""
        return Encoder(
            self.known,
            self.dataset.lengths,
            self.dataset.scales,
            self.config["seq_separator"],
            self.config["seq_len"],
        )

    @torch.inference_mode()
    def probabilities(self, batch: Batch) -> dict[str, Tensor]:
        """What it predicts, by task, float32 ``[batch]``."""
        if isinstance(self.model, ReferenceRecommender):
            return {self.tasks[0]: self.model.predict(batch).float()}
        found = self.predicted(batch.to(self.device))
        return {task: own.float().cpu() for task, own in found.items()}

    def predicted(self, batch: Any) -> Mapping[str, Tensor]:
        """What a model of torch predicts, by task, ``[batch]`` each.

        Args:
            batch: on its device.
        """
        if is_entire_space(self.config):
            found: Mapping[str, Tensor] = self.model.predict_tasks(batch)
            return found
        return {self.tasks[0]: self.model.predict(batch).reshape(-1)}


def _device(name: Any) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0]
        raise UsageError(f"device {name!r} can't be used: {said}") from error
    return device


@contextlib.contextmanager
def _errors_in_words(config: Any) -> Iterator[None]:
    """What a model's constructor refuses, or has no memory for, as a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (MemoryError, RuntimeError, ValueError, TypeError, KeyError) as error:
        if place := place_in_own_code(error, own_files(config.model_class)):
            raise UsageError(place) from error
        said = str(error).partition("\n")[0]
        raise UsageError(f"{config['model']} can't be made of it: {said}") from error


def _fits(model: nn.Module, weights: Mapping[str, Any]) -> bool:
    """Whether the shapes of the weights that a model has too are its own."""
    own = model.state_dict()
    shapes = {name: getattr(value, "shape", None) for name, value in weights.items()}
    return all(shapes[name] == value.shape for name, value in own.items() if name in shapes)


def _support(quantiles: Any, checkpoint: Path) -> Any:
    if quantiles is None:
        return None
    if quantiles.shape != (SUPPORT_STEPS + 1,) or bool((quantiles.diff() < 0).any()):
        raise UsageError(f"checkpoint {checkpoint}: its support isn't as this program writes it")
    return quantiles.double().numpy()
