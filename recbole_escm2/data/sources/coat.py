"""Coat Shopping (Schnabel et al., ICML 2016): 290 people, 300 coats, chosen and random ratings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.checks import check_text
from recbole_escm2.data.sources.rating_pairs import RatedPairs, RatingPairs, Ratings
from recbole_escm2.errors import UsageError

_ORIGIN = (
    "propensities.ascii holds its publishers' estimates of P(click), made before this split: from "
    "what users chose, pairs of test included. propensity: field weighs by them, nothing else does"
)


class Coat(RatingPairs):
    """The six files, and the publisher's propensities where they are there."""

    names = MappingProxyType(
        {
            "train": ("train.ascii",),
            "test": ("test.ascii",),
            "user_features": ("user_item_features/user_features.ascii",),
            "user_map": ("user_item_features/user_features_map.txt",),
            "item_features": ("user_item_features/item_features.ascii",),
            "item_map": ("user_item_features/item_features_map.txt",),
        }
    )
    optional = MappingProxyType({"propensity": ("propensities.ascii",)})

    def pairs(self, config: Any) -> RatedPairs:
        """Users are called by their line and items by their column, both from 0 on."""
        paths = self.paths(config)
        chosen, random = (_matrix(paths[part], *_RATING) for part in ("train", "test"))
        users, items = chosen.shape
        _check_shape(paths["test"], random, chosen.shape)
        tables = {}
        for side, count in (("user", users), ("item", items)):
            own = _one_hot(paths[f"{side}_features"], paths[f"{side}_map"], side, count)
            key = config[f"{side.upper()}_ID_FIELD"]
            tables[side] = pa.RecordBatch.from_pydict({key: _tokens(count), **own})
        propensity, notes = None, []
        if "propensity" in paths:
            propensity = _matrix(paths["propensity"], *_PROBABILITY)
            _check_shape(paths["propensity"], propensity, chosen.shape)
            notes.append(("info", _ORIGIN))
        return RatedPairs(
            _tokens(users),
            _tokens(items),
            _ratings(chosen),
            _ratings(random),
            tables,
            propensity,
            tuple(notes),
        )


SOURCE = Coat()

_Cells = tuple[Callable[[NDArray[np.float64]], NDArray[np.bool_]], str]
_RATING: _Cells = (lambda cells: np.isin(cells, range(6)), "a rating from 1 to 5, or 0 for none")
_FLAG: _Cells = (lambda cells: np.isin(cells, (0, 1)), "0 or 1")
_PROBABILITY: _Cells = (lambda cells: (cells > 0) & (cells <= 1), "a probability in (0, 1]")


def _tokens(count: int) -> pa.Array:
    return pa.array([str(number) for number in range(count)])


def _ratings(matrix: NDArray[np.float64]) -> Ratings:
    user, item = np.nonzero(matrix)
    return Ratings(user, item, matrix[user, item])


def _lines(file: Path) -> list[str]:
    try:
        check_text(file)
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} isn't text in UTF-8 ({error}): save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{file}: {error}") from error


def _matrix(
    file: Path, allowed: Callable[[NDArray[np.float64]], NDArray[np.bool_]], wanted: str
) -> NDArray[np.float64]:
    """Numbers with blanks between them, as many in each line; checked."""
    rows: list[NDArray[np.float64]] = []
    for number, line in enumerate(_lines(file), 1):
        cells = line.split()
        try:
            row = np.array(cells, dtype=np.float64)
        except ValueError as error:
            raise UsageError(f"{file} line {number}: {error}") from error
        if rows and len(row) != len(rows[0]):
            raise UsageError(
                f"{file} line {number} has {len(row)} numbers, and line 1 {len(rows[0])}"
            )
        bad = np.flatnonzero(~allowed(row))
        if len(bad):
            raise UsageError(
                f"{file} line {number}, column {bad[0] + 1}: {cells[bad[0]]!r} isn't {wanted}"
            )
        rows.append(row)
    if not rows:
        raise UsageError(f"{file} is empty")
    return np.stack(rows)


def _check_shape(file: Path, matrix: NDArray[np.float64], wanted: tuple[int, ...]) -> None:
    if matrix.shape != wanted:
        raise UsageError(
            f"{file} has {matrix.shape[0]} lines of {matrix.shape[1]} numbers, and must have "
            f"{wanted[0]} of {wanted[1]}"
        )


def _one_hot(file: Path, names: Path, side: str, rows: int) -> dict[str, pa.Array]:
    """Columns ``side_name`` of tokens, of the columns ``name:token`` that are 1."""
    columns = [line.strip().partition(":") for line in _lines(names) if line.strip()]
    for number, (_, colon, token) in enumerate(columns, 1):
        if not (colon and token):
            raise UsageError(f"{names} line {number}: a column is named 'field:value'")
    flags = _matrix(file, *_FLAG)
    _check_shape(file, flags, (rows, len(columns)))
    tokens_of = {}
    for name in dict.fromkeys(name for name, _, _ in columns):
        places = [place for place, column in enumerate(columns) if column[0] == name]
        count = flags[:, places].sum(axis=1)
        if (bad := np.flatnonzero(count != 1)).size:
            raise UsageError(
                f"{file} line {bad[0] + 1}: {int(count[bad[0]])} columns of '{name}' are 1, and "
                "one must be"
            )
        tokens = pa.array([columns[place][2] for place in places])
        tokens_of[f"{side}_{name}"] = tokens.take(pa.array(flags[:, places].argmax(axis=1)))
    return tokens_of
