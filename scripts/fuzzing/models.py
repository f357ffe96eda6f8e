"""Kinds of files that a trained model leaves, or that are given to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from export_table import settings_of, table

import recbole_escm2
from fuzzing.damage import damaged, damaged_values
from fuzzing.kinds import OF_DATA, Csv, Kind, cells_of, impressions, settings
from recbole_escm2.data import save_table
from recbole_escm2.errors import UsageError
from recbole_escm2.export import formats
from recbole_escm2.export.command import export_model
from recbole_escm2.export.graph import Graph
from recbole_escm2.export.manifest import MANIFEST, check_made_of, digest, read_manifest
from recbole_escm2.export.verify import verify
from recbole_escm2.quick_start import run
from recbole_escm2.serve.http.rows import Refused
from recbole_escm2.serve.http.served import Served, load
from recbole_escm2.serve.new_data import NewData
from recbole_escm2.serve.scorer import Scorer, fault_error
from recbole_escm2.train.checkpoint import load_sealed, save_checkpoint
from recbole_escm2.train.progress import ProgressFile


class Trained(Kind):
    """What a run on a log leaves behind."""

    def prepare(self, folder: Path) -> None:
        """A run, and what it has written, under names of our own."""
        Csv().prepare(folder)
        outcome = run("ESMM", "log", config_dict={**settings(folder), "save_interval": None})
        shutil.copy(Path(outcome["run_dir"]) / "checkpoint.pth", folder / "checkpoint.pth")
        columns = impressions()
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        (folder / "new.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
        for name in ("output", "stores", "log"):
            shutil.rmtree(folder / name)

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """Bytes of the file, or entries of what it holds, under a right checksum."""
        path = folder / "checkpoint.pth"
        if draw.random() < 0.2:
            path.write_bytes(damaged(path.read_bytes(), draw))
        else:
            save_checkpoint(path, damaged_values(load_sealed(path), draw))
        return path

    def read(self, folder: Path) -> Any:
        """Scores of the first rows."""
        scorer = recbole_escm2.load(folder / "checkpoint.pth")
        frame = pa.table({name: own[:3] for name, own in impressions().items()}).to_pandas()
        return scorer.predict(frame).to_numpy()


class NewRows(Trained):
    """A CSV file of new rows, for ``predict``."""

    separator = b","

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """The rows."""
        path = folder / "new.csv"
        path.write_bytes(damaged(path.read_bytes(), draw, self.separator))
        return path

    def read(self, folder: Path) -> Any:
        """How many rows were scored."""
        scorer = recbole_escm2.load(folder / "checkpoint.pth")
        rows = 0
        for block in NewData(str(folder / "new.csv"), scorer).blocks():
            scores = scorer.score(block.rows, block.file)
            if scores.faults:
                raise fault_error(scores.faults[0], block.place(scores.faults[0].row))
            rows += len(scores.of["ctr"])
        return rows

    def reference(self, folder: Path) -> Any:
        """How many there are."""
        return len([row for row in cells_of((folder / "new.csv").read_bytes(), ",")[1:] if row])


class Progress(Kind):
    """What a killed training goes on from."""

    def prepare(self, folder: Path) -> None:
        """A run that ends after its third batch, and the metrics of one that doesn't."""
        Csv().prepare(folder)
        begun = multiprocessing.get_context("fork").Process(target=_killed, args=(folder,))
        begun.start()
        begun.join()
        (self.file,) = (own.relative_to(folder) for own in folder.rglob("progress.pth"))
        undisturbed = folder.with_name("undisturbed")
        shutil.copytree(folder, undisturbed)
        self.metrics = self.read(undisturbed)

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """Bytes of the file, or entries of what it holds, under a right checksum."""
        path = folder / self.file
        if draw.random() < 0.1:
            path.write_bytes(damaged(path.read_bytes(), draw))
        else:
            save_checkpoint(path, damaged_values(load_sealed(path), draw))
        return path

    def read(self, folder: Path) -> Any:
        """The metrics of the same command."""
        return _trained(folder)

    def reference(self, folder: Path) -> Any:
        """Those of an undisturbed run, where it was begun anew."""
        return None if (folder / self.file).exists() else self.metrics


def _trained(folder: Path) -> dict[str, float]:
    given = {**settings(folder), "save_interval": 0, "epochs": 2}
    return dict(run("ESMM", "log", config_dict=given)["test_result"])


def _killed(folder: Path) -> None:
    save, saved = ProgressFile.save, []

    def last(self: ProgressFile, state: Mapping[str, Any]) -> None:
        save(self, state)
        saved.append(state)
        if len(saved) == 4:
            os._exit(0)

    ProgressFile.save = last  # type: ignore[method-assign]
    _trained(folder)


