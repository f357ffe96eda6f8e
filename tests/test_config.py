import copy
import logging
import re
import shutil
import sys
from typing import Any, ClassVar
from unittest import mock

import pytest
import recbole.utils.argument_list as recbole_arguments
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.model.context_aware_recommender.deepfm import DeepFM
from recbole.model.general_recommender.bpr import BPR

import recbole_escm2.config as config_module
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import context_model_names, find_model, model_path
from recbole_escm2.model import ESCM2_DR, ESMM
from recbole_escm2.property_files import dataset_names, parse_value

many = hypothesis_settings(deadline=None, max_examples=300, derandomize=True)


def config(model="ESMM", files=None, command_line=None, **settings):
    return Config(model, "toy", files, settings, command_line)


# --- which value wins ------------------------------------------------------------------------


class Parent(ESMM):
    default_config: ClassVar[dict[str, Any]] = {"stopping_step": 3, "parents_key": "p"}


class Child(Parent):
    default_config: ClassVar[dict[str, Any]] = {"stopping_step": 4}


LAYERS = [
    "RecBole",
    "overall.yaml",
    "model/EntireSpaceRecommender.yaml",
    "model/Parent.yaml",
    "Parent.default_config",
    "Child.default_config",
    "dataset/toy.yaml",
    "first file",
    "second file",
    "config_dict",
    "command line",
]


@pytest.mark.parametrize("last", range(len(LAYERS)), ids=LAYERS)
def test_later_layer_wins(tmp_path, monkeypatch, last):
    """With layers up to one of them in place, that one's value is the value."""

    def here(layer):
        return LAYERS.index(layer) <= last

    properties = tmp_path / "properties"
    shutil.copytree(config_module.PROPERTIES, properties)
    monkeypatch.setattr(config_module, "PROPERTIES", properties)
    overall = (properties / "overall.yaml").read_text()
    assert "stopping_step: 3 " in overall
    (properties / "overall.yaml").write_text(re.sub("stopping_step: .*", "", overall))
    for number, layer in enumerate(LAYERS):
        if layer.endswith(".yaml") and here(layer):
            with open(properties / layer, "a") as file:
                file.write(f"\nstopping_step: {number}\n")
    for number, model in ((4, Parent), (5, Child)):
        own = {"stopping_step": number} if number <= last else {}
        monkeypatch.setattr(model, "default_config", own)
    files = []
    for number, layer in enumerate(LAYERS):
        if layer.endswith(" file") and here(layer):
            files.append(tmp_path / f"{number}.yaml")
            files[-1].write_text(f"stopping_step: {number}")
    result = Config(
        Child,
        "toy",
        [str(file) for file in files],
        {"stopping_step": 9} if here("config_dict") else None,
        {"stopping_step": "10"} if here("command line") else None,
    )
    assert result["stopping_step"] == (last or 10)  # 10 is RecBole's own


def test_model_has_its_parents_defaults():
    child = config(Child)
    assert (child["stopping_step"], child["parents_key"], child["embedding_size"]) == (4, "p", 16)
    assert "parents_key" not in config(ESMM)
    assert config(ESMM)["stopping_step"] == 3
    assert config(ESCM2_DR)["imputation"] == "error"
    assert "imputation" not in config(ESMM)


