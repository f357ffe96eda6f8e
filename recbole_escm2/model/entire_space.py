"""The base of every entire-space model: one embedding, a tower a task, the combined risk."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from logging import getLogger
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from recbole.model.init import xavier_normal_initialization
from torch import Tensor, nn

from recbole_escm2 import keys
from recbole_escm2.distributed import Share, all_rows
from recbole_escm2.errors import UsageError
from recbole_escm2.fields import LABEL_KEYS, WEIGHT_KEYS
from recbole_escm2.model import backbone
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.model.embedding import PlacedEmbedding, hold_offsets, initialize
from recbole_escm2.model.tower import Tower, evaluate
from recbole_escm2.risk import (
    binary_cross_entropy,
    ctcvr_risk,
    ctr_risk,
    positives_weighted,
    self_normalized,
    without_pos_weight,
)


@dataclass(frozen=True)
class Impressions:
    """A batch of D as a counterfactual risk sees it; every tensor is one-dimensional, ``[|D|]``.

    Attributes:
        click: o in {0, 1}.
        conversion: r where o = 1, and 0 elsewhere, whatever the data says there.
        logit: the logit of each tower by its name (``ctr``, ``cvr``, …), float32.
        propensity: ô as a weight: floored, normalised where that is asked for, without gradient.
        click_probability: ô as it was predicted (and calibrated, where that is asked for) or
            logged, without gradient.
        weight: of the impression in the risks of conversion, which are means over D with these
            weights; None: 1 for each.
        click_weight: of the impression in the CTR risk, likewise.
        pos_weight: factor of the loss of a conversion.
    """

    click: Tensor
    conversion: Tensor
    logit: dict[str, Tensor]
    propensity: Tensor
    click_probability: Tensor
    weight: Tensor | None = None
    click_weight: Tensor | None = None
    pos_weight: float = 1.0

    @cached_property
    def error(self) -> Tensor:
        """δ = BCE(r, r̂) of each impression; it means something where o = 1 only."""
        return binary_cross_entropy(self.conversion, self.logit["cvr"], self.pos_weight)

    def of_all(self, share: Share | None) -> Impressions:
        """The whole batch, of whose rows this process has a share; itself where it has them all."""
        if share is None:
            return self
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        whole = all_rows([*own.values(), *self.logit.values()], share)
        given: dict[str, Any] = dict(zip(own, whole[: len(own)], strict=True))
        return replace(self, logit=dict(zip(self.logit, whole[len(own) :], strict=True)), **given)


#: What a subclass overrides with terms of the loss in it.
_RISKS = (
    *("calculate_loss", "counterfactual_risk", "dr_risk", "imputation_risk", "impressions"),
    *("imputed_error", "loss_steps", "risks", "task_risks", "weighted"),
)
_ALIKE = 0.05  # mean weights of clicked and other impressions, as far as it makes no difference

CVRRisk = Callable[[Impressions], Tensor | None]
#: Of ``propensity_floor: slope`` until the first validation.
FIRST_FLOOR = 0.1


class EntireSpaceRecommender(PlacedEmbedding):
    """ESMM's architecture and the combined risk L = L_CTR + λc·L_CVR + λg·L_CTCVR.

    All features are embedded once (RecBole's embedding of token, token-sequence and numerical
    features), and each tower maps the embeddings to one logit: an MLP, on layers that the tasks
    share or not, or one of RecBole's context-aware models, by the config key ``backbone``.

    A new model overrides what differs:

    * :meth:`counterfactual_risk`: L_CVR from an :class:`Impressions`. None (here): no such term.
    * :attr:`tower_names`: the towers to build; their logits are in ``Impressions.logit``.
    * :meth:`build_tower`: another tower than an MLP.
    * :meth:`forward`: towers that aren't independent, from their :meth:`tower_inputs`.
    * :meth:`propensity`: another weight's denominator than the floored ô (the risks take no
      gradient to it); :attr:`weighs_by_propensity`: none.
    * :attr:`has_global_risk`: False for a model without L_CTCVR.
    * :meth:`risks`: terms beside the three, ``risks = super().risks(impressions, cvr_risk)`` and
      then ``risks["mine"] = …``, a scalar; ``self.risk_weight["mine"] = 0.3`` in the constructor
      weights it, by 1 otherwise. A further tower moves the shared embedding by its risk, unless
      that is made of a detached logit.
    * :meth:`loss_steps`: more than one optimizer step a batch.
    * :attr:`default_config`: config keys of its own and their defaults; a value of another type
      is refused. Ranges for tuning are in ``CLASS.hyper`` beside the module.
    * :attr:`takes_weights`: True where the model's own risks use ``Impressions.weight``; without it
      a model that overrides a risk is refused weights of impressions.
    * :attr:`config_keys`: keys of the family that act on it though its parents have no use for
      them. A key that doesn't act on a model is refused where somebody sets it: see
      :meth:`acting_keys`.

    The constructor's ``dataset`` is the training part: ``dataset.inter_feat[name]`` is a column of
    it, ``dataset.num(name)`` the number of ids of a token column, 0 for padding included. An
    ``interaction`` holds a batch of the same columns: ids of token columns, numbers, and in
    training the labels ``self.click_field`` and ``self.conversion_field``. The users' column is
    ``config["USER_ID_FIELD"]``, the items' ``config["ITEM_ID_FIELD"]``.

    Config keys: see ``properties/model/EntireSpaceRecommender.yaml``.

    Raises:
        UsageError: the data set has no feature, a label stands among the features, or the
            backbone would replace towers of the model's own.
    """

    #: Names of the towers; the risks and predictions here need ``ctr`` and ``cvr``.
    tower_names: ClassVar[tuple[str, ...]] = ("ctr", "cvr")
    #: Whether the loss has L_CTCVR.
    has_global_risk: ClassVar[bool] = True
    #: Whether the counterfactual risk, where there is one, divides by the propensity.
    weighs_by_propensity: ClassVar[bool] = True
    #: Whether a propensity that is rescaled, and so may exceed 1, makes sense in it.
    takes_rescaled_propensity: ClassVar[bool] = True
    #: Whether the risks that this class defines take the weights of impressions.
    takes_weights: ClassVar[bool] = True
    #: Config keys that a model adds, with their defaults; a subclass inherits its parents'.
    default_config: ClassVar[dict[str, Any]] = {}
    #: Config keys of the family that act on a model beside those of its :meth:`traits`.
    config_keys: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        del self.first_order_linear  # a wide part that no tower uses
        self.click_field: str = config["CLICK_FIELD"]
        self.conversion_field: str = config["CONVERSION_FIELD"]
        self._label_fields = {config[key] for key in LABEL_KEYS}
        #: Columns of the batch that hold the impressions' weights, by task, where they have any.
        self.weight_field = {task: config[key] for task, key in WEIGHT_KEYS.items()}
        self.pos_weight = dict.fromkeys(WEIGHT_KEYS, 1.0) | (config["pos_weight"] or {})
        self.predict_task: str = config["predict_task"]
        self._prepare_propensity(config)
        self.risk_weight: dict[str, float] = {
            "ctr": 1.0,
            "cvr": config["counterfactual_weight"],
            "ctcvr": config["global_weight"],
        }
        cvr_weight = self.risk_weight["cvr"] if self.has_counterfactual_risk else 0
        ctcvr_weight = self.risk_weight["ctcvr"] if self.has_global_risk else 0
        if not cvr_weight and not ctcvr_weight:
            getLogger().warning(
                "counterfactual_weight and global_weight leave nothing but the risk of clicks: "
                "the CVR tower learns nothing, unless by a risk of the model's own"
            )
        self.mlp_hidden_size: list[int] = config["mlp_hidden_size"]
        self.dropout_prob: float = config["dropout_prob"]
        self.bag_pooling = config["bag_pooling"]
        self._check_features(dataset)
        self._check_propensity(dataset)

        self.backbone: str = config["backbone"]
        self._embeds = backbone.uses_shared_embedding(self.backbone)
        if self.backbone in BOTTOMS:
            input_size = self.num_feature_field * self.embedding_size
            self.bottom = BOTTOMS[self.backbone](input_size, self.tower_names, config)
            self.towers = nn.ModuleDict(
                {name: self.build_tower(self.bottom.output_size) for name in self.tower_names}
            )
            self.apply(xavier_normal_initialization)
        else:
            self._build_recbole_towers(config, dataset)
        if self._embeds:
            initialize(self, config["embedding_init"])
        self.embedding_dropout: float = config["embedding_dropout"] if self._embeds else 0.0
        #: By tower; none where the towers have no first-order part, or see to it themselves.
        self.first_order = nn.ModuleDict()
        if config["first_order"] and self.backbone in BOTTOMS:
            self.first_order = backbone.first_order_parts(self.tower_names, config, dataset)
        # A table that is to lie in shards isn't there yet.
        hold_offsets(self, torch.device("cpu"))
        if config["sparse_embedding"]:
            backbone.make_sparse(self, self.regularizer())

    def _prepare_propensity(self, config: Any) -> None:
        """Set what clicks are weighed by: its column, its floor and, where wanted, the map of ô.

        What a trainer fits anew after each validation is a buffer, so that a checkpoint has it.
        """
        floor = config["propensity_floor"]
        #: Least value of ô as a weight; a tensor where a trainer chooses it.
        self.propensity_floor: float | Tensor
        if floor == "slope":
            self.register_buffer("propensity_floor", torch.tensor(FIRST_FLOOR))
        else:
            self.propensity_floor = floor
        #: ``[2]``, a and b of ô = σ(a·logit + b); None where it isn't calibrated.
        self.propensity_map: Tensor | None
        calibrated = bool(config["propensity_calibration"]) and self.weighs_clicks()
        self.register_buffer("propensity_map", torch.tensor([1.0, 0.0]) if calibrated else None)
        normalizes = "propensity_normalization" in self.acting_keys(config["backbone"])
        self.propensity_normalization: str = (
            config["propensity_normalization"] if normalizes else "none"
        )
        #: Column of the batch that holds ô; None where it is the CTR tower's prediction.
        self.propensity_field: str | None = config["weight_field"]
        if self.propensity_field and config["propensity"] == "oracle":
            getLogger().warning(
                f"propensity: oracle weighs clicks by their true probability "
                f"'{self.propensity_field}', which only a simulation knows: a bound to compare "
                "with, not a method that real data could have"
            )

    def _build_recbole_towers(self, config: Any, dataset: Any) -> None:
        if type(self).build_tower is not EntireSpaceRecommender.build_tower:
            raise UsageError(
                f"{type(self).__name__} builds towers of its own, which backbone {self.backbone} "
                f"would replace: choose backbone {', '.join(BOTTOMS)}"
            )
        if self._embeds:
            self.apply(xavier_normal_initialization)
        else:
            backbone.drop_embedding(self)
        # RecBole's models have initialised themselves.
        self.towers = backbone.recbole_towers(self.backbone, self.tower_names, config, dataset)

    def _check_features(self, dataset: Any) -> None:
        features = [
            *self.token_field_names,
            *self.token_seq_field_names,
            *self.float_field_names,
            *self.float_seq_field_names,
        ]
        if labels := self._label_fields.intersection(features):
            raise UsageError(
                f"the label field {', '.join(sorted(labels))} is among the features of "
                f"{dataset.dataset_name}: load it with EntireSpaceDataset, which leaves labels out"
            )
        if not features:
            raise UsageError(
                f"{dataset.dataset_name} has no feature to learn from: load token columns with "
                "load_col, or name float columns in numerical_features"
            )

    def _check_propensity(self, dataset: Any) -> None:
        """Say where weights make the CTR tower predict something else than P(o = 1)."""
        field = self.weight_field["ctr"]
        if field is None or self.propensity_field or not self.weighs_clicks():
            return
        weight, clicked = dataset.inter_feat[field], dataset.inter_feat[self.click_field] > 0
        mean = [float(weight[rows].mean()) if rows.any() else 0.0 for rows in (clicked, ~clicked)]
        if abs(mean[0] - mean[1]) > _ALIKE * max(mean):
            getLogger().warning(
                f"the click weights '{field}' are {mean[0]:.3g} on average where there is a click "
                f"and {mean[1]:.3g} where there is none: the CTR tower then predicts other odds "
                "than those of a click, and as a propensity it is wrong by as much. propensity: "
                "field, or weights that don't depend on the click, are free of that"
            )

    def build_tower(self, input_size: int) -> nn.Module:
        """One tower: ``[|D|, input_size]`` to ``[|D|, 1]``."""
        return Tower([input_size, *self.mlp_hidden_size], self.dropout_prob)

    def forward(self, interaction: Any, towers: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Logits by tower name, each ``[|D|]`` and float32 (also under autocast).

        Args:
            interaction: a batch of features.
            towers: the towers to evaluate; all by default.
        """
        names = towers or self.tower_names
        inputs = self.tower_inputs(interaction, names)
        logit = evaluate({name: self.towers[name] for name in names}, inputs)
        return self.with_first_order(logit, interaction)

    def with_first_order(self, logit: dict[str, Tensor], interaction: Any) -> dict[str, Tensor]:
        """Logits plus b + Σ w_j·x_j of their towers, where config ``first_order`` asks for it.

        A :meth:`forward` that replaces this class's ends in it.

        Args:
            logit: by tower, ``[|D|]`` each.
            interaction: the batch.
        """
        if not self.first_order:
            return logit
        parts = {name: self.first_order[name](interaction).squeeze(1) for name in logit}
        return {name: logit[name] + part.float() for name, part in parts.items()}

    def tower_inputs(self, interaction: Any, towers: tuple[str, ...]) -> dict[str, Any]:
        """What each of the towers named maps to its logit.

        Of an MLP tower that is what the backbone's bottom makes of the embedding,
        ``[|D|, input_size]``; of one of RecBole's models it is the batch with the embedding.

        In training a field's whole embedding is 0 with probability ``embedding_dropout``, drawn
        for each impression, and the others are scaled by 1/(1 − p): no tower can rely on one id.
        Whole embeddings are dropped as in Gal and Ghahramani, "A Theoretically Grounded Application
        of Dropout in Recurrent Neural Networks", NIPS 2016, section 4.2 (there those of an id, for
        all of a sequence); ``dropout_prob`` is about single units.
        """
        embedding = self.concat_embed_input_fields(interaction) if self._embeds else None
        if embedding is not None and self.embedding_dropout:
            embedding = F.dropout1d(embedding, self.embedding_dropout, self.training)
        if embedding is not None and self.backbone in BOTTOMS:
            inputs: dict[str, Any] = self.bottom(embedding.flatten(start_dim=1), towers)
            return inputs
        return dict.fromkeys(towers, backbone.EmbeddedBatch(interaction, embedding))

    def regularizer(self, towers: tuple[str, ...] | None = None) -> Tensor | None:
        """What a backbone of RecBole's adds to its loss, a scalar; None where it adds nothing.

        Args:
            towers: the towers whose parameters it is about; all by default.
        """
        return backbone.regularizer(self.towers[name] for name in towers or self.tower_names)

    def concat_embed_input_fields(self, interaction: Any) -> Tensor:
        """All embeddings, ``[|D|, fields, embedding]``; a single kind of them isn't copied."""
        sparse, dense = self.embed_input_fields(interaction)
        kinds = [e for e in (sparse, dense) if e is not None and e.dim() == 3]
        return kinds[0] if len(kinds) == 1 else torch.cat(kinds, dim=1)

    def propensity(self, logit: dict[str, Tensor], interaction: Any) -> Tensor:
        """The weight's denominator: max(ô, ``propensity_floor``), without gradient, ``[|D|]``.

        The risks detach it, so that a parameter of an overriding method wouldn't learn. ô is, by
        config ``propensity``, the prediction of the CTR tower or a column of the batch.
        """
        return self.click_probability(logit, interaction).clamp(min=self.propensity_floor)

    def click_probability(self, logit: dict[str, Tensor], interaction: Any) -> Tensor:
        """ô by config ``propensity``, without gradient, ``[|D|]``.

        The CTR tower's prediction is calibrated where ``propensity_calibration`` says how.
        """
        if self.propensity_field is None:
            ctr = logit["ctr"].detach()
            if self.propensity_map is None:
                unweighted: Tensor = self.as_click_probability(torch.sigmoid(ctr))
                return unweighted
            slope, intercept = self.propensity_map
            return torch.sigmoid(slope * (ctr - math.log(self.pos_weight["ctr"])) + intercept)
        probability: Tensor = interaction[self.propensity_field].float()
        return probability

    def as_click_probability(self, pctr: Any) -> Any:
        """What a prediction of the CTR tower says of a click: it without ``pos_weight``."""
        return without_pos_weight(pctr, self.pos_weight["ctr"])

    def impressions(self, interaction: Any) -> Impressions:
        """The labels, logits and propensities of a batch, also where processes share its rows.

        A risk is made of what this gives: all processes then make the same one, of the whole batch.
        """
        click = interaction[self.click_field].float()
        # Also keeps a label that means nothing out of o·r and of the gradient of δ.
        conversion = torch.where(click > 0, interaction[self.conversion_field].float(), 0.0)
        logit = self(interaction)
        propensity = self.propensity(logit, interaction)
        _check_shape(self, "propensity", propensity, click.shape)
        click_weight, weight = (self._weight(task, interaction) for task in ("ctr", "cvr"))
        impressions = Impressions(
            click=click,
            conversion=conversion,
            logit=logit,
            propensity=propensity,
            click_probability=self.click_probability(logit, interaction),
            weight=weight,
            click_weight=click_weight,
            pos_weight=self.pos_weight["cvr"],
        ).of_all(getattr(interaction, "share", None))
        if self.propensity_normalization != "snips":
            return impressions
        of_batch = impressions.propensity, impressions.click, impressions.weight
        return replace(impressions, propensity=self_normalized(*of_batch))

    def _weight(self, task: str, interaction: Any) -> Tensor | None:
        """The weight of each impression in a task's risks, ``[|D|]``; None for 1."""
        field = self.weight_field[task]
        return None if field is None else interaction[field].float()

    def counterfactual_risk(self, impressions: Impressions) -> Tensor | None:
        """L_CVR as a scalar, or None where the model has no such term (ESMM)."""
        return None

    @classmethod
    def honours_weights(cls) -> bool:
        """Whether all risks of the model take the weights of impressions.

        A class that overrides a risk has to say so, by :attr:`takes_weights`.
        """
        for parent in cls.__mro__:
            own = vars(parent)
            if "takes_weights" in own or any(name in own for name in _RISKS):
                return bool(own.get("takes_weights", False))
        return False

    @classmethod
    def learned_risks(cls) -> set[str]:
        """The tasks that the model has a risk of."""
        has = {"ctr": True, "cvr": has_counterfactual_risk(cls), "ctcvr": cls.has_global_risk}
        return {task for task in has if has[task]}

    @property
    def has_counterfactual_risk(self) -> bool:
        """Whether the model has an L_CVR."""
        return has_counterfactual_risk(type(self))

    @classmethod
    def acting_keys(cls, backbone_name: str) -> frozenset[str]:
        """The config keys that change what the model computes, among those that not all read.

        They are those that :mod:`~recbole_escm2.keys` declares for its :meth:`traits`, those that
        RecBole lists for the backbone, and :attr:`config_keys` and :attr:`default_config` of the
        class and its parents.

        Args:
            backbone_name: the config key ``backbone``.
        """
        acting = keys.acting(cls.traits(backbone_name)) | backbone.listed_keys(backbone_name)
        own: set[str] = set()
        for parent in cls.__mro__:
            own.update(vars(parent).get("config_keys", ()), vars(parent).get("default_config", ()))
        return acting - backbone.idle_keys(backbone_name) | own

    @classmethod
    def traits(cls, backbone_name: str) -> set[str]:
        """What config keys act on, as :func:`recbole_escm2.keys.acting` wants it.

        Args:
            backbone_name: the config key ``backbone``.
        """
        has = {
            "counterfactual_risk": has_counterfactual_risk(cls),
            "global_risk": cls.has_global_risk,
            "propensity": cls.weighs_clicks(),
            "rescaled_propensity": cls.weighs_clicks() and cls.takes_rescaled_propensity,
        }
        ours = (parent for parent in cls.__mro__ if parent.__module__.startswith("recbole_escm2."))
        classes = (parent.__name__ for parent in ours)
        return {backbone_name, *classes, *(trait for trait in has if has[trait])}

    check_backbone = staticmethod(backbone.check_backbone)

    @classmethod
    def has_own_propensity(cls) -> bool:
        """Whether the weights are others than 1/max(ô, floor), by an overriding method."""
        return cls.propensity is not EntireSpaceRecommender.propensity

    @classmethod
    def weighs_clicks(cls) -> bool:
        """Whether the model has weights o/ô, to be made of something and looked after."""
        return has_counterfactual_risk(cls) and cls.weighs_by_propensity

    def risks(self, impressions: Impressions, cvr_risk: CVRRisk | None = None) -> dict[str, Tensor]:
        """The unweighted risks ``ctr``, ``cvr`` and ``ctcvr`` (where there are), scalars.

        Then ``regularizer``, where the backbone has one.

        Args:
            impressions: the batch.
            cvr_risk: L_CVR; :meth:`counterfactual_risk` by default.
        """
        logit, click = impressions.logit, impressions.click
        ctr_weight = positives_weighted(impressions.click_weight, click, self.pos_weight["ctr"])
        risks = {"ctr": ctr_risk(logit["ctr"], click, ctr_weight)}
        counterfactual = (cvr_risk or self.counterfactual_risk)(impressions)
        if counterfactual is not None:
            risks["cvr"] = counterfactual
        elif self.has_counterfactual_risk:
            raise UsageError(
                f"counterfactual_risk of {type(self).__name__} has returned None: does it lack a "
                "return?"
            )
        if self.has_global_risk:
            ctcvr = click * impressions.conversion
            weight = positives_weighted(impressions.weight, ctcvr, self.pos_weight["ctcvr"])
            risks["ctcvr"] = ctcvr_risk(logit["ctr"], logit["cvr"], ctcvr, weight)
        if (penalty := self.regularizer()) is not None:
            risks["regularizer"] = penalty
        return risks

    def weighted(self, risks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Risks times their weights 1, λc and λg; one of weight 0 has no gradient at all.

        A term that :attr:`risk_weight` doesn't name has weight 1.
        """
        for name, risk in risks.items():
            _check_shape(self, f"risk '{name}'", risk, torch.Size())
        weight = {name: self.risk_weight.get(name, 1.0) for name in risks}
        return {
            name: weight[name] * risk if weight[name] else torch.zeros_like(risk).detach()
            for name, risk in risks.items()
        }

    def task_risks(self, interaction: Any) -> dict[str, Tensor]:
        """The unweighted risks of a batch by task."""
        return self.risks(self.impressions(interaction))

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """The weighted risks of a batch; their sum is the combined risk."""
        return tuple(self.weighted(self.task_risks(interaction)).values())

    def loss_steps(self, interaction: Any) -> Iterator[dict[str, Tensor]]:
        """The losses of a batch, one dict (by name) for each optimizer step.

        The trainer takes a step on the sum of each dict before it asks for the next one, so what
        comes later sees the parameters that the earlier step has moved.
        """
        yield self.weighted(self.task_risks(interaction))

    def predict_tasks(self, interaction: Any) -> dict[str, Tensor]:
        """Probabilities by task: ``ctr`` ô, ``cvr`` r̂ and ``ctcvr`` ô·r̂, each ``[|D|]``."""
        logit = self(interaction, ("ctr", "cvr"))
        ctr, cvr = torch.sigmoid(logit["ctr"]), torch.sigmoid(logit["cvr"])
        return {"ctr": ctr, "cvr": cvr, "ctcvr": ctr * cvr}

    def predict(self, interaction: Any) -> Tensor:
        """The probability of the task that config ``predict_task`` names, ``[|D|]``."""
        return self.predict_tasks(interaction)[self.predict_task]


def _check_shape(model: nn.Module, what: str, value: Any, wanted: torch.Size) -> None:
    """Refuse what a hook has returned in another shape, which torch might broadcast."""
    if isinstance(value, Tensor) and value.shape == wanted:
        return
    must = "a tensor for each impression" if wanted else "a tensor with a single number, a mean"
    got = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
    raise UsageError(
        f"{what} of {type(model).__name__} must be {must} (shape {list(wanted)}), but is {got}"
    )


#: What a subclass overrides or sets; see :class:`EntireSpaceRecommender`.
HOOKS = (
    *("build_tower", "config_keys", "counterfactual_risk", "default_config", "forward"),
    "has_global_risk",
    *("loss_steps", "propensity", "risks", "takes_rescaled_propensity", "tower_inputs"),
    *("takes_weights", "tower_names", "weighs_by_propensity", "predict_tasks", "regularizer"),
)


def misspelt_hooks(model: type) -> list[str]:
    """What looks like a hook's name in a model class and is none: nothing would ever call it.

    Returns:
        A sentence for each.
    """
    misspelt: list[str] = []
    if not issubclass(model, EntireSpaceRecommender):
        return misspelt
    for parent in model.__mro__:
        if parent.__module__.startswith("recbole_escm2."):
            break
        for name in vars(parent):
            close = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.85)
            if close and not hasattr(EntireSpaceRecommender, name):
                misspelt.append(
                    f"{parent.__name__}.{name} is no hook, and nothing but its own code calls it: "
                    f"is {close[0]} meant?"
                )
    return misspelt


def has_counterfactual_risk(model: type[EntireSpaceRecommender]) -> bool:
    """Whether a model class has an L_CVR."""
    return model.counterfactual_risk is not EntireSpaceRecommender.counterfactual_risk
