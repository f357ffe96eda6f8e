import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recbole_escm2.data.store as store_module
from recbole_escm2.data.batch import Rows, View
from recbole_escm2.data.open_store import _stored
from recbole_escm2.data.store import (
    PADDING,
    SCHEMA,
    Column,
    Layout,
    NoStoreError,
    Store,
    StoreWriter,
    Table,
    TableWriter,
)


class Shifted:
    """Values that stand behind ``base`` others, which take no room."""

    def __init__(self, values, base):
        self.values, self.base = values, base

    def index_select(self, dim, places):
        return self.values.index_select(dim, places - self.base)


def test_bags_beyond_the_two_thousand_millionth_value(tmp_path):
    base, data = 2**32 + 5, content(40)
    written = TableWriter(tmp_path, "t", LAYOUT)
    written.values = base
    written.append(data["columns"], data["counts"], data["ids"], data["weights"])
    entry = written.close()
    assert entry["values"] == base + len(data["ids"])
    table = Table(tmp_path, "t", {**entry, "values": len(data["ids"])})
    table._bag_values = Shifted(table._bag_values, base)
    _, bags = table.gather(torch.arange(40).flip(0))
    starts = data["counts"].sum(axis=1).cumsum() - data["counts"].sum(axis=1)
    first = [data["ids"][s : s + c] for s, (c, _) in zip(starts, data["counts"], strict=True)]
    ids = dict(bags.split())["b"].ids
    assert ids.tolist() == np.concatenate(first[::-1]).tolist()


LAYOUT = Layout(
    columns=(Column("a"), Column("x", "float"), Column("v", "float", (2,))),
    bags=("b", "c"),
    weighted=True,
    columnar={"click": "uint8"},
)


