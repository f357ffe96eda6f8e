"""Runs one small training after another in one process and one folder, and then one of many epochs.

After each run, and after each epoch of the long one, it counts open handles, takes the memory that
the process has and the CPU time that has gone by. Each of the six series is flat or grows: see
``Series``. Nothing collects garbage in between, so that handles which only a collection would close
count as open.

    python scripts/long_runs.py                        1,000 runs, and one of 200 epochs
    python scripts/long_runs.py --runs=300 --model=DeepFM

Ends with 1 where a series grows.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import theilslopes

from recbole_escm2.output import csv_text, write_whole
from recbole_escm2.quick_start import run

FILE = Path(__file__).parent.parent / "results" / "reliability" / "long_runs.csv"
COLUMNS = ("of", "number", "handles", "memory_mib", "cpu_seconds")
#: By how much each may grow from first to last: handles, and shares of the median.
ALLOWED = {"handles": 2.0, "memory_mib": 0.05, "cpu_seconds": 0.10}
#: The share of runs or epochs at the beginning that count for nothing: what is loaded then stays.
WARM_UP = 0.1


class Series(NamedTuple):
    """What one figure did over all runs, or over all epochs of one.

    Its growth is Theil and Sen's slope (the median of the slopes of all pairs) times the number of
    runs, those of the warm-up left out. It is flat where that is at most two handles, 5% of the
    median of memory, or 10% of that of CPU time.
    """

    of: str
    figure: str
    count: int
    median: float
    most: float
    growth: float

    @property
    def is_flat(self) -> bool:
        """Whether it grows by no more than is allowed."""
        allowed = ALLOWED[self.figure]
        return self.growth <= (allowed if self.figure == "handles" else allowed * self.median)


def series(lines: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Each figure of runs and of epochs, from lines as the CSV file has them."""
    found = []
    for of in dict.fromkeys(line["of"] for line in lines):
        own = [line for line in lines if line["of"] == of]
        counted = own[int(len(own) * WARM_UP) :]
        for figure in ALLOWED:
            values = np.array([float(line[figure]) for line in counted])
            growth = float(theilslopes(values).slope) * len(values)
            most = float(values.max())
            found.append(Series(of, figure, len(own), float(np.median(values)), most, growth))
    return found


def handles() -> int:
    """How many files, sockets and pipes this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # one of them is that of the listing


def memory() -> float:
    """MiB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Meter:
    """Takes the figures, each time with the CPU seconds since the time before."""

    def __init__(self, of: str) -> None:
        self.of = of
        self.lines: list[dict[str, Any]] = []
        self._before = time.process_time()

    def take(self) -> None:
        """One more line."""
        now = time.process_time()
        figures = (handles(), round(memory(), 2), round(now - self._before, 4))
        values = (self.of, len(self.lines) + 1, *figures)
        self.lines.append(dict(zip(COLUMNS, values, strict=True)))
        self._before = time.process_time()


class _EachEpoch(logging.Handler):
    """Takes a line whenever the log tells of an epoch."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def emit(self, record: logging.LogRecord) -> None:
        if re.match(r"epoch \d+ train ", record.getMessage()):
            self._meter.take()


def write_data(folder: Path, rows: int) -> None:
    """Made-up impressions as the atomic files of a data set ``small``."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(40, size=rows), rng.integers(30, size=rows)
    click = rng.random(rows) < 0.2 + 0.5 * (item % 3 == 0)
    conversion = click & (rng.random(rows) < 0.3 + 0.4 * (user % 2))
    lines = ["user_id:token\titem_id:token\tclick:float\tconversion:float"]
    values = zip(user, item, click, conversion, strict=True)
    lines += [f"u{u}\ti{i}\t{int(o)}\t{int(r)}" for u, i, o, r in values]
    (folder / "small").mkdir(parents=True)
    (folder / "small" / "small.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(
    folder: Path, runs: int, epochs: int, given: Mapping[str, str]
) -> Iterable[dict[str, Any]]:
    """The lines of some runs of one epoch, and those of one run of some epochs.

    Args:
        folder: for data and results.
        runs: how many.
        epochs: of the run that follows them.
        given: further settings, as text.
    """
    write_data(folder / "data", rows=600)
    settings = {
        **{"model": "ESCM2_DR", "data_path": str(folder / "data"), "dataset": "small"},
        **{"output_dir": str(folder / "output"), "state": "error", "show_progress": "False"},
        **{"embedding_size": "4", "mlp_hidden_size": "[8]", "train_batch_size": "200", **given},
    }
    model, dataset = settings.pop("model"), settings.pop("dataset")
    meter = Meter("run")
    for number in range(runs):
        run(model, dataset, command_line={**settings, "epochs": "1"})
        meter.take()
        if (number + 1) % 50 == 0:
            print(f"{number + 1} runs: {meter.lines[-1]}", file=sys.stderr, flush=True)
    yield from meter.lines
    of_epochs = Meter("epoch")
    handler = _EachEpoch(of_epochs)
    logging.getLogger().addHandler(handler)
    try:
        long = {**settings, "epochs": str(epochs), "stopping_step": str(epochs)}
        run(model, dataset, command_line=long)
    finally:
        logging.getLogger().removeHandler(handler)
    yield from of_epochs.lines


def main() -> int:
    """Measure, write the figures down, and say of each whether it is flat."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--model", default="ESCM2_DR")
    parser.add_argument("--file", type=Path, default=FILE, help="where the figures go")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        given = {"model": asked.model}
        lines = list(measured(Path(name), asked.runs, asked.epochs, given))
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(asked.file, csv_text(COLUMNS, lines))
    found = series(lines)
    for one in found:
        print(
            f"{one.count} {one.of}s, {one.figure}: median {one.median:.4g}, most {one.most:.4g}, "
            f"growth {one.growth:+.4g}: {'flat' if one.is_flat else 'GROWS'}"
        )
    return int(not all(one.is_flat for one in found))


if __name__ == "__main__":
    sys.exit(main())
