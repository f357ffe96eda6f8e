"""The model that answers: loaded, scoring rows of JSON, and what a page has to know of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recbole_escm2.data.batch import Batch
from recbole_escm2.data.labels import labels_of
from recbole_escm2.data.schema import Field
from recbole_escm2.errors import UsageError
from recbole_escm2.serve.http.rows import Refused, columns_of, refusal, rows_in, wanted
from recbole_escm2.serve.scorer import Scorer, checkpoints_of
from recbole_escm2.serve.validity import PERCENTILES, steps_of

#: The percentile of the pCTR of train's clicks below which a row's pCVR isn't valid.
LEAST = max(PERCENTILES)
_CHOICES = 20  # tokens of a field that the page proposes
_SEAL = 33  # bytes at a checkpoint's end: its digest and a line feed
_TRIES = 3  # of loading a file that is replaced meanwhile

Signature = tuple[tuple[int, int, int] | None, ...]


def signature_of(path: str) -> Signature:
    """What tells that the checkpoint at a path, or one of a pair, was replaced; None where there
    is no file.
    """
    try:
        files = checkpoints_of(path)
    except UsageError:
        return (None,)
    return tuple(map(_stat, files))


def _stat(file: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(frozen=True)
class Answer:
    """Scores as JSON, and how many of what they are of, for statistics."""

    body: bytes
    rows: int
    invalid: int
    unknown: Mapping[str, int]


@dataclass(frozen=True)
class _Scored:
    """Rows as an answer has them, each as JSON; whether each isn't valid; and the rows that have
    an unknown token, by field."""

    rows: list[bytes]
    invalid: NDArray[np.bool_]
    unknown: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Told:
    """What a server tells of its model.

    Attributes:
        model: its name.
        digest: of its checkpoint, those of a pair joined by ``+``.
        signature: of its files when they were read.
        loaded: when they were.
        features: the fields of a row.
        predicts: what a row is answered with, such as ``pcvr``.
        has_support: whether it is told how far a row is from train's clicks.
        choices: values of each field that train has: the most frequent tokens, the median of
            numbers.
    """

    model: str
    digest: str
    signature: Signature
    loaded: datetime
    features: list[Field]
    predicts: list[str]
    has_support: bool
    choices: Mapping[str, list[Any]]

    def about(self, choices: bool) -> dict[str, Any]:
        """The model and its fields, for JSON.

        Args:
            choices: whether to show those.
        """
        fields = []
        for own in self.features:
            entry = {"name": own.name, "kind": own.kind, "weighted": own.weighted}
            entry["takes"] = wanted(own, self.features)
            if choices:
                entry["choices"] = self.choices[own.name]
            fields.append(entry)
        return {
            "model": self.model,
            "digest": self.digest,
            "loaded": self.loaded.isoformat(timespec="seconds"),
            "predicts": self.predicts,
            "valid_from_percentile": LEAST if self.has_support else None,
            "fields": fields,
        }


class Served:
    """A model as it was loaded, which one thread at a time scores with.

    Args:
        scorer: of the model.
        signature: of its files when they were read.
        digest: of its checkpoint, those of a pair joined by ``+``.

    Attributes:
        told: what a server tells of it.

    Raises:
        UsageError: it can't score a row without any value.
    """

    def __init__(self, scorer: Scorer, signature: Signature, digest: str) -> None:
        self.scorer = scorer
        self.features = [scorer.known.fields[name] for name in scorer.features]
        labels = {name for name in vars(labels_of(scorer.config)).values() if name}
        self.ignored = {*scorer.known.fields, *labels} - {*scorer.features}
        supports = (own.support for own in scorer.models)
        self._quantiles = next((own for own in supports if own is not None), None)
        self._batch: Batch | None = None
        scorer.watchers.append(self._keep)
        self.told = Told(
            scorer.name,
            digest,
            signature,
            datetime.now(UTC),
            self.features,
            [f"p{task}" for task in scorer.tasks],
            self._quantiles is not None,
            {own.name: self._frequent(own.name) for own in self.features},
        )
        self._scored([dict.fromkeys(scorer.features)])  # which builds indices of tokens, too

    def _keep(self, batch: Batch) -> None:
        self._batch = batch

    def answers(self, bodies: Sequence[bytes], most: int) -> list[Answer | Exception]:
        """The answers to requests, whose rows are scored together.

        Args:
            bodies: of the requests.
            most: rows that one may have.

        Returns:
            Of each its answer, or the error that it ends with: :class:`~.rows.Refused`, or a fault
            of ours.
        """
        return self._together([_read(body, most) for body in bodies])

    def _together(self, requests: Sequence[list[Any] | Refused]) -> list[Answer | Exception]:
        there = [rows for rows in requests if isinstance(rows, list)]
        try:
            scored = self._scored([row for rows in there for row in rows])
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [answer for own in requests for answer in self._together([own])]
        answers: list[Answer | Exception] = []
        first = 0
        for own in requests:
            if isinstance(own, Refused):
                answers.append(own)
                continue
            answers.append(self._answer(scored, slice(first, first + len(own))))
            first += len(own)
        return answers

    def _answer(self, scored: _Scored, rows: slice) -> Answer:
        """The answer of some rows, of those that were scored together."""
        head = b'{"model":' + orjson.dumps(self.told.digest) + b',"rows":['
        own = scored.rows[rows]
        within = {
            name: int(np.count_nonzero((at >= rows.start) & (at < rows.stop)))
            for name, at in scored.unknown.items()
        }
        return Answer(
            head + b",".join(own) + b"]}", len(own), int(scored.invalid[rows].sum()), within
        )

    def _scored(self, rows: list[Any]) -> _Scored:
        """Scores of rows.

        Raises:
            Refused: one can't be scored.
        """
        if not rows:
            return _NOTHING
        columns = columns_of(rows, self.features, self.ignored)
        try:
            scores = self.scorer.score(columns, "the request")
        except UsageError as error:
            raise Refused(422, str(error)) from error
        if scores.faults:
            raise refusal(scores.faults, self.features)
        own = {f"p{task}": _each(values) for task, values in scores.of.items()}
        invalid = np.zeros(len(rows), bool)
        own["support"] = own["valid"] = [b"null"] * len(rows)
        if self._quantiles is not None and scores.pctr is not None:
            size = len(self._quantiles) - 1
            steps = steps_of(self._quantiles, scores.pctr)
            own["support"] = _each((steps / size).astype(np.float32))
            invalid = steps < LEAST * size // 100
            own["valid"] = _each(~invalid)
        unknown = {name: self._unknown(name, columns.column(name)) for name in self._tokens}
        names: dict[int, list[str]] = {}
        for name, at in unknown.items():
            for row in at.tolist():
                names.setdefault(row, []).append(name)
        own["unknown"] = [b"[]"] * len(rows)
        for row, of_row in names.items():
            own["unknown"][row] = orjson.dumps(of_row)
        made = b"{" + b",".join(orjson.dumps(name) + b":%b" for name in own) + b"}"
        found = list(map(made.__mod__, zip(*own.values(), strict=True)))
        return _Scored(found, invalid, unknown)

    @property
    def _tokens(self) -> list[str]:
        return [own.name for own in self.features if own.kind.startswith("token")]

    def _unknown(self, name: str, column: pa.Array) -> NDArray[Any]:
        """The rows, of those scored last, that have a token that training didn't know."""
        assert self._batch is not None
        unknown = self.scorer.known.tokens[name].unknown
        if name in self._batch.bags:
            bag = self._batch.bags[name]
            at = np.flatnonzero(bag.ids.numpy() == unknown)
            return np.unique(np.repeat(np.arange(len(column)), bag.lengths[0].numpy())[at])
        is_unknown = self._batch[name].numpy() == unknown
        if not unknown:  # then it is the id of no value, too
            is_unknown &= column.is_valid().to_numpy(zero_copy_only=False)
        return np.flatnonzero(is_unknown)

    def _median(self, name: str) -> float:
        """Of a number in train, as it is logged, to a thousandth of its range or so."""
        known = self.scorer.known
        edges, numbers, own = known.deciles[name][0], known.numbers[name], known.fields[name]
        line = numbers.line(own, own.kind == "float" and name == known.time)
        if line is None or not numbers.largest > numbers.least:  # all are the same
            return numbers.mean
        shift, divisor = line
        digits = 3 - math.floor(math.log10(numbers.largest - numbers.least))
        return round(float(edges[len(edges) // 2 - 1]) * divisor + shift, digits)

    def _frequent(self, name: str) -> list[Any]:
        """Values of a field that train has, for a page."""
        known = self.scorer.known
        if name not in known.tokens:
            return [self._median(name)]
        tokens, counts = known.tokens[name], known.train_ids[name].clone()
        counts[0] = 0
        if tokens.unknown < len(counts):
            counts[tokens.unknown] = 0
        top = torch.topk(counts, min(_CHOICES, len(counts)))
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return [tokens.tokens[place - 1].as_py() for count, place in pairs if count]


def _read(body: bytes, most: int) -> list[Any] | Refused:
    try:
        return rows_in(body, most)
    except Refused as refused:
        return refused


_NOTHING = _Scored([], np.zeros(0, bool), {})


def _each(values: NDArray[Any]) -> list[bytes]:
    """Each number as JSON has it."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def load(path: str, model: str | None, device: str | None, settings: Mapping[str, str]) -> Served:
    """The model at a path.

    Args:
        path: a checkpoint, or the folder of a run.
        model: ``path.to.module:Class``, where it is the user's own.
        device: where to compute; by default a GPU where there is one.
        settings: config keys of scoring, as text.

    Raises:
        UsageError: there is none, none can be made of it, it can't score, or its files are
            replaced again and again.
    """
    for _ in range(_TRIES):
        signature = signature_of(path)
        scorer = Scorer(path, model, device, settings)
        digest = digest_of(path)
        if signature_of(path) == signature:
            try:
                return Served(scorer, signature, digest)
            except Refused as error:
                raise UsageError(f"{path}: the model can't score a row: {error}") from error
    raise UsageError(f"{path} is written to all the time: put a whole file there by renaming it")


def digest_of(path: str) -> str:
    """The digest of the checkpoint at a path, those of a pair joined by ``+``.

    Raises:
        UsageError: there is none.
    """
    return "+".join(map(_digest, checkpoints_of(path)))


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        stream.seek(-_SEAL, os.SEEK_END)
        return stream.read().decode("ascii").strip()
