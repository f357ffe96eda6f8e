"""Loading atomic files: ours against stock RecBole's, in time and in memory.

    python perf/atomic_load.py [--rows N] [--repeats R] [--out FILE]

What is timed is the two calls that give the splits, ``Dataset(config)`` and ``.build()`` (at random
80/10/10), on one .inter file of 25 token columns (``user_id``, ``item_id`` and 23 context fields of
3 to 100,000 ids, ids drawn with a probability about in proportion to 1/rank) and two labels:

* first: ``EntireSpaceDataset`` without a store, so that the file is read and the store is written;
* second: ``EntireSpaceDataset`` with the store that the first has left. It maps the rows without
  reading them, apart from the labels: what reading them costs is in ``loader.py``;
* stock: RecBole's own ``Dataset``, which reads the file every time.

Each is a process of its own; imports and the configuration aren't timed, the file is in the page
cache. Memory is the process's greatest resident set minus the resident set after the imports; pages
of memory-mapped files count.

Goals: first at least 10 times as fast as stock, second at least 100 times, the first's memory at
most an eighth of stock's. Nothing is asserted.

The other benchmarks of RecBole beside ours take the data and the helpers from here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import machine, markdown_table, ratios, run_json

FIELDS = {
    "user_id": 100_000,
    "item_id": 50_000,
    # 23 sizes in geometric progression
    **{f"context_{n:02}": round(3 * (100_000 / 3) ** (n / 22)) for n in range(23)},
}
CLICK_RATE, CONVERSION_RATE = 0.04, 0.1  # of impressions, and of clicks
SEED = 2024
_EFFECT = 0.25  # standard deviation of one id's effect on a logit: 25 of them make about 1

Contenders = Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]]


# --------------------------------------------------------------------------- data


def write_once(cache: Path, rows: int) -> str:
    """The name of the data set of a size in ``cache``, a data_path; made if it isn't there."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    name = f"contexts-{rows}"
    path = cache / name / f"{name}.inter"
    if path.is_file():
        return name
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)
    columns = {}
    click_logit, conversion_logit = generator.logistic(size=rows), generator.logistic(size=rows)
    for field, size in FIELDS.items():
        # The logarithm of the rank is uniform; which ids are the frequent ones is left to chance.
        ids = generator.permutation(size)[(size ** generator.random(rows)).astype(np.int64) - 1]
        for logit in (click_logit, conversion_logit):
            logit += _EFFECT * generator.standard_normal(size)[ids]
        columns[field] = ids.astype(np.int32)
    # A threshold on logit + logistic noise is a draw from the sigmoid of logit - threshold.
    click = click_logit > np.quantile(click_logit, 1 - CLICK_RATE)
    wanted = np.quantile(conversion_logit[click], 1 - CONVERSION_RATE)
    columns["click"] = click.astype(np.int32)
    columns["conversion"] = (click & (conversion_logit > wanted)).astype(np.int32)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        kinds = (f"{c}:{'token' if c in FIELDS else 'float'}" for c in columns)
        file.write(("\t".join(kinds) + "\n").encode())
        csv.write_csv(
            pa.table(columns), file, csv.WriteOptions(include_header=False, delimiter="\t")
        )
    partial.replace(path)  # a run that was stopped leaves no half a file under the name
    return name


def configuration(arguments: argparse.Namespace, store: str = "store", **settings: Any) -> Any:
    """A configuration of ours on the data set, which RecBole's own classes take as well.

    Args:
        arguments: ``rows`` and ``cache``.
        store: folder of the store inside the cache.
        settings: others.
    """
    from recbole_escm2.config import Config

    name = f"contexts-{arguments.rows}"
    folders = {"data_path": str(arguments.cache), "store_dir": str(arguments.cache / store)}
    return Config("DeepFM", name, config_dict={**folders, "task": "ctr", **settings})


def stock_dataset(config: Any) -> Any:
    """RecBole's own data set, whose one label is the click; the seed is set for its split."""
    from recbole.data.dataset import Dataset
    from recbole.utils import init_seed

    from recbole_escm2.config import restore_numpy_names

    restore_numpy_names()
    config["LABEL_FIELD"] = config["CLICK_FIELD"]
    init_seed(config["seed"], config["reproducibility"])
    return Dataset(config)


# --------------------------------------------------------------------------- a script


