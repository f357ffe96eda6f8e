"""ESCM²-IPS-V2: ESCM²-IPS with a propensity that balances clicked and other impressions."""

from recbole_escm2.model.balanced import BalancedPropensity
from recbole_escm2.model.escm2_ips import ESCM2_IPS


class ESCM2_IPS_V2(BalancedPropensity, ESCM2_IPS):
    """L = L_CTR + λc·R_IPS + λg·L_CTCVR + γ·R_B; with γ = ``balancing_weight`` = 0 it is ESCM²-IPS.

    IPS-V2 of Haoxuan Li et al., ICML 2023; R_B in :class:`BalancedPropensity`.
    """
