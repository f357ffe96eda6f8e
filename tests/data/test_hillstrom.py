"""Hillstrom's file as a source, on generated files and, where it is at hand, on the real one."""

import os
from pathlib import Path

import hillstrom_file
import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError
from recbole_escm2.quick_start import run, show

FEATURES = (
    *("recency", "history_segment", "mens", "womens", "zip_code", "newbie", "channel", "segment"),
)


def load(data_path, model="ESMM", **given):
    given = {"data_path": str(data_path), **given}
    return EntireSpaceDataset(Config(model, "hillstrom", config_dict=given))


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "hillstrom" / "raw" / "hillstrom.csv"


@pytest.fixture
def rows(raw):
    rows = hillstrom_file.customers(300)
    hillstrom_file.write(raw, rows)
    return rows


def expected(rows, name):
    return [float(row[name]) for row in rows]


def test_each_customer_is_an_impression(tmp_path, rows):
    dataset = load(tmp_path)
    assert len(dataset) == 300
    assert dataset.inter_feat["visit"].tolist() == expected(rows, "visit")
    assert dataset.inter_feat["conversion"].tolist() == expected(rows, "conversion")
    for name in FEATURES:
        found = dataset.id2token(name, dataset.inter_feat[name])
        assert list(found) == [row[name] for row in rows], name
    history = torch.tensor(expected(rows, "history"))
    scaled = (history - history.min()) / (history.max() - history.min())
    assert torch.allclose(dataset.inter_feat["history"][:, 0], scaled, atol=1e-6)


def test_what_is_known_afterwards_is_no_feature(tmp_path, rows, features_of):
    train = load(tmp_path).build()[0]
    assert features_of(train) == {*FEATURES, "history"}
    assert set(train[:2]) == {*FEATURES, "history", "visit", "conversion", "label"}
    assert train.truth.user is None
    assert train.truth.potential_conversion is None
    assert train.store.schema["truth"] == "none"


@pytest.mark.parametrize("name", ["hillstrom.csv", "Kevin_Hillstrom_MineThatData_E-MailAnalytics_"
                                  "DataMiningChallenge_2008.03.20.csv"])  # fmt: skip
@pytest.mark.parametrize("campaign", ["segment", "treatment"])
def test_columns_count_by_their_names(tmp_path, raw, name, campaign):
    rows = hillstrom_file.customers(50)
    columns = hillstrom_file.COLUMNS[::-1]
    hillstrom_file.write(raw.with_name(name), rows, columns, {"segment": campaign})
    dataset = load(tmp_path)
    found = dataset.id2token("segment", dataset.inter_feat["segment"])
    assert list(found) == [row["segment"] for row in rows]
    assert dataset.inter_feat["visit"].tolist() == expected(rows, "visit")


def test_the_emailed_alone(tmp_path, rows):
    dataset = load(tmp_path, customers="emailed")
    emailed = [row for row in rows if row["segment"] != "No E-Mail"]
    assert 100 < len(dataset) == len(emailed) < 300
    assert dataset.inter_feat["visit"].tolist() == expected(emailed, "visit")
    assert load(tmp_path).store.folder != dataset.store.folder
    with pytest.raises(UsageError, match="customers must be 'all' or 'emailed', got 'some'"):
        load(tmp_path, customers="some")


@pytest.mark.parametrize("customers", ["all", "emailed"])
@pytest.mark.parametrize(("name", "value"), [("visit", "2"), ("conversion", ""), ("visit", "no")])
def test_a_faulty_label_names_its_line(tmp_path, raw, rows, customers, name, value):
    (*_, last) = (n for n, row in enumerate(rows) if row["segment"] != "No E-Mail")
    rows[last][name] = value
    hillstrom_file.write(raw, rows)
    with pytest.raises(UsageError, match=rf"hillstrom.csv: column '{name}' .* line {last + 2} "):
        load(tmp_path, customers=customers)


