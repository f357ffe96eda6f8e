"""From blocks of raw text to arrays: a quick way for lines as they should be, an exact one for all.

The quick way looks at a whole block at once with numpy: where the separators stand, whether they
come in the order of the format, and what lies between them. It either reads all of a block or says
nothing: then the block is halved, and the few lines around what is unusual go through an exact
parser, line by line, that alone knows what may be wrong with a line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recbole_escm2.data.ali_ccp.files import RawText
from recbole_escm2.data.ali_ccp.raw import FIELDS, KEY_DIGITS, MOST_DIGITS
from recbole_escm2.errors import UsageError
from recbole_escm2.pool import Pool

Array = NDArray[Any]

BLOCK_BYTES = 1 << 20  # of text at once: what is made of it stays in the processor's cache
MAX_PLACES = 5  # malformed lines that are quoted
_MOST_NAMES = 100  # unknown fields that are counted each; the rest are "others"
_MOST_VALUES = 1 << 20  # different values that are remembered
_EXACT_BYTES = 1 << 14  # text that is not halved any more
_EXCERPT = 160  # characters of a malformed line
_LARGE = 1e38  # beyond it float32 ends

#: Targets of features that are in no column: of a known field that isn't wanted, of the field name
#: number MORE - n that isn't known, and of all further ones.
UNWANTED, MORE = -1, -2
OTHERS = MORE - _MOST_NAMES

_NEWLINE, _COMMA, _ZERO = ord("\n"), ord(","), ord("0")
_FEATURE_END, _NAME_END, _ID_END = 1, 2, 3  # raw.FEATURE_SEPARATOR and so on
_HEX = np.zeros(256, np.uint8)  # hex digits in lower case; 0 for any other byte
for _digit in b"0123456789abcdef":
    _HEX[[_digit, ord(chr(_digit).upper())]] = _digit

_WORD = 8  # bytes
_U = np.uint64
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(_WORD + 1)], _U)
_ZEROS = _U(0x3030303030303030)

_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FEATURE = re.compile(rb"([^\x00-\x20,]+)\x02([^\x03]*)\x03(.*)", re.DOTALL)
_NAME = re.compile(rb"[^\x00-\x20,]+")
_DIGITS = re.compile(rb"[0-9]{1,%d}" % MOST_DIGITS)
_KEY = re.compile(rb"[0-9a-fA-F]{1,%d}" % KEY_DIGITS)


class Lines(NamedTuple):
    """Lines that are as they must be, in their order.

    Attributes:
        number: int64 ``[lines]``, their place from 0 among the lines of the file, blank ones aside.
        sample: uint64 ``[lines]``. click, purchase: bool. All three are 0 for common features.
        key: bytes ``[lines]``, what impressions and common features are joined by, in lower case.
        line: int64 ``[features]``, the place of a feature's line in these arrays, ascending.
        target: int64 ``[features]``, which of the wanted fields it is of, or below 0.
        feature: uint64 ``[features]``, its id. weight: float32.
        truth: float32 ``[lines, 3]``, raw.TRUTH_COLUMNS, where the lines are simulated.
    """

    number: Array
    sample: Array
    click: Array
    purchase: Array
    key: Array
    line: Array
    target: Array
    feature: Array
    weight: Array
    truth: Array | None = None

    @classmethod
    def of(
        cls,
        heads: Sequence[tuple[int, int, bool, bool, bytes]],
        features: Sequence[tuple[int, int, int, np.float32]],
    ) -> Lines:
        """Lines one by one: number, sample, click, purchase and key; and their features."""
        dtypes: tuple[Any, ...] = (np.int64, np.uint64, bool, bool, f"S{KEY_DIGITS}")
        of_features: tuple[Any, ...] = (np.int64, np.int64, np.uint64, np.float32)
        columns = [
            *zip(dtypes, zip(*heads, strict=True) if heads else [()] * 5, strict=True),
            *zip(of_features, zip(*features, strict=True) if features else [()] * 4, strict=True),
        ]
        return cls(*(np.array(values, dtype) for dtype, values in columns))

    @classmethod
    def joined(cls, pieces: Sequence[Lines]) -> Lines:
        """Lines of one text, one piece after the other."""
        starts = np.cumsum([0, *(len(piece.number) for piece in pieces[:-1])])
        moved = [p._replace(line=p.line + start) for p, start in zip(pieces, starts, strict=True)]
        columns: list[Any] = [
            None if own[0] is None else np.concatenate(own) for own in zip(*moved, strict=True)
        ]
        return cls(*columns)


class Part:
    """The impressions or the common features of a split, while they are read.

    Attributes:
        split: train or test. kind: common or skeleton.
        name: of the file, for messages.
        rows: lines so far that weren't blank.
        malformed: how many of them were left out. places: what is wrong with the first of those.
    """

    def __init__(self, split: str, kind: str, name: str) -> None:
        self.split, self.kind, self.name = split, kind, name
        self.rows = self.malformed = 0
        self.places: list[str] = []

    def lines(self, advance: Callable[[int], Any]) -> Iterator[Lines]:
        """All lines, a bounded number at once; calls ``advance`` with how much was read."""
        raise NotImplementedError

    def name_of(self, target: int) -> str:
        """The field name that stands behind a target of an unknown field."""
        raise NotImplementedError


class Malformed(Exception):
    """What is wrong with a line."""


class Text(Part):
    """A raw file.

    Args:
        raw: the file.
        wanted: names of the fields that have a target, in the order of the targets.
        on_bad_line: ``raise`` or ``skip``.
        raise_unclicked: whether a purchase without a click is an error.
        pool: processes that read blocks of it; by default this one does.
    """

    def __init__(
        self,
        raw: RawText,
        wanted: Sequence[str],
        on_bad_line: str,
        raise_unclicked: bool,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(raw.split, raw.kind, raw.name)
        self._raw = raw
        self._pool = pool
        self._kind = raw.kind, tuple(wanted), raise_unclicked
        self._lines = 0  # blank ones too
        self._skeleton = raw.kind == "skeleton"
        self._parts = 6 if self._skeleton else 3
        self._skip = on_bad_line == "skip"
        self._raise_unclicked = raise_unclicked
        self._unknown: list[str] = []
        self._targets: dict[bytes, int | None] = {
            field.name.encode(): wanted.index(field.name) if field.name in wanted else UNWANTED
            for field in FIELDS
            if (field.origin == "user") != self._skeleton
        }
        self._values: dict[bytes, np.float32 | None] = {}

    def name_of(self, target: int) -> str:
        return "others" if target == OTHERS else self._unknown[MORE - target]

    def lines(self, advance: Callable[[int], Any]) -> Iterator[Lines]:
        before = 0
        for block, found in self._blocks():
            for lines in self._read(block, found):
                if self._raw.truth:
                    lines = lines._replace(truth=self._raw.truth.of(lines.number))
                yield lines
            advance(self._raw.position() - before)
            before = self._raw.position()
        if self._raw.truth:
            self._raw.truth.finish(self.rows)

    def _blocks(self) -> Iterator[tuple[Array, Lines | None]]:
        """Blocks of the text, each with its lines where another process has read it."""
        blocks = self._raw.blocks(BLOCK_BYTES)
        if self._pool is None:
            return ((block, None) for block in blocks)
        tasks = ((block, (self._kind, block.tobytes())) for block in blocks)
        return self._pool.results(_lines_of_block, tasks)

    def _read(self, text: Array, found: Lines | None = None) -> Iterator[Lines]:
        """Lines of a block, uint8 ``[bytes]`` of whole lines, in one or several pieces.

        Args:
            text: the block.
            found: what another process has read of it, numbered from 0.

        Raises:
            UsageError: a malformed line that isn't to be skipped; the message has its number.
        """
        if found is None:
            lines = self._read_quickly(text)
        else:
            lines = found._replace(number=self.rows + found.number)
        if lines is None and len(text) > _EXACT_BYTES:
            ends = np.flatnonzero(text == _NEWLINE) + 1
            middle = int(ends[(len(ends) - 1) // 2])
            if middle < len(text):
                yield from self._read(text[:middle])
                yield from self._read(text[middle:])
                return
        if lines is None:
            lines = self._read_exactly(text.tobytes())
        else:
            self._lines += int(np.count_nonzero(text == _NEWLINE))
            self.rows += len(lines.number)
        yield lines

    # ------------------------------------------------------------------- any line

    def _read_exactly(self, text: bytes) -> Lines:
        heads: list[tuple[int, int, bool, bool, bytes]] = []
        features: list[tuple[int, int, int, np.float32]] = []
        for line in text[:-1].split(b"\n"):
            self._lines += 1
            own = line.removesuffix(b"\r")
            if not own:
                continue
            self.rows += 1
            try:
                head, parsed = self._parsed(own)
            except Malformed as error:
                self._note(own, str(error))
                continue
            features += [(len(heads), *feature) for feature in parsed]
            heads.append((self.rows - 1, *head))
        return Lines.of(heads, features)

    def _note(self, line: bytes, what: str) -> None:
        excerpt = line[:_EXCERPT].decode("ascii", "backslashreplace")
        shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in excerpt)
        more = "…" if len(line) > _EXCERPT else ""
        text = f"{self.name}, line {self._lines}: {what}: {shown}{more}"
        if what == _UNCLICKED:
            raise UsageError(
                f"{text}; conversion_without_click: drop leaves it out, unconvert takes the "
                "purchase away"
            )
        if not self._skip:
            raise UsageError(f"{text}; on_bad_line: skip leaves such lines out")
        self.malformed += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(text)

    def _parsed(
        self, line: bytes
    ) -> tuple[tuple[int, bool, bool, bytes], list[tuple[int, int, np.float32]]]:
        """Sample id, labels and key of a line, and its features.

        Raises:
            Malformed: with what is wrong.
        """
        parts = line.split(b",")
        if len(parts) != self._parts:
            raise Malformed(f"{len(parts)} comma-separated parts instead of {self._parts}")
        sample, click, purchase = parts[:-3] or (b"0", b"0", b"0")
        key, stated, listed = parts[-3:]
        if not _DIGITS.fullmatch(sample):
            raise Malformed(f"sample_id is not a number of up to {MOST_DIGITS} digits")
        for what, label in (("click", click), ("purchase", purchase)):
            if label not in (b"0", b"1"):
                raise Malformed(f"{what} is not 0 or 1")
        if not _KEY.fullmatch(key):
            raise Malformed(
                f"common_feature_index is not a hex string of up to {KEY_DIGITS} digits"
            )
        if not _DIGITS.fullmatch(stated):
            raise Malformed("feature_num is not a number")
        features = [self._feature(one) for one in listed.split(b"\x01")] if listed else []
        if int(stated) != len(features):
            raise Malformed(f"feature_num is {int(stated)}, but there are {len(features)} features")
        if self._raise_unclicked and purchase > click:
            raise Malformed(_UNCLICKED)
        return (int(sample), click == b"1", purchase == b"1", key.lower()), features

    def _feature(self, text: bytes) -> tuple[int, int, np.float32]:
        match = _FEATURE.fullmatch(text)
        if not match:
            raise Malformed("a feature is not FIELD\\x02ID\\x03VALUE")
        name, number, value = match.groups()
        if not _DIGITS.fullmatch(number):
            raise Malformed(f"a feature id is not a decimal integer of up to {MOST_DIGITS} digits")
        weight = _number(value)
        if weight is None:
            raise Malformed("a value is not a number")
        if abs(weight) >= _LARGE:
            raise Malformed("a value is beyond ±1e38")
        target = self._target(name)
        assert target is not None
        return target, int(number), np.float32(weight)

    def _target(self, name: bytes) -> int | None:
        """Of a field name; None for what can't be one."""
        if name not in self._targets:
            if not _NAME.fullmatch(name):
                return None
            if len(name) > _WORD or len(self._unknown) == _MOST_NAMES:
                return OTHERS
            self._targets[name] = MORE - len(self._unknown)
            self._unknown.append(name.decode("ascii", "backslashreplace"))
        return self._targets[name]

    def _value(self, text: bytes) -> np.float32 | None:
        """A value; None for what can't be one."""
        if text not in self._values:
            if len(self._values) == _MOST_VALUES:
                self._values.clear()
            value = _number(text)
            fits = value is not None and abs(value) < _LARGE
            self._values[text] = np.float32(value) if fits else None
        return self._values[text]

    # ------------------------------------------------------------------- lines as they should be

    def _read_quickly(self, block: Array) -> Lines | None:
        """All lines of a block, or None where one of them is unusual."""
        text = _without_blank_lines(block)
        separators = _Separators.of(text, self._parts)
        if separators is None:
            return None
        starts, ends = separators.parts  # [lines, parts - 1]
        count = len(starts)
        sample = np.zeros(count, _U)
        click = purchase = np.zeros(count, bool)
        if self._skeleton:
            sample, wrong = _integers(text, starts[:, 0], ends[:, 0])
            labels = text[starts[:, 1:3]] - _ZERO
            wrong |= ((labels > 1) | (ends[:, 1:3] - starts[:, 1:3] != 1)).any(axis=1)
            click, purchase = labels.astype(bool).T
            wrong |= self._raise_unclicked & (purchase > click)
            if wrong.any():
                return None
        key = _keys(text, starts[:, -2], ends[:, -2])
        stated, wrong = _integers(text, starts[:, -1], ends[:, -1])
        if key is None or wrong.any() or (stated != separators.sizes.astype(_U)).any():
            return None
        features = self._features(text, separators)
        if features is None:
            return None
        number = self.rows + np.arange(count)
        return Lines(number, sample, click, purchase, key, *features)

    def _features(
        self, text: Array, separators: _Separators
    ) -> tuple[Array, Array, Array, Array] | None:
        """Line, target, id and weight of each feature that has a target; None if one is unusual."""
        start, name_end, id_end, end = separators.features
        if (name_end - start > _WORD).any():
            return None
        target = self._looked_up(_words(text, start, name_end - start), self._target, np.int64)
        value_length = end - id_end - 1
        long = np.flatnonzero(value_length > _WORD)
        value_length[long] = 0
        words = _words(text, id_end + 1, value_length)
        words[long] = ord("0")
        weight = self._looked_up(words, self._value, np.float32)
        feature, wrong = _integers(text, name_end + 1, id_end)
        if target is None or weight is None or wrong.any():
            return None
        for place in long.tolist():
            value = self._value(text[id_end[place] + 1 : end[place]].tobytes())
            if value is None:
                return None
            weight[place] = value
        line = np.repeat(np.arange(len(separators.sizes)), separators.sizes)
        kept = target != UNWANTED
        return line[kept], target[kept], feature[kept], weight[kept]

    @staticmethod
    def _looked_up(words: Array, meaning: Any, dtype: Any) -> Array | None:
        """What words of up to 8 letters mean; None where one means nothing."""
        place, different = pd.factorize(words)
        texts = different.astype("<u8").view(f"S{_WORD}").tolist()  # without the zeros behind
        meanings = [meaning(text) for text in texts]
        if any(one is None for one in meanings):
            return None
        return np.array(meanings, dtype)[place]


