"""What docs/guarantees.md and results/reliability.md say is backed by what they name."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
GUARANTEES = PAGE.partition("## Known limits")[0]
LINES = re.findall(r"^- .*(?:\n  .*)*", GUARANTEES, re.MULTILINE)
NAMED = re.compile(r"`((?:tests|scripts)/[^`:]+)(?:::(\w+))?`")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[2:40])
def test_each_guarantee_names_what_holds_it(line):
    named = NAMED.findall(line)
    assert named
    for file, test in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE), (file, test)


def test_the_page_of_figures_is_what_the_figures_make(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "reliability", raising=False)
    import reliability

    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page()
    assert {file.stem for file in reliability.FOLDER.glob("*.csv")} <= reliability.SECTIONS.keys()
