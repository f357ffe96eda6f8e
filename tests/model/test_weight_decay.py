"""L2 on the embedding: which parameters and rows have it, and when sleeping rows wake."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from recbole_escm2.lookup import recbole_context_names
from recbole_escm2.model.backbone import backbone_names
from recbole_escm2.model.embedding import embedding_tables, reserved_rows
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.optimizer import RowAdam
from recbole_escm2.train.trainer import EntireSpaceTrainer

SMALL = {"cin_layer_size": [6, 4], "attention_size": 4, "bottom_hidden_size": [12]}
LR = 0.01


def tables_of(model):
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}


def step_without_a_gradient(trainer):
    """What the penalty alone does: by parameter, the weights before and after."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    after = dict(trainer.model.named_parameters())
    return {name: (value, after[name].detach()) for name, value in before.items()}


# ------------------------------------------------------------------ dense tables


@pytest.mark.parametrize("model", ["ESCM2_DR", *recbole_context_names()])
def test_the_penalty_moves_all_tables_and_nothing_else(build_acting, trainer_of, model):
    built = build_acting(model, **SMALL, embedding_weight_decay=0.1)
    tables = tables_of(built.model)
    assert tables
    steps = step_without_a_gradient(trainer_of(built))
    moved = {name for name, (before, after) in steps.items() if not torch.equal(before, after)}
    assert moved == {name for name, table in tables.items() if table.weight.any()}


@pytest.mark.parametrize("learner", ["adam", "sgd", "adagrad", "rmsprop"])
def test_it_is_coupled_and_adds_to_weight_decay(build_acting, trainer_of, learner):
    """The step is the learner's own with the gradient λ·w."""
    decays = {"weight_decay": 0.2, "embedding_weight_decay": 0.3}
    built = build_acting("ESCM2_IPS", learner=learner, learning_rate=LR, **decays)
    tables = tables_of(built.model)
    kind = {"adam": "Adam", "sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"}[learner]
    for name, (before, after) in step_without_a_gradient(trainer_of(built)).items():
        expected = nn.Parameter(before.clone())
        expected.grad = before * (0.5 if name in tables else 0.2)
        getattr(torch.optim, kind)([expected], lr=LR).step()
        torch.testing.assert_close(after, expected.detach(), rtol=1e-5, atol=1e-7, msg=name)


def test_without_it_the_optimizer_is_as_it_was(build_acting, trainer_of):
    for settings in ({}, {"weight_decay": 0.1}, {"weight_decay": None}):
        (group,) = trainer_of(build_acting("ESCM2_IPS", **settings)).optimizer.param_groups
        assert group["weight_decay"] == (settings.get("weight_decay") or 0)
        assert group["fused"]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("learner", "own"), [("adam", "adagrad"), ("sgd", "adam")])
def test_tables_have_an_optimizer_of_their_own(build_acting, trainer_of, learner, own, sparse):
    """Two steps of theirs, with the penalty on dense tables; all else has the learner's."""
    penalty = 0.0 if sparse and own == "adagrad" else 0.3
    built = build_acting(
        "ESCM2_IPS",
        learner=learner,
        learning_rate=LR,
        embedding_optimizer=own,
        embedding_weight_decay=penalty,
        sparse_embedding=sparse,
        sleeping_decay=0.0 if sparse else 1.0,
    )
    trainer, tables = trainer_of(built), tables_of(built.model)
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    expected = {n: nn.Parameter(p.detach().clone()) for n, p in built.model.named_parameters()}
    optimizers = [
        kind[own]([expected[n] for n in tables], lr=LR, weight_decay=penalty),
        kind[learner]([p for n, p in expected.items() if n not in tables], lr=LR),
    ]
    for _ in range(2):
        for name, parameter in built.model.named_parameters():
            gradient = torch.sin(torch.arange(parameter.numel()) + 1.0).reshape(parameter.shape)
            expected[name].grad = gradient
            as_sparse = sparse and name in tables
            parameter.grad = gradient.to_sparse(1) if as_sparse else gradient.clone()
        trainer.optimizer.step()
        for optimizer in optimizers:
            optimizer.step()
    for name, parameter in built.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach(), msg=name)


# ------------------------------------------------------------------ sparse tables


def fit(build_acting, trainer_of, name="ESCM2_DR", **settings):
    settings = {"epochs": 1, "learning_rate": LR, "train_batch_size": 16, **settings}
    built = build_acting(name, sparse_embedding=True, **SMALL, **settings)
    before = {name: table.weight.detach().clone() for name, table in tables_of(built.model).items()}
    trainer = trainer_of(built)
    trainer.fit(built.train, verbose=False, saved=False)
    return SimpleNamespace(built=built, trainer=trainer, before=before, model=built.model)


