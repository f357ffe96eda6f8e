"""What a server has while it runs: what scores for it, limits, numbers of itself."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from recbole_escm2.errors import UsageError
from recbole_escm2.pool import Ended
from recbole_escm2.serve.http.rows import Refused
from recbole_escm2.serve.http.served import Answer, Signature
from recbole_escm2.serve.http.workers import Worker

_POLL = 1.0  # seconds between two looks at the checkpoint, and at workers without work
_AGAIN = 10.0  # seconds until a worker that couldn't be replaced is tried again
_TOGETHER = 1 << 19  # bytes of requests whose rows are scored together
_NAME = "recbole_escm2"
_ENDED = (
    "the process that scored this has ended before its time, killed perhaps, or for want of "
    "memory, and is replaced: try again"
)
_NONE = (
    "the processes that score have ended, and are replaced: try again; the server's log says more"
)


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        max_body: bytes of its body.
        max_rows: rows in it.
        max_requests: requests at once; others are sent away.
        timeout: seconds in which it must have come and be answered.
    """

    max_body: int = 16_000_000
    max_rows: int = 10_000
    max_requests: int = 64
    timeout: float = 30.0


class Metrics:
    """Numbers of a server as Prometheus reads them."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{_NAME}_requests", "Requests for scores, by answer", ["code"], registry=own
        )
        self.seconds = Histogram(
            f"{_NAME}_request_seconds", "From a request for scores to its answer", registry=own
        )
        self.active = Gauge(
            f"{_NAME}_requests_active", "Requests for scores without an answer yet", registry=own
        )
        self.rows = Counter(f"{_NAME}_rows", "Rows scored", registry=own)
        self.invalid = Counter(
            f"{_NAME}_rows_not_valid",
            "Rows with a pCTR below that of clicks",
            registry=own,
        )
        self.unknown = Counter(
            f"{_NAME}_rows_with_unknown",
            "Rows with a token that train lacks",
            ["field"],
            registry=own,
        )
        self.loads = Counter(
            f"{_NAME}_model_loads", "New checkpoints seen, by outcome", ["outcome"], registry=own
        )
        self.lost = Counter(
            f"{_NAME}_workers_lost", "Processes that scored and have ended", registry=own
        )
        self.workers = Gauge(f"{_NAME}_workers", "What can score at once", registry=own)
        self.model = Info(f"{_NAME}_model", "The model that answers", registry=own)


class Service:
    """A server's state.

    Args:
        workers: that score, with one model.
        limits: of requests.

    Attributes:
        told: of the model that answers the next request.
        draining: whether the server is about to end.
        reload_error: why the checkpoint that is on disk now wasn't taken, or None.
    """

    def __init__(self, workers: Sequence[Worker], limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.metrics.workers.set_function(lambda: self.there)
        self.active = 0
        self.draining = False
        self.reload_error: str | None = None
        self._waiting: deque[tuple[bytes, asyncio.Future[Answer]]] = deque()
        self._workers: Sequence[Worker] = ()
        self._free: deque[Worker] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._take(workers)

    def _take(self, workers: Sequence[Worker]) -> None:
        self._workers, self.told = workers, workers[0].told
        idle, self._free = self._free, deque(workers)
        self._set_to_work([*idle])  # which ends them
        if self._waiting:
            self._look_after_free()
        self.metrics.model.info({"model": self.told.model, "digest": self.told.digest})

    @property
    def there(self) -> int:
        """How many workers can score."""
        return sum(own.is_there for own in self._workers)

    async def answer(self, body: bytes) -> Answer:
        """Scores of a request, by the model that is in place when its turn comes.

        Small requests that wait at the same time are scored together.

        Raises:
            Refused: it can't be scored.
        """
        if not self.there:
            raise Refused(503, _NONE)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, future))
        if self._free:
            self._set_to_work([self._free.popleft()])
        found = await future
        self.metrics.rows.inc(found.rows)
        self.metrics.invalid.inc(found.invalid)
        for field, count in found.unknown.items():
            self.metrics.unknown.labels(field).inc(count)
        return found

    def _set_to_work(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            task = asyncio.create_task(self._until_none_waits(worker))
            self._tasks.add(task)  # which nothing else holds
            task.add_done_callback(self._tasks.discard)

    async def _until_none_waits(self, worker: Worker) -> None:
        while worker in self._workers:
            taken = list(self._next_ones())
            answers: Sequence[Answer | Exception]
            bodies = [body for body, _ in taken]
            try:
                answers = await worker.answers(bodies, self.limits.max_rows)
            except Ended as error:
                getLogger().error("%s; it is replaced", error)
                answers = [Refused(503, _ENDED)] * len(taken)
            except Exception as error:
                answers = [error] * len(taken)
            for (_, future), answer in zip(taken, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
            if not worker.is_there:
                await self._replace(worker)
            if not self._waiting and worker in self._workers:
                self._free.append(worker)
                return
        await asyncio.to_thread(worker.close)

    def _next_ones(self) -> Iterator[tuple[bytes, asyncio.Future[Answer]]]:
        """Requests that are scored together: at least one, while any is still waited for."""
        size = 0
        while self._waiting and (not size or size + len(self._waiting[0][0]) <= _TOGETHER):
            body, future = self._waiting.popleft()
            if not future.done():  # else its time was over
                size += len(body)
                yield body, future

    async def _replace(self, worker: Worker) -> None:
        """Have a worker's process begun again, until it is or the model is another one."""
        self.metrics.lost.inc()
        start = time.monotonic()
        while worker in self._workers and not worker.is_there:
            try:
                await asyncio.to_thread(worker.again)
            except Exception as error:
                getLogger().error("it can't be replaced: %s", error)
                await asyncio.sleep(_AGAIN)
            else:
                getLogger().info("it is replaced, in %.1f s", time.monotonic() - start)

    async def look_after(self) -> None:
        """See each second that workers without work are there, until cancelled."""
        while True:
            await asyncio.sleep(_POLL)
            self._look_after_free()

    def _look_after_free(self) -> None:
        """Have those that are free take what waits, if anything does."""
        idle, self._free = self._free, deque()
        self._set_to_work(idle)

    def close(self) -> None:
        """Wait for what is being scored."""
        for worker in self._workers:
            worker.close()

    async def watch(
        self, look: Callable[[], Signature], load: Callable[[], Sequence[Worker]]
    ) -> None:
        """Put the model of a checkpoint in place whenever it is replaced, until cancelled.

        The new one is loaded beside the old one, which answers meanwhile, and goes on answering
        where the new one can't be loaded.

        Args:
            look: tells of the checkpoint's files.
            load: gives workers with their model.
        """
        tried = self.told.signature
        while True:
            await asyncio.sleep(_POLL)
            seen = await asyncio.to_thread(look)
            if seen == tried:
                continue
            tried = seen
            start = time.monotonic()
            try:
                new = await asyncio.to_thread(load)
            except (UsageError, OSError) as error:
                self._keep(str(error))
            except Exception as error:  # a file that nobody wrote as it should be
                getLogger().exception("the new checkpoint can't be loaded")
                self._keep(f"{type(error).__name__}: {error}")
            else:
                tried = new[0].told.signature
                self._exchange(new, time.monotonic() - start)

    def _keep(self, error: str) -> None:
        self.reload_error = error
        self.metrics.loads.labels("failed").inc()
        getLogger().error(
            "the new checkpoint isn't taken, and model %s goes on: %s", self.told.digest, error
        )

    def _exchange(self, workers: Sequence[Worker], seconds: float) -> None:
        old = self.told
        self._take(workers)
        new = self.told
        self.reload_error = None
        self.metrics.loads.labels("done").inc()
        getLogger().info(
            "model %s is in place of %s, loaded in %.1f s", new.digest, old.digest, seconds
        )
        before, now = ({f.name for f in own.features} for own in (old, new))
        if before != now:
            getLogger().warning(
                "it reads other fields, and requests for the old ones are refused: new are %s, "
                "gone are %s",
                ", ".join(sorted(now - before)) or "none",
                ", ".join(sorted(before - now)) or "none",
            )
