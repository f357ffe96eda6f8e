"""An experiment conducted: what is missing of it is done, and all of it becomes a study."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_escm2.evaluator.influence import read_influence
from recbole_escm2.experiment.interrupt import say, terminated_as_interrupted
from recbole_escm2.experiment.plan import Experiment, with_tuned_rows
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.experiment.runs import Outcome, execute, finished
from recbole_escm2.experiment.study import Study, Trial, Tuning
from recbole_escm2.experiment.trials import is_worse
from recbole_escm2.experiment.worker import OUTPUT_FILE
from recbole_escm2.lookup import find_model
from recbole_escm2.model.entire_space import misspelt_hooks
from recbole_escm2.train.run import RESULT_FILE


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
    outcomes: dict[str, Outcome] = {}
    stopped = False
    try:
        with terminated_as_interrupted():
            if (about := experiment.seeding.about_worlds()) is not None:
                say(about)
            if experiment.tuning:
                _say_ranges(experiment)
                trials = [candidate.run for candidate in experiment.tuning]
                what = f"{_count(experiment)} rows, {experiment.trials} trials each"
                _work(experiment, trials, what, "valid", outcomes)
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
    return study_of(experiment, outcomes, tuning, command), stopped


def _work(
    experiment: Experiment,
    runs: Sequence[PlannedRun],
    what: str,
    split: str,
    outcomes: dict[str, Outcome],
) -> None:
    """Do what is missing of some runs, saying how each one went.

    Args:
        experiment: theirs.
        runs: those that are the same but for their labels are done once.
        what: what they are, for people.
        split: whose metric is said of each.
        outcomes: by the run's name; those of these runs are added.
    """
    new = {run.name: run for run in runs if run.name not in outcomes}
    if experiment.fresh:
        for run in new.values():
            (run.folder / RESULT_FILE).unlink(missing_ok=True)
            run.forget_progress()
    for run in new.values():
        if (earlier := finished(run)) is not None:
            outcomes[run.name] = earlier
    missing = [run for name, run in new.items() if name not in outcomes]
    count = len({run.name for run in runs})
    done = count - len(missing)
    say(f"{experiment.dataset}: {what}, {count} runs, of which {done} are done")
    started = time.perf_counter()
    work = execute(iter(missing), experiment.jobs)
    for done, outcome in enumerate(work, start=1):
        outcomes[outcome.run.name] = outcome
        left = (time.perf_counter() - started) / done * (len(missing) - done)
        say(
            f"[{done}/{len(missing)}] {outcome.run.row.label}, seed {outcome.run.seed}: "
            f"{_how(outcome, split)}" + (f"; about {_duration(left)} left" if left else "")
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
    by_row: dict[str, list[Trial]] = {}
    for candidate in experiment.tuning:
        outcome = outcomes[candidate.run.name]
        trial = candidate.trial(outcome.result, outcome.reason)
        by_row.setdefault(candidate.label, []).append(trial)
    seeding = experiment.seeding
    assert seeding.of_tuning is not None
    on = "; ".join(dict.fromkeys(map(seeding.tuned_on, experiment.draws.values())))
    return Tuning(experiment.trials, seeding.of_tuning, experiment.metric, by_row, on)


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
            results[key] = {**outcome.result, "seed_draws": experiment.draws[run.row.label]}
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
        primary=tuple(experiment.primary),
        influence=lambda label, seed: read_influence(folders[label, seed]),
    )
