"""What a training has learned, in one form: weights, and what the optimizer keeps of each, by name.

It is the same whether tables are whole or in shards, on one process or on several, and whatever
groups the optimizer is made of: each loads what another has saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from recbole_escm2.train.checkpoint import load_weights
from recbole_escm2.train.optimizer import load_by_name, state_by_name, state_fits


def learned(model: nn.Module, optimizer: Any, folder: Path) -> dict[str, Any]:
    """The entries ``state_dict`` and ``optimizer`` of a file.

    All processes have to call it, of which the first one has whole tables then.

    Args:
        model: as it is now.
        optimizer: of the model, or of one of its form.
        folder: where whole tables may be put meanwhile, if shards are all that there is.
    """
    weights, state = model.state_dict(), state_by_name(optimizer, model)
    if (tables := getattr(model, "sharded", None)) is not None:
        of_tables, kept = tables.whole(folder)
        weights, state = {**weights, **of_tables}, {**state, **kept}
    return {"state_dict": weights, "optimizer": state}


def restore_learned(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> list[str]:
    """Put weights and an optimizer's state into a model and its optimizer.

    Args:
        model: of the form of the one that was saved.
        optimizer: of it.
        state: has what :func:`learned` gives.

    Returns:
        The parameters whose optimizer begins anew, since it was another one.

    Raises:
        UsageError: they aren't theirs.
    """
    load_weights(model, state["state_dict"])
    kept, tables = state["optimizer"], getattr(model, "sharded", None)
    if tables is None:
        return load_by_name(optimizer, model, kept)
    of_layers = {name: of for name, of in kept.items() if name not in tables.shapes()}
    anew = load_by_name(optimizer, model, of_layers)
    fits = {
        name: kept[name]
        for name in tables.shapes()
        if tables.saves_state and state_fits(kept.get(name), tables.optimizer_name)
    }
    tables.put_state(fits)
    anew += tables.shapes().keys() - fits.keys()
    return anew
