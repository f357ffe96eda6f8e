"""Faulty data: refused in one line, or said, with the file, the place and what to do."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from common import call, on_disk, small

from recbole_escm2.data.checks import faulty_values
from recbole_escm2.data.schema import Field
from recbole_escm2.data.sources import pairs

ROWS = 160
PARTS = ("train", "valid", "test")
SPLIT = {"benchmark_filename": list(PARTS)}


class Made:
    """Small atomic files of a data set ``tiny``; a test changes their columns first."""

    def __init__(self, data_path):
        self.data_path = data_path
        self.folder = data_path / "tiny"
        self.folder.mkdir(parents=True)
        self.inter = impressions(0)
        self.user = {"user_id:token": [f"u{n}" for n in range(8)], "age:float": list(range(20, 28))}
        self.item = {
            "item_id:token": [f"i{n}" for n in range(10)],
            "kind:token": list("abcabcabca"),
        }
        self.end = "\n"
        self.encoding = "utf-8"

    def write(self, suffix, columns):
        rows = zip(*columns.values(), strict=True)
        text = "\n".join("\t".join(map(str, row)) for row in [list(columns), *rows])
        path = self.folder / f"tiny.{suffix}"
        path.write_bytes((text + self.end).encode(self.encoding))
        return path

    def write_all(self):
        if not any(self.folder.glob("*.inter")):
            self.write("inter", self.inter)
        self.write("user", self.user)
        self.write("item", self.item)

    def write_parts(self):
        for number, part in enumerate(PARTS):
            self.write(f"{part}.inter", impressions(number))
        return SPLIT

    def write_table(self, suffix, columns=None):
        """The impressions as a table instead; a column's name says its type in atomic files."""
        columns = self.inter if columns is None else columns
        table = pa.table({name.partition(":")[0]: column for name, column in columns.items()})
        path = self.folder / f"tiny.{suffix}"
        if suffix.endswith("csv"):
            header = ",".join(table.column_names)
            rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
            path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
        else:
            pyarrow.parquet.write_table(table, path)
        return path

    def run(self, folder, **settings):
        return call(folder, *small(self.data_path, **settings))


def impressions(seed):
    draw = random.Random(seed)
    click = [int(draw.random() < 0.5) for _ in range(ROWS)]
    return {
        "user_id:token": [f"u{draw.randrange(8)}" for _ in range(ROWS)],
        "item_id:token": [f"i{draw.randrange(10)}" for _ in range(ROWS)],
        "hour:token": [draw.randrange(24) for _ in range(ROWS)],
        "click:float": click,
        "conversion:float": [int(o and draw.random() < 0.5) for o in click],
    }


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "data")


@pytest.fixture
def folder(tmp_path):
    """An empty working directory."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def wrong(made, folder, **settings):
    """The one line with which a run is refused that leaves neither a store nor anything else."""
    made_before = on_disk(made.data_path)
    message = refused_after_log(made, folder, settings)
    assert on_disk(made.data_path) == made_before
    return message


def refused_after_log(made, folder, settings):
    """As :func:`refused`, for what is wrong in data: a run's folder and log are there by then."""
    outcome = made.run(folder, **settings)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert "Warning: " not in outcome.err
    shutil.rmtree(folder / "output", ignore_errors=True)
    return outcome.error


def said(made, folder, **settings):
    """What is logged of data that is trained on."""
    outcome = made.run(folder, **settings)
    assert outcome.code == 0, outcome
    again = made.run(folder, **settings)  # now from the store
    notes = [line for line in outcome.err.splitlines() if line[2:3] == ":"]
    return "\n".join(line[9:] for line in notes if line[9:] in again.err)


