"""An epoch of RecBole's DeepFM in our runner's parts against stock RecBole's.

    python perf/deepfm_epoch.py [--rows N] [--repeats R] [--out FILE] [--seeds S]

What is timed is ``Trainer._train_epoch``, data included: RecBole's DeepFM learns the click from 25
token fields (embedding 16, towers 128, 64, 32, RecBole's dropout, Adam, batches of 4,096) on the
train split (8 tenths of the rows) of the data of ``atomic_load.py``:

* ours: ``EntireSpaceDataset``, ``ImpressionLoader``, ``EntireSpaceTrainer``;
* stock: RecBole's ``Dataset``, ``TrainDataLoader``, ``Trainer``.

A process trains one epoch for each seed, from a new model, loader and trainer; data is loaded once
and split once. A seed gives both the same initial weights (``init_seed`` before the model is
built), and the same rows in other batches. The mean loss over the batches of the epoch is shown for
each seed: ours is to lie within what another seed makes of RecBole's.

Goal: at least 1.5 times as many rows a second. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from atomic_load import (
    FIELDS,
    Contenders,
    configuration,
    measure,
    median,
    parse,
    publish,
    span,
    stock_dataset,
    write_once,
)
from common import markdown_table, ratios

BATCH = 4096
SETTINGS = {
    "embedding_size": 16,
    "mlp_hidden_size": [128, 64, 32],
    "train_batch_size": BATCH,
    "learner": "adam",
    "learning_rate": 0.001,
    "metrics": ["AUC"],
    "valid_metric": "AUC",
    "checkpoint_dir": "saved",  # in the folder that the process runs in, which goes away
    "use_gpu": False,
    "show_progress": False,
}


def _epochs(
    arguments: argparse.Namespace,
    config: Any,
    train: Any,
    make_loader: Callable[[], Any],
    make_trainer: Callable[[Any], Any],
) -> dict[str, Any]:
    from recbole.model.context_aware_recommender import DeepFM
    from recbole.utils import init_seed

    seconds, losses, sums = [], [], []
    for seed in range(arguments.seeds):
        config["seed"] = seed
        init_seed(seed, config["reproducibility"])
        model = DeepFM(config, train)
        sums.append(sum(float(p.detach().double().abs().sum()) for p in model.parameters()))
        loader, trainer = make_loader(), make_trainer(model)
        start = time.perf_counter()
        loss = trainer._train_epoch(loader, 0)
        seconds.append(time.perf_counter() - start)
        # Ours returns means by name, RecBole the sum over the batches.
        losses.append(loss[0] if isinstance(loss, tuple) else loss / len(loader))
    return {
        "speed": len(train) / statistics.median(seconds),
        "rows": len(train),
        "losses": losses,
        "weights": sums,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts of our runner."""
    from recbole_escm2.data import EntireSpaceDataset
    from recbole_escm2.data.loader import ImpressionLoader
    from recbole_escm2.train.trainer import EntireSpaceTrainer

    config = configuration(arguments, **SETTINGS)
    train = EntireSpaceDataset(config).build()[0]
    return _epochs(
        arguments,
        config,
        train,
        lambda: ImpressionLoader(train, BATCH, config["seed"], shuffle=True),
        lambda model: EntireSpaceTrainer(config, model),
    )


def stock(arguments: argparse.Namespace) -> dict[str, Any]:
    """RecBole's own parts."""
    from recbole.data.dataloader.general_dataloader import TrainDataLoader
    from recbole.trainer import Trainer

    config = configuration(arguments, **SETTINGS)
    train = stock_dataset(config).build()[0]
    return _epochs(
        arguments,
        config,
        train,
        lambda: TrainDataLoader(config, train, None, shuffle=True),
        lambda model: Trainer(config, model),
    )


CONTENDERS: Contenders = {"ours": ours, "stock": stock}
_NAMES = {"ours": "recbole_escm2", "stock": "RecBole"}


def _loss_sentence(losses: dict[str, Sequence[float]]) -> str:
    theirs, own = losses["stock"], losses["ours"]
    difference = statistics.mean(own) - statistics.mean(theirs)
    return (
        f"Mean training loss over the seeds: ours minus RecBole's {difference:+.5f}; over seeds "
        f"RecBole's spans {max(theirs) - min(theirs):.5f}, ours {max(own) - min(own):.5f}."
    )


def main() -> None:
    """Measure and report, or be one contender."""
    arguments = parse(__doc__, rows=400_000, seeds=(3, "epochs a process, each of another seed"))
    if arguments.run:
        print(json.dumps(CONTENDERS[arguments.run](arguments)))
        return
    write_once(arguments.cache, arguments.rows)
    rounds = [
        {name: measure(__file__, name, arguments) for name in _NAMES}
        for _ in range(arguments.repeats)
    ]
    first = rounds[0]
    speeds = [{name: measured[name]["speed"] for name in _NAMES} for measured in rounds]
    seeds = [f"loss, seed {seed}" for seed in range(arguments.seeds)]
    table = markdown_table(
        ["", "rows/s", "ours / it", *seeds],
        [
            [
                shown,
                f"{median(speeds, name):,.0f}",
                span(ratios(speeds, "ours", name), decimals=2),
                *(f"{loss:.5f}" for loss in first[name]["losses"]),
            ]
            for name, shown in _NAMES.items()
        ],
    )
    same = "the same" if first["ours"]["weights"] == first["stock"]["weights"] else "NOT the same"
    publish(
        f"One epoch of DeepFM, {first['ours']['rows']:,} impressions with {len(FIELDS)} token "
        f"fields in batches of {BATCH:,}, {first['ours']['parameters']:,} parameters. Medians of "
        f"{arguments.repeats} rounds (of a round: of its {arguments.seeds} epochs); ratios: median "
        f"(least to greatest) over the rounds.\n\n{table}\n\n"
        f"{_loss_sentence({name: first[name]['losses'] for name in _NAMES})} "
        f"Initial weights by seed: {same}.",
        arguments,
    )


if __name__ == "__main__":
    main()
