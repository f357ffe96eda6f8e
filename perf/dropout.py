"""The layers of a tower with our dropout against the same with PyTorch's, on a CPU.

    python perf/dropout.py [--repeats R] [--out FILE]

What is timed is a forward and a backward pass of hidden layers of 128, 64 and 32 after 18 fields
of an embedding of 16, on a batch of 4,096 impressions, with one thread; a quarter of the inputs of
each layer is dropped. The layers without dropout show what there is to gain. The three of a round
run one after the other. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from common import machine, markdown_table, ratios
from recbole.model.layers import MLPLayers
from torch import nn

from recbole_escm2.model.dropout import mlp
from recbole_escm2.output import write_whole

SIZES = [18 * 16, 128, 64, 32]
BATCH = 4096
DROPPED = 0.25
PASSES = 20


def seconds(layers: nn.Module, features: torch.Tensor) -> float:
    """Of a forward and a backward pass, the median of some."""
    taken = []
    for _ in range(PASSES):
        start = time.perf_counter()
        layers(features).sum().backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def report(rounds: list[Mapping[str, float]]) -> str:
    """The page."""
    rows = []
    for name in rounds[0]:
        middle, least, most = ratios(rounds, name, "torch.nn.Dropout")
        own = statistics.median(measured[name] for measured in rounds)
        rows.append([name, f"{own * 1000:.2f}", f"{middle:.2f} ({least:.2f} to {most:.2f})"])
    table = markdown_table(["layers with", "ms", "of the time with torch.nn.Dropout"], rows)
    return (
        f"A forward and a backward pass of layers {SIZES} on {BATCH:,} rows, {DROPPED:.0%} "
        f"dropped, one thread: medians of {len(rounds)} rounds (of a round: of {PASSES} passes); "
        f"ratios: median (least to greatest) over the rounds.\n\n{table}\n\n"
        f"{machine()['processor']}, Python {platform.python_version()}, "
        f"torch {torch.__version__}.\n"
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    contenders = {
        "torch.nn.Dropout": MLPLayers(SIZES, DROPPED),
        "recbole_escm2's": mlp(SIZES, DROPPED),
        "none": MLPLayers(SIZES, 0.0),
    }
    features = torch.randn(BATCH, SIZES[0], requires_grad=True)
    rounds = [
        {name: seconds(layers, features) for name, layers in contenders.items()}
        for _ in range(arguments.repeats)
    ]
    page = report(rounds)
    print(page)
    if arguments.out:
        write_whole(arguments.out, page)


if __name__ == "__main__":
    main()
