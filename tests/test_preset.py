"""Settings that ship under a name: above all defaults, below whatever the user sets."""

import pytest
import yaml

import recbole_escm2.config as config_module
from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.keys import KEYS
from recbole_escm2.model import MODELS
from recbole_escm2.property_files import PROPERTIES, read_yaml

PRESETS = [file.stem for file in sorted((PROPERTIES / "preset").glob("*.yaml"))]
FREE = {
    "embedding_weight_decay": 0.01,
    "embedding_dropout": 0.3,
    "embedding_init": "field",
    "first_order": True,
    "validations_per_epoch": 5,
    "weight_averaging": 0.9,
}


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_sets_is_a_key_and_a_value_of_it(name):
    for key, value in read_yaml(PROPERTIES / "preset" / f"{name}.yaml").items():
        assert KEYS[key].kind.holds(value), key
    for model in (*MODELS, "DeepFM", "LogisticRegression"):  # also where some of them do nothing
        assert Config(model, "ml-100k", None, {"preset": name})["preset"] == name


def test_the_papers_form_is_without_all_that_was_added():
    config = Config("ESCM2_DR", "ml-100k", None, {"preset": "paper"})
    off = {"embedding_init": "xavier", "first_order": False, "validations_per_epoch": 1}
    assert {key: config[key] for key in FREE} == {**dict.fromkeys(FREE, 0.0), **off}


@pytest.mark.parametrize("dataset", ["ml-100k", "ml-100k-semi", "ali-ccp-sim", "coat"])
def test_entire_space_models_have_defaults_of_their_own_on_a_data_set(dataset):
    """Where validation has chosen them; not elsewhere, and not for other models."""

    def penalty(model, name, **settings):
        return Config(model, name, None, settings)["embedding_weight_decay"]

    assert penalty("ESCM2_DR", dataset) == penalty("AITM", dataset) == 0.001
    assert penalty("ESCM2_DR", dataset, preset="paper") == 0
    assert penalty("ESCM2_DR", dataset, embedding_weight_decay=0.1) == 0.1
    assert penalty("DeepFM", dataset) == penalty("ESCM2_DR", "toy") == 0


def test_what_is_set_for_a_model_on_a_data_set_is_a_key_of_it():
    files = sorted((PROPERTIES / "dataset").glob("*/*.yaml"))
    assert len(files) >= 4
    for file in files:
        assert (PROPERTIES / "dataset" / file.name).is_file(), file
        for key, value in read_yaml(file).items():
            assert KEYS[key].kind.holds(value), key


def test_whatever_is_set_wins_over_a_preset(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"preset": "paper", **FREE}))
    config = Config("ESMM", "ml-100k", [str(file)], None, {"embedding_dropout": "0.1"})
    assert {key: config[key] for key in FREE} == {**FREE, "embedding_dropout": 0.1}
    config = Config("ESMM", "ml-100k", None, {"first_order": True}, {"preset": "paper"})
    assert config["first_order"]
    assert config["embedding_weight_decay"] == 0


def test_a_preset_wins_over_defaults_of_model_and_data_set(monkeypatch):
    of_model = config_module.model_defaults
    monkeypatch.setattr(config_module, "model_defaults", lambda model: of_model(model) | FREE)
    assert Config("ESMM", "toy", None, {"preset": "paper"})["embedding_init"] == "xavier"


@pytest.mark.parametrize("name", ["papers", "../model/ESMM", "/etc/paper", "__init__", ""])
def test_there_is_no_other_preset(name):
    with pytest.raises(UsageError, match=r"no preset .*Presets: paper.*--config_files"):
        Config("ESMM", "toy", None, {"preset": name})
