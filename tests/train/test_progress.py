"""A training that is killed goes on, and ends bit-equal to one that nothing has happened to."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_escm2.errors import UsageError
from recbole_escm2.experiment import worker
from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.experiment.runs import finished
from recbole_escm2.metric_names import metric
from recbole_escm2.model import ESMM
from recbole_escm2.quick_start import run
from recbole_escm2.train.checkpoint import load_checkpoint, save_checkpoint
from recbole_escm2.train.optimizer import RowAdam, load_by_name, state_by_name
from recbole_escm2.train.progress import load_progress
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer

FEW = {"metrics": ["CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CTCVR_LogLoss"]}
#: What differs between two runs of the same, and may.
OF_THE_RUN = ("run_dir", "seconds", "config")


class KilledError(Exception):
    """In place of a kill: nothing in the program expects it."""


def killed_at(patch: Any, step: int) -> None:
    """Have the process fail before an optimizer step, counted over all trainings."""
    optimize, steps = EntireSpaceTrainer._optimize, itertools.count()

    def failing(self: Any, *arguments: Any) -> None:
        if next(steps) == step:
            raise KilledError
        optimize(self, *arguments)

    patch.setattr(EntireSpaceTrainer, "_optimize", failing)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run has come to but for its seconds: its result, and its checkpoints' content."""
    result = json.loads((folder / "result.json").read_text())
    for training in result["trainings"]:
        training.pop("seconds")
        for epoch in training["epochs"]:
            epoch.pop("seconds")
    kept = {
        file.relative_to(folder).as_posix(): load_checkpoint(file)
        for file in sorted(folder.rglob("*.pth"))
    }
    return {**{k: v for k, v in result.items() if k not in OF_THE_RUN}, "files": kept}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """To the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{n}")
    else:
        assert one == other, where


@pytest.fixture
def case(settings, tmp_path, monkeypatch):
    """Does a run once undisturbed, and once killed at some steps and gone on with."""

    def do(model: str, kills: list[int], **changes: Any) -> str:
        given = {**settings, **FEW, "save_interval": 0, "train_batch_size": 512, **changes}
        places = {name: {**given, "output_dir": str(tmp_path / name)} for name in ("whole", "cut")}
        unkept = {**places["whole"], "save_interval": None}  # saving must change nothing either
        whole = run(model, "tiny", config_dict=unkept)
        for step in kills:
            with monkeypatch.context() as patch:
                killed_at(patch, step)
                with pytest.raises(KilledError):
                    run(model, "tiny", config_dict=places["cut"])
        gone_on = run(model, "tiny", config_dict=places["cut"])
        (folder,) = (tmp_path / "cut").iterdir()
        assert folder == Path(gone_on["run_dir"])
        assert_same(outcome(Path(whole["run_dir"])), outcome(folder))
        assert not (folder / "lock").exists()
        return (folder / "run.log").read_text()

    return do


#: Of 3,200 impressions of train in batches of 512: seven steps an epoch.
CASES: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "dropout": ("ESCM2_IPS", [10, 3], {"dropout_prob": 0.3}),
    "before the first epoch ends": ("ESMM", [4], {}),
    "sparse rows": ("ESCM2_DR", [9, 2, 1], {"sparse_embedding": True, "dropout_prob": 0.1}),
    "sparse rows that sleep": (
        "ESCM2_IPS",
        [10, 3],
        {
            "sparse_embedding": True,
            "embedding_weight_decay": 1e-3,
            "train_batch_size": 32,
            "impression_sample": 0.1,
            "epochs": 3,
        },
    ),
    "early stopping": ("ESMM", [17], {"epochs": 30, "stopping_step": 1, "learning_rate": 0.03}),
    "bfloat16": ("ESCM2_DR", [8], {"enable_amp": True}),
    "two steps a batch": (
        "ESCM2_DR",
        [17, 5],  # the latter between the two steps of a batch
        {"imputation_schedule": "alternate", "imputation": "error"},
    ),
    "a model of RecBole's": ("DeepFM", [10], {"dropout_prob": 0.2}),
    "batch statistics": ("xDeepFM", [9], {}),
    "sgd": ("ESMM", [9], {"learner": "sgd", "sparse_embedding": True}),
    "adagrad": ("ESMM", [9], {"learner": "adagrad"}),
    "adagrad of dense tables": (
        "ESMM",
        [9],
        {"embedding_optimizer": "adagrad", "embedding_weight_decay": 0.01},
    ),
    "adagrad of sparse rows": (
        "ESCM2_DR",
        [9],
        {"embedding_optimizer": "adagrad", "sparse_embedding": True},
    ),
    "an average of the weights": ("ESMM", [17], {"weight_averaging": 0.9, "epochs": 4}),
    "an average of sparse rows": (
        "ESCM2_IPS",
        [16],
        {"weight_averaging": 0.9, "sparse_embedding": True, "epochs": 4},
    ),
    "parts of an epoch": ("ESMM", [6, 2], {"validations_per_epoch": 3, "dropout_prob": 0.1}),
    "a propensity fitted to validation": (
        "ESCM2_IPS",
        [16],
        {"propensity_calibration": "platt", "propensity_floor": "slope", "epochs": 4},
    ),
    "no validation": ("ESMM", [9], {"eval_args": {"split": {"RS": [0.9, 0, 0.1]}}}),
    "no validation for two epochs": ("ESMM", [17], {"epochs": 4, "eval_step": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_training_ends_as_an_undisturbed_one(case, name):
    model, kills, changes = CASES[name]
    log = case(model, kills, **changes)
    assert log.count("going on with ") == len(kills)


@pytest.mark.parametrize("kills", [[9], [16], [9, 8]], ids=["ctr", "cvr", "both"])
def test_each_of_two_trainings_goes_on(case, kills):
    log = case("DeepFM", kills, task="both", dropout_prob=0.2, epochs=2)
    assert re.search(r"going on with \S+-ctr(, whose training is done| from epoch)", log)


def test_the_scale_of_gradients_goes_on(case, monkeypatch):
    """RecBole leaves the scaler off without a GPU; one that grows each second step is on here."""
    made, build = [], EntireSpaceTrainer.__init__

    class Scaler(torch.amp.GradScaler):
        def __init__(self, device: str, enabled: bool) -> None:
            super().__init__(device, growth_interval=2, enabled=enabled)
            made.append(self)

    def scaled(self: Any, *arguments: Any) -> None:
        build(self, *arguments)
        self.enable_scaler = True

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    monkeypatch.setattr(EntireSpaceTrainer, "__init__", scaled)
    case("ESMM", [4], epochs=1)  # of seven steps
    assert [scaler.get_scale() for scaler in made] == [2.0**19, 2.0**18, 2.0**19]


@pytest.fixture
def cut(settings, monkeypatch):
    """A run of ESMM that was killed in its second epoch."""

    def do(**changes: Any) -> tuple[Path, dict[str, Any]]:
        given = {**settings, "save_interval": 0, "train_batch_size": 512, **changes}
        with monkeypatch.context() as patch:
            killed_at(patch, 10)
            with pytest.raises(KilledError):
                run("ESMM", "tiny", config_dict=given)
        (folder,) = Path(settings["output_dir"]).iterdir()
        return folder, given

    return do


def folder_of(given: dict[str, Any], **changes: Any) -> Path:
    return Path(run("ESMM", "tiny", config_dict={**given, **changes})["run_dir"])


def test_it_may_be_asked_for_refused_or_named(cut):
    folder, given = cut()
    assert folder_of(given, resume=False) != folder
    assert folder_of(given, resume=str(folder)) == folder
    for resume, words in {
        True: "nothing that this command has begun is unfinished in ",
        str(folder): f"{folder} is done",
        str(folder / "nowhere"): f"there is no folder {folder}/nowhere",
    }.items():
        with pytest.raises(UsageError, match=f"^resume: {words}"):
            run("ESMM", "tiny", config_dict={**given, "resume": resume})


def test_tensorboard_goes_on(cut):
    folder, given = cut()
    assert folder_of(given) == folder
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    for tag in ("Loss/Train/ctr", "Valid/CTCVR_AUC"):
        assert [event.step for event in shown.Scalars(tag)] == [0, 1]


def test_what_killed_runs_have_left_goes_with_the_next_one(cut, caplog):
    """One that had its result, one that had learned nothing; others are somebody's."""
    kept, given = cut()
    done = folder_of(given, resume=False)
    shutil.copy(kept / "progress.pth", done)
    (done / "lock").touch()
    folders = {name: done.with_name(f"{done.name}-{name}") for name in ("new", "begun", "at_work")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "run.log").write_text("begun")
    (folders["begun"] / "checkpoint.pth").write_bytes(b"of an epoch")
    with FileLock(folders["at_work"] / "lock"), caplog.at_level("INFO"):
        assert folder_of(given) == kept
    assert {*done.parent.iterdir()} == {kept, done, folders["begun"], folders["at_work"]}
    assert not (done / "lock").exists()
    assert not (done / "progress.pth").exists()
    assert f"{folders['new']} was killed before it had learned anything: removed" in caplog.text


