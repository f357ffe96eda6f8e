"""The command predict: every format gives the same scores, and a fault is said by its place."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

import recbole_escm2
from recbole_escm2.command_line import main
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.quick_start import run as run_model
from recbole_escm2.serve import new_data
from recbole_escm2.serve import scorer as scorer_module
from recbole_escm2.train.run import Run
from recbole_escm2.train.training import Training

TASKS = ["pctr", "pcvr", "pctcvr"]


@pytest.fixture
def scores(done):
    """Those of :meth:`Scorer.predict` for all rows."""
    return recbole_escm2.load(done.folder).predict(done.frame)


@pytest.fixture
def predict(done, tmp_path, monkeypatch, capsys):
    """Runs the command in this process; returns its exit code, and what it says."""
    monkeypatch.chdir(tmp_path)

    def call(data: str, *arguments: str, out: str = "scores.parquet") -> tuple[int, str]:
        given = [f"--checkpoint={done.folder}", f"--data={data}", f"--out={out}", *arguments]
        code = main(["predict", *given])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def written(frame: pd.DataFrame, name: str) -> str:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if name.endswith(".csv"):
        frame.to_csv(name, index=False)
    elif name.endswith(".parquet"):
        pa.parquet.write_table(table, name)
    else:
        pa.feather.write_feather(table, name)
    return name


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow", ".feather"])
def test_every_kind_of_file_gives_the_same_scores(done, predict, scores, suffix):
    file = written(done.frame, f"new{suffix}")
    code, said = predict(file, "--columns=user_id,hour", "--labels=False")
    assert code == 0, said
    got = pd.read_parquet("scores.parquet")
    assert list(got) == ["user_id", "hour", *TASKS, "support"]
    assert got["user_id"].tolist() == done.frame["user_id"].tolist()
    assert np.array_equal(got[TASKS].to_numpy(), scores.to_numpy())
    names = {path.name for path in Path().iterdir()}
    assert names == {file, "scores.parquet", "scores.parquet.json"}


def test_atomic_files_are_read_with_those_beside_them(done, predict, scores):
    code, said = predict(str(done.files / "tiny.inter"), "--labels=False", out="scores.csv")
    assert code == 0, said
    assert np.allclose(pd.read_csv("scores.csv")[TASKS], scores, rtol=0, atol=1e-7)


def test_a_folder_of_parts_is_read_in_the_order_of_their_names(done, predict, scores):
    Path("parts").mkdir()
    for number, start in enumerate(range(0, len(done.frame), 1500)):
        written(done.frame[start : start + 1500], f"parts/part-{number}.parquet")
    code, said = predict("parts", "--labels=False", out="scores.arrow")
    assert code == 0, said
    got = pa.ipc.open_file("scores.arrow").read_all().to_pandas()
    assert np.allclose(got[TASKS], scores, rtol=0, atol=1e-6)  # batches end where a file does
    shutil.copy(written(done.frame, "new.csv"), "parts/other.csv")
    code, said = predict("parts")
    assert code == 2
    assert "files of several kinds (.csv, .parquet): name one" in said


def test_users_and_items_come_from_files_of_their_own(done, predict, scores):
    frame = done.frame
    users = frame[["user_id", "age"]].drop_duplicates()
    written(users[users["user_id"] != frame["user_id"][0]], "users.csv")
    written(frame[["item_id", "category", "tags"]].drop_duplicates(), "items.parquet")
    file = written(frame[["user_id", "item_id", "hour"]], "new.parquet")
    code, said = predict(file, "--users=users.csv", "--items=items.parquet")
    assert code == 0, said
    lacking = int((frame["user_id"] == frame["user_id"][0]).sum())
    assert f"{lacking:,} rows have a user_id that users.csv hasn't" in said
    got = pd.read_parquet("scores.parquet")[TASKS].to_numpy()
    same = (frame["user_id"] != frame["user_id"][0]).to_numpy()
    assert np.array_equal(got[same], scores.to_numpy()[same])
    without = frame.assign(age=frame["age"].where(same))  # a missing number is the mean
    expected = recbole_escm2.load(done.folder).predict(without).to_numpy()
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip")],
)
def test_what_a_pipe_cant_be_read_as_is_said(predict, monkeypatch, start, kind):
    stream = io.BytesIO(start + b"\x15\0\n" * 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    code, said = predict("-", out="-")
    assert code == 2
    assert re.search(rf"standard input is an? {kind} file, .* name the file", said)


@pytest.mark.parametrize("as_arrow", [True, False])
def test_pipes_are_read_and_written(done, predict, scores, monkeypatch, as_arrow):
    stream = io.BytesIO()
    table = pa.Table.from_pandas(done.frame, preserve_index=False)
    if as_arrow:
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    else:
        pa.csv.write_csv(table, stream)
    given, taken = (io.TextIOWrapper(io.BytesIO(own)) for own in (stream.getvalue(), b""))
    monkeypatch.setattr(sys, "stdin", given)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", taken)
        code, _ = predict("-", "--labels=False", out="-")
    assert code == 0
    content = taken.buffer.getvalue()
    if as_arrow:
        got = pa.ipc.open_stream(content).read_all().to_pandas()
    else:
        got = pd.read_csv(io.BytesIO(content))
    assert np.allclose(got[TASKS], scores, rtol=0, atol=1e-7)


def test_what_isnt_a_row_is_an_error_with_its_line_or_left_out_and_counted(done, predict, scores):
    lines = done.frame.head(30).to_csv(index=False).splitlines()
    header = lines[0].split(",")
    cells = lines[5].split(",")
    cells[header.index("age")] = "old"
    lines[5] = ",".join(cells)
    lines[9] += ",further"
    Path("new.csv").write_text("\n".join(lines) + "\n")
    code, said = predict("new.csv")
    assert code == 2
    assert "new.csv" in said
    assert "line 10" in said
    del lines[9]
    Path("once.csv").write_text("\n".join(lines) + "\n")
    code, said = predict("once.csv")
    assert (code, said) == (
        2,
        "error: once.csv line 6: column 'age' holds 'old': it is no number\n",
    )
    assert not Path("scores.parquet").exists()
    code, said = predict("new.csv", "--skip_bad_rows=True", "--columns=item_id")
    assert code == 0, said
    assert "28 rows scored, 2 left out" in said
    kept = [row for row in range(30) if row not in (4, 8)]
    got = pd.read_parquet("scores.parquet")
    assert got["item_id"].tolist() == done.frame["item_id"].iloc[kept].tolist()
    assert np.allclose(got[TASKS], scores.iloc[kept], rtol=0, atol=1e-6)
    assert json.loads(Path("scores.parquet.json").read_text())["left_out"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns=["hour", "tags"]), "lacks the columns hour, tags, which the"),
        (lambda f: f.assign(age=[[1.0]] * len(f)), "column 'age' is of type list"),
        (lambda f: f.assign(hour=f["hour"].astype(float) + 0.5), "row 1: column 'hour' holds"),
        (lambda f: f.assign(click=2), "column 'click' must hold 0 or 1"),
        (lambda f: f.head(0), "has no row"),
    ],
)
def test_columns_that_arent_the_models_are_refused_by_name(done, predict, change, words):
    code, said = predict(written(change(done.frame.head(50)), "new.parquet"))
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not list(Path().glob("scores*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--column=a"], "predict knows no --column (did you mean columns?)"),
        (["--columns=haur"], "has no column 'haur' to pass through (did you mean hour?)"),
        (["--skip_bad_rows=maybe"], "--skip_bad_rows must be True or False, got 'maybe'"),
        (["--metrics=[CTR_AUK]"], "CTR_AUK"),
        (["--device=tpu9"], "device 'tpu9' can't be used"),
        (["--users=none.csv"], "there is no file none.csv"),
    ],
)
def test_a_mistyped_option_is_refused_by_name(done, predict, arguments, words):
    code, said = predict(written(done.frame.head(50), "new.parquet"), *arguments)
    assert code == 2
    assert words in said


def test_a_place_that_cant_be_written_is_said_before_anything_is_scored(predict):
    for out, words in (
        ("scores.txt", "must end in .parquet or"),
        ("no/s.csv", "there is no folder"),
    ):
        code, said = predict("new.parquet", out=out)
        assert (code, words in said) == (2, True), said


def test_rows_with_labels_are_scored_as_evaluation_scores_them(done, predict):
    """The test split of the run: its metrics are those of result.json."""
    config = json.loads((done.folder / "result.json").read_text())["config"]
    assert config["eval_args"]["order"] == "RO"
    given = {"data_path": str(done.files.parent), "seed": config["seed"]}
    built = Config("ESMM", "tiny", config_dict={**given, "numerical_features": ["age"]})
    _, _, test = prepare_data(built, EntireSpaceDataset(built))
    rows = test.dataset.inter_feat.positions.numpy()
    code, said = predict(written(done.frame.iloc[rows], "test.parquet"))
    assert code == 0, said
    metrics = json.loads(Path("scores.parquet.json").read_text())["metrics"]
    assert metrics == pytest.approx(dict(done.metrics), abs=1e-12)
    assert "GAUC" in said


def test_support_is_the_share_of_trains_clicks_at_or_below(done, predict):
    code, said = predict(written(done.frame, "new.parquet"), "--labels=False")
    assert code == 0, said
    quantiles = recbole_escm2.load(done.folder).models[0].support
    got = pd.read_parquet("scores.parquet")
    share = np.array([np.mean(quantiles <= own) for own in got["pctr"].astype(float)])
    assert np.abs(got["support"] - share).max() < 2e-3
    about = json.loads(Path("scores.parquet.json").read_text())
    below = about["below_percentile_of_train_clicks"]
    assert below["1"] == pytest.approx((got["pctr"] < quantiles[10]).mean())
    assert below["5"] == pytest.approx((got["pctr"] < quantiles[50]).mean())
    clicked = got["support"][done.frame["click"].to_numpy() == "1"]
    assert 0.45 < clicked.mean() < 0.55  # of clicks it is uniform
    assert "can't see regions that pCTR doesn't separate" in said


def test_what_has_shifted_is_told_by_its_psi(done, predict):
    frame = done.frame
    moved = frame.assign(
        age=frame["age"] + 30,
        hour=frame["hour"].where(frame.index % 2 == 0, "7"),
        user_id=frame["user_id"].where(frame.index % 4 > 0, "somebody"),
    )
    code, said = predict(written(moved, "new.parquet"), "--labels=False")
    assert code == 0, said
    about = json.loads(Path("scores.parquet.json").read_text())
    psi = about["psi"]
    assert all(psi[name] > 0.25 for name in ("age", "hour", "user_id"))
    assert all(psi[name] < 0.05 for name in ("item_id", "category", "tags"))
    assert about["unknown"]["user_id"] == (frame.index % 4 == 0).sum()
    hours = frame["hour"].value_counts(normalize=True)
    assert len(hours) == 24  # 19 one by one, the others together
    top, others = hours.iloc[:19], hours.iloc[19:]
    after = moved["hour"].value_counts(normalize=True)
    pairs = [(after[name], share) for name, share in top.items()]
    pairs.append((after[others.index].sum(), others.sum()))
    expected = sum((a - e) * np.log(a / e) for a, e in pairs)
    assert psi["hour"] == pytest.approx(expected, rel=0.1)  # of all rows, not of train's


def test_blocks_are_bounded_whatever_the_file(done, predict, scores, monkeypatch):
    """A file is never in memory: what the scorer gets at once doesn't grow with it."""
    sizes = []
    score = scorer_module.Scorer.score

    def watched(self, rows, where):
        sizes.append(len(rows))
        return score(self, rows, where)

    monkeypatch.setattr(scorer_module, "ROWS", 512)
    monkeypatch.setattr(scorer_module.Scorer, "score", watched)
    code, said = predict(written(done.frame, "new.parquet"), "--labels=False")
    assert code == 0, said
    assert sizes == [512] * 7 + [416]
    got = pd.read_parquet("scores.parquet")
    assert np.array_equal(got[TASKS].to_numpy(), scores.to_numpy())


