"""What random damages of files have uncovered, with siblings; and a few damages of each kind."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from pyarrow import parquet

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.data.sources.csv_text import csv_batches
from recbole_escm2.data.sources.table_files import open_table
from recbole_escm2.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from fuzz import Cases
from fuzzing.kinds import impressions
from fuzzing.models import KINDS

CASES = 5


@pytest.mark.parametrize("kind", KINDS)
def test_random_damages_are_refused_or_read_as_they_are(kind, tmp_path):
    cases = Cases(kind, 1, tmp_path, limit=60)
    found = [cases.run(number) for number in range(CASES)]
    assert not [own for own in found if "finding" in own]
    assert {own["outcome"] for own in found} <= {"refused", "read"}


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\nb", "a b"),
        ("a\r\n   b", "a b"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\0\x07", r"a\x00\x07"),
        ("a\u202eb", r"a\u202eb"),
        ("größer, 東京", "größer, 東京"),
    ],
)
def test_a_message_is_one_line_of_printable_characters(said, shown):
    assert str(UsageError(said)) == shown


def test_a_long_message_keeps_both_ends():
    said = str(UsageError(f"begins {'x' * 100_000} ends"))
    assert len(said) < 2_000
    assert said.startswith("begins x")
    assert said.endswith("x ends")


# ------------------------------------------------------------------ tables


def write_log(folder, suffix, **columns):
    """The impressions as a table, some of its columns others; the config of a run on it."""
    (folder / "log").mkdir()
    table = pa.table({**impressions(), **columns})
    path = folder / "log" / f"log.{suffix}"
    if suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    elif suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    return {"data_path": str(folder), "numerical_features": ["price"]}


LARGE = [2**53 + 1, -(2**62), 2**63 - 1]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize("number", LARGE)
def test_whole_numbers_beyond_float64_are_rounded(tmp_path, suffix, number):
    """Such as a time in nanoseconds."""
    prices = pa.array([number - n for n in range(40)], pa.int64())
    given = write_log(tmp_path, suffix, price=prices)
    assert len(EntireSpaceDataset(Config("ESMM", "log", config_dict=given))) == 40


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize("number", LARGE)
def test_a_label_beyond_float64_is_no_label(tmp_path, suffix, number):
    clicks = [number, *impressions()["click"][1:]]
    given = write_log(tmp_path, suffix, click=pa.array(clicks, pa.int64()))
    place = "line 2" if suffix == "csv" else "row 1"
    words = rf"log\.{suffix}: column 'click' must hold 0 or 1 .* {place} has '{number}'"
    with pytest.raises(UsageError, match=words):
        EntireSpaceDataset(Config("ESMM", "log", config_dict=given))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize("text", ["x", "", "9" * 400])
def test_a_threshold_on_what_is_no_number(tmp_path, suffix, text):
    columns = impressions()
    row = columns["click"].index(1)
    ratings = ["3"] * 40
    ratings[row] = text
    given = write_log(tmp_path, suffix, rating=ratings)
    given |= {"threshold": {"rating": 3}, "CONVERSION_FIELD": "bought"}
    place = f"line {row + 2}" if suffix == "csv" else f"row {row + 1}"
    words = f"conversion from 'rating', which is no number in 1 clicked .* {place}"
    with pytest.raises(UsageError, match=words):
        EntireSpaceDataset(Config("ESMM", "log", config_dict=given))


def invalid(kind):
    """A column whose buffers say what isn't so."""
    if kind == "text":
        offsets, text = np.array([0, 1, 2], np.int32), b"a\xff"
    else:
        offsets, text = np.array([0, 2, 1], np.int32), b"ab"
    return pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(text)]
    )


@pytest.mark.parametrize("kind", ["text", "order"])
def test_buffers_that_lead_elsewhere(tmp_path, kind):
    file = tmp_path / "a.arrow"
    batch = pa.RecordBatch.from_arrays([invalid(kind)], ["hour"])
    with pa.ipc.new_file(str(file), batch.schema) as written:
        written.write_batch(batch)
    with pytest.raises(UsageError, match=r"a\.arrow, rows 1 to 2: the file is damaged"):
        list(open_table(file, {})[1](["hour"]))


@pytest.mark.parametrize("header", [b"a,\xff\n", b"\xfe\xff,b\n", b"a,b\xc3\n"])
def test_names_of_columns_that_are_no_text(tmp_path, header):
    (tmp_path / "a.csv").write_bytes(header + b"1,2\n")
    with pytest.raises(UsageError, match=r"a\.csv isn't text in UTF-8"):
        open_table(tmp_path / "a.csv", {})


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_columns_that_are_separated_otherwise(tmp_path, separator):
    """As Excel writes CSV where the comma is in numbers."""
    (tmp_path / "a.csv").write_text(separator.join("abc") + "\n" + separator.join("123") + "\n")
    words = (
        f"a.csv has no column but {separator.join('abc')!r}: are they separated by {separator!r}"
    )
    with pytest.raises(UsageError, match=re.escape(words)):
        open_table(tmp_path / "a.csv", {})


@pytest.mark.parametrize("row", [b"\xff,2,3\n", b"1,\xfe\xff,3\n", b"\xc3\n"])
@pytest.mark.parametrize("skips", [True, False])
def test_a_malformed_row_that_is_no_text_leaves_no_traceback(tmp_path, capfd, row, skips):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n" + row + b"3,4\n")
    skipped = [] if skips else None
    with pytest.raises(UsageError, match=r"a\.csv: .*line 3: Expected 2 columns, got \d"):
        list(csv_batches(tmp_path / "a.csv", {}, skipped=skipped)[1])
    assert capfd.readouterr().err == ""


def test_a_parquet_file_whose_numbers_of_rows_differ(tmp_path):
    """pyarrow would read as many as the least of them says."""
    file, rows = tmp_path / "a.parquet", 12_345
    parquet.write_table(pa.table({"a": range(rows), "b": [[1, 2]] * rows}), file)
    content = file.read_bytes()
    as_written, fewer = b"\xf2\xc0\x01", b"\xf0\xc0\x01"  # 12,345 and 12,344 as Thrift has them
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    said = []
    for found in re.finditer(re.escape(as_written), content[footer:]):
        at = footer + found.start()
        file.write_bytes(content[:at] + fewer + content[at + len(fewer) :])
        try:
            read = sum(len(batch) for _, batch in open_table(file, {})[1](["a", "b"]))
        except UsageError as error:
            said.append(str(error))
        else:
            assert read == rows
    words = "a.parquet: the file is damaged: its numbers of rows are 12,344 and 12,345"
    assert sum(words in own for own in said) == 3  # of a flat column, of a group, and of the file
    file.write_bytes(content)
    assert sum(len(batch) for _, batch in open_table(file, {})[1](["a"])) == rows
