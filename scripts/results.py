"""Write results/DATASET.md: many models, screened, tuned and compared; and leaderboard.md.

The rows are scripts/results/leaderboard.yaml, with the true probabilities where they are known
(leaderboard-truth.yaml), or coat-rows.yaml; a data set's settings are scripts/results/DATASET.yaml,
and scripts/results/DATASET.md is what stands above its table. The comparison is a benchmark, so
that what is finished isn't run again. Its runs are kept in results/DATASET/ (runs.csv, study.json,
influence.npz where the test set is fixed), and the page is made of them alone.

    python scripts/results.py ml-100k --jobs=2                      # run what is missing
    python scripts/results.py ml-100k --rebuild                     # the page from its runs
    python scripts/results.py ml-100k --check                       # whether the page is that
    python scripts/results.py ml-100k --add=output/mine --row=Mine  # a row of one's own more
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import leaderboard
from pages import data_table, finished_report
from reference_rows import TRUTH as TRUTH_KNOWN

from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.study import Study
from recbole_escm2.output import csv_text, write_whole
from recbole_escm2.report.figures import dots, png
from recbole_escm2.report.record import read_record, with_row, write_record
from recbole_escm2.report.tables import markdown, tidy_lines

HERE = Path(os.path.relpath(Path(__file__).parent)) / "results"
#: Of each page: the same rows, and one more where the truth is known.
BENCHMARKS = {
    dataset: HERE / f"leaderboard{'-truth' * TRUTH_KNOWN[dataset]}.yaml"
    for dataset in leaderboard.DATASETS
} | {"coat": HERE / "coat-rows.yaml"}
PAGE = """\
# {title}

Written by `python scripts/results.py {dataset}`, from the benchmark

```bash
{command}
```

{above}
{table}

All numbers, with intervals and p values, are in [table.csv]({dataset}/table.csv), all runs in
[runs.csv]({dataset}/runs.csv), of which `python scripts/results.py {dataset} --rebuild` makes this
page.

![Means and 95 % intervals]({dataset}/metrics.png)

## The data, as the first seed splits it

{data}

Processor: {processors}. Versions: {versions}.
"""


def options_of(dataset: str, quick: bool) -> dict[str, str]:
    """Of the benchmark, as on the command line."""
    options = {
        "benchmark": str(BENCHMARKS[dataset]),
        "dataset": dataset,
        "config_files": str(HERE / f"{dataset}.yaml"),
    }
    few = {"seeds": "2", "trials": "2", "epochs": "1", "impression_sample": "0.02"}
    few["screen"] = "{settings: 2, rows: 7, keep: [LightGBM, Naive, ESCM2_IPS, ESCM2_DR]}"
    return options | (few if quick else {})


def page_of(dataset: str, study: Study) -> dict[str, str]:
    """The texts that are made of a page's runs, by their path in the folder of pages."""
    heading, above = (HERE / f"{dataset}.md").read_text(encoding="utf-8").split("\n", 1)
    shown = markdown(study)
    runs = list(study.results.values())
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in run["versions"].items()) for run in runs
    )
    page = PAGE.format(
        title=heading.removeprefix("# "),
        dataset=dataset,
        command=study.command,
        above=above.strip() + "\n",
        table=shown[shown.index("\n|") :].rpartition("\n\nMade by")[0].strip(),
        data=data_table({dataset: runs[0]["data"]}),
        processors=" and ".join(dict.fromkeys(str(run["processor"]) for run in runs)),
        versions="; ".join(versions),
    )
    columns, lines = tidy_lines(study)
    rounded = [{key: _rounded(value) for key, value in line.items()} for line in lines]
    return {f"{dataset}.md": page, f"{dataset}/table.csv": csv_text(columns, rounded)}


def _rounded(value: Any) -> Any:
    """In eight digits: the last ones of a double depend on the processor that adds up."""
    return float(f"{value:.8g}") if isinstance(value, float) else value


def rebuild(dataset: str, pages: Path, check: bool = False) -> list[str]:
    """Write a page from its runs, or say in which files it isn't what they say.

    Raises:
        UsageError: the runs aren't there, or can't be read.
    """
    study = read_record(pages / dataset)
    texts = page_of(dataset, study)
    if check:
        return [
            name
            for name, text in texts.items()
            if not (pages / name).is_file() or (pages / name).read_bytes() != text.encode()
        ]
    for name, text in texts.items():
        write_whole(pages / name, text)
    figure = dots(study)
    if figure is not None:
        write_whole(pages / dataset / "metrics.png", png(figure))
    return []


def add(dataset: str, pages: Path, benchmark: Path, row: str | None) -> None:
    """Add a row of a benchmark of one's own to a page's runs.

    Raises:
        UsageError: it doesn't belong there.
    """
    own = read_record(benchmark / "record")
    labels = [one.label for one in own.rows if not one.aa]
    if row is None and len(labels) != 1:
        raise UsageError(f"which row? --row=LABEL, one of {', '.join(labels)}")
    page = with_row(read_record(pages / dataset), own, row or labels[0])
    write_record(page, pages / dataset)


def run(dataset: str, pages: Path, arguments: argparse.Namespace) -> None:
    """Run what is missing of a page's benchmark, and keep its runs."""
    quick = arguments.quick
    _, folder = finished_report(
        options_of(dataset, quick),
        name=f"results-{dataset}{'-quick' if quick else ''}",
        output_dir=str(arguments.output),
        jobs=str(arguments.jobs),
    )
    write_record(read_record(folder / "record"), pages / dataset)


def main() -> int:
    """Do what is asked for, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=BENCHMARKS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="a try of everything, in minutes")
    what.add_argument("--rebuild", action="store_true", help="the page from its runs")
    what.add_argument("--check", action="store_true", help="write nothing; 1 where it differs")
    what.add_argument("--add", type=Path, metavar="FOLDER", help="of a benchmark of your own")
    parser.add_argument("--row", help="that is added")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--pages", type=Path, help="where pages are, by default results/")
    arguments = parser.parse_args()
    dataset, quick = arguments.dataset, arguments.quick
    pages = arguments.pages or (arguments.output / "results" if quick else Path("results"))
    try:
        if arguments.add:
            add(dataset, pages, arguments.add, arguments.row)
        elif not (arguments.rebuild or arguments.check):
            run(dataset, pages, arguments)
        differing = rebuild(dataset, pages, arguments.check)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        print("\n".join(f"{pages / name} isn't what the runs say" for name in differing))
        return int(bool(differing))
    print(f"written to {pages / f'{dataset}.md'}")
    if pages == Path("results"):
        leaderboard.refresh()
    return 0


if __name__ == "__main__":
    sys.exit(main())
