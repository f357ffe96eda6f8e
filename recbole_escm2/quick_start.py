"""Run one model: data, training, test metrics, and a folder that holds all of it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed

from recbole_escm2.checkpoint import load_checkpoint, plain, vocabulary_digest
from recbole_escm2.config import Config, scored_tasks
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.evaluator import MetricResult
from recbole_escm2.model.lookup import model_path
from recbole_escm2.output import logging_to, make_run_dir, metric_table, versions, write_json
from recbole_escm2.trainer import EntireSpaceTrainer


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    command_line: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train a model with early stopping on validation and score the best epoch on test.

    Args:
        model: one of ours, a context-aware one of RecBole's, ``path.to.module:ClassName``, a class.
        dataset: name of the data set.
        config_file_list: YAML files with settings.
        config_dict: settings, over those of the files.
        saved: whether to keep the checkpoint.
        command_line: settings as text, over all others.

    Returns:
        ``best_valid_score`` (of ``valid_metric``), ``valid_score_bigger``, ``best_valid_result``
        and ``test_result`` (floats by metric name, unrounded), ``best_epoch``, ``run_dir``,
        ``simulated`` (what to say with numbers on simulated data, else None).

    Raises:
        UsageError: something that the caller can mend; the message says what.
    """
    config = Config(model, dataset, config_file_list, config_dict, command_line)
    with tempfile.TemporaryDirectory() as unsaved, _run_folder(config) as run_dir:
        if not saved:
            config["checkpoint_dir"] = unsaved
        trainer, (train, valid, test), started = _prepare(config)
        best_score, best_valid = trainer.fit(
            train, valid, saved=True, show_progress=config["show_progress"]
        )
        test_result = trainer.evaluate(test, show_progress=config["show_progress"])
        seconds = time.perf_counter() - started
        getLogger().info(f"training and evaluation took {seconds:.1f}s; all of it is in {run_dir}")
        outcome = {
            "best_valid_score": float(best_score),
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": best_valid,
            "test_result": test_result,
            "best_epoch": trainer.best_epoch,
            "simulated": test.dataset.simulated,
            "run_dir": str(run_dir),
        }
        write_json(
            run_dir / "result.json",
            {
                "model": config["model"],
                "dataset": config["dataset"],
                "seed": config["seed"],
                "valid_metric": config["valid_metric"],
                **outcome,
                "undefined": test_result.undefined,
                "decision_threshold": test_result.threshold,
                "weights_on_last_validation": trainer.weights and trainer.weights.as_dict(),
                "epochs": len(trainer.train_loss_dict),
                "parameters": _parameter_count(trainer.model),
                "seconds": round(seconds, 3),
                "data": {
                    name: loader.dataset.counts()
                    for name, loader in {"train": train, "valid": valid, "test": test}.items()
                },
                "versions": versions(),
                "config": plain(config.final_config_dict),
            },
        )
        trainer.tensorboard.close()
    return outcome


