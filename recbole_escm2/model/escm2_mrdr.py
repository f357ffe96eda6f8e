"""ESCM²-MRDR: ESCM²-DR with the imputation that makes its risk vary least."""

from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.risk import mrdr_imputation_risk


class ESCM2_MRDR(ESCM2_DR):
    """ESCM²-DR with R_imp = (1/|D|) Σ o·(1 − p)/ô²·(δ − δ̂)², p the click probability, ô floored.

    Siyuan Guo et al., "Enhanced Doubly Robust Learning for Debiasing Post-Click Conversion Rate
    Estimation", SIGIR 2021 (MRDR): the weight is that of the doubly robust risk's variance, so that
    imputation is best where the propensity is small, and an impression that is sure to be clicked
    counts nothing. The paper has one ô for both; with a floor in what is divided by, the variance
    is p(1 − p)/ô², and p, which nothing is divided by, needs none. The paper's double learning is
    ``imputation: label`` with ``imputation_schedule: alternate``.
    """

    takes_weights = True
    takes_rescaled_propensity = False  # it has 1 − ô

    def imputation_risk(self, impressions: Impressions) -> Tensor:
        return mrdr_imputation_risk(
            impressions.error,
            self._learned_error(impressions),
            impressions.click,
            impressions.propensity,
            impressions.click_probability,
            impressions.weight,
        )
