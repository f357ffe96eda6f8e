"""The risks as estimators, by Monte Carlo, and the estimators of the literature's tables.

Bounds are of 4 standard errors, which a right estimator exceeds once in 16,000 times (and the
seeds are fixed), and narrow enough that an error of 2 % is refused: tests inject one and see it.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_escm2.data.worlds.outcomes import OutcomeRule
from recbole_escm2.data.worlds.predictions import MATRICES, prediction_matrices
from recbole_escm2.estimators import (
    ESTIMATORS,
    Sample,
    constant_imputation,
    eib,
    mrdr_weight,
    naive,
    noisy_propensity,
    snips,
)
from recbole_escm2.risk import binary_cross_entropy, dr_risk, ips_risk, self_normalized

ROOT = Path(__file__).parent.parent
Z = 4.0
DRAWS = 4000
many = settings(deadline=None, max_examples=60, derandomize=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Population:
    """2,000 impressions with known probabilities; clicked ones convert more, so naive is biased."""

    def __init__(self):
        rng = np.random.default_rng(8)
        taste = rng.normal(size=2000)
        self.p = torch.from_numpy(1 / (1 + np.exp(1.2 - taste))).clamp(0.05)
        self.q = torch.from_numpy(1 / (1 + np.exp(-1.5 * taste)))
        self.r = torch.from_numpy(rng.random(2000)) < self.q
        self.r = self.r.double()
        self.logit = torch.from_numpy(rng.normal(-1, 1, 2000))  # a prediction that knows nothing
        self.error = binary_cross_entropy(self.r, self.logit)
        self.truth = self.error.mean().item()
        #: E[δ | features] is the right imputation, δ + noise a good one, 3δ a bad one.
        self.right = self.error
        self.good = self.error * torch.from_numpy(rng.uniform(0.8, 1.2, 2000))
        self.wrong = 0.5 * self.error + 0.2
        #: A propensity that is wrong by more the rarer the click.
        self.wrong_p = self.p**0.7

    def estimates(self, estimate, draws=DRAWS, seed=0):
        """An estimate for each draw of all clicks, ``[draws]``."""
        generator = torch.Generator().manual_seed(seed)
        values = []
        for _ in range(draws):
            click = (torch.rand(2000, generator=generator, dtype=torch.float64) < self.p).double()
            values.append(estimate(click).item())
        return np.array(values)


@pytest.fixture(scope="module")
def population():
    return Population()


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


def agrees(values, expected):
    """Whether the mean of independent estimates is what is expected, within Z standard errors."""
    return abs(values.mean() - expected) <= Z * standard_error(values)


def check(values, expected):
    """They agree, and would not if either side were 2 % off."""
    assert agrees(values, expected), (values.mean() / expected - 1, standard_error(values))
    for wrong in (0.98, 1.02):
        assert not agrees(wrong * values, expected)


# ------------------------------------------------------------------ IPS and DR


def test_ips_is_unbiased_with_the_true_propensity(population):
    w = population
    check(w.estimates(lambda click: ips_risk(w.error, click, w.p)), w.truth)


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_propensity_that_is_2_percent_off_is_noticed(population, factor):
    w = population
    assert not agrees(w.estimates(lambda o: ips_risk(w.error, o, factor * w.p)), w.truth)


def test_naive_is_biased(population):
    w = population
    values = w.estimates(lambda click: naive(w.error, click), draws=500)
    assert abs(values.mean() - w.truth) > 20 * standard_error(values)
    limit = (w.p * w.error).mean() / w.p.mean()
    assert values.mean() == pytest.approx(limit.item(), rel=0.01)


@pytest.mark.parametrize(
    ("imputation", "propensity"), [("wrong", "p"), ("right", "wrong_p"), ("right", "p")]
)
def test_dr_is_unbiased_when_either_is_right(population, imputation, propensity):
    w = population
    imputed, o_hat = getattr(w, imputation), getattr(w, propensity)
    values = w.estimates(lambda click: dr_risk(w.error, imputed, click, o_hat), draws=2000)
    if imputation == "right":  # no variance at all
        assert values == pytest.approx(np.full(2000, w.truth), rel=1e-12)
    else:
        check(values, w.truth)


def test_dr_is_biased_when_both_are_wrong(population):
    """By the mean of the product of both mistakes, (δ̂ − δ)(1 − p/ô)."""
    w = population
    values = w.estimates(lambda click: dr_risk(w.error, w.wrong, click, w.wrong_p))
    bias = ((w.wrong - w.error) * (1 - w.p / w.wrong_p)).mean().item()
    assert not agrees(values, w.truth)
    assert abs(bias) > 0.02 * w.truth
    check(values, w.truth + bias)


def test_ips_is_biased_when_the_propensity_is_wrong(population):
    w = population
    values = w.estimates(lambda click: ips_risk(w.error, click, w.wrong_p))
    assert not agrees(values, w.truth)
    check(values, (w.error * w.p / w.wrong_p).mean().item())


def variance_bounds(ratio, draws):
    """Of a sample variance over its expectation, for nearly normal estimates."""
    return abs(ratio - 1) < Z * np.sqrt(2 / draws)


@pytest.mark.parametrize("imputation", ["good", "bad"])
def test_the_variance_of_dr_is_below_that_of_ips_when_imputation_is_good(population, imputation):
    """Var = (1/|D|²) Σ p(1 − p)/ô²·(δ − δ̂)², δ̂ = 0 for IPS: lower if |δ − δ̂| is below δ."""
    w = population
    imputed = w.good if imputation == "good" else 3 * w.error
    ips = w.estimates(lambda click: ips_risk(w.error, click, w.p)).var(ddof=1)
    dr = w.estimates(lambda click: dr_risk(w.error, imputed, click, w.p)).var(ddof=1)

    def predicted(residual):
        return ((1 - w.p) / w.p * residual**2).sum().item() / len(residual) ** 2

    assert variance_bounds(ips / predicted(w.error), DRAWS)
    assert variance_bounds(dr / predicted(w.error - imputed), DRAWS)
    assert dr < 0.1 * ips if imputation == "good" else dr > 3 * ips


@pytest.mark.parametrize("floor", [0.1, 0.3, 0.6])
def test_the_bias_that_a_floor_adds(population, floor):
    """With ô = max(p, f) only impressions of p < f are weighted wrongly, by p/f instead of 1.

    E[(1/|D|) Σ o·x/ô] = (1/|D|) Σ x·p/max(p, f), and so IPS (x = δ) has the bias
    −(1/|D|) Σ_{p < f} δ(1 − p/f), and DR (x = δ − δ̂) −(1/|D|) Σ_{p < f} (δ − δ̂)(1 − p/f).
    """
    w = population
    floored = w.p.clamp(min=floor)
    rare = (w.p < floor).double()

    def bias(x):
        return -(rare * x * (1 - w.p / floor)).mean().item()

    check(w.estimates(lambda o: ips_risk(w.error, o, floored)), w.truth + bias(w.error))
    residual = w.error - w.wrong
    values = w.estimates(lambda o: dr_risk(w.error, w.wrong, o, floored))
    check(values, w.truth + bias(residual))
    assert bias(w.error) < 0
    if floor >= 0.3:
        assert not agrees(w.estimates(lambda o: ips_risk(w.error, o, floored), 500), w.truth)


def test_self_normalised_ips_is_consistent_and_forgives_a_constant_factor(population):
    w = population
    for factor in (1.0, 0.5):
        values = w.estimates(lambda o, f=factor: ips_risk(w.error, o, self_normalized(f * w.p, o)))
        assert values.mean() == pytest.approx(w.truth, rel=0.005)  # biased by O(1/|D|)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_a_hidden_cause_of_click_and_conversion_biases_all_of_them(rho):
    """The true marginal propensity and the right E[δ] don't help: r depends on o given both."""
    n = 400_000
    score = np.random.default_rng(1).normal(size=n)
    rule = OutcomeRule(
        [0.2, 0.4, 0.6], [0.4, 0.3, 0.3], [2, 1, 0], click_rate=0.4, hidden_confounding=rho
    )
    drawn = rule.draw(score)
    click, r = (torch.from_numpy(a).double() for a in (drawn.click, drawn.potential_conversion))
    p, q = torch.from_numpy(drawn.true_ctr), torch.from_numpy(drawn.true_cvr)
    logit = torch.full((n,), -1.0, dtype=torch.float64)
    error, right = binary_cross_entropy(r, logit), binary_cross_entropy(q, logit)
    truth = error.mean().item()
    for estimate in (ips_risk(error, click, p), dr_risk(error, right, click, p)):
        off = abs(estimate.item() / truth - 1)
        assert off < 0.01 if rho == 0 else off > 0.05


