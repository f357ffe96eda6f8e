"""Processes that share work out: results keep the order of what they are of, and so do errors."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar
from unittest.mock import patch

from recbole_escm2.errors import UsageError

T = TypeVar("T")
_WAITING = 2  # tasks a process, the one at work among them
_STARTING = threading.Lock()


class Ended(UsageError):
    """A process has ended before its time."""


class Pool:
    """Processes, for as long as the object is entered.

    They end with this process, whatever ends it, and an interrupt is this process's alone.

    Args:
        count: of processes.
        begin: what each does first, a function of a module.
        arguments: of it.
        does: what a process does, for the message where one has ended before its time.
        hint: what may help then.
    """

    def __init__(
        self,
        count: int,
        begin: Callable[..., None],
        arguments: tuple[Any, ...],
        does: str,
        hint: str,
    ) -> None:
        self._count, self._does, self._hint = count, does, hint
        self._pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), _begin, (begin, arguments)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is at work, and end the processes."""
        self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin a task, whose result belongs into :meth:`ended_in_words`.

        Args:
            function: of a module.
            arguments: of it.

        Raises:
            Ended: a process has ended before its time.
        """
        with self.ended_in_words(), without_main_module():
            return self._pool.submit(function, *arguments)

    def results(
        self, function: Callable[..., Any], tasks: Iterable[tuple[T, tuple[Any, ...]]]
    ) -> Iterator[tuple[T, Any]]:
        """What a function makes of each task, in their order.

        Errors come in that order, too: a task that can't be read is told after what is wrong with
        the ones before it.

        Args:
            function: of a module.
            tasks: what is given back with a result, and the function's arguments; a few are read
                ahead.

        Raises:
            UsageError: as tasks and function.
            Ended: a process has ended before its time.
        """
        source = iter(tasks)
        waiting: deque[tuple[T, Future[Any]]] = deque()
        failure: UsageError | None = None
        is_left = True
        while True:
            while is_left and len(waiting) < self._count * _WAITING:
                try:
                    task, arguments = next(source)
                except StopIteration:
                    is_left = False
                except UsageError as error:
                    is_left, failure = False, error
                else:
                    waiting.append((task, self.submit(function, *arguments)))
            if not waiting:
                break
            task, future = waiting.popleft()
            with self.ended_in_words():
                result = future.result()
            yield task, result
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def ended_in_words(self) -> Iterator[None]:
        """Raise :class:`Ended` where a process has ended before its time."""
        try:
            yield
        except BrokenProcessPool as error:
            said = "has ended before its time, killed perhaps, or for want of memory"
            raise Ended(f"a process that {self._does} {said}: {self._hint}") from error


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Keep processes that are begun meanwhile from importing the program's main module.

    Nothing of it is needed there, and a script without ``if __name__ == "__main__"`` would do all
    of its work again.
    """
    main_module = sys.modules["__main__"]
    with (
        _STARTING,  # threads that undo it in another order would leave it so
        patch.object(main_module, "__spec__", None),
        patch.object(main_module, "__file__", None, create=True),
    ):
        yield


# ------------------------------------------------------------------ in a process of its own


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)  # the process that began this one says it
    begin(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
