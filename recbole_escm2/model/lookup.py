"""The models that ship, as classes; by name they are in :mod:`recbole_escm2.lookup`."""

from __future__ import annotations

import recbole_escm2.model
from recbole_escm2.lookup import context_model_names, find_model, model_path
from recbole_escm2.model import EntireSpaceRecommender
from recbole_escm2.plugin import MODEL_NAMES

__all__ = ["MODELS", "context_model_names", "find_model", "model_path"]

MODELS: tuple[type[EntireSpaceRecommender], ...] = tuple(
    getattr(recbole_escm2.model, name) for name in MODEL_NAMES
)
