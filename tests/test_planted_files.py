"""No file chooses code or a path: every kind of file that the program reads is planted, with a
probe that would leave a trace."""

from __future__ import annotations

import io
import json
import pickle
import platform
import re
import sqlite3
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from pyarrow import csv, feather, parquet
from studies import study_of

import recbole_escm2
from recbole_escm2.command_line import main
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, save_table
from recbole_escm2.data.ali_ccp.chunks import Options
from recbole_escm2.data.ali_ccp.files import find_raw
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.data.ali_ccp.source import read_raw
from recbole_escm2.data.build import Rules, build
from recbole_escm2.data.open_store import open_store
from recbole_escm2.data.store import SCHEMA, NoStoreError, Store
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.influence import INFLUENCE_FILE, NoInfluenceError, read_influence
from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.experiment.runs import execute, finished
from recbole_escm2.experiment.search import Searcher, make_search
from recbole_escm2.experiment.space import read_space
from recbole_escm2.export.manifest import FORMAT as EXPORT
from recbole_escm2.export.manifest import digest as digest_of
from recbole_escm2.export.manifest import is_export, read_manifest
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.report.record import read_record, write_record
from recbole_escm2.serve.http.rows import Refused, rows_in
from recbole_escm2.serve.new_data import NewData
from recbole_escm2.train.checkpoint import load_checkpoint, save_checkpoint

CHOICES = CategoricalDistribution([0.01, 0.02])
SMALL = ("--model=ESMM", "--dataset=tiny", "--epochs=1", "--embedding_size=4")
SMALL += ("--mlp_hidden_size=[4]", "--train_batch_size=4096", "--metrics=[CTR_AUC]")


class Trap:
    """A folder with probes; :meth:`check` finds out whether one of them has acted.

    ``planted.py`` writes a file when it is imported, a :class:`Bomb` when it is unpickled, and
    whatever is written into, emptied or deleted outside of ``here`` is noticed.
    """

    def __init__(self, folder: Path, data_path: Path) -> None:
        self.here = folder / "here"
        self.outside = folder / "outside"
        self.data_path = data_path
        self.trace = self.outside / "trace"
        self.victim = self.outside / "victim"
        self.here.mkdir()
        self.outside.mkdir()
        self.victim.write_text("precious")
        (self.outside / "kept").mkdir()
        (self.outside / "kept" / "file").write_text("precious")
        (self.here / "planted.py").write_text(
            f"open({str(self.trace)!r}, 'w').close()\n"
            "from recbole_escm2.model import ESMM\n\n\nclass Planted(ESMM):\n    pass\n"
        )

    @property
    def code(self) -> str:
        """An expression that leaves a trace."""
        return f"open({str(self.trace)!r}, 'w')"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **{"data_path": str(self.data_path), "output_dir": str(self.here / "output")},
            **{"epochs": 1, "embedding_size": 4, "mlp_hidden_size": [4], "metrics": ["CTR_AUC"]},
            "show_progress": False,
        }

    def check(self) -> None:
        """Nothing outside is new, gone or other, and no code was run."""
        assert "planted" not in sys.modules
        there = {path.relative_to(self.outside).as_posix() for path in self.outside.rglob("*")}
        assert there == {"victim", "kept", "kept/file"}
        assert self.victim.read_text() == "precious"
        assert (self.outside / "kept" / "file").read_text() == "precious"


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


@pytest.fixture
def trap(tmp_path, data_path, monkeypatch):
    trap = Trap(tmp_path, data_path)
    monkeypatch.chdir(trap.here)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield trap
    sys.modules.pop("planted", None)


