"""Trials of a benchmark's rows, of which a hopeless one is ended before its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna

from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.experiment.runs import Outcome, Process, execute, finished
from recbole_escm2.experiment.trials import Candidate
from recbole_escm2.metric_names import score_of
from recbole_escm2.tasks import is_reference

#: Of a benchmark's trials.
PRUNERS = ("none", "halving")
# Passes over train before the first comparison; each further one is after twice as many.
_FIRST_RUNG = 4
_HALF = 2


class RowTrials:
    """The trials of a row, one after the other, each against those before it.

    Successive halving: at each rung, 4, 8, 16, … passes over train, a trial goes on if its best
    validation so far is in the upper half of what the trials before it had there, its own included.
    What is ended depends on their order and their validations alone, and not on what runs at the
    same time: from what they have left in their folders the same follows again.

    Source: Li et al., A system for massively parallel hyperparameter tuning, MLSys 2020
    (asynchronous successive halving, here with one trial of a row at a time).

    Args:
        candidates: of the row; none whose run is two models, or steps of a library's fit.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        config = candidates[0].config
        self.waiting = deque(candidate.run for candidate in candidates)
        self.at_work: PlannedRun | None = None
        self._metric: str = config["valid_metric"]
        self._parts = {c.run.name: int(c.config["validations_per_epoch"]) for c in candidates}
        self._study = optuna.create_study(
            direction="maximize" if config["valid_metric_bigger"] else "minimize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(_FIRST_RUNG, _HALF, 0),
        )
        self._best = max if config["valid_metric_bigger"] else min

    def begin(self) -> PlannedRun:
        """The next trial, from now on at work."""
        self.at_work = self.waiting.popleft()
        self._trial = self._study.ask()
        self._scores: list[float] = []
        self._ended_after: int | None = None
        return self.at_work

    def is_hopeless(self, epochs: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the trial at work is to be ended.

        Args:
            epochs: its history, of which the beginning may be known already.
        """
        assert self.at_work is not None
        parts = self._parts[self.at_work.name]
        validated = [epoch for epoch in epochs if _is_number(epoch.get("valid"), self._metric)]
        for epoch in validated[len(self._scores) :] if self._ended_after is None else ():
            self._scores.append(score_of(self._metric, epoch["valid"][self._metric]))
            passes, left = divmod(epoch["epoch"] + 1, parts)
            if not left:
                self._trial.report(self._best(self._scores), passes)
                if self._trial.should_prune():
                    self._ended_after = passes
                    break
        return self._ended_after is not None

    def end(self, outcome: Outcome) -> Outcome:
        """How the trial at work ended: pruned, where its validations say so, whatever else."""
        if outcome.result is not None:
            self.is_hopeless(outcome.result["trainings"][0]["epochs"])
        state = optuna.trial.TrialState
        if self._ended_after is not None:
            reason = f"pruned after {self._ended_after} passes over train"
            outcome = replace(outcome, result=None, reason=reason, score=self._best(self._scores))
            self._study.tell(self._trial, state=state.PRUNED)
            outcome.run.forget_progress()
        elif outcome.result is None:
            self._study.tell(self._trial, state=state.FAIL)
        else:
            self._study.tell(self._trial, outcome.result["best_valid_score"])
        self.at_work = None
        return outcome


def _is_number(metrics: Any, name: str) -> bool:
    return isinstance(metrics, Mapping) and isinstance(metrics.get(name), int | float)


def is_prunable(candidate: Candidate) -> bool:
    """Whether a run has validations that compare: of two models it has two kinds, and the steps of
    a library's fit are no passes over train."""
    return candidate.part is None and not is_reference(candidate.config.model_class)


class Work:
    """Runs that are done in any order, and rows whose trials follow each other.

    Args:
        runs: those in any order; by name, so that each is done once.
        rows: their trials.
        jobs: runs at once.
        outcomes: of earlier work, by the run's name.
    """

    def __init__(
        self,
        runs: Iterable[PlannedRun],
        rows: Sequence[RowTrials],
        jobs: int,
        outcomes: Mapping[str, Outcome],
    ) -> None:
        self._free = {run.name: run for run in runs}
        self._rows = rows
        self._jobs = jobs
        self._earlier = dict(outcomes)
        self._of_run: dict[str, RowTrials] = {}  # of those at work
        self.names = {*self._free, *(run.name for row in rows for run in row.waiting)}

    def known(self) -> list[Outcome]:
        """What follows from earlier work, of a row's trials as far as they can be told in order."""
        known = [*self._known_of_rows()]
        for run in [*self._free.values()]:
            if (earlier := self._earlier_of(run)) is not None:
                known.append(earlier)
                del self._free[run.name]
        return known

    def _known_of_rows(self) -> Iterator[Outcome]:
        for row in self._rows:
            while row.at_work is None and row.waiting:
                run = row.begin()
                earlier = self._earlier_of(run)
                if earlier is None and row.is_hopeless(run.history()):
                    earlier = Outcome(run, None)
                if earlier is not None:
                    yield row.end(earlier)

    def execute(self) -> Iterator[Outcome]:
        """Do what is missing, once :meth:`known` was asked, and yield each outcome as it comes."""
        for outcome in execute(iter(self._next, object()), self._jobs, watch=self._watch):
            row = self._of_run.pop(outcome.run.name, None)
            yield outcome if row is None else row.end(outcome)
            yield from self._known_of_rows()

    def _earlier_of(self, run: PlannedRun) -> Outcome | None:
        earlier = self._earlier.get(run.name)
        if earlier is not None and earlier.score is not None:
            return None  # pruned: its history tells it again
        return earlier or finished(run)

    def _next(self) -> PlannedRun | None:
        for row in sorted(self._rows, key=lambda row: -len(row.waiting)):
            run = row.at_work
            if run is not None and run.name not in self._of_run:
                self._of_run[run.name] = row
                return run
        return self._free.pop(next(iter(self._free))) if self._free else None

    def _watch(self, process: Process) -> None:
        row = self._of_run.get(process.run.name)
        if row is not None and process.stopped is None and row.is_hopeless(process.run.history()):
            process.stop("pruned")
