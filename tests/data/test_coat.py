"""Coat as a source, on generated files and, where they are at hand, on the real ones."""

import json
import os
from pathlib import Path

import numpy as np
import published
import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import run
from recbole_escm2.train.checkpoint import load_checkpoint

USERS, ITEMS = 30, 40


def load(data_path, model="ESMM", **given):
    return EntireSpaceDataset(
        Config(model, "coat", config_dict={"data_path": str(data_path), **given})
    )


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "coat" / "raw"


@pytest.fixture
def content(raw):
    return published.write_coat(raw)


def pairs_of(part):
    """User and item of each row, as the numbers that they are called by."""
    rows = part[torch.arange(len(part))]
    names = (part.id2token(name, rows[name]).astype(int) for name in ("user_id", "item_id"))
    return np.stack(list(names), axis=1)


def test_the_randomly_shown_pairs_are_test_alone(tmp_path, content):
    train, test = content[:2]
    parts = load(tmp_path).build()
    shown = {tuple(pair) for pair in np.argwhere(test)}
    found = [{tuple(pair) for pair in pairs_of(part)} for part in parts]
    assert found[2] == shown
    assert not (found[0] | found[1]) & shown
    assert found[0] | found[1] | found[2] == {(u, i) for u in range(USERS) for i in range(ITEMS)}
    assert sum(map(len, parts)) == USERS * ITEMS
    assert len(parts[1]) == round(0.1 * (USERS * ITEMS - len(shown)))
    assert (train[test > 0] > 0).any()  # some are chosen as well


@pytest.mark.parametrize("least", [3, 4])
def test_labels_and_truth(tmp_path, content, least):
    chosen, shown = content[:2]
    parts = load(tmp_path, threshold={"rating": least}).build()
    for part, rating in zip(parts, (chosen, chosen, shown), strict=True):
        user, item = pairs_of(part).T
        clicked = chosen[user, item] > 0
        converted = rating[user, item] >= least
        assert np.array_equal(part.truth.click, clicked)
        assert np.array_equal(part.truth.conversion, clicked & converted)
        assert part.inter_feat["click"].tolist() == clicked.tolist()
    assert np.array_equal(parts[2].truth.potential_conversion, converted)
    assert parts[0].truth.potential_conversion is None
    assert parts[1].truth.potential_conversion is None
    assert load(tmp_path).store.schema["truth"] == "potential"


def test_the_protocol_of_the_literature_trains_on_all_chosen_pairs(tmp_path, content):
    chosen, shown = content[:2]
    train, valid, test = load(tmp_path, protocol="literature").build()
    assert len(train) + len(valid) == USERS * ITEMS
    assert len(test) == (shown > 0).sum()
    assert train.truth.click.sum() + valid.truth.click.sum() == (chosen > 0).sum()


def test_the_seed_draws_validation_and_not_test(tmp_path, content):
    one, same, other = (load(tmp_path, seed=seed).build() for seed in (1, 1, 2))
    assert [part.inter_feat.digest() for part in one] == [p.inter_feat.digest() for p in same]
    assert one[2].inter_feat.digest() == other[2].inter_feat.digest()
    assert one[1].inter_feat.digest() != other[1].inter_feat.digest()
    assert other[0].seed_draws == one[0].seed_draws


def test_features_are_what_the_one_hot_columns_are_named(tmp_path, content, features_of):
    _, _, user_rows, item_rows, _ = content
    train = load(tmp_path).build()[0]
    assert features_of(train) == {
        *("user_id", "item_id", "user_gender", "user_age", "user_location"),
        *("user_fashioninterest", "item_gender", "item_jackettype", "item_color"),
        "item_onfrontpage",
    }
    batch = train[torch.arange(50)]
    user, item = pairs_of(train)[:50].T
    for name in features_of(train) - {"user_id", "item_id"}:
        side, _, group = name.partition("_")
        number, hot, names = {
            "user": (user, user_rows, published.COAT_USER),
            "item": (item, item_rows, published.COAT_ITEM),
        }[side]
        wanted = [
            next(n for n, flag in zip(names, hot[row], strict=True) if flag and n.startswith(group))
            for row in number
        ]
        assert [f"{group}:{token}" for token in train.id2token(name, batch[name])] == wanted


def test_the_publishers_propensities_weigh_where_they_are_wanted(tmp_path, content, raw, caplog):
    train = load(tmp_path, "ESCM2_IPS", propensity="field").build()[0]
    user, item = pairs_of(train).T
    assert np.allclose(train.inter_feat["propensity"], content[4][user, item], atol=1e-6)
    (raw / "propensities.ascii").unlink()
    assert "propensity" not in load(tmp_path).build()[0].inter_feat
    with pytest.raises(UsageError, match="column 'propensity', which data set 'coat' doesn't have"):
        load(tmp_path, "ESCM2_IPS", propensity="field").build()


