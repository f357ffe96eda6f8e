"""A simulator of Ali-CCP's raw files, with the true probabilities beside them.

Ali-CCP needs a login and may not be passed on. Files in its format, of any size, let everything
that reads and learns from it be tried without it; and since the truth is known, they show what the
real data can't: how far a model is from the CVR over the entire space. Nobody is in them, and
numbers measured on them say nothing about Ali-CCP.
"""

from __future__ import annotations

import contextlib
import numbers
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_escm2.data.ali_ccp import raw
from recbole_escm2.errors import UsageError, system_message
from recbole_escm2.limits import read_json
from recbole_escm2.output import alone, beside, write_json

if TYPE_CHECKING:
    from recbole_escm2.data.ali_ccp.draw import Drawn, Draws

#: Takes the name of a file, how many of its lines are written, and how many it will have.
Progress = Callable[[str, int, int], None]

_FILES = (
    *(raw.truth_name(split) for split in raw.SPLITS),
    *(raw.common_name(split) for split in raw.SPLITS),
    *(raw.skeleton_name(split) for split in raw.SPLITS),
)
#: Content of SIMULATION_FILE while the files that it lists get their names or are removed.
_ANNOUNCED = f"{raw.SIMULATION_FILE}.unfinished"


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
        interaction_share: share of the variance of each logit (of the click's without the position)
            that is made by products of a user's and an item's factors instead of sums of effects.
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
    interaction_share: float = 0.0
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
        _check_number("interaction_share", self.interaction_share, 0, 1)
        _check_number("rows_per_user", self.rows_per_user, 1, 1e9)
        _check_whole("behaviours", self.behaviours, 0, 20_000)
        if self.users is not None:
            _check_whole("users", self.users, 1, 10**7)
        if self.items is not None:
            _check_whole("items", self.items, 100, 10**7)
        _check_between("test_share", self.test_share)
        _check_number("conversions_without_click", self.conversions_without_click, 0, 1)

    def settings(self) -> dict[str, Any]:
        """What its draws depend on, by name; an interaction that there isn't is left out."""
        settings = asdict(self)
        if not self.interaction_share:
            del settings["interaction_share"]
        return settings

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
    simulation: Simulation, out: str | Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the raw files, the truth and ``simulation.json`` into a folder.

    ``truth_SPLIT.npy`` is float32 ``[rows, 3]``: row n has raw.TRUTH_COLUMNS of line n of the
    skeleton. Files get their names when they are whole, and ``simulation.json``, which says that
    there is everything, comes last. Simulated files that the folder holds stay until the new ones
    are whole. Of several processes one simulates at a time. Needs memory for the vocabularies and
    24 bytes a common row, whatever the number of impressions.

    Args:
        simulation: what to simulate.
        out: the folder; made if it isn't there.
        progress: called now and then.

    Returns:
        The content of ``simulation.json``: ``note``, ``settings``, ``vocabulary``, ``splits`` (of
        each: rows, clicks, conversions, conversions without click, potential conversions, common
        rows) and ``bytes`` by file.

    Raises:
        UsageError: numba isn't installed, the folder can't be written to or holds raw files that
            aren't simulated, or ``conversions_without_click`` can't be had.
    """
    draws = draws_of(simulation)
    out = Path(out)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        place = out.absolute()
        with alone(place.with_name(f".{place.name}.lock"), f"simulating into {place}"):
            _check(out)
            with beside(out / raw.SIMULATION_FILE) as made:
                made.mkdir()
                content = _write(draws, made, progress)
                _clear(out)
                _publish(made, out, content)
            return content
    except OSError as error:
        raise UsageError(system_message(error)) from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds the simulation
                out.rmdir()


def draws_of(simulation: Simulation) -> Draws:
    """What a simulation draws.

    Raises:
        UsageError: numba isn't installed or can't keep what it compiles, or
            ``conversions_without_click`` can't be had.
    """
    try:
        from recbole_escm2.data.ali_ccp.draw import Draws
    except ImportError as error:
        raise UsageError(f"simulating needs numba: pip install numba ({error})") from error
    except RuntimeError as error:  # numba's, as it is imported
        raise UsageError(
            "simulating needs a folder for what is compiled, and neither the package's nor the "
            f"home's can be written into: name one with NUMBA_CACHE_DIR ({error})"
        ) from error
    return Draws(simulation)


def _write(draws: Draws, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Write all files into an empty folder; returns what ``simulation.json`` holds."""
    for split in raw.SPLITS:
        for kind, name_of in raw.NAMES.items():
            _write_text(draws, kind, split, folder / name_of(split), progress)
    return {**draws.about(), "bytes": {name: (folder / name).stat().st_size for name in _FILES}}


def _write_text(draws: Draws, kind: str, split: str, path: Path, progress: Progress | None) -> None:
    """Write a file, and with impressions their truth."""
    total, done = draws.rows(kind, split), 0
    truth_path = path.with_name(raw.truth_name(split)) if kind == "skeleton" else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        truth = stack.enter_context(truth_path.open("wb")) if truth_path else None
        if truth:
            shape = (total, len(raw.TRUTH_COLUMNS))
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(truth, header)
        for drawn in draws.of(kind, split):
            file.write(_text(drawn, kind))
            if truth:
                truth.write(drawn.truth.data)
            done += len(drawn.key)
            if progress:
                progress(path.name, done, total)


def _text(drawn: Drawn, kind: str) -> memoryview:
    """Lines of a raw file."""
    from recbole_escm2.data.ali_ccp.draw import VALUES

    def joined(*columns: Any, by: str) -> Any:
        return pc.binary_join_element_wise(*columns, by)

    def digits(numbers: np.ndarray) -> Any:
        return pa.array(numbers, pa.int64()).cast(pa.string())

    names = pa.array([field.name for field in raw.FIELDS]).take(pa.array(drawn.field))
    values = pa.array(VALUES).take(pa.array(drawn.value))
    name_and_id = joined(names, digits(drawn.id), by=raw.ID_SEPARATOR.decode())
    features = joined(name_and_id, values, by=raw.VALUE_SEPARATOR.decode())
    ends = pa.array(np.append(0, drawn.size.cumsum()), pa.int32())
    lists = pc.binary_join(pa.ListArray.from_arrays(ends, features), raw.FEATURE_SEPARATOR.decode())
    columns = [pa.array(drawn.key).cast(pa.string()), digits(drawn.size), lists]
    if kind == "skeleton":
        columns = [*map(digits, (drawn.sample, drawn.click, drawn.purchase)), *columns]
    lines = joined(joined(*columns, by=","), "", by="\n")
    return memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()]


