"""RecBole's own models as the runner trains them: on the data and the optimizer that ours have.

A model that is built is given what the family has, by its instance alone: RecBole's classes, and a
model that stock RecBole trains, stay as they are.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from recbole.model.abstract_recommender import ContextRecommender
from recbole.model.layers import FMFirstOrderLinear
from torch import Tensor, nn

from recbole_escm2.errors import UsageError
from recbole_escm2.fields import WEIGHT_KEYS
from recbole_escm2.model.backbone import RECBOLE, FirstOrderLinear, check_pairs
from recbole_escm2.model.embedding import BagEmbedding, hold_offsets
from recbole_escm2.risk import positives_weighted


def pool_all_values(model: ContextRecommender, pooling: str) -> bool:
    """Have a model take all values of a multi-valued field, pooled with their weights.

    Its embedding and its first-order part then pool as an entire-space model's do
    (:func:`recbole_escm2.model.embedding.pool_bag`), in place of RecBole's mean and sum over
    padded ids. Parameters and their initial values stay.

    Args:
        model: a single-task model, with its parameters.
        pooling: ``mean`` or ``sum``.

    Returns:
        False where the model embeds multi-valued fields by code of its own, which goes on reading
        padded ids.
    """
    for module in model.modules():
        if type(module) is FMFirstOrderLinear:
            module.__class__ = FirstOrderLinear
            module.bag_pooling = pooling
    kind = type(model)
    as_recboles = all(
        getattr(kind, name) is getattr(ContextRecommender, name)
        for name, value in vars(BagEmbedding).items()
        if isinstance(value, FunctionType)
    )
    if not as_recboles:
        return False
    # Behind the model's own class and before RecBole's base.
    model.__class__ = type(kind.__name__, (kind, BagEmbedding), {"__module__": kind.__module__})
    model.bag_pooling = pooling
    traits = RECBOLE.get(kind.__name__)
    return traits is None or traits.own_embedding is None


def hold_loose_weights(model: nn.Module) -> None:
    """Make weights that a model holds as bare tensors its buffers, so that a checkpoint has them.

    RecBole's FwFM draws such weights, which no optimizer finds: they stay as they were drawn.
    """
    for module in model.modules():
        loose = {n: v for n, v in vars(module).items() if isinstance(v, Tensor) and v.requires_grad}
        for name, value in loose.items():
            delattr(module, name)
            module.register_buffer(name, value.detach())


def make_tables_sparse(model: ContextRecommender, batch: Any) -> list[str]:
    """Let every table have sparse gradients whose gradient is one of the batch's rows alone.

    A penalty on a whole table, or a use of it other than looking up rows, needs a dense gradient.
    It is found by a backward pass: a model says nothing about its loss.

    Args:
        model: a single-task model.
        batch: with features and label, on the model's device; nothing is learned from it.

    Returns:
        The names of the tables that stay dense.
    """
    tables = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for table in tables.values():
        table.sparse = True
    training = model.training
    model.eval()  # neither dropout nor batch statistics
    losses = model.calculate_loss(batch)
    loss = torch.stack(losses).sum() if isinstance(losses, tuple) else losses
    weights = [table.weight for table in tables.values()]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True) if weights else ()
    model.train(training)
    dense = []
    for (name, table), gradient in zip(tables.items(), gradients, strict=True):
        table.sparse = gradient is None or gradient.is_sparse
        if not table.sparse:
            dense.append(name)
    return dense


def weigh_rows(model: ContextRecommender, config: Any, batch: Any) -> None:
    """Have a model's loss weigh impressions by their column, and positives by ``pos_weight``.

    Its loss is the mean of a binary cross entropy, which torch weighs row by row.

    Args:
        model: RecBole's or the user's own, on its device.
        config: a complete one.
        batch: a few rows of train, on that device.

    Raises:
        UsageError: its loss is another one.
    """
    task, label = config["label_task"], config["LABEL_FIELD"]
    field, pos_weight = config[WEIGHT_KEYS[task]], (config["pos_weight"] or {}).get(task, 1.0)
    if field is None and pos_weight == 1:
        return
    loss: Any = getattr(model, "loss", None)
    own = model.calculate_loss

    def weighted_loss(interaction: Any) -> Any:
        given = None if field is None else interaction[field].float()
        loss.weight = positives_weighted(given, interaction[label], pos_weight)
        try:
            return own(interaction)
        finally:
            loss.weight = None  # a buffer of the module, of which a checkpoint must not have it

    heeds = isinstance(loss, nn.BCEWithLogitsLoss | nn.BCELoss)
    if heeds:
        training = model.training
        model.eval()
        with torch.no_grad():
            before = own(batch)
            loss.weight = torch.full_like(batch[label], 2.0)
            heeds = not torch.equal(torch.as_tensor(before), torch.as_tensor(own(batch)))
            loss.weight = None
        model.train(training)
    if not heeds:
        wanted = "pos_weight" if field is None else WEIGHT_KEYS[task]
        raise UsageError(
            f"the loss of {config['model']} isn't a binary cross entropy of each impression, so "
            f"that {wanted} would do nothing: leave it out"
        )
    model.calculate_loss = weighted_loss


def train_as_the_family(model: ContextRecommender, config: Any, batch: Any) -> list[str]:
    """Give a single-task model the bags and, by config, the sparse tables that the family has.

    Args:
        model: RecBole's or the user's own, on its device.
        config: a complete one.
        batch: a few rows of train, on that device.

    Returns:
        A sentence for each thing in which it goes on differing.

    Raises:
        UsageError: as :func:`~recbole_escm2.model.backbone.check_pairs`.
    """
    remains = []
    check_pairs(config["model"], model)
    hold_loose_weights(model)
    hold_offsets(model)
    weigh_rows(model, config, batch)
    pooled = pool_all_values(model, config["bag_pooling"])
    if not pooled and model.token_seq_field_names:
        remains.append(
            f"{config['model']} embeds {', '.join(model.token_seq_field_names)} in a way of its "
            f"own: it gets the {config['multi_value_top_k']} heaviest values of each "
            "(multi_value_top_k), without their weights"
        )
    if config["sparse_embedding"] and (dense := make_tables_sparse(model, batch)):
        remains.append(
            f"sparse_embedding: {', '.join(dense)} of {config['model']} keep dense gradients, "
            "since its loss depends on more of them than the batch's rows"
        )
    return remains
