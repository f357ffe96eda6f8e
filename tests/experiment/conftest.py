"""What the tests of benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def options(data_path: Path, tmp_path: Path) -> dict[str, str]:
    """Of a command line, for the small data set."""
    return {
        "dataset": "tiny",
        "data_path": str(data_path),
        "output_dir": str(tmp_path / "output"),
        "epochs": "1",
        "show_progress": "False",
    }
