"""Dropout whose masks cost little on a CPU, and MLPs with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from recbole.model.layers import MLPLayers
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, with masks from 16 random bits an element where the input is on a CPU.

    PyTorch draws a Bernoulli number there, which takes longer than the product that the layer
    feeds. The probability is rounded to a multiple of 2^-16, and what is kept is scaled by the
    rounded one, so that the expectation is exact. Draws are those of PyTorch's generator, hence
    seeded, but other ones than ``torch.nn.Dropout``'s.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input, ``[*]``, with elements at 0 in training."""
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped in (0, _LEVELS) or input.device.type != "cpu":
            return super().forward(input)
        size = input.numel()
        words = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[:size].view(input.shape) >= dropped - _LEVELS // 2
        return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))


def mlp(sizes: Sequence[int], dropout: float) -> MLPLayers:
    """Hidden layers with ReLU: ``[batch, sizes[0]]`` to ``[batch, sizes[-1]]``.

    Args:
        sizes: the input's width, then those of the layers.
        dropout: share of the inputs of each layer that training sets to 0.
    """
    layers = MLPLayers(list(sizes), dropout)
    for place, layer in enumerate(layers.mlp_layers):
        if isinstance(layer, nn.Dropout):
            layers.mlp_layers[place] = Dropout(layer.p)
    return layers
