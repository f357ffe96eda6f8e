import logging
import re

import numpy as np
import pytest
import torch
from recbole.model.context_aware_recommender.deepfm import DeepFM

from recbole_escm2.errors import UsageError
from recbole_escm2.model import ESMM

LABELS = {"click", "conversion", "potential_conversion", "true_ctr", "true_cvr"}


def model_features(model):
    return {
        name
        for kind in ("token", "token_seq", "float", "float_seq")
        for name in getattr(model, f"{kind}_field_names")
    }


def labels_in_row_order(splits, together, names=("click", "conversion")):
    columns = together(splits)
    return [columns[name].tolist() for name in names]


# --- what is a label -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["token", "float"])
def test_labels_are_numbers_and_never_features(toy, together, features_of, kind):
    toy.with_outcomes().rename(**{name: f"{name}:{kind}" for name in LABELS})
    splits = toy.build()
    assert features_of(splits[0]) == {"user_id", "item_id", "row"}
    columns = together(splits)
    # By row id as the data set numbers it: in the order of the file.
    assert columns["click"].tolist() == [float(i % 3 == 0) for i in range(60)]
    assert columns["conversion"].tolist() == [float(i % 6 == 0) for i in range(60)]
    assert columns["click"].dtype == columns["conversion"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["token", "float"])
@pytest.mark.parametrize("model_class", [ESMM, DeepFM])
def test_no_model_sees_a_label(toy, model_class, kind):
    toy.with_outcomes().rename(**{name: f"{name}:{kind}" for name in LABELS})
    train = toy.build(model_class)[0]
    config = toy.config(model_class)
    assert model_features(model_class(config, train)) == {"user_id", "item_id", "row"}


@pytest.mark.parametrize("kind", ["token_seq", "float_seq"])
@pytest.mark.parametrize("field", ["click", "true_cvr"])
def test_label_declared_as_sequence_is_refused(toy, field, kind):
    toy.with_outcomes().rename(**{field: f"{field}:{kind}"})
    with pytest.raises(UsageError, match=f"toy.inter: column '{field}' is declared {kind}"):
        toy.dataset()


@pytest.mark.parametrize("label_field", ["label", "clicked", "bought"])
def test_labels_have_any_names(toy, together, features_of, label_field):
    toy.rename(click="clicked:token", conversion="bought:float")
    splits = toy.build(
        CLICK_FIELD="clicked",
        CONVERSION_FIELD="bought",
        LABEL_FIELD=label_field,
        predict_task="cvr",
    )
    assert features_of(splits[0]) == {"user_id", "item_id", "row"}
    click, conversion, cvr = labels_in_row_order(
        splits, together, ("clicked", "bought", splits[0].label_field)
    )
    assert click == [float(i % 3 == 0) for i in range(60)]
    assert conversion == cvr == [float(i % 6 == 0) for i in range(60)]
    assert splits[0].label_field not in ("clicked", "bought")


@pytest.mark.parametrize(("model", "key"), [("ESMM", "predict_task"), ("DeepFM", "task")])
@pytest.mark.parametrize(("task", "period"), [("ctr", 3), ("cvr", 6), ("ctcvr", 6)])
def test_label_field_is_the_label_of_the_task(toy, rows_of, model, key, task, period):
    for split in toy.build(model, **{key: task}):
        label = split[torch.arange(len(split))]["label"]
        assert label.tolist() == [float(row % period == 0) for row in rows_of(split)]


@pytest.mark.parametrize(("model", "task"), [("ESMM", {}), ("DeepFM", {"task": "cvr"})])
def test_only_single_task_cvr_trains_in_the_click_space(toy, rows_of, model, task):
    whole = toy.build("DeepFM", task="ctr")
    parts = toy.build(model, **task)
    for split, everything in zip(parts[1:], whole[1:], strict=True):
        assert rows_of(split) == rows_of(everything)
    expected = rows_of(whole[0])
    if model == "DeepFM":
        expected = [row for row in expected if row % 3 == 0]
        assert parts[0].truth is None
    assert rows_of(parts[0]) == expected
    assert len(parts[0]) == len(expected)


