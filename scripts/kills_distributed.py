"""Kills a process of several that train together, again and again, and compares the end.

torchrun starts the processes anew each time (``--max-restarts``), and they go on where the first
one has saved. Each kill is a SIGKILL of a random one at a random moment after its start. Metrics,
history (but for seconds) and each tensor of the checkpoints must be those of as many processes that
nothing has happened to.

    python scripts/kills_distributed.py --kills=10 -- --model=ESCM2_DR --dataset=ml-100k

``--file=results/reliability/kills_distributed.csv`` keeps the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from phases import differing, outcome

from recbole_escm2.output import write_whole

#: Files of TensorBoard, which are named by time and process, and where the run's folder is.
OTHERWISE = re.compile("^/tensorboard/|/output_dir$")

#: Columns of the figures.
FIGURES = ("processes", "seconds", "kills", "ends", "differences")


def children_of(parent: int) -> list[int]:
    """The processes that a process has started and that are there."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(status.parent.name))
    return sorted(found)


def start(processes: int, restarts: int, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Of torchrun, with the program in as many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", f"--max-restarts={restarts}"]
    command += ["-m", "recbole_escm2", "--save_interval=0", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> int:
    """Print each kill, and whether the ends are the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="a CSV file that gets the figures")
    parser.add_argument("options", nargs="*", help="of the run, after --")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        whole, cut = Path(name) / "whole", Path(name) / "cut"
        started = time.perf_counter()
        if start(asked.processes, 0, [*asked.options, f"--output_dir={whole}"]).wait():
            raise RuntimeError("the undisturbed run has failed: try its command by itself")
        seconds = time.perf_counter() - started
        print(f"undisturbed: {seconds:.1f}s", flush=True)
        kills = 0
        while kills < asked.kills:
            left = asked.kills - kills
            torchrun = start(asked.processes, left, [*asked.options, f"--output_dir={cut}"])
            before: list[int] = []
            while torchrun.poll() is None and kills < asked.kills:
                ranks = children_of(torchrun.pid)
                if len(ranks) < asked.processes or ranks == before:
                    time.sleep(0.02)
                    continue
                time.sleep(draw.uniform(0.2, 1) * seconds)
                before, one = ranks, draw.choice(ranks)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
                    kills += 1
                    print(f"kill {kills}: process {ranks.index(one)}", flush=True)
            if torchrun.wait():
                raise RuntimeError(f"torchrun ended with {torchrun.returncode}")
        (reference,) = (outcome(file.parent) for file in whole.glob("*/result.json"))
        ends = [outcome(file.parent) for file in sorted(cut.glob("*/result.json"))]
        found = [difference for end in ends for difference in differing(reference, end)]
        differences = [f"{d.place}: {d.what}" for d in found if not OTHERWISE.search(d.place)]
    print("\n".join(differences) or f"{len(ends)} ends after {kills} kills, each bit the same")
    if asked.file:
        figures = (asked.processes, f"{seconds:.1f}", kills, len(ends), len(differences))
        lines = (",".join(map(str, line)) for line in (FIGURES, figures))
        write_whole(asked.file, "\n".join([*lines, ""]))
    return bool(differences) or not ends


if __name__ == "__main__":
    sys.exit(main())
