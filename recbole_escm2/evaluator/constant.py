"""A model beside the best that knows nothing: the same probability for every impression."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from recbole_escm2.evaluator import weighted
from recbole_escm2.evaluator.metrics import log_loss
from recbole_escm2.evaluator.predictions import Predictions

_TOLERANCE = 1e-6  # of rounding: a model may be that constant


class BesideConstant(NamedTuple):
    """The log loss of a model beside that of its task's share of positives in train.

    Attributes:
        task: that is predicted.
        log_loss: of the model, in nats.
        constant: of the constant prediction, on the same impressions.
    """

    task: str
    log_loss: float
    constant: float

    @property
    def is_worse(self) -> bool:
        """Whether the model is worse than the constant prediction, by more than rounding."""
        return not self.log_loss <= self.constant * (1 + _TOLERANCE)

    def __str__(self) -> str:
        return (
            f"worse than a constant prediction: on validation the log loss of {self.task} is "
            f"{self.log_loss:.4g}, that of the share of positives in train {self.constant:.4g}. "
            "Other settings (learning_rate, epochs, a penalty) may help"
        )


def beside_constant(predictions: Predictions, task: str) -> BesideConstant | None:
    """How a model does on a split; None where no log loss can tell.

    Args:
        predictions: on the split.
        task: one of those that the model predicts.
    """
    try:
        scored = predictions.scored(task)
        weighs = scored.weight is not None
        own = weighted.log_loss(scored.weighted) if weighs else log_loss(scored.classes)
    except ValueError:  # another task, no row of it, or what is no probability
        return None
    rate, here = scored.train_rate, scored.base_rate
    p = np.clip(here if rate is None else rate, 1e-15, 1 - 1e-15)
    constant = -(here * np.log(p) + (1 - here) * np.log1p(-p))
    return BesideConstant(task, own, float(constant))


def worse_than_constant(beside: BesideConstant | None) -> dict[str, Any] | None:
    """What a result file has of a model that is worse than the constant prediction, else None."""
    return beside._asdict() if beside is not None and beside.is_worse else None
