"""RecBole's own models in our runner: all values with their weights, and sparse gradients."""

import copy
from logging import INFO, WARNING

import pytest
import torch
from recbole.model.abstract_recommender import ContextRecommender
from recbole.model.context_aware_recommender.deepfm import DeepFM
from recbole.model.layers import FMFirstOrderLinear
from torch import nn

from recbole_escm2.bags import Bags
from recbole_escm2.data.batch import Batch
from recbole_escm2.errors import UsageError
from recbole_escm2.lookup import recbole_context_names
from recbole_escm2.model.backbone import EMBEDDING_TABLES, RECBOLE, REFUSED
from recbole_escm2.model.single_task import make_tables_sparse, train_as_the_family
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.trainer import EntireSpaceTrainer

NAMES = recbole_context_names()
# The data sets of this folder have a few fields only.
SMALL = {"cin_layer_size": [6, 4], "attention_size": 4}
SINGLE = {"load_col": {"inter": "*", "user": "*", "item": ["item_id", "price"]}}
#: Penalties that reach a table as a whole.
PENALISED_TABLES = {"xDeepFM": ["first_order_linear"]}


def make(build, name, sparse=False, **settings):
    """A model as the runner trains it, moved off its initial zeros, and what goes on differing."""
    built = build(name, **SMALL, sparse_embedding=sparse, **settings)
    said = train_as_the_family(built.model, built.config, built.batch)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    built.model.eval()
    return built, said


def weighted(batch, weight=lambda n: torch.linspace(0.5, 2.0, n)):
    """The batch with weights in its bags."""
    bags = {}
    for field, bag in batch.bags.items():
        bags[field] = Bags(bag.fields, bag.ids, weight(len(bag.ids)), bag.lengths)
    columns = {field: batch[field] for field in batch if field not in bags}
    return Batch(columns, bags, dict.fromkeys(bags, 2))


OWN_EMBEDDING = {name for name, traits in RECBOLE.items() if traits.own_embedding}


def test_the_list_of_exceptions_is_ffm():
    assert {"FFM"} == OWN_EMBEDDING
    assert len(NAMES) == 18
    assert {*RECBOLE, *REFUSED} == set(NAMES)


@pytest.mark.parametrize("name", RECBOLE)
def test_the_table_of_backbones_says_what_recboles_models_read(build, name):
    built = build(name, **SMALL)
    model = built.model.train()
    model.zero_grad()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.dim() > 1 else None
    model(built.batch).sum().backward()

    def read(prefixes):
        return any(
            parameter.grad is not None and bool(parameter.grad.any())
            for name, parameter in model.named_parameters()
            if name.startswith(prefixes)
        )

    traits = RECBOLE[name]
    assert read(EMBEDDING_TABLES) == traits.embedding
    assert read("first_order_linear") == traits.first_order
    assert traits.own_embedding is None or read(traits.own_embedding)


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_all_values_act(build, name):
    built, said = make(build, name)
    one, more = weighted(built.batch), weighted(built.batch, lambda n: 3 * torch.ones(n))
    with torch.no_grad():
        assert not torch.equal(built.model.predict(one), built.model.predict(more))
    assert bool(said) == (name in OWN_EMBEDDING)
    # all values: the padded ids end after two
    (field,) = built.batch.bags
    long = built.batch.bags[field].lengths[0] > 2
    assert long.any()
    table = [m for n, m in built.model.named_modules() if "token_seq_embedding_table.0" in n]
    assert table
    last = one.bags[field].ids[one.bags[field].offsets[long] + one.bags[field].lengths[0][long] - 1]
    before = built.model.predict(one)
    with torch.no_grad():
        for each in table:
            each.weight[last] += 1
        assert (built.model.predict(one) != before)[long].all()


