"""Every config key, declared once: what it may hold, what it is about, on which models it acts.

Its default and its line of help stand in its property file. A key of ours is added here and there,
and nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, date, datetime
from enum import Flag, auto
from typing import Any, NamedTuple

from recbole_escm2.errors import did_you_mean
from recbole_escm2.fields import LABEL_KEYS
from recbole_escm2.metric_names import ALL_TASKS
from recbole_escm2.property_files import lines_of, parse_value, recbole_properties

#: The two models of ``task: both``, in the order of their training, and the keys of each alone.
PAIR = ("ctr", "cvr")
PART_SETTINGS = tuple(f"{task}_settings" for task in PAIR)
_LONGEST_SHOWN = 200  # characters of a value in a message

# --------------------------------------------------------------------------- kinds of values


class Kind(NamedTuple):
    """What a value must be: a test, and the words for it after "must be"."""

    wanted: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(wanted: str, test: Callable[[float], bool]) -> Kind:
    return Kind(wanted, lambda v: _is_number(v) and test(v))


def _whole(low: int, below: float = math.inf, wanted: str = "") -> Kind:
    return Kind(
        wanted or f"a whole number >= {low}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v < below,
    )


def _one_of(*names: str, any_case: bool = False) -> Kind:
    *most, last = (name if any_case else repr(name) for name in names)
    return Kind(
        f"{', '.join(most)} or {last}",
        lambda v: isinstance(v, str) and (v.lower() if any_case else v) in names,
    )


def _text(wanted: str) -> Kind:
    return Kind(wanted, lambda v: isinstance(v, str) and bool(v))


def _each(wanted: str, test: Callable[[Any], bool], empty: bool = False) -> Kind:
    return Kind(wanted, lambda v: isinstance(v, list) and (empty or bool(v)) and all(map(test, v)))


def _by_name(value: Any, test: Callable[[Any], bool]) -> bool:
    """YAML's keys may be numbers, and no column or setting is called so."""
    return isinstance(value, dict) and all(isinstance(k, str) and test(value[k]) for k in value)


def _mapping(wanted: str, test: Callable[[Any], bool] = lambda value: True) -> Kind:
    return Kind(f"a mapping of {wanted}", lambda v: _by_name(v, test))


def _is_encoding(value: Any) -> bool:
    """Of text: base64 and rot13 are codecs, too."""
    try:
        return isinstance(value, str) and isinstance("".encode(value), bytes)
    except (LookupError, ValueError):  # of a name with a zero in it, or one of no use
        return False


def _task(*tasks: str) -> Kind:
    *most, last = tasks
    wanted = f"{', '.join(most)}, or both" if last == "both" else ", ".join(tasks)
    return Kind(f"one of {wanted}", lambda v: isinstance(v, str) and v in tasks)


_METRIC = Kind(
    "the name of a metric, or a mapping of names to weights",
    lambda v: isinstance(v, str | dict) and bool(v),
)


def _names(wanted: str) -> Kind:
    return Kind(wanted, lambda v: isinstance(v, list | str) and bool(v))


def _are_devices(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"(\d+(\s*,\s*\d+)*)?", value.strip()))
    return all(map(NATURAL.holds, value if isinstance(value, tuple | list) else [value]))


def _rise(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(_is_number(p) and 0 <= p <= 1 for p in values)
        and values == sorted(set(values))
    )


def _is_tuning_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"share", "seed", "role"}
        and _is_number(value["share"])
        and 0 < value["share"] < 1
        and SEED.holds(value["seed"])
        and value["role"] in ("trial", "comparison")
    )


def _are_splits(value: Any) -> bool:
    """Written without brackets too: one, or with a comma between them."""
    names = value.split(",") if isinstance(value, str) else value
    of_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return isinstance(value, bool) or (
        of_names and {name.strip() for name in names} <= {"valid", "test"}
    )


def _are_groupings(value: Any) -> bool:
    """Written without brackets too: one, or with a comma between them."""
    names = value.split(",") if isinstance(value, str) else value
    return isinstance(names, list) and all(
        isinstance(name, str) and re.fullmatch(r"\s*[^:\s]+(:[1-9]\d{0,3})?\s*", name)
        for name in names
    )


def _are_columns(value: Any) -> bool:
    """RecBole reads a column once, however often it is named."""
    of_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return of_names and len({*value}) == len(value)


