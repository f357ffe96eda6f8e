"""From a command line or a YAML file to the runs of a benchmark."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_escm2 import __version__
from recbole_escm2.benchmark.study import DEFAULT_COLUMNS, Row
from recbole_escm2.checkpoint import plain
from recbole_escm2.config import Config, model_defaults, parse_value, read_yaml
from recbole_escm2.data.sources import open_store
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.evaluator.catalogue import METRIC_NAMES, canonical_name, is_metric
from recbole_escm2.model import EntireSpaceRecommender
from recbole_escm2.model.entire_space import has_counterfactual_risk
from recbole_escm2.model.lookup import MODELS, find_model, model_path

#: Keys of a benchmark, on the command line and in its file, besides config keys.
KEYS = (
    *("baseline", "benchmark", "columns", "fresh", "jobs", "models", "name", "saved", "seeds"),
    "sweep",
)

# They do nothing in a model without weights.
_OF_WEIGHTS = ("propensity", "propensity_floor", "propensity_normalization")
# Values of these hold commas of their own.
_NEVER_SWEPT = {
    *("columns", "config_files", "dataset", "field_separator", "gpu_id", "metrics"),
    *("seeds", "seq_separator", "topk"),
}
# What doesn't change a number of a run; the data is known by the fingerprint of its store.
_WITHOUT_EFFECT = {
    *("checkpoint_dir", "config_files", "data_path", "gpu_id", "log_wandb", "output_dir"),
    *("show_progress", "state", "store_dir", "wandb_project"),
}


@dataclass(frozen=True)
class Run:
    """One run of a benchmark: a row with a seed.

    Attributes:
        row: its row.
        seed: its seed.
        model: as :func:`find_model` takes it.
        dataset: the data set's name.
        settings: every config key that isn't a default, as a config file has them.
        name: the folder's: model, data set, seed, and a digest of all that its numbers depend on.
    """

    row: Row
    seed: int
    model: str
    dataset: str
    settings: Mapping[str, Any]
    name: str


@dataclass(frozen=True)
class Plan:
    """A benchmark before it runs.

    Attributes:
        dataset: the data set's name.
        rows: of the table.
        seeds: of each row.
        baseline: label of the row that the others are compared with.
        columns: metrics of the table.
        shared: the user's config keys that all rows have.
        output_dir: where everything goes.
        name: of the report's folder.
        jobs: processes at once.
        fresh: run everything anew.
        saved: keep the checkpoints.
        runs: all of them, seed by seed, so that a stopped benchmark has whole seeds.
    """

    dataset: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    baseline: str
    columns: Sequence[str]
    shared: Mapping[str, Any]
    output_dir: Path
    name: str
    jobs: int
    fresh: bool
    saved: bool
    runs: Sequence[Run]


def is_benchmark(options: Mapping[str, str]) -> bool:
    """Whether a command line asks for many runs rather than one."""
    return (
        any(key in options for key in ("benchmark", "models", "seeds"))
        or len(_values("model", options.get("model", ""))) > 1
        or any(len(_values(key, text)) > 1 for key, text in options.items())
    )


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


def _values(key: str, text: str) -> list[str]:
    """The values of a key that the command line gives, several where it is swept."""
    if key in _NEVER_SWEPT:
        return [text]
    parts = split_list(text)
    return [text] if "" in parts else parts


def make_plan(options: Mapping[str, str]) -> Plan:
    """The plan of a benchmark.

    Args:
        options: of the command line, as text: those of :data:`KEYS`, ``model``, ``dataset``,
            ``config_files``, and config keys, of which some may have several values.

    Raises:
        UsageError: whatever is wrong with them, or with the data.
    """
    options = dict(options)
    asked = _from_file(options.pop("benchmark", None))
    for key in KEYS:
        if key in options:
            asked[key] = _option(key, options.pop(key))
    request = take_apart(options, asked)
    rows = _rows(request)
    configs = {row.label: config_of(row, request) for row in rows}
    first = configs[rows[0].label]
    seeds = _seeds(asked.get("seeds", 1), first["seed"])
    baseline = str(asked.get("baseline") or rows[0].label)
    if baseline not in configs:
        raise UsageError(
            f"baseline '{baseline}' is no row{did_you_mean(baseline, configs)}. "
            f"Rows: {', '.join(configs)}"
        )
    columns = _columns(asked.get("columns"), first)
    runs = runs_of(rows, seeds, configs, columns)
    digest = hashlib.sha256(" ".join(sorted(run.name for run in runs)).encode()).hexdigest()[:8]
    return Plan(
        dataset=first["dataset"],
        rows=rows,
        seeds=seeds,
        baseline=baseline,
        columns=columns,
        shared=request.shared,
        output_dir=Path(first["output_dir"]).absolute(),
        name=str(asked.get("name") or f"benchmark-{first['dataset']}-{digest}"),
        jobs=whole_number("jobs", asked.get("jobs", 1), 1),
        fresh=true_or_false("fresh", asked.get("fresh", False)),
        saved=true_or_false("saved", asked.get("saved", False)),
        runs=runs,
    )


@dataclass(frozen=True)
class Request:
    """What was asked for, taken apart.

    Attributes:
        entries: a row for each model, before any sweep.
        dataset: its name, where it was given.
        files: config files of all rows.
        settings: config keys of all rows, of the benchmark's file.
        texts: the same of the command line, as text.
        sweep: values by key.
    """

    entries: Sequence[Row]
    dataset: str | None
    files: Sequence[str]
    settings: Mapping[str, Any]
    texts: Mapping[str, str]
    sweep: Mapping[str, Sequence[Any]]

    @property
    def shared(self) -> dict[str, Any]:
        """The user's settings of all rows."""
        files = {"config_files": list(self.files)} if self.files else {}
        texts = {key: parse_value(text) for key, text in self.texts.items()}
        return {**files, **self.settings, **texts}


