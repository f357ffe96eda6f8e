"""The builder: what is done once for every source, on batches made here."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_escm2.data.build import Rules, build
from recbole_escm2.data.schema import Chunk, Field, Join, Labels, Schema
from recbole_escm2.data.store import PADDING, UNKNOWN, Store
from recbole_escm2.errors import UsageError

LABELS = Labels("click", "conversion")


def chunk(part=None, table="inter", **columns):
    if table == "inter":
        rows = len(next(iter(columns.values())))
        columns = {"click": [0] * rows, "conversion": [0] * rows, **columns}
    return Chunk(pa.RecordBatch.from_pydict(columns), table, part, f"{part or table}.file")


def built(tmp_path, schema, chunks, name="store", **rules):
    build(schema, chunks, tmp_path / name, Rules(**rules))
    return Store(tmp_path / name)


def column(store, name, table="inter"):
    return store.tables[table].column(name, slice(0, len(store.tables[table]))).tolist()


def tokens(store, field):
    (number,) = (e["vocabulary"] for e in store.schema["fields"] if e["name"] == field)
    return list(store.vocabularies[number])


def test_tokens_of_all_rows_are_numbered_as_they_appear(tmp_path):
    schema = Schema((Field("city"),), LABELS)
    chunks = [chunk(city=["b", None, "a"]), chunk(city=["c", "a", "b"])]
    store = built(tmp_path, schema, chunks)
    assert tokens(store, "city") == [PADDING, "b", "a", "c"]
    assert column(store, "city") == [1, 0, 2, 3, 2, 1]
    assert store.schema["sizes"] is None


def test_only_train_has_a_say_in_its_vocabulary(tmp_path):
    schema = Schema((Field("city"),), LABELS, vocabulary="train")
    chunks = [
        chunk("test", city=["z", "a", None]),
        chunk("train", city=["b", "a"]),
        chunk("valid", city=["b", "y"]),
        chunk("train", city=["a", "c"]),
    ]
    for name, given_chunks in (("list", chunks), ("stream", iter(chunks))):
        store = built(tmp_path, schema, given_chunks, name)
        assert tokens(store, "city") == [PADDING, UNKNOWN, "b", "a", "c"]
        assert column(store, "city") == [2, 3, 3, 4, 2, 1, 1, 3, 0]  # train, valid, test
        assert store.schema["sizes"] == [4, 2, 3]
        assert store.vocabularies[0].unknown == 1


def test_rare_tokens_of_train_are_unknown(tmp_path):
    schema = Schema((Field("city"),), LABELS, vocabulary="train")
    chunks = [chunk("train", city=["b", "a", "a"]), chunk("valid", city=["b", "b"])]
    store = built(tmp_path, schema, chunks, min_count=2)
    assert tokens(store, "city") == [PADDING, UNKNOWN, "a"]
    assert column(store, "city") == [1, 2, 2, 1, 1]


def test_ids_in_the_order_of_counts_do_not_depend_on_that_of_the_rows(tmp_path):
    schema = Schema((Field("city"),), LABELS, vocabulary="train", order="count")
    for name, order in (("a", 1), ("b", -1)):
        chunks = [chunk("train", city=[3, 10, 9, 9, 3, 7][::order]), chunk("test", city=[7, 5])]
        store = built(tmp_path, schema, chunks, name)
        assert tokens(store, "city") == [PADDING, UNKNOWN, "3", "9", "7", "10"]
        assert column(store, "city")[-2:] == [4, 1]


def test_a_list_counts_once_for_a_token_that_it_repeats(tmp_path):
    fields = (Field("tags", "token_seq"), Field("ages", "token_seq", table="user"), USERS[0])
    schema = Schema(fields, LABELS, vocabulary="train", joins=(JOIN,))
    chunks = [
        chunk("train", tags=[["b", "b", "a"], ["a"], []], user=["u1", "u1", "u2"]),
        chunk(table="user", user=["u1", "u2"], ages=[["x"], ["y", "y", "y"]]),
    ]
    store = built(tmp_path, schema, chunks, min_count=2)
    assert tokens(store, "tags") == [PADDING, UNKNOWN, "a"]
    assert tokens(store, "ages") == [PADDING, UNKNOWN, "x"]


def test_the_report_has_what_is_unknown_and_what_is_lacking(tmp_path):
    fields = (*USERS, Field("tags", "token_seq"), Field("old", "token_seq", table="user"))
    schema = Schema(fields, LABELS, vocabulary="train", joins=(JOIN,))
    schema.report["mine"] = 7
    chunks = [
        chunk("train", user=["u1", "u0", "u1", "u9"], tags=[["a", "b"], ["a"], [], ["a", "a"]]),
        chunk("test", user=["u2", None], tags=[["c", "a"], ["c"]]),
        chunk(
            table="user",
            user=["u2", "u0", "u1", "u1"],
            age=["old", "young", None, "x"],
            old=[["q", "r"], ["q"], ["q", "s", "q"], ["q"]],
        ),
    ]
    build(schema, iter(chunks), tmp_path / "store", Rules(min_count=2))
    store = Store(tmp_path / "store")
    report = store.schema["report"]
    assert report["mine"] == 7
    assert report["parts"]["valid"] == {"rows": 0, "clicks": 0, "conversions": 0}

    def counted(name):
        found = report["fields"][name]
        by_part = {key: tuple(found[key].values()) for key in ("lacking", "values", "unknown")}
        return (found["vocabulary"], found["seen"], *by_part.values())

    # lacking, values and unknown ones in train, valid and test
    assert counted("user") == (1, 3, (0, 0, 1), (4, 0, 1), (2, 0, 1))
    assert counted("tags") == (1, 2, (1, 0, 0), (5, 0, 3), (1, 0, 2))
    assert counted("age") == (0, 1, (3, 0, 1), (1, 0, 1), (1, 0, 1))
    assert counted("old") == (2, 2, (1, 0, 1), (7, 0, 2), (0, 0, 1))
    unmatched = {"train": 1, "valid": 0, "test": 1}
    assert report["joins"] == {"user": {"rows": 3, "repeated": 1, "unmatched": unmatched}}
    said = " ".join(text for _, text in store.schema["notes"])
    assert "1 rows of 'user' repeat their user" in said
    assert "1 of 4 impressions (train) have no row in 'user' by user" in said
    assert "field age: no value of test is in the vocabulary of train" in said
    assert "field tags" not in said


def test_a_row_that_repeats_its_key_is_not_counted(tmp_path):
    schema = Schema(USERS, LABELS, vocabulary="train", joins=(JOIN,))
    chunks = [
        chunk("train", user=["u1", "u1"]),
        chunk(table="user", user=["u1", "u1"], age=["old", "young"]),
    ]
    store = built(tmp_path, schema, chunks)
    assert tokens(store, "age") == [PADDING, UNKNOWN, "old"]


def test_a_joined_table_without_a_row_has_no_value(tmp_path):
    schema = Schema(USERS, LABELS, vocabulary="train", joins=(JOIN,), leave_out="unload_col")
    none = pa.array([], pa.string())
    chunks = [chunk("train", user=["u1", "u0"]), chunk(table="user", user=none, age=none)]
    for name, given_chunks in (("list", chunks), ("stream", iter(chunks))):
        with pytest.raises(UsageError, match="the field 'age' has no value in any row of train"):
            built(tmp_path, schema, given_chunks, name)


@pytest.mark.parametrize("table", ["inter", "common"])
def test_rare_users_are_told_apart(tmp_path, table):
    """All have the id of unknown ones, and metrics per user are over each of them."""
    user = Field("user", origin="user_id", table=table)
    other = Field("group-user")  # of the name that the column would have
    joins = (Join("common", "key"),) if table == "common" else ()
    schema = Schema((user, other), LABELS, vocabulary="train", group="user", joins=joins)
    users = {"k0": "u0", "k1": None, "k2": "u2", "k3": "u0"}
    test, train = ["k0", "k9", "k1", "k3", "k2"], ["k2", "k0"]
    chunks = [
        chunk(part, key=keys, user=[users.get(key) for key in keys], **{"group-user": keys})
        for part, keys in (("test", test), ("train", train))
    ]
    if table == "common":
        chunks.append(chunk(table="common", key=[*users], user=[*users.values()]))
    store = built(tmp_path, schema, iter(chunks), min_count=9)
    group = column(store, store.schema["group"])
    zero, two = group[1], group[0]
    assert {zero, two} == {1, 2}
    assert group == [two, zero, zero, 0, 0, zero, two]
    assert column(store, "group-user") == [1] * 7


def test_what_a_stream_raises_comes_through(tmp_path):
    def faulty():
        yield chunk(city=["a"])
        raise UsageError("line 7 is no line")

    with pytest.raises(UsageError, match="line 7"):
        built(tmp_path, Schema((Field("city"),), LABELS), faulty())
    assert list(tmp_path.iterdir()) == []


def test_bars_show_how_far_it_is(tmp_path, capsys):
    schema = Schema((Field("city"),), LABELS, size=200, unit="B")
    halves = [dataclasses.replace(chunk(city=["a", "b"]), size=100) for _ in range(2)]
    built(tmp_path, schema, halves, progress=True)
    shown = capsys.readouterr().err
    assert "reading: 100%" in shown
    assert "200/200 [" in shown
    assert "writing: 100%" in shown
    assert "4.00/4.00 [" in shown


def test_fields_may_share_a_vocabulary_of_text_and_numbers(tmp_path):
    schema = Schema((Field("a", vocabulary="v"), Field("b", vocabulary="v")), LABELS)
    store = built(tmp_path, schema, [chunk(a=[7, 8], b=["8", "9"])])
    assert tokens(store, "a") == tokens(store, "b") == [PADDING, "7", "8", "9"]
    assert column(store, "a") == [1, 2]
    assert column(store, "b") == [2, 3]


def test_lists_are_bags_with_their_weights(tmp_path):
    pairs = pa.list_(pa.struct([("id", pa.string()), ("weight", pa.float32())]))
    schema = Schema((Field("w", "token_seq", weighted=True), Field("v", "token_seq")), LABELS)
    rows = {
        "w": pa.array([[("x", 2.0), ("y", 4.0)], None, [(None, 9.0), ("x", 6.0)]], pairs),
        "v": pa.array([["q"], ["r", "q", None], []]),
    }
    store = built(tmp_path, schema, [chunk(**rows)])
    _, bags = store.tables["inter"].gather(slice(0, 3))
    found = dict(bags.split())
    assert found["w"].lengths.tolist() == [[2, 0, 1]]
    assert found["w"].ids.tolist() == [1, 2, 1]
    assert found["w"].weights.tolist() == [2.0, 4.0, 6.0]
    assert found["v"].lengths.tolist() == [[1, 2, 0]]
    assert found["v"].ids.tolist() == [1, 2, 1]
    entries = {entry["name"]: entry for entry in store.schema["fields"]}
    assert entries["w"]["scale"] == 4.0
    assert "scale" not in entries["v"]
    assert [entries[name]["length"] for name in "wv"] == [2, 2]


def test_a_map_is_a_weighted_list(tmp_path):
    schema = Schema((Field("w", "token_seq", weighted=True),), LABELS)
    rows = pa.array([[("x", 1.5)], [], [("y", 1.0), ("x", 0.5)]], pa.map_("string", "double"))
    store = built(tmp_path, schema, iter([chunk(w=rows)]))
    bag = dict(store.tables["inter"].gather(slice(0, 3))[1].split())["w"]
    assert bag.ids.tolist() == [1, 2, 1]
    assert bag.weights.tolist() == [1.5, 1.0, 0.5]


def test_numbers_that_are_missing_are_the_mean_of_train(tmp_path):
    schema = Schema((Field("x", "float"),), LABELS, vocabulary="train")
    chunks = [chunk("train", x=[1.0, None, 5.0]), chunk("test", x=[float("nan"), 100.0])]
    store = built(tmp_path, schema, iter(chunks))
    assert column(store, "x") == [1.0, 3.0, 5.0, 3.0, 100.0]


def test_lists_of_numbers_are_padded(tmp_path):
    pairs = pa.list_(pa.list_(pa.float32(), 2))
    schema = Schema((Field("x", "float_seq"), Field("p", "float_seq")), LABELS)
    rows = {"x": [[1.0], [2.0, 3.0], []], "p": pa.array([[[1, 2]], [], [[3, 4], [5, 6]]], pairs)}
    store = built(tmp_path, schema, [chunk(**rows)])
    assert column(store, "x") == [[1, 0], [2, 3], [0, 0]]
    assert column(store, "p") == [[[1, 2], [0, 0]], [[0, 0], [0, 0]], [[3, 4], [5, 6]]]


def test_time_is_kept_to_the_second(tmp_path):
    schema = Schema((Field("t", "float"),), LABELS, time="t")
    store = built(tmp_path, schema, [chunk(t=[1_700_000_001, 1_700_000_000]), chunk(t=[2e9])])
    assert column(store, "t")[:2] == [1.0, 0.0]


USERS = (Field("user", origin="user_id"), Field("age", origin="user", table="user"))
JOIN = Join("user", "user")


def test_joined_rows_lie_in_the_order_of_the_ids(tmp_path):
    schema = Schema(USERS, LABELS, group="user", joins=(JOIN,))
    chunks = [
        chunk(user=["u1", "u0", None, "u1"]),
        chunk(table="user", user=["u2", "u0", "u2"], age=["old", "young", "none"]),
    ]
    store = built(tmp_path, schema, chunks)
    assert tokens(store, "user") == [PADDING, "u1", "u0", "u2"]
    assert tokens(store, "age")[1:] == ["old", "young", "none"]
    assert column(store, "age", "user") == [0, 0, 2, 1]
    assert column(store, "user") == [1, 2, 0, 1]
    assert store.schema["joins"] == [{"table": "user", "key": "user"}]
    assert "1 rows of 'user' repeat their user" in store.schema["notes"][0][1]


def test_rows_of_rare_keys_keep_what_is_joined(tmp_path):
    """u0 and u2 share the id of unknown users, and have their own ages."""
    schema = Schema(USERS, LABELS, vocabulary="train", group="user", joins=(JOIN,))
    chunks = [
        chunk(table="user", user=["u2", "u0", "u1"], age=["old", "young", "old"]),
        chunk("train", user=["u1", "u0", "u1", "u9"]),
        chunk("test", user=["u2"]),
    ]
    store = built(tmp_path, schema, iter(chunks), min_count=2)
    assert tokens(store, "user") == [PADDING, UNKNOWN, "u1"]
    assert column(store, "user") == [2, 1, 2, 1, 1]
    # old: two impressions of train have it; young: one has
    assert tokens(store, "age") == [PADDING, UNKNOWN, "old"]
    (join,) = store.schema["joins"]
    rows = store.tables["inter"].column(join["key"], slice(0, 5))
    ages = store.tables["user"].column("age", rows.long())
    assert ages.tolist() == [2, 1, 2, 0, 2]


def test_what_train_does_not_refer_to_is_unknown(tmp_path):
    schema = Schema(USERS, LABELS, vocabulary="train", joins=(JOIN,))
    chunks = [
        chunk("train", user=["u1", "u1"]),
        chunk("test", user=["u2", "u1"]),
        chunk(table="user", user=["u2", "u1"], age=["old", "young"]),
    ]
    store = built(tmp_path, schema, iter(chunks))
    assert tokens(store, "age") == [PADDING, UNKNOWN, "young"]
    rows = store.tables["inter"].column(store.schema["joins"][0]["key"], slice(0, 4))
    assert store.tables["user"].column("age", rows.long()).tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("vocabulary", ["all", "train"])
def test_a_group_that_is_no_feature(tmp_path, vocabulary):
    schema = Schema((Field("ad"),), LABELS, vocabulary=vocabulary, group="search")
    chunks = [
        chunk(part, ad=["a"] * len(own), search=own)
        for part, own in (("train", ["s7", "s9", "s7"]), ("test", ["s8", "s9", None]))
    ]
    store = built(tmp_path, schema, chunks)
    assert column(store, store.schema["group"]) == [1, 2, 1, 3, 2, 0]
    assert [entry["name"] for entry in store.schema["fields"]] == ["ad"]
    assert "search" not in store.tables["inter"].fields


def test_a_key_that_is_no_feature_and_a_group_that_is_joined(tmp_path):
    fields = (Field("user", origin="user_id", table="common"),)
    schema = Schema(fields, LABELS, group="user", joins=(Join("common", "key"),))
    chunks = [
        chunk(key=["k2", "k1", "k2", "k3"]),
        chunk(table="common", key=["k1", "k2", "k1"], user=["a", "b", "c"]),
    ]
    store = built(tmp_path, schema, iter(chunks))
    assert tokens(store, "user")[:3] == [PADDING, "a", "b"]
    assert column(store, "user") == [2, 1, 2, 0]  # of the group, columnar


@pytest.mark.parametrize("value", [None, 2, -1, 0.5])
def test_a_faulty_label_names_file_and_row(tmp_path, value):
    schema = Schema((Field("city"),), LABELS)
    good, bad = chunk(city=["a"] * 3), chunk("train", city=["a"] * 3, click=[0.0, value, 1.0])
    with pytest.raises(UsageError, match=r"^train.file: column 'click' must hold 0 or 1 .* row 2"):
        built(tmp_path, schema, [bad, good])
    assert list(tmp_path.iterdir()) == []


def test_conversions_without_click(tmp_path):
    schema = Schema((Field("city"),), LABELS)
    unclicked = [chunk(city=["a", "b", "c"], click=[1, 0, 0], conversion=[1, 1, 0])]
    store = built(tmp_path, schema, unclicked)
    assert column(store, "city") == [1, 2]
    assert tokens(store, "city")[1:] == ["a", "c"]
    assert (
        "1 impressions have a conversion without a click: inter.file row 2. They are left out"
        in (store.schema["notes"][0][1])
    )
    store = built(tmp_path, Schema((Field("city"),), LABELS), unclicked, "u",
                  conversion_without_click="unconvert")  # fmt: skip
    assert column(store, "conversion") == [1, 0, 0]
    with pytest.raises(UsageError, match=r"row 2\. conversion_without_click: drop leaves them"):
        built(tmp_path, schema, unclicked, "r", conversion_without_click="raise")


def test_no_conversion_column(tmp_path):
    schema = Schema((Field("city"),), Labels("click"))
    rows = pa.RecordBatch.from_pydict({"city": ["a", "b"], "click": [True, False]})
    store = built(tmp_path, schema, [Chunk(rows)])
    assert column(store, "click") == [1, 0]
    assert "conversion" not in store.tables["inter"].fields
    assert store.schema["report"]["parts"]["all"] == {"rows": 2, "clicks": 1, "conversions": 0}


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no impression"):
        built(tmp_path, Schema((Field("city"),), LABELS), [])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 3))
def test_pieces_and_memory_dont_matter(tmp_path_factory, seed, split, min_count):
    """However the rows come, in memory or as a stream, the store has the same bytes."""
    rng = np.random.default_rng(seed)
    tmp_path = tmp_path_factory.mktemp("built")
    parts = ("train", "valid", "test") if split else (None,)
    fields = (*USERS, Field("tags", "token_seq"), Field("x", "float"))
    rows = {
        part: pa.RecordBatch.from_pydict(
            {
                # one at least of those in the joined table, without which it is refused
                "user": ["u1", *(f"u{n}" if n else None for n in rng.integers(0, 9, 19))],
                "tags": [[f"t{k}" for k in rng.integers(0, 5, n)] for n in rng.integers(0, 4, 20)],
                "x": rng.normal(size=20),
                "click": rng.integers(0, 2, 20),
                "conversion": rng.integers(0, 2, 20),
            }
        )
        for part in parts
    }
    users = pa.RecordBatch.from_pydict({"user": [f"u{n}" for n in range(4)], "age": list("abca")})
    whole = [Chunk(rows[part], part=part) for part in parts] + [Chunk(users, "user")]
    pieces = [
        Chunk(piece.rows.slice(start, 7), piece.table, piece.part)
        for piece in whole
        for start in range(0, len(piece.rows), 7)
    ]
    folders = []
    for name, chunks in (("a", whole), ("b", iter(pieces)), ("c", iter(whole))):
        schema = Schema(fields, LABELS, vocabulary="train" if split else "all", group="user",
                        joins=(JOIN,))  # fmt: skip
        built(tmp_path, schema, chunks, name, min_count=min_count)
        folders.append(tmp_path / name)
    names = sorted(path.name for path in folders[0].iterdir())
    for other in folders[1:]:
        assert names == sorted(path.name for path in other.iterdir())
        for name in names:
            # Means are summed in another order, and notes name the row of a chunk.
            if name not in ("schema.json", "report.md"):
                assert (folders[0] / name).read_bytes() == (other / name).read_bytes(), name
