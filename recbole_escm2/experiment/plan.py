"""From what was asked for to runs, each known by all that its numbers depend on."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import torch

from recbole_escm2 import __version__
from recbole_escm2.config import PLACE_KEYS, Config
from recbole_escm2.data.open_store import identity, open_store
from recbole_escm2.errors import UsageError, did_you_mean, plain_name
from recbole_escm2.evaluator.catalogue import (
    METRIC_NAMES,
    PRIMARY_CVR,
    canonical_name,
    is_metric,
)
from recbole_escm2.experiment.code import code_of
from recbole_escm2.experiment.request import Request, read_request, split_list
from recbole_escm2.experiment.seeds import Seeds, aa_row, tuning_seed_of, worlds_apart
from recbole_escm2.experiment.study import DEFAULT_COLUMNS, Row, Tuning
from recbole_escm2.experiment.tuning import Candidate, candidates, tuned
from recbole_escm2.model.lookup import model_path
from recbole_escm2.output import plain
from recbole_escm2.threads import threads_of

# Config keys that change no number of a run; the data is known by the fingerprint of its store.
_WITHOUT_EFFECT = PLACE_KEYS | {"primary"}


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
        threads: that it computes with: sums are rounded by what each thread adds up.
        name: the folder's: model, data set, seed, and a digest of all that its numbers depend on.
    """

    row: Row
    seed: int
    model: str
    dataset: str
    settings: Mapping[str, Any]
    code: str
    threads: int
    name: str


@dataclass(frozen=True)
class Plan:
    """A benchmark before it runs.

    Attributes:
        dataset: the data set's name.
        rows: of the table, the A/A row as the last.
        seeding: the seeds of each row.
        draws: what they draw, by the row's label: ``world``, ``split`` or ``weights``.
        baseline: label of the row that the others are compared with.
        columns: metrics of the table.
        primary: the metrics that verdicts are about; empty where the data decides.
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
        metric: of validation.
    """

    dataset: str
    rows: Sequence[Row]
    seeding: Seeds
    draws: Mapping[str, str]
    baseline: str
    columns: Sequence[str]
    primary: Sequence[str]
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
    metric: str

    @property
    def seeds(self) -> Sequence[int]:
        """Of each row."""
        return self.seeding.of_table


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
    baseline = str(asked.get("baseline") or rows[0].label)
    if baseline not in configs:
        raise UsageError(
            f"baseline '{baseline}' is no row{did_you_mean(baseline, configs)}. "
            f"Rows: {', '.join(configs)}"
        )
    columns = _columns(asked.get("columns"), first)
    jobs = whole_number("jobs", asked.get("jobs", 1), 1)
    threads = threads_of(jobs)
    trials = whole_number("trials", asked.get("trials", 1), 1)
    seeds = _seeds(asked, configs, trials)
    if _with_aa_row(asked, rows, seeds):
        rows = [*rows, aa_row(rows, baseline)]
        configs[rows[-1].label] = configs[baseline]
    runs = runs_of(rows, seeds.of_table, configs, columns, seeds.settings, threads=threads)
    tuning = _tuning(request, rows, trials, seeds, columns, threads) if trials > 1 else []
    names = sorted(run.name for run in [*runs, *(run for _, run in tuning)])
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
    return Plan(
        dataset=first["dataset"],
        rows=rows,
        seeding=seeds,
        draws={label: seeds.draws(config) for label, config in configs.items()},
        baseline=baseline,
        columns=columns,
        primary=tuple(first["primary"] or ()),
        shared=request.shared,
        output_dir=Path(first["output_dir"]).absolute(),
        name=plain_name(str(asked.get("name") or f"benchmark-{first['dataset']}-{digest}"), "name"),
        jobs=jobs,
        fresh=_true_or_false("fresh", asked.get("fresh", False)),
        saved=_true_or_false("saved", asked.get("saved", False)),
        runs=runs,
        request=request,
        tuning=tuning,
        trials=trials,
        metric=first["valid_metric"],
    )


@_said_once()
def with_tuned_rows(plan: Plan, tuning: Tuning) -> Plan:
    """The plan with the settings in its rows that were best on validation."""
    rows = tuned(plan.request, plan.rows, tuning, plan.baseline)
    configs = {row.label: plan.request.config(row) for row in rows}
    threads = threads_of(plan.jobs)
    runs = runs_of(rows, plan.seeds, configs, plan.columns, plan.seeding.settings, threads=threads)
    return replace(plan, rows=rows, runs=runs)


