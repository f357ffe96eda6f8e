"""Each row's share of the way from the constant prediction to the true probabilities."""

import json

import pytest
from studies import study_of

from recbole_escm2.report import tables
from recbole_escm2.report.lift import share_of_lift

VALUES = {
    "ESMM": {"CTCVR_AUC": [0.6, 0.7, 0.9], "CVR_LogLoss": [0.4, 0.4, 0.3], "CVR_PCOC": [1, 1, 1]},
    "Constant": {"CTCVR_AUC": [0.5, 0.5, 0.5], "CVR_LogLoss": [0.5] * 3, "CVR_PCOC": [1, 1, 2]},
    "Oracle": {"CTCVR_AUC": [0.7, 0.9, None], "CVR_LogLoss": [0.3, 0.1, 0.2], "CVR_PCOC": [1] * 3},
}


def test_is_of_means_over_the_seeds_that_all_have():
    study = study_of(VALUES, "ESMM")
    # seeds 1 and 2: (.65 - .5) / (.8 - .5), and of three (.3667 - .5) / (.2 - .5)
    assert share_of_lift(study, "CTCVR_AUC") == pytest.approx(
        {"ESMM": 0.5, "Constant": 0, "Oracle": 1}
    )
    assert share_of_lift(study, "CVR_LogLoss")["ESMM"] == pytest.approx(0.1333333 / 0.3)
    assert share_of_lift(study, "CVR_PCOC") == {}  # with a target there is no way


@pytest.mark.parametrize("lacks", ["Constant", "Oracle"])
def test_takes_both_ends(lacks):
    study = study_of({k: v for k, v in VALUES.items() if k != lacks}, "ESMM")
    assert share_of_lift(study, "CTCVR_AUC") == {}
    assert "lift" not in tables.text(study)


def test_takes_an_oracle_that_is_better():
    worse = {**VALUES, "Oracle": {"CTCVR_AUC": [0.4, 0.5, 0.5]}}
    assert share_of_lift(study_of(worse, "ESMM"), "CTCVR_AUC") == {}


def test_is_a_column_for_people_and_a_number_for_programs():
    study = study_of(VALUES, "ESMM", primary=("CTCVR_AUC",))
    for shown in (tables.text(study), tables.markdown(study), tables.latex(study)):
        assert "CTCVR" in shown
        assert "share of lift" in shown
        assert "50.0" in shown
    rows = json.loads(json.dumps(tables.as_json(study)))["rows"]
    assert rows[0]["share_of_lift"]["CTCVR_AUC"] == pytest.approx(0.5)


def test_no_verdict_is_about_what_learns_nothing():
    study = study_of({**VALUES, "DeepFM": VALUES["ESMM"]}, "ESMM", primary=("CTCVR_AUC",))
    assert {label for label, *_ in study.comparisons} == {"DeepFM"}
    best = {label for label, cells in study.table.items() if cells["CTCVR_AUC"].best}
    assert best == {"ESMM", "DeepFM"}


def test_the_regression_at_its_optimum_goes_before_recboles():
    names = ("ESMM", "LR", "LogisticRegression")
    study = study_of(dict.fromkeys(names, VALUES["ESMM"]), "ESMM")
    assert study.rival == "LogisticRegression"
    assert study_of(dict.fromkeys(names[:2], VALUES["ESMM"]), "ESMM").rival == "LR"
