"""What is optional is said in a sentence, and training does without it."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_escm2.extras import EXTRAS

_WITHOUT = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
import importlib.util

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {modules!r} else find(name, *rest)
from recbole_escm2.command_line import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def core(tmp_path, data_path):
    """Runs the program where no extra is installed."""
    modules = sorted({module for modules in EXTRAS.values() for module in modules})

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-c", _WITHOUT.format(modules=modules), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


def test_training_and_scoring_do_without(core, data_path):
    done = core("--model=ESCM2_DR", "--dataset=tiny", f"--data_path={data_path}", "--epochs=1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^CTCVR_AUC: 0\.\d+$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "extra", "missing"),
    [
        (("--model=ESMM,Naive",), "benchmark", "jinja2, matplotlib, optuna"),
        (("--model=ESMM", "--seeds=2"), "benchmark", "jinja2, matplotlib, optuna"),
        (("search", "--model=ESMM", "--trials=2"), "search", "optuna"),
    ],
)
def test_a_missing_extra_is_one_sentence_and_nothing_runs(
    core, data_path, tmp_path, arguments, extra, missing
):
    done = core(*arguments, "--dataset=tiny", f"--data_path={data_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: a {extra} needs {missing}, which isn't installed: "
        f"pip install 'recbole-escm2[{extra}]'\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_server_without_its_packages_is_one_sentence(core):
    done = core("serve", "--checkpoint=output")
    assert done.returncode == 2
    assert done.stderr == (
        "error: serve needs fastapi, orjson, prometheus_client, uvicorn, which isn't installed: "
        "pip install 'recbole-escm2[serve]'\n"
    )


def test_a_model_whose_library_is_missing_is_one_sentence(core, data_path, tmp_path):
    done = core("--model=LightGBM", "--dataset=tiny", f"--data_path={data_path}")
    assert done.returncode == 2
    assert done.stderr == (
        "error: LightGBM needs lightgbm, which isn't installed: pip install 'recbole-escm2[tree]'\n"
    )
    assert not list(tmp_path.iterdir())
    others = core("--model=LogisticRegression", "--dataset=tiny", f"--data_path={data_path}")
    assert others.returncode == 0, others.stderr


def test_the_extras_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    for extra, modules in EXTRAS.items():
        packages = [re.split(r"[<>=]", line)[0].replace("-", "_") for line in extras[extra].split()]
        assert sorted(packages) == sorted(modules)
    assert set(EXTRAS) < set(extras)