def _tuning(
    request: Request,
    rows: Sequence[Row],
    trials: int,
    seeds: Seeds,
    columns: Sequence[str],
    threads: int,
) -> list[tuple[Candidate, Run]]:
    """What is tried, row by row, with its runs."""
    assert seeds.of_tuning is not None
    tried = candidates(request, [row for row in rows if not row.aa], trials, seeds.of_tuning)
    configs = {one.row.label: one.config for one in tried}
    settings, of_tried = partial(seeds.settings, trial=True), [one.row for one in tried]
    runs = runs_of(of_tried, [seeds.of_tuning], configs, columns, settings, threads=threads)
    return list(zip(tried, runs, strict=True))


def _seed_alone(row: Row, config: Config, seed: int) -> dict[str, Any]:
    return {"seed": seed}


def runs_of(
    rows: Sequence[Row],
    seeds: Sequence[int],
    configs: Mapping[str, Config],
    columns: Sequence[str] = (),
    settings_of: Callable[[Row, Config, int], dict[str, Any]] = _seed_alone,
    *,
    threads: int,
) -> list[Run]:
    """The runs of rows, seed by seed.

    Args:
        rows: of the table.
        seeds: of each row.
        configs: by the row's label.
        columns: metrics that each run computes, besides those of its config.
        settings_of: the config keys that make a run that of a seed.
        threads: of each run.

    Raises:
        UsageError: whatever is wrong with the data. Where each seed has a world of its own, which
            its first run makes, it is the run that says what is wrong there.
    """
    runs = {}
    for row in rows:
        config = configs[row.label]
        needed = [*columns, *(config["primary"] or ("CTCVR_AUC", *PRIMARY_CVR))]
        metrics = list(dict.fromkeys([*config["metrics"], *needed]))
        settings = {**plain(config.external_config_dict), "metrics": metrics}
        settings = {k: v for k, v in settings.items() if k not in ("model", "dataset")}
        effective = {**plain(config.final_config_dict), "metrics": sorted(metrics)}
        code = code_of(config.model_class)
        known: dict[str, Any] = {
            "model": model_path(config.model_class),
            "code": code,
            "versions": [__version__, recbole.__version__, torch.__version__, np.__version__],
            "threads": threads,
        }
        for seed in seeds:
            own = settings_of(row, config, seed)
            known["data"] = _data(config, own)
            of_run = {**effective, **own}
            known["config"] = {k: _number(v) for k, v in of_run.items() if k not in _WITHOUT_EFFECT}
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
            name = "-".join([config["model"], config["dataset"], f"seed{seed}", digest])
            runs[seed, row.label] = Run(
                row=row,
                seed=seed,
                model=row.model,
                dataset=config["dataset"],
                settings={**settings, **own},
                code=code,
                threads=threads,
                name=name,
            )
    return [runs[seed, row.label] for seed in seeds for row in rows]


def _number(value: Any) -> Any:
    """1 and 1.0 are one setting."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _data(config: Config, own: Mapping[str, Any]) -> Any:
    """What tells the data of a run from other data."""
    if "simulation_seed" not in own:
        open_store(config)  # so that what is wrong with the data is said before anything runs
    of_run = copy.copy(config)
    of_run.final_config_dict = {**config.final_config_dict, **own}
    return plain(identity(of_run))


def _seeds(asked: Mapping[str, Any], configs: Mapping[str, Config], trials: int) -> Seeds:
    first = next(iter(configs.values()))
    of_table = _seed_list(asked.get("seeds", 1), first["seed"])
    share = asked.get("tuning_share", Seeds.tuning_share)
    if type(share) not in (int, float) or not 0 < share < 1:
        raise UsageError(f"tuning_share must be a number between 0 and 1, got {share!r}")
    worlds = worlds_apart(configs.values())
    of_tuning = asked.get("tuning_seed")
    if of_tuning is not None:
        whole_number("tuning_seed", of_tuning, 0)
    return Seeds(
        of_table,
        worlds,
        tuning_seed_of(of_tuning, of_table, worlds) if trials > 1 else None,
        share,
    )


def _seed_list(asked: Any, first: int) -> list[int]:
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


def _with_aa_row(asked: Mapping[str, Any], rows: Sequence[Row], seeds: Seeds) -> bool:
    several = len(seeds.of_table) > 1
    wanted = asked.get("aa_row")
    if wanted is None:
        return several and len(rows) > 1
    if _true_or_false("aa_row", wanted) and not several:
        raise UsageError("aa_row needs at least two seeds: with one there is no test")
    return bool(wanted)


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