def refused(words: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    with pytest.raises(UsageError, match=words):
        call(*arguments, **named)


# ------------------------------------------------------------------ checkpoints


def checkpoint(trap: Trap) -> None:
    """Its model is a module, its settings are folders, names that lead elsewhere, and code."""
    outcome = run("ESMM", "tiny", config_dict=trap.settings)
    state = load_checkpoint(f"{outcome['run_dir']}/checkpoint.pth")
    file = trap.here / "received.pth"
    places = {key: trap.settings[key] for key in ("data_path", "output_dir")}

    def evaluate(**entries: Any) -> Any:
        settings = {**state["settings"], **entries.pop("settings", {})}
        save_checkpoint(file, {**state, **entries, "settings": settings})
        return evaluate_checkpoint(file, config_dict=places)

    def serve(**entries: Any) -> Any:
        settings = {**state["settings"], **entries.pop("settings", {})}
        save_checkpoint(file, {**state, **entries, "settings": settings})
        return recbole_escm2.load(file)

    refused("chooses no code", evaluate, model="planted:Planted")
    refused("there is no model", evaluate, model="planted")
    refused("dataset can't be", evaluate, dataset="../../outside/kept")
    refused(
        "benchmark_filename can't be", evaluate, settings={"benchmark_filename": ["../x", "b", "c"]}
    )
    kd = {"teacher": f"CrossNet if {trap.code} else 0", "phase": "teacher_training"}
    refused("teacher must be", evaluate, model="KD_DAGFM", settings=kd)
    pickled = trap.here / "teacher.pth"
    pickled.write_bytes(pickle.dumps(Bomb(trap.trace)))
    kd = {"teacher": "CrossNet", "phase": "finetuning", "warm_up": str(pickled)}
    refused("can run any code", evaluate, model="KD_DAGFM", settings=kd)
    for words, entries in (
        ("chooses no code", {"model": "planted:Planted"}),
        ("there is no model", {"model": "planted"}),
        ("dataset can't be", {"dataset": "../../outside/kept"}),
        ("can run any code", {"model": "KD_DAGFM", "settings": kd}),
        ("isn't as this program writes it", {"vocabularies": {"text": str(trap.victim)}}),
    ):
        refused(words, serve, **entries)

    elsewhere = str(trap.outside / "kept")
    folders = ("output_dir", "checkpoint_dir", "store_dir", "data_path", "dataset_save_path")
    serve(settings={**dict.fromkeys(folders, elsewhere), "log_wandb": True})
    again = evaluate(settings={**dict.fromkeys(folders, elsewhere), "log_wandb": True})
    assert Path(again["run_dir"]).parent == trap.here / "output"


def pickled_checkpoint(trap: Trap) -> None:
    """A pickle of torch's, of Python's, and of the kind before, whose loading was never safe."""
    for name, write in {
        "zip": lambda file: torch.save({"x": Bomb(trap.trace)}, file),
        "legacy": lambda file: torch.save(
            {"x": Bomb(trap.trace)}, file, _use_new_zipfile_serialization=False
        ),
        "pickle": lambda file: Path(file).write_bytes(pickle.dumps(Bomb(trap.trace))),
    }.items():
        write(trap.here / name)
        refused("run any code", evaluate_checkpoint, trap.here / name)
    save_checkpoint(trap.here / "sealed", {"x": Bomb(trap.trace)})
    refused("can't be read as plain data", evaluate_checkpoint, trap.here / "sealed")


# ------------------------------------------------------------------ what runs leave behind


def run_folder(trap: Trap) -> None:
    """A run's folder that was there before: its run.json, its results, and links."""
    options = {
        **{key: str(value) for key, value in trap.settings.items()},
        **{"model": "ESMM", "dataset": "tiny", "seeds": "1"},
    }
    plan = make_experiment(options)
    (one,) = plan.runs
    folder = one.folder
    folder.mkdir(parents=True)
    asked = {"model": "planted:Planted", "dataset": "tiny", "saved": True, "code": one.code}
    asked["settings"] = {**one.settings, "output_dir": str(trap.outside), "state": "debug"}
    (folder / "run.json").write_text(json.dumps(asked))
    (folder / "history.json").write_text("[[[")
    for name, target in {
        "lock": trap.victim,
        "output.log": trap.victim,
        "tensorboard": trap.outside / "kept",
        "run.log": trap.victim,
    }.items():
        (folder / name).symlink_to(target)
    (done,) = execute(iter([one]), 1)
    assert done.reason == ""
    assert done.result is not None
    assert done.result["model"] == "ESMM"
    for content in ("[]", "{", '{"test_result": {}}'):
        (folder / "result.json").write_text(content)
        refused("remove it, and the run is done again", finished, one)
    linked = make_experiment({**options, "seed": "3"})
    place = linked.runs[0].folder
    place.symlink_to(trap.outside / "kept")
    refused("is a link", list, execute(iter(linked.runs), 1))


def record_of_a_study(trap: Trap) -> None:
    """One whose JSON has no end or is of another kind, and whose cells are code and paths."""
    folder = trap.here / "record"
    folder.mkdir()
    write_record(study_of({name: {"CTR_AUC": [0.7, 0.8]} for name in "ab"}, "a"), folder)
    whole, runs = (folder / "study.json").read_text(), (folder / "runs.csv").read_text()
    rows = json.dumps({**json.loads(whole), "rows": [{"label": trap.code}]})
    for text in ("[" * 100_000, "[" * 100 + "]" * 100, "[]", "{", trap.code, rows):
        (folder / "study.json").write_text(text)
        refused("isn't what a benchmark writes", read_record, folder)
    (folder / "study.json").write_text(whole)
    for cell in ("../../outside/kept", trap.code.replace(",", ";"), "=1+1"):
        (folder / "runs.csv").write_text(runs.replace("finished", cell))
        read_record(folder)


def influence_values(trap: Trap) -> None:
    """Archives of pickles, and one whose rows are those of a file elsewhere."""
    folder = trap.here / "runs" / "one"
    folder.mkdir(parents=True)
    bombs = np.array([Bomb(trap.trace)], object)
    for digest in (bombs, np.array("/../../../outside/victim")):
        with open(folder / INFLUENCE_FILE, "wb") as file:
            np.savez(file, digest=digest, CTR_AUC=bombs)
        with pytest.raises(NoInfluenceError):
            read_influence(folder)
    for harm in (pickle.dumps(bombs), b"", b"PK"):
        (folder / INFLUENCE_FILE).write_bytes(harm)
        with pytest.raises(NoInfluenceError):
            read_influence(folder)
    truth = trap.here / "runs" / f"test-rows-{'0' * 64}.npz"
    with open(truth, "wb") as file:
        np.savez(file, click=bombs, cluster0=bombs)
    with open(folder / INFLUENCE_FILE, "wb") as file:
        np.savez(file, digest=np.array("0" * 64), CTR_AUC=bombs)
    with pytest.raises(NoInfluenceError):
        read_influence(folder).of("CTR_AUC")


def search_database(trap: Trap) -> None:
    """Trials with other keys and values, notes of another kind or that name files, and a link."""
    (trap.here / "x.hyper").write_text("learning_rate choice [0.01, 0.02]\n")
    options = {key: str(value) for key, value in trap.settings.items()}
    options |= {"model": "ESMM", "dataset": "tiny", "params_file": "x.hyper", "trials": "1"}

    def searcher(name: str) -> Searcher:
        asked = make_search({**options, "name": name})
        asked.folder.mkdir(parents=True, exist_ok=True)
        return Searcher(asked)

    study = searcher("names").study
    for owner in (str(trap.victim), f"../../../../outside/{'0' * 32}.owner", str(trap.here)):
        trial = study.ask({"learning_rate": CHOICES})
        trial.set_user_attr("owner", f"{platform.node()}:{owner}")
        trial.set_user_attr("run", str(trap.outside / "kept"))
        study.tell(trial, state=TrialState.FAIL)
    searcher("names").try_again()
    assert len(study.get_trials(states=[TrialState.WAITING])) == 3
    study.enqueue_trial({"output_dir": str(trap.outside), "model": "planted:Planted"})
    refused("a trial with output_dir = .* which isn't in its ranges", searcher, "names")
    own = {"learning_rate": CategoricalDistribution(["=1+1"])}
    planted = {"params": {"learning_rate": "=1+1"}, "distributions": own}
    for state, value in (("COMPLETE", 1.0), ("FAIL", None), ("WAITING", None)):
        trial = create_trial(state=TrialState[state], value=value, **planted)
        searcher(state).study.add_trial(trial)
        refused("a trial with learning_rate = '=1\\+1'", searcher, state)
    for number, (kind, name, value) in enumerate(
        (
            ("system_attrs", "retry_history", ["../x"]),
            ("system_attrs", "retry_history", 3),
            ("system_attrs", "fixed_params", [1]),
            ("user_attrs", "test_result", "=1+1"),
            ("user_attrs", "scores", {"ctr": 1}),
        )
    ):
        trial = create_trial(state=TrialState.WAITING, **{kind: {name: value}})
        searcher(f"note{number}").study.add_trial(trial)
        refused("wasn't written by a search", searcher, f"note{number}")
    third = searcher("third")
    (third.plan.folder / "lock").unlink()
    (third.plan.folder / "lock").symlink_to(trap.victim)
    third.try_again()
    with sqlite3.connect(third.plan.folder / "study.db") as database:
        database.execute("update study_user_attributes set value_json = '[1]'")
    refused("wasn't written by a search", searcher, "third")


# ------------------------------------------------------------------ data


def schema_of_a_store(trap: Trap) -> None:
    """Tables and columns that are files elsewhere, and a type of Python objects."""
    config = Config("ESMM", "tiny", config_dict={**trap.settings, "store_dir": "stores"})
    folder = open_store(config).folder
    whole = json.loads((folder / SCHEMA).read_text())
    table = whole["tables"]["inter"]
    columnar = {**table["layout"]["columnar"], "../../../outside/victim": "uint8"}
    for tables in (
        {"../../../outside/victim": table},
        {"inter": {**table, "layout": {**table["layout"], "columnar": columnar}}},
        {"inter": {**table, "layout": {**table["layout"], "columnar": {"click": "O"}}}},
        {"inter": {**table, "rows": "many"}},
        [],
    ):
        (folder / SCHEMA).write_text(json.dumps({**whole, "tables": tables}))
        with pytest.raises(NoStoreError):
            Store(folder)
    for files in ({"../../../outside/victim": "0"}, {"inter.rows": ["0"]}, ["inter.rows"]):
        (folder / SCHEMA).write_text(json.dumps({**whole, "files": files}))
        with pytest.raises(NoStoreError):
            Store(folder)
    (folder / SCHEMA).write_text("[" * 100_000)
    store = open_store(config)  # made anew from the files
    assert store.tables.keys() == whole["tables"].keys()


def atomic_files(trap: Trap) -> None:
    """Columns that would be files elsewhere, and names of data sets that would be folders."""
    folder = trap.here / "data" / "odd"
    folder.mkdir(parents=True)
    name = "/../../../../outside/victim"
    rows = "".join(f"u{n % 3}\ti{n}\t{n % 2}\t0\n" for n in range(40))
    (folder / "odd.inter").write_text(
        f"user_id:token\titem_id:token\t{name}:float\tconversion:float\n{rows}"
    )
    given = {**trap.settings, "data_path": str(trap.here / "data"), "CLICK_FIELD": name}
    refused("a column can't be", EntireSpaceDataset, Config("ESMM", "odd", config_dict=given))
    for key, names in {
        "dataset": ("../../outside/kept", "/etc", "a\0b", "..", "a/b", "a\\b", "C:x", "x" * 999),
        "ratings": ("../outside/kept", "/etc"),
    }.items():
        for value in names:
            data = {"dataset": "ml-100k-semi"} if key == "ratings" else {}
            given = {**trap.settings, **data, key: value}
            refused(f"{key} can't be", Config, "ESMM", config_dict=given)


def table_files(trap: Trap) -> None:
    """Columns that would be files elsewhere, types that are pickles, names that are folders."""
    folder = trap.here / "data" / "odd"
    folder.mkdir(parents=True)
    name = "/../../../../outside/victim"
    bomb = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Bomb(trap.trace)),
    }
    fields = [pa.field("c", pa.string(), metadata=bomb), pa.field(name, pa.int64())]
    columns = [pa.array([trap.code, f"!!python/name:{trap.code}"]), pa.array([1, 0])]
    table = pa.table(columns, schema=pa.schema(fields))
    given = {**trap.settings, "data_path": str(trap.here / "data"), "CLICK_FIELD": name}
    given |= {"task": "ctr", "model": "DeepFM", "dataset": "odd"}
    for suffix, write in (
        ("arrow", feather.write_feather),
        ("parquet", parquet.write_table),
        ("csv", csv.write_csv),
    ):
        write(table, str(folder / f"odd.{suffix}"))
        refused("a column can't be", EntireSpaceDataset, Config(config_dict=given))
        (folder / f"odd.{suffix}").unlink()
    parquet.write_table(table.rename_columns(["c", "click"]), str(folder / "odd.parquet"))
    assert len(EntireSpaceDataset(Config(config_dict={**given, "CLICK_FIELD": "click"}))) == 2
    parts = {"benchmark_filename": ["../../outside/kept", "b", "c"]}
    refused("benchmark_filename can't be", Config, config_dict={**given, **parts})
    for wrong in ("../../outside/kept", "/etc"):
        refused("dataset can't be", save_table, table, wrong, trap.here / "data")


