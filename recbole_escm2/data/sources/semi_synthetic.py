"""Ratings as a semi-synthetic entire space: completed, then clicked and converted by simulation."""

from __future__ import annotations

from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import recbole
from scipy.sparse import coo_array

from recbole_escm2.data.labels import numbers
from recbole_escm2.data.schema import Chunk, Schema
from recbole_escm2.data.sources import atomic
from recbole_escm2.data.sources.atomic import AtomicFiles
from recbole_escm2.data.worlds.completion import complete_ratings
from recbole_escm2.data.worlds.outcomes import OutcomeRule, outcome_rule
from recbole_escm2.errors import UsageError

_NOTE = (
    "users, items and their features are real and the same in every world, every click and "
    "conversion is simulated with a known probability (simulation_seed draws them, and the "
    "completion of the ratings); numbers on it say nothing about real clicks"
)
_KEYS = (
    "ratings",
    "RATING_FIELD",
    "completion_rank",
    "completion_regularization",
    *OutcomeRule.__dataclass_fields__,
)


def of_ratings(config: Any) -> Any:
    """The config of the data set that the ratings are of."""
    name = config["ratings"]
    if name == "ml-100k":  # as RecBole, which ships it
        path = Path(recbole.__file__).parent / "dataset_example" / name
    else:
        path = Path(config["data_path"]).parent / name
    return atomic.with_settings(config, dataset=name, data_path=str(path))


def simulates(config: Any) -> bool:
    """Always: ratings are completed, clicks and conversions drawn, by ``simulation_seed``."""
    return True


def files(config: Any) -> list[Path]:
    """The atomic files of the ratings."""
    return atomic.files(of_ratings(config))


def settings(config: Any) -> dict[str, Any]:
    """The keys of atomic files, of the completion and of the outcomes."""
    outcome_rule(config)  # a benchmark makes no world before its runs, and refuses a wrong rule
    return atomic.settings(config) | {key: config[key] for key in _KEYS}


def read(config: Any) -> tuple[Schema, list[Chunk]]:
    """The ratings, completed, with outcomes that are drawn for every pair."""
    rule = outcome_rule(config)
    getLogger().info(
        f"completing the ratings of {config['ratings']} and simulating clicks and conversions on "
        "every pair, which happens once"
    )
    data = SemiSyntheticFiles(of_ratings(config), rule)
    return replace(data.schema(), simulated={"note": _NOTE}), data.chunks()


class SemiSyntheticFiles(AtomicFiles):
    """Every pair of a user and an item, with simulated outcomes, before any split.

    Args:
        config: a complete config, of the data set that the ratings are of.
        rule: how completed ratings become outcomes.

    Attributes:
        score: the completed rating of each pair, ``[pairs]``.

    Raises:
        UsageError: as :class:`AtomicFiles`, or a rating that is no number.
    """

    score: np.ndarray

    def __init__(self, config: Any, rule: OutcomeRule) -> None:
        self._rule = rule
        super().__init__(config)

    def _label_impressions(self) -> None:
        if self.benchmark_filename_list is not None:
            raise UsageError("a semi-synthetic data set makes D itself, it can't be pre-split")
        field = self.config["RATING_FIELD"]
        if field not in self.inter_feat:
            raise UsageError(
                f"data set '{self.dataset_name}' has no column '{field}' (RATING_FIELD) among "
                f"{', '.join(self.inter_feat)}"
            )
        rated, row = self._pair_up()
        self.score = self._completed(numbers(rated[field]), row)
        outcomes = self._rule.draw(self.score)
        for key, values in {
            "CLICK_FIELD": outcomes.click,
            "CONVERSION_FIELD": outcomes.conversion,
            "POTENTIAL_CONVERSION_FIELD": outcomes.potential_conversion,
            "TRUE_CTR_FIELD": outcomes.true_ctr,
            "TRUE_CVR_FIELD": outcomes.true_cvr,
        }.items():
            if self.config[key]:
                self.inter_feat[self.config[key]] = values.astype(np.float64)
                self._set_label_property(self.config[key])
        self._forget_row_columns(rated)

    def _completed(self, rating: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The completed rating of each pair, in the order of the pairs."""
        there = np.flatnonzero(row >= 0)
        known = rating[row[there]]
        if not np.isfinite(known).all():
            missing = row[there[~np.isfinite(known)]]
            raise UsageError(
                f"'{self.config['RATING_FIELD']}' is no number in {len(missing):,} rows: "
                f"{self._locate(np.sort(missing))}"
            )
        items = self.inter_feat[self.iid_field].nunique()
        shape = len(row) // items, items
        return complete_ratings(
            coo_array((known, (there // items, there % items)), shape),
            rank=self.config["completion_rank"],
            regularization=self.config["completion_regularization"],
            seed=self.config["simulation_seed"],
        ).ravel()
