"""Several processes that score blocks of rows, each with the model; results keep their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa
import torch

from recbole_escm2.distributed import is_launched
from recbole_escm2.errors import UsageError
from recbole_escm2.pool import Pool
from recbole_escm2.serve.scorer import Scorer, Scores
from recbole_escm2.serve.validity import Counts, Validity
from recbole_escm2.threads import threads_of

T = TypeVar("T")


class Workers(Pool):
    """Processes that score, for as long as the object is entered.

    Args:
        count: of processes, each of which holds the model.
        arguments: of :class:`~recbole_escm2.serve.scorer.Scorer`.
    """

    def __init__(self, count: int, arguments: tuple[Any, ...]) -> None:
        hint = "each holds the model, so that fewer --workers need less"
        super().__init__(count, _begin, (arguments, threads_of(count)), "scores", hint)

    def scored(
        self, blocks: Iterable[T], rows_of: Callable[[T], tuple[pa.RecordBatch, str]]
    ) -> Iterator[tuple[T, Scores, Counts]]:
        """Blocks in their order, with their scores and what is counted of them.

        Args:
            blocks: of rows; a few are read ahead.
            rows_of: the features of a block, and where it comes from.

        Raises:
            UsageError: as :meth:`Scorer.score`, or a process has ended before its time.
        """
        tasks = ((block, _packed(*rows_of(block))) for block in blocks)
        for block, (scores, counts) in self.results(_score, tasks):
            yield block, scores, counts


def _packed(rows: pa.RecordBatch, where: str) -> tuple[bytes, str]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_batch(rows)
    return sink.getvalue().to_pybytes(), where


def workers_of(options: Mapping[str, str]) -> int:
    """How many processes are to score: 1 is this one alone.

    Raises:
        UsageError: it is no number of processes, or torchrun has started several.
    """
    if is_launched():
        raise UsageError("predict is shared out by --workers=N: start it without torchrun")
    text = options.get("workers", "1")
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--workers must be a number of processes, got {text!r}")
    return int(text)


# ------------------------------------------------------------------ in a process of its own

# What a process of the pool has: concurrent.futures has no other place for what is made once.
_OWN: list[tuple[Scorer, Validity]] = []


def _begin(arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    scorer = Scorer(*arguments)
    _OWN.append((scorer, Validity(scorer)))


def _score(content: bytes, where: str) -> tuple[Scores, Counts]:
    ((scorer, validity),) = _OWN
    rows = pa.ipc.open_stream(content).read_next_batch()
    return scorer.score(rows, where), validity.taken()
