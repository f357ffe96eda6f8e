"""The one kind of error that a person can mend without reading code."""

from __future__ import annotations

import difflib
import errno
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

#: Errors of the system where a disk, a quota or a limit on files leaves no room.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Of names of files: what is no part of one, on whatever system.
_NO_NAME = re.compile(
    r'[/\\:*?"<>|\x00-\x1f\x7f]|^\s|[\s.]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE
)
_LINE_BREAKS = re.compile(r"\s*[\n\r]\s*")
_LONGEST_MESSAGE = 1_500  # characters
_LONGEST_NAME = 150  # characters; whatever is put before and behind it, a system takes it


class UsageError(ValueError):
    """A mistake in a command, a configuration or a data file.

    The message says what is wrong, where (file, line, field or config key) and what to do about
    it. The command line prints it without a traceback and ends with exit code 2.

    Args:
        message: what is quoted in it may be of any kind and length: it becomes one line of
            printable characters.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """Text without what a terminal acts on, its middle left out where it is very long."""
    whole = printable(_LINE_BREAKS.sub(" ", text))
    if len(whole) > _LONGEST_MESSAGE:
        half = _LONGEST_MESSAGE // 2
        whole = f"{whole[:half]} … {whole[-half:]}"
    return whole


def printable(text: str, kept: str = "") -> str:
    """Text with an escape, such as ``\\x1b``, for each character that a terminal may act on.

    Args:
        text: any.
        kept: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def system_message(error: OSError) -> str:
    """What the system has refused, as a sentence: which file, why, and what to do."""
    about = f"{error.filename}: " if error.filename else ""
    advice = {
        **dict.fromkeys(NO_ROOM, ". Make room, or name another folder (output_dir, store_dir)"),
        errno.EMFILE: ". Allow more open files: ulimit -n 4096",
    }
    return f"{about}{error.strerror or error}{advice.get(error.errno or 0, '')}"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory can't hold something; torch has no type for it."""
    said = isinstance(error, RuntimeError) and re.search("allocate|out of memory", str(error))
    return isinstance(error, MemoryError) or bool(said)


def checked_name(name: str, what: str) -> str:
    """A name that becomes that of a file or a folder, and may not lead to another place.

    Args:
        name: as it was given.
        what: is called so, for the message.

    Raises:
        UsageError: it isn't plain.
    """
    if not name or len(name) > _LONGEST_NAME or _NO_NAME.search(name):
        raise UsageError(
            f"{what} can't be {name!r}: it becomes the name of a file or folder, and takes no "
            f'slash or any of \\ : * ? " < > |, no control character, no blank or dot at its end, '
            f"and at most {_LONGEST_NAME} characters"
        )
    return name


def place_in_own_code(error: BaseException, files: Iterable[str]) -> str | None:
    """Where in some files an exception arose, and what it says.

    Args:
        error: as it was caught.
        files: a user's modules.

    Returns:
        For example ``crm.py, line 12, in propensity: TypeError: …``, of the innermost call in these
        files; None where no call is in them.
    """
    said = traceback.format_exception_only(error)[-1].strip()
    own = {Path(file).absolute() for file in files}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).absolute()
        if path in own:
            within = "" if frame.name == "<module>" else f", in {frame.name}"
            return f"{_shown(path)}, line {frame.lineno}{within}: {said}"
    return None


def place_of_import_error(error: BaseException, module: str) -> str:
    """Where the import of a user's module failed, and what it says."""
    said = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename))}, line {error.lineno}: {said}"
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    libraries = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in names)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in libraries):
            return f"{_shown(path)}, line {frame.lineno}: {said}"
    return f"module {module}: {said}"


def own_files(cls: type) -> list[str]:
    """The files of a class and of its parents that belong to neither this package nor a library."""
    files = []
    for parent in cls.__mro__:
        package = parent.__module__.partition(".")[0]
        file = getattr(sys.modules.get(parent.__module__), "__file__", None)
        if file and package not in ("recbole_escm2", "recbole", "torch"):
            files.append(file)
    return files


def _shown(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as the end of a message, or nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""
