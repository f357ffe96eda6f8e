"""What processes share in a folder, and what may be written into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock


def lock(path: Path) -> FileLock:
    """A lock that processes share; what a link at its place leads to isn't touched."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    return FileLock(path)


def plain(value: Any) -> Any:
    """The value with everything that isn't plain data turned into text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)  # numpy's numbers are instances, and no plain data
    return str(value)