def test_ffm_says_what_it_does_not_get(build):
    _, (said,) = make(build, "FFM")
    assert said.startswith("FFM embeds tags in a way of its own: it gets the 20 heaviest values")
    assert make(build, "FFM", **SINGLE)[1] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_any_value_works(build, name):
    built, _ = make(build, name)
    (field,) = built.batch.bags
    empty = Bags((field,), torch.empty(0, dtype=torch.int64), None, torch.zeros(1, 64).long())
    columns = {f: built.batch[f] for f in built.batch if f != field}
    loss = built.model.calculate_loss(Batch(columns, {field: empty}, {field: 2}))
    loss.backward()
    assert torch.isfinite(loss)
    grads = [p.grad for p in built.model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", NAMES)
def test_single_valued_data_give_the_numbers_that_recboles_class_gives(build, name):
    built = build(name, **SMALL, **SINGLE)
    theirs, ours = built.model, copy.deepcopy(built.model)
    assert train_as_the_family(ours, built.config, built.batch) == []
    bare = {"weight"} if name == "FwFM" else set()  # which RecBole's own checkpoints lack
    assert {*theirs.state_dict()} | bare == {*ours.state_dict()}
    results = []
    for model in (theirs, ours):
        torch.manual_seed(5)
        loss = model.train().calculate_loss(built.batch)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([loss, model.eval().predict(built.batch), *gradients])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_pooling_is_that_of_the_family(build, pooling):
    """The logit of RecBole's LR is b + Σ w·e over the values, or over their number."""
    built, _ = make(build, "LR", bag_pooling=pooling)
    model, batch = built.model, weighted(built.batch)
    (field,) = batch.bags
    bag, linear = batch.bags[field], model.first_order_linear
    (table,) = linear.token_seq_embedding_table
    expected = []
    for row in range(len(batch)):
        start, n = int(bag.offsets[row]), int(bag.lengths[0][row])
        at = slice(start, start + n)
        total = (bag.weights[at] * table(bag.ids[at]).squeeze(1)).sum()
        expected.append(total / (n if pooling == "mean" else 1))
    with torch.no_grad():
        table.weight *= 2
        more = model.forward(batch)
        table.weight /= 2
        torch.testing.assert_close(more - model.forward(batch), torch.stack(expected))


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_the_embedding_is_pooled_as_that_of_the_family(build, pooling):
    built, _ = make(build, "FM", bag_pooling=pooling)
    family = build("ESMM", bag_pooling=pooling).model
    own = {name: value for name, value in built.model.state_dict().items() if "table" in name}
    family.load_state_dict(own, strict=False)
    batch = weighted(built.batch)
    with torch.no_grad():
        one, other = (m.concat_embed_input_fields(batch) for m in (built.model, family))
    assert torch.equal(one, other)
    assert one.std() > 0


def test_recboles_classes_stay_as_they_are(build):
    built, _ = make(build, "DeepFM")
    assert type(built.model) is not DeepFM
    assert isinstance(built.model, DeepFM)
    again = build("DeepFM").model
    assert type(again) is DeepFM
    assert type(again.first_order_linear) is FMFirstOrderLinear
    assert DeepFM.embed_input_fields is ContextRecommender.embed_input_fields


class OwnEmbedding(DeepFM):
    """Somebody's model that pools in another way."""

    def embed_token_seq_fields(self, token_seq_fields, mode="mean"):
        assert all(field.dim() == 2 for field in token_seq_fields)
        return super().embed_token_seq_fields(token_seq_fields, mode="sum")


def test_a_model_that_embeds_bags_itself_goes_on_getting_padded_ids(build):
    built, (said,) = make(build, OwnEmbedding, dropout_prob=0.1)
    assert said.startswith("OwnEmbedding embeds tags in a way of its own")
    assert torch.isfinite(built.model.predict(weighted(built.batch))).all()


# ------------------------------------------------------------------ sparse gradients


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients_are_the_dense_ones(build, name):
    dense, _ = make(build, name)
    sparse, said = make(build, name, sparse=True)
    sparse.model.load_state_dict(dense.model.state_dict())
    if name == "FwFM":  # RecBole's isn't a parameter
        sparse.model.weight = dense.model.weight
    losses = []
    for built in (dense, sparse):
        losses.append(built.model.calculate_loss(weighted(built.batch)))
        losses[-1].backward()
    assert torch.equal(*losses)
    kept = PENALISED_TABLES.get(name, [])
    assert any("keep dense gradients" in sentence for sentence in said) == bool(kept)
    tables = 0
    for (path, module), other in zip(
        sparse.model.named_modules(), dense.model.modules(), strict=True
    ):
        if not isinstance(module, nn.Embedding) or module.weight.grad is None:
            continue
        tables += 1
        gradient = module.weight.grad
        assert gradient.is_sparse != any(path.startswith(table) for table in kept), path
        plain = gradient.to_dense() if gradient.is_sparse else gradient
        torch.testing.assert_close(plain, other.weight.grad)
    assert tables


def test_looking_for_sparse_tables_changes_nothing(build):
    built = build("NFM", **SMALL)  # with dropout and batch statistics
    before = copy.deepcopy(built.model.state_dict())
    torch.manual_seed(1)
    built.model.train()
    assert make_tables_sparse(built.model, built.batch) == []
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
    assert built.model.training
    for key, value in built.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in built.model.parameters())


