"""The trainer of the reference models: each step of a fit is what an epoch is to other models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from recbole_escm2.model.reference.base import ReferenceRecommender
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer


class _NoOptimizer:
    """Stands for the optimizer of what a library fits: it has no parameters and keeps nothing."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Any, Any] = {}


class ReferenceTrainer(EntireSpaceTrainer):
    """Validates each step of a fit, keeps the best, and stops, as for models with epochs.

    Args:
        config: a complete config.
        model: the model.
        run: whose folder takes all files.
    """

    model: ReferenceRecommender

    def __init__(self, config: Any, model: ReferenceRecommender, run: Run | None = None) -> None:
        super().__init__(config, model, run)
        self.epochs, self.eval_step = model.steps, 1
        self._steps: Iterator[Mapping[str, float]] | None = None

    def _build_optimizer(self, **kwargs: Any) -> Any:
        self.row_adam = None
        return _NoOptimizer()

    def _learn(
        self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool
    ) -> dict[str, float]:
        if self._steps is None:
            self._steps = iter(self.model.fit_steps(train_data.dataset))
        return dict(next(self._steps))

    def _is_progress_due(self, after_epoch: bool = False) -> bool:
        return False  # a library's fit begins anew: it has no state to go on from

    def evaluate(self, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
        if eval_data:
            self.model.begin(eval_data.dataset.truth)
        return super().evaluate(eval_data, *args, **kwargs)

    def _scored(self, batch: Any) -> tuple[Any, Tensor]:
        return batch, self.model.predict(batch).reshape(-1, 1)

    def _about_best(self, state: Mapping[str, Any], train: Any) -> dict[str, Any]:
        return super()._about_best(state, train) if self.model.scores_new_rows else {}

    def _put(self, weights: Mapping[str, Any]) -> None:
        self.model.make_room(weights)
        super()._put(weights)
