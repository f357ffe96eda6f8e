"""Hyper-parameter search: RecBole's files, trials that survive a kill, a config that runs."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from recbole_escm2.command_line import main
from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment import search as search_module
from recbole_escm2.experiment.request import read_request
from recbole_escm2.experiment.runs import Outcome
from recbole_escm2.experiment.search import Searcher, make_search
from recbole_escm2.experiment.space import default_space, ranges_of, read_space, settings_of
from recbole_escm2.experiment.trials import excess_loss, sampler_of
from recbole_escm2.keys import KEY_NEEDS
from recbole_escm2.lookup import context_model_names, find_model
from recbole_escm2.model import ESCM2_DR, ESMM


def test_recboles_format(tmp_path):
    file = tmp_path / "x.hyper"
    file.write_text(
        "# ranges\n"
        "learning_rate loguniform -8,0\n"
        "\n"
        "embedding_size choice [64, 96 , 128]\n"
        "mlp_hidden_size choice ['[64, 64]','[128]']  # as RecBole writes lists\n"
        "dropout_prob uniform 0,0.5\n"
        "weight quniform 0.1,0.9,0.2\n"
    )
    space = read_space(file)
    assert space == {
        "learning_rate": FloatDistribution(math.exp(-8), 1.0, log=True),
        "embedding_size": CategoricalDistribution([64, 96, 128]),
        "mlp_hidden_size": CategoricalDistribution(["[64, 64]", "[128]"]),
        "dropout_prob": FloatDistribution(0.0, 0.5),
        "weight": FloatDistribution(0.0, 0.8, step=0.2),
    }
    chosen = {"mlp_hidden_size": "[64, 64]", "weight": 0.6 + 1e-16, "embedding_size": 64}
    assert settings_of(chosen, space) == {
        "mlp_hidden_size": [64, 64],
        "weight": 0.6,
        "embedding_size": 64,
    }
    whole = {"embedding_size": FloatDistribution(8, 64, step=8)}
    assert repr(settings_of({"embedding_size": 16.0}, whole)["embedding_size"]) == "16"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate uniform", "line 1: .* must be 'name type range'"),
        ("learning_rate normal 0,1", "choice, uniform, quniform and loguniform"),
        ("learning_rate uniform 1,0", "low,high is wanted"),
        ("learning_rate uniform 0", "low,high is wanted"),
        ("learning_rate quniform 0,1,0", "step must be > 0"),
        ("a choice __import__('os')", "line 1: a choice"),
        ("a choice 3", "a list of values"),
        ("a choice {[1]: 2}", "line 1: a choice"),
        ("a loguniform 8,1024", "line 1: a loguniform"),
        ("a uniform nan,1", "low,high is wanted"),
        ("a choice [1]\na choice [2]", "line 2: a stands there twice"),
        ("# nothing", "names no parameter"),
    ],
)
def test_mistakes_in_a_file(tmp_path, line, message):
    file = tmp_path / "x.hyper"
    file.write_text(line + "\n")
    with pytest.raises(UsageError, match=message):
        read_space(file)


@pytest.mark.parametrize("name", context_model_names())
def test_ranges_ship_for_every_model_and_name_its_keys(name):
    model = find_model(name)
    space = default_space(model)
    known = Config(name, "none").internal_config_dict
    assert set(space) <= set(known)
    for key, values in space.items():  # each choice is a value that the config takes
        for value in getattr(values, "choices", (getattr(values, "low", None),)):
            chosen = settings_of({key: value}, space)
            needed = {KEY_NEEDS[key]: True} if key in KEY_NEEDS else {}
            assert Config(name, "none", config_dict={**chosen, **needed})[key] == chosen[key]


@pytest.mark.parametrize("name", context_model_names())
def test_every_model_may_choose_a_penalty_and_sparse_rows_their_pace(name):
    space = default_space(find_model(name))
    choices = space["embedding_weight_decay"].choices
    assert choices[0] == 0
    assert (choices[1], choices[-1]) == (1e-5, 1e-2)
    assert list(choices) == sorted(choices)
    for dataset, sleeps in (("ml-100k", False), ("ali-ccp", True)):
        request = read_request({"model": name, "dataset": dataset})
        (row,) = request.rows()
        found = ranges_of(request, row)
        assert "embedding_weight_decay" in found
        assert ("sleeping_decay" in found) == sleeps
        if sleeps:
            assert found["sleeping_decay"].choices == (0, 0.003, 0.01, 0.03, 0.1, 0.3, 1)


def test_ranges_of_a_variant_are_its_parents(tmp_path):
    parent = ESCM2_DR
    assert default_space(type("Mine", (parent,), {})) == default_space(parent)
    assert "counterfactual_weight" in default_space(parent)
    assert "counterfactual_weight" not in default_space(ESMM)  # it has no such risk


def test_a_search_survives_a_kill_and_its_config_runs(
    program, kill_at, metrics_of, data_path, tmp_path
):
    (tmp_path / "mine.hyper").write_text(
        "learning_rate loguniform -7,-3\nmlp_hidden_size choice ['[4]', '[8, 4]']\n"
    )
    arguments = (
        *("search", "--model=ESCM2_IPS", "--dataset=tiny", f"--data_path={data_path}"),
        *("--params_file=mine.hyper", "--trials=6", "--jobs=2", "--epochs=2"),
        *("--embedding_size=4", "--train_batch_size=256", "--pruner=none"),
    )
    kill_at("[2/6]", *arguments)

    done = program(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "output" / "search-ESCM2_IPS-tiny"
    with open(folder / "trials.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 6
    assert {trial["state"] for trial in trials} == {"complete"}
    # one that is done again keeps its number
    assert [trial["trial"] for trial in trials] == [*"012345"]
    assert set(re.findall(r"trial (\d+):", done.stderr)) <= {*"012345"}
    best = max(trials, key=lambda trial: float(trial["valid_CTCVR_AUC"]))
    content = yaml.safe_load((folder / "best.yaml").read_text())
    assert content["learning_rate"] == pytest.approx(float(best["learning_rate"]))
    assert content["mlp_hidden_size"] == yaml.safe_load(best["mlp_hidden_size"])

    run = program(f"--config_files={folder / 'best.yaml'}")
    assert run.returncode == 0, run.stderr
    assert metrics_of(run.stdout)["CTCVR_AUC"] == pytest.approx(
        float(best["test_CTCVR_AUC"]), abs=1e-6
    )

    again = program(*arguments)
    assert "6 trials, 6 are done" in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.parametrize(("trials", "pairs"), [("1", 1), ("2", 1), ("5", 2), ("20", 10)])
def test_two_models_have_ranges_of_their_own_and_half_the_trials(
    data_path, tmp_path, trials, pairs
):
    options = {"model": "LR", "dataset": "tiny", "data_path": str(data_path), "trials": trials}
    asked = make_search(options | {"output_dir": str(tmp_path), "cvr_settings": "{epochs: 3}"})
    assert asked.trials == pairs
    own = ("embedding_weight_decay", "learning_rate")
    assert list(asked.ranges.space) == [
        f"{part}_settings.{key}" for part in ("ctr", "cvr") for key in own
    ]
    run = asked.run_of(0, dict.fromkeys(asked.ranges.space, 0.5))
    assert run.settings["task"] == "both"
    assert run.settings["ctr_settings"] == dict.fromkeys(own, 0.5)
    assert run.settings["cvr_settings"] == {"epochs": 3, **dict.fromkeys(own, 0.5)}


def test_each_of_two_models_has_the_settings_of_its_best_trial(
    program, metrics_of, data_path, tmp_path
):
    arguments = (
        *("search", "--model=LR", "--dataset=tiny", f"--data_path={data_path}", "--trials=7"),
        *("--jobs=2", "--epochs=2", "--train_batch_size=256"),
    )
    done = program(*arguments)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "output" / "search-LR-tiny"
    with open(folder / "trials.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 3
    content = yaml.safe_load((folder / "best.yaml").read_text())
    for part, metric, best in (("ctr", "CTR_AUC", max), ("cvr", "CTCVR_LogLoss", min)):
        of_part = best(trials, key=lambda trial: float(trial[f"valid_{metric}"]))
        own = ("embedding_weight_decay", "learning_rate")
        chosen = {key: float(of_part[f"{part}_settings.{key}"]) for key in own}
        assert content[f"{part}_settings"] == pytest.approx(chosen)
        assert f"{part.upper()} model of trial {of_part['trial']}" in done.stdout
    run = program(f"--config_files={folder / 'best.yaml'}")
    assert run.returncode == 0, run.stderr
    assert 0 < metrics_of(run.stdout)["CTCVR_AUC"] < 1


def test_pruning_ends_a_trial_early(program, data_path, tmp_path):
    # With this seed the sixth trial is the first that hardly moves: it would never stop by itself.
    (tmp_path / "mine.hyper").write_text(
        "learning_rate choice [0.01, 0.011, 0.012, 0.013, 1e-12]\n"
    )
    done = program(
        *("search", "--model=ESMM", "--dataset=tiny", f"--data_path={data_path}"),
        *("--params_file=mine.hyper", "--trials=6", "--sampler=random", "--seed=15"),
        *("--epochs=100000", "--embedding_size=4", "--mlp_hidden_size=[4]"),
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "output" / "search-ESMM-tiny"
    with open(folder / "trials.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert [trial["state"] for trial in trials] == ["complete"] * 5 + ["pruned"]
    assert trials[-1]["learning_rate"] == "1e-12"
    assert "5 trials completed, 1 pruned, 0 failed" in done.stdout


def test_what_cant_be_compared_is_not_mixed(program, program_here, data_path, tmp_path):
    file = tmp_path / "mine.hyper"
    file.write_text("learning_rate choice [0.01, 0.02]\n")
    arguments = (
        *("search", "--model=ESMM", "--dataset=tiny", f"--data_path={data_path}"),
        *("--params_file=mine.hyper", "--trials=2", "--embedding_size=4", "--mlp_hidden_size=[4]"),
    )
    assert program(*arguments, "--epochs=1").returncode == 0
    other = program_here(*arguments, "--epochs=2")
    assert other.returncode == 2
    assert "was begun with other settings or data" in other.stderr
    metric = program_here(*arguments, "--epochs=1", "--valid_metric=CTCVR_LogLoss")
    assert "other settings or data, valid_metric" in metric.stderr
    file.write_text("learning_rate choice [0.01, 0.02, 0.03]\n")
    ranges = program_here(*arguments, "--epochs=1")
    assert "was begun with other ranges" in ranges.stderr
    assert "Traceback" not in other.stderr + metric.stderr + ranges.stderr
    assert program(*arguments, "--epochs=2", "--name=second").returncode == 0


def test_a_wrong_range_is_mended_and_what_failed_is_tried_again(
    program, program_here, data_path, tmp_path
):
    file = tmp_path / "mine.hyper"
    file.write_text("embedding_size uniform 8.1,8.9\n")
    arguments = (
        *("search", "--model=ESMM", "--dataset=tiny", f"--data_path={data_path}", "--epochs=1"),
        *("--params_file=mine.hyper", "--trials=1", "--mlp_hidden_size=[4]"),
    )
    wrong = program_here(*arguments)
    assert wrong.returncode == 2
    assert "embedding_size must be a whole number" in wrong.stderr
    file.write_text("embedding_size choice [4]\n")

    (tmp_path / "broken.py").write_text(
        "from pathlib import Path\n"
        "from recbole_escm2.model import ESMM\n"
        "class Broken(ESMM):\n"
        "    def task_risks(self, interaction):\n"
        "        if Path('full').exists():\n"
        "            raise OSError('no space left')\n"
        "        return super().task_risks(interaction)\n"
    )
    (tmp_path / "full").touch()
    arguments = ("search", "--model=broken:Broken", *arguments[2:])
    failed = program(*arguments)
    assert failed.returncode == 2
    assert "no space left" in failed.stderr
    (tmp_path / "full").unlink()
    again = program(*arguments)
    assert again.returncode == 0, again.stderr
    assert "1 trials completed, 0 pruned, 0 failed" in again.stdout


@pytest.mark.slow
def test_two_searches_share_a_study(data_path, tmp_path):
    (tmp_path / "mine.hyper").write_text("learning_rate loguniform -7,-3\n")
    command = [
        *(sys.executable, "-m", "recbole_escm2", "search", "--model=ESMM", "--dataset=tiny"),
        *(f"--data_path={data_path}", "--params_file=mine.hyper", "--trials=6", "--epochs=1"),
        *("--embedding_size=4", "--mlp_hidden_size=[4]"),
    ]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = [re.findall(r"trial (\d+):", text) for text in said]
    assert sorted(map(int, done[0] + done[1])) == list(range(6))


def test_a_storage_without_room_is_said_in_one_line(options, monkeypatch, capsys):
    """Whenever that is; a database that holds pages enough to be made, and no more, is full."""
    given = [f"--{key}={value}" for key, value in {**options, "model": "ESMM", "trials": 1}.items()]
    opened = Searcher._open

    def open_and_fill(self):
        opened(self)
        with self.storage.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    monkeypatch.setattr(Searcher, "_open", open_and_fill)
    monkeypatch.setattr(RDBStorage, "set_trial_user_attr", _fill(RDBStorage.set_trial_user_attr))
    assert main(["search", *given]) == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("error: ")]
    assert line.startswith("error: storage sqlite:///")
    assert line.endswith("study.db: database or disk is full")


def _fill(write):
    """More than the free space of its pages."""
    return lambda self, trial, key, value: write(self, trial, key, [value, "x" * 10**6])


@pytest.mark.parametrize("score", [0.5, None])
def test_a_trial_that_another_search_took_over_is_left_to_it(options, score):
    asked = make_search({**options, "model": "ESMM", "trials": "1"})
    asked.folder.mkdir(parents=True)
    searcher, other = Searcher(asked), Searcher(asked)
    run = searcher._propose()
    assert run is not None
    (trial,) = searcher._at_work.values()
    other.study.tell(trial.number, state=TrialState.FAIL)
    other.try_again()
    epochs = [{"epoch": 0, "valid": {asked.metric: 0.5}}]
    process = SimpleNamespace(run=run, stopped=None, history=lambda: epochs)
    searcher._watch(process)
    result = {"best_valid_score": score, "valid_metric": asked.metric, "valid_score_bigger": True}
    result |= {"trainings": [{"epochs": epochs}], "test_result": {}}
    searcher._tell(trial, Outcome(run, result if score else None, "why"))
    assert searcher.trials() == []
    (again,) = searcher.trials(TrialState.WAITING)
    assert again.params == trial.params


def test_trials_give_signs_of_life_while_the_search_waits(options, monkeypatch):
    monkeypatch.setattr(search_module, "_HEARTBEAT", 0.01)
    asked = make_search({**options, "model": "ESMM", "trials": "1"})
    asked.folder.mkdir(parents=True)
    searcher, beaten = Searcher(asked), threading.Event()
    monkeypatch.setattr(searcher.storage, "record_heartbeat", lambda trial: beaten.set())

    def execute(runs, jobs, watch):
        next(runs)
        beaten.clear()  # of the one that a proposal begins with
        assert beaten.wait(60)
        return iter(())

    monkeypatch.setattr(search_module, "execute", execute)
    monkeypatch.setattr(searcher, "_wait_for_others", lambda: False)
    searcher.search()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model=ESMM", "--storage=foo"], "storage foo: "),
        (["--model=ESMM", "--output_dir=/dev/null/x"], "can't be made"),
        (["--model=ESMM,ESCM2_IPS"], "a search is of one model"),
        (["--model=ESMM", "--sampler=grid"], "sampler must be tpe or random"),
        (["--model=ESMM", "--params_file=none.hyper"], "params_file none.hyper"),
        (["--model=ESMM", "--trials=0"], "trials must be a whole number >= 1"),
        (["--model=ESMM", "--trials=few"], "trials must be a whole number >= 1"),
        (["--model=ESMM", "--global_weight=0,1"], "global_weight has several values"),
    ],
)
def test_mistakes_end_in_one_message(program_here, data_path, change, message):
    done = program_here("search", "--dataset=tiny", f"--data_path={data_path}", *change)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def learned_and_not(study, learned, failed):
    """A study with trials of one value each, of which some are worse than a constant."""
    trials = [(value, []) for value in learned] + [(value, [None]) for value in failed]
    for value, worse in trials:
        study.add_trial(
            create_trial(
                value=value,
                params={"x": value},
                distributions={"x": FloatDistribution(0, 1)},
                intermediate_values={0: value},
                user_attrs={"worse_than_constant": worse, "excess_loss": 5.0 if worse else 0.0},
                system_attrs={"constraints": [5.0 if worse else 0.0]},
            )
        )
    return study


@pytest.mark.parametrize(
    ("learned", "failed", "value", "pruned"),
    [
        ([0.4, 0.5, 0.6, 0.7, 0.8], [1.0] * 9, 0.7, False),
        ([0.4, 0.5, 0.6, 0.7, 0.8], [1.0] * 9, 0.5, True),
        ([], [1.0] * 9, 0.5, False),
    ],
)
def test_trials_worse_than_a_constant_prune_no_others(learned, failed, value, pruned):
    study = optuna.create_study(direction="maximize", pruner=search_module._MedianOfLearned())
    trial = learned_and_not(study, learned, failed).ask()
    trial.report(value, 0)
    assert trial.should_prune() == pruned


def test_proposals_are_like_the_best_that_has_learned():
    study = optuna.create_study(direction="maximize")
    learned_and_not(study, np.linspace(0.2, 0.4, 20).tolist(), [0.99] * 20)
    drawn = []
    for number in range(20):
        study.sampler = sampler_of("tpe", 1, number, search_module._excess_of)
        drawn.append(study.ask({"x": FloatDistribution(0, 1)}).params["x"])
    assert np.mean(drawn) < 0.6


def test_how_much_worse_than_a_constant():
    worse = {"task": "ctr", "log_loss": 0.6, "constant": 0.4}
    assert excess_loss({"worse_than_constant": None, "trainings": []}) == 0
    assert excess_loss({"worse_than_constant": worse}) == pytest.approx(0.5)
    of_pair = [{"worse_than_constant": None}, {"worse_than_constant": {**worse, "log_loss": 0.8}}]
    assert excess_loss({"worse_than_constant": worse, "trainings": of_pair}) == pytest.approx(1.0)
    assert excess_loss({"worse_than_constant": {**worse, "log_loss": None}}) > 1e6
