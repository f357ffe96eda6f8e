"""MTL-IPS, or Multi-IPW: the IPS risk without a global one."""

from recbole_escm2.model.escm2_ips import ESCM2_IPS
from recbole_escm2.model.multi_task import MultiTaskRecommender


class MTL_IPS(MultiTaskRecommender, ESCM2_IPS):
    """L = L_CTR + λc·R_IPS with R_IPS = (1/|D|) Σ o·δ/ô, and no CTCVR term.

    Wenhao Zhang et al., "Large-scale Causal Approaches to Debiasing Post-click Conversion Rate
    Estimation with Multi-task Learning", WWW 2020 (Multi-IPW).
    """
