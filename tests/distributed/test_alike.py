"""Several processes train and score as one does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import alike
import pytest
import torch
from impressions import write_impressions

PROCESSES = (2, 3)
LOSSES, METRICS, GRADIENT = 1e-9, 1e-12, 1e-6  # in float64; the last in float32


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_path with so few impressions that each case takes a moment."""
    folder = tmp_path_factory.mktemp("few")
    write_impressions(folder, "tiny", rows=900)
    return folder


def torchrun(processes: int, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Have torchrun start a program as some processes, and wait for their end."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]  # a port of its own
    start.append(f"--nproc_per_node={processes}")
    paths = [str(Path(alike.__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [*start, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def one(few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cases by this process."""
    return alike.outcome(str(few), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=PROCESSES)
def several(request, few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cases by as many processes."""
    folder = tmp_path_factory.mktemp("several")
    done = torchrun(request.param, alike.__file__, few, folder)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Warning" not in done.stderr
    found: dict[str, Any] = torch.load(folder / "outcome.pth", weights_only=False)
    assert found["processes"] == request.param
    return found


def furthest(one: Any, other: Any) -> float:
    """The largest difference of two numbers at one place; all else has to be equal."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        return max((furthest(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, (list, tuple)):
        return max((furthest(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float):
        return abs(one - other)
    assert one == other
    return 0.0


def test_sums_objects_and_seeds(several):
    found, processes = several["primitives"], several["processes"]
    squares = [(rank + 1.0) ** 2 for rank in range(processes)]
    assert found["sum"] == sum(squares)
    # d/dx of Σ_j (j + 1)·total at the first process, where x = 1
    assert found["gradient"].item() == 2 * sum(rank + 1 for rank in range(processes))
    assert found["object"] == "of 0"
    assert found["seeds"] == processes


@pytest.mark.parametrize("case", alike.STEPS)
def test_a_step_from_equal_weights_has_the_gradient_of_one_process(case, one, several):
    for own, theirs in zip(one["steps"][case], several["steps"][case], strict=True):
        assert own["gradients"].keys() == theirs["gradients"].keys()  # and no other has a 0
        norm = torch.stack([g.norm() for g in own["gradients"].values()]).norm()
        apart = [own["gradients"][n] - theirs["gradients"][n] for n in own["gradients"]]
        assert torch.stack([g.norm() for g in apart]).norm() <= GRADIENT * norm
        assert own["losses"].keys() == theirs["losses"].keys()
        for name, loss in own["losses"].items():
            assert theirs["losses"][name] == pytest.approx(loss.item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("case", alike.TRAININGS)
def test_three_epochs_in_float64_have_the_losses_and_metrics_of_one_process(case, one, several):
    own, theirs = one["trainings"][case], several["trainings"][case]
    assert own["best"] == theirs["best"]
    assert len(own["losses"]) >= 3
    assert furthest(own["losses"], theirs["losses"]) <= LOSSES
    assert furthest(own["test"], theirs["test"]) <= LOSSES


def test_three_epochs_in_float32_have_nearly_the_metrics_of_one_process(one, several):
    assert furthest(one["float32"]["test"], several["float32"]["test"]) <= 0.001


def test_equal_scores_have_equal_metrics(one, several):
    assert {"CTR_GAUC", "PIP"} <= one["metrics"]["metrics"].keys()
    assert furthest(one["metrics"]["metrics"], several["metrics"]["metrics"]) <= METRICS
    assert one["metrics"]["undefined"] == several["metrics"]["undefined"]
    assert (one["metrics"]["weights"] == several["metrics"]["weights"]).all()


def arguments(model: str, few: Path, output_dir: Path, **settings: Any) -> list[str]:
    """Of the program, which is to do what ``alike.training`` does."""
    given = alike.settings_of(str(few), output_dir.parent, **settings)
    given |= {"model": model, "dataset": "tiny", "output_dir": str(output_dir)}
    return [f"--{key}={json.dumps(v) if isinstance(v, list) else v}" for key, v in given.items()]


def running(word: Any) -> list[str]:
    """Processes whose command has a word."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(word).encode() in file.read_bytes():
                found.append(file.parent.name)
    return found


def test_an_error_in_one_process_ends_all_with_its_message(few, tmp_path):
    words = arguments("disturbed:Failing", few, tmp_path / "output")
    done = torchrun(2, "-m", "recbole_escm2", *words)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert done.stderr.count("the second process has failed") == 1
    assert running(tmp_path) == []


def test_a_killed_process_goes_on_and_ends_as_if_nothing_had_been(several, few, tmp_path):
    if several["processes"] != 2:
        pytest.skip("once is enough")
    words = arguments("disturbed:Killed", few, tmp_path / "output", state="info", **alike.MASKS)
    mark = tmp_path / "mark"
    restarts = ("--max-restarts=1", "-m", "recbole_escm2")
    done = torchrun(2, *restarts, *words, MARK=str(mark))
    assert mark.exists()
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stderr.count("error: ") <= 1  # torchrun may end the other one before it says so
    assert "going on with Killed-tiny-" in done.stderr
    (result,) = (tmp_path / "output").glob("*/result.json")
    content = json.loads(result.read_text())
    losses = [epoch["losses"] for epoch in content["trainings"][0]["epochs"]]
    assert losses == [losses for _, losses, _ in several["masks"]["losses"]]
    assert content["test_result"] == several["masks"]["test"]
    assert content["processes"] == 2
    assert done.stdout.count("CTR_AUC: ") == 1
    assert done.stderr.count("best epoch") == 1


def test_masks_of_dropout_are_each_process_own(one, several):
    assert furthest(one["masks"]["losses"], several["masks"]["losses"]) > 1e-4
