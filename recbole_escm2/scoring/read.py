"""Labels and predictions of tables: columns found, rows joined, values checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recbole_escm2.data.sources.table_files import FORMATS, as_arrow, open_table, table_files
from recbole_escm2.data.truth import Truth
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.metric_names import ALL_TASKS
from recbole_escm2.scoring.options import COLUMNS

Array = NDArray[Any]

_OUTCOMES = ("CLICK_FIELD", "CONVERSION_FIELD", "POTENTIAL_CONVERSION_FIELD")
_CHANCES = ("TRUE_CTR_FIELD", "TRUE_CVR_FIELD")
_IDS = ("USER_ID_FIELD", "ITEM_ID_FIELD")
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
_MOST_NAMED = 3  # of rows or columns in a message


@dataclass(frozen=True)
class Given:
    """What there is to score.

    Attributes:
        models: labels and predictions by the model's name; all have the same labels.
        item: of each row, ``[|D|]``, 0 where there is none; None where items aren't known.
        notes: what was made of the tables, in sentences.
    """

    models: Mapping[str, Predictions]
    item: Array | None
    notes: Sequence[str]


class Table:
    """A file, a folder of parts, or a table in memory, whose columns are loaded by name.

    Args:
        source: the path, or a table of pandas, Polars or Arrow.
        what: it is called so where it has no path.
        texts: columns that are text in a CSV file, whatever they look like.

    Raises:
        UsageError: it can't be read.
    """

    def __init__(self, source: Any, what: str, texts: Sequence[str] = ()) -> None:
        self._texts = texts
        self._starts: list[tuple[int, Path, Sequence[int]]] = []
        self._rows = 0
        if isinstance(source, str | Path):
            self._path: Path | None = Path(source)
            self.name = str(source)
            if not self._path.exists():
                raise UsageError(f"{what}: there is no {source}")
            if self._path.suffix not in FORMATS:
                raise UsageError(
                    f"{what}: {source} must end in {', '.join(FORMATS)}, by which its format is "
                    "known"
                )
            self.columns = list(open_table(table_files(self._path)[0], {})[0].names)
        else:
            self._path = None
            self.name = what
            self._table = as_arrow(source)
            self.columns = list(self._table.column_names)

    def load(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """Some columns, with all their rows."""
        if self._path is None:
            self._rows = len(self._table)
            return {name: self._table.column(name) for name in names}
        chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
        row, self._starts = 0, []
        for file in table_files(self._path):
            schema, batches = open_table(file, self._types(names) if file.suffix == ".csv" else {})
            if missing := [name for name in names if name not in schema.names]:
                raise UsageError(f"{file} has no column '{missing[0]}', unlike other parts")
            for numbers, batch in batches(list(names)):
                self._starts.append((row, file, numbers))
                row += len(batch)
                for name in names:
                    chunks[name].append(batch.column(name))
        self._rows = row
        return {name: _chunked(own) for name, own in chunks.items()}

    def _types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        return {name: pa.string() if name in self._texts else pa.float64() for name in names}

    @property
    def rows(self) -> int:
        """How many there are, of a table of which columns have been loaded."""
        return self._rows

    def place(self, row: int) -> str:
        """Where a row stands: its file and line, or its number."""
        if not self._starts:
            return f"{self.name}, row {row + 1:,}"
        first, file, numbers = next(s for s in reversed(self._starts) if s[0] <= row)
        unit = "line" if file.suffix == ".csv" else "row"
        return f"{file}, {unit} {numbers[row - first]:,}"


def _chunked(chunks: Sequence[pa.Array]) -> pa.ChunkedArray:
    kinds = {chunk.type for chunk in chunks}
    if len(kinds) > 1:  # dictionaries of different parts, for example
        chunks = [chunk.cast(pa.string()) for chunk in chunks]
    return pa.chunked_array(chunks) if chunks else pa.chunked_array([pa.array([], pa.float64())])


def read(
    labels: Any,
    predictions: Mapping[str, Any],
    names: Mapping[str, str],
    key: Sequence[str] = (),
) -> Given:
    """Read labels and predictions, and join them.

    Args:
        labels: a path or a table; None: the first table of predictions has them.
        predictions: paths or tables by the name of the model; one that has columns ``pctr_NAME``
            and the like, in place of ``pctr``, has several models.
        names: of columns, by the keys of :data:`COLUMNS`.
        key: columns that pair up rows; none: rows pair up in the order in which they stand.

    Raises:
        UsageError: something is missing, no probability, no label, or doesn't pair up; the message
            names file and row.
    """
    wanted = {**COLUMNS, **names}
    texts = [*(wanted[role] for role in _IDS), *key]
    tables = {name: Table(source, name, texts) for name, source in predictions.items()}
    of_labels = next(iter(tables.values())) if labels is None else Table(labels, "labels", texts)
    notes: list[str] = []
    truth, item, own_key = _labels(of_labels, wanted, key, notes)
    models: dict[str, Predictions] = {}
    for name, table in tables.items():
        columns = _models(table, name, wanted)
        if twice := [model for model in columns if model in models]:
            raise UsageError(
                f"two models are called {twice[0]}: name the files, "
                "--predictions=NAME=FILE,NAME=FILE"
            )
        scored = [column for own in columns.values() for column in own.values()]
        known = [c for c in _label_names(wanted) if c in table.columns and table is not of_labels]
        loaded = table.load(list(dict.fromkeys([*scored, *known, *_present(table, key)])))
        order = None
        if table is not of_labels:
            order = _order(table, loaded, of_labels, own_key, key)
            _check_same_labels(table, loaded, truth, wanted, order)
        for model, own in columns.items():
            score = {task: _chances(table, loaded[c], c) for task, c in own.items()}
            if order is not None:
                score = {task: values[order] for task, values in score.items()}
            models[model] = Predictions(truth, _with_product(score, model, notes))
    return Given(models, item, notes)


# --------------------------------------------------------------------------- labels


def _label_names(wanted: Mapping[str, str]) -> list[str]:
    return [wanted["CLICK_FIELD"], wanted["CONVERSION_FIELD"]]


def _present(table: Table, key: Sequence[str]) -> list[str]:
    """The key's columns.

    Raises:
        UsageError: the table lacks one.
    """
    for name in key:
        if name not in table.columns:
            raise UsageError(
                f"{table.name} has no column '{name}' of --key={','.join(key)}"
                f"{did_you_mean(name, table.columns)}; it has {_listed(table.columns)}"
            )
    return list(key)


def _labels(
    table: Table, wanted: Mapping[str, str], key: Sequence[str], notes: list[str]
) -> tuple[Truth, Array | None, dict[str, pa.ChunkedArray]]:
    """The labels of a table, the items of its rows, and the columns of the key."""
    there = {
        role: wanted[role]
        for role in (*_OUTCOMES, *_CHANCES, *_IDS)
        if wanted[role] in table.columns
    }
    if "CLICK_FIELD" not in there:
        raise UsageError(
            f"{table.name} has no column '{wanted['CLICK_FIELD']}', the click label; it has "
            f"{_listed(table.columns)}. --CLICK_FIELD=NAME says what it is called, "
            "--labels=FILE where it is"
        )
    loaded = table.load(list(dict.fromkeys([*there.values(), *_present(table, key)])))
    click = _outcomes(table, loaded, there["CLICK_FIELD"])
    if not len(click):
        raise UsageError(f"{table.name} has no rows")
    outcomes: dict[str, Array] = {}
    for role in (r for r in _OUTCOMES[1:] if r in there):
        clicked = click > 0 if role == "CONVERSION_FIELD" else None
        outcomes[role] = _outcomes(table, loaded, there[role], clicked)
    chances = {r: _chances(table, loaded[there[r]], there[r]) for r in _CHANCES if r in there}
    ids = {role: _ids(loaded[there[role]]) for role in _IDS if role in there}
    conversion = outcomes.get("CONVERSION_FIELD")
    if conversion is None:
        notes.append(
            f"{table.name} has no column '{wanted['CONVERSION_FIELD']}': CTR alone is scored."
        )
    elif without := int(np.count_nonzero((conversion > 0) & (click == 0))):
        notes.append(f"{without:,} rows have a conversion without a click, which counts as none.")
    user = ids.get("USER_ID_FIELD")
    if user is None:
        notes.append(
            f"{table.name} has no column '{wanted['USER_ID_FIELD']}': rows are taken for "
            "independent in the intervals, and no metric is by user."
        )
    truth = Truth(
        click,
        conversion,
        user,
        outcomes.get("POTENTIAL_CONVERSION_FIELD"),
        chances.get("TRUE_CTR_FIELD"),
        chances.get("TRUE_CVR_FIELD"),
    )
    return truth, ids.get("ITEM_ID_FIELD"), {name: loaded[name] for name in key}


def _numbers(table: Table, column: pa.ChunkedArray, name: str) -> Array:
    """A column of numbers; float32 stays what it is, null becomes NaN."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not any(is_number(kind) for is_number in _NUMBERS):
        raise UsageError(f"{table.name}: column '{name}' must hold numbers, it has {kind}")
    if not pa.types.is_float32(kind):
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(column.to_numpy())


