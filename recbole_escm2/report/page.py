"""A study as one HTML page that holds all it needs, and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.weights import HANDFUL, NEARLY_CONSTANT
from recbole_escm2.experiment.request import has_effect
from recbole_escm2.experiment.statistics import ALPHA
from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.lookup import find_model
from recbole_escm2.report import groups
from recbole_escm2.report.figures import DPI, Picture, pictures, png
from recbole_escm2.report.layout import layout
from recbole_escm2.report.notes import MINUS, aa_notes, one_line
from recbole_escm2.report.tables import screening_table, tuning_table

_TEMPLATES = Path(__file__).parent / "templates"
# what a run has for itself, and no setting of its row
_OF_A_RUN = ("seed", "run_dir", "checkpoint_dir")
_NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Panel:
    """Pictures under one heading.

    Attributes:
        heading: what they show; empty where the section says it.
        folded: whether a reader has to open it.
        pictures: description, width in CSS pixels and the image as base64.
    """

    heading: str
    folded: bool
    pictures: list[tuple[str, int, str]]


@dataclass(frozen=True)
class Weighed:
    """A row's weight diagnostics, in the mean over its seeds, and its propensity floor."""

    label: str
    numbers: Mapping[str, float]
    floor: float | None


@dataclass(frozen=True)
class Settings:
    """Configurations, as text.

    Attributes:
        shared: what the user set for all rows.
        differing: keys whose value isn't the same in all rows that have it and whose model reads
            it, with the values by label: floats in four digits, a dash for any other row.
        complete: everything, by label.
    """

    shared: Mapping[str, str]
    differing: Mapping[str, Mapping[str, str]]
    complete: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def drawn(study: Study) -> list[tuple[Picture, bytes]]:
    """The pictures that there is something to show in, as PNG."""
    figures = [(picture, picture.draw()) for picture in pictures(study)]
    return [(picture, png(figure)) for picture, figure in figures if figure is not None]


def page(study: Study, images: Sequence[tuple[Picture, bytes]] | None = None) -> str:
    """The page of a study.

    Text of the study (labels, settings, reasons) is escaped. A content security policy lets
    nothing but the page's own script, style sheet and images work.

    Args:
        study: what is shown.
        images: of :func:`drawn`, where they are drawn already.
    """
    by_rule = groups.groupings(study)
    weighed, by_package = weighing(study), versions(study)
    return render(
        "report.html",
        study=study,
        table=layout(study),
        summary=summary(study),
        panels=_panels(drawn(study) if images is None else images),
        weighing=weighed,
        grouped=[(by, rule, groups.tables(study, by)) for by, rule in by_rule.items()],
        group_note=groups.note(study),
        warned=weight_warnings(weighed),
        data=_data(study),
        settings=settings(study),
        chosen=_chosen(study),
        versions=by_package,
        mixed=[package for package, versions in by_package.items() if len(versions) > 1],
        alpha=ALPHA,
        comparisons=len(study.verdicts),
    )


def _chosen(study: Study) -> list[tuple[str, list[list[str]]]]:
    """Headings and tables of how rows and their settings were chosen."""
    shown = []
    if study.tuning is not None:
        shown.append(("Chosen by tuning", tuning_table(study.tuning)))
    if study.screening is not None and study.screening.left:
        shown.append(("Screened on validation alone", screening_table(study.screening)))
    return shown


