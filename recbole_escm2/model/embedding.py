"""A model's embedding tables, and how a multi-valued field is read from one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import ContextRecommender
from recbole.model.layers import FLEmbedding, FMEmbedding
from torch import Tensor, nn

from recbole_escm2.bags import Bags
from recbole_escm2.model.sharded import ShardedTables, mean_row


def pool_bag(table: nn.Embedding, bag: Bags, pooling: str) -> Tensor:
    """Σ w·e over the values of each impression, or its mean (1/n) Σ w·e over their number n.

    A single value with a weight is so scaled by it, and hundreds of values stay on the scale of
    one. An impression without a value is a row of zeros. Values without weights have w = 1.

    Args:
        table: the field's embedding.
        bag: one field of a batch.
        pooling: ``sum`` or ``mean``.

    Returns:
        ``[batch, embedding]``.
    """
    (lengths,) = bag.lengths
    weights = bag.weights
    if weights is not None and pooling == "mean":
        each = torch.repeat_interleave(lengths, lengths, output_size=bag.ids.shape[0])
        weights = weights / each
    for hook in table._forward_pre_hooks.values():  # as the table's own forward would
        hook(table, (bag.ids,))
    return F.embedding_bag(
        bag.ids,
        table.weight,
        bag.offsets,
        mode=pooling if weights is None else "sum",
        sparse=table.sparse,
        per_sample_weights=weights,
    )


def pool_bags(tables: Iterable[nn.Embedding], bags: Iterable[Bags], pooling: str) -> Tensor:
    """Each field's bag by its table, ``[batch, fields, embedding]``; see :func:`pool_bag`."""
    pairs = zip(tables, bags, strict=True)
    return torch.stack([pool_bag(table, bag, pooling) for table, bag in pairs], dim=1)


class WithBags:
    """A batch whose multi-valued fields are bags, whatever it holds them as.

    Args:
        interaction: the batch.
        fields: the multi-valued fields.
    """

    def __init__(self, interaction: Any, fields: list[str]) -> None:
        self._interaction = interaction
        self._bags = getattr(interaction, "bags", {})
        self._fields = frozenset(fields)

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            return self._interaction[name]
        return self._bags[name] if name in self._bags else Bags.of_padded(self._interaction[name])


class BagEmbedding(ContextRecommender):
    """RecBole's embedding with all values of a multi-valued field, and their weights.

    Attributes:
        bag_pooling: ``mean`` or ``sum``, see :func:`pool_bag`.
    """

    bag_pooling: str

    def embed_token_seq_fields(self, token_seq_fields: Any, mode: str = "mean") -> Tensor | None:
        """``[|D|, fields, embedding]``: each multi-valued field pooled from its jagged values."""
        if not token_seq_fields:
            return None
        return pool_bags(self.token_seq_embedding_table, token_seq_fields, self.bag_pooling)

    def embed_input_fields(self, interaction: Any) -> tuple[Tensor | None, Tensor | None]:
        """As RecBole's, with the multi-valued fields as bags instead of padded sequences."""
        return super().embed_input_fields(WithBags(interaction, self.token_seq_field_names))


class PlacedEmbedding(BagEmbedding):
    """An embedding whose tables of tokens may lie in shards in several processes.

    By config ``embedding_placement: sharded`` its tables are on torch's device ``meta``, until
    :func:`recbole_escm2.model.sharded.shard` puts shards in their place.

    Attributes:
        sharded: the token fields' tables, where they are in shards.
    """

    sharded: ShardedTables | None

    def __init__(self, config: Any, dataset: Any) -> None:
        is_sharded = config["embedding_placement"] == "sharded"
        with torch.device("meta") if is_sharded else contextlib.nullcontext():
            super().__init__(config, dataset)
        self.sharded = None

    def embed_token_fields(self, token_fields: Tensor | None) -> Tensor | None:
        """``[|D|, fields, embedding]``; None where the tables are in shards."""
        return None if self.sharded is not None else super().embed_token_fields(token_fields)

    def embed_token_seq_fields(self, token_seq_fields: Any, mode: str = "mean") -> Tensor | None:
        """As of bags; None where the tables are in shards."""
        if self.sharded is not None:
            return None
        return super().embed_token_seq_fields(token_seq_fields, mode)

    def embed_input_fields(self, interaction: Any) -> tuple[Tensor | None, Tensor | None]:
        """As of bags, those of tokens by the shards where the tables are in shards."""
        of_tokens, of_numbers = super().embed_input_fields(interaction)
        if self.sharded is not None:
            of_tokens = self.sharded(WithBags(interaction, self.token_seq_field_names))
        return of_tokens, of_numbers