def test_defaults_of_entire_space_models():
    result = config()
    expected = {
        "embedding_size": 16,
        "mlp_hidden_size": [128, 64, 32],
        "learner": "adam",
        "learning_rate": 1e-3,
        "train_batch_size": 4096,
        "valid_metric": "CTCVR_AUC",
        "counterfactual_weight": 0.1,
        "global_weight": 1.0,
        "propensity_floor": 0.1,
        "load_col": None,
        "LABEL_FIELD": "label",
        "numerical_features": [],
    }
    assert {key: result[key] for key in expected} == expected
    assert result["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}
    assert result["eval_args"]["group_by"] is None
    assert result["eval_args"]["mode"] == {"valid": "labeled", "test": "labeled"}
    assert result["train_neg_sample_args"]["distribution"] == "none"
    dr = config(ESCM2_DR)
    assert (dr["imputation"], dr["imputation_schedule"]) == ("error", "joint")


def test_recboles_models_keep_recboles_hyper_parameters():
    result = config("DeepFM")
    assert result["mlp_hidden_size"] == [128, 128, 128]
    assert result["embedding_size"] == 10
    assert "counterfactual_weight" not in result
    assert result["train_batch_size"] == 4096


def test_data_set_properties_win_over_recboles():
    result = Config("ESMM", "ml-100k")
    assert result["impressions"] == "pairs"
    assert result["load_col"]["inter"] == ["user_id", "item_id"]
    assert Config("ESMM", "ali-ccp")["CONVERSION_FIELD"] == "purchase"
    assert dataset_names() == [
        *("ali-ccp", "ali-ccp-sim", "aliexpress-es", "aliexpress-fr", "aliexpress-nl"),
        *("aliexpress-us", "coat", "criteo-attribution", "criteo-uplift", "hillstrom"),
        *("kuairand-pure", "kuairec", "ml-100k", "ml-100k-semi", "yahoo-r3"),
    ]


@pytest.mark.parametrize("name", context_model_names())
def test_every_model_has_a_config(name):
    assert config(name)["model"] == name


def test_model_and_data_set_from_any_source(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: DeepFM\ndataset: there")
    from_file = Config(config_file_list=[str(file)])
    assert (from_file["model"], from_file["dataset"]) == ("DeepFM", "there")
    assert Config("ESMM", None, [str(file)])["model"] == "ESMM"
    from_dict = Config(config_dict={"model": ESMM, "dataset": "there"})
    assert from_dict["data_path"].endswith("there")
    assert Config(command_line={"model": "FM", "dataset": "here"})["model"] == "FM"


def test_missing_model_or_data_set():
    with pytest.raises(UsageError, match=r"which model\? --model=NAME: ESMM, ESCM2_IPS"):
        Config(None, "toy")
    with pytest.raises(UsageError, match=r"which data set\? --dataset=NAME"):
        Config("ESMM", None)


def test_part_of_eval_args_leaves_the_rest_ours():
    eval_args = config(eval_args={"split": {"RS": [7, 1, 2]}})["eval_args"]
    assert eval_args["split"] == {"RS": [7, 1, 2]}
    assert (eval_args["order"], eval_args["group_by"]) == ("RO", None)
    assert eval_args["mode"] == {"valid": "labeled", "test": "labeled"}


# --- values as text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("false", False),
        ("TRUE", True),
        ("none", None),
        ("None", None),
        ("null", None),
        ("~", None),
        ("1", 1),
        ("-2", -2),
        (" 3 ", 3),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("[1,2]", [1, 2]),
        ("(1, 2)", (1, 2)),
        ("0,1", (0, 1)),
        ("[]", []),
        ("{'RS':[0.8,0.1,0.1]}", {"RS": [0.8, 0.1, 0.1]}),
        ("{RS: [8, 1, 1]}", {"RS": [8, 1, 1]}),
        ("[a, b]", ["a", "b"]),
        ("[1e-3, b]", [0.001, "b"]),
        ("{rating: 4}", {"rating": 4}),
        ("{1: exit()}", {1: "exit()"}),
        ("'7'", "7"),
    ],
)
def test_literals_are_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a=b", "ali-ccp", "on", "yes", "no", "off", "2020-01-01", "12:30:00", "nan", "inf"),
        *("1.2.3", "0x", "01", "output/run 1", "[1, 2", "{a: 1", "a.b:C", "\x00", "x" * 10_000),
        *("1+1", "2**99999999", "[0]*9", "()()", "lambda: 0", "os", "f'{1}'", "1 if 1 else 2"),
        *("__import__('os').system('x')", "open('x', 'w')", "[open('x', 'w')]", "exit()"),
        *("[!!python/object/apply:os.mkdir [x]]", "!!python/name:os.system", "[!!python/none]"),
    ],
)
def test_anything_else_stays_text(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert parse_value(text) == text
    assert list(tmp_path.iterdir()) == []


SYNTAX = st.text(alphabet="[]{}(),:'\"!&*#<>=|%@?-+._~ \\\n\tabeonfxls01279", max_size=20)
CALLS = st.builds(
    "{}{}({}){}".format,
    st.sampled_from(["", "[", "{1: ", "-", "1 + "]),
    st.sampled_from(["exit", "open", "__import__", "os.mkdir", "(lambda x: x)", "''.join", "eval"]),
    st.sampled_from(["", "'x'", "0", "'os'", "['x']"]),
    st.sampled_from(["", ".system('x')", "]", "}", "[0]"]),
)


@given(st.one_of(st.text(max_size=30), SYNTAX, SYNTAX.map("[{}]".format)))
@example("(" * 3000)
@example("-" * 100_000 + "1")
@example("9" * 10_000)
@example("\ud800")
@many
def test_any_text_has_a_value(text):
    refuse = mock.Mock(side_effect=AssertionError("executed"))
    with mock.patch("builtins.eval", refuse), mock.patch("builtins.exec", refuse):
        parse_value(text)


@given(CALLS)
@many
def test_no_call_is_executed(text):
    assert parse_value(text) == text or not text.endswith(")")


@pytest.mark.parametrize(
    "text",
    ["[!!float x]", "[0b_]", "[!!bool x]", "[!!int '']", "[!!timestamp x]", "[" * 3000],
)
def test_what_only_looks_like_yaml_stays_text(text):
    assert parse_value(text) == text


@pytest.mark.parametrize("text", ["2020-01-31", "2020-13-45", "2020-01-31 12:00:00"])
def test_a_date_is_text(text):
    assert parse_value(f"[{text}]") == [text]


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rat", r" \(did you mean learning_rate\?\)"),
        ("click_field", r" \(did you mean CLICK_FIELD\?\)"),
        ("propensity_flor", r" \(did you mean propensity_floor\?\)"),
        ("zzz", ""),
    ],
)
def test_unknown_key_on_the_command_line(key, hint):
    with pytest.raises(UsageError, match=rf"^there is no config key '{key}'{hint}; --help"):
        config(command_line={key: "1"})


