"""Entire-space data: labels, the data set and its loaders."""

from recbole_escm2.data.dataset import EntireSpaceDataset
from recbole_escm2.data.loader import ImpressionLoader, prepare_data
from recbole_escm2.data.sources.table import save_table

__all__ = ["EntireSpaceDataset", "ImpressionLoader", "prepare_data", "save_table"]
