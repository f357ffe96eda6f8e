"""Optimizers: one that touches only the rows that a batch has used, and several as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_escm2.errors import UsageError


def summed_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that a sparse gradient touches, in order, and the sum for each.

    What ``coalesce()`` gives, in a quarter of its time: a sort, and one pass by embedding_bag. How
    many rows it are can't be known without waiting for a GPU: there the last row follows as often
    as is needed for as many rows as the gradient has, each time with its sum.

    Args:
        gradient: sparse, ``[rows, width]``; a row may stand in it many times.

    Returns:
        ``[touched]`` and ``[touched, width]``; on a CPU each row once.
    """
    if gradient.is_coalesced():
        return gradient.indices()[0], gradient.values()
    values = gradient._values()
    rows, order = torch.sort(gradient._indices()[0])
    if not len(rows):
        return rows, values
    first = torch.ones_like(rows, dtype=torch.bool)
    torch.ne(rows[1:], rows[:-1], out=first[1:])
    if rows.device.type == "cpu":
        starts = first.nonzero().squeeze(1)
        return rows[starts], F.embedding_bag(order, values, starts, mode="sum")
    place = torch.arange(len(rows), device=rows.device)
    number = first.cumsum(0) - 1  # which of the touched rows each is
    starts = torch.full_like(rows, len(rows)).scatter_reduce_(0, number, place, "amin")
    sums = F.embedding_bag(order, values, starts, mode="sum")  # empty behind the last
    filled = torch.minimum(place, number[-1])
    return rows[starts[filled]], sums[filled]


