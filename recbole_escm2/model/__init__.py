"""The models, and the base class that new ones are derived from."""

from recbole_escm2.model.entire_space import EntireSpaceRecommender, Impressions
from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.model.escm2_ips import ESCM2_IPS
from recbole_escm2.model.esmm import ESMM

__all__ = ["ESCM2_DR", "ESCM2_IPS", "ESMM", "EntireSpaceRecommender", "Impressions"]