def _by_suffix(value: Any) -> bool:
    # RecBole's knowledge graphs and social networks have files of their own, which aren't read.
    files = {"inter", "user", "item", "kg", "link", "net"}
    return (
        isinstance(value, dict)
        and set(value) <= files
        and all(v == "*" or isinstance(v, list) for v in value.values())
    )


def _is_interval(value: Any) -> bool:
    """One or several, with ``;`` between them, each from a number to one that is no smaller."""
    if not isinstance(value, str):
        return False
    parts = [re.fullmatch(r"\s*[\[(]([^,]+),([^,]+)[\])]\s*", p) for p in value.split(";")]
    try:
        return all(part is not None and float(part[1]) <= float(part[2]) for part in parts)
    except ValueError:
        return False


def _is_discretization(value: Any) -> bool:
    """Of a column: ``{method: LD}``, or ``{method: ED, bucket: N}``."""
    return _by_name(
        value,
        lambda v: (
            isinstance(v, dict)
            and (v == {"method": "LD"} or set(v) == {"method", "bucket"})
            and v["method"] in ("LD", "ED")
            and COUNT.holds(v.get("bucket", 1))
        ),
    )


def _is_split(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((way, how),) = value.items()
    if way == "LS":
        return how in ("valid_and_test", "valid_only", "test_only")
    if way == "TIME" and isinstance(how, list) and len(how) in (1, 2):
        return all(moment(value) is not None for value in how)
    of_numbers = isinstance(how, list) and all(map(NOT_NEGATIVE.holds, how))
    if way == "TIME":
        return of_numbers and len(how) == 3 and sum(how) > 0
    return way in ("RS", "TS") and of_numbers and sum(how) > 0


def moment(value: Any) -> float | None:
    """A time as a number: seconds since 1970 of a date, a number as it is; None for neither.

    Args:
        value: a number in the unit of ``TIME_FIELD``, or a date as ISO 8601 has it, of UTC where
            it names no zone: ``2020-01-31``, ``2020-01-31 18:00``.
    """
    if _is_number(value):
        return float(value) if math.isfinite(value) else None
    text = value.isoformat() if isinstance(value, date) else value
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _are_parts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(map(TEXT.holds, value))
        and len({*value}) == len(value) in (2, 3)
    )


def _are_pos_weights(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and set(value) <= set(ALL_TASKS)
        and all(map(POSITIVE.holds, value.values()))
    )


def _is_path(value: Any) -> bool:
    steps = value if isinstance(value, list) else [value]
    return (
        bool(steps)
        and all(map(POSITIVE.holds, steps))
        and steps == sorted(set(steps), reverse=True)
    )


def _is_clipping(value: Any) -> bool:
    """As ``torch.nn.utils.clip_grad_norm_`` takes it."""
    kinds = {"max_norm": POSITIVE, "norm_type": NORM}
    kinds |= dict.fromkeys(("error_if_nonfinite", "foreach"), BOOLEAN)
    return (
        isinstance(value, dict)
        and {"max_norm"} <= set(value) <= set(kinds)
        and all(kinds[name].holds(inner) for name, inner in value.items())
    )


BOOLEAN = Kind("True or False", lambda v: isinstance(v, bool))
NATURAL, COUNT = _whole(0), _whole(1)
SEED = _whole(0, 2**31, "a whole number from 0 to 2^31 - 1")
NOT_NEGATIVE = _number("a number >= 0", lambda v: 0 <= v < math.inf)
POSITIVE = _number("a number > 0", lambda v: 0 < v < math.inf)
NORM = Kind("a number > 0 or 'inf'", lambda v: v in ("inf", math.inf) or POSITIVE.holds(v))
BELOW_ONE = _number("a number in [0, 1)", lambda v: 0 <= v < 1)
SHARE = _number("a number in [0, 1]", lambda v: 0 <= v <= 1)
BETWEEN = _number("a number between 0 and 1", lambda v: 0 < v < 1)
TO_TEN = _number("a number from 0 to 10", lambda v: 0 <= v <= 10)
LAYERS = _each("a list of whole numbers >= 1", COUNT.holds)
COLUMN, FOLDER, TEXT = _text("the name of a column"), _text("a folder"), _text("text")
COLUMNS = Kind("a list of different columns", _are_columns)
EVENTS = Kind(
    "the name of a column, or a list of different ones",
    lambda v: COLUMN.holds(v) or (COLUMNS.holds(v) and all(map(COLUMN.holds, v)) and bool(v)),
)
BY_SUFFIX = Kind("a mapping of file suffixes (inter, user or item) to lists of columns", _by_suffix)
INTERVAL = Kind("an interval such as '[5,inf)'", _is_interval)
AS_THEY_ARE = "impressions are trained on and scored as they are, no items are drawn"


