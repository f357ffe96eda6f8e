"""The edges of the system: full disks, places nobody can write to, processes side by side."""

from __future__ import annotations

import gc
import getpass
import importlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import pytest
from common import Outcome, call, on_disk, refused, small
from filelock import FileLock
from recbole.utils import case_study

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.data import store as store_module
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.data.store import Store, making
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.runs import execute
from recbole_escm2.output import alone, beside, write_json, write_whole
from recbole_escm2.quick_start import run
from recbole_escm2.train import trainer
from recbole_escm2.train.run import Run

SIMULATION = ("simulate", "--rows=3000", "--behaviours=5")


def limited(file_size: int, folder: Path, *arguments: str) -> Outcome:
    """The program in a process that may write no file larger than a number of bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            os.write(writing, pickle.dumps(tuple(call(folder, *arguments))))
        except BaseException as error:
            os.write(writing, pickle.dumps((-1, "", f"Traceback {error!r}")))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        outcome = Outcome(*pickle.loads(pipe.read()))
    os.waitpid(child, 0)
    return outcome


def files(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stored(data_path, tmp_path_factory):
    """A store_dir that holds the store of ``tiny``."""
    folder = tmp_path_factory.mktemp("stored")
    outcome = call(folder, *small(data_path, store_dir=folder / "stores"))
    assert outcome.code == 0, outcome
    return folder / "stores"


# ------------------------------------------------------------------ no room


@pytest.mark.parametrize("limit", [600, 5_000, 60_000])
def test_no_room_for_a_store(data_path, tmp_path, limit):
    places = {"store_dir": tmp_path / "stores"}
    outcome = limited(limit, tmp_path, *small(data_path, **places))
    assert outcome.code == 2, outcome
    assert outcome.error.startswith(f"error: {tmp_path}/stores/tiny: no room left on the disk")
    assert outcome.error.endswith(
        "name another folder for the data that training reads, with store_dir"
    )
    assert "Traceback" not in outcome.err
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("limit", "file", "settings"),
    [
        (100, "run.log", {}),
        (1_300, "events.out.tfevents", {}),
        (3_000, "checkpoint.pth", {}),
        (12_000, "checkpoint.pth", {}),
        (12_000, "checkpoint.pth", {"sparse_embedding": True}),
        (3_000, "cvr.pth", {"model": "DeepFM", "task": "both", "checkpoint_dir": "checkpoints"}),
    ],
)
def test_no_room_for_what_a_run_writes(data_path, stored, tmp_path, limit, file, settings):
    if settings.get("model"):
        settings = {**settings, "mlp_hidden_size": "[4]"}
    given = small(data_path, store_dir=stored, **settings)
    outcome = limited(limit, tmp_path, *given)
    assert outcome.code == 2, outcome
    assert "File too large. Make room, or name another folder" in outcome.error
    assert "Traceback" not in outcome.err
    left = files(tmp_path)
    assert not any("unfinished" in name or name.endswith((".pth", ".lock")) for name in left)
    assert "result.json" not in left
    if limit == 100:
        assert file in outcome.error
        assert left == set()


@pytest.mark.parametrize("limit", [0, 4_000, 100_000])
def test_no_room_for_a_simulation(tmp_path, limit):
    outcome = limited(limit, tmp_path, *SIMULATION, "--out=raw")
    assert outcome.code == 2, outcome
    assert "File too large" in outcome.error
    assert files(tmp_path) <= {".raw.lock"}
    assert not (tmp_path / "raw").exists()


def test_no_room_for_another_simulation_leaves_the_one_that_is_there(tmp_path):
    simulate(Simulation(rows=300, behaviours=2), tmp_path / "raw")
    before = on_disk(tmp_path / "raw")
    outcome = limited(100_000, tmp_path, *SIMULATION, "--out=raw")
    assert outcome.code == 2, outcome
    assert on_disk(tmp_path / "raw") == before


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_no_room_for_an_export(data_path, stored, tmp_path, kind):
    """torch's own writer would end the process."""
    pytest.importorskip("onnxscript", reason="needs the extra [serve]")
    assert call(tmp_path, *small(data_path, store_dir=stored)).code == 0
    (run_dir,) = (tmp_path / "output").iterdir()
    given = ("export", f"--checkpoint={run_dir}", f"--format={kind}", "--out=artefact")
    outcome = limited(2_000, tmp_path, *given)
    assert outcome.code == 2, outcome
    assert "File too large" in outcome.error
    assert "Traceback" not in outcome.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("artefact")]


