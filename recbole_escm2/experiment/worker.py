"""What the process of a planned run does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from typing import Any

import torch
import torch._dynamo  # which the first optimizer imports, for seconds: once, for all runs
from filelock import Timeout

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.interrupt import say
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.limits import read_json
from recbole_escm2.output import lock, write_json
from recbole_escm2.quick_start import train_and_test
from recbole_escm2.train.code import code_of
from recbole_escm2.train.run import LOCK_FILE, metrics_of

#: What the run is and who is at it, for people.
RUN_FILE = "run.json"
OUTPUT_FILE = "output.log"


def work(run: PlannedRun) -> None:
    """Do a run, unless it is done already.

    One that was killed goes on from its progress; what it has left is removed where there is none.
    What to do is never read from the folder, where anybody may have put a file.

    Raises:
        UsageError: the run can't be done, or the model's code has changed since it was planned, so
            that its numbers would go by a wrong name; the message says why.
    """
    if run.is_done():
        return
    known = ("model", "dataset", "saved", "code", "settings")
    about = {"process": _parent().pid, **{name: getattr(run, name) for name in known}}
    write_json(run.folder / RUN_FILE, about)
    run.goes_on = run.settings.get("resume") is not False and bool(run.progress_files())
    for left in () if run.goes_on else run.folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif not left.name.startswith((RUN_FILE, OUTPUT_FILE, LOCK_FILE)):
            left.unlink(missing_ok=True)
    settings = {**run.settings, "show_progress": False}
    config = Config(run.model, run.dataset, config_dict=settings)
    if code_of(config.model_class, metrics_of(config)) != run.code:
        raise UsageError("the code has changed since the benchmark began: start it again")
    train_and_test(config, run)


def main(run: PlannedRun) -> None:
    """What the process does: :func:`work`, with its output in a file of the folder.

    A run that another process is at is waited for, which is said to whoever began this one; should
    that process be no more, this one ends as well. Exits with 2 for a mistake that the caller can
    mend, which is the last line of the output.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the benchmark, which then stops its runs
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    own = lock(run.folder / LOCK_FILE)
    with contextlib.suppress(Timeout):
        own.acquire(timeout=0)
    if not own.is_locked:
        say(f"{run.row.label}, seed {run.seed} waits for {_who_is_at(run)}, which is at this run")
    if (run.folder / OUTPUT_FILE).is_symlink():
        (run.folder / OUTPUT_FILE).unlink()
    # Appended to: another process may be at this run, and write into the file.
    output = os.open(run.folder / OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    torch.set_num_threads(run.threads)
    try:
        with own:
            work(run)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parent() -> Any:
    """The process that began this one: not the server's, which has made it."""
    return multiprocessing.parent_process()


def _end_with_parent() -> None:
    """Ask this process to end once the one that began it is no more, killed perhaps."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _who_is_at(run: PlannedRun) -> str:
    """The process that has begun a run, as far as the run's folder tells."""
    try:
        number = read_json(run.folder / RUN_FILE)["process"]
    except (OSError, ValueError, KeyError, TypeError):
        number = None
    return f"process {number}" if type(number) is int else "another process"


def _leave(number: int, frame: Any) -> None:
    """Leave orderly, so that temporary files go."""
    sys.exit(128 + number)
