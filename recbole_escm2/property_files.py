"""Property and config files, and values written as text; RecBole isn't imported for any of it."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import re
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.limits import SETTINGS_BYTES, SETTINGS_VALUES

PROPERTIES = files("recbole_escm2.properties")


def recbole_properties() -> Path:
    """The folder of RecBole's property files."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("RecBole isn't installed: pip install recbole")
    return Path(spec.submodule_search_locations[0]) / "properties"


class Settings(dict[str, Any]):
    """What a YAML file holds.

    Attributes:
        file: its path.
        lines: the line of each key.
    """

    def __init__(self, file: Any, content: dict[str, Any], lines: dict[str, int]) -> None:
        super().__init__(content)
        self.file = file
        self.lines = lines

    def place(self, key: str) -> str:
        """Where a key stands, for messages; a key that an anchor brought along has no line."""
        line = f", line {self.lines[key]}" if key in self.lines else ""
        return f"config file {self.file}{line}"


class _Loader(yaml.SafeLoader):
    """A safe loader that also reads 1e-3 as a number, as RecBole's does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)
# A date is text: JSON, the command line and checkpoints have no other form of it.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _load(text: str) -> tuple[Any, dict[str, int]]:
    """What a YAML text holds, and the line of each key of it.

    Raises:
        UsageError: a value that isn't what it looks like, or is too large; it says in which line.
        Exception: YAML's constructors raise whatever Python's do.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _values_in(node, "", {})
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        return loader.construct_document(node), {k.value: _line(k) for k in keys if k.value != "<<"}
    finally:
        loader.dispose()


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def _values_in(node: yaml.Node, key: str, known: dict[int, int]) -> int:
    """How many values a node has, those of an alias counted each time that it is used.

    Args:
        node: of a document.
        key: that it belongs to, for the message.
        known: the numbers of nodes that were counted before; 0 while one is being counted.

    Raises:
        UsageError: they are too many, a key stands there twice, or a number is one of YAML 1.1
            that nobody means: 010 is 8, and 1:30 is 90.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise UsageError(f"line {_line(node)}: {key} contains itself")
        return known[id(node)]
    known[id(node)], values = 0, 1
    if isinstance(node, yaml.MappingNode):
        first: dict[Any, int] = {}
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                if (name.tag, name.value) in first:
                    lines = f"{first[name.tag, name.value]} and {_line(name)}"
                    raise UsageError(f"lines {lines}: {name.value} stands there twice")
                first[name.tag, name.value] = _line(name)
            values += _values_in(name, key, known) + _values_in(value, key or name.value, known)
    elif isinstance(node, yaml.SequenceNode):
        values += sum(_values_in(value, key, known) for value in node.value)
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and node.style is None:
        _check_number(node, key)
    if values > SETTINGS_VALUES:
        raise UsageError(f"line {_line(node)}: {key} has more than {SETTINGS_VALUES:,} values")
    known[id(node)] = values
    return values


def _check_number(node: yaml.ScalarNode, key: str) -> None:
    text: str = node.value
    base = 8 if _OCTAL.fullmatch(text) else 60 if ":" in text else None
    if base is not None:
        number = yaml.safe_load(text)
        raise UsageError(
            f"line {_line(node)}: {key}: {text} is {number} in YAML, a number to base {base}: "
            f"write {number}, or '{text}' in quotes where it is text"
        )


def read_yaml(path: Any) -> Settings:
    """A YAML file that holds a mapping; an empty one is an empty mapping.

    Raises:
        UsageError: no such file, not YAML, no mapping, too large, a key twice, or a number that
            isn't what it looks like; the message says in which line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SETTINGS_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {path}: {error}") from error
    if len(content) > SETTINGS_BYTES:
        raise UsageError(f"config file {path} has more than {SETTINGS_BYTES:,} bytes: is it data?")
    try:
        settings, lines = _load(text)
    except UsageError as error:
        raise UsageError(f"config file {path}, {error}") from error
    except Exception as error:  # YAML's constructors raise whatever Python's do
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        said = getattr(error, "problem", None) or error
        raise UsageError(f"config file {path}{line} is not YAML: {said}") from error
    if settings is not None and not isinstance(settings, dict):
        raise UsageError(f"config file {path} holds no 'key: value' lines")
    for key in settings or {}:
        if not isinstance(key, str):
            raise UsageError(f"config file {path}: key {key!r} isn't text; put it in quotes")
    return Settings(path, settings or {}, lines)


@cache
def _shipped(path: Any) -> Settings:
    return read_yaml(path)


def read_shipped(path: Any) -> Settings:
    """A file of defaults that ships with a package, which a process reads once."""
    return copy.deepcopy(_shipped(path))


def parse_value(text: str) -> Any:
    """The value of a config key written as text: a Python or YAML literal, else the text itself."""
    stripped = text.strip()
    lower = stripped.lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower in ("none", "null", "~"):
        return None
    if len(text) > SETTINGS_BYTES:
        return text
    no_literal = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
    with contextlib.suppress(*no_literal), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, about text such as 1or2
        return ast.literal_eval(stripped)
    if stripped[:1] in ("[", "{"):
        with contextlib.suppress(Exception):  # YAML's constructors raise whatever Python's do
            return _load(stripped)[0]
    return text


def dataset_names() -> list[str]:
    """Data sets that have a properties file here."""
    return _names_in("dataset")


def _names_in(folder: str) -> list[str]:
    files = (PROPERTIES / folder).iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".yaml"))


def read_preset(name: Any) -> Settings:
    """The settings that ship under a name.

    Raises:
        UsageError: there are none of that name; the message lists those that there are.
    """
    if name not in (known := _names_in("preset")):
        raise UsageError(
            f"there is no preset {name!r}{did_you_mean(str(name), known)}. Presets: "
            f"{', '.join(known)}. A file of settings of one's own is given by --config_files"
        )
    return read_shipped(PROPERTIES / "preset" / f"{name}.yaml")


_LINE = re.compile(r"^(?P<key>\w+):(?P<value>[^#\n]*)(?:#(?P<help>.*))?$", re.MULTILINE)


def lines_of(paths: Iterable[Any]) -> dict[str, tuple[str, str]]:
    """Default, as text, and line of help of each key in property files, the first one's."""
    lines: dict[str, tuple[str, str]] = {}
    for path in paths:
        for line in _LINE.finditer(path.read_text("utf-8")) if path.is_file() else ():
            value, help_line = line["value"].strip(), (line["help"] or "").strip()
            lines.setdefault(line["key"], (value, help_line))
    return lines
