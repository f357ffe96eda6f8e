"""Makes docs/licences.md: the packages that this one installs, with what they say of their licence.

It reads the metadata of what is installed, so run it where the extras are.

    python scripts/licences.py

Ends with 1 where a package isn't installed or says nothing.
"""

from __future__ import annotations

import configparser
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recbole_escm2.output import write_whole

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
#: What a user may install; [test] is a developer's, and no package comes with it.
EXTRAS = ("benchmark", "search", "serve", "tree")
_HEAD = """\
# Licences

This package is under the MIT licence ([LICENSE](../LICENSE)) and holds no code of others. These are
the packages that `pip` installs with it, and what each says of its licence in its metadata; made by
`python scripts/licences.py`. "through" are those that one of the others needs. The extra
`[torchrec]` (torchrec, fbgemm-gpu: BSD-3-Clause) is installed by itself, see
[docs/distributed.md](distributed.md). A wheel of torch for CUDA also installs NVIDIA's libraries,
which have NVIDIA's own terms.
"""


def direct() -> dict[str, list[str]]:
    """The packages that setup.cfg names, and for what."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = {"always": setup["options"]["install_requires"]}
    lists |= {f"[{extra}]": setup["options.extras_require"][extra] for extra in EXTRAS}
    found: dict[str, list[str]] = {}
    for needed_for, lines in lists.items():
        for line in filter(None, lines.splitlines()):
            found.setdefault(_name(line), []).append(needed_for)
    return {name: [*dict.fromkeys(needed_for)] for name, needed_for in found.items()}


def through(names: Iterable[str]) -> set[str]:
    """What packages need, here, in turn."""
    found: set[str] = set()
    left = list(names)
    while left:
        for line in requires(left.pop()) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                name = canonicalize_name(requirement.name)
                if name not in found:
                    found.add(name)
                    left.append(name)
    return found


def licence(name: str) -> str:
    """What a package says of its licence: an expression, classifiers, or a text's first line."""
    about = metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classifiers = about.get_all("Classifier") or []
    own = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    text = (about.get("License") or "").strip().partition("\n")[0]
    return ", ".join(own) or text


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def page() -> tuple[str, list[str]]:
    """The page, and the packages that aren't there or say nothing."""
    named = direct()
    also = through(named) - named.keys()
    needed_for = {name: ", ".join(what) for name, what in named.items()}
    needed_for |= dict.fromkeys(also, "through")
    rows, silent = [], []
    for name, what in sorted(needed_for.items()):
        try:
            said, version = licence(name), metadata(name)["Version"]
        except PackageNotFoundError:
            said, version = "", ""
        if not said:
            silent.append(name)
        rows.append(f"| {name} | {version} | {what} | {said.replace('|', '/')} |")
    head = "| package | version seen | needed for | licence |\n|---|---|---|---|"
    return "\n".join([_HEAD, head, *rows]) + "\n", silent


if __name__ == "__main__":
    made, silent = page()
    write_whole(PAGE, made)
    for name in silent:
        print(f"{name}: isn't installed, or says nothing of its licence", file=sys.stderr)
    sys.exit(bool(silent))
