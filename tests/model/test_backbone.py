"""Backbones: what they share, what they don't, and that RecBole's models are RecBole's."""

import math

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_escm2.bags import Bags
from recbole_escm2.config import acting_settings, defaults
from recbole_escm2.data.batch import Batch
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import find_model
from recbole_escm2.model import ESCM2_DR, MODELS
from recbole_escm2.model.backbone import RECBOLE as RECBOLE_TRAITS
from recbole_escm2.model.backbone import REFUSED, FirstOrderLinear, Traits, backbone_names
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.risk import binary_cross_entropy
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer

RECBOLE = [name for name in backbone_names() if name not in BOTTOMS]
PENALISED = ["AFM", "DCN", "DCNV2", "EulerNet", "PNN", "xDeepFM"]
FIRST_ORDER = ["AFM", "AutoInt", "DeepFM", "FFM", "FM", "FwFM", "LR", "NFM", "WideDeep", "xDeepFM"]
NORMALISED = ["DCN", "DCNV2", "NFM"]
# Small, so that a test takes a moment.
SMALL = {"cin_layer_size": [6, 4], "attention_size": 4, "bottom_hidden_size": [12]}
# Without the multi-valued field, whose values RecBole's models see padded.
SINGLE = {"load_col": {"inter": "*", "user": "*", "item": ["item_id", "price"]}}


def make(build, backbone, name="ESCM2_DR", **settings):
    given = {**SMALL, **settings, "backbone": backbone}
    return build(name, **acting_settings(find_model(name), given))


def reached(loss, module):
    """Names of the parameters that a loss has a gradient other than exact zeros for."""
    named = list(module.named_parameters())
    grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {name for (name, _), g in zip(named, grads, strict=True) if g is not None and g.any()}


# ------------------------------------------------------------------ every backbone, every variant


def test_all_of_recboles_models_serve_but_two():
    assert len(RECBOLE) == 16
    assert set(REFUSED) == {"DSSM", "KD_DAGFM"}
    assert backbone_names()[:4] == ["separate", "shared_bottom", "mmoe", "ple"]


@pytest.mark.parametrize("backbone", backbone_names())
def test_trains_and_is_scored_again_from_its_checkpoint(backbone, settings, places):
    """820 impressions in batches of 273: the last one is of a single impression."""
    changes = {**SMALL, "backbone": backbone, "imputation": "label", "train_batch_size": 273}
    changes |= {"impression_sample": 0.2562, "epochs": 1, "sparse_embedding": True}
    given = acting_settings(ESCM2_DR, {**settings, **changes})
    outcome = run("ESCM2_DR", "tiny", config_dict=given)
    result = outcome["test_result"]
    assert all(0 <= result[f"{task}_AUC"] <= 1 for task in ("CTR", "CVR", "CTCVR"))
    again = evaluate_checkpoint(
        f"{outcome['run_dir']}/checkpoint.pth", config_dict={**places, "seed": 2020}
    )
    assert again["test_result"] == result


@pytest.mark.parametrize("name", [model.__name__ for model in MODELS])
def test_every_variant_trains_on_a_backbone(name, settings):
    changes = {**SMALL, "backbone": "mmoe", "epochs": 1, "impression_sample": 0.5}
    given = acting_settings(find_model(name), {**settings, **changes})
    outcome = run(name, "tiny", config_dict=given, saved=False)
    assert 0 < outcome["test_result"]["CTCVR_AUC"] < 1


@pytest.mark.parametrize("name", [m.__name__ for m in MODELS if m.__name__ != "AITM"])
def test_every_variant_has_finite_gradients_on_a_model_of_recboles(build, name):
    built = make(build, "DCNV2", name)
    for labels in ({}, {"click": 0.0}, {"click": 1.0, "conversion": 0.0}):
        full = {k: torch.full((len(built.batch),), v) for k, v in labels.items()}
        batch = Interaction({**{f: built.batch[f] for f in built.batch}, **full})
        built.model.zero_grad()
        risks = built.model.task_risks(batch)
        assert "regularizer" in risks
        sum(built.model.calculate_loss(batch)).backward()
        grads = [p.grad for p in built.model.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)


# ------------------------------------------------------------------ gradient rules


