"""A column store: packed int32 rows and jagged bags in memory-mapped files, with a JSON schema.

A store is a folder::

    schema.json            format, fields, tables, vocabularies, what it was made from
    TABLE.rows             int32 [rows, words]: all columns of a row side by side
    TABLE.bags             int32 [values, 1 or 2]: ids, and weights as the bits of a float32
    TABLE.COLUMN           a column in a file of its own, for what is read without the rest
    vocabulary-N.tokens    the tokens of a vocabulary as UTF-8, one after the other
    vocabulary-N.ends      int64 [tokens]: where each token ends

One packed row is one access to memory where 25 columns are 25, which is what batches in random
order cost. The bags of a row lie side by side as well: the row holds where they start and how many
values each of them has. Nothing is read when a store is opened, except its schema; all files are
mapped then, so that a store that is replaced goes on for those who have it open.

The schema has a digest of each column, taken while the column is written: what a checkpoint was
trained on is compared without reading the data again. It has one of each file as well, of which
little is read: a store of which a file is zeroed, cut or in the place of another isn't opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
from filelock import Timeout
from numpy.typing import NDArray
from torch import Tensor

from recbole_escm2.bags import Bags
from recbole_escm2.errors import NO_ROOM, UsageError, checked_name
from recbole_escm2.identity import digest_of, file_digest
from recbole_escm2.limits import read_json
from recbole_escm2.output import alone, beside, lock, remove_abandoned

FORMAT = 6
SCHEMA = "schema.json"
PADDING = "[PAD]"  # RecBole's token of id 0: no value
UNKNOWN = "[OOV]"  # token of id 1, where a source has a row for ids that train doesn't know

_START_WORDS = 2  # a row's place in the bags is an int64
_COLUMNAR_KINDS = ("uint8", "int32", "float32", "float64")
_KINDS = ("int", "float")


class NoStoreError(Exception):
    """There is no complete store of this format in a folder; the message says what is wrong."""


# --------------------------------------------------------------------------- what a table holds


@dataclass(frozen=True)
class Column:
    """A column of fixed width.

    Attributes:
        name: the field.
        kind: ``int`` or ``float``, of 32 bits.
        shape: of one value: ``()``, or for example ``(2,)``.
    """

    name: str
    kind: str = "int"
    shape: tuple[int, ...] = ()

    @property
    def words(self) -> int:
        """32-bit words a row."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Layout:
    """The columns of a table.

    Attributes:
        columns: packed side by side in a row.
        bags: multi-valued fields, in the order in which a row's values lie.
        weighted: whether each value of a bag has a weight.
        columnar: numpy dtype by column that has a file of its own.
    """

    columns: tuple[Column, ...]
    bags: tuple[str, ...] = ()
    weighted: bool = False
    columnar: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def place(self) -> dict[str, int]:
        """First word of each column."""
        ends = np.cumsum([self.bag_words, *(column.words for column in self.columns)])
        return {c.name: int(start) for c, start in zip(self.columns, ends[:-1], strict=True)}

    @property
    def bag_words(self) -> int:
        """Words in front of the columns: where the bags start, and the length of each."""
        return _START_WORDS + len(self.bags) if self.bags else 0

    @property
    def words(self) -> int:
        """32-bit words a row."""
        return self.bag_words + sum(column.words for column in self.columns)

    @property
    def value_words(self) -> int:
        """32-bit words a value of a bag."""
        return 2 if self.weighted else 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "columns": [[c.name, c.kind, list(c.shape)] for c in self.columns],
            "bags": list(self.bags),
            "weighted": self.weighted,
            "columnar": dict(self.columnar),
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Layout:
        """What :meth:`as_dict` gave.

        Raises:
            ValueError: a type that no column has.
        """
        columns = tuple(Column(n, kind, tuple(shape)) for n, kind, shape in content["columns"])
        layout = cls(columns, tuple(content["bags"]), content["weighted"], content["columnar"])
        kinds = {column.kind for column in columns} | {*layout.columnar.values()}
        if unknown := kinds - {*_KINDS, *_COLUMNAR_KINDS}:
            raise ValueError(f"there are no columns of type {unknown}")
        return layout


