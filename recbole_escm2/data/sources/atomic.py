"""RecBole's atomic files as two-label impressions: read, checked and processed, for a store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from recbole_escm2.config import dataset_names
from recbole_escm2.data.labels import (
    LABEL_SOURCE,
    LabelColumn,
    conversions_without_click,
    faulty_rows,
    label_columns,
    labels_of,
    numbers,
)
from recbole_escm2.data.sources.atomic_text import (
    UnreadableError,
    check_lines,
    check_numbers,
    check_whole,
    read_columns,
    read_header,
)
from recbole_escm2.data.sources.pairs import all_pairs
from recbole_escm2.data.store import Column, Layout, StoreWriter
from recbole_escm2.errors import UsageError

_ROWS_AT_ONCE = 1 << 16
_SHOWN = 5  # rows that a message names


def inter_name(config: Any, part: str | None) -> str:
    """File name of the impressions, or of one of three pre-split parts of them."""
    return ".".join(filter(None, [config["dataset"], part, "inter"]))


def atomic_files(config: Any) -> list[Path]:
    """The files of a data set: ``.inter``, or three of them, then ``.user`` and ``.item``.

    Raises:
        UsageError: one is missing.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    parts = config["benchmark_filename"]
    if not folder.is_dir():
        raise UsageError(_missing(config, name, folder))
    if parts is not None and (not isinstance(parts, list) or len(parts) != 3):
        raise UsageError(
            "benchmark_filename must be a list of three names, for train, validation and test, "
            f"got {parts!r}"
        )
    files = [folder / inter_name(config, part) for part in parts or [None]]
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
        "has them), or name the folder above it with --data_path"
    )