def like(default: Any, holder: str) -> Kind:
    """The kind of a key of which its default alone is known: its type, or None.

    Args:
        default: not None.
        holder: who has it, for the message.
    """
    of_type = "number" if _is_number(default) else type(default).__name__
    return Kind(
        f"a {of_type}, as its default {default!r} in {holder} is,",
        lambda v: (
            v is None or (_is_number(v) if of_type == "number" else isinstance(v, type(default)))
        ),
    )


# --------------------------------------------------------------------------- keys


class About(Flag):
    """What a key is about."""

    #: Where and how a command runs, and what it shows or sends: never what a number depends on.
    #: The command line's and the configuration's alone; a file that is only data, such as a
    #: checkpoint or a search's database, has no say in it.
    PLACE = auto()
    #: What is scored and how, of a model that is trained already.
    SCORING = auto()
    #: A model's training: each of the two models of ``task: both`` may have its own.
    TRAINING = auto()
    #: What is read of RecBole's atomic files, or made of them.
    DATA = auto()
    #: Its values hold commas of their own, or must be the same in all runs: no sweep of it.
    NO_SWEEP = auto()
    #: None is a value of it, whatever the default is.
    OPTIONAL = auto()
    #: Often wanted: in ``--help``.
    OFTEN = auto()
    #: RecBole reads it for other kinds of models, or for what is done in another way here.
    UNUSED = auto()


PLACE, SCORING, TRAINING, DATA, NO_SWEEP, OPTIONAL, OFTEN, UNUSED = About


class Key(NamedTuple):
    """A config key.

    Attributes:
        kind: what it may hold. None is allowed where it is the default.
        about: its roles.
        acts_on: where it acts, if not on whatever the model is: any of a class (and its
            subclasses), a backbone, or a trait, see :func:`acting`.
        idle: why it does nothing elsewhere, after the model's name; ``{}`` is its backbone.
        needs: the key without which it does nothing.
    """

    kind: Kind
    about: About = About(0)
    acts_on: tuple[str, ...] = ()
    idle: str = ""
    needs: str = ""


_SINGLE = "single_task"  # RecBole's models, and the user's own of their kind
_PAIR = "pair"  # a single-task model with task: both
_FAMILY = "EntireSpaceRecommender"
_NO_TREES = "has no trees"
_MLPS = ("separate", "shared_bottom", "mmoe", "ple")
_INITS = ("xavier", "field")
TABLE_OPTIMIZERS = ("adam", "adagrad")

