"""Code of a user's own, imported by its path; only who starts the program may name it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from inspect import signature
from pathlib import PurePath
from typing import Any

from recbole_escm2.errors import UsageError, did_you_mean, place_of_import_error
from recbole_escm2.metric_names import ARGUMENTS, METRIC_KEYS, name_of, own_function, own_names


def import_own(path: str, what: str, form: str) -> Any:
    """What a module of the user's own has under a name.

    Args:
        path: ``path.to.module:name``.
        what: it is called so in messages: ``model``.
        form: what the path must be: ``path.to.module:ClassName``.

    Raises:
        UsageError: there is no such module or name, or the module fails; the message says where.
    """
    module_name, _, name = path.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"{what} '{path}' must be {form}")
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        stem = PurePath(module_name.removesuffix(".py")).name
        raise UsageError(
            f"{what} '{path}' must be {form}, not a file: run it in the folder of {stem}.py as "
            f"{stem}:{name}"
        )
    if "" not in sys.path:  # as `python -m` does; a console script leaves it out
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UsageError(
                f"{what} '{path}': there is no module '{module_name}' (looked in the current "
                "folder and the installed packages)"
            ) from error
        raise UsageError(
            f"{what} '{path}' can't be imported: {place_of_import_error(error, module_name)}"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError:
        place = getattr(module, "__file__", module_name)
        kind = "class" if what == "model" else "function"
        known = [n for n, v in vars(module).items() if isinstance(v, type) or kind == "function"]
        raise UsageError(
            f"{what} '{path}': {place} has no {kind} '{name}'{did_you_mean(name, known)}"
        ) from None


def import_own_metric(name: str) -> None:
    """Import the function that is named as a metric, ``path.to.module:function``.

    Raises:
        UsageError: there is none, it isn't marked as a metric, or it takes other arguments.
    """
    if own_function(name) is None:
        function = import_own(name, "metric", "path.to.module:function")
        if own_function(name) is None:
            raise UsageError(
                f"metric '{name}': {type(function).__name__} {name.rpartition(':')[2]} isn't "
                "marked as a metric: put @recbole_escm2.metric(task=..., bigger=...) above it"
            )
    own = own_function(name)
    assert own is not None
    for parameter in signature(own[0]).parameters.values():
        if parameter.name not in ARGUMENTS and parameter.default is parameter.empty:
            raise UsageError(
                f"metric '{name}' takes '{parameter.name}'; a metric takes label and score, and "
                "user if it likes, or predictions"
            )


def refuse_own_metrics(content: Mapping[str, Any], place: str) -> None:
    """Refuse metrics that are functions in what a file holds, however deep.

    Args:
        content: of the file.
        place: what begins the message: the file, and where in it.

    Raises:
        UsageError: it names one.
    """
    for key, value in content.items():
        if key in METRIC_KEYS:
            for name in own_names(value):
                raise UsageError(
                    f"{place}{key}: {name} would be code that a file chooses: name it on the "
                    f"command line (--{key}=...) or in Python"
                )
        elif isinstance(value, Mapping):
            refuse_own_metrics({str(k): v for k, v in value.items()}, place)


def without_own_metrics(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint without metrics that are functions: a file chooses no code."""
    kept = dict(settings)
    for key in METRIC_KEYS:
        if not any(own_names(kept.get(key))):
            continue
        value = kept.pop(key)
        if isinstance(value, list) and (others := [v for v in value if not any(own_names(v))]):
            kept[key] = others
    return kept


def with_names(value: Any) -> Any:
    """The names of metrics in what Python gives, in which functions may stand for themselves."""
    if isinstance(value, list | tuple):
        return [with_names(one) for one in value]
    return name_of(value) if callable(value) else value
