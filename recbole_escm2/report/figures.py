"""A study as pictures, on paper-white PNG or as SVG that takes the page's colours.

Each function returns a ``Figure`` of its own, or None where no run holds what it shows; nothing
here touches pyplot's state. Colours are Okabe and Ito's, and every colour has a marker and a line
style of its own.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from typing import Any, ParamSpec, TypeVar
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from scipy.stats import norm

from recbole_escm2.evaluator.catalogue import target_of
from recbole_escm2.experiment.statistics import CONFIDENCE, Sample
from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.report.tables import direction, one_line

#: Text and axes: almost black on paper, the colour of the text around it in a page.
INK = "#010203"
PAPER = "#fefefe"
# Okabe and Ito without yellow, which white paper swallows; the darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
#: More lines than this in one panel can't be told apart.
LINES_PER_PANEL = 6
#: The panel of the training loss.
LOSS = "training loss"
#: The panels of :func:`weights`.
QUANTILES, EFFECTIVE = "weight of a click", "effective sample / clicks, on validation"
TASKS = {
    "ctr": "pCTR over all impressions",
    "cvr": "pCVR over the clicked impressions",
    "ctcvr": "pCTCVR over all impressions",
    "cvr_es": "pCVR over all impressions, against potential conversions",
}

_DPI = 150
_WIDTH, _HEIGHT = 3.6, 2.7  # of a panel, in inches: it is read at its own size on a phone
_SALT = "recbole-escm2"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": _SALT,
}

P = ParamSpec("P")
R = TypeVar("R")


def _styled(function: Callable[P, R]) -> Callable[P, R]:
    """Draw in the style of this module, whatever the user's matplotlibrc says."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        defaults: dict[Any, Any] = dict(rcParamsDefault)
        defaults = {k: v for k, v in defaults.items() if not k.startswith("backend")}
        with rc_context(defaults | _STYLE):
            return function(*args, **kwargs)

    return inner


@_styled
def dots(study: Study, metrics: Sequence[str] | None = None, legend: bool = True) -> Figure | None:
    """Means with 95 % intervals, single seeds, and the baseline's mean as a line; a panel a metric.

    Args:
        study: what is shown.
        metrics: of its table; all by default.
        legend: whether to say what the signs mean.
    """
    metrics = [m for m in metrics or study.shown if any(m in row for row in study.table.values())]
    if not metrics:
        return None
    rows = list(study.rows)
    figure, panels = _panels(len(metrics), height=max(1.5, 0.75 + 0.24 * sum(map(_lines, rows))))
    for n, (ax, metric) in enumerate(zip(panels, metrics, strict=True)):
        _draw_dots(ax, study, rows, metric)
        if n % _columns(len(metrics)):
            ax.set_yticklabels([])
    if legend:
        _legend(figure, panels[0], ())
    return figure


def learning_panels(study: Study, labels: Sequence[str] | None = None) -> list[str]:
    """What there is to show of training: metrics on validation, and :data:`LOSS`."""
    trainings = [t for row in _rows(study, labels) for t in _trainings(study, row)]
    validated = dict.fromkeys(metric for t in trainings for metric in _chosen(study, t))
    losses = any(epoch.get("losses") for t in trainings for epoch in t["epochs"])
    return [*validated, *([LOSS] if losses else [])]


