"""Many runs in one process and one folder: nothing that a run opens outlives it."""

import gc
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import long_runs


@pytest.fixture
def no_collection():
    """Handles that only a garbage collection would close stay open."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("model", ["ESCM2_DR", "DeepFM"])
def test_a_run_leaves_no_handle_open_without_a_garbage_collection(tmp_path, model, no_collection):
    given = {"model": model, "task": "both"} if model == "DeepFM" else {"model": model}
    lines = list(long_runs.measured(tmp_path, runs=5, epochs=3, given=given))
    runs = [line["handles"] for line in lines if line["of"] == "run"]
    assert len(runs) == 5
    assert runs[1:] == [runs[1]] * 4  # the first loads what stays


def _lines(**growing):
    fixed = {"handles": 7.0, "memory_mib": 500.0, "cpu_seconds": 0.1}
    return [
        {"of": "run", "number": n, **{k: v + n * growing.get(k, 0) for k, v in fixed.items()}}
        for n in range(1, 101)
    ]


@pytest.mark.parametrize(
    ("figure", "little", "much"),
    [("handles", 0.02, 0.03), ("memory_mib", 0.2, 0.4), ("cpu_seconds", 1e-4, 2e-4)],
)
def test_a_series_that_grows_is_told_from_a_flat_one(figure, little, much):
    assert all(one.is_flat for one in long_runs.series(_lines(**{figure: little})))
    grows = [one.figure for one in long_runs.series(_lines(**{figure: much})) if not one.is_flat]
    assert grows == [figure]
