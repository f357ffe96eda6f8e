"""The page of what options do: from benchmarks' reports to tables, failures too."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from recbole_escm2.experiment.request import read_request

ROOT = Path(__file__).parent.parent


@pytest.fixture
def defaults(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import defaults

    return defaults


def numbers(mean, primary=True, **others):
    of_baseline = ("difference", "difference_low", "difference_high", "p_adjusted", "verdict")
    of_lr = ("lr_difference", "lr_difference_low", "lr_difference_high", "lr_verdict", "smallest")
    return {
        **dict.fromkeys((*of_baseline, *of_lr)),
        "n": 2,
        "mean": mean,
        "primary": primary,
    } | others


def finished(score):
    result = {"best_valid_result": {"CTCVR_AUC": score}, "test_result": {"CTCVR_AUC": score}}
    return {**result, "best_epoch": 1, "epochs": 4, "seconds": 2.5}


REPORT = {
    "baseline": "none",
    "seeds": [1, 2],
    "problems": [{"row": "L2", "seeds": [2], "reason": "out of memory"}],
    "rows": [
        {
            "label": "none",
            "settings": {"embedding_weight_decay": 0.0},
            "metrics": {"CTCVR_AUC": numbers(0.7), "CTR_AUC": numbers(0.6, primary=False)},
            "runs": {"1": finished(0.7), "2": finished(0.7)},
        },
        {
            "label": "L2",
            "settings": {"embedding_weight_decay": 0.001, "learning_rate": 0.003},
            "metrics": {
                "CTCVR_AUC": numbers(
                    0.75,
                    difference=0.05,
                    difference_low=0.04,
                    difference_high=0.06,
                    verdict="better",
                    lr_difference=-0.01,
                )
            },
            "runs": {"1": finished(0.75)},
        },
    ],
    "tuning": {
        "metric": "CTCVR_AUC",
        "by_row": {
            "L2": [
                {"chosen": {}, "score": 0.7, "bigger": True, "reason": "", "metric": None},
                {
                    "chosen": {"learning_rate": 0.003},
                    **{"score": 0.72, "bigger": True, "reason": "", "metric": None},
                },
                {
                    "chosen": {"x": 1},
                    "score": None,
                    "bigger": True,
                    "reason": "NaN",
                    "metric": None,
                },
            ]
        },
    },
}


def test_from_reports_to_a_page(defaults, tmp_path):
    folder = tmp_path / "output" / "defaults-options-coat"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(REPORT))
    tables, page = tmp_path / "tables", tmp_path / "page.md"
    tables.mkdir()
    assert defaults.collect(Namespace(output=tmp_path / "output", tables=tables)) == 0
    found = {
        name: list(csv.DictReader((tables / f"{name}.csv").open())) for name in defaults.COLUMNS
    }
    assert [(run["row"], run["seed"], run["failure"]) for run in found["runs"]] == [
        *(("none", "1", ""), ("none", "2", ""), ("L2", "1", ""), ("L2", "2", "out of memory")),
    ]
    assert [trial["chosen"] for trial in found["trials"]] == ["False", "True", "False"]
    assert found["trials"][2]["failure"] == "NaN"
    assert defaults.page(Namespace(tables=tables, page=page)) == 0
    text = page.read_text()
    assert (
        "| coat | L2, learning_rate=0.003 | 2 | CTCVR_AUC | 0.7500 | +0.0500 [+0.0400, +0.0600] ▲"
        in text
    )
    assert "CTR_AUC" not in text.replace("CTCVR_AUC", "")  # no primary metric
    assert "| row | coat |\n| --- | ---: |\n| none | 0.7000 |\n| L2 | 0.7500 |" in text
    assert "- options on ml-100k\n" in text
    assert "- options on coat\n" not in text


def test_the_page_is_what_the_tables_say(defaults, tmp_path):
    page = tmp_path / "defaults.md"
    assert defaults.page(Namespace(tables=ROOT / "results" / "defaults", page=page)) == 0
    assert page.read_text() == (ROOT / "results" / "defaults.md").read_text()


def test_every_option_is_a_benchmark_with_a_logistic_regression(defaults):
    for option in defaults.OPTIONS:
        file = defaults.HERE / f"{option}.yaml"
        labels = [row.label for row in read_request({"benchmark": str(file)}).entries]
        assert yaml.safe_load(file.read_text())["baseline"] == labels[0]
        assert defaults.LOGISTIC_REGRESSION in labels
