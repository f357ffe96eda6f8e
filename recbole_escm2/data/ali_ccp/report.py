"""What a conversion found: warnings, notes, and a page to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_escm2.output import table

#: Rows, clicks and conversions of the official files, where they are known.
OFFICIAL = {
    "train": {"rows": 42_300_000, "clicks": 1_644_256, "conversions": 9_032},
    "test": {"rows": 43_000_000},
}
_ROWS_TOLERANCE = 0.005  # the numbers of rows are known to three digits
_CONVERSION_RATE = 0.2
_CLICK_RATE = (0.005, 0.5)
_UNMATCHED = 0.01
_OF_IMPRESSIONS = ("rows", "clicks", "conversions", "conversions_without_click", "left_out")


def observations(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Warnings, of what can't be right, and notes.

    Args:
        report: of :func:`recbole_escm2.data.ali_ccp.convert.convert`, without the two.
    """
    warnings: list[str] = []
    notes: list[str] = []
    for file in report["files"]:
        if file["kind"] == "skeleton":
            warnings += _rates(file, report["simulated"])
            if not report["simulated"]:
                notes += _official(file)
        elif file["duplicate_keys"]:
            warnings.append(
                f"{file['name']}: {file['duplicate_keys']:,} rows with a key that was there "
                "before; the first row of a key is used"
            )
        if file["malformed"]:
            warnings.append(
                f"{file['name']}: {file['malformed']:,} malformed lines left out of "
                f"{file['rows']:,}; the first: {file['malformed_places'][0]}"
            )
    warnings += _joins(report)
    notes += _users(report)
    for name, field in report["fields"].items():
        if field["ids_in_training"] and field["ids_in_test"] and not field["ids_in_both"]:
            warnings.append(f"field {name}: training and test have no id in common")
    if report["options"]["validation_share"] and not report["parts"]["validation"]["rows"]:
        warnings.append("no row fell into the validation part")
    return warnings, notes


def _rates(file: Mapping[str, Any], simulated: bool) -> list[str]:
    name, rows = file["name"], file["rows"] - file["malformed"]
    clicks, conversions = file["clicks"], file["conversions"]
    if not rows:
        return [f"{name}: no rows"]
    if not clicks:
        return [f"{name}: no click among {rows:,} rows"]
    found = []
    low, high = _CLICK_RATE
    if not low <= clicks / rows <= high:
        found.append(f"{name}: {clicks / rows:.3%} of the rows are clicked (Ali-CCP: 3.9 %)")
    if not conversions:
        found.append(f"{name}: no conversion among {clicks:,} clicks")
    elif conversions / clicks > _CONVERSION_RATE and not simulated:
        found.append(f"{name}: {conversions / clicks:.1%} of the clicks convert (Ali-CCP: 0.55 %)")
    return found


def _joins(report: Mapping[str, Any]) -> list[str]:
    found = []
    for file in report["files"]:
        if file["kind"] == "skeleton":
            unmatched = report["unmatched"][file["split"]]
            if unmatched > _UNMATCHED * file["rows"]:
                found.append(
                    f"{file['name']}: {unmatched:,} of {file['rows']:,} rows have a "
                    "common_feature_index that the common features lack"
                )
    return found


def _users(report: Mapping[str, Any]) -> list[str]:
    without = report["without_user"]
    if without is None:
        return [
            "101 isn't among the feature_fields, so that no user is known: there are no GAUC, "
            "NDCG@K and Recall@K"
        ]
    rows = {part: found["rows"] for part, found in report["parts"].items()}
    return [
        f"{part}: {number:,} of {rows[part]:,} impressions have no user id (101); metrics per user "
        "leave them out"
        for part, number in without.items()
        if number
    ]


def _official(file: Mapping[str, Any]) -> list[str]:
    found = []
    for key, expected in OFFICIAL[file["split"]].items():
        tolerance = _ROWS_TOLERANCE * expected if key == "rows" else 0
        if abs(file[key] - expected) > tolerance:
            about = "about " if key == "rows" else ""
            found.append(
                f"{file['name']} has {file[key]:,} {key}, the official file has {about}{expected:,}"
            )
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = ["# Conversion of Ali-CCP", ""]
    if report["simulated"]:
        lines += ["**Simulated files: nothing here says anything about Ali-CCP.**", ""]
    for title, key in (("Warnings", "warnings"), ("Notes", "notes")):
        if report[key]:
            lines += [f"## {title}", "", *(f"- {text}" for text in report[key]), ""]
    lines += ["## Options", ""]
    lines += [f"- {key}: {_listed(value)}" for key, value in report["options"].items()]
    lines += ["", "## Raw files", "", "Before anything is left out or split.", ""]
    for kind, title, keys in (
        ("skeleton", "impressions", (*_OF_IMPRESSIONS, "malformed", "without_common_row")),
        ("common", "common features", ("rows", "duplicate_keys", "malformed")),
    ):
        rows = []
        for file in report["files"]:
            found = {**file, "without_common_row": report["unmatched"][file["split"]]}
            if file["kind"] == kind:
                rows.append([file["name"], *(f"{found[key]:,}" for key in keys)])
        lines += _block([title, *(key.replace("_", " ") for key in keys)], rows)
    details = [line for file in report["files"] for line in _details(file)]
    lines += [*details, ""] if details else []
    lines += ["## Parts", "", *_parts(report), "## Fields", "", *_fields(report)]
    lines += [
        "vocabulary: ids that enough training impressions have. seen: ids in training. OOV: share",
        "of the values that are not in the vocabulary. lacking: share of the impressions without a",
        "value. longest: most values of one row.",
        "",
    ]
    return "\n".join(lines)


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)


def _block(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["```", table(header, rows), "```", ""]


def _details(file: Mapping[str, Any]) -> list[str]:
    name = file["name"]
    return [
        *(f"- malformed: {place}" for place in file["malformed_places"]),
        *(
            f"- {name}: field {field} is not known there, {number:,} values ignored"
            for field, number in file["unknown_fields"].items()
        ),
        *(
            f"- {name}: field {field} has one value a row; {number:,} further ones ignored"
            for field, number in file["further_values"].items()
        ),
    ]


def _parts(report: Mapping[str, Any]) -> list[str]:
    header = ["part", "rows", "clicks", "conversions", "clicks/rows", "conversions/clicks"]
    rows = []
    for part, found in report["parts"].items():
        row, clicks, conversions = (found[key] for key in ("rows", "clicks", "conversions"))
        without = f"{report['without_user'][part]:,}" if report["without_user"] else "-"
        shares = clicks / row if row else None, conversions / clicks if clicks else None
        rows.append(
            [part, f"{row:,}", f"{clicks:,}", f"{conversions:,}", *map(_share, shares), without]
        )
    return _block([*header, "without user"], rows)


def _fields(report: Mapping[str, Any]) -> list[str]:
    header = ["field", "vocabulary", "seen", "OOV validation", "OOV test"]
    rows = [
        [
            name,
            f"{field['vocabulary']:,}",
            f"{field['ids_in_training']:,}",
            *(_share(field["oov_rate"][part]) for part in ("validation", "test")),
            *(_share(field["lacking"][part]) for part in ("train", "test")),
            f"{field['longest']:,}",
        ]
        for name, field in report["fields"].items()
    ]
    return _block([*header, "lacking train", "lacking test", "longest"], rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
