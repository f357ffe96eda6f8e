import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from torch import nn

from recbole_escm2.errors import UsageError
from recbole_escm2.model import ESCM2_DR, ESMM, EntireSpaceRecommender
from recbole_escm2.model_names import REFERENCE_NAMES
from recbole_escm2.property_files import PROPERTIES, read_yaml
from recbole_escm2.risk import ips_risk

MODELS = ["ESMM", "ESCM2_IPS", "ESCM2_DR"]
COUNTERFACTUAL = MODELS[1:]


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def rooms_that_differ(before, after):
    """Towers by name, and the embedding, that hold other numbers than before."""
    rooms = set()
    for name, value in before.items():
        if not torch.equal(value, after[name]):
            room, _, rest = name.partition(".")
            rooms.add(rest.partition(".")[0] if room == "towers" else "embedding")
    return rooms


def set_ctr(built, mean):
    """Spread the click logits of the batch out around a mean, by 1.5."""
    with torch.no_grad():
        last = built.model.towers["ctr"][-1]
        last.weight *= 1.5 / built.model(built.batch)["ctr"].std()
        last.bias += mean - built.model(built.batch)["ctr"].mean()


# ------------------------------------------------------------------ architecture


@pytest.mark.parametrize(
    ("name", "towers"),
    [
        ("ESMM", ["ctr", "cvr"]),
        ("ESCM2_IPS", ["ctr", "cvr"]),
        ("ESCM2_DR", ["ctr", "cvr", "imputation"]),
    ],
)
def test_towers_are_those_of_the_paper(build, name, towers):
    model = build(name, mlp_hidden_size=[16, 8], embedding_size=4).model
    assert isinstance(model.towers, nn.ModuleDict)
    assert list(model.towers) == towers
    for tower in model.towers.values():
        sizes = [m.weight.shape for m in tower.modules() if isinstance(m, nn.Linear)]
        assert sizes == [(16, 5 * 4), (8, 16), (1, 8)]  # five features
        assert sum(isinstance(m, nn.ReLU) for m in tower.modules()) == 2


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_is_left_without_gradient(build, name):
    """RecBole's first-order part would be one."""
    built = build(name)
    sum(built.model.calculate_loss(built.batch)).backward()
    assert [n for n, p in built.model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_one_dimensional_and_float32(build, name):
    built = build(name)
    for size in (64, 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = built.model(built.batch[:size])
        assert set(logits) == set(built.model.towers)
        assert all(v.shape == (size,) and v.dtype == torch.float32 for v in logits.values())


# ------------------------------------------------------------------ features

FEATURES = {
    "float": (["x"], {"numerical_features": ["x"]}),
    "discretised": (
        ["x"],
        {"numerical_features": ["x"], "discretization": {"x": {"method": "ED", "bucket": 3}}},
    ),
    "token": (["kind"], {}),
    "token_seq": (["tags"], {}),
    "all": (["kind", "tags", "x"], {"numerical_features": ["x"]}),
}


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("sparse", [False, True])
def test_any_kind_of_feature_will_do(build, trainer_of, kind, sparse):
    columns, settings = FEATURES[kind]
    built = build(
        "ESCM2_DR",
        "rows",
        load_col={"inter": [*columns, "click", "conversion"]},
        sparse_embedding=sparse,
        epochs=1,
        **settings,
    )
    model = built.model
    found = *model.token_field_names, *model.token_seq_field_names, *model.float_field_names
    assert sorted(found) == columns
    before = snapshot(model)
    trainer_of(built).fit(built.train, verbose=False, saved=False)
    assert rooms_that_differ(before, model.state_dict()) == {*model.towers, "embedding"}


def test_each_feature_influences_each_task(build):
    built = build("ESMM")
    before = built.model.predict_tasks(built.batch)
    for field in ("user_id", "item_id", "tags", "age", "price"):
        other = Interaction({name: built.batch[name] for name in built.batch})
        other.interaction[field] = other[field].flip(0)
        after = built.model.predict_tasks(other)
        assert not any(torch.equal(before[task], after[task]) for task in before), field


def test_labels_never_influence_a_prediction(build):
    built = build("ESMM")
    other = built.batch.to("cpu")
    for field in ("click", "conversion", "label"):
        other.interaction[field] = 1 - other.interaction[field]
    for task, probability in built.model.predict_tasks(built.batch).items():
        assert torch.equal(probability, built.model.predict_tasks(other)[task])


def test_no_feature_is_refused(build):
    with pytest.raises(UsageError, match="no feature to learn from"):
        build("ESMM", "rows", load_col={"inter": ["click", "conversion"]})


def test_labels_declared_as_tokens_are_no_features_in_our_data_set(build):
    model = build("ESMM", "tokens").model
    assert model.token_field_names == ["user_id", "item_id"]


@pytest.mark.parametrize("name", MODELS)
def test_labels_among_the_features_are_refused(configure, name):
    config = configure(name, "tokens")
    with pytest.raises(UsageError, match=r"click, conversion, propensity is among the features"):
        config.model_class(config, Dataset(config))


@pytest.mark.parametrize("key", ["POTENTIAL_CONVERSION_FIELD", "TRUE_CTR_FIELD", "TRUE_CVR_FIELD"])
def test_potential_outcomes_among_the_features_are_refused(configure, key):
    config = configure("ESMM", "rows", **{key: "kind"})
    with pytest.raises(UsageError, match="kind is among the features of rows"):
        ESMM(config, Dataset(config))
    with pytest.raises(UsageError, match="numerical_features names the label 'x'"):
        configure("ESMM", "rows", numerical_features=["x"], **{key: "x"})


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("cvr_weight", "global_weight"), [(0.1, 1.0), (0.37, 2.6), (1.9, 0.05)])
def test_calculate_loss_is_the_weighted_task_risks(build_acting, name, cvr_weight, global_weight):
    built = build_acting(name, counterfactual_weight=cvr_weight, global_weight=global_weight)
    risks = built.model.task_risks(built.batch)
    weights = {"ctr": 1.0, "cvr": cvr_weight, "ctcvr": global_weight}
    if name == "ESMM":
        del weights["cvr"]
    assert list(risks) == list(weights)
    assert all(risk.shape == () for risk in risks.values())

    losses = built.model.calculate_loss(built.batch)
    assert isinstance(losses, tuple)
    assert losses == tuple(weights[task] * risks[task] for task in risks)
    combined = sum(weights[task] * risks[task].item() for task in risks)
    assert sum(losses).item() == pytest.approx(combined, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_risks_are_means_over_impressions_of_what_the_paper_says(build_acting, name):
    """From the logits alone, in float64."""
    built = build_acting(name, propensity_floor=0.3)
    set_ctr(built, -1)
    logit = {task: z.detach().double() for task, z in built.model(built.batch).items()}
    click, conversion = (built.batch[f].double() for f in ("click", "conversion"))
    ctr, cvr = torch.sigmoid(logit["ctr"]), torch.sigmoid(logit["cvr"])

    def bce(target, probability):
        return -(target * probability.log() + (1 - target) * (1 - probability).log())

    error, weight = bce(conversion, cvr), click / ctr.clamp(min=0.3)
    assert 0 < (ctr < 0.3).sum() < len(ctr)
    expected = {"ctr": bce(click, ctr).mean()}
    if name == "ESCM2_IPS":
        expected["cvr"] = (weight * error).mean()
    if name == "ESCM2_DR":
        imputed = logit["imputation"].exp().log1p()
        residual = error - imputed
        dr, imputation = imputed + weight * residual, weight * residual**2
        expected["cvr"] = (dr + imputation).mean()
    expected["ctcvr"] = bce(click * conversion, ctr * cvr).mean()
    risks = built.model.task_risks(built.batch)
    assert list(risks) == list(expected)
    for task, risk in risks.items():
        assert risk.item() == pytest.approx(expected[task].item(), rel=1e-5), task


@pytest.mark.parametrize("name", COUNTERFACTUAL)
@pytest.mark.parametrize("settings", [{}, {"imputation": "label"}], ids=["error", "label"])
def test_weights_zero_and_one_give_esmm(build_acting, name, settings):
    built = build_acting(name, counterfactual_weight=0, global_weight=1, **settings)
    esmm = build_acting("ESMM").model
    esmm.load_state_dict(built.model.state_dict(), strict=False)
    loss = sum(built.model.calculate_loss(built.batch))
    esmm_loss = sum(esmm.calculate_loss(built.batch))
    assert loss.item() == pytest.approx(esmm_loss.item(), rel=1e-6)

    loss.backward()
    esmm_loss.backward()
    gradient = {name: p.grad for name, p in built.model.named_parameters()}
    for parameter, value in esmm.named_parameters():
        torch.testing.assert_close(gradient[parameter], value.grad)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("ESCM2_IPS", "joint"), ("ESCM2_DR", "joint"), ("ESCM2_DR", "alternate")],
)
def test_a_weight_of_zero_trains_as_esmm(build, build_acting, trainer_of, name, schedule):
    built = build_acting(name, counterfactual_weight=0, imputation_schedule=schedule, epochs=1)
    esmm = build("ESMM", epochs=1)
    esmm.model.load_state_dict(built.model.state_dict(), strict=False)
    for each in (built, esmm):
        trainer_of(each).fit(each.train, verbose=False, saved=False)
    trained = built.model.state_dict()
    for parameter, value in esmm.model.state_dict().items():
        torch.testing.assert_close(trained[parameter], value, rtol=1e-4, atol=1e-6)


