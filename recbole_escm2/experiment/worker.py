"""One run of a benchmark, in a process of its own."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimizer imports, for seconds: once, for all runs

from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.code import code_of
from recbole_escm2.model.lookup import find_model
from recbole_escm2.output import lock
from recbole_escm2.quick_start import RESULT_FILE, run

#: What the run is, for people; nothing reads it.
RUN_FILE = "run.json"
OUTPUT_FILE = "output.log"
_LOCK_FILE = "lock"


def is_done(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a run has its result, and its checkpoint where that is to be kept.

    Args:
        folder: the run's.
        asked: ``saved`` and ``settings``, as :func:`work` takes them.
    """
    if not (folder / RESULT_FILE).is_file():
        return False
    elsewhere = asked["settings"].get("checkpoint_dir")
    if not asked["saved"] or any(folder.rglob("checkpoint.pth")):
        return True
    return bool(elsewhere) and any(Path(elsewhere).glob(f"{glob.escape(folder.name)}*.pth"))


def work(folder: Path, asked: Mapping[str, Any]) -> None:
    """Do a run, unless it is done already.

    A run that another process is at is waited for. What an earlier, unfinished one has left is
    removed first. What to do is never read from the folder, where anybody may have put a file.

    Args:
        folder: the run's.
        asked: ``model``, ``dataset``, ``settings``, ``saved`` and ``code``, the digest of the code
            that was planned with.

    Raises:
        UsageError: the run can't be done, or the model's code has changed since it was planned, so
            that its numbers would go by a wrong name; the message says why.
    """
    with lock(folder / _LOCK_FILE):
        if is_done(folder, asked):
            return
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif not left.name.startswith((RUN_FILE, OUTPUT_FILE, _LOCK_FILE)):
                left.unlink(missing_ok=True)
        if code_of(find_model(asked["model"])) != asked["code"]:
            raise UsageError("the code has changed since the benchmark began: start it again")
        run(
            asked["model"],
            asked["dataset"],
            config_dict={**asked["settings"], "show_progress": False},
            saved=asked["saved"],
            folder=folder,
        )


def main(folder: Path, asked: Mapping[str, Any], threads: int) -> None:
    """What the process does: :func:`work`, with its output in a file of the folder.

    Exits with 2 for a mistake that the caller can mend, which is the last line of the output.

    Args:
        folder: the run's.
        asked: as :func:`work` takes it.
        threads: that torch may use.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the benchmark, which then stops its runs
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _leave)
    if (folder / OUTPUT_FILE).is_symlink():
        (folder / OUTPUT_FILE).unlink()
    # Appended to: another process may be at this run, and write into the file.
    output = os.open(folder / OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    torch.set_num_threads(threads)
    try:
        work(folder, asked)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _leave(number: int, frame: Any) -> None:
    """Leave orderly, so that temporary files go."""
    sys.exit(128 + number)
