"""What is drawn of an evaluation: calibration, overlap of the propensities, the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.evaluator.metrics import UndefinedMetricError, equal_mass_bins
from recbole_escm2.evaluator.predictions import NotPredictedError, Predictions

_CALIBRATION_BINS = 20
_SPACES = ("ctr", "cvr", "ctcvr", "cvr_es")
# Logits of the propensity: 4.5e-5 to 1 - 4.5e-5 in steps of a quarter; the outer bins are open.
_LOGIT_EDGES = np.linspace(-10.0, 10.0, 81)
_WEIGHT_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


def calibration(predictions: Predictions) -> dict[str, dict[str, list[float]]]:
    """Mean prediction and share of positives in equal-mass bins, by space.

    Returns:
        For each of ``ctr``, ``cvr`` (over the clicked impressions), ``ctcvr`` and ``cvr_es``
        (potential conversions over D) that there is: ``rows``, ``predicted`` and ``observed``, a
        number a bin, in ascending order of the prediction.
    """
    curves = {}
    for space in _SPACES:
        try:
            cut = equal_mass_bins(predictions.scored(space).classes, _CALIBRATION_BINS)
        except (NotPredictedError, UndefinedMetricError):
            continue
        curves[space] = {
            "rows": cut.rows.tolist(),
            "predicted": (cut.predicted / cut.rows).tolist(),
            "observed": (cut.positives / cut.rows).tolist(),
        }
    return curves


def overlap(predictions: Predictions) -> dict[str, list[float]] | None:
    """Histograms of the logit of pctr over clicked and unclicked impressions.

    Returns:
        ``logit_edges`` (the first and the last bin also hold what lies beyond), ``clicked`` and
        ``unclicked``; None where pctr isn't predicted.
    """
    try:
        propensity, clicked = np.asarray(predictions.of("ctr")), predictions.clicks > 0
    except NotPredictedError:
        return None
    inside = 1 / (1 + np.exp(-_LOGIT_EDGES[1:-1]))
    number = np.searchsorted(inside, propensity, side="right")
    bins = len(_LOGIT_EDGES) - 1
    return {
        "logit_edges": _LOGIT_EDGES.tolist(),
        "clicked": np.bincount(number[clicked], minlength=bins).tolist(),
        "unclicked": np.bincount(number[~clicked], minlength=bins).tolist(),
    }


def weight_quantiles(
    click: NDArray[Any], denominator: NDArray[Any]
) -> dict[str, list[float]] | None:
    """Quantiles ``q`` of the weights ``w`` of the clicked impressions.

    Args:
        click: o, ``[|D|]``.
        denominator: 1/w, such as max(ô, floor), ``[|D|]``.

    Returns:
        None where nothing was clicked.
    """
    divisor = np.asarray(denominator, dtype=np.float64)[np.asarray(click) > 0]
    if not len(divisor):
        return None
    # 1/0 is infinite, as it should be; between two such weights a quantile is NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        quantiles = np.quantile(1 / divisor, _WEIGHT_QUANTILES)
    return {"q": list(_WEIGHT_QUANTILES), "w": quantiles.tolist()}
