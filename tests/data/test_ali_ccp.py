"""Ali-CCP's path from raw files to a trained model, on simulated files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from recbole.utils import FeatureSource

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.data.ali_ccp.files import find_raw
from recbole_escm2.data.ali_ccp.raw import FIELDS, TRUTH_COLUMNS, skeleton_name, truth_name
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
from recbole_escm2.data.ali_ccp.source import options, read_raw
from recbole_escm2.data.build import Rules, build
from recbole_escm2.data.store import Store
from recbole_escm2.errors import UsageError
from recbole_escm2.model.embedding import reserved_rows
from recbole_escm2.quick_start import run

SIMULATION = Simulation(
    rows=6000, seed=5, click_rate=0.3, conversion_rate=0.3, rows_per_user=20, behaviours=30
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A data_path with simulated raw files where the real ones would be."""
    folder = tmp_path_factory.mktemp("ali")
    simulate(SIMULATION, folder / "ali-ccp" / "raw")
    return folder


@pytest.fixture
def configure(simulated):
    def make(model="ESMM", **settings):
        defaults = {"data_path": str(simulated), "min_count": 3}
        return Config(model, "ali-ccp", config_dict={**defaults, **settings})

    return make


def test_the_users_command(program, tmp_path):
    raw = tmp_path / "dataset" / "ali-ccp" / "raw"
    simulate(SIMULATION, raw)
    done = program("--model=ESCM2_DR", "--dataset=ali-ccp", "--epochs=1", "--min_count=3")
    assert done.returncode == 0, done.stderr
    assert "converting the raw files" in done.stderr
    assert "Test metrics on simulated data" in done.stdout
    assert "CVR_AUC_ES: 0." in done.stdout
    (result,) = (tmp_path / "output").glob("*/result.json")
    assert "imulated" in json.loads(result.read_text())["simulated"]
    shutil.rmtree(raw)  # the store is enough
    again = program("--model=DeepFM", "--task=ctr", "--dataset=ali-ccp", "--epochs=1")
    assert again.returncode == 2  # of another min_count there is no store
    again = program("--model=ESMM", "--dataset=ali-ccp", "--epochs=1", "--min_count=3")
    assert again.returncode == 0, again.stderr
    assert "converting" not in again.stderr
    assert "source files are gone" in again.stderr


TINY = {"rows": 2000, "conversion_rate": 0.2, "behaviours": 20}


def stores(folder):
    return [path for path in (folder / "ali-ccp-sim" / "store").iterdir() if path.is_dir()]


def test_the_simulated_data_set_makes_itself(tmp_path):
    settings = {"data_path": str(tmp_path), "simulation": dict(TINY), "simulation_seed": 1}
    config = Config("ESMM", "ali-ccp-sim", config_dict=settings)
    first = EntireSpaceDataset(config)
    assert "imulated" in first.simulated
    file = first.store.folder / "schema.json"
    modified = file.stat().st_mtime_ns
    EntireSpaceDataset(config)
    assert file.stat().st_mtime_ns == modified
    # the text, several times the size, isn't kept
    assert [path.name for path in (tmp_path / "ali-ccp-sim").iterdir()] == ["store"]
    assert [*(tmp_path / "ali-ccp-sim" / "store").iterdir()] == [first.store.folder]

    # another simulation is another store: both stay
    settings["simulation"]["rows"] = 1000
    settings["selection_strength"] = 0.0
    config = Config("ESMM", "ali-ccp-sim", config_dict=settings)
    assert EntireSpaceDataset(config).counts()["impressions"] == 1000
    made = [json.loads((f / "schema.json").read_text())["simulated"] for f in stores(tmp_path)]
    assert {one["settings"]["selection"] for one in made} == {0.5, 0.0}
    assert len(first) == 2000
    assert file.stat().st_mtime_ns == modified


@pytest.mark.parametrize("chosen", ["all", "literature"])
def test_a_world_makes_the_store_that_its_text_would_make(tmp_path, chosen):
    """Column by column, by the digests that a store has of its own content."""
    settings = {"data_path": str(tmp_path), "simulation": TINY, "feature_fields": chosen}
    config = Config("ESMM", "ali-ccp-sim", config_dict=settings)
    drawn = EntireSpaceDataset(config).store.schema
    simulate(Simulation(**TINY), tmp_path / "text")
    text = read_raw(find_raw(tmp_path / "text"), options(config))
    build(*text, tmp_path / "converted", Rules(config["min_count"]))
    read = Store(tmp_path / "converted").schema
    assert len(drawn["tables"]["inter"]["digests"]) > 5
    for part in ("tables", "vocabularies", "fields", "sizes", "joins", "group"):
        assert drawn[part] == read[part]
    assert drawn["report"] == read["report"]
    assert drawn["simulated"] == {k: v for k, v in read["simulated"].items() if k != "bytes"}
    for column in TRUTH_COLUMNS:
        contents = [
            store / f"inter.{column}" for store in (*stores(tmp_path), tmp_path / "converted")
        ]
        assert contents[0].read_bytes() == contents[1].read_bytes()


