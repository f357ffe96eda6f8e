"""The pages of results/ are what their runs say, and a run of each comes out the same again."""

import sys
from pathlib import Path

import pytest

from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.report.record import read_record

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
results = pytest.importorskip("results", reason="needs the extra [benchmark]")
pages = pytest.importorskip("pages")

#: What a run may differ by on another machine.
TOLERANCE = 0.002


def runs_of(dataset):
    folder = ROOT / "results" / dataset
    if not (folder / "study.json").is_file():
        pytest.skip(f"results/{dataset} has no runs yet: python scripts/results.py {dataset}")
    return read_record(folder)


@pytest.fixture
def root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(results, "HERE", ROOT / "scripts" / "results")


@pytest.mark.parametrize("dataset", results.BENCHMARKS)
def test_a_page_is_what_its_runs_say(dataset, root):
    runs_of(dataset)
    assert results.rebuild(dataset, ROOT / "results", check=True) == []


@pytest.mark.parametrize("dataset", results.BENCHMARKS)
def test_all_runs_of_a_seed_have_one_split(dataset):
    study = runs_of(dataset)
    for seed in study.seeds:
        digests = [study.of(row.label)[seed]["digests"] for row in study.rows]
        assert len({(of_run["data"], of_run["split"]) for of_run in digests}) == 1


@pytest.mark.parametrize("dataset", results.BENCHMARKS)
def test_a_run_of_a_page_comes_out_the_same_again(dataset, tmp_path, monkeypatch):
    study = runs_of(dataset)
    raw = ROOT / "dataset" / dataset / "raw"
    if dataset == "coat" and not raw.is_dir():
        pytest.skip("Coat's files aren't in dataset/coat/raw")
    monkeypatch.chdir(ROOT if dataset == "coat" else tmp_path)
    label, seed = pages.cheapest(study)
    places = {"output_dir": str(tmp_path / "output"), "store_dir": str(tmp_path / "store")}
    again = pages.repeated(study, label, seed, places)
    before = study.results[label, seed]["test_result"]
    for metric in study.primary:
        assert again[metric] == pytest.approx(before[metric], abs=TOLERANCE), (label, seed, metric)


def test_every_row_of_a_page_has_a_penalty_among_its_ranges(root):
    """Or chooses one by itself, as the reference rows do."""
    for dataset in ("ml-100k", "ali-ccp-sim"):
        options = {**results.options_of(dataset, quick=False), "trials": "4", "seeds": "2"}
        plan = make_experiment({**options, "screen": "None", "impression_sample": "0.01"})
        tuned = {}
        for candidate in plan.tuning:
            tuned.setdefault(candidate.row, set()).update(candidate.chosen)
        without = {row for row, keys in tuned.items() if "embedding_weight_decay" not in keys}
        assert without <= {"LogisticRegression", "LightGBM", "Constant", "Oracle"}