def test_the_selected_epoch_goes_from_a_folder_of_checkpoints(settings, monkeypatch, tmp_path):
    """Where a run was killed with its result, before it removed what only going on needs."""
    elsewhere = tmp_path / "checkpoints"
    given = {**settings, "final_fit": True, "checkpoint_dir": str(elsewhere), "save_interval": 0}
    with monkeypatch.context() as patched:
        patched.setattr(Run, "forget_progress", _die)
        with pytest.raises(KilledError):
            run("ESMM", "tiny", config_dict=given)
    (folder,) = Path(settings["output_dir"]).iterdir()
    (folder / "lock").touch()
    assert len(list(elsewhere.glob("*-selected.pth"))) == 1
    run("ESMM", "tiny", config_dict=given)
    assert {file.stem for file in elsewhere.iterdir()} == {
        file.name for file in folder.parent.iterdir()
    }
    assert not list(folder.rglob("progress.pth"))


def _die(*given):
    raise KilledError


def test_what_no_number_depends_on_may_be_another(cut):
    folder, given = cut()
    assert folder_of(given, state="warning", save_interval=None) == folder


def test_other_settings_are_another_run(cut):
    folder, given = cut()
    assert folder_of(given, learning_rate=0.002) != folder
    with pytest.raises(UsageError, match="begun with learning_rate 0\\.001, not 0\\.002"):
        run("ESMM", "tiny", config_dict={**given, "learning_rate": 0.002, "resume": str(folder)})
    assert folder_of(given, resume=True) == folder


