"""RecBole's Trainer with several losses, several steps a batch, and safe checkpoints."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.trainer import Trainer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_escm2.checkpoint import load_checkpoint, plain, save_checkpoint, vocabulary_digest
from recbole_escm2.config import metric_for, scored_tasks, single_task
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.catalogue import ALL_TASKS, score_of
from recbole_escm2.evaluator.evaluator import (
    EntireSpaceCollector,
    EntireSpaceEvaluator,
    MetricResult,
)
from recbole_escm2.evaluator.weights import WeightDiagnostics
from recbole_escm2.model import EntireSpaceRecommender
from recbole_escm2.model.lookup import model_path
from recbole_escm2.optimizer import OptimizerGroup, RowAdam
from recbole_escm2.output import write_json

#: In a run's folder, written anew after each validation: what a watcher of the run can read.
HISTORY_FILE = "history.json"


class EntireSpaceTrainer(Trainer):
    """Trains and scores entire-space models and RecBole's context-aware ones alike.

    Losses are reported as means over the batches of an epoch, by name. The best epoch is chosen on
    the unrounded ``valid_metric``; one with a target (PCOC, IEB, PIP) by its distance from it.

    Args:
        config: a settled config. With ``run_dir`` all files go there, else to RecBole's places.
        model: the model.
    """

    tensorboard: Any

    def __init__(self, config: Any, model: nn.Module) -> None:
        if not config["single_spec"]:
            raise UsageError("training on several processes isn't supported: leave out nproc")
        self.run_dir: str | None = config["run_dir"]
        # RecBole's own collector and evaluator, which ours replace, know no K but their topk.
        metrics, config["metrics"] = config["metrics"], ["AUC"]
        with _throwaway_directory() if self.run_dir else contextlib.nullcontext():
            super().__init__(config, model)
        config["metrics"] = metrics
        if self.run_dir:
            self.tensorboard.close()
            self.tensorboard = SummaryWriter(os.path.join(self.run_dir, "tensorboard"))
            self.saved_model_file = os.path.join(self.checkpoint_dir, checkpoint_name(config))
        if self.enable_amp and self.device.type == "cpu" and not has_bfloat16():
            self.logger.warning(
                "enable_amp: this processor has no bfloat16 arithmetic and has to imitate it: "
                "float32 is several times faster here"
            )
        self.tasks = scored_tasks(config)
        self.label_task = single_task(config)
        self.eval_collector = EntireSpaceCollector(self.tasks, self.label_task)
        self.evaluator = EntireSpaceEvaluator(config)
        self.valid_metric: str = config["valid_metric"]
        self.loss_names: tuple[str, ...] = ()
        self.best_epoch = -1
        self.verbose = True
        #: Propensity weights on the last validation.
        self.weights: WeightDiagnostics | None = None
        # A logged propensity isn't among what is evaluated, so that no method could be asked.
        self._weighs_its_own_way = (
            isinstance(model, EntireSpaceRecommender)
            and model.weighs_clicks()
            and model.has_own_propensity()
            and model.propensity_field is None
        )
        self._denominators: list[Tensor] = []
        self.vocabulary: dict[str, str] = {}
        #: What each epoch gave: its losses, and the metrics and weights of its validation.
        self.history: list[dict[str, Any]] = []

    def _build_optimizer(self, **kwargs: Any) -> Any:
        sparse = [
            module.weight
            for module in self.model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        ]
        if not sparse or kwargs:
            return self._fused(super()._build_optimizer(**kwargs))
        known = {id(weight) for weight in sparse}
        dense = [p for p in self.model.parameters() if id(p) not in known]
        learner = self.learner.lower().replace("sparse_", "")
        rows = (
            RowAdam(sparse, lr=self.learning_rate)
            if learner == "adam"
            else super()._build_optimizer(params=sparse, learner=learner)
        )
        return OptimizerGroup(
            rows, self._fused(super()._build_optimizer(params=dense, learner=learner))
        )

    def _fused(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same in one pass over each parameter, where torch has it: large tables gain most."""
        kind = type(optimizer)
        if kind in (torch.optim.Adam, torch.optim.AdamW) and self.device.type in ("cpu", "cuda"):
            defaults = {k: optimizer.defaults[k] for k in ("lr", "betas", "eps", "weight_decay")}
            with contextlib.suppress(RuntimeError):  # no fused kernel in this torch
                return kind(optimizer.param_groups[0]["params"], fused=True, **defaults)
        return optimizer

    # ------------------------------------------------------------------ training

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool | None = False,
        callback_fn: Any = None,
    ) -> tuple[float, MetricResult | None]:
        """As RecBole's, with one line for training and one for validation an epoch.

        Raises:
            UsageError: ``valid_metric`` has no value on the validation set.
        """
        if valid_data:
            self.evaluator.check_defined(valid_data._dataset.truth, self.tasks, self.label_task)
        self.vocabulary = self.vocabulary or vocabulary_digest(train_data._dataset)
        self.verbose = verbose
        result = super().fit(train_data, valid_data, False, saved, bool(show_progress), callback_fn)
        if verbose and self.best_epoch >= 0:
            self.logger.info(f"best epoch {self.best_epoch} of {len(self.train_loss_dict)}")
        if self.weights and self.weights.warning:
            self.logger.warning(self.weights.warning)
        return result

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Any = None,
        show_progress: bool = False,
    ) -> tuple[float, ...]:
        start = perf_counter()
        self.config["training_started"] = True  # from here on a run's folder is kept
        self.model.train()
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        totals: dict[str, Tensor] = {}
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        batches = _progress(train_data, f"Train {epoch_idx:>5}", show_progress)
        for interaction in batches:
            steps = self._loss_steps(interaction.to(self.device), loss_func)
            while losses := self._next_losses(steps):
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0.0) + loss.detach()
                self._optimize(losses, scaler)
        means = {name: float(total) / len(train_data) for name, total in totals.items()}
        self.loss_names = tuple(means)
        seconds = perf_counter() - start
        self.history.append({"epoch": epoch_idx, "seconds": round(seconds, 3), "losses": means})
        if self.verbose:
            shown = ", ".join(f"{name} {mean:.5f}" for name, mean in means.items())
            self.logger.info(f"epoch {epoch_idx} train {seconds:.1f}s  {shown}")
        return tuple(means.values())

    def _loss_steps(self, interaction: Any, loss_func: Any) -> Iterator[dict[str, Tensor]]:
        if loss_func is None and isinstance(self.model, EntireSpaceRecommender):
            yield from self.model.loss_steps(interaction)
            return
        losses = (loss_func or self.model.calculate_loss)(interaction)
        if not isinstance(losses, tuple):
            losses = (losses,)
        names = ["loss"] if len(losses) == 1 else [f"loss{n + 1}" for n in range(len(losses))]
        yield dict(zip(names, losses, strict=True))

    def _next_losses(self, steps: Iterator[dict[str, Tensor]]) -> dict[str, Tensor] | None:
        with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
            return next(steps, None)

    def _optimize(self, losses: dict[str, Tensor], scaler: torch.amp.GradScaler) -> None:
        loss = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not torch.isfinite(loss):
            shown = ", ".join(f"{name} {value.item()}" for name, value in losses.items())
            raise UsageError(
                f"the training loss isn't finite ({shown}). A smaller learning_rate, a "
                "clip_grad_norm or a propensity_floor above 0 may help, or the risk divides by 0"
            )
        self.optimizer.zero_grad()
        scaler.scale(loss).backward()
        if self.clip_grad_norm:
            scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()

    def _add_train_loss_to_tensorboard(
        self, epoch_idx: int, losses: Any, tag: str = "Loss/Train"
    ) -> None:
        for name, loss in zip(self.loss_names, losses, strict=True):
            self.tensorboard.add_scalar(f"{tag}/{name}", loss, epoch_idx)

    # ------------------------------------------------------------------ evaluation

    def _valid_epoch(
        self, valid_data: Any, show_progress: bool = False
    ) -> tuple[float, MetricResult]:
        start = perf_counter()
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        if self.valid_metric not in result:
            raise UsageError(
                f"valid_metric {self.valid_metric} has no value on the validation set: "
                f"{result.undefined.get(self.valid_metric, 'the model does not predict it')}"
            )
        score = score_of(self.valid_metric, result[self.valid_metric])
        best = self.best_valid_score
        improved = score >= best if self.valid_metric_bigger else score <= best
        epoch = len(self.train_loss_dict) - 1 + self.start_epoch
        if improved:
            self.best_epoch = epoch
        for name, value in result.items():
            self.tensorboard.add_scalar(f"Valid/{name}", value, epoch)
        self.weights = self._weigh()
        self.history[-1]["valid"] = dict(result)
        self.history[-1]["weights"] = self.weights and self.weights.as_dict()
        if self.run_dir:
            write_json(Path(self.run_dir) / HISTORY_FILE, self.history)
        if self.verbose:
            others = [f"{task.upper()}_AUC" for task in ALL_TASKS]
            shown = dict.fromkeys([self.valid_metric, *(n for n in others if n in result)])
            values = ", ".join(f"{name} {result[name]:.5f}" for name in shown)
            self.logger.info(
                f"epoch {epoch} valid {perf_counter() - start:.1f}s  {values}"
                + ("  (best so far)" if improved else "")
            )
            if self.weights:
                self.logger.info(f"epoch {epoch} weights  {self.weights}")
        return score, result

    def _weigh(self) -> WeightDiagnostics | None:
        """The propensity weights on the split that was scored last, of a model that has them."""
        predictions = self.eval_collector.predictions
        weighs = isinstance(self.model, EntireSpaceRecommender) and self.model.weighs_clicks()
        if not weighs or predictions is None:
            return None
        return WeightDiagnostics.of(
            predictions.truth.click,
            predictions.propensity,
            self.model.propensity_floor,
            self.denominator(),
        )

    def denominator(self) -> NDArray[Any]:
        """What the clicks of the split that was scored last are divided by, ``[|D|]``."""
        if self._denominators:
            return torch.cat(self._denominators).numpy()
        predictions = self.eval_collector.predictions
        assert predictions is not None, "a split is scored before"
        propensity = np.asarray(predictions.propensity, dtype=np.float64)
        return np.maximum(propensity, self.model.propensity_floor)

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool | None = False,
    ) -> Any:
        """The metrics of a split, unrounded, by name.

        Raises:
            UsageError: ``model_file`` is no checkpoint of this model.
        """
        if not eval_data:
            return None
        if load_best_model:
            self._load_weights(load_checkpoint(model_file or self.saved_model_file, self.device))
        self.eval_collector.begin(eval_data._dataset.truth)
        self._denominators = []
        return super().evaluate(eval_data, load_best_model=False, show_progress=bool(show_progress))

    def _neg_sample_batch_eval(self, batched_data: Any) -> tuple[Any, Tensor, None, None]:
        interaction = batched_data[0].to(self.device)
        if isinstance(self.model, EntireSpaceRecommender):
            probability = self.model.predict_tasks(interaction)
            scores = torch.stack([probability[task] for task in self.tasks], dim=1)
            if self._weighs_its_own_way:
                weighted = self.model.propensity(self.model(interaction), interaction)
                self._denominators.append(weighted.float().cpu())
        else:
            scores = self.model.predict(interaction).reshape(-1, 1)
        return interaction, scores, None, None

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        settings = {**self.config.internal_config_dict, **self.config.external_config_dict}
        # A default depends on the task, and a single-task model doesn't predict a product.
        single = not isinstance(self.model, EntireSpaceRecommender)
        valid_metric = metric_for(self.config["task"], self.valid_metric) if single else None
        settings["valid_metric"] = valid_metric or self.valid_metric
        state = {
            "model": model_path(self.config.model_class),
            "dataset": self.config["dataset"],
            "settings": plain(settings),
            "vocabulary": self.vocabulary,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(path, state)

    def resume_checkpoint(self, resume_file: str) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: it is no checkpoint of this model.
        """
        state = load_checkpoint(resume_file, self.device)
        self._load_weights(state)
        self.saved_model_file = str(resume_file)
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.logger.info(f"going on from epoch {self.start_epoch} of {resume_file}")

    def _load_weights(self, state: dict[str, Any]) -> None:
        own = model_path(self.config.model_class)
        if state["model"] != own:
            raise UsageError(f"the checkpoint is of model {state['model']}, not of {own}")
        if self.vocabulary and state["vocabulary"] != self.vocabulary:
            changed = [
                field
                for field in {*self.vocabulary, *state["vocabulary"]}
                if self.vocabulary.get(field) != state["vocabulary"].get(field)
            ]
            raise UsageError(
                f"the checkpoint was trained on other data: field {', '.join(sorted(changed))} has "
                "another vocabulary here, so that its ids mean other tokens"
            )
        try:
            self.model.load_state_dict(state["state_dict"])
        except RuntimeError as error:
            raise UsageError(f"the checkpoint doesn't fit the model: {error}") from error


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; torch's own answer, where it gives one."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    known = [getattr(torch.cpu, name) for name in checks if hasattr(torch.cpu, name)]
    return not known or any(check() for check in known)


def checkpoint_name(config: Any) -> str:
    """The checkpoint's file name: plain in a run's own folder, else with the run's name."""
    folder = Path(config["run_dir"])
    if Path(config["checkpoint_dir"]) == folder:
        return "checkpoint.pth"
    return f"{folder.parent.name}-{folder.name}.pth" if config["stage"] else f"{folder.name}.pth"


def _progress(batches: Any, title: str, show: bool) -> Any:
    return tqdm(batches, total=len(batches), ncols=100, desc=title) if show else batches


@contextlib.contextmanager
def _throwaway_directory() -> Iterator[None]:
    """RecBole's Trainer opens a TensorBoard folder in the working directory: one that goes away."""
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(home)
