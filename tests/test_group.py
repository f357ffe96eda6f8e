"""What a process of several does when the others can't be reached."""

import contextlib
import socket
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed

from recbole_escm2 import distributed


@pytest.fixture
def connection():
    """Both ends of one."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        own = stack.enter_context(socket.create_connection(server.getsockname()))
        yield own, stack.enter_context(server.accept()[0])


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this is Linux's")
def test_a_silent_connection_is_ended_by_the_system(connection, tmp_path):
    with open(tmp_path / "file", "wb") as file:  # no socket, which stays as it is
        distributed._bound_silence()
        file.write(b"written")
    assert (tmp_path / "file").read_bytes() == b"written"
    for end in connection:
        found = {
            name: end.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        }
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found["TCP_USER_TIMEOUT"] == 60_000
        idle, more = found["TCP_KEEPIDLE"], found["TCP_KEEPINTVL"] * found["TCP_KEEPCNT"]
        assert idle + more == 60
    own, other = connection
    own.sendall(b"still there")
    assert other.recv(20) == b"still there"


def start(store, order):
    """Ranks that come one after the other; each one's part of the store."""
    found = {}

    def come(rank):
        found[rank] = distributed._of_this_start(store, rank, len(order))

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in order]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(len(order))]


def test_a_restart_reads_nothing_of_the_one_before():
    """Whoever comes first: addresses there are of processes that are gone."""
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=20))
    for number, order in enumerate(([0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 0, 2])):
        if number == 2:  # one that was ended before all had come
            store.set(distributed._START, "ended")
        first, *others = start(store, order)
        assert not first.check(["address"])
        first.set("address", str(number))
        assert [own.get("address") for own in others] == [str(number).encode()] * 2


class LostStore:
    """A store on a machine that can't be reached."""

    def compare_set(self, *_):
        raise RuntimeError("Connection timed out")


@pytest.mark.parametrize(("of_machine", "says"), [("0", True), ("1", False)])
def test_one_process_of_each_machine_says_that_the_others_are_lost(monkeypatch, of_machine, says):
    monkeypatch.setenv("LOCAL_RANK", of_machine)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    assert distributed._is_first_to_fail(LostStore(), own=3) is says
