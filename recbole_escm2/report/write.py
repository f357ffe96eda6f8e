"""Write all that a study is shown as into one folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from recbole_escm2.experiment.study import Study
from recbole_escm2.output import write_json, write_whole
from recbole_escm2.report import figures, tables
from recbole_escm2.report.page import page


def report(study: Study, folder: str | Path) -> dict[str, Path]:
    """Write a study's page, tables, data and pictures; files of the same names are replaced.

    Args:
        study: what is shown; it may be unfinished.
        folder: where to; made if it isn't there.

    Returns:
        The paths by what they hold: ``html``, ``markdown``, ``latex``, ``text``, ``csv`` (a line
        a row and metric), ``runs`` (a line a run), ``trials`` (a line a trial, where rows were
        tuned), ``json`` (everything), and ``figures/NAME``.
    """
    target = Path(folder)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    described: dict[str, str] = {}
    for name, description, draw in _pictures(study):
        figure = draw()
        if figure is not None:
            path = target / "figures" / f"{name}.png"
            write_whole(path, figures.png(figure))
            paths[f"figures/{name}"] = path
            described[description] = f"figures/{name}.png"
    texts: dict[str, tuple[str, Callable[[], str]]] = {
        "markdown": ("report.md", lambda: tables.markdown(study, described)),
        "latex": ("table.tex", lambda: tables.latex(study)),
        "text": ("table.txt", lambda: tables.text(study) + "\n"),
        "csv": ("table.csv", lambda: tables.tidy_csv(study)),
        "runs": ("runs.csv", lambda: tables.runs_csv(study)),
        "html": ("report.html", lambda: page(study)),
    }
    if (tuning := study.tuning) is not None:
        texts["trials"] = ("trials.csv", lambda: tables.trials_csv(tuning))
    for kind, (name, text) in texts.items():
        paths[kind] = target / name
        write_whole(paths[kind], text())
    paths["json"] = target / "report.json"
    write_json(paths["json"], tables.as_json(study))
    return paths


def _pictures(study: Study) -> Iterator[tuple[str, str, Callable[[], Figure | None]]]:
    """Name, description and drawing of each picture that a study may have."""
    yield "metrics", "Means and 95 % intervals of all metrics", partial(figures.dots, study)
    for key in dict.fromkeys(key for row in study.rows for key in row.swept):
        name = re.sub(r"\W", "_", key)
        yield f"sweep-{name}", f"Metrics against {key}", partial(figures.sweep, study, key)
    groups = figures.row_groups(study)
    for n, rows in enumerate(groups, start=1):
        end = f"-{n}" if len(groups) > 1 else ""
        of = f" of {', '.join(map(tables.one_line, rows))}" if end else ""
        yield f"learning{end}", f"Learning{of}", partial(figures.learning_curves, study, rows)
        for task, what in figures.TASKS.items():
            draw = partial(figures.calibration, study, task, rows)
            yield f"calibration-{task}{end}", f"Calibration{of}: {what}", draw
        yield f"overlap{end}", f"pCTR by click{of}", partial(figures.overlap, study, rows)
        yield f"weights{end}", f"Weights{of}", partial(figures.weights, study, rows)
