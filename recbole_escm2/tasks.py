"""The tasks that a model learns, and the metrics that score them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.metric_names import (
    ALL_TASKS,
    METRIC_NAMES,
    bigger_is_better,
    canonical_name,
    combined,
    is_metric,
    is_neutral,
    statistic_of,
    task_of,
)


def is_of_family(model_class: type) -> bool:
    """Whether a model is an entire-space model, which says which keys act on it."""
    return hasattr(model_class, "acting_keys")


def is_reference(model_class: type) -> bool:
    """Whether a model is what others are compared with, fitted without gradient steps."""
    return hasattr(model_class, "fit_steps")


def is_entire_space(config: Any) -> bool:
    """Whether the model has three tasks, or RecBole's one."""
    return is_of_family(config.model_class)


def learns_both(config: Any) -> bool:
    """Whether a single-task model is trained twice: as CTR over D, and as CVR over the clicks."""
    return not is_entire_space(config) and config["task"] == "both"


def scored_tasks(config: Any) -> tuple[str, ...]:
    """The tasks that the model predicts."""
    every = is_entire_space(config) or learns_both(config)
    return ALL_TASKS if every else (config["task"],)


def single_task(config: Any) -> str:
    """The task of ``predict``, which ``LABEL_FIELD`` and RecBole's AUC and LogLoss follow."""
    every = is_entire_space(config) or learns_both(config)
    task: str = config["predict_task"] if every else config["task"]
    return task


def trains_on_clicks(config: Any) -> bool:
    """A single-task CVR model learns in the click space, where its label exists."""
    return not is_entire_space(config) and config["task"] == "cvr"


def metric_for(task: str, name: str) -> str:
    """The metric that scores a task by the statistic of another one: CTR_AUC for CTCVR_AUC."""
    if task_of(name) == task or (task_of(name) is None and not combined(name)):
        return name
    statistic, _ = statistic_of(name)
    own = f"{task.upper()}_{statistic}"
    return own if is_metric(own) else f"{task.upper()}_AUC"


def product_metric(config: Any) -> str:
    """What chooses the epoch of the CVR model that is one of two: a metric of pCTR · pCVR.

    ``valid_metric`` where the user has set one that the CVR model can change; of one that it
    can't, CTR_AUC for example, the same statistic of the product. By default CTCVR_LogLoss: the
    product ranks as pCTR alone does before pCVR has learned anything, so that an AUC over few
    conversions may keep just that (``scripts/pair_stopping.py`` compares).
    """
    if "valid_metric" not in config.external_config_dict:
        return "CTCVR_LogLoss"
    name: str = config["valid_metric"]
    if (several := combined(name)) and any(task_of(part) == "ctr" for _, part in several.parts):
        return "CTCVR_LogLoss"
    if (task_of(name) or config["predict_task"]) != "ctr":
        return name
    return metric_for("ctcvr", name if task_of(name) else f"CTR_{name}")


def derive_metrics(config: Any, external: Mapping[str, Any]) -> None:
    """Check the names of metrics in a config and derive what follows from them, in place.

    Args:
        config: ours or RecBole's.
        external: the keys that the user set.

    Raises:
        UsageError: there is no such metric, or it scores what the model doesn't learn.
    """
    tasks = scored_tasks(config)
    if isinstance(config["metrics"], str):
        config["metrics"] = [name.strip() for name in config["metrics"].split(",")]
    if isinstance(weights := config["valid_metric"], Mapping):
        weighted = [f"{weight}*{name}" for name, weight in weights.items()]
        config["valid_metric"] = (
            "+".join(weighted) if len(weights) > 1 else str(next(iter(weights)))
        )
    if "valid_metric" not in external and task_of(config["valid_metric"]) not in (None, *tasks):
        config["valid_metric"] = f"{tasks[0].upper()}_AUC"
    for key, names in (("metrics", config["metrics"]), ("valid_metric", [config["valid_metric"]])):
        if unknown := [str(name) for name in names if not is_metric(str(name))]:
            raise UsageError(f"{key}: {no_metric(unknown[0])}")
    _check_combined(config, tasks)
    valid_task = task_of(config["valid_metric"])
    if valid_task not in (None, *tasks):
        raise UsageError(
            f"valid_metric {config['valid_metric']} scores {valid_task}, but "
            f"{config['model']} learns {tasks[0]} (task: {tasks[0]})"
        )
    if is_neutral(config["valid_metric"]):
        raise UsageError(
            f"valid_metric {config['valid_metric']} knows no better or worse: it can't choose the "
            "best epoch"
        )
    _derive_primary(config)
    config["valid_metric_bigger"] = bigger_is_better(config["valid_metric"])
    config["metrics"] = list(dict.fromkeys(canonical_name(name) for name in config["metrics"]))
    config["valid_metric"] = shown_name(config["valid_metric"], config["topk"])


def _check_combined(config: Any, tasks: tuple[str, ...]) -> None:
    """Each metric of several has to score what the model predicts."""
    several = combined(config["valid_metric"])
    for _, part in several.parts if several else ():
        if task_of(part) not in tasks:
            raise UsageError(
                f"valid_metric {config['valid_metric']}: {part} scores {task_of(part)}, but "
                f"{config['model']} learns {', '.join(tasks)}"
            )


def _derive_primary(config: Any) -> None:
    """The metrics that verdicts are about, by their names; None where the data decides."""
    names = config["primary"]
    if names is None:
        return
    names = names.split(",") if isinstance(names, str) else names
    names = [str(name).strip() for name in names]
    for name in names:
        if not is_metric(name):
            raise UsageError(f"primary: {no_metric(name)}")
        if is_neutral(name) or "@" in canonical_name(name):
            raise UsageError(
                f"primary: no verdict can be about {name}: it "
                + ("knows no better or worse" if is_neutral(name) else "is one metric for each K")
            )
    if len(names) > 2:
        raise UsageError(
            f"primary takes one or two metrics, got {len(names)}: with each more of them a "
            "difference has to be larger to be seen"
        )
    config["primary"] = list(dict.fromkeys(canonical_name(name) for name in names))


def no_metric(name: str) -> str:
    """What to say of a name that no metric has."""
    if "+" in name:
        try:
            combined(name)
        except ValueError as error:
            return f"{name} can't be one metric: {error}"
    if ":" in name:
        return (
            f"'{name}' is no metric: a function is made one by the decorator "
            "recbole_escm2.metric(task=..., bigger=...), and is named on the command line or in "
            "Python"
        )
    task_name = f"CTCVR_{name}"
    if is_metric(task_name):
        weights = (
            ", with a user's impressions as weight, not the positives as in RecBole"
            if canonical_name(task_name) == "CTCVR_GAUC"
            else ""
        )
        return (
            f"metric '{name}' ranks RecBole's candidate items; over labeled impressions it is "
            f"CTR_{name}, CVR_{name} or {task_name}{weights}"
        )
    return (
        f"there is no metric '{name}'{did_you_mean(name, METRIC_NAMES)}. Metrics: "
        f"{', '.join(METRIC_NAMES)}, AUC, LogLoss, MAE, RMSE"
    )


def shown_name(metric: str, topk: list[int]) -> str:
    """As it is shown, with the first K of several."""
    name = canonical_name(metric)
    return name[:-1] + str(topk[0]) if name.partition("@")[2].lower() == "k" else name
