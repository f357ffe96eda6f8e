"""The one kind of error that a person can mend without reading code."""


class UsageError(ValueError):
    """A mistake in a command, a configuration or a data file.

    The message says what is wrong, where (file, line, field or config key) and what to do about
    it. The command line prints it without a traceback and ends with exit code 2.
    """
