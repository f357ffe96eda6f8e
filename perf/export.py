"""How fast an exported ONNX model scores, beside our own forward pass, and how soon it begins.

    python perf/export.py [--rows N] [--repeats R] [--out FILE]

Two models of ESMM: that of perf/predict.py, whose fields have one value each, and one with a
list of 0 to 20 tokens beside. By turns, in one run, each in a process of its own and with the same
batches in memory: the scorer's own forward pass, and onnxruntime with as many threads. Then the
seconds from a new process to the score of one row, of the artefact by onnxruntime and its reader,
and of the checkpoint by this package.

Goal: 0.7 of our own rows a second on fields of one value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown_table, ratios, run_json
from predict import make_checkpoint, make_parquet

HERE = Path(__file__).absolute().parent
_TOKENS, _LONGEST = 5_000, 20
_KINDS = {"one": "one value a field", "lists": "a list beside"}
_COLD = {
    "onnx": "import onnxruntime, sys; sys.path.insert(0, {artefact!r})\n"
    "from reader import Reader\n"
    "model = onnxruntime.InferenceSession({artefact!r} + '/model.onnx')\n"
    "model.run(None, Reader({artefact!r}).inputs({row!r}))",
    "ours": "import recbole_escm2, pyarrow\n"
    "recbole_escm2.load({checkpoint!r}).predict(pyarrow.table({row!r}))",
}


def with_lists(folder: Path) -> Path:
    """The folder of a run on a table with a list of tokens; trained if it isn't there."""
    import pyarrow as pa

    from recbole_escm2.data import save_table
    from recbole_escm2.quick_start import run

    there = list((folder / "lists" / "output").glob("*/result.json"))
    if there:
        return there[0].parent
    random, rows = np.random.default_rng(0), 100_000
    columns: dict[str, Any] = {
        name: random.integers(size, size=rows)
        for name, size in (("user_id", 20_000), ("item_id", 5_000), ("category", 100))
    }
    lengths = random.integers(_LONGEST + 1, size=rows)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    values = pa.array([f"t{n}" for n in random.integers(_TOKENS, size=offsets[-1])])
    click = random.random(rows) < 0.3
    labels = {"click": click, "conversion": click & (random.random(rows) < 0.3)}
    tags = {"tags": pa.ListArray.from_arrays(pa.array(offsets), values)}
    save_table(pa.table({**columns, **tags, **labels}), "lists", folder / "lists" / "data")
    places = {name: str(folder / "lists" / name) for name in ("data", "output")}
    settings = {"data_path": places["data"], "output_dir": places["output"], "epochs": 1}
    return Path(run("ESMM", "lists", config_dict=settings)["run_dir"])


def rows_of(kind: str, folder: Path, rows: int) -> Any:
    """A table of the rows that are scored."""
    import pyarrow as pa
    import pyarrow.parquet

    if kind == "one":
        return pyarrow.parquet.read_table(make_parquet(folder, rows))
    (data,) = (folder / "lists" / "data").rglob("*.parquet")
    table = pyarrow.parquet.read_table(data).drop_columns(["click", "conversion"])
    return pa.concat_tables([table] * -(-rows // len(table))).slice(0, rows)


def prepare(kind: str, folder: Path) -> tuple[Path, Path]:
    """Checkpoint and artefact of a kind of data; made where they aren't there."""
    from recbole_escm2.export.command import export_model

    with contextlib.redirect_stdout(sys.stderr):
        checkpoint = make_checkpoint(folder) if kind == "one" else with_lists(folder)
        artefact = folder / f"artefact-{kind}"
        if not artefact.is_dir():
            export_model(checkpoint, artefact, "onnx")
    return checkpoint, artefact


def rows_per_second(what: str, kind: str, folder: Path, rows: int) -> float:
    """Of one contender, over at least three seconds, after one batch that isn't counted."""
    from recbole_escm2.export.formats import opened
    from recbole_escm2.export.graph import Graph
    from recbole_escm2.export.reader import Reader
    from recbole_escm2.serve.scorer import Scorer, one_batch

    checkpoint, artefact = prepare(kind, folder)
    scorer = Scorer(checkpoint, device="cpu")
    table = rows_of(kind, folder, rows).slice(0, scorer.block)
    score: Callable[[], Any]
    if what == "onnx":
        inputs = list(Reader(artefact).inputs(table.to_pydict()).values())
        run = opened("onnx", artefact, Graph(scorer))

        def score() -> Any:
            return run(inputs)
    else:
        whole, _ = scorer.encoders[0].conformed(one_batch(table), "")
        batch = scorer.encoders[0].encode(whole)

        def score() -> Any:
            return scorer.probabilities([batch], "")

    score()
    scored, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 3:
        score()
        scored += len(table)
    return scored / seconds


def cold(what: str, kind: str, folder: Path, rows: int) -> float:
    """Seconds from a new process to the score of one row."""
    import subprocess

    checkpoint, artefact = prepare(kind, folder)
    row = {name: values[:1] for name, values in rows_of(kind, folder, rows).to_pydict().items()}
    code = _COLD[what].format(artefact=str(artefact), checkpoint=str(checkpoint), row=row)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure by turns, print the page, write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="of the table, at most one batch")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    cache = Path(tempfile.gettempdir()) / "recbole_escm2-predict"
    parser.add_argument("--cache", type=Path, default=cache, help="where the data is kept")
    parser.add_argument("--out", type=Path, help="write the page into a file, too")
    parser.add_argument("--measure", help="one alone, as WHAT:KIND")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.measure:
        what, kind = args.measure.split(":")
        found = rows_per_second(what, kind, args.cache.absolute(), args.rows)
        print(json.dumps({"rows_per_second": found}))
        return
    own = [sys.executable, __file__, "--cache", args.cache.absolute(), "--rows", args.rows]
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    starts: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    for kind in _KINDS:
        prepare(kind, args.cache.absolute())
        for number in range(args.repeats):
            rounds[kind].append(
                {
                    what: run_json(*own, "--measure", f"{what}:{kind}")["rows_per_second"]
                    for what in ("onnx", "ours")
                }
            )
            starts[kind].append(
                {what: cold(what, kind, args.cache.absolute(), args.rows) for what in _COLD}
            )
            print(f"{kind}, round {number + 1}: {rounds[kind][-1]}", file=sys.stderr, flush=True)
    page = _page(rounds, starts)
    print(page)
    if args.out:
        args.out.write_text(page, encoding="utf-8")


def _page(
    rounds: dict[str, list[dict[str, float]]], starts: dict[str, list[dict[str, float]]]
) -> str:
    lines = []
    for kind, name in _KINDS.items():
        speed, start = ratios(rounds[kind], "onnx", "ours"), ratios(starts[kind], "onnx", "ours")
        lines.append(
            [name, *(f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in (speed, start))]
        )
    about = ", ".join(f"{name} {value}" for name, value in machine().items())
    return (
        "# Export\n\nWritten by `python perf/export.py`. Medians (least to greatest) over "
        f"{len(rounds['one'])} rounds of ESMM as ONNX, by onnxruntime, as a ratio to our own "
        "forward pass with the same threads, and of the seconds to the first score in a new "
        "process as a ratio to those of this package.\n\n"
        + markdown_table(["fields", "rows a second", "seconds to the first score"], lines)
        + f"\n\n{about}\n"
    )


if __name__ == "__main__":
    main()
