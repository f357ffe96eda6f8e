"""What a command line or a YAML file asks to be compared, taken apart into rows."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

from recbole_escm2.config import Config, idle_keys, known_keys, model_defaults, why_idle
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.experiment.study import Row
from recbole_escm2.keys import BOOLEAN, FAMILY, NOT_SWEPT, Kind, wrong_value
from recbole_escm2.lookup import find_model
from recbole_escm2.metric_names import own_names
from recbole_escm2.model import EntireSpaceRecommender
from recbole_escm2.output import to_builtins
from recbole_escm2.own_code import import_own_metric, refuse_own_metrics
from recbole_escm2.property_files import parse_value, read_yaml
from recbole_escm2.train.run import WITHOUT_EFFECT

#: Keys of a benchmark, on the command line and in its file, besides config keys.
KEYS = (
    *("aa_row", "baseline", "benchmark", "columns", "fresh", "jobs", "models", "name", "saved"),
    *("pruner", "screen", "seeds", "sweep", "trials", "tuning_seed", "tuning_share"),
)

_NEVER_SWEPT = NOT_SWEPT | {"columns", "config_files", "seeds"}


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        entries: a row for each model, before any sweep.
        dataset: its name, where it was given.
        files: config files of all rows.
        settings: config keys of all rows; those of the command line are text.
        sweep: values by key.
        about: the benchmark's own keys: those of :data:`KEYS` that say nothing of rows.
    """

    entries: Sequence[Row]
    dataset: str | None = None
    files: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> dict[str, Any]:
        """The user's settings of all rows."""
        files = {"config_files": list(self.files)} if self.files else {}
        return files | {
            k: parse_value(v) if isinstance(v, str) else v for k, v in self.settings.items()
        }

    @property
    def settings_of_all(self) -> dict[str, Any]:
        """What :attr:`shared` sets, config files read, without what changes no number."""
        given = {**self._of_files, **self.shared}
        left_out = {*WITHOUT_EFFECT, "config_files", "metrics"}
        return to_builtins({k: v for k, v in given.items() if k not in left_out})

    def rows(self) -> list[Row]:
        """Each entry with each combination of the swept values that has an effect on it.

        Raises:
            UsageError: a key that no entry's model knows, or one swept for none of them.
        """
        for key in (*self.settings, *FAMILY.intersection(self._of_files)):
            self._check_key(key)
        rows: dict[str, Row] = {}
        used: set[str] = set()
        for entry in self.entries:
            if entry.params_file and self.about.get("trials", 1) == 1:
                raise UsageError(f"models: {entry.label} has a params_file: --trials=N tunes in it")
            keys = [k for k in self.sweep if k not in entry.settings and self.reads(entry, k)]
            used.update(keys)
            settings = {**self._both_tasks(entry), **entry.settings}
            for values in itertools.product(*(self.sweep[key] for key in keys)):
                given = dict(zip(keys, values, strict=True))
                swept = self.acting(replace(entry, settings={**settings, **given}), given)
                shown = ", ".join(f"{key}={value}" for key, value in swept.items())
                label = f"{entry.label}, {shown}" if shown else entry.label
                tuned = {**settings, **swept}
                rows.setdefault(label, replace(entry, label=label, settings=tuned, swept=swept))
        for key in self.sweep:
            self._check_key(key)
            if key not in used:
                raise UsageError(f"{key} has several values, and an effect on none of the models")
        return list(rows.values())

    def reads(self, entry: Row, key: str, backbones: Sequence[Any] = ()) -> bool:
        """Whether a config key acts on the model of an entry.

        Args:
            entry: the entry.
            key: the key.
            backbones: that it may have; by default those that were asked for.
        """
        if not backbones:
            given = () if "backbone" in entry.settings else self.sweep.get("backbone", ())
            backbones = given or [self._backbone(entry)]
        return has_effect(key, find_model(entry.model), self.dataset, tuple(map(str, backbones)))

    def _backbone(self, entry: Row) -> str:
        """The backbone of an entry; empty where it is no entire-space model."""
        given = {**model_defaults(find_model(entry.model)), **self._of_files, **self.shared}
        for file in _list(entry.settings.get("config_files", [])):
            given.update(read_yaml(Path(file)))
        return str({**given, **entry.settings}.get("backbone") or "")

    def acting(self, row: Row, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The settings among those chosen that act on a row, which has them already."""
        return {key: value for key, value in chosen.items() if self.reads(row, key)}

    @cached_property
    def _of_files(self) -> dict[str, Any]:
        """What the config files of all rows hold."""
        merged: dict[str, Any] = {}
        for file in self.files:
            merged.update(read_yaml(Path(file)))
        return merged

    def config(self, row: Row) -> Config:
        """The config of a row: shared settings, those of the command line, then its own.

        Raises:
            UsageError: naming the row.
        """
        own = dict(row.settings)
        model: Any = find_model(row.model)
        idle = idle_keys(model, self._backbone(row))
        of_others = {  # keys that the models of other rows alone have
            key
            for key in self._of_files
            if not self.reads(row, key) and any(self.reads(entry, key) for entry in self.entries)
        }
        left_out = idle | of_others
        shared = {key: value for key, value in self._of_files.items() if key not in left_out}
        files = [shared, *_list(own.pop("config_files", []))]
        settings = {k: v for k, v in self.settings.items() if k not in own and self.reads(row, k)}
        try:
            return Config(model, self.dataset, files, {**settings, **own})
        except UsageError as error:
            raise UsageError(f"{row.label}: {error}") from error

    def _check_key(self, key: str) -> None:
        """Refuse a key that no entry's model knows, or that acts on none."""
        if key in KEYS or any(self.reads(entry, key) for entry in self.entries):
            return
        if key in FAMILY:
            reasons = {
                why_idle(key, find_model(entry.model), self._backbone(entry))
                for entry in self.entries
            }
            raise UsageError(
                f"{key} has an effect on none of the models: {'; '.join(sorted(reasons))}"
            )
        known: set[str] = {*KEYS}
        for entry in self.entries:
            model: Any = find_model(entry.model)
            known |= _keys_of(model, self.dataset, ())
        raise UsageError(f"there is no config key '{key}'{did_you_mean(key, known)}")

    def _both_tasks(self, entry: Row) -> dict[str, Any]:
        """A single-task model learns both tasks, unless somebody says otherwise: then all rows of
        a table have the metrics of all tasks."""
        if issubclass(find_model(entry.model), EntireSpaceRecommender):
            return {}
        files = [*self.files, *_list(entry.settings.get("config_files", []))]
        said = [self.settings, self.sweep, entry.settings]
        said += [read_yaml(Path(file)) for file in files]
        return {} if any("task" in where for where in said) else {"task": "both"}


def has_effect(
    key: str, model: Any, dataset: str | None = None, backbones: tuple[str, ...] = ()
) -> bool:
    """Whether a config key acts on a model.

    Args:
        key: the key.
        model: the model's class.
        dataset: the data set's name, where it is known: it may have keys of its own.
        backbones: the backbones that the model may have; likewise.
    """
    return key in _keys_of(model, dataset, backbones)


@lru_cache(maxsize=256)
def _keys_of(model: Hashable, dataset: str | None, backbones: tuple[str, ...]) -> frozenset[str]:
    name = dataset or "none"
    keys: set[str] = set()
    of_family = issubclass(cast(type, model), EntireSpaceRecommender)
    for backbone in backbones if of_family and any(backbones) else ("",):
        config = Config(cast(type, model), name, None, {"backbone": backbone} if backbone else None)
        known = known_keys(config.model_class, name, config.internal_config_dict)
        keys |= known - idle_keys(config.model_class, config["backbone"])
    return frozenset(keys)


# --------------------------------------------------------------------------- command line, file


def is_benchmark(options: Mapping[str, str]) -> bool:
    """Whether a command line asks for many runs rather than one."""
    return any(key in options for key in ("benchmark", "models", "seeds", "trials")) or any(
        len(_values(key, text)) > 1 for key, text in options.items()
    )


def checked(key: str, value: Any, kind: Kind) -> Any:
    """The value of a key that isn't a run's.

    Raises:
        UsageError: it is none of its kind.
    """
    if wrong := wrong_value(key, kind, value, default=""):
        raise UsageError(wrong)
    return value


def split_list(text: str) -> list[str]:
    """The parts of a text between commas that no bracket or quote encloses."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def read_request(options: Mapping[str, Any]) -> Request:
    """What a command line asks for.

    Args:
        options: as text: those of :data:`KEYS`, ``model``, ``dataset``, ``config_files``, and
            config keys, of which some may have several values. ``benchmark`` is a file, or a
            mapping of what one holds.

    Raises:
        UsageError: whatever is wrong with them.
    """
    options = dict(options)
    given = _from_file(options.pop("benchmark", None))
    given |= {key: _option(key, options.pop(key)) for key in KEYS if key in options}
    for key in given.keys() & {"aa_row", "fresh", "saved"}:
        if given[key] is not None:
            checked(key, given[key], BOOLEAN)
    files = [*_list(given.pop("config_files", [])), *options.pop("config_files", "").split()]
    of_file = given.pop("dataset", None)
    dataset = options.pop("dataset", None) or of_file
    models = options.pop("model", None) or given.pop("models", None)
    given.pop("models", None)
    sweep = dict(given.pop("sweep", None) or {})
    for key, text in options.items():
        values = _values(key, text)
        sweep.pop(key, None)  # the command line wins
        if len(values) > 1:
            sweep[key] = [parse_value(value) for value in values]
        else:
            given[key] = text
    if "seed" in sweep:
        raise UsageError("several seeds are --seeds=[1,2,3]")
    for key, values in sweep.items():
        if any(value in values[:n] for n, value in enumerate(values)):
            raise UsageError(f"{key} has a value twice: {', '.join(map(str, values))}")
    settings = {key: value for key, value in given.items() if key not in KEYS}
    about = {key: value for key, value in given.items() if key in KEYS}
    return Request(_models(models, files), dataset, files, settings, sweep, about)


def _values(key: str, text: str) -> list[str]:
    """The values of a key that the command line gives, several where it is swept."""
    if key in _NEVER_SWEPT:
        return [text]
    parts = split_list(text)
    return [text] if "" in parts else parts


def _from_file(file: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if file is None:
        return {}
    given = dict(file) if isinstance(file, Mapping) else read_yaml(Path(file))
    path = "in Python" if isinstance(file, Mapping) else file
    refuse_own_metrics(given, f"benchmark {path}: ")
    if "models" not in given and "model" in given:
        given["models"] = given.pop("model")
    if not isinstance(given.get("models", []), (dict, list, str)):
        raise UsageError(f"benchmark {path}: models must be a list or a mapping")
    if not isinstance(given.get("sweep", {}), (dict, type(None))):
        raise UsageError(f"benchmark {path}: sweep must map config keys to lists of values")
    for key, values in (given.get("sweep") or {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"benchmark {path}: sweep of {key} must be a list of values")
    return given


def _option(key: str, text: str) -> Any:
    if key in ("name", "baseline", "pruner"):
        return text
    if key == "columns":
        for name in own_names(text):
            import_own_metric(name)
    if key in ("columns", "models"):
        return split_list(text)
    if key == "sweep":
        raise UsageError("a sweep is written --KEY=VALUE,VALUE,...")
    return parse_value(text)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else str(value or "").split()


def _models(given: Any, files: Sequence[str]) -> list[Row]:
    """A row for each entry of ``models``, before any sweep."""
    if given is None:
        given = next(
            (content["model"] for f in files if "model" in (content := read_yaml(Path(f)))), None
        )
    if isinstance(given, str):
        given = split_list(given)
    if not given:
        raise UsageError("which models? --model=NAME,NAME,..., or models: in --benchmark=FILE")
    rows = []
    for label, settings in given.items() if isinstance(given, dict) else ((m, {}) for m in given):
        if not isinstance(settings, (dict, type(None))):
            raise UsageError(f"models: {label} must be followed by a mapping of config keys")
        settings = dict(settings or {})
        if "seed" in settings:
            raise UsageError(f"models: {label} has a seed: seeds are the same for all rows")
        if "primary" in settings:
            raise UsageError(f"models: {label} has primary metrics: they are those of all rows")
        model, file = str(settings.pop("model", label)), settings.pop("params_file", None)
        rows.append(Row(str(label), model, settings, params_file=file and str(file)))
    labels = [row.label for row in rows]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UsageError(f"models: {', '.join(sorted(twice))} stands there twice")
    return rows
