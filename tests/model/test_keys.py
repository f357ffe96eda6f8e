"""Each config key on each model: it changes what the model computes, or it is refused."""

from pathlib import Path

import pytest
import torch
import yaml

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.plan import make_experiment
from recbole_escm2.experiment.request import has_effect
from recbole_escm2.keys import FAMILY
from recbole_escm2.model import AITM, ESMM, MODELS, MTL_EIB, Naive
from recbole_escm2.model.single_task import train_as_the_family
from recbole_escm2.property_files import PROPERTIES
from recbole_escm2.tasks import is_entire_space, single_task
from recbole_escm2.train.trainer import EntireSpaceTrainer

#: Keys that some models have no use for, each with a value that isn't its default. What they are
#: about is what a model computes: the losses of an epoch's steps, and its predictions after them.
OF_MODELS = {
    "backbone": "shared_bottom",
    "bag_pooling": "sum",
    "balancing_floor": 0.9,
    "balancing_weight": 3.0,
    "bias_share": 1.0,
    "bottom_hidden_size": [12],
    "calibrator_weight": 3.0,
    "conversion_weight": 3.0,
    "counterfactual_prior_weight": 1.0,
    "counterfactual_weight": 0.7,
    "ctr_settings": {"learning_rate": 0.1},
    "cvr_settings": {"learning_rate": 0.1},
    "cvr_weight_limit": 0.1,
    "dropout_prob": 0.5,
    "embedding_dropout": 0.5,
    "embedding_init": 0.5,
    "embedding_optimizer": "adagrad",
    "embedding_size": 8,
    "extraction_level_num": 1,
    "first_order": True,
    "global_weight": 3.0,
    "imputation": "label",
    "imputation_schedule": "alternate",
    "mlp_hidden_size": [12],
    "predict_task": "ctr",
    "propensity": "field",
    "propensity_calibration": "platt",
    "propensity_floor": 0.9,
    "propensity_normalization": "snips",
    "shared_expert_num": 3,
    "sparse_embedding": True,
    "task": "ctcvr",
    "task_expert_num": 1,
}
#: All other keys of ours, by what they are about, whatever the model is.
OF_ANY_MODEL = {
    "labels": {
        *("CLICK_FIELD", "CONVERSION_FIELD", "LABEL_FIELD", "POTENTIAL_CONVERSION_FIELD"),
        *("PROPENSITY_FIELD", "TRUE_CTR_FIELD", "TRUE_CVR_FIELD", "conversion_without_click"),
        *("impression_sample", "impressions", "threshold"),
        *("CLICK_WEIGHT_FIELD", "CONVERSION_WEIGHT_FIELD", "EVENT_FIELDS"),
    },
    "data": {
        *("item_inter_num_interval", "load_col", "multi_value_top_k", "source", "store_dir"),
        *("min_count", "standardize", "user_inter_num_interval", "weight_scaler"),
    },
    "splits": {
        *("eval_args", "train_neg_sample_args", "tuning_part"),
        *("folds", "keep_together", "validation_share"),
    },
    "training": {
        *("embedding_weight_decay", "epochs", "learner", "learning_rate", "sleeping_decay"),
        *("final_fit", "stopping_step", "train_batch_size", "training_seed", "valid_metric"),
        *("pos_weight", "preset", "validations_per_epoch", "weight_averaging"),
    },
    "evaluation": {
        *("calibration_bins", "decision_threshold", "eval_batch_size", "metrics", "primary"),
        *("by", "save_predictions", "topk", "weighted_metrics"),
    },
    "calibration": {"calibrate", "calibrate_weights", "calibrate_floor"},
    "files and terminal": {
        *("checkpoint_dir", "init_from", "output_dir", "resume", "save_interval"),
        "embedding_placement",
        "show_progress",
    },
}
# Their parents and DCMT, whose towers they have, are tried on both.
ON_ONE_BOTTOM = {"ESCM2_DR_BIAS", "ESCM2_DR_MSE", "ESCM2_TDR", "ESCM2_IPS_V2", "ESCM2_DR_V2"}
ON_ONE_BOTTOM |= {"ESCM2_STABLE_DR", "DDPO", "NISE"}
CASES = [
    (model.__name__, bottom)
    for model in MODELS
    for bottom in ("separate", "ple")
    if bottom == "separate" or model.__name__ not in ON_ONE_BOTTOM
]
CASES += [("ESCM2_DR", b) for b in ("shared_bottom", "mmoe", "LR", "FM", "FFM", "DeepFM", "AFM")]