def test_sound_data_has_no_remark(made, folder):
    made.inter["hour:token"] = [n // 20 for n in range(ROWS)]
    made.inter["minute:token"] = [n % 20 for n in range(ROWS)]  # so that no two rows are the same
    made.write_all()
    text = said(made, folder, numerical_features=["age"])
    for word in (
        "repeat",
        "same",
        "no end",
        "gives",
        "numerical_features",
        "train hasn't",
        "twice",
    ):
        assert word not in text


# ------------------------------------------------------------------ a column in two files


@pytest.mark.parametrize(
    ("of", "suffix", "column"),
    [
        ("inter", "user", "age:float"),
        ("inter", "item", "kind:token"),
        ("user", "item", "kind:token"),
    ],
    ids=str,
)
def test_a_column_in_two_files(made, folder, of, suffix, column):
    columns = getattr(made, of)
    columns[column] = ["7"] * len(next(iter(columns.values())))
    made.write_all()
    name = column.partition(":")[0]
    message = wrong(made, folder)
    assert f"tiny.{of} and " in message
    assert f"tiny.{suffix} both have a column '{name}'" in message
    assert "unload_col" in message
    assert made.run(folder, unload_col={of: [name]}).code == 0  # what it says helps


# ------------------------------------------------------------------ several rows of one key


@pytest.mark.parametrize(
    ("suffix", "row", "expected"),
    [
        ("user", ("u3", 99), "1 of them differ from it, the first where user_id is 'u3', in 'age'"),
        (
            "item",
            ("i0", "z"),
            "1 of them differ from it, the first where item_id is 'i0', in 'kind'",
        ),
        ("user", ("u3", 23), "the first row of each counts"),
        ("item", ("i9", "a"), "the first row of each counts"),
    ],
    ids=str,
)
def test_rows_of_one_key(made, folder, suffix, row, expected):
    for column, value in zip(getattr(made, suffix).values(), row, strict=True):
        column.append(value)
    made.write_all()
    text = said(made, folder)
    key = f"{suffix}_id"
    place = f"tiny.{suffix} row {len(column)}"
    counts = "the first row of each counts"
    assert f"1 rows of '{suffix}' repeat their {key}: {counts} ({place})" in text
    assert expected in text
    assert ("differ" in expected) == (f"' ({place})" in text)
    assert ("differ" in expected) == ("differ" in text)


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize("token", ["a\0b", "a\0", "\0"], ids=repr)
@pytest.mark.parametrize("suffix", ["inter", "item", "parquet"])
def test_a_nul_character(made, folder, token, suffix):
    if suffix == "item":
        made.item["kind:token"][2] = token
    else:
        made.inter["hour:token"] = ["a", "b", token, *map(str, made.inter["hour:token"][3:])]
    made.write_table(suffix) if suffix == "parquet" else made.write_all()
    message = wrong(made, folder)
    assert f"tiny.{suffix} row 3: column '{'kind' if suffix == 'item' else 'hour'}'" in message
    assert "NUL" in message


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_a_nul_character_in_any_type_of_text(kind):
    column = pa.array(["a", "b\0c", None]).cast(kind)
    ((row, value, why),) = faulty_values(column, Field("hour"))
    assert (row, value) == (1, "b\0c")
    assert "NUL" in why


@pytest.mark.parametrize("suffix", ["inter", "csv"])
@pytest.mark.parametrize("token", ["NA", "None", "null", "nan", "N/A"])
def test_words_for_nothing_are_tokens(made, folder, token, suffix):
    made.inter["country:token"] = [["DE", token][n % 2] for n in range(ROWS)]
    made.write_table(suffix) if suffix == "csv" else made.write_all()
    assert made.run(folder).code == 0
    (schema,) = made.folder.rglob("schema.json")
    texts = [path.read_bytes() for path in schema.parent.glob("*.tokens")]
    assert f"DE{token}".encode() in texts


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    "names", [["train"] * 3, ["train", "valid", "train"], ["train", "train", "test"]], ids=str
)
def test_one_file_for_two_parts(made, folder, names):
    made.write_parts()
    made.write_all()
    message = wrong(made, folder, benchmark_filename=names)
    assert "benchmark_filename must be a list of three different names, or of two" in message
    assert f"got {names}" in message


@pytest.mark.parametrize("how", ["copy", "other order", "other form"])
def test_train_is_test(made, folder, how):
    settings = made.write_parts()
    made.write_all()
    lines = (made.folder / "tiny.train.inter").read_text().splitlines()
    if how == "other order":
        lines[1:] = sorted(lines[1:])
    if how == "other form":
        lines = [f"{line}.0" if line[-1].isdigit() else line for line in lines]
    (made.folder / "tiny.test.inter").write_text("\n".join(lines) + "\n")
    message = wrong(made, folder, **settings)
    assert "train and test hold the same impressions" in message
    assert "tiny.test.inter" in message


def test_tables_of_two_parts_are_the_same(made, folder):
    for part in PARTS:
        made.write_table(f"{part}.parquet", impressions(int(part == "valid")))
    message = wrong(made, folder, **SPLIT)
    assert "train and test hold the same impressions" in message
    assert "tiny.test.parquet" in message


