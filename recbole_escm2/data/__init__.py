"""Entire-space data: labels, the data set and its loaders."""

from recbole_escm2.data.dataset import EntireSpaceDataset
from recbole_escm2.data.loader import ImpressionLoader, prepare_data

__all__ = ["EntireSpaceDataset", "ImpressionLoader", "prepare_data"]
