"""A small entire-space data set as RecBole atomic files, and runs on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import started
from impressions import write_impressions

from recbole_escm2.command_line import main

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models only get slower with more


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores of data that ships inside a package go into the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real browser; the test is skipped where there is none."""
    yield from started(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_path that holds the data set ``tiny``, with potential outcomes."""
    folder = tmp_path_factory.mktemp("data")
    write_impressions(folder, "tiny", rows=4000)
    return folder


@pytest.fixture
def settings(data_path: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a quick run on ``tiny``."""
    return {
        "data_path": str(data_path),
        "output_dir": str(tmp_path / "output"),
        "numerical_features": ["age"],
        "epochs": 2,
        "train_batch_size": 256,
        "embedding_size": 4,
        "mlp_hidden_size": [8],
        "show_progress": False,
    }


@pytest.fixture
def places(settings: dict[str, Any]) -> dict[str, Any]:
    """Where those runs have their data and results: no checkpoint says so."""
    return {key: settings[key] for key in ("data_path", "output_dir")}


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Runs the real command line in ``tmp_path`` and returns the finished process."""

    def call(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "recbole_escm2", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture
def program_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Any:
    """As ``program``, in this process, where it needn't load all libraries again: for what ends
    before a training begins, or needs no process of its own."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        code = main([*arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


@pytest.fixture
def kill_at(tmp_path: Path) -> Any:
    """Runs the real command line in ``tmp_path`` and kills it once it has said a line."""

    def call(line_start: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "recbole_escm2", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert any(line.startswith(line_start) for line in process.stderr)
        process.kill()
        process.wait()

    return call


@pytest.fixture(scope="session")
def metrics_of() -> Callable[[str], dict[str, float]]:
    """Reads the lines, one a metric, that a run's output has for scripts."""
    line = re.compile(r"^([A-Za-z]\w*(?:@\d+)?): (-?\d+\.\d+)$", re.MULTILINE)
    return lambda output: {name: float(value) for name, value in line.findall(output)}
