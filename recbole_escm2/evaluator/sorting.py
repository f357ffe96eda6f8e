"""Sorting many values by the fastest means at hand."""

from typing import Any

from numpy.typing import NDArray

# Below, sorting takes less time than loading what is compiled.
_MANY = 1 << 20


def sort_in_place(values: NDArray[Any]) -> None:
    """Sorts in ascending order; the ends show whether all are finite, as a NaN is never inside.

    Many values are sorted by radix, as numpy's speed depends much on the processor. Takes as much
    memory again while it runs.

    Args:
        values: Of dtype float32, float64 or uint64, contiguous and writeable, ``[N]``.
    """
    if values.size >= _MANY:
        try:
            from recbole_escm2.evaluator.radix import radix_sort
        except (ImportError, RuntimeError):
            pass  # numba refuses a numpy newer than itself, and to have nowhere to keep its cache
        else:
            radix_sort(values)
            return
    values.sort()
