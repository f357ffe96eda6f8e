"""From the raw files to a column store: one pass over the text, in bounded memory.

The text of impressions and that of common features are parsed at the same time into temporary
binary files beside the tables to be, with provisional ids. When both are read it is known how many
training impressions have each feature: that makes the vocabularies, and a pass over the temporary
files writes the tables. What grows is the vocabularies and a few numbers per common row;
impressions only pass through.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import numbers
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_escm2.data.ali_ccp import parse
from recbole_escm2.data.ali_ccp.raw import FIELD_BY_NAME, TRUTH_COLUMNS, Field
from recbole_escm2.data.ali_ccp.report import markdown, observations
from recbole_escm2.data.ali_ccp.sources import (
    Position,
    RawFiles,
    Source,
    blocks,
    find_raw,
    fingerprint,
    open_stream,
    streams,
)
from recbole_escm2.data.store import UNKNOWN, Column, Layout, StoreWriter, TableWriter
from recbole_escm2.errors import UsageError, did_you_mean

__all__ = ["Options", "RawFiles", "convert", "find_raw", "fingerprint"]

REPORT_FILE = "report.md"
PARTS = ("train", "validation", "test")

_BLOCK_BYTES = 4 << 20  # of text at once and thread
_ROWS_AT_ONCE = 1 << 15  # of a temporary file
_VALUES_AT_ONCE = 1 << 20
_ON_BAD_LINE = ("raise", "skip")
_EXCERPT = 160  # characters of a malformed line
_HEAD = {"skeleton": 2, "common": 0}  # words in front of a record: join key and labels
_TABLE = {"skeleton": "inter", "common": "common"}
_USER = "101"
_SOURCES = {_USER: "user_id", "205": "item_id"}
_TRUTH_DTYPES = dict(zip(TRUTH_COLUMNS, ("float32", "float32", "uint8"), strict=True))


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
        if not any(FIELD_BY_NAME[name].source == "user" for name in fields):
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
            ("conversion_without_click", tuple(parse.CONVERSION_WITHOUT_CLICK)),
        ):
            value = getattr(self, key)
            if value not in known:
                raise UsageError(f"{key} must be one of {', '.join(known)}, got {value!r}")

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
    simulated = _simulation(raw)
    try:
        with StoreWriter(target) as writer:
            conversion = _Conversion(raw, options, writer, _Job(progress))
            report = conversion.run(simulated)
            (writer.folder / REPORT_FILE).write_text(markdown(report), encoding="utf-8")
            writer.commit(
                {
                    **schema,
                    "sizes": [report["parts"][part]["rows"] for part in PARTS],
                    "joins": [{"table": "common", "key": "common"}],
                    "group": "user" if conversion.knows_users else None,
                    "fields": conversion.fields,
                    "report": report,
                    "simulated": simulated,
                }
            )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(
            f"{target}: no room left on the disk; it takes about as much as the uncompressed text"
        ) from error
    for warning in report["warnings"]:
        logging.getLogger().warning("%s", warning)
    for note in report["notes"]:
        logging.getLogger().info("%s", note)
    return report


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


# --------------------------------------------------------------------------- threads


class _Stopped(Exception):
    """Another thread has failed."""


class _Job:
    """Runs tasks at the same time, shows how far they are, and stops all when one fails."""

    def __init__(self, progress: bool) -> None:
        self._progress = progress
        self._stop = threading.Event()

    def check(self) -> None:
        """Called by tasks now and then."""
        if self._stop.is_set():
            raise _Stopped

    def run(
        self, what: str, tasks: Sequence[tuple[Callable[..., None], Sequence[Any]]], total: int
    ) -> None:
        """Run tasks, each with a :class:`Position` as its last argument, until all are done."""
        positions = [Position() for _ in tasks]
        with (
            tqdm(
                total=total, desc=what, unit="B", unit_scale=True, disable=not self._progress
            ) as bar,
            ThreadPoolExecutor(len(tasks)) as pool,
        ):
            futures = [
                pool.submit(function, *arguments, position)
                for (function, arguments), position in zip(tasks, positions, strict=True)
            ]
            try:
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=0.25, return_when=FIRST_EXCEPTION)
                    bar.update(sum(position.bytes for position in positions) - bar.n)
                    if any(future.exception() for future in done):
                        break
            finally:  # also at Ctrl-C
                if pending:
                    self._stop.set()
        errors = [future.exception() for future in futures if future.exception()]
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            assert error is not None
            raise error


# --------------------------------------------------------------------------- temporary files


class _Temporary:
    """Records on their way from the text to a table, in files that are only streamed.

    Args:
        folder: the unfinished store.
        name: of the files.
        words: of a record. first_bag: which words of it count values.
        truth: whether each record has a row of the truth.
    """

    def __init__(self, folder: Path, name: str, words: int, first_bag: int, truth: bool) -> None:
        kinds = ("records", "ids", "weights", *(("truth",) if truth else ()))
        self._paths = {kind: folder / f"temporary-{name}.{kind}" for kind in kinds}
        self._files = {kind: open(path, "wb") for kind, path in self._paths.items()}  # noqa: SIM115
        self._words = words
        self._first_bag = first_bag
        self.rows = 0
        self.bytes = 0

    def append(self, **content: NDArray[Any]) -> None:
        """Add rows: ``records``, ``ids``, ``weights`` and perhaps ``truth``."""
        for kind, values in content.items():
            self._files[kind].write(values.data if values.size else b"")
            self.bytes += values.nbytes
        self.rows += len(content["records"])

    def close(self) -> None:
        """Nothing more will be added."""
        for file in self._files.values():
            file.close()

    def remove(self) -> None:
        """Give the room on the disk free."""
        self.close()
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    def chunks(
        self,
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]]:
        """Records ``[rows, words]``, ids and weights ``[values]``, a bounded number at once."""
        words = self._words
        with (
            open(self._paths["records"], "rb") as records_file,
            open(self._paths["ids"], "rb") as ids,
            open(self._paths["weights"], "rb") as weights,
        ):
            while True:
                records = np.fromfile(records_file, np.int32, _ROWS_AT_ONCE * words)
                records = records.reshape(-1, words)
                if not len(records):
                    return
                ends = records[:, self._first_bag :].sum(axis=1, dtype=np.int64).cumsum()
                first, before = 0, 0
                while first < len(records):
                    last = int(np.searchsorted(ends, before + _VALUES_AT_ONCE, "right"))
                    last = max(last, first + 1)
                    values = int(ends[last - 1]) - before
                    yield (
                        records[first:last],
                        np.fromfile(ids, np.int32, values),
                        np.fromfile(weights, np.float32, values),
                    )
                    first, before = last, int(ends[last - 1])

    def truth(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        """A function that gives the next rows of the truth, ``[rows, 3]``; yielded once."""
        width = len(TRUTH_COLUMNS)
        with open(self._paths["truth"], "rb") as file:
            yield lambda rows: np.fromfile(file, np.float32, rows * width).reshape(-1, width)


class _Truth:
    """The side file of a simulation, read in step with the text."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115
            version = np.lib.format.read_magic(self._file)
            if version != (1, 0):
                raise ValueError(f"a file of numpy's format {version}")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(self._file)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from error
        if len(shape) != 2 or shape[1] != len(TRUTH_COLUMNS) or dtype != np.float32 or by_column:
            raise UsageError(f"{path} is not float32 [rows, {len(TRUTH_COLUMNS)}]")
        self._path = path
        self._left = shape[0]

    def next(self, rows: int) -> NDArray[np.float32]:
        """Of the next lines of the text, ``[rows, 3]``."""
        self._left -= rows
        if self._left < 0:
            raise UsageError(f"{self._path} has fewer rows than the text that it belongs to")
        width = len(TRUTH_COLUMNS)
        return np.fromfile(self._file, np.float32, rows * width).reshape(-1, width)

    def finish(self) -> None:
        """At the end of the text."""
        self._file.close()
        if self._left:
            raise UsageError(f"{self._path} has more rows than the text that it belongs to")


