"""ESMM as torch-rechub trains it.

The way is that of the project's examples/ranking/run_ali_ccp_multi_task.py (``--model_name ESMM``)
and of the multi-task part of its README: DataGenerator and its loaders, MTLTrainer. Its fit() wants
a validation set and writes the model to disk after the last epoch, so the timed part is the
train_one_epoch() that fit() calls. weight_decay, 1e-5 by default, is off: the task has none. The
BatchNorm that its MLP puts behind each layer can't be switched off.
"""

from __future__ import annotations

import time

import numpy as np
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
    report,
    seconds_since,
)
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import ESMM
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

ITEM_FIELDS = ("205", "206", "207", "216")  # the example's split, of the fields that are here


def loader(data: Impressions) -> torch.utils.data.DataLoader:
    """The training loader of the library's generator."""
    x = data.columns()
    # The order of the three labels is fixed: CVR, CTR, CTCVR.
    y = np.stack([data.conversion, data.click, data.click * data.conversion], axis=1)
    some = {name: column[:1] for name, column in x.items()}
    train, _, _ = DataGenerator(x, y).generate_dataloader(
        x_val=some, y_val=y[:1], x_test=some, y_test=y[:1], batch_size=BATCH
    )
    return train


def main() -> None:
    """Warm up, train an epoch, report."""
    args = arguments("fused", device=["cpu", "cuda"])
    train, warm_up = load(args)
    torch.manual_seed(2022)
    features = {
        name: SparseFeature(name, n, embed_dim=EMBEDDING) for name, n in train.sizes.items()
    }
    tower = {"dims": TOWER, "activation": "relu", "dropout": 0}
    model = ESMM(
        [feature for name, feature in features.items() if name not in ITEM_FIELDS],
        [feature for name, feature in features.items() if name in ITEM_FIELDS],
        cvr_params=tower,
        ctr_params=tower,
    )
    trainer = MTLTrainer(
        model,
        task_types=["classification"] * 3,
        optimizer_params={"lr": LEARNING_RATE, **({"fused": True} if args.fused else {})},
        n_epoch=1,
        device=args.device,
    )
    before = trainer.train_one_epoch(loader(warm_up))
    train_loader = loader(train)
    start = time.perf_counter()
    after = trainer.train_one_epoch(train_loader)
    seconds = seconds_since(start, args.device)
    losses = (sum(before[1:]), sum(after[1:]))
    report(
        "torch-rechub",
        len(train),
        seconds,
        losses,
        check(model, train.sizes),
        ("torch-rechub", "pandas"),
    )


if __name__ == "__main__":
    main()