def test_a_simulation_seed_is_a_world(tmp_path):
    def loaded(**seeds):
        settings = {"data_path": str(tmp_path), "simulation": TINY, **seeds}
        return EntireSpaceDataset(Config("ESMM", "ali-ccp-sim", config_dict=settings))

    usual, one, two = loaded(), loaded(simulation_seed=1), loaded(simulation_seed=2)
    assert usual.store.schema["simulated"]["settings"]["seed"] == 2022
    assert loaded(simulation_seed=1, seed=7).store.folder == one.store.folder
    assert len({d.store.folder for d in (usual, one, two)}) == 3
    for column in ("true_ctr", "true_cvr", "click"):  # all is drawn anew
        assert not np.array_equal(one.inter_feat.columnar(column), two.inter_feat.columnar(column))


def test_a_world_that_was_left_half_made_is_made(tmp_path, monkeypatch):
    settings = {"data_path": str(tmp_path), "simulation": TINY}
    config = Config("ESMM", "ali-ccp-sim", config_dict=settings)

    def broken(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("recbole_escm2.data.build.markdown", broken)
        with pytest.raises(KeyboardInterrupt):
            EntireSpaceDataset(config)
    assert not (tmp_path / "ali-ccp-sim" / "store").exists()
    assert len(EntireSpaceDataset(config)) == 2000


def test_two_processes_make_a_world_once(tmp_path):
    code = (
        "import logging, sys\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        "from recbole_escm2.config import Config\n"
        "from recbole_escm2.data.open_store import open_store\n"
        f"settings = {{'data_path': {str(tmp_path)!r}, 'simulation': {TINY!r}}}\n"
        "config = Config('ESMM', 'ali-ccp-sim', config_dict=settings)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print('folder', open_store(config).folder)\n"
    )
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for one in pair:
        assert one.stdout.readline() == "ready\n"
    for one in pair:
        one.stdin.write("go\n")
        one.stdin.flush()
    said = [one.communicate(timeout=300)[0] for one in pair]
    assert [one.returncode for one in pair] == [0, 0]
    assert sum("simulating 2,000 impressions" in text for text in said) == 1
    folders = {line for text in said for line in text.splitlines() if line.startswith("folder")}
    assert len(folders) == 1
    assert len([*(tmp_path / "ali-ccp-sim" / "store").iterdir()]) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": "many"}, "rows"),
        ({"colour": 3}, "simulation.*colour"),
        (
            {"rows": 9, "selection": 0.1},
            "has selection, which is the config key selection_strength",
        ),
        ({"rows": 9, "seed": 1}, "has seed, which is the config key simulation_seed"),
        (5, "simulation must be a mapping"),
    ],
)
def test_a_faulty_simulation_is_named(tmp_path, wrong, message):
    settings = {"data_path": str(tmp_path), "simulation": wrong}
    with pytest.raises(UsageError, match=message):
        EntireSpaceDataset(Config("ESMM", "ali-ccp-sim", config_dict=settings))


def test_splits_labels_and_truth(configure, simulated):
    train, valid, test = EntireSpaceDataset(configure()).build()
    raw = simulated / "ali-ccp" / "raw"
    lines = (raw / skeleton_name("test")).read_text().splitlines()
    click = np.array([int(line.split(",")[1]) for line in lines])
    purchase = np.array([int(line.split(",")[2]) for line in lines])
    assert np.array_equal(test.truth.click, click)
    assert np.array_equal(test.truth.conversion, purchase)
    truth = np.load(raw / truth_name("test"))
    found = (test.truth.true_ctr, test.truth.true_cvr, test.truth.potential_conversion)
    assert np.array_equal(np.stack(found, axis=1), truth)
    rows = len((raw / skeleton_name("train")).read_text().splitlines())
    left_out = train.store.schema["report"]["files"]
    assert len(train) + len(valid) + sum(f.get("left_out", 0) for f in left_out) >= rows
    assert 0.05 < len(valid) / rows < 0.15
    batch = train[torch.arange(5)]
    assert not {*TRUTH_COLUMNS, "common:row", "common_feature_index"} & {*batch}
    assert torch.equal(batch["click"], torch.from_numpy(train.truth.click[:5]).float())


def test_nothing_is_wrong_with_simulated_files(configure):
    notes = EntireSpaceDataset(configure()).store.schema["notes"]
    assert [text for level, text in notes if level == "warning"] == []


def test_the_truth_of_train_is_a_weight_for_the_oracle_alone(configure):
    for choice, shown in (("ctr_tower", set()), ("oracle", {"true_ctr"})):
        train, valid, _ = EntireSpaceDataset(configure("ESCM2_IPS", propensity=choice)).build()
        for part in (train, valid):
            assert len(part.truth.true_ctr) == len(part)
            assert part.truth.true_cvr.mean() == pytest.approx(0.3, abs=0.1)
        assert set(TRUTH_COLUMNS) & set(train[:4]) == shown
        assert not set(TRUTH_COLUMNS) & set(valid[:4])
    assert torch.equal(train[:9]["true_ctr"], torch.from_numpy(train.truth.true_ctr[:9]))


