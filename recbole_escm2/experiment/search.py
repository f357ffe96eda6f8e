"""Hyper-parameter search: Optuna proposes, each trial is a run, the best one is a config file."""

from __future__ import annotations

import contextlib
import copy
import platform
import threading
import time
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from recbole_escm2.errors import UsageError, checked_name
from recbole_escm2.experiment.interrupt import say, terminated_as_interrupted
from recbole_escm2.experiment.planned import OF_TRIALS, PlannedRun, plan_run
from recbole_escm2.experiment.request import checked, read_request
from recbole_escm2.experiment.runs import Outcome, Process, execute, finished
from recbole_escm2.experiment.seeds import check_tunable
from recbole_escm2.experiment.study import Trial, Tuning, part_label
from recbole_escm2.experiment.trials import (
    SAMPLERS,
    Ranges,
    best_settings,
    excess_loss,
    is_worse,
    sampler_of,
    scores_of,
)
from recbole_escm2.experiment.worker import OUTPUT_FILE
from recbole_escm2.keys import COUNT
from recbole_escm2.lookup import model_path
from recbole_escm2.metric_names import score_of
from recbole_escm2.output import (
    at_work,
    beside,
    csv_text,
    lock,
    make_folder,
    table,
    to_builtins,
    write_whole,
)
from recbole_escm2.own_code import without_own_metrics
from recbole_escm2.property_files import parse_value
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
# Seconds between two signs of life of a trial, and without one until others take it over. To take
# over one that lives does no harm: a run is done once, and who comes second waits for its result.
_HEARTBEAT, _GRACE = 2, 20
_OWNER = "search"  # machine, folder and sign of the search that is at a trial
_SUBJECT = "subject"
_WORSE = "worse_than_constant"  # the tasks of the models that are; None: the run as a whole
_EXCESS = "excess_loss"  # over that of a constant prediction, as a share
_SCORES = "scores"  # of the two models of a pair: metric, score, whether bigger is better
# What a search notes of a trial, and Optuna.
_NOTES = {
    **{"reason": str, "run": str, "test_result": dict, _SCORES: dict},
    **{"retry_history": list, "fixed_params": dict, _WORSE: list},
    **{_EXCESS: float, "constraints": list, _OWNER: list},
}
_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Search:
    """A search before it runs: an experiment of one row and one seed, with trials that follow each
    other.

    Attributes:
        ranges: what may be chosen.
        trials: how many, those of earlier starts included; a CTR and a CVR model as a pair are two
            trainings a trial, and have half as many.
        jobs: trials at once.
        sampler: one of :data:`SAMPLERS`.
        pruner: ``median`` or ``none``.
        name: of the study in the storage, and of the folder.
        storage: Optuna's, as a URL; None for an SQLite file in the folder.
    """

    ranges: Ranges
    trials: int
    jobs: int
    sampler: str
    pruner: str
    name: str
    storage: str | None = None

    @property
    def folder(self) -> Path:
        """Of the search; runs are beside it."""
        return Path(self.ranges.config["output_dir"]).absolute() / self.name

    @property
    def url(self) -> str:
        """Of the storage."""
        return self.storage or f"sqlite:///{self.folder / 'study.db'}"

    @property
    def metric(self) -> str:
        """Of validation."""
        return str(self.ranges.config["valid_metric"])

    def run_of(
        self, number: int, values: Mapping[str, Any], threads: int | None = None
    ) -> PlannedRun:
        """The run of a trial, by default with its share of the cores."""
        threads = threads_of(self.jobs) if threads is None else threads
        row = self.ranges.tried(f"trial {number}", values)
        config = self.ranges.request.config(row)
        return plan_run(row, config, {"seed": config["seed"], **OF_TRIALS}, threads)

    def subject(self) -> dict[str, str]:
        """What trials of one study have in common; with anything else they can't be compared."""
        return {
            "settings or data": self.run_of(0, {}, threads=1).name,  # whatever --jobs is
            "valid_metric": self.metric,
            "ranges": repr(sorted(self.ranges.space.items())),
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
    plan = make_search(options)
    check_tunable(plan.ranges.config, "search")
    make_folder("output_dir", plan.folder)
    stopped = False
    with _quiet(), _storage_errors(plan.url):
        searcher = Searcher(plan)
        searcher.try_again()
        say(
            f"{plan.ranges.row.model} on {plan.ranges.config['dataset']}: {plan.trials} trials, "
            f"{len(searcher.trials())} are done; {', '.join(plan.ranges.space)}"
        )
        try:
            with terminated_as_interrupted():
                searcher.search()
        except KeyboardInterrupt:
            stopped = True
            say("stopped; the same command goes on from here")
        _show(searcher.results(), plan, stopped)
    return 130 if stopped else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log, and without its warnings of what is new in it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")
        warnings.filterwarnings("ignore", "`constraints_func` has been deprecated")
        yield


@contextlib.contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """An error of the storage, such as a full disk, is a UsageError of one line."""
    try:
        yield
    except StorageInternalError as error:
        raise _of_storage(url, error) from error


def _of_storage(url: str, error: Exception) -> UsageError:
    """In one line, and in the database's own words where it is Optuna or SQLAlchemy that hands it
    on."""
    said = getattr(error.__cause__ or error, "orig", error)
    return UsageError(f"storage {url}: {' '.join(str(said).split())}")


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
    (row,) = request.rows()
    ranges = Ranges.of(request, replace(row, params_file=own["params_file"]))
    if not ranges.space:
        raise UsageError(f"{row.model} has nothing to search")
    trials = checked("trials", parse_value(str(own["trials"])), COUNT)
    for key, known in (("sampler", SAMPLERS), ("pruner", ("median", "none"))):
        if own[key] not in known:
            raise UsageError(f"{key} must be {' or '.join(known)}, got {own[key]!r}")
    config = ranges.config
    return Search(
        ranges=ranges,
        trials=max(1, trials // len(ranges.parts)) if ranges.parts else trials,
        jobs=checked("jobs", parse_value(str(own["jobs"])), COUNT),
        sampler=own["sampler"],
        pruner=own["pruner"],
        name=checked_name(own["name"] or f"search-{config['model']}-{config['dataset']}", "name"),
        storage=own["storage"],
    )


# --------------------------------------------------------------------------- trials


class Searcher:
    """A search at work, perhaps with others on the same study.

    Args:
        plan: the search.

    Raises:
        UsageError: the storage can't be had, or its study is of something else.
    """

    def __init__(self, plan: Search) -> None:
        self.plan = plan
        self._at_work: dict[str, optuna.Trial] = {}  # by the label of its run's row
        self._reported: dict[str, int] = {}  # validations of it that the pruner knows
        self._pruned: set[str] = set()
        self._owner = [platform.node(), str(plan.folder), ""]
        with self._alone():  # Optuna doesn't expect two to make one database
            self._open()
        self._study_id = self.storage.get_study_id_from_name(plan.name)

    def _open(self) -> None:
        """The study, made where there is none."""
        plan = self.plan
        bigger = plan.ranges.config["valid_metric_bigger"]
        prunes = plan.pruner == "median"
        try:
            self.storage = RDBStorage(
                plan.url,
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=self._queue_again,
            )
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=plan.name,
                direction="maximize" if bigger else "minimize",
                pruner=_MedianOfLearned() if prunes else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            trials, about = self.study.get_trials(deepcopy=False), self.study.user_attrs
        except Exception as error:  # each database has errors of its own
            raise _of_storage(plan.url, error) from error
        before, subject = about.get(_SUBJECT), plan.subject()
        if not isinstance(before, dict | None):
            raise UsageError(f"storage {plan.url} wasn't written by a search")
        if before is None:
            self.study.set_user_attr(_SUBJECT, subject)
        elif before != subject:
            changed = ", ".join(key for key in subject if before.get(key) != subject[key])
            raise UsageError(
                f"the search '{plan.name}' was begun with other {changed}: trials of both can't "
                "be compared. Give this one another --name"
            )
        for trial in trials:
            _check_trial(trial, plan)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Those in some states, by default those that are over; not what was queued again."""
        trials = self.study.get_trials(deepcopy=False)
        again = {n for t in trials for n in t.system_attrs.get("retry_history", ())}
        return [t for t in trials if t.state in (states or _OVER) and t.number not in again]

    def numbers(self) -> dict[int, int]:
        """The numbers that trials are shown with, by Optuna's: one that is done again keeps its
        own, so that they go on without a gap after a kill."""
        shown: dict[int, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            first = next(iter(trial.system_attrs.get("retry_history", ())), trial.number)
            shown[trial.number] = shown.get(first, len({*shown.values()}))
        return shown

    def results(self) -> list[FrozenTrial]:
        """The trials that are over, with the numbers that they are shown with."""
        numbers, trials = self.numbers(), [copy.copy(trial) for trial in self.trials()]
        for trial in trials:
            trial.number = numbers[trial.number]
        return sorted(trials, key=lambda trial: trial.number)

    def try_again(self, numbers: Container[int] | None = None) -> None:
        """Queue again what failed, by default all of it: the reason may be gone."""
        with self._alone():
            for trial in self.trials(TrialState.FAIL):
                if numbers is None or trial.number in numbers:
                    self._queue_again(self.study, trial)

    def _queue_again(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Queue a trial again with its values; those of one that was killed while they were drawn
        are drawn anew, all of them, as what is drawn depends on what was drawn before."""
        trial = copy.deepcopy(trial)
        trial.user_attrs = {}
        if trial.params.keys() != self.plan.ranges.space.keys():
            trial.params, trial.distributions = {}, {}
        RetryHeartbeatStaleTrialCallback()(study, trial)

    def _fail_abandoned(self) -> None:
        """Queue again the trials of searches that are no more. Of those in this folder it is known
        at once, by the file that each one locks, of others by their signs of life alone."""
        fail_stale_trials(self.study)
        living = [[name] for name in at_work(self._sign)]
        for trial in self.trials(TrialState.RUNNING):
            owner = trial.user_attrs.get(_OWNER)
            if owner is None:  # killed before it was noted, which is done while no other proposes
                begun = trial.datetime_start or datetime.now()
                late = datetime.now() - begun > timedelta(seconds=_GRACE)
                abandoned = late or self.plan.storage is None
            else:
                abandoned = owner[:2] == self._owner[:2] and owner[2:] not in living
            if abandoned:
                with contextlib.suppress(UpdateFinishedTrialError):
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    self._queue_again(self.study, trial)

    @property
    def _sign(self) -> Path:
        """Beside which each search at work has a file of its own."""
        return self.plan.folder / "at-work"

    def search(self) -> None:
        """Ask for trials and do them until there are as many as asked for."""
        with beside(self._sign) as sign, self._alive():
            self._owner[2] = sign.name
            runs = iter(self._propose, object())
            while True:
                for outcome in execute(runs, self.plan.jobs, watch=self._watch):
                    self._tell(self._at_work.pop(outcome.run.row.label), outcome)
                if not self._wait_for_others():
                    return

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """With signs of life of the trials at work; those that are stopped are done again next
        time."""
        over = threading.Event()
        signs_of_life = threading.Thread(target=self._beat, args=(over,))
        signs_of_life.start()
        try:
            yield
        finally:
            over.set()
            signs_of_life.join()
            for trial in self._at_work.values():
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            self.try_again([trial.number for trial in self._at_work.values()])

    def _beat(self, over: threading.Event) -> None:
        """Give signs of life of the trials at work, whatever the search itself waits for."""
        while not over.wait(_HEARTBEAT):
            with contextlib.suppress(StorageInternalError):  # the search itself says it
                for trial in list(self._at_work.values()):
                    self._give_sign_of_life(trial)

    def _give_sign_of_life(self, trial: optuna.Trial) -> None:
        own = self.storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self.storage.record_heartbeat(own)

    def _alone(self) -> Any:
        """While it is held no other search counts, or asks for, a trial."""
        return lock(self.plan.folder / "lock")

    def _wait_for_others(self) -> bool:
        """Whether there is a trial to do again, which a search that is no more was at."""
        end = time.monotonic() + _GRACE + 2 * _HEARTBEAT
        while time.monotonic() < end and self.trials(TrialState.RUNNING):
            time.sleep(0.5)
            with self._alone():
                self._fail_abandoned()
        return bool(self.trials(TrialState.WAITING))

    def _propose(self) -> PlannedRun | None:
        """The run of the next trial, None where there are enough.

        A proposal whose run is finished, in this search or in a benchmark, is told at once.
        """
        plan = self.plan
        while True:
            with self._alone():
                self._fail_abandoned()
                number = len(self.trials(*_OVER, TrialState.RUNNING))
                if number >= plan.trials:
                    return None
                seed = plan.ranges.config["seed"]
                self.study.sampler = sampler_of(plan.sampler, seed, number, _excess_of)
                trial = self.study.ask(plan.ranges.space)
                trial.set_user_attr(_OWNER, self._owner)
                self._give_sign_of_life(trial)
            try:
                run = plan.run_of(trial.number, trial.params)
            except UsageError:  # the ranges are wrong
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            trial.set_user_attr("run", run.name)
            if (earlier := finished(run)) is None:
                self._at_work[run.row.label] = trial
                return run
            self._tell(trial, earlier)

    def _watch(self, process: Process) -> None:
        label = process.run.row.label
        trial = self._at_work[label]
        with contextlib.suppress(UpdateFinishedTrialError):  # another search has taken it over
            if process.stopped is None and self._prunes(label, trial, process.run.history()):
                process.stop(_PRUNED)

    def _prunes(self, label: str, trial: optuna.Trial, epochs: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run is stopped by one of its validations, which are told to the pruner one by
        one, so that it doesn't depend on when, and of how many at once, they are read."""
        metric = self.plan.metric
        validated = [epoch for epoch in epochs if "valid" in epoch]
        for epoch in validated[self._reported.get(label, 0) :]:
            if label in self._pruned:
                break
            trial.report(score_of(metric, epoch["valid"][metric]), epoch["epoch"])
            self._reported[label] = self._reported.get(label, 0) + 1
            if trial.should_prune():
                self._pruned.add(label)
        return label in self._pruned

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        try:
            how = self._note(trial, outcome)
        except UpdateFinishedTrialError:
            return  # another search has taken it over, and will find the run finished
        over, number = len(self.trials()), self.numbers()[trial.number]
        chosen = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.params.items()
        )
        say(f"[{over}/{self.plan.trials}] trial {number}: {how}; {chosen}")

    def _note(self, trial: optuna.Trial, outcome: Outcome) -> str:
        """Write down how a trial ended, and say it."""
        reason, parts = outcome.reason, self.plan.ranges.parts
        if outcome.result is not None and not parts:  # two trainings have no common validation
            epochs = outcome.result["trainings"][0]["epochs"]
            if self._prunes(outcome.run.row.label, trial, epochs):
                reason = _PRUNED  # one that was faster than who looks
        if outcome.result is not None and reason != _PRUNED:
            value = outcome.result["best_valid_score"]
            if parts:
                scores = scores_of(outcome.result)
                trial.set_user_attr(_SCORES, {part: scores[part] for part in parts})
            trial.set_user_attr("test_result", outcome.result["test_result"])
            worse = [part for part in (None, *parts) if is_worse(outcome.result, part)]
            trial.set_user_attr(_WORSE, worse)
            trial.set_user_attr(_EXCESS, excess_loss(outcome.result))
            self.study.tell(trial, value, skip_if_finished=True)
            than = ", worse than a constant prediction" if worse else ""
            return f"{self.plan.metric} {value:.4f} on validation{than}"
        if reason == _PRUNED:
            outcome.run.forget_progress()
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            return "pruned"
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        return f"failed: {reason} (log: {outcome.run.folder / OUTPUT_FILE})"


class _Learned(optuna.Study):
    """A study without the trials that are worse than a constant prediction."""

    def __init__(self, study: optuna.Study) -> None:
        vars(self).update(vars(study))

    def get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = super().get_trials(*args, **kwargs)
        return [trial for trial in trials if not trial.user_attrs.get(_WORSE)]


class _MedianOfLearned(optuna.pruners.MedianPruner):
    """Compares with trials that have learned: by F1, say, whatever calls each impression a click
    may be ahead of them."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return super().prune(_Learned(study), trial)


def _excess_of(trial: FrozenTrial) -> list[float]:
    return [trial.user_attrs.get(_EXCESS, 0.0)]


def _check_trial(trial: FrozenTrial, plan: Search) -> None:
    """A database may say which of the ranges' values were tried, and how that went, no more.

    Raises:
        UsageError: the trial has other keys or values.
    """
    space, noted = plan.ranges.space, {**trial.user_attrs, **trial.system_attrs}
    scores, parts = noted.get(_SCORES, {}), plan.ranges.parts
    wrong = [name for name, kind in _NOTES.items() if not isinstance(noted.get(name, kind()), kind)]
    if not wrong and not all(type(n) is int for n in noted.get("retry_history", ())):
        wrong.append("retry_history")
    if not wrong and not all(type(n) is float for n in noted.get("constraints", ())):
        wrong.append("constraints")
    if not wrong and (scores or trial.state == TrialState.COMPLETE):
        right = [*scores] == [*parts] and all(map(_is_score, scores.values()))
        wrong += [] if right else [_SCORES]
    if wrong:
        raise UsageError(f"storage {plan.url} wasn't written by a search: {wrong[0]}")
    for key, value in [*trial.params.items(), *noted.get("fixed_params", {}).items()]:
        if key not in space or not _within(value, space[key]):
            raise UsageError(
                f"the search '{plan.name}' holds a trial with {key} = {value!r}, which isn't in "
                "its ranges: no search has written it. Give this one another --name"
            )


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


# --------------------------------------------------------------------------- what came out


def _show(trials: Sequence[FrozenTrial], plan: Search, stopped: bool) -> None:
    """Write trials and best settings, and print the first of them.

    Raises:
        UsageError: there is none, though nobody stopped the search.
    """
    write_whole(plan.folder / "trials.csv", _trials_csv(trials, plan))
    # A pruned trial has a value too: its last one.
    values = {t.number: t.value or 0.0 for t in trials if t.state == TrialState.COMPLETE}
    if not values and stopped:
        return
    if not values:
        raise UsageError(f"no trial has come to its end; see {plan.folder / 'trials.csv'}")
    sign = -1 if plan.ranges.config["valid_metric_bigger"] else 1
    worse = {t.number for t in trials if t.number in values and t.user_attrs.get(_WORSE)}
    best_first = sorted(values, key=lambda number: (number in worse, sign * values[number]))
    params = {t.number: t.params for t in trials}
    rows = [
        [str(n), f"{values[n]:.4f}", *(_cell(params[n].get(p)) for p in plan.ranges.space)]
        for n in best_first[:_SHOWN_TRIALS]
    ]
    print(table(["trial", plan.metric, *plan.ranges.space], rows))
    if worse:
        print(f"\n{_about_worse(len(worse), all_of_them=len(worse) == len(values))}")
    label = plan.ranges.row.label
    tuning = _tuning(trials, plan)
    if plan.ranges.parts:
        best = {part: tuning.best(part_label(label, part)) for part in plan.ranges.parts}
        which = " and ".join(f"{part.upper()} model of {one.run}" for part, one in best.items())
    else:
        which = f"trial {best_first[0]}, {plan.metric} {values[best_first[0]]:.6f}"
    file = plan.folder / "best.yaml"
    settings = best_settings(tuning, label, plan.ranges.config)
    write_whole(file, _best_yaml(settings, f"{len(trials)} trials on validation: {which}", plan))
    counts = {state: sum(t.state == state for t in trials) for state in _OVER}
    print(
        f"\n{counts[TrialState.COMPLETE]} trials completed, {counts[TrialState.PRUNED]} pruned, "
        f"{counts[TrialState.FAIL]} failed. The best on validation: {which}:"
        f"\n--config_files={file}"
    )


def _about_worse(count: int, all_of_them: bool) -> str:
    """What to say of trials that a constant prediction is better than."""
    if all_of_them:
        return (
            "All trials are worse than a constant prediction, the best too: other ranges "
            "(learning_rate, epochs, a penalty) may help."
        )
    are = "is" if count == 1 else "are"
    return f"{count} of them {are} worse than a constant prediction, and behind all others."


def _tuning(trials: Sequence[FrozenTrial], plan: Search) -> Tuning:
    """The trials that have come to their end as those of a benchmark's tuning."""
    ranges = plan.ranges
    by_row: dict[str, list[Trial]] = {}
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    whole = bool(ranges.config["valid_metric_bigger"])
    for part in ranges.parts or (None,):
        label = ranges.row.label if part is None else part_label(ranges.row.label, part)
        by_row[label] = []
        for t in complete:
            _, score, bigger = t.user_attrs[_SCORES][part] if part else ("", t.value, whole)
            chosen = ranges.chosen(t.params, part)
            worse = part in t.user_attrs.get(_WORSE, ())
            by_row[label].append(Trial(chosen, score, bigger, f"trial {t.number}", worse=worse))
    return Tuning(plan.trials, ranges.config["seed"], plan.metric, by_row)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _trials_csv(trials: Sequence[FrozenTrial], plan: Search) -> str:
    space, own = plan.ranges.space, f"valid_{plan.metric}"
    tests = dict.fromkeys(name for t in trials for name in t.user_attrs.get("test_result", ()))
    # of the two models of a pair, each of which has what chooses it
    parts = [
        {f"valid_{name}": score for name, score, _ in t.user_attrs.get(_SCORES, {}).values()}
        for t in trials
    ]
    scores = dict.fromkeys([own, *(name for part in parts for name in part)])
    columns = ["trial", "state", *scores, *space, "run", "reason"]
    lines = [
        {
            "trial": t.number,
            "state": t.state.name.lower(),
            **part,
            own: t.value if t.state == TrialState.COMPLETE else None,
            **{name: t.params.get(name) for name in space},
            "run": t.user_attrs.get("run"),
            "reason": t.user_attrs.get("reason") if t.state == TrialState.FAIL else None,
            **{f"test_{name}": v for name, v in t.user_attrs.get("test_result", {}).items()},
        }
        for t, part in zip(trials, parts, strict=True)
    ]
    return csv_text([*columns, *(f"test_{name}" for name in tests)], lines)


def _best_yaml(settings: Mapping[str, Any], which: str, plan: Search) -> str:
    row = plan.ranges.row
    best = replace(row, label="best", settings={**row.settings, **settings})
    config = plan.ranges.request.config(best)
    content = {"model": model_path(config.model_class), "dataset": config["dataset"]}
    content |= {
        k: v for k, v in to_builtins(config.external_config_dict).items() if k not in content
    }
    head = f"# The best of {which}.\n"
    shared = without_own_metrics(content)
    if shared != content:
        head += "# Metrics of your own aren't in it, as no file chooses code: name them again.\n"
        content = shared
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