# Of a process that reads blocks for another one: what it knows of names and values.
_TEXTS: dict[Any, Text] = {}


def _lines_of_block(about: tuple[str, tuple[str, ...], bool], block: bytes) -> Lines | None:
    """Lines of a block, numbered from 0; None where the process that has all others is to read it.

    That is where something is unusual, such as a field of a name that isn't known: it numbers such
    names as they appear in the text.
    """
    kind, wanted, raise_unclicked = about
    if about not in _TEXTS:
        nowhere = RawText("", kind, "", Path(), io.BytesIO(), int)
        _TEXTS[about] = Text(nowhere, wanted, "raise", raise_unclicked)
    text = _TEXTS[about]
    lines = text._read_quickly(np.frombuffer(block, np.uint8))
    if text._unknown:
        del _TEXTS[about]
        return None
    return lines


_UNCLICKED = "a purchase without a click"


def _number(text: bytes) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _without_blank_lines(block: Array) -> Array:
    """A block with plain ends of lines, and room for a word behind."""
    text = block.tobytes()
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
        block = np.frombuffer(text, np.uint8)
    ends = block == _NEWLINE
    if ends[0] or (ends[1:] & ends[:-1]).any():  # 20 times as quick as to search the text
        text = re.sub(rb"\n+", b"\n", text).removeprefix(b"\n")
    return np.frombuffer(text + bytes(_WORD), np.uint8)