def evaluate_checkpoint(
    checkpoint: str | Path,
    model: str | type | None = None,
    dataset: str | None = None,
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score a saved model on the test split that its run had.

    Args:
        checkpoint: a file that :func:`run` wrote.
        model: its model, to make sure; the checkpoint's by default.
        dataset: its data set; likewise.
        config_dict: settings other than the run's, for example ``metrics``.
        command_line: the same as text.

    Returns:
        ``test_result``, as from :func:`run`, and ``run_dir``, a folder with log and result.

    Raises:
        UsageError: the file is no checkpoint of this model, or the data is other data.
    """
    state = load_checkpoint(checkpoint)
    for asked, key in ((model, "model"), (dataset, "dataset")):
        name = asked if isinstance(asked, str) or asked is None else model_path(asked)
        if name is not None and name != state[key]:
            raise UsageError(f"checkpoint {checkpoint} is of {key} {state[key]}, not of {name}")
    settings = {k: v for k, v in state["settings"].items() if k not in ("model", "dataset")}
    settings.update(config_dict or {})
    config = Config(
        model or state["model"], dataset or state["dataset"], None, settings, command_line
    )
    with _run_folder(config) as run_dir:
        trainer, (_, _, test), _ = _prepare(config)
        test_result = trainer.evaluate(
            test, model_file=str(checkpoint), show_progress=config["show_progress"]
        )
        trainer.tensorboard.close()
        shutil.rmtree(run_dir / "tensorboard")
        outcome = {
            "test_result": test_result,
            "simulated": test.dataset.simulated,
            "run_dir": str(run_dir),
        }
        write_json(
            run_dir / "result.json",
            {
                "checkpoint": str(checkpoint),
                **outcome,
                "undefined": test_result.undefined,
                "decision_threshold": test_result.threshold,
                "versions": versions(),
                "config": plain(config.final_config_dict),
            },
        )
    return outcome


@contextlib.contextmanager
def _run_folder(config: Config) -> Iterator[Path]:
    """The run's own folder with its log; gone again if the run couldn't start."""
    run_dir = make_run_dir(config)
    config["run_dir"] = str(run_dir)
    config["checkpoint_dir"] = str(Path(config["checkpoint_dir"] or run_dir).absolute())
    if config["show_progress"] is None:
        config["show_progress"] = sys.stderr.isatty()
    try:
        with logging_to(run_dir / "run.log", config["state"]):
            try:
                yield run_dir
            except UsageError:
                getLogger().debug("stopped here", exc_info=True)
                raise
    except UsageError:
        if not config["training_started"] and config["state"] != "debug":
            shutil.rmtree(run_dir)
        raise


def _prepare(config: Config) -> tuple[EntireSpaceTrainer, Any, float]:
    """Data, model and trainer, and when training may start."""
    logger = getLogger()
    logger.info(f"{config['model']} on {config['dataset']}, seed {config['seed']}")
    init_seed(config["seed"], config["reproducibility"])
    try:
        dataset = EntireSpaceDataset(config)
        loaders = prepare_data(config, dataset)
        logger.info(str(dataset))
        for name, loader in zip(("train", "valid", "test"), loaders, strict=True):
            logger.info(f"{name:5} {loader.dataset.summary()}")
        init_seed(config["seed"], config["reproducibility"])
        model = config.model_class(config, loaders[0].dataset).to(config["device"])
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:
        logger.debug("RecBole's error", exc_info=True)
        raise UsageError(
            f"{config['model']} can't be set up on {config['dataset']}: "
            f"{type(error).__name__}: {error} (--state=debug logs where)"
        ) from error
    trainer = EntireSpaceTrainer(config, model)
    trainer.vocabulary = vocabulary_digest(dataset)
    logger.info(
        f"{_parameter_count(model):,} parameters on {config['device']}; "
        f"predicts {', '.join(scored_tasks(config))}; stops on {config['valid_metric']}"
    )
    return trainer, loaders, time.perf_counter()


def _parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def show(outcome: Mapping[str, Any], decimals: int = 4) -> str:
    """The test metrics for people, and what to know about them."""
    result: MetricResult = outcome["test_result"]
    heading = "Test metrics" + (" on simulated data" if outcome["simulated"] else "")
    lines = ["", heading, "", metric_table(result, decimals), ""]
    if any(name.startswith("CVR_") for name in result):
        lines.append("CTR and CTCVR: all impressions. CVR: the clicked ones, a selected sample.")
    if any(name.endswith("_ES") for name in result):
        lines.append("CVR ..._ES: potential conversions of all impressions.")
    if any(name.endswith(("_F1", "_Recall")) for name in result):
        shown = ", ".join(f"{task.upper()} {value:.4f}" for task, value in result.threshold.items())
        lines.append(f"F1 and Recall predict a positive from a probability of {shown}.")
    lines += [f"{name} is left out: {reason}." for name, reason in result.undefined.items()]
    return "\n".join(lines)
