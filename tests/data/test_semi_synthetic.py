"""Semi-synthetic entire spaces: the completion, the outcomes, and that no model reads the truth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.data.worlds.completion import _best, complete_ratings
from recbole_escm2.data.worlds.outcomes import (
    OutcomeRule,
    levels_by_rank,
    scaled_to_mean,
)
from recbole_escm2.errors import UsageError
from recbole_escm2.identity import file_digest
from recbole_escm2.quick_start import run
from recbole_escm2.train.checkpoint import load_checkpoint

many = settings(deadline=None, max_examples=60, derandomize=True)
LEVELS, SHARES, STEPS = [0.1, 0.3, 0.5, 0.7, 0.9], [0.53, 0.24, 0.14, 0.06, 0.03], [4, 4, 3, 2, 1]
TRUTH = ("potential_conversion", "true_ctr", "true_cvr")

# ------------------------------------------------------------------ completion


def some_ratings(seed, users=12, items=9, share=0.6):
    """Users, items and ratings in random order, of rank 1 and biases, with a little noise."""
    rng = np.random.default_rng(seed)
    full = 3 + rng.normal(0, 0.5, (users, 1)) + rng.normal(0, 0.5, items)
    full = full + rng.normal(0, 1, (users, 1)) * rng.normal(0, 1, items)
    user, item = rng.permutation(np.argwhere(rng.random((users, items)) < share)).T
    return user, item, full[user, item] + rng.normal(0, 0.1, len(user)), full


def completed_of(user, item, rating, shape, *arguments, **more):
    return complete_ratings(coo_array((rating, (user, item)), shape), *arguments, **more)


def test_a_matrix_of_the_right_rank_is_recovered():
    user, item, rating, full = some_ratings(0, users=80, items=60, share=0.5)
    completed = completed_of(user, item, rating, full.shape, 1, 1e-3, sweeps=50)
    assert np.sqrt(np.mean((completed - full) ** 2)) < 0.05  # half of the noise
    biases = completed_of(user, item, rating, full.shape, 0, 1e-3)
    assert np.sqrt(np.mean((biases - full) ** 2)) > 0.5


def test_without_factors_it_is_the_regularised_two_way_model():
    user, item, rating, full = some_ratings(1)
    users, items = full.shape
    completed = completed_of(user, item, rating, full.shape, 0, 0.2, sweeps=300)
    count = np.concatenate([np.bincount(user, minlength=users), np.bincount(item, minlength=items)])
    design = np.zeros((len(user), users + items))
    design[np.arange(len(user)), user] = design[np.arange(len(user)), users + item] = 1
    bias = np.linalg.solve(
        design.T @ design + 0.2 * np.diag(np.maximum(count, 1)), design.T @ (rating - rating.mean())
    )
    expected = rating.mean() + bias[:users, None] + bias[users:]
    np.testing.assert_allclose(completed, expected, atol=1e-9)


@many
@given(st.integers(0, 1000), st.integers(0, 3), st.floats(0.01, 1))
def test_each_half_of_a_sweep_is_a_minimum(seed, rank, regularization):
    """No change of one user's factors or bias lowers the objective, so no sweep ever raises it."""
    user, item, rating, (users, items) = *some_ratings(seed)[:3], (12, 9)
    rng = np.random.default_rng(seed)
    other = rng.normal(size=(items, rank + 1))
    count = np.bincount(user, minlength=users)

    def objective(side):
        factors = np.sum(side[user, :rank] * other[item, :rank], axis=1)
        residual = rating - side[user, rank] - other[item, rank] - factors
        return np.sum(residual**2) + regularization * np.sum(count[:, None] * side**2)

    best = _best(user, item, rating, other, users, regularization)
    for size in (1e-4, 1e-2, 1):
        change = size * rng.normal(size=best.shape) * (count > 0)[:, None]
        assert objective(best + change) > objective(best)


@many
@given(st.integers(0, 1000))
def test_the_order_of_the_ratings_does_not_matter(seed):
    user, item, rating, full = some_ratings(seed)
    order = np.random.default_rng(seed).permutation(len(user))
    first = completed_of(user, item, rating, full.shape, 2, 0.1)
    again = completed_of(user[order], item[order], rating[order], full.shape, 2, 0.1)
    np.testing.assert_allclose(first, again, atol=1e-8)


def test_same_seed_same_bits():
    user, item, rating, full = some_ratings(2)
    first, again = (completed_of(user, item, rating, full.shape, 2, 0.1) for _ in range(2))
    assert np.array_equal(first, again)


