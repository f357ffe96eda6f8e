"""A CTR model and a CVR model as a pair: pCTCVR is the product of what they predict."""

from __future__ import annotations

import math
from logging import getLogger
from typing import Any

import numpy as np
import torch

from recbole_escm2.config import part_config
from recbole_escm2.distributed import from_main, is_main
from recbole_escm2.evaluator.constant import BesideConstant, beside_constant
from recbole_escm2.evaluator.evaluator import (
    EntireSpaceCollector,
    EntireSpaceData,
    EntireSpaceEvaluator,
    MetricResult,
)
from recbole_escm2.evaluator.predictions import Array, Predictions
from recbole_escm2.keys import PAIR
from recbole_escm2.metric_names import ALL_TASKS, score_of
from recbole_escm2.tasks import is_reference, single_task
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer
from recbole_escm2.train.training import Training, check_without_validation

# Of a CVR model, at most in the steps of one epoch of its CTR model.
_VALIDATIONS = 5


class Pair:
    """A single-task model trained twice: over D as a CTR model, over the clicks as a CVR model.

    It is fitted and scored as one :class:`~recbole_escm2.train.training.Training` is.

    Args:
        config: of both; each model has settings of its own, see
            :func:`~recbole_escm2.config.part_config`.
        run: its folder, in which each model gets one.

    Attributes:
        trainings: those that are done, the CTR model's first.
    """

    best_epoch = None  # each model has its own

    def __init__(self, config: Any, run: Run) -> None:
        self.config = config
        self.run = run
        self.trainings: list[Training] = []
        #: How the two do on validation, once that was asked.
        self.beside_constant: BesideConstant | None = None

    def fit(self) -> None:
        """Train the CTR model, which stops on its own task, then the CVR model, on the product.

        By itself the CVR model would be judged on the conversions of the clicks, a few dozen
        perhaps, whose AUC is noise; and what ranks them best may be so sure of itself that it
        spoils the product.
        """
        configs = [part_config(self.config, task) for task in PAIR]
        for task, config in zip(PAIR, configs, strict=True):
            config["predict_task"] = self.config["predict_task"]  # of the product
            config["show_progress"] = self.config["show_progress"]
            training = Training(config, self.run.part(task), task)
            if not training.splits["valid"]:
                check_without_validation(self.config, training.trainer)
            if self.trainings:
                (ctr,) = self.trainings
                if training.splits["valid"]:
                    _, predictions = ctr.score("valid")
                    pair_with(training.trainer, predictions, config["predict_task"])
                if not is_reference(config.model_class):  # whose steps are no batches
                    of_ctr, own = ctr.splits["train"], training.splits["train"]
                    times = math.ceil(of_ctr.batches / own.batches)
                    keep_pace(training.trainer, times, of_ctr.parts, own.parts)
            training.fit()
            self.trainings.append(training)

    def validate(self) -> tuple[float | None, MetricResult]:
        """The score of ``valid_metric`` with both best epochs, and all metrics of validation.

        None and no metric where there is no validation.
        """
        if not self.splits["valid"]:
            return None, MetricResult()
        result, predictions = self.score("valid")
        if is_main():
            self.beside_constant = beside_constant(predictions, single_task(self.config))
        metric = self.config["valid_metric"]
        return score_of(metric, result[metric]), result

    @property
    def splits(self) -> Any:
        """Loaders by the name of their split: the CTR model's, of all impressions."""
        return self.trainings[0].splits

    def score(self, split: str) -> tuple[MetricResult, Predictions]:
        """The metrics of the two models and of their product on a split, and the predictions."""
        scores: dict[str, Any] = {}
        for part in self.trainings:
            assert part.task is not None
            part.trainer.eval_collector = EntireSpaceCollector((part.task,), part.task)
            _, predictions = part.score(split)
            if is_main():
                scores[part.task] = torch.from_numpy(predictions.of(part.task))
        if not is_main():
            return from_main(), predictions
        scores["ctcvr"] = scores["ctr"] * scores["cvr"]
        both = EntireSpaceCollector(ALL_TASKS, single_task(self.config))
        both.begin(self.trainings[-1].splits[split].dataset.truth)
        of_tasks = torch.stack([scores[task] for task in ALL_TASKS], 1)
        both.eval_batch_collect(of_tasks, None, None, None)
        result = EntireSpaceEvaluator(self.config).evaluate(both.get_data_struct())
        assert both.predictions is not None
        return from_main(result), both.predictions


class ProductCollector(EntireSpaceCollector):
    """Gathers pCVR of a split, and gives it with its product with a pCTR that is known already.

    Metrics of the CTR task are left out: the CVR model doesn't change them.

    Args:
        pctr: of the CTR model, on the rows of the split, ``[|D|]``.
        label_task: the task that RecBole's own metrics score.
    """

    def __init__(self, pctr: Array, label_task: str) -> None:
        super().__init__(("cvr",), label_task)
        self.pctr = pctr

    def get_data_struct(self) -> EntireSpaceData | None:
        """The labels, pCVR and pCTR · pCVR; None where another process has them."""
        if super().get_data_struct() is None:
            return None
        assert self.predictions is not None
        pcvr = self.predictions.of("cvr")
        scores = {"cvr": pcvr, "ctcvr": self.pctr * pcvr}
        self.predictions = Predictions(self.predictions.truth, scores)
        return EntireSpaceData(self.predictions, self.label_task)


def pair_with(trainer: EntireSpaceTrainer, ctr: Predictions, label_task: str) -> None:
    """Have a CVR model validated by its product with a CTR model.

    Args:
        trainer: of the CVR model, before it trains.
        ctr: the CTR model's predictions on validation.
        label_task: the task that RecBole's own metrics score.
    """
    pctr = np.asarray(ctr.of("ctr")) if is_main() else np.empty(0)
    trainer.eval_collector = ProductCollector(pctr, label_task)
    trainer.tasks, trainer.label_task = ("cvr", "ctcvr"), label_task


def keep_pace(trainer: EntireSpaceTrainer, times: int, parts: int = 1, own: int = 1) -> None:
    """Let a CVR model take as many steps as its CTR model may.

    An epoch over the clicks may be a step or two: epochs are therefore counted in steps of the
    other training, with up to five validations in one of its epochs, or as many as it has
    parts. Patience stays what it is,
    ``stopping_step`` validations.

    Args:
        trainer: of the CVR model, before it trains.
        times: how many of its epochs have the steps of one of the other's.
        parts: those of an epoch of the other, ``validations_per_epoch``.
        own: those of one of its epochs, which may have fewer batches.
    """
    trainer.epochs *= times
    trainer.eval_step *= max(1, times * own // max(_VALIDATIONS, parts))
    if times > 1:
        getLogger().info(
            f"{times} epochs have the steps of one over all impressions: up to {trainer.epochs} "
            f"epochs, a validation every {trainer.eval_step}, of which {trainer.stopping_step} may "
            "bring nothing better"
        )
