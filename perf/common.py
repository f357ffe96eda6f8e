"""What the benchmark scripts share: environments, runs that report JSON, ratios, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def environment(name: str, requirements: Sequence[str], cache: Path) -> Path:
    """The interpreter of a virtual environment that holds some packages; made if it isn't there.

    All requirements go into one pip command: a second one might trade a pinned package for another
    version to please its own.

    Args:
        name: folder of the environment inside ``cache``.
        requirements: as pip takes them.
        cache: where environments are kept.

    Raises:
        RuntimeError: it can't be made; the message ends with what pip said.
    """
    folder = cache.absolute() / name
    python = folder / "bin" / "python"
    done, wanted = folder / "requirements.txt", "\n".join(requirements) + "\n"
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"environment {name}: {' '.join(requirements)}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", *requirements])
    done.write_text(wanted)  # last: without it, the next call starts afresh
    return python


def run_json(
    python: str | Path, script: str | Path, *args: object, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a script in a folder of its own and return the JSON object on its last line of output.

    Args:
        python: the interpreter.
        script: the script.
        args: its arguments.
        env: environment variables over those of this process.

    Raises:
        RuntimeError: it fails, or prints no such line; the message ends with its own last words.
    """
    command = [str(python), str(Path(script).absolute()), *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:  # libraries leave logs and checkpoints around
        output = _run(command, cwd=folder, env={**os.environ, **(env or {})})
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{Path(script).name} printed no JSON")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        last_words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{last_words}")
    return done.stdout


def ratios(
    rounds: Iterable[Mapping[str, float]], ours: str, other: str
) -> tuple[float, float, float]:
    """Median, least and greatest of ours / other over the rounds that measured both.

    The two of a round ran one after the other, so what slows the machine for a while mostly cancels
    in their ratio, and doesn't in a ratio of medians. All NaN where no round has both.
    """
    both = [measured[ours] / measured[other] for measured in rounds if {ours, other} <= {*measured}]
    if not both:
        return (float("nan"),) * 3
    return statistics.median(both), min(both), max(both)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers and stand right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What the numbers were measured on: processor, cores to run on, Python."""
    from recbole_escm2.output import processor  # peers' environments haven't got it

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "cores": cores,
        "python": platform.python_version(),
    }
