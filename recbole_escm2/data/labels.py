"""The one place that reads labels: from the text of a file to 0.0 and 1.0, or to an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recbole_escm2.data.schema import Labels
from recbole_escm2.errors import UsageError
from recbole_escm2.fields import LABEL_KEYS

# A source that no model asks for features of: RecBole's FeatureSource doesn't know it.
LABEL_SOURCE = "label"

_MANY = 20  # conversions without a click from which there may be more of them than clicks
_NEARLY_ALL = 0.95
LARGEST = 1e30  # a weight, of which many are summed in float32
SHOWN = 5  # faulty rows that a message names


@dataclass(frozen=True)
class LabelColumn:
    """A column that never is a feature, because it is known after the impression only or a weight.

    Attributes:
        field: the column's name.
        probability: whether it holds probabilities instead of 0 and 1.
        positive: whether it may not be 0, because something is divided by it.
        weight: whether it says how much an impression counts.
    """

    field: str
    probability: bool = False
    positive: bool = False
    weight: bool = False

    @property
    def is_event(self) -> bool:
        """Whether it holds 0 and 1."""
        return not (self.probability or self.weight)

    def is_valid(self, value: np.ndarray) -> np.ndarray:
        """Which numbers are allowed."""
        if self.probability:
            return ((value > 0) if self.positive else (value >= 0)) & (value <= 1)
        if self.weight:
            return (value >= 0) & (value <= LARGEST)
        return (value == 0) | (value == 1)

    @property
    def wanted(self) -> str:
        """What is allowed, for a message."""
        if self.probability:
            return "a probability in (0, 1]" if self.positive else "a probability in [0, 1]"
        return f"a weight, a number from 0 to {LARGEST:.0e}," if self.weight else "0 or 1"


def labels_of(config: Any) -> Labels:
    """The names of label columns that a config gives."""
    return Labels(**{key.removesuffix("_FIELD").lower(): config[key] for key in LABEL_KEYS})


def label_columns(labels: Labels) -> list[LabelColumn]:
    """What each label column has to hold."""
    named = {role.name: getattr(labels, role.name) for role in fields(labels)}
    columns = [
        LabelColumn(
            field,
            probability=role.startswith(("true_", "propensity")),
            positive=role == "propensity",
            weight=role.endswith("_weight"),
        )
        for role, field in named.items()
        if field is not None
    ]
    return list({column.field: column for column in columns}.values())  # two weights may be one


def joined_events(any_of: Mapping[str, Sequence[str]]) -> list[LabelColumn]:
    """What columns have to hold that a label is any of.

    Args:
        any_of: the columns by the label's name.
    """
    return [LabelColumn(name) for name in dict.fromkeys(n for ns in any_of.values() for n in ns)]


def check_labels(
    values: pa.Array, column: LabelColumn, file: str, place: Callable[[int], str]
) -> np.ndarray:
    """A label column as float64 ``[rows]``.

    Args:
        values: booleans, numbers or text.
        column: what they have to be.
        file: where they stand.
        place: of a row, for a message.

    Raises:
        UsageError: a value isn't allowed, or there is none; the message names the first such rows.
    """
    if pa.types.is_boolean(values.type) or pa.types.is_integer(values.type):
        numeric = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        numeric = numbers(values.to_pandas())
    bad = np.flatnonzero(~column.is_valid(numeric))
    if len(bad):
        shown = ((place(int(row)), str(values[int(row)].as_py() or "")) for row in bad[:SHOWN])
        raise label_error(file, column, shown, len(bad))
    return numeric


def label_error(
    file: str, column: LabelColumn, shown: Iterable[tuple[str, str]], count: int
) -> UsageError:
    """The error of faulty labels.

    Args:
        file: where they stand.
        column: what it has to hold.
        shown: the first faults, each with its place and its text.
        count: of all faults.
    """
    faults = [f"{place} has {text!r}" if text.strip() else f"{place} none" for place, text in shown]
    more = f" and {count - len(faults):,} more" if count > len(faults) else ""
    return UsageError(
        f"{file}: column '{column.field}' must hold {column.wanted} in every row, but "
        f"{', '.join(faults)}{more}"
        + ("" if not column.is_event else ". An impression without the event has a 0")
    )


def named_as_label(file: Path, field: str, made: bool) -> UsageError:
    """The error of a column that has the name of a label.

    Args:
        file: where it stands.
        field: its name.
        made: whether the label is the one that is made here.
    """
    which = " (LABEL_FIELD, the one that is made here)" if made else ""
    return UsageError(
        f"{file}: the column '{field}' has the name of a label{which}. Leave it out with "
        "unload_col, or give the label another name"
    )


class UnclickedConversions:
    """Conversions without a click, which a user wants dropped, unconverted or refused.

    Args:
        choice: ``drop``, ``unconvert`` or ``raise``.

    Attributes:
        count: of those that there were.
        clicks: of all impressions.
        conversions: of all impressions, without a click or with.
    """

    def __init__(self, choice: str) -> None:
        self._choice = choice
        self._places: list[str] = []
        self.count = self.clicks = self.conversions = 0

    def apply(
        self, click: np.ndarray, conversion: np.ndarray, place: Callable[[int], str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The conversion label, and which impressions stay, ``[rows]`` each.

        Args:
            click: o, ``[rows]``.
            conversion: r, ``[rows]``.
            place: of a row, for a message.
        """
        self.clicks += int(click.sum())
        self.conversions += int(conversion.sum())
        unclicked = (click == 0) & (conversion == 1)
        rows = np.flatnonzero(unclicked)
        self._places += [place(int(row)) for row in rows[: SHOWN - len(self._places)]]
        self.count += len(rows)
        if self._choice == "unconvert":
            return np.where(unclicked, 0, conversion), np.ones(len(click), dtype=bool)
        return conversion, ~unclicked

    def _are_swapped(self) -> bool:
        with_click = self.conversions - self.count
        more = self.conversions > 2 * self.clicks or with_click > _NEARLY_ALL * self.clicks
        return self.count >= _MANY and self.conversions > self.clicks and more

    def note(self) -> str | None:
        """What to say of them; None where there are none.

        Raises:
            UsageError: there are, and the choice is ``raise``; or they are to be dropped, and the
                columns seem to be each other's: there are twice as many conversions as clicks, or
                more, and nearly every click has one.
        """
        if not self.count:
            return None
        if self._choice == "drop" and self._are_swapped():
            raise UsageError(
                f"there are {self.conversions:,} conversions and {self.clicks:,} clicks, and a "
                f"conversion follows a click: {self._places[0]} has one without. Are CLICK_FIELD "
                "and CONVERSION_FIELD each other's column? Where conversions are logged without a "
                "click too, conversion_without_click: unconvert keeps such impressions"
            )
        where = ", ".join(self._places) + (", …" if self.count > SHOWN else "")
        said = f"{self.count:,} impressions have a conversion without a click: {where}"
        if self._choice == "raise":
            raise UsageError(
                f"{said}. conversion_without_click: drop leaves them out (as the literature "
                "does), unconvert gives them conversion 0"
            )
        fate = {"drop": "left out", "unconvert": "given conversion 0"}[self._choice]
        return f"{said}. They are {fate} (conversion_without_click: {self._choice})"


