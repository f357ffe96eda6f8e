"""What makes each variant different from its parent and its neighbours."""

import math

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_escm2.config import acting_settings
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import find_model
from recbole_escm2.model import MODELS
from recbole_escm2.model.aitm import InformationTransfer
from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.risk import ips_risk

MULTI_TASK = ["Naive", "MTL_IMP", "MTL_EIB", "MTL_IPS", "MTL_DR"]


@pytest.fixture
def pair(build):
    """Two models with the same weights, as far as they have the same towers, and a batch."""

    def pair(name, other, **settings):
        built, same = (build(model, **acting(model, settings)) for model in (name, other))
        same = same.model
        same.load_state_dict(built.model.state_dict(), strict=False)
        spread(built.model, built.batch)
        spread(same, built.batch)
        return built.model, same, built.batch

    return pair


def acting(name, settings):
    """Those of the settings that do something in a model."""
    return acting_settings(find_model(name), {"backbone": "separate", **settings})


def spread(model, batch):
    """Click logits around -1, some below and some above a floor of 0.3."""
    with torch.no_grad():
        last = model.towers["ctr"][-1]
        last.weight *= 1.5 / model(batch)["ctr"].std()
        last.bias += -1 - model(batch)["ctr"].mean()


def cvr_logit_gradient(risk, impressions, tower="cvr"):
    return torch.autograd.grad(risk, impressions.logit[tower], retain_graph=True)[0]


def counterfactual(model, batch):
    impressions = model.impressions(batch)
    return impressions, model.counterfactual_risk(impressions)


# ------------------------------------------------------------------ by hand

# Five impressions; ô = 1/2 and so on, δ = log 2 and log 4/3 on the clicks.
#   o    1    1    0    0    0
#   r    1    0
#   ô   1/2  1/4  1/2  1/4  3/4
#   r̂   1/2  1/4  1/4  1/2  3/4
LOG2, LOG3 = math.log(2), math.log(3)
ENTROPY = 2 * LOG2 - 0.75 * LOG3  # of 1/4, and of 3/4
# Of an imputation of log 2: 0 and log 4/3 − log 2.
RESIDUAL = LOG2 - LOG3
HALF = LOG2 - LOG3 / 2 + LOG2  # BCE(1/2, 1/4) = (log 4 + log 4/3)/2


def five(conversion_tower=(0.5,) * 5):
    """The five impressions; the imputation tower's logit is 0, so that δ̂ = log 2."""

    def logit(*probability):
        return torch.logit(torch.tensor(probability))

    logits = {
        "ctr": logit(1 / 2, 1 / 4, 1 / 2, 1 / 4, 3 / 4),
        "cvr": logit(1 / 2, 1 / 4, 1 / 4, 1 / 2, 3 / 4),
        "imputation": torch.zeros(5),
        "conversion": logit(*conversion_tower),
    }
    propensity = torch.sigmoid(logits["ctr"])
    click, conversion = torch.tensor([1.0, 1, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0, 0])
    return Impressions(click, conversion, logits, propensity, propensity)