def test_a_weight_of_zero_hides_an_infinite_risk(build):
    built = build("ESCM2_IPS", counterfactual_weight=0, propensity_floor=0)
    set_ctr(built, -200)
    assert sum(built.model.calculate_loss(built.batch)).isfinite()


# ------------------------------------------------------------------ propensity


@pytest.mark.parametrize("name", COUNTERFACTUAL)
@pytest.mark.parametrize("floor", [0.1, 0.03, 0])
def test_propensity_is_the_floored_ctr(build, name, floor):
    built = build(name, propensity_floor=floor)
    set_ctr(built, -3)
    ctr = built.model.predict_tasks(built.batch)["ctr"].detach()
    propensity = built.model.impressions(built.batch).propensity
    assert torch.equal(propensity, torch.where(ctr > floor, ctr, floor))
    assert (propensity == ctr).any()
    assert (propensity == ctr).all() == (floor == 0)
    assert not propensity.requires_grad


def test_without_a_floor_a_small_propensity_keeps_its_weight(build):
    built = build("ESCM2_IPS", propensity_floor=0)
    set_ctr(built, -14)  # about 1e-6
    impressions = built.model.impressions(built.batch)
    weighted = impressions.click * impressions.error / torch.sigmoid(impressions.logit["ctr"])
    risk = built.model.task_risks(built.batch)["cvr"]
    assert risk.item() == pytest.approx(weighted.mean().item(), rel=1e-5)
    assert risk > 1e4


