"""From what was asked for to runs, each known by all that its numbers depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import torch

from recbole_escm2 import __version__
from recbole_escm2.benchmark.code import code_of
from recbole_escm2.benchmark.request import Request, read_request, split_list
from recbole_escm2.benchmark.study import DEFAULT_COLUMNS, Row, Tuning
from recbole_escm2.benchmark.tuning import Candidate, candidates, tuned
from recbole_escm2.checkpoint import plain
from recbole_escm2.config import Config
from recbole_escm2.data.sources import open_store
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.evaluator.catalogue import METRIC_NAMES, canonical_name, is_metric
from recbole_escm2.model.lookup import model_path

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
        code: digest of the code that it runs.
        name: the folder's: model, data set, seed, and a digest of all that its numbers depend on.
    """

    row: Row
    seed: int
    model: str
    dataset: str
    settings: Mapping[str, Any]
    code: str
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
        runs: all of them, seed by seed, so that a stopped benchmark has whole seeds; with
            ``trials``, as they are before any tuning.
        request: what was asked for.
        tuning: where rows are tuned first, what is tried, each with its run.
        trials: settings that are tried a row; 1 is no tuning.
        tuning_seed: of what is tried.
        metric: of validation.
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
    request: Request
    tuning: Sequence[tuple[Candidate, Run]]
    trials: int
    tuning_seed: int
    metric: str


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """While the configurations of many runs are made, each warning is said for the first one."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in said
        said.add(message)
        return new

    logging.getLogger().addFilter(is_new)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_new)


@_said_once()
def make_plan(options: Mapping[str, str]) -> Plan:
    """The plan of a benchmark.

    Args:
        options: of the command line, see :func:`read_request`.

    Raises:
        UsageError: whatever is wrong with them, or with the data.
    """
    request = read_request(options)
    asked, rows = request.about, request.rows()
    configs = {row.label: request.config(row) for row in rows}
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
    trials = whole_number("trials", asked.get("trials", 1), 1)
    tuning_seed = whole_number("tuning_seed", asked.get("tuning_seed", 1), 0)
    tuning = _tuning(request, rows, trials, tuning_seed, columns) if trials > 1 else []
    names = sorted(run.name for run in [*runs, *(run for _, run in tuning)])
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
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
        fresh=_true_or_false("fresh", asked.get("fresh", False)),
        saved=_true_or_false("saved", asked.get("saved", False)),
        runs=runs,
        request=request,
        tuning=tuning,
        trials=trials,
        tuning_seed=tuning_seed,
        metric=first["valid_metric"],
    )


@_said_once()
def with_tuned_rows(plan: Plan, tuning: Tuning) -> Plan:
    """The plan with the settings in its rows that were best on validation."""
    rows = tuned(plan.request, plan.rows, tuning)
    configs = {row.label: plan.request.config(row) for row in rows}
    return replace(plan, rows=rows, runs=runs_of(rows, plan.seeds, configs, plan.columns))


def _tuning(
    request: Request, rows: Sequence[Row], trials: int, seed: int, columns: Sequence[str]
) -> list[tuple[Candidate, Run]]:
    """What is tried, row by row, with its runs."""
    tried = candidates(request, rows, trials, seed)
    configs = {one.row.label: one.config for one in tried}
    runs = runs_of([one.row for one in tried], [seed], configs, columns)
    return list(zip(tried, runs, strict=True))


def runs_of(
    rows: Sequence[Row],
    seeds: Sequence[int],
    configs: Mapping[str, Config],
    columns: Sequence[str] = (),
) -> list[Run]:
    """The runs of rows, seed by seed.

    Args:
        rows: of the table.
        seeds: of each row.
        configs: by the row's label.
        columns: metrics that each run computes, besides those of its config.

    Raises:
        UsageError: whatever is wrong with the data.
    """
    runs = {}
    for row in rows:
        config = configs[row.label]
        metrics = [*config["metrics"], *(n for n in columns if n not in config["metrics"])]
        settings = {**plain(config.external_config_dict), "metrics": metrics}
        settings = {k: v for k, v in settings.items() if k not in ("model", "dataset")}
        effective = {**plain(config.final_config_dict), "metrics": sorted(metrics)}
        code = code_of(config.model_class)
        known = {
            "model": model_path(config.model_class),
            "code": code,
            "versions": [__version__, recbole.__version__, torch.__version__, np.__version__],
            "data": _data(config),
            "config": {k: _number(v) for k, v in effective.items() if k not in _WITHOUT_EFFECT},
        }
        for seed in seeds:
            known["config"]["seed"] = seed
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
            name = "-".join([config["model"], config["dataset"], f"seed{seed}", digest])
            runs[seed, row.label] = Run(
                row, seed, row.model, config["dataset"], {**settings, "seed": seed}, code, name
            )
    return [runs[seed, row.label] for seed in seeds for row in rows]


def _number(value: Any) -> Any:
    """1 and 1.0 are one setting."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _data(config: Config) -> Any:
    schema = open_store(config).schema
    return {key: plain(schema[key]) for key in ("settings", "made_from")}


def _seeds(asked: Any, first: int) -> list[int]:
    if isinstance(asked, tuple):
        asked = list(asked)
    if not isinstance(asked, list):
        return list(range(first, first + whole_number("seeds", asked, 1)))
    seeds = [whole_number("seeds", seed, 0) for seed in asked]
    if not seeds or len(set(seeds)) < len(seeds) or max(seeds) >= 2**31:
        raise UsageError(
            f"seeds must be a number, or a list of different ones below 2^31, got {asked!r}"
        )
    return seeds


def whole_number(key: str, value: Any, least: int) -> int:
    """The value of a key that must be a whole number.

    Raises:
        UsageError: it isn't one, or less than ``least``.
    """
    if type(value) is not int or value < least:
        raise UsageError(f"{key} must be a whole number >= {least}, got {value!r}")
    return value


def _true_or_false(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{key} must be True or False, got {value!r}")
    return value


def _columns(asked: Any, config: Config) -> list[str]:
    if asked is None:
        return list(dict.fromkeys([*DEFAULT_COLUMNS, config["valid_metric"]]))
    names = [str(name) for name in (asked if isinstance(asked, list) else split_list(str(asked)))]
    for name in names:
        if not is_metric(name):
            close = did_you_mean(name, METRIC_NAMES)
            raise UsageError(f"columns: there is no metric '{name}'{close}")
    shown = [canonical_name(name) for name in names]
    return [n[:-1] + str(config["topk"][0]) if n.endswith("@K") else n for n in shown]
