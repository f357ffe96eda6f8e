"""Lines of the raw files, or of a simulated world, as record batches for the builder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.lines import UNWANTED, Lines, Part
from recbole_escm2.data.ali_ccp.raw import FIELD_BY_NAME, KEY_DIGITS, TRUTH_COLUMNS, Field
from recbole_escm2.data.ali_ccp.sample_ids import SampleIds
from recbole_escm2.data.schema import Chunk, Join, Labels, Schema
from recbole_escm2.data.schema import Field as SchemaField
from recbole_escm2.errors import UsageError, did_you_mean

CLICK, PURCHASE = "click", "purchase"
#: Rows, clicks and conversions of the official files, where they are known.
OFFICIAL = {
    "train": {"rows": 42_300_000, "clicks": 1_644_256, "conversions": 9_032},
    "test": {"rows": 43_000_000},
}

_USER, _ITEM = "101", "205"
_KEY = "common_feature_index"
_ORIGINS = {_USER: "user_id", _ITEM: "item_id"}
_COUNTED = ("clicks", "conversions", "conversions_without_click", "left_out")
_ROWS_AT_ONCE, _FEATURES_AT_ONCE = 1 << 15, 1 << 18
_HASH_SALT, _HASH_STEP = np.uint64(0xA11CC95EED2018), np.uint64(0x9E3779B97F4A7C15)
_HASH_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ROWS_TOLERANCE = 0.005  # the numbers of rows are known to three digits
_CONVERSION_RATE = 0.2
_CLICK_RATE = (0.005, 0.5)


@dataclass(frozen=True)
class Options:
    """What is made of the raw files.

    Attributes:
        feature_fields: names from ``raw.FIELDS``; others are read and left out.
        validation_share: of the training rows, by a hash of ``sample_id``: it depends neither on
            the order of the rows nor on which others there are.
        on_bad_line: ``raise``, or ``skip`` malformed lines and count them.
        conversion_without_click: as the builder has it; with ``raise`` the message has the line.

    Raises:
        UsageError: fields that there aren't, or that can't do, by the key.
    """

    feature_fields: tuple[str, ...]
    validation_share: float = 0.1
    on_bad_line: str = "raise"
    conversion_without_click: str = "drop"

    def __post_init__(self) -> None:
        if isinstance(self.feature_fields, str) or not isinstance(self.feature_fields, Sequence):
            raise UsageError(f"feature_fields must be a list, got {self.feature_fields!r}")
        fields = tuple(str(name) for name in self.feature_fields)  # YAML reads 101 as a number
        object.__setattr__(self, "feature_fields", fields)
        for name in fields:
            if name not in FIELD_BY_NAME:
                hint = did_you_mean(name, FIELD_BY_NAME)
                raise UsageError(
                    f"feature_fields: Ali-CCP has no field {name!r}{hint}; "
                    f"it has {', '.join(FIELD_BY_NAME)}"
                )
        if len({*fields}) < len(fields):
            raise UsageError("feature_fields names a field twice")
        if not self.wanted("common"):
            raise UsageError("feature_fields needs a user field, such as 101")

    def wanted(self, kind: str) -> list[str]:
        """The wanted fields of the common features or of the skeleton."""
        is_common = kind == "common"
        return [n for n in self.feature_fields if (FIELD_BY_NAME[n].origin == "user") == is_common]


def schema_of(options: Options, truth: bool, simulated: Any, size: int, unit: str) -> Schema:
    """What the chunks of :class:`Reader` hold.

    Args:
        options: what is made of the files.
        truth: whether impressions have their true probabilities.
        simulated: what is known of a simulation, None where the data is real.
        size: what is to be read. unit: of the size, for the bar.
    """
    fields = []
    for name in options.feature_fields:
        own = FIELD_BY_NAME[name]
        fields.append(
            SchemaField(
                name,
                "token_seq" if own.is_bag else "token",
                _ORIGINS.get(name, "inter" if own.origin == "cross" else own.origin),
                "common" if own.origin == "user" else "inter",
                weighted=own.is_bag,
            )
        )
    schema = Schema(
        fields=tuple(fields),
        labels=Labels(CLICK, PURCHASE, **({name: name for name in TRUTH_COLUMNS if truth})),
        truth="potential" if truth else "none",
        vocabulary="train",
        leave_out="feature_fields",
        order="count",
        group=_USER if _USER in options.feature_fields else None,
        joins=(Join("common", _KEY),),
        size=size,
        unit=unit,
        simulated=simulated,
    )
    if schema.group is None:
        note = f"{_USER} isn't among the feature_fields, so that no user is known"
        schema.notes.append(("info", f"{note}: there are no GAUC, NDCG@K and Recall@K"))
    return schema


class Reader:
    """Impressions and common features as chunks, and what was found in their files.

    Args:
        options: what is made of them.
        schema: to whose report and notes is added what was found.
    """

    def __init__(self, options: Options, schema: Schema) -> None:
        self._options = options
        self._schema = schema
        self._rows: Counter[str] = Counter()  # impressions that stay, by part
        self._size = 0  # read since the last chunk
        self._threshold = np.uint64(int(options.validation_share * 2**64))
        self._files: list[dict[str, Any]] = []
        schema.report["files"] = self._files

    def chunks(self, parts: Iterable[Part]) -> Iterator[Chunk]:
        """All rows.

        Args:
            parts: the four texts, in any order.

        Raises:
            UsageError: a malformed line (by file and line number), a file that is cut off or
                corrupt, no impressions.
        """
        for part in parts:
            yield from self.chunks_of(part, SampleIds() if part.kind == "skeleton" else None)
        for split, name in (("train", "training"), ("test", "test")):
            if not self._rows[split]:
                held = ", ".join(f"{file['rows']:,} rows in {file['name']}" for file in self._files)
                raise UsageError(f"no {name} impressions are left; the files hold {held}")

    def chunks_of(self, part: Part, samples: SampleIds | None = None) -> Iterator[Chunk]:
        """The rows of one text.

        Args:
            part: the text.
            samples: keeps the ids of its impressions, where repeated ones are to be told.
        """
        wanted = [FIELD_BY_NAME[name] for name in self._options.wanted(part.kind)]
        counts = Counter(dict.fromkeys(_COUNTED if part.kind == "skeleton" else (), 0))
        further, unknown = Counter[str](), Counter[str]()
        pieces = part.lines(self._advance)
        if part.kind == "common":  # a table without a row is one, too
            pieces = chain([Lines.of([], [])], pieces)
        for lines in _gathered(pieces):
            for target in lines.target[lines.target < UNWANTED].tolist():
                unknown[part.name_of(target)] += 1
            columns = _features(lines, wanted, further)
            columns[_KEY] = _keys(lines.key, part.split)
            if part.kind == "skeleton":
                if samples is not None:
                    samples.add(lines.sample, lines.number)
                yield from self._impressions(lines, columns, part, counts)
            else:
                rows = pa.RecordBatch.from_pydict(columns)
                numbers = lines.number + 1
                yield Chunk(rows, "common", part.split, part.name, numbers, size=self._taken())
        if samples is not None:
            counts["repeated_ids"] = samples.repeated()
        file = {
            "name": part.name,
            "split": part.split,
            "kind": part.kind,
            "rows": part.rows,
            "malformed": part.malformed,
            "malformed_places": part.places,
            "unknown_fields": dict(sorted(unknown.items())),
            "further_values": dict(further),
            "repeated_place": samples.place if samples is not None else "",
            **counts,
        }
        self._files.append(file)
        self._schema.notes.extend(_notes(file, self._schema.simulated is not None))

    def _advance(self, size: int) -> None:
        self._size += size

    def _taken(self) -> int:
        size, self._size = self._size, 0
        return size

    def _impressions(
        self, lines: Lines, columns: dict[str, pa.Array], part: Part, counts: Counter[str]
    ) -> Iterator[Chunk]:
        """Impressions by the part that they fall into; counts what the file holds."""
        unclicked = lines.purchase & ~lines.click
        left_out = unclicked & (self._options.conversion_without_click == "drop")
        counts["clicks"] += int(lines.click.sum())
        counts["conversions"] += int((lines.click & lines.purchase).sum())
        counts["conversions_without_click"] += int(unclicked.sum())
        counts["left_out"] += int(left_out.sum())
        columns |= {CLICK: pa.array(lines.click), PURCHASE: pa.array(lines.purchase)}
        if lines.truth is not None:
            truth = map(pa.array, lines.truth.T.copy())
            columns |= dict(zip(TRUTH_COLUMNS, truth, strict=True))
        rows = pa.RecordBatch.from_pydict(columns)
        masks = {part.split: np.ones(len(rows), bool)}
        if part.split == "train":
            held_out = sample_hash(lines.sample) < self._threshold
            masks = {"train": ~held_out, "valid": held_out}
        for name, own in masks.items():
            self._rows[name] += int((own & ~left_out).sum())
            chosen = rows if own.all() else rows.filter(pa.array(own))
            numbers = (lines.number[own] + 1).tolist()
            yield Chunk(chosen, "inter", name, part.name, numbers, size=self._taken())


def _gathered(pieces: Iterable[Lines]) -> Iterator[Lines]:
    """Lines in pieces that are worth the work that each costs."""
    waiting: list[Lines] = []
    rows = features = 0
    for lines in pieces:
        waiting.append(lines)
        rows, features = rows + len(lines.number), features + len(lines.line)
        if rows >= _ROWS_AT_ONCE or features >= _FEATURES_AT_ONCE:
            yield Lines.joined(waiting)
            waiting, rows, features = [], 0, 0
    if waiting:
        yield Lines.joined(waiting)


def _features(lines: Lines, wanted: Sequence[Field], further: Counter[str]) -> dict[str, pa.Array]:
    """Columns of the wanted fields; counts further values of those that have one a row."""
    order = np.argsort(lines.target.astype(np.int8), kind="stable")
    ends = np.searchsorted(lines.target[order], np.arange(len(wanted) + 1))
    count = len(lines.number)
    columns = {}
    for number, field in enumerate(wanted):
        own = order[ends[number] : ends[number + 1]]
        line, ids = lines.line[own], lines.feature[own].astype(np.int64)
        if field.is_bag:
            offsets = np.append(0, np.bincount(line, minlength=count).cumsum())
            pairs = [pa.array(ids), pa.array(lines.weight[own])]
            values = pa.StructArray.from_arrays(pairs, ["id", "weight"])
            columns[field.name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
            continue
        first = np.diff(line, prepend=-1) > 0  # of several values the first one stays
        if again := len(line) - int(first.sum()):
            further[field.name] += again
        value, lacks = np.zeros(count, np.int64), np.ones(count, bool)
        value[line[first]], lacks[line[first]] = ids[first], False
        columns[field.name] = pa.array(value, mask=lacks)
    return columns


def _keys(key: NDArray[Any], split: str) -> pa.Array:
    """Keys that join within a split only."""
    prefix = np.frombuffer(f"{split} ".encode(), np.uint8)
    own = np.empty((len(key), len(prefix) + KEY_DIGITS), np.uint8)
    own[:, : len(prefix)] = prefix
    own[:, len(prefix) :] = (
        key.astype(f"S{KEY_DIGITS}").view(np.uint8).reshape(len(key), KEY_DIGITS)
    )
    return pa.array(own.view(f"S{own.shape[1]}").ravel())


def sample_hash(sample: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of sample ids that decides between training and validation (splitmix64)."""
    mixed = (sample ^ _HASH_SALT) + _HASH_STEP
    for shift, factor in zip((30, 27), _HASH_FACTORS, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    return mixed ^ (mixed >> np.uint64(31))


# --------------------------------------------------------------------------- what to say


def _notes(file: dict[str, Any], simulated: bool) -> Iterator[tuple[str, str]]:
    """What can't be right in a file, and what was left out of it."""
    name = file["name"]
    if file["malformed"]:
        said = f"{name}: {file['malformed']:,} malformed lines left out of {file['rows']:,}"
        yield "warning", f"{said}; the first: {file['malformed_places'][0]}"
    for field, number in file["unknown_fields"].items():
        yield "debug", f"{name}: field {field} is not known there, {number:,} values ignored"
    for field, number in file["further_values"].items():
        said = f"{name}: field {field} has one value a row"
        yield "debug", f"{said}; {number:,} further ones ignored"
    if again := file.get("repeated_ids"):
        said = f"{name}: {again:,} of {file['rows']:,} rows have the sample_id of an earlier one"
        yield "warning", f"{said}, and each counts as an impression; {file['repeated_place']}"
    if file["kind"] == "skeleton":
        yield from (("warning", text) for text in _rates(file, simulated))
        if not simulated:
            yield from (("info", text) for text in _official(file))


def _rates(file: dict[str, Any], simulated: bool) -> Iterator[str]:
    name, rows = file["name"], file["rows"] - file["malformed"]
    if not rows:
        yield f"{name}: no rows"
        return
    clicks, conversions = file["clicks"], file["conversions"]
    if not clicks:
        yield f"{name}: no click among {rows:,} rows"
        return
    low, high = _CLICK_RATE
    if not low <= clicks / rows <= high:
        yield f"{name}: {clicks / rows:.3%} of the rows are clicked (Ali-CCP: 3.9 %)"
    if not conversions:
        yield f"{name}: no conversion among {clicks:,} clicks"
    elif conversions / clicks > _CONVERSION_RATE and not simulated:
        yield f"{name}: {conversions / clicks:.1%} of the clicks convert (Ali-CCP: 0.55 %)"


def _official(file: dict[str, Any]) -> Iterator[str]:
    for key, expected in OFFICIAL[file["split"]].items():
        tolerance = _ROWS_TOLERANCE * expected if key == "rows" else 0
        if abs(file[key] - expected) > tolerance:
            about = "about " if key == "rows" else ""
            yield (
                f"{file['name']} has {file[key]:,} {key}, the official file has {about}{expected:,}"
            )