DAMAGES = {
    "train.ascii": [
        ("6", r"train.ascii line 3, column 5: '6' isn't a rating from 1 to 5"),
        ("x", r"train.ascii line 3: .*x"),
        ("", r"train.ascii line 3 has 39 numbers, and line 1 40"),
    ],
    "test.ascii": [("2.5", r"test.ascii line 3, column 5: '2.5' isn't a rating")],
    "propensities.ascii": [("0.0", r"propensities.ascii line 3, column 5: .* probability in \(0")],
    "user_item_features/user_features.ascii": [("2", "user_features.ascii line 3, column 5: '2'")],
}


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [(name, *damage) for name, damages in DAMAGES.items() for damage in damages],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, content, raw, name, cell, message):
    lines = (raw / name).read_text().splitlines()
    cells = lines[2].split()
    lines[2] = " ".join([*cells[:4], cell, *cells[5:]])
    (raw / name).write_text("\n".join(lines))
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


def test_files_that_dont_fit_each_other_are_refused(tmp_path, content, raw):
    test, features = raw / "test.ascii", raw / "user_item_features"
    whole = test.read_text()
    test.write_text("".join(whole.splitlines(True)[:-1]))
    with pytest.raises(UsageError, match=r"test.ascii has 29 lines of 40 numbers.* 30 of 40"):
        load(tmp_path)
    test.write_text("")
    with pytest.raises(UsageError, match=r"test.ascii is empty"):
        load(tmp_path)
    test.write_text(whole)
    hot = features / "item_features.ascii"
    lines = hot.read_text().splitlines()
    hot.write_text("\n".join(["1 1 1 0 1 0 0 1 0", *lines[1:]]))
    with pytest.raises(UsageError, match=r"item_features.ascii line 1: 2 columns of 'gender'"):
        load(tmp_path)
    (features / "item_features_map.txt").write_text("gender\n")
    with pytest.raises(UsageError, match=r"item_features_map.txt line 1: .*'field:value'"):
        load(tmp_path)


def test_missing_files_are_explained(tmp_path, content, raw):
    (raw / "test.ascii").unlink()
    (raw / "user_item_features" / "user_features_map.txt").unlink()
    with pytest.raises(UsageError) as caught:
        load(tmp_path)
    message = str(caught.value)
    for what in (
        *("there are no files", "test.ascii", "user_features_map.txt", "cornell.edu", "licence"),
        "--dataset=ml-100k-semi",
    ):
        assert what in message
    assert "train.ascii, " not in message.partition("Put")[0]


@pytest.mark.parametrize("threshold", [None, {"stars": 4}, {"rating": 4, "stars": 4}])
def test_the_conversion_is_a_rating(tmp_path, content, threshold):
    with pytest.raises(UsageError, match=r"threshold of .* must be {rating: a number}"):
        load(tmp_path, threshold=threshold)


def rewrite(file, change):
    """Change ratings of a file: ``change`` gets the matrix and returns another one."""
    matrix = np.array([line.split() for line in file.read_text().splitlines()]).astype(int)
    lines = (" ".join(map(str, row)) for row in change(matrix))
    file.write_text("\n".join(lines) + "\n")


#: What is fitted beside the weights: to validation after each epoch, or after the last.
FITTED = {
    **{"propensity_calibration": "platt", "propensity_floor": "slope"},
    **{"calibrate": "isotonic", "calibrate_weights": "ips"},
}


