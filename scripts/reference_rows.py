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
#: Whether the truth of a data set is known.
TRUTH = {"ml-100k": False, "ml-100k-semi": True, "ali-ccp-sim": True}
#: The data sets of each page, and its number of seeds.
PAGES = {**{dataset: ((dataset,), 5) for dataset in TRUTH}, "claims": (tuple(TRUTH)[1:], 10)}
COLUMNS = ("CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CTCVR_LogLoss", "CVR_AUC_ES", "CVR_MAE_ES", "IEB")
SHARES = ("CTCVR_AUC", "CVR_AUC_ES")
HEADING = "## Reference rows"
SECTION = """\
{heading}

Written by `python scripts/reference_rows.py {page}`. Means ± standard deviations over seeds, those
of the tables above. Rows as they are, but for the penalty of LogisticRegression and the number of
LightGBM's trees, which validation chooses. No verdict is made about them.{lift}

{tables}

Versions: {versions}.
"""
TABLE = """\
{name}{seeds} seeds, from the benchmark

```bash
{command}
```

{table}{simulated}
"""
LIFT = (
    " Share of lift: how far a mean is on the way from Constant (0 %) to Oracle (100 %), the true "
    "probabilities."
)


def section(page: str, arguments: argparse.Namespace) -> str:
    """Run what is missing, and the section of a page."""
    datasets, seeds = PAGES[page]
    return SECTION.format(
        heading=HEADING,
        page=page,
        lift=LIFT if any(TRUTH[dataset] for dataset in datasets) else "",
        tables="\n".join(
            _of_dataset(page, d, seeds, arguments).rstrip() + "\n" for d in datasets
        ).strip(),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )


def _of_dataset(page: str, dataset: str, seeds: int, arguments: argparse.Namespace) -> str:
    rows = (*ROWS, *(("Oracle",) if TRUTH[dataset] else ()))
    shown = {
        "model": ",".join(rows),
        "dataset": dataset,
        "config_files": str(HERE / f"{dataset}.yaml"),
        "seeds": str(seeds),
        "aa_row": "False",
        "baseline": "Constant",
        "columns": ",".join(COLUMNS),
    }
    name = f"reference-{dataset}" if page == dataset else f"reference-{page}-{dataset}"
    places = {"name": name, "output_dir": str(arguments.output)}
    report, _ = finished_report({**shown, **places, "jobs": str(arguments.jobs)})
    options = [f"--{key}={Path(value).as_posix()}" for key, value in shown.items()]
    return TABLE.format(
        name="" if page == dataset else f"### {dataset}\n\n",
        seeds=len(report["seeds"]),
        command=shlex.join(["python", "run_recbole_escm2.py", *options]),
        table=table(report),
        simulated=f"\n\n{report['simulated']}" if report["simulated"] else "",
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
    before = earlier or re.search(r"^## The data, |^## d: ", page, re.MULTILINE)
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
    parser.add_argument("page", nargs="*", help=f"by default {', '.join(PAGES)}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    if unknown := set(arguments.page) - PAGES.keys():
        parser.error(f"{unknown.pop()} is no such page; {', '.join(PAGES)} are")
    for page in arguments.page or PAGES:
        file = Path("results") / f"{page}.md"
        own = section(page, arguments)
        write_whole(file, with_section(file.read_text(encoding="utf-8"), own))
        print(f"written to {file}")


if __name__ == "__main__":
    main()