def content(rows, seed=0):
    """Random rows, and their bags as lists."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (rows, 2)).astype(np.int32)
    total = int(counts.sum())
    return {
        "columns": {
            "a": rng.integers(-(2**31), 2**31, rows).astype(np.int32),
            "x": rng.normal(size=rows).astype(np.float32),
            "v": rng.normal(size=(rows, 2)).astype(np.float32),
            "click": rng.integers(0, 2, rows).astype(np.uint8),
        },
        "counts": counts,
        "ids": rng.integers(1, 99, total).astype(np.int32),
        "weights": rng.normal(size=total).astype(np.float32),
    }


def write(folder, data, pieces=()):
    counts = data["counts"]
    ends = np.concatenate([[0], counts.sum(axis=1).cumsum()])
    with StoreWriter(folder) as store:
        table = store.table("t", LAYOUT)
        for start, end in zip((0, *pieces), (*pieces, len(counts)), strict=True):
            values = slice(ends[start], ends[end])
            table.append(
                {name: column[start:end] for name, column in data["columns"].items()},
                counts[start:end],
                data["ids"][values],
                data["weights"][values],
            )
        number = store.vocabulary(["é", "", "plain"])
        store.commit({"extra": {"of": number}})
    return Store(folder)


def bag_of(data, row, field):
    start = data["counts"][:row].sum() + data["counts"][row, :field].sum()
    values = slice(start, start + data["counts"][row, field])
    return data["ids"][values].tolist(), data["weights"][values].tolist()


def check(table, data, index):
    columns, bags = table.gather(index)
    rows = np.arange(len(data["counts"]))
    chosen = rows[index.numpy() if isinstance(index, torch.Tensor) else index]
    for name in ("a", "x", "v"):
        assert np.array_equal(columns[name].numpy(), data["columns"][name][chosen])
        assert np.array_equal(table.column(name, index).numpy(), data["columns"][name][chosen])
    assert np.array_equal(table.column("click", index), data["columns"]["click"][chosen])
    for field, (name, bag) in enumerate(bags.split()):
        expected = [bag_of(data, row, field) for row in chosen]
        assert name == "bc"[field]
        assert bag.lengths.tolist() == [[len(ids) for ids, _ in expected]]
        assert bag.ids.tolist() == [number for ids, _ in expected for number in ids]
        assert bag.weights.tolist() == [weight for _, weights in expected for weight in weights]
        assert bag.offsets.tolist() == np.cumsum([0, *bag.lengths[0]])[:-1].tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.data())
def test_what_was_written_is_read_back(tmp_path_factory, rows, draw):
    data = content(rows, seed=rows)
    pieces = sorted(draw.draw(st.lists(st.integers(0, rows), max_size=3)))
    table = write(tmp_path_factory.mktemp("s") / "store", data, pieces).tables["t"]
    index = draw.draw(st.lists(st.integers(0, rows - 1), max_size=12))
    check(table, data, torch.tensor(index, dtype=torch.int64))
    check(table, data, slice(*sorted(draw.draw(st.tuples(*[st.integers(0, rows)] * 2)))))


def test_vocabulary_and_schema(tmp_path):
    store = write(tmp_path / "s", content(3))
    vocabulary = store.vocabularies[store.schema["extra"]["of"]]
    assert list(vocabulary) == [PADDING, "é", "", "plain"]
    assert len(vocabulary) == 4
    assert vocabulary.ids["plain"] == 3
    assert vocabulary[[1, 3]].tolist() == ["é", "plain"]


def test_digest_of_a_vocabulary_tells_tokens_and_their_limits_apart(tmp_path):
    digests = set()
    for number, tokens in enumerate((["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab"])):
        with StoreWriter(tmp_path / str(number)) as store:
            store.vocabulary(tokens)
            store.commit({})
        digests.add(Store(tmp_path / str(number)).vocabularies[0].digest)
    assert len(digests) == 4


def test_a_table_without_rows(tmp_path):
    table = write(tmp_path / "s", content(0)).tables["t"]
    check(table, content(0), slice(0, 0))


@pytest.mark.parametrize("name", ["t.rows", "t.bags", "t.click", "vocabulary-0.ends", SCHEMA])
@pytest.mark.parametrize("harm", ["cut", "remove"])
def test_a_damaged_store_is_none(tmp_path, name, harm):
    write(tmp_path / "s", content(9))
    file = tmp_path / "s" / name
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-1] if name != SCHEMA else b"{")
    else:
        file.unlink()
    with pytest.raises(NoStoreError, match="s"):
        Store(tmp_path / "s")


def test_another_format_is_none(tmp_path):
    write(tmp_path / "s", content(2))
    schema = json.loads((tmp_path / "s" / SCHEMA).read_text())
    (tmp_path / "s" / SCHEMA).write_text(json.dumps({**schema, "format": 0}))
    with pytest.raises(NoStoreError, match="another format"):
        Store(tmp_path / "s")


def test_nothing_is_left_without_a_commit(tmp_path):
    with StoreWriter(tmp_path / "s") as store:
        store.table("t", LAYOUT)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_store_is_replaced_as_a_whole_and_its_readers_go_on(tmp_path):
    old = content(6, seed=1)
    store = write(tmp_path / "s", old)
    check(store.tables["t"], old, slice(0, 6))
    new = content(4, seed=2)
    check(write(tmp_path / "s", new).tables["t"], new, slice(0, 4))
    check(store.tables["t"], old, slice(0, 6))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def other_store(folder, tokens=("nail", "screw")):
    with StoreWriter(folder) as store:
        table = store.table("t", Layout((Column("a"),), columnar={"click": "uint8"}))
        table.append({"a": np.array([1, 2]), "click": np.array([0, 1])})
        store.vocabulary(tokens)
        store.commit({})
    return Store(folder)


def test_an_open_store_decodes_its_own_ids_when_it_is_replaced(tmp_path):
    """Every file of it is open from the start: nothing is looked for by its name later on."""
    first = other_store(tmp_path / "s", ["apple", "pear"])
    digest = first.vocabularies[0].digest
    second = other_store(tmp_path / "s")
    assert list(first.vocabularies[0]) == [PADDING, "apple", "pear"]
    assert first.vocabularies[0].ids == {PADDING: 0, "apple": 1, "pear": 2}
    assert list(second.vocabularies[0]) == [PADDING, "nail", "screw"]
    assert digest == first.vocabularies[0].digest != second.vocabularies[0].digest
    shutil.rmtree(tmp_path / "s")
    assert list(second.vocabularies[0]) == [PADDING, "nail", "screw"]
    assert second.tables["t"].column("click", slice(0, 2)).tolist() == [0, 1]
    assert second.tables["t"].packed.tolist() == [[1], [2]]


def test_a_store_that_is_replaced_while_it_is_opened_is_none(tmp_path, monkeypatch):
    """Half of one and half of another would fit by their sizes."""
    other_store(tmp_path / "s", ["apple", "pear"])
    mapped = store_module._mapped

    def replaced_in_between(folder, name, *arguments):
        if name == "vocabulary-0.tokens":
            monkeypatch.setattr(store_module, "_mapped", mapped)
            other_store(folder)
        return mapped(folder, name, *arguments)

    monkeypatch.setattr(store_module, "_mapped", replaced_in_between)
    with pytest.raises(NoStoreError, match="was replaced while it was opened"):
        Store(tmp_path / "s")
    monkeypatch.setattr(store_module, "_mapped", replaced_in_between)
    assert _stored(tmp_path / "s") is not None  # at the next attempt


def test_a_store_that_goes_away_while_it_is_opened_is_none(tmp_path, monkeypatch):
    write(tmp_path / "s", content(3))
    loads = json.loads

    def gone(text):
        shutil.rmtree(tmp_path / "s")
        return loads(text)

    monkeypatch.setattr(store_module.json, "loads", gone)
    with pytest.raises(NoStoreError):
        Store(tmp_path / "s")
    assert _stored(tmp_path / "s") is None


def test_digests_tell_columns_apart_and_dont_depend_on_pieces(tmp_path):
    data = content(9)
    whole = write(tmp_path / "a", data).tables["t"].digests
    assert set(whole) == {"a", "x", "v", "b, c", "click"}
    assert write(tmp_path / "b", data, pieces=(2, 7)).tables["t"].digests == whole
    for name, column in data["columns"].items():
        changed = {**data, "columns": {**data["columns"], name: column.copy()}}
        changed["columns"][name][4] = 1 - column[4]
        other = write(tmp_path / "c", changed).tables["t"].digests
        assert {key for key in whole if whole[key] != other[key]} == {name}
    bags = {"ids": data["ids"] + 1, "weights": -data["weights"], "counts": data["counts"][:, ::-1]}
    for name, other_bags in bags.items():
        other = write(tmp_path / "d", {**data, name: other_bags}).tables["t"].digests
        assert {key for key in whole if whole[key] != other[key]} == {"b, c"}


KILLED = """
import os, signal, sys
from pathlib import Path
from recbole_escm2.data.store import Column, Layout, StoreWriter
import numpy as np
with StoreWriter(Path(sys.argv[1])) as store:
    table = store.table("t", Layout((Column("a"),)))
    table.append({"a": np.arange(1000)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_store_and_the_next_one_cleans_up(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "s")], check=False)
    assert done.returncode == -signal.SIGKILL
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["unfinished", "lock"]
    with pytest.raises(NoStoreError):
        Store(tmp_path / "s")
    write(tmp_path / "s", content(3))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_living_writer_is_left_alone_and_all_others_go(tmp_path):
    """Those of other hosts, and of processes whose number somebody else has by now."""
    with StoreWriter(tmp_path / "s") as first:
        for name in (f".s.{os.getpid()}.unfinished", ".s.elsewhere.1.old.unfinished"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "t.rows").write_bytes(b"1")
        (tmp_path / ".t.1.unfinished").mkdir()
        write(tmp_path / "s", content(3))
        first.table("t", Layout((Column("a"),)))
        assert {path.name for path in tmp_path.iterdir()} == {
            *("s", first.folder.name, f"{first.folder.name}.lock", ".t.1.unfinished")
        }
    assert {path.name for path in tmp_path.iterdir()} == {"s", ".t.1.unfinished"}