class _Asked(Kind):
    """A model of a table with a field of every kind."""

    def prepare(self, folder: Path) -> None:
        """Its checkpoint."""
        save_table(table(), "mine", folder / "data")
        places = {"data_path": str(folder / "data"), "output_dir": str(folder / "output")}
        own = {**settings_of("ESMM"), **places, "save_interval": None}
        outcome = run("ESMM", "mine", config_dict=own)
        shutil.copy(Path(outcome["run_dir"]) / "checkpoint.pth", folder / "checkpoint.pth")
        for name in ("output", "data"):
            shutil.rmtree(folder / name)


@cache
def _scorer(checkpoint: Path) -> Scorer:
    return recbole_escm2.load(checkpoint)


@cache
def _served(checkpoint: Path) -> Served:
    return load(str(checkpoint), None, "cpu", {})


class Requests(_Asked):
    """The body of a request to ``serve``."""

    pattern = "body.json"
    separator = b","

    def prepare(self, folder: Path) -> None:
        """Its rows."""
        super().prepare(folder)
        rows = table(6).drop_columns(["conversion"]).to_pylist()
        for row in rows:
            row["past"] = [list(pair) for pair in row["past"]]
            row["price"] = None if row["price"] != row["price"] else row["price"]
        (folder / "body.json").write_text(json.dumps({"rows": rows}))

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """Bytes of the body, or values in it."""
        if draw.random() < 0.5:
            return super().damage(folder, draw)
        path = folder / "body.json"
        content = damaged_values(json.loads(path.read_bytes()), draw)
        path.write_text(json.dumps(content, default=str))
        return path

    def read(self, folder: Path) -> Any:
        """The scores of its rows."""
        body = (folder / "body.json").read_bytes()
        [answer] = _served(folder / "checkpoint.pth").answers([body], most=100)
        if isinstance(answer, Refused):
            json.dumps(list(answer.faults), allow_nan=False)
            raise UsageError(answer.error) from answer
        if isinstance(answer, Exception):
            raise answer
        rows = json.loads(answer.body)["rows"]
        return [tuple(float(np.float32(row[f"p{task}"])) for task in _TASKS) for row in rows]

    def reference(self, folder: Path) -> Any:
        """The scores of the same values as a table."""
        rows = json.loads((folder / "body.json").read_bytes())["rows"]
        columns = {
            name: pa.array([read(row[name]) for row in rows], kind)
            for name, (kind, read) in _COLUMNS.items()
        }
        found = _scorer(folder / "checkpoint.pth").predict(pa.table(columns))
        return list(map(tuple, found[[f"p{task}" for task in _TASKS]].to_numpy().tolist()))


_TASKS = ("ctr", "cvr", "ctcvr")


def _token(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(int(value))


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _pair(value: Any) -> tuple[str | None, float | None]:
    token, weight = value if isinstance(value, list) else (value, None)
    return _token(token), _number(weight)


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda values: [read(value) for value in values or []]


_WEIGHTED = pa.list_(pa.struct([("id", pa.string()), ("weight", pa.float64())]))
_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Any], Any]]] = {
    "user_id": (pa.string(), _token),
    "item_id": (pa.string(), _token),
    "when": (pa.float64(), _number),
    "price": (pa.float64(), _number),
    "genres": (pa.list_(pa.string()), _list_of(_token)),
    "past": (_WEIGHTED, _list_of(_pair)),
    "prices": (pa.list_(pa.float64()), _list_of(_number)),
}


class Artefacts(_Asked):
    """An export of ONNX, beside the checkpoint that it was made of."""

    pattern = "export/*"

    def prepare(self, folder: Path) -> None:
        """Both."""
        super().prepare(folder)
        export_model(folder / "checkpoint.pth", folder / "export")

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """Bytes of a file, under a right checksum or none; or entries of the manifest."""
        manifest = folder / "export" / MANIFEST
        if draw.random() < 0.3:
            content = damaged_values(json.loads(manifest.read_bytes()), draw)
            manifest.write_text(json.dumps(content, default=str))
            return manifest
        path = super().damage(folder, draw)
        if path != manifest and draw.random() < 0.8:
            content = json.loads(manifest.read_bytes())
            content["files"][path.name] = digest(path)
            manifest.write_text(json.dumps(content))
        return path

    def read(self, folder: Path) -> Any:
        """As ``--verify=only`` does."""
        export, scorer, graph = folder / "export", *_graph(folder / "checkpoint.pth")
        content = read_manifest(export)
        check_made_of(content, export, scorer, graph)
        verify(formats.opened("onnx", export, graph), export, scorer)


@cache
def _graph(checkpoint: Path) -> tuple[Scorer, Graph]:
    scorer = Scorer(checkpoint, None, "cpu")
    return scorer, Graph(scorer)


#: Every kind by name.
KINDS: dict[str, type[Kind]] = {
    **OF_DATA,
    **{"checkpoint": Trained, "new-rows": NewRows, "progress": Progress},
    **{"requests": Requests, "artefacts": Artefacts},
}
