"""From a config to an open store: as it was made before, or made now from the source files."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol

import recbole

from recbole_escm2.checkpoint import plain
from recbole_escm2.data.store import FORMAT, SCHEMA, NoStoreError, Store
from recbole_escm2.errors import UsageError, did_you_mean


class Source(Protocol):
    """Files of one format, and how a store is made of them; a module or an object."""

    def files(self, config: Any) -> list[Path]:
        """The files that a data set is made of.

        Raises:
            UsageError: one is missing; the message says where it should be and how to get it.
        """

    def settings(self, config: Any) -> dict[str, Any]:
        """The config keys that the content of the store depends on, with their values."""

    def write(self, config: Any, target: Path, schema: dict[str, Any]) -> None:
        """Make the store.

        Args:
            config: a settled config.
            target: where the store is to be.
            schema: entries to put into its schema, besides those that the source knows.

        Raises:
            UsageError: the files aren't as they must be; the message says where.
        """


#: Module of each source, by the value of the config key ``source``.
SOURCES = {
    "atomic": "recbole_escm2.data.atomic_source",
    "ali_ccp": "recbole_escm2.data.ali_ccp.source",
    "semi_synthetic": "recbole_escm2.data.semi_synthetic.source",
}


_ATTEMPTS = 3  # to open a store that is replaced meanwhile


def open_store(config: Any) -> Store:
    """The store of a data set, made first where there is none or its files or settings changed.

    A store goes on working when its source files are gone. It lies in ``store_dir``, or else in the
    folder ``store`` beside the data; where that can't be written, and for data that ships inside a
    package, in the user's cache folder.

    Raises:
        UsageError: whatever is wrong with the files.
    """
    name = config["source"]
    if name not in SOURCES:
        raise UsageError(
            f"there is no source '{name}'{did_you_mean(name, SOURCES)}. Sources: "
            f"{', '.join(SOURCES)}"
        )
    source: Source = importlib.import_module(SOURCES[name])
    settings = {
        "source": name,
        "format": FORMAT,
        "recbole": recbole.__version__,
        **plain(source.settings(config)),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = _store_dir(config) / digest
    try:
        made_from = [_fingerprint(file) for file in source.files(config)]
    except UsageError:
        store = _stored(folder)
        if store is None:
            raise
        getLogger().info(f"the source files are gone; this is what was made of them: {folder}")
        return store
    store = _stored(folder)
    if store is None or store.schema.get("made_from") != made_from:
        source.write(config, folder, {"settings": settings, "made_from": made_from})
        store = _stored(folder)
    if store is None:
        raise UsageError(f"{folder}: what was just made there of the data can't be read")
    return store


def _stored(folder: Path) -> Store | None:
    """The store in a folder, if there is one; another process may be replacing it."""
    for _ in range(_ATTEMPTS):
        try:
            return Store(folder)
        except NoStoreError as error:
            getLogger().debug(str(error))
        if not (folder / SCHEMA).exists():
            return None
    return None


def _fingerprint(file: Path) -> dict[str, Any]:
    found = file.stat()
    return {"file": file.name, "bytes": found.st_size, "modified": found.st_mtime_ns}


def _store_dir(config: Any) -> Path:
    name, data = config["dataset"], Path(config["data_path"]).absolute()
    if config["store_dir"]:
        return Path(config["store_dir"]).absolute() / name
    shipped = Path(recbole.__file__).parent in data.parents
    nearest = next(folder for folder in (data, *data.parents) if folder.exists())
    if not shipped and os.access(nearest, os.W_OK):
        return data / "store"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(str(data).encode()).hexdigest()[:8]
    return cache / "recbole_escm2" / f"{name}-{place}"