BY_HAND = {
    # Σ o(1 − ô)²/ô³(δ − δ̂)²/5 with (3/4)²/(1/4)³ = 36, and R_DR: δ̂ + (1/ô)(δ − δ̂)
    "ESCM2_DR_BIAS": {"cvr": LOG2 + 4 * RESIDUAL / 5 + 36 * RESIDUAL**2 / 5},
    # MRDR's weight is (3/4)/(1/4)² = 12, and λ = 1/2
    "ESCM2_DR_MSE": {"cvr": LOG2 + 4 * RESIDUAL / 5 + (36 + 12) / 2 * RESIDUAL**2 / 5},
    # h = 1, 3 | 1, 3, 1/3 and η = 3·(δ − δ̂)/(1 + 9); R_TDR = Σ [oδ + (1 − o)(δ̂ + ηh)]/5
    "ESCM2_TDR": {
        "cvr": (LOG2 + 2 * LOG2 - LOG3 + 3 * LOG2 + 0.3 * RESIDUAL * 13 / 3) / 5
        + 4 * RESIDUAL**2 / 5
    },
    # 2/2 + 4/4 | −2/4 − (4/3)/2 − 4·(3/4) = −13/6
    "ESCM2_IPS_V2": {
        "cvr": (2 * LOG2 + 4 * (2 * LOG2 - LOG3)) / 5,
        "balancing": (13 / 6 / 5) ** 2,
    },
    "ESCM2_DR_V2": {
        "cvr": LOG2 + 4 * RESIDUAL / 5 + 4 * RESIDUAL**2 / 5,
        "balancing": (13 / 6 / 5) ** 2,
    },
    # weights 2 and 4 of 6; all δ̂ are alike, so that nothing is to be balanced
    "ESCM2_STABLE_DR": {
        "cvr": (2 * LOG2 + 4 * (2 * LOG2 - LOG3)) / 6 + 4 * RESIDUAL**2 / 5,
        "balancing": 0,
    },
    "NISE": {"cvr": (LOG2 + 2 * LOG2 - LOG3 + ENTROPY + LOG2 + ENTROPY) / 5},
    # soft labels 1, 1/2 | 1/2, 1/4, 3/4; weights 2, 4 of 6 | 2, 4/3, 4 of 22/3
    "DDPO": {
        "cvr": (2 * LOG2 + 4 * HALF) / 6 + (2 * HALF + 4 / 3 * LOG2 + 4 * ENTROPY) / (22 / 3),
        "conversion": (2 * LOG2 + LOG2) / 5,
    },
}


@pytest.mark.parametrize("name", BY_HAND)
def test_risks_of_five_impressions_by_hand(build, name):
    model = build(name).model
    soft = (0.25, 0.5, 0.5, 0.25, 0.75)
    risks = model.risks(five(soft))
    for risk, expected in BY_HAND[name].items():
        assert risks[risk].item() == pytest.approx(expected, rel=1e-5, abs=1e-9), risk


# ------------------------------------------------------------------ without a global risk


@pytest.mark.parametrize("name", MULTI_TASK)
def test_multi_task_models_have_no_ctcvr_term_and_full_weight_on_cvr(build, name):
    built = build(name)
    risks = built.model.task_risks(built.batch)
    assert list(risks) == ["ctr", "cvr"]
    assert built.model.calculate_loss(built.batch) == (risks["ctr"], risks["cvr"])


@pytest.mark.parametrize(
    ("name", "escm2"), [("MTL_IPS", "ESCM2_IPS"), ("MTL_DR", "ESCM2_DR")], ids=["IPS", "DR"]
)
def test_multi_ipw_and_multi_dr_are_escm2_without_the_global_term(pair, name, escm2):
    model, same, batch = pair(name, escm2, counterfactual_weight=0.7, global_weight=0.0)
    ours, theirs = model.task_risks(batch), same.task_risks(batch)
    assert ours == {task: theirs[task] for task in ("ctr", "cvr")}
    sum(model.calculate_loss(batch)).backward()
    sum(same.calculate_loss(batch)).backward()
    of_escm2 = dict(same.named_parameters())
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(value.grad, of_escm2[parameter].grad)


# ------------------------------------------------------------------ Naive


def test_naive_weights_every_click_alike(pair):
    model, ips, batch = pair("Naive", "MTL_IPS", propensity_floor=0.3)
    impressions, risk = counterfactual(model, batch)
    clicked = impressions.click > 0
    assert risk.item() == pytest.approx(impressions.error[clicked].mean().item(), rel=1e-6)
    grad = cvr_logit_gradient(risk, impressions)
    residual = torch.sigmoid(impressions.logit["cvr"]) - impressions.conversion
    torch.testing.assert_close(grad, impressions.click * residual / clicked.sum())
    of_ips = ips.impressions(batch)
    ratio = cvr_logit_gradient(ips.counterfactual_risk(of_ips), of_ips)[clicked] / grad[clicked]
    assert ratio.std() > 0.1 * ratio.mean()  # IPS doesn't


