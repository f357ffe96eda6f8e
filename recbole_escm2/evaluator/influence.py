"""What single test rows contribute to a metric, kept so that two runs can be compared on them.

Where all seeds are scored on one test set, a difference between two models holds for other rows of
that kind only if it is large beside what drawing the test set does to it. That is known from the
influence of each row on each model's metric, summed by user and by item.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.evaluator.catalogue import Setting
from recbole_escm2.evaluator.contributions import contributions
from recbole_escm2.evaluator.metrics import UndefinedMetricError
from recbole_escm2.evaluator.predictions import NotPredictedError, Predictions, Truth
from recbole_escm2.metric_names import METRIC_NAMES, OF_CLICKS, space_of, statistic_of
from recbole_escm2.output import replacing

Array = NDArray[Any]

#: In a run's folder.
INFLUENCE_FILE = "influence.npz"
# metrics whose values are kept
_WITH_INFLUENCE = tuple(name for name in METRIC_NAMES if statistic_of(name)[0] == "AUC")
# what numpy raises for a file that isn't one of its archives
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class NoInfluenceError(ValueError):
    """A run has no influence values that can be used; the message says why."""


@dataclass(frozen=True)
class TestRows:
    """The rows that a run was scored on, as far as a comparison needs them.

    Attributes:
        digest: of labels, users and items in the order of the rows: rows with the same one pair up.
        click: 0 or 1, ``[|D|]``.
        clusters: ids of the users and of the items, as far as the data has them, each ``[|D|]``;
            0 is no id.
    """

    __test__ = False  # no test, whatever pytest thinks of the name

    digest: str
    click: Array
    clusters: tuple[Array, ...]

    @classmethod
    def of(cls, truth: Truth, item: Array | None = None) -> TestRows:
        """The rows of a split.

        Args:
            truth: its labels and users.
            item: ids of its items, ``[|D|]``, where the data has them.
        """
        click = np.asarray(truth.click > 0, dtype=np.uint8)
        clusters = tuple(
            np.ascontiguousarray(ids, dtype=np.int32)
            for ids in (truth.user, item)
            if ids is not None
        )
        digest = hashlib.sha256(str((len(click), len(clusters))).encode())
        labels: list[Array] = [click]
        if truth.conversion is not None:
            labels.append(click & np.asarray(truth.conversion > 0, dtype=np.uint8))
        if truth.potential_conversion is not None:
            labels.append(np.asarray(truth.potential_conversion > 0, dtype=np.uint8))
        for column in (*labels, *clusters):
            digest.update(column.data)
        return cls(digest.hexdigest(), click, clusters)

    def count(self, metric: str) -> int:
        """The number of rows that a metric is over."""
        return int(self.click.sum()) if space_of(metric) in OF_CLICKS else len(self.click)

    def clusters_of(self, metric: str) -> tuple[Array, ...]:
        """The cluster ids of the rows that a metric is over."""
        if space_of(metric) not in OF_CLICKS:
            return self.clusters
        clicked = np.flatnonzero(self.click)
        return tuple(ids[clicked] for ids in self.clusters)


@dataclass(frozen=True)
class Influence:
    """The influence of each test row on a run's metrics.

    Attributes:
        rows: what they are of.
        values: by metric, one for each row that the metric is over.
    """

    rows: TestRows
    values: Mapping[str, Array]

    def of(self, metric: str) -> Array:
        """The values of a metric.

        Raises:
            NoInfluenceError: there are none.
        """
        if metric not in _WITH_INFLUENCE:
            raise NoInfluenceError(
                f"what a test row contributes is known for {', '.join(_WITH_INFLUENCE)} alone"
            )
        if metric not in self.values:
            raise NoInfluenceError("a run has kept no influence values of it (--fresh=True does)")
        values = self.values[metric]
        if values.shape != (self.rows.count(metric),):
            raise NoInfluenceError("a run's influence values aren't of its test rows")
        return values


def influence_values(predictions: Predictions, metrics: Sequence[str]) -> dict[str, Array]:
    """Influence values of those metrics that have them, float32, ``[rows of the metric]``."""
    by_metric = {}
    for metric in metrics:
        if metric in _WITH_INFLUENCE:
            try:
                own = contributions(predictions, metric, Setting())
            except (UndefinedMetricError, NotPredictedError):
                continue
            if own is not None:
                by_metric[metric] = own.values.astype(np.float32)
    return by_metric


def write_influence(
    folder: Path, predictions: Predictions, item: Array | None, metrics: Sequence[str]
) -> None:
    """Write the influence values of a run into its folder, and the test rows beside it, once.

    Args:
        folder: the run's.
        predictions: on test.
        item: ids of the items of its rows, where the data has them.
        metrics: whose values to keep.
    """
    rows = TestRows.of(predictions.truth, item)
    shared = _rows_file(folder, rows.digest)
    if not shared.is_file():
        clusters = {f"cluster{n}": ids for n, ids in enumerate(rows.clusters)}
        write_arrays(shared, {"click": rows.click, **clusters})
    values = influence_values(predictions, metrics)
    write_arrays(folder / INFLUENCE_FILE, {"digest": np.array(rows.digest), **values})


def read_influence(folder: Path) -> Influence:
    """What :func:`write_influence` wrote for a run; values are read when they are asked for.

    Raises:
        NoInfluenceError: there is nothing, or it can't be read.
    """
    file = folder / INFLUENCE_FILE
    digest = str(_read(file, "digest"))
    if not _DIGEST.fullmatch(digest):
        raise NoInfluenceError(f"{file} isn't what a run writes")
    return Influence(_rows(_rows_file(folder, digest)), _Values(file))


class _Values(Mapping[str, Array]):
    """The arrays of a file, each read anew whenever it is asked for: all would fill the memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._names = [name for name in _names(file) if name != "digest"]

    def __getitem__(self, name: str) -> Array:
        return _read(self._file, name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _rows_file(folder: Path, digest: str) -> Path:
    return folder.parent / f"test-rows-{digest}.npz"


@lru_cache(maxsize=2)
def _rows(file: Path) -> TestRows:
    clusters = [name for name in _names(file) if name.startswith("cluster")]
    return TestRows(
        file.stem.removeprefix("test-rows-"),
        _read(file, "click"),
        tuple(_read(file, name) for name in sorted(clusters)),
    )


def write_arrays(file: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays into one file, compressed, whole or not at all."""
    with replacing(file) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_arrays(file: Path) -> dict[str, Array]:
    """All arrays of a file.

    Raises:
        NoInfluenceError: it can't be read.
    """
    return {name: _read(file, name) for name in _names(file)}


def _names(file: Path) -> list[str]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return list(content)
    except _UNREADABLE as error:
        raise NoInfluenceError(f"{file} can't be read: {error}") from error


def _read(file: Path, name: str) -> Array:
    try:
        with np.load(file, allow_pickle=False) as content:
            return np.asarray(content[name])
    except FileNotFoundError:
        raise NoInfluenceError("a run has kept no influence values (--fresh=True does)") from None
    except _UNREADABLE as error:
        raise NoInfluenceError(f"{file} can't be read: {error}") from error
