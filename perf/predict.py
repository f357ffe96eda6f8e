"""How fast new rows are scored: beside the matrix products of a forward pass, and a peer.

    python perf/predict.py [--rows N] [--repeats R] [--without-peer] [--out FILE]

ESMM with 18 token fields, 1,280,000 ids, embedding 16 and two towers [128, 64, 32] is trained for a
few steps. Then, by turns and in processes of their own: the matrix products of its forward pass
alone (the bound); ids in memory through the scorer; Parquet to Parquet by the command predict, with
support and PSI; the same Parquet file through torch-rechub's predict, with the reading that its
examples have (pandas, DataGenerator). Imports, the model's loading and the peer's training aren't
timed. The last table has the peak memory of Parquet to Parquet at N and at 10N rows.

Goals: ids in memory at half of the bound, Parquet to Parquet at 0.3 of it and at ten times the
rows a second of the peer; memory that doesn't grow with the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
from common import environment, machine, markdown_table, ratios, run_json

HERE = Path(__file__).absolute().parent
EMBEDDING, TOWER, BATCH = 16, [128, 64, 32], 4096
WIDTHS = [len(synthetic.FIELDS) * EMBEDDING, *TOWER, 1]
NAME = "impressions"
_RECHUB = ["torch-rechub==0.9.0", "pyarrow"]
_AT_ONCE = 1 << 18  # rows of the Parquet file that are drawn at once


def make_checkpoint(folder: Path) -> Path:
    """The folder of a run whose vocabularies hold every id; trained if it isn't there."""
    import pyarrow as pa

    from recbole_escm2.data import save_table
    from recbole_escm2.quick_start import run

    there = list((folder / "output").glob("*/result.json"))
    if there:
        return there[0].parent
    every = np.arange(max(synthetic.FIELDS.values()))
    columns = {name: every % size for name, size in synthetic.FIELDS.items()}
    table = pa.table({**columns, "click": every % 2 == 0, "conversion": every % 4 == 0})
    save_table(table, NAME, folder / "data")
    settings = {
        **{"data_path": str(folder / "data"), "output_dir": str(folder / "output")},
        **{
            "embedding_size": EMBEDDING,
            "mlp_hidden_size": TOWER,
            "epochs": 1,
            "metrics": ["CTR_AUC"],
        },
        **{"train_batch_size": 1 << 16, "eval_batch_size": BATCH, "learner": "adam"},
        **{"USER_ID_FIELD": "101", "ITEM_ID_FIELD": "205", "show_progress": False},
    }
    return Path(run("ESMM", NAME, config_dict=settings)["run_dir"])


def make_parquet(folder: Path, rows: int) -> Path:
    """A Parquet file of so many impressions; made if it isn't there."""
    import pyarrow as pa
    import pyarrow.parquet

    path = folder / f"new-{rows}.parquet"
    if path.is_file():
        return path
    with np.load(synthetic.write_once(folder, min(rows, _AT_ONCE))) as data:
        columns = dict(zip(data["fields"].tolist(), data["ids"].T.astype(np.int32), strict=True))
    table = pa.table(columns)
    with pa.parquet.ParquetWriter(path, table.schema) as writer:
        for left in range(rows, 0, -_AT_ONCE):
            writer.write_table(table.slice(0, left))
    return path


