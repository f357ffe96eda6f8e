"""Models by name: ours, RecBole's context-aware ones, and anybody's by module path.

Ours are found where RecBole looks for its own, in which ``plugin`` enters them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache

from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.extras import OF_MODELS, require
from recbole_escm2.model_names import (
    CONTEXT_PACKAGE,
    MODEL_NAMES,
    REFERENCE_NAMES,
    REFERENCE_PACKAGE,
)
from recbole_escm2.own_code import import_own

_OTHER_KINDS = {
    "general_recommender": "a general recommender: it learns from user and item ids and reads no "
    "features",
    "sequential_recommender": "a sequential recommender: it needs each user's history in order, "
    "which a set of impressions doesn't hold",
    "knowledge_aware_recommender": "a knowledge-aware recommender: it needs a knowledge graph",
    "exlib_recommender": "trained by a library of its own, outside of RecBole's training loop; "
    "gradient-boosted trees on impressions are LightGBM here",
}
#: What to say of a model that may be taken for another.
NAMESAKES = {
    "LR": "LR is RecBole's logistic regression, which takes gradient steps; LogisticRegression is "
    "the same model at its optimum, with the penalty that validation chooses",
    "LightGBM": "LightGBM is this program's, trees on the features of impressions; RecBole's model "
    "of that name is a general recommender, and isn't run here",
}


@cache
def recbole_context_models() -> dict[str, str]:
    """Module of each context-aware model that RecBole ships, by the module's last name."""
    package = importlib.import_module(CONTEXT_PACKAGE)
    return {
        module.name: f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
    }


def recbole_context_names() -> list[str]:
    """Names of the classes, in order."""
    return sorted(_class_in(module).__name__ for module in recbole_context_models().values())


def recbole_context_model(name: str) -> type[AbstractRecommender] | None:
    """The class of that very name, or None."""
    module = recbole_context_models().get(name.lower())
    if module and (model := _class_in(module)).__name__ == name:
        return model
    return None


def _class_in(module_name: str) -> type[AbstractRecommender]:
    module = importlib.import_module(module_name)
    stem = module_name.rpartition(".")[2]
    return next(
        value
        for name, value in vars(module).items()
        if name.lower() == stem and isinstance(value, type)
    )


def context_model_names() -> list[str]:
    """Names of the models that are trained by gradient steps: ours, then RecBole's."""
    return [*MODEL_NAMES, *recbole_context_names()]


def model_names() -> list[str]:
    """Names of all models that can be run: ours, RecBole's context-aware ones, reference models."""
    return [*context_model_names(), *REFERENCE_NAMES]


def find_model(model: str | type) -> type[AbstractRecommender]:
    """The class of a model.

    Args:
        model: a name (``ESCM2_DR``, ``DeepFM``), ``path.to.module:ClassName``, or a class.

    Raises:
        UsageError: there is none, or it is of a kind that can't be trained on impressions.
    """
    if isinstance(model, str):
        model_class = (
            import_own(model, "model", "path.to.module:ClassName")
            if ":" in model
            else _named_model(model)
        )
    else:
        model_class = model
    if not (isinstance(model_class, type) and issubclass(model_class, AbstractRecommender)):
        raise UsageError(f"{model} is not a RecBole model class")
    if getattr(model_class, "type", None) != ModelType.CONTEXT:
        kind = getattr(getattr(model_class, "type", None), "name", "unknown").lower()
        raise UsageError(
            f"{model_class.__name__} is of RecBole's kind '{kind}'; impressions with click and "
            "conversion labels need a context-aware model, one that reads features"
        )
    return model_class


def _named_model(name: str) -> type[AbstractRecommender]:
    if name in MODEL_NAMES:
        return _class_in(f"{CONTEXT_PACKAGE}.{name.lower()}")
    if name in REFERENCE_NAMES:
        if extra := OF_MODELS.get(name):
            require(extra, name)
        model: type[AbstractRecommender] = getattr(importlib.import_module(REFERENCE_PACKAGE), name)
        return model
    if known := recbole_context_model(name):
        return known
    for package_name, kind in _OTHER_KINDS.items():
        spec = importlib.util.find_spec(f"recbole.model.{package_name}")
        locations = spec.submodule_search_locations if spec else None
        if any(m.name == name.lower() for m in pkgutil.iter_modules(locations)):
            raise UsageError(
                f"{name} is {kind}. Impressions with click and conversion labels need a "
                f"context-aware model: {', '.join(model_names())}"
            )
    names = model_names()
    raise UsageError(
        f"there is no model '{name}'{did_you_mean(name, names)}. Models: {', '.join(names)}; "
        "or path.to.module:ClassName for one of your own"
    )


def model_path(model_class: type) -> str:
    """What :func:`find_model` finds the class by."""
    name, module = model_class.__name__, model_class.__module__
    ours = name in (*MODEL_NAMES, *REFERENCE_NAMES)
    if module.startswith("recbole.") or (ours and find_model(name) is model_class):
        return model_class.__name__
    return f"{model_class.__module__}:{model_class.__qualname__}"
