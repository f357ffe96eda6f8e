"""Mixed precision, the gradient scaler and clipping, with dense and with sparse gradients."""

import math

import pytest
import torch

from recbole_escm2.quick_start import run
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer

CLIP = {"clip_grad_norm": {"max_norm": 0.05}}


@pytest.fixture
def result_of(settings):
    def result_of(**changes):
        changes |= {"dropout_prob": 0.0, "impression_sample": 0.5}
        outcome = run("ESCM2_DR", "tiny", config_dict={**settings, **changes}, saved=False)
        return outcome["test_result"]

    return result_of


@pytest.mark.parametrize("given", [{}, {"sparse_embedding": True}, CLIP])
def test_the_scaler_changes_nothing_where_nothing_overflows(result_of, given):
    """It multiplies by a power of two and divides by it again."""
    scaled = result_of(enable_scaler=True, **given)
    assert scaled == pytest.approx(result_of(**given), rel=1e-5)


@pytest.mark.parametrize("given", [{}, {"sparse_embedding": True}, CLIP])
@pytest.mark.parametrize("scaler", [False, True])
def test_mixed_precision_is_about_as_good(result_of, given, scaler):
    usual = result_of(**given)
    mixed = result_of(enable_amp=True, enable_scaler=scaler, **given)
    assert mixed != usual
    for task in ("CTR", "CVR", "CTCVR"):
        assert mixed[f"{task}_AUC"] == pytest.approx(usual[f"{task}_AUC"], abs=0.03)


@pytest.mark.parametrize("scaler", [False, True])
def test_clips_what_the_step_is_made_of(build, tmp_path, scaler):
    """The norm of the gradients as they are, not of scaled ones."""
    built = build("ESCM2_DR", enable_scaler=scaler, **CLIP)
    trainer = EntireSpaceTrainer(built.config, built.model, Run(tmp_path))
    seen = []
    step = trainer.optimizer.step

    def noted(*arguments):
        gradients = [p.grad for p in built.model.parameters() if p.grad is not None]
        seen.append(math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)))
        return step(*arguments)

    trainer.optimizer.step = noted
    trainer.verbose = False
    trainer._train_epoch(built.train, 0)
    trainer.tensorboard.close()
    assert len(seen) == len(built.train)
    assert max(seen) == pytest.approx(0.05, rel=1e-3)


def test_a_step_whose_gradient_overflows_is_left_out(build, tmp_path):
    built = build("ESMM", enable_scaler=True)
    trainer = EntireSpaceTrainer(built.config, built.model, Run(tmp_path))
    scaler = torch.amp.GradScaler("cpu")
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    weight = next(built.model.parameters())
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    trainer._optimize(_losses(built), scaler)
    hook.remove()
    trainer.tensorboard.close()
    after = built.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert scaler.get_scale() == 2.0**15
    trainer._optimize(_losses(built), scaler)
    assert not torch.equal(before["towers.ctr.1.weight"], built.model.towers["ctr"][1].weight)


def _losses(built):
    return next(iter(built.model.loss_steps(built.batch)))
