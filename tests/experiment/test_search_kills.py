"""A search that is killed at any write into its study ends as one that nothing has happened to."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from types import SimpleNamespace

import pytest
from optuna.storages import RDBStorage

from recbole_escm2.experiment import search as search_module
from recbole_escm2.experiment.runs import Outcome
from recbole_escm2.experiment.search import Searcher, make_search

_WRITES = (
    *("create_new_study", "create_new_trial", "set_trial_param", "set_trial_state_values"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    *("set_study_user_attr", "record_heartbeat"),
)
_TRIALS = 14  # Optuna's first ten depend on nothing but their number


def _epochs_of(run):
    rate = run.settings["learning_rate"]
    return [{"epoch": n, "valid": {"CTCVR_AUC": 1 - abs(rate - 0.01) / (n + 1)}} for n in range(3)]


def _execute(seed):
    """Runs without a training, whose validations are looked at at random moments."""
    draw = random.Random(seed)

    def execute(runs, jobs, watch):
        while (run := next(runs, None)) is not None:
            epochs = _epochs_of(run)
            seen = draw.choice([0, 1, 3])
            process = SimpleNamespace(run=run, stopped=None, history=lambda e=epochs, s=seen: e[:s])
            process.stop = lambda reason, p=process: setattr(p, "stopped", reason)
            watch(process)
            if process.stopped is not None:
                yield Outcome(run, None, process.stopped)
                continue
            run.folder.mkdir(parents=True, exist_ok=True)
            result = {"best_valid_score": epochs[-1]["valid"]["CTCVR_AUC"], "test_result": {}}
            result |= {"valid_metric": "CTCVR_AUC", "valid_score_bigger": True}
            result |= {"trainings": [{"task": None, "epochs": epochs}]}
            (run.folder / "result.json").write_text(json.dumps(result))
            yield Outcome(run, result)

    return execute


def _finished(run):
    file = run.folder / "result.json"
    return Outcome(run, json.loads(file.read_text())) if file.exists() else None


def _search(options, kill_at, writes):
    """In a process of its own, which is killed before a write, and counts writes."""

    def counted(write):
        def do(*given, **named):
            writes.value += 1
            if writes.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*given, **named)

        return do

    for name in _WRITES:
        setattr(RDBStorage, name, counted(getattr(RDBStorage, name)))
    search_module.execute = _execute(kill_at)
    search_module.finished = _finished
    Searcher._beat = lambda self, over: None  # whose writes come at any moment
    plan = make_search(options)
    plan.folder.mkdir(parents=True, exist_ok=True)
    searcher = Searcher(plan)
    searcher.try_again()
    searcher.search()


def _begin(options, kill_at=0):
    """The exit code of a search, and how many writes it came to."""
    context = multiprocessing.get_context("fork")
    writes = context.Value("i", 0)
    process = context.Process(target=_search, args=(options, kill_at, writes))
    process.start()
    process.join()
    return process.exitcode, writes.value


def _came_to(options):
    trials = Searcher(make_search(options)).results()
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))]
)
def test_a_search_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    options, tmp_path, seed
):
    ranges = tmp_path / "mine.hyper"
    ranges.write_text("learning_rate loguniform -7,-3\nweight_decay loguniform -9,-3\n")
    options |= {"model": "ESMM", "params_file": str(ranges), "trials": str(_TRIALS)}
    undisturbed = {**options, "name": "undisturbed"}
    code, writes = _begin(undisturbed)
    assert code == 0
    expected = _came_to(undisturbed)
    assert len(expected) == _TRIALS
    assert len({trial[1] for trial in expected}) == 2  # complete and pruned

    draw, kills, code = random.Random(seed), 0, -signal.SIGKILL
    killed = {**options, "name": "killed", "output_dir": str(tmp_path / "elsewhere")}
    while code == -signal.SIGKILL:
        code, _ = _begin(killed, draw.randint(1, writes // 4))
        kills += code == -signal.SIGKILL
    assert code == 0
    assert kills > 5
    assert _came_to(killed) == expected
    folder = tmp_path / "elsewhere" / "killed"
    assert not list(folder.glob("*.unfinished*"))
