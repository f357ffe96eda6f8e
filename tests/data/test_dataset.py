import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset

from recbole_escm2.config import restore_numpy_names
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.data.sources.pairs import all_pairs
from recbole_escm2.errors import UsageError

N = 60


@pytest.fixture
def rich(toy):
    """Every type of feature in every file, some values missing; one user and one item unseen."""
    n = np.arange(N)
    toy.table["hour:token"] = [f"h{i % 5}" if i % 7 else "" for i in n]
    toy.table["price:float"] = [str((i * 17 % 23) / 4) if i % 11 else "" for i in n]
    toy.table["tags:token_seq"] = [" ".join(f"t{k}" for k in range(i % 4)) for i in n]
    toy.table["prices:float_seq"] = [" ".join(str(k / 2) for k in range(1 + i % 3)) for i in n]
    toy.users = pd.DataFrame(
        {
            "user_id:token": [f"u{i}" for i in (3, 6, 0, 5, 1, 2, 4)],
            "gender:token": ["f", "x", "m", "", "f", "m", "f"],
            "age:float": ["31", "99", "18", "44.5", "", "60", "18"],
            "tastes:token_seq": ["a b", "z", "", "c", "b a", "a", "c b a"],
        }
    )
    toy.items = pd.DataFrame(
        {
            "item_id:token": [f"i{i}" for i in (9, 2, 4, 10, 6, 8, 0, 1, 3, 5, 7)],
            "category:token": [f"c{i}" for i in (1, 2, 3, 9, 1, 2, 3, 1, 2, 3, 1)],
            "weight:float": [f"{i}.25" for i in range(11)],
        }
    )
    toy.write()
    toy.write("user", toy.users)
    toy.write("item", toy.items)
    return toy


# --- features --------------------------------------------------------------------------------


def text_of(split, batch, field, position):
    """What a cell of the file said, read back from a batch."""
    value = batch[field][position]
    if value.dim():
        return " ".join(split.id2token(field, value[value > 0].numpy()))
    token = split.id2token(field, int(value)) if value.dtype == torch.int64 else str(value.item())
    return "" if token == "[PAD]" else token


def test_features_are_those_of_the_files(rich, rows_of):
    users = rich.users.set_index("user_id:token")
    items = rich.items.set_index("item_id:token")
    seen = []
    for split in rich.build():
        batch = split[torch.arange(len(split))]
        rows = rows_of(split)
        seen += rows
        for position, row in enumerate(rows):
            impression = rich.table.loc[row]
            cells = {
                **impression,
                **users.loc[impression["user_id:token"]],
                **items.loc[impression["item_id:token"]],
            }
            for header, cell in cells.items():
                field, _, kind = header.partition(":")
                if kind.startswith("token"):
                    assert text_of(split, batch, field, position) == cell, header
                elif kind == "float" and cell:
                    assert batch[field][position] == pytest.approx(float(cell)), header
                elif kind == "float_seq":
                    numbers = [float(number) for number in cell.split()]
                    assert batch[field][position].tolist()[: len(numbers)] == numbers
    assert sorted(seen) == list(range(N))
    assert seen != sorted(seen)


