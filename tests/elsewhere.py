"""A second device where there is none: tensors that say they are on ``meta`` and have values.

They are computed on the CPU. As on a GPU, an operation that mixes them with tensors of the CPU is
an error, and so is a look at their memory by numpy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


class _Remote(Tensor):
    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> _Remote:
        layout = {"layout": values.layout}
        if values.layout == torch.strided:
            layout |= {"strides": values.stride(), "storage_offset": values.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, values.size(), dtype=values.dtype, device=ELSEWHERE, **layout
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"elsewhere({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    remote = {id(leaf.values): leaf for leaf in leaves if isinstance(leaf, _Remote)}
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
    args, kwargs = tree_map(lambda a: a.values if isinstance(a, _Remote) else a, (args, kwargs))
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
            made = func(*args, **kwargs)
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
