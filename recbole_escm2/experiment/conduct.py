"""An experiment conducted: what is missing of it is done, and all of it becomes a study."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_escm2.evaluator.influence import read_influence
from recbole_escm2.experiment.interrupt import say, terminated_as_interrupted
from recbole_escm2.experiment.plan import Experiment, with_carried_on_rows, with_tuned_rows
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.experiment.pruning import RowTrials, Work, is_prunable
from recbole_escm2.experiment.runs import Outcome
from recbole_escm2.experiment.screening import Screen, best_on_validation
from recbole_escm2.experiment.statistics import cost
from recbole_escm2.experiment.study import Screened, Screening, Study, Trial, Tuning
from recbole_escm2.experiment.trials import Candidate, about_settings, is_worse
from recbole_escm2.experiment.worker import OUTPUT_FILE
from recbole_escm2.lookup import find_model
from recbole_escm2.model.entire_space import misspelt_hooks


def conduct(experiment: Experiment, command: str) -> tuple[Study, bool]:
    """Do what is missing of an experiment: its trials, then the rows with the best of them.

    Args:
        experiment: what is to be done.
        command: what makes its report again.

    Returns:
        What came out, and whether it was stopped before its end.
    """
    for model in dict.fromkeys(row.model for row in experiment.rows):
        for sentence in misspelt_hooks(find_model(model)):
            say(f"warning: {sentence}")
    tuning: Tuning | None = None
    screening: Screening | None = None
    outcomes: dict[str, Outcome] = {}
    stopped = False
    try:
        with terminated_as_interrupted():
            if (about := experiment.seeding.about_worlds()) is not None:
                say(about)
            if experiment.tuning:
                _say_ranges(experiment)
                if experiment.screen is not None:
                    screening = _screen(experiment, experiment.screen, outcomes)
                    labels = {row.label for row in screening.rows if row.why}
                    experiment = with_carried_on_rows(experiment, labels)
                what = f"{_count(experiment)} rows, {experiment.trials} trials each"
                _try(experiment, experiment.tuning, what, outcomes)
                tuning = tuning_of(experiment, outcomes)
                experiment = with_tuned_rows(experiment, tuning)
            has_aa_row = any(row.aa for row in experiment.rows)
            again = ", the baseline again (A/A)" if has_aa_row else ""
            what = f"{_count(experiment)} rows{again}, {len(experiment.seeds)} seeds"
            _work(experiment, experiment.runs, what, "test", outcomes)
    except KeyboardInterrupt:
        stopped = True
        again = "the same command without --fresh" if experiment.fresh else "the same command"
        say(f"stopped; {again} goes on from here")
    study = study_of(experiment, outcomes, tuning, command)
    return replace(study, screening=screening), stopped


def _screen(experiment: Experiment, screen: Screen, outcomes: dict[str, Outcome]) -> Screening:
    """Try all rows a little, and say which go on."""
    tried = experiment.screening
    what = f"{_count(experiment)} rows are screened, {screen.settings} settings each"
    _try(experiment, tried, what, outcomes)
    by_row: dict[str, list[Candidate]] = {}
    for candidate in tried:
        by_row.setdefault(candidate.row, []).append(candidate)
    scores = {
        label: best_on_validation(
            (result for c in own if (result := outcomes[c.run.name].result) is not None),
            experiment.metric,
        )
        for label, own in by_row.items()
    }
    costs = {k: cost(experiment.metric, score) for k, score in scores.items() if score is not None}
    why = dict.fromkeys(screen.by_right, "by right")
    why |= dict.fromkeys(screen.by_validation(costs), "by validation")
    rows = [
        Screened(
            *(row.label, row.model, scores[row.label], why.get(row.label, "")),
            _trials(by_row[row.label], outcomes),
        )
        for row in experiment.rows
        if not row.aa
    ]
    say(f"{len(why)} rows go on: {', '.join(row.label for row in rows if row.why)}")
    return Screening(screen.settings, experiment.metric, rows)


def _try(
    experiment: Experiment,
    candidates: Sequence[Candidate],
    what: str,
    outcomes: dict[str, Outcome],
) -> None:
    """Do what is missing of some trials; arguments as :func:`_work` has them."""
    halved: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if experiment.pruner == "halving" and is_prunable(candidate):
            halved.setdefault(candidate.row, []).append(candidate)
    runs = [candidate.run for candidate in candidates if candidate.row not in halved]
    _work(experiment, runs, what, "valid", outcomes, [RowTrials(own) for own in halved.values()])


def _work(
    experiment: Experiment,
    runs: Sequence[PlannedRun],
    what: str,
    split: str,
    outcomes: dict[str, Outcome],
    rows: Sequence[RowTrials] = (),
) -> None:
    """Do what is missing of some runs, saying how each one went.

    Args:
        experiment: theirs.
        runs: those that are the same but for their labels are done once.
        what: what they are, for people.
        split: whose metric is said of each.
        outcomes: by the run's name; those of these runs are added.
        rows: trials that are done, too, of which hopeless ones are ended.
    """
    if experiment.fresh:
        for run in (*runs, *(run for row in rows for run in row.waiting)):
            if run.name not in outcomes:
                run.forget()
    work = Work(runs, rows, experiment.jobs, outcomes)
    outcomes |= {outcome.run.name: outcome for outcome in work.known()}
    count = len(work.names)
    missing = len(work.names - outcomes.keys())
    say(f"{experiment.dataset}: {what}, {count} runs, of which {count - missing} are done")
    started = time.perf_counter()
    for done, outcome in enumerate(work.execute(), start=1):
        outcomes[outcome.run.name] = outcome
        left = (time.perf_counter() - started) / done * (missing - done)
        say(
            f"[{done}/{missing}] {outcome.run.row.label}, seed {outcome.run.seed}: "
            f"{_how(outcome, split)}" + (f"; about {_duration(left)} left" if left > 0 else "")
        )


def _count(experiment: Experiment) -> int:
    """The rows that were asked for."""
    return sum(not row.aa for row in experiment.rows)


def _say_ranges(experiment: Experiment) -> None:
    """What is tuned in each row; rows with the same keys are said together."""
    rows_of: dict[tuple[str, ...], list[str]] = {}
    drawn = {candidate.label: tuple(candidate.chosen) for candidate in experiment.tuning}
    for label, keys in drawn.items():
        rows_of.setdefault(keys, []).append(label)
    for keys, labels in rows_of.items():
        if keys:  # of few trials none may be left to draw
            say(f"tuned in {', '.join(labels)}: {', '.join(keys)}")


def _how(outcome: Outcome, split: str) -> str:
    result = outcome.result
    if outcome.score is not None:
        return f"{outcome.reason}, {outcome.score:.4f} on validation until then"
    if result is None:
        return f"failed: {outcome.reason} (log: {outcome.run.folder / OUTPUT_FILE})"
    metric = result["valid_metric"]
    value = result["test_result" if split == "test" else "best_valid_result"].get(metric)
    on = "" if split == "test" else " on validation"
    shown = f"{metric} {value:.4f}{on}, " if value is not None else ""
    worse = ", worse than a constant prediction" if is_worse(result) else ""
    return f"{shown}{result['epochs']} epochs, {_duration(result['seconds'])}{worse}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def tuning_of(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> Tuning:
    """How the settings of the rows were chosen, from the outcomes by the run's name."""
    seeding = experiment.seeding
    assert seeding.of_tuning is not None
    on = "; ".join(dict.fromkeys(map(seeding.tuned_on, experiment.draws.values())))
    by_row = _trials(experiment.tuning, outcomes)
    return Tuning(experiment.trials, seeding.of_tuning, experiment.metric, by_row, on)


