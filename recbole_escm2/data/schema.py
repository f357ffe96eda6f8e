"""What a source says of its data: fields, labels, joins, and which truth it has.

A source is a module or an object that answers the questions of :class:`Source`. It yields Arrow
record batches and a :class:`Schema`; everything else is done once for all, by
:func:`recbole_escm2.data.build.build`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: Parts of a source that is split by its publisher, in the order in which a store has them.
PARTS = ("train", "valid", "test")

#: Which truth there is beside the labels. ``potential``: r under do(click = 1), or its probability,
#: is known for every test row. ``random_impressions``: impressions were drawn at random, r is known
#: where clicked only. ``none``: neither.
TruthKind = Literal["potential", "random_impressions", "none"]


@dataclass(frozen=True)
class Field:
    """A feature, or a key by which tables are joined.

    Attributes:
        name: of the column in the record batches.
        kind: ``token``, ``token_seq``, ``float`` or ``float_seq``, as RecBole calls them.
        origin: whose it is: ``user_id``, ``item_id``, ``user``, ``item`` or ``inter``.
        table: where it stands; a key stands in the table that it joins as well.
        vocabulary: fields of one vocabulary share their ids; by default each has its own.
        weighted: each value has a weight: the column is a list of (token, weight) pairs.
        longest: values that RecBole is told a sequence has at most; by default as many as it has.
        buckets: of a number, as RecBole counts them: 2 where it isn't discretised.
        numerical: a number that is a feature: a batch has it as RecBole's pair of it and 1.
        scaled: a number that is brought into [0, 1] by the least and the largest one.
        standardized: a number that is brought to mean 0 and standard deviation 1, both of train, or
            of D where seeds split it.
    """

    name: str
    kind: str = "token"
    origin: str = "inter"
    table: str = "inter"
    vocabulary: str | None = None
    weighted: bool = False
    longest: int | None = None
    buckets: int = 0
    numerical: bool = False
    scaled: bool = False
    standardized: bool = False

    @classmethod
    def number(
        cls,
        name: str,
        config: Any,
        kind: str = "float",
        origin: str = "inter",
        table: str = "inter",
    ) -> Field:
        """A number: ``numerical_features``, ``normalize_field`` and ``standardize`` act on it."""
        scaled = bool(config["normalize_all"]) or name in (config["normalize_field"] or ())
        numerical = name in (config["numerical_features"] or ())
        standardized = numerical and not scaled and bool(config["standardize"])
        return cls(
            name,
            kind,
            origin,
            table,
            buckets=2,
            numerical=numerical,
            scaled=scaled,
            standardized=standardized,
        )


@dataclass(frozen=True)
class Labels:
    """Columns of ``inter`` that never are features, by what they hold; None where there is none.

    Attributes:
        click: o, 0 or 1.
        conversion: r, 0 or 1.
        potential_conversion: r had the impression been clicked, 0 or 1.
        true_ctr: P(o = 1).
        true_cvr: P(r = 1 | do(o = 1)).
        propensity: P(o = 1) as it was logged, in (0, 1].
        click_weight: how much the impression counts where clicks are learned, >= 0.
        conversion_weight: how much it counts where conversions are.
    """

    click: str
    conversion: str | None = None
    potential_conversion: str | None = None
    true_ctr: str | None = None
    true_cvr: str | None = None
    propensity: str | None = None
    click_weight: str | None = None
    conversion_weight: str | None = None


@dataclass(frozen=True)
class Join:
    """A table whose rows belong to many impressions.

    Attributes:
        table: its name.
        key: the column by which it is joined, in both tables; it may be a field or not.
    """

    table: str
    key: str


@dataclass(frozen=True)
class Schema:
    """What the record batches of a source hold.

    Attributes:
        fields: in the order in which a model sees them.
        labels: the columns that are learned, scored or weighed by.
        truth: which truth the source has.
        truth_parts: the parts that it is about; elsewhere ``potential_conversion`` isn't read.
        clicks_known: whether o of the impressions of these parts is what users chose, so that
            clicks of test can be scored.
        vocabulary: the rows whose tokens are numbered. ``train``: those of the part train, and id 1
            is that of all other tokens. ``all``: every row, where seeds split one D at random, in
            the order of appearance from 1 on, as RecBole numbers them.
        order: of the ids of a vocabulary. ``appearance``: as the tokens appear. ``count``: the most
            frequent first and of equal ones the least, whatever the order of the rows.
        group: the field whose tokens tell users apart, for metrics per user; rare ones as well. Or
            a column of tokens of ``inter`` that is no field, and so no feature.
        time: a field of seconds since any moment; a store keeps them since the earliest one.
        joins: tables beside ``inter``.
        size: how much there is to read, None where that isn't known.
        unit: of the size, for a bar.
        leave_out: the config key by which a user leaves a field out, None where there is none.
        simulated: what to say with every number on simulated data.
        notes: level and text of what to tell whenever the data is used.
        report: what the source has to report of its own. It may add to this and to ``notes`` until
            its last batch was read.
    """

    fields: tuple[Field, ...]
    labels: Labels
    truth: TruthKind = "none"
    truth_parts: tuple[str, ...] = PARTS
    clicks_known: bool = True
    vocabulary: Literal["train", "all"] = "all"
    order: Literal["appearance", "count"] = "appearance"
    group: str | None = None
    time: str | None = None
    joins: tuple[Join, ...] = ()
    size: int | None = None
    unit: str = " rows"
    leave_out: str | None = None
    simulated: Mapping[str, Any] | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def of_table(self, table: str) -> list[Field]:
        """The fields that stand in a table, keys of joins included."""
        keys = {join.key for join in self.joins if join.table == table}
        return [own for own in self.fields if own.table == table or own.name in keys]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, and where they came from.

    A column of tokens is text, whole numbers, or a dictionary of such; a sequence is a list, with
    weights a list of two-column structs or a map. A column of numbers is any number, or a list of a
    fixed size of them. Null is no value.

    Attributes:
        rows: the columns of the schema that stand in the table; others are ignored.
        table: ``inter``, or that of a join.
        part: of :data:`PARTS`; None where the source isn't split.
        file: its name, for messages.
        numbers: of each row in that file; by default they are counted from 1.
        unit: what is counted, ``row`` or ``line``.
        size: how much was read for them, by default as many as there are rows.
    """

    rows: pa.RecordBatch
    table: str = "inter"
    part: str | None = None
    file: str = ""
    numbers: Sequence[int] | NDArray[np.int64] | None = None
    unit: str = "row"
    size: int | None = None

    def place(self, row: int) -> str:
        """Where a row came from, for a message."""
        number = row + 1 if self.numbers is None else self.numbers[row]
        return f"{self.file} {self.unit} {number:,}".strip()


class Source(Protocol):
    """Data of one format; a module or an object."""

    def simulates(self, config: Any) -> bool:
        """Whether config ``simulation_seed`` draws the data: another one is another world."""

    def files(self, config: Any) -> list[Path]:
        """The files that a data set is made of.

        Raises:
            UsageError: one is missing; the message says where it should be and how to get it.
        """

    def settings(self, config: Any) -> dict[str, Any]:
        """The config keys that the content of the store depends on, with their values."""

    def read(self, config: Any) -> tuple[Schema, Iterable[Chunk]]:
        """What the data is like, and all rows of it.

        A list of chunks is in memory and is gone through several times; any other iterable is
        gone through once, and may be larger than memory. Chunks of parts and tables come in any
        order.

        Raises:
            UsageError: the files aren't as they must be; the message says where.
        """