def rooms(built, loss):
    """Towers by name that a loss moves; what a backbone shares is none of theirs."""
    shared = {id(p) for p in getattr(built.model.towers["ctr"], "ffm", nn.Module()).parameters()}
    return {
        name
        for name, tower in built.model.towers.items()
        if any(id(dict(tower.named_parameters())[p]) not in shared for p in reached(loss, tower))
    }


@pytest.mark.parametrize("backbone", backbone_names())
@pytest.mark.parametrize("imputation", ["error", "label"])
def test_each_risk_moves_its_own_towers_only(build, backbone, imputation):
    built = make(build, backbone, imputation=imputation, propensity_floor=0)
    with torch.no_grad():
        for p in built.model.parameters():  # no ReLU is off everywhere
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    model = built.model.eval()  # without dropout
    impressions = model.impressions(built.batch)
    assert not impressions.propensity.requires_grad
    assert rooms(built, model.dr_risk(impressions)) == {"cvr"}
    assert rooms(built, model.imputation_risk(impressions)) == {"imputation"}
    risks = model.risks(impressions)
    assert rooms(built, risks["ctr"]) == {"ctr"}
    assert rooms(built, risks["ctcvr"]) == {"ctr", "cvr"}


@pytest.mark.parametrize("backbone", [name for name in backbone_names() if name != "LR"])
def test_every_risk_reaches_the_shared_embedding(build, backbone):
    built = make(build, backbone)
    risks = built.model.eval().task_risks(built.batch)
    for task in ("ctr", "cvr", "ctcvr"):
        found = reached(risks[task], built.model)
        table = "ffm.token_embeddings" if backbone == "FFM" else "token_embedding_table"
        own = [n for n in found if table in n and "first_order" not in n]
        assert own, task


@pytest.mark.parametrize("backbone", RECBOLE)
def test_one_embedding_table_for_all_towers(build, backbone):
    built = make(build, backbone)
    names = [name for name, _ in built.model.named_parameters()]
    tables = [n for n in names if "embedding" in n and "first_order" not in n and "att_" not in n]
    inside = [n for n in tables if n.startswith("towers.")]
    if backbone == "FFM":
        assert all(name.startswith("towers.ctr.ffm") for name in tables)
        assert len({id(t.ffm) for t in built.model.towers.values()}) == 1
    elif backbone == "LR":
        assert tables == []
    else:
        assert [n for n in inside if "v_res" not in n] == []
        rows = sum(built.model.token_field_dims)
        assert built.model.token_embedding_table.embedding.weight.shape == (rows, 4)
    first_order = {n.split(".")[1] for n in names if "first_order_linear.token_embedding" in n}
    assert first_order == ({"ctr", "cvr", "imputation"} if backbone in FIRST_ORDER else set())


@pytest.mark.parametrize("backbone", backbone_names())
def test_no_parameter_is_left_without_gradient(build, backbone):
    built = make(build, backbone)
    sum(built.model.calculate_loss(built.batch)).backward()
    dead = [n for n, p in built.model.named_parameters() if p.grad is None]
    # RecBole's FFM has sequence tables that it never reads.
    assert all(backbone == "FFM" and "token_seq" in name for name in dead)


# ------------------------------------------------------------------ RecBole's models are RecBole's


@pytest.fixture
def twins(build):
    """A family model on a backbone, and RecBole's own model with the weights of its CVR tower."""

    def twins(backbone, **settings):
        built = make(build, backbone, **SINGLE, **settings)
        own = make_recbole(build, backbone, built.model.towers["cvr"].state_dict(), **settings)
        tables = {n: p for n, p in built.model.state_dict().items() if not n.startswith("towers.")}
        weights = {**tables, **built.model.towers["cvr"].state_dict()}
        missing, unexpected = own.load_state_dict(weights, strict=False)
        dead = {"first_order_linear"} if backbone not in FIRST_ORDER else set()
        dead |= (
            {f"{room}_embedding_table" for room in ("token", "float")}
            if (backbone in ("LR", "FFM"))
            else set()
        )
        assert {name.split(".")[0] for name in missing} == dead
        assert unexpected == (["weight"] if backbone == "FwFM" else [])
        if backbone == "FwFM":  # RecBole's isn't a parameter
            own.weight = weights["weight"]
        return built.model.eval(), own.eval(), built.batch

    return twins


def make_recbole(build, backbone, state, **settings):
    changes = {**SMALL, **SINGLE, "mlp_hidden_size": [16, 8], "embedding_size": 4, **settings}
    return build(backbone, **acting_settings(find_model(backbone), changes)).model


