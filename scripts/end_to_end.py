"""Write results/ali-ccp-end-to-end.md: simulated Ali-CCP files from raw text to test metrics.

Every step is a process of its own, started as a user would start it; finished steps are kept in the
output folder and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from recbole_escm2.output import table, versions, write_json

METRICS = [
    *("CTR_AUC", "CTCVR_AUC", "CVR_AUC", "CVR_AUC_ES", "CVR_LogLoss_ES", "CVR_MAE_ES", "IEB"),
]
CONVERT = """
import sys
from pathlib import Path
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.output import logging_to
settings = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
with logging_to(Path("convert.log")):
    print(EntireSpaceDataset(Config("ESMM", "ali-ccp", command_line=settings)))
"""
PAGE = """\
# Ali-CCP's format, simulated: {rows:,} impressions from raw text to test metrics

**Simulated data: numbers say nothing about Ali-CCP.** Written by
`python scripts/end_to_end.py --rows={rows}` on {cores} cores with {threads} torch
thread(s). The files have the raw format of Ali-CCP and stood where the real ones would; the command
was the real one,
`python run_recbole_escm2.py --model=… --dataset=ali-ccp{options}`. They were simulated with a
conversion rate of {rate:.0%} of clicks, ten times that of Ali-CCP, so that metrics mean something.

| step | seconds | peak memory, GiB | |
|---|---:|---:|---|
{steps}

Seconds are those of one run on a shared machine. Peak memory is what the process had resident,
including the pages of memory-mapped files, which the system takes back when it needs them.

| part | impressions | clicks | conversions |
|---|---:|---:|---:|
{parts}

18 fields (the literature's), {parameters:,} parameters in ESMM, batch 4,096, `sparse_embedding`
(Adam on the rows of each batch), {epochs} epochs, the best on validation:

{metrics}

CVR_AUC is over clicks, which are a selected sample; the columns with _ES score the potential
conversions and the true CVR of all impressions of test, which the simulation knows, and IEB is the
mean pCVR minus the mean true CVR. One seed: differences between rows are not results.

Versions: {versions}.
"""


def step(folder: Path, name: str, command: list[str]) -> dict[str, Any]:
    """Run a command in a folder, or take its figures from the file of its last run."""
    file = folder / f"{name}.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    print(f"{name}: {' '.join(command)[:160]}", flush=True)
    start = time.perf_counter()
    with open(folder / f"{name}.out", "w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed: see {folder / f'{name}.out'}")
    figures = {"seconds": time.perf_counter() - start, "gib": usage.ru_maxrss / 2**20}
    write_json(file, figures)
    return figures


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--conversion-rate", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("output/results-ali-ccp-sim"))
    parser.add_argument("--page", type=Path, default=Path("results/ali-ccp-end-to-end.md"))
    arguments = parser.parse_args()
    folder = (arguments.output / f"{arguments.rows}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "recbole_escm2"]
    raw = folder / "dataset" / "ali-ccp" / "raw"
    options = [f"--epochs={arguments.epochs}"]

    simulated = step(
        folder,
        "simulate",
        [
            *program,
            "simulate",
            f"--rows={arguments.rows}",
            f"--conversion_rate={arguments.conversion_rate}",
            f"--out={raw}",
        ],
    )
    size = sum(file.stat().st_size for file in raw.glob("*.csv"))
    converted = step(folder, "convert", [sys.executable, "-c", CONVERT])
    steps = [
        ("simulate", simulated, f"{size / 2**30:.1f} GiB of raw text"),
        ("convert", converted, f"{size / converted['seconds'] / 1e6:.0f} MB/s, start included"),
    ]
    rows, results = [], []
    for model in ("ESMM", "ESCM2_IPS", "ESCM2_DR"):
        command = [*program, f"--model={model}", "--dataset=ali-ccp", *options]
        figures = step(folder, model, [*command, f"--output_dir=runs-{model}"])
        (file,) = (folder / f"runs-{model}").glob("*/result.json")
        result = json.loads(file.read_text())
        log = (file.parent / "run.log").read_text()
        epochs = [
            float(line.split(" train ")[1].split("s")[0])
            for line in log.splitlines()
            if " train " in line and "epoch" in line
        ]
        impressions = result["data"]["train"]["impressions"]
        speed = impressions / (sum(epochs) / len(epochs))
        steps.append(
            (
                f"{model}: train and evaluate",
                figures,
                f"{result['epochs']} epochs at {speed / 1e3:.0f} k impressions/s, test of "
                f"{result['data']['test']['impressions']:,} scored",
            )
        )
        rows.append([model, *(f"{result['test_result'][metric]:.4f}" for metric in METRICS)])
        results.append(result)

    def markdown(cells: list[list[str]]) -> str:
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)

    header = ["model", *METRICS]
    page = PAGE.format(
        rows=arguments.rows,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        options=" " + " ".join(options),
        rate=arguments.conversion_rate,
        epochs=arguments.epochs,
        steps=markdown(
            [[name, f"{f['seconds']:.0f}", f"{f['gib']:.1f}", text] for name, f, text in steps]
        ),
        parts=markdown(
            [
                [part, *(f"{count:,}" for count in counts.values())]
                for part, counts in results[0]["data"].items()
            ]
        ),
        parameters=results[0]["parameters"],
        metrics=markdown([header, ["---", *["---:"] * len(METRICS)], *rows]),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    arguments.page.write_text(page, encoding="utf-8")
    print(table(header, rows))
    print(f"written to {arguments.page}")


if __name__ == "__main__":
    main()
