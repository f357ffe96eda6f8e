"""MTL-IMP: an impression without a click is taken as one that would not have converted."""

from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.multi_task import MultiTaskRecommender
from recbole_escm2.risk import binary_cross_entropy, weighted_mean


class MTL_IMP(MultiTaskRecommender):
    """L = L_CTR + λc·R_IMP with R_IMP = (1/|D|) Σ BCE(o·r, r̂).

    Baseline MTL-IMP of ESCM² (SIGIR 2022, section 5); "all missing as negative" elsewhere (Pan et
    al., ICDM 2008). By definition every unclicked impression is a negative, whatever its label in
    the data says. What it estimates is P(o·r = 1), so as a CVR it is too low.
    """

    weighs_by_propensity = False
    takes_weights = True

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        ctcvr = impressions.click * impressions.conversion
        error = binary_cross_entropy(ctcvr, impressions.logit["cvr"], impressions.pos_weight)
        return weighted_mean(error, impressions.weight)
