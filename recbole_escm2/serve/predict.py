"""The command ``predict``: scores of new rows beside the columns that are passed through."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from recbole_escm2.data.labels import check_labels, label_columns
from recbole_escm2.data.schema import Labels
from recbole_escm2.data.truth import Truth
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.evaluator import EntireSpaceData, EntireSpaceEvaluator, MetricResult
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.evaluator.summary import metric_table
from recbole_escm2.extras import require
from recbole_escm2.output import write_json, write_whole
from recbole_escm2.serve.new_data import STREAM, Block, NewData
from recbole_escm2.serve.options import is_true
from recbole_escm2.serve.output import check_target, writing
from recbole_escm2.serve.scorer import Scorer, Scores, fault_error
from recbole_escm2.serve.validity import Validity
from recbole_escm2.serve.workers import Workers, workers_of
from recbole_escm2.tasks import single_task

# A block of rows, and the label columns that its file has, by role.
_Labelled = tuple[Block, dict[str, str]]
#: Options that are config keys.
SCORING = ("metrics", "eval_batch_size")
# Options without which there is nothing to do, and what they are.
_NEEDED = {
    "checkpoint": "a checkpoint, or the folder of a run",
    "data": "what to score",
    "out": "where the scores go",
}


def predict(options: Mapping[str, str]) -> int:
    """Score new rows, and say what is to be known of them.

    Args:
        options: those that the command's help lists, as text.

    Raises:
        UsageError: something that the user can mend; the message says what.
    """
    for name, what in _NEEDED.items():
        if not options.get(name):
            raise UsageError(f"predict needs --{name}=…: {what}")
    out = options["out"]
    if out != STREAM:
        check_target("out", Path(out))
    if page := options.get("page"):
        require("benchmark", "--page")
        check_target("page", Path(page), (".html",))
    settings = {key: options[key] for key in SCORING if key in options}
    own = options.get("model"), options.get("device")
    count = workers_of(options)
    arguments = options["checkpoint"], *own, settings
    scorer = Scorer(*arguments)
    sides = {kind: options[f"{kind}s"] for kind in ("user", "item") if options.get(f"{kind}s")}
    passed = [name for name in options.get("columns", "").split(",") if name]
    new = NewData(
        options["data"], scorer, passed, is_true(options, "skip_bad_rows", "False"), sides
    )
    done = Prediction(scorer, new, is_true(options, "labels", "True"))
    with Workers(count, arguments) if count > 1 else contextlib.nullcontext() as workers:
        done.write(out, workers)
    done.report(out)
    if page:
        from recbole_escm2.serve.page import new_rows_page

        write_whole(Path(page), new_rows_page(done))
    return 0


class Prediction:
    """New rows on their way through a scorer.

    Args:
        scorer: of the rows.
        new: the rows.
        labels: whether metrics are computed where the rows have labels.
    """

    def __init__(self, scorer: Scorer, new: NewData, labels: bool = True) -> None:
        self.scorer, self.new = scorer, new
        self.validity = Validity(scorer)
        self._truth = _Labels(scorer) if labels else None
        self.bad = 0  # rows left out since a value can't be read
        self.rows = 0
        self.result: MetricResult | None = None

    @property
    def left_out(self) -> int:
        """Rows and lines that couldn't be scored."""
        return self.bad + self.new.skipped

    def counts(self) -> list[str]:
        """How many rows were scored, left out, and not joined, in sentences."""
        left_out = f", {self.left_out:,} left out" if self.left_out else ""
        return [f"{self.rows:,} rows scored{left_out}"] + [
            f"{side.unmatched:,} rows have a {side.key} that {side.name} hasn't"
            for side in self.new.sides
            if side.unmatched
        ]

    def write(self, out: str, workers: Workers | None = None) -> None:
        """Score all rows, and write them.

        Args:
            out: where they go.
            workers: processes that score; by default this one does.

        Raises:
            UsageError: the rows, or the place, aren't as they must be.
        """
        blocks = ((block, self.new.labels) for block in self.new.blocks())
        first = next(blocks, None)
        if first is None:
            raise UsageError(f"{self.new.name} has no row")
        with writing(out, self.new.is_arrow) as output:
            for (block, labels), scores in self._scored(chain([first], blocks), workers):
                self._write(block, labels, scores, output)
        self.rows = output.rows

    def _scored(self, blocks: Iterable[_Labelled], workers: Workers | None) -> Iterator[Any]:
        """Blocks with their scores, in their order."""
        if workers is None:
            for own in blocks:
                yield own, self.scorer.score(own[0].rows, own[0].file)
            return
        for own, scores, counts in workers.scored(blocks, self._features):
            self.validity.put(counts)
            yield own, scores

    def _features(self, own: _Labelled) -> tuple[pa.RecordBatch, str]:
        block, _ = own
        fields = self.scorer.known.fields
        return block.rows.select([n for n in block.rows.schema.names if n in fields]), block.file

    def _write(self, block: Block, labels: dict[str, str], scores: Scores, output: Any) -> None:
        if scores.faults and not self.new.skip:
            fault = scores.faults[0]
            raise fault_error(fault, block.place(fault.row))
        rows, numbers = block.rows, block.numbers
        if scores.kept is not None:
            rows = rows.filter(pa.array(scores.kept))
            numbers = np.asarray(numbers)[scores.kept].tolist()
            self.bad += int(np.count_nonzero(~scores.kept))
        if self._truth is not None and "click" in labels:
            left = Block(block.file, block.unit, numbers, rows)
            self._truth.add(left, scores, labels)
        columns = {name: rows.column(name) for name in self.new.passed}
        columns |= {f"p{task}": pa.array(own) for task, own in scores.of.items()}
        if (support := self.validity.add(scores)) is not None:
            columns["support"] = pa.array(support)
        output.write(pa.RecordBatch.from_pydict(columns))

    def report(self, out: str) -> None:
        """Say how many rows were scored and what is to be known of them; also as JSON beside."""
        about = {
            "rows": self.rows,
            "left_out": self.left_out,
            "unmatched": {side.name: side.unmatched for side in self.new.sides},
            **self.validity.about(),
        }
        lines = [*self.counts(), "", *self.validity.lines()]
        if self._truth is not None:
            self.result = self._truth.metrics()
        if (result := self.result) is not None:
            about["metrics"], about["undefined"] = dict(result), result.undefined
            lines += ["", metric_table(result, 4)]
            lines += [f"{name} is left out: {why}." for name, why in result.undefined.items()]
        if out != STREAM:
            write_json(Path(f"{out}.json"), about)
        print("\n".join(lines), file=sys.stderr if out == STREAM else sys.stdout)


