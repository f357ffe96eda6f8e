"""How far new rows are from what a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.data.batch import Batch
from recbole_escm2.data.encoding import numbers_in
from recbole_escm2.output import table
from recbole_escm2.serve.scorer import Scorer, Scores

#: Percentiles of the pCTR of train's clicks below which a row is counted.
PERCENTILES = (1, 5)
#: From which a PSI is called a shift, as credit scoring has it: moderate, large.
SHIFTS = (0.1, 0.25)
_BINS = 20  # of support, for a picture
_TOP = 19  # tokens of a field that are compared one by one
_FLOOR = 1e-4  # of a share, whose logarithm is taken
_CANT_SEE = (
    "This can't see regions that pCTR doesn't separate: rows that are clicked as often, and of "
    "another kind."
)


@dataclass(frozen=True)
class Counts:
    """What was counted of some rows' features.

    Attributes:
        spread: values by bin, of each feature.
        unknown: how many values had no id, by field.
        values: how many there were.
    """

    spread: dict[str, NDArray[np.int64]]
    unknown: dict[str, int]
    values: dict[str, int]


class Validity:
    """The support of new rows, their unknown ids, and how features are spread beside train.

    Args:
        scorer: that scores them; it tells of each block that it has read.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._quantiles = next((m.support for m in scorer.models if m.support is not None), None)
        self._below = np.zeros(len(PERCENTILES), np.int64)
        self._spread_support = np.zeros(_BINS, np.int64)
        self._rows = 0
        known = scorer.known
        spreads: dict[str, Spread] = {}
        for name in scorer.features:
            own = known.fields[name]
            if own.numerical:
                spreads[name] = OfNumbers(known.deciles[name])
            else:
                unknown, counts = known.tokens[name].unknown, known.train_ids[name].numpy()
                spreads[name] = OfTokens(counts, unknown)
        self._spreads = spreads
        scorer.watchers.append(self._watch)

    def _watch(self, batch: Batch) -> None:
        for name, spread in self._spreads.items():
            if name in batch.bags:
                spread.add(batch.bags[name].ids.numpy())
            elif isinstance(spread, OfNumbers):
                spread.add(numbers_in(batch[name]))
            else:
                spread.add(batch[name].numpy())

    def taken(self) -> Counts:
        """What was counted of features since it was taken last, which is then counted no more."""
        encoder = self._scorer.encoders[0]
        counts = Counts(
            {name: spread.counts for name, spread in self._spreads.items()},
            dict(encoder.unknown),
            dict(encoder.values),
        )
        for spread in self._spreads.values():
            spread.counts = np.zeros_like(spread.counts)
        for own in (encoder.unknown, encoder.values):
            own.update(dict.fromkeys(own, 0))
        return counts

    def put(self, counts: Counts) -> None:
        """Add what another process has counted of features."""
        encoder = self._scorer.encoders[0]
        for name, own in counts.spread.items():
            self._spreads[name].counts += own
        for mine, theirs in ((encoder.unknown, counts.unknown), (encoder.values, counts.values)):
            for name, count in theirs.items():
                mine[name] += count

    def add(self, scores: Scores) -> NDArray[np.float32] | None:
        """The share of train's clicks whose pCTR is at most that of each row, ``[rows]``, in
        steps of a thousandth; None where the model has no pCTR.
        """
        self._rows += len(next(iter(scores.of.values())))
        if self._quantiles is None or scores.pctr is None:
            return None
        steps = len(self._quantiles) - 1
        pctr = scores.pctr.astype(np.float64)
        for place, percentile in enumerate(PERCENTILES):
            least = self._quantiles[percentile * steps // 100]
            self._below[place] += np.count_nonzero(pctr < least)
        found = steps_of(self._quantiles, pctr) / steps
        bins = (found * _BINS).astype(np.int64).clip(0, _BINS - 1)
        self._spread_support += np.bincount(bins, minlength=_BINS)
        return found.astype(np.float32)

    @property
    def support(self) -> NDArray[np.float64] | None:
        """The share of the rows in each of 20 equal bins of support; None where it isn't known."""
        if self._quantiles is None:
            return None
        return self._spread_support / max(self._rows, 1)

    def psi(self) -> dict[str, float]:
        """Of each feature, the largest first."""
        found = {name: spread.psi() for name, spread in self._spreads.items() if spread.total}
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def about(self) -> dict[str, Any]:
        """For JSON."""
        known = self._quantiles is not None
        shares = self._below / max(self._rows, 1)
        return {
            "below_percentile_of_train_clicks": {
                str(percentile): float(share)
                for percentile, share in zip(PERCENTILES, shares, strict=True)
            }
            if known
            else None,
            "unknown": self._scorer.unknown,
            "values": dict(self._scorer.encoders[0].values),
            "psi": self.psi(),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from self.of_support()
        yield ""
        yield table(*self.grid())
        yield self.note()

    def of_support(self) -> list[str]:
        """How many rows have little support, in sentences."""
        if self._quantiles is None:
            return ["The model has no pCTR of train's clicks to compare with."]
        shares = self._below / max(self._rows, 1)
        named = " and ".join(
            f"{share:.1%} below the {_ordinal(percentile)} percentile"
            for percentile, share in zip(PERCENTILES, shares, strict=True)
        )
        return [f"pCTR: {named} of train's clicks, where clicks were hardly seen.", _CANT_SEE]

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Of each feature its PSI and its unknown values, the most shifted first: header, rows."""
        unknown, values = self._scorer.unknown, self._scorer.encoders[0].values
        rows = []
        for name, value in self.psi().items():
            share = f"{unknown[name] / values[name]:.2%}" if values.get(name) else ""
            number = f"{unknown[name]:,}" if name in unknown else ""
            chance = f"{self._spreads[name].by_chance():.3f}"
            rows.append([name, f"{value:.3f}", chance, number, share])
        return ["feature", "PSI", "by chance", "unknown", "of its values"], rows

    def note(self) -> str:
        """How to read a PSI."""
        moderate, large = SHIFTS
        return (
            f"PSI compares with train: from {moderate} on a feature is spread otherwise, from "
            f"{large} on by far. As few rows as these have the one by chance without any shift."
        )


def steps_of(quantiles: NDArray[np.float64], pctr: NDArray[Any]) -> NDArray[np.int64]:
    """Which of the quantiles of train's clicks is the last one at or below each pCTR, ``[rows]``;
    0 where none is."""
    found = np.searchsorted(quantiles, pctr.astype(np.float64), side="right") - 1
    return found.clip(0)


def _ordinal(number: int) -> str:
    return f"{number}{'st' if number == 1 else 'th'}"


class Spread:
    """How values fall into bins, beside the shares of train.

    Args:
        shares: of train, ``[bins]``.
    """

    def __init__(self, shares: NDArray[np.float64]) -> None:
        self.shares = shares
        self.counts = np.zeros(len(shares), np.int64)

    @property
    def total(self) -> int:
        """Values so far."""
        return int(self.counts.sum())

    def add(self, values: NDArray[Any]) -> None:
        """Count values."""
        self.counts += np.bincount(self.bins(values), minlength=len(self.shares))

    def bins(self, values: NDArray[Any]) -> NDArray[Any]:
        """The bin of each value."""
        raise NotImplementedError

    def psi(self) -> float:
        """Population stability index, Σ (a − e)·ln(a/e) over the bins, of shares a here and e in
        train, none taken for less than 10⁻⁴.
        """
        here = np.maximum(self.counts / max(self.total, 1), _FLOOR)
        train = np.maximum(self.shares, _FLOOR)
        return float(((here - train) * np.log(here / train)).sum())

    def by_chance(self) -> float:
        """What it is on average where nothing has shifted: (bins − 1)/n of n values, train being
        much larger."""
        return (np.count_nonzero(self.shares) - 1) / max(self.total, 1)


class OfNumbers(Spread):
    """Between the deciles of train.

    Args:
        deciles: upper edges and shares of the bins, ``[2, 10]``.
    """

    def __init__(self, deciles: NDArray[np.float64]) -> None:
        super().__init__(deciles[1])
        self._edges = deciles[0, :-1]

    def bins(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.searchsorted(self._edges, values, side="right")


class OfTokens(Spread):
    """The most frequent tokens one by one, the other known ones, unknown ones, and no value.

    Args:
        counts: how often train has each id, ``[ids]``.
        unknown: the id of unknown tokens.
    """

    def __init__(self, counts: NDArray[np.float64], unknown: int) -> None:
        others, of_unknown, of_none = _TOP, _TOP + 1, _TOP + 2
        self._bin = np.full(max(len(counts), unknown + 1), others, np.int64)
        usual = counts.copy()
        usual[0] = 0
        if unknown < len(counts):
            usual[unknown] = 0
        top = np.argsort(-usual, kind="stable")[:_TOP]
        self._bin[top] = np.arange(len(top))
        self._bin[0] = of_none
        if unknown:
            self._bin[unknown] = of_unknown
        shares = np.bincount(self._bin[: len(counts)], counts, of_none + 1)
        super().__init__(shares / max(shares.sum(), 1))

    def bins(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._bin[values]
