"""What a run leaves behind: its folder and log; files that are whole or not there; locks."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from pathlib import Path
from textwrap import indent
from typing import Any, BinaryIO

import colorlog
from filelock import FileLock, Timeout

from recbole_escm2.errors import UsageError, printable

_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_GUARDED = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins a formula
_LEVELS = ("debug", "info", "warning", "error", "critical")


def make_run_dir(parent: Path, name: str) -> Path:
    """A new folder ``parent/NAME-TIME``.

    Raises:
        UsageError: it can't be made.
    """
    stem = f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            folder = parent / (f"{stem}-{attempt}" if attempt else stem)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UsageError(f"output_dir {parent}: {error.strerror}") from error
    raise UsageError(f"output_dir {parent}: can't find a free name for {stem}")


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _COLOUR.sub("", _shown(super().format(record)))


class _ColouredFormatter(colorlog.ColoredFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _shown(text: str) -> str:
    """Lines of a log whose colours are all that a terminal acts on."""
    pieces = _COLOUR.split(text)  # each second one is a colour
    pieces[::2] = [printable(piece, kept="\n\t") for piece in pieces[::2]]
    return "".join(pieces)


class _LogFile(logging.FileHandler):
    """A log that can't be written ends a run, as other files do, and prints no traceback a line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]  # this is called where it is handled
        if isinstance(error, OSError):
            error.filename = error.filename or self.baseFilename
        raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(file: Path, level_name: str | None = "info") -> Iterator[None]:
    """Log to a file (everything from INFO) and to standard error (from ``level_name``).

    RecBole logs to the root logger; its handlers are back as they were afterwards, so that a
    second run in one process doesn't write into the first one's file.
    """
    level = (level_name or "info").lower()
    if level not in _LEVELS:
        raise UsageError(f"state must be one of {', '.join(_LEVELS)}, got {level_name!r}")
    to_file = _LogFile(file, encoding="utf-8")
    to_file.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    to_file.setLevel(min(logging.INFO, getattr(logging, level.upper())))
    to_terminal = _terminal(getattr(logging, level.upper()))
    with _logging_by(to_file, to_terminal):
        yield


@contextlib.contextmanager
def logging_to_terminal() -> Iterator[None]:
    """Log to standard error from INFO."""
    with _logging_by(_terminal(logging.INFO)):
        yield


def _terminal(level: int) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(
        _ColouredFormatter(
            "%(log_color)s%(asctime)s %(message)s", "%H:%M:%S", log_colors={"WARNING": "yellow"}
        )
        if sys.stderr.isatty()
        else _PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    return handler


@contextlib.contextmanager
def _logging_by(*handlers: logging.Handler) -> Iterator[None]:
    """The root logger with further handlers, which are closed at the end."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)


def make_folder(key: str, folder: Path) -> None:
    """Make a folder, with its parents; it may be there.

    Args:
        key: the config key that names it, for the message.
        folder: its path.

    Raises:
        UsageError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{key}: {folder} can't be made: {error.strerror}") from error


def lock(path: Path) -> FileLock:
    """A lock that processes share; what a link at its place leads to isn't touched."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    return FileLock(path)


@contextlib.contextmanager
def alone(file: Path, busy: str) -> Iterator[None]:
    """Hold off other processes that want the same; who has to wait says so.

    Args:
        file: a lock.
        busy: what another process is doing, for the message.

    Raises:
        OSError: the file can't be made.
    """
    held = lock(file)
    try:
        held.acquire(timeout=0)
    except Timeout:
        getLogger().warning(f"another process is {busy}; waiting for it")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def csv_text(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """CSV as in RFC 4180, with plain line feeds; floats in full precision.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, which makes it
    text there; numbers stay as they are.

    Args:
        columns: names, in order.
        lines: values by column.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(line.get(column)) for column in columns] for line in lines)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    text = "" if value is None else str(value)
    if isinstance(value, int | float) or not text.startswith(_GUARDED):
        return value
    with contextlib.suppress(ValueError):
        float(text)
        return value
    return f"'{text}"