def raw_files_of_ali_ccp(trap: Trap) -> None:
    """Archives with members that leave the folder, a truth of pickles, a simulation's JSON."""
    raw = trap.here / "raw"
    simulate(Simulation(rows=300, behaviours=5), raw)
    options = Options(("101", "205"))

    def convert(folder: Path) -> None:
        build(*read_raw(find_raw(folder), options), trap.here / "s", Rules())

    truth = raw / "truth_train.npy"
    kept = truth.read_bytes()
    bomb = np.empty((300, 3), object)
    bomb[:] = Bomb(trap.trace)
    np.save(truth, bomb, allow_pickle=True)
    refused(r"truth_train\.npy", convert, raw)
    truth.write_bytes(kept)
    note = raw / "simulation.json"
    for content in ("[]", '{"note": {}}', "{", "[" * 100_000):
        note.write_text(content)
        refused(r"simulation\.json", convert, raw)

    archives = trap.here / "archives"
    archives.mkdir()
    for split in ("train", "test"):
        with tarfile.open(archives / f"sample_{split}.tar.gz", "w:gz") as archive:
            link = tarfile.TarInfo(f"common_features_{split}.csv")
            link.type, link.linkname = tarfile.SYMTYPE, str(trap.victim)
            archive.addfile(link)
            for kind in ("common_features", "sample_skeleton"):
                content = (raw / f"{kind}_{split}.csv").read_bytes()
                member = tarfile.TarInfo(f"../../../outside/{kind}_{split}.csv")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            evil = tarfile.TarInfo(str(trap.outside / "evil"))
            archive.addfile(evil, io.BytesIO())
    convert(archives)
    Store(trap.here / "s")


