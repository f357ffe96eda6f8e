"""The command serve: its options, a model exchanged under load, an end that loses nothing."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import NEEDS_PROC, are_gone, children
from test_http import GOOD, TASKS, rows_of

import recbole_escm2
from recbole_escm2.command_line import main
from recbole_escm2.train.checkpoint import load_checkpoint, save_checkpoint

pytest.importorskip("uvicorn")
DIGEST = re.compile(rb"([0-9a-f]{32})\n$")


@pytest.fixture
def start(tmp_path):
    """Starts a server at a free port; gives the process and the port."""
    running = []

    def begin(*arguments):
        command = [sys.executable, "-m", "recbole_escm2", "serve", "--port=0", *arguments]
        log = open(tmp_path / "log", "w", encoding="utf-8")  # noqa: SIM115
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        running.append(process)
        line = process.stdout.readline()
        assert "answers at http://127.0.0.1:" in line, (tmp_path / "log").read_text()
        return process, int(line.strip().rpartition(":")[2])

    yield begin
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def posted(port, rows, connection=None):
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps({"rows": rows}))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    return json.loads(connection.getresponse().read())


def until(is_so, seconds=120):
    for _ in range(seconds * 20):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it didn't come to be so")


def other_model(file, target):
    """A checkpoint with other weights, written beside and renamed."""
    state = load_checkpoint(file)
    weights = {
        name: own + 0.1 if own.is_floating_point() else own
        for name, own in state["state_dict"].items()
    }
    save_checkpoint(target, {**state, "state_dict": weights})


class Clients:
    """Threads that ask for rows of their own again and again, and check each answer."""

    def __init__(self, port, frame, expected, count=3):
        self.port, self.frame, self.expected = port, frame, expected
        self.answered, self.wrong = dict.fromkeys(expected, 0), []
        self._ends = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self, number):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        rng = np.random.default_rng(number)
        while not self._ends.is_set():
            places = rng.choice(len(self.frame), 20, replace=False)
            try:
                status, answer = posted(self.port, rows_of(self.frame.iloc[places]), connection)
                got = pd.DataFrame(answer["rows"])[TASKS].to_numpy(np.float32)
                own = self.expected[answer["model"]][places]
                if status != 200 or not np.allclose(got, own, rtol=0, atol=1e-6):
                    self.wrong.append((places, answer))
                self.answered[answer["model"]] += 1
            except Exception as error:
                self.wrong.append(error)
                return

    def end(self):
        self._ends.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=NEEDS_PROC)])
def test_a_model_is_exchanged_under_load_and_a_signal_ends_it_when_all_is_answered(
    done, start, tmp_path, workers
):
    frame = done.frame[:400]
    file, new = tmp_path / "checkpoint.pth", tmp_path / "new.pth"
    shutil.copy(done.folder / "checkpoint.pth", file)
    other_model(file, new)
    expected = {
        DIGEST.search(own.read_bytes()).group(1).decode(): recbole_escm2.load(own)
        .predict(frame)
        .to_numpy()
        for own in (file, new)
    }
    first, second = expected
    given = "--watch", "--timeout=60", f"--workers={workers}"
    process, port = start(f"--checkpoint={file}", *given)
    scoring = children(process.pid) if workers > 1 else set()
    assert len(scoring) == workers * (workers > 1)
    clients = Clients(port, frame, expected)
    until(lambda: clients.answered[first] > 5 or clients.wrong)
    file.write_bytes(new.read_bytes()[:-1000])  # in the middle of being copied
    until(lambda: health(port)["reload_error"])
    assert "isn't whole" in health(port)["reload_error"]
    assert health(port)["digest"] == first
    assert "isn't taken" in (tmp_path / "log").read_text()
    new.rename(file)
    until(lambda: clients.answered[second] > 5 or clients.wrong)
    clients.end()
    assert clients.wrong == []
    assert health(port)["reload_error"] is None
    assert health(port)["workers"] == workers
    assert are_gone(scoring)
    scoring = children(process.pid) if workers > 1 else set()
    assert len(scoring) == workers * (workers > 1)

    # A request whose end comes after the signal, on a connection that is open already.
    body = json.dumps({"rows": [GOOD]}).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:10])
        until(lambda: b"requests_active 1.0" in _metrics(port))
        for own in (*scoring, process.pid):  # as systemd does
            os.kill(own, signal.SIGTERM)
        until(lambda: not _listens(port))
        assert process.poll() is None
        connection.sendall(body[10:])
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert json.loads(answer.read())["model"] == second
    assert process.wait(60) == 0
    assert are_gone(scoring)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_page_of_the_docs_from_training_to_curl(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    train, serve = re.findall(r"^python run_recbole_escm2\.py (.*)$", text, re.MULTILINE)
    quick = ["--epochs=1", "--impression_sample=0.02"]  # instead of its own
    assert main([*train.replace("--impression_sample=0.1", "").split(), *quick]) == 0
    (run,) = Path("output").iterdir()
    arguments = serve.removeprefix("serve ").replace("output/…", str(run)).split()
    _, port = start(*(own for own in arguments if not own.startswith("--port")))
    (ask,) = re.findall(r"^curl http.*?}'$", text, re.MULTILINE | re.DOTALL)
    if shutil.which("curl"):
        ask = ask.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
        done = subprocess.run(["sh", "-c", ask], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
    else:
        answer = posted(port, json.loads(ask.partition("-d '")[2][:-1])["rows"])[1]
    printed, refusal = (
        json.loads(own) for own in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    )
    assert {*answer} == {*printed}
    assert [{*row} for row in answer["rows"]] == [{*row} for row in printed["rows"]]
    assert answer["rows"][1]["unknown"] == printed["rows"][1]["unknown"] == ["user_id"]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"^curl http.* -d '(.*)'$", readme, re.MULTILINE)
    status, scored = posted(port, json.loads(body)["rows"])
    assert status == 200
    assert scored["rows"][0]["unknown"] == answer["rows"][0]["unknown"]
    row = dict.fromkeys(answer["rows"][0])  # which is none of the model's
    status, refused = posted(port, [row])
    assert status == 422
    assert {*refused} == {*refusal}
    assert {*refused["faults"][0]} == {*refusal["faults"][0]}


def _metrics(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    return connection.getresponse().read()


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "serve needs --checkpoint"),
        (["--checkpoint=gone.pth", "--port=0"], "there is no such file"),
        (["--checkpoint=C", "--port=http"], "--port must be a whole number, 0 to 65,535"),
        (["--checkpoint=C", "--port=70000"], "--port must be a whole number, 0 to 65,535"),
        (["--checkpoint=C", "--max_rows=0"], "--max_rows must be a whole number, 1 to 32,768"),
        (["--checkpoint=C", "--timeout=nan"], "--timeout must be a number of seconds"),
        (
            ["--checkpoint=C", "--workers=0"],
            "--workers must be a whole number, 1 to 1,000, got '0'",
        ),
        (
            ["--checkpoint=C", "--workers=x"],
            "--workers must be a whole number, 1 to 1,000, got 'x'",
        ),
        (["--checkpoint=C", "--watch=maybe"], "--watch must be True or False"),
        (["--checkpoint=C", "--host=no.such.host.invalid"], "can't be listened at"),
        (["--checkpoint=C", "--prot=80"], "serve knows no --prot (did you mean port?)"),
    ],
)
def test_a_wrong_option_is_said(capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_help_has_the_number_of_processes(capsys):
    assert main(["serve", "--help"]) == 0
    assert "  --workers=N " in capsys.readouterr().out


def test_a_port_that_is_taken_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--checkpoint=C", f"--port={port}"]) == 2
    said = capsys.readouterr().err
    assert "can't be listened at (Address already in use): name another port" in said