def render(template: str, **content: Any) -> str:
    """A page of a template, with style sheet and script; text in it is escaped.

    Args:
        template: its name in the folder of templates.
        **content: what it shows.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"minus": _minus, "breakable": _breakable}
    style, script = (
        (_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    return environment.get_template(template).render(
        **content,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _panels(images: Sequence[tuple[Picture, bytes]]) -> dict[str, list[Panel]]:
    """The panels of each section of the page; none where a section has none."""
    sections: dict[str, dict[str, Panel]] = defaultdict(dict)
    for picture, image in images:
        panel = sections[picture.section].setdefault(
            picture.heading, Panel(picture.heading, picture.folded, [])
        )
        panel.pictures.append((picture.description, *embedded(image)))
    return defaultdict(list, {name: list(panels.values()) for name, panels in sections.items()})


def embedded(image: bytes) -> tuple[int, str]:
    """Width in CSS pixels and base64 of a PNG."""
    width = round(int.from_bytes(image[16:20]) * 96 / DPI)  # the first number of a PNG
    return width, base64.b64encode(image).decode()


def summary(study: Study) -> str:
    """What was compared and how far it came, in a few sentences."""
    rows, seeds = sum(not row.aa for row in study.rows), len(study.seeds)
    models = len({row.model for row in study.rows})
    planned, finished = len(study.rows) * seeds, len(study.results)
    again = ", the baseline again (A/A)" if study.again else ""
    sentences = [
        f"{rows} {'row' if rows == 1 else 'rows'} ({models} {'model' if models == 1 else 'models'}"
        f" with their settings){again} on {study.dataset}, each with "
        f"{'one seed' if seeds == 1 else f'{seeds} seeds'}; "
        + (
            f"all {planned} runs have finished."
            if finished == planned
            else f"{finished} of {planned} runs have finished."
        )
    ]
    verdicts = [compared.verdict for *_, compared in study.verdicts]
    if verdicts:
        better, worse = verdicts.count("better"), verdicts.count("worse")
        others = [one_line(label) for label in (study.baseline, study.rival) if label]
        sentences.append(
            f"Of {len(verdicts)} comparisons with {' and '.join(others)} in "
            f"{' and '.join(study.primary)} the corrected test calls {better} better and {worse} "
            "worse, and leaves the others undecided."
        )
        sentences += aa_notes(study)
    elif study.comparisons:
        sentences.append("No difference could be tested: what is missing says why.")
    elif rows > 1:
        sentences.append(
            "No difference was tested: that takes a primary metric and two seeds in both rows."
        )
    return " ".join(sentences)


class _Ends:
    """A number of several rows as text: the least and the largest, or one where they are alike."""

    def __init__(self, rows: Sequence[Weighed], name: str) -> None:
        self.values = [row.numbers[name] for row in rows]

    def __format__(self, form: str) -> str:
        ends = (format(end(self.values), form) for end in (min, max))
        return " to ".join(dict.fromkeys(ends))


def _effective_share(numbers: Mapping[str, float]) -> float:
    return numbers["effective_sample_size"] / numbers["clicks"]


#: What a row's numbers have to be for a warning, and the warning.
_WARNINGS: tuple[tuple[Callable[[Mapping[str, float]], bool], str], ...] = (
    (
        lambda numbers: _effective_share(numbers) > NEARLY_CONSTANT,
        "The weights are nearly equal, with {share_at_floor:.0%} of the clicks at the "
        "floor{floors}: the estimate is nearly the naive one of the click space.",
    ),
    (
        lambda numbers: _effective_share(numbers) < HANDFUL,
        "A few clicks rule the estimate: all of them together count as "
        "{effective_sample_size:,.0f} equal ones, and the heaviest weighs {largest_weight:,.0f}.",
    ),
    (
        lambda numbers: numbers["mean_weight_unfloored"] > 1.1,
        "pCTR is too small where clicks are: 1/pCTR over the clicks adds up to "
        "{mean_weight_unfloored:.2f} of the impressions instead of 1.",
    ),
    (
        lambda numbers: numbers["mean_weight_unfloored"] < 0.9,
        "pCTR is too large where clicks are, or there are impressions that no click stands for: "
        "1/pCTR over the clicks adds up to only {mean_weight_unfloored:.2f} of the impressions.",
    ),
    (
        lambda numbers: numbers["mean_weight"] < 0.8 * numbers["mean_weight_unfloored"],
        "With the floor the weights add up to only {mean_weight:.2f} of the impressions: the risk "
        "isn't an unbiased one over all of them.",
    ),
)


def weight_warnings(rows: Sequence[Weighed]) -> list[tuple[str, str]]:
    """What weight diagnostics mean for a counterfactual risk, in words.

    Args:
        rows: those that have diagnostics.

    Returns:
        The rows that a warning is for, and the warning; each kind once.
    """
    warned = []
    for concerns, words in _WARNINGS:
        concerned = [row for row in rows if concerns(row.numbers)]
        if concerned:
            everyone = len(concerned) == len(rows) > 1
            names = "All rows" if everyone else ", ".join(row.label for row in concerned)
            floors = sorted({row.floor for row in concerned if row.floor is not None})
            named = f" ({', '.join(f'{floor:g}' for floor in floors)})" if floors else ""
            ends = {name: _Ends(concerned, name) for name in concerned[0].numbers}
            warned.append((names, words.format(floors=named, **ends)))
    return warned


def weighing(study: Study) -> list[Weighed]:
    """Weight diagnostics of the rows that have them."""
    weighed = []
    for row in study.rows:
        runs = [run for run in study.of(row.label).values() if run.get("weights")]
        if runs:
            names = runs[0]["weights"]
            numbers = {n: _mean([run["weights"][n] for run in runs]) for n in names}
            floors = ((run.get("config") or {}).get("propensity_floor") for run in runs)
            floor = next((f for f in floors if isinstance(f, int | float)), None)
            weighed.append(Weighed(one_line(row.label), numbers, floor))
    return weighed


def _mean(weights: Sequence[float | None]) -> float:
    """The mean of numbers about weights; JSON has none for infinite ones."""
    return float(np.mean([np.inf if weight is None else weight for weight in weights]))


def settings(study: Study) -> Settings:
    """Configurations: what was set for all, where rows differ, and everything."""
    complete = {row.label: _row_config(study, row.label) for row in study.rows}
    complete = {label: config for label, config in complete.items() if config}
    shared = {key: _value(value) for key, value in study.shared.items()}
    return Settings(shared, _differing(study, complete), complete)


def _differing(
    study: Study, complete: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Of the complete settings by label, the keys in which rows differ, with what to show."""
    rows = [row for row in study.rows if row.label in complete]
    short = {row.label: _row_config(study, row.label, digits=4) for row in rows}
    hidden = {*_OF_A_RUN}
    if all(row.label == row.model for row in rows):
        hidden.add("model")
    differing = {}
    for key in dict.fromkeys(key for config in complete.values() for key in config):
        having = [row for row in rows if key in complete[row.label]]
        # what no model reads is the program's, such as the device
        reading = [row for row in having if _reads(study, row, key)] or having
        if key not in hidden and len({complete[row.label][key] for row in reading}) > 1:
            values = {row.label: short[row.label][key] for row in reading}
            differing[key] = {row.label: values.get(row.label, _NOTHING) for row in rows}
    return differing


