"""The faster dropout is dropout: what it keeps, its scale, its gradient, its seed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recbole_escm2.model.dropout import Dropout, mlp


@given(p=st.floats(0.01, 0.99), rows=st.integers(1, 7), columns=st.integers(1, 9))
def test_elements_are_kept_and_scaled_or_zero_and_so_are_gradients(p, rows, columns):
    x = torch.rand(rows, columns) + 1
    x.requires_grad_()
    y = Dropout(p)(x)
    y.sum().backward()
    kept = y != 0
    scale = 1 / (1 - round(p * 65536) / 65536)
    assert torch.allclose(y[kept], x[kept] * scale)
    assert torch.allclose(x.grad, kept * torch.tensor(scale, dtype=torch.float32))


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_kept(p):
    torch.manual_seed(3)
    n = 1_000_003  # no multiple of the four that a word has bits for
    kept = Dropout(p)(torch.ones(n)) != 0
    tolerance = 5 * math.sqrt(p * (1 - p) / n)
    assert kept.double().mean() == pytest.approx(1 - p, abs=tolerance)
    # neighbours, which share a word of random bits, are independent
    for lag in (1, 2, 3, 4):
        both = (kept[:-lag] & kept[lag:]).double().mean()
        assert both == pytest.approx((1 - p) ** 2, abs=tolerance)
    # and each place within a word keeps as many as the others
    for place in range(4):
        assert kept[place::4].double().mean() == pytest.approx(1 - p, abs=2 * tolerance)


def test_it_is_seeded():
    x = torch.ones(100)
    torch.manual_seed(1)
    one, other = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(x), one)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends(p):
    x = torch.rand(5, 3)
    assert torch.equal(Dropout(p)(x), x * (1 - p))


def test_evaluation_leaves_all_as_it_is():
    x = torch.rand(5, 3)
    assert torch.equal(Dropout(0.5).eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_type_stays(dtype):
    assert Dropout(0.5)(torch.ones(4, dtype=dtype)).dtype == dtype


def test_an_mlp_has_recboles_layers():
    layers = mlp([6, 4, 2], 0.25)
    assert [type(layer) for layer in layers.mlp_layers] == [
        *(Dropout, nn.Linear, nn.ReLU),
        *(Dropout, nn.Linear, nn.ReLU),
    ]
    assert {layer.p for layer in layers.modules() if isinstance(layer, nn.Dropout)} == {0.25}
    assert set(layers.state_dict()) == {
        f"mlp_layers.{place}.{part}" for place in (1, 4) for part in ("weight", "bias")
    }
