"""Run one model: data, training, test metrics, and a folder that holds all of it."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed

from recbole_escm2.train.checkpoint import load_checkpoint, plain
from recbole_escm2.config import (
    PAIR,
    PLACE_KEYS,
    SCORING_KEYS,
    Config,
    acting_settings,
    is_entire_space,
    learns_both,
    own_checkpoint_dir,
    part_config,
    read_yaml,
    scored_tasks,
    single_task,
    training_seed,
)
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError, own_files, place_in_own_code
from recbole_escm2.evaluator.catalogue import (
    ALL_TASKS,
    PER_USER,
    is_per_user,
    primary_metrics,
    score_of,
)
from recbole_escm2.evaluator.curves import calibration, overlap, weight_quantiles
from recbole_escm2.evaluator.evaluator import (
    EntireSpaceCollector,
    EntireSpaceEvaluator,
    MetricResult,
)
from recbole_escm2.evaluator.influence import keep_influence
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.model.entire_space import misspelt_hooks
from recbole_escm2.model.lookup import find_model, model_path
from recbole_escm2.model.single_task import train_as_the_family
from recbole_escm2.output import (
    logging_to,
    make_folder,
    make_run_dir,
    metric_table,
    scope_notes,
    versions,
    write_json,
)
from recbole_escm2.train.pair import keep_pace, pair_with
from recbole_escm2.threads import spinning_is_bounded, usable_cores
from recbole_escm2.train.trainer import CUT_SHORT, EntireSpaceTrainer

#: Written last: a run's folder that has it is complete.
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Fitted:
    """A trained model and the splits that it learned on.

    Attributes:
        task: what it learned, where that is one of the two trainings of a single-task model.
        trainer: with the model, and its best epoch in a checkpoint.
        splits: loaders of train, validation and test.
        best_score: of the valid metric.
        best_valid: all metrics of that validation.
        seconds: that training took, validations included.
    """

    task: str | None
    trainer: EntireSpaceTrainer
    splits: Mapping[str, Any]
    best_score: float
    best_valid: MetricResult
    seconds: float


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    command_line: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train a model with early stopping on validation and score the best epoch on test.

    A single-task model with ``task: both`` is trained twice, as a CTR model over D and as a CVR
    model over the clicked impressions; pCTCVR is the product of the two. The CTR model stops early
    on its own task, the CVR model on the product (:func:`~recbole_escm2.config.product_metric`).

    Args:
        model: one of ours, a context-aware one of RecBole's, ``path.to.module:ClassName``, a class.
        dataset: name of the data set.
        config_file_list: YAML files with settings.
        config_dict: settings, over those of the files.
        saved: whether to keep the checkpoint.
        command_line: settings as text, over all others.
        folder: of the run, which is then one of many: what comparing them takes is kept beside its
            result. By default a new one in ``output_dir``.

    Returns:
        ``best_valid_score`` (of ``valid_metric``), ``valid_score_bigger``, ``best_valid_result``
        and ``test_result`` (floats by metric name, unrounded), ``best_epoch`` (None where there
        were two trainings), ``run_dir``, ``simulated`` (what to say with numbers on simulated data,
        else None).

    Raises:
        UsageError: something that the caller can mend; the message says what.
    """
    config = Config(model, dataset, config_file_list, config_dict, command_line)
    with (
        _run_folder(config, folder) as run_dir,
        tempfile.TemporaryDirectory(dir=folder, prefix="unsaved-") as unsaved,
    ):
        if not saved:
            config["checkpoint_dir"] = unsaved
        fitted: list[Fitted] = []
        for stage in _stages(config):
            try:
                fitted.append(_fit(stage, fitted[0] if fitted else None))
            finally:
                config["training_started"] |= bool(stage["training_started"])
        started = time.perf_counter()
        best_score, best_valid = fitted[0].best_score, fitted[0].best_valid
        if len(fitted) > 1:
            best_valid, _ = _score(config, fitted, "valid")
            best_score = score_of(config["valid_metric"], best_valid[config["valid_metric"]])
        test_result, predictions = _score(config, fitted, "test")
        test = fitted[0].splits["test"].dataset
        if folder is not None and test.seed_draws == "weights":
            item = None if test.iid_field is None else test.inter_feat[test.iid_field].numpy()
            primary = primary_metrics(test_result, config["primary"])
            keep_influence(run_dir, predictions, item, primary)
        seconds = sum(part.seconds for part in fitted) + time.perf_counter() - started
        getLogger().info(f"training and evaluation took {seconds:.1f}s; all of it is in {run_dir}")
        outcome = {
            "best_valid_score": float(best_score),
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": best_valid,
            "test_result": test_result,
            "best_epoch": fitted[0].trainer.best_epoch if len(fitted) == 1 else None,
            "simulated": test.simulated,
            "run_dir": str(run_dir),
        }
        write_json(
            run_dir / RESULT_FILE,
            {
                "model": config["model"],
                "dataset": config["dataset"],
                "seed": config["seed"],
                "training_seed": training_seed(config),
                "seed_draws": fitted[0].splits["test"].dataset.seed_draws,
                "test_pool": fitted[0].splits["test"].dataset.test_pool,
                "valid_metric": config["valid_metric"],
                **outcome,
                "undefined": test_result.undefined,
                "decision_threshold": test_result.threshold,
                "impressions_without_user": test_result.without_user,
                **_about_training(fitted, predictions),
                "seconds": round(seconds, 3),
                "threads": torch.get_num_threads(),
                "data": {
                    name: loader.dataset.counts() for name, loader in fitted[0].splits.items()
                },
                "versions": versions(),
                "config": plain(config.final_config_dict),
            },
        )
        for part in fitted:
            part.trainer.tensorboard.close()
    return outcome