SETTINGS = {
    "as they come": {},
    "numerical": {
        "numerical_features": ["price", "age", "weight", "prices"],
        "standardize": False,
    },
    "discretised": {
        "standardize": False,
        "numerical_features": ["price", "age", "weight", "prices"],
        "discretization": {
            "price": {"method": "ED", "bucket": 3},
            "age": {"method": "LD"},
            "weight": {"method": "ED", "bucket": 5},
        },
    },
    "normalized": {"normalize_field": ["price", "age"], "numerical_features": ["age", "price"]},
    "cut sequences": {"seq_len": {"tags": 2, "tastes": 1}},
    "filtered": {"val_interval": {"price": "[0,4]", "category": ["c1", "c2"]}},
    "5-core": {"user_inter_num_interval": "[10,inf)"},
    "chosen columns": {"load_col": {"inter": ["user_id", "item_id"], "user": "*"}},
    "other columns": {"unload_col": {"inter": ["hour", "tags"], "item": ["weight"]}},
    "unused columns": {"unused_col": {"inter": ["hour"], "user": ["age"]}},
    "aliases": {"alias_of_user_id": ["hour"]},
}
SPLITS = {
    "at random": {},
    "by user": {"eval_args": {"split": {"RS": [6, 2, 2]}, "group_by": "user", "mode": "labeled"}},
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", SETTINGS)
def test_features_are_recboles(rich, together, case, split):
    """Column by column, by user and item, what stock RecBole makes of the same files."""
    restore_numpy_names()
    settings = {**SETTINGS[case], **SPLITS[split]}
    dataset = rich.dataset(**settings)
    config = rich.config(**settings)
    if config["load_col"]:
        config["load_col"]["inter"] += ["click", "conversion"]
    stock = Dataset(config)
    both = []
    for each in (stock, dataset):
        parts = each.build()
        for part in parts:
            key = part.inter_feat["user_id"] * 100 + part.inter_feat["item_id"]
            part.inter_feat["key"] = key
        both.append(together(parts, "key"))
    theirs, ours = both
    assert set(ours) == {*theirs, "label"}
    for name, column in theirs.items():
        assert ours[name].dtype == column.dtype, name
        assert torch.equal(ours[name], column), name
    fields = [f for f in stock.fields() if f not in ("click", "conversion")]
    assert dataset.fields() == fields
    assert [dataset.num(f) for f in fields] == [stock.num(f) for f in fields]
    assert [dataset.field2type[f] for f in fields] == [stock.field2type[f] for f in fields]


def test_presplit_features_are_recboles(rich):
    restore_numpy_names()
    settings = rich.write_parts(30, 40)
    stock = Dataset(rich.config(**settings)).build()
    for ours, theirs in zip(rich.build(**settings), stock, strict=True):
        batch, expected = ours[:], theirs[:]
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "index",
    [5, slice(3, 9), [4, 4, 0], np.array([2, 7]), torch.tensor([7, 2]), torch.tensor([True] * 48)],
    ids=lambda index: type(index).__name__,
)
@pytest.mark.parametrize("join", [True, False])
def test_any_index_gives_recboles_batch(rich, index, join):
    train = rich.build(numerical_features=["age", "prices"])[0]
    expected = {name: train.inter_feat[name] for name in train.inter_feat}
    if join:
        for feat, key in ((train.user_feat, "user_id"), (train.item_feat, "item_id")):
            expected |= {name: feat[name][expected[key]] for name in feat if name != key}
    batch = train.__getitem__(index, join=join)
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name][index]) for name in expected)


def test_batches_do_not_share_memory_with_the_data(rich):
    train = rich.build()[0]
    before = train.inter_feat["price"].clone()
    batch = train[torch.arange(5)]
    batch["price"] += 1
    batch["click"] += 1
    assert torch.equal(train.inter_feat["price"], before)


@pytest.mark.parametrize(
    "outcome",
    [
        {},
        {"TRUE_CVR_FIELD": None},
    ],
    ids=str,
)
def test_data_without_ids(toy, outcome):
    toy.table = toy.table[["row:token", "click:float", "conversion:float"]]
    train = toy.build(USER_ID_FIELD=None, ITEM_ID_FIELD=None, **outcome)[0]
    assert set(train[:2]) == {"row", "click", "conversion", "label"}
    assert train.truth.user is None
    assert "features: row" in str(train)


def test_summary_names_counts_and_features(rich):
    text = str(rich.dataset(numerical_features=["age"]))
    assert "60 impressions, 20 clicks (33.33%), 10 conversions (50.00% of clicks)" in text
    features = text.rpartition("features: ")[2].split(", ")
    assert set(features) == {
        *("user_id", "item_id", "row", "hour", "tags", "gender", "age", "tastes", "category")
    }


def test_recboles_functions_take_our_config(rich, monkeypatch, tmp_path):
    """They put the names of files that may be there behind a folder's name."""
    monkeypatch.chdir(tmp_path)
    config = rich.config(train_batch_size=7, eval_batch_size=4)
    dataset = create_dataset(config)
    assert type(dataset) is EntireSpaceDataset
    loaders = data_preparation(config, dataset)
    ours = rich.build()
    for loader, part in zip(loaders, ours, strict=True):
        batches = [batch[0] if isinstance(batch, tuple) else batch for batch in loader]
        together = {
            name: torch.cat([batch[name] for batch in batches]) for name in ("row", "label")
        }
        order, expected = together["row"].argsort(), part.inter_feat["row"].argsort()
        for name, column in together.items():
            assert torch.equal(column[order], part.inter_feat[name][expected]), name


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [([0.8, 0.1, 0.1], [48, 6, 6]), ([2, 1, 1], [30, 15, 15]), ([0.99, 0.005, 0.005], [58, 1, 1])],
)
def test_random_split_has_the_shares(toy, rows_of, shares, sizes):
    eval_args = {"split": {"RS": shares}, "order": "RO", "group_by": None, "mode": "labeled"}
    splits = toy.build(eval_args=eval_args)
    assert [len(split) for split in splits] == sizes
    assert sorted(rows_of(*splits)) == list(range(N))