@pytest.mark.parametrize("how", ["test in train", "valid in train", "valid is test"])
def test_parts_overlap(made, folder, how):
    settings = made.write_parts()
    part, of = how.replace(" is ", " in ").split(" in ")
    first, second = (made.folder / f"tiny.{name}.inter" for name in (part, of))
    lines = second.read_text().splitlines()
    if of == "train":  # the part was cut out of a log that train has as a whole
        lines = lines[:60]
    first.write_text("\n".join(lines) + "\n")
    made.write_all()
    text = said(made, folder, **settings)
    if of == "train":
        assert f"100% of the impressions of {part} (tiny.{part}.inter) stand in train" in text
    else:
        assert "valid and test hold the same impressions" in text


@pytest.mark.parametrize("how", ["twice", "each twice", "thrice", "a part of it twice"])
def test_impressions_that_stand_several_times(made, folder, how):
    rows = list(range(ROWS))
    order = {
        "twice": rows * 2,
        "each twice": sorted(rows * 2),
        "thrice": rows * 3,
        "a part of it twice": rows + rows[:120],
    }[how]
    made.inter["minute:token"] = [f"m{n % 150}" for n in rows]
    made.inter = {name: [column[n] for n in order] for name, column in made.inter.items()}
    made.write_all()
    text = said(made, folder)
    if how.startswith("a part"):
        assert "120 impressions one after the other stand twice in tiny.inter" in text
    else:
        times = 3 if how == "thrice" else 2
        assert f"each impression stands {times} times in tiny.inter" in text


@pytest.mark.parametrize("repeated", [0, 3])
def test_numbers_of_rows(made, folder, repeated):
    made.inter["sample_id:token"] = [f"s{n % (ROWS - repeated)}" for n in range(ROWS)]
    made.write_all()
    text = said(made, folder)
    assert f"the field 'sample_id' has {ROWS - repeated} tokens in {ROWS} rows" in text
    assert ("3 rows repeat one" in text) == bool(repeated)
    assert "unload_col" in text


# ------------------------------------------------------------------ lines


@pytest.mark.parametrize("suffix", ["inter", "user", "csv"])
def test_a_last_line_without_an_end(made, folder, suffix):
    if suffix == "csv":
        path, lines = made.write_table("csv"), ROWS + 1
    else:
        made.write_all()
        path, lines = made.folder / f"tiny.{suffix}", (ROWS if suffix == "inter" else 8) + 1
    path.write_bytes(path.read_bytes()[:-1])
    text = said(made, folder)
    assert f"tiny.{suffix}, line {lines}: the last line has no end" in text
    assert path.read_text().rpartition("\n")[2] in text.encode().decode("unicode_escape")


@pytest.mark.parametrize(("suffix", "cut"), [("inter", 5), ("user", 4), ("item", 3)])
def test_a_last_line_that_lacks_cells(made, folder, suffix, cut):
    made.write_all()
    path = made.folder / f"tiny.{suffix}"
    path.write_bytes(path.read_bytes()[:-cut])
    message = wrong(made, folder)
    assert f"tiny.{suffix}" in message
    assert "line " in message


@pytest.mark.parametrize("suffix", ["inter", "user", "item"])
def test_a_cell_too_many(made, folder, suffix):
    made.write_all()
    path = made.folder / f"tiny.{suffix}"
    lines = path.read_text().splitlines()
    lines[4] += "\t1"
    path.write_text("\n".join(lines) + "\n")
    cells = len(lines[0].split("\t"))
    message = wrong(made, folder)
    assert f"tiny.{suffix}, line 5 has {cells + 1} cells, the header {cells}" in message


@pytest.mark.parametrize("suffix", ["inter", "user", "csv"])
def test_a_byte_order_mark(made, folder, suffix):
    if suffix == "csv":
        path = made.write_table("csv")
    else:
        made.write_all()
        path = made.folder / f"tiny.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert made.run(folder).code == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "cp1252"])
def test_another_encoding(made, folder, encoding):
    made.item["kind:token"][0] = "für"
    made.encoding = encoding
    if encoding == "utf-16-be":
        made.item = {
            "\ufeffitem_id:token" if n == "item_id:token" else n: c for n, c in made.item.items()
        }
    made.write("item", made.item)
    made.encoding = "utf-8"
    made.write("inter", made.inter)
    made.write("user", made.user)
    message = wrong(made, folder)
    assert "tiny.item isn't text in UTF-8" in message
    assert f"--encoding={'cp1252' if encoding == 'cp1252' else 'utf-16'}" in message


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e39", "-4e38", "1e999"])
@pytest.mark.parametrize("suffix", ["user", "inter"])
def test_a_number_beyond_32_bits(made, folder, text, suffix):
    made.inter["price:float"] = [text if n == 4 else n for n in range(ROWS)]
    made.user["age:float"][4] = text
    (made.user if suffix == "inter" else made.inter).popitem()
    made.write_all()
    name = "price" if suffix == "inter" else "age"
    message = wrong(made, folder, numerical_features=[name])
    assert f"tiny.{suffix}, line 6: column '{name}:float' holds '{text}'" in message


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("value", [float("inf"), 1e39])
def test_a_number_of_a_table_beyond_32_bits(made, folder, suffix, value):
    made.inter["price:float"] = [value if n == 4 else n + 0.5 for n in range(ROWS)]
    made.write_table(suffix)
    message = wrong(made, folder, numerical_features=["price"])
    where = "line 6" if suffix == "csv" else "row 5"
    assert f"tiny.{suffix} {where}: column 'price' holds {value!r}" in message


