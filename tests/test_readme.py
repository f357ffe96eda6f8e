"""What the README shows works as it is printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_escm2.quick_start import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def variant() -> str:
    (code,) = re.findall(r"<!-- variant.*?-->\n```python\n(.+?)```", README, re.DOTALL)
    return code


def test_the_variant_is_short(variant):
    assert len(variant.splitlines()) <= 20


def test_the_variant_runs_as_printed(variant, program, tmp_path):
    (tmp_path / "crm.py").write_text(variant)
    (command,) = re.findall(r"run_recbole_escm2\.py (--model=crm:.+)", README)
    done = program(*command.split(), "--impression_sample=0.03", "--epochs=1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^CTCVR_AUC: 0\.\d+$", done.stdout, re.MULTILINE)


def test_the_variant_stands_in_a_table_as_printed(variant, program, tmp_path):
    (tmp_path / "crm.py").write_text(variant)
    ((name, line),) = re.findall(r"`(\w+\.hyper)` beside `crm.py`, of the one line `(.+?)`", README)
    (tmp_path / name).write_text(line + "\n")
    (command,) = re.findall(r"run_recbole_escm2\.py (--model=.+,crm:.+)", README)
    for printed, quick in (("seeds=5", "seeds=2"), ("trials=3", "trials=2"), ("=0.1", "=0.02")):
        assert printed in command
        command = command.replace(printed, quick)
    done = program(*command.split(), "--epochs=1")
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("output/benchmark-*/report.json")
    content = json.loads(report.read_text())
    assert len(content["rows"]) == 7 + 1  # ESMM again: the A/A row
    (mine,) = (row for row in content["rows"] if row["label"] == "crm:ESCM2_CRM")
    assert mine["metrics"]["CTCVR_AUC"]["low"] < mine["metrics"]["CTCVR_AUC"]["high"]
    assert mine["metrics"]["CTCVR_AUC"]["verdict"] in ("better", "worse", "undecided")
    _, tried = content["tuning"]["by_row"]["crm:ESCM2_CRM"]
    assert 0.018 < tried["chosen"]["variance_weight"] < 1


def test_the_leaderboard_is_what_the_tables_say():
    checked = subprocess.run(
        [sys.executable, "scripts/leaderboard.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_variant_runs_as_a_class(variant, settings):
    names: dict = {}
    exec(compile(variant, "crm.py", "exec"), names)
    outcome = run(names["ESCM2_CRM"], "tiny", config_dict=settings, saved=False)
    assert 0 < outcome["test_result"]["CTCVR_AUC"] < 1


def test_the_test_command_is_the_one_that_continuous_integration_runs():
    (command,) = re.findall(r"^(pip install -e '\.\[test\]' && pytest)$", README, re.MULTILINE)
    assert command.replace("install", "install --quiet") in (ROOT / ".ci" / "run").read_text()


def test_relative_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
