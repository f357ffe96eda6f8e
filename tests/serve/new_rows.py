"""What tests of scored rows share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

QUICK: dict[str, Any] = {
    "numerical_features": ["age"],
    "epochs": 1,
    "train_batch_size": 1024,
    "eval_batch_size": 512,
    "embedding_size": 4,
    "mlp_hidden_size": [8],
    "show_progress": False,
    "impression_sample": 0.3,
}


def frame_of(folder: Path) -> pd.DataFrame:
    """All impressions of a data set in atomic files, with the features of users and items."""

    def read(kind: str) -> pd.DataFrame:
        frame = pd.read_csv(folder / f"{folder.name}.{kind}", sep="\t", dtype=str)
        return frame.rename(columns=lambda name: name.partition(":")[0])

    whole = read("inter").merge(read("user"), "left", "user_id")
    return whole.merge(read("item"), "left", "item_id").astype({"age": float})


def fresh_copy(data_path: Path, target: Path) -> Path:
    """A copy of ``tiny``'s files, without what was made of them."""
    folder = target / "data" / "tiny"
    shutil.copytree(data_path / "tiny", folder, ignore=shutil.ignore_patterns("store"))
    return folder
