"""Screening: many rows are tried a little, on validation alone, and few are worth their seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.experiment.request import checked
from recbole_escm2.experiment.statistics import cost
from recbole_escm2.experiment.study import BOUNDS, Row, rival_of
from recbole_escm2.keys import COUNT

#: What ``screen`` may hold.
KEYS = ("settings", "rows", "keep")


@dataclass(frozen=True)
class Screen:
    """What is asked of a screening.

    Attributes:
        settings: tried a row.
        by_right: labels of the rows that go on whatever their score is.
        others: how many of the other rows go on.
    """

    settings: int
    by_right: Sequence[str]
    others: int

    def by_validation(self, costs: Mapping[str, float]) -> list[str]:
        """The labels of the other rows that go on, the best first.

        Args:
            costs: what a row has on validation, by label, the smaller the better.
        """
        others = [label for label in costs if label not in self.by_right]
        return sorted(others, key=costs.__getitem__)[: self.others]


def read_screen(given: Any, rows: Sequence[Row], baseline: str, trials: int) -> Screen | None:
    """The screening that somebody asks for, None where there is none.

    By right go on what is named, what others are compared with, and what learns nothing, which
    isn't counted.

    Args:
        given: the key ``screen``.
        rows: of the benchmark, without the A/A row.
        baseline: the label of the row that the others are compared with.
        trials: settings that a row is tuned with.

    Raises:
        UsageError: whatever is wrong with it.
    """
    if given is None:
        return None
    if not isinstance(given, dict) or not {"settings", "rows"} <= given.keys():
        raise UsageError(
            f"screen must be a mapping of settings, rows and keep, got {given!r}: "
            "screen: {settings: 8, rows: 14, keep: [ESMM]}"
        )
    if unknown := [key for key in given if key not in KEYS]:
        close = did_you_mean(str(unknown[0]), KEYS)
        raise UsageError(f"screen: there is no '{unknown[0]}'{close}. It has {', '.join(KEYS)}")
    settings = checked("screen: settings", given["settings"], COUNT)
    if settings % 2:
        raise UsageError(
            f"screen: settings must be even, got {settings}: a CTR and a CVR model share them"
        )
    if trials == 1:
        raise UsageError("screen: rows that go on are tuned, which takes --trials=N")
    if settings > trials:
        raise UsageError(
            f"screen: settings {settings} are more than the {trials} of a row that goes on: they "
            "are the first of --trials"
        )
    keep = given.get("keep") or []
    labels = [row.label for row in rows]
    if not isinstance(keep, list) or not all(isinstance(label, str) for label in keep):
        raise UsageError(f"screen: keep must be a list of rows, got {keep!r}")
    for label in keep:
        if label not in labels:
            raise UsageError(f"screen: keep: '{label}' is no row{did_you_mean(label, labels)}")
    bounds = [row.label for row in rows if row.model in BOUNDS]
    named = {*keep, baseline, rival_of(rows, baseline)}
    learners = [label for label in labels if label in named and label not in bounds]
    number = checked("screen: rows", given["rows"], COUNT)
    if number < len(learners):
        raise UsageError(
            f"screen: rows {number} are fewer than the {len(learners)} that go on by right: "
            f"{', '.join(learners)}"
        )
    return Screen(settings, [*learners, *bounds], number - len(learners))


def best_on_validation(results: Iterable[Mapping[str, Any]], metric: str) -> float | None:
    """The best value of a metric on validation; None where no run has one.

    Args:
        results: what ``result.json`` of each run holds.
        metric: its name.
    """
    values = [(result.get("best_valid_result") or {}).get(metric) for result in results]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return min(known, key=partial(cost, metric), default=None)
