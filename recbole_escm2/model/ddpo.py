"""DDPO: soft conversion labels for all impressions, from a tower that has seen the clicks."""

from typing import Any

import torch
from torch import Tensor

from recbole_escm2.model.entire_space import CVRRisk, EntireSpaceRecommender, Impressions
from recbole_escm2.risk import binary_cross_entropy, ips_risk, snips_risk


class DDPO(EntireSpaceRecommender):
    """L = L_CTR + λ_conv·L_conv + λc·(R_O + R_N) + λg·L_CTCVR, with all weights 1.

    * L_conv = (1/|D|) Σ o·BCE(r, r^c): the tower ``conversion`` learns from clicks;
    * r* = 1 where a conversion was seen, r^c elsewhere, on clicks too: a constant here;
    * R_O = Σ_O w·BCE(r*, r̂) with w = (1/ô) / Σ_O 1/ô, over the click space O;
    * R_N = Σ_N w*·BCE(r*, r̂) with w* = (1/(1 − ô)) / Σ_N 1/(1 − ô), over the non-click space N.

    Hongzu Su et al., "DDPO: Direct Dual Propensity Optimization for Post-Click Conversion Rate
    Estimation", SIGIR 2024, eq. 6 to 18, without its causal transfer modules, which hand hidden
    layers of the other two towers to that of CVR by attention. Eq. 15, the self-normalised weights,
    would leave eq. 10 a further 1/|D|, with which a risk depended on the size of the batch; it is
    left out. ``propensity_floor`` is the least value of either denominator, as in
    :class:`~recbole_escm2.model.dcmt.DCMT`.

    Config keys: see ``properties/model/DDPO.yaml``.
    """

    tower_names = ("ctr", "cvr", "conversion")
    takes_rescaled_propensity = False  # it has 1 − ô, and is self-normalised as it is

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.risk_weight["conversion"] = config["conversion_weight"]

    def counterfactual_risk(self, impressions: Impressions) -> Tensor:
        click, logit = impressions.click, impressions.logit
        pseudo_label = torch.sigmoid(logit["conversion"].detach())
        label = torch.where(impressions.conversion > 0, 1.0, pseudo_label)
        error = binary_cross_entropy(label, logit["cvr"])
        no_click = (1 - impressions.click_probability).clamp(min=self.propensity_floor)
        of_clicked = snips_risk(error, click, impressions.propensity)
        return of_clicked + snips_risk(error, 1 - click, no_click)

    def risks(self, impressions: Impressions, cvr_risk: CVRRisk | None = None) -> dict[str, Tensor]:
        """Those of the family, and ``conversion``, scalars."""
        click = impressions.click
        error = binary_cross_entropy(impressions.conversion, impressions.logit["conversion"])
        conversion = ips_risk(error, click, torch.ones_like(click))
        return {**super().risks(impressions, cvr_risk), "conversion": conversion}
