"""Kills a training at random moments, again and again, and compares it with an undisturbed one.

The command runs in a process of its own, which SIGKILL ends after a random time: at the start,
within a batch, while a file is written, while test is scored. The same command then goes on. Where
it comes to its end, its metrics, its history (but for seconds) and each tensor of its checkpoints
must be those of a run that nothing has happened to, bit by bit; then it begins anew.

    python scripts/kills.py --kills=20 -- --model=ESCM2_DR --dataset=ml-100k --dropout_prob=0.2
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from recbole_escm2.train.checkpoint import load_checkpoint

#: What two runs of the same may differ in.
OF_THE_RUN = ("run_dir", "seconds", "config")


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run has come to, but for its seconds, and what its checkpoints hold."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for training in result["trainings"]:
        training.pop("seconds")
        for epoch in training["epochs"]:
            epoch.pop("seconds")
    files = sorted(folder.rglob("*.pth"))
    kept = {file.relative_to(folder).as_posix(): load_checkpoint(file) for file in files}
    return {**{k: v for k, v in result.items() if k not in OF_THE_RUN}, "files": kept}


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two outcomes aren't the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{place}: {sorted({*one} ^ {*other})}"]
        return [found for key in one for found in differing(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, pair in pairs for found in differing(*pair, f"{place}/{n}")]
    return [] if one == other else [f"{place}: {one!r} and {other!r}"]


def main() -> int:
    """Print each kill, and whether the end is the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="*", help="options of the run, after --")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    program = [sys.executable, "-m", "recbole_escm2", *asked.command, "--save_interval=0"]
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        started = time.perf_counter()
        subprocess.run([*program, f"--output_dir={whole}"], check=True, capture_output=True)
        seconds = time.perf_counter() - started
        print(f"undisturbed: {seconds:.1f}s", flush=True)
        program.append(f"--output_dir={cut}")
        kills = 0
        while kills < asked.kills:
            end, begun = killed_after(draw.uniform(0.3, 1.1) * seconds, program)
            kills += end == -signal.SIGKILL
            print(f"{'done' if end == 0 else f'kill {kills}'}; {begun}", flush=True)
        subprocess.run(program, check=True, capture_output=True)
        (reference,) = (outcome(run) for run in whole.iterdir())
        ends = [outcome(file.parent) for file in sorted(cut.glob("*/result.json"))]
        differences = [found for end in ends for found in differing(reference, end)]
    print("\n".join(differences) or f"{len(ends)} ends after {kills} kills, each bit the same")
    return bool(differences)


def killed_after(seconds: float, program: list[str]) -> tuple[int, str]:
    """Run a program for some seconds at most: its exit code, and where it says that it began."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=said)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        said.seek(0)
        lines = [line for line in said if "going on with" in line]
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(program)} ended with {code}")
    return code, lines[0].partition("going on with ")[2].strip() if lines else "a new run"


if __name__ == "__main__":
    sys.exit(main())
