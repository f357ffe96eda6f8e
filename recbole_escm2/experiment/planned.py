"""A run before it is done: known by all that its numbers depend on, and done once."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import torch

from recbole_escm2 import __version__
from recbole_escm2.config import Config, learns_both
from recbole_escm2.data.open_store import identity, open_store
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.code import code_of
from recbole_escm2.experiment.study import Row
from recbole_escm2.keys import PAIR, PLACE_KEYS
from recbole_escm2.lookup import model_path
from recbole_escm2.metric_names import PRIMARY_CVR
from recbole_escm2.output import plain
from recbole_escm2.train.run import RESULT_FILE, Run

# Config keys that change no number of a run; the data is known by the fingerprint of its store.
_WITHOUT_EFFECT = PLACE_KEYS | {"primary"}


@dataclass(frozen=True)
class PlannedRun:
    """A row with a seed.

    Attributes:
        row: of the table, or one that is tried.
        seed: its seed.
        dataset: the data set's name.
        settings: every config key that isn't a default, as a config file has them.
        parts: the trainings that it is made of, where they are two.
        code: digest of the code that it runs.
        threads: that it computes with: sums are rounded by what each thread adds up.
        folder: of its files, the same for whatever it is part of; named after model, data set, seed
            and a digest of all that its numbers depend on.
    """

    row: Row
    seed: int
    dataset: str
    settings: Mapping[str, Any]
    parts: Sequence[str]
    code: str
    threads: int
    folder: Path

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.folder.name

    def is_done(self, saved: bool = False) -> bool:
        """Whether it has its result, and its checkpoints where they are to be kept."""
        if not (self.folder / RESULT_FILE).is_file():
            return False
        elsewhere = self.settings.get("checkpoint_dir")
        runs = [Run(self.folder), *([Run(self.folder, Path(elsewhere))] if elsewhere else [])]
        return not saved or any(
            all(part.checkpoint.is_file() for part in map(run.part, self.parts))
            if self.parts
            else run.checkpoint.is_file()
            for run in runs
        )

    def result(self) -> Mapping[str, Any]:
        """What its ``result.json`` holds.

        Raises:
            FileNotFoundError: it isn't done.
            UsageError: no run has written the file.
        """
        file = self.folder / RESULT_FILE
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}: {error}; remove it, and the run is done again") from error
        kinds = {"valid_metric": str, "best_valid_score": float, "test_result": dict, "epochs": int}
        if not isinstance(result, dict) or not all(
            isinstance(result.get(key), kind) for key, kind in kinds.items()
        ):
            raise UsageError(
                f"{file} isn't what a run writes; remove it, and the run is done again"
            )
        return result


def plan_run(
    row: Row,
    config: Config,
    own: Mapping[str, Any],
    threads: int,
    columns: Sequence[str] = (),
) -> PlannedRun:
    """The run of a row with a seed.

    Args:
        row: of the table, or one that is tried.
        config: the row's.
        own: the config keys that make it that of its seed, ``seed`` among them.
        threads: that it computes with.
        columns: metrics that it computes, besides those of its config.

    Raises:
        UsageError: whatever is wrong with the data. Where each seed has a world of its own, which
            its first run makes, it is the run that says what is wrong there.
    """
    needed = [*columns, *(config["primary"] or ("CTCVR_AUC", *PRIMARY_CVR))]
    metrics = list(dict.fromkeys([*config["metrics"], *needed]))
    settings = {**plain(config.external_config_dict), "metrics": metrics, **own}
    effective = {**plain(config.final_config_dict), "metrics": sorted(metrics), **own}
    code = code_of(config.model_class)
    known = {
        "model": model_path(config.model_class),
        "code": code,
        "versions": [__version__, recbole.__version__, torch.__version__, np.__version__],
        "threads": threads,
        "data": _data(config, own),
        "config": {k: _number(v) for k, v in effective.items() if k not in _WITHOUT_EFFECT},
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    name = "-".join([config["model"], config["dataset"], f"seed{own['seed']}", digest])
    return PlannedRun(
        row=row,
        seed=own["seed"],
        dataset=config["dataset"],
        settings={k: v for k, v in settings.items() if k not in ("model", "dataset")},
        parts=PAIR if learns_both(config) else (),
        code=code,
        threads=threads,
        folder=Path(config["output_dir"]).absolute() / "runs" / name,
    )


def _number(value: Any) -> Any:
    """1 and 1.0 are one setting."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _data(config: Config, own: Mapping[str, Any]) -> Any:
    """What tells the data of a run from other data."""
    if "simulation_seed" not in own:
        open_store(config)  # so that what is wrong with the data is said before anything runs
    of_run = copy.copy(config)
    of_run.final_config_dict = {**config.final_config_dict, **own}
    return plain(identity(of_run))
