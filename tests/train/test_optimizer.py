import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_escm2.errors import UsageError
from recbole_escm2.train.optimizer import (
    OptimizerGroup,
    RowAdam,
    load_by_name,
    state_by_name,
    summed_rows,
)

ROWS, WIDTH = 7, 3
positions = st.lists(st.integers(0, ROWS - 1), max_size=30)


def sparse(rows, values):
    return torch.sparse_coo_tensor(torch.tensor([rows]).long(), values, (ROWS, WIDTH))


def assert_same(one, other):
    """To the last bit: what is loaded may lie in a file, which isn't to change."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    assert all(
        torch.equal(*pair) if torch.is_tensor(pair[0]) else pair[0] == pair[1] for pair in pairs
    )


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
    (own,) = optimizer.param_groups[0]["params"]
    saved = copy.deepcopy(
        state_by_name(OptimizerGroup(optimizer), nn.ParameterDict({"weight": own}))
    )
    before = copy.deepcopy(saved)
    assert load_by_name(again, table, saved) == []
    (table(torch.tensor(batches[2])) - 1).square().sum().backward()
    again.step()
    assert torch.equal(table.weight, whole)
    assert_same(saved, before)


def test_the_state_of_another_optimizer_is_left_out():
    layer = nn.Linear(2, 1)
    optimizers = {
        kind: kind(layer.parameters()) for kind in (torch.optim.Adam, torch.optim.Adagrad)
    }
    layer(torch.ones(1, 2)).sum().backward()
    saved = {}
    for kind, optimizer in optimizers.items():
        optimizer.step()
        saved[kind] = state_by_name(optimizer, layer)
    mixed = {
        "weight": saved[torch.optim.Adam]["weight"],
        "bias": saved[torch.optim.Adagrad]["bias"],
    }
    anew = torch.optim.Adagrad(layer.parameters())
    assert load_by_name(anew, layer, mixed) == ["weight"]
    assert layer.bias in anew.state
    assert torch.equal(anew.state[layer.bias]["sum"], mixed["bias"]["sum"])
    assert not anew.state[layer.weight]["sum"].any()
    anew.step()
    mixed["bias"] = {"of": "Adagrad", "sum": torch.zeros(1), "step": None}
    with pytest.raises(UsageError, match="its optimizer has another form"):
        load_by_name(anew, layer, mixed)


@pytest.mark.parametrize("rows", [[3], [3, 3, 0]])
def test_closure_gives_the_loss(rows):
    table = nn.Embedding(ROWS, WIDTH, sparse=True)
    optimizer = RowAdam([table.weight])

    def closure():
        loss = table(torch.tensor(rows)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad


def test_epsilon_is_that_of_dense_adam():
    """Beside a bias-corrected root: that of SparseAdam, beside a plain one, is another."""
    batches = [[*range(ROWS), 3]] * 5
    ours, _ = trained(RowAdam, batches, True, eps=0.5)
    dense, _ = trained(torch.optim.Adam, batches, False, eps=0.5)
    assert torch.allclose(ours, dense, atol=1e-6)
    other, _ = trained(RowAdam, batches, True, eps=0.4)
    assert not torch.allclose(ours, other, atol=1e-3)


# ------------------------------------------------------------------ L2, and rows that sleep

BETAS, EPS = (0.8, 0.95), 1e-3


@pytest.fixture(autouse=True, scope="module")
def several_blocks():
    """All rows are caught up in blocks: in more than one, of a table as small as these too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recbole_escm2.train.optimizer._BLOCK", 3)
        yield


def gradient_of(weights, rows):
    """Of Σ (w − 1)² over the rows of a batch, each as often as it stands there."""
    return 2 * (weights - 1) * np.bincount(rows, minlength=ROWS)[:, None]


def dense_loop(steps, weight_decay, sleeping_decay, left_out=()):
    """The rule, every row at every step, in float64."""
    weights = initial().numpy()
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    (beta1, beta2), penalised = BETAS, np.ones((ROWS, 1))
    penalised[list(left_out)] = 0
    for t, (rows, lr) in enumerate(steps, start=1):
        visited = np.isin(np.arange(ROWS), rows)[:, None]
        gradient = gradient_of(weights, rows) + weight_decay * penalised * weights
        mean = np.where(visited, beta1 * mean + (1 - beta1) * gradient, mean)
        square = np.where(visited, beta2 * square + (1 - beta2) * gradient**2, square)
        root = np.sqrt(square / (1 - beta2**t)) + EPS
        stepped = weights - lr * mean / (1 - beta1**t) / root
        pace = sleeping_decay * lr * penalised * (weight_decay > 0)
        slept = np.sign(weights) * np.maximum(np.abs(weights) - pace, 0)
        weights = np.where(visited, stepped, slept)
    return torch.from_numpy(weights)