# Rows that are caught up at once: a table may be larger than what memory is left.
_BLOCK = 1 << 16
# In place of a row's last visit: no penalty and no sleep.
_LEFT_OUT = -1


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows that have a gradient; all others, and their moments, stay as they are.

    Kingma and Ba, ICLR 2015, applied lazily as torch's SparseAdam does: dense Adam would also
    decay the moments of the rows that a batch doesn't use, and move these rows by them. Equal to
    dense Adam where every step touches every row. Cost grows with the batch, not with the table.

    With a ``weight_decay`` λ > 0 the rows have the penalty λ/2·|w|², coupled as torch's Adam has
    it. In dense Adam the gradient of a row that no batch touches is λw alone and keeps its sign,
    so m̂/√v̂ tends to ±1 and the row moves by about the learning rate η a step toward zero, whatever
    λ is: what is rarely seen is forgotten between its visits. Here such a row sleeps. One that was
    last visited at step s and is visited at step t

    * wakes before it is read: w ← sign(w)·max(|w| − κ·Σ η, 0), the sum over the steps between s
      and t, which is the soft threshold of each of them in closed form;
    * steps with g + λw in place of g.

    A row's first s is 0: initial weights sleep too. A table's steps are those in which it has a
    gradient. It isn't dense Adam to the bit. That swings about zero; after a visit it goes on by
    the row's momentum, and is slower than η a step until v̂ has forgotten the visit's gradient,
    which takes the longer the smaller λ is. So it keeps more of a row than κ = 1 does: where rare
    rows tell something, a smaller κ is closer to it.

    Who trains calls :meth:`wake` before a forward pass, :meth:`catch_up` before a table is read in
    another way (validation, saving, the end), and :meth:`leave_out` for rows without a penalty.

    Args:
        params: tables, ``[rows, width]``, with sparse gradients.
        lr: learning rate η; may change between steps.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: λ; at 0 there is neither penalty nor sleep.
        sleeping_decay: κ, the pace of sleeping rows in learning rates a step: 1 is what dense
            Adam's tends to, at 0 they stay as they are.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        sleeping_decay: float = 1.0,
    ) -> None:
        decay = {"weight_decay": weight_decay, "sleeping_decay": sleeping_decay}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, **decay})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a checkpoint from before there was a penalty
            group.setdefault("weight_decay", 0.0)
            group.setdefault("sleeping_decay", 1.0)

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

    @torch.no_grad()
    def wake(self, table: Tensor, rows: Tensor) -> None:
        """Let rows make up for the steps that they have slept; those that have not stay as is.

        Args:
            table: one of the parameters.
            rows: that are going to be read, of any shape; a row may stand in it many times.
        """
        state = self.state.get(table, {})
        pace = self._group_of(table)["sleeping_decay"] if "visited" in state else 0.0
        if not pace:
            return
        rows, now = rows.flatten(), state["step"]
        last = state["visited"].index_select(0, rows)
        asleep = (last != _LEFT_OUT) & (last < now)
        if rows.device.type == "cpu":  # elsewhere their number had to be waited for
            rows, last, asleep = rows[asleep], last[asleep], asleep[asleep]
        if len(rows):
            sums = state["lr_sums"]
            slept = sums[now] - sums.index_select(0, last.clamp(min=0).long())
            shrink = (pace * slept).to(table.dtype).unsqueeze(1)
            weights = table.index_select(0, rows)
            woken = weights.sign() * (weights.abs() - shrink).clamp_(min=0)
            table.index_copy_(0, rows, torch.where(asleep.unsqueeze(1), woken, weights))
            state["visited"].index_copy_(0, rows, torch.where(asleep, now, last))

    def catch_up(self) -> None:
        """Wake all rows: the tables are then what they would be had each step moved every row."""
        for table in self._tables():
            for rows in torch.arange(len(table), device=table.device).split(_BLOCK):
                self.wake(table, rows)

    def leave_out(self, table: Tensor, rows: Tensor) -> None:
        """Let rows have neither penalty nor sleep: those of padding and of unknown ids.

        Args:
            table: one of the parameters.
            rows: ``[n]``.
        """
        group = self._group_of(table)
        if group["weight_decay"]:
            self._state_of(table, group)["visited"][rows] = _LEFT_OUT

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, table in zip(numbers, self._tables(), strict=True):
            for name in ("visited", "lr_sums"):  # torch has turned them into the table's type
                if name in (saved := state_dict["state"].get(number, {})):
                    self.state[table][name] = saved[name].to(table.device, copy=True)

    def _tables(self) -> list[Tensor]:
        return [table for group in self.param_groups for table in group["params"]]

    def _group_of(self, table: Tensor) -> dict[str, Any]:
        return next(g for g in self.param_groups if any(table is own for own in g["params"]))

    def _state_of(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Moments and steps, and with a penalty the last visits and Σ η up to each step."""
        state: dict[str, Any] = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        if group["weight_decay"] and "visited" not in state:
            now, device = state["step"], table.device
            state["visited"] = torch.full((len(table),), now, dtype=torch.int32, device=device)
            state["lr_sums"] = torch.zeros(now + 1, dtype=torch.float64, device=device)
        return state

    def _step(self, table: Tensor, sparse: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(table, group)
        rows, gradient = summed_rows(sparse)
        self.wake(table, rows)  # those that were read without
        weights = table.index_select(0, rows)
        (beta1, beta2), mean, square = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        if group["weight_decay"]:
            decays = _visit(state, rows, group["lr"]).unsqueeze(1)
            gradient = gradient.addcmul(weights, decays.to(weights), value=group["weight_decay"])
        m = mean.index_select(0, rows).lerp_(gradient, 1 - beta1)
        v = square.index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean.index_copy_(0, rows, m)
        square.index_copy_(0, rows, v)
        root = math.sqrt(1 - beta2 ** state["step"])
        size = group["lr"] * root / (1 - beta1 ** state["step"])
        weights.addcdiv_(m, v.sqrt_().add_(group["eps"] * root), value=-size)
        table.index_copy_(0, rows, weights)


def _visit(state: dict[str, Any], rows: Tensor, lr: float) -> Tensor:
    """Note that a step of a size visits rows; ``[rows]``, which of them have a penalty."""
    now, sums = state["step"], state["lr_sums"]
    if now == len(sums):
        sums = state["lr_sums"] = torch.cat([sums, torch.zeros_like(sums)])
    sums[now] = sums[now - 1] + lr
    last = state["visited"].index_select(0, rows)
    decays = last != _LEFT_OUT
    state["visited"].index_copy_(0, rows, torch.where(decays, now, last))
    return decays


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


# What the state of a parameter says beside it: the optimizer that it is of.
_OF = "of"


def _each(optimizer: Any) -> Sequence[torch.optim.Optimizer]:
    return optimizer.optimizers if isinstance(optimizer, OptimizerGroup) else (optimizer,)


def state_by_name(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    """What an optimizer, or a group, keeps of each parameter, whatever the group is made of.

    Args:
        optimizer: of the model.
        model: whose names the parameters have.

    Returns:
        By name: the state's tensors, which aren't copied, and under ``of`` the optimizer's name.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {**state, _OF: type(one).__name__}
        for one in _each(optimizer)
        for parameter, state in one.state.items()
    }


