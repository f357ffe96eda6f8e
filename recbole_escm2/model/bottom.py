"""What lies between the embedding and the towers: nothing, or layers that the tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_escm2.model.dropout import mlp


class Separate(nn.Module):
    """No shared layer: each tower's input is the embedding.

    The base of the other bottoms, too: a bottom maps the concatenated embeddings,
    ``[batch, input]``, to the input of each tower that is asked for, ``[batch, output_size]``.

    Args:
        input_size: width of the concatenated embeddings.
        tasks: names of all towers.
        config: ``bottom_hidden_size``, ``dropout_prob`` and the numbers of experts and levels.
    """

    def __init__(self, input_size: int, tasks: Sequence[str], config: Any) -> None:
        super().__init__()
        self.output_size: int = input_size

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """The input of each of the towers named."""
        return dict.fromkeys(tasks, features)


class SharedBottom(Separate):
    """x_t = f(x): an MLP that all tasks share (Caruana, Machine Learning 28, 1997)."""

    def __init__(self, input_size: int, tasks: Sequence[str], config: Any) -> None:
        super().__init__(input_size, tasks, config)
        self.shared = _expert(input_size, config)
        self.output_size = config["bottom_hidden_size"][-1]

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, self.shared(features))


class MMoE(Separate):
    """x_t = Σ_k softmax(W_t x)_k · E_k(x): experts that each task mixes by a gate of its own.

    Jiaqi Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, eq. 5 to 7.
    """

    def __init__(self, input_size: int, tasks: Sequence[str], config: Any) -> None:
        super().__init__(input_size, tasks, config)
        number = config["shared_expert_num"]
        self.experts = _Experts(number, input_size, config)
        self.gates = nn.ModuleDict({task: _gate(input_size, number) for task in tasks})
        self.output_size = config["bottom_hidden_size"][-1]

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        outputs = self.experts(features)
        return {task: _mixture(self.gates[task](features), outputs) for task in tasks}


class PLE(Separate):
    """Progressive layered extraction: levels of experts, some of a task and some shared.

    Hongyan Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model
    for Personalized Recommendations", RecSys 2020, section 4. On the last level a task's output
    depends on its own and the shared experts; below it the shared gate mixes those of all tasks, so
    that what lies below the towers is moved by every risk, as the embedding is.
    """

    def __init__(self, input_size: int, tasks: Sequence[str], config: Any) -> None:
        super().__init__(input_size, tasks, config)
        self.tasks = tuple(tasks)
        self.output_size = config["bottom_hidden_size"][-1]
        levels = config["extraction_level_num"]
        sizes = [input_size] + [self.output_size] * (levels - 1)
        self.levels = nn.ModuleList(
            _ExtractionLevel(size, tasks, config, is_last=level == levels - 1)
            for level, size in enumerate(sizes)
        )

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        inputs, shared = dict.fromkeys(self.tasks, features), features
        for level in self.levels:
            wanted = self.tasks if level.shared_gate is not None else tasks
            inputs, shared = level(inputs, shared, wanted)
        return inputs


class _ExtractionLevel(nn.Module):
    def __init__(self, size: int, tasks: Sequence[str], config: Any, is_last: bool) -> None:
        super().__init__()
        own, shared = config["task_expert_num"], config["shared_expert_num"]
        self.experts = nn.ModuleDict({task: _Experts(own, size, config) for task in tasks})
        self.shared_experts = _Experts(shared, size, config)
        self.gates = nn.ModuleDict({task: _gate(size, own + shared) for task in tasks})
        self.shared_gate = None if is_last else _gate(size, own * len(tasks) + shared)

    def forward(
        self, inputs: Mapping[str, Tensor], shared_input: Tensor, tasks: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        own = {task: self.experts[task](inputs[task]) for task in tasks}
        shared = self.shared_experts(shared_input)
        outputs = {t: _mixture(self.gates[t](inputs[t]), own[t] + shared) for t in tasks}
        if self.shared_gate is None:
            return outputs, shared_input
        everyone = [output for task in tasks for output in own[task]] + shared
        return outputs, _mixture(self.shared_gate(shared_input), everyone)


class _Experts(nn.ModuleList):
    def __init__(self, number: int, input_size: int, config: Any) -> None:
        super().__init__(_expert(input_size, config) for _ in range(number))

    def forward(self, features: Tensor) -> list[Tensor]:
        return [expert(features) for expert in self]


def _expert(input_size: int, config: Any) -> nn.Module:
    return mlp([input_size, *config["bottom_hidden_size"]], config["dropout_prob"])


def _gate(input_size: int, experts: int) -> nn.Linear:
    return nn.Linear(input_size, experts, bias=False)


def _mixture(gate_logit: Tensor, experts: list[Tensor]) -> Tensor:
    """Σ_k softmax(gate)_k · E_k, ``[batch, width]``."""
    share = torch.softmax(gate_logit, dim=1)
    return torch.einsum("bk,bkw->bw", share, torch.stack(experts, dim=1))


BOTTOMS: dict[str, type[Separate]] = {
    "separate": Separate,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
}
