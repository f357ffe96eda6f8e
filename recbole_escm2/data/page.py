"""What was found while a store was built, as a page to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_escm2.output import table

#: The page's name in the folder of the store.
REPORT_FILE = "report.md"


def markdown(schema: Mapping[str, Any]) -> str:
    """The report of a store as a page.

    Args:
        schema: of the store, with ``report`` and ``notes``.
    """
    report, parts = schema["report"], schema["report"]["parts"]
    lines = ["# What the data was made of", ""]
    if schema["simulated"]:
        lines += [f"**{schema['simulated']['note']}**", ""]
    if schema["notes"]:
        lines += ["## Notes", "", *(f"- {level}: {text}" for level, text in schema["notes"]), ""]
    if settings := schema.get("settings"):
        lines += ["## Settings", "", *(f"- {k}: {_listed(v)}" for k, v in settings.items()), ""]
    if files := report.get("files"):
        numbers = dict.fromkeys(k for f in files for k, v in f.items() if isinstance(v, int))
        rows = [[file["name"], *(file.get(key) for key in numbers)] for file in files]
        lines += ["## Files", "", "Before anything is left out or split.", ""]
        lines += _block(["file", *(key.replace("_", " ") for key in numbers)], rows)
    header = ["part", "rows", "clicks", "conversions", "clicks/rows", "conversions/clicks"]
    rows = [[p, *own.values(), *_rates(*own.values())] for p, own in parts.items()]
    lines += ["## Parts", "", *_block(header, rows)]
    header = ["field", "vocabulary", "seen"]
    header += [f"{what} {part}" for what in ("unknown", "lacking") for part in parts]
    rows = [
        [
            name,
            *(own["vocabulary"], own["seen"]),
            *(_share(own["unknown"][part], own["values"][part]) for part in parts),
            *(_share(own["lacking"][part], parts[part]["rows"]) for part in parts),
        ]
        for name, own in report["fields"].items()
    ]
    lines += ["## Fields", "", *_block(header, rows)]
    lines += [
        "vocabulary: tokens with an id. seen: tokens where the vocabulary is from, rare ones too.",
        "unknown: share of the values without an id. lacking: share of the impressions without a",
        "value.",
        "",
    ]
    for name, own in report["joins"].items():
        lost = ", ".join(f"{n:,} in {part}" for part, n in own["unmatched"].items())
        lines += [f"{name}: {own['rows']:,} rows; impressions without one: {lost}.", ""]
    return "\n".join(lines)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _block(header: list[str], rows: Sequence[Iterable[Any]]) -> list[str]:
    shown = [[f"{v:,}" if isinstance(v, int) else "" if v is None else v for v in r] for r in rows]
    return ["```", table(header, shown), "```", ""]


def _rates(rows: int, clicks: int, conversions: int) -> tuple[str, str]:
    return _share(clicks, rows), _share(conversions, clicks)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
