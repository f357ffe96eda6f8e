"""Rows of a store as RecBole sees them: a split that reads nothing until asked, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_escm2.bags import Bags
from recbole_escm2.data.store import Table
from recbole_escm2.distributed import Share
from recbole_escm2.identity import rows_digest


class Batch(Interaction):
    """A batch with its multi-valued fields as jagged bags.

    ``batch[field]`` of such a field is padded ids, as RecBole's models want them, made when it is
    asked for: ``[batch, length]`` with the heaviest values first, or the first ones where values
    have no weight. :attr:`bags` has all values and their weights.

    Args:
        columns: tensors of fixed width by field.
        bags: multi-valued fields by name, each with its own values.
        lengths: values that padded ids keep, by field.
        keys: rows of other tables that belong to the impressions, by the table's key.

    Attributes:
        share: which rows of a batch of several processes these are; None where it is one's own. A
            process without a row has one that belongs to another, and counts nothing.
    """

    share: Share | None = None

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        bags: Mapping[str, Bags] | None = None,
        lengths: Mapping[str, int] | None = None,
        keys: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(dict(columns))
        self.bags = dict(bags or {})
        self.keys = dict(keys or {})
        #: Values that padded ids keep, by field.
        self.lengths = lengths or {}

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str) and index in self.bags and index not in self.interaction:
            self.interaction[index] = self.bags[index].padded(self.lengths[index])
        if isinstance(index, str):
            return super().__getitem__(index)
        for name in self.bags:
            self[name]
        return Interaction({name: self.interaction[name][index] for name in self})

    def __contains__(self, item: object) -> bool:
        return item in self.interaction or item in self.bags

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    @property
    def columns(self) -> list[str]:
        """Names of all fields."""
        return list(dict.fromkeys([*self.interaction, *self.bags]))

    def add(self, other: Batch) -> None:
        """Add the fields of another batch of the same impressions."""
        self.interaction.update(other.interaction)
        self.bags.update(other.bags)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With each of its tensors changed by a function that keeps shapes."""
        columns = {name: change(values) for name, values in self.interaction.items()}
        bags = {name: bag.each(change) for name, bag in self.bags.items()}
        return Batch(columns, bags, self.lengths)

    def to(self, device: Any, selected_field: Any = None, non_blocking: bool = False) -> Batch:
        """On another device, all of it or the fields that are named.

        Args:
            device: where to.
            selected_field: a field or several; all by default.
            non_blocking: whether to go on before it is there, which takes all fields and pinned
                memory.
        """
        if selected_field is None:
            if torch.device(device).type == "cpu":
                return self
            return self.each(lambda values: values.to(device, non_blocking=non_blocking))
        moved = super().to(device, selected_field)
        bags = {
            name: bag.to(device) if name in selected_field else bag
            for name, bag in self.bags.items()
        }
        batch = Batch(moved.interaction, bags, self.lengths)
        batch.share = self.share
        return batch


@dataclass(frozen=True)
class View:
    """What to show of a table.

    Attributes:
        fields: the columns and bags.
        keys: columns that only say which rows of other tables belong here.
        lengths: values that padded ids keep, by multi-valued field.
        scales: what the weights of a multi-valued field are divided by.
        derived: columns that are made of others, with how to make them.
    """

    fields: tuple[str, ...]
    keys: tuple[str, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)


def position_dtype(rows: int) -> torch.dtype:
    """The smallest type of positions in a table of some rows."""
    return torch.int32 if rows <= torch.iinfo(torch.int32).max else torch.int64


