"""Embedding tables that no process holds as a whole: shards of them, by TorchRec.

The processes of a run (:mod:`recbole_escm2.distributed`) each have some shards of the token fields'
tables, whole tables or columns of one, as TorchRec's planner puts them by their sizes and by the
memory that a process may use. Ids go to the process that has their rows, embeddings come back, and
gradients the other way; the optimizer is fused with that, so that a row is moved as its gradient
arrives. All else of a model is in every process.

A table's name, rows and numbers are those of the model that holds it whole, and so is a checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recbole_escm2 import distributed
from recbole_escm2.bags import Bags
from recbole_escm2.errors import UsageError
from recbole_escm2.model.draws import Draws
from recbole_escm2.placement import KEPT, without_notes

# What a table's optimizer is in torch, what is saved of it for each weight, by its name there and
# in TorchRec's order, and torch's own settings. Of Adam nothing is: the number of steps, which its
# moments are corrected by, is no tensor of TorchRec's.
_OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], tuple[str, ...], dict[str, Any]]] = {
    "adagrad": (torch.optim.Adagrad, ("sum",), {"eps": 1e-10}),
    "adam": (torch.optim.Adam, (), {"eps": 1e-8, "betas": (0.9, 0.999)}),
}
_NARROWEST = 4  # columns of a shard: TorchRec's kernels take them by fours
_BLOCK = 1 << 21  # numbers that are sent or read at once, about
_BYTES = 4  # of a float32


def mean_row(rows: Tensor, counts: Tensor) -> Tensor:
    """Of a field, weighted by how often training has each id: what is known of an unknown one.

    Args:
        rows: of the field's ids, ``[ids, width]``.
        counts: how often training has each id, ``[ids]``; id 0 is no value.

    Returns:
        ``[width]``; zeros where training has none.
    """
    share = counts[1:] / counts[1:].sum().clamp(min=1)
    return share.to(rows) @ rows[1:]


class Field(NamedTuple):
    """A token field's table, or its rows in a table of several fields.

    Attributes:
        name: of the field.
        rows: how many ids it has.
        parameter: the name of the table in the model that holds it whole.
        first: the row of that table at which it begins.
        draws: the table, on ``meta``.
    """

    name: str
    rows: int
    parameter: str
    first: int
    draws: Tensor


class Shard(NamedTuple):
    """A part of a field's table that this process has.

    Attributes:
        field: whose.
        row: its first, within the field.
        column: its first.
        weight: ``[rows, columns]``; what is written into it is the table's.
        state: what the optimizer keeps of each weight, of the same shape, by its name in torch.
    """

    field: Field
    row: int
    column: int
    weight: Tensor
    state: Mapping[str, Tensor]


class Room(NamedTuple):
    """What the tables of a process may be made of.

    Attributes:
        bytes: for their weights and their optimizer.
        batch: impressions that it looks up at once.
        kinds: ways of sharding among which the planner chooses, of TorchRec's ``ShardingType``.
    """

    bytes: int
    batch: int
    kinds: tuple[str, ...] = ("table_wise", "column_wise")


def fields_of(model: Any) -> list[Field]:
    """The multi-valued and then the single-valued fields of RecBole's embedding, on ``meta``."""
    fields = [
        Field(name, table.num_embeddings, f"token_seq_embedding_table.{n}.weight", 0, table.weight)
        for n, (name, table) in enumerate(
            zip(
                model.token_seq_field_names,
                getattr(model, "token_seq_embedding_table", ()),
                strict=True,
            )
        )
    ]
    if model.token_field_names:
        table = model.token_embedding_table.embedding.weight
        name = "token_embedding_table.embedding.weight"
        places = zip(
            model.token_field_names, model.token_field_dims, model.token_field_offsets, strict=True
        )
        fields += [Field(field, rows, name, int(first), table) for field, rows, first in places]
    return fields


