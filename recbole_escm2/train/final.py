"""A model trained anew on train and validation, once validation has found for how long."""

from __future__ import annotations

import copy
from logging import getLogger
from typing import Any

from recbole_escm2.train.pair import Pair
from recbole_escm2.train.training import Training


def final_fit(selected: Training | Pair) -> Training | Pair:
    """Train a model, or each of two, on train and validation for as many epochs as were best.

    Nothing validates it: the last epoch's model is scored and saved. An epoch has the steps that
    all of these impressions make.

    Args:
        selected: trained with early stopping.

    Returns:
        The same with other weights, trained.
    """
    trainings = []
    for one in selected.trainings:
        assert one.best_epoch is not None, "one model has a best epoch"
        epochs = one.best_epoch + 1
        parts = one.splits["train"].parts
        many = f"{epochs}{' parts of' * (parts > 1)} epoch{'s' * (epochs > 1)}"
        getLogger().info(f"final fit, on train and validation for {many}, which were best")
        config = copy.copy(one.config)
        config.final_config_dict = {**one.config.final_config_dict, "fits_validation": True}
        final = Training(config, one.run.final(), one.task, epochs)
        final.fit()
        trainings.append(final)
    if isinstance(selected, Training):
        return trainings[0]
    pair = Pair(selected.config, selected.run)
    pair.trainings = trainings
    return pair


def about_final(selected: Training | Pair, final: Training | Pair, result: Any) -> dict[str, Any]:
    """What a result file tells of a final fit.

    Args:
        selected: trained with early stopping.
        final: :func:`final_fit` of it.
        result: the test metrics of the former.
    """
    trainings = final.trainings
    return {
        "epochs": [training.trainer.epochs for training in trainings],
        "train": trainings[0].splits["train"].dataset.counts(),
        "seconds": round(sum(training.seconds for training in trainings), 3),
        "trainings": [training.trainer.history for training in trainings],
        "valid_metric": selected.config["valid_metric"],
        "best_epoch_test_result": result,
    }