#: Ours; the property files have them in the same order.
OURS: Mapping[str, Key] = {
    # Labels and potential outcomes
    **dict.fromkeys(LABEL_KEYS, Key(COLUMN, DATA | OPTIONAL)),
    "CLICK_FIELD": Key(EVENTS, DATA | OFTEN),
    "CONVERSION_FIELD": Key(EVENTS, DATA | OFTEN | OPTIONAL),
    "EVENT_FIELDS": Key(COLUMNS, DATA | OPTIONAL),
    "conversion_without_click": Key(_one_of("drop", "unconvert", "raise"), DATA),
    "impressions": Key(_one_of("rows", "pairs"), DATA),
    "impression_sample": Key(_number("a share in (0, 1]", lambda v: 0 < v <= 1)),
    # Tasks
    "predict_task": Key(_task(*ALL_TASKS), acts_on=(_FAMILY, _PAIR), idle="has no use for it"),
    "task": Key(_task(*ALL_TASKS, "both"), OFTEN, (_SINGLE,), "learns all tasks"),
    **dict.fromkeys(
        PART_SETTINGS,
        Key(_mapping("config keys to values"), acts_on=(_PAIR,), idle="is one model of all tasks"),
    ),
    # Data
    "source": Key(_text("the format of the source files")),
    "store_dir": Key(FOLDER, PLACE | NO_SWEEP),
    "bag_pooling": Key(
        _one_of("mean", "sum"),
        TRAINING,
        (_FAMILY, _SINGLE, "LogisticRegression"),
        "with backbone {} pools no values",
    ),
    "multi_value_top_k": Key(COUNT),
    "weight_scaler": Key(_one_of("mean", "raw")),
    "standardize": Key(BOOLEAN, DATA),
    # Split
    "keep_together": Key(COLUMN, OPTIONAL),
    "folds": Key(_whole(2), OPTIONAL),
    "validation_share": Key(BETWEEN, OPTIONAL),
    "tuning_part": Key(
        Kind(
            "a mapping of share (between 0 and 1), seed and role (trial or comparison)",
            _is_tuning_part,
        )
    ),
    # Training
    "preset": Key(_text("the name of a preset")),
    "training_seed": Key(SEED),
    "final_fit": Key(BOOLEAN, OFTEN),
    "sparse_embedding": Key(BOOLEAN, TRAINING, (_FAMILY, _SINGLE), "has no use for it"),
    "embedding_optimizer": Key(
        _one_of(*TABLE_OPTIMIZERS), TRAINING, (_FAMILY, _SINGLE), "has no use for it"
    ),
    "embedding_placement": Key(_one_of("replicated", "sharded", "auto"), PLACE | NO_SWEEP),
    "pos_weight": Key(
        Kind("a mapping of ctr, cvr or ctcvr to numbers > 0", _are_pos_weights),
        TRAINING | OPTIONAL,
    ),
    "embedding_weight_decay": Key(NOT_NEGATIVE, TRAINING),
    "sleeping_decay": Key(NOT_NEGATIVE, TRAINING, needs="sparse_embedding"),
    "weight_averaging": Key(BELOW_ONE, TRAINING),
    "validations_per_epoch": Key(COUNT, TRAINING),
    # Evaluation
    "primary": Key(_names("a list of one or two metrics"), NO_SWEEP),
    "weighted_metrics": Key(BOOLEAN, SCORING),
    "decision_threshold": Key(
        Kind(
            "a probability or 'base_rate'",
            lambda v: v == "base_rate" or (_is_number(v) and 0 <= v <= 1),
        ),
        SCORING,
    ),
    "calibration_bins": Key(COUNT, SCORING),
    "by": Key(
        Kind(
            "item_popularity, item_clicks, pctr, propensity or a field, as NAME or NAME:N with N "
            "groups, or a list of such",
            _are_groupings,
        ),
        SCORING | NO_SWEEP | OFTEN,
    ),
    "save_predictions": Key(
        Kind("True (test), False, or a list of valid and test", _are_splits), SCORING | NO_SWEEP
    ),
    # Calibration
    "calibrate": Key(_one_of("isotonic", "platt", "temperature")),
    "calibrate_weights": Key(Kind("'ips' or left out", lambda v: v == "ips"), needs="calibrate"),
    "calibrate_floor": Key(BETWEEN, needs="calibrate_weights"),
    # Output
    "output_dir": Key(FOLDER, PLACE | NO_SWEEP | OFTEN),
    "init_from": Key(_text("a checkpoint, or a run's folder"), PLACE | NO_SWEEP),
    "resume": Key(
        Kind("True, False or a run's folder", lambda v: isinstance(v, bool) or TEXT.holds(v)),
        PLACE | NO_SWEEP,
    ),
    "save_interval": Key(NOT_NEGATIVE, PLACE | OPTIONAL),
    # Reference models
    "l2_penalty": Key(
        Kind("a number > 0, or a falling list of such", _is_path),
        TRAINING,
        ("LogisticRegression",),
        "is no logistic regression",
    ),
    "num_leaves": Key(_whole(2), TRAINING, ("LightGBM",), _NO_TREES),
    "min_data_in_leaf": Key(COUNT, TRAINING, ("LightGBM",), _NO_TREES),
    "shrinkage_rate": Key(
        _number("a number in (0, 1]", lambda v: 0 < v <= 1), TRAINING, ("LightGBM",), _NO_TREES
    ),
    "rate_smoothing": Key(POSITIVE, TRAINING, ("LightGBM",), _NO_TREES),
    # Entire-space models
    "backbone": Key(_text("the name of a backbone"), acts_on=(_FAMILY,), idle="has no use for it"),
    "embedding_size": Key(COUNT, OFTEN, (*_MLPS, _SINGLE), "with backbone {} embeds nothing"),
    "embedding_init": Key(
        Kind("'xavier', 'field' or a number > 0", lambda v: v in _INITS or POSITIVE.holds(v)),
        acts_on=(_FAMILY,),
        idle="with backbone {} embeds nothing",
    ),
    "embedding_dropout": Key(BELOW_ONE, acts_on=(_FAMILY,), idle="with backbone {} embeds nothing"),
    "first_order": Key(BOOLEAN, acts_on=_MLPS, idle="with backbone {} says that itself"),
    "mlp_hidden_size": Key(LAYERS, OFTEN, (*_MLPS, _SINGLE), "with backbone {} has no MLP"),
    "bottom_hidden_size": Key(
        LAYERS, acts_on=_MLPS[1:], idle="with backbone {} has no shared layers"
    ),
    "shared_expert_num": Key(COUNT, acts_on=_MLPS[2:], idle="with backbone {} has no experts"),
    "task_expert_num": Key(
        COUNT, acts_on=("ple",), idle="with backbone {} has no experts of a task"
    ),
    "extraction_level_num": Key(
        COUNT, acts_on=("ple",), idle="with backbone {} has no extraction levels"
    ),
    "dropout_prob": Key(
        BELOW_ONE, acts_on=(*_MLPS, _SINGLE), idle="with backbone {} has no such dropout"
    ),
    "counterfactual_weight": Key(
        NOT_NEGATIVE, OFTEN, ("counterfactual_risk",), "has no counterfactual risk"
    ),
    "global_weight": Key(NOT_NEGATIVE, OFTEN, ("global_risk",), "has no CTCVR risk"),
    "propensity": Key(
        _one_of("ctr_tower", "field", "oracle"),
        acts_on=("propensity",),
        idle="has no propensity",
    ),
    "propensity_floor": Key(
        Kind("a number in [0, 1) or 'slope'", lambda v: v == "slope" or BELOW_ONE.holds(v)),
        OFTEN,
        ("propensity",),
        "has no propensity",
    ),
    "propensity_calibration": Key(
        _one_of("platt", "temperature"), acts_on=("propensity",), idle="has no propensity"
    ),
    "propensity_normalization": Key(
        _one_of("none", "snips"), OPTIONAL, ("rescaled_propensity",), "has no propensity"
    ),
    "imputation": Key(_one_of("error", "label"), OFTEN, ("ESCM2_DR",), "has no imputation"),
    "imputation_schedule": Key(
        _one_of("joint", "alternate"), OFTEN, ("ESCM2_DR",), "has no imputation"
    ),
    "balancing_weight": Key(
        NOT_NEGATIVE, acts_on=("BalancedPropensity",), idle="balances no propensity"
    ),
    "balancing_floor": Key(BETWEEN, acts_on=("BalancedPropensity",), idle="balances no propensity"),
    "conversion_weight": Key(NOT_NEGATIVE, acts_on=("DDPO",), idle="has no soft labels"),
    "cvr_weight_limit": Key(POSITIVE, acts_on=("NISE",), idle="doesn't weigh risks by each other"),
    "bias_share": Key(SHARE, acts_on=("ESCM2_DR_MSE",), idle="mixes no imputation risks"),
    "calibrator_weight": Key(NOT_NEGATIVE, acts_on=("AITM",), idle="has no calibrator"),
    "counterfactual_prior_weight": Key(
        NOT_NEGATIVE, acts_on=("DCMT",), idle="has no counterfactual prior"
    ),
}