def initial():
    values = torch.linspace(-0.4, 0.5, ROWS * WIDTH, dtype=torch.float64)
    return values.reshape(ROWS, WIDTH)


class Sleeper:
    """A table that RowAdam trains, read as a trainer has a model read it."""

    def __init__(self, left_out=(), dtype=torch.float64, **options):
        self.table = nn.Embedding.from_pretrained(initial().to(dtype), freeze=False, sparse=True)
        self.optimizer = RowAdam([self.table.weight], betas=BETAS, eps=EPS, **options)
        self.optimizer.leave_out(self.table.weight, torch.tensor(left_out).long())

    def train(self, steps, catch_up_before=()):
        for number, (rows, lr) in enumerate(steps):
            if number in catch_up_before:
                self.optimizer.catch_up()
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.zero_grad()
            rows = torch.tensor(rows).long()
            self.optimizer.wake(self.table.weight, rows)
            (self.table(rows) - 1).square().sum().backward()
            self.optimizer.step()
        self.optimizer.catch_up()
        return self.table.weight.detach()


STEPS = st.lists(st.tuples(positions, st.sampled_from([0.003, 0.01, 0.05])), max_size=12)
DECAYS = {
    "weight_decay": st.sampled_from([0, 0.01, 1]),
    "sleeping_decay": st.sampled_from([0, 0.3, 1]),
}


@settings(deadline=None, max_examples=100)
@given(
    STEPS,
    st.sets(st.integers(0, ROWS - 1)),
    st.sets(st.integers(0, 11)),
    st.fixed_dictionaries(DECAYS),
)
def test_sleeping_rows_are_where_a_dense_loop_would_have_moved_them(steps, left_out, when, decays):
    """With catch-ups at any time; the learning rate changes at any time too."""
    sleeper = Sleeper(sorted(left_out), **decays)
    found = sleeper.train(steps, when)
    assert torch.allclose(found, dense_loop(steps, **decays, left_out=left_out), atol=1e-12)


def test_the_reference_above_moves_sleeping_rows():
    steps = [([1, 1, 4], 0.05), ([4], 0.01)]
    weights = dense_loop(steps, weight_decay=0.01, sleeping_decay=1, left_out=[3])
    moved = initial() - weights
    assert torch.allclose(moved[0], torch.full((WIDTH,), -0.06, dtype=torch.float64))
    assert torch.equal(weights[3], initial()[3])
    assert weights[6, 2] == pytest.approx(0.5 - 0.06)
    assert dense_loop(steps, 0.01, 10)[2].tolist() == [0, 0, 0]  # it stops at 0


def test_one_more_catch_up_changes_nothing():
    sleeper = Sleeper(dtype=torch.float32, weight_decay=0.01)
    weights = sleeper.train([([1, 4], 0.01), ([2], 0.02), ([], 0.01)]).clone()
    state = copy.deepcopy(sleeper.optimizer.state_dict())
    sleeper.optimizer.catch_up()
    sleeper.optimizer.wake(sleeper.table.weight, torch.tensor([[0, 0], [5, 1]]))
    assert torch.equal(weights, sleeper.table.weight)
    for name, value in sleeper.optimizer.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state["state"][0][name])), name


@pytest.mark.parametrize("decays", [{}, {"sleeping_decay": 0.5}, {"weight_decay": 0.0}])
def test_without_a_penalty_nothing_sleeps_to_the_last_bit(decays):
    batches = [[1, 1, 4], [4], [2, 3]]
    before, _ = trained(RowAdam, batches, True)
    after, optimizer = trained(RowAdam, batches, True, **decays)
    optimizer.catch_up()
    assert torch.equal(before, after)
    assert set(*map(set, optimizer.state.values())) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_pace_of_zero_leaves_sleeping_rows_to_the_last_bit():
    sleeper = Sleeper(dtype=torch.float32, weight_decay=0.1, sleeping_decay=0.0)
    weights = sleeper.train([([1, 4], 0.01), ([4], 0.01)])
    moved = (weights != initial().float()).any(dim=1)
    assert moved.tolist() == [row in (1, 4) for row in range(ROWS)]


