"""ESCM²-StableDR: self-normalised IPS with a propensity that makes it doubly robust."""

from torch import Tensor

from recbole_escm2.model.balanced import BalancedPropensity
from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.risk import snips_risk, stabilizing_risk


class ESCM2_STABLE_DR(BalancedPropensity, ESCM2_DR):
    """L = L_CTR + λc·(Σ (o/ô)δ / Σ o/ô + R_imp) + λg·L_CTCVR + γ·R_S.

    Haoxuan Li, Chunyuan Zheng, Peng Wu, "StableDR: Stabilized Doubly Robust Learning for
    Recommendation on Data Missing Not at Random", ICLR 2023, arXiv 2205.04701. The imputed error
    never enters the CVR risk, so that small propensities can't make it large: it tells the
    propensity where clicks, weighted by 1/ô, must have the mean that all impressions have,
    R_S = ((1/|D|) Σ (1 − o/ô)(δ̂ − mean δ̂))², which moves the CTR tower alone (γ is
    ``balancing_weight``, the floor of its ô ``balancing_floor``). The paper cycles through the
    three; here they share a step, or two with ``imputation_schedule: alternate``. Its propensity is
    a count with one smoothing parameter, ours the CTR tower.

    With γ = 0 the CVR tower learns as in ESCM²-IPS with ``propensity_normalization: snips``.
    """

    takes_rescaled_propensity = False  # it is self-normalised as it is

    def dr_risk(self, impressions: Impressions) -> Tensor:
        """The self-normalised IPS risk, which R_S makes doubly robust."""
        return snips_risk(impressions.error, impressions.click, impressions.propensity)

    def imbalance(self, impressions: Impressions, propensity: Tensor, rest: Tensor) -> Tensor:
        logit = impressions.logit
        imputed_error = self.imputed_error(logit["imputation"], logit["cvr"])
        return stabilizing_risk(imputed_error, impressions.click, propensity)
