"""Ali-CCP as a source: raw files in the folder ``raw``, or a world that the config simulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_escm2.data.ali_ccp.convert import REPORT_FILE, Input, Options, build, convert
from recbole_escm2.data.ali_ccp.files import find_raw
from recbole_escm2.data.ali_ccp.raw import FIELDS, KINDS, SPLITS
from recbole_escm2.data.ali_ccp.simulate import Simulation, draws_of
from recbole_escm2.errors import UsageError

# What the store's content depends on beside config keys: its rows say whose they are.
_CONTENT = {"group": "user"}
_LABELS = {"CLICK_FIELD": "click", "CONVERSION_FIELD": "purchase"}


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
    for own, key in (("selection", "selection_strength"), ("seed", "simulation_seed")):
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
    return Options(
        feature_fields=tuple(chosen),
        min_count=config["min_count"],
        validation_share=config["validation_share"],
        on_bad_line=config["on_bad_line"],
        conversion_without_click=config["conversion_without_click"],
    )


def settings(config: Any) -> dict[str, Any]:
    """The keys of the conversion, and of the simulation where there is one."""
    chosen, simulation = options(config), _simulation(config)
    simulated = {} if simulation is None else {"simulation": asdict(simulation)}
    return vars(chosen) | {"feature_fields": list(chosen.feature_fields)} | simulated | _CONTENT


def write(config: Any, target: Path, schema: dict[str, Any]) -> None:
    """Make the store of the raw files, or of a simulated world, which never becomes text."""
    simulation, chosen, progress = (
        _simulation(config),
        options(config),
        bool(config["show_progress"]),
    )
    if simulation is None:
        raw = _raw(config)
        getLogger().info(f"converting the raw files in {raw}, which happens once")
        convert(find_raw(raw), target, chosen, schema, progress)
    else:
        getLogger().info(f"simulating {simulation.rows:,} impressions, world {simulation.seed}")
        build(simulated(simulation, chosen), target, chosen, schema, progress)
    getLogger().info(f"what was found: {target / REPORT_FILE}")


def simulated(simulation: Simulation, chosen: Options) -> Input:
    """A simulated world as what a store is made of.

    Raises:
        UsageError: numba isn't installed, or ``conversions_without_click`` can't be had.
    """
    from recbole_escm2.data.ali_ccp.draw import SimulatedPart

    draws = draws_of(simulation)
    streams = [
        [
            SimulatedPart(draws, split, kind, [field.name for field in chosen.targets(kind)])
            for split in SPLITS
        ]
        for kind in KINDS
    ]
    rows = sum(draws.rows(kind, split) for kind in KINDS for split in SPLITS)
    return Input(streams, rows, " rows", draws.about(), truth=True)
