"""ESCM²-DR-V2: ESCM²-DR with a propensity that balances clicked and other impressions."""

from recbole_escm2.model.balanced import BalancedPropensity
from recbole_escm2.model.escm2_dr import ESCM2_DR


class ESCM2_DR_V2(BalancedPropensity, ESCM2_DR):
    """L = L_CTR + λc·(R_DR + R_imp) + λg·L_CTCVR + γ·R_B; with γ = 0 it is ESCM²-DR.

    DR-V2 of Haoxuan Li et al., ICML 2023; R_B in :class:`BalancedPropensity`, with γ =
    ``balancing_weight``.
    """
