"""A column store that isn't what was written, and source files that aren't what they were."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from common import call, small

from recbole_escm2.identity import file_digest


@pytest.fixture
def made(data_path, tmp_path):
    """A copy of ``tiny`` with its store; the folder of the store."""
    without = shutil.ignore_patterns("store")  # which another test may have made
    shutil.copytree(data_path / "tiny", tmp_path / "tiny", ignore=without)
    assert call(tmp_path, *small(tmp_path)).code == 0
    (schema,) = (tmp_path / "tiny").rglob("schema.json")
    return schema.parent


def clicks(outcome):
    return next(line for line in outcome.err.splitlines() if "clicks (" in line)[9:]


def zero(store):
    """What a power cut leaves: a file of the right size without content."""
    file = store / "inter.click"
    file.write_bytes(bytes(file.stat().st_size))


def zero_a_vocabulary(store):
    file = store / "vocabulary-0.tokens"
    file.write_bytes(bytes(file.stat().st_size))


def cut(store):
    file = store / "inter.rows"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))


def swap(store):
    one, other = store / "inter.click", store / "inter.conversion"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip(store):
    file = store / "item.rows"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [zero, zero_a_vocabulary, cut, swap, flip])
def test_a_damaged_store_is_made_again(made, tmp_path, harm):
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    sound = call(tmp_path, *small(tmp_path))
    harm(made)
    mended = call(tmp_path, *small(tmp_path))
    assert mended.code == 0
    assert "isn't as it was written: the data has to be made again" in mended.err
    assert clicks(mended) == clicks(sound)
    assert {path.name for path in made.iterdir()} == set(files)
    assert all(
        path.read_bytes() == files[path.name] for path in made.iterdir() if path.suffix != ".json"
    )


@pytest.mark.parametrize("harm", [zero, cut, swap])
def test_a_damaged_store_without_its_files_is_refused(made, tmp_path, harm):
    harm(made)
    (tmp_path / "tiny" / "tiny.inter").unlink()
    outcome = call(tmp_path, *small(tmp_path))
    assert outcome.code == 2
    assert "isn't as it was written" in outcome.err
    assert "tiny.inter" in outcome.error


def swap_labels_of_two_lines(text):
    lines = text.split("\n")
    first = next(line for line in lines if "\t1\t0\t" in line)
    return text.replace(first, first.replace("\t1\t0\t", "\t0\t0\t"), 1)


@pytest.mark.parametrize(
    "change",
    [
        swap_labels_of_two_lines,
        lambda text: text.replace("\nu1\t", "\nu2\t", 1),
        lambda text: text[:-2] + ("1" if text[-2] != "1" else "2") + "\n",
    ],
    ids=["label", "token", "end"],
)
def test_a_source_of_the_same_size_and_time_is_read_again(made, tmp_path, change):
    file = tmp_path / "tiny" / "tiny.inter"
    before, schema = file.stat(), (made / "schema.json").read_bytes()
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert call(tmp_path, *small(tmp_path)).code == 0
    assert (made / "schema.json").read_bytes() != schema


def test_the_digest_of_a_large_file_reads_few_pieces(tmp_path):
    file = tmp_path / "large"
    content = np.random.default_rng(0).integers(256, size=8 << 20, dtype=np.uint8)
    content.tofile(file)
    whole = file_digest(file)
    assert file_digest(file) == whole
    for start, stop in ((0, 10), (len(content) - 10, len(content)), (3 << 20, (3 << 20) + 80_000)):
        harmed = content.copy()
        harmed[start:stop] = 0
        harmed.tofile(file)
        assert file_digest(file) != whole
    content[:-1].tofile(file)
    assert file_digest(file) != whole
