"""One model trained with early stopping, and scored with its best epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from logging import getLogger
from typing import Any

import torch
from recbole.utils import FeatureType, init_seed

from recbole_escm2.config import fitted_to_validation
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.distributed import main_first, world_size
from recbole_escm2.errors import UsageError, lacks_memory, own_files, place_in_own_code
from recbole_escm2.evaluator.constant import BesideConstant, worse_than_constant
from recbole_escm2.evaluator.evaluator import MetricResult
from recbole_escm2.evaluator.groups import check_groups
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.keys import PAIR, table_optimizer, training_seed
from recbole_escm2.lookup import NAMESAKES
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.model.draws import Draws
from recbole_escm2.model.entire_space import misspelt_hooks
from recbole_escm2.model.reference.base import ReferenceRecommender
from recbole_escm2.model.sharded import Room, shard
from recbole_escm2.model.single_task import train_as_the_family
from recbole_escm2.placement import place_tables
from recbole_escm2.tasks import is_entire_space, is_reference, scored_tasks
from recbole_escm2.threads import spinning_is_bounded, usable_cores
from recbole_escm2.train.initial import begin_with
from recbole_escm2.train.reference import ReferenceTrainer
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer


class Training:
    """A model with its data, ready to train.

    Args:
        config: of the training.
        run: its folder.
        task: ``ctr`` or ``cvr``, where it is one of two models.
        epochs: how many, or parts of them with ``validations_per_epoch``, where that is known and
            nothing validates.

    Attributes:
        trainer: with the model, and its best epoch in a checkpoint.
        splits: loaders of ``train``, ``valid`` and ``test``.
        best_score: of the valid metric, None without validation.
        best_valid: all metrics of that validation, none without it.
        seconds: that training took, validations included.

    Raises:
        UsageError: the model, or RecBole, refuses the data or the settings.
    """

    best_score: float | None
    best_valid: MetricResult
    seconds: float

    def __init__(
        self, config: Any, run: Run, task: str | None = None, epochs: int | None = None
    ) -> None:
        self.config, self.run, self.task = config, run, task
        self._are_epochs_known = epochs is not None
        self.show_progress = bool(config["show_progress"])
        _log_start(config, task)
        try:
            with _fitting_into_memory(config):
                self.splits, model = _data_and_model(config, task)
        except UsageError:
            raise
        except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:
            if place_in_own_code(error, own_files(config.model_class)):
                raise
            getLogger().debug("RecBole's error", exc_info=True)
            raise UsageError(
                f"{config['model']} can't be set up on {config['dataset']}: "
                f"{type(error).__name__}: {error} (--state=debug logs where)"
            ) from error
        kind: Any = ReferenceTrainer if is_reference(config.model_class) else EntireSpaceTrainer
        with _fitting_into_memory(config):
            self.trainer: EntireSpaceTrainer = kind(config, model, run)
        if epochs is not None:
            self.trainer.epochs, self.trainer.epochs_are_parts = epochs, True
        counted = f"{self.parameter_count:,} parameters " if self.parameter_count else ""
        getLogger().info(
            f"{counted}on {config['device']}; "
            f"predicts {', '.join(scored_tasks(config))}; "
            + (
                f"stops on {config['valid_metric']}"
                if self.splits["valid"]
                else f"no validation: the last of {self.trainer.epochs} epochs is scored"
            )
        )

    @property
    def trainings(self) -> list[Training]:
        """This one, which is all that there is; see :class:`~recbole_escm2.train.pair.Pair`."""
        return [self]

    @property
    def best_epoch(self) -> int | None:
        """The one whose weights are kept."""
        return self.trainer.best_epoch

    @property
    def beside_constant(self) -> BesideConstant | None:
        """How its best epoch does on validation, where a log loss can tell."""
        return self.trainer.beside_constant

    @property
    def parameter_count(self) -> int:
        """Weights that are learned."""
        model = self.trainer.model
        if isinstance(model, ReferenceRecommender):
            return model.learned
        tables = getattr(model, "sharded", None)
        in_shards = sum(shape.numel() for shape in tables.shapes().values()) if tables else 0
        return in_shards + sum(p.numel() for p in model.parameters() if p.requires_grad)

    def fit(self) -> None:
        """Train until validation gets no better, or without it for all epochs.

        Raises:
            UsageError: there is no validation, and a setting needs one.
        """
        validates = bool(self.splits["valid"])
        if not validates and self.task is None and not self._are_epochs_known:
            check_without_validation(self.config, self.trainer)
        started = time.perf_counter()
        with _fitting_into_memory(self.config):
            score, best_valid = self.trainer.fit(
                self.splits["train"], self.splits["valid"], show_progress=self.show_progress
            )
        assert best_valid is not None or not validates, "it comes after the first epoch at least"
        self.best_score = score if validates else None
        self.best_valid = MetricResult() if best_valid is None else best_valid
        self.seconds = self.trainer.seconds_before + time.perf_counter() - started

    def validate(self) -> tuple[float | None, MetricResult]:
        """The score of ``valid_metric`` in the best epoch, and all metrics of that validation.

        None and no metric where there is no validation.
        """
        return self.best_score, self.best_valid

    def score(self, split: str) -> tuple[MetricResult, Predictions]:
        """The metrics of the best epoch on a split, and what it predicts there."""
        result = self.trainer.evaluate(self.splits[split], show_progress=self.show_progress)
        return result, self.trainer.predictions

    def about(self) -> dict[str, Any]:
        """What a result file tells of it."""
        return {
            "task": self.task,
            "valid_metric": self.trainer.valid_metric,
            "best_valid_score": None if self.best_score is None else float(self.best_score),
            "valid_score_bigger": self.trainer.valid_metric_bigger,
            "best_epoch": self.trainer.best_epoch,
            "worse_than_constant": worse_than_constant(self.beside_constant),
            "seconds": round(self.seconds, 3),
            "epochs": self.trainer.history,
        }


@contextlib.contextmanager
def _fitting_into_memory(config: Any) -> Iterator[None]:
    """Say it in words where memory doesn't hold a model, or what its training needs beside it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise UsageError(
            f"{config['model']} on {config['dataset']} doesn't fit into memory: {error}. "
            "A smaller embedding_size or mlp_hidden_size may help, or a larger min_count, or "
            "several processes with embedding_placement: sharded (docs/running.md)"
        ) from error


