"""Sample ids of a text: how many of its lines have the id of an earlier one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class SampleIds:
    """The ids of a text's impressions, and where each stands.

    Where they ascend, no two are the same. Others are sorted at the end: 8 bytes each are kept, and
    8 more while they are sorted, but none of a stretch in which each number is one more than the
    last, as in the official files.

    Attributes:
        place: the least id that is repeated and its first two rows, in words; by :meth:`repeated`.
    """

    def __init__(self) -> None:
        self.place = ""
        self._stretches: list[tuple[Numbers | range, Numbers | range]] = []
        self._ascend, self._last = True, -1

    def add(self, sample: NDArray[np.uint64], row: Numbers) -> None:
        """Add lines: their ids, and their rows in the text, counted from 0."""
        if not len(sample):
            return
        ids = sample.astype(np.int64)  # raw.MOST_DIGITS fit
        self._ascend &= bool(ids[0] > self._last and (ids[1:] > ids[:-1]).all())
        self._last = int(ids[-1])
        self._stretches.append((_short(ids), _short(row)))

    def repeated(self) -> int:
        """Lines whose id an earlier one has; sets :attr:`place`."""
        if self._ascend:
            return 0
        ids = np.empty(sum(len(own) for own, _ in self._stretches), np.int64)
        start = 0
        for own, _ in self._stretches:
            ids[start : start + len(own)] = _whole(own)
            start += len(own)
        ids.sort()
        again = ids[1:][ids[1:] == ids[:-1]]
        if len(again):
            rows = [_whole(row)[_whole(own) == again[0]] for own, row in self._stretches]
            first, second, *_ = np.concatenate(rows) + 1
            self.place = f"sample_id {again[0]} in rows {first:,} and {second:,}"
        return len(again)


def _short(numbers: Numbers) -> Numbers | range:
    """Numbers that count upward one by one as a range, which takes no room."""
    if (np.diff(numbers) == 1).all():
        return range(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _whole(numbers: Numbers | range) -> Numbers:
    if isinstance(numbers, range):
        return np.arange(numbers.start, numbers.stop)
    return numbers
