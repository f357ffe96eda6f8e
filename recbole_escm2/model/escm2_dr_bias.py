"""ESCM²-DR-BIAS: ESCM²-DR with the imputation that makes its risk least biased."""

from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.risk import dr_bias_imputation_risk


class ESCM2_DR_BIAS(ESCM2_DR):
    """ESCM²-DR with R_imp = (1/|D|) Σ o·(1 − ô)²/ô³·(δ − δ̂)², ô as the DR risk divides by it.

    Quanyu Dai et al., "A Generalized Doubly Robust Learning Framework for Debiasing Post-Click
    Conversion Rate Prediction", KDD 2022 (DR-BIAS), arXiv 2211.06684: the weight is that of the
    doubly robust risk's squared bias, over the clicks. The paper has no floor; here the error of a
    weight, o/ô − 1, is that of the floored one, which is what the risk uses. The paper's joint
    learning is ``imputation: label`` with ``imputation_schedule: alternate``.
    """

    takes_weights = True
    takes_rescaled_propensity = False  # it has 1 − ô

    def imputation_risk(self, impressions: Impressions) -> Tensor:
        return dr_bias_imputation_risk(
            impressions.error,
            self._learned_error(impressions),
            impressions.click,
            impressions.propensity,
            impressions.weight,
        )
