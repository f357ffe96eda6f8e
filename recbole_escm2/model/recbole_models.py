"""RecBole's context-aware models by name."""

from __future__ import annotations

import importlib
import pkgutil

from recbole.model.abstract_recommender import AbstractRecommender


def recbole_context_models() -> dict[str, str]:
    """Module of each context-aware model that RecBole ships, by the module's last name."""
    package = importlib.import_module("recbole.model.context_aware_recommender")
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
    if module and (found := _class_in(module)).__name__ == name:
        return found
    return None


def _class_in(module_name: str) -> type[AbstractRecommender]:
    module = importlib.import_module(module_name)
    stem = module_name.rpartition(".")[2]
    return next(
        value
        for name, value in vars(module).items()
        if name.lower() == stem and isinstance(value, type)
    )
