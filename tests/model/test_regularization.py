"""What regularises the embedding, and the towers' form, beside L2: each by hand on few rows."""

import math
from types import SimpleNamespace

import pytest
import torch

from recbole_escm2.model.embedding import initialize, reserved_rows

TOWERS = {"ESMM": ("ctr", "cvr"), "ESCM2_DR": ("ctr", "cvr", "imputation")}
TOWERS["AITM"] = ("ctr", "ctcvr")


def table_of(rows, width, field_dims=None):
    table = torch.nn.Embedding(rows, width)
    return SimpleNamespace(embedding=table, field_dims=field_dims)


def batch_tags(batch):
    """How many tags each impression has."""
    return batch.bags["tags"].lengths[0].tolist()


# ------------------------------------------------------------------ initial embeddings


@pytest.mark.parametrize(
    ("how", "deviations"),
    [
        ("xavier", (0.05, 0.05)),  # as they are
        ("field", (math.sqrt(2 / (3000 + 16)), math.sqrt(2 / (4 + 16)))),
        (0.3, (0.3, 0.3)),
    ],
)
def test_initial_embeddings_have_the_standard_deviation_of_their_rule(how, deviations):
    torch.manual_seed(0)
    table = table_of(3004, 16)
    torch.nn.init.normal_(table.embedding.weight, std=0.05)
    model = SimpleNamespace(token_embedding_table=table, token_field_dims=[3000, 4])
    initialize(model, how)
    for rows, expected in zip(table.embedding.weight.split([3000, 4]), deviations, strict=True):
        samples = rows.numel()
        assert float(rows.detach().std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * samples))


def test_every_kind_of_field_is_drawn_anew_and_nothing_else(build):
    before, after = (build("ESCM2_DR", embedding_init=how).model for how in ("xavier", 0.5))
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {name for name, _ in before.named_parameters() if "embedding_table" in name}
    assert {name.partition("_embedding")[0] for name in moved} >= {"token", "token_seq", "float"}


# ------------------------------------------------------------------ embedding dropout


@pytest.mark.parametrize("backbone", ["separate", "ple", "DCN"])
def test_whole_embeddings_are_dropped_and_the_others_scaled_up(build, monkeypatch, backbone):
    built = build("ESCM2_DR", embedding_dropout=0.25, backbone=backbone)
    model, seen = built.model, []
    embedding = model.concat_embed_input_fields(built.batch).detach()
    of_towers = {"separate": "bottom", "ple": "bottom", "DCN": "towers"}[backbone]
    if of_towers == "bottom":
        monkeypatch.setattr(
            model.bottom, "forward", lambda x, tasks: seen.append(x) or dict.fromkeys(tasks, x)
        )
    model.train()
    inputs = model.tower_inputs(built.batch, ("ctr",))
    dropped = seen[0].view_as(embedding) if seen else inputs["ctr"].embedding
    kept = dropped.abs().sum(dim=2, keepdim=True) > 0
    torch.testing.assert_close(dropped, torch.where(kept, embedding / 0.75, 0.0))
    share = 1 - float(kept.float().mean())
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / kept.numel()))
    assert kept.float().mean(dim=1).unique().numel() > 2  # each impression has draws of its own
    model.eval()
    seen.clear()
    inputs = model.tower_inputs(built.batch, ("ctr",))
    left = seen[0].view_as(embedding) if seen else inputs["ctr"].embedding
    assert torch.equal(left, embedding)


# ------------------------------------------------------------------ first-order part


@pytest.mark.parametrize("backbone", ["separate", "ple"])
@pytest.mark.parametrize("model", TOWERS)
def test_a_weight_for_every_id_is_added_to_each_towers_logit(build, model, backbone):
    built, bare = (build(model, backbone=backbone, first_order=on).model for on in (True, False))
    batch = build(model).batch
    with torch.no_grad():
        logits, expected = built(batch), bare(batch)
        for name in TOWERS[model]:  # nothing at first
            assert torch.equal(logits[name], expected[name])
        for place, name in enumerate(TOWERS[model], start=1):
            part = built.first_order[name]
            part.bias.fill_(place)
            ids = dict(zip(part.token_field_names, part.token_field_offsets, strict=True))
            weights = part.token_embedding_table.embedding.weight
            weights[:, 0] = place * torch.arange(len(weights)) / 10
            by_hand = place + sum(weights[at + batch[field], 0] for field, at in ids.items())
            (tags,) = part.token_seq_embedding_table
            tags.weight[:, 0] = place * torch.arange(len(tags.weight))
            for row, values in enumerate(batch.bags["tags"].ids.split(batch_tags(batch))):
                by_hand[row] += tags.weight[values, 0].mean()
            part.float_embedding_table.embedding.weight[:, 0] = torch.arange(1.0, 9.0)[
                : len(part.float_embedding_table.embedding.weight)
            ]
            numbers = zip(part.float_field_names, part.float_field_offsets, strict=True)
            for field, at in numbers:
                value, bucket = batch[field][:, 0].float(), batch[field][:, 1].long()
                by_hand += value * (1 + at + bucket)
            torch.testing.assert_close(built(batch)[name], expected[name] + by_hand)


def test_a_first_order_part_is_moved_by_its_towers_risks_alone(build):
    built = build("ESCM2_DR", first_order=True)
    model = built.model
    risks = model.risks(model.impressions(built.batch))
    weights = {name: list(part.parameters()) for name, part in model.first_order.items()}
    moved = {
        (risk, tower)
        for risk, value in risks.items()
        for tower, own in weights.items()
        if any(
            g is not None and bool(g.any())
            for g in torch.autograd.grad(value, own, retain_graph=True, allow_unused=True)
        )
    }
    assert moved == {
        *(("ctr", "ctr"), ("cvr", "cvr"), ("cvr", "imputation")),
        *(("ctcvr", "ctr"), ("ctcvr", "cvr")),
    }


def test_first_order_tables_have_rows_without_an_id_too(build):
    """The L2 penalty leaves padding out, and sparse gradients are theirs as well."""
    built = build("ESMM", first_order=True, sparse_embedding=True)
    reserved = reserved_rows(built.model, built.train.dataset.field2id_token)
    for part in built.model.first_order.values():
        table = part.token_embedding_table.embedding
        assert table.sparse
        assert set(part.token_field_offsets.tolist()) <= set(reserved[table].tolist())
