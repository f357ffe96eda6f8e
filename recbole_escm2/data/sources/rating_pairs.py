"""Ratings of what users chose and of what chance showed them: every user-item pair is in D.

A pair that its user chose to rate is a click, and what the rating says the conversion. Of the pairs
that were shown at random the rating is known whether the user would have chosen them or not: there
r under do(click = 1) is known of real people. They are the test part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.labels import labels_of
from recbole_escm2.data.schema import Chunk, Field, Join, Labels, Schema
from recbole_escm2.data.sources.raw import RawFiles
from recbole_escm2.errors import UsageError

_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Ratings:
    """Rated pairs, each once; all arrays are ``[ratings]``.

    Attributes:
        user: position of the user among all users.
        item: position of the item among all items.
        value: of the rating.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]

    def sorted(self, items: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Numbers of the pairs, user by user in rising order, and their ratings.

        Of a pair that stands several times the first rating counts.
        """
        pair, first = np.unique(self.user * items + self.item, return_index=True)
        return pair, self.value[first]


@dataclass(frozen=True)
class RatedPairs:
    """What a data set holds.

    Attributes:
        users: their tokens.
        items: their tokens.
        chosen: ratings of pairs that users chose.
        random: ratings of pairs that were shown at random.
        tables: features by ``user`` and ``item``, each with the id as its first column.
        propensity: P(o = 1) as somebody estimated it, ``[users, items]``, where there is one.
        notes: level and text of what to tell of it.
        files: those of the tables, for messages.
    """

    users: pa.Array
    items: pa.Array
    chosen: Ratings
    random: Ratings
    tables: Mapping[str, pa.RecordBatch] = field(default_factory=dict)
    propensity: NDArray[np.float64] | None = None
    notes: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


class RatingPairs(RawFiles):
    """Base of such data sets; a subclass reads the files."""

    keys = (
        *("protocol", "threshold", "USER_ID_FIELD", "ITEM_ID_FIELD", "CLICK_FIELD"),
        *("CONVERSION_FIELD", "POTENTIAL_CONVERSION_FIELD", "PROPENSITY_FIELD"),
    )
    named = ("USER_ID_FIELD", "ITEM_ID_FIELD")
    #: What a rating is called in the key ``threshold``.
    rating = "rating"
    #: Whether users might have chosen the pairs that were shown at random. Clicks on these can be
    #: scored where they are a uniform sample of all pairs: about as many of them were chosen.
    clicks_random_pairs = True
    #: Whether a rating converts.
    converts: Callable[..., Any] = staticmethod(np.greater_equal)

    def pairs(self, config: Any) -> RatedPairs:
        """The content of the files.

        Raises:
            UsageError: a file isn't as it must be; the message says where.
        """
        raise NotImplementedError

    def read(self, config: Any) -> tuple[Schema, Iterator[Chunk]]:
        """All pairs; those that were shown at random are the part test.

        Raises:
            UsageError: a file isn't as it must be, or ``threshold`` names something else.
        """
        self._least(config)
        data = self.pairs(config)
        items = len(data.items)
        chosen, random = data.chosen.sorted(items), data.random.sorted(items)
        if not len(random[0]):
            raise UsageError(f"data set '{config['dataset']}': no pair was shown at random")
        both = int(np.isin(random[0], chosen[0], assume_unique=True).sum())
        chosen_share = len(chosen[0]) / (len(data.users) * items)
        schema = self._schema(
            config, data, self.clicks_random_pairs and both >= len(random[0]) * chosen_share / 2
        )
        held = config["protocol"] == "held_out"
        fate = "left out of train and validation" if held else "in train as well (protocol)"
        note = (
            f"{len(chosen[0]):,} pairs were chosen, {chosen_share:.1%} of all, and "
            f"{len(random[0]):,} shown at random: {both:,} of these were chosen as well, "
            f"{both / len(random[0]):.1%}. They are {fate}"
        )
        if not schema.clicks_known:
            note += ", and clicks of test aren't scored"
        if repeated := len(data.chosen.user) - len(chosen[0]):
            note += f". {repeated:,} further ratings of the same pairs don't count"
        schema.notes.extend([("info", note), *data.notes])
        schema.report.update(chosen=len(chosen[0]), random=len(random[0]), both=both)
        return schema, self._chunks(config, schema, data, chosen, random)

    def _least(self, config: Any) -> float:
        """The rating from which (or above which) a pair converts."""
        threshold = config["threshold"] or {}
        if list(threshold) != [self.rating]:
            raise UsageError(
                f"threshold of data set '{config['dataset']}' must be {{{self.rating}: a number}}, "
                f"got {config['threshold']!r}"
            )
        return float(threshold[self.rating])

    def _schema(self, config: Any, data: RatedPairs, clicks_known: bool) -> Schema:
        user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        labels = vars(labels_of(config)) | {"true_ctr": None, "true_cvr": None}
        if data.propensity is None:
            labels["propensity"] = None
        fields = [Field(user, origin="user_id"), Field(item, origin="item_id")]
        joins = []
        for own, table in data.tables.items():
            names = table.schema.names
            joins.append(Join(own, names[0]))
            for column in table.schema:
                if column.name != names[0]:
                    kind = "token_seq" if pa.types.is_list(column.type) else "token"
                    fields.append(Field(column.name, kind, own, own))
        return Schema(
            fields=tuple(fields),
            labels=Labels(**labels),
            truth="potential",
            truth_parts=("test",),
            clicks_known=clicks_known,
            group=user,
            joins=tuple(joins),
        )

    def _chunks(
        self,
        config: Any,
        schema: Schema,
        data: RatedPairs,
        chosen: tuple[NDArray[np.int64], NDArray[np.float64]],
        random: tuple[NDArray[np.int64], NDArray[np.float64]],
    ) -> Iterator[Chunk]:
        for own, table in data.tables.items():
            yield Chunk(table, own, file=str(data.files.get(own, "")))
        items = len(data.items)
        users = max(_PAIRS_AT_ONCE // items, 1)
        for start in range(0, len(data.users) * items, users * items):
            pairs = np.arange(start, min(start + users * items, len(data.users) * items))
            rated, shown = _ratings_of(pairs, *chosen), _ratings_of(pairs, *random)
            at_random = ~np.isnan(shown)
            rest = ~at_random if config["protocol"] == "held_out" else np.ones_like(at_random)
            for part, rows, rating in (("train", rest, rated), ("test", at_random, shown)):
                if rows.any():
                    columns = self._columns(config, schema, data, pairs[rows])
                    clicked = ~np.isnan(rated[rows])
                    converts = self.converts(rating[rows], self._least(config))
                    columns |= self._labels(schema.labels, clicked, converts)
                    yield Chunk(pa.RecordBatch.from_pydict(columns), part=part)

    @staticmethod
    def _labels(
        labels: Labels, clicked: NDArray[np.bool_], converts: NDArray[np.bool_]
    ) -> dict[str, pa.Array]:
        """o, o·r, and r of all rows (which the part train has of clicked ones alone)."""
        columns = {labels.click: pa.array(clicked), labels.conversion: pa.array(clicked & converts)}
        columns[labels.potential_conversion] = pa.array(converts)
        return {name: column for name, column in columns.items() if name is not None}

    @staticmethod
    def _columns(
        config: Any, schema: Schema, data: RatedPairs, pairs: NDArray[np.int64]
    ) -> dict[str, pa.Array]:
        user, item = np.divmod(pairs, len(data.items))
        columns: dict[str, pa.Array] = {
            config[f"{key}_ID_FIELD"]: pa.DictionaryArray.from_arrays(
                pa.array(place.astype(np.int32)), tokens
            )
            for key, place, tokens in (("USER", user, data.users), ("ITEM", item, data.items))
        }
        if schema.labels.propensity and data.propensity is not None:
            columns[schema.labels.propensity] = pa.array(data.propensity[user, item])
        return columns


def _ratings_of(
    pairs: NDArray[np.int64], rated: NDArray[np.int64], value: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The rating of each pair of a stretch, NaN where there is none."""
    first, last = np.searchsorted(rated, [pairs[0], pairs[-1] + 1])
    by_pair = np.full(len(pairs), np.nan)
    by_pair[rated[first:last] - pairs[0]] = value[first:last]
    return by_pair
