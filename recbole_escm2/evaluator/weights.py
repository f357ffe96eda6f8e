"""How much an inverse-propensity weighting can be trusted, from the weights themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.evaluator.metrics import class_scores, ece

#: An effective sample of more than this share of the clicks: the weights do nearly nothing.
NEARLY_CONSTANT = 0.95
#: A floor that more than this share of the clicks is at is what makes the weights alike.
MOST = 0.5
#: An effective sample of less than this share of the clicks: a few of them do nearly everything.
HANDFUL = 0.05


@dataclass(frozen=True)
class WeightDiagnostics:
    """The weights w = o/max(ô, floor) of a split, or others that a model has.

    At a click rate below the floor nearly all clicked impressions stand at the floor; their
    weights are equal, and IPS is nearly the naive click-space estimate.

    Attributes:
        clicks: clicked impressions.
        share_at_floor: share of the clicked impressions with ô below the floor.
        effective_sample_size: (Σw)²/Σw² over clicks, at most ``clicks``; all weights equal gives
            ``clicks``, a few large ones, or infinite ones, give their number (Kish, Survey
            Sampling, 1965).
        mean_weight_unfloored: mean of o/ô over D; 1 where ô is calibrated.
        mean_weight: mean of w over D.
        largest_weight: the largest w.
        propensity_ece: expected calibration error of ô before the floor against o, over D, in ten
            bins of equal mass; that of the epochs before, where it is fitted anew after them.
    """

    clicks: int
    share_at_floor: float
    effective_sample_size: float
    mean_weight_unfloored: float
    mean_weight: float
    largest_weight: float
    propensity_ece: float

    @classmethod
    def of(
        cls,
        click: NDArray[Any],
        pctr: NDArray[Any],
        floor: float,
        denominator: NDArray[Any],
    ) -> WeightDiagnostics | None:
        """The diagnostics of a split; None without a click.

        Args:
            click: o, ``[|D|]``.
            pctr: ô, ``[|D|]``.
            floor: of ô.
            denominator: what o is divided by, such as max(ô, floor), ``[|D|]``.
        """
        clicked = np.asarray(click) > 0
        propensity = np.asarray(pctr, dtype=np.float64)[clicked]
        if not len(propensity):
            return None
        divisor = np.asarray(denominator, dtype=np.float64)[clicked]
        with np.errstate(divide="ignore"):  # 1/0 is infinite, as it should be
            unfloored, weight = 1 / propensity, 1 / divisor
        return cls(
            clicks=len(propensity),
            share_at_floor=float(np.mean(propensity < floor)),
            effective_sample_size=_effective_sample_size(weight),
            mean_weight_unfloored=float(unfloored.sum() / len(click)),
            mean_weight=float(weight.sum() / len(click)),
            largest_weight=float(weight.max()),
            propensity_ece=_calibration_error(clicked, np.asarray(pctr)),
        )

    @property
    def warning(self) -> str | None:
        """What is wrong with the weights as weights, and what may help; None where nothing is."""
        kept = self.effective_sample_size / self.clicks
        if not np.isfinite(self.largest_weight):
            if np.isnan(self.largest_weight):
                return "some propensity weights are no numbers, and so is the counterfactual risk"
            return (
                f"a propensity of 0 gives {self.effective_sample_size:,.0f} of {self.clicks:,} "
                "clicks an infinite weight: a propensity_floor above 0 bounds it"
            )
        if self.clicks > 1 and kept > NEARLY_CONSTANT:
            floored = self.share_at_floor > MOST
            return (
                f"the propensity weights are nearly constant (effective sample {kept:.1%} of the "
                f"clicks, {self.share_at_floor:.1%} at the floor), so that the counterfactual risk "
                "is nearly the click-space one"
                + (": a smaller propensity_floor lets them differ" if floored else "")
            )
        if kept < HANDFUL:
            return (
                f"a handful of impressions carry the counterfactual risk (effective sample "
                f"{self.effective_sample_size:,.0f} of {self.clicks:,} clicks, largest weight "
                f"{self.largest_weight:,.0f}): a larger propensity_floor steadies it"
            )
        return None

    def as_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.share_at_floor:.1%} of {self.clicks:,} clicks at the floor, effective sample "
            f"{self.effective_sample_size:,.0f}, mean weight over D {self.mean_weight:.3f} "
            f"(of 1/pCTR {self.mean_weight_unfloored:.3f}), largest {self.largest_weight:.1f}, "
            f"ECE of the propensity {self.propensity_ece:.4f}"
        )


def _calibration_error(clicked: NDArray[np.bool_], propensity: NDArray[Any]) -> float:
    """The ECE of ô against o; not a number where some ô is none."""
    finite = bool(np.isfinite(propensity).all())
    return ece(class_scores(clicked, propensity)) if finite else float("nan")


def _effective_sample_size(weight: NDArray[np.float64]) -> float:
    """(Σw)²/Σw² of weights >= 0, and of infinite ones its limit: their number."""
    largest = weight.max()
    if np.isposinf(largest):
        return float(np.isposinf(weight).sum())
    relative = weight / largest  # whose squares don't overflow
    return float(relative.sum() ** 2 / np.square(relative).sum())
