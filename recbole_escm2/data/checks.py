"""What is refused or said of data of any source, because it can't be right or seldom is."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_escm2.bags import Bags
from recbole_escm2.data.columns import is_text, list_of_pairs
from recbole_escm2.data.schema import Chunk, Field, Join, Schema
from recbole_escm2.errors import UsageError, did_you_mean

LARGEST = float(np.finfo(np.float32).max)  #: A store has numbers of 32 bits.
_FEW_ROWS = 10  # of a part, which chance may give another one as well
_FEW = 5  # positives, and negatives, without which a label can't be given away
_LEAKAGE_AUC = 0.99  # AUC of one feature alone
_BINS = 50  # of a number
_ALL_DIFFER = 0.9  # distinct tokens a row from which they number rows
_EXPECTED = 10  # values in a part, by their share in train, from which on none is no chance
_SELDOM = 0.05  # share of the rows below which a field has seldom a value
_EVENT_VALUES, _OFTEN_CLICKED = 3, 0.9  # of a column of events, of which chance makes no click
_ENOUGH = 100  # rows from which that can be told
_COLUMN_KEYS = {  # that name columns, and of which kind
    "numerical_features": "float",
    "normalize_field": "float",
    "discretization": "float",
    "seq_len": "",
    "alias_of_user_id": "token",
    "alias_of_item_id": "token",
}
_NO_DATA = (".yaml", ".yml", ".md", ".txt", ".json", ".link", ".kg", ".net", ".hyper", ".py")
_TAIL, _SHOWN_TEXT = 1 << 16, 40  # bytes in which a last line is looked for, characters shown
_MOST_DIGESTS = 1 << 20  # rows of a part whose digests are kept to compare them
_UNMATCHED = 0.01  # share of the impressions from which a join is doubtful
_SHOWN = 100_000  # rows with the same key that are compared

_NO_TEXT = {  # by how such files begin
    **{b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip file", b"BZh": "a bzip2 file"},
    **{b"\x28\xb5\x2f\xfd": "a zstd file", b"PAR1": "a Parquet file"},
    b"ARROW1"[:4]: "an Arrow file",
}

# --------------------------------------------------------------------------- a text file


def packed_kind(start: bytes) -> str | None:
    """What a file is by its first four bytes, where it is no text; None else."""
    kinds = (kind for mark, kind in _NO_TEXT.items() if start.startswith(mark))
    return next(kinds, None)


def check_text(path: Path) -> None:
    """Refuse a file that is a packed or binary one under the name of a text.

    Raises:
        UsageError: it is one; the message says of which kind.
    """
    with open(path, "rb") as file:
        kind = packed_kind(file.read(4))
    if kind:
        raise UsageError(f"{path} is {kind}, and must be text: unpack it, or name it as it is")


def not_text(path: Path, encoding: str | None, error: Exception) -> UsageError:
    """The error of a file that can't be decoded.

    Args:
        path: the file.
        encoding: as it was read; UTF-8 by default.
        error: what the decoder says.

    Raises:
        UsageError: as :func:`check_text`.
    """
    check_text(path)
    with open(path, "rb") as file:
        start = file.read(2)
    is_wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    likely = "utf-16" if is_wide else "cp1252"
    return UsageError(
        f"{path} isn't text in {encoding or 'UTF-8'} ({error}): set encoding, for example "
        f"--encoding={likely}, or save it as UTF-8"
    )


def unended_line(path: Path) -> str | None:
    """What to say of a text file whose last line has no end; None where it has one."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL, 0))
        tail = file.read()
        if not tail or tail.endswith((b"\n", b"\r", b"\0")):  # the last of UTF-16
            return None
        file.seek(0)
        lines = sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b"")) + 1
    last = tail.rpartition(b"\n")[2].decode(errors="replace")
    return (
        f"{path}, line {lines:,}: the last line has no end, as if the file was cut there: "
        f"{last[-_SHOWN_TEXT:]!r}. If it is whole, end it with a line break"
    )


