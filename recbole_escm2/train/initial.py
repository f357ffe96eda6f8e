"""A training that begins with the weights of a checkpoint, on newer data with other ids.

A row of a table belongs to a token, wherever newer data has its id: what is known keeps its row. An
id that the checkpoint lacks begins with the row of its field's unknown tokens, where the training
before had such tokens, else with the mean of its field's rows, weighted by how often that training
had each; no value is no id. That is what the model would have been told of it before: scores are
those of the checkpoint until a step is taken. An id that newer data lacks is dropped; that of a
catalogue, a table of users or items, is there whoever is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from recbole_escm2.data.encoding import Known
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import model_path
from recbole_escm2.model.embedding import (
    embedding_tables,
    mean_row,
    tables_of_fields,
    with_rows,
)
from recbole_escm2.tasks import is_entire_space, is_reference
from recbole_escm2.train.checkpoint import load_checkpoint, load_weights


def initial_checkpoint(config: Any, task: str | None) -> Path:
    """The file that config ``init_from`` means: it, or that of a run's folder.

    Args:
        config: of the training.
        task: ``ctr`` or ``cvr``, where it is one of two models.

    Raises:
        UsageError: there is none.
    """
    path = Path(config["init_from"])
    if not path.is_dir():
        if task is not None:
            raise UsageError(
                f"init_from must be the folder of a run of two models here, got {path}"
            )
        return path
    return (path if task is None else path / task) / "checkpoint.pth"


def begin_with(model: nn.Module, config: Any, train: Any, task: str | None = None) -> None:
    """Give a model that is to be trained the weights of config ``init_from``.

    Args:
        model: a new one.
        config: of its training.
        train: its training part, in whose counts the ids that the checkpoint's training had are
            then counted too: they aren't unseen.
        task: ``ctr`` or ``cvr``, where it is one of two models.

    Raises:
        UsageError: the checkpoint is of another model, task or form, or of other fields.
    """
    if is_reference(config.model_class):
        raise UsageError(
            f"init_from: {config['model']} is fitted from nothing and has no steps to go on with; "
            "leave it out"
        )
    file = initial_checkpoint(config, task)
    state = load_checkpoint(file)
    try:
        _check(state, config)
        known = Known(state, spare=False)
        matches = dict(_matches(known, train))
        load_weights(model, _weights(model, state["state_dict"], matches))
    except UsageError as error:
        raise UsageError(f"init_from {file}: {error}") from error
    said = "; ".join(f"{name} {match}" for name, match in matches.items())
    getLogger().info(f"beginning with the weights of {file}: {said or 'it has no ids'}")
    for name, match in matches.items():
        train.train_ids[name] += torch.where(match.kept, match.counts[match.old], 0.0)


@dataclass(frozen=True)
class Match:
    """A field's ids here and in a checkpoint.

    Attributes:
        old: the checkpoint's id of each id here, whose row it begins with, int64 ``[ids]``.
        kept: which of them are the same token's, bool ``[ids]``.
        mean: which of them begin with the mean, as no id is theirs, bool ``[ids]``.
        counts: how often the checkpoint's training had each of its ids, float64 ``[old ids]``.
    """

    old: Tensor
    kept: Tensor
    mean: Tensor
    counts: Tensor

    def rows(self, before: Tensor) -> Tensor:
        """The rows here of those before, ``[old ids, width]`` to ``[ids, width]``."""
        mean = mean_row(before, self.counts)
        return torch.where(self.mean.unsqueeze(1), mean, before[self.old])

    def __str__(self) -> str:
        kept = int(self.kept[1:].sum())  # the padding is no id
        new = len(self.kept) - 1 - kept
        return f"{kept:,} ids kept, {new:,} new, {len(self.counts) - 1 - kept:,} dropped"


def _check(state: Mapping[str, Any], config: Any) -> None:
    own = model_path(config.model_class)
    if state["model"] != own:
        raise UsageError(f"it is of model {state['model']}, not of {own}")
    task = state["settings"].get("task")
    if not is_entire_space(config) and task != config["task"]:
        raise UsageError(f"it is of task {task}, not of {config['task']}")


def _matches(known: Known, train: Any) -> Iterator[tuple[str, Match]]:
    """The fields of tokens with their ids, in order.

    Raises:
        UsageError: the fields aren't the same.
    """
    read = {"token", "token_seq"}
    before = {own.name: own.kind for own in known.fields.values() if own.name in known.features}
    here = {
        own["name"]: own["type"]
        for own in train.store.schema["fields"]
        if own["name"] in train.field2type and (own["type"] in read or own.get("numerical"))
    }
    if list(before.items()) != list(here.items()):
        shown = (", ".join(f"{k} ({v})" for k, v in fields.items()) for fields in (before, here))
        raise UsageError("its fields are {}, and here they are {}".format(*shown))
    for name in known.tokens:
        yield name, _match(known, name, train.field2id_token[name])


def _match(known: Known, name: str, here: Any) -> Match:
    tokens, counts = known.tokens[name], known.train_ids[name]
    places = pd.Index(tokens.tokens.to_numpy(zero_copy_only=False)).get_indexer(here[1:])
    old = torch.from_numpy(np.concatenate([[0], places + 1]))  # a token that it lacks is 0, too
    kept = old > 0
    kept[0] = True
    by_unknown = tokens.unknown > 0 and bool(counts[tokens.unknown] > 0)
    if by_unknown:
        old[~kept] = tokens.unknown
    return Match(old, kept, torch.zeros_like(kept) if by_unknown else ~kept, counts)


def _weights(
    model: nn.Module, before: Mapping[str, Any], matches: Mapping[str, Match]
) -> dict[str, Any]:
    """A checkpoint's weights for a model of newer data, by name."""
    sizes = {name: len(match.counts) for name, match in matches.items()}
    weights = with_rows(model, before, sizes, lambda field, rows: matches[field].rows(rows))
    same = all(
        bool(match.kept.all()) and torch.equal(match.old, torch.arange(len(match.counts)))
        for match in matches.values()
    )
    of_fields = {table for module in model.modules() for table, *_ in tables_of_fields(module)}
    others = set(embedding_tables(model)) - of_fields
    for name, module in model.named_modules():
        of_numbers = any(part.startswith("float_") for part in name.split("."))
        if not same and module in others and not of_numbers:
            raise UsageError(
                f"{name}.weight is a table that the model has made in a way of its own: which of "
                "its rows belong to which ids can't be known, and the ids have changed"
            )
    return weights
