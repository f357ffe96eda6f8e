"""DCMT: a second CVR tower for the counterfactual world of the unclicked impressions."""

from typing import Any

import torch
from torch import Tensor

from recbole_escm2.model.entire_space import EntireSpaceRecommender, Impressions
from recbole_escm2.risk import binary_cross_entropy, snips_risk, weighted_mean


class DCMT(EntireSpaceRecommender):
    """L = L_CTR + λc·(R_O + R_N + λ1·R_prior) + λg·L_CTCVR, with λc = λg = 1 and λ1 = 0.001.

    * R_O = Σ_O w·δ(r, r̂) with w = (1/ô) / Σ_O 1/ô, over the click space O;
    * R_N = Σ_N w*·δ(r*, r̂*) with w* = (1/(1 − ô)) / Σ_N 1/(1 − ô), over the non-click space N;
    * R_prior = (1/|D|) Σ |1 − (r̂ + r̂*)|, the counterfactual prior r + r* = 1 as a soft constraint.

    Feng Zhu et al., "DCMT: A Direct Entire-Space Causal Multi-Task Framework for Post-Click
    Conversion Estimation", ICDE 2023 (self-normalised form). r̂* is a tower of its own,
    ``counterfactual_cvr``, as in public implementations; the paper's twin towers share their lower
    layers, which is what a backbone with a shared bottom gives.

    The counterfactual label is r* = 1 − r. By definition an unclicked impression has r = 0, so
    r* = 1, whatever its label in the data says. ``propensity_floor`` is the least value of either
    denominator, max(ô, floor) and max(1 − ô, floor): the latter is of ô as predicted, since with
    1 − max(ô, floor) an impression that is hardly ever clicked would weigh too much.

    Config keys: see ``properties/model/DCMT.yaml``.
    """

    tower_names = ("ctr", "cvr", "counterfactual_cvr")
    takes_weights = True
    takes_rescaled_propensity = False  # it has 1 − ô, and is self-normalised as it is

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.counterfactual_prior_weight: float = config["counterfactual_prior_weight"]

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        click, propensity = impressions.click, impressions.propensity
        cvr, counterfactual = impressions.logit["cvr"], impressions.logit["counterfactual_cvr"]
        counterfactual_error = binary_cross_entropy(1 - impressions.conversion, counterfactual)
        no_click = (1 - impressions.click_probability).clamp(min=self.propensity_floor)
        prior = (1 - torch.sigmoid(cvr) - torch.sigmoid(counterfactual)).abs()
        weight = impressions.weight
        return (
            snips_risk(impressions.error, click, propensity, weight)
            + snips_risk(counterfactual_error, 1 - click, no_click, weight)
            + self.counterfactual_prior_weight * weighted_mean(prior, weight)
        )