def test_a_user_and_an_item_without_a_rating_get_the_mean_and_the_other_bias():
    user, item, rating, (_, _) = *some_ratings(3)[:3], (12, 9)
    completed = completed_of(user, item, rating, (13, 10), 2, 0.1)
    assert completed[12, 9] == pytest.approx(rating.mean())
    whole = completed_of(user, item, rating, (12, 9), 0, 0.1)
    alone = completed_of(user, item, rating, (13, 10), 0, 0.1)
    np.testing.assert_allclose(alone[:12, :9], whole, atol=1e-12)
    np.testing.assert_allclose(alone[12, :9] + alone[:12, 9:] - rating.mean(), whole, atol=1e-12)


@pytest.mark.parametrize(
    ("rating", "regularization", "match"),
    [([], 0.1, "without a rating"), ([np.nan], 0.1, "finite"), ([1.0], 0.0, "positive")],
)
def test_what_cannot_be_completed_is_refused(rating, regularization, match):
    position = np.zeros(len(rating), dtype=np.int64)
    with pytest.raises(ValueError, match=match):
        completed_of(position, position, np.array(rating), (1, 1), 1, regularization)


def test_held_out_ratings_of_ml_100k_are_predicted():
    """The literature's matrix factorisations have an RMSE of about 0.91 to 0.93 on such splits."""
    folder = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    table = pd.read_csv(folder / "ml-100k.inter", sep="\t").to_numpy()
    user, item, rating = table[:, 0] - 1, table[:, 1] - 1, table[:, 2].astype(float)
    train = np.random.default_rng(0).random(len(rating)) < 0.9
    shape = (943, 1682)

    def rmse(rank):
        seen = user[train], item[train], rating[train]
        completed = completed_of(*seen, shape, rank, 0.12)
        return np.sqrt(np.mean((completed[user[~train], item[~train]] - rating[~train]) ** 2))

    assert rmse(8) < 0.92 < rmse(0) < 0.95 < rating[~train].std()


# ------------------------------------------------------------------ outcomes


def rule(**changes):
    return OutcomeRule(LEVELS, SHARES, STEPS, **changes)


scores = np.random.default_rng(5).normal(size=200_000)


@many
@given(
    st.lists(st.floats(-9, 9), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_levels_follow_the_rank_and_have_their_shares(score, parts):
    shares = np.array(parts) / sum(parts)
    score = np.array(score)
    level = levels_by_rank(score, shares)
    ordered = level[np.argsort(score, kind="stable")]
    assert (np.diff(ordered) >= 0).all()
    count = np.bincount(level, minlength=len(shares))
    assert (np.abs(count - shares * len(score)) <= 1).all()


def test_the_protocol_by_hand():
    """10,000 pairs, unscaled: .9 is clicked with p, .7 with p², .5 with p³, .3 and .1 with p⁴."""
    outcomes = rule().draw(np.arange(10_000.0))
    ends = np.cumsum([5300, 2400, 1400, 600, 300])
    for start, end, cvr, ctr in zip(
        [0, *ends], ends, LEVELS, [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2], strict=False
    ):
        assert (outcomes.true_cvr[start:end] == cvr).all()
        assert (outcomes.true_ctr[start:end] == ctr).all()


@many
@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_a_scale_gives_the_mean_that_is_asked_for(value, mean):
    value = np.array(value)
    scaled = scaled_to_mean(value, mean)
    assert scaled.mean() == pytest.approx(mean, rel=1e-9)
    assert (scaled > 0).all()
    inside = scaled < 1
    np.testing.assert_allclose(scaled[inside] / value[inside], (scaled / value).max(), rtol=1e-9)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_selection_varies_at_one_click_rate(strength):
    outcomes = rule(selection_strength=strength, click_rate=0.05).draw(scores)
    assert outcomes.true_ctr.mean() == pytest.approx(0.05, rel=1e-9)
    clicked = outcomes.true_cvr[outcomes.click].mean()
    everywhere = outcomes.true_cvr.mean()
    ratio = outcomes.true_ctr.max() / outcomes.true_ctr.min()
    assert ratio == pytest.approx(2 ** (3 * strength))
    expected = np.average(outcomes.true_cvr, weights=outcomes.true_ctr)
    assert clicked == pytest.approx(expected, abs=4 * 0.25 / np.sqrt(outcomes.click.sum()))
    assert (expected > everywhere + 0.02) == (strength > 0)


def test_without_selection_clicks_tell_nothing_of_conversion():
    outcomes = rule(selection_strength=0.0, click_rate=0.3).draw(scores)
    assert len(set(outcomes.true_ctr)) == 1
    correlation = np.corrcoef(outcomes.click, outcomes.potential_conversion)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(scores))


@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.6])
def test_a_hidden_cause_leaves_both_probabilities_right(rho):
    outcomes = rule(click_rate=0.1, hidden_confounding=rho).draw(scores)
    for level in LEVELS:
        at = outcomes.true_cvr == level
        for drawn, probability in (
            (outcomes.potential_conversion[at], level),
            (outcomes.click[at], outcomes.true_ctr[at].mean()),
        ):
            sd = np.sqrt(probability * (1 - probability) / at.sum())
            assert abs(drawn.mean() - probability) < 4.5 * sd
    at = outcomes.true_cvr == 0.1
    gap = outcomes.potential_conversion[at & outcomes.click].mean() - 0.1
    assert np.sign(np.round(gap, 1)) == np.sign(rho)  # given the features, clicks tell of r


