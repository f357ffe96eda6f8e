"""A study as one HTML page that holds all it needs, and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.weights import HANDFUL, NEARLY_CONSTANT
from recbole_escm2.experiment.request import has_effect
from recbole_escm2.experiment.statistics import ALPHA
from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.model.lookup import find_model
from recbole_escm2.report import figures
from recbole_escm2.report.tables import (
    MINUS,
    aa_notes,
    layout,
    one_line,
    tuning_table,
)

_TEMPLATES = Path(__file__).parent / "templates"
# what a run has for itself, and no setting of its row
_OF_A_RUN = ("seed", "run_dir", "checkpoint_dir")
_NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Panel:
    """Pictures under one heading.

    Attributes:
        heading: what they show; empty where the section says it.
        pictures: ``svg`` elements.
        folded: whether a reader has to open it.
    """

    heading: str
    pictures: tuple[Markup, ...]
    folded: bool = False


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
        asked: what the user set for all rows.
        differing: keys whose value isn't the same in all rows that have it and whose model reads
            it, with the values by label: floats in four digits, a dash for any other row.
        complete: everything, by label.
    """

    asked: Mapping[str, str]
    differing: Mapping[str, Mapping[str, str]]
    complete: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def page(study: Study) -> str:
    """The page of a study.

    Text of the study (labels, settings, reasons) is escaped. A content security policy lets
    nothing but the page's own script and style sheet work.
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
    weighed, found = weighing(study), versions(study)
    return environment.get_template("report.html").render(
        study=study,
        table=layout(study),
        summary=summary(study),
        results=_results(study),
        sweeps=_sweeps(study),
        learning=_learning(study),
        calibration=_calibration(study),
        overlap=_by_group(study, "overlap", _overlap),
        weights=_by_group(study, "weights", _weights),
        weighing=weighed,
        warned=weight_warnings(weighed),
        data=_data(study),
        settings=settings(study),
        tuning=tuning_table(study.tuning) if study.tuning else [],
        versions=found,
        mixed=[package for package, versions in found.items() if len(versions) > 1],
        alpha=ALPHA,
        comparisons=len(study.verdicts),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


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


def weight_warnings(rows: Sequence[Weighed]) -> list[tuple[str, str]]:
    """What weight diagnostics mean for a counterfactual risk, in plain words.

    Args:
        rows: those that have diagnostics.

    Returns:
        The rows that a warning is for, and the warning; each kind once.
    """

    def value(row: Weighed, name: str) -> float:
        return row.numbers[name]

    def kept(row: Weighed) -> float:
        return value(row, "effective_sample_size") / value(row, "clicks")

    kinds: list[tuple[Callable[[Weighed], bool], Callable[[list[Weighed]], str]]] = [
        (
            lambda row: kept(row) > NEARLY_CONSTANT,
            lambda rows: (
                f"The weights are nearly equal, with {_between(rows, 'share_at_floor', '.0%')} of "
                f"the clicks at the floor{_floors(rows)}: the estimate is nearly the naive one of "
                "the click space."
            ),
        ),
        (
            lambda row: kept(row) < HANDFUL,
            lambda rows: (
                "A few clicks rule the estimate: all of them together count as "
                f"{_between(rows, 'effective_sample_size', ',.0f')} equal ones, and the heaviest "
                f"weighs {_between(rows, 'largest_weight', ',.0f')}."
            ),
        ),
        (
            lambda row: value(row, "mean_weight_unfloored") > 1.1,
            lambda rows: (
                "pCTR is too small where clicks are: 1/pCTR over the clicks adds up to "
                f"{_between(rows, 'mean_weight_unfloored', '.2f')} of the impressions instead of 1."
            ),
        ),
        (
            lambda row: value(row, "mean_weight_unfloored") < 0.9,
            lambda rows: (
                "pCTR is too large where clicks are, or there are impressions that no click stands "
                "for: 1/pCTR over the clicks adds up to only "
                f"{_between(rows, 'mean_weight_unfloored', '.2f')} of the impressions."
            ),
        ),
        (
            lambda row: value(row, "mean_weight") < 0.8 * value(row, "mean_weight_unfloored"),
            lambda rows: (
                "With the floor the weights add up to only "
                f"{_between(rows, 'mean_weight', '.2f')} of the impressions: the risk isn't an "
                "unbiased one over all of them."
            ),
        ),
    ]
    found = []
    for concerns, words in kinds:
        concerned = [row for row in rows if concerns(row)]
        if concerned:
            everyone = len(concerned) == len(rows) > 1
            names = "All rows" if everyone else ", ".join(row.label for row in concerned)
            found.append((names, words(concerned)))
    return found


def _between(rows: Sequence[Weighed], name: str, form: str) -> str:
    """A number of the rows, or the two ends where they differ."""
    values = [row.numbers[name] for row in rows]
    ends = dict.fromkeys((format(min(values), form), format(max(values), form)))
    return " to ".join(ends)


def _floors(rows: Sequence[Weighed]) -> str:
    floors = sorted({row.floor for row in rows if row.floor is not None})
    return f" ({', '.join(f'{floor:g}' for floor in floors)})" if floors else ""


def weighing(study: Study) -> list[Weighed]:
    """Weight diagnostics of the rows that have them."""
    found = []
    for row in study.rows:
        runs = [run for run in study.of(row.label).values() if run.get("weights")]
        if runs:
            names = runs[0]["weights"]
            numbers = {n: _mean([run["weights"][n] for run in runs]) for n in names}
            floors = ((run.get("config") or {}).get("propensity_floor") for run in runs)
            floor = next((floor for floor in floors if floor is not None), None)
            found.append(Weighed(one_line(row.label), numbers, floor))
    return found


def _mean(weights: Sequence[float | None]) -> float:
    """The mean of numbers about weights; JSON has none for infinite ones."""
    return float(np.mean([np.inf if weight is None else weight for weight in weights]))


def settings(study: Study) -> Settings:
    """Configurations: what was asked for, where rows differ, and everything."""
    complete = {row.label: _row_config(study, row.label) for row in study.rows}
    complete = {label: config for label, config in complete.items() if config}
    asked = {key: _value(value) for key, value in study.shared.items()}
    return Settings(asked, _differing(study, complete), complete)


def _differing(
    study: Study, complete: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Of the complete settings by label, the keys in which rows differ, with what to show."""
    rows = [row for row in study.rows if row.label in complete]
    short = {row.label: _row_config(study, row.label, digits=4) for row in rows}
    hidden = {*_OF_A_RUN}
    if all(row.label == row.model for row in rows):
        hidden.add("model")
    found = {}
    for key in dict.fromkeys(key for config in complete.values() for key in config):
        having = [row for row in rows if key in complete[row.label]]
        # what no model reads is the program's, such as the device
        reading = [row for row in having if _reads(study, row, key)] or having
        if key not in hidden and len({complete[row.label][key] for row in reading}) > 1:
            values = {row.label: short[row.label][key] for row in reading}
            found[key] = {row.label: values.get(row.label, _NOTHING) for row in rows}
    return found


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
    counts: dict[str, dict[str, int]] = {}
    for run in study.results.values():
        for package, version in (run.get("versions") or {}).items():
            by_version = counts.setdefault(package, {})
            by_version[version] = by_version.get(version, 0) + 1
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
    found: dict[str, list[Mapping[str, int]]] = {}
    for run in study.results.values():
        for split, counts in (run.get("data") or {}).items():
            found.setdefault(split, []).append(counts)
    lines = []
    for split, all_counts in found.items():
        clicks = sum(c["clicks"] for c in all_counts)
        impressions = sum(c["impressions"] for c in all_counts)
        conversions = sum(c["conversions"] for c in all_counts)
        lines.append(
            {
                "split": split,
                **{
                    name: _span([c[name] for c in all_counts])
                    for name in ("impressions", "clicks", "conversions")
                },
                "click rate": f"{clicks / impressions:.3%}" if impressions else "",
                "conversions per click": f"{conversions / clicks:.3%}" if clicks else "",
            }
        )
    return lines


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# ---- pictures