#: Of data sets that are made or converted: the files of those data sets hold them.
OF_DATA_SETS: Mapping[str, Key] = {
    "feature_fields": Key(_names("literature, all or a list")),
    "min_count": Key(_whole(1, 2**31, "a whole number from 1 to 2^31 - 1"), DATA),
    "on_bad_line": Key(_one_of("raise", "skip")),
    "simulation": Key(_mapping("what to simulate to its value")),  # which the source checks
    "simulation_seed": Key(SEED),
    "interaction_share": Key(_number("a number from 0 to 1", lambda v: 0 <= v <= 1)),
    "obtain": Key(TEXT),
    "customers": Key(_one_of("all", "emailed")),
    "protocol": Key(_one_of("held_out", "literature")),
    "ratings": Key(_text("the name of a data set of ratings")),
    "completion_rank": Key(NATURAL),
    "completion_regularization": Key(POSITIVE),
    "cvr_levels": Key(Kind("a list of probabilities in rising order", _rise)),
    "cvr_shares": Key(_each("a list of shares in (0, 1]", lambda v: _is_number(v) and 0 < v <= 1)),
    "propensity_steps": Key(
        _each("a list of numbers from 0 to 63", lambda v: _is_number(v) and 0 <= v < 64)
    ),
    "selection_strength": Key(TO_TEN),
    "click_rate": Key(BETWEEN, OPTIONAL),
    "propensity_noise": Key(TO_TEN),
    "hidden_confounding": Key(_number("a number between -1 and 1", lambda v: -1 < v < 1)),
}