# ------------------------------------------------------------------ predictions


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_probabilities_that_multiply(build, name):
    built = build(name)
    probability = built.model.predict_tasks(built.batch)
    logit = built.model(built.batch)
    assert list(probability) == ["ctr", "cvr", "ctcvr"]
    for task in ("ctr", "cvr"):
        assert torch.equal(probability[task], torch.sigmoid(logit[task]))
    assert torch.equal(probability["ctcvr"], probability["ctr"] * probability["cvr"])


@pytest.mark.parametrize("task", ["ctr", "cvr", "ctcvr", None])
def test_predict_follows_predict_task(build, task):
    built = build("ESCM2_DR", **({"predict_task": task} if task else {}))
    expected = built.model.predict_tasks(built.batch)[task or "ctcvr"]
    assert torch.equal(built.model.predict(built.batch), expected)
    assert expected.shape == (len(built.batch),)


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("imputation", ["error", "label"])
def test_joint_is_one_step_on_calculate_loss(build_acting, name, imputation):
    built = build_acting(name, imputation=imputation)
    (step,) = built.model.loss_steps(built.batch)
    assert list(step) == list(built.model.task_risks(built.batch))
    assert tuple(step.values()) == built.model.calculate_loss(built.batch)


@pytest.mark.parametrize("imputation", ["error", "label"])
def test_alternating_steps_hold_the_same_terms_as_the_joint_one(build, imputation):
    settings = {"imputation": imputation, "imputation_schedule": "alternate"}
    built = build("ESCM2_DR", counterfactual_weight=0.4, global_weight=1.7, **settings)
    first, second = built.model.loss_steps(built.batch)  # no optimizer steps in between
    assert list(first) == ["imputation"]
    assert list(second) == ["ctr", "cvr", "ctcvr"]
    alternate = sum(first.values()) + sum(second.values())
    joint = sum(built.model.calculate_loss(built.batch))
    assert alternate.item() == pytest.approx(joint.item(), rel=1e-6)
    impressions = built.model.impressions(built.batch)
    assert first["imputation"] == 0.4 * built.model.imputation_risk(impressions)
    assert second["cvr"] == 0.4 * built.model.dr_risk(impressions)


