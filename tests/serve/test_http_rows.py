"""Values of JSON as columns, for every kind of field."""

from __future__ import annotations

import pyarrow as pa
import pytest

pytest.importorskip("orjson")
from recbole_escm2.data.schema import Field
from recbole_escm2.serve.http.rows import Refused, columns_of

FIELDS = {
    "token": Field("token"),
    "float": Field("float", "float", numerical=True),
    "tokens": Field("tokens", "token_seq"),
    "numbers": Field("numbers", "float_seq", numerical=True),
    "weighted": Field("weighted", "token_seq", weighted=True),
}


def column(name, *values):
    rows = [{name: value} for value in values]
    return columns_of(rows, [FIELDS[name]], ()).column(0)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("token", ["a", None, "007"], ["a", None, "007"]),
        ("token", [7, None], [7, None]),
        ("token", [7, "7", 7.0, True, None], ["7", "7", "7", "true", None]),
        ("token", [2**63, 1], [str(2**63), "1"]),
        ("token", [None, None], [None, None]),
        ("float", [1, 2.5, None, 2**60], [1.0, 2.5, None, float(2**60)]),
        ("float", [True, 1], [1.0, 1.0]),
        ("float", ["1.5", 2], ["1.5", "2.0"]),
        ("float", [2**64 - 1, None], [float(2**64), None]),
        ("tokens", [["a", "b"], [], None, ["c"]], [["a", "b"], [], [], ["c"]]),
        ("tokens", [[1, 2], [3]], [[1, 2], [3]]),
        ("tokens", [[1, "b"], [2.0]], [["1", "b"], ["2"]]),
        ("tokens", [None, []], [[], []]),
        ("numbers", [[1, 2.5, None], None], [[1.0, 2.5, None], []]),
    ],
)
def test_values_are_read_by_their_own_type(name, values, expected):
    assert column(name, *values).to_pylist() == expected


def test_weights_stand_beside_tokens_or_not_at_all():
    got = column("weighted", [["a", 2.5], "b", ["c", None]], None, [["d", 1]])
    pairs = [[("a", 2.5), ("b", None), ("c", None)], [], [("d", 1.0)]]
    assert got.to_pylist() == [[{"id": i, "weight": w} for i, w in row] for row in pairs]
    assert got.type.value_type.field("weight").type == pa.float64()


@pytest.mark.parametrize(
    ("name", "value", "row", "problem"),
    [
        ("tokens", ["a", {"b": 1}], 2, "it is an object"),
        ("tokens", "a", 2, "it is a text, and no list"),
        ("numbers", [1, [2]], 2, "it is a list"),
        ("weighted", [["a", "2"]], 2, "a weight is a number, and this is a text"),
        ("weighted", [["a", True]], 2, "a weight is a number, and this is true or false"),
        ("weighted", [["a", -1e39]], 2, "a weight must lie within ±3.4e+38"),
        ("weighted", [["a", 1, 2]], 2, "it is a list"),
        ("weighted", [[["a"], 1]], 2, "it is a list"),
        ("weighted", [[]], 2, "it is a list"),
        ("weighted", {"a": 1}, 2, "it is an object, and no list"),
        ("token", 2.0**53, 2, "the number is too large to be exact: write it as a text"),
    ],
)
def test_what_is_of_another_type_is_told_by_its_row(name, value, row, problem):
    with pytest.raises(Refused) as refused:
        column(name, None, value, None)
    (fault,) = refused.value.faults
    assert (fault["row"], fault["problem"]) == (row, problem)
    assert refused.value.status == 422
