"""The benchmark command: do what is missing of a plan, then show what all of it says."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recbole_escm2.benchmark.interrupt import say, terminated_as_interrupted
from recbole_escm2.benchmark.plan import Plan, Run, make_plan
from recbole_escm2.benchmark.report import report
from recbole_escm2.benchmark.runs import Outcome, execute, finished, folder_of
from recbole_escm2.benchmark.study import Study
from recbole_escm2.benchmark.tables import text
from recbole_escm2.quick_start import RESULT_FILE


def benchmark(options: Mapping[str, str], arguments: Sequence[str] = ()) -> int:
    """Run a benchmark, or what is missing of it, and write its report.

    Args:
        options: of the command line, as text.
        arguments: the command line itself, for the report.

    Returns:
        The exit code: 0, 1 where a run failed, 130 where it was stopped.

    Raises:
        UsageError: something that the caller can mend; nothing has run then.
    """
    plan = make_plan(options)
    outcomes = _earlier(plan)
    runs = {run.name: run for run in plan.runs}  # rows that are the same but for their labels
    missing = [run for name, run in runs.items() if name not in outcomes]
    say(
        f"{plan.dataset}: {len(plan.rows)} rows, {len(plan.seeds)} seeds, {len(runs)} runs, "
        f"of which {len(outcomes)} are done"
    )
    stopped = False
    try:
        with terminated_as_interrupted():
            for outcome in _work(plan, missing):
                outcomes[outcome.run.name] = outcome
    except KeyboardInterrupt:
        stopped = True
        again = "the same command without --fresh" if plan.fresh else "the same command"
        say(f"stopped; {again} goes on from here")
    study = _study(plan, outcomes, arguments)
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


def _earlier(plan: Plan) -> dict[str, Outcome]:
    """The runs that are done, by name; none where all are to be done afresh."""
    if plan.fresh:
        for run in plan.runs:
            (folder_of(run, plan.output_dir) / RESULT_FILE).unlink(missing_ok=True)
    found = (finished(run, plan.output_dir, plan.saved) for run in plan.runs)
    return {outcome.run.name: outcome for outcome in found if outcome is not None}


def _work(plan: Plan, missing: Sequence[Run]) -> Iterator[Outcome]:
    """Do the missing runs and say how each one went."""
    started = time.perf_counter()
    outcomes = execute(iter(missing), plan.output_dir, plan.jobs, plan.saved)
    for done, outcome in enumerate(outcomes, start=1):
        per_run = (time.perf_counter() - started) / done
        left = per_run * (len(missing) - done)
        say(
            f"[{done}/{len(missing)}] {outcome.run.row.label}, seed {outcome.run.seed}: "
            f"{_how(outcome)}" + (f"; about {_duration(left)} left" if left else "")
        )
        yield outcome


def _how(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.reason} (log: {outcome.folder})"
    metric = outcome.result["valid_metric"]
    test = outcome.result["test_result"].get(metric)
    shown = f"{metric} {test:.4f}, " if test is not None else ""
    return f"{shown}{outcome.result['epochs']} epochs, {_duration(outcome.result['seconds'])}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _study(plan: Plan, outcomes: Mapping[str, Outcome], arguments: Sequence[str]) -> Study:
    results: dict[tuple[str, int], Mapping[str, Any]] = {}
    failures: dict[tuple[str, int], str] = {}
    for run in plan.runs:
        outcome = outcomes.get(run.name)
        key = (run.row.label, run.seed)
        if outcome is not None and outcome.result is not None:
            results[key] = outcome.result
        elif outcome is not None:
            failures[key] = str(outcome.reason)
    return Study(
        title=f"{plan.dataset}: {len(plan.rows)} rows over {len(plan.seeds)} seeds",
        command=shlex.join(["python", "run_recbole_escm2.py", *arguments]),
        dataset=plan.dataset,
        rows=plan.rows,
        seeds=plan.seeds,
        baseline=plan.baseline,
        columns=plan.columns,
        results=results,
        failures=failures,
        shared=plan.shared,
    )
