"""Runs and benchmarks from Python: tables, figures, and what a notebook shows of them."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from studies import realistic

from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.report.notebook import BenchmarkResult

#: What a kernel of Jupyter has there, and what would change the run if anything read it.
HOSTILE = ["ipykernel_launcher.py", "-f", "kernel.json", "--epochs=0", "--model=LR", "search"]
SCRIPT = """\
import recbole_escm2

study = recbole_escm2.benchmark(
    {"ESMM": None, "slow ESMM": {"model": "ESMM", "learning_rate": 0.0001}},
    "tiny", seeds=2, jobs=2, aa_row=False, by="category", **SETTINGS
)
print(study.table.to_json())
print(sorted(study.runs["state"].unique()), len(study.runs), study.failures)
print(len(study.groups), type(study.figure("CTCVR_AUC")).__name__, study.figures)
print(study._repr_html_()[:6])
print(study.study.command[:60])
"""


def test_a_run_is_a_dict_with_tables(settings, places, monkeypatch):
    monkeypatch.setattr(sys, "argv", HOSTILE)
    asked = {"by": "category", "save_predictions": True}
    outcome = run("ESCM2_IPS", "tiny", config_dict={**settings, **asked})
    assert isinstance(outcome, dict)
    assert json.dumps(outcome["groups"])
    table = outcome.table
    assert [*table.columns] == ["CTR", "CVR", "CTCVR"]
    assert table.loc["AUC", "CVR"] == outcome["test_result"]["CVR_AUC"]
    assert np.isnan(table.loc["AUC_ES", "CTR"])
    history = outcome.history
    assert [*history["epoch"]] == [0, 1]
    assert history.loc[outcome["best_epoch"], "CTCVR_AUC"] == outcome["best_valid_score"]
    assert (history["loss_ctr"] > 0).all()
    groups = outcome.groups
    assert set(groups["group"]) == {f"c{n}" for n in range(5)}
    assert len(outcome.predictions) == 400
    assert outcome.by_user["impressions"].sum() == 400
    shown = outcome._repr_html_()
    assert f"{outcome['test_result']['CTR_AUC']:.4f}" in shown
    assert "CTR and CTCVR: over all impressions." in shown

    again = evaluate_checkpoint(f"{outcome['run_dir']}/checkpoint.pth", config_dict=places)
    pd.testing.assert_frame_equal(again.table, table)
    assert again.history.empty


def test_what_wasnt_kept_is_said(settings):
    outcome = run("ESMM", "tiny", config_dict=settings, saved=False)
    with pytest.raises(UsageError, match="save_predictions: True keeps"):
        _ = outcome.predictions
    assert outcome.groups.empty


def test_two_trainings_have_one_history(settings):
    outcome = run("DeepFM", "tiny", config_dict={**settings, "task": "both"}, saved=False)
    assert [*outcome.history["task"].unique()] == ["ctr", "cvr"]


def test_a_study_is_tables_and_figures():
    study = realistic()
    result = BenchmarkResult(study, {})
    table = result.table
    assert [*table.index] == [row.label for row in study.rows]
    label, metric = table.index[0], study.shown[0]
    assert table.loc[label, metric] == study.table[label][metric].sample.mean
    assert len(result.runs) == len(study.rows) * len(study.seeds)
    assert {"mean", "low", "high", "verdict"} <= {*result.numbers.columns}
    assert isinstance(result.figure(metric), Figure)
    assert len(result.figure(metric).axes) == 1
    assert "metrics" in result.figures
    assert isinstance(
        result.figure("learning-1" if "learning-1" in result.figures else "learning"), Figure
    )
    with pytest.raises(UsageError, match="there is no figure 'CTR_AUK'"):
        result.figure("CTR_AUK")
    shown = result._repr_html_()
    assert "<table" in shown
    assert f"{study.table[label][metric].sample.mean:.4f}" in shown


def test_a_script_without_a_guard_runs_a_benchmark(settings, tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(SCRIPT.replace("SETTINGS", repr(settings)))
    done = subprocess.run(
        [sys.executable, str(script), *HOSTILE[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table, states, kinds, html, command = done.stdout.splitlines()
    assert set(json.loads(table)["CTCVR_AUC"]) == {"ESMM", "slow ESMM"}
    assert states == "['finished'] 4 {}"
    assert "Figure" in kinds
    assert "groups-category" in kinds
    assert html == "<table"
    assert command.startswith("recbole_escm2.benchmark({'ESMM': None, 'slow ESMM'")
