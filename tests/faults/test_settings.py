"""Mistakes in settings: each is said in one line with file, line and key, and nothing is left."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from common import call, refused, small

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.study import Trial, Tuning


@pytest.fixture(autouse=True, scope="module")
def store(data_path, tmp_path_factory):
    """What is made of the data once, before anything can be wrong with a run."""
    assert call(tmp_path_factory.mktemp("first"), *small(data_path)).code == 0


YAML = {
    "an unknown key": [
        (
            "epochs: 1\nlearning_rat: 1",
            r", line 2: .* 'learning_rat' \(did you mean learning_rate\?",
        ),
        ("\n\npropensity_flor: 0.1", r", line 3: .* 'propensity_flor' .*mean propensity_floor\?"),
        ("click_field: o", r", line 1: .* 'click_field' \(did you mean CLICK_FIELD\?"),
        ("seed: 1\ntraining: {seed: 3}", r", line 2: there is no config key 'training'"),
    ],
    "a key twice": [
        ("epochs: 1\nseed: 2\nepochs: 3", ", lines 1 and 3: epochs stands there twice"),
        ("eval_args:\n  order: RO\n  order: TO", ", lines 2 and 3: order stands there twice"),
        ("threshold: {rating: 4, rating: 3}", ", lines 1 and 1: rating stands there twice"),
    ],
    "numbers of YAML 1.1": [
        ("seed: 010", ", line 1: seed: 010 is 8 in YAML, a number to base 8: write 8, or '010'"),
        ("epochs: 1\nseed: 1:30", ", line 2: seed: 1:30 is 90 in YAML, a number to base 60"),
        ("topk: [5, 007]", ", line 1: topk: 007 is 7 in YAML"),
        ("learning_rate: 0:0.6", ", line 1: learning_rate: 0:0.6 is 0.6 in YAML"),
        ("load_col:\n  inter: [010, user_id]", ", line 2: load_col: 010 is 8 .*'010' in quotes"),
    ],
    "more than anybody means": [
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{f'*{a}, ' * 10}]\n" for a, b in pairwise("abcdefgh")),
            ", line 5: e has more than 100,000 values",
        ),
        ("metrics: &m [*m]", ", line 1: metrics contains itself"),
        ("unused_col: &m {inter: *m}", ", line 1: unused_col contains itself"),
        (f"dataset: {'x' * 20_000_000}", " has more than 1,000,000 bytes: is it data"),
        (f"metrics: [{'AUC, ' * 3_000_000}]", " has more than 1,000,000 bytes: is it data"),
    ],
    "wrong types": [
        ("weight_decay: little", ", line 1: weight_decay must be a number >= 0, got 'little'"),
        ("epochs: 1\nenable_amp: 2", ", line 2: enable_amp must be True or False, got 2"),
        ("val_interval: [1, 2]", ", line 1: val_interval must be a mapping"),
        ("seq_len: 5", ", line 1: seq_len must be a mapping"),
        ("state: 3", ", line 1: state must be debug, info, warning, error or critical, got 3"),
        ("encoding: utf-99", ", line 1: encoding must be the name of an encoding, got 'utf-99'"),
        ("clip_grad_norm:\n  max_norm: -1", ", line 1: clip_grad_norm must be a mapping"),
        (
            "sparse_embedding: maybe",
            ", line 1: sparse_embedding must be True or False, got 'maybe'",
        ),
        ("learning_rate: 1e400", ", line 1: learning_rate must be a number > 0, got inf"),
        ("epochs: 1e2", ", line 1: epochs must be a whole number >= 1, got 100.0"),
    ],
    "files in files": [
        ("epochs: 1\nconfig_files: b.yaml", ", line 2: config_files isn't read there"),
        ("config_file: b.yaml", ", line 1: config_file isn't read there"),
    ],
    "no YAML": [
        ("epochs: 1\n seed: 2", ", line 2, is not YAML: mapping values are not allowed here$"),
        ("epochs: 1\n\tseed: 2", ", line 2, is not YAML: "),
        ("epochs: 1\nmetrics: [CTR_AUC", ", line 2, is not YAML: "),
    ],
    "within eval_args": [
        ("eval_args: {split: {RS: [a, 1, 1]}}", ", line 1: eval_args split must be .*'a'"),
        ("eval_args:\n  order: up", ", line 1: eval_args order must be 'RO' or 'TO', got 'up'"),
        (
            "eval_args: {splitt: {RS: [8, 1, 1]}}",
            r", line 1: eval_args has 'splitt' \(did",
        ),
    ],
    "columns, intervals and buckets": [
        ("load_col: {intre: [user_id]}", ", line 1: load_col must be a mapping of file suffixes"),
        ("numerical_features: [age, age]", ", line 1: numerical_features must be .* different"),
        ("user_inter_num_interval: '[10,5]'", ", line 1: user_inter_num_interval must be"),
        ("val_interval: {hour: '[5,3]'}", ", line 1: val_interval must be"),
        ("discretization: {age: {method: ED, bucket: -3}}", ", line 1: discretization must be"),
        (
            "discretization: {age: {method: XX}}",
            r", line 1: discretization must be .* \{method: LD\} or .*'XX'",
        ),
    ],
    "keys that do nothing": [
        (
            "epochs: 1\nimputation: label",
            ", line 2: ESMM has no imputation: imputation does",
        ),
        ("calibrator_weight: 1", ", line 1: ESMM has no calibrator"),
    ],
}


@pytest.mark.parametrize(
    ("text", "message"),
    [pytest.param(*case, id=f"{kind} {n}") for kind in YAML for n, case in enumerate(YAML[kind])],
)
def test_files(text, message, data_path, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    dataset = {} if text.startswith("dataset") else {"dataset": "tiny"}
    keys = {match[1] for match in re.finditer(r"^(\w+):", text, re.MULTILINE)}
    given = {key: None for key in ("epochs", "metrics") if key in keys}
    given |= dataset | {"config_files": "a.yaml"}
    said = refused(tmp_path, *small(data_path, **given), unchanged=[data_path])
    assert re.match(f"error: config file a.yaml{message}", said), said


LINE = {
    "clipping": [
        ({"clip_grad_norm": "{max_norm: -1}"}, "clip_grad_norm must be .* got {'max_norm': -1}"),
        ({"clip_grad_norm": "{max_norm: 0}"}, "clip_grad_norm must be .* got {'max_norm': 0}"),
        ({"clip_grad_norm": "{max_norm: 1, norm_type: -2}"}, "clip_grad_norm must be"),
        ({"clip_grad_norm": "{max_norm: 1, norm: 2}"}, "clip_grad_norm must be"),
        ({"clip_grad_norm": "1"}, "clip_grad_norm must be a mapping of max_norm .*, got 1"),
    ],
    "text for booleans": [
        ({"enable_amp": "perhaps"}, "enable_amp must be True or False, got 'perhaps'"),
        ({"show_progress": "nope"}, "show_progress must be True or False, got 'nope'"),
        ({"sparse_embedding": "yes"}, "sparse_embedding must be True or False, got 'yes'"),
        ({"reproducibility": "1"}, "reproducibility must be True or False, got 1"),
        ({"seeds": "2", "saved": "maybe"}, "saved must be True or False, got 'maybe'"),
    ],
    "devices": [
        ({"gpu_id": "99"}, "gpu_id: there is no device 99"),
        ({"gpu_id": "7,8"}, "gpu_id: there is no device 7,8"),
        ({"gpu_id": "abc"}, "gpu_id must be numbers of devices, as in '0,1', got 'abc'"),
        ({"gpu_id": "-1"}, "gpu_id must be numbers of devices"),
        ({"use_gpu": "cuda"}, "use_gpu must be True or False, got 'cuda'"),
    ],
    "keys of RecBole's that nothing reads": [
        ({"save_dataset": "True"}, "nothing here reads save_dataset, a key of RecBole's"),
        ({"save_dataloaders": "True"}, "nothing here reads save_dataloaders"),
        ({"loss_decimal_place": "4"}, "nothing here reads loss_decimal_place"),
        ({"metric_decimal_place": "2"}, "nothing here reads metric_decimal_place"),
        ({"loss_type": "BPR"}, "there is no config key 'loss_type'"),
    ],
    "names of files": [
        ({"benchmark_filename": "train"}, "benchmark_filename must be a list of three different"),
        ({"benchmark_filename": "[train, train, test]"}, "benchmark_filename must be a list of"),
        ({"benchmark_filename": "[a]"}, "benchmark_filename must be a list of three"),
        ({"benchmark_filename": "[a, b]"}, r"there is no file .*tiny\.a\.inter"),
        ({"benchmark_filename": "[a, b, '../c']"}, "benchmark_filename can't be '../c'"),
        ({"benchmark_filename": "[a, b, c]"}, r"there is no file .*tiny\.a\.inter"),
    ],
    "encodings": [
        ({"encoding": "base64"}, "encoding must be the name of an encoding, got 'base64'"),
        ({"encoding": "rot13"}, "encoding must be the name of an encoding, got 'rot13'"),
        ({"encoding": "undefined"}, "encoding must be the name of an encoding|set encoding"),
    ],
    "too large": [
        ({"embedding_size": 10**9}, "ESMM on tiny doesn't fit into memory: .*embedding_size"),
        ({"mlp_hidden_size": [10**7, 10**7]}, "doesn't fit into memory: .*mlp_hidden_size"),
        ({"min_count": 10**30}, "min_count must be a whole number from 1 to"),
    ],
    "an option that is nearly one": [
        ({"config_file": "a.yaml"}, r"no config key 'config_file' \(did you mean config_files"),
        ({"train-batch-size": 5}, r"no config key 'train-batch-size' \(did you mean train_batch"),
        ({"Epochs": 5}, r"no config key 'Epochs' \(did you mean epochs"),
    ],
    "numbers": [
        ({"seed": "010"}, "seed must be a whole number .* got '010'"),
        ({"seed": "1:30"}, "seed must be a whole number .* got '1:30'"),
        ({"topk": "[010]"}, r"topk must be .* got '\[010\]'"),
        ({"epochs": "many"}, "epochs must be a whole number >= 1, got 'many'"),
        ({"epochs": "1", "metrics": "x" * 100_000}, "there is no metric"),
    ],
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [pytest.param(*case, id=f"{kind} {n}") for kind in LINE for n, case in enumerate(LINE[kind])],
)
def test_the_command_line(settings, message, data_path, tmp_path):
    said = refused(tmp_path, *small(data_path, **settings), unchanged=[data_path])
    assert re.search(message, said), said


@pytest.mark.parametrize("text", ["2024", "1or2", "0777", "1e3"])
def test_a_folder_may_be_called_as_a_number(text, data_path, tmp_path):
    done = call(tmp_path, *small(data_path, output_dir=text))
    assert done.code == 0
    assert "Warning: " not in done.err
    (run,) = (tmp_path / text).iterdir()
    assert (run / "result.json").is_file()


def test_files_of_recboles_users_are_read(data_path, tmp_path, caplog):
    """What nothing reads of them is said in one line."""
    (tmp_path / "a.yaml").write_text(
        "gpu_id: 0\nloss_type: CE\nn_layers: 3\nsave_dataset: True\nreg_weight: 1e-3\n"
        "train_neg_sample_args: ~\nrepeatable: False\nlearning_rate: 1e-2\nneg_sampling: ~\n"
    )
    done = call(tmp_path, *small(data_path, config_files="a.yaml"))
    assert done.code == 0, done.err
    (said,) = (line for line in caplog.messages if "nothing here reads" in line)
    assert said.endswith(": loss_type, n_layers, neg_sampling, reg_weight, save_dataset")


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "ESMM", "global_weight": 0},
        {"model": "ESCM2_DR", "global_weight": 0, "counterfactual_weight": 0},
        {"model": "Naive", "counterfactual_weight": 0},
    ],
)
def test_weights_that_leave_the_cvr_tower_untrained_are_said(settings, data_path, tmp_path):
    done = call(tmp_path, *small(data_path, **settings))
    assert done.code == 0
    assert "the CVR tower learns nothing" in done.err


def test_python_code_has_paths_and_numbers_of_numpy(data_path, tmp_path):
    given = {"data_path": data_path, "output_dir": tmp_path, "epochs": np.int64(3)}
    config = Config("ESMM", "tiny", config_dict={**given, "learning_rate": np.float32(0.5)})
    assert (config["epochs"], config["learning_rate"]) == (3, 0.5)
    assert config["output_dir"] == str(tmp_path)
    with pytest.raises(UsageError, match=r"epochs must be a whole number >= 1, got 1\.5"):
        Config("ESMM", "tiny", config_dict={**given, "epochs": np.float64(1.5)})


def test_use_gpu_false_is_the_processor(data_path):
    """RecBole looks at gpu_id alone."""
    config = Config("ESMM", "tiny", config_dict={"data_path": data_path, "use_gpu": False})
    assert config["gpu_id"] == ""
    assert config["device"].type == "cpu"


# ------------------------------------------------------------------ trained to nothing


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 10},
        {"learning_rate": 1000, "model": "ESCM2_DR"},
        {"learning_rate": 100, "learner": "adagrad"},
        {"learning_rate": 10, "model": "DeepFM", "metrics": "[CTR_AUC]"},
        {"learning_rate": 10, "model": "LR", "task": "both"},
    ],
)
def test_a_run_that_is_worse_than_a_constant_says_so(settings, data_path, tmp_path):
    done = call(tmp_path, *small(data_path, epochs=3, train_batch_size=256, **settings))
    assert done.code == 0, done.err
    said = "This run is worse than a constant prediction: on validation the log loss"
    assert (done.out + done.err).count(said) == 1
    (run,) = (tmp_path / "output").iterdir()
    log = (run / "run.log").read_text()
    assert "worse than a constant" in log
    assert "no earlier one is better, but a constant prediction is" in log
    assert "best so far" not in log
    worse = json.loads((run / "result.json").read_text())["worse_than_constant"]
    assert worse["log_loss"] > worse["constant"] > 0


def test_a_run_that_has_learned_says_nothing_of_it(data_path, tmp_path):
    learned = {"epochs": 8, "train_batch_size": 256, "learning_rate": 0.01}
    done = call(tmp_path, *small(data_path, **learned))
    assert "constant" not in done.out + done.err
    (run,) = (tmp_path / "output").iterdir()
    assert json.loads((run / "result.json").read_text())["worse_than_constant"] is None


def test_the_best_is_no_worse_than_a_constant_where_one_is():
    good, worse = (
        Trial({}, 0.6, True, "a"),
        Trial({"learning_rate": 10}, 0.9, True, "b", worse=True),
    )
    assert Tuning(2, 1, "CTR_AUC", {"row": [worse, good]}).best("row") is good
    better = Trial({}, 0.95, True, "c", worse=True)
    assert Tuning(2, 1, "CTR_AUC", {"row": [worse, better]}).best("row") is better


def test_a_search_prefers_what_has_learned(program, data_path, tmp_path):
    """By Recall whoever calls every impression a click is the best."""
    (tmp_path / "rates.hyper").write_text("learning_rate choice [0.01, 100]\n")
    arguments = small(data_path, epochs=4, train_batch_size=256, valid_metric="CTR_Recall")
    done = program("search", *arguments, "--params_file=rates.hyper", "--trials=2", "--seed=2021")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"1\.0000 on validation, worse than a constant prediction; .*=100$", done.stderr, re.M
    )
    said = "1 of them is worse than a constant prediction, and behind all others."
    assert said in done.stdout.splitlines()
    (best,) = (tmp_path / "output").glob("search-*/best.yaml")
    assert "learning_rate: 0.01" in best.read_text()
