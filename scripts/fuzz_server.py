"""Sends damaged requests to ``serve`` for some minutes, by several clients at once.

A server is started on a small model with a field of every kind. Requests are drawn from a seed:
bodies with damaged rows, methods, paths and headers that are odd, heads that are flipped, cut,
swapped or repeated, bodies in chunks, too long, cut off, or one right behind the other. Findings:

- ``crash``: the server has ended, answers 500, or its log has a traceback;
- ``hang``: a whole request, or one for ``/health`` beside the others, isn't answered in
  ``--limit`` seconds;
- ``garbage``: what comes isn't HTTP;
- ``difference``: after it all a request is answered otherwise than before.

    python scripts/fuzz_server.py --minutes=5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import keep
from fuzzing.damage import damaged, damaged_values
from fuzzing.models import Requests

FINDINGS = ("crash", "hang", "garbage", "difference")
COLUMNS = ("kind", "seed", "minutes", "requests", "scored", "refused", "closed", *FINDINGS)
COLUMNS += ("memory_mib", "memory_growth_mib")
RESULT = Path(__file__).parents[1] / "results" / "reliability" / "server.csv"
_CLIENTS = 4
_OPTIONS = ("--port=0", "--timeout=5", "--max_rows=200", "--max_body=200000", "--max_requests=8")
_ODD = (b"", b" ", b"\0", b"%00", b"..%2f..%2fetc/passwd", b"?x=1", b"//", b"\xff", b"a" * 70_000)


def head(method: bytes, path: bytes, *headers: bytes) -> bytes:
    """The head of a request."""
    lines = [method + b" " + path + b" HTTP/1.1", b"host: a", b"connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    """A whole request for scores."""
    return head(b"POST", b"/predict", b"content-length: %d" % len(body), *headers) + body


class Requester:
    """Draws requests.

    Args:
        body: of a sound one.
        seed: of all.
    """

    def __init__(self, body: bytes, seed: str) -> None:
        self.body, self.draw = body, random.Random(seed)

    def next(self) -> tuple[bytes, bool]:
        """The bytes of a request, and whether it is a whole one, which has to be answered."""
        ways: tuple[Callable[[], tuple[bytes, bool]], ...] = (
            *(self._rows, self._rows, self._bytes, self._place, self._headers, self._damaged_head),
            *(self._chunks, self._long, self._cut, self._two),
        )
        return self.draw.choice(ways)()

    def _rows(self) -> tuple[bytes, bool]:
        content = damaged_values(json.loads(self.body), self.draw)
        return post(json.dumps(content, default=str).encode()), True

    def _bytes(self) -> tuple[bytes, bool]:
        return post(damaged(self.body, self.draw, b",")), True

    def _place(self) -> tuple[bytes, bool]:
        method = self.draw.choice((b"GET", b"HEAD", b"PUT", b"OPTIONS", b"TRACE", b"get", b"X-Y"))
        path = self.draw.choice((b"/", b"/health", b"/model", b"/metrics", b"/openapi.json"))
        return head(method, path + self.draw.choice(_ODD)), False

    def _headers(self) -> tuple[bytes, bool]:
        draw = self.draw
        odd = draw.choice(
            (
                b"content-encoding: gzip",
                b"content-length: 3",
                b"content-length: -1",
                b"content-length: 99999999999999999999",
                b"transfer-encoding: gzip, chunked",
                b"expect: 100-continue",
                b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x",
                b"x: " + b"y" * draw.choice((1, 1000, 100_000)),
                b"\r\n".join(b"x%d: y" % n for n in range(draw.choice((10, 1000)))),
                b"a b: c",
                b": c",
                b"x: \xff\0",
            )
        )
        return post(self.body, odd), False

    def _damaged_head(self) -> tuple[bytes, bool]:
        start, _, _ = post(self.body).partition(b"\r\n\r\n")
        return damaged(start, self.draw, b":") + b"\r\n\r\n" + self.body, False

    def _chunks(self) -> tuple[bytes, bool]:
        size = self.draw.choice((1, 7, 4096))
        pieces = [self.body[n : n + size] for n in range(0, len(self.body), size)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        start = head(b"POST", b"/predict", b"transfer-encoding: chunked")
        if self.draw.random() < 0.5:
            return start + chunks, True
        return start + damaged(chunks, self.draw), False

    def _long(self) -> tuple[bytes, bool]:
        rows = self.body[self.body.index(b"[") + 1 : self.body.rindex(b"]")]
        many = self.draw.choice((10, 100, 1000))
        return post(b'{"rows": [' + b",".join([rows] * many) + b"]}"), False

    def _cut(self) -> tuple[bytes, bool]:
        whole = post(self.body)
        return whole[: self.draw.randrange(len(whole))], False

    def _two(self) -> tuple[bytes, bool]:
        first = post(self.body).replace(b"connection: close", b"connection: keep-alive")
        return first + post(damaged(self.body, self.draw)), True


def exchanged(address: tuple[str, int], sent: bytes, seconds: float) -> bytes | None:
    """What a server answers, until it closes or says nothing more; None where nothing came."""
    found = b""
    with socket.create_connection(address, timeout=seconds) as own:
        try:
            own.sendall(sent)
            while piece := own.recv(1 << 16):
                found += piece
                own.settimeout(min(seconds, 2.0))
        except TimeoutError:
            return found or None
        except OSError:  # it has closed, perhaps after an answer
            pass
    return found


class Server:
    """The command ``serve`` on a checkpoint.

    Args:
        checkpoint: the file.
        log: where its standard error goes.
    """

    def __init__(self, checkpoint: Path, log: Path) -> None:
        command = [sys.executable, "-m", "recbole_escm2", "serve", f"--checkpoint={checkpoint}"]
        self.log = log
        with open(log, "wb") as stderr:
            self.process = subprocess.Popen(
                [*command, *_OPTIONS], stdout=subprocess.PIPE, stderr=stderr
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline().decode()
        found = re.search(r"http://([\d.]+):(\d+)", said)
        if found is None:
            raise RuntimeError(f"no server: {said}{log.read_text(errors='replace')}")
        self.address = found[1], int(found[2])

    def memory(self) -> float:
        """MiB of memory that it has now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def ended(self) -> list[str]:
        """End it; what was wrong with how it ran."""
        wrong = []
        if self.process.poll() is not None:
            wrong.append(f"the server has ended with {self.process.returncode}")
        else:
            self.process.send_signal(signal.SIGTERM)
            try:
                if code := self.process.wait(60):
                    wrong.append(f"it ends with {code} when it is told to")
            except subprocess.TimeoutExpired:
                self.process.kill()
                wrong.append("it doesn't end when it is told to")
        text = self.log.read_text(errors="replace")
        wrong += ["its log has a traceback"] if "Traceback" in text else []
        return wrong


