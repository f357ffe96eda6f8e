"""Optimizers: one that touches only the rows that a batch has used, and several as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def summed_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that a sparse gradient touches, once each and in order, and the sum for each.

    What ``coalesce()`` gives, in a quarter of its time: a sort, and one pass by embedding_bag.

    Args:
        gradient: sparse, ``[rows, width]``; a row may stand in it many times.

    Returns:
        ``[touched]`` and ``[touched, width]``.
    """
    if gradient.is_coalesced():
        return gradient.indices()[0], gradient.values()
    values = gradient._values()
    rows, order = torch.sort(gradient._indices()[0])
    first = torch.ones_like(rows, dtype=torch.bool)
    torch.ne(rows[1:], rows[:-1], out=first[1:])
    starts = first.nonzero().squeeze(1)
    if not len(starts):
        return rows, values
    return rows[starts], F.embedding_bag(order, values, starts, mode="sum")


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows that have a gradient; all others, and their moments, stay as they are.

    Kingma and Ba, ICLR 2015, applied lazily as torch's SparseAdam does: dense Adam would also
    decay the moments of the rows that a batch doesn't use, and move these rows by them. Equal to
    dense Adam where every step touches every row. Cost grows with the batch, not with the table.

    Args:
        params: tables, ``[rows, width]``, with sparse gradients.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the rows that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step(table, table.grad, group)
        return loss

    def _step(self, table: Tensor, sparse: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        rows, gradient = summed_rows(sparse)
        (beta1, beta2), mean, square = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        m = mean.index_select(0, rows).lerp_(gradient, 1 - beta1)
        v = square.index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean.index_copy_(0, rows, m)
        square.index_copy_(0, rows, v)
        root = math.sqrt(1 - beta2 ** state["step"])
        size = group["lr"] * root / (1 - beta1 ** state["step"])
        moved = table.index_select(0, rows).addcdiv_(
            m, v.sqrt_().add_(group["eps"] * root), value=-size
        )
        table.index_copy_(0, rows, moved)


class OptimizerGroup:
    """Several optimizers, each with parameters of its own, that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Their states, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