def unread_files(folder: Path, name: str, read: Sequence[Path]) -> str | None:
    """What to say of files that bear the name of a data set and aren't read; None without any.

    Args:
        folder: of the data set.
        name: of the data set.
        read: the files that are read.
    """
    known = {path.name for path in read}
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.lower().startswith(f"{name.lower()}.")
        and path.name not in known
        and path.suffix not in _NO_DATA
        and not any(path in file.parents for file in read)
    )
    if not others:
        return None
    return (
        f"not read: {', '.join(others[:5])} in {folder}, but {', '.join(sorted(known)[:5])} "
        "(source, benchmark_filename and the names of files decide)"
    )


# --------------------------------------------------------------------------- a schema


def check_schema(schema: Schema) -> None:
    """Make sure that each column is one thing.

    Raises:
        UsageError: two fields have one name, or a field has that of a label.
    """
    table: dict[str, str] = dict.fromkeys(filter(None, vars(schema.labels).values()), "the labels")
    for own in schema.fields:
        if own.name in table:
            raise UsageError(
                f"the column '{own.name}' stands in {table[own.name]} and in {own.table}: one "
                "would replace the other. Leave one of them out with unload_col, or rename it"
            )
        table[own.name] = own.table


def check_column_keys(config: Mapping[str, Any], schema: Schema) -> None:
    """Make sure that the keys that name columns name such as there are, and of the right kind.

    Raises:
        UsageError: one doesn't.
    """
    kinds = {own.name: own.kind for own in schema.fields}
    for key, kind in _COLUMN_KEYS.items():
        for name in config[key] or ():
            named = [other for other, own in kinds.items() if own.startswith(kind)]
            if name not in kinds:
                raise UsageError(
                    f"{key} names '{name}', which is no column{did_you_mean(name, named)}. "
                    f"Columns that it may name: {', '.join(named) or 'none'}"
                )
            if name not in named:
                raise UsageError(
                    f"{key} names '{name}', which is a {kinds[name]}: declare it a {kind} in its "
                    "file, or leave it out of the key"
                )


def check_named(key: str, names: Iterable[str], file: Path, columns: Collection[str]) -> None:
    """Make sure that a key names columns of a file.

    Raises:
        UsageError: it names another one.
    """
    if missing := [name for name in map(str, names) if name not in columns]:
        named = ", ".join(f"'{name}'" for name in missing)
        raise UsageError(
            f"{key} names {named}, which {file} doesn't have{did_you_mean(missing[0], columns)}; "
            f"it has {', '.join(columns)}"
        )


def is_idle(own: Field) -> bool:
    """Whether a field is a number that no model sees."""
    return own.kind.startswith("float") and not own.numerical and own.buckets <= 2


def idle_numbers(schema: Schema) -> str | None:
    """What to say of numbers that no model sees; None where there are none."""
    idle = [own.name for own in schema.fields if is_idle(own) and own.name != schema.time]
    if not idle:
        return None
    return (
        f"numbers are features where numerical_features names them: {', '.join(idle)}, which no "
        f"model sees now (--numerical_features='[{','.join(idle)}]')"
    )


# --------------------------------------------------------------------------- values


def check_values(fields: Sequence[Field], chunk: Chunk) -> None:
    """Make sure that numbers are finite with 32 bits, and that no token has a NUL character.

    Raises:
        UsageError: one isn't, or has; the message says in which row and column.
    """
    for own in fields:
        for row, value, why in faulty_values(chunk.rows.column(own.name), own):
            raise UsageError(f"{chunk.place(row)}: column '{own.name}' holds {value!r}: {why}")


def faulty_values(column: pa.Array, own: Field) -> Iterator[tuple[int, Any, str]]:
    """Row and value of each one that :func:`check_values` refuses, and why."""
    is_number = own.kind.startswith("float")
    why = (
        f"a number must lie within ±{LARGEST:.3g}, and a missing one is left empty"
        if is_number
        else "a NUL character ends a text for some readers, which then take tokens for one"
    )
    for row, value in _faults(column, is_number):
        yield row, value, why