def check_without_validation(config: Any, trainer: EntireSpaceTrainer) -> None:
    """Refuse what nothing can choose where a split has no validation.

    Args:
        config: of the run.
        trainer: of its model, or of the first of two.

    Raises:
        UsageError: a key that chooses by validation is set, or one isn't that has to be.
    """
    if config["final_fit"]:
        raise UsageError(
            "the split has no validation, which final_fit would train on: leave it out"
        )
    parts = [config[f"{task}_settings"] or {} for task in PAIR]
    given = {key for keys in (config.external_config_dict, *parts) for key in keys}
    chosen = [key for key in ("valid_metric", "stopping_step", "eval_step") if key in given]
    chosen += fitted_to_validation(config)
    if chosen:
        raise UsageError(
            f"the split has no validation, on which {', '.join(chosen)} would act: leave "
            f"{'it' if len(chosen) == 1 else 'them'} out, or let a part of train validate "
            "(eval_args, validation_share)"
        )
    model = config.model_class
    takes_epochs = not is_reference(model) or "epochs" in model.config_keys
    if takes_epochs and "epochs" not in given:
        raise UsageError(
            "the split has no validation, on which the best epoch would be chosen: give epochs, "
            "the last of which is scored"
        )
    if not takes_epochs and trainer.epochs > 1:
        raise UsageError(
            f"the split has no validation, on which {config['model']} would choose among "
            f"{trainer.epochs} values of l2_penalty: give one"
        )


def _log_start(config: Any, task: str | None) -> None:
    logger = getLogger()
    seed = training_seed(config)
    of_task = f" as {task.upper()} model" if task else ""
    seeds = f"seed {config['seed']}" + (f", training_seed {seed}" if seed != config["seed"] else "")
    logger.info(f"{config['model']}{of_task} on {config['dataset']}, {seeds}")
    if (sentence := NAMESAKES.get(config["model"])) and not of_task.startswith(" as CVR"):
        logger.info(sentence)
    cores, threads = usable_cores(), torch.get_num_threads()
    logger.info(f"{threads} thread{'s' * (threads > 1)}; the process may use {cores} cores")
    if threads > 1 and not spinning_is_bounded():
        logger.info(
            "threads that wait spin, and beside other work training may take many times as long: "
            "GOMP_SPINCOUNT=2000 in the environment bounds it, but torch is loaded already, so "
            "that it is too late for this process"
        )
    for sentence in misspelt_hooks(config.model_class):
        logger.warning(sentence)


def _data_and_model(config: Any, task: str | None) -> tuple[Mapping[str, Any], torch.nn.Module]:
    """The loaders by the name of their split, and the model with its initial weights."""
    logger, seed = getLogger(), training_seed(config)
    if world_size() > 1 and is_reference(config.model_class):
        raise UsageError(f"{config['model']} is fitted by one process: start it without torchrun")
    init_seed(seed, config["reproducibility"])
    with main_first():  # which makes the store of the data
        dataset = EntireSpaceDataset(config)
    splits = dict(zip(("train", "valid", "test"), prepare_data(config, dataset), strict=True))
    check_groups(config["by"], splits["test"].dataset)
    if "valid" in config["save_predictions"] and not splits["valid"]:
        raise UsageError("save_predictions: valid needs a validation part; see eval_args")
    logger.info(str(dataset))
    for name, loader in splits.items():
        logger.info(f"{name:5} {loader.dataset.summary()}")
    init_seed(seed, config["reproducibility"])
    train = splits["train"].dataset
    model = _new_model(config, train)
    if not (is_entire_space(config) or is_reference(config.model_class)):
        few = train[:2].to(config["device"])
        for sentence in train_as_the_family(model, config, few):
            logger.info(sentence)
    if config["init_from"]:
        begin_with(model, config, train, task)
    return splits, model


def _new_model(config: Any, train: Any) -> torch.nn.Module:
    """With its initial weights, and its tables where ``embedding_placement`` puts them."""
    shardable = is_entire_space(config) and config["backbone"] in BOTTOMS
    names = train.fields(ftype=[FeatureType.TOKEN, FeatureType.TOKEN_SEQ])
    rows = sum(train.num(name) for name in names)
    room = place_tables(config, rows, shardable)
    if room is None:
        model: torch.nn.Module = config.model_class(config, train)
        return model.to(config["device"])
    with Draws() as draws:
        model = config.model_class(config, train)
    batch = -(-config["train_batch_size"] // world_size())
    shard(model, draws, (table_optimizer(config), config["learning_rate"]), Room(room, batch))
    return model.to(config["device"])