def take_apart(options: dict[str, str], asked: dict[str, Any]) -> Request:
    files = [*_list(asked.pop("config_files", [])), *options.pop("config_files", "").split()]
    dataset = options.pop("dataset", None) or asked.pop("dataset", None)
    models = options.pop("model", None) or asked.pop("models", None)
    sweep = dict(asked.pop("sweep", None) or {})
    texts = {}
    for key, text in options.items():
        values = _values(key, text)
        if len(values) > 1:
            sweep[key] = [parse_value(value) for value in values]
        else:
            texts[key] = text
    settings = {key: value for key, value in asked.items() if key not in KEYS}
    return Request(_models(models, files), dataset, files, settings, texts, sweep)


# --------------------------------------------------------------------------- what was asked


def _from_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    asked = read_yaml(Path(path))
    if "models" not in asked and "model" in asked:
        asked["models"] = asked.pop("model")
    for key in ("models", "sweep"):
        if key in asked and not isinstance(asked[key], (dict, list, str)):
            raise UsageError(f"benchmark {path}: {key} must be a list or a mapping")
    if not isinstance(asked.get("sweep", {}), (dict, type(None))):
        raise UsageError(f"benchmark {path}: sweep must map config keys to lists of values")
    for key, values in (asked.get("sweep") or {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"benchmark {path}: sweep of {key} must be a list of values")
    return asked


def _option(key: str, text: str) -> Any:
    if key in ("name", "baseline"):
        return text
    if key in ("columns", "models"):
        return split_list(text)
    if key == "sweep":
        raise UsageError("a sweep is written --KEY=VALUE,VALUE,...")
    return parse_value(text)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else str(value).split()


def _models(asked: Any, files: Sequence[str]) -> list[Row]:
    """A row for each entry of ``models``, before any sweep."""
    if asked is None:
        asked = next(
            (content["model"] for f in files if "model" in (content := read_yaml(Path(f)))), None
        )
    if isinstance(asked, str):
        asked = split_list(asked)
    if not asked:
        raise UsageError("which models? --model=NAME,NAME,..., or models: in --benchmark=FILE")
    rows = []
    for label, settings in asked.items() if isinstance(asked, dict) else ((m, {}) for m in asked):
        if not isinstance(settings, (dict, type(None))):
            raise UsageError(f"models: {label} must be followed by a mapping of config keys")
        settings = dict(settings or {})
        rows.append(Row(str(label), str(settings.pop("model", label)), settings))
    labels = [row.label for row in rows]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UsageError(f"models: {', '.join(sorted(twice))} stands there twice")
    return rows


def _rows(request: Request) -> list[Row]:
    """Each entry with each combination of the swept values that has an effect on it."""
    rows = []
    for entry in request.entries:
        model = find_model(entry.model)
        settings = dict(entry.settings)
        if not issubclass(model, EntireSpaceRecommender):
            given = {**request.settings, **request.texts, **request.sweep, **settings}
            if "task" not in given:
                settings["task"] = "both"  # all three tasks, as the others have them
        keys = [k for k in request.sweep if k not in entry.settings and has_effect(k, model)]
        for values in itertools.product(*(request.sweep[key] for key in keys)):
            swept = dict(zip(keys, values, strict=True))
            shown = ", ".join(f"{key}={value}" for key, value in swept.items())
            label = f"{entry.label}, {shown}" if shown else entry.label
            rows.append(Row(label, entry.model, {**settings, **swept}, swept))
    return rows


def has_effect(key: str, model: type) -> bool:
    """Whether a model reads a key; no one asks this of keys that aren't about models."""
    if issubclass(model, EntireSpaceRecommender):
        own = model_defaults(model)
        if key in _OF_WEIGHTS and not model.weighs_clicks():
            return False
        as_in_the_base = model.risks is EntireSpaceRecommender.risks
        if key == "counterfactual_weight" and as_in_the_base and not has_counterfactual_risk(model):
            return False
        if key == "global_weight" and as_in_the_base and not model.has_global_risk:
            return False
    else:
        own = Config(model, "none").internal_config_dict
    return key in own or all(key not in model_defaults(other) for other in MODELS)


def config_of(row: Row, request: Request) -> Config:
    """The config of a row: shared settings, those of the command line, then its own."""
    own = dict(row.settings)
    files = [*request.files, *_list(own.pop("config_files", []))]
    model = find_model(row.model)
    effective = {key: text for key, text in request.texts.items() if has_effect(key, model)}
    texts = {key: text for key, text in effective.items() if key not in own}
    try:
        return Config(model, request.dataset, files, {**request.settings, **own}, texts)
    except UsageError as error:
        raise UsageError(f"{row.label}: {error}") from error


def _seeds(asked: Any, first: int) -> list[int]:
    if isinstance(asked, tuple):
        asked = list(asked)
    if isinstance(asked, list):
        seeds = [whole_number("seeds", seed, 0) for seed in asked]
        if not seeds or len(set(seeds)) < len(seeds):
            raise UsageError(f"seeds must be a number, or a list of different ones, got {asked!r}")
        return seeds
    return list(range(first, first + whole_number("seeds", asked, 1)))


def whole_number(key: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise UsageError(f"{key} must be a whole number >= {least}, got {value!r}")
    return value


def true_or_false(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{key} must be True or False, got {value!r}")
    return value


def _columns(asked: Any, config: Config) -> list[str]:
    if asked is None:
        wanted = [*DEFAULT_COLUMNS, config["valid_metric"]]
        return list(dict.fromkeys(wanted))
    names = [str(name) for name in (asked if isinstance(asked, list) else split_list(str(asked)))]
    for name in names:
        if not is_metric(name):
            raise UsageError(
                f"columns: there is no metric '{name}'{did_you_mean(name, METRIC_NAMES)}"
            )
    shown = [canonical_name(name) for name in names]
    return [n[:-1] + str(config["topk"][0]) if n.endswith("@K") else n for n in shown]


# --------------------------------------------------------------------------- runs


def runs_of(
    rows: Sequence[Row],
    seeds: Sequence[int],
    configs: Mapping[str, Config],
    columns: Sequence[str],
) -> list[Run]:
    runs = {}
    for row in rows:
        config = configs[row.label]
        metrics = [*config["metrics"], *(n for n in columns if n not in config["metrics"])]
        settings = {**plain(config.external_config_dict), "metrics": metrics}
        settings = {k: v for k, v in settings.items() if k not in ("model", "dataset")}
        effective = {**plain(config.final_config_dict), "metrics": metrics}
        known = {
            "model": model_path(config.model_class),
            "code": _code(config.model_class),
            "version": __version__,
            "data": _data(config),
            "config": {k: v for k, v in effective.items() if k not in _WITHOUT_EFFECT},
        }
        for seed in seeds:
            known["config"]["seed"] = seed
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
            name = "-".join([config["model"], config["dataset"], f"seed{seed}", digest])
            runs[seed, row.label] = Run(
                row, seed, row.model, config["dataset"], {**settings, "seed": seed}, name
            )
    return [runs[seed, row.label] for seed in seeds for row in rows]


def _code(model: type) -> list[str]:
    """Digests of the source files that a model of the user's own is made of."""
    files = {
        inspect.getsourcefile(part)
        for part in model.__mro__
        if part.__module__.partition(".")[0]
        not in ("builtins", "recbole", "recbole_escm2", "torch")
    }
    return sorted(
        hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for file in files
        if file and Path(file).is_file()
    )


def _data(config: Config) -> Any:
    schema = open_store(config).schema
    return {key: plain(schema[key]) for key in ("settings", "made_from")}
