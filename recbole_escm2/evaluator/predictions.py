"""What an evaluation scores: the labels of a split and a model's predictions on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.data.truth import Truth
from recbole_escm2.evaluator.metrics import (
    ClassScores,
    UndefinedMetricError,
    UserRanking,
    class_scores,
    user_ranking,
)
from recbole_escm2.evaluator.weighted import WeightedScores, weighted_scores
from recbole_escm2.evaluator.weighted import mean as weighted_mean

Array = NDArray[Any]


class NotPredictedError(ValueError):
    """The model doesn't predict what the metric scores; the message says which task."""


class NoTruthError(NotPredictedError):
    """The data doesn't hold what the metric scores against; the message says what it lacks."""


@dataclass(frozen=True)
class Scored:
    """A binary label and its predicted probability on the rows that a metric is over.

    Attributes:
        label: 0 or 1, ``[N]``.
        score: the probability, ``[N]``.
        user: user ids, 0 where there is none, ``[N]``; None where the data has none.
        train_rate: share of positives on such rows of train, where it is known.
        weight: how much each row counts, ``[N]``; None where all count alike.
    """

    label: Array
    score: Array
    user: Array | None
    train_rate: float | None = None
    weight: Array | None = None

    @cached_property
    def weighted(self) -> WeightedScores:
        """The rows' weights by label and score, where they have weights."""
        assert self.weight is not None, "asked for where there are weights"
        return weighted_scores(self.label, self.score, self.weight)

    @cached_property
    def classes(self) -> ClassScores:
        """The rows by label and score: one sort serves every metric that isn't per user."""
        return class_scores(self.label, self.score)

    @cached_property
    def ranking(self) -> UserRanking:
        """The rows of known users by user and score: one sort serves every metric per user."""
        if self.user is None:
            raise UndefinedMetricError("the data has no user column (USER_ID_FIELD)")
        if not self.without_user:
            return user_ranking(self.label, self.score, self.user)
        known = self.user != 0
        if not known.any():
            raise UndefinedMetricError("no impression has a user id")
        return user_ranking(self.label[known], self.score[known], self.user[known])

    @cached_property
    def without_user(self) -> int:
        """Rows without a user id: metrics per user leave them out, as they aren't one user's."""
        return 0 if self.user is None else int(np.count_nonzero(self.user == 0))

    @cached_property
    def base_rate(self) -> float:
        """The share of positives, by weight where there are weights; 0 where there is no row."""
        if self.weight is not None:
            total = float(np.sum(self.weight, dtype=np.float64))
            return weighted_mean(self.label, self.weight) if total else 0.0
        return np.count_nonzero(self.label) / len(self.label) if len(self.label) else 0.0


@dataclass(frozen=True)
class Predictions:
    """Labels with the probabilities that a model gives each row, by task."""

    truth: Truth
    score: Mapping[str, Array]
    _scored: dict[str, Scored] = field(default_factory=dict, repr=False)

    def of(self, task: str) -> Array:
        """The probabilities of a task over D.

        Raises:
            NotPredictedError: the model has no such task.
        """
        try:
            return self.score[task]
        except KeyError:
            raise NotPredictedError(f"the model doesn't predict {task}") from None

    def of_rows(self, rows: Array) -> Predictions:
        """The same on some rows of D.

        Args:
            rows: their positions, which may be repeated, or a mask.
        """
        columns: dict[str, Any] = {
            name: column[rows]
            for name, column in vars(self.truth).items()
            if isinstance(column, np.ndarray)
        }
        score = {task: column[rows] for task, column in self.score.items()}
        return Predictions(replace(self.truth, **columns), score)

    @property
    def propensity(self) -> Array:
        """ô as a weight: of the data, where the model weighs clicks by it, else pctr."""
        given = self.truth.propensity
        return self.of("ctr") if given is None else given

    def scored(self, space: str) -> Scored:
        """The rows, label and score of a task, or of a task and what it is scored on.

        ``cvr`` is over the clicked impressions, ``ctr`` and ``ctcvr`` over D; ``cvr_es`` scores the
        potential conversion over D; with ``_ri`` these are impressions drawn at random.

        Raises:
            NotPredictedError: the model has no such task.
            NoTruthError: the data has no such truth.
        """
        if space not in self._scored:
            self._scored[space] = self._select(space)
        return self._scored[space]

    def _select(self, space: str) -> Scored:
        truth = self.truth
        if space.endswith("_ri"):
            if not truth.random_impressions:
                raise NoTruthError("the data's impressions weren't drawn at random")
            return self.scored(space.removesuffix("_ri"))
        if space == "ctr":
            rate = truth.train_rate.get("ctr")
            return Scored(self.clicks, self.of("ctr"), truth.user, rate, truth.click_weight)
        if space == "ctcvr":
            label = (self.clicks > 0) & (self._conversion > 0)
            rate = truth.train_rate.get("ctcvr")
            return Scored(label, self.of("ctcvr"), truth.user, rate, truth.conversion_weight)
        if space == "cvr_es":
            if truth.potential_conversion is None:
                raise NoTruthError("the data holds no potential conversions")
            potential, weight = truth.potential_conversion, truth.conversion_weight
            return Scored(potential, self.of("cvr"), truth.user, weight=weight)
        clicked = np.flatnonzero(self.clicks > 0)
        user = None if truth.user is None else truth.user[clicked]
        rate = truth.train_rate.get("cvr")
        weight = None if truth.conversion_weight is None else truth.conversion_weight[clicked]
        return Scored(self._conversion[clicked], self.of("cvr")[clicked], user, rate, weight)

    @property
    def clicks(self) -> Array:
        """o over D.

        Raises:
            NoTruthError: it isn't known which of these impressions users would have clicked.
        """
        if not self.truth.clicks_known:
            raise NoTruthError("the data doesn't hold what users would have clicked here")
        return self.truth.click

    @property
    def _conversion(self) -> Array:
        if self.truth.conversion is None:
            raise NoTruthError("the data holds no conversions")
        return self.truth.conversion
