"""Requests to ``serve`` that can't be scored: the status, and what the answer says of them."""

from __future__ import annotations

import json
import re

import pytest
from common import trained_on_all_kinds

pytest.importorskip("fastapi", reason="needs the extra [serve]")
from recbole_escm2.serve.http.rows import Refused
from recbole_escm2.serve.http.served import load

MOST = 5
ROW = {
    "user_id": "3",
    "item_id": 7,
    "when": 1_700_000_001,
    "price": 2.5,
    "genres": ["g1", "g2"],
    "past": [["p1", 0.5], "p2"],
    "prices": [0.5, -1],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model of a table with a field of every kind."""
    return load(str(trained_on_all_kinds(tmp_path_factory.mktemp("served"))), None, "cpu", {})


BODIES = {
    "nothing": (b"", 400, "no JSON"),
    "half": (b'{"rows": [{', 400, "no JSON"),
    "no text": (b"\xff\xfe{}", 400, "no JSON"),
    "UTF-16": ('{"rows": []}'.encode("utf-16"), 400, "no JSON"),
    "a form": (b"rows=1&x=2", 400, "no JSON"),
    "brackets": (b"[" * 100_000, 400, "no JSON"),
    "objects": (b'{"rows":' * 50_000, 400, "no JSON"),
    "NaN": (b'{"rows": [NaN]}', 400, "no JSON"),
    "two bodies": (b'{"rows": []}{"rows": []}', 400, "no JSON"),
    "half a character": (b'{"rows": ["\\ud800"]}', 400, "no JSON"),
    "a number of many digits": (b'{"rows": [' + b"9" * 400 + b"]}", 400, "no JSON"),
    "null": (b"null", 422, "the body is null"),
    "a list": (b"[]", 422, "the body is a list"),
    "a text": (b'"rows"', 422, "the body is a text"),
    "a number": (b"3", 422, "the body is a number"),
    "no rows": (b"{}", 422, "must have one key, rows"),
    "rows of another kind": (b'{"rows": {}}', 422, "must have one key, rows"),
    "a further key": (b'{"rows": [], "x": 1}', 422, "must have one key, rows"),
    "rows twice": (b'{"rows": [], "rows": []}', 422, "the key 'rows' twice"),
    "a field twice": (
        json.dumps({"rows": [ROW]}).replace('"price"', '"user_id": "4", "price"').encode(),
        422,
        "the key 'user_id' twice",
    ),
    "many rows": (json.dumps({"rows": [ROW] * (MOST + 1)}).encode(), 413, "6 rows, and a request"),
}


def answer(served, body):
    [own] = served.answers([body], MOST)
    if isinstance(own, Exception):
        raise own
    return own


def refused(served, body):
    with pytest.raises(Refused) as caught:
        answer(served, body)
    json.dumps(caught.value.faults, allow_nan=False)
    assert caught.value.error.isprintable()
    assert len(caught.value.error) < 2_000
    return caught.value


@pytest.mark.parametrize(("body", "status", "words"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request(served, body, status, words):
    found = refused(served, body)
    assert found.status == status
    assert re.search(words, found.error), found.error


ROWS = {"null": None, "a list": [], "a text": "x", "a number": 3, "true or false": True}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_that_is_none(served, row):
    found = refused(served, json.dumps({"rows": [ROW, row]}).encode())
    assert found.status == 422
    assert found.error.startswith("row 2: a row is an object with a value for each field")


FIELDS = {
    "user_id": [1.5, ["3"], {"x": 1}, "a\0b", 2.0**60],
    "item_id": [[7], {}, 0.1],
    "when": ["today", [1], {}, 1e300, "inf", "nan "],
    "price": ["x", "1_0", "1,5", [2.5], {"a": 1}, "0x1", "", -1e300],
    "genres": ["g1", 3, {"g1": 1}, [["g1"]], [{"x": 1}], ["g\0"], [1.5]],
    "past": ["p1", 3, {}, [["p1", "2"]], [["p1", True]], [["p1", 1, 2]], [[]], [[["p1"], 1]]],
    "prices": [1, "1 2", {}, [[1]], [{}], ["x"], [1e300]],
}
#: What is a number, and is read as one.
READ = {("price", ""), ("when", "nan ")}


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f, values in FIELDS.items() for v in values if (f, str(v)) not in READ],
)
def test_a_value_of_another_kind_is_told_by_row_and_field(served, field, value):
    rows = [ROW, {**ROW, field: value}]
    found = refused(served, json.dumps({"rows": rows}).encode())
    assert found.status == 422
    assert found.error.startswith(f"row 2, field '{field}': "), found.error
    (fault,) = found.faults
    assert (fault["row"], fault["field"]) == (2, field)
    assert fault["expected"] in found.error


@pytest.mark.parametrize("field", ROW)
def test_a_row_without_a_field(served, field):
    rows = [ROW, {name: value for name, value in ROW.items() if name != field}]
    found = refused(served, json.dumps({"rows": rows}).encode())
    assert found.error.startswith(f"row 2, field '{field}': the row lacks the field")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("userid", r"\(did you mean user_id\?\)"),
        ("<script>alert(1)</script>", "no such field"),
        ("__class__", "no such field"),
        ("../../x", "no such field"),
        ("\x1b[2J", "no such field"),
        ("x" * 10_000, "no such field"),
    ],
)
def test_a_field_that_the_model_hasnt(served, name, shown):
    found = refused(served, json.dumps({"rows": [{**ROW, name: 1}]}).encode())
    assert found.status == 422
    assert re.search(shown, found.error), found.error


def test_what_is_right_is_scored(served):
    scored = answer(served, json.dumps({"rows": [ROW] * MOST}).encode())
    assert len({json.dumps(row) for row in json.loads(scored.body)["rows"]}) == 1
