"""A study in files, of which the same tables are made again; and rows of other studies in it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import realistic, study_of

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.influence import Influence, TestRows
from recbole_escm2.experiment.study import Row, Screened, Screening, Study, Trial, Tuning
from recbole_escm2.report.record import read_record, with_row, write_record
from recbole_escm2.report.tables import markdown, text, tidy_csv, trials_csv

PROTOCOL = {"dataset": "tiny", "seeds": [1, 2, 3], "trials": 4, "settings": {"epochs": 3}}


def written(study: Study, folder: Path) -> Study:
    write_record(study, folder)
    return read_record(folder)


def with_digests(study: Study, data: str = "d") -> Study:
    """Each seed has a split of its own."""
    results = {
        (label, seed): {**run, "digests": {"code": "c", "data": data, "split": f"s{seed}"}}
        for (label, seed), run in study.results.items()
    }
    return replace(study, results=results)


def tried(*scores: float | None) -> list[Trial]:
    about = {"settings": {"seed": 7}, "digests": {"code": "c"}, "processor": "P"}
    return [
        Trial({"learning_rate": 0.1 / (n + 1)}, s, True, f"run{n}", seconds=1.5, about=about)
        for n, s in enumerate(scores)
    ]


@pytest.fixture
def page() -> Study:
    """Two rows and the A/A row, after a screening of three rows, one of them two models."""
    values = {
        "ESMM": {"CTCVR_AUC": [0.7, 0.71, 0.72], "CVR_AUC": [0.6, 0.6, 0.61]},
        "DeepFM": {"CTCVR_AUC": [0.75, 0.74, 0.76], "CVR_AUC": [0.65, 0.64, 0.6]},
        "again": {"CTCVR_AUC": [0.7, 0.715, 0.71], "CVR_AUC": [0.61, 0.6, 0.6]},
    }
    rows = [Row("ESMM", "ESMM"), Row("DeepFM", "DeepFM"), Row("again", "ESMM", aa=True)]
    parts = {f"DeepFM, {task} model": tried(0.6, 0.7, 0.5) for task in ("CTR", "CVR")}
    pruned = replace(tried(0.3)[0], pruned=True, reason="pruned after 4 passes over train")
    of_esmm = [*tried(0.5, 0.6), pruned, replace(tried(None)[0], reason="=no memory")]
    left = Screened("DCMT", "DCMT", 0.4, "", {"DCMT": tried(0.4, 0.3)})
    screened = [
        Screened("ESMM", "ESMM", 0.6, "by right", {"ESMM": of_esmm[:2]}),
        Screened("DeepFM", "DeepFM", 0.6, "by validation", {k: t[:1] for k, t in parts.items()}),
        left,
    ]
    study = study_of(
        values,
        "ESMM",
        rows=rows,
        tuning=Tuning(4, 7, "CTCVR_AUC", {"ESMM": of_esmm, **parts}, "on a half"),
        screening=Screening(2, "CTCVR_AUC", screened),
        protocol=PROTOCOL,
        shared={"epochs": 3, "output_dir": "somewhere"},
    )
    return with_digests(study)


def own(**changes) -> Study:
    values = {"mine": {"CTCVR_AUC": [0.8, 0.79, 0.81], "CVR_AUC": [0.66, 0.64, 0.65]}}
    tuning = Tuning(4, 7, "CTCVR_AUC", {"mine": tried(0.6, 0.7, 0.8, 0.1)})
    study = study_of(values, "mine", tuning=tuning, protocol=PROTOCOL)
    return replace(with_digests(study), **changes)


@pytest.mark.parametrize("which", ["page", "realistic"])
def test_the_same_tables_are_made_again(page, which, tmp_path):
    study = page if which == "page" else with_digests(realistic())
    again = written(study, tmp_path)
    for render in (markdown, text, tidy_csv):
        assert render(again) == render(study)
    assert trials_csv(again.tuning) == trials_csv(study.tuning)
    assert again.screening == study.screening
    assert dict(again.failures) == dict(study.failures)
    # a second time to the letter
    write_record(again, tmp_path / "again")
    for file in tmp_path.glob("*.*"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    assert "somewhere" not in (tmp_path / "study.json").read_text()


def test_every_run_has_a_line(page, tmp_path):
    write_record(page, tmp_path)
    with open(tmp_path / "runs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    counts: dict[tuple[str, str], int] = {}
    for line in lines:
        key = line["phase"], line["row"]
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        **{("screening", row): 2 for row in ("ESMM", "DeepFM", "DCMT")},
        **{("trial", "ESMM"): 2, ("trial", "DeepFM"): 4},
        **{("seed", row): 3 for row in ("ESMM", "DeepFM", "again")},
    }
    states = [line["state"] for line in lines if line["row"] == "ESMM" and line["phase"] == "trial"]
    assert states == ["pruned", "failed"]
    # no trial has a number of test, and each run of the table says on what it rests
    assert not any(line["CTCVR_AUC"] for line in lines if line["phase"] != "seed")
    (line,) = (ln for ln in lines if (ln["row"], ln["seed"]) == ("DeepFM", "2"))
    assert (line["code"], line["data_digest"], line["split_digest"]) == ("c", "d", "s2")
    assert json.loads(line["versions"])["python"] == "3.11.7"


def test_influence_is_kept_where_the_test_set_is_one(page, tmp_path):
    rng = np.random.default_rng(0)
    rows = TestRows("ab" * 32, (rng.random(50) < 0.5).astype(np.uint8), (rng.integers(1, 9, 50),))

    def influence(label: str, seed: int) -> Influence:
        own = np.random.default_rng([seed, len(label)])
        sizes = {"CTCVR_AUC": 50, "CVR_AUC": rows.count("CVR_AUC")}
        return Influence(rows, {m: own.normal(size=n) / 500 for m, n in sizes.items()})

    results = {key: {**run, "seed_draws": "weights"} for key, run in page.results.items()}
    study = replace(page, results=results, influence=influence)
    again = written(study, tmp_path)
    assert markdown(again) == markdown(study)
    assert again.verdicts
    for (*_, ours), (*_, theirs) in zip(again.comparisons, study.comparisons, strict=True):
        assert ours.estimate.error == pytest.approx(theirs.estimate.error, rel=1e-6)
    mine = own()
    drawn = {key: {**run, "seed_draws": "weights"} for key, run in mine.results.items()}
    more = with_row(again, replace(mine, results=drawn, influence=influence), "mine")
    assert {label for label, *_ in more.verdicts} >= {"mine", "DeepFM"}
    assert (tmp_path / "influence.npz").is_file()
    write_record(page, tmp_path)
    assert not (tmp_path / "influence.npz").exists()


def test_a_row_of_another_study_stands_before_the_aa_row(page, tmp_path):
    page = written(page, tmp_path / "page")
    more = with_row(page, written(own(), tmp_path / "own"), "mine")
    assert [row.label for row in more.rows] == ["ESMM", "DeepFM", "mine", "again"]
    assert more.table["mine"]["CTCVR_AUC"].sample.mean == pytest.approx(0.8)
    # Holm's correction is over all of them
    assert len(more.verdicts) == len(page.verdicts) + 2
    again = written(more, tmp_path / "more")
    assert markdown(again) == markdown(more)
    assert "mine" in again.tuning.by_row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {**PROTOCOL, "trials": 5}}, "trials is 5 in its benchmark, and 4"),
        ({"protocol": {**PROTOCOL, "seeds": [1, 2]}}, r"seeds is \[1, 2\] in its benchmark, and"),
        ({"protocol": {**PROTOCOL, "settings": {"epochs": 9}}}, "epochs is 9 in its benchmark"),
        ({"protocol": {**PROTOCOL, "settings": {}}}, "epochs is None in its benchmark, and 3"),
        (
            {"protocol": {**PROTOCOL, "settings": {"epochs": 3, "x": 1}}},
            r"its benchmark sets x \(1\), which the page's rows don't have",
        ),
        ({"primary": ("CVR_AUC",)}, "primary is"),
        (
            {"results": with_digests(own(), "other").results},
            "seed 1 had another data .digest other",
        ),
        ({"results": {}}, "seed_draws|primary|no finished run"),
        ({"rows": [Row("DeepFM", "mine")]}, "there is no row 'mine'; there are DeepFM"),
    ],
)
def test_what_does_not_match_is_refused(page, changes, message):
    with pytest.raises(UsageError, match=message):
        with_row(page, own(**changes), "mine")


def test_a_name_stands_once(page):
    same = replace(own(), rows=[Row("DeepFM", "x")])
    with pytest.raises(UsageError, match="has a row 'DeepFM' already"):
        with_row(page, same, "DeepFM")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", "{"),
        ("study.json", '{"format": 2}'),
        ("study.json", "[" * 10**5),
        ("study.json", '{"format": 1, "rows": []}'),
        ("runs.csv", "phase\nseed\n"),
    ],
)
def test_files_that_nothing_has_written(page, tmp_path, name, content):
    write_record(page, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError):
        read_record(tmp_path)


def test_no_files(tmp_path):
    with pytest.raises(UsageError, match=r"study.json isn't there: a benchmark writes it"):
        read_record(tmp_path)