@pytest.mark.parametrize("names", [["age"], ["age", "price"], ["price"]], ids=str)
def test_numbers_that_no_key_names(made, folder, names):
    if "price" in names:
        made.inter["price:float"] = range(ROWS)
    if "age" not in names:
        made.user.popitem()
    made.write_all()
    text = said(made, folder)
    assert "numbers are features where numerical_features names them" in text
    shown = text.partition("--numerical_features='[")[2].partition("]")[0]
    assert sorted(shown.split(",")) == sorted(names)
    assert "numerical_features names" not in said(made, folder, numerical_features=names)


@pytest.mark.parametrize("column", ["timestamp:float", "income:float", "born:float"])
def test_large_numbers_are_features(made, folder, column):
    draw = random.Random(0)
    scale = {"timestamp:float": 1.7e9, "income:float": 1e12, "born:float": -1e15}[column]
    made.inter[column] = [
        scale * (1 + 1e-6 * (o + draw.random())) for o in made.inter["click:float"]
    ]
    made.write_all()
    name = column.partition(":")[0]
    settings = {"numerical_features": [name], "learning_rate": 0.05, "epochs": 40}
    outcome = made.run(folder, **settings)
    assert float(outcome.out.partition("CTR_AUC: ")[2].split()[0]) > 0.6, outcome


@pytest.mark.parametrize("key", ["numerical_features", "normalize_field"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("agee", "did you mean age?"),
        ("kind", "declare it a float"),
        ("x", "Columns that it may name: age"),
    ],
)
def test_keys_of_numbers_name_numbers(made, folder, key, name, hint):
    made.write_all()
    message = wrong(made, folder, **{key: [name]})
    assert f"{key} names '{name}'" in message
    assert hint in message


# ------------------------------------------------------------------ features and labels


@pytest.mark.parametrize("how", ["click", "conversion", "number", "bag", "missing", "item"])
def test_a_feature_that_gives_a_label_away(made, folder, how):
    click, conversion = made.inter["click:float"], made.inter["conversion:float"]
    column = {
        "click": ("leak:token", click),
        "conversion": ("leak:token", [f"c{r}" for r in conversion]),
        "number": ("leak:float", [o * 30 + n % 7 for n, o in enumerate(click)]),
        "bag": ("leak:token_seq", [f"a b{o}" for o in click]),
        "missing": ("leak:token", [f"t{n % 5}" if r else "" for n, r in enumerate(conversion)]),
        "item": ("leak:token", [f"{'xy'[o]}{n % 20}" for n, o in enumerate(click)]),
    }[how]
    made.inter[column[0]] = column[1]
    made.write_all()
    text = said(made, folder, numerical_features=["leak"] if how == "number" else None)
    label = "conversion" if how in ("conversion", "missing") else "click"
    assert f"the feature 'leak' gives the label '{label}' away" in text
    assert "unload_col" in text


@pytest.mark.parametrize("how", ["constant", "noise", "a number for each row"])
def test_a_feature_that_gives_nothing_away(made, folder, how):
    draw = random.Random(1)
    made.inter["fine:token"] = {
        "constant": ["x"] * ROWS,
        "noise": [draw.randrange(5) for _ in range(ROWS)],
        "a number for each row": list(range(ROWS)),
    }[how]
    made.write_all()
    assert "away" not in said(made, folder)


@pytest.mark.parametrize("source", ["inter", "csv", "parquet"])
def test_labels_that_are_each_others(made, folder, source):
    made.write_table(source) if source != "inter" else made.write_all()
    message = wrong(made, folder, CLICK_FIELD="conversion", CONVERSION_FIELD="click")
    assert "conversions and " in message
    assert f"tiny.{source}" in message
    assert "CLICK_FIELD and CONVERSION_FIELD" in message


