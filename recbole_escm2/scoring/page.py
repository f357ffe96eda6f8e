"""Scores as one HTML page that holds all it needs, and asks no network for anything."""

from __future__ import annotations

from collections.abc import Iterator

from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.report.figures import TASKS, calibration, png, row_groups
from recbole_escm2.report.page import embedded, render
from recbole_escm2.scoring.score import CONSTANT, Scores
from recbole_escm2.scoring.show import comparison_grid, metric_grid


def page(scores: Scores) -> str:
    """The page of scores."""
    models = [name for name in scores.values if name != CONSTANT]
    counted = ", ".join(f"{number:,} {name}" for name, number in scores.counts.items())
    compared = bool(scores.comparisons)
    return render(
        "score.html",
        title=f"Scores of {', '.join(models)}",
        summary=f"{len(models)} model{'s' * (len(models) > 1)} on {counted}.",
        scores=scores,
        metrics=metric_grid(scores),
        comparison=comparison_grid(scores, scores.primary) if compared else None,
        all=comparison_grid(scores),
        pictures=list(_pictures(scores)),
    )


def _pictures(scores: Scores) -> Iterator[tuple[str, int, str]]:
    """Calibration by space: description, width in CSS pixels, and the image as base64."""
    rows = [Row(label=name, model=name, settings={}) for name in scores.curves]
    results = {
        (name, 0): {"test_result": dict(scores.values[name]), "calibration": curves}
        for name, curves in scores.curves.items()
    }
    study = Study("", "", "", rows, [0], scores.baseline, (), results)
    for task, what in TASKS.items():
        for labels in row_groups(study):
            figure = calibration(study, task, labels)
            if figure is not None:
                description = f"Calibration of {', '.join(labels)}: {what}"
                yield (description, *embedded(png(figure)))
