"""The base of the reference models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType
from torch import Tensor

from recbole_escm2.errors import UsageError
from recbole_escm2.fields import WEIGHT_KEYS
from recbole_escm2.risk import positives_weighted

_ROWS = 16_384  # read at a time


class ReferenceRecommender(AbstractRecommender):
    """A model of one task that a library fits, or that needs no fit.

    It is trained, validated, saved and scored as RecBole's own models are, for ``task: ctr``,
    ``cvr`` (on clicked impressions), ``ctcvr`` or ``both``; what is an epoch to them is a step of
    :meth:`fit_steps` here. It computes with numpy, on the processor.

    Args:
        config: a complete config.
        dataset: train, with a vocabulary for each token field.
    """

    type = ModelType.CONTEXT
    input_type = InputType.POINTWISE
    #: Config keys that act on it, of those that not every model has.
    config_keys: ClassVar[frozenset[str]] = frozenset()
    #: Packages that fit it, beside those that all runs depend on.
    libraries: ClassVar[tuple[str, ...]] = ()
    #: Whether it can score impressions that aren't those of its data set.
    scores_new_rows: ClassVar[bool] = True
    #: Names of the weights that have a value for each column of its ``one_hot``.
    of_columns: ClassVar[tuple[str, ...]] = ()
    #: Whether it takes the weights of impressions.
    takes_weights: ClassVar[bool] = True
    #: How many steps there are at most.
    steps: int = 1

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__()
        self.task: str = config["label_task"]
        self.label_field: str = config["LABEL_FIELD"]
        self.weight_field: str | None = config[WEIGHT_KEYS[self.task]]
        self.pos_weight: float = (config["pos_weight"] or {}).get(self.task, 1.0)

    @abstractmethod
    def fit_steps(self, train: Any) -> Iterator[Mapping[str, float]]:
        """Fit, in steps after each of which validation may choose the model as it then is.

        Args:
            train: the impressions to learn from; of a CVR model the clicked ones.

        Yields:
            Means over train, by name, for the log.

        Raises:
            UsageError: it can't be fitted to them.
        """

    @abstractmethod
    def predict(self, interaction: Any) -> Tensor:
        """The probability of the task's label, ``[batch]``."""

    def begin(self, truth: Any) -> None:
        """Note that a split is scored next, of which the labels are ``truth``, in its order."""

    def make_room(self, weights: Mapping[str, Any]) -> None:
        """Prepare for the weights of a checkpoint, whose shapes may depend on what was learned."""

    @property
    def learned(self) -> int:
        """How many numbers were learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def labels_of(self, train: Any) -> NDArray[Any]:
        """The task's label, 0 or 1, ``[rows]``.

        Raises:
            UsageError: all are the same, so that there is nothing to tell apart.
        """
        label = train.inter_feat[self.label_field].numpy()
        if len(np.unique(label)) < 2:
            raise UsageError(
                f"{type(self).__name__} can't learn {self.task}: its label is {label[0]:.0f} in "
                f"all {len(label):,} impressions that it is to learn from"
            )
        return label

    def weights_of(self, train: Any, label: NDArray[Any]) -> NDArray[Any] | None:
        """How much each impression counts, ``[rows]``; None where all count alike."""
        field = self.weight_field
        given = None if field is None else train.inter_feat[field].double()
        weight = positives_weighted(given, torch.from_numpy(label), self.pos_weight)
        return None if weight is None else weight.numpy()


def pieces(split: Any) -> Iterator[Any]:
    """A split in batches, in the order of its rows."""
    for start in range(0, len(split), _ROWS):
        yield split[start : min(start + _ROWS, len(split))]
