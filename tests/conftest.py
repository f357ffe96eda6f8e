"""A small entire-space data set as RecBole atomic files, and runs on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import started

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models only get slower with more


def write_atomic(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_impressions(folder: Path, name: str, rows: int, seed: int = 0) -> Path:
    """``rows`` impressions whose click and conversion depend on their features."""
    rng = np.random.default_rng(seed)
    users, items = 60, 40
    user, item = rng.integers(users, size=rows), rng.integers(items, size=rows)
    taste, appeal = rng.normal(size=users), rng.normal(size=items)
    ctr = 1 / (1 + np.exp(1.0 - taste[user] - appeal[item]))
    cvr = 1 / (1 + np.exp(0.5 - 1.5 * appeal[item]))
    click = rng.random(rows) < ctr
    potential = rng.random(rows) < cvr
    target = folder / name
    target.mkdir(parents=True)
    write_atomic(
        target / f"{name}.inter",
        [
            "user_id:token",
            "item_id:token",
            "hour:token",
            "click:float",
            "conversion:float",
            "potential_conversion:float",
            "true_ctr:float",
            "true_cvr:float",
        ],
        [
            [f"u{u}", f"i{i}", h, int(o), int(o and r), int(r), round(p, 6), round(q, 6)]
            for u, i, h, o, r, p, q in zip(
                user, item, rng.integers(24, size=rows), click, potential, ctr, cvr, strict=True
            )
        ],
    )
    write_atomic(
        target / f"{name}.user",
        ["user_id:token", "age:float"],
        [[f"u{u}", round(20 + 10 * taste[u], 2)] for u in range(users)],
    )
    write_atomic(
        target / f"{name}.item",
        ["item_id:token", "category:token", "tags:token_seq"],
        [[f"i{i}", f"c{i % 5}", " ".join(f"t{t}" for t in range(i % 4))] for i in range(items)],
    )
    return target


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