def test_normalize_all_leaves_labels_alone(toy, together):
    # RecBole makes 1.0 of a constant column.
    toy.with_outcomes()
    toy.table["conversion:float"] = "0"
    toy.table["price:float"] = [str(i) for i in range(60)]
    splits = toy.build(normalize_all=True)
    columns = together(splits)
    assert columns["conversion"].tolist() == columns["label"].tolist() == [0.0] * 60
    assert columns["price"].max() == 1.0
    for split in splits:
        assert split.truth.conversion.max() == 0.0
        assert split.truth.true_ctr.min() > 0.0


@pytest.mark.parametrize("key", ["numerical_features", "normalize_field", "discretization"])
@pytest.mark.parametrize(
    "field",
    [
        "click",
        "conversion",
        "true_cvr",
        "label",
    ],
)
def test_label_as_a_feature_is_refused(toy, key, field):
    value = {field: {"method": "LD"}} if key == "discretization" else [field]
    with pytest.raises(UsageError, match=f"{key} names the label '{field}'"):
        toy.config(**{key: value})


@pytest.mark.parametrize("suffix", ["user", "item"])
@pytest.mark.parametrize(
    ("field", "kind"),
    [("click", "token"), ("conversion", "float"), ("true_cvr", "token"), ("label", "float")],
)
def test_label_name_in_another_file_is_refused(toy, suffix, field, kind):
    toy.with_outcomes().write()
    key = f"{suffix}_id:token"
    side = toy.table[[key]].drop_duplicates()
    toy.write(suffix, side.assign(**{f"{field}:{kind}": "7"}))
    with pytest.raises(UsageError, match=rf"toy.{suffix}.*'{field}'"):
        toy.dataset()


@pytest.mark.parametrize(
    ("suffix", "field", "settings"),
    [
        ("item", "click", {"unload_col": {"item": ["click"]}}),
        ("user", "click", {"load_col": {"inter": ["user_id", "item_id", "row"]}}),
        ("inter", "label", {"unload_col": {"inter": ["label"]}}),
    ],
)
def test_label_name_may_stand_in_a_column_that_is_not_loaded(
    toy, features_of, suffix, field, settings
):
    if suffix == "inter":
        toy.table[f"{field}:token"] = "a"
    else:
        side = toy.table[[f"{suffix}_id:token"]].drop_duplicates()
        toy.write(suffix, side.assign(**{f"{field}:float": "7"}))
    train = toy.build(**settings)[0]
    assert features_of(train) == {"user_id", "item_id", "row"}
    assert train[:]["click"].tolist() == train.truth.click.tolist()


@pytest.mark.parametrize("field", ["potential_conversion", "true_ctr", "true_cvr"])
def test_label_field_does_not_replace_an_outcome(toy, rows_of, field):
    train = toy.with_outcomes().build(LABEL_FIELD=field)[0]
    check_outcomes(train, rows_of(train))
    assert field not in train[:1]


def test_feature_with_the_name_of_label_field_is_refused(toy):
    toy.table["label:token"] = "a"
    with pytest.raises(UsageError, match="LABEL_FIELD"):
        toy.dataset()


# --- faulty labels ---------------------------------------------------------------------------

BAD_LABELS = ["", "nan", "NA", "abc", "2", "-1", "0.5", "inf", "True"]


def expected_fault(text, line):
    return f"line {line} none" if text == "" else f"line {line} has {text!r}"


@pytest.mark.parametrize("kind", ["token", "float"])
@pytest.mark.parametrize("text", BAD_LABELS)
@pytest.mark.parametrize("field", ["click", "conversion", "potential_conversion"])
def test_faulty_label_is_refused(toy, field, text, kind):
    toy.with_outcomes().rename(**{field: f"{field}:{kind}"})
    toy.table.loc[41, f"{field}:{kind}"] = text
    with pytest.raises(UsageError) as caught:
        toy.dataset()
    message = str(caught.value)
    assert message.startswith(f"{toy.file('inter')}: column '{field}' must hold 0 or 1")
    assert f"but {expected_fault(text, 43)}." in message


