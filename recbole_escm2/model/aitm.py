"""AITM: what the CTR tower knows is handed on to a tower that predicts CTCVR itself."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.init import xavier_normal_initialization
from torch import Tensor, nn

from recbole_escm2.errors import UsageError
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.model.dropout import Dropout
from recbole_escm2.model.entire_space import CVRRisk, EntireSpaceRecommender, Impressions
from recbole_escm2.risk import (
    binary_cross_entropy,
    ctr_risk,
    positives_weighted,
    weighted_mean,
)


class InformationTransfer(nn.Module):
    """z = Σ_u softmax_u(q(u)·k(u)/√width) v(u) over u in {p, g(h)}: a task's own, and the last's.

    Args:
        width: of the towers' last hidden layers.
        dropout: after g, the ReLU layer that the previous task's information goes through.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.information = nn.Sequential(nn.Linear(width, width), nn.ReLU(), Dropout(dropout))
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, own: Tensor, previous: Tensor) -> Tensor:
        """z, ``[batch, width]``, of two inputs of that shape."""
        both = torch.stack([own, self.information(previous)], dim=1)
        score = (self.query(both) * self.key(both)).sum(dim=2) / math.sqrt(both.shape[2])
        return torch.einsum("bu,buw->bw", torch.softmax(score, dim=1), self.value(both))


class AITM(EntireSpaceRecommender):
    """L = L_CTR + λg·L_CTCVR + α·(1/|D|) Σ max(pctcvr − pctr, 0), with α = 0.6.

    Dongbo Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with
    Multi-task Learning in Targeted Display Advertising", KDD 2021, for the two steps click and
    conversion. The second tower predicts pctcvr, not pcvr: its last hidden layer meets that of the
    CTR tower in an adaptive information transfer, :class:`InformationTransfer`. The behavioural
    expectation calibrator, the third term, wants no conversion to be likelier than its click
    (the mean over D, as in the authors' code; the paper writes a sum). Gradients reach the CTR
    tower from all terms.

    pcvr is pctcvr/pctr, and 1 where that is more. AITM needs MLP towers: it reads their hidden
    layers.

    Config keys: see ``properties/model/AITM.yaml``.

    Raises:
        UsageError: the backbone is one of RecBole's models.
    """

    tower_names = ("ctr", "ctcvr")
    takes_weights = True

    def __init__(self, config: Any, dataset: Any) -> None:
        if config["backbone"] not in BOTTOMS:
            raise UsageError(
                f"{type(self).__name__} hands on the hidden layer of an MLP tower, and RecBole's "
                f"models have none in common: choose backbone {', '.join(BOTTOMS)}"
            )
        super().__init__(config, dataset)
        self.risk_weight["calibrator"] = config["calibrator_weight"]
        self.transfer = InformationTransfer(self.mlp_hidden_size[-1], self.dropout_prob)
        self.transfer.apply(xavier_normal_initialization)

    def forward(self, interaction: Any, towers: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        inputs = self.tower_inputs(interaction, self.tower_names)
        ctr: Any = self.towers["ctr"]
        ctcvr: Any = self.towers["ctcvr"]
        ctr_hidden = ctr.hidden(inputs["ctr"])
        hidden = self.transfer(ctcvr.hidden(inputs["ctcvr"]), ctr_hidden)
        logit = {"ctr": ctr.head(ctr_hidden), "ctcvr": ctcvr.head(hidden)}
        wanted = {name: logit[name].squeeze(-1).float() for name in towers or self.tower_names}
        return self.with_first_order(wanted, interaction)

    def risks(self, impressions: Impressions, cvr_risk: CVRRisk | None = None) -> dict[str, Tensor]:
        """The unweighted risks ``ctr`` and ``ctcvr``, and the ``calibrator``, scalars."""
        ctr, ctcvr = impressions.logit["ctr"], impressions.logit["ctcvr"]
        click, weight = impressions.click, impressions.weight
        error = binary_cross_entropy(
            click * impressions.conversion, ctcvr, self.pos_weight["ctcvr"]
        )
        above = F.relu(torch.sigmoid(ctcvr) - torch.sigmoid(ctr))
        of_clicks = positives_weighted(impressions.click_weight, click, self.pos_weight["ctr"])
        return {
            "ctr": ctr_risk(ctr, click, of_clicks),
            "ctcvr": weighted_mean(error, weight),
            "calibrator": weighted_mean(above, weight),
        }

    def predict_tasks(self, interaction: Any) -> dict[str, Tensor]:
        """Probabilities by task: ``ctr``, ``cvr`` and ``ctcvr``, each ``[|D|]``."""
        logit = self(interaction)
        log_ratio = F.logsigmoid(logit["ctcvr"]) - F.logsigmoid(logit["ctr"])
        ctr, ctcvr = torch.sigmoid(logit["ctr"]), torch.sigmoid(logit["ctcvr"])
        return {"ctr": ctr, "cvr": torch.exp(log_ratio.clamp(max=0)), "ctcvr": ctcvr}
