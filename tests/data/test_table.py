"""Tables as data sets: what their types mean, how they are split, and what is wrong with them."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, save_table
from recbole_escm2.data.schema import PARTS
from recbole_escm2.data.sources import table as source
from recbole_escm2.data.store import PADDING, UNKNOWN
from recbole_escm2.errors import UsageError

WRITERS = {
    "parquet": pa.parquet.write_table,
    "csv": pa.csv.write_csv,
    "arrow": lambda table, path: pa.feather.write_feather(table, str(path), compression="lz4"),
    "feather": lambda table, path: pa.feather.write_feather(table, str(path)),
}


def impressions(rows=60):
    """What the atomic files of ``toy`` hold, with the types that a table has."""
    n, pair = np.arange(rows), np.random.default_rng(3).permutation(rows)
    return pa.table(
        {
            "user_id": [f"u{p // 10}" for p in pair],
            "item_id": [f"i{p % 10}" for p in pair],
            "row": [f"r{i}" for i in n],
            "click": n % 3 == 0,
            "conversion": (n % 6 == 0).astype(np.int8),
        }
    )


class Mine:
    """A data set ``mine`` of tables."""

    def __init__(self, data_path):
        self.data_path = data_path
        self.folder = data_path / "mine"
        self.folder.mkdir()

    def write(self, table, name="mine", suffix="parquet", parts=1):
        path = self.folder / f"{name}.{suffix}"
        if parts == 1:
            WRITERS[suffix](table, path)
        else:
            path.mkdir()
            for part, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
                WRITERS[suffix](table.take(pa.array(rows)), path / f"part-{part}.{suffix}")
        return path

    def dataset(self, model="ESMM", **given):
        given = {"data_path": str(self.data_path), **given}
        return EntireSpaceDataset(Config(model, "mine", config_dict=given))

    def build(self, *model, **given):
        return self.dataset(*model, **given).build()


@pytest.fixture
def mine(tmp_path):
    return Mine(tmp_path)


def column(dataset, name):
    return dataset.inter_feat[name].tolist()


def tokens(dataset, field):
    return list(dataset.field2id_token[field])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_table_is_what_atomic_files_are(mine, toy, suffix, parts):
    mine.write(impressions(), suffix=suffix, parts=parts)
    for ours, theirs in zip(mine.build(), toy.build(), strict=True):
        batch, expected = ours[:], theirs[:]
        assert {*batch} == {*expected}
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert np.array_equal(ours.truth.user, theirs.truth.user)
        for field in ("user_id", "item_id", "row"):
            assert tokens(ours, field) == tokens(theirs, field)


def test_a_table_streams(mine):
    mine.write(impressions(), parts=4)
    config = Config("ESMM", "mine", config_dict={"data_path": str(mine.data_path)})
    _, chunks = source.read(config)
    first = next(chunks)
    assert first.file.endswith("part-0.parquet")
    assert len(first.rows) == 15
    assert sum(len(chunk.rows) for chunk in chunks) == 45


TYPES = {
    "text": (pa.array(["b", None, "a"]), "token", [1, 0, 2], ["b", "a"]),
    "large text": (pa.array(["b", None, "a"], pa.large_string()), "token", [1, 0, 2], ["b", "a"]),
    "category": (pa.array(["b", None, "a"]).dictionary_encode(), "token", [1, 0, 2], ["b", "a"]),
    "whole": (pa.array([7, 5, None], pa.int16()), "token", [1, 2, 0], ["7", "5"]),
    "hash": (pa.array([2**64 - 1, 5, 5], pa.uint64()), "token", [1, 2, 2], [str(2**64 - 1), "5"]),
    "truth": (pa.array([True, False, None]), "token", [1, 2, 0], ["true", "false"]),
    "number": (pa.array([0.5, None, 1.5]), "float", [0.5, 1.0, 1.5], None),
    "decimal": (pa.array([1, 2, 3]).cast(pa.decimal128(22, 1)), "float", [1.0, 2.0, 3.0], None),
    "list": (
        pa.array([["x", "y"], None, ["y"]]), "token_seq", [[1, 2], [0, 0], [2, 0]], ["x", "y"],
    ),
    "large list": (
        pa.array([[3, 4], [], [4]], pa.large_list(pa.int64())),
        "token_seq", [[1, 2], [0, 0], [2, 0]], ["3", "4"],
    ),
    "vector": (
        pa.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.5]], pa.list_(pa.float32(), 2)),
        "float_seq", [[1, 2], [3, 4], [0, 0.5]], None,
    ),
    "weighted": (
        pa.array([[("x", 1.0), ("y", 3.0)], [], [("x", 2.0)]], pa.map_("string", "float")),
        "token_seq", [[2, 1], [0, 0], [1, 0]], ["x", "y"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TYPES)
def test_types_come_from_the_file(mine, case):
    values, kind, expected, vocabulary = TYPES[case]
    mine.write(pa.table({"it": values, "click": [1, 1, 0], "conversion": [0, 1, 0]}))
    dataset = mine.dataset()
    assert dataset.field2type["it"].value == kind
    assert column(dataset, "it") == expected
    if vocabulary:
        assert tokens(dataset, "it") == [PADDING, *vocabulary]
    batch = dataset[:]
    if case == "weighted":  # over the mean of all weights, 2
        assert batch.bags["it"].weights.tolist() == [0.5, 1.5, 1.0]


def test_numerical_features_and_their_scale(mine):
    mine.write(pa.table({"age": [20, None, 40, 60], "click": [1, 0, 1, 0], "conversion": [0] * 4}))
    raw = mine.dataset(numerical_features=["age"], standardize=False)
    assert column(raw, "age") == [[20, 1], [40, 1], [40, 1], [60, 1]]
    usual = mine.dataset(numerical_features=["age"])
    deviation = (800 / 3) ** 0.5
    expected = [[value / deviation, 1] for value in (-20, 0, 0, 20)]
    assert np.allclose(column(usual, "age"), expected)
    (entry,) = (entry for entry in usual.store.schema["fields"] if entry["name"] == "age")
    assert (entry["mean"], entry["deviation"]) == (40, pytest.approx(deviation))
    scaled = mine.dataset(numerical_features=["age"], normalize_field=["age"])
    assert column(scaled, "age") == [[0, 1], [0.5, 1], [0.5, 1], [1, 1]]
    assert mine.dataset().field2type["age"].value == "token"


def test_numbers_that_are_no_feature_are_named(mine, caplog):
    mine.write(pa.table({"age": [0.5], "city": ["a"], "click": [1], "conversion": [0]}))
    with caplog.at_level("INFO"):
        text = str(mine.dataset())
    assert "numbers are features where numerical_features names them: age" in caplog.text
    assert "features: city" in text


def test_a_token_of_a_csv_file_is_what_stands_there(mine):
    lines = ["zip,price,click,conversion", "007,1.5,1,0", "7,,0,0", "12,2,1,1", ",3,0,0"]
    (mine.folder / "mine.csv").write_text("\n".join(lines) + "\n")
    dataset = mine.dataset()
    assert tokens(dataset, "zip") == [PADDING, "007", "7", "12"]
    assert column(dataset, "zip") == [1, 2, 3, 0]
    assert column(dataset, "price") == pytest.approx([1.5, 6.5 / 3, 2, 3])


@pytest.mark.parametrize("value", ["", "2", "yes"])
def test_a_faulty_label_names_the_line_of_a_csv_file(mine, value):
    lines = ["city,click,conversion", "a,1,0", f"a,{value},0", "a,1,1"]
    (mine.folder / "mine.csv").write_text("\n".join(lines) + "\n")
    fault = f"line 3 has '{value}'" if value else "line 3 none"
    with pytest.raises(UsageError, match=rf"mine.csv: column 'click' must hold 0 or 1 .*{fault}"):
        mine.dataset()


@pytest.mark.parametrize(
    ("fault", "message"), [("a,2,0", "line 3: Expected 4 columns, got 3"), ("b,x,0,0", "line 3: ")]
)
def test_a_malformed_line_of_a_csv_file_is_named(mine, fault, message):
    lines = ["city,price,click,conversion", "a,1,1,0", fault, "a,1,1,1"]
    (mine.folder / "mine.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=rf"mine.csv: .*{message}"):
        mine.dataset(numerical_features=["price"])


def test_a_faulty_label_names_file_and_row(mine):
    table = impressions()
    label = [*table["conversion"].to_pylist()]
    label[41] = 3
    mine.write(table.set_column(4, "conversion", pa.array(label)), parts=2)
    with pytest.raises(UsageError, match=r"part-1.parquet: column 'conversion' .* row 12 has '3'"):
        mine.dataset()


@pytest.mark.parametrize("names", [[f"mine.{part}" for part in PARTS], PARTS], ids=str)
def test_split_tables_have_vocabularies_of_train(mine, names):
    table = impressions()
    for name, start, end in zip(names, (0, 30, 45), (30, 45, 60), strict=True):
        mine.write(table.slice(start, end - start), name)
    train, valid, test = parts = mine.build(benchmark_filename=list(PARTS))
    assert [len(part) for part in parts] == [30, 15, 15]
    assert tokens(train, "row") == [PADDING, UNKNOWN, *(f"r{i}" for i in range(30))]
    assert column(train, "row") == [*range(2, 32)]
    assert column(valid, "row") == column(test, "row") == [1] * 15
    assert test.truth.click.tolist() == [int(n % 3 == 0) for n in range(45, 60)]


def test_times_are_a_number_and_split_d(mine):
    start = datetime.datetime(2026, 1, 1)
    table = impressions()
    times = pa.array([start - datetime.timedelta(seconds=n) for n in range(60)])
    mine.write(table.append_column("timestamp", times))
    eval_args = {"split": {"RS": [6, 2, 2]}, "order": "TO", "group_by": None, "mode": "labeled"}
    parts = mine.build(eval_args=eval_args)
    rows = [token for part in parts for token in part.id2token("row", part.inter_feat["row"])]
    assert rows == [f"r{n}" for n in range(60)][::-1]


def test_neither_user_nor_item(mine):
    mine.write(impressions().select(["row", "click", "conversion"]))
    train = mine.build()[0]
    assert train.truth.user is None
    assert set(train[:2]) == {"row", "click", "conversion", "label"}


def test_a_user_and_no_item(mine):
    mine.write(impressions().drop_columns(["item_id"]))
    train = mine.build()[0]
    assert set(train.truth.user.tolist()) == {1, 2, 3, 4, 5, 6}
    assert set(train[:2]) == {"user_id", "row", "click", "conversion", "label"}


def test_roles_have_any_names_and_sides(mine):
    table = impressions().rename_columns(["who", "what", "row", "seen", "bought"])
    mine.write(table)
    dataset = mine.dataset(
        USER_ID_FIELD="who", ITEM_ID_FIELD="what", CLICK_FIELD="seen", CONVERSION_FIELD="bought",
        load_col={"inter": [], "user": ["row"]},
    )  # fmt: skip
    origins = {name: dataset.field2source[name].value for name in ("who", "what", "row")}
    assert origins == {"who": "user_id", "what": "item_id", "row": "user"}
    assert dataset.counts() == {"impressions": 60, "clicks": 20, "conversions": 10}


def test_shared_vocabularies(mine):
    table = impressions().append_column("seller", pa.array(["u5", "new"] * 30))
    mine.write(table)
    dataset = mine.dataset(alias_of_user_id=["seller"])
    assert tokens(dataset, "seller") == tokens(dataset, "user_id")
    assert "new" in tokens(dataset, "user_id")


def test_threshold_makes_the_conversion(mine):
    table = impressions().drop_columns(["conversion"])
    rating = [n % 5 + 1 if n % 3 == 0 else None for n in range(60)]
    mine.write(table.append_column("rating", pa.array(rating)))
    dataset = mine.dataset(threshold={"rating": 4})
    expected = [float(n % 3 == 0 and n % 5 >= 3) for n in range(60)]
    assert column(dataset, "conversion") == expected
    assert "rating" not in dataset.field2type


def test_rare_tokens_are_unknown(mine):
    mine.write(pa.table({"c": ["a", "b", "a"], "click": [1, 0, 1], "conversion": [0, 0, 1]}))
    dataset = mine.dataset(min_count=2)
    assert tokens(dataset, "c") == [PADDING, UNKNOWN, "a"]
    assert column(dataset, "c") == [2, 1, 2]


# --- clicks alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ESMM", "ESCM2_DR"])
def test_without_conversions_a_model_that_learns_them_is_refused(mine, model):
    mine.write(impressions().drop_columns(["conversion"]))
    with pytest.raises(
        UsageError, match=rf"no column 'conversion' .*{model} learns ctr, cvr, ctcvr"
    ):
        mine.dataset(model)


@pytest.mark.parametrize("task", ["cvr", "ctcvr"])
def test_without_conversions_their_task_is_refused(mine, task):
    mine.write(impressions().drop_columns(["conversion"]))
    with pytest.raises(UsageError, match=rf"DeepFM learns {task}\."):
        mine.dataset("DeepFM", task=task)


def test_clicks_alone(mine):
    mine.write(impressions().drop_columns(["conversion"]))
    train = mine.build("DeepFM", task="ctr")[0]
    assert set(train[:2]) == {"user_id", "item_id", "row", "click", "label"}
    assert torch.equal(train[:]["label"], train[:]["click"])
    assert "no conversion logged" in train.summary()
    assert train.truth.conversion is None


# --- what is wrong ---------------------------------------------------------------------------

FAULTS = {
    "no click": (lambda t: t.drop_columns(["click"]), {}, r"no column 'click' \(CLICK_FIELD\); it"),
    "a named user that isn't there": (
        lambda t: t, {"USER_ID_FIELD": "who"}, r"no column 'who' \(USER_ID_FIELD\)",
    ),
    "a named conversion that isn't there": (
        lambda t: t, {"CONVERSION_FIELD": "bought"}, r"no column 'bought' \(CONVERSION_FIELD\)",
    ),
    "an unknown column": (
        lambda t: t, {"load_col": {"inter": ["rows"]}}, r"load_col names 'rows', .*mean row",
    ),
    "a name of a label": (
        lambda t: t.append_column("label", t["row"]), {}, r"'label' has the name of a label",
    ),
    "a struct": (
        lambda t: t.append_column("s", pa.array([{"a": 1, "b": 2, "c": 3}] * 60)),
        {}, r"column 's' is of type struct.*unload_col",
    ),
    "a filter of atomic files": (
        lambda t: t, {"val_interval": {"row": "[1,2]"}}, "val_interval acts on atomic files",
    ),
    "pairs": (lambda t: t, {"impressions": "pairs"}, "impressions: pairs"),
    "a missing part": (
        lambda t: t, {"benchmark_filename": ["a", "b", "c"]}, "mine.a.parquet or mine.a.csv or",
    ),
    "no rows": (lambda t: t.slice(0, 0), {}, "no impression"),
    "threshold of a missing column": (
        lambda t: t, {"threshold": {"stars": 4}}, "threshold must name one column",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_explained(mine, case):
    change, given, message = FAULTS[case]
    mine.write(change(impressions()))
    with pytest.raises(UsageError, match=message):
        mine.dataset(**given)


def test_parts_of_other_columns_or_types_are_refused(mine):
    path = mine.write(impressions(), parts=2)
    table = impressions()
    WRITERS["parquet"](table.drop_columns(["row"]), path / "part-2.parquet")
    with pytest.raises(UsageError, match=r"part-2.parquet lacks the column 'row' of .*part-0"):
        mine.dataset()
    WRITERS["parquet"](table.set_column(2, "row", pa.array([0.5] * 60)), path / "part-2.parquet")
    with pytest.raises(UsageError, match=r"part-2.parquet: column 'row' is of type double, and in"):
        mine.dataset()


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_damaged_file_is_named(mine, suffix):
    path = mine.write(impressions(), suffix=suffix)
    path.write_bytes(b"\x00\x01" * 99 if suffix != "csv" else path.read_bytes() + b'"a"\n')
    with pytest.raises(UsageError, match=rf"mine.{suffix}"):
        mine.dataset()


def test_a_store_goes_on_without_its_table(mine):
    path = mine.write(impressions())
    before = mine.dataset()[:]["row"]
    path.unlink()
    assert torch.equal(mine.dataset()[:]["row"], before)


# --- tables in memory ------------------------------------------------------------------------


class Polars:
    """As much of a Polars frame as is asked for: polars itself isn't needed."""

    def __init__(self, table):
        self.to_arrow = lambda: table