def test_a_purchase_without_a_visit_is_left_out_and_named(tmp_path, raw, rows, caplog):
    (first, *_) = (n for n, row in enumerate(rows) if row["visit"] == "0")
    rows[first]["conversion"] = "1"
    hillstrom_file.write(raw, rows)
    assert len(load(tmp_path)) == 299
    assert f"1 impressions have a conversion without a click: {raw} line {first + 2}" in caplog.text


@pytest.mark.parametrize("name", ["recency", "history", "segment", "visit"])
def test_a_missing_column_is_named(tmp_path, raw, name):
    columns = [own for own in hillstrom_file.COLUMNS if own != name]
    hillstrom_file.write(raw, hillstrom_file.customers(9), columns)
    with pytest.raises(UsageError, match=rf"hillstrom.csv has no column '{name}'; it has"):
        load(tmp_path)


def test_a_malformed_line_is_named(tmp_path, raw, rows):
    raw.write_text(raw.read_text() + "1,2\n")
    with pytest.raises(UsageError, match=r"hillstrom.csv: .*line 302: Expected 12 columns"):
        load(tmp_path)
    hillstrom_file.write(raw, [*rows, {**rows[0], "history": "much"}])
    with pytest.raises(UsageError, match=r"hillstrom.csv: .*line 302: .*double.*much"):
        load(tmp_path)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(UsageError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert f"there is no file {tmp_path / 'hillstrom' / 'raw' / 'hillstrom.csv'}" in message
    for what in ("blog.minethatdata.com", "licence", "--dataset=ml-100k needs no download"):
        assert what in message


def test_the_command_line_trains(program_here, metrics_of, tmp_path):
    raw = tmp_path / "dataset" / "hillstrom" / "raw" / "hillstrom.csv"
    hillstrom_file.write(raw, hillstrom_file.customers(2000))
    done = program_here("--model=ESCM2_DR", "--dataset=hillstrom", "--epochs=1")
    assert done.returncode == 0, done.stderr
    found = metrics_of(done.stdout)
    assert {"CTR_AUC", "CVR_AUC", "CTCVR_AUC"} <= set(found)
    assert not any("_ES" in name or name.endswith("GAUC") or name == "IEB" for name in found)


def test_metrics_that_it_has_no_truth_for_are_said_to_be_left_out(tmp_path, rows):
    settings = {
        **{"data_path": str(tmp_path), "output_dir": str(tmp_path / "out"), "epochs": 1},
        **{"metrics": ["CTR_AUC", "cvr_auc_es", "CTCVR_AUC_RI"], "show_progress": False},
    }
    outcome = run("ESMM", "hillstrom", config_dict=settings, saved=False)
    assert set(outcome["test_result"]) == {"CTR_AUC", "CTCVR_AUC"}  # the valid metric as well
    said = show(outcome).splitlines()
    assert "CVR_AUC_ES is left out: the data holds no potential conversions." in said
    assert "CTCVR_AUC_RI is left out: the data's impressions weren't drawn at random." in said


# The file itself isn't passed on; RECBOLE_ESCM2_DATA names a folder that has it.
REAL = Path(os.environ.get("RECBOLE_ESCM2_DATA", "dataset")) / "hillstrom"


def real_file():
    for folder in (REAL / "raw", REAL):
        if (folder / "hillstrom.csv").is_file():
            return folder / "hillstrom.csv"
    pytest.skip(f"Hillstrom's file isn't in {REAL}: it is not passed on with the project")


def test_the_real_file_has_its_published_counts(tmp_path, raw):
    raw.parent.mkdir(parents=True)
    raw.symlink_to(real_file().absolute())
    dataset = load(tmp_path)
    assert dataset.counts() == {"impressions": 64_000, "clicks": 9_394, "conversions": 578}
    sizes = {name: dataset.num(name) - 1 for name in FEATURES}
    assert sizes == {
        "recency": 12, "history_segment": 7, "mens": 2, "womens": 2, "zip_code": 3, "newbie": 2,
        "channel": 3, "segment": 3,
    }  # fmt: skip
    emailed = load(tmp_path, customers="emailed")
    assert emailed.counts() == {"impressions": 42_694, "clicks": 7_132, "conversions": 456}
