"""RecBole's atomic files as a source: read, checked and filtered as RecBole does."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import union_categoricals
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from recbole_escm2.data.checks import LARGEST, check_named, unended_line
from recbole_escm2.data.labels import (
    LABEL_SOURCE,
    SHOWN,
    LabelColumn,
    UnclickedConversions,
    joined_events,
    label_columns,
    labels_of,
    named_as_label,
    numbers,
)
from recbole_escm2.data.schema import Chunk, Field, Join, Labels, Schema
from recbole_escm2.data.sources.atomic_text import (
    UnreadableError,
    check_lines,
    check_numbers,
    faulty_rows,
    read_columns,
    read_header,
)
from recbole_escm2.data.sources.pairs import all_pairs
from recbole_escm2.data.splits import named_parts
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.keys import DATA_KEYS
from recbole_escm2.property_files import dataset_names


def simulates(config: Any) -> bool:
    """The files are what they are."""
    return False


def settings(config: Any) -> dict[str, Any]:
    """The keys of RecBole's ``Dataset`` and ours for labels, which change what is made of files.

    The label that a single-task model learns is made with each batch, so all models share a store.
    """
    return {key: config[key] for key in DATA_KEYS}


def read(config: Any) -> tuple[Schema, list[Chunk]]:
    """All impressions that RecBole's filters leave, and the features of users and items.

    Raises:
        UsageError: as :class:`AtomicFiles`.
    """
    for key in ("additional_feat_suffix", "preload_weight"):
        if config[key]:
            raise UsageError(f"{key} isn't supported: no model for impressions reads it")
    getLogger().info(f"reading {', '.join(file.name for file in files(config))}")
    data = AtomicFiles(config)
    return data.schema(), data.chunks()


def with_settings(config: Any, **settings: Any) -> Any:
    """A copy of a config with other settings."""
    own = copy.copy(config)
    own.final_config_dict = {**config.final_config_dict, **settings}
    return own


def inter_name(config: Any, part: str | None) -> str:
    """File name of the impressions, or of one of their pre-split parts."""
    return ".".join(filter(None, [config["dataset"], part, "inter"]))


def files(config: Any) -> list[Path]:
    """The files of a data set: ``.inter``, or one for each part, then ``.user`` and ``.item``.

    Raises:
        UsageError: one is missing.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    if not folder.is_dir():
        raise UsageError(_missing(config, name, folder))
    files = [folder / inter_name(config, part) for _, part in named_parts(config)]
    for file in files:
        if not file.is_file():
            raise UsageError(f"data set '{name}': there is no file {file}")
    return files + [
        file for kind in ("user", "item") if (file := folder / f"{name}.{kind}").is_file()
    ]


def _missing(config: Any, name: str, folder: Path) -> str:
    there = [path.name for path in folder.parent.glob("*/") if any(path.glob("*.inter"))]
    names = ", ".join(sorted({*dataset_names(), *there}))
    return (
        f"there is no data set '{name}'. Data sets: {names}. For one of your own put its "
        f"atomic files into {folder} ({name}.inter, and {name}.user and {name}.item if it "
        f"has them) or a table ({name}.parquet, .csv, .arrow or .feather), or name the folder "
        "above it with --data_path"
    )


