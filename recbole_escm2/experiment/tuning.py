"""Tuning before a comparison: each row is the best of as many settings as every other row's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from recbole_escm2.config import PAIR, Config, learns_both, part_config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.request import Request
from recbole_escm2.experiment.space import (
    Space,
    pair_settings,
    pair_space,
    random_seed_of,
    ranges_of,
    settings_of,
)
from recbole_escm2.experiment.study import Row, Trial, Tuning, part_label


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried for a row.

    Attributes:
        label: the row's, or that of one of its two models.
        chosen: what was drawn, by config key; empty where the row is tried as it is.
        row: the row with these settings.
        config: its config; where a CTR model is trained without its CVR model, that one's.
        part: ``ctr`` or ``cvr``, where it is about one of two models.
    """

    label: str
    chosen: Mapping[str, Any]
    row: Row
    config: Config
    part: str | None = None

    def trial(self, run: str, result: Mapping[str, Any] | None, reason: str) -> Trial:
        """How it went.

        Args:
            run: the run's name.
            result: what its ``result.json`` holds, None where it failed.
            reason: why it failed.
        """
        if result is None:
            return Trial(self.chosen, None, True, run, reason)
        scored = next((t for t in result["trainings"] if t["task"] == self.part), None)
        if self.part is None or scored is None:
            scored = result
        score, bigger = float(scored["best_valid_score"]), bool(scored["valid_score_bigger"])
        metric = None if self.part is None else scored["valid_metric"]
        return Trial(self.chosen, score, bigger, run, metric=metric)


def candidates(request: Request, rows: Sequence[Row], trials: int, seed: int) -> list[Candidate]:
    """What is tried: each row as it is, then settings drawn at random from its ranges.

    A draw depends on its number and the key's place among the ranges alone, so that models of one
    family try the same values of what they share, and that more trials are the same ones and more.
    A CTR and a CVR model as a pair have as many trainings together as another row has trials.

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
        config = request.config(row)
        try:
            space = ranges_of(request, row)
        except UsageError as error:
            raise UsageError(f"{row.label}: {error}") from error
        if learns_both(config):
            found += _of_pair(request, row, config, space, trials, seed)
            continue
        for number in range(trials):
            chosen = _draw(space, seed, number)
            drawn = replace(row, settings={**row.settings, **chosen})
            chosen = request.acting(drawn, chosen)
            label, settings = f"{row.label}, trial {number}", {**row.settings, **chosen}
            tried = replace(row, label=label, settings=settings)
            found.append(Candidate(row.label, chosen, tried, request.config(tried)))
    return found


def _of_pair(
    request: Request, row: Row, config: Config, space: Space, trials: int, seed: int
) -> list[Candidate]:
    """As many trainings as trials: ⌊N/2⌋ of a CTR model with a CVR model, and one CTR model more
    where N is odd. The two have draws of their own."""
    space, found = pair_space(space, config), []
    for number in range(trials - trials // 2):
        drawn = _draw(space, seed, number)
        label = f"{row.label}, trial {number}"
        parts: tuple[str, ...] = PAIR if number < trials // 2 else PAIR[:1]
        drawn = {name: v for name, v in drawn.items() if name.startswith(parts)}
        own = pair_settings(drawn, config)
        tried = replace(row, label=label, settings={**row.settings, **own})
        settled = request.config(tried)
        if len(parts) == 1:
            settled = part_config(settled, parts[0])
        for part in parts:
            prefix = f"{part}_settings."
            chosen = {
                name.removeprefix(prefix): value
                for name, value in drawn.items()
                if name.startswith(prefix)
            }
            found.append(Candidate(part_label(row.label, part), chosen, tried, settled, part))
    return found


def _draw(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The settings of a trial; none for the first one, which is the row as it is."""
    if not number:
        return {}
    sampler = optuna.samplers.RandomSampler(seed=random_seed_of(seed, number))
    return settings_of(optuna.create_study(sampler=sampler).ask(space).params, space)


def tuned(request: Request, rows: Sequence[Row], tuning: Tuning, baseline: str) -> list[Row]:
    """The rows with the settings that were best on validation; the A/A row has the baseline's.

    The CTR model of a pair has those that were best by its own metric, its CVR model those that
    were best by the product.
    """
    found = []
    for row in rows:
        label = baseline if row.aa else row.label
        if label in tuning.by_row:
            own = dict(tuning.best(label).chosen)
        else:
            chosen = {
                f"{part}_settings.{key}": value
                for part in PAIR
                for key, value in tuning.best(part_label(label, part)).chosen.items()
            }
            own = pair_settings(chosen, request.config(row))
        found.append(replace(row, settings={**row.settings, **own}))
    return found