def shard(model: Any, draws: Draws, optimizer: tuple[str, float], room: Room) -> None:
    """Put shards in the place of the tables of a model on ``meta``, with their initial weights.

    Args:
        model: a new one of ours, whose constructor has run within ``draws``.
        draws: what was drawn.
        optimizer: of the tables, ``adagrad`` or ``adam``, and its learning rate.
        room: how much memory the shards of a process may take.

    Raises:
        UsageError: they don't fit.
    """
    fields, device = fields_of(model), torch.device(model.device)
    tables = ShardedTables(fields, model.embedding_size, model.bag_pooling, optimizer, device, room)
    tables.draw(draws)
    for name in ("token_embedding_table", "token_seq_embedding_table"):
        if hasattr(model, name):
            delattr(model, name)
    model.sharded = tables
    for name in ("float_embedding_table", "float_seq_embedding_table"):  # a row a field
        for table in getattr(model, name, nn.Module()).modules():
            if isinstance(table, nn.Embedding):
                values = torch.empty(table.weight.shape)
                for row, drawn in draws.rows(table.weight):
                    values[row : row + len(drawn)] = drawn
                table.weight = nn.Parameter(values)


class ShardedTables:
    """The token fields' tables of a model, in shards.

    Args:
        fields: of a model on ``meta``.
        width: of the embeddings.
        pooling: of a multi-valued field's values, ``mean`` or ``sum``.
        optimizer: ``adagrad`` or ``adam``, and its learning rate.
        device: of this process.
        room: how much memory its shards may take.

    Raises:
        UsageError: the tables don't fit, or can't be cut as they would have to be.
    """

    def __init__(
        self,
        fields: list[Field],
        width: int,
        pooling: str,
        optimizer: tuple[str, float],
        device: torch.device,
        room: Room,
    ) -> None:
        self.fields, self.width, self._pooling = fields, width, pooling
        self.optimizer, rate = optimizer
        self._device = device
        names = [f"table{n}" for n in range(len(fields))]  # a field's own may have a dot in it
        self._table = dict(zip(names, fields, strict=True))
        # Its own first numbers are drawn, too, which nobody reads.
        with without_notes(), torch.random.fork_rng(devices=[]):
            self._tables = self._distribute(rate, room)

    def _distribute(self, rate: float, room: Room) -> Any:
        import torchrec
        from torchrec.distributed import DistributedModelParallel
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

        tables = [
            torchrec.EmbeddingBagConfig(
                name=name,
                embedding_dim=self.width,
                num_embeddings=field.rows,
                feature_names=[name],
                pooling=torchrec.PoolingType.SUM,
            )
            for name, field in self._table.items()
        ]
        module = torchrec.EmbeddingBagCollection(
            device=torch.device("meta"), tables=tables, is_weighted=True
        )
        kind, _, settings = _OPTIMIZERS[self.optimizer]
        apply_optimizer_in_backward(kind, module.parameters(), {"lr": rate, **settings})
        sharder = EmbeddingBagCollectionSharder()
        plan = self._plan(module, sharder, room)
        return DistributedModelParallel(
            module, device=self._device, plan=plan, sharders=[sharder], init_data_parallel=False
        )

    def _plan(self, module: nn.Module, sharder: Any, room: Room) -> Any:
        from torchrec.distributed.planner import (
            EmbeddingShardingPlanner,
            ParameterConstraints,
            Topology,
        )
        from torchrec.distributed.planner.storage_reservations import (
            FixedPercentageStorageReservation,
        )
        from torchrec.distributed.planner.types import PlannerError

        ranks = distributed.world_size()
        # The least power of two times _NARROWEST that lets every process have columns of a table.
        columns = max(_NARROWEST, self.width // ranks // _NARROWEST * _NARROWEST)
        while self.width % columns:
            columns -= _NARROWEST
        constraint = ParameterConstraints(sharding_types=list(room.kinds), min_partition=columns)
        topology = Topology(
            world_size=ranks,
            compute_device=self._device.type,
            hbm_cap=room.bytes if self._device.type == "cuda" else None,
            ddr_cap=room.bytes,
            local_world_size=distributed.local_world_size(),
        )
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=room.batch,
            constraints=dict.fromkeys(self._table, constraint),
            storage_reservation=FixedPercentageStorageReservation(0.0),
        )
        try:
            return planner.collective_plan(module, [sharder], dist.group.WORLD)
        except PlannerError as error:
            raise UsageError(self._too_large(room)) from error

    def _too_large(self, room: Room) -> str:
        numbers = sum(field.rows for field in self.fields) * self.width
        copies = 1 + KEPT[self.optimizer]
        return (
            f"the embedding tables don't fit: with {self.optimizer} they take "
            f"{_gib(numbers * _BYTES * copies)}, and of {distributed.world_size()} processes each "
            f"may use {_gib(room.bytes)}. More processes or more memory may help, or a smaller "
            "embedding_size, or a larger min_count"
        )

    # ------------------------------------------------------------------ looking up

    def __call__(self, batch: Any) -> Tensor:
        """The embeddings of a batch, ``[batch, fields, width]``; all processes have to call it.

        Args:
            batch: gives a single-valued field's ids, ``[batch]``, and a multi-valued one's
                :class:`~recbole_escm2.bags.Bags`, by its name.
        """
        from torchrec import KeyedJaggedTensor

        parts = [self._values(batch[field.name]) for field in self.fields]
        ids, weights, lengths = (torch.cat(each) for each in zip(*parts, strict=True))
        keys = list(self._table)
        embedded = self._tables(KeyedJaggedTensor(keys, ids, weights, lengths)).to_dict()
        return torch.stack([embedded[key] for key in keys], dim=1)

    def _values(self, values: Tensor | Bags) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, weights and lengths of a field in a batch."""
        if isinstance(values, Tensor):
            ones = torch.ones(len(values), device=values.device)
            return values, ones, torch.ones_like(values)
        (lengths,) = values.lengths
        weights = values.weights
        if weights is None:
            weights = torch.ones(len(values.ids), device=values.ids.device)
        if self._pooling == "mean":
            number = torch.repeat_interleave(lengths, lengths, output_size=len(weights))
            weights = weights / number
        return values.ids, weights, lengths

    # ------------------------------------------------------------------ their numbers

    @property
    def optimizer_name(self) -> str:
        """Of the class in torch that the optimizer does the same as."""
        return _OPTIMIZERS[self.optimizer][0].__name__

    @property
    def saves_state(self) -> bool:
        """Whether :meth:`whole` has what the optimizer keeps."""
        return bool(_OPTIMIZERS[self.optimizer][1])

    def shapes(self) -> dict[str, torch.Size]:
        """Of the whole tables, by the name that they have in a model."""
        return {field.parameter: field.draws.shape for field in self.fields}

    def shards(self) -> Iterator[Shard]:
        """Those of this process."""
        states = self._tables.fused_optimizer.state_dict()["state"]
        names = _OPTIMIZERS[self.optimizer][1]
        for table, (field, weights) in self._weights().items():
            own = states.get(f"embedding_bags.{table}.weight", {})
            kept = [own[f"{table}.momentum{n + 1}"] for n in range(len(names) if own else 0)]
            for number, shard in enumerate(weights.local_shards()):
                row, column = shard.metadata.shard_offsets
                state = {
                    name: each.local_shards()[number].tensor
                    for name, each in zip(names, kept, strict=True)
                }
                yield Shard(field, row, column, shard.tensor.detach(), state)

    def _weights(self) -> dict[str, tuple[Field, Any]]:
        state = self._tables.state_dict()
        return {
            table: (field, state[f"embedding_bags.{table}.weight"])
            for table, field in self._table.items()
        }

    @torch.no_grad()
    def draw(self, draws: Draws) -> None:
        """Give the tables their initial weights."""
        shards = list(self.shards())
        for parameter in self.shapes():
            own = [shard for shard in shards if shard.field.parameter == parameter]
            table = next(f.draws for f in self.fields if f.parameter == parameter)
            for row, values in draws.rows(table):
                for shard in own:
                    _copy_rows(shard, shard.weight, row, values)

    @torch.no_grad()
    def put_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of whole tables, by :meth:`shapes`."""
        for shard in self.shards():
            _copy_from(shard, shard.weight, weights[shard.field.parameter])

    @torch.no_grad()
    def put_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take what the optimizer keeps of whole tables, and 0 where nothing is there.

        Args:
            state: by :meth:`shapes`, and by the names that it has in torch's optimizer.
        """
        for shard in self.shards():
            of_table = state.get(shard.field.parameter)
            for name, kept in shard.state.items():
                if of_table is None:
                    kept.zero_()
                else:
                    _copy_from(shard, kept, of_table[name])

    @torch.no_grad()
    def whole(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and what the optimizer keeps, of whole tables; all processes have to call it.

        They are in a file without a name, which is gone when they are: memory needn't hold them.

        Args:
            folder: of that file.

        Returns:
            As :meth:`put_weights` and :meth:`put_state` take them; nothing on other processes than
            the first.
        """
        names = ("weight", *_OPTIMIZERS[self.optimizer][1])
        wholes: dict[str, dict[str, Tensor]] = {}
        if distributed.is_main():
            shapes = self.shapes().items()
            wholes = {p: {name: _in_file(folder, shape) for name in names} for p, shape in shapes}
        own = {(s.field.name, s.row, s.column): s for s in self.shards()}
        for field, weights in self._weights().values():
            for about in weights.metadata().shards_metadata:
                (row, column), (rows, columns) = about.shard_offsets, about.shard_sizes
                shard = own.get((field.name, row, column))
                first = field.first + row
                for name in names:
                    into = values = None
                    if field.parameter in wholes:
                        whole = wholes[field.parameter][name]
                        into = whole[first : first + rows, column : column + columns]
                    if shard is not None:
                        values = shard.weight if name == "weight" else shard.state[name]
                    _bring(into, values, about.placement.rank(), (rows, columns))
        # Without lr_decay Adagrad has no use for the number of its steps.
        kind = {"of": self.optimizer_name, "step": torch.tensor(0.0)}
        weights = {parameter: of_table.pop("weight") for parameter, of_table in wholes.items()}
        return weights, {name: {**kept, **kind} for name, kept in wholes.items() if kept}

    @torch.no_grad()
    def fill_unseen(self, counts: Mapping[str, Tensor]) -> None:
        """As :func:`recbole_escm2.model.embedding.fill_unseen`, a shard by itself."""
        for shard in self.shards():
            count = counts.get(shard.field.name)
            if count is None or not count[1:].any():
                continue
            unseen = (count == 0).to(shard.weight.device)
            unseen[0] = False
            shard.weight[unseen] = mean_row(shard.weight, count)