class AtomicFiles(Dataset):
    """All impressions of ``.inter``, ``.user`` and ``.item`` files, as frames, before any split.

    Reading is fast: token columns are categories from the start, and stay so. What follows is
    RecBole's: filters, missing numbers, normalisation, discretisation.

    Args:
        config: a complete config.

    Raises:
        UsageError: a file, a column or a label isn't as it must be; the message says where.
    """

    config: Any
    inter_feat: Any
    file_size_list: list[int]

    def __init__(self, config: Any) -> None:
        self.click_field: str = config["CLICK_FIELD"]
        self.conversion_field: str = config["CONVERSION_FIELD"]
        self.label_columns = label_columns(labels_of(config))
        own = {column.field for column in self.label_columns}
        self.events = [c for c in joined_events(config["any_of"] or {}) if c.field not in own]
        self.label_columns += self.events
        #: What to tell the user about the data, whenever it is used.
        self.notes: list[tuple[str, str]] = []
        self._numbers: dict[str, list[int]] = {}  # of rows below the header, by feat
        self._path_of: dict[str, Path] = {}  # by column
        with warnings.catch_warnings():
            # RecBole fills missing values in place, which pandas 2 announces as deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(config)

    # ------------------------------------------------------------------ reading files

    @property
    def _label_fields(self) -> list[str]:
        return [column.field for column in self.label_columns]

    @property
    def _threshold(self) -> dict[str, float]:
        return self.config["threshold"] or {}

    def _load_data(self, token: str, dataset_path: str) -> None:
        super()._load_data(token, dataset_path)
        self._label_impressions()

    def _label_impressions(self) -> None:
        """Make D and its labels of what the files hold."""
        pairs = self.config["impressions"] == "pairs"
        self._join_events()
        if pairs:
            self._click_every_row()
        self._require_label(self.click_field, "CLICK_FIELD")
        self._derive_conversion()
        named = self.conversion_field and "CONVERSION_FIELD" in self.config.external_config_dict
        if named or self.config["learned_tasks"] != ["ctr"]:  # else a log of clicks will do
            self._require_label(self.conversion_field, "CONVERSION_FIELD")
        if pairs:
            self._expand_to_pairs()
        if self.conversion_field in self.inter_feat:
            self._apply_conversion_without_click()

    def _join_events(self) -> None:
        """Make labels that are any of several columns, which then are gone."""
        for label, names in (self.config["any_of"] or {}).items():
            for name in names:
                key = "CLICK_FIELD" if label == self.click_field else "CONVERSION_FIELD"
                self._require_label(name, key)
            self.inter_feat[label] = self.inter_feat[names].max(axis=1)
            self._set_label_property(label)
        for event in self.events:
            self.label_columns.remove(event)
            del self.inter_feat[event.field]
            self._forget(event.field)

    def _note(self, text: str, level: str = "warning") -> None:
        self.notes.append((level, text))

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        parts = self.benchmark_filename_list
        paths = [path for path in files(self.config) if path.suffix == ".inter"]
        load, unload = self._get_load_and_unload_col(FeatureSource.INTERACTION)
        first = self._header(paths[0])
        for file in paths[1:]:
            for lacking, has in ((file, paths[0]), (paths[0], file)):
                missing = (
                    self._header(has).keys() - self._header(lacking).keys() - (unload or set())
                )
                if missing := missing if load is None else missing & load:
                    raise UsageError(f"{lacking} lacks the column '{min(missing)}' of {has}")
        for field, key in ((self.uid_field, "USER_ID_FIELD"), (self.iid_field, "ITEM_ID_FIELD")):
            if field is not None and field not in first:
                raise UsageError(
                    f"{paths[0]} has no column '{field}' ({key}), but {', '.join(first)}"
                )
            if field is not None and (field in (unload or ()) or field not in (load or first)):
                raise UsageError(
                    f"load_col or unload_col leave out '{field}' ({key}) of {paths[0]}"
                )
        check_named("EVENT_FIELDS", self.config["EVENT_FIELDS"] or (), paths[0], first)
        frames, lengths = [], dict[str, int]()
        for file in paths:
            frames.append(self._load_feat(str(file), FeatureSource.INTERACTION))
            for field in frames[-1]:
                lengths[field] = max(lengths.get(field, 0), self.field2seqlen[field])
        self.field2seqlen.update(lengths)
        self.inter_feat = _one_below_the_other(frames)
        if parts is not None:
            self.file_size_list = [len(frame) for frame in frames]

    def _load_user_or_item_feat(
        self, token: str, dataset_path: str, source: Any, field_name: str
    ) -> pd.DataFrame | None:
        """With all rows of a user or an item; the builder says which counts."""
        path = Path(dataset_path) / f"{token}.{source.value}"
        field = getattr(self, field_name)
        feat = self._load_feat(str(path), source) if path.is_file() else None
        if feat is not None and field not in feat:
            raise UsageError(f"load_col or unload_col leave out '{field}' of {path}")
        if field in self.field2source:
            self.field2source[field] = FeatureSource(f"{source.value}_id")
        return feat

    def _header(self, path: Path) -> dict[str, str]:
        return read_header(path, self.config["field_separator"], self.config["encoding"])

    def _get_load_and_unload_col(self, source: Any) -> tuple[set[str] | None, set[str] | None]:
        load, unload = super()._get_load_and_unload_col(source)
        if source == FeatureSource.INTERACTION:
            labels = {*self._label_fields, *self._threshold}
            if load is not None:
                load = load | labels
            others = set(self.config["EVENT_FIELDS"] or ()) - labels
            load = None if load is None else load - others
            unload = unload if not others else (unload or set()) | others
            if self.config["impressions"] == "pairs":
                labels -= {self.click_field}  # every row is a click, whatever a column says
            if unload is not None and unload & labels:
                raise UsageError(
                    f"unload_col leaves out {sorted(unload & labels)}, which labels are made of"
                )
        return load, unload

    def _load_feat(self, filepath: str, source: Any) -> Any:
        """A file as a frame: numbers, categories of text, and arrays of text or numbers."""
        path = Path(filepath)
        header = self._header(path)
        self._check_columns(path, header, source)
        load, unload = self._get_load_and_unload_col(source)
        fields = [
            field
            for field in header
            if (load is None or field in load) and field not in (unload or ())
        ]
        if not fields:
            return None
        self._check_once(path, fields, source)
        for field in fields:
            kind = FeatureType(header[field])
            self.field2source[field], self.field2type[field] = source, kind
            self.field2seqlen[field] = 1
            if "float" in kind.value:
                self.field2bucketnum[field] = 2
        labels = []
        if source == FeatureSource.INTERACTION:
            labels = [column for column in self.label_columns if column.field in fields]
        for column in labels:
            if header[column.field].endswith("seq"):
                raise UsageError(
                    f"{path}: column '{column.field}' is declared {header[column.field]}; a label "
                    f"is one number, declare it '{column.field}:float'"
                )
        frame = self._read(path, header, fields, {column.field for column in labels})
        if said := unended_line(path):
            self._note(said)
        for column in labels:
            self._check_label(frame, column, path)
        for field in fields:
            if self.field2type[field].value.endswith("seq"):
                frame[field] = self._sequences(frame[field], field, path)
        return frame

    def _check_once(self, path: Path, fields: list[str], source: Any) -> None:
        """Make sure that a feature stands in one file."""
        free = {self.uid_field, self.iid_field}
        if source == FeatureSource.INTERACTION:  # what labels are made of is no feature
            free |= set(fields if self.config["impressions"] == "pairs" else self._threshold)
        for field in fields:
            other = path if field in free else self._path_of.setdefault(field, path)
            if other.suffix != path.suffix:
                raise UsageError(
                    f"{other} and {path} both have a column '{field}': one would replace the "
                    "other. Rename it in one of them, or leave it out with unload_col"
                )

    def _read(
        self, path: Path, header: dict[str, str], fields: list[str], labels: set[str]
    ) -> pd.DataFrame:
        separator, encoding = self.config["field_separator"], self.config["encoding"]
        is_number = {field: header[field] == "float" or field in labels for field in fields}
        try:
            frame = read_columns(path, header, is_number, separator, encoding)
        except UnreadableError as error:
            check_lines(path, len(header), separator, encoding)
            fault = self._label_fault(path)
            if fault is None:
                check_lines(path, len(header), separator, encoding, whole=True)
                floats = [field for field, number in is_number.items() if number]
                check_numbers(path, header, floats, separator, encoding)
            raise fault or UsageError(f"{path}: {error}") from error
        if frame.empty:
            raise UsageError(f"{path} has no row below the header")
        floats = [field for field in fields if is_number[field] and field not in labels]
        if not all((frame[field].abs() <= LARGEST)[frame[field].notna()].all() for field in floats):
            check_numbers(path, header, floats, separator, encoding)
        return frame

    def _sequences(self, texts: pd.Series, field: str, path: Path) -> np.ndarray:
        """Arrays of tokens or numbers; ``seq_len`` cuts them."""
        kind = float if self.field2type[field] == FeatureType.FLOAT_SEQ else str
        longest = (self.config["seq_len"] or {}).get(field)
        separator = self.config["seq_separator"]
        values = []
        for text in texts.cat.categories:
            try:
                values.append(np.array([kind(part) for part in text.split(separator) if part]))
            except ValueError as error:
                raise UsageError(
                    f"{path}: column '{field}' is declared {self.field2type[field].value}, but "
                    f"holds {text!r}"
                ) from error
        values.append(np.array([], dtype=kind))  # code -1: nothing there
        most = max(map(len, values))
        self.field2seqlen[field] = min(longest, most) if longest else most
        if longest:
            values = [value[:longest] for value in values]
        arrays = np.empty(len(values), dtype=object)
        arrays[:] = values
        return arrays[texts.cat.codes.to_numpy()]

    def _check_columns(self, path: Path, header: dict[str, str], source: Any) -> None:
        wanted = (self.config["load_col"] or {}).get(getattr(source, "value", source))
        left_out = (self.config["unload_col"] or {}).get(getattr(source, "value", source)) or ()
        check_named("unload_col", left_out, path, header)
        check_named("load_col", () if wanted in (None, "*") else wanted, path, header)
        for name in {self.uid_field, self.iid_field}.intersection(header):
            if header[name] != "token":
                raise UsageError(
                    f"{path}: column '{name}' is an id and declared {header[name]}: declare it "
                    f"'{name}:token'"
                )
        ids = {FeatureSource.USER: self.uid_field, FeatureSource.ITEM: self.iid_field}
        if source in ids and ids[source] not in header:
            raise UsageError(f"{path} has no column '{ids[source]}', but {', '.join(header)}")
        inter = source == FeatureSource.INTERACTION
        names = {self.label_field} if inter else {self.label_field, *self._label_fields}
        load, unload = self._get_load_and_unload_col(source)
        loaded = set(header if load is None else load) - (unload or set())
        for field in names.intersection(loaded) - (set(self._label_fields) if inter else set()):
            raise named_as_label(path, field, made=field == self.label_field)

    def _check_label(self, frame: pd.DataFrame, column: LabelColumn, path: Path) -> None:
        if not column.is_valid(frame[column.field].to_numpy()).all():
            raise self._label_fault(path) or UsageError(
                f"{path}: column '{column.field}' must hold {column.wanted} in every row"
            )
        self._set_label_property(column.field)

    def _label_fault(self, path: Path) -> UsageError | None:
        separator, encoding = self.config["field_separator"], self.config["encoding"]
        header = list(self._header(path))
        faults = (
            faulty_rows(path, column, header.index(column.field), separator, encoding)
            for column in self.label_columns
            if column.field in header
        )
        return next(filter(None, faults), None)

    def _set_label_property(self, field: str) -> None:
        self.set_field_property(field, FeatureType.FLOAT, LABEL_SOURCE, 1)

    # ------------------------------------------------------------------ making D and its labels

    def _click_every_row(self) -> None:
        if self.benchmark_filename_list is not None:
            raise UsageError("impressions: pairs makes D itself, it can't be pre-split")
        if self.click_field in self.inter_feat:
            raise UsageError(
                f"impressions: pairs takes every row for a click, but the .inter file has the "
                f"column '{self.click_field}' (CLICK_FIELD). Set impressions: rows, or leave the "
                "column out with unload_col"
            )
        self.inter_feat[self.click_field] = 1.0
        self._set_label_property(self.click_field)

    def _pair_up(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Make D all pairs of users and items; returns the rows that there were, and which of them
        each pair has (−1 for none), as :func:`all_pairs`.
        """

        def ids(feat: pd.DataFrame | None, field: str) -> np.ndarray:
            source = self.inter_feat if feat is None else feat
            return source[field].dropna().astype(object).unique()

        rated = self.inter_feat.astype({self.uid_field: object, self.iid_field: object})
        self.inter_feat, row = all_pairs(
            rated,
            self.uid_field,
            self.iid_field,
            ids(self.user_feat, self.uid_field),
            ids(self.item_feat, self.iid_field),
        )
        return rated, row

    def _expand_to_pairs(self) -> None:
        rated, row = self._pair_up()
        for field in {self.click_field, self.conversion_field} & set(rated):
            self.inter_feat[field] = np.where(row >= 0, rated[field].to_numpy()[row], 0.0)
        self._forget_row_columns(rated)

    def _forget_row_columns(self, rated: pd.DataFrame) -> None:
        """Drop what stands in a row: known for rated pairs alone, it would tell the label."""
        for field in set(rated) - set(self.inter_feat):
            self._forget(field)

    def _derive_conversion(self) -> None:
        if not self._threshold:
            return
        if len(self._threshold) > 1:
            raise UsageError(f"threshold must name one column, got {self._threshold}")
        ((field, least),) = self._threshold.items()
        if field not in self.inter_feat:
            raise UsageError(f"threshold names '{field}', which the .inter file doesn't have")
        values = numbers(self.inter_feat.pop(field))
        self._forget(field)  # known after the click only, so it can't be a feature
        if self.conversion_field in self.inter_feat:
            self._note(
                f"threshold on '{field}' has no effect: the data has the conversion column "
                f"'{self.conversion_field}'"
            )
            return
        missing = np.flatnonzero(np.isnan(values) & (self.inter_feat[self.click_field] == 1))
        if len(missing):
            raise UsageError(
                f"threshold makes the conversion from '{field}', which is no number in "
                f"{len(missing):,} clicked impressions: {self._locate(missing)}"
            )
        self.inter_feat[self.conversion_field] = (values >= least).astype(np.float64)
        self._set_label_property(self.conversion_field)

    def _forget(self, field: str) -> None:
        """Drop what is known of an .inter column, unless another file has one of that name."""
        if self.field2source[field] not in (FeatureSource.INTERACTION, LABEL_SOURCE):
            return
        for known in (self.field2type, self.field2source, self.field2seqlen, self.field2bucketnum):
            known.pop(field, None)

    def _require_label(self, field: str, key: str) -> None:
        if field not in self.inter_feat:
            raise UsageError(
                f"data set '{self.dataset_name}' has no column '{field}' ({key}); its .inter "
                f"file has {', '.join(self.inter_feat)}. Name the column with --{key}, or, if "
                "its rows are ratings, set impressions: pairs and a threshold"
            )

    def _apply_conversion_without_click(self) -> None:
        """Before RecBole's filters, which count impressions."""
        unclicked = UnclickedConversions(self.config["conversion_without_click"])
        conversion, stays = unclicked.apply(
            self.inter_feat[self.click_field].to_numpy(),
            self.inter_feat[self.conversion_field].to_numpy(),
            self._place,
        )
        if note := unclicked.note():
            self._note(note)
            self.inter_feat[self.conversion_field] = conversion
            self._keep(np.flatnonzero(stays))

    def _place(self, row: int) -> str:
        """File and data row (the first row below the header is 1) of a position in inter_feat."""
        parts = self.benchmark_filename_list or [None]
        sizes = self.file_size_list if self.benchmark_filename_list else [len(self.inter_feat)]
        ends = np.cumsum(sizes)
        part = int(np.searchsorted(ends, row, side="right"))
        file = inter_name(self.config, parts[part])
        return f"{file} row {row - (ends[part] - sizes[part]) + 1:,}"

    def _locate(self, rows: np.ndarray) -> str:
        """The places of the first rows."""
        return ", ".join(map(self._place, rows[:SHOWN])) + (", …" if len(rows) > SHOWN else "")

    def _keep(self, rows: np.ndarray) -> None:
        if self.benchmark_filename_list is not None:
            ends = np.cumsum([0, *self.file_size_list])
            self.file_size_list = list(np.diff(np.searchsorted(rows, ends)))
        self.inter_feat = self.inter_feat.iloc[rows].reset_index(drop=True)

    # ------------------------------------------------------------------ RecBole's processing

    def _data_filtering(self) -> None:
        before = len(self.inter_feat)
        super()._data_filtering()
        if left_out := before - len(self.inter_feat):
            said = f"RecBole's filters leave {left_out:,} of {before:,} impressions out of D"
            self._note(f"{said} ({_FILTERS})")

    def field2feats(self, field: str) -> list[Any]:
        if self.field2source.get(field) == LABEL_SOURCE:
            return [self.inter_feat]
        feats: list[Any] = super().field2feats(field)
        return feats

    def _set_label_by_threshold(self) -> None:
        """RecBole makes its one label here; the labels are made when the files are read."""

    def _filter_inter_by_user_or_item(self) -> None:
        if self.user_feat is not None or self.item_feat is not None:  # else it would only copy D
            super()._filter_inter_by_user_or_item()

    def _remap_ID_all(self) -> None:
        """The builder numbers tokens."""

    def _user_item_feat_preparation(self) -> None:
        """The builder orders rows by their ids."""

    def _reset_index(self) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            if feat.empty:
                raise UsageError(
                    f"data set '{self.dataset_name}': RecBole's filters leave no row of "
                    f"{name.removesuffix('_feat')}. {_FILTERS}; and ids must be written the same "
                    "way in all files"
                )
            self._numbers[name] = (feat.index.to_numpy() + 1).tolist()
        super()._reset_index()

    def _fill_nan(self) -> None:
        """Of what RecBole cuts into buckets; the builder knows what a missing number becomes."""
        for field in self.config["discretization"] or ():
            if field not in self.field2type or field not in self.config["numerical_features"]:
                raise UsageError(
                    f"discretization names '{field}', which numerical_features doesn't, or no file "
                    f"has{did_you_mean(field, self.field2type)}"
                )
            for feat in self.field2feats(field):
                if self.field2type[field] == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())

    def _normalize(self) -> None:
        """RecBole's, of what it cuts into buckets; the builder does it to other numbers."""
        buckets = set(self.config["discretization"] or ())
        named = self.float_like_fields if self.config["normalize_all"] else None
        named = named or self.config["normalize_field"] or []
        with self._setting(normalize_all=False, normalize_field=[*buckets.intersection(named)]):
            super()._normalize()

    def _discretization(self) -> None:
        """RecBole's; numbers that aren't cut into buckets stay as they are."""
        with self._setting(numerical_features=[*(self.config["discretization"] or ())]):
            super()._discretization()

    @contextlib.contextmanager
    def _setting(self, **settings: Any) -> Iterator[None]:
        """Let RecBole's code see other settings."""
        own = self.config
        self.config = with_settings(own, **settings)
        try:
            yield
        finally:
            self.config = own

    # ------------------------------------------------------------------ what the builder gets

    def schema(self) -> Schema:
        """Of the frames."""
        vocabulary = {f: names[0] for names in self.alias.values() for f in map(str, names)}
        labels = labels_of(self.config)
        there = {c.field for c in self.label_columns if c.field in self.inter_feat}
        named = {role: field for role, field in vars(labels).items() if field in there}
        sides = [("user", self.user_feat, self.uid_field), ("item", self.item_feat, self.iid_field)]
        return Schema(
            fields=tuple(
                self._field(field, kind.value, vocabulary.get(field))
                for field, kind in self.field2type.items()
                if self.field2source[field] != LABEL_SOURCE
            ),
            labels=Labels(**named),
            truth="potential" if there & {labels.potential_conversion, labels.true_cvr} else "none",
            leave_out="unload_col",
            group=self.uid_field,
            time=self.time_field if self._is_number(self.time_field) else None,
            joins=tuple(Join(name, key) for name, feat, key in sides if feat is not None),
            notes=self.notes,
        )

    def _is_number(self, name: str) -> bool:
        return name in self.inter_feat and self.field2type[name] == FeatureType.FLOAT

    def _field(self, name: str, kind: str, vocabulary: str | None) -> Field:
        source = self.field2source[name]
        table, longest = _TABLES.get(source, "inter"), int(self.field2seqlen[name])
        if kind.startswith("float") and name not in (self.config["discretization"] or ()):
            own = Field.number(name, self.config, kind, source.value, table)
            return replace(own, longest=longest)
        buckets = int(self.field2bucketnum.get(name, 0))
        return Field(name, kind, source.value, table, vocabulary, longest=longest, buckets=buckets)

    def chunks(self) -> list[Chunk]:
        """The frames."""
        split = self.benchmark_filename_list is not None
        sizes = self.file_size_list if split else [len(self.inter_feat)]
        inter, chunks, start = self._arrow(self.inter_feat), [], 0
        for (part, name), rows in zip(named_parts(self.config), sizes, strict=True):
            own = inter.slice(start, rows)
            numbers = self._numbers.get("inter_feat")
            chunks.append(
                Chunk(own, part=part, file=inter_name(self.config, name), numbers=numbers)
            )
            start += rows
        for name in ("user", "item"):
            if (feat := getattr(self, f"{name}_feat")) is not None:
                file, numbers = (
                    f"{self.config['dataset']}.{name}",
                    self._numbers.get(f"{name}_feat"),
                )
                chunks.append(Chunk(self._arrow(feat), name, file=file, numbers=numbers))
        return chunks

    def _arrow(self, feat: pd.DataFrame) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict(
            {field: _column(feat[field], self.field2type[field]) for field in feat}
        )