def test_other_code_is_another_run(cut, monkeypatch, caplog):
    folder, given = cut()
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr("recbole_escm2.train.run.code_of", lambda *given: "other")
        patch.setattr("recbole_escm2.train.resume.what_runs", lambda config: {"code": "x"})
        assert folder_of(given, epochs=2) != folder
    assert "was begun with other code of the program or of the model; this is a new" in caplog.text


def test_a_run_at_work_is_left_alone(cut, caplog):
    """Two same commands at once are two runs."""
    folder, given = cut()
    with FileLock(folder / "lock"), caplog.at_level("INFO"):
        assert folder_of(given) != folder
    assert f"another process is at {folder}; this is a new run" in caplog.text
    assert folder_of(given) == folder


def test_the_latest_of_several_is_taken(cut, settings):
    first, given = cut()
    second = folder_of(given, resume=False)
    (second / "result.json").unlink()
    shutil.copy(first / "progress.pth", second)
    assert folder_of(given) == second
    assert folder_of(given) == first


def test_on_other_data_it_begins_anew(cut, settings, data_path, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(data_path / "tiny", data / "tiny", ignore=shutil.ignore_patterns("store"))
    folder, given = cut(data_path=str(data))
    file = data / "tiny" / "tiny.inter"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    whole = run("ESMM", "tiny", config_dict={**given, "output_dir": str(tmp_path / "whole")})
    assert folder_of(given) == folder
    assert f"{folder.name} begins anew: it was trained on other data" in caplog.text
    assert_same(outcome(Path(whole["run_dir"])), outcome(folder))


@pytest.mark.parametrize("harm", ["cut", "pickle", "entry"])
def test_a_damaged_file_is_said_and_a_new_run_begun(cut, caplog, harm):
    folder, given = cut()
    file = folder / "progress.pth"
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "pickle":
        file.write_bytes(b"")
        torch.save({"epoch": 0}, file)
    else:
        save_checkpoint(file, {**load_progress(file), "random": None})
    with caplog.at_level("INFO"):
        assert folder_of(given) != folder
    assert re.search(r"progress\.pth.*; this is a new run", caplog.text)


@pytest.mark.parametrize("reading", [0, 1])
def test_memory_that_is_gone_costs_no_progress(cut, monkeypatch, reading):
    """Where the command looks whether it can go on, and where the training does."""
    folder, given = cut()
    load, readings = torch.load, itertools.count()

    def refused(*arguments: Any, **options: Any) -> Any:
        if "weights_only" in options and next(readings) >= reading:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return load(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", refused)
        with pytest.raises((RuntimeError, UsageError), match="can't allocate memory"):
            run("ESMM", "tiny", config_dict=given)
    assert folder_of(given) == folder


#: Entries of another form, under a right checksum, by where they are.
FORGED = [
    *((name, value) for name in ("of", "data", "trainer") for value in (None, [], "x", {"x": 1})),
    *((name, value) for name in ("threads", "epoch", "step") for value in (None, -1, 2.0, True)),
    *((("trainer", name), "x") for name in ("cur_step", "best_epoch", "best_valid_score")),
    *((("trainer", name), [1]) for name in ("best_valid_result", "beside_constant", "weights")),
    (("trainer", "train_loss_dict"), {0: "x"}),
    (("trainer", "train_loss_dict"), {"0": 1.0}),
    (("trainer", "loss_names"), [None]),
    (("trainer", "best_valid_result", "values"), {"CTR_AUC": torch.zeros(3)}),
    (("trainer", "weights"), {"clicks": b"x"}),
    (("data", "columns"), {3: "x"}),
    (("of", "config"), 3),
    (("of", "code"), torch.zeros(2)),
    *(("history", value) for value in ([3], [{}], [{"epoch": "x", "seconds": 1, "losses": {}}])),
    ("totals", {"ctr": 1.0}),
    ("totals", {"ctr": torch.zeros(2)}),
    ("optimizer", {"x": []}),
    *((("random", name), None) for name in ("torch", "numpy", "python")),
    (("random", "torch"), torch.zeros(3, dtype=torch.uint8)),
    (("random", "python"), (3, [1], None)),
]


def test_an_entry_of_another_form_is_named(cut):
    """Whatever is in the file: nobody goes on with it."""
    file = cut()[0] / "progress.pth"
    state, before = load_progress(file), random.getstate()
    for where, value in FORGED:
        *path, last = (where,) if isinstance(where, str) else where
        forged = copy.deepcopy(state)
        place = forged
        for name in path:
            place = place[name]
        place[last] = value
        save_checkpoint(file, forged)
        with pytest.raises(UsageError, match=f"its {[*path, last][0]} isn't as this program"):
            load_progress(file)
    assert random.getstate() == before


@pytest.mark.parametrize("kind", ["Adam", "SGD", "Adagrad", "RMSprop", "RowAdam"])
def test_an_optimizer_that_could_make_no_step_isnt_taken(kind):
    model = torch.nn.Embedding(5, 3, sparse=kind == "RowAdam")
    own = {"SGD": {"momentum": 0.9}, "RowAdam": {"weight_decay": 0.1}}.get(kind, {})
    cls = RowAdam if kind == "RowAdam" else getattr(torch.optim, kind)
    optimizer = cls(model.parameters(), lr=0.1, **own)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    state = copy.deepcopy(state_by_name(optimizer, model))
    assert load_by_name(optimizer, model, state) == []
    optimizer.step()
    for entry in state["weight"].keys() - {"of"}:
        for value in ("x", torch.zeros(7, 7), torch.zeros(0), []):
            forged = {"weight": {**state["weight"], entry: value}}
            with pytest.raises(UsageError, match=rf"has .*\b{entry}\b.* of weight of another"):
                load_by_name(optimizer, model, forged)
        if kind not in ("SGD", "RowAdam"):
            forged = {"weight": {k: v for k, v in state["weight"].items() if k != entry}}
            with pytest.raises(UsageError, match=rf"has .*\b{entry}\b.* of weight of another"):
                load_by_name(optimizer, model, forged)


def test_without_an_interval_nothing_is_kept(cut):
    folder, given = cut(save_interval=None)
    assert not (folder / "progress.pth").exists()
    assert folder_of(given) != folder


def test_a_model_of_a_notebook_begins_anew(settings, monkeypatch):
    """Nobody can tell whether its code is still the same."""
    mine = type("Mine", (ESMM,), {"__module__": "__main__"})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    given = {**settings, "save_interval": 0}
    with monkeypatch.context() as patch:
        killed_at(patch, 20)
        with pytest.raises(KilledError):
            run(mine, "tiny", config_dict=given)
    (folder,) = Path(settings["output_dir"]).iterdir()
    assert Path(run(mine, "tiny", config_dict=given)["run_dir"]) != folder
    assert Path(run(mine, "tiny", config_dict={**given, "resume": True})["run_dir"]) == folder


def test_a_metric_of_a_notebook_begins_anew(settings, monkeypatch):
    """Its earlier values may be those of other code."""

    def mine(label: Any, score: Any) -> float:
        return 0.5

    mine.__module__, mine.__qualname__ = "__main__", "mine"
    monkeypatch.setattr(sys.modules["__main__"], "mine", metric(task="ctr")(mine), raising=False)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    given = {**settings, "save_interval": 0, "metrics": [*FEW["metrics"], "__main__:mine"]}
    with monkeypatch.context() as patch:
        killed_at(patch, 20)
        with pytest.raises(KilledError):
            run("ESMM", "tiny", config_dict=given)
    (folder,) = Path(settings["output_dir"]).iterdir()
    assert Path(run("ESMM", "tiny", config_dict=given)["run_dir"]) != folder
    assert folder_of({**given, "resume": True}) == folder


def test_an_unsaved_run_goes_on_with_its_best_epoch(settings, monkeypatch, tmp_path):
    given = {**settings, "epochs": 3}
    whole = run("ESMM", "tiny", config_dict={**given, "output_dir": str(tmp_path)}, saved=False)
    with monkeypatch.context() as patch:
        killed_at(patch, 30)  # in the third epoch; progress is that of an epoch's begin
        with pytest.raises(KilledError):
            run("ESMM", "tiny", config_dict=given, saved=False)
    gone_on = run("ESMM", "tiny", config_dict=given, saved=False)
    folder = Path(gone_on["run_dir"])
    assert re.search(r"from epoch [12], step 0", (folder / "run.log").read_text())
    assert gone_on["test_result"] == whole["test_result"]
    assert not list(folder.rglob("*.pth"))


def test_a_run_killed_while_it_is_scored_only_scores(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("recbole_escm2.quick_start.write_json", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("ESMM", "tiny", config_dict=settings)
    with monkeypatch.context() as patch:
        killed_at(patch, 0)
        gone_on = run("ESMM", "tiny", config_dict=settings)
    result = json.loads((Path(gone_on["run_dir"]) / "result.json").read_text())
    assert len(result["trainings"][0]["epochs"]) == 2


def killed(target: Any, arguments: tuple[Any, ...], folder: Path) -> None:
    """Begin a process, and end it by SIGKILL once a progress is there that wasn't before."""
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("progress.pth")}
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.is_alive():
        if {f: f.stat().st_mtime_ns for f in folder.rglob("progress.pth")} != before:
            break
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_process_goes_on(settings, tmp_path):
    """By SIGKILL, which nothing can be done against: at whatever the process is."""
    given = {**settings, "save_interval": 0, "dropout_prob": 0.2, "train_batch_size": 64}
    whole = run("ESCM2_IPS", "tiny", config_dict={**given, "output_dir": str(tmp_path / "whole")})
    folder = Path(settings["output_dir"])
    for _ in range(3):
        killed(run, ("ESCM2_IPS", "tiny", None, given), folder)
    run("ESCM2_IPS", "tiny", config_dict={**given, "resume": True})
    (gone_on,) = folder.iterdir()
    assert_same(outcome(Path(whole["run_dir"])), outcome(gone_on))


def test_a_killed_run_of_a_benchmark_goes_on(settings, tmp_path):
    keys = {key: str(value) for key, value in {**settings, "train_batch_size": 64}.items()}
    options = {**keys, "model": "ESMM", "dataset": "tiny", "seeds": "1", "save_interval": "0"}
    (planned,) = make_experiment(options).runs
    planned.folder.mkdir(parents=True)
    killed(worker.main, (planned,), planned.folder)
    again = multiprocessing.get_context("fork").Process(target=worker.main, args=(planned,))
    again.start()
    again.join()
    assert again.exitcode == 0
    assert "going on with" in (planned.folder / "run.log").read_text()
    alone = {**planned.settings, "output_dir": str(tmp_path / "whole")}
    whole = run("ESMM", "tiny", config_dict=alone)
    assert outcome(planned.folder)["test_result"] == outcome(Path(whole["run_dir"]))["test_result"]
    assert not list(planned.folder.rglob("*.pth"))
    # killed right after its end
    (planned.folder / "progress.pth").touch()
    assert finished(planned).result == planned.result()
    assert not list(planned.folder.rglob("*.pth"))


def test_random_moments(case):
    steps = random.Random(0).sample(range(1, 20), 3)
    case("ESCM2_DR", steps, epochs=10, dropout_prob=0.2, save_interval=0.001)
