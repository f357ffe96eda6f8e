"""RecBole's Trainer with several losses, several steps a batch, and safe checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import recbole.trainer.trainer
import torch
from numpy.typing import NDArray
from recbole.trainer import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_escm2.data.encoding import encoding_state
from recbole_escm2.distributed import (
    barrier,
    from_main,
    gather_to_main,
    is_main,
    seed_of,
    sum_over_ranks,
    world_size,
)
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.constant import BesideConstant, beside_constant
from recbole_escm2.evaluator.evaluator import (
    EntireSpaceCollector,
    EntireSpaceEvaluator,
    MetricResult,
)
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.evaluator.weights import WeightDiagnostics
from recbole_escm2.identity import Identity, difference
from recbole_escm2.keys import PLACE_KEYS, table_optimizer, training_seed
from recbole_escm2.lookup import model_path
from recbole_escm2.metric_names import ALL_TASKS, score_of
from recbole_escm2.model import EntireSpaceRecommender
from recbole_escm2.model.backbone import normalising_alone
from recbole_escm2.model.embedding import embedding_tables, fill_unseen, reserved_rows
from recbole_escm2.output import JsonList, to_builtins, versions
from recbole_escm2.tasks import metric_for, scored_tasks, single_task
from recbole_escm2.train.checkpoint import (
    finish_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    support_of,
)
from recbole_escm2.train.device import LossWatch, batches_on
from recbole_escm2.train.learned import learned, restore_learned
from recbole_escm2.train.optimizer import OptimizerGroup, RowAdam
from recbole_escm2.train.progress import (
    OF_EPOCH,
    ProgressFile,
    bookkeeping_of,
    load_progress,
    random_state,
    restore_bookkeeping,
    restore_random,
)
from recbole_escm2.train.propensity import mapped_propensity, refit_propensity
from recbole_escm2.train.run import HISTORY_FILE, PROGRESS_FILE, Run

#: What to say with the numbers of a checkpoint whose training hasn't come to its end.
CUT_SHORT = (
    "The training of this checkpoint was cut short: epoch {epoch} was the best by then, and a "
    "later one might have been better"
)


class _NextLosses(nn.Module):
    """What DistributedDataParallel calls: the losses of the next step, by the model's weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, steps: Iterator[dict[str, Tensor]]) -> dict[str, Tensor] | None:
        return next(steps, None)


@contextlib.contextmanager
def _config_for_recbole(config: Any, run: Run | None) -> Iterator[None]:
    """While RecBole's trainer is made: values that it takes, and the run's folder for its files."""
    # RecBole's own collector and evaluator, which ours replace, know no K but their topk.
    shown: dict[str, Any] = {"metrics": ["AUC"]}
    if run is not None:
        shown["checkpoint_dir"] = str(run.checkpoint.parent)  # which it makes
        # RecBole's own way fails where another process makes it at that moment.
        run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    before = {key: config[key] for key in shown}
    config.final_config_dict.update(shown)
    with _tensorboard_of(run) if run else contextlib.nullcontext():
        yield
    config.final_config_dict.update(before)


