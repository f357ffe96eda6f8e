"""RecBole's own context-aware models through our data, loader, trainer and evaluator."""

import pytest

from recbole_escm2.lookup import context_model_names, recbole_context_models
from recbole_escm2.model import MODELS
from recbole_escm2.quick_start import run

OURS = len(MODELS)


def test_every_module_of_recbole_is_covered():
    assert len(context_model_names()) == OURS + len(recbole_context_models())
    assert {"LR", "FM", "DeepFM", "DCNV2", "KD_DAGFM", "xDeepFM"} <= set(context_model_names())


@pytest.mark.parametrize("model", context_model_names()[OURS:])
def test_trains_and_is_scored_on_a_sample_of_ml_100k(model, tmp_path):
    outcome = run(
        model,
        "ml-100k",
        config_dict={
            "impression_sample": 0.02,
            "epochs": 1,
            "output_dir": str(tmp_path),
            "show_progress": False,
        },
        saved=False,
    )
    result = outcome["test_result"]
    assert 0 <= result["CTR_AUC"] <= 1
    assert result["CTR_LogLoss"] > 0
    assert {name.split("_")[0] for name in result} == {"CTR"}


@pytest.mark.parametrize(
    ("task", "metric"), [("ctr", "CTR_AUC"), ("cvr", "CVR_AUC_ES"), ("ctcvr", "CTCVR_AUC")]
)
def test_deepfm_learns_each_task(task, metric, settings):
    changes = {"task": task, "epochs": 15, "learning_rate": 0.02, "valid_metric": metric}
    outcome = run("DeepFM", "tiny", config_dict={**settings, **changes})
    assert outcome["test_result"][metric] > 0.62
    assert {name.split("_")[0] for name in outcome["test_result"]} <= {task.upper(), "IEB"}


@pytest.mark.parametrize("model", ["DCN", "DCNV2", "NFM"])
def test_an_epoch_may_end_in_a_batch_of_one(model, settings):
    """820 impressions in batches of 273, to models that normalise by the batch."""
    changes = {"train_batch_size": 273, "impression_sample": 0.2562, "epochs": 1}
    outcome = run(model, "tiny", config_dict={**settings, **changes}, saved=False)
    assert 0 <= outcome["test_result"]["CTR_AUC"] <= 1


@pytest.mark.parametrize("model", ["DSSM", "FM", "DCN", "WideDeep"])
@pytest.mark.parametrize("features", [[], ["age"]])
def test_numbers_that_are_no_features_are_left_alone(model, features, settings):
    """``age`` of the users, which ``numerical_features`` names or doesn't."""
    changes = {"numerical_features": features, "epochs": 1}
    outcome = run(model, "tiny", config_dict={**settings, **changes}, saved=False)
    assert 0 < outcome["test_result"]["CTR_AUC"] < 1