@pytest.mark.parametrize(
    ("suffix", "column"), [("inter", "hour:token"), ("item", "kind:token"), ("user", "age:float")]
)
def test_a_field_without_any_value(made, folder, suffix, column):
    columns = getattr(made, suffix)
    columns[column] = [""] * len(columns[column])
    made.write_all()
    message = wrong(made, folder)
    assert f"the field '{column.partition(':')[0]}' has no value in any row" in message
    assert "unload_col" in message


@pytest.mark.parametrize("suffix", ["user", "item"])
@pytest.mark.parametrize("filtered", [True, False])
def test_keys_that_are_written_another_way(made, folder, suffix, filtered):
    key = f"{suffix}_id:token"
    columns = getattr(made, suffix)
    columns[key] = [f" {value}" for value in columns[key]]
    made.write_all()
    message = wrong(made, folder, filter_inter_by_user_or_item=filtered)
    if filtered:
        assert "RecBole's filters leave no row of inter" in message
    else:
        assert f"no impression has its {suffix}_id in '{suffix}' (tiny.{suffix})" in message
    assert "written the same way" in message


# ------------------------------------------------------------------ what can be learned


@pytest.mark.parametrize("source", ["inter", "csv", "parts"])
def test_a_log_of_clicks_alone(made, folder, source):
    settings = {"metrics": ["CVR_AUC"], "valid_metric": "CVR_AUC"}
    for seed in range(3):
        rows = impressions(seed)
        keep = [n for n in range(ROWS) if rows["click:float"][n]]
        made.inter = {name: [column[n] for n in keep] for name, column in rows.items()}
        if source == "parts":
            made.write(f"{PARTS[seed]}.inter", made.inter)
    if source == "csv":
        made.write_table("csv")
    else:
        made.write_all()
    text = said(made, folder, model="ESCM2_IPS", **settings, **(SPLIT if source == "parts" else {}))
    assert "impressions of train are clicked" in text
    assert "nothing to weigh" in text


@pytest.mark.parametrize(
    ("kind", "field"),
    [("atomic", "hour"), ("parquet", "hour"), ("atomic", "user_id"), ("parquet", "item_id")],
)
def test_ids_that_only_test_has(made, folder, kind, field):
    column, late = f"{field}:token", 0
    for seed, part in enumerate(PARTS):
        rows = {name: list(map(str, values)) for name, values in impressions(seed).items()}
        if part == "test":
            early = sorted(set(rows[column]))[::2]
            rows[column] = [text if text in early else f"late{text}" for text in rows[column]]
            late = sum(text.startswith("late") for text in rows[column])
        if kind == "atomic":
            made.write(f"{part}.inter", rows)
        else:
            labels = {name: list(map(int, rows[name])) for name in rows if name.endswith("float")}
            made.write_table(f"{part}.parquet", {**rows, **labels})
    if kind == "atomic":
        made.write_all()
    text = said(made, folder, **SPLIT)
    assert f"test has ids that train hasn't, of all values: {field} {late / ROWS:.2%}" in text


@pytest.mark.parametrize(("users", "items"), [(70_000, 70_000), (5_000, 5_000), (40_000, 400)])
def test_more_pairs_than_memory(made, folder, users, items, monkeypatch):
    monkeypatch.setattr(pairs, "memory", lambda: 1_000_000_000)
    numbers = range(max(users, items))
    made.write(
        "inter",
        {
            "user_id:token": [f"u{n % users}" for n in numbers],
            "item_id:token": [f"i{n % items}" for n in numbers],
            "rating:float": [n % 5 for n in numbers],
        },
    )
    message = wrong(made, folder, impressions="pairs", threshold={"rating": 3})
    assert f"{users * items:,} pairs of {users:,} users and {items:,} items" in message
    assert f"about {users * items * 100 / 1e9:,.0f} GB of memory" in message
    assert "impressions: rows" in message


# ------------------------------------------------------------------ files and keys


@pytest.mark.parametrize(
    "name", ["tiny.users", "Tiny.item", "tiny.csv", "tiny.parquet", "tiny.valid.inter"]
)
def test_a_file_that_is_not_read(made, folder, name):
    made.write_all()
    shutil.copy(made.folder / "tiny.user", made.folder / name)
    assert f"not read: {name} in {made.folder}" in said(made, folder)