@pytest.mark.parametrize("backbone", RECBOLE)
def test_a_tower_is_recboles_model_before_its_sigmoid(twins, backbone):
    model, own, batch = twins(backbone)
    with torch.no_grad():
        logit = model(batch)["cvr"]
        assert logit.shape == (len(batch),)
        assert logit.std() > 0
        torch.testing.assert_close(torch.sigmoid(logit), own.predict(batch))
        assert not torch.equal(logit, model(batch)["ctr"])


@pytest.mark.parametrize("backbone", RECBOLE)
def test_the_regularizer_is_what_recbole_adds_to_its_loss(twins, backbone):
    model, own, batch = twins(backbone, **({"reg_weight": 0.3} if backbone in PENALISED else {}))
    logit = model(batch)["cvr"]
    added = own.calculate_loss(batch) - binary_cross_entropy(batch["label"], logit).mean()
    penalty = model.regularizer(("cvr",))
    assert (penalty is not None) == (backbone in PENALISED)
    assert added.item() == pytest.approx(0 if penalty is None else penalty.item(), abs=1e-4)
    if penalty is not None:
        assert penalty > 0.01
        all_three = model.regularizer()
        each = [model.regularizer((name,)) for name in model.towers]
        torch.testing.assert_close(all_three, sum(each))
        risks = model.task_risks(batch)
        torch.testing.assert_close(risks["regularizer"], all_three)
        assert model.weighted(risks)["regularizer"] == risks["regularizer"]
        moved = {name.split(".")[1] for name in reached(all_three, model)}
        assert moved == {"ctr", "cvr", "imputation"}


@pytest.mark.parametrize("backbone", ["DCNV2", "xDeepFM", "FM", "ple"])
def test_alternating_steps_move_what_they_should(build, tmp_path, backbone):
    built = make(build, backbone, imputation_schedule="alternate", epochs=1, reg_weight=0.1)
    first, second = built.model.loss_steps(built.batch)
    if backbone in PENALISED:
        total = first["regularizer"] + second["regularizer"]
        torch.testing.assert_close(total, built.model.regularizer())
    assert rooms(built, sum(first.values())) == {"imputation"}
    assert rooms(built, sum(second.values())) == {"ctr", "cvr"}
    trainer = EntireSpaceTrainer(built.config, built.model, Run(tmp_path))
    trainer.fit(built.train, verbose=False, saved=False)
    names = {"imputation", "ctr", "cvr", "ctcvr"}
    assert set(trainer.loss_names) == names | ({"regularizer"} & {*first})


# ------------------------------------------------------------------ multi-valued fields