def states(trainer):
    return {id(table): state for table, state in trainer.row_adam.state.items()}


@pytest.mark.parametrize("backbone", backbone_names())
def test_every_row_is_awake_when_it_is_read(build_acting, trainer_of, monkeypatch, backbone):
    """In both steps of a batch: every way in which a model reads rows is known."""
    asleep, steps = [], []
    step = RowAdam._step

    def spied(optimizer, table, gradient, group):
        if state := optimizer.state.get(table):
            last = state["visited"][gradient._indices()[0]]
            asleep.append(int(((last != -1) & (last != state["step"])).sum()))
            steps.append(state["step"])
        return step(optimizer, table, gradient, group)

    monkeypatch.setattr(RowAdam, "_step", spied)
    decays = {"embedding_weight_decay": 0.01, "sleeping_decay": 0.1}
    fit(build_acting, trainer_of, backbone=backbone, imputation_schedule="alternate", **decays)
    assert max(steps) >= 11
    assert not any(asleep)


def test_without_the_hooks_rows_would_be_read_asleep(build_acting, trainer_of, monkeypatch):
    """A check that the test above can fail."""
    woken = []
    wake = RowAdam.wake

    def spied(optimizer, table, rows):
        before = table.detach().clone()
        wake(optimizer, table, rows)
        woken.append(not torch.equal(before, table))

    monkeypatch.setattr(RowAdam, "wake", spied)
    fit(build_acting, trainer_of, embedding_weight_decay=0.01)
    assert sum(woken) > 10


@pytest.mark.parametrize("key", ["embedding_weight_decay", "weight_decay"])
def test_rows_that_no_batch_touches_shrink_by_the_steps(build_acting, trainer_of, monkeypatch, key):
    """Initial weights sleep too; rows of padding, which nothing reads either, stay."""
    monkeypatch.setattr(EntireSpaceTrainer, "_fill_unseen", lambda trainer: None)
    few = {"impression_sample": 0.2, "sleeping_decay": 0.3, "imputation_schedule": "alternate"}
    done = fit(build_acting, trainer_of, **few, **{key: 0.01})
    name = "token_embedding_table.embedding.weight"
    table = done.model.token_embedding_table.embedding.weight
    state = states(done.trainer)[id(table)]
    steps = 2 * len(done.built.train)
    assert state["step"] == steps
    used = torch.zeros(len(table), dtype=torch.bool)
    offsets = torch.as_tensor(done.model.token_embedding_table.offsets)
    for batch in done.built.train:
        fields = torch.stack([batch[field] for field in done.model.token_field_names], dim=1)
        used[(fields + offsets).flatten()] = True
    padding = torch.zeros_like(used)
    padding[offsets] = True
    before = done.before[name]
    shrunk = before.sign() * (before.abs() - 0.3 * LR * steps).clamp(min=0)
    asleep = ~used & ~padding
    assert asleep.sum() >= 2
    torch.testing.assert_close(table[asleep].detach(), shrunk[asleep])
    assert torch.equal(table[padding], before[padding])
    assert (state["visited"][padding] == -1).all()
    assert (state["visited"][~padding] == steps).all()


def test_sparse_rows_feel_both_penalties(build_acting, trainer_of):
    decays = {"weight_decay": 0.2, "embedding_weight_decay": 0.3, "sleeping_decay": 0.5}
    trainer = trainer_of(build_acting("ESMM", sparse_embedding=True, **decays))
    rows, others = trainer.optimizer.optimizers
    assert [(g["weight_decay"], g["sleeping_decay"]) for g in rows.param_groups] == [(0.5, 0.5)]
    assert [g["weight_decay"] for g in others.param_groups if g["params"]] == [0.2]


def test_a_table_that_stays_dense_has_the_penalty_too(build_acting, trainer_of):
    """xDeepFM's regularizer reaches its first-order tables as a whole."""
    built = build_acting(
        "ESMM", backbone="xDeepFM", sparse_embedding=True, embedding_weight_decay=0.3
    )
    optimizer = trainer_of(built).optimizer
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    dense = [table for table in embedding_tables(built.model) if not table.sparse]
    assert dense
    for name, parameter in built.model.named_parameters():
        assert decays[id(parameter)] == (0.3 if name in tables_of(built.model) else 0), name


