"""A small entire-space data set as RecBole atomic files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_atomic(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_impressions(folder: Path, name: str, rows: int, seed: int = 0) -> Path:
    """``rows`` impressions whose click and conversion depend on their features."""
    rng = np.random.default_rng(seed)
    users, items = 60, 40
    user, item = rng.integers(users, size=rows), rng.integers(items, size=rows)
    taste, appeal = rng.normal(size=users), rng.normal(size=items)
    ctr = 1 / (1 + np.exp(1.0 - taste[user] - appeal[item]))
    cvr = 1 / (1 + np.exp(0.5 - 1.5 * appeal[item]))
    click = rng.random(rows) < ctr
    potential = rng.random(rows) < cvr
    target = folder / name
    target.mkdir(parents=True)
    write_atomic(
        target / f"{name}.inter",
        [
            "user_id:token",
            "item_id:token",
            "hour:token",
            "click:float",
            "conversion:float",
            "potential_conversion:float",
            "true_ctr:float",
            "true_cvr:float",
        ],
        [
            [f"u{u}", f"i{i}", h, int(o), int(o and r), int(r), round(p, 6), round(q, 6)]
            for u, i, h, o, r, p, q in zip(
                user, item, rng.integers(24, size=rows), click, potential, ctr, cvr, strict=True
            )
        ],
    )
    write_atomic(
        target / f"{name}.user",
        ["user_id:token", "age:float"],
        [[f"u{u}", round(20 + 10 * taste[u], 2)] for u in range(users)],
    )
    write_atomic(
        target / f"{name}.item",
        ["item_id:token", "category:token", "tags:token_seq"],
        [[f"i{i}", f"c{i % 5}", " ".join(f"t{t}" for t in range(i % 4))] for i in range(items)],
    )
    return target
