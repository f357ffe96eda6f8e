"""The command export: an artefact gives what its model does, without this package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import recbole_escm2
from recbole_escm2.command_line import main
from recbole_escm2.data import save_table
from recbole_escm2.errors import UsageError
from recbole_escm2.export import formats
from recbole_escm2.export.command import export_model, verify_export
from recbole_escm2.export.formats import FILES
from recbole_escm2.export.graph import Graph, _Part
from recbole_escm2.export.reader import Reader
from recbole_escm2.export.verify import TOLERANCE
from recbole_escm2.quick_start import run
from recbole_escm2.serve.scorer import Scorer

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
export_table = pytest.importorskip("export_table")
pytest.importorskip("onnxruntime", reason="needs the extra [serve]")
pytest.importorskip("onnxscript", reason="needs the extra [serve]")
with_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a model on a table with a field of every kind, once; the folder of its run."""
    place, runs = tmp_path_factory.mktemp("trained"), {}
    save_table(export_table.table(), "mine", place / "data")

    def call(model: str, **settings) -> Path:
        key = model, *settings.items()
        if key not in runs:
            places = {"data_path": str(place / "data"), "output_dir": str(place / "output")}
            config = {**export_table.settings_of(model), **places, **settings}
            runs[key] = Path(run(model, "mine", config_dict=config)["run_dir"])
        return runs[key]

    return call


