"""Calibration as a last step: the maps, what they keep, and what a run does with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import recbole.config
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_escm2.calibration import (
    METHODS,
    LogitMap,
    StepMap,
    UnfitError,
    fit_map,
    map_of_state,
)
from recbole_escm2.config import Config, complete, restore_numpy_names
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.calibration import Calibration
from recbole_escm2.evaluator.metrics import auc, class_scores, ece, log_loss
from recbole_escm2.evaluator.predictions import Predictions, Truth
from recbole_escm2.keys import KEYS
from recbole_escm2.quick_start import evaluate_checkpoint, run, show
from recbole_escm2.train.checkpoint import load_checkpoint, save_checkpoint

fair = settings(deadline=None, max_examples=40, derandomize=True)


def drawn(rows=20_000, seed=0):
    """Labels of known probabilities, and predictions that are too sure and too high."""
    draw = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-draw.normal(-1.5, 1, rows)))
    label = (draw.random(rows) < truth).astype(int)
    logit = np.log(truth / (1 - truth))
    return truth, label, (1 / (1 + np.exp(-(2 * logit + 1)))).astype(np.float32)


def apply(fitted, probability):
    return fitted(torch.from_numpy(np.asarray(probability))).numpy()


# ------------------------------------------------------------------ maps


def test_isotonic_by_hand():
    # labels 0 1 | 0 1 by rising score: the two in the middle are pooled to one half; 6 rows bound
    # what one of them alone could say at 1/8 and 7/8
    fitted = fit_map("isotonic", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0, 0, 1, 0, 1, 1])
    probability = apply(fitted, [0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.45, 0.5, 0.9])
    middle = 1 / 8, 0.3125, 0.5, 0.5, 0.6875
    np.testing.assert_allclose(probability, [1 / 8, 1 / 8, *middle, 7 / 8, 7 / 8])


def test_platt_undoes_an_affine_map_of_the_logit():
    _, label, score = drawn(200_000)
    fitted = fit_map("platt", score, label)
    assert fitted.slope == pytest.approx(0.5, abs=0.02)  # logit = (x - 1)/2
    assert fitted.intercept == pytest.approx(-0.5, abs=0.02)


def test_temperature_undoes_a_factor_of_the_logit():
    truth, label, _ = drawn(200_000)
    logit = np.log(truth / (1 - truth))
    fitted = fit_map("temperature", 1 / (1 + np.exp(-3 * logit)), label)
    assert fitted.slope == pytest.approx(1 / 3, rel=0.02)
    assert fitted.intercept == 0
    assert apply(fitted, [0.5])[0] == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_map_improves_what_it_was_fitted_to_and_others(method):
    _, label, score = drawn()
    fitted = fit_map(method, score, label)
    truth, _, other = drawn(seed=1)
    before, after = (np.abs(p - truth).mean() for p in (other, apply(fitted, other)))
    assert after < before * (0.9 if method == "temperature" else 0.3)
    losses = [log_loss(class_scores(label, p)) for p in (score, apply(fitted, score))]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_as_so_many_rows(method):
    _, label, score = drawn(400)
    weight = np.random.default_rng(3).integers(1, 5, 400)
    weighted = fit_map(method, score, label, weight)
    repeated = fit_map(method, np.repeat(score, weight), np.repeat(label, weight))
    grid = np.linspace(0.05, 0.9, 30)
    np.testing.assert_allclose(apply(weighted, grid), apply(repeated, grid), atol=2e-3)


scores = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=2, max_size=30
).filter(lambda rows: len({label for _, label in rows}) == 2)


@fair
@given(scores, st.sampled_from(sorted(METHODS)))
def test_order_is_never_reversed_and_probabilities_stay_inside(rows, method):
    """Whatever was predicted, zeros, ones and constants among it."""
    score, label = (np.array(column) for column in zip(*rows, strict=True))
    fitted = fit_map(method, score.astype(np.float32), label)
    grid = np.sort(np.concatenate([score, np.linspace(0, 1, 21)]))
    calibrated = apply(fitted, grid)
    assert np.isfinite(calibrated).all()
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    assert (np.diff(calibrated) >= -1e-15).all()
    again = map_of_state(fitted.as_state())
    assert np.array_equal(apply(again, grid), calibrated)


def test_platt_of_a_prediction_that_ranks_backwards_is_the_base_rate():
    fitted = fit_map("platt", [0.2, 0.3, 0.8, 0.9], [1, 1, 0, 0], [1, 1, 3, 3])
    np.testing.assert_allclose(apply(fitted, [0.01, 0.5, 0.99]), 1 / 4)


@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_that_tells_the_labels_apart_stays_finite(method):
    fitted = fit_map(method, [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    inside = apply(fitted, [0.0, 0.1, 0.5, 0.9, 1.0])
    assert ((inside >= 0) & (inside <= 1)).all()


def test_the_ties_of_isotonic_change_auc_and_the_others_dont():
    _, label, score = drawn(2000)
    before = auc(class_scores(label, score))
    for method in METHODS:
        after = auc(class_scores(label, apply(fit_map(method, score, label), score)))
        assert (after == before) == (method != "isotonic")


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_labels_that_are_all_alike_fit_nothing(labels):
    with pytest.raises(UnfitError, match=r"no row|all labels are"):
        fit_map("platt", np.full(len(labels), 0.5), labels)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"slope": 1.0},
        {"slope": -1.0, "intercept": 0.0},
        {"slope": math.nan, "intercept": 0.0},
        {"slope": "1", "intercept": 0.0},
        {"knots": torch.tensor([0.2, 0.1]).double(), "values": torch.tensor([0.2, 0.3]).double()},
        {"knots": torch.tensor([0.1, 0.2]).double(), "values": torch.tensor([0.3, 0.2]).double()},
        {"knots": torch.tensor([0.1, 0.2]).double(), "values": torch.tensor([0.2]).double()},
        {"knots": [0.1], "values": [0.2]},
    ],
    ids=str,
)
def test_a_state_that_no_map_gives_is_refused(state):
    with pytest.raises(ValueError, match="a calibration has"):
        map_of_state(state)
    whole = {"method": "platt", "weights": None, "floor": 0.0, "left": {}, "maps": {"ctr": state}}
    with pytest.raises(UsageError, match="isn't as this program writes it"):
        Calibration.of_state(whole)


def test_the_config_key_offers_these_methods():
    assert all(KEYS["calibrate"].kind.holds(method) for method in METHODS)
    assert isinstance(fit_map("platt", [0.1, 0.2], [0, 1]), LogitMap)
    assert isinstance(fit_map("isotonic", [0.1, 0.2], [0, 1]), StepMap)


# ------------------------------------------------------------------ by task


def selected(rows=60_000):
    """Clicks that go with conversions, and what predicts them perfectly over clicks: r̂ = .5."""
    draw = np.random.default_rng(5)
    likely = draw.random(rows) < 0.5
    ctr, cvr = np.where(likely, 0.8, 0.2), np.where(likely, 0.6, 0.1)
    click, potential = draw.random(rows) < ctr, draw.random(rows) < cvr
    truth = Truth(click=click, conversion=click & potential, true_cvr=cvr)
    score = {"ctr": np.sqrt(ctr), "cvr": np.full(rows, 0.9) - 1e-9 * np.arange(rows)}
    return Predictions(truth, {**score, "ctcvr": score["ctr"] * score["cvr"]})


def test_weights_make_pcvr_one_of_all_impressions():
    predictions = selected()
    mean = {}
    for weights in (None, "ips"):
        calibration = Calibration.fit(predictions, "platt", weights, 0.01)
        mean[weights] = calibration.calibrated(predictions).of("cvr").mean()
    over_d = predictions.truth.true_cvr.mean()  # .35
    over_clicks = predictions.scored("cvr").base_rate  # .5
    assert mean[None] == pytest.approx(over_clicks, abs=0.01)
    assert mean["ips"] == pytest.approx(over_d, abs=0.01)


def test_a_floor_bounds_the_weights():
    predictions = selected()
    all_alike = Calibration.fit(predictions, "platt", "ips", 0.999).maps["cvr"]
    without = Calibration.fit(predictions, "platt").maps["cvr"]
    assert all_alike.intercept == pytest.approx(without.intercept, rel=1e-3)


def test_each_task_is_calibrated_by_itself_and_its_state_is_whole():
    predictions = selected(3000)
    for method in METHODS:
        calibration = Calibration.fit(predictions, method, "ips", 0.01)
        calibrated = calibration.calibrated(predictions)
        assert calibrated.truth is predictions.truth
        assert list(calibrated.score) == list(predictions.score)
        assert ece(calibrated.scored("ctcvr").classes) < ece(predictions.scored("ctcvr").classes)
        again = Calibration.of_state(calibration.as_state())
        for task, probability in again.apply(predictions.score).items():
            assert np.array_equal(probability, calibrated.of(task))


def test_a_task_without_a_conversion_stays_as_it_is():
    click = np.array([0, 1, 1, 0])
    score = {task: np.array([0.1, 0.4, 0.3, 0.2]) for task in ("ctr", "cvr", "ctcvr")}
    predictions = Predictions(Truth(click=click, conversion=np.zeros(4)), score)
    calibration = Calibration.fit(predictions, "isotonic")
    assert set(calibration.maps) == {"ctr"}
    assert calibration.left == {"cvr": "all labels are 0", "ctcvr": "all labels are 0"}
    assert calibration.apply(score)["cvr"] is score["cvr"]
    assert "pCVR stays: all labels are 0" in str(calibration)


# ------------------------------------------------------------------ runs


def result_of(outcome):
    return json.loads((Path(outcome["run_dir"]) / "result.json").read_text())


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("ESCM2_DR", {"calibrate_weights": "ips"}),
        ("AITM", {}),
        ("DeepFM", {"task": "cvr"}),
        ("LogisticRegression", {"task": "both", "calibrate_weights": "ips", "l2_penalty": [9]}),
        ("Constant", {"task": "ctr"}),
    ],
)
def test_a_run_ends_with_a_calibration_and_keeps_it(settings, places, model, given):
    own = ("epochs", "train_batch_size", "embedding_size", "mlp_hidden_size")
    reference = model in ("LogisticRegression", "Constant")
    usual = {k: v for k, v in settings.items() if not (reference and k in own)}
    outcome = run(model, "tiny", config_dict={**usual, **given, "calibrate": "isotonic"})
    result, without = result_of(outcome), run(model, "tiny", config_dict={**usual, **_only(given)})
    assert result["calibrated"]["before"] == pytest.approx(dict(without["test_result"]))
    assert without["calibrated"] is None
    assert outcome["test_result"] == result["test_result"]
    assert result["calibrated"]["curves_before"] == result_of(without)["calibration"]
    assert result["calibration"] != result["calibrated"]["curves_before"]
    shown = show(outcome)
    assert "Calibration (isotonic, fitted to validation)" in shown
    of_all = given.get("task", "both") == "both"
    assert ("it is no longer pCTR · pCVR" in shown) == of_all
    if given.get("task") == "both":
        return
    checkpoint = Path(outcome["run_dir"]) / "checkpoint.pth"
    scored = evaluate_checkpoint(checkpoint, config_dict=places)
    assert scored["test_result"] == outcome["test_result"]
    assert scored["calibrated"]["before"] == result["calibrated"]["before"]


def _only(given):
    return {key: value for key, value in given.items() if key != "calibrate_weights"}


def test_a_checkpoint_without_the_calibration_that_it_was_to_have_says_so(settings, places, caplog):
    outcome = run("ESMM", "tiny", config_dict={**settings, "calibrate": "platt"})
    checkpoint = Path(outcome["run_dir"]) / "checkpoint.pth"
    state = load_checkpoint(checkpoint)
    assert set(state["calibration"]["maps"]) == {"ctr", "cvr", "ctcvr"}
    save_checkpoint(checkpoint, {**state, "calibration": None})
    scored = evaluate_checkpoint(checkpoint, config_dict=places)
    assert "these numbers are of uncalibrated predictions" in caplog.text
    assert scored["test_result"] == pytest.approx(result_of(outcome)["calibrated"]["before"])


def test_what_cannot_be_weighed_is_refused():
    given = {"calibrate": "platt", "calibrate_weights": "ips", "task": "ctcvr"}
    with pytest.raises(UsageError, match="DeepFM learns ctcvr alone: leave it out, or set task"):
        Config("DeepFM", "ml-100k", config_dict=given)
    with pytest.raises(UsageError, match="calibrate_weights does nothing without calibrate"):
        Config("ESMM", "ml-100k", config_dict={"calibrate_weights": "ips"})
    with pytest.raises(UsageError, match="calibrate_floor does nothing without calibrate_weights"):
        Config("ESMM", "ml-100k", config_dict={"calibrate": "platt", "calibrate_floor": 0.2})


def test_stock_recbole_is_told_that_it_calibrates_nothing(data_path, caplog, monkeypatch):
    stock = recbole.config.Config
    monkeypatch.setattr("sys.argv", ["stock"])  # which it reads
    # Of numpy 1, as our own Config has it.
    monkeypatch.setattr(stock, "compatibility_settings", lambda self: restore_numpy_names())
    given = {"data_path": str(data_path), "calibrate": "platt", "embedding_size": 4}
    try:
        config = stock("ESMM", "tiny", config_dict=given)
    except ModuleNotFoundError as error:
        if error.name != "kmeans_pytorch":
            raise
        pytest.skip("RecBole 1.2.0 imports kmeans_pytorch, which it doesn't bring along")
    complete(config)
    assert "calibrate does nothing in stock RecBole" in caplog.text
