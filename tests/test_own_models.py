"""Models of a user's own: what goes wrong in their code is said with file and line, and what their
hooks change is what is looked after."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest

from recbole_escm2.command_line import main

HEAD = "import torch\nfrom recbole_escm2.model import ESCM2_DR, ESCM2_IPS, ESMM\n\n\n"


@dataclass(frozen=True)
class Done:
    returncode: int
    stderr: str


@pytest.fixture
def own(tmp_path, data_path, monkeypatch, capsys):
    """Runs a class ``Mine`` of a module ``mine.py`` on the small data set, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the same file is written many times

    def call(code: str, *arguments: str) -> Done:
        (tmp_path / "mine.py").write_text(HEAD + textwrap.dedent(code))
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        code = main(
            [
                *("--model=mine:Mine", "--dataset=tiny", f"--data_path={data_path}"),
                *("--epochs=1", "--embedding_size=4", "--mlp_hidden_size=[8]"),
                *("--train_batch_size=512", *arguments),
            ]
        )
        return Done(code, capsys.readouterr().err)

    yield call
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            """\
            class Mine(ESMM):
                def __init__(self, config, dataset):
                    self.mine = torch.nn.Linear(1, 1)
            """,
            "mine.py, line 7, in __init__: AttributeError: cannot assign module before",
        ),
        (
            """\
            class Mine(ESCM2_IPS):
                def __init__(self, config, dataset):
                    super().__init__(config, dataset)
                    self.weight = 1 + config["my_weight"]
            """,
            "mine.py, line 8, in __init__: TypeError: unsupported operand",
        ),
        (
            """\
            class Mine(ESCM2_IPS):
                def counterfactual_risk(self, impressions):
                    return impressions.logit["teacher"].mean()
            """,
            "mine.py, line 7, in counterfactual_risk: KeyError: 'teacher'",
        ),
        (
            """\
            class Mine(ESCM2_IPS):
                def counterfactual_risk(self, impressions):
                    return impressions.error
            """,
            "risk 'cvr' of Mine must be a tensor with a single number, a mean (shape []), but is "
            "of shape [512]",
        ),
        (
            """\
            class Mine(ESCM2_IPS):
                def counterfactual_risk(self, impressions):
                    return float(impressions.error.mean())
            """,
            "risk 'cvr' of Mine must be a tensor with a single number",
        ),
        (
            """\
            class Mine(ESCM2_IPS):
                def counterfactual_risk(self, impressions):
                    super().counterfactual_risk(impressions)
            """,
            "counterfactual_risk of Mine has returned None: does it lack a return?",
        ),
        (
            """\
            class Mine(ESCM2_IPS):
                def propensity(self, logit, interaction):
                    return super().propensity(logit, interaction).mean()
            """,
            "propensity of Mine must be a tensor for each impression (shape [512]), but is of",
        ),
        ("class Mine(ESMM)\n    pass\n", "mine.py, line 5: SyntaxError: expected ':'"),
        ("import nothing_like_it\n", "mine.py, line 5: ModuleNotFoundError: No module named"),
        (
            "class Mine(ESMM):\n    tower_names = undefined\n",
            "mine.py, line 6: NameError: name 'undefined'",
        ),
    ],
)
def test_a_mistake_in_own_code_is_said_with_its_place(own, code, words):
    done = own(code)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_of_ones_own_has_the_type_of_its_default(own):
    code = "class Mine(ESMM):\n    default_config = {'mine': 0.5, 'twice': False}\n"
    for given, words in (
        ("mine=abc", "mine must be a number"),
        ("twice=3", "twice must be a bool"),
    ):
        done = own(code, f"--{given}")
        assert done.returncode == 2
        assert f"{words}, as its default" in done.stderr
        assert "Traceback" not in done.stderr
    assert own(code, "--mine=2", "--twice=True").returncode == 0
    other = code.replace("Mine", "Parent") + (
        "class Mine(Parent):\n    default_config = {'mine': 'auto'}\n"
    )
    assert own(other).returncode == 0
    assert "mine must be a str" in own(other, "--mine=2").stderr


def test_a_file_is_no_module_path(program_here):
    done = program_here("--model=./models/mine.py:Mine", "--dataset=ml-100k")
    assert done.returncode == 2
    assert "run it in the folder of mine.py as mine:Mine" in done.stderr


def test_a_hook_that_is_misspelt_is_said(own):
    done = own(
        """\
        class Mine(ESCM2_IPS):
            def counterfactual_risks(self, impressions):
                return super().counterfactual_risk(impressions)

            def weight_of_mine(self):
                return 1
        """
    )
    assert done.returncode == 0, done.stderr
    assert "Mine.counterfactual_risks is no hook" in done.stderr
    assert "is counterfactual_risk meant?" in done.stderr
    assert done.stderr.count("is no hook") == 1


def test_weights_of_ones_own_are_the_ones_that_are_looked_after(own, tmp_path):
    softened = """\
    class Mine(ESCM2_IPS):
        default_config = {"exponent": 0.5}

        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.exponent = config["exponent"]

        def propensity(self, logit, interaction):
            return super().propensity(logit, interaction) ** self.exponent
    """
    found = {}
    for exponent in (1.0, 0.5):
        done = own(softened, f"--exponent={exponent}", f"--output_dir=of-{exponent}")
        assert done.returncode == 0, done.stderr
        (file,) = (tmp_path / f"of-{exponent}").glob("*/result.json")
        found[exponent] = json.loads(file.read_text())
    done = own("class Mine(ESCM2_IPS):\n    pass\n", "--output_dir=plain")
    (file,) = (tmp_path / "plain").glob("*/result.json")
    plain = json.loads(file.read_text())
    # an exponent of 1 is what the model would have done by itself
    for key, value in plain["weights"].items():
        assert found[1.0]["weights"][key] == pytest.approx(value, rel=1e-5)
    assert found[1.0]["weight_quantiles"]["w"] == pytest.approx(plain["weight_quantiles"]["w"])
    soft = found[0.5]  # and the largest one is about the root of the other's
    for largest in (
        lambda result: result["weights"]["largest_weight"],
        lambda result: max(result["weight_quantiles"]["w"]),
    ):
        assert largest(soft) == pytest.approx(np.sqrt(largest(plain)), rel=0.1)
        assert largest(plain) > 2
    kept = soft["weights"]["effective_sample_size"] / soft["weights"]["clicks"]
    assert kept > plain["weights"]["effective_sample_size"] / plain["weights"]["clicks"]
