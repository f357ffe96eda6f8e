"""The causal risk ratio of click, against matching by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_escm2.evaluator.catalogue import Setting, spec_of
from recbole_escm2.evaluator.metrics import UndefinedMetricError, causal_risk_ratio
from recbole_escm2.evaluator.predictions import Predictions, Truth


def test_by_hand():
    # clicked at .5 and .2; unclicked at .5 (twice), .21 and .9
    click = np.array([1, 1, 0, 0, 0, 0])
    propensity = np.array([0.5, 0.2, 0.5, 0.5, 0.21, 0.9])
    outcome = np.array([0.6, 0.3, 0.2, 0.4, 0.1, 0.9])
    # .5 is matched to the mean of .2 and .4, .2 to .1
    assert causal_risk_ratio(click, propensity, outcome) == pytest.approx(0.9 / 0.4)


def test_what_is_beyond_the_caliper_is_left_out():
    click = np.array([1, 1, 0, 0])
    propensity = np.array([0.5, 0.99, 0.5, 0.1])
    outcome = np.array([0.6, 0.9, 0.3, 0.5])
    assert causal_risk_ratio(click, propensity, outcome) == pytest.approx(2.0)
    everything = causal_risk_ratio(click, propensity, outcome, caliper=10)
    assert everything == pytest.approx((0.6 + 0.9) / (0.3 + 0.3))


def test_equally_near_on_both_sides_counts_both():
    click = np.array([1, 0, 0, 0])
    propensity = np.array([0.5, 0.4, 0.6, 0.6])
    outcome = np.array([0.5, 0.1, 0.2, 0.6])
    expected = 0.5 / ((0.1 + 0.2 + 0.6) / 3)
    assert causal_risk_ratio(click, propensity, outcome, caliper=5) == pytest.approx(expected)


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.95]),
            st.floats(0.01, 1),
        ),
        min_size=2,
        max_size=30,
    ).filter(lambda rows: len({row[0] for row in rows}) == 2),
    st.floats(0.01, 3),
)
@settings(deadline=None, derandomize=True)
def test_against_brute_force(rows, caliper):
    click, propensity, outcome = map(np.array, zip(*rows, strict=True))
    logits = np.log(propensity) - np.log1p(-propensity)
    own, matched = [], []
    for i in np.flatnonzero(click):
        distance = np.where(click, np.inf, np.abs(logits - logits[i]))
        if distance.min() <= caliper * logits.std():
            own.append(outcome[i])
            matched.append(outcome[distance == distance.min()].mean())
    if own:
        found = causal_risk_ratio(click, propensity, outcome, caliper)
        assert found == pytest.approx(np.mean(own) / np.mean(matched))
        assert causal_risk_ratio(click[::-1], propensity[::-1], outcome[::-1], caliper) == (
            pytest.approx(found)
        )
    else:
        with pytest.raises(UndefinedMetricError, match="no match within"):
            causal_risk_ratio(click, propensity, outcome, caliper)


@pytest.mark.parametrize("click", [np.zeros(3), np.ones(3)])
def test_it_takes_two_groups(click):
    with pytest.raises(UndefinedMetricError, match="clicked and unclicked"):
        causal_risk_ratio(click, np.full(3, 0.5), np.ones(3))


def test_pip_is_the_difference_from_the_truth():
    generator = np.random.default_rng(0)
    pctr = generator.uniform(0.05, 0.5, 5000)
    true_cvr = generator.uniform(0.1, 0.9, 5000)
    click = generator.random(5000) < pctr * true_cvr  # a cause of both that pctr doesn't know
    truth = Truth(click.astype(int), np.zeros(5000), true_cvr=true_cvr)
    values = {}
    for name, pcvr in {"blind": np.full(5000, 0.5), "right": true_cvr}.items():
        predictions = Predictions(truth, {"ctr": pctr, "cvr": pcvr})
        values[name] = {
            metric: spec_of(metric).value(predictions, Setting())
            for metric in ("CVR_CRR", "CVR_CRR_True", "PIP")
        }
    assert values["right"]["PIP"] == 0
    assert values["right"]["CVR_CRR_True"] > 1.1  # clicks have selected, beyond the propensity
    assert values["blind"]["CVR_CRR"] == pytest.approx(1)
    assert values["blind"]["PIP"] == pytest.approx(1 - values["right"]["CVR_CRR_True"])
