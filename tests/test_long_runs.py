"""scripts/long_runs.py: what it measures, and what it takes for flat."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import long_runs


def test_each_run_and_each_epoch_has_a_line(tmp_path):
    lines = list(long_runs.measured(tmp_path, runs=2, epochs=3, given={"model": "ESMM"}))
    assert [(line["of"], line["number"]) for line in lines] == [
        *(("run", number) for number in (1, 2)),
        *(("epoch", number) for number in (1, 2, 3)),
    ]
    assert all(line["handles"] > 2 and line["memory_mib"] > 50 for line in lines)


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