@pytest.mark.parametrize("imputation", ["error", "label"])
@pytest.mark.parametrize("sparse", [False, True])
def test_alternating_steps_move_what_they_should(
    build, trainer_of, monkeypatch, imputation, sparse
):
    """Over several batches: Adam's momentum moves what has a gradient of zeros instead of None."""
    built = build(
        "ESCM2_DR",
        imputation=imputation,
        imputation_schedule="alternate",
        sparse_embedding=sparse,
        epochs=1,
    )
    trainer = trainer_of(built)
    snapshots = [snapshot(built.model)]
    step = trainer.optimizer.step

    def spied(*args, **kwargs):
        step(*args, **kwargs)
        snapshots.append(snapshot(built.model))

    monkeypatch.setattr(trainer.optimizer, "step", spied)
    trainer.fit(built.train, verbose=False, saved=False)

    assert trainer.loss_names == ("imputation", "ctr", "cvr", "ctcvr")
    moved = [rooms_that_differ(a, b) for a, b in pairwise(snapshots)]
    assert moved == [{"imputation", "embedding"}, {"ctr", "cvr", "embedding"}] * len(built.train)


def test_the_second_step_sees_what_the_first_has_moved(build):
    built = build("ESCM2_DR", imputation_schedule="alternate")
    steps = built.model.loss_steps(built.batch)
    next(steps)
    with torch.no_grad():
        built.model.towers["imputation"][-1].bias += 1
    moved = next(steps)["cvr"]
    assert moved == 0.1 * built.model.dr_risk(built.model.impressions(built.batch))


# ------------------------------------------------------------------ sparse embedding


@pytest.mark.parametrize("name", MODELS)
def test_sparse_embedding_has_the_loss_and_gradient_of_the_dense_one(build, name):
    dense, sparse = build(name), build(name, sparse_embedding=True)
    sparse.model.load_state_dict(dense.model.state_dict())
    losses = dense.model.calculate_loss(dense.batch)
    assert losses == sparse.model.calculate_loss(dense.batch)

    sum(losses).backward()
    sum(sparse.model.calculate_loss(dense.batch)).backward()
    dense_grad = {n: p.grad for n, p in dense.model.named_parameters()}
    for parameter, value in sparse.model.named_parameters():
        assert value.grad.is_sparse == ("embedding" in parameter), parameter
        torch.testing.assert_close(value.grad.to_dense(), dense_grad[parameter])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("learner", ["adam", "sparse_adam", "sgd", "adagrad"])
def test_a_sparse_step_moves_only_the_rows_in_the_batch(build, trainer_of, learner):
    built = build("ESCM2_IPS", sparse_embedding=True, learner=learner)
    few = built.batch[:3]
    table = built.model.token_embedding_table
    fields = torch.stack([few[f] for f in built.model.token_field_names], dim=1)
    rows = set((fields + torch.as_tensor(table.offsets)).flatten().tolist())
    trainer = trainer_of(built)
    for batch in (built.batch, few):  # momentum of the first must not move its rows in the second
        before = snapshot(built.model)
        trainer.optimizer.zero_grad()
        sum(built.model.calculate_loss(batch)).backward()
        trainer.optimizer.step()
    after = built.model.state_dict()
    name = "token_embedding_table.embedding.weight"
    moved = (before[name] != after[name]).any(dim=1).nonzero().flatten().tolist()
    assert set(moved) == rows
    assert len(rows) < len(table.embedding.weight)
    assert rooms_that_differ(before, after) == {"ctr", "cvr", "embedding"}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("learner", ["adam", "sgd", "adagrad"])
def test_a_first_sparse_step_is_the_dense_one(build, trainer_of, learner):
    after = []
    for sparse in (False, True):
        built = build("ESCM2_DR", sparse_embedding=sparse, learner=learner)
        trainer = trainer_of(built)
        sum(built.model.calculate_loss(built.batch)).backward()
        trainer.optimizer.step()
        after.append([p.detach() for p in built.model.parameters()])
        grads = [p.grad.to_dense() for p in built.model.parameters()]
    for dense, sparse, grad in zip(*after, grads, strict=True):
        well_above_epsilon = grad.abs() > 1e-4  # which stands elsewhere in SparseAdam
        torch.testing.assert_close(
            dense[well_above_epsilon], sparse[well_above_epsilon], rtol=1e-5, atol=1e-5
        )


