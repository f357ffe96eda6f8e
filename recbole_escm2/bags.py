"""Multi-valued fields as jagged values: no impression is padded to the longest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bags:
    """Jagged values of several fields in a batch, field by field.

    Attributes:
        fields: the names.
        ids: ``[values]``, int64.
        weights: ``[values]``, float32, or None where every value counts the same.
        lengths: ``[fields, batch]``, int64: how many values each impression has.
    """

    fields: tuple[str, ...]
    ids: Tensor
    weights: Tensor | None
    lengths: Tensor

    @property
    def offsets(self) -> Tensor:
        """Where each bag starts in ``ids``, ``[fields · batch]``, as torch's embedding_bag asks."""
        flat = self.lengths.flatten()
        return flat.cumsum(0) - flat

    def split(self) -> list[tuple[str, Bags]]:
        """Each field by itself, with its name; on the CPU, since it has to know their lengths."""
        ends = [0, *self.lengths.sum(dim=1).cumsum(0).tolist()]
        weights = self.weights
        return [
            (
                name,
                Bags(
                    (name,),
                    self.ids[start:end],
                    None if weights is None else weights[start:end],
                    self.lengths[number : number + 1],
                ),
            )
            for number, (name, start, end) in enumerate(
                zip(self.fields, ends[:-1], ends[1:], strict=True)
            )
        ]

    def to(self, device: Any) -> Bags:
        """On another device."""
        return self.each(lambda values: values.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Bags:
        """With each of its tensors changed by a function that keeps shapes."""
        weights = None if self.weights is None else change(self.weights)
        return Bags(self.fields, change(self.ids), weights, change(self.lengths))

    def scaled(self, scale: float) -> Bags:
        """With weights divided by ``scale``."""
        if self.weights is None or scale == 1.0:
            return self
        return Bags(self.fields, self.ids, self.weights / scale, self.lengths)

    def padded(self, length: int) -> Tensor:
        """``[batch, length]`` ids of a single field, the heaviest first, with 0 where none is left.

        Without weights it is the first ones in their order.
        """
        (lengths,) = self.lengths
        ids, device = self.ids, self.ids.device
        number = torch.arange(lengths.shape[0], device=device)
        bag = torch.repeat_interleave(number, lengths, output_size=ids.shape[0])
        if self.weights is not None:
            order = torch.argsort(self.weights, descending=True, stable=True)
            order = order[torch.argsort(bag[order], stable=True)]
            ids = ids[order]
        place = torch.arange(ids.shape[0], device=device) - (lengths.cumsum(0) - lengths)[bag]
        result = ids.new_zeros(lengths.shape[0], length + 1)  # in the last column: those left out
        result[bag, place.clamp(max=length)] = ids
        return result[:, :length].contiguous()

    @staticmethod
    def of_padded(sequences: Tensor) -> Bags:
        """Bags of ``[batch, length]`` ids, in which 0 is no value."""
        there = sequences != 0
        return Bags(("",), sequences[there], None, there.sum(dim=1).unsqueeze(0))
