"""What RecBole's look-ups find after the import (scripts/prove_stock_recbole.sh runs it all)."""

import subprocess
import sys

import pytest
import recbole.data.dataset
import recbole.evaluator.register as recbole_register
import recbole.trainer
from recbole.utils import ModelType, get_model, get_trainer

import recbole_escm2
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.metric_names import METRIC_NAMES
from recbole_escm2.model import ESMM, MODELS
from recbole_escm2.model_names import MODEL_NAMES
from recbole_escm2.plugin import register
from recbole_escm2.train.trainer import EntireSpaceTrainer


def test_recbole_finds_models_data_set_and_trainer():
    for model in MODELS:
        assert get_model(model.__name__) is model
        assert get_trainer(ModelType.CONTEXT, model.__name__) is EntireSpaceTrainer
        assert getattr(recbole.data.dataset, f"{model.__name__}Dataset") is EntireSpaceDataset


def test_every_model_is_found_by_its_name():
    assert set(MODEL_NAMES) == {model.__name__ for model in MODELS}


LOOK = """
from recbole.utils import ModelType, get_model, get_trainer
import recbole.data.dataset, recbole.evaluator.register as register
assert get_model("ESCM2_DR").__module__ == "recbole_escm2.model.escm2_dr"
assert get_model("DeepFM").__module__.startswith("recbole.")
assert get_trainer(ModelType.CONTEXT, "ESCM2_DR").__name__ == "EntireSpaceTrainer"
assert get_trainer(ModelType.CONTEXT, "DeepFM").__name__ == "Trainer"
assert recbole.data.dataset.ESMMDataset.__name__ == "EntireSpaceDataset"
assert not hasattr(recbole.data.dataset, "DeepFMDataset")
assert "ctcvr_auc" in register.metrics_dict and "ieb" in register.smaller_metrics
"""


@pytest.mark.parametrize(
    "before",
    [
        "import recbole_escm2",
        "import recbole.data, recbole.trainer, recbole.evaluator, recbole_escm2",
        "from recbole_escm2.evaluator import catalogue",
        "from recbole_escm2.model import ESMM",
    ],
)
def test_recbole_finds_all_whichever_is_imported_first(before):
    done = subprocess.run([sys.executable, "-c", before + LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recbole_finds_metrics_and_their_direction():
    for name in (*METRIC_NAMES, "CTR_NDCG", "CTR_NDCG@10", "CVR_Recall@5"):
        assert name.lower() in recbole_register.metrics_dict
        assert name.lower() in recbole_register.metric_types
        assert name.lower() in recbole_register.metric_information
    assert {"ctr_logloss", "cvr_ece", "ieb"} <= set(recbole_register.smaller_metrics)
    assert "ctr_auc" not in recbole_register.smaller_metrics


def test_registering_twice_adds_nothing():
    def sizes():
        register_names = ("metrics_dict", "metric_types", "metric_information", "smaller_metrics")
        return [len(getattr(recbole_register, name)) for name in register_names] + [
            len(vars(recbole.data.dataset)),
            len(vars(recbole.trainer)),
            len([name for name in sys.modules if name.startswith("recbole.model")]),
        ]

    before = sizes()
    register()
    assert sizes() == before


def test_a_model_of_a_script_can_be_registered():
    class Mine(ESMM):
        __module__ = "__main__"  # which has no spec

    recbole_escm2.register_model(Mine)
    try:
        assert get_model("Mine") is Mine
        assert get_trainer(ModelType.CONTEXT, "Mine") is EntireSpaceTrainer
    finally:
        del recbole.data.dataset.MineDataset, recbole.trainer.MineTrainer
        del sys.modules["recbole.model.context_aware_recommender.mine"]
