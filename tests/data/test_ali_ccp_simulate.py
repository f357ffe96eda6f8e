"""Simulated raw files, read by a plain reader of their own."""

import dataclasses
import itertools
import json
import math
import os
import re
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_escm2.data.ali_ccp import draw, raw
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.data.ali_ccp.world import sample_latents
from recbole_escm2.errors import UsageError

CSV = [*map(raw.skeleton_name, raw.SPLITS), *map(raw.common_name, raw.SPLITS)]
FILES = {*CSV, *map(raw.truth_name, raw.SPLITS), raw.SIMULATION_FILE}
# many conversions, so that a few seconds' worth of rows can tell right from wrong
SETTINGS = Simulation(
    rows=100_000,
    conversion_rate=0.2,
    behaviours=100,
    items=4000,
    conversions_without_click=0.001,
)
FEATURE = re.compile(r"([0-9_]+)\x02([0-9]{1,8})\x03([0-9]\.[0-9]{1,5})")


def features_of(count, text):
    features = [FEATURE.fullmatch(feature).groups() for feature in text.split("\x01")]
    assert len(features) == int(count) > 0
    assert len({feature[:2] for feature in features}) == len(features)
    return features


def read(folder, split):
    """A split as columns: ids, labels, keys, features, truth; and features by key."""
    commons = {}
    for line in (folder / raw.common_name(split)).read_bytes().decode("ascii").splitlines():
        key, count, text = line.split(",")
        assert key not in commons
        commons[key] = features_of(count, text)
    lines = (folder / raw.skeleton_name(split)).read_bytes().decode("ascii")
    assert lines.endswith("\n")
    rows = [line.split(",") for line in lines[:-1].split("\n")]
    return SimpleNamespace(
        sample_id=[row[0] for row in rows],
        click=np.array([{"0": 0, "1": 1}[row[1]] for row in rows]),
        purchase=np.array([{"0": 0, "1": 1}[row[2]] for row in rows]),
        key=[row[3] for row in rows],
        features=[features_of(count, text) for *_, count, text in rows],
        commons=commons,
        truth=np.load(folder / raw.truth_name(split)),
    )


def truth_of(folder):
    """True CTR, true CVR, potential conversion, click and purchase of all impressions."""
    labels = [
        [line.split(b",", 3)[1:3] for line in (folder / raw.skeleton_name(split)).open("rb")]
        for split in raw.SPLITS
    ]
    truth = np.concatenate([np.load(folder / raw.truth_name(split)) for split in raw.SPLITS])
    return np.column_stack([truth, np.concatenate(labels).astype(float)]).T.astype(float)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def splits(folder):
    return {split: read(folder, split) for split in raw.SPLITS}


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / raw.SIMULATION_FILE).read_text())


def test_the_draws_of_a_seed_stay_what_they_are(tmp_path):
    """Numbers on simulated data would change with them."""
    simulate(Simulation(rows=2000, seed=2022), tmp_path)
    lines = (tmp_path / raw.skeleton_name("train")).read_text().splitlines()
    fields = [line.split(",") for line in lines]
    clicked = [n for n, (_, click, *_) in enumerate(fields) if click == "1"]
    assert (len(lines), clicked[:6]) == (1000, [20, 51, 52, 59, 99, 123])
    items = [re.search("205\x02([0-9]+)", line).group(1) for line in lines[:4]]
    assert items == ["6025608", "6025812", "6025540", "6025428"]
    assert Simulation(rows=2).seed == 2022


