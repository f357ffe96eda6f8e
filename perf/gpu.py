"""How fast ESMM trains on a GPU, beside torch-rechub and the matrix products of its towers.

    python perf/gpu.py [--rows N] [--repeats R] [--without-peer] [--out FILE]

The task, the data and the contenders are those of ``peers.py``, on the first CUDA device; rounds
run them by turns, each in a process of its own, and a ratio is taken within its round. Without a
CUDA device it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import synthetic
import torch
from common import environment, machine, markdown_table, ratios, run_json
from peers import HERE, PRECISIONS, REQUIREMENTS, SCRIPTS


def main() -> int:
    """Measure, print the table, write it where ``--out`` says; 2 where there is no GPU."""
    args = _arguments()
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing is measured", file=sys.stderr)
        return 2
    commands = _commands(args)
    rounds: list[dict[str, float]] = []
    for number in range(args.repeats):
        found: dict[str, float] = {}
        names = list(commands)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found.update(_speeds(name, run_json(*commands[name])))
        rounds.append(found)
        print(f"round {number + 1} of {args.repeats} is done", file=sys.stderr, flush=True)
    text = _page(rounds)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4_096_000, help="impressions an epoch")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--warm-up", type=int, default=50, help="batches before the timed epoch")
    parser.add_argument("--without-peer", action="store_true", help="without torch-rechub")
    parser.add_argument("--torch", default="torch==2.13.0", help="the peer's, as pip takes it")
    parser.add_argument("--environments", type=Path, default=HERE / ".environments")
    parser.add_argument("--data", type=Path, default=HERE / ".data", help="where the data is kept")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write")
    return parser.parse_args()


def _commands(args: argparse.Namespace) -> dict[str, list[Any]]:
    """The command of each contender, as ``run_json`` takes it."""
    device = ["--device", "cuda"]
    common = ["--data", synthetic.write_once(args.data, args.rows), "--warm-up", args.warm_up]
    commands: dict[str, list[Any]] = {
        f"ours, {precision}": [
            *(sys.executable, SCRIPTS / "ours.py", *common, *device, "--precision", precision)
        ]
        for precision in PRECISIONS
    }
    commands["bound"] = [sys.executable, SCRIPTS / "bound.py", *device]
    if not args.without_peer:
        python = environment("rechub", [args.torch, *REQUIREMENTS["rechub"]], args.environments)
        commands["torch-rechub"] = [python, SCRIPTS / "rechub.py", *common, *device]
        commands["torch-rechub, fused Adam"] = [*commands["torch-rechub"], "--fused"]
    return commands


def _speeds(name: str, result: dict[str, Any]) -> dict[str, float]:
    """Rows a second, by name; the bound has one for each precision."""
    if name != "bound":
        return {name: result["rows_per_second"]}
    return {f"bound, {each}": result[each]["rows_per_second"] for each in PRECISIONS}


def _page(rounds: list[dict[str, float]]) -> str:
    ours = [f"ours, {precision}" for precision in PRECISIONS]
    rows = []
    for name in rounds[0]:
        cells = [name, f"{statistics.median(found[name] for found in rounds):,.0f}"]
        for own in ours:
            middle, least, most = ratios(rounds, own, name)
            cells.append("" if own == name else f"{middle:.2f} ({least:.2f} to {most:.2f})")
        rows.append(cells)
    about = {"device": torch.cuda.get_device_name(), **machine(), "rounds": len(rounds)}
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        markdown_table(["contender", "rows/s", *(f"{own} / it" for own in ours)], rows),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