# --------------------------------------------------------------------------- writing


class TableWriter:
    """Appends rows to a table; what is in memory is what :meth:`append` is given.

    Args:
        folder: an unfinished store.
        name: of the table.
        layout: its columns.
    """

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.rows = 0
        self.values = 0
        self._digests: dict[str, Any] = {}
        self._files: dict[str, BinaryIO] = {
            part: open(folder / checked_name(f"{name}.{part}", "a column"), "wb")  # noqa: SIM115
            for part in ("rows", *(("bags",) if layout.bags else ()), *layout.columnar)
        }

    def append(
        self,
        columns: Mapping[str, NDArray[Any]],
        counts: NDArray[np.int32] | None = None,
        ids: NDArray[np.int32] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Add rows.

        Args:
            columns: by name, packed and columnar ones, each ``[rows, *shape]``.
            counts: ``[rows, bags]``, the number of values of each bag.
            ids: ``[values]``, row by row and within a row bag by bag.
            weights: ``[values]``, where the layout is weighted.
        """
        layout = self.layout
        rows = len(next(iter(columns.values()), counts if counts is not None else ()))
        packed = np.empty((rows, layout.words), dtype=np.int32)
        if layout.bags:
            assert counts is not None
            assert ids is not None
            lengths = counts.sum(axis=1, dtype=np.int64)
            start = self.values + np.cumsum(lengths) - lengths
            packed[:, :_START_WORDS] = start.view(np.int32).reshape(rows, _START_WORDS)
            packed[:, _START_WORDS : layout.bag_words] = counts
            self._digest(", ".join(layout.bags), counts, ids, weights)
            self._append_values(ids, weights)
        for column in layout.columns:
            dtype = np.float32 if column.kind == "float" else np.int32
            values = np.ascontiguousarray(columns[column.name], dtype=dtype)
            self._digest(column.name, values)
            first = layout.place[column.name]
            packed[:, first : first + column.words] = values.view(np.int32).reshape(
                rows, column.words
            )
        self._files["rows"].write(packed.data if rows else b"")
        for name, kind in layout.columnar.items():
            own = np.ascontiguousarray(columns[name], dtype=np.dtype(kind))
            if name not in layout.place:
                self._digest(name, own)
            self._files[name].write(own.data if rows else b"")
        self.rows += rows

    def _append_values(self, ids: NDArray[np.int32], weights: NDArray[np.float32] | None) -> None:
        values = np.empty((len(ids), self.layout.value_words), dtype=np.int32)
        values[:, 0] = ids
        if self.layout.weighted:
            assert weights is not None
            values[:, 1] = np.ascontiguousarray(weights, dtype=np.float32).view(np.int32)
        self._files["bags"].write(values.data if len(ids) else b"")
        self.values += len(ids)

    def _digest(self, column: str, *arrays: NDArray[Any] | None) -> None:
        """Add rows to a column's digest, which doesn't depend on how many come at once."""
        for part, values in enumerate(arrays):
            if values is not None:
                key = f"{column}\n{part}"
                if key not in self._digests:
                    about = f"{values.dtype.str} {values.shape[1:]}"
                    self._digests[key] = digest_of(about.encode())
                self._digests[key].update(np.ascontiguousarray(values).data if values.size else b"")

    def close(self) -> dict[str, Any]:
        """Finish the table; returns its entry in the schema."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        digests: dict[str, str] = {}
        for key, digest in self._digests.items():
            column = key.partition("\n")[0]
            digests[column] = digests.get(column, "") + digest.hexdigest()
        return {
            "rows": self.rows,
            "values": self.values,
            "layout": self.layout.as_dict(),
            "digests": digests,
        }


class StoreWriter:
    """Makes a store beside its place and moves it there when it is complete.

    Used with ``with``: what was written is gone again when the block is left without
    :meth:`commit`. What a process that was killed has left behind is removed by the next one.

    Args:
        folder: where the store is to be.
    """

    def __init__(self, folder: Path) -> None:
        self.target = folder
        self.folder = folder  # until there is one beside
        self._stack = contextlib.ExitStack()
        self.tables: dict[str, dict[str, Any]] = {}
        self.vocabularies: list[dict[str, Any]] = []
        self._open: list[TableWriter] = []

    def __enter__(self) -> StoreWriter:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = self._stack.enter_context(_hidden(self.target))
            self.folder.mkdir()
        except OSError as error:
            raise _unwritable(self.target, error) from error
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._stack:
            for table in self._open:
                with contextlib.suppress(OSError):  # it is thrown away
                    table.close()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise UsageError(
                f"{self.target.parent}: no room left on the disk ({error.strerror}); make room, or "
                "name another folder for the data that training reads, with store_dir"
            ) from error

    def table(self, name: str, layout: Layout) -> TableWriter:
        """Begin a table."""
        writer = TableWriter(self.folder, name, layout)
        self._open.append(writer)
        return writer

    def close(self, table: TableWriter) -> None:
        """Finish a table."""
        self._open.remove(table)
        self.tables[table.name] = table.close()

    def vocabulary(self, tokens: Sequence[str] | pa.Array) -> int:
        """Add a vocabulary, without the padding of id 0; returns its number.

        Args:
            tokens: the token of id 1, of id 2, and so on.
        """
        number = len(self.vocabularies)
        array = pa.array(tokens, pa.large_string()) if not isinstance(tokens, pa.Array) else tokens
        array = pa.concat_arrays([array.cast(pa.large_string())])  # which begins at its first byte
        _, offsets, text = array.buffers()
        ends = np.frombuffer(offsets or b"", np.int64)[: len(array) + 1][1:]
        content = memoryview(text or b"")[: int(ends[-1]) if len(ends) else 0]
        digest = hashlib.sha256(content)
        digest.update(ends.data if len(ends) else b"")
        stem = f"vocabulary-{number}"
        _write(self.folder / f"{stem}.tokens", content)
        _write(self.folder / f"{stem}.ends", ends.data if len(ends) else b"")
        self.vocabularies.append(
            {"tokens": len(array), "bytes": len(content), "digest": digest.hexdigest()[:16]}
        )
        return number

    def _files(self) -> list[Path]:
        """All that is read of the store, beside its schema."""
        stems = ["vocabulary-*", *self.tables]
        return sorted({path for stem in stems for path in self.folder.glob(f"{stem}.*")})

    def commit(self, schema: Mapping[str, Any]) -> None:
        """Finish the tables, write the schema, and move the store to its place.

        Args:
            schema: what else is to be known of the data; JSON.
        """
        for table in list(self._open):
            self.close(table)
        whole = {
            "format": FORMAT,
            **schema,
            "tables": self.tables,
            "vocabularies": self.vocabularies,
            "files": {path.name: file_digest(path) for path in self._files()},
        }
        text = json.dumps(whole, indent=1, ensure_ascii=False)
        _write(self.folder / SCHEMA, text.encode("utf-8"))
        with _hidden(self.target) as old:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.target, old)  # a reader that has it open keeps its files
            # Not there any more: only when another process was quicker, with the same content.
            with contextlib.suppress(OSError):
                os.replace(self.folder, self.target)


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file, and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _hidden(target: Path) -> contextlib.AbstractContextManager[Path]:
    return beside(target.with_name(f".{target.name}"))


