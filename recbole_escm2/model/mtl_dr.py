"""MTL-DR, or Multi-DR: the doubly robust risk without a global one."""

from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.model.multi_task import MultiTaskRecommender


class MTL_DR(MultiTaskRecommender, ESCM2_DR):
    """L = L_CTR + λc·(R_DR + R_imp) with R_DR = (1/|D|) Σ [δ̂ + o(δ − δ̂)/ô], and no CTCVR term.

    Wenhao Zhang et al., "Large-scale Causal Approaches to Debiasing Post-click Conversion Rate
    Estimation with Multi-task Learning", WWW 2020 (Multi-DR). ``imputation`` and
    ``imputation_schedule`` are those of :class:`ESCM2_DR`.
    """
