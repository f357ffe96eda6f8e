"""Predictions that a run keeps: a line an impression, and metrics by user beside it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from recbole_escm2.data import save_table
from recbole_escm2.evaluator import prediction_file
from recbole_escm2.quick_start import evaluate_checkpoint, run


def kept(outcome, split="test"):
    folder = Path(outcome["run_dir"])
    return (
        pd.read_parquet(folder / f"predictions-{split}.parquet"),
        pd.read_parquet(folder / f"metrics-by-user-{split}.parquet"),
    )


@pytest.fixture
def raw(data_path):
    """The impressions of ``tiny`` as their file has them, by their position in D."""
    frame = pd.read_csv(data_path / "tiny" / "tiny.inter", sep="\t")
    return frame.rename(columns=lambda name: name.partition(":")[0])


def test_a_run_keeps_what_its_metrics_are_made_of(settings, raw, monkeypatch):
    monkeypatch.setattr(prediction_file, "_ROWS_AT_ONCE", 150)  # several blocks
    asked = {"save_predictions": ["test", "valid"], "propensity": "oracle"}
    outcome = run("ESCM2_IPS", "tiny", config_dict={**settings, **asked}, saved=False)
    frame, users = kept(outcome)
    assert [*frame] == [
        *("row", "user_id", "item_id", "click", "conversion", "potential_conversion"),
        *("true_ctr", "true_cvr", "pctr", "pcvr", "pctcvr", "propensity"),
    ]
    assert len(frame) == 400
    same = raw.loc[frame["row"]].reset_index(drop=True)
    for column in ("user_id", "item_id", "click", "conversion", "potential_conversion"):
        assert (frame[column] == same[column]).all(), column
    assert np.allclose(frame["propensity"], same["true_ctr"])
    result = outcome["test_result"]
    assert roc_auc_score(frame["click"], frame["pctr"]) == pytest.approx(result["CTR_AUC"])
    clicked = frame[frame["click"] == 1]
    area = roc_auc_score(clicked["conversion"], clicked["pcvr"])
    assert area == pytest.approx(result["CVR_AUC"])
    assert np.allclose(frame["pctr"] * frame["pcvr"], frame["pctcvr"])
    valid, _ = kept(outcome, "valid")
    assert not set(valid["row"]) & set(frame["row"])
    assert roc_auc_score(valid["click"], valid["pctr"]) == pytest.approx(
        outcome["best_valid_result"]["CTR_AUC"]
    )
    check_users(users, frame, result)


def check_users(users, frame, result):
    assert [*users["user_id"].sort_values()] == sorted(frame["user_id"].unique())
    for line in users.itertuples():
        own = frame[frame["user_id"] == line.user_id]
        assert line.impressions == len(own)
        assert line.clicks == own["click"].sum()
        assert line.conversions == own["conversion"].sum()
        both = own["click"].nunique() == 2
        area = roc_auc_score(own["click"], own["pctr"]) if both else np.nan
        assert np.allclose(line.CTR_AUC, area, equal_nan=True)
    known = users.dropna(subset="CTR_AUC")
    mean = np.average(known["CTR_AUC"], weights=known["impressions"])
    assert mean == pytest.approx(result["CTR_GAUC"])
    assert "CVR_AUC_ES" in users


def test_nothing_is_kept_unless_it_is_asked_for(settings):
    folder = Path(run("ESMM", "tiny", config_dict=settings, saved=False)["run_dir"])
    assert not [*folder.glob("*.parquet")]


@pytest.mark.parametrize("model", ["DeepFM", "LogisticRegression"])
def test_two_models_as_one_keep_the_predictions_of_both(settings, model):
    asked = {"save_predictions": True, "task": "both"}
    of_networks = ("epochs", "train_batch_size", "embedding_size", "mlp_hidden_size")
    if model == "LogisticRegression":
        settings = {key: value for key, value in settings.items() if key not in of_networks}
    outcome = run(model, "tiny", config_dict={**settings, **asked}, saved=False)
    frame, _ = kept(outcome)
    assert {"pctr", "pcvr", "pctcvr"} <= {*frame}
    assert "propensity" not in frame
    area = roc_auc_score(frame["conversion"], frame["pctcvr"])
    assert area == pytest.approx(outcome["test_result"]["CTCVR_AUC"])


def test_a_checkpoint_says_what_its_run_has_said(settings, places):
    asked = {**settings, "save_predictions": "valid, test"}
    outcome = run("ESCM2_IPS", "tiny", config_dict=asked)
    again = evaluate_checkpoint(Path(outcome["run_dir"]) / "checkpoint.pth", config_dict=places)
    for split in ("valid", "test"):
        for first, second in zip(kept(outcome, split), kept(again, split), strict=True):
            pd.testing.assert_frame_equal(first, second)
    assert again["test_result"] == outcome["test_result"]


def test_a_checkpoint_is_asked_for_its_predictions_later(settings, places):
    outcome = run("ESMM", "tiny", config_dict=settings)
    checkpoint = Path(outcome["run_dir"]) / "checkpoint.pth"
    again = evaluate_checkpoint(checkpoint, command_line={"save_predictions": "True", **places})
    frame, _ = kept(again)
    area = roc_auc_score(frame["click"], frame["pctr"])
    assert area == pytest.approx(outcome["test_result"]["CTR_AUC"])


def test_impressions_without_an_id_have_none_in_the_file(settings, tmp_path):
    click = np.random.default_rng(0).integers(2, size=600)
    number = np.arange(600)
    user = np.where(number % 5 == 0, None, [f"u{n % 7}" for n in number])
    frame = pd.DataFrame({"user_id": user, "item_id": number % 11, "click": click})
    frame["conversion"] = click * (number % 2)
    save_table(frame, "gaps", tmp_path)
    own = {"data_path": str(tmp_path), "save_predictions": True, "numerical_features": None}
    outcome = run("ESMM", "gaps", config_dict={**settings, **own}, saved=False)
    frame, users = kept(outcome)
    assert (frame["user_id"].isna() == (frame["row"] % 5 == 0)).all()
    assert set(users["user_id"]) == {f"u{n}" for n in range(7)}
    assert users["impressions"].sum() == frame["user_id"].notna().sum()


def test_users_whom_train_does_not_know_are_told_apart(settings, tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, users in (("train", 6), ("valid", 6), ("test", 9)):
        click = rng.integers(2, size=400)
        user = [f"u{n % users}" for n in range(400)]
        frame = pd.DataFrame({"user_id": user, "item_id": rng.integers(9, size=400)})
        parts[part] = frame.assign(click=click, conversion=click * rng.integers(2, size=400))
    save_table(parts, "strangers", tmp_path)
    own = {"data_path": str(tmp_path), "save_predictions": True, "numerical_features": None}
    own["benchmark_filename"] = ["train", "valid", "test"]
    outcome = run("ESMM", "strangers", config_dict={**settings, **own}, saved=False)
    _, users = kept(outcome)
    expected = parts["test"].groupby("user_id")["click"].agg(["size", "sum"])
    known = users.set_index("user_id").loc[[f"u{n}" for n in range(6)]]
    assert (known["impressions"] == expected["size"].iloc[:6]).all()
    assert (known["clicks"] == expected["sum"].iloc[:6]).all()
    strangers = users[~users["user_id"].isin(known.index)]
    assert strangers["user_id"].nunique() == 1
    assert sorted(strangers["clicks"]) == sorted(expected["sum"].iloc[6:])
