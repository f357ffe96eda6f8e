"""Processes that another one has begun, by Linux's own account."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/stat").is_file(), reason="it needs Linux's /proc"
)


def children(parent: int | None = None) -> set[int]:
    """Those of a process that share its work, by default of this one."""
    own = parent or os.getpid()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        if _parent(folder) == own:
            with contextlib.suppress(OSError):  # it has ended since
                if b"spawn_main" in (folder / "cmdline").read_bytes():
                    found.add(int(folder.name))
    return found


def are_gone(processes: set[int]) -> bool:
    """Whether processes have ended, or do within ten seconds."""
    for _ in range(100):
        if not any(_parent(Path(f"/proc/{own}")) for own in processes):
            return True
        time.sleep(0.1)
    return False


def _parent(folder: Path) -> int:
    """Of the process that a folder tells of; 0 where it has ended."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[1])
