"""The true probabilities, where the data knows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from recbole_escm2.errors import UsageError
from recbole_escm2.model.reference.base import ReferenceRecommender


class Oracle(ReferenceRecommender):
    """P(o = 1), P(r = 1 | do(o = 1)), or their product, as the data was drawn from.

    No model can score better but by chance. It alone is given what the evaluator knows, and learns
    nothing. With ``hidden_confounding`` the product isn't P(o·r = 1): pCTCVR is then no oracle.

    Raises:
        UsageError: the data doesn't know them.
    """

    scores_new_rows = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        tasks = {"ctr": ("ctr",), "cvr": ("cvr",), "ctcvr": ("ctr", "cvr")}[self.task]
        for key in (f"TRUE_{task.upper()}_FIELD" for task in tasks):
            if dataset.inter_feat.columnar(config[key]) is None:
                raise UsageError(
                    f"Oracle predicts the true probabilities, which data set '{config['dataset']}' "
                    f"doesn't know (it has no column '{config[key]}', {key}): simulated ones do "
                    "(ml-100k-semi, ali-ccp-sim). Leave this row out"
                )
        self.tasks = tasks
        self._left = torch.zeros(0)

    def fit_steps(self, train: Any) -> Iterator[Mapping[str, float]]:
        yield {}

    def begin(self, truth: Any) -> None:
        known = {"ctr": truth.true_ctr, "cvr": truth.true_cvr}
        probability = torch.ones(len(truth.click), dtype=torch.float64)
        for task in self.tasks:
            probability *= torch.from_numpy(known[task].astype("float64"))
        self._left = probability

    def predict(self, interaction: Any) -> Tensor:
        """Of the next impressions of the split that was begun."""
        rows, self._left = self._left.tensor_split([len(interaction)])
        return rows