def ratings_of_coat(trap: Trap) -> None:
    """Features that are called as a path or as code; code in the place of a rating."""
    raw = trap.here / "coat" / "raw"
    (raw / "user_item_features").mkdir(parents=True)
    config = Config("ESMM", "coat", None, {**trap.settings, "data_path": str(trap.here)})
    for part in ("train", "test"):
        (raw / f"{part}.ascii").write_text("5 0\n0 4\n")
    for side in ("user", "item"):
        features = raw / "user_item_features" / f"{side}_features"
        features.with_suffix(".ascii").write_text("1 0\n0 1\n")
        named = f"../../../outside/evil:{trap.code}\n../../../outside/evil:{trap.trace}\n"
        Path(f"{features}_map.txt").write_text(named)
    open_store(config)
    (raw / "test.ascii").write_text(f"5 {trap.code.replace(' ', '')}\n0 4\n")
    refused("test.ascii line 1", open_store, config)


def exports(trap: Trap) -> None:
    """A manifest whose files lie elsewhere, are links, or are none; and one that has no end."""
    folder = trap.here / "export"
    folder.mkdir()
    (folder / "model.onnx").symlink_to(trap.victim)
    for name in ("vocabularies.json", "reader.py"):
        (folder / name).write_text(trap.code)
    sums = {
        name: digest_of(folder / name) for name in ("model.onnx", "vocabularies.json", "reader.py")
    }
    for words, files in (
        ("names other files", {**sums, "../../outside/victim": digest_of(trap.victim)}),
        ("names other files", {"reader.py": sums["reader.py"]}),
        ("isn't what was exported", sums),
        ("isn't what was exported", {**sums, "reader.py": "0"}),
    ):
        content = {"format": EXPORT, "artefact": {"format": "onnx"}, "files": files}
        (folder / "manifest.json").write_text(json.dumps(content))
        refused(words, read_manifest, folder)
    for text in ("[" * 100_000, '{"format": ' * 50_000, "[]", "{", trap.code):
        (folder / "manifest.json").write_text(text)
        refused("isn't as export writes it", read_manifest, folder)
        assert not is_export(folder)