def _unwritable(target: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{target.parent} can't be made or written into ({error.strerror}): name another folder "
        "for the data that training reads, with store_dir"
    )


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def tidy(target: Path) -> None:
    """Remove what processes have left beside a store that were killed when it was in its place."""
    remove_abandoned(target.with_name(f".{target.name}"))
    if (file := _lock_of(target)).exists():
        # of somebody else, or held by one who makes the store anew
        with contextlib.suppress(OSError, Timeout), lock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def making(target: Path) -> Iterator[None]:
    """Holds off other processes that want to make the same store, for as long as it takes.

    Raises:
        UsageError: its folder can't be made or written into.
    """
    file = _lock_of(target)
    held = alone(file, f"making {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held.__enter__()
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield
    finally:
        # Who waits for it finds the store made; where it isn't, two may make it at once, which
        # costs time and nothing else.
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        held.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # where it is empty: nothing was made


# --------------------------------------------------------------------------- reading


class Table:
    """A table of an open store.

    Args:
        folder: the store.
        name: of the table.
        entry: its part of the schema.
    """

    def __init__(self, folder: Path, name: str, entry: Mapping[str, Any]) -> None:
        self.name = name
        self.rows: int = entry["rows"]
        self.layout = Layout.of(entry["layout"])
        self._column = {column.name: column for column in self.layout.columns}
        #: Of each column, as it was when it was written; of all bags together.
        self.digests: dict[str, str] = dict(entry["digests"])

        def mapped(part: str, dtype: str, *shape: int) -> Tensor:
            return torch.from_numpy(_mapped(folder, f"{name}.{part}", dtype, shape))

        #: All rows, int32 ``[rows, words]``.
        self.packed = mapped("rows", "int32", self.rows, self.layout.words)
        self._columnar = {
            column: mapped(column, dtype, self.rows)
            for column, dtype in self.layout.columnar.items()
        }
        self._bag_values = torch.empty(0)
        if self.layout.bags:
            values = entry["values"], self.layout.value_words
            self._bag_values = mapped("bags", "int32", *values)

    def __len__(self) -> int:
        return self.rows

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all columns and bags; what is only columnar is not among them."""
        return (*self.layout.bags, *self._column)

    def column(self, name: str, rows: Tensor | slice) -> Tensor:
        """A column of fixed width of some rows, ``[rows, *shape]``; int32, float32 or as stored."""
        if name in self._columnar:
            return _chosen(self._columnar[name], rows)
        place = self.layout.place[name]
        words = self.packed[:, place : place + self._column[name].words]
        return self._value(_chosen(words, rows), self._column[name])

    def _value(self, words: Tensor, column: Column) -> Tensor:
        if not column.shape:
            words = words.squeeze(1)
        typed = words.view(torch.float32) if column.kind == "float" else words
        return typed.reshape(len(words), *column.shape) if column.shape else typed

    def gather(self, rows: Tensor | slice) -> tuple[dict[str, Tensor], Bags | None]:
        """Rows in one access each: columns by name, and the bags.

        Args:
            rows: positions, or a stretch of rows.

        Returns:
            Token columns int64, others float32, ``[batch, *shape]``; the bags of all multi-valued
            fields, or None where the table has none.
        """
        layout = self.layout
        if isinstance(rows, slice):
            words = self.packed[rows].clone()  # what is written into a batch stays there
        else:
            words = self.packed.index_select(0, rows)
        whole = words[:, layout.bag_words :].long()  # one conversion for all token columns
        columns = {}
        for column in layout.columns:
            place = layout.place[column.name]
            if column.kind == "float":
                columns[column.name] = self._value(words[:, place : place + column.words], column)
            else:
                columns[column.name] = whole[:, place - layout.bag_words]
        return columns, self._gather_bags(words) if layout.bags else None

    def _gather_bags(self, words: Tensor) -> Bags:
        layout = self.layout
        start = words[:, :_START_WORDS].reshape(-1).clone().view(torch.int64).unsqueeze(1)
        lengths = words[:, _START_WORDS : layout.bag_words].long()  # [batch, bags]
        starts = (start + lengths.cumsum(1) - lengths).t().flatten()  # field by field
        lengths = lengths.t().contiguous()
        flat = lengths.flatten()
        shift = starts - (flat.cumsum(0) - flat)
        total = int(flat.sum())
        places = torch.repeat_interleave(shift, flat, output_size=total) + torch.arange(total)
        values = self._bag_values.index_select(0, places)
        weights = values[:, 1].view(torch.float32) if layout.weighted else None
        return Bags(layout.bags, values[:, 0].long(), weights, lengths)


def _chosen(values: Tensor, rows: Tensor | slice) -> Tensor:
    # index_select is several times faster than indexing, above all beside busy processes.
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def _mapped(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file of an open store, privately: nobody can write into the store through the array.

    Raises:
        NoStoreError: it is missing or cut off.
    """
    path = folder / checked_name(name, "a file of a store")
    size = int(np.prod(shape, dtype=np.int64))
    try:
        with open(path, "rb") as file:
            there, wanted = os.fstat(file.fileno()).st_size, size * np.dtype(dtype).itemsize
            if there != wanted:
                raise NoStoreError(f"{path} has {there:,} bytes instead of {wanted:,}")
            if not size:  # which can't be mapped
                return np.empty(shape, dtype)
            return np.memmap(file, dtype, "c", shape=shape)
    except OSError as error:
        raise NoStoreError(f"{path}: {error.strerror}") from error


class Vocabulary(Sequence[str]):
    """The tokens of a field by id, with the padding as id 0; decoded when first asked for.

    Args:
        folder: the store.
        number: of the vocabulary.
        entry: its part of the schema.
    """

    def __init__(self, folder: Path, number: int, entry: Mapping[str, Any]) -> None:
        stem = f"vocabulary-{number}"
        self._text = _mapped(folder, f"{stem}.tokens", "uint8", (entry["bytes"],))
        self._ends = _mapped(folder, f"{stem}.ends", "int64", (entry["tokens"],))
        self._size: int = entry["tokens"] + 1
        #: Changes with any token, and with their order.
        self.digest: str = entry["digest"]

    def __len__(self) -> int:
        return self._size

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """All tokens, ``[tokens]``, as RecBole has them."""
        text, ends = self._text.tobytes(), self._ends.tolist()
        starts = [0, *ends]
        decoded = [text[a:b].decode() for a, b in zip(starts, ends, strict=False)]
        return np.array([PADDING, *decoded])

    def tensors(self) -> dict[str, Tensor]:
        """All tokens but the padding: their UTF-8 ``text``, uint8 ``[bytes]``, and where each
        ``ends`` in it, int64 ``[tokens]``."""
        return {"text": torch.tensor(self._text), "ends": torch.tensor(self._ends)}

    @property
    def unknown(self) -> int | None:
        """The id of tokens that train doesn't know; None where there is none for them."""
        first = self._text[: int(self._ends[:1].sum())].tobytes()
        return 1 if first == UNKNOWN.encode() else None

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id by token."""
        return {token: number for number, token in enumerate(self.tokens)}

    def __getitem__(self, index: Any) -> Any:
        return self.tokens[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tokens)


class Store:
    """An open store.

    Args:
        folder: where :class:`StoreWriter` has put it.

    Raises:
        NoStoreError: nothing there, another format, a file that is missing or cut off, a schema
            that isn't as it must be, or a store that is replaced at this moment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        before = _state(folder / SCHEMA)
        try:
            self.schema: dict[str, Any] = read_json(folder / SCHEMA)
        except FileNotFoundError:
            raise NoStoreError(f"{folder} holds no store") from None
        except (OSError, ValueError) as error:
            raise NoStoreError(f"{folder / SCHEMA}: {error}") from error
        if not isinstance(self.schema, dict) or self.schema.get("format") != FORMAT:
            raise NoStoreError(f"{folder} is a store of another format than {FORMAT}")
        try:
            self.tables = {
                name: Table(folder, name, entry) for name, entry in self.schema["tables"].items()
            }
            self.vocabularies = [
                Vocabulary(folder, number, entry)
                for number, entry in enumerate(self.schema["vocabularies"])
            ]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise NoStoreError(f"{folder / SCHEMA} isn't as it must be: {error!r}") from error
        if _state(folder / SCHEMA) != before:
            raise NoStoreError(f"{folder} was replaced while it was opened")
        self._check_files()

    def _check_files(self) -> None:
        """Compare the digest of each file with that of when it was written."""
        files = self.schema.get("files")
        if not isinstance(files, dict):
            raise NoStoreError(f"{self.folder / SCHEMA} isn't as it must be: it has no files")
        for name, digest in files.items():
            try:
                path = self.folder / checked_name(name, "a file of a store")
                if file_digest(path) != digest:
                    raise NoStoreError(f"{path} isn't as it was written")
            except OSError as error:
                raise NoStoreError(f"{self.folder}: {error}") from error
            except UsageError as error:
                raise NoStoreError(f"{self.folder / SCHEMA}: {error}") from error


def _state(file: Path) -> tuple[int, ...] | None:
    """What tells a file from one that has taken its place."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
