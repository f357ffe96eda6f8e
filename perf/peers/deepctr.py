"""ESMM as deepctr-torch trains it.

The way is that of the project's examples/run_multitask_learning.py: SparseFeat columns, compile(),
fit() on a dict of arrays. The timed part is the epoch, as a callback of fit() sees it. The L2 terms
(1e-5 on the embeddings by default) are off: the task has none, and each step is faster without.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from contender import BATCH, EMBEDDING, LEARNING_RATE, TOWER, arguments, check, load, report
from deepctr_torch.callbacks import Callback
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import ESMM


class Epoch(Callback):
    """Seconds and mean loss of the last epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Stop it."""
        self.seconds = time.perf_counter() - self.start
        self.loss = logs["loss"]


def main() -> None:
    """Warm up, train an epoch, report."""
    args = arguments("fused")
    train, warm_up = load(args)
    columns = [SparseFeat(name, n, embedding_dim=EMBEDDING) for name, n in train.sizes.items()]
    model = ESMM(
        columns,
        tower_dnn_hidden_units=TOWER,
        l2_reg_linear=0,
        l2_reg_embedding=0,
        l2_reg_dnn=0,
        dnn_dropout=0,
        dnn_use_bn=False,
        task_types=["binary", "binary"],
        task_names=["ctr", "ctcvr"],
    )
    model.compile(
        torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=args.fused or None),
        loss="binary_crossentropy",
    )
    losses = []
    epoch = Epoch()
    for data in (warm_up, train):
        y = np.stack([data.click, data.click * data.conversion], axis=1)
        model.fit(data.columns(), y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[epoch])
        losses.append(epoch.loss)
    report(
        "deepctr-torch",
        len(train),
        epoch.seconds,
        tuple(losses),
        check(model, train.sizes),
        ("deepctr-torch",),
    )


if __name__ == "__main__":
    main()
