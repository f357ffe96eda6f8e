"""Atomic files as a source: RecBole's processing once, then the store."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.utils.argument_list import dataset_arguments

from recbole_escm2.data.sources.atomic import AtomicFiles, atomic_files
from recbole_escm2.data.store import StoreWriter
from recbole_escm2.errors import UsageError
from recbole_escm2.fields import LABEL_KEYS

# Keys of RecBole's and ours that change what is read or made of it. The label that a single-task
# model learns is made with each batch, so all models share one store.
_KEYS = (
    *(key for key in dataset_arguments if key != "unused_col"),
    *LABEL_KEYS,
    "conversion_without_click",
    "discretization",
    "encoding",
    "impressions",
    "numerical_features",
)


def simulates(config: Any) -> bool:
    """The files are what they are."""
    return False


def files(config: Any) -> list[Path]:
    """The atomic files; see :func:`atomic_files`."""
    return atomic_files(config)


def settings(config: Any) -> dict[str, Any]:
    """The keys of RecBole's ``Dataset`` and ours for labels."""
    return {key: config[key] for key in _KEYS}


def write(config: Any, target: Path, schema: dict[str, Any]) -> None:
    """Read, check and process the files, and write the store."""
    for key in ("additional_feat_suffix", "preload_weight"):
        if config[key]:
            raise UsageError(f"{key} isn't supported: no model for impressions reads it")
    getLogger().info(f"reading {', '.join(file.name for file in files(config))}")
    data = AtomicFiles(config)
    with StoreWriter(target) as store:
        store.commit({**schema, **data.write(store)})