def measure(what: str, folder: Path, rows: int) -> None:
    """Print rows a second, and peak memory in MB, of one of the contenders as JSON."""
    seconds = MEASURED[what](folder, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows_per_second": rows / seconds, "peak_mb": peak}))


def bound(folder: Path, rows: int) -> float:
    """The outputs of each layer of both towers by torch.mm, on tensors that are there."""
    import torch

    steps = [
        (torch.randn(BATCH, m), torch.randn(n, m).t(), torch.empty(BATCH, n))
        for _ in range(2)
        for m, n in itertools.pairwise(WIDTHS)
    ]

    def batch() -> None:
        for left, right, out in steps:
            torch.mm(left, right, out=out)

    batch()
    start = time.perf_counter()
    for _ in range(-(-rows // BATCH)):
        batch()
    return time.perf_counter() - start


def of_memory(folder: Path, rows: int) -> float:
    """Ids, as numpy arrays, through the scorer's model."""
    import pyarrow.parquet

    from recbole_escm2.serve.scorer import Scorer, one_batch

    scorer = Scorer(make_checkpoint(folder), device="cpu")
    table = pyarrow.parquet.read_table(make_parquet(folder, rows)).slice(0, scorer.block)
    whole, _ = scorer.encoders[0].conformed(one_batch(table), "")
    batch = scorer.encoders[0].encode(whole)
    scorer.probabilities([batch], "")
    times = -(-rows // len(batch))
    start = time.perf_counter()
    for _ in range(times):
        scorer.probabilities([batch], "")
    return (time.perf_counter() - start) * rows / (times * len(batch))


def of_parquet(folder: Path, rows: int, workers: int = 1) -> float:
    """A file through the command, but for the loading of the model.

    Args:
        folder: where the model and the file are.
        rows: of the file.
        workers: processes that score; several go through the file once before, untimed, which
            loads the model into each.
    """
    from recbole_escm2.serve.new_data import NewData
    from recbole_escm2.serve.predict import Prediction
    from recbole_escm2.serve.scorer import Scorer
    from recbole_escm2.serve.workers import Workers

    data, checkpoint = make_parquet(folder, rows), make_checkpoint(folder)
    out = folder / f"scores-{rows}.parquet"
    several = workers > 1
    with (
        Workers(workers, (checkpoint, None, "cpu")) if several else contextlib.nullcontext() as own
    ):
        for _ in range(1 + several):
            scorer = Scorer(checkpoint, device="cpu")
            start = time.perf_counter()
            done = Prediction(scorer, NewData(str(data), scorer))
            done.write(str(out), own)
            with contextlib.redirect_stdout(io.StringIO()):
                done.report(str(out))
            seconds = time.perf_counter() - start
    out.unlink()
    return seconds


def prepare(folder: Path, rows: int) -> float:
    """Make the checkpoint and the files, which isn't timed."""
    with contextlib.redirect_stdout(sys.stderr):
        make_checkpoint(folder)
    for size in (rows // 10, rows, 10 * rows):
        make_parquet(folder, size)
    return float("inf")


MEASURED = {"prepare": prepare, "bound": bound, "memory": of_memory, "parquet": of_parquet}
MEASURED["shared"] = partial(of_parquet, workers=2)


def main() -> None:
    """Measure, print the tables, write them where ``--out`` says."""
    args = _arguments()
    if args.measure:
        measure(args.measure, args.cache, args.rows)
        return
    args.cache.mkdir(parents=True, exist_ok=True)
    own = [sys.executable, __file__, "--cache", args.cache.absolute(), "--rows"]
    # In a process of its own: the peak memory of one that is started counts what its parent has.
    run_json(*own, args.rows, "--measure", "prepare")
    peer = None if args.without_peer else environment("rechub", _RECHUB, args.environments)
    names = ["bound", "memory", "parquet", *(["rechub"] if peer else [])]
    rounds: list[dict[str, Any]] = []
    for number in range(args.repeats):
        found = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rows = args.rows // 10 if name == "rechub" else args.rows
            if name == "rechub":
                data = make_parquet(args.cache, rows).absolute()
                found[name] = run_json(peer, HERE / "peers" / "rechub_predict.py", data)
            else:
                found[name] = run_json(*own, rows, "--measure", name)
        rounds.append({name: own["rows_per_second"] for name, own in found.items()})
    large = run_json(*own, 10 * args.rows, "--measure", "parquet")
    small = run_json(*own, args.rows, "--measure", "parquet")
    text = _page(names, rounds, (args.rows, small), (10 * args.rows, large))
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the smaller file")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--without-peer", action="store_true", help="without torch-rechub")
    parser.add_argument("--environments", type=Path, default=HERE / ".environments")
    cache = Path(tempfile.gettempdir()) / "recbole_escm2-predict"
    parser.add_argument("--cache", type=Path, default=cache, help="where the data is kept")
    parser.add_argument("--out", type=Path, help="write the page into a file, too")
    parser.add_argument("--measure", choices=list(MEASURED), help="one alone")
    return parser.parse_args()


def _page(
    names: list[str], rounds: list[dict[str, float]], *memory: tuple[int, dict[str, float]]
) -> str:
    shown = {
        "bound": "matrix products of a forward pass",
        "memory": "ids in memory",
        "parquet": "Parquet to Parquet",
        "rechub": "torch-rechub, Parquet to an array",
    }
    rows = []
    for name in names:
        speed = statistics.median(own[name] for own in rounds)
        middle, least, most = ratios(rounds, name, "bound")
        rows.append([shown[name], f"{speed:,.0f}", f"{middle:.2f} ({least:.2f} to {most:.2f})"])
    lines = [markdown_table(["", "rows a second", "of the bound"], rows)]
    if "rechub" in names:
        middle, least, most = ratios(rounds, "parquet", "rechub")
        lines.append(
            f"Parquet to Parquet is {middle:.1f} ({least:.1f} to {most:.1f}) times torch-rechub."
        )
    peaks = [[f"{rows:,}", f"{own['peak_mb']:,.0f}"] for rows, own in memory]
    lines.append(markdown_table(["rows", "peak memory, MB"], peaks))
    about = ", ".join(f"{key}: {value}" for key, value in machine().items())
    lines.append(f"Median (least to greatest) of {len(rounds)} rounds. {about}.")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