@pytest.mark.parametrize(
    ("name", "weighs"),
    [(m.__name__, m.__name__ not in ("NISE", "Naive", "MTL_IMP", "MTL_EIB")) for m in MODELS],
)
def test_only_what_uses_the_propensity_depends_on_it(build, name, weighs):
    low, high = (build(name, **acting(name, {"propensity_floor": f})) for f in (0.2, 0.9))
    for model in (low.model, high.model):
        model.propensity_floor = 0.2 if model is low.model else 0.9  # also where it is refused
    risks = [model.task_risks(low.batch) for model in (low.model, high.model)]
    assert low.model.weighs_by_propensity == weighs
    assert (risks[0] != risks[1]) == (weighs and low.model.has_counterfactual_risk)


# ------------------------------------------------------------------ MTL-IMP


def test_imp_takes_every_unclicked_impression_as_a_negative(build):
    built = build("MTL_IMP")
    impressions, risk = counterfactual(built.model, built.batch)
    grad = cvr_logit_gradient(risk, impressions) * len(built.batch)
    predicted = torch.sigmoid(impressions.logit["cvr"].detach())
    unclicked = impressions.click == 0
    torch.testing.assert_close(grad[unclicked], predicted[unclicked])
    expected = predicted - impressions.click * impressions.conversion
    torch.testing.assert_close(grad, expected)


# ------------------------------------------------------------------ MTL-EIB


@pytest.mark.parametrize("imputation", ["error", "label"])
def test_eib_takes_the_error_where_there_is_one_and_else_the_imputed_one(build, imputation):
    model, batch = (built := build("MTL_EIB", imputation=imputation)).model, built.batch
    impressions = model.impressions(batch)
    logit = impressions.logit
    imputed = model.imputed_error(logit["imputation"], logit["cvr"])
    expected = torch.where(impressions.click > 0, impressions.error, imputed).mean()
    torch.testing.assert_close(model.dr_risk(impressions), expected)
    residual = impressions.click * (impressions.error - imputed)
    torch.testing.assert_close(model.imputation_risk(impressions), residual.square().mean())


def test_eib_moves_the_cvr_tower_on_unclicked_impressions_by_imputed_labels_only(build):
    for imputation in ("error", "label"):
        built = build("MTL_EIB", imputation=imputation)
        impressions = built.model.impressions(built.batch)
        grad = cvr_logit_gradient(built.model.dr_risk(impressions), impressions)
        assert grad[impressions.click == 0].any() == (imputation == "label")


# ------------------------------------------------------------------ MRDR


@pytest.mark.parametrize("imputation", ["error", "label"])
def test_mrdr_differs_from_dr_in_the_weight_of_the_imputation_risk_only(pair, imputation):
    mrdr, dr, batch = pair("ESCM2_MRDR", "ESCM2_DR", imputation=imputation, propensity_floor=0.3)
    impressions, of_dr = mrdr.impressions(batch), dr.impressions(batch)
    assert torch.equal(mrdr.dr_risk(impressions), dr.dr_risk(of_dr))
    ours = cvr_logit_gradient(mrdr.imputation_risk(impressions), impressions, "imputation")
    theirs = cvr_logit_gradient(dr.imputation_risk(of_dr), of_dr, "imputation")
    clicked, propensity = impressions.click > 0, impressions.propensity
    assert (propensity[clicked] == 0.3).any()
    assert (propensity[clicked] > 0.3).any()
    pctr = torch.sigmoid(impressions.logit["ctr"])  # in p(1 - p)/ô² p isn't floored
    torch.testing.assert_close(ours, theirs * (1 - pctr) / propensity)
    assert theirs[clicked].all()


def test_mrdr_needs_no_imputation_where_a_click_is_certain(build):
    built = build("ESCM2_MRDR")
    with torch.no_grad():
        built.model.towers["ctr"][-1].bias += 100
    risk = built.model.imputation_risk(built.model.impressions(built.batch))
    assert risk.item() == 0