def test_noise_spreads_the_true_ctr_and_tells_nothing_of_conversion():
    outcomes = rule(click_rate=0.05, propensity_noise=0.5).draw(scores)
    at = outcomes.true_cvr == 0.1
    assert np.log(outcomes.true_ctr[at]).std() == pytest.approx(0.5, rel=0.02)
    assert outcomes.true_ctr.mean() == pytest.approx(0.05, rel=1e-9)
    high = outcomes.true_ctr > np.median(outcomes.true_ctr[at])
    rates = [outcomes.potential_conversion[at & which].mean() for which in (high, ~high)]
    assert abs(rates[0] - rates[1]) < 4.5 * 0.3 / np.sqrt(at.sum() / 4)


def test_what_is_seen_is_click_times_potential_conversion():
    outcomes = rule(click_rate=0.2).draw(scores[:999])
    assert np.array_equal(outcomes.conversion, outcomes.click * outcomes.potential_conversion)


def test_the_draws_of_a_seed_stay_what_they_are():
    """Numbers on simulated data would change with them."""
    drawn = rule(click_rate=0.2, simulation_seed=2022).draw(np.arange(1000.0))
    clicked, converting = map(np.flatnonzero, (drawn.click, drawn.potential_conversion))
    assert clicked[:8].tolist() == [0, 1, 5, 26, 34, 35, 38, 46]
    assert converting[:8].tolist() == [14, 15, 25, 38, 41, 47, 71, 75]
    assert rule().simulation_seed == 2022


def test_outcomes_depend_on_their_seed_alone():
    first, again, other = (
        rule(click_rate=0.2, simulation_seed=n).draw(scores[:999]) for n in (1, 1, 2)
    )
    assert np.array_equal(first.click, again.click)
    assert not np.array_equal(first.click, other.click)
    assert not np.array_equal(first.potential_conversion, other.potential_conversion)


