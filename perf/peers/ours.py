"""ESMM as this package trains it: atomic files, Config, EntireSpaceDataset, EntireSpaceTrainer.

sparse_embedding gives SparseAdam on the embedding, which leaves the moments of rows alone that a
batch doesn't hold: the peers have dense Adam only.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from contender import (
    BATCH,
    EMBEDDING,
    LEARNING_RATE,
    TOWER,
    Impressions,
    arguments,
    check,
    load,
    seconds_since,
)
from contender import report as report_result
from recbole.utils import init_seed

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.data.loader import ImpressionLoader
from recbole_escm2.model import ESMM
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer

NAME = "impressions"


def write_atomic(data: Impressions, folder: Path) -> None:
    """The data as RecBole's atomic files, once.

    Validation holds every id of every field, so that the tables get the sizes that the peers' have:
    RecBole counts the ids that it reads, in all three files.
    """
    if (folder / f"{NAME}.test.inter").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    every = np.arange(max(data.sizes.values()))
    frames = {
        "train": {**data.columns(), "click": data.click, "conversion": data.conversion},
        "valid": {
            **{name: every % size for name, size in data.sizes.items()},
            "click": every % 2,
            "conversion": every % 4 == 1,
        },
    }
    frames["test"] = {name: column[:BATCH] for name, column in frames["train"].items()}
    types = {"click": "float", "conversion": "float"}
    for part, columns in frames.items():
        frame = pd.DataFrame(columns).astype(np.int32)
        frame.columns = [f"{name}:{types.get(name, 'token')}" for name in columns]
        frame.to_csv(folder / f"{NAME}.{part}.inter", sep="\t", index=False)


def main() -> None:
    """Warm up, train an epoch, report."""
    args = arguments(precision=["float32", "bfloat16"], device=["cpu", "cuda"])
    train, warm_up = load(args)
    data_path = Path(args.data).with_suffix("") / f"first-{len(train)}"
    write_atomic(train, data_path / NAME)
    config = Config(
        ESMM,
        NAME,
        config_dict={
            "data_path": str(data_path),
            "benchmark_filename": ["train", "valid", "test"],
            "USER_ID_FIELD": "101",
            "ITEM_ID_FIELD": "205",
            "embedding_size": EMBEDDING,
            "mlp_hidden_size": TOWER,
            "dropout_prob": 0.0,
            "preset": "paper",
            "sparse_embedding": True,
            "learning_rate": LEARNING_RATE,
            "train_batch_size": BATCH,
            "epochs": 1,
            "enable_amp": args.precision == "bfloat16",
            "show_progress": False,
            "use_gpu": args.device == "cuda",
        },
    )
    init_seed(config["seed"], config["reproducibility"])
    loader, _, _ = prepare_data(config, EntireSpaceDataset(config))
    model = ESMM(config, loader.dataset)
    trainer = EntireSpaceTrainer(config, model, Run(Path("output")))
    few = loader.dataset.copy(loader.dataset.inter_feat[torch.arange(len(warm_up))])
    before = trainer._train_epoch(ImpressionLoader(few, BATCH, shuffle=True), 0)
    start = time.perf_counter()
    after = trainer._train_epoch(loader, 0)
    report_result(
        "recbole_escm2",
        len(train),
        seconds_since(start, args.device),
        (sum(before), sum(after)),
        check(model, train.sizes, padding=len(train.sizes)),  # RecBole's id 0 of each field
        ("recbole-escm2", "recbole", "pandas"),
    )


if __name__ == "__main__":
    main()