def _results(study: Study) -> list[Panel]:
    pictures = [
        _svg(
            figures.dots(study, [m], legend=False), f"dots-{n}", f"{m} of all rows, 95 % intervals"
        )
        for n, m in enumerate(study.shown)
    ]
    return _panel("", pictures)


def _sweeps(study: Study) -> list[Panel]:
    panels = []
    for k, key in enumerate(dict.fromkeys(key for row in study.rows for key in row.swept)):
        pictures = [
            _svg(figures.sweep(study, key, [m]), f"sweep-{k}-{n}", f"{m} against {key}")
            for n, m in enumerate(study.shown)
        ]
        panels += _panel(key, pictures)
    return panels


def _learning(study: Study) -> list[Panel]:
    def draw(labels: Sequence[str], name: str) -> list[Markup | None]:
        return [
            _svg(figures.learning_curves(study, labels, [p]), f"{name}-{n}", f"{p} by epoch")
            for n, p in enumerate(figures.learning_panels(study, labels))
        ]

    return _by_group(study, "learning", lambda _, labels, name: draw(labels, name))


def _calibration(study: Study) -> list[Panel]:
    def draw(_: Study, labels: Sequence[str], name: str) -> list[Markup | None]:
        return [
            _svg(figures.calibration(study, task, labels), f"{name}-{task}", f"Calibration: {what}")
            for task, what in figures.TASKS.items()
        ]

    return _by_group(study, "calibration", draw)


