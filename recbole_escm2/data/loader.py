"""Batches of impressions, gathered by tensor index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_escm2.data.batch import position_dtype
from recbole_escm2.data.dataset import EntireSpaceDataset


class ImpressionLoader:
    """Hands out a split in batches, with what RecBole's Trainer asks of a loader.

    Args:
        dataset: a built split.
        batch_size: impressions a batch; the last one holds the rest.
        seed: of the order; it depends on the seed and the epoch only.
        shuffle: a new order each epoch (training), or that of the rows (evaluation).
        with_placeholders: batches in the form that RecBole's evaluation expects, a tuple.
    """

    def __init__(
        self,
        dataset: EntireSpaceDataset,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        with_placeholders: bool = False,
    ) -> None:
        self._dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.with_placeholders = with_placeholders
        self.epoch = 0

    @property
    def dataset(self) -> EntireSpaceDataset:
        """The split."""
        return self._dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        rows = len(self._dataset)
        order = None
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(rows, generator=generator, dtype=position_dtype(rows))
        for start in range(0, rows, self.batch_size):
            stretch = slice(start, start + self.batch_size)
            batch: Interaction = self._dataset[stretch if order is None else order[stretch]]
            yield (batch, None, None, None) if self.with_placeholders else batch


def prepare_data(
    config: Any, dataset: EntireSpaceDataset
) -> tuple[ImpressionLoader, ImpressionLoader, ImpressionLoader]:
    """Split a data set and make the loaders of train, validation and test.

    Raises:
        UsageError: as :meth:`EntireSpaceDataset.build`.
    """
    train, valid, test = dataset.build()
    seed = config["seed"] if config["training_seed"] is None else config["training_seed"]
    return (
        ImpressionLoader(train, config["train_batch_size"], seed, config["shuffle"]),
        ImpressionLoader(valid, config["eval_batch_size"], with_placeholders=True),
        ImpressionLoader(test, config["eval_batch_size"], with_placeholders=True),
    )