def test_unknown_keys_elsewhere(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("epochs: 1\nlearning_rat: 1")
    said = r"a\.yaml, line 2: there is no config key 'learning_rat' \(did you mean learning_rate\?"
    with pytest.raises(UsageError, match=said):
        config(files=[str(file)])
    with pytest.raises(
        UsageError, match=r"^there .* 'embeding_size' \(did you mean embedding_size"
    ):
        config(embeding_size=1)


def test_keys_of_recboles_that_nothing_reads_are_said_once(tmp_path, caplog):
    """Files of RecBole's users are for many kinds of models."""
    file = tmp_path / "a.yaml"
    file.write_text("loss_type: BPR\nsave_dataset: False\nepochs: 1\nmodel: ESMM")
    config(files=[str(file)], repeatable=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["keys of RecBole's that nothing here reads: loss_type, repeatable"]


@pytest.mark.parametrize(
    "key",
    [
        *("benchmark_filename", "additional_feat_suffix", "numerical_features", "weight_decay"),
        *("wandb_project", "encoding", "alias_of_user_id", "TRUE_CVR_FIELD", "discretization"),
    ],
)
def test_known_keys_pass(key, caplog):
    config(command_line={key: "None"}, **{key: None})
    assert caplog.records == []


def test_keys_of_another_model_are_unknown():
    assert config(ESCM2_DR, command_line={"imputation": "label"})["imputation"] == "label"
    with pytest.raises(UsageError, match="ESMM has no imputation: imputation does nothing there"):
        config(command_line={"imputation": "label"})
    assert config(Child, command_line={"parents_key": "q"})["parents_key"] == "q"


# --- values out of range ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"counterfactual_weight": 0, "global_weight": 0},
        {"propensity_floor": 0},
        {"impression_sample": 1},
        {"decision_threshold": "base_rate"},
        {"decision_threshold": 1},
        {"dropout_prob": 0},
        {"stopping_step": 0},
        {"seed": 0},
        {"seed": 2**31 - 1},
        {"learner": "AdamW"},
        {"mlp_hidden_size": [1]},
        {"topk": 5},
        {"metrics": "CTR_AUC"},
        {"propensity_normalization": "snips"},
    ],
    ids=str,
)
def test_edge_of_the_range_is_allowed(settings):
    result = config("ESCM2_IPS", **settings)
    for key, value in settings.items():
        assert result[key] in (value, [value])