def _check(out: Path) -> None:
    """Make sure that a folder's raw files are an earlier simulation's.

    At any moment, a raw file there is one that SIMULATION_FILE or _ANNOUNCED lists.

    Raises:
        UsageError: there is a file that no simulation has written.
    """
    listed = _listed(out / raw.SIMULATION_FILE) or _listed(out / _ANNOUNCED)
    for name in _FILES:
        if (out / name).exists() and listed.get(name) != (out / name).stat().st_size:
            raise UsageError(
                f"{out / name} isn't a file that a simulation has written: simulate into another"
                " folder, or move the raw files away"
            )


def _clear(out: Path) -> None:
    """Remove what an earlier simulation has left in a folder.

    Raises:
        UsageError: as :func:`_check`.
    """
    _check(out)
    if (out / raw.SIMULATION_FILE).exists():
        os.replace(out / raw.SIMULATION_FILE, out / _ANNOUNCED)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    (out / _ANNOUNCED).unlink(missing_ok=True)


def _listed(path: Path) -> dict[str, int]:
    """Sizes of the files that a simulation has written or was about to name."""
    try:
        sizes = read_json(path)["bytes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _publish(made: Path, out: Path, content: dict[str, Any]) -> None:
    """Move the files to their places; the file that says that they are complete is the last."""
    write_json(out / _ANNOUNCED, content)
    for name in _FILES:
        os.replace(made / name, out / name)
    os.replace(out / _ANNOUNCED, out / raw.SIMULATION_FILE)
