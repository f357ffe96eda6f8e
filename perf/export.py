"""How fast an exported model is in onnxruntime, beside the model itself.

    python perf/export.py [--rows N] [--repeats R] [--out FILE]

The first model is that of perf/predict.py: ESMM with 18 fields of one value. The second has lists
of tokens besides, one of them with weights. By turns, in processes of their own: ids in memory
through the model, and through its ONNX artefact, in batches of 4,096 rows on as many threads. Then
the cold start of both, from the start of the interpreter to the probabilities of one row. Training
and exporting aren't timed.

Goal: on fields of one value the artefact has 0.7 of the model's rows a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown_table, ratios, run_json
from predict import BATCH, EMBEDDING, TOWER, make_checkpoint

HERE = Path(__file__).absolute().parent
_TRAINED_ROWS = 50_000
_TOKENS, _LONGEST = 10_000, 20  # of a list's field, and of a list
_LISTS = ("shops", "brands", "past")  # of tokens, the last one with weights
KINDS = {"single": "18 fields of one value", "lists": "6 fields of one value, 3 of lists"}


def checkpoint_of(kind: str, folder: Path) -> Path:
    """The folder of a run; trained if it isn't there."""
    if kind == "single":
        return make_checkpoint(folder)
    from recbole_escm2.data import save_table
    from recbole_escm2.quick_start import run

    there = list((folder / "lists").glob("*/result.json"))
    if there:
        return there[0].parent
    save_table(_table_of_lists(), "lists", folder / "data")
    settings = {
        **{"data_path": str(folder / "data"), "output_dir": str(folder / "lists")},
        **{"embedding_size": EMBEDDING, "mlp_hidden_size": TOWER, "metrics": ["CTR_AUC"]},
        **{"epochs": 1, "train_batch_size": BATCH, "eval_batch_size": BATCH},
        "show_progress": False,
    }
    return Path(run("ESMM", "lists", config_dict=settings)["run_dir"])


def _table_of_lists() -> Any:
    import pyarrow as pa

    random = np.random.default_rng(0)
    fields = ("user_id", "item_id", "hour", "place", "device", "campaign")
    columns: dict[str, Any] = {
        name: random.integers(_TOKENS, size=_TRAINED_ROWS) for name in fields
    }
    for name in _LISTS:
        lengths = random.integers(_LONGEST + 1, size=_TRAINED_ROWS)
        tokens = pa.array(random.integers(_TOKENS, size=int(lengths.sum())).astype(str))
        offsets = pa.array(np.append(0, lengths.cumsum()), pa.int32())
        if name == _LISTS[-1]:
            weights = pa.array(random.gamma(2.0, size=len(tokens)).astype(np.float32))
            columns[name] = pa.MapArray.from_arrays(offsets, tokens, weights)
        else:
            columns[name] = pa.ListArray.from_arrays(offsets, tokens)
    click = random.random(_TRAINED_ROWS) < 0.3
    labels = {"click": click, "conversion": click & (random.random(_TRAINED_ROWS) < 0.3)}
    return pa.table(columns | labels)


def prepare(kind: str, folder: Path, rows: int) -> None:
    """Train, export, and draw a batch of inputs, which isn't timed."""
    from recbole_escm2.export.command import export_model

    with contextlib.redirect_stdout(sys.stderr):
        export_model(checkpoint_of(kind, folder), folder / f"{kind}.export")
    manifest = json.loads((folder / f"{kind}.export" / "manifest.json").read_text("utf-8"))
    random = np.random.default_rng(1)
    inputs: dict[str, Any] = {}
    for field in manifest["fields"]:
        name, count = field["name"], BATCH
        if field["type"] == "token_seq":
            lengths = random.integers(_LONGEST + 1, size=BATCH)
            inputs[f"{name}.offsets"] = np.append(0, lengths.cumsum())
            name, count = f"{name}.values", int(lengths.sum())
            if field["weighted"]:
                inputs[f"{field['name']}.weights"] = random.gamma(2.0, size=count)
        inputs[name] = random.integers(1, field["tokens"] + 1, size=count)
    given = {own["name"]: inputs[own["name"]].astype(own["type"]) for own in manifest["inputs"]}
    np.savez(folder / f"{kind}.npz", **given)
    print(json.dumps({"inputs": len(given)}))


def _inputs(kind: str, folder: Path) -> dict[str, Any]:
    with np.load(folder / f"{kind}.npz") as data:
        return {name: data[name] for name in data.files}


def of_model(kind: str, folder: Path, rows: int) -> None:
    """The checkpoint, by the scorer's own forward."""
    import torch

    from recbole_escm2.bags import Bags
    from recbole_escm2.data.batch import Batch
    from recbole_escm2.serve.scorer import Scorer

    inputs = _inputs(kind, folder)
    scorer = Scorer(checkpoint_of(kind, folder), device="cpu")
    encoder = scorer.encoders[0]
    columns = {n: torch.from_numpy(inputs[n]) for n in scorer.features if n in inputs}
    bags = {}
    for name in scorer.features:
        if name not in columns:
            lengths = torch.from_numpy(np.diff(inputs[f"{name}.offsets"])).unsqueeze(0)
            weights = inputs.get(f"{name}.weights")
            given = None if weights is None else torch.from_numpy(weights)
            bag = Bags((name,), torch.from_numpy(inputs[f"{name}.values"]), given, lengths)
            bags[name] = bag.scaled(encoder.scales.get(name, 1.0))

    def score() -> Any:
        batch = Batch(columns, bags, encoder.lengths)
        batch.length = BATCH
        return scorer.models[0].probabilities(batch)["ctcvr"].numpy()

    _report(score, rows)


