"""What the seeds of a benchmark draw, and that none tests on what its settings were chosen on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.conduct import study_of, tuning_of
from recbole_escm2.experiment.plan import make_experiment, with_tuned_rows
from recbole_escm2.experiment.planned import PlannedRun
from recbole_escm2.experiment.runs import Outcome
from recbole_escm2.experiment.study import Trial, Tuning
from recbole_escm2.quick_start import run as run_alone
from recbole_escm2.report.tables import markdown

SIMULATION = "{rows: 1500, conversion_rate: 0.3, click_rate: 0.3, behaviours: 0}"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_path with a few ratings for semi-synthetic worlds, and pre-split impressions."""
    folder = tmp_path_factory.mktemp("worlds")
    rng = np.random.default_rng(3)
    pairs = rng.permutation(30 * 20)[:200]
    rows = [f"u{p // 20}\ti{p % 20}\t{rng.integers(1, 6)}\n" for p in pairs]
    (folder / "few").mkdir()
    header = "user_id:token\titem_id:token\trating:float\n"
    (folder / "few" / "few.inter").write_text(header + "".join(rows))
    (folder / "cut").mkdir()
    header = "user_id:token\titem_id:token\tclick:float\tconversion:float\n"
    for shift, part in enumerate(("train", "valid", "test")):
        own = ((n % 7, (n + shift) % 5, n % 2, int(n % 4 == 1)) for n in range(40))
        rows = ["u{}\ti{}\t{}\t{}\n".format(*row) for row in own]
        (folder / "cut" / f"cut.{part}.inter").write_text(header + "".join(rows))
    return folder


SEMI = {
    "dataset": "ml-100k-semi",
    "ratings": "few",
    "load_col": "{inter: [user_id, item_id, rating]}",
    "completion_rank": "2",
    "click_rate": "0.3",
}
SIM = {"dataset": "ali-ccp-sim", "simulation": SIMULATION, "min_count": "1"}
CASES = {
    "one data set": ("split", {"dataset": "tiny"}),
    "one world": ("split", {**SEMI, "simulation_seed": "2022"}),
    "worlds": ("world", SEMI),
    "pre-split": ("weights", {"dataset": "cut", "benchmark_filename": "[train, valid, test]"}),
    "one world of a fixed test": ("weights", {**SIM, "simulation_seed": "2022"}),
    "worlds of a fixed test": ("world", SIM),
}


@pytest.fixture
def asked(options: dict[str, str], worlds: Path) -> Any:
    def make(case: str, **more: str) -> dict[str, str]:
        own = CASES[case][1]
        place = {} if own["dataset"] == "tiny" else {"data_path": str(worlds)}
        return {**options, **place, **own, "model": "ESMM,Naive", "seeds": "3", **more}

    return make


def parts_of(run: PlannedRun, **change: Any) -> list[EntireSpaceDataset]:
    settings = {**run.settings, **change}
    return EntireSpaceDataset(Config(run.row.model, run.dataset, None, settings)).build()


def rows_of(*parts: EntireSpaceDataset) -> set[tuple[str, int]]:
    """Which impressions of which data set, or world, they are."""
    return {(p.store.folder.name, n) for p in parts for n in p.inter_feat.positions.tolist()}


@pytest.mark.parametrize("case", CASES)
def test_no_seed_tests_on_what_a_trial_has_seen(asked, case):
    plan = make_experiment(asked(case, trials="2"))
    assert set(plan.draws.values()) == {CASES[case][0]}
    seen = set()
    for run in (candidate.run for candidate in plan.tuning):
        train, valid, _ = parts_of(run)
        seen |= rows_of(train, valid)
    assert seen
    tried = [Trial({"learning_rate": 0.01}, 0.5, True, "")]
    tuning = Tuning(1, 1, "CTCVR_AUC", {row.label: tried for row in plan.rows if not row.aa})
    plan = with_tuned_rows(plan, tuning)
    assert {run.settings["learning_rate"] for run in plan.runs} == {0.01}
    for run in plan.runs:
        parts = parts_of(run)
        assert not rows_of(parts[2]) & seen, run.name
        if CASES[case][0] == "split":
            usual = parts_of(run, tuning_part=None)
            assert [len(part) for part in parts] == [len(part) for part in usual]
            assert rows_of(*parts) == rows_of(*usual)
            assert rows_of(usual[2]) & seen  # so that this test can fail


def test_trials_of_one_data_set_have_a_part_of_it_and_seeds_the_rest(asked):
    plan = make_experiment(asked("one data set", trials="2", tuning_share="0.3", tuning_seed="8"))
    trials = [rows_of(*parts_of(run)) for run in (candidate.run for candidate in plan.tuning)]
    assert all(rows == trials[0] for rows in trials)
    assert len(trials[0]) == 1200
    tests = {run.seed: parts_of(run)[2] for run in plan.runs}
    assert {part.test_pool for part in tests.values()} == {2800}
    tested = [rows_of(part) for part in tests.values()]
    assert all(len(rows) == 400 for rows in tested)
    assert tested[0] != tested[1]
    other = make_experiment(asked("one data set", trials="2", tuning_share="0.3", tuning_seed="9"))
    assert rows_of(*parts_of(other.tuning[0].run)) != trials[0]
    # without trials the splits are those that a single run has
    for run in make_experiment(asked("one data set")).runs:
        assert "tuning_part" not in run.settings


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"eval_args": "{group_by: user}"}, "ESMM: trials: .*split at random by ratio"),
        (
            {"eval_args": "{split: {LS: valid_and_test}, group_by: user}"},
            "split at random by ratio .*'LS'",
        ),
        ({"tuning_share": "0.9"}, "tuning_share 0.9 leaves 0.1 .*less than 0.9"),
        ({"eval_args": "{split: {RS: [3, 1, 4]}}"}, "tests on 0.5 of them"),
        ({"keep_together": "user_id"}, "no keep_together.*keep_together user_id"),
        ({"folds": "5"}, "ESMM: trials: folds 5: each impression is tested on by some seed"),
        ({"tuning_share": "1"}, "tuning_share must be a number between 0 and 1"),
    ],
)
def test_what_cannot_be_kept_apart_is_refused(asked, more, message):
    with pytest.raises(UsageError, match=message):
        make_experiment(asked("one data set", trials="2", **more))


