"""Published data sets as sources, on generated files and, where they are at hand, on real ones."""

import gzip
import os
from pathlib import Path

import numpy as np
import published
import pytest
import torch

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError

WRITERS = {
    "yahoo-r3": published.write_yahoo,
    "kuairec": published.write_kuairec,
    "kuairand-pure": published.write_kuairand,
    "criteo-uplift": published.write_criteo_uplift,
    "criteo-attribution": published.write_criteo_attribution,
    **{f"aliexpress-{name}": published.write_aliexpress for name in ("nl", "es", "fr", "us")},
}


def load(data_path, name, model="ESMM", **given):
    given = {"data_path": str(data_path), **given}
    return EntireSpaceDataset(Config(model, name, config_dict=given))


@pytest.fixture
def write(tmp_path):
    """Writes a data set's files; returns what the writer does."""
    return lambda name, **given: WRITERS[name](tmp_path / name / "raw", **given)


def tokens(part, name):
    return list(part.id2token(name, part[torch.arange(len(part))][name]))


def pairs_of(part):
    names = (np.array(tokens(part, name)).astype(int) for name in ("user_id", "item_id"))
    return np.stack(list(names), axis=1)


def change(file, find, instead, count=1):
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8", newline="") as stream:
        text = stream.read()
    assert find in text
    with opened(file, "wt", encoding="utf-8", newline="") as stream:
        stream.write(text.replace(find, instead, count))


