"""A study as pictures: PNG on white paper.

Each drawing is a ``Figure`` of its own, or None where no run holds what it shows; nothing here
touches pyplot's state. Colours are Okabe and Ito's, and every colour has a marker and a line style
of its own.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform
from scipy.special import logit
from scipy.stats import norm

from recbole_escm2.experiment.statistics import CONFIDENCE, Sample
from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.metric_names import target_of
from recbole_escm2.report import groups
from recbole_escm2.report.notes import direction, one_line

#: Text and axes.
INK = "#1b1f24"
# Okabe and Ito without yellow, which white paper swallows; the darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
#: More lines than this in one panel can't be kept in view.
LINES_PER_PANEL = 6
#: The panel of the training loss.
LOSS = "training loss"
TASKS = {
    "ctr": "pCTR over all impressions",
    "cvr": "pCVR over the clicked impressions",
    "ctcvr": "pCTCVR over all impressions",
    "cvr_es": "pCVR over all impressions, against potential conversions",
}
#: Dots an inch of a picture.
DPI = 150

_WIDTH, _HEIGHT = 3.6, 2.7  # of a panel, in inches
_LABEL_WIDTH = 27
_styled = style.context(
    [
        "default",  # whatever the user's matplotlibrc says
        {
            "font.size": 8.5,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            "axes.axisbelow": True,
            "axes.formatter.useoffset": False,
            "text.parse_math": False,
            "grid.color": INK,
            "grid.alpha": 0.12,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 4.5,
            **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
            **dict.fromkeys(("xtick.color", "ytick.color"), INK),
            **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
        },
    ]
)


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        name: of its file.
        description: what a reader hears who can't see it.
        section: of the page.
        heading: which rows or values of a section it shows; empty where it is all of them.
        folded: whether a reader has to open it.
        draw: makes it, or None where no run holds what it shows.
    """

    name: str
    description: str
    section: str
    heading: str
    folded: bool
    draw: Callable[[], Figure | None]


def pictures(study: Study) -> Iterator[Picture]:
    """Each picture that a study may have."""
    what = "Means and 95 % intervals of all metrics"
    yield Picture("metrics", what, "results", "", False, partial(dots, study))
    for key in dict.fromkeys(key for row in study.rows for key in row.swept):
        what = f"Metrics against {key}"
        yield Picture(f"sweep-{_slug(key)}", what, "sweep", key, False, partial(sweep, study, key))
    shown_together = row_groups(study)
    swept = {row.label: row.model for row in study.rows if row.swept}
    for n, labels in enumerate(shown_together, start=1):
        end = f"-{n}" if len(shown_together) > 1 else ""
        of = f" of {', '.join(map(one_line, labels))}" if end else ""
        heading = " · ".join(map(one_line, labels)) if end else ""
        if labels[0] in swept:
            heading = f"{swept[labels[0]]}, swept ({len(labels)} rows)"
        drawings: list[tuple[str, str, Callable[[], Figure | None]]] = [
            ("learning", f"Learning{of}", partial(learning_curves, study, labels)),
            *(
                (
                    f"calibration-{task}",
                    f"Calibration{of}: {what}",
                    partial(calibration, study, task, labels),
                )
                for task, what in TASKS.items()
            ),
            ("overlap", f"pCTR by click{of}", partial(overlap, study, labels)),
            ("weights", f"Weights{of}", partial(weights, study, labels)),
            *(
                (f"groups-{_slug(by)}", f"By {by}{of}", partial(by_group, study, by, labels))
                for by in groups.groupings(study)
            ),
        ]
        for name, described, draw in drawings:
            section = name.partition("-")[0]
            yield Picture(f"{name}{end}", described, section, heading, n > 1, draw)


def _slug(name: str) -> str:
    """A name for a file."""
    return re.sub(r"\W", "_", name)


