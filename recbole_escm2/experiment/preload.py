"""What the server of runs imports: all that a run needs. While it does, which takes seconds, it
ends with the process that began it; afterwards multiprocessing sees to that."""

from __future__ import annotations

import os
import threading

#: Environment variable with the number of the process that begins the server.
PARENT = "RECBOLE_ESCM2_PARENT"
_LOOK_SECONDS = 0.2


def _import_all(parent: int) -> None:
    imported = threading.Event()
    watching = threading.Thread(target=_end_with, args=(parent, imported), daemon=True)
    watching.start()
    import recbole_escm2.experiment.worker  # noqa: F401

    imported.set()
    watching.join()  # a process with several threads can't be forked safely


def _end_with(parent: int, imported: threading.Event) -> None:
    while not imported.wait(_LOOK_SECONDS):
        if os.getppid() != parent:
            os._exit(1)


if began := os.environ.pop(PARENT, None):
    _import_all(int(began))
