"""Write results/defaults.md: what each option of training and form does alone, on four data sets.

An option is a benchmark, ``scripts/defaults/OPTION.yaml``, run on each data set by the benchmark
command with trials for the learning rate of every row, so that what is finished isn't run again.

    python scripts/defaults.py run l2 coat --output=output    # or go on with it
    python scripts/defaults.py collect --output=output        # results/defaults/*.csv from reports
    python scripts/defaults.py page                           # results/defaults.md from those
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from recbole_escm2.report.command import benchmark

HERE = Path(os.path.relpath(Path(__file__).parent)) / "defaults"
OPTIONS = sorted(file.stem for file in HERE.glob("*.yaml"))
#: What is set for all rows on a data set; elsewhere the defaults of a first run.
DATASETS: dict[str, dict[str, str]] = {
    "ml-100k": {"impression_sample": "0.1"},
    "ml-100k-semi": {"impression_sample": "0.1"},
    "ali-ccp-sim": {"simulation_seed": "2022"},
    "coat": {},
}


def run(option: str, dataset: str, arguments: argparse.Namespace) -> int:
    """The benchmark of an option on a data set, or what is missing of it; its exit code."""
    options = {
        "benchmark": str(HERE / f"{option}.yaml"),
        "dataset": dataset,
        "name": _name(option, dataset),
        "output_dir": str(arguments.output),
        "jobs": str(arguments.jobs),
        **DATASETS[dataset],
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    return benchmark(options, ["python", "run_recbole_escm2.py", *words])


def _name(option: str, dataset: str) -> str:
    return f"defaults-{option}-{dataset}"


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="what is missing of an option on a data set")
    running.add_argument("option", choices=OPTIONS)
    running.add_argument("dataset", choices=DATASETS)
    running.add_argument("--jobs", type=int, default=1, help="runs at once")
    running.add_argument("--output", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    return run(arguments.option, arguments.dataset, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
