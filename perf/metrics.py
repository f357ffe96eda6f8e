"""Exact AUC of three tasks, collection included: ours against stock RecBole's.

    python perf/metrics.py [--rows N] [--repeats R] [--out FILE]

What is timed is all that follows a model's scores, float32 in batches of 65,536, up to the values
of AUC: CTR and CTCVR over all rows, CVR over the clicked ones (4 % of the rows are clicked, 10 % of
those converted). A copy stands for a model's output; its memory counts, the time it takes doesn't.

* ours: ``EntireSpaceCollector``, given ``[batch, 3]`` once, and ``EntireSpaceEvaluator`` with
  ``CTR_AUC``, ``CVR_AUC`` and ``CTCVR_AUC``;
* stock: RecBole's ``Collector`` and ``Evaluator`` with ``AUC``, one pass for each task, as RecBole
  has one label. It puts its tensors together again with every batch: with RecBole's own default of
  4,096 rows a batch that would cost 16 times as much;
* sort: ``np.argsort`` of the scores of the same rows, three calls, nothing else.

Ours sorts with code that numba compiles and keeps. What compiling costs, once, and what loading it
costs a process that evaluates so many rows are given, and not counted, as imports aren't.

Each is a process of its own; memory is its greatest resident set minus the one with the scores and
the labels in it. Before anything is timed, ours is compared with ``sklearn.metrics.roc_auc_score``
on 200,000 rows whose scores take 1,000 values; a difference above 1e-9 ends the script.

Goals: at least 10 times as fast as stock, and no slower than the sort. Nothing is asserted on time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from atomic_load import (
    CLICK_RATE,
    CONVERSION_RATE,
    SEED,
    Contenders,
    Memory,
    measure,
    median,
    parse,
    publish,
    span,
)
from common import markdown_table, ratios

BATCH = 65_536
TASKS = ("ctr", "cvr", "ctcvr")
NAMES = ("CTR_AUC", "CVR_AUC", "CTCVR_AUC")
TOLERANCE = 1e-9
_TIED_ROWS, _TIED_VALUES = 200_000, 1000


def make(rows: int) -> dict[str, np.ndarray]:
    """Probabilities, float32 ``[rows, 3]``, and labels drawn from about them."""
    generator = np.random.default_rng(SEED)
    click_logit = generator.standard_normal(rows, dtype=np.float32)
    conversion_logit = generator.standard_normal(rows, dtype=np.float32)
    noise = generator.logistic(size=(2, rows))
    click = click_logit + noise[0]
    click = click > np.quantile(click, 1 - CLICK_RATE)
    conversion = conversion_logit + noise[1]
    conversion = click & (conversion > np.quantile(conversion[click], 1 - CONVERSION_RATE))
    ctr = 1 / (1 + np.exp(4 - click_logit))
    cvr = 1 / (1 + np.exp(3 - conversion_logit))
    return {
        "score": np.stack([ctr, cvr, ctr * cvr], axis=1),
        "click": click.astype(np.uint8),
        "conversion": conversion.astype(np.uint8),
    }


def write_once(cache: Path, rows: int) -> None:
    """The scores and labels of a size as files in ``cache``; made if they aren't there."""
    folder = cache / f"scores-{rows}"
    if folder.is_dir():
        return
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name, values in make(rows).items():
        np.save(partial / f"{name}.npy", values)
    partial.rename(folder)  # a run that was stopped leaves no half a set under the name


