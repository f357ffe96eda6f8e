"""Where embedding tables are: in every process, or in shards of them (``embedding_placement``)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from logging import getLogger
from typing import Any

import torch

from recbole_escm2.distributed import from_main, local_world_size, world_size
from recbole_escm2.errors import UsageError
from recbole_escm2.extras import EXTRAS
from recbole_escm2.keys import table_optimizer
from recbole_escm2.threads import free_memory

#: Numbers beside each weight that an optimizer keeps.
KEPT = {"adam": 2, "adagrad": 1}
_BYTES = 4  # of a float32
# Of a process's free memory: what shards may take, and from where on whole tables are too large.
_FOR_SHARDS, _TOO_LARGE = 0.9, 0.5


def check_sharding(config: Any) -> None:
    """Refuse shards where they can't be, or where they would compute something else.

    Raises:
        UsageError: it says which key or what else stands against them.
    """
    if (reason := _against_shards(config)) is not None:
        raise UsageError(f"embedding_placement: sharded {reason}")


def _against_shards(config: Any) -> str | None:
    optimizer = table_optimizer(config)
    if missing := [module for module in EXTRAS["torchrec"] if find_spec(module) is None]:
        return (
            f"needs {', '.join(missing)}, which isn't installed: pip install "
            "'recbole-escm2[torchrec]' for GPUs; for CPUs scripts/torchrec_environment.sh makes an "
            "environment"
        )
    if world_size() == 1:
        return (
            "shares the tables out among processes, and there is one: start it by "
            "torchrun --nproc_per_node=2 (or more), or choose replicated"
        )
    if optimizer not in KEPT:
        return f"goes with embedding_optimizer adagrad or adam, got {optimizer}"
    if optimizer == "adam" and torch.device(config["device"]).type != "cuda":
        return (
            "has no Adam on a CPU, where TorchRec's kernels don't know it: set "
            "embedding_optimizer: adagrad"
        )
    if config["embedding_size"] % 4:
        return f"needs an embedding_size that 4 divides, got {config['embedding_size']}"
    for key in ("weight_decay", "embedding_weight_decay", "weight_averaging", "clip_grad_norm"):
        if config[key]:
            return against_penalty(key)
    for key in ("enable_amp", "enable_scaler", "init_from"):
        if config[key]:
            return f"doesn't go with {key}"
    return None


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Leave logging as it is, and have errors alone logged meanwhile.

    TorchRec sets logging up for the whole process when it is imported, and tells of every file that
    it loads and of every plan.
    """
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
        root.setLevel(level)
        for handler in [own for own in root.handlers if own not in handlers]:
            root.removeHandler(handler)
        logging.getLogger("torchrec").setLevel(logging.WARNING)


def against_penalty(key: str) -> str:
    """Why a key that is about all rows, or all gradients, can't be with shards."""
    return f"doesn't go with {key}: a row is moved as its gradient arrives, and only then"


def place_tables(config: Any, rows: int, can_be_sharded: bool) -> int | None:
    """Decide about ``embedding_placement: auto``, and say so; the config then has what was decided.

    Args:
        config: of the training.
        rows: of all tables together.
        can_be_sharded: whether the model and its backbone have tables of the kind that can be.

    Returns:
        Bytes that the shards of a process may take; None where it has whole tables.

    Raises:
        UsageError: shards are asked for, and can't be.
    """
    placement = config["embedding_placement"]
    if placement == "replicated":
        return None
    fits_model = "" if can_be_sharded else _NOT_OF_MODEL.format(**config.final_config_dict)
    if placement == "sharded":
        if fits_model:
            raise UsageError(f"embedding_placement: sharded {fits_model}")
        check_sharding(config)
    against = fits_model or _against_shards(config)
    if not against:  # it takes some 100 MB, which tables can't have
        with without_notes():
            import_module("torchrec")
    free = from_main(_free_memory(config))
    kept = KEPT.get(table_optimizer(config), 0)
    dense = 0 if config["sparse_embedding"] else 1  # a gradient of the tables' size
    needed = rows * config["embedding_size"] * _BYTES * (1 + kept + dense)
    if placement == "auto":
        sharded = needed > _TOO_LARGE * free and not against
        config["embedding_placement"] = "sharded" if sharded else "replicated"
        said = f"embedding_placement: {config['embedding_placement']}, since whole tables take "
        said += f"{needed / 2**30:.2f} GiB of the {free / 2**30:.2f} GiB that a process may use"
        if against and needed > _TOO_LARGE * free:
            said += f"; sharded {against}"
        getLogger().info(said)
        if not sharded:
            return None
    return int(_FOR_SHARDS * free)


_NOT_OF_MODEL = (
    "is for entire-space models on MLP backbones (separate, shared_bottom, mmoe, ple), and "
    "{model} with backbone {backbone} isn't one"
)


def _free_memory(config: Any) -> float:
    """Of this process: its GPU's, or its part of the machine's."""
    device = torch.device(config["device"])
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory(local_world_size())
