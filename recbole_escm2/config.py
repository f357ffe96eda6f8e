"""Configuration: layers of property files, config files and the command line, checked.

Later entries win: RecBole's properties, ours (``overall``, the model and its parents, the data
set, the model on the data set, a preset), config files, ``config_dict``, the command line. What
each key may hold is in ``keys``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import recbole.config
import torch

from recbole_escm2.distributed import local_rank, local_world_size, world_size
from recbole_escm2.errors import UsageError, checked_name, did_you_mean
from recbole_escm2.fields import LABEL_KEYS, WEIGHT_KEYS
from recbole_escm2.keys import (
    AS_THEY_ARE,
    CALIBRATION_KEYS,
    EVAL_ARGS,
    FAMILY,
    KEY_NEEDS,
    KEYS,
    OF_DATA_SETS,
    OF_RECBOLES_MODELS,
    PAIR,
    PART_SETTINGS,
    TRAINING_KEYS,
    UNLISTED,
    UNUSED_KEYS,
    Kind,
    acting,
    like,
    recbole_keys,
    table_optimizer,
    unknown_key,
    value_of_text,
    wrong_value,
)
from recbole_escm2.lookup import find_model, model_names, recbole_context_model
from recbole_escm2.metric_names import METRIC_KEYS, bigger_is_better, is_metric, own_names, task_of
from recbole_escm2.model_names import MODEL_NAMES
from recbole_escm2.own_code import import_own_metric, refuse_own_metrics, with_names
from recbole_escm2.placement import against_penalty, check_sharding
from recbole_escm2.property_files import (
    PROPERTIES,
    Settings,
    read_preset,
    read_shipped,
    read_yaml,
    recbole_properties,
)
from recbole_escm2.tasks import (
    derive_metrics,
    is_entire_space,
    is_of_family,
    is_reference,
    learns_both,
    metric_for,
    no_metric,
    product_metric,
    scored_tasks,
    shown_name,
    single_task,
    trains_on_clicks,
)

_RECBOLE_MODELS = recbole_properties() / "model"
# Read by stock RecBole before it builds a data set; its context-aware defaults serve as well.
_RUNNER_KEYS = {
    "checkpoint_dir",
    "eval_args",
    "output_dir",
    "show_progress",
    "train_neg_sample_args",
}

# --------------------------------------------------------------------------- layers


def defaults(
    model_class: type, dataset: str, external: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Our defaults for a model on a data set: overall, then the model's, then the data set's, then
    the model's on that data set, then those of a preset.

    Below all of them are RecBole's for the backbone, where that is one of RecBole's models: the
    keys that both have are ours.

    Args:
        model_class: the model.
        dataset: the data set's name.
        external: the keys that the user set, which may name the backbone and a preset.

    Raises:
        UsageError: there is no such preset.
    """
    merged = read_shipped(PROPERTIES / "overall.yaml")
    merged.update(model_defaults(model_class))
    file = PROPERTIES / "dataset" / f"{dataset}.yaml"
    if file.is_file():
        merged.update(read_shipped(file))
    for parent in reversed(model_class.__mro__):
        file = PROPERTIES / "dataset" / parent.__name__ / f"{dataset}.yaml"
        if is_of_family(parent) and file.is_file():
            merged.update(read_shipped(file))
    if (preset := (external or {}).get("preset")) is not None:
        merged.update(read_preset(preset))
    backbone = (external or {}).get("backbone", merged.get("backbone"))
    if is_of_family(model_class):
        return _of_recboles_model(backbone) | merged
    return merged


def _of_recboles_model(name: Any) -> dict[str, Any]:
    """RecBole's defaults for one of its models; none for any other name."""
    if not isinstance(name, str) or not recbole_context_model(name):
        return {}
    return read_shipped(_RECBOLE_MODELS / f"{name}.yaml")


def model_defaults(model_class: type) -> dict[str, Any]:
    """The defaults of an entire-space or a reference model; of RecBole's own, RecBole knows them.

    A model has those of its parents, unless it says otherwise: in a properties file of its name,
    or in its ``default_config``.
    """
    merged: dict[str, Any] = {}
    for parent in reversed(model_class.__mro__):
        if is_of_family(parent) or is_reference(parent):
            file = PROPERTIES / "model" / f"{parent.__name__}.yaml"
            if file.is_file():
                merged.update(read_shipped(file))
            merged.update(copy.deepcopy(vars(parent).get("default_config", {})))
    return merged