def test_split_depends_on_the_seed_alone(toy, rows_of):
    def split(seed):
        return [rows_of(part) for part in toy.build(seed=seed)]

    first = split(1)
    torch.manual_seed(99)
    torch.rand(7)
    np.random.seed(5)
    assert split(1) == first
    other = split(2)
    assert all(set(a) != set(b) for a, b in zip(first, other, strict=True))


def test_split_leaves_the_random_state_alone(toy):
    dataset = toy.dataset()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    dataset.build()
    assert torch.equal(torch.rand(3), expected)


def test_split_by_time(toy, rows_of):
    toy.table["timestamp:float"] = [str(-i) for i in range(N)]
    eval_args = {"split": {"RS": [6, 2, 2]}, "order": "TO", "group_by": None, "mode": "labeled"}
    assert rows_of(*toy.build(eval_args=eval_args)) == list(range(N))[::-1]


def test_split_by_user(toy):
    eval_args = {"split": {"RS": [6, 2, 2]}, "group_by": "user", "mode": "labeled"}
    for split, size in zip(toy.build(eval_args=eval_args), (6, 2, 2), strict=True):
        assert np.bincount(split.inter_feat["user_id"])[1:].tolist() == [size] * 6


def test_presplit_files_keep_their_rows(toy, rows_of):
    parts = [rows_of(split) for split in toy.build(**toy.write_parts(30, 45))]
    assert parts == [list(range(30)), list(range(30, 45)), list(range(45, 60))]


@pytest.mark.parametrize("names", [["train"], ["train", "valid", "test", "test"], "train"])
def test_presplit_takes_two_or_three_files(toy, names):
    toy.write_parts(30, 45)
    with pytest.raises(UsageError, match=r"must be a list of three (different )?names") as e:
        toy.dataset(benchmark_filename=names)
    assert repr(names) in str(e.value)


# --- samples ---------------------------------------------------------------------------------


def test_sample_is_the_same_for_every_seed(toy, rows_of, caplog):
    toy.table = pd.concat([toy.table] * 10, ignore_index=True)
    toy.table["row:token"] = [f"r{i}" for i in range(600)]
    with caplog.at_level(logging.INFO):
        samples = [rows_of(*toy.build(seed=seed, impression_sample=0.3)) for seed in (1, 2)]
    first, second = map(sorted, samples)
    assert first == second
    assert first[:8] == [0, 1, 3, 6, 7, 11, 13, 20]  # numbers on a sample would change with it
    assert samples[0] != samples[1]
    assert 180 - 45 < len(first) < 180 + 45  # 4 standard deviations
    assert f"impression_sample 0.3: {len(first)} of 600 impressions" in caplog.text
    # Not the head of the file, which is often grouped by user.
    assert max(first) > 550
    assert len(set(np.diff(first))) > 3


def test_sample_of_presplit_files(toy, rows_of):
    parts = toy.build(**toy.write_parts(30, 45), impression_sample=0.6)
    for part, (start, end) in zip(parts, [(0, 30), (30, 45), (45, 60)], strict=True):
        rows = rows_of(part)
        assert rows == sorted(rows)
        assert 0 < len(rows) < end - start
        assert set(rows) <= set(range(start, end))


# --- impressions: pairs ----------------------------------------------------------------------

RATED = {("u0", "i0"): 5, ("u0", "i2"): 3, ("u1", "i1"): 4, ("u2", "i0"): 1, ("u2", "i2"): 4.5}


