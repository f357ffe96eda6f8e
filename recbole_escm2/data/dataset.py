"""RecBole's Dataset with two labels an impression, on top of a column store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import getLevelName
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_escm2.data.batch import Batch, Rows, View
from recbole_escm2.data.labels import LABEL_SOURCE, label_columns, labels_of
from recbole_escm2.data.open_store import open_store
from recbole_escm2.data.schema import PARTS
from recbole_escm2.data.splits import (
    Ordered,
    check_split,
    check_tuning_part,
    fold_of,
    has_validation,
    in_words,
    is_grouped,
    moments_of,
    seed_draws,
    split_method,
    with_tuning_part,
)
from recbole_escm2.data.truth import Truth
from recbole_escm2.errors import UsageError
from recbole_escm2.fields import WEIGHT_KEYS
from recbole_escm2.identity import Identity

_COUNTED_AT_ONCE = 1 << 16
_SAMPLE_SEED = 2022  # of impression_sample: D stays the same for every seed of a run


class _IdsByToken(dict[str, dict[str, int]]):
    """Id by token of each field, made when a field is first asked for."""

    def __init__(self, vocabularies: Mapping[str, Any]) -> None:
        super().__init__()
        self._vocabularies = vocabularies

    def __missing__(self, field: str) -> dict[str, int]:
        self[field] = self._vocabularies[field].ids
        return self[field]


class EntireSpaceDataset(Dataset):
    """Impressions with a click and a conversion label, from any source.

    The data is in a column store, which is made when a data set is used for the first time. Rows
    are read when a batch asks for them; a split holds their positions only. Label columns are
    checked and kept out of the features. Columns of potential outcomes are kept out of the batches
    altogether: :attr:`truth` has them, for the evaluator. The one column that a model weighs
    clicks by, where config ``propensity`` says so, is in the batches of train.

    Config keys: the groups "Labels", "Potential outcomes" and "Data" of
    ``properties/overall.yaml``.

    Args:
        config: ours, or RecBole's own, which is completed with our defaults.

    Raises:
        UsageError: a file, a column or a label isn't as it must be; the message says where.
    """

    inter_feat: Rows
    benchmark_filename_list: list[str] | None
    uid_field: str | None
    iid_field: str | None

    #: Gives RecBole's own config what it lacks, in place; the plugin sets it.
    complete_config: Callable[[Any], None] = staticmethod(lambda config: None)

    def __init__(self, config: Any) -> None:
        self.complete_config(config)
        self.click_field: str = config["CLICK_FIELD"]
        self.conversion_field: str = config["CONVERSION_FIELD"]
        self.label_columns = label_columns(labels_of(config))
        #: Which part of D this is, where it is one whose labels :attr:`truth` has; by `build`.
        self._part: str | None = None
        #: The share of positives in train by task; likewise.
        self.train_rates: Mapping[str, float] = {}
        self._truth: Truth | None = None
        #: What another seed draws, see :func:`seed_draws`; set by :meth:`build`.
        self.seed_draws = ""
        #: From how many impressions those of test are drawn, None where they are fixed; likewise.
        self.test_pool: int | None = None
        #: How often train has each id, where another part has ids that it lacks; likewise.
        self.seen_ids: dict[str, Tensor] | None = None
        #: How often train has each id, with train alone; likewise.
        self.train_ids: dict[str, Tensor] = {}
        #: What data and which split this is a part of; set by :meth:`build`.
        self.identity: Identity | None = None
        super().__init__(config)

    def _from_scratch(self) -> None:
        self._get_preset()
        self._get_field_from_config()
        self.store = open_store(self.config)
        self._describe_fields(self.store.schema["fields"])
        self._show_tables()
        self._sample_impressions()
        for level, note in self.store.schema.get("notes", ()):
            self.logger.log(getLevelName(level.upper()), note)
        if self.simulated:
            self.logger.warning(self.simulated)

    @property
    def simulated(self) -> str | None:
        """What to say with every number on simulated data; None where the data is real."""
        simulated = self.store.schema.get("simulated")
        return f"{self.dataset_name}: {simulated['note']}" if simulated else None

    @property
    def truth(self) -> Truth | None:
        """Labels of a split, in the order of its rows: read when first wanted, since training needs
        none of train's. None before :meth:`build`, and of a train of clicks alone."""
        if self._truth is None and self._part is not None:
            own = self._labels().of_part(self._part, self.store.schema)
            self._truth = replace(own, train_rate=self.train_rates)
        return self._truth

    @property
    def _label_fields(self) -> list[str]:
        return [column.field for column in self.label_columns]

    def _get_field_from_config(self) -> None:
        super()._get_field_from_config()
        for key, field in (("USER_ID_FIELD", self.uid_field), ("ITEM_ID_FIELD", self.iid_field)):
            if field in self._label_fields:
                raise UsageError(f"{key} names '{field}', which is a label")

    def _describe_fields(self, fields: list[dict[str, Any]]) -> None:
        sources = {source.value: source for source in FeatureSource}
        self._lengths: dict[str, int] = {}
        self._scales: dict[str, float] = {}
        scaled = self.config["weight_scaler"] == "mean"
        self.field2token_id = _IdsByToken(self.field2id_token)
        for entry in fields:
            name = entry["name"]
            source = sources.get(entry["source"], LABEL_SOURCE)
            self.set_field_property(
                name, FeatureType(entry["type"]), source, entry.get("seqlen", 1)
            )
            if entry.get("buckets"):
                self.field2bucketnum[name] = entry["buckets"]
            if entry["vocabulary"] is not None:
                self.field2id_token[name] = self.store.vocabularies[entry["vocabulary"]]
            self._lengths[name] = entry["length"]
            if "scale" in entry and entry["type"] == "token_seq":
                self._lengths[name] = min(entry["length"], self.config["multi_value_top_k"])
                self._scales[name] = entry["scale"] if scaled else 1.0
        self._check_conversion()
        self._check_weights()
        for name in (self.click_field, self.conversion_field):
            if name in self.store.tables["inter"].fields:
                self.set_field_property(name, FeatureType.FLOAT, LABEL_SOURCE, 1)
        if not {self.uid_field, self.iid_field} <= self.field2type.keys():
            self.uid_field = self.iid_field = None  # not among the features that were chosen

    def _check_conversion(self) -> None:
        """Where no conversion was logged there is nothing but clicks to learn."""
        tasks = self.config["learned_tasks"]
        if self.conversion_field not in self.store.tables["inter"].fields and tasks != ["ctr"]:
            raise UsageError(
                f"data set '{self.dataset_name}' has no column '{self.conversion_field}' "
                f"(CONVERSION_FIELD), and {self.config['model']} learns {', '.join(tasks)}. Clicks "
                "alone are learned by a model of RecBole's own with task: ctr, such as DeepFM"
            )

    def fields(self, ftype: Any = None, source: Any = None) -> list[str]:
        """As RecBole's, without the numbers that are no features where features are asked for.

        RecBole's DSSM would make room for them in its towers.
        """
        names: list[str] = super().fields(ftype, source)
        if ftype is not None or source is None:
            return names
        numeric = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
        used = {*self.config["numerical_features"], self.label_field}
        return [n for n in names if n in used or self.field2type[n] not in numeric]

    def _show_tables(self) -> None:
        hidden = set(self._label_fields) - {self.click_field, self.conversion_field}
        keys = {join["key"] for join in self.store.schema["joins"]} - self.field2type.keys()
        # Without the data set itself, which a cycle would keep with its maps and open files.
        task = self.config["label_task"]
        label = partial(_label_of, task, self.click_field, self.conversion_field)
        feats = {}
        for name, table in self.store.tables.items():
            view = View(
                fields=tuple(field for field in table.fields if field not in hidden | keys),
                keys=tuple(key for key in keys if key in table.fields),
                lengths=self._lengths,
                scales=self._scales,
                derived={self.label_field: label} if name == "inter" else {},
            )
            feats[name] = Rows(table, view, slice(0, len(table)))
        self.inter_feat = feats.pop("inter")
        self.user_feat, self.item_feat = feats.get("user"), feats.get("item")
        self._joins = [(join["key"], feats[join["table"]]) for join in self.store.schema["joins"]]
        self.feat_name_list = self._build_feat_name_list()
        self.file_size_list: list[int] | None = self.store.schema["sizes"]
        if self.file_size_list is not None:
            self.benchmark_filename_list = ["train", "valid", "test"]
        self.set_field_property(self.label_field, FeatureType.FLOAT, LABEL_SOURCE, 1)

    def _sample_impressions(self) -> None:
        share, total = self.config["impression_sample"], len(self)
        if share >= 1:
            return
        rows = np.flatnonzero(np.random.default_rng(_SAMPLE_SEED).random(total) < share)
        self.inter_feat = self.inter_feat[rows]
        if self.file_size_list is not None:
            ends = np.cumsum([0, *self.file_size_list])
            self.file_size_list = np.diff(np.searchsorted(rows, ends)).tolist()
        self.logger.info(f"impression_sample {share}: {len(rows):,} of {total:,} impressions")

    # ------------------------------------------------------------------ batches

    def join(self, df: Interaction) -> Interaction:
        """Add what is stored once and not with each impression: user and item features."""
        for joined in self._joined({key: df[key] for key, _ in self._joins if key in df}):
            df.update(Interaction({name: joined[name] for name in joined}))
        return df

    def _joined(self, keys: Mapping[str, Tensor]) -> Iterator[Batch]:
        for key, feat in self._joins:
            if key in keys:
                joined = feat.batch(keys[key])
                joined.interaction.pop(key, None)
                yield joined

    def __getitem__(self, index: Any, join: bool = True) -> Any:
        """A batch.

        Args:
            index: a position, positions, a mask or a slice.
            join: whether to add what is stored once and not with each impression.
        """
        one = isinstance(index, (int, np.integer))
        batch = self.inter_feat.batch([index] if one else index)
        if join:
            for joined in self._joined(batch.keys | batch.interaction):
                batch.add(joined)
        return batch[0] if one else batch

    def values(self, field: str, rows: slice = slice(None)) -> Tensor:
        """A column with one value an impression, also where it stands in a joined table.

        Args:
            field: its name.
            rows: which impressions; all by default.

        Returns:
            Ids int64, numbers float32, ``[rows]``.

        Raises:
            KeyError: there is no such column.
        """
        chosen = self.inter_feat[rows]
        if field in chosen:
            column: Tensor = chosen[field]
            return column
        for key, feat in self._joins:
            if field in feat:
                joined: Tensor = feat[chosen.key(key)][field]
                return joined
        raise KeyError(field)

    # ------------------------------------------------------------------ splits

    def _change_feat_format(self) -> None:
        """Nothing to do: RecBole makes tensors of frames here."""

    def _del_col(self, feat: Rows, field: str) -> None:
        feat.drop(field)
        for known in (self.field2id_token, self.field2seqlen, self.field2source, self.field2type):
            known.pop(field, None)

    def split_by_ratio(self, ratios: list[float], group_by: str | None = None) -> list[Any]:
        if group_by is not None:
            parts: list[Any] = super().split_by_ratio(ratios, group_by)
            return parts
        self._drop_unused_col()
        shares = [ratio / sum(ratios) for ratio in ratios]
        rows = self.inter_feat
        ends = [*self._calcu_split_ids(tot=len(rows), ratios=shares), len(rows)]
        if part := self.config["tuning_part"]:
            test = ends[-1] - ends[-2]
            order, self.test_pool = with_tuning_part(rows.positions.numpy(), part, test)
            rows = rows[order]
            ends = [*self._calcu_split_ids(tot=len(rows), ratios=shares), len(rows)]
        return [
            self.copy(rows[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def build(self) -> list[Any]:
        """The splits, for train, validation and test.

        They depend on ``seed`` alone (and on ``tuning_part``), not on what has drawn random numbers
        before.

        Raises:
            UsageError: no click in train, or a split without an impression.
        """
        presplit = self.file_size_list is not None
        check_split(self.config, presplit)
        self.seed_draws = seed_draws(self.config, presplit)
        self.test_pool = len(self) if self.seed_draws == "split" else None
        if part := self.config["tuning_part"]:
            check_tuning_part(self.config, presplit, part["share"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config["seed"])
            parts: list[Any] = super().build() if presplit else self._split()
            if presplit and not len(parts[1]):
                parts[:2] = parts[0].with_validation(self.config["validation_share"])
        if len(parts) != 3:
            raise UsageError(
                f"eval_args must split D in three parts, got {len(parts)}; one without validation "
                "has a 0 in the middle, as in {RS: [0.8, 0, 0.2]}"
            )
        validates = has_validation(self.config, self.file_size_list)
        identity = self._identity(parts)
        for name, part in zip(PARTS, parts, strict=True):
            part.identity, part._part = identity, name
        train = parts[0]
        of_train = train._logged().of_part("train", self.store.schema)
        for part in parts:
            part.train_rates = of_train.base_rates()
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            if len(part) == 0 and (name != "validation" or validates):
                raise UsageError(
                    f"data set '{self.dataset_name}': {name} has no impression; see eval_args"
                    + (" and impression_sample" if self.config["impression_sample"] < 1 else "")
                )
        if self.config["fits_validation"]:
            parts[:2] = self._as_one(*parts[:2])
            train = parts[0]
            of_train = train._logged().of_part("train", self.store.schema)
        self._show_propensity(train, of_train.propensity)
        self._check_clicks(of_train)
        if self.config["train_space"] == "click":
            parts[0] = train.copy(train.inter_feat[np.flatnonzero(of_train.click)])
            parts[0]._part = None
        self._show_weights(parts[0])
        self._count_ids(parts)
        return parts

    def _check_clicks(self, train: Truth) -> None:
        """Make sure that train has clicks, and say where it has nothing else."""
        rows = f"{len(train.click):,} impressions of train"
        if not train.click.any():
            raise UsageError(
                f"data set '{self.dataset_name}': no click among the {rows} (column "
                f"'{self.click_field}'). Nothing can be learned about conversion"
            )
        if train.click.all() and train.clicks_known:
            self.logger.warning(
                f"all {rows} are clicked: a log of clicks alone tells nothing of what is clicked, "
                "CTR is 1 for every impression, and weighting clicks by their propensity has "
                "nothing to weigh"
            )

    def _split(self) -> list[Any]:
        """What ``eval_args``, ``folds`` and ``keep_together`` make of D; RecBole does the rest."""
        config, (way, how) = self.config, split_method(self.config)
        ordered = config["eval_args"]["order"] == "TO"
        times = self._times(way) if ordered or way == "TIME" else None
        if way == "TIME":
            assert times is not None
            return self._of_rows(self._by_moment(times, how))
        if way != "RS" or is_grouped(config) or len(how) != 3:
            return super().build()
        together = self._together()

        def ends(rows: int) -> list[int]:
            shares = how[:2] if config["folds"] else how
            return self._calcu_split_ids(tot=rows, ratios=[s / sum(shares) for s in shares])

        if config["folds"]:
            shuffled = torch.randperm
            rows = len(self), config["folds"], config["seed"]
            return self._of_rows(fold_of(together, *rows, ends, shuffled))
        if times is not None:
            parts = Ordered.by_time(times).cut(ends(len(self)))
            self._say_moments([float(times[part[0]]) for part in parts[1:] if len(part)])
            return self._of_rows(parts)
        if together is not None:
            drawn = Ordered.at_random(together, len(self), torch.randperm)
            return self._of_rows(drawn.cut(ends(len(self))))
        return super().build()

    def _of_rows(self, parts: Sequence[NDArray[np.int64]]) -> list[EntireSpaceDataset]:
        self._drop_unused_col()
        return [self.copy(self.inter_feat[rows]) for rows in parts]

    def _by_moment(self, times: NDArray[np.float64], how: Sequence[Any]) -> list[Any]:
        """Train, validation and test of a split TIME: a moment's impressions are after it."""
        moments = moments_of(how, float(times.min()), float(times.max()))
        self._say_moments(moments)
        part = np.searchsorted(moments, times, side="right")
        if len(moments) == 1:
            part *= 2
        return [np.flatnonzero(part == number) for number in range(len(PARTS))]

    def _say_moments(self, moments: Sequence[float]) -> None:
        """When validation and test begin, for the log."""
        named = PARTS[-len(moments) :]
        said = (f"{name} from {in_words(at)}" for name, at in zip(named, moments, strict=True))
        self.logger.info(f"split by time ({self.time_field}): {', '.join(said)}")

    def _times(self, way: str) -> NDArray[np.float64]:
        """The time of each impression, ``[|D|]``."""
        split = "eval_args split TIME" if way == "TIME" else "eval_args order TO"
        if self.time_field not in self.inter_feat:
            raise UsageError(
                f"{split} needs the column '{self.time_field}' (TIME_FIELD), and "
                f"data set '{self.dataset_name}' has {', '.join(self.inter_feat)}"
            )
        times = self.inter_feat.columnar(self.store.schema["exact_time"])
        if times is None:
            kind = self.field2type[self.time_field].value
            raise UsageError(
                f"{split} needs times, and '{self.time_field}' (TIME_FIELD) is a "
                f"{kind}: declare it a float, in seconds for example"
            )
        if len(times) > 1 and (times == times[0]).all():
            raise UsageError(
                f"{split} needs times, and '{self.time_field}' (TIME_FIELD) is the same in all rows"
            )
        return np.asarray(times)

    def _together(self) -> NDArray[np.int64] | None:
        """What config ``keep_together`` names of each impression, 0 where it has no value."""
        name, group = self.config["keep_together"], self.store.schema["group"]
        if name is None:
            return None
        if name == self.uid_field and group is not None:  # rare users are told apart there
            return np.asarray(self.inter_feat.columnar(group))
        kind = self.field2type.get(name)
        if name not in self.inter_feat or kind != FeatureType.TOKEN:
            raise UsageError(
                f"keep_together must name a column of tokens of the impressions, got '{name}'; "
                f"data set '{self.dataset_name}' has {', '.join(self.inter_feat)}"
            )
        return self.inter_feat[name].numpy()

    def with_validation(self, share: float | None) -> list[EntireSpaceDataset]:
        """Train and validation, which is a random share; nothing where no share is given."""
        drawn = torch.zeros(len(self), dtype=torch.bool)
        drawn[torch.randperm(len(self))[: round((share or 0) * len(self))]] = True
        return [self.copy(self.inter_feat[rows]) for rows in (~drawn, drawn)]

    def _as_one(self, train: Any, validation: Any) -> list[EntireSpaceDataset]:
        """Train with the impressions of validation, and a validation without any."""
        both = train.copy(train.inter_feat.followed_by(validation.inter_feat))
        none = validation.copy(validation.inter_feat[:0])
        both._truth = none._truth = None
        return [both, none]

    def id_counts(self) -> dict[str, Tensor]:
        """How often the impressions have each id, float64 ``[ids]`` by field of tokens.

        What stands in a joined table counts once for each impression that refers to its row.
        """
        vocabularies = self.field2id_token.items()
        counts = {name: torch.zeros(len(ids), dtype=torch.float64) for name, ids in vocabularies}

        def add(name: str, ids: Tensor, weights: Tensor | None) -> None:
            if name in counts:
                counts[name] += torch.bincount(ids, weights, len(counts[name]))

        rows = self.inter_feat
        for name in counts.keys() & set(rows):
            if self.field2type[name] == FeatureType.TOKEN:
                add(name, rows[name], None)
        if any(self.field2type.get(name) == FeatureType.TOKEN_SEQ for name in rows):
            for block in torch.arange(len(rows)).split(_COUNTED_AT_ONCE):
                for name, bag in rows.batch(block).bags.items():
                    add(name, bag.ids, None)
        for key, feat in self._joins:
            times = torch.bincount(rows.key(key), minlength=len(feat))
            for block in times.nonzero().squeeze(1).split(_COUNTED_AT_ONCE):
                batch, weights = feat.batch(block), times[block].double()
                for name, ids in batch.interaction.items():
                    if name != key and self.field2type[name] == FeatureType.TOKEN:
                        add(name, ids, weights)
                for name, bag in batch.bags.items():
                    add(name, bag.ids, weights.repeat_interleave(bag.lengths[0]))
        return counts

    def _count_ids(self, parts: list[EntireSpaceDataset]) -> None:
        """Say which ids train lacks, and keep how often it has the others where it lacks some."""
        train, *others = (part.id_counts() for part in parts)
        parts[0].train_ids = train
        for name, own in zip(PARTS[1:], others, strict=True):
            said = []
            for field, counts in own.items():
                unseen = counts[1:][train[field][1:] == 0].sum()
                if unseen:
                    said.append(f"{field} {float(unseen / counts[1:].sum()):.2%}")
            if said:
                parts[0].seen_ids = train
                self.logger.warning(
                    f"{name} has ids that train hasn't, of all values: {', '.join(said)}. They are "
                    "given the mean of their field's embeddings"
                )

    def _identity(self, parts: list[EntireSpaceDataset]) -> Identity:
        names = ("train", "validation", "test")
        return {
            "vocabulary": {name: ids.digest for name, ids in self.field2id_token.items()},
            "columns": {
                f"{column} ({table.name})": digest
                for table in self.store.tables.values()
                for column, digest in table.digests.items()
            },
            "split": {
                name: part.inter_feat.digest() for name, part in zip(names, parts, strict=True)
            },
        }

    def _show_propensity(self, train: EntireSpaceDataset, propensity: Any) -> None:
        field, choice = self.config["weight_field"], self.config["propensity"]
        if field is None:
            return
        if propensity is None:
            instead = "a simulation (ml-100k-semi, ali-ccp-sim)" if choice == "oracle" else "a log"
            raise UsageError(
                f"propensity: {choice} weighs clicks by the column '{field}', which data set "
                f"'{self.dataset_name}' doesn't have: it takes {instead} to know it. propensity: "
                "ctr_tower estimates it"
            )
        train.inter_feat[field] = torch.from_numpy(propensity)

    def _check_weights(self) -> None:
        """Weights that a user names are there."""
        for key in dict.fromkeys(WEIGHT_KEYS.values()):
            field = self.config[key]
            if field is not None and field not in self.store.tables["inter"].layout.columnar:
                raise UsageError(f"data set '{self.dataset_name}' has no column '{field}' ({key})")

    def _show_weights(self, train: EntireSpaceDataset) -> None:
        """Put weights into the batches of train, divided by their mean over its impressions."""
        for field in {self.config[key] for key in WEIGHT_KEYS.values()} - {None}:
            weight = torch.from_numpy(np.asarray(train.inter_feat.columnar(field)))
            mean = float(weight.double().mean())
            if not mean:
                raise UsageError(
                    f"data set '{self.dataset_name}': the weights '{field}' are 0 in all "
                    f"{len(weight):,} impressions to train on"
                )
            train.inter_feat[field] = (weight.double() / mean).float()

    def _logged(self) -> Truth:
        """The labels without what only an evaluation needs."""
        config, column = self.config, self.inter_feat.columnar
        weighted = config["weighted_metrics"]
        return Truth(
            click=column(self.click_field),
            conversion=column(self.conversion_field),
            propensity=column(config["weight_field"]),
            click_weight=column(config["CLICK_WEIGHT_FIELD"]) if weighted else None,
            conversion_weight=column(config["CONVERSION_WEIGHT_FIELD"]) if weighted else None,
        )

    def _labels(self) -> Truth:
        config, group = self.config, self.store.schema["group"]
        column = self.inter_feat.columnar
        return replace(
            self._logged(),
            user=None if group is None else column(group),
            potential_conversion=column(config["POTENTIAL_CONVERSION_FIELD"]),
            true_ctr=column(config["TRUE_CTR_FIELD"]),
            true_cvr=column(config["TRUE_CVR_FIELD"]),
        )

    def counts(self) -> dict[str, int]:
        """Impressions, clicks and conversions (of clicked impressions)."""
        return self._logged().counts()

    def summary(self) -> str:
        """Impressions, clicks and conversions in one line."""
        count = self.counts()
        said = (
            f"{count['impressions']:,} impressions, {count['clicks']:,} clicks "
            f"({_percent(count['clicks'], count['impressions'])})"
        )
        if self.conversion_field not in self.inter_feat:
            return f"{said}, no conversion logged"
        rate = _percent(count["conversions"], count["clicks"])
        return f"{said}, {count['conversions']:,} conversions ({rate} of clicks)"

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


def _label_of(task: str, click: str, conversion: str, columns: Mapping[str, Tensor]) -> Tensor:
    """RecBole has one label; it is that of the task to learn or to score."""
    if task == "ctr":
        return columns[click].clone()
    converted = columns[conversion]
    return converted.clone() if task == "cvr" else columns[click] * converted


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"
