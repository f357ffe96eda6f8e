"""The base rate of train for every impression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_escm2.model.reference.base import ReferenceRecommender


class Constant(ReferenceRecommender):
    """The share of positives in train: of clicks in D, of conversions among the clicks.

    It ranks nothing (AUC 0.5), and is right on average: what a model's LogLoss has to be below.
    With ``task: both`` the product of the two rates is the share of conversions in D.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.rate = torch.nn.Parameter(torch.zeros(1).double(), requires_grad=False)

    def fit_steps(self, train: Any) -> Iterator[Mapping[str, float]]:
        label = train.inter_feat[self.label_field].double()
        self.rate.fill_(float(np.average(label, weights=self.weights_of(train, label.numpy()))))
        yield {"rate": self.rate.item()}

    def predict(self, interaction: Any) -> Tensor:
        return self.rate.expand(len(interaction)).cpu()