@pytest.mark.parametrize("text", ["none", "None", "~"])
def test_no_normalization_may_be_written_in_any_way(text):
    line = {"propensity_normalization": text}
    assert config("ESCM2_IPS", command_line=line)["propensity_normalization"] == "none"
    assert "propensity_normalization" not in config("DeepFM")


@pytest.mark.parametrize(("model", "key"), [("ESMM", "task"), ("LR", "dropout_prob")])
def test_key_that_the_model_does_not_read_may_be_none(model, key):
    assert config(model, **{key: None})[key] is None
    other = "DeepFM" if model == "ESMM" else "ESMM"
    with pytest.raises(UsageError, match=f"{key} must be .*, got None"):
        config(other, **{key: None})


def test_text_values_are_parsed_before_they_are_checked():
    result = config(epochs="3", topk="[5, 10]", seed="1", learning_rate="1e-2")
    assert (result["epochs"], result["topk"], result["seed"]) == (3, [5, 10], 1)
    assert result["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": "adamw"}, "sparse_embedding needs learner adam, sgd or adagrad, got adamw"),
        (
            {"weight_decay": 0.1, "learner": "sgd"},
            "sparse_embedding goes with weight_decay where the learner is adam, got sgd",
        ),
        (
            {"embedding_weight_decay": 0.1, "learner": "AdaGrad"},
            "goes with embedding_weight_decay where the learner is adam, got AdaGrad",
        ),
        (
            {"weight_decay": 0.1, "embedding_optimizer": "adagrad"},
            "goes with weight_decay where the embedding_optimizer is adam, got adagrad",
        ),
        (
            {"embedding_weight_decay": 0.1, "embedding_optimizer": "adagrad"},
            "goes with embedding_weight_decay where the embedding_optimizer is adam, got adagrad",
        ),
        ({"clip_grad_norm": {"max_norm": 1}}, "doesn't go with clip_grad_norm"),
    ],
)
def test_sparse_embedding_has_conditions(settings, message):
    config(**settings)
    config(sparse_embedding=True)
    with pytest.raises(UsageError, match=message):
        config(sparse_embedding=True, **settings)


@pytest.mark.parametrize("key", ["USER_ID_FIELD", "CLICK_FIELD", "TRUE_CVR_FIELD"])
def test_name_of_a_column_is_text(key):
    assert config(command_line={key: "101"})[key] == "101"


def test_a_penalty_goes_with_sparse_rows():
    decays = {"weight_decay": 0.1, "embedding_weight_decay": 1e-3, "sleeping_decay": 0.03}
    for learner in ("adam", "Sparse_Adam"):
        found = config(sparse_embedding=True, learner=learner, **decays)
        assert {key: found[key] for key in decays} == decays


def test_a_decoupled_decay_is_no_penalty():
    for model in ("ESMM", "LR"):
        with pytest.raises(UsageError, match=r"L2 penalty, which learner adamw doesn't have"):
            config(model, learner="adamw", embedding_weight_decay=0.1)
    assert config(learner="adamw", weight_decay=0.1)["weight_decay"] == 0.1


def test_a_decoupled_decay_is_none_of_the_tables_own_optimizer():
    chosen = {"learner": "adamw", "embedding_optimizer": "adagrad"}
    with pytest.raises(UsageError, match="weight_decay of learner adamw is decoupled"):
        config(weight_decay=0.1, **chosen)
    assert config(embedding_weight_decay=0.1, **chosen)["embedding_weight_decay"] == 0.1