@pytest.mark.parametrize("text", ["", "abc", "1.001", "-0.001"])
@pytest.mark.parametrize("field", ["true_ctr", "true_cvr"])
def test_faulty_probability_is_refused(toy, field, text):
    toy.with_outcomes().table.loc[41, f"{field}:float"] = text
    with pytest.raises(UsageError, match=re.escape(expected_fault(text, 43))) as caught:
        toy.dataset()
    assert f"column '{field}' must hold a probability in [0, 1]" in str(caught.value)


@pytest.mark.parametrize("text", ["0", "1", "0.0", "1.0", "1e0", "00"])
@pytest.mark.parametrize("kind", ["token", "float"])
def test_spellings_of_zero_and_one_are_labels(toy, together, text, kind):
    toy.rename(click=f"click:{kind}")
    toy.table.loc[3, f"click:{kind}"] = text
    assert together(toy.build())["click"][3] == float(text)


def test_line_number_counts_blank_lines(toy):
    toy.table.loc[1, "click:float"] = "5"
    toy.write()
    lines = toy.file("inter").read_text().splitlines()
    toy.file("inter").write_text("\n".join([lines[0], "", *lines[1:2], "", "", *lines[2:]]) + "\n")
    with pytest.raises(UsageError, match="but line 6 has '5'"):
        toy.dataset()


def test_line_of_spaces_is_blank(toy):
    toy.table.loc[1, "click:float"] = "5"
    toy.write()
    lines = toy.file("inter").read_text().splitlines()
    toy.file("inter").write_text("\n".join([lines[0], "   ", *lines[1:]]) + "\n")
    with pytest.raises(UsageError, match=r"every row, but line 4 has '5'\."):
        toy.dataset()


def test_line_without_its_last_cells_lacks_a_label(toy):
    toy.write()
    lines = toy.file("inter").read_text().splitlines()
    lines[7] = lines[7].rpartition("\t")[0]
    toy.file("inter").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"column 'conversion' .* but line 8 none"):
        toy.dataset()


def test_first_five_faults_are_named(toy):
    toy.table.loc[10:17, "click:float"] = "9"
    with pytest.raises(UsageError) as caught:
        toy.dataset()
    message = str(caught.value)
    assert all(f"line {line} has '9'" in message for line in range(12, 17))
    assert "line 17" not in message
    assert "and 3 more" in message


@pytest.mark.parametrize("kind", ["token", "float"])
def test_faulty_label_in_a_presplit_file_is_refused(toy, kind):
    toy.rename(click=f"click:{kind}").table.loc[33, f"click:{kind}"] = "x"
    settings = toy.write_parts(30, 40)
    with pytest.raises(UsageError) as caught:
        toy.dataset(**settings)
    assert str(caught.value).startswith(f"{toy.file('valid.inter')}: column 'click'")
    assert "but line 5 has 'x'" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "field"), [("train", "click"), ("valid", "conversion"), ("test", "true_cvr")]
)
def test_label_column_is_in_every_presplit_file(toy, part, field):
    settings = toy.with_outcomes().write_parts(30, 40)
    rows = {"train": slice(0, 30), "valid": slice(30, 40), "test": slice(40, 60)}[part]
    toy.write(f"{part}.inter", toy.table[rows].drop(columns=f"{field}:float"))
    with pytest.raises(UsageError, match=f"toy.{part}.inter.*'{field}'"):
        toy.dataset(**settings)


# --- conversions without a click -------------------------------------------------------------

STRAY = [1, 25, 31, 44, 58]


@pytest.fixture
def unclicked(toy):
    toy.with_outcomes().table.loc[STRAY, "conversion:float"] = "1"
    return toy


