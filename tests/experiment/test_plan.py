"""From what was asked for to runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import Any

import pytest

from recbole_escm2 import threads
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.experiment.request import is_benchmark, split_list
from recbole_escm2.experiment.runs import execute


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("a, b", ["a", "b"]),
        ("[64,32],[8]", ["[64,32]", "[8]"]),
        ("{a: [1,2], b: 3},x", ["{a: [1,2], b: 3}", "x"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("[3,inf)", ["[3,inf)"]),
        ("a,", ["a", ""]),
    ],
)
def test_split_list(text, parts):
    assert split_list(text) == parts


@pytest.mark.parametrize(
    ("options", "many"),
    [
        ({"model": "ESMM"}, False),
        ({"model": "ESMM,ESCM2_IPS"}, True),
        ({"model": "ESMM", "seeds": "3"}, True),
        ({"model": "ESMM", "counterfactual_weight": "0,0.1"}, True),
        ({"model": "ESMM", "mlp_hidden_size": "[64,32]"}, False),
        ({"model": "ESMM", "mlp_hidden_size": "[64,32],[8]"}, True),
        ({"model": "ESMM", "field_separator": ","}, False),
        ({"model": "ESMM", "gpu_id": "0,1"}, False),
        ({"benchmark": "file.yaml"}, True),
    ],
)
def test_what_is_a_benchmark(options, many):
    assert is_benchmark(options) == many


def test_rows_seeds_and_the_order_of_runs(options):
    plan = make_experiment({**options, "model": "ESMM,DeepFM", "seeds": "2", "seed": "7"})
    again = "ESMM again (A/A)"
    assert [row.label for row in plan.rows] == ["ESMM", "DeepFM", again]
    assert plan.seeds == [7, 8]
    assert plan.baseline == "ESMM"
    assert [(r.seed, r.row.label) for r in plan.runs] == [
        *((7, "ESMM"), (7, "DeepFM"), (7, again)),
        *((8, "ESMM"), (8, "DeepFM"), (8, again)),
    ]
    # a single-task model has all tasks' metrics, as two trainings
    assert plan.runs[1].settings["task"] == "both"
    assert "task" not in plan.runs[0].settings
    assert make_experiment({**options, "model": "DeepFM", "seeds": "[5,1]"}).seeds == [5, 1]
    ctr = make_experiment({**options, "model": "DeepFM,ESMM", "task": "ctr"})
    assert ctr.runs[0].settings["task"] == "ctr"


def test_the_aa_row_is_the_baseline_with_other_training_seeds(options):
    asked = {**options, "model": "ESMM,ESCM2_IPS", "seeds": "3"}
    plan = make_experiment({**asked, "baseline": "ESCM2_IPS"})
    assert [row.aa for row in plan.rows] == [False, False, True]
    runs = {(run.row.label, run.seed): run for run in plan.runs}
    for seed in plan.seeds:
        again, first = (
            dict(runs[label, seed].settings) for label in ("ESCM2_IPS again (A/A)", "ESCM2_IPS")
        )
        assert again.pop("training_seed") != seed
        assert again == first
    assert len({run.name for run in plan.runs}) == 9
    assert make_experiment({**asked, "baseline": "ESCM2_IPS"}).runs == plan.runs

    without = make_experiment({**asked, "aa_row": "False"})
    assert [row.label for row in without.rows] == ["ESMM", "ESCM2_IPS"]
    assert not any(row.aa for row in make_experiment({**asked, "seeds": "1"}).rows)
    assert not any(row.aa for row in make_experiment({**asked, "model": "ESMM"}).rows)
    alone = make_experiment({**asked, "model": "ESMM", "aa_row": "True"})
    assert [row.aa for row in alone.rows] == [False, True]
    # a training seed of all rows isn't that of the A/A row, whose own is one too
    fixed = make_experiment({**asked, "training_seed": "5"})
    assert {run.settings["training_seed"] == 5 for run in fixed.runs if run.row.aa} == {False}
    assert len({run.settings["training_seed"] for run in fixed.runs if run.row.aa}) == 1


def test_the_aa_row_of_a_swept_baseline_has_its_settings(options):
    swept = {"model": "ESCM2_IPS", "counterfactual_weight": "0,0.3", "seeds": "2"}
    baseline = "ESCM2_IPS, counterfactual_weight=0.3"
    plan = make_experiment({**options, **swept, "baseline": baseline})
    assert [run.settings["counterfactual_weight"] for run in plan.runs if run.row.aa] == [0.3, 0.3]
    assert plan.rows[-1].label == f"{baseline} again (A/A)"


def test_a_sweep_leaves_alone_what_it_has_no_effect_on(options):
    plan = make_experiment(
        {
            **options,
            "model": "ESMM,ESCM2_IPS,ESCM2_DR,DeepFM",
            "counterfactual_weight": "0,0.3",
            "imputation": "error,label",
        }
    )
    assert [row.label for row in plan.rows] == [
        "ESMM",
        *(f"ESCM2_IPS, counterfactual_weight={w}" for w in (0, 0.3)),
        *(
            f"ESCM2_DR, counterfactual_weight={w}, imputation={i}"
            for w in (0, 0.3)
            for i in ("error", "label")
        ),
        "DeepFM",
    ]
    assert plan.rows[2].swept == {"counterfactual_weight": 0.3}
    assert plan.runs[2].settings["counterfactual_weight"] == 0.3


def test_a_key_of_one_model_is_swept_for_that_one(options):
    plan = make_experiment({**options, "model": "ESMM,AutoInt", "n_layers": "2,3"})
    assert [row.label for row in plan.rows] == [
        "ESMM",
        "AutoInt, n_layers=2",
        "AutoInt, n_layers=3",
    ]
    backbone = {"backbone": "DCNV2", "cross_layer_num": "1,2"}
    plan = make_experiment({**options, "model": "ESMM,DeepFM", **backbone})
    assert [row.swept.get("cross_layer_num") for row in plan.rows] == [1, 2, None]


def test_a_task_that_a_file_names_stays(options, tmp_path):
    (tmp_path / "t.yaml").write_text("task: cvr\n")
    plan = make_experiment(
        {**options, "model": "DeepFM,ESMM", "config_files": f"{tmp_path}/t.yaml"}
    )
    assert plan.runs[0].settings["task"] == "cvr"


def test_the_command_line_wins_over_a_sweep_of_the_file(options, tmp_path):
    (tmp_path / "b.yaml").write_text("models: [ESMM]\nsweep: {global_weight: [1, 2]}\n")
    plan = make_experiment({**options, "benchmark": f"{tmp_path}/b.yaml", "global_weight": "5"})
    assert [run.settings["global_weight"] for run in plan.runs] == [5]


def test_a_key_of_another_model_is_no_mistake(options):
    plan = make_experiment({**options, "model": "ESMM,ESCM2_DR,DeepFM", "imputation": "label"})
    assert [run.settings.get("imputation") for run in plan.runs] == [None, "label", None]


def test_a_file(options, tmp_path):
    (tmp_path / "shared.yaml").write_text("embedding_size: 4\nlearning_rate: 0.01\n")
    (tmp_path / "own.yaml").write_text("learning_rate: 0.02\n")
    file = tmp_path / "benchmark.yaml"
    file.write_text(
        "dataset: tiny\n"
        "seeds: [3, 4, 5]\n"
        "aa_row: false\n"
        "baseline: wide IPS\n"
        "columns: [CVR_AUC, ctr_ndcg@5, IEB]\n"
        f"config_files: [{tmp_path}/shared.yaml]\n"
        "models:\n"
        "  ESMM:\n"
        "  wide IPS: {model: ESCM2_IPS, mlp_hidden_size: [32]}\n"
        f"  DeepFM: {{config_files: {tmp_path}/own.yaml}}\n"
        "sweep: {dropout_prob: [0.0, 0.1]}\n"
        "epochs: 2\n"
    )
    del options["dataset"]
    plan = make_experiment(
        {**options, "benchmark": str(file), "baseline": "wide IPS, dropout_prob=0.1"}
    )
    assert plan.baseline == "wide IPS, dropout_prob=0.1"  # the command line wins
    assert [row.label for row in plan.rows[2:4]] == [
        "wide IPS, dropout_prob=0.0",
        "wide IPS, dropout_prob=0.1",
    ]
    by_label = {run.row.label: run.settings for run in plan.runs}
    assert by_label["wide IPS, dropout_prob=0.1"]["mlp_hidden_size"] == [32]
    assert by_label["ESMM, dropout_prob=0.1"]["learning_rate"] == 0.01
    assert by_label["DeepFM, dropout_prob=0.1"]["learning_rate"] == 0.02
    assert plan.seeds == [3, 4, 5]
    assert not any(row.aa for row in plan.rows)
    assert plan.columns == ["CVR_AUC", "CTR_NDCG@5", "IEB"]
    assert {"CTR_NDCG@5", "IEB"} <= set(plan.runs[0].settings["metrics"])
    assert plan.runs[0].settings["epochs"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "ESMM,ESM"}, "did you mean ESMM"),
        ({"model": "ESMM,ESMM"}, "ESMM stands there twice"),
        ({"baseline": "ESM"}, r"baseline 'ESM' is no row \(did you mean ESMM"),
        ({"seeds": "0"}, "seeds must be a whole number >= 1"),
        ({"aa_row": "perhaps"}, "aa_row must be True or False"),
        ({"aa_row": "True", "seeds": "1"}, "aa_row needs at least two seeds"),
        ({"seeds": "[1,1]"}, "list of different ones"),
        ({"jobs": "0"}, "jobs must be"),
        ({"learning_rat": "1"}, "did you mean learning_rate"),
        (
            {"learning_rate": "0.1,-1"},
            r"ESMM, learning_rate=-1: learning_rate must be a number > 0",
        ),
        ({"columns": "CVR_AUK"}, "did you mean CVR_AUC"),
        ({"dataset": "nothing"}, "no data set 'nothing'"),
        ({"benchmark": "nowhere.yaml"}, "nowhere.yaml"),
        ({"fresh": "perhaps"}, "fresh must be True or False"),
        ({"seed": "1,2,3"}, r"several seeds are --seeds=\[1,2,3\]"),
        ({"seeds": "[2147483648]"}, "below 2"),
        ({"learning_rte": "0.1,0.2"}, "'learning_rte'.*did you mean learning_rate"),
        ({"counterfactual_weight": "0,1"}, "an effect on none of the models"),
        ({"global_weight": "1,1"}, "global_weight has a value twice"),
    ],
)
def test_mistakes(options, change, message):
    with pytest.raises(UsageError, match=message):
        make_experiment({**options, "model": "ESMM", "seeds": "2", **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [ESMM]\nsweep: [1]\n", "sweep must map"),
        ("models: [ESMM]\nsweep: {epochs: 3}\n", "sweep of epochs must be a list"),
        ("models: {ESMM: [1]}\n", "ESMM must be followed by a mapping"),
        ("seeds: 2\n", "which models"),
        ("models: {ESMM: {seed: 3}}\n", "ESMM has a seed"),
        ("models: {ESMM: {primary: IEB}}\n", "ESMM has primary metrics: they are those of all"),
        ("models: [ESMM]\nbaselne: ESMM\n", "'baselne'.*did you mean baseline"),
    ],
)
def test_mistakes_in_a_file(options, tmp_path, text, message):
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        make_experiment({**options, "benchmark": str(tmp_path / "b.yaml")})


def _names(options: dict[str, Any], **change: Any) -> list[str]:
    return [run.name for run in make_experiment({**options, "model": "ESMM", **change}).runs]


def test_primary_metrics_are_no_sweep_and_every_run_has_them(options):
    asked = {**options, "model": "ESMM", "columns": "CTR_AUC", "metrics": "CTR_LogLoss"}
    plan = make_experiment({**asked, "primary": "CTCVR_GAUC,IEB"})
    assert plan.primary == ("CTCVR_GAUC", "IEB")
    assert [row.label for row in plan.rows] == ["ESMM"]
    assert plan.runs[0].settings["metrics"] == ["CTR_LogLoss", "CTR_AUC", "CTCVR_GAUC", "IEB"]
    by_default = make_experiment(asked)
    assert by_default.primary == ()
    assert by_default.runs[0].settings["metrics"][2:] == ["CTCVR_AUC", "CVR_AUC_ES", "CVR_AUC"]


def test_primary_metrics_in_a_file(options, tmp_path):
    (tmp_path / "b.yaml").write_text("models: [ESMM, Naive]\nprimary: [CTCVR_AUC, IEB]\n")
    assert make_experiment({**options, "benchmark": f"{tmp_path}/b.yaml"}).primary == (
        "CTCVR_AUC",
        "IEB",
    )


def test_a_run_is_known_by_what_its_numbers_depend_on(options, tmp_path):
    names = _names(options)
    assert _names(options, output_dir=str(tmp_path / "elsewhere")) == names
    assert _names(options, state="debug") == names
    assert _names(options, epochs="2") != names
    assert _names(options, seed="1") != names
    assert _names(options, seeds="3")[0] == names[0]
    assert _names(options, columns="CVR_AUC") == names  # computed in any case
    assert _names(options, primary="CVR_AUC") == names
    assert _names(options, global_weight="1") == names


def test_runs_of_other_numbers_of_threads_are_others(options, monkeypatch):
    """Sums are rounded by what each thread adds up, so that --jobs may change last digits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    same = _names(options)
    assert _names(options, jobs="2") == same
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    (whole,), (half,) = (make_experiment({**options, "model": "FM", "jobs": j}).runs for j in "12")
    assert (whole.threads, half.threads) == (4, 2)
    assert whole.name != half.name
    (again,) = make_experiment({**options, "model": "FM", "jobs": "1"}).runs
    assert again.name == whole.name