@pytest.fixture
def ratings(toy):
    """5 rated pairs; with the .user and .item files there are 4 users x 3 items."""
    toy.table = pd.DataFrame(
        {
            "user_id:token": [user for user, _ in RATED],
            "item_id:token": [item for _, item in RATED],
            "rating:float": [str(r) for r in RATED.values()],
            "timestamp:float": [str(i) for i in range(5)],
            "device:token": list("abcde"),
        }
    )
    toy.write("user", pd.DataFrame({"user_id:token": ["u3", "u2", "u1", "u0"], "g:token": "fmfm"}))
    toy.write("item", pd.DataFrame({"item_id:token": ["i2", "i1", "i0"]}))
    return toy


PAIRS = {
    "impressions": "pairs",
    "threshold": {"rating": 4},
    "eval_args": {"split": {"RS": [2, 1, 1]}, "order": "RO", "group_by": None, "mode": "labeled"},
}


def pairs_of(splits):
    """(click, conversion) of each pair of tokens, and whether a pair stands twice."""
    found = []
    for split in splits:
        users = split.id2token("user_id", split.inter_feat["user_id"])
        items = split.id2token("item_id", split.inter_feat["item_id"])
        labels = zip(split.inter_feat["click"], split.inter_feat["conversion"], strict=True)
        found += zip(
            zip(users, items, strict=True), ((int(o), int(r)) for o, r in labels), strict=True
        )
    assert len(dict(found)) == len(found)
    return dict(found)


def expected_pairs(users, items, rated=RATED):
    pairs = [(f"u{u}", f"i{i}") for u in range(users) for i in range(items)]
    return {pair: (int(pair in rated), int(rated.get(pair, 0) >= 4)) for pair in pairs}


@pytest.mark.parametrize("kind", ["float", "token"])
def test_pairs_are_all_pairs(ratings, features_of, kind):
    ratings.rename(rating=f"rating:{kind}", timestamp=f"timestamp:{kind}")
    splits = ratings.build(**PAIRS)
    assert pairs_of(splits) == expected_pairs(4, 3)
    assert features_of(splits[0]) == {"user_id", "item_id", "g"}
    assert set(splits[0][:1]) == {"user_id", "item_id", "g", "click", "conversion", "label"}


def test_pairs_without_side_files_are_of_seen_ids(ratings):
    ratings.file("user").unlink()
    ratings.file("item").unlink()
    assert pairs_of(ratings.build(**PAIRS)) == expected_pairs(3, 3)


def test_pairs_of_other_names(ratings, features_of):
    splits = ratings.build(
        **PAIRS, CLICK_FIELD="seen", CONVERSION_FIELD="liked", predict_task="ctr"
    )
    assert features_of(splits[0]) == {"user_id", "item_id", "g"}
    assert torch.equal(splits[0].inter_feat["seen"], splits[0].inter_feat["label"])
    assert sum(split.counts()["clicks"] for split in splits) == 5
    assert sum(split.counts()["conversions"] for split in splits) == 3


def test_pair_that_stands_twice_counts_once_by_its_last_row(ratings):
    again = ratings.table.iloc[[0, 1]].assign(**{"rating:float": ["2", "5"]})
    ratings.table = pd.concat([ratings.table, again])
    rated = {**RATED, ("u0", "i0"): 2, ("u0", "i2"): 5}
    assert pairs_of(ratings.build(**PAIRS)) == expected_pairs(4, 3, rated)


def test_pairs_are_not_presplit(ratings):
    for name in "abc":
        ratings.write(f"{name}.inter")
    with pytest.raises(UsageError, match="it can't be pre-split"):
        ratings.dataset(**PAIRS, benchmark_filename=list("abc"))


def test_pairs_need_a_threshold(ratings):
    with pytest.raises(UsageError, match=r"no column 'conversion'.* and a threshold"):
        ratings.dataset(**{**PAIRS, "threshold": None})


def test_all_pairs_leaves_out_what_is_not_listed():
    rated = pd.DataFrame({"u": ["a", "b", "c", "a"], "i": ["x", "y", "x", "z"]})
    pairs, row = all_pairs(rated, "u", "i", np.array(["b", "a"]), np.array(["x", "y"]))
    assert pairs.to_numpy().tolist() == [["b", "x"], ["b", "y"], ["a", "x"], ["a", "y"]]
    assert row.tolist() == [-1, 1, 0, -1]


def test_pairs_of_a_file_with_a_click_column_are_refused(ratings):
    ratings.table["click:float"] = "0"  # does it say so, or does the row?
    with pytest.raises(UsageError, match="'click'"):
        ratings.dataset(**PAIRS)