# ------------------------------------------------------------------ Theorem 3


class Contexts:
    """Impressions of four contexts a that a model sees, and a cause b of which it sees nothing.

    b moves click and conversion, so P(r = 1 | a, o = 1) isn't P(r = 1 | do(o = 1), a); the
    propensity p(a, b) is known, as from a log.
    """

    p = torch.tensor([[0.30, 0.80], [0.25, 0.70], [0.35, 0.75], [0.30, 0.60]], dtype=torch.float64)
    q = torch.tensor([[0.35, 0.75], [0.30, 0.80], [0.25, 0.70], [0.40, 0.75]], dtype=torch.float64)
    interventional = q.mean(dim=1)  # b is a fair coin
    observational = (p * q).sum(dim=1) / p.sum(dim=1)

    def __init__(self, size, seed):
        rng = np.random.default_rng(seed)
        self.a, self.b = torch.from_numpy(rng.integers([4, 2], size=(size, 2)).T.copy())
        self.propensity = self.p[self.a, self.b]
        self.click = (torch.from_numpy(rng.random(size)) < self.propensity).double()
        r = (torch.from_numpy(rng.random(size)) < self.q[self.a, self.b]).double()
        self.conversion = r * self.click

    def fit(self, cell, cells, risk):
        """r̂ of each cell that minimises a risk, with one free logit a cell (a saturated model)."""
        logits = torch.zeros(cells, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [logits], max_iter=60, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )

        def step():
            optimizer.zero_grad()
            loss = risk(logits[cell])
            loss.backward()
            return loss

        optimizer.step(step)
        return torch.sigmoid(logits.detach())

    def ips(self, logit):
        error = binary_cross_entropy(self.conversion, logit)
        return ips_risk(error, self.click, self.propensity)

    def dr(self, logit):
        """With an imputed label that is wrong everywhere."""
        error = binary_cross_entropy(self.conversion, logit)
        imputed = binary_cross_entropy(torch.full_like(logit, 0.2), logit)
        return dr_risk(error, imputed, self.click, self.propensity)

    def naive(self, logit):
        return naive(binary_cross_entropy(self.conversion, logit), self.click)


