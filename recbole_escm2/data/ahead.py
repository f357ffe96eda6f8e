"""Reading ahead: a thread fetches what comes next while what is there is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Items in their order, of which a thread fetches the next ones.

    Args:
        items: none of them None.
        count: how many are fetched before they are asked for.
    """
    stream = iter(items)
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(next, stream, None) for _ in range(count))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(reader.submit(next, stream, None))
                yield item
        finally:
            reader.shutdown(cancel_futures=True)