def test_pairs_without_the_click_column(ratings):
    ratings.table["click:float"] = "0"
    splits = ratings.build(**PAIRS, unload_col={"inter": ["click"]})
    assert pairs_of(splits) == expected_pairs(4, 3)


def test_pairs_of_a_file_with_a_conversion_column(ratings):
    del ratings.table["rating:float"]
    ratings.table["conversion:float"] = [str(int(r >= 4)) for r in RATED.values()]
    assert pairs_of(ratings.build(**{**PAIRS, "threshold": None})) == expected_pairs(4, 3)


# --- threshold -------------------------------------------------------------------------------


@pytest.fixture
def rated_rows(toy):
    toy.table["rating:float"] = [str(i % 5 + 1) if i % 3 == 0 else "" for i in range(N)]
    del toy.table["conversion:float"]
    return toy


@pytest.mark.parametrize("kind", ["float", "token"])
@pytest.mark.parametrize("load_col", [None, {"inter": ["user_id", "item_id", "row"]}])
def test_threshold_makes_the_conversion(rated_rows, rows_of, features_of, kind, load_col):
    rated_rows.rename(rating=f"rating:{kind}")
    for split in rated_rows.build(threshold={"rating": 4}, load_col=load_col):
        rows = rows_of(split)
        assert "rating" not in split[:1]
        assert features_of(split) == {"user_id", "item_id", "row"}
        expected = [float(row % 3 == 0 and row % 5 >= 3) for row in rows]
        assert split.inter_feat["conversion"].tolist() == expected


def test_threshold_of_a_missing_column(rated_rows):
    with pytest.raises(UsageError, match="threshold names 'stars'"):
        rated_rows.dataset(threshold={"stars": 4})


@pytest.mark.parametrize("text", ["", "abc"])
def test_threshold_of_a_missing_value_is_refused(rated_rows, text):
    rated_rows.rename(rating="rating:token").table.loc[3, "rating:token"] = text
    with pytest.raises(UsageError, match=r"'rating'.*(line 5|row 4)"):
        rated_rows.dataset(threshold={"rating": 4})


def test_threshold_of_a_missing_value_names_the_row_of_a_pair(ratings):
    ratings.table.loc[3, "rating:float"] = ""
    with pytest.raises(UsageError, match=r"'rating'.*toy.inter (row 4|line 5)"):
        ratings.dataset(**PAIRS)


@pytest.mark.parametrize("impressions", ["rows", "pairs"])
def test_threshold_spares_a_column_of_that_name_in_another_file(
    rated_rows, features_of, impressions
):
    if impressions == "pairs":
        rated_rows.table = rated_rows.table.iloc[::3].drop(columns=["click:float", "row:token"])
    side = rated_rows.table[["item_id:token"]].drop_duplicates()
    rated_rows.write("item", side.assign(**{"rating:token": "r" + side["item_id:token"]}))
    train = rated_rows.build(threshold={"rating": 4}, impressions=impressions)[0]
    assert {"rating"} < features_of(train)
    batch = train[:]
    items = train.id2token("item_id", batch["item_id"].numpy())
    ratings = train.id2token("rating", batch["rating"].numpy())
    assert [f"r{item}" for item in items] == ratings.tolist()


def test_column_of_an_unused_threshold_is_no_feature(rated_rows, features_of):
    rated_rows.rename(rating="rating:token").table["conversion:float"] = "0"
    dataset = rated_rows.dataset(threshold={"rating": 4})
    assert features_of(dataset) == {"user_id", "item_id", "row"}


def test_two_thresholds_are_refused(rated_rows):
    rated_rows.table["stars:token"] = rated_rows.table["rating:float"]
    with pytest.raises(UsageError, match="threshold"):
        rated_rows.dataset(threshold={"rating": 4, "stars": 2})


# --- faults in files -------------------------------------------------------------------------


def header(toy, text):
    toy.write()
    lines = toy.file("inter").read_text().splitlines()
    toy.file("inter").write_text("\n".join([text, *lines[1:]]) + "\n")


def no_click_in_train(toy):
    toy.table = toy.table.sort_values("row:token", key=lambda row: row.str[1:].astype(int))
    toy.table.loc[:29, ["click:float", "conversion:float"]] = "0"
    return toy.write_parts(30, 45)


def rename_click(toy):
    toy.rename(click="clicked:float")


