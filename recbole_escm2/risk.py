"""The risks of entire-space CVR estimation: pure functions on tensors.

Notation (names in code): ``click`` is o, ``conversion`` is r, ``propensity`` is ô used as a
weight, ``error`` is δ = BCE(r, r̂), ``imputed_error`` is δ̂, D is the set of impressions at hand.

Every function takes one-dimensional tensors of one length |D| and returns the mean over D as a
scalar tensor, unless it says otherwise. ``error`` on an impression without a click never counts,
whatever it holds (not even NaN), so neither does its conversion label. No function floors or clips
the propensity: the caller decides that.

Most take the impressions' weights w, which multiply what an impression adds: (1/|D|) Σ w·x in
place of (1/|D|) Σ x, and likewise in the sums that a self-normalised risk divides by. With weights
of mean 1 that is the mean over D with each impression repeated w times.

Each raises ``ValueError`` where shapes differ (broadcasting would silently average over pairs of
impressions) or where there is no impression.

Sources: ESMM (Ma et al., SIGIR 2018), Multi-IPW and Multi-DR (Zhang et al., WWW 2020), DR-JL
(Wang et al., ICML 2019), MRDR (Guo et al., SIGIR 2021), ESCM² (Wang et al., SIGIR 2022), DR-BIAS
(Dai et al., KDD 2022), DCMT (Zhu et al., ICDE 2023), IPS-V2 and DR-V2 (Li et al., ICML 2023),
StableDR and TDR (Li et al., ICLR 2023), NISE (RecSys 2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "balancing_risk",
    "binary_cross_entropy",
    "click_space_risk",
    "ctcvr_risk",
    "ctr_risk",
    "dr_bias_imputation_risk",
    "dr_risk",
    "imputation_risk",
    "ips_risk",
    "mrdr_imputation_risk",
    "positives_weighted",
    "self_normalized",
    "snips_risk",
    "stabilizing_risk",
    "targeted_imputation",
    "unclicked_entropy",
    "weighted_mean",
    "without_pos_weight",
]


def _check(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"one-dimensional tensors of one length are needed, got shapes {shapes}")
    if 0 in next(iter(shapes.values())):
        raise ValueError("a risk is a mean over impressions, and there is none")


def weighted_mean(value: Tensor, weight: Tensor | None = None) -> Tensor:
    """(1/|D|) Σ w·x.

    Args:
        value: x of each impression, ``[|D|]``.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    if weight is None:
        return value.mean()
    _check(value=value, weight=weight)
    return (weight * value).mean()


def binary_cross_entropy(target: Tensor, logit: Tensor, pos_weight: float = 1.0) -> Tensor:
    """BCE(t, σ(x)) = −t·log σ(x) − (1 − t)·log σ(−x) for each impression, differentiable in both.

    Args:
        target: probabilities or 0/1 labels t, any shape.
        logit: logits x of the prediction, the same shape.
        pos_weight: a factor of the first term, as in torch. With p it is least where the odds of
            the prediction are p times those of t.

    Returns:
        The cross entropy in nats, the same shape; right for logits of any size and sign.

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != logit.shape:
        raise ValueError(f"target {tuple(target.shape)} and logit {tuple(logit.shape)} must match")
    positive = target if pos_weight == 1 else pos_weight * target
    return positive * F.softplus(-logit) + (1 - target) * F.softplus(logit)


def positives_weighted(
    weight: Tensor | None, label: Tensor, pos_weight: float = 1.0
) -> Tensor | None:
    """The weights with which any risk counts positives ``pos_weight`` times as much.

    Args:
        weight: w, ``[|D|]``, or None for 1.
        label: 0 or 1, ``[|D|]``.
        pos_weight: as for :func:`binary_cross_entropy`, > 0.

    Returns:
        w·(1 + (p − 1)·y), or None where that is 1 for all.
    """
    if pos_weight == 1:
        return weight
    factor = torch.where(label > 0, pos_weight, 1.0)
    return factor if weight is None else weight * factor


def without_pos_weight(probability: Any, pos_weight: float) -> Any:
    """What a probability that was learned with a ``pos_weight`` stands for: q/(q + p·(1 − q)).

    With p the odds of the prediction q are p times those of the probability of a positive.

    Args:
        probability: q, a tensor or an array of any shape.
        pos_weight: p > 0.
    """
    if pos_weight == 1:
        return probability
    return probability / (probability + pos_weight * (1 - probability))


def ctr_risk(ctr_logit: Tensor, click: Tensor, weight: Tensor | None = None) -> Tensor:
    """Empirical risk of the CTR tower: (1/|D|) Σ BCE(o, ô) (ESMM, eq. 4, first term).

    Args:
        ctr_logit: logit of ô, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    _check(ctr_logit=ctr_logit, click=click)
    return weighted_mean(binary_cross_entropy(click, ctr_logit), weight)


