"""The command ``serve``: options, a socket, and a process that ends when it is told to."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from logging import getLogger
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from recbole_escm2.errors import UsageError, system_message
from recbole_escm2.output import logging_to_terminal
from recbole_escm2.serve.http.app import make_app
from recbole_escm2.serve.http.served import signature_of
from recbole_escm2.serve.http.service import Limits, Service
from recbole_escm2.serve.http.workers import workers_with
from recbole_escm2.serve.options import is_true
from recbole_escm2.serve.scorer import ROWS

#: Options that are config keys.
SCORING = ("eval_batch_size",)
_IDLE = 30  # seconds in which a connection must have sent the head of its next request
_CONNECTIONS = 1000  # at once, of which most wait
_WORKERS = 1000  # more is a slip


def serve(options: Mapping[str, str]) -> int:
    """Answer requests for scores until a signal comes.

    Args:
        options: those that the command's help lists, as text.

    Raises:
        UsageError: something that the user can mend; the message says what.
    """
    if not (path := options.get("checkpoint")):
        raise UsageError("serve needs --checkpoint=…: a checkpoint, or the folder of a run")
    limits = limits_of(options)
    watched, choices = is_true(options, "watch", "False"), is_true(options, "examples", "True")
    settings = {key: options[key] for key in SCORING if key in options}
    count = _whole(options, "workers", 1, 1, _WORKERS)
    own = partial(workers_with, count, path, options.get("model"), options.get("device"), settings)
    host = options.get("host", "127.0.0.1")
    with logging_to_terminal(), _bound(host, _whole(options, "port", 8080, 0, 65535)) as bound:
        service = Service(own(), limits)
        look = partial(signature_of, path)
        beside = [service.look_after] if count > 1 else []
        beside += [partial(service.watch, look, own)] if watched else []
        app = make_app(service, choices, beside)
        _run(app, bound, service)
        getLogger().info("stopped; every request that had come was answered")
    return 0


def limits_of(options: Mapping[str, str]) -> Limits:
    """Limits by their options.

    Raises:
        UsageError: one is no number, or out of its range.
    """
    found: dict[str, Any] = {}
    for field in fields(Limits):
        if field.name == "timeout":
            found["timeout"] = _number(options, field.name, Limits.timeout)
        else:
            most = ROWS // 2 if field.name == "max_rows" else 1 << 40
            found[field.name] = _whole(options, field.name, field.default, 1, most)
    return Limits(**found)


def _whole(options: Mapping[str, str], name: str, default: Any, least: int, most: int) -> int:
    text = options.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise UsageError(f"--{name} must be a whole number, {least:,} to {most:,}, got {text!r}")
    return int(text)


def _number(options: Mapping[str, str], name: str, default: float) -> float:
    text = options.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 3600:
        raise UsageError(f"--{name} must be a number of seconds, at most 3600, got {text!r}")
    return value


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, at which nothing is listened for yet.

    Raises:
        UsageError: there is no such address, or another program has it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        said = system_message(error) if isinstance(error, OSError) else "it is no name of a host"
        raise UsageError(
            f"--host={host} --port={port} can't be listened at ({said}): name another port, or 0 "
            "for one that is free"
        ) from error
    return bound


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """A server that says it is about to stop before it does."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)


class _Protocol(H11Protocol):
    """A connection that is closed where the head of a request doesn't come in time, which the
    server's own limit on what is idle leaves open once a byte of it has come."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._end: asyncio.TimerHandle | None = None
        self._expect_head()

    def on_response_complete(self) -> None:
        self._expect_head()
        super().on_response_complete()

    def _expect_head(self) -> None:
        if self._end is not None:  # a timer keeps its request, too
            self._end.cancel()
        self._end = self.loop.call_later(_IDLE, self._end_without_head, self.cycle)

    def _end_without_head(self, last: Any) -> None:
        if self.cycle is last:
            self.transport.close()


def _run(app: Any, bound: socket.socket, service: Service) -> None:
    """Serve until SIGTERM or SIGINT, then until all that had come is answered."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=math.ceil(service.limits.timeout) + 1,
    )
    server = _Server(config, service)
    # Also until it runs, and when it sends itself the signal again once all is done.
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        bound.listen(config.backlog)  # from here on who asks waits for its answer
        print(f"{service.told.model} answers at {_address(bound)}", flush=True)
        server.run([bound])
    finally:
        signal.signal(signal.SIGTERM, before)