def rename_conversion(toy):
    toy.rename(conversion="bought:float")


H = "user_id:token\titem_id:token\trow:token\tclick:float\t"
FAULTS = {
    "no click column": (
        rename_click,
        {},
        r"no column 'click' \(CLICK_FIELD\); its .inter file has .*clicked.*--CLICK_FIELD",
    ),
    "no conversion column": (
        rename_conversion,
        {},
        r"no column 'conversion' \(CONVERSION_FIELD\); .*bought.*--CONVERSION_FIELD",
    ),
    "header without types": (
        lambda toy: header(toy, H + "conversion"),
        {},
        r"toy.inter, line 1: the header has 'conversion', and must have 'name:type'",
    ),
    "header with another type": (
        lambda toy: header(toy, H + "conversion:int"),
        {},
        r"line 1: the header has 'conversion:int'.* with a type of token, float, token_seq",
    ),
    "header with other separators": (
        lambda toy: header(toy, (H + "conversion:float").replace("\t", ",")),
        {},
        r"line 1: the header has 'user_id:token,item_id.*\(separator '\\t'\)",
    ),
    "empty file": (lambda toy: toy.file("inter").write_text(""), {}, r"line 1: the header has ''"),
    "load_col of a missing column": (
        None,
        {"load_col": {"inter": ["user_id", "item_id", "hour", "row", "day"]}},
        r"load_col names 'hour', 'day', which .*toy.inter .*; it has user_id, item_id, row, click",
    ),
    "load_col of a missing user column": (
        lambda toy: toy.write("user", toy.table[["user_id:token"]].drop_duplicates()),
        {"load_col": {"inter": "*", "user": ["user_id", "age"]}},
        r"load_col names 'age', which .*toy.user doesn't have; it has user_id$",
    ),
    "number that is none": (
        lambda toy: toy.table.insert(0, "price:float", "cheap"),
        {},
        r"toy.inter, line 2: .*price:float",
    ),
    "missing pre-split file": (
        lambda toy: toy.write_parts(30, 45),
        {"benchmark_filename": ["train", "valid", "testing"]},
        r"data set 'toy': there is no file .*toy.testing.inter",
    ),
    "no click in train": (
        no_click_in_train,
        {"benchmark_filename": ["train", "valid", "test"]},
        r"no click among the 30 impressions of train \(column 'click'\)",
    ),
    "empty pre-split file": (
        lambda toy: toy.write_parts(30, 30),
        {"benchmark_filename": ["train", "valid", "test"]},
        r"has no (impression|row)",
    ),
    "empty test split": (
        None,
        {"eval_args": {"split": {"RS": [0.8, 0.2, 0]}, "group_by": None, "mode": "labeled"}},
        r"test has no impression; see eval_args",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_explained(toy, case):
    prepare, settings, message = FAULTS[case]
    if prepare:
        prepare(toy)
    with pytest.raises(UsageError, match=message):
        toy.build(**settings)


def test_missing_inter_file(toy):
    toy.write("user", toy.table[["user_id:token"]])
    toy.write("other.inter")
    with pytest.raises(UsageError, match=re.escape(f"there is no file {toy.file('inter')}")):
        toy.dataset()


def test_missing_folder_names_what_there_is(toy):
    toy.write()
    toy.folder.rename(toy.data_path / "shop")
    (toy.data_path / "shop" / "toy.inter").rename(toy.data_path / "shop" / "shop.inter")
    config = toy.config()
    with pytest.raises(UsageError) as caught:
        EntireSpaceDataset(config)
    message = str(caught.value)
    assert (
        "there is no data set 'toy'. Data sets: ali-ccp, ali-ccp-sim, aliexpress-es, "
        "aliexpress-fr, aliexpress-nl, aliexpress-us, coat, criteo-attribution, criteo-uplift, "
        "hillstrom, kuairand-pure, kuairec, ml-100k, ml-100k-semi, shop, yahoo-r3." in message
    )
    assert f"put its atomic files into {toy.folder} (toy.inter" in message
    assert "--data_path" in message


# What RecBole's reader takes silently for something else, or refuses without saying where.
MALFORMED = {
    "a cell too many in every line": (
        lambda lines: [lines[0], *(f"{line}\t0" for line in lines[1:])],
        r"toy.inter.*line 2",
    ),
    "a cell too many in one line": (
        lambda lines: [*lines[:7], lines[7] + "\t0", *lines[8:]],
        r"toy.inter.*line 8",
    ),
    "a quote that opens": (
        lambda lines: [*lines[:7], '"' + lines[7], *lines[8:20], lines[20] + '"', *lines[21:]],
        r"toy.inter.*line 8",
    ),
    "no row": (lambda lines: lines[:1], r"toy.inter"),
    "a label column twice": (
        lambda lines: [lines[0] + "\tclick:token", *(f"{line}\t0" for line in lines[1:])],
        r"toy.inter.*'click'.*twice",
    ),
    "no item column": (
        lambda lines: [line.replace("item_id:", "product:") for line in lines],
        r"item_id.*ITEM_ID_FIELD",
    ),
}


def test_cell_that_ends_in_an_escaped_quote_is_refused(toy):
    toy.table["title:token"] = "t"
    toy.write()
    lines = toy.file("inter").read_text().splitlines()
    lines[7] = lines[7][:-1] + '"t""'
    lines[20] += '"'
    toy.file("inter").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"toy.inter, line 8: a quote"):
        toy.dataset()


@pytest.mark.parametrize("suffix", ["inter", "item"])
def test_file_in_another_encoding(toy, suffix):
    toy.table["item_id:token"] = "\xe9" + toy.table["item_id:token"]
    toy.write()
    toy.write("item", toy.table[["item_id:token"]].drop_duplicates())
    toy.file(suffix).write_bytes(toy.file(suffix).read_text("utf-8").encode("latin-1"))
    with pytest.raises(UsageError, match=rf"toy.{suffix}.*encoding"):
        toy.dataset()


def test_encoding_is_a_setting(toy):
    toy.table["item_id:token"] = "\xe9" + toy.table["item_id:token"]
    toy.write()
    toy.file("inter").write_bytes(toy.file("inter").read_text("utf-8").encode("latin-1"))
    train = toy.build(encoding="latin-1")[0]
    assert all(token.startswith("\xe9i") for token in train.field2id_token["item_id"][1:])


@pytest.mark.parametrize("load_col", [{"inter": ["item_id"]}, {"user": ["user_id"]}])
def test_load_col_without_an_id(toy, load_col):
    toy.write("user", toy.table[["user_id:token"]].drop_duplicates())
    with pytest.raises(UsageError, match=r"load_col.*user_id"):
        toy.dataset(load_col=load_col)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused(toy, case):
    change, message = MALFORMED[case]
    toy.write()
    lines = toy.file("inter").read_text().splitlines()
    toy.file("inter").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UsageError, match=message):
        toy.build()