def known_keys(model_class: type, dataset: str, properties: Mapping[str, Any]) -> set[str]:
    """Every key that a run of this model on this data set can read."""
    return set(properties) | set(defaults(model_class, dataset)) | UNLISTED


# --------------------------------------------------------------------------- keys that do nothing


@cache
def idle_keys(model_class: Any, backbone: str, task: str = "both") -> frozenset[str]:
    """The config keys that do nothing in a model.

    Args:
        model_class: the model.
        backbone: its backbone, where it is an entire-space model.
        task: what it learns, where it is one of RecBole's or a reference model.
    """
    if is_of_family(model_class):
        acts: frozenset[str] = model_class.acting_keys(backbone)
        return FAMILY - acts
    if is_reference(model_class):
        own = {"task", "valid_metric", *model_class.config_keys}
        return (FAMILY | TRAINING_KEYS) - own - (acting(("pair",)) if task == "both" else set())
    return FAMILY - acting(("single_task", "pair") if task == "both" else ("single_task",))


def acting_settings(model_class: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A whole configuration without what does nothing in the model, which it may also hold."""
    backbone, task = str(settings.get("backbone")), str(settings.get("task"))
    idle = idle_keys(model_class, backbone, task)
    return {key: value for key, value in settings.items() if key not in idle}


def _set_in_vain(config: Any, external: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each key that somebody has set and that does nothing."""
    model, backbone = config.model_class, config["backbone"]
    keys = [key for key, value in external.items() if value is not None]
    for key in sorted(idle_keys(model, backbone, config["task"]).intersection(keys)):
        own = is_of_family(model) and model.__name__ not in MODEL_NAMES
        hint = f", or name it in {model.__name__}.config_keys if it does something" if own else ""
        why = why_idle(key, model, backbone)
        yield f"{_place(config, key)}{why}: {key} does nothing there; leave it out{hint}"


def why_idle(key: str, model_class: Any, backbone: str) -> str:
    """Why one of :func:`idle_keys` does nothing in a model, as a sentence without its full stop."""
    name = model_class.__name__
    if not is_of_family(model_class):
        of_pairs = "pair" in KEYS[key].acts_on
        if is_reference(model_class) and not of_pairs:
            return f"{name} is a reference model, which takes no gradient steps"
        return f"{name} learns one task" if of_pairs else f"{name} is a model of RecBole's own"
    if key == "propensity_normalization" and model_class.weighs_clicks():
        return f"{name} has another use for ô than the weights o/ô"
    return f"{name} {KEYS[key].idle.format(backbone)}"


# --------------------------------------------------------------------------- checks


def check_values(config: Any) -> None:
    """Refuse the first value that its key can't hold.

    Args:
        config: ours or RecBole's, as it was given.

    Raises:
        UsageError: it names the key.
    """
    idle = idle_keys(config.model_class, str(config["backbone"]), str(config["task"]))
    if is_entire_space(config):  # whose keys all have a default
        idle &= {"task"}
    others = _kinds_of_others(config)
    for name, value in config.final_config_dict.items():
        kind = KEYS[name].kind if name in KEYS else others.get(name)
        default = None if name in idle else config.internal_config_dict.get(name)
        if kind and (wrong := wrong_value(name, kind, value, default)):
            raise UsageError(_place(config, name) + wrong)


def _place(config: Any, key: str) -> str:
    """What begins a message about a key: the file and line that have set it, where they have."""
    return config.place(key) if isinstance(config, Config) else ""


def _kinds_of_others(config: Any) -> dict[str, Kind]:
    """The kinds of keys that only the model, or its backbone, has."""
    kinds: dict[str, Kind] = {}
    for parent in config.model_class.__mro__:
        for name, default in vars(parent).get("default_config", {}).items():
            # a subclass may give it another default, of another type
            anything = Kind("anything", lambda value: True)
            kinds.setdefault(name, anything if default is None else like(default, parent.__name__))
    for model in (*(parent.__name__ for parent in config.model_class.__mro__), config["backbone"]):
        for name, default in _of_recboles_model(model).items():
            kind = OF_RECBOLES_MODELS.get(name) or like(default, model)
            kinds.setdefault(name, kind)
    return kinds


def check_together(config: Any, external: Mapping[str, Any]) -> None:
    """Refuse values that don't go with each other.

    Args:
        config: ours or RecBole's.
        external: the keys that the user set.

    Raises:
        UsageError: it names the keys.
    """
    if is_entire_space(config):
        config.model_class.check_backbone(config["backbone"])
    _check_table_optimizer(config)
    _penalty_or_none(config, external)
    if config["sparse_embedding"]:
        _sparse_or_dense(config, external)
    elif str(config["learner"]).lower() == "sparse_adam":
        raise UsageError("learner sparse_adam needs sparse gradients: set sparse_embedding: True")
    if config["embedding_placement"] == "sharded":
        check_sharding(config)
    if config["final_fit"] and (fitted := fitted_to_validation(config)):
        raise UsageError(
            f"{fitted[0]} is fitted to validation, which final_fit trains on: leave one of them out"
        )
    if config["validations_per_epoch"] > 1 and config["eval_step"] > 1:
        raise UsageError(
            f"eval_step {config['eval_step']} validates after so many epochs, and "
            f"validations_per_epoch {config['validations_per_epoch']} within each: set one of them"
        )
    if config["propensity_calibration"] and config["propensity"] not in (None, "ctr_tower"):
        raise UsageError(
            f"propensity_calibration calibrates the CTR tower's prediction, and with propensity: "
            f"{config['propensity']} clicks aren't weighed by that: leave it out"
        )
    if config["calibrate_weights"] and not {"ctr", "cvr"} <= set(scored_tasks(config)):
        raise UsageError(
            f"calibrate_weights weighs the clicks of pCVR by 1/pCTR, and {config['model']} learns "
            f"{config['task']} alone: leave it out, or set task: both"
        )
    if "KD_DAGFM" in (parent.__name__ for parent in config.model_class.__mro__):
        _check_distillation(config)
    _check_sampling(config)
    if config["seq_separator"] == config["field_separator"]:
        raise UsageError(
            f"seq_separator and field_separator are both {config['seq_separator']!r}: the values "
            "of a sequence need a separator of their own"
        )
    _check_labels(config)
    _check_names(config)
    for key, needed in KEY_NEEDS.items():
        # A checkpoint brings all settings along, defaults too.
        default = config.internal_config_dict.get(key)
        if external.get(key, default) != default and not config[needed]:
            raise UsageError(f"{key} does nothing without {needed}: set that too, or leave it out")


def fitted_to_validation(config: Any) -> list[str]:
    """The settings by which something other than an epoch is fitted to validation."""
    fitted = [key for key in ("calibrate", "propensity_calibration") if config[key]]
    return fitted + ["propensity_floor: slope"] * (config["propensity_floor"] == "slope")


def _check_labels(config: Any) -> None:
    """Each label has a column of its own, which is no feature."""
    key_of: dict[str, str] = {}
    for key in LABEL_KEYS:
        weights = {key, key_of.get(config[key])} == set(WEIGHT_KEYS.values())
        if config[key] in key_of and not weights:
            raise UsageError(f"{key_of[config[key]]} and {key} are both '{config[key]}'")
        if config[key]:
            key_of[config[key]] = key
    labels = {config[key] for key in (*LABEL_KEYS, "LABEL_FIELD")}
    not_labels = {key: config[key] or () for key in ("numerical_features", "normalize_field")}
    not_labels["discretization"] = config["discretization"] or ()
    unused = (config["unused_col"] or {}).get("inter", ())
    for key in ("USER_ID_FIELD", "ITEM_ID_FIELD"):
        if config[key] in unused:
            raise UsageError(
                f"unused_col names '{config[key]}' ({key}), by which users and items are known: "
                f"leave it out of the data with unload_col and {key}: ~"
            )
    not_labels["unused_col"] = unused
    for key, fields in not_labels.items():
        if wrong := labels.intersection(fields):
            raise UsageError(f"{key} names the label '{wrong.pop()}': a label is not a feature")


def _check_names(config: Any) -> None:
    """Names of data become names of files: they may not lead out of their folder."""
    parts = config["benchmark_filename"]
    for key, names in {
        "dataset": [config["dataset"]],
        "ratings": [config["ratings"]],
        "benchmark_filename": parts if isinstance(parts, list) else [parts],
    }.items():
        for name in names:
            if name is not None:
                checked_name(str(name), key)


def _check_distillation(config: Any) -> None:
    """KD_DAGFM runs its key ``teacher`` as code and loads its key ``warm_up`` as a pickle."""
    if config["warm_up"] or config["phase"] not in (None, "teacher_training"):
        raise UsageError(
            "KD_DAGFM has only its phase teacher_training here, without warm_up: the later ones "
            "load the teacher's checkpoint as a pickle, which can run any code that is in it"
        )
    teacher = OF_RECBOLES_MODELS["teacher"]
    if not teacher.holds(config["teacher"]):
        raise UsageError(f"teacher must be {teacher.wanted}, got {config['teacher']!r}")


def _check_sampling(config: Any) -> None:
    mode = config["eval_args"]["mode"]
    if wrong := wrong_value("eval_args mode", EVAL_ARGS["mode"], mode, ""):
        raise UsageError(wrong)
    if config["train_neg_sample_args"]["distribution"] != "none":
        raise UsageError(f"train_neg_sample_args must be ~ or left out: {AS_THEY_ARE}")


def _check_table_optimizer(config: Any) -> None:
    """Refuse a decay that would be two things: decoupled here, and a penalty on the tables."""
    decoupled = str(config["learner"]).lower() == "adamw"
    if config["embedding_optimizer"] and config["weight_decay"] and decoupled:
        raise UsageError(
            "weight_decay of learner adamw is decoupled from the gradient, and embedding_optimizer "
            f"{config['embedding_optimizer']} has no such decay: leave one of them out"
        )


def _penalty_or_none(config: Any, external: Mapping[str, Any]) -> None:
    """Check the penalty on the embedding; as a default it gives way to a learner without one."""
    key = "embedding_weight_decay"
    try:
        _check_penalty(config, key)
    except UsageError as error:
        default = config.internal_config_dict.get(key)
        if external.get(key, default) != default:
            raise
        getLogger().warning(f"{config['model']} trains without L2 on the embedding: {error}")
        config[key] = 0.0


def _check_penalty(config: Any, key: str) -> None:
    if config[key] and table_optimizer(config) == "adamw":
        raise UsageError(
            "embedding_weight_decay is an L2 penalty, which learner adamw doesn't have: its decay "
            "(weight_decay) is decoupled from the gradient. Choose learner adam"
        )
    if config[key] and config["embedding_placement"] == "sharded":
        raise UsageError(f"embedding_placement: sharded {against_penalty(key)}")
    _check_sleep(config, key)


def _check_sleep(config: Any, key: str) -> None:
    """Refuse a penalty on rows that sleep where no closed form is known of what they do."""
    if config["sparse_embedding"] and config[key] and table_optimizer(config) != "adam":
        named = "embedding_optimizer" if config["embedding_optimizer"] else "learner"
        raise UsageError(
            f"sparse_embedding goes with {key} where the {named} is adam, got "
            f"{config[named]}: what a row does between its visits follows from Adam's step"
        )


def _sparse_or_dense(config: Any, external: Mapping[str, Any]) -> None:
    """Check sparse gradients; as a data set's default they give way in a single-task model."""
    try:
        _check_sparse(config)
    except UsageError as error:
        default = config.internal_config_dict.get("sparse_embedding")
        if is_entire_space(config) or external.get("sparse_embedding", default) != default:
            raise
        getLogger().warning(f"{config['model']} trains with dense gradients here: {error}")
        config["sparse_embedding"] = False


def _check_sparse(config: Any) -> None:
    if table_optimizer(config) not in ("adam", "sgd", "adagrad"):
        raise UsageError(
            f"sparse_embedding needs learner adam, sgd or adagrad, got {config['learner']}"
        )
    if config["clip_grad_norm"]:
        raise UsageError(
            "sparse_embedding doesn't go with clip_grad_norm: it needs dense gradients"
        )
    _check_sleep(config, "weight_decay")


# --------------------------------------------------------------------------- what follows from them


def part_config(config: Config, task: str) -> Config:
    """The config of one of the two models of ``task: both``: all keys, then those of its own.

    Its ``valid_metric`` is what chooses its epoch; of the CVR model that is a metric of the
    product (:func:`product_metric`), which it doesn't predict by itself.

    Args:
        config: of the two.
        task: ``ctr`` or ``cvr``.

    Raises:
        UsageError: ``ctr_settings`` or ``cvr_settings`` aren't as they must be; it says which.
    """
    key = f"{task}_settings"
    own = dict(config[key] or {})
    _check_part_keys(config, key, own)
    chooses = own.pop("valid_metric", None)
    if chooses is None:
        chooses = (
            product_metric(config) if task == "cvr" else metric_for(task, config["valid_metric"])
        )
    elif not is_metric(str(chooses)):
        raise UsageError(f"{key}: {no_metric(str(chooses))}")
    elif task_of(chooses) not in (None, task, *(("ctcvr",) if task == "cvr" else ())):
        scored = "pCVR or the product" if task == "cvr" else "pCTR"
        raise UsageError(f"{key}: valid_metric {chooses} doesn't score {scored}")
    of_both = ("predict_task", *PART_SETTINGS, *CALIBRATION_KEYS)
    shared = {k: v for k, v in config.external_config_dict.items() if k not in of_both}
    alone = metric_for(task, chooses)
    if "pos_weight" not in own and (by_task := config["pos_weight"]):
        shared["pos_weight"] = {task: by_task[task]} if task in by_task else None
    try:
        part = Config(
            config.model_class,
            config["dataset"],
            None,
            {**shared, **own, "task": task, "valid_metric": alone},
        )
    except UsageError as error:
        raise UsageError(f"{key}: {error}" if config[key] else str(error)) from error
    if chooses != alone:
        part["valid_metric"] = shown_name(chooses, part["topk"])
        part["valid_metric_bigger"] = bigger_is_better(chooses)
    return part


def _check_part_keys(config: Config, key: str, own: Mapping[str, Any]) -> None:
    known = known_keys(config.model_class, config["dataset"], config.internal_config_dict)
    allowed = TRAINING_KEYS & known | set(_of_recboles_model(config["model"]))
    for name in map(str, own):
        if name in allowed:
            continue
        if name in known:
            raise UsageError(
                f"{key} has '{name}', which the two models share; it takes keys of the model and "
                f"of its training: {', '.join(sorted(allowed))}"
            )
        raise UsageError(f"{key} has '{name}', which isn't known here{did_you_mean(name, allowed)}")


def derive(config: Any, external: Mapping[str, Any]) -> None:
    """Check what a config holds and derive what follows from it, in place.

    Args:
        config: ours or RecBole's.
        external: the keys that the user set.

    Raises:
        UsageError: a value is out of its range; the message names the key.
    """
    _derive_events(config)
    check_together(config, external)
    if config["LABEL_FIELD"] in {config[key] for key in LABEL_KEYS}:
        config["LABEL_FIELD"] = "task_label"
    config["numerical_features"] = config["numerical_features"] or []
    if "propensity_normalization" in config:  # as text, none is read as no value
        config["propensity_normalization"] = config["propensity_normalization"] or "none"
    config["topk"] = [config["topk"]] if isinstance(config["topk"], int) else config["topk"]
    derive_metrics(config, external)
    _check_weights(config)
    _derive_saved(config)
    _derive_groups(config)
    # RecBole puts the name of a file behind it.
    config["checkpoint_dir"] = config["checkpoint_dir"] or ""
    # What the data room makes of it, which knows neither models nor tasks.
    config["label_task"] = single_task(config)
    config["learned_tasks"] = list(scored_tasks(config))
    config["train_space"] = "click" if trains_on_clicks(config) else "entire"
    config["weight_field"] = _weight_field(config)


def _derive_events(config: Any) -> None:
    """A label that is any of several columns has one name, and ``any_of`` says of what it is."""
    any_of: dict[str, list[str]] = {}
    for key in ("CLICK_FIELD", "CONVERSION_FIELD"):
        if isinstance(names := config[key], list):
            config[key] = "+".join(names)
            if len(names) > 1:
                any_of[config[key]] = names
    config["any_of"] = any_of
    if (any_of or config["EVENT_FIELDS"]) and config["source"] not in ("atomic", "table"):
        key = "EVENT_FIELDS" if config["EVENT_FIELDS"] else "a label that is any of several columns"
        raise UsageError(f"{key}: that is for atomic files and tables, not for {config['dataset']}")


def _check_weights(config: Any) -> None:
    """Refuse weights of impressions where nothing would use them."""
    model, by_task = config.model_class, config["pos_weight"] or {}
    fields = [key for key in dict.fromkeys(WEIGHT_KEYS.values()) if config[key]]
    if config["weighted_metrics"] and not fields:
        keys = " or ".join(sorted(set(WEIGHT_KEYS.values())))
        raise UsageError(f"weighted_metrics weighs impressions by a column: name one by {keys}")
    wanted = [*fields, *(["pos_weight"] if by_task else [])]
    if is_of_family(model):
        honours, learned = model.honours_weights(), model.learned_risks()
    else:  # whether one of RecBole's own does is seen when it is built
        honours = getattr(model, "takes_weights", True)
        learned = set(PAIR if config["task"] == "both" else scored_tasks(config))
    if wanted and not honours:
        raise UsageError(
            f"{model.__name__} has a loss of its own, in which {', '.join(wanted)} would do nothing"
            ": leave it out, or set takes_weights = True in a class whose risks use "
            "Impressions.weight"
        )
    if idle := sorted(set(by_task) - learned):
        raise UsageError(
            f"pos_weight names {', '.join(idle)}, and {model.__name__} has no such loss: it has "
            f"{', '.join(sorted(learned))}"
        )


def _weight_field(config: Any) -> str | None:
    """The column that a model's weights are made of, by config ``propensity``.

    None where the CTR tower's prediction is the propensity, or the model has no weights.
    """
    key = {"field": "PROPENSITY_FIELD", "oracle": "TRUE_CTR_FIELD"}.get(config["propensity"])
    if key is None or not (is_entire_space(config) and config.model_class.weighs_clicks()):
        return None
    if config[key] is None:
        raise UsageError(f"propensity: {config['propensity']} needs a column: {key} names none")
    field: str = config[key]
    return field


def _derive_groups(config: Any) -> None:
    """What impressions are put into groups by, as a list, each once."""
    given = config["by"] or []
    names = given.split(",") if isinstance(given, str) else given
    config["by"] = list(dict.fromkeys(name.strip() for name in names))


def _derive_saved(config: Any) -> None:
    """The splits whose predictions are kept, as a list; test, whose numbers are shown, is last."""
    given = config["save_predictions"]
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",")]
    elif isinstance(given, bool):
        given = ["test"] if given else []
    config["save_predictions"] = [name for name in ("valid", "test") if name in given]


