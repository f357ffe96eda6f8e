"""Metrics by group of impressions: who is in a group, and the numbers of each."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from recbole_escm2.command_line import main
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, save_table
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.groups import groupings, groups_text, missing_notes
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.quick_start import evaluate_checkpoint, run, show


@pytest.fixture
def parts(settings):
    """Train and test of ``tiny``."""
    train, _, test = EntireSpaceDataset(Config("ESMM", "tiny", config_dict=settings)).build()
    return train, test


def formed(by, parts, flip=False):
    """The grouping, with labels of test as they are or the other way round."""
    train, test = parts
    rng = np.random.default_rng(0)
    truth = replace(test.truth, click=1 - test.truth.click) if flip else test.truth
    scores = {task: rng.random(len(test)).astype(np.float32) for task in ("ctr", "cvr", "ctcvr")}
    (made,) = groupings([by], train, test, Predictions(truth, scores))
    return made, scores["ctr"]


def items(part):
    return np.array(part.field2id_token["item_id"][:])[part.values("item_id").numpy()]


def test_popularity_is_counted_in_train(parts):
    train, test = parts
    made, _ = formed("item_popularity:3", parts)
    times = pd.Series(items(train)).value_counts()
    own = times.reindex(items(test)).fillna(0).to_numpy()
    shares = []
    for number, name in enumerate(made.names[1:], start=1):
        counts = own[made.index == number]
        assert name == f"{number} of 3"
        assert counts.min() > (own[made.index == number - 1].max() if number > 1 else 0)
        shares.append(times[times.between(counts.min(), counts.max())].sum() / len(train))
    assert np.allclose(shares, 1 / 3, atol=0.05)


def test_clicks_of_the_item_are_those_of_train(parts):
    train, test = parts
    made, _ = formed("item_clicks", parts)
    clicked = items(train)[train.truth.click > 0]
    own = pd.Series(clicked).value_counts().reindex(items(test)).fillna(0).to_numpy()
    assert [own[made.index == n].max() for n in (1, 2, 3)] == sorted(
        own[made.index == n].max() for n in (1, 2, 3)
    )
    assert made.about[1] == f"≤ {int(own[made.index == 1].max())}"


def test_what_rare_items_have_together_is_nobodys_popularity(settings, tmp_path):
    """Items below min_count share an id, which may have more impressions than any other."""
    rng = np.random.default_rng(0)
    parts = {}
    for part in ("train", "valid", "test"):
        item = [f"rare{n}" if n % 2 else f"item{n % 3}" for n in range(400)]
        click = rng.integers(2, size=400)
        frame = pd.DataFrame({"user_id": np.arange(400) % 7, "item_id": item, "click": click})
        parts[part] = frame.assign(conversion=click)
    save_table(parts, "tail", tmp_path)
    own = {"data_path": str(tmp_path), "min_count": 5, "numerical_features": None}
    own["benchmark_filename"] = ["train", "valid", "test"]
    train, _, test = EntireSpaceDataset(
        Config("ESMM", "tail", config_dict={**settings, **own})
    ).build()
    made, _ = formed("item_popularity:2", (train, test))
    assert (made.names[0], (made.index == 0).sum()) == ("none", 200)
    assert made.about[0] == "0, or an item with fewer than 5 impressions"
    assert int(made.about[1].removeprefix("≤ ")) < 70


def split_table(tmp_path, settings, item, click, **more):
    """Train and test of a table whose three parts have the same items and clicks."""
    columns = {"item_id": item, "click": click, "conversion": click}
    users = {"train": 7, "valid": 8, "test": 9}
    frames = {
        part: pd.DataFrame({"user_id": np.arange(len(item)) % number, **columns})
        for part, number in users.items()
    }
    save_table(frames, "made", tmp_path)
    own = {"data_path": str(tmp_path), "numerical_features": None}
    own["benchmark_filename"] = ["train", "valid", "test"]
    config = Config("ESMM", "made", config_dict={**settings, **own, **more})
    train, _, test = EntireSpaceDataset(config).build()
    return train, test


def test_items_without_a_click_take_no_part_in_the_cuts(settings, tmp_path):
    number = np.arange(800) % 20
    click = ((number >= 10) & (np.arange(800) // 20 < number)).astype(int)  # none of ten items
    made, _ = formed("item_clicks:2", split_table(tmp_path, settings, number, click))
    assert np.bincount(made.index).tolist() == [400, 200, 200]
    assert made.about == ("0", "≤ 14", "> 14")


def test_where_all_items_are_rare_none_has_a_popularity(settings, tmp_path):
    parts = split_table(tmp_path, settings, np.arange(300), np.arange(300) % 2, min_count=5)
    for by in ("item_popularity", "item_clicks"):
        made, _ = formed(by, parts)
        assert not made.index.any()


@pytest.mark.parametrize("by", ["item_popularity", "item_clicks", "category:2", "pctr", "age"])
def test_labels_of_test_form_no_group(parts, by):
    one, other = formed(by, parts)[0], formed(by, parts, flip=True)[0]
    assert (one.index == other.index).all()
    assert [*one.about] == [*other.about]


def test_deciles_of_pctr_have_as_many_impressions(parts):
    made, pctr = formed("pctr", parts)
    assert np.bincount(made.index).tolist() == [40] * 10
    assert (np.diff([pctr[made.index == n].mean() for n in range(10)]) > 0).all()


def test_the_most_frequent_values_of_a_field_are_groups(parts):
    train, test = parts
    made, _ = formed("category:2", parts)
    tokens = np.array(test.field2id_token["category"][:])
    times = pd.Series(tokens[train.values("category").numpy()]).value_counts()
    assert [*made.names] == [*times.index[:2], "others", "no value"]
    own = tokens[test.values("category").numpy()]
    assert (own[made.index == 0] == made.names[0]).all()
    assert not np.isin(own[made.index == 2], made.names[:2]).any()


def test_numbers_are_cut_in_their_own_unit(parts):
    """Models get them standardised."""
    _, test = parts
    made, _ = formed("age:2", parts)
    cut = float(made.about[0].removeprefix("≤ "))
    file = Path(test.config["data_path"]) / "tiny.user"
    ages = pd.read_csv(file, sep="\t").set_index("user_id:token")["age:float"]
    users = np.array(test.field2id_token["user_id"][:])[test.values("user_id").numpy()]
    own = ages.loc[users].to_numpy()
    assert own[made.index == 0].max() <= cut + 0.01
    assert own[made.index == 1].min() >= cut - 0.01


def test_each_group_has_the_metrics_of_its_impressions(settings, places):
    asked = {"by": "category, item_popularity:2", "save_predictions": True}
    outcome = run("ESCM2_IPS", "tiny", config_dict={**settings, **asked})
    frame = pd.read_parquet(Path(outcome["run_dir"]) / "predictions-test.parquet")
    by_category, by_item = outcome["groups"]
    item_file = Path(settings["data_path"]) / "tiny" / "tiny.item"
    category = pd.read_csv(item_file, sep="\t").set_index("item_id:token")["category:token"]
    for group in by_category["groups"]:
        own = frame[frame["item_id"].map(category) == group["group"]]
        assert group["impressions"] == len(own)
        assert group["clicks"] == own["click"].sum()
        assert group["conversions"] == own["conversion"].sum()
        number = group["metrics"]["CTR_AUC"]
        assert number["value"] == pytest.approx(roc_auc_score(own["click"], own["pctr"]))
        assert number["low"] < number["value"] < number["high"]
    assert sum(group["impressions"] for group in by_item["groups"]) == len(frame)
    check_kept(outcome)
    checkpoint = Path(outcome["run_dir"]) / "checkpoint.pth"
    again = evaluate_checkpoint(checkpoint, config_dict={**places, "by": ["category"]})
    assert again["groups"] == [by_category]


def check_kept(outcome):
    folder = Path(outcome["run_dir"])
    assert json.loads((folder / "result.json").read_text())["groups"] == outcome["groups"]
    with open(folder / "groups-test.csv", newline="") as file:
        lines = [*csv.DictReader(file)]
    assert {line["by"] for line in lines} == {"category", "item_popularity:2"}
    (first, *_) = (line for line in lines if line["metric"] == "CVR_AUC")
    group = outcome["groups"][0]["groups"][0]
    assert float(first["low"]) == group["metrics"]["CVR_AUC"]["low"]
    assert int(first["clicks"]) == group["clicks"]
    said = show({**outcome, "best_epoch": 0})
    assert "By category (the 5 most frequent values of category in train)" in said
    assert f"{group['impressions']:,}" in said


def test_a_group_without_a_conversion_says_so(parts):
    content = [
        {
            "by": "hour",
            "rule": "the values",
            "groups": [
                {
                    "group": "3",
                    "about": "",
                    "impressions": 8,
                    "clicks": 2,
                    "conversions": 0,
                    "metrics": {"CTR_AUC": {"value": 0.75, "low": None, "high": None}},
                    "undefined": {"CVR_AUC": "no positive among 2 rows"},
                }
            ],
        }
    ]
    assert "3                8       2            0    0.750" in groups_text(content)
    assert missing_notes(content) == ["By hour, 3: no CVR_AUC, no positive among 2 rows."]


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("categori", "no column 'categori' (did you mean category?"),
        ("tags", "'tags' has several values"),
        ("conversion", "'conversion' has several values an impression, or is a label"),
        ("item_popularty:3", "did you mean item_popularity?"),
    ],
)
def test_what_forms_no_groups_is_refused_before_training(settings, by, said, capsys):
    options = [f"--{k}={v}" for k, v in settings.items()]
    assert main(["--model=ESMM", "--dataset=tiny", f"--by={by}", *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path(settings["output_dir"]).exists()


def test_groups_by_an_item_need_one(settings, tmp_path):
    click = np.random.default_rng(0).integers(2, size=300)
    frame = pd.DataFrame({"place": np.arange(300) % 3, "click": click, "conversion": click})
    save_table(frame, "bare", tmp_path)
    own = {"data_path": str(tmp_path), "numerical_features": None, "by": "item_popularity"}
    with pytest.raises(UsageError, match="needs an item column"):
        run("ESMM", "bare", config_dict={**settings, **own})
