"""Labels and predictions of files: joined, checked, and refused with file and row."""

import numpy as np
import pandas as pd
import pytest

from recbole_escm2.errors import UsageError
from recbole_escm2.scoring.read import read


@pytest.fixture
def labels():
    return pd.DataFrame(
        {
            "row": [1, 2, 3, 4],
            "day": ["a", "a", "b", "b"],
            "user_id": ["x", None, "x", "y"],
            "click": [1, 0, 1, 0],
            "conversion": [1, None, 0, None],
        }
    )


@pytest.fixture
def predictions():
    return pd.DataFrame(
        {"row": [4, 3, 2, 1], "day": ["b", "b", "a", "a"], "pctr": [0.4, 0.3, 0.2, 0.1]}
    )


def test_rows_are_joined_by_key(labels, predictions):
    for key in (["row"], ["row", "day"], ["day", "row"]):
        given = read(labels, {"a": predictions}, {}, key)
        assert given.models["a"].of("ctr").tolist() == [0.1, 0.2, 0.3, 0.4]
    assert given.models["a"].truth.user.tolist() == [1, 0, 1, 2]
    assert given.models["a"].truth.conversion.tolist() == [1, 0, 0, 0]


def test_keys_of_other_types_are_joined_as_text(labels, predictions, tmp_path):
    predictions.to_csv(tmp_path / "a.csv", index=False)
    given = read(labels, {"a": tmp_path / "a.csv"}, {}, ["row"])
    assert given.models["a"].of("ctr").tolist() == [0.1, 0.2, 0.3, 0.4]


def test_float32_stays_float32(labels, predictions):
    given = read(labels, {"a": predictions.astype({"pctr": np.float32})}, {}, ["row"])
    assert given.models["a"].of("ctr").dtype == np.float32


def test_a_folder_of_parts_is_a_table(labels, predictions, tmp_path):
    folder = tmp_path / "a.parquet"
    folder.mkdir()
    predictions[:3].to_parquet(folder / "0.parquet")
    predictions[3:].assign(pctr=2.0).to_parquet(folder / "1.parquet")
    with pytest.raises(UsageError, match=r"1\.parquet, row 1: pctr is 2, and must be a prob"):
        read(labels, {"a": folder}, {}, ["row"])


def changed(table, column, row, value):
    again = table.copy()
    again[column] = again[column].astype(object)
    again.loc[row, column] = value
    return again.infer_objects()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("pctr", 1.5, r"p.csv, line 4: pctr is 1.5, and must be a probability .* logits"),
        ("pctr", -0.1, r"p.csv, line 4: pctr is -0.1"),
        ("pctr", np.nan, r"p.csv, line 4: pctr is missing"),
        ("pctr", "high", r"p.csv"),
        ("row", 3, r"p.csv, line 4: row=3 stands there a second time, first in .*p.csv, line 3"),
        ("row", 9, r"1 of 4 rows of labels have no row in .*p.csv with the same row: row=2"),
    ],
)
def test_wrong_predictions_are_named_with_file_and_line(
    labels, predictions, tmp_path, column, value, said
):
    changed(predictions, column, 2, value).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(UsageError, match=said):
        read(labels, {"a": tmp_path / "p.csv"}, {}, ["row"])


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("click", 1, 2, r"labels, row 2: click is 2, and must be 0 or 1"),
        ("click", 1, None, r"labels, row 2: click is missing"),
        ("conversion", 2, None, r"labels, row 3: conversion is missing, and must be 0 or 1"),
        ("conversion", 2, 0.5, r"labels, row 3: conversion is 0.5"),
        ("click", 1, "yes", r"column 'click' must hold numbers"),
    ],
)
def test_wrong_labels_are_named_with_their_row(labels, predictions, column, row, value, said):
    wrong = changed(labels, column, row, value)
    if value == "yes":
        wrong["click"] = ["no", "yes", "no", "no"]
    with pytest.raises(UsageError, match=said):
        read(wrong, {"a": predictions}, {}, ["row"])


def test_other_lengths_and_other_rows_are_refused(labels, predictions):
    with pytest.raises(UsageError, match=r"a has 3 rows, labels has 4: .* --key=COLUMN"):
        read(labels, {"a": predictions[:3]}, {})
    with pytest.raises(UsageError, match=r"1 of 4 rows of labels have no row in a .* row=1"):
        read(labels, {"a": predictions[:3]}, {}, ["row"])
    with pytest.raises(UsageError, match=r"1 of 4 rows of a have no row in labels .* row=4"):
        read(labels[:3], {"a": predictions}, {}, ["row"])
    with pytest.raises(UsageError, match=r"4 of 4 rows of labels have no row in a .* row=1"):
        read(labels, {"a": predictions[:0]}, {}, ["row"])


def test_labels_of_another_file_have_to_be_the_same(labels, predictions):
    first = labels.assign(pctr=0.5)
    second = labels.assign(pctr=0.4)[::-1]
    with pytest.raises(UsageError, match=r"b, row 1: click isn't the same .* --key"):
        read(None, {"a": first, "b": second}, {})
    given = read(None, {"a": first, "b": second}, {}, ["row"])
    assert list(given.models) == ["a", "b"]


def test_two_models_of_one_name_are_refused(labels):
    table = pd.DataFrame({"pctr_a": [0.1] * 4})
    with pytest.raises(UsageError, match="two models are called a"):
        read(labels, {"x": table, "y": table}, {})


def test_columns_may_have_other_names(labels, predictions):
    names = {"CLICK_FIELD": "clk", "pctr": "p"}
    given = read(
        labels.rename(columns={"click": "clk"}),
        {"a": predictions.rename(columns={"pctr": "p"})},
        names,
        ["row"],
    )
    assert given.models["a"].of("ctr")[0] == 0.1
    with pytest.raises(UsageError, match=r"no column 'click', .*row, day, user_id, clk"):
        read(labels.rename(columns={"click": "clk"}), {"a": predictions}, {})


def test_conversions_without_click_are_counted(labels, predictions):
    odd = labels.assign(conversion=[1, 1, 0, 0])
    assert any("1 rows have" in note for note in read(odd, {"a": predictions}, {}, ["row"]).notes)
