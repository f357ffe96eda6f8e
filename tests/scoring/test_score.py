"""Predictions made elsewhere: what is scored is what is there, and agrees with a run's own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import recbole_escm2
from recbole_escm2.command_line import main
from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import run
from recbole_escm2.scoring import show
from recbole_escm2.scoring.score import score

ROWS = 2000


@pytest.fixture(scope="module")
def tables():
    """Labels, and the predictions of two models for the same rows."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=ROWS)
    click = rng.random(ROWS) < 1 / (1 + np.exp(1 - known))
    conversion = click & (rng.random(ROWS) < 0.4)
    labels = pd.DataFrame(
        {
            "row": np.arange(ROWS),
            "user_id": [f"u{n}" for n in rng.integers(40, size=ROWS)],
            "item_id": rng.integers(30, size=ROWS),
            "click": click.astype(int),
            "conversion": conversion.astype(int),
        }
    )

    def predicted(noise):
        logit = known - 1 + noise * rng.normal(size=ROWS)
        pctr = 1 / (1 + np.exp(-logit))
        pcvr = np.full(ROWS, 0.4) + 0.1 * np.tanh(known)
        return pd.DataFrame({"row": labels["row"], "pctr": pctr, "pcvr": pcvr})

    return labels, predicted(0.0), predicted(1.5)


@pytest.fixture
def files(tables, tmp_path, monkeypatch):
    """The same as files in the current folder."""
    monkeypatch.chdir(tmp_path)
    labels, good, noisy = tables
    labels.to_parquet("labels.parquet")
    good.to_csv("good.csv", index=False)
    noisy.sample(frac=1, random_state=1).to_feather("noisy.feather")
    return tmp_path


def test_agrees_with_a_runs_own_metrics_to_the_last_digit(settings):
    given = {**settings, "epochs": 1, "save_predictions": True}
    outcome = run("ESCM2_DR", "tiny", config_dict=given)
    wanted = outcome["test_result"]
    file = Path(outcome["run_dir"]) / "predictions-test.parquet"
    found = score(None, file, decision_threshold=wanted.threshold)
    own = {name: value for name, (value, _, _) in found.values["predictions-test"].items()}
    assert own == dict(wanted)
    assert len(own) > 30


def test_models_are_compared_on_the_same_rows(tables):
    labels, good, noisy = tables
    found = recbole_escm2.score(labels, {"good": good, "noisy": noisy}, key="row")
    table, comparison = found.table, found.comparison
    assert list(table["model"].unique()) == ["good", "noisy", "constant"]
    values = table.set_index(["model", "metric"])
    assert (values["low"] < values["value"])["good", "CTR_AUC"]
    own = comparison.set_index("metric").loc["CTR_AUC"]
    assert own["difference"] == pytest.approx(
        values.loc[("noisy", "CTR_AUC"), "value"] - values.loc[("good", "CTR_AUC"), "value"]
    )
    assert own["high"] < 0
    assert own["verdict"] is None
    primary = comparison[comparison["primary"]]
    assert list(primary["metric"]) == ["CVR_AUC", "CTCVR_AUC"]
    assert primary.set_index("metric").loc["CTCVR_AUC", "verdict"] == "worse"
    assert (primary["p_adjusted"] >= primary["p"]).all()
    assert any("training the models once more" in note for note in found.notes)
    assert any("pctcvr is pctr · pcvr" in note for note in found.notes)
    assert set(found.calibration["space"]) == {"ctr", "cvr", "ctcvr"}
    shown = found._repr_html_()
    assert shown.count("<table>") == 2
    assert "CTCVR_AUC ↑" in shown
    assert str(found).startswith("2,000 impressions")


def test_skill_is_what_a_model_takes_off_the_constants_log_loss(tables):
    labels, good, _ = tables
    found = score(labels, good)
    values = found.table.set_index(["model", "metric"])
    rate = labels["click"].mean()
    constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert values.loc[("constant", "CTR_LogLoss"), "value"] == pytest.approx(constant)
    own = values.loc[("model", "CTR_LogLoss")]
    assert own["skill"] == pytest.approx(1 - own["value"] / constant)


def test_one_table_may_hold_everything(tables):
    labels, good, noisy = tables
    both = labels.copy()
    for name, one in (("good", good), ("noisy", noisy)):
        both[f"pctr_{name}"], both[f"pcvr_{name}"] = one["pctr"], one["pcvr"]
    together = score(both)
    apart = score(labels, {"good": good, "noisy": noisy})
    assert together.values == apart.values
    assert list(together.values) == ["good", "noisy", "constant"]


@pytest.mark.parametrize("make", [pa.Table.from_pandas, lambda frame: frame])
def test_tables_of_arrow_and_pandas_are_the_same(tables, make):
    labels, good, _ = tables
    assert score(make(labels), make(good)).values == score(labels, good).values


def test_what_is_not_predicted_is_left_out(tables):
    labels, good, _ = tables
    only = pd.DataFrame({"pctcvr": good["pctr"] * good["pcvr"]})
    metrics = set(score(labels, only).table["metric"])
    assert metrics
    assert all(name.startswith("CTCVR_") for name in metrics)
    clicks = labels.drop(columns=["conversion", "user_id"])
    found = score(clicks, good)
    assert all(m.startswith("CTR_") for m in found.table["metric"])
    assert any("CTR alone" in note for note in found.notes)
    assert any("independent" in note for note in found.notes)