#: RecBole's, of any model.
RECBOLES: Mapping[str, Key] = {
    # Environment
    "gpu_id": Key(Kind("numbers of devices, as in '0,1'", _are_devices), PLACE | NO_SWEEP),
    "worker": Key(NATURAL, PLACE),
    "seed": Key(SEED, OFTEN),
    "state": Key(
        _one_of("debug", "info", "warning", "error", "critical", any_case=True), PLACE | OPTIONAL
    ),
    "data_path": Key(FOLDER, PLACE | NO_SWEEP),
    "checkpoint_dir": Key(FOLDER, PLACE | NO_SWEEP | OPTIONAL),
    "wandb_project": Key(TEXT, PLACE | OPTIONAL),
    **dict.fromkeys(("show_progress", "log_wandb", "use_gpu"), Key(BOOLEAN, PLACE | OPTIONAL)),
    **dict.fromkeys(("save_dataset", "save_dataloaders"), Key(BOOLEAN, PLACE | OPTIONAL | UNUSED)),
    **dict.fromkeys(("dataset_save_path", "dataloaders_save_path"), Key(TEXT, PLACE | UNUSED)),
    **dict.fromkeys(("reproducibility", "shuffle"), Key(BOOLEAN)),
    **dict.fromkeys(("require_pow", "repeatable", "valid_metric_bigger"), Key(BOOLEAN, UNUSED)),
    # Training
    "epochs": Key(COUNT, TRAINING | OFTEN),
    "train_batch_size": Key(COUNT, TRAINING | OFTEN),
    "learner": Key(
        _one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam", any_case=True),
        TRAINING,
    ),
    "learning_rate": Key(POSITIVE, TRAINING | OFTEN),
    "train_neg_sample_args": Key(
        Kind(f"~ or left out: {AS_THEY_ARE};", lambda v: isinstance(v, dict))
    ),
    "eval_step": Key(COUNT, TRAINING),
    "stopping_step": Key(NATURAL, TRAINING),
    "clip_grad_norm": Key(
        Kind("a mapping of max_norm and norm_type (numbers > 0), as torch's", _is_clipping),
        TRAINING,
    ),
    "weight_decay": Key(NOT_NEGATIVE, TRAINING | OPTIONAL),
    "loss_decimal_place": Key(NATURAL, TRAINING | UNUSED),
    **dict.fromkeys(("enable_amp", "enable_scaler"), Key(BOOLEAN, TRAINING)),
    "transform": Key(
        _one_of(
            *("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq"),
            "user_defined",
        ),
        UNUSED,
    ),
    # Evaluation
    "eval_args": Key(_mapping("split, order, group_by and mode")),
    "metrics": Key(_names("a list of metric names"), SCORING | NO_SWEEP),
    "topk": Key(
        Kind("a list of whole numbers >= 1", lambda v: COUNT.holds(v) or LAYERS.holds(v)),
        SCORING | NO_SWEEP,
    ),
    "valid_metric": Key(_METRIC, TRAINING | OFTEN),
    "eval_batch_size": Key(COUNT, SCORING),
    "metric_decimal_place": Key(NATURAL, SCORING | UNUSED),
    # Files
    "dataset": Key(_text("the name of a data set"), NO_SWEEP),
    "benchmark_filename": Key(
        Kind("a list of three different names, or of two without validation,", _are_parts), DATA
    ),
    **dict.fromkeys(("field_separator", "seq_separator"), Key(TEXT, DATA | NO_SWEEP)),
    "encoding": Key(Kind("the name of an encoding", _is_encoding), DATA),
    **dict.fromkeys(
        ("USER_ID_FIELD", "ITEM_ID_FIELD", "RATING_FIELD", "TIME_FIELD"),
        Key(COLUMN, DATA | OPTIONAL),
    ),
    "LABEL_FIELD": Key(COLUMN, DATA),
    **dict.fromkeys(
        (
            *("ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD", "HEAD_ENTITY_ID_FIELD"),
            *("TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD"),
        ),
        Key(COLUMN, DATA | UNUSED),
    ),
    **dict.fromkeys(("NEG_PREFIX", "LIST_SUFFIX"), Key(TEXT, DATA | UNUSED)),
    "MAX_ITEM_LIST_LENGTH": Key(COUNT, DATA | UNUSED),
    "seq_len": Key(_mapping("columns to whole numbers >= 1", COUNT.holds), DATA),
    "threshold": Key(_mapping("a column to a number", _is_number), DATA | OPTIONAL),
    **dict.fromkeys(("numerical_features", "normalize_field"), Key(COLUMNS, DATA | OPTIONAL)),
    **dict.fromkeys(("load_col", "unload_col"), Key(BY_SUFFIX, DATA | OPTIONAL)),
    "unused_col": Key(BY_SUFFIX, OPTIONAL),
    "selected_features": Key(COLUMNS, UNUSED),
    "additional_feat_suffix": Key(
        Kind("a list of file suffixes", lambda v: TEXT.holds(v) or COLUMNS.holds(v)), DATA
    ),
    "rm_dup_inter": Key(_one_of("first", "last"), DATA),
    "val_interval": Key(
        _mapping(
            "columns to intervals or lists of tokens",
            lambda v: INTERVAL.holds(v) or isinstance(v, list),
        ),
        DATA,
    ),
    **dict.fromkeys(("filter_inter_by_user_or_item", "normalize_all"), Key(BOOLEAN, DATA)),
    **dict.fromkeys(
        ("user_inter_num_interval", "item_inter_num_interval"), Key(INTERVAL, DATA | OPTIONAL)
    ),
    **dict.fromkeys(("entity_kg_num_interval", "relation_kg_num_interval"), Key(INTERVAL, UNUSED)),
    "kg_reverse_r": Key(BOOLEAN, UNUSED),
    **dict.fromkeys(("alias_of_user_id", "alias_of_item_id"), Key(COLUMNS, DATA)),
    **dict.fromkeys(("alias_of_entity_id", "alias_of_relation_id"), Key(COLUMNS, DATA | UNUSED)),
    "preload_weight": Key(_mapping("columns to columns", COLUMN.holds), DATA),
    "discretization": Key(
        Kind("a mapping of columns to {method: LD} or {method: ED, bucket: N}", _is_discretization),
        DATA | OPTIONAL,
    ),
}