def test_the_skeleton_is_in_the_format(splits, content):
    sizes = []
    for name, split in splits.items():
        assert split.sample_id == [str(n + 1) for n in range(SETTINGS.rows // 2)]
        assert set(split.key) == set(split.commons)
        for features in split.features:
            fields = Counter(field for field, _, _ in features)
            sizes.append(len(features))
            for field, values in fields.items():
                assert raw.FIELD_BY_NAME[field].origin in ("item", "cross")
                assert raw.FIELD_BY_NAME[field].multi or values == 1
            assert all(fields[field] == 1 for field in ("205", "206", "207", "301"))
        counts = content["splits"][name]
        assert counts["rows"] == len(split.click) == len(split.features)
        assert counts["clicks"] == split.click.sum()
        assert counts["conversions"] == (split.click & split.purchase).sum()
        assert counts["conversions_without_click"] == ((1 - split.click) & split.purchase).sum()
        assert counts["common_rows"] == len(split.commons)
        assert counts["potential_conversions"] == split.truth[:, 2].sum()
    assert 10 < np.mean(sizes) < 15  # 13.5 in the real data, where users have done more


def test_common_features_are_in_the_format(splits):
    for split in splits.values():
        behaviours, fields = [], Counter()
        for key, features in split.commons.items():
            assert re.fullmatch(r"[0-9a-f]{16}", key)
            found = Counter(field for field, _, _ in features)
            for field, values in found.items():
                assert raw.FIELD_BY_NAME[field].origin == "user"
                assert raw.FIELD_BY_NAME[field].multi or values == 1
            fields.update(found.keys())
            behaviours.append(sum(n for field, n in found.items() if field.endswith("_14")))
        assert SETTINGS.behaviours * 0.8 < np.mean(behaviours) < SETTINGS.behaviours * 1.2
        assert max(behaviours) > 3 * np.mean(behaviours)
        assert 0.9 < fields["101"] / len(split.commons) < 1
        assert fields["121"] == len(split.commons)
        # in an order of its own, and the skeleton user by user
        in_skeleton = list(dict.fromkeys(split.key))
        assert list(split.commons) != in_skeleton
        changes = sum(a != b for a, b in itertools.pairwise(split.key))
        assert changes == len(in_skeleton) - 1
        sizes = np.array(list(Counter(split.key).values()))
        assert sizes.mean() == pytest.approx(SETTINGS.rows_per_user, rel=0.01)
        assert sizes.max() > 5 * sizes.mean()


def all_features(splits):
    for split in splits.values():
        for lines in (split.features, split.commons.values()):
            for features in lines:
                yield from features


def test_ids_and_values(splits):
    logs = {f"{math.log(n):.5f}".rstrip("0") for n in range(2, 5000)}
    ids, values = {}, {}
    for field, number, value in all_features(splits):
        ids.setdefault(field, set()).add(int(number))
        values.setdefault(field, set()).add(value)
    assert set(ids) == set(raw.FIELD_BY_NAME)
    ranges = sorted((min(found), max(found)) for found in ids.values())
    assert ranges[0][0] > 10_000
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ranges))
    weighted = {"508", "509", "702", "853", "109_14", "110_14", "127_14", "150_14"}
    for field, found in values.items():
        assert found <= logs if field in weighted else found == {"1.0"}
        assert not field.endswith("_14") or {"0.69315", "2.3979"} <= found
    assert 90 <= len(ids["121"]) <= 98
    assert [len(ids[name]) for name in ("122", "124", "301")] == [14, 3, 4]
    items = Counter(
        number for split in splits.values() for f in split.features for field, number, _ in f
        if field == "205"
    ).most_common()  # fmt: skip
    assert sum(n for _, n in items[:40]) > 0.1 * SETTINGS.rows  # heavy-tailed ...
    assert sum(n == 1 for _, n in items) > 10  # ... and some are hardly seen


def test_what_an_item_is_depends_on_the_item(splits):
    facts = {}
    for split in splits.values():
        for features in split.features:
            by_field = {}
            for field, number, _ in features:
                by_field.setdefault(field, set()).add(number)
            (item,) = by_field["205"]
            fact = [by_field.get(field, set()) for field in ("206", "207", "216", "210")]
            assert facts.setdefault(item, fact) == fact


def test_cross_features_are_what_the_user_did(splits):
    """The id of 508 is at a fixed distance from the category's in 109_14, with its weight."""
    for cross, behaviour in (("508", "109_14"), ("853", "150_14")):
        for split in splits.values():
            distances = None
            for key, features in zip(split.key[:2000], split.features, strict=False):
                done = {(int(n), v) for field, n, v in split.commons[key] if field == behaviour}
                for field, number, value in features:
                    if field == cross:
                        fit = {int(number) - n for n, v in done if v == value}
                        distances = fit if distances is None else distances & fit
            assert len(distances) == 1