# ------------------------------------------------------------------ rows in RecBole's dress


@pytest.fixture
def rows(tmp_path):
    data = content(8)
    table = write(tmp_path / "s", data).tables["t"]
    view = View(("a", "x", "b"), lengths={"b": 2}, scales={"b": 4.0})
    return Rows(table, view, slice(0, 8)), data


def test_rows_of_rows_of_rows(rows):
    shown, data = rows
    part = shown[[7, 1, 2, 5]][1:][torch.tensor([True, False, True])]
    assert part["a"].tolist() == data["columns"]["a"][[1, 5]].tolist()
    assert len(part) == 2
    assert list(part) == ["a", "x", "b"]
    assert shown[2:6][::2]["a"].tolist() == data["columns"]["a"][[2, 4]].tolist()
    assert shown[-1:]["a"].tolist() == data["columns"]["a"][[7]].tolist()
    assert shown[[-1, -3, 0]]["a"].tolist() == data["columns"]["a"][[7, 5, 0]].tolist()


def test_what_is_written_into_a_column_stays_out_of_the_table(rows):
    shown, data = rows
    for name in ("a", "x"):
        column = shown[name]
        column += 1
        assert shown[name].tolist() == data["columns"][name].tolist()


def test_weights_are_divided_by_their_scale(rows):
    shown, data = rows
    batch = shown.batch(torch.tensor([3, 0]))
    expected = [w / 4 for row in (3, 0) for w in bag_of(data, row, 0)[1]]
    assert batch.bags["b"].weights.tolist() == pytest.approx(expected)
    assert batch["b"].shape == (2, 2)
    assert set(batch) == {"a", "x", "b"}


def test_sorting_is_stable_and_by_several_columns(rows):
    shown, data = rows
    shown["first"] = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    shown.sort(["first", "x"], [True, False])
    x = data["columns"]["x"]
    expected = sorted(range(8), key=lambda row: (1 - row % 2, -x[row]))
    assert shown["a"].tolist() == data["columns"]["a"][expected].tolist()
    assert shown["first"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_dropped_column_is_in_no_batch(rows):
    shown, _ = rows
    shown.drop("x")
    assert set(shown.batch([0])) == {"a", "b"}
    with pytest.raises(KeyError):
        shown["x"]
    with pytest.raises(ValueError, match="no column"):
        shown.drop("x")
