"""Rows that are tuned before they are compared: one budget, on validation alone."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.plan import make_experiment, with_tuned_rows
from recbole_escm2.experiment.study import Trial, Tuning
from recbole_escm2.report.tables import trials_csv, tuning_table


def drawn(options: dict[str, str]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for candidate in make_experiment(options).tuning:
        assert dict(candidate.run.row.settings).items() >= candidate.chosen.items()
        assert candidate.run.settings.items() >= candidate.chosen.items()
        found.setdefault(candidate.label, []).append(dict(candidate.chosen))
    return found


def test_a_row_is_tried_as_it_is_and_a_family_tries_the_same_values(options):
    found = drawn({**options, "model": "ESMM,ESCM2_IPS", "trials": "4"})
    assert list(found) == ["ESMM", "ESCM2_IPS"]
    for tried in found.values():
        assert len(tried) == 4
        assert tried[0] == {}
        assert len({repr(chosen) for chosen in tried}) == 4
    for esmm, ips in zip(found["ESMM"], found["ESCM2_IPS"], strict=True):
        assert ips.items() >= esmm.items()
    assert found["ESCM2_IPS"][1]["counterfactual_weight"] > 0
    more = drawn({**options, "model": "ESMM", "trials": "6"})
    assert more["ESMM"][:4] == found["ESMM"]
    other = drawn({**options, "model": "ESMM", "trials": "2", "tuning_seed": "2"})
    assert other["ESMM"][1] != found["ESMM"][1]


def test_what_somebody_has_set_is_not_tuned(options, tmp_path):
    (tmp_path / "b.yaml").write_text(
        "trials: 3\nglobal_weight: 2.0\n"
        "models:\n  ESMM:\n  wide: {model: ESMM, embedding_size: 4}\n"
    )
    found = drawn({**options, "benchmark": f"{tmp_path}/b.yaml", "learning_rate": "0.01"})
    free = {"mlp_hidden_size", "dropout_prob", "embedding_weight_decay", "embedding_dropout"}
    free |= {"embedding_init", "first_order", "validations_per_epoch", "weight_averaging"}
    assert set(found["ESMM"][1]) == {"embedding_size", *free}
    assert set(found["wide"][1]) == free


def test_a_row_has_ranges_of_its_own_and_a_class_a_file_beside_it(options, tmp_path, monkeypatch):
    (tmp_path / "few.hyper").write_text("learning_rate choice [0.1, 0.2]\n")
    (tmp_path / "beside.py").write_text(
        "from recbole_escm2.model import ESMM\n"
        "class Mine(ESMM):\n"
        "    default_config = {'mine': 1.0}\n"
    )
    (tmp_path / "Mine.hyper").write_text("mine uniform 2,3\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "b.yaml").write_text(
        "trials: 2\nmodels:\n"
        f"  ESMM: {{params_file: {tmp_path}/few.hyper}}\n"
        "  mine: {model: 'beside:Mine'}\n"
    )
    found = drawn({**options, "benchmark": f"{tmp_path}/b.yaml"})
    assert set(found["ESMM"][1]) == {"learning_rate"}
    assert found["ESMM"][1]["learning_rate"] in (0.1, 0.2)
    assert 2 <= found["mine"][1]["mine"] <= 3
    assert "learning_rate" in found["mine"][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trials: 0\nmodels: [ESMM]\n", "trials must be a whole number >= 1"),
        ("trials: 2\ntuning_seed: -1\nmodels: [ESMM]\n", "tuning_seed must be"),
        ("models: {ESMM: {params_file: few.hyper}}\n", "ESMM has a params_file: --trials=N"),
        (
            "trials: 2\nmodels: {ESMM: {params_file: few.hyper}}\n",
            "ESMM: the ranges have cross_layer_num, which ESMM doesn't read",
        ),
        (
            "trials: 2\nmodels: {LR: {learning_rate: 0.1, embedding_weight_decay: 0}}\n",
            "LR: every parameter of the ranges",
        ),
        (
            "trials: 4\nmodels: {LR: {params_file: odd.hyper}}\n",
            "LR, trial 1: ctr_settings has 'impression_sample', which the two models share",
        ),
    ],
)
def test_mistakes(options, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("few.hyper").write_text("cross_layer_num choice [1, 2]\n")
    Path("odd.hyper").write_text("impression_sample uniform 0.1,0.5\n")
    Path("b.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        make_experiment({**options, "benchmark": "b.yaml"})


@pytest.mark.parametrize(
    ("scores", "bigger", "best"),
    [
        ((0.5, 0.7, 0.6), True, 1),
        ((0.5, 0.7, 0.3), False, 2),
        ((0.7, 0.7), True, 0),  # as it is, where nothing is better
        ((None, 0.1), True, 1),
        ((None, None), True, 0),
    ],
)
def test_the_best_on_validation_is_chosen(options, scores, bigger, best):
    plan = make_experiment({**options, "model": "ESMM"})
    tried = [Trial({"epochs": n + 1}, s, bigger, f"run{n}") for n, s in enumerate(scores)]
    tuning = Tuning(len(scores), 1, "CTCVR_AUC", {"ESMM": tried})
    assert tuning.best("ESMM") is tried[best]
    again = replace(plan.rows[0], label="again", aa=True)
    for row in with_tuned_rows(replace(plan, rows=[*plan.rows, again]), tuning).rows:
        assert row.settings["epochs"] == best + 1  # the A/A row has the baseline's


# ------------------------------------------------------------------ a CTR and a CVR model


def tried_by(options, trials, **more):
    """What is tried for each of the two models of DeepFM, and the runs."""
    plan = make_experiment({**options, "model": "ESMM,DeepFM", "trials": str(trials), **more})
    found: dict[str, list[dict]] = {}
    runs: dict[str, list] = {}
    for candidate in plan.tuning:
        found.setdefault(candidate.label, []).append(dict(candidate.chosen))
        runs.setdefault(candidate.label, []).append(candidate.run)
    assert len(found.pop("ESMM")) == trials
    return found, runs


@pytest.mark.parametrize(
    ("trials", "ctr", "cvr"), [(2, 1, 1), (3, 2, 1), (4, 2, 2), (5, 3, 2), (9, 5, 4)]
)
def test_two_models_have_as_many_trainings_as_a_row_has_trials(options, trials, ctr, cvr):
    found, runs = tried_by(options, trials)
    assert {label: len(tried) for label, tried in found.items()} == {
        "DeepFM, CTR model": ctr,
        "DeepFM, CVR model": cvr,
    }
    different = {run.name: run for of_part in runs.values() for run in of_part}
    different = [run for name, run in different.items() if name.startswith("DeepFM")]
    trainings = sum(2 if run.settings["task"] == "both" else 1 for run in different)
    assert trainings == trials
    # the first is the row as it is, all others are of its own and different
    for tried in found.values():
        assert tried[0] == {}
        assert len({repr(chosen) for chosen in tried}) == len(tried)
        assert all("learning_rate" in chosen for chosen in tried[1:])
    assert runs["DeepFM, CTR model"][0].settings.keys().isdisjoint(["ctr_settings", "cvr_settings"])


def test_each_of_two_models_is_trained_with_what_was_drawn_for_it(options):
    found, runs = tried_by(options, 5)
    ctr, cvr = found["DeepFM, CTR model"], found["DeepFM, CVR model"]
    run = runs["DeepFM, CVR model"][1]
    assert run is runs["DeepFM, CTR model"][1]
    assert run.settings["ctr_settings"] == ctr[1] != cvr[1] == run.settings["cvr_settings"]
    alone = runs["DeepFM, CTR model"][2]
    assert alone.settings["task"] == "ctr"
    assert alone.settings.items() >= ctr[2].items()
    # more trials are the same ones and more
    again, _ = tried_by(options, 9)
    assert again["DeepFM, CTR model"][:3] == ctr
    assert again["DeepFM, CVR model"][:2] == cvr
    # a row of one model tries what the CTR model does
    plan = make_experiment({**options, "model": "DeepFM", "task": "ctcvr", "trials": "3"})
    assert dict(plan.tuning[1].chosen) == ctr[1]


def test_what_is_set_for_one_of_two_models_is_tuned_in_the_other(options):
    found, runs = tried_by(options, 4, cvr_settings="{learning_rate: 0.02, epochs: 3}")
    assert "learning_rate" in found["DeepFM, CTR model"][1]
    assert "learning_rate" not in found["DeepFM, CVR model"][1]
    drawn = found["DeepFM, CVR model"][1]
    own = runs["DeepFM, CVR model"][1].settings["cvr_settings"]
    assert own == {"learning_rate": 0.02, "epochs": 3, **drawn}
    assert not any("cvr_settings" in run.settings for run in runs["ESMM"])


def result_of_pair(**scores):
    trainings = [
        {"task": task, "valid_metric": metric, "best_valid_score": s, "valid_score_bigger": bigger}
        for task, metric, bigger in (("ctr", "CTR_AUC", True), ("cvr", "CTCVR_LogLoss", False))
        if (s := scores.get(task)) is not None
    ]
    whole = {"valid_metric": "CTCVR_AUC", "best_valid_score": 0.5, "valid_score_bigger": True}
    return {**whole, "trainings": trainings}


def test_each_of_two_models_is_chosen_by_a_score_of_its_own(options):
    plan = make_experiment({**options, "model": "DeepFM", "trials": "5"})
    alone = {
        "best_valid_score": 0.65,
        "valid_score_bigger": True,
        "valid_metric": "CTR_AUC",
        "trainings": [{"task": None}],
    }
    # trial 0, trial 1, and the CTR model alone: the best CTR model is the first's, the best product
    # the second's
    results = [result_of_pair(ctr=0.7, cvr=0.03), result_of_pair(ctr=0.6, cvr=0.02), alone]
    names = list(dict.fromkeys(candidate.run.name for candidate in plan.tuning))
    by_name = dict(zip(names, results, strict=True))
    by_row: dict[str, list[Trial]] = {}
    for candidate in plan.tuning:
        trial = candidate.trial(by_name[candidate.run.name], "")
        by_row.setdefault(candidate.label, []).append(trial)
    scores = {label: [trial.score for trial in tried] for label, tried in by_row.items()}
    assert scores == {"DeepFM, CTR model": [0.7, 0.6, 0.65], "DeepFM, CVR model": [0.03, 0.02]}
    metrics = {label: {trial.metric for trial in tried} for label, tried in by_row.items()}
    assert metrics == {"DeepFM, CTR model": {"CTR_AUC"}, "DeepFM, CVR model": {"CTCVR_LogLoss"}}
    tuning = Tuning(5, 1, "CTCVR_AUC", by_row)
    again = replace(plan.rows[0], label="again", aa=True)
    row, aa = with_tuned_rows(replace(plan, rows=[*plan.rows, again]), tuning).rows
    assert aa.settings == row.settings
    drawn = by_row["DeepFM, CVR model"][1].chosen
    assert drawn
    assert row.settings == {"task": "both", "cvr_settings": drawn}
    (line,) = (line for line in tuning_table(tuning) if "CVR model" in line[0])
    assert line[1:3] == ["0.0300 (CTCVR_LogLoss)", "0.0200 (CTCVR_LogLoss)"]
    lines = list(csv.DictReader(io.StringIO(trials_csv(tuning))))
    assert [line["valid_CTR_AUC"] for line in lines] == ["0.7", "0.6", "0.65", "", ""]
    assert [line["valid_CTCVR_LogLoss"] for line in lines] == ["", "", "", "0.03", "0.02"]
    assert [line["chosen"] for line in lines] == ["1", "0", "0", "0", "1"]
    # a run that failed is no score of either
    failed = [candidate.trial(None, "why") for candidate in plan.tuning]
    assert {(trial.score, trial.reason) for trial in failed} == {(None, "why")}


@pytest.mark.slow
def test_a_tuned_benchmark_goes_on_where_it_was_killed(program, kill_at, data_path, tmp_path):
    (tmp_path / "broken.py").write_text(
        "from recbole_escm2.model import ESMM\n"
        "class Half(ESMM):\n"
        "    def __init__(self, config, dataset):\n"
        "        super().__init__(config, dataset)\n"
        "        if config['mlp_hidden_size'] == [8]:\n"
        "            raise RuntimeError('not as it is')\n"
    )
    (tmp_path / "Half.hyper").write_text("mlp_hidden_size choice ['[4]']\n")
    (tmp_path / "s.yaml").write_text("mlp_hidden_size: [8]\n")
    arguments = (
        *("--model=ESMM,broken:Half,LR", "--dataset=tiny", f"--data_path={data_path}"),
        *("--seeds=2", "--jobs=2", "--trials=3", "--name=b", "--epochs=2", "--embedding_size=4"),
        *("--train_batch_size=256", "--config_files=s.yaml"),
    )
    kill_at("[2/8]", *arguments)

    done = program(*arguments)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    # LR is a CTR and a CVR model, of which three trainings are two of the one and one of the other
    (there,) = re.findall(r"3 rows, 3 trials each, 8 runs, of which (\d) are done", done.stderr)
    assert 1 <= int(there) < 8
    assert "on validation" in done.stderr
    assert "tuned in LR, CTR model: embedding_weight_decay, learning_rate\n" in done.stderr
    assert "tuned in LR, CVR model" not in done.stderr
    # LR has no layers, which each of its configurations would say
    assert done.stderr.count("config key 'mlp_hidden_size' is not known here") <= 2
    assert re.search(r"^tuned in ESMM, broken:Half: .*mlp_hidden_size", done.stderr, re.MULTILINE)
    where = "broken.py, line 6, in __init__: RuntimeError: not as it is"
    assert f"broken:Half, trial 0, seed 1: failed: {where}" in done.stderr
    assert "3 rows, the baseline again (A/A), 2 seeds, 8 runs, of which 0 are done" in done.stderr

    folder = tmp_path / "output" / "b"
    report = json.loads((folder / "report.json").read_text())
    tuning = report["tuning"]
    assert (tuning["trials"], tuning["seed"], tuning["metric"]) == (3, 1, "CTCVR_AUC")
    assert [trial["score"] is None for trial in tuning["by_row"]["broken:Half"]] == [
        *(True, False, False)
    ]
    again = "ESMM again (A/A)"
    assert [row["label"] for row in report["rows"]] == ["ESMM", "broken:Half", "LR", again]
    for row in report["rows"]:
        of = row["label"].removesuffix(" again (A/A)")
        of = "LR, CTR model" if of == "LR" else of
        tried = [t for t in tuning["by_row"][of] if t["score"] is not None]
        best = max(tried, key=lambda trial: trial["score"])
        if row["label"] == "LR" and best["chosen"]:
            best = {"chosen": {"ctr_settings": best["chosen"]}}
        for run in row["runs"].values():
            assert run["config"].items() >= best["chosen"].items()
        # what was tried is scored on validation alone: no trial's run is a run of the table
        assert all(t["run"] not in run["run_dir"] for t in tried for run in row["runs"].values())
    with open(folder / "trials.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 9
    assert {row["row"] for row in trials if row["chosen"] == "1"} == set(tuning["by_row"])
    (failed,) = (row for row in trials if row["reason"])
    assert not failed["valid_CTCVR_AUC"]
    assert (failed["row"], failed["trial"], failed["mlp_hidden_size"]) == ("broken:Half", "0", "")
    assert "not as it is" in failed["reason"]
    shown = (folder / "report.md").read_text()
    assert "## The settings that were chosen" in shown
    assert "of 3 that were tried, its own and 2 drawn at random" in shown
    assert "3 trainings together: 2 settings of the CTR model, chosen by its own metric" in shown
    assert "Chosen by tuning" in (folder / "report.html").read_text()

    # finished: the same table at once; one more trial runs that alone
    again = program(*arguments)
    assert again.stdout == done.stdout
    assert "8 runs, of which 7 are done" in again.stderr  # the one that failed is tried again
    more = program(*(a.replace("trials=3", "trials=4") for a in arguments))
    assert "10 runs, of which 6 are done" in more.stderr
