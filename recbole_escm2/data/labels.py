"""The one place that reads labels: from the text of a file to 0.0 and 1.0, or to an error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_escm2.data.atomic import lines_below_header
from recbole_escm2.errors import UsageError
from recbole_escm2.fields import LABEL_KEYS

# A source that no model asks for features of: RecBole's FeatureSource doesn't know it.
LABEL_SOURCE = "label"

_SHOWN = 5  # faulty rows that a message names


@dataclass(frozen=True)
class LabelColumn:
    """A column that never is a feature, because it is known after the impression only or a weight.

    Attributes:
        field: the column's name.
        probability: whether it holds probabilities instead of 0 and 1.
        positive: whether it may not be 0, because something is divided by it.
    """

    field: str
    probability: bool = False
    positive: bool = False

    def is_valid(self, value: np.ndarray) -> np.ndarray:
        """Which numbers are allowed."""
        if self.probability:
            return ((value > 0) if self.positive else (value >= 0)) & (value <= 1)
        return (value == 0) | (value == 1)

    @property
    def wanted(self) -> str:
        """What is allowed, for a message."""
        if self.probability:
            return "a probability in (0, 1]" if self.positive else "a probability in [0, 1]"
        return "0 or 1"


def label_columns(config: Any) -> list[LabelColumn]:
    """The label columns that a config names."""
    return [
        LabelColumn(
            config[key],
            probability=key.startswith(("TRUE_", "PROPENSITY_")),
            positive=key == "PROPENSITY_FIELD",
        )
        for key in LABEL_KEYS
        if config[key] is not None
    ]


def numbers(values: pd.Series) -> np.ndarray:
    """Numbers of a column of numbers or of text; NaN where there is none."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    return np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def faulty_rows(
    path: Path, column: LabelColumn, position: int, separator: str, encoding: str | None
) -> UsageError | None:
    """Find the faulty values of a column in the text of its file.

    Only called once something is known to be wrong: line numbers need the text itself, since
    readers skip blank lines.

    Args:
        path: the file.
        column: what the column has to hold.
        position: where it stands, 0 for the first column.
        separator: between cells.
        encoding: of the file.

    Returns:
        An error that names the file and the first faulty lines; None if there is none.
    """
    faults, count = [], 0
    for number, line in lines_below_header(path, encoding):
        cells = line.split(separator)
        text = cells[position] if position < len(cells) else ""
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


def conversions_without_click(click: np.ndarray, conversion: np.ndarray) -> np.ndarray:
    """Positions of the impressions that converted without a click."""
    return np.flatnonzero((click == 0) & (conversion == 1))