# ------------------------------------------------------------------ places that can't be written to


@pytest.mark.parametrize("key", ["store_dir", "checkpoint_dir", "output_dir"])
@pytest.mark.parametrize("place", ["/proc/nowhere", "/sys/kernel/nowhere", "FILE", "FILE/below"])
def test_a_place_that_cannot_be(data_path, stored, tmp_path, key, place):
    (tmp_path / "mine.txt").write_text("a file")
    place = place.replace("FILE", str(tmp_path / "mine.txt"))
    settings = {"store_dir": stored, "output_dir": tmp_path / "output", key: place}
    outcome = call(tmp_path, *small(data_path, **settings))
    assert outcome.code == 2, outcome
    assert key in outcome.error
    assert place in outcome.error
    assert "Traceback" not in outcome.err
    assert files(tmp_path) == {"mine.txt"}
    assert (tmp_path / "mine.txt").read_text() == "a file"


@pytest.mark.parametrize("out", ["/proc/nowhere", "FILE", "FILE/below"])
def test_a_simulation_where_it_cannot_be(tmp_path, out):
    (tmp_path / "mine.txt").write_text("a file")
    out = out.replace("FILE", str(tmp_path / "mine.txt"))
    assert str(out).split("/below")[0] in refused(tmp_path, *SIMULATION, f"--out={out}")


NO_HOME = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "", "NUMBA_CACHE_DIR": "/proc/nowhere"}
NOWHERE_TO_KEEP = """
import numba.core.caching as caching
class Unwritable:
    @classmethod
    def from_function(cls, function, file):
        return None
caching.CacheImpl._locator_classes = [Unwritable]
import sys
from recbole_escm2.command_line import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("simulates", [True, False])
def test_nowhere_to_keep_what_is_compiled(data_path, stored, tmp_path, simulates):
    """A package and a home that can't be written into: numba has no place for its cache."""
    given = [*SIMULATION, "--out=raw"] if simulates else small(data_path, store_dir=stored)
    done = subprocess.run(
        [sys.executable, "-c", NOWHERE_TO_KEEP, *given],
        cwd=tmp_path,
        env={**os.environ, **NO_HOME},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (2 if simulates else 0), done.stderr
    if simulates:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: simulating needs a folder for what is compiled")
        assert "name one with NUMBA_CACHE_DIR" in line
        assert on_disk(tmp_path) == {}


# ------------------------------------------------------------------ side by side


@pytest.mark.parametrize("what", ["simulation", "store"])
def test_who_has_to_wait_says_so(data_path, tmp_path, what, program):
    if what == "simulation":
        held = alone(tmp_path / ".raw.lock", "simulating")
        given = [*SIMULATION, "--out=raw"]
        said = f"another process is simulating into {tmp_path}/raw; waiting for it"
    else:
        shutil.copytree(data_path / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("st*"))
        given = small(tmp_path)
        assert call(tmp_path, *given).code == 0
        (made,) = (tmp_path / "tiny" / "store").iterdir()
        shutil.rmtree(made)
        held = making(made)
        said = f"another process is making {made}; waiting for it"
    with held:
        process = subprocess.Popen(
            [sys.executable, "-m", "recbole_escm2", *given],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert any(said in line for line in process.stderr)
        assert not list(tmp_path.glob("raw/*.csv"))
    process.stderr.read()
    assert process.wait(300) == 0


def test_two_first_conversions_of_the_same_raw_files(tmp_path):
    simulate(Simulation(rows=3000, conversion_rate=0.1), tmp_path / "ali-ccp" / "raw")
    given = ["--model=ESMM", "--dataset=ali-ccp", f"--data_path={tmp_path}", "--min_count=2"]
    given += ["--epochs=1", "--embedding_size=2", "--mlp_hidden_size=[2]", "--metrics=[CTR_AUC]"]
    given += ["--train_batch_size=2048", "--valid_metric=CTR_AUC"]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "recbole_escm2", *given],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=500)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert sum("converting the raw files" in text for text in said) == 1
    (store,) = (tmp_path / "ali-ccp" / "store").iterdir()
    assert Store(store).schema["sizes"]