def test_a_penalty_by_default_gives_way_to_a_learner_without_one(caplog):
    assert Config("ESMM", "coat")["embedding_weight_decay"] == 0.001
    sparse_adagrad = {"embedding_optimizer": "adagrad", "sparse_embedding": True}
    for settings in (
        {"learner": "adamw"},
        {"learner": "sgd", "sparse_embedding": True},
        sparse_adagrad,
    ):
        caplog.clear()
        assert Config("ESMM", "coat", None, settings)["embedding_weight_decay"] == 0
        assert "ESMM trains without L2 on the embedding" in caplog.text


def test_only_sparse_rows_sleep():
    with pytest.raises(UsageError, match="sleeping_decay does nothing without sparse_embedding"):
        config(sleeping_decay=0.1)
    assert config(sleeping_decay=1.0)["sleeping_decay"] == 1  # as a checkpoint brings it along
    assert config(sleeping_decay=0.1, sparse_embedding=True)["sleeping_decay"] == 0.1


def test_sparse_adam_needs_sparse_gradients():
    assert config(learner="sparse_adam", sparse_embedding=True)["learner"] == "sparse_adam"
    with pytest.raises(UsageError, match=r"sparse_adam needs .* sparse_embedding: True"):
        config(learner="Sparse_Adam")


def test_items_are_not_drawn():
    drawn = {"distribution": "uniform", "sample_num": 1}
    with pytest.raises(UsageError, match=r"train_neg_sample_args must be ~ .* no items are drawn"):
        config(train_neg_sample_args=drawn)


def test_each_label_has_a_column_of_its_own():
    with pytest.raises(UsageError, match="CLICK_FIELD and CONVERSION_FIELD are both 'buy'"):
        config(CLICK_FIELD="buy", CONVERSION_FIELD="buy")
    with pytest.raises(UsageError, match="CONVERSION_FIELD and TRUE_CVR_FIELD are both"):
        config(TRUE_CVR_FIELD="conversion")


def test_a_key_that_is_no_text_is_explained():
    with pytest.raises(UsageError):
        Config("ESMM", "toy", config_dict={1: "a"})


@pytest.mark.parametrize(
    ("eval_args", "message"),
    [
        ({"mode": "full"}, "labeled"),
        ({"splitt": {"RS": [8, 1, 1]}}, "split"),
        ({"mode": {"valid": "uni100"}}, "labeled"),
        ({"split": [8, 1, 1]}, r"split must be .*, got \[8, 1, 1\]"),
        ({"split": {}}, "split must be .*, got {}"),
        ({"split": {"RS": ["a", 1, 1]}}, "split must be .*'a'"),
        ({"split": {"RS": [8, 1, -1]}}, "split must be .*-1"),
        ({"split": {"XX": [8, 1, 1]}}, "split must be .*XX"),
        ({"order": "up"}, "order must be 'RO' or 'TO', got 'up'"),
        ({"group_by": "items"}, "group_by must be ~ or 'user', got 'items'"),
    ],
)
def test_wrong_eval_args(eval_args, message):
    with pytest.raises(UsageError, match=rf"eval_args.*{message}"):
        config(eval_args=eval_args)


# --- metrics ---------------------------------------------------------------------------------


def test_metric_names_ignore_case():
    names = ["ctr_auc", "CTCVR_LOGLOSS", "Cvr-Pr-Auc", "ieb", "auc", "ctr_ndcg@5", "CTR_AUC"]
    result = config(metrics=names, valid_metric="cvr_auc_es")
    assert result["metrics"] == [
        *("CTR_AUC", "CTCVR_LogLoss", "CVR_PR_AUC", "IEB", "AUC", "CTR_NDCG@5")
    ]
    assert result["valid_metric"] == "CVR_AUC_ES"


