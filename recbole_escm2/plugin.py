"""The only file that writes into RecBole: makes its name look-ups find what is here."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import recbole.data.dataset
import recbole.evaluator.register as recbole_register
import recbole.trainer

from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.evaluator.catalogue import SPECS, metric_class
from recbole_escm2.model import EntireSpaceRecommender
from recbole_escm2.model.lookup import MODELS
from recbole_escm2.trainer import EntireSpaceTrainer

_CONTEXT_PACKAGE = "recbole.model.context_aware_recommender"
_LARGEST_NAMED_K = 100  # RecBole looks names up literally, so X@10 needs an entry of its own


def register_model(model: type[EntireSpaceRecommender]) -> type[EntireSpaceRecommender]:
    """Let stock RecBole find a model by its class name, with our data set and trainer.

    Usable as a decorator; doing it twice is harmless.

    Args:
        model: the class.

    Returns:
        The class.
    """
    name = f"{_CONTEXT_PACKAGE}.{model.__name__.lower()}"
    # A module of its own: RecBole's look-up needs a spec, which a script or a notebook hasn't.
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    setattr(module, model.__name__, model)
    sys.modules[name] = module
    setattr(recbole.data.dataset, f"{model.__name__}Dataset", EntireSpaceDataset)
    setattr(recbole.trainer, f"{model.__name__}Trainer", EntireSpaceTrainer)
    return model


def register_metrics() -> None:
    """Enter our metrics in RecBole's register; doing it twice is harmless."""
    for key, spec in SPECS.items():
        stem, at, _ = key.partition("@")
        if not at:
            _enter(key, metric_class(spec))
            continue
        if stem not in SPECS:
            _enter(stem, metric_class(spec))  # CTR_NDCG is CTR_NDCG@K
        for cut in ("K", *map(str, range(1, _LARGEST_NAMED_K + 1))):
            _enter(f"{stem}@{cut.lower()}", metric_class(spec, cut))


def _enter(key: str, metric: type) -> None:
    recbole_register.metrics_dict[key] = metric
    recbole_register.metric_types[key] = metric.metric_type  # type: ignore[attr-defined]
    recbole_register.metric_information[key] = metric.metric_need  # type: ignore[attr-defined]
    if metric.smaller and key not in recbole_register.smaller_metrics:  # type: ignore[attr-defined]
        recbole_register.smaller_metrics.append(key)


def register() -> None:
    """Register all models and metrics."""
    for model in MODELS:
        register_model(model)
    register_metrics()