# ------------------------------------------------------------------ leftovers

KILLED = """
import os, signal, sys
from pathlib import Path
from recbole_escm2.output import beside
with beside(Path(sys.argv[1])) as place:
    if sys.argv[2] == "folder":
        place.mkdir()
        (place / "content").write_text("half")
    else:
        place.write_text("half")
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_leftovers_go_once_their_process_is_no_more(tmp_path, kind):
    target = tmp_path / "result.json"
    (tmp_path / "result.json.old").write_text("mine")
    (tmp_path / "other.result.json.1.unfinished").write_text("of another target")
    mine = on_disk(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    half_made = {path: text for path, text in on_disk(tmp_path).items() if path not in mine}
    write_json(target, {"whole": 1})
    there = on_disk(tmp_path)
    assert half_made.items() <= there.items()  # it is alive
    process.kill()
    process.wait()
    write_json(target, {"whole": 2})
    assert set(on_disk(tmp_path)) == {*mine, str(target)}
    assert json.loads(target.read_text()) == {"whole": 2}


def test_the_socket_of_a_killed_benchmark_goes_with_the_next_one(
    data_path, tmp_path, monkeypatch, kill_at, program
):
    """What multiprocessing leaves among the system's temporary files; others' files stay."""
    with tempfile.TemporaryDirectory() as temporary:  # of a path that a socket's fits behind
        monkeypatch.setenv("TMPDIR", temporary)
        (Path(temporary) / "pymp-of_somebody").mkdir()
        given = small(data_path, seeds=2, aa_row=False)
        kill_at("[1/2]", *given)
        assert [path.name[:9] for path in Path(temporary).rglob("listener-*")] == ["listener-"]
        done = program(*given)
        assert done.returncode == 0, done.stderr
        left = set(os.listdir(temporary)) - {f"torchinductor_{getpass.getuser()}"}  # a cache
        assert left == {"pymp-of_somebody"}


def test_the_server_of_runs_ends_with_who_began_it_also_while_it_imports(tmp_path):
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(3600)\n")
    program = f"""
import os, sys
from multiprocessing import forkserver
from recbole_escm2.experiment import runs
sys.path.insert(0, {str(tmp_path)!r})
runs._server()
print(forkserver._forkserver._forkserver_pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    server = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 300
    while server.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = not server.exists()
    if not ended:
        os.kill(int(done.stdout), signal.SIGKILL)
    assert ended


def test_what_a_killed_benchmark_has_left_goes_though_no_run_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name = f"escm2-{os.getuid()}.0a1b2c3d.unfinished"
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.lock").touch()
    assert [*execute(iter(()), jobs=1)] == []
    assert not [*tmp_path.iterdir()]


def test_what_lies_beside_is_its_makers(tmp_path):
    """A process that is forked meanwhile lets go of what it was given, and of no file."""
    making = beside(tmp_path / "target")
    place = making.__enter__()
    place.write_text("unfinished")
    child = os.fork()
    if child == 0:
        del making
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    with beside(tmp_path / "target"):  # removes what nobody is at
        assert place.read_text() == "unfinished"
    making.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_link_among_leftovers_leads_nowhere(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / "t.1.unfinished").symlink_to(tmp_path / "mine")
    (tmp_path / "t.2.unfinished.lock").symlink_to(tmp_path / "mine" / "letter")
    write_whole(tmp_path / "t", "whole")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"
    assert files(tmp_path) == {"t", "letter"}


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_fails(tmp_path, error):
    (tmp_path / "t").write_text("before")

    def fail():
        with beside(tmp_path / "t") as place:
            place.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert files(tmp_path) == {"t"}
    assert (tmp_path / "t").read_text() == "before"


def test_the_checkpoint_that_nobody_keeps_is_in_the_folder_of_its_run(data_path, stored, tmp_path):
    """Where a run is killed it lies there, and not among the system's temporary files."""
    seen = []
    given = {"data_path": str(data_path), "store_dir": str(stored), "output_dir": str(tmp_path)}
    given |= {"epochs": 1, "show_progress": False, "embedding_size": 2}
    saves = trainer.save_checkpoint
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            trainer, "save_checkpoint", lambda path, state: (seen.append(path), saves(path, state))
        )
        outcome = run("ESMM", "tiny", config_dict=given, saved=False)
    assert all(path.is_relative_to(outcome["run_dir"]) for path in seen)
    assert seen
    assert not list(tmp_path.rglob("*.pth"))