def test_every_key_says_what_it_is_about():
    ours = set()
    for file in ("overall.yaml", *(f"model/{f.name}" for f in (PROPERTIES / "model").iterdir())):
        if file.endswith(".yaml"):
            ours |= set(yaml.safe_load((PROPERTIES / file).read_text("utf-8")))
    others = set().union(*OF_ANY_MODEL.values())
    # tried in test_reference.py
    of_reference_models = {"l2_penalty", "num_leaves", "min_data_in_leaf", "shrinkage_rate"}
    of_reference_models |= {"rate_smoothing"}
    assert ours == set(OF_MODELS) | others | of_reference_models
    assert not others & set(OF_MODELS)
    assert set(OF_MODELS) | of_reference_models == FAMILY


@pytest.fixture
def computed(build, tmp_path, monkeypatch):
    """What a model computes with some settings: losses of an epoch, then its predictions."""
    monkeypatch.chdir(tmp_path)

    def computed(model, epochs=1, **settings):
        built = build(model, **settings)
        if not is_entire_space(built.config):  # as the runner does
            train_as_the_family(built.model, built.config, built.train.dataset[:2])
        built.config["checkpoint_dir"] = str(tmp_path)
        trainer = EntireSpaceTrainer(built.config, built.model)
        torch.manual_seed(0)
        losses = trainer._train_epoch(built.train, 0)
        for epoch in range(1, epochs):  # what validation changes is seen in the next epoch
            trainer.train_loss_dict[epoch - 1] = sum(losses)
            trainer._valid_epoch(built.valid)
            losses = trainer._train_epoch(built.train, epoch)
        trainer.tensorboard.close()
        built.model.eval()
        with torch.no_grad():
            predictions = built.model.predict(next(iter(built.valid))[0])
        return losses, predictions.tolist()

    return computed


@pytest.mark.parametrize(("model", "backbone"), CASES)
def test_a_key_acts_on_a_model_or_is_refused(computed, configure, model, backbone):
    before = computed(model, backbone=backbone)
    class_ = next(m for m in MODELS if m.__name__ == model)
    for key, value in OF_MODELS.items():
        settings = {"backbone": backbone, key: value}
        if key == "backbone" and value == backbone:
            settings[key] = "separate"
        acts = key in class_.acting_keys(backbone)
        assert has_effect(key, class_, "shop", (backbone,)) == acts
        if key == "propensity_calibration" and acts:
            assert computed(model, 2, **settings) != computed(model, 2, backbone=backbone), key
        elif acts:
            assert computed(model, **settings) != before, key
        else:
            with pytest.raises(UsageError, match=f"^{model} .*: {key} does nothing there"):
                configure(model, **settings)


@pytest.mark.parametrize("model", ["DeepFM", "LR"])
def test_keys_of_the_family_are_refused_for_recboles_models(computed, configure, model):
    before = computed(model)
    own = set(Config(model, "none").final_config_dict)
    for key, value in OF_MODELS.items():
        if key in ("embedding_size", "mlp_hidden_size", "dropout_prob"):
            continue  # as RecBole's own file of the model says
        if key in ("task", "bag_pooling", "embedding_optimizer", "sparse_embedding"):
            assert computed(model, **{key: value}) != before, key
            continue
        with pytest.raises(UsageError, match=f"{model} .*: {key} does nothing there"):
            configure(model, **{key: value})
    assert ("mlp_hidden_size" in own) == (model == "DeepFM")
    both = configure(model, task="both", predict_task="cvr")
    assert single_task(both) == "cvr"  # whose AUC and LogLoss are RecBole's


def test_a_model_without_a_propensity_has_nothing_to_normalise(build):
    """(1/|D|) Σ [o·δ + (1 − o)·δ̂], whatever a data set's defaults are."""
    built = build("MTL_EIB")
    other = build("MTL_EIB")
    other.config["propensity_normalization"] = "snips"
    normalised = MTL_EIB(other.config, other.train.dataset)
    normalised.load_state_dict(built.model.state_dict())
    assert normalised.calculate_loss(built.batch) == built.model.calculate_loss(built.batch)
    impressions = normalised.impressions(built.batch)
    assert (impressions.propensity == 1).all()


@pytest.mark.parametrize("where", ["config_dict", "command_line", "config_file"])
def test_where_a_key_that_does_nothing_is_set(configure, tmp_path, where):
    config = configure("MTL_EIB")
    given = {"propensity_normalization": "snips"}
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(given))
    sources = {
        "config_dict": {"config_dict": given},
        "command_line": {"command_line": given},
        "config_file": {"config_file_list": [str(file)]},
    }
    with pytest.raises(UsageError, match="MTL_EIB has no propensity: propensity_normalization do"):
        Config("MTL_EIB", config["dataset"], **sources[where])


