"""An experiment: rows × seeds, and before them the trials that choose the settings of the rows."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError, checked_name, did_you_mean
from recbole_escm2.experiment.planned import OF_TRIALS, PlannedRun, plan_run
from recbole_escm2.experiment.pruning import PRUNERS
from recbole_escm2.experiment.request import Request, checked, read_request, split_list
from recbole_escm2.experiment.screening import Screen, read_screen
from recbole_escm2.experiment.seeds import Seeds, aa_row, read_seeds
from recbole_escm2.experiment.study import DEFAULT_COLUMNS, Row, Tuning
from recbole_escm2.experiment.trials import Candidate, best_settings, candidates
from recbole_escm2.keys import BOOLEAN, COUNT
from recbole_escm2.metric_names import METRIC_NAMES, canonical_name, is_metric
from recbole_escm2.threads import threads_of


@dataclass(frozen=True)
class Experiment:
    """What is to be run and compared.

    Attributes:
        request: what was asked for.
        dataset: the data set's name.
        rows: of the table, the A/A row as the last.
        seeding: the seeds of each row, and that of the trials.
        draws: what they draw, by the row's label: ``world``, ``split`` or ``weights``.
        baseline: label of the row that the others are compared with.
        columns: metrics of the table.
        named: metrics that the user named.
        primary: the metrics that verdicts are about; empty where the data decides.
        metric: of validation.
        output_dir: where everything goes.
        name: of the report's folder.
        jobs: processes at once.
        fresh: run everything anew.
        saved: keep the checkpoints.
        trials: settings that are tried a row; 1 is no tuning.
        pruner: what ends hopeless trials, one of :data:`~pruning.PRUNERS`.
        screen: what rows have to pass before they are tuned, where there is such a thing.
        screening: what is tried for it.
        tuning: where rows are tuned first, what is tried.
        runs: the others, seed by seed, so that a stopped experiment has whole seeds; with
            ``trials``, as they are before any tuning.
    """

    request: Request
    dataset: str
    rows: Sequence[Row]
    seeding: Seeds
    draws: Mapping[str, str]
    baseline: str
    columns: Sequence[str]
    named: Sequence[str]
    primary: Sequence[str]
    metric: str
    output_dir: Path
    name: str
    jobs: int
    fresh: bool
    saved: bool
    trials: int
    pruner: str = PRUNERS[0]
    screen: Screen | None = None
    screening: Sequence[Candidate] = ()
    tuning: Sequence[Candidate] = ()
    runs: Sequence[PlannedRun] = ()

    @property
    def seeds(self) -> Sequence[int]:
        """Of each row."""
        return self.seeding.of_table

    @property
    def protocol(self) -> dict[str, Any]:
        """What is the same for all rows, by its name."""
        tuned = self.trials > 1
        return {
            "dataset": self.dataset,
            "seeds": [*self.seeds],
            "valid_metric": self.metric,
            "trials": self.trials,
            "tuning_seed": self.seeding.of_tuning,
            "tuning_share": self.seeding.tuning_share if tuned else None,
            "pruner": self.pruner,
            "settings": self.request.settings_of_all,
        }

    def run_of(self, row: Row, config: Config, seed: int, trial: bool = False) -> PlannedRun:
        """The run of a row, or of one that is tried, with a seed."""
        own = self.seeding.settings(row, config, seed, trial)
        if trial:
            own = {**own, **OF_TRIALS}
        return plan_run(row, config, own, threads_of(self.jobs), self.columns, self.saved)

    def with_runs(self, rows: Sequence[Row], configs: Mapping[str, Config]) -> Experiment:
        """The same with rows of these configs, by label, and their runs."""
        runs = [self.run_of(row, configs[row.label], seed) for seed in self.seeds for row in rows]
        return replace(self, rows=rows, runs=runs)


@contextlib.contextmanager
def _warning_once() -> Iterator[None]:
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


@_warning_once()
def make_experiment(options: Mapping[str, Any]) -> Experiment:
    """The experiment that a command line asks for.

    Args:
        options: of the command line, see :func:`read_request`.

    Raises:
        UsageError: whatever is wrong with them, or with the data.
    """
    request = read_request(options)
    about, rows = request.about, request.rows()
    configs = {row.label: request.config(row) for row in rows}
    first = configs[rows[0].label]
    baseline = str(about.get("baseline") or rows[0].label)
    if baseline not in configs:
        raise UsageError(
            f"baseline '{baseline}' is no row{did_you_mean(baseline, configs)}. "
            f"Rows: {', '.join(configs)}"
        )
    trials = checked("trials", about.get("trials", 1), COUNT)
    seeding = read_seeds(about, configs.values(), trials)
    screen = read_screen(about.get("screen"), rows, baseline, trials)
    if _with_aa_row(about, rows, seeding):
        rows = [*rows, aa_row(rows, baseline)]
        configs[rows[-1].label] = configs[baseline]
    experiment = Experiment(
        request=request,
        dataset=first["dataset"],
        rows=rows,
        seeding=seeding,
        draws={label: seeding.draws(config) for label, config in configs.items()},
        baseline=baseline,
        columns=_columns(about.get("columns"), first),
        named=_named(about.get("columns"), first),
        primary=tuple(first["primary"] or ()),
        metric=first["valid_metric"],
        output_dir=Path(first["output_dir"]).absolute(),
        name=str(about.get("name") or ""),
        jobs=checked("jobs", about.get("jobs", 1), COUNT),
        fresh=checked("fresh", about.get("fresh", False), BOOLEAN),
        saved=checked("saved", about.get("saved", False), BOOLEAN),
        trials=trials,
        pruner=_pruner(about.get("pruner"), trials, screen),
        screen=screen,
    ).with_runs(rows, configs)
    if trials > 1:
        experiment = replace(experiment, tuning=_tuning(experiment, trials))
    if screen is not None:
        experiment = replace(experiment, screening=_tuning(experiment, screen.settings))
    if not (name := experiment.name):
        runs = [*experiment.runs, *(candidate.run for candidate in experiment.tuning)]
        digest = hashlib.sha256(" ".join(sorted(run.name for run in runs)).encode()).hexdigest()
        name = f"benchmark-{first['dataset']}-{digest[:8]}"
    return replace(experiment, name=checked_name(name, "name"))


def _pruner(given: Any, trials: int, screen: Screen | None) -> str:
    """What ends hopeless trials: a screening halves, where nobody says otherwise."""
    pruner = PRUNERS[screen is not None] if given is None else given
    if pruner not in PRUNERS:
        raise UsageError(f"pruner must be {' or '.join(PRUNERS)}, got {given!r}")
    if given == "halving" and trials == 1:
        raise UsageError("pruner: it ends trials, of which there are none: --trials=N")
    return str(pruner)


def _tuning(experiment: Experiment, trials: int) -> list[Candidate]:
    """What is tried with so many settings a row, row by row."""
    seed = experiment.seeding.of_tuning
    assert seed is not None

    def plan(row: Row, config: Config) -> PlannedRun:
        return experiment.run_of(row, config, seed, trial=True)

    return [
        candidate
        for row in experiment.rows
        if not row.aa
        for candidate in candidates(experiment.request, row, trials, seed, plan)
    ]


def with_carried_on_rows(experiment: Experiment, labels: Collection[str]) -> Experiment:
    """The experiment with the rows that a screening has left, and the A/A row."""
    return replace(
        experiment,
        rows=[row for row in experiment.rows if row.aa or row.label in labels],
        runs=[run for run in experiment.runs if run.row.aa or run.row.label in labels],
        tuning=[candidate for candidate in experiment.tuning if candidate.row in labels],
    )


@_warning_once()
def with_tuned_rows(experiment: Experiment, tuning: Tuning) -> Experiment:
    """The experiment with the settings in its rows that were best on validation.

    The A/A row has the baseline's.
    """
    rows = []
    for row in experiment.rows:
        config = experiment.request.config(row)
        best = best_settings(tuning, experiment.baseline if row.aa else row.label, config)
        rows.append(replace(row, settings={**row.settings, **best}))
    return experiment.with_runs(rows, {row.label: experiment.request.config(row) for row in rows})


def _with_aa_row(about: Mapping[str, Any], rows: Sequence[Row], seeds: Seeds) -> bool:
    several = len(seeds.of_table) > 1
    if about.get("aa_row") is None:
        return several and len(rows) > 1
    wanted: bool = checked("aa_row", about["aa_row"], BOOLEAN)
    if wanted and not several:
        raise UsageError("aa_row needs at least two seeds: with one there is no test")
    return wanted


def _named(columns: Any, config: Config) -> list[str]:
    """The metrics that the user names: as columns of the table, or by a config key."""
    external = config.external_config_dict
    keys = (key for key in ("metrics", "primary") if external.get(key) is not None)
    own = [] if columns is None else _columns(columns, config)
    return list(dict.fromkeys([*own, *(name for key in keys for name in config[key])]))


def _columns(given: Any, config: Config) -> list[str]:
    if given is None:
        return list(dict.fromkeys([*DEFAULT_COLUMNS, config["valid_metric"]]))
    names = [str(name) for name in (given if isinstance(given, list) else split_list(str(given)))]
    for name in names:
        if not is_metric(name):
            close = did_you_mean(name, METRIC_NAMES)
            raise UsageError(f"columns: there is no metric '{name}'{close}")
    shown = [canonical_name(name) for name in names]
    return [n[:-1] + str(config["topk"][0]) if n.endswith("@K") else n for n in shown]
