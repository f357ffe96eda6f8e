"""ESCM²-DR: ESMM with a doubly robust risk."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_escm2.errors import UsageError
from recbole_escm2.model.entire_space import EntireSpaceRecommender, Impressions
from recbole_escm2.risk import binary_cross_entropy, dr_risk, imputation_risk


class ESCM2_DR(EntireSpaceRecommender):
    """L = L_CTR + λc·(R_DR + R_imp) + λg·L_CTCVR with R_DR = (1/|D|) Σ [δ̂ + o(δ − δ̂)/ô].

    Hao Wang et al., "ESCM²", SIGIR 2022, section 4 (R_DR and its imputation risk
    R_imp = (1/|D|) Σ o(δ − δ̂)²/ô). A third tower imputes the error. It is moved by R_imp alone,
    and R_imp moves neither of the other towers.

    ``imputation`` says what the third tower predicts:

    * ``error`` (the paper): δ̂ itself, any number ≥ 0. It is a constant in R_DR, so the CVR tower's
      own gradient equals that of IPS, and imputation acts through the shared embedding only.
    * ``label`` (DR-JL, Wang et al., ICML 2019): r̃, a conversion probability, with
      δ̂ = BCE(r̃, r̂). r̃ is a constant in R_DR and r̂ one in R_imp, so that the gradient of R_DR
      reaches r̂ on unclicked impressions too.

    With ``propensity_normalization: snips`` both are self-normalised over the batch, after SNIPS
    (Swaminathan & Joachims, NIPS 2015): R_DR = (1/|D|) Σ δ̂ + Σ (o/ô)(δ − δ̂) / Σ o/ô, and
    R_imp = Σ (o/ô)(δ − δ̂)² / Σ o/ô. R_DR stays right with a right δ̂.

    ``imputation_schedule`` says when: ``joint``, all risks in one step, or ``alternate``, for each
    batch a step of the imputation tower and the embedding on λc·R_imp, then a step of everything
    else, the embedding included, on the remaining risks. The two share one optimizer. A variant
    that overrides ``counterfactual_risk`` instead of ``dr_risk`` and ``imputation_risk`` has no
    such two steps, and is refused under ``alternate``.
    """

    tower_names = ("ctr", "cvr", "imputation")
    takes_weights = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.imputation: str = config["imputation"]
        self.imputation_schedule: str = config["imputation_schedule"]
        replaced = type(self).counterfactual_risk is not ESCM2_DR.counterfactual_risk
        if replaced and self.imputation_schedule == "alternate":
            raise UsageError(
                f"{type(self).__name__} has a counterfactual_risk of its own, which can't be split "
                "into two steps: set imputation_schedule: joint, or override dr_risk and "
                "imputation_risk"
            )

    def imputed_error(self, imputed: Tensor, cvr: Tensor) -> Tensor:
        """δ̂ from the logits of the imputation and the CVR tower, ``[|D|]``; the caller detaches."""
        if self.imputation == "label":
            return binary_cross_entropy(torch.sigmoid(imputed), cvr, self.pos_weight["cvr"])
        return F.softplus(imputed)

    def _constant_error(self, impressions: Impressions) -> Tensor:
        """δ̂ as R_DR has it, ``[|D|]``: what the imputation tower predicts is a constant."""
        logit = impressions.logit
        return self.imputed_error(logit["imputation"].detach(), logit["cvr"])

    def _learned_error(self, impressions: Impressions) -> Tensor:
        """δ̂ as R_imp has it, ``[|D|]``: r̂ is a constant."""
        logit = impressions.logit
        return self.imputed_error(logit["imputation"], logit["cvr"].detach())

    def dr_risk(self, impressions: Impressions) -> Tensor:
        """R_DR: no gradient to the imputation tower."""
        return dr_risk(
            impressions.error,
            self._constant_error(impressions),
            impressions.click,
            impressions.propensity,
            impressions.weight,
        )

    def imputation_risk(self, impressions: Impressions) -> Tensor:
        """R_imp: gradient to the imputation tower and the embedding below it only."""
        return imputation_risk(
            impressions.error,
            self._learned_error(impressions),
            impressions.click,
            impressions.propensity,
            impressions.weight,
        )

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        return self.dr_risk(impressions) + self.imputation_risk(impressions)

    def loss_steps(self, interaction: Any) -> Iterator[dict[str, Tensor]]:
        if self.imputation_schedule == "joint":
            yield from super().loss_steps(interaction)
            return
        weight = self.risk_weight["cvr"]
        others = tuple(name for name in self.tower_names if name != "imputation")
        if weight:
            risk = weight * self.imputation_risk(self.impressions(interaction))
            yield {"imputation": risk, **self._regularizer_of(("imputation",))}
        risks = self.risks(self.impressions(interaction), cvr_risk=self.dr_risk)
        yield self.weighted({**risks, **self._regularizer_of(others)})

    def _regularizer_of(self, towers: tuple[str, ...]) -> dict[str, Tensor]:
        penalty = self.regularizer(towers)
        return {} if penalty is None else {"regularizer": penalty}
