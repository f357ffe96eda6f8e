"""Trials of a row: what may be chosen for it, what it runs with, and what was best.

A benchmark's tuning draws all of them beforehand; a search asks for one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from recbole_escm2.config import Config, part_config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.experiment.request import Request
from recbole_escm2.experiment.space import Space, ranges_of, settings_of
from recbole_escm2.experiment.study import Row, Trial, Tuning, part_label
from recbole_escm2.keys import PAIR, PART_SETTINGS
from recbole_escm2.tasks import learns_both
from recbole_escm2.train.run import WITHOUT_EFFECT

SAMPLERS = ("tpe", "random")
_NO_LOSS = 1e9  # in place of a share that can't be told


@dataclass(frozen=True)
class Ranges:
    """What may be chosen for a row.

    Attributes:
        request: that the row is of.
        row: as it is.
        config: its config.
        space: by config key; of the two models of ``task: both``, each of which has settings of its
            own, by ``ctr_settings.KEY`` and ``cvr_settings.KEY``.
    """

    request: Request
    row: Row
    config: Config
    space: Space

    @classmethod
    def of(cls, request: Request, row: Row) -> Ranges:
        """The ranges of a row; what is set for one of two models isn't searched for it.

        Raises:
            UsageError: it has none, or wrong ones.
        """
        config, space = request.config(row), ranges_of(request, row)
        if learns_both(config):
            space = {
                f"{key}.{name}": values
                for key in PART_SETTINGS
                for name, values in space.items()
                if name not in (config[key] or {})
            }
        return cls(request, row, config, space)

    @property
    def parts(self) -> tuple[str, ...]:
        """The two models, where the row is two."""
        return PAIR if learns_both(self.config) else ()

    def draw(self, seed: int, number: int) -> dict[str, Any]:
        """The values of a trial, drawn at random."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=sampler_of("random", seed, number))
        return study.ask(self.space).params

    def chosen(self, values: Mapping[str, Any], part: str | None = None) -> dict[str, Any]:
        """Drawn values as config values: those of one of two models, or those that act on the row,
        whose backbone may be among them."""
        prefix = "" if part is None else f"{part}_settings."
        own = {
            name.removeprefix(prefix): value
            for name, value in settings_of(values, self.space).items()
            if name.startswith(prefix)
        }
        if part is not None:
            return own
        drawn = replace(self.row, settings={**self.row.settings, **own})
        return self.request.acting(drawn, own)

    def tried(self, label: str, values: Mapping[str, Any]) -> Row:
        """The row with drawn values."""
        if self.parts:
            by_part = {part: self.chosen(values, part) for part in self.parts}
            own = _settings_of_parts(self.config, by_part)
        else:
            own = self.chosen(values)
        return replace(self.row, label=label, settings={**self.row.settings, **own})


def sampler_of(
    kind: str,
    seed: int,
    number: int,
    excess: Callable[[optuna.trial.FrozenTrial], Sequence[float]] | None = None,
) -> optuna.samplers.BaseSampler:
    """Optuna's sampler for one trial.

    Its seed is the trial's own, so that one that is asked for later is the same, and a search that
    goes on repeats nothing.

    Args:
        kind: one of :data:`SAMPLERS`.
        seed: of all trials.
        number: of the trial.
        excess: by how much a trial is worse than it may be; ``tpe`` proposes what is like the
            best of those with none, as long as there are such.
    """
    own = (seed + number * 1_000_003) % 2**32
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=own)
    return optuna.samplers.TPESampler(seed=own, constraints_func=excess)


def scores_of(result: Mapping[str, Any]) -> dict[str | None, tuple[str, float, bool]]:
    """Metric, score and whether bigger is better, of each model of a run.

    Args:
        result: what its ``result.json`` holds.

    Returns:
        By task, where the run is two models; that of the run as a whole by None.
    """
    names = ("valid_metric", "best_valid_score", "valid_score_bigger")
    trainings = result["trainings"] if len(result["trainings"]) > 1 else ()
    scored = {None: result, **{training["task"]: training for training in trainings}}
    return {task: tuple(of_task[name] for name in names) for task, of_task in scored.items()}


def is_worse(result: Mapping[str, Any], part: str | None = None) -> bool:
    """Whether a run, or one of its two models, is worse than a constant prediction.

    Args:
        result: what its ``result.json`` holds.
        part: the task of the model.
    """
    of_parts = {training["task"]: training for training in result.get("trainings", ())}
    return bool(of_parts.get(part, result).get("worse_than_constant"))


def excess_loss(result: Mapping[str, Any]) -> float:
    """By which share the log loss of a run is above a constant prediction's; 0 where it isn't.

    Of two models it is that of the worse one.

    Args:
        result: what its ``result.json`` holds.
    """
    shares = [0.0]
    for of_part in (result, *result.get("trainings", ())):
        if worse := of_part.get("worse_than_constant"):
            own, constant = worse["log_loss"], worse["constant"]  # null where it isn't finite
            shares.append(own / constant - 1 if own and constant else _NO_LOSS)
    return max(shares)