class Run:
    """Clients at work, and what they have seen.

    Args:
        server: that they ask.
        body: of a sound request.
        seed: of all requests.
        limit: seconds in which a whole request must be answered.
    """

    def __init__(self, server: Server, body: bytes, seed: int, limit: float) -> None:
        self.server, self.body, self.seed, self.limit = server, body, seed, limit
        self.tally: Counter[str] = Counter()
        self.memory: list[float] = []
        self.end = 0.0

    def found(self, kind: str, said: str) -> None:
        """Note a finding."""
        self.tally[kind] += 1
        print(f"{kind}: {said[:500]}", flush=True)

    def ask(self, sent: bytes, whole: bool) -> None:
        """Send a request and look at its answer."""
        self.tally["requests"] += 1
        try:
            answer = exchanged(self.server.address, sent, self.limit if whole else 1.0)
        except OSError as error:
            answer = b"" if self.server.process.poll() is None else None
            if answer is None:
                self.found("crash", f"{error}; the server has ended")
                self.end = 0.0
                return
        if answer is None and whole:
            self.found("hang", f"no answer in {self.limit:g} s to {sent[:200]!r}")
        elif not answer:
            self.tally["closed"] += 1
        elif not (status := re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)):
            self.found("garbage", repr(answer[:200]))
        elif status[1] == b"500":
            self.found("crash", f"500 to {sent!r}")
        else:
            self.tally["scored" if status[1] == b"200" else "refused"] += 1

    def client(self, number: int) -> None:
        """Send requests until it is time."""
        requests = Requester(self.body, f"{self.seed}/{number}")
        while time.monotonic() < self.end:
            self.ask(*requests.next())

    def look(self) -> None:
        """Ask for health, and note the memory, each second until it is time."""
        while time.monotonic() < self.end:
            self.ask(head(b"GET", b"/health"), True)
            if self.server.process.poll() is None:
                self.memory.append(self.server.memory())
            time.sleep(1)

    def during(self, minutes: float) -> None:
        """Have all clients work for some time."""
        self.end = time.monotonic() + 60 * minutes
        threads = [threading.Thread(target=self.client, args=(n,)) for n in range(_CLIENTS)]
        threads.append(threading.Thread(target=self.look))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def scores(self) -> Any:
        """The answer to a sound request."""
        answer = exchanged(self.server.address, post(self.body), self.limit) or b""
        return answer.partition(b"\r\n\r\n")[2]


def main() -> int:
    """Print findings; the exit code says whether there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=30, help="seconds that an answer may take")
    parser.add_argument("--out", type=Path, default=RESULT, help="table of what came out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place) / "model"
        folder.mkdir()
        Requests().prepare(folder)
        body = (folder / "body.json").read_bytes()
        server = Server(folder / "checkpoint.pth", Path(place) / "log")
        try:
            run = Run(server, body, given.seed, given.limit)
            before = run.scores()
            run.during(given.minutes)
            if server.process.poll() is None and run.scores() != before:
                run.found("difference", f"{run.scores()!r}, and before {before!r}")
        finally:
            wrong = server.ended()
        for said in wrong:
            run.found("crash", f"{said}\n{server.log.read_text(errors='replace')[-2000:]}")
    third = len(run.memory) // 3
    first, last = run.memory[third : 2 * third], run.memory[2 * third :]
    row: dict[str, Any] = {"kind": "serve", "seed": given.seed, "minutes": given.minutes}
    row |= {column: run.tally[column] for column in COLUMNS[3:-2]}
    row["memory_mib"] = round(statistics.median(last), 1)
    row["memory_growth_mib"] = round(statistics.median(last) - statistics.median(first), 1)
    keep(row, given.out, COLUMNS)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return int(any(run.tally[finding] for finding in FINDINGS))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