def _stages(config: Config) -> list[Config]:
    """The config of each training: the run's own, or one for each model of a pair."""
    if not learns_both(config):
        return [config]
    run_dir = Path(config["run_dir"])
    beside = Path(config["checkpoint_dir"]) == run_dir
    stages = [part_config(config, task) for task in PAIR]
    for task, stage in zip(PAIR, stages, strict=True):
        own = run_dir / task
        own.mkdir()
        stage["stage"] = task
        stage["predict_task"] = config["predict_task"]  # of the product
        stage["run_dir"] = str(own)
        stage["checkpoint_dir"] = str(own) if beside else config["checkpoint_dir"]
        stage["show_progress"] = config["show_progress"]
    return stages


def _fit(config: Config, before: Fitted | None = None) -> Fitted:
    """Train with early stopping.

    Args:
        config: of the training.
        before: the CTR model that a CVR model goes with.
    """
    trainer, loaders = _prepare(config)
    started = time.perf_counter()
    train, valid, _ = loaders
    if before is not None:
        before.trainer.evaluate(before.splits["valid"], show_progress=config["show_progress"])
        pair_with(trainer, before.trainer.eval_collector.predictions, config["predict_task"])
        keep_pace(trainer, math.ceil(len(before.splits["train"]) / len(train)))
    best_score, best_valid = trainer.fit(
        train, valid, saved=True, show_progress=config["show_progress"]
    )
    assert best_valid is not None, "a validation comes after the first epoch at the latest"
    return Fitted(
        config["stage"],
        trainer,
        dict(zip(("train", "valid", "test"), loaders, strict=True)),
        best_score,
        best_valid,
        time.perf_counter() - started,
    )


def _score(
    config: Config, fitted: Sequence[Fitted], split: str
) -> tuple[MetricResult, Predictions]:
    """The metrics of the best epoch on a split: of one model, or of two with their product."""
    scores: dict[str, Any] = {}
    for part in fitted:
        if part.task is not None:
            part.trainer.eval_collector = EntireSpaceCollector((part.task,), part.task)
        loader, collector = part.splits[split], part.trainer.eval_collector
        result = part.trainer.evaluate(loader, show_progress=config["show_progress"])
        assert collector.predictions is not None
        if part.task is None:
            return result, collector.predictions
        scores[part.task] = torch.from_numpy(collector.predictions.of(part.task))
    scores["ctcvr"] = scores["ctr"] * scores["cvr"]
    both = EntireSpaceCollector(ALL_TASKS, single_task(config))
    both.begin(loader.dataset.truth)
    both.eval_batch_collect(torch.stack([scores[task] for task in ALL_TASKS], 1), None, None, None)
    result = EntireSpaceEvaluator(config).evaluate(both.get_data_struct())
    assert both.predictions is not None
    return result, both.predictions


def _about_training(fitted: Sequence[Fitted], predictions: Predictions) -> dict[str, Any]:
    """What a result file tells of the trainings, and of what they predict on test."""
    trainer = fitted[-1].trainer
    weighted = trainer.weights is not None
    return {
        "trainings": [
            {
                "task": part.task,
                "valid_metric": part.trainer.valid_metric,
                "best_valid_score": float(part.best_score),
                "valid_score_bigger": part.trainer.valid_metric_bigger,
                "best_epoch": part.trainer.best_epoch,
                "seconds": round(part.seconds, 3),
                "epochs": part.trainer.history,
            }
            for part in fitted
        ],
        "epochs": sum(len(part.trainer.history) for part in fitted),
        "parameters": sum(_parameter_count(part.trainer.model) for part in fitted),
        "weights": trainer.weights and trainer.weights.as_dict(),
        "weights_warning": trainer.weights and trainer.weights.warning,
        "weight_quantiles": weight_quantiles(predictions.truth.click, trainer.denominator())
        if weighted
        else None,
        "calibration": calibration(predictions),
        "overlap": overlap(predictions),
    }


