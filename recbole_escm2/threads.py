"""Threads for torch: as many as the process may use, and none that spins for long while it waits.

OpenMP's threads spin at each barrier until the last one arrives. Where other processes hold the
cores, that is for whole slices of the scheduler's time, and training takes many times as long.
Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Short spins, then sleep: of GNU's OpenMP (spins), which torch's wheels have, and LLVM's and
# Intel's (milliseconds). They are read once, when the library is loaded with torch.
_SHORT_SPINS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
_OF_THE_USER = (*_SHORT_SPINS, "OMP_WAIT_POLICY")


def spinning_is_bounded() -> bool:
    """Whether the environment, the user's or ours, says how long waiting threads may spin."""
    return any(name in os.environ for name in _OF_THE_USER)


def bound_spinning() -> None:
    """Let threads that wait sleep soon, unless the environment says otherwise.

    For a program's start: once torch is loaded it is too late, and nothing is set.
    """
    if not spinning_is_bounded() and "torch" not in sys.modules:
        os.environ.update(_SHORT_SPINS)


@contextlib.contextmanager
def spinning_bounded_in_children() -> Iterator[None]:
    """The same for the processes that are started meanwhile, wherever torch is loaded already."""
    names = () if spinning_is_bounded() else tuple(_SHORT_SPINS)
    os.environ.update({name: _SHORT_SPINS[name] for name in names})
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def threads_of(jobs: int = 1) -> int:
    """Threads of a process: ``OMP_NUM_THREADS``, else its share of the usable cores, at least 1.

    Args:
        jobs: processes at once.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return max(1, usable_cores() // jobs)


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, at least 1: of its affinity, and of its cgroups' quotas.

    Args:
        proc: where Linux tells of processes.
        cgroups: where it tells of control groups, of version 1 or 2.
    """
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # where the system can restrict a process to some
        cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *map(int, _quotas(proc, cgroups))]))


def _quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """Cores that the process's control groups and those above them may use, where they say."""
    for folder in _control_groups("cpu", proc, cgroups):
        yield from _quota(folder)


def _control_groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Folders of the process's control groups and of those above them."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers
        group = root / path.strip("/")
        # In a container the path may be the host's, of which only the root is there.
        for folder in [group, *group.parents]:
            if folder.is_relative_to(root):
                yield folder


def _quota(folder: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()  # version 2; "max" is no limit
        yield float(quota) / float(period)
    with contextlib.suppress(OSError, ValueError):
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        if micros > 0:  # -1 is no limit
            yield micros / int((folder / "cpu.cfs_period_us").read_text())


def free_memory(
    processes: int = 1, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that this process may still take; infinite where the system doesn't say.

    They are its part of the machine's and of its control groups', and its own limit's
    (RLIMIT_DATA).

    Args:
        processes: that share the machine's.
        proc: where Linux tells of processes.
        cgroups: where it tells of control groups, of version 1 or 2.
    """
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        free.append(_kilobytes(proc / "meminfo", "MemAvailable") * 1024 / processes)
    for folder in _control_groups("memory", proc, cgroups):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                of_group = int((folder / limit).read_text()) - int((folder / used).read_text())
                free.append(of_group / processes)
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        own = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if own != resource.RLIM_INFINITY:
            free.append(own - _kilobytes(proc / "self" / "status", "VmData") * 1024)
    return max(0.0, min(free))


def _kilobytes(file: Path, name: str) -> int:
    return int(file.read_text().partition(f"{name}:")[2].split()[0])
