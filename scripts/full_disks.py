"""Runs each phase of the program on a disk with too little room, and then with enough.

The disk is a tmpfs, which only root can mount. It is filled up but for a share of what the phase
needs; the phase must end with exit code 2 and one line that begins with ``error: ``, or be content
with the room. With room again the same command must come to what it comes to undisturbed, and no
file may be left over.

    python scripts/full_disks.py                          all phases, 5 shares each
    python scripts/full_disks.py --phases=store,predict --shares=10

Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from long_runs import FILE as FILE_OF_LONG_RUNS
from phases import PHASES, Attempt, Phase, differing, outcome, places, write_lines

FILE = FILE_OF_LONG_RUNS.with_name("full_disks.csv")
COLUMNS = ("phase", "tries", "refused", "content", "unclear", "differing")
_DISK = 256 * 2**20
_BLOCK = 4096


def used(folder: Path) -> int:
    """Bytes on the disk that the files of a folder take."""
    sizes = [path.stat().st_size for path in folder.rglob("*")]
    return sum(-(-size // _BLOCK) * _BLOCK for size in sizes)


def is_clear(code: int, said: str) -> bool:
    """Whether a refusal is one line."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return code == 2 and len(errors) == 1 and "Traceback" not in said


def tried(phase: Phase, root: Path, shares: list[float]) -> dict[str, Any]:
    """What a phase comes to with each share of the room that it needs."""
    work = root / "disk" / "work"
    if code := (undisturbed := Attempt(phase, work)).finish():
        raise RuntimeError(f"{phase.name} ends with {code}: {undisturbed.said()}")
    expected, needed = outcome(work), used(work)
    shutil.rmtree(work)
    counts = dict.fromkeys(COLUMNS[1:], 0)
    for share in shares:
        work.mkdir()
        filler = root / "disk" / "filler"
        room = int(share * needed)
        with open(filler, "wb") as file:
            file.write(b"\0" * (shutil.disk_usage(root / "disk").free - room))
        attempt = Attempt(phase, work)
        code = attempt.finish()
        counts["tries"] += 1
        counts["content"] += code == 0
        counts["refused"] += is_clear(code, attempt.said())
        if code and not is_clear(code, attempt.said()):
            counts["unclear"] += 1
            print(f"{phase.name}, {room} bytes: {code}\n{attempt.said()}", flush=True)
        filler.unlink()
        if again := (after := Attempt(phase, work)).finish():
            print(f"{phase.name}, with room again: {again}\n{after.said()}", flush=True)
        differences = differing(expected, outcome(work))
        for found in differences:
            print(f"{phase.name}, {room} bytes: {found.place}: {found.what}", flush=True)
        counts["differing"] += bool(differences)
        shutil.rmtree(work)
    return {"phase": phase.name, **counts}


def main() -> int:
    """Print and write what each phase has come to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--shares", type=int, default=5, help="of the room, of each phase")
    parser.add_argument("--phases", default=",".join(PHASES), help="their names, with commas")
    parser.add_argument("--file", type=Path, default=FILE, help="where the figures go")
    asked = parser.parse_args()
    lines = []
    with places() as root:
        disk = root / "disk"
        disk.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(disk)], check=True
        )
        try:
            (disk / "shared").symlink_to(root / "shared")
            for name in asked.phases.split(","):
                draw = random.Random(name)
                shares = [draw.uniform(0, 0.95) for _ in range(asked.shares)]
                lines.append(tried(PHASES[name], root, shares))
                print(lines[-1], flush=True)
                write_lines(asked.file, COLUMNS, lines)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return int(any(line["differing"] or line["unclear"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
