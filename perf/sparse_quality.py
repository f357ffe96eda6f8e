"""What sparse gradients and bfloat16 cost in quality, against dense Adam in float32.

Adam on the rows of a batch alone (``sparse_embedding``) is other mathematics than dense Adam, which
also moves rows by their old moments; so is an L2 penalty on them (``embedding_weight_decay``),
whose work on the other rows is made up for by a soft threshold (``sleeping_decay: 1``); bfloat16
rounds the towers' products to 8 bits. All are worth their speed only where quality stays. Each
variant is trained with the same seeds (initial weights
and order of the impressions) on the same simulated data, whose truth is known, with clicks and
conversions frequent enough to tell. The table has the paired differences on test, variant minus
its dense counterpart, and their 95 % interval (Student's t over seeds). Goal: at most 0.002 lost.

On a processor without bfloat16 arithmetic its products are taken in float32 from factors that are
rounded to bfloat16, and rounded again: what the hardware does, up to the order of the sums, and a
hundred times faster than torch's imitation.

    python perf/sparse_quality.py --seeds=8
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from common import machine, markdown_table
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_escm2.output import write_json
from recbole_escm2.quick_start import run
from recbole_escm2.train.trainer import has_bfloat16

VARIANTS: dict[str, dict[str, Any]] = {
    "dense float32": {"sparse_embedding": False, "embedding_weight_decay": 0.0},
    "sparse float32": {"sparse_embedding": True, "embedding_weight_decay": 0.0},
    "sparse bfloat16": {
        "sparse_embedding": True,
        "embedding_weight_decay": 0.0,
        "enable_amp": True,
    },
    "dense float32 L2": {"sparse_embedding": False, "embedding_weight_decay": 1e-3},
    "sparse float32 L2": {"sparse_embedding": True, "embedding_weight_decay": 1e-3},
}
# What the variants from each one on are compared with.
BASES = ("dense float32", "dense float32 L2")
METRICS = ("CTR_AUC", "CTCVR_AUC", "CVR_AUC_ES")
GOAL = 0.002


class RoundedProducts(TorchDispatchMode):
    """Matrix products of bfloat16 tensors by way of float32."""

    products = frozenset(
        getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = [a for a in args if isinstance(a, torch.Tensor)]
        if func in self.products and all(f.dtype == torch.bfloat16 for f in factors):
            wide = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
            return func(*wide, **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


def result_of(cache: Path, model: str, variant: str, seed: int, rows: int) -> dict[str, float]:
    """Test metrics of a run, from its file if it is finished."""
    file = cache / f"{model}-{variant.replace(' ', '-')}-{seed}.json"
    settings = {
        "data_path": str(cache),
        "output_dir": str(cache / "runs"),
        "simulation": {
            "rows": rows,
            "click_rate": 0.1,
            "conversion_rate": 0.3,
            "behaviours": 0,
        },
        "simulation_seed": 1,
        "min_count": 4,
        "metrics": list(METRICS),
        "seed": seed,
        "show_progress": False,
        **VARIANTS[variant],
    }
    if not file.is_file():
        imitated = "bfloat16" in variant and not has_bfloat16()
        with RoundedProducts() if imitated else contextlib.nullcontext():
            outcome = run(model, "ali-ccp-sim", config_dict=settings, saved=False)
        write_json(file, {**outcome["test_result"], "best_epoch": outcome["best_epoch"]})
    found: dict[str, float] = json.loads(file.read_text())
    return found


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval of paired differences."""
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    kept = "yes" if mean - half >= -GOAL else ("no" if mean + half < -GOAL else "can't tell")
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}] {kept}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="how many, from 1 on; at least 2")
    parser.add_argument("--rows", type=int, default=400_000, help="half of them are test")
    parser.add_argument("--models", default="ESMM,ESCM2_DR")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache" / "quality")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cache = arguments.cache / f"{arguments.rows}"
    cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in arguments.models.split(","):
        found = {
            variant: [
                result_of(cache, model, variant, seed, arguments.rows)
                for seed in range(1, arguments.seeds + 1)
            ]
            for variant in VARIANTS
        }
        for variant, results in found.items():
            mean = [f"{statistics.mean(r[metric] for r in results):.4f}" for metric in METRICS]
            if variant in BASES:
                base = results
            else:
                mean = [
                    interval(
                        [ours[m] - dense[m] for ours, dense in zip(results, base, strict=True)]
                    )
                    for m in METRICS
                ]
            epochs = statistics.mean(r["best_epoch"] + 1 for r in results)
            rows.append([f"{model}, {variant}", *mean, f"{epochs:.1f}"])
    text = "\n".join(
        [
            f"{arguments.rows:,} simulated impressions, {arguments.seeds} seeds. dense: mean; "
            "others: difference to the dense one above [95 % interval], and whether at most "
            f"{GOAL} is lost.",
            "",
            markdown_table(["model, variant", *METRICS, "best epoch"], rows),
            "",
            ", ".join(f"{key} {value}" for key, value in machine().items())
            + (", its own bfloat16" if has_bfloat16() else ", bfloat16 imitated"),
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
