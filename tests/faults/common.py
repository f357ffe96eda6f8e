"""What tests of mistakes share: the program in this process, and what it leaves on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from recbole_escm2.command_line import main
from recbole_escm2.data import save_table
from recbole_escm2.quick_start import run

_SMALL = {
    **{"model": "ESMM", "dataset": "tiny", "epochs": 1, "embedding_size": 4},
    **{"mlp_hidden_size": [4], "train_batch_size": 4096, "metrics": ["CTR_AUC"]},
}


def small(data_path: Path, **settings: Any) -> list[str]:
    """Arguments of a run of ``tiny`` (of the fixture ``data_path``) that takes about a second.

    Args:
        data_path: the folder above the data set's.
        settings: others than the usual ones; None leaves a key out.
    """
    merged = {**_SMALL, "data_path": data_path, **settings}
    return [f"--{key}={value}" for key, value in merged.items() if value is not None]


def trained_on_all_kinds(place: Path) -> Path:
    """The folder of a run of ESMM on a table with a field of every kind.

    Args:
        place: a folder for the data and the run.
    """
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    import export_table

    save_table(export_table.table(400), "mine", place / "data")
    places = {"data_path": str(place / "data"), "output_dir": str(place / "output")}
    given = {**export_table.settings_of("ESMM"), **places}
    return Path(run("ESMM", "mine", config_dict=given)["run_dir"])


class Outcome(NamedTuple):
    """What a call of the program has come to.

    Attributes:
        code: its exit code.
        out: its standard output.
        err: its standard error, log and Python's warnings included.
    """

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line with which it ends; anything but one fails."""
        (line,) = (line for line in self.err.splitlines() if line.startswith("error: "))
        return line


def call(folder: Path, *arguments: str) -> Outcome:
    """Run the program in this process, with ``folder`` as working directory.

    A traceback of the program is one of the test.
    """
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            warnings.catch_warnings(record=True) as warned,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            warnings.simplefilter("default")
            code = main(arguments)
    finally:
        os.chdir(before)
    shown = "".join(f"{w.category.__name__}: {w.message}\n" for w in warned)
    return Outcome(code, out.getvalue(), err.getvalue() + shown)


def on_disk(*folders: Path) -> dict[str, str]:
    """A digest of each file in some folders, and ``folder`` of each folder; links aren't followed.

    Of two, before and after a call that must change nothing, ``==`` tells which changed.
    """
    content = {}
    for path in _all_in(folders):
        if path.is_symlink():
            content[str(path)] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            content[str(path)] = "folder"
        else:
            content[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return content


def _all_in(folders: Iterable[Path]) -> Iterable[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*"))


def refused(folder: Path, *arguments: str, unchanged: Iterable[Path] = ()) -> str:
    """Run what must be refused: one line of error, exit code 2, nothing printed, nothing changed.

    Args:
        folder: the working directory, in which nothing may change.
        arguments: of the program.
        unchanged: further folders in which nothing may change.

    Returns:
        The line, and what was logged before it.
    """
    folders = (folder, *unchanged)
    before = on_disk(*folders)
    outcome = call(folder, *arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == "", outcome
    assert "Traceback" not in outcome.err
    assert "Warning: " not in outcome.err
    after = on_disk(*folders)
    changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    assert not changed, (changed, outcome)
    return outcome.error
