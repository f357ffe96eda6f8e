"""Towers on one input: evaluated together where they are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_escm2.model.dropout import mlp


class Tower(nn.Sequential):
    """An MLP with ReLU that ends in one logit: ``[batch, input]`` to ``[batch, 1]``.

    Args:
        sizes: the input's width, then those of the hidden layers.
        dropout: share of the inputs of each hidden layer that training sets to 0.
    """

    def __init__(self, sizes: Sequence[int], dropout: float) -> None:
        super().__init__(mlp(sizes, dropout), nn.Linear(sizes[-1], 1))
        self.sizes = tuple(sizes)
        self.dropout = dropout

    @property
    def hidden(self) -> nn.Module:
        """The hidden layers: ``[batch, input]`` to ``[batch, sizes[-1]]``."""
        return self[0]

    @property
    def head(self) -> nn.Module:
        """The last layer: ``[batch, sizes[-1]]`` to ``[batch, 1]``."""
        return self[1]

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers with weights, in order."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]


def evaluate(towers: Mapping[str, nn.Module], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The logits of towers, each ``[batch]`` and float32 (also under autocast).

    Those of CTR and CVR, where they are alike and share their input, are one matrix product a
    layer: their first layers side by side, so that the input's gradient is one product too, and
    the others as a batch. A loss on one of the two gives the other a gradient of zeros instead of
    none, so no tower is among them that must stay out of another's optimizer step.

    Args:
        towers: by name; any module from its input to ``[batch, 1]`` will do.
        inputs: by the towers' names, each ``[batch, input]``, or whatever a tower takes.
    """
    pair = {n: tower for n, tower in towers.items() if n in _TOGETHER and type(tower) is Tower}
    alike, logits = list(pair.values()), dict[str, Tensor]()
    if len(alike) == 2 and alike[0].sizes == alike[1].sizes and not _drops(alike):
        features, other = (inputs[name] for name in pair)
        if features is other:
            logits.update(zip(pair, _evaluate_together(alike, features), strict=True))
    for name, tower in towers.items():
        if name not in logits:
            logits[name] = tower(inputs[name]).squeeze(-1)
    return {name: logits[name].float() for name in towers}


_TOGETHER = ("ctr", "cvr")


def _drops(towers: Sequence[Tower]) -> bool:
    return any(tower.training and tower.dropout > 0 for tower in towers)


def _evaluate_together(towers: Sequence[Tower], features: Tensor) -> tuple[Tensor, ...]:
    first, *others = zip(*(tower.linears for tower in towers), strict=True)
    weight = torch.cat([layer.weight for layer in first])
    bias = torch.cat([layer.bias for layer in first])
    hidden = F.linear(features, weight, bias)
    hidden = hidden.unflatten(1, (len(towers), -1)).transpose(0, 1)  # [towers, batch, width]
    for layers in others:
        weights = torch.stack([layer.weight for layer in layers]).transpose(1, 2)
        biases = torch.stack([layer.bias for layer in layers]).unsqueeze(1)
        hidden = torch.baddbmm(biases, F.relu(hidden), weights)
    return hidden.squeeze(2).unbind()
