"""Write results/DATASET.md: models compared on a data set, as scripts/results/DATASET.yaml says.

The comparison is a benchmark, so that what is finished isn't run again. scripts/results/DATASET.md
is what stands above its table.

    python scripts/results.py ml-100k
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from pages import data_table, finished_report

from recbole_escm2.output import versions, write_whole

HERE = Path(__file__).parent / "results"
PAGE = """\
# {title}

Written by `python scripts/results.py {dataset}`, from the benchmark
`run_recbole_escm2.py --benchmark=scripts/results/{dataset}.yaml`.

{above}
{table}

![Means and 95 % intervals]({figures}/metrics.png)

## The data, as the first seed splits it

{data}

Versions: {versions}.
"""


def main() -> None:
    """Run what is missing and write the page."""
    known = sorted(file.stem for file in HERE.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=known)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--pages", type=Path, default=Path("results"), help="the page's folder")
    arguments = parser.parse_args()
    dataset = arguments.dataset
    report, folder = finished_report(
        {
            "benchmark": str(HERE / f"{dataset}.yaml"),
            "name": f"results-{dataset}",
            "output_dir": str(arguments.output),
            "jobs": str(arguments.jobs),
        }
    )
    pictures = arguments.pages / dataset
    pictures.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "figures" / "metrics.png", pictures / "metrics.png")
    heading, above = (HERE / f"{dataset}.md").read_text(encoding="utf-8").split("\n", 1)
    shown = (folder / "report.md").read_text(encoding="utf-8")
    table = shown[shown.index("\n|") :].partition("\n\n!")[0].strip()
    page = PAGE.format(
        title=heading.removeprefix("# "),
        dataset=dataset,
        above=above.strip() + "\n",
        table=table,
        figures=dataset,
        data=data_table({dataset: report}),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    write_whole(arguments.pages / f"{dataset}.md", page)
    print(f"written to {arguments.pages / f'{dataset}.md'}")


if __name__ == "__main__":
    main()
