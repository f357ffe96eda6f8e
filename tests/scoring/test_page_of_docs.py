"""What docs/metrics.md shows works as it is printed."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_escm2.command_line import main

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def printed(kind, word):
    """The only block of a kind that has a word."""
    blocks = re.findall(rf"```{kind}\n(.+?)```", PAGE, re.DOTALL)
    (block,) = (block for block in blocks if word in block)
    return block


def arguments(command):
    return command.split()[2:]  # behind the program


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    known = rng.normal(size=1000)
    pctr = 1 / (1 + np.exp(1 - known))
    click = rng.random(1000) < pctr
    labels = pd.DataFrame(
        {
            "row": np.arange(1000),
            "user_id": rng.integers(50, size=1000),
            "click": click.astype(int),
            "conversion": (click & (rng.random(1000) < 0.3)).astype(int),
        }
    )
    mine = pd.DataFrame({"row": labels["row"], "pctr": pctr, "pcvr": np.full(1000, 0.3)})
    labels.to_parquet("labels.parquet")
    mine.to_parquet("mine.parquet")
    mine.assign(pctr=0.3).to_csv("theirs.csv", index=False)
    return {"labels": labels, "mine": mine}


def test_the_command_scores_as_printed(tables, capsys):
    assert main(arguments(printed("bash", " score "))) == 0
    assert "Against mine, on the same rows" in capsys.readouterr().out
    assert Path("scores/score.html").exists()


def test_the_function_scores_as_printed(tables, capsys):
    exec(compile(printed("python", "recbole_escm2.score"), "docs/metrics.md", "exec"), tables)
    assert "CTCVR_AUC" in capsys.readouterr().out
    assert Path("scores/comparison.csv").exists()


def test_a_metric_of_ones_own_works_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(printed("python", "hit_rate"))
    small = ["--impression_sample=0.02", "--epochs=1"]
    assert main([*arguments(printed("bash", "mine:hit_rate")), *small]) == 0
    assert re.search(r"^mine:hit_rate: 0\.\d+$", capsys.readouterr().out, re.MULTILINE)
    sys.modules.pop("mine", None)