def test_of_two_tables_one_is_read(made, folder):
    made.write_table("parquet")
    made.write_table("csv")
    assert f"not read: tiny.csv in {made.folder}, but tiny.parquet" in said(made, folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("unload_col", {"user": ["agee"]}, "unload_col names 'agee', which "),
        ("unload_col", {"users": ["age"]}, "unload_col must be a mapping of file suffixes (inter,"),
        ("load_col", {"itm": ["kind"]}, "load_col must be a mapping of file suffixes (inter,"),
        ("alias_of_user_id", ["friend"], "alias_of_user_id names 'friend', which is no column"),
        ("alias_of_item_id", ["age"], "alias_of_item_id names 'age', which is a float"),
        ("seq_len", {"tagz": 3}, "seq_len names 'tagz', which is no column"),
        ("discretization", {"agee": {"method": "LD"}}, "discretization names 'agee'"),
        ("discretization", {"age": {"method": "LD"}}, "which numerical_features doesn't"),
    ],
    ids=str,
)
def test_keys_of_columns_name_columns(made, folder, key, value, expected):
    made.write_all()
    assert expected in wrong(made, folder, **{key: value})


@pytest.mark.parametrize("suffix", ["inter", "user", "item"])
@pytest.mark.parametrize("kind", ["float", "token_seq"])
def test_an_id_that_is_no_token(made, folder, suffix, kind):
    name = "item_id" if suffix == "item" else "user_id"
    columns = {
        key.replace(f"{name}:token", f"{name}:{kind}"): [str(v).lstrip("ui") for v in column]
        for key, column in getattr(made, suffix).items()
    }
    setattr(made, suffix, columns)
    made.write_all()
    message = wrong(made, folder)
    assert f"tiny.{suffix}: column '{name}' is an id and declared {kind}" in message


# ------------------------------------------------------------------ fields of little use


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("x:token", ["a"] * ROWS, "the field 'x' is the same in all rows"),
        ("x:token", ["a", *[""] * (ROWS - 2), "b"], f"has a value in 2 of {ROWS} rows only"),
        ("x:token_seq", [f"a{n % 3},b{n % 5}" for n in range(ROWS)], "is seq_separator what"),
        ("x:token", [("a", " a", "b")[n % 3] for n in range(ROWS)], "for example ' a'"),
        ("x:token_seq", ["a", *["a b"] * (ROWS - 1)], None),
        ("x:token", [("a", " b", "c")[n % 3] for n in range(ROWS)], None),
    ],
    ids=str,
)
def test_fields_of_little_use(made, folder, column, values, expected):
    made.inter[column] = values
    made.write_all()
    text = said(made, folder)
    if expected is None:
        assert "'x'" not in text
    else:
        (line,) = (line for line in text.splitlines() if expected in line)
        assert "'x'" in line


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("timestamp:token", [f"2024-01-{n % 28}" for n in range(ROWS)], "is a token: declare it"),
        ("timestamp:float", [7] * ROWS, "is the same in all rows"),
        ("timestamp:token_seq", [f"2024 {n}" for n in range(ROWS)], "is a token_seq: declare it"),
    ],
    ids=["text", "constant", "list"],
)
def test_times_that_order_nothing(made, folder, column, values, expected):
    made.inter[column] = values
    made.write_all()
    order = {"eval_args": "{split: {RS: [8, 1, 1]}, order: TO, group_by: null, mode: labeled}"}
    assert made.run(folder).code == 0  # the store is there already
    message = refused_after_log(made, folder, order)
    assert "eval_args order TO needs times, and 'timestamp' (TIME_FIELD)" in message
    assert expected in message


@pytest.mark.parametrize("missing", [1, 40])
def test_times_that_are_missing(made, folder, missing):
    made.inter["timestamp:float"] = ["" if n < missing else n for n in range(ROWS)]
    made.write_all()
    text = said(made, folder)
    assert f"{missing} of {ROWS} impressions have no time ('timestamp')" in text
    assert "numerical_features names them: age," in text  # a time needn't be one


# ------------------------------------------------------------------ raw Ali-CCP


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Raw files in the format of Ali-CCP."""
    folder = tmp_path_factory.mktemp("raw")
    assert call(folder, "simulate", "--rows=3000", "--out=raw").code == 0
    return folder / "raw"


def rewritten(raw, names, change):
    for path in raw.glob("*.csv"):
        if any(name in path.name for name in names):
            lines = [",".join(change(line.split(","))) for line in path.read_text().splitlines()]
            path.write_text("\n".join(lines) + "\n")


def renamed(name, instead):
    """With another name of a field of each line's features."""

    def change(line):
        features = [
            instead + own.removeprefix(name) if own.startswith(f"{name}\x02") else own
            for own in line[-1].split("\x01")
        ]
        return [*line[:-1], "\x01".join(features)]

    return change


