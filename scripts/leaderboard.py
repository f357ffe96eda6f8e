"""Write README's leaderboard from the tables of results/, results/DATASET/table.csv.

python scripts/leaderboard.py           # done by scripts/results.py as well
python scripts/leaderboard.py --check   # whether README has it as the tables say
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from pages import markdown

from recbole_escm2.benchmark.tables import MARKS
from recbole_escm2.output import write_whole

#: What is shown of each data set.
DATASETS = {
    "ml-100k": ("CTCVR_AUC", "CVR_AUC"),
    "ml-100k-semi": ("CTCVR_AUC", "CVR_AUC_ES", "IEB"),
    "ali-ccp-sim": ("CTCVR_AUC", "CVR_AUC_ES", "IEB"),
}
_BLOCK = re.compile(
    r"(<!-- leaderboard[^>]*-->\n).*?(\n<!-- end of the leaderboard -->)", re.DOTALL
)


def leaderboard(results: Path) -> str:
    """The table, in the order of the mean rank in CTCVR_AUC over the data sets."""
    files = {dataset: results / dataset / "table.csv" for dataset in DATASETS}
    tables = {dataset: _read(file) for dataset, file in files.items() if file.is_file()}
    labels = list(dict.fromkeys(label for table in tables.values() for label, _ in table))
    columns = [(dataset, metric) for dataset in tables for metric in DATASETS[dataset]]
    ranks = {
        label: statistics.mean(_rank(table, label, "CTCVR_AUC") for table in tables.values())
        for label in labels
    }
    rows = [
        [label, *(_cell(tables[dataset].get((label, metric))) for dataset, metric in columns)]
        for label in sorted(labels, key=ranks.__getitem__)
    ]
    header = ["model", *(f"{dataset} {metric}" for dataset, metric in columns)]
    return markdown(header, rows)


def refresh(
    readme: Path = Path("README.md"), results: Path = Path("results"), write: bool = True
) -> bool:
    """Write the table into README; whether that changes it."""
    before = readme.read_text(encoding="utf-8")
    after, found = _BLOCK.subn(lambda m: m[1] + leaderboard(results) + m[2], before)
    assert found == 1, f"{readme} must have one leaderboard"
    if write and after != before:
        write_whole(readme, after)
    return after != before


def _read(table: Path) -> dict[tuple[str, str], Mapping[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("aa") != "True"]
    return {(row["row"], row["metric"]): row for row in rows}


def _rank(table: Mapping[tuple[str, str], Mapping[str, str]], label: str, metric: str) -> int:
    means = {row: float(cell["mean"]) for (row, name), cell in table.items() if name == metric}
    return 1 + sum(mean > means[label] for mean in means.values())


def _cell(cell: Mapping[str, str] | None) -> str:
    """The mean and half of its 95 % interval, marked where it differs from the baseline."""
    if cell is None or not cell["mean"]:
        return ""
    half = f" ± {(float(cell['high']) - float(cell['low'])) / 2:.4f}" if cell["low"] else ""
    mark = MARKS.get(cell["verdict"], "")
    return f"{float(cell['mean']):.4f}{half} {mark}".rstrip()


def main() -> int:
    """Write it, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    changes = refresh(write=not arguments.check)
    if not arguments.check:
        print("README.md has changed" if changes else "README.md is as it was")
    elif changes:
        print("README.md: the leaderboard isn't what results/ says: python scripts/leaderboard.py")
    return int(arguments.check and changes)


if __name__ == "__main__":
    sys.exit(main())
