"""Every config key: what it may hold, where it is listed, on which models it acts."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from recbole.model.context_aware_recommender.kd_dagfm import KD_DAGFM
from recbole.utils import argument_list

from recbole_escm2 import config, keys
from recbole_escm2.command_line import main
from recbole_escm2.config import Config
from recbole_escm2.data.sources import atomic
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.request import is_benchmark
from recbole_escm2.keys import KEYS, OF_RECBOLES_MODELS, OURS
from recbole_escm2.lookup import recbole_context_names
from recbole_escm2.model import AITM as SHIPPED_AITM
from recbole_escm2.model import MODELS, EntireSpaceRecommender
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.model_names import REFERENCE_NAMES
from recbole_escm2.property_files import PROPERTIES, lines_of, recbole_properties

ROOT = Path(__file__).parent.parent

# --- wrong types and wrong values ------------------------------------------------------------

NOT_TRUE_OR_FALSE = ["maybe", 2, [True]]
NOT_TEXT = [7, ["a"], ""]
NOT_COLUMNS = ["price", [5], {"a": "b"}]
NOT_COUNTS = [0, -1, 1.5, "many", True]
NOT_LAYERS = [[], [0], [64, 32.0], [True], 64, (64, 32)]
NOT_BELOW_ONE = [1, -0.1, "half", True]
NOT_NEGATIVE = [-0.1, math.inf, math.nan, "some", True]
NOT_INTERVALS = [5, "five", {"a": 1}, "5,10"]
OFFERED = sorted(name for name in KEYS if name.endswith("_FIELD"))
BAD = {
    "counterfactual_weight": [-0.1, "much", True, None, math.nan, math.inf],
    "global_weight": [-1, [1], False, math.inf],
    "propensity_floor": [1, 1.5, -0.01, "low"],
    "propensity_calibration": ["isotonic", True, 1],
    "propensity": ["ctr", 1, None],
    "propensity_normalization": ["SNIPS", True],
    "l2_penalty": [0, -1, [], [1, 3], [3, 3], [1, 0], "strong", True, None],
    "num_leaves": [1, 2.5, "many", True, None],
    "min_data_in_leaf": NOT_COUNTS,
    "shrinkage_rate": [0, 1.1, -1, "slow", True, None],
    "rate_smoothing": [0, -1, math.inf, "strong", True, None],
    "balancing_weight": [-0.1, math.inf, "low", True, None],
    "balancing_floor": [0, 1, -0.1, "low", True, None],
    "conversion_weight": [-0.1, math.inf, "low", True, None],
    "cvr_weight_limit": [0, -1, math.inf, "low", True, None],
    "bias_share": [-0.1, 1.1, "half", True, None],
    "calibrator_weight": [-0.1, math.inf, "low", True, None],
    "backbone": ["", 1, ["mmoe"], None],
    "bottom_hidden_size": [[], [0], [64, 32.0], [True], 64, (64, 32)],
    "shared_expert_num": [0, 1.5, True, None],
    "task_expert_num": [0, 1.5, True, None],
    "extraction_level_num": [0, 1.5, True, None],
    "counterfactual_prior_weight": [-0.1, math.inf, "low", True, None],
    "imputation": ["both", 1, None],
    "imputation_schedule": ["alternating", True],
    "predict_task": ["CTR", "ctr, cvr", None],
    "task": ["click", 1],
    "sparse_embedding": [1, "yes", None],
    "embedding_placement": ["shards", "", 1, None],
    "embedding_optimizer": ["adamw", "Adagrad", 1, True],
    "impressions": ["all", None],
    "impression_sample": [0, 1.01, -1, True, None],
    "conversion_without_click": ["keep", None, True],
    "decision_threshold": [-0.1, 1.1, "median", True, None],
    "calibration_bins": [0, 10.0, "ten"],
    "by": [5, {"hour": 4}, "hour:", "hour:0", "hour:x", ["hour", 3], ":4", "a b"],
    "save_predictions": ["train", ["test", "all"], 1, {"test": True}, None],
    "calibrate": ["beta", True, 1],
    "calibrate_weights": ["snips", True, 1],
    "calibrate_floor": [0, 1, -0.1, "low", True, None],
    "embedding_size": [0, 16.0, "wide", True, None],
    "mlp_hidden_size": [[], [0], [64, 32.0], [True], 64, (64, 32)],
    "dropout_prob": [1, -0.1, "half", None],
    "embedding_dropout": [1, -0.1, "half", True, None],
    "embedding_init": [0, -0.1, math.inf, "zeros", True, None],
    "first_order": ["maybe", 2, [True], None],
    "validations_per_epoch": [0, -1, 1.5, "many", True, None],
    "weight_averaging": [1, -0.1, "some", True, None],
    "learning_rate": [0, -1e-3, "fast", True, None],
    "weight_decay": [-1e-3, math.inf, math.nan, "some", True],
    "embedding_weight_decay": [-1e-3, math.inf, math.nan, "some", True, None],
    "sleeping_decay": [-0.1, math.inf, "slow", True, None],
    "train_batch_size": [0, -1, 1.5, "4k", True],
    "eval_batch_size": [0, 1e3, None],
    "epochs": [0, -1, 2.5, "many", True],
    "eval_step": [0, 1.0, None],
    "stopping_step": [-1, 2.0],
    "bag_pooling": ["max", "", 1, None],
    "ctr_settings": [[1], "fast", 3, {1: 2}],
    "cvr_settings": [[1], "fast", 3, {1: 2}],
    "weight_scaler": ["max", 1, None],
    "standardize": ["no way", 2, None],
    "multi_value_top_k": [0, -1, 2.5, True, None],
    "seed": [-1, 2**31, 0.5, "dice", True],
    "training_seed": [-1, 2**31, 0.5, "dice", True],
    "keep_together": [["a"], ""],
    "pos_weight": [2, {}, {"ctr": 0}, {"ctr": math.inf}, {"click": 2}, ["ctr"]],
    "weighted_metrics": [1, "yes", None],
    "folds": [1, 0, 2.5, "many", True],
    "tuning_part": [
        *(0.5, {}, {"share": 0.5, "seed": 1}, {"share": 0.5, "seed": 1, "role": "test"}),
        *({"share": 1, "seed": 1, "role": "trial"}, {"share": 0.5, "seed": -1, "role": "trial"}),
    ],
    "learner": ["lion", 1, None],
    "CLICK_FIELD": ["", 1, None],
    "CONVERSION_FIELD": ["", 1, [], ["a", "a"]],
    "EVENT_FIELDS": [1, "click", ["click", "click"]],
    "metrics": [[], {"AUC": 1}, None, "CTR_AUK", [[1]]],
    "valid_metric": [["AUC"], 5, None, "", "CTR_AUK"],
    "topk": [[], [0], [-1], 0, "ten", None, [5, 2.5], [True], ["a"], (5, 10)],
    "eval_args": ["RO", 5, ["split"]],
    "output_dir": ["", 7, None],
    "resume": ["", 1, [True]],
    "init_from": NOT_TEXT,
    "final_fit": NOT_TRUE_OR_FALSE,
    "save_interval": NOT_NEGATIVE,
    "ratings": ["", 7, None],
    "completion_rank": [-1, 1.5, "full", None],
    "completion_regularization": [0, -1, math.inf, None],
    "cvr_levels": [[], [0.5, 0.1], [0.1, 0.1], [-0.1, 0.5], [0.5, 1.5], ["low"], [True], 0.5, None],
    "cvr_shares": [[], [0.0, 1.0], [1.5], ["half"], 1, None],
    "propensity_steps": [[], [-1], [64], ["far"], 4, None],
    "selection_strength": [-0.1, 11, "strong", True, None],
    "preset": [1, "", ["paper"]],
    "interaction_share": [-0.1, 1.1, "some", True, None],
    "click_rate": [0, 1, -0.1, "few", True],
    "propensity_noise": [-0.1, math.inf, None],
    "hidden_confounding": [-1, 1, "some", None],
    "simulation_seed": [-1, 2**31, 0.5, None],
    "primary": [1, {"CTR_AUC": 1}, "CTR_AUK", [[1]]],
    "load_col": [["user_id"], "user_id", {"inter": 5}],
    "unload_col": [{"inter": "hour"}, ["hour"]],
    "unused_col": [{"inter": "hour"}, ["hour"]],
    "discretization": [["price"], "price", {1: {"method": "LD"}}],
    "threshold": [4, {"rating": "four"}, {1: 4}],
    "store_dir": NOT_TEXT,
    "source": NOT_TEXT,
    # of data sets
    "feature_fields": [{}, 5, None],
    "min_count": NOT_COUNTS,
    "validation_share": [0, 1, "few", True],
    "on_bad_line": ["drop", 1, None],
    "simulation": [5, ["rows"]],
    "customers": ["some", 1, None],
    "protocol": ["all", 1, None],
    "obtain": NOT_TEXT,
    # RecBole's
    "gpu_id": [-1, 1.5, "all", [0.5], {"a": 1}],
    "worker": [-1, 0.5, "few", True],
    "state": ["loud", 1],
    "data_path": [*NOT_TEXT, None],
    "checkpoint_dir": NOT_TEXT,
    "wandb_project": NOT_TEXT,
    "dataset_save_path": NOT_TEXT,
    "dataloaders_save_path": NOT_TEXT,
    "train_neg_sample_args": ["uniform", 5, [1]],
    "clip_grad_norm": [5, "much", {}, {"max_norm": "much"}, {"max_norm": 1, "norm": 2}],
    "loss_decimal_place": [-1, 1.5, "few", True],
    "metric_decimal_place": [-1, 1.5, "few", True],
    "transform": ["upside_down", 5],
    "dataset": [""],
    "benchmark_filename": ["train", [], [1, 2, 3], {"train": "a"}],
    "field_separator": [*NOT_TEXT, None],
    "seq_separator": [*NOT_TEXT, None],
    "encoding": ["utf-99", 8, [""]],
    "NEG_PREFIX": [*NOT_TEXT, None],
    "LIST_SUFFIX": [*NOT_TEXT, None],
    "MAX_ITEM_LIST_LENGTH": NOT_COUNTS,
    "seq_len": [5, {"tags": "long"}, {"tags": 0}, {1: 4}],
    "additional_feat_suffix": [5, [5], {"a": 1}],
    "rm_dup_inter": ["middle", True, 1],
    "val_interval": ["high", {"rating": 5}, {"rating": "high"}, {1: "[1,2]"}],
    "preload_weight": ["emb", {"emb": 5}],
    **{key: NOT_TEXT for key in OFFERED if key not in ("CLICK_FIELD", "CONVERSION_FIELD")},
    **dict.fromkeys(
        (
            *("reproducibility", "shuffle", "require_pow", "repeatable", "valid_metric_bigger"),
            *("show_progress", "save_dataset", "save_dataloaders", "log_wandb", "use_gpu"),
            *("enable_amp", "enable_scaler", "filter_inter_by_user_or_item", "normalize_all"),
            "kg_reverse_r",
        ),
        NOT_TRUE_OR_FALSE,
    ),
    **dict.fromkeys(
        (
            *("numerical_features", "normalize_field", "selected_features", "alias_of_user_id"),
            *("alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id"),
        ),
        NOT_COLUMNS,
    ),
    **dict.fromkeys(
        (
            *("user_inter_num_interval", "item_inter_num_interval", "entity_kg_num_interval"),
            "relation_kg_num_interval",
        ),
        NOT_INTERVALS,
    ),
}
BAD["learning_rate"].append(math.inf)
for bad_columns in ("load_col", "unload_col", "unused_col"):
    BAD[bad_columns].append({"intre": ["user_id"]})
BAD["discretization"] += [{"age": {"method": "ED", "bucket": value}} for value in (-3, 0, "many")]
BAD["discretization"] += [{"age": {"method": value}} for value in ("ED", "XX")]
BAD["numerical_features"] = [*BAD["numerical_features"], ["age", "age"]]
for bad_interval in ("user_inter_num_interval", "item_inter_num_interval"):
    BAD[bad_interval] = [*BAD[bad_interval], "[10,5]", "[a,b]", "[1,2];", "[5,]"]
BAD["clip_grad_norm"] += [{"max_norm": value} for value in (0, -1, math.nan, math.inf, True)]
BAD["clip_grad_norm"] += [{"max_norm": 1, "norm_type": value} for value in (0, -2, "max", None)]
BAD["benchmark_filename"] += [["a", "a"], ["a"], ["a", "a", "b"], ["a", "b", "c", "d"]]

#: Of RecBole's models: one that has the key, and wrong values.
BAD_OF_MODELS = {
    "attention_size": ("AFM", NOT_COUNTS),
    "n_layers": ("AutoInt", NOT_COUNTS),
    "num_heads": ("FiGNN", NOT_COUNTS),
    "cross_layer_num": ("DCN", NOT_COUNTS),
    "expert_num": ("DCNV2", NOT_COUNTS),
    "low_rank": ("DCNV2", NOT_COUNTS),
    "t_depth": ("KD_DAGFM", NOT_COUNTS),
    "depth": ("KD_DAGFM", NOT_COUNTS),
    "alpha": ("KD_DAGFM", NOT_NEGATIVE),
    "beta": ("KD_DAGFM", NOT_NEGATIVE),
    "reg_weight": ("PNN", NOT_NEGATIVE),
    "drop_ex": ("EulerNet", NOT_BELOW_ONE),
    "drop_im": ("EulerNet", NOT_BELOW_ONE),
    "hidden_dropout_prob": ("FiGNN", NOT_BELOW_ONE),
    "attn_dropout_prob": ("FiGNN", NOT_BELOW_ONE),
    "dropout_probs": ("AutoInt", [[], [1], 0.2, ["half"], None]),
    "order_list": ("EulerNet", NOT_LAYERS),
    "t_cin": ("KD_DAGFM", NOT_LAYERS),
    "cin_layer_size": ("xDeepFM", NOT_LAYERS),
    "mixed": ("DCNV2", NOT_TRUE_OR_FALSE),
    "double_tower": ("DSSM", NOT_TRUE_OR_FALSE),
    "apply_norm": ("EulerNet", NOT_TRUE_OR_FALSE),
    "use_inner": ("PNN", NOT_TRUE_OR_FALSE),
    "use_outer": ("PNN", NOT_TRUE_OR_FALSE),
    "direct": ("xDeepFM", NOT_TRUE_OR_FALSE),
    "structure": ("DCNV2", ["round", 1, None]),
    "type": ("KD_DAGFM", ["middle", 1, None]),
    "fields": ("FFM", [["a"], "a", {"a": 5}]),
    "teacher": ("KD_DAGFM", ["print()", 1, None]),
    "phase": ("KD_DAGFM", ["distillation", "learning", 1]),
    "warm_up": ("KD_DAGFM", ["planted.pth", 5]),
    "embedding_size": ("DeepFM", NOT_COUNTS),
    "mlp_hidden_size": ("DeepFM", NOT_LAYERS),
    "dropout_prob": ("DeepFM", [*NOT_BELOW_ONE, None]),
}
BACKBONES = ("DCN", "AutoInt", "xDeepFM", "PNN", "FiGNN", "EulerNet", "AFM", "DCNV2")


#: Where a key acts, if not on ESCM2_DR and any data set.
ACTING = {
    "balancing_weight": ("ESCM2_IPS_V2", "toy"),
    "balancing_floor": ("ESCM2_IPS_V2", "toy"),
    "conversion_weight": ("DDPO", "toy"),
    "cvr_weight_limit": ("NISE", "toy"),
    "bias_share": ("ESCM2_DR_MSE", "toy"),
    "calibrator_weight": ("AITM", "toy"),
    "counterfactual_prior_weight": ("DCMT", "toy"),
    **dict.fromkeys(("task", *keys.PART_SETTINGS), ("DeepFM", "toy")),
    **dict.fromkeys(
        (name for name, _ in lines_of([PROPERTIES / "dataset" / "ml-100k-semi.yaml"]).items()),
        ("ESCM2_DR", "ml-100k-semi"),
    ),
    **dict.fromkeys(
        ("simulation", "feature_fields", "interaction_share", "on_bad_line"),
        ("ESCM2_DR", "ali-ccp-sim"),
    ),
    **dict.fromkeys(("obtain", "validation_share"), ("ESCM2_DR", "ali-ccp")),
    "customers": ("ESCM2_DR", "hillstrom"),
    "protocol": ("ESCM2_DR", "coat"),
    "l2_penalty": ("LogisticRegression", "toy"),
    **dict.fromkeys(
        ("num_leaves", "min_data_in_leaf", "shrinkage_rate", "rate_smoothing"), ("LightGBM", "toy")
    ),
    **{key: (model, "toy") for key, (model, _) in BAD_OF_MODELS.items() if key not in KEYS},
}
WRONG = {**{key: values for key, (_, values) in BAD_OF_MODELS.items()}, **BAD}


def message_of(model, dataset, key, value, **settings):
    with pytest.raises(UsageError) as caught:
        Config(model, dataset, None, {**settings, key: value})
    return str(caught.value)


def test_every_key_has_wrong_values():
    assert set(BAD) == set(KEYS)
    assert set(OF_RECBOLES_MODELS) <= set(BAD_OF_MODELS)


@pytest.mark.parametrize("key", BAD)
def test_wrong_values_are_refused(key):
    where = ACTING.get(key, ("ESCM2_DR", "toy"))
    settings = {"backbone": "ple"} if where[0] == "ESCM2_DR" else {}
    for value in BAD[key]:
        message = message_of(*where, key, value, **settings)
        assert key in message
        assert repr(value) in message or str(value).strip("[]") in message


def test_a_name_within_a_key_that_is_no_text_is_refused():
    said = message_of("ESCM2_DR", "toy", "eval_args", {1: 2})
    assert said == "eval_args must be a mapping of split, order, group_by and mode, got {1: 2}"


@pytest.mark.parametrize("key", ["calibrate_weights", "worker", "valid_metric", "ENTITY_ID_FIELD"])
def test_an_array_is_refused_as_a_list(key):
    assert key in message_of("ESCM2_DR", "toy", key, np.array([1, 2]))


@pytest.mark.parametrize("key", BAD_OF_MODELS)
def test_wrong_values_of_recboles_models_are_refused(key):
    model, values = BAD_OF_MODELS[key]
    for value in values:
        assert key in message_of(model, "toy", key, value)
        if model in BACKBONES:
            assert key in message_of("ESCM2_DR", "toy", key, value, backbone=model)


class Student(KD_DAGFM):
    """RecBole's file of its parent's defaults isn't read for it."""


