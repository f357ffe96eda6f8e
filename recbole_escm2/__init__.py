"""ESMM and ESCM²: entire-space post-click conversion models, data and metrics for RecBole.

Importing this package makes RecBole find its models and metrics and does nothing else. Neither
RecBole nor torch is loaded for it.
"""

import importlib
from typing import Any

from recbole_escm2.plugin import register, register_model

__version__ = "0.1.0"
__all__ = ["__version__", "register_model", "score"]

register()


def __getattr__(name: str) -> Any:
    """``score``, or a module (``recbole_escm2.quick_start.run``), loaded when it is asked for."""
    if name == "score":
        return importlib.import_module(f"{__name__}.scoring.score").score
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
