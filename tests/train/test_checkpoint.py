"""A checkpoint is what it was trained on: the same model, data, labels and split, or a refusal."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.model import ESCM2_IPS, ESMM
from recbole_escm2.quick_start import evaluate_checkpoint, run, show
from recbole_escm2.train.checkpoint import finish_checkpoint, load_checkpoint, save_checkpoint
from recbole_escm2.train.trainer import EntireSpaceTrainer

QUICK = {
    "numerical_features": ["age"],
    "epochs": 2,
    "train_batch_size": 1024,
    "embedding_size": 4,
    "mlp_hidden_size": [8],
    "show_progress": False,
}


@dataclass(frozen=True)
class Trained:
    file: Path
    result: dict[str, float]


@pytest.fixture(scope="module")
def trained(data_path, tmp_path_factory) -> Trained:
    """A checkpoint of ESCM2_IPS on ``tiny``, and its run's test metrics."""
    output = tmp_path_factory.mktemp("trained")
    given = {**QUICK, "data_path": str(data_path), "output_dir": str(output)}
    outcome = run(ESCM2_IPS, "tiny", config_dict=given)
    return Trained(Path(outcome["run_dir"]) / "checkpoint.pth", outcome["test_result"])


@pytest.fixture
def changed(trained, tmp_path):
    """Writes a checkpoint that is the trained one but for some of its entries."""

    def write(**entries: Any) -> Path:
        file = tmp_path / "changed.pth"
        save_checkpoint(file, {**load_checkpoint(trained.file), **entries})
        return file

    return write


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("seed", "7", "trained with seed 2020, and can't be scored with seed 7"),
        ("eval_args", "{split: {RS: [0.5, 0.1, 0.4]}}", "eval_args"),
        ("eval_args", "{order: TO}", "eval_args"),
        ("impression_sample", "0.5", "impression_sample 1.0"),
        ("conversion_without_click", "unconvert", "conversion_without_click 'drop'"),
        ("learning_rate", "0.1", "learning_rate 0.001"),
        ("propensity_floor", "0.2", "propensity_floor 0.1"),
        ("CLICK_FIELD", "potential_conversion", "potential_conversion|CLICK_FIELD"),
        ("load_col", "{inter: [user_id, item_id, hour]}", "load_col None"),
        ("benchmark_filename", "[a, b, c]", "benchmark_filename None"),
    ],
)
def test_another_setting_of_training_is_refused_by_its_name(trained, places, key, text, words):
    with pytest.raises(UsageError, match=words):
        evaluate_checkpoint(trained.file, config_dict=places, command_line={key: text})
    assert not list(Path(places["output_dir"]).glob("*"))


def test_what_was_set_may_be_said_again_and_what_is_scored_may_differ(trained, places, tmp_path):
    same = {"seed": "2020", "eval_args": "{order: RO}", "train_batch_size": "1024"}
    scoring = {"metrics": "[CTR_AUC]", "eval_batch_size": "100", "gpu_id": "0", "state": "error"}
    (tmp_path / "places.yaml").write_text(f"data_path: {places['data_path']}\nseed: 2020\n")
    again = evaluate_checkpoint(
        trained.file,
        config_dict={"output_dir": places["output_dir"]},
        command_line={**same, **scoring},
        config_file_list=[str(tmp_path / "places.yaml")],
    )
    assert again["test_result"]["CTR_AUC"] == trained.result["CTR_AUC"]
    assert "CTR_GAUC" not in again["test_result"]
    (tmp_path / "places.yaml").write_text("seed: 7\n")
    with pytest.raises(UsageError, match="seed 2020"):
        evaluate_checkpoint(trained.file, config_file_list=[str(tmp_path / "places.yaml")])


def test_a_split_that_isnt_the_one_of_training_is_refused(changed, places):
    """Whatever is the cause, here a seed that somebody has written into the file."""
    settings = load_checkpoint(changed())["settings"]
    with pytest.raises(UsageError, match=r"another split: test, train, validation hold other"):
        evaluate_checkpoint(changed(settings={**settings, "seed": 7}), config_dict=places)


# ------------------------------------------------------------------ data


def edit_cell(name: str, row: int, column: int, value: str) -> Any:
    def edit(folder: Path) -> None:
        file = folder / name
        lines = file.read_text().splitlines()
        cells = lines[row].split("\t")
        assert cells[column] != value
        cells[column] = value
        lines[row] = "\t".join(cells)
        file.write_text("\n".join(lines) + "\n")

    return edit


def every_label(folder: Path) -> None:
    """The labels of all impressions are others, and no token is."""
    file = folder / "tiny.inter"
    header, *rows = file.read_text().splitlines()
    turned = []
    for row in rows:
        cells = row.split("\t")
        cells[3:5] = ["1", str(1 - int(cells[4]))]
        turned.append("\t".join(cells))
    file.write_text("\n".join([header, *turned]) + "\n")


