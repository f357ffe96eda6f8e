"""Embeddings of multi-valued fields."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
