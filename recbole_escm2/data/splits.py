"""How D is split, what a seed draws of it, and impressions that are reserved for tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.data.schema import PARTS
from recbole_escm2.errors import UsageError
from recbole_escm2.keys import moment as moment_of

_FOLDS_SEED = 1983  # of the partition into folds, the same for all seeds of a run
_FIRST_DATE, _LAST_DATE = 1e8, 1e11  # of seconds since 1970; smaller numbers are years or counters


def part_names(config: Any) -> list[str] | None:
    """The names that config ``benchmark_filename`` has for train, validation and test.

    Returns:
        None where a data set isn't split by its files; two where there is no validation.

    Raises:
        UsageError: they are neither two nor three.
    """
    names: list[str] | None = config["benchmark_filename"]
    if names is not None and (not isinstance(names, list) or len(names) not in (2, 3)):
        raise UsageError(
            "benchmark_filename must be a list of three names, for train, validation and test, "
            f"or of two without validation, got {names!r}"
        )
    return names


def named_parts(config: Any) -> list[tuple[str | None, str | None]]:
    """Part and name in ``benchmark_filename`` of each file; a single (None, None) without it."""
    names = part_names(config)
    if names is None:
        return [(None, None)]
    parts = PARTS if len(names) == len(PARTS) else (PARTS[0], PARTS[-1])
    return list(zip(parts, names, strict=True))


def has_validation(config: Any, sizes: Sequence[int] | None) -> bool:
    """Whether some impressions are to validate, by which an epoch is chosen.

    Args:
        config: that says how D is split.
        sizes: of the parts, where the source has parts of its own: files, or Ali-CCP's test.
    """
    if sizes is not None:
        return sizes[1] > 0 or bool(config["validation_share"])
    way, how = split_method(config)
    if way == "LS":
        return bool(how != "test_only")
    if way == "TIME" and len(how) < len(PARTS):
        return len(how) == 2
    return len(how) != len(PARTS) or how[1] > 0


def split_method(config: Any) -> tuple[str, Any]:
    """How ``eval_args`` splits, by ``RS``, ``TIME``, ``TS`` or ``LS``, and what stands there."""
    ((way, how),) = (config["eval_args"]["split"] or {"RS": None}).items()
    return way, how


def is_grouped(config: Any) -> bool:
    """Whether RecBole splits the rows of each user by themselves."""
    return str(config["eval_args"]["group_by"]).lower() != "none"


def check_split(config: Any, presplit: bool) -> None:
    """Whether what the config says of the split goes together.

    Args:
        config: whose ``eval_args``, ``folds`` and ``keep_together`` say how D is split.
        presplit: whether the source has parts of its own: files, or Ali-CCP's test.

    Raises:
        UsageError: it doesn't; the message names the keys.
    """
    (way, how), order = split_method(config), config["eval_args"]["order"]
    if way == "TIME" and is_grouped(config):
        raise UsageError(
            "eval_args split TIME has the same moments for all, and group_by user splits each "
            "user's rows: leave group_by out, or choose {RS: [0.8, 0.1, 0.1]} with order TO"
        )
    if config["validation_share"] and not presplit:
        raise UsageError(
            "validation_share is the share of train that validates where the data has a test of "
            f"its own; here eval_args says it: split {{{way}: {how}}}"
        )
    for key in ("folds", "keep_together"):
        if config[key] is None:
            continue
        if presplit:
            raise UsageError(
                f"{key} does nothing where the data has parts of its own: leave it out"
            )
        if way != "RS" or order == "TO" or is_grouped(config):
            raise UsageError(
                f"{key} goes with a random split (eval_args split RS, order RO, no group_by), got "
                f"split {{{way}: {how}}}, order {order}, group_by {config['eval_args']['group_by']}"
            )
        if config["tuning_part"]:
            raise UsageError(
                f"{key} leaves no impressions that can be reserved for tuning: tune without it, "
                "and give the settings"
            )
    if config["folds"] and not sum(how[:-1]):
        raise UsageError(
            f"folds {config['folds']}: eval_args split {{RS: {how}}} leaves nothing to train on"
        )


def seed_draws(config: Any, presplit: bool) -> str:
    """What differs between two seeds, besides what training itself draws.

    Args:
        config: whose ``eval_args`` and ``folds`` say how D is split.
        presplit: whether the source has parts of its own: files, or Ali-CCP's test.

    Returns:
        ``split``: each seed scores other test impressions of one D. ``fold``: likewise, and none of
        them is another seed's. ``weights``: the test impressions are the same for every seed, by
        the files or by time.
    """
    if config["folds"]:
        return "fold"
    by_time = config["eval_args"]["order"] == "TO" or split_method(config)[0] in ("TS", "TIME")
    return "weights" if presplit or by_time else "split"


def check_tuning_part(config: Any, presplit: bool, share: float) -> None:
    """Whether a share of the impressions can be reserved for tuning.

    Raises:
        UsageError: not by this split, or not so many; the message says what can be.
    """
    if config["folds"]:
        raise UsageError(
            f"folds {config['folds']}: each impression is tested on by some seed, so that none is "
            "left to tune on. Tune with a random split (leave folds out), and give the settings"
        )
    eval_args, (way, ratios) = config["eval_args"], split_method(config)
    drawn = way == "RS" and not is_grouped(config) and config["keep_together"] is None
    if seed_draws(config, presplit) == "weights" or not drawn:
        raise UsageError(
            "impressions that no seed tests on can be reserved for tuning only where impressions "
            "are split at random by ratio (eval_args split RS, order RO, no group_by, no "
            f"keep_together), got {eval_args['split']}, order {eval_args['order']}, "
            f"group_by {eval_args['group_by']}, keep_together {config['keep_together']}"
        )
    test = ratios[-1] / sum(ratios)
    if test >= 1 - share:
        raise UsageError(
            f"tuning_share {share:g} leaves {1 - share:g} of the impressions to draw test from, "
            f"and eval_args tests on {test:g} of them: tuning_share must be less than {1 - test:g}"
        )


Positions = NDArray[np.int64]
#: From a number of rows to where each part but the first begins among them.
Ends = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Ordered:
    """Rows in an order in which those that belong together follow each other.

    Attributes:
        rows: their positions, ``[rows]``.
        starts: where rows begin that belong together, ascending from 0.
    """

    rows: Positions
    starts: Positions

    @classmethod
    def by_time(cls, times: NDArray[np.float64]) -> Ordered:
        """In the order of time; rows of one moment belong together."""
        order = np.argsort(times, kind="stable")
        return cls(order, _starts(times[order]))

    @classmethod
    def at_random(cls, together: NDArray[Any] | None, rows: int, shuffled: Any) -> Ordered:
        """In random order.

        Args:
            together: a number a row, the same for rows that belong together, 0 for one by itself;
                None where each is by itself.
            rows: how many there are.
            shuffled: gives a random permutation of so many.
        """
        number = np.arange(rows)
        if together is not None:
            alone = together == 0
            known = together.astype(np.int64)
            known[alone] = known.max(initial=0) + 1 + np.arange(np.count_nonzero(alone))
            number = np.unique(known, return_inverse=True)[1]
        place = np.asarray(shuffled(int(number.max(initial=-1)) + 1))[number]
        order = np.argsort(place, kind="stable")
        return cls(order, _starts(place[order]))

    def cut(self, ends: Sequence[int]) -> list[Positions]:
        """Parts that begin where rows that belong together begin, as near to the ends as can be.

        A part that the ends leave a row has one, as long as there are enough groups of rows.
        """
        borders = np.append(self.starts, len(self.rows))
        right = np.clip(np.searchsorted(borders, ends), 1, len(borders) - 1)
        to_left = np.asarray(ends) - borders[right - 1] < borders[right] - np.asarray(ends)
        place = [0, *(right - to_left).tolist(), len(borders) - 1]
        least = (np.diff([0, *ends, len(self.rows)]) > 0).astype(int).tolist()
        for part in range(1, len(place) - 1):
            place[part] = max(place[part], place[part - 1] + least[part - 1])
        for part in range(len(place) - 2, 0, -1):
            place[part] = max(0, min(place[part], place[part + 1] - least[part]))
        return np.split(self.rows, borders[place[1:-1]])


def _starts(ordered: NDArray[Any]) -> Positions:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])


def fold_of(
    together: NDArray[Any] | None, rows: int, folds: int, seed: int, ends: Ends, shuffled: Any
) -> list[Positions]:
    """Train, validation and test of a seed in a cross-validation.

    The partition is the same for all seeds, and a seed tests on fold ``seed`` mod ``folds`` of it.

    Args:
        together: as for :meth:`Ordered.at_random`.
        rows: how many there are.
        folds: how many, at least two.
        seed: of the run.
        ends: where validation begins, and ends, among the rest.
        shuffled: gives a random permutation of so many, of the run's seed.

    Raises:
        UsageError: there are fewer rows, or groups of rows that belong together, than folds.
    """
    partition = np.random.default_rng([_FOLDS_SEED, folds]).permutation
    whole = Ordered.at_random(together, rows, partition)
    if len(whole.starts) < folds:
        raise UsageError(
            f"folds {folds}: there are {len(whole.starts):,} impressions, or groups of those that "
            "keep_together keeps together"
        )
    parts = whole.cut([round(rows * fold / folds) for fold in range(1, folds)])
    test = np.sort(parts[seed % folds])
    stays = np.setdiff1d(np.arange(rows), test)
    rest = Ordered.at_random(None if together is None else together[stays], len(stays), shuffled)
    train, valid, *_ = rest.cut(ends(len(stays)))
    return [stays[train], stays[valid], test]


def moments_of(how: Sequence[Any], first: float, last: float) -> list[float]:
    """When validation and test begin, or test alone.

    Args:
        how: what ``eval_args`` split TIME is: one or two moments, or three shares of the time from
            the first to the last impression.
        first: time of the first impression.
        last: of the last one.

    Raises:
        UsageError: they don't rise, or have no impression before or after them.
    """
    if len(how) == 3:
        shares = np.cumsum(how) / sum(how)
        moments = [first + (last - first) * float(share) for share in shares[:2]]
        return moments[1:] if how[1] == 0 else moments
    moments = [at for at in map(moment_of, how) if at is not None]
    if moments != sorted(set(moments)):
        raise UsageError(f"eval_args split TIME: validation begins before test, got {list(how)}")
    for given, at in zip(how, moments, strict=True):
        if not first < at <= last:
            raise UsageError(
                f"eval_args split TIME: {given} has impressions on one side only. They are from "
                f"{in_words(first)} to {in_words(last)}; dates are for times in seconds since 1970"
            )
    return moments


def in_words(time: float) -> str:
    """A time as a date, where it may be seconds since 1970, else as a number."""
    if _FIRST_DATE <= time < _LAST_DATE:
        return datetime.fromtimestamp(time, UTC).isoformat(" ").removesuffix("+00:00")
    return f"{time:.15g}"


def with_tuning_part(
    positions: NDArray[np.int64], part: Mapping[str, Any], test: int
) -> tuple[NDArray[np.int64], int]:
    """The order in which to split impressions of which some are reserved for tuning.

    Those are a random share of D by a seed of their own. A trial has nothing else; a run of the
    comparison draws test, the last rows of its order, from the others and may train and validate
    on all that is left.

    Args:
        positions: of the impressions of D, in the random order of the run's seed, ``[D]``.
        part: config ``tuning_part``: ``share``, ``seed`` and ``role``.
        test: impressions of test that a run of the comparison has.

    Returns:
        Indices into ``positions``, and from how many of them test is drawn.
    """
    kept = min(round(part["share"] * len(positions)), len(positions) - test)
    # Another stream than that of impression_sample, whose seed may be the same.
    rng = np.random.default_rng([part["seed"], 1])
    for_tuning = np.isin(positions, np.sort(positions)[rng.permutation(len(positions))[:kept]])
    if part["role"] == "trial":
        return np.flatnonzero(for_tuning), kept
    others = np.flatnonzero(~for_tuning)
    tested = others[len(others) - test :]
    rest = np.delete(np.arange(len(positions)), tested)
    return np.concatenate([rest, tested]), len(others)
