"""Maps from a probability to a better calibrated one, fitted on labels.

Three kinds, each of which never reverses the order of two probabilities:

* ``isotonic``: the non-decreasing step function of least squares (Zadrozny & Elkan, KDD 2002), by
  scikit-learn, linear between its steps. What a step joins becomes a tie.
* ``platt``: σ(a·logit p + b), a logistic regression on the logit (Platt, "Probabilistic Outputs for
  Support Vector Machines", 1999), by scikit-learn.
* ``temperature``: σ(logit p / T) (Guo et al., "On Calibration of Modern Neural Networks", ICML
  2017), by scipy. It leaves one half where it is, and so can't mend a wrong base rate.

The last two keep the order as it is, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

METHODS = ("isotonic", "platt", "temperature")

#: What float32 can tell from 0 and from 1: beyond, a logit would be infinite.
LEAST, MOST = float(np.finfo(np.float32).tiny), 1 - 2.0**-25
_LOG_TEMPERATURE = math.log(100)  # T lies between 1/100 and 100
# Of Platt's slope, on a logit of variance 1: finite where a logit tells the labels apart.
_WEAK_PENALTY = 1e-6


class UnfitError(ValueError):
    """There is nothing to fit a map to; the message says why."""


def logit_of(probability: Tensor) -> Tensor:
    """log p/(1 − p) in float64, finite also where float32 has rounded p to 0 or 1."""
    p = probability.double().clamp(LEAST, MOST)
    return torch.log(p) - torch.log1p(-p)


@dataclass(frozen=True)
class LogitMap:
    """σ(slope·logit p + intercept), with a slope ≥ 0."""

    slope: float
    intercept: float

    def __call__(self, probability: Tensor) -> Tensor:
        """The calibrated probability, float64, of any shape."""
        return torch.sigmoid(self.slope * logit_of(probability) + self.intercept)

    def as_state(self) -> dict[str, Any]:
        """Numbers by name."""
        return {"slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True, eq=False)
class StepMap:
    """Linear between knots, constant beyond them.

    Attributes:
        knots: probabilities in strictly rising order, float64, ``[K]``.
        values: what they become, never falling, float64, ``[K]``.
    """

    knots: Tensor
    values: Tensor

    def __call__(self, probability: Tensor) -> Tensor:
        """The calibrated probability, float64, of any shape."""
        knots, values = self.knots.to(probability.device), self.values.to(probability.device)
        if len(knots) == 1:
            return values.expand(probability.shape).clone()
        p = probability.double().clamp(float(self.knots[0]), float(self.knots[-1]))
        right = torch.searchsorted(knots, p).clamp(1, len(knots) - 1)
        low, high = knots[right - 1], knots[right]
        share = (p - low) / (high - low)
        return torch.lerp(values[right - 1], values[right], share)

    def as_state(self) -> dict[str, Any]:
        """Tensors by name."""
        return {"knots": self.knots, "values": self.values}


Map = LogitMap | StepMap


def fit_map(
    method: str,
    probability: NDArray[Any],
    label: NDArray[Any],
    weight: NDArray[Any] | None = None,
) -> Map:
    """The map that makes probabilities of labels, by weighted likelihood or least squares.

    Args:
        method: one of :data:`METHODS`.
        probability: predicted, in [0, 1], ``[N]``.
        label: 0 or 1, ``[N]``.
        weight: of the rows, > 0 and finite, ``[N]``; all alike by default.

    Raises:
        UnfitError: there is no row of either label.
    """
    label = np.asarray(label) > 0
    positives = int(np.count_nonzero(label))
    if positives in (0, len(label)):
        raise UnfitError(
            "there is no row to fit to" if not len(label) else f"all labels are {int(label[0])}"
        )
    weight = np.ones(len(label)) if weight is None else np.asarray(weight, dtype=np.float64)
    given = torch.from_numpy(np.ascontiguousarray(probability))
    if method == "isotonic":
        return _isotonic(given.double().numpy(), label, weight)
    logit = logit_of(given).numpy()
    fit = {"platt": _platt, "temperature": _temperature}[method]
    return fit(logit, label, weight / weight.mean())


def _isotonic(p: NDArray[Any], label: NDArray[Any], weight: NDArray[Any]) -> StepMap:
    from sklearn.isotonic import IsotonicRegression

    # N rows of one label don't make the other impossible: Laplace's rule of succession.
    surest = 1 / (len(label) + 2)
    regression = IsotonicRegression(y_min=surest, y_max=1 - surest, out_of_bounds="clip")
    regression.fit(p, label.astype(np.float64), sample_weight=weight)
    knots, values = regression.X_thresholds_, regression.y_thresholds_
    return StepMap(torch.from_numpy(knots.copy()), torch.from_numpy(values.copy()))


def _platt(logit: NDArray[Any], label: NDArray[Any], weight: NDArray[Any]) -> LogitMap:
    from sklearn.linear_model import LogisticRegression

    center, scale = np.average(logit, weights=weight), float(np.std(logit)) or 1.0
    regression = LogisticRegression(C=1 / _WEAK_PENALTY, max_iter=1000, tol=1e-8)
    regression.fit((logit - center)[:, None] / scale, label, sample_weight=weight)
    slope = float(regression.coef_[0, 0]) / scale
    if slope <= 0:  # the best that doesn't reverse the order knows the base rate alone
        rate = np.average(label, weights=weight)
        return LogitMap(0.0, math.log(rate / (1 - rate)))
    return LogitMap(slope, float(regression.intercept_[0]) - slope * float(center))


def _temperature(logit: NDArray[Any], label: NDArray[Any], weight: NDArray[Any]) -> LogitMap:
    from scipy.optimize import minimize_scalar

    signed = np.where(label, -logit, logit)

    def loss(log_t: float) -> float:
        return float(np.average(np.logaddexp(0, signed * math.exp(-log_t)), weights=weight))

    bounds = (-_LOG_TEMPERATURE, _LOG_TEMPERATURE)
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return LogitMap(math.exp(-float(best.x)), 0.0)


def map_of_state(state: Mapping[str, Any]) -> Map:
    """The map that gave a state, which a file may hold.

    Raises:
        ValueError: no map gives such a state.
    """
    if set(state) == {"slope", "intercept"}:
        numbers = [state["slope"], state["intercept"]]
        if all(isinstance(n, float) and math.isfinite(n) for n in numbers) and numbers[0] >= 0:
            return LogitMap(*numbers)
    elif set(state) == {"knots", "values"}:
        knots, values = state["knots"], state["values"]
        if _is_rising(knots, strictly=True) and _is_rising(values) and len(knots) == len(values):
            return StepMap(knots, values)
    raise ValueError("a calibration has a slope >= 0 and an intercept, or rising knots and values")


def _is_rising(value: Any, strictly: bool = False) -> bool:
    """Whether it is a vector of probabilities in float64 that never fall."""
    if not (isinstance(value, Tensor) and value.dtype == torch.float64 and value.dim() == 1):
        return False
    steps = value.diff()
    rises = bool((steps > 0).all() if strictly else (steps >= 0).all())
    return len(value) > 0 and rises and bool(((value >= 0) & (value <= 1)).all())
