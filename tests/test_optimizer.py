import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_escm2.optimizer import OptimizerGroup, RowAdam, summed_rows

ROWS, WIDTH = 7, 3
positions = st.lists(st.integers(0, ROWS - 1), max_size=30)


def sparse(rows, values):
    return torch.sparse_coo_tensor(torch.tensor([rows]).long(), values, (ROWS, WIDTH))


@given(positions)
def test_summed_rows_are_those_of_coalesce(rows):
    gradient = sparse(rows, torch.randn(len(rows), WIDTH))
    expected = gradient.coalesce()
    for given_gradient in (gradient, expected):
        found, values = summed_rows(given_gradient)
        assert torch.equal(found, expected.indices()[0])
        assert torch.allclose(values, expected.values(), atol=1e-6)


def trained(optimizer_class, batches, is_sparse, **options):
    table = nn.Embedding(ROWS, WIDTH, sparse=is_sparse)
    with torch.no_grad():
        table.weight.copy_(torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) / 10)
    optimizer = optimizer_class([table.weight], lr=0.1, **options)
    for rows in batches:
        optimizer.zero_grad()
        (table(torch.tensor(rows).long()) - 1).square().sum().backward()
        optimizer.step()
    return table.weight.detach(), optimizer


@settings(deadline=None)
@given(st.lists(positions.filter(bool), min_size=1, max_size=6))
def test_steps_are_those_of_sparse_adam(batches):
    ours, _ = trained(RowAdam, batches, True)
    theirs, _ = trained(torch.optim.SparseAdam, batches, True)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_equals_dense_adam_where_every_step_touches_every_row():
    batches = [[*range(ROWS), 2, 2, 5]] * 8
    ours, _ = trained(RowAdam, batches, True)
    dense, _ = trained(torch.optim.Adam, batches, False)
    assert torch.allclose(ours, dense, atol=1e-6)


def test_rows_outside_of_the_batch_stay_to_the_last_bit():
    before, _ = trained(RowAdam, [], True)
    after, optimizer = trained(RowAdam, [[1, 1, 4], [4]], True)
    moved = (before != after).any(dim=1)
    assert moved.tolist() == [row in (1, 4) for row in range(ROWS)]
    (state,) = optimizer.state.values()
    assert not state["exp_avg"][[0, 2, 3, 5, 6]].any()


def test_an_empty_batch_is_no_step_for_any_row():
    before, _ = trained(RowAdam, [], True)
    after, _ = trained(RowAdam, [[]], True)
    assert torch.equal(before, after)


def test_goes_on_from_its_state():
    batches = [[1, 2, 2], [2, 3], [0, 1]]
    whole, _ = trained(RowAdam, batches, True)
    part, optimizer = trained(RowAdam, batches[:2], True)
    table = nn.Embedding.from_pretrained(part.clone(), freeze=False, sparse=True)
    again = OptimizerGroup(RowAdam([table.weight], lr=0.1))
    again.load_state_dict(copy.deepcopy(OptimizerGroup(optimizer).state_dict()))
    (table(torch.tensor(batches[2])) - 1).square().sum().backward()
    again.step()
    assert torch.equal(table.weight, whole)


@pytest.mark.parametrize("rows", [[3], [3, 3, 0]])
def test_closure_gives_the_loss(rows):
    table = nn.Embedding(ROWS, WIDTH, sparse=True)
    optimizer = RowAdam([table.weight])

    def closure():
        loss = table(torch.tensor(rows)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
