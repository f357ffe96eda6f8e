"""A CTR model and a CVR model as a pair: pCTCVR is the product of what they predict."""

from __future__ import annotations

from logging import getLogger

import numpy as np

from recbole_escm2.evaluator.evaluator import EntireSpaceCollector, EntireSpaceData
from recbole_escm2.evaluator.predictions import Array, Predictions
from recbole_escm2.train.trainer import EntireSpaceTrainer

# Of a CVR model, at most in the steps of one epoch of its CTR model.
_VALIDATIONS = 5


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

    def get_data_struct(self) -> EntireSpaceData:
        """The labels, pCVR and pCTR · pCVR."""
        super().get_data_struct()
        assert self.predictions is not None
        pcvr = self.predictions.of("cvr")
        scores = {"cvr": pcvr, "ctcvr": self.pctr * pcvr}
        self.predictions = Predictions(self.predictions.truth, scores)
        return EntireSpaceData(self.predictions, self.label_task)


def pair_with(trainer: EntireSpaceTrainer, ctr: Predictions | None, label_task: str) -> None:
    """Have a CVR model validated by its product with a CTR model.

    By itself it would be judged on the conversions of the clicks, a few dozen perhaps, whose AUC is
    noise; and what ranks them best may be so sure of itself that it spoils the product.

    Args:
        trainer: of the CVR model, before it trains.
        ctr: the CTR model's predictions on validation.
        label_task: the task that RecBole's own metrics score.
    """
    assert ctr is not None, "the CTR model has scored validation"
    trainer.eval_collector = ProductCollector(np.asarray(ctr.of("ctr")), label_task)
    trainer.tasks, trainer.label_task = ("cvr", "ctcvr"), label_task


def keep_pace(trainer: EntireSpaceTrainer, times: int) -> None:
    """Let a CVR model take as many steps as its CTR model may.

    An epoch over the clicks may be a step or two: epochs are therefore counted in steps of the
    other training, with up to five validations in one of its epochs. Patience stays what it is,
    ``stopping_step`` validations.

    Args:
        trainer: of the CVR model, before it trains.
        times: how many of its epochs have the steps of one of the other's.
    """
    trainer.epochs *= times
    trainer.eval_step *= max(1, times // _VALIDATIONS)
    if times > 1:
        getLogger().info(
            f"{times} epochs have the steps of one over all impressions: up to {trainer.epochs} "
            f"epochs, a validation every {trainer.eval_step}, of which {trainer.stopping_step} may "
            "bring nothing better"
        )