# ------------------------------------------------------------------ the data set


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """A data_path with a small data set of ratings, ``stars``: 40 users, 30 items."""
    root = tmp_path_factory.mktemp("ratings")
    folder = root / "stars"
    folder.mkdir()
    user, item, rating, _ = some_ratings(4, users=40, items=30, share=0.4)
    stars = np.clip(np.rint(rating), 1, 5).astype(int)
    pd.DataFrame(
        {
            "user_id:token": [f"u{u}" for u in user],
            "item_id:token": [f"i{i}" for i in item],
            "rating:float": stars,
            "timestamp:float": np.arange(len(user)),
        }
    ).to_csv(folder / "stars.inter", sep="\t", index=False)
    pd.DataFrame(
        {"user_id:token": [f"u{u}" for u in range(40)], "age:token": np.arange(40) // 8}
    ).to_csv(folder / "stars.user", sep="\t", index=False)
    return root


@pytest.fixture
def small(ratings, tmp_path):
    """Settings of a quick run on simulated outcomes of ``stars``."""
    return {
        "data_path": str(ratings),
        "store_dir": str(tmp_path / "stores"),
        "output_dir": str(tmp_path / "output"),
        "ratings": "stars",
        "load_col": {"inter": ["user_id", "item_id", "rating"], "user": ["user_id", "age"]},
        "click_rate": 0.3,
        "epochs": 2,
        "train_batch_size": 128,
        "embedding_size": 4,
        "mlp_hidden_size": [8],
        "show_progress": False,
    }


def load(model="ESMM", **given):
    return EntireSpaceDataset(Config(model, "ml-100k-semi", config_dict=given))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The data set as its defaults make it."""
    return load(store_dir=str(tmp_path_factory.mktemp("stores")))


def test_counts_are_those_of_the_protocol(whole):
    parts = whole.build()
    truth = {name: np.concatenate([getattr(part.truth, name) for part in parts]) for name in TRUTH}
    click = np.concatenate([part.truth.click for part in parts])
    conversion = np.concatenate([part.truth.conversion for part in parts])
    pairs = 943 * 1682
    assert len(click) == pairs
    assert truth["true_ctr"].mean() == pytest.approx(0.05, rel=1e-6)
    levels, count = np.unique(truth["true_cvr"], return_counts=True)
    assert levels == pytest.approx(LEVELS)
    assert count / pairs == pytest.approx(SHARES, abs=1e-6)
    for drawn, true in ((click, "true_ctr"), (truth["potential_conversion"], "true_cvr")):
        sd = np.sqrt(np.mean(truth[true] * (1 - truth[true])) / pairs)
        assert abs(drawn.mean() - truth[true].mean()) < 4 * sd
    assert np.array_equal(conversion, click * truth["potential_conversion"])
    # .9 is clicked p/p² = 2 times as often as .7, and so on down to p⁴
    rate = [truth["true_ctr"][np.isclose(truth["true_cvr"], cvr)].mean() for cvr in LEVELS]
    assert np.divide(rate, rate[0]) == pytest.approx([1, 1, 2, 4, 8])


def test_features_are_those_of_ml_100k(whole, features_of):
    assert features_of(whole) == {
        "user_id", "item_id", "age", "gender", "occupation", "release_year", "class",
    }  # fmt: skip
    assert set(whole.build()[0][:2]) == {
        *features_of(whole), "click", "conversion", "label",
    }  # fmt: skip
    assert "simulated" in whole.simulated


def test_a_store_is_made_once_for_each_setting(small, caplog):
    first = load(**small)
    again = load(**small)
    assert first.store.folder == again.store.folder
    assert sum("completing the ratings" in text for text in caplog.messages) <= 1
    others = [
        load(**{**small, key: value}).store.folder
        for key, value in {
            "selection_strength": 0.0,
            "click_rate": None,
            "propensity_noise": 0.3,
            "hidden_confounding": 0.5,
            "simulation_seed": 1,
            "completion_rank": 2,
            "cvr_levels": [0.1, 0.2, 0.3, 0.4, 0.5],
        }.items()
    ]
    assert len({first.store.folder, *others}) == len(others) + 1
    assert load(**{**small, "seed": 3}).store.folder == first.store.folder


def test_same_settings_same_bytes(small, tmp_path):
    folders = []
    for number in range(2):
        folders.append(load(**{**small, "store_dir": str(tmp_path / str(number))}).store.folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    assert {"inter.true_ctr", "inter.true_cvr", "inter.potential_conversion"} <= set(names)
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cvr_shares": [0.5, 0.5]}, "cvr_shares must have a value for each of the 5 cvr_levels"),
        ({"cvr_shares": [0.5, 0.2, 0.1, 0.1, 0.05]}, "cvr_shares must add up to 1, got 0.95"),
        ({"propensity_steps": [1]}, "propensity_steps must have a value for each"),
        ({"cvr_levels": [0.3, 0.1]}, "cvr_levels must be a list of probabilities in rising order"),
        ({"cvr_levels": [0.1, "x"]}, "cvr_levels must be a list of probabilities"),
        ({"click_rate": 1.5}, "click_rate must be a number between 0 and 1, got 1.5"),
        ({"selection_strength": -1}, "selection_strength must be a number from 0 to 10"),
        ({"hidden_confounding": 1}, "hidden_confounding must be a number between -1 and 1, got 1"),
        ({"RATING_FIELD": "stars"}, "no column 'stars' .RATING_FIELD. among user_id"),
        ({"ratings": "nothing"}, "there is no data set 'nothing'"),
        ({"benchmark_filename": ["a", "b", "c"]}, "there is no file|pre-split"),
    ],
    ids=str,
)
def test_what_cannot_be_simulated_is_refused(small, change, match):
    with pytest.raises(UsageError, match=match):
        load(**{**small, **change})


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("good", "stars.inter, line 8: .* holds 'good'"),
        ("", "'rating' is no number in 1 rows: stars.inter row 7"),
        ("nan", "'rating' is no number in 1 rows: stars.inter row 7"),
        ("inf", "stars.inter, line 8: .* holds 'inf', which is beyond"),
        ("4_0", "stars.inter, line 8: .* holds '4_0'"),
    ],
)
def test_a_rating_that_is_no_number_is_named(small, ratings, tmp_path, value, match):
    shutil.copytree(ratings / "stars", tmp_path / "data" / "stars")
    path = tmp_path / "data" / "stars" / "stars.inter"
    lines = path.read_text().splitlines()
    lines[7] = f"u0\ti0\t{value}\t3"
    lines[8:] = [line for line in lines[8:] if not line.startswith("u0\ti0\t")]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=match):
        load(**{**small, "data_path": str(tmp_path / "data")})


# ------------------------------------------------------------------ no model reads the truth


@pytest.mark.parametrize("model", ["ESMM", "ESCM2_IPS", "ESCM2_DR", "DeepFM"])
def test_the_truth_is_in_no_batch_and_no_feature(small, features_of, model):
    dataset = load(model, **small)
    for part in dataset.build():
        assert not set(TRUTH) & features_of(part)
        for batch in (part[torch.arange(3)], part[:2], part[0], part.inter_feat):
            assert set(batch) & {"click", "label"}
            assert not set(TRUTH) & set(batch)
        assert all(getattr(part.truth, name) is not None for name in TRUTH)


def trained(model, given):
    """Weights and result of a run."""
    outcome = run(model, "ml-100k-semi", config_dict=given)
    state = load_checkpoint(Path(outcome["run_dir"]) / "checkpoint.pth")
    return state["state_dict"], outcome["test_result"]


def overwrite_truth(stores):
    """Other true probabilities and potential conversions than those of a store, in its files."""
    (folder,) = (path.parent for path in Path(stores).rglob("schema.json"))
    schema = json.loads((folder / "schema.json").read_text())
    layout = schema["tables"]["inter"]["layout"]
    for name in TRUTH:
        path = folder / f"inter.{name}"
        old = np.fromfile(path, dtype=np.dtype(layout["columnar"][name]))
        (1 - old).astype(old.dtype).tofile(path)
        schema["files"][path.name] = file_digest(path)
    (folder / "schema.json").write_text(json.dumps(schema))
    return folder


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("ESMM", {}),
        ("ESCM2_IPS", {"counterfactual_weight": 1.0}),
        ("ESCM2_DR", {"imputation": "label"}),
        ("ESCM2_DR", {"imputation_schedule": "alternate"}),
        ("DeepFM", {"task": "cvr"}),
    ],
    ids=str,
)
def test_training_is_bit_identical_whatever_the_truth_says(small, model, own):
    given = {**small, **own}
    weights, result = trained(model, given)
    folder = overwrite_truth(given["store_dir"])
    weights_again, result_again = trained(model, given)
    assert overwrite_truth(given["store_dir"]) == folder  # the second run has used this very store
    assert weights.keys() == weights_again.keys()
    for name, value in weights.items():
        assert torch.equal(value, weights_again[name]), name
    of_truth = ("IEB", "PIP")
    seen = {name for name in result if not name.endswith("_ES") and name not in of_truth}
    assert {name: result[name] for name in seen} == {name: result_again[name] for name in seen}
    if model != "DeepFM":  # the evaluator does read it
        assert result["CVR_MAE_ES"] != result_again["CVR_MAE_ES"]
        assert result["CVR_AUC_ES"] + result_again["CVR_AUC_ES"] == pytest.approx(1)


# ------------------------------------------------------------------ the command line


def test_the_command_line_trains_and_knows_the_truth(program_here, tmp_path):
    done = program_here(
        "--model=ESCM2_IPS",
        "--dataset=ml-100k-semi",
        "--epochs=1",
        "--impression_sample=0.03",
        "--selection_strength=2",
    )
    assert done.returncode == 0, done.stderr
    assert "Test metrics on simulated data" in done.stdout
    values = dict(line.split(": ") for line in done.stdout.splitlines() if line.count(": ") == 1)
    assert 0 < float(values["CVR_AUC_ES"]) < 1
    assert 0 < float(values["CVR_MAE_ES"]) < 1
    assert -1 < float(values["IEB"]) < 1
    assert (tmp_path / "dataset" / "ml-100k-semi" / "store").is_dir()


def test_the_command_line_says_what_is_wrong(program_here):
    done = program_here("--model=ESMM", "--dataset=ml-100k-semi", "--hidden_confounding=2")
    assert done.returncode != 0
    assert "hidden_confounding must be a number between -1 and 1, got 2" in done.stderr
    assert "Traceback" not in done.stderr