class AtomicFiles(Dataset):
    """All impressions of ``.inter``, ``.user`` and ``.item`` files, as frames, before any split.

    Reading is fast: token columns are categories from the start. What follows is RecBole's:
    filters, ids in the order of appearance, missing values, normalisation, discretisation.

    Args:
        config: a settled config.

    Raises:
        UsageError: a file, a column or a label isn't as it must be; the message says where.
    """

    inter_feat: Any
    file_size_list: list[int]

    def __init__(self, config: Any) -> None:
        self.click_field: str = config["CLICK_FIELD"]
        self.conversion_field: str = config["CONVERSION_FIELD"]
        self.label_columns = label_columns(labels_of(config))
        #: What to tell the user about the data, whenever it is used.
        self.notes: list[tuple[str, str]] = []
        self._vocabularies: list[np.ndarray] = []
        self._vocabulary_of: dict[str, int] = {}
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
        if pairs:
            self._click_every_row()
        self._require_label(self.click_field, "CLICK_FIELD")
        self._derive_conversion()
        self._require_label(self.conversion_field, "CONVERSION_FIELD")
        if pairs:
            self._expand_to_pairs()
        self._settle_conversions_without_click()

    def _note(self, text: str, level: str = "warning") -> None:
        self.notes.append((level, text))

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        parts = self.benchmark_filename_list
        files = [path for path in atomic_files(self.config) if path.suffix == ".inter"]
        load, unload = self._get_load_and_unload_col(FeatureSource.INTERACTION)
        first = self._header(files[0])
        for file in files[1:]:
            for lacking, has in ((file, files[0]), (files[0], file)):
                missing = (
                    self._header(has).keys() - self._header(lacking).keys() - (unload or set())
                )
                if missing := missing if load is None else missing & load:
                    raise UsageError(f"{lacking} lacks the column '{min(missing)}' of {has}")
        for field, key in ((self.uid_field, "USER_ID_FIELD"), (self.iid_field, "ITEM_ID_FIELD")):
            if field is not None and field not in first:
                raise UsageError(
                    f"{files[0]} has no column '{field}' ({key}), but {', '.join(first)}"
                )
            if field is not None and (field in (unload or ()) or field not in (load or first)):
                raise UsageError(
                    f"load_col or unload_col leave out '{field}' ({key}) of {files[0]}"
                )
        frames, lengths = [], dict[str, int]()
        for file in files:
            frames.append(self._load_feat(str(file), FeatureSource.INTERACTION))
            for field in frames[-1]:
                lengths[field] = max(lengths.get(field, 0), self.field2seqlen[field])
        self.field2seqlen.update(lengths)
        self.inter_feat = _one_below_the_other(frames)
        if parts is not None:
            self.file_size_list = [len(frame) for frame in frames]

    def _header(self, path: Path) -> dict[str, str]:
        return read_header(path, self.config["field_separator"], self.config["encoding"])

    def _get_load_and_unload_col(self, source: Any) -> tuple[set[str] | None, set[str] | None]:
        load, unload = super()._get_load_and_unload_col(source)
        if source == FeatureSource.INTERACTION:
            labels = {*self._label_fields, *self._threshold}
            if load is not None:
                load = load | labels
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
        for column in labels:
            self._check_label(frame, column, path)
        for field in fields:
            if self.field2type[field].value.endswith("seq"):
                frame[field] = self._sequences(frame[field], field, path)
        return frame

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
                check_whole(path, len(header), separator, encoding)
                floats = [field for field, number in is_number.items() if number]
                check_numbers(path, header, floats, separator, encoding)
            raise fault or UsageError(f"{path}: {error}") from error
        if frame.empty:
            raise UsageError(f"{path} has no row below the header")
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
        missing = [f for f in (wanted or []) if wanted != "*" and f not in header]
        if missing:
            raise UsageError(
                f"load_col asks for {', '.join(missing)} in {path}, which has {', '.join(header)}"
            )
        ids = {FeatureSource.USER: self.uid_field, FeatureSource.ITEM: self.iid_field}
        if source in ids and ids[source] not in header:
            raise UsageError(f"{path} has no column '{ids[source]}', but {', '.join(header)}")
        inter = source == FeatureSource.INTERACTION
        names = {self.label_field} if inter else {self.label_field, *self._label_fields}
        load, unload = self._get_load_and_unload_col(source)
        loaded = set(header if load is None else load) - (unload or set())
        for field in names.intersection(loaded) - (set(self._label_fields) if inter else set()):
            raise UsageError(
                f"{path}: the column '{field}' has the name of a label"
                + (" (LABEL_FIELD, the one that is made here)" if field == self.label_field else "")
                + ". Leave it out with unload_col, or give the label another name"
            )

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
        for field in (self.click_field, self.conversion_field):
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

    def _settle_conversions_without_click(self) -> None:
        click = self.inter_feat[self.click_field].to_numpy()
        rows = conversions_without_click(click, self.inter_feat[self.conversion_field].to_numpy())
        if not len(rows):
            return
        choice = self.config["conversion_without_click"]
        fate = {"drop": "left out", "unconvert": "given conversion 0", "raise": ""}[choice]
        where = f"{len(rows):,} impressions have a conversion without a click: {self._locate(rows)}"
        if choice == "raise":
            raise UsageError(
                f"{where}. conversion_without_click: drop leaves them out (as the literature "
                "does), unconvert gives them conversion 0"
            )
        self._note(f"{where}. They are {fate} (conversion_without_click: {choice})")
        if choice == "unconvert":
            self.inter_feat.loc[self.inter_feat.index[rows], self.conversion_field] = 0.0
        else:
            self._keep(np.setdiff1d(np.arange(len(self.inter_feat)), rows, assume_unique=True))

    def _locate(self, rows: np.ndarray) -> str:
        """File and data row (the first row below the header is 1) of positions in inter_feat."""
        parts = self.benchmark_filename_list or [None]
        sizes = self.file_size_list if self.benchmark_filename_list else [len(self.inter_feat)]
        ends = np.cumsum(sizes)
        places = []
        for row in rows[:_SHOWN]:
            part = int(np.searchsorted(ends, row, side="right"))
            file = inter_name(self.config, parts[part])
            places.append(f"{file} row {row - (ends[part] - sizes[part]) + 1:,}")
        return ", ".join(places) + (", …" if len(rows) > _SHOWN else "")

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
            self._note(
                f"RecBole's filters leave {left_out:,} of {before:,} impressions out of D "
                "(filter_inter_by_user_or_item, val_interval, rm_dup_inter, ..._inter_num_interval)"
            )

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

    def _remap(self, remap_list: list[Any]) -> None:
        """Ids in the order of appearance from 1 on, as RecBole gives them; 0 where none is."""
        if not remap_list:
            return
        codes, appearing = [], []
        for feat, field, kind in remap_list:
            column = feat[field]
            if kind == FeatureType.TOKEN_SEQ:
                own, tokens = pd.factorize(np.concatenate([[], *column]).astype(object))
            elif isinstance(column.dtype, pd.CategoricalDtype):
                own = column.cat.codes.to_numpy()
                present = pd.unique(own)
                present = present[present >= 0]
                tokens = column.cat.categories.to_numpy()[present]
                place = np.full(len(column.cat.categories) + 1, -1, dtype=np.int32)
                place[present] = np.arange(len(present))
                own = place[own]  # the last one for -1: what is missing
            else:
                own, tokens = pd.factorize(column)
            codes.append(own)
            appearing.append(np.asarray(tokens, dtype=object))
        ids, vocabulary = pd.factorize(np.concatenate(appearing))
        ends = np.cumsum([len(tokens) for tokens in appearing])
        self._vocabularies.append(vocabulary)
        narrow = next(
            t for t in (np.int8, np.int16, np.int32) if len(vocabulary) <= np.iinfo(t).max
        )
        for (feat, field, kind), id_of in zip(
            remap_list, np.split((ids + 1).astype(narrow), ends[:-1]), strict=True
        ):
            new = np.append(id_of, narrow(0))[codes.pop(0)]  # the last one for -1
            self.field2id_token[field] = range(len(vocabulary) + 1)  # all that is asked is its size
            self._vocabulary_of[field] = len(self._vocabularies) - 1
            if kind == FeatureType.TOKEN_SEQ:
                lengths = np.fromiter(map(len, feat[field]), dtype=np.int64, count=len(feat))
                pieces = np.empty(len(feat), dtype=object)
                pieces[:] = np.split(new, np.cumsum(lengths)[:-1])
                feat[field] = pieces
            else:
                feat[field] = new

    # ------------------------------------------------------------------ writing the store

    def write(self, store: StoreWriter) -> dict[str, Any]:
        """Write all tables and vocabularies; returns what the schema has to say of them."""
        number = [store.vocabulary(tokens) for tokens in self._vocabularies]
        hidden = {
            column.field: "uint8" if not column.probability else "float32"
            for column in self.label_columns
            if column.field in self.inter_feat
        }
        longest: dict[str, int] = {}
        joins = []
        for name, key in (("inter", None), ("user", self.uid_field), ("item", self.iid_field)):
            feat = getattr(self, f"{name}_feat")
            if feat is None:
                continue
            apart = dict(hidden) if name == "inter" else {}
            if name == "inter" and self.uid_field:
                apart[self.uid_field] = "int32"
            longest.update(self._write_table(store, name, feat, apart))
            if key is not None:
                joins.append({"table": name, "key": key})
        return {
            "fields": [
                {
                    "name": field,
                    "type": kind.value,
                    "source": getattr(self.field2source[field], "value", self.field2source[field]),
                    "seqlen": int(self.field2seqlen[field]),
                    "length": longest.get(field, 1),
                    "buckets": int(self.field2bucketnum.get(field, 0)),
                    "vocabulary": number[self._vocabulary_of[field]]
                    if field in self._vocabulary_of
                    else None,
                }
                for field, kind in self.field2type.items()
            ],
            "joins": joins,
            "group": self.uid_field,
            "sizes": [int(n) for n in self.file_size_list]
            if self.benchmark_filename_list
            else None,
            "notes": self.notes,
        }

    def _write_table(
        self, store: StoreWriter, name: str, feat: pd.DataFrame, apart: dict[str, str]
    ) -> dict[str, int]:
        """Write a frame; returns the largest number of values of each multi-valued field."""
        outcomes = {c.field for c in self.label_columns} - {self.click_field, self.conversion_field}
        bags = [field for field in feat if self.field2type[field] == FeatureType.TOKEN_SEQ]
        packed = [field for field in feat if field not in bags and field not in outcomes]
        fixed = {field: self._fixed(feat[field], field) for field in packed}
        columns = tuple(
            Column(
                field,
                "int" if self.field2type[field] == FeatureType.TOKEN else "float",
                tuple(fixed[field].shape[1:]),
            )
            for field in packed
        )
        table = store.table(name, Layout(columns, tuple(bags), weighted=False, apart=apart))
        counts = np.zeros((len(feat), len(bags)), dtype=np.int32)
        for place, field in enumerate(bags):
            seqlen = self.field2seqlen[field]
            counts[:, place] = [min(len(value), seqlen) for value in feat[field]]
        for start in range(0, len(feat), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            values = {field: column[rows] for field, column in fixed.items()}
            values.update({field: feat[field].to_numpy()[rows] for field in apart})
            own = [feat[field].to_numpy()[rows] for field in bags]
            ids = [
                array[: self.field2seqlen[field]]
                for row in zip(*own, strict=True)
                for field, array in zip(bags, row, strict=True)
            ]
            table.append(values, counts[rows], np.concatenate([np.zeros(0, np.int32), *ids]))
        store.close(table)
        return {field: int(counts[:, place].max(initial=0)) for place, field in enumerate(bags)}

    def _fixed(self, column: pd.Series, field: str) -> np.ndarray:
        """A column of fixed width, ``[rows, *shape]``, as RecBole would make a tensor of it."""
        if self.field2type[field] != FeatureType.FLOAT_SEQ:
            values = column.to_numpy()
            if values.dtype == object:  # of a numerical feature: a pair of a value and a bucket
                values = np.array(column.tolist(), dtype=np.float32)
            return values
        numerical = field in self.config["numerical_features"]
        parts = [np.array(v if numerical else [v], dtype=np.float32) for v in column]
        width = min(self.field2seqlen[field], max(part.shape[1] for part in parts))
        padded = np.zeros((len(parts), width, len(parts[0])), dtype=np.float32)
        for row, part in zip(padded, parts, strict=True):
            kept = part[:, :width]
            row[: kept.shape[1]] = kept.T
        return padded if numerical else padded[:, :, 0]


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
