import os
import shutil

import pytest
import torch

from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.data.sources import atomic
from recbole_escm2.data.store import Store
from recbole_escm2.errors import UsageError


@pytest.fixture
def readings(monkeypatch):
    """How often atomic files were read."""
    count = []
    original = atomic.AtomicFiles.__init__

    def counted(self, config):
        count.append(config["dataset"])
        original(self, config)

    monkeypatch.setattr(atomic.AtomicFiles, "__init__", counted)
    return count


def columns(dataset):
    batch = dataset[torch.arange(len(dataset))]
    return {name: batch[name].tolist() for name in batch}


def test_files_are_read_once(toy, readings):
    first, again = toy.dataset(), toy.dataset()
    assert len(readings) == 1
    assert columns(first) == columns(again)
    assert toy.folder / "store" in first.store.folder.parents


@pytest.mark.parametrize(
    "settings", [{"unload_col": {"inter": ["row"]}}, {"alias_of_user_id": ["row"]}], ids=str
)
def test_another_setting_makes_another_store(toy, readings, settings):
    first = toy.dataset()
    other = toy.dataset(**settings)
    assert len(readings) == 2
    assert other.store.folder != first.store.folder
    toy.dataset()
    toy.dataset(**settings)
    assert len(readings) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "DeepFM", "task": "cvr"},
        {"impression_sample": 0.5},
        {"embedding_size": 4},
        {"seed": 7, "eval_args": {"split": {"RS": [6, 2, 2]}}},
        {"unused_col": {"inter": ["row"]}},
    ],
    ids=str,
)
def test_what_changes_nothing_in_the_store_uses_it(toy, readings, settings):
    toy.dataset()
    settings = dict(settings)
    toy.build(settings.pop("model", "ESMM"), **settings)
    assert len(readings) == 1


def test_a_changed_file_is_read_again(toy, readings):
    assert toy.dataset().counts()["impressions"] == 60
    toy.table = toy.table[:50]
    toy.write()
    assert toy.dataset().counts()["impressions"] == 50
    assert len(readings) == 2
    assert len(list((toy.folder / "store").iterdir())) == 1  # in the place of the old one


def test_a_damaged_store_is_made_again(toy, readings):
    folder = toy.dataset().store.folder
    (folder / "inter.rows").write_bytes(b"")
    before = columns(toy.dataset())
    assert len(readings) == 2
    assert before == columns(toy.dataset())


def test_a_store_goes_on_without_its_files(toy, readings, caplog):
    before = columns(toy.dataset())
    toy.file("inter").unlink()
    config = toy.config()
    with caplog.at_level("INFO"):
        assert columns(EntireSpaceDataset(config)) == before
    assert "source files are gone" in caplog.text
    shutil.rmtree(toy.folder / "store")
    with pytest.raises(UsageError, match=r"there is no file .*toy\.inter"):
        EntireSpaceDataset(config)


def test_store_dir(toy, tmp_path):
    folder = toy.dataset(store_dir=str(tmp_path / "elsewhere")).store.folder
    assert folder.parent == tmp_path / "elsewhere" / "toy"
    assert not (toy.folder / "store").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_data_that_cannot_be_written_beside_is_kept_in_the_cache(toy):
    toy.write()
    toy.folder.chmod(0o500)
    try:
        assert "recbole_escm2" in toy.dataset().store.folder.parts
    finally:
        toy.folder.chmod(0o700)


def test_notes_on_the_data_are_logged_each_time(toy, caplog):
    toy.table.loc[1, "conversion:float"] = "1"
    for _ in range(2):
        caplog.clear()
        toy.dataset()
        assert "1 impressions have a conversion without a click" in caplog.text


def test_no_pickle_is_in_a_store(toy):
    folder = toy.dataset().store.folder
    for file in folder.iterdir():
        assert not file.read_bytes().startswith((b"\x80\x04", b"\x80\x05", b"\x80\x02")), file
    assert Store(folder).schema["made_from"][0]["file"] == "toy.inter"


def test_an_unknown_source(toy):
    with pytest.raises(UsageError, match=r"no source 'atomc' \(did you mean atomic\?\)"):
        toy.dataset(source="atomc")
