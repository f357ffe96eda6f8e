"""Exports that aren't as they were written: ``export --verify=only`` says which file or entry."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from common import refused, trained_on_all_kinds

from recbole_escm2.export.command import export_model
from recbole_escm2.export.manifest import digest

pytest.importorskip("onnxruntime", reason="needs the extra [serve]")
pytest.importorskip("onnxscript", reason="needs the extra [serve]")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a checkpoint, and what was exported of it."""
    place = tmp_path_factory.mktemp("sound")
    done = trained_on_all_kinds(place)
    whole = place / "whole"
    export_model(done, whole / "export")
    shutil.copy(done / "checkpoint.pth", whole)
    return whole


@pytest.fixture
def damaged(sound, tmp_path):
    """A copy of it, to change; the call that checks it must be refused."""
    shutil.copytree(sound, tmp_path / "here")

    def call(change) -> str:
        change(tmp_path / "here" / "export")
        given = ("--checkpoint=checkpoint.pth", "--out=export", "--verify=only")
        return refused(tmp_path / "here", "export", *given)

    return call


def with_entry(*path_and_value):
    """A manifest with another entry, or, given no value, without it."""
    *path, value = path_and_value

    def change(export):
        content = json.loads((export / "manifest.json").read_bytes())
        place = content
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        (export / "manifest.json").write_text(json.dumps(content))

    return change


def with_text(text):
    def change(export):
        (export / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def with_file(name, content, known=True):
    """Another file, whose checksum is put into the manifest or not."""

    def change(export):
        path = export / name
        path.write_bytes(content(path.read_bytes()))
        if known:
            with_entry("files", name, digest(path))(export)

    return change


def linked(name):
    def change(export):
        (export / name).rename(export.parent / "elsewhere")
        (export / name).symlink_to(export.parent / "elsewhere")

    return change


AS_WRITTEN = r"manifest\.json isn't as export writes it"
OTHER_FILES = r"manifest\.json names other files than an export has"
CHECKSUM = r" isn't what was exported, by its checksum in manifest\.json: export it again"
SAID = ("model", "dataset", "inputs", "outputs", "fields", "missing_id", "unknown_id")
SAID += ("unknown_rule", "calibration", "support", "data")
FILES = ("model.onnx", "vocabularies.json", "reader.py")

CASES = {
    **{
        f"a manifest of {what}": (with_text(text), AS_WRITTEN)
        for what, text in {
            "nothing": "",
            "half": '{"format": "recbole_escm2 export 1", "artefact"',
            "a list": "[]",
            "a number": "1",
            "null": "null",
            "no text": b"\xff\xfe{}",
            "a page": "<!DOCTYPE html>",
            "brackets": "[" * 100_000,
            "objects": '{"format":' * 50_000,
            "a long number": "9" * 5_000,
            "many bytes": "[" + "0," * 20_000_000 + "0]",
            "deep lists": "[" * 200 + "]" * 200,
        }.items()
    },
    **{
        f"{key} is {value!r}": (with_entry(key, value), AS_WRITTEN)
        for key in ("format", "artefact", "files")
        for value in (..., None, 3, [], "x")
    },
    **{
        f"artefact format {value!r}": (with_entry("artefact", "format", value), words)
        for value, words in {
            None: AS_WRITTEN,
            3: AS_WRITTEN,
            "": OTHER_FILES,
            "../x": OTHER_FILES,
            "pickle": OTHER_FILES,
            "torch": OTHER_FILES,
            "aoti": OTHER_FILES,
        }.items()
    },
    **{
        f"{key} {how}": (with_entry(key, value), rf"manifest\.json: '{key}' isn't that of the ")
        for key in SAID
        for how, value in {"is gone": ..., "is another": "x", "is a list": [[]]}.items()
    },
    **{
        f"a file {name}": (with_entry("files", name, "0" * 64), OTHER_FILES)
        for name in ("../../victim", "/etc/passwd", "", "planted.py", "model.pt2", "manifest.json")
    },
    **{f"{name} has no checksum": (with_entry("files", name, ...), OTHER_FILES) for name in FILES},
    **{
        f"{name} has the checksum {value!r}": (with_entry("files", name, value), name + CHECKSUM)
        for name in FILES
        for value in ("0" * 64, None, 3, ["0"])
    },
    **{
        f"{name} is {how}": (with_file(name, change, known=False), name + CHECKSUM)
        for name in FILES
        for how, change in {
            "cut": lambda content: content[:-1],
            "empty": lambda _: b"",
            "longer": lambda content: content + b"\n",
        }.items()
    },
    **{f"{name} is a link": (linked(name), name + CHECKSUM) for name in FILES},
    **{
        f"{name} is gone": (lambda export, name=name: (export / name).unlink(), name + CHECKSUM)
        for name in FILES
    },
    **{
        f"a model that is {how}, with its checksum": (
            with_file("model.onnx", change),
            r"model\.onnx can't be loaded: ",
        )
        for how, change in {
            "cut": lambda content: content[: len(content) // 2],
            "empty": lambda _: b"",
            "text": lambda _: b"import os",
            "zeros": lambda content: bytes(len(content)),
        }.items()
    },
    **{
        f"vocabularies that are {how}, with their checksum": (
            with_file("vocabularies.json", change),
            r"vocabularies\.json: its tokens aren't those of the checkpoint",
        )
        for how, change in {
            "others": lambda content: content.replace(b'"g1"', b'"g0"'),
            "in another order": lambda content: json.dumps(
                [own[::-1] for own in json.loads(content)]
            ).encode(),
            "no text": lambda _: b"\xff",
            "brackets": lambda _: b"[" * 100_000,
            "none": lambda _: b"[]",
        }.items()
    },
    "another reader, with its checksum": (
        with_file("reader.py", lambda content: content + b"\nimport os"),
        r"reader\.py isn't the one that this program writes",
    ),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_an_export_that_isnt_as_it_was_written(damaged, change, words):
    said = damaged(change)
    assert re.search(words, said), said


def test_what_isnt_changed_is_verified(sound):
    from recbole_escm2.export.command import verify_export

    assert verify_export(sound / "checkpoint.pth", sound / "export")
