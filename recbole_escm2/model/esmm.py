"""ESMM: the entire space multi-task model."""

from recbole_escm2.model.entire_space import EntireSpaceRecommender


class ESMM(EntireSpaceRecommender):
    """L = L_CTR + L_CTCVR: the CVR tower learns through pctcvr = pctr · pcvr alone.

    Xiao Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
    Conversion Rate", SIGIR 2018, eq. 3 and 4. That is the base class without a counterfactual risk;
    ``global_weight`` other than 1 departs from the paper.
    """
