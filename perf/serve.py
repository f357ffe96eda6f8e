"""How fast rows are scored over HTTP, beside the command predict, and that no answer goes astray.

    python perf/serve.py [--seconds S] [--rows N] [--clients C] [--out FILE]

The model is that of perf/predict.py. By turns, in one run: the command predict on a Parquet file
and the command serve, of which C clients on the same machine ask for N rows at a
time for S seconds, each as soon as it has its last answer. Each request has rows that no other one
of the clients' has at the time; every answer is held to what the model itself gives for its rows,
and the server's own counts of requests and rows to the clients'. Then the same with one row a
request. Both commands score in one process (--workers=1) and in two. What clients send is made
before, but they share the cores with the server.

Goals: nothing lost, nothing answered twice, and at 1,000 rows a request 0.3 of the rows a second
that predict scores with as many workers.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown_table, run_json
from numpy.typing import NDArray
from predict import make_checkpoint, make_parquet

HERE = Path(__file__).absolute().parent
TASKS = ("pctr", "pcvr", "pctcvr")
_PREDICTED = 1_000_000  # rows of the file that predict scores
_POOL = 64  # requests of each client, sent again and again
_MEASURES = {1: "parquet", 2: "shared"}  # what perf/predict.py calls its command, by workers


@dataclass
class Request:
    """What a client sends, and what it must be answered."""

    body: bytes
    expected: NDArray[np.float32]
    answer: bytes | None = None  # once it was held to what is expected

    def is_answered_by(self, content: bytes) -> bool:
        """Whether an answer is that of these rows."""
        if content != self.answer:
            rows = json.loads(content)["rows"]
            got = np.array([[row[task] for task in TASKS] for row in rows], np.float32)
            same = got.shape == self.expected.shape
            if not same or not np.allclose(got, self.expected, rtol=0, atol=1e-6):
                return False
            self.answer = content
        return True


@dataclass
class Client:
    """A connection that asks until its time is over."""

    requests: list[Request]
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self, port: int, until: float) -> None:
        """Ask for all of the requests, and again."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for request in itertools.cycle(self.requests):
            start = time.perf_counter()
            if start > until:
                break
            try:
                connection.request("POST", "/predict", request.body)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(f"lost: {error!r}")
                return
            self.seconds.append(time.perf_counter() - start)
            if answer.status != 200 or not request.is_answered_by(content):
                self.wrong.append(f"{answer.status}: {content[:200]!r}")


def requests_of(folder: Path, rows: int, count: int) -> list[Request]:
    """So many requests, each of other rows, with the model's own scores of them."""
    import pyarrow.parquet

    import recbole_escm2

    scorer = recbole_escm2.load(make_checkpoint(folder), device="cpu")
    table = pyarrow.parquet.read_table(make_parquet(folder, _PREDICTED)).slice(0, rows * count)
    found = []
    for start in range(0, len(table), rows):
        part = table.slice(start, rows)
        body = json.dumps({"rows": part.to_pylist()}).encode()
        found.append(Request(body, scorer.predict(part)[[*TASKS]].to_numpy()))
    return found


