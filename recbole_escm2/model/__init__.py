"""The models, and the base class that new ones are derived from."""

from recbole_escm2.model.aitm import AITM
from recbole_escm2.model.dcmt import DCMT
from recbole_escm2.model.ddpo import DDPO
from recbole_escm2.model.entire_space import EntireSpaceRecommender, Impressions
from recbole_escm2.model.escm2_dr import ESCM2_DR
from recbole_escm2.model.escm2_dr_bias import ESCM2_DR_BIAS
from recbole_escm2.model.escm2_dr_mse import ESCM2_DR_MSE
from recbole_escm2.model.escm2_dr_v2 import ESCM2_DR_V2
from recbole_escm2.model.escm2_ips import ESCM2_IPS
from recbole_escm2.model.escm2_ips_v2 import ESCM2_IPS_V2
from recbole_escm2.model.escm2_mrdr import ESCM2_MRDR
from recbole_escm2.model.escm2_stable_dr import ESCM2_STABLE_DR
from recbole_escm2.model.escm2_tdr import ESCM2_TDR
from recbole_escm2.model.esmm import ESMM
from recbole_escm2.model.mtl_dr import MTL_DR
from recbole_escm2.model.mtl_eib import MTL_EIB
from recbole_escm2.model.mtl_imp import MTL_IMP
from recbole_escm2.model.mtl_ips import MTL_IPS
from recbole_escm2.model.naive import Naive
from recbole_escm2.model.nise import NISE

#: All of them, in the order in which they are listed.
MODELS: tuple[type[EntireSpaceRecommender], ...] = (
    *(ESMM, ESCM2_IPS, ESCM2_DR, ESCM2_MRDR, ESCM2_DR_BIAS, ESCM2_DR_MSE, ESCM2_TDR),
    *(ESCM2_IPS_V2, ESCM2_DR_V2, ESCM2_STABLE_DR, DCMT, DDPO, AITM, NISE, Naive),
    *(MTL_IMP, MTL_EIB, MTL_IPS, MTL_DR),
)

__all__ = [
    "AITM",
    "DCMT",
    "DDPO",
    "ESCM2_DR",
    "ESCM2_DR_BIAS",
    "ESCM2_DR_MSE",
    "ESCM2_DR_V2",
    "ESCM2_IPS",
    "ESCM2_IPS_V2",
    "ESCM2_MRDR",
    "ESCM2_STABLE_DR",
    "ESCM2_TDR",
    "ESMM",
    "MODELS",
    "MTL_DR",
    "MTL_EIB",
    "MTL_IMP",
    "MTL_IPS",
    "NISE",
    "EntireSpaceRecommender",
    "Impressions",
    "Naive",
]