# --------------------------------------------------------------------------- configs


def _as_written(value: Any) -> Any:
    """A path, or a number or an array of numpy, as a config file has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def restore_numpy_names() -> None:
    """Names that RecBole still uses and numpy has removed (np.float, np.int, np.object, …)."""
    for name, kind in {
        "bool": np.bool_,
        "int": np.int64,
        "float": np.float64,
        "complex": np.complex128,
        "object": np.object_,
        "str": np.str_,
        "long": np.int64,
        "unicode": np.str_,
    }.items():
        if name not in vars(np):
            setattr(np, name, kind)


class Config(recbole.config.Config):
    """RecBole's configuration with our properties on top, for our models and RecBole's own.

    Args:
        model: a name, ``path.to.module:ClassName`` or a class; may stand in the other sources.
        dataset: the data set's name; likewise.
        config_file_list: YAML files, or what they hold; later ones win.
        config_dict: keys and values; text is parsed as on the command line.
        command_line: keys and text values that win over everything. ``sys.argv`` is never read.

    Raises:
        UsageError: whatever is wrong with them, naming the key.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Mapping[str, Any]] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        command_line: Mapping[str, str] | None = None,
    ) -> None:
        self._command_line = dict(command_line or {})
        self._places: dict[str, str] = {}
        for key in config_dict or ():
            if not isinstance(key, str):
                raise UsageError(f"config_dict: key {key!r} isn't text")
        try:
            super().__init__(model, dataset, config_file_list, dict(config_dict or {}))
        except UsageError:
            raise
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"RecBole refuses the configuration: {error}") from error
        self._import_own_metrics()
        derive(self, self.external_config_dict)
        if sentence := next(_set_in_vain(self, self.external_config_dict), None):
            raise UsageError(sentence)
        if learns_both(self):
            for task, key in zip(PAIR, PART_SETTINGS, strict=True):
                if self[key]:  # what is wrong with it is said before anything trains
                    part_config(self, task)

    def compatibility_settings(self) -> None:
        restore_numpy_names()

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to these lists, which are its module's globals.
        for name, keys in list(self.parameters.items()):
            self.parameters[name] = list(keys)

    def _load_config_files(
        self, file_list: Sequence[str | Mapping[str, Any]] | None
    ) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in file_list or []:
            content = file if isinstance(file, Mapping) else read_yaml(Path(file))
            merged.update(content)
            if isinstance(content, Settings):
                self._places.update((key, f"{content.place(key)}: ") for key in content)
        return merged

    def place(self, key: str) -> str:
        """What begins a message about a key that a file has set: where; nothing elsewhere."""
        later = {**self.variable_config_dict, **self.cmd_config_dict}
        return "" if key in later else self._places.get(key, "")

    def _import_own_metrics(self) -> None:
        """Import the functions that the command line or Python names as metrics.

        Raises:
            UsageError: there is none, or a file names it.
        """
        started = {**self.variable_config_dict, **self.cmd_config_dict}
        for key in METRIC_KEYS:
            if key not in started:
                refuse_own_metrics({key: self.external_config_dict.get(key)}, self.place(key))
            for name in own_names(started.get(key)):
                import_own_metric(name)

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value_of_text(key, value)
            if isinstance(value, str)
            else with_names(value)
            if key in METRIC_KEYS
            else _as_written(value)
            for key, value in config_dict.items()
        }

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._convert_config_dict(self._command_line)

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | None
    ) -> tuple[str, type, str]:
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        if model is None:
            raise UsageError(f"which model? --model=NAME: {', '.join(model_names())}")
        if dataset is None:
            raise UsageError("which data set? --dataset=NAME, for example ml-100k")
        checked_name(str(dataset), "dataset")
        model_class = find_model(model)
        return model_class.__name__, model_class, str(dataset)

    def _update_internal_config_dict(self, file: str) -> dict[str, Any]:
        content = read_shipped(Path(file))
        self.internal_config_dict.update(content)
        return content

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        # RecBole's LightGBM is another model, whose keys ours hasn't
        of_recbole = "" if is_reference(model_class) else model
        super()._load_internal_config_dict(of_recbole, model_class, dataset)
        ours = defaults(model_class, dataset, self.external_config_dict)
        self.internal_config_dict.update(ours)
        self._check_keys(known_keys(model_class, dataset, self.internal_config_dict))

    def _check_keys(self, known: set[str]) -> None:
        known = known | FAMILY  # one that is idle is refused later, with the reason
        if "source" in self.external_config_dict:
            known |= OF_DATA_SETS.keys()
        for key in self.external_config_dict.keys() & {"config_file", "config_files"}:
            raise UsageError(
                f"{self.place(key)}{key} isn't read there: config files are named on the command "
                'line, --config_files="A.yaml B.yaml"'
            )
        unknown = [key for key in self.external_config_dict if key not in known]
        of_recbole = recbole_keys() if unknown else frozenset()
        for key in unknown:
            if key in self.cmd_config_dict or key not in of_recbole:
                raise UsageError(self.place(key) + unknown_key(key, known))
        for key in self.external_config_dict:
            if key not in UNUSED_KEYS or self._is_default(key):
                continue
            if key in self.cmd_config_dict:
                raise UsageError(f"nothing here reads {key}, a key of RecBole's: leave it out")
            unknown.append(key)
        if unknown:  # a file of RecBole's users may be for many kinds of models
            getLogger().warning(
                f"keys of RecBole's that nothing here reads: {', '.join(sorted(unknown))}"
            )

    def _is_default(self, key: str) -> bool:
        default: Any = self.internal_config_dict.get(key)
        return bool(self.external_config_dict[key] == default)

    def _set_default_parameters(self) -> None:
        check_values(self)
        self.final_config_dict["eval_args"] = self._whole_eval_args()
        # RecBole's own checks know neither our metric names nor where they are not derived yet.
        own = {key: self.final_config_dict[key] for key in ("metrics", "topk", "valid_metric")}
        self.final_config_dict.update(metrics=["AUC"], topk=[1], valid_metric="AUC")
        super()._set_default_parameters()
        self.final_config_dict.update(own)

    def _init_device(self) -> None:
        """As RecBole's, which doesn't look at ``use_gpu`` and takes the CPU where it has to."""
        if self["use_gpu"] is False:
            self["gpu_id"] = ""
        if world_size() > 1:
            self._init_device_of_rank()
            return
        super()._init_device()
        gpu_id = self["gpu_id"]
        wanted = "gpu_id" in self.external_config_dict and gpu_id not in ("", "0")
        if wanted and self["device"].type == "cpu":
            raise UsageError(
                f"{self.place('gpu_id')}gpu_id: there is no device {gpu_id}; leave gpu_id out for "
                "the first one, or for the CPU where there is none"
            )

    def _init_device_of_rank(self) -> None:
        """One GPU for each process of this machine, of all that it has or of ``gpu_id``'s."""
        self.final_config_dict.update(single_spec=True, local_rank=0, device=torch.device("cpu"))
        if self["gpu_id"] == "" or not torch.cuda.is_available():
            return
        numbers = [str(number) for number in range(torch.cuda.device_count())]
        if "gpu_id" in self.external_config_dict:
            numbers = str(self["gpu_id"]).split(",")
        if (processes := local_world_size()) > len(numbers):
            raise UsageError(
                f"torchrun starts {processes} processes on this machine for {len(numbers)} of its "
                f"GPUs, and each wants its own: --nproc_per_node={len(numbers)}, or use_gpu: False"
            )
        self["device"] = torch.device("cuda", int(numbers[local_rank()]))
        torch.cuda.set_device(self["device"])

    def _whole_eval_args(self) -> dict[str, Any]:
        """The user's ``eval_args`` over our defaults: RecBole's would rank all items."""
        given = self.external_config_dict.get("eval_args", {})
        whole = {**self.internal_config_dict["eval_args"], **given}
        place = self.place("eval_args")
        for name in given:
            if name not in EVAL_ARGS:
                raise UsageError(
                    f"{place}eval_args has '{name}'{did_you_mean(str(name), EVAL_ARGS)}; it takes "
                    "split, order, group_by and mode"
                )
        for name, kind in EVAL_ARGS.items():
            if wrong := wrong_value(f"eval_args {name}", kind, whole[name], ""):
                raise UsageError(place + wrong)
        return whole


