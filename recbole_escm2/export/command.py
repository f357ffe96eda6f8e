"""The command ``export``: a checkpoint as an artefact that runs without this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recbole_escm2.errors import UsageError
from recbole_escm2.export import formats
from recbole_escm2.export.graph import Graph
from recbole_escm2.export.manifest import (
    MANIFEST,
    check_made_of,
    is_export,
    read_manifest,
    write_beside,
)
from recbole_escm2.export.verify import TOLERANCE, verify
from recbole_escm2.output import beside, make_folder
from recbole_escm2.serve.scorer import Scorer

_NEEDED = {
    "checkpoint": "a checkpoint, or the folder of a run",
    "out": "the folder of the export",
}


def export(options: Mapping[str, str]) -> int:
    """Write an export, or verify one that is there.

    Args:
        options: those that the command's help lists, as text.

    Raises:
        UsageError: something that the user can mend; the message says what.
    """
    for name, what in _NEEDED.items():
        if not options.get(name):
            raise UsageError(f"export needs --{name}=…: {what}")
    wanted, out = options.get("verify", "True").lower(), Path(options["out"])
    if wanted not in ("true", "false", "only"):
        raise UsageError(f"--verify must be True, False or only, got {options['verify']!r}")
    if wanted == "only":
        checked = verify_export(options["checkpoint"], out, options.get("model"))
        print(f"{out} is what was exported, and gives what the checkpoint does: {_said(checked)}")
        return 0
    done = export_model(
        options["checkpoint"],
        out,
        options.get("format", "onnx"),
        wanted == "true",
        options.get("model"),
    )
    verified = f"; {_said(done.differences)}" if done.differences else ""
    print(f"{out}: {', '.join(done.files)}, {MANIFEST}{verified}")
    return 0


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: of the artefact.
        differences: the largest ones from the model's probabilities, by kind of rows; empty where
            it wasn't verified.
    """

    files: list[str]
    differences: dict[str, float]


def export_model(
    checkpoint: str | Path,
    out: Path,
    kind: str = "onnx",
    verified: bool = True,
    model: str | type | None = None,
) -> Exported:
    """Write a checkpoint's model as an artefact, with its manifest, vocabularies and reader.

    Args:
        checkpoint: a file, or the folder of a run.
        out: the folder; an earlier export there is replaced once the new one is whole.
        kind: of :data:`recbole_escm2.export.formats.FILES`.
        verified: whether it is run and compared with the model.
        model: the class or ``path.to.module:Class``, where it is the user's own.

    Raises:
        UsageError: it can't be exported so, or not to that place; or it isn't what the model is.
    """
    formats.check_format(kind)
    out = out.absolute()
    if out.exists() and not is_export(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out={out} is there and is no export: name another folder")
    make_folder("--out", out.parent)
    scorer = Scorer(checkpoint, model, "cpu")
    graph = Graph(scorer)
    with beside(out) as made:
        made.mkdir()
        files = formats.write(kind, graph, made)
        write_beside(made, scorer, graph, kind, files)
        found = verify(formats.opened(kind, made, graph), made, scorer) if verified else {}
        with beside(out) as old:
            if out.exists():
                os.replace(out, old)
            os.replace(made, out)
    return Exported(files, found)


def verify_export(
    checkpoint: str | Path, folder: Path, model: str | type | None = None
) -> dict[str, float]:
    """Compare an export that is there with a checkpoint, as :func:`export_model` does.

    Returns:
        The largest differences, by kind of rows.

    Raises:
        UsageError: it is no export or not as it was written, was made of another checkpoint, or
            differs; or it isn't ONNX, and running it could run any code in it.
    """
    content = read_manifest(folder)
    kind = content["artefact"]["format"]
    if kind != "onnx":
        raise UsageError(
            f"{folder} is an artefact of format {kind}, which can run any code that is in it: only "
            "one that this command writes is verified, at once. Export it again"
        )
    formats.check_format(kind)
    scorer = Scorer(checkpoint, model, "cpu")
    graph = Graph(scorer)
    check_made_of(content, folder, scorer, graph)
    return verify(formats.opened(kind, folder, graph), folder, scorer)


def _said(differences: Mapping[str, float]) -> str:
    worst = max(differences, key=lambda kind: differences[kind])
    return (
        f"at most {differences[worst]:.1e} from the model ({worst}; {len(differences)} kinds of "
        f"rows, {TOLERANCE:g} allowed)"
    )