def test_raw_files_of_ali_ccp_are_joined_to_their_common_features(tmp_path, monkeypatch, capsys):
    """Scores of the test split are those of its training, whichever files are there."""
    monkeypatch.chdir(tmp_path)
    raw = Path("dataset/ali-ccp/raw")
    simulate(Simulation(rows=3000, click_rate=0.3, conversion_rate=0.5, seed=1), raw)
    config = Config(
        "ESMM",
        "ali-ccp",
        config_dict={"epochs": 1, "embedding_size": 4, "mlp_hidden_size": [8], "min_count": 2},
    )
    run = Run.of(config)
    with run.at_work(config):
        training = Training(config, run)
        training.fit()
        _, predictions = training.score("test")
    for file in raw.glob("*train*"):
        file.unlink()
    folder = str(raw.rename("new"))
    shutil.rmtree("dataset")
    given = [f"--checkpoint={run.folder}", f"--data={folder}", "--out=scores.csv"]
    assert main(["predict", *given, "--columns=205"]) == 0
    assert "CTR" in capsys.readouterr().out
    got = pd.read_csv("scores.csv")
    for task, own in predictions.score.items():
        assert np.allclose(got[f"p{task}"], own, rtol=0, atol=1e-6)
    Path("new/truth_test.npy").unlink()  # of as many lines as there were
    skeleton = Path("new/sample_skeleton_test.csv")
    lines = skeleton.read_text().splitlines()
    skeleton.write_text("\n".join([*lines[:5], "no line", *lines[5:]]) + "\n")
    assert main(["predict", *given]) == 2
    assert "sample_skeleton_test.csv line 6" in capsys.readouterr().err.replace(",", "")
    assert main(["predict", *given, "--skip_bad_rows=True"]) == 0
    assert "1 left out" in capsys.readouterr().out


