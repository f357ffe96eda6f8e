"""Tables as a source: Parquet, CSV, Arrow and Feather files, each one file or a folder of parts.

Types come from the file. Text, whole numbers and booleans are tokens; other numbers and times are
numbers, and so is what ``numerical_features`` or ``TIME_FIELD`` name; lists are multi-valued, and
maps or lists of (token, weight) structs have weights. A row is an impression.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet

from recbole_escm2.data.ahead import converting
from recbole_escm2.data.checks import check_named, unended_line
from recbole_escm2.data.columns import is_text, with_codes
from recbole_escm2.data.labels import (
    LabelColumn,
    check_labels,
    joined_events,
    labels_of,
    named_as_label,
    numbers,
)
from recbole_escm2.data.schema import Chunk, Field, Labels, Schema
from recbole_escm2.data.sources.table_files import (
    FORMATS,
    ParquetPart,
    as_arrow,
    open_table,
    parquet_metadata,
    parquet_parts,
    rows_of_part,
    table_files,
)
from recbole_escm2.data.splits import named_parts
from recbole_escm2.errors import UsageError, checked_name
from recbole_escm2.fields import LABEL_KEYS
from recbole_escm2.output import beside
from recbole_escm2.pool import Pool

_NO_TYPES: Mapping[str, pa.DataType] = MappingProxyType({})
_KEYS = (
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "LABEL_FIELD", *LABEL_KEYS),
    *("load_col", "unload_col", "numerical_features", "normalize_field", "normalize_all"),
    *("standardize", "EVENT_FIELDS"),
    *("alias_of_user_id", "alias_of_item_id", "benchmark_filename", "threshold"),
)
# What RecBole does to atomic files before they are impressions; a table is made as it is wanted.
_OF_ATOMIC_FILES = (
    *("discretization", "item_inter_num_interval", "rm_dup_inter", "seq_len"),
    *("user_inter_num_interval", "val_interval"),
)


def simulates(config: Any) -> bool:
    """The files are what they are."""
    return False


def settings(config: Any) -> dict[str, Any]:
    """The keys of roles, of columns to read, and of what is made of them."""
    return {key: config[key] for key in _KEYS}


def takes(config: Any) -> bool:
    """Whether a data set is a table: there is one, and no ``.inter`` file."""
    there = {path.suffix for path in Path(config["data_path"]).glob("*.*")}
    return ".inter" not in there and bool(there.intersection(FORMATS))


def files(config: Any) -> list[Path]:
    """The files of a data set: ``NAME.parquet``, or ``.csv``, ``.arrow`` or ``.feather``.

    With ``benchmark_filename`` there is one for each part, ``NAME.train.parquet`` or
    ``train.parquet``. Each may be a folder of parts.

    Raises:
        UsageError: one is missing.
    """
    return [file for _, path in _tables(config) for file in table_files(path)]


def save_table(table: Any, name: str, data_path: str | Path = "dataset") -> str:
    """Make a data set of a table in memory: ``run("ESMM", save_table(table, "mine"))``.

    Args:
        table: of pandas, Polars or Arrow; or a mapping of them, ``train``, ``valid`` and
            ``test``, to be used with ``benchmark_filename: [train, valid, test]``.
        name: of the data set.
        data_path: folder above that of the data set, as the config key ``data_path``.

    Returns:
        The name. The table lies in ``DATA_PATH/NAME/NAME.parquet``; where it is there already, it
        is left alone, so that nothing is made again of it.

    Raises:
        UsageError: the name can't be that of a folder, or it isn't a table.
    """
    folder = Path(data_path) / checked_name(name, "dataset")
    parts = table if isinstance(table, Mapping) else {None: table}
    folder.mkdir(parents=True, exist_ok=True)
    for part, own in parts.items():
        path = folder / f"{'.'.join(filter(None, [name, part]))}.parquet"
        with beside(path) as unfinished:
            pa.parquet.write_table(as_arrow(own), unfinished)
            if not path.is_file() or path.read_bytes() != unfinished.read_bytes():
                os.replace(unfinished, path)
    return name


# --------------------------------------------------------------------------- files


def _path(folder: Path, name: str) -> Path | None:
    there = (folder / f"{name}{suffix}" for suffix in FORMATS)
    return next((path for path in there if path.is_file() or path.is_dir()), None)


def _tables(config: Any) -> list[tuple[str | None, Path]]:
    """Part and path of each table."""
    folder, whole = Path(config["data_path"]), config["dataset"]
    parts = []
    for part, name in named_parts(config):
        own = [whole] if name is None else [f"{whole}.{name}", str(name)]
        path = next(filter(None, (_path(folder, name) for name in own)), None)
        if path is None:
            wanted = " or ".join(f"{name}{suffix}" for name in own for suffix in FORMATS)
            raise UsageError(f"data set '{config['dataset']}': there is no {wanted} in {folder}")
        parts.append((part, path))
    return parts


# --------------------------------------------------------------------------- reading


def read(config: Any) -> tuple[Schema, Iterator[Chunk]]:
    """What the columns mean, and all rows; a folder of parts may be larger than memory.

    Raises:
        UsageError: a column that is needed isn't there, or has a type that means nothing here.
    """
    for key in _OF_ATOMIC_FILES:
        if config[key]:
            raise UsageError(f"{key} acts on atomic files; leave it out, and filter the table")
    if config["impressions"] == "pairs":
        raise UsageError("impressions: pairs makes D of atomic files; a table's rows are D")
    tables = _tables(config)
    getLogger().info(f"reading {', '.join(path.name for _, path in tables)}")
    reader = _Reader(config, table_files(tables[0][1])[0])
    return reader.schema(), reader.chunks(tables)


class _Reader:
    """The columns of a data set's tables, by those of its first file.

    Args:
        config: a complete config.
        first: the file.
    """

    def __init__(self, config: Any, first: Path) -> None:
        self.config = config
        self.first = first
        header, _ = open_table(first, {})
        if twice := [name for name in header.names if header.names.count(name) > 1]:
            raise UsageError(f"{first}: the column '{twice[0]}' stands there twice")
        self.types = dict(zip(header.names, header.types, strict=True))
        self.threshold = dict(config["threshold"] or {})
        self.numeric = {*(config["numerical_features"] or ()), config["TIME_FIELD"]}
        self.any_of: Mapping[str, list[str]] = config["any_of"] or {}
        #: Of which a label is made, and which are none of the columns of a store.
        self.events = [column.field for column in joined_events(self.any_of)]
        self.labels = self._find_labels()
        self.fields = self._find_fields()
        self.notes: list[tuple[str, str]] = []

    def _find_labels(self) -> Labels:
        wanted = vars(labels_of(self.config))
        there = {role: name for role, name in wanted.items() if name in self.types}
        for role, key in (("click", "CLICK_FIELD"), ("conversion", "CONVERSION_FIELD")):
            names = self.any_of.get(wanted[role], ())
            check_named(key, names, self.first, self.types)
            if names:
                there[role] = wanted[role]
        if len(self.threshold) > 1 or not self.threshold.keys() <= self.types.keys():
            raise UsageError(
                f"threshold must name one column of {self.first}, which has "
                f"{', '.join(self.types)}; got {self.threshold}"
            )
        if "click" not in there:
            raise UsageError(
                f"{self.first} has no column '{wanted['click']}' (CLICK_FIELD); it has "
                f"{', '.join(self.types)}. Name the column with --CLICK_FIELD"
            )
        if "conversion" in there:
            self.threshold = {}
        elif self.threshold:
            there["conversion"] = wanted["conversion"]
        elif "CONVERSION_FIELD" in self.config.external_config_dict and wanted["conversion"]:
            raise UsageError(
                f"{self.first} has no column '{wanted['conversion']}' (CONVERSION_FIELD)"
            )
        return Labels(**there)

    def _origins(self) -> dict[str, str]:
        """``inter``, ``user`` or ``item`` of each column to read, as ``load_col`` says."""
        load, unload = self.config["load_col"], self.config["unload_col"] or {}
        if load is None:
            origins = dict.fromkeys(self.types, "inter")
        else:
            origins = {
                str(name): origin
                for origin, names in load.items()
                for name in (self.types if names == "*" else names)
            }
        left_out = [str(name) for names in unload.values() for name in names]
        check_named("load_col", origins, self.first, self.types)
        check_named("unload_col", left_out, self.first, self.types)
        return {name: origin for name, origin in origins.items() if name not in left_out}

    def _find_fields(self) -> tuple[Field, ...]:
        config, origins = self.config, self._origins()
        others = config["EVENT_FIELDS"] or []
        check_named("EVENT_FIELDS", others, self.first, self.types)
        hidden = {*vars(self.labels).values(), *(config["threshold"] or {}), *self.events, *others}
        vocabulary: dict[str, str] = {}
        for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
            name = config[key]
            if name in self.types:
                origins.setdefault(name, "inter")
            elif name is not None and key in config.external_config_dict:
                raise UsageError(f"{self.first} has no column '{name}' ({key})")
        for kind in ("user_id", "item_id"):
            own = config[f"{kind.upper()}_FIELD"]
            if own in origins:
                origins[own] = kind
                vocabulary |= dict.fromkeys([own, *(config[f"alias_of_{kind}"] or ())], own)
        if config["LABEL_FIELD"] in origins:
            raise named_as_label(self.first, config["LABEL_FIELD"], made=True)
        return tuple(
            self._field(name, origins[name], vocabulary.get(name))
            for name in self.types
            if name in origins and name not in hidden
        )

    def _field(self, name: str, origin: str, vocabulary: str | None) -> Field:
        kind_here = _kind_of(self.types[name])
        if kind_here is None:
            raise UsageError(
                f"{self.first}: column '{name}' is of type {self.types[name]}, which is neither a "
                "token, a number nor a list of them; leave it out with unload_col"
            )
        kind, weighted = kind_here
        if name in self.numeric and not weighted:
            kind = kind.replace("token", "float")
        if kind.startswith("float") and not origin.endswith("_id"):
            own = Field.number(name, self.config, kind, origin)
            return replace(own, scaled=own.scaled and name != self.config["TIME_FIELD"])
        kind = kind.replace("float", "token")  # an id is a token, whatever its type
        return Field(name, kind, origin, vocabulary=vocabulary, weighted=weighted)

    def schema(self) -> Schema:
        """Of the table."""
        names = [own.name for own in self.fields]
        group, time = self.config["USER_ID_FIELD"], self.config["TIME_FIELD"]
        known = self.labels.potential_conversion or self.labels.true_cvr
        return Schema(
            self.fields,
            self.labels,
            truth="potential" if known else "none",
            leave_out="unload_col",
            vocabulary="train" if self.config["benchmark_filename"] else "all",
            group=group if group in names else None,
            time=time if time in names else None,
            notes=self.notes,
        )

    def chunks(self, tables: list[tuple[str | None, Path]]) -> Iterator[Chunk]:
        """All rows, file by file; with ``worker`` other processes read the Parquet files' parts."""
        files = [(part, file) for part, path in tables for file in table_files(path)]
        with converting(self.config["worker"]) as pool:
            for is_parquet, group in groupby(files, lambda own: own[1].suffix == ".parquet"):
                if pool is not None and is_parquet:
                    yield from self._chunks_by(pool, group)
                else:
                    for part, file in group:
                        yield from self._chunks_of(file, part)

    def _chunks_by(self, pool: Pool, files: Iterable[tuple[str | None, Path]]) -> Iterator[Chunk]:
        """The rows of Parquet files, which other processes read."""

        def tasks() -> Iterator[tuple[tuple[str | None, Path], tuple[Any, ...]]]:
            for part, file in files:
                about = parquet_metadata(file)
                columns = self._columns(file, about.schema.to_arrow_schema())
                for own in parquet_parts(about):
                    yield (part, file), (file, own, columns, self.fields)

        for (part, file), (batches, fault) in pool.results(_encoded_batches, tasks()):
            for places, batch in batches:
                yield self._chunk(Chunk(batch, "inter", part, str(file), places))
            if fault is not None:
                raise fault

    def _columns(
        self, file: Path, header: pa.Schema, types: Mapping[str, pa.DataType] = _NO_TYPES
    ) -> list[str]:
        """The columns that are read of a file.

        Raises:
            UsageError: the file lacks one, or has it with another type than the first file.
        """
        made = {self.labels.conversion} if self.threshold else set()
        made |= self.any_of.keys()
        labels = set(filter(None, vars(self.labels).values()))
        columns = [*(own.name for own in self.fields), *(labels - made), *self.threshold]
        columns += [name for name in self.events if name not in columns]
        for name in columns:
            if name not in header.names:
                raise UsageError(f"{file} lacks the column '{name}' of {self.first}")
            own = header.field(name).type
            if name not in types and _kind_of(own) != _kind_of(self.types[name]):
                raise UsageError(
                    f"{file}: column '{name}' is of type {own}, and in {self.first} "
                    f"{self.types[name]}"
                )
        return columns

    def _chunks_of(self, file: Path, part: str | None) -> Iterator[Chunk]:
        is_csv = file.suffix == ".csv"
        types = self._csv_types() if is_csv else {}
        header, batches = open_table(file, types)
        columns = self._columns(file, header, types)
        if is_csv and (said := unended_line(file)):
            self.notes.append(("warning", said))
        for places, batch in batches(columns):
            if len(batch):
                unit = "line" if is_csv else "row"
                yield self._chunk(Chunk(batch, "inter", part, str(file), places, unit))

    def _chunk(self, chunk: Chunk) -> Chunk:
        """What the builder gets of rows as they stand in a file."""
        chunk = replace(chunk, rows=self._with_events_joined(chunk))
        return replace(chunk, rows=self._converted(chunk))

    def _with_events_joined(self, chunk: Chunk) -> pa.RecordBatch:
        """With labels that are any of several columns."""
        rows = chunk.rows
        for label, names in self.any_of.items():
            events = [
                check_labels(chunk.rows.column(name), LabelColumn(name), chunk.file, chunk.place)
                for name in names
            ]
            rows = rows.append_column(label, pa.array(np.maximum.reduce(events)))
        return rows

    def _csv_types(self) -> dict[str, pa.DataType]:
        """What stands in a token's cell is the token (007 isn't 7); a label's cell is checked."""
        labels = [*filter(None, vars(self.labels).values()), *self.threshold, *self.events]
        types = {own.name: own.kind for own in self.fields} | dict.fromkeys(labels, "token")
        return {
            name: pa.float64() if kind == "float" else pa.string()
            for name, kind in types.items()
            if name in self.types and not _is_own_kind(self.types[name])
        }

    def _converted(self, chunk: Chunk) -> pa.RecordBatch:
        batch = chunk.rows
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for own in self.fields:
            columns[own.name] = as_numbers(columns[own.name], own.kind)
        if self.threshold:
            ((field, least),) = self.threshold.items()
            label = LabelColumn(self.labels.click)
            clicked = check_labels(columns[label.field], label, chunk.file, chunk.place) == 1
            values = numbers(columns.pop(field).to_pandas())
            missing = np.flatnonzero(np.isnan(values) & clicked)
            if len(missing):
                raise UsageError(
                    f"threshold makes the conversion from '{field}', which is no number in "
                    f"{len(missing):,} clicked impressions: {chunk.place(int(missing[0]))}"
                )
            columns[self.labels.conversion] = pa.array(clicked & (values >= float(least)))
        return pa.RecordBatch.from_pydict(columns)


