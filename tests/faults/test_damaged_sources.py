"""The same damages in the files of every published data set: refused with file and line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from damages import LINE, PLACES, Place, in_header, read, rewrite, with_cell, with_line

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError

_WITHOUT_LINE = r"(isn't text in UTF-8|has no row|has no column|is empty|Empty CSV|numbers)"


def load(tmp_path, place):
    config = Config("ESMM", place.dataset, config_dict={"data_path": str(tmp_path)})
    return EntireSpaceDataset(config)


@pytest.fixture
def damage(tmp_path):
    """Loads a data set whose file has been changed."""

    def call(place: Place, change: Callable[[bytes, Place], bytes]) -> EntireSpaceDataset:
        raw = tmp_path / place.dataset / "raw"
        place.write(raw)
        path = raw / place.file
        rewrite(path, change(read(path), place))
        return load(tmp_path, place)

    return call


def refused(damage, place, change, words):
    with pytest.raises(UsageError) as caught:
        damage(place, change)
    said = str(caught.value)
    assert place.file in said, said
    assert re.search(words, said), said
    assert said.isprintable()


def with_role(role):
    return [name for name, place in PLACES.items() if getattr(place, role) is not None]


HEADED = [name for name, place in PLACES.items() if place.has_header]


@pytest.mark.parametrize("name", with_role("label"))
@pytest.mark.parametrize("cell", ["2", "", "yes", "0.5"])
def test_a_label_that_is_none(damage, name, cell):
    def change(content, place):
        return with_cell(content, place.label, cell.encode(), place.separator)

    refused(damage, PLACES[name], change, rf"[Ll]ine (#)?{LINE}\b")


@pytest.mark.parametrize("name", with_role("number"))
@pytest.mark.parametrize("cell", ["x", "1_0", "inf", "9" * 400])
def test_a_number_that_is_none(damage, name, cell):
    def change(content, place):
        return with_cell(content, place.number, cell.encode(), place.separator)

    refused(damage, PLACES[name], change, rf"[Ll]ine {LINE}\b")


@pytest.mark.parametrize("name", with_role("token"))
@pytest.mark.parametrize("cell", [b"a\0b", b"\xff", b'"a'])
def test_a_token_that_is_none(damage, name, cell):
    def change(content, place):
        return with_cell(content, place.token, cell, place.separator)

    refused(damage, PLACES[name], change, rf"(line|row) ({LINE}|{LINE - 1}|{LINE + 1})\b")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("how", ["too many", "too few", "blanks"])
def test_a_line_that_is_no_row(damage, name, how):
    def change(content, place):
        separator = place.separator.encode()
        return with_line(
            content,
            {
                "too many": lambda line: line.rstrip() + separator + b"1",
                "too few": lambda line: line.rstrip().rpartition(separator)[0],
                "blanks": lambda line: b"  \n" + line,
            }[how],
        )

    refused(damage, PLACES[name], change, rf"line {LINE}\b")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("how", ["nothing", "zeros", "a page", "UTF-16", "another separator"])
def test_a_file_that_is_another(damage, name, how):
    def change(content, place):
        return {
            "nothing": b"",
            "zeros": bytes(len(content)),
            "a page": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
            "UTF-16": content.decode().encode("utf-16"),
            "another separator": content.replace(place.separator.encode(), b";"),
        }[how]

    refused(damage, PLACES[name], change, rf"{_WITHOUT_LINE}|line \d")


@pytest.mark.parametrize("name", [n for n, place in PLACES.items() if ".gz" not in place.file])
def test_a_packed_file_that_is_named_as_text(damage, name):
    refused(damage, PLACES[name], lambda content, _: b"PK\x03\x04" + content, "is a zip file, and")


@pytest.mark.parametrize("name", HEADED)
@pytest.mark.parametrize("how", ["header alone", "no header", "a column twice"])
def test_a_header_that_is_none(damage, name, how):
    def change(content, place):
        return {
            "header alone": content.partition(b"\n")[0] + b"\n",
            "no header": content.partition(b"\n")[2],
            "a column twice": in_header(
                content, lambda names: [names[0], *names[:-1]], place.separator
            ),
        }[how]

    words = "no row below the header|has no column '.*'; it has|column '.*' stands there twice"
    refused(damage, PLACES[name], change, words)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("how", ["mark", "line ends", "no end"])
def test_other_ways_to_write_the_same(damage, tmp_path, name, how):
    place = PLACES[name]
    if place.file.endswith(".ascii") and how == "mark":
        pytest.skip("its publisher writes none, and its first line would be no numbers")

    def change(content, place):
        content = content.replace(b"\r\n", b"\n")
        return {
            "mark": b"\xef\xbb\xbf" + content,
            "line ends": content.replace(b"\n", b"\r\n"),
            "no end": content.rstrip(b"\n"),
        }[how]

    written = damage(place, change).inter_feat.digest()
    other = tmp_path / "other"
    place.write(other / place.dataset / "raw")
    assert load(other, place).inter_feat.digest() == written
