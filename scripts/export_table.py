"""Which models can be exported in which format: results/export.md.

    python scripts/export_table.py [--formats onnx,torch,aoti] [--models ESMM,FFM] [--out results]

Every model, and ESMM on every backbone, is trained for an epoch on a small made-up table (tokens,
numbers, a time, lists of tokens with and without weights, lists of numbers), exported, run, and
held to its own probabilities, as the command export does. What was tried before stays in
results/export.json, so that formats can be tried one after the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recbole_escm2.data import save_table
from recbole_escm2.errors import UsageError
from recbole_escm2.export.command import export_model
from recbole_escm2.export.formats import FILES
from recbole_escm2.lookup import model_names
from recbole_escm2.model.backbone import backbone_names, idle_keys, is_recbole_backbone
from recbole_escm2.model_names import REFERENCE_NAMES
from recbole_escm2.output import write_json, write_whole
from recbole_escm2.quick_start import run

ROOT = Path(__file__).absolute().parent.parent
#: Numbers of one scale, the time included, which stays as it is: where they aren't, products of
#: them, as DCN has, make a model's own probabilities depend on the size of the batch by 1e-5.
_DATA: dict[str, Any] = {
    "normalize_field": ["price", "prices"],
    "numerical_features": ["price", "prices", "when"],
    "TIME_FIELD": "when",
    "metrics": ["CTR_AUC"],
    "show_progress": False,
}
_STEPS = {"epochs": 1, "train_batch_size": 1024, "embedding_size": 4}
_TOP = """\
# Which models can be exported

Made by `python scripts/export_table.py`: each model is trained for an epoch on a small table with
tokens, numbers, a time, lists of tokens with and without weights, and lists of numbers, then
exported and run. A number is the largest difference of a probability from the model's, over random
rows, unknown ids, rows without values and a single row; more than 1e-5 would be refused. What the
formats are is in [docs/export.md](../docs/export.md).
"""


def table(rows: int = 2000) -> pa.Table:
    """Impressions with a field of every kind."""
    random = np.random.default_rng(0)
    lengths = random.integers(5, size=rows)
    past = [[(f"p{p}", p / 7) for p in random.integers(20, size=n)] for n in lengths]
    click = random.random(rows) < 0.4
    return pa.table(
        {
            "user_id": random.integers(40, size=rows),
            "item_id": random.integers(30, size=rows),
            "when": random.integers(1_700_000_000, 1_700_000_003, rows).astype(float),
            "price": np.where(random.random(rows) < 0.1, np.nan, random.normal(5, 2, rows)),
            "genres": [[f"g{g}" for g in random.integers(9, size=n)] for n in lengths],
            "past": pa.array(past, pa.map_(pa.string(), pa.float32())),
            "prices": [random.normal(size=n).tolist() for n in lengths],
            "click": click,
            "conversion": click & (random.random(rows) < 0.4),
        }
    )


def settings_of(model: str) -> dict[str, Any]:
    """Settings with which a model is trained on the table in a second or so."""
    return _DATA if model in REFERENCE_NAMES else _DATA | _STEPS


def rows_of() -> dict[str, tuple[str, dict[str, Any]]]:
    """Model and settings of each row of the table."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in model_names()}
    for name in backbone_names()[1:]:
        mlp = {} if is_recbole_backbone(name) else {"mlp_hidden_size": [8]}
        rows[f"ESMM on {name}"] = ("ESMM", {"backbone": name, **mlp})
    return rows


def try_one(model: str, more: dict[str, Any], kinds: list[str], folder: Path) -> dict[str, str]:
    """What came of each format: a number, or why there is none."""
    places = {"data_path": str(folder / "data"), "output_dir": str(folder / "output")}
    try:
        idle = idle_keys(more.get("backbone", ""))
        acting = {key: own for key, own in settings_of(model).items() if key not in idle}
        trained = run(model, "mine", config_dict={**acting, **places, **more})["run_dir"]
    except UsageError as error:
        return dict.fromkeys(kinds, f"it can't be trained on this table: {error}")
    except (KeyError, IndexError, RuntimeError) as error:  # RecBole's own code, FwFM's for one
        why = f"its own code fails on this table ({type(error).__name__}: {error})"
        return dict.fromkeys(kinds, why)
    found = {}
    for kind in kinds:
        try:
            done = export_model(trained, folder / "export", kind)
            found[kind] = f"{max(done.differences.values()):.0e}"
        except UsageError as error:
            found[kind] = str(error)
    return found


def page(found: dict[str, dict[str, str]]) -> str:
    """The table, and the reasons below it."""
    lines = [_TOP, f"| model | {' | '.join(FILES)} |", "|---|" + "---|" * len(FILES)]
    reasons: list[str] = []
    for name, cells in found.items():
        shown = []
        for kind in FILES:
            cell = cells.get(kind, "not tried")
            if kind in cells and not _is_number(cell):
                if cell not in reasons:
                    reasons.append(cell)
                cell = f"no [{reasons.index(cell) + 1}]"
            shown.append(cell)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    lines += ["", *(f"{number}. {why}" for number, why in enumerate(reasons, 1))]
    return "\n".join(lines).rstrip() + "\n"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def main() -> None:
    """Try, and write the page anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default=",".join(FILES))
    parser.add_argument("--models", default="", help="rows to try, by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    kept = args.out / "export.json"
    before = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    rows = rows_of()
    found = {name: before.get(name, {}) for name in rows}
    wanted = [name for name in args.models.split(",") if name] or list(rows)
    with tempfile.TemporaryDirectory() as folder:
        save_table(table(), "mine", Path(folder) / "data")
        for name in wanted:
            model, more = rows[name]
            found[name] = found[name] | try_one(model, more, args.formats.split(","), Path(folder))
            print(name, found[name], flush=True)
            write_json(kept, found)
            write_whole(args.out / "export.md", page(found))


if __name__ == "__main__":
    main()
