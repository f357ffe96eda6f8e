"""A run as an object: its folder, and where in it the log, the checkpoint and the result go."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any
from unittest.mock import patch

from recbole_escm2.errors import UsageError, own_files, place_in_own_code, said_by_system
from recbole_escm2.output import logging_to, make_folder, make_run_dir

#: Written last: a run's folder that has it is complete.
RESULT_FILE = "result.json"
#: Written anew after each validation: what a watcher of the run can read.
HISTORY_FILE = "history.json"
LOG_FILE = "run.log"


class Run:
    """A run's folder, or the folder in it that one of two trainings has.

    Args:
        folder: the run's own.
        checkpoints: where the checkpoint goes instead.
        whole: the run that this is a part of; its folder is the parent of this one.

    Attributes:
        started: whether a model has begun to learn: from then on the folder is kept.
        at_end: what is to be closed when the run is at its end, however it comes to it.
    """

    def __init__(
        self, folder: Path, checkpoints: Path | None = None, whole: Run | None = None
    ) -> None:
        self.folder = folder
        self.checkpoints = checkpoints
        self.whole = whole
        self.started = False
        self.at_end: contextlib.ExitStack = whole.at_end if whole else contextlib.ExitStack()

    @property
    def name(self) -> str:
        """Of the run, or of the run and its part."""
        return self.folder.name if self.whole is None else f"{self.whole.name}-{self.folder.name}"

    @property
    def checkpoint(self) -> Path:
        """Its file: a plain name in the run's own folder, the run's name elsewhere."""
        if self.checkpoints is None:
            return self.folder / "checkpoint.pth"
        return self.checkpoints / f"{self.name}.pth"

    def part(self, name: str) -> Run:
        """One of the trainings that the run is made of."""
        return Run(self.folder / name, self.checkpoints, self)

    def start(self) -> None:
        """Note that a model begins to learn."""
        self.started = True
        if self.whole is not None:
            self.whole.start()


@contextlib.contextmanager
def open_run(config: Any, folder: Path | None = None, saved: bool = True) -> Iterator[Run]:
    """A run with its log, while it is at work; its folder is gone again if it couldn't start.

    Args:
        config: of the run, whose ``show_progress`` is decided here.
        folder: the run's, which is kept whatever happens. By default a new one in ``output_dir``.
        saved: whether its checkpoint stays.

    Raises:
        UsageError: what the caller can mend, also where an error comes from a user's own model.
    """
    place = make_run_dir(config) if folder is None else folder.absolute()
    run = Run(place)
    if config["show_progress"] is None:
        config["show_progress"] = sys.stderr.isatty()
    try:
        with contextlib.ExitStack() as stack:
            if not saved:
                unsaved = tempfile.TemporaryDirectory(dir=place, prefix="unsaved-")
                run.checkpoints = Path(stack.enter_context(unsaved))
            elif config["checkpoint_dir"]:
                run.checkpoints = Path(config["checkpoint_dir"]).absolute()
                make_folder("checkpoint_dir", run.checkpoints)
            stack.enter_context(logging_to(place / LOG_FILE, config["state"]))
            stack.enter_context(_errors_in_words(config))
            stack.enter_context(patch.object(threading, "excepthook", _in_thread))
            stack.enter_context(run.at_end)
            yield run
    except UsageError:
        if folder is None and not run.started and config["state"] != "debug":
            shutil.rmtree(place)
        raise


def _in_thread(about: Any) -> None:
    """TensorBoard's thread hands on what the system refuses it, to whom writes next."""
    if not isinstance(about.exc_value, OSError):
        threading.__excepthook__(about)


@contextlib.contextmanager
def _errors_in_words(config: Any) -> Iterator[None]:
    """An error in a user's own model, or of the system, is a UsageError; its trace is logged."""
    try:
        yield
    except UsageError:
        getLogger().debug("stopped here", exc_info=True)
        raise
    except Exception as error:
        said = place_in_own_code(error, own_files(config.model_class))
        if said is not None:
            said += " (--state=debug shows all calls)"
        elif isinstance(error, OSError):
            said = said_by_system(error)
        else:
            raise
        getLogger().debug("stopped here", exc_info=True)
        raise UsageError(said) from error
