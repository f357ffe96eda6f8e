"""Batches of impressions, gathered by tensor index."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from recbole_escm2.data.batch import Batch, position_dtype
from recbole_escm2.data.dataset import EntireSpaceDataset
from recbole_escm2.distributed import bounds, rank, share_of, world_size
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
        if self.with_placeholders:
            first, end = bounds(self.batches, world_size())[rank() :][:2]
        else:
            first, end = bounds(self.batches, self.parts)[self.part :][:2]
        return first, end

    @property
    def edges(self) -> list[int]:
        """Where the rows of each process begin in evaluation, and where the last one's end."""
        rows = len(self._dataset)
        return [min(rows, n * self.batch_size) for n in bounds(self.batches, world_size())]

    @property
    def batches_behind(self) -> int:
        """How many batches fewer this process scores in evaluation than the one with the most."""
        counts = [end - begin for begin, end in pairwise(bounds(self.batches, world_size()))]
        return max(counts) - counts[rank()]

    def __bool__(self) -> bool:
        """Whether the split has a row, of this process or of another."""
        return len(self._dataset) > 0

    def __len__(self) -> int:
        first, end = self._bounds()
        return end - first

    def __iter__(self) -> Iterator[Any]:
        rows = len(self._dataset)
        order = None
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(rows, generator=generator, dtype=position_dtype(rows))
        first, last = self._bounds()
        for number in range(first + self._first, last):
            begin, end = number * self.batch_size, min(rows, (number + 1) * self.batch_size)
            share = None if self.with_placeholders else share_of(end - begin)
            if share is not None:
                begin, end = begin + share.begin, begin + max(share.end, share.begin + 1)
            stretch = slice(begin, end)
            batch: Batch = self._dataset[stretch if order is None else order[stretch]]
            batch.share = share
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