def z_score(events, probabilities):
    return (events - probabilities).sum() / np.sqrt((probabilities * (1 - probabilities)).sum())


def test_labels_follow_the_truth(folder):
    ctr, cvr, potential, click, purchase = truth_of(folder)
    assert np.load(folder / raw.truth_name("train")).dtype == np.float32
    assert set(potential) == {0, 1}
    for part in (slice(None), ctr < np.median(ctr), ctr > np.quantile(ctr, 0.9), cvr > 0.2):
        assert abs(z_score(click[part], ctr[part])) < 4
        assert abs(z_score(potential[part], cvr[part])) < 4
        # independent given the features
        residual = ((click - ctr) * (potential - cvr))[part]
        assert abs(residual.sum() / np.sqrt((residual**2).sum())) < 4
    clicked = click == 1
    np.testing.assert_array_equal(purchase[clicked], potential[clicked])
    assert (potential[~clicked] >= purchase[~clicked]).all()
    expected = SETTINGS.conversions_without_click * SETTINGS.rows
    assert abs(purchase[~clicked].sum() - expected) < 4 * math.sqrt(expected)


def test_rates_are_those_asked_for(folder):
    ctr, cvr, _, click, purchase = truth_of(folder)
    assert ctr.mean() == pytest.approx(SETTINGS.click_rate, rel=1e-4)
    assert ctr @ cvr / ctr.sum() == pytest.approx(SETTINGS.conversion_rate, rel=1e-4)
    for events, rate in (
        (click, SETTINGS.click_rate),
        (purchase[click == 1], SETTINGS.conversion_rate),
    ):
        assert abs(events.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / len(events))


def test_oracle_aucs_are_sane(folder):
    from sklearn.metrics import roc_auc_score

    ctr, cvr, potential, click, _ = truth_of(folder)
    assert 0.75 < roc_auc_score(click, ctr) < 0.85
    assert 0.7 < roc_auc_score(potential, cvr) < 0.85


def test_the_position_concerns_clicks_only(splits):
    split = splits["train"]
    position = [n for features in split.features for field, n, _ in features if field == "301"]
    ctr, cvr = (
        np.array([column[np.array(position) == p].mean() for p in sorted(set(position))])
        for column in split.truth.T[:2]
    )
    assert max(ctr) > 1.5 * min(ctr)
    assert max(cvr) < 1.1 * min(cvr)


@pytest.mark.parametrize(("selection", "low", "high"), [(0, 0.93, 1.07), (0.5, 1.3, 2.5)])
def test_selection(selection, low, high, tmp_path):
    settings = Simulation(40_000, selection=selection, behaviours=20)
    simulate(settings, tmp_path)
    ctr, cvr, _, click, _ = truth_of(tmp_path)
    assert low < ctr @ cvr / ctr.sum() / cvr.mean() < high
    assert low - 0.1 < cvr[click == 1].mean() / cvr.mean() < high + 0.1


@pytest.fixture(scope="module")
def interacting():
    """A world with interactions, and the latents of its impressions: as they are, sums of effects
    alone, interactions alone."""
    draws = draw.Draws(Simulation(20_000, interaction_share=0.3, behaviours=0))
    world = draws.world
    alone = [world._replace(interaction=np.tile(only, (2, 1))) for only in ([1.0, 0.0], [0, 1.0])]
    latents = [draw._sampled(w, draws._first, sample_latents)[:, :2] for w in (world, *alone)]
    return draws, *latents


def test_interactions_make_their_share_of_the_variance(interacting):
    draws, whole, effects, both = interacting
    of_effects, of_both = draws.world.interaction.T
    np.testing.assert_allclose(whole, of_effects * effects + of_both * both)
    parts = (of_both * both).var(axis=0), (of_effects * effects).var(axis=0)
    np.testing.assert_allclose(parts[0] / sum(parts), 0.3)
    np.testing.assert_allclose(whole.var(axis=0), sum(parts), rtol=0.1)