def test_rows_of_unknown_ids_have_no_penalty(configure):
    train, _, _ = EntireSpaceDataset(configure(feature_fields="all")).build()
    model = train.config.model_class(train.config, train)
    reserved = reserved_rows(model, train.field2id_token)
    table = model.token_embedding_table
    starts = torch.as_tensor(table.offsets)
    assert all(train.field2id_token[field][1] == "[OOV]" for field in train.field2id_token)
    rows = reserved[table.embedding].sort().values
    assert rows.tolist() == torch.cat([starts, starts + 1]).sort().values.tolist()
    for bag in model.token_seq_embedding_table:
        assert reserved[bag].tolist() == [0, 1]


def test_impressions_of_one_user_are_ranked_together(configure):
    test = EntireSpaceDataset(configure(min_count=1)).build()[2]
    features = test[torch.arange(len(test))]
    known = test.truth.user > 0
    assert known.any()
    ids = features["101"].numpy()
    pairs = {*zip(test.truth.user[known].tolist(), ids[known].tolist(), strict=True)}
    users = {user for user, _ in pairs}
    assert len(pairs) == len(users) > 20  # a user has one id
    seen = [number for _, number in pairs if number > 1]  # 1 is whoever isn't in train
    assert len(seen) == len(set(seen))  # and an id one user


@pytest.mark.parametrize(("chosen", "count"), [("literature", 18), ("all", 23)])
def test_fields(configure, chosen, count):
    dataset = EntireSpaceDataset(configure(feature_fields=chosen))
    sources = [s for s in FeatureSource if s not in (FeatureSource.KG, FeatureSource.NET)]
    fields = dataset.fields(source=sources)
    assert len(fields) == count
    assert set(fields) == {f.name for f in FIELDS if chosen == "all" or f.literature}
    assert dataset.field2source["206"] == FeatureSource.ITEM
    assert dataset.field2source["101"] == FeatureSource.USER_ID


def test_models_of_recbole_get_the_heaviest_values(configure):
    dataset = EntireSpaceDataset(
        configure("DeepFM", feature_fields="all", multi_value_top_k=3, weight_scaler="raw")
    )
    batch = dataset[torch.arange(40)]
    assert batch["109_14"].shape == (40, 3)
    ids, weights, at = batch.bags["109_14"].ids, batch.bags["109_14"].weights, 0
    for row, length in enumerate(batch.bags["109_14"].lengths[0].tolist()):
        own = weights[at : at + length].argsort(descending=True, stable=True)[:3]
        kept = batch["109_14"][row]
        assert kept[kept > 0].tolist() == ids[at : at + length][own].tolist()
        at += length


def test_weights_average_one_in_train(configure):
    train = EntireSpaceDataset(configure(feature_fields="all")).build()[0]
    batch = train[torch.arange(len(train))]
    for name in ("853", "109_14"):
        assert batch.bags[name].weights.mean().item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CONVERSION_FIELD": "conversion"}, "CONVERSION_FIELD of Ali-CCP is purchase"),
        ({"feature_fields": "some"}, "feature_fields must be literature, all or a list"),
        ({"feature_fields": ["101", "206", "999"]}, "999"),
        ({"min_count": 0}, "min_count"),
        ({"min_count": 1.5}, "min_count"),
        ({"min_count": True}, "min_count"),
        ({"validation_share": 1.5}, "validation_share"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"validation_share": -0.1}, "validation_share"),
        ({"validation_share": float("nan")}, "validation_share"),
        ({"validation_share": "a"}, "validation_share"),
        ({"on_bad_line": "ignore"}, "on_bad_line must be 'raise' or 'skip'"),
        ({"conversion_without_click": "keep"}, "conversion_without_click must be 'drop', "),
    ],
    ids=str,
)
def test_faulty_settings_are_named(configure, settings, message):
    with pytest.raises(UsageError, match=message):
        EntireSpaceDataset(configure(**settings))


@pytest.mark.parametrize("model", ["ESCM2_IPS", "DeepFM"])
def test_all_fields_train(simulated, tmp_path, model):
    settings = {
        "data_path": str(simulated),
        "min_count": 3,
        "feature_fields": "all",
        "output_dir": str(tmp_path),
        "epochs": 1,
    }
    if model == "DeepFM":
        settings |= {"multi_value_top_k": 5, "impression_sample": 0.2}
    outcome = run(model, "ali-ccp", config_dict=settings, saved=False)
    assert 0 < outcome["test_result"]["CTR_AUC"] < 1
    assert outcome["simulated"]


def test_both_data_sets_have_the_same_keys():
    from recbole_escm2.property_files import PROPERTIES

    real, simulated = (
        yaml.safe_load((PROPERTIES / "dataset" / f"{name}.yaml").read_text())
        for name in ("ali-ccp", "ali-ccp-sim")
    )
    assert {*real} - {"obtain"} == {*simulated} - {
        *("simulation", "simulation_seed", "selection_strength", "interaction_share")
    }
