"""Damages small valid files at random and has the program read them.

Each case is a damage of one kind of file, drawn from a seed and its number: bytes that flip, are
cut, swapped or repeated, lines and cells that are others, entries of a checkpoint under a right
checksum. The program must refuse it with a ``UsageError`` in one line, or read it; what it reads
must be what a plain reader reads, where there is one. Findings are:

- ``crash``: another exception, or the end of the process (cases run in a process of their own);
- ``hang``: more than ``--limit`` seconds;
- ``write``: a file opened for writing, made, renamed or removed outside of the case's folder, a
  program started, or a connection made;
- ``difference``: it was read as something that isn't there;
- ``message``: the refusal has several lines, or more than 2,000 characters.

    python scripts/fuzz.py all --cases=10000
    python scripts/fuzz.py csv --only=77        one case again, with its traceback and its file
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuzzing.kinds import Kind
from fuzzing.models import KINDS

from recbole_escm2.errors import UsageError

FINDINGS = ("crash", "hang", "write", "difference", "message")
COLUMNS = ("kind", "seed", "cases", "refused", "read", "compared", *FINDINGS, "seconds")
RESULT = Path(__file__).parents[1] / "results" / "reliability" / "fuzz.csv"
_LONGEST = 2_000  # characters of a message
_MEMORY = 6 << 30  # bytes that a case may take
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


class HangError(BaseException):
    """A case takes too long."""


class Watch:
    """Notices what leads out of a folder, while it is watching.

    Attributes:
        folder: in which everything may be done; None: nothing is watched.
        seen: what was done elsewhere.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        paths: Sequence[Any] = ()
        if event == "open" and isinstance(arguments[2], int):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                paths = arguments[:1]
        elif event in _WRITES:
            paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
        elif event in _NEVER:
            self.seen.append(f"{event} {arguments!r}")
        base = [f"/proc/self/fd/{own}" for own in arguments[1:] if isinstance(own, int) and own > 2]
        for path in paths:
            if isinstance(path, int):
                continue
            of_folder = event.startswith("os.") and bool(base) and not os.path.isabs(path)
            named = os.path.join(base[-1], os.fsdecode(path)) if of_folder else os.fsdecode(path)
            whole = os.path.realpath(named)
            if not whole.startswith((self.folder, "/dev/null")):
                self.seen.append(f"{event} {whole}")

    @contextmanager
    def on(self, folder: Path) -> Iterator[None]:
        """Watch, a folder's content aside."""
        self.folder, self.seen = os.path.realpath(folder), []
        try:
            yield
        finally:
            self.folder = None


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`HangError` after some time."""

    def ring(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_same(one: Any, other: Any) -> bool:
    """Whether two readings are, a missing number being any."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


class Cases:
    """The cases of a kind, in a folder.

    Args:
        name: of the kind.
        seed: of all cases.
        folder: that is theirs.
        limit: seconds that one may take.
    """

    def __init__(self, name: str, seed: int, folder: Path, limit: float) -> None:
        self.name, self.seed, self.limit = name, seed, limit
        self.kind: Kind = KINDS[name]()
        self.valid, self.work = folder / "valid", folder / "work"
        self.watch = Watch()
        shutil.rmtree(self.valid, ignore_errors=True)
        self.valid.mkdir(parents=True)
        self.kind.prepare(self.valid)
        sound = self.run(None)
        if sound["outcome"] != "read" or sound.get("finding"):
            raise RuntimeError(f"{name}: what isn't damaged isn't read: {sound}")

    def run(self, number: int | None) -> dict[str, Any]:
        """Try a case; None: nothing is damaged.

        Returns:
            Its ``outcome`` (``refused`` or ``read``), or None, its ``finding`` and what to ``say``.
        """
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.valid, self.work)
        if number is not None:
            self.kind.damage(self.work, random.Random(f"{self.name}/{self.seed}/{number}"))
        found, value = self._read()
        if found.get("finding") is None and found["outcome"] == "read":
            found |= self._compared(value)
        return found

    def _read(self) -> tuple[dict[str, Any], Any]:
        value, found = None, {"outcome": None}
        try:
            with limited(self.limit), self.watch.on(self.work):
                value = self.kind.read(self.work)
            found = {"outcome": "read"}
        except UsageError as error:
            found = {"outcome": "refused", "say": str(error)}
            if "\n" in str(error) or len(str(error)) > _LONGEST:
                found |= {"finding": "message"}
        except HangError:
            found |= {"finding": "hang", "say": traceback.format_exc()}
        except Exception:  # whatever it is, it is a finding
            found |= {"finding": "crash", "say": traceback.format_exc()}
        if self.watch.seen:
            found |= {"finding": "write", "say": "; ".join(self.watch.seen)}
        return found, value

    def _compared(self, value: Any) -> dict[str, Any]:
        try:
            wanted = self.kind.reference(self.work)
        except Exception:  # the plain reader refuses what the program reads
            return {"finding": "difference", "say": traceback.format_exc()}
        if wanted is None:
            return {}
        if is_same(value, wanted):
            return {"compared": True}
        differing = (
            [
                (number, one, other)
                for number, (one, other) in enumerate(zip(value, wanted, strict=False))
                if not is_same(one, other)
            ]
            if isinstance(value, list)
            else [(0, value, wanted)]
        )
        lengths = f"{len(value)} and {len(wanted)} rows" if isinstance(value, list) else ""
        return {"compared": True, "finding": "difference", "say": f"{lengths} {differing[:2]}"}


