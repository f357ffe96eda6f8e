"""Every model that ships trains and predicts on another device as it does on the CPU."""

import contextlib

import pytest
import torch
from elsewhere import another_device, waits
from torch import nn

from recbole_escm2.bags import Bags
from recbole_escm2.config import acting_settings
from recbole_escm2.lookup import context_model_names, find_model
from recbole_escm2.model import MODELS
from recbole_escm2.model.backbone import RECBOLE
from recbole_escm2.model.bottom import BOTTOMS
from recbole_escm2.model.embedding import pool_bag
from recbole_escm2.train.run import Run
from recbole_escm2.train.training import Training

OURS = [model.__name__ for model in MODELS]
# Small, and without what draws other random numbers on another device.
SMALL = {
    "cin_layer_size": [6, 4],
    "attention_size": 4,
    "bottom_hidden_size": [12],
    "dropout_prob": 0.0,
    "train_batch_size": 64,
    "epochs": 2,
    "metrics": ["CTR_AUC", "CTR_LogLoss"],
    "valid_metric": "CTR_AUC",
}


def a_gpu_or_its_like():
    """A context in which there is another device, which it gives."""
    if torch.cuda.is_available():
        return contextlib.nullcontext(torch.device("cuda", 0))
    return another_device()


def trained(configure, folder, device, model, **settings):
    """What a model says of its training, its validations and its predictions on a device."""
    folder.mkdir()
    given = acting_settings(find_model(model), {**SMALL, **settings})
    config = configure(model, "shop", **given)
    config["device"] = device
    run = Run(folder)
    training = Training(config, run)
    trainer = training.trainer
    trainer.fit(training.splits["train"], training.splits["valid"], False, False)
    assert {p.device for p in trainer.model.parameters()} == {device}
    trainer.evaluate(training.splits["test"], load_best_model=False)
    losses = [list(epoch["losses"].values()) for epoch in trainer.history]
    scores = trainer.eval_collector.predictions.score
    run.at_end.close()
    return losses, {task: score.tolist() for task, score in scores.items()}


def waits_of_a_step(configure, folder, model, **settings):
    """The lines at which the steps of a training would wait for a GPU, and how often."""
    with another_device() as device, waits() as seen:
        folder.mkdir()
        config = configure(model, "shop", **acting_settings(find_model(model), SMALL | settings))
        config["device"] = device
        run = Run(folder)
        training = Training(config, run)
        trainer = training.trainer
        train = training.splits["train"]
        assert len(train) > 2
        step = trainer._train_step

        def watched(*args, **kwargs):
            seen.counting = True
            try:
                return step(*args, **kwargs)
            finally:
                seen.counting = False

        trainer._train_step = watched
        trainer._learn(train, 0, None, False)
        run.at_end.close()
    return seen.lines


def alike_on_both(configure, tmp_path, model, **settings):
    """Train on the CPU and elsewhere: the same losses and predictions."""
    losses, scores = trained(configure, tmp_path / "cpu", torch.device("cpu"), model, **settings)
    with a_gpu_or_its_like() as device:
        there = trained(configure, tmp_path / "there", device, model, **settings)
    for own, other in zip(losses, there[0], strict=True):
        assert other == pytest.approx(own, rel=1e-3)
    for task, score in scores.items():
        assert there[1][task] == pytest.approx(score, rel=1e-2)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("model", OURS)
def test_our_models(configure, tmp_path, model, sparse):
    settings = {"sparse_embedding": sparse, "counterfactual_weight": 0.5, "weight_decay": 0.01}
    alike_on_both(configure, tmp_path, model, **settings)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("backbone", [*BOTTOMS, *RECBOLE])
def test_backbones(configure, tmp_path, backbone, sparse):
    settings = {"backbone": backbone, "sparse_embedding": sparse, "imputation": "label"}
    alike_on_both(configure, tmp_path, "ESCM2_DR", **settings)


