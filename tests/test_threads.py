"""How many threads torch gets, and that they don't spin where other processes need the cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_escm2 import threads
from recbole_escm2.threads import spinning_bounded_in_children, threads_of, usable_cores

BOUNDS = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


@pytest.fixture
def unset(monkeypatch):
    for name in (*BOUNDS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def quota(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(text)


def test_cores_are_bounded_by_the_quota_of_any_group_above(tmp_path, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)))
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/pods/mine\n")
    assert usable_cores(proc, groups) == 16  # nothing says otherwise
    quota(groups / "pods/mine", "max 100000\n")
    assert usable_cores(proc, groups) == 16
    quota(groups / "pods", "350000 100000\n")
    assert usable_cores(proc, groups) == 3
    quota(groups, "50000 100000\n")
    assert usable_cores(proc, groups) == 1


def test_cores_are_bounded_by_a_quota_of_version_1(tmp_path, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)))
    proc, folder = tmp_path / "proc", tmp_path / "cgroup" / "cpu,cpuacct" / "mine"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("5:memory:/mine\n4:cpu,cpuacct:/mine\n")
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(proc, tmp_path / "cgroup") == 16
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    assert usable_cores(proc, tmp_path / "cgroup") == 2


def test_jobs_share_the_cores(unset):
    unset.setattr(threads, "usable_cores", lambda: 6)
    assert [threads_of(jobs) for jobs in (1, 2, 4, 9)] == [6, 3, 1, 1]
    unset.setenv("OMP_NUM_THREADS", "5")
    assert threads_of(4) == 5
    unset.setenv("OMP_NUM_THREADS", "many")
    assert threads_of(2) == 3


@pytest.mark.parametrize("name", BOUNDS)
def test_what_the_user_says_of_waiting_threads_stays(unset, name):
    unset.setenv(name, "7")
    with spinning_bounded_in_children():
        assert {key: os.environ[key] for key in BOUNDS if key in os.environ} == {name: "7"}
    assert os.environ[name] == "7"


def test_children_get_a_bound_and_the_process_itself_keeps_its_environment(unset):
    with spinning_bounded_in_children():
        assert os.environ["GOMP_SPINCOUNT"] == "2000"
    assert not any(name in os.environ for name in BOUNDS)


def python(code: str, *arguments: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in BOUNDS}
    done = subprocess.run(
        [sys.executable, *(("-c", code) if code else ()), *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_an_import_sets_nothing_and_loads_neither_torch_nor_recbole():
    shown = python(
        "import os, sys; before = dict(os.environ); import recbole_escm2\n"
        "print(before == dict(os.environ), 'torch' in sys.modules, 'recbole' in sys.modules)"
    )
    assert shown.split() == ["True", "False", "False"]


# Runs the program, and says in which environment torch was loaded.
WATCH = """
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("torch is loaded with", os.environ.get("GOMP_SPINCOUNT"), flush=True)

sys.meta_path.insert(0, Watch())
import runpy
sys.argv = ["recbole-escm2", "--model=ESMM", "--dataset=nothing"]
"""


@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_module('recbole_escm2', run_name='__main__', alter_sys=True)",
        "import recbole_escm2.command_line as c; c.main()",
    ],
)
def test_the_program_bounds_spinning_before_torch_is_loaded(start):
    code = f"{WATCH}\ntry:\n    {start}\nexcept SystemExit:\n    pass"
    assert "torch is loaded with 2000" in python(code)
    assert "torch is loaded with 7" in python(code, GOMP_SPINCOUNT="7")


def test_a_run_says_its_threads_and_where_it_is_too_late(settings, tmp_path):
    code = (
        "import sys, torch; torch.set_num_threads(2); from recbole_escm2.quick_start import run\n"
        f"run('ESMM', 'tiny', config_dict={ {**settings, 'epochs': 1}!r})"
    )
    said = python(code)
    assert "2 threads; the process may use" in said
    assert "too late for this process" in said
    assert "too late" not in python(code, GOMP_SPINCOUNT="2000")
