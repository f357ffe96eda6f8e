"""Whether an artefact gives what its model does, on made-up rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.errors import UsageError
from recbole_escm2.export.formats import Artefact
from recbole_escm2.export.reader import Reader
from recbole_escm2.serve.scorer import Scorer

#: How far a probability may be from the model's.
TOLERANCE = 1e-5
_ROWS, _LONGEST = 257, 6  # of random rows; values of a list
_MISSING = 0.1  # share of values that aren't there
_UNKNOWN = "a token that no training has"
Array = NDArray[Any]
Columns = dict[str, list[Any]]


def verify(artefact: Artefact, folder: Path, scorer: Scorer, seed: int = 0) -> dict[str, float]:
    """The largest differences between an artefact's probabilities and the model's.

    Rows of raw values go to the model as the command ``predict`` reads them, and to the artefact
    by the plain reader.

    Args:
        artefact: as it is run.
        folder: of the export.
        scorer: of the checkpoint.
        seed: of the rows.

    Returns:
        By kind of rows.

    Raises:
        UsageError: one is above :data:`TOLERANCE`; the message says which.
    """
    reader = Reader(folder)
    raw = copy.copy(scorer)
    raw.calibration = None
    found = {}
    for kind, columns in _rows(scorer, np.random.default_rng(seed)):
        given = artefact(list(reader.inputs(columns).values()))
        before = raw.predict(_table(scorer, columns))
        found[kind] = max(
            _excess(np.asarray(own, np.float64), before[f"p{task}"].to_numpy(), task, scorer)
            for task, own in zip(scorer.tasks, given, strict=True)
        )
        if not found[kind] <= TOLERANCE:
            raise UsageError(
                f"the artefact's probabilities differ by {found[kind]:.2g} from the model's on "
                f"{kind}, more than {TOLERANCE:g}: this model can't be exported so. The model's "
                f"own differ by {_own_rounding(raw, _table(scorer, columns)):.2g} there when its "
                "rows are scored one by one: where that is about as much, its numbers aren't of "
                "one scale (normalize_field), or its weights are too large"
            )
    return found


def _own_rounding(scorer: Scorer, rows: pa.Table) -> float:
    """How far a model's probabilities are from its own in batches of one row."""
    alone = copy.copy(scorer)
    alone.batch_size = 1
    return float(np.abs(alone.predict(rows).to_numpy() - scorer.predict(rows).to_numpy()).max())


def _excess(given: Array, before: Array, task: str, scorer: Scorer) -> float:
    """The largest difference of a task's probabilities.

    A calibrated one is held between what the map makes of the model's, a little less and a little
    more: a map may rise by a step.

    Args:
        given: by the artefact.
        before: by the model, not calibrated.
        task: of both.
        scorer: whose calibration it is.
    """
    if scorer.calibration is None or task not in scorer.calibration.maps:
        return float(np.abs(given - before).max(initial=0.0))
    little = np.float32(TOLERANCE)
    low, high = (
        scorer.calibration.apply({task: np.clip(before + step, 0, 1)})[task]
        for step in (-little, little)
    )
    return float(np.maximum(low - given, given - high).max(initial=0.0))


def _rows(scorer: Scorer, random: np.random.Generator) -> Iterator[tuple[str, Columns]]:
    whole = _columns(scorer, random, _ROWS)
    yield "random rows", whole
    yield "one row", {name: own[:1] for name, own in whole.items()}
    for name in scorer.known.tokens:
        is_list = scorer.known.fields[name].kind == "token_seq"
        unknown = [[_UNKNOWN, _UNKNOWN] if is_list else _UNKNOWN] * _ROWS
        yield (
            f"unknown ids of {name}",
            {**whole, name: _with_weights(name, unknown, scorer, random)},
        )
    for name in scorer.features:
        yield f"no value of {name}", {**whole, name: [None] * _ROWS}
    yield "rows without any value", {name: [None] * 2 for name in whole}
    yield "one row without any value", {name: [None] for name in whole}


def _columns(scorer: Scorer, random: np.random.Generator, rows: int) -> Columns:
    """Random values, known and unknown ones and none; lists of several and of none."""
    made: Columns = {}
    for name in scorer.features:
        own = scorer.known.fields[name]
        lengths = random.integers(_LONGEST, size=rows) if own.kind.endswith("_seq") else None
        count = rows if lengths is None else int(lengths.sum())
        if name in scorer.known.tokens:
            tokens = [*scorer.known.tokens[name].tokens.to_pylist()[:100_000], _UNKNOWN]
            values = [tokens[n] for n in random.integers(len(tokens), size=count)]
        else:
            numbers = scorer.known.numbers[name]
            spread = (numbers.least, numbers.largest) if numbers.count else (0.0, 1.0)
            values = random.uniform(*spread, count).tolist()
        if lengths is None:
            made[name] = [
                None if gone else v
                for v, gone in zip(values, random.random(rows) < 0.1, strict=True)
            ]
            continue
        ends = np.cumsum(lengths)
        lists: list[Any] = [values[end - n : end] for n, end in zip(lengths, ends, strict=True)]
        made[name] = _with_weights(name, lists, scorer, random)
    return made


def _with_weights(
    name: str, column: list[Any], scorer: Scorer, random: np.random.Generator
) -> list[Any]:
    if not scorer.known.fields[name].weighted:
        return column
    scale = scorer.encoders[0].scales.get(name, 1.0)
    return [
        [(value, float(np.float32(scale * random.gamma(2.0)))) for value in values]
        for values in column
    ]


def _table(scorer: Scorer, columns: Columns) -> pa.Table:
    types = {"token": pa.string(), "token_seq": pa.list_(pa.string())}
    types |= {"float": pa.float64(), "float_seq": pa.list_(pa.float64())}
    weighted = pa.list_(pa.struct([("id", pa.string()), ("weight", pa.float32())]))
    fields = {name: scorer.known.fields[name] for name in columns}
    kinds = {name: weighted if own.weighted else types[own.kind] for name, own in fields.items()}
    return pa.table({name: pa.array(own, kinds[name]) for name, own in columns.items()})