def new_rows(trap: Trap) -> None:
    """Cells and requests that are paths or code: tokens like any other."""
    outcome = run("ESMM", "tiny", config_dict=trap.settings)
    scorer = recbole_escm2.load(f"{outcome['run_dir']}/checkpoint.pth")
    file = trap.here / "new.csv"
    names = ["user_id", "item_id", "hour", "category", "tags"]
    for cell in (trap.code.replace(",", ";"), str(trap.victim), "../../outside/kept", "=1+1"):
        file.write_text("\n".join([",".join(names), ",".join([cell] * len(names)), ""]))
        (block,) = NewData(str(file), scorer).blocks()
        assert len(scorer.score(block.rows, block.file).of["ctr"]) == 1
    for body in (b"[" * 100_000, b'{"rows": ' * 50_000, trap.code.encode()):
        with pytest.raises(Refused):
            rows_in(body, 10)


# ------------------------------------------------------------------ configuration


def yaml_files(trap: Trap) -> None:
    """Tags that make objects; a name that leaves output_dir. Folders and models it may name."""
    for text in (
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path "
        f"[{trap.trace}]]",
        f"seed: !!python/object/apply:os.mkdir [{trap.trace}]",
        f"seed: !!python/name:planted.Planted\nx: !!python/module:planted {trap.code}",
    ):
        (trap.here / "c.yaml").write_text(text)
        refused("is not YAML", Config, "ESMM", "tiny", ["c.yaml"])
        refused("is not YAML", make_experiment, {"benchmark": "c.yaml"})
    for key in ("seed", "mlp_hidden_size", "load_col"):
        refused(f"{key} must be", Config, "ESMM", "tiny", None, trap.settings, {key: trap.code})
    for name in ("../../outside/new", str(trap.outside / "new"), "a/b", "..", "a\0", "con"):
        (trap.here / "b.yaml").write_text(
            json.dumps({**trap.settings, "dataset": "tiny", "models": ["ESMM"], "name": name})
        )
        refused("name can't be", make_experiment, {"benchmark": "b.yaml"})
        given = {key: str(value) for key, value in trap.settings.items()}
        refused(
            "name can't be",
            make_search,
            {**given, "model": "ESMM", "dataset": "tiny", "name": name},
        )
    where = (f"--data_path={trap.data_path}", "--output_dir=output")
    assert main([*SMALL, *where, "--seeds=1", "--name=../../outside/new"]) == 2


