"""The matrix products of a training step of ESMM's towers, and nothing else: a bound on its speed.

Both towers, forward and backward, as plain torch.mm on tensors that are there already. No model
that computes these products with torch can train faster on this machine, unless it overlaps them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from contender import BATCH, EMBEDDING, TOWER, seconds_since

FIELDS = 18
TOWERS = 2
WIDTHS = [FIELDS * EMBEDDING, *TOWER, 1]
LAYERS = list(itertools.pairwise(WIDTHS))


def operations_per_row() -> int:
    """Floating-point operations of one impression in one step, all matrix products together.

    A layer of m inputs and n outputs multiplies and adds m·n times (2·m·n operations) in each of
    three products: the outputs, the gradient of the weights, the gradient of the inputs. The first
    layer has the third one too: the embeddings are trained.
    """
    return TOWERS * sum(3 * 2 * inputs * outputs for inputs, outputs in LAYERS)


def products(dtype: torch.dtype, device: str) -> Callable[[], None]:
    """A function that computes them once for a batch."""
    steps = []
    for _ in range(TOWERS):
        for inputs, outputs in LAYERS:
            x = torch.randn(BATCH, inputs).to(device, dtype)
            weight = torch.randn(outputs, inputs).to(device, dtype)
            gradient = torch.randn(BATCH, outputs).to(device, dtype)
            steps += [
                (x, weight.t(), x.new_empty(BATCH, outputs)),
                (gradient.t(), x, x.new_empty(outputs, inputs)),
                (gradient, weight, x.new_empty(BATCH, inputs)),
            ]

    def run() -> None:
        for left, right, out in steps:
            torch.mm(left, right, out=out)

    return run


def best_seconds(run: Callable[[], None], budget: float, device: str) -> float:
    """The fastest of as many calls as the time allows, three at least."""
    run()
    seconds_since(0.0, device)
    best, calls, start = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - start < budget:
        before = time.perf_counter()
        run()
        best = min(best, seconds_since(before, device))
        calls += 1
    return best


def main() -> None:
    """Measure float32 and bfloat16, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each precision")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    result: dict[str, object] = {
        "operations_per_row": operations_per_row(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": version("torch")},
    }
    for dtype in (torch.float32, torch.bfloat16):
        seconds = best_seconds(products(dtype, args.device), args.budget, args.device)
        result[str(dtype).removeprefix("torch.")] = {
            "rows_per_second": round(BATCH / seconds, 1),
            "gflops": round(BATCH * operations_per_row() / seconds / 1e9, 2),
        }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