def test_a_metric_that_was_asked_for_says_why_it_has_no_value(tables):
    labels, good, _ = tables
    found = score(labels, good, metrics=["CTR_AUC", "PIP"])
    assert list(found.values["model"]) == ["CTR_AUC"]
    assert "true CVR" in found.table.set_index("metric").loc["PIP", "note"]


def test_a_primary_metric_of_every_k_is_one_of_each(tables):
    labels, good, noisy = tables
    models, names = {"good": good, "noisy": noisy}, ["CTR_AUC"]
    found = score(labels, models, metrics=names, primary="ctr_ndcg", topk=[3, 5])
    assert list(found.primary) == ["CTR_NDCG@3", "CTR_NDCG@5"]
    assert found.comparisons["noisy"]["CTR_NDCG@3"].verdict is not None
    without = score(labels.drop(columns="user_id"), models, metrics=names, primary="CTR_NDCG@K")
    assert "CTR_NDCG@10" in without.values["good"].undefined


def test_without_a_primary_metric_there_is_no_verdict_which_is_said(tables):
    labels, good, noisy = tables
    models = {name: one[["pctr"]] for name, one in (("good", good), ("noisy", noisy))}
    found = score(labels, models)
    assert not found.primary
    assert any("There is no verdict" in note for note in found.notes)
    assert not any("Verdicts are about" in note for note in found.notes)
    assert "Against good" not in str(found)
    assert len(found.comparison)


def test_rows_that_leave_metrics_without_a_value_say_so(tables):
    labels, good, _ = tables
    none = labels.assign(conversion=0).drop(columns="user_id")
    found = score(none, good)
    left_out = [note for note in found.notes if "is left out" in note]
    assert "model: CVR_AUC is left out: no positive among" in " ".join(left_out)
    assert not any("GAUC" in note for note in left_out)
    only = pd.DataFrame({"pctcvr": good["pctr"]})
    with pytest.raises(UsageError, match="nothing can be scored"):
        score(labels.drop(columns="conversion"), only)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": "CTR_AUK"}, "did you mean CTR_AUC"),
        ({"metric": ["CTR_AUC"]}, "score knows no metric"),
        ({"topk": [0]}, "topk must be whole numbers"),
        ({"calibration_bins": 0}, "calibration_bins"),
        ({"decision_threshold": 2}, "decision_threshold"),
        ({"decision_threshold": {"cvn": 0.5}}, "decision_threshold"),
        ({"baseline": "modle"}, "did you mean model"),
    ],
)
def test_options_that_mean_nothing_are_refused(tables, options, said):
    labels, good, _ = tables
    with pytest.raises(UsageError, match=said):
        score(labels, good, **options)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((0.5, 0.25, 0.75), "0.5000 (0.2500, 0.7500)"),
        ((0.00123, 0.0011, 0.0014), "0.00123 (0.00110, 0.00140)"),
        ((-1e-17, -0.2, 0.2), "0.0000 (-0.2000, 0.2000)"),
        ((0.5, np.nan, np.nan), "0.5000"),
        ((0.0, 0.0, 0.0), "0.0000 (0.0000, 0.0000)"),
    ],
)
def test_numbers_are_shown_in_as_many_decimals_as_say_something(numbers, shown):
    assert show._with_interval(*numbers) == shown


class TestCommand:
    def test_prints_and_writes(self, files, capsys):
        arguments = ["--labels=labels.parquet", "--predictions=good.csv,noisy.feather", "--key=row"]
        assert main(["score", *arguments, "--out=scores", "--topk=3,5"]) == 0
        said = capsys.readouterr().out
        assert "CTR_NDCG@3" in said
        assert "▼ worse" in said
        written = {path.name for path in (files / "scores").iterdir()}
        assert written == {
            *("table.csv", "comparison.csv", "calibration.csv", "score.json", "score.html"),
        }
        content = json.loads((files / "scores" / "score.json").read_text())
        assert content["counts"]["impressions"] == ROWS
        table = pd.read_csv(files / "scores" / "table.csv")
        assert len(table) == len(content["table"])
        page = (files / "scores" / "score.html").read_text()
        assert page.count("<img") == 3
        assert "http:" not in page
        assert "https:" not in page

    def test_without_the_extra_there_is_no_page(self, files, capsys, monkeypatch):
        monkeypatch.setitem(show.require.__globals__["EXTRAS"], "benchmark", ("no_such_module",))
        arguments = ["--labels=labels.parquet", "--predictions=mine=good.csv", "--out=scores"]
        assert main(["score", *arguments]) == 0
        assert "pip install 'recbole-escm2[benchmark]'" in capsys.readouterr().out
        assert not (files / "scores" / "score.html").exists()
        assert (files / "scores" / "table.csv").exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "--predictions=FILE"),
            (["--predictions=good.csv", "--prediction=x"], "did you mean predictions"),
            (["--predictions=none.csv"], "there is no none.csv"),
            (["--predictions=labels.txt"], "there is no labels.txt"),
            (["--predictions=good.csv"], "no column 'click'"),
            (["--predictions=a=good.csv,noisy.feather"], "not some of each"),
            (["--predictions=a=good.csv,a=noisy.feather"], "stands there twice"),
            (["--labels=labels.parquet", "--predictions=labels.parquet"], "has no predictions"),
            (["--labels=labels.parquet", "--predictions=good.csv", "--key=id"], "no column 'id'"),
            (
                ["--labels=labels.parquet", "--predictions=good.csv", "--key="],
                "--key needs a value",
            ),
        ],
    )
    def test_mistakes_are_told(self, files, capsys, arguments, said):
        assert main(["score", *arguments]) == 2
        assert said in capsys.readouterr().err