def test_validation_and_checkpoint_see_rows_that_are_awake(build_acting, trainer_of, monkeypatch):
    built = build_acting(
        "ESMM", sparse_embedding=True, embedding_weight_decay=0.01, epochs=3, train_batch_size=16
    )
    trainer = trainer_of(built)
    seen = []

    def awake():
        tables = trainer.row_adam.state.values()
        return all(((s["visited"] == -1) | (s["visited"] == s["step"])).all() for s in tables)

    score = trainer._scored

    def spied(batch):
        seen.append(awake())
        return score(batch)

    monkeypatch.setattr(trainer, "_scored", spied)
    trained = []
    monkeypatch.setattr(
        trainer.optimizer,
        "step",
        lambda step=trainer.optimizer.step: (step(), trained.append(awake())),
    )
    trainer.fit(built.train, built.valid, verbose=False, saved=True)
    assert len(seen) == 3 * len(built.valid) + 1  # last of all, the clicks of train
    assert all(seen)
    assert not any(trained)
    for name, value in load_checkpoint(trainer.saved_model_file)["state_dict"].items():
        assert value.shape == built.model.state_dict()[name].shape
    saved = load_checkpoint(trainer.saved_model_file)["optimizer"]
    rows = [state for state in saved.values() if state["of"] == "RowAdam"]
    assert len(rows) == len(tables_of(built.model))
    assert all(s["visited"].unique().tolist() == [-1, s["step"]] for s in rows)


def test_a_checkpoint_without_validation_is_awake_too(build_acting, trainer_of):
    built = build_acting("ESMM", sparse_embedding=True, embedding_weight_decay=0.01, epochs=2)
    trainer = trainer_of(built)
    trainer.fit(built.train, verbose=False, saved=True)
    saved = load_checkpoint(trainer.saved_model_file)
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name]), name


def test_the_model_is_left_as_it_was_found(build_acting, trainer_of):
    done = fit(build_acting, trainer_of, embedding_weight_decay=0.01)
    assert not any(table._forward_pre_hooks for table in embedding_tables(done.model))
    weights = {name: value.clone() for name, value in done.model.state_dict().items()}
    done.model.train()
    done.model.calculate_loss(done.built.batch)
    done.trainer.evaluate(done.built.valid, load_best_model=False)
    for name, value in done.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("changes", [{"sleeping_decay": 0.2}, {"embedding_weight_decay": 0.0}])
def test_without_a_penalty_the_pace_does_nothing(build_acting, trainer_of, changes):
    first, second = fit(build_acting, trainer_of), fit(build_acting, trainer_of, **changes)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    penalised = fit(build_acting, trainer_of, **changes, weight_decay=0.1)
    name = "token_embedding_table.embedding.weight"
    assert not torch.equal(first.model.state_dict()[name], penalised.model.state_dict()[name])


# ------------------------------------------------------------------ rows that belong to no id


@pytest.mark.parametrize("backbone", ["separate", "FM", "FFM"])
def test_rows_of_padding_and_of_unknown_ids(build_acting, backbone):
    built = build_acting("ESMM", backbone=backbone, sparse_embedding=True)
    dataset, model = built.train.dataset, built.model
    fields = [*model.token_field_names, *model.token_seq_field_names]
    unknown = {"item_id": 2, "tags": 1}
    vocabularies = {field: SimpleNamespace(unknown=unknown.get(field)) for field in fields}
    reserved = reserved_rows(model, vocabularies)
    assert set(reserved) == set(embedding_tables(model))

    sizes = [dataset.num(field) for field in model.token_field_names]
    first = dict(
        zip(model.token_field_names, [0, *torch.tensor(sizes).cumsum(0).tolist()], strict=False)
    )
    expected = sorted([*first.values(), first["item_id"] + 2])
    wanted = {"token_emb": expected, "token_seq_emb": [0, 1]}
    found = dict.fromkeys(wanted, 0)
    for name, table in model.named_modules():
        for key in wanted:
            if table in reserved and f".{key}" in f".{name}":
                found[key] += 1
                assert sorted(reserved[table].tolist()) == wanted[key], name
    # First-order tables are a tower's own; FFM has a table of each kind for each of its fields.
    counts = {"separate": (1, 1), "FM": (3, 3), "FFM": (2 + 5, 2 + 5)}
    assert tuple(found.values()) == counts[backbone]


def test_vocabularies_without_unknown_ids(build_acting):
    """Of atomic files, and of a stock RecBole data set, where they are arrays."""
    built = build_acting("ESMM")
    fields = built.train.dataset.field2id_token
    assert reserved_rows(built.model, fields)[
        built.model.token_seq_embedding_table[0]
    ].tolist() == [0]
    arrays = {field: list(vocabulary) for field, vocabulary in fields.items()}
    for table, rows in reserved_rows(built.model, fields).items():
        assert torch.equal(rows, reserved_rows(built.model, arrays)[table])