def _encoded_batches(
    file: Path, part: ParquetPart, columns: list[str], fields: Sequence[Field]
) -> tuple[list[tuple[range, pa.RecordBatch]], UsageError | None]:
    """Batches of a part of a file up to its end or a fault, with tokens as dictionaries."""
    found = []
    try:
        for numbers, batch in rows_of_part(file, part, columns):
            own = dict(zip(columns, batch.columns, strict=True))
            own |= {f.name: with_codes(as_numbers(own[f.name], f.kind), f) for f in fields}
            if len(batch):
                found.append((numbers, pa.RecordBatch.from_pydict(own)))
    except UsageError as error:
        return found, error
    return found, None


def _is_own_kind(kind: pa.DataType) -> bool:
    """Whether a CSV column has a type that neither text nor a number stands for."""
    return pa.types.is_boolean(kind) or pa.types.is_temporal(kind)


def as_numbers(column: pa.Array, kind: str) -> pa.Array:
    """What the builder takes: times in seconds, lists of any size, text as text."""
    own = column.type
    if kind == "float":
        if pa.types.is_date(own) or pa.types.is_timestamp(own):
            micro = column.cast(pa.timestamp("us", getattr(own, "tz", None)), safe=False)
            micro = micro.cast(pa.int64())  # of nanoseconds what is below a microsecond is cut off
            return pc.divide(micro.cast(pa.float64()), 1e6)
        return column.cast(pa.float64(), safe=False)  # beyond 2^53 a number is rounded
    if pa.types.is_fixed_size_list(own):
        return column.cast(pa.list_(own.value_type))
    return column


def _kind_of(kind: pa.DataType) -> tuple[str, bool] | None:
    """RecBole's kind of a column's type, and whether its values have weights; None for no kind."""
    types = pa.types
    if types.is_dictionary(kind):
        return _kind_of(kind.value_type)
    if types.is_floating(kind) or types.is_decimal(kind):
        return "float", False
    if types.is_date(kind) or types.is_timestamp(kind):
        return "float", False
    if types.is_map(kind):
        return "token_seq", True
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = kind.value_type
        if types.is_struct(inner):
            return ("token_seq", True) if inner.num_fields == 2 else None
        own = _kind_of(inner)
        return None if own is None or own[0].endswith("seq") else (f"{own[0]}_seq", False)
    is_token = (
        is_text(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)
    )
    return ("token", False) if is_token else None
