"""Several processes score as one does: the same bytes, the same errors, and none is left behind."""

import json
import os
import signal
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from processes import NEEDS_PROC, are_gone

from recbole_escm2.command_line import main
from recbole_escm2.errors import UsageError
from recbole_escm2.serve.new_data import NewData
from recbole_escm2.serve.predict import Prediction, workers_of
from recbole_escm2.serve.scorer import Scorer
from recbole_escm2.serve.workers import Workers

SIZE = 256  # rows a block


@pytest.fixture(scope="module")
def workers(done):
    """Two processes with the model, which take seconds to begin."""
    with Workers(2, (done.folder,)) as both:
        yield both


@pytest.fixture
def prediction(done, tmp_path):
    """Makes one of a frame, as a Parquet or CSV file, in blocks of :data:`SIZE` rows."""

    def make(frame, suffix=".parquet", skip=False):
        path = tmp_path / f"new{suffix}"
        if suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            pa.parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
        scorer = Scorer(done.folder)
        scorer.block = SIZE
        return Prediction(scorer, NewData(str(path), scorer, ["user_id"], skip))

    return make


def output_of(prediction, folder, workers, capsys):
    """Bytes of the scores, and the report."""
    out = folder / ("several.parquet" if workers else "one.parquet")
    prediction.write(str(out), workers)
    prediction.report(str(out))
    capsys.readouterr()
    return out.read_bytes(), json.loads(Path(f"{out}.json").read_text())


def test_the_bytes_and_the_report_are_those_of_one_process(
    done, prediction, workers, tmp_path, capsys
):
    frame = done.frame.assign(hour=done.frame["hour"].astype(str))
    frame.loc[::7, "hour"] = "99"
    one = output_of(prediction(frame), tmp_path, None, capsys)
    several = output_of(prediction(frame), tmp_path, workers, capsys)
    assert several[0] == one[0]
    assert several[1] == one[1]
    assert one[1]["unknown"]["hour"] > 0
    assert one[1]["metrics"]


def test_rows_that_cant_be_read_are_left_out_alike(done, prediction, workers, tmp_path, capsys):
    frame = done.frame.assign(age=done.frame["age"].astype(str))
    frame.loc[[3, 700, 701], "age"] = "old"
    one = output_of(prediction(frame, ".csv", skip=True), tmp_path, None, capsys)
    several = output_of(prediction(frame, ".csv", skip=True), tmp_path, workers, capsys)
    assert several == one
    assert one[1]["left_out"] == 3


@pytest.mark.parametrize("row", [SIZE + 1, 4 * SIZE])
def test_the_first_error_is_said_whatever_has_been_read_ahead(
    done, prediction, workers, tmp_path, row
):
    frame = done.frame.head(6 * SIZE).assign(age=done.frame["age"].astype(str))
    frame.loc[[row, 5 * SIZE], "age"] = "old"
    said = []
    for who in (None, workers):
        own = prediction(frame, ".csv")
        with pytest.raises(UsageError) as caught:
            own.write(str(tmp_path / "out.parquet"), who)
        said.append(str(caught.value))
    assert f"line {row + 2:,}: column 'age' holds 'old'" in said[1]
    assert said[0] == said[1]
    assert not list(tmp_path.glob("out.parquet*"))


def test_what_cant_be_read_is_said_behind_the_blocks_before_it(done, prediction, workers):
    own = prediction(done.frame)
    block = next(own.new.blocks())

    def failing():
        yield from range(3)
        raise UsageError("line 9 is no row")

    scored = workers.scored(failing(), lambda _: own._features((block, {})))
    seen = [(number, len(scores.of["ctr"])) for number, scores, _ in islice(scored, 3)]
    assert seen == [(0, SIZE), (1, SIZE), (2, SIZE)]
    with pytest.raises(UsageError, match="line 9 is no row"):
        next(scored)


@NEEDS_PROC
def test_a_process_that_is_killed_ends_all_with_a_message(done, prediction, tmp_path):
    own = prediction(done.frame)
    with Workers(2, (done.folder,)) as workers:
        features = own._features((next(own.new.blocks()), {}))
        scored = workers.scored(range(40), lambda _: features)
        next(scored)
        started = set(workers._pool._processes)
        os.kill(min(started), signal.SIGKILL)
        with pytest.raises(UsageError, match="ended before its time"):
            list(scored)
    assert are_gone(started)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_what_is_no_number_of_processes_is_refused(text):
    with pytest.raises(UsageError, match="--workers must be a number of processes"):
        workers_of({"workers": text})


def test_torchrun_is_refused_in_words(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="without torchrun"):
        workers_of({})


def test_the_command_takes_the_number_of_processes(done, tmp_path, capsys):
    data = tmp_path / "new.parquet"
    pa.parquet.write_table(pa.Table.from_pandas(done.frame, preserve_index=False), data)
    said, content = [], []
    for number in (1, 2):
        out = tmp_path / f"{number}.parquet"
        given = [f"--checkpoint={done.folder}", f"--data={data}", f"--out={out}"]
        assert main(["predict", *given, f"--workers={number}"]) == 0
        said.append(capsys.readouterr().out)
        content.append(out.read_bytes())
    assert content[0] == content[1]
    assert said[0] == said[1]
