"""A checkpoint scores new rows with nothing but the package: every model, bit by bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from new_rows import QUICK, frame_of, fresh_copy

import recbole_escm2
from recbole_escm2.config import Config, acting_settings
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import find_model, model_names
from recbole_escm2.train.pair import Pair
from recbole_escm2.train.run import Run
from recbole_escm2.train.training import Training


@dataclass(frozen=True)
class Trained:
    """A run whose data is away: its folder, what its trainer gave to test, and test's rows."""

    folder: Path
    score: dict[str, Any]
    test: pd.DataFrame

    def check(self, scorer: Any) -> None:
        scored = scorer.predict(self.test)
        assert list(scored) == [f"p{task}" for task in self.score]
        for task, own in self.score.items():
            assert np.array_equal(scored[f"p{task}"].to_numpy(), np.asarray(own)), task


@pytest.fixture(scope="module")
def folder(data_path, tmp_path_factory) -> Path:
    """The files of ``tiny``, with a store once something has been trained."""
    return fresh_copy(data_path, tmp_path_factory.mktemp("scored"))


@pytest.fixture
def train(folder, tmp_path):
    """Trains a model, scores test, and takes the data away."""
    away = folder.with_name("away")

    def call(name: str | type, **more: Any) -> Trained:
        places = {"data_path": str(folder.parent), "output_dir": str(tmp_path / "output")}
        given = {**QUICK, **places, **more}
        config = Config(name, "tiny", config_dict=acting_settings(find_model(name), given))
        run = Run.of(config)
        with run.at_work(config):
            trained = Pair(config, run) if run.parts else Training(config, run)
            trained.fit()
            trained.validate()
            _, predictions = trained.score("test")
        rows = trained.splits["test"].dataset.inter_feat.positions.numpy()
        test = frame_of(folder).iloc[rows]
        folder.rename(away)
        return Trained(run.folder, dict(predictions.score), test)

    yield call
    if away.exists():
        away.rename(folder)


@pytest.mark.parametrize("name", [name for name in model_names() if name != "Oracle"])
def test_every_model_scores_as_its_trainer_did_without_its_data(train, name):
    done = train(name)
    scorer = recbole_escm2.load(done.folder / "checkpoint.pth")
    done.check(scorer)
    assert not any(scorer.unknown.values())


def test_another_process_gives_the_same_bits(train, tmp_path):
    done = train("ESCM2_DR")
    done.test.to_parquet(tmp_path / "test.parquet")
    code = (
        "import sys, pandas, recbole_escm2\n"
        "scorer = recbole_escm2.load(sys.argv[1], device='cpu')\n"
        "scorer.predict(pandas.read_parquet('test.parquet')).to_parquet('scores.parquet')\n"
    )
    command = [sys.executable, "-c", code, str(done.folder)]
    subprocess.run(command, cwd=tmp_path, check=True)
    scored = pd.read_parquet(tmp_path / "scores.parquet")
    for task, own in done.score.items():
        assert np.array_equal(scored[f"p{task}"].to_numpy(), own)


def test_two_models_are_a_pair(train):
    done = train("DeepFM", task="both")
    done.check(recbole_escm2.load(done.folder))
    one, two = (done.folder / task / "checkpoint.pth" for task in ("ctr", "cvr"))
    done.check(recbole_escm2.load([one, two]))
    assert list(recbole_escm2.load(two).predict(done.test)) == ["pcvr"]
    with pytest.raises(UsageError, match="a pair is the checkpoint of a CTR and of a CVR model"):
        recbole_escm2.load([two, one])
