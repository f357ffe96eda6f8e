"""Memory that a run takes for each impression of D.

    python perf/memory.py [--rows N] [--model NAME] [--test SHARE] [--out FILE]

A run of one epoch on N impressions and one on 3 N, each in a process of its own, on a Parquet file
of six token columns, two labels, the potential conversion and the true CTR and CVR, split at random
into 10 % validation, a share of test (10 %) and train. What is measured is memory that belongs to
the process alone (``RssAnon`` of Linux: pages of the store, which is mapped, are the system's and
aren't counted): as it is once the splits are made, and the greatest while the model is trained,
validated and tested. Bytes a row are the difference of the two runs over the difference of their
rows, so that the model, its batches and the libraries cancel. The store of each is made by an
earlier run.

Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import markdown_table, run_json

STAGES = ("prepared", "training", "validation", "test")
_POLL_SECONDS = 0.005
_TRUTH = ("potential_conversion", "true_ctr", "true_cvr")


def write(folder: Path, rows: int) -> None:
    """A data set ``rows`` of that many impressions, as Parquet."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(1)
    sizes = {"user_id": 100_000, "item_id": 20_000, **{f"context_{n}": 4**n for n in range(1, 5)}}
    columns: dict[str, Any] = {
        name: pa.array(rng.integers(size, size=rows, dtype=np.int32).astype("U"))
        for name, size in sizes.items()
    }
    ctr, cvr = rng.uniform(0.02, 0.2, rows), rng.uniform(0.05, 0.4, rows)
    click, potential = rng.random(rows) < ctr, rng.random(rows) < cvr
    columns |= {"click": click, "conversion": click & potential}
    columns |= dict(zip(_TRUTH, (potential, ctr, cvr), strict=True))
    (folder / "rows").mkdir(parents=True)
    parquet.write_table(pa.table(columns), folder / "rows" / "rows.parquet")


def resident() -> int:
    """Bytes that belong to this process alone."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


class Watch:
    """The greatest resident memory of each stage of a run, by a thread that looks now and then."""

    def __init__(self) -> None:
        self.greatest = dict.fromkeys(STAGES, 0)
        self.stage: str | None = None
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            if (stage := self.stage) is not None:
                self.greatest[stage] = max(self.greatest[stage], resident())
            time.sleep(_POLL_SECONDS)

    def during(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched as a stage."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.stage = stage
            try:
                return work(*args, **kwargs)
            finally:
                self.stage = None

        return watched


def measure(folder: Path, model: str, test: float) -> dict[str, int]:
    """Bytes by stage of a run of the data set in a folder, which has its store."""
    from recbole_escm2.config import Config
    from recbole_escm2.train.run import Run
    from recbole_escm2.train.training import Training

    settings = {"data_path": str(folder), "output_dir": str(folder / "output"), "epochs": 1}
    settings |= {"embedding_size": 2, "mlp_hidden_size": [4], "train_batch_size": 16384}
    settings |= {"eval_args": {"split": {"RS": [0.9 - test, 0.1, test]}}}
    settings |= dict(zip((f"{name.upper()}_FIELD" for name in _TRUTH), _TRUTH, strict=True))
    config = Config(model, "rows", config_dict={**settings, "show_progress": False})
    run, watch = Run.of(config), Watch()
    with run.at_work(config):
        training = Training(config, run)
        prepared = resident()
        trainer: Any = training.trainer
        trainer._train_epoch = watch.during("training", trainer._train_epoch)
        trainer._valid_epoch = watch.during("validation", trainer._valid_epoch)
        training.fit()
        watch.during("test", training.score)("test")
    return {**watch.greatest, "prepared": prepared}


def main() -> None:
    """Measure both, or one in this process, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="impressions (%(default)s)")
    parser.add_argument("--model", default="ESCM2_DR", help="a model (%(default)s)")
    parser.add_argument("--test", type=float, default=0.1, help="share of the rows (%(default)s)")
    parser.add_argument("--out", type=Path, help="a file for the table, besides standard output")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        if not (arguments.run / "rows").is_dir():
            write(arguments.run, arguments.rows)
        print(json.dumps(measure(arguments.run, arguments.model, arguments.test)))
        return
    taken = []
    for rows in (arguments.rows, 3 * arguments.rows):
        with tempfile.TemporaryDirectory() as folder:
            given = ("--run", folder, "--rows", rows)
            given += ("--model", arguments.model, "--test", arguments.test)
            run_json(sys.executable, __file__, *given)  # makes the store
            taken.append(run_json(sys.executable, __file__, *given))
    small, large = taken
    cells = [
        (stage, f"{(large[stage] - small[stage]) / (2 * arguments.rows):.1f}") for stage in STAGES
    ]
    about = f"{arguments.model}, {arguments.rows:,} and {3 * arguments.rows:,} rows"
    text = f"{about}, {arguments.test:.0%} of them test:\n\n"
    text += markdown_table(["stage", "bytes a row"], cells)
    print(text)
    if arguments.out:
        arguments.out.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