def test_the_first_order_part_takes_all_values_and_their_weights(build):
    """b + Σ w·θ/n by hand: the mean of values times weights, as the embedding is pooled."""
    built = make(build, "LR", "ESMM")
    linear = built.model.towers["cvr"].first_order_linear
    assert isinstance(linear, FirstOrderLinear)
    (table,) = linear.token_seq_embedding_table
    with torch.no_grad():
        table.weight.copy_(torch.arange(len(table.weight)).float().unsqueeze(1))
    lengths = torch.zeros(1, len(built.batch), dtype=torch.long)
    lengths[0, 0], lengths[0, 2] = 2, 3
    bag = Bags(("tags",), torch.tensor([1, 2, 3, 3, 1]), torch.tensor([0.5, 2, 1, 4, 0]), lengths)
    empty = Bags(("tags",), bag.ids[:0], bag.weights[:0], 0 * lengths)
    columns = built.batch.interaction
    weighted, nothing = (Batch(columns, {"tags": bags}, {"tags": 3}) for bags in (bag, empty))
    shift = built.model(weighted)["cvr"] - built.model(nothing)["cvr"]
    expected = torch.zeros(len(built.batch))
    expected[0], expected[2] = (0.5 * 1 + 2 * 2) / 2, (1 * 3 + 4 * 3 + 0) / 3
    torch.testing.assert_close(shift, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", backbone_names())
def test_each_feature_influences_each_task(build, backbone):
    built = make(build, backbone, "ESMM")
    model = built.model.eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        before = model.predict_tasks(built.batch)
        for field in ("user_id", "item_id", "tags", "age", "price"):
            other = Interaction({name: built.batch[name] for name in built.batch})
            other.interaction[field] = other[field].flip(0)
            after = model.predict_tasks(other)
            assert not any(torch.equal(before[task], after[task]) for task in before), field


# ------------------------------------------------------------------ sparse tables, batches of one


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("backbone", RECBOLE)
def test_sparse_tables_have_the_gradients_of_dense_ones(build, backbone):
    dense = make(build, backbone, "ESMM")
    sparse = make(build, backbone, "ESMM", sparse_embedding=True)
    sparse.model.load_state_dict(dense.model.state_dict())
    for built in (dense, sparse):
        built.model.eval()
        sum(built.model.calculate_loss(dense.batch)).backward()
    expected = {n: p.grad for n, p in dense.model.named_parameters()}
    tables = {
        f"{name}.weight" for name, m in sparse.model.named_modules() if isinstance(m, nn.Embedding)
    }
    # A table that the regularizer reaches as a whole has a dense gradient.
    whole = {n for n in tables if backbone == "xDeepFM" and "first_order" in n}
    for name, parameter in sparse.model.named_parameters():
        if parameter.grad is None:  # in FFM, see above
            continue
        assert parameter.grad.is_sparse == (name in tables - whole), name
        torch.testing.assert_close(parameter.grad.to_dense(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", NORMALISED)
def test_a_batch_of_one_is_normalised_by_the_running_statistics(build, backbone):
    built = make(build, backbone, "ESMM")
    norms = [m for m in built.model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms
    built.model(built.batch)
    before = [m.running_mean.clone() for m in norms]
    built.model.train()
    loss = sum(built.model.calculate_loss(built.batch[:1]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(torch.equal(b, m.running_mean) for b, m in zip(before, norms, strict=True))
    assert all(m.training for m in norms)
    built.model(built.batch)
    assert not torch.equal(before[0], norms[0].running_mean)


def test_fwfms_pair_weights_are_trained_and_saved(build):
    """RecBole holds them in a tensor that is no parameter."""
    built = make(build, "FwFM", "ESMM")
    assert "towers.cvr.weight" in built.model.state_dict()
    sum(built.model.calculate_loss(built.batch)).backward()
    assert built.model.towers["cvr"].weight.grad.any()


# ------------------------------------------------------------------ bottoms


def softmax_mixture(gate, x, experts):
    share = torch.softmax(x @ gate.weight.T, dim=1)
    return sum(share[:, k : k + 1] * expert(x) for k, expert in enumerate(experts))


@pytest.fixture
def bottom():
    def bottom(name, **changes):
        torch.manual_seed(0)
        config = {
            "bottom_hidden_size": [5],
            "dropout_prob": 0.0,
            "shared_expert_num": 3,
            "task_expert_num": 2,
            "extraction_level_num": 1,
            **changes,
        }
        return BOTTOMS[name](6, ("ctr", "cvr"), config), torch.randn(9, 6)

    return bottom


def test_a_shared_bottom_is_one_layer_for_all(bottom):
    shared, x = bottom("shared_bottom")
    inputs = shared(x, ("ctr", "cvr"))
    assert inputs["ctr"] is inputs["cvr"]
    linear = next(m for m in shared.modules() if isinstance(m, nn.Linear))
    assert torch.allclose(inputs["ctr"], torch.relu(linear(x)))
    assert shared.output_size == 5


def test_mmoe_mixes_all_experts_by_the_gate_of_the_task(bottom):
    mmoe, x = bottom("mmoe")
    for task, mixed in mmoe(x, ("ctr", "cvr")).items():
        expected = softmax_mixture(mmoe.gates[task], x, mmoe.experts)
        torch.testing.assert_close(mixed, expected)
    assert list(mmoe(x, ("cvr",))) == ["cvr"]


def test_ple_mixes_the_experts_of_the_task_and_the_shared_ones(bottom):
    ple, x = bottom("ple")
    (level,) = ple.levels
    for task, mixed in ple(x, ("ctr", "cvr")).items():
        experts = [*level.experts[task], *level.shared_experts]
        torch.testing.assert_close(mixed, softmax_mixture(level.gates[task], x, experts))


def test_ples_levels_are_progressive(bottom):
    """Two levels by hand: the shared gate of the lower one mixes the experts of all tasks."""
    ple, x = bottom("ple", extraction_level_num=2)
    lower, upper = ple.levels
    every = [*lower.experts["ctr"], *lower.experts["cvr"], *lower.shared_experts]
    shared = softmax_mixture(lower.shared_gate, x, every)
    own = softmax_mixture(lower.gates["cvr"], x, [*lower.experts["cvr"], *lower.shared_experts])
    outputs = [e(own) for e in upper.experts["cvr"]] + [e(shared) for e in upper.shared_experts]
    share = torch.softmax(upper.gates["cvr"](own), dim=1)
    expected = sum(share[:, k : k + 1] * output for k, output in enumerate(outputs))
    mixed = ple(x, ("cvr",))["cvr"]
    torch.testing.assert_close(mixed, expected)
    assert upper.shared_gate is None
    grads = torch.autograd.grad(
        mixed.sum(), list(ple.levels[-1].experts["ctr"].parameters()), allow_unused=True
    )
    assert all(grad is None for grad in grads)
    assert reached(mixed.sum(), lower.experts["ctr"])


@pytest.mark.parametrize("backbone", ["separate", "shared_bottom"])
def test_towers_on_one_input_are_evaluated_together(build, backbone):
    built = make(build, backbone, "ESMM")
    inputs = built.model.tower_inputs(built.batch, ("ctr", "cvr"))
    assert inputs["ctr"] is inputs["cvr"]


# ------------------------------------------------------------------ configuration


def test_a_model_of_recboles_brings_its_keys_and_ours_stay(configure):
    config = configure("ESMM", backbone="DCNV2")
    assert config["cross_layer_num"] == 3
    assert config["structure"] == "stacked"
    assert config["mlp_hidden_size"] == [16, 8]  # set by the test
    assert config["dropout_prob"] == 0.0  # ours, not RecBole's 0.2
    assert configure("ESMM", backbone="AFM", reg_weight=0.5)["reg_weight"] == 0.5
    assert configure("ESMM")["cross_layer_num"] is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DSSM", "can't serve here: its score is a cosine"),
        ("KD_DAGFM", "can't serve here: it is trained in phases"),
        ("DeepFm", r"no backbone 'DeepFm' \(did you mean DeepFM\?\)"),
        ("BPR", "no backbone 'BPR'"),
        ("ESMM", "no backbone 'ESMM'"),
    ],
)
def test_what_cannot_serve_is_refused_with_the_reason(configure, name, reason):
    with pytest.raises(UsageError, match=reason) as refusal:
        configure("ESMM", backbone=name)
    assert "Backbones: separate, shared_bottom, mmoe, ple, AFM" in str(refusal.value)


def test_a_model_that_is_built_otherwise_is_refused(build, monkeypatch):
    monkeypatch.setattr("recbole_escm2.model.backbone.REFUSED", {})
    monkeypatch.setitem(RECBOLE_TRAITS, "KD_DAGFM", Traits())
    with pytest.raises(
        UsageError, match="KD_DAGFM can't serve here: its prediction can't be taken"
    ):
        make(build, "KD_DAGFM")


def test_the_backbones_keys_are_among_the_defaults_wherever_it_is_named():
    found = defaults(ESCM2_DR, "shop", {"backbone": "DCNV2"})
    assert found["cross_layer_num"] == 3
    assert found["mlp_hidden_size"] == [128, 64, 32]
    assert "cross_layer_num" not in defaults(ESCM2_DR, "shop")
    own = type("OnDCN", (ESCM2_DR,), {"default_config": {"backbone": "DCN"}})
    assert defaults(own, "shop")["cross_layer_num"] == 6


@pytest.mark.parametrize("backbone", RECBOLE)
def test_a_single_feature_will_do_or_is_refused(build, backbone):
    one = {"load_col": {"inter": ["kind", "click", "conversion"]}}
    if backbone in ("FFM", "FiGNN", "FwFM"):
        with pytest.raises(UsageError, match="pairs of features, and rows has only one"):
            make(build, backbone, "ESMM", dataset="rows", **one)
        return
    built = make(build, backbone, "ESMM", dataset="rows", **one)
    assert sum(built.model.calculate_loss(built.batch)).isfinite()


class Linear(ESCM2_DR):
    def build_tower(self, input_size):
        return nn.Linear(input_size, 1)


def test_towers_of_ones_own_go_on_a_bottom_but_not_with_recboles_model(build):
    built = make(build, "ple", Linear)
    assert isinstance(built.model.towers["cvr"], nn.Linear)
    with pytest.raises(UsageError, match="Linear builds towers of its own, which backbone DeepFM"):
        make(build, "DeepFM", Linear)
