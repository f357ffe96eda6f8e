"""Weighted metrics: with whole weights they are those of repeated rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_escm2.data.truth import Truth
from recbole_escm2.evaluator import weighted
from recbole_escm2.evaluator.catalogue import SPECS, Setting
from recbole_escm2.evaluator.contributions import contributions
from recbole_escm2.evaluator.intervals import intervals
from recbole_escm2.evaluator.metrics import UndefinedMetricError
from recbole_escm2.evaluator.predictions import NotPredictedError, Predictions
from recbole_escm2.metric_names import METRICS

SETTING = Setting(threshold=0.4, bins=3, k=2)
#: What is left out where impressions have weights.
NO_FORM = ("GAUC", "ECE", "NDCG@K", "Recall@K", "CRR", "PIP")
ROWS = st.lists(
    st.tuples(
        *(st.integers(0, 1) for _ in range(3)),  # click, conversion, potential conversion
        *(st.sampled_from([0.05, 0.2, 0.4, 0.5, 0.8]) for _ in range(3)),  # pctr, pcvr, true CVR
        st.integers(0, 3),  # click weight
        st.integers(0, 3),  # conversion weight
    ),
    min_size=1,
    max_size=15,
)


def predictions(rows, click_weight=None, conversion_weight=None):
    click, conversion, potential, pctr, pcvr, true_cvr, *_ = np.array(rows, float).T
    truth = Truth(
        click,
        conversion,
        np.arange(len(rows)) % 3 + 1,
        potential,
        true_cvr=true_cvr,
        random_impressions=True,
        click_weight=click_weight,
        conversion_weight=conversion_weight,
    )
    return Predictions(truth, {"ctr": pctr, "cvr": pcvr, "ctcvr": pctr * pcvr})


def value(spec, of):
    try:
        return spec.value(of, SETTING)
    except (UndefinedMetricError, NotPredictedError):
        return None


def has_form(spec):
    return not any(name in spec.name for name in NO_FORM)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(ROWS)
def test_whole_weights_are_rows_repeated(rows):
    *_, of_click, of_conversion = np.array(rows, float).T
    own = predictions(rows, of_click, of_conversion)
    for spec in filter(has_form, SPECS.values()):
        weight = of_click if spec.task == "ctr" else of_conversion
        many = np.repeat(np.arange(len(rows)), weight.astype(int))
        repeated = predictions([rows[i] for i in many]) if len(many) else None
        wanted = None if repeated is None else value(spec, repeated)
        assert value(spec, own) == (wanted if wanted is None else pytest.approx(wanted)), spec.name


@settings(deadline=None, max_examples=40, derandomize=True)
@given(ROWS, st.sampled_from([0.25, 1.0, 7.0]))
def test_a_weight_for_all_changes_nothing(rows, weight):
    every = np.full(len(rows), weight)
    plain, own = predictions(rows), predictions(rows, every, every)
    for spec in filter(has_form, SPECS.values()):
        wanted = value(spec, plain)
        assert value(spec, own) == (wanted if wanted is None else pytest.approx(wanted)), spec.name


@pytest.mark.parametrize("name", [m.name for m in METRICS.values() if not has_form(m)])
def test_what_has_no_weighted_form_says_so(name):
    rows = [(1, 1, 1, 0.5, 0.8, 0.4, 1, 1), (0, 0, 1, 0.4, 0.2, 0.8, 1, 2)] * 4
    every = np.ones(len(rows))
    with pytest.raises(UndefinedMetricError, match="no form for impressions that have weights"):
        SPECS[name.lower()].value(predictions(rows, every, every), SETTING)


def test_a_weight_of_one_task_alone_leaves_the_other_as_it_is():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(0, 2, (40, 3)), rng.random((40, 3)), np.ones((40, 2))])
    own, plain = predictions(rows, rng.random(40)), predictions(rows)
    for spec in SPECS.values():
        same = value(spec, own) == value(spec, plain)
        assert same == (spec.task != "ctr") or spec.name in ("PIP", "CVR_CRR", "CVR_CRR_True")


def test_intervals_of_weighted_metrics_are_of_drawn_clusters():
    rng = np.random.default_rng(1)
    rows = np.column_stack([rng.integers(0, 2, (300, 3)), rng.random((300, 3)), np.ones((300, 2))])
    own = predictions(rows, rng.random(300), rng.random(300))
    assert contributions(own, "CTR_AUC", SETTING) is None
    found = intervals(own, ["CTR_AUC", "CTR_GAUC"], SETTING, draws=50)
    assert found["CTR_AUC"].low < found["CTR_AUC"].value < found["CTR_AUC"].high
    assert "CTR_GAUC" in found.undefined


@pytest.mark.parametrize(
    ("weight", "error"),
    [([1, 2], "weight has shape"), ([1, -1, 0], "finite and >= 0"), ([1, np.inf, 0], "finite")],
)
def test_weights_that_are_none_are_refused(weight, error):
    with pytest.raises(ValueError, match=error):
        weighted.weighted_scores([0, 1, 1], [0.1, 0.2, 0.3], weight)