# --------------------------------------------------------------------------- of a benchmark

# what a trial keeps of what its run's result.json holds
_OF_RUN = ("digests", "processor", "versions", "threads")


def about_settings(run: PlannedRun) -> dict[str, Any]:
    """The config keys of a run that aren't defaults, without those that change no number."""
    left_out = {*WITHOUT_EFFECT, "metrics"}
    return {key: value for key, value in run.settings.items() if key not in left_out}


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried for a row of a benchmark.

    Attributes:
        row: its label.
        chosen: what was drawn, by config key; empty where the row is tried as it is.
        run: that tries them; two models are tried in one.
        config: of that run.
        part: ``ctr`` or ``cvr``, where it is about one of two models.
    """

    row: str
    chosen: Mapping[str, Any]
    run: PlannedRun
    config: Config
    part: str | None = None

    @property
    def label(self) -> str:
        """The row's, or that of one of its two models."""
        return self.row if self.part is None else part_label(self.row, self.part)

    def trial(
        self, result: Mapping[str, Any] | None, reason: str, score: float | None = None
    ) -> Trial:
        """How it went.

        Args:
            result: what its run's ``result.json`` holds, None where it failed or was pruned.
            reason: why it failed, or when it was pruned.
            score: the best on validation until it was pruned.
        """
        if result is None:
            seconds = sum(epoch.get("seconds") or 0.0 for epoch in self.run.history())
            about = {"settings": about_settings(self.run), "digests": {"code": self.run.code}}
            return Trial(
                *(self.chosen, score, True, self.run.name, reason),
                pruned=score is not None,
                seconds=seconds,
                about=about,
            )
        scores = scores_of(result)
        metric, score, bigger = scores.get(self.part, scores[None])
        of_part = [t for t in result["trainings"] if t.get("task") == self.part] or [result]
        known = {name: result[name] for name in _OF_RUN if name in result}
        return Trial(
            *(self.chosen, float(score), bigger, self.run.name),
            metric=None if self.part is None else metric,
            worse=is_worse(result, self.part),
            seconds=of_part[0].get("seconds"),
            about={"settings": about_settings(self.run), **known},
        )


def candidates(
    request: Request, row: Row, trials: int, seed: int, plan: Callable[[Row, Config], PlannedRun]
) -> list[Candidate]:
    """What is tried for a row: the row as it is, then settings drawn at random from its ranges.

    A draw depends on its number and the key's place among the ranges alone, so that models of one
    family try the same values of what they share, and that more trials are the same ones and more.

    A CTR and a CVR model as a pair have as many trainings together as another row has trials:
    ⌊N/2⌋ of the one with the other, and one CTR model more where N is odd. A row that has nothing
    to choose is tried as it is, once.

    Args:
        request: what was asked for.
        row: of the table.
        trials: settings a row.
        seed: of the draws.
        plan: makes the run of a row with its config.

    Raises:
        UsageError: the row has no ranges, or wrong ones; the message names it.
    """
    try:
        ranges = Ranges.of(request, row)
    except UsageError as error:
        raise UsageError(f"{row.label}: {error}") from error
    if not ranges.space:
        trials = len(ranges.parts) or 1
    listed = []
    for number in range(trials - trials // 2 if ranges.parts else trials):
        drawn = ranges.draw(seed, number) if number else {}
        parts = ranges.parts if number < trials // 2 else ranges.parts[:1]
        drawn = {name: value for name, value in drawn.items() if name.startswith(parts or "")}
        tried = ranges.tried(f"{row.label}, trial {number}", drawn)
        config = request.config(tried)
        config = part_config(config, parts[0]) if len(parts) == 1 else config
        run = plan(tried, config)
        listed += [
            Candidate(row.label, ranges.chosen(drawn, part), run, config, part)
            for part in parts or (None,)
        ]
    return listed


def best_settings(tuning: Tuning, label: str, config: Config) -> dict[str, Any]:
    """The settings of a row that were best on validation.

    The CTR model of a pair has those that were best by its own metric, its CVR model those that
    were best by the product.

    Args:
        tuning: what was tried.
        label: the row's.
        config: the row's, as it is.
    """
    if label in tuning.by_row:
        return dict(tuning.best(label).chosen)
    best = {part: tuning.best(part_label(label, part)).chosen for part in PAIR}
    return _settings_of_parts(config, best)


def _settings_of_parts(
    config: Config, chosen: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What was chosen for two models, over what is set for them already."""
    settings = {
        key: {**(config[key] or {}), **chosen[part]}
        for key, part in zip(PART_SETTINGS, PAIR, strict=True)
    }
    return {key: own for key, own in settings.items() if own}