@_styled
def learning_curves(
    study: Study, labels: Sequence[str] | None = None, panels: Sequence[str] | None = None
) -> Figure | None:
    """The metric that chooses the best epoch, and the training loss, by epoch.

    Bold is the mean over seeds as far as all of them trained, thin are single seeds, a ring is
    the epoch that was kept. The loss is the sum of a model's risks.

    Args:
        study: what is shown.
        labels: of the rows to draw; all by default.
        panels: of :func:`learning_panels`; all by default.
    """
    shown = [p for p in learning_panels(study, labels) if panels is None or p in panels]
    rows = [row for row in _rows(study, labels) if _trainings(study, row)]
    if not shown:
        return None
    figure, axes = _panels(len(shown))
    styles = _row_styles(study, rows)
    for ax, panel in zip(axes, shown, strict=True):
        value = _loss if panel == LOSS else _validated(panel)
        ax.set_title(panel if panel == LOSS else f"{panel} {direction(panel)} on validation")
        for row in rows:
            # the two trainings of one row are two lines
            for task in (None, "ctr", "cvr"):
                curves = [
                    (_points(t, value), None if panel == LOSS else t.get("best_epoch"))
                    for t in _trainings(study, row)
                    if t.get("task") == task
                ]
                _draw_curves(ax, styles[row.label], curves)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.grid(axis="y")
    _legend(figure, axes[0], styles.values())
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
    bins = {row.label: _pooled_bins(study, row, task) for row in _rows(study, labels)}
    rows = [row for row in _rows(study, labels) if bins[row.label] is not None]
    if not rows:
        return None
    figure, (ax,) = _panels(1, height=_WIDTH * 0.95)
    drawn = [pooled for row in rows if (pooled := bins[row.label]) is not None]
    everything = np.concatenate([np.concatenate([b.predicted, b.observed]) for b in drawn])
    positive = everything[everything > 0]
    logarithmic = len(positive) > 0 and positive.max() / positive.min() > 10
    low = positive.min() / 1.8 if logarithmic else 0.0
    beyond = (1.6, 1.15) if logarithmic else (1.12, 1.04)  # room for the signs of the last bin
    high = min(float(everything.max()) * beyond[0], beyond[1]) or 1.0
    ax.plot([low, high], [low, high], color=INK, linewidth=0.8, alpha=0.6, zorder=1)
    styles = _row_styles(study, rows)
    for n, (pooled, style) in enumerate(zip(drawn, styles.values(), strict=True)):
        # side by side, so that intervals don't hide each other
        aside = (n - (len(drawn) - 1) / 2) * 0.007
        across = np.maximum(pooled.predicted, low)
        across = across * (high / low) ** aside if logarithmic else across + high * aside
        # a bin without a positive stands hollow on the axis where that has no zero
        observed = np.maximum(pooled.observed, low)
        errors = np.clip([observed - pooled.low, pooled.high - observed], 0, None)
        ax.errorbar(
            across,
            observed,
            yerr=errors,
            elinewidth=0.8,
            capsize=0,
            color=style.colour,
            marker=style.marker,
            linestyle=style.dashes,
            linewidth=1,
            markersize=4.5,
        )
        none = pooled.observed <= 0
        if logarithmic and none.any():
            ax.plot(
                across[none],
                np.full(none.sum(), low),
                color=style.colour,
                marker=style.marker,
                linestyle="",
                markerfacecolor="none",
                markersize=7,
                clip_on=False,
            )
    if logarithmic:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        _ticks(axis, logarithmic)
    ax.set_title(_wrapped(TASKS[task], 34))
    ax.set_xlabel("mean prediction")
    ax.set_ylabel("positive rate")
    ax.grid()
    _legend(figure, ax, styles.values())
    return figure


