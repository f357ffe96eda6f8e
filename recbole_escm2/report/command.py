"""The benchmark command: an experiment, and the report of what came out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_escm2.experiment.conduct import conduct
from recbole_escm2.experiment.interrupt import say
from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.experiment.study import Study
from recbole_escm2.report.tables import text
from recbole_escm2.report.write import report


def benchmark(options: Mapping[str, str], command: Sequence[str]) -> int:
    """Run a benchmark, or what is missing of it, write its report and show its table.

    Args:
        options: of the command line, as text.
        command: the words that make the report again, program and options, for it to show.

    Returns:
        The exit code: 0, 1 where a run failed, 130 where it was stopped.

    Raises:
        UsageError: something that the caller can mend; nothing has run then.
    """
    study, paths, stopped = carry_out(options, shlex.join(command))
    if study.results:
        print(text(study))
        print()
        shown = {kind: path for kind, path in paths.items() if not kind.startswith("figures/")}
        print("\n".join(f"{kind:9} {path}" for kind, path in shown.items()))
    if stopped:
        return 130
    return 1 if study.failures else 0


def carry_out(options: Mapping[str, Any], command: str) -> tuple[Study, dict[str, Path], bool]:
    """Run a benchmark, or what is missing of it, and write its report.

    Args:
        options: see :func:`~recbole_escm2.experiment.request.read_request`.
        command: what makes the report again, for it to show.

    Returns:
        What came out, the files of the report by what they hold, and whether it was stopped.

    Raises:
        UsageError: something that the caller can mend; nothing has run then.
    """
    experiment = make_experiment(options)
    study, stopped = conduct(experiment, command)
    paths = report(study, experiment.output_dir / experiment.name) if study.results else {}
    for (label, seed), reason in study.failures.items():
        say(f"failed: {label}, seed {seed}: {reason}")
    return study, paths, stopped