def test_a_row_that_is_read_without_waking_wakes_by_its_step():
    steps = [([1], 0.05), ([2], 0.05), ([1], 0.05)]
    sleeper = Sleeper(weight_decay=0.1)
    sleeper.train(steps[:2])
    late = Sleeper(weight_decay=0.1)
    late.optimizer.wake = lambda table, rows: None
    late.train(steps[:2])
    del late.optimizer.wake
    for each in (sleeper, late):
        gradient = torch.ones(1, WIDTH, dtype=torch.float64)
        each.table.weight.grad = sparse([1], gradient)
        each.optimizer.step()
    assert torch.equal(sleeper.table.weight[1], late.table.weight[1])


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_sleep_goes_on_from_its_state(cut):
    steps = [([1, 2], 0.01), ([2], 0.03), ([0], 0.02), ([], 0.01), ([1, 3], 0.05)]
    whole = Sleeper([5], weight_decay=0.1, sleeping_decay=0.7).train(steps)
    part = Sleeper([5], weight_decay=0.1, sleeping_decay=0.7)
    part.train(steps[:cut])
    rest = Sleeper([5], weight_decay=0.1, sleeping_decay=0.7)
    rest.table.load_state_dict(part.table.state_dict())
    rest.optimizer.load_state_dict(copy.deepcopy(part.optimizer.state_dict()))
    (state,) = rest.optimizer.state.values()
    assert state["visited"].dtype == torch.int32
    assert state["lr_sums"].dtype == torch.float64
    assert torch.allclose(rest.train(steps[cut:]), whole, atol=1e-12)


def test_state_is_of_its_own_types_in_a_single_precision_table():
    """Last visits and sums that became float32 would be wrong from 2^24 steps on."""
    part = Sleeper(dtype=torch.float32, weight_decay=0.1)
    part.train([([1], 0.1), ([2], 0.3)])
    (own,) = part.optimizer.state.values()
    rest = Sleeper(dtype=torch.float32, weight_decay=0.1)
    rest.optimizer.load_state_dict(part.optimizer.state_dict())
    (state,) = rest.optimizer.state.values()
    for name in ("visited", "lr_sums"):
        assert state[name].dtype == own[name].dtype
        assert torch.equal(state[name], own[name])
        assert state[name].data_ptr() != own[name].data_ptr()


def test_a_state_from_before_there_was_a_penalty_has_none():
    _, before = trained(RowAdam, [[1, 2]], True)
    state = before.state_dict()
    for group in state["param_groups"]:
        del group["weight_decay"], group["sleeping_decay"]
    table = nn.Embedding(ROWS, WIDTH, sparse=True)
    again = RowAdam([table.weight])
    again.load_state_dict(state)
    assert again.param_groups[0]["weight_decay"] == 0
    table(torch.tensor([1])).sum().backward()
    again.step()


def test_all_tables_of_all_groups_step_and_sleep():
    tables = [nn.Parameter(torch.ones(ROWS, 1)) for _ in range(3)]
    groups = [{"params": tables[:2]}, {"params": tables[2:], "sleeping_decay": 0.5}]
    optimizer = RowAdam(groups, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for table in tables:
            table.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 1), (ROWS, 1))
        optimizer.step()
    assert all(table[0] < 1 for table in tables)
    assert all((table[1:] == 1).all() for table in tables)
    optimizer.catch_up()
    for table, slept in zip(tables, (0.8, 0.8, 0.9), strict=True):
        torch.testing.assert_close(table[1:].detach(), torch.full((ROWS - 1, 1), slept))