def complete(config: Any) -> None:
    """Give RecBole's own Config what it lacks: our defaults where the user set nothing.

    Stock RecBole never looks into our properties, so the first of our classes to be built calls
    this. A Config of ours is complete already, and so is one that was completed before.
    """
    if isinstance(config, Config) or config["entire_space_defaults"]:
        return
    external = config.external_config_dict
    added = {
        key: value
        for key, value in defaults(config.model_class, config["dataset"], external).items()
        if key not in external and key not in _RUNNER_KEYS
    }
    for key, value in added.items():
        config[key] = value
    config["entire_space_defaults"] = True
    if not is_entire_space(config):
        for key in ("pos_weight", *WEIGHT_KEYS.values()):
            if config[key]:
                raise UsageError(
                    f"{key}: stock RecBole trains {config['model']} without weights; "
                    "recbole-escm2 trains it with them"
                )
    config.internal_config_dict.update(added)  # what a checkpoint takes along
    check_values(config)
    derive(config, external)
    for sentence in _set_in_vain(config, external):  # one file for many models is usual there
        getLogger().warning(sentence)
    if config["calibrate"]:
        getLogger().warning(
            "calibrate does nothing in stock RecBole: run the model with recbole_escm2"
        )
    getLogger().info(
        "recbole_escm2 sets its defaults for what the configuration leaves open: "
        + ", ".join(f"{key}={value}" for key, value in sorted(added.items()))
    )
