"""Training beside as many busy processes as there are cores, against training alone.

    python perf/busy.py [--repeats R] [--out FILE]

What is timed is the epochs of ESCM2_DR on a part of ml-100k, by the program itself, which lets
OpenMP's threads sleep soon at a barrier. In a fair share of the cores it gets half of them, so
twice the time is what there is to have. For comparison the same with OpenMP's own default, where
threads spin 300,000 times first. The four of a round run one after the other. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from common import machine, markdown_table, ratios

from recbole_escm2.output import write_whole
from recbole_escm2.threads import usable_cores

_WAITING = {
    "short spins, as the program sets": {},
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
}
_EPOCHS = 4
_SETTINGS = (
    *("--model=ESCM2_DR", "--dataset=ml-100k", "--impression_sample=0.2", "--state=error"),
    "--preset=paper",
)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but hold a core."""
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def epoch_seconds(environment: Mapping[str, str]) -> float:
    """Of a training: the mean over its epochs but the first."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "recbole_escm2", *_SETTINGS),
                *(f"--epochs={_EPOCHS}", f"--output_dir={folder}"),
            ],
            env={**inherited, **environment},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (result,) = Path(folder).glob("*/result.json")
        (training,) = json.loads(result.read_text(encoding="utf-8"))["trainings"]
    seconds = [epoch["seconds"] for epoch in training["epochs"][1:]]
    return sum(seconds) / len(seconds)


def report(rounds: list[dict[str, float]], cores: int) -> str:
    """The page."""
    rows = []
    for name in _WAITING:
        middle, least, most = ratios(rounds, f"{name}, busy", f"{name}, quiet")
        rows.append([name, f"{middle:.2f} ({least:.2f} to {most:.2f})"])
    middle, least, most = ratios(rounds, *(f"{name}, quiet" for name in _WAITING))
    table = markdown_table(["waiting threads", "time beside busy processes / alone"], rows)
    return (
        f"An epoch of ESCM2_DR on a fifth of ml-100k, {cores} threads on {cores} cores, beside "
        f"{cores} busy processes against alone: median (least to greatest) of {len(rounds)} "
        f"rounds.\n\n{table}\n\nAlone, short spins take {middle:.2f} ({least:.2f} to {most:.2f}) "
        f"of the time of OpenMP's default.\n\n"
        f"{machine()['processor']}, torch {torch.__version__}.\n"
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cores = usable_cores()
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        measured = {}
        for name, environment in _WAITING.items():
            measured[f"{name}, quiet"] = epoch_seconds(environment)
            with busy(cores):
                measured[f"{name}, busy"] = epoch_seconds(environment)
        rounds.append(measured)
    page = report(rounds, cores)
    print(page)
    if arguments.out:
        write_whole(arguments.out, page)


if __name__ == "__main__":
    main()
