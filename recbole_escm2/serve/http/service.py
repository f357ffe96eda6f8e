"""What a server has while it runs: the model, a thread that scores, limits, numbers of itself."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from recbole_escm2.errors import UsageError
from recbole_escm2.serve.http.served import Answer, Served, Signature

_POLL = 1.0  # seconds between two looks at the checkpoint
_TOGETHER = 1 << 19  # bytes of requests whose rows are scored together
_NAME = "recbole_escm2"


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
        self.model = Info(f"{_NAME}_model", "The model that answers", registry=own)


class Service:
    """A server's state.

    Args:
        served: the model to begin with.
        limits: of requests.

    Attributes:
        served: the model that answers the next request.
        draining: whether the server is about to end.
        reload_error: why the checkpoint that is on disk now wasn't taken, or None.
    """

    def __init__(self, served: Served, limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.active = 0
        self.draining = False
        self.reload_error: str | None = None
        # One: the matrix products of a request use all threads of the process already.
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._waiting: deque[tuple[bytes, asyncio.Future[Answer]]] = deque()
        self._work: asyncio.Task[None] | None = None
        self._take(served)

    def _take(self, served: Served) -> None:
        self.served = served
        self.metrics.model.info({"model": served.model, "digest": served.digest})

    async def answer(self, body: bytes) -> Answer:
        """Scores of a request, by the model that is in place when its turn comes.

        Small requests that wait at the same time are scored together.

        Raises:
            Refused: it can't be scored.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._until_none_waits())
        found = await future
        self.metrics.rows.inc(found.rows)
        self.metrics.invalid.inc(found.invalid)
        for field, count in found.unknown.items():
            self.metrics.unknown.labels(field).inc(count)
        return found

    async def _until_none_waits(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken = list(self._next_ones())
            bodies = [body for body, _ in taken]
            answers: list[Answer | Exception]
            try:
                answers = await loop.run_in_executor(self._thread, self._answers, bodies)
            except Exception as error:
                answers = [error] * len(taken)
            for (_, future), answer in zip(taken, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next_ones(self) -> Iterator[tuple[bytes, asyncio.Future[Answer]]]:
        """Requests that are scored together: at least one, while any is still waited for."""
        size = 0
        while self._waiting and (not size or size + len(self._waiting[0][0]) <= _TOGETHER):
            body, future = self._waiting.popleft()
            if not future.done():  # else its time was over
                size += len(body)
                yield body, future

    def _answers(self, bodies: list[bytes]) -> list[Answer | Exception]:
        return self.served.answers(bodies, self.limits.max_rows)

    def close(self) -> None:
        """Wait for what is being scored."""
        self._thread.shutdown()

    async def watch(self, look: Callable[[], Signature], load: Callable[[], Served]) -> None:
        """Put the model of a checkpoint in place whenever it is replaced, until cancelled.

        The new one is loaded beside the old one, which answers meanwhile, and goes on answering
        where the new one can't be loaded.

        Args:
            look: tells of the checkpoint's files.
            load: gives their model.
        """
        tried = self.served.signature
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
                tried = new.signature
                self._exchange(new, time.monotonic() - start)

    def _keep(self, error: str) -> None:
        self.reload_error = error
        self.metrics.loads.labels("failed").inc()
        getLogger().error(
            "the new checkpoint isn't taken, and model %s goes on: %s", self.served.digest, error
        )

    def _exchange(self, new: Served, seconds: float) -> None:
        old = self.served
        self._take(new)
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
