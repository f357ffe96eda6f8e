"""The raw files: found in a folder, opened whatever their packing, and cut into whole lines."""

from __future__ import annotations

import contextlib
import queue
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.raw import (
    SIMULATION_FILE,
    SPLITS,
    common_name,
    skeleton_name,
    truth_name,
)
from recbole_escm2.errors import UsageError

KINDS = ("common", "skeleton")
_NAMES = {"common": common_name, "skeleton": skeleton_name}

_PIECE = 1 << 20  # bytes of a source at once
_AHEAD = 8  # pieces that are read before they are needed
_LONGEST_LINE = 1 << 26


def archive_name(split: str) -> str:
    """File name of the archive that holds both files of a split."""
    return f"sample_{split}.tar.gz"


@dataclass(frozen=True)
class RawFiles:
    """Where the raw files are.

    Attributes:
        files: by split, then by kind (``common``, ``skeleton``); a split that comes as an archive
            has the one entry ``archive``.
        truth: the side file of each split, where the files are simulated and have them.
        simulation: the file that says that they are simulated.
    """

    files: dict[str, dict[str, Path]]
    truth: dict[str, Path]
    simulation: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that a conversion depends on."""
        raw = [path for files in self.files.values() for path in files.values()]
        return (*raw, *self.truth.values(), *([self.simulation] if self.simulation else []))


def find_raw(folder: Path) -> RawFiles:
    """The raw files in a folder: plain ones, else ``.gz`` ones, else the original archives.

    Raises:
        UsageError: something is missing; the message says what, and what is there.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; it should hold the raw files of Ali-CCP")
    files: dict[str, dict[str, Path]] = {}
    missing = []
    for split in SPLITS:
        found = {kind: _first_file(folder, _NAMES[kind](split)) for kind in KINDS}
        archive = folder / archive_name(split)
        if all(found.values()):
            files[split] = {kind: path for kind, path in found.items() if path}
        elif archive.is_file():
            files[split] = {"archive": archive}
        else:
            absent = [_NAMES[kind](split) for kind, path in found.items() if path is None]
            missing.append(f"{' and '.join(absent)} (plain or .gz, or in {archive.name})")
    if missing:
        names = sorted(path.name for path in folder.iterdir())
        there = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise UsageError(
            f"{folder}: missing {'; '.join(missing)}. The folder holds {there or 'nothing'}"
        )
    simulation = folder / SIMULATION_FILE
    truth = {split: folder / truth_name(split) for split in SPLITS}
    there_too = [split for split, path in truth.items() if path.is_file()]
    if len(there_too) == 1:
        raise UsageError(
            f"{folder}: {truth_name(there_too[0])} is there, but that of the other split is not"
        )
    return RawFiles(files, truth if there_too else {}, simulation if simulation.is_file() else None)


