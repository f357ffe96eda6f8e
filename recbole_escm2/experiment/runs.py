"""Runs as processes of their own, as many at once as asked for; what is finished is kept."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

from recbole_escm2.errors import UsageError
from recbole_escm2.experiment import preload
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.experiment.worker import OUTPUT_FILE, main
from recbole_escm2.output import beside, make_folder, remove_abandoned
from recbole_escm2.pool import without_main_module
from recbole_escm2.threads import spinning_bounded_in_children

_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0  # from a polite request to a kill
_SERVER_GONE = 255  # multiprocessing's, where the server can't tell how a process has ended
_STARTS = 3
# Of a folder for sockets, whose paths the system takes up to some 104 bytes long, with 32 of them
# for what multiprocessing puts into the folder.
_LONGEST_FOLDER = 70


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: the run.
        result: what its ``result.json`` holds; None where it failed or was stopped.
        reason: why there is no result.
        score: the best on validation until then, where it was pruned.
    """

    run: PlannedRun
    result: Mapping[str, Any] | None
    reason: str = ""
    score: float | None = None


def finished(run: PlannedRun) -> Outcome | None:
    """The outcome of a run that was done before; what only going on needed goes, which it has left
    where it was killed right after its end."""
    try:
        outcome = Outcome(run, run.result()) if run.is_done() else None
    except FileNotFoundError:
        return None
    if outcome is not None:
        run.forget_progress()
    return outcome


class Process:
    """A run that is being done."""

    def __init__(self, run: PlannedRun) -> None:
        self.run = run
        self.stopped: str | None = None
        if run.folder.is_symlink():
            raise UsageError(f"{run.folder} is a link, and a run's folder is emptied: remove it")
        make_folder("output_dir", run.folder)
        self._process = _begin(run)
        self._starts = 1

    def poll(self) -> Outcome | None:
        """The outcome, once there is one.

        Where the server was killed, the run's process, if it is still there, goes on alone: another
        one then waits for it, or does the run.
        """
        code = self._process.exitcode
        if code == _SERVER_GONE and self.stopped is None and self._starts < _STARTS:
            self._process = _begin(self.run)
            self._starts += 1
            return None
        if code is None:
            return None
        if code == 0:
            return Outcome(self.run, self.run.result())
        return Outcome(self.run, None, self.stopped or self._why(code))

    def stop(self, reason: str) -> None:
        """End the run before its time."""
        self.ask_to_stop(reason)
        self._process.join(_STOP_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def ask_to_stop(self, reason: str) -> None:
        """Ask the run to end, without waiting."""
        self.stopped = reason
        self._process.terminate()

    def _why(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; was memory short?" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}"
        log = self.run.folder / OUTPUT_FILE
        text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
        said = [line for line in text.splitlines() if line.strip()]
        last = (said or [f"it ended with exit code {code}"])[-1]
        return last.removeprefix("error: ")


def _begin(run: PlannedRun) -> Any:
    """The process of a run, which has begun.

    Raises:
        UsageError: the server that makes it is killed time and again.
    """
    for _ in range(_STARTS):
        process = _server().Process(target=main, args=(run,))
        with (
            spinning_bounded_in_children(),
            without_main_module(),
            contextlib.suppress(EOFError, ConnectionError),  # it was killed before it answered
        ):
            process.start()
            return process
    raise UsageError("the process that makes those of the runs was killed: was memory short?")


def execute(
    runs: Iterator[PlannedRun | None],
    jobs: int,
    watch: Callable[[Process], None] | None = None,
) -> Iterator[Outcome]:
    """Do runs, a few at once, and yield each outcome as it comes.

    A run that fails doesn't stop the others. Whoever stops asking ends those that are at work.

    Args:
        runs: asked for the next one only when there is room for it; where that is None, asked again
            as long as others are at work.
        jobs: runs at once.
        watch: called with each run at work, now and then; it may stop it.
    """
    if _has_server():
        remove_abandoned(_temporary_target())  # also where no run is left that would make another
    at_work: list[Process] = []
    try:
        while True:
            while len(at_work) < jobs and (run := next(runs, None)) is not None:
                at_work.append(Process(run))
            if not at_work:
                return
            time.sleep(_POLL_SECONDS)
            for process in list(at_work):
                if watch is not None:
                    watch(process)
                outcome = process.poll()
                if outcome is not None:
                    at_work.remove(process)
                    yield outcome
    finally:
        for process in at_work:
            process.ask_to_stop("stopped")
        for process in at_work:
            process.stop("stopped")


def _has_server() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()


def _server() -> Any:
    """Makes processes from one that has imported everything: importing takes seconds a run."""
    if not _has_server():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload.__name__])
    _hold_temporary_folder()
    # While it imports, Ctrl-C would be its own too, and end in a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        began = {preload.PARENT: str(os.getpid())}
        with spinning_bounded_in_children(), patch.dict(os.environ, began):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _temporary_target() -> Path:
    return Path(tempfile.gettempdir()) / f"escm2-{os.getuid()}"


@cache  # once a process
def _hold_temporary_folder() -> None:
    """Put multiprocessing's temporary folder, with the server's socket, where the next process
    finds and removes it should this one be killed."""
    target = _temporary_target()
    if len(os.fsencode(target)) > _LONGEST_FOLDER - len(".01234567.unfinished"):
        return
    held = contextlib.ExitStack()
    folder = held.enter_context(beside(target))
    util.Finalize(None, held.close, exitpriority=-200)  # after the folder's own, which has -100
    folder.mkdir(mode=0o700)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before
