"""A study as numbers: CSV, JSON, Markdown, LaTeX and text.

All that people read is made of one :class:`Layout`, so that no two formats can disagree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from recbole_escm2 import output
from recbole_escm2.evaluator.catalogue import bigger_is_better, is_neutral, score_of, target_of
from recbole_escm2.evaluator.summary import scope_notes
from recbole_escm2.experiment.statistics import (
    ALPHA,
    CONFIDENCE,
    POWER,
    Cell,
    Comparison,
    Sample,
    sample,
)
from recbole_escm2.experiment.study import Study, Trial, Tuning, part_label

BETTER, WORSE = "▲", "▼"
#: The same against the logistic regression.
RIVAL_BETTER, RIVAL_WORSE = "△", "▽"
MINUS = "\N{MINUS SIGN}"
MARKS = {"better": BETTER, "worse": WORSE}
RIVAL_MARKS = {"better": RIVAL_BETTER, "worse": RIVAL_WORSE}
#: What a run costs, beside its metrics: key of its result file and name.
COSTS = {"seconds": "time", "epochs": "epochs", "parameters": "parameters"}
_DECIMALS = 4


@dataclass(frozen=True)
class Heading:
    """A column of numbers.

    Attributes:
        key: the metric, or a key of :data:`COSTS`.
        name: as it is shown, with the unit.
        arrow: ``↑`` or ``↓`` for the better direction, ``→ 1`` for a target, empty for a cost.
    """

    key: str
    name: str
    arrow: str

    def __str__(self) -> str:
        return f"{self.name} {self.arrow}".rstrip()


@dataclass(frozen=True)
class Compared:
    """A difference from another row as text; all empty where nothing was compared.

    Attributes:
        verdict: ``better``, ``worse`` or ``undecided``; None where nothing was tested.
        difference: in the metric, or in the distance from its target.
        interval: of the difference, ``low to high``.
        p: after correction.
    """

    verdict: str | None = None
    difference: str = ""
    interval: str = ""
    p: str = ""


@dataclass(frozen=True)
class Entry:
    """A number of the table as text; all empty where a row has none.

    Attributes:
        mean: over seeds.
        std: standard deviation over seeds, empty with a single one.
        seeds: how many it is the mean of, where that isn't every finished run of its row.
        best: whether it is the best of its column.
        order: what to sort by, the best first; None sorts last.
        interval: of the mean, ``low to high``.
        by_seed: seed and value.
        baseline: compared with the baseline.
        rival: compared with the logistic regression.
    """

    mean: str = ""
    std: str = ""
    seeds: int | None = None
    best: bool = False
    order: float | None = None
    interval: str = ""
    by_seed: tuple[tuple[int, str], ...] = ()
    baseline: Compared = Compared()
    rival: Compared = Compared()

    @property
    def mark(self) -> str:
        """▲ or ▼ where it differs from the baseline."""
        return MARKS.get(self.baseline.verdict or "", "")

    @property
    def rival_mark(self) -> str:
        """△ or ▽ where it differs from the logistic regression."""
        return RIVAL_MARKS.get(self.rival.verdict or "", "")

    @property
    def value(self) -> str:
        """``mean ± std``, with the number of seeds where that needs saying."""
        few = f" (n={self.seeds})" if self.seeds is not None else ""
        return self.mean + (f" ± {self.std}" if self.std else "") + few


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        label: its name on one line.
        baseline: whether the others are compared with it.
        aa: whether it is the baseline again, with other initial weights.
        finished: its finished runs.
        planned: the runs it should have.
        entries: one a heading.
    """

    label: str
    baseline: bool
    aa: bool
    finished: int
    planned: int
    entries: tuple[Entry, ...]

    @property
    def seeds(self) -> str:
        """``4 of 5``, or the number where all have finished."""
        if self.finished == self.planned:
            return str(self.planned)
        return f"{self.finished} of {self.planned}"