@_styled
def overlap(study: Study, labels: Sequence[str] | None = None) -> Figure | None:
    """How pCTR, the propensity, is spread over clicked and unclicked impressions of test.

    A panel a row, pooled over seeds; a dotted line is the propensity floor.

    Args:
        study: what is shown.
        labels: of the rows to draw; all by default.
    """
    found = [(row, _pooled_overlap(study, row)) for row in _rows(study, labels)]
    drawn = [(row, histogram) for row, histogram in found if histogram is not None]
    if not drawn:
        return None
    figure, panels = _panels(len(drawn), height=2.1)
    left = min(edges[0] for _, (edges, _, _) in drawn)
    right = max(edges[-1] for _, (edges, _, _) in drawn)
    for ax, (row, (edges, clicked, unclicked)) in zip(panels, drawn, strict=True):
        for counts, name, colour, dashes in (
            (unclicked, "not clicked", COLOURS[0], "-"),
            (clicked, "clicked", COLOURS[1], DASHES[1]),
        ):
            density = counts / max(counts.sum(), 1)
            ax.stairs(density, edges, fill=True, color=colour, alpha=0.18, linewidth=0)
            ax.stairs(density, edges, color=colour, linestyle=dashes, label=name, linewidth=1.5)
        floor = _config(study, row, "propensity_floor")
        if isinstance(floor, (int, float)) and 0 < floor < 1:
            ax.axvline(math.log(floor / (1 - floor)), color=INK, linestyle=DASHES[2], linewidth=1)
            ax.annotate(
                f"floor {floor:g}",
                (math.log(floor / (1 - floor)), 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
            )
        ax.set_title(_wrapped(row.label, 40))
        ax.set_xlim(left, right)
        _logit_ticks(ax, left, right)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(NullLocator())
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("pCTR")
    _legend(figure, panels[0], ())
    return figure


@_styled
def weights(
    study: Study, labels: Sequence[str] | None = None, panels: Sequence[str] | None = None
) -> Figure | None:
    """The inverse-propensity weights of test's clicks by quantile, and their effective sample.

    The effective sample, as a share of the clicks, is of each validation; all are means over
    seeds.

    Args:
        study: what is shown.
        labels: of the rows to draw; all by default.
        panels: :data:`QUANTILES`, :data:`EFFECTIVE`; both by default.
    """
    rows = _rows(study, labels)
    quantiles = {r.label: pooled for r in rows if (pooled := _pooled_quantiles(study, r))}
    effective = {r.label: shares for r in rows if (shares := _effective(study, r))}
    found: dict[str, Mapping[str, Any]] = {QUANTILES: quantiles, EFFECTIVE: effective}
    shown = [p for p, by_row in found.items() if by_row and (panels is None or p in panels)]
    if not shown:
        return None
    figure, axes = _panels(len(shown))
    styles = _row_styles(study, [r for r in rows if any(r.label in found[p] for p in shown)])
    for ax, panel in zip(axes, shown, strict=True):
        ax.set_title(panel)
        if panel == QUANTILES:
            for label, (q, w) in quantiles.items():
                style = styles[label]
                ax.plot(q, w, color=style.colour, linestyle=style.dashes, marker=style.marker)
            ax.set_yscale("log")
            _ticks(ax.yaxis, logarithmic=True)
            ax.set_ylabel("logarithmic scale")
            ax.set_xlabel("quantile of the clicks of test")
            ax.grid()
        else:
            for label, shares in effective.items():
                _draw_curves(ax, styles[label], [(share, None) for share in shares])
            ax.set_ylim(0, 1.03)
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.grid(axis="y")
    _legend(figure, axes[0], styles.values())
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
    metrics = [m for m in metrics or study.shown if any(m in row for row in study.table.values())]
    lines: dict[str, list[Row]] = {}
    for row in study.rows:
        if key in row.swept:
            rest = {k: v for k, v in row.swept.items() if k != key}
            name = ", ".join([row.model, *(f"{k}={v}" for k, v in rest.items())])
            lines.setdefault(name, []).append(row)
    if not lines or not metrics:
        return None
    axis = _SweepAxis.of([row.swept[key] for rows in lines.values() for row in rows])
    swept = {row.model for rows in lines.values() for row in rows}
    level = [row for row in study.rows if not row.swept and row.model not in swept]
    styles = _styles([*lines, *(row.label for row in level)])
    figure, panels = _panels(len(metrics), height=2.9)
    for ax, metric in zip(panels, metrics, strict=True):
        cells = {label: row[metric].sample for label, row in study.table.items() if metric in row}
        for n, rows in enumerate(lines.values()):
            points = {
                axis.position(row.swept[key]): cells[row.label]
                for row in rows
                if row.label in cells
            }
            _draw_sweep(ax, styles[n], points, axis, n - (len(lines) - 1) / 2)
        axis.apply(ax, len(level))
        for n, row in enumerate(level):
            if row.label in cells:
                place = axis.beside(n)
                _draw_level(ax, styles[len(lines) + n], cells[row.label], place)
        ax.set_xlabel(key)
        ax.set_title(f"{metric} {direction(metric)}")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.grid(axis="y")
    _legend(figure, panels[0], styles)
    return figure


def row_groups(study: Study) -> list[list[str]]:
    """Labels in groups that one panel can tell apart; a swept model's rows are by themselves."""
    groups: list[list[str]] = []
    for _, rows in groupby(study.rows, key=lambda row: row.model if row.swept else None):
        labels = [row.label for row in rows]
        step = math.ceil(len(labels) / math.ceil(len(labels) / LINES_PER_PANEL))
        groups += [labels[n : n + step] for n in range(0, len(labels), step)]
    return groups


@_styled
def png(figure: Figure) -> bytes:
    """The figure on white paper, 150 dots an inch, the same bytes for the same figure."""
    _lay_out(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@_styled
def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``svg`` element to stand in a page.

    Text and axes have the colour of the text around them, the background is the page's, and
    there is neither a style sheet nor a style attribute, which a strict content security policy
    would refuse.

    Args:
        figure: what to draw.
        name: unique in the page; all ids begin with it.
        description: what a reader hears who can't see it.
    """
    _lay_out(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _plain_svg(root, name)
    root.attrib.update({"role": "img", "aria-label": description, "class": "figure"})
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


# ---- panels, lines and legends


@dataclass(frozen=True)
class _Style:
    label: str
    colour: str
    marker: str
    dashes: Any


def _styles(labels: Iterable[str]) -> list[_Style]:
    """A colour, a marker and a line style for each label."""
    return [
        _Style(
            _wrapped(label, 30),
            COLOURS[n % len(COLOURS)],
            MARKERS[n % len(MARKERS)],
            DASHES[n % len(DASHES)],
        )
        for n, label in enumerate(labels)
    ]


def _row_styles(study: Study, rows: Sequence[Row]) -> dict[str, _Style]:
    """Styles of rows by label, the same in all figures of a study."""
    labels = [row.label for row in study.rows]
    styles = dict(zip(labels, _styles(labels), strict=True))
    return {row.label: styles[row.label] for row in rows}


def _columns(count: int) -> int:
    return 2 if count in (2, 4) else min(3, count)


def _panels(count: int, height: float = _HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` axes in up to three columns."""
    columns = _columns(count)
    lines = math.ceil(count / columns)
    # Text is laid out as wide as it will be drawn only at the resolution that it is drawn at.
    layout = ConstrainedLayoutEngine(w_pad=0.08)  # a browser's font may be a little wider
    figure = Figure(figsize=(_WIDTH * columns, height * lines), dpi=_DPI, layout=layout)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def _lay_out(figure: Figure) -> None:
    """Give everything its place once, which saving would do by drawing twice."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def _legend(figure: Figure, ax: Axes, styles: Iterable[_Style]) -> None:
    """One legend below all panels, of styles or of what the axes have labelled."""
    handles, names = ax.get_legend_handles_labels()
    if styles := list(styles):
        handles = [
            ax.plot([], [], color=s.colour, marker=s.marker, linestyle=s.dashes, markersize=4.5)[0]
            for s in styles
        ]
        names = [s.label for s in styles]
    columns = max(1, min(len(names), int(figure.get_figwidth() / 1.75)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.6)


def _rows(study: Study, labels: Sequence[str] | None) -> list[Row]:
    return [row for row in study.rows if labels is None or row.label in labels]


def _wrapped(label: str, width: int, lines: int = 3) -> str:
    """A label in lines of at most ``width`` characters, broken at blanks or else behind _ = , /."""
    found = [""]
    for word in one_line(label).split(" "):
        blank = " " if found[-1] else ""
        if len(found[-1]) + len(blank) + len(word) <= width:
            found[-1] += blank + word
            continue
        found += [""] * bool(found[-1])
        for piece in re.findall(rf"[^_=,/]{{1,{width}}}[_=,/]?|[_=,/]", word):
            if found[-1] and len(found[-1]) + len(piece) > width:
                found.append("")
            found[-1] += piece
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][: width - 1] + "…"]
    return "\n".join(found)


def _lines(row: Row) -> int:
    return _wrapped(row.label, _LABEL_WIDTH).count("\n") + 1


_LABEL_WIDTH = 27


def _ticks(axis: Any, logarithmic: bool) -> None:
    """Few ticks, in plain decimals.

    A logarithmic axis has short ticks between them, so that it is seen to be one.
    """
    if not logarithmic:
        axis.set_major_locator(MaxNLocator(5))
        return
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def at(steps: Iterable[int]) -> FixedLocator:
        return FixedLocator([s * 10.0**e for e in exponents for s in steps])

    if decades < 0.5:  # too few powers and their multiples
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    elif decades < 1:
        axis.set_major_locator(at((1, 2, 3, 5, 7)))
    else:
        axis.set_major_locator(at((1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
    axis.set_minor_locator(at(range(2, 10)) if decades < 3 else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def _logit_ticks(ax: Axes, left: float, right: float) -> None:
    """Probabilities on an axis of logits."""
    chances = [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]
    at = {math.log(p / (1 - p)): p for p in chances}
    shown = [x for x in at if left <= x <= right]
    ax.set_xticks(shown, [f"{at[x]:g}" for x in shown])


# ---- dots and whiskers


def _draw_dots(ax: Axes, study: Study, rows: Sequence[Row], metric: str) -> None:
    signs = {"better": ("^", COLOURS[0]), "worse": ("v", COLOURS[1])}
    places, below = [], 0.0
    for row in rows:
        tall = _lines(row)
        places.append(below + tall / 2)
        below += tall
    for place, row in zip(places, rows, strict=True):
        cell = study.table[row.label].get(metric)
        if cell is None:
            continue
        own = cell.sample
        verdict = cell.comparison.verdict if cell.comparison else None
        marker, colour = signs.get(verdict or "", ("o", INK))
        if own.low is not None and own.high is not None:
            ax.plot([own.low, own.high], [place, place], color=colour, linewidth=1.3)
        values = list(own.values.values())
        below_line = [place + 0.27] * len(values)
        ax.scatter(values, below_line, s=7, color=colour, alpha=0.5, linewidths=0)
        hollow = row.label == study.baseline
        ax.plot(own.mean, place, marker, color=colour, markerfacecolor=PAPER if hollow else colour)
        if hollow:
            ax.axvline(own.mean, color=INK, linewidth=0.8, linestyle=DASHES[1], alpha=0.6)
    target = target_of(metric)
    if target is not None and ax.get_xlim()[0] <= target <= ax.get_xlim()[1]:
        ax.axvline(target, color=INK, linewidth=1, linestyle=DASHES[2])
    ax.set_yticks(places, [_wrapped(row.label, _LABEL_WIDTH) for row in rows])
    ax.set_ylim(below, 0)
    ax.tick_params(axis="y", length=0, labelsize=7.5)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.grid(axis="x")
    empty: list[float] = []
    ax.plot(empty, empty, "o", color=INK, markerfacecolor=PAPER, label="baseline")
    for verdict, (marker, colour) in signs.items():
        ax.plot(empty, empty, marker, color=colour, label=verdict)
    ax.plot(empty, empty, "o", color=INK, label="no verdict")
    ax.scatter(empty, empty, s=7, color=INK, alpha=0.5, linewidths=0, label="a seed")
    ax.set_title(f"{metric} {direction(metric)}")


# ---- training


def _trainings(study: Study, row: Row) -> list[Mapping[str, Any]]:
    return [t for run in study.of(row.label).values() for t in run.get("trainings") or ()]


def _chosen(study: Study, training: Mapping[str, Any]) -> list[str]:
    """The metric to show of a training: the study's, or the same of the training's own task."""
    known: Mapping[str, float] = next(
        (e["valid"] for e in training["epochs"] if e.get("valid")), {}
    )
    asked = next((r["valid_metric"] for r in study.results.values() if r.get("valid_metric")), "")
    task = training.get("task")
    _, _, statistic = asked.partition("_")
    own = training.get("valid_metric")
    names = [own, f"{task.upper()}_{statistic}"] if task else [asked]
    return [name for name in [*names, asked, *known] if name in known][:1]


def _points(
    training: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[int, float]:
    """Values by epoch, of those epochs that have one."""
    found = {int(e["epoch"]): value(e) for e in training["epochs"]}
    return {epoch: v for epoch, v in found.items() if v is not None and math.isfinite(v)}


def _validated(metric: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda epoch: (epoch.get("valid") or {}).get(metric)


def _loss(epoch: Mapping[str, Any]) -> float | None:
    return math.fsum(epoch["losses"].values()) if epoch.get("losses") else None


def _draw_curves(
    ax: Axes, style: _Style, curves: Sequence[tuple[Mapping[int, float], int | None]]
) -> None:
    """Single seeds thin, their mean bold over the epochs that all of them have."""
    curves = [(points, best) for points, best in curves if points]
    for points, best in curves:
        ax.plot(list(points), list(points.values()), color=style.colour, linewidth=0.6, alpha=0.45)
        if best is not None and best in points:
            ax.plot(
                best,
                points[best],
                "o",
                color=style.colour,
                markerfacecolor="none",
                markersize=4.5,
                markeredgewidth=0.8,
                alpha=0.7,
            )
    if len(curves) > 1:
        common = sorted(set.intersection(*(set(points) for points, _ in curves)))
        mean = [float(np.mean([points[epoch] for points, _ in curves])) for epoch in common]
    elif curves:
        common, mean = list(curves[0][0]), list(curves[0][0].values())
    else:
        return
    every = max(1, len(common) // 5)
    ax.plot(
        common,
        mean,
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markersize=4,
        markevery=(MARKERS.index(style.marker) % every, every),
    )


# ---- calibration, overlap, weights


@dataclass(frozen=True)
class _Bins:
    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray


def wilson(share: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a probability, from an observed share of a number of rows.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    z = norm.ppf((1 + CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def _pooled_bins(study: Study, row: Row, task: str) -> _Bins | None:
    """Bins of a row by rank, pooled over the seeds that have the commonest number of them."""
    found = [(run.get("calibration") or {}).get(task) for run in study.of(row.label).values()]
    bins = [b for b in found if b and b["rows"]]
    if not bins:
        return None
    lengths = [len(b["rows"]) for b in bins]
    commonest = max(lengths, key=lengths.count)
    bins = [b for b in bins if len(b["rows"]) == commonest]
    rows = np.array([b["rows"] for b in bins], dtype=np.float64)
    pooled = {
        name: (np.array([b[name] for b in bins], dtype=np.float64) * rows).sum(0) / rows.sum(0)
        for name in ("predicted", "observed")
    }
    low, high = wilson(pooled["observed"], rows.mean(0))
    return _Bins(pooled["predicted"], pooled["observed"], low, high)


def _pooled_overlap(study: Study, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Edges and counts, added up over the seeds that share the first one's edges.

    Without the empty bins at both ends.
    """
    found = [h for run in study.of(row.label).values() if (h := run.get("overlap"))]
    if not found:
        return None
    edges = np.array(found[0]["logit_edges"], dtype=np.float64)
    same = [h for h in found if np.array_equal(h["logit_edges"], edges)]
    clicked, unclicked = (np.sum([h[n] for h in same], axis=0) for n in ("clicked", "unclicked"))
    filled = np.flatnonzero(clicked + unclicked)
    bins = slice(filled[0], filled[-1] + 1)
    return edges[bins.start : bins.stop + 1], clicked[bins], unclicked[bins]


def _pooled_quantiles(study: Study, row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights by quantile, mean over the seeds that share the first one's quantiles."""
    found = [w for run in study.of(row.label).values() if (w := run.get("weight_quantiles"))]
    if not found:
        return None
    same = [w["w"] for w in found if list(w["q"]) == list(found[0]["q"])]
    weights = np.array(same, dtype=np.float64)  # an infinite one is null in JSON, and NaN here
    return np.array(found[0]["q"], dtype=np.float64), weights.mean(axis=0)


def _effective(study: Study, row: Row) -> list[dict[int, float]]:
    """Effective sample size over clicks by epoch, for each training."""

    def share(epoch: Mapping[str, Any]) -> float | None:
        found = epoch.get("weights") or {}
        size = found.get("effective_sample_size")
        return None if size is None else size / found["clicks"]

    return [curve for t in _trainings(study, row) if (curve := _points(t, share))]


def _config(study: Study, row: Row, key: str) -> Any:
    runs = study.of(row.label).values()
    return next((run["config"].get(key) for run in runs if run.get("config")), None)


# ---- sweeps


@dataclass(frozen=True)
class _SweepAxis:
    """Where swept values stand: as they are, by their logarithm, or one beside the other."""

    kind: str
    places: Mapping[str, float]
    names: Mapping[str, str]
    zero: bool

    @classmethod
    def of(cls, values: Sequence[Any]) -> _SweepAxis:
        unique = {repr(value): value for value in values}
        names = {k: f"{v:g}" if _is_number(v) else str(v) for k, v in unique.items()}
        if not all(_is_number(value) for value in unique.values()):
            return cls("named", {key: float(n) for n, key in enumerate(unique)}, names, False)
        positive = sorted(v for v in unique.values() if v > 0)
        if min(unique.values()) < 0 or not positive or positive[-1] / positive[0] < 30:
            return cls("linear", {k: float(v) for k, v in unique.items()}, names, False)
        logs = [math.log10(v) for v in positive]
        # a 0 stands one step to the left of the least, and no less than half a decade
        beside = logs[0] - max(0.5, (logs[-1] - logs[0]) / (len(logs) - 1))
        places = {k: math.log10(v) if v else beside for k, v in unique.items()}
        return cls("logarithmic", places, names, 0 in unique.values())

    def position(self, value: Any) -> float:
        return self.places[repr(value)]

    @property
    def gap(self) -> tuple[float, float] | None:
        """The places of 0 and of the least other value, where the axis is broken between them."""
        if not self.zero or self.kind != "logarithmic":
            return None
        first, second, *_ = sorted(set(self.places.values()))
        return first, second

    @property
    def reach(self) -> float:
        """From the first to the last place."""
        return (max(self.places.values()) - min(self.places.values())) or 1.0

    def beside(self, rank: int) -> float:
        """A place to the right of all values."""
        return max(self.places.values()) + (0.07 + 0.035 * rank) * self.reach

    def apply(self, ax: Axes, beside: int) -> None:
        """Ticks at the values, leaving out those that would touch; room for ``beside`` places."""
        order = sorted(self.places, key=self.places.__getitem__)
        shown: list[str] = []
        for key in order:
            if not shown or self.places[key] - self.places[shown[-1]] >= 0.07 * self.reach:
                shown.append(key)
        names = [_wrapped(self.names[key], 14) for key in shown]
        ax.set_xticks([self.places[key] for key in shown], names)
        ax.set_xlim(self.places[order[0]] - 0.06 * self.reach, self.beside(beside))
        if self.gap:
            ax.axvline(sum(self.gap) / 2, color=INK, linewidth=0.8, linestyle=DASHES[2], alpha=0.5)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _draw_sweep(
    ax: Axes, style: _Style, points: Mapping[float, Sample], axis: _SweepAxis, rank: float
) -> None:
    """A line through the points; by its rank it stands aside, so that intervals don't hide."""
    if not points:
        return
    aside = rank * 0.014 * axis.reach
    order = sorted(points)
    places = [place + aside for place in order]
    means = [points[place].mean for place in order]
    start = 0
    if axis.gap and order[0] == axis.gap[0] and len(order) > 1:
        # no value lies in the break: what joins its sides is thin
        ax.plot(places[:2], means[:2], color=style.colour, linewidth=0.7, linestyle=DASHES[2])
        start = 1
    ax.plot(places[start:], means[start:], color=style.colour, linestyle=style.dashes)
    ax.plot(places, means, color=style.colour, linestyle="", marker=style.marker)
    for place in order:
        _draw_interval(ax, style, points[place], place + aside)


def _draw_level(ax: Axes, style: _Style, own: Sample, place: float) -> None:
    ax.axhline(own.mean, color=style.colour, linestyle=style.dashes, linewidth=1)
    ax.plot(place, own.mean, color=style.colour, marker=style.marker)
    _draw_interval(ax, style, own, place)


def _draw_interval(ax: Axes, style: _Style, own: Sample, place: float) -> None:
    if own.low is not None and own.high is not None:
        ax.plot([place, place], [own.low, own.high], color=style.colour, linewidth=1)


# ---- SVG that stands in a page

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_POINTS_TO_PIXELS = 4 / 3
_FONT = re.compile(r"(?P<words>.*?)(?P<size>[\d.]+px)")
_LENGTHS = ("d", "x", "y", "transform")
_FRACTION = re.compile(r"-?\d+\.\d+|\s+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def _plain_svg(root: ElementTree.Element, name: str) -> None:
    """Attributes for styles, the page's colours, ids of its own; nothing that isn't drawn."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = {
        match
        for element in root.iter()
        for key, value in element.attrib.items()
        for match in ([value[1:]] if key == _HREF else _REFERENCE.findall(value))
    }
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in _declarations(element.attrib.pop("style", "")):
            element.set(key, value)
        element.text = element.text and element.text.strip()
        element.tail = None
        for key, value in list(element.attrib.items()):
            if key == "transform" and value.startswith("rotate(-0 "):
                del element.attrib[key]
            elif key in _LENGTHS:
                element.set(key, _FRACTION.sub(_shorter, value).strip())
            elif value.lower() == INK:
                element.set(key, "currentColor")
            elif value.lower() == PAPER:
                element.set("class", "paper")
            elif key == _HREF:
                del element.attrib[key]
                element.set("href", f"#{name}-{value[1:]}")
            elif key == "id":
                del element.attrib[key]
                if value in used:
                    element.set("id", f"{name}-{value}")
            else:
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    width = float(root.attrib["width"].removesuffix("pt"))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": str(round(width * _POINTS_TO_PIXELS)),
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }


def _shorter(number: re.Match[str]) -> str:
    """A hundredth of a point is more than a screen shows."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".") if number[0].strip() else " "


def _declarations(style: str) -> Iterable[tuple[str, str]]:
    """A style attribute as presentation attributes, the font's family left to the page."""
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (font := _FONT.match(value)):
            yield "font-size", font["size"]
            if "bold" in font["words"] or re.search(r"\b[6-9]00\b", font["words"]):
                yield "font-weight", "bold"
        elif key and key != "font-family":
            yield key, value
