"""Several processes that score blocks of rows, each with the model; results keep their order."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import pyarrow as pa
import torch

from recbole_escm2.distributed import is_launched
from recbole_escm2.errors import UsageError
from recbole_escm2.serve.scorer import Scorer, Scores
from recbole_escm2.serve.validity import Counts, Validity
from recbole_escm2.threads import threads_of

T = TypeVar("T")
_WAITING = 2  # blocks a process, the one at work among them


class Workers:
    """Processes that score, for as long as the object is entered.

    They end with this process, whatever ends it, and an interrupt is this process's alone.

    Args:
        count: of processes, each of which holds the model.
        arguments: of :class:`~recbole_escm2.serve.scorer.Scorer`.
    """

    def __init__(self, count: int, arguments: tuple[Any, ...]) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), _begin, (arguments, threads_of(count))
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def scored(
        self, blocks: Iterable[T], rows_of: Callable[[T], tuple[pa.RecordBatch, str]]
    ) -> Iterator[tuple[T, Scores, Counts]]:
        """Blocks in their order, with their scores and what is counted of them.

        Errors come in that order, too: what can't be read in a block is said before what is wrong
        with the blocks behind it.

        Args:
            blocks: of rows; a few are read ahead.
            rows_of: the features of a block, and where it comes from.

        Raises:
            UsageError: as :meth:`Scorer.score`, or a process has ended before its time.
        """
        source = iter(blocks)
        waiting: deque[tuple[T, Future[tuple[Scores, Counts]]]] = deque()
        failure: UsageError | None = None
        is_left = True
        while True:
            while is_left and len(waiting) < self._count * _WAITING:
                try:
                    block = next(source)
                except StopIteration:
                    is_left = False
                except UsageError as error:
                    is_left, failure = False, error
                else:
                    waiting.append((block, self._submit(*rows_of(block))))
            if not waiting:
                break
            block, future = waiting.popleft()
            with _ended_in_words():
                scores, counts = future.result()
            yield block, scores, counts
        if failure is not None:
            raise failure

    def _submit(self, rows: pa.RecordBatch, where: str) -> Future[tuple[Scores, Counts]]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_batch(rows)
        with _ended_in_words():
            return self._pool.submit(_score, sink.getvalue().to_pybytes(), where)


@contextlib.contextmanager
def _ended_in_words() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UsageError(
            "a process that scores has ended before its time, killed perhaps, or for want of "
            "memory: each holds the model, so that fewer --workers need less"
        ) from error


def workers_of(options: Mapping[str, str]) -> int:
    """How many processes are to score: 1 is this one alone.

    Raises:
        UsageError: it is no number of processes, or torchrun has started several.
    """
    if is_launched():
        raise UsageError("predict is shared out by --workers=N: start it without torchrun")
    text = options.get("workers", "1")
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--workers must be a number of processes, got {text!r}")
    return int(text)


# ------------------------------------------------------------------ in a process of its own

# What a process of the pool has: concurrent.futures has no other place for what is made once.
_OWN: list[tuple[Scorer, Validity]] = []


def _begin(arguments: tuple[Any, ...], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)  # the process that began this one says it
    torch.set_num_threads(threads)
    scorer = Scorer(*arguments)
    _OWN.append((scorer, Validity(scorer)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score(content: bytes, where: str) -> tuple[Scores, Counts]:
    ((scorer, validity),) = _OWN
    rows = pa.ipc.open_stream(content).read_next_batch()
    return scorer.score(rows, where), validity.taken()