def of_artefact(kind: str, folder: Path, rows: int) -> None:
    """The artefact, by onnxruntime on as many threads as torch has."""
    import os

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    path = folder / f"{kind}.export" / "model.onnx"
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    inputs = _inputs(kind, folder)
    _report(lambda: session.run(None, inputs)[2], rows)


def _report(score: Callable[[], Any], rows: int) -> None:
    """Print rows a second, and the mean of what was scored, as JSON."""
    found = score()
    times = max(1, rows // BATCH)
    start = time.perf_counter()
    for _ in range(times):
        score()
    seconds = time.perf_counter() - start
    print(json.dumps({"rows_per_second": times * BATCH / seconds, "mean": float(found.mean())}))


def cold_model(kind: str, folder: Path, rows: int) -> None:
    """One row through a checkpoint."""
    import recbole_escm2

    scorer = recbole_escm2.load(checkpoint_of(kind, folder), device="cpu")
    row = {name: [None] for name in scorer.features}
    import pyarrow as pa

    print(json.dumps({"mean": float(scorer.predict(pa.table(row))["pctcvr"].iloc[0])}))


def cold_artefact(kind: str, folder: Path, rows: int) -> None:
    """One row through an artefact and its reader, without this package."""
    import onnxruntime

    place = folder / f"{kind}.export"
    sys.path.insert(0, str(place))
    from reader import Reader

    reader = Reader(place)
    row = reader.inputs({own["name"]: [None] for own in reader.manifest["fields"]})
    session = onnxruntime.InferenceSession(place / "model.onnx")
    print(json.dumps({"mean": float(session.run(["pctcvr"], row)[0][0])}))


MEASURED = {
    "prepare": prepare,
    "model": of_model,
    "artefact": of_artefact,
    "cold_model": cold_model,
    "cold_artefact": cold_artefact,
}


def main() -> None:
    """Measure, print the tables, write them where ``--out`` says."""
    args = _arguments()
    if args.measure:
        MEASURED[args.measure](args.kind, args.cache, args.rows)
        return
    args.cache.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[dict[str, float]]] = {}
    for kind in KINDS:
        _run(args, kind, "prepare")
        rounds[kind] = [_round(args, kind, number) for number in range(args.repeats)]
    text = _page(rounds)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def _round(args: argparse.Namespace, kind: str, number: int) -> dict[str, float]:
    """Rows a second of both, and seconds of both cold starts; who goes first takes turns."""
    found: dict[str, float] = {}
    means: dict[str, float] = {}
    names = ["model", "artefact", "cold_model", "cold_artefact"]
    for name in names if number % 2 else [names[1], names[0], names[3], names[2]]:
        start = time.perf_counter()
        done = _run(args, kind, name)
        seconds = time.perf_counter() - start
        found[name] = seconds if name.startswith("cold") else done["rows_per_second"]
        means[name] = done["mean"]
    for one, other in (("model", "artefact"), ("cold_model", "cold_artefact")):
        if abs(means[one] - means[other]) > 1e-5:
            raise RuntimeError(f"{one} and {other} give other probabilities: {means}")
    return found


def _run(args: argparse.Namespace, kind: str, what: str) -> dict[str, Any]:
    from recbole_escm2.threads import threads_of

    own = ["--cache", args.cache.absolute(), "--rows", args.rows, "--kind", kind]
    env = {"OMP_NUM_THREADS": str(threads_of())}
    return run_json(sys.executable, HERE / "export.py", *own, "--measure", what, env=env)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="scored in a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    cache = Path(tempfile.gettempdir()) / "recbole_escm2-predict"
    parser.add_argument("--cache", type=Path, default=cache, help="where models are kept")
    parser.add_argument("--out", type=Path, help="write the page into a file, too")
    parser.add_argument("--kind", choices=list(KINDS), default="single")
    parser.add_argument("--measure", choices=list(MEASURED), help="one alone")
    return parser.parse_args()


def _page(rounds: dict[str, list[dict[str, float]]]) -> str:
    speeds, starts = [], []
    for kind, own in rounds.items():
        model, artefact = (
            f"{statistics.median(r[name] for r in own):,.0f}" for name in ("model", "artefact")
        )
        middle, least, most = ratios(own, "artefact", "model")
        speeds.append([KINDS[kind], model, artefact, f"{middle:.2f} ({least:.2f} to {most:.2f})"])
        cold = [
            f"{statistics.median(r[f'cold_{n}'] for r in own):.2f}" for n in ("model", "artefact")
        ]
        middle, least, most = ratios(own, "cold_artefact", "cold_model")
        starts.append([KINDS[kind], *cold, f"{middle:.2f} ({least:.2f} to {most:.2f})"])
    about = ", ".join(f"{key}: {value}" for key, value in machine().items())
    count = len(next(iter(rounds.values())))
    return "\n\n".join(
        [
            markdown_table(["rows a second", "model", "artefact", "artefact / model"], speeds),
            markdown_table(["cold start, s", "model", "artefact", "artefact / model"], starts),
            f"Median (least to greatest) of {count} rounds. {about}.",
        ]
    )


if __name__ == "__main__":
    main()
