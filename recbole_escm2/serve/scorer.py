"""Probabilities of new rows, by a checkpoint alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_escm2.data.batch import Batch
from recbole_escm2.data.encoding import Fault, part_of
from recbole_escm2.data.sources.table_files import as_arrow
from recbole_escm2.errors import UsageError
from recbole_escm2.keys import PAIR
from recbole_escm2.metric_names import ALL_TASKS
from recbole_escm2.serve.trained import TrainedModel

#: Rows that are read into a batch at once, about; a model sees eval_batch_size of them.
ROWS = 1 << 16


@dataclass(frozen=True)
class Scores:
    """Of some rows.

    Attributes:
        of: probabilities by task, calibrated where the model is, float32 ``[rows]``.
        pctr: as the model gives it, or None.
        kept: which of the rows they are of, where others can't be scored; None where all can.
        faults: what is wrong with those.
    """

    of: dict[str, NDArray[np.float32]]
    pctr: NDArray[np.float32] | None
    kept: NDArray[np.bool_] | None
    faults: list[Fault]


class Scorer:
    """Scores new rows with a model, or with a CTR and a CVR model as a pair.

    Args:
        path: a checkpoint, the folder of a run, or the checkpoints of a CTR and a CVR model.
        model: the class or ``path.to.module:Class``, where it is the user's own.
        device: where to compute; by default a GPU where there is one.
        settings: config keys of scoring, as text, such as ``metrics``.

    Attributes:
        tasks: what is predicted, of ``ctr``, ``cvr`` and ``ctcvr``.
        features: the columns that rows must have.
        calibration: what is done to probabilities last, or None.

    Raises:
        UsageError: there is no checkpoint, or no model can be made of it.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        model: str | type | None = None,
        device: Any = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        files = checkpoints_of(path)
        self.models = [TrainedModel(file, model, device, settings) for file in files]
        if len(self.models) > 1:
            _check_pair(self.models)
        first = self.models[0]
        self.tasks: tuple[str, ...] = first.tasks if len(self.models) == 1 else ALL_TASKS
        self.config = first.config
        self.known = first.known
        self.features = first.known.features
        self.calibration = first.calibration
        self.encoders = [own.encoder() for own in self.models]
        size: int = self.config["eval_batch_size"]
        self.batch_size = size
        self.block = max(1, ROWS // size) * size
        #: What is done with each block of features before it is scored; for statistics of them.
        self.watchers: list[Any] = []

    @property
    def name(self) -> str:
        """Of the model, those of a pair joined by ``+``."""
        return "+".join(str(own.config["model"]) for own in self.models)

    @property
    def unknown(self) -> dict[str, int]:
        """How many values of each column had no id in the training, of all that were scored."""
        return dict(self.encoders[0].unknown)

    def predict(self, table: Any) -> pd.DataFrame:
        """The probabilities of the rows of a table, in their order.

        Labels that the table has are ignored.

        Args:
            table: of pandas, Polars or Arrow, with a column for each of :attr:`features`.

        Returns:
            ``pctr``, ``pcvr`` and ``pctcvr``, those that the model predicts, float32, with the
            index of a pandas table.

        Raises:
            UsageError: a column is missing, or holds what the model can't read; it says where.
        """
        rows = as_arrow(table)
        self.encoders[0].check_columns(rows.column_names, "the table")
        parts: dict[str, list[NDArray[np.float32]]] = {task: [] for task in self.tasks}
        for start in range(0, rows.num_rows, self.block):
            scores = self.score(one_batch(rows.slice(start, self.block)), "the table")
            if scores.faults:
                fault = scores.faults[0]
                raise fault_error(fault, f"the table's row {start + fault.row + 1:,}")
            for task, own in scores.of.items():
                parts[task].append(own)
        empty = np.empty(0, np.float32)
        index = table.index if isinstance(table, pd.DataFrame) else None
        return pd.DataFrame(
            {f"p{task}": np.concatenate([empty, *own]) for task, own in parts.items()}, index
        )

    def score(self, rows: pa.RecordBatch, where: str) -> Scores:
        """The probabilities of up to :attr:`block` rows, without those that can't be scored.

        Args:
            rows: with the columns of :meth:`~recbole_escm2.data.encoding.Encoder.check_columns`.
            where: they come from, for messages.

        Raises:
            UsageError: a column's type isn't that of its field.
        """
        rows, faults = self.encoders[0].conformed(rows, where)
        kept = None
        if faults:
            kept = np.ones(len(rows), bool)
            kept[[fault.row for fault in faults]] = False
            rows = rows.filter(pa.array(kept))
        batches = [encoder.encode(rows) for encoder in self.encoders]
        for watch in self.watchers:
            watch(batches[0])
        of, pctr = self.probabilities(batches, where)
        return Scores(of, pctr, kept, faults)

    def probabilities(
        self, batches: Sequence[Batch], where: str
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32] | None]:
        """Those of a batch by task, and pCTR before calibration, as in :class:`Scores`.

        Args:
            batches: the same rows for each of the models.
            where: they come from, for messages.
        """
        found: dict[str, Tensor] = {}
        for own, batch in zip(self.models, batches, strict=True):
            pieces = [
                own.probabilities(part_of(batch, start, min(start + self.batch_size, len(batch))))
                for start in range(0, len(batch), self.batch_size)
            ]
            for task in own.tasks:
                found[task] = torch.cat([torch.empty(0), *(piece[task] for piece in pieces)])
        if len(self.models) > 1:
            found["ctcvr"] = found["ctr"] * found["cvr"]
        if not all(bool(torch.isfinite(own).all()) for own in found.values()):
            raise UsageError(f"{where}: the model's predictions aren't finite there")
        of = {task: found[task].numpy() for task in self.tasks}
        pctr = of.get("ctr")
        if self.calibration:
            calibrated = self.calibration.apply(of)
            of = {task: own.astype(np.float32) for task, own in calibrated.items()}
        return of, pctr