@pytest.mark.parametrize(
    "kind", [lambda t: t, lambda t: t.to_pandas(), Polars], ids=["arrow", "pandas", "polars"]
)
def test_a_table_in_memory_becomes_a_data_set(mine, tmp_path, kind):
    mine.write(impressions())
    expected = mine.dataset()[:]
    name = save_table(kind(impressions()), "given", tmp_path)
    made = EntireSpaceDataset(Config("ESMM", name, config_dict={"data_path": str(tmp_path)}))
    assert all(torch.equal(made[:][field], expected[field]) for field in expected)
    file = tmp_path / "given" / "given.parquet"
    before = file.stat()
    save_table(kind(impressions()), "given", tmp_path)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    save_table(kind(impressions().slice(1)), "given", tmp_path)
    assert (
        len(EntireSpaceDataset(Config("ESMM", name, config_dict={"data_path": str(tmp_path)})))
        == 59
    )


def test_parts_in_memory(tmp_path):
    table = impressions()
    save_table({part: table.slice(20 * n, 20) for n, part in enumerate(PARTS)}, "cut", tmp_path)
    given = {"data_path": str(tmp_path), "benchmark_filename": list(PARTS)}
    parts = EntireSpaceDataset(Config("ESMM", "cut", config_dict=given)).build()
    assert [len(part) for part in parts] == [20, 20, 20]