# ------------------------------------------------------------------ DR-BIAS, DR-MSE


@pytest.mark.parametrize("imputation", ["error", "label"])
def test_dr_bias_differs_from_dr_in_the_weight_of_the_imputation_risk_only(pair, imputation):
    settings = {"imputation": imputation, "propensity_floor": 0.3}
    of_bias, dr, batch = pair("ESCM2_DR_BIAS", "ESCM2_DR", **settings)
    impressions, of_dr = of_bias.impressions(batch), dr.impressions(batch)
    assert torch.equal(of_bias.dr_risk(impressions), dr.dr_risk(of_dr))
    ours = cvr_logit_gradient(of_bias.imputation_risk(impressions), impressions, "imputation")
    theirs = cvr_logit_gradient(dr.imputation_risk(of_dr), of_dr, "imputation")
    propensity = impressions.propensity
    torch.testing.assert_close(ours, theirs * (1 - propensity) ** 2 / propensity**2)
    assert theirs[impressions.click > 0].all()


@pytest.mark.parametrize(("share", "other"), [(1.0, "ESCM2_DR_BIAS"), (0.0, "ESCM2_MRDR")])
def test_dr_mse_ends_in_dr_bias_and_in_mrdr(pair, share, other):
    settings = {"imputation": "label", "propensity_floor": 0.3}
    mse, end, batch = pair("ESCM2_DR_MSE", other, bias_share=share, **settings)
    assert mse.task_risks(batch) == end.task_risks(batch)


def test_dr_mse_mixes_the_two_imputation_risks(pair):
    mse, of_bias, batch = pair("ESCM2_DR_MSE", "ESCM2_DR_BIAS", bias_share=0.25)
    _, mrdr, _ = pair("ESCM2_DR_MSE", "ESCM2_MRDR")
    mrdr.load_state_dict(mse.state_dict())
    risks = [m.imputation_risk(m.impressions(batch)).item() for m in (mse, of_bias, mrdr)]
    assert risks[0] == pytest.approx(0.25 * risks[1] + 0.75 * risks[2], rel=1e-5)


# ------------------------------------------------------------------ TDR


def test_tdr_is_eib_with_the_targeted_error_and_weighs_clicks_by_all_propensities(pair):
    tdr, eib, batch = pair("ESCM2_TDR", "MTL_EIB", propensity_floor=0.3)
    impressions = tdr.impressions(batch)
    click, h = impressions.click, 1 / impressions.propensity - 1
    error, logit = impressions.error, impressions.logit
    imputed = tdr.imputed_error(logit["imputation"], logit["cvr"]).detach()
    eta = (click * h * (error - imputed)).sum() / (click * h**2).sum()
    targeted = imputed + eta * h
    expected = torch.where(click > 0, error, targeted).mean()
    torch.testing.assert_close(tdr.dr_risk(impressions), expected)
    ours = cvr_logit_gradient(tdr.dr_risk(impressions), impressions)
    of_eib = eib.impressions(batch)
    theirs = cvr_logit_gradient(eib.dr_risk(of_eib), of_eib)  # every click counts 1 there
    weight = 1 + h * ((1 - click) * h).sum() / (click * h**2).sum()
    torch.testing.assert_close(ours, theirs * weight, rtol=1e-4, atol=1e-7)
    # what a right weighting would have: of constant weights all clicks stand for all impressions
    torch.testing.assert_close((click * h * weight).sum(), h.sum())


# ------------------------------------------------------------------ IPS-V2, DR-V2, StableDR


@pytest.mark.parametrize(("name", "other"), [("IPS_V2", "IPS"), ("DR_V2", "DR")])
@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_without_its_weight_the_balancing_risk_leaves_the_older_model(pair, name, other, schedule):
    settings = {"imputation_schedule": schedule}
    model, same, batch = pair(f"ESCM2_{name}", f"ESCM2_{other}", balancing_weight=0.0, **settings)
    for ours, theirs in zip(model.loss_steps(batch), same.loss_steps(batch), strict=True):
        assert ours.pop("balancing", torch.zeros(())) == 0
        assert ours == theirs