def checkpoints_of(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The checkpoint at a path, or the two of a pair.

    Raises:
        UsageError: there is none.
    """
    if not isinstance(path, str | Path):
        return [Path(own) for own in path]
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    one, two = folder / "checkpoint.pth", [folder / task / "checkpoint.pth" for task in PAIR]
    if one.is_file():
        return [one]
    if all(file.is_file() for file in two):
        return two
    raise UsageError(
        f"{folder} is a folder without a checkpoint.pth, and without those of a pair of models "
        f"({', '.join(f'{task}/checkpoint.pth' for task in PAIR)})"
    )


def _check_pair(models: Sequence[TrainedModel]) -> None:
    tasks = [own.tasks for own in models]
    if tasks != [(task,) for task in PAIR]:
        named = " and ".join("+".join(own) for own in tasks)
        raise UsageError(f"a pair is the checkpoint of a CTR and of a CVR model, not of {named}")
    if models[0].data["vocabulary"] != models[1].data["vocabulary"]:
        raise UsageError(
            f"{models[0].checkpoint} and {models[1].checkpoint} are no pair: they were trained on "
            "other data, whose ids mean other tokens"
        )
    first, second = (own.known.features for own in models)
    if first != second:
        raise UsageError(
            f"{models[0].checkpoint} and {models[1].checkpoint} are no pair: one reads "
            f"{', '.join(first)}, the other {', '.join(second)}"
        )


def one_batch(rows: pa.Table) -> pa.RecordBatch:
    """A table as one batch."""
    if not rows.num_rows:
        return pa.RecordBatch.from_pylist([], schema=rows.schema)
    columns = [c.chunk(0) if c.num_chunks == 1 else c.combine_chunks() for c in rows.columns]
    return pa.RecordBatch.from_arrays(columns, names=rows.column_names)


def fault_error(fault: Fault, place: str) -> UsageError:
    """The error of a value that can't be read."""
    return UsageError(f"{place}: column '{fault.column}' holds {fault.value!r}: {fault.why}")


def blocks_of(
    batches: Iterator[tuple[Sequence[int] | NDArray[np.int64], pa.RecordBatch]], size: int
) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
    """The same rows, with the number of each, in blocks of a size; the last one is what is left."""
    waiting: list[pa.RecordBatch] = []
    numbers: list[NDArray[np.int64]] = []
    count = 0
    for own, batch in batches:
        start = 0
        while start < len(batch):
            taken = min(size - count, len(batch) - start)
            waiting.append(batch.slice(start, taken))
            numbers.append(np.asarray(own[start : start + taken], np.int64))
            count, start = count + taken, start + taken
            if count == size:
                yield np.concatenate(numbers).tolist(), one_batch(pa.Table.from_batches(waiting))
                waiting, numbers, count = [], [], 0
    if count:
        yield np.concatenate(numbers).tolist(), one_batch(pa.Table.from_batches(waiting))