def test_a_dense_adam_step_moves_other_rows_too(build, trainer_of):
    """The reason for the sparse one, and a check that the test above can fail."""
    built = build("ESCM2_IPS")
    trainer = trainer_of(built)
    for batch in (built.batch, built.batch[:3]):
        before = snapshot(built.model)
        trainer.optimizer.zero_grad()
        sum(built.model.calculate_loss(batch)).backward()
        trainer.optimizer.step()
    name = "token_embedding_table.embedding.weight"
    moved = (before[name] != built.model.state_dict()[name]).any(dim=1)
    assert moved.sum() > 6


@pytest.mark.parametrize(
    ("named", "settings"),
    [
        ("learner sparse_adam", {"learner": "sparse_adam", "sparse_embedding": False}),
        ("learner", {"learner": "adamw"}),
        ("weight_decay", {"weight_decay": 0.1, "learner": "sgd"}),
        ("clip_grad_norm", {"clip_grad_norm": {"max_norm": 1.0}}),
    ],
)
def test_what_needs_the_other_kind_of_gradient_is_refused(configure, named, settings):
    with pytest.raises(UsageError, match=named):
        configure("ESMM", **{"sparse_embedding": True, **settings})


# ------------------------------------------------------------------ config keys

# Each key of properties/model/*.yaml: another value than the default, and values to refuse.
WEIGHT = (0.7, [-0.1, math.nan, math.inf, True, "x", None])
KEYS = {
    "embedding_size": (6, [0, -1, 2.5, True, "x", None]),
    "mlp_hidden_size": ([8], [[], [0], [8.5], [True], 8, "x", None]),
    "embedding_init": (0.5, [0, -0.1, math.inf, True, "x", None]),
    "embedding_dropout": (0.5, [-0.1, 1, 1.5, True, "x", None]),
    "first_order": (True, [1, "x", None]),
    "dropout_prob": (0.5, [-0.1, 1, 1.5, True, "x", None]),
    "bag_pooling": ("sum", ["max", "", 1, None]),
    "sparse_embedding": (True, [1, "x", None]),
    "counterfactual_weight": WEIGHT,
    "global_weight": WEIGHT,
    "backbone": ("ple", [1, "", None]),
    "bottom_hidden_size": ([8], [[], [0], [8.5], [True], 8, "x", None]),
    "shared_expert_num": (1, [0, 2.5, True, "x", None]),
    "task_expert_num": (1, [0, 2.5, True, "x", None]),
    "extraction_level_num": (1, [0, 2.5, True, "x", None]),
    "counterfactual_prior_weight": WEIGHT,
    "calibrator_weight": WEIGHT,
    "bias_share": (0.9, [-0.1, 1.1, True, "x", None]),
    "balancing_weight": WEIGHT,
    "balancing_floor": (0.9, [0, 1, True, "x", None]),
    "conversion_weight": WEIGHT,
    "cvr_weight_limit": (0.1, [0, -1, math.inf, True, "x", None]),
    "propensity_floor": (0.9, [-0.1, 1, math.nan, True, "x", None]),
    "propensity": ("field", ["logged", "", 1, None]),
    "propensity_normalization": ("snips", ["SNIPS", "", 1, True]),
    "propensity_calibration": ("platt", ["isotonic", 1, True]),
    "imputation": ("label", ["both", "", 1, None]),
    "imputation_schedule": ("alternate", ["sometimes", "", 1, None]),
}
# The model that has a key, where ESCM2_DR hasn't, and what a key needs to have an effect.
MODEL_OF = {
    "counterfactual_prior_weight": "DCMT",
    "calibrator_weight": "AITM",
    "bias_share": "ESCM2_DR_MSE",
    "balancing_weight": "ESCM2_IPS_V2",
    "balancing_floor": "ESCM2_IPS_V2",
    "conversion_weight": "DDPO",
    "cvr_weight_limit": "NISE",
}
BOTTOM_KEYS = (
    "bottom_hidden_size",
    "shared_expert_num",
    "task_expert_num",
    "extraction_level_num",
)
NEEDS = {key: {"backbone": "ple"} for key in BOTTOM_KEYS}


def documented_keys():
    """Those of the family: test_reference.py has those of the reference models."""
    files = (f for f in (PROPERTIES / "model").iterdir() if f.name.endswith(".yaml"))
    return set().union(
        *(read_yaml(f) for f in files if f.name.removesuffix(".yaml") not in REFERENCE_NAMES)
    )


# In overall.yaml, since they act on RecBole's models in our runner, too.
OF_ALL_MODELS = {"bag_pooling", "sparse_embedding"}


