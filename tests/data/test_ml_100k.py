"""ml-100k as it ships inside RecBole: all user-item pairs, a rated one is a click."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
from recbole.utils import FeatureSource, FeatureType

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset

FOLDER = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
USERS, ITEMS = 943, 1682


@pytest.fixture(scope="module")
def ratings():
    return pd.read_csv(FOLDER / "ml-100k.inter", sep="\t")


@pytest.fixture(scope="module")
def dataset():
    return EntireSpaceDataset(Config("ESMM", "ml-100k"))


@pytest.fixture(scope="module")
def splits(dataset):
    return dataset.build()


def pairs(split, rows):
    """Numbers of (user, item) pairs, made of the tokens in the files."""
    user, item = (
        np.array([0, *map(int, split.field2id_token[field][1:])])[split.inter_feat[field][rows]]
        for field in ("user_id", "item_id")
    )
    return user * 10_000 + item


def test_the_wheel_holds_what_science_says(ratings):
    assert ratings["user_id:token"].nunique() == USERS
    assert ratings["item_id:token"].nunique() == ITEMS
    assert not ratings.duplicated(["user_id:token", "item_id:token"]).any()
    assert len(ratings) == 100_000
    assert (ratings["rating:float"] >= 4).sum() == 55_375


def test_counts(splits):
    counts = [split.counts() for split in splits]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert total == {"impressions": 1_586_126, "clicks": 100_000, "conversions": 55_375}
    assert total["impressions"] == USERS * ITEMS
    assert total["clicks"] / total["impressions"] == pytest.approx(0.0630, abs=5e-5)
    assert [count["impressions"] for count in counts] == [1_268_902, 158_612, 158_612]


def test_summary(dataset):
    text = str(dataset)
    assert "1,586,126 impressions, 100,000 clicks (6.30%), 55,375 conversions (55.38% of" in text
    assert "943 users, 1,682 items" in text


def test_labels_are_those_of_the_ratings(splits, ratings):
    key = ratings["user_id:token"] * 10_000 + ratings["item_id:token"]
    expected = {"click": key, "conversion": key[ratings["rating:float"] >= 4]}
    for name, rated in expected.items():
        found = [pairs(split, np.flatnonzero(split.inter_feat[name] > 0)) for split in splits]
        assert np.array_equal(np.sort(np.concatenate(found)), np.sort(rated))
    everything = np.concatenate([pairs(split, slice(None)) for split in splits])
    assert len(np.unique(everything)) == len(everything) == USERS * ITEMS


def test_features_are_those_of_the_yaml(splits):
    sources = [s for s in FeatureSource if s not in (FeatureSource.KG, FeatureSource.NET)]
    fields = splits[0].fields(source=sources)
    assert {name: splits[0].field2type[name] for name in fields} == {
        **dict.fromkeys(
            ["user_id", "item_id", "age", "gender", "occupation", "release_year"], FeatureType.TOKEN
        ),
        "class": FeatureType.TOKEN_SEQ,
    }
    assert set(splits[0][:1]) == {*fields, "click", "conversion", "label"}


def test_features_are_those_of_the_files(splits):
    users, items = (
        pd.read_csv(FOLDER / f"ml-100k.{name}", sep="\t", dtype=str).set_index(f"{name}_id:token")
        for name in ("user", "item")
    )
    test = splits[2]
    rows = np.arange(0, len(test), 997)
    batch = test[rows]
    for i in range(len(rows)):

        def token(field, i=i):
            return test.id2token(field, batch[field][i].item())

        user, item = users.loc[token("user_id")], items.loc[token("item_id")]
        assert (token("age"), token("gender")) == (user["age:token"], user["gender:token"])
        assert token("occupation") == user["occupation:token"]
        assert token("release_year") == str(item["release_year:token"]).replace("nan", "[PAD]")
        classes = batch["class"][i].numpy()
        assert " ".join(test.id2token("class", classes[classes > 0])) == item["class:token_seq"]
