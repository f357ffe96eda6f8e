"""Reading ahead: a thread or processes fetch what comes next while what is there is worked on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from recbole_escm2.pool import Pool

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
            if isinstance(stream, Generator):
                stream.close()  # now, with the processes that it may have


@contextlib.contextmanager
def converting(workers: int) -> Iterator[Pool | None]:
    """Processes that read parts of files; None where this one does so alone.

    Args:
        workers: how many; 0 for none beside this one.
    """
    if not workers:
        yield None
        return
    hint = "what each reads is in memory, so that fewer of them need less (worker)"
    with Pool(workers, pa.set_cpu_count, (1,), "reads the data", hint) as pool:
        yield pool
