"""Initial weights of tables that no process holds as a whole: drawn later, and the same.

A table on torch's device ``meta`` has a shape and no values. What a constructor draws for it is
noted here, and drawn again for those parts of it that a process has. All that is drawn in between,
the layers' weights among it, is then what it would be had the table been there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_escm2.errors import UsageError

# torch draws normal numbers in groups of 16: pieces of whole groups are what one draw gives.
_GROUP = 16
_PIECE = 1 << 20  # numbers that are drawn at once, about


class _Draw(NamedTuple):
    offset: int  # of its first number, in the table
    numbers: int
    mean: float
    std: float
    state: Tensor  # of the generator, before


class Draws(TorchDispatchMode):
    """While it is entered, notes what is drawn for tables on ``meta``, and draws as many numbers.

    Raises:
        UsageError: something else is written into such a table.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, list[_Draw]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        table = args[0] if args else None
        if not (isinstance(table, Tensor) and table.is_meta and func._schema.is_mutable):
            return func(*args, **kwargs)
        if func is torch.ops.aten.normal_.default:
            self._note(table, *args[1:], **kwargs)
        elif func is not torch.ops.aten.zero_.default:
            raise UsageError(
                f"embedding_placement: sharded tables begin with normal numbers, and this model "
                f"begins with {func.__name__}: choose replicated"
            )
        return table

    def _note(self, table: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> None:
        state = torch.get_rng_state()
        for numbers in _pieces(table.numel(), _PIECE):
            torch.empty(numbers).normal_()
        draw = _Draw(int(table.storage_offset()), table.numel(), mean, std, state)
        self._of.setdefault(_key(table), []).append(draw)

    def rows(self, table: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What was drawn for a table, piece by piece; what comes later replaces what came before.

        Args:
            table: ``[rows, width]``, on ``meta``.

        Yields:
            A row, and the values of it and those that follow, ``[some, width]``.
        """
        width = table.shape[1]
        draws = self._of[_key(table)]
        whole = [n for n, draw in enumerate(draws) if draw.numbers == table.numel()]
        for draw in draws[whole[-1] if whole else 0 :]:
            generator = torch.Generator().set_state(draw.state)
            row = draw.offset // width
            rows_of_groups = _GROUP * max(1, _PIECE // (_GROUP * width))
            for numbers in _pieces(draw.numbers, rows_of_groups * width):
                values = torch.empty(numbers).normal_(draw.mean, draw.std, generator=generator)
                yield row, values.view(-1, width)
                row += numbers // width


def _key(table: Tensor) -> int:
    return table.untyped_storage()._cdata


def _pieces(numbers: int, piece: int) -> Iterator[int]:
    """Sizes of pieces of whole groups, the last of which has at least a group."""
    while numbers >= 2 * piece:
        yield piece
        numbers -= piece
    yield numbers