@pytest.mark.parametrize("wrong", [[1], pd.Series([1]), "mine"], ids=["arrow", "pandas", "polars"])
def test_what_is_no_table_is_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="table of pandas, Polars or Arrow"):
        save_table(wrong, "mine", tmp_path)
    with pytest.raises(UsageError, match="dataset can't be"):
        save_table(impressions(), "../mine", tmp_path)


# --- the command line ------------------------------------------------------------------------


def large(rows=3000):
    rng = np.random.default_rng(1)
    city = rng.integers(0, 8, rows)
    click = rng.random(rows) < 0.1 + city / 10
    return pa.table(
        {
            "city": city,
            "tags": [list(map(str, range(n % 3))) for n in city],
            "price": rng.normal(size=rows),
            "click": click,
            "conversion": click & (rng.random(rows) < 0.5),
        }
    )


QUICK = (
    "--epochs=4",
    "--learning_rate=0.01",
    "--embedding_size=4",
    "--mlp_hidden_size=[8]",
    "--train_batch_size=256",
)


def test_the_command_line_trains_on_a_folder_of_parts(program_here, metrics_of, tmp_path):
    (tmp_path / "dataset" / "mine").mkdir(parents=True)
    Mine.write(type("M", (), {"folder": tmp_path / "dataset" / "mine"}), large(), parts=3)
    done = program_here(
        "--model=ESCM2_DR", "--dataset=mine", *QUICK, "--numerical_features=['price']",
        "--metrics=['CTR_AUC', 'CVR_AUC', 'CTCVR_AUC', 'CTR_GAUC']",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = metrics_of(done.stdout)
    assert found["CTR_AUC"] > 0.6
    assert set(found) == {"CTR_AUC", "CVR_AUC", "CTCVR_AUC"}


def test_the_command_line_learns_clicks_alone(program_here, metrics_of, tmp_path):
    (tmp_path / "dataset" / "mine").mkdir(parents=True)
    pa.csv.write_csv(
        large().drop_columns(["conversion", "tags"]), tmp_path / "dataset" / "mine" / "mine.csv"
    )
    done = program_here("--model=DeepFM", "--task=ctr", "--dataset=mine", *QUICK)
    assert done.returncode == 0, done.stderr
    found = metrics_of(done.stdout)
    assert found["CTR_AUC"] > 0.6
    assert all(name.startswith(("CTR_", "AUC", "LogLoss")) for name in found)
    refused = program_here("--model=ESMM", "--dataset=mine")
    assert refused.returncode == 2
    assert "no column 'conversion' (CONVERSION_FIELD), and ESMM learns ctr" in refused.stderr
    assert "Traceback" not in refused.stderr


def many_kinds(rows):
    """Impressions with a column of each kind of feature, and some without a value."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 9, n).tolist() if n else None for n in rng.integers(0, 4, rows)]
    return (
        impressions(rows)
        .append_column("tags", pa.array(lists, pa.list_(pa.int64())))
        .append_column(
            "pairs",
            pa.array(
                [[(f"t{n}", float(n))] for n in range(rows)], pa.map_(pa.string(), pa.float64())
            ),
        )
        .append_column("price", pa.array(rng.random(rows), mask=rng.random(rows) < 0.1))
        .append_column("shop", pa.array(rng.integers(0, 50, rows).astype(str)).dictionary_encode())
    )


def content_of(dataset):
    return {path.name: path.read_bytes() for path in dataset.store.folder.iterdir()}


def test_several_processes_make_the_bytes_of_one(mine, tmp_path):
    folder = mine.folder / "mine.parquet"
    folder.mkdir()
    for part, (rows, size) in enumerate(((700, 30), (500, 250), (90, 90))):
        pa.parquet.write_table(many_kinds(rows), folder / f"{part}.parquet", row_group_size=size)
    given = {"numerical_features": ["price"], "standardize": True}
    one = mine.dataset(store_dir=str(tmp_path / "one"), **given)
    two = mine.dataset(store_dir=str(tmp_path / "two"), worker=2, **given)
    assert len(one.inter_feat) == 1290
    assert len(content_of(one)) > 5
    assert content_of(one) == content_of(two)


def test_several_processes_name_the_row_that_one_does(mine, tmp_path):
    table, click = impressions(), pa.array([2] * 60)
    folder = mine.write(table, parts=3)
    pa.parquet.write_table(table.set_column(3, "click", click), folder / "part-1.parquet")
    told = []
    for workers in (0, 2):
        with pytest.raises(UsageError) as caught:
            mine.dataset(worker=workers)
        told.append(str(caught.value))
    assert "part-1.parquet: column 'click' must hold 0 or 1" in told[0]
    assert "row 1 has '2'" in told[0]
    assert told[0] == told[1]


def test_a_damaged_part_is_told_behind_the_rows_before_it(mine):
    """As one process does, whatever has been read ahead."""
    folder = mine.write(impressions(), parts=3)
    damaged = folder / "part-1.parquet"
    content = bytearray(damaged.read_bytes())
    content[4:40] = bytes(36)  # of a column's first page
    damaged.write_bytes(content)
    told = []
    for workers in (0, 2):
        with pytest.raises(UsageError) as caught:
            mine.dataset(worker=workers)
        told.append(str(caught.value))
    assert str(damaged) in told[0]
    assert told[0] == told[1]
