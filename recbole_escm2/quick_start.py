"""Run one model: data, training, test metrics, and a folder that holds all of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from recbole_escm2.config import Config, acting_settings
from recbole_escm2.distributed import from_main, is_main, process_group, world_size
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.calibration import (
    Calibration,
    about_calibration,
    calibration_rows,
)
from recbole_escm2.evaluator.catalogue import Setting
from recbole_escm2.evaluator.constant import worse_than_constant
from recbole_escm2.evaluator.curves import calibration, overlap, weight_quantiles
from recbole_escm2.evaluator.evaluator import MetricResult
from recbole_escm2.evaluator.groups import (
    by_group,
    groupings,
    groups_text,
    keep_groups,
    missing_notes,
)
from recbole_escm2.evaluator.influence import write_influence
from recbole_escm2.evaluator.prediction_file import keep_predictions
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.evaluator.summary import metric_table, scope_notes
from recbole_escm2.identity import digests
from recbole_escm2.keys import PLACE_KEYS, SCORING_KEYS, training_seed
from recbole_escm2.lookup import find_model, model_path
from recbole_escm2.metric_names import PER_USER, is_per_user, metric_of, primary_metrics
from recbole_escm2.output import processor, table, to_builtins, versions, write_json
from recbole_escm2.own_code import refuse_own_metrics, without_own_metrics
from recbole_escm2.property_files import read_yaml
from recbole_escm2.train.calibrate import calibrate, score_calibrated
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.code import code_of
from recbole_escm2.train.final import about_final, final_fit
from recbole_escm2.train.pair import Pair
from recbole_escm2.train.resume import new_or_unfinished
from recbole_escm2.train.run import RESULT_FILE, Run, metrics_of
from recbole_escm2.train.run_result import RunResult
from recbole_escm2.train.trainer import CUT_SHORT
from recbole_escm2.train.training import Training

#: What to say with the numbers of a checkpoint that its run would have calibrated.
NOT_CALIBRATED = (
    "the run of this checkpoint was to end with a calibration, and was cut short before it: these "
    "numbers are of uncalibrated predictions"
)


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    command_line: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> RunResult:
    """Train a model with early stopping on validation and score the best epoch on test.

    A split without validation has neither: the last of ``epochs`` is scored.

    A single-task model with ``task: both`` is a :class:`~recbole_escm2.train.pair.Pair`.

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
        ``best_valid_score`` (of ``valid_metric``, None without validation), ``valid_score_bigger``,
        ``best_valid_result`` and ``test_result`` (floats by metric name, unrounded), ``best_epoch``
        (None where there were two trainings), ``final_fit`` (None, or what the training anew was,
        whose model test scores, with the test metrics before it), ``worse_than_constant`` (None, or
        a ``task`` with its ``log_loss`` on validation and that of a ``constant`` prediction),
        ``run_dir``, ``simulated`` (what to say with numbers on simulated data, else None),
        ``calibrated`` (None, or what :func:`~recbole_escm2.evaluator.calibration.about_calibration`
        has), ``groups`` (where ``by`` asks for them). A dict, with ``table``, ``history``,
        ``groups`` and ``predictions`` as tables of pandas.

    Raises:
        UsageError: something that the caller can mend; the message says what.
    """
    with process_group():
        config = Config(model, dataset, config_file_list, config_dict, command_line)
        if folder is not None:
            return train_and_test(config, Run.of(config, saved, folder))
        run = Run.of_all(config, saved, lambda: new_or_unfinished(config, saved))
        return train_and_test(config, run)


def train_and_test(config: Config, run: Run) -> RunResult:
    """Do a run, by itself or one of an experiment, and write its result.

    Args:
        config: of the run.
        run: what to do, and where; its folder is there.

    Returns:
        As :func:`run` does, on each of several processes.

    Raises:
        UsageError: something that the caller can mend; the message says what.
    """
    with run.at_work(config):
        trained = Pair(config, run) if run.parts else Training(config, run)
        trained.fit()
        started, (best_score, best_valid) = time.perf_counter(), trained.validate()
        calibrator = calibrate(trained, config)
        if "valid" in config["save_predictions"]:
            valid = _calibrated(config, calibrator, *trained.score("valid"))
            _keep_predictions(config, run, trained, "valid", valid[1])
        raw_result, uncalibrated = trained.score("test")
        scored, final = trained, None
        if config["final_fit"]:
            scored = final_fit(trained)
            final = about_final(trained, scored, raw_result)
            raw_result, uncalibrated = scored.score("test")
        if not is_main():
            return from_main()
        test_result, predictions, about = _calibrated(config, calibrator, raw_result, uncalibrated)
        _keep_predictions(config, run, scored, "test", predictions)
        test = trained.splits["test"].dataset
        _keep_influence(config, run, test, test_result, predictions)
        seconds = sum(t.seconds for t in trained.trainings) + time.perf_counter() - started
        getLogger().info(
            f"training and evaluation took {seconds:.1f}s; all of it is in {run.folder}"
        )
        outcome = {
            "best_valid_score": None if best_score is None else float(best_score),
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": best_valid,
            "test_result": test_result,
            "best_epoch": trained.best_epoch,
            "final_fit": final,
            "worse_than_constant": worse_than_constant(trained.beside_constant),
            "simulated": test.simulated,
            "run_dir": str(run.folder),
            **_groups(config, run, trained.splits, test_result, predictions),
            "calibrated": about,
        }
        content = _about_run(config, trained) | outcome | _about_training(trained)
        content |= _about_predictions(scored, uncalibrated)
        content |= {"calibration": calibration(predictions)} | _about_scoring(config, test_result)
        content["seconds"] = round(seconds, 3)
        write_json(run.folder / RESULT_FILE, content)
        run.forget_progress()
        if outcome["worse_than_constant"]:
            getLogger().warning(f"This run is {trained.beside_constant}.")
    return from_main(RunResult(outcome, content["trainings"]))


def _calibrated(
    config: Config,
    calibrator: Calibration | None,
    result: MetricResult,
    predictions: Predictions,
) -> tuple[MetricResult, Predictions, dict[str, Any] | None]:
    """Metrics and predictions of a split after calibration, and what that changed."""
    if calibrator is None:
        return result, predictions, None
    about = about_calibration(calibrator, result, predictions)
    return *score_calibrated(calibrator, predictions, config), about


def _items(part: Any) -> Any:
    """The item of each impression, where impressions have one."""
    return None if part.iid_field is None else part.inter_feat[part.iid_field].numpy()


def _keep_influence(
    config: Config, run: Run, test: Any, result: MetricResult, predictions: Predictions
) -> None:
    """Write what test rows contribute, where other runs have the same ones."""
    if run.of_experiment and test.seed_draws == "weights":
        primary = primary_metrics(result, config["primary"])
        write_influence(run.folder, predictions, _items(test), primary)


def _keep_predictions(
    config: Config,
    run: Run,
    trained: Training | Pair,
    split: str,
    predictions: Predictions,
) -> None:
    """Write the predictions of the split that was scored last, where they are asked for."""
    if split in config["save_predictions"] and run.written:
        part, trainer = trained.splits[split].dataset, trained.trainings[-1].trainer
        keep_predictions(run.folder, split, part, predictions, trainer.propensity())


def _groups(
    config: Config,
    run: Run,
    splits: Mapping[str, Any],
    result: MetricResult,
    predictions: Predictions,
) -> dict[str, Any]:
    """The test metrics by group, where they are asked for, which are kept as CSV as well."""
    if not config["by"]:
        return {}
    train, test = (splits[name].dataset for name in ("train", "test"))
    names = [name for name in result if metric_of(name) is not None]
    made = groupings(config["by"], train, test, predictions)
    content = by_group(made, predictions, names, Setting.of(config), _items(test))
    keep_groups(run.folder, content)
    return {"groups": content}


def _about_run(config: Config, trained: Training | Pair) -> dict[str, Any]:
    """What a result file tells of what was run, and on which data."""
    test = trained.splits["test"].dataset
    identity = test.identity
    assert identity is not None, "it is split"
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "training_seed": training_seed(config),
        "seed_draws": test.seed_draws,
        "test_pool": test.test_pool,
        "valid_metric": config["valid_metric"],
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "data": {name: loader.dataset.counts() for name, loader in trained.splits.items()},
        "digests": {"code": code_of(config.model_class, metrics_of(config)), **digests(identity)},
        "processor": processor(),
    }


def _about_training(trained: Training | Pair) -> dict[str, Any]:
    """What a result file tells of the trainings."""
    trainings, trainer = trained.trainings, trained.trainings[-1].trainer
    return {
        "trainings": [training.about() for training in trainings],
        "epochs": sum(len(training.trainer.history) for training in trainings),
        "parameters": sum(training.parameter_count for training in trainings),
        "weights": trainer.weights and trainer.weights.as_dict(),
        "weights_warning": trainer.weights and trainer.weights.warning,
    }


def _about_predictions(scored: Training | Pair, predictions: Predictions) -> dict[str, Any]:
    """What a result file tells of what was predicted on test."""
    trainer = scored.trainings[-1].trainer
    weighs = trainer.propensity() is not None and bool(predictions.truth.click.any())
    return {
        "weight_quantiles": weight_quantiles(predictions.truth.click, trainer.denominator())
        if weighs
        else None,
        "overlap": overlap(predictions),
    }


def _about_scoring(config: Config, result: MetricResult) -> dict[str, Any]:
    """What a result file tells of how test was scored."""
    return {
        "undefined": result.undefined,
        "decision_threshold": result.threshold,
        "impressions_without_user": result.without_user,
        "versions": versions(),
        "config": to_builtins(config.final_config_dict),
    }


def evaluate_checkpoint(
    checkpoint: str | Path,
    model: str | type | None = None,
    dataset: str | None = None,
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
    config_file_list: Sequence[str] = (),
) -> RunResult:
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
    state = load_checkpoint(checkpoint, mapped=True)
    given: dict[str, Any] = {}
    for file in config_file_list:
        of_file = read_yaml(Path(file))
        refuse_own_metrics(of_file, f"{file}: ")
        given.update(of_file)
    given.update(config_dict or {})
    with process_group():
        config = config_to_score(checkpoint, state, model, dataset, given, command_line)
        return _evaluate(str(checkpoint), state, config)


def _evaluate(checkpoint: str, state: Mapping[str, Any], config: Config) -> RunResult:
    """Score a saved model as its config says, and write the result."""
    run = Run.of_all(config, True, lambda: Run.of(config))
    with run.at_work(config):
        _say_places(config, state)
        training = Training(config, run)
        trainer, test = training.trainer, training.splits["test"]
        trainer.take(dict(state), test)
        test_result, predictions, about = _score_saved(config, run, training, state)
        if not is_main():
            return from_main()
        trainer.tensorboard.close()
        shutil.rmtree(run.folder / "tensorboard")
        outcome = {
            "test_result": test_result,
            "training_ended": state["training_ended"],
            "epoch": state["epoch"],
            "simulated": test.dataset.simulated,
            "run_dir": str(run.folder),
            **_groups(config, run, training.splits, test_result, predictions),
            "calibrated": about,
        }
        content = {"checkpoint": checkpoint, **outcome, **_about_scoring(config, test_result)}
        write_json(run.folder / RESULT_FILE, content)
    return from_main(RunResult(outcome))


def _say_places(config: Config, state: Mapping[str, Any]) -> None:
    """Which folders of a checkpoint's training weren't taken from it."""
    for key, value in state["places"].items():
        if key not in config.external_config_dict:
            getLogger().info(
                f"the checkpoint was trained with {key} {value!r}, which is not taken from it: "
                f"say it again with --{key} if the data is still there"
            )


def _score_saved(
    config: Config, run: Run, training: Training, state: Mapping[str, Any]
) -> tuple[MetricResult, Predictions, dict[str, Any] | None]:
    """Test metrics and predictions of a saved model, calibrated as it was, and what that changed.

    Predictions are kept where they are asked for, of validation too.
    """
    calibrator = None
    if state.get("calibration"):
        calibrator = Calibration.of_state(state["calibration"])
    elif config["calibrate"]:
        getLogger().warning(NOT_CALIBRATED)
    trainer, show_progress = training.trainer, config["show_progress"]
    for split in ("valid", "test") if "valid" in config["save_predictions"] else ("test",):
        result = trainer.evaluate(training.splits[split], False, show_progress=show_progress)
        if not run.written:
            calibrator = None  # another process has the predictions
        scored = _calibrated(config, calibrator, result, trainer.predictions)
        _keep_predictions(config, run, training, split, scored[1])
    return scored


def config_to_score(
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
    for named, key in ((model, "model"), (dataset, "dataset")):
        name = named if isinstance(named, str) or named is None else model_path(named)
        if name is not None and name != state[key]:
            raise UsageError(f"checkpoint {checkpoint} is of {key} {state[key]}, not of {name}")
    if model is None and ":" in state["model"]:
        raise UsageError(
            f"checkpoint {checkpoint} is of a model of somebody's own, {state['model']!r}. A file "
            f"chooses no code that is run: if it is yours, say so with --model={state['model']}"
        )
    withheld = {"model", "dataset", *PLACE_KEYS}
    trained = {k: v for k, v in to_builtins(state["settings"]).items() if k not in withheld}
    trained = without_own_metrics(trained)
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
    if about := outcome.get("calibrated"):
        lines += _calibration_lines(about, result)
    if not outcome.get("training_ended", True):
        lines.append(f"{CUT_SHORT.format(**outcome)}.")
    if final := outcome.get("final_fit"):
        metric, before = final["valid_metric"], final["best_epoch_test_result"]
        epochs = " and ".join(map(str, final["epochs"]))
        lines.append(
            f"Final fit on train and validation, {epochs} epochs. The best epoch on train alone"
            + (f" had {metric} {before[metric]:.{decimals}f}." if metric in before else ".")
        )
    if groups := outcome.get("groups"):
        lines += ["", groups_text(groups), "", *missing_notes(groups)]
    return "\n".join(lines)


def _calibration_lines(about: Mapping[str, Any], result: MetricResult) -> list[str]:
    """The test metrics that calibration is about, before and after it."""
    rows = calibration_rows(about, result)
    lines = ["", f"Calibration ({about['method']}, fitted to validation)", ""]
    lines += [table(["metric", "before", "after"], rows), ""]
    lines += [f"p{task.upper()} stays as it is: {why}." for task, why in about["left"].items()]
    return [*lines, f"{about['note']}."] if about["note"] else lines