def test_conversions_without_click_are_dropped(unclicked, together, rows_of, caplog):
    with caplog.at_level(logging.WARNING):
        splits = unclicked.build()
    assert sorted(rows_of(*splits)) == [i for i in range(60) if i not in STRAY]
    columns = together(splits)
    assert (columns["conversion"] <= columns["click"]).all()
    [message] = [r.getMessage() for r in caplog.records if "without a click" in r.getMessage()]
    assert message.startswith("5 impressions have a conversion without a click: ")
    assert ", ".join(f"toy.inter row {i + 1}" for i in STRAY) in message
    assert "left out (conversion_without_click: drop)" in message


def test_conversions_without_click_are_unconverted(unclicked, together, caplog):
    with caplog.at_level(logging.WARNING):
        columns = together(unclicked.build(conversion_without_click="unconvert"))
    assert columns["conversion"].tolist() == [float(i % 6 == 0) for i in range(60)]
    assert columns["click"].tolist() == [float(i % 3 == 0) for i in range(60)]
    assert "5 impressions" in caplog.text
    assert "given conversion 0" in caplog.text


def test_conversions_without_click_are_refused(unclicked):
    with pytest.raises(UsageError, match=r"^5 impressions .* row 2, .* row 59\. .*drop.*unconvert"):
        unclicked.dataset(conversion_without_click="raise")


def test_six_conversions_without_click_name_five_rows(unclicked, caplog):
    unclicked.table.loc[59, "conversion:float"] = "1"
    unclicked.dataset()
    assert "6 impressions" in caplog.text
    assert "row 59, …" in caplog.text
    assert "row 60" not in caplog.text


def test_consistent_labels_are_not_remarked_on(toy, caplog):
    toy.dataset(conversion_without_click="raise")
    assert "without a click" not in caplog.text


@pytest.mark.parametrize("choice", ["drop", "unconvert"])
def test_conversions_without_click_in_presplit_files(unclicked, rows_of, caplog, choice):
    parts = unclicked.build(**unclicked.write_parts(31, 44), conversion_without_click=choice)
    lost = STRAY if choice == "drop" else []
    for split, rows in zip(parts, [range(31), range(31, 44), range(44, 60)], strict=True):
        assert rows_of(split) == [i for i in rows if i not in lost]
        assert split.inter_feat["conversion"].tolist() == [
            float(i % 6 == 0) for i in rows_of(split)
        ]
    where = ["train.inter row 2", "train.inter row 26", "valid.inter row 1", "test.inter row 1"]
    assert all(f"toy.{place}, " in caplog.text for place in where)


# --- potential outcomes ----------------------------------------------------------------------


def by_time(toy):
    toy.table["timestamp:float"] = [str(i * 7 % 60) for i in range(60)]


def with_duplicates(toy):
    by_time(toy)
    toy.table.loc[20:29, ["user_id:token", "item_id:token"]] = ["u0", "i0"]


OUTCOME_CASES = {
    "random split": ({}, None),
    "split by user": (
        {"eval_args": {"split": {"RS": [6, 2, 2]}, "group_by": "user", "mode": "labeled"}},
        None,
    ),
    "leave one out": (
        {"eval_args": {"split": {"LS": "valid_and_test"}, "mode": "labeled"}},
        None,
    ),
    "by time": (
        {
            "eval_args": {
                "split": {"RS": [6, 2, 2]},
                "order": "TO",
                "group_by": None,
                "mode": "labeled",
            }
        },
        by_time,
    ),
    "sampled": ({"impression_sample": 0.6}, None),
    "filtered": ({"val_interval": {"true_ctr": "[0.3,0.8]"}}, None),
    "without duplicates": ({"rm_dup_inter": "last"}, with_duplicates),
    "normalized": ({"normalize_all": True}, None),
}


