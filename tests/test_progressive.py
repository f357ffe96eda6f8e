"""scripts/progressive.py: each day is scored by what was learned before it, then learned from."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "progressive.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("progressive", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "progressive", module)  # as dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def test_days_bring_items_and_are_drawn_by_their_seed(script):
    days = list(zip(range(3), script.Log(500, 50, 20, 1).days(), strict=False))
    again = list(zip(range(3), script.Log(500, 50, 20, 1).days(), strict=False))
    for (_, one), (_, other) in zip(days, again, strict=True):
        assert one.equals(other)
    items = [{*day["item_id"]} for _, day in days]
    assert items[2] - items[0] >= {"i20", "i21"}
    assert all((day["conversion"] <= day["click"]).all() for _, day in days)


def test_tomorrow_is_scored_and_then_learned_from(script, tmp_path):
    settings = {"epochs": 1, "train_batch_size": 128, "embedding_size": 4, "mlp_hidden_size": [8]}
    log = script.Log(600, 40, 20, 0)
    scores = script.progressive(log, 3, "ESMM", settings, tmp_path)
    assert [*scores["day"]] == [2, 2, 2, 3, 3, 3]
    assert [*scores["way"]] == [*script.WAYS] * 2
    assert np.isfinite(scores[[*script.SCORES]]).all(axis=None)
    second, third = scores[scores["day"] == 2], scores[scores["day"] == 3]
    assert second["CTR_LogLoss"].nunique() == 1  # all are what the first day gave
    assert third["CTR_LogLoss"].nunique() == 3
    logs = [file.read_text() for file in tmp_path.glob("output/*day-2*/run.log")]
    (gone_on,) = [text for text in logs if "beginning with the weights of" in text]
    assert "item_id 20 ids kept, 2 new, 0 dropped" in gone_on
    assert "user_id 40 ids kept, 0 new, 0 dropped" in gone_on