def test_interactions_are_no_sum_of_effects(interacting):
    """The mean over what a person is shown tells little of them, but much of the sums."""
    draws, _, effects, both = interacting
    sizes = np.concatenate([np.diff(edges) for edges in draws._first])
    person = np.repeat(np.arange(len(sizes)), sizes)

    def explained(values):
        means = np.bincount(person, values) / sizes
        within = ((values - means[person]) ** 2).sum() / (sizes - 1).sum()
        return 1 - within / values.var()

    for side in range(2):
        assert explained(effects[:, side]) > 0.2
        assert explained(both[:, side]) < 0.1


def test_without_interactions_nothing_is_known_of_them(tmp_path):
    """A world's files and its store are what they were before there were any."""
    assert "interaction_share" not in simulate(Simulation(500), tmp_path)["settings"]
    some = simulate(Simulation(500, interaction_share=0.5), tmp_path)
    assert some["settings"]["interaction_share"] == 0.5


def test_a_plain_model_learns_from_it(splits):
    """One-hot logistic regression on ids of the literature's fields seen at least 12 times."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    def literature(split):
        for key, features in zip(split.key, split.features, strict=True):
            yield [
                (field, number)
                for field, number, _ in (*features, *split.commons[key])
                if field != "210" and not field.endswith("_14")
            ]

    seen = Counter(pair for pairs in literature(splits["train"]) for pair in pairs)
    column = {pair: n for n, pair in enumerate(p for p, times in seen.items() if times >= 12)}

    def one_hot(split):
        rows = [[column[pair] for pair in pairs if pair in column] for pairs in literature(split)]
        ends = np.cumsum([0, *map(len, rows)])
        entries = np.concatenate(rows)
        shape = (len(rows), len(column))
        return csr_matrix((np.ones(len(entries)), entries, ends), shape=shape)

    model = LogisticRegression(C=0.1, max_iter=60)
    model.fit(one_hot(splits["train"]), splits["train"].click)
    scores = model.decision_function(one_hot(splits["test"]))
    assert roc_auc_score(splits["test"].click, scores) > 0.65


SMALL = Simulation(rows=3000, behaviours=60)


def contents(folder, of=None):
    """The files by name; all, or those of some names."""
    paths = [path for path in folder.iterdir() if of is None or path.name in of]
    return {path.name: path.read_bytes() for path in paths}


def test_the_seed_decides_every_byte(tmp_path, monkeypatch):
    simulate(SMALL, tmp_path / "a")
    first = contents(tmp_path / "a")
    assert set(first) == FILES
    monkeypatch.setattr(draw, "_FEATURES_AT_ONCE", 1)  # arrays that hold a line or a few
    simulate(SMALL, tmp_path / "b")
    assert contents(tmp_path / "b") == first
    simulate(dataclasses.replace(SMALL, seed=7), tmp_path / "b")
    other = contents(tmp_path / "b")
    assert all(other[name] != first[name] for name in FILES)


def test_rows_can_double_while_users_stay(tmp_path):
    once = dataclasses.replace(SMALL, users=50, items=300)
    twice = dataclasses.replace(once, rows=6000, rows_per_user=2 * SMALL.rows_per_user)
    counts = [simulate(s, tmp_path / str(s.rows)) for s in (once, twice)]
    for split in raw.SPLITS:
        common = [(tmp_path / str(rows) / raw.common_name(split)) for rows in (3000, 6000)]
        assert common[0].read_bytes() == common[1].read_bytes()
        assert [c["splits"][split]["rows"] for c in counts] == [1500, 3000]


@pytest.mark.parametrize(
    "settings",
    [
        Simulation(2),
        Simulation(3, rows_per_user=1, behaviours=0, users=1, items=100, test_share=0.99),
        Simulation(200, click_rate=0.9, conversion_rate=0.9, selection=1, behaviours=3),
        Simulation(100, seed=2**63 - 1, users=10**7, items=10**7, behaviours=5),
    ],
)
def test_extreme_settings(settings, tmp_path):
    content = simulate(settings, tmp_path)
    assert content == json.loads((tmp_path / raw.SIMULATION_FILE).read_text())
    rows = 0
    for name in raw.SPLITS:
        split = read(tmp_path, name)
        rows += len(split.click)
        assert split.truth.shape == (len(split.click), 3)
        assert np.isfinite(split.truth).all()
        assert len(split.commons) == content["splits"][name]["common_rows"]
    assert rows == settings.rows


def test_progress(tmp_path):
    seen = []
    content = simulate(SMALL, tmp_path, lambda *now: seen.append(now))
    done = {name: (lines, of) for name, lines, of in seen}
    assert set(done) == set(CSV)
    assert all(lines == of for lines, of in done.values())
    assert done[raw.skeleton_name("test")][1] == content["splits"]["test"]["rows"]


def in_a_child(action):
    """Run in a process of its own; returns the signal that has ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", CSV)
