"""Which model is a special case of which: each row of the table in docs/models.md."""

import re
from pathlib import Path

import pytest
import torch

from recbole_escm2.property_files import parse_value

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
ROW = re.compile(r"^\| `(\w+)` \|(.*)\| `(\w+)` \|(.*)\| (loss|CVR tower) \|$", re.MULTILINE)
RELATIONS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def settings_of(cell):
    """The settings of a cell of the table."""
    return {k: parse_value(v) for k, v in re.findall(r"`(\w+): ([^`]+)`", cell)}


def test_the_page_has_the_relations():
    assert len(RELATIONS) == 16
    assert {place for *_, place in RELATIONS} == {"loss", "CVR tower"}


def tower_gradient(model, batch):
    risk = model.task_risks(batch)["cvr"]
    gradients = torch.autograd.grad(risk, list(model.towers["cvr"].parameters()))
    return dict(enumerate(gradients))


def loss_and_gradients(model, batch):
    loss = sum(model.calculate_loss(batch))
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters()}}


@pytest.mark.parametrize(
    ("name", "given", "other", "its_own", "where"), RELATIONS, ids=["-".join(r) for r in RELATIONS]
)
def test_one_is_the_other(build, name, given, other, its_own, where):
    built, same = build(name, **settings_of(given)), build(other, **settings_of(its_own))
    model, batch = built.model, built.batch
    with torch.no_grad():  # pCTR of more than one size, on both sides of a floor
        model.towers["ctr"][-1].weight *= 10
        model.towers["ctr"][-1].bias -= 2
    same.model.load_state_dict(model.state_dict(), strict=False)
    compute = loss_and_gradients if where == "loss" else tower_gradient
    ours, theirs = compute(model, batch), compute(same.model, batch)
    shared = [n for n in theirs if theirs[n] is not None]
    assert len(shared) > 3
    for part in shared:
        torch.testing.assert_close(ours[part], theirs[part], rtol=1e-4, atol=1e-6)
    # what the other lacks isn't moved, or has moved nothing that both have
    assert all(ours[n] is None or not ours[n].any() for n in set(ours) - set(theirs))


@pytest.mark.parametrize(
    ("name", "given", "other"),
    [
        ("ESCM2_IPS_V2", {"balancing_weight": 1.0}, "ESCM2_IPS"),
        ("ESCM2_DR_MSE", {"bias_share": 0.5, "imputation": "label"}, "ESCM2_MRDR"),
        ("ESCM2_DR", {"imputation": "label"}, "MTL_DR"),
    ],
)
def test_without_the_setting_it_is_not(build, name, given, other):
    built, same = build(name, **given), build(other)
    with torch.no_grad():
        built.model.towers["ctr"][-1].bias -= 2
    same.model.load_state_dict(built.model.state_dict(), strict=False)
    ours, theirs = (loss_and_gradients(m, built.batch) for m in (built.model, same.model))
    assert abs(ours["loss"] - theirs["loss"]) > 1e-3
