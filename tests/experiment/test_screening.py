"""Many rows screened on validation alone, and trials of which hopeless ones are ended."""

from __future__ import annotations

import json

import pytest

from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.plan import make_experiment, with_carried_on_rows
from recbole_escm2.experiment.pruning import RowTrials, Work, is_prunable
from recbole_escm2.experiment.runs import Outcome
from recbole_escm2.experiment.screening import best_on_validation
from recbole_escm2.experiment.study import Screened, Screening

SCREEN = "{settings: 4, rows: 3, keep: [Naive]}"
ROWS = "ESMM,Naive,DCMT,ESCM2_IPS,DeepFM,LogisticRegression,Constant"


@pytest.fixture
def asked(options):
    return {**options, "model": ROWS, "seeds": "2", "trials": "6", "screen": SCREEN}


def test_what_is_screened_are_the_first_of_the_trials(asked):
    plan = make_experiment(asked)
    assert plan.screen is not None
    assert plan.pruner == "halving"
    assert list(plan.screen.by_right) == ["ESMM", "Naive", "LogisticRegression", "Constant"]
    assert plan.screen.others == 0
    count = dict.fromkeys(ROWS.split(","), 0)
    for candidate in plan.screening:
        count[candidate.row] += 1
    # of a pair two of each model; what has nothing to choose is tried as it is
    assert count == {**dict.fromkeys(count, 4), "Constant": 2}
    tried = {candidate.run.name for candidate in plan.tuning}
    assert {candidate.run.name for candidate in plan.screening} < tried
    left = with_carried_on_rows(plan, ["ESMM", "DeepFM"])
    assert [row.label for row in left.rows] == ["ESMM", "DeepFM", "ESMM again (A/A)"]
    assert {candidate.row for candidate in left.tuning} == {"ESMM", "DeepFM"}
    assert {run.row.label for run in left.runs} == {row.label for row in left.rows}


def test_the_best_on_validation_go_on_beside_those_by_right(asked):
    screen = make_experiment({**asked, "screen": "{settings: 4, rows: 5}"}).screen
    assert screen is not None
    costs = {"ESMM": -0.9, "Naive": -0.5, "DCMT": -0.7, "ESCM2_IPS": -0.6, "Constant": -0.5}
    assert screen.others == 3
    assert screen.by_validation(costs) == ["DCMT", "ESCM2_IPS", "Naive"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"screen": "[8]"}, "screen must be a mapping of settings, rows and keep"),
        ({"screen": "{rows: 3}"}, "screen must be a mapping of settings, rows and keep"),
        ({"screen": "{settings: 2, rows: 3, kept: []}"}, "there is no 'kept' .did you mean"),
        ({"screen": "{settings: 3, rows: 3}"}, "settings must be even, got 3"),
        ({"screen": "{settings: 8, rows: 3}"}, "settings 8 are more than the 6 of a row"),
        ({"screen": "{settings: 0, rows: 3}"}, "screen: settings must be a whole number >= 1"),
        ({"screen": "{settings: 4, rows: true}"}, "screen: rows must be a whole number >= 1"),
        (
            {"screen": "{settings: 4, rows: 1, keep: [Naive]}"},
            "rows 1 are fewer than the 2 that go on by right",
        ),
        ({"screen": "{settings: 4, rows: 3, keep: ESMM}"}, "keep must be a list of rows"),
        ({"screen": "{settings: 4, rows: 3, keep: [ESSM]}"}, "'ESSM' is no row .did you mean"),
        ({"trials": "1"}, "which takes --trials=N"),
        ({"pruner": "median"}, "pruner must be none or halving, got 'median'"),
        ({"screen": "None", "trials": "1", "pruner": "halving"}, "ends trials, of which there are"),
    ],
)
def test_mistakes(asked, changes, message):
    with pytest.raises(UsageError, match=message):
        make_experiment({**asked, "model": "ESMM,Naive", **changes})


def test_a_screening_prunes_unless_somebody_says_otherwise(asked):
    assert make_experiment({**asked, "pruner": "none"}).pruner == "none"
    assert make_experiment({**asked, "screen": "None"}).pruner == "none"


def test_pairs_and_fits_of_a_library_are_not_pruned(asked):
    prunable = {c.row for c in make_experiment(asked).tuning if is_prunable(c)}
    assert prunable == {"ESMM", "Naive", "DCMT", "ESCM2_IPS"}


def test_the_score_of_a_row_is_its_best_on_validation():
    results = [
        {"best_valid_result": {"CTCVR_AUC": value, "IEB": bias}}
        for value, bias in ((0.5, -0.1), (0.8, 0.3), (float("nan"), 0.2))
    ]
    assert best_on_validation([*results, {"best_valid_result": None}], "CTCVR_AUC") == 0.8
    assert best_on_validation(results, "IEB") == -0.1
    assert best_on_validation(results, "CVR_AUC") is None
    rows = [
        Screened(label, label, score, why, {})
        for label, score, why in (("a", 0.6, ""), ("b", None, ""), ("c", 0.7, ""), ("d", 0.1, "x"))
    ]
    assert [row.label for row in Screening(8, "CTCVR_AUC", rows).left] == ["c", "a", "b"]


