"""A checkpoint scores new rows with nothing but the package: every model, bit by bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from new_rows import QUICK, frame_of, fresh_copy

import recbole_escm2
from recbole_escm2.config import Config, acting_settings
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import find_model, model_names
from recbole_escm2.model import ESMM
from recbole_escm2.quick_start import run
from recbole_escm2.train.checkpoint import load_checkpoint, save_checkpoint
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


# ------------------------------------------------------------------ rows


@pytest.fixture
def scorer(done):
    return recbole_escm2.load(done.folder)


def test_an_unknown_token_has_the_mean_of_its_fields_rows(done, scorer):
    (model,) = scorer.models
    table = model.model.token_embedding_table
    names = model.model.token_field_names
    weights = table.embedding.weight.detach()
    ends = [*map(int, table.offsets), len(weights)]
    start, end = ends[names.index("user_id")], ends[names.index("user_id") + 1]
    counts = scorer.known.train_ids["user_id"].float()
    assert end - start == len(counts) + 1
    share = counts[1:] / counts[1:].sum()
    assert torch.allclose(weights[end - 1], share @ weights[start + 1 : end - 1], atol=1e-7)
    few = done.frame.head(8).assign(user_id=["somebody", None] * 4)
    scorer.predict(few)
    assert scorer.unknown == {"user_id": 4, "item_id": 0, "hour": 0, "category": 0, "tags": 0}


def test_a_token_is_its_text_whatever_its_type(done, scorer):
    few = done.frame.head(100)
    expected = scorer.predict(few).to_numpy()
    hours = few["hour"].astype(int)
    wanted = pa.Table.from_pandas(few)
    for own in (
        few.assign(hour=hours),
        few.assign(hour=hours.astype("int8")),
        few.assign(hour=hours.astype("float64")),
        few.assign(hour=few["hour"].astype("category")),
        wanted,
        wanted.set_column(2, "hour", pa.array(hours.to_numpy(), pa.uint64())),
        wanted.set_column(2, "hour", wanted.column("hour").cast(pa.large_string())),
        few.assign(tags=few["tags"].fillna("").str.split()),
        few.assign(age=few["age"].astype(str), click="label", conversion=None),
        pa.concat_tables(
            pa.Table.from_pandas(part.assign(hour=part["hour"].astype("category")))
            for part in (few.head(30), few.tail(70))
        ),
    ):
        assert np.array_equal(scorer.predict(own).to_numpy(), expected)
    assert not any(scorer.unknown.values())
    scorer.predict(few.assign(hour="0" + few["hour"]))  # 07 isn't 7
    assert scorer.unknown["hour"] == 100


def test_scores_keep_the_index_and_the_order(done, scorer):
    mixed = done.frame.sample(frac=0.2, random_state=1)
    scores = scorer.predict(mixed)
    assert scores.index.equals(mixed.index)
    again = scorer.predict(done.frame).loc[mixed.index]
    assert np.allclose(scores, again, rtol=0, atol=1e-6)
    assert len(scorer.predict(mixed.head(0))) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="age"), "the table lacks the column age, which the model reads"),
        (lambda f: f.assign(age=[1, 2, 1e300, 4]), "row 3: column 'age' holds 1e.300: a nu"),
        (lambda f: f.assign(item_id=["a", 5, "b", "c"]), "row 2: column 'item_id'"),
        (
            lambda f: f.assign(tags=[1.5] * 4),
            "column 'tags' is of type double, and the model",
        ),
        (lambda f: f.assign(user_id=["a", "b", "c", "d\0"]), "row 4: column 'user_id'.*NUL"),
        (lambda f: pd.concat([f, f[["age"]]], axis=1), "has the column 'age' twice"),
        (
            lambda f: pa.table([pa.array([1])] * 2, ["hour", "hour"]),
            "has the column 'hour' twice",
        ),
        (lambda f: f.to_numpy(), "a table of pandas, Polars or Arrow is needed"),
    ],
)
def test_what_cant_be_read_is_refused_by_column_and_row(done, scorer, change, words):
    with pytest.raises(UsageError, match=words):
        scorer.predict(change(done.frame.head(4)))


def test_a_model_trained_with_weights_scores(tmp_path):
    table = weighted_table()
    weight = np.linspace(0.5, 2, len(table))
    recbole_escm2.data.save_table(
        table.append_column("weight", pa.array(weight)), "weighed", tmp_path
    )
    settings = {"data_path": str(tmp_path), "output_dir": str(tmp_path / "output"), "epochs": 1}
    settings |= {"CLICK_WEIGHT_FIELD": "weight", "show_progress": False}
    run("ESMM", "weighed", config_dict=settings)
    (folder,) = (tmp_path / "output").glob("ESMM-*")
    found = recbole_escm2.load(folder).predict(table.slice(0, 5))
    assert len(found) == 5


def weighted_table(rows: int = 3000) -> pa.Table:
    """Ids, numbers, lists of tokens with weights and without, lists of numbers, and labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 5, rows)
    past = [[(f"p{p}", p / 7) for p in rng.integers(20, size=n)] for n in lengths]
    click = rng.random(rows) < 0.4
    return pa.table(
        {
            "user_id": rng.integers(40, size=rows),
            "item_id": [None if n % 50 == 0 else f"i{n % 30}" for n in range(rows)],
            "when": rng.integers(1_700_000_000, 1_700_009_999, rows).astype(float),
            "price": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(5, 2, rows)),
            "genres": [[f"g{g}" for g in rng.integers(9, size=n)] for n in lengths],
            "past": pa.array(past, pa.map_(pa.string(), pa.float32())),
            "prices": [rng.normal(size=n).tolist() for n in lengths],
            "click": click,
            "conversion": click & (rng.random(rows) < 0.4),
        }
    )