def evaluate_checkpoint(
    checkpoint: str | Path,
    model: str | type | None = None,
    dataset: str | None = None,
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
    config_file_list: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a saved model on the test split that its run had.

    A checkpoint is data: it chooses neither code nor a place. A model of one's own is loaded only
    where ``model`` names it, and folders (``data_path``, ``output_dir``, …) are those that are
    given here.

    Args:
        checkpoint: a file that :func:`run` wrote.
        model: its model; may be left out for this package's and RecBole's.
        dataset: its data set, to make sure; the checkpoint's by default.
        config_dict: settings: of places (:data:`PLACE_KEYS`) and of scoring
            (:data:`SCORING_KEYS`, for example ``metrics``). All others must be the run's.
        command_line: the same as text.
        config_file_list: the same in YAML files.

    Returns:
        ``test_result``, as from :func:`run`, ``training_ended`` (False where the training was cut
        short), ``epoch`` and ``run_dir``, a folder with log and result.

    Raises:
        UsageError: the file is no checkpoint of this model, or the data, the split or a setting
            isn't what it was trained with; the message says which.
    """
    state = load_checkpoint(checkpoint)
    given: dict[str, Any] = {}
    for file in config_file_list:
        given.update(read_yaml(Path(file)))
    given.update(config_dict or {})
    config = _config_to_score(checkpoint, state, model, dataset, given, command_line)
    with _run_folder(config) as run_dir:
        for key, value in state["places"].items():
            if key not in config.external_config_dict:
                getLogger().info(
                    f"the checkpoint was trained with {key} {value!r}, which is not taken from it: "
                    f"say it again with --{key} if the data is still there"
                )
        trainer, (_, _, test) = _prepare(config)
        trainer.take(state, test)
        test_result = trainer.evaluate(test, False, show_progress=config["show_progress"])
        trainer.tensorboard.close()
        shutil.rmtree(run_dir / "tensorboard")
        outcome = {
            "test_result": test_result,
            "training_ended": state["training_ended"],
            "epoch": state["epoch"],
            "simulated": test.dataset.simulated,
            "run_dir": str(run_dir),
        }
        write_json(
            run_dir / RESULT_FILE,
            {
                "checkpoint": str(checkpoint),
                **outcome,
                "undefined": test_result.undefined,
                "decision_threshold": test_result.threshold,
                "impressions_without_user": test_result.without_user,
                "versions": versions(),
                "config": plain(config.final_config_dict),
            },
        )
    return outcome


def _config_to_score(
    checkpoint: str | Path,
    state: Mapping[str, Any],
    model: str | type | None,
    dataset: str | None,
    given: Mapping[str, Any],
    command_line: Mapping[str, str] | None,
) -> Config:
    """The config of a checkpoint's training, with what may be another when it is scored.

    Raises:
        UsageError: something is given that may not, or the model is the user's own and not given.
    """
    for asked, key in ((model, "model"), (dataset, "dataset")):
        name = asked if isinstance(asked, str) or asked is None else model_path(asked)
        if name is not None and name != state[key]:
            raise UsageError(f"checkpoint {checkpoint} is of {key} {state[key]}, not of {name}")
    if model is None and ":" in state["model"]:
        raise UsageError(
            f"checkpoint {checkpoint} is of a model of somebody's own, {state['model']!r}. A file "
            f"chooses no code that is run: if it is yours, say so with --model={state['model']}"
        )
    withheld = {"model", "dataset", *PLACE_KEYS}
    trained = {k: v for k, v in plain(state["settings"]).items() if k not in withheld}
    trained = acting_settings(find_model(model or state["model"]), trained)  # defaults are in it
    given = {k: v for k, v in given.items() if k not in ("model", "dataset")}
    which = model or state["model"], dataset or state["dataset"], None
    config = Config(*which, {**trained, **given}, command_line)
    if questioned := {*given, *(command_line or {})} - PLACE_KEYS - SCORING_KEYS:
        before = Config(*which, trained)
        if changed := [key for key in sorted(questioned) if config[key] != before[key]]:
            was = ", ".join(f"{key} {before[key]!r}" for key in changed)
            now = ", ".join(f"{key} {config[key]!r}" for key in changed)
            raise UsageError(
                f"checkpoint {checkpoint} was trained with {was}, and can't be scored with {now}: "
                f"leave {', '.join(changed)} out. What may differ is where things are and what is "
                f"scored: {', '.join(sorted(SCORING_KEYS))}"
            )
    return config


@contextlib.contextmanager
def _run_folder(config: Config, folder: Path | None = None) -> Iterator[Path]:
    """The run's own folder with its log; gone again if the run couldn't start."""
    run_dir = make_run_dir(config) if folder is None else folder.absolute()
    config["run_dir"] = str(run_dir)
    config["training_started"] = False
    config["checkpoint_dir"] = str(Path(own_checkpoint_dir(config) or run_dir).absolute())
    try:
        make_folder("checkpoint_dir", Path(config["checkpoint_dir"]))
    except UsageError:
        if folder is None:
            shutil.rmtree(run_dir)
        raise
    if config["show_progress"] is None:
        config["show_progress"] = sys.stderr.isatty()
    try:
        with logging_to(run_dir / "run.log", config["state"]):
            try:
                yield run_dir
            except UsageError:
                getLogger().debug("stopped here", exc_info=True)
                raise
            except Exception as error:
                where = place_in_own_code(error, own_files(config.model_class))
                if where is None:
                    raise
                getLogger().debug("stopped here", exc_info=True)
                raise UsageError(f"{where} (--state=debug shows all calls)") from error
    except UsageError:
        own = folder is None
        if own and not config["training_started"] and config["state"] != "debug":
            shutil.rmtree(run_dir)
        raise


def _prepare(config: Config) -> tuple[EntireSpaceTrainer, Any]:
    """Data, model and trainer."""
    logger = getLogger()
    of_task = f" as {config['stage'].upper()} model" if config["stage"] else ""
    seed = training_seed(config)
    seeds = f"seed {config['seed']}" + (f", training_seed {seed}" if seed != config["seed"] else "")
    logger.info(f"{config['model']}{of_task} on {config['dataset']}, {seeds}")
    _log_threads()
    for sentence in misspelt_hooks(config.model_class):
        logger.warning(sentence)
    init_seed(seed, config["reproducibility"])
    try:
        dataset = EntireSpaceDataset(config)
        loaders = prepare_data(config, dataset)
        logger.info(str(dataset))
        for name, loader in zip(("train", "valid", "test"), loaders, strict=True):
            logger.info(f"{name:5} {loader.dataset.summary()}")
        init_seed(seed, config["reproducibility"])
        train = loaders[0].dataset
        model = config.model_class(config, train).to(config["device"])
        if not is_entire_space(config):
            few = train[:2].to(config["device"])
            for sentence in train_as_the_family(model, config, few):
                logger.info(sentence)
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:
        if place_in_own_code(error, own_files(config.model_class)):
            raise
        logger.debug("RecBole's error", exc_info=True)
        raise UsageError(
            f"{config['model']} can't be set up on {config['dataset']}: "
            f"{type(error).__name__}: {error} (--state=debug logs where)"
        ) from error
    trainer = EntireSpaceTrainer(config, model)
    logger.info(
        f"{_parameter_count(model):,} parameters on {config['device']}; "
        f"predicts {', '.join(scored_tasks(config))}; stops on {config['valid_metric']}"
    )
    return trainer, loaders


def _log_threads() -> None:
    logger, cores, threads = getLogger(), usable_cores(), torch.get_num_threads()
    logger.info(f"{threads} thread{'s' * (threads > 1)}; the process may use {cores} cores")
    if threads > 1 and not spinning_is_bounded():
        logger.info(
            "threads that wait spin, and beside other work training may take many times as long: "
            "GOMP_SPINCOUNT=2000 in the environment bounds it, but torch is loaded already, so "
            "that it is too late for this process"
        )


def _parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def show(outcome: Mapping[str, Any], decimals: int = 4) -> str:
    """The test metrics for people, and what to know about them."""
    result: MetricResult = outcome["test_result"]
    heading = "Test metrics" + (" on simulated data" if outcome["simulated"] else "")
    lines = ["", heading, "", metric_table(result, decimals), ""]
    lines += scope_notes(result)
    if any(name.endswith(("_F1", "_Recall")) for name in result):
        shown = ", ".join(f"{task.upper()} {value:.4f}" for task, value in result.threshold.items())
        lines.append(f"F1 and Recall predict a positive from a probability of {shown}.")
    if result.without_user and any(map(is_per_user, result)):
        lines.append(
            f"{', '.join(PER_USER)}: without {result.without_user:,} impressions that have no user "
            "id."
        )
    lines += [f"{name} is left out: {reason}." for name, reason in result.undefined.items()]
    if not outcome.get("training_ended", True):
        lines.append(f"{CUT_SHORT.format(**outcome)}.")
    return "\n".join(lines)
