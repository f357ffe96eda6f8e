"""docs/licences.md names each package that setup.cfg does, and a licence for each."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_each_package_has_its_licence(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "licences", raising=False)
    import licences

    text = licences.PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    found = {name: (needed_for, licence) for name, _, needed_for, licence in rows}
    for name, needed_for in licences.direct().items():
        assert found[name][0] == ", ".join(needed_for)
    # those that a closed program may come with, too
    known = re.compile("MIT|BSD|Apache|MPL|Mozilla|PSF|Python Software Foundation")
    for name, (_, licence) in found.items():
        assert known.search(licence), name
        assert "GPL" not in licence, name
