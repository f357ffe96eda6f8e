"""What a run gives back: a dict, with its numbers as tables of pandas too."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.groups import COLUMNS, group_lines
from recbole_escm2.evaluator.prediction_file import predictions_file, user_metrics_file
from recbole_escm2.evaluator.summary import metric_cells, scope_notes


class RunResult(dict[str, Any]):
    """What :func:`recbole_escm2.quick_start.run` returns, as it has always been, and more.

    Args:
        outcome: the entries of the dict.
        trainings: what each training tells of its epochs; none of a saved model.
    """

    def __init__(
        self, outcome: Mapping[str, Any], trainings: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(outcome)
        self._trainings = trainings

    @property
    def table(self) -> pd.DataFrame:
        """Test metrics, unrounded: a line a metric, a column a task; NaN where a task has none."""
        cells = metric_cells(self["test_result"])
        columns = list(dict.fromkeys(task for row in cells.values() for task in row))
        frame = pd.DataFrame.from_dict(cells, orient="index", columns=columns)
        return frame.rename_axis("metric")

    @property
    def history(self) -> pd.DataFrame:
        """A line an epoch: training (``ctr`` or ``cvr`` where there are two), epoch, seconds, the
        losses as ``loss_NAME``, and the metrics of validation."""
        lines = [
            {
                "task": training["task"],
                "epoch": epoch["epoch"],
                "seconds": epoch["seconds"],
                **{f"loss_{name}": value for name, value in epoch["losses"].items()},
                **(epoch.get("valid") or {}),
            }
            for training in self._trainings
            for epoch in training["epochs"]
        ]
        return pd.DataFrame(lines)

    @property
    def groups(self) -> pd.DataFrame:
        """A line for each group and metric, where ``by`` asked for groups."""
        return pd.DataFrame(group_lines(self.get("groups") or ()), columns=list(COLUMNS))

    @property
    def predictions(self) -> pd.DataFrame:
        """A line for each impression of test, read from the run's folder when it is asked for.

        Raises:
            UsageError: the run hasn't kept them.
        """
        return _read(predictions_file(Path(self["run_dir"]), "test"))

    @property
    def by_user(self) -> pd.DataFrame:
        """A line for each user of test, read likewise.

        Raises:
            UsageError: the run hasn't kept them, or the data has no users.
        """
        return _read(user_metrics_file(Path(self["run_dir"]), "test"))

    def _repr_html_(self) -> str:
        """For a notebook: the table, which rows its metrics are over, and the run's folder."""
        notes = [*scope_notes(self["test_result"]), f"All of it is in {self['run_dir']}."]
        if self.get("simulated"):
            notes.insert(0, self["simulated"])
        shown = self.table.to_html(float_format="{:.4f}".format, na_rep="")
        return shown + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


def _read(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise UsageError(
            f"{file} isn't there: save_predictions: True keeps predictions (and metrics by user, "
            "where the data has users)"
        )
    return pd.read_parquet(file)
