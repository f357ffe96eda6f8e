"""What is drawn of an evaluation, against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_escm2.evaluator.curves import calibration, overlap, weight_quantiles
from recbole_escm2.evaluator.metrics import class_scores, ece, equal_mass_bins
from recbole_escm2.evaluator.predictions import Predictions, Truth


def test_bins_by_hand():
    # scores .1 .2 | .3 .3 with the tie at the border of two bins of two rows
    classes = class_scores(np.array([0, 1, 0, 0]), np.array([0.1, 0.3, 0.2, 0.3]))
    cut = equal_mass_bins(classes, 2)
    assert cut.rows.tolist() == [2, 2]
    np.testing.assert_allclose(cut.predicted, [0.3, 0.6])
    np.testing.assert_allclose(cut.positives, [0, 1])
    three = equal_mass_bins(classes, 3)  # 2 + 1 + 1 rows: the tie is shared evenly
    assert three.rows.tolist() == [2, 1, 1]
    np.testing.assert_allclose(three.positives, [0, 0.5, 0.5])


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=1
    ),
    st.integers(1, 12),
)
def test_bins_hold_everything_once(rows, bins):
    label, score = (np.array(column) for column in zip(*rows, strict=True))
    classes = class_scores(label, score)
    cut = equal_mass_bins(classes, bins)
    assert cut.rows.sum() == len(rows)
    assert cut.rows.max() - cut.rows.min() <= 1
    assert cut.predicted.sum() == pytest.approx(score.sum())
    assert cut.positives.sum() == pytest.approx(label.sum())
    assert np.all(np.diff(cut.predicted / cut.rows) >= -1e-12)
    gap = np.abs(cut.predicted - cut.positives).sum() / len(rows)
    assert ece(classes, bins) == pytest.approx(gap)


def predictions(**truth):
    click = np.array([1, 1, 0, 0])
    score = {"ctr": np.array([0.5, 0.9, 1e-9, 0.2], dtype=np.float32)}
    return Predictions(Truth(click=click, conversion=np.array([1, 0, 0, 0]), **truth), score)


def test_calibration_has_what_is_predicted():
    curves = calibration(predictions())
    assert list(curves) == ["ctr"]
    assert curves["ctr"]["rows"] == [1, 1, 1, 1]
    assert curves["ctr"]["observed"] == [0, 0, 1, 1]
    np.testing.assert_allclose(curves["ctr"]["predicted"], [1e-9, 0.2, 0.5, 0.9], rtol=1e-6)


def test_overlap_counts_every_impression_by_click():
    found = overlap(predictions())
    edges = np.array(found["logit_edges"])
    clicked, unclicked = np.array(found["clicked"]), np.array(found["unclicked"])
    assert clicked.sum() == 2
    assert unclicked.sum() == 2
    assert unclicked[0] == 1  # 1e-9 lies beyond the first edge
    bin_of_half = np.flatnonzero(edges == 0.0)[0]
    assert clicked[bin_of_half] == 1
    only_cvr = Predictions(predictions().truth, {"cvr": np.full(4, 0.5)})
    assert overlap(only_cvr) is None


def test_weight_quantiles_by_hand():
    found = weight_quantiles(np.array([1, 1, 1, 0]), np.array([0.5, 0.1, 0.2, 0.1]))
    at = dict(zip(found["q"], found["w"], strict=True))
    assert at[0.0] == pytest.approx(2)
    assert at[0.5] == pytest.approx(5)
    assert at[1.0] == pytest.approx(10)
    assert weight_quantiles(np.zeros(2), np.ones(2)) is None