@pytest.mark.parametrize("teacher", ["print(1)", None, 1])
def test_no_subclass_runs_its_teacher_as_code(teacher):
    with pytest.raises(UsageError, match="teacher must be 'CrossNet' or 'CIN', got"):
        Config(Student, "toy", None, {"teacher": teacher})
    with pytest.raises(UsageError, match="depth must be"):
        Config(Student, "toy", None, {"teacher": "CIN", "depth": 0.5})


def is_column(key):
    return key in KEYS and KEYS[key].kind in (keys.COLUMN, keys.EVENTS)


@pytest.mark.parametrize("key", sorted({*WRONG} - {"dataset"}))
def test_wrong_values_end_the_program_with_one_message(key, capsys, tmp_path, monkeypatch):
    """On the command line, where a value is text that is parsed; nothing is trained or written."""
    monkeypatch.chdir(tmp_path)
    model, dataset = ACTING.get(key, ("ESCM2_DR", "toy"))
    line = {"model": model, "dataset": dataset, "backbone": "ple"}
    if model != "ESCM2_DR":
        del line["backbone"]
    for text in map(str, filter(None, WRONG[key])):
        if is_benchmark({key: text}) or (is_column(key) and text != ""):
            continue  # a sweep of it, a column that is called so
        if text == "7" and key in KEYS and KEYS[key].kind in (keys.FOLDER, keys.TEXT):
            continue  # a folder that is called so
        assert main([f"--{name}={value}" for name, value in {**line, key: text}.items()]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        (error,) = (line for line in said.err.splitlines() if line.startswith("error: "))
        assert key in error, text
    assert not list(tmp_path.iterdir())


# --- where keys are listed -------------------------------------------------------------------

PROPERTY_FILES = {
    f"{folder.name}/{file.name}": file
    for folder in (PROPERTIES, PROPERTIES / "model", PROPERTIES / "dataset")
    for file in sorted(folder.iterdir())
    if file.name.endswith(".yaml")
}
#: Of overall.yaml, which gives RecBole's own keys other defaults.
RECBOLES_HERE = {name for name in lines_of([PROPERTIES / "overall.yaml"]) if name not in OURS}


def test_every_key_of_ours_has_one_default_and_one_line_of_help():
    of_runs = [file for name, file in PROPERTY_FILES.items() if "dataset/" not in name]
    lines = lines_of(of_runs)
    assert set(lines) == set(OURS) | RECBOLES_HERE
    assert set(KEYS) >= RECBOLES_HERE
    for name in OURS:
        assert re.match(r"\(.+?\) \S", lines[name][1]), f"{name} has no line '# (type) help'"


def test_the_keys_of_data_sets_are_declared():
    files = [file for name, file in PROPERTY_FILES.items() if "dataset/" in name]
    assert set(lines_of(files)) <= set(KEYS)
    assert set(lines_of(files)) >= set(keys.OF_DATA_SETS)


@pytest.mark.parametrize("name", PROPERTY_FILES)
def test_lines_of_a_property_file_are_what_yaml_reads(name):
    content = yaml.safe_load(PROPERTY_FILES[name].read_text("utf-8"))
    lines = lines_of([PROPERTY_FILES[name]])
    assert set(lines) == set(content)
    for key, (text, _) in lines.items():
        if text not in ("", "|"):  # of several lines
            assert yaml.safe_load(text) == content[key]
        if key in KEYS and content[key] is not None:
            assert KEYS[key].kind.holds(content[key]), key


def test_every_key_of_recboles_is_declared():
    of_any = [
        recbole_properties() / name
        for name in ("overall.yaml", "dataset/sample.yaml", "quick_start_config/context-aware.yaml")
    ]
    listed = set(lines_of(of_any))
    assert set(keys.RECBOLES) - listed == keys.UNLISTED - {"model", *OF_RECBOLES_MODELS}
    for kind in ("general", "training", "evaluation", "dataset"):
        listed |= set(getattr(argument_list, f"{kind}_arguments"))
    assert listed - {"config_file"} <= set(KEYS)  # which is an option, and no key
    of_models = [recbole_properties() / "model" / f"{n}.yaml" for n in recbole_context_names()]
    assert set(lines_of(of_models)) <= {*KEYS, *OF_RECBOLES_MODELS}


TABLES = [
    file for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if file.is_file()
]


def test_tables_of_keys_hold_the_defaults():
    of_family = PROPERTIES / "model" / "EntireSpaceRecommender.yaml"
    others = [file for name, file in PROPERTY_FILES.items() if "dataset/" not in name]
    lines = lines_of([of_family, *others])
    rows = 0
    for file in TABLES:
        _, *tables = file.read_text("utf-8").split("| key | default | meaning |\n")
        for table in tables:
            for row in table.partition("\n\n")[0].splitlines()[1:]:
                name, default = (cell.strip(" `") for cell in row.split("|")[1:3])
                assert yaml.safe_load(default.partition(" ")[0]) == yaml.safe_load(lines[name][0])
                rows += 1
    assert rows >= 10


# --- where keys act --------------------------------------------------------------------------


def test_keys_act_on_what_there_is():
    """What they do to each model, ``tests/model/test_keys.py`` tries."""
    traits = {trait for model in MODELS for b in BOTTOMS for trait in model.traits(b)}
    for name, key in KEYS.items():
        assert set(key.acts_on) <= traits | {"single_task", "pair", *REFERENCE_NAMES}, name


class AITM(EntireSpaceRecommender):
    """Of somebody's own, and called as ours."""


def test_a_name_alone_makes_no_key_act():
    assert "calibrator_weight" in SHIPPED_AITM.acting_keys("separate")
    assert "calibrator_weight" not in AITM.acting_keys("separate")


def test_where_a_key_does_nothing_it_says_why():
    for name, key in KEYS.items():
        assert bool(key.acts_on) == bool(key.idle), name


def test_what_recboles_data_set_reads_is_in_the_fingerprint_of_atomic_files():
    """Where a new version of RecBole reads a further key, this fails."""
    assert set(argument_list.dataset_arguments) - {"unused_col"} <= keys.DATA_KEYS
    given = dict.fromkeys(KEYS, "as it is")
    assert atomic.settings(given) == dict.fromkeys(keys.DATA_KEYS, "as it is")


def test_declarations_need_neither_models_nor_metrics():
    for module in (keys, config):
        text = Path(module.__file__).read_text("utf-8")
        assert not re.search(r"import.*recbole_escm2\.(model|evaluator|data)\b", text)
        assert not re.search(r"from recbole_escm2\.(model|evaluator|data)\b", text)
