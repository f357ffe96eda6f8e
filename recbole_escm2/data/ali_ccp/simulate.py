"""A simulator of Ali-CCP's raw files, with the true probabilities beside them.

Ali-CCP needs a login and may not be passed on. Files in its format, of any size, let everything
that reads and learns from it be tried without it; and since the truth is known, they show what the
real data can't: how far a model is from the CVR over the entire space. Nobody is in them, and
numbers measured on them say nothing about Ali-CCP.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_escm2.data.ali_ccp import raw
from recbole_escm2.errors import UsageError
from recbole_escm2.output import lock, write_json

if TYPE_CHECKING:
    from recbole_escm2.data.ali_ccp.draw import Text
    from recbole_escm2.data.ali_ccp.world import Person, World

#: Takes the name of a file, how many of its lines are written, and how many it will have.
Progress = Callable[[str, int, int], None]

_FILES = (
    *(raw.truth_name(split) for split in raw.SPLITS),
    *(raw.common_name(split) for split in raw.SPLITS),
    *(raw.skeleton_name(split) for split in raw.SPLITS),
)
#: Content of SIMULATION_FILE while the files that it lists get their names or are removed.
_ANNOUNCED = f"{raw.SIMULATION_FILE}.unfinished"
_BUFFER_BYTES = 8 * 2**20
_SAMPLE_ROWS = 200_000  # impressions that the intercepts are solved on: 0.3 % of error in a rate
_NOTE = "Simulated, not Ali-CCP: numbers measured on these files say nothing about the real data."


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    To double the impressions with users held equal, double ``rows`` and ``rows_per_user`` and fix
    ``users`` and ``items``.

    Attributes:
        rows: impressions, of train and test together.
        seed: the same one gives the same files, byte for byte.
        click_rate: clicked impressions among all (Ali-CCP: 0.039).
        conversion_rate: conversions among clicked impressions (Ali-CCP: 0.0055).
        selection: strength of the selection bias: the correlation, over impressions, of the click
            logit (without the position, which makes a tenth of its variance and concerns clicks
            only) and the conversion logit. 0 is none.
        rows_per_user: mean number of impressions of a common row; heavy-tailed (Ali-CCP: 58).
        behaviours: mean number of weighted ids that a common row has in the four ``_14`` fields
            (Ali-CCP: about 500). A field doesn't get more than half of its vocabulary, so small
            simulations have fewer.
        users: size of the vocabulary of 101; by default a quarter of the common rows.
        items: size of the vocabulary of 205; by default ``rows``/20, at least 500.
        test_share: share of the rows that goes to test (Ali-CCP: 0.504).
        conversions_without_click: share of the rows with click 0 and purchase 1, a flaw of the
            real data.

    Raises:
        UsageError: a value of the wrong type or out of its range.
    """

    rows: int
    seed: int = 2022
    click_rate: float = 0.04
    conversion_rate: float = 0.005
    selection: float = 0.5
    rows_per_user: float = 58.0
    behaviours: int = 500
    users: int | None = None
    items: int | None = None
    test_share: float = 0.5
    conversions_without_click: float = 1e-6

    def __post_init__(self) -> None:
        _check_whole("rows", self.rows, 2, 10**11)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        _check_between("click_rate", self.click_rate)
        _check_between("conversion_rate", self.conversion_rate)
        _check_number("selection", self.selection, 0, 1)
        _check_number("rows_per_user", self.rows_per_user, 1, 1e9)
        _check_whole("behaviours", self.behaviours, 0, 20_000)
        if self.users is not None:
            _check_whole("users", self.users, 1, 10**7)
        if self.items is not None:
            _check_whole("items", self.items, 100, 10**7)
        _check_between("test_share", self.test_share)
        _check_number("conversions_without_click", self.conversions_without_click, 0, 1)

    def split_rows(self) -> dict[str, int]:
        """Impressions by split, at least one in each."""
        test = min(max(1, round(self.rows * self.test_share)), self.rows - 1)
        return {"train": self.rows - test, "test": test}

    def common_rows(self) -> dict[str, int]:
        """Common rows by split."""
        rows = self.split_rows()
        return {split: max(1, round(n / self.rows_per_user)) for split, n in rows.items()}

    def vocabulary(self) -> tuple[int, int]:
        """Users and items."""
        users = max(1, sum(self.common_rows().values()) // 4)
        items = max(500, self.rows // 20)
        return self.users or min(users, 10**7), self.items or min(items, 10**7)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        raise UsageError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")


def _check_between(name: str, value: Any) -> None:
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fits or not 0 < value < 1:
        raise UsageError(f"{name} must be a number between 0 and 1, got {value!r}")


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        raise UsageError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def simulate(
    simulation: Simulation,
    out: str | Path,
    progress: Progress | None = None,
    unless: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Write the raw files, the truth and ``simulation.json`` into a folder.

    ``truth_SPLIT.npy`` is float32 ``[rows, 3]``: row n has raw.TRUTH_COLUMNS of line n of the
    skeleton. Files get their names when they are whole, and ``simulation.json``, which says that
    there is everything, comes last. Simulated files that the folder holds go first. Needs memory
    for the vocabularies and 24 bytes a common row, whatever the number of impressions.

    Args:
        simulation: what to simulate.
        out: the folder; made if it isn't there.
        progress: called now and then.
        unless: asked once no other process simulates into the folder: whether what such a one has
            left there will do.

    Returns:
        The content of ``simulation.json``: ``note``, ``settings``, ``vocabulary``, ``splits`` (of
        each: rows, clicks, conversions, conversions without click, potential conversions, common
        rows) and ``bytes`` by file.

    Raises:
        UsageError: numba isn't installed, the folder can't be written to or holds raw files that
            aren't simulated, or ``conversions_without_click`` can't be had.
    """
    try:
        from recbole_escm2.data.ali_ccp import draw, world
    except ImportError as error:
        raise UsageError(f"simulating needs numba: pip install numba ({error})") from error
    out = Path(out)
    users, items = simulation.vocabulary()
    behaviours = int(simulation.behaviours)
    world = world.make_world(int(simulation.seed), int(users), int(items))
    person = world.make_person(world, behaviours)
    first = [
        _first_rows(rows, world.size_weights(world, number, commons))
        for number, (rows, commons) in enumerate(
            zip(simulation.split_rows().values(), simulation.common_rows().values(), strict=True)
        )
    ]
    mix, mistaken = _solve(simulation, world, person, first)
    writer = _Writer(world, person, draw.make_text(world), behaviours, progress)
    try:
        out.mkdir(parents=True, exist_ok=True)
        place = out.absolute()
        with lock(place.with_name(f".{place.name}.lock")):
            if unless():
                written: dict[str, Any] = json.loads((out / raw.SIMULATION_FILE).read_text("utf-8"))
                return written
            _clear(out)
            return _write(simulation, writer, out, first, mix, mistaken)
    except OSError as error:
        raise UsageError(f"{error.filename or out}: {error.strerror or error}") from error


def _write(
    simulation: Simulation,
    writer: _Writer,
    out: Path,
    first: list[np.ndarray],
    mix: np.ndarray,
    mistaken: float,
) -> dict[str, Any]:
    """Write all files into a folder without any; returns what ``simulation.json`` holds."""
    try:
        splits = {}
        for number, split in enumerate(raw.SPLITS):
            writer.commons(out, number, len(first[number]) - 1)
            splits[split] = writer.skeleton(out, number, first[number], mix, mistaken)
        content = {
            "note": _NOTE,
            "settings": dataclasses.asdict(simulation),
            "vocabulary": {
                name: int(getattr(writer.world, name))
                for name in ("users", "items", "categories", "shops", "brands", "intentions")
            },
            "splits": splits,
            "bytes": {name: _partial(out / name).stat().st_size for name in _FILES},
        }
        _publish(out, content)
    except BaseException:
        for name in (raw.SIMULATION_FILE, _ANNOUNCED, *_FILES):
            (out / name).unlink(missing_ok=True)
            _partial(out / name).unlink(missing_ok=True)
        raise
    return content


def _first_rows(rows: int, weights: np.ndarray) -> np.ndarray:
    """First impression of each common row, then ``rows``: sizes ≥ 1, the rest by weight."""
    count = len(weights)
    edges = np.concatenate(([0.0], np.cumsum(weights)))
    shares = edges / edges[-1]  # the last one is exactly 1
    return (shares * (rows - count)).astype(np.int64) + np.arange(count + 1)


def _solve(
    simulation: Simulation, world: World, person: Person, first: list[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Coefficients of the logits, and the share of unclicked potential conversions to record.

    Solved on all impressions, or on _SAMPLE_ROWS of them, evenly spaced.
    """
    from recbole_escm2.data.ali_ccp import world

    total = sum(int(edges[-1]) for edges in first)
    size = min(total, _SAMPLE_ROWS)
    # not arange(size) * total // size, which overflows for very many rows
    sampled = np.arange(size) * (total // size) + np.arange(size) * (total % size) // size
    samples = []
    start = 0
    for number, edges in enumerate(first):
        rows = sampled[(sampled >= start) & (sampled < start + edges[-1])] - start
        commons = np.searchsorted(edges, rows, side="right") - 1
        samples.append(world.sample_latents(world, person, number, rows, commons))
        start += int(edges[-1])
    sample = np.concatenate(samples)
    mix = world.mixed(
        sample, simulation.click_rate, simulation.conversion_rate, simulation.selection
    )
    ctr, cvr = world.truth(mix, *sample.T)
    unclicked = float(((1 - ctr) * cvr).mean())
    mistaken = simulation.conversions_without_click / unclicked
    if mistaken > 1:
        raise UsageError(
            f"conversions_without_click must be at most {unclicked:.3g}, the share of impressions"
            " that would convert but aren't clicked at these rates, got"
            f" {simulation.conversions_without_click:g}"
        )
    return mix, mistaken


@dataclass(frozen=True)
class _Writer:
    """Streams files under their partial names."""

    world: World
    person: Person
    text: Text
    behaviours: int
    progress: Progress | None

    def commons(self, out: Path, number: int, count: int) -> None:
        """Write the ``count`` common features of a split."""
        from recbole_escm2.data.ali_ccp import draw

        name = raw.common_name(raw.SPLITS[number])
        line_bytes = draw.common_line_bytes(self.person)
        buffer = np.empty(max(_BUFFER_BYTES, line_bytes), dtype=np.uint8)
        # The order of the real file says nothing about that of the skeleton. Steps of about the
        # golden ratio of a circle meet every line once if step and circle have no common divisor.
        step = max(1, int(count * 0.618))
        while math.gcd(step, count) > 1:
            step += 1
        order = (count, step, count // 3)
        line = 0
        with _partial(out / name).open("wb") as file:
            while line < count:
                size, line = draw.write_commons(
                    self.world,
                    self.person,
                    self.text,
                    number,
                    self.behaviours,
                    order,
                    line,
                    buffer,
                    line_bytes,
                )
                file.write(buffer[:size].data)
                if self.progress:
                    self.progress(name, line, count)

    def skeleton(
        self, out: Path, number: int, first: np.ndarray, mix: np.ndarray, mistaken: float
    ) -> dict[str, int]:
        """Write the impressions of a split and their truth; returns the split's counts."""
        from recbole_escm2.data.ali_ccp import draw

        split = raw.SPLITS[number]
        name = raw.skeleton_name(split)
        rows = int(first[-1])
        line_bytes = draw.skeleton_line_bytes()
        buffer = np.empty(max(_BUFFER_BYTES, line_bytes), dtype=np.uint8)
        truth = np.empty((len(buffer) // 100 + 1, len(raw.TRUTH_COLUMNS)), dtype=np.float32)
        counts = np.zeros(4, dtype=np.int64)
        row = 0
        with (
            _partial(out / name).open("wb") as file,
            _partial(out / raw.truth_name(split)).open("wb") as truth_file,
        ):
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, truth.shape[1])}
            np.lib.format.write_array_header_1_0(truth_file, header)
            while row < rows:
                size, end = draw.write_skeleton(
                    self.world,
                    self.person,
                    self.text,
                    number,
                    self.behaviours,
                    mix,
                    mistaken,
                    first,
                    row,
                    buffer,
                    line_bytes,
                    truth,
                    counts,
                )
                file.write(buffer[:size].data)
                truth_file.write(truth[: end - row].data)
                row = end
                if self.progress:
                    self.progress(name, row, rows)
        clicks, conversions, without_click, potential = map(int, counts)
        return {
            "rows": rows,
            "clicks": clicks,
            "conversions": conversions,
            "conversions_without_click": without_click,
            "potential_conversions": potential,
            "common_rows": len(first) - 1,
        }


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def _clear(out: Path) -> None:
    """Remove what an earlier simulation has left in a folder.

    At any moment, a raw file there is one that SIMULATION_FILE or _ANNOUNCED lists.

    Raises:
        UsageError: there is a file that no simulation has written.
    """
    present = [name for name in _FILES if (out / name).exists()]
    listed = _listed(out / raw.SIMULATION_FILE) or _listed(out / _ANNOUNCED)
    for name in present:
        if listed.get(name) != (out / name).stat().st_size:
            raise UsageError(
                f"{out / name} isn't a file that a simulation has written: simulate into another"
                " folder, or move the raw files away"
            )
    if (out / raw.SIMULATION_FILE).exists():
        os.replace(out / raw.SIMULATION_FILE, out / _ANNOUNCED)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
        _partial(out / name).unlink(missing_ok=True)
    (out / _ANNOUNCED).unlink(missing_ok=True)


def _listed(path: Path) -> dict[str, int]:
    """Sizes of the files that a simulation has written or was about to name."""
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["bytes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _publish(out: Path, content: dict[str, Any]) -> None:
    """Give the files their names; the file that says that they are complete is the last."""
    write_json(out / _ANNOUNCED, content)
    for name in _FILES:
        os.replace(_partial(out / name), out / name)
    os.replace(out / _ANNOUNCED, out / raw.SIMULATION_FILE)
