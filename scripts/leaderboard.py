"""Write results/leaderboard.md from the tables beside it, results/DATASET/table.csv.

python scripts/leaderboard.py           # done by scripts/results.py as well
python scripts/leaderboard.py --check   # whether it is as the tables say
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from pages import markdown

from recbole_escm2.output import write_whole
from recbole_escm2.report.layout import MARKS

#: What is shown of each data set.
DATASETS = {
    "ml-100k": ("CTCVR_AUC", "CVR_AUC"),
    "ml-100k-semi": ("CTCVR_AUC", "CVR_AUC_ES", "IEB"),
    "ali-ccp-sim": ("CTCVR_AUC", "CVR_AUC_ES", "IEB"),
}
#: How a page begins, after its title, whose verdicts are withdrawn.
SUPERSEDED = "> **Superseded.**"
PAGE = """\
# The leaderboard: all data sets side by side

{superseded}Written by `python scripts/leaderboard.py` from the tables of {pages}.
Cells are means ± half of the 95 % interval{marked}. Rows are in the order of their mean rank in
CTCVR_AUC on the pages that have them, which is mostly chance. CVR_AUC is over clicks; CVR_AUC_ES
and IEB (target 0) are over all impressions against the truth.

{table}
"""


def leaderboard(results: Path) -> str:
    """The page; its rows are in the order of the mean rank in CTCVR_AUC over their data sets."""
    files = {dataset: results / dataset / "table.csv" for dataset in DATASETS}
    tables = {dataset: _read(file) for dataset, file in files.items() if file.is_file()}
    old = [d for d in tables if SUPERSEDED in (results / f"{d}.md").read_text(encoding="utf-8")]
    labels = list(dict.fromkeys(label for table in tables.values() for label, _ in table))
    columns = [(dataset, metric) for dataset in tables for metric in DATASETS[dataset]]
    ranks = {
        label: statistics.mean(
            _rank(table, label, "CTCVR_AUC")
            for table in tables.values()
            if (label, "CTCVR_AUC") in table
        )
        for label in labels
    }
    rows = [
        [label, *(_cell(tables[d].get((label, metric)), d not in old) for d, metric in columns)]
        for label in sorted(labels, key=ranks.__getitem__)
    ]
    links = {dataset: f"[{dataset}]({dataset}.md)" for dataset in tables}
    note = (
        f"{SUPERSEDED} The pages of {', '.join(links[d] for d in old)} say why. Their verdicts are "
        "left out\n> here, and their intervals are too narrow.\n\n"
    )
    verdicts = f", {MARKS['better']} better and {MARKS['worse']} worse than the baseline"
    return PAGE.format(
        superseded=note if old else "",
        pages=", ".join(links.values()),
        marked=verdicts if len(old) < len(tables) else "",
        table=markdown(["model", *(f"{dataset} {metric}" for dataset, metric in columns)], rows),
    )


def refresh(results: Path = Path("results"), write: bool = True) -> bool:
    """Write the page; whether that changes it."""
    page = results / "leaderboard.md"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    after = leaderboard(results)
    if write and after != before:
        write_whole(page, after)
    return after != before


def _read(table: Path) -> dict[tuple[str, str], Mapping[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("aa") != "True"]
    return {(row["row"], row["metric"]): row for row in rows}


def _rank(table: Mapping[tuple[str, str], Mapping[str, str]], label: str, metric: str) -> int:
    means = {row: float(cell["mean"]) for (row, name), cell in table.items() if name == metric}
    return 1 + sum(mean > means[label] for mean in means.values())


def _cell(cell: Mapping[str, str] | None, marked: bool) -> str:
    """The mean and half of its 95 % interval, marked where it differs from the baseline."""
    if cell is None or not cell["mean"]:
        return ""
    half = f" ± {(float(cell['high']) - float(cell['low'])) / 2:.4f}" if cell["low"] else ""
    mark = MARKS.get(cell["verdict"], "") if marked else ""
    return f"{float(cell['mean']):.4f}{half} {mark}".rstrip()


def main() -> int:
    """Write it, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    changes = refresh(write=not arguments.check)
    if not arguments.check:
        print("the leaderboard has changed" if changes else "the leaderboard is as it was")
    elif changes:
        print("results/leaderboard.md isn't what the tables say: python scripts/leaderboard.py")
    return int(arguments.check and changes)


if __name__ == "__main__":
    sys.exit(main())
