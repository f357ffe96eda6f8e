"""Options of the commands that score rows."""

from __future__ import annotations

from collections.abc import Mapping

from recbole_escm2.errors import UsageError


def is_true(options: Mapping[str, str], name: str, default: str) -> bool:
    """Whether an option is True.

    Raises:
        UsageError: it is neither True nor False.
    """
    value = options.get(name, default).lower()
    if value not in ("true", "false"):
        raise UsageError(f"--{name} must be True or False, got {options[name]!r}")
    return value == "true"