@torch.no_grad()
def initialize(model: ContextRecommender, how: str | float) -> None:
    """Draw a model's initial embeddings anew, from normal distributions.

    RecBole draws them by Xavier's rule (Glorot and Bengio, AISTATS 2010) of one table that holds
    all token fields: the standard deviation is √(2/(rows + width)), and the ids of a field of three
    start the smaller the more ids some other field has.

    Args:
        model: with RecBole's embedding; tables of its parts stay.
        how: ``xavier`` leaves it at that, ``field`` takes Xavier's rule for the rows of each field
            by themselves; a number is the standard deviation of all.
    """
    if how == "xavier":
        return
    for rows in _fields_of(model):
        if how == "field":
            nn.init.xavier_normal_(rows)
        else:
            nn.init.normal_(rows, std=float(how))


def _fields_of(model: Any) -> Iterator[Tensor]:
    """The rows of each field in RecBole's embedding, ``[ids, embedding]``."""
    for kind in ("token", "float"):
        table = getattr(model, f"{kind}_embedding_table", None)
        if table is not None:
            yield from table.embedding.weight.split(getattr(model, f"{kind}_field_dims"))
    for kind in ("token_seq", "float_seq"):
        yield from (table.weight for table in getattr(model, f"{kind}_embedding_table", ()))


class _HoldsOffsets(nn.Module):
    """What RecBole's tables of several fields lack: where each begins, on the table's device.

    No buffer, since an average of weights is one of buffers too.
    """

    embedding: nn.Embedding
    begins: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.begins = fn(self.begins)
        return super()._apply(fn, recurse)


class _TokenTable(_HoldsOffsets, FMEmbedding):
    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.embedding(ids + self.begins)
        return rows


class _NumberTable(_HoldsOffsets, FLEmbedding):
    def forward(self, pairs: Tensor) -> Tensor:
        base, index = pairs.split([1, 1], dim=-1)
        rows: Tensor = base * self.embedding(index.squeeze(-1).long() + self.begins)
        return rows


def hold_offsets(model: nn.Module, device: torch.device | None = None) -> None:
    """Have tables of several fields hold on their device at which row each field begins.

    RecBole's send it there in each forward pass, which then waits for a GPU.

    Args:
        model: RecBole's, ours, or one that holds parts of theirs.
        device: where that is said for now; by default where each table is.
    """
    kinds = {FMEmbedding: _TokenTable, FLEmbedding: _NumberTable}
    for module in model.modules():
        if type(module) in kinds:
            place = device or next(module.parameters()).device
            module.begins = torch.as_tensor(module.offsets, device=place)
            module.__class__ = kinds[type(module)]


def embedding_tables(model: nn.Module) -> list[nn.Embedding | nn.EmbeddingBag]:
    """Every table of a model, first-order weights and those of numerical fields included."""
    return [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]


def reserved_rows(
    model: nn.Module, vocabularies: Mapping[str, Any]
) -> dict[nn.Embedding | nn.EmbeddingBag, Tensor]:
    """The rows of each table that belong to no id: padding, and ids that training doesn't know.

    Padding is id 0 of each field, as everywhere in RecBole. In a table that is no field's nor
    several fields' it is row 0.

    Args:
        model: RecBole's, ours, or one that holds parts of theirs.
        vocabularies: by field. Its ``unknown`` is the id of unknown tokens, where there is one.
    """
    reserved: dict[nn.Embedding | nn.EmbeddingBag, Tensor] = {
        table: torch.tensor([0]) for table in embedding_tables(model)
    }
    for module in model.modules():
        if isinstance(module, (FMEmbedding, FLEmbedding)):
            reserved[module.embedding] = torch.as_tensor(module.offsets)
    for module in model.modules():
        for table, fields, offsets in tables_of_fields(module):
            ids = [getattr(vocabularies[field], "unknown", None) for field in fields]
            unknown = [at + id for at, id in zip(offsets, ids, strict=True) if id is not None]
            reserved[table] = torch.tensor([*offsets, *unknown])
    return reserved


