"""A benchmark from Python: its study as tables of pandas and figures of matplotlib."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.experiment.study import Study
from recbole_escm2.report import groups, tables
from recbole_escm2.report.command import carry_out
from recbole_escm2.report.figures import dots, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class BenchmarkResult:
    """What a benchmark compared and what came out.

    Args:
        study: all of it.
        paths: the files of its report by what they hold.
        stopped: whether it was interrupted.
    """

    def __init__(self, study: Study, paths: Mapping[str, Path], stopped: bool = False) -> None:
        self.study = study
        self.paths = dict(paths)
        self.stopped = stopped

    @property
    def table(self) -> pd.DataFrame:
        """Mean test metrics over the seeds: a line a row of the benchmark, a column a metric."""
        lines = {
            label: {metric: cell.sample.mean for metric, cell in cells.items()}
            for label, cells in self.study.table.items()
        }
        frame = pd.DataFrame.from_dict(lines, orient="index", columns=self.study.shown)
        return frame.rename_axis("row")

    @property
    def numbers(self) -> pd.DataFrame:
        """A line for each row and metric: mean, interval, comparisons, verdict, as table.csv."""
        return _frame(*tables.tidy_lines(self.study))

    @property
    def runs(self) -> pd.DataFrame:
        """A line a run: its state, all test metrics, time, epochs, folder."""
        return _frame(*tables.runs_lines(self.study))

    @property
    def groups(self) -> pd.DataFrame:
        """A line for each row, group and metric, where ``by`` asked for groups."""
        return _frame(groups.COLUMNS, groups.csv_lines(self.study))

    @property
    def failures(self) -> dict[tuple[str, int], str]:
        """Why a run has no result, by row and seed."""
        return dict(self.study.failures)

    @property
    def figures(self) -> list[str]:
        """What :meth:`figure` can draw of the whole study, by name."""
        return [picture.name for picture in pictures(self.study)]

    def figure(self, name: str) -> Figure:
        """A figure of matplotlib: that of a metric, or one of the report's by name.

        Args:
            name: a metric of the table, or one of :attr:`figures`, such as ``learning``.

        Raises:
            UsageError: there is no such figure, or no run has what it shows.
        """
        if name in self.study.shown:
            drawn = dots(self.study, [name])
        else:
            by_name = {picture.name: picture for picture in pictures(self.study)}
            if name not in by_name:
                known = [*self.study.shown, *by_name]
                raise UsageError(
                    f"there is no figure '{name}'{did_you_mean(name, known)}. Figures: "
                    f"{', '.join(known)}"
                )
            drawn = by_name[name].draw()
        if drawn is None:
            raise UsageError(f"no run has what the figure '{name}' shows")
        return drawn

    def _repr_html_(self) -> str:
        """For a notebook: the table with its marks, and what to know about it."""
        head, rows, notes = tables.shown_table(self.study)
        shown = pd.DataFrame(rows, columns=head).to_html(index=False)
        return shown + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


def _frame(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(lines), columns=list(columns))


def benchmark(models: Any, dataset: str | None = None, **settings: Any) -> BenchmarkResult:
    """Run a benchmark, or what is missing of it, write its report, and return all of it.

    Args:
        models: names, or a mapping of rows to their settings, as in a benchmark's file.
        dataset: name of the data set.
        **settings: what a benchmark's file may hold: ``seeds``, ``jobs``, ``trials``, ``sweep``,
            ``by``, ``baseline``, …, and any config key of all rows.

    Raises:
        UsageError: something that the caller can mend; nothing has run then.
    """
    request = {**settings, "models": models if isinstance(models, (dict, str)) else list(models)}
    if dataset is not None:
        request["dataset"] = dataset
    given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    named = ", ".join(filter(None, [repr(models), repr(dataset) if dataset else "", given]))
    command = f"recbole_escm2.benchmark({named})"
    return BenchmarkResult(*carry_out({"benchmark": request}, command))
