"""What of a propensity is fitted to validation, between epochs: its calibration and its floor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recbole_escm2.calibration import LogitMap, UnfitError, fit_map
from recbole_escm2.estimators import slope_floor
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.model import EntireSpaceRecommender


def mapped_propensity(model: nn.Module, predictions: Predictions) -> NDArray[Any]:
    """ô of a split before any floor, as the model weighs clicks by it, ``[|D|]``.

    What it predicts is taken without its ``pos_weight``, and calibrated where it is to be.

    Args:
        model: that has made the predictions.
        predictions: uncalibrated.
    """
    propensity = np.asarray(predictions.propensity)
    if predictions.truth.propensity is None and isinstance(model, EntireSpaceRecommender):
        propensity = model.as_click_probability(propensity)
    fitted = getattr(model, "propensity_map", None)
    if fitted is None:
        return propensity
    return LogitMap(*fitted.tolist())(torch.from_numpy(propensity)).numpy()


def refit_propensity(
    model: nn.Module, config: Any, predictions: Predictions, learning: nn.Module | None = None
) -> dict[str, float] | None:
    """Fit a model's propensity to validation, in place, for the epochs to come.

    First its map, to clicks (``propensity_calibration``; Wang et al., arXiv 2303.12973), then its
    floor (``propensity_floor: slope``), to the errors of pCVR on clicks. Where validation has
    nothing to fit to, they stay.

    Args:
        model: any.
        config: its own.
        predictions: its own for validation.
        learning: the model that goes on learning, where ``model`` is an average of it.

    Returns:
        ``slope`` and ``intercept`` of the map, and ``floor``, those that are fitted; None where
        neither is.
    """
    if not isinstance(model, EntireSpaceRecommender) or not model.weighs_clicks():
        return None
    refitted: dict[str, float] = {}
    if model.propensity_map is not None:
        clicks = predictions.scored("ctr")
        try:
            unweighted = model.as_click_probability(clicks.score)
            fitted = fit_map(config["propensity_calibration"], unweighted, clicks.label)
        except UnfitError:
            pass
        else:
            assert isinstance(fitted, LogitMap), "a propensity has two numbers"
            model.propensity_map.copy_(torch.tensor([fitted.slope, fitted.intercept]))
        refitted.update(zip(("slope", "intercept"), model.propensity_map.tolist(), strict=True))
    if isinstance(model.propensity_floor, torch.Tensor):
        click = predictions.truth.click
        error = _error_on_clicks(predictions)
        floor = slope_floor(error, click, mapped_propensity(model, predictions))
        if floor is not None:
            model.propensity_floor.fill_(floor)
        refitted["floor"] = float(model.propensity_floor)
    if isinstance(learning, EntireSpaceRecommender) and learning is not model:
        own, given = dict(learning.named_buffers()), dict(model.named_buffers())
        for name in {"propensity_map", "propensity_floor"} & set(own):
            own[name].copy_(given[name])
    return refitted or None


def _error_on_clicks(predictions: Predictions) -> NDArray[Any]:
    """δ = BCE(r, r̂) where o = 1, 0 elsewhere, float64 ``[|D|]``."""
    error = np.zeros(len(predictions.truth.click))
    clicks = predictions.scored("cvr")
    least = np.finfo(np.float32).tiny
    p = np.clip(clicks.score.astype(np.float64), least, 1 - 2.0**-25)
    loss = np.where(clicks.label > 0, -np.log(p), -np.log1p(-p))
    error[predictions.truth.click > 0] = loss
    return error