@pytest.mark.parametrize("key", ["metrics", "valid_metric"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CTR_AUK", r"no metric 'CTR_AUK' \(did you mean CTR_AUC\?\)\. Metrics: CTR_AUC, "),
        ("LogLos", r"no metric 'LogLos'"),
        ("NDCG", r"'NDCG' ranks RecBole's candidate items; .* CTCVR_NDCG$"),
        ("ndcg@20", r"'ndcg@20' ranks .* CTCVR_ndcg@20$"),
        ("Recall@10", r"'Recall@10' ranks .* CTCVR_Recall@10$"),
        ("Hit", r"no metric 'Hit'"),
        ("MRR@10", r"no metric 'MRR@10'"),
        ("CTR_NDCG@0", r"no metric 'CTR_NDCG@0'"),
        ("CTR_NDCG@x", r"no metric 'CTR_NDCG@x'"),
        ("CTR_AUC@5", r"no metric 'CTR_AUC@5'"),
    ],
)
def test_unknown_metric_is_refused(key, name, message):
    with pytest.raises(UsageError, match=message):
        config(**{key: [name] if key == "metrics" else name})


@pytest.mark.parametrize("given", ["ctr_auc, CVR_AUC", ["CTR_AUC", "cvr_auc"], "CTR_AUC,CVR_AUC"])
def test_primary_metrics_in_any_way_of_writing(given):
    assert config(primary=given)["primary"] == ["CTR_AUC", "CVR_AUC"]
    assert config()["primary"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("CTR_AUK", r"primary: there is no metric 'CTR_AUK' \(did you mean CTR_AUC"),
        ("CTR_AUC,CVR_AUC,CTCVR_AUC", "one or two metrics, got 3"),
        ("CVR_CRR", "no verdict can be about CVR_CRR: it knows no better or worse"),
        ("CTR_NDCG", "no verdict can be about CTR_NDCG: it is one metric for each K"),
    ],
)
def test_primary_metrics_that_no_verdict_can_be_about(given, message):
    with pytest.raises(UsageError, match=message):
        config(primary=given)


@pytest.mark.parametrize(
    ("name", "bigger"),
    [
        *((f"{task}_AUC", True) for task in ("CTR", "CVR", "CTCVR")),
        *((f"{task}_LogLoss", False) for task in ("CTR", "CVR", "CTCVR")),
        *((f"CTCVR_{name}", True) for name in ("GAUC", "PR_AUC", "KS", "F1", "Recall", "NDCG@3")),
        *((f"CTR_{name}", False) for name in ("ECE", "PCOC")),
        *((name, False) for name in ("IEB", "CVR_Gap", "CVR_MAE_ES", "CVR_LogLoss_ES", "LogLoss")),
        *((name, True) for name in ("AUC", "CVR_AUC_ES", "auc", "ctcvr_gauc")),
    ],
)
def test_direction_of_valid_metric(name, bigger):
    assert config(valid_metric=name)["valid_metric_bigger"] is bigger


def test_valid_metric_without_k_takes_the_first_of_topk():
    assert config(valid_metric="CTR_NDCG", topk=[7, 3])["valid_metric"] == "CTR_NDCG@7"
    assert config(valid_metric="CTR_NDCG@3", topk=[7])["valid_metric"] == "CTR_NDCG@3"


@pytest.mark.parametrize("task", ["ctr", "cvr", "ctcvr"])
def test_default_valid_metric_is_of_the_task(task):
    assert config("DeepFM", task=task)["valid_metric"] == f"{task.upper()}_AUC"
    assert config("ESMM")["valid_metric"] == "CTCVR_AUC"
    assert config("DeepFM", task=task, valid_metric="AUC")["valid_metric"] == "AUC"


@pytest.mark.parametrize(
    ("task", "metric"), [("ctr", "CTCVR_AUC"), ("cvr", "ctr_auc"), ("ctcvr", "IEB")]
)
def test_valid_metric_of_another_task_is_refused(task, metric):
    with pytest.raises(UsageError, match=rf"valid_metric {metric} .*DeepFM learns {task}"):
        config("DeepFM", task=task, valid_metric=metric)
    assert config("ESMM", valid_metric=metric)["valid_metric"].lower() == metric.lower()


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [("ESMM", "ESMM"), ("ESCM2_IPS", "ESCM2_IPS"), ("DeepFM", "DeepFM"), ("xDeepFM", "xDeepFM")],
)
def test_models_by_name(model, name):
    found = find_model(model)
    assert found.__name__ == name
    assert find_model(found) is found
    assert model_path(found) == name


