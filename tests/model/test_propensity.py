"""What the clicks are weighted by: the CTR tower, a logged column, or the truth of a simulation."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import run

TRUTH = {"true_ctr", "true_cvr", "potential_conversion"}
WEIGHING = ["ESCM2_IPS", "ESCM2_DR"]
COLUMN = {"ctr_tower": None, "field": "propensity", "oracle": "true_ctr"}
ROWS = 400


def write(root, **changed):
    """The data set ``logged``, some of its columns by other functions of their values."""
    draw = np.random.default_rng(11)
    true_ctr = draw.uniform(0.05, 0.9, ROWS).round(4)
    true_cvr = draw.uniform(0.1, 0.8, ROWS).round(4)
    click, potential = draw.random(ROWS) < true_ctr, draw.random(ROWS) < true_cvr
    columns = {
        "user_id:token": [f"u{n}" for n in draw.integers(20, size=ROWS)],
        "item_id:token": [f"i{n}" for n in draw.integers(15, size=ROWS)],
        "row:token": [f"r{n}" for n in range(ROWS)],
        "click:float": click.astype(int),
        "conversion:float": (click & potential).astype(int),
        "potential_conversion:float": potential.astype(int),
        "true_ctr:float": true_ctr,
        "true_cvr:float": true_cvr,
        "propensity:float": (true_ctr**0.5).round(4),
    }
    for name, change in changed.items():
        columns[f"{name}:float"] = change(np.asarray(columns[f"{name}:float"]))
    folder = root / "logged"
    folder.mkdir(parents=True)
    rows = [
        "\t".join(columns),
        *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
    ]
    (folder / "logged.inter").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def given(tmp_path):
    return {
        "data_path": str(write(tmp_path / "data")),
        "output_dir": str(tmp_path / "output"),
        "use_gpu": False,
        "unused_col": {"inter": ["row"]},
        "embedding_size": 4,
        "mlp_hidden_size": [8],
        "train_batch_size": 64,
        "epochs": 2,
    }


def build(model, given, **changes):
    config = Config(model, "logged", config_dict={**given, **changes})
    train, valid, test = prepare_data(config, EntireSpaceDataset(config))
    return config.model_class(config, train.dataset), train, valid, test


# ------------------------------------------------------------------ what is in a batch


@pytest.mark.parametrize("model", ["ESMM", *WEIGHING])
@pytest.mark.parametrize("propensity", COLUMN)
def test_one_column_at_most_is_in_the_batches_of_train(given, model, propensity):
    choice = {"propensity": propensity} if model != "ESMM" else {}
    built, train, valid, test = build(model, given, **choice)
    weight = {COLUMN[propensity]} - {None} if choice else set()
    allowed = {"user_id", "item_id", "click", "conversion", "label"}
    for batch in train:
        assert set(batch) - {"row"} == allowed | weight
    for loader in (valid, test):
        for batch, *_ in loader:
            assert set(batch) - {"row"} == allowed
    names = {*built.token_field_names, *built.float_field_names, *built.token_seq_field_names}
    assert not names & (TRUTH | {"propensity"})


@pytest.mark.parametrize("model", WEIGHING)
@pytest.mark.parametrize("propensity", ["field", "oracle"])
@pytest.mark.parametrize("floor", [0, 0.1, 0.6])
def test_the_weight_is_the_column_of_the_impression(given, model, propensity, floor):
    changes = {"propensity": propensity, "propensity_floor": floor, "unused_col": {}}
    built, train, _, _ = build(model, given, **changes)
    draw = np.random.default_rng(11)
    true_ctr = draw.uniform(0.05, 0.9, ROWS).round(4)
    column = true_ctr if propensity == "oracle" else (true_ctr**0.5).round(4)
    seen = 0
    for batch in train:
        tokens = train.dataset.id2token("row", batch["row"].numpy())
        expected = np.maximum(column[[int(token[1:]) for token in tokens]], floor)
        np.testing.assert_allclose(built.impressions(batch).propensity, expected, rtol=1e-6)
        seen += len(batch)
    assert seen == len(train.dataset) > 300


def test_by_default_it_is_the_floored_ctr_tower(given):
    built, train, _, _ = build("ESCM2_IPS", given)
    batch = next(iter(train))
    impressions = built.impressions(batch)
    expected = torch.sigmoid(impressions.logit["ctr"]).clamp(min=0.1)
    torch.testing.assert_close(impressions.propensity, expected)


@pytest.mark.parametrize("model", WEIGHING)
@pytest.mark.parametrize("propensity", ["field", "oracle"])
def test_the_column_is_a_weight_and_no_feature(given, model, propensity):
    """Another column leaves every logit and the other risks alone to the last bit."""
    built, train, _, _ = build(model, given, propensity=propensity)
    batch = next(iter(train))
    other = Interaction({name: batch[name] for name in batch})
    other.interaction[COLUMN[propensity]] = 1 - batch[COLUMN[propensity]] / 2
    first, second = built.impressions(batch), built.impressions(other)
    for name, logit in first.logit.items():
        assert torch.equal(logit, second.logit[name])
    risks, changed = built.risks(first), built.risks(second)
    assert torch.equal(risks["ctr"], changed["ctr"])
    assert torch.equal(risks["ctcvr"], changed["ctcvr"])
    assert risks["cvr"] != changed["cvr"]


# ------------------------------------------------------------------ what a run depends on


def weights_of(given, **changes):
    """The trained weights of a run, as bytes."""
    outcome = run("ESCM2_IPS", "logged", config_dict={**given, **changes})
    path = f"{outcome['run_dir']}/checkpoint.pth"
    state = torch.load(path, weights_only=True)["state_dict"]
    return b"".join(state[name].numpy().tobytes() for name in sorted(state))


CHANGES = {
    "true_ctr": lambda p: (0.95 - p).round(4),
    "true_cvr": lambda p: (0.9 - p).round(4),
    "potential_conversion": lambda r: 1 - r,
    "propensity": lambda p: (1.05 - p).round(4),
}


@pytest.mark.parametrize("propensity", COLUMN)
@pytest.mark.parametrize("changed", CHANGES)
def test_training_depends_on_the_chosen_column_alone(given, tmp_path, propensity, changed):
    other = write(tmp_path / "other", **{changed: CHANGES[changed]})
    choice = {"propensity": propensity, "counterfactual_weight": 1.0}
    first = weights_of(given, **choice)
    second = weights_of(given, **choice, data_path=str(other))
    assert (first != second) == (changed == COLUMN[propensity])


def test_the_diagnosis_is_of_the_weights_in_use(given):
    changes = {"propensity": "field", "propensity_floor": 0, "epochs": 1}
    outcome = run("ESCM2_IPS", "logged", config_dict={**given, **changes})
    result = json.loads((Path(outcome["run_dir"]) / "result.json").read_text())
    _, _, valid, _ = build("ESCM2_IPS", given, **changes)
    truth = valid.dataset.truth
    expected = np.mean(truth.click / truth.propensity)
    found = result["weights"]["mean_weight_unfloored"]
    assert found == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("model", WEIGHING)
@pytest.mark.parametrize("propensity", COLUMN)
def test_snips_weights_add_up_to_the_batch(given, model, propensity):
    changes = {"propensity": propensity, "propensity_normalization": "snips"}
    built, train, _, _ = build(model, given, **changes)
    plain, _, _, _ = build(model, given, propensity=propensity)
    plain.load_state_dict(built.state_dict())
    for batch in train:
        impressions, as_it_came = built.impressions(batch), plain.impressions(batch)
        weight = impressions.click / impressions.propensity
        assert weight.sum().item() == pytest.approx(len(batch), rel=1e-5)
        ratio = impressions.propensity / as_it_came.propensity  # one factor for the whole batch
        torch.testing.assert_close(ratio, ratio[0].expand(len(batch)))
        assert not impressions.propensity.requires_grad


def test_the_snips_risk_is_a_weighted_mean_of_the_error(given):
    built, train, _, _ = build("ESCM2_IPS", given, propensity_normalization="snips")
    batch = next(iter(train))
    impressions = built.impressions(batch)
    clicked = impressions.click > 0
    pctr = torch.sigmoid(impressions.logit["ctr"]).clamp(min=0.1)[clicked].detach()
    expected = np.average(impressions.error[clicked].detach(), weights=1 / pctr)
    assert built.counterfactual_risk(impressions).item() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ what is refused, and said


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"propensity": "field", "PROPENSITY_FIELD": "logged_ctr"},
         "propensity: field weighs clicks by the column 'logged_ctr', which data set 'logged'"),
        ({"propensity": "oracle", "TRUE_CTR_FIELD": "p"}, "by the column 'p'.*takes a simulation"),
        ({"propensity": "field", "PROPENSITY_FIELD": None}, "PROPENSITY_FIELD names none"),
        ({"PROPENSITY_FIELD": "true_ctr"}, "TRUE_CTR_FIELD and PROPENSITY_FIELD are both 'true_ct"),
        ({"numerical_features": ["propensity"]}, "numerical_features names the label 'propensity'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_weight_that_cannot_be_had_is_refused(given, changes, match):
    with pytest.raises(UsageError, match=match):
        build("ESCM2_IPS", given, **changes)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan])
def test_a_logged_propensity_is_a_positive_probability(given, tmp_path, value):
    def spoil(column):
        return [*column[:-1], value]

    given["data_path"] = str(write(tmp_path / "spoiled", propensity=spoil))
    message = r"column 'propensity' must hold a probability in \(0, 1\].*line 401"
    with pytest.raises(UsageError, match=message):
        build("ESCM2_IPS", given)


def test_the_oracle_is_loud(given, caplog):
    with caplog.at_level(logging.WARNING):
        build("ESCM2_IPS", given, propensity="oracle")
    assert any("which only a simulation knows" in text for text in caplog.messages)
    caplog.clear()
    build("ESCM2_IPS", given, propensity="field")
    assert not any("simulation" in text for text in caplog.messages)


def test_the_command_line_weighs_by_the_truth(program_here, given):
    done = program_here(
        "--model=ESCM2_DR",
        "--dataset=logged",
        f"--data_path={given['data_path']}",
        "--propensity=oracle",
        "--propensity_floor=0",
        "--propensity_normalization=snips",
        "--epochs=1",
    )
    assert done.returncode == 0, done.stderr
    assert "which only a simulation knows" in done.stdout + done.stderr
    assert "CVR_AUC_ES: " in done.stdout
    refused = program_here("--model=ESCM2_DR", "--dataset=ml-100k", "--propensity=oracle")
    assert refused.returncode != 0
    assert "doesn't have: it takes a simulation" in refused.stderr
    assert "Traceback" not in refused.stderr


REFUSING = ["DCMT", "DDPO", "ESCM2_MRDR", "ESCM2_DR_BIAS", "ESCM2_DR_MSE", "ESCM2_TDR"]


@pytest.mark.parametrize("model", [*REFUSING, "ESCM2_STABLE_DR"])
def test_models_with_one_minus_the_propensity_refuse_a_rescaled_one(model, settings):
    config = {**settings, "propensity_normalization": "snips", "epochs": 1}
    with pytest.raises(UsageError, match=f"{model} has another use for ô"):
        run(model, "tiny", config_dict=config)