_FILTERS = "filter_inter_by_user_or_item, val_interval, rm_dup_inter, ..._inter_num_interval"
_TABLES = {FeatureSource.USER: "user", FeatureSource.ITEM: "item"}


def _column(column: pd.Series, kind: FeatureType) -> pa.Array:
    """A column of a frame for the builder."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        missing = codes < 0
        places = pa.array(codes, mask=missing if missing.any() else None)
        return pa.DictionaryArray.from_arrays(places, pa.array(column.cat.categories, pa.string()))
    if kind == FeatureType.TOKEN:
        return pa.array(column, pa.string(), from_pandas=True)
    values = column.to_numpy()
    if values.dtype != object:
        return pa.array(values)
    if kind == FeatureType.FLOAT:  # of a numerical feature: a pair of a value and a bucket
        return _pairs(np.array(column.tolist()))
    offsets = np.cumsum([0, *(np.shape(value)[-1] for value in values)])
    whole = np.concatenate([*values], axis=-1) if len(values) else np.empty(0)
    flat = _pairs(whole.T) if whole.ndim == 2 else pa.array(whole)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _pairs(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float64()), 2)


def _one_below_the_other(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows; categories stay categories although each file has its own."""
    if len(frames) == 1:
        return frames[0]

    def joined(field: str) -> Any:
        parts = [frame[field] for frame in frames]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            return union_categoricals(parts)
        return np.concatenate([part.to_numpy() for part in parts])

    return pd.DataFrame({field: joined(field) for field in frames[0]})
