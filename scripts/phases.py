"""The phases of the program that scripts disturb, each as a command in a folder of its own, and
whether what it has come to is the same.

A command runs in a fork of this process, which has imported everything. It leads a session of its
own and hands down a mark, so that whoever is left of it is found.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # which the first optimizer imports, for seconds
from long_runs import write_data

from recbole_escm2 import command_line
from recbole_escm2.config import Config
from recbole_escm2.data.open_store import open_store
from recbole_escm2.errors import UsageError, system_message
from recbole_escm2.output import csv_text, write_whole
from recbole_escm2.train.checkpoint import load_checkpoint

_SMALL = ("--embedding_size=4", "--mlp_hidden_size=[8]", "--train_batch_size=200")
_OF_DATA = ("--dataset=small", "--data_path=../shared/data", "--store_dir=../shared/stores")
_OF_RUN = (*_SMALL, *_OF_DATA, "--output_dir=output", "--show_progress=False")
_TRAINING = ("--model=ESCM2_DR", "--dropout_prob=0.2", "--epochs=4", "--save_interval=0")
#: What two runs of the same may differ in, wherever it is in a JSON file.
_OF_TIMES = ("seconds", "run_dir", "process")
# Logs, Optuna's study, and pages that show seconds: what they show besides is in report.json, too.
_WITHOUT_CONTENT = (".log", ".db", ".html", ".md", ".tex", ".txt")
_OF_LIBRARIES = (".ses",)  # among temporary files: a session of onnxruntime's
_TIME = re.compile(r"(?<=-[0-9a-f]{8})-\d{8}-\d{6}(-\d+)?(?=/|$)")  # in the name of a run's folder
_RUN = re.compile(f"{_TIME.pattern}$")
_PATIENCE = 20.0  # seconds that processes may take to end with the one that began them
_MARK = "RECBOLE_ESCM2_PHASE"  # in the environment of all that a phase starts


@dataclass(frozen=True)
class Phase:
    """A command that is disturbed.

    Attributes:
        name: of the phase.
        arguments: of the program; of ``store`` alone settings, whose store is made.
    """

    name: str
    arguments: tuple[str, ...]

    def do(self) -> int:
        """Run it in this process and the current folder; returns the exit code."""
        if self.arguments[0] != "store":
            return command_line.main(self.arguments)
        given = command_line.parse_arguments(self.arguments[1:])
        try:
            open_store(Config("ESMM", given.pop("dataset"), command_line=given))
        except (UsageError, OSError) as error:
            said = system_message(error) if isinstance(error, OSError) else error
            print(f"error: {said}", file=sys.stderr)
            return 2
        return 0


_PREDICT = ("--checkpoint=../shared/checkpoint.pth", "--data=../shared/rows.csv")
PHASES = {
    phase.name: phase
    for phase in (
        Phase("simulation", ("simulate", "--rows=20000", "--out=raw")),
        Phase(
            "conversion",
            ("store", "--dataset=ali-ccp", "--data_path=../shared", "--store_dir=stores"),
        ),
        Phase("store", ("store", *_OF_DATA[:2], "--store_dir=stores")),
        Phase("training", (*_TRAINING, *_OF_RUN)),
        Phase("final fit", (*_TRAINING, *_OF_RUN, "--final_fit=True")),
        Phase(
            "search",
            ("search", "--model=ESMM", "--trials=3", "--epochs=1", *_OF_RUN),
        ),
        Phase(
            "benchmark",
            ("--model=ESMM,Naive", "--seeds=2", "--epochs=1", "--aa_row=False", *_OF_RUN),
        ),
        Phase("predict", ("predict", *_PREDICT, "--out=scores.parquet")),
    )
}
if "export" in command_line._COMMANDS:
    _EXPORT = ("export", "--checkpoint=../shared/checkpoint.pth", "--out=exported")
    PHASES["export"] = Phase("export", _EXPORT)


@contextlib.contextmanager
def places(rows: int = 3000) -> Iterator[Path]:
    """A folder with ``shared``, that which phases begin with, and none other.

    Args:
        rows: impressions of the data set.
    """
    torch.set_num_threads(1)  # a fork has no other
    with tempfile.TemporaryDirectory(prefix="doors-") as name:
        root = Path(name)
        shared = root / "shared"
        write_data(shared / "data", rows)
        lines = (shared / "data" / "small" / "small.inter").read_text("utf-8").splitlines()
        cells = [line.split("\t")[:2] for line in lines]
        cells[0] = [cell.partition(":")[0] for cell in cells[0]]
        text = "\n".join(map(",".join, cells))
        (shared / "rows.csv").write_text(text + "\n", encoding="utf-8")
        prepared = Phase("preparation", (*_TRAINING, *_OF_RUN))
        raw = Phase("raw", ("simulate", "--rows=20000", "--out=../shared/ali-ccp/raw"))
        for phase in (prepared, raw):
            attempt = Attempt(phase, root / "work")
            if attempt.finish() != 0:
                raise RuntimeError(attempt.said())
        (checkpoint,) = (root / "work").rglob("checkpoint.pth")
        checkpoint.rename(shared / "checkpoint.pth")
        shutil.rmtree(root / "work")
        try:
            yield root
        finally:
            _said_file().unlink(missing_ok=True)


def _said_file() -> Path:
    """Where attempts of this process print to, on a disk that isn't full."""
    return Path(tempfile.gettempdir()) / f"{os.getpid()}.said"


