"""Multi-task models without a global risk: CTR and CVR, nothing about their product."""

from recbole_escm2.model.entire_space import EntireSpaceRecommender


class MultiTaskRecommender(EntireSpaceRecommender):
    """L = L_CTR + λc·L_CVR: what ESCM² is without its CTCVR term, with λc = 1 by default.

    The base of the click-space model and of the multi-task debiasing ones (Zhang et al., WWW 2020).
    ``global_weight`` does nothing and is refused.
    """

    has_global_risk = False
