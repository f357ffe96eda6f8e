"""Both ways to sort, and that the ends show what isn't finite."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recbole_escm2.evaluator import sorting
from recbole_escm2.evaluator.radix import radix_sort
from recbole_escm2.evaluator.sorting import sort_in_place

many = settings(deadline=None, max_examples=150, derandomize=True)
DTYPES = [np.float32, np.float64, np.uint64]


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, st.integers(0, 50))))
@many
def test_radix_sort_agrees_with_numpy(values):
    expected = np.sort(values)
    radix_sort(values)
    if np.isnan(expected).any():
        assert np.isnan(values[[0, -1]]).any()
    else:
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 2**8, 2**24])
def test_radix_sort_skips_bytes_that_do_not_differ(dtype, step):
    # One, two or four passes: the sorted values end up in either of the two buffers.
    for most in (1, 3, 200, 2000):
        values = np.random.default_rng(most).integers(0, most, 500).astype(dtype) * dtype(step)
        expected = np.sort(values)
        radix_sort(values)
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("most", [0, 1000], ids=["radix", "numpy"])
def test_the_ends_show_what_is_not_finite(monkeypatch, dtype, bad, most):
    monkeypatch.setattr(sorting, "_MANY", most)
    values = np.linspace(-1, 1, 9).astype(dtype)
    values[3] = bad
    sort_in_place(values)
    assert not np.isfinite(values[[0, -1]]).all()


def test_without_numba_numpy_sorts(monkeypatch):
    monkeypatch.setattr(sorting, "_MANY", 0)
    monkeypatch.setitem(sys.modules, "recbole_escm2.evaluator.radix", None)
    values = np.float32([3, 1, 2])
    sort_in_place(values)
    assert values.tolist() == [1, 2, 3]