def load_by_name(optimizer: Any, model: nn.Module, saved: Mapping[str, Any]) -> list[str]:
    """Restore what :func:`state_by_name` gave; what is another optimizer's is left out.

    Args:
        optimizer: of the model.
        model: whose names the parameters have.
        saved: by name.

    Returns:
        The names of the parameters whose optimizer begins anew, since it was another one.

    Raises:
        UsageError: a state isn't of a form that its optimizer has.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    anew = []
    for one in _each(optimizer):
        states = {}
        parameters = chain.from_iterable(group["params"] for group in one.param_groups)
        for number, parameter in enumerate(parameters):
            state = saved.get(names[id(parameter)])
            if state is None:
                continue
            if state_fits(state, type(one).__name__):
                _check_form(names[id(parameter)], state, parameter)
                one.state.pop(parameter, None)  # Adagrad's first: memory may not hold both
                states[number] = {name: _own(value) for name, value in state.items() if name != _OF}
            else:
                anew.append(names[id(parameter)])
        begun = dict(one.state)
        try:
            one.load_state_dict({"state": states, "param_groups": one.state_dict()["param_groups"]})
            one.state.update(begun)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise UsageError(f"its optimizer has another form: {error!s}") from error
    return anew


def _own(value: Any) -> Any:
    """A copy: the optimizer goes on in it, and what it was read from stays as it is."""
    return value.clone() if isinstance(value, Tensor) else value


# What a step of an optimizer reads of the state of a parameter.
_NEEDED = {
    **dict.fromkeys(("Adam", "SparseAdam", "RowAdam"), ("step", "exp_avg", "exp_avg_sq")),
    **{"Adagrad": ("step", "sum"), "RMSprop": ("step", "square_avg")},
}


def _check_form(name: str, state: Mapping[str, Any], parameter: Tensor) -> None:
    """Make sure that a step can be made from a state.

    Raises:
        UsageError: an entry is missing, or of another form.
    """
    wrong = {entry for entry in _NEEDED.get(state[_OF], ()) if state.get(entry) is None}
    for entry, value in state.items():
        if entry != _OF and value is not None and not _has_form(entry, state, parameter):
            wrong.add(str(entry))
    if wrong:
        raise UsageError(f"its optimizer has {', '.join(sorted(wrong))} of {name} of another form")


def _has_form(entry: str, state: Mapping[str, Any], parameter: Tensor) -> bool:
    value, step = state[entry], state.get("step")
    if entry == "step":
        is_one = isinstance(value, Tensor) and value.numel() == 1
        return (is_one or isinstance(value, int | float)) and float(value) >= 0
    if not isinstance(value, Tensor):
        return False
    if entry == "lr_sums":
        return value.dim() == 1 and isinstance(step, int) and len(value) > step
    return value.shape == (parameter.shape[:1] if entry == "visited" else parameter.shape)


def state_fits(state: Any, optimizer: str) -> bool:
    """Whether what a file has of a parameter is the state of an optimizer of that name."""
    return isinstance(state, Mapping) and state.get(_OF) == optimizer
