"""A checkpoint as one graph: ids and raw numbers in, calibrated probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_escm2.bags import Bags
from recbole_escm2.calibration import LEAST, MOST, LogitMap, Map
from recbole_escm2.data.encoding import Known
from recbole_escm2.errors import UsageError
from recbole_escm2.model.reference.base import ReferenceRecommender
from recbole_escm2.serve.scorer import Scorer
from recbole_escm2.serve.trained import TrainedModel

#: What stands for a token that the training didn't know, in every field.
UNKNOWN_ID = -1


@dataclass(frozen=True)
class Input:
    """A tensor that the graph takes.

    Attributes:
        name: the field's, with ``.values``, ``.weights`` or ``.offsets`` behind it where the field
            has any number of values a row.
        field: the field.
        type: as numpy calls it.
        size: of its only dimension: ``batch``, ``batch + 1``, or its own, ``values of FIELD``.
    """

    name: str
    field: str
    type: str
    size: str


def inputs_of(scorer: Scorer) -> Iterator[Input]:
    """What a graph of a model takes, in its order."""
    for name in scorer.features:
        own = scorer.known.fields[name]
        if not own.kind.endswith("_seq"):
            yield Input(name, name, "int64" if own.kind == "token" else "float64", "batch")
            continue
        values = f"values of {name}"
        kind = "int64" if own.kind == "token_seq" else "float64"
        yield Input(f"{name}.values", name, kind, values)
        if own.weighted:
            yield Input(f"{name}.weights", name, "float32", values)
        yield Input(f"{name}.offsets", name, "int64", "batch + 1")


class Graph(nn.Module):
    """The models of a checkpoint, with what lies before and behind them.

    Numbers are scaled as in the training, a missing one (NaN) being the mean; an id outside of the
    vocabulary is that of unknown tokens. Bag n of a field has its values from ``offsets[n]`` to
    ``offsets[n + 1]``. Probabilities are calibrated where the checkpoint's are.

    Args:
        scorer: on the processor.

    Attributes:
        inputs: what :meth:`forward` takes, each of one dimension.
        tasks: what it gives, in this order.

    Raises:
        UsageError: a model computes outside of torch.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.inputs = list(inputs_of(scorer))
        self.tasks = scorer.tasks
        self.parts = nn.ModuleList(
            _Part(own, encoder.lengths, encoder.scales)
            for own, encoder in zip(scorer.models, scorer.encoders, strict=True)
        )
        calibration = scorer.models[0].calibration
        maps: Mapping[str, Map] = calibration.maps if calibration else {}
        self.maps = nn.ModuleDict({task: _of_map(own) for task, own in maps.items()})
        self.eval().requires_grad_(False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Probabilities by task, float32 ``[batch]`` each."""
        given = dict(zip([own.name for own in self.inputs], tensors, strict=True))
        found: dict[str, Tensor] = {}
        for part in self.parts:
            found.update(part(given))
        if len(self.parts) > 1:
            found["ctcvr"] = found["ctr"] * found["cvr"]
        return tuple(
            (self.maps[task](found[task]) if task in self.maps else found[task]).float()
            for task in self.tasks
        )

    def example(self, rows: int = 3, values: int = 2) -> tuple[Tensor, ...]:
        """Inputs of so many rows, with so many values in each bag."""
        made = []
        for own in self.inputs:
            kind = getattr(torch, own.type)
            if own.name.endswith(".offsets") and own.size != "batch":
                made.append(torch.arange(rows + 1) * values)
            else:
                size = rows if own.size == "batch" else rows * values
                made.append(torch.ones(size, dtype=kind))
        return tuple(made)


class _Part(nn.Module):
    """One model and the batches that it reads."""

    def __init__(
        self, own: TrainedModel, lengths: Mapping[str, int], scales: Mapping[str, float]
    ) -> None:
        super().__init__()
        if isinstance(own.model, ReferenceRecommender):
            raise UsageError(
                f"{own.config['model']} computes outside of torch: there is no graph to export"
            )
        self.model = own.model
        self._own, self._known = own, own.known
        self._lengths, self._weight_scales = dict(lengths), dict(scales)
        numerical = [name for name, field in own.known.fields.items() if field.numerical]
        self._place = {name: place for place, name in enumerate(numerical)}
        self.scales = nn.ModuleList(_scale(name, own.known) for name in numerical)

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        bags: dict[str, Bags] = {}
        for name, field in self._known.fields.items():
            if name in self._known.tokens:
                if field.kind == "token":
                    columns[name] = self._ids(name, given[name])
                else:
                    bags[name] = self._bag(name, given)
            elif field.numerical:
                columns[name] = self._numbers(name, given)
        found = self._own.predicted(_Rows(columns, bags, self._lengths))
        return {task: found[task].float() for task in self._own.tasks}

    def _ids(self, name: str, ids: Tensor) -> Tensor:
        tokens = self._known.tokens[name]
        known = (ids >= 0) & (ids < len(tokens))
        return torch.where(known, ids, tokens.unknown)

    def _bag(self, name: str, given: Mapping[str, Tensor]) -> Bags:
        offsets = given[f"{name}.offsets"]
        lengths = (offsets[1:] - offsets[:-1]).unsqueeze(0)
        ids = self._ids(name, given[f"{name}.values"])
        bag = Bags((name,), ids, given.get(f"{name}.weights"), lengths)
        return bag.scaled(self._weight_scales.get(name, 1.0))

    def _numbers(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        """``[batch, 2]``; of a field of lists ``[batch, 1, 2]``, the mean of each.

        RecBole's models take the mean of a list's numbers, which a list of their mean has too.
        """
        scale, given_of = self.scales[self._place[name]], given.get(name)
        if given_of is not None:
            numbers = scale(given_of).float()
            return torch.stack([numbers, torch.ones_like(numbers)], dim=1)
        values, offsets = given[f"{name}.values"], given[f"{name}.offsets"]
        numbers = scale(values).float()
        rows = torch.arange(values.shape[0])
        mean = F.embedding_bag(rows, numbers.unsqueeze(1), offsets[:-1], mode="mean")
        there = (offsets[1:] > offsets[:-1]).to(mean).unsqueeze(1)
        return torch.stack([mean, there], dim=2)


def _scale(name: str, known: Known) -> _Scale:
    field, numbers = known.fields[name], known.numbers[name]
    is_list = field.kind == "float_seq"
    line = numbers.line(field, not is_list and name == known.time)
    return _Scale(0.0 if is_list else numbers.mean, line)


class _Scale(nn.Module):
    """Numbers as a model reads them; its own are tensors, since ONNX has scalars of 32 bits."""

    def __init__(self, missing: float, line: tuple[float, float] | None) -> None:
        super().__init__()
        self.register_buffer("missing", _double(missing))
        self.register_buffer("shift", None if line is None else _double(line[0]))
        self.register_buffer("divisor", None if line is None else _double(line[1]))

    missing: Tensor
    shift: Tensor | None
    divisor: Tensor | None

    def forward(self, values: Tensor) -> Tensor:
        if self.shift is None or self.divisor is None:
            return torch.ones_like(values)
        return (torch.where(values.isnan(), self.missing, values) - self.shift) / self.divisor


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class _Rows:
    """A batch, as models read it."""

    def __init__(
        self, columns: Mapping[str, Tensor], bags: Mapping[str, Bags], lengths: Mapping[str, int]
    ) -> None:
        self._columns, self.bags, self._lengths = columns, dict(bags), lengths

    def __getitem__(self, name: str) -> Tensor:
        if name in self._columns:
            return self._columns[name]
        return self.bags[name].padded(self._lengths[name])


# --------------------------------------------------------------------------- calibration


def _of_map(fitted: Map) -> nn.Module:
    return _OnLogit(fitted) if isinstance(fitted, LogitMap) else _Steps(fitted.knots, fitted.values)


class _OnLogit(nn.Module):
    """:class:`recbole_escm2.calibration.LogitMap`, its numbers as tensors."""

    def __init__(self, fitted: LogitMap) -> None:
        super().__init__()
        numbers = (LEAST, MOST, fitted.slope, fitted.intercept)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.float64))

    numbers: Tensor

    def forward(self, probability: Tensor) -> Tensor:
        least, most, slope, intercept = self.numbers
        p = probability.double().clamp(least, most)
        return torch.sigmoid(slope * (torch.log(p) - torch.log1p(-p)) + intercept)


class _Steps(nn.Module):
    """:class:`recbole_escm2.calibration.StepMap` by halving, since ONNX has no searchsorted."""

    def __init__(self, knots: Tensor, values: Tensor) -> None:
        super().__init__()
        if len(knots) == 1:  # constant
            knots, values = torch.cat([knots, knots + 1]), torch.cat([values, values])
        self.last = len(knots) - 1
        self.halvings = self.last.bit_length()
        beyond = torch.full((2**self.halvings - len(knots),), torch.inf, dtype=knots.dtype)
        self.register_buffer("knots", torch.cat([knots, beyond]))
        self.register_buffer("values", values)

    knots: Tensor
    values: Tensor

    def forward(self, probability: Tensor) -> Tensor:
        p = probability.double().clamp(self.knots[0], self.knots[self.last])
        below = torch.zeros_like(p, dtype=torch.long)  # how many knots are less than p
        for step in (2**power for power in reversed(range(self.halvings))):
            below = torch.where(self.knots[below + step - 1] < p, below + step, below)
        right = below.clamp(1, self.last)
        low, high = self.knots[right - 1], self.knots[right]
        first, second = self.values[right - 1], self.values[right]
        return first + (p - low) / (high - low) * (second - first)