def change_cell(file, line, column, cell, separator=","):
    """Put another text into a cell of a file; lines and columns count from 1."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8", newline="") as stream:
        lines = stream.read().splitlines()
    cells = lines[line - 1].split(separator)
    cells[column - 1] = cell
    lines[line - 1] = separator.join(cells)
    with opened(file, "wt", encoding="utf-8", newline="") as stream:
        stream.write("\n".join(lines) + "\n")


# --- of all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_missing_files_are_explained(tmp_path, name):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, name)
    message = str(caught.value)
    assert f"data set '{name}': there " in message
    assert str(tmp_path / name / "raw") in message
    for what in ("Put", "then the same command goes on by itself", "Meanwhile --dataset=ml-100k"):
        assert what in message


@pytest.mark.parametrize("name", [*list(WRITERS)[:5], "aliexpress-nl"])
def test_the_command_line_trains(program_here, metrics_of, tmp_path, name):
    WRITERS[name](tmp_path / "dataset" / name / "raw")
    done = program_here("--model=ESCM2_IPS", f"--dataset={name}", "--epochs=1")
    assert done.returncode == 0, done.stderr
    found = set(metrics_of(done.stdout))
    truth = {"yahoo-r3": "_ES", "kuairec": "_ES", "kuairand-pure": "_RI"}.get(name)
    for suffix in ("_ES", "_RI"):
        assert any(own.endswith(suffix) for own in found) == (suffix == truth)
    assert ("IEB" in found) == (truth == "_ES")
    assert ("CTCVR_AUC" in found) == (name != "kuairec")


@pytest.mark.parametrize("name", ["yahoo-r3", "kuairec", "kuairand-pure"])
def test_users_and_items_have_names(tmp_path, write, name):
    write(name)
    with pytest.raises(UsageError, match=f"data set '{name}' needs a USER_ID_FIELD, got None"):
        load(tmp_path, name, USER_ID_FIELD=None, ITEM_ID_FIELD=None)


# --- ratings ---------------------------------------------------------------------------------


def test_yahoos_drawn_songs_are_test(tmp_path, write):
    chosen, drawn = write("yahoo-r3")
    parts = load(tmp_path, "yahoo-r3").build()
    assert sum(map(len, parts)) == chosen.size
    assert {tuple(p) for p in pairs_of(parts[2])} == {tuple(p) for p in np.argwhere(drawn) + 1}
    for part, rating in zip(parts, (chosen, chosen, drawn), strict=True):
        user, item = (pairs_of(part) - 1).T
        assert np.array_equal(part.truth.click, chosen[user, item] > 0)
        converted = (chosen[user, item] > 0) & (rating[user, item] >= 4)
        assert np.array_equal(part.truth.conversion, converted)
    assert np.array_equal(parts[2].truth.potential_conversion, drawn[user, item] >= 4)
    assert parts[2].truth.clicks_known


def test_where_no_drawn_pair_was_chosen_clicks_on_them_mean_nothing(tmp_path, write):
    write("yahoo-r3")
    raw = tmp_path / "yahoo-r3" / "raw"
    train, test = (raw / f"ydata-ymusic-rating-study-v1_0-{p}.txt" for p in ("train", "test"))
    drawn = {tuple(line.split("\t")[:2]) for line in test.read_text().splitlines()}
    lines = train.read_text().splitlines(True)
    train.write_text("".join(x for x in lines if tuple(x.split("\t")[:2]) not in drawn))
    assert not load(tmp_path, "yahoo-r3").build()[2].truth.clicks_known


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (3, "6", r"train.txt line 4: 6 isn't from 1 to 5"),
        (3, "x", r"train.txt: .*line 4: .*x"),
        (2, "", r"train.txt line 4 has no song"),
        (1, "1\t1", r"train.txt: .*line 4: Expected 3 columns, got 4"),
    ],
)
def test_yahoos_damages(tmp_path, write, column, cell, message):
    write("yahoo-r3")
    file = tmp_path / "yahoo-r3" / "raw" / "ydata-ymusic-rating-study-v1_0-train.txt"
    change_cell(file, 4, column, cell, "\t")
    with pytest.raises(UsageError, match=message):
        load(tmp_path, "yahoo-r3")


def test_kuairecs_small_matrix_is_test_and_first_plays_count(tmp_path, write, caplog):
    big, small, tags = write("kuairec")
    caplog.set_level("INFO")
    dataset = load(tmp_path, "kuairec")
    assert "2 of these were chosen as well" in caplog.text
    assert "further ratings of the same pairs don't count" in caplog.text
    parts = dataset.build()
    user, item = pairs_of(parts[2]).T
    assert len(user) == (~np.isnan(small)).sum()
    assert np.array_equal(parts[2].truth.potential_conversion, small[user, item] > 2)
    assert not parts[2].truth.clicks_known
    for part in parts[:2]:
        user, item = pairs_of(part).T
        assert np.isnan(small[user, item]).all()
        assert np.array_equal(part.truth.click, ~np.isnan(big[user, item]))
        assert np.array_equal(part.truth.conversion, big[user, item] > 2)
    batch = parts[0][torch.arange(20)]
    for row, video in enumerate(pairs_of(parts[0])[:20, 1]):
        found = parts[0].id2token("feat", batch["feat"][row])
        assert [int(tag) for tag in found if tag != "[PAD]"] == tags[video]


@pytest.mark.parametrize(
    ("file", "column", "cell", "message"),
    [
        ("small_matrix", 8, "", r"small_matrix.csv line 5 has no watch_ratio"),
        ("big_matrix", 1, "me", r"big_matrix.csv: .*line 5: .*me"),
        ("user_features", 1, "", r"user_features.csv line 5 has no user_id"),
    ],
)
def test_kuairecs_damages(tmp_path, write, file, column, cell, message):
    write("kuairec")
    change_cell(tmp_path / "kuairec" / "raw" / f"{file}.csv", 5, column, cell)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, "kuairec")


# --- logs ------------------------------------------------------------------------------------


def test_kuairands_random_log_is_test(tmp_path, write, caplog, features_of):
    *logs, tags = write("kuairand-pure")
    dataset = load(tmp_path, "kuairand-pure")
    unclicked = sum(
        row["is_click"] == "0" and row["long_view"] == "1" for log in logs for row in log
    )
    assert f"{unclicked} impressions have a conversion without a click" in caplog.text
    parts = dataset.build()
    for part, log in zip(parts, logs, strict=True):
        assert len(part) == len(log)
        click = np.array([int(row["is_click"]) for row in log])
        long_view = np.array([int(row["long_view"]) for row in log])
        assert np.array_equal(part.truth.click, click)
        assert np.array_equal(part.truth.conversion, click * long_view)
        assert tokens(part, "tab") == [row["tab"] for row in log]
        assert tokens(part, "hour") == [str(int(row["hourmin"]) // 100) for row in log]
    assert [part.truth.random_impressions for part in parts] == [False, False, True]
    batch = parts[0][torch.arange(20)]
    for row in range(20):
        found = parts[0].id2token("tag", batch["tag"][row])
        assert [int(tag) for tag in found if tag != "[PAD]"] == tags[int(logs[0][row]["video_id"])]
    names = features_of(parts[0])
    assert not {name for name in names if name.startswith(("is_like", "play_time", "long_view"))}
    assert {"user_id", "item_id", "author_id", "onehot_feat16", "user_active_degree"} <= names


def test_kuairands_conversion_is_a_key(tmp_path, write):
    write("kuairand-pure")
    train = load(tmp_path, "kuairand-pure", CONVERSION_FIELD="is_like").build()[0]
    assert not train.truth.conversion.any()
    with pytest.raises(UsageError, match=r"pure.csv has no column 'is_bought'; it has user_id"):
        load(tmp_path, "kuairand-pure", CONVERSION_FIELD="is_bought")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (18, "0", r"log_random.*line 7: is_rand must be 1"),
        (6, "2", r"log_random.*'is_click' must hold 0 or 1.*line 7 has '2'"),
        (12, "", r"log_random.*'long_view' must hold 0 or 1.*line 7 none"),
        (2, "", r"log_random.*line 7 has no video_id"),
    ],
)
def test_kuairands_damages(tmp_path, write, column, cell, message):
    write("kuairand-pure")
    raw = tmp_path / "kuairand-pure" / "raw"
    change_cell(raw / "log_random_4_22_to_5_08_pure.csv", 7, column, cell)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, "kuairand-pure")


@pytest.mark.parametrize(
    "file", ["criteo-uplift-v2.1.csv.gz", "criteo-research-uplift-v2.1.csv.gz"]
)
def test_criteos_uplift(tmp_path, write, features_of, file):
    rows = write("criteo-uplift", file=file)
    dataset = load(tmp_path, "criteo-uplift")
    assert dataset.inter_feat["visit"].tolist() == [float(row["visit"]) for row in rows]
    assert dataset.inter_feat["conversion"].tolist() == [float(row["conversion"]) for row in rows]
    assert features_of(dataset) == {"treatment", *(f"f{number}" for number in range(12))}
    values = np.array([float(row["f3"]) for row in rows])
    scaled = (values - values.min()) / (values.max() - values.min())
    assert np.allclose(dataset.inter_feat["f3"][:, 0], scaled, atol=1e-6)
    assert dataset.store.schema["truth"] == "none"


def test_criteos_attribution_is_split_by_time(tmp_path, write, features_of):
    rows = write("criteo-attribution")
    dataset = load(tmp_path, "criteo-attribution")
    parts = dataset.build()
    assert features_of(dataset) - {"timestamp"} == {
        *("uid", "campaign", "time_since_last_click", *(f"cat{number}" for number in range(1, 10))),
    }
    first = 0
    for part in parts:
        own = rows[first : first + len(part)]
        first += len(part)
        assert tokens(part, "uid") == [row["uid"] for row in own]
        assert part.truth.click.tolist() == [int(row["click"]) for row in own]
        bought = [int(row["click"]) * int(row["conversion"]) for row in own]
        assert part.truth.conversion.tolist() == bought
    assert first == len(rows)
    assert dataset.uid_field == "uid"


@pytest.mark.parametrize("name", ["criteo-uplift", "criteo-attribution"])
def test_criteos_damages(tmp_path, write, name):
    separator = "," if name == "criteo-uplift" else "\t"
    for column, cell, message in (
        (14, "much", r"line 9: .*much") if separator == "," else (4, "much", r"line 9: .*much"),
        (15, "3", r"'visit' must hold 0 or 1.*line 9 ")
        if separator == ","
        else (8, "3", r"'click' must hold 0 or 1.*line 9 "),
        (1, f"1{separator}2", r"line 9: Expected \d+ columns"),
    ):
        write(name)
        (file,) = (tmp_path / name / "raw").iterdir()
        change_cell(file, 9, column, cell, separator)
        with pytest.raises(UsageError, match=message):
            load(tmp_path, name)
    write(name)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UsageError, match=rf"{file.name}: "):
        load(tmp_path, name)


def test_aliexpress_groups_by_search(tmp_path, write, features_of):
    rows = write("aliexpress-nl")
    dataset = load(tmp_path, "aliexpress-nl")
    train, valid, test = dataset.build()
    assert len(train) + len(valid) == len(rows[0])
    assert len(valid) == round(0.1 * len(rows[0]))
    assert features_of(train) == {
        *(f"categorical_{number}" for number in range(1, 17)),
        *(f"numerical_{number}" for number in range(1, 64)),
    }
    searches = [row["search_id"] for row in rows[1]]
    number = dict(zip(searches, test.truth.user.tolist(), strict=True))
    assert len(set(number.values())) == len(number)  # a number a search
    assert test.truth.user.tolist() == [number[search] for search in searches]
    assert "search_id" not in test[torch.arange(2)]
    assert test.truth.click.tolist() == [int(row["click"]) for row in rows[1]]
    known = {row["categorical_4"] for row in rows[0]}
    wanted = [row["categorical_4"] if row["categorical_4"] in known else "[UNKNOWN]"
              for row in rows[1]]  # fmt: skip
    assert tokens(test, "categorical_4") == wanted


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (1, "", r"test.csv line 3 has no search_id"),
        (81, "2", r"test.csv.*'click' must hold 0 or 1.*line 3 "),
        (20, "high", r"test.csv: .*line 3: .*high"),
    ],
)
def test_aliexpress_damages(tmp_path, write, column, cell, message):
    write("aliexpress-us")
    change_cell(tmp_path / "aliexpress-us" / "raw" / "test.csv", 3, column, cell)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, "aliexpress-us")


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("criteo-uplift", "criteo-uplift-v2.1.csv.gz", "f7"),
        ("criteo-attribution", "criteo_attribution_dataset.tsv.gz", "cat9"),
        ("aliexpress-es", "train.csv", "search_id"),
        ("kuairec", "big_matrix.csv", "watch_ratio"),
        ("kuairand-pure", "video_features_basic_pure.csv", "tag"),
    ],
)
def test_a_missing_column_is_named(tmp_path, write, name, file, column):
    write(name)
    change(tmp_path / name / "raw" / file, column, "other")
    with pytest.raises(UsageError, match=rf"{file} has no column '{column}'; it has"):
        load(tmp_path, name)


# Samples of the files themselves; RECBOLE_ESCM2_DATA names a folder that has them.
REAL = Path(os.environ.get("RECBOLE_ESCM2_DATA", "dataset"))


def real(name, file):
    if not (REAL / name / file).is_file():
        pytest.skip(f"{file} isn't in {REAL / name}: it is not passed on with the project")
    return (REAL / name / file).absolute()


def test_a_sample_of_the_real_aliexpress(tmp_path):
    folder = "aliexpress_torch_rechub_sample"
    raw = tmp_path / "aliexpress-nl" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        (raw / f"{part}.csv").symlink_to(real(folder, f"aliexpress_{part}_sample.csv"))
    parts = load(tmp_path, "aliexpress-nl").build()
    assert sum(map(len, parts)) == sum(len(f.read_text().splitlines()) - 1 for f in raw.iterdir())
    assert sum(part.truth.click.sum() for part in parts) > 0


def test_an_excerpt_of_the_real_kuairand(tmp_path, write):
    file = real("kuairand_1k_random_excerpt", "log_random_4_22_to_5_08_1k.head.csv")
    assert file.read_text().splitlines()[0] == published.KUAIRAND_LOG
    write("kuairand-pure")
    log = tmp_path / "kuairand-pure" / "raw" / "log_random_4_22_to_5_08_pure.csv"
    log.unlink()
    log.symlink_to(file)
    test = load(tmp_path, "kuairand-pure").build()[2]
    assert test.counts()["impressions"] == 20
    assert test.truth.click.sum() == 10
    assert test.truth.conversion.sum() == 5