def unguarded(text: str) -> str:
    """A cell of :func:`csv_text` as it was given."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(_GUARDED) else text


def to_builtins(value: Any) -> Any:
    """The value as YAML and JSON have it: lists, dicts, numbers, text; all else becomes text."""
    if isinstance(value, dict):
        return {str(key): to_builtins(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [to_builtins(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)  # numpy's numbers are instances, and no plain data
    return str(value)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path beside a file or folder, to make it there and to give it its name when it is whole.

    What is there at the end is removed; so is, at the beginning, what processes that are no more
    have left for the same target, whatever their host and number: one that is at work holds a lock.

    Args:
        target: in a folder that is there.

    Raises:
        OSError: the folder can't be written into.
    """
    remove_abandoned(target)
    maker = os.getpid()
    while True:
        place = target.with_name(f"{target.name}.{secrets.token_hex(4)}.unfinished")
        held = lock(_lock_of(place))
        held.acquire()
        if _lock_of(place).exists():  # else somebody took it for abandoned before it was held
            break
        held.release()
    try:
        yield place
    except OSError as error:  # of a stream it has no name
        error.filename = error.filename or str(target)
        raise
    finally:
        if os.getpid() == maker:  # a process that was forked meanwhile lets go of it, too
            _remove(place, held)


def remove_abandoned(target: Path) -> None:
    """Remove what processes that are no more have left of what they made beside a target."""
    with contextlib.suppress(OSError):
        for left in list(target.parent.glob(f"{glob.escape(target.name)}.*.unfinished*")):
            place = left.with_name(left.name.removesuffix(".lock"))
            with contextlib.suppress(OSError, Timeout):  # somebody else's, or at work
                held = lock(_lock_of(place))
                held.acquire(timeout=0)
                _remove(place, held)


def at_work(target: Path) -> list[str]:
    """The names of what processes hold beside a target; what is abandoned is removed."""
    remove_abandoned(target)
    locks = target.parent.glob(f"{glob.escape(target.name)}.*.unfinished.lock")
    return [file.stem for file in locks]


def _lock_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


def _remove(place: Path, held: FileLock) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        _lock_of(place).unlink(missing_ok=True)
    held.release()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream into a file beside, which is renamed at the end: no reader sees half of it."""
    with beside(path) as unfinished:
        with open(unfinished, "wb") as stream:
            yield stream
        os.replace(unfinished, path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all, see :func:`replacing`. Text becomes UTF-8."""
    with replacing(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; a number that isn't finite, which JSON lacks, is null."""
    write_whole(path, _json_text(content) + "\n")


def _json_text(content: Any) -> str:
    strict = finite(content)
    return json.dumps(strict, indent=1, ensure_ascii=False, default=str, allow_nan=False)


class JsonList:
    """A file with a JSON list that grows. It has what :func:`write_json` would write, but each item
    is encoded once: the hundredth costs no more than the first.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._texts: list[str] = []

    def write(self, items: Sequence[Any]) -> None:
        """Write the list, whole or not at all.

        Args:
            items: all of them, one at least; those that were there before are as they were.
        """
        self._texts += [indent(_json_text(item), " ") for item in items[len(self._texts) :]]
        write_whole(self._path, "[\n" + ",\n".join(self._texts) + "\n]\n")


def finite(value: Any) -> Any:
    """The value with null for each number in it that isn't finite, so that strict readers take
    it."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):  # numpy's float64 is one
        return value if math.isfinite(value) else None
    return value


def versions() -> dict[str, str]:
    """Versions of everything that a number may depend on."""
    installed = {"python": platform.python_version()}
    ours = ("recbole-escm2", "recbole", "torch", "numpy", "scipy", "pandas")
    for package in (*ours, "scikit-learn", "lightgbm"):
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


@cache
def processor() -> str:
    """The name of the processor, as the system has it."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, "") or platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Aligned columns, the first to the left and the others to the right.

    Args:
        header: one cell a column.
        rows: of cells.
        width: columns that don't fit into it go into a further table below.
    """
    blocks = _blocks([header, *rows], width)
    parts = [[[row[0], *(row[n] for n in block)] for row in (header, *rows)] for block in blocks]
    return "\n\n".join(_aligned(head, under) for head, *under in parts)


def _blocks(rows: Sequence[Sequence[str]], width: int | None) -> list[list[int]]:
    """Columns, the first left out, in groups that fit the width beside the first."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for n, own in enumerate(widths[1:], start=1):
        if width is not None and blocks[-1] and used + 2 + own > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(n)
        used += 2 + own
    return blocks


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    )
