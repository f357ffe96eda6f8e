"""Embeddings of multi-valued fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import ContextRecommender
from torch import Tensor, nn

from recbole_escm2.bags import Bags


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
        weights = weights / torch.repeat_interleave(lengths, lengths)
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