def test_killed_while_writing(name, tmp_path):
    """The earlier simulation is kept until the new one is whole."""
    simulate(dataclasses.replace(SMALL, seed=1), tmp_path)
    before = contents(tmp_path)

    def action():
        simulate(SMALL, tmp_path, lambda at, *_: kill_me() if at == name else None)

    assert in_a_child(action) == signal.SIGKILL
    assert contents(tmp_path, of=FILES) == before
    simulate(SMALL, tmp_path)
    assert set(contents(tmp_path)) == FILES


@pytest.mark.parametrize("renames", range(1, 9))
def test_killed_while_naming(renames, tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def replace_and_die(*paths):
        replace(*paths)
        calls.append(paths)
        if len(calls) == renames:
            kill_me()

    def action():
        monkeypatch.setattr(os, "replace", replace_and_die)
        simulate(SMALL, tmp_path)

    assert in_a_child(action) == signal.SIGKILL
    left = set(contents(tmp_path, of=FILES))
    assert (raw.SIMULATION_FILE in left) == (renames == 8)
    assert raw.SIMULATION_FILE not in left or left == FILES
    simulate(SMALL, tmp_path)
    assert set(contents(tmp_path)) == FILES


def test_stopped_by_hand_it_tidies_up(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, tmp_path, stop)
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", CSV)
def test_real_files_are_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("1,0,0,bacff91692951881,1,301\x029351665\x031.0\n")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"{name} isn't a file that a simulation has written"):
        simulate(SMALL, tmp_path)
    assert contents(tmp_path) == before


def test_real_files_over_simulated_ones_are_not_overwritten(tmp_path):
    simulate(SMALL, tmp_path)
    (tmp_path / CSV[0]).write_text("1,0,0,bacff91692951881,1,301\x029351665\x031.0\n")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"{CSV[0]} isn't a file that a simulation has written"):
        simulate(SMALL, tmp_path)
    assert contents(tmp_path) == before


def test_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    simulate(SMALL, tmp_path)
    simulate(SMALL, tmp_path)
    assert set(contents(tmp_path)) == {*FILES, "notes.txt"}


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: File exists|file.*Not a directory"):
        simulate(SMALL, tmp_path / "file")


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("rows", 1),
        ("rows", 1000.0),
        ("rows", True),
        ("seed", -1),
        ("seed", 2**63),
        ("click_rate", 0),
        ("click_rate", 1),
        ("click_rate", math.nan),
        ("conversion_rate", "0.1"),
        ("selection", -0.1),
        ("selection", 1.1),
        ("interaction_share", -0.1),
        ("interaction_share", 1.1),
        ("rows_per_user", 0.5),
        ("rows_per_user", math.inf),
        ("behaviours", -1),
        ("behaviours", 1.5),
        ("users", 0),
        ("items", 99),
        ("items", 10**8),
        ("test_share", 0),
        ("test_share", 1),
        ("conversions_without_click", -0.1),
    ],
)
def test_knobs_out_of_range(knob, value):
    with pytest.raises(UsageError, match=f"^{knob} must be"):
        Simulation(**{"rows": 1000, knob: value})


def test_too_many_conversions_without_click(tmp_path):
    with pytest.raises(UsageError, match=r"^conversions_without_click must be at most 0\.00"):
        simulate(dataclasses.replace(SMALL, conversions_without_click=0.1), tmp_path)
    assert not contents(tmp_path)