@dataclass(frozen=True)
class Problem:
    """A run without a result, a metric that some runs of a row don't have, or a verdict that can't
    be had: where and why."""

    label: str
    seeds: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        if not self.seeds:
            return f"{self.label}: {self.reason}"
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.label}, seed{'s' * (len(self.seeds) > 1)} {seeds}: {self.reason}"


@dataclass(frozen=True)
class Layout:
    """The table as all formats show it.

    Attributes:
        headings: the columns of numbers.
        lines: the rows.
        notes: sentences that belong under the table, as text.
        simulated: what to say first, on simulated data.
        problems: runs that are missing, metrics that are missing in finished runs, and verdicts
            that can't be had.
        rival: the row that the others are compared with as well, where there is one.
    """

    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    simulated: str | None
    problems: tuple[Problem, ...]
    rival: str | None = None

    def caption(self, best: str) -> list[str]:
        """The notes, and how the best of a column is marked."""
        marked = any(entry.best for line in self.lines for entry in line.entries)
        targets = any(heading.arrow.startswith("→") for heading in self.headings)
        of_targets = " (with a target: the smallest mean distance from it)" if targets else ""
        note = (
            f"{best}: the best mean of its column{of_targets}, which by itself says nothing about "
            "chance."
        )
        return [*self.notes, *([note] if marked else [])]

    @property
    def metrics(self) -> Layout:
        """The table without its costs."""
        places = [n for n, heading in enumerate(self.headings) if heading.key not in COSTS]
        return dataclasses.replace(
            self,
            headings=tuple(self.headings[n] for n in places),
            lines=tuple(
                dataclasses.replace(line, entries=tuple(line.entries[n] for n in places))
                for line in self.lines
            ),
        )

    @property
    def uneven(self) -> bool:
        """Whether some row lacks a run: then the number of seeds is a column."""
        return any(line.finished != line.planned for line in self.lines)


def layout(study: Study) -> Layout:
    """What the table of a study shows: its columns, training time, epochs and parameters."""
    metrics = [Heading(m, m, direction(m)) for m in study.shown]
    costs = [column for key in COSTS if (column := _cost_column(study, key))]
    digits = {metric: decimals(study, metric) for metric in study.shown}
    lines = []
    for n, row in enumerate(study.rows):
        runs, cells = len(study.of(row.label)), study.table[row.label]
        entries = [_entry(cells.get(m), m, digits[m], runs) for m in study.shown]
        entries += [column[n] for _, column in costs]
        first = row.label == study.baseline
        label, planned = one_line(row.label), len(study.seeds)
        lines.append(Line(label, first, row.aa, runs, planned, tuple(entries)))
    return Layout(
        (*metrics, *(heading for heading, _ in costs)),
        tuple(lines),
        tuple(_notes(study)),
        one_line(study.simulated) if study.simulated else None,
        (*_missing_runs(study), *_missing_metrics(study), *_missing_verdicts(study)),
        one_line(study.rival) if study.rival else None,
    )


def direction(metric: str) -> str:
    """``↑``, ``↓`` or ``→ target``; nothing where no value is better by itself."""
    if is_neutral(metric):
        return ""
    target = target_of(metric)
    if target is not None:
        return f"→ {target:g}"
    return "↑" if bigger_is_better(metric) else "↓"


def decimals(study: Study, metric: str) -> int:
    """Common decimals of a column: four, more where all of its means are small."""
    means = [abs(row[metric].sample.mean) for row in study.table.values() if metric in row]
    largest = max((m for m in means if math.isfinite(m)), default=0.0)
    if not largest:
        return _DECIMALS
    return min(10, max(_DECIMALS, 2 - math.floor(math.log10(largest))))


def one_line(label: str) -> str:
    """A label without line breaks and doubled blanks."""
    return " ".join(label.split())


def humanise(number: float) -> str:
    """A count in three digits: ``999``, ``12.3 k``, ``1.23 M``, ``4.56 G``."""
    for power, unit in ((0, ""), (3, " k"), (6, " M"), (9, " G")):
        scaled = number / 10**power
        if abs(float(f"{scaled:.3g}")) < 1000 or unit == " G":
            break
    if not unit and number == int(number):
        return str(int(number))
    whole = len(str(int(abs(float(f"{scaled:.3g}")))))
    return f"{scaled:.{max(0, 3 - whole)}f}{unit}"