class Attempt:
    """A phase that begins in a process of its own.

    Args:
        phase: what it does.
        folder: where; it is made where it isn't there.
        at_rename: SIGKILL itself before the file or folder that is renamed as the n-th, so that it
            lies there whole under the name that it has meanwhile.
    """

    def __init__(self, phase: Phase, folder: Path, at_rename: int | None = None) -> None:
        self._said = _said_file()
        context = multiprocessing.get_context("fork")
        self._renames: Synchronized[int] = context.Value("i", 0)
        self._process = context.Process(target=self._begin, args=(phase, folder, at_rename))
        self.killed_worker = False
        self._started = time.perf_counter()
        self._process.start()

    def _begin(self, phase: Phase, folder: Path, at_rename: int | None) -> None:
        os.setsid()
        with open(self._said, "w", encoding="utf-8") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        temporary = folder / "temporary"
        temporary.mkdir(parents=True, exist_ok=True)
        os.environ[_MARK] = str(os.getpid())
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.chdir(folder)
        self._count_renames(at_rename)
        try:
            code = phase.do()
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.exit(code)

    def _count_renames(self, at_rename: int | None) -> None:
        def counted(rename: Callable[..., None]) -> Callable[..., None]:
            def do(*given: Any, **named: Any) -> None:
                self._renames.value += 1
                if self._renames.value == at_rename:
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(*given, **named)

            return do

        os.replace, os.rename = counted(os.replace), counted(os.rename)

    @property
    def renames(self) -> int:
        """How many files and folders it has renamed."""
        return self._renames.value

    def finish(self, seconds: float | None = None, worker: float | None = None) -> int:
        """Wait for it, or SIGKILL it or one of its processes after some seconds.

        Args:
            seconds: until then; None: it comes to its end.
            worker: which one, as a share of all that it has started; None: itself.

        Returns:
            Its exit code.
        """
        self._process.join(seconds)
        if self._process.is_alive():
            if worker is None:
                self._process.kill()
            elif others := [pid for pid in self._there() if pid != self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(others[int(worker * len(others))], signal.SIGKILL)
                    self.killed_worker = True
            self._process.join()
        self.seconds = time.perf_counter() - self._started
        assert self._process.exitcode is not None, "it has been waited for"
        return self._process.exitcode

    def said(self) -> str:
        """All that it has printed."""
        return self._said.read_text(encoding="utf-8", errors="replace")

    def orphans(self) -> int:
        """How many processes it leaves, a while after its end; they are ended."""
        deadline = time.monotonic() + _PATIENCE
        while (left := self._there()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)

    def _there(self) -> list[int]:
        """Its processes that aren't zombies, itself included."""
        leader = self._process.pid
        mark, found = f"{_MARK}={leader}\0".encode(), []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                own = int(session) == leader or mark in (stat.parent / "environ").read_bytes()
                if own and state != "Z":
                    found.append(int(stat.parent.name))
        return sorted(found)


# --------------------------------------------------------------------------- what it has come to


def outcome(folder: Path) -> dict[str, Any]:
    """The files of a phase by name, without times, and what they hold.

    TensorBoard's are left out, which are named by time and process and begin anew where a run goes
    on. Of several runs of the same there is one, as long as they are the same to the last bit.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _RUN.search(name) and path.is_dir() and not (path / "result.json").exists():
            found[f"{name} without a result"] = None
        if path.is_file() and "/tensorboard/" not in name and path.name not in _OF_LIBRARIES:
            name, content = _TIME.sub("", name), _content(path)
            while name in found and differing(found[name], content):
                name += " again"
            found[name] = content
    return found


def _content(path: Path) -> Any:
    if path.suffix in _WITHOUT_CONTENT:
        return None
    if path.suffix == ".pth":
        return load_checkpoint(path)
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".csv" and "seconds" in path.read_text(encoding="utf-8"):
        with open(path, encoding="utf-8", newline="") as file:
            lines = _without_times(list(csv.DictReader(file)))
        return [line for line in lines if "seconds" not in line.values()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_times(v) for k, v in value.items() if k not in _OF_TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def write_lines(file: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with a line a phase; those of phases that aren't among the lines stay."""
    there: dict[str, Mapping[str, Any]] = {}
    if file.exists():
        with open(file, encoding="utf-8", newline="") as stream:
            there = {line["phase"]: line for line in csv.DictReader(stream)}
    there |= {line["phase"]: line for line in lines}
    write_whole(file, csv_text(columns, there.values()))


class Difference(NamedTuple):
    """Where two outcomes differ.

    Attributes:
        place: file, and what in it.
        what: how.
    """

    place: str
    what: str


def differing(one: Any, other: Any, place: str = "") -> list[Difference]:
    """Where two outcomes aren't the same to the last bit."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [Difference(place, "tensors")]
    if isinstance(one, dict) and isinstance(other, dict):
        only = [Difference(f"{place}/{key}", "only in one") for key in {*one} ^ {*other}]
        both = [key for key in one if key in other]
        return only + [d for key in both for d in differing(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, pair in pairs for found in differing(*pair, f"{place}/{n}")]
    return [] if one == other else [Difference(place, f"{one!r} and {other!r}")]