SIZES = [2**12, 2**16, 2**20]


@pytest.fixture(scope="module")
def contexts():
    return {size: Contexts(size, seed=size) for size in SIZES}


def bound(data, predicted):
    """Z standard errors of an IPS fit in each context: Var = E[(r − r̂)²/p]/n there."""
    residual = data.click * (data.conversion - predicted[data.a]) ** 2 / data.propensity**2
    n = torch.bincount(data.a).double()
    variance = torch.zeros(4, dtype=torch.float64).index_add(0, data.a, residual) / n
    return Z * (variance / n).sqrt()


@pytest.mark.parametrize("risk", ["ips", "dr"])
def test_with_the_true_propensity_r_hat_converges_to_the_interventional_cvr(contexts, risk):
    """ESCM², theorem 3, for a saturated model: within Z/√n of P(r = 1 | do(o = 1), a)."""
    largest = []
    for size in SIZES:
        data = contexts[size]
        fitted = data.fit(data.a, 4, getattr(data, risk))
        bounds = bound(data, fitted)
        assert (abs(fitted - data.interventional) < 1.5 * bounds).all()  # DR's imputation is bad
        largest.append(bounds.max().item())
    assert largest[1] < largest[0] / 3.5  # as 1/√n, a factor of 4
    assert largest[2] < largest[1] / 3.5
    if risk == "ips":
        for wrong in (0.98, 1.02):  # a 2 % error is refused
            assert not (abs(wrong * fitted - data.interventional) < bounds).all()


