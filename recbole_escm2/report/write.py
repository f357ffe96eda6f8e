"""Write all that a study is shown as into one folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recbole_escm2.experiment.study import Study
from recbole_escm2.output import write_json, write_whole
from recbole_escm2.report import groups, tables
from recbole_escm2.report.page import drawn, page
from recbole_escm2.report.record import RUNS_FILE, write_record


def report(study: Study, folder: str | Path) -> dict[str, Path]:
    """Write a study's page, tables, data and pictures; files of the same names are replaced.

    Args:
        study: what is shown; it may be unfinished.
        folder: where to; made if it isn't there.

    Returns:
        The paths by what they hold: ``html``, ``markdown``, ``latex``, ``text``, ``csv`` (a line
        a row and metric), ``runs`` (a line a run), ``trials`` (a line a trial, where rows were
        tuned), ``groups`` (a line a row, group and metric, where there are groups), ``record`` (a
        line a run, trials too, of which the tables are made again), ``json`` (everything), and
        ``figures/NAME``.
    """
    target = Path(folder)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    images = drawn(study)
    for picture, image in images:
        paths[f"figures/{picture.name}"] = path = target / "figures" / f"{picture.name}.png"
        write_whole(path, image)
    described = {picture.description: f"figures/{picture.name}.png" for picture, _ in images}
    texts: dict[str, tuple[str, Callable[[], str]]] = {
        "markdown": ("report.md", lambda: tables.markdown(study, described)),
        "latex": ("table.tex", lambda: tables.latex(study)),
        "text": ("table.txt", lambda: tables.text(study) + "\n"),
        "csv": ("table.csv", lambda: tables.tidy_csv(study)),
        "runs": ("runs.csv", lambda: tables.runs_csv(study)),
        "html": ("report.html", lambda: page(study, images)),
    }
    if (tuning := study.tuning) is not None:
        texts["trials"] = ("trials.csv", lambda: tables.trials_csv(tuning))
    if groups.groupings(study):
        texts["groups"] = ("groups.csv", lambda: groups.csv(study))
    for kind, (name, text) in texts.items():
        paths[kind] = target / name
        write_whole(paths[kind], text())
    write_record(study, target / "record")
    paths["record"] = target / "record" / RUNS_FILE
    paths["json"] = target / "report.json"
    write_json(paths["json"], tables.as_json(study))
    return paths
