"""A study as numbers: CSV, JSON, Markdown, LaTeX and text.

All that people read is made of one :class:`~recbole_escm2.report.layout.Layout`, so that no two
formats can disagree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from recbole_escm2 import output
from recbole_escm2.errors import printable
from recbole_escm2.experiment.statistics import ALPHA, CONFIDENCE, Cell, Comparison, Sample, sample
from recbole_escm2.experiment.study import Screening, Study, Trial, Tuning, best_trial
from recbole_escm2.metric_names import bigger_is_better, target_of
from recbole_escm2.report import groups
from recbole_escm2.report.layout import COSTS, Entry, Layout, cost_values, layout, state_of
from recbole_escm2.report.lift import share_of_lift
from recbole_escm2.report.notes import BETTER, MINUS, RIVAL_BETTER, RIVAL_WORSE, WORSE, one_line


def tidy_csv(study: Study) -> str:
    """One line a row and metric of the table, costs included; a missing number is empty."""
    return output.csv_text(*tidy_lines(study))


def tidy_lines(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and lines of :func:`tidy_csv`."""
    lines: list[dict[str, Any]] = []
    for row in study.rows:
        head = {"row": row.label, "model": row.model, "seeds": len(study.seeds)}
        head |= {"aa": row.aa, "seed_draws": study.draws.kind}
        for metric in study.shown:
            cell = study.table[row.label].get(metric)
            numbers = _tidy(metric, cell, metric in study.primary)
            lines.append({**head, "metric": metric, **numbers})
        for key in COSTS:
            values = cost_values(study.of(row.label), key)
            own = sample(values) if values else None
            lines.append({**head, "metric": key, **_tidy_sample(own)})
    columns = ["row", "model", "metric", "direction", "seeds", *_tidy_sample(None)]
    columns += [key for key in _tidy("AUC", None) if key not in columns]
    columns += ["aa", "seed_draws"]
    return columns, lines


def runs_csv(study: Study) -> str:
    """One line a run: its state, all test metrics, time, epochs, parameters."""
    return output.csv_text(*runs_lines(study))