@torch.no_grad()
def fill_unseen(model: nn.Module, counts: Mapping[str, Tensor]) -> None:
    """Give ids that training doesn't have the mean of their field's rows (:func:`mean_row`). Their
    own rows are as they were drawn, and mean nothing.

    Args:
        model: RecBole's, ours, or one that holds parts of theirs.
        counts: how often training has each id, ``[ids]`` by field; id 0 is no value.
    """
    if (sharded := getattr(model, "sharded", None)) is not None:
        sharded.fill_unseen(counts)
    for module in model.modules():
        for table, fields, offsets in tables_of_fields(module):
            for field, first in zip(fields, offsets, strict=True):
                count = counts.get(field)
                if count is None or not count[1:].any():
                    continue
                rows = table.weight[first : first + len(count)]
                unseen = (count == 0).to(rows.device)
                unseen[0] = False
                rows[unseen] = mean_row(rows, count)


@torch.no_grad()
def with_rows(
    model: nn.Module,
    weights: Mapping[str, Any],
    sizes: Mapping[str, int],
    rows_of: Callable[[str, Tensor], Tensor],
) -> dict[str, Any]:
    """Weights in whose tables each field has other rows.

    Args:
        model: that they are for.
        weights: by name.
        sizes: how many ids each field has in them.
        rows_of: gives the rows of a field, from its name and those it has, ``[ids, width]``.

    Returns:
        By name; a table that hasn't a row for each of these ids stays as it is.
    """
    changed = dict(weights)
    names: dict[int, list[str]] = {}  # a table may have several
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for module in model.modules():
        for table, fields, _ in tables_of_fields(module):
            ids = [sizes[field] for field in fields]
            for name in names[id(table.weight)]:
                own = weights.get(name)
                if isinstance(own, Tensor) and own.dim() == 2 and len(own) == sum(ids):
                    parts = zip(fields, own.split(ids), strict=True)
                    changed[name] = torch.cat([rows_of(field, part) for field, part in parts])
    return changed


def with_unknown_rows(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    unknown: Mapping[str, int | None],
    counts: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Weights of a model with a row for each field's unknown ids, :func:`mean_row`.

    Args:
        model: with the rows.
        weights: of the model without them, by name.
        unknown: which id's row it is, by field; one after all others is added. None where training
            has learned the row.
        counts: how often training has each id, ``[ids]`` by field.

    Returns:
        By name; a table that isn't as training had it stays as it is.
    """

    def rows_of(field: str, rows: Tensor) -> Tensor:
        if (row := unknown[field]) is None:
            return rows
        mean = mean_row(rows, counts[field]).unsqueeze(0)
        return torch.cat([rows[:row], mean, rows[row + 1 :]])  # in its place, or behind the others

    return with_rows(model, weights, {name: len(own) for name, own in counts.items()}, rows_of)


def tables_of_fields(
    module: Any,
) -> Iterator[tuple[nn.Embedding, Sequence[str], Sequence[int]]]:
    """The tables of token fields that a module holds as RecBole's models do.

    Yields:
        A table, the fields in it, and the row at which each of them begins.
    """
    if isinstance(table := getattr(module, "token_embedding_table", None), FMEmbedding):
        yield table.embedding, module.token_field_names, list(map(int, table.offsets))
    for table, field in zip(
        getattr(module, "token_seq_embedding_table", ()),
        getattr(module, "token_seq_field_names", ()),
        strict=False,
    ):
        yield table, [field], [0]
    if hasattr(module, "token_feature_names"):  # FFM has a table of all fields for each field
        for table in getattr(module, "token_embeddings", ()):
            yield table, module.token_feature_names, list(map(int, module.token_offsets))
        of_fields = cycle(module.token_seq_feature_names)
        for table, field in zip(getattr(module, "token_seq_embedding", ()), of_fields):  # noqa: B905
            yield table, [field], [0]