def test_split_by_time_needs_a_time(toy):
    eval_args = {"split": {"RS": [6, 2, 2]}, "order": "TO", "mode": "labeled"}
    with pytest.raises(UsageError, match=r"TO .*'timestamp'"):
        toy.build(eval_args=eval_args)


def test_split_in_two_is_refused(toy):
    eval_args = {"split": {"RS": [0.8, 0.2]}, "group_by": None, "mode": "labeled"}
    with pytest.raises(UsageError, match=r"eval_args.*three"):
        toy.build(eval_args=eval_args)


def test_impressions_left_out_by_a_filter_are_counted(rich, caplog):
    rich.write("user", rich.users[1:])
    with caplog.at_level(logging.WARNING):
        rich.dataset()
    assert "10 of 60 impressions" in caplog.text


def test_presplit_files_may_differ_in_what_is_not_loaded(toy):
    settings = toy.write_parts(30, 45)
    toy.write("valid.inter", toy.table[30:45].assign(**{"extra:token": "x"}))
    with pytest.raises(UsageError, match=r"toy.train.inter lacks the column 'extra'"):
        toy.dataset(**settings)
    toy.dataset(**settings, load_col={"inter": ["user_id", "item_id", "row"]})


@pytest.mark.parametrize("suffix", ["user", "item"])
def test_side_file_without_its_id(toy, suffix):
    toy.write(suffix, pd.DataFrame({"age:token": ["1"]}))
    with pytest.raises(UsageError, match=rf"toy.{suffix} has no column '{suffix}_id'"):
        toy.dataset()


def test_encoding_without_its_mark(toy):
    toy.write()
    with pytest.raises(UsageError, match=r"toy.inter isn't text in utf-16.*set encoding"):
        toy.dataset(encoding="utf-16")