def test_a_step_moves_the_rows_of_the_batch_only(build, tmp_path):
    built, _ = make(build, "xDeepFM", sparse=True, checkpoint_dir=str(tmp_path))
    trainer = EntireSpaceTrainer(built.config, built.model)
    before = copy.deepcopy(built.model.state_dict())
    built.model.calculate_loss(built.batch[:3]).backward()
    trainer.optimizer.step()
    after = built.model.state_dict()
    name = "token_embedding_table.embedding.weight"
    moved = (before[name] != after[name]).any(dim=1)
    assert 0 < moved.sum() <= 3 * len(built.model.token_field_names)
    name = f"first_order_linear.{name}"  # which the penalty reaches
    assert (before[name] != after[name]).all()


@pytest.mark.parametrize(
    "settings", [{"learner": "adamw"}, {"clip_grad_norm": {"max_norm": 1.0}}], ids=str
)
def test_a_default_gives_way_where_a_model_of_recboles_had_dense_gradients(
    configure, caplog, monkeypatch, settings
):
    from recbole_escm2 import config as module

    with pytest.raises(UsageError, match="sparse_embedding"):  # where somebody has set it
        configure("DeepFM", sparse_embedding=True, **settings)
    defaults = module.defaults
    of_ali_ccp = {"sparse_embedding": True}
    monkeypatch.setattr(module, "defaults", lambda *given: defaults(*given) | of_ali_ccp)
    with caplog.at_level(WARNING):
        assert configure("DeepFM", **settings)["sparse_embedding"] is False
    assert "DeepFM trains with dense gradients here: sparse_embedding" in caplog.text
    with pytest.raises(UsageError, match="sparse_embedding"):
        configure("ESMM", **settings)


# ------------------------------------------------------------------ runs


def test_the_runner_says_what_remains(settings, caplog):
    with caplog.at_level(INFO):
        run("FFM", "tiny", config_dict={**settings, "sparse_embedding": True}, saved=False)
    assert "FFM embeds tags in a way of its own" in caplog.text
    assert "keep dense gradients" not in caplog.text


@pytest.mark.parametrize("sparse", [True, False])
def test_a_checkpoint_is_scored_as_its_run_was(settings, sparse):
    outcome = run("DeepFM", "tiny", config_dict={**settings, "sparse_embedding": sparse})
    again = evaluate_checkpoint(
        f"{outcome['run_dir']}/checkpoint.pth",
        config_dict={key: settings[key] for key in ("data_path", "output_dir")},
    )
    assert again["test_result"] == outcome["test_result"]


@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 6)])
def test_padded_ids_are_on_the_device_of_the_bag(weights):
    bag = Bags(("f",), torch.arange(1, 6), weights, torch.tensor([[2, 0, 3]]))
    with torch.device("meta"):  # where nothing else says on which device
        padded = bag.padded(2)
    assert padded.tolist() == (
        [[1, 2], [0, 0], [3, 4]] if weights is None else [[2, 1], [0, 0], [5, 4]]
    )