def test_what_a_conversion_killed_at_its_end_has_left_goes_with_the_next_start(data_path, tmp_path):
    """The lock of who made the store, and what it replaced; a lock that is held stays."""
    given = small(data_path, store_dir=tmp_path / "stores")
    assert call(tmp_path, *given).code == 0
    (folder,) = (tmp_path / "stores" / "tiny").iterdir()
    lock = folder.with_name(f".{folder.name}.lock")
    with FileLock(lock):
        assert call(tmp_path, *given).code == 0
        assert lock.exists()
    (folder.with_name(f".{folder.name}.0a1b.unfinished")).mkdir()
    (folder.with_name(f".{folder.name}.0a1b.unfinished.lock")).touch()
    lock.touch()
    assert call(tmp_path, *given).code == 0
    assert [*folder.parent.iterdir()] == [folder]


# ------------------------------------------------------------------ a store that goes away


@pytest.mark.parametrize("when", ["_mapped", "file_digest", "Vocabulary"])
def test_a_store_that_vanishes_while_it_is_opened_is_made_again(
    data_path, tmp_path, monkeypatch, when
):
    """As another process does that replaces it: at its files, its digests, its vocabularies."""
    given = small(data_path, store_dir=tmp_path / "stores")
    assert call(tmp_path, *given).code == 0
    (folder,) = (tmp_path / "stores" / "tiny").iterdir()
    real, gone = getattr(store_module, when), []

    def vanishing(*arguments):
        if not gone:
            gone.append(folder)
            shutil.rmtree(folder)
        return real(*arguments)

    monkeypatch.setattr(store_module, when, vanishing)
    outcome = call(tmp_path, *given)
    assert outcome.code == 0, outcome
    assert gone
    assert "reading tiny.inter" in outcome.err
    assert Store(folder).schema["fields"]


# ------------------------------------------------------------------ many runs in one process


@pytest.mark.parametrize(
    ("model", "changes"),
    [("ESMM", {}), ("DeepFM", {"task": "both"}), ("ESCM2_DR", {"backbone": "xDeepFM"})],
)
def test_runs_in_one_process_leave_nothing_open(data_path, stored, tmp_path, model, changes):
    """Without a garbage collection, which may come late: log, TensorBoard, the store's maps."""
    given = {"data_path": str(data_path), "store_dir": str(stored), "output_dir": str(tmp_path)}
    given |= {"epochs": 1, "show_progress": False, "embedding_size": 2, "train_batch_size": 4096}

    def still_open():
        run(model, "tiny", config_dict={**given, **changes}, saved=False)
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    gc.disable()
    try:
        still_open()
        first = still_open()
        assert [still_open(), still_open()] == [first, first]
    finally:
        gc.enable()


def test_a_run_that_fails_closes_what_it_has_opened(data_path, stored, tmp_path):
    given = small(data_path, store_dir=stored, learning_rate=1e30, epochs=3)
    call(tmp_path, *given)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert call(tmp_path, *given).code == 2
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------ files and columns


def tiny_without(data_path: Path, folder: Path, change) -> list[str]:
    """Arguments of a run on a copy of ``tiny.inter`` alone, its cells changed row by row."""
    (folder / "tiny").mkdir()
    lines = (data_path / "tiny" / "tiny.inter").read_text().splitlines()
    rows = ["\t".join(change(n, line.split("\t"))) for n, line in enumerate(lines, 1)]
    (folder / "tiny" / "tiny.inter").write_text("\n".join(rows) + "\n")
    return small(folder, epochs=1)


