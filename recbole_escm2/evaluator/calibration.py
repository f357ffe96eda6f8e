"""Calibration as a last step: probabilities by task, mapped as validation has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from recbole_escm2.calibration import METHODS, Map, UnfitError, fit_map, map_of_state
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.curves import calibration as calibration_curves
from recbole_escm2.evaluator.evaluator import MetricResult
from recbole_escm2.evaluator.predictions import Array, NoTruthError, Predictions
from recbole_escm2.metric_names import ALL_TASKS

#: What to say of pCTCVR once each task is calibrated by itself.
NO_PRODUCT = "pCTCVR is calibrated by itself: it is no longer pCTR · pCVR"
_SHOWN = ("PCOC", "ECE", "LogLoss", "AUC")


@dataclass(frozen=True)
class Calibration:
    """A map for each task, from predicted to calibrated probabilities.

    pCVR is fitted over clicks, where its label exists, and so to clicks' mean, not to that of all
    impressions; with ``weights`` "ips" a click counts 1/max(ô, ``floor``), ô being the calibrated
    pCTR, or the logged propensity where the model weighs by that. pCTCVR is fitted by itself, so
    that it is no longer pCTR · pCVR.

    Attributes:
        method: of :data:`recbole_escm2.calibration.METHODS`.
        weights: "ips" or None.
        floor: of ô in those weights.
        maps: by task.
        left: why a task's probabilities stay as they are, by task.
    """

    method: str
    weights: str | None = None
    floor: float = 0.0
    maps: Mapping[str, Map] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, predictions: Predictions, method: str, weights: str | None = None, floor: float = 0.0
    ) -> Calibration:
        """The maps that suit predictions on a split; a task whose labels are all alike has none.

        Args:
            predictions: on validation, of some of the tasks.
            method: of :data:`recbole_escm2.calibration.METHODS`.
            weights: None, or "ips" where both pCTR and pCVR are predicted.
            floor: least ô in those weights, > 0 where some ô may be 0.
        """
        maps: dict[str, Map] = {}
        left: dict[str, str] = {}
        for task in [task for task in ALL_TASKS if task in predictions.score]:
            try:
                scored = predictions.scored(task)
                weight = None
                if task == "cvr" and weights == "ips":
                    weight = _click_weights(predictions, maps.get("ctr"), floor)
                maps[task] = fit_map(method, scored.score, scored.label, weight)
            except (UnfitError, NoTruthError) as error:
                left[task] = str(error)
        return cls(method, weights, floor, maps, left)

    def apply(self, probability: Mapping[str, Array]) -> dict[str, Array]:
        """Calibrated probabilities, float64, of those tasks that have a map; others as they come.

        Args:
            probability: by task, each ``[N]``.
        """
        return {
            task: self.maps[task](torch.from_numpy(np.ascontiguousarray(p))).numpy()
            if task in self.maps
            else p
            for task, p in probability.items()
        }

    def calibrated(self, predictions: Predictions) -> Predictions:
        """The same rows with calibrated probabilities."""
        return Predictions(predictions.truth, self.apply(predictions.score))

    def as_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: text, numbers and tensors."""
        maps = {task: fitted.as_state() for task, fitted in self.maps.items()}
        about = {"method": self.method, "weights": self.weights, "floor": self.floor}
        return {**about, "maps": maps, "left": dict(self.left)}

    @classmethod
    def of_state(cls, state: Any) -> Calibration:
        """The calibration that gave a state.

        Raises:
            UsageError: none gives such a state.
        """
        try:
            if state["method"] not in METHODS or not {*state["maps"]} <= {*ALL_TASKS}:
                raise ValueError("unknown method or task")
            maps = {task: map_of_state(of_task) for task, of_task in state["maps"].items()}
            left = {str(task): str(why) for task, why in state["left"].items()}
            weights = state["weights"] and str(state["weights"])
            return cls(state["method"], weights, float(state["floor"]), maps, left)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                "the checkpoint's calibration isn't as this program writes it: train the model "
                f"again ({error})"
            ) from error

    def __str__(self) -> str:
        weighted = f", pCVR with weights 1/max(pCTR, {self.floor:g})" if self.weights else ""
        fitted = ", ".join(f"p{task.upper()}" for task in self.maps) or "nothing"
        left = "".join(f"; p{task.upper()} stays: {why}" for task, why in self.left.items())
        return f"{self.method} calibration of {fitted}{weighted}{left}"


def _click_weights(predictions: Predictions, of_ctr: Map | None, floor: float) -> Array:
    """1/max(ô, floor) of the clicked impressions."""
    propensity = np.asarray(predictions.propensity, dtype=np.float64)
    if predictions.truth.propensity is None and of_ctr is not None:
        propensity = of_ctr(torch.from_numpy(propensity)).numpy()
    return 1 / np.maximum(propensity[predictions.clicks > 0], floor)


def about_calibration(
    calibration: Calibration, before: MetricResult, predictions: Predictions
) -> dict[str, Any]:
    """What a result file tells of a calibration, beside the metrics and curves after it.

    Args:
        calibration: that was applied.
        before: the metrics on test without it.
        predictions: on test without it.

    Returns:
        ``method``, ``weights``, ``floor``, ``left`` (why a task stays as it is), ``before`` (the
        metrics), ``curves_before`` (as in ``calibration``), ``note`` (whether the product still
        holds, or None).
    """
    product = calibration.maps and set(ALL_TASKS) <= set(predictions.score)
    return {
        "method": calibration.method,
        "weights": calibration.weights,
        "floor": calibration.floor if calibration.weights else None,
        "left": dict(calibration.left),
        "before": dict(before),
        "curves_before": calibration_curves(predictions),
        "note": NO_PRODUCT if product else None,
    }


def calibration_rows(about: Mapping[str, Any], after: Mapping[str, float]) -> list[list[str]]:
    """Rows of a table for people: a metric, its value before and after calibration.

    Args:
        about: of :func:`about_calibration`.
        after: the metrics on test with it.
    """
    names = [f"{task.upper()}_{statistic}" for task in ALL_TASKS for statistic in _SHOWN]
    names += ["CVR_PCOC_ES", "IEB"]
    before = about["before"]
    return [
        [name, f"{before[name]:.4f}", f"{after[name]:.4f}"]
        for name in names
        if name in before and name in after
    ]
