"""Estimators of a prediction's mean error over D from its errors on clicks.

What :mod:`recbole_escm2.risk` minimises in training, here to evaluate a prediction that is given:
pure functions on one-dimensional tensors of one length |D|, in that module's notation, with a
scalar out. Each estimates the mean over D of δ = BCE(r, r̂), r the potential conversion; what
makes it right stands in its docstring. ``scripts/estimators.py`` measures them.

Sources: Schnabel et al., ICML 2016 (naive, IPS, SNIPS, the noisy propensity); DR-JL (Wang et al.,
ICML 2019: EIB, DR); MRDR (Guo et al., SIGIR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_escm2.risk import binary_cross_entropy, dr_risk, ips_risk, self_normalized

__all__ = [
    "ESTIMATORS",
    "SLOPE_FLOORS",
    "Sample",
    "constant_imputation",
    "eib",
    "mrdr_weight",
    "naive",
    "noisy_propensity",
    "slope_floor",
    "snips",
]


def naive(error: Tensor, click: Tensor) -> Tensor:
    """Σ o·δ / Σ o, the mean over O. Consistent if every impression has one click probability.

    Args:
        error: δ, ``[|D|]``; it counts where o = 1.
        click: o in {0, 1}, ``[|D|]``, not all 0.
    """
    return snips(error, click, torch.ones_like(error))


def snips(error: Tensor, click: Tensor, propensity: Tensor) -> Tensor:
    """Σ (o/ô)δ / Σ o/ô (Swaminathan & Joachims, NIPS 2015). Consistent if ô ∝ P(o = 1).

    Args:
        error: δ, ``[|D|]``; it counts where o = 1.
        click: o in {0, 1}, ``[|D|]``, not all 0.
        propensity: ô > 0, ``[|D|]``.
    """
    return ips_risk(error, click, self_normalized(propensity, click))


def eib(error: Tensor, imputed_error: Tensor, click: Tensor) -> Tensor:
    """(1/|D|) Σ [o·δ + (1 − o)·δ̂], error imputation. Unbiased if δ̂ is right where o = 0.

    It is the doubly robust risk with a propensity of 1.

    Args:
        error: δ, ``[|D|]``; it counts where o = 1.
        imputed_error: δ̂, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``.
    """
    return dr_risk(error, imputed_error, click, torch.ones_like(error))


def noisy_propensity(propensity: Tensor, click: Tensor, noise: float = 0.5) -> Tensor:
    """ô with 1/ô = (1 − β)/p + β/p_o, p_o the click rate of the sample, ``[|D|]``.

    Args:
        propensity: p, the true one, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``, not all 0.
        noise: β in [0, 1]: 0 leaves p, 1 makes all weights equal; 0.5 in MRDR.
    """
    return 1 / ((1 - noise) / propensity + noise / click.mean())


def mrdr_weight(propensity: Tensor) -> Tensor:
    """(1 − ô)/ô², the weight of (δ − δ̂)² in MRDR's imputation risk; DR's is 1/ô.

    DR has the variance (1/|D|²) Σ p(1 − p)/ô²·(δ − δ̂)²; MRDR fits δ̂ to that, with o for p.
    """
    return (1 - propensity) / propensity**2


def constant_imputation(label: Tensor, logit: Tensor, click: Tensor, weight: Tensor) -> Tensor:
    """δ̂ = BCE(γ, r̂) with one imputed label γ = Σ o·w·y / Σ o·w for all of D, ``[|D|]``.

    Args:
        label: y, what γ averages over clicks, ``[|D|]``: conversions, or, as in MRDR's public
            code, the predictions r̂ themselves.
        logit: of r̂, ``[|D|]``.
        click: o in {0, 1}, ``[|D|]``, not all 0.
        weight: w, that of the imputation risk, ``[|D|]``.
    """
    weight = click * weight
    gamma = (weight * label).sum() / weight.sum()
    return binary_cross_entropy(gamma.expand_as(logit), logit)


@dataclass(frozen=True)
class Sample:
    """A draw of clicks and conversions and a prediction for all of D; each tensor is ``[|D|]``.

    Attributes:
        click: o in {0, 1}.
        conversion: the potential conversion r; estimators look at it where o = 1 only.
        logit: of the prediction r̂.
        propensity: ô > 0.
        imputed_from: what the constant imputed label averages: ``conversions`` or ``predictions``.
    """

    click: Tensor
    conversion: Tensor
    logit: Tensor
    propensity: Tensor
    imputed_from: str = "conversions"

    @cached_property
    def error(self) -> Tensor:
        """δ = BCE(r, r̂)."""
        return binary_cross_entropy(self.conversion, self.logit)

    def imputed_error(self, weight: Tensor) -> Tensor:
        """δ̂ of :func:`constant_imputation` with some weights."""
        if self.imputed_from == "conversions":
            label = self.click * self.conversion
        else:
            label = torch.sigmoid(self.logit)
        return constant_imputation(label, self.logit, self.click, weight)

    @cached_property
    def dr_imputation(self) -> Tensor:
        """δ̂ as DR and EIB fit it, with weights 1/ô."""
        return self.imputed_error(1 / self.propensity)

    @cached_property
    def mrdr_imputation(self) -> Tensor:
        """δ̂ as MRDR fits it."""
        return self.imputed_error(mrdr_weight(self.propensity))


#: The estimators of the literature's tables. MRDR is DR with another imputation.
ESTIMATORS: dict[str, Callable[[Sample], Tensor]] = {
    "Naive": lambda s: naive(s.error, s.click),
    "EIB": lambda s: eib(s.error, s.dr_imputation, s.click),
    "IPS": lambda s: ips_risk(s.error, s.click, s.propensity),
    "SNIPS": lambda s: snips(s.error, s.click, s.propensity),
    "DR": lambda s: dr_risk(s.error, s.dr_imputation, s.click, s.propensity),
    "MRDR": lambda s: dr_risk(s.error, s.mrdr_imputation, s.click, s.propensity),
}


#: Floors that :func:`slope_floor` chooses from.
SLOPE_FLOORS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def slope_floor(
    error: NDArray[Any],
    click: NDArray[Any],
    propensity: NDArray[Any],
    floors: Sequence[float] = SLOPE_FLOORS,
    doubt: float = 0.1,
) -> float | None:
    """The floor f of the propensity for which (1/|D|) Σ o·δ/max(ô, f) is likely to err least.

    SLOPE (Su, Srinath & Krishnamurthy, "Adaptive Estimator Selection for Off-Policy Evaluation",
    ICML 2020): with a larger floor the estimate varies less and is further off. In the order of
    falling confidence widths c (Student's t, one-sided, as the tuning classes of zr-obp have it)
    floors are gone through as long as each estimate lies within c + (√6 − 1)·c' of all the earlier
    ones, c' theirs; the last of these is chosen. It takes ô to be right where no floor is at work.

    Args:
        error: δ, ``[|D|]``; it counts where o = 1.
        click: o in {0, 1}, ``[|D|]``.
        propensity: ô before any floor, ``[|D|]``.
        floors: to choose from, > 0.
        doubt: share of the estimates that may lie outside of their interval, on each side.

    Returns:
        One of the floors; None where fewer than two impressions were clicked.
    """
    from scipy import stats

    rows = len(click)
    clicked = np.asarray(click) > 0
    if np.count_nonzero(clicked) < 2:
        return None
    of_clicked, weighted_by = np.asarray(error)[clicked], np.asarray(propensity)[clicked]
    quantile = stats.t(rows - 1).ppf(1 - doubt)
    estimates = []
    for floor in floors:
        terms = of_clicked / np.maximum(weighted_by, floor)
        mean = float(terms.sum()) / rows
        variance = float(np.square(terms).sum()) / rows - mean**2
        width = quantile * math.sqrt(max(variance, 0.0) / (rows - 1))
        estimates.append((width, floor, mean))
    estimates.sort(key=lambda estimate: (-estimate[0], estimate[1]))
    chosen = estimates[0][1]
    for number, (width, floor, mean) in enumerate(estimates):
        earlier = estimates[:number]
        if any(abs(m - mean) > width + (math.sqrt(6) - 1) * w for w, _, m in earlier):
            break
        chosen = floor
    return chosen
