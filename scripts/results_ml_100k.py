"""Write results/ml-100k.md: our models beside DeepFM on ml-100k, over several seeds.

Finished runs are kept in the output folder and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from recbole_escm2.output import table, versions, write_json
from recbole_escm2.quick_start import run

ROWS: list[tuple[str, dict[str, Any]]] = [
    *((model, {}) for model in ("ESMM", "ESCM2_IPS", "ESCM2_DR")),
    *(("DeepFM", {"task": task}) for task in ("ctr", "cvr")),
]
METRICS = [
    "CTR_AUC",
    "CTR_LogLoss",
    "CVR_AUC",
    "CVR_LogLoss",
    "CVR_PCOC",
    "CTCVR_AUC",
    "CTCVR_LogLoss",
]
PAGE = """\
# ml-100k as an entire space

Written by `python scripts/results_ml_100k.py --seeds={seeds}`.

D is all pairs of 943 users and 1,682 items; a click is a rated pair, a conversion a rating of 4 or
more. Test metrics at the best epoch on validation, mean ± standard deviation over {seeds} seeds. A
seed draws the split (80/10/10 at random), which is the same for every row, and the initial weights;
much of the deviation is the split's.

{table}

- Every model has its own defaults (`properties/`, RecBole's for DeepFM), batch 4,096, Adam 1e-3,
  early stopping on {valid}; none was tuned on this data.
- DeepFM learns one task a run. Its CVR row is trained on clicked impressions alone.
- CVR metrics are over the clicked impressions, which clicks have selected: they can't show the bias
  that ESCM² is about. PCOC is mean prediction over mean label.

| split of seed {seed} | impressions | clicks | conversions |
|---|---|---|---|
{data}

Versions: {versions}.
"""


def one_run(folder: Path, model: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The result of a run, from its file if it is finished."""
    name = "-".join([model, *map(str, settings.values()), str(seed)])
    file = folder / f"{name}.json"
    if not file.is_file():
        outcome = run(
            model,
            "ml-100k",
            config_dict={**settings, "seed": seed, "output_dir": str(folder)},
            saved=False,
        )
        write_json(file, json.loads((Path(outcome["run_dir"]) / "result.json").read_text()))
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def cell(results: list[dict[str, Any]], metric: str) -> str:
    """Mean ± standard deviation over seeds, empty where the model doesn't predict the task."""
    values = [r["test_result"][metric] for r in results if metric in r["test_result"]]
    if not values:
        return ""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 2020 on; at least 2")
    parser.add_argument("--output", type=Path, default=Path("output/results-ml-100k"))
    parser.add_argument("--page", type=Path, default=Path("results/ml-100k.md"))
    arguments = parser.parse_args()
    seeds = range(2020, 2020 + arguments.seeds)

    rows = []
    for model, settings in ROWS:
        results = [one_run(arguments.output, model, settings, seed) for seed in seeds]
        name = f"{model} ({settings['task']})" if settings else model
        epochs = statistics.mean(r["epochs"] for r in results)
        rows.append([name, *(cell(results, metric) for metric in METRICS), f"{epochs:.1f}"])
    header = ["model", *METRICS, "epochs"]
    markdown = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    first = one_run(arguments.output, *ROWS[0], seeds[0])
    data = [
        f"| {split} | " + " | ".join(f"{count:,}" for count in counts.values()) + " |"
        for split, counts in first["data"].items()
    ]
    page = PAGE.format(
        seeds=arguments.seeds,
        seed=seeds[0],
        table="\n".join(markdown),
        valid="CTCVR_AUC (DeepFM: its task's AUC)",
        data="\n".join(data),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    arguments.page.write_text(page, encoding="utf-8")
    print(table(header, rows))
    print(f"written to {arguments.page}")


if __name__ == "__main__":
    main()
