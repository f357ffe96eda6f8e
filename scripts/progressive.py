"""A model that goes on learning day by day, beside one that was trained once.

A made-up log of some days: what users like of items drifts, and each day brings new items. The
models of the evening before score each day whole (progressive validation: tomorrow is scored, then
learned from), by AUC and log loss of clicks and of conversions of all impressions:

* ``once``: trained on the first day, and never again;
* ``daily``: begins with its weights of the day before (``init_from``) and learns from the last day;
* ``anew``: has the last day alone, and begins from nothing.

    python scripts/progressive.py --days=8 --rows=30000

The tables of users and items are catalogues: they list whoever there was by then, so that an id
that a day lacks keeps its row for the next one. A simulation shows that the way works; how much it
is worth on a real log depends on that log's drift.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score

import recbole_escm2
from recbole_escm2.output import table
from recbole_escm2.quick_start import run

#: Factors of users and items, and how far an item's move in a day (of a standard deviation of 1).
FACTORS, DRIFT = 4, 0.35
WAYS = ("once", "daily", "anew")
SETTINGS = {"train_batch_size": 512, "learning_rate": 0.003, "valid_metric": "CTCVR_LogLoss"}
SCORES = ("CTR_AUC", "CTCVR_AUC", "CTR_LogLoss", "CTCVR_LogLoss")


@dataclass
class Log:
    """Impressions day by day.

    Args:
        rows: a day.
        users: of all days.
        items: of the first day; each later one brings a tenth of them.
        seed: of all that is drawn.
    """

    rows: int
    users: int
    items: int
    seed: int
    listed: int = field(init=False, default=0)

    def days(self) -> Iterator[pd.DataFrame]:
        """A table a day, without end: users and items by token, and labels."""
        draw = np.random.default_rng(self.seed)
        taste = draw.normal(size=(self.users, FACTORS))
        traits, appeal = draw.normal(size=(self.items, FACTORS)), draw.normal(size=self.items)
        while True:
            self.listed = len(appeal)
            user, item = draw.integers(self.users, size=self.rows), self._shown(draw)
            fit = (taste[user] * traits[item]).sum(1) / np.sqrt(FACTORS)
            click = _happens(draw, -1.0 + 1.5 * fit + 0.5 * appeal[item])
            conversion = click & _happens(draw, -0.5 + fit - 0.5 * appeal[item])
            yield pd.DataFrame(
                {
                    "user_id": [f"u{n}" for n in user],
                    "item_id": [f"i{n}" for n in item],
                    "click": click.astype(int),
                    "conversion": conversion.astype(int),
                }
            )
            new = max(1, self.items // 10)
            keep = np.sqrt(1 - DRIFT**2)  # the spread stays what it is
            traits = keep * traits + DRIFT * draw.normal(size=traits.shape)
            traits = np.concatenate([traits, draw.normal(size=(new, FACTORS))])
            appeal = np.concatenate([appeal, draw.normal(size=new)])

    def _shown(self, draw: np.random.Generator) -> Any:
        """The item of each impression of a day; the newest are shown most."""
        age = self.listed - 1 - np.arange(self.listed)
        weight = np.exp(-age / self.items)
        return draw.choice(self.listed, size=self.rows, p=weight / weight.sum())


def _happens(draw: np.random.Generator, logit: Any) -> Any:
    return draw.random(len(logit)) < 1 / (1 + np.exp(-logit))


def write_day(folder: Path, name: str, day: pd.DataFrame, log: Log) -> None:
    """A day as atomic files: a tenth of its rows validates, and is the test that has to be."""
    target = folder / name
    target.mkdir(parents=True)
    labels = {"click": "click:float", "conversion": "conversion:float"}
    header = {"user_id": "user_id:token", "item_id": "item_id:token", **labels}
    tenth = len(day) // 10
    parts = {"train": day[tenth:], "valid": day[:tenth], "test": day[:tenth]}
    for part, rows in parts.items():
        file = target / f"{name}.{part}.inter"
        rows.rename(columns=header).to_csv(file, sep="\t", index=False)
    for kind, count in (("user", log.users), ("item", log.listed)):
        tokens = pd.Series([f"{kind[0]}{n}" for n in range(count)], name=f"{kind}_id:token")
        tokens.to_csv(target / f"{name}.{kind}", sep="\t", index=False)


def scores_of(checkpoint: Path, day: pd.DataFrame) -> dict[str, float]:
    """The metrics of a model on all rows of a day."""
    predicted = recbole_escm2.load(checkpoint).predict(day)
    bought = day["click"] * day["conversion"]
    values = {}
    for task, label, column in (("CTR", day["click"], "pctr"), ("CTCVR", bought, "pctcvr")):
        values[f"{task}_AUC"] = roc_auc_score(label, predicted[column])
        values[f"{task}_LogLoss"] = log_loss(label, predicted[column].astype(np.float64))
    return {name: values[name] for name in SCORES}


def progressive(
    log: Log, days: int, model: str, settings: dict[str, Any], folder: Path
) -> pd.DataFrame:
    """The scores of each way on each day from the second on.

    Args:
        log: where the days come from.
        days: how many; at least two.
        model: what is trained.
        settings: config keys of all trainings.
        folder: for data and runs.

    Returns:
        A row a day and way: ``day``, ``way`` and the metrics.
    """
    given = {
        "data_path": str(folder / "dataset"),
        "output_dir": str(folder / "output"),
        "benchmark_filename": ["train", "valid", "test"],
        "show_progress": False,
        "state": "error",
        **settings,
    }
    kept: dict[str, Path] = {}
    lines: list[dict[str, Any]] = []
    for number, day in zip(range(days), log.days(), strict=False):
        for way, checkpoint in kept.items():
            lines.append({"day": number + 1, "way": way, **scores_of(checkpoint, day)})
        if number == days - 1:
            break
        name = f"day-{number + 1}"
        write_day(folder / "dataset", name, day, log)
        for way in WAYS if number else ("once",):
            if way == "once" and kept:
                continue
            start = str(kept["daily"]) if way == "daily" else None
            done = run(model, name, config_dict={**given, "init_from": start})
            kept[way] = Path(done["run_dir"])
        if not number:
            kept = dict.fromkeys(WAYS, kept["once"])
    return pd.DataFrame(lines)


def main() -> None:
    """Print the scores day by day, and their means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--rows", type=int, default=30_000, help="impressions a day")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--model", default="ESCM2_DR")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.days < 2:
        parser.error("--days: at least two, one to learn from and one to score")
    logging.getLogger().setLevel(logging.ERROR)
    settings = {**SETTINGS, "epochs": 20}
    log = Log(asked.rows, asked.users, asked.items, asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        scores = progressive(log, asked.days, asked.model, settings, Path(folder))
    for name in SCORES:
        by_day = scores.pivot(index="day", columns="way", values=name)[list(WAYS)]
        rows = [[str(day), *(f"{v:.4f}" for v in values)] for day, *values in by_day.itertuples()]
        rows.append(["mean", *(f"{value:.4f}" for value in by_day.mean())])
        print(f"{asked.model}, {name}", table(["day", *WAYS], rows), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
