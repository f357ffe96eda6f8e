"""Tables of a real ESMM against itself, and the share of them that see a difference.

    python scripts/null_tables.py ml-100k --tables=100 --jobs=2

Each table is a benchmark of ESMM with seeds that no other table has, and its A/A row: ESMM again on
the same splits with other initial weights. What is finished isn't run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pages import finished_report

from recbole_escm2.experiment.statistics import ALPHA

#: What makes a data set small enough for a hundred tables.
SMALL = {
    "ml-100k": {"impression_sample": "0.01", "train_batch_size": "512"},
    "ali-ccp-sim": {"impression_sample": "0.05", "train_batch_size": "512"},
}


def table(dataset: str, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row that is the baseline again, of a table of its own seeds."""
    first = 1 + number * arguments.seeds
    options = {
        "model": "ESMM",
        "dataset": dataset,
        "seeds": str(list(range(first, first + arguments.seeds))),
        "aa_row": "True",
        "epochs": str(arguments.epochs),
        "name": f"null-{dataset}-{number}",
        "output_dir": str(arguments.output),
        "jobs": str(arguments.jobs),
        **SMALL[dataset],
    }
    report, _ = finished_report(options)
    (again,) = (row for row in report["rows"] if row["aa"])
    primary = [again["metrics"][metric] for metric in report["primary"]]
    return {"draws": report["seed_draws"], "verdicts": [found["verdict"] for found in primary]}


def main() -> None:
    """Make the tables and say how many see what isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=SMALL)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5, help="of a table")
    parser.add_argument("--epochs", type=int, default=20, help="at most")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    found = [table(arguments.dataset, n, arguments) for n in range(arguments.tables)]
    tested = [one for one in found if None not in one["verdicts"]]
    wrong = sum(any(v != "undecided" for v in one["verdicts"]) for one in tested)
    draws = ", ".join(sorted({one["draws"] for one in found}))
    print(
        f"{arguments.dataset} ({draws}): {wrong} of {len(tested)} tables of ESMM against itself, "
        f"{arguments.seeds} seeds each, have a verdict; {ALPHA:.0%} may. "
        f"{len(found) - len(tested)} could not be tested."
    )


if __name__ == "__main__":
    main()
