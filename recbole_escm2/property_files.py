"""Property and config files, and values written as text; RecBole isn't imported for any of it."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from recbole_escm2.errors import UsageError

PROPERTIES = files("recbole_escm2.properties")


def recbole_properties() -> Path:
    """The folder of RecBole's property files."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("RecBole isn't installed: pip install recbole")
    return Path(spec.submodule_search_locations[0]) / "properties"


def yaml_loader() -> type[yaml.SafeLoader]:
    """A safe loader that also reads 1e-3 as a number, as RecBole's does."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)$"),
        list("-+0123456789."),
    )
    return Loader


def read_yaml(path: Any) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty one is an empty mapping.

    Raises:
        UsageError: no such file, not YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {path}: {error}") from error
    try:
        content = yaml.load(text, Loader=yaml_loader())
    except Exception as error:  # YAML's constructors raise whatever Python's do
        raise UsageError(f"config file {path} is not YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"config file {path} holds no 'key: value' lines")
    for key in content or {}:
        if not isinstance(key, str):
            raise UsageError(f"config file {path}: key {key!r} isn't text; put it in quotes")
    return content or {}


def parse_value(text: str) -> Any:
    """The value of a config key written as text: a Python or YAML literal, else the text itself."""
    stripped = text.strip()
    lower = stripped.lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower in ("none", "null", "~"):
        return None
    try:
        return ast.literal_eval(stripped)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if stripped[:1] in ("[", "{"):
        try:
            return yaml.load(stripped, Loader=yaml_loader())
        except Exception:  # YAML's constructors raise whatever Python's do
            pass
    return text


def dataset_names() -> list[str]:
    """Data sets that have a properties file here."""
    folder = PROPERTIES / "dataset"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


_LINE = re.compile(r"^(?P<key>\w+):(?P<value>[^#\n]*)(?:#(?P<help>.*))?$", re.MULTILINE)


def lines_of(paths: Iterable[Any]) -> dict[str, tuple[str, str]]:
    """Default, as text, and line of help of each key in property files, the first one's."""
    lines: dict[str, tuple[str, str]] = {}
    for path in paths:
        for line in _LINE.finditer(path.read_text("utf-8")) if path.is_file() else ():
            value, help_line = line["value"].strip(), (line["help"] or "").strip()
            lines.setdefault(line["key"], (value, help_line))
    return lines