class Rows:
    """Some rows of a table, in some order, with what RecBole's Dataset asks of an Interaction.

    Args:
        table: of an open store.
        view: what to show of it.
        rows: their positions in the table, or a stretch of it. Positions are kept as int32 where
            the table's allow it.
    """

    def __init__(self, table: Table, view: View, rows: Tensor | slice) -> None:
        self._table = table
        self._view = view
        self._rows = rows if isinstance(rows, slice) else rows.to(position_dtype(len(table)))
        self._extra: dict[str, Tensor] = {}

    def __len__(self) -> int:
        if isinstance(self._rows, slice):
            return int(self._rows.stop - self._rows.start)
        return len(self._rows)

    def __contains__(self, field: object) -> bool:
        return field in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    @property
    def columns(self) -> list[str]:
        """Names of the fields."""
        return [*self._view.fields, *self._view.derived, *self._extra]

    @property
    def positions(self) -> Tensor:
        """Of each row in the table, int64 ``[rows]``."""
        if isinstance(self._rows, slice):
            return torch.arange(self._rows.start, self._rows.stop)
        return self._rows.long()

    def __setitem__(self, field: str, values: Tensor) -> None:
        if len(values) != len(self):
            raise ValueError(f"'{field}' has {len(values):,} values for {len(self):,} rows")
        self._extra[field] = values

    def __getitem__(self, index: Any) -> Any:
        """A column by its name, else other rows of the same."""
        if not isinstance(index, str):
            chosen = Rows(self._table, self._view, self._at(index))
            chosen._extra = {name: values[index] for name, values in self._extra.items()}
            return chosen
        if index in self._extra:
            return self._extra[index]
        if index in self._view.derived:
            return self._view.derived[index](self)
        if index not in self._view.fields:
            raise KeyError(index)
        if index in self._table.layout.bags:
            return self.batch(slice(0, len(self)))[index]
        values = self._table.column(index, self._rows)
        return values.clone() if values.is_floating_point() else values.long()

    def columnar(self, name: str | None) -> Any:
        """A column that has a file of its own, as numpy array; None where there is none."""
        if name is None or name not in self._table.layout.columnar:
            return None
        return self._table.column(name, self._rows).numpy()

    def key(self, name: str) -> Tensor:
        """By what a table is joined, a field or not, int64 ``[rows]``."""
        return self._table.column(name, self._rows).long()

    def _at(self, index: Any) -> Tensor | slice:
        """Positions in the table of positions in here."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if isinstance(self._rows, Tensor):
                return self._rows[index]
            if step == 1:
                first = self._rows.start
                return slice(first + start, first + max(start, stop))
            index = torch.arange(start, stop, step)
        index = torch.as_tensor(np.asarray(index) if not isinstance(index, Tensor) else index)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        index = index.long()
        if len(index) and int(index.min()) < 0:
            index = torch.where(index < 0, index + len(self), index)
        if isinstance(self._rows, Tensor):
            return self._rows.index_select(0, index)
        return index + self._rows.start

    def batch(self, index: Any) -> Batch:
        """Rows in one access each.

        Args:
            index: positions in here, or a slice.
        """
        view = self._view
        columns, jagged = self._table.gather(self._at(index))
        keys = {name: columns[name] for name in view.keys}
        shown = {name: column for name, column in columns.items() if name in view.fields}
        shown.update({name: make(shown) for name, make in view.derived.items()})
        shown.update({name: values[index] for name, values in self._extra.items()})
        bags = {}
        for name, bag in jagged.split() if jagged is not None else ():
            if name in view.fields:
                bags[name] = bag.scaled(view.scales.get(name, 1.0))
        return Batch(shown, bags, view.lengths, keys)

    def followed_by(self, other: Rows) -> Rows:
        """These rows and then those of another part of the same table."""
        return Rows(self._table, self._view, torch.cat([self.positions, other.positions]))

    def digest(self) -> str:
        """Of the positions in the table, in their order."""
        return rows_digest(self._rows)

    def shuffle(self) -> None:
        """Into random order, as torch's global generator gives it."""
        self._reorder(torch.randperm(len(self), dtype=position_dtype(len(self))))

    def sort(self, by: str | Sequence[str], ascending: bool | Sequence[bool] = True) -> None:
        """By a column, or by several, the first of which counts most; equal rows keep order."""
        names = [by] if isinstance(by, str) else list(by)
        directions = [ascending] * len(names) if isinstance(ascending, bool) else list(ascending)
        for name, up in reversed(list(zip(names, directions, strict=True))):
            self._reorder(torch.argsort(self[name], descending=not up, stable=True))

    def _reorder(self, order: Tensor) -> None:
        self._rows = self._at(order)
        self._extra = {name: values[order] for name, values in self._extra.items()}

    def drop(self, column: str) -> None:
        """Show a column no more."""
        if column not in self:
            raise ValueError(f"there is no column '{column}'")
        fields = tuple(name for name in self._view.fields if name != column)
        self._view = replace(self._view, fields=fields)
        self._extra.pop(column, None)
