"""What the README shows works as it is printed."""

import re
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