def _first_file(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def fingerprint(raw: RawFiles) -> dict[str, Any]:
    """Names, sizes and times of the source files; it changes when one of them is replaced."""
    result = {}
    for path in raw.paths:
        found = path.stat()
        result[path.name] = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    return result


# --------------------------------------------------------------------------- reading


class Readable(Protocol):
    """What a block reader needs of a file."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


class Position:
    """How far the source files have been read; written by one thread and read by others."""

    def __init__(self) -> None:
        self.bytes = 0


class _Counted:
    """A source file that says how far it has been read."""

    def __init__(self, path: Path, position: Position) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._position = position

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size) or b""
        self._position.bytes += len(data)
        return data

    def close(self) -> None:
        self._file.close()


class _Unzipped:
    """The content of a gzip file of one or several members; much quicker than the gzip module."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._stream = zlib.decompressobj(wbits=31)  # checks length and checksum as well
        self._ended = False
        self._left = b""

    def read(self, size: int, /) -> bytes:
        while True:
            data = self._left or self._file.read(_PIECE // 4)
            if not data:
                if not self._ended:
                    raise EOFError("it ends in the middle: the file is not complete")
                return b""
            if self._ended:  # another member, or padding
                data = data.lstrip(b"\0")
                if not data:
                    self._left = b""
                    continue
                self._stream, self._ended = zlib.decompressobj(wbits=31), False
            out = self._stream.decompress(data, size)
            self._ended = self._stream.eof
            self._left = self._stream.unused_data or self._stream.unconsumed_tail
            if out:
                return out


class _Ahead:
    """Reads and decompresses in a thread of its own, a few pieces ahead of who needs them."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._left = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        piece: bytes | BaseException
        while not self._stop.is_set():
            try:
                piece = self._file.read(_PIECE)
            except BaseException as error:
                piece = error
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    self._pieces.put(piece, timeout=0.1)
                    break
            if not piece or isinstance(piece, BaseException):
                return

    def read(self, size: int, /) -> bytes:
        if self._error is not None:
            raise self._error
        if not self._left:
            piece = self._pieces.get()
            if isinstance(piece, BaseException):
                self._error = piece
                raise piece
            if not piece:
                self._pieces.put(b"")  # for whoever asks again
            self._left = piece
        data, self._left = self._left[:size], self._left[size:]
        return data

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop.set()
        self._thread.join()


class _Checked:
    """A file whose damage shows as a :class:`UsageError` that names it."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        with _damage(self._path):
            data: bytes = self._file.read(size)
        return data


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (zlib.error, EOFError, tarfile.TarError) as error:
        raise UsageError(f"{path}: corrupt or not complete: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(path: Path, position: Position) -> Iterator[Readable]:
    """A source file, decompressed."""
    with _damage(path):
        file = _Counted(path, position)
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        content: Readable = file
        if path.suffix == ".gz":
            content = _Ahead(_Unzipped(file))
            stack.callback(content.close)
        yield _Checked(content, path)


@dataclass(frozen=True)
class Source:
    """One of the four texts, open.

    Attributes:
        split: train or test.
        kind: common or skeleton.
        name: for messages.
        file: the text.
    """

    split: str
    kind: str
    name: str
    file: Readable


def streams(raw: RawFiles) -> list[list[tuple[str, str, Path]]]:
    """What can be read at the same time: lists of (split, kind, path), each for one thread.

    The two files of a split are independent and every thread stays with one kind; an archive has
    both kinds behind each other, so that there is only one stream.
    """
    if any("archive" in files for files in raw.files.values()):
        return [[(s, kind, path) for s in SPLITS for kind, path in raw.files[s].items()]]
    return [[(split, kind, raw.files[split][kind]) for split in SPLITS] for kind in KINDS]


def open_stream(stream: list[tuple[str, str, Path]], position: Position) -> Iterator[Source]:
    """The texts of a stream; each must be read before the next one is asked for.

    Raises:
        UsageError: a file is corrupt or cut off, or an archive lacks a text or has it twice.
    """
    for split, kind, path in stream:
        with _opened(path, position) as file:
            if kind != "archive":
                yield Source(split, kind, path.name, file)
            else:
                yield from _members(split, path, file)


def _members(split: str, path: Path, file: Readable) -> Iterator[Source]:
    wanted = {_NAMES[kind](split): kind for kind in KINDS}
    found: list[str] = []
    with _damage(path):  # a stream, because there is no going back in what is decompressed
        archive = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115
            fileobj=file, mode="r|", bufsize=_PIECE
        )
    with archive:
        while True:
            with _damage(path):
                member = archive.next()
            if member is None:
                break
            name = PurePosixPath(member.name).name
            if name not in wanted or not member.isfile():
                continue
            if name in found:
                raise UsageError(f"{path} holds {name} twice")
            found.append(name)
            content = archive.extractfile(member)
            yield Source(split, wanted[name], f"{path.name}:{name}", _Checked(content, path))
    for name in wanted:
        if name not in found:
            raise UsageError(f"{path} holds no {name}")


def blocks(file: Readable, name: str, size: int) -> Iterator[NDArray[np.uint8]]:
    """A text as arrays of whole lines, each valid until the next one is asked for.

    Args:
        file: the text.
        name: for messages.
        size: bytes to read at once; a line may be longer.

    Raises:
        UsageError: a line is longer than any can be.
    """
    buffer = bytearray(size + 1)  # and a newline that the last line may lack
    filled = 0
    while True:
        while filled < size:
            data = file.read(size - filled)
            if not data:
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        else:
            end = buffer.rfind(b"\n", 0, filled) + 1
            if end:
                yield np.frombuffer(buffer, np.uint8)[:end]
                buffer[: filled - end] = buffer[end:filled]
                filled -= end
            else:
                size *= 2
                if size > _LONGEST_LINE:
                    raise UsageError(f"{name}: a line of more than {filled:,} bytes: no text")
                buffer = buffer[:filled] + bytearray(size + 1 - filled)
            continue
        if filled:
            buffer[filled] = ord("\n")
            yield np.frombuffer(buffer, np.uint8)[: filled + 1]
        return
