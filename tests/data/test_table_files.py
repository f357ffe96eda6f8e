"""Tables as files, read a batch at a time."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from recbole_escm2.data.sources.table_files import open_table


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