def _faults(column: pa.Array, numbers: bool) -> Iterator[tuple[int, Any]]:
    """Row and value of each fault of a column."""
    values, rows = _leaves(column)
    if not numbers and pa.types.is_integer(values.type):
        return  # which has no character
    if pa.types.is_dictionary(values.type):
        if not numbers and not pc.any(_has_nul(values.dictionary)).as_py():
            return
        values = values.dictionary_decode()
    bad = (
        pc.greater(pc.abs(values.cast(pa.float64(), safe=False)), LARGEST)
        if numbers
        else _has_nul(values)
    )
    for place in np.flatnonzero(bad.fill_null(False).to_numpy(zero_copy_only=False)):
        yield (int(place) if rows is None else rows[place].as_py()), values[int(place)].as_py()


def _leaves(column: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """The values in a column of lists, and the row of each; None where each row is one value."""
    column = list_of_pairs(column)
    if pa.types.is_struct(column.type):
        column = column.field(0)
    if not (
        pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
        or pa.types.is_fixed_size_list(column.type)
    ):
        return column, None
    parents = pc.list_parent_indices(column)
    values, inner = _leaves(pc.list_flatten(column))
    return values, parents if inner is None else parents.take(inner)


def _has_nul(texts: pa.Array) -> pa.Array:
    if not is_text(texts.type):
        return pa.nulls(len(texts), pa.bool_())
    if pa.types.is_string_view(texts.type):  # which nothing is searched in
        texts = texts.cast(pa.string())
    return pc.match_substring(texts, "\0")


# --------------------------------------------------------------------------- rows


class RowDigests:
    """Digests of impressions, by which those that are there twice are known.

    Of each part those of the first rows are kept, about a million at most.
    """

    def __init__(self) -> None:
        self._of_part: dict[str | None, list[NDArray[np.uint64]]] = {}
        self._files: dict[str | None, dict[str, None]] = {}

    def saw(self, part: str | None, file: str) -> None:
        """Remember which files a part was read from."""
        self._files.setdefault(part, {})[file] = None

    def add(
        self,
        part: str | None,
        columns: Mapping[str, NDArray[Any]],
        bags: Sequence[tuple[NDArray[np.int32], NDArray[np.int32], Any]],
    ) -> None:
        """Add rows.

        Args:
            part: of the source.
            columns: all of them, ``[rows, *shape]`` each.
            bags: lengths ``[rows]`` and ids ``[values]`` of each multi-valued field.
        """
        kept = self._of_part.setdefault(part, [])
        if sum(map(len, kept)) >= _MOST_DIGESTS:
            return
        digest = np.zeros(len(next(iter(columns.values()), ())), np.uint64)
        for name in sorted(columns):
            words = np.ascontiguousarray(columns[name]).reshape(len(digest), -1)
            for word in words.T:
                digest = _mixed(digest, word.astype(np.float64).view(np.uint64))
        for lengths, ids, _ in bags:
            ends = np.cumsum(lengths)
            sums = np.append(0, np.cumsum(_mixed(np.uint64(1), ids.astype(np.uint64))))
            sums = sums.astype(np.uint64)
            digest = _mixed(digest, sums[ends] - sums[ends - lengths] + lengths.astype(np.uint64))
        kept.append(digest)

    def notes(self) -> Iterator[tuple[str, str]]:
        """Level and text of what is to be said.

        Raises:
            UsageError: two parts hold the same.
        """
        whole = {part: np.concatenate(own) for part, own in self._of_part.items() if own}
        for part, own in whole.items():
            yield from self._repeats(part, own)
        train = whole.pop("train", np.empty(0, np.uint64))
        within = 1 - len(np.unique(train)) / max(len(train), 1)
        for part, own in whole.items():
            if _are_same(own, train):
                raise UsageError(
                    f"train and {part} hold the same impressions ({self._named('train')} and "
                    f"{self._named(part)}): what a model was trained on would be scored as unseen. "
                    "Name other files with benchmark_filename"
                )
            share = float(np.isin(own, train).mean()) if len(own) and len(train) else 0.0
            if share >= 0.5 and within < share / 2:
                yield (
                    "warning",
                    f"{share:.0%} of the impressions of {part} ({self._named(part)}) stand in "
                    f"train ({self._named('train')}) too, with the same value in each column: what "
                    "a model was trained on is scored as unseen",
                )
        if _are_same(*(whole.get(part, train[:0]) for part in ("valid", "test"))):
            yield (
                "warning",
                f"valid and test hold the same impressions ({self._named('valid')} and "
                f"{self._named('test')}): the epoch that is chosen on them is scored on them",
            )

    def _repeats(self, part: str | None, own: NDArray[np.uint64]) -> Iterator[tuple[str, str]]:
        _, counts = np.unique(own, return_counts=True)
        repeated = len(own) - len(counts)
        if not repeated:
            return
        times = int(np.gcd.reduce(counts))
        where = f" of {part}" if part else ""
        if times > 1 and len(own) >= _ENOUGH:
            yield (
                "warning",
                f"each impression{where} stands {times} times in {self._named(part)}: a random "
                "split puts some of them into train and the same ones into test",
            )
        elif block := _repeated_block(own):
            yield (
                "warning",
                f"{block:,} impressions{where} one after the other stand twice in "
                f"{self._named(part)}, as if a file was appended twice",
            )
        else:
            yield (
                "info",
                f"{repeated:,} of {len(own):,} impressions{where} are the same as another one in "
                "each column, labels included",
            )

    def _named(self, part: str | None) -> str:
        return _some(list(self._files.get(part, ())))


def _some(files: Sequence[str]) -> str:
    """The first files, for a message."""
    return ", ".join(files[:2]) + (", …" if len(files) > 2 else "")


def _are_same(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> bool:
    """Whether two parts hold the same rows, in whatever order; few may by chance."""
    return _FEW_ROWS < len(one) == len(other) and bool((np.sort(one) == np.sort(other)).all())


def _mixed(digest: Any, word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Another word added to digests: splitmix64, whose steps wrap around."""
    with np.errstate(over="ignore"):
        mixed = (digest + np.uint64(0x9E3779B97F4A7C15)) ^ (word * np.uint64(0xBF58476D1CE4E5B9))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _repeated_block(own: NDArray[np.uint64]) -> int:
    """Rows that stand again at one distance, where that is far and they are many; else 0."""
    order = np.argsort(own, kind="stable")
    same = own[order[1:]] == own[order[:-1]]
    distance = np.diff(order)[same]
    distance = distance[distance >= _ENOUGH]
    if not len(distance):
        return 0
    most = int(np.bincount(distance).max())
    return most if most >= max(_ENOUGH, len(own) // 100) else 0


def repeated_keys(rows: pa.Table, join: Join, place: Callable[[int], str], repeated: int) -> str:
    """What to say of rows of a joined table that have one key.

    Args:
        rows: those that share their key with another one, in the table's order.
        join: the table and the column.
        place: where the n-th of them came from.
        repeated: rows beside the first of each key.
    """
    key = join.key
    first: dict[Any, dict[str, Any]] = {}
    again: list[str] = []
    differ: list[tuple[Any, str, str]] = []
    for number, row in enumerate(rows.slice(0, _SHOWN).to_pylist()):
        own = first.setdefault(row[key], row)
        if own is row:
            continue
        again.append(place(number))
        changed = [name for name in row if row[name] != own[name] and row[name] == row[name]]
        if changed:
            differ.append((row[key], changed[0], again[-1]))
    said = (
        f"{repeated:,} rows of '{join.table}' repeat their {key}: the first row of each counts "
        f"({_some(again)})"
    )
    if not differ:
        return said
    value, column, where = differ[0]
    return (
        f"{said}. {len(differ):,} of them differ from it, the first where {key} is {value!r}, in "
        f"'{column}' ({where})"
    )


def not_joined(references: Any, there: Any, join: Join, files: Sequence[str]) -> UsageError:
    """The error of a joined table that has none of the keys of the impressions.

    Args:
        references: keys of the impressions.
        there: keys of the table.
        join: the table and the column.
        files: those of the table.
    """
    has = f", and {there[0].as_py()!r} there" if len(there) else ""
    return UsageError(
        f"no impression has its {join.key} in '{join.table}' ({_some(files)}): for example "
        f"{references[0].as_py()!r} here{has}. The keys must be written the same way in both"
    )


def not_matched(
    joins: Sequence[Join], reports: Mapping[str, Any], rows: Mapping[str, int]
) -> Iterator[str]:
    """What to say of joins that many impressions of a part have no row in.

    Args:
        joins: of the schema.
        reports: of each joined table, ``unmatched`` impressions by part.
        rows: impressions by part.
    """
    for join in joins:
        for part, unmatched in reports[join.table]["unmatched"].items():
            if unmatched > _UNMATCHED * rows[part]:
                said = f"{unmatched:,} of {rows[part]:,} impressions ({part}) have no row in"
                yield f"{said} '{join.table}' by {join.key}"


# --------------------------------------------------------------------------- features


def unknown_everywhere(fields: Mapping[str, Any]) -> Iterator[str]:
    """What to say of fields of which train knows no value of another part.

    Args:
        fields: of each ``values`` and ``unknown`` ones by part.
    """
    for name, own in fields.items():
        for part, values in own["values"].items():
            if 0 < values == own["unknown"][part] and part not in ("train", "all"):
                yield f"field {name}: no value of {part} is in the vocabulary of train"


def lacking_in_a_part(
    values: Mapping[str, Mapping[str, int]], rows: Mapping[str, int]
) -> Iterator[str]:
    """What to say of fields that train has, and another part hasn't in any row.

    Args:
        values: how many there are of each field, by part.
        rows: impressions of each part.
    """
    for name, own in values.items():
        for part, count in own.items():
            expected = rows[part] * own.get("train", 0) / max(rows.get("train", 0), 1)
            if not count and expected >= _EXPECTED:
                yield (
                    f"the field '{name}' has no value in any row of {part}, and "
                    f"{own['train']:,} in train: is it called so in both?"
                )


def empty_field(name: str, part: str, leave_out: str | None) -> str:
    """What to say of a field without a value in any row of a part.

    Args:
        name: of the field.
        part: ``all`` where the source isn't split.
        leave_out: config key by which it can be left out, None where there is none.

    Raises:
        UsageError: it can be left out.
    """
    where = "" if part == "all" else f" of {part}"
    said = f"the field '{name}' has no value in any row{where}"
    if leave_out is None:
        return said
    raise UsageError(
        f"{said}: its column or its name is wrong. Where it isn't, leave it out with {leave_out}"
    )


def grouped_values(columns: Mapping[str, Tensor], bags: Bags | None) -> dict[str, NDArray[Any]]:
    """Rows of a table with one number for each value: a bag by the sum of its ids' digests.

    Args:
        columns: as :meth:`Table.gather` gives them; a list of numbers is left out.
        bags: likewise.
    """
    numbers = {}
    for name, column in columns.items():
        if column.dim() == 1:
            numbers[name] = column.numpy()
        elif column.shape[1:] == (2,):  # a numerical feature and 1, or 1 and its bucket
            numbers[name] = column.double().mul(torch.tensor([1.0, 1e6])).sum(1).numpy()
    for name, bag in bags.split() if bags is not None else ():
        row = np.repeat(np.arange(bag.lengths.shape[1]), bag.lengths[0].numpy())
        digest = _mixed(np.uint64(1), bag.ids.numpy().astype(np.uint64))
        sums = np.zeros(bag.lengths.shape[1], np.uint64)
        np.add.at(sums, row, digest)
        numbers[name] = sums
    return numbers


def suspicious_features(
    features: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]]
) -> Iterator[str]:
    """What to say of features that give a label away.

    Each feature predicts the label of a row by the labels of the other rows that have its value;
    numbers are cut into 50 quantiles. Rows whose value no other row has don't count.

    Args:
        features: ids or numbers by field, ``[rows]`` each, of train.
        labels: click, then conversion where there is one, by name, ``[rows]`` each.
    """
    click, *others = (truth.astype(bool) for truth in labels.values())
    everywhere = np.ones(len(click), bool)
    targets = [(name, truth.astype(bool), everywhere) for name, truth in labels.items()]
    targets += [(name, truth, click) for name, truth in zip([*labels][1:], others, strict=True)]
    for field, values in features.items():
        groups = _grouped(values)
        for label, truth, where in targets:
            if _auc_of_others(groups[where], truth[where]) >= _LEAKAGE_AUC:
                yield (
                    f"the feature '{field}' gives the label '{label}' away (AUC of it alone is "
                    f"{_LEAKAGE_AUC} or more): if it is known only after the impression, leave it "
                    "out with unload_col"
                )
                break
        else:
            if rows := _only_clicked(groups, click):
                yield (
                    f"each of the {rows:,} impressions with one value of '{field}' is clicked: if "
                    "it is an event after the click, name it in EVENT_FIELDS, and it is no feature"
                )


def _only_clicked(groups: NDArray[np.int64], click: NDArray[np.bool_]) -> int:
    """Rows of a value of which all are clicked, of a feature with few values; 0: there is none."""
    rows, clicks = np.bincount(groups), np.bincount(groups, click)
    if len(rows) > _EVENT_VALUES or click.mean() > _OFTEN_CLICKED:
        return 0
    return int(rows[(rows == clicks) & (rows >= _ENOUGH)].max(initial=0))


def poor_field(own: Field, tokens: int, values: int, rows: int, longest: int) -> str | None:
    """What to say of a field of tokens from which little can be learned; None else.

    Args:
        own: the field.
        tokens: different ones.
        values: how many there are in all rows together.
        rows: impressions.
        longest: most values that one of them has.
    """
    if rows < _ENOUGH:
        return None
    if own.kind == "token_seq" and not own.weighted and longest == 1 and tokens > 1:
        return (
            f"no row has more than one value of '{own.name}', a {own.kind}: is seq_separator what "
            "stands between them?"
        )
    if own.kind != "token":
        return None
    if own.table == own.origin == "inter" and tokens >= _ALL_DIFFER * rows:
        repeated = f"; {values - tokens:,} rows repeat one" if tokens < values else ""
        return (
            f"the field '{own.name}' has {tokens:,} tokens in {rows:,} rows{repeated}: a number of "
            "rows is no feature, leave it out with unload_col"
        )
    if tokens == 1 and values == rows:
        return f"the field '{own.name}' is the same in all rows: nothing can be learned of it"
    if values < _SELDOM * rows:
        return f"the field '{own.name}' has a value in {values:,} of {rows:,} rows only"
    return None


def alike_tokens(name: str, tokens: pa.Array) -> str | None:
    """What to say of tokens that differ by blanks at their ends alone; None where there are none.

    Args:
        name: of the field.
        tokens: each once.
    """
    if not pa.types.is_string(tokens.type):
        return None
    trimmed = pc.utf8_trim_whitespace(tokens)
    padded = tokens.filter(pc.not_equal(trimmed, tokens))
    if not len(padded):
        return None
    twins = padded.filter(pc.is_in(pc.utf8_trim_whitespace(padded), value_set=tokens))
    if not len(twins):
        return None
    return (
        f"{len(twins):,} tokens of '{name}' differ from another one by blanks at their ends alone, "
        f"for example {twins[0].as_py()!r}: each has an id of its own"
    )


def _grouped(values: NDArray[Any]) -> NDArray[np.int64]:
    """Small whole numbers that tell values apart, or quantiles of many numbers."""
    distinct, groups = np.unique(values, return_inverse=True)
    if values.dtype.kind == "f" and len(distinct) > _BINS:
        limits = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
        groups = np.searchsorted(limits, values)
    return groups.astype(np.int64)


def _auc_of_others(groups: NDArray[np.int64], truth: NDArray[Any]) -> float:
    """AUC of the share of positives among the others of a row's group; 0.5 where few tell it."""
    rows = np.bincount(groups)
    positive = np.bincount(groups, truth, len(rows))
    shared = rows > 1
    rows, positive = rows[shared], positive[shared]
    negative = rows - positive
    if min(positive.sum(), negative.sum()) < _FEW or 2 * rows.sum() < len(groups):
        return 0.5
    score = np.concatenate([(positive - 1) / (rows - 1), positive / (rows - 1)])
    weight = np.concatenate([positive, negative])
    is_positive = np.repeat([True, False], len(rows))
    _, rank = np.unique(score, return_inverse=True)
    above = np.bincount(rank, weight * is_positive)
    below = np.bincount(rank, weight * ~is_positive)
    pairs = (above * (np.cumsum(below) - below / 2)).sum()
    return float(pairs / (above.sum() * below.sum()))
