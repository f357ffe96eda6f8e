"""ESCM²-IPS: ESMM with an inverse-propensity-score risk."""

from torch import Tensor

from recbole_escm2.model.entire_space import EntireSpaceRecommender, Impressions
from recbole_escm2.risk import ips_risk


class ESCM2_IPS(EntireSpaceRecommender):
    """L = L_CTR + λc·R_IPS + λg·L_CTCVR with R_IPS = (1/|D|) Σ o·δ/ô.

    Hao Wang et al., "ESCM²: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion
    Rate Estimation", SIGIR 2022, section 4 (R_IPS). The propensity is the CTR tower's own
    prediction (or what config ``propensity`` says), floored and without gradient. At a click rate
    below the floor most weights are equal, and the risk is nearly the click-space one.

    With ``propensity_normalization: snips`` R_IPS = Σ (o/ô)·δ / Σ o/ô over the batch
    (Swaminathan & Joachims, NIPS 2015): the weights add up to |D|.
    """

    takes_weights = True

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        return ips_risk(
            impressions.error, impressions.click, impressions.propensity, impressions.weight
        )
