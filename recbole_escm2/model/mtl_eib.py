"""MTL-EIB: errors are imputed where there is no click, and nothing is weighted."""

from typing import Any

import torch
from torch import Tensor

from recbole_escm2.model.mtl_dr import MTL_DR


class MTL_EIB(MTL_DR):
    """L = L_CTR + λc·(R_EIB + R_imp) with R_EIB = (1/|D|) Σ [o·δ + (1 − o)·δ̂].

    Error-imputation-based estimation (Steck, RecSys 2013; R_EIB as in DR-JL, ICML 2019; baseline
    MTL-EIB of ESCM², SIGIR 2022, section 5). With ô = 1 the doubly robust risk is R_EIB and its
    imputation risk (1/|D|) Σ o(δ − δ̂)², so that is what this is. Unbiased where δ̂ is right, and
    then only.

    With ``imputation: error``, the default, δ̂ is a constant to the CVR tower, which then learns as
    the click-space model does; with ``label`` the unclicked impressions move it, too.
    """

    weighs_by_propensity = False

    def propensity(self, logit: dict[str, Tensor], interaction: Any) -> Tensor:
        """1 for each impression, ``[|D|]``."""
        return torch.ones_like(logit["ctr"]).detach()