def test_names_are_ours_then_recboles():
    names = context_model_names()
    assert names[:3] == ["ESMM", "ESCM2_IPS", "ESCM2_DR"]
    assert {"AutoInt", "DCNV2", "DeepFM", "WideDeep", "PNN", "FwFM"} < set(names[3:])
    assert all(find_model(name).__name__ == name for name in names)


MODULE = """
from recbole_escm2.model import ESMM
from recbole.model.general_recommender.bpr import BPR

class Mine(ESMM):
    default_config = {"my_key": 5}

class Plain:
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working folder, which isn't on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(name, text=MODULE):
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def test_model_of_a_module_in_the_working_folder(module):
    module("my_models")
    result = Config("my_models:Mine", "toy", command_line={"my_key": "6"})
    assert (result["model"], result["my_key"]) == ("Mine", 6)
    assert model_path(result.model_class) == "my_models:Mine"
    assert find_model(model_path(result.model_class)) is result.model_class
    assert find_model("recbole.model.context_aware_recommender.deepfm:DeepFM") is DeepFM


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("my_models:Main", r"my_models.py has no class 'Main' \(did you mean Mine\?\)$"),
        ("my_models:Plain", r"Plain.* is not a RecBole model class"),
        ("my_models:BPR", r"BPR is of RecBole's kind 'general'"),
        ("no_models:Mine", r"there is no module 'no_models' \(looked in the current folder"),
        ("my_models.sub:Mine", r"there is no module 'my_models.sub'"),
    ],
)
def test_fault_in_a_module_path_is_explained(module, model, message):
    module("my_models")
    with pytest.raises(UsageError, match=message):
        find_model(model)


def test_module_that_lacks_another_says_so(module):
    module("needs_more", "import not_installed_at_all")
    said = r"needs_more\.py, line 1: ModuleNotFoundError: .*'not_installed_at_all'"
    with pytest.raises(UsageError, match=said):
        find_model("needs_more:Mine")


def test_missing_module_with_the_beginning_of_the_name(module):
    module("needs_less", "import need")
    with pytest.raises(UsageError, match=r"needs_less\.py, line 1: ModuleNotFoundError: .*'need'"):
        find_model("needs_less:Mine")


@pytest.mark.parametrize("model", [":Mine", "sys:Mine"])
def test_odd_module_path_is_explained(model):
    with pytest.raises(UsageError, match=re.escape(model)):
        find_model(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ESMN", r"no model 'ESMN' \(did you mean ESMM\?\)\. Models: ESMM, .*path.to.module:Class"),
        ("deepfm", r"did you mean DeepFM\?"),
        ("Nonsense", r"no model 'Nonsense'\. Models: ESMM"),
        ("", r"no model ''"),
        ("BPR", r"BPR is a general recommender: it learns from user and item ids"),
        ("LightGCN", r"LightGCN is a general recommender"),
        ("GRU4Rec", r"GRU4Rec is a sequential recommender: .* a context-aware model: ESMM"),
        ("KGAT", r"KGAT is a knowledge-aware recommender: it needs a knowledge graph"),
        ("xgboost", r"xgboost is trained by a library of its own"),
        (BPR, r"BPR is of RecBole's kind 'general'; .* context-aware model"),
        (dict, r"is not a RecBole model class"),
        (7, r"7 is not a RecBole model class"),
    ],
)
def test_model_that_cannot_be_run_is_refused(model, message):
    with pytest.raises(UsageError, match=message):
        find_model(model)
    with pytest.raises(UsageError, match=message):
        config(model)


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"No such file"),
        (b"epochs: [1", r"is not YAML"),
        (b"epochs: 1\n\tseed: 2", r"is not YAML"),
        (b"!!python/object/apply:os.mkdir [x]", r"is not YAML"),
        (b"- epochs\n- seed", r"holds no 'key: value' lines"),
        (b"epochs", r"holds no 'key: value' lines"),
        (b"model: \xff\xfe", r"codec can't decode"),
        (b"since: !!int ''", r"is not YAML"),
        (b"1: 2", r"key 1"),
        (b"on: 2", r"key True"),
        (b"a: !!timestamp x", r"is not YAML"),
        (b"a: !!bool x", r"is not YAML"),
    ],
)
def test_fault_in_a_config_file_is_explained(tmp_path, content, message):
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^config file {re.escape(str(file))}.*{message}"):
        config(files=[str(file)])


def test_config_file_is_yaml_with_recboles_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# λ\nlearning_rate: 1e-2\nthreshold: {rating: 4}\nmetrics: [CTR_AUC]\n")
    result = config(files=[str(file)])
    assert result["learning_rate"] == 0.01
    assert result["threshold"] == {"rating": 4}
    assert result["metrics"] == ["CTR_AUC"]


def test_empty_config_file_changes_nothing(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# nothing\n")
    assert config(files=[str(file)]).final_config_dict == config().final_config_dict


# --- nothing but the arguments ---------------------------------------------------------------


def test_process_arguments_are_not_read(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["x", "--epochs=3", "--nonsense=1", "--seed", "what"])
    assert config()["epochs"] == 100
    assert caplog.records == []


def test_recboles_lists_of_arguments_are_left_alone():
    names = ("general", "training", "evaluation", "dataset")
    lists = [getattr(recbole_arguments, f"{name}_arguments") for name in names]
    before = [list(each) for each in lists]
    try:
        for each in lists:  # whoever was here first may have added what a Config would add
            each.clear()
        Config("DeepFM", "ml-100k")
        assert lists == [[], [], [], []]
    finally:
        for each, keys in zip(lists, before, strict=True):
            each[:] = keys


def test_configs_do_not_leak_into_each_other():
    first = Config("DeepFM", "ml-100k")
    first["eval_args"]["split"]["RS"][0] = 9
    first["metrics"].clear()
    first["numerical_features"].append("age")
    second = Config("DeepFM", "ml-100k")
    assert second["eval_args"]["split"]["RS"][0] == 0.8
    assert len(second["metrics"]) > 30
    assert second["numerical_features"] == []


def test_arguments_are_left_alone():
    files, settings = [], {"epochs": "3", "metrics": "AUC", "topk": 5, "numerical_features": None}
    command_line = {"seed": "1"}
    before = copy.deepcopy((files, settings, command_line))
    Config("ESMM", "toy", files, settings, command_line)
    assert (files, settings, command_line) == before


def test_default_config_of_a_model_is_left_alone(monkeypatch):
    monkeypatch.setattr(Child, "default_config", {"my_list": [1]})
    config(Child)["my_list"].append(2)
    assert Child.default_config == {"my_list": [1]}


def test_config_can_be_copied():
    first = config(topk=[5])
    second = copy.deepcopy(first)
    assert second.final_config_dict == first.final_config_dict
    assert second.model_class is ESMM
    second["topk"].append(7)
    assert first["topk"] == [5]
    assert first["missing"] is None
    assert "missing" not in first


@pytest.mark.parametrize("model", ["ESCM2_DR", "DeepFM"])
def test_recboles_own_preparation_of_data_takes_our_config(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"impression_sample": 0.02, "store_dir": str(tmp_path / "store")}
    if model == "DeepFM":  # on RecBole's data set, which makes its label of a column that it loads
        settings["load_col"] = {"inter": ["user_id", "item_id", "rating"]}
    ours = Config(model, "ml-100k", config_dict=settings)
    dataset = create_dataset(ours)
    assert isinstance(dataset, EntireSpaceDataset if model == "ESCM2_DR" else Dataset)
    train, valid, test = data_preparation(ours, dataset)
    assert len(train.dataset) + len(valid.dataset) + len(test.dataset) == len(dataset)
    assert {"user_id", "item_id"} <= set(next(iter(train)).interaction)


def test_what_is_done_to_a_config_isnt_in_the_next_one():
    """Files of defaults are read once."""
    first = config(ESMM)
    whole = list(first["mlp_hidden_size"])
    first["mlp_hidden_size"].append(3)
    first["eval_args"]["split"]["RS"] = [1, 1, 1]
    second = config(ESMM)
    assert second["mlp_hidden_size"] == whole
    assert second["eval_args"]["split"] != {"RS": [1, 1, 1]}
