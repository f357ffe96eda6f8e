"""From lines of impressions and common features to a column store, in bounded memory.

Impressions and common features are read at the same time, into temporary files beside the tables
to be. When both are read it is known how many training impressions have each feature: that makes
the vocabularies, and a pass over the temporary files writes the tables. What grows is the
vocabularies and a few numbers per common row; impressions only pass through.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import numbers
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_escm2.data.ali_ccp.files import RawFiles, find_raw, open_stream, streams
from recbole_escm2.data.ali_ccp.lines import UNWANTED, Lines, Part, Text
from recbole_escm2.data.ali_ccp.raw import FIELD_BY_NAME, KINDS, SPLITS, TRUTH_COLUMNS, Field
from recbole_escm2.data.ali_ccp.report import markdown, observations
from recbole_escm2.data.ali_ccp.tables import PARTS, SIXTEEN, Rows, Spool, TableBuilder, by_part
from recbole_escm2.data.store import Column, Layout, StoreWriter
from recbole_escm2.errors import UsageError, did_you_mean

__all__ = ["Options", "RawFiles", "convert", "find_raw"]

REPORT_FILE = "report.md"
_SPLIT = {"train": "train", "validation": "train", "test": "test"}

_ON_BAD_LINE = ("raise", "skip")
_CONVERSION_WITHOUT_CLICK = ("drop", "unconvert", "raise")
_TABLE = {"skeleton": "inter", "common": "common"}
_USER = "101"
_ORIGINS = {_USER: "user_id", "205": "item_id"}
_TRUTH_DTYPES = dict(zip(TRUTH_COLUMNS, ("float32", "float32", "uint8"), strict=True))
_HASH_SALT, _HASH_STEP = np.uint64(0xA11CC95EED2018), np.uint64(0x9E3779B97F4A7C15)
_HASH_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Options:
    """What is made of the raw files.

    Attributes:
        feature_fields: names from ``raw.FIELDS``; others are read and left out.
        min_count: a feature id that fewer training impressions have becomes out-of-vocabulary.
        validation_share: of the training rows, by a hash of ``sample_id``: it depends neither on
            the order of the rows nor on which others there are.
        on_bad_line: ``raise``, or ``skip`` malformed lines and count them.
        conversion_without_click: ``drop`` rows with a purchase without a click, ``unconvert`` them,
            or ``raise``.

    Raises:
        UsageError: a value that makes no sense, by its key.
    """

    feature_fields: tuple[str, ...]
    min_count: int = 12
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
        if not any(FIELD_BY_NAME[name].origin == "user" for name in fields):
            raise UsageError("feature_fields needs a user field, such as 101")
        if not _is_number(self.min_count, numbers.Integral) or self.min_count < 1:
            raise UsageError(f"min_count must be a whole number from 1 on, got {self.min_count!r}")
        if not _is_number(self.validation_share, numbers.Real) or not (
            0 <= self.validation_share < 1
        ):
            raise UsageError(
                f"validation_share must be at least 0 and below 1, got {self.validation_share!r}"
            )
        for key, known in (
            ("on_bad_line", _ON_BAD_LINE),
            ("conversion_without_click", _CONVERSION_WITHOUT_CLICK),
        ):
            value = getattr(self, key)
            if value not in known:
                raise UsageError(f"{key} must be one of {', '.join(known)}, got {value!r}")

    def targets(self, kind: str) -> list[Field]:
        """The wanted fields of the common features or of the skeleton, those with bags last."""
        fields = [FIELD_BY_NAME[name] for name in self.feature_fields]
        own = [field for field in fields if (field.origin == "user") == (kind == "common")]
        return sorted(own, key=lambda field: field.is_bag)

    @property
    def threshold(self) -> np.uint64:
        """Hashes of sample ids below it mean validation."""
        return np.uint64(int(self.validation_share * 2**64))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def convert(
    raw: RawFiles,
    target: Path,
    options: Options,
    schema: Mapping[str, Any],
    progress: bool = False,
) -> dict[str, Any]:
    """Write the store of some raw files.

    Args:
        raw: the files.
        target: folder of the store; one that is there is replaced when the new one is complete.
        options: what to make of them.
        schema: entries of the store's schema besides those of this function.
        progress: whether to show bars on standard error.

    Returns:
        The report, which is in the schema as ``report`` and in the store as ``report.md``.

    Raises:
        UsageError: a malformed line (by file and line number), a file that is cut off or corrupt,
            no impressions, no room on the disk.
    """
    texts = [_texts(raw, stream, options) for stream in streams(raw)]
    total = sum(path.stat().st_size for files in raw.files.values() for path in files.values())
    simulated = _simulation(raw)
    content = Input(texts, total, "B", simulated, bool(raw.truth))
    return build(content, target, options, schema, progress)


class Input(NamedTuple):
    """What a store is made of.

    Attributes:
        streams: what can be read at the same time.
        size: what is to be read. unit: of the size, for the bar.
        simulated: what is known of a simulation, None where the data is real.
        truth: whether impressions have their true probabilities.
    """

    streams: Sequence[Iterable[Part]]
    size: int
    unit: str
    simulated: Mapping[str, Any] | None
    truth: bool


def build(
    content: Input, target: Path, options: Options, schema: Mapping[str, Any], progress: bool
) -> dict[str, Any]:
    """Write the store of any input, see :func:`convert`."""
    with StoreWriter(target) as writer:
        conversion = _Conversion(content, options, writer, progress)
        report = conversion.run()
        (writer.folder / REPORT_FILE).write_text(markdown(report), encoding="utf-8")
        writer.commit(
            {
                **schema,
                "sizes": [report["parts"][part]["rows"] for part in PARTS],
                "joins": [{"table": "common", "key": "common"}],
                "group": "user" if conversion.knows_users else None,
                "time": None,
                "truth": "potential" if content.truth else "none",
                "fields": conversion.fields,
                "report": report,
                "simulated": content.simulated,
            }
        )
    for warning in report["warnings"]:
        logging.getLogger().warning("%s", warning)
    for note in report["notes"]:
        logging.getLogger().info("%s", note)
    return report


# --------------------------------------------------------------------------- raw files


def _texts(raw: RawFiles, stream: list[tuple[str, str, Path]], options: Options) -> Iterator[Text]:
    for text in open_stream(raw, stream):
        wanted = [field.name for field in options.targets(text.kind)]
        raises = options.conversion_without_click == "raise"
        yield Text(text, wanted, options.on_bad_line, raises)


def _simulation(raw: RawFiles) -> dict[str, Any] | None:
    if raw.simulation is None:
        return None
    try:
        content = json.loads(raw.simulation.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{raw.simulation}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("note"), str):
        raise UsageError(f"{raw.simulation} isn't what a simulation writes")
    return content


# --------------------------------------------------------------------------- the conversion


class _Stopped(Exception):
    """Another thread has failed."""


#: Calls its argument with how much more was done.
_Task = Callable[[Callable[[int], Any]], None]
#: Rows of a table, impressions of train, validation and test that have them, int64 ``[rows, 3]``,
#: and columns that are no fields.
_Piece = tuple[Rows, NDArray[np.int64], Mapping[str, NDArray[Any]]]


class _Conversion:
    """The state of one conversion.

    Args:
        content, options: as for :func:`build`.
        writer: the store.
        progress: whether to show bars.
    """

    def __init__(
        self, content: Input, options: Options, writer: StoreWriter, progress: bool
    ) -> None:
        self.content = content
        self.options = options
        self.writer = writer
        self.progress = progress
        self.kinds = {kind: TableBuilder(kind, options.targets(kind)) for kind in KINDS}
        self.common = Spool(writer.folder / "temporary-common")
        self.parts = {part: Spool(writer.folder / f"temporary-{part}") for part in PARTS}
        self.labels = np.zeros((3, 3), np.int64)  # rows, clicks, conversions by part
        # Ids of 101 by common row, plus 1; 0 is "none". Rare users are kept apart as well.
        self.user_ids: list[NDArray[np.uint64]] = [np.zeros(1, np.uint64)]
        self.files: dict[str, dict[str, Any]] = {}
        self.fields: list[dict[str, Any]] = []
        self.knows_users = _USER in options.feature_fields
        self.tables = {
            kind: writer.table(table, self._layout(self.kinds[kind]))
            for kind, table in _TABLE.items()
        }

    def run(self) -> dict[str, Any]:
        """Everything but the schema; returns the report."""
        began = time.monotonic()
        tasks = [partial(self._read, parts) for parts in self.content.streams]
        self._run(tasks, "reading", self.content.size, self.content.unit)
        if not self.parts["train"].rows or not self.parts["test"].rows:
            lacking = "training" if not self.parts["train"].rows else "test"
            held = ", ".join(f"{f['rows']:,} rows in {f['name']}" for f in self.files.values())
            raise UsageError(f"no {lacking} impressions are left; the files hold {held}")
        row_of_key, references = self._join()
        # Numbered in the order of the common rows, where a line that was left out has no number.
        user_of_row = pd.factorize(np.concatenate(self.user_ids))[0].astype(np.int32)
        pieces = {
            "skeleton": partial(self._impressions, row_of_key, user_of_row),
            "common": partial(self._common_rows, references),
        }
        spools = [self.common, *self.parts.values()]
        total = 2 * sum(spool.bytes for spool in spools)
        tasks = [partial(self._write, self.kinds[kind], pieces[kind]) for kind in KINDS]
        self._run(tasks, "writing", total, "B")
        for table in self.tables.values():
            self.writer.close(table)
        for spool in spools:
            spool.path.unlink(missing_ok=True)
        self._finish_fields()
        without_user = references[user_of_row == 0].sum(axis=0) if self.knows_users else None
        return self._report(references[0].tolist(), without_user, time.monotonic() - began)

    def _run(self, tasks: Sequence[_Task], what: str, total: int, unit: str) -> None:
        """Run tasks at the same time, show how far they are, and stop all when one fails."""
        stop = threading.Event()

        def advance(done: int) -> None:
            if stop.is_set():
                raise _Stopped
            bar.update(done)

        with (
            tqdm(
                total=total, desc=what, unit=unit, unit_scale=True, disable=not self.progress
            ) as bar,
            ThreadPoolExecutor(len(tasks)) as pool,
        ):
            futures = [pool.submit(task, advance) for task in tasks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also at Ctrl-C; nobody looks any more when all are done
                stop.set()
        errors = [error for future in futures if (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            raise error

    # ------------------------------------------------------------------- reading

    def _read(self, parts: Iterable[Part], advance: Callable[[int], Any]) -> None:
        for part in parts:
            kind = self.kinds[part.kind]
            keys = kind.keys[part.split] = {}
            found = _Found(Counter(), np.zeros(len(kind.targets), np.int64), Counter())
            for lines in part.lines(advance):
                advance(0)
                if part.kind == "common":
                    lines = self._add_common(lines, keys, found)
                else:
                    lines = self._add_impressions(lines, part.split, keys, found)
                for target in lines.target[lines.target < UNWANTED].tolist():
                    found.unknown[part.name_of(target)] += 1
            further = zip(kind.targets, found.further.tolist(), strict=True)
            self.files[f"{part.kind} {part.split}"] = {
                "name": part.name,
                "split": part.split,
                "kind": part.kind,
                "rows": part.rows,
                "malformed": part.malformed,
                "malformed_places": part.places,
                "unknown_fields": dict(sorted(found.unknown.items())),
                "further_values": {field.name: number for field, number in further if number},
                **{name: int(found.counts[name]) for name in _COUNTED[part.kind]},
            }

    def _add_common(self, lines: Lines, keys: dict[bytes, int], found: _Found) -> Lines:
        """Take in common rows in the order of the text; returns those whose key is new."""
        known = len(keys)
        number = _numbered(lines.key, keys)
        new = number > np.maximum.accumulate(np.append(known - 1, number))[:-1]
        found.counts["duplicate_keys"] += int((~new).sum())
        lines = lines.chosen(new)
        kind = self.kinds["common"]
        rows = kind.rows(lines, number[new], found.further)
        self.common.append(rows)
        if self.knows_users:
            names = [field.name for field in kind.columns]
            ids = np.append(np.uint64(0), rows.features // SIXTEEN + np.uint64(1))
            self.user_ids.append(ids[rows.columns[:, names.index(_USER)]])
        return lines

    def _add_impressions(
        self, lines: Lines, split: str, keys: dict[bytes, int], found: _Found
    ) -> Lines:
        """Take in impressions; returns those that are not left out."""
        stray = lines.purchase & ~lines.click
        found.counts["clicks"] += int(lines.click.sum())
        found.counts["conversions"] += int((lines.click & lines.purchase).sum())
        found.counts["conversions_without_click"] += int(stray.sum())
        if self.options.conversion_without_click == "drop":
            found.counts["left_out"] += int(stray.sum())
            lines = lines.chosen(~stray)
        lines = lines._replace(purchase=lines.purchase & lines.click)
        held_out = sample_hash(lines.sample) < self.options.threshold
        part_of = np.where(held_out, 1, 0) if split == "train" else np.full(len(held_out), 2)
        number = _numbered(lines.key, keys)
        for part in np.unique(part_of).tolist():
            own = part_of == part
            chosen = lines.chosen(own)
            self.labels[part] += len(chosen.click), chosen.click.sum(), chosen.purchase.sum()
            rows = self.kinds["skeleton"].rows(chosen, number[own], found.further)
            self.parts[PARTS[part]].append(rows)
        return lines

    # ------------------------------------------------------------------- joining

    def _join(self) -> tuple[dict[str, NDArray[np.int32]], NDArray[np.int64]]:
        """Join impressions and common rows.

        Returns:
            By split the common row of each join key, int32 ``[keys]``, and how many impressions of
            train, validation and test have each common row, ``[common rows + 1, 3]``. Row 0 is
            that of impressions without any.
        """
        row_of_key = {}
        first = 1
        for split in SPLITS:  # in the order in which the common rows were written
            own, others = (self.kinds[kind].keys.pop(split) for kind in ("skeleton", "common"))
            rows = (others.get(key, -first) + first for key in own)
            row_of_key[split] = np.fromiter(rows, np.int32, len(own))
            first += len(others)
        references = np.zeros((first, 3), np.int64)
        for part, (name, spool) in enumerate(self.parts.items()):
            for piece in spool:
                np.add.at(references[:, part], row_of_key[_SPLIT[name]][piece.head[:, 0]], 1)
        return row_of_key, references

    # ------------------------------------------------------------------- writing

    def _write(
        self,
        kind: TableBuilder,
        pieces: Callable[[], Iterator[_Piece]],
        advance: Callable[[int], Any],
    ) -> None:
        """Write a table: count what its rows have, number it, and write the numbers."""
        for rows, references, _ in pieces():
            kind.count(rows, references)
            advance(rows.nbytes)
        kind.make_vocabularies(self.options.min_count)
        for rows, references, head in pieces():
            kind.append(self.tables[kind.kind], rows, head, references[:, 0])
            advance(rows.nbytes)

    def _layout(self, kind: TableBuilder) -> Layout:
        head: tuple[Column, ...] = ()
        apart: dict[str, str] = {}
        if kind.kind == "skeleton":
            head = (Column("click", "float"), Column("purchase", "float"), Column("common"))
            apart = {"click": "uint8", "purchase": "uint8", "common": "int32"}
            apart |= {"user": "int32"} if self.knows_users else {}
            apart |= _TRUTH_DTYPES if self.content.truth else {}
        columns = (*head, *(Column(field.name) for field in kind.columns))
        return Layout(columns, tuple(field.name for field in kind.bags), True, apart)

    def _impressions(
        self, row_of_key: Mapping[str, NDArray[np.int32]], user_of_row: NDArray[np.int32]
    ) -> Iterator[_Piece]:
        for part, (name, spool) in enumerate(self.parts.items()):
            for rows in spool:
                key, labels = rows.head.T
                common = row_of_key[_SPLIT[name]][key]
                head = {"click": labels & 1, "purchase": labels >> 1, "common": common}
                head |= {"user": user_of_row[common]} if self.knows_users else {}
                head |= dict(zip(TRUTH_COLUMNS, rows.truth.T, strict=False))
                yield rows, np.broadcast_to(np.eye(3, dtype=np.int64)[part], (len(rows), 3)), head

    def _common_rows(self, references: NDArray[np.int64]) -> Iterator[_Piece]:
        kind = self.kinds["common"]
        nobody = Lines.of([(0, 0, False, False, b"")], [])
        none = np.zeros(len(kind.targets), np.int64)
        row = 0
        for rows in chain([kind.rows(nobody, none[:1], none)], self.common):
            yield rows, references[row : row + len(rows)], {}
            row += len(rows)

    def _finish_fields(self) -> None:
        """Vocabularies and entries of the schema, in the order of the options."""
        for name in self.options.feature_fields:
            field = FIELD_BY_NAME[name]
            kind = self.kinds["common" if field.origin == "user" else "skeleton"]
            report = kind.reports[name]
            origin = _ORIGINS.get(name, "inter" if field.origin == "cross" else field.origin)
            self.fields.append(
                {
                    "name": name,
                    "type": "token_seq" if field.is_bag else "token",
                    "source": origin,
                    "table": _TABLE[kind.kind],
                    "vocabulary": self.writer.vocabulary(kind.tokens[name]),
                    "length": max(report["longest"], 1),
                    "scale": kind.scale(name),
                }
            )

    # ------------------------------------------------------------------- report

    def _report(
        self,
        unmatched: Sequence[int],
        without_user: NDArray[np.int64] | None,
        seconds: float,
    ) -> dict[str, Any]:
        fields = {}
        reports = {name: own for kind in self.kinds.values() for name, own in kind.reports.items()}
        for name in self.options.feature_fields:
            present = reports[name].pop("present")
            lacking = [
                1 - there / int(rows) if rows else None
                for there, rows in zip(present, self.labels[:, 0], strict=True)
            ]
            fields[name] = {**reports[name], "lacking": by_part(lacking)}
        names = ("rows", "clicks", "conversions")
        report = {
            "options": dataclasses.asdict(self.options),
            "simulated": self.content.simulated is not None,
            "files": [self.files[name] for name in sorted(self.files)],
            "parts": by_part([dict(zip(names, own, strict=True)) for own in self.labels.tolist()]),
            "unmatched": {"train": unmatched[0] + unmatched[1], "test": unmatched[2]},
            "without_user": None if without_user is None else by_part(without_user.tolist()),
            "fields": fields,
            "seconds": round(seconds, 1),
        }
        report["warnings"], report["notes"] = observations(report)
        return report


class _Found(NamedTuple):
    """What a file holds besides rows.

    Attributes:
        counts: of _COUNTED.
        further: int64 ``[targets]``, further values of single-valued fields.
        unknown: values of unknown fields, by name.
    """

    counts: Counter[str]
    further: NDArray[np.int64]
    unknown: Counter[str]


_COUNTED = {
    "common": ("duplicate_keys",),
    "skeleton": ("clicks", "conversions", "conversions_without_click", "left_out"),
}


def _numbered(keys: NDArray[Any], numbers: dict[bytes, int]) -> NDArray[np.int64]:
    """The numbers of keys; new ones are added behind those that are known."""
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys.tolist()], np.int64)


def sample_hash(sample: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of sample ids that decides between training and validation (splitmix64)."""
    mixed = (sample ^ _HASH_SALT) + _HASH_STEP
    for shift, factor in zip((30, 27), _HASH_FACTORS, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    return mixed ^ (mixed >> np.uint64(31))
