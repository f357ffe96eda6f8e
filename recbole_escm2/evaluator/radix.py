"""A radix sort, compiled by numba: linear in the rows, whatever their values and the processor."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_DIGITS = 256


def radix_sort(values: NDArray[Any]) -> None:
    """Sorts in place, in ascending order; -0.0 comes before 0.0, a NaN first or last.

    Takes as much memory again while it runs.

    Args:
        values: Of dtype float32, float64 or uint64, contiguous and writeable, ``[N]``.
    """
    keys = values.view(f"u{values.itemsize}")
    _sort(keys, np.empty_like(keys), values.dtype.kind == "f")


@njit(cache=True)
def _sort(keys, spare, floats):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Least significant byte first; a byte that is the same in all keys costs no move."""
    one = np.uint64(1)
    sign = np.uint64(8 * keys.itemsize - 1)
    count = np.zeros((keys.itemsize, _DIGITS), dtype=np.int64)
    for i in range(keys.size):
        key = np.uint64(keys[i])
        if floats:
            # IEEE 754: the bits order as the values do once a negative's are all inverted, and a
            # positive's sign is.
            keys[i] = key ^ ((one << sign) | (np.uint64(0) - (key >> sign)))
            key = np.uint64(keys[i])
        for byte in range(keys.itemsize):
            count[byte, key & np.uint64(_DIGITS - 1)] += 1
            key >>= np.uint64(8)
    source, target = keys, spare
    for byte in range(keys.itemsize):
        place = count[byte]
        if place.max() == keys.size:
            continue
        total = 0
        for at in range(_DIGITS):
            place[at], total = total, total + place[at]
        shift = np.uint64(8 * byte)
        for i in range(source.size):
            key = np.uint64(source[i])
            digit = (key >> shift) & np.uint64(_DIGITS - 1)
            target[place[digit]] = key
            place[digit] += 1
        source, target = target, source
    for i in range(keys.size):
        key = np.uint64(source[i])
        if floats:
            key ^= (one << sign) | ((key >> sign) - one)
        keys[i] = key
