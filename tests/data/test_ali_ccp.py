"""Ali-CCP's path from raw files to a trained model, on simulated files."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from recbole.utils import FeatureSource

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.data.ali_ccp.raw import FIELDS, TRUTH_COLUMNS, skeleton_name, truth_name
from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate
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


def test_the_simulated_data_set_makes_itself(tmp_path):
    settings = {
        "data_path": str(tmp_path),
        "simulation": {"rows": 2000, "seed": 1, "conversion_rate": 0.2, "behaviours": 0},
    }
    config = Config("ESMM", "ali-ccp-sim", config_dict=settings)
    first = EntireSpaceDataset(config)
    assert "imulated" in first.simulated
    raw = tmp_path / "ali-ccp-sim" / "raw"
    (file,) = raw.glob("*/simulation.json")
    modified = file.stat().st_mtime_ns
    EntireSpaceDataset(config)
    assert file.stat().st_mtime_ns == modified

    # another simulation is another folder and another store: both stay
    settings["simulation"]["rows"] = 1000
    settings["selection_strength"] = 0.0
    config = Config("ESMM", "ali-ccp-sim", config_dict=settings)
    assert EntireSpaceDataset(config).counts()["impressions"] == 1000
    strengths = {json.loads(f.read_text())["settings"]["selection"] for f in raw.glob("*/*.json")}
    assert strengths == {0.5, 0.0}
    assert len(list((tmp_path / "ali-ccp-sim" / "store").iterdir())) == 2
    assert len(first) == 2000
    assert file.stat().st_mtime_ns == modified


@pytest.mark.parametrize("wrong", [{"rows": "many"}, {"colour": 3}, {"selection": 0.1}, 5])
def test_a_faulty_simulation_is_named(tmp_path, wrong):
    settings = {"data_path": str(tmp_path), "simulation": wrong}
    with pytest.raises(UsageError, match=r"simulation|rows"):
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
    assert not {*TRUTH_COLUMNS, "common"} & {*batch}
    assert torch.equal(batch["click"], torch.from_numpy(train.truth.click[:5]).float())


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


def test_impressions_of_one_common_row_are_ranked_together(configure):
    test = EntireSpaceDataset(configure()).build()[2]
    features = test[torch.arange(len(test))]
    for group in np.unique(test.truth.user)[:20]:
        own = np.flatnonzero(test.truth.user == group)
        assert len(features["125"][own].unique()) == 1


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
        ({"validation_share": 1.5}, "validation_share"),
        ({"on_bad_line": "ignore"}, "on_bad_line"),
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
    from recbole_escm2.config import PROPERTIES

    real, simulated = (
        yaml.safe_load((PROPERTIES / "dataset" / f"{name}.yaml").read_text())
        for name in ("ali-ccp", "ali-ccp-sim")
    )
    assert {*real} - {"obtain"} == {*simulated} - {"simulation", "selection_strength"}