def row_groups(study: Study) -> list[list[str]]:
    """Labels in groups that one panel can show; a swept model's rows are by themselves."""
    groups: list[list[str]] = []
    for _, rows in groupby(study.rows, key=lambda row: row.model if row.swept else None):
        labels = [row.label for row in rows]
        step = math.ceil(len(labels) / math.ceil(len(labels) / LINES_PER_PANEL))
        groups += [labels[n : n + step] for n in range(0, len(labels), step)]
    return groups


@_styled
def png(figure: Figure) -> bytes:
    """The figure on white paper, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


@_styled
def dots(study: Study, metrics: Sequence[str] | None = None) -> Figure | None:
    """Means with 95 % intervals, single seeds, and the baseline's mean as a line; a panel a metric.

    Args:
        study: what is shown.
        metrics: of its table; all by default.
    """
    metrics = _measured(study, metrics)
    if not metrics:
        return None
    names = [_wrapped(row.label, _LABEL_WIDTH) for row in study.rows]
    most = max(name.count("\n") + 1 for name in names)
    height = max(1.5, 0.75 + (0.12 + 0.12 * most) * len(names))
    figure, panels = _panels(len(metrics), height, sharey=True)
    for ax, metric in zip(panels, metrics, strict=True):
        for place, row in enumerate(study.rows):
            _draw_dots(ax, study, row, metric, place)
        target = target_of(metric)
        if target is not None and ax.get_xlim()[0] <= target <= ax.get_xlim()[1]:
            ax.axvline(target, color=INK, linewidth=1, linestyle=DASHES[2])
        ax.tick_params(axis="y", length=0, labelsize=7.5)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="x")
        ax.set_title(f"{metric} {direction(metric)}")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].plot([], [], "o", color=INK, markerfacecolor="none", label="baseline")
    for verdict, (marker, colour) in _SIGNS.items():
        panels[0].plot([], [], marker, color=colour, label=verdict)
    panels[0].scatter([], [], s=7, color=INK, alpha=0.5, linewidths=0, label="a seed")
    _legend(figure)
    return figure


_SIGNS = {"better": ("^", COLOURS[0]), "worse": ("v", COLOURS[1]), "no verdict": ("o", INK)}


def _draw_dots(ax: Axes, study: Study, row: Row, metric: str, place: float) -> None:
    cell = study.table[row.label].get(metric)
    if cell is None:
        return
    own = cell.sample
    verdict = cell.comparison.verdict if cell.comparison else None
    marker, colour = _SIGNS.get(verdict or "", _SIGNS["no verdict"])
    if own.low is not None and own.high is not None:
        ax.plot([own.low, own.high], [place, place], color=colour, linewidth=1.3)
    values = list(own.values.values())
    ax.scatter(values, [place + 0.25] * len(values), s=7, color=colour, alpha=0.5, linewidths=0)
    hollow = row.label == study.baseline
    ax.plot(own.mean, place, marker, color=colour, markerfacecolor="white" if hollow else colour)
    if hollow:
        ax.axvline(own.mean, color=INK, linewidth=0.8, linestyle=DASHES[1], alpha=0.6)


def learning_panels(study: Study, labels: Sequence[str] | None = None) -> list[str]:
    """What there is to show of training: metrics on validation, and :data:`LOSS`."""
    trainings = [t for row in _rows(study, labels) for t in _trainings(study, row)]
    validated = dict.fromkeys(metric for t in trainings for metric in _chosen(study, t))
    losses = any(epoch.get("losses") for t in trainings for epoch in t["epochs"])
    return [*validated, *([LOSS] if losses else [])]


@_styled
def learning_curves(study: Study, labels: Sequence[str] | None = None) -> Figure | None:
    """The metric that chooses the best epoch, and the training loss, by epoch.

    Bold is the mean over seeds as far as all of them trained, thin are single seeds, a ring is
    the epoch that was kept. The loss is the sum of a model's risks. A panel each of
    :func:`learning_panels`.

    Args:
        study: what is shown.
        labels: of the rows to draw; all by default.
    """
    shown = learning_panels(study, labels)
    if not shown:
        return None
    figure, axes = _panels(len(shown))
    for ax, panel in zip(axes, shown, strict=True):
        value = _loss if panel == LOSS else partial(_validated, panel)
        ax.set_title(panel if panel == LOSS else f"{panel} {direction(panel)} on validation")
        for row, look in _looks(study, labels):
            # the two trainings of one row are two lines
            for task in (None, "ctr", "cvr"):
                trainings = [t for t in _trainings(study, row) if t.get("task") == task]
                curves = [_points(t, value) for t in trainings]
                best = [None if panel == LOSS else t.get("best_epoch") for t in trainings]
                _draw_curves(ax, look, curves, best)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        _epochs(ax)
    _legend(figure)
    return figure


@_styled
def calibration(study: Study, task: str, labels: Sequence[str] | None = None) -> Figure | None:
    """Positive rate against mean prediction in equal-mass bins of test.

    Points are pooled over seeds. Their 95 % intervals (Wilson) are of one seed's rows: test sets
    of different seeds share impressions, so that adding up their rows would promise too much.

    Args:
        study: what is shown.
        task: one of :data:`TASKS`.
        labels: of the rows to draw; all by default.
    """
    drawn = [
        (bins, look)
        for row, look in _looks(study, labels)
        if (bins := _pooled_bins(study, row, task)) is not None
    ]
    if not drawn:
        return None
    figure, (ax,) = _panels(1, height=_WIDTH)
    everything = np.concatenate([values for bins, _ in drawn for values in bins[:2]])
    positive = everything[everything > 0]
    logarithmic = len(positive) > 0 and positive.max() / positive.min() > 10
    low = positive.min() / 1.8 if logarithmic else 0.0
    beyond = (1.6, 1.15) if logarithmic else (1.12, 1.04)  # room for the signs of the last bin
    high = min(float(everything.max()) * beyond[0], beyond[1]) or 1.0
    if logarithmic:
        ax.set(xscale="log", yscale="log")
    ax.plot([low, high], [low, high], color=INK, linewidth=0.8, alpha=0.6, zorder=1)
    for n, ((predicted, observed, least, most), look) in enumerate(drawn):
        # side by side, so that intervals don't hide each other
        moved = _moved(ax, n, len(drawn))
        # a bin without a positive stands hollow on the axis where that has no zero
        shown = np.maximum(observed, low)
        errors = np.clip([shown - least, most - shown], 0, None)
        across = np.maximum(predicted, low)
        ax.errorbar(
            across, shown, yerr=errors, elinewidth=0.8, linewidth=1, transform=moved, **look
        )
        if logarithmic and (none := observed <= 0).any():
            hollow = {**look, "linestyle": "", "markerfacecolor": "none", "markersize": 7}
            hollow["label"] = "_"  # the legend has the line's own sign
            ax.plot(across[none], shown[none], clip_on=False, transform=moved, **hollow)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=_wrapped(TASKS[task], 34))
    for axis in (ax.xaxis, ax.yaxis):
        _ticks(axis, logarithmic)
    ax.set(xlabel="mean prediction", ylabel="positive rate")
    ax.grid()
    _legend(figure)
    return figure


@_styled
def overlap(study: Study, labels: Sequence[str] | None = None) -> Figure | None:
    """How pCTR, the propensity, is spread over clicked and unclicked impressions of test.

    A panel a row, pooled over seeds; a dotted line is the propensity floor.

    Args:
        study: what is shown.
        labels: of the rows to draw; all by default.
    """
    pooled = [(row, _pooled_overlap(study, row)) for row in _rows(study, labels)]
    drawn = [(row, histogram) for row, histogram in pooled if histogram is not None]
    if not drawn:
        return None
    figure, panels = _panels(len(drawn), 2.1, sharex=True)
    left, right = min(h[0][0] for _, h in drawn), max(h[0][-1] for _, h in drawn)
    chances = np.array([0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
    for ax, (row, (edges, clicked, unclicked)) in zip(panels, drawn, strict=True):
        for counts, name, colour, dashes in (
            (unclicked, "not clicked", COLOURS[0], "-"),
            (clicked, "clicked", COLOURS[1], DASHES[1]),
        ):
            density = counts / max(counts.sum(), 1)
            ax.stairs(density, edges, fill=True, color=colour, alpha=0.18, linewidth=0)
            ax.stairs(density, edges, color=colour, linestyle=dashes, label=name, linewidth=1.5)
        floor = next((c.get("propensity_floor") for c in _recorded(study, row, "config")), None)
        seen = isinstance(floor, (int, float)) and 0 < floor < 1 and left <= logit(floor) <= right
        if seen:  # else its text would stand far from the panel, which would shrink to nothing
            ax.axvline(logit(floor), color=INK, linestyle=DASHES[2], linewidth=1)
            place = ax.get_xaxis_transform() + ScaledTranslation(
                3 / 72, -2 / 72, figure.dpi_scale_trans
            )
            ax.text(logit(floor), 1, f"floor {floor:g}", va="top", fontsize=7.5, transform=place)
        ax.set_title(_wrapped(row.label, 40))
        ax.spines["left"].set_visible(False)
        ax.set(xlabel="pCTR", yticks=[], ylim=(0, None))
        ax.tick_params(labelbottom=True)
    shown = chances[(logit(chances) >= left) & (logit(chances) <= right)]
    panels[0].set_xticks(logit(shown), [f"{chance:g}" for chance in shown])
    panels[0].set_xlim(left, right)
    _legend(figure)
    return figure


@_styled
def support(shares: np.ndarray) -> Figure:
    """How the support of rows is spread, beside clicks of train, of which each bin has as many.

    Args:
        shares: of the rows by support, in bins of equal width from 0 to 1.
    """
    figure, (ax,) = _panels(1, 2.1)
    edges = np.linspace(0, 1, len(shares) + 1)
    ax.stairs(shares, edges, fill=True, color=COLOURS[0], alpha=0.3, linewidth=0)
    ax.stairs(shares, edges, color=COLOURS[0], label="these rows", linewidth=1.5)
    of_clicks = "train's clicks"
    ax.axhline(1 / len(shares), color=COLOURS[1], linestyle=DASHES[1], label=of_clicks)
    ax.set(xlabel="support", ylabel="share", xlim=(0, 1), ylim=(0, None))
    _legend(figure)
    return figure


@_styled
def weights(study: Study, labels: Sequence[str] | None = None) -> Figure | None:
    """The inverse-propensity weights of test's clicks by quantile, and their effective sample.

    The effective sample, as a share of the clicks, is of each validation; all are means over
    seeds.

    Args:
        study: what is shown.
        labels: of the rows to draw; all by default.
    """
    looks = _looks(study, labels)
    quantiles = [(look, pooled) for row, look in looks if (pooled := _pooled_quantiles(study, row))]
    effective = [(look, curves) for row, look in looks if (curves := _effective(study, row))]
    if not quantiles and not effective:
        return None
    figure, axes = _panels(bool(quantiles) + bool(effective))
    if quantiles:
        ax = axes[0]
        for look, (q, w) in quantiles:
            ax.plot(q, w, **look)
        ax.set(title="weight of a click", xlabel="quantile of the clicks of test", yscale="log")
        ax.set_ylabel("logarithmic scale")
        _ticks(ax.yaxis, logarithmic=True)
        ax.grid()
    if effective:
        ax = axes[-1]
        for look, curves in effective:
            _draw_curves(ax, look, curves, [None] * len(curves))
        ax.set(title="effective sample / clicks, on validation", ylim=(0, 1.03))
        _epochs(ax)
    _legend(figure)
    return figure


@_styled
def sweep(study: Study, key: str, metrics: Sequence[str] | None = None) -> Figure | None:
    """A metric against a swept value with 95 % intervals, a line for each model; a panel a metric.

    Rows of models that weren't swept are level lines, their intervals at the right. Values that
    span decades stand on a logarithmic axis, with a 0 to the left of a break.

    Args:
        study: what is shown.
        key: config key that some rows have swept.
        metrics: of the table; all by default.
    """
    metrics = _measured(study, metrics)
    lines: dict[str, list[Row]] = {}
    for row in study.rows:
        if key in row.swept:
            rest = [f"{k}={v}" for k, v in row.swept.items() if k != key]
            lines.setdefault(", ".join([row.model, *rest]), []).append(row)
    if not lines or not metrics:
        return None
    values = {repr(row.swept[key]): row.swept[key] for rows in lines.values() for row in rows}
    swept = {row.model for rows in lines.values() for row in rows}
    level = [row for row in study.rows if not row.swept and row.model not in swept]
    looks = [_look(name, n) for n, name in enumerate([*lines, *(row.label for row in level)])]
    figure, panels = _panels(len(metrics), height=2.9)
    for ax, metric in zip(panels, metrics, strict=True):
        cells = {label: row[metric].sample for label, row in study.table.items() if metric in row}
        places, gap = _sweep_axis(ax, values, len(level))
        for n, (look, rows) in enumerate(zip(looks, lines.values(), strict=False)):
            means = {places[repr(r.swept[key])]: cells[r.label] for r in rows if r.label in cells}
            _draw_sweep(ax, look, means, gap, _moved(ax, n, len(lines)))
        for n, (look, row) in enumerate(zip(looks[len(lines) :], level, strict=True)):
            if row.label in cells:
                own = cells[row.label]
                ax.axhline(own.mean, color=look["color"], linestyle=look["linestyle"], linewidth=1)
                right = 1 - 0.03 * (len(level) - n)
                _draw_means(ax, look, {right: own}, ax.get_yaxis_transform())
        ax.set(xlabel=key, title=f"{metric} {direction(metric)}")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.grid(axis="y")
    _legend(figure)
    return figure


@_styled
def by_group(study: Study, by: str, labels: Sequence[str] | None = None) -> Figure | None:
    """Means and 95 % intervals of a few metrics by group of impressions; a panel a metric.

    Args:
        study: what is shown.
        by: what forms the groups.
        labels: of the rows to draw; all by default.
    """
    metrics = groups.shown_metrics(study, by)
    drawn = [
        (own, look)
        for row, look in _looks(study, labels)
        if (own := groups.of_row(study, row.label, by))
    ]
    if not (metrics and drawn):
        return None
    names = list(dict.fromkeys(group.name for own, _ in drawn for group in own))
    figure, panels = _panels(len(metrics))
    for ax, metric in zip(panels, metrics, strict=True):
        heights: list[float] = []
        for n, (own, look) in enumerate(drawn):
            means = {group.name: group.means.get(metric) for group in own}
            points = [(names.index(name), mean) for name, mean in means.items() if mean]
            at = [place for place, _ in points]
            centre = np.array([mean.mean for _, mean in points])
            ends = [[mean.low, mean.high] for _, mean in points]
            low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
            errors = np.nan_to_num(np.array([centre - low, high - centre]))
            moved = _moved(ax, n, len(drawn))
            style_of = {**look, "elinewidth": 0.8, "linewidth": 1}
            ax.errorbar(at, centre, yerr=np.maximum(errors, 0), transform=moved, **style_of)
            # an interval of next to nothing may be endless: it leaves the panel
            bound = 3 * float(np.abs(centre).max(initial=0.0))
            heights += [*centre, *np.clip(low, -bound, bound), *np.clip(high, -bound, bound)]
        if (target := target_of(metric)) is not None:
            ax.axhline(target, color=INK, linewidth=1, linestyle=DASHES[2])
        # lines beside their places have no part in what matplotlib would choose
        finite = [height for height in heights if math.isfinite(height)]
        if finite:
            margin = 0.05 * (max(finite) - min(finite)) or 0.05
            ax.set_ylim(min(finite) - margin, max(finite) + margin)
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_title(f"{metric} {direction(metric)}")
        ax.set_xlabel(by)
        shown = [_wrapped(name.partition(" of ")[0], 12) for name in names]
        ax.set_xticks(range(len(names)), shown, rotation=45 if max(map(len, shown)) > 3 else 0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.grid(axis="y")
    _legend(figure)
    return figure


def _sweep_axis(
    ax: Axes, values: Mapping[str, Any], beside: int
) -> tuple[dict[str, float], float | None]:
    """Scale and ticks of swept values, with room for signs to the right.

    Args:
        ax: which axes.
        values: by their ``repr``.
        beside: how many signs.

    Returns:
        The values' places, and the middle of the break between 0 and the least other value.
    """
    names = {k: f"{v:g}" if _is_number(v) else str(v) for k, v in values.items()}
    gap = None
    if all(map(_is_number, values.values())):
        places = {k: float(v) for k, v in values.items()}
        positive = sorted(place for place in places.values() if place > 0)
        if min(places.values()) >= 0 and positive and positive[-1] / positive[0] >= 30:
            if 0 in places.values():
                # 0 stands one step to the left of the least, and no less than half a decade
                decades = math.log10(positive[-1] / positive[0]) / (len(positive) - 1)
                linscale = 0.9 * max(0.5, decades)
                ax.set_xscale("symlog", linthresh=positive[0], linscale=linscale)
                gap = positive[0] / 2
                ax.axvline(gap, color=INK, linewidth=0.8, linestyle=DASHES[2], alpha=0.5)
            else:
                ax.set_xscale("log")
    else:
        places = {key: float(n) for n, key in enumerate(values)}
    scale = ax.xaxis.get_transform()
    at = {key: float(scale.transform(np.array([place]))[0]) for key, place in places.items()}
    reach = max(at.values()) - min(at.values()) or 1.0
    shown: list[str] = []
    for key in sorted(at, key=at.__getitem__):  # without those that would touch
        if not shown or at[key] - at[shown[-1]] >= 0.07 * reach:
            shown.append(key)
    ax.set_xticks([places[key] for key in shown], [_wrapped(names[key], 14) for key in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    room = [min(at.values()) - 0.06 * reach, max(at.values()) + (0.07 + 0.035 * beside) * reach]
    ax.set_xlim(*scale.inverted().transform(np.array(room)))
    return places, gap


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _draw_sweep(
    ax: Axes,
    look: Mapping[str, Any],
    means: Mapping[float, Sample],
    gap: float | None,
    moved: Transform,
) -> None:
    """A line through the means; no value lies in the break, and what joins its sides is thin."""
    order = sorted(means)
    values = [means[place].mean for place in order]
    start = int(gap is not None and len(order) > 1 and order[0] < gap)
    line = {**look, "marker": "", "label": None, "transform": moved}
    if start:
        ax.plot(order[:2], values[:2], **{**line, "linewidth": 0.7, "linestyle": DASHES[2]})
    ax.plot(order[start:], values[start:], **line)
    _draw_means(ax, look, {place: means[place] for place in order}, moved)


def _draw_means(
    ax: Axes, look: Mapping[str, Any], means: Mapping[float, Sample], transform: Transform
) -> None:
    """Means with their intervals where they have one; a legend shows the line as well."""
    if not means:
        return
    ends = np.array([(own.low, own.mean, own.high) for own in means.values()], dtype=np.float64)
    low, mean, high = ends.T
    signs = {**look, "linestyle": "", "label": None, "elinewidth": 1, "transform": transform}
    ax.errorbar(list(means), mean, yerr=[mean - low, high - mean], **signs)
    # what a transform has moved doesn't count for the limits by itself
    ax.update_datalim([(0, end) for end in ends[np.isfinite(ends)]], updatex=False)
    ax.plot([], [], **look)


def _recorded(study: Study, row: Row, key: str) -> list[Any]:
    """What the results of a row's runs hold under a key, of those that have it."""
    return [value for run in study.of(row.label).values() if (value := run.get(key))]