@pytest.mark.parametrize("metric", ["CTR_GAUC", "CTR_NDCG@5", "CVR_GAUC"])
def test_metrics_per_user_without_users_say_so(data_path, tmp_path, metric):
    given = tiny_without(data_path, tmp_path, lambda n, cells: cells[1:])
    given = [argument for argument in given if not argument.startswith("--metrics")]
    given += [f"--metrics=[CTR_AUC,{metric}]", "--valid_metric=CTR_AUC"]
    assert "no column 'user_id' (USER_ID_FIELD)" in call(tmp_path, *given).error
    outcome = call(tmp_path, *given, "--USER_ID_FIELD=None", "--ITEM_ID_FIELD=None")
    assert outcome.code == 0, outcome
    assert f"{metric} is left out: " in outcome.out
    assert "user" in outcome.out.partition(f"{metric} is left out: ")[2].splitlines()[0]


@pytest.mark.parametrize("numbers", ["age", None])
@pytest.mark.parametrize("model", ["DSSM", "ESMM", "LR"])
def test_features_that_a_model_leaves_out(data_path, stored, tmp_path, model, numbers):
    """A float column of users, that isn't named, or that a model of token fields doesn't read."""
    given = {"model": model, "numerical_features": numbers and f"[{numbers}]"}
    outcome = call(tmp_path, *small(data_path, store_dir=stored, mlp_hidden_size="[4]", **given))
    assert outcome.code == 0, outcome
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("column", "name"), [(6, "true_ctr"), (7, "true_cvr")])
@pytest.mark.parametrize("value", ["nan", "inf", "1.5"])
def test_a_truth_that_is_no_probability(data_path, tmp_path, column, name, value):
    def change(n, cells):
        return [*cells[:column], value, *cells[column + 1 :]] if n == 7 else cells

    given = tiny_without(data_path, tmp_path, change)
    said = call(tmp_path, *given, "--TRUE_CTR_FIELD=true_ctr", "--TRUE_CVR_FIELD=true_cvr")
    assert said.code == 2, said
    assert f"column '{name}' must hold a probability in [0, 1]" in said.error
    assert "line 7" in said.error


# ------------------------------------------------------------------ RecBole's own functions


@pytest.fixture
def recboles_quick_start(monkeypatch):
    """RecBole's module, which wants Ray."""
    for name in ("ray", "ray.tune"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["ray"].tune = sys.modules["ray.tune"]
    return importlib.import_module("recbole.quick_start.quick_start")


@pytest.mark.parametrize("damaged", [False, True])
def test_recboles_load_data_and_model(data_path, stored, tmp_path, recboles_quick_start, damaged):
    assert call(tmp_path, *small(data_path, store_dir=stored)).code == 0
    (checkpoint,) = (tmp_path / "output").glob("*/checkpoint.pth")
    if damaged:
        content = bytearray(checkpoint.read_bytes())
        content[100] ^= 1
        checkpoint.write_bytes(content)
    with pytest.raises(UsageError, match=r"holds no objects for RecBole's .*recbole_escm2\.load"):
        recboles_quick_start.load_data_and_model(str(checkpoint))
    other = tmp_path / "other.pth"
    other.write_bytes(b"")
    with pytest.raises(EOFError):  # RecBole's own matter
        recboles_quick_start.load_data_and_model(str(other))


@pytest.mark.parametrize("name", ["full_sort_scores", "full_sort_topk"])
def test_recboles_case_study(data_path, stored, tmp_path, name):
    given = {"data_path": str(data_path), "store_dir": str(stored), "output_dir": str(tmp_path)}
    config = Config("ESMM", "tiny", config_dict=given)
    _, _, test = prepare_data(config, EntireSpaceDataset(config))
    further = {"k": 3} if name == "full_sort_topk" else {}
    model = config.model_class(config, test.dataset)
    with pytest.raises(UsageError, match="case_study ranks all items"):
        getattr(case_study, name)([1, 2], model, test, **further)


@pytest.mark.parametrize("content", ["", '{"model": "ESMM", "te', "\0" * 500, "[]", "{}", "NaN"])
def test_a_result_that_is_cut(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UsageError, match=r"result\.json.* remove it, and the run is done again"):
        Run(tmp_path).result()
