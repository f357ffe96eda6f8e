"""Batches of impressions without a model: our loader against stock RecBole's.

    python perf/loader.py [--rows N] [--repeats R] [--out FILE] [--batches B]

What is timed is a pass over the train split (8 tenths of the rows) of the data of
``atomic_load.py`` in a new random order, in batches of 4,096, from the order on to the last batch;
of a batch everything is asked for that RecBole's DeepFM reads, and the label:

* ours: ``ImpressionLoader``, a whole epoch, the first after the store was opened: it maps the pages
  of the rows, which are in the page cache;
* stock: RecBole's ``TrainDataLoader`` without negative samples, in the training process as by
  default (``worker: 0``), over data that is in memory already. ``--batches`` stops it early; its
  order is then drawn for the whole epoch and counted in full.

Goal: at least 15 times as many rows a second. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
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


def _pass(loader: Any, label: str, batches: int | None) -> dict[str, Any]:
    rows = 0
    start = time.perf_counter()
    for batch in itertools.islice(loader, batches):
        for field in (*FIELDS, label):
            values = batch[field]
        rows += len(values)
    seconds = time.perf_counter() - start
    return {"speed": rows / seconds, "rows": rows, "batches": -(-rows // BATCH)}


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our loader on our store, which is made first if it isn't there."""
    from recbole_escm2.data import EntireSpaceDataset
    from recbole_escm2.data.loader import ImpressionLoader

    config = configuration(arguments)
    train = EntireSpaceDataset(config).build()[0]
    loader = ImpressionLoader(train, BATCH, config["seed"], shuffle=True)
    return _pass(loader, config["LABEL_FIELD"], None)


def stock(arguments: argparse.Namespace) -> dict[str, Any]:
    """RecBole's loader on its own data set."""
    from recbole.data.dataloader.general_dataloader import TrainDataLoader

    config = configuration(arguments, train_batch_size=BATCH)
    train = stock_dataset(config).build()[0]
    loader = TrainDataLoader(config, train, None, shuffle=True)
    return _pass(loader, config["LABEL_FIELD"], arguments.batches or None)


CONTENDERS: Contenders = {"ours": ours, "stock": stock}
_NAMES = {"ours": "recbole_escm2", "stock": "RecBole"}


def main() -> None:
    """Measure and report, or be one contender."""
    arguments = parse(
        __doc__, rows=1_000_000, batches=(0, "batches of RecBole's that are timed; 0: an epoch")
    )
    if arguments.run:
        print(json.dumps(CONTENDERS[arguments.run](arguments)))
        return
    write_once(arguments.cache, arguments.rows)
    rounds = [
        {name: measure(__file__, name, arguments) for name in _NAMES}
        for _ in range(arguments.repeats)
    ]
    speeds = [{name: measured[name]["speed"] for name in _NAMES} for measured in rounds]
    table = markdown_table(
        ["", "batches", "rows/s", "ours / it"],
        [
            [
                shown,
                rounds[0][name]["batches"],
                f"{median(speeds, name):,.0f}",
                span(ratios(speeds, "ours", name)),
            ]
            for name, shown in _NAMES.items()
        ],
    )
    publish(
        f"Batches of {BATCH:,} rows in random order from {arguments.rows:,} rows, {len(FIELDS)} "
        f"token columns and two labels. Medians of {arguments.repeats} rounds; ratios: median "
        f"(least to greatest) over the rounds.\n\n{table}",
        arguments,
    )


if __name__ == "__main__":
    main()
