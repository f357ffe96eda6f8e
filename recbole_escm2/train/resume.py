"""Whether a command has a run of its own that was killed, to go on with."""

from __future__ import annotations

import contextlib
import glob
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.output import lock
from recbole_escm2.train.code import is_code_known
from recbole_escm2.train.progress import load_progress
from recbole_escm2.train.run import (
    LOCK_FILE,
    LOG_FILE,
    RESULT_FILE,
    Run,
    about_run,
    metrics_of,
    stem,
    what_runs,
)


def new_or_unfinished(config: Config, saved: bool) -> Run:
    """The run of a command: the one that it had begun and that was killed, else a new one.

    A run is the command's own where model, data set, every setting that a number depends on, code
    and versions are the same. One that a process is at is left to it.

    Args:
        config: of the run. Its ``resume`` is None: go on if there is something to go on with; True:
            do, or say why not; False: begin anew; or the folder of the run to go on with.
        saved: whether to keep the checkpoints.

    Raises:
        UsageError: there is nothing to go on with, though ``resume`` says so.
    """
    wanted, reasons = config["resume"], []
    known = is_code_known(config.model_class, metrics_of(config))
    if wanted is False or (wanted is None and not known):
        return Run.of(config, saved)
    about = about_run(config, saved)
    removed = _tidy(config, saved, about)
    folders = [Path(wanted).absolute()] if isinstance(wanted, str) else _unfinished(config, about)
    for folder in folders:
        try:
            held = _hold(folder, about, config)
        except UsageError as error:
            reasons.append(str(error))
            continue
        run = Run.of(config, saved, folder, about)
        run.of_experiment, run.started, run.goes_on, run.held = False, True, True, held
        run.notes = removed
        return run
    if wanted:
        none = f"nothing that this command has begun is unfinished in {config['output_dir']}"
        raise UsageError(f"resume: {'; '.join(reasons) or none}")
    run = Run.of(config, saved, about=about)
    run.notes = [*removed, *(f"{reason}; this is a new run" for reason in reasons)]
    return run


def _unfinished(config: Config, about: Mapping[str, Any]) -> Iterator[Path]:
    """Folders of runs with the same settings that aren't done and can go on, the latest first."""
    for folder in _begun(config, about):
        if not (folder / RESULT_FILE).is_file() and Run(folder).progress_files():
            yield folder


def _begun(config: Config, about: Mapping[str, Any]) -> list[Path]:
    """Folders of runs with the same settings, the latest first."""
    parent = Path(config["output_dir"]).absolute()
    folders = parent.glob(f"{glob.escape(stem(config, about))}-*")
    return sorted((folder for folder in folders if not folder.is_symlink()), reverse=True)


def _tidy(config: Config, saved: bool, about: Mapping[str, Any]) -> list[str]:
    """Remove what killed runs with the same settings have left that nobody goes on with.

    That is what only going on would need, where the run has its result; and the whole folder, where
    the run had learned nothing yet. A run that a process is at is left to it: it has its log only
    once it holds its lock.

    Returns:
        What to say of it.
    """
    removed = []
    for folder in _begun(config, about):
        if not (folder / LOCK_FILE).is_file() or not (folder / LOG_FILE).is_file():
            continue
        with contextlib.suppress(OSError, Timeout), lock(folder / LOCK_FILE).acquire(timeout=0):
            if (folder / RESULT_FILE).is_file():
                Run.of(config, saved, folder, about).forget_progress()
                (folder / LOCK_FILE).unlink(missing_ok=True)
            elif not any(folder.rglob("*.pth")):
                shutil.rmtree(folder)
                removed.append(f"{folder} was killed before it had learned anything: removed")
    return removed


def _hold(folder: Path, about: Mapping[str, Any], config: Config) -> FileLock:
    """Take an unfinished run, so that no other process does.

    Returns:
        Its lock, which is held.

    Raises:
        UsageError: there is none, or it isn't this command's, or a process is at it.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    held = lock(folder / LOCK_FILE)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process is at {folder}") from None
    try:
        if (folder / RESULT_FILE).is_file():
            raise UsageError(f"{folder} is done")
        if not (files := Run(folder).progress_files()):
            raise UsageError(f"{folder} has no progress to go on from")
        begun = load_progress(files[0])["of"]
        if differs := _difference(begun, {**about, **what_runs(config)}):
            raise UsageError(f"{folder} is unfinished, but was begun with {differs}")
    except BaseException:
        held.release()
        raise
    return held


def _difference(begun: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What two runs differ in, in words."""
    if begun.get("code") != here["code"]:
        return "other code of the program or of the model"
    before, now = ({**about, **about["config"]} for about in (begun, here))
    keys = sorted({*before, *now} - {"config"})
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)!r}, not {now.get(key)!r}" for key in changed) or None
