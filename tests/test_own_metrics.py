"""Metrics that are functions of a user's own, and several metrics as one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recbole_escm2
from recbole_escm2.command_line import main
from recbole_escm2.config import Config
from recbole_escm2.data.truth import Truth
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.catalogue import Setting, spec_of
from recbole_escm2.evaluator.intervals import intervals
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.experiment.request import read_request
from recbole_escm2.experiment.space import ranges_of
from recbole_escm2.metric_names import (
    bigger_is_better,
    canonical_name,
    combined,
    is_metric,
    metric,
    score_of,
    task_of,
)
from recbole_escm2.model import ESMM
from recbole_escm2.own_code import without_own_metrics
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.tasks import metric_for, product_metric
from recbole_escm2.train.code import code_of

CODE = """\
import numpy as np

from recbole_escm2 import metric
from recbole_escm2.evaluator.metrics import UndefinedMetricError


@metric(task="ctr")
def hit_rate(label, score):
    \"\"\"Share of positives among the tenth of the rows that score highest.\"\"\"
    top = np.argsort(-score, kind="stable")[: max(1, len(score) // 10)]
    return np.mean(label[top])


@metric(task="cvr", bigger=False)
def brier(label, score):
    return float(np.mean((score - label) ** 2))


@metric(task="ctr")
def users(label, score, user):
    return len(np.unique(user))


@metric(task="ctcvr", target=0.0)
def bias(predictions):
    return float(np.mean(predictions.of("ctcvr")) - predictions.truth.base_rates()["ctcvr"])


@metric()
def wrong(label, score):
    return score / 0 if False else label + "text"


@metric()
def nothing(label, score):
    return float("nan")


@metric()
def greedy(label, score):
    score[0] = 1.0
    return 0.0


@metric()
def undefined(label, score):
    raise UndefinedMetricError("too few rows")


def unmarked(label, score):
    return 0.0


@metric()
def other_names(y, p):
    return 0.0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module with metrics in the current folder, another for each test."""
    monkeypatch.chdir(tmp_path)
    name = f"own_metrics_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    score = rng.random(500)
    truth = Truth(
        (rng.random(500) < score).astype(int),
        (rng.random(500) < 0.3).astype(int),
        rng.integers(1, 30, 500),
    )
    return Predictions(truth, {"ctr": score, "cvr": score / 2, "ctcvr": score**2 / 2})


def value(name, predictions):
    return spec_of(name).value(predictions, Setting())


class TestOwn:
    def test_a_run_computes_and_is_chosen_by_it(self, own, settings):
        names = [f"{own}:hit_rate", f"{own}:brier", f"{own}:users", f"{own}:bias", "CTR_AUC"]
        given = {**settings, "epochs": 2, "metrics": names, "valid_metric": f"{own}:brier"}
        outcome = run("ESMM", "tiny", config_dict=given)
        result = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
        assert list(result["test_result"]) == names
        assert result["valid_metric"] == f"{own}:brier"
        assert outcome["valid_score_bigger"] is False
        assert outcome["test_result"][f"{own}:users"] == 60
        valid = [epoch["valid"][f"{own}:brier"] for epoch in result["trainings"][0]["epochs"]]
        assert outcome["best_valid_score"] == min(valid)

    def test_is_named_on_the_command_line(self, own, settings, capsys):
        words = [f"--{k}={v}" for k, v in settings.items() if k != "metrics"]
        names = f"--metrics={own}:hit_rate,CTR_AUC"
        assert main(["--model=ESMM", "--dataset=tiny", names, *words]) == 0
        said = capsys.readouterr().out
        assert f"{own}:hit_rate: 0." in said
        header = next(line for line in said.splitlines() if line.startswith("metric"))
        assert header.split() == ["metric", "CTR", "CTCVR"]  # valid_metric is computed, too

    def test_is_a_column_of_a_benchmark(self, own, settings, capsys):
        words = [f"--{k}={v}" for k, v in settings.items()]
        many = ["--model=ESMM,Naive", "--dataset=tiny", "--seeds=1", "--name=mine"]
        assert main([*many, f"--columns={own}:hit_rate,CTR_AUC", *words]) == 0
        table = pd.read_csv(Path(settings["output_dir"]) / "mine" / "table.csv")
        found = table[table["metric"] == f"{own}:hit_rate"]
        assert list(found["row"]) == ["ESMM", "Naive"]
        assert set(found["direction"]) == {"higher"}
        assert found["mean"].between(0, 1).all()

    def test_may_be_the_function_itself_in_python(self, predictions):
        @metric(task="ctr")
        def inside(label, score):
            return 0.0

        globals()["at_the_top"] = metric(task="ctr")(at_the_top)
        assert is_metric(f"{__name__}:at_the_top")
        table = pd.DataFrame({"click": predictions.truth.click, "pctr": predictions.of("ctr")})
        found = recbole_escm2.score(table, metrics=[at_the_top, "CTR_AUC"])
        assert found.values["model"][f"{__name__}:at_the_top"].value == 0.25
        with pytest.raises(UsageError, match="no function"):
            recbole_escm2.score(table, metrics=[inside])

    def test_score_takes_it_with_an_interval(self, own, predictions, tmp_path, capsys):
        table = pd.DataFrame(
            {
                "click": predictions.truth.click,
                "conversion": predictions.truth.conversion,
                "user_id": predictions.truth.user,
                **{f"p{task}": values for task, values in predictions.score.items()},
            }
        )
        table.to_parquet("mine.parquet")
        words = ["score", "--predictions=mine.parquet", f"--metrics={own}:brier"]
        assert main([*words, "--out=out"]) == 0
        line = pd.read_csv("out/table.csv").iloc[0]
        assert (line["metric"], line["direction"]) == (f"{own}:brier", "lower")
        assert line["low"] < line["value"] < line["high"]

    def test_its_interval_is_that_of_drawn_users(self, own, predictions):
        Config("ESMM", "ml-100k", config_dict={"metrics": [f"{own}:brier"]})
        value, low, high = intervals(predictions, [f"{own}:brier"])[f"{own}:brier"]
        clicked = predictions.truth.click > 0
        errors = (predictions.of("cvr") - predictions.truth.conversion)[clicked] ** 2
        assert value == pytest.approx(errors.mean())
        half = 1.96 * errors.std() / np.sqrt(len(errors))  # users don't matter here
        assert (high - low) / 2 == pytest.approx(half, rel=0.4)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("wrong", r"own_metrics_\d+\.py, line 31, in wrong: .*Error"),
            ("nothing", "has returned nan, and must return a finite number"),
            ("greedy", r"own_metrics_\d+\.py, line 41, in greedy: ValueError: assignment"),
        ],
    )
    def test_a_mistake_in_it_is_told_with_its_place(self, own, predictions, name, said):
        Config("ESMM", "ml-100k", config_dict={"metrics": [f"{own}:{name}"]})
        with pytest.raises(UsageError, match=said):
            value(f"{own}:{name}", predictions)

    def test_one_without_a_value_says_why(self, own, predictions):
        Config("ESMM", "ml-100k", config_dict={"metrics": [f"{own}:undefined"]})
        assert intervals(predictions, [f"{own}:undefined"]).undefined == {
            f"{own}:undefined": "too few rows"
        }

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("{}:unmarked", "isn't marked as a metric: put @recbole_escm2.metric"),
            ("{}:hitrate", "no function 'hitrate' \\(did you mean hit_rate\\?\\)"),
            ("{}:other_names", "takes 'y'; a metric takes label and score"),
            ("no_such_module:f", "no module 'no_such_module'"),
            ("{}.py:f", "not a file"),
        ],
    )
    def test_what_is_none_is_told(self, own, name, said):
        with pytest.raises(UsageError, match=said):
            Config("ESMM", "ml-100k", config_dict={"metrics": [name.format(own)]})

    def test_a_task_that_there_is_not_is_refused(self):
        with pytest.raises(ValueError, match="task must be one of"):
            metric(task="clicks")
        with pytest.raises(ValueError, match="entire_space"):
            metric(task="ctr", entire_space=True)

    def test_its_code_is_part_of_what_a_run_depends_on(self, own, tmp_path):
        Config("ESMM", "ml-100k", config_dict={"metrics": [f"{own}:brier"]})
        before = code_of(ESMM, [f"{own}:brier"])
        assert before != code_of(ESMM)
        file = tmp_path / f"{own}.py"
        file.write_text(file.read_text().replace("** 2", "** 4"))
        assert code_of(ESMM, [f"{own}:brier"]) != before


@metric(task="ctr")
def at_the_top(label, score):
    return 0.25


class TestNoFileChoosesCode:
    @pytest.mark.parametrize(
        "settings",
        [
            {"metrics": ["CTR_AUC", "planted_metric:f"]},
            {"valid_metric": "0.5*planted_metric:f+0.5*CTR_AUC"},
            {"primary": "planted_metric:f"},
        ],
    )
    def test_config_and_benchmark_files(self, tmp_path, settings):
        file = tmp_path / "a.yaml"
        file.write_text(json.dumps(settings))
        (key,) = settings
        said = rf"a\.yaml.*{key}: planted_metric:f would be code that a file chooses"
        with pytest.raises(UsageError, match=said):
            Config("ESMM", "ml-100k", config_file_list=[str(file)])
        for content in (settings, {"models": {"a": {"model": "ESMM", **settings}}}):
            file.write_text(json.dumps({"models": ["ESMM"], **content}))
            with pytest.raises(UsageError, match=said):
                read_request({"benchmark": str(file)})

    def test_ranges(self, tmp_path):
        file = tmp_path / "a.hyper"
        file.write_text("valid_metric choice ['CTCVR_AUC', 'planted_metric:f']\n")
        request = read_request({"model": "ESMM", "dataset": "ml-100k"})
        entry = replace(request.entries[0], params_file=str(file))
        with pytest.raises(UsageError, match="planted_metric:f would be code"):
            ranges_of(request, entry)

    def test_a_checkpoint(self, own, settings):
        given = {**settings, "epochs": 1, "valid_metric": f"{own}:hit_rate"}
        given["metrics"] = ["CTR_AUC", f"{own}:users"]
        outcome = run("ESMM", "tiny", config_dict=given)
        checkpoint = Path(outcome["run_dir"]) / "checkpoint.pth"
        places = {k: v for k, v in settings.items() if k in ("data_path", "output_dir")}
        again = evaluate_checkpoint(checkpoint, config_dict=places)
        Path("a.yaml").write_text("metrics: [planted_metric:f]")
        with pytest.raises(UsageError, match=r"a\.yaml: metrics: planted_metric:f"):
            evaluate_checkpoint(checkpoint, config_dict=places, config_file_list=["a.yaml"])
        assert f"{own}:users" not in again["test_result"]
        assert again["test_result"]["CTR_AUC"] == outcome["test_result"]["CTR_AUC"]
        asked = evaluate_checkpoint(checkpoint, config_dict={**places, "metrics": [f"{own}:users"]})
        assert asked["test_result"][f"{own}:users"] == 60

    def test_settings_without_them(self):
        own = {"metrics": ["a:b", "CTR_AUC"], "valid_metric": "a:b", "epochs": 3}
        assert without_own_metrics(own) == {"metrics": ["CTR_AUC"], "epochs": 3}


class TestCombined:
    def test_is_the_weighted_mean_larger_being_better(self, predictions):
        name = "0.7*CTCVR_AUC+0.2*CTR_LogLoss+0.1*CTR_PCOC"
        one = {part: value(part, predictions) for part in ("CTCVR_AUC", "CTR_LogLoss", "CTR_PCOC")}
        wanted = 0.7 * one["CTCVR_AUC"] - 0.2 * one["CTR_LogLoss"]
        wanted -= 0.1 * score_of("CTR_PCOC", one["CTR_PCOC"])
        assert value(name, predictions) == pytest.approx(wanted)
        assert bigger_is_better(name)
        assert canonical_name("1*ctcvr_auc + 3*ctr_auc") == "1*CTCVR_AUC+3*CTR_AUC"
        assert canonical_name("2*ctcvr_auc+2*ctr_auc") == "CTCVR_AUC+CTR_AUC"
        assert canonical_name("2*ctr_auc+2*ctr_ks") == "2*CTR_AUC+2*CTR_KS"
        assert value("CTCVR_AUC+CTR_AUC", predictions) == pytest.approx(
            (one["CTCVR_AUC"] + value("CTR_AUC", predictions)) / 2
        )

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("CTCVR_AUC+CVR_LogLoss", "each needs a weight: 1*CTCVR_AUC+1*CVR_LogLoss"),
            ("0.5*CTCVR_AUC+CVR_LogLoss", "each needs a weight"),
            ("0*CTCVR_AUC+1*CTR_AUC", "must be a number above 0"),
            ("x*CTCVR_AUC+1*CTR_AUC", "must be a number above 0"),
            ("CTCVR_AUC+CTCVR_AUK", "no metric 'CTCVR_AUK'"),
            ("CTCVR_AUC+CTCVR_AUC", "stands there twice"),
            ("1*CTCVR_AUC+1*CVR_CRR", "knows no better or worse"),
            ("CTCVR_NDCG@10+CTR_NDCG@10", "one metric for each K"),
            ("CTR_AUC+AUC", "is RecBole's"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, name, said):
        with pytest.raises(UsageError) as error:
            Config("ESMM", "ml-100k", config_dict={"valid_metric": name})
        assert said in str(error.value)

    def test_may_be_a_mapping(self):
        given = {"valid_metric": {"ctcvr_auc": 0.7, "CTR_LogLoss": 0.3}}
        config = Config("ESMM", "ml-100k", config_dict=given)
        assert config["valid_metric"] == "0.7*CTCVR_AUC+0.3*CTR_LogLoss"
        words = {"valid_metric": "{CTCVR_AUC: 0.7, CTR_LogLoss: 0.3}"}
        again = Config("ESMM", "ml-100k", command_line=words)
        assert again["valid_metric"] == config["valid_metric"]
        one = Config("ESMM", "ml-100k", config_dict={"valid_metric": {"CTCVR_AUC": 2}})
        assert one["valid_metric"] == "CTCVR_AUC"

    def test_each_part_has_to_be_predicted(self):
        with pytest.raises(UsageError, match="CTCVR_AUC scores ctcvr, but DeepFM learns ctr"):
            Config("DeepFM", "ml-100k", config_dict={"valid_metric": "CTCVR_AUC+CTR_AUC"})

    def test_of_two_models_each_has_its_own(self):
        both = Config(
            "DeepFM", "ml-100k", config_dict={"valid_metric": "CTCVR_AUC+CTR_AUC", "task": "both"}
        )
        assert metric_for("ctr", both["valid_metric"]) == "CTR_AUC"
        assert product_metric(both) == "CTCVR_LogLoss"
        assert task_of("CTR_AUC+CTR_GAUC") is None or combined("CTR_AUC+CTR_GAUC") is None
        assert metric_for("ctr", "1*CTR_AUC+1*CTR_GAUC") == "1*CTR_AUC+1*CTR_GAUC"

    def test_chooses_the_epoch_of_a_run(self, settings):
        name = "0.5*CTCVR_AUC+0.5*CTR_LogLoss"
        given = {**settings, "epochs": 3, "valid_metric": name}
        outcome = run("ESMM", "tiny", config_dict=given)
        shown = name
        result = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
        assert result["valid_metric"] == shown
        valid = [epoch["valid"] for epoch in result["trainings"][0]["epochs"]]
        assert outcome["best_valid_score"] == max(epoch[shown] for epoch in valid)
        one = outcome["best_valid_result"]
        assert one[shown] == pytest.approx((one["CTCVR_AUC"] - one["CTR_LogLoss"]) / 2)
