"""What the contenders share: the task, the check that a model is that task's, and the report."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

EMBEDDING = 16
TOWER = [128, 64, 32]
BATCH = 4096
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Impressions:
    """Rows of the benchmark's data: ``ids`` int32 ``[rows, fields]``, labels int32 ``[rows]``."""

    ids: Any
    click: Any
    conversion: Any
    sizes: dict[str, int]

    def __len__(self) -> int:
        return len(self.click)

    def first(self, rows: int) -> Impressions:
        """Its first rows."""
        return Impressions(self.ids[:rows], self.click[:rows], self.conversion[:rows], self.sizes)

    def columns(self) -> dict[str, Any]:
        """The ids by field."""
        return {
            name: np.ascontiguousarray(self.ids[:, column])
            for column, name in enumerate(self.sizes)
        }


def arguments(*flags: str, **options: list[str]) -> argparse.Namespace:
    """The command line of a contender: the data, and what it can switch on or choose."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help=".npz file of synthetic.py")
    parser.add_argument("--rows", type=int, default=None, help="how many of its rows; all")
    parser.add_argument("--warm-up", type=int, default=5, help="batches before the timed epoch")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    for name, choices in options.items():
        parser.add_argument(f"--{name}", choices=choices, default=choices[0])
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[Impressions, Impressions]:
    """The impressions to train on, and the few of them to warm up with."""
    with np.load(args.data) as data:
        whole = Impressions(
            data["ids"],
            data["click"],
            data["conversion"],
            dict(zip(data["fields"].tolist(), data["sizes"].tolist(), strict=True)),
        )
    train = whole.first(args.rows or len(whole))
    return train, train.first(args.warm_up * BATCH)


def seconds_since(start: float, device: str) -> float:
    """On the clock, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check(model: nn.Module, sizes: Mapping[str, int], padding: int = 0) -> int:
    """Make sure that a model has the task's tables and towers; its number of parameters.

    Args:
        model: any module.
        sizes: ids of each field.
        padding: embedding rows that the library adds in all.

    Raises:
        ValueError: it is another model.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    rows = sum(table.num_embeddings for table in tables)
    widths = {table.embedding_dim for table in tables}
    if widths != {EMBEDDING} or rows != sum(sizes.values()) + padding:
        raise ValueError(f"the embeddings are {rows} x {widths}")
    layers = sorted(
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    )
    widths_of_tower = [len(sizes) * EMBEDDING, *TOWER, 1]
    if layers != sorted(2 * list(itertools.pairwise(widths_of_tower))):
        raise ValueError(f"the layers are {layers}")
    return sum(parameter.numel() for parameter in model.parameters())


def report(
    name: str,
    rows: int,
    seconds: float,
    losses: tuple[float, float],
    parameters: int,
    packages: tuple[str, ...],
) -> None:
    """Print the result as one line of JSON.

    Args:
        name: the contender.
        rows: impressions of the timed epoch.
        seconds: that it took, without making the data ready.
        losses: CTR and CTCVR cross-entropy together, mean over the warm-up and over the epoch.
        parameters: of the model.
        packages: whose versions count.
    """
    result = {
        "name": name,
        "rows": rows,
        "seconds": round(seconds, 4),
        "rows_per_second": round(rows / seconds, 1),
        "losses": [round(float(loss), 4) for loss in losses],
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in (*packages, "torch", "numpy")},
    }
    print(json.dumps(result), flush=True)
