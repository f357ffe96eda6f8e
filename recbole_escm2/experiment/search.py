"""Hyper-parameter search: Optuna proposes, each trial is a run, the best one is a config file."""

from __future__ import annotations

import platform
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from recbole_escm2.config import PAIR, Config, learns_both, parse_value
from recbole_escm2.errors import UsageError, plain_name
from recbole_escm2.evaluator.catalogue import score_of
from recbole_escm2.experiment.interrupt import say, terminated_as_interrupted
from recbole_escm2.experiment.plan import Run, runs_of, whole_number
from recbole_escm2.experiment.request import Request, read_request
from recbole_escm2.experiment.runs import Outcome, Process, execute, finished
from recbole_escm2.experiment.space import (
    Space,
    pair_settings,
    pair_space,
    random_seed_of,
    ranges_of,
    settings_of,
)
from recbole_escm2.experiment.study import Row
from recbole_escm2.model.lookup import model_path
from recbole_escm2.output import csv_text, lock, make_folder, plain, table, write_whole
from recbole_escm2.threads import threads_of

#: Options of a search besides config keys, with their defaults.
OPTIONS: Mapping[str, Any] = {
    "trials": 20,
    "params_file": None,
    "sampler": "tpe",
    "pruner": "median",
    "jobs": 1,
    "name": None,
    "storage": None,
}
_SHOWN_TRIALS = 10
_PRUNED = "pruned"
_AT_WORK = "the same values were at work"
_SUBJECT = "subject"
_ABANDONED = "abandoned"  # numbers of the trials that were stopped and queued again
_SCORES = "scores"  # of the two models of a pair: metric, score, whether bigger is better
# What a search notes of a trial.
_ATTRIBUTES = {
    **{"owner": str, "reason": str, "run": str, "test_result": dict, "validations": int},
    _SCORES: dict,
}
_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Search:
    """A search before it runs.

    Attributes:
        request: the settings that all trials share.
        config: those, as a config.
        model: as ``--model`` takes it.
        space: what may be chosen.
        trials: how many, those of earlier starts included; a CTR and a CVR model as a pair are two
            trainings a trial, and have half as many.
        jobs: trials at once.
        sampler: ``tpe`` or ``random``.
        pruner: ``median`` or ``none``.
        folder: of the search.
        storage: Optuna's, as a URL.
        name: of the study in the storage.
    """

    request: Request
    config: Config
    model: str
    space: Space
    trials: int
    jobs: int
    sampler: str
    pruner: str
    folder: Path
    storage: str
    name: str

    @property
    def alone(self) -> FileLock:
        """Held by one search of several on the same study at a time, for as long as it takes."""
        return lock(self.folder / "lock")

    @property
    def output_dir(self) -> Path:
        """Where the runs go."""
        return self.folder.parent

    def settings(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What was chosen, as config values."""
        chosen = settings_of(parameters, self.space)
        return pair_settings(chosen, self.config) if learns_both(self.config) else chosen

    def run_of(self, number: int, settings: Mapping[str, Any], threads: int | None = None) -> Run:
        """The run of a trial, by default with its share of the cores."""
        threads = threads_of(self.jobs) if threads is None else threads
        row = self.row_of(f"trial {number}", settings)
        config = self.request.config(row)
        (run,) = runs_of([row], [config["seed"]], {row.label: config}, threads=threads)
        return run

    def row_of(self, label: str, settings: Mapping[str, Any]) -> Row:
        """The model with those of the settings that act on it: its backbone may be among them."""
        row = Row(label, self.model, settings)
        return replace(row, settings=self.request.acting(row, settings))

    def subject(self) -> dict[str, str]:
        """What trials of one study have in common; with anything else they can't be compared."""
        return {
            "settings or data": self.run_of(0, {}, threads=1).name,  # whatever --jobs is
            "valid_metric": self.config["valid_metric"],
            "ranges": repr(sorted(self.space.items())),
        }


def search(options: Mapping[str, str]) -> int:
    """Search, or go on searching, and write the best settings as a config file.

    Args:
        options: of the command line, as text.

    Returns:
        The exit code: 0, or 130 where it was stopped.

    Raises:
        UsageError: something that the caller can mend.
    """
    asked = make_search(options)
    make_folder("output_dir", asked.folder)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stopped = False
    owner = asked.folder / f"{uuid.uuid4().hex}.owner"
    with lock(owner):
        with asked.alone:
            study = _open(asked)
            _take_over(study, asked)
            _try_again(study)
        say(
            f"{asked.model} on {asked.config['dataset']}: {asked.trials} trials, "
            f"{len(_over(study))} are done; {', '.join(asked.space)}"
        )
        try:
            with terminated_as_interrupted():
                _search(study, asked, owner)
        except KeyboardInterrupt:
            stopped = True
            say("stopped; the same command goes on from here")
    owner.unlink(missing_ok=True)
    _show(study, asked, stopped)
    return 130 if stopped else 0


def _open(asked: Search) -> optuna.Study:
    """The study, made where it isn't there.

    Raises:
        UsageError: the storage can't be had, or the study is of something else.
    """
    pruner = optuna.pruners.MedianPruner() if asked.pruner == "median" else None
    try:
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(asked.storage),
            study_name=asked.name,
            direction="maximize" if asked.config["valid_metric_bigger"] else "minimize",
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        trials, about = study.get_trials(deepcopy=False), study.user_attrs
    except Exception as error:  # each database has errors of its own
        raise UsageError(f"storage {asked.storage}: {error}") from error
    before, subject = about.get(_SUBJECT), asked.subject()
    if not isinstance(about.get(_ABANDONED, []), list) or not isinstance(before, dict | None):
        raise UsageError(f"storage {asked.storage} wasn't written by a search")
    if before is None:
        study.set_user_attr(_SUBJECT, subject)
    elif before != subject:
        changed = ", ".join(key for key in subject if before.get(key) != subject[key])
        raise UsageError(
            f"the search '{asked.name}' was begun with other {changed}: trials of both can't be "
            "compared. Give this one another --name"
        )
    _check_trials(trials, asked)
    return study


def _check_trials(trials: Sequence[FrozenTrial], asked: Search) -> None:
    """What a database holds is data: it may say which of the ranges' values were tried, no more.

    Raises:
        UsageError: a trial has other keys or values.
    """
    for trial in trials:
        queued = trial.system_attrs.get("fixed_params", {})
        for key, value in [*trial.params.items(), *dict(queued).items()]:
            if key not in asked.space or not _within(value, asked.space[key]):
                raise UsageError(
                    f"the search '{asked.name}' holds a trial with {key} = {value!r}, which isn't "
                    "in its ranges: no search has written it. Give this one another --name"
                )
        for name, kind in _ATTRIBUTES.items():
            if not isinstance(trial.user_attrs.get(name, kind()), kind):
                raise UsageError(f"storage {asked.storage} wasn't written by a search: {name}")
        scores = trial.user_attrs.get(_SCORES, {})
        pair = learns_both(asked.config) and trial.state == TrialState.COMPLETE
        if [*scores] != [*(PAIR if pair else ())] or not all(map(_is_score, scores.values())):
            raise UsageError(f"storage {asked.storage} wasn't written by a search: {_SCORES}")


def _is_score(value: Any) -> bool:
    return isinstance(value, list) and [*map(type, value)] == [str, float, bool]


def _within(value: Any, values: BaseDistribution) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    assert isinstance(values, FloatDistribution)
    slack = 1e-9 * max(abs(values.low), abs(values.high))  # a logarithm and back
    return isinstance(value, int | float) and -slack <= value - values.low <= (
        values.high - values.low + 2 * slack
    )


def make_search(options: Mapping[str, str]) -> Search:
    """The search that a command line asks for.

    Raises:
        UsageError: whatever is wrong with it.
    """
    options = dict(options)
    own = {key: options.pop(key, default) for key, default in OPTIONS.items()}
    request = read_request(options)
    if request.sweep:
        swept = next(iter(request.sweep))
        raise UsageError(f"{swept} has several values: a search takes ranges from its params_file")
    if len(request.entries) != 1:
        raise UsageError("a search is of one model: --model=NAME")
    (entry,) = request.rows()
    space = ranges_of(request, replace(entry, params_file=own["params_file"]))
    request = replace(request, settings={**request.settings, **entry.settings})
    config = request.config(entry)
    trials = whole_number("trials", parse_value(str(own["trials"])), 1)
    if learns_both(config):
        space, trials = pair_space(space, config), max(1, trials // len(PAIR))
    for key, known in (("sampler", ("tpe", "random")), ("pruner", ("median", "none"))):
        if own[key] not in known:
            raise UsageError(f"{key} must be {' or '.join(known)}, got {own[key]!r}")
    name = plain_name(own["name"] or f"search-{config['model']}-{config['dataset']}", "name")
    folder = Path(config["output_dir"]).absolute() / name
    return Search(
        request=request,
        config=config,
        model=entry.model,
        space=space,
        trials=trials,
        jobs=whole_number("jobs", parse_value(str(own["jobs"])), 1),
        sampler=own["sampler"],
        pruner=own["pruner"],
        folder=folder,
        storage=own["storage"] or f"sqlite:///{folder / 'study.db'}",
        name=name,
    )


# --------------------------------------------------------------------------- trials


def _over(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are over, without those that are to be done again."""
    abandoned = study.user_attrs.get(_ABANDONED, ())
    trials = study.get_trials(deepcopy=False, states=_OVER)
    return [trial for trial in trials if trial.number not in abandoned]


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _abandon(study: optuna.Study, number: int, chosen: Mapping[str, Any]) -> None:
    """End a trial that was stopped, and queue its values again; others must be locked out."""
    study.set_user_attr(_ABANDONED, [*study.user_attrs.get(_ABANDONED, ()), number])
    study.tell(number, state=TrialState.FAIL)
    if chosen:
        study.enqueue_trial(dict(chosen))


def _take_over(study: optuna.Study, asked: Search) -> bool:
    """Queue again what searches that are no more were at: their locks are free.

    Others must be locked out. Whether there was any.
    """
    any_left = False
    for trial in _running(study):
        host, _, owner = str(trial.user_attrs.get("owner", "")).partition(":")
        name = re.search(r"[0-9a-f]{32}\.owner$", owner)
        # A search's own name for its lock, in the search's own folder: the database names no file.
        file = asked.folder / name.group() if name else None
        if host != platform.node() or file is None or not file.is_file():
            continue  # who knows; not of this machine, or of another folder
        try:
            with lock(file).acquire(timeout=0):
                _abandon(study, trial.number, trial.params)
        except Timeout:
            continue  # its search is alive
        file.unlink(missing_ok=True)
        any_left = True
    return any_left


def _try_again(study: optuna.Study) -> None:
    """Queue again what failed in an earlier start: the reason may be gone."""
    for trial in _over(study):
        if trial.state == TrialState.FAIL and trial.user_attrs.get("reason") != _AT_WORK:
            study.set_user_attr(_ABANDONED, [*study.user_attrs.get(_ABANDONED, ()), trial.number])
            study.enqueue_trial(trial.params)


def _search(study: optuna.Study, asked: Search, owner: Path) -> None:
    """Ask for trials and do them until there are as many as asked for."""
    trials: dict[str, optuna.Trial] = {}

    def proposals() -> Iterator[Run]:
        while (run := _propose(study, asked, owner, trials)) is not None:
            yield run

    def prune(process: Process) -> None:
        trial = trials[process.run.name]
        news = process.stopped is None and _report(trial, asked, process.history())
        if news and trial.should_prune():
            process.stop(_PRUNED)

    try:
        for outcome in execute(proposals(), asked.output_dir, asked.jobs, watch=prune):
            _tell(study, asked, trials.pop(outcome.run.name), outcome)
    finally:
        with asked.alone:
            for trial in trials.values():  # stopped: they are done again next time
                _abandon(study, trial.number, trial.params)


def _propose(
    study: optuna.Study, asked: Search, owner: Path, trials: dict[str, optuna.Trial]
) -> Run | None:
    """The run of the next trial, None where there are enough.

    A proposal whose run is finished, in this search or in a benchmark, is told at once.
    """
    while True:
        with asked.alone:
            number = len(_over(study)) + len(_running(study))
            if number >= asked.trials and _take_over(study, asked):
                continue
            if number >= asked.trials:
                return None
            study.sampler = _sampler(asked, number)
            trial = study.ask(asked.space)
            trial.set_user_attr("owner", f"{platform.node()}:{owner.name}")
            try:
                run = asked.run_of(trial.number, asked.settings(trial.params))
            except UsageError:  # the ranges are wrong, and this was no trial
                _abandon(study, trial.number, {})
                raise
        if run.name in trials:  # the same values once more, while the first are at work
            trial.set_user_attr("reason", _AT_WORK)
            study.tell(trial, state=TrialState.FAIL)
            continue
        trial.set_user_attr("run", run.name)
        earlier = finished(run, asked.output_dir)
        if earlier is None:
            trials[run.name] = trial
            return run
        _tell(study, asked, trial, earlier)


def _report(trial: optuna.Trial, asked: Search, epochs: Sequence[Mapping[str, Any]]) -> bool:
    """Tell the pruner what is new among a run's validations, and whether anything is."""
    metric, known = asked.config["valid_metric"], trial.user_attrs.get("validations", 0)
    validated = [epoch for epoch in epochs if "valid" in epoch]
    for epoch in validated[known:]:
        trial.report(score_of(metric, epoch["valid"][metric]), epoch["epoch"])
    if len(validated) > known:
        trial.set_user_attr("validations", len(validated))
    return len(validated) > known


def _sampler(asked: Search, number: int) -> optuna.samplers.BaseSampler:
    """Seeded by the number of the trial, so that a search that goes on repeats nothing."""
    seed = random_seed_of(asked.config["seed"], number)
    if asked.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _tell(study: optuna.Study, asked: Search, trial: optuna.Trial, outcome: Outcome) -> None:
    number, chosen = trial.number, trial.params
    if outcome.result is not None:
        value = outcome.result["best_valid_score"]
        trainings = outcome.result["trainings"]
        if len(trainings) == 1:  # two trainings have no common validation
            _report(trial, asked, trainings[0]["epochs"])
        else:
            names = ("valid_metric", "best_valid_score", "valid_score_bigger")
            scores = {t["task"]: [t[name] for name in names] for t in trainings}
            trial.set_user_attr(_SCORES, scores)
        trial.set_user_attr("test_result", outcome.result["test_result"])
        study.tell(trial, value)
        how = f"{asked.config['valid_metric']} {value:.4f} on validation"
    elif outcome.reason == _PRUNED:
        study.tell(trial, state=TrialState.PRUNED)
        how = "pruned"
    else:
        trial.set_user_attr("reason", outcome.reason)
        study.tell(trial, state=TrialState.FAIL)
        how = f"failed: {outcome.reason} (log: {outcome.folder})"
    say(f"[{len(_over(study))}/{asked.trials}] trial {number}: {how}; {_written(chosen)}")


def _goodness(trial: FrozenTrial, part: str) -> float:
    _, score, bigger = trial.user_attrs[_SCORES][part]
    return float(score if bigger else -score)


def _written(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in chosen.items()
    )


# --------------------------------------------------------------------------- what came out


def _show(study: optuna.Study, asked: Search, stopped: bool) -> None:
    """Write trials and best settings, and print the first of them.

    Raises:
        UsageError: there is none, though nobody stopped the search.
    """
    metric = asked.config["valid_metric"]
    trials = _over(study)
    write_whole(asked.folder / "trials.csv", _trials_csv(trials, asked, metric))
    # A pruned trial has a value too: its last one.
    values = {t.number: t.value or 0.0 for t in trials if t.state == TrialState.COMPLETE}
    if not values and stopped:
        return
    if not values:
        raise UsageError(f"no trial has come to its end; see {asked.folder / 'trials.csv'}")
    best_first = sorted(values, key=values.__getitem__, reverse=asked.config["valid_metric_bigger"])
    by_number = {t.number: t for t in trials}
    rows = [
        [str(n), f"{values[n]:.4f}", *(_cell(by_number[n].params.get(p)) for p in asked.space)]
        for n in best_first[:_SHOWN_TRIALS]
    ]
    print(table(["trial", metric, *asked.space], rows))
    file = asked.folder / "best.yaml"
    chosen, which = _chosen([by_number[n] for n in best_first], asked)
    write_whole(file, _best_yaml(chosen, which, asked, len(trials)))
    counts = {state: sum(t.state == state for t in trials) for state in _OVER}
    print(
        f"\n{counts[TrialState.COMPLETE]} trials completed, {counts[TrialState.PRUNED]} pruned, "
        f"{counts[TrialState.FAIL]} failed. The best on validation: {which}:"
        f"\n--config_files={file}"
    )


def _chosen(best_first: Sequence[FrozenTrial], asked: Search) -> tuple[dict[str, Any], str]:
    """The parameters that were best, and whose they are.

    Of a pair those of the CTR model that was best by its own metric, and of the CVR model that was
    best by the product.
    """
    best, metric = best_first[0], asked.config["valid_metric"]
    if not learns_both(asked.config):
        return best.params, f"trial {best.number}, {metric} {best.value:.6f}"
    chosen: dict[str, Any] = {}
    whose = []
    for part in PAIR:
        of_part = max(best_first, key=lambda trial: _goodness(trial, part))
        own = {k: v for k, v in of_part.params.items() if k.startswith(f"{part}_settings.")}
        chosen |= own
        whose.append(f"{part.upper()} model of trial {of_part.number}")
    return chosen, " and ".join(whose)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _trials_csv(trials: Sequence[FrozenTrial], asked: Search, metric: str) -> str:
    tests = dict.fromkeys(name for t in trials for name in t.user_attrs.get("test_result", ()))
    # of the two models of a pair, each of which has what chooses it
    parts = [
        {f"valid_{name}": score for name, score, _ in t.user_attrs.get(_SCORES, {}).values()}
        for t in trials
    ]
    scores = dict.fromkeys([f"valid_{metric}", *(name for part in parts for name in part)])
    columns = [*("trial", "state"), *scores, *asked.space, "run", "reason"]
    lines = [
        {
            "trial": t.number,
            "state": t.state.name.lower(),
            **part,
            f"valid_{metric}": t.value if t.state == TrialState.COMPLETE else None,
            **{name: t.params.get(name) for name in asked.space},
            **{name: t.user_attrs.get(name) for name in ("run", "reason")},
            **{f"test_{name}": v for name, v in t.user_attrs.get("test_result", {}).items()},
        }
        for t, part in zip(trials, parts, strict=True)
    ]
    return csv_text([*columns, *(f"test_{name}" for name in tests)], lines)


def _best_yaml(chosen: Mapping[str, Any], which: str, asked: Search, trials: int) -> str:
    row = asked.row_of("best", asked.settings(chosen))
    config = asked.request.config(row)
    settings = {
        "model": model_path(config.model_class),
        "dataset": config["dataset"],
        **{
            key: value
            for key, value in plain(config.external_config_dict).items()
            if key not in ("model", "dataset")
        },
    }
    head = f"# The best of {trials} trials on validation: {which}.\n"
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
