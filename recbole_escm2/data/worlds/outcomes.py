"""Clicks and potential conversions with known probabilities, from a score of every pair.

The protocol of Schnabel et al. (ICML 2016), DR-JL (Wang et al., ICML 2019) and MRDR (Guo et al.,
SIGIR 2021): a pair's CVR follows from the rank of its completed rating, and its click probability
from its CVR. What isn't theirs: any strength of selection at one click rate, and a hidden cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from recbole_escm2.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What happens, and how probable it was; each array is ``[pairs]``.

    Attributes:
        true_ctr: P(o = 1).
        true_cvr: P(r = 1 | do(o = 1)).
        click: o.
        potential_conversion: r, had the pair been clicked.
    """

    true_ctr: Floats
    true_cvr: Floats
    click: NDArray[np.bool_]
    potential_conversion: NDArray[np.bool_]

    @property
    def conversion(self) -> NDArray[np.bool_]:
        """What is seen: o·r."""
        return self.click & self.potential_conversion


@dataclass(frozen=True)
class OutcomeRule:
    """How scores become clicks and conversions.

    Attributes:
        cvr_levels: the values of the true CVR, in rising order.
        cvr_shares: share of the pairs at each level, the pairs of the lowest scores first.
        propensity_steps: k of each level, in click probability ∝ 2^(−``selection_strength``·k).
        selection_strength: 0 makes clicks independent of the CVR, 1 is the protocol's p = 1/2;
            p is 2^(−strength).
        click_rate: mean click probability, had by a scale (with probabilities cut at 1); None for
            no scale, as in the protocol.
        propensity_noise: standard deviation of a normal noise on the log of the click probability,
            drawn for each pair; it is part of the true CTR and independent of conversion.
        hidden_confounding: correlation, in (−1, 1), of the two normal variables that a pair's click
            and potential conversion are drawn by. With 0 they are independent given true CTR and
            true CVR; both probabilities are right with any.
        simulation_seed: of all draws.

    Raises:
        UsageError: the lists differ in length, or shares don't add up to 1.
    """

    cvr_levels: Sequence[float]
    cvr_shares: Sequence[float]
    propensity_steps: Sequence[float]
    selection_strength: float = 1.0
    click_rate: float | None = None
    propensity_noise: float = 0.0
    hidden_confounding: float = 0.0
    simulation_seed: int = 2022

    def __post_init__(self) -> None:
        levels = len(self.cvr_levels)
        for key in ("cvr_shares", "propensity_steps"):
            if len(getattr(self, key)) != levels:
                raise UsageError(
                    f"{key} must have a value for each of the {levels} cvr_levels, got "
                    f"{getattr(self, key)!r}"
                )
        if abs(sum(self.cvr_shares) - 1) > 1e-6:
            raise UsageError(f"cvr_shares must add up to 1, got {sum(self.cvr_shares):g}")

    def draw(self, score: Floats) -> Outcomes:
        """Outcomes of all pairs.

        Args:
            score: a completed rating, or any other number that rises with the CVR, ``[pairs]``.

        Raises:
            UsageError: ``click_rate`` can't be had.
        """
        rng = np.random.default_rng(self.simulation_seed)
        level = levels_by_rank(score, self.cvr_shares)
        steps = np.asarray(self.propensity_steps, dtype=np.float64)
        ctr = np.exp2(-self.selection_strength * steps)[level]
        ctr *= np.exp(self.propensity_noise * rng.standard_normal(len(score)))
        if self.click_rate is None:
            ctr = np.minimum(ctr, 1.0)
        else:
            ctr = scaled_to_mean(ctr, self.click_rate)
        cvr = np.asarray(self.cvr_levels, dtype=np.float64)[level]
        # Two normal variables of one correlation (a Gaussian copula) leave both margins alone.
        first, second = rng.standard_normal((2, len(score)))
        rho = self.hidden_confounding
        second = rho * first + np.sqrt(1 - rho**2) * second
        return Outcomes(ctr, cvr, first < ndtri(ctr), second < ndtri(cvr))


def levels_by_rank(score: Floats, shares: Sequence[float]) -> NDArray[np.int64]:
    """Level of each score: the lowest ``shares[0]`` of them have level 0, and so on.

    Args:
        score: ``[pairs]``; equal scores count in their order.
        shares: of the levels; they add up to 1.

    Returns:
        ``[pairs]``, numbers of levels; each level's number of pairs is right to one.
    """
    ends = np.rint(np.cumsum(shares)[:-1] * len(score)).astype(np.int64)
    level = np.empty(len(score), dtype=np.int64)
    level[np.argsort(score, kind="stable")] = np.searchsorted(
        ends, np.arange(len(score)), side="right"
    )
    return level


def scaled_to_mean(value: Floats, mean: float) -> Floats:
    """min(1, s·value) with the s that makes its mean the one that is asked for.

    Args:
        value: > 0, ``[pairs]``.
        mean: in (0, 1).
    """
    low, high = 0.0, 1.0 / value.min()  # with the second all are 1
    for _ in range(100):
        middle = (low + high) / 2
        if np.minimum(1.0, middle * value).mean() < mean:
            low = middle
        else:
            high = middle
    scaled: Floats = np.minimum(1.0, high * value)
    return scaled


def outcome_rule(config: Any) -> OutcomeRule:
    """The rule that a config describes, by keys of the attributes' names."""
    return OutcomeRule(**{key: config[key] for key in OutcomeRule.__dataclass_fields__})
