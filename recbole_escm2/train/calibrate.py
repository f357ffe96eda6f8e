"""Calibration of what was trained, after its last epoch, on the predictions for validation."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_escm2.distributed import is_main
from recbole_escm2.evaluator.calibration import Calibration
from recbole_escm2.evaluator.evaluator import EntireSpaceData, EntireSpaceEvaluator, MetricResult
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.tasks import single_task
from recbole_escm2.train.checkpoint import add_calibration
from recbole_escm2.train.pair import Pair
from recbole_escm2.train.training import Training


def calibrate(trained: Training | Pair, config: Any) -> Calibration | None:
    """Fit the calibration that a config wants to validation, and keep it in the checkpoints.

    Args:
        trained: with its best epoch in a checkpoint; each of two has the calibration whole.
        config: with ``calibrate`` and what goes with it.

    Returns:
        None where none is wanted, or where another process fits it.
    """
    if not config["calibrate"]:
        return None
    _, predictions = trained.score("valid")
    if not is_main():
        return None
    how = config["calibrate"], config["calibrate_weights"], config["calibrate_floor"]
    calibration = Calibration.fit(predictions, *how)
    for training in trained.trainings:
        add_calibration(Path(training.trainer.saved_model_file), calibration.as_state())
    getLogger().info(f"{calibration}, fitted to validation")
    return calibration


def score_calibrated(
    calibration: Calibration, predictions: Predictions, config: Any
) -> tuple[MetricResult, Predictions]:
    """The metrics of calibrated predictions, and these.

    Args:
        calibration: to apply.
        predictions: on a split, as the model gives them.
        config: of the run.
    """
    calibrated = calibration.calibrated(predictions)
    data = EntireSpaceData(calibrated, single_task(config))
    return EntireSpaceEvaluator(config).evaluate(data), calibrated