class EntireSpaceTrainer(Trainer):
    """Trains and scores entire-space models and RecBole's context-aware ones alike.

    Of several processes each does this with its share of the rows, and the first one alone writes.

    Losses are reported as means over the batches of an epoch, by name. The best epoch is chosen on
    the unrounded ``valid_metric``; one with a target (PCOC, IEB, PIP) by its distance from it.

    Args:
        config: a complete config.
        model: the model.
        run: whose folder takes all files; without one they go to RecBole's places.
    """

    epochs: int
    model: Any
    tensorboard: Any

    def __init__(self, config: Any, model: nn.Module, run: Run | None = None) -> None:
        if not config["single_spec"]:
            raise UsageError(
                "several processes are started by torchrun (docs/distributed.md): leave out nproc"
            )
        self.run = run
        with _config_for_recbole(config, run):
            super().__init__(config, model)
        if run is not None:
            self.saved_model_file = str(run.checkpoint)
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
        #: The best epoch on validation, where its log loss can be told.
        self.beside_constant: BesideConstant | None = None
        #: Propensity weights on the last validation.
        self.weights: WeightDiagnostics | None = None
        # A logged propensity isn't among what is evaluated, so that no method could be asked.
        self._estimates_weights = (
            isinstance(model, EntireSpaceRecommender)
            and model.weighs_clicks()
            and model.has_own_propensity()
            and model.propensity_field is None
        )
        self._denominators: list[Tensor] = []
        self._watch = LossWatch(self.device)
        #: What data and which split the training is on.
        self.identity: Identity | None = None
        self._resumed: Identity | None = None
        self._has_saved = False
        #: Whether ``epochs`` counts parts of an epoch already, where a loader hands out parts.
        self.epochs_are_parts = False
        self._learning = model
        self._parallel: Any = None  # the same, with gradients that are means over the processes
        self._average: Any = None
        self._kept: dict[str, Any] = {}  # of the data, with each checkpoint
        self._seen_ids: dict[str, Tensor] | None = None
        self._has_no_validation = False
        #: What each epoch gave: its losses, and the metrics and weights of its validation.
        self.history: list[dict[str, Any]] = []
        #: Seconds that training took before a kill from which it goes on.
        self.seconds_before = 0.0
        self._started = 0.0
        self._begun: dict[str, Any] | None = None
        self._progress: ProgressFile | None = None
        self._history_file: JsonList | None = None
        if run is not None:
            self._history_file = JsonList(run.folder / HISTORY_FILE)
            self._progress = ProgressFile(run.folder / PROGRESS_FILE, config["save_interval"])

    def _build_optimizer(self, **kwargs: Any) -> Any:
        self.row_adam: RowAdam | None = None
        if kwargs:
            return self._fused(super()._build_optimizer(**kwargs))
        learner = self.learner.lower().replace("sparse_", "")
        tables_by = table_optimizer(self.config)
        tables = {id(table.weight): table for table in embedding_tables(self.model)}
        sparse = [table.weight for table in tables.values() if table.sparse]
        own = self.weight_decay or 0.0
        penalty = own + (self.config["embedding_weight_decay"] or 0.0)
        of_rows = {id(weight) for weight in sparse}
        others = [p for p in self.model.parameters() if id(p) not in of_rows]
        dense = [p for p in others if id(p) in tables]
        optimizers: list[torch.optim.Optimizer] = []
        if sparse and tables_by == "adam":
            decay = {"weight_decay": penalty, "sleeping_decay": self.config["sleeping_decay"]}
            self.row_adam = RowAdam(sparse, lr=self.learning_rate, **decay)
            optimizers.append(self.row_adam)
        elif sparse:
            optimizers.append(self._recbole_optimizer(tables_by, sparse, own))
        groups: list[Any] = others
        if tables_by != learner and dense:
            groups = [p for p in others if id(p) not in tables]
            optimizers.append(self._recbole_optimizer(tables_by, dense, penalty))
        elif penalty != own:
            groups = [
                {"params": [p for p in others if id(p) not in tables]},
                {"params": dense, "weight_decay": penalty},
            ]
        if groups:
            optimizers.append(
                self._recbole_optimizer(learner if sparse else self.learner, groups, own)
            )
        return optimizers[0] if len(optimizers) == 1 else OptimizerGroup(*optimizers)

    def _recbole_optimizer(
        self, learner: str, params: Any, weight_decay: float
    ) -> torch.optim.Optimizer:
        """RecBole's optimizer of a name, with the learning rate of all."""
        kinds = {"learner": learner, "weight_decay": weight_decay}
        return self._fused(super()._build_optimizer(params=params, **kinds))

    def _fused(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same in one pass over each parameter, where torch has it: large tables gain most."""
        kind = type(optimizer)
        if kind in (torch.optim.Adam, torch.optim.AdamW) and self.device.type in ("cpu", "cuda"):
            defaults = {k: optimizer.defaults[k] for k in ("lr", "betas", "eps", "weight_decay")}
            own = ("params", "weight_decay")
            groups = [{k: group[k] for k in own} for group in optimizer.param_groups]
            with contextlib.suppress(RuntimeError):  # no fused kernel in this torch
                return kind(groups, fused=True, **defaults)
        return optimizer

    @contextlib.contextmanager
    def _waking_rows(self, train_data: Any) -> Iterator[None]:
        """Have sparse rows under a penalty wake before they are read, and all at the end."""
        optimizer = self.row_adam
        if optimizer is None or not optimizer.defaults["weight_decay"]:
            yield
            return

        def wake(table: Any, inputs: tuple[Any, ...]) -> None:
            if table.training and inputs:
                optimizer.wake(table.weight, inputs[0])

        tables = [table for table in embedding_tables(self.model) if table.sparse]
        reserved = reserved_rows(self.model, train_data._dataset.field2id_token)
        for table in tables:
            optimizer.leave_out(table.weight, reserved[table].to(self.device))
        hooks = [table.register_forward_pre_hook(wake) for table in tables]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            optimizer.catch_up()

    def _catch_up(self) -> None:
        """Before the model is read as a whole."""
        if self.row_adam is not None:
            self.row_adam.catch_up()

    @contextlib.contextmanager
    def _counting_parts(self, train_data: Any) -> Iterator[None]:
        """Have RecBole count each part of an epoch as one, where a loader hands out parts."""
        epochs = self.epochs
        if not self.epochs_are_parts:
            self.epochs *= getattr(train_data, "parts", 1)
        try:
            yield
        finally:
            self.epochs = epochs

    def _take_average(self) -> None:
        """Put the moving average of the weights, this moment's among them, in their place.

        Until training goes on: it is what is scored and saved. One average a validation instead of
        one a step (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
        Generalization", UAI 2018, have one an epoch), since it costs a pass over the tables;
        where nothing is validated, at the end of each epoch or part of one.
        """
        if self.config["weight_averaging"]:
            self._catch_up()
            if self._average is None:
                self._average = self._new_average()
            self._average.update_parameters(self._learning)
            self.model = self._average.module

    def _new_average(self) -> AveragedModel:
        average = get_ema_multi_avg_fn(self.config["weight_averaging"])
        return AveragedModel(self._learning, multi_avg_fn=average, use_buffers=True)

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

        A run that goes on begins where its progress was saved last.

        Raises:
            UsageError: ``valid_metric`` has no value on the validation set, or training was to go
                on from a checkpoint of other data or of another split.
        """
        if valid_data:
            self.evaluator.check_defined(valid_data._dataset.truth, self.tasks, self.label_task)
        self._has_no_validation = not valid_data
        self.identity = train_data._dataset.identity
        self._kept = encoding_state(train_data._dataset)
        self._seen_ids = train_data._dataset.seen_ids
        if self._resumed is not None:
            self._check_data(self._resumed, self.identity)
        self.verbose = verbose
        self._started = perf_counter()
        if self.run is not None and self.run.goes_on and self._go_on(self.run):
            return self.best_valid_score, self.best_valid_result
        if world_size() > 1:
            self._parallel = self._in_parallel(train_data)
        with self._waking_rows(train_data), self._counting_parts(train_data):
            result = super().fit(
                train_data, valid_data, False, saved, bool(show_progress), callback_fn
            )
            if not valid_data:
                self.best_epoch = self.epochs - 1
        self._parallel = None
        if self._is_sharded:
            barrier()  # until the best epoch is written
        if is_main() or self._is_sharded:
            self._finish(train_data._dataset)
        barrier()  # what was written is there for all
        if verbose and valid_data and self.best_epoch >= 0:
            self.logger.info(f"best epoch {self.best_epoch} of {len(self.train_loss_dict)}")
        if self.weights and self.weights.warning:
            self.logger.warning(self.weights.warning)
        return result

    def _finish(self, train: Any) -> None:
        """Note in its files that the training has come to its end."""
        if self._has_saved:
            file = Path(self.saved_model_file)
            finish_checkpoint(file, lambda state: self._about_best(state, train))
        if self._progress is not None and self._progress.is_kept and is_main():
            self._progress.save(self._bookkeeping(ended=True, epoch=len(self.train_loss_dict)))

    def _about_best(self, state: Mapping[str, Any], train: Any) -> dict[str, Any]:
        """What a checkpoint keeps of what its model gives to train, which it needn't be in.

        Tables in shards stay as they are in it: memory may not hold others beside them.
        """
        last = {name: value.clone() for name, value in self.model.state_dict().items()}
        self._put(state["state_dict"])
        self.model.eval()
        support = support_of(self._pctr, train) if "ctr" in self.tasks else None
        if not self._is_sharded:
            self._put(last)
        return {"support": support}

    def _pctr(self, batch: Any) -> Tensor:
        """pCTR of a batch of features, float32 ``[batch]``."""
        _, scores = self._scored(batch)
        return scores[:, self.tasks.index("ctr")].float().cpu()

    def _put(self, weights: Mapping[str, Any]) -> None:
        load_weights(self.model, weights)

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Any = None,
        show_progress: bool = False,
    ) -> tuple[float, ...]:
        if self.run is not None:
            self.run.start()
        self.model = self._learning
        self.eval_collector.predictions = None  # of the last validation: a training needs the room
        begun = self._begun
        if begun is None and self.train_loss_dict and self._is_progress_due(after_epoch=True):
            self._save_progress(epoch_idx)
        start = perf_counter() - (begun["epoch_seconds"] if begun else 0.0)
        means = self._learn(train_data, epoch_idx, loss_func, show_progress)
        if self._has_no_validation:
            self._take_average()
            self._fill_unseen()
        self.loss_names = tuple(means)
        seconds = perf_counter() - start
        self.history.append({"epoch": epoch_idx, "seconds": round(seconds, 3), "losses": means})
        if self.verbose:
            shown = ", ".join(f"{name} {mean:.5f}" for name, mean in means.items())
            self.logger.info(f"epoch {epoch_idx} train {seconds:.1f}s  {shown}")
        return tuple(means.values())

    @property
    def _is_sharded(self) -> bool:
        """Whether each process has shards of the tables, so that all take part in using them."""
        return getattr(self._learning, "sharded", None) is not None

    def _fill_unseen(self) -> None:
        """Give ids that train lacks their embeddings, before the model is scored and saved."""
        if self._seen_ids is not None:
            self._catch_up()
            fill_unseen(self.model, self._seen_ids)

    def _learn(
        self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool
    ) -> dict[str, float]:
        """What an epoch does; returns the mean of each loss."""
        self.model.train()
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        totals: dict[str, Tensor] = {}
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        started, first, spent = perf_counter(), 0, 0.0
        if (begun := self._begun) is not None:
            first, spent, totals = begun["step"], begun["epoch_seconds"], begun["totals"]
            train_data.begin_at(first)
            if begun["scaler"]:
                scaler.load_state_dict(begun["scaler"])
            restore_random(begun["random"], self.device)
            self._begun = None
        self._watch = LossWatch(self.device, epoch_idx)
        batches = _progress(train_data, f"Train {epoch_idx:>5}", show_progress, first)
        for step, interaction in enumerate(batches_on(self.device, batches), start=first + 1):
            if self._parallel is not None:
                torch.manual_seed(seed_of(training_seed(self.config), epoch_idx, step))
            self._watch.step = step
            self._train_step(interaction, loss_func, scaler, totals)
            if self._is_progress_due():
                self._watch.look()
                seconds = spent + perf_counter() - started
                self._save_progress(epoch_idx, step, seconds, totals, scaler.state_dict())
        self._watch.look()
        return {name: float(total) / len(train_data) for name, total in totals.items()}

    def _train_step(
        self, interaction: Any, loss_func: Any, scaler: Any, totals: dict[str, Tensor]
    ) -> None:
        """Learn from a batch that is on the device; on a GPU nothing here waits for it."""
        steps = self._loss_steps(interaction, loss_func)
        while losses := self._next_losses(steps):
            for name, loss in self._of_all_ranks(losses).items():
                totals[name] = totals.get(name, 0.0) + loss
            self._optimize(losses, scaler)

    def _loss_steps(self, interaction: Any, loss_func: Any) -> Iterator[dict[str, Tensor]]:
        if loss_func is None and isinstance(self.model, EntireSpaceRecommender):
            yield from self.model.loss_steps(interaction)
            return
        with normalising_alone(self.model, interaction):
            losses = (loss_func or self.model.calculate_loss)(interaction)
        if not isinstance(losses, tuple):
            losses = (losses,)
        names = ["loss"] if len(losses) == 1 else [f"loss{n + 1}" for n in range(len(losses))]
        share = getattr(interaction, "share", None)
        if share is not None:  # a mean over the rows of this process
            losses = tuple(loss * share.weight for loss in losses)
        yield dict(zip(names, losses, strict=True))

    def _in_parallel(self, train_data: Any) -> DistributedDataParallel:
        """The model with gradients that are means over the processes.

        What a step leaves out (``alternate``, a weight of 0) has to be searched for in each graph:
        a first batch, of which nothing is learned, tells whether anything is.
        """
        check_parallel(self.model, self.device)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        steps = self._loss_steps(next(iter(train_data)).to(self.device), None)
        leaves_out = False
        while losses := self._next_losses(steps):
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            gradients = torch.autograd.grad(total, learned, allow_unused=True)
            leaves_out |= any(gradient is None for gradient in gradients)
        losses_of = _NextLosses(self.model)
        return DistributedDataParallel(losses_of, find_unused_parameters=leaves_out)

    def _next_losses(self, steps: Iterator[dict[str, Tensor]]) -> dict[str, Tensor] | None:
        with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
            return next(steps, None) if self._parallel is None else self._parallel(steps)

    def _of_all_ranks(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the whole batch, without gradient: those of ours are that on each rank."""
        if self._parallel is None or isinstance(self._learning, EntireSpaceRecommender):
            return {name: loss.detach() for name, loss in losses.items()}
        own = torch.stack([loss.detach() for loss in losses.values()])
        return dict(zip(losses, sum_over_ranks(own) / world_size(), strict=True))

    def _optimize(self, losses: dict[str, Tensor], scaler: torch.amp.GradScaler) -> None:
        loss = torch.stack([loss.float() for loss in losses.values()]).sum()
        self._watch.saw(losses, loss)
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

    # ------------------------------------------------------------------ progress

    def _is_progress_due(self, after_epoch: bool = False) -> bool:
        due = self._progress is not None and is_main() and self._progress.is_due(after_epoch)
        return bool(from_main(due)) if self._is_sharded else due

    def _save_progress(
        self,
        epoch: int,
        step: int = 0,
        epoch_seconds: float = 0.0,
        totals: dict[str, Tensor] | None = None,
        scaler: dict[str, Any] | None = None,
    ) -> None:
        """Write down how far the training has come: ``step`` batches into an epoch."""
        assert self._progress is not None, "one is due"
        known = learned(self._learning, self.optimizer, self._progress.path.parent)
        if not is_main():
            return
        state = self._bookkeeping(epoch=epoch, step=step, epoch_seconds=epoch_seconds)
        state |= {
            "totals": totals or {},
            **known,
            "average": {} if self._average is None else self._average.state_dict(),
            "scaler": scaler or {},
            "random": random_state(self.device),
        }
        self._progress.save(state)

    def _bookkeeping(self, **place: Any) -> dict[str, Any]:
        """All of a progress but what is being learned."""
        assert self.run is not None, "progress is a run's"
        return {
            "of": self.run.about(),
            "data": self.identity,
            "threads": torch.get_num_threads(),
            "processes": world_size(),
            "ended": False,
            "step": 0,
            "seconds": self.seconds_before + perf_counter() - self._started,
            "epoch_seconds": 0.0,
            "history": to_builtins(self.history),
            "trainer": bookkeeping_of(self),
            **place,
        }

    def _go_on(self, run: Run) -> bool:
        """Take up a training where its progress was saved; whether it had come to its end.

        One of other data, or without its best epoch's checkpoint, begins anew.

        Raises:
            UsageError: it doesn't fit the model.
        """
        state = self._progress_of(run) if is_main() else None
        if not from_main(state is not None):
            return False
        if state is None:
            assert self._progress is not None, "a run has progress"
            state = load_progress(self._progress.path)
        epoch, step = state["epoch"], state["step"]
        if not state["ended"]:
            self._say_anew(restore_learned(self._learning, self.optimizer, state))
            if state["average"]:
                self._average = self._new_average()
                load_weights(self._average, state["average"])
            self._begun = {name: state[name] for name in OF_EPOCH}
            self.tensorboard = _writer(run, purge_step=epoch)
        restore_bookkeeping(self, state["trainer"])
        self.history, self.start_epoch = state["history"], epoch
        self.seconds_before = state["seconds"]
        self._has_saved = self.best_epoch >= 0
        where = (
            ", whose training is done" if state["ended"] else f" from epoch {epoch}, step {step}"
        )
        self.logger.info(f"going on with {run.name}{where}")
        if state["threads"] != torch.get_num_threads():
            self.logger.warning(
                f"it was begun with {state['threads']} threads, and goes on with "
                f"{torch.get_num_threads()}: sums may be rounded in another way"
            )
        if (before := state["processes"]) != world_size():
            self.logger.warning(
                f"it was begun by {before} process{'es' * (before > 1)}, and goes on by "
                f"{world_size()}: sums may be rounded in another way, and dropout draws other masks"
            )
        return bool(state["ended"])

    def _progress_of(self, run: Run) -> dict[str, Any] | None:
        """What a training can go on with; None where it has to begin anew, or has yet to begin."""
        assert self._progress is not None, "a run has progress"
        assert self.identity is not None, "it is fitted"
        checkpoint = Path(self.saved_model_file)
        if not self._progress.path.is_file():  # of a part that had yet to begin
            return None
        try:
            state = load_progress(self._progress.path)
            if differs := difference(state["data"], self.identity):
                raise UsageError(differs)
            needed = state["ended"] or state["trainer"]["best_epoch"] >= 0
            if needed and not checkpoint.is_file():
                raise UsageError(f"{checkpoint} is gone")
        except UsageError as error:
            self.logger.warning(f"{run.name} begins anew: {error}")
            self._progress.remove()
            checkpoint.unlink(missing_ok=True)
            return None
        return state

    # ------------------------------------------------------------------ evaluation

    def _valid_epoch(
        self, valid_data: Any, show_progress: bool = False
    ) -> tuple[float, MetricResult]:
        start = perf_counter()
        self._take_average()
        self._fill_unseen()
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        if self.valid_metric not in result:
            raise UsageError(
                f"valid_metric {self.valid_metric} has no value on the validation set: "
                f"{result.undefined.get(self.valid_metric, 'the model does not predict it')}"
            )
        score = score_of(self.valid_metric, result[self.valid_metric])
        best = self.best_valid_score
        improved = score >= best if self.valid_metric_bigger else score <= best
        epoch = next(reversed(self.train_loss_dict))
        if improved:
            self.best_epoch = epoch
        self.history[-1]["valid"] = dict(result)
        if is_main():
            self._look_at(epoch, result, improved, start)
        return score, result

    def _look_at(self, epoch: int, result: MetricResult, improved: bool, start: float) -> None:
        """What validation tells beside its metrics: it is fitted to, written down and logged."""
        if improved:
            self.beside_constant = beside_constant(self.predictions, self.label_task)
        for name, value in result.items():
            self.tensorboard.add_scalar(f"Valid/{name}", value, epoch)
        self.weights = self._weigh()
        self.history[-1]["weights"] = self.weights and self.weights.as_dict()
        refitted = refit_propensity(self.model, self.config, self.predictions, self._learning)
        if refitted:
            self.history[-1]["propensity"] = refitted
        if self._history_file is not None:
            self._history_file.write(self.history)
        if self.verbose:
            others = [f"{task.upper()}_AUC" for task in ALL_TASKS]
            shown = dict.fromkeys([self.valid_metric, *(n for n in others if n in result)])
            values = ", ".join(f"{name} {result[name]:.5f}" for name in shown)
            self.logger.info(
                f"epoch {epoch} valid {perf_counter() - start:.1f}s  {values}"
                + (f"  ({self._best_so_far()})" if improved else "")
            )
            if self.weights:
                self.logger.info(f"epoch {epoch} weights  {self.weights}")
            if refitted:
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in refitted.items())
                self.logger.info(f"epoch {epoch} propensity from now on  {numbers}")

    def _best_so_far(self) -> str:
        """What to say of an epoch by which no earlier one is better."""
        worse = self.beside_constant is not None and self.beside_constant.is_worse
        return "no earlier one is better, but a constant prediction is" if worse else "best so far"

    @property
    def predictions(self) -> Predictions:
        """Of the split that was scored last."""
        predictions = self.eval_collector.predictions
        assert predictions is not None, "a split is scored before"
        return predictions

    def propensity(self) -> NDArray[Any] | None:
        """ô on the split that was scored last, ``[|D|]``; None where nothing is weighed by it.

        Of a model that weighs clicks in a way of its own it is what they are divided by.
        """
        predictions = self.eval_collector.predictions
        weighs = isinstance(self.model, EntireSpaceRecommender) and self.model.weighs_clicks()
        if not weighs or predictions is None:
            return None
        if self._denominators:
            return self.denominator()
        return mapped_propensity(self.model, predictions)

    def _weigh(self) -> WeightDiagnostics | None:
        """The propensity weights on the split that was scored last, of a model that has them."""
        predictions = self.eval_collector.predictions
        if self.propensity() is None or predictions is None:
            return None
        return WeightDiagnostics.of(
            predictions.truth.click,
            mapped_propensity(self.model, predictions),
            float(self.model.propensity_floor),
            self.denominator(),
        )

    def denominator(self) -> NDArray[Any]:
        """What the clicks of the split that was scored last are divided by, ``[|D|]``."""
        if self._denominators:
            return torch.cat(self._denominators).numpy()
        propensity = mapped_propensity(self.model, self.predictions).astype(np.float64)
        return np.maximum(propensity, float(self.model.propensity_floor))

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool | None = False,
    ) -> Any:
        """The metrics of a split, unrounded, by name.

        Raises:
            UsageError: ``model_file`` is no checkpoint of this model, or one of other data or of
                another split.
        """
        if not eval_data:
            return None
        self._catch_up()
        if load_best_model:
            file = model_file or self.saved_model_file
            self.take(load_checkpoint(file, mapped=True), eval_data)
        edges: Any = getattr(eval_data, "edges", ())  # those of RecBole's loaders are one process's
        self.eval_collector.begin(eval_data._dataset.truth, edges)
        if self._is_sharded:
            self._join_in(eval_data)
        self._denominators = []
        result = super().evaluate(
            eval_data, load_best_model=False, show_progress=bool(show_progress)
        )
        if self._estimates_weights and world_size() > 1:
            own = torch.cat([torch.empty(0), *self._denominators])
            whole = torch.cat([own, torch.empty(edges[-1] - len(own))]) if is_main() else own
            gather_to_main(whole, edges)
            self._denominators = [whole]
        return from_main(result)

    @torch.no_grad()
    def _join_in(self, eval_data: Any) -> None:
        """Look up embeddings as often as the process with the most batches: all have to."""
        self.model.eval()
        for _ in range(eval_data.batches_behind):
            self._neg_sample_batch_eval((eval_data._dataset[:1],))

    def _neg_sample_batch_eval(self, batched_data: Any) -> tuple[Any, Tensor, None, None]:
        interaction, scores = self._scored(batched_data[0])
        if self._estimates_weights:
            weighted = self.model.propensity(self.model(interaction), interaction)
            self._denominators.append(weighted.float().cpu())
        return interaction, scores, None, None

    def _scored(self, batch: Any) -> tuple[Any, Tensor]:
        """A batch where the model is, and what it predicts of it, ``[batch, tasks]``."""
        interaction = batch.to(self.device)
        if isinstance(self.model, EntireSpaceRecommender):
            probability = self.model.predict_tasks(interaction)
            return interaction, torch.stack([probability[task] for task in self.tasks], dim=1)
        return interaction, self.model.predict(interaction).reshape(-1, 1)

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        self._catch_up()
        self._has_saved = True
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        known = self._learned(path.parent) if is_main() or self._is_sharded else {}
        if not is_main():
            return
        external = self.config.external_config_dict
        settings = {**self.config.internal_config_dict, **external}
        # A default depends on the task, and a single-task model doesn't predict a product.
        single = not isinstance(self.model, EntireSpaceRecommender)
        valid_metric = metric_for(self.config["task"], self.valid_metric) if single else None
        settings["valid_metric"] = valid_metric or self.valid_metric
        assert self.identity is not None, "it is saved while it is fitted"
        state = {
            "model": model_path(self.config.model_class),
            "dataset": self.config["dataset"],
            "settings": to_builtins({k: v for k, v in settings.items() if k not in PLACE_KEYS}),
            "places": to_builtins(
                {k: v for k, v in external.items() if k in ("data_path", "store_dir")}
            ),
            "data": self.identity,
            "epoch": epoch,
            "training_ended": False,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            **known,
            **self._kept,
            "versions": versions(),
            "support": None,
            "calibration": None,
        }
        save_checkpoint(path, state)

    def _learned(self, folder: Path) -> dict[str, Any]:
        """The model that is scored, which may be an average, and the optimizer of what learns."""
        weights = (
            {"state_dict": self.model.state_dict()} if self.model is not self._learning else {}
        )
        return {**learned(self._learning, self.optimizer, folder), **weights}

    def _say_anew(self, parameters: list[str]) -> None:
        if parameters:
            self.logger.warning(
                f"the optimizer of {', '.join(sorted(parameters))} begins anew: what was saved is "
                "another one's"
            )

    def resume_checkpoint(self, resume_file: str) -> None:
        """Go on from a checkpoint; :meth:`fit` then makes sure that data and split are its own.

        Raises:
            UsageError: it is no checkpoint of this model, or of another optimizer.
        """
        if self.config["weight_averaging"]:
            raise UsageError(
                f"training can't go on from {resume_file} with weight_averaging: it holds their "
                "average, not the weights that were learning"
            )
        state = load_checkpoint(resume_file, mapped=True)
        self._check_model(state)
        learner = str(state["settings"].get("learner")).lower()
        if learner != self.learner.lower():
            raise UsageError(
                f"training can't go on from {resume_file}: its optimizer is that of learner "
                f"{learner}, not of {self.learner}"
            )
        try:
            self._say_anew(restore_learned(self.model, self.optimizer, state))
        except UsageError as error:
            raise UsageError(f"training can't go on from {resume_file}: {error}") from error
        self._resumed = state["data"]
        self._has_saved = True
        self.saved_model_file = str(resume_file)
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.logger.info(f"going on from epoch {self.start_epoch} of {resume_file}")

    def take(self, state: dict[str, Any], eval_data: Any) -> None:
        """Take the weights of a checkpoint, to score them on a split.

        Args:
            state: of :func:`load_checkpoint`.
            eval_data: the split's loader.

        Raises:
            UsageError: it is of another model, of other data or of another split.
        """
        self._check_model(state)
        self._check_data(state["data"], eval_data._dataset.identity)
        self._put(state["state_dict"])
        if not state["training_ended"]:
            self.logger.warning(CUT_SHORT.format(**state))

    def _check_model(self, state: dict[str, Any]) -> None:
        own = model_path(self.config.model_class)
        if state["model"] != own:
            raise UsageError(f"the checkpoint is of model {state['model']}, not of {own}")

    def _check_data(self, trained: Identity, here: Identity) -> None:
        if differs := difference(trained, here):
            raise UsageError(f"the checkpoint can't be used here: {differs}")


def check_parallel(model: nn.Module, device: torch.device) -> None:
    """Refuse a model that several processes can't train together.

    Raises:
        UsageError: why.
    """
    modules = [type(module).__name__ for module in model.modules()]
    if norms := [name for name in modules if "BatchNorm" in name]:
        raise UsageError(
            f"the model normalises over the batch ({norms[0]}), of which each process has a part: "
            "train it by one process, or take a model or backbone without"
        )
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    if sparse and device.type == "cuda":
        raise UsageError(
            "sparse_embedding: NCCL can't sum the sparse gradients of several GPUs. Set "
            "sparse_embedding: False, or train on one"
        )


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; torch's own answer, where it gives one."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    known = [getattr(torch.cpu, name) for name in checks if hasattr(torch.cpu, name)]
    return not known or any(check() for check in known)


def _progress(batches: Any, title: str, show: bool, first: int) -> Any:
    if not show:
        return batches
    return tqdm(batches, total=len(batches), initial=first, ncols=100, desc=title)


def _tensorboard_of(run: Run) -> contextlib.AbstractContextManager[Any]:
    """RecBole's Trainer opens its TensorBoard in the working directory, whatever is configured."""

    return patch.object(recbole.trainer.trainer, "get_tensorboard", lambda logger: _writer(run))


class _NoWriter:
    """TensorBoard's of a process that writes nothing."""

    def add_scalar(self, *content: Any) -> None:
        """Nothing."""

    def add_hparams(self, *content: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _writer(run: Run, purge_step: int | None = None) -> SummaryWriter | _NoWriter:
    """Of a run's TensorBoard, which from a step on shows only what is written from now on."""
    if not is_main():
        return _NoWriter()
    writer = SummaryWriter(run.folder / "tensorboard", purge_step=purge_step)
    run.at_end.callback(writer.close)
    return writer
