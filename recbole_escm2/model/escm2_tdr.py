"""ESCM²-TDR: ESCM²-DR with an imputed error that is corrected toward the clicks."""

from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.risk import dr_risk, targeted_imputation


class ESCM2_TDR(ESCM2_DR):
    """ESCM²-DR with δ̃ = δ̂ + η(1/ô − 1) for δ̂ in R_DR, η fitted to the clicks of the batch.

    Haoxuan Li et al., "TDR-CL: Targeted Doubly Robust Collaborative Learning for Debiased
    Recommendations", ICLR 2023, arXiv 2203.10258; η as in public code. With it the correction by
    o/ô vanishes and R_TDR = (1/|D|) Σ [o·δ + (1 − o)·δ̃]: the targeted form of MTL-EIB.

    η depends on δ and so on r̂, and R_TDR is differentiated as the function of r̂ that it is. Where
    η were a constant, η(1/ô − 1) would have no gradient, and a step on R_TDR would be one on R_DR.
    So a click has the weight 1 + (1/ô − 1)·Σ_N h/Σ_O h² with h = 1/ô − 1, in place of 1/ô, also
    with ``imputation: error``.
    """

    takes_rescaled_propensity = False  # it has 1/ô − 1

    def dr_risk(self, impressions: Impressions) -> Tensor:
        """R_TDR: no gradient to the imputation tower."""
        error, click, propensity = impressions.error, impressions.click, impressions.propensity
        imputed_error = self._constant_error(impressions)
        targeted = targeted_imputation(error, imputed_error, click, propensity)
        return dr_risk(error, targeted, click, propensity)