def is_same(one, other):
    """Whether all of two checkpoints or results is equal, to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def learned(checkpoint):
    """What a checkpoint holds, but for the digests of the data, which have the labels of test."""
    return {key: value for key, value in checkpoint.items() if key != "data"}


def formed(outcome):
    """By what groups are formed, and how many impressions each has."""
    keys = ("group", "about", "impressions")
    return [
        (made["by"], made["rule"], [[group[key] for key in keys] for group in made["groups"]])
        for made in outcome["groups"]
    ]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("ESCM2_DR", {"propensity": "ctr_tower"}),
        ("ESCM2_IPS", {"propensity": "field"}),
        ("ESCM2_IPS", {"propensity": "ctr_tower", **FITTED}),
        ("ESCM2_DR", {"propensity": "field", "final_fit": True}),
    ],
)
def test_labels_of_the_random_part_touch_nothing_that_is_learned(
    tmp_path, content, raw, model, changes
):
    """No weight, threshold, calibration or floor: neither what its pairs were rated, nor which of
    them users had chosen."""
    shown = content[1] > 0
    settings = {
        **{"data_path": str(tmp_path), "output_dir": str(tmp_path / "out"), "epochs": 2},
        **{"train_batch_size": 256, "show_progress": False, "embedding_size": 4},
        **{"mlp_hidden_size": [8], "by": ["item_clicks", "pctr:3", "user_gender"]},
        **changes,
    }

    def trained():
        outcome = run(model, "coat", config_dict=settings)
        folder = Path(outcome["run_dir"])
        trainings = json.loads((folder / "result.json").read_text())["trainings"]
        propensity = [[epoch.get("propensity") for epoch in one["epochs"]] for one in trainings]
        return outcome, load_checkpoint(folder / "checkpoint.pth"), propensity

    def assert_learned_as(before, after):
        (outcome, checkpoint, propensity), (other, again, of_other) = before, after
        assert is_same(learned(checkpoint), learned(again))
        assert propensity == of_other
        assert outcome["best_valid_result"] == other["best_valid_result"]
        assert outcome["best_epoch"] == other["best_epoch"]
        assert outcome["test_result"].threshold == other["test_result"].threshold
        assert formed(outcome) == formed(other)

    first = trained()
    assert bool(first[1]["calibration"]) == ("calibrate" in changes)
    # What would have been said of the pairs that nobody chose: potential outcomes alone.
    unchosen = shown & (content[0] == 0)
    rewrite(raw / "test.ascii", lambda rating: np.where(unchosen, 6 - rating, rating))
    potential = trained()
    assert_learned_as(first, potential)
    differing = {
        name
        for name, value in first[0]["test_result"].items()
        if value != potential[0]["test_result"][name]
    }
    assert "CVR_AUC_ES" in differing
    assert not differing & {"CTR_AUC", "CVR_AUC", "CTCVR_AUC"}
    # And the labels.
    rewrite(raw / "test.ascii", lambda rating: np.where(shown & ~unchosen, 6 - rating, rating))
    rewrite(raw / "train.ascii", lambda rating: np.where(shown, 5 * (rating == 0), rating))
    labels = trained()
    assert_learned_as(first, labels)
    assert labels[0]["test_result"]["CTR_AUC"] != first[0]["test_result"]["CTR_AUC"]
    rewrite(raw / "train.ascii", lambda rating: np.where(shown, rating, 5 * (rating == 0)))
    _, changed, _ = trained()  # of other pairs they do
    assert not is_same(first[1]["state_dict"], changed["state_dict"])


def test_the_command_line_trains(program_here, metrics_of, tmp_path):
    published.write_coat(tmp_path / "dataset" / "coat" / "raw")
    done = program_here("--model=ESCM2_DR", "--dataset=coat", "--epochs=2")
    assert done.returncode == 0, done.stderr
    found = metrics_of(done.stdout)
    wanted = {"CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CVR_AUC_ES", "CVR_LogLoss_ES", "IEB"}
    assert wanted <= set(found)
    assert not any(name.endswith("_RI") for name in found)


# The files themselves aren't passed on; RECBOLE_ESCM2_DATA names a folder that has them.
REAL = Path(os.environ.get("RECBOLE_ESCM2_DATA", "dataset")) / "coat"


def test_the_real_files_have_their_published_counts(tmp_path, raw):
    folder = next((f for f in (REAL / "raw", REAL) if (f / "train.ascii").is_file()), None)
    if folder is None:
        pytest.skip(f"Coat's files aren't in {REAL}: they are not passed on with the project")
    raw.parent.mkdir(parents=True)
    raw.symlink_to(folder.absolute())
    dataset = load(tmp_path)
    assert dataset.counts()["impressions"] == 290 * 300
    assert dataset.counts()["clicks"] == 6960
    assert {key: dataset.store.schema["report"][key] for key in ("chosen", "random", "both")} == {
        "chosen": 6960, "random": 4640, "both": 366,
    }  # fmt: skip
    train, valid, test = dataset.build()
    assert train.truth.click.sum() + valid.truth.click.sum() == 6960 - 366
    assert test.truth.click.sum() == 366
    assert round(test.truth.potential_conversion.mean(), 3) == 0.185
    whole = load(tmp_path, protocol="literature").build()
    conversions = sum((part.truth.click * part.truth.conversion).sum() for part in whole[:2])
    assert round(conversions / 6960, 3) == 0.274
