"""What describes an export: its inputs, fields, vocabularies, files, and what it was made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_escm2.errors import UsageError
from recbole_escm2.export.formats import DATA_FILE, FILES
from recbole_escm2.export.graph import UNKNOWN_ID, Graph
from recbole_escm2.limits import read_json
from recbole_escm2.output import to_builtins, versions, write_json, write_whole
from recbole_escm2.serve.scorer import Scorer

FORMAT = "recbole_escm2 export 1"
MANIFEST, VOCABULARIES, READER = "manifest.json", "vocabularies.json", "reader.py"
_PIECE = 1 << 20


def write_beside(folder: Path, scorer: Scorer, graph: Graph, kind: str, files: list[str]) -> None:
    """Write the vocabularies, the reader, and the manifest of an artefact that lies in a folder.

    Args:
        folder: of the export.
        scorer: of the checkpoint.
        graph: of its models.
        kind: the artefact's format.
        files: of the artefact.
    """
    write_whole(folder / VOCABULARIES, _vocabularies(scorer))
    write_whole(folder / READER, _reader())
    content = {
        "format": FORMAT,
        "artefact": {"format": kind, "file": files[0]},
        **about(scorer, graph),
        "versions": {**versions(), **_further_versions(kind)},
        "files": {name: digest(folder / name) for name in [*files, VOCABULARIES, READER]},
    }
    write_json(folder / MANIFEST, content)


def _vocabularies(scorer: Scorer) -> str:
    tokens = [own.tokens.to_pylist() for own in scorer.known.vocabularies]
    return json.dumps(tokens, ensure_ascii=False, separators=(",", ":"))


def _reader() -> bytes:
    return (Path(__file__).parent / READER).read_bytes()


def about(scorer: Scorer, graph: Graph) -> dict[str, Any]:
    """What a manifest says of a checkpoint, whatever the format of its artefact."""
    first = scorer.models[0]
    calibration = first.calibration
    return {
        "model": scorer.name,
        "dataset": scorer.config["dataset"],
        "inputs": [
            {"name": own.name, "field": own.field, "type": own.type, "shape": [own.size]}
            for own in graph.inputs
        ],
        "outputs": [
            {"name": f"p{task}", "type": "float32", "shape": ["batch"]} for task in graph.tasks
        ],
        "fields": [_field(name, scorer) for name in scorer.features],
        "missing_id": 0,
        "unknown_id": UNKNOWN_ID,
        "unknown_rule": "an id outside of the vocabulary stands for a token that the training "
        "didn't know; see embedded_as of each field",
        "calibration": None
        if calibration is None
        else {
            "method": calibration.method,
            "tasks": list(calibration.maps),
            "left": dict(calibration.left),
            "in_graph": True,
        },
        "support": _support(scorer, graph),
        "data": to_builtins(dict(first.data)),
    }


def _field(name: str, scorer: Scorer) -> dict[str, Any]:
    known, encoder = scorer.known, scorer.encoders[0]
    own = known.fields[name]
    entry: dict[str, Any] = {"name": name, "type": own.kind}
    if own.kind.endswith("_seq"):
        entry |= {"separator": encoder.separator, "longest": encoder.cut.get(name)}
    if name in known.tokens:
        tokens = known.tokens[name]
        number = next(n for n, other in enumerate(known.vocabularies) if other is tokens)
        entry |= {"vocabulary": number, "tokens": len(tokens.tokens), "rows": len(tokens)}
        entry["embedded_as"] = (
            f"row {tokens.unknown}, "
            + ("the mean of the field's tokens by train" if tokens.spare else "as it was learned")
            if tokens.unknown
            else "row 0, as no value"
        )
        if own.kind == "token_seq":
            entry |= {"weighted": own.weighted, "weights_divided_by": encoder.scales.get(name, 1.0)}
        return entry
    numbers = known.numbers[name]
    line = numbers.line(own, own.kind == "float" and name == known.time)
    return entry | {
        "missing": numbers.mean if own.kind == "float" else 0.0,
        "scale": {"subtracted": line[0], "divided_by": line[1]} if line else {"constant": 1.0},
        "scaled_in_graph": True,
    }


def _support(scorer: Scorer, graph: Graph) -> list[float] | None:
    """Quantiles of what the graph gives as pCTR of train's clicks, in equal steps."""
    quantiles = next((own.support for own in scorer.models if own.support is not None), None)
    if quantiles is None or "ctr" not in graph.tasks:
        return None
    given = torch.from_numpy(quantiles.astype(np.float32))
    shown: list[float] = (graph.maps["ctr"](given) if "ctr" in graph.maps else given).tolist()
    return shown


def _further_versions(kind: str) -> dict[str, str]:
    found = {}
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | ({"machine": platform.machine()} if kind == "aoti" else {})


def digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


# --------------------------------------------------------------------------- reading


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export, whole or not."""
    try:
        return _content(folder)["format"] == FORMAT
    except UsageError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export, all of whose files are as they were written.

    Raises:
        UsageError: there is none, or a file is another one than it says.
    """
    content = _content(folder)
    kind, files = content["artefact"]["format"], content["files"]
    expected = {FILES.get(kind), VOCABULARIES, READER}
    if None in expected or not expected <= set(files) <= expected | {DATA_FILE}:
        raise UsageError(f"{folder / MANIFEST} names other files than an export has")
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink() or digest(path) != wanted:
            raise UsageError(
                f"{path} isn't what was exported, by its checksum in {MANIFEST}: export it again"
            )
    return content


def check_made_of(content: dict[str, Any], folder: Path, scorer: Scorer, graph: Graph) -> None:
    """Make sure that an export says of its inputs and tokens what a checkpoint does.

    Raises:
        UsageError: it doesn't; the message says where.
    """
    for name, own in json.loads(json.dumps(about(scorer, graph))).items():
        if name not in content or content[name] != own:
            raise UsageError(f"{folder / MANIFEST}: '{name}' isn't that of the checkpoint")
    if (folder / VOCABULARIES).read_bytes() != _vocabularies(scorer).encode():
        raise UsageError(f"{folder / VOCABULARIES}: its tokens aren't those of the checkpoint")
    if (folder / READER).read_bytes() != _reader():
        raise UsageError(f"{folder / READER} isn't the one that this program writes: export again")


def _content(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = read_json(path)
        shape = content["format"], content["artefact"]["format"], content["files"].items()
        if shape[0] != FORMAT or not isinstance(shape[1], str):
            raise ValueError("its format is another one")
    except OSError as error:
        raise UsageError(f"{folder} is no export: it has no {MANIFEST}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} isn't as export writes it ({error})") from error
    found: dict[str, Any] = content
    return found
