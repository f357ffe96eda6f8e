"""Models that disturb their training: by an error in one process, by the end of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_escm2.distributed import rank
from recbole_escm2.model import ESCM2_DR


class Failing(ESCM2_DR):
    """The second process fails in its first step."""

    def loss_steps(self, interaction: Any) -> Iterator[dict[str, Any]]:
        if rank() == 1:
            raise ValueError("the second process has failed")
        yield from super().loss_steps(interaction)


class Killed(ESCM2_DR):
    """The second process is killed in the middle of the second epoch, once."""

    steps = 0

    def loss_steps(self, interaction: Any) -> Iterator[dict[str, Any]]:
        self.steps += 1
        mark = Path(os.environ["MARK"])
        if rank() == 1 and self.steps == 12 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().loss_steps(interaction)