def under_load(
    port: int, requests: list[Request], clients: int, seconds: float
) -> tuple[list[Client], float]:
    """The clients when their time is over, and how long it took."""
    share = len(requests) // clients
    each = [Client(requests[n * share : (n + 1) * share]) for n in range(clients)]
    start = time.perf_counter()
    threads = [threading.Thread(target=own.run, args=(port, start + seconds)) for own in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return each, time.perf_counter() - start


def counted(port: int) -> dict[str, float]:
    """The server's own counts, of requests answered with scores and of their rows."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    names = {"requests": r'requests_total{code="200"}', "rows": "rows_total"}
    found = {}
    for name, line in names.items():
        match = re.search(rf"^recbole_escm2_{re.escape(line)} (\S+)$", text, re.MULTILINE)
        found[name] = float(match[1]) if match else 0.0
    return found


def measured(
    folder: Path, requests: list[Request], workers: int, args: argparse.Namespace
) -> dict[str, Any]:
    """A server under load: rows a second, latencies, and what went wrong.

    Args:
        folder: where the model is.
        requests: that the clients share out among them.
        workers: of the server.
        args: seconds and clients.

    Raises:
        RuntimeError: the server doesn't start, or doesn't end as it should.
    """
    rows = len(requests[0].expected)
    command = [sys.executable, "-m", "recbole_escm2", "serve", "--port=0", "--device=cpu"]
    command += [f"--checkpoint={make_checkpoint(folder)}", f"--max_requests={2 * args.clients}"]
    command += [f"--workers={workers}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline().strip()
        if " answers at " not in line:
            raise RuntimeError(f"{' '.join(command)} says {line!r}")
        port = int(line.rpartition(":")[2])
        under_load(port, requests, args.clients, min(2.0, args.seconds))  # what is slow once
        before = counted(port)
        clients, seconds = under_load(port, requests, args.clients, args.seconds)
        after = counted(port)
        server.send_signal(signal.SIGTERM)
        if code := server.wait(60):
            raise RuntimeError(f"the server ended with {code}")
    times = np.array([own for client in clients for own in client.seconds])
    answered = len(times)
    return {
        "rows_per_second": answered * rows / seconds,
        "requests": answered,
        "median_ms": 1000 * float(np.median(times)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "wrong": [own for client in clients for own in client.wrong],
        "not_counted": [
            int(after["requests"] - before["requests"]) - answered,
            int(after["rows"] - before["rows"]) - answered * rows,
        ],
    }


def of_predict(folder: Path, workers: int) -> float:
    """Rows a second of the command predict, from Parquet to Parquet."""
    own = ("--cache", folder.absolute(), "--rows", _PREDICTED, "--measure", _MEASURES[workers])
    return float(run_json(sys.executable, HERE / "predict.py", *own)["rows_per_second"])


def main() -> int:
    """Measure, print the page, write it where ``--out`` says; 1 where an answer went astray."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of load")
    parser.add_argument("--rows", type=int, default=1000, help="of a request")
    parser.add_argument("--clients", type=int, default=4, help="at once")
    cache = Path(tempfile.gettempdir()) / "recbole_escm2-predict"
    parser.add_argument("--cache", type=Path, default=cache, help="where the data is kept")
    parser.add_argument("--out", type=Path, help="write the page into a file, too")
    args = parser.parse_args()
    folder = args.cache.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_checkpoint(folder)
    make_parquet(folder, _PREDICTED)
    speeds: dict[int, list[float]] = {count: [] for count in _MEASURES}
    found = {}
    for rows in (args.rows, 1):
        requests = requests_of(folder, rows, _POOL * args.clients)
        for count, own in speeds.items():
            own.append(of_predict(folder, count))
            found[rows, count] = measured(folder, requests, count, args)
            own.append(of_predict(folder, count))
    text = _page(found, speeds, args)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return int(any(own["wrong"] or any(own["not_counted"]) for own in found.values()))


def _page(
    found: dict[tuple[int, int], dict[str, Any]],
    speeds: dict[int, list[float]],
    args: argparse.Namespace,
) -> str:
    lines = []
    for (rows, count), own in found.items():
        speed, predict = own["rows_per_second"], statistics.median(speeds[count])
        counts = f"{own['requests']:,}", f"{len(own['wrong'])}"
        times = f"{own['median_ms']:.1f}", f"{own['p99_ms']:.1f}"
        share = f"{speed / predict:.2f}"
        lines.append([f"{rows:,}", f"{count}", f"{speed:,.0f}", share, *counts, *times])
    header = ["rows a request", "workers", "rows a second", "of predict", "requests", "astray"]
    table = markdown_table([*header, "median, ms", "99 %, ms"], lines)
    odd = [
        f"{rows:,} rows a request, {count} workers: {own['wrong'][:3]}"
        for (rows, count), own in found.items()
        if own["wrong"]
    ]
    differ = [own["not_counted"] for own in found.values()]
    said = "as many" if not any(map(any, differ)) else f"others (by {differ})"
    shown = "; ".join(
        f"by {count}: {', '.join(f'{speed:,.0f}' for speed in own)}"
        for count, own in speeds.items()
    )
    about = ", ".join(f"{key}: {value}" for key, value in machine().items())
    return "\n\n".join(
        [
            "# Serving",
            "Written by `python perf/serve.py`.",
            table,
            *odd,
            f"The server counts {said} requests and rows. predict with as many workers, before and "
            f"after each turn, {shown} rows a second.",
            f"{args.clients} clients for {args.seconds:g} s each time, on the server's cores. "
            f"{about}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
