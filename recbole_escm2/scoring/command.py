"""The command ``score``."""

from __future__ import annotations

from typing import Any

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.property_files import parse_value
from recbole_escm2.scoring.options import COLUMNS, LISTS, OPTIONS, VALUES


def score_command(given: dict[str, str]) -> int:
    """Score the predictions of files, print the tables, and write them where ``--out`` says.

    Args:
        given: options of the command line, as text.

    Returns:
        The exit code.

    Raises:
        UsageError: something that the caller can mend.
    """
    for name in given:
        if name not in (*OPTIONS, *COLUMNS):
            raise UsageError(f"score knows no --{name}{did_you_mean(name, [*OPTIONS, *COLUMNS])}")
    if not given.get("predictions"):
        raise UsageError("which predictions? score needs --predictions=FILE; see score --help")
    from recbole_escm2.scoring.score import score
    from recbole_escm2.scoring.show import page_takes, report, shown_paths, text

    options: dict[str, Any] = {name: given[name] for name in COLUMNS if name in given}
    options |= {name: _listed(name, given[name]) for name in LISTS if name in given}
    options |= {name: parse_value(given[name]) for name in VALUES[1:] if name in given}
    if "baseline" in given:
        options["baseline"] = given["baseline"]
    scores = score(given.get("labels"), _files(given["predictions"]), **options)
    print(text(scores))
    if "out" in given:
        print()
        print(shown_paths(report(scores, given["out"])))
        if missing := page_takes():
            print(f"no page: {missing}")
    return 0


def _files(listed: str) -> Any:
    """``FILE,FILE`` or ``NAME=FILE,NAME=FILE``."""
    words = [word.strip() for word in listed.split(",") if word.strip()]
    pairs = [word.partition("=") for word in words]
    if not any(equals for _, equals, _ in pairs):
        return words
    if not all(name and equals and file for name, equals, file in pairs):
        raise UsageError(
            f"--predictions={listed}: write FILE,FILE or NAME=FILE,NAME=FILE, not some of each"
        )
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise UsageError(f"--predictions={listed}: a name stands there twice")
    return {name: file for name, _, file in pairs}


def _listed(name: str, value: str) -> list[Any]:
    """Words between commas, with or without brackets."""
    words = [word.strip(" '\"") for word in value.strip().strip("[]").split(",")]
    words = [word for word in words if word]
    if not words:
        raise UsageError(f"--{name} needs a value: --{name}=VALUE,VALUE")
    if name != "topk":
        return words
    return [parse_value(word) for word in words]
