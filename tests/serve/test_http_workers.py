"""Several processes answer as one does; one that ends takes its own requests with it alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
from processes import NEEDS_PROC, are_gone, children
from starlette.testclient import TestClient
from test_http import BODIES, GOOD, WRONG, posted, rows_of
from test_http_process import other_model, until

from recbole_escm2.errors import UsageError
from recbole_escm2.serve.http import service as service_module
from recbole_escm2.serve.http import workers as module
from recbole_escm2.serve.http.app import make_app
from recbole_escm2.serve.http.rows import Refused
from recbole_escm2.serve.http.service import Limits, Service
from recbole_escm2.serve.http.workers import workers_with

BODY = json.dumps({"rows": [GOOD]}).encode()


@pytest.fixture(scope="module")
def clients(done):
    """Of a server with one process, and of one with two."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                TestClient(
                    make_app(Service(workers_with(n, str(done.folder), None, "cpu", {}), Limits()))
                )
            )
            for n in (1, 2)
        ]


def test_answers_are_the_same_bytes(clients, done):
    rows = rows_of(done.frame[:700])
    rows[3]["user_id"] = "nobody"
    wrong = [{**GOOD, field: value} for field, value, *_ in WRONG]
    contents = [*([one] for one in rows[:20]), rows, [], *([GOOD, one, 7] for one in wrong)]
    bodies = [json.dumps({"rows": content}).encode() for content in contents]
    for body in [*bodies, *(body for body, *_ in BODIES)]:
        one, two = (posted(client, body) for client in clients)
        assert (two.status_code, two.content) == (one.status_code, one.content)


@pytest.mark.parametrize("path", ["/model", "/openapi.json", "/health"])
def test_what_is_told_is_the_same(clients, path):
    one, two = (client.get(path).json() for client in clients)
    if path == "/health":
        assert (one.pop("workers"), two.pop("workers")) == (1, 2)
    assert {**two, "loaded": None} == {**one, "loaded": None}


def test_a_fault_of_ours_comes_with_its_place_whatever_its_type(monkeypatch):
    class Odd(Exception):
        """Which no other process can read."""

    def answers(bodies, most):
        try:
            raise Odd("a secret")
        except Odd as error:
            return [error]

    monkeypatch.setattr(module, "_OWN", [SimpleNamespace(answers=answers)])
    (error,) = pickle.loads(pickle.dumps(module._answers([b""], 1)))
    assert type(error) is RuntimeError
    assert "in answers" in str(error)
    assert "a secret" in str(error)


class Running:
    """A service with two processes."""

    def __init__(self, path) -> None:
        self.service = Service(workers_with(2, str(path), None, "cpu", {}), Limits())

    def processes(self) -> list[int]:
        pools = (own._pool._pool for own in self.service._workers)
        return [process for pool in pools for process in pool._processes]

    def lost(self) -> float:
        return self.service.metrics.registry.get_sample_value("recbole_escm2_workers_lost_total")

    async def until(self, is_so) -> None:
        for _ in range(1200):
            if is_so():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it didn't come to be so")

    @contextlib.asynccontextmanager
    async def looked_after(self):
        task = asyncio.create_task(self.service.look_after())
        yield
        task.cancel()


@pytest.fixture
def running(monkeypatch):
    """Begins one, and ends it."""
    monkeypatch.setattr(service_module, "_POLL", 0.05)
    monkeypatch.setattr(service_module, "_AGAIN", 0.05)
    monkeypatch.setattr(service_module, "_TOGETHER", 1)
    begun = []

    def begin(path):
        begun.append(Running(path))
        return begun[-1]

    yield begin
    for own in begun:
        processes = {*own.processes()}
        own.service.close()
        assert are_gone(processes)


@NEEDS_PROC
def test_a_process_that_is_killed_ends_its_request_and_is_replaced(done, running, caplog):
    own = running(done.folder)

    async def killed():
        first, second = own.processes()
        for process in (first, second):
            os.kill(process, signal.SIGSTOP)
        asked = [asyncio.create_task(own.service.answer(BODY)) for _ in range(3)]
        await asyncio.sleep(0.1)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Refused, match="has ended before its time") as caught:
            await asked[0]
        assert caught.value.status == 503
        assert own.service.there == 1
        os.kill(second, signal.SIGCONT)  # which answers what waited for either, meanwhile
        assert [(await one).rows for one in asked[1:]] == [1, 1]
        await own.until(lambda: own.service.there == 2)
        assert own.lost() == 1
        assert "killed perhaps" in caplog.text
        # One that has nothing to do is missed, too.
        (third,) = {*own.processes()} - {second}
        async with own.looked_after():
            os.kill(third, signal.SIGKILL)
            await own.until(lambda: own.lost() == 2 and own.service.there == 2)
        answers = await asyncio.gather(*(own.service.answer(BODY) for _ in range(8)))
        assert len({one.body for one in answers}) == 1

    asyncio.run(killed())


@NEEDS_PROC
def test_another_model_is_none_to_replace_a_process_with(done, running, tmp_path, caplog):
    file, kept = tmp_path / "checkpoint.pth", tmp_path / "kept.pth"
    shutil.copy(done.folder / "checkpoint.pth", file)
    own = running(file)

    async def killed():
        shutil.move(file, kept)
        other_model(kept, file)
        async with own.looked_after():
            os.kill(own.processes()[0], signal.SIGKILL)
            await own.until(lambda: "can't be replaced" in caplog.text)
            assert "isn't the model any more that answers" in caplog.text
            assert own.service.there == 1
            digest = own.service.told.digest
            assert json.loads((await own.service.answer(BODY)).body)["model"] == digest
            shutil.move(kept, file)
            await own.until(lambda: own.service.there == 2)
            assert own.lost() == 1

    asyncio.run(killed())


def test_where_no_process_is_left_it_is_said(done):
    workers = workers_with(1, str(done.folder), None, "cpu", {})
    with TestClient(make_app(Service(workers, Limits()))) as client:
        workers[0].is_there = False
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "no worker")
        answer = posted(client, BODY)
        assert answer.status_code == 503
        assert "the processes that score have ended" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"


@NEEDS_PROC
def test_a_model_that_cant_be_loaded_is_said_and_leaves_no_process(tmp_path):
    before = children()
    with pytest.raises(UsageError, match="there is no such file"):
        workers_with(2, str(tmp_path / "gone.pth"), None, "cpu", {})
    until(lambda: children() <= before)


def test_a_model_that_is_replaced_while_it_is_loaded_is_said(monkeypatch, done):
    (own,) = workers_with(1, str(done.folder), None, "cpu", {})
    tolds, closed = iter([own.told, replace(own.told, digest="another")]), []

    def process(*_):
        return SimpleNamespace(loaded=lambda: next(tolds), close=lambda: closed.append(1))

    monkeypatch.setattr(module, "OwnProcess", process)
    with pytest.raises(UsageError, match="was replaced while it was loaded"):
        workers_with(2, "C")
    assert closed == [1, 1]