class _Labels:
    """Labels of scored rows beside their scores, a few numbers a row in memory."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._labels: dict[str, list[NDArray[Any]]] = {}
        self._scores: dict[str, list[NDArray[np.float32]]] = {}
        self._user: list[NDArray[np.uint64]] = []

    def add(self, block: Block, scores: Scores, roles: Mapping[str, str]) -> None:
        """Keep those of a block.

        Raises:
            UsageError: a label isn't one; the message says where.
        """
        for column in label_columns(Labels(**roles)):
            role = next(role for role, name in roles.items() if name == column.field)
            values = check_labels(block.rows.column(column.field), column, block.file, block.place)
            kept = values.astype(np.float32 if column.probability else np.uint8)
            self._labels.setdefault(role, []).append(kept)
        for task, own in scores.of.items():
            self._scores.setdefault(task, []).append(own)
        user = self._scorer.config["USER_ID_FIELD"]
        if user in block.rows.schema.names:
            texts = block.rows.column(user).cast(pa.string()).dictionary_encode()
            hashes = pd.util.hash_array(texts.dictionary.to_numpy(zero_copy_only=False))
            hashes = np.append(np.maximum(hashes, 1), np.uint64(0))  # the last one for none
            self._user.append(hashes[texts.indices.fill_null(-1).to_numpy(zero_copy_only=False)])

    def metrics(self) -> MetricResult | None:
        """Those that the labels define; None where there are none."""
        if not self._labels:
            return None
        labels: Any = {role: np.concatenate(own) for role, own in self._labels.items()}
        user = None
        if self._user:
            found, user = np.unique(np.concatenate(self._user), return_inverse=True)
            user = user + (found[0] != 0)  # 0 is none
        labels.pop("propensity", None)  # which is no score of the model's
        rates = self._scorer.known.train_rate
        truth = replace(Truth(labels.pop("click"), user=user, train_rate=rates), **labels)
        scores = {task: np.concatenate(own) for task, own in self._scores.items()}
        config = self._scorer.config
        data = EntireSpaceData(Predictions(truth, scores), single_task(config))
        return EntireSpaceEvaluator(config).evaluate(data)