def other_keys(line):
    return [line[0][::-1], *line[1:]]


def other_references(line):
    return [*line[:3], line[3][::-1], *line[4:]]


def swapped_labels(line):
    return [line[0], line[2], line[1], *line[3:]]


RAW = {
    "field renamed": [
        (["skeleton"], renamed("205", "299"), "error: the field '205' has no value in any row"),
        (["skeleton_train"], renamed("205", "299"), "error: the field '205' has no value in any"),
        (["common"], renamed("101", "199"), "error: the field '101' has no value in any row of"),
        (["skeleton_test"], renamed("205", "x"), "the field '205' has no value in any row of test"),
        (["common_features_test"], renamed("121", "9"), "the field '121' has no value in any row"),
    ],
    "no common features": [
        (["common"], other_keys, "error: no impression has its common_feature_index in 'common'"),
        (["skeleton"], other_references, "error: no impression has its common_feature_index in"),
        (["common_features_train"], other_keys, "error: the field '101' has no value in any row"),
        (["common_features_test"], other_keys, "1,500 of 1,500 impressions (test) have no row in"),
        (["common"], None, "error: the field '101' has no value in any row of train"),
    ],
    "labels swapped": [
        (["skeleton"], swapped_labels, "error: .*Are CLICK_FIELD and CONVERSION_FIELD"),
        (["skeleton_train"], swapped_labels, "error: .* no click among the .* of train"),
        (["skeleton_test"], swapped_labels, "0.067% of the rows are clicked (Ali-CCP: 3.9 %)"),
    ],
}


@pytest.mark.parametrize(
    ("names", "change", "expected"),
    [pytest.param(*case, id=f"{kind} {n}") for kind in RAW for n, case in enumerate(RAW[kind])],
)
def test_raw_files_of_ali_ccp(simulated, tmp_path, folder, names, change, expected):
    """What can't be right is an error, and what may be is said."""
    raw = tmp_path / "ali-ccp" / "raw"
    shutil.copytree(simulated, raw)
    if change is None:
        for path in raw.glob("common*.csv"):
            path.write_text("")
    else:
        rewritten(raw, names, change)
    before = on_disk(raw)
    outcome = call(folder, *small(tmp_path, dataset="ali-ccp", valid_metric="CTR_AUC"))
    (line,) = (line for line in outcome.err.splitlines() if is_in(expected, line))
    refuses = expected.startswith("error: ")
    assert outcome.code == (2 if refuses else 0), outcome
    assert line.startswith("error: ") == refuses
    assert on_disk(raw) == before


def is_in(expected, line):
    """Whether a line has some text, ``.*`` of which stands for any."""
    return re.search(re.escape(expected).replace(r"\.\*", ".*"), line) is not None


@pytest.mark.parametrize("kind", ["inter", "csv", "parquet"])
@pytest.mark.parametrize(("part", "column"), [("test", "hour:token"), ("valid", "hour:token")])
def test_a_field_that_a_part_lacks(made, folder, kind, part, column):
    for seed, name in enumerate(PARTS):
        rows = impressions(seed)
        rows[column] = [None if name == part else f"h{value}" for value in rows[column]]
        if kind == "inter":
            rows[column] = [value or "" for value in rows[column]]
            made.write(f"{name}.inter", rows)
        elif kind == "csv":
            rows[column] = [value or "" for value in rows[column]]
            made.write_table(f"{name}.csv", rows)
        else:
            made.write_table(f"{name}.parquet", rows)
    made.write("user", made.user)
    text = said(made, folder, **SPLIT)
    assert f"the field 'hour' has no value in any row of {part}, and {ROWS} in train" in text


@pytest.mark.parametrize("part", ["test", "valid"])
def test_a_number_that_a_part_lacks(made, folder, part):
    for seed, name in enumerate(PARTS):
        price = pa.nulls(ROWS, pa.float64()) if name == part else [n / 7 for n in range(ROWS)]
        made.write_table(f"{name}.parquet", {**impressions(seed), "price:float": price})
    text = said(made, folder, **SPLIT, numerical_features=["price"])
    assert f"the field 'price' has no value in any row of {part}" in text


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [(0, np.nan, "true_ctr .* got nan"), (1, 1.5, "true_cvr .* got 1.5"), (2, -1, ".* got -1")],
)
def test_truth_of_a_simulation_that_is_no_probability(
    simulated, tmp_path, folder, part, column, value, said
):
    raw = tmp_path / "ali-ccp" / "raw"
    shutil.copytree(simulated, raw)
    truth = np.load(raw / f"truth_{part}.npy")
    truth[5, column] = value
    np.save(raw / f"truth_{part}.npy", truth)
    before = on_disk(tmp_path / "ali-ccp")
    outcome = call(folder, *small(tmp_path, dataset="ali-ccp"))
    assert outcome.code == 2, outcome
    assert re.search(rf"truth_{part}.npy row 6: {said}", outcome.error), outcome.error
    assert on_disk(tmp_path / "ali-ccp") == before


