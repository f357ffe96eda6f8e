"""Metrics for people and for scripts: a table, what it is over, and a line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from recbole_escm2.metric_names import ALL_TASKS, RANDOM_IMPRESSIONS, is_per_user, task_of
from recbole_escm2.output import table

if TYPE_CHECKING:
    from recbole_escm2.evaluator.evaluator import MetricResult


def metric_table(result: MetricResult, decimals: int = 4) -> str:
    """Metrics as rows and tasks as columns."""
    return table(*metric_rows(result, decimals))


def metric_rows(result: MetricResult, decimals: int = 4) -> tuple[list[str], list[list[str]]]:
    """The same as a header and rows."""
    cells = metric_cells(result)
    columns = [task for task in _COLUMNS if any(task in row for row in cells.values())]
    rows = [
        [name, *(f"{row[task]:.{decimals}f}" if task in row else "" for task in columns)]
        for name, row in cells.items()
    ]
    return ["metric", *columns], rows


_COLUMNS = (*(task.upper() for task in ALL_TASKS), "predict()")


def metric_cells(result: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Values by metric without its task, and by task; ``predict()`` is RecBole's metrics' one."""
    cells: dict[str, dict[str, float]] = {}
    for name, value in result.items():
        task, _, statistic = name.partition("_")
        if task not in _COLUMNS:
            task, statistic = (task_of(name) or "").upper() or _COLUMNS[-1], name
        cells.setdefault(statistic, {})[task] = value
    return cells


_NOT_OF_CLICKS = ("_ES", "_Gap", "_CRR", "_CRR_True")


_TRUTHS = (("IEB", "IEB"), ("PIP", "PIP (also called FIP)"))  # metrics against a truth


def scope_notes(metrics: Iterable[str]) -> list[str]:
    """Which rows the metrics of these names are over, as sentences."""
    names = list(metrics)
    notes = []
    if any(name.startswith(("CTR_", "CTCVR_")) for name in names):
        notes.append("CTR and CTCVR: over all impressions.")
    if any(name.startswith("CVR_") and not name.endswith(_NOT_OF_CLICKS) for name in names):
        notes.append("CVR: over the clicked impressions, a sample that clicks have selected.")
    if any(name.endswith(RANDOM_IMPRESSIONS) for name in names):
        notes.append("…_RI: these impressions were drawn at random, clicks on them weren't.")
    if any(is_per_user(name) and "GAUC" in name for name in names):
        notes.append(
            "GAUC: users weighted by impressions; RecBole's own GAUC weights by positives."
        )
    entire = ["CVR …_ES"] if any(name.endswith("_ES") for name in names) else []
    entire += [shown for name, shown in _TRUTHS if name in names]
    if entire:
        listed = " and ".join(filter(None, [", ".join(entire[:-1]), entire[-1]]))
        notes.append(f"{listed}: over all impressions, against their potential outcomes.")
    return notes


def metric_lines(result: MetricResult) -> str:
    """One ``NAME: value`` line a metric, for scripts."""
    return "\n".join(f"{name}: {value:.6f}" for name, value in result.items())