class _CTCVRCrossEntropy(torch.autograd.Function):
    """BCE(y, σ(a)σ(b)) on logits a and b, with its gradient in closed form.

    With p = σ(a)σ(b):  −∂log p/∂a = −σ(−a)  and  −∂log(1−p)/∂a = p·σ(−a)/(1−p).
    As 1 − p ≥ σ(−a), the latter lies in [0, 1], and its logarithm is a sum of logarithms that
    don't overflow; a composed graph multiplies an infinite odds p/(1−p) by a zero σ(−a) instead.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, y)
        log_p, log_not_p, _, _ = _log_product(a, b)
        return torch.where(y > 0, -y * log_p, 0.0) - torch.where(y < 1, (1 - y) * log_not_p, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, y = ctx.saved_tensors
        log_p, log_not_p, log_not_a, log_not_b = _log_product(a, b)

        def gradient(log_not: Tensor) -> Tensor:
            return (1 - y) * torch.exp(log_p + log_not - log_not_p) - y * torch.exp(log_not)

        return grad * gradient(log_not_a), grad * gradient(log_not_b), None


def _log_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, log(1 − p), log σ(−a), log σ(−b) for p = σ(a)σ(b), without cancellation.

    1 − p is 1 − eˣ where p is at most a half and σ(−a) + σ(a)σ(−b) elsewhere: the first loses
    all digits as p → 1, the second as p → 0.
    """
    log_a, log_b = F.logsigmoid(a), F.logsigmoid(b)
    log_not_a, log_not_b = F.logsigmoid(-a), F.logsigmoid(-b)
    log_p = log_a + log_b
    small = log_p < -math.log(2)
    log_not_p = torch.where(
        small,
        torch.log1p(-torch.exp(torch.where(small, log_p, -1.0))),
        torch.logaddexp(log_not_a, log_a + log_not_b),
    )
    return log_p, log_not_p, log_not_a, log_not_b


