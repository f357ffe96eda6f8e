"""Ali-CCP as a source of data: raw files in the folder ``raw``, simulated ones where asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_escm2.data.ali_ccp.convert import REPORT_FILE, Options, convert, find_raw
from recbole_escm2.data.ali_ccp.raw import FIELDS, SIMULATION_FILE
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.errors import UsageError

_LABELS = {"CLICK_FIELD": "click", "CONVERSION_FIELD": "purchase"}


def _raw(config: Any) -> Path:
    """Where the raw files are; each simulation has a folder of its own."""
    simulation, folder = _simulation(config), Path(config["data_path"]) / "raw"
    if simulation is None:
        return folder
    content = json.dumps(asdict(simulation), sort_keys=True)
    return folder / hashlib.sha256(content.encode()).hexdigest()[:8]


def files(config: Any) -> list[Path]:
    """The raw files; with the key ``simulation`` they are simulated when they aren't there yet."""
    simulation, raw = _simulation(config), _raw(config)
    if simulation is not None and not _is_there(simulation, raw):
        getLogger().info(f"simulating {simulation.rows:,} impressions in {raw}")
        simulate(simulation, raw, unless=lambda: _is_there(simulation, raw))
    try:
        return list(find_raw(raw).paths)
    except UsageError as error:
        how = f". {config['obtain'].strip()}" if config["obtain"] else ""
        raise UsageError(f"data set '{config['dataset']}': {error}{how}") from error


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
    strength = config["selection_strength"]
    given = {} if strength is None else {"selection": strength}
    try:
        return Simulation(**given, **wanted)
    except TypeError as error:
        raise UsageError(f"simulation: {error}") from error


def _is_there(simulation: Simulation, raw: Path) -> bool:
    try:
        written = json.loads((raw / SIMULATION_FILE).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(written == asdict(simulation))


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
    return vars(chosen) | {"feature_fields": list(chosen.feature_fields)} | simulated


def write(config: Any, target: Path, schema: dict[str, Any]) -> None:
    """Convert the raw files."""
    raw = find_raw(_raw(config))
    getLogger().info(f"converting the raw files in {_raw(config)}, which happens once")
    convert(raw, target, options(config), schema, progress=bool(config["show_progress"]))
    getLogger().info(f"what was found in them: {target / REPORT_FILE}")