def test_every_documented_key_is_tested_here():
    assert set(read_yaml(PROPERTIES / "overall.yaml")) >= OF_ALL_MODELS
    assert documented_keys() | OF_ALL_MODELS == set(KEYS)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (_, bad) in KEYS.items() for v in bad])
def test_a_bad_value_is_refused_by_the_name_of_its_key(configure, key, value):
    with pytest.raises(UsageError, match=f"{key} must be"):
        configure(MODEL_OF.get(key, "ESCM2_DR"), **{key: value})


# What acts only once something was validated is tried in test_keys.py.
@pytest.mark.parametrize("key", [key for key in KEYS if key != "propensity_calibration"])
def test_every_key_has_an_effect(build, key):
    def behaviour(**settings):
        built = build(MODEL_OF.get(key, "ESCM2_DR"), **NEEDS.get(key, {}), **settings)
        torch.manual_seed(1)
        steps = list(built.model.loss_steps(built.batch))
        for step in steps:
            sum(step.values()).backward()
        shapes = [p.shape for p in built.model.parameters()]
        sparse = [p.grad.is_sparse for p in built.model.parameters() if p.grad is not None]
        return steps, shapes, sparse

    value, _ = KEYS[key]
    assert behaviour() == behaviour()
    assert behaviour() != behaviour(**{key: value})


def test_defaults_are_the_papers(configure):
    config = configure("ESCM2_DR")
    expected = {
        "counterfactual_weight": 0.1,
        "global_weight": 1,
        "propensity": "ctr_tower",
        "propensity_floor": 0.1,
        "propensity_normalization": "none",
        "imputation": "error",
        "imputation_schedule": "joint",
        "predict_task": "ctcvr",
        "sparse_embedding": False,
    }
    assert {key: config[key] for key in expected} == expected


# ------------------------------------------------------------------ models of one's own


class CappedIPS(EntireSpaceRecommender):
    """IPS with a cap on the error."""

    default_config: ClassVar = {"error_cap": 0.5, "propensity_floor": 0.2}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.error_cap = config["error_cap"]

    def counterfactual_risk(self, impressions):
        error = impressions.error.clamp(max=self.error_cap)
        return ips_risk(error, impressions.click, impressions.propensity)


@pytest.mark.parametrize("cap", [0.5, 0.1])
def test_a_variant_is_one_override(build, trainer_of, cap):
    built = build(CappedIPS, epochs=1, **({} if cap == 0.5 else {"error_cap": cap}))
    model = built.model
    assert built.config["error_cap"] == cap
    assert model.propensity_floor == 0.2
    assert model.has_counterfactual_risk
    impressions = model.impressions(built.batch)
    weight = impressions.click / impressions.propensity
    expected = (weight * impressions.error.clamp(max=cap)).mean()
    torch.testing.assert_close(model.task_risks(built.batch)["cvr"], expected)
    assert not torch.equal(impressions.error.clamp(max=cap), impressions.error)

    before = snapshot(model)
    trainer = trainer_of(built)
    trainer.fit(built.train, verbose=False, saved=False)
    assert trainer.loss_names == ("ctr", "cvr", "ctcvr")
    assert rooms_that_differ(before, model.state_dict()) == {"ctr", "cvr", "embedding"}


class WithPenalty(ESMM):
    """A fourth term, which the base class invites."""

    def risks(self, impressions, cvr_risk=None):
        penalty = impressions.logit["cvr"].square().mean()
        return {**super().risks(impressions, cvr_risk), "penalty": penalty}


def test_a_variant_may_add_a_term(build):
    built = build(WithPenalty)
    (step,) = built.model.loss_steps(built.batch)
    assert list(step) == ["ctr", "ctcvr", "penalty"]
    assert step["penalty"] == built.model.task_risks(built.batch)["penalty"]


def test_alternating_needs_a_risk_in_two_parts(build):
    class Other(ESCM2_DR):
        def counterfactual_risk(self, impressions):
            return self.dr_risk(impressions)

    build(Other)
    with pytest.raises(UsageError, match="Other has a counterfactual_risk of its own"):
        build(Other, imputation_schedule="alternate")


def test_has_counterfactual_risk():
    models = (ESMM, CappedIPS, ESCM2_DR, type("Mine", (ESMM,), {}))
    has = [m.has_counterfactual_risk.fget(m.__new__(m)) for m in models]
    assert has == [False, True, True, False]
