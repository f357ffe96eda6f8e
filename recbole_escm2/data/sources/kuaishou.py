"""What the data sets of Kuaishou's videos share: features of users, and lists of tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recbole_escm2.data.sources.csv_text import csv_columns
from recbole_escm2.errors import UsageError

#: Counts of followers and the like are features by their range; ``register_days`` as well.
USER_FEATURES = (
    *("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
    *("follow_user_num_range", "fans_user_num_range", "friend_user_num_range"),
    *("register_days_range", *(f"onehot_feat{number}" for number in range(18))),
)


def features(
    file: Path, id_column: str, id_field: str, columns: Mapping[str, str]
) -> pa.RecordBatch:
    """A table of tokens, its id first.

    Args:
        file: with a header.
        id_column: the column of the id.
        id_field: what the id is called here.
        columns: ``token``, or ``token_seq`` for a list such as ``[27, 9]`` or ``12,65``, by name.

    Raises:
        UsageError: the file isn't as it must be.
    """
    types = dict.fromkeys([id_column, *columns], pa.string())
    batches = []
    for lines, batch in csv_columns(file, types, whole=[id_column]):
        for name in (name for name, kind in columns.items() if kind == "token_seq"):
            _check_lists(file, name, lines, batch.column(name))
        batches.append(batch)
    table = pa.Table.from_batches(batches, pa.schema(types)).combine_chunks()
    shown = {id_field: table[id_column]} | {name: table[name] for name in columns}
    for name, kind in columns.items():
        if kind == "token_seq":
            bare = pc.replace_substring_regex(shown[name], r"[\[\]\s]", "")
            shown[name] = pc.split_pattern(pc.if_else(pc.equal(bare, ""), None, bare), ",")
    return pa.table(shown).combine_chunks().to_batches()[0]


def _check_lists(file: Path, name: str, lines: Sequence[int], column: pa.Array) -> None:
    """Make sure that lists end which have begun: a reader of CSV takes a quote that doesn't."""
    opens, closes = pc.starts_with(column, "["), pc.ends_with(column, "]")
    row = pc.index(pc.fill_null(pc.xor(opens, closes), False), True).as_py()
    if row >= 0:
        raise UsageError(
            f"{file} line {lines[row]:,}: {name} is no list such as [27, 9]: "
            f"{column[row].as_py()!r}"
        )
