"""Tables as files, read a batch at a time."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from recbole_escm2.data.sources import table_files
from recbole_escm2.data.sources.table_files import (
    open_table,
    parquet_metadata,
    parquet_parts,
    rows_of_part,
)


def test_a_slow_consumer_of_parquet_holds_no_more_than_it_takes(tmp_path):
    rows = 1 << 20
    table = pa.table({name: np.random.default_rng(0).random(rows) for name in "abc"})
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(table, file, row_group_size=1 << 16)
    size = table.nbytes
    del table
    header, batches = open_table(file, {})
    assert header.names == ["a", "b", "c"]
    before = pa.total_allocated_bytes()
    taken = 0
    for lines, batch in batches(["c", "a"]):
        assert batch.schema.names == ["c", "a"]  # as they were named
        assert lines == range(taken + 1, taken + 1 + len(batch))
        taken += len(batch)
        if taken < 3 * len(batch):
            time.sleep(0.2)  # what is read ahead, if anything is, has the time to be
            assert pa.total_allocated_bytes() - before < size / 4
    assert taken == rows


def test_parts_of_a_parquet_file_are_row_groups_of_enough_rows_together(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "_ROWS_AT_ONCE", 100)
    file = tmp_path / "t.parquet"
    with pyarrow.parquet.ParquetWriter(file, pa.schema([("n", pa.int64())])) as writer:
        first = 0
        for size in (40, 40, 40, 250, 10):
            writer.write_table(pa.table({"n": range(first, first + size)}))
            first += size
    about = parquet_metadata(file)
    parts = list(parquet_parts(about))
    assert [part.groups for part in parts] == [(0, 1, 2), (3,), (4,)]
    assert [part.first for part in parts] == [1, 121, 371]
    for part in parts:
        for numbers, rows in rows_of_part(file, part, ["n"], about):
            assert [number - 1 for number in numbers] == rows.column("n").to_pylist()
