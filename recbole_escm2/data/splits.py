"""What a seed draws of a data set, and impressions that are reserved for tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.errors import UsageError


def part_names(config: Any) -> list[str] | None:
    """The names that config ``benchmark_filename`` has for train, validation and test.

    Returns:
        None where a data set isn't split by its files.

    Raises:
        UsageError: they aren't three.
    """
    names: list[str] | None = config["benchmark_filename"]
    if names is not None and (not isinstance(names, list) or len(names) != 3):
        raise UsageError(
            "benchmark_filename must be a list of three names, for train, validation and test, "
            f"got {names!r}"
        )
    return names


def seed_draws(config: Any, presplit: bool) -> str:
    """What differs between two seeds, besides what training itself draws.

    Args:
        config: whose ``eval_args`` say how D is split.
        presplit: whether the source has parts of its own: files, or Ali-CCP's test.

    Returns:
        ``split``: each seed scores other test impressions of one D. ``weights``: the test
        impressions are the same for every seed, by the files or by time.
    """
    by_time = config["eval_args"]["order"] == "TO" or "TS" in (config["eval_args"]["split"] or ())
    return "weights" if presplit or by_time else "split"


def check_tuning_part(config: Any, presplit: bool, share: float) -> None:
    """Whether a share of the impressions can be reserved for tuning.

    Raises:
        UsageError: not by this split, or not so many; the message says what can be.
    """
    eval_args = config["eval_args"]
    ratios = eval_args["split"].get("RS") if isinstance(eval_args["split"], dict) else None
    grouped = str(eval_args["group_by"]).lower() != "none"
    if seed_draws(config, presplit) == "weights" or grouped or not isinstance(ratios, list):
        raise UsageError(
            "impressions that no seed tests on can be reserved for tuning only where impressions "
            "are split at random by ratio (eval_args split RS, order RO, no group_by), got "
            f"{eval_args['split']}, order {eval_args['order']}, group_by {eval_args['group_by']}"
        )
    test = ratios[-1] / sum(ratios)
    if test >= 1 - share:
        raise UsageError(
            f"tuning_share {share:g} leaves {1 - share:g} of the impressions to draw test from, "
            f"and eval_args tests on {test:g} of them: tuning_share must be less than {1 - test:g}"
        )


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
