"""ESCM²-DR-MSE: ESCM²-DR with an imputation between that of DR-BIAS and that of MRDR."""

from typing import Any

from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.escm2_dr_bias import ESCM2_DR_BIAS
from recbole_escm2.model.escm2_mrdr import ESCM2_MRDR


class ESCM2_DR_MSE(ESCM2_DR_BIAS, ESCM2_MRDR):
    """ESCM²-DR with R_imp = λ·R_imp of DR-BIAS + (1 − λ)·R_imp of MRDR, λ = ``bias_share`` fixed.

    Quanyu Dai et al., "A Generalized Doubly Robust Learning Framework for Debiasing Post-Click
    Conversion Rate Prediction", KDD 2022 (DR-MSE), arXiv 2211.06684. The paper learns λ on a third
    level of its optimisation; here it is a number to tune. With λ = 1 this is
    :class:`ESCM2_DR_BIAS`, with λ = 0 :class:`ESCM2_MRDR`.

    Config keys: see ``properties/model/ESCM2_DR_MSE.yaml``.
    """

    takes_weights = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.bias_share: float = config["bias_share"]

    def imputation_risk(self, impressions: Impressions) -> Tensor:
        of_bias = ESCM2_DR_BIAS.imputation_risk(self, impressions)
        of_variance = ESCM2_MRDR.imputation_risk(self, impressions)
        return self.bias_share * of_bias + (1 - self.bias_share) * of_variance
