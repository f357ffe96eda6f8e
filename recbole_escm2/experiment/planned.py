"""A run before it is done: known by all that its numbers depend on, and done once."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_escm2.config import Config
from recbole_escm2.data.open_store import identity, open_store
from recbole_escm2.experiment.study import Row
from recbole_escm2.keys import PAIR
from recbole_escm2.lookup import model_path
from recbole_escm2.metric_names import PRIMARY_CVR
from recbole_escm2.output import to_builtins
from recbole_escm2.tasks import learns_both
from recbole_escm2.train.run import (
    Run,
    beginning,
    checkpoints_elsewhere,
    code_and_versions,
    effective,
    given_settings,
)

#: What a run that is only tried doesn't write, whatever is asked of those of the table.
OF_TRIALS: Mapping[str, Any] = {"save_predictions": [], "by": [], "final_fit": False}


@dataclass(kw_only=True)
class PlannedRun(Run):
    """The run of a row with a seed.

    Its folder is the same for whatever it is part of; it is named after model, data set, seed and a
    digest of all that its numbers depend on.

    Attributes:
        row: of the table, or one that is tried.
        seed: its seed.
        code: digest of the code that it runs.
        threads: that it computes with: sums are rounded by what each thread adds up.
    """

    row: Row
    seed: int
    code: str
    threads: int


def plan_run(
    row: Row,
    config: Config,
    own: Mapping[str, Any],
    threads: int,
    columns: Sequence[str] = (),
    saved: bool = False,
) -> PlannedRun:
    """The run of a row with a seed.

    Args:
        row: of the table, or one that is tried.
        config: the row's.
        own: the config keys that make it that of its seed, ``seed`` among them.
        threads: that it computes with.
        columns: metrics that it computes, besides those of its config.
        saved: whether to keep its checkpoints.

    Raises:
        UsageError: whatever is wrong with the data. Where each seed has a world of its own, which
            its first run makes, it is the run that says what is wrong there.
    """
    needed = [*columns, *(config["primary"] or ("CTCVR_AUC", *PRIMARY_CVR))]
    metrics = list(dict.fromkeys([*config["metrics"], *needed]))
    known = {
        "model": model_path(config.model_class),
        **code_and_versions(config.model_class, [*metrics, config["valid_metric"]]),
        "threads": threads,
        "data": _data(config, own),
        **beginning(config),
        "config": effective({**config.final_config_dict, "metrics": sorted(metrics), **own}),
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    name = "-".join([config["model"], config["dataset"], f"seed{own['seed']}", digest])
    return PlannedRun(
        folder=Path(config["output_dir"]).absolute() / "runs" / name,
        model=row.model,
        dataset=config["dataset"],
        settings={**given_settings(config), "metrics": metrics, **own},
        parts=PAIR if learns_both(config) else (),
        saved=saved,
        of_experiment=True,
        checkpoints=checkpoints_elsewhere(config, saved),
        selects=own.get("final_fit", config["final_fit"]),
        row=row,
        seed=own["seed"],
        code=known["code"],
        threads=threads,
    )


def _data(config: Config, own: Mapping[str, Any]) -> Any:
    """What tells the data of a run from other data."""
    if "simulation_seed" not in own:
        open_store(config)  # so that what is wrong with the data is said before anything runs
    of_run = copy.copy(config)
    of_run.final_config_dict = {**config.final_config_dict, **own}
    return to_builtins(identity(of_run))
