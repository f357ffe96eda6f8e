"""Write results/coat-groups.md: where on Coat a CVR model errs, by group of impressions.

A benchmark with `by` (scripts/results/coat-groups-rows.yaml; nothing is tuned here), and then the
same question with other thresholds and against chance, from the predictions that its runs keep.
Coat's files belong in dataset/coat/raw/.

    python scripts/coat_groups.py --jobs=2
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pages import data_table, finished_report, first_data, markdown
from scipy.stats import norm

from recbole_escm2.evaluator.clusters import cluster_variance
from recbole_escm2.evaluator.groups import quantiles
from recbole_escm2.output import versions, write_whole

Array = NDArray[Any]

HERE = Path(os.path.relpath(Path(__file__).parent)) / "results"
RAW = Path("dataset/coat/raw")
#: Numbers of groups that the lowest and the highest are taken of.
THRESHOLDS = (2, 4, 10, 20)
HALVES = 10_000
PAGE = """\
# {title}

Written by `python scripts/coat_groups.py`, from the benchmark

```bash
{command}
```

{above}
![By propensity](coat-groups/groups-propensity.png)

{groups}

All metrics of all groups are in [groups.csv](coat-groups/groups.csv).

## The same with other thresholds

CVR_PCOC_ES of the least likely and of the most likely impressions, and their ratio, with 95 %
intervals: of the influence of each impression on the logarithm, summed by user and by item, and of
the seeds.

{thresholds}

The same by clicks of the item, in train and validation:

{items}

Less that of {base}, halves by propensity (ratio of the ratios, on the same impressions):

{paired}

## Is it the propensity, or whom a coat is for?

Pairs of a person and a coat for the other sex, of which {other} are in test with {clicks} clicks,
against the others; then, of those others alone, the less likely half against the more likely one:

{sexes}

Less that of {base}, halves of one's own sex by propensity, likewise:

{own_sex}

## Against chance

How often one of {halves:,} random halves of the coats, of the people or of the pairs has PCOCs that
lie as far apart as the two halves by propensity:

{chance}

## The data, as the first seed splits it

{data}

Versions: {versions}.
"""


@dataclass(frozen=True)
class Scored:
    """What the runs of a row predict for the test pairs.

    Attributes:
        pcvr: ``[seeds, pairs]``.
        label: potential conversion, ``[pairs]``.
        user: number of the user, ``[pairs]``.
        item: likewise of the item.
    """

    pcvr: Array
    label: Array
    user: Array
    item: Array

    def pcoc(self, rows: Array) -> float:
        """Mean prediction over mean label of some pairs, in the mean over seeds."""
        return float(self.pcvr[:, rows].mean() / self.label[rows].mean())

    def apart(self, low: Array, high: Array) -> tuple[float, Array]:
        """The logarithm of one PCOC over the other, and the influence of each pair on it.

        Args:
            low: mask of the pairs of the first, ``[pairs]``.
            high: of the second.
        """
        influence = self._influence(low) - self._influence(high)
        return float(np.log(self.pcoc(low) / self.pcoc(high))), influence

    def _influence(self, rows: Array) -> Array:
        """Of each pair on the logarithm of the PCOC of some pairs, ``[pairs]``."""
        predicted, label = self.pcvr.mean(axis=0) * rows, self.label * rows
        return np.asarray(predicted / predicted.sum() - label / label.sum())

    def level(self, rows: Array) -> str:
        """The PCOC of some pairs with its interval, as text."""
        seeds = np.log(self.pcvr[:, rows].sum(axis=1) / self.label[rows].sum())
        return self.ends(float(np.log(self.pcoc(rows))), self._influence(rows), seeds)

    def by_seed(self, low: Array, high: Array) -> Array:
        """The same logarithm of each seed, ``[seeds]``."""
        sums = [self.pcvr[:, rows].sum(axis=1) / self.label[rows].sum() for rows in (low, high)]
        return np.log(sums[0] / sums[1])

    def ends(self, value: float, influence: Array, seeds: Array) -> str:
        """A ratio with its interval, as text."""
        rows = cluster_variance(influence, (self.user + 1, self.item + 1)).variance
        spread = float(np.var(seeds, ddof=1)) / len(seeds) if len(seeds) > 1 else 0.0
        half = norm.ppf(0.975) * np.sqrt(rows + spread)
        low, middle, high = np.exp([value - half, value, value + half])
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def scored(row: Mapping[str, Any]) -> Scored:
    """The predictions that the runs of a row of report.json have kept."""
    frames = [
        pd.read_parquet(Path(run["run_dir"]) / "predictions-test.parquet").set_index("row")
        for run in row["runs"].values()
    ]
    first = frames[0]
    assert all(frame.index.equals(first.index) for frame in frames), "one test set"
    return Scored(
        np.stack([frame["pcvr"].to_numpy(np.float64) for frame in frames]),
        first["potential_conversion"].to_numpy(np.float64),
        first["user_id"].to_numpy(np.int64),
        first["item_id"].to_numpy(np.int64),
    )


def with_thresholds(rows: Mapping[str, Scored], values: Array) -> str:
    """A table of the lowest and the highest group by some values of the pairs."""
    lines = []
    for count in THRESHOLDS:
        group = np.searchsorted(quantiles(values, count), values, side="left")
        low, high = group == 0, group == count - 1
        for label, own in rows.items():
            ratio, influence = own.apart(low, high)
            numbers = [own.level(end) for end in (low, high)]
            ends = own.ends(ratio, influence, own.by_seed(low, high))
            lines.append([f"{label}, 1 of {count}", f"{low.sum():,}", *numbers, ends])
    return markdown(["row and groups", "pairs in the lowest", "lowest", "highest", "ratio"], lines)


def paired(rows: Mapping[str, Scored], low: Array, high: Array, first: str) -> str:
    """Each row's ratio between two groups less that of one row, on the same pairs."""
    base, influence = rows[first].apart(low, high)
    lines = []
    for label, own in rows.items():
        if label != first:
            ratio, theirs = own.apart(low, high)
            seeds = own.by_seed(low, high) - rows[first].by_seed(low, high)
            lines.append([label, own.ends(ratio - base, theirs - influence, seeds)])
    return markdown(["row", f"ratio over that of {first}"], lines)


