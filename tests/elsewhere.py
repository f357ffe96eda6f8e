"""A second device where there is none: tensors that say they are on ``meta`` and have values.

They are computed on the CPU. As on a GPU, an operation that mixes them with tensors of the CPU is
an error, and so is a look at their memory by numpy. What would keep a program waiting for a GPU is
written down where it is asked for: :func:`waits`.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# With a number: ``torch.device("meta")`` itself goes on to have no values.
ELSEWHERE = torch.device("meta", 1)
_ATEN = torch.ops.aten
# Operations that move values between devices, or may take their indices from another one.
_ACROSS = {_ATEN._to_copy.default, _ATEN.copy_.default}
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put_.default}
# Operations whose result has as many values as the data says, or is a number of the program's.
_WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_coalesce"),
    *("unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2"),
}


class Waits:
    """Where a program would have waited for a GPU.

    Attributes:
        lines: operation, file and line of each wait, and how often it was: by ``op file:line``.
        counting: whether what happens now is written down.
    """

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        self.counting = False

    def saw(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not self.counting or not _waits(func, args, kwargs):
            return
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        last = next(f for f in reversed(frames) if Path(f.filename) != Path(__file__))
        self.lines[f"{func} {Path(last.filename).name}:{last.lineno}"] += 1


_WATCHING: ContextVar[Waits | None] = ContextVar("_WATCHING", default=None)


@contextlib.contextmanager
def waits() -> Iterator[Waits]:
    """What is done on the other device while it lasts is looked at for waits."""
    seen = Waits()
    token = _WATCHING.set(seen)
    try:
        yield seen
    finally:
        _WATCHING.reset(token)


def _waits(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a GPU's queue has to be empty before the program goes on after an operation.

    As torch's CUDA kernels are: a copy between devices waits unless it is told not to, and one to
    the CPU has to be waited for in any case.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    remote = [isinstance(leaf, _Remote) for leaf in tensors]
    name = func.overloadpacket.__name__
    if func in _ACROSS:
        to = args[0].device if name == "copy_" else kwargs.get("device", args[0].device)
        source = args[1] if name == "copy_" else args[0]
        across = isinstance(source, _Remote) != (torch.device(to) == ELSEWHERE)
        return across and (isinstance(source, _Remote) or not kwargs.get("non_blocking"))
    if not any(remote):
        return False
    if func in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        return masks or not all(isinstance(index, _Remote) for index in indices)
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name == "where":  # its scalars are tensors, which are sent there
        return not all(remote)
    return name in _WAITING


class _Remote(Tensor):
    here: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> _Remote:
        layout = {"layout": values.layout}
        if values.layout == torch.strided:
            layout |= {"strides": values.stride(), "storage_offset": values.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, values.size(), dtype=values.dtype, device=ELSEWHERE, **layout
        )
        made.here = values
        return made

    def __repr__(self) -> str:
        return f"elsewhere({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if (watching := _WATCHING.get()) is not None:
        watching.saw(func, args, kwargs)
    leaves = tree_leaves((args, kwargs))
    remote = {id(leaf.here): leaf for leaf in leaves if isinstance(leaf, _Remote)}
    local = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, _Remote)]
    takes_both = func in _ACROSS or (func in _INDEXED and isinstance(args[0], _Remote))
    if remote and any(leaf.dim() for leaf in local) and not takes_both:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} has some elsewhere"
        )
    target = kwargs.get("device")
    becomes_remote = bool(remote) if target is None else torch.device(target) == ELSEWHERE
    if becomes_remote and target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda a: a.here if isinstance(a, _Remote) else a, (args, kwargs))
    result = func(*args, **kwargs)

    def back(value: Any) -> Any:
        if id(value) in remote:  # changed in place
            return remote[id(value)]
        is_local = any(value is leaf for leaf in local)
        wraps = isinstance(value, Tensor) and becomes_remote and not is_local
        return _Remote(value) if wraps else value

    return tree_map(back, result)


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """``torch.tensor`` and its like forget the values of what is to be on ``meta``."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            on = args[0] if func is Tensor.new_tensor else None
            device = kwargs.pop("device", None) or (on.device if on is not None else None)
            if func is Tensor.new_tensor:
                kwargs.setdefault("dtype", on.dtype)
                func, args = torch.tensor, args[1:]
            made = func(*args, **kwargs)  # on the CPU, from where a GPU too has to fetch it
            return made if device is None else made.to(device)
        if func is Tensor.__getitem__:
            args = args[0], _with_tensors(args[1], args[0].device)
        return func(*args, **kwargs)


def _with_tensors(index: Any, device: torch.device) -> Any:
    """An index in which what is a sequence of numbers is a tensor on the device."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(
        torch.tensor(part).to(device) if isinstance(part, (list, tuple)) else part for part in parts
    )


def _no_autocast(device_type: str, enabled: bool) -> contextlib.AbstractContextManager[None]:
    assert not enabled
    return contextlib.nullcontext()


@contextlib.contextmanager
def another_device() -> Iterator[torch.device]:
    """While it lasts, ``meta`` computes, and mixes with nothing; it has no lower precision."""
    with _Literals(), _Factories(), patch("torch.autocast", _no_autocast):
        yield ELSEWHERE
