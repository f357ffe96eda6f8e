"""A propensity that is taught to balance, beside predicting clicks."""

from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from recbole_escm2.model.entire_space import CVRRisk, EntireSpaceRecommender, Impressions
from recbole_escm2.risk import balancing_risk


class BalancedPropensity(EntireSpaceRecommender):
    """γ·R_B = γ·((1/|D|) Σ [o/ô − (1 − o)/(1 − ô)]·r̂)² beside the risks of another class.

    Haoxuan Li et al., "Propensity Matters: Measuring and Enhancing Balancing for Recommendation",
    ICML 2023 (BMSE with φ = r̂, in the form of the authors' code). It moves the CTR tower, and that
    alone: elsewhere no weight teaches the propensity, here this one risk does. The authors' code
    takes the gradient to r̂ as well, with which a small r̂ would do for a balance; here φ is a
    constant.

    ``balancing_floor`` is the least value of ô and of 1 − ô in R_B. It isn't ``propensity_floor``:
    at a click rate below a floor the two sides can't be balanced under it.

    Config keys: see ``properties/model/BalancedPropensity.yaml``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.risk_weight["balancing"] = config["balancing_weight"]
        self.balancing_floor: float = config["balancing_floor"]
        if self.propensity_field and config["balancing_weight"]:
            getLogger().warning(
                f"balancing_weight balances the CTR tower's prediction, and clicks are weighed by "
                f"the column '{self.propensity_field}': it changes no weight"
            )

    def risks(self, impressions: Impressions, cvr_risk: CVRRisk | None = None) -> dict[str, Tensor]:
        """Those of the other class, and ``balancing``, scalars."""
        risks = super().risks(impressions, cvr_risk)
        logit = impressions.logit["ctr"]
        propensity = torch.sigmoid(logit).clamp(min=self.balancing_floor)
        rest = torch.sigmoid(-logit).clamp(min=self.balancing_floor)
        return {**risks, "balancing": self.imbalance(impressions, propensity, rest)}

    def imbalance(self, impressions: Impressions, propensity: Tensor, rest: Tensor) -> Tensor:
        """R_B as a scalar: gradient to the propensity alone.

        Args:
            impressions: the batch.
            propensity: ô of the CTR tower, with its gradient, ``[|D|]``.
            rest: 1 − ô, likewise.
        """
        predicted = torch.sigmoid(impressions.logit["cvr"])
        return balancing_risk(predicted, impressions.click, propensity, rest)