def p_value(p: float) -> str:
    """A p value in two digits, ``< 0.0001`` below that."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def tidy_csv(study: Study) -> str:
    """One line a row and metric of the table, costs included; a missing number is empty."""
    lines: list[dict[str, Any]] = []
    for row in study.rows:
        head = {"row": row.label, "model": row.model, "seeds": len(study.seeds)}
        head |= {"aa": row.aa, "seed_draws": study.draws.kind}
        for metric in study.shown:
            cell = study.table[row.label].get(metric)
            numbers = _tidy(metric, cell, metric in study.primary)
            lines.append({**head, "metric": metric, **numbers})
        for key in COSTS:
            values = _cost_values(study.of(row.label), key)
            own = sample(values) if values else None
            lines.append({**head, "metric": key, **_tidy_sample(own)})
    columns = ["row", "model", "metric", "direction", "seeds", *_tidy_sample(None)]
    columns += [key for key in _tidy("AUC", None) if key not in columns]
    columns += ["aa", "seed_draws"]
    return output.csv_text(columns, lines)


def runs_csv(study: Study) -> str:
    """One line a run: its state, all test metrics, time, epochs, parameters."""
    lines: list[dict[str, Any]] = []
    for row in study.rows:
        for seed in study.seeds:
            run = study.results.get((row.label, seed))
            line: dict[str, Any] = {"row": row.label, "model": row.model, "seed": seed}
            if run is None:
                line["state"], line["reason"] = _state(study, row.label, seed)
            else:
                line["state"] = "finished"
                line |= {key: run.get(key) for key in (*COSTS, "best_epoch", "threads", "run_dir")}
                line |= run["test_result"]
            lines.append(line)
    columns = ["row", "model", "seed", "state", "reason", *COSTS, "best_epoch", "threads"]
    return output.csv_text([*columns, *study.metrics, "run_dir"], lines)


def trials_csv(tuning: Tuning) -> str:
    """One line a trial: its score on validation, whether it was chosen, and the settings drawn.

    The score of a trial that failed is empty, and so is a setting that a trial didn't draw, which
    is then the row's own.
    """
    lines: list[dict[str, Any]] = []
    scores: dict[str, None] = {f"valid_{tuning.metric}": None}
    drawn: dict[str, None] = {}
    for label, tried in tuning.by_row.items():
        best = tuning.best(label)
        for number, trial in enumerate(tried):
            score = f"valid_{trial.metric or tuning.metric}"
            scores[score] = None
            line = {"row": label, "trial": number, score: trial.score, "chosen": int(trial is best)}
            line |= {"reason": trial.reason, "run": trial.run}
            # as text, since the CSV has nothing for None
            lines.append(line | {key: str(value) for key, value in trial.chosen.items()})
            drawn |= dict.fromkeys(trial.chosen)
    return output.csv_text(["row", "trial", *scores, "chosen", "reason", "run", *drawn], lines)


def as_json(study: Study) -> dict[str, Any]:
    """Everything: statistics, values by seed, configurations, versions, failures.

    A number that isn't finite is null, so that strict readers take it.
    """
    shown = layout(study)
    rows = []
    for row in study.rows:
        metrics = {}
        for metric, cell in study.table[row.label].items():
            numbers = _tidy(metric, cell, metric in study.primary)
            numbers["values"] = {str(s): v for s, v in cell.sample.values.items()}
            metrics[metric] = numbers
        rows.append(
            {
                "label": row.label,
                "model": row.model,
                "settings": dict(row.settings),
                "swept": dict(row.swept),
                "aa": row.aa,
                "metrics": metrics,
                "runs": {str(seed): dict(run) for seed, run in study.of(row.label).items()},
            }
        )
    return _strict(
        {
            "title": study.title,
            "command": study.command,
            "dataset": study.dataset,
            "simulated": study.simulated,
            "seeds": list(study.seeds),
            "baseline": study.baseline,
            "columns": list(study.shown),
            "primary": list(study.primary),
            "logistic_regression": study.rival,
            "comparisons": len(study.verdicts),
            "seed_draws": study.draws.kind,
            "test_share": study.draws.test_share,
            "confidence": CONFIDENCE,
            "alpha": round(ALPHA, 10),
            "shared": dict(study.shared),
            "tuning": dataclasses.asdict(study.tuning) if study.tuning else None,
            "notes": shown.caption("best"),
            "problems": [
                {"row": p.label, "seeds": list(p.seeds), "reason": p.reason} for p in shown.problems
            ],
            "rows": rows,
        }
    )


def markdown(study: Study, figures: Mapping[str, str] | None = None) -> str:
    """A page: the table, what to know about it, intervals, what is missing, figures, the command.

    Args:
        study: what is shown.
        figures: paths of pictures, relative to the page, by their description.
    """
    shown = layout(study)
    lines = [f"# {markdown_escape(one_line(study.title))}", ""]
    if shown.simulated:
        lines += [f"**{markdown_escape(shown.simulated)}**", ""]
    lines += [*_markdown_table(_grid(shown, _markdown_entry, markdown_escape)), ""]
    lines += [f"- {markdown_escape(note)}" for note in shown.caption("Bold")]
    if any(entry.interval for line in shown.lines for entry in line.entries):
        intervals = _grid(shown.metrics, _markdown_interval, markdown_escape)
        lines += ["", "## 95 % intervals of the means", "", *_markdown_table(intervals)]
    if study.tuning is not None:
        chosen = [[*map(markdown_escape, cells)] for cells in tuning_table(study.tuning)]
        lines += ["", "## The settings that were chosen", ""]
        lines += _markdown_table(chosen, "|---|---:|---:|---|")
    if shown.problems:
        lines += ["", "## What is missing", ""]
        lines += [f"- {markdown_escape(str(problem))}" for problem in shown.problems]
    for description, path in (figures or {}).items():
        lines += ["", f"![{markdown_escape(description)}]({path})"]
    fence = "`" * (3 + study.command.count("```"))
    lines += ["", "Made by", "", f"{fence}bash", study.command, fence]
    return "\n".join(lines) + "\n"


def latex(study: Study) -> str:
    """A ``table`` for ``booktabs`` (rules), ``amssymb`` (marks) and ``graphicx`` (width)."""
    shown = layout(study)
    head, *rows = _grid(shown, _latex_entry, latex_escape)
    sentences = [f"{one_line(study.title)}.", *_first(shown), *shown.caption("Bold")]
    caption = " ".join([*sentences, *(f"{problem}." for problem in shown.problems)])
    tabular = (
        pd.DataFrame(rows, columns=head)
        .style.hide(axis="index")
        .to_latex(column_format="l" + "r" * (len(head) - 1), hrules=True)
    )
    return "\n".join(
        [
            r"% \usepackage{booktabs, amssymb, graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(caption)}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"{tabular.rstrip()}}}",
            r"\end{table}",
            "",
        ]
    )


def text(study: Study, width: int | None = None) -> str:
    """The table for a terminal.

    Args:
        study: what is shown.
        width: columns that don't fit into it go into a further table below.
    """
    shown = layout(study)
    head, *rows = _grid(shown, partial(_text_entry, rival=shown.rival is not None), str)
    blocks = [
        output.table(
            [head[0], *(head[n] for n in block)], [[r[0], *(r[n] for n in block)] for r in rows]
        )
        for block in _blocks([head, *rows], width)
    ]
    problems = [str(problem) for problem in shown.problems]
    under = [*_first(shown), *shown.caption("*"), *problems]
    return "\n".join(["\n\n".join(blocks), "", *under])


def tuning_table(tuning: Tuning) -> list[list[str]]:
    """Header and rows as text: the score of a row as it was, the best, and what was chosen."""
    rows = [["model", f"valid {tuning.metric}, as it was", "tuned", "chosen"]]
    for label, tried in tuning.by_row.items():
        best = tuning.best(label)
        scores = [_valid_score(trial) for trial in (tried[0], best)]
        chosen = ", ".join(f"{key}={_setting(value)}" for key, value in best.chosen.items())
        rows.append([one_line(label), *scores, chosen or "as it was"])
    return rows


def _valid_score(trial: Trial) -> str:
    if trial.score is None:
        return ""
    return f"{trial.score:.4f}" + (f" ({trial.metric})" if trial.metric else "")


def _setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown_escape(words: str) -> str:
    """Text that Markdown (and a cell of its table) shows as it is."""
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~$" else c for c in words)


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    # these mean something at the start of a table's row, and two dashes are one
    **{c: f"{{{c}}}" for c in "[]*-"},
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    MINUS: r"$-$",
    "…": r"\dots{}",
    "²": r"\textsuperscript{2}",
    BETTER: r"$\blacktriangle$",
    WORSE: r"$\blacktriangledown$",
    RIVAL_BETTER: r"$\vartriangle$",
    RIVAL_WORSE: r"$\triangledown$",
}


def latex_escape(words: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(c, c) for c in words)


def _cost_column(study: Study, key: str) -> tuple[Heading, list[Entry]] | None:
    """A key of :data:`COSTS` in one unit and as many decimals for all rows, where a run has it."""
    by_row = [_cost_values(study.of(row.label), key) for row in study.rows]
    largest = max((value for by_seed in by_row for value in by_seed.values()), default=None)
    if largest is None:
        return None
    minutes = key == "seconds" and largest >= 600
    digits = 0 if key == "seconds" and 100 <= largest < 600 else 1
    unit = f" ({'min' if minutes else 's'})" if key == "seconds" else ""

    def shown(value: float) -> str:
        if key == "parameters":
            return humanise(value)
        return f"{value / 60 if minutes else value:.{digits}f}"

    entries = []
    for by_seed in by_row:
        mean = sample(by_seed).mean if by_seed else math.nan
        values = tuple((seed, shown(value)) for seed, value in by_seed.items())
        entries.append(Entry(shown(mean), order=mean, by_seed=values) if by_seed else Entry())
    return Heading(key, COSTS[key] + unit, ""), entries


def _cost_values(runs: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    return {seed: float(run[key]) for seed, run in runs.items() if run.get(key) is not None}


def _entry(cell: Cell | None, metric: str, digits: int, finished: int) -> Entry:
    if cell is None:
        return Entry()
    own = cell.sample
    order = own.mean if not direction(metric).startswith("↑") else -own.mean
    if target_of(metric) is not None:
        order = float(np.mean([score_of(metric, v) for v in own.values.values()]))
    return Entry(
        mean=f"{own.mean:.{digits}f}",
        std="" if own.std is None else f"{own.std:.{digits}f}",
        seeds=len(own.values) if len(own.values) != finished else None,
        best=cell.best,
        order=order,
        interval=_range(own.low, own.high, digits),
        by_seed=tuple((seed, f"{value:.{digits}f}") for seed, value in own.values.items()),
        baseline=_compared(cell.comparison, digits),
        rival=_compared(cell.rival, digits),
    )


def _compared(comparison: Comparison | None, digits: int) -> Compared:
    if comparison is None:
        return Compared()
    return Compared(
        comparison.verdict,
        f"{comparison.difference:+.{digits}f}",
        _range(comparison.low, comparison.high, digits, "+"),
        "" if comparison.p_adjusted is None else p_value(comparison.p_adjusted),
    )


def _range(low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def _notes(study: Study) -> Iterable[str]:
    seeds, runs = len(study.seeds), study.results.values()
    chosen = sorted({run["valid_metric"] for run in runs if run.get("valid_metric")})
    chosen_by = f" (chosen by {', '.join(chosen)})" if chosen else ""
    at_best = f"at the best epoch on validation{chosen_by}"
    if seeds == 1:
        yield (
            f"Test metrics of a single seed ({study.seeds[0]}) {at_best}: with one seed there is "
            "no interval and no test."
        )
    else:
        named = ", ".join(map(str, study.seeds))
        yield f"Test metrics {at_best}: mean ± standard deviation over {seeds} seeds ({named})."
    if (tuning := study.tuning) is not None:
        yield (
            f"Tuned: a row has the settings that were best on validation ({tuning.metric}, seed "
            f"{tuning.seed}) of {tuning.trials} that were tried, its own and {tuning.trials - 1} "
            f"drawn at random from its ranges{tuning.rows and ', ' + tuning.rows}."
        )
        if any(part_label(row.label, "cvr") in tuning.by_row for row in study.rows):
            cvr = tuning.trials // 2
            yield (
                f"Where a row is two models, they have {tuning.trials} trainings together: "
                f"{tuning.trials - cvr} settings of the CTR model, chosen by its own metric, and "
                f"{cvr} of the CVR model, chosen by the product."
            )
    if seeds > 1:
        yield from _verdict_notes(study)
    arrows = [direction(metric) for metric in study.shown]
    words = [
        *(["↑ larger is better"] if "↑" in arrows else []),
        *(["↓ smaller is better"] if "↓" in arrows else []),
        *(["→ the nearer to the target the better"] if any("→" in a for a in arrows) else []),
    ]
    if words:
        yield ", ".join(words) + "."
    yield from scope_notes(study.shown)
    if single := _two_models(study):
        yield (
            f"{', '.join(single)}: two models, one of clicks over all impressions and one of "
            "conversions over clicked ones; pCTCVR is their product."
        )
    if any(run.get("seconds") is not None for run in runs):
        threads = sorted({run["threads"] for run in runs if run.get("threads")})
        many = "" if threads == [1] else "s"
        on = f" on {' or '.join(map(str, threads))} thread{many}" if threads else ""
        yield f"Time: training and evaluation of a run{on}; time, epochs and parameters are means."


def _verdict_notes(study: Study) -> Iterable[str]:
    """What the verdicts of a study with several seeds are about, and what they rest on."""
    baseline, primary = one_line(study.baseline), " and ".join(study.primary)
    if study.verdicts:
        rival = one_line(study.rival) if study.rival else ""
        also = f", {RIVAL_BETTER} better and {RIVAL_WORSE} worse than {rival}" if rival else ""
        yield (
            f"Verdicts are about the primary metrics alone, {primary}, named in advance: {BETTER} "
            f"better and {WORSE} worse than {baseline}{also}; two-sided t test of the differences "
            f"by seed, p < {ALPHA:.2g} after Holm's correction over the {len(study.verdicts)} "
            "comparisons of this table. Other columns have intervals and no verdict."
        )
    elif any(label not in study.again for label, *_ in study.comparisons):
        yield f"There is no verdict, neither in {primary}, the primary metrics, nor elsewhere."
    if not study.draws.refused:
        yield _VARIANCES[study.draws.kind].format(share=study.draws.test_share)
    smallest = [f"{m} {reach}" for m in study.primary if (reach := _smallest(study, m))]
    if smallest:
        yield (
            f"The smallest difference from {baseline} that could have been seen, with "
            f"{POWER:.0%} power in the first of Holm's tests: {', '.join(smallest)}."
        )
    if study.comparisons:
        yield from aa_notes(study) or ["No A/A row: none is the baseline again by another chance."]


_VARIANCES = {
    "split": (
        "Seeds split one data set, so that their training rows overlap, and so do their test rows. "
        "Intervals and tests allow for that: the variance of a mean over n seeds is s²(1/n + "
        "n_test/n_train), with n_test/n_train = {share:.3g}, and t has n - 1 degrees of freedom "
        "(Nadeau and Bengio, 2003). They are about training on other data of this kind and size."
    ),
    "weights": (
        "All seeds have one test set and draw initial weights. The variance of a primary metric, "
        "or of a difference in it, is s²/n over the seeds plus that of the test rows, from their "
        "influence values summed by user and by item where the data has them, which more seeds "
        "don't make smaller; t has Satterthwaite's degrees of freedom. Verdicts are about models "
        "trained on this one training set. The intervals of other columns hold for other initial "
        "weights on the same test rows."
    ),
    "world": (
        "Each seed draws a new world: the variance of a mean over n seeds is s²/n, and t has n - 1 "
        "degrees of freedom (paired t test). What the worlds have in common, such as users and "
        "items that a simulation keeps, isn't varied."
    ),
}


def _smallest(study: Study, metric: str) -> str:
    """The smallest difference from the baseline that could have been seen, or its range."""
    digits = decimals(study, metric)
    reaches = [
        compared.smallest
        for _, other, of, compared in study.verdicts
        if of == metric and other == study.baseline and compared.smallest is not None
    ]
    if not reaches:
        return ""
    return " to ".join(dict.fromkeys(f"{end:.{digits}f}" for end in (min(reaches), max(reaches))))


def aa_notes(study: Study) -> list[str]:
    """Whether a row that is the baseline again got a verdict."""
    notes = []
    for label in study.again:
        what = (
            f"A/A: {one_line(study.baseline)} again, on the same splits with other initial weights"
        )
        verdicts = {
            m: c.verdict for row, _, m, c in study.comparisons if row == label and c.verdict
        }
        wrong = [f"{verdict} in {m}" for m, verdict in verdicts.items() if verdict != "undecided"]
        if wrong:
            notes.append(
                f"{what}, GOT A VERDICT ({', '.join(wrong)}): distrust this page. Chance alone "
                "does that to one page in twenty."
            )
        else:
            notes.append(f"{what}, {'got no verdict' if verdicts else 'could not be tested'}.")
    return notes


def _two_models(study: Study) -> list[str]:
    return [
        one_line(row.label)
        for row in study.rows
        if any(len(run.get("trainings") or ()) > 1 for run in study.of(row.label).values())
    ]


def _state(study: Study, label: str, seed: int) -> tuple[str, str]:
    reason = study.failures.get((label, seed))
    return ("failed", reason) if reason is not None else ("missing", "not run yet")


def _missing_runs(study: Study) -> Iterable[Problem]:
    for row in study.rows:
        seeds_of: dict[str, list[int]] = {}
        for seed in study.seeds:
            if (row.label, seed) not in study.results:
                state, reason = _state(study, row.label, seed)
                words = f"failed: {one_line(reason)}" if state == "failed" else reason
                seeds_of.setdefault(words, []).append(seed)
        for words, seeds in seeds_of.items():
            yield Problem(one_line(row.label), tuple(seeds), words)


def _missing_metrics(study: Study) -> Iterable[Problem]:
    for row in study.rows:
        runs = study.of(row.label)
        why = {
            (metric, seed): reason
            for seed, run in runs.items()
            for metric, reason in (run.get("undefined") or {}).items()
            if metric in study.shown
        }
        for metric in study.shown:
            for reason in dict.fromkeys(r for (m, _), r in why.items() if m == metric):
                seeds = tuple(s for s in runs if why.get((metric, s)) == reason)
                yield Problem(one_line(row.label), seeds, f"no {metric}, {one_line(reason)}")


def _missing_verdicts(study: Study) -> Iterable[Problem]:
    """Comparisons that should have a verdict and can't, those with one reason together."""
    refused: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for label, _, metric, compared in study.comparisons:
        if compared.refused:
            labels, metrics = refused.setdefault(compared.refused, ({}, {}))
            labels[one_line(label)] = metrics[metric] = None
    for reason, (labels, metrics) in refused.items():
        yield Problem(", ".join(labels), (), f"no verdict in {', '.join(metrics)}: {reason}")