@pytest.mark.parametrize("more", [{}, {"normalize_all": True}, {"min_count": 3}])
def test_lists_weights_and_numbers_are_read_as_they_were_trained(tmp_path, more):
    table = weighted_table()
    recbole_escm2.data.save_table(table, "mine", tmp_path / "data")
    config = Config(
        ESMM,
        "mine",
        config_dict={
            **{"data_path": str(tmp_path / "data"), "output_dir": str(tmp_path / "output")},
            **{**QUICK, "impression_sample": 1.0, "TIME_FIELD": "when", **more},
            "numerical_features": ["price", "prices", "when"],
        },
    )
    a_run = Run.of(config)
    with a_run.at_work(config):
        training = Training(config, a_run)
        training.fit()
        _, predictions = training.score("test")
    rows = training.splits["test"].dataset.inter_feat.positions.numpy()
    shutil.rmtree(tmp_path / "data")
    scorer = recbole_escm2.load(a_run.folder)
    scores = scorer.predict(table.take(rows))
    for task, own in predictions.score.items():
        assert np.array_equal(scores[f"p{task}"].to_numpy(), own), task


def test_a_column_without_any_value_is_one_of_every_type(tmp_path):
    """Of nulls alone, as a row without a field becomes a table."""
    table = weighted_table()
    recbole_escm2.data.save_table(table, "mine", tmp_path)
    settings = {**QUICK, "data_path": str(tmp_path), "output_dir": str(tmp_path / "output")}
    settings["numerical_features"] = ["price", "prices"]
    scorer = recbole_escm2.load(run("ESMM", "mine", config_dict=settings)["run_dir"])
    few = table.slice(0, 3).select(scorer.features)
    typed = {name: pa.nulls(3, few.schema.field(name).type) for name in scorer.features}
    untyped = {name: pa.nulls(3) for name in scorer.features}
    assert scorer.predict(pa.table(untyped)).equals(scorer.predict(pa.table(typed)))


# ------------------------------------------------------------------ files that aren't as written


@pytest.fixture
def changed(done, tmp_path):
    """Writes the checkpoint with some entries of its own, sealed as any."""

    def write(**entries: Any) -> Path:
        state = load_checkpoint(done.folder / "checkpoint.pth")
        save_checkpoint(tmp_path / "changed.pth", {**state, **entries})
        return tmp_path / "changed.pth"

    return write


def fields_with(state: dict[str, Any], place: int, **entries: Any) -> dict[str, Any]:
    described = [dict(own) for own in state["fields"]["described"]]
    described[place] |= entries
    return {"fields": {**state["fields"], "described": described}}


def vocabularies_with(state: dict[str, Any], **entries: Any) -> dict[str, Any]:
    first, *others = state["vocabularies"]
    return {"vocabularies": [{**first, **entries}, *others]}


