"""From a config to an open store: as it was made before, or made now from the source files."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole

from recbole_escm2.data.build import Rules, build
from recbole_escm2.data.checks import check_column_keys, unread_files
from recbole_escm2.data.schema import Source
from recbole_escm2.data.sources import table
from recbole_escm2.data.store import FORMAT, SCHEMA, NoStoreError, Store, making, tidy
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.identity import file_digest
from recbole_escm2.output import to_builtins

#: Config keys on which every store depends, whatever its source.
OF_EVERY_SOURCE = ("min_count", "conversion_without_click")
#: Module of each source, or an object in it, by the value of the config key ``source``.
SOURCES = {
    "atomic": "recbole_escm2.data.sources.atomic",
    "ali_ccp": "recbole_escm2.data.ali_ccp.source",
    "hillstrom": "recbole_escm2.data.sources.hillstrom:SOURCE",
    "coat": "recbole_escm2.data.sources.coat:SOURCE",
    "yahoo_r3": "recbole_escm2.data.sources.yahoo_r3:SOURCE",
    "kuairec": "recbole_escm2.data.sources.kuairec:SOURCE",
    "kuairand": "recbole_escm2.data.sources.kuairand:SOURCE",
    "criteo_uplift": "recbole_escm2.data.sources.criteo:UPLIFT",
    "criteo_attribution": "recbole_escm2.data.sources.criteo:ATTRIBUTION",
    "aliexpress": "recbole_escm2.data.sources.aliexpress:SOURCE",
    "table": "recbole_escm2.data.sources.table",
    "semi_synthetic": "recbole_escm2.data.sources.semi_synthetic",
}


_ATTEMPTS = 3  # to open a store that is replaced meanwhile


def open_store(config: Any) -> Store:
    """The store of a data set, made first where there is none or its files or settings changed.

    A store goes on working when its source files are gone. It lies in ``store_dir``, or else in the
    folder ``store`` beside the data; where that can't be written, and for data that ships inside a
    package, in the user's cache folder. Of several processes that want the same one, one makes it.

    Raises:
        UsageError: whatever is wrong with the files.
    """
    settings, folder = _place(config)
    try:
        made_from = _made_from(config)
    except UsageError:
        store = _stored(folder)
        if store is None:
            raise
        getLogger().info(f"the source files are gone; this is what was made of them: {folder}")
        return store
    store = _stored(folder)
    if _is_made_from(store, made_from):
        tidy(folder)
    else:
        with making(folder):
            store = _stored(folder)  # another process may have made it meanwhile
            if not _is_made_from(store, made_from):
                _make(config, folder, {"settings": settings, "made_from": made_from})
                store = _stored(folder)
    if store is None:
        raise UsageError(f"{folder}: what was just made there of the data can't be read")
    return store


def identity(config: Any) -> dict[str, Any]:
    """What tells the data of a config from other data, without making its store.

    Raises:
        UsageError: the files are missing, and there is no store either.
    """
    settings, folder = _place(config)
    try:
        return {"settings": settings, "made_from": _made_from(config)}
    except UsageError:
        store = _stored(folder)
        if store is None:
            raise
        return {key: store.schema[key] for key in ("settings", "made_from")}


def is_simulated(config: Any) -> bool:
    """Whether config ``simulation_seed`` draws the data: another one is another world."""
    return _source(config).simulates(config)


def _make(config: Any, folder: Path, about: dict[str, Any]) -> None:
    source = _source(config)
    schema, chunks = source.read(config)
    check_column_keys(config, schema)
    if said := unread_files(Path(config["data_path"]), config["dataset"], source.files(config)):
        schema.notes.append(("warning", said))
    build(schema, chunks, folder, _rules(config), about)


def _rules(config: Any) -> Rules:
    return Rules(
        min_count=config["min_count"],
        conversion_without_click=config["conversion_without_click"],
        progress=bool(config["show_progress"]),
    )


def _name_of_source(config: Any) -> str:
    """By config ``source``; files that aren't atomic ones may be tables, or have been when a store
    was made of them.
    """
    name: str = config["source"]
    if name not in SOURCES:
        raise UsageError(
            f"there is no source '{name}'{did_you_mean(name, SOURCES)}. Sources: "
            f"{', '.join(SOURCES)}"
        )
    if name != "atomic" or any(Path(config["data_path"]).glob("*.inter")):
        return name
    is_table = table.takes(config) or (_place(config, "table")[1] / SCHEMA).exists()
    return "table" if is_table else name


def _source(config: Any) -> Source:
    return _of_name(_name_of_source(config))


def _of_name(name: str) -> Source:
    module, _, own = SOURCES[name].partition(":")
    loaded: Any = importlib.import_module(module)
    source: Source = getattr(loaded, own) if own else loaded
    return source


def _place(config: Any, source: str | None = None) -> tuple[dict[str, Any], Path]:
    """The settings that the content of a store depends on, and where it is to be."""
    source = source or _name_of_source(config)
    settings = {
        "source": source,
        "format": FORMAT,
        "recbole": recbole.__version__,
        **{key: config[key] for key in OF_EVERY_SOURCE},
        **to_builtins(_of_name(source).settings(config)),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return settings, _store_dir(config) / digest


def _made_from(config: Any) -> list[dict[str, Any]]:
    return [_fingerprint(file) for file in _source(config).files(config)]


def _is_made_from(store: Store | None, files: list[dict[str, Any]]) -> bool:
    return store is not None and store.schema.get("made_from") == files


def _stored(folder: Path) -> Store | None:
    """The store in a folder, if there is one; another process may be replacing it."""
    for _ in range(_ATTEMPTS):
        try:
            return Store(folder)
        except NoStoreError as error:
            why = error
        if not (folder / SCHEMA).exists():
            return None
    getLogger().warning(f"{why}: the data has to be made again of its source files")
    return None


def _fingerprint(file: Path) -> dict[str, Any]:
    state = file.stat()
    return {
        "file": file.name,
        "bytes": state.st_size,
        "modified": state.st_mtime_ns,
        "digest": file_digest(file),
    }


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
