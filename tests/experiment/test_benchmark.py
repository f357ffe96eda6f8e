"""Benchmarks through the real command line: what is missing runs, the rest is kept."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from recbole_escm2.experiment import runs as runs_module
from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.experiment.runs import Process, execute, finished
from recbole_escm2.quick_start import run

MODELS = "ESMM,ESCM2_IPS,DeepFM"


@pytest.fixture
def quick(data_path: Path) -> tuple[str, ...]:
    return (
        "--dataset=tiny",
        f"--data_path={data_path}",
        "--epochs=2",
        "--embedding_size=4",
        "--mlp_hidden_size=[8]",
        "--train_batch_size=256",
    )


def results(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in (folder / "output" / "runs").glob("*/result.json")
    }


def test_a_benchmark_goes_on_where_it_was_killed(
    program, program_here, kill_at, metrics_of, quick, tmp_path
):
    arguments = (f"--model={MODELS}", "--seeds=2", "--jobs=2", "--name=three", *quick)
    arguments = (*arguments, "--aa_row=False")
    kill_at("[2/6]", *arguments)
    before = {name: result["run_dir"] for name, result in results(tmp_path).items()}
    assert 2 <= len(before) < 6
    at = {name: (Path(d) / "result.json").stat().st_mtime_ns for name, d in before.items()}

    done = program(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (there,) = re.findall(r"6 runs, of which (\d) are done", done.stderr)
    assert len(before) <= int(there) < 6  # a run that was at work when its benchmark died ends well
    assert len(re.findall(r"^\[\d/", done.stderr, re.MULTILINE)) == 6 - int(there)
    after = results(tmp_path)
    assert len(after) == 6
    for name, modified in at.items():
        assert (Path(before[name]) / "result.json").stat().st_mtime_ns == modified

    # finished: the same table at once
    again = program(*arguments)
    assert again.stdout == done.stdout
    assert "6 runs, of which 6 are done" in again.stderr
    assert "[1/" not in again.stderr
    for word in ("ESMM", "ESCM2_IPS", "DeepFM", "CTCVR_AUC"):
        assert word in done.stdout
    made_by = json.loads((tmp_path / "output" / "three" / "report.json").read_text())["command"]
    assert made_by == shlex.join(["python", "-m", "recbole_escm2", *arguments])

    # one seed more runs that seed alone, and the A/A row its own three
    more = program(f"--model={MODELS}", "--seeds=3", "--name=three", *quick)
    said = "3 rows, the baseline again (A/A), 3 seeds, 12 runs, of which 6 are done"
    assert said in more.stderr

    # a run is the same one that the program does by itself
    alone = program_here("--model=ESCM2_IPS", "--seed=2021", *quick)
    (result,) = (r for name, r in after.items() if name.startswith("ESCM2_IPS-tiny-seed2021"))
    assert metrics_of(alone.stdout)["CTCVR_AUC"] == pytest.approx(
        result["test_result"]["CTCVR_AUC"], abs=1e-6
    )


def test_one_failing_run_does_not_stop_the_others(program, quick, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from recbole_escm2.model import ESMM\n"
        "class Broken(ESMM):\n"
        "    def riskss(self, interaction):\n"
        "        return 0\n"
        "    def task_risks(self, interaction):\n"
        "        raise RuntimeError('broken on purpose')\n"
    )
    arguments = ("--model=mine:Broken,ESMM", "--seeds=2", "--name=b", "--baseline=ESMM", *quick)
    arguments = (*arguments, "--aa_row=False")
    done = program(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("failed: mine:Broken, seed 20") == 2
    assert "mine.py, line 6, in task_risks: RuntimeError: broken on purpose" in done.stderr
    assert "output.log)" in done.stderr
    assert "warning: Broken.riskss is no hook" in done.stderr
    assert len(results(tmp_path)) == 2
    with open(tmp_path / "output" / "b" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["row"] for row in rows if row["CTCVR_AUC"]} == {"ESMM"}

    # what failed is tried again, with what was mended
    (tmp_path / "mine.py").write_text(
        "from recbole_escm2.model import ESMM\nclass Broken(ESMM):\n    pass\n"
    )
    done = program(*arguments)
    assert done.returncode == 0, done.stderr
    assert "4 runs, of which 2 are done" in done.stderr


def test_ctrl_c_stops_the_runs(quick, tmp_path):
    endless = [*quick[:2], *quick[3:], "--epochs=5000", "--stopping_step=5000"]
    command = [sys.executable, "-m", "recbole_escm2", "--model=ESMM", "--seeds=2", *endless]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts these tests in the background has them ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("output/runs/*/history.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in said
    assert "Traceback" not in said


def begun(tmp_path: Path, quick: tuple[str, ...], said: str, wanted: str) -> subprocess.Popen[str]:
    """A benchmark of one run that would never end, once a file that it writes is there."""
    endless = [*quick[:2], *quick[3:], "--epochs=500000", "--stopping_step=500000"]
    command = [sys.executable, "-m", "recbole_escm2", "--model=ESMM", "--seeds=1", *endless]
    with open(tmp_path / said, "w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=file, text=True)
    deadline = time.monotonic() + 120
    while not re.search(wanted, everything(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def everything(tmp_path: Path) -> str:
    """What benchmarks have said, and the names of the files of their runs."""
    texts = [file.read_text() for file in tmp_path.glob("said*")]
    return "\n".join([*texts, *(path.name for path in tmp_path.glob("output/runs/*/*"))])


def test_the_runs_of_a_killed_benchmark_end_with_it(quick, tmp_path):
    process = begun(tmp_path, quick, "said", r"history\.json")
    process.kill()
    process.wait()
    (folder,) = tmp_path.glob("output/runs/*")
    with FileLock(folder / "lock").acquire(timeout=60):  # held as long as somebody is at the run
        left = {path.name for path in folder.iterdir()}
    assert "result.json" not in left
    assert {"progress.pth", "unsaved"} <= left  # with which the same command goes on


def test_a_start_says_whom_it_waits_for(quick, tmp_path):
    first = begun(tmp_path, quick, "said1", r"history\.json")
    second = begun(tmp_path, quick, "said2", "waits")
    try:
        said = f"ESMM, seed 2020 waits for process {first.pid}, which is at this run\n"
        assert said in (tmp_path / "said2").read_text()
    finally:
        for process in (first, second):
            process.terminate()
        for process in (first, second):
            process.wait()


def test_a_run_survives_the_server_of_runs(options):
    """Killed while it imports, and once the run is at work."""
    plan = make_experiment({**options, "model": "ESMM", "seeds": "1", "epochs": "3"})
    kills = []

    def kill_server(process):
        if len(kills) < 2 and (process.run.folder / "run.json").exists():
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
            kills.append(process)

    runs_module._server()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    (outcome,) = execute(iter(plan.runs), 1, watch=kill_server)
    assert kills
    assert outcome.result is not None, outcome.reason
    assert outcome.result["test_result"]


@pytest.mark.parametrize("model", ["ESMM", "DeepFM"])
def test_a_result_whose_checkpoint_is_elsewhere_is_done(options, tmp_path, model):
    options |= {"saved": "True", "checkpoint_dir": str(tmp_path / "kept"), "model": model}
    plan = make_experiment({**options, "seeds": "1", "embedding_size": "4"})
    (run_,) = plan.runs
    (outcome,) = execute(iter(plan.runs), 1)
    assert outcome.result is not None
    earlier = finished(run_)
    assert earlier is not None
    assert earlier.result == outcome.result
    for file in (tmp_path / "kept").iterdir():
        file.unlink()
    assert finished(run_) is None
    assert finished(replace(run_, saved=False)) is not None  # asking deletes nothing


@pytest.mark.parametrize("place", ["", "kept"])
def test_a_pair_is_done_when_both_checkpoints_are_there(options, tmp_path, place):
    options |= {"checkpoint_dir": str(tmp_path / place)} if place else {}
    (run_,) = make_experiment({**options, "model": "FM", "seeds": "1", "saved": "True"}).runs

    def checkpoints() -> list[Path]:
        folder = tmp_path / place if place else run_.folder
        return sorted(folder.rglob("*.pth"))

    for missing in (0, 1):
        (outcome,) = execute(iter([run_]), 1)
        assert outcome.result is not None
        assert len(checkpoints()) == 2
        assert run_.is_done()
        checkpoints()[missing].unlink()
        assert not run_.is_done()
        assert replace(run_, saved=False).is_done()


def test_what_a_result_says_of_training_and_predictions(settings):
    outcome = run("ESCM2_IPS", "tiny", config_dict=settings)
    content = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
    (training,) = content["trainings"]
    assert [epoch["epoch"] for epoch in training["epochs"]] == [0, 1]
    last = training["epochs"][-1]
    assert set(last["losses"]) == {"ctr", "cvr", "ctcvr"}
    assert last["weights"] == content["weights"]
    assert last["valid"].keys() == outcome["best_valid_result"].keys()
    impressions = content["data"]["test"]["impressions"]
    for space in ("ctr", "ctcvr", "cvr_es"):
        curve = content["calibration"][space]
        assert sum(curve["rows"]) == impressions
        assert np.all(np.diff(curve["predicted"]) >= 0)
    observed = content["calibration"]["ctr"]
    positives = np.dot(observed["rows"], observed["observed"])
    assert positives == pytest.approx(content["data"]["test"]["clicks"])
    overlap = content["overlap"]
    assert sum(overlap["clicked"]) == content["data"]["test"]["clicks"]
    assert sum(overlap["clicked"]) + sum(overlap["unclicked"]) == impressions
    assert len(overlap["logit_edges"]) == len(overlap["clicked"]) + 1
    assert content["weight_quantiles"]["w"][-1] <= 10.0 + 1e-9  # 1/floor


def test_a_stopped_run_leaves_no_result(quick, tmp_path, data_path):
    plan = make_experiment(
        {
            "model": "ESMM",
            "dataset": "tiny",
            "data_path": str(data_path),
            "output_dir": str(tmp_path),
            "epochs": "1000",
            "stopping_step": "1000",
        }
    )

    def watch(process: Process) -> None:
        if len(process.run.history()) >= 2:
            process.stop("enough")

    (outcome,) = execute(iter(plan.runs), 1, watch=watch)
    assert outcome.result is None
    assert outcome.reason == "enough"
    assert finished(plan.runs[0]) is None


def test_the_model_of_the_clicks_may_take_as_many_steps_as_that_of_all(settings):
    # 3,200 impressions are 50 batches of 64, the clicks of them a third
    asked = {**settings, "train_batch_size": 64, "epochs": 2, "stopping_step": 1, "task": "both"}
    outcome = run("DeepFM", "tiny", config_dict=asked)
    content = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
    batches = {
        "ctr": math.ceil(content["data"]["train"]["impressions"] / 64),
        "cvr": math.ceil(content["data"]["train"]["clicks"] / 64),
    }
    times = math.ceil(batches["ctr"] / batches["cvr"])
    assert times > 1
    ctr, cvr = content["trainings"]
    assert len(ctr["epochs"]) == 2
    assert len(cvr["epochs"]) <= 2 * times
    validated = [epoch["epoch"] for epoch in cvr["epochs"] if "valid" in epoch]
    # it stops before the end only after as many validations without a better one as are allowed
    waited = sum(epoch > cvr["best_epoch"] for epoch in validated)
    assert len(cvr["epochs"]) == 2 * times or waited > asked["stopping_step"]
    assert len(validated) >= 2
    # a training by itself keeps RecBole's meaning of epochs
    alone = run("DeepFM", "tiny", config_dict={**asked, "task": "cvr"})
    content = json.loads((Path(alone["run_dir"]) / "result.json").read_text())
    assert len(content["trainings"][0]["epochs"]) <= 2
