"""NISE: unclicked impressions make the CVR tower surer of what it predicts for them."""

from typing import Any

import torch
from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.multi_task import MultiTaskRecommender
from recbole_escm2.risk import ips_risk, unclicked_entropy


class NISE(MultiTaskRecommender):
    """L = L_CTR + w·R with R = (1/|D|) Σ [o·δ + (1 − o)·BCE(r̂, r̂)], w = λc·min(L_CTR/R, β).

    "Utilizing Non-click Samples via Semi-supervised Learning for Conversion Rate Prediction",
    RecSys 2024, after its public code (Hjh233/NISE). The pseudo-label of an unclicked impression is
    its prediction, with its gradient: were it a constant, the term would have none at all. So it is
    the entropy of r̂, whose decrease moves a pCVR below one half toward 0. There is no CTCVR risk.

    The weight w is a constant of each batch that makes the second term as large as λc times the
    first, ``counterfactual_weight`` being λc (α in the code, 1 there) and ``cvr_weight_limit`` β.
    What an epoch's log has as ``cvr`` is w·R.

    Config keys: see ``properties/model/NISE.yaml``.
    """

    weighs_by_propensity = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.cvr_weight_limit: float = config["cvr_weight_limit"]

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        click, error = impressions.click, impressions.error
        of_clicks = ips_risk(error, click, torch.ones_like(click))
        return of_clicks + unclicked_entropy(impressions.logit["cvr"], click)

    def weighted(self, risks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Risks times their weights; that of ``cvr`` depends on the risks, and has no gradient."""
        ratio = (risks["ctr"] / risks["cvr"]).detach()
        limit = self.cvr_weight_limit
        ratio = torch.nan_to_num(ratio, nan=limit, posinf=limit).clamp(max=limit)
        return super().weighted({**risks, "cvr": ratio * risks["cvr"]})
