"""A model beside the constant prediction."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from recbole_escm2.evaluator.constant import beside_constant, worse_than_constant
from recbole_escm2.evaluator.predictions import Predictions, Truth

CLICK = np.array([1, 0, 0, 1, 0])


def beside(pctr, **rates):
    truth = Truth(click=CLICK, conversion=np.zeros(5), train_rate=rates)
    return beside_constant(Predictions(truth, {"ctr": np.asarray(pctr)}), "ctr")


def test_both_are_log_losses_of_scikit_learn():
    pctr = [0.9, 0.3, 0.2, 0.4, 0.8]
    found = beside(pctr, ctr=0.3)
    assert found.log_loss == pytest.approx(log_loss(CLICK, pctr))
    assert found.constant == pytest.approx(log_loss(CLICK, [0.3] * 5))


def test_who_is_worse():
    assert worse_than_constant(beside([0.9, 0.1, 0.1, 0.9, 0.1], ctr=0.3)) is None
    assert worse_than_constant(beside([0.3] * 5, ctr=0.3)) is None  # it is that constant
    worse = worse_than_constant(beside([0.1, 0.9, 0.9, 0.1, 0.9], ctr=0.3))
    assert set(worse) == {"task", "log_loss", "constant"}
    assert worse_than_constant(beside([0.35] * 5)) is not None  # of the split itself, 0.4
    assert worse_than_constant(None) is None


def test_where_nothing_can_be_told():
    truth = Truth(click=np.zeros(3), conversion=np.zeros(3))
    predictions = Predictions(truth, {"cvr": np.full(3, 0.5)})
    assert beside_constant(predictions, "cvr") is None  # no click
    assert beside_constant(predictions, "ctr") is None  # isn't predicted
