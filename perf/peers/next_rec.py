"""ESMM as nextrec trains it (the file isn't nextrec.py, which would hide the package).

The way is that of its README and of its tutorials/example_multitask.py: SparseFeature, compile(),
fit() on a DataFrame. Early stopping, TensorBoard and validation are off. fit() also writes a
checkpoint after the epoch, so the timed part is the train_epoch() that fit() calls, which scores
its own predictions: a metric has to be named, and log loss is the cheapest. Its clipping of the
gradient's norm to 1 is part of its trainer and stays; the fused variant does without, as all other
contenders do.
"""

from __future__ import annotations

import logging
import time

import pandas as pd
import torch
from contender import BATCH, EMBEDDING, LEARNING_RATE, TOWER, arguments, check, load, report
from nextrec.basic.features import SparseFeature
from nextrec.models.multitask.esmm import ESMM


class TimedESMM(ESMM):
    """Keeps the seconds and the loss of the last epoch."""

    def train_epoch(self, *args, **kwargs):
        """The library's, with a clock around it."""
        start = time.perf_counter()
        loss, metrics = super().train_epoch(*args, **kwargs)
        self.seconds, self.last_loss = time.perf_counter() - start, loss
        return loss, metrics


def main() -> None:
    """Warm up, train an epoch, report."""
    args = arguments("fused")
    train, warm_up = load(args)
    torch.manual_seed(2022)
    tower = {"hidden_dims": TOWER, "activation": "relu", "dropout": 0.0, "norm_type": "none"}
    model = TimedESMM(
        dense_features=[],
        sparse_features=[
            SparseFeature(name=name, vocab_size=n, embedding_dim=EMBEDDING)
            for name, n in train.sizes.items()
        ],
        sequence_features=[],
        ctr_mlp_params=tower,
        cvr_mlp_params=dict(tower),
        target=["click", "ctcvr"],
        task=["binary", "binary"],
        session_id="peers",
    )
    model.compile(
        optimizer="adam",
        optimizer_params={"lr": LEARNING_RATE, **({"fused": True} if args.fused else {})},
        loss=["bce", "bce"],
    )
    if args.fused:
        model.max_gradient_norm = None
    losses = []
    for data in (warm_up, train):
        frame = pd.DataFrame(data.columns())
        frame["click"], frame["ctcvr"] = data.click, data.click * data.conversion
        model.fit(
            train_data=frame,
            metrics=["logloss"],
            epochs=1,
            batch_size=BATCH,
            early_stop_patience=0,
            use_tensorboard=False,
            summary_sections=[],
        )
        losses.append(model.last_loss)
    logging.shutdown()
    report(
        "nextrec",
        len(train),
        model.seconds,
        tuple(losses),
        check(model, train.sizes),
        ("nextrec", "pandas"),
    )


if __name__ == "__main__":
    main()
