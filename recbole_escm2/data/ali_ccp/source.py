"""Ali-CCP as a source of data: raw files in the folder ``raw``, simulated ones where asked for."""

from __future__ import annotations

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
    return Path(config["data_path"]) / "raw"


def files(config: Any) -> list[Path]:
    """The raw files; with the key ``simulation`` they are simulated when they aren't there yet."""
    if config["simulation"]:
        _simulate(config)
    try:
        return list(find_raw(_raw(config)).paths)
    except UsageError as error:
        how = f". {config['obtain'].strip()}" if config["obtain"] else ""
        raise UsageError(f"data set '{config['dataset']}': {error}{how}") from error


def _simulate(config: Any) -> None:
    wanted = config["simulation"]
    if not isinstance(wanted, Mapping):
        raise UsageError(f"simulation must be a mapping of a simulation's keys, got {wanted!r}")
    try:
        simulation = Simulation(**wanted)
    except TypeError as error:
        raise UsageError(f"simulation: {error}") from error
    out = _raw(config)
    try:
        there = json.loads((out / SIMULATION_FILE).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):
        there = None
    if there != asdict(simulation):
        getLogger().info(f"simulating {simulation.rows:,} impressions in {out}")
        simulate(simulation, out)


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
    """The keys of the conversion."""
    chosen = options(config)
    return vars(chosen) | {"feature_fields": list(chosen.feature_fields)}


def write(config: Any, target: Path, schema: dict[str, Any]) -> None:
    """Convert the raw files."""
    raw = find_raw(_raw(config))
    getLogger().info(f"converting the raw files in {_raw(config)}, which happens once")
    convert(raw, target, options(config), schema, progress=bool(config["show_progress"]))
    getLogger().info(f"what was found in them: {target / REPORT_FILE}")