def parse(text: str, rows: int, repeats: int = 3, **others: tuple[int, str]) -> argparse.Namespace:
    """The arguments of a script.

    Args:
        text: its docstring.
        rows: the default.
        repeats: the default.
        others: whole numbers with a default and a help text, by name.
    """
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=rows, help="impressions (%(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds (%(default)s)")
    parser.add_argument("--out", type=Path, help="a file for the table, besides standard output")
    parser.add_argument(
        "--cache",
        type=lambda text: Path(text).absolute(),
        default=Path(__file__).absolute().parent / ".cache",
        help="where data is kept (%(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="OMP_NUM_THREADS of every contender; 0: as it is set. Where other processes want the "
        "cores too, threads of torch wait for one another, and 1 disturbs less",
    )
    for name, (default, meaning) in others.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (%(default)s)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(script: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one contender in a process of its own; what it prints as JSON."""
    here = ("run", "out", "repeats", "threads")
    passed = {key: value for key, value in vars(arguments).items() if key not in here}
    flags = [flag for key, value in passed.items() for flag in (f"--{key}", value)]
    print(f"{Path(script).stem}: {name}", file=sys.stderr, flush=True)
    env = {"OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else None
    return run_json(sys.executable, script, "--run", name, *flags, env=env)


def publish(text: str, arguments: argparse.Namespace) -> None:
    """Print a report with what it was measured on, and write it into a file if one is named."""
    packages = []
    for package in ("recbole", "torch", "numpy", "pandas", "pyarrow", "scikit-learn"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    here = machine()
    where = f"{here['processor']}, {here['cores']} cores, Python {here['python']}"
    if arguments.threads:
        where += f", OMP_NUM_THREADS={arguments.threads}"
    text = f"{text}\n\n{where}; {', '.join(packages)}\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


def median(rounds: Iterable[Mapping[str, float]], name: str) -> float:
    """Of what a contender measured over the rounds."""
    return statistics.median(measured[name] for measured in rounds)


def span(three: tuple[float, float, float], decimals: int = 1) -> str:
    """Median, least and greatest as text."""
    middle, least, greatest = (f"{value:.{decimals}f}" for value in three)
    return f"{middle} ({least} to {greatest})"


class Memory:
    """Resident memory of this process above what it was when this was made, in MB; on Linux."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget what was greatest until now
        self._before = _resident("VmRSS")

    def peak(self) -> float:
        """The greatest of it so far."""
        return _resident("VmHWM") - self._before


def _resident(key: str) -> float:
    # getrusage's ru_maxrss would begin with that of the process that started this one.
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024 / 1e6


# --------------------------------------------------------------------------- contenders


def _import_all() -> None:
    """What a load would otherwise import on its way."""
    for module in ("recbole.data.dataset", "recbole_escm2.data.sources.atomic"):
        importlib.import_module(module)


def _load(config: Any, make: Callable[[Any], Any]) -> dict[str, Any]:
    _import_all()
    memory = Memory()
    start = time.perf_counter()
    parts = make(config).build()
    seconds = time.perf_counter() - start
    peak = memory.peak()
    return {"seconds": seconds, "peak": peak, "rows": [len(part) for part in parts]}


def first(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours, which reads the file and writes a store."""
    shutil.rmtree(arguments.cache / "fresh", ignore_errors=True)
    return second(arguments)


def second(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours, on the store that the first left."""
    from recbole_escm2.data import EntireSpaceDataset

    return _load(configuration(arguments, "fresh"), EntireSpaceDataset)


def stock(arguments: argparse.Namespace) -> dict[str, Any]:
    """RecBole's own."""
    return _load(configuration(arguments), stock_dataset)


def imports(arguments: argparse.Namespace) -> dict[str, Any]:
    """Nothing but the imports and a configuration: the resident set that the others start from."""
    start = time.perf_counter()
    _import_all()
    configuration(arguments)
    return {"seconds": time.perf_counter() - start, "resident": _resident("VmRSS")}


CONTENDERS: Contenders = {"first": first, "second": second, "stock": stock, "imports": imports}
_NAMES = {
    "first": "recbole_escm2, first load",
    "second": "recbole_escm2, second load",
    "stock": "RecBole",
}


def main() -> None:
    """Measure and report, or be one contender."""
    arguments = parse(__doc__, rows=1_000_000)
    if arguments.run:
        print(json.dumps(CONTENDERS[arguments.run](arguments)))
        return
    name = write_once(arguments.cache, arguments.rows)
    size = (arguments.cache / name / f"{name}.inter").stat().st_size
    measure(__file__, "imports", arguments)  # into the page cache
    start = measure(__file__, "imports", arguments)
    rounds = [
        {contender: measure(__file__, contender, arguments) for contender in _NAMES}
        for _ in range(arguments.repeats)
    ]
    seconds = [{name: measured[name]["seconds"] for name in _NAMES} for measured in rounds]
    peaks = [{name: measured[name]["peak"] for name in _NAMES} for measured in rounds]
    table = markdown_table(
        ["", "seconds", "RecBole's time / its", "peak MB", "RecBole's peak / its"],
        [
            [
                shown,
                f"{median(seconds, name):.3f}",
                span(ratios(seconds, "stock", name)),
                f"{median(peaks, name):,.0f}",
                span(ratios(peaks, "stock", name)),
            ]
            for name, shown in _NAMES.items()
        ],
    )
    publish(
        f"Atomic file of {arguments.rows:,} rows, {len(FIELDS)} token columns and two labels "
        f"({size / 1e6:.0f} MB). Medians of {arguments.repeats} rounds; ratios: median (least to "
        f"greatest) over the rounds. Imports (not counted): {start['seconds']:.1f} s, "
        f"{start['resident']:.0f} MB.\n\n{table}",
        arguments,
    )


if __name__ == "__main__":
    main()