def test_the_naive_estimate_of_a_restricted_model_converges_to_something_else(contexts):
    for size in SIZES[1:]:
        data = contexts[size]
        fitted = data.fit(data.a, 4, data.naive)
        assert (fitted - data.interventional > 0.05).all()
        assert (abs(fitted - data.observational) < bound(data, fitted)).all()


def test_a_model_that_sees_everything_needs_no_weights(contexts):
    """Naive is consistent there as well: gains of weighting are not to be expected."""
    data = contexts[2**20]
    cell = 2 * data.a + data.b
    truth = data.q.flatten()
    for risk in (data.naive, data.ips):
        assert abs(data.fit(cell, 8, risk) - truth).max() < 0.01


# ------------------------------------------------------------------ estimators as functions

tensors = st.integers(0, 10_000).map(
    lambda seed: torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 0.9, (4, 12)))
)


@many
@given(tensors)
def test_estimators_by_their_formulas(columns):
    error, imputed, propensity, draw = columns
    click = (draw < 0.5).double()
    click[0] = 1
    o = click > 0
    assert naive(error, click).item() == pytest.approx(error[o].mean().item())
    mixed = torch.where(o, error, imputed).mean().item()
    assert eib(error, imputed, click).item() == pytest.approx(mixed)
    expected = np.average(error[o], weights=1 / propensity[o])
    assert snips(error, click, propensity).item() == pytest.approx(expected)


@many
@given(tensors, st.sampled_from([0.0, 0.5, 1.0]))
def test_the_noisy_propensity_mixes_inverse_propensities(columns, noise):
    p, draw = columns[:2]
    click = (draw < 0.5).double()
    click[0] = 1
    found = 1 / noisy_propensity(p, click, noise)
    torch.testing.assert_close(found, (1 - noise) / p + noise / click.mean())


@many
@given(tensors)
def test_the_constant_imputation_is_the_best_constant_label(columns):
    """γ minimises Σ o·w·(y − γ)², and δ̂ is its cross entropy everywhere."""
    label, weight, logit, draw = columns
    click = (draw < 0.5).double()
    click[0] = 1
    imputed = constant_imputation(label, logit, click, weight)
    gamma = np.average(label, weights=click * weight)
    predicted = torch.sigmoid(logit)
    expected = -gamma * predicted.log() - (1 - gamma) * (1 - predicted).log()
    torch.testing.assert_close(imputed, expected)


def test_mrdr_imputes_with_less_variance_than_dr_for_the_best_constant(population):
    """Among constant errors the MRDR weights give the least variance of DR, as they are made to."""
    w = population

    def variance(constant):
        return ((1 - w.p) / w.p * (w.error - constant) ** 2).sum().item()

    def fitted(weight):
        return ((w.p * weight * w.error).sum() / (w.p * weight).sum()).item()

    best = variance(fitted(mrdr_weight(w.p)))
    assert best < variance(fitted(1 / w.p))
    for other in np.linspace(0, 2, 41):
        assert best <= variance(other)