def _data(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    folder = arguments.cache / f"scores-{arguments.rows}"
    return {name: np.load(folder / f"{name}.npy") for name in ("score", "click", "conversion")}


def _config(**settings: Any) -> Any:
    from recbole_escm2.config import Config

    return Config("ESMM", "none", config_dict=settings)


# --------------------------------------------------------------------------- contenders


class Stopwatch:
    """The time spent inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._start


def _our_values(data: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    from recbole_escm2.evaluator.evaluator import EntireSpaceCollector, EntireSpaceEvaluator
    from recbole_escm2.evaluator.predictions import Truth

    # A config has a valid metric, which is computed in any case: one of the three.
    config = _config(metrics=list(NAMES), valid_metric=NAMES[0])
    evaluator = EntireSpaceEvaluator(config)
    collector = EntireSpaceCollector(TASKS, "ctcvr")
    collector.begin(Truth(click=data["click"], conversion=data["conversion"]))
    scores = torch.from_numpy(data["score"])
    watch, memory = Stopwatch(), Memory()
    for start in range(0, len(scores), BATCH):
        batch = scores[start : start + BATCH].clone()
        with watch:
            collector.eval_batch_collect(batch, None, None, None)
    with watch:
        values = dict(evaluator.evaluate(collector.get_data_struct()))
    return {"seconds": watch.seconds, "peak": memory.peak(), "values": values}


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our collector and evaluator."""
    _our_values(make(1000))  # imports, and what numpy and torch set up on first use
    loading = _load_sort()
    return {**_our_values(_data(arguments)), "loading": loading}


def compiling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours loads its sort where nothing has been compiled yet."""
    import recbole_escm2.evaluator.sorting  # noqa: F401  the package's imports don't count

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NUMBA_CACHE_DIR"] = scratch  # read when numba is imported
        return {"seconds": _load_sort()}


def _load_sort() -> float:
    """The seconds until many float32 can be sorted."""
    start = time.perf_counter()
    from recbole_escm2.evaluator.radix import radix_sort

    radix_sort(np.zeros(1, dtype=np.float32))
    return time.perf_counter() - start


def _task_data(data: dict[str, np.ndarray]) -> Iterator[tuple[str, Any, Any]]:
    """Scores and labels of each task as the tensors that batches are cut from."""
    import torch

    clicked = data["click"] > 0
    for column, name in enumerate(NAMES):
        label = data["click"] if name == "CTR_AUC" else data["conversion"]
        score = data["score"][:, column]
        if name == "CVR_AUC":
            label, score = label[clicked], score[clicked]
        yield name, torch.from_numpy(np.array(score)), torch.from_numpy(label.astype(np.float32))


def _stock_values(tasks: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    from recbole.data.interaction import Interaction
    from recbole.evaluator import Collector, Evaluator

    config = _config(metric_decimal_place=15)
    config["metrics"] = ["AUC"]
    values = {}
    watch, memory = Stopwatch(), Memory()
    for name, score, label in tasks:
        collector, evaluator = Collector(config), Evaluator(config)
        for start in range(0, len(score), BATCH):
            rows = slice(start, start + BATCH)
            batch, labels = score[rows].clone(), Interaction({config["LABEL_FIELD"]: label[rows]})
            with watch:
                collector.eval_batch_collect(batch, labels, None, None)
        with watch:
            values[name] = float(evaluator.evaluate(collector.get_data_struct())["auc"])
    return {"seconds": watch.seconds, "peak": memory.peak(), "values": values}


def stock(arguments: argparse.Namespace) -> dict[str, Any]:
    """RecBole's collector and evaluator, task by task."""
    _stock_values(list(_task_data(make(1000))))
    return _stock_values(list(_task_data(_data(arguments))))


def sort(arguments: argparse.Namespace) -> dict[str, Any]:
    """Three sorts of scores that lie side by side already."""
    scores = [score.numpy() for _, score, _ in _task_data(_data(arguments))]
    watch, memory = Stopwatch(), Memory()
    with watch:
        for score in scores:
            np.argsort(score)
    return {"seconds": watch.seconds, "peak": memory.peak()}


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours against sklearn's, where many scores are tied."""
    from sklearn.metrics import roc_auc_score

    data = make(_TIED_ROWS)
    data["score"] = np.ceil(data["score"] * _TIED_VALUES).astype(np.float32) / _TIED_VALUES
    values = _our_values(data)["values"]
    clicked = data["click"] > 0
    expected = (
        roc_auc_score(data["click"], data["score"][:, 0]),
        roc_auc_score(data["conversion"][clicked], data["score"][clicked, 1]),
        roc_auc_score(data["conversion"], data["score"][:, 2]),
    )
    return {
        "difference": max(abs(values[n] - e) for n, e in zip(NAMES, expected, strict=True)),
        "distinct": len(np.unique(data["score"])),
    }


CONTENDERS: Contenders = {
    "ours": ours,
    "stock": stock,
    "sort": sort,
    "check": check,
    "compiling": compiling,
}
_SHOWN = {"ours": "recbole_escm2", "stock": "RecBole", "sort": "three argsorts"}


def main() -> None:
    """Measure and report, or be one contender."""
    arguments = parse(__doc__, rows=10_000_000)
    if arguments.run:
        print(json.dumps(CONTENDERS[arguments.run](arguments)))
        return
    checked = measure(__file__, "check", arguments)
    if not checked["difference"] <= TOLERANCE:
        raise SystemExit(f"AUC differs from sklearn's by {checked['difference']:.1e}")
    compiled = measure(__file__, "compiling", arguments)["seconds"]
    write_once(arguments.cache, arguments.rows)
    rounds = [
        {name: measure(__file__, name, arguments) for name in _SHOWN}
        for _ in range(arguments.repeats)
    ]
    seconds = [{name: measured[name]["seconds"] for name in _SHOWN} for measured in rounds]
    peaks = [{name: measured[name]["peak"] for name in _SHOWN} for measured in rounds]
    loading = [{"ours": measured["ours"]["loading"]} for measured in rounds]
    table = markdown_table(
        ["", "seconds", "its time / ours", "peak MB"],
        [
            [
                shown,
                f"{median(seconds, name):.2f}",
                span(ratios(seconds, name, "ours")),
                f"{median(peaks, name):,.0f}",
            ]
            for name, shown in _SHOWN.items()
        ],
    )
    own, theirs = rounds[0]["ours"]["values"], rounds[0]["stock"]["values"]
    publish(
        f"AUC of three tasks over {arguments.rows:,} rows in batches of {BATCH:,}, collection "
        f"included. Medians of {arguments.repeats} rounds; ratios: median (least to greatest) over "
        f"the rounds. Not counted: compiling the sort, once ({compiled:.1f} s), and loading it "
        f"({median(loading, 'ours'):.1f} s).\n\n{table}\n\n"
        + ", ".join(f"{name} {own[name]:.9f}" for name in NAMES)
        + f"; RecBole's differ by at most {max(abs(own[n] - theirs[n]) for n in NAMES):.1e}. On "
        f"{_TIED_ROWS:,} rows with {checked['distinct']:,} distinct scores, ours and sklearn's "
        f"differ by at most {checked['difference']:.1e}.",
        arguments,
    )


if __name__ == "__main__":
    main()
