"""Names that a page, a spreadsheet, LaTeX, Markdown or a terminal would act on are text there."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import logging
import re
from dataclasses import replace

import pytest
from studies import study_of

from recbole_escm2 import output
from recbole_escm2.errors import printable
from recbole_escm2.experiment.study import Row
from recbole_escm2.report.page import page
from recbole_escm2.report.tables import as_json, latex, markdown, runs_csv, text, tidy_csv

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</style><svg onload=alert(1)>",
    '" autofocus onfocus="alert(1)',
    "javascript:alert(1)",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "+1+1",
    "-2+3",
    "\t=1+1",
    r"\input{/etc/passwd}",
    r"\write18{id}",
    "$x$ % & #",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "\n\n# heading\n\n| a | b |",
    "`x` *y* ~z~",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202etxt.exe",
    "\0\r\n",
]


def made_of(names):
    """A study whose rows, title, command, settings and failures have names."""
    made = study_of(
        {name: {"CTR_AUC": [0.7, 0.8], "CVR_PCOC": [1.0, 0.9]} for name in names},
        names[0],
        title=" ".join(names),
        command=" ".join(names),
    )
    return replace(
        made,
        rows=[Row(name, name, {"k": name}, {"k": name}) for name in names],
        shared={"key": names},
        failures={(name, 2): name for name in names},
        results={key: own for key, own in made.results.items() if key[1] != 2},
    )


@pytest.fixture(scope="module")
def study():
    return made_of(HOSTILE)


@pytest.fixture(scope="module")
def harmless():
    """As many names that nothing acts on."""
    return made_of([f"r{n}" for n in range(len(HOSTILE))])


class Elements(html.parser.HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_a_page_has_no_further_element(study, harmless):
    found, usual = Elements(page(study)), Elements(page(harmless))
    assert set(found.tags) <= {*usual.tags, "wbr"}  # within long names
    assert found.tags.count("script") == usual.tags.count("script") == 1
    assert {name for name, _ in found.attributes} <= {name for name, _ in usual.attributes}
    links = [value for name, value in found.attributes if name in ("href", "src")]
    assert not [own for own in links if not own.startswith(("#", "data:"))]


@pytest.mark.parametrize("render", [tidy_csv, runs_csv])
def test_a_spreadsheet_computes_nothing(study, render):
    cells = [cell for row in csv.reader(io.StringIO(render(study))) for cell in row]
    assert len(cells) > 3 * len(HOSTILE)
    for cell in cells:
        if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
            float(cell)


def test_latex_reads_and_runs_nothing(study, harmless):
    has, usual = ({*re.findall(r"\\([a-zA-Z]+)", latex(own))} for own in (study, harmless))
    escapes = {"backslash", "asciitilde", "asciicircum", "less", "greater", "bar"}
    assert has - usual <= {f"text{name}" for name in escapes}


def test_markdown_has_no_link_and_no_element(study):
    shown, fence, command = markdown(study).rpartition("\n```bash\n")
    assert fence
    assert command.startswith(printable(HOSTILE[0]))
    assert "<" not in shown.replace("<br>", "")
    assert not re.search(r"(?<!\\)\]\(", shown)
    assert sum(line.startswith("# ") for line in shown.splitlines()) == 1


@pytest.mark.parametrize("fence", ["```", "``````", "x```` ```"])
def test_markdown_ends_a_command_where_it_ends(harmless, fence):
    lines = markdown(replace(harmless, command=f"a\n{fence}\n# b")).splitlines()
    (last,) = {line.removesuffix("bash") for line in lines if re.fullmatch("`{3,}bash", line)}
    assert lines[-1] == last
    assert len(last) > max(map(len, re.findall("`+", fence)))


@pytest.mark.parametrize("render", [text, markdown, latex])
def test_a_terminal_does_nothing(study, render):
    assert not [c for c in render(study) if not c.isprintable() and c != "\n"]


def test_json_is_read_as_it_was(study):
    content = json.loads(json.dumps(as_json(study), allow_nan=False))
    assert [row["label"] for row in content["rows"]] == HOSTILE


def test_a_log_has_colours_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with output.logging_to(tmp_path / "run.log"):
        for name in HOSTILE:
            logging.getLogger().warning("column %s, \x1b[1;31mred\x1b[0m", name)
    on_terminal, in_file = capsys.readouterr().err, (tmp_path / "run.log").read_text()
    assert r"column \x1b[2J\x1b]0;title\x07, " in on_terminal
    assert "\x1b[1;31mred\x1b[0m" in on_terminal
    assert r"column \x1b[2J\x1b]0;title\x07, red" in in_file
    for shown in (in_file, re.sub(r"\x1b\[[0-9;]*m", "", on_terminal)):
        assert printable(shown, kept="\n\t") == shown
