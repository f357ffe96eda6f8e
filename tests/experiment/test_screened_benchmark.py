"""A screened benchmark through the real command line, and the page that is made of its runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_escm2.report.record import read_record

ROOT = Path(__file__).parent.parent.parent
BENCHMARK = """\
seeds: 2
trials: 3
screen: {settings: 2, rows: 2}
tuning_seed: 7
epochs: 5
aa_row: False
embedding_size: 4
mlp_hidden_size: [8]
train_batch_size: 256
columns: [CTR_AUC, CTCVR_AUC, CVR_AUC_ES]
models:
  ESMM: {params_file: hopeless.hyper}
  Naive: {params_file: hopeless.hyper}
  LogisticRegression:
"""


@pytest.fixture
def arguments(data_path, tmp_path):
    (tmp_path / "b.yaml").write_text(BENCHMARK)
    (tmp_path / "hopeless.hyper").write_text("learning_rate loguniform -21,-20\n")
    return ("--benchmark=b.yaml", "--dataset=tiny", f"--data_path={data_path}", "--jobs=2")


@pytest.fixture
def results(tmp_path):
    """Runs the real script in ``tmp_path`` and returns the finished process."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "scripts" / "results.py", "ml-100k", "--pages=pages"]
        return subprocess.run(
            [*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=900
        )

    return call


@pytest.mark.slow
def test_from_a_screening_to_a_page_and_a_row_more(
    program, kill_at, results, arguments, tmp_path, data_path
):
    kill_at("[2/", *arguments, "--name=page")
    done = program(*arguments, "--name=page", timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(
        r"3 rows are screened, 2 settings each, 5 runs, of which [1-3] are", done.stderr
    )
    assert "2 rows go on: ESMM, LogisticRegression" in done.stderr
    assert "2 rows, 3 trials each, 5 runs, of which" in done.stderr
    assert "2 rows, 2 seeds, 4 runs, of which 0 are done" in done.stderr
    assert "Screened on validation alone:" in done.stdout
    # trial 2 at least comes after the kill
    assert "ESMM, trial 2, seed 7: pruned after 4 passes over train, 0." in done.stderr
    again = program(*arguments, "--name=page", timeout=900)
    assert again.stdout == done.stdout
    assert "[1/" not in again.stderr

    lines = list(csv.DictReader((tmp_path / "output/page/record/runs.csv").open(newline="")))
    phases = [(ln["phase"], ln["row"], ln["state"]) for ln in lines]
    assert phases.count(("screening", "Naive", "pruned")) == 1
    assert phases.count(("screening", "Naive", "finished")) == 1
    assert phases.count(("screening", "ESMM", "pruned")) == 1
    assert phases.count(("trial", "ESMM", "pruned")) == 1
    assert phases.count(("seed", "Naive", "finished")) == 0
    assert sum(ln["phase"] == "seed" for ln in lines) == 4
    # what is compared has the data and the split of its seed, the same for all rows
    of_seed = {(ln["seed"], ln["data_digest"], ln["split_digest"]) for ln in lines[-4:]}
    assert len(of_seed) == 2
    assert all(ln["processor"] and ln["code"] and float(ln["seconds"]) > 0 for ln in lines[-4:])

    pages = tmp_path / "pages"
    pages.mkdir()
    shutil.copytree(tmp_path / "output" / "page" / "record", pages / "ml-100k")
    assert results("--check").returncode == 1
    assert results("--rebuild").returncode == 0
    page = (pages / "ml-100k.md").read_text()
    for words in ("| ESMM (baseline) |", "## Screened on validation alone", "| Naive | 0."):
        assert words in page
    assert results("--check").returncode == 0
    (pages / "ml-100k.md").write_text(page.replace("ESMM (baseline)", "ESMN (baseline)"))
    changed = results("--check")
    assert (changed.returncode, changed.stdout) == (1, "pages/ml-100k.md isn't what the runs say\n")

    # a run of the page comes out the same again
    sys.path.insert(0, str(ROOT / "scripts"))
    made = pytest.importorskip("pages", reason="needs the extra [benchmark]")
    study = read_record(pages / "ml-100k")
    label, seed = made.cheapest(study)
    places = {"data_path": str(data_path), "output_dir": str(tmp_path / "output")}
    again = made.repeated(study, label, seed, places)
    before = study.results[label, seed]["test_result"]
    assert study.primary
    for metric in study.primary:
        assert again[metric] == pytest.approx(before[metric], abs=0.002)

    # a row of one's own
    (tmp_path / "mine.py").write_text(
        "from recbole_escm2.model import ESMM\nclass Mine(ESMM):\n    pass\n"
    )
    own = [*arguments, "--screen=None", "--pruner=halving", "--baseline=Mine"]
    content = BENCHMARK.partition("models:")[0]
    model = "models:\n  Mine: {model: 'mine:Mine', params_file: hopeless.hyper}\n"
    (tmp_path / "b.yaml").write_text(content + model)
    assert program(*own, "--name=mine", timeout=900).returncode == 0
    added = results("--add=output/mine")
    assert added.returncode == 0, added.stderr
    page = (pages / "ml-100k.md").read_text()
    assert re.search(r"^\| Mine \| 0\.\d+ ± ", page, re.MULTILINE)
    assert results("--check").returncode == 0
    twice = results("--add=output/mine")
    assert (twice.returncode, twice.stderr) == (
        2,
        "error: the page has a row 'Mine' already: give yours another name\n",
    )
    # one with another budget
    (tmp_path / "b.yaml").write_text(content + model.replace("Mine:", "Other:", 1))
    other = [word.replace("=Mine", "=Other") for word in own]
    assert program(*other, "--name=other", "--trials=2", timeout=900).returncode == 0
    refused = results("--add=output/other")
    assert refused.returncode == 2
    assert "'Other' doesn't belong there: trials is 2 in its benchmark, and 3" in refused.stderr
    assert json.loads((pages / "ml-100k" / "study.json").read_text())["rows"][2]["label"] == "Mine"
