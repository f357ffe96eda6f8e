"""The metrics of a study by group of impressions: means over seeds with intervals, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recbole_escm2 import output
from recbole_escm2.evaluator.groups import COUNTS, value_text
from recbole_escm2.experiment.statistics import INDEPENDENT, Draws, Sample, sample
from recbole_escm2.experiment.study import Study
from recbole_escm2.report.notes import direction, one_line

#: Of :func:`csv`.
COLUMNS = (
    *("row", "model", "by", "group", "about", *COUNTS, "metric", "n", "mean", "std", "low", "high"),
    "reason",
)
_CALIBRATION = ("CVR_PCOC_ES", "CVR_PCOC")
NOTE = (
    "Groups are formed from train, features or predictions, never from the labels of test. Counts "
    "are of test, from the least to the most of the runs. Intervals of 95 % are {variance}. There "
    "is no verdict about a group: with so many numbers some lie apart by chance."
)
_VARIANCE = {
    "one": "of one run, for other test rows of these users and items",
    "split": "of the mean over seeds, with the variance that the notes above give",
    "world": "of the mean over seeds, each of which has a world of its own",
    "weights": (
        "of the mean over seeds, for other initial weights and for other test rows of these users "
        "and items together (the two parts of a margin squared and added, Zou and Donner, 2008)"
    ),
}


@dataclass(frozen=True)
class Group:
    """A group of one grouping, of all runs of a row.

    Attributes:
        name: the same in all runs.
        about: what it holds, as far as the runs agree.
        counts: least and most over the runs by kind; None where it isn't known.
        means: by metric; on one test set their intervals are for other test rows as well.
        undefined: why a metric has no value in a run, by metric.
    """

    name: str
    about: str
    counts: Mapping[str, tuple[int, int] | None]
    means: Mapping[str, Sample]
    undefined: Mapping[str, str]

    @property
    def label(self) -> str:
        """The name with what it holds."""
        return f"{self.name} ({self.about})" if self.about else self.name


def groupings(study: Study) -> dict[str, str]:
    """What the runs have groups by, with how they are formed."""
    made = (g for run in study.results.values() for g in run.get("groups") or ())
    rules: dict[str, list[str]] = {}
    for grouping in made:
        rules.setdefault(grouping["by"], []).append(grouping["rule"])
    return {by: "; or ".join(dict.fromkeys(own)) for by, own in rules.items()}


def shown_metrics(study: Study, by: str) -> list[str]:
    """The metrics of tables and pictures: the primary ones, and one of calibration."""
    there = {
        metric
        for run in study.results.values()
        for grouping in run.get("groups") or ()
        if grouping["by"] == by
        for group in grouping["groups"]
        for metric in group["metrics"]
    }
    calibration = [metric for metric in _CALIBRATION if metric in there][:1]
    return [metric for metric in (*study.primary, *calibration) if metric in there]


def of_row(study: Study, label: str, by: str) -> list[Group]:
    """The groups of a row, in their order; those that no run has are left out."""
    runs: dict[int, dict[str, Mapping[str, Any]]] = {}
    order: dict[str, float] = {}
    for seed, run in study.of(label).items():
        for grouping in run.get("groups") or ():
            if grouping["by"] == by:
                runs[seed] = {str(group["group"]): group for group in grouping["groups"]}
                for place, name in enumerate(runs[seed]):
                    order[name] = max(order.get(name, 0.0), place)
    return [
        _group(study.draws, name, {seed: own[name] for seed, own in runs.items() if name in own})
        for name in sorted(order, key=lambda name: order[name])
    ]


def _group(draws: Draws, name: str, runs: Mapping[int, Mapping[str, Any]]) -> Group:
    counts: dict[str, tuple[int, int] | None] = {}
    for kind in COUNTS:
        known = [group[kind] for group in runs.values() if group[kind] is not None]
        counts[kind] = (min(known), max(known)) if known else None
    metrics = dict.fromkeys(metric for group in runs.values() for metric in group["metrics"])
    abouts = list(dict.fromkeys(group["about"] for group in runs.values()))
    undefined = {
        metric: reason for group in runs.values() for metric, reason in group["undefined"].items()
    }
    means = {
        metric: mean
        for metric in metrics
        if (mean := _mean(draws, {s: g["metrics"].get(metric) for s, g in runs.items()}))
    }
    return Group(name, abouts[0] if len(abouts) == 1 else "", counts, means, undefined)


def _mean(draws: Draws, numbers: Mapping[int, Mapping[str, float | None] | None]) -> Sample | None:
    """The mean over seeds; None where no run has a value.

    On one test set the interval is for other test rows as well: what one run's interval says of
    them, in the mean over the runs, and what seeds do, squared and added on each side.
    """
    known = {
        seed: number
        for seed, number in numbers.items()
        if number is not None and number["value"] is not None
    }
    if not known:
        return None
    values = {seed: float(number["value"] or 0.0) for seed, number in known.items()}
    own = sample(values, INDEPENDENT if draws.kind == "weights" else draws)
    low, high = own.low, own.high
    if draws.kind == "weights" or len(values) == 1:
        low, high = _with_rows(own.mean, own.low, own.high, list(known.values()))
    return replace(own, low=low, high=high)


def _with_rows(
    mean: float,
    low: float | None,
    high: float | None,
    numbers: Sequence[Mapping[str, float | None]],
) -> tuple[float | None, float | None]:
    """The ends for other seeds and other test rows; the first two are None with one seed.

    Source: Zou & Donner, Construction of confidence limits about effect measures, Statistics in
    Medicine 27, 2008. The runs' parts of the test rows are taken as one, since the rows are.
    """
    ends = []
    for end, own in (("low", low), ("high", high)):
        rows = [(n["value"], n[end]) for n in numbers]
        if any(value is None or limit is None for value, limit in rows):
            return None, None
        margin = float(np.mean([abs((limit or 0.0) - (value or 0.0)) for value, limit in rows]))
        ends.append(math.hypot(margin, 0.0 if own is None else own - mean))
    return mean - ends[0], mean + ends[1]


# --------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        header: one cell a column; the first column is text.
        rows: of cells.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(study: Study, by: str) -> list[Table]:
    """The counts of the groups, then a table for each of :func:`shown_metrics`, a line a row."""
    of_rows = {row.label: of_row(study, row.label, by) for row in study.rows}
    of_rows = {label: groups for label, groups in of_rows.items() if groups}
    names = list(dict.fromkeys(group.name for groups in of_rows.values() for group in groups))
    labels = [_common(of_rows.values(), name) for name in names]
    counts = []
    for name, label in zip(names, labels, strict=True):
        same = [group for groups in of_rows.values() for group in groups if group.name == name]
        counts.append([label, *(_span([group.counts[kind] for group in same]) for kind in COUNTS)])
    made = [Table("impressions of test", ["group", *COUNTS], counts)]
    for metric in shown_metrics(study, by):
        rows = []
        for label, groups in of_rows.items():
            own = {group.name: group.means.get(metric) for group in groups}
            rows.append([one_line(label), *(_shown(own.get(name)) for name in names)])
        made.append(Table(f"{metric} {direction(metric)}".strip(), ["model", *names], rows))
    return made


def _shown(mean: Sample | None) -> str:
    if mean is None:
        return value_text(None)
    return value_text({"value": mean.mean, "low": mean.low, "high": mean.high})


def _common(of_rows: Iterable[Sequence[Group]], name: str) -> str:
    """The label that all rows have for a group, or else its name."""
    labels = {group.label for groups in of_rows for group in groups if group.name == name}
    return labels.pop() if len(labels) == 1 else name


def _span(counts: Sequence[tuple[int, int] | None], thousands: str = ",") -> str:
    known = [count for count in counts if count is not None]
    if not known:
        return ""
    low, high = min(low for low, _ in known), max(high for _, high in known)
    return " to ".join(dict.fromkeys(f"{count:{thousands}}" for count in (low, high)))


def note(study: Study) -> str:
    """What intervals by group are about."""
    kind = "one" if len(study.seeds) == 1 else study.draws.kind
    return NOTE.format(variance=_VARIANCE.get(kind, "not known"))


def text(study: Study, width: int = 100) -> str:
    """All groupings for a terminal; empty where there is none."""
    parts = []
    for by, rule in groupings(study).items():
        parts.append(f"By {by} ({rule})")
        parts += [
            f"{table.title}\n\n{output.table(table.header, table.rows, width)}"
            for table in tables(study, by)
        ]
    return "\n\n".join([*parts, note(study)]) if parts else ""


def csv_lines(study: Study) -> list[dict[str, Any]]:
    """A line for each row, grouping, group and metric."""
    lines: list[dict[str, Any]] = []
    for row in study.rows:
        for by in groupings(study):
            for group in of_row(study, row.label, by):
                head: dict[str, Any] = {"row": row.label, "model": row.model, "by": by}
                head |= {"group": group.name, "about": group.about}
                head |= {kind: _span([count], "") for kind, count in group.counts.items()}
                for metric in dict.fromkeys([*group.means, *group.undefined]):
                    line = {**head, "metric": metric, "reason": group.undefined.get(metric)}
                    if (mean := group.means.get(metric)) is not None:
                        line |= {"n": len(mean.values), "mean": mean.mean, "std": mean.std}
                        line |= {"low": mean.low, "high": mean.high}
                    lines.append(line)
    return lines


def csv(study: Study) -> str:
    """The same as CSV."""
    return output.csv_text(COLUMNS, csv_lines(study))