def _reads(study: Study, row: Row, key: str) -> bool:
    """Whether the model of a row reads a config key; a model that isn't there may read any."""
    configs = [run["config"] for run in study.of(row.label).values() if run.get("config")]
    backbones = tuple(dict.fromkeys(str(config.get("backbone") or "") for config in configs))
    try:
        return has_effect(key, find_model(row.model), study.dataset, backbones)
    except UsageError:
        return True


def versions(study: Study) -> dict[str, list[tuple[str, int]]]:
    """Each package's versions with the number of runs that had them; more than one is a mixture."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for run in study.results.values():
        for package, version in (run.get("versions") or {}).items():
            counts[package][version] += 1
    return {package: list(by_version.items()) for package, by_version in counts.items()}


def _row_config(study: Study, label: str, digits: int | None = None) -> dict[str, str]:
    """The configuration of a row's runs; a key that they differ in shows all values.

    Args:
        study: whose runs.
        label: of the row.
        digits: significant ones of floats; all by default.
    """
    configs = [run["config"] for run in study.of(label).values() if run.get("config")]
    keys = dict.fromkeys(key for config in configs for key in config)
    return {
        key: " | ".join(dict.fromkeys(_value(c[key], digits) for c in configs if key in c))
        for key in keys
    }


def _value(value: Any, digits: int | None = None) -> str:
    if digits is not None:
        value = _rounded(value, digits)
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item, digits) for key, item in value.items()}
    return [_rounded(item, digits) for item in value] if isinstance(value, list) else value


def _data(study: Study) -> list[dict[str, str]]:
    """A line a split: counts, or their range where runs differ."""
    by_split: dict[str, list[Mapping[str, int]]] = defaultdict(list)
    for run in study.results.values():
        for split, counts in (run.get("data") or {}).items():
            by_split[split].append(counts)
    lines = []
    for split, of_runs in by_split.items():
        names = ("impressions", "clicks", "conversions")
        columns = {name: [counts[name] for counts in of_runs] for name in names}
        impressions, clicks, conversions = map(sum, columns.values())
        line = {"split": split, **{name: _span(column) for name, column in columns.items()}}
        line["click rate"] = f"{clicks / impressions:.3%}" if impressions else ""
        line["conversions per click"] = f"{conversions / clicks:.3%}" if clicks else ""
        lines.append(line)
    return lines


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _breakable(label: str) -> Markup:
    """A label that may break into lines behind _ and =, as Markup."""
    return Markup("<wbr>").join(re.split(r"(?<=[_=])(?=\w)", label))


def _minus(text: str) -> str:
    """Numbers with a typographic minus."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
