"""Tuning before a comparison: each row is the best of as many settings as every other row's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from recbole_escm2.benchmark.request import Request
from recbole_escm2.benchmark.space import random_seed_of, ranges_of, settings_of
from recbole_escm2.benchmark.study import Row, Tuning
from recbole_escm2.errors import UsageError


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried for a row.

    Attributes:
        label: the row's.
        chosen: what was drawn, by config key; empty where the row is tried as it is.
        row: the row with these settings.
    """

    label: str
    chosen: Mapping[str, Any]
    row: Row


def candidates(request: Request, rows: Sequence[Row], trials: int, seed: int) -> list[Candidate]:
    """What is tried: each row as it is, then settings drawn at random from its ranges.

    A draw depends on its number and the key's place among the ranges alone, so that models of one
    family try the same values of what they share, and that more trials are the same ones and more.

    Args:
        request: what was asked for.
        rows: of the table.
        trials: settings a row.
        seed: of the draws.

    Raises:
        UsageError: a row without ranges, or with wrong ones; the message names it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = []
    for row in rows:
        try:
            space = ranges_of(request, row)
        except UsageError as error:
            raise UsageError(f"{row.label}: {error}") from error
        found.append(Candidate(row.label, {}, replace(row, label=f"{row.label}, trial 0")))
        for number in range(1, trials):
            sampler = optuna.samplers.RandomSampler(seed=random_seed_of(seed, number))
            drawn = optuna.create_study(sampler=sampler).ask(space).params
            settings = {**row.settings, **(chosen := settings_of(drawn, space))}
            chosen = request.acting(replace(row, settings=settings), chosen)
            label = f"{row.label}, trial {number}"
            tried = replace(row, label=label, settings={**row.settings, **chosen})
            found.append(Candidate(row.label, chosen, tried))
    return found


def tuned(rows: Sequence[Row], tuning: Tuning, baseline: str) -> list[Row]:
    """The rows with the settings that were best on validation; the A/A row has the baseline's."""
    best = {row.label: tuning.best(baseline if row.aa else row.label).chosen for row in rows}
    return [replace(row, settings={**row.settings, **best[row.label]}) for row in rows]