def test_seeds_test_on_folds_of_their_own(asked):
    plan = make_experiment(asked("one data set", folds="3", seeds="3"))
    assert set(plan.draws.values()) == {"fold"}
    tests = {run.seed: rows_of(parts_of(run)[2]) for run in plan.runs}
    assert sorted(map(len, tests.values())) == [1333, 1333, 1334]
    assert len(set.union(*tests.values())) == 4000
    with pytest.raises(UsageError, match=r"folds 3: .*two of the seeds 2020, 2021, 2022, 2023 on"):
        make_experiment(asked("one data set", folds="3", seeds="4"))


def test_a_tuning_seed_has_a_world_of_its_own(asked):
    plan = make_experiment(asked("worlds", trials="2", seeds="[1,2,5]"))
    assert plan.seeding.of_tuning == 3  # the first that is no row's
    with pytest.raises(UsageError, match="tuning_seed 2 is one of the seeds"):
        make_experiment(asked("worlds", trials="2", seeds="[1,2,5]", tuning_seed="2"))
    assert make_experiment(asked("one data set", trials="2")).seeding.of_tuning == 1


@pytest.mark.parametrize("case", ["worlds", "worlds of a fixed test"])
def test_each_seed_has_a_world_and_a_plan_makes_none(asked, case, worlds, tmp_path):
    stores = tmp_path / "stores"
    plan = make_experiment(asked(case, store_dir=str(stores)))
    assert not stores.exists()
    found = {(run.seed, run.settings["simulation_seed"]) for run in plan.runs}
    assert found == {(seed, seed + 10_000) for seed in plan.seeds}
    assert "simulation_seed 12020, 12021, 12022" in plan.seeding.about_worlds()

    names = {run.name for run in plan.runs}
    first = [run for run in plan.runs if run.seed == plan.seeds[0]]
    truths = [parts_of(run)[2].truth for run in plan.runs[:: len(first)]]
    assert not np.array_equal(truths[0].click, truths[1].click)
    assert len({run.settings["simulation_seed"] for run in first}) == 1
    assert {run.name for run in make_experiment(asked(case, store_dir=str(stores))).runs} == names


@pytest.mark.parametrize("case", ["worlds", "worlds of a fixed test"])
def test_who_chooses_a_world_has_all_seeds_in_it(asked, case, tmp_path):
    (tmp_path / "w.yaml").write_text("simulation_seed: 7\n")
    for more in ({"simulation_seed": "7"}, {"config_files": f"{tmp_path}/w.yaml"}):
        plan = make_experiment(asked(case, **more))
        assert plan.seeding.about_worlds() is None
        assert {run.settings["simulation_seed"] for run in plan.runs} == {7}
    swept = make_experiment(
        asked(case, model="ESMM", simulation_seed="7,8", seeds="2", aa_row="False")
    )
    assert [run.settings["simulation_seed"] for run in swept.runs] == [7, 8, 7, 8]


def test_a_wrong_world_is_refused_before_any_is_made(asked):
    for case, more, message in (
        ("worlds", {"cvr_shares": "[0.5, 0.5]"}, "cvr_shares must have"),
        ("worlds of a fixed test", {"simulation": "{rows: few}"}, "rows must be"),
        ("worlds", {"ratings": "none-such"}, "none-such"),
    ):
        with pytest.raises(UsageError, match=message):
            make_experiment(asked(case, **more))


@pytest.mark.parametrize(
    ("case", "alone", "pool"),
    [("one data set", "split", 4000), ("pre-split", "weights", None), ("worlds", "split", 600)],
)
def test_a_result_says_what_a_seed_draws(asked, case, alone, pool, monkeypatch):
    plan = make_experiment(asked(case, seeds="2", model="ESMM,Naive", aa_row="False"))
    outcomes: dict[str, Outcome] = {}
    for run in plan.runs:
        settings: Mapping[str, Any] = {**run.settings, "output_dir": str(plan.output_dir)}
        outcome = run_alone(run.row.model, run.dataset, None, settings, saved=False)
        result = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
        assert (result["seed_draws"], result["test_pool"]) == (alone, pool)
        outcomes[run.name] = Outcome(run, result)
    study = study_of(plan, outcomes, None, "")
    draws = {study.results[key]["seed_draws"] for key in study.results}
    assert draws == {CASES[case][0]}


def test_a_report_says_what_was_tuned_on(asked, monkeypatch):
    plan = make_experiment(asked("one data set", trials="2", seeds="2", model="ESMM"))
    results = {"test_result": {"CTR_AUC": 0.5}, "valid_metric": "CTR_AUC", "simulated": None}
    tried = {
        **results,
        "best_valid_score": 0.5,
        "valid_score_bigger": True,
        "trainings": [{"task": "ctr"}],
    }
    outcomes = {run.name: Outcome(run, results) for run in plan.runs}
    outcomes |= {
        run.name: Outcome(run, tried) for run in (candidate.run for candidate in plan.tuning)
    }
    tuning = tuning_of(plan, outcomes)
    shown = markdown(study_of(plan, outcomes, tuning, ""))
    assert (
        "on a random 50% of the impressions, of which no seed of this table tests on any" in shown
    )