def test_stable_dr_without_its_weight_teaches_the_cvr_tower_as_snips_does(pair):
    stable, ips, batch = pair("ESCM2_STABLE_DR", "ESCM2_IPS", propensity_floor=0.3)
    ips.propensity_normalization = "snips"
    impressions, of_ips = stable.impressions(batch), ips.impressions(batch)
    ours = cvr_logit_gradient(stable.dr_risk(impressions), impressions)
    theirs = cvr_logit_gradient(ips.counterfactual_risk(of_ips), of_ips)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["ESCM2_IPS_V2", "ESCM2_DR_V2", "ESCM2_STABLE_DR"])
def test_the_balancing_risk_teaches_the_propensity(build, name):
    model, batch = (built := build(name)).model, built.batch
    with torch.no_grad():
        model.towers["ctr"][-1].bias += 1.5  # far too many clicks
        if name == "ESCM2_STABLE_DR":
            model.towers["imputation"][-1].weight *= 30

    def risk():
        return model.task_risks(batch)["balancing"]

    before = risk().item()
    optimizer = torch.optim.Adam(model.towers["ctr"].parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        risk().backward()
        optimizer.step()
    assert risk().item() < 0.1 * before


def test_a_balance_of_a_logged_propensity_changes_no_weight_and_says_so(build, caplog):
    build("ESCM2_IPS_V2", propensity="field")
    assert "it changes no weight" in caplog.text


# ------------------------------------------------------------------ NISE


def test_nise_makes_unclicked_predictions_surer_and_learns_clicks_as_naive_does(pair):
    nise, naive, batch = pair("NISE", "Naive")
    impressions, risk = counterfactual(nise, batch)
    of_naive, naive_risk = counterfactual(naive, batch)
    ours, theirs = (
        cvr_logit_gradient(risk, impressions),
        cvr_logit_gradient(naive_risk, of_naive),
    )
    clicked, logit = impressions.click > 0, impressions.logit["cvr"].detach()
    share = clicked.float().mean()  # the one is a mean over D, the other over O
    torch.testing.assert_close(ours[clicked], theirs[clicked] * share)
    predicted = torch.sigmoid(logit)
    expected = -logit * predicted * (1 - predicted) / len(batch)
    torch.testing.assert_close(ours[~clicked], expected[~clicked])


@pytest.mark.parametrize("limit", [0.01, 50.0])
def test_nise_weighs_the_cvr_risk_to_the_size_of_the_ctr_risk(build, limit):
    built = build("NISE", cvr_weight_limit=limit, counterfactual_weight=0.5)
    risks = built.model.task_risks(built.batch)
    ctr, cvr = built.model.calculate_loss(built.batch)
    assert ctr == risks["ctr"]
    expected = 0.5 * (limit * risks["cvr"] if limit < 1 else risks["ctr"])
    assert cvr.item() == pytest.approx(expected.item(), rel=1e-5)
    assert built.model.weighted({"ctr": risks["ctr"], "cvr": 0 * risks["cvr"]})["cvr"] == 0


# ------------------------------------------------------------------ DDPO


def test_ddpo_labels_what_has_not_converted_by_its_tower_of_clicks(build):
    built = build("DDPO", propensity_floor=0.3)
    spread(built.model, built.batch)
    impressions, risk = counterfactual(built.model, built.batch)
    click, logit = impressions.click, impressions.logit
    soft = torch.sigmoid(logit["conversion"].detach())
    label = torch.where(impressions.conversion > 0, 1.0, soft)
    pctr = torch.sigmoid(logit["ctr"].detach())
    weights = click / pctr.clamp(min=0.3), (1 - click) / (1 - pctr).clamp(min=0.3)
    weight = sum(w / w.sum() for w in weights)
    expected = weight * (torch.sigmoid(logit["cvr"].detach()) - label)
    torch.testing.assert_close(cvr_logit_gradient(risk, impressions), expected)


def test_the_tower_of_ddpos_labels_is_the_naive_one(build):
    built = build("DDPO")
    impressions = built.model.impressions(built.batch)
    risk = built.model.risks(impressions)["conversion"]
    click, logit = impressions.click, impressions.logit["conversion"]
    grad = cvr_logit_gradient(risk, impressions, "conversion")
    expected = click * (torch.sigmoid(logit) - impressions.conversion) / len(click)
    torch.testing.assert_close(grad, expected)
    assert built.config["conversion_weight"] == built.config["counterfactual_weight"] == 1


# ------------------------------------------------------------------ DCMT


def parts_of_dcmt(impressions):
    """Σ_O wδ and Σ_N w*δ* with the weights of each normalised, and the prior, in float64."""
    click, propensity = impressions.click.double(), impressions.propensity.double()
    cvr, star = (
        torch.sigmoid(impressions.logit[t].double()) for t in ("cvr", "counterfactual_cvr")
    )
    weight = click / propensity
    pctr = torch.sigmoid(impressions.logit["ctr"].double())  # before any floor
    assert (pctr < 0.3).any()
    assert (pctr > 0.7).any()
    counter_weight = (1 - click) / (1 - pctr).clamp(min=0.3)
    conversion = impressions.conversion.double()
    error = -(conversion * cvr.log() + (1 - conversion) * (1 - cvr).log())
    return (
        (weight * error).sum() / weight.sum(),
        (counter_weight * -star.log()).sum() / counter_weight.sum(),  # r* = 1 where o = 0
        (1 - cvr - star).abs().mean(),
    )


@pytest.mark.parametrize("prior_weight", [0, 0.001, 2.5])
def test_dcmt_is_what_the_paper_says(build, prior_weight):
    built = build("DCMT", counterfactual_prior_weight=prior_weight, propensity_floor=0.3)
    spread(built.model, built.batch)
    impressions, risk = counterfactual(built.model, built.batch)
    factual, counter, prior = parts_of_dcmt(impressions)
    expected = factual + counter + prior_weight * prior
    assert risk.item() == pytest.approx(expected.item(), rel=1e-5)
    defaults = build("DCMT").config
    assert defaults["counterfactual_prior_weight"] == 0.001
    assert defaults["counterfactual_weight"] == defaults["global_weight"] == 1


def test_each_world_of_dcmt_moves_its_own_tower(build):
    built = build("DCMT", counterfactual_prior_weight=0)
    impressions, risk = counterfactual(built.model, built.batch)
    clicked = impressions.click > 0
    factual = cvr_logit_gradient(risk, impressions)
    counter = cvr_logit_gradient(risk, impressions, "counterfactual_cvr")
    assert factual[clicked].all()
    assert not factual[~clicked].any()
    assert not counter[clicked].any()
    assert (counter[~clicked] < 0).all()  # towards r* = 1


def test_the_counterfactual_prior_pulls_the_two_rates_to_a_sum_of_one(build):
    model, batch = (built := build("DCMT", counterfactual_prior_weight=1e4)).model, built.batch

    def distance():
        logit = model(batch)
        both = torch.sigmoid(logit["cvr"]) + torch.sigmoid(logit["counterfactual_cvr"])
        return (1 - both).abs().mean().item()

    with torch.no_grad():
        model.towers["cvr"][-1].bias += 2
    before = distance()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        counterfactual(model, batch)[1].backward()
        optimizer.step()
    assert before > 0.3
    assert distance() < 0.1 * before


def test_dcmts_weights_are_normalised_within_each_space(build):
    """Twice the batch is the same risk, and so is one in which the clicks are repeated."""
    built = build("DCMT", counterfactual_prior_weight=0)
    batch = built.batch
    risk = counterfactual(built.model, batch)[1].item()
    index = torch.cat([torch.arange(len(batch)), *[(batch["click"] > 0).nonzero().squeeze(1)] * 3])
    repeated = Interaction({name: batch[name][index] for name in batch})
    assert counterfactual(built.model, repeated)[1].item() == pytest.approx(risk, rel=1e-5)
    impressions = built.model.impressions(batch)
    more = built.model.impressions(repeated)
    ips = [ips_risk(i.error, i.click, i.propensity).item() for i in (impressions, more)]
    assert ips[1] > 1.3 * ips[0]  # IPS isn't


# ------------------------------------------------------------------ AITM


def test_aitm_predicts_ctcvr_itself_and_cvr_is_the_ratio(build):
    model, batch = (built := build("AITM")).model, built.batch
    assert list(model.towers) == ["ctr", "ctcvr"]
    with torch.no_grad():
        model.towers["ctr"][-1].weight *= 30  # some below and some above pctcvr
        model.towers["ctcvr"][-1].bias -= 1
    logit, probability = model(batch), model.predict_tasks(batch)
    assert torch.equal(probability["ctcvr"], torch.sigmoid(logit["ctcvr"]))
    assert list(probability) == ["ctr", "cvr", "ctcvr"]
    ratio = probability["ctcvr"] / probability["ctr"]
    assert (ratio > 1).any()
    assert (ratio < 1).any()
    torch.testing.assert_close(probability["cvr"], ratio.clamp(max=1))


def test_the_calibrator_counts_only_where_a_conversion_is_likelier_than_its_click(build):
    built = build("AITM", global_weight=0)
    model = built.model
    with torch.no_grad():
        model.towers["ctr"][-1].weight *= 30
    impressions = model.impressions(built.batch)
    risk = model.risks(impressions)["calibrator"]
    excess = torch.sigmoid(impressions.logit["ctcvr"]) - torch.sigmoid(impressions.logit["ctr"])
    broken = excess > 0
    assert 0 < broken.sum() < len(broken)
    assert risk.item() == pytest.approx((excess[broken].sum() / len(broken)).item(), rel=1e-5)
    ctr = cvr_logit_gradient(risk, impressions, "ctr")
    ctcvr = cvr_logit_gradient(risk, impressions, "ctcvr")
    assert (ctr[broken] < 0).all()
    assert (ctcvr[broken] > 0).all()
    assert not ctr[~broken].any()
    assert not ctcvr[~broken].any()
    weighted = model.weighted(model.risks(impressions))
    assert weighted["calibrator"] == 0.6 * risk
    assert model.calculate_loss(built.batch)[1] == 0  # λg


def test_the_transfer_is_attention_over_the_tasks_own_and_the_handed_on_layer():
    torch.manual_seed(0)
    transfer = InformationTransfer(4, 0.0)
    own, previous = torch.randn(7, 4), torch.randn(7, 4)
    handed_on = torch.relu(transfer.information[0](previous))
    query, key, value = transfer.query.weight, transfer.key.weight, transfer.value.weight
    scores = [((u @ query.T) * (u @ key.T)).sum(dim=1) / 2 for u in (own, handed_on)]
    share = torch.sigmoid(scores[0] - scores[1]).unsqueeze(1)
    expected = share * (own @ value.T) + (1 - share) * (handed_on @ value.T)
    torch.testing.assert_close(transfer(own, previous), expected)


def test_the_ctcvr_risk_teaches_the_hidden_layers_of_the_ctr_tower_but_not_its_head(build):
    built = build("AITM")
    built.model.task_risks(built.batch)["ctcvr"].backward()
    hidden, head = built.model.towers["ctr"]
    assert all(p.grad.any() for p in hidden.parameters())
    assert all(p.grad is None for p in head.parameters())


def test_aitm_needs_hidden_layers(build):
    build("AITM", backbone="ple")
    with pytest.raises(UsageError, match="choose backbone separate, shared_bottom"):
        build("AITM", backbone="DeepFM")
