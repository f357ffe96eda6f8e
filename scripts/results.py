"""Write results/DATASET.md, the leaderboard's models on a data set, each tuned; and leaderboard.md.

The rows are scripts/results/leaderboard.yaml, with the true probabilities where they are known
(leaderboard-truth.yaml), or those of a data set that isn't on the leaderboard
scripts/results/DATASET-rows.yaml; a data set's settings are scripts/results/DATASET.yaml, and
scripts/results/DATASET.md is what stands above its table. The comparison is a benchmark, so
that what is finished isn't run again.

    python scripts/results.py ml-100k --jobs=2
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from pathlib import Path

import leaderboard
from pages import data_table, finished_report
from reference_rows import TRUTH as TRUTH_KNOWN

from recbole_escm2.output import versions, write_whole

HERE = Path(os.path.relpath(Path(__file__).parent)) / "results"
#: Of each data set of the leaderboard, which is the same with a row more where the truth is known.
BENCHMARKS = {
    dataset: HERE / f"leaderboard{'-truth' * known}.yaml" for dataset, known in TRUTH_KNOWN.items()
}
#: Data sets with rows of their own.
OTHERS = ("coat",)
PAGE = """\
# {title}

Written by `python scripts/results.py {dataset}`, from the benchmark

```bash
{command}
```

{above}
{table}

All numbers, with intervals and p values, are in [table.csv]({dataset}/table.csv).

![Means and 95 % intervals]({dataset}/metrics.png)

## The data, as the first seed splits it

{data}

Versions: {versions}.
"""


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=[*leaderboard.DATASETS, *OTHERS])
    parser.add_argument("--quick", action="store_true", help="a try of everything, in minutes")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    dataset = arguments.dataset
    pages = arguments.output / "results" if arguments.quick else Path("results")
    options_of_run = {
        "benchmark": str(BENCHMARKS.get(dataset, HERE / f"{dataset}-rows.yaml")),
        "dataset": dataset,
        "config_files": str(HERE / f"{dataset}.yaml"),
    }
    quick = {"seeds": "2", "trials": "2", "epochs": "1", "impression_sample": "0.02"}
    options_of_run |= quick if arguments.quick else {}
    report, folder = finished_report(
        {
            **options_of_run,
            "name": f"results-{dataset}{'-quick' if arguments.quick else ''}",
            "output_dir": str(arguments.output),
            "jobs": str(arguments.jobs),
        }
    )
    beside = pages / dataset
    beside.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "figures" / "metrics.png", beside / "metrics.png")
    shutil.copyfile(folder / "table.csv", beside / "table.csv")
    heading, above = (HERE / f"{dataset}.md").read_text(encoding="utf-8").split("\n", 1)
    shown = (folder / "report.md").read_text(encoding="utf-8")
    options = [f"--{key}={Path(value).as_posix()}" for key, value in options_of_run.items()]
    page = PAGE.format(
        title=heading.removeprefix("# "),
        dataset=dataset,
        command=shlex.join(["python", "run_recbole_escm2.py", *options]),
        above=above.strip() + "\n",
        table=shown[shown.index("\n|") :].partition("\n\n!")[0].strip(),
        data=data_table({dataset: report}),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    write_whole(pages / f"{dataset}.md", page)
    print(f"written to {pages / f'{dataset}.md'}")
    if not arguments.quick:
        leaderboard.refresh()


if __name__ == "__main__":
    main()