# ------------------------------------------------------------------ files that are something else


PACKED = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zip": lambda content: b"PK\x03\x04\xff" + content,
    "Parquet": lambda content: b"PAR1\xff" + content,
    "zstd": lambda content: b"\x28\xb5\x2f\xfd" + content,
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_file_that_is_named_as_text(made, folder, kind):
    made.write_all()
    path = made.folder / "tiny.inter"
    path.write_bytes(PACKED[kind](path.read_bytes()))
    assert f"tiny.inter is a {kind} file, and must be text: unpack it" in wrong(made, folder)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_a_table_that_is_a_pipe(made, folder, suffix):
    """Which nobody writes into: reading would wait for ever."""
    os.mkfifo(made.folder / f"tiny.{suffix}")
    outcome = made.run(folder)
    assert outcome.code == 2
    assert "there is no " in outcome.error


@pytest.mark.parametrize("names", ["user_id,item_id,click,conversion", "click,user_id,conversion"])
def test_a_table_of_a_header_alone(made, folder, names):
    (made.folder / "tiny.csv").write_text(names + "\n")
    keys = {} if "item_id" in names else {"ITEM_ID_FIELD": None}
    assert "no impression" in wrong(made, folder, **keys)


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_values_separated_as_fields_are(made, folder, separator):
    made.write_all()
    message = wrong(made, folder, seq_separator=separator, field_separator=separator)
    assert "seq_separator and field_separator are both" in message


@pytest.mark.parametrize("share", ["1e-9", "0.0001"])
def test_a_sample_of_next_to_nothing(made, folder, share):
    made.write_all()
    message = refused_after_log(made, folder, {"impression_sample": share})
    assert "no impression; see eval_args and impression_sample" in message


@pytest.mark.parametrize("key", ["USER_ID_FIELD", "ITEM_ID_FIELD"])
def test_ids_that_are_not_to_be_used(made, folder, key):
    made.write_all()
    field = key.lower().replace("_field", "")
    message = wrong(made, folder, unused_col=f"{{inter: [{field}]}}")
    assert f"unused_col names '{field}' ({key})" in message
    assert "unload_col" in message


@pytest.mark.parametrize("place", ["a run's", "mine"])
def test_a_checkpoint_that_is_a_folder(folder, place):
    (folder / place).mkdir()
    outcome = call(folder, f"--checkpoint={place}", "--evaluate")
    assert outcome.code == 2
    assert f"checkpoint {place} is a folder: name the file" in outcome.error


# ------------------------------------------------------------------ truth that isn't theirs


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("potential", lambda o, r: 1 - r, "clicked, and its potential isn't its conversion"),
        ("ctr", lambda o, r: 0, "clicked, and its ctr is 0"),
        ("ctr", lambda o, r: 1, "not clicked, and its ctr is 1"),
        ("potential", lambda o, r: r if o else 1, None),
        ("ctr", lambda o, r: 0.3, None),
    ],
)
@pytest.mark.parametrize("suffix", ["inter", "csv"])
def test_labels_that_the_truth_rules_out(made, folder, suffix, column, values, said):
    keys = {"potential": "POTENTIAL_CONVERSION_FIELD", "ctr": "TRUE_CTR_FIELD"}
    labels = zip(made.inter["click:float"], made.inter["conversion:float"], strict=True)
    made.inter[f"{column}:float"] = [values(o, r) for o, r in labels]
    if suffix == "csv":
        made.write_table("csv")
    else:
        made.write_all()
    outcome = made.run(folder, **{keys[column]: column})
    assert outcome.code == 0, outcome
    found = re.search(
        r"the truth of ([\d,]+) impressions can't be theirs: (.*) \((.*)\)", outcome.err
    )
    if said is None:
        assert found is None
        return
    assert found is not None, outcome.err
    clicks = sum(made.inter["click:float"])
    assert found[1] == str(ROWS - clicks if said.startswith("not") else clicks)
    assert found[2] == said
    assert f"tiny.{suffix} " in found[3]
