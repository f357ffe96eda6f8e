"""Columns of record batches as arrays."""

import pyarrow as pa

from recbole_escm2.data.columns import without_empty


def test_an_empty_text_is_null_in_a_slice_too():
    texts = [f"{number}.5" if number % 5 else "" for number in range(1000)]
    column = pa.array(texts).slice(256, 256)
    assert without_empty(column).to_pylist() == [text or None for text in texts[256:512]]