def order_of_rows(folder: Path) -> None:
    """The first and the last row of the same tokens change places."""
    file = folder / "tiny.inter"
    header, *rows = file.read_text().splitlines()
    rows[-1], rows[-2] = rows[-2], rows[-1]
    file.write_text("\n".join([header, *rows]) + "\n")


def one_row_less(folder: Path) -> None:
    file = folder / "tiny.inter"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")


def first_click(folder: Path) -> int:
    rows = (folder / "tiny.inter").read_text().splitlines()
    return next(n for n, row in enumerate(rows) if row.split("\t")[3:5] == ["1", "0"])


EDITS = {
    "one label": (
        lambda f: edit_cell("tiny.inter", first_click(f), 4, "1")(f),
        r"here conversion \(inter\) hold other values",
    ),
    "every label": (every_label, r"click \(inter\), conversion \(inter\) hold other"),
    "a true probability": (edit_cell("tiny.inter", 9, 7, "0.123456"), r"true_cvr \(inter\)"),
    "a token": (edit_cell("tiny.inter", 5, 2, "25"), "field hour has another vocabulary"),
    "a feature": (edit_cell("tiny.user", 3, 1, "99.5"), r"age \(user\) hold other values"),
    "values of a bag": (edit_cell("tiny.item", 4, 2, "t1"), r"tags \(item\) hold other values"),
    "the order of rows": (order_of_rows, r"item_id \(inter\).* or the same ones in another order"),
    "one row less": (one_row_less, r"click \(inter\), conversion \(inter\)"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_data_file_is_refused_with_what_is_another(
    trained, places, data_path, tmp_path, name
):
    edit, words = EDITS[name]
    folder = tmp_path / "data" / "tiny"
    shutil.copytree(data_path / "tiny", folder, ignore=shutil.ignore_patterns("store"))
    given = {**places, "data_path": str(folder.parent)}
    again = evaluate_checkpoint(trained.file, config_dict={**given, "metrics": ["CTR_AUC"]})
    assert again["test_result"]["CTR_AUC"] == trained.result["CTR_AUC"]  # the same files elsewhere
    edit(folder)
    with pytest.raises(UsageError, match=words):
        evaluate_checkpoint(trained.file, config_dict=given)


def test_a_checkpoint_says_where_its_data_was_but_doesnt_look_there(
    trained, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"), pytest.raises(UsageError, match="there is no data set 'tiny'"):
        evaluate_checkpoint(trained.file)
    assert "data_path" in caplog.text
    assert "which is not taken from it" in caplog.text


# ------------------------------------------------------------------ the file


def test_no_flipped_bit_loads(trained, tmp_path):
    """Random ones over the whole, and some in each region: head, pickle, weights, seal."""
    whole = trained.file.read_bytes()
    draw = random.Random(0)
    bits = {draw.randrange(8 * len(whole)) for _ in range(300)}
    regions = (0, whole.index(b"data.pkl") + 40, len(whole) // 2, len(whole) - 200)
    bits |= {8 * (start + n) + n % 8 for start in regions for n in range(20)}
    bits |= {8 * n + n % 8 for n in range(len(whole) - 64, len(whole))}
    file = tmp_path / "flipped.pth"
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(UsageError, match=r"damaged|wasn't written by this program"):
            load_checkpoint(file)
    for part in (b"", whole[:1000], whole[:-1], whole + b"\n", whole[1:], whole[:-60]):
        file.write_bytes(part)
        with pytest.raises(UsageError, match=r"flipped\.pth"):
            load_checkpoint(file)


def test_files_of_others_are_refused(trained, settings, tmp_path):
    def refused(words: str, content: Any) -> None:
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UsageError, match=words):
            evaluate_checkpoint(tmp_path / "other.pth")

    state = load_checkpoint(trained.file)
    refused("earlier version.*train the model again", {"format": "recbole_escm2 checkpoint 1"})
    refused("run any code", {"config": Config(ESMM, "tiny", config_dict=settings)})
    refused("wasn't written by this program", {"weights": torch.ones(3)})
    refused("wasn't written by this program", state)
    with pytest.raises(UsageError, match="of model ESCM2_IPS, not of ESCM2_DR"):
        evaluate_checkpoint(trained.file, model="ESCM2_DR")
    with pytest.raises(UsageError, match="of dataset tiny, not of ml-100k"):
        evaluate_checkpoint(trained.file, dataset="ml-100k")


@pytest.mark.parametrize(
    "entry", ["model", "dataset", "settings", "data", "epoch", "training_ended", "state_dict"]
)
def test_an_entry_of_another_type_is_refused(changed, entry):
    with pytest.raises(UsageError, match=f"its {entry} isn't as this program writes it"):
        load_checkpoint(changed(**{entry: None}))


WEIGHTS = {
    "half": (lambda w: w.half(), r"is float16 \[8\] there, and float32 \[8\] in the model"),
    "double": (lambda w: w.double(), "float64"),
    "whole numbers": (lambda w: w.int(), "int32"),
    "another shape": (lambda w: w[:-1], r"float32 \[7\]"),
    "no tensor": (lambda w: w.tolist(), "is list there"),
    "without values": (lambda w: w.to("meta"), "without values"),
    "sparse": (lambda w: w.to_sparse(), "without values"),
    "not a number": (lambda w: torch.full_like(w, float("nan")), "aren't finite"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_type_are_refused(changed, places, name):
    change, words = WEIGHTS[name]
    weights = load_checkpoint(changed())["state_dict"]
    key = next(k for k, w in weights.items() if list(w.shape) == [8])
    with pytest.raises(UsageError, match=words):
        evaluate_checkpoint(
            changed(state_dict={**weights, key: change(weights[key])}), config_dict=places
        )


def test_missing_and_further_weights_are_refused(changed, places):
    weights = dict(load_checkpoint(changed())["state_dict"])
    with pytest.raises(UsageError, match="doesn't fit the model: it has another"):
        evaluate_checkpoint(
            changed(state_dict={**weights, "another": torch.ones(1)}), config_dict=places
        )
    name, _ = weights.popitem()
    with pytest.raises(UsageError, match=f"doesn't fit the model: it lacks {name}"):
        evaluate_checkpoint(changed(state_dict=weights), config_dict=places)


def test_a_checkpoint_is_written_as_a_whole(trained, tmp_path):
    file = tmp_path / "checkpoint.pth"
    state = load_checkpoint(trained.file)
    save_checkpoint(file, {**state, "training_ended": False})
    finish_checkpoint(file)
    assert load_checkpoint(file)["training_ended"] is True
    assert list(tmp_path.iterdir()) == [file]


# ------------------------------------------------------------------ cut short, resumed


def test_a_training_that_was_cut_short_says_so(settings, places, monkeypatch, caplog):
    train = EntireSpaceTrainer._train_epoch

    def stopped_in_epoch_2(self, data, epoch, *arguments, **named):
        if epoch == 2:
            raise KeyboardInterrupt
        return train(self, data, epoch, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(EntireSpaceTrainer, "_train_epoch", stopped_in_epoch_2)
        with pytest.raises(KeyboardInterrupt):
            run(ESMM, "tiny", config_dict={**settings, "epochs": 9})
    (file,) = Path(settings["output_dir"]).glob("*/checkpoint.pth")
    outcome = evaluate_checkpoint(file, config_dict=places)
    assert outcome["training_ended"] is False
    assert "training of this checkpoint was cut short" in show(outcome)
    assert "training of this checkpoint was cut short" in caplog.text

    whole = run(ESMM, "tiny", config_dict=settings)
    outcome = evaluate_checkpoint(Path(whole["run_dir"]) / "checkpoint.pth", config_dict=places)
    assert outcome["training_ended"] is True
    assert "cut short" not in show(outcome)


@pytest.fixture
def trainer(settings):
    """A trainer of ESMM, and the loaders of train and validation."""

    def make(**changes):
        config = Config(ESMM, "tiny", config_dict={**settings, "epochs": 1, **changes})
        config["checkpoint_dir"] = settings["output_dir"]
        train, valid, _ = prepare_data(config, EntireSpaceDataset(config))
        return EntireSpaceTrainer(config, ESMM(config, train.dataset)), train, valid

    return make


def test_training_goes_on_with_its_own_data_and_split_alone(trainer, tmp_path):
    first, train, valid = trainer()
    first.fit(train, valid)
    file = first.saved_model_file

    other, train, valid = trainer(epochs=2, seed=7)
    other.resume_checkpoint(file)
    with pytest.raises(UsageError, match="another split: test, train, validation"):
        other.fit(train, valid)

    other, _, _ = trainer(epochs=2, learner="sgd")
    with pytest.raises(UsageError, match="its optimizer is that of learner adam, not of sgd"):
        other.resume_checkpoint(file)

    state = load_checkpoint(file)
    half = {name: weight.half() for name, weight in state["state_dict"].items()}
    save_checkpoint(tmp_path / "half.pth", {**state, "state_dict": half})
    with pytest.raises(UsageError, match="is float16"):
        trainer()[0].resume_checkpoint(tmp_path / "half.pth")

    again, train, valid = trainer(epochs=2)
    again.resume_checkpoint(file)
    again.fit(train, valid)
    assert load_checkpoint(file)["training_ended"]