def _grid(shown: Layout, entry: Any, escape: Any) -> list[list[str]]:
    """Header and rows as text: label, the number of seeds where rows differ in it, numbers."""
    head = [escape("model"), *([escape("seeds")] if shown.uneven else [])]
    rows = [[*head, *(escape(str(heading)) for heading in shown.headings)]]
    for line in shown.lines:
        label = line.label + (" (baseline)" if line.baseline and len(shown.lines) > 1 else "")
        label += " (A/A)" if line.aa and "A/A" not in line.label else ""
        seeds = [escape(line.seeds)] if shown.uneven else []
        rows.append([escape(label), *seeds, *(entry(e) for e in line.entries)])
    return rows


def _first(shown: Layout) -> list[str]:
    return [shown.simulated] if shown.simulated else []


def _markdown_entry(entry: Entry) -> str:
    bold = "**" if entry.best else ""
    marks = entry.mark + entry.rival_mark
    return f"{bold}{entry.value}{bold} {marks}".strip() if entry.mean else ""


def _markdown_interval(entry: Entry) -> str:
    return markdown_escape(entry.interval)


def _markdown_table(grid: Sequence[Sequence[str]], rule: str = "") -> list[str]:
    """Lines of a table whose cells are Markdown; by default the first column is text alone."""
    header, *rows = [f"| {' | '.join(cells)} |" for cells in grid]
    return [header, rule or "|---|" + "---:|" * (len(grid[0]) - 1), *rows]


