"""RecBole's hyper-parameter files: what a search may choose from."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from recbole.model.abstract_recommender import AbstractRecommender

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.experiment.request import Request, has_effect
from recbole_escm2.experiment.study import Row
from recbole_escm2.keys import KEY_NEEDS, PLACE_KEYS
from recbole_escm2.lookup import find_model
from recbole_escm2.own_code import refuse_own_metrics
from recbole_escm2.property_files import PROPERTIES, parse_value
from recbole_escm2.tasks import is_reference

Space: TypeAlias = dict[str, BaseDistribution]

_TYPES = "choice, uniform, quniform and loguniform"


def read_space(path: Any) -> Space:
    """The parameters of a file in RecBole's format, one a line: ``name type range``.

    Types: ``choice [a, b]``; ``uniform low,high``; ``quniform low,high,step``; ``loguniform
    low,high``, whose ends are natural logarithms (hyperopt's habit, which RecBole keeps). Blank
    lines and what follows a ``#`` are skipped.

    Raises:
        UsageError: no such file, or a line isn't as it must be; the message says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"params_file {path}: {error}") from error
    space: Space = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split(maxsplit=2)
        if not words:
            continue
        place = f"params_file {path}, line {number}"
        if len(words) < 3:
            raise UsageError(f"{place}: '{line.strip()}' must be 'name type range'")
        name, kind, wanted = words
        if name in space:
            raise UsageError(f"{place}: {name} stands there twice")
        try:
            space[name] = _distribution(kind, wanted)
        except (ValueError, SyntaxError, TypeError, OverflowError) as error:
            raise UsageError(f"{place}: {name} {kind} {wanted}: {error}") from error
    if not space:
        raise UsageError(f"params_file {path} names no parameter")
    return space


def ranges_of(request: Request, entry: Row) -> Space:
    """What may be chosen for a row: its ranges, without the keys that somebody has set.

    Nor has it a key that needs another one (``KEY_NEEDS``), which the row doesn't set. It is empty
    for a model that has nothing to choose.

    Args:
        request: whose settings and options aren't searched.
        entry: the row, which names a file of ranges or has those that ship for its model.

    Raises:
        UsageError: there are no ranges, they have a key that the model doesn't read, or every key
            of them is set.
    """
    file = entry.params_file
    space = read_space(Path(file)) if file else default_space(find_model(entry.model))
    if not space:
        return space
    for name in space:
        if name in PLACE_KEYS or name in ("model", "dataset"):
            raise UsageError(f"the ranges have {name}, which is no setting of a model")
        choices = getattr(space[name], "choices", ())
        refuse_own_metrics({name: list(choices)}, "the ranges: ")
    config = request.config(entry).final_config_dict
    backbones = getattr(space.get("backbone"), "choices", ())
    acting = {n: values for n, values in space.items() if request.reads(entry, n, backbones)}
    if file and (idle := [name for name in space if name not in acting]):
        close = did_you_mean(idle[0], config)
        raise UsageError(f"the ranges have {idle[0]}, which {entry.model} doesn't read{close}")
    left_out = {*request.settings, *entry.settings}
    left_out |= {name for name, needed in KEY_NEEDS.items() if not config.get(needed)}
    space = {name: values for name, values in acting.items() if name not in left_out}
    if not space:
        raise UsageError("every parameter of the ranges is set already")
    return space


def default_space(model: type) -> Space:
    """The space that ships for a model: its parents' ranges, then its own.

    They are in files ``CLASS.hyper``, for a model of the user's in the folder of its module;
    RecBole's base of all context-aware models, ours and its own, is ``ContextRecommender``. Keys
    that the model has and that do nothing in it are left out. A reference model may have nothing to
    choose.

    Raises:
        UsageError: there is none for this model.
    """
    space: Space = {}
    known = set(Config(model, "none").final_config_dict)
    for parent in reversed(model.__mro__):
        if issubclass(parent, AbstractRecommender):
            module = getattr(sys.modules.get(parent.__module__), "__file__", None)
            own = [Path(module).parent] if module else []  # a notebook has no file
            for folder in (PROPERTIES / "model", *own):
                file = folder / f"{parent.__name__}.hyper"
                if file.is_file():
                    ranges = read_space(file)
                    for name in ranges:
                        if name not in known:
                            raise UsageError(
                                f"{file} has {name}, which {model.__name__} doesn't read"
                                f"{did_you_mean(name, known)}"
                            )
                    space.update(ranges)
    if not space and not is_reference(model):
        raise UsageError(
            f"no ranges ship for {model.__name__}: write {model.__name__}.hyper beside its module, "
            "or give a params_file, of lines 'name type range'"
        )
    return {name: values for name, values in space.items() if has_effect(name, model)}


def settings_of(parameters: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Chosen values as config values.

    Text such as '[64, 32]' is what it spells, and a number in whole steps is a whole number.
    """
    return {name: _setting(value, space[name]) for name, value in parameters.items()}


def _setting(value: Any, values: BaseDistribution) -> Any:
    if isinstance(values, FloatDistribution):
        step = values.step
        if step and step.is_integer() and values.low.is_integer():
            return int(value)
        return float(f"{value:.12g}")  # 0.3, which steps of 0.1 make 0.30000000000000004
    return parse_value(value) if isinstance(value, str) else value


def _distribution(kind: str, wanted: str) -> BaseDistribution:
    if kind == "choice":
        values = ast.literal_eval(wanted)
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError("a choice is a list of values")
        return CategoricalDistribution([_choice(value) for value in values])
    if kind == "uniform":
        low, high = _numbers(wanted, 2)
        return FloatDistribution(low, high)
    if kind == "loguniform":
        low, high = _numbers(wanted, 2)
        return FloatDistribution(math.exp(low), math.exp(high), log=True)
    if kind == "quniform":
        low, high, step = _numbers(wanted, 3)
        if step <= 0:
            raise ValueError("the step must be > 0")
        # hyperopt rounds to multiples of the step, whatever the ends are.
        return FloatDistribution(round(low / step) * step, round(high / step) * step, step=step)
    raise ValueError(f"there are {_TYPES}")


def _choice(value: Any) -> Any:
    """A value as the storage can keep it: lists and mappings as text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _numbers(text: str, count: int) -> Iterable[float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or numbers[0] > numbers[1]:
        raise ValueError(f"{'low,high,step' if count == 3 else 'low,high'} is wanted")
    return numbers
