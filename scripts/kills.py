"""Kills a training at random moments, again and again, and compares it with an undisturbed one.

Each attempt is a process of its own (a fork of this one, which has imported everything), which
SIGKILL ends after a random time: at the start, within a batch, while a file is written, while test
is scored. The same settings then go on. Where they come to an end, metrics, history (but for
seconds) and each tensor of the checkpoints must be those of a run that nothing has happened to, bit
by bit; then they begin anew.

    python scripts/kills.py --kills=20 -- --model=ESCM2_DR --dataset=ml-100k --dropout_prob=0.2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimizer imports, for seconds

from recbole_escm2.command_line import parse_arguments
from recbole_escm2.quick_start import run
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


def attempt(options: Mapping[str, str], said: Path) -> None:
    """What the process of a run does: its output goes into a file."""
    with open(said, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    given = dict(options)
    run(given.pop("model"), given.pop("dataset"), command_line=given)


def killed_after(
    seconds: float | None, options: Mapping[str, str], folder: Path
) -> tuple[int, str]:
    """Run for some seconds at most: the exit code, and where it says that it began."""
    said = folder / "said"
    said.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=attempt, args=(options, said))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None, "it has been waited for"
    text = said.read_text(encoding="utf-8") if said.exists() else ""
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(text)
    where = re.search(r"going on with \S+?(?=,| )(.*)", text)
    return process.exitcode, f"from{where[1].removeprefix(' from')}" if where else "a new run"


def main() -> int:
    """Print each kill, and whether the ends are the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="of the run, after --")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    options = {"save_interval": "0", **parse_arguments(asked.options)}
    torch.set_num_threads(1)  # a fork has no other
    with tempfile.TemporaryDirectory() as name:
        folder, whole, cut = Path(name), Path(name) / "whole", Path(name) / "cut"
        killed_after(None, {**options, "output_dir": str(whole)}, folder)  # makes the store
        started = time.perf_counter()
        killed_after(None, {**options, "output_dir": str(whole), "resume": "False"}, folder)
        seconds = time.perf_counter() - started
        print(f"undisturbed: {seconds:.1f}s", flush=True)
        options["output_dir"], kills, code = str(cut), 0, 0
        while kills < asked.kills:
            code, begun = killed_after(draw.uniform(0, 1.1) * seconds, options, folder)
            kills += code != 0
            print(f"{begun}: {'done' if code == 0 else f'kill {kills}'}", flush=True)
        killed_after(None, options, folder)
        reference, again = (outcome(run) for run in sorted(whole.iterdir()))
        ends = [again, *(outcome(file.parent) for file in sorted(cut.glob("*/result.json")))]
        differences = [found for end in ends for found in differing(reference, end)]
    print("\n".join(differences) or f"{len(ends) - 1} ends after {kills} kills, each bit the same")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
