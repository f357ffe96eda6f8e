"""Weights of impressions: those of whole numbers are rows repeated, one for all changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_escm2 import risk
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import recbole_context_names
from recbole_escm2.model import ESCM2_IPS
from recbole_escm2.model.entire_space import EntireSpaceRecommender
from recbole_escm2.model.single_task import weigh_rows
from recbole_escm2.model_names import MODEL_NAMES, REFERENCE_NAMES

#: Models whose risks take no weights.
REFUSED = {"ESCM2_TDR", "ESCM2_STABLE_DR", "ESCM2_IPS_V2", "ESCM2_DR_V2", "DDPO", "NISE"}
FIELDS = {"ctr": "cw", "cvr": "vw", "ctcvr": "vw"}
OURS = [name for name in MODEL_NAMES if name not in REFERENCE_NAMES]
few = settings(deadline=None, max_examples=40, derandomize=True)


def logits(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


#: Each risk of (x, y, click, propensity), where x and y are logits.
RISKS = {
    "ctr": lambda x, y, o, p, w: risk.ctr_risk(x, o, w),
    "ctcvr": lambda x, y, o, p, w: risk.ctcvr_risk(x, y, o, w),
    "ips": lambda x, y, o, p, w: risk.ips_risk(x.square(), o, p, w),
    "snips": lambda x, y, o, p, w: risk.snips_risk(x.square(), o, p, w),
    "click space": lambda x, y, o, p, w: risk.click_space_risk(x.square(), o, w),
    "dr": lambda x, y, o, p, w: risk.dr_risk(x.square(), y.square(), o, p, w),
    "imputation": lambda x, y, o, p, w: risk.imputation_risk(x.square(), y, o, p, w),
    "bias": lambda x, y, o, p, w: risk.dr_bias_imputation_risk(x.square(), y, o, p, w),
    "mrdr": lambda x, y, o, p, w: risk.mrdr_imputation_risk(x.square(), y, o, p, weight=w),
    "self-normalised": lambda x, y, o, p, w: risk.ips_risk(
        x.square(), o, risk.self_normalized(p, o, w), w
    ),
}
ROWS = st.lists(
    st.tuples(
        st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 1), st.floats(0.1, 1), st.integers(0, 4)
    ),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(row[-1] for row in rows))


def value_and_gradients(name, columns, rows, weight):
    """A risk of some rows, with its gradients in the logits of all of them."""
    x, y = logits(columns[0]), logits(columns[1])
    o, p = (torch.tensor(column, dtype=torch.float64) for column in columns[2:4])
    value = RISKS[name](x[rows], y[rows], o[rows], p[rows], weight)
    unused = torch.zeros_like(x)
    gradients = torch.autograd.grad(value, (x, y), allow_unused=True)
    return torch.stack([value]), *(unused if g is None else g for g in gradients)


@pytest.mark.parametrize("name", RISKS)
@few
@given(ROWS)
def test_whole_weights_are_rows_repeated(name, rows):
    *columns, times = zip(*rows, strict=True)
    every, often = torch.arange(len(rows)), torch.tensor(times)
    weight = often / often.double().mean()
    weighted = value_and_gradients(name, columns, every, weight)
    repeated = value_and_gradients(name, columns, every.repeat_interleave(often), None)
    for own, other in zip(weighted, repeated, strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RISKS)
@few
@given(ROWS)
def test_a_weight_for_all_changes_nothing(name, rows):
    columns, every = list(zip(*rows, strict=True))[:4], torch.arange(len(rows))
    with_weight = value_and_gradients(name, columns, every, torch.ones(len(rows)).double())
    without = value_and_gradients(name, columns, every, None)
    assert all(map(torch.equal, with_weight, without))


def test_weights_are_one_each():
    with pytest.raises(ValueError, match="one length"):
        risk.ctr_risk(torch.zeros(3), torch.ones(3), torch.ones(1))


# --- models ----------------------------------------------------------------------------------


def gradients_of(model, batch):
    losses = model.calculate_loss(batch)
    loss = torch.stack(losses).sum() if isinstance(losses, tuple) else losses
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss, dict(zip(named, found, strict=True))


def assert_alike(model, weighted, repeated):
    loss, own = gradients_of(model, weighted)
    other_loss, other = gradients_of(model, repeated)
    assert torch.allclose(loss, other_loss, rtol=1e-5)
    for name, gradient in own.items():
        assert (gradient is None) == (other[name] is None), name
        if gradient is not None:
            assert torch.allclose(gradient, other[name], rtol=1e-3, atol=1e-6), name


def two_batches(built, field):
    """Rows with whole weights, and the same rows repeated as often."""
    rows, times = torch.arange(40), torch.arange(40) % 4
    weighted, repeated = (built.train.dataset[r] for r in (rows, rows.repeat_interleave(times)))
    weighted.interaction[field] = times / times.double().mean()
    repeated.interaction[field] = torch.ones(int(times.sum()))
    return weighted, repeated


@pytest.mark.parametrize("name", OURS)
def test_each_model_of_the_family_takes_weights_or_says_that_it_does_not(build, name):
    if name in REFUSED:
        with pytest.raises(UsageError, match=f"{name} has a loss of its own, in which pos_weight"):
            build(name, pos_weight={"ctr": 2.0})
        return
    built = build(name, pos_weight={"ctr": 2.0})
    built.model.weight_field = dict.fromkeys(FIELDS, "w")
    built.model.eval()
    assert_alike(built.model, *two_batches(built, "w"))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ESCM2_IPS", {"propensity_normalization": "snips"}),
        ("ESCM2_DR", {"imputation": "label", "pos_weight": {"cvr": 3.0, "ctcvr": 2.0}}),
    ],
)
def test_other_forms_of_a_model_take_weights(build, name, more):
    built = build(name, **more)
    built.model.weight_field = dict.fromkeys(FIELDS, "w")
    built.model.eval()
    assert_alike(built.model, *two_batches(built, "w"))


def test_each_task_has_its_weight(build):
    built = build("ESCM2_IPS")
    model, batch = built.model.eval(), built.train.dataset[:40]
    before = model.task_risks(batch)
    model.weight_field = FIELDS
    batch.interaction["cw"], batch.interaction["vw"] = torch.full((40,), 2.0), torch.ones(40)
    after = model.task_risks(batch)
    assert after["ctr"] == 2 * before["ctr"]
    assert [after[task] == before[task] for task in ("cvr", "ctcvr")] == [True, True]
    batch.interaction["vw"] = torch.full((40,), 3.0)
    after = model.task_risks(batch)
    assert torch.allclose(after["cvr"], 3 * before["cvr"])
    assert torch.allclose(after["ctcvr"], 3 * before["ctcvr"])


@pytest.mark.parametrize("name", recbole_context_names())
def test_models_of_recboles_take_weights(build, name):
    small = {"cin_layer_size": [6, 4], "attention_size": 4}
    built = build(name, **small, pos_weight={"ctr": 3.0})
    model = built.model.eval()
    if name == "KD_DAGFM":
        with pytest.raises(UsageError, match="isn't a binary cross entropy"):
            weigh_rows(model, built.config, built.batch)
        return
    built.config["CLICK_WEIGHT_FIELD"] = "w"
    weighted, repeated = two_batches(built, "w")
    names = set(model.state_dict())
    weigh_rows(model, built.config, weighted)
    assert_alike(model, weighted, repeated)
    assert set(model.state_dict()) == names


# --- pos_weight ------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99), st.floats(0.05, 20))
def test_the_odds_of_a_prediction_are_pos_weight_times_those_of_the_label(rate, pos_weight):
    q = pos_weight * rate / (pos_weight * rate + 1 - rate)
    logit = torch.tensor([np.log(q / (1 - q))], dtype=torch.float64, requires_grad=True)
    loss = risk.binary_cross_entropy(torch.tensor([rate]).double(), logit, pos_weight)
    (slope,) = torch.autograd.grad(loss, logit)
    assert slope.item() == pytest.approx(0, abs=1e-7)
    assert risk.without_pos_weight(q, pos_weight) == pytest.approx(rate)


def test_pos_weight_is_torchs(build):
    built = build("ESCM2_IPS", pos_weight={"ctr": 5.0})
    batch = built.train.dataset[:40]
    logit = built.model(batch)["ctr"]
    torchs = torch.nn.functional.binary_cross_entropy_with_logits(
        logit, batch["click"], pos_weight=torch.tensor(5.0)
    )
    assert torch.allclose(built.model.task_risks(batch)["ctr"], torchs)


def test_a_propensity_is_a_probability_of_a_click_whatever_pos_weight_is(build):
    plain, heavy = build("ESCM2_IPS"), build("ESCM2_IPS", pos_weight={"ctr": 4.0})
    batch = plain.train.dataset[:40]
    pctr = plain.model.predict_tasks(batch)["ctr"]
    odds = pctr / (1 - pctr) / 4
    found = heavy.model.click_probability(heavy.model(batch), batch)
    assert torch.allclose(found, odds / (1 + odds), rtol=1e-5)


# --- what takes no weights -------------------------------------------------------------------


class Own(ESCM2_IPS):
    def counterfactual_risk(self, impressions):
        return super().counterfactual_risk(impressions)


class OwnWithWeights(Own):
    takes_weights = True


class Heir(Own):
    tower_names = ("ctr", "cvr")


def test_a_risk_of_ones_own_has_to_say_that_it_takes_weights(configure):
    honours = {c.__name__: c.honours_weights() for c in (Own, OwnWithWeights, Heir, ESCM2_IPS)}
    assert honours == {"Own": False, "OwnWithWeights": True, "Heir": False, "ESCM2_IPS": True}
    assert EntireSpaceRecommender.honours_weights()
    with pytest.raises(UsageError, match=r"Own has a loss of its own.*CLICK_WEIGHT_FIELD would do"):
        configure(Own, CLICK_WEIGHT_FIELD="propensity", PROPENSITY_FIELD=None)


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("ESMM", {"pos_weight": {"cvr": 2}}, "names cvr, and ESMM has no such loss: it has ctcvr"),
        (
            "DeepFM",
            {"pos_weight": {"cvr": 2}},
            "cvr, and DeepFM has no such loss: it has ctr",
        ),
        ("ESMM", {"pos_weight": {"ctr": 0}}, "pos_weight must be a mapping"),
        ("ESMM", {"weighted_metrics": True}, "weighted_metrics weighs impressions by a column"),
        ("ESMM", {"CLICK_WEIGHT_FIELD": "click"}, "CLICK_FIELD and CLICK_WEIGHT_FIELD are both"),
    ],
)
def test_what_makes_no_sense_is_refused(configure, model, more, message):
    with pytest.raises(UsageError, match=message):
        configure(model, **more)
