import pytest
import torch
from torch import nn

from recbole_escm2.bags import Bags
from recbole_escm2.model import tower
from recbole_escm2.model.embedding import pool_bag
from recbole_escm2.model.tower import Tower


def towers(*names, sizes=(6, 5, 4), dropout=0.0):
    torch.manual_seed(0)
    return nn.ModuleDict({name: Tower(sizes, dropout) for name in names})


def evaluate(modules, features):
    return tower.evaluate(modules, dict.fromkeys(modules, features))


def one_by_one(modules, features):
    return {name: module(features).squeeze(-1) for name, module in modules.items()}


def test_each_tower_gets_its_own_input():
    modules = towers("ctr", "cvr")
    inputs = {"ctr": torch.randn(9, 6), "cvr": torch.randn(9, 6)}
    for name, logit in tower.evaluate(modules, inputs).items():
        assert torch.allclose(logit, modules[name](inputs[name]).squeeze(-1), atol=1e-6)


@pytest.mark.parametrize("names", [("ctr", "cvr"), ("ctr", "cvr", "imputation"), ("cvr",)])
def test_together_they_are_what_each_is_alone(names):
    modules = towers(*names)
    gradients = []
    for run in (evaluate, one_by_one):
        features = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        modules.zero_grad()
        logits = run(modules, features)
        assert list(logits) == list(names)
        sum((n + 1) * logit.square().sum() for n, logit in enumerate(logits.values())).backward()
        gradients.append(
            [*logits.values(), features.grad, *(p.grad.clone() for p in modules.parameters())]
        )
    for ours, alone in zip(*gradients, strict=True):
        assert torch.allclose(ours, alone, rtol=1e-5, atol=1e-6)


def test_imputation_has_no_gradient_from_the_others():
    modules = towers("ctr", "cvr", "imputation")
    logits = evaluate(modules, torch.randn(9, 6))
    (logits["ctr"] + logits["cvr"]).sum().backward()
    assert all(p.grad is None for p in modules["imputation"].parameters())
    modules.zero_grad()
    evaluate(modules, torch.randn(9, 6))["imputation"].sum().backward()
    assert all(p.grad is None for name in ("ctr", "cvr") for p in modules[name].parameters())


def test_a_tower_of_another_kind_is_evaluated_by_itself():
    modules = towers("ctr", "cvr")
    modules["cvr"] = nn.Linear(6, 1)
    features = torch.randn(9, 6)
    for name, logit in evaluate(modules, features).items():
        assert torch.allclose(logit, modules[name](features).squeeze(-1))


def test_dropout_is_drawn_for_each_tower():
    modules = towers("ctr", "cvr", dropout=0.5)
    modules["cvr"].load_state_dict(modules["ctr"].state_dict())
    logits = evaluate(modules, torch.randn(50, 6))
    assert not torch.allclose(logits["ctr"], logits["cvr"])
    modules.eval()
    logits = evaluate(modules, torch.randn(50, 6))
    assert torch.allclose(logits["ctr"], logits["cvr"], atol=1e-6)


# ------------------------------------------------------------------ bags

IDS = [[1, 2], [], [3, 3, 1]]
WEIGHTS = [[0.5, 2.0], [], [1.0, 4.0, 0.0]]


def bag(weighted):
    flat = torch.tensor([number for ids in IDS for number in ids])
    weights = torch.tensor([w for row in WEIGHTS for w in row]) if weighted else None
    return Bags(("f",), flat, weights, torch.tensor([[len(ids) for ids in IDS]]))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_pooling_by_hand(pooling, weighted, sparse):
    table = nn.Embedding(4, 2, sparse=sparse)
    expected = torch.zeros(3, 2)
    for row, (ids, weights) in enumerate(zip(IDS, WEIGHTS, strict=True)):
        for number, weight in zip(ids, weights, strict=True):
            share = len(ids) if pooling == "mean" else 1
            expected[row] += (weight if weighted else 1) * table.weight[number].detach() / share
    pooled = pool_bag(table, bag(weighted), pooling)
    assert torch.allclose(pooled, expected, atol=1e-6)
    pooled.sum().backward()
    assert table.weight.grad.is_sparse == sparse
    assert not table.weight.grad.to_dense()[0].any()  # id 0 is in no bag


def test_a_padded_sequence_is_a_bag():
    padded = bag(False).padded(3)
    assert padded.tolist() == [[1, 2, 0], [0, 0, 0], [3, 3, 1]]
    again = Bags.of_padded(padded)
    assert torch.equal(again.ids, bag(False).ids)
    assert torch.equal(again.lengths, bag(False).lengths)


def test_padding_keeps_the_heaviest():
    assert bag(True).padded(2).tolist() == [[2, 1], [0, 0], [3, 3]]
    assert bag(True).padded(1).tolist() == [[2], [0], [3]]
    assert bag(False).padded(1).tolist() == [[1], [0], [3]]