# ------------------------------------------------------------------ halving


def epochs(*scores: float) -> list[dict]:
    return [{"epoch": n, "valid": {"CTCVR_AUC": score}} for n, score in enumerate(scores)]


def trials_of(options, parts="1", trials=8):
    given = {**options, "model": "ESMM", "trials": str(trials), "validations_per_epoch": parts}
    return RowTrials(make_experiment(given).tuning)


def end(row: RowTrials, history: list[dict]) -> Outcome:
    """A trial with this history, as far as it comes."""
    run = row.begin()
    for n in range(1, len(history) + 1):
        if row.is_hopeless(history[:n]):
            return row.end(Outcome(run, None, "its process was ended"))
    best = max(epoch["valid"]["CTCVR_AUC"] for epoch in history)
    return row.end(Outcome(run, {"best_valid_score": best, "trainings": [{"epochs": history}]}))


def test_each_rung_has_the_better_half_of_the_trials_before(options):
    row = trials_of(options)
    assert end(row, epochs(*[0.6] * 8)).score is None  # the first one has nobody beside it
    worse = end(row, epochs(0.1, 0.2, 0.5, 0.4, 0.9, 0.9))
    assert (worse.score, worse.reason) == (0.5, "pruned after 4 passes over train")
    # what was best so far counts, not what is last
    assert end(row, epochs(0.1, 0.7, 0.3, 0.3, 0.3)).score is None
    # three were here with 0.6, 0.5 and 0.7: two of four go on
    assert end(row, epochs(*[0.65] * 7)).score is None
    assert end(row, epochs(0.6, 0.6, 0.6, 0.6)).score == 0.6
    # a training that ends by itself before the first rung isn't compared
    assert end(row, epochs(0.1, 0.1)).score is None
    # beyond the second rung only 0.6, and now this one
    late = end(row, epochs(*[0.68] * 4, 0.68, 0.55, 0.55, 0.59, 0.9))
    assert late.score is None
    assert row.begin().name
    assert not row.waiting


def test_parts_of_an_epoch_are_no_passes(options):
    row = trials_of(options, parts="2")
    end(row, epochs(*[0.6] * 16))
    outcome = end(row, epochs(*[0.1] * 16))
    assert outcome.reason == "pruned after 4 passes over train"
    row = trials_of(options, parts="8")
    end(row, epochs(*[0.6] * 40))
    assert end(row, epochs(*[0.1] * 31)).score is None


def test_a_run_that_ended_before_anybody_looked_is_pruned_all_the_same(options):
    row = trials_of(options)
    end(row, epochs(*[0.6] * 8))
    run = row.begin()
    result = {"best_valid_score": 0.9, "trainings": [{"epochs": epochs(*[0.1] * 5, 0.9)}]}
    assert row.end(Outcome(run, result)).score == pytest.approx(0.1)


def test_a_history_that_no_run_has_written_prunes_nothing(options):
    row = trials_of(options)
    run = row.begin()
    run.folder.mkdir(parents=True)
    file = run.folder / "history.json"
    for text in ("[", "{}", "[1]", '[{"epoch": "a"}]', '[{"epoch": 3, "valid": 1}]', "[" * 10**5):
        file.write_text(text)
        assert not row.is_hopeless(run.history())


def test_what_pruned_trials_have_left_tells_their_end_again(options):
    """As after a kill: from the histories in the folders the same outcomes follow."""
    histories = [epochs(*[0.6] * 6), epochs(*[0.5] * 6), epochs(*[0.7] * 5), epochs(*[0.4] * 4)]
    row = trials_of(options)
    first = []
    for history in histories:
        outcome = end(row, history)
        outcome.run.folder.mkdir(parents=True)
        (outcome.run.folder / "history.json").write_text(json.dumps(history))
        if outcome.result is not None:
            whole = {"valid_metric": "CTCVR_AUC", "test_result": {}, "epochs": 6}
            (outcome.run.folder / "result.json").write_text(json.dumps({**outcome.result, **whole}))
        first.append((outcome.run.name, outcome.score, outcome.reason))
    work = Work([], [trials_of(options)], 1, {})
    assert len(work.names) == 8
    assert [(o.run.name, o.score, o.reason) for o in work.known()] == first
    assert [score is None for _, score, _ in first] == [True, False, True, False]
    # one that failed in this benchmark isn't tried a second time, and the next ones go on
    later = trials_of(options)
    failed = Outcome(list(later.waiting)[4], None, "the loss is not finite")
    known = Work([], [later], 1, {failed.run.name: failed}).known()
    assert known[-1].reason == failed.reason
    assert later.at_work is not None
    assert later.at_work.name not in {outcome.run.name for outcome in known}
