"""RecBole's Dataset with two labels an impression."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_escm2.config import (
    complete,
    dataset_names,
    single_task,
    trains_on_clicks,
)
from recbole_escm2.data.atomic import check_lines, read_header
from recbole_escm2.data.labels import (
    LabelColumn,
    conversions_without_click,
    faulty_rows,
    numbers,
)
from recbole_escm2.data.pairs import all_pairs
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.predictions import Truth
from recbole_escm2.fields import LABEL_KEYS

# A source that no model asks for features of: RecBole's FeatureSource doesn't know it.
_LABEL_SOURCE = "label"
_SHOWN = 5  # rows that a message names
_SAMPLE_SEED = 2022  # of impression_sample: D stays the same for every seed of a run


class EntireSpaceDataset(Dataset):
    """Impressions with a click and a conversion label, from RecBole's atomic files.

    Features are RecBole's: token, token sequence, float and discretised columns of ``.inter``,
    ``.user`` and ``.item``. The label columns are read as numbers whatever type they are declared
    as, checked, and kept out of the features. Columns of potential outcomes are kept out of the
    batches altogether: :attr:`truth` has them, for the evaluator.

    Config keys: the groups "Labels" and "Potential outcomes" of ``properties/overall.yaml``.

    Args:
        config: ours, or RecBole's own, which is completed with our defaults.

    Raises:
        UsageError: a file, a column or a label isn't as it must be; the message says where.
    """

    inter_feat: Any
    file_size_list: list[int]

    def __init__(self, config: Any) -> None:
        complete(config)
        self.click_field: str = config["CLICK_FIELD"]
        self.conversion_field: str = config["CONVERSION_FIELD"]
        self.label_columns = [
            LabelColumn(config[key], probability=key.startswith("TRUE_"))
            for key in LABEL_KEYS
            if config[key] is not None
        ]
        #: Labels of a split, in the order of its rows; set by :meth:`build`.
        self.truth: Truth | None = None
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
        if not Path(dataset_path).is_dir():
            raise UsageError(self._missing(token, Path(dataset_path)))
        super()._load_data(token, dataset_path)
        pairs = self.config["impressions"] == "pairs"
        if pairs:
            self._click_every_row()
        self._require_label(self.click_field, "CLICK_FIELD")
        self._derive_conversion()
        self._require_label(self.conversion_field, "CONVERSION_FIELD")
        if pairs:
            self._expand_to_pairs()
        self._settle_conversions_without_click()
        self._sample_impressions()

    def _missing(self, token: str, folder: Path) -> str:
        if self.config["obtain"]:
            return f"data set '{token}' isn't in {folder}. {self.config['obtain'].strip()}"
        there = [path.name for path in folder.parent.glob("*/") if any(path.glob("*.inter"))]
        names = ", ".join(sorted({*dataset_names(), *there}))
        return (
            f"there is no data set '{token}'. Data sets: {names}. For one of your own put its "
            f"atomic files into {folder} ({token}.inter, and {token}.user and {token}.item if it "
            "has them), or name the folder above it with --data_path"
        )

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        parts = self.benchmark_filename_list
        if parts is not None and (not isinstance(parts, list) or len(parts) != 3):
            raise UsageError(
                "benchmark_filename must be a list of three names, for train, validation and test, "
                f"got {parts!r}"
            )
        files = [self._inter_file(Path(dataset_path), suffix) for suffix in parts or [None]]
        for file in files:
            if not file.is_file():
                how = f". {self.config['obtain'].strip()}" if self.config["obtain"] else ""
                raise UsageError(f"data set '{token}': there is no file {file}{how}")
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
        super()._load_inter_feat(token, dataset_path)

    def _inter_file(self, folder: Path, suffix: str | None) -> Path:
        return folder / ".".join(filter(None, [self.dataset_name, suffix, "inter"]))

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
        path = Path(filepath)
        header = self._header(path)
        self._check_columns(path, header, source)
        check_lines(path, len(header), self.config["field_separator"], self.config["encoding"])
        try:
            frame = super()._load_feat(filepath, source)
        except ValueError as error:
            raise self._label_fault(path) or UsageError(f"{path}: {error}") from error
        if source == FeatureSource.INTERACTION and frame is not None:
            for column in self.label_columns:
                if column.field in frame:
                    self._read_label(frame, column, path)
        return frame

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

    def _read_label(self, frame: pd.DataFrame, column: LabelColumn, path: Path) -> None:
        field = column.field
        if self.field2type[field].value.endswith("seq"):
            raise UsageError(
                f"{path}: column '{field}' is declared {self.field2type[field].value}; a label is "
                f"one number, declare it '{field}:float'"
            )
        values = numbers(frame[field])
        if not column.is_valid(values).all():
            raise self._label_fault(path) or UsageError(
                f"{path}: column '{field}' must hold {column.wanted} in every row"
            )
        frame[field] = values
        self._set_label_property(field)

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
        self.set_field_property(field, FeatureType.FLOAT, _LABEL_SOURCE, 1)

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

    def _expand_to_pairs(self) -> None:
        def ids(feat: pd.DataFrame | None, field: str) -> np.ndarray:
            source = self.inter_feat if feat is None else feat
            return source[field].dropna().unique()

        rated = self.inter_feat
        self.inter_feat, row = all_pairs(
            rated,
            self.uid_field,
            self.iid_field,
            ids(self.user_feat, self.uid_field),
            ids(self.item_feat, self.iid_field),
        )
        labels = (self.click_field, self.conversion_field)
        for field in labels:
            self.inter_feat[field] = np.where(row >= 0, rated[field].to_numpy()[row], 0.0)
        # What stands in a row is known for rated pairs alone: as a feature it would be the label.
        for field in set(rated) - {self.uid_field, self.iid_field, *labels}:
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
            self.logger.warning(
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
        if self.field2source[field] not in (FeatureSource.INTERACTION, _LABEL_SOURCE):
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
        self.logger.warning(f"{where}. They are {fate} (conversion_without_click: {choice})")
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
            file = self._inter_file(Path(), parts[part])
            places.append(f"{file} row {row - (ends[part] - sizes[part]) + 1:,}")
        return ", ".join(places) + (", …" if len(rows) > _SHOWN else "")

    def _sample_impressions(self) -> None:
        share = self.config["impression_sample"]
        if share >= 1:
            return
        total = len(self.inter_feat)
        draw = np.random.default_rng(_SAMPLE_SEED).random(total)
        self._keep(np.flatnonzero(draw < share))
        self.logger.info(
            f"impression_sample {share}: {len(self.inter_feat):,} of {total:,} impressions"
        )

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
            self.logger.warning(
                f"RecBole's filters leave {left_out:,} of {before:,} impressions out of D "
                "(filter_inter_by_user_or_item, val_interval, rm_dup_inter, ..._inter_num_interval)"
            )

    def field2feats(self, field: str) -> list[Any]:
        if self.field2source.get(field) == _LABEL_SOURCE:
            return [self.inter_feat]
        feats: list[Any] = super().field2feats(field)
        return feats

    def _set_label_by_threshold(self) -> None:
        """RecBole makes its one label here; ours is that of the task to learn or to score."""
        label = self.inter_feat[self.click_field]
        task = single_task(self.config)
        if task == "cvr":
            label = self.inter_feat[self.conversion_field]
        elif task == "ctcvr":
            label = label * self.inter_feat[self.conversion_field]
        self.inter_feat[self.label_field] = label
        self._set_label_property(self.label_field)

    def _get_field_from_config(self) -> None:
        super()._get_field_from_config()
        for key, field in (("USER_ID_FIELD", self.uid_field), ("ITEM_ID_FIELD", self.iid_field)):
            if field in self._label_fields:
                raise UsageError(f"{key} names '{field}', which is a label")

    def join(self, df: Interaction) -> Interaction:
        """Add user and item features to a batch, by tensor index."""
        for feat, key in ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field)):
            if feat is not None and key in df:
                rows = df[key]
                df.update(Interaction({k: feat[k][rows] for k in feat if k != key}))
        return df

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        if not isinstance(index, (int, slice)):
            index = torch.as_tensor(index)
        batch = Interaction({k: self.inter_feat[k][index] for k in self.inter_feat})
        return self.join(batch) if join else batch

    def split_by_ratio(self, ratios: list[float], group_by: str | None = None) -> list[Any]:
        if group_by is not None:
            parts: list[Any] = super().split_by_ratio(ratios, group_by)
            return parts
        self._drop_unused_col()
        shares = [ratio / sum(ratios) for ratio in ratios]
        ends = [*self._calcu_split_ids(tot=len(self), ratios=shares), len(self)]
        return [
            self.copy(Interaction({k: self.inter_feat[k][start:end] for k in self.inter_feat}))
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def build(self) -> list[Any]:
        """The splits, for train, validation and test.

        They depend on ``seed`` alone, not on what has drawn random numbers before.

        Raises:
            UsageError: no click in train, or a split without an impression.
        """
        if self.config["eval_args"]["order"] == "TO" and self.time_field not in self.inter_feat:
            raise UsageError(
                f"eval_args order TO needs the column '{self.time_field}' (TIME_FIELD), and "
                f"data set '{self.dataset_name}' has {', '.join(self.inter_feat)}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config["seed"])
            parts = super().build()
        if len(parts) != 3:
            raise UsageError(f"eval_args must split D in three parts, got {len(parts)}")
        for part in parts:
            part._set_outcomes_apart()
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            if len(part) == 0:
                raise UsageError(
                    f"data set '{self.dataset_name}': {name} has no impression; see eval_args"
                )
        train = parts[0]
        if not train.truth.click.any():
            raise UsageError(
                f"data set '{self.dataset_name}': no click among the {len(train):,} impressions of "
                f"train (column '{self.click_field}'). Nothing can be learned about conversion"
            )
        if trains_on_clicks(self.config):
            parts[0] = train.copy(train.__getitem__(np.flatnonzero(train.truth.click), join=False))
            parts[0].truth = None
        return parts

    def _set_outcomes_apart(self) -> None:
        fields = [name for name in self._label_fields if name in self.inter_feat]
        column = {name: self.inter_feat[name].numpy() for name in fields}
        config = self.config
        self.truth = Truth(
            click=column[self.click_field],
            conversion=column[self.conversion_field],
            user=self.inter_feat[self.uid_field].numpy() if self.uid_field else None,
            potential_conversion=column.get(config["POTENTIAL_CONVERSION_FIELD"]),
            true_ctr=column.get(config["TRUE_CTR_FIELD"]),
            true_cvr=column.get(config["TRUE_CVR_FIELD"]),
        )
        hidden = set(self._label_fields) - {self.click_field, self.conversion_field}
        self.inter_feat = Interaction(
            {k: self.inter_feat[k] for k in self.inter_feat if k not in hidden}
        )

    def counts(self) -> dict[str, int]:
        """Impressions, clicks and conversions (of clicked impressions)."""
        click = np.asarray(self.inter_feat[self.click_field]) > 0
        conversion = np.asarray(self.inter_feat[self.conversion_field]) > 0
        return {
            "impressions": len(click),
            "clicks": int(click.sum()),
            "conversions": int((click & conversion).sum()),
        }

    def summary(self) -> str:
        """Impressions, clicks and conversions in one line."""
        count = self.counts()
        return (
            f"{count['impressions']:,} impressions, {count['clicks']:,} clicks "
            f"({_percent(count['clicks'], count['impressions'])}), {count['conversions']:,} "
            f"conversions ({_percent(count['conversions'], count['clicks'])} of clicks)"
        )

    def __str__(self) -> str:
        sources = [s for s in FeatureSource if s not in (FeatureSource.KG, FeatureSource.NET)]
        features = [
            field
            for field in self.fields(source=sources)
            if self.field2type[field] in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
            or field in self.config["numerical_features"]
        ]
        lines = [f"{self.dataset_name}: {self.summary()}"]
        if self.uid_field:
            lines.append(f"{self.user_num - 1:,} users, {self.item_num - 1:,} items")
        return "\n".join([*lines, f"features: {', '.join(features)}"])


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"
