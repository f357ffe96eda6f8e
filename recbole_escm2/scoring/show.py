"""Scores as text, as tables in files, and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_escm2.errors import UsageError
from recbole_escm2.extras import require
from recbole_escm2.output import csv_text, make_folder, table, write_json, write_whole
from recbole_escm2.report.notes import BETTER, WORSE, decimals_of, direction
from recbole_escm2.scoring.score import CONSTANT, Compared, Scores

_MARKS = {"better": BETTER, "worse": WORSE}


def report(scores: Scores, folder: str | Path) -> dict[str, Path]:
    """Write all that there is into a folder; files of the same names are replaced.

    Args:
        scores: what is shown.
        folder: where to; made if it isn't there.

    Returns:
        The paths by what they hold: ``csv`` (a line a model and metric), ``comparison`` and
        ``calibration`` (CSV, where there are some), ``json`` (all of it), and ``html``, the page,
        where the extra ``benchmark`` is installed.

    Raises:
        UsageError: the folder can't be made.
    """
    target = Path(folder)
    make_folder("out", target)
    frames = {
        "csv": ("table.csv", scores.table),
        "comparison": ("comparison.csv", scores.comparison),
        "calibration": ("calibration.csv", scores.calibration),
    }
    paths: dict[str, Path] = {}
    for kind, (name, frame) in frames.items():
        if len(frame):
            paths[kind] = target / name
            write_whole(paths[kind], csv_text(list(frame.columns), _records(frame)))
    paths["json"] = target / "score.json"
    write_json(paths["json"], as_json(scores))
    if page_takes() is None:
        from recbole_escm2.scoring.page import page

        paths["html"] = target / "score.html"
        write_whole(paths["html"], page(scores))
    return paths


def page_takes() -> str | None:
    """What has to be installed for the page, as a sentence; None where it is."""
    try:
        require("benchmark", "the page of scores")
    except UsageError as error:
        return str(error)
    return None


def as_json(scores: Scores) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "counts": scores.counts,
        "baseline": scores.baseline,
        "primary": list(scores.primary),
        "table": _records(scores.table),
        "comparison": _records(scores.comparison),
        "calibration": scores.curves,
        "notes": list(scores.notes),
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: None if pd.isna(value) else value for name, value in line.items()}
        for line in frame.to_dict("records")
    ]


def text(scores: Scores) -> str:
    """The tables for a terminal: metrics by model, differences in the primary metrics, notes."""
    counted = ", ".join(f"{number:,} {name}" for name, number in scores.counts.items())
    lines = [counted, "", table(*metric_grid(scores))]
    if scores.comparisons and scores.primary:
        lines += ["", f"Against {scores.baseline}, on the same rows", ""]
        lines.append(table(*comparison_grid(scores, scores.primary)))
    return "\n".join([*lines, "", *scores.notes])


def fragment(scores: Scores) -> str:
    """The same as HTML, for a notebook."""
    parts = [_html_table(*metric_grid(scores))]
    if scores.comparisons and scores.primary:
        parts.append(_html_table(*comparison_grid(scores, scores.primary)))
    notes = "".join(f"<li>{escape(note)}</li>" for note in scores.notes)
    return "".join([*parts, f"<ul>{notes}</ul>"])


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def metric_grid(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a metric with its direction, and its value and interval by model."""
    models = list(scores.values)
    metrics = dict.fromkeys(
        m for model in models if model != CONSTANT for m in scores.values[model]
    )
    rows = []
    for metric in metrics:
        values = (scores.values[model].get(metric) for model in models)
        row = [heading(metric), *("" if v is None else _with_interval(*v) for v in values)]
        rows.append(row)
        if metric.endswith("_LogLoss"):
            skills = (scores.skill.get(model, {}).get(metric) for model in models)
            shown = ["" if skill is None else f"{skill:.4f}" for skill in skills]
            rows.append([f"{metric} skill ↑", *shown])
    return ["metric", *models], rows


def comparison_grid(
    scores: Scores, metrics: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a model's difference from the baseline in some metrics, or in all."""
    rows = [
        [model, heading(metric), *_compared(one)]
        for model, own in scores.comparisons.items()
        for metric, one in own.items()
        if metrics is None or metric in metrics
    ]
    return ["model", "metric", "difference, 95 % interval", "p, corrected", "verdict"], rows


def _compared(one: Compared) -> list[str]:
    difference = one.difference
    p = "" if one.p_adjusted is None else f"{one.p_adjusted:.2g}"
    verdict = one.verdict or ""
    shown = _with_interval(difference.value, difference.low, difference.high)
    return [shown, p, f"{_MARKS.get(verdict, '')} {verdict}".strip()]


def heading(metric: str) -> str:
    """A metric with an arrow for its direction."""
    return f"{metric} {direction(metric)}".strip()


def _with_interval(value: float, low: float, high: float) -> str:
    """A value and its interval in as many decimals: four, more where all of them are small."""
    digits = decimals_of((value, low, high))
    # what is 0 but for rounding has no sign
    shown = [f"{round(number, digits) + 0.0:.{digits}f}" for number in (value, low, high)]
    return shown[0] if math.isnan(low) else f"{shown[0]} ({shown[1]}, {shown[2]})"


def shown_paths(paths: Mapping[str, Path]) -> str:
    """A line a file."""
    return "\n".join(f"{kind:11} {path}" for kind, path in paths.items())
