"""ESMM and ESCM²: entire-space post-click conversion models, data and metrics for RecBole.

Importing this package makes RecBole find its models and metrics and does nothing else. Neither
RecBole nor torch is loaded for it.
"""

import importlib
from typing import Any

from recbole_escm2.metric_names import metric
from recbole_escm2.plugin import register, register_model

__version__ = "0.1.0"
__all__ = ["__version__", "benchmark", "load", "metric", "register_model", "score"]

register()


def benchmark(models: Any, dataset: str | None = None, **settings: Any) -> Any:
    """Compare models over seeds, or what of it is missing, and report it; also in a notebook.

    ``recbole_escm2.benchmark(["ESMM", "ESCM2_IPS"], "ml-100k", seeds=5).table``

    Args:
        models: names, or a mapping of rows to their settings.
        dataset: name of the data set.
        **settings: ``seeds``, ``jobs``, ``trials``, ``sweep``, ``by``, … and config keys of all
            rows, as in a benchmark's file.

    Returns:
        A :class:`recbole_escm2.report.notebook.BenchmarkResult`.

    Raises:
        UsageError: something that the caller can mend; nothing has run then.
    """
    from recbole_escm2.extras import require

    require("benchmark")
    from recbole_escm2.report.notebook import benchmark as compare

    return compare(models, dataset, **settings)


def load(path: Any, model: Any = None, device: Any = None) -> Any:
    """A trained model that scores new rows, made of its checkpoint alone.

    ``scorer = recbole_escm2.load("output/…")``, then ``scorer.predict(frame)``.

    Args:
        path: a checkpoint, the folder of a run, or the two checkpoints of a pair.
        model: the class or ``path.to.module:Class``, where it is the user's own.
        device: where to compute; by default a GPU where there is one.

    Returns:
        A :class:`recbole_escm2.serve.scorer.Scorer`.

    Raises:
        UsageError: there is no checkpoint, or no model can be made of it.
    """
    from recbole_escm2.serve.scorer import Scorer

    return Scorer(path, model, device)


def score(labels: Any, predictions: Any = None, **options: Any) -> Any:
    """Metrics with intervals of predictions, whoever made them; several models are compared.

    ``recbole_escm2.score(labels, {"mine": table, "theirs": "theirs.parquet"}, key="row").table``

    Args:
        labels: a table or the path of one, with a row an impression.
        predictions: a table or path, a list of paths, or a mapping of names to either; None: they
            are in the table of labels.
        **options: see :func:`recbole_escm2.scoring.score.score`.

    Returns:
        :class:`recbole_escm2.scoring.score.Scores`, with ``table`` and ``comparison``.

    Raises:
        UsageError: something is missing, no label, no probability, or doesn't pair up.
    """
    from recbole_escm2.scoring.score import score as score_tables

    return score_tables(labels, predictions, **options)


def __getattr__(name: str) -> Any:
    """A module of the package, loaded when it is asked for: ``recbole_escm2.quick_start.run``."""
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
