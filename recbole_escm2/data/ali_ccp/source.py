"""Ali-CCP as a source: raw files in the folder ``raw``, or a world that the config simulates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_escm2.data.ahead import converting
from recbole_escm2.data.ali_ccp.chunks import CLICK, PURCHASE, Options, Reader, schema_of
from recbole_escm2.data.ali_ccp.files import RawFiles, find_raw, open_texts
from recbole_escm2.data.ali_ccp.lines import Text
from recbole_escm2.data.ali_ccp.raw import FIELDS, KINDS, SPLITS
from recbole_escm2.data.ali_ccp.simulate import Simulation, draws_of
from recbole_escm2.data.schema import Chunk, Schema
from recbole_escm2.errors import UsageError
from recbole_escm2.limits import read_json

_LABELS = {"CLICK_FIELD": CLICK, "CONVERSION_FIELD": PURCHASE}


def simulates(config: Any) -> bool:
    """With the key ``simulation``: the raw files are drawn by ``simulation_seed``."""
    return bool(config["simulation"])


def files(config: Any) -> list[Path]:
    """The raw files; a simulation has none, it is made of the config alone."""
    if simulates(config):
        return []
    try:
        return list(find_raw(_raw(config)).paths)
    except UsageError as error:
        how = f". {config['obtain'].strip()}" if config["obtain"] else ""
        raise UsageError(f"data set '{config['dataset']}': {error}{how}") from error


def _raw(config: Any) -> Path:
    return Path(config["data_path"]) / "raw"


def _simulation(config: Any) -> Simulation | None:
    """What to simulate, None where the files are real ones.

    Raises:
        UsageError: the key ``simulation`` isn't as it must be.
    """
    wanted = config["simulation"]
    if not wanted:
        return None
    if not isinstance(wanted, Mapping):
        raise UsageError(f"simulation must be a mapping of a simulation's keys, got {wanted!r}")
    given = {}
    for own, key in (
        ("selection", "selection_strength"),
        ("seed", "simulation_seed"),
        ("interaction_share", "interaction_share"),
    ):
        if own in wanted:
            raise UsageError(f"simulation has {own}, which is the config key {key}")
        if config[key] is not None:
            given[own] = config[key]
    try:
        return Simulation(**given, **wanted)
    except TypeError as error:
        raise UsageError(f"simulation: {error}") from error


def options(config: Any) -> Options:
    """What the config says on the conversion.

    Raises:
        UsageError: a value that makes no sense, by its key.
    """
    for key, name in _LABELS.items():
        if config[key] != name:
            raise UsageError(f"{key} of Ali-CCP is {name}, got {config[key]!r}")
    chosen = config["feature_fields"]
    if chosen in ("all", "literature"):
        chosen = [field.name for field in FIELDS if chosen == "all" or field.literature]
    elif isinstance(chosen, str):
        raise UsageError(f"feature_fields must be literature, all or a list, got {chosen!r}")
    keys = ("validation_share", "on_bad_line", "conversion_without_click")
    return Options(tuple(chosen), **{key: config[key] for key in keys})


def settings(config: Any) -> dict[str, Any]:
    """The keys of the conversion, and of the simulation where there is one."""
    chosen, simulation = options(config), _simulation(config)
    simulated = {} if simulation is None else {"simulation": simulation.settings()}
    return vars(chosen) | {"feature_fields": list(chosen.feature_fields)} | simulated


def read(config: Any) -> tuple[Schema, Iterable[Chunk]]:
    """The raw files, or a simulated world, which never becomes text.

    Raises:
        UsageError: the files, or the simulation, aren't as they must be.
    """
    simulation = _simulation(config)
    if simulation is None:
        getLogger().info(f"converting the raw files in {_raw(config)}, which happens once")
        return read_raw(find_raw(_raw(config)), options(config), config["worker"])
    getLogger().info(f"simulating {simulation.rows:,} impressions, world {simulation.seed}")
    return read_world(simulation, options(config))


def read_raw(raw: RawFiles, chosen: Options, workers: int = 0) -> tuple[Schema, Iterable[Chunk]]:
    """Raw files as what a store is made of.

    Args:
        raw: the files.
        chosen: what is made of them.
        workers: processes that read blocks of them; 0: this one does.

    Raises:
        UsageError: the file that describes a simulation isn't one; others are raised by the chunks.
    """
    size = sum(path.stat().st_size for files in raw.files.values() for path in files.values())
    schema = schema_of(chosen, bool(raw.truth), _described(raw), size, "B")
    return schema, _chunks(raw, chosen, schema, workers)


def _chunks(raw: RawFiles, chosen: Options, schema: Schema, workers: int) -> Iterator[Chunk]:
    raises = chosen.conversion_without_click == "raise"
    with converting(workers) as pool:
        texts = (
            Text(text, chosen.wanted(text.kind), chosen.on_bad_line, raises, pool)
            for text in open_texts(raw)
        )
        yield from Reader(chosen, schema).chunks(texts)


def read_world(simulation: Simulation, chosen: Options) -> tuple[Schema, Iterable[Chunk]]:
    """A simulated world as what a store is made of.

    Raises:
        UsageError: numba isn't installed, or ``conversions_without_click`` can't be had.
    """
    draws = draws_of(simulation)
    from recbole_escm2.data.ali_ccp.draw import SimulatedPart

    pairs = [(split, kind) for split in SPLITS for kind in KINDS]
    parts = [SimulatedPart(draws, split, kind, chosen.wanted(kind)) for split, kind in pairs]
    size = sum(draws.rows(kind, split) for split, kind in pairs)
    schema = schema_of(chosen, True, draws.about(), size, " rows")
    schema = replace(schema, leave_out=None)  # a world may have no behaviour
    return schema, Reader(chosen, schema).chunks(parts)


def _described(raw: RawFiles) -> dict[str, Any] | None:
    """What is known of a simulation, None where the files are real ones."""
    if raw.simulation is None:
        return None
    try:
        content = read_json(raw.simulation)
    except (OSError, ValueError) as error:
        raise UsageError(f"{raw.simulation}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("note"), str):
        raise UsageError(f"{raw.simulation} isn't what a simulation writes")
    return content
