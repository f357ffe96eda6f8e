"""What is parsed has limits; a list that several share counts for each of them."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import torch

from recbole_escm2 import limits
from recbole_escm2.errors import UsageError
from recbole_escm2.identity import digest_of
from recbole_escm2.limits import DEPTH, check_extent, read_json
from recbole_escm2.property_files import read_yaml
from recbole_escm2.train import checkpoint
from recbole_escm2.train.checkpoint import load_sealed, save_checkpoint


def nested(depth, inner=0):
    value = inner
    for _ in range(depth):
        value = [value]
    return value


def doubled(times):
    """A list of 2**times values, which takes no memory."""
    value = [0]
    for _ in range(times):
        value = [value, value]
    return value


def chain(length):
    """Each list is in the next one, and all are in the last: the first look at each is near."""
    lists = [[0]]
    for _ in range(length):
        lists.append([lists[-1]])
    return lists


def of_itself():
    value = {}
    value["x"] = [value]
    return value


TOO_MUCH = {
    "deep": (nested(DEPTH + 1), "nests deeper than 50"),
    "very deep": (nested(100_000), "nests deeper than 50"),
    "deep by others": (chain(DEPTH), "nests deeper than 50"),
    "of itself": (of_itself(), "nests deeper than 50"),
    "many": (doubled(30), "more than 10,000,000 values"),
    "many in a dict": ({"a": {"b": doubled(24)}}, "more than 10,000,000 values"),
}


@pytest.mark.parametrize(("value", "words"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_is_too_much(value, words):
    with pytest.raises(ValueError, match=words):
        check_extent(value)


def test_what_is_not():
    for value in (nested(DEPTH), doubled(10), chain(DEPTH - 2), 3, "x", [[]] * 1000, (1, {2})):
        check_extent(value)


def test_leaves_are_looked_at():
    seen = []
    check_extent({"a": [1, (2,)], "b": "x"}, seen.append)
    assert seen == [1, 2, "x"]


FILES = {
    "long": (b" " * (limits.BYTES + 1), "more than 67,108,864 bytes"),
    "deep": (b"[" * 60 + b"]" * 60, "nests deeper than 50"),
    "very deep": (b"[" * 100_000, "nests deeper than 50"),
    "a number of many digits": (b"[" + b"9" * 5000 + b"]", "digits"),
    "no text": (b"\xff", "utf-8"),
    "no JSON": (b"{", "Expecting"),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES)
def test_a_json_file_that_is_too_much_or_none(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / "a.json")


def test_a_json_file_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"ä": [1.5, None, "x"]}))
    assert read_json(tmp_path / "a.json") == {"ä": [1.5, None, "x"]}


CHECKPOINTS = {
    "deep": ({"settings": nested(100)}, "nests deeper than 50"),
    "many values": ({"settings": {"load_col": doubled(30)}}, "more than 10,000,000 values"),
    "one row many times": ({"x": torch.zeros(1).expand(10**12)}, "without values of its own"),
    "no values": ({"x": [torch.zeros(3, device="meta")]}, "without values of its own"),
    "a sparse one": ({"x": torch.zeros(3, 3).to_sparse()}, "without values of its own"),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("state", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_would_take_more_than_it_has(tmp_path, state, words, mapped):
    save_checkpoint(tmp_path / "a.pth", state)
    with pytest.raises(UsageError, match=rf"a\.pth isn't as this program writes it: .*{words}"):
        load_sealed(tmp_path / "a.pth", mapped=mapped)


def test_a_checkpoint_that_is_compressed(tmp_path):
    """Zeros become a thousandth of their size."""
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"x": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    content = packed.read_bytes()
    packed.write_bytes(content + checkpoint._SEAL % digest_of(content).hexdigest().encode())
    assert packed.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(UsageError, match=r"packed\.pth can't be read as plain data"):
        load_sealed(packed)


YAML = {
    "bytes": ("x: " + "a" * 1_000_001, "more than 1,000,000 bytes"),
    "values": ("x: [" + "1," * 100_001 + "]", "more than 100,000 values"),
    "aliases": (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [" + "*a," * 100 + "]\nc: [" + "*b," * 100 + "]",
        "more than 100,000 values",
    ),
    "depth": ("x: " + "[" * 3000 + "]" * 3000, "is not YAML"),
}


@pytest.mark.parametrize(("text", "words"), YAML.values(), ids=YAML)
def test_a_file_of_settings_that_is_too_much(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert re.search(r"a\.yaml", str(caught.value))
