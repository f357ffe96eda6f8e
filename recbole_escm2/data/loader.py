"""Batches of impressions, gathered by tensor index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_escm2.data.batch import position_dtype
from recbole_escm2.data.dataset import EntireSpaceDataset
from recbole_escm2.errors import UsageError
from recbole_escm2.keys import training_seed


class ImpressionLoader:
    """Hands out a split in batches, with what RecBole's Trainer asks of a loader.

    An epoch is one order of all rows. It may be handed out in several parts, a pass over the loader
    each, so that validation can come between them: each counts as one of RecBole's epochs.

    Args:
        dataset: a built split.
        batch_size: impressions a batch; the last one holds the rest.
        seed: of the order; it depends on the seed and the epoch only.
        shuffle: a new order each epoch (training), or that of the rows (evaluation).
        with_placeholders: batches in the form that RecBole's evaluation expects, a tuple.
        parts: how many an epoch has; never more than batches.

    Attributes:
        epoch: whose order the next pass has.
        part: which of its parts that is, from 0.
    """

    def __init__(
        self,
        dataset: EntireSpaceDataset,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        with_placeholders: bool = False,
        parts: int = 1,
    ) -> None:
        self._dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.with_placeholders = with_placeholders
        self.epoch, self.part, self._first = 0, 0, 0
        self.parts = max(1, min(parts, self.batches))

    @property
    def dataset(self) -> EntireSpaceDataset:
        """The split."""
        return self._dataset

    @property
    def is_sequential(self) -> bool:
        """What RecBole's ``case_study`` asks of a loader first.

        Raises:
            UsageError: always: impressions have no candidate items to rank.
        """
        raise UsageError(
            "RecBole's case_study ranks all items for a user, and impressions are scored as they "
            "were logged: recbole_escm2.load(PATH).predict(rows) scores the rows that you name"
        )

    @property
    def batches(self) -> int:
        """Of a whole epoch."""
        return -(-len(self._dataset) // self.batch_size)

    def set_epoch(self, number: int) -> None:
        """Choose the next pass: its number, from 0, parts of all epochs counted."""
        self.epoch, self.part = divmod(number, self.parts)
        self._first = 0

    def begin_at(self, batch: int) -> None:
        """Leave out the first batches of the passes with this number, which are done already."""
        self._first = batch

    def _bounds(self) -> tuple[int, int]:
        """The batches of the part, from the first to before the second."""
        first, end = (self.batches * part // self.parts for part in (self.part, self.part + 1))
        return first, end

    def __len__(self) -> int:
        first, end = self._bounds()
        return end - first

    def __iter__(self) -> Iterator[Any]:
        rows = len(self._dataset)
        order = None
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(rows, generator=generator, dtype=position_dtype(rows))
        first, end = self._bounds()
        for number in range(first + self._first, end):
            stretch = slice(number * self.batch_size, (number + 1) * self.batch_size)
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
    seed = training_seed(config)
    of_train = {"shuffle": config["shuffle"], "parts": config["validations_per_epoch"]}
    return (
        ImpressionLoader(train, config["train_batch_size"], seed, **of_train),
        ImpressionLoader(valid, config["eval_batch_size"], with_placeholders=True),
        ImpressionLoader(test, config["eval_batch_size"], with_placeholders=True),
    )