FORGED = {
    "no fields": (lambda s: {"fields": {}}, "its fields aren't as this program writes them"),
    "another type": (lambda s: fields_with(s, 0, type="image"), "no fields of type 'image'"),
    "another vocabulary": (lambda s: fields_with(s, 0, vocabulary=99), "has no vocabulary"),
    "ends beyond the text": (
        lambda s: vocabularies_with(s, ends=s["vocabularies"][0]["ends"] + 10**9),
        "don't end where its text does",
    ),
    "ends that go back": (
        lambda s: vocabularies_with(s, ends=s["vocabularies"][0]["ends"].flip(0)),
        "don't end where its text does",
    ),
    "no UTF-8": (
        lambda s: vocabularies_with(s, text=torch.full_like(s["vocabularies"][0]["text"], 255)),
        "aren't as this program writes them",
    ),
    "a token less": (
        lambda s: vocabularies_with(
            s,
            ends=s["vocabularies"][0]["ends"][:-1],
            text=s["vocabularies"][0]["text"][: int(s["vocabularies"][0]["ends"][-2])],
        ),
        "aren't those of its vocabulary",
    ),
    "a table that doesn't fit": (
        lambda s: {
            "state_dict": {
                **s["state_dict"],
                "token_embedding_table.embedding.weight": s["state_dict"][
                    "token_embedding_table.embedding.weight"
                ][:-1],
            }
        },
        "doesn't fit the model: token_embedding_table.embedding.weight is float32",
    ),
    "counts below 0": (
        lambda s: {"train_ids": {n: -own for n, own in s["train_ids"].items()}},
        "aren't those of its vocabulary",
    ),
    "no numbers": (lambda s: {"deciles": {}}, "its fields aren't as this program writes them"),
    "deciles of another shape": (
        lambda s: {"deciles": {"age": torch.zeros(3)}},
        "the deciles of 'age' aren't such",
    ),
    "support of another shape": (lambda s: {"support": torch.zeros(3)}, "its support isn't as"),
    "support that is no tensor": (lambda s: {"support": [0.0]}, "its support isn't as"),
    "a calibration of another kind": (lambda s: {"calibration": {"a": 1}}, "calibrat"),
    "a size beyond any memory": (
        lambda s: {"settings": {**s["settings"], "embedding_size": 10**15}},
        "can't be made of it|embedding_size",
    ),
    "a path as a model": (lambda s: {"model": "planted:Model"}, "chooses no code that is run"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_refused_in_one_line(done, changed, name):
    change, words = FORGED[name]
    file = changed(**change(load_checkpoint(done.folder / "checkpoint.pth")))
    with pytest.raises(UsageError, match=words) as refused:
        recbole_escm2.load(file)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_is_cut_edited_or_older_is_refused_in_one_line(done, tmp_path):
    whole = (done.folder / "checkpoint.pth").read_bytes()
    file = tmp_path / "other.pth"
    older = whole.replace(b"checkpoint 3 ", b"checkpoint 2 ")
    edited = bytearray(whole)
    edited[len(whole) // 2] ^= 1
    for content, words in (
        (whole[:-5000], "isn't whole"),
        (bytes(edited), "is damaged"),
        (older, "written by an earlier version of this program.*train the model again"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=words) as refused:
            recbole_escm2.load(file)
        assert "\n" not in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"a folder without a checkpoint\.pth"):
        recbole_escm2.load(tmp_path / "empty")


def test_what_cant_score_new_rows_says_so(data_path, tmp_path):
    given = {**QUICK, "data_path": str(data_path), "output_dir": str(tmp_path)}

    def trained(name: Any, **more: Any) -> str:
        settings = acting_settings(find_model(name), {**given, **more})
        return run(name, "tiny", config_dict=settings)["run_dir"]

    with pytest.raises(UsageError, match="Oracle knows its own rows, and can't score new ones"):
        recbole_escm2.load(trained("Oracle"))
    buckets = {"age": {"method": "ED", "bucket": 5}}
    with pytest.raises(UsageError, match="trained with discretization of 'age'"):
        recbole_escm2.load(trained("ESMM", discretization=buckets))


class Counting(ESMM):
    """A model that reads rows of train where it is made."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.rate = float(dataset.inter_feat[config["CLICK_FIELD"]].float().mean())


def test_a_model_that_reads_rows_where_it_is_made_is_refused(data_path, tmp_path):
    given = {**QUICK, "data_path": str(data_path), "output_dir": str(tmp_path)}
    folder = run(Counting, "tiny", config_dict=given)["run_dir"]
    with pytest.raises(UsageError, match="chooses no code that is run"):
        recbole_escm2.load(folder)
    with pytest.raises(UsageError, match="constructor reads rows of the training data"):
        recbole_escm2.load(folder, model=Counting)
