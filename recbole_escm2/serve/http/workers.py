"""What scores for a server: a thread of its own process, or processes, each with the model."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from recbole_escm2.errors import UsageError
from recbole_escm2.pool import Ended, Pool
from recbole_escm2.serve.http.rows import Refused
from recbole_escm2.serve.http.served import Answer, Served, Told, digest_of, load
from recbole_escm2.threads import threads_of

Answers = list[Answer | Exception]


class Worker(Protocol):
    """Scores the requests of one caller at a time.

    Attributes:
        told: what a server tells of the model.
        is_there: whether it can score.
    """

    told: Told
    is_there: bool

    async def answers(self, bodies: Sequence[bytes], most: int) -> Answers:
        """As :meth:`.served.Served.answers`.

        Raises:
            Ended: its process has.
        """
        ...

    def again(self) -> None:
        """Begin another process with the same model.

        Raises:
            UsageError: it can't be loaded any more.
        """
        ...

    def close(self) -> None:
        """Wait for what is being scored, and end."""
        ...


class OwnThread:
    """A thread of this process.

    One is enough: the matrix products of a request use all threads of the process already.

    Args:
        served: the model.
    """

    is_there = True

    def __init__(self, served: Served) -> None:
        self.told, self._served = served.told, served
        self._thread = ThreadPoolExecutor(1, "scoring")

    async def answers(self, bodies: Sequence[bytes], most: int) -> Answers:
        """See :class:`Worker`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._served.answers, bodies, most)

    def again(self) -> None:
        """It doesn't end before this process does."""

    def close(self) -> None:
        """See :class:`Worker`."""
        self._thread.shutdown()


class OwnProcess:
    """A process with the model, which begins to load it.

    Args:
        count: of such processes.
        arguments: of :func:`.served.load`.
    """

    told: Told

    def __init__(self, count: int, arguments: tuple[Any, ...]) -> None:
        self._count, self._arguments = count, arguments
        self.is_there = False
        self._begin()

    def _begin(self) -> None:
        hint = "each holds the model, so that fewer --workers need less"
        self._pool = Pool(1, _begin, (threads_of(self._count),), "scores", hint)
        self._coming: Future[Told] = self._pool.submit(_load, *self._arguments)

    def loaded(self) -> Told:
        """What the process tells of the model that it has loaded.

        Raises:
            UsageError: as :func:`.served.load`, or it has ended.
        """
        with self._pool.ended_in_words():
            return self._coming.result()

    async def answers(self, bodies: Sequence[bytes], most: int) -> Answers:
        """See :class:`Worker`."""
        try:
            with self._pool.ended_in_words():
                return await asyncio.wrap_future(self._pool.submit(_answers, bodies, most))
        except Ended:
            self.is_there = False
            raise

    def again(self) -> None:
        """See :class:`Worker`."""
        self.close()
        path, own = self._arguments[0], self.told.digest
        if digest_of(path) == own:  # else there is no need to load it
            self._begin()
            self.is_there = self.loaded().digest == own
        if not self.is_there:
            hint = "start the server again, or with --watch"
            raise UsageError(f"{path} isn't the model any more that answers: {hint}")

    def close(self) -> None:
        """See :class:`Worker`."""
        self._pool.close()


def workers_with(count: int, *arguments: Any) -> list[Worker]:
    """What scores with the model at a path.

    Args:
        count: of processes; 1 is this one, else this one has no model.
        arguments: of :func:`.served.load`.

    Raises:
        UsageError: as :func:`.served.load`, or the model was replaced meanwhile.
    """
    if count == 1:
        return [OwnThread(load(*arguments))]
    with contextlib.ExitStack() as undo:
        found = [OwnProcess(count, arguments) for _ in range(count)]  # all load at once
        for own in found:
            undo.callback(own.close)
        for own in found:
            own.told, own.is_there = own.loaded(), True
        if len({own.told.digest for own in found}) > 1:
            raise UsageError(f"{arguments[0]} was replaced while it was loaded: try again")
        undo.pop_all()
    return [*found]


# ------------------------------------------------------------------ in a process of its own

# What a process of the pool has: concurrent.futures has no other place for what is made once.
_OWN: list[Served] = []


def _begin(threads: int) -> None:
    # Who ends a service or presses a key tells all of its processes; this one is still needed then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _load(*arguments: Any) -> Told:
    try:
        _OWN.append(load(*arguments))
    except (UsageError, OSError):
        raise
    except Exception as error:  # of a type that this server's process may not be able to read
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return _OWN[0].told


def _answers(bodies: Sequence[bytes], most: int) -> Answers:
    return [
        own if isinstance(own, Answer | Refused) else RuntimeError(_traceback(own))
        for own in _OWN[0].answers(bodies, most)
    ]


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).strip()
