"""What the scripts that write result pages share: a benchmark's report, and tables of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_escm2.experiment.study import Study
from recbole_escm2.quick_start import run
from recbole_escm2.report.command import benchmark


def finished_report(options: Mapping[str, str], **places: str) -> tuple[Mapping[str, Any], Path]:
    """Run a benchmark, or what is missing of it: what its report holds, and its folder.

    Args:
        options: as on the command line.
        places: further options that the command of the report doesn't show; with ``name`` and
            ``output_dir`` where they aren't among the others.

    Raises:
        SystemExit: a run failed, or the benchmark was stopped.
    """
    words = [f"--{key}={Path(value).as_posix()}" for key, value in options.items()]
    options = {**options, **places}
    code = benchmark(options, ["python", "run_recbole_escm2.py", *words])
    if code:
        raise SystemExit(code)
    folder = Path(options["output_dir"]) / options["name"]
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), folder


def cheapest(study: Study) -> tuple[str, int]:
    """Label and seed of the learner's run that took the least time."""
    learners = [row.label for row in study.rows if not row.aa and row.label not in study.bounds]
    runs = {key: run["seconds"] for key, run in study.results.items() if key[0] in learners}
    return min(runs, key=runs.__getitem__)


def repeated(study: Study, label: str, seed: int, places: Mapping[str, Any]) -> dict[str, float]:
    """The primary metrics of a run of a study that is done again, with this code on this data.

    Args:
        study: of a page's runs.
        label: of its row.
        seed: its seed.
        places: config keys of places.
    """
    (model,) = (row.model for row in study.rows if row.label == label)
    settings = {**study.results[label, seed]["settings"], **places, "show_progress": False}
    settings["metrics"] = [*study.primary]
    outcome = run(model, study.dataset, config_dict=settings, saved=False)
    metrics: dict[str, float] = outcome["test_result"]
    return metrics


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers and stand right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def first_data(report: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
    """The counts of each part, as a report's first run has them."""
    counts: Mapping[str, Mapping[str, int]]
    counts = next(iter(report["rows"][0]["runs"].values()))["data"]
    return counts


def data_table(data: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Impressions, clicks and conversions of each part of some data sets."""
    rows = []
    for dataset, parts in data.items():
        for part, counts in parts.items():
            rows.append([f"{dataset}, {part}", *(f"{count:,}" for count in counts.values())])
    return markdown(["part", "impressions", "clicks", "conversions"], rows)
