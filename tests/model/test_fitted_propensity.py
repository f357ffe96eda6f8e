"""What of a propensity is fitted between epochs: its calibration, and the floor by SLOPE."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.estimators import SLOPE_FLOORS, slope_floor
from recbole_escm2.evaluator.predictions import Predictions, Truth
from recbole_escm2.model import ESCM2_IPS
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.propensity import mapped_propensity, refit_propensity

# ------------------------------------------------------------------ the floor


def as_zr_obp_does(terms_of, floors, doubt):
    """SLOPE over estimators by their terms, in the words of the paper."""
    found = []
    for floor in floors:
        terms = terms_of(floor)
        width = math.sqrt(terms.var() / (len(terms) - 1)) * stats.t(len(terms) - 1).ppf(1 - doubt)
        found.append((terms.mean(), width))
    order = sorted(range(len(floors)), key=lambda i: -found[i][1])
    for place, i in enumerate(order):
        for j in order[:place]:
            gap = abs(found[i][0] - found[j][0])
            if gap > found[i][1] + (math.sqrt(6) - 1) * found[j][1]:
                return floors[order[place - 1]]
    return floors[order[-1]]


@hypothesis_settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.003, 0.03, 0.3]), st.sampled_from([0.0, 1.0, 4.0]))
def test_the_floor_is_that_of_slope(seed, scale, tilt):
    draw = np.random.default_rng(seed)
    propensity = draw.beta(1, 1 / scale, 3000) + 1e-4
    click = draw.random(3000) < propensity
    error = draw.exponential(size=3000) / (propensity + 0.01) ** (tilt / 4)
    if click.sum() < 2:
        return
    expected = as_zr_obp_does(
        lambda floor: click * error / np.maximum(propensity, floor), SLOPE_FLOORS, 0.1
    )
    assert slope_floor(error, click, propensity) == expected


def test_a_floor_that_costs_little_is_taken_and_one_that_costs_much_is_not():
    """Of few rows no floor can be told from another; of many it can, where errors go with ô."""
    draw = np.random.default_rng(0)
    propensity = np.exp(draw.uniform(np.log(0.002), np.log(0.9), 400_000))
    click = draw.random(len(propensity)) < propensity
    error = 0.1 / np.sqrt(propensity)
    assert slope_floor(error[:40], click[:40], propensity[:40]) == 0.3
    assert slope_floor(error, click, propensity) < 0.1
    assert slope_floor(error, np.zeros(len(error)), propensity) is None


# ------------------------------------------------------------------ fitted to validation


def predicted(shift, rows=4000):
    """Clicks of known chances, and what predicts them with a logit that is shifted."""
    draw = np.random.default_rng(1)
    logit = draw.normal(-2, 1, rows)
    click = draw.random(rows) < 1 / (1 + np.exp(-logit))
    conversion = click & (draw.random(rows) < 0.3)
    score = {"ctr": 1 / (1 + np.exp(-(logit + shift))), "cvr": np.full(rows, 0.3)}
    return Predictions(Truth(click=click, conversion=conversion), score)


@pytest.fixture
def built(build):
    def built(**given):
        return build(ESCM2_IPS, **given)

    return built


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_the_map_is_fitted_to_clicks_and_used_from_then_on(built, method):
    made = built(propensity_calibration=method)
    model, predictions = made.model, predicted(2.0)
    before = model.impressions(made.batch)
    assert torch.equal(before.click_probability, torch.sigmoid(before.logit["ctr"]))
    refitted = refit_propensity(model, made.config, predictions)
    a, b = model.propensity_map.tolist()
    assert refitted == {"slope": a, "intercept": b}
    if method == "platt":
        assert a == pytest.approx(1, abs=0.1)
        assert b == pytest.approx(-2, abs=0.15)
    else:
        assert b == 0
    after = model.impressions(made.batch)
    expected = torch.sigmoid(a * before.logit["ctr"] + b)
    torch.testing.assert_close(after.click_probability, expected)
    torch.testing.assert_close(after.propensity, expected.clamp(min=0.1))
    assert not after.propensity.requires_grad
    gap = abs(mapped_propensity(model, predictions).mean() - predictions.truth.click.mean())
    assert gap < 0.02 or method == "temperature"


def test_the_floor_is_chosen_by_the_calibrated_propensity(built):
    made = built(propensity_calibration="platt", propensity_floor="slope")
    model, predictions = made.model, predicted(2.0)
    assert float(model.propensity_floor) == pytest.approx(0.1)
    refitted = refit_propensity(model, made.config, predictions)
    assert set(refitted) == {"slope", "intercept", "floor"}
    click = predictions.truth.click
    error = np.where(predictions.truth.conversion, -np.log(0.3), -np.log(0.7))
    expected = slope_floor(error, click, mapped_propensity(model, predictions))
    assert refitted["floor"] == pytest.approx(expected)
    assert model.impressions(made.batch).propensity.min() >= expected * 0.999


def test_without_clicks_nothing_moves(built):
    made = built(propensity_calibration="platt", propensity_floor="slope")
    score = {task: np.full(5, 0.2) for task in ("ctr", "cvr")}
    nobody = Predictions(Truth(click=np.zeros(5), conversion=np.zeros(5)), score)
    refitted = refit_propensity(made.model, made.config, nobody)
    assert refitted == {"slope": 1, "intercept": 0, "floor": pytest.approx(0.1)}
    assert refit_propensity(built().model, made.config, nobody) is None
    assert refit_propensity(SimpleNamespace(), made.config, nobody) is None


def test_an_average_of_weights_hands_on_what_it_was_fitted(built):
    given = {"propensity_calibration": "platt", "propensity_floor": "slope"}
    average, learning = built(**given), built(**given)
    refit_propensity(average.model, average.config, predicted(1.0), learning.model)
    assert torch.equal(average.model.propensity_map, learning.model.propensity_map)
    assert average.model.propensity_map[1] != 0
    assert torch.equal(average.model.propensity_floor, learning.model.propensity_floor)


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize("model", ["ESCM2_DR", "DCMT", "ESCM2_IPS_V2"])
def test_a_run_says_and_keeps_what_was_fitted(settings, places, model):
    given = {"propensity_calibration": "platt", "propensity_floor": "slope", "epochs": 3}
    outcome = run(model, "tiny", config_dict={**settings, **given})
    folder = Path(outcome["run_dir"])
    result = json.loads((folder / "result.json").read_text())
    fitted = [epoch["propensity"] for epoch in result["trainings"][0]["epochs"]]
    assert all(set(one) == {"slope", "intercept", "floor"} for one in fitted)
    assert {one["floor"] for one in fitted} <= set(np.float32(SLOPE_FLOORS).tolist())
    state = load_checkpoint(folder / "checkpoint.pth")["state_dict"]
    of_best = fitted[outcome["best_epoch"]]
    assert state["propensity_map"].tolist() == [of_best["slope"], of_best["intercept"]]
    assert float(state["propensity_floor"]) == of_best["floor"]
    assert "propensity from now on" in (folder / "run.log").read_text()
    assert 0 <= result["weights"]["propensity_ece"] < 0.2
    scored = evaluate_checkpoint(folder / "checkpoint.pth", config_dict=places)
    assert scored["test_result"] == outcome["test_result"]


def test_what_cannot_be_fitted_is_refused(settings):
    given = {"propensity": "field", "propensity_calibration": "platt"}
    with pytest.raises(UsageError, match="calibrates the CTR tower's prediction"):
        Config("ESCM2_IPS", "ml-100k", config_dict=given)
    for key, value in {"propensity_floor": "slope", "propensity_calibration": "platt"}.items():
        with pytest.raises(UsageError, match=f"ESMM has no propensity: {key} does nothing"):
            Config("ESMM", "ml-100k", config_dict={key: value})
        unvalidated = {**settings, key: value, "eval_args": {"split": {"RS": [0.9, 0, 0.1]}}}
        with pytest.raises(UsageError, match=f"no validation, on which {key}.* would act"):
            run("ESCM2_IPS", "tiny", config_dict=unvalidated)
    unvalidated = {**settings, "calibrate": "platt", "eval_args": {"split": {"RS": [0.9, 0, 0.1]}}}
    with pytest.raises(UsageError, match="no validation, on which calibrate would act"):
        run("ESMM", "tiny", config_dict=unvalidated)
