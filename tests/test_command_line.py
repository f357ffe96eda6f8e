"""The program as a person calls it, in a process of its own."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recbole_escm2.command_line import _check_names, main, parse_arguments
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.request import KEYS as BENCHMARK_KEYS
from recbole_escm2.experiment.search import OPTIONS as SEARCH_OPTIONS

QUICK = ("--impression_sample=0.03", "--epochs=1", "--dataset=ml-100k")


def test_the_main_job(program, metrics_of, tmp_path):
    done = program("--model=ESCM2_DR", *QUICK)
    assert done.returncode == 0, done.stderr
    lines = metrics_of(done.stdout)
    (folder,) = (tmp_path / "output").iterdir()
    result = json.loads((folder / "result.json").read_text())["test_result"]
    assert lines == pytest.approx(result, abs=1e-6)
    assert {"CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CTR_NDCG@10"} <= set(lines)
    assert re.search(r"^metric +CTR +CVR +CTCVR$", done.stdout, re.MULTILINE)
    assert not metrics_of(done.stderr)
    assert "\r" not in done.stderr + done.stdout  # no progress bar in a pipe
    assert "Traceback" not in done.stderr

    again = program(f"--checkpoint={folder / 'checkpoint.pth'}", "--evaluate")
    assert metrics_of(again.stdout) == lines

    # the same command gives the same numbers
    assert metrics_of(program("--model=ESCM2_DR", *QUICK).stdout) == lines


def test_a_variant_of_ones_own(program, metrics_of, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from recbole_escm2.model import ESCM2_IPS\n"
        "class Twice(ESCM2_IPS):\n"
        "    default_config = {'factor': 2.0}\n"
        "    def __init__(self, config, dataset):\n"
        "        super().__init__(config, dataset)\n"
        "        self.factor = config['factor']\n"
        "    def counterfactual_risk(self, impressions):\n"
        "        return self.factor * super().counterfactual_risk(impressions)\n"
    )
    done = program("--model=mine:Twice", *QUICK, "--factor=3.5")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "output").iterdir()
    config = json.loads((folder / "result.json").read_text())["config"]
    assert config["factor"] == 3.5
    assert config["propensity_floor"] == 0.1
    arguments = (f"--checkpoint={folder / 'checkpoint.pth'}", "--evaluate")
    again = program(*arguments, "--model=mine:Twice")
    assert metrics_of(again.stdout) == metrics_of(done.stdout)
    refused = program(*arguments)
    assert refused.returncode == 2
    assert "chooses no code that is run: if it is yours, say so with --model=mine:Twice" in (
        refused.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=ESM", "--dataset=ml-100k"], r"did you mean ESMM\?"),
        (["--model=BPR", "--dataset=ml-100k"], "BPR is a general recommender"),
        (["--model=ESMM", "--dataset=nothing"], "there is no data set 'nothing'.*ml-100k"),
        (["--model=ESCM2_DR", "--dataset=ali-ccp"], "data set 408.*--dataset=ali-ccp-sim"),
        (["--model=ESMM", *QUICK, "--learning_rat=1"], r"did you mean learning_rate\?"),
        (["--model=ESMM", *QUICK, "--learning_rate=-1"], "learning_rate must be a number > 0"),
        (
            ["--model=ESMM", *QUICK, "--load_col={inter: [user_id, item_id, nope]}"],
            "load_col names 'nope'",
        ),
        (["--model=ESMM", *QUICK, "--valid_metric=IEB"], "IEB has no value"),
        (["--model=ESMM", *QUICK, "--eval_args={split: {XX: [1]}}"], "XX"),
        (["--checkpoint=none.pth", "--evaluate"], "there is no such file"),
        (["--dataset=ml-100k"], "which model"),
        (["ESMM"], "what is 'ESMM'"),
    ],
)
def test_mistakes_end_in_one_message(arguments, message, program_here, tmp_path):
    done = program_here(*arguments)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "output").glob("*")) if (tmp_path / "output").exists() else True


def test_missing_raw_files_of_ali_ccp_are_named(program, tmp_path):
    (tmp_path / "dataset" / "ali-ccp" / "raw").mkdir(parents=True)
    done = program("--model=ESCM2_DR", "--dataset=ali-ccp")
    assert done.returncode == 2
    assert "dataset/ali-ccp/raw: missing common_features_train.csv" in done.stderr
    assert "sample_train.tar.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version(program):
    done = program("--help")
    assert done.returncode == 0
    for word in ("--model", "ESCM2_DR", "ml-100k", "--checkpoint", "--task"):
        assert word in done.stdout
    folder = re.search(r"properties folder:\n(.+?);", done.stdout)
    assert folder
    assert (Path(folder.group(1)) / "overall.yaml").is_file()
    assert re.fullmatch(r"recbole_escm2 \d+\.\d+\.\d+\n", program("--version").stdout)


MISTYPED = "there is no config key '{}'.*did you mean {}"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "usage: "),
        (["--version"], 0, "recbole_escm2 "),
        (["search", "--help"], 0, "usage: "),
        (["predict", "--help"], 0, "usage: "),
        (["recommend", "--help"], 0, "usage: "),
        (["predict", "--datta=a"], 2, "predict knows no --datta .did you mean data"),
        (["--modle=ESMM", "--dataset=ml-100k"], 2, MISTYPED.format("modle", "model")),
        (["--model=ESMM", "--epoch=3"], 2, MISTYPED.format("epoch", "epochs")),
        (["--model=DeepFM,ESMM", "--sedes=3"], 2, MISTYPED.format("sedes", "seeds")),
        (["search", "--model=ESMM", "--trails=3"], 2, MISTYPED.format("trails", "trials")),
        (["score", "--help"], 0, "usage: "),
        (["score", "--labls=a.csv"], 2, r"score knows no --labls \(did you mean labels\?\)"),
    ],
)
def test_a_quick_answer_loads_neither_torch_nor_recbole(arguments, code, said):
    large = ("torch", "recbole", "numpy", "pandas", "optuna")
    script = (
        "import sys\nfrom recbole_escm2.command_line import main\ncode = main(sys.argv[1:])\n"
        f"print([name for name in {large} if name in sys.modules], code)"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"[] {code}"
    assert re.search(said, done.stderr if code else done.stdout)


def test_a_key_that_a_model_of_ones_own_may_have_waits_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--model=no_such_module:Mine", "--dataset=toy", "--factor=2"]) == 2
    assert "there is no module 'no_such_module'" in capsys.readouterr().err


def test_options_of_a_benchmark_and_a_search_are_no_mistakes():
    names = {*BENCHMARK_KEYS, *SEARCH_OPTIONS} - {"benchmark"}
    _check_names({"model": "ESMM", "attention_size": "4", **dict.fromkeys(names, "")})


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        (["--a=1", "--b=x=y"], {"a": "1", "b": "x=y"}),
        (["--a", "1", "--b", "-3"], {"a": "1", "b": "-3"}),
        (["--a="], {"a": ""}),
        (["--evaluate", "--checkpoint", "f"], {"evaluate": "", "checkpoint": "f"}),
        (["-h"], {"help": ""}),
        (["--a=1", "--a=1"], {"a": "1"}),
    ],
)
def test_arguments(arguments, parsed):
    assert parse_arguments(arguments) == parsed


@pytest.mark.parametrize("arguments", [["--a"], ["--a", "--b=1"], ["a=1"], ["--a=1", "--a=2"]])
def test_arguments_that_are_refused(arguments):
    with pytest.raises(UsageError):
        parse_arguments(arguments)


def test_simulate(program, metrics_of, tmp_path):
    done = program("simulate", "--rows=2_000", "--out=made", "--behaviours=20", "--click_rate=0.2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar in a pipe
    content = json.loads((tmp_path / "made" / "simulation.json").read_text())
    assert content["settings"]["click_rate"] == 0.2
    assert re.search(r"^split +rows +clicks +conversions +common rows$", done.stdout, re.MULTILINE)
    for split, counts in content["splits"].items():
        row = [split, *(f"{counts[n]:,}" for n in ("rows", "clicks", "conversions"))]
        assert re.search("^" + " +".join(row) + " ", done.stdout, re.MULTILINE)
    for name, size in content["bytes"].items():
        assert (tmp_path / "made" / name).stat().st_size == size
        assert re.search(rf"^{name} +{size:,}$", done.stdout, re.MULTILINE)
    assert "Simulated, not Ali-CCP" in done.stdout
    assert "--out=dataset/ali-ccp/raw" in done.stdout
    assert not metrics_of(done.stdout)


def test_simulate_over_real_files(program, tmp_path):
    file = tmp_path / "dataset" / "ali-ccp" / "raw" / "common_features_train.csv"
    file.parent.mkdir(parents=True)
    file.write_text("real")
    done = program("simulate", "--rows=2000", f"--out={file.parent}")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*common_features_train\.csv isn't a file.*\n", done.stderr)
    assert file.read_text() == "real"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("program", "started"),
    [
        ("/usr/bin/recbole-escm2", "recbole-escm2"),
        ("C:/Scripts/recbole-escm2.exe", "recbole-escm2"),
        ("/somewhere/recbole_escm2/__main__.py", "python -m recbole_escm2"),
        ("run_recbole_escm2.py", "python run_recbole_escm2.py"),
        ("../my copy/run_recbole_escm2.py", "python '../my copy/run_recbole_escm2.py'"),
    ],
)
def test_a_benchmark_is_told_how_it_was_started(monkeypatch, program, started):
    told = []

    def benchmark(options, command):
        told.append((options, shlex.join(command)))
        return 0

    monkeypatch.setattr("recbole_escm2.report.command.benchmark", benchmark)
    monkeypatch.setattr("sys.argv", [program, "--model=ESMM", "--seeds=[1, 2]"])
    assert main() == 0
    options = {"model": "ESMM", "seeds": "[1, 2]"}
    assert told == [(options, f"{started} --model=ESMM '--seeds=[1, 2]'")]
    # called from a script, argv is the script's: this is what does the same
    assert main(["--model=ESMM", "--seeds=[1, 2]"]) == 0
    assert told[1] == (options, "python -m recbole_escm2 --model=ESMM '--seeds=[1, 2]'")


def test_two_simulations_into_one_folder_take_turns(tmp_path):
    simulation = Simulation(rows=3000, behaviours=5)
    alone = simulate(simulation, tmp_path / "alone")
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(simulate(simulation, tmp_path / "both")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [alone, alone]
    for name in (*alone["bytes"], "simulation.json"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_simulate_where_raw_files_belong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "--rows=100", "--out", "dataset/ali-ccp/raw"]) == 0
    assert "dataset/ali-ccp/raw is where the raw files" in capsys.readouterr().out


def test_help_of_simulate(capsys):
    assert main(["simulate", "--help"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Simulation):
        assert re.search(rf"^  --{field.name} ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
    assert main(["--help"]) == 0
    assert "simulate --rows=N --out=DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --out=DIR"),
        (["--rows=9"], "needs --out=DIR"),
        (["--out=x"], "needs --rows=N"),
        (["--out=x", "--rows=1e4"], "rows must be a whole number, got '1e4'"),
        (["--out=x", "--rows=9", "--selection=much"], "selection must be a number, got 'much'"),
        (["--out=x", "--rows=9", "--selection=2"], "selection must be a number from 0 to 1"),
        (["--out=x", "--rows=9", "--sede=1"], r"no --sede \(did you mean seed\?\)"),
        (["--out=x", "--rows"], "--rows needs a value"),
    ],
)
def test_mistakes_in_simulate(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *arguments]) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err)
    assert output.out == ""
    assert not list(tmp_path.iterdir())
