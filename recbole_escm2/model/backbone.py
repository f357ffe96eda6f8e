"""Backbones: what turns a batch into the towers' logits, by the config key ``backbone``.

Either MLP towers on a bottom (:mod:`recbole_escm2.model.bottom`), or a context-aware model of
RecBole's for each tower. The latter share one embedding, which the entire-space model holds; all
else of theirs, first-order parts included, is a tower's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch
import yaml
from recbole.model.abstract_recommender import ContextRecommender
from recbole.model.layers import FMFirstOrderLinear
from torch import Tensor, nn

from recbole_escm2.bags import Bags
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.lookup import recbole_context_model
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.model.embedding import WithBags, pool_bags

#: RecBole's models that can't serve, and why.
REFUSED = {
    "DSSM": "its score is a cosine: as a logit it keeps every probability between 0.27 and 0.73, "
    "so that neither a click rate nor a propensity can be learned",
    "KD_DAGFM": "it is trained in phases: a teacher first, whose checkpoint the student then wants",
}


class Traits(NamedTuple):
    """What a model of RecBole's reads and wants, as its code has it.

    Attributes:
        embedding: whether it reads the embedding that the towers share.
        first_order: whether it has RecBole's first-order part.
        own_embedding: its module with an embedding of its own, which sees bags padded.
        needs_pair: whether it fails where there is no pair of features.
        idle_keys: config keys without use in it, though RecBole lists them for it or other
            backbones read them.
    """

    embedding: bool = True
    first_order: bool = False
    own_embedding: str | None = None
    needs_pair: bool = False
    idle_keys: frozenset[str] = frozenset()


# Keys about the embedding that the towers share.
_OF_EMBEDDING = frozenset({"embedding_dropout", "embedding_init"})

#: RecBole's models that serve.
RECBOLE: dict[str, Traits] = {
    "AFM": Traits(first_order=True),
    "AutoInt": Traits(first_order=True),
    "DCN": Traits(),
    "DCNV2": Traits(),
    "DeepFM": Traits(first_order=True),
    "EulerNet": Traits(),
    "FFM": Traits(False, True, "ffm", needs_pair=True, idle_keys=_OF_EMBEDDING | {"bag_pooling"}),
    "FM": Traits(first_order=True),
    "FNN": Traits(),
    "FiGNN": Traits(needs_pair=True),
    "FwFM": Traits(first_order=True, needs_pair=True),
    "LR": Traits(False, True, idle_keys=_OF_EMBEDDING | {"embedding_size"}),
    "NFM": Traits(first_order=True),
    "PNN": Traits(),
    "WideDeep": Traits(first_order=True),
    "xDeepFM": Traits(first_order=True),
}

#: The attributes that hold RecBole's embedding.
EMBEDDING_TABLES = (
    "token_embedding_table",
    "float_embedding_table",
    "token_seq_embedding_table",
    "float_seq_embedding_table",
)


def backbone_names() -> list[str]:
    """All backbones that can serve."""
    return [*BOTTOMS, *RECBOLE]


def is_recbole_backbone(name: Any) -> bool:
    """Whether a backbone is one of RecBole's models."""
    return isinstance(name, str) and name in RECBOLE


def uses_shared_embedding(name: str) -> bool:
    """Whether a backbone reads the embedding that the towers share (LR and FFM don't)."""
    return name in BOTTOMS or RECBOLE[name].embedding


@cache
def listed_keys(name: str) -> frozenset[str]:
    """Config keys that RecBole lists for a backbone; none where it isn't one of its models."""
    if not is_recbole_backbone(name):
        return frozenset()
    file = files("recbole") / "properties" / "model" / f"{name}.yaml"
    return frozenset(yaml.safe_load(file.read_text("utf-8")))


def idle_keys(name: str) -> frozenset[str]:
    """Config keys that act on other backbones, and not on this one."""
    return RECBOLE[name].idle_keys if name in RECBOLE else frozenset()


