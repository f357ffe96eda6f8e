"""One run of a benchmark, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimizer imports, for seconds: once, for all runs
from filelock import FileLock

from recbole_escm2.benchmark.code import code_of
from recbole_escm2.errors import UsageError
from recbole_escm2.model.lookup import find_model
from recbole_escm2.quick_start import RESULT_FILE, run

RUN_FILE = "run.json"
OUTPUT_FILE = "output.log"
_LOCK_FILE = "lock"


def work(folder: Path) -> None:
    """Do the run that a folder's ``run.json`` describes, unless it is done already.

    A run that another process is at is waited for. What an earlier, unfinished one has left is
    removed first.

    Args:
        folder: the run's.

    Raises:
        UsageError: the run can't be done, or the model's code has changed since it was planned, so
            that its numbers would go by a wrong name; the message says why.
    """
    with FileLock(folder / _LOCK_FILE):
        if (folder / RESULT_FILE).is_file():
            return
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif not left.name.startswith((RUN_FILE, OUTPUT_FILE, _LOCK_FILE)):
                left.unlink(missing_ok=True)
        asked = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if code_of(find_model(asked["model"])) != asked["code"]:
            raise UsageError("the code has changed since the benchmark began: start it again")
        run(
            asked["model"],
            asked["dataset"],
            config_dict={**asked["settings"], "show_progress": False},
            saved=asked["saved"],
            folder=folder,
        )


def main(folder: Path, threads: int) -> None:
    """What the process does: :func:`work`, with its output in a file of the folder.

    Exits with 2 for a mistake that the caller can mend, which is the last line of the output.

    Args:
        folder: the run's.
        threads: that torch may use.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the benchmark, which then stops its runs
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _leave)
    # Appended to: another process may be at this run, and write into the file.
    output = os.open(folder / OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    torch.set_num_threads(threads)
    try:
        work(folder)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _leave(number: int, frame: Any) -> None:
    """Leave orderly, so that temporary files go."""
    sys.exit(128 + number)