def _outcomes(
    table: Table,
    loaded: Mapping[str, pa.ChunkedArray],
    name: str,
    needed: Array | None = None,
) -> Array:
    """A column of labels, int8; one that isn't needed in a row may be missing there."""
    values = _numbers(table, loaded[name], name)
    missing = np.isnan(values)
    wrong = ~missing & (values != 0) & (values != 1)
    wrong |= missing if needed is None else missing & needed
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UsageError(
            f"{table.place(row)}: {name} is {_shown(values[row])}, and must be 0 or 1"
            f"{_others(wrong)}"
        )
    return np.where(missing, 0, values).astype(np.int8)


def _chances(table: Table, column: pa.ChunkedArray, name: str) -> Array:
    """A column of probabilities."""
    values = _numbers(table, column, name)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        logits = "; logits have to be made probabilities, 1 / (1 + exp(-x))"
        raise UsageError(
            f"{table.place(row)}: {name} is {_shown(values[row])}, and must be a probability in "
            f"[0, 1]{_others(wrong)}{logits if not np.isnan(values[row]) else ''}"
        )
    return values


def _ids(column: pa.ChunkedArray) -> Array:
    """Numbers of the different ids from 1 on, 0 where there is none."""
    return np.asarray(pd.factorize(column.to_pandas())[0] + 1, dtype=np.int64)


