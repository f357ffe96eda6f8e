"""Logistic regression on one-hot ids and features."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from logging import getLogger
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Solver
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits
from torch import Tensor

from recbole_escm2.model.reference.base import ReferenceRecommender
from recbole_escm2.model.reference.features import OneHot, features_of

_ITERATIONS = 2000
# Of the gradient, in impressions: what is left to learn of a rare id is less than this.
_TOLERANCE = 0.01


class LogisticRegression(ReferenceRecommender):
    """P = σ(b + Σ w·x) at the least of Σ BCE + λ/2·|w|² over train, b without penalty.

    x is one-hot of every token field with the store's vocabulary (id 0, no value, and that of
    unknown tokens included), the weighted values of multi-valued fields, and numbers brought to
    mean 0 and variance 1 in train. An id that train lacks keeps w = 0. The matrix is sparse, and
    the solver is scikit-learn's L-BFGS, where λ is 1/C.

    λ is a path from strong to weak (``l2_penalty``), each step begun where the last one ended:
    validation chooses among its steps as it does among the epochs of other models. RecBole's
    ``LR`` with ``weight_decay`` λ/rows has the same optimum, toward which it takes gradient steps.
    """

    of_columns = ("weight",)
    libraries = ("scikit-learn",)
    config_keys = frozenset({"l2_penalty", "bag_pooling", "stopping_step"})

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        path = config["l2_penalty"]
        self.path: list[float] = path if isinstance(path, list) else [path]
        self.steps = len(self.path)
        self.one_hot = OneHot(features_of(config, dataset), config["bag_pooling"])
        zeros, numbers = torch.zeros(self.one_hot.columns), torch.zeros(len(self.one_hot.numbers))
        self.weight = torch.nn.Parameter(zeros.double(), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(1).double(), requires_grad=False)
        self.register_buffer("mean", numbers.double())
        self.register_buffer("scale", numbers.double() + 1)

    def fit_steps(self, train: Any) -> Iterator[Mapping[str, float]]:
        label = self.labels_of(train)
        weight = self.weights_of(train, label)
        matrix = self.one_hot.of_split(train)
        for place, column in enumerate(self.one_hot.numbers):
            values = matrix.data[matrix.indices == column]
            if len(values):
                self.mean[place], self.scale[place] = values.mean(), values.std() or 1.0
        matrix = self._standardised(matrix)
        solver = Solver(
            warm_start=True, max_iter=_ITERATIONS, tol=_TOLERANCE / len(label), solver="lbfgs"
        )
        for penalty in self.path:
            solver.C = 1 / penalty
            # As many threads as the run has: by itself the solver takes all that the machine has.
            of_run = threadpool_limits(torch.get_num_threads(), user_api="blas")
            with of_run, warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", ConvergenceWarning)
                solver.fit(matrix, label, weight)
            if said:
                getLogger().warning(
                    f"LogisticRegression: l2_penalty {penalty:g} isn't at its optimum after "
                    f"{_ITERATIONS:,} iterations"
                )
            self.weight.copy_(torch.from_numpy(solver.coef_[0]))
            self.bias.copy_(torch.from_numpy(solver.intercept_))
            loss = log_loss(label, self._probability(matrix), sample_weight=weight)
            yield {"l2_penalty": penalty, "log_loss": float(loss)}

    def predict(self, interaction: Any) -> Tensor:
        matrix = self._standardised(self.one_hot.matrix(interaction))
        return torch.from_numpy(self._probability(matrix))

    def _standardised(self, matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        """With numbers of mean 0 and variance 1; where there is none it stays 0, the mean."""
        numbers = self.one_hot.numbers
        shift, scale = np.zeros(self.one_hot.columns), np.ones(self.one_hot.columns)
        shift[numbers], scale[numbers] = self.mean.cpu().numpy(), self.scale.cpu().numpy()
        matrix.data = (matrix.data - shift[matrix.indices]) / scale[matrix.indices]
        return matrix

    def _probability(self, matrix: sparse.csr_matrix) -> NDArray[Any]:
        return expit(matrix @ self.weight.cpu().numpy() + self.bias.item())
