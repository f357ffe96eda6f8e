"""Put a section "Reference rows" on result pages: what every model has to beat, on the page's data.

    python scripts/reference_rows.py                  # all pages
    python scripts/reference_rows.py ml-100k --jobs=2

The rows are the base rates of train, a logistic regression, trees, and, where the truth is known,
the true probabilities; each as it is, with the settings that the page's other rows share and with
its seeds (scripts/results/DATASET.yaml and leaderboard.yaml). No test is made: there is no verdict
about them. It is a benchmark, so that what is finished isn't run again.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import finished_report, markdown

from recbole_escm2.output import versions, write_whole

HERE = Path(os.path.relpath(Path(__file__).parent)) / "results"
ROWS = ("Constant", "LogisticRegression", "LightGBM")
#: The data sets that have a page, and whether its truth is known.
DATASETS = {"ml-100k": False, "ml-100k-semi": True, "ali-ccp-sim": True}
COLUMNS = ("CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CTCVR_LogLoss", "CVR_AUC_ES", "CVR_MAE_ES", "IEB")
SHARES = ("CTCVR_AUC", "CVR_AUC_ES")
SEEDS = 5
HEADING = "## Reference rows"
SECTION = """\
{heading}

Written by `python scripts/reference_rows.py {dataset}`, from the benchmark

```bash
{command}
```

{table}

Means ± standard deviations over {seeds} seeds, those of the table above, with their splits. Rows as
they are, but for the penalty of LogisticRegression and the number of LightGBM's trees, which
validation chooses. No verdict is made about them.{lift}{simulated}

Versions: {versions}.
"""
LIFT = (
    " Share of lift: how far a mean is on the way from Constant (0 %) to Oracle (100 %), the true "
    "probabilities."
)


def section(dataset: str, arguments: argparse.Namespace) -> str:
    """Run what is missing, and the section of a data set's page."""
    rows = (*ROWS, *(("Oracle",) if DATASETS[dataset] else ()))
    shown = {
        "model": ",".join(rows),
        "dataset": dataset,
        "config_files": str(HERE / f"{dataset}.yaml"),
        "seeds": str(SEEDS),
        "aa_row": "False",
        "baseline": "Constant",
        "columns": ",".join(COLUMNS),
    }
    places = {"name": f"reference-{dataset}", "output_dir": str(arguments.output)}
    report, _ = finished_report({**shown, **places, "jobs": str(arguments.jobs)})
    options = [f"--{key}={Path(value).as_posix()}" for key, value in shown.items()]
    return SECTION.format(
        heading=HEADING,
        dataset=dataset,
        command=shlex.join(["python", "run_recbole_escm2.py", *options]),
        table=table(report),
        seeds=len(report["seeds"]),
        lift=LIFT if DATASETS[dataset] else "",
        simulated=f" {report['simulated']}" if report["simulated"] else "",
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )


def table(report: Mapping[str, Any]) -> str:
    """Means and standard deviations of the metrics that a row has, and shares of the lift."""
    rows = report["rows"]
    metrics = [m for m in COLUMNS if any(m in row["metrics"] for row in rows)]
    shares = [m for m in SHARES if any(m in row["share_of_lift"] for row in rows)]
    header = ["model", *metrics, *(f"{metric}, share of lift" for metric in shares)]
    lines = [
        [
            row["label"],
            *(_cell(row["metrics"].get(metric)) for metric in metrics),
            *(_share(row["share_of_lift"].get(metric)) for metric in shares),
        ]
        for row in rows
    ]
    return markdown([name.replace("_", "\\_") for name in header], lines)


def _cell(numbers: Mapping[str, Any] | None) -> str:
    return f"{numbers['mean']:.4f} ± {numbers['std']:.4f}" if numbers else ""


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def with_section(page: str, own: str) -> str:
    """A page with the section in the place of an earlier one, else before the data's."""
    earlier = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    before = earlier or re.search(r"^## The data, ", page, re.MULTILINE)
    start, end = (
        (before.start(), earlier.end() if earlier else before.start())
        if before
        else (
            len(page),
            len(page),
        )
    )
    return f"{page[:start].rstrip()}\n\n{own.strip()}\n\n{page[end:].lstrip()}".rstrip() + "\n"


def main() -> None:
    """Run what is missing and write the sections."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", nargs="*", help=f"by default {', '.join(DATASETS)}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    if unknown := set(arguments.dataset) - DATASETS.keys():
        parser.error(f"{unknown.pop()} has no such page; {', '.join(DATASETS)} have")
    for dataset in arguments.dataset or DATASETS:
        page = Path("results") / f"{dataset}.md"
        own = section(dataset, arguments)
        write_whole(page, with_section(page.read_text(encoding="utf-8"), own))
        print(f"written to {page}")


if __name__ == "__main__":
    main()