def ctcvr_risk(
    ctr_logit: Tensor, cvr_logit: Tensor, ctcvr: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Global risk: (1/|D|) Σ BCE(o·r, ô·r̂) (ESMM, eq. 4, second term; ESCM², L_CTCVR).

    Computed on logits, so that loss and gradient hold at pctcvr = 1e-12 and stay finite for
    logits of ±1e4. The gradient reaches both towers.

    Args:
        ctr_logit: logit of ô, ``[|D|]``.
        cvr_logit: logit of r̂, ``[|D|]``.
        ctcvr: the label o·r in {0, 1}, ``[|D|]``.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    _check(ctr_logit=ctr_logit, cvr_logit=cvr_logit, ctcvr=ctcvr)
    loss: Tensor = _CTCVRCrossEntropy.apply(ctr_logit, cvr_logit, ctcvr)
    return weighted_mean(loss, weight)


def _clicked_over(click: Tensor, propensity: Tensor) -> Tensor:
    """o/ô, 0 without a click, whatever ô is there; with the gradient of ô."""
    return click / torch.where(click > 0, propensity, 1.0)


def _clicked_over_propensity(click: Tensor, propensity: Tensor) -> Tensor:
    """o/ô as a constant: no gradient may reach the CTR tower through the propensity."""
    return _clicked_over(click, propensity.detach())


def _of_clicked(error: Tensor, click: Tensor) -> Tensor:
    return torch.where(click > 0, error, 0.0)


def _imputation_terms(
    error: Tensor, imputed_error: Tensor, click: Tensor, propensity: Tensor
) -> tuple[Tensor, Tensor]:
    """o/ô, and o(δ − δ̂)² with δ as a constant: no gradient may reach the CVR tower through it."""
    _check(error=error, imputed_error=imputed_error, click=click, propensity=propensity)
    square = _of_clicked(error.detach() - imputed_error, click).square()
    return _clicked_over_propensity(click, propensity), square


def self_normalized(propensity: Tensor, click: Tensor, weight: Tensor | None = None) -> Tensor:
    """ô·(1/|D|) Σ o/ô: the propensity by which the weights o/ô of D add up to |D|.

    With it each risk here becomes its self-normalised form, Σ o·x/ô / Σ o/ô in place of
    (1/|D|) Σ o·x/ô: SNIPS (Swaminathan & Joachims, "The Self-Normalized Estimator for
    Counterfactual Learning", NIPS 2015; for recommendation Schnabel et al., ICML 2016, section
    3.3) for :func:`ips_risk`; for :func:`dr_risk` (1/|D|) Σ δ̂ + Σ [o(δ − δ̂)/ô] / Σ o/ô. It is
    consistent with the true propensity, no longer unbiased, and doesn't change when all
    propensities are wrong by one factor.

    Args:
        propensity: ô > 0 where o = 1, ``[|D|]``; detached here.
        click: o in {0, 1}, ``[|D|]``.
        weight: w of each impression, ``[|D|]``; 1 by default. The weights are then w·o/ô.

    Returns:
        ``[|D|]``; may exceed 1. Without a click there is nothing to normalise: ô as it came.
    """
    _check(propensity=propensity, click=click)
    total = weighted_mean(_clicked_over_propensity(click, propensity), weight)
    return propensity.detach() * torch.where(total > 0, total, 1.0)


def ips_risk(
    error: Tensor, click: Tensor, propensity: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Inverse-propensity-score risk: (1/|D|) Σ o·δ/ô (ESCM², R_IPS; Multi-IPW).

    Unbiased for the mean of δ over D when the propensity is the true click probability.

    Args:
        error: δ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``; detached here.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    _check(error=error, click=click, propensity=propensity)
    return weighted_mean(
        _clicked_over_propensity(click, propensity) * _of_clicked(error, click), weight
    )


def snips_risk(
    error: Tensor, click: Tensor, propensity: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Self-normalised IPS risk: (Σ o·δ/ô) / (Σ o/ô), the sums over the impressions at hand.

    Swaminathan and Joachims, NeurIPS 2015; in CVR estimation DCMT (Zhu et al., ICDE 2023). Biased,
    but consistent, with less variance than IPS. 0 where there is no click.

    Args:
        error: δ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô in (0, 1] where o = 1, ``[|D|]``; detached here.
        weight: w of each impression, ``[|D|]``; 1 by default. (Σ w·o·δ/ô) / (Σ w·o/ô).
    """
    _check(error=error, click=click, propensity=propensity)
    return ips_risk(error, click, self_normalized(propensity, click, weight), weight)


def click_space_risk(error: Tensor, click: Tensor, weight: Tensor | None = None) -> Tensor:
    """Naive risk: (1/|O|) Σ o·δ, the mean error over the click space. 0 where there is no click.

    Biased for the mean over D wherever clicks select the impressions with another error.

    Args:
        error: δ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        weight: w of each impression, ``[|D|]``; 1 by default. (Σ w·o·δ) / (Σ w·o).
    """
    _check(error=error, click=click)
    return snips_risk(error, click, torch.ones_like(click), weight)


def dr_risk(
    error: Tensor,
    imputed_error: Tensor,
    click: Tensor,
    propensity: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Doubly robust risk: (1/|D|) Σ [δ̂ + o(δ − δ̂)/ô] (ESCM², R_DR; Multi-DR).

    Unbiased for the mean of δ over D when the propensity or the imputed error is right.

    Args:
        error: δ for each impression, ``[|D|]``.
        imputed_error: δ̂ for each impression, ``[|D|]``. Its gradient is left as it came: detach
            whatever the imputation tower produced, because minimising this risk over δ̂ drives δ̂
            to 0 wherever the floored propensity exceeds the click probability.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``; detached here.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    _check(error=error, imputed_error=imputed_error, click=click, propensity=propensity)
    residual = _of_clicked(error - imputed_error, click)
    return weighted_mean(
        imputed_error + _clicked_over_propensity(click, propensity) * residual, weight
    )


def imputation_risk(
    error: Tensor,
    imputed_error: Tensor,
    click: Tensor,
    propensity: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Risk of the imputation tower: (1/|D|) Σ o(δ − δ̂)²/ô (ESCM², R_DR^imp; DR-JL).

    Args:
        error: δ for each impression, ``[|D|]``; detached here: it is the target.
        imputed_error: δ̂ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``; detached here.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    inverse, square = _imputation_terms(error, imputed_error, click, propensity)
    return weighted_mean(inverse * square, weight)


def mrdr_imputation_risk(
    error: Tensor,
    imputed_error: Tensor,
    click: Tensor,
    propensity: Tensor,
    click_probability: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Imputation risk of MRDR: (1/|D|) Σ o·(1 − p)/ô²·(δ − δ̂)² (Guo et al., SIGIR 2021, L_e^MRDR).

    |D| times an unbiased estimate of the DR risk's variance, (1/|D|²) Σ p(1 − p)/ô²·(δ − δ̂)², so
    the imputation that minimises it is the one with which DR varies least. In the paper p = ô.

    Args:
        error: δ for each impression, ``[|D|]``; detached here: it is the target.
        imputed_error: δ̂ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``, by which the DR risk divides; detached here.
        click_probability: p in [0, 1], ``[|D|]``, where ô was floored; ô by default; detached here.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    probability = propensity if click_probability is None else click_probability
    inverse, square = _imputation_terms(error, imputed_error, click, propensity)
    _check(click=click, click_probability=probability)
    variance = _of_clicked(1 - probability.detach(), click)
    return weighted_mean(inverse.square() * variance * square, weight)


def dr_bias_imputation_risk(
    error: Tensor,
    imputed_error: Tensor,
    click: Tensor,
    propensity: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Imputation risk of DR-BIAS: (1/|D|) Σ o·(1 − ô)²/ô³·(δ − δ̂)² (Dai et al., KDD 2022).

    The DR risk errs by (o/ô − 1)(δ − δ̂) on an impression; this is its square over the clicks, each
    of which counts 1/ô, so it wants δ̂ right where the propensity is small, more than
    :func:`mrdr_imputation_risk` does. An impression with ô = 1 counts nothing.

    Args:
        error: δ for each impression, ``[|D|]``; detached here: it is the target.
        imputed_error: δ̂ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``, by which the DR risk divides; detached here.
        weight: w of each impression, ``[|D|]``; 1 by default.
    """
    inverse, square = _imputation_terms(error, imputed_error, click, propensity)
    return weighted_mean(inverse * (inverse - 1).square() * square, weight)


def balancing_risk(balanced: Tensor, click: Tensor, propensity: Tensor, rest: Tensor) -> Tensor:
    """((1/|D|) Σ [o/ô − (1 − o)/(1 − ô)]·φ)², the balancing error of IPS-V2 and DR-V2.

    With the true propensity the clicks, weighted by 1/ô, and the other impressions, weighted by
    1/(1 − ô), have the same mean of any function φ of the features; this is how far they are apart
    (Li et al., "Propensity Matters", ICML 2023, BMSE).

    Args:
        balanced: φ, such as r̂, for each impression, ``[|D|]``; detached here: it is to be balanced,
            not to be made small.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``. Its gradient is left as it came: this risk alone
            teaches the propensity.
        rest: 1 − ô > 0 where o = 0, ``[|D|]``, with its gradient.
    """
    _check(balanced=balanced, click=click, propensity=propensity, rest=rest)
    clicked = click > 0
    of_clicked = 1 / torch.where(clicked, propensity, 1.0)
    of_others = 1 / torch.where(clicked, 1.0, rest)
    difference = torch.where(clicked, of_clicked, -of_others)
    return (difference * balanced.detach()).mean().square()


def stabilizing_risk(imputed_error: Tensor, click: Tensor, propensity: Tensor) -> Tensor:
    """((1/|D|) Σ (1 − o/ô)(δ̂ − mean δ̂))², StableDR's constraint on the propensity as a penalty.

    Where it is 0, the mean imputed error of D is that of its clicks weighted by o/ô, so that the
    self-normalised IPS risk is doubly robust (Li et al., "StableDR", ICLR 2023).

    Args:
        imputed_error: δ̂ for each impression, ``[|D|]``; detached here.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 where o = 1, ``[|D|]``; its gradient is left as it came.
    """
    _check(imputed_error=imputed_error, click=click, propensity=propensity)
    imputed_error = imputed_error.detach()
    weight = _clicked_over(click, propensity)
    return ((1 - weight) * (imputed_error - imputed_error.mean())).mean().square()


def unclicked_entropy(cvr_logit: Tensor, click: Tensor) -> Tensor:
    """(1/|D|) Σ (1 − o)·H(r̂) with H(r̂) = BCE(r̂, r̂), the entropy of what is predicted (NISE).

    Its gradient makes a prediction surer of what it says already.

    Args:
        cvr_logit: logit of r̂, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
    """
    _check(cvr_logit=cvr_logit, click=click)
    return ((1 - click) * binary_cross_entropy(torch.sigmoid(cvr_logit), cvr_logit)).mean()


def targeted_imputation(
    error: Tensor, imputed_error: Tensor, click: Tensor, propensity: Tensor
) -> Tensor:
    """δ̃ = δ̂ + η(1/ô − 1) for each impression, the imputed error of TDR, ``[|D|]``.

    η is the least-squares fit of δ̃ to δ over the clicks, η = Σ o·h(δ − δ̂) / Σ o·h² with
    h = 1/ô − 1, so that Σ o·h(δ − δ̃) = 0. The doubly robust risk with δ̃ then is
    (1/|D|) Σ [o·δ + (1 − o)·δ̃]: nothing is weighted by o/ô any more (Li et al., "TDR-CL: Targeted
    Doubly Robust Collaborative Learning for Debiased Recommendations", ICLR 2023).

    Args:
        error: δ for each impression, ``[|D|]``.
        imputed_error: δ̂ for each impression, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô > 0 of all impressions, ``[|D|]``; detached here.

    Returns:
        δ̃ with the gradients of δ and δ̂, η being a function of both; δ̂ itself where no click has
        ô < 1.
    """
    _check(error=error, imputed_error=imputed_error, click=click, propensity=propensity)
    h = 1 / propensity.detach() - 1
    residual = _of_clicked(error - imputed_error, click)
    squares = (click * h.square()).sum()
    eta = (click * h * residual).sum() / torch.where(squares > 0, squares, 1.0)
    return imputed_error + eta * h
