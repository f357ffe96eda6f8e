"""How far each row is on the way from the constant prediction to the true probabilities."""

from __future__ import annotations

import numpy as np

from recbole_escm2.experiment.study import Study
from recbole_escm2.metric_names import bigger_is_better, is_neutral, target_of


def share_of_lift(study: Study, metric: str) -> dict[str, float]:
    """(row − Constant)/(Oracle − Constant) of the means over the seeds that all three have.

    Empty where the table lacks either row, where the metric has a target and so no way there, or
    where the oracle is no better than the constant.

    Args:
        study: the runs.
        metric: its test metric.

    Returns:
        By the row's label. It isn't bounded by 0 and 1.
    """
    known = [
        next((row.label for row in study.rows if row.model == model), None)
        for model in ("Constant", "Oracle")
    ]
    if None in known or is_neutral(metric) or target_of(metric) is not None:
        return {}
    constant, oracle = (study.values(str(label), metric) for label in known)
    sign = 1 if bigger_is_better(metric) else -1
    shares = {}
    for row in study.rows:
        own = study.values(row.label, metric)
        seeds = sorted(own.keys() & constant.keys() & oracle.keys())
        if seeds:
            low, high, mean = (np.mean([v[s] for s in seeds]) for v in (constant, oracle, own))
            if sign * (high - low) > 0:
                shares[row.label] = float((mean - low) / (high - low))
    return shares
