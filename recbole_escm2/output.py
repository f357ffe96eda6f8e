"""What a run leaves behind and shows: its folder, log, result file and tables."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import colorlog

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.catalogue import ALL_TASKS
from recbole_escm2.evaluator.evaluator import MetricResult
from recbole_escm2.files import lock as lock
from recbole_escm2.files import plain

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LEVELS = ("debug", "info", "warning", "error", "critical")


def make_run_dir(config: Any) -> Path:
    """A new folder ``output_dir/MODEL-DATASET-CONFIG-TIME``; CONFIG is a digest of the settings.

    Raises:
        UsageError: it can't be made.
    """
    settings = plain({**config.internal_config_dict, **config.external_config_dict})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    stem = "-".join(
        [config["model"], config["dataset"], digest, datetime.now().strftime("%Y%m%d-%H%M%S")]
    )
    parent = Path(config["output_dir"]).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            folder = parent / (f"{stem}-{attempt}" if attempt else stem)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UsageError(f"output_dir {parent}: {error.strerror}") from error
    raise UsageError(f"output_dir {parent}: can't find a free name for {stem}")


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _ANSI.sub("", super().format(record))


@contextlib.contextmanager
def logging_to(file: Path, level_name: str | None = "info") -> Iterator[None]:
    """Log to a file (everything from INFO) and to standard error (from ``level_name``).

    RecBole logs to the root logger; its handlers are back as they were afterwards, so that a
    second run in one process doesn't write into the first one's file.
    """
    level = (level_name or "info").lower()
    if level not in _LEVELS:
        raise UsageError(f"state must be one of {', '.join(_LEVELS)}, got {level_name!r}")
    to_file = logging.FileHandler(file, encoding="utf-8")
    to_file.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    to_file.setLevel(min(logging.INFO, getattr(logging, level.upper())))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setLevel(getattr(logging, level.upper()))
    to_terminal.setFormatter(
        colorlog.ColoredFormatter(
            "%(log_color)s%(asctime)s %(message)s", "%H:%M:%S", log_colors={"WARNING": "yellow"}
        )
        if sys.stderr.isatty()
        else _PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    before = root.level
    root.setLevel(min(to_file.level, to_terminal.level))
    handlers = (to_file, to_terminal)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)


def make_folder(key: str, folder: Path) -> None:
    """Make a folder, with its parents; it may be there.

    Args:
        key: the config key that names it, for the message.
        folder: its path.

    Raises:
        UsageError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{key}: {folder} can't be made: {error.strerror}") from error


def csv_text(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """CSV as in RFC 4180, with plain line feeds; floats in full precision.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, which makes it
    text there; numbers stay as they are.

    Args:
        columns: names, in order.
        lines: values by column.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(line.get(column)) for column in columns] for line in lines)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    text = "" if value is None else str(value)
    if isinstance(value, int | float) or not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    with contextlib.suppress(ValueError):
        float(text)
        return value
    return f"'{text}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside and rename: a reader never sees half of it. Text becomes UTF-8."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(unfinished, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; a number that isn't finite, which JSON lacks, is null."""
    finite = _finite(content)
    text = json.dumps(finite, indent=1, ensure_ascii=False, default=str, allow_nan=False)
    write_whole(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):  # numpy's float64 is one
        return value if math.isfinite(value) else None
    return value


def versions() -> dict[str, str]:
    """Versions of everything that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in ("recbole-escm2", "recbole", "torch", "numpy", "scipy", "pandas"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def table(header: list[str], rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    )


def metric_table(result: MetricResult, decimals: int = 4) -> str:
    """Metrics as rows and tasks as columns."""
    tasks = [task.upper() for task in ALL_TASKS]
    cells: dict[str, dict[str, str]] = {}
    for name, value in result.items():
        task, _, statistic = name.partition("_")
        if task not in tasks:
            task, statistic = ("CVR", name) if name in ("IEB", "PIP") else ("", name)
        cells.setdefault(statistic, {})[task] = f"{value:.{decimals}f}"
    columns = [task for task in [*tasks, ""] if any(task in row for row in cells.values())]
    rows = [[name, *(row.get(task, "") for task in columns)] for name, row in cells.items()]
    return table(["metric", *(column or "predict()" for column in columns)], rows)


_NOT_OF_CLICKS = ("_ES", "_Gap", "_CRR", "_CRR_True")


def scope_notes(metrics: Iterable[str]) -> list[str]:
    """Which rows the metrics of these names are over, as sentences."""
    names = list(metrics)
    notes = []
    if any(name.startswith(("CTR_", "CTCVR_")) for name in names):
        notes.append("CTR and CTCVR: over all impressions.")
    if any(name.startswith("CVR_") and not name.endswith(_NOT_OF_CLICKS) for name in names):
        notes.append("CVR: over the clicked impressions, a sample that clicks have selected.")
    if any(name.endswith("_GAUC") for name in names):
        notes.append(
            "GAUC: users weighted by impressions; RecBole's own GAUC weights by positives."
        )
    entire = ["CVR …_ES"] if any(name.endswith("_ES") for name in names) else []
    entire += [name for name in ("IEB", "PIP") if name in names]
    if entire:
        listed = " and ".join(filter(None, [", ".join(entire[:-1]), entire[-1]]))
        notes.append(f"{listed}: over all impressions, against their potential outcomes.")
    return notes


def metric_lines(result: MetricResult) -> str:
    """One ``NAME: value`` line a metric, for scripts."""
    return "\n".join(f"{name}: {value:.6f}" for name, value in result.items())