def ranges(trap: Trap) -> None:
    """A file of ranges with an expression, and with folders or modules to choose from."""
    file = trap.here / "x.hyper"
    file.write_text(f"learning_rate choice [{trap.code}]\n")
    refused("line 1", read_space, file)
    options = {"data_path": str(trap.data_path), "dataset": "tiny", "params_file": "x.hyper"}
    for key, value in {
        "output_dir": str(trap.outside / "new"),
        "store_dir": str(trap.outside / "new"),
        "model": "planted:Planted",
        "dataset": "../../outside",
    }.items():
        file.write_text(f"{key} choice ['{value}']\n")
        refused(f"the ranges have {key}", make_search, {**options, "model": "ESMM"})
    file.write_text(f"teacher choice ['{trap.code[:4]}']\n")
    asked = make_search({**options, "model": "KD_DAGFM", "task": "ctr"})
    refused("teacher must be", asked.run_of, 0, {"teacher": trap.code})


#: Every kind of file that the program reads: the modules of the package that read it.
KINDS: dict[Callable[[Trap], None], set[str]] = {
    checkpoint: {"train/checkpoint.py", "serve/http/served.py"},
    pickled_checkpoint: {"train/checkpoint.py"},
    run_folder: {"experiment/runs.py", "experiment/worker.py", "train/run.py"},
    record_of_a_study: {"report/record.py"},
    influence_values: {"evaluator/influence.py"},
    search_database: {"experiment/search.py"},
    schema_of_a_store: {"data/store.py", "identity.py"},
    atomic_files: {"data/checks.py", "data/sources/atomic_text.py"},
    table_files: {"data/sources/csv_text.py", "data/sources/table.py"},
    ratings_of_coat: {"data/sources/coat.py"},
    raw_files_of_ali_ccp: {
        *(
            "data/ali_ccp/files.py",
            "data/ali_ccp/simulate.py",
            "data/ali_ccp/source.py",
        ),
    },
    exports: {"export/manifest.py", "export/reader.py", "limits.py"},
    new_rows: {"serve/new_data.py", "serve/http/rows.py"},
    yaml_files: {"property_files.py"},
    ranges: {"experiment/space.py"},
}
#: These read files of the package itself or of RecBole, the source of modules that are imported
#: already, and what the system says of its processors; one maps a file that it has just made, and
#: two only write.
OWN = {"report/page.py", "train/code.py", "model/backbone.py", "threads.py"}
OWN |= {"model/sharded.py", "command_line.py", "output.py"}
READS = re.compile(
    r"\b(open|open_csv|read_text|read_bytes|read_csv|fromfile|from_file|memmap|mmap|RDBStorage|ZipFile|read_json)\("
    r"|\b(torch|np|json|yaml|pickle|tarfile|joblib)\.(load|loads|open)\("
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_file_acts(trap, kind):
    kind(trap)
    trap.check()


def test_every_module_that_reads_a_file_is_among_the_kinds():
    package = Path(recbole_escm2.__file__).parent
    reading = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if READS.search(file.read_text(encoding="utf-8"))
    }
    known = set.union(OWN, *KINDS.values())
    assert reading - known == set()
    assert known - reading == set()


def test_nothing_is_unpickled_or_evaluated():
    acting = re.compile(
        r"import pickle|pickle\.\w|allow_pickle=True|\bexec\(|(?<!\.)\beval\(|__import__|joblib"
    )
    package = Path(recbole_escm2.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not acting.search(text), file
        assert text.count("torch.load(") == len(re.findall(r"weights_only=True[,)]", text)), file
        assert not re.search(
            r"yaml\.(full_|unsafe_)?load|(Full|Unsafe)Loader|yaml\.Loader", text
        ), file


def test_the_trap_closes(trap):
    """The probes do leave a trace where a file acts."""
    pickle.loads(pickle.dumps(Bomb(trap.trace)))
    with pytest.raises(AssertionError):
        trap.check()
    trap.trace.unlink()
    trap.check()
    with pytest.raises(UsageError):
        run("planted:Planted", "nothing", config_dict=trap.settings)
    assert trap.trace.exists()
