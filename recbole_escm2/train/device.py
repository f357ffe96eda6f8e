"""Keeping a GPU busy: batches are on it before they are needed, and no step waits for it.

On a CPU each batch is taken when its step comes, and each loss is looked at before its step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from recbole_escm2.data.ahead import ahead
from recbole_escm2.data.batch import Batch
from recbole_escm2.errors import UsageError

_PINNED_AHEAD = 2  # batches that a thread gathers while the device computes
#: Steps on a device other than the CPU between two looks at the losses.
LOOK_EVERY = 100


def batches_on(device: torch.device, batches: Iterable[Any]) -> Iterator[Any]:
    """Batches on a device, in their order.

    For a GPU a thread gathers them into pinned memory, and each is copied in a stream of its own
    while the step before it is computed.

    Args:
        device: where to.
        batches: on the CPU.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)
    waiting: deque[tuple[Batch, Any]] = deque()
    for pinned in ahead((batch.each(Tensor.pin_memory) for batch in batches), _PINNED_AHEAD):
        with torch.cuda.stream(copying):
            waiting.append((pinned.to(device, non_blocking=True), copying.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.popleft(), device)
    while waiting:
        yield _arrived(*waiting.popleft(), device)


def _arrived(batch: Batch, copied: Any, device: torch.device) -> Batch:
    """A batch for the stream that computes: it waits for the copy, the program doesn't."""
    computing = torch.cuda.current_stream(device)
    computing.wait_event(copied)

    def used_there(values: Tensor) -> Tensor:
        values.record_stream(computing)  # its memory isn't another batch's before
        return values

    return batch.each(used_there)


class LossWatch:
    """Makes sure that the losses are finite.

    On a CPU each is looked at before its step. On another device they are kept there and looked
    at together, every :data:`LOOK_EVERY` steps and whenever :meth:`look` is called, since each look
    waits for the device: steps after the first bad loss may have been taken by then.

    Args:
        device: where the losses are.
        epoch: to be named.

    Attributes:
        step: the batch of the epoch whose losses come next, from 1.
    """

    def __init__(self, device: torch.device, epoch: int = 0) -> None:
        self._every = 1 if device.type == "cpu" else LOOK_EVERY
        self._epoch, self.step = epoch, 0
        self._kept: list[tuple[int, dict[str, Tensor], Tensor]] = []

    def saw(self, losses: dict[str, Tensor], total: Tensor) -> None:
        """Take the losses of a step.

        Args:
            losses: scalars by name.
            total: their sum.

        Raises:
            UsageError: as :meth:`look`.
        """
        parts = {name: loss.detach() for name, loss in losses.items()}
        self._kept.append((self.step, parts, total.detach()))
        if len(self._kept) >= self._every:
            self.look()

    def look(self) -> None:
        """Look at the losses that haven't been looked at; before weights are saved or scored.

        Raises:
            UsageError: one isn't finite; the message names the first such step and its losses.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return
        finite = torch.isfinite(torch.stack([total for *_, total in kept])).cpu().tolist()
        if all(finite):
            return
        step, losses, _ = kept[finite.index(False)]
        shown = ", ".join(f"{name} {loss.item()}" for name, loss in losses.items())
        raise UsageError(
            f"the training loss isn't finite in step {step} of epoch {self._epoch} "
            f"({shown}). A smaller learning_rate, a clip_grad_norm or a propensity_floor above 0 "
            "may help, or the risk divides by 0"
        )