def check_outcomes(split, rows):
    truth, row = split.truth, np.array(rows)
    clicked = row % 3 == 0
    assert truth.click.tolist() == clicked.tolist()
    assert truth.conversion.tolist() == (row % 6 == 0).tolist()
    assert truth.potential_conversion.tolist() == (row % 6 < 2).tolist()
    assert truth.true_ctr.tolist() == ((row + 1) / 64).tolist()
    assert truth.true_cvr.tolist() == ((63 - row) / 64).tolist()
    assert truth.user.tolist() == split.inter_feat["user_id"].tolist()


@pytest.mark.parametrize("case", OUTCOME_CASES)
@pytest.mark.parametrize("stray_rows", [[], [1, 31]], ids=["", "drop"])
def test_outcomes_stay_with_their_rows(toy, rows_of, features_of, case, stray_rows):
    settings, prepare = OUTCOME_CASES[case]
    toy.with_outcomes().table.loc[stray_rows, "conversion:float"] = "1"
    if prepare:
        prepare(toy)
    splits = toy.build(**settings)
    for split in splits:
        check_outcomes(split, rows_of(split))
    everything = rows_of(*splits)
    assert len(set(everything)) == len(everything) > 20
    assert not set(stray_rows) & set(everything)
    assert not LABELS & features_of(splits[0])


@pytest.mark.parametrize("settings", [{}, {"impression_sample": 0.6}], ids=str)
def test_outcomes_of_presplit_files(unclicked, rows_of, settings):
    for split in unclicked.build(**unclicked.write_parts(30, 40), **settings):
        check_outcomes(split, rows_of(split))


@pytest.mark.parametrize(
    ("model", "task"), [("ESMM", {}), *(("DeepFM", {"task": task}) for task in ("ctr", "cvr"))]
)
def test_outcomes_are_in_no_batch(toy, model, task):
    hidden = LABELS - {"click", "conversion"}
    for split in toy.with_outcomes().build(model, **task):
        for batch in (split[torch.arange(3)], split[1], split[:2], split.inter_feat):
            assert set(batch) == {"user_id", "item_id", "row", "click", "conversion", "label"}
        assert not hidden & set(split[[0, 1]])


@pytest.mark.parametrize("missing", ["potential_conversion", "true_ctr", "true_cvr"])
def test_each_outcome_may_be_missing(toy, missing):
    toy.with_outcomes()
    del toy.table[f"{missing}:float"]
    truth = toy.build()[0].truth
    for name in ("potential_conversion", "true_ctr", "true_cvr"):
        assert (getattr(truth, name) is None) == (name == missing)


def test_outcomes_have_any_names(toy):
    toy.with_outcomes().rename(true_ctr="p:token", true_cvr="q:float")
    splits = toy.build(TRUE_CTR_FIELD="p", TRUE_CVR_FIELD="q", POTENTIAL_CONVERSION_FIELD=None)
    for split in splits:
        assert not {"p", "q"} & set(split[:1])
        assert np.allclose(split.truth.true_ctr + split.truth.true_cvr, 1.0)
        assert split.truth.potential_conversion is None


@pytest.mark.parametrize("field", ["click", "conversion"])
def test_unused_col_with_a_label_is_refused(toy, field):
    with pytest.raises(UsageError, match="unused_col"):
        toy.build(unused_col={"inter": [field]})


@pytest.mark.parametrize("field", ["click", "conversion", "true_ctr"])
def test_unload_col_with_a_label_is_refused(toy, field):
    with pytest.raises(UsageError, match=rf"unload_col leaves out \['{field}'\]"):
        toy.with_outcomes().dataset(unload_col={"inter": ["row", field]})


def test_load_col_always_loads_labels(toy, features_of):
    splits = toy.with_outcomes().build(load_col={"inter": ["user_id", "item_id"]})
    assert features_of(splits[0]) == {"user_id", "item_id"}
    assert splits[0].truth.click.any()
    assert splits[0].truth.true_cvr is not None


@pytest.mark.parametrize("key", ["USER_ID_FIELD", "ITEM_ID_FIELD"])
def test_label_as_an_id_is_refused(toy, key):
    with pytest.raises(UsageError, match=f"{key} names 'click'"):
        toy.dataset(**{key: "click"})