class Sizes(TorchDispatchMode):
    """The largest tensor that an operation makes, given ones that it may hand through."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            strided = isinstance(tensor, torch.Tensor) and not tensor.is_sparse
            if strided and tensor.data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_a_step_makes_grows_with_the_batch_and_not_with_the_table(weight_decay):
    largest = {}
    for size in (1_000, 100_000):
        for batch in (10, 80):
            table = nn.Embedding(size, WIDTH, sparse=True)
            optimizer = RowAdam([table.weight], weight_decay=weight_decay)
            rows = torch.arange(batch)
            for step in range(3):
                optimizer.zero_grad()
                state = [v for v in optimizer.state[table.weight].values() if torch.is_tensor(v)]
                with Sizes([table.weight, *state]) as sizes:
                    optimizer.wake(table.weight, rows + step)
                    table(rows + step).sum().backward()
                    optimizer.step()
            largest[size, batch] = sizes.largest  # of the last step: the first makes the state
    assert largest[1_000, 10] == largest[100_000, 10] < largest[1_000, 80] == largest[100_000, 80]
    assert largest[1_000, 80] < 80 * WIDTH * 2


# Fields of ids that tell something, seen often, and of ids that tell next to nothing, seen rarely.
SIZES = (20,) * 4 + (2000,) * 4
TRAIN, BATCH, EPOCHS = 6000, 300, 8


def simulated(seed):
    draw = torch.Generator().manual_seed(seed)
    rows = TRAIN + 20_000
    starts = torch.tensor(SIZES).cumsum(0) - torch.tensor(SIZES)
    ids = torch.stack([torch.randint(n, (rows,), generator=draw) for n in SIZES], dim=1) + starts
    scale = torch.tensor([0.7 if n < 100 else 0.1 for n in SIZES for _ in range(n)])
    effect = scale * torch.randn(sum(SIZES), generator=draw)
    chance = torch.sigmoid(effect[ids].sum(dim=1) - 2)
    return ids, (torch.rand(rows, generator=draw) < chance).float()


def auc_on_test(seed, is_sparse, weight_decay):
    """Of an embedding and a tower after some epochs."""
    ids, label = simulated(seed)
    torch.manual_seed(seed)
    table = nn.Embedding(sum(SIZES), 4, sparse=is_sparse)
    nn.init.normal_(table.weight, std=0.05)
    tower = nn.Sequential(nn.Linear(4 * len(SIZES), 16), nn.ReLU(), nn.Linear(16, 1))
    kind = RowAdam if is_sparse else torch.optim.Adam
    rows = kind([table.weight], lr=0.003, weight_decay=weight_decay)
    group = OptimizerGroup(rows, torch.optim.Adam(tower.parameters(), lr=0.003))

    def logit(part):
        return tower(table(ids[part]).flatten(start_dim=1)).squeeze(1)

    for part in (part for _ in range(EPOCHS) for part in torch.randperm(TRAIN).split(BATCH)):
        if is_sparse:
            rows.wake(table.weight, ids[part])
        group.zero_grad()
        binary_cross_entropy_with_logits(logit(part), label[part]).backward()
        group.step()
    if is_sparse:
        rows.catch_up()
    with torch.no_grad():
        return roc_auc_score(label[TRAIN:], logit(slice(TRAIN, None)))


def test_sparse_rows_lose_no_quality_against_dense_adam_with_the_same_penalty():
    """Where the penalty is what a model needs: ids that are seen rarely tell next to nothing."""
    seeds = range(3)
    none, dense, ours = (
        np.array([auc_on_test(seed, *variant) for seed in seeds])
        for variant in ((False, 0.0), (False, 1e-3), (True, 1e-3))
    )
    assert (dense - none).mean() > 0.03
    assert (ours - dense).mean() > -0.002


# ------------------------------------------------------------------ several optimizers as one


def two():
    tables = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    return tables, OptimizerGroup(*(torch.optim.SGD([t], lr=0.5, momentum=0.9) for t in tables))


def test_a_group_steps_clears_and_lists_all_of_its_optimizers():
    tables, group = two()
    sum((2 * table).sum() for table in tables).backward()
    group.step()
    assert [table.tolist() for table in tables] == [[0, 0], [0, 0]]
    assert [own["params"] for own in group.param_groups] == [[table] for table in tables]
    group.zero_grad(set_to_none=False)
    assert [table.grad.tolist() for table in tables] == [[0, 0], [0, 0]]
    group.zero_grad()
    assert [table.grad for table in tables] == [None, None]


def test_a_group_goes_on_from_the_states_of_all():
    tables, group = two()
    sum((table * n).sum() for n, table in enumerate(tables, start=1)).backward()
    group.step()
    others, again = two()
    saved = copy.deepcopy(state_by_name(group, nn.ParameterList(tables)))
    assert set(saved) == {"0", "1"}
    before = copy.deepcopy(saved)
    assert load_by_name(again, nn.ParameterList(others), saved) == []
    for table, other in zip(tables, others, strict=True):
        other.data.copy_(table.data)
        other.grad = table.grad.clone()
    group.step()
    again.step()
    assert [table.tolist() for table in tables] == [other.tolist() for other in others]
    assert_same(saved, before)
    saved["1"]["of"] = "Adam"
    assert load_by_name(again, nn.ParameterList(others), saved) == ["1"]
