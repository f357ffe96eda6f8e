"""Entire-space data: labels, the data set and its loaders, each loaded when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_escm2.data.dataset import EntireSpaceDataset
    from recbole_escm2.data.loader import ImpressionLoader, prepare_data
    from recbole_escm2.data.sources.table import save_table

__all__ = ["EntireSpaceDataset", "ImpressionLoader", "prepare_data", "save_table"]

_MODULES = {
    "EntireSpaceDataset": "dataset",
    "ImpressionLoader": "loader",
    "prepare_data": "loader",
    "save_table": "sources.table",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