def check_backbone(name: str) -> None:
    """Refuse what is no backbone.

    Raises:
        UsageError: there is none of that name, or it can't serve; the message says why.
    """
    names = backbone_names()
    if name in REFUSED:
        raise UsageError(f"backbone {name} can't serve here: {REFUSED[name]}. {_one_of(names)}")
    if name not in names:
        raise UsageError(
            f"there is no backbone '{name}'{did_you_mean(name, names)}. {_one_of(names)}"
        )


def _one_of(names: list[str]) -> str:
    return f"Backbones: {', '.join(names)}"


class EmbeddedBatch:
    """A batch for one of RecBole's models, with the embedding that the towers share.

    A multi-valued field is padded ids, as RecBole's models expect; :attr:`bags` has its values.

    Args:
        interaction: the batch.
        embedding: ``[batch, fields, embedding]``, or None where the backbone doesn't use it.
    """

    def __init__(self, interaction: Any, embedding: Tensor | None) -> None:
        self._interaction = interaction
        self.embedding = embedding
        self.bags: dict[str, Bags] = getattr(interaction, "bags", {})

    def __getitem__(self, field: str) -> Any:
        return self._interaction[field]

    def __len__(self) -> int:
        return len(self._interaction)


class FirstOrderLinear(FMFirstOrderLinear):
    """RecBole's first-order part b + Σ x_j·w_j, with all values of a multi-valued field.

    They are pooled as their embeddings are, by ``bag_pooling``, weights included; RecBole's own
    takes the sum over a padded sequence.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.bag_pooling: str = config["bag_pooling"]

    def embed_token_seq_fields(self, token_seq_fields: list[Bags]) -> Tensor | None:
        if not token_seq_fields:
            return None
        pooled = pool_bags(self.token_seq_embedding_table, token_seq_fields, self.bag_pooling)
        return pooled.sum(dim=1, keepdim=True)

    def forward(self, interaction: Any) -> Tensor:
        return super().forward(WithBags(interaction, self.token_seq_field_names))


def first_order_parts(names: Sequence[str], config: Any, dataset: Any) -> nn.ModuleDict:
    """A first-order part b + Σ w_j·x_j for each tower, all weights 0 at first.

    The wide part of Heng-Tze Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS
    2016, section 3.1, without crossed features.

    Args:
        names: of the towers.
        config: the model's.
        dataset: as RecBole's models want it.
    """
    with torch.random.fork_rng(devices=[]):  # all other weights are drawn as without it
        parts = nn.ModuleDict({name: FirstOrderLinear(config, dataset) for name in names})
    for weight in parts.parameters():
        nn.init.zeros_(weight)
    return parts


class _OnSharedEmbedding(ContextRecommender):
    """What one of RecBole's models gets for a base class: it has no embedding, it is given one."""

    def __init__(self, config: Any, dataset: Any) -> None:
        with torch.device("meta"):  # tables that are thrown away needn't be made
            super().__init__(config, dataset)
        drop_embedding(self)
        self.first_order_linear = FirstOrderLinear(config, dataset)

    def concat_embed_input_fields(self, interaction: EmbeddedBatch) -> Tensor | None:
        return interaction.embedding


class _NoImpressions:
    def __getitem__(self, field: str) -> None:
        return None


class _NoLoss(nn.Module):
    def forward(self, output: Any, label: Any) -> float:
        return 0.0


_NO_IMPRESSIONS = _NoImpressions()


