"""The one kind of error that a person can mend without reading code."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in a command, a configuration or a data file.

    The message says what is wrong, where (file, line, field or config key) and what to do about
    it. The command line prints it without a traceback and ends with exit code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as the end of a message, or nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""
