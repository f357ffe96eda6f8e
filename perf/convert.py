"""From Ali-CCP's raw files to a store that training reads: ours against plain Python.

    python perf/convert.py [--rows N] [--repeats R] [--out FILE]

Simulated raw files (the literature's 18 fields are kept of 23) are converted by the source of
``recbole_escm2.data.ali_ccp`` with the builder, and by ``plain_convert.py``, a line-by-line program
that does the same, in processes of their own and by turns. Timed is the conversion alone, without
imports; the files are in the page cache. The second table has the peak memory of ours at N and at
2N impressions with the same common rows, and what it comes to at full size.

Goals: at least 10 times the MB/s of plain Python, 30 if possible; memory that doesn't grow with the
impressions, at most 4 GiB at full size.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, markdown_table, ratios, run_json

from recbole_escm2.data.ali_ccp.raw import FIELDS

MIN_COUNT = 12  # as plain_convert.py has it
FULL_ROWS, FULL_COMMON_ROWS = 85_300_000, 1_614_000


def run_ours(raw: Path, target: Path) -> None:
    """Convert, and print time and memory as JSON."""
    from recbole_escm2.data.ali_ccp.chunks import Options
    from recbole_escm2.data.ali_ccp.files import find_raw
    from recbole_escm2.data.ali_ccp.source import read_raw
    from recbole_escm2.data.build import Rules, build

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    options = Options(tuple(field.name for field in FIELDS if field.literature))
    build(*read_raw(find_raw(raw), options), target, Rules(MIN_COUNT))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "imported_mb": imported}))


def simulated(cache: Path, rows: int, rows_per_user: float, users: int, items: int) -> Path:
    """Raw files of a size; made if they aren't there.

    By a process of its own: the peak memory of one that is started counts what its parent has.
    """
    raw = cache / f"raw-{rows}-{rows_per_user:g}"
    if not (raw / "simulation.json").is_file():
        print(f"simulating {rows:,} impressions", file=sys.stderr, flush=True)
        wanted = {"rows": rows, "rows_per_user": rows_per_user, "users": users, "items": items}
        program = Path(__file__).parent.with_name("run_recbole_escm2.py")
        options = [f"--{key}={value}" for key, value in {**wanted, "out": raw}.items()]
        subprocess.run([sys.executable, program, "simulate", *options], check=True)
    return raw


def size_of(raw: Path) -> float:
    """MB of raw text."""
    return sum(file.stat().st_size for file in raw.glob("*.csv")) / 1e6


def main() -> None:
    """Run both by turns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--memory-rows", type=int, default=5_000_000, help="N of the second table")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_ours(*arguments.run)
        return

    cache = arguments.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        target = Path(scratch) / "target"

        def ours(raw: Path) -> dict[str, float]:
            shutil.rmtree(target, ignore_errors=True)
            return run_json(sys.executable, __file__, "--run", raw, target)

        def plain(raw: Path) -> dict[str, float]:
            shutil.rmtree(target, ignore_errors=True)
            script = Path(__file__).with_name("plain_convert.py")
            return run_json(sys.executable, script, raw, target)

        raw = simulated(cache, arguments.rows, 58, arguments.rows // 200, arguments.rows // 20)
        megabytes = size_of(raw)
        ours(raw)  # the files are in the page cache from here on
        rounds, results = [], {"ours": [], "plain Python": []}
        for number in range(arguments.repeats):
            turns = [("ours", ours), ("plain Python", plain)]
            measured = {}
            for name, run in turns if number % 2 else turns[::-1]:
                found = run(raw)
                results[name].append(found)
                measured[name] = megabytes / found["seconds"]
            rounds.append(measured)
        middle, least, greatest = ratios(rounds, "ours", "plain Python")
        speed = markdown_table(
            ["converter", "MB/s", "peak memory, MB", "ours / it"],
            [
                [
                    name,
                    f"{statistics.median(r[name] for r in rounds):.1f}",
                    f"{max(f['peak_mb'] for f in found):,.0f}",
                    "" if name == "ours" else f"{middle:.1f} ({least:.1f} to {greatest:.1f})",
                ]
                for name, found in results.items()
            ],
        )
        lines, peaks = [], []
        rows = arguments.memory_rows
        for factor, more in ((1, 1), (2, 1), (1, 2)):  # of impressions; of common rows and ids
            per_user = 58 * factor / more
            raw = simulated(cache, factor * rows, per_user, more * 25_000, more * rows // 20)
            found = ours(raw)
            peaks.append(found["peak_mb"])
            commons = round(factor * rows / per_user)
            lines.append([f"{factor * rows:,}", f"{commons:,}", f"{size_of(raw):,.0f}"])
            lines[-1].append(f"{peaks[-1]:,.0f}")
    commons = round(rows / 58)
    by_rows = max(peaks[1] - peaks[0], 0) / rows
    by_commons = max(peaks[2] - peaks[0], 0) / commons
    full = peaks[0]
    full += by_rows * (FULL_ROWS - rows) + by_commons * (FULL_COMMON_ROWS - commons)
    text = "\n".join(
        [
            f"{arguments.rows:,} impressions, {megabytes:,.0f} MB of raw text, "
            f"{arguments.repeats} rounds.",
            "",
            speed,
            "",
            markdown_table(["impressions", "common rows", "raw MB", "peak memory, MB"], lines),
            "",
            f"Full size has {FULL_ROWS:,} impressions and {FULL_COMMON_ROWS:,} common rows. "
            "Growing with the impressions as from the first line to the second, and with the "
            "common rows and their ids as from the first to the third, the conversion would need "
            f"{full / 1024:.1f} GiB there, imports included.",
            "",
            ", ".join(f"{key} {value}" for key, value in machine().items()),
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
