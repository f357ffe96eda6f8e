"""The program as a person calls it, in a process of its own."""

import json
import re
from pathlib import Path

import pytest

from recbole_escm2.command_line import parse_arguments
from recbole_escm2.errors import UsageError

QUICK = ("--impression_sample=0.03", "--epochs=1", "--dataset=ml-100k")
METRIC_LINE = re.compile(r"^([A-Za-z]\w*(?:@\d+)?): (-?\d+\.\d+)$", re.MULTILINE)


def test_the_main_job(program, tmp_path):
    done = program("--model=ESCM2_DR", *QUICK)
    assert done.returncode == 0, done.stderr
    lines = dict(METRIC_LINE.findall(done.stdout))
    (folder,) = (tmp_path / "output").iterdir()
    result = json.loads((folder / "result.json").read_text())["test_result"]
    assert {name: float(value) for name, value in lines.items()} == pytest.approx(result, abs=1e-6)
    assert {"CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CTR_NDCG@10"} <= set(lines)
    assert re.search(r"^metric +CTR +CVR +CTCVR$", done.stdout, re.MULTILINE)
    assert not METRIC_LINE.findall(done.stderr)
    assert "\r" not in done.stderr + done.stdout  # no progress bar in a pipe
    assert "Traceback" not in done.stderr

    again = program(f"--checkpoint={folder / 'checkpoint.pth'}", "--evaluate")
    assert dict(METRIC_LINE.findall(again.stdout)) == lines

    # the same command gives the same numbers
    assert dict(METRIC_LINE.findall(program("--model=ESCM2_DR", *QUICK).stdout)) == lines


def test_a_variant_of_ones_own(program, tmp_path):
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
    again = program(f"--checkpoint={folder / 'checkpoint.pth'}", "--evaluate")
    assert METRIC_LINE.findall(again.stdout) == METRIC_LINE.findall(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=ESM", "--dataset=ml-100k"], r"did you mean ESMM\?"),
        (["--model=BPR", "--dataset=ml-100k"], "BPR is a general recommender"),
        (["--model=ESMM", "--dataset=nothing"], "there is no data set 'nothing'.*ml-100k"),
        (["--model=ESCM2_DR", "--dataset=ali-ccp"], "data set 408.*--dataset=ml-100k"),
        (["--model=ESMM", *QUICK, "--learning_rat=1"], r"did you mean learning_rate\?"),
        (["--model=ESMM", *QUICK, "--learning_rate=-1"], "learning_rate must be a number > 0"),
        (["--model=ESMM", *QUICK, "--load_col={inter: [user_id, item_id, nope]}"], "asks for nope"),
        (["--model=ESMM", *QUICK, "--valid_metric=IEB"], "IEB has no value"),
        (["--model=ESMM", *QUICK, "--eval_args={split: {XX: [1]}}"], "XX"),
        (["--checkpoint=none.pth", "--evaluate"], "there is no such file"),
        (["--dataset=ml-100k"], "which model"),
        (["ESMM"], "what is 'ESMM'"),
    ],
)
def test_mistakes_end_in_one_message(arguments, message, program, tmp_path):
    done = program(*arguments)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "output").glob("*")) if (tmp_path / "output").exists() else True


def test_raw_files_of_ali_ccp_are_not_taken_for_atomic_ones(program, tmp_path):
    (tmp_path / "dataset" / "ali-ccp" / "raw").mkdir(parents=True)
    done = program("--model=ESCM2_DR", "--dataset=ali-ccp")
    assert done.returncode == 2
    assert "there is no file dataset/ali-ccp/ali-ccp.inter. Ali-CCP can't be" in done.stderr
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