def _copy_rows(shard: Shard, into: Tensor, row: int, values: Tensor) -> None:
    """Take of a table's rows, ``[some, width]`` from one on, those that a shard has."""
    begin = shard.field.first + shard.row
    first, last = max(begin, row), min(begin + len(into), row + len(values))
    if first < last:
        columns = slice(shard.column, shard.column + into.shape[1])
        into[first - begin : last - begin] = values[first - row : last - row, columns]


def _copy_from(shard: Shard, into: Tensor, whole: Tensor) -> None:
    begin, block = shard.field.first + shard.row, max(1, _BLOCK // whole.shape[1])
    for row in range(begin, begin + len(into), block):
        _copy_rows(shard, into, row, whole[row : min(row + block, begin + len(into))])


def _bring(into: Tensor | None, own: Tensor | None, owner: int, shape: tuple[int, int]) -> None:
    """Copy a shard to the first process, block by block.

    Args:
        into: where to there; None on others.
        own: on its owner, ``shape``.
        owner: its rank.
        shape: rows and columns.
    """
    rows, columns = shape
    step = max(1, _BLOCK // columns)
    for row in range(0, rows, step):
        block = slice(row, min(row + step, rows))
        if into is not None and own is not None:
            into[block] = own[block]
        elif own is not None and distributed.rank() == owner:
            dist.send(own[block].cpu().contiguous(), 0)
        elif into is not None:
            received = torch.empty(block.stop - row, columns)
            dist.recv(received, owner)
            into[block] = received


def _in_file(folder: Path, shape: Iterable[int]) -> Tensor:
    """Zeros in a file that has no name, so that they are gone with it."""
    size = torch.Size(shape)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.truncate(size.numel() * _BYTES)
    try:
        return torch.from_file(file.name, shared=True, size=size.numel()).view(size)
    finally:
        Path(file.name).unlink()


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
