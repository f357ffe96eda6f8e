"""What the process of a planned run does."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import Any

import torch
import torch._dynamo  # which the first optimizer imports, for seconds: once, for all runs

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.code import code_of
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.lookup import find_model
from recbole_escm2.output import lock
from recbole_escm2.quick_start import train_and_test

#: What the run is, for people; nothing reads it.
RUN_FILE = "run.json"
OUTPUT_FILE = "output.log"
_LOCK_FILE = "lock"


def work(run: PlannedRun) -> None:
    """Do a run, unless it is done already.

    A run that another process is at is waited for. What an earlier, unfinished one has left is
    removed first. What to do is never read from the folder, where anybody may have put a file.

    Raises:
        UsageError: the run can't be done, or the model's code has changed since it was planned, so
            that its numbers would go by a wrong name; the message says why.
    """
    with lock(run.folder / _LOCK_FILE):
        if run.is_done():
            return
        for left in run.folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif not left.name.startswith((RUN_FILE, OUTPUT_FILE, _LOCK_FILE)):
                left.unlink(missing_ok=True)
        if code_of(find_model(run.model)) != run.code:
            raise UsageError("the code has changed since the benchmark began: start it again")
        settings = {**run.settings, "show_progress": False}
        train_and_test(Config(run.model, run.dataset, config_dict=settings), run)


def main(run: PlannedRun) -> None:
    """What the process does: :func:`work`, with its output in a file of the folder.

    Exits with 2 for a mistake that the caller can mend, which is the last line of the output.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the benchmark, which then stops its runs
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _leave)
    if (run.folder / OUTPUT_FILE).is_symlink():
        (run.folder / OUTPUT_FILE).unlink()
    # Appended to: another process may be at this run, and write into the file.
    output = os.open(run.folder / OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    torch.set_num_threads(run.threads)
    try:
        work(run)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _leave(number: int, frame: Any) -> None:
    """Leave orderly, so that temporary files go."""
    sys.exit(128 + number)
