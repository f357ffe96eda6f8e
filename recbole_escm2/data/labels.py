"""The one place that reads labels: from the text of a file to 0.0 and 1.0, or to an error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_escm2.errors import UsageError

_SHOWN = 5  # faulty rows that a message names


@dataclass(frozen=True)
class LabelColumn:
    """A column that is known after the impression only, and so never is a feature.

    Attributes:
        field: the column's name.
        probability: whether it holds probabilities instead of 0 and 1.
    """

    field: str
    probability: bool = False

    def is_valid(self, value: np.ndarray) -> np.ndarray:
        """Which numbers are allowed."""
        if self.probability:
            return (value >= 0) & (value <= 1)
        return (value == 0) | (value == 1)

    @property
    def wanted(self) -> str:
        """What is allowed, for a message."""
        return "a probability in [0, 1]" if self.probability else "0 or 1"


def numbers(values: pd.Series) -> np.ndarray:
    """Numbers of a column of numbers or of text; NaN where there is none."""
    return np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def faulty_rows(
    path: Path, column: LabelColumn, separator: str, encoding: str | None
) -> UsageError | None:
    """Find the faulty values of a column in the text of its file.

    Only called once something is known to be wrong: line numbers need the text itself, since
    readers skip blank lines.

    Returns:
        An error that names the file and the first faulty lines; None if there is none.
    """
    faults, count = [], 0
    for number, text in _texts(path, column.field, separator, encoding):
        if column.is_valid(np.array(_number(text))):
            continue
        count += 1
        if count <= _SHOWN:
            faults.append(f"line {number} has {text!r}" if text.strip() else f"line {number} none")
    if not count:
        return None
    more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
    return UsageError(
        f"{path}: column '{column.field}' must hold {column.wanted} in every row, but "
        f"{', '.join(faults)}{more}"
        + ("" if column.probability else ". An impression without the event has a 0")
    )


def _texts(
    path: Path, field: str, separator: str, encoding: str | None
) -> Iterable[tuple[int, str]]:
    with open(path, encoding=encoding) as file:
        header = next(file).rstrip("\n").split(separator)
        index = [name.partition(":")[0] for name in header].index(field)
        for number, line in enumerate(file, start=2):
            line = line.rstrip("\n")
            if line:
                cells = line.split(separator)
                yield number, cells[index] if index < len(cells) else ""


def conversions_without_click(click: np.ndarray, conversion: np.ndarray) -> np.ndarray:
    """Positions of the impressions that converted without a click."""
    return np.flatnonzero((click == 0) & (conversion == 1))