def _trainings(study: Study, row: Row) -> list[Mapping[str, Any]]:
    return [t for trainings in _recorded(study, row, "trainings") for t in trainings]


def _chosen(study: Study, training: Mapping[str, Any]) -> list[str]:
    """The metric to show of a training: the study's, or the same of the training's own task."""
    known: Mapping[str, float] = next(
        (e["valid"] for e in training["epochs"] if e.get("valid")), {}
    )
    common = next((r["valid_metric"] for r in study.results.values() if r.get("valid_metric")), "")
    task, statistic = training.get("task"), common.partition("_")[2]
    own = training.get("valid_metric")
    names = [own, f"{task.upper()}_{statistic}"] if task else [common]
    return [name for name in [*names, common, *known] if name in known][:1]


def _points(
    training: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[int, float]:
    """Values by epoch, of those epochs that have one."""
    by_epoch = {int(e["epoch"]): value(e) for e in training["epochs"]}
    return {epoch: v for epoch, v in by_epoch.items() if v is not None and math.isfinite(v)}


def _validated(metric: str, epoch: Mapping[str, Any]) -> float | None:
    return (epoch.get("valid") or {}).get(metric)


def _loss(epoch: Mapping[str, Any]) -> float | None:
    return math.fsum(epoch["losses"].values()) if epoch.get("losses") else None


def _draw_curves(
    ax: Axes,
    look: Mapping[str, Any],
    curves: Sequence[Mapping[int, float]],
    best: Sequence[int | None],
) -> None:
    """Single seeds thin with a ring at the best epoch, their mean bold as far as all trained."""
    colour = look["color"]
    for points, epoch in zip(curves, best, strict=True):
        ax.plot(list(points), list(points.values()), color=colour, linewidth=0.6, alpha=0.45)
        if epoch is not None and epoch in points:
            ax.plot(epoch, points[epoch], "o", color=colour, markerfacecolor="none", alpha=0.7)
    curves = [points for points in curves if points]
    if curves:
        common = sorted(set.intersection(*map(set, curves)))
        mean = [float(np.mean([points[epoch] for points in curves])) for epoch in common]
        every = max(1, len(common) // 5)
        ax.plot(common, mean, markevery=(MARKERS.index(look["marker"]) % every, every), **look)


def _epochs(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y")


def wilson(share: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a probability, from an observed share of a number of rows.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    z = norm.ppf((1 + CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def _pooled_bins(study: Study, row: Row, task: str) -> tuple[np.ndarray, ...] | None:
    """Mean prediction, positive rate and its interval (low, high), each of shape (bins,).

    Bins are pooled by rank over the seeds that have the commonest number of them.
    """
    tables = [by_task.get(task) for by_task in _recorded(study, row, "calibration")]
    bins = [table for table in tables if table and table["rows"]]
    if not bins:
        return None
    lengths = [len(b["rows"]) for b in bins]
    bins = [b for b in bins if len(b["rows"]) == max(lengths, key=lengths.count)]
    rows = np.array([b["rows"] for b in bins], dtype=np.float64)
    predicted, observed = (
        (np.array([b[name] for b in bins], dtype=np.float64) * rows).sum(0) / rows.sum(0)
        for name in ("predicted", "observed")
    )
    return predicted, observed, *wilson(observed, rows.mean(0))


def _pooled_overlap(study: Study, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Edges and counts, added up over the seeds that share the first one's edges.

    Without the empty bins at both ends.
    """
    histograms = _recorded(study, row, "overlap")
    if not histograms:
        return None
    edges = np.array(histograms[0]["logit_edges"], dtype=np.float64)
    same = [h for h in histograms if np.array_equal(h["logit_edges"], edges)]
    clicked, unclicked = (np.sum([h[n] for h in same], axis=0) for n in ("clicked", "unclicked"))
    filled = np.flatnonzero(clicked + unclicked)
    bins = slice(filled[0], filled[-1] + 1)
    return edges[bins.start : bins.stop + 1], clicked[bins], unclicked[bins]


def _pooled_quantiles(study: Study, row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights by quantile, mean over the seeds that share the first one's quantiles."""
    runs = _recorded(study, row, "weight_quantiles")
    if not runs:
        return None
    same = [w["w"] for w in runs if list(w["q"]) == list(runs[0]["q"])]
    weights = np.array(same, dtype=np.float64)  # an infinite one is null in JSON, and NaN here
    return np.array(runs[0]["q"], dtype=np.float64), weights.mean(axis=0)


def _effective(study: Study, row: Row) -> list[dict[int, float]]:
    """Effective sample size over clicks by epoch, for each training."""

    def share(epoch: Mapping[str, Any]) -> float | None:
        numbers = epoch.get("weights") or {}
        size = numbers.get("effective_sample_size")
        return None if size is None else size / numbers["clicks"]

    return [curve for t in _trainings(study, row) if (curve := _points(t, share))]


def _measured(study: Study, metrics: Sequence[str] | None) -> list[str]:
    return [m for m in metrics or study.shown if any(m in row for row in study.table.values())]


def _rows(study: Study, labels: Sequence[str] | None) -> list[Row]:
    return [row for row in study.rows if labels is None or row.label in labels]


def _look(label: str, n: int) -> dict[str, Any]:
    """How the n-th line is drawn: a colour, a marker and a line style."""
    return {
        "label": _wrapped(label, 30, lines=9),
        "color": COLOURS[n % len(COLOURS)],
        "marker": MARKERS[n % len(MARKERS)],
        "linestyle": DASHES[n % len(DASHES)],
    }


def _looks(study: Study, labels: Sequence[str] | None) -> list[tuple[Row, dict[str, Any]]]:
    """Rows and how they are drawn, the same in all figures of a study."""
    looks = [(row, _look(row.label, n)) for n, row in enumerate(study.rows)]
    return [(row, look) for row, look in looks if labels is None or row.label in labels]


def _panels(count: int, height: float = _HEIGHT, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` axes in up to three columns."""
    columns = 2 if count in (2, 4) else min(3, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH * columns, height * lines), dpi=DPI, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, **shared).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def _moved(ax: Axes, n: int, count: int) -> Transform:
    """The axes' data, with the n-th of ``count`` lines beside the others: 9 points for all."""
    figure = ax.get_figure()
    assert figure is not None
    points = (n - (count - 1) / 2) * min(1.5, 9 / count)
    return ax.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _legend(figure: Figure) -> None:
    """One legend below all panels, of what they have labelled."""
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 1.75)))
    names, lines = list(handles), list(handles.values())
    # the picture grows by its height, so that the panels keep theirs
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    figure.legend(lines, names, ncols=columns, handlelength=2.6, **below)


def _wrapped(label: str, width: int, lines: int = 3) -> str:
    """A label in lines of at most ``width`` characters, broken at blanks or else behind _ = , /."""
    words = textwrap.wrap(one_line(label), width, break_long_words=False, break_on_hyphens=False)
    pieces = re.compile(rf".{{1,{width}}}$|.{{0,{width - 1}}}[_=,/]|.{{1,{width}}}")
    wrapped = [piece for line in words for piece in pieces.findall(line)]
    if len(wrapped) > lines:
        wrapped[lines - 1 :] = [wrapped[lines - 1][: width - 1] + "…"]
    return "\n".join(wrapped)


def _ticks(axis: Any, logarithmic: bool) -> None:
    """Few ticks, as decimals.

    A logarithmic axis has short ticks between them, so that it is seen to be one.
    """
    if not logarithmic:
        axis.set_major_locator(MaxNLocator(5))
        return
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 0.5:  # too few powers and their multiples
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    else:
        steps = next(s for end, s in _STEPS if decades < end)
        axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_minor_locator(LogLocator(subs=range(2, 10)) if decades < 3 else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter("{x:.10g}")


#: Which multiples of powers of ten have a tick, on an axis of fewer decades than that.
_STEPS = ((1, (1, 2, 3, 5, 7)), (2, (1, 2, 5)), (3, (1, 3)), (math.inf, (1,)))
