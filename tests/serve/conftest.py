"""A run on ``tiny`` whose data is gone, and the rows that it had."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from new_rows import QUICK, frame_of, fresh_copy

from recbole_escm2.quick_start import run


@dataclass(frozen=True)
class Done:
    """A run: its folder, its test metrics, and all impressions with their features."""

    folder: Path
    metrics: dict[str, float]
    frame: pd.DataFrame
    files: Path


@pytest.fixture(scope="session")
def done(data_path, tmp_path_factory) -> Done:
    """A run of ESCM2_DR; its data's files are elsewhere now."""
    folder = fresh_copy(data_path, tmp_path_factory.mktemp("done"))
    places = {"data_path": str(folder.parent), "output_dir": str(folder.parent.parent / "output")}
    outcome = run("ESCM2_DR", "tiny", config_dict={**QUICK, **places, "impression_sample": 1.0})
    shutil.rmtree(folder / "store")
    elsewhere = folder.rename(folder.parent.parent / "tiny")
    return Done(Path(outcome["run_dir"]), outcome["test_result"], frame_of(elsewhere), elsewhere)