def runs_lines(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and lines of :func:`runs_csv`."""
    lines: list[dict[str, Any]] = []
    for row in study.rows:
        for seed in study.seeds:
            run = study.results.get((row.label, seed))
            line: dict[str, Any] = {"row": row.label, "model": row.model, "seed": seed}
            if run is None:
                line["state"], line["reason"] = state_of(study, row.label, seed)
            else:
                line["state"] = "finished"
                line |= {key: run.get(key) for key in (*COSTS, "best_epoch", "threads", "run_dir")}
                line |= run["test_result"]
            lines.append(line)
    columns = ["row", "model", "seed", "state", "reason", *COSTS, "best_epoch", "threads"]
    return [*columns, *study.metrics, "run_dir"], lines


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
    shares = {metric: share_of_lift(study, metric) for metric in study.shown}
    rows = []
    for row in study.rows:
        metrics = {
            metric: _tidy(metric, cell, metric in study.primary) | {"values": cell.sample.values}
            for metric, cell in study.table[row.label].items()
        }
        rows.append(
            {
                "label": row.label,
                "model": row.model,
                "settings": row.settings,
                "swept": row.swept,
                "aa": row.aa,
                "metrics": metrics,
                "share_of_lift": {
                    metric: share[row.label]
                    for metric, share in shares.items()
                    if row.label in share
                },
                "runs": study.of(row.label),
            }
        )
    content: dict[str, Any] = output.finite(
        {
            "title": study.title,
            "command": study.command,
            "dataset": study.dataset,
            "simulated": study.simulated,
            "seeds": study.seeds,
            "baseline": study.baseline,
            "columns": study.shown,
            "primary": study.primary,
            "logistic_regression": study.rival,
            "comparisons": len(study.verdicts),
            "seed_draws": study.draws.kind,
            "test_share": study.draws.test_share,
            "confidence": CONFIDENCE,
            "alpha": round(ALPHA, 10),
            "shared": study.shared,
            "tuning": dataclasses.asdict(study.tuning) if study.tuning else None,
            "screening": dataclasses.asdict(study.screening) if study.screening else None,
            "protocol": study.protocol,
            "notes": shown.caption("best"),
            "problems": [
                {"row": p.label, "seeds": p.seeds, "reason": p.reason} for p in shown.problems
            ],
            "rows": rows,
        }
    )
    return content


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
        intervals = _grid(
            shown, lambda e: markdown_escape(e.interval), markdown_escape, costs=False
        )
        lines += ["", "## 95 % intervals of the means", "", *_markdown_table(intervals)]
    if study.tuning is not None:
        chosen = [[*map(markdown_escape, cells)] for cells in tuning_table(study.tuning)]
        lines += ["", "## The settings that were chosen", ""]
        lines += _markdown_table(chosen, "|---|---:|---:|---|")
    if study.screening is not None and study.screening.left:
        left = [[*map(markdown_escape, cells)] for cells in screening_table(study.screening)]
        lines += ["", "## Screened on validation alone", ""]
        lines += _markdown_table(left, "|---|---:|---|")
    lines += _markdown_groups(study)
    if shown.problems:
        lines += ["", "## What is missing", ""]
        lines += [f"- {markdown_escape(str(problem))}" for problem in shown.problems]
    for description, path in (figures or {}).items():
        lines += ["", f"![{markdown_escape(description)}]({path})"]
    command = printable(study.command, kept="\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`*", command))))
    lines += ["", "Made by", "", f"{fence}bash", command, fence]
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
    head, rows, under = shown_table(study)
    lines = [output.table(head, rows, width), "", *under]
    if study.screening is not None and study.screening.left:
        first, *left = screening_table(study.screening)
        lines += ["", "Screened on validation alone:", "", output.table(first, left)]
    if by_group := groups.text(study):
        lines += ["", by_group]
    return "\n".join(lines)


def shown_table(study: Study) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and what stands under the table, as text."""
    shown = layout(study)
    head, *rows = _grid(shown, partial(_text_entry, rival=shown.rival is not None), str)
    problems = [str(problem) for problem in shown.problems]
    return head, rows, [*_first(shown), *shown.caption("*"), *problems]


def tuning_table(tuning: Tuning) -> list[list[str]]:
    """Header and rows as text: the score of a row as it was, the best, and what was chosen."""
    rows = [["model", f"valid {tuning.metric}, as it was", "tuned", "chosen"]]
    for label, tried in tuning.by_row.items():
        best = tuning.best(label)
        scores = [_valid_score(trial) for trial in (tried[0], best)]
        rows.append([one_line(label), *scores, _chosen(best)])
    return rows


def screening_table(screening: Screening) -> list[list[str]]:
    """Header and rows as text: those that didn't go on, the best on validation, its settings."""
    rows = [["model", f"valid {screening.metric}", "settings"]]
    for row in screening.left:
        best = [best_trial(tried) for tried in row.by_part.values()]
        tasks = [trial.metric and f"by {trial.metric}: " for trial in best]
        chosen = [f"{task or ''}{_chosen(trial)}" for task, trial in zip(tasks, best, strict=True)]
        score = "" if row.score is None else f"{row.score:.4f}"
        rows.append([one_line(row.label), score, "; ".join(chosen)])
    return rows


def _chosen(trial: Trial) -> str:
    shown = ", ".join(f"{key}={_setting(value)}" for key, value in trial.chosen.items())
    return shown or "as it was"


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


def _grid(shown: Layout, entry: Any, escape: Any, costs: bool = True) -> list[list[str]]:
    """Header and rows as text: label, the number of seeds where rows differ in it, numbers."""
    head = [escape("model"), *([escape("seeds")] if shown.uneven else [])]
    places = [n for n, heading in enumerate(shown.headings) if costs or heading.key not in COSTS]
    rows = [[*head, *(escape(str(shown.headings[n])) for n in places)]]
    for line in shown.lines:
        label = line.label + (" (baseline)" if line.baseline and len(shown.lines) > 1 else "")
        label += " (A/A)" if line.aa and "A/A" not in line.label else ""
        seeds = [escape(line.seeds)] if shown.uneven else []
        rows.append([escape(label), *seeds, *(entry(line.entries[n]) for n in places)])
    return rows


def _first(shown: Layout) -> list[str]:
    return [shown.simulated] if shown.simulated else []


def _markdown_entry(entry: Entry) -> str:
    bold = "**" if entry.best else ""
    marks = entry.mark + entry.rival_mark
    return f"{bold}{entry.value}{bold} {marks}".strip() if entry.mean else ""


def _markdown_groups(study: Study) -> list[str]:
    """A section for each grouping."""
    lines: list[str] = []
    for by, rule in groups.groupings(study).items():
        lines += ["", f"## By {markdown_escape(by)}", "", markdown_escape(f"{rule}.")]
        for table in groups.tables(study, by):
            grid = [[*map(markdown_escape, cells)] for cells in (table.header, *table.rows)]
            lines += ["", f"{markdown_escape(table.title)}:", "", *_markdown_table(grid)]
    return [*lines, "", markdown_escape(groups.note(study))] if lines else []


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