@pytest.mark.parametrize("model", context_model_names()[len(OURS) :])
def test_recboles_models_by_themselves(configure, tmp_path, model):
    alike_on_both(configure, tmp_path, model)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("ESCM2_IPS", {"propensity_normalization": "snips", "sparse_embedding": True}),
        ("ESCM2_DR", {"propensity": "field", "PROPENSITY_FIELD": "propensity"}),
        ("ESCM2_DR", {"bag_pooling": "sum", "learner": "sgd"}),
        ("MTL_EIB", {"embedding_weight_decay": 0.1, "sparse_embedding": True}),
        ("DeepFM", {"task": "ctcvr"}),
        ("DCNV2", {"task": "cvr", "valid_metric": "CVR_AUC", "metrics": ["CVR_AUC"]}),
    ],
)
def test_settings_that_take_another_way(configure, tmp_path, model, settings):
    if model == "DeepFM":
        settings = {**settings, "valid_metric": "CTCVR_AUC", "metrics": ["CTCVR_AUC"]}
    alike_on_both(configure, tmp_path, model, **settings)


# Constants that RecBole's own code makes anew and sends to the device in each forward pass.
RECBOLE_SENDS = {"AFM": "afm.py", "FFM": "ffm.py", "FiGNN": "fignn.py", "PNN": "pnn.py"}


@pytest.mark.parametrize(
    ("model", "sparse"), [("ESCM2_DR", False), *((model, True) for model in OURS)]
)
def test_no_step_of_ours_waits_for_a_gpu(configure, tmp_path, model, sparse):
    settings = {"sparse_embedding": sparse, "counterfactual_weight": 0.5, "weight_decay": 0.01}
    assert not waits_of_a_step(configure, tmp_path / "run", model, **settings)


@pytest.mark.parametrize("backbone", [*BOTTOMS, *RECBOLE])
def test_no_step_on_a_backbone_waits_for_a_gpu(configure, tmp_path, backbone):
    settings = {"backbone": backbone, "sparse_embedding": True, "weight_decay": 0.01}
    lines = waits_of_a_step(configure, tmp_path / "run", "ESCM2_DR", **settings)
    allowed = RECBOLE_SENDS.get(backbone, "none")
    assert [line for line in lines if f" {allowed}:" not in line] == []


@pytest.mark.parametrize("model", ["DeepFM", "DCNV2"])
def test_no_step_of_recboles_own_waits_for_a_gpu(configure, tmp_path, model):
    assert not waits_of_a_step(configure, tmp_path / "run", model)


def weighted_bag():
    """Of the second of two fields, in a batch of three."""
    lengths = torch.tensor([[1, 1, 0], [2, 0, 3]])
    weights = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.5, 3.0, 0.1])
    _, (_, bag) = Bags(("a", "b"), torch.tensor([6, 7, 1, 2, 3, 4, 5]), weights, lengths).split()
    return bag


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_weighted_bags(pooling):
    """As Ali-CCP has them; the data above has values without weights."""
    torch.manual_seed(0)
    table = nn.Embedding(8, 2)
    expected = pool_bag(table, weighted_bag().scaled(2.0), pooling)
    with a_gpu_or_its_like() as device:
        there = weighted_bag().to(device)
        assert there.padded(2).device == there.offsets.device == device
        assert there.padded(2).cpu().tolist() == [[2, 1], [0, 0], [4, 3]]
        again = Bags.of_padded(there.padded(2))
        assert again.ids.cpu().tolist() == [2, 1, 4, 3]
        assert again.lengths.device == device
        with waits() as seen:
            seen.counting = True
            pooled = pool_bag(table.to(device), there.scaled(2.0), pooling)
        assert not [line for line in seen.lines if "embedding.py" in line]
        assert pooled.cpu().tolist() == expected.tolist()


def test_the_other_device_mixes_with_nothing():
    """What stands for a GPU refuses what a GPU would."""
    with another_device() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert there.device == torch.arange(2, device=device).device == device
        for mixed in (lambda: there + here, lambda: torch.cat([there, here]), there.numpy):
            with pytest.raises(RuntimeError):
                mixed()
        with pytest.raises(RuntimeError, match="same device"):
            here.index_select(0, torch.zeros(1, dtype=torch.int64, device=device))
        assert (there * 2 + here.sum()).cpu().tolist() == [5.0] * 3
