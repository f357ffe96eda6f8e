"""What entire-space models are compared with: fitted, or known, without a gradient step."""

from recbole_escm2.model.reference.constant import Constant
from recbole_escm2.model.reference.light_gbm import LightGBM
from recbole_escm2.model.reference.logistic_regression import LogisticRegression
from recbole_escm2.model.reference.oracle import Oracle

__all__ = ["Constant", "LightGBM", "LogisticRegression", "Oracle"]