def test_an_edited_model_is_another_one(options, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    helper, file = tmp_path / "variants_helper.py", tmp_path / "edited_variant.py"
    helper.write_text("FACTOR = 1\n")
    code = (
        "from recbole_escm2.model import ESMM\n"
        "from variants_helper import FACTOR\n"
        "class Mine(ESMM):\n"
        '    """A doc string."""\n'
        "    factor = FACTOR\n"
    )
    file.write_text(code)
    importlib.invalidate_caches()

    def name() -> str:
        (run,) = make_experiment({**options, "model": "edited_variant:Mine"}).runs
        return run.name

    names = {name()}
    file.write_text(code.replace("A doc string", "Another one") + "# and a comment\n")
    assert name() in names
    file.write_text(code.replace("factor = FACTOR", "factor = 2 * FACTOR"))
    names.add(name())
    helper.write_text("FACTOR = 3\n")
    names.add(name())
    assert len(names) == 3


def test_code_that_changes_before_its_run_is_refused(options, tmp_path):
    (run,) = make_experiment({**options, "model": "ESMM"}).runs
    later = dataclasses.replace(run, code="another")
    (outcome,) = execute(iter([later]), 1)
    assert outcome.result is None
    assert outcome.reason == "the code has changed since the benchmark began: start it again"


def test_settings_survive_json(options):
    run = make_experiment({**options, "model": "ESMM", "numerical_features": "[age]"}).runs[0]
    assert json.loads(json.dumps(run.settings)) == run.settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"columns": "IEB,ctr_auc"}, ["IEB", "CTR_AUC"]),
        ({"metrics": "[CVR_AUC_ES]", "primary": "IEB"}, ["CVR_AUC_ES", "IEB"]),
    ],
)
def test_metrics_that_the_user_names(options, changes, named):
    assert make_experiment({**options, "model": "ESMM", "seeds": "2", **changes}).named == named