def work(cases: Cases, numbers: Sequence[int], file: Path) -> None:
    """What a process does: some cases, each told before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(file, "w", encoding="utf-8") as told:
        for number in numbers:
            print(json.dumps({"case": number}), file=told, flush=True)
            print(json.dumps({"case": number, **cases.run(number)}), file=told, flush=True)


def all_cases(cases: Cases, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Outcomes of cases, whatever becomes of the processes that try them."""
    numbers, file = list(range(count)), folder / "told.jsonl"
    while numbers:
        file.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(
            target=work, args=(cases, numbers[:1000], file)
        )
        process.start()
        while process.is_alive():
            process.join(1)
            stale = file.is_file() and time.time() - file.stat().st_mtime > 10 * cases.limit
            if process.is_alive() and stale:
                process.kill()
                process.join()
        told = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        done = [one for one in told if len(one) > 1]
        yield from done
        if told and len(told[-1]) == 1:  # which the process hasn't come back from
            code = process.exitcode
            finding = "hang" if code == -signal.SIGKILL else "crash"
            yield {**told[-1], "finding": finding, "say": f"the process ended with {code}"}
            done.append(told[-1])
        numbers = numbers[len(done) :]


def fuzzed(name: str, count: int, seed: int, limit: float) -> dict[str, Any]:
    """All cases of a kind; prints findings, and gives a row of the table."""
    begun, tally = time.perf_counter(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        for one in all_cases(Cases(name, seed, Path(place), limit), count, Path(place)):
            tally[str(one.get("outcome"))] += 1
            tally["compared"] += bool(one.get("compared"))
            if finding := one.get("finding"):
                tally[finding] += 1
                said = one["say"].strip().splitlines()
                place_ = next((x for x in reversed(said) if "recbole_escm2" in x), "").strip()
                print(f"{name} {one['case']}: {finding}: {said[-1][:300]} {place_}", flush=True)
    seconds = round(time.perf_counter() - begun, 1)
    row = {"kind": name, "seed": seed, "cases": count, "seconds": seconds}
    return row | {column: tally[column] for column in COLUMNS if column not in row}


def keep(row: Mapping[str, Any], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Put a row into the table, in the place of an earlier one of its kind and seed."""
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    own = (row["kind"], str(row["seed"]))
    rows = [old for old in rows if (old["kind"], old["seed"]) != own]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*rows, row], key=lambda own: (own["kind"], str(own["seed"]))))


def again(name: str, number: int, seed: int, limit: float) -> int:
    """One case, whose folder stays."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    found = Cases(name, seed, folder, limit).run(number)
    print(json.dumps({key: value for key, value in found.items() if key != "say"}))
    print(found.get("say", ""))
    print(f"its files: {folder / 'work'}; before: {folder / 'valid'}")
    return int("finding" in found)


def main() -> int:
    """Print findings; the exit code says whether there are any."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one case to try again")
    parser.add_argument("--limit", type=float, default=20, help="seconds that a case may take")
    parser.add_argument("--out", type=Path, default=RESULT, help="table of what came out")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    if asked.only is not None:
        return again(asked.kind, asked.only, asked.seed, asked.limit)
    found = 0
    for name in KINDS if asked.kind == "all" else [asked.kind]:
        row = fuzzed(name, asked.cases, asked.seed, asked.limit)
        keep(row, asked.out)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        found += sum(row[finding] for finding in FINDINGS)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
