"""Rows that are tuned before they are compared: one budget, on validation alone."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from recbole_escm2.benchmark.plan import make_plan
from recbole_escm2.benchmark.study import Trial, Tuning
from recbole_escm2.benchmark.tuning import tuned
from recbole_escm2.errors import UsageError


def drawn(options: dict[str, str]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for candidate, run in make_plan(options).tuning:
        assert dict(candidate.row.settings).items() >= candidate.chosen.items()
        assert run.settings.items() >= candidate.chosen.items()
        found.setdefault(candidate.label, []).append(dict(candidate.chosen))
    return found


def test_a_row_is_tried_as_it_is_and_a_family_tries_the_same_values(options):
    found = drawn({**options, "model": "ESMM,ESCM2_IPS,DeepFM", "trials": "4"})
    assert list(found) == ["ESMM", "ESCM2_IPS", "DeepFM"]
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
    free = {"mlp_hidden_size", "dropout_prob", "embedding_weight_decay"}
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
    ],
)
def test_mistakes(options, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("few.hyper").write_text("cross_layer_num choice [1, 2]\n")
    Path("b.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        make_plan({**options, "benchmark": "b.yaml"})


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
    rows = make_plan({**options, "model": "ESMM"}).rows
    tried = [Trial({"trial": n}, s, bigger, f"run{n}") for n, s in enumerate(scores)]
    tuning = Tuning(len(scores), 1, "CTCVR_AUC", {"ESMM": tried})
    assert tuning.best("ESMM") is tried[best]
    again = replace(rows[0], label="again", aa=True)
    for row in tuned([*rows, again], tuning, "ESMM"):  # the A/A row has the baseline's
        assert row.settings["trial"] == best


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
    kill_at("[2/9]", *arguments)

    done = program(*arguments)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    (there,) = re.findall(r"3 rows, 3 trials each, 9 runs, of which (\d) are done", done.stderr)
    assert 1 <= int(there) < 9
    assert "on validation" in done.stderr
    assert "tuned in LR: learning_rate\n" in done.stderr
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
    assert [row["label"] for row in report["rows"]] == [*tuning["by_row"], again]
    for row in report["rows"]:
        of = row["label"].removesuffix(" again (A/A)")
        tried = [t for t in tuning["by_row"][of] if t["score"] is not None]
        best = max(tried, key=lambda trial: trial["score"])
        for run in row["runs"].values():
            assert run["config"].items() >= best["chosen"].items()
        # what was tried is scored on validation alone: no trial's run is a run of the table
        assert all(t["run"] not in run["run_dir"] for t in tried for run in row["runs"].values())
    with open(folder / "trials.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 9
    assert {row["row"] for row in trials if row["chosen"] == "1"} == set(tuning["by_row"])
    (failed,) = (row for row in trials if not row["valid_CTCVR_AUC"])
    assert (failed["row"], failed["trial"], failed["mlp_hidden_size"]) == ("broken:Half", "0", "")
    assert "not as it is" in failed["reason"]
    shown = (folder / "report.md").read_text()
    assert "## The settings that were chosen" in shown
    assert "of 3 that were tried, its own and 2 drawn at random" in shown
    assert "Chosen by tuning" in (folder / "report.html").read_text()

    # finished: the same table at once; one more trial runs that alone
    again = program(*arguments)
    assert again.stdout == done.stdout
    assert "9 runs, of which 8 are done" in again.stderr  # the one that failed is tried again
    more = program(*(a.replace("trials=3", "trials=4") for a in arguments))
    assert "12 runs, of which 8 are done" in more.stderr
