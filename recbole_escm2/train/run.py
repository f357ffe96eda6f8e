"""A run as an object: what it is of, its folder, and where in it log, checkpoint and result are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import recbole
import torch
from filelock import FileLock

from recbole_escm2 import __version__
from recbole_escm2.config import Config
from recbole_escm2.distributed import from_main, is_main
from recbole_escm2.errors import UsageError, own_files, place_in_own_code, system_message
from recbole_escm2.identity import file_digest
from recbole_escm2.keys import PAIR, PLACE_KEYS
from recbole_escm2.limits import read_json
from recbole_escm2.lookup import model_path
from recbole_escm2.output import lock, logging_to, make_folder, make_run_dir, to_builtins
from recbole_escm2.tasks import learns_both
from recbole_escm2.train.code import code_of

#: Written last: a run's folder that has it is complete.
RESULT_FILE = "result.json"
#: Written anew after each validation: what a watcher of the run can read.
HISTORY_FILE = "history.json"
LOG_FILE = "run.log"
#: How far a training has come, as long as it isn't done; see :mod:`~recbole_escm2.train.progress`.
PROGRESS_FILE = "progress.pth"
#: Held by the process that is at the run.
LOCK_FILE = "lock"
#: Where the checkpoints are that nobody keeps, as long as the run isn't done.
_UNSAVED = "unsaved"
#: Config keys that change no number of a run.
WITHOUT_EFFECT = PLACE_KEYS | {"primary"}


@dataclass
class Run:
    """A run by itself, one of an experiment, or one of the two trainings that a run is made of.

    Attributes:
        folder: of its files.
        model: as :class:`~recbole_escm2.config.Config` takes it.
        dataset: likewise.
        settings: every config key that isn't a default, as a config file has them.
        parts: the trainings that it is made of, where they are two.
        saved: whether to keep its checkpoints.
        of_experiment: whether it is one of many: its folder is kept whatever happens, and holds
            what comparing them takes.
        checkpoints: where they go instead of the folder.
        whole: the run that this one is a part of; its folder is the parent of this one.
        started: whether a model has begun to learn: from then on the folder is kept.
        parent_is_new: whether the folder that it lies in was made for it.
        at_end: what is to be closed when the run is at its end, however it comes to it.
        goes_on: whether it was begun before, so that its trainings go on from their progress.
        about: what its numbers depend on, where its folder's name doesn't tell it all.
        held: the lock of a run by itself, once this process has it.
        notes: what to log at its beginning.
        selects: whether its checkpoint only finds for how long to train anew, see :meth:`final`.
        kept_at: its checkpoint's file, where that isn't named after its folder.
        written: whether this process writes it; of several it is the first one.
    """

    folder: Path
    model: str = ""
    dataset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[str] = ()
    saved: bool = True
    of_experiment: bool = False
    checkpoints: Path | None = None
    whole: Run | None = None
    started: bool = False
    parent_is_new: bool = False
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, compare=False)
    goes_on: bool = False
    about: Callable[[], Mapping[str, Any]] = field(default=dict, compare=False)
    held: FileLock | None = field(default=None, compare=False)
    notes: Sequence[str] = ()
    selects: bool = False
    kept_at: Path | None = None
    written: bool = True

    @classmethod
    def of(
        cls,
        config: Config,
        saved: bool = True,
        folder: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Run:
        """The run of a config.

        Args:
            config: its own.
            saved: whether to keep its checkpoints.
            folder: where it is one of an experiment; by default a new one in ``output_dir``.
            about: :func:`about_run` of it, where that is known.

        Raises:
            UsageError: the folder can't be made.
        """
        parent = Path(config["output_dir"]).absolute()
        parent_is_new, of_experiment = not parent.exists(), folder is not None
        known = about_run(config, saved) if about is None else about
        return cls(
            folder=(folder or make_run_dir(parent, stem(config, known))).absolute(),
            model=model_path(config.model_class),
            dataset=config["dataset"],
            settings=given_settings(config),
            parts=PAIR if learns_both(config) else (),
            saved=saved,
            of_experiment=of_experiment,
            checkpoints=checkpoints_elsewhere(config, saved),
            parent_is_new=parent_is_new,
            about=cache(lambda: {**known, **what_runs(config)}),
            selects=config["final_fit"],
        )

    @classmethod
    def of_all(cls, config: Config, saved: bool, make: Callable[[], Run]) -> Run:
        """A run of several processes: the first one makes it, the others take part in it.

        Args:
            config: its own.
            saved: whether to keep its checkpoints.
            make: makes it.

        Raises:
            UsageError: as ``make`` does.
        """
        if is_main():
            run = make()
            from_main({"folder": run.folder, "goes_on": run.goes_on, "started": run.started})
            return run
        made = from_main()
        if not made["folder"].is_dir():
            raise UsageError(
                f"output_dir: there is no {made['folder']} on this machine: processes on several "
                "need a folder that all of them see"
            )
        return replace(cls.of(config, saved, made["folder"], {}), written=False, **made)

    @property
    def name(self) -> str:
        """Of the run, or of the run and its part."""
        return self.folder.name if self.whole is None else f"{self.whole.name}-{self.folder.name}"

    @property
    def checkpoint(self) -> Path:
        """Its file: a plain name in the run's own folder, the run's name elsewhere."""
        if self.kept_at is not None:
            return self.kept_at
        if self.checkpoints is None:
            return self.folder / ("selected.pth" if self.selects else "checkpoint.pth")
        return self.checkpoints / f"{self.name}{'-selected' * self.selects}.pth"

    def part(self, name: str) -> Run:
        """One of the trainings that the run is made of."""
        return Run(
            self.folder / name,
            checkpoints=self.checkpoints,
            whole=self,
            at_end=self.at_end,
            goes_on=self.goes_on,
            about=self.about,
            selects=self.selects,
            written=self.written,
        )

    def final(self) -> Run:
        """The training anew, on validation too, whose checkpoint is the one that is kept."""
        kept_at = replace(self, selects=False).checkpoint
        return replace(self.part("final"), kept_at=kept_at)

    def start(self) -> None:
        """Note that a model begins to learn."""
        self.started = True
        if self.whole is not None:
            self.whole.start()

    def progress_files(self) -> list[Path]:
        """Of its trainings, as far as they have begun and the run isn't done."""
        return sorted(self.folder.rglob(PROGRESS_FILE))

    def forget_progress(self) -> None:
        """Remove what only going on would need."""
        for file in self.progress_files():
            file.unlink(missing_ok=True)
        if self.selects:
            for training in self._trainings():
                training.checkpoint.unlink(missing_ok=True)
        shutil.rmtree(self.folder / _UNSAVED, ignore_errors=True)

    def is_done(self) -> bool:
        """Whether it has its result, and its checkpoints where they are to be kept."""
        if not (self.folder / RESULT_FILE).is_file():
            return False
        elsewhere = self.settings.get("checkpoint_dir")
        places = [None, *([Path(elsewhere)] if elsewhere else [])]
        return not self.saved or any(map(self._is_saved_in, places))

    def _is_saved_in(self, place: Path | None) -> bool:
        one = Run(self.folder, checkpoints=place, parts=self.parts)
        return all(training.checkpoint.is_file() for training in one._trainings())

    def _trainings(self) -> list[Run]:
        return [self.part(name) for name in self.parts] or [self]

    def result(self) -> Mapping[str, Any]:
        """What its result file holds.

        Raises:
            FileNotFoundError: it isn't done.
            UsageError: no run has written the file.
        """
        file = self.folder / RESULT_FILE
        try:
            result = read_json(file)
        except ValueError as error:
            raise UsageError(f"{file}: {error}; remove it, and the run is done again") from error
        kinds: dict[str, Any] = {"valid_metric": str, "test_result": dict, "epochs": int}
        kinds["best_valid_score"] = (float, type(None))  # None without validation
        if not isinstance(result, dict) or not all(
            isinstance(result.get(key), kind) for key, kind in kinds.items()
        ):
            raise UsageError(
                f"{file} isn't what a run writes; remove it, and the run is done again"
            )
        return result

    def forget(self) -> None:
        """Have it done anew."""
        self.forget_progress()
        for name in (RESULT_FILE, HISTORY_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def history(self) -> list[dict[str, Any]]:
        """The epochs that it has behind it, as :attr:`EntireSpaceTrainer.history`; none where no
        run has written its file."""
        try:
            epochs = read_json(self.folder / HISTORY_FILE)
        except (FileNotFoundError, ValueError):
            return []
        written = isinstance(epochs, list) and all(
            isinstance(epoch, dict) and type(epoch.get("epoch")) is int for epoch in epochs
        )
        return epochs if written else []

    @contextlib.contextmanager
    def at_work(self, config: Config) -> Iterator[None]:
        """While it is: with its log; the folder of a run by itself is gone again if it couldn't
        start.

        Args:
            config: of the run, whose ``show_progress`` is decided here.

        Raises:
            UsageError: what the caller can mend, also where an error comes from a user's own model.
        """
        if config["show_progress"] is None:
            config["show_progress"] = sys.stderr.isatty()
        config["show_progress"] = config["show_progress"] and self.written
        try:
            with contextlib.ExitStack() as stack:
                if not self.of_experiment and self.written:
                    stack.enter_context(self._locked())
                if not self.saved:
                    self.checkpoints = self.folder / _UNSAVED
                    make_folder("output_dir", self.checkpoints)
                elif self.checkpoints is not None:
                    make_folder("checkpoint_dir", self.checkpoints)
                if self.written:
                    stack.enter_context(logging_to(self.folder / LOG_FILE, config["state"]))
                stack.enter_context(_errors_in_words(config))
                stack.enter_context(patch.object(threading, "excepthook", _in_thread))
                stack.enter_context(self.at_end)
                for note in self.notes:
                    getLogger().info(note)
                yield
        except UsageError:
            kept = self.of_experiment or self.started or config["state"] == "debug"
            if self.written and not kept:
                shutil.rmtree(self.folder)
                if self.parent_is_new:
                    with contextlib.suppress(OSError):  # another run has begun in it
                        self.folder.parent.rmdir()
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """While it is held, others know that a process is at the run."""
        held = self.held or lock(self.folder / LOCK_FILE)
        with held:
            try:
                yield
            finally:
                if (self.folder / RESULT_FILE).is_file():  # else somebody else may have opened it
                    with contextlib.suppress(OSError):
                        (self.folder / LOCK_FILE).unlink(missing_ok=True)
                held.release(force=True)


def checkpoints_elsewhere(config: Config, saved: bool) -> Path | None:
    """Where the checkpoints of a run that keeps them go instead of its folder."""
    elsewhere = config["checkpoint_dir"]
    return Path(elsewhere).absolute() if saved and elsewhere else None


def about_run(config: Config, saved: bool) -> dict[str, Any]:
    """What tells a run from another one before its code is read: model, data set and settings."""
    return {
        "model": model_path(config.model_class),
        "dataset": config["dataset"],
        "saved": saved,
        "config": effective(config.final_config_dict),
        **beginning(config),
    }


def code_and_versions(model_class: type, metrics: Iterable[str] = ()) -> dict[str, Any]:
    """What runs: digest of the code, that of metrics of the user's own included, and versions."""
    versions = [__version__, recbole.__version__, str(torch.__version__), np.__version__]
    libraries = getattr(model_class, "libraries", ())
    return {
        "code": code_of(model_class, metrics),
        "versions": [*versions, *map(version, libraries)],
    }


def what_runs(config: Config) -> dict[str, Any]:
    """:func:`code_and_versions` of a run by itself."""
    return code_and_versions(config.model_class, metrics_of(config))


def metrics_of(config: Config) -> list[str]:
    """All metrics that a run by itself computes."""
    return [*config["metrics"], config["valid_metric"]]


def effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a number depends on; 1 and 1.0 are one."""
    return {k: _number(v) for k, v in to_builtins(settings).items() if k not in WITHOUT_EFFECT}


def beginning(config: Config) -> dict[str, Any]:
    """Digests of the checkpoints with whose weights a training begins; nothing where none is set.

    Raises:
        UsageError: there is no such file.
    """
    if not config["init_from"]:
        return {}
    path = Path(config["init_from"])
    files = sorted(path.glob("**/checkpoint.pth")) if path.is_dir() else [path]
    try:
        return {"init_from": [file_digest(file) for file in files]}
    except OSError as error:
        raise UsageError(f"init_from: {system_message(error)}") from error


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def stem(config: Config, about: Mapping[str, Any]) -> str:
    """What the names of the folders of runs with these settings begin with."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return "-".join([config["model"], config["dataset"], digest[:8]])


def given_settings(config: Config) -> dict[str, Any]:
    """Every config key that isn't a default, as a config file has them, but model and data set."""
    given = to_builtins(config.external_config_dict)
    return {key: value for key, value in given.items() if key not in ("model", "dataset")}


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
            said = system_message(error)
        else:
            raise
        getLogger().debug("stopped here", exc_info=True)
        raise UsageError(said) from error
