"""What makes each variant different from its parent and its neighbours."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_escm2.config import acting_settings
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import find_model
from recbole_escm2.model import MODELS
from recbole_escm2.model.aitm import InformationTransfer
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
    [(model.__name__, model.__name__ not in ("Naive", "MTL_IMP", "MTL_EIB")) for model in MODELS],
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
