"""Scores as one HTML page that holds all it needs, and asks no network for anything."""

from __future__ import annotations

from collections.abc import Iterator

from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.report.figures import TASKS, calibration, png, row_groups
from recbole_escm2.report.page import embedded, render
from recbole_escm2.scoring.score import CONSTANT, Scores
from recbole_escm2.scoring.show import comparison_grid, metric_grid


def page(found: Scores) -> str:
    """The page of scores."""
    models = [name for name in found.values if name != CONSTANT]
    counted = ", ".join(f"{number:,} {name}" for name, number in found.counts.items())
    compared = bool(found.comparisons)
    return render(
        "score.html",
        title=f"Scores of {', '.join(models)}",
        summary=f"{len(models)} model{'s' * (len(models) > 1)} on {counted}.",
        scores=found,
        metrics=metric_grid(found),
        comparison=comparison_grid(found, found.primary) if compared else None,
        all=comparison_grid(found),
        pictures=list(_pictures(found)),
    )


def _pictures(found: Scores) -> Iterator[tuple[str, int, str]]:
    """Calibration by space: description, width in CSS pixels, and the image as base64."""
    rows = [Row(label=name, model=name, settings={}) for name in found.curves]
    results = {
        (name, 0): {"test_result": dict(found.values[name]), "calibration": curves}
        for name, curves in found.curves.items()
    }
    study = Study("", "", "", rows, [0], found.baseline, (), results)
    for task, what in TASKS.items():
        for labels in row_groups(study):
            figure = calibration(study, task, labels)
            if figure is not None:
                description = f"Calibration of {', '.join(labels)}: {what}"
                yield (description, *embedded(png(figure)))