def numbers(values: pd.Series) -> np.ndarray:
    """Numbers of a column of numbers or of text; NaN where there is none."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    return np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)


class Contradictions:
    """Labels that the truth beside them rules out: it is of other rows, or another outcome."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(
        self, names: Labels, values: Mapping[str, np.ndarray], place: Callable[[int], str]
    ) -> None:
        """Look at some impressions.

        Args:
            names: the fields of the labels.
            values: of each label, ``[rows]``, by its field.
            place: of a row, for a message.
        """
        click = values[names.click] == 1
        potential, conversion = names.potential_conversion, names.conversion
        if potential is not None and conversion is not None:
            differs = click & (values[potential] != values[conversion])
            self._note(f"clicked, and its {potential} isn't its {conversion}", differs, place)
        if names.true_ctr is not None:
            ctr = values[names.true_ctr]
            self._note(f"clicked, and its {names.true_ctr} is 0", click & (ctr == 0), place)
            self._note(f"not clicked, and its {names.true_ctr} is 1", ~click & (ctr == 1), place)

    def _note(self, what: str, wrong: np.ndarray, place: Callable[[int], str]) -> None:
        rows = np.flatnonzero(wrong)
        if len(rows):
            places = self._places.setdefault(what, [])
            places += [place(int(row)) for row in rows[: SHOWN - len(places)]]
            self._count[what] = self._count.get(what, 0) + len(rows)

    def notes(self) -> Iterator[str]:
        """What to say of each kind that there is."""
        for what, count in self._count.items():
            where = ", ".join(self._places[what]) + (", …" if count > SHOWN else "")
            yield f"the truth of {count:,} impressions can't be theirs: {what} ({where})"