#: Of RecBole's models and backbones, where they have them: other models' keys may be called so.
OF_RECBOLES_MODELS: Mapping[str, Kind] = {
    **dict.fromkeys(
        (
            *("attention_size", "n_layers", "num_heads", "cross_layer_num", "expert_num"),
            *("low_rank", "t_depth", "depth"),
        ),
        COUNT,
    ),
    **dict.fromkeys(("reg_weight", "alpha", "beta"), NOT_NEGATIVE),
    **dict.fromkeys(("drop_ex", "drop_im", "hidden_dropout_prob", "attn_dropout_prob"), BELOW_ONE),
    "dropout_probs": _each("a list of numbers in [0, 1)", BELOW_ONE.holds),
    **dict.fromkeys(("order_list", "t_cin", "cin_layer_size"), LAYERS),
    **dict.fromkeys(
        ("mixed", "double_tower", "apply_norm", "use_inner", "use_outer", "direct"), BOOLEAN
    ),
    "structure": _one_of("stacked", "parallel"),
    "type": _one_of("inner", "outer"),
    "fields": _mapping("fields to lists of features", lambda v: isinstance(v, list)),
    "teacher": _one_of("CrossNet", "CIN"),
    "phase": _one_of("teacher_training", "distillation", "finetuning"),
    "warm_up": Kind("text", lambda v: isinstance(v, str)),
}

#: What stands within ``eval_args``.
EVAL_ARGS: Mapping[str, Kind] = {
    "split": Kind(
        "{RS: [0.8, 0.1, 0.1]}, {TIME: ['2020-01-01', '2020-02-01']}, {TIME: [0.8, 0.1, 0.1]}, "
        "{TS: [0.8, 0.1, 0.1]} or {LS: valid_and_test}",
        _is_split,
    ),
    "order": _one_of("RO", "TO"),
    "group_by": Kind("~ or 'user'", lambda v: str(v).lower() in ("none", "user")),
    "mode": Kind(
        f"labeled ({AS_THEY_ARE})",
        lambda v: all(m == "labeled" for m in (v.values() if isinstance(v, dict) else [v])),
    ),
}