class RecBoleTower(ContextRecommender):
    """One of RecBole's context-aware models as a tower; mixed in before the model's class.

    Raises:
        UsageError: the model isn't built as RecBole's are, with a ``sigmoid`` and a ``loss``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if not isinstance(getattr(self, "sigmoid", None), nn.Sigmoid) or not hasattr(self, "loss"):
            raise UsageError(
                f"backbone {config['backbone']} can't serve here: its prediction can't be taken "
                "before a sigmoid, nor its regularizer apart from its loss"
            )
        # DCNV2's forward returns a probability; without its sigmoid it is a logit, as all others'.
        self.sigmoid = nn.Identity()
        self.loss = _NoLoss()
        # FwFM holds its weights in a tensor that no optimizer would find and no checkpoint hold.
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(self, name, nn.Parameter(value.detach()))

    def forward(self, batch: Any) -> Any:
        """The logit, ``[batch, 1]``."""
        if batch is _NO_IMPRESSIONS:
            return None
        with normalising_alone(self, batch):
            return super().forward(batch).unsqueeze(-1)

    def penalty(self) -> Tensor | None:
        """The regularizer: what ``calculate_loss`` adds to the loss; None where that is nothing."""
        added = self.calculate_loss(_NO_IMPRESSIONS)
        return added if isinstance(added, Tensor) else None


@contextlib.contextmanager
def normalising_alone(module: nn.Module, batch: Any) -> Iterator[None]:
    """Let a batch of one, in which an epoch may end, be normalised by the running statistics.

    One impression has no variance to normalise by.
    """
    alone = module.training and len(batch) == 1
    norms = [m for m in module.modules() if alone and isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def recbole_towers(backbone: str, names: Sequence[str], config: Any, dataset: Any) -> nn.ModuleDict:
    """One of RecBole's models for each tower, on an embedding that they don't hold.

    Args:
        backbone: the model's name.
        names: of the towers.
        config: with the model's own keys.
        dataset: as RecBole's models want it.

    Raises:
        UsageError: the model can't be a tower, or not on this data.
    """
    bases: Any = (RecBoleTower, recbole_context_model(backbone), _OnSharedEmbedding)
    tower = type(f"{backbone}Tower", bases, {})
    traits = RECBOLE[backbone]
    towers = nn.ModuleDict({name: tower(config, dataset) for name in names})
    first: Any = towers[names[0]]
    check_pairs(f"backbone {backbone}", first)
    if traits.needs_pair and first.num_feature_field < 2:
        raise UsageError(
            f"backbone {backbone} is made of pairs of features, and {dataset.dataset_name} has "
            "only one: load another, or choose another backbone"
        )
    if not traits.first_order:
        for each in towers.values():
            del each.first_order_linear
    if own := traits.own_embedding:
        for other in towers.values():
            setattr(other, own, getattr(first, own))
    return towers


def check_pairs(name: str, model: Any) -> None:
    """Make sure that each feature of RecBole's FwFM has a place in the weights of its pairs.

    Args:
        name: of the model or backbone, for the message.
        model: any of RecBole's context-aware ones.

    Raises:
        UsageError: one has none, and the first batch would end in a KeyError of RecBole's code.
    """
    kind: Any = recbole_context_model("FwFM")
    if not isinstance(model, kind):
        return
    given = {own for own, number in model.feature2id.items() if number in model.feature2field}
    lists = ("token", "token_seq", "float", "float_seq")
    named = [own for kind in lists for own in getattr(model, f"{kind}_field_names")]
    if lacking := [own for own in named if own not in given]:
        raise UsageError(
            f"RecBole's own code of {name} gives no weight to pairs with {', '.join(lacking)}: it "
            "knows no lists of numbers, and where the key fields is set, only those that it names. "
            f"Leave {'them' if len(lacking) > 1 else 'it'} out (numerical_features, fields), or "
            "choose another model"
        )


def drop_embedding(model: nn.Module) -> None:
    """Take RecBole's embedding out of a model."""
    for name in EMBEDDING_TABLES:
        if hasattr(model, name):
            delattr(model, name)


def regularizer(towers: Iterable[nn.Module]) -> Tensor | None:
    """The sum of the towers' penalties, a scalar; None where no tower has one."""
    each = [tower.penalty() for tower in towers if isinstance(tower, RecBoleTower)]
    penalties = [penalty for penalty in each if penalty is not None]
    return torch.stack(penalties).sum() if penalties else None


def make_sparse(model: nn.Module, penalty: Tensor | None) -> None:
    """Let every table have sparse gradients, but those that a regularizer reaches as a whole."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    weights = [table.weight for table in tables]
    reached: Sequence[Tensor | None] = [None] * len(tables)
    if penalty is not None and penalty.requires_grad and weights:
        reached = torch.autograd.grad(penalty, weights, allow_unused=True)
    for table, gradient in zip(tables, reached, strict=True):
        table.sparse = gradient is None
