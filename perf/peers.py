"""How fast ESMM trains here and in three other libraries, on one machine and the same data.

    python perf/peers.py [--rows N] [--peer-rows N] [--repeats R] [--only NAME …] [--out FILE]

The task: 18 token fields with 1,280,000 ids in all, embedding 16, two towers [128, 64, 32], batches
of 4096, Adam with learning rate 1e-3; one epoch after a short warm-up, the library's own loader in
it. Each library runs as its documentation runs it, and once more with PyTorch's fused Adam put in
by hand. A round runs every contender once, one after the other, in another order each time, and a
ratio is taken within its round. ``peers/`` has a script for each contender.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import synthetic
from common import environment, machine, markdown_table, ratios, run_json

from recbole_escm2.train.trainer import has_bfloat16

HERE = Path(__file__).absolute().parent
SCRIPTS = HERE / "peers"
#: What a peer's environment holds besides torch.
REQUIREMENTS = {
    "rechub": ["torch-rechub==0.9.0"],
    "deepctr": ["deepctr-torch==0.3.0", "requests==2.34.2"],  # it imports what it doesn't require
    "nextrec": ["nextrec==0.6.14"],
}
SCRIPT = {"rechub": "rechub.py", "deepctr": "deepctr.py", "nextrec": "next_rec.py"}
PRECISIONS = ("float32", "bfloat16")
#: What a reader of the table has to know.
NOTE = (
    "Ours updates the embedding rows of a batch (`sparse_embedding`, RowAdam); the peers have "
    "dense gradients and Adam over all rows, which isn't the same mathematics. Speeds are of the "
    "epoch alone: no data preparation, no validation, no checkpoint. The bound is the time of the "
    "towers' matrix products alone. Ratios: median (least to greatest) over the rounds. Loss: CTR "
    "and CTCVR together, mean over the warm-up, then over the epoch."
)


@dataclass
class Contender:
    """A command that reports rows a second, and what it has reported."""

    name: str
    python: Path
    script: Path
    args: list[Any] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    """Measure, print the table, write it where ``--out`` says."""
    args = _arguments()
    contenders, missing = _contenders(args)
    rounds: list[dict[str, float]] = []
    for number in range(args.repeats):
        rounds.append(_round(_order(contenders, number), missing))
        print(f"round {number + 1} of {args.repeats} is done", file=sys.stderr, flush=True)
        text = _page(contenders, rounds, missing, args)
        if args.out:  # after each round: a run that is stopped leaves what it has
            args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=409_600, help="impressions an epoch of ours")
    parser.add_argument(
        "--peer-rows", type=int, default=204_800, help="impressions an epoch of a peer, at most"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--warm-up", type=int, default=5, help="batches before the timed epoch")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*REQUIREMENTS, "ours", "bound"],
        help="run this one and no others; may be repeated",
    )
    parser.add_argument(
        "--torch", default="torch==2.13.0", help="the peers' torch, as pip takes it"
    )
    parser.add_argument(
        "--environments", type=Path, default=HERE / ".environments", help="where they are kept"
    )
    parser.add_argument("--data", type=Path, default=HERE / ".data", help="where the data is kept")
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="the interpreter that runs ours and the bound; this one",
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="ours in bfloat16 even where it is imitated"
    )
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write")
    return parser.parse_args()


def _contenders(args: argparse.Namespace) -> tuple[list[Contender], dict[str, str]]:
    """Who runs, and who can't and why."""
    chosen = args.only or [*REQUIREMENTS, "ours", "bound"]
    data = synthetic.write_once(args.data, args.rows)
    print(f"data: {synthetic.describe(data)}", file=sys.stderr, flush=True)
    common = ["--data", data, "--warm-up", args.warm_up]
    contenders, missing = [], {}
    for name in REQUIREMENTS:
        if name not in chosen:
            continue
        try:
            python = environment(name, [args.torch, *REQUIREMENTS[name]], args.environments)
        except RuntimeError as error:
            _give_up(missing, name, f"can't be installed: {error}")
            continue
        rows = ["--rows", min(args.rows, args.peer_rows)]
        for label, flags in ((name, []), (f"{name}, fused Adam", ["--fused"])):
            contenders.append(
                Contender(label, python, SCRIPTS / SCRIPT[name], [*common, *rows, *flags])
            )
    if "ours" in chosen:
        for precision in PRECISIONS:
            if precision == "bfloat16" and not (args.bfloat16 or has_bfloat16()):
                continue  # a hundredth of the speed where the processor lacks it
            flags = [*common, "--precision", precision]
            contenders.append(
                Contender(f"ours, {precision}", args.python, SCRIPTS / "ours.py", flags)
            )
    if "bound" in chosen:
        contenders.append(Contender("bound", args.python, SCRIPTS / "bound.py"))
    return contenders, missing