class _Separators(NamedTuple):
    """Where the pieces of a block's lines are.

    Attributes:
        parts: starts and ends ``[lines, parts - 1]`` of the comma-separated parts, without the
            feature list.
        sizes: ``[lines]``, how many features.
        features: start of the name, ends of name and id, and end of each feature, ``[features]``.
    """

    parts: tuple[Array, Array]
    sizes: Array
    features: tuple[Array, Array, Array, Array]

    @classmethod
    def of(cls, text: Array, parts: int) -> _Separators | None:
        """Those of a text with a word of room behind; None where they aren't as they should be."""
        is_separator = (text <= _ID_END) | (text == _NEWLINE) | (text == _COMMA)
        place = np.flatnonzero(is_separator[:-_WORD])
        kind = text[place]
        last = np.flatnonzero(kind == _NEWLINE)  # of each line
        first = np.concatenate(([0], last[:-1] + 1))[: len(last)]
        behind = last - first - (parts - 1)  # separators behind the last comma, newline aside
        if (behind < 0).any():
            return None
        comma = first[:, None] + np.arange(parts - 1)
        ends = place[comma]
        line_start = np.concatenate(([0], place[last[:-1]] + 1))[: len(last)]
        starts = np.concatenate((line_start[:, None], ends[:, :-1] + 1), axis=1)
        list_start = ends[:, -1] + 1
        empty = place[last] == list_start
        count = np.where(empty, 0, (behind + 1) // 3)
        if (kind[comma] != _COMMA).any() or (behind[~empty] % 3 != 2).any() or behind[empty].any():
            return None
        in_list = np.ones(len(place), bool)
        in_list[comma] = False
        in_list[last[empty]] = False
        kinds = kind[in_list].reshape(-1, 3)
        end_kind = kinds[:, 2]
        if (
            (kinds[:, 0] != _NAME_END).any()
            or (kinds[:, 1] != _ID_END).any()
            or ((end_kind != _FEATURE_END) & (end_kind != _NEWLINE)).any()
        ):
            return None
        name_end, id_end, end = place[in_list].reshape(-1, 3).T
        start = np.concatenate(([0], end[:-1] + 1))[: len(end)]
        filled = count > 0
        start[(np.cumsum(count) - count)[filled]] = list_start[filled]
        return cls((starts, ends), count, (start, name_end, id_end, end))


def _words(text: Array, at: Array, length: Array) -> Array:
    """Up to 8 bytes from each place as a number, the first byte lowest; zeros behind them."""
    anywhere = np.ndarray(len(text) - _WORD + 1, "<u8", text, strides=(1,))
    return anywhere[at] & _LOW_BYTES[length]


def _integers(text: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """Decimal integers, and which of them are none or too long."""
    length = end - start
    wrong = (length < 1) | (length > MOST_DIGITS)
    value = np.zeros(len(start), _U)
    for behind in range(0, min(int(length.max(initial=1)), MOST_DIGITS), _WORD):
        own = np.clip(length - behind, 0, _WORD)
        digits, bad = _digits(_words(text, np.maximum(end - behind - own, 0), own), own)
        value += digits * _U(10**behind)
        wrong |= bad
    return value, wrong


def _digits(words: Array, length: Array) -> tuple[Array, Array]:
    """Numbers of up to 8 digits, two, four and eight digits at a time; and which aren't digits."""
    missing = _WORD - length
    shift = (8 * np.minimum(missing, _WORD - 1)).astype(_U)
    words = np.where(missing == _WORD, _ZEROS, (words << shift) | (_ZEROS & _LOW_BYTES[missing]))
    words -= _ZEROS
    bad = ((words + _U(0x7676767676767676)) | words) & _U(0x8080808080808080)
    words = (words * _U(10) + (words >> _U(8))) & _U(0x00FF00FF00FF00FF)
    words = (words * _U(100) + (words >> _U(16))) & _U(0x0000FFFF0000FFFF)
    words = (words * _U(10_000) + (words >> _U(32))) & _U(0xFFFFFFFF)
    return words, bad != 0


def _keys(text: Array, start: Array, end: Array) -> Array | None:
    """Hex strings in lower case; None where one is none or too long."""
    length = end - start
    longest = int(length.max(initial=1))
    if longest > KEY_DIGITS or (length < 1).any():
        return None
    at = start[:, None] + np.arange(longest)
    inside = np.arange(longest) < length[:, None]
    digits = np.where(inside, _HEX[text[np.minimum(at, len(text) - 1)]], 0)
    if ((digits == 0) & inside).any():
        return None
    key = np.zeros((len(start), KEY_DIGITS), np.uint8)
    key[:, :longest] = digits
    return key.view(f"S{KEY_DIGITS}").ravel()