def _overlap(study: Study, labels: Sequence[str], name: str) -> list[Markup | None]:
    return [
        _svg(figures.overlap(study, [label]), f"{name}-{n}", f"pCTR by click: {one_line(label)}")
        for n, label in enumerate(labels)
    ]


def _weights(study: Study, labels: Sequence[str], name: str) -> list[Markup | None]:
    return [
        _svg(figures.weights(study, labels, [panel]), f"{name}-{n}", panel)
        for n, panel in enumerate((figures.QUANTILES, figures.EFFECTIVE))
    ]


def _by_group(
    study: Study,
    name: str,
    draw: Callable[[Study, Sequence[str], str], Sequence[Markup | None]],
) -> list[Panel]:
    """A panel a group of rows; all but the first are folded, as each is like it."""
    panels: list[Panel] = []
    groups = figures.row_groups(study)
    model = {row.label: row.model for row in study.rows if row.swept}
    for n, labels in enumerate(groups):
        heading = " · ".join(map(one_line, labels)) if len(groups) > 1 else ""
        if labels[0] in model:
            heading = f"{model[labels[0]]}, swept ({len(labels)} rows)"
        panels += _panel(heading, draw(study, labels, f"{name}-{n}"), folded=bool(panels))
    return panels


def _panel(heading: str, pictures: Iterable[Markup | None], folded: bool = False) -> list[Panel]:
    """The panel, if it has a picture."""
    drawn = tuple(picture for picture in pictures if picture)
    return [Panel(heading, drawn, folded)] if drawn else []


def _svg(figure: Figure | None, name: str, description: str) -> Markup | None:
    if figure is None:
        return None
    # the serialiser of the tree has escaped every text and attribute
    return Markup(figures.inline_svg(figure, name, description))


def _breakable(label: str) -> Markup:
    """A label that may break into lines behind _ and =, as Markup."""
    return Markup("<wbr>").join(re.split(r"(?<=[_=])(?=\w)", label))


def _minus(text: str) -> str:
    """Numbers with a typographic minus."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