def _trials(
    candidates: Sequence[Candidate], outcomes: Mapping[str, Outcome]
) -> dict[str, list[Trial]]:
    """How trials went, by the row's label, or that of each of its two models."""
    by_row: dict[str, list[Trial]] = {}
    for candidate in candidates:
        outcome = outcomes[candidate.run.name]
        trial = candidate.trial(outcome.result, outcome.reason, outcome.score)
        by_row.setdefault(candidate.label, []).append(trial)
    return by_row


def study_of(
    experiment: Experiment,
    outcomes: Mapping[str, Outcome],
    tuning: Tuning | None,
    command: str,
) -> Study:
    """All that reports are made of.

    Args:
        experiment: its rows as they were run.
        outcomes: by the run's name; a run without one wasn't reached.
        tuning: of the rows.
        command: what makes the report again.
    """
    results: dict[tuple[str, int], Mapping[str, Any]] = {}
    failures: dict[tuple[str, int], str] = {}
    folders: dict[tuple[str, int], Path] = {}
    for run in experiment.runs:
        outcome = outcomes.get(run.name)
        key = (run.row.label, run.seed)
        if outcome is not None and outcome.result is not None:
            # A run by itself can't know that other seeds have other worlds.
            own = {"seed_draws": experiment.draws[run.row.label], "settings": about_settings(run)}
            results[key] = {**outcome.result, **own}
            folders[key] = run.folder
        elif outcome is not None:
            failures[key] = outcome.reason
    return Study(
        title=f"{experiment.dataset}: {_count(experiment)} rows over {len(experiment.seeds)} seeds",
        command=command,
        dataset=experiment.dataset,
        rows=experiment.rows,
        seeds=experiment.seeds,
        baseline=experiment.baseline,
        columns=experiment.columns,
        named=experiment.named,
        results=results,
        failures=failures,
        shared=experiment.request.shared,
        tuning=tuning,
        protocol=experiment.protocol,
        primary=tuple(experiment.primary),
        influence=lambda label, seed: read_influence(folders[label, seed]),
    )
