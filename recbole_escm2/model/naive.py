"""Naive: the CVR tower is trained in the click space."""

from torch import Tensor

from recbole_escm2.model.entire_space import Impressions
from recbole_escm2.model.multi_task import MultiTaskRecommender
from recbole_escm2.risk import click_space_risk


class Naive(MultiTaskRecommender):
    """L = L_CTR + λc·R_naive with R_naive = (1/|O|) Σ o·δ.

    The conventional CVR model as a multi-task one: towers on a shared embedding, the CVR tower on
    clicked impressions alone ("Naive" among the baselines of ESCM², SIGIR 2022, section 5). It
    estimates P(r = 1 | o = 1) where clicks are, and is then used everywhere.
    """

    weighs_by_propensity = False
    takes_weights = True

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        return click_space_risk(impressions.error, impressions.click, impressions.weight)
