"""The benchmark command: do what is missing of a plan, then show what all of it says."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_escm2.evaluator.influence import kept_influence
from recbole_escm2.experiment.interrupt import say, terminated_as_interrupted
from recbole_escm2.experiment.plan import Plan, Run, make_plan, with_tuned_rows
from recbole_escm2.experiment.runs import Outcome, execute, finished, folder_of
from recbole_escm2.experiment.study import Study, Trial, Tuning
from recbole_escm2.experiment.worker import OUTPUT_FILE
from recbole_escm2.model.entire_space import misspelt_hooks
from recbole_escm2.model.lookup import find_model
from recbole_escm2.quick_start import RESULT_FILE
from recbole_escm2.report.tables import text
from recbole_escm2.report.write import report


def benchmark(options: Mapping[str, str], command: Sequence[str]) -> int:
    """Run a benchmark, or what is missing of it, and write its report.

    Args:
        options: of the command line, as text.
        command: the words that make the report again, program and options, for it to show.

    Returns:
        The exit code: 0, 1 where a run failed, 130 where it was stopped.

    Raises:
        UsageError: something that the caller can mend; nothing has run then.
    """
    plan = make_plan(options)
    for model in dict.fromkeys(row.model for row in plan.rows):
        for sentence in misspelt_hooks(find_model(model)):
            say(f"warning: {sentence}")
    tuning: Tuning | None = None
    outcomes: dict[str, Outcome] = {}
    stopped = False
    try:
        with terminated_as_interrupted():
            if (about := plan.seeding.about_worlds()) is not None:
                say(about)
            if plan.tuning:
                _say_ranges(plan)
                what = f"{_count(plan)} rows, {plan.trials} trials each"
                _work(plan, [run for _, run in plan.tuning], what, "valid", outcomes)
                tuning = _tuning(plan, outcomes)
                plan = with_tuned_rows(plan, tuning)
            again = ", the baseline again (A/A)" if _count(plan) < len(plan.rows) else ""
            what = f"{_count(plan)} rows{again}, {len(plan.seeds)} seeds"
            _work(plan, plan.runs, what, "test", outcomes)
    except KeyboardInterrupt:
        stopped = True
        again = "the same command without --fresh" if plan.fresh else "the same command"
        say(f"stopped; {again} goes on from here")
    study = _study(plan, outcomes, tuning, shlex.join(command))
    if study.results:
        paths = report(study, plan.output_dir / plan.name)
        print(text(study))
        print()
        shown = {kind: path for kind, path in paths.items() if not kind.startswith("figures/")}
        print("\n".join(f"{kind:9} {path}" for kind, path in shown.items()))
    for (label, seed), reason in study.failures.items():
        say(f"failed: {label}, seed {seed}: {reason}")
    if stopped:
        return 130
    return 1 if study.failures else 0


def _work(
    plan: Plan, runs: Sequence[Run], what: str, split: str, outcomes: dict[str, Outcome]
) -> None:
    """Do what is missing of some runs, saying how each one went.

    Args:
        plan: theirs.
        runs: those that are the same but for their labels are done once.
        what: what they are, for people.
        split: whose metric is said of each.
        outcomes: by the run's name; those of these runs are added.
    """
    new = {run.name: run for run in runs if run.name not in outcomes}
    if plan.fresh:
        for run in new.values():
            (folder_of(run, plan.output_dir) / RESULT_FILE).unlink(missing_ok=True)
    for run in new.values():
        if (earlier := finished(run, plan.output_dir, plan.saved)) is not None:
            outcomes[run.name] = earlier
    missing = [run for name, run in new.items() if name not in outcomes]
    names = {run.name for run in runs}
    say(f"{plan.dataset}: {what}, {len(names)} runs, of which {len(names) - len(missing)} are done")
    started = time.perf_counter()
    work = execute(iter(missing), plan.output_dir, plan.jobs, plan.saved)
    for done, outcome in enumerate(work, start=1):
        outcomes[outcome.run.name] = outcome
        left = (time.perf_counter() - started) / done * (len(missing) - done)
        say(
            f"[{done}/{len(missing)}] {outcome.run.row.label}, seed {outcome.run.seed}: "
            f"{_how(outcome, split)}" + (f"; about {_duration(left)} left" if left else "")
        )


def _count(plan: Plan) -> int:
    """The rows that were asked for."""
    return sum(not row.aa for row in plan.rows)


def _say_ranges(plan: Plan) -> None:
    """What is tuned in each row; rows with the same keys are said together."""
    rows_of: dict[tuple[str, ...], list[str]] = {}
    drawn = {candidate.label: tuple(candidate.chosen) for candidate, _ in plan.tuning}
    for label, keys in drawn.items():
        rows_of.setdefault(keys, []).append(label)
    for keys, labels in rows_of.items():
        if keys:  # of few trials none may be left to draw
            say(f"tuned in {', '.join(labels)}: {', '.join(keys)}")


def _how(outcome: Outcome, split: str) -> str:
    result = outcome.result
    if result is None:
        return f"failed: {outcome.reason} (log: {outcome.folder / OUTPUT_FILE})"
    metric = result["valid_metric"]
    value = result["test_result" if split == "test" else "best_valid_result"].get(metric)
    on = "" if split == "test" else " on validation"
    shown = f"{metric} {value:.4f}{on}, " if value is not None else ""
    return f"{shown}{result['epochs']} epochs, {_duration(result['seconds'])}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _tuning(plan: Plan, outcomes: Mapping[str, Outcome]) -> Tuning:
    by_row: dict[str, list[Trial]] = {}
    for candidate, run in plan.tuning:
        outcome = outcomes[run.name]
        trial = candidate.trial(run.name, outcome.result, outcome.reason or "")
        by_row.setdefault(candidate.label, []).append(trial)
    assert plan.seeding.of_tuning is not None
    on = "; ".join(dict.fromkeys(plan.seeding.tuned_on(draws) for draws in plan.draws.values()))
    return Tuning(plan.trials, plan.seeding.of_tuning, plan.metric, by_row, on)


def _study(
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    tuning: Tuning | None,
    command: str,
) -> Study:
    results: dict[tuple[str, int], Mapping[str, Any]] = {}
    failures: dict[tuple[str, int], str] = {}
    folders: dict[tuple[str, int], Path] = {}
    for run in plan.runs:
        outcome = outcomes.get(run.name)
        key = (run.row.label, run.seed)
        if outcome is not None and outcome.result is not None:
            # A run by itself can't know that other seeds have other worlds.
            results[key] = {**outcome.result, "seed_draws": plan.draws[run.row.label]}
            folders[key] = outcome.folder
        elif outcome is not None:
            failures[key] = str(outcome.reason)
    return Study(
        title=f"{plan.dataset}: {_count(plan)} rows over {len(plan.seeds)} seeds",
        command=command,
        dataset=plan.dataset,
        rows=plan.rows,
        seeds=plan.seeds,
        baseline=plan.baseline,
        columns=plan.columns,
        results=results,
        failures=failures,
        shared=plan.shared,
        tuning=tuning,
        primary=tuple(plan.primary),
        influence=lambda label, seed: kept_influence(folders[label, seed]),
    )