def _latex_entry(entry: Entry) -> str:
    if not entry.mean:
        return ""
    value = latex_escape(entry.value.replace("-", MINUS))
    if entry.best:
        value = rf"\textbf{{{value}}}"
    marks = latex_escape(entry.mark + entry.rival_mark).replace("$", "")
    return value + (f"$^{{{marks}}}$" if marks else "")


def _text_entry(entry: Entry, rival: bool) -> str:
    """With a place for each mark, so that numbers stay in line."""
    marks = entry.mark + entry.rival_mark
    if not entry.mean or entry.order is None or (not entry.std and not marks and not entry.best):
        return entry.value
    second = (entry.rival_mark or " ") if rival else ""
    return f"{entry.value} {'*' if entry.best else ' '}{entry.mark or ' '}{second}"


def _blocks(rows: Sequence[Sequence[str]], width: int | None) -> list[list[int]]:
    """Columns, the first left out, in groups that fit the width beside the first."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for n, own in enumerate(widths[1:], start=1):
        if width is not None and blocks[-1] and used + 2 + own > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(n)
        used += 2 + own
    return blocks


def _tidy_sample(own: Sample | None) -> dict[str, Any]:
    numbers = {name: getattr(own, name, None) for name in ("mean", "std", "low", "high")}
    return {"n": len(own.values) if own else 0, **numbers}


def _tidy(metric: str, cell: Cell | None, primary: bool = False) -> dict[str, Any]:
    target = target_of(metric)
    better = "higher" if bigger_is_better(metric) else "lower"
    return {
        "direction": better if target is None else f"target {target:g}",
        **_tidy_sample(cell.sample if cell else None),
        "best": cell.best if cell else None,
        **_tidy_comparison(cell.comparison if cell else None),
        "primary": primary,
        **{f"lr_{k}": v for k, v in _tidy_comparison(cell.rival if cell else None).items()},
    }


#: Names in data of what a comparison has.
_COMPARED = {
    "pairs": "pairs",
    "difference": "difference",
    "difference_low": "low",
    "difference_high": "high",
    "p": "p",
    "p_adjusted": "p_adjusted",
    "verdict": "verdict",
}


def _tidy_comparison(compared: Comparison | None) -> dict[str, Any]:
    """Of a comparison with the baseline; ``smallest`` is the difference that it could have seen."""
    estimate = compared.estimate if compared else None
    return {
        **{name: getattr(compared, attribute, None) for name, attribute in _COMPARED.items()},
        "standard_error": getattr(estimate, "error", None),
        "degrees_of_freedom": getattr(estimate, "freedom", None),
        "smallest": getattr(compared, "smallest", None),
    }


def _strict(content: Any) -> Any:
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _strict(value) for key, value in content.items()}
    if isinstance(content, (list, tuple, set, frozenset)):
        return [_strict(value) for value in content]
    return content
