"""Kills each phase of the program at random moments, again and again, and compares what it comes to
with what it comes to undisturbed.

SIGKILL ends a phase after a random time within its measured length, or right before something that
it has written gets its name; of a search or a benchmark also a random one of the processes that it
has started. The same command then goes on or begins anew. Where it comes to an end, all files, each
tensor of checkpoints and each number of results (but for times) must be those of a command that
nothing has happened to, bit by bit; no file and no process may be left over. Then its folder is
emptied.

    python scripts/kills.py                                          all phases, 20 kills each
    python scripts/kills.py --kills=5 --phases=store,predict
    python scripts/kills.py --phases=training -- --model=DeepFM --task=both     another training

Ends with 1 where anything differs or is left over.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from long_runs import FILE as FILE_OF_LONG_RUNS
from phases import PHASES, Attempt, Phase, differing, outcome, places, write_lines

FILE = FILE_OF_LONG_RUNS.with_name("kills.csv")
COLUMNS = (
    *("phase", "seconds", "kills", "before_rename", "of_workers"),
    *("ends", "differing", "orphans"),
)
WITH_WORKERS = ("search", "benchmark")
_IN_VAIN = 10  # attempts a kill that may come to an end before they are killed


class Kills:
    """The kills of one phase.

    Args:
        phase: what is killed.
        root: where ``shared`` is.
        draw: of the moments.

    Attributes:
        counts: kills, those before a rename, those of a process that the phase had started, ends
            that were compared, those that differed from the undisturbed one (in a file that is left
            over, too), and processes that were left over.
    """

    def __init__(self, phase: Phase, root: Path, draw: random.Random) -> None:
        self.phase, self.root, self.draw = phase, root, draw
        self.counts: Counter[str] = Counter()
        undisturbed = self._attempt()
        self.expected = outcome(root / "work")
        shutil.rmtree(root / "work")
        self.seconds, self.renames = undisturbed.seconds, undisturbed.renames

    def _attempt(
        self,
        seconds: float | None = None,
        at_rename: int | None = None,
        worker: float | None = None,
    ) -> Attempt:
        attempt = Attempt(self.phase, self.root / "work", at_rename)
        code = attempt.finish(seconds, worker)
        said = attempt.said()
        # a run whose process was killed has failed, which its search or benchmark says
        if (code not in (0, -signal.SIGKILL) and not attempt.killed_worker) or "Traceback" in said:
            raise RuntimeError(f"{self.phase.name} ends with {code}: {said}")
        killed = code == -signal.SIGKILL or attempt.killed_worker
        self.counts["kills"] += killed
        self.counts["before_rename"] += killed and at_rename is not None
        self.counts["of_workers"] += attempt.killed_worker
        self.counts["orphans"] += attempt.orphans()
        return attempt

    def _compare(self) -> None:
        differences = differing(self.expected, outcome(self.root / "work"))
        for found in differences:
            print(f"{self.phase.name}: {found.place}: {found.what}", flush=True)
        self.counts["ends"] += 1
        self.counts["differing"] += bool(differences)
        shutil.rmtree(self.root / "work")

    def do(self, moments: int, renames: int, workers: int) -> None:
        """Kill it at random moments and before random renames, and processes that it has started,
        in a random order."""
        kinds = ["moment"] * moments + ["rename"] * renames + ["worker"] * workers
        self.draw.shuffle(kinds)
        for kind in kinds:
            for _ in range(_IN_VAIN):
                before = self.counts["kills"]
                moment = self.draw.uniform(0, 1.1) * self.seconds
                if kind == "moment":
                    self._attempt(moment)
                elif kind == "worker":
                    self._attempt(moment, worker=self.draw.random())
                else:
                    self._attempt(at_rename=self.draw.randint(1, self.renames))
                if self.counts["kills"] > before:
                    break
                self._compare()
        self._attempt()
        self._compare()

    def line(self) -> dict[str, Any]:
        """As the CSV file has it."""
        counts = {name: self.counts[name] for name in COLUMNS[2:]}
        return {"phase": self.phase.name, "seconds": round(self.seconds, 2), **counts}


def main() -> int:
    """Print and write what each phase has come to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="at random moments, of each phase")
    parser.add_argument("--before-renames", type=int, default=5, help="further ones of each phase")
    parser.add_argument("--workers", type=int, default=5, help="of a search's or benchmark's")
    parser.add_argument("--phases", default=",".join(PHASES), help="their names, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--file", type=Path, default=FILE, help="where the figures go")
    parser.add_argument("options", nargs="*", help="of a training of your own, after --")
    asked = parser.parse_args()
    lines = []
    with places() as root:
        for name in asked.phases.split(","):
            phase = PHASES[name]
            if name == "training" and asked.options:
                phase = Phase(name, ("--save_interval=0", "--output_dir=output", *asked.options))
            kills = Kills(phase, root, random.Random(f"{asked.seed} {name}"))
            workers = asked.workers if name in WITH_WORKERS else 0
            kills.do(asked.kills, asked.before_renames, workers)
            lines.append(kills.line())
            print(lines[-1], flush=True)
            write_lines(asked.file, COLUMNS, lines)
    return int(any(line["differing"] or line["orphans"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