class Focal(Naive):
    """Inherits that its parent has no propensity."""

    default_config = {"focus": 2.0}  # noqa: RUF012


class Transfer(AITM):
    """Adds a risk that its parent lacks."""

    config_keys = frozenset({"counterfactual_weight"})

    def risks(self, impressions, cvr_risk=None):
        risks = super().risks(impressions, cvr_risk)
        return {**risks, "cvr": impressions.logit["ctcvr"].square().mean()}


class Weighted(ESMM):
    """Says nothing: that it has a counterfactual risk is seen."""

    def counterfactual_risk(self, impressions):
        return (impressions.click * impressions.error / impressions.propensity).mean()


def test_models_of_ones_own_inherit_what_acts(computed, configure):
    assert computed(Focal) != computed(Focal, counterfactual_weight=0.5)
    assert configure(Focal, focus=3.0)["focus"] == 3.0
    with pytest.raises(UsageError, match=r"no propensity: .* name it in Focal\.config_keys"):
        configure(Focal, propensity_floor=0.5)
    assert computed(Transfer) != computed(Transfer, counterfactual_weight=0.5)
    for key in ("counterfactual_weight", "propensity_floor", "propensity_normalization"):
        assert computed(Weighted) != computed(Weighted, **{key: OF_MODELS[key]}), key


# ------------------------------------------------------------------ in a benchmark


@pytest.fixture
def rows(impressions_path, tmp_path):
    def rows(**options):
        given = {"dataset": "tokens", "data_path": str(impressions_path), "epochs": "1"}
        plan = make_experiment({**given, "output_dir": str(tmp_path), **options})
        return {run.row.label: run.settings for run in plan.runs}

    return rows


def test_a_sweep_trains_a_model_without_the_key_once(rows):
    found = rows(model="AITM,ESCM2_IPS", counterfactual_weight="0.1,0.3")
    assert list(found) == ["AITM", *(f"ESCM2_IPS, counterfactual_weight={w}" for w in (0.1, 0.3))]


def test_a_sweep_of_backbones_trains_each_once_where_a_key_does_nothing(rows):
    found = rows(model="ESMM", backbone="separate,FM", mlp_hidden_size="[8],[4]")
    assert list(found) == [
        "ESMM, backbone=separate, mlp_hidden_size=[8]",
        "ESMM, backbone=separate, mlp_hidden_size=[4]",
        "ESMM, backbone=FM",
    ]


@pytest.mark.parametrize("shared", ["command line", "file"])
def test_shared_settings_go_to_the_rows_on_which_they_act(rows, tmp_path, shared):
    options = {"imputation": "label"}
    if shared == "file":
        file = tmp_path / "shared.yaml"
        file.write_text("imputation: label\n")
        options = {"config_files": str(file)}
    found = rows(model="ESMM,ESCM2_DR,DeepFM", **options)
    assert [s.get("imputation") for s in found.values()] == [None, "label", None]
    with pytest.raises(UsageError, match=r"an effect on none .*: ESMM has no imputation; Nai"):
        rows(model="ESMM,Naive", seeds="2", **options)


def test_a_rows_own_setting_must_act(rows, tmp_path):
    file = tmp_path / "benchmark.yaml"
    file.write_text("models: {ESMM: , Naive: {propensity_floor: 0.3}}\n")
    with pytest.raises(UsageError, match="Naive: Naive has no propensity: propensity_floor does n"):
        rows(benchmark=str(file))


def test_ranges_that_do_nothing_with_a_backbone_are_left_out(rows, impressions_path, tmp_path):
    ranges = Path(tmp_path / "mine.hyper")
    ranges.write_text("backbone choice ['FM', 'mmoe']\nshared_expert_num choice [5, 6]\n")
    file = tmp_path / "benchmark.yaml"
    file.write_text(f"models: {{ESMM: {{params_file: {ranges}}}}}\n")
    options = {"dataset": "tokens", "data_path": str(impressions_path), "trials": "9"}
    plan = make_experiment({**options, "benchmark": str(file), "output_dir": str(tmp_path)})
    tried = [candidate.chosen for candidate in plan.tuning[1:]]
    assert {chosen["backbone"] for chosen in tried} == {"FM", "mmoe"}
    for chosen in tried:
        assert ("shared_expert_num" in chosen) == (chosen["backbone"] == "mmoe")