KEYS: Mapping[str, Key] = {**OURS, **OF_DATA_SETS, **RECBOLES}
#: That RecBole's code reads although none of its property files holds them.
UNLISTED = frozenset(
    {
        *("dataset", "double_tower", "encoding", "fields", "model", "selected_features"),
        "warm_up",
    }
)


def _about(role: About) -> frozenset[str]:
    return frozenset(name for name, key in KEYS.items() if role in key.about)


# And what runs of several processes, and our runner, write into a config.
PLACE_KEYS = _about(PLACE) | {"ip", "local_rank", "nproc", "port", "run_dir", "world_size"}
SCORING_KEYS = _about(SCORING)
TRAINING_KEYS = _about(TRAINING)
DATA_KEYS = _about(DATA)
NOT_SWEPT = _about(NO_SWEEP)
UNUSED_KEYS = _about(UNUSED)
#: Of what a run ends with, be it one training or two.
CALIBRATION_KEYS = ("calibrate", "calibrate_weights", "calibrate_floor")
#: Keys that do nothing unless another key is set, by the key that they need.
KEY_NEEDS = {name: key.needs for name, key in KEYS.items() if key.needs}
#: Keys that act on some models only, and so are refused for the others.
FAMILY = frozenset(name for name, key in KEYS.items() if key.acts_on)


def acting(traits: Collection[str]) -> frozenset[str]:
    """The keys among :data:`FAMILY` that act on a model with any of these traits.

    Args:
        traits: names of its class and its parents, of its backbone where that has MLPs, and of
            ``counterfactual_risk``, ``global_risk``, ``propensity`` and ``rescaled_propensity``
            what it has; of a single-task model ``single_task``, and ``pair`` with ``task: both``.
    """
    return frozenset(name for name in FAMILY if not set(traits).isdisjoint(KEYS[name].acts_on))


def training_seed(config: Any) -> int:
    """The seed of initial weights, order of batches and dropout: by default that of the split."""
    own, seed = config["training_seed"], config["seed"]
    return int(seed if own is None else own)


def table_optimizer(config: Any) -> str:
    """What trains the embedding tables: ``embedding_optimizer``, or else the learner."""
    return str(config["embedding_optimizer"] or config["learner"]).lower().replace("sparse_", "")


def wrong_value(name: str, kind: Kind, value: Any, default: Any) -> str | None:
    """What is wrong with the value of a key, as a sentence; None where nothing is.

    Args:
        name: of the key.
        kind: what it must be.
        value: of it.
        default: None is a value where the default is None.
    """
    may_be_none = default is None or (name in KEYS and OPTIONAL in KEYS[name].about)
    if (value is None and may_be_none) or kind.holds(value):
        return None
    got = repr(value)
    shown = got if len(got) <= _LONGEST_SHOWN else f"{got[:_LONGEST_SHOWN]}... (cut)"
    return f"{name} must be {kind.wanted}, got {shown}"


def value_of_text(name: str, text: str) -> Any:
    """The value of a key that is written as text, on a command line for example.

    A column may be called 101, a folder 2024, and [5,10] is an interval.

    Args:
        name: of the key.
        text: its value.
    """
    value = parse_value(text)
    kind = KEYS[name].kind if name in KEYS else None
    is_text = kind in (COLUMN, INTERVAL) or (kind in (FOLDER, TEXT) and _is_number(value))
    is_text |= kind is EVENTS and not isinstance(value, list)
    return text if is_text and value is not None else value


def unknown_key(name: str, known: Iterable[str]) -> str:
    """What to say of a key that there isn't, with the nearest one that there is."""
    return (
        f"there is no config key '{name}'{did_you_mean(name, known)}; "
        "--help says where all of them are listed"
    )


def recbole_keys() -> frozenset[str]:
    """The keys of RecBole's property files, of whatever model, and those that it has given up."""
    files = sorted(recbole_properties().rglob("*.yaml"))
    return frozenset(lines_of(files)) | {"neg_sampling", "training_neg_sample_num"}