def against_chance(rows: Mapping[str, Scored], values: Array) -> str:
    """How often random halves lie as far apart as those by some values."""
    rng = np.random.default_rng(0)
    high = values > np.median(values)
    lines = []
    for label, own in rows.items():
        seen = abs(own.apart(~high, high)[0])
        shares = []
        for ids in (own.item, own.user, np.arange(len(values))):
            predicted = np.bincount(ids, own.pcvr.mean(axis=0))
            positive = np.bincount(ids, own.label)
            further = 0
            for _ in range(HALVES):
                half = rng.permutation(len(predicted)) < len(predicted) // 2
                one = predicted[half].sum() / positive[half].sum()
                other = predicted[~half].sum() / positive[~half].sum()
                further += abs(np.log(one / other)) >= seen
            shares.append(f"{further / HALVES:.2%}")
        lines.append([label, f"{np.exp(own.apart(~high, high)[0]):.2f}", *shares])
    return markdown(["row", "ratio", "coats", "people", "pairs"], lines)


def clicks_of_items(own: Scored) -> Array:
    """How often each pair's item was chosen outside test, ``[pairs]``."""
    chosen = np.loadtxt(RAW / "train.ascii") > 0
    chosen[own.user, own.item] = False
    return chosen.sum(axis=0)[own.item]


def is_for_others(own: Scored) -> Array:
    """Whether the coat of a pair is made for the other sex, ``[pairs]``."""
    sides = []
    for side in ("user", "item"):
        folder = RAW / "user_item_features"
        names = (folder / f"{side}_features_map.txt").read_text(encoding="utf-8").split("\n")
        column = names.index("gender:men")
        sides.append(np.loadtxt(folder / f"{side}_features.ascii")[:, column])
    return sides[0][own.user] != sides[1][own.item]


def by_sex(rows: Mapping[str, Scored], other: Array, values: Array) -> str:
    """The ratio between pairs for the other sex and the rest, and within the rest by values."""
    lines = []
    half = values > np.median(values[~other])
    for name, low, high in (
        ("other sex and own", other, ~other),
        ("own sex, less and more likely", ~other & ~half, ~other & half),
    ):
        for label, own in rows.items():
            ratio, influence = own.apart(low, high)
            ends = own.ends(ratio, influence, own.by_seed(low, high))
            numbers = [f"{own.pcoc(rows_of):.2f}" for rows_of in (low, high)]
            lines.append([f"{label}, {name}", f"{low.sum():,}", *numbers, ends])
    return markdown(["row and groups", "pairs in the first", "first", "second", "ratio"], lines)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    asked = {
        "benchmark": str(HERE / "coat-groups-rows.yaml"),
        "dataset": "coat",
        "config_files": str(HERE / "coat.yaml"),
    }
    places = {"output_dir": str(arguments.output), "jobs": str(arguments.jobs)}
    report, folder = finished_report({**asked, "name": "results-coat-groups", **places})
    beside = Path("results") / "coat-groups"
    beside.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "groups.csv", beside / "groups.csv")
    picture = folder / "figures" / "groups-propensity.png"
    shutil.copyfile(picture, beside / picture.name)
    rows = {row["label"]: scored(row) for row in report["rows"]}
    first = next(iter(rows.values()))
    chance = np.loadtxt(RAW / "propensities.ascii")[first.user, first.item]
    other, high = is_for_others(first), chance > np.median(chance)
    likely = chance > np.median(chance[~other])
    clicked = np.loadtxt(RAW / "train.ascii")[first.user, first.item] > 0
    heading, above = (HERE / "coat-groups.md").read_text(encoding="utf-8").split("\n", 1)
    shown = (folder / "report.md").read_text(encoding="utf-8")
    sections = shown[shown.index("\n## By ") :].partition("\n\n!")[0].strip()
    options = [f"--{key}={Path(value).as_posix()}" for key, value in asked.items()]
    page = PAGE.format(
        title=heading.removeprefix("# "),
        command=shlex.join(["python", "run_recbole_escm2.py", *options]),
        above=above.strip() + "\n",
        groups=sections,
        thresholds=with_thresholds(rows, chance),
        items=with_thresholds(rows, clicks_of_items(first)),
        base=report["baseline"],
        paired=paired(rows, ~high, high, report["baseline"]),
        own_sex=paired(rows, ~other & ~likely, ~other & likely, report["baseline"]),
        other=f"{other.sum():,}",
        clicks=int(clicked[other].sum()),
        sexes=by_sex(rows, other, chance),
        halves=HALVES,
        chance=against_chance(rows, chance),
        data=data_table({"coat": first_data(report)}),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    write_whole(Path("results") / "coat-groups.md", page)
    print("written to results/coat-groups.md")


if __name__ == "__main__":
    main()