# --------------------------------------------------------------------------- one kind of text


class _Kind:
    """What is known of the common features, or of the impressions, of both splits.

    Args:
        kind: ``common`` or ``skeleton``.
        options: the wanted fields among others.
    """

    def __init__(self, kind: str, options: Options) -> None:
        self.kind = kind
        self.head = _HEAD[kind]
        fields = [FIELD_BY_NAME[name] for name in options.feature_fields]
        own = [field for field in fields if (field.source == "user") == (kind == "common")]
        self.columns: list[Field] = [field for field in own if not field.is_bag]
        self.bags: list[Field] = [field for field in own if field.is_bag]
        self.targets = [*self.columns, *self.bags]
        self.features = parse.HashTable(2)
        self.keys: dict[str, parse.HashTable] = {}  # by split
        self.seen = np.zeros((1, 5), np.int64)
        self.present = np.zeros((len(self.targets), 3), np.int64)
        self.longest = np.zeros(len(self.targets), np.int64)
        self.sums = np.zeros(len(self.targets))
        self.counted = 1  # rows; 0 is "never" for parse.count
        self.entries: list[dict[str, Any]] = []  # of the schema, by target
        self.tokens: list[NDArray[np.int64]] = []
        self.lookup = np.zeros(1, np.int32)

    @property
    def words(self) -> int:
        """Of a record."""
        return self.head + len(self.targets)

    def temporary(self, folder: Path, name: str, truth: bool = False) -> _Temporary:
        """Files for records of this kind."""
        return _Temporary(folder, name, self.words, self.head + len(self.columns), truth)

    def layout(self, head: Sequence[Column], apart: Mapping[str, str]) -> Layout:
        """Of the table."""
        columns = (*head, *(Column(field.name) for field in self.columns))
        return Layout(columns, tuple(field.name for field in self.bags), True, apart)

    def count(
        self,
        records: NDArray[np.int32],
        ids: NDArray[np.int32],
        references: NDArray[np.int64],
        step: int,
    ) -> None:
        """Count features of rows; references as for :func:`parse.count`."""
        self.seen = _with_room(self.seen, len(self.features) + 1)
        parse.count(
            records,
            self.head,
            len(self.columns),
            ids,
            references,
            step,
            self.counted,
            self.seen,
            self.present,
            self.longest,
        )
        self.counted += len(records)

    def translate(
        self,
        records: NDArray[np.int32],
        ids: NDArray[np.int32],
        weights: NDArray[np.float32],
        references: NDArray[np.int64],
        step: int,
    ) -> None:
        """Provisional ids to final ones, in place."""
        parse.translate(
            records,
            self.head,
            len(self.columns),
            ids,
            weights,
            references,
            step,
            self.lookup,
            self.sums,
        )

    def columns_of(self, records: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """Single-valued fields of records by name, ``[rows]``."""
        return {
            field.name: records[:, self.head + number] for number, field in enumerate(self.columns)
        }

    def counts_of(self, records: NDArray[np.int32]) -> NDArray[np.int32] | None:
        """Lengths of the bags, ``[rows, bags]``."""
        return records[:, self.head + len(self.columns) :] if self.bags else None

    def make_vocabularies(self, min_count: int) -> list[dict[str, Any]]:
        """Final ids for the provisional ones; returns what there is to report, by target."""
        seen = self.seen = _with_room(self.seen, len(self.features) + 1)[: len(self.features) + 1]
        target, feature = self.features.features()
        self.features = parse.HashTable(2)  # done with: the room is needed for the lookup
        self.lookup = np.ones(len(target), np.int32)
        self.lookup[0] = 0
        reports = []
        for number in range(len(self.targets)):
            own = np.flatnonzero(target[1:] == number) + 1
            kept = own[seen[own, parse.IMPRESSIONS] >= min_count]
            kept = kept[np.lexsort((feature[kept], -seen[kept, parse.IMPRESSIONS]))]
            self.lookup[kept] = np.arange(2, len(kept) + 2, dtype=np.int32)
            self.tokens.append(feature[kept])
            reports.append(self._field_report(number, own, kept))
        return reports

    def _field_report(
        self, number: int, own: NDArray[np.int64], kept: NDArray[np.int64]
    ) -> dict[str, Any]:
        values = self.seen[own][:, parse.TRAIN : parse.TEST + 1]
        in_vocabulary = self.seen[kept][:, parse.TRAIN : parse.TEST + 1].sum(axis=0)
        totals = values.sum(axis=0)
        trained, tested = values[:, 0] > 0, values[:, 2] > 0
        return {
            "vocabulary": len(kept),
            "ids_in_training": int(trained.sum()),
            "ids_in_test": int(tested.sum()),
            "ids_in_both": int((trained & tested).sum()),
            "values": dict(zip(PARTS, totals.tolist(), strict=True)),
            "oov_rate": {
                part: 1 - int(known) / int(total) if total else None
                for part, known, total in zip(PARTS, in_vocabulary, totals, strict=True)
            },
            "longest": int(self.longest[number]),
        }

    def scale(self, number: int, training_values: int) -> float:
        """Mean weight in training of a target; 1 where it says nothing."""
        if number < len(self.columns) or not training_values:
            return 1.0
        mean = float(self.sums[number]) / training_values
        return mean if mean and np.isfinite(mean) else 1.0


def _with_room(array: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """The array, or a larger copy with zeros behind, of at least so many rows."""
    if len(array) >= rows:
        return array
    larger = np.zeros((max(rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


# --------------------------------------------------------------------------- the conversion


class _Conversion:
    """The state of one conversion.

    Args:
        raw, options: as for :func:`convert`.
        writer: the store.
        job: runs what can be done at the same time.
    """

    def __init__(self, raw: RawFiles, options: Options, writer: StoreWriter, job: _Job) -> None:
        self.raw = raw
        self.options = options
        self.writer = writer
        self.job = job
        self.kinds = {kind: _Kind(kind, options) for kind in _TABLE}
        folder = writer.folder
        skeleton = self.kinds["skeleton"]
        self.common = self.kinds["common"].temporary(folder, "common")
        self.parts = {part: skeleton.temporary(folder, part, bool(raw.truth)) for part in PARTS}
        self.references = {split: np.zeros((1, 3), np.int64) for split in raw.files}
        self.labels = np.zeros((3, 3), np.int64)  # rows, clicks, conversions by part
        # Provisional ids of 101 by common row, which rare users keep apart; row 0 is "none".
        self.users: list[NDArray[np.int32]] = [np.zeros(1, np.int32)]
        self.without_user = dict.fromkeys(PARTS, 0)
        self.files: dict[str, dict[str, Any]] = {}
        self.fields: list[dict[str, Any]] = []
        self.tables = self._new_tables()

    def run(self, simulated: Mapping[str, Any] | None) -> dict[str, Any]:
        """Everything but the schema; returns the report."""
        began = time.monotonic()
        total = sum(
            path.stat().st_size for files in self.raw.files.values() for path in files.values()
        )
        tasks = [(self._read, (stream,)) for stream in streams(self.raw)]
        self.job.run("reading", tasks, total)
        temporary = [self.common, *self.parts.values()]
        for part in temporary:
            part.close()
        if not self.parts["train"].rows or not self.parts["test"].rows:
            lacking = "training" if not self.parts["train"].rows else "test"
            raise UsageError(f"no {lacking} impressions are left; the files hold {self._rows()}")
        rows, references, unmatched = self._join()
        # Numbered anew without gaps, as a line that was left out may have had an id of its own.
        users = np.unique(np.concatenate(self.users), return_inverse=True)[1].astype(np.int32)
        inter, common = self.kinds["skeleton"], self.kinds["common"]
        reports: dict[str, list[dict[str, Any]]] = {}
        total = sum(part.bytes for part in temporary) + self.common.bytes

        def write_inter(position: Position) -> None:
            reports["skeleton"] = inter.make_vocabularies(self.options.min_count)
            self._write_inter(rows, users, position)

        def write_common(position: Position) -> None:
            self._count_common(references, position)
            reports["common"] = common.make_vocabularies(self.options.min_count)
            self._write_common(references, position)

        self.job.run("writing", [(write_inter, ()), (write_common, ())], total)
        for table in self.tables.values():
            self.writer.close(table)
        self._finish_fields(reports)
        return self._report(reports, unmatched, simulated, time.monotonic() - began)

    def _rows(self) -> str:
        return ", ".join(f"{f['rows']:,} rows in {f['name']}" for f in self.files.values())

    def _new_tables(self) -> dict[str, TableWriter]:
        head = (Column("click", "float"), Column("purchase", "float"), Column("common"))
        apart = {"click": "uint8", "purchase": "uint8", "common": "int32"}
        if self.knows_users:
            apart["user"] = "int32"
        if self.raw.truth:
            apart.update(_TRUTH_DTYPES)
        layouts = {
            "inter": self.kinds["skeleton"].layout(head, apart),
            "common": self.kinds["common"].layout((), {}),
        }
        return {name: self.writer.table(name, layout) for name, layout in layouts.items()}

    @property
    def knows_users(self) -> bool:
        """Whether 101 is among the fields that are read."""
        return self._user_word is not None

    @property
    def _user_word(self) -> int | None:
        """Where the user id stands in a record of common features."""
        names = [field.name for field in self.kinds["common"].columns]
        return self.kinds["common"].head + names.index(_USER) if _USER in names else None

    def add_common(
        self,
        records: NDArray[np.int32],
        ids: NDArray[np.int32],
        weights: NDArray[np.float32],
    ) -> None:
        """Take in common rows that were read, in the order of the text."""
        self.common.append(records=records, ids=ids, weights=weights)
        if self._user_word is not None:
            self.users.append(records[:, self._user_word].copy())

    # ------------------------------------------------------------------- reading

    def _read(self, stream: list[tuple[str, str, Path]], position: Position) -> None:
        for source in open_stream(stream, position):
            reader = _Reader(self, source)
            for block in blocks(source.file, source.name, _BLOCK_BYTES):
                self.job.check()
                reader.read(block)
            reader.finish()

    # ------------------------------------------------------------------- joining

    def _join(self) -> tuple[dict[str, NDArray[np.int32]], NDArray[np.int64], dict[str, int]]:
        """Join impressions and common rows.

        Returns:
            By split the common row of each join key, int32 ``[keys + 1]``; how many impressions of
            train, validation and test have each common row, ``[common rows + 1, 3]``; by split how
            many impressions have none.
        """
        references = np.zeros((self.common.rows + 1, 3), np.int64)
        rows, unmatched = {}, {}
        first = 0
        for split in self.raw.files:  # in the order in which the common rows were written
            own = self.kinds["skeleton"].keys[split]
            others = self.kinds["common"].keys[split]
            matched = np.zeros(len(own) + 1, np.int32)
            parse.join(own.slots, others.slots, matched)
            matched[matched > 0] += first
            counted = _with_room(self.references[split], len(own) + 1)[: len(own) + 1]
            np.add.at(references, matched, counted)
            unmatched[split] = int(counted[matched == 0].sum())
            rows[split] = matched
            first += len(others)
        for kind in self.kinds.values():
            kind.keys.clear()
        return rows, references, unmatched

    # ------------------------------------------------------------------- writing

    def _write_inter(
        self,
        rows: Mapping[str, NDArray[np.int32]],
        users: NDArray[np.int32],
        position: Position,
    ) -> None:
        kind = self.kinds["skeleton"]
        table = self.tables["inter"]
        for number, (name, part) in enumerate(self.parts.items()):
            common_row = rows["test" if name == "test" else "train"]
            references = np.array([[name == "train", 0, 0]], np.int64)
            truth = part.truth() if self.raw.truth else None
            next_truth = next(truth) if truth else None
            for records, ids, weights in part.chunks():
                self.job.check()
                kind.translate(records, ids, weights, references, 0)
                common = np.ascontiguousarray(records[:, 0])
                parse.look_up(common, common_row)
                click, purchase = records[:, 1] & 1, records[:, 1] >> 1
                self.labels[number] += len(records), click.sum(), purchase.sum()
                columns = {"click": click, "purchase": purchase, "common": common}
                if self.knows_users:
                    columns["user"] = users[common]
                    self.without_user[name] += int((columns["user"] == 0).sum())
                if next_truth:
                    values = next_truth(len(records))
                    columns.update(zip(TRUTH_COLUMNS, values.T, strict=True))
                    position.bytes += values.nbytes
                columns.update(kind.columns_of(records))
                table.append(columns, kind.counts_of(records), ids, weights)
                position.bytes += records.nbytes + ids.nbytes + weights.nbytes
            if truth:
                truth.close()  # type: ignore[attr-defined]
            part.remove()

    def _count_common(self, references: NDArray[np.int64], position: Position) -> None:
        kind = self.kinds["common"]
        row = 1  # row 0 is "no common features"
        for records, ids, weights in self.common.chunks():
            self.job.check()
            kind.count(records, ids, references[row : row + len(records)], 1)
            row += len(records)
            position.bytes += records.nbytes + ids.nbytes + weights.nbytes

    def _write_common(self, references: NDArray[np.int64], position: Position) -> None:
        kind = self.kinds["common"]
        table = self.tables["common"]
        empty = np.zeros((1, kind.words), np.int32)
        nothing = np.empty(0, np.int32)
        table.append(
            kind.columns_of(empty), kind.counts_of(empty), nothing, nothing.view(np.float32)
        )
        row = 1
        for records, ids, weights in self.common.chunks():
            self.job.check()
            kind.translate(records, ids, weights, references[row : row + len(records)], 1)
            table.append(kind.columns_of(records), kind.counts_of(records), ids, weights)
            row += len(records)
            position.bytes += records.nbytes + ids.nbytes + weights.nbytes
        self.common.remove()

    def _finish_fields(self, reports: Mapping[str, list[dict[str, Any]]]) -> None:
        """Vocabularies and entries of the schema, in the order of the options."""
        for name in self.options.feature_fields:
            field = FIELD_BY_NAME[name]
            kind = self.kinds["common" if field.source == "user" else "skeleton"]
            number = kind.targets.index(field)
            report = reports[kind.kind][number]
            tokens = [UNKNOWN, *map(str, kind.tokens[number].tolist())]
            source = "inter" if field.source == "cross" else field.source
            self.fields.append(
                {
                    "name": name,
                    "type": "token_seq" if field.is_bag else "token",
                    "source": _SOURCES.get(name, source),
                    "table": _TABLE[kind.kind],
                    "vocabulary": self.writer.vocabulary(tokens),
                    "length": max(report["longest"], 1),
                    "scale": kind.scale(number, report["values"]["train"]),
                }
            )

    # ------------------------------------------------------------------- report

    def _report(
        self,
        reports: Mapping[str, list[dict[str, Any]]],
        unmatched: Mapping[str, int],
        simulated: Mapping[str, Any] | None,
        seconds: float,
    ) -> dict[str, Any]:
        fields = {}
        for name in self.options.feature_fields:
            for kind in self.kinds.values():
                names = [field.name for field in kind.targets]
                if name in names:
                    number = names.index(name)
                    fields[name] = {
                        **reports[kind.kind][number],
                        "lacking": {
                            part: 1 - int(present) / int(rows) if rows else None
                            for part, present, rows in zip(
                                PARTS, kind.present[number], self.labels[:, 0], strict=True
                            )
                        },
                    }
        report = {
            "options": dataclasses.asdict(self.options),
            "simulated": simulated is not None,
            "files": [self.files[name] for name in sorted(self.files)],
            "parts": {
                part: dict(zip(("rows", "clicks", "conversions"), counted.tolist(), strict=True))
                for part, counted in zip(PARTS, self.labels, strict=True)
            },
            "unmatched": dict(unmatched),
            "without_user": dict(self.without_user) if self.knows_users else None,
            "fields": fields,
            "seconds": round(seconds, 1),
        }
        report["warnings"], report["notes"] = observations(report)
        return report


class _Reader:
    """Reads one of the four texts, block by block.

    Args:
        conversion: takes the records.
        source: the text.
    """

    def __init__(self, conversion: _Conversion, source: Source) -> None:
        self.conversion = conversion
        self.options = conversion.options
        self.source = source
        self.kind = conversion.kinds[source.kind]
        self.keys = self.kind.keys[source.split] = parse.HashTable(3)
        self.dispatch = parse.new_dispatch(
            [field.name for field in self.kind.targets], source.kind == "common"
        )
        self.state = np.zeros(parse.STATE_SIZE, np.int64)
        self.places: list[str] = []
        self.truth: _Truth | None = None
        if source.kind == "skeleton" and conversion.raw.truth:
            self.truth = _Truth(conversion.raw.truth[source.split])
        self._capacity = 0
        self._allocate(_BLOCK_BYTES + 1)

    def _allocate(self, size: int) -> None:
        if size > self._capacity:
            self.output = parse.new_output(size, self.kind.words)
            self.scratch = parse.new_scratch(size, len(self.kind.bags))
            self._capacity = size

    def read(self, text: NDArray[np.uint8]) -> None:
        """Parse a block and pass it on."""
        self._allocate(len(text))
        self.output.sizes[:] = 0
        at = 0
        while at < len(text):
            self.kind.features.make_room()
            self.keys.make_room()
            parser = self._parse_common if self.source.kind == "common" else self._parse_skeleton
            at = parser(text, at)
        self._note_malformed(text)
        self._read_slow_weights(text)
        if self.source.kind == "common":
            self.conversion.add_common(*self._part(0))
        elif self.source.split == "test":
            self._pass_on(0, 2)
        else:
            self._pass_on(0, 0)
            self._pass_on(1, 1)

    def _parse_common(self, text: NDArray[np.uint8], at: int) -> int:
        return parse.parse_common(
            text,
            at,
            self.options.on_bad_line == "raise",
            len(self.kind.columns),
            self.dispatch,
            self.kind.features.slots,
            self.kind.features.size,
            self.keys.slots,
            self.keys.size,
            self.state,
            self.scratch,
            self.output,
        )

    def _parse_skeleton(self, text: NDArray[np.uint8], at: int) -> int:
        return parse.parse_skeleton(
            text,
            at,
            self.options.on_bad_line == "raise",
            parse.CONVERSION_WITHOUT_CLICK[self.options.conversion_without_click],
            self.options.threshold if self.source.split == "train" else np.uint64(0),
            len(self.kind.columns),
            self.dispatch,
            self.kind.features.slots,
            self.kind.features.size,
            self.keys.slots,
            self.keys.size,
            self.state,
            self.scratch,
            self.output,
        )

    def _part(self, part: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        rows, values = self.output.sizes[part], self.output.sizes[parse.VALUES + part]
        return (
            self.output.records[part, :rows],
            self.output.ids[part, :values],
            self.output.weights[part, :values],
        )

    def _pass_on(self, part: int, number: int) -> None:
        """Impressions of a part of this block, which is the part ``number`` of the data."""
        conversion = self.conversion
        records, ids, weights = self._part(part)
        split = self.source.split
        references = _with_room(conversion.references[split], len(self.keys) + 1)
        conversion.references[split] = references
        parse.tally(records, number, references)
        one = np.zeros((1, 3), np.int64)
        one[0, number] = 1
        self.kind.count(records, ids, one, 0)
        content = {"records": records, "ids": ids, "weights": weights}
        if self.truth is not None:
            if part == 0:
                self._block_truth = self.truth.next(int(self.output.sizes[parse.STATUSES]))
            status = self.output.status[: self.output.sizes[parse.STATUSES]]
            content["truth"] = self._block_truth[status == part]
        conversion.parts[PARTS[number]].append(**content)

    def _read_slow_weights(self, text: NDArray[np.uint8]) -> None:
        """Weights that take more than one rounding; Python's own reader is exact."""
        for part, place, start in self.output.slow[: self.output.sizes[parse.SLOW]].tolist():
            end = start
            while text[end] > 3 and text[end] not in b"\r\n":
                end += 1
            self.output.weights[part, place] = np.float32(float(text[start:end].tobytes()))

    def _note_malformed(self, text: NDArray[np.uint8]) -> None:
        found = int(self.output.sizes[parse.PLACES])
        if not found:
            return
        latest = self.output.places[min(found - 1, parse.MAX_PLACES)].tolist()
        if latest[3] == parse.PURCHASE_WITHOUT_CLICK:
            raise UsageError(
                f"{self._message(text, latest)}; conversion_without_click: drop leaves it out, "
                "unconvert takes the purchase away"
            )
        if self.options.on_bad_line == "raise":
            raise UsageError(
                f"{self._message(text, latest)}; on_bad_line: skip leaves such lines out"
            )
        for place in self.output.places[: min(found, parse.MAX_PLACES)].tolist():
            if len(self.places) < parse.MAX_PLACES:
                self.places.append(self._message(text, place))

    def _message(self, text: NDArray[np.uint8], place: list[int]) -> str:
        line, start, end, reason, stated, found = place
        what = parse.REASONS[reason].format(
            parts=stated, expected=found, stated=stated, found=found
        )
        excerpt = text[start:end][:_EXCERPT].tobytes().decode("ascii", "backslashreplace")
        printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in excerpt)
        more = "…" if end - start > _EXCERPT else ""
        return f"{self.source.name}, line {line}: {what}: {printable}{more}"

    def finish(self) -> None:
        """At the end of the text: what there is to report of it."""
        if self.truth is not None:
            self.truth.finish()
        state = self.state.tolist()
        dispatch = self.dispatch
        names = [parse.unpacked(name) for name in dispatch.unknown[: dispatch.size[0]].tolist()]
        ignored = dict(zip(names, dispatch.unknown_count.tolist(), strict=False))
        ignored["others"] = int(dispatch.unknown_count[-1])
        entry = {
            "name": self.source.name,
            "split": self.source.split,
            "kind": self.source.kind,
            "rows": state[parse.ROWS],
            "malformed": state[parse.MALFORMED],
            "malformed_places": self.places,
            "unknown_fields": {name: number for name, number in ignored.items() if number},
            "further_values": {
                field.name: number
                for field, number in zip(self.kind.targets, dispatch.extra.tolist(), strict=False)
                if number
            },
        }
        if self.source.kind == "common":
            entry["duplicate_keys"] = state[parse.DUPLICATES]
        else:
            entry["clicks"] = state[parse.CLICKS]
            entry["conversions"] = state[parse.CONVERSIONS]
            entry["conversions_without_click"] = state[parse.UNCLICKED]
            entry["left_out"] = state[parse.LEFT_OUT]
        self.conversion.files[f"{self.source.kind} {self.source.split}"] = entry