def test_all_estimators_of_the_table_are_right_without_selection():
    """One click probability, known, and predictions of any kind: all are near the truth."""
    rng = np.random.default_rng(3)
    n = 200_000
    cvr = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], n)
    click = torch.from_numpy(rng.random(n) < 0.3).double()
    conversion = torch.from_numpy(rng.random(n) < cvr).double()
    propensity = torch.full((n,), 0.3, dtype=torch.float64)
    logit = torch.logit(torch.from_numpy(rng.permutation(cvr)))
    sample = Sample(click, conversion, logit, propensity)
    truth = sample.error.mean().item()
    for name, estimate in ESTIMATORS.items():
        assert estimate(sample).item() == pytest.approx(truth, rel=0.02), name


def test_estimators_never_see_unclicked_conversions(population):
    w = population
    click = (w.p > 0.3).double()
    other = torch.where(click > 0, w.r, 1 - w.r)
    for imputed_from in ("conversions", "predictions"):
        for name, estimate in ESTIMATORS.items():
            first, second = (
                estimate(Sample(click, r, w.logit, w.p, imputed_from)) for r in (w.r, other)
            )
            assert torch.equal(first, second), name


# ------------------------------------------------------------------ prediction matrices


def test_prediction_matrices_by_hand():
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    count = [5300, 2400, 1400, 600, 300]
    cvr = np.random.default_rng(0).permutation(np.repeat(levels, count))
    found = prediction_matrices(cvr, levels, np.random.default_rng(1))
    assert tuple(found) == MATRICES
    for name, level in (("ONE", 0.1), ("THREE", 0.3), ("FIVE", 0.5)):
        wrong = found[name] != cvr
        assert wrong.sum() == 300
        assert set(cvr[wrong]) == {level}
        assert set(found[name][wrong]) == {0.9}
    turned = dict(zip(levels, [0.9, 0.1, 0.3, 0.5, 0.7], strict=True))
    assert found["ROTATE"].tolist() == [turned[q] for q in cvr]
    coarse = dict(zip(levels, [0.5, 0.5, 0.5, 0.1, 0.1], strict=True))
    assert found["CRS"].tolist() == [coarse[q] for q in cvr]
    skew = found["SKEW"]
    assert (skew.min(), skew.max()) == (0.1, 0.9)
    at = skew[cvr == 0.5]
    assert at.mean() == pytest.approx(0.5, abs=4 * 0.25 / np.sqrt(1400))
    inside = at[(at > 0.1) & (at < 0.9)]
    assert np.quantile(inside, 0.75) - np.quantile(inside, 0.25) == pytest.approx(0.31, abs=0.05)


def test_other_levels_have_no_matrices():
    with pytest.raises(ValueError, match="five levels, got 2"):
        prediction_matrices(np.array([0.1]), [0.1, 0.9], np.random.default_rng(0))


# ------------------------------------------------------------------ the page


def test_the_command_writes_the_page(tmp_path):
    page = tmp_path / "estimators.md"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "estimators.py"), "--seeds=2", "--pairs=20000",
         f"--page={page}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    rows = re.findall(r"^\| (\w+) \|((?: \d+\.\d\d ± \d+\.\d\d \|){6})$", text, re.MULTILINE)
    assert [name for name, _ in rows] == 5 * list(ESTIMATORS)
    assert [file.name for file in tmp_path.iterdir()] == ["estimators.md"]
    # With the true propensity IPS, SNIPS, DR and MRDR are near the truth, and naive isn't.
    true_propensity = dict(rows[12:18])
    rotate = {
        name: float(cells.split("|")[3].split()[0]) for name, cells in true_propensity.items()
    }
    right = {"IPS", "SNIPS", "DR", "MRDR"}
    assert max(rotate[name] for name in right) < 5 < 15 < rotate["Naive"]
    assert len(re.findall(r"^Nearest: ONE \w+, THREE \w+, FIVE .*\.$", text, re.MULTILINE)) == 5


def test_the_page_in_the_repository_is_of_this_command():
    text = (ROOT / "results" / "estimators.md").read_text()
    assert "python scripts/estimators.py --seeds=20" in text
    assert all(f"| {name} |" in text for name in ESTIMATORS)