@pytest.fixture
def export(trained, tmp_path, capsys):
    """Runs the command; its exit code, and what it says."""

    def call(*arguments: str, checkpoint: Path | None = None) -> tuple[int, str]:
        place = checkpoint or trained("ESCM2_DR")
        code = main(["export", f"--checkpoint={place}", f"--out={tmp_path / 'out'}", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.mark.parametrize("kind", ["onnx", "torch", pytest.param("aoti", marks=with_compiler)])
@pytest.mark.parametrize(
    ("model", "settings"),
    [("ESCM2_DR", {}), ("DeepFM", {"task": "both"}), ("DCMT", {"calibrate": "isotonic"})],
)
def test_an_artefact_gives_what_its_model_does(trained, tmp_path, kind, model, settings):
    """On random rows, unknown ids, rows without values, empty lists and one row."""
    done = export_model(trained(model, **settings), tmp_path / "out", kind)
    assert done.files == [FILES[kind]]
    assert len(done.differences) >= 4
    assert max(done.differences.values()) < TOLERANCE
    # a difference is measured, and not of something that is the same in all rows
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert [own["name"] for own in manifest["outputs"]] == ["pctr", "pcvr", "pctcvr"]
    assert (manifest["calibration"] is not None) == ("calibrate" in settings)


def test_onnx_has_what_recboles_own_layers_are_made_of(trained, tmp_path):
    """DSSM's cosine, of which torch makes an operation that ONNX hasn't."""
    done = export_model(trained("DSSM"), tmp_path / "out", "onnx")
    assert max(done.differences.values()) < TOLERANCE


def test_tensors_that_one_onnx_file_cant_hold_lie_beside_it(export, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LARGE", 0)
    assert export()[0] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert {"model.onnx", "model.onnx.data"} <= set(manifest["files"])
    assert export("--verify=only")[0] == 0
    (tmp_path / "out" / "model.onnx.data").write_bytes(b"0")
    code, said = export("--verify=only")
    assert code == 2
    assert "model.onnx.data isn't what was exported" in said


def test_an_artefact_that_isnt_the_model_is_refused_and_not_kept(trained, tmp_path, monkeypatch):
    """Its graph takes an unknown token for none."""
    monkeypatch.setattr(_Part, "_ids", lambda self, name, ids: ids.clamp(min=0))
    with pytest.raises(UsageError, match=r"differ by .* on random rows, more than 1e-05"):
        export_model(trained("ESCM2_DR"), tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_no_row_has_no_score(trained, tmp_path, kind):
    done = Scorer(trained("ESCM2_DR"), device="cpu")
    export_model(trained("ESCM2_DR"), tmp_path / "out", kind, verified=False)
    reader, graph = Reader(tmp_path / "out"), Graph(done)
    inputs = reader.inputs({name: [] for name in done.features})
    scores = formats.opened(kind, tmp_path / "out", graph)(list(inputs.values()))
    assert [own.shape for own in scores] == [(0,)] * 3


#: What the page shows, in a process that has neither this package nor torch.
_ALONE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("recbole_escm2", "recbole", "torch", "pandas", "pyarrow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
{code}
import json
print(json.dumps([value.tolist() for value in scores]))
"""


def test_the_page_s_example_runs_without_this_package(trained, tmp_path):
    (code,) = re.findall(r"<!-- example.*?-->\n```python\n(.+?)```", PAGE.read_text("utf-8"), re.S)
    export_model(trained("ESCM2_DR"), tmp_path / "artefact", "onnx", verified=False)
    rows = {
        "user_id": ["7", "11", "nobody"],
        "item_id": [3, 999, 5],
        "when": [1_700_000_500.0, 1_700_004_000.0, None],
        "price": [5.5, None, 3.25],
        "genres": [["g1", "g8"], [], ["of no training"]],
        "past": [[("p1", 0.5), ("p19", 2.0)], [], [("p3", 1.0)]],
        "prices": [[0.5, -1.0], [], [2.0]],
    }
    shown = re.search(r"columns = \{.*?\n\}\n", code, re.S)
    assert shown is not None
    own = f"columns = {rows!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ALONE.format(code=code.replace(shown[0], own))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    got = np.array(json.loads(done.stdout.splitlines()[-1]))
    past = pa.array(rows["past"], pa.map_(pa.string(), pa.float32()))
    expected = recbole_escm2.load(trained("ESCM2_DR")).predict(pa.table({**rows, "past": past}))
    assert np.abs(got.T - expected.to_numpy()).max() < TOLERANCE
    assert got.std(axis=1).min() > TOLERANCE  # rows differ by more than that


_ROW = {
    **{"user_id": "7", "item_id": "3", "when": 1_700_000_001.0, "price": 5.5, "genres": ["g1"]},
    **{"past": [("p1", 0.5)], "prices": [1.0], "city": "a b", "flag": True},
}
_CITIES = ["", "a b", "Zürich", "東京", "true", "7", "07", "1.5", None]
_ODD = {
    "city": [*_CITIES, True, 7, 7.0, -0.0, float("nan"), "NaN", "[UNK]", "[PAD]", " 7", "no city"],
    "flag": [True, False, "true", "True", 1, None, np.bool_(False)],
    "user_id": [7, 7.0, "7", "7.0", "07", None, np.int64(7), np.float32(7), 2**40, -3],
    "price": [None, float("nan"), "5.5", "", 5, True, "nan", -1e30],
    "when": [None, 1_700_000_000, "1700000001", 0],
    "genres": [None, [], ["g1", None], [None], ["g1", "g1"], ["", "g2"], "g1  g2", "", ["new"]],
    "prices": [None, [], [1.0, None], [None], [1, 2, 3, 4, 5], "1 2  3", "", ["1", "2"]],
    "past": [None, [], [("p1", None)], [("p1", float("nan"))], [(None, 2.0)], [("new", 1.0)]],
}
_ODD["past"] += [[("p1", -1.0), ("p2", 3.0)], [("p1", 0.0)]]


@pytest.fixture(scope="module")
def with_odd_texts(tmp_path_factory):
    """A run on a table with texts of all sorts and truth values; its model, artefact and reader."""
    onnxruntime = pytest.importorskip("onnxruntime")
    place = tmp_path_factory.mktemp("odd")
    table = export_table.table()
    more = {
        "city": pa.array([_CITIES[n % 9] for n in range(len(table))]),
        "flag": pa.array([n % 3 == 0 for n in range(len(table))]),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    save_table(table, "odd", place / "data")
    places = {"data_path": str(place / "data"), "output_dir": str(place / "output")}
    settings = {**export_table.settings_of("ESMM"), **places}
    folder = run("ESMM", "odd", config_dict=settings)["run_dir"]
    export_model(folder, place / "out", "onnx")
    session = onnxruntime.InferenceSession(place / "out" / "model.onnx")
    return recbole_escm2.load(folder, device="cpu"), session, Reader(place / "out")


@pytest.mark.parametrize("field", _ODD)
def test_the_reader_takes_each_value_for_what_the_model_does(with_odd_texts, field):
    model, session, reader = with_odd_texts
    pair = pa.list_(pa.struct([("id", pa.string()), ("weight", pa.float32())]))
    seen = set()
    for value in _ODD[field]:
        row = {**_ROW, field: value}
        columns = {name: [own] for name, own in row.items()}
        table = {name: pa.array(own) for name, own in columns.items() if name != "past"}
        rows = pa.table({**table, "past": pa.array(columns["past"], pair)})
        expected = model.predict(rows).to_numpy()[0]
        got = np.concatenate(session.run(None, reader.inputs(columns)))
        assert np.abs(got - expected).max() < TOLERANCE, (value, got, expected)
        seen.add(tuple(got.round(7)))
    assert len(seen) > 2  # values matter


def test_the_reader_takes_no_fraction_for_a_whole_number(with_odd_texts):
    _, _, reader = with_odd_texts
    columns = {name: [own] * 3 for name, own in _ROW.items()} | {
        "user_id": [7.0, 7.5, float("inf")]
    }
    known, fraction, infinite = reader.inputs(columns)["user_id"]
    assert known > 0
    assert fraction == infinite == -1


def test_a_manifest_has_what_a_reader_needs(trained, tmp_path):
    export_model(trained("ESCM2_DR"), tmp_path / "out", "onnx", verified=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    inputs = {own["name"]: own for own in manifest["inputs"]}
    assert inputs["user_id"] == {
        **{"name": "user_id", "field": "user_id"},
        **{"type": "int64", "shape": ["batch"]},
    }
    assert inputs["past.weights"]["shape"] == inputs["past.values"]["shape"]
    assert inputs["past.offsets"]["shape"] == ["batch + 1"]
    assert inputs["price"]["type"] == "float64"
    assert manifest["unknown_id"] == -1
    fields = {own["name"]: own for own in manifest["fields"]}
    vocabularies = json.loads((tmp_path / "out" / "vocabularies.json").read_text("utf-8"))
    assert "g1" in vocabularies[fields["genres"]["vocabulary"]]
    assert set(manifest["files"]) == {"model.onnx", "vocabularies.json", "reader.py"}


def test_an_earlier_export_is_replaced_and_nothing_else_is(export, trained, tmp_path):
    assert export("--verify=False", "--format=torch")[0] == 0
    first = (tmp_path / "out" / "manifest.json").read_bytes()
    assert (
        export(
            "--verify=False", "--format=torch", checkpoint=trained("DCMT", calibrate="isotonic")
        )[0]
        == 0
    )
    assert (tmp_path / "out" / "manifest.json").read_bytes() != first
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", "utf-8")
    code, said = export()
    assert code == 2
    assert "is there and is no export: name another folder" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("file", ["model.onnx", "vocabularies.json", "reader.py"])
def test_an_export_that_was_changed_is_refused_by_the_name_of_the_file(
    export, trained, tmp_path, file
):
    assert export("--verify=False")[0] == 0
    assert export("--verify=only")[0] == 0
    content = bytearray((tmp_path / "out" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / file).write_bytes(content)
    code, said = export("--verify=only")
    assert code == 2
    assert f"{file} isn't what was exported" in said


def test_an_export_of_another_checkpoint_is_told(export, trained):
    assert export("--verify=False")[0] == 0
    code, said = export("--verify=only", checkpoint=trained("DCMT", calibrate="isotonic"))
    assert code == 2
    assert "isn't that of the checkpoint" in said


def test_a_format_that_can_run_code_is_not_opened_again(trained, tmp_path):
    export_model(trained("ESCM2_DR"), tmp_path / "out", "torch", verified=False)
    with pytest.raises(UsageError, match="can run any code that is in it"):
        verify_export(trained("ESCM2_DR"), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=pickle"], "--format=pickle: there are onnx, torch, aoti"),
        (["--verify=perhaps"], "--verify must be True, False or only, got 'perhaps'"),
        (["--formt=onnx"], "--formt"),
    ],
)
def test_mistakes_are_told(export, tmp_path, arguments, message):
    code, said = export(*arguments)
    assert code == 2
    assert message in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("model", "settings"), [("FwFM", {}), ("ESMM", {"backbone": "FwFM"})])
def test_what_recboles_fwfm_cant_read_is_told_in_one_line(trained, model, settings):
    with pytest.raises(UsageError, match="gives no weight to pairs with prices"):
        trained(model, **settings)


def test_models_without_a_graph_are_refused_in_one_line(export, trained, tmp_path):
    code, said = export(checkpoint=trained("LogisticRegression", task="both"))
    assert code == 2
    assert "LogisticRegression" in said
    assert not list(tmp_path.iterdir())
