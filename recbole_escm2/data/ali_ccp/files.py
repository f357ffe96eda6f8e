"""The raw files: found in a folder, opened whatever their packing, and cut into whole lines."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.raw import (
    KINDS,
    NAMES,
    SIMULATION_FILE,
    SPLITS,
    TRUTH_COLUMNS,
    truth_name,
)
from recbole_escm2.errors import UsageError

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


def splits_in(folder: Path) -> list[str]:
    """The splits of which a folder holds the impressions, whatever their packing."""
    return [
        split
        for split in SPLITS
        if _first_file(folder, NAMES["skeleton"](split)) or (folder / archive_name(split)).is_file()
    ]


def find_raw(folder: Path, splits: Sequence[str] = SPLITS) -> RawFiles:
    """The raw files in a folder: plain ones, else ``.gz`` ones, else the original archives.

    Args:
        folder: that holds them.
        splits: those that are wanted.

    Raises:
        UsageError: something is missing; the message says what, and what is there.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; it should hold the raw files of Ali-CCP")
    files: dict[str, dict[str, Path]] = {}
    missing = []
    for split in splits:
        present = {kind: _first_file(folder, NAMES[kind](split)) for kind in KINDS}
        archive = folder / archive_name(split)
        if all(present.values()):
            files[split] = {kind: path for kind, path in present.items() if path}
        elif archive.is_file():
            files[split] = {"archive": archive}
        else:
            absent = [NAMES[kind](split) for kind, path in present.items() if path is None]
            missing.append(f"{' and '.join(absent)} (plain or .gz, or in {archive.name})")
    if missing:
        names = sorted(path.name for path in folder.iterdir())
        there = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise UsageError(
            f"{folder}: missing {'; '.join(missing)}. The folder holds {there or 'nothing'}"
        )
    simulation = folder / SIMULATION_FILE
    truth = {split: folder / truth_name(split) for split in splits}
    there_too = [split for split, path in truth.items() if path.is_file()]
    if 0 < len(there_too) < len(splits):
        raise UsageError(
            f"{folder}: {truth_name(there_too[0])} is there, but that of the other split is not"
        )
    return RawFiles(files, truth if there_too else {}, simulation if simulation.is_file() else None)


def _first_file(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class RawText:
    """One of the four texts, open.

    Attributes:
        split: train or test.
        kind: common or skeleton.
        name: for messages.
        path: of the file that it is in.
        file: the text.
        position: how many bytes of the file at ``path`` have been read.
        truth: the side file of a simulation, where the text is a skeleton and has one.
    """

    split: str
    kind: str
    name: str
    path: Path
    file: IO[bytes]
    position: Callable[[], int]
    truth: Truth | None = None

    def blocks(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """The text as arrays of whole lines, each valid until the next one is asked for.

        Args:
            size: bytes to read at once; a line may be longer.

        Raises:
            UsageError: a line is longer than any can be, or the file is corrupt or cut off.
        """
        left = b""
        while True:
            with _damage(self.path):
                data = self.file.read(size)
            end = data.rfind(b"\n") + 1
            if not data:
                if left:
                    yield np.frombuffer(left + b"\n", np.uint8)  # which the last line may lack
                return
            if end:
                yield np.frombuffer(left + data[:end], np.uint8)
                left = data[end:]
                continue
            left += data
            if len(left) > _LONGEST_LINE:
                raise UsageError(f"{self.name}: a line of more than {len(left):,} bytes: no text")


class Truth:
    """The side file of a simulation, float32 ``[rows, 3]``.

    Raises:
        UsageError: it isn't as it must be.
    """

    def __init__(self, path: Path) -> None:
        try:
            mapped = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from error
        self._width = len(TRUTH_COLUMNS)
        if mapped.ndim != 2 or mapped.shape[1] != self._width or mapped.dtype != np.float32:
            raise UsageError(f"{path} is not float32 [rows, {self._width}]")
        self._path, self._start = path, mapped.offset
        self._rows = len(mapped)

    def of(self, number: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of lines by their ascending numbers, ``[lines, 3]``."""
        first, count = (int(number[0]), int(number[-1] - number[0]) + 1) if len(number) else (0, 0)
        if first + count > self._rows:
            raise UsageError(f"{self._path} has fewer rows than the text that it belongs to")
        start = self._start + first * self._width * 4
        stretch = np.fromfile(self._path, np.float32, count * self._width, offset=start)
        rows = stretch.reshape(-1, self._width)[number - first]
        wrong = np.argwhere(~((rows >= 0) & (rows <= 1)))  # NaN, too
        if len(wrong):
            row, column = wrong[0]
            raise UsageError(
                f"{self._path} row {number[row] + 1:,}: {TRUTH_COLUMNS[column]} must be a "
                f"probability in [0, 1], got {rows[row, column]:g}"
            )
        return rows

    def finish(self, rows: int) -> None:
        """At the end of a text of so many rows."""
        if rows < self._rows:
            raise UsageError(f"{self._path} has more rows than the text that it belongs to")


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Damage of a file shows as a :class:`UsageError` that names it."""
    try:
        yield
    except (zlib.error, EOFError, tarfile.TarError, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: corrupt or not complete: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def open_texts(raw: RawFiles) -> Iterator[RawText]:
    """The texts; each must be read before the next one is asked for.

    Raises:
        UsageError: a file is corrupt or cut off, or an archive lacks a text or has it twice.
    """
    named = [(split, *named) for split, files in raw.files.items() for named in files.items()]
    for split, kind, path in named:
        truth = Truth(raw.truth[split]) if raw.truth and kind != "common" else None
        with contextlib.ExitStack() as stack:
            with _damage(path):
                file: IO[bytes] = stack.enter_context(open(path, "rb"))
            position = file.tell
            if path.suffix == ".gz":
                unzipped = gzip.GzipFile(fileobj=file)
                stack.callback(unzipped.close)
                file = cast("IO[bytes]", unzipped)
            if kind == "archive":
                yield from _members(split, path, file, position, truth)
            else:
                yield RawText(split, kind, path.name, path, file, position, truth)


def _members(
    split: str, path: Path, file: IO[bytes], position: Callable[[], int], truth: Truth | None
) -> Iterator[RawText]:
    wanted = {NAMES[kind](split): kind for kind in KINDS}
    present: list[str] = []
    with _damage(path):  # a stream, because there is no going back in what is decompressed
        archive = tarfile.open(fileobj=file, mode="r|")  # noqa: SIM115
    with archive:
        while True:
            with _damage(path):
                member = archive.next()
            if member is None:
                break
            name = PurePosixPath(member.name).name
            if name not in wanted or not member.isfile():
                continue
            if name in present:
                raise UsageError(f"{path} holds {name} twice")
            present.append(name)
            content: Any = archive.extractfile(member)
            own = truth if wanted[name] == "skeleton" else None
            yield RawText(split, wanted[name], f"{path.name}:{name}", path, content, position, own)
    for name in wanted:
        if name not in present:
            raise UsageError(f"{path} holds no {name}")