def test_the_page_holds_what_is_said(done, predict):
    file = written(done.frame.assign(user_id="<b>somebody</b>"), "new.parquet")
    code, said = predict(file, "--page=new.html")
    assert code == 0, said
    page = Path("new.html").read_text().replace("<wbr>", "")
    assert "4,000 rows scored." in page
    assert "can&#39;t see regions that pCTR doesn&#39;t separate" in page
    assert page.count("data:image/png;base64,") == 1
    for line in said.splitlines():
        if line.startswith(("user_id ", "age ", "GAUC ")):
            assert all(cell.replace("-", "\N{MINUS SIGN}") in page for cell in line.split())
    assert "http" not in page.replace("http-equiv", "")
    code, said = predict(file, "--page=new.txt")
    assert (code, said) == (2, "error: --page=new.txt must end in .html\n")


def test_a_model_without_validation_and_of_clicks_alone_scores_new_rows(data_path, done, tmp_path):
    """Train's rates, by which F1 decides, and clicks' pCTR don't come from validation."""
    given = {
        "data_path": str(data_path),
        "output_dir": str(tmp_path),
        "numerical_features": ["age"],
    }
    quick = {"epochs": 1, "embedding_size": 4, "mlp_hidden_size": [8]}
    split = {"eval_args": {"split": {"RS": [0.8, 0, 0.2]}}}
    whole = run_model("ESMM", "tiny", config_dict={**given, **quick, **split})["run_dir"]
    scorer = recbole_escm2.load(whole)
    assert set(scorer.known.train_rate) == {"ctr", "cvr", "ctcvr"}
    assert scorer.models[0].support is not None
    clicks = run_model("DeepFM", "tiny", config_dict={**given, **quick, "task": "cvr"})["run_dir"]
    scorer = recbole_escm2.load(clicks)
    assert 0 < scorer.known.train_rate["cvr"] < 1
    assert scorer.models[0].support is None
    assert list(scorer.predict(done.frame.head(3))) == ["pcvr"]


def test_blank_lines_are_left_out_and_a_file_is_looked_into_once(tmp_path, monkeypatch):
    """However many batches have such a line; a row without any value is none."""
    file = tmp_path / "new.csv"
    file.write_text("a,b\n" + "1,x\n\n,\n" * 50, "utf-8")
    batches = []
    for number in range(2, 152, 3):
        rows = pa.RecordBatch.from_pydict({"a": ["1", None, None], "b": ["x", None, None]})
        batches.append((range(number, number + 3), rows))
    read = []

    def lines_of(path):
        for pair in new_data_lines(path):
            read.append(pair[0])
            yield pair

    new_data_lines = new_data._lines_of
    monkeypatch.setattr(new_data, "_lines_of", lines_of)
    kept = [
        number for numbers, _ in new_data._without_blank_lines(file, batches) for number in numbers
    ]
    assert kept == [own for n in range(2, 152, 3) for own in (n, n + 2)]
    assert len(read) <= 151