def _order(contenders: list[Contender], number: int) -> list[Contender]:
    """All of them, in the order of a round: each time another one first, odd rounds backwards."""
    if not contenders:
        return []
    start = number % len(contenders)
    turned = contenders[start:] + contenders[:start]
    return turned[::-1] if number % 2 else turned


def _round(order: list[Contender], missing: dict[str, str]) -> dict[str, float]:
    """Rows a second by name; one that fails is left out from here on."""
    measured: dict[str, float] = {}
    for contender in order:
        if contender.name in missing:
            continue
        try:
            result = run_json(contender.python, contender.script, *contender.args)
        except RuntimeError as error:
            _give_up(missing, contender.name, str(error))
            continue
        contender.results.append(result)
        if contender.name == "bound":
            for precision in PRECISIONS:
                measured[f"bound, {precision}"] = result[precision]["rows_per_second"]
        else:
            measured[contender.name] = result["rows_per_second"]
    return measured


def _give_up(missing: dict[str, str], name: str, reason: str) -> None:
    missing[name] = reason
    print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- the page


def _page(
    contenders: list[Contender],
    rounds: list[dict[str, float]],
    missing: dict[str, str],
    args: argparse.Namespace,
) -> str:
    names = {name for measured in rounds for name in measured}
    by_name = {contender.name: contender for contender in contenders}
    order = [c.name for c in contenders if c.name in names]
    order += [f"bound, {p}" for p in PRECISIONS if f"bound, {p}" in names]
    rows = [_row(name, by_name.get(name), rounds) for name in order]
    header = ["contender", "rows/s", "least to greatest", "rows an epoch", "loss", "parameters"]
    header += [f"ours, {precision} / it" for precision in PRECISIONS]
    results = [result for contender in contenders for result in contender.results]
    threads = Counter(result["threads"] for result in results)
    about = {**machine(), "threads": ", ".join(map(str, sorted(threads))), "rounds": len(rounds)}
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        markdown_table(header, rows),
        "",
        NOTE,
        "",
        *_fastest(order, rounds),
        *_bounds(by_name.get("bound")),
        *_versions(contenders),
        *(f"- {name} is left out: `{reason.splitlines()[-1]}`" for name, reason in missing.items()),
    ]
    return "\n".join(lines)


def _row(name: str, contender: Contender | None, rounds: list[dict[str, float]]) -> list[str]:
    speeds = [measured[name] for measured in rounds if name in measured]
    cells = [
        name,
        f"{statistics.median(speeds):,.0f}",
        f"{min(speeds):,.0f} to {max(speeds):,.0f}",
    ]
    if contender is None:  # the bound trains nothing
        cells += ["", "", ""]
    else:
        result = contender.results[-1]
        warm_up, epoch = result["losses"]
        cells += [f"{result['rows']:,}", f"{warm_up} → {epoch}", f"{result['parameters']:,}"]
    for precision in PRECISIONS:
        ours = f"ours, {precision}"
        middle, least, greatest = ratios(rounds, ours, name)
        known = name != ours and middle == middle
        cells.append(f"{middle:.2f} ({least:.2f} to {greatest:.2f})" if known else "")
    return cells


def _fastest(order: list[str], rounds: list[dict[str, float]]) -> list[str]:
    """The line that names the strongest of the peers' fused variants."""
    tuned = {
        name: statistics.median(measured[name] for measured in rounds if name in measured)
        for name in order
        if name.endswith("fused Adam")
    }
    if not tuned:
        return []
    best = max(tuned, key=lambda name: tuned[name])
    return [f"- the tuned competitor is {best}, {tuned[best]:,.0f} rows/s"]


def _bounds(bound: Contender | None) -> list[str]:
    if bound is None or not bound.results:
        return []
    shown = ", ".join(
        f"{precision} {max(result[precision]['gflops'] for result in bound.results):.1f} GFLOPS"
        for precision in PRECISIONS
    )
    operations = bound.results[-1]["operations_per_row"]
    return [f"- matrix products: {operations:,} operations a row; best {shown}"]


def _versions(contenders: list[Contender]) -> list[str]:
    lines = {
        ", ".join(f"{name} {number}" for name, number in c.results[-1]["versions"].items()): None
        for c in contenders
        if c.results and c.name != "bound"
    }
    return [f"- {line}" for line in lines]


if __name__ == "__main__":
    main()