def _shown(value: float) -> str:
    return "missing" if np.isnan(value) else f"{value:g}"


def _others(wrong: Array) -> str:
    more = int(np.count_nonzero(wrong)) - 1
    return f" (and so in {more:,} more row{'s' * (more > 1)})" if more else ""


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(names[:20])
    return f"{some}, and {len(names) - 20} more" if len(names) > 20 else some


# --------------------------------------------------------------------------- predictions


def _models(table: Table, name: str, wanted: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The column of each task by model: of this name, or of those that the columns end in.

    Raises:
        UsageError: no column is a prediction.
    """
    stems = {task: wanted[f"p{task}"] for task in ALL_TASKS}
    own = {task: stem for task, stem in stems.items() if stem in table.columns}
    models = {name: own} if own else {}
    for column in table.columns:
        for task, stem in stems.items():
            ending = column.removeprefix(f"{stem}_")
            if ending and ending != column and column not in own.values():
                models.setdefault(ending, {})[task] = column
    if not models:
        raise UsageError(
            f"{table.name} has no predictions: none of the columns {', '.join(stems.values())}, or "
            f"{stems['ctr']}_MODEL and the like for several models; it has "
            f"{_listed(table.columns)}. --pctr=NAME, --pcvr=NAME and --pctcvr=NAME say what they "
            "are called"
        )
    return models


def _with_product(score: dict[str, Array], model: str, notes: list[str]) -> dict[str, Array]:
    """With pCTCVR as the product of the two others, where it isn't given."""
    if "ctcvr" in score or not {"ctr", "cvr"} <= score.keys():
        return score
    notes.append(f"{model}: pctcvr is pctr · pcvr, as there is no such column.")
    return {**score, "ctcvr": np.multiply(score["ctr"], score["cvr"], dtype=np.float64)}


def _order(
    table: Table,
    loaded: Mapping[str, pa.ChunkedArray],
    of_labels: Table,
    own_key: Mapping[str, pa.ChunkedArray],
    key: Sequence[str],
) -> Array | None:
    """The row of a table for each row of the labels; None: rows pair up as they stand.

    Raises:
        UsageError: they don't pair up.
    """
    if not key:
        rows, wanted = table.rows, of_labels.rows
        if rows != wanted:
            raise UsageError(
                f"{table.name} has {rows:,} rows, {of_labels.name} has {wanted:,}: rows pair up in "
                "the order in which they stand, unless --key=COLUMN,... names the columns that "
                "they have in common"
            )
        return None
    codes, theirs = _codes(own_key, loaded, key)
    for one, of in ((codes, of_labels), (theirs, table)):
        _check_unique(one, of, key, own_key if of is of_labels else loaded)
    place = pd.Index(theirs).get_indexer(codes)
    if (place < 0).any():
        _refuse(place < 0, of_labels, table, key, own_key)
    if len(theirs) > len(codes):
        _refuse(~np.isin(theirs, codes), table, of_labels, key, loaded)
    return np.asarray(place)


def _codes(
    own: Mapping[str, pa.ChunkedArray], other: Mapping[str, pa.ChunkedArray], key: Sequence[str]
) -> tuple[Array, Array]:
    """A number a key, the same in both tables."""
    count = len(own[key[0]])
    codes = np.zeros(count + len(other[key[0]]), dtype=np.int64)
    for name in key:
        columns = [own[name], other[name]]
        if columns[0].type != columns[1].type:
            columns = [pc.cast(column, pa.string()) for column in columns]
        both = pd.concat([column.to_pandas() for column in columns], ignore_index=True)
        number, distinct = pd.factorize(both)
        codes = pd.factorize(codes * (len(distinct) + 1) + number + 1)[0]
    return codes[:count], codes[count:]


def _check_unique(
    codes: Array, table: Table, key: Sequence[str], columns: Mapping[str, pa.ChunkedArray]
) -> None:
    again = pd.Series(codes).duplicated().to_numpy()
    if again.any():
        row = int(np.argmax(again))
        first = int(np.argmax(codes == codes[row]))
        raise UsageError(
            f"{table.place(row)}: {_key_of(columns, key, row)} stands there a second time, first "
            f"in {table.place(first)}{_others(again)}; a key names one row"
        )


def _refuse(
    wrong: Array,
    of: Table,
    other: Table,
    key: Sequence[str],
    columns: Mapping[str, pa.ChunkedArray],
) -> None:
    rows = np.flatnonzero(wrong)
    named = "; ".join(_key_of(columns, key, int(row)) for row in rows[:_MOST_NAMED])
    raise UsageError(
        f"{len(rows):,} of {len(wrong):,} rows of {of.name} have no row in {other.name} with the "
        f"same {', '.join(key)}: {named}{'; ...' if len(rows) > _MOST_NAMED else ''}. All rows are "
        "scored, so each needs its other half"
    )


def _key_of(columns: Mapping[str, pa.ChunkedArray], key: Sequence[str], row: int) -> str:
    return ", ".join(f"{name}={columns[name][row].as_py()}" for name in key)


def _check_same_labels(
    table: Table,
    loaded: Mapping[str, pa.ChunkedArray],
    truth: Truth,
    wanted: Mapping[str, str],
    order: Array | None,
) -> None:
    """Refuse a table whose own labels are others: its rows are others, or in another order."""
    click, conversion = _label_names(wanted)
    for name, values in ((click, truth.click), (conversion, truth.conversion)):
        if name not in loaded or values is None:
            continue
        own = _numbers(table, loaded[name], name)
        own = own if order is None else own[order]
        differs = (own != values) & (truth.click > 0 if name == conversion else True)
        if differs.any():
            row = int(np.argmax(differs))
            row = row if order is None else int(order[row])
            raise UsageError(
                f"{table.place(row)}: {name} isn't the same as that of the labels"
                f"{_others(differs)}: these aren't the same rows in the same order. "
                "--key=COLUMN,... pairs them up"
            )
