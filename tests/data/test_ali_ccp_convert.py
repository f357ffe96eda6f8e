"""The converter against an independent reading of the same text, line by line and with dicts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import random
import re
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_escm2.data import build as build_module
from recbole_escm2.data.ali_ccp import chunks as chunks_module
from recbole_escm2.data.ali_ccp import files as files_module
from recbole_escm2.data.ali_ccp import lines as lines_module
from recbole_escm2.data.ali_ccp import raw
from recbole_escm2.data.ali_ccp.chunks import Options
from recbole_escm2.data.ali_ccp.files import find_raw
from recbole_escm2.data.ali_ccp.sample_ids import SampleIds
from recbole_escm2.data.ali_ccp.source import read_raw
from recbole_escm2.data.build import Rules, build
from recbole_escm2.data.store import NoStoreError, Store
from recbole_escm2.errors import UsageError

ALL = tuple(raw.FIELD_BY_NAME)
ROW = "common:row"  # the column of an impression that says its row of the common features
USER = [f for f in raw.FIELDS if f.origin == "user"]
OTHER = [f for f in raw.FIELDS if f.origin != "user"]
NAMES = {
    (kind, split): name(split)
    for split in raw.SPLITS
    for kind, name in (("common", raw.common_name), ("skeleton", raw.skeleton_name))
}


# --------------------------------------------------------------------------- writing raw text


def feature_list(features):
    return "\x01".join(f"{f}\x02{i}\x03{v}" for f, i, v in features)


def common_line(key, features):
    return f"{key},{len(features)},{feature_list(features)}"


def skeleton_line(sample, click, purchase, key, features):
    return f"{sample},{click},{purchase},{key},{len(features)},{feature_list(features)}"


VALUES = ("1.0", "1", "0.69315", "2.70805", "-3.5e-2", "+.5", "7.", "1e3", "0.1234567890123456789")


def some_features(rng, fields, ids=30):
    features = []
    for field in fields:
        if rng.random() < 0.85:
            for _ in range(rng.randint(1, 6) if field.multi else 1):
                features.append((field.name, rng.randrange(ids), rng.choice(VALUES)))
    if rng.random() < 0.5:
        rng.shuffle(features)
    return features


def some_text(rows=400, users=25, seed=0):
    """Lines of the four files, by (kind, split)."""
    rng = random.Random(seed)
    lines = {place: [] for place in NAMES}
    for split in raw.SPLITS:
        keys = [f"{rng.getrandbits(rng.choice((4, 60, 64, 128))):x}" for _ in range(users)]
        keys = list(dict.fromkeys(keys))
        for key in keys:
            lines["common", split].append(common_line(key, some_features(rng, USER)))
        for row in range(rows):
            click = int(rng.random() < 0.3)
            purchase = int(rng.random() < 0.2) if click else int(rng.random() < 0.02)
            key = rng.choice(keys) if rng.random() < 0.997 else "beef0"
            features = some_features(rng, OTHER)
            lines["skeleton", split].append(
                skeleton_line(row * 7 + 1, click, purchase, key, features)
            )
    return lines


def write(folder, lines, end="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in NAMES.items():
        (folder / name).write_bytes("".join(line + end for line in lines[place]).encode())
    return folder


# --------------------------------------------------------------------------- reading it plainly


class Chosen(NamedTuple):
    """What is made of the files: the source's options, and the builder's rule."""

    feature_fields: tuple[str, ...] = ALL
    min_count: int = 2
    validation_share: float = 0.1
    on_bad_line: str = "raise"
    conversion_without_click: str = "drop"


MASK = 2**64 - 1


def sample_hash(sample):
    z = ((sample ^ 0xA11CC95EED2018) + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def read_features(text, fields):
    """Id of each single-valued field, ids and weights of each bag."""
    wanted = {field.name: field for field in fields}
    single, bags = {}, {field.name: [] for field in fields if field.is_bag}
    for feature in text.split("\x01") if text else []:
        name, rest = feature.split("\x02")
        number, value = rest.split("\x03")
        if name in wanted:
            if wanted[name].is_bag:
                bags[name].append((int(number), np.float32(float(value))))
            else:
                single.setdefault(name, int(number))
    return single, bags


def read_plainly(lines, options):
    """What the store must hold, with feature ids in place of vocabulary ids."""
    fields = [raw.FIELD_BY_NAME[name] for name in options.feature_fields]
    user = [f for f in fields if f.origin == "user"]
    other = [f for f in fields if f.origin != "user"]
    common, key_row = [({}, {f.name: [] for f in user if f.is_bag})], {}
    parts = {"train": [], "valid": [], "test": []}
    for split in raw.SPLITS:
        for line in lines["common", split]:
            key, _, text = line.split(",")
            if (split, key.lower()) not in key_row:
                key_row[split, key.lower()] = len(common)
                common.append(read_features(text, user))
        for line in lines["skeleton", split]:
            sample, click, purchase, key, _, text = line.split(",")
            click, purchase = int(click), int(purchase)
            if purchase > click:
                if options.conversion_without_click == "drop":
                    continue
                purchase = 0
            part = split
            if split == "train" and sample_hash(int(sample)) < options.validation_share * 2**64:
                part = "valid"
            row = key_row.get((split, key.lower()), 0)
            parts[part].append((click, purchase, row, *read_features(text, other)))
    counts = {field.name: Counter() for field in fields}
    for _, _, row, single, bags in parts["train"]:
        for values, lists in ((single, bags), common[row]):
            for name, number in values.items():
                counts[name][number] += 1
            for name, pairs in lists.items():
                counts[name].update({number for number, _ in pairs})
    vocabularies = {}
    for name, counter in counts.items():
        kept = [i for i, n in counter.items() if n >= options.min_count]
        vocabularies[name] = sorted(kept, key=lambda i, c=counter: (-c[i], i))
    return parts, common, vocabularies


def check(store, lines, options):
    """Every value of a store."""
    parts, common, vocabularies = read_plainly(lines, options)
    entries = {entry["name"]: entry for entry in store.schema["fields"]}
    assert list(entries) == list(options.feature_fields)
    assert store.schema["sizes"] == [len(rows) for rows in parts.values()]
    ids = {}
    for name, entry in entries.items():
        tokens = list(store.vocabularies[entry["vocabulary"]])
        assert tokens == ["[PAD]", "[OOV]", *map(str, vocabularies[name])]
        ids[name] = {number: place + 2 for place, number in enumerate(vocabularies[name])}
    inter = [row for rows in parts.values() for row in rows]
    table = store.tables["inter"]
    for name, values in zip(("click", "purchase", ROW), zip(*inter, strict=True), strict=False):
        assert table.column(name, slice(None)).tolist() == list(values)
    columns, _ = table.gather(slice(0, len(inter)))
    for place, name in enumerate(("click", "purchase", ROW)):
        assert columns[name].tolist() == [row[place] for row in inter]
    check_table(table, [row[3:] for row in inter], ids)
    check_table(store.tables["common"], common, ids)
    check_scales(entries, parts, common)


def check_table(table, rows, ids):
    columns, bags = table.gather(torch.arange(len(rows)))
    assert len(table) == len(rows)
    own = {raw.FIELD_BY_NAME[name] for name in ids}
    is_user = table.name == "common"
    names = [f.name for f in raw.FIELDS if f in own and (f.origin == "user") == is_user]
    assert set(table.fields) - {"click", "purchase", ROW} == set(names)
    for name in names:
        if raw.FIELD_BY_NAME[name].is_bag:
            number = bags.fields.index(name)
            ends = bags.lengths.sum(dim=1).cumsum(0).tolist()
            own_values = slice(ends[number] - int(bags.lengths[number].sum()), ends[number])
            expected = [lists[name] for _, lists in rows]
            assert bags.lengths[number].tolist() == [len(pairs) for pairs in expected]
            flat = [pair for pairs in expected for pair in pairs]
            assert bags.ids[own_values].tolist() == [ids[name].get(i, 1) for i, _ in flat]
            weights = np.array([w for _, w in flat], np.float32)
            assert bags.weights[own_values].numpy().tobytes() == weights.tobytes()
        else:
            assert columns[name].tolist() == [
                ids[name].get(single[name], 1) if name in single else 0 for single, _ in rows
            ]


def check_scales(entries, parts, common):
    for name, entry in entries.items():
        field = raw.FIELD_BY_NAME[name]
        if not field.is_bag:
            assert (entry["type"], entry.get("scale"), entry["length"]) == ("token", None, 1)
            continue
        place = [common[row[2]][1] if field.origin == "user" else row[4] for row in parts["train"]]
        weights = [float(w) for lists in place for _, w in lists[name]]
        assert entry["type"] == "token_seq"
        if weights:
            precision = 1e-9 * np.abs(weights).mean()
            is_mean = abs(entry["scale"] - np.mean(weights)) <= precision
            assert is_mean or (entry["scale"] == 1 and abs(np.mean(weights)) <= precision)
        everywhere = (
            common if field.origin == "user" else [r[3:] for p in parts.values() for r in p]
        )
        assert entry["length"] == max(1, *(len(lists[name]) for _, lists in everywhere))


def convert(folder, target, chosen, about=None, progress=False):
    """The report of a conversion."""
    keys = set(Chosen._fields) - {"min_count"}
    options = Options(**{key: value for key, value in chosen._asdict().items() if key in keys})
    rules = Rules(chosen.min_count, chosen.conversion_without_click, progress)
    return build(*read_raw(find_raw(folder), options), target, rules, about)


def converted(folder, target, schema=None, **options):
    report = convert(folder, target, Chosen(**options), schema)
    return Store(target), report


def said(store, level):
    return [text for own, text in store.schema["notes"] if own == level]


def digest(folder):
    """Of everything in a store but the seconds and the names of the source files."""
    schema = json.loads((folder / "schema.json").read_text())
    for what in ("report", "notes"):
        schema.pop(what)
    content = hashlib.sha256(json.dumps(schema).encode())
    for path in sorted(folder.iterdir()):
        if path.name not in ("schema.json", "report.md"):
            content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()


# --------------------------------------------------------------------------- tests


@pytest.fixture
def few_values(monkeypatch):
    """A field without a value is refused; the few lines of a test don't have all of them."""
    monkeypatch.setattr(build_module, "empty_field", lambda name, part, leave_out: name)


@pytest.mark.parametrize("unclicked", ["drop", "unconvert"])
def test_every_value_is_that_of_the_text(tmp_path, unclicked):
    lines = some_text()
    options = {"validation_share": 0.25, "conversion_without_click": unclicked, "min_count": 5}
    store, report = converted(write(tmp_path / "raw", lines), tmp_path / "store", **options)
    check(store, lines, Chosen(ALL, **options))
    assert store.schema["report"] == json.loads(json.dumps(report))
    assert store.schema["group"] == "group-101"
    assert store.schema["joins"] == [{"table": "common", "key": ROW}]
    sources_of = {
        entry["name"]: (entry["source"], entry["table"]) for entry in store.schema["fields"]
    }
    assert sources_of["101"] == ("user_id", "common")
    assert sources_of["205"] == ("item_id", "inter")
    assert sources_of["109_14"] == ("user", "common")
    assert sources_of["210"] == ("item", "inter")
    assert sources_of["853"] == ("inter", "inter")
    assert not list((tmp_path / "store").glob("temporary*"))
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_impressions_are_grouped_by_user_and_not_by_common_row(tmp_path):
    """A user has several common rows; some rows have no user; some keys have no row."""
    common = {"aa": 7, "bb": 8, "cc": 7, "dd": None, "ee": None}
    keys = ["aa", "bb", "cc", "dd", "ee", "0a", "0b", "aa"]
    rows = [
        common_line(k, [("121", 1, 1) if u is None else ("101", u, 1)]) for k, u in common.items()
    ]
    shown = [skeleton_line(n, n % 2, 0, k, [("205", n, 1)]) for n, k in enumerate(keys, 1)]
    lines = {
        (kind, s): t for s in raw.SPLITS for kind, t in (("common", rows), ("skeleton", shown))
    }
    folder = write(tmp_path / "raw", lines)
    chosen = {"feature_fields": ("101", "121", "205"), "validation_share": 0}
    for min_count in (1, 1000):  # where all users are rare they aren't one either
        store, report = converted(folder, tmp_path / "store", min_count=min_count, **chosen)
        first, _, second = store.schema["sizes"]
        user = store.tables["inter"].column(store.schema["group"], slice(first, first + second))
        seven, eight = user[0].item(), user[1].item()
        assert user.tolist() == [seven, eight, seven, 0, 0, 0, 0, seven]
        assert 0 not in (seven, eight)
        assert seven != eight
        train = store.tables["inter"].column(store.schema["group"], slice(0, first))
        assert train.tolist() == user.tolist()  # a user is the same one in both splits
        assert report["fields"]["101"]["lacking"] == {"train": 4, "valid": 0, "test": 4}
        page = (tmp_path / "store" / "report.md").read_text()
        assert re.search(r"\n101 .* 50.00%  +-  +50.00%\n", page)


def test_without_the_users_field_there_is_no_group(tmp_path):
    lines = some_text(rows=80)
    fields = ("121", "205")
    store, report = converted(write(tmp_path / "raw", lines), tmp_path / "s", feature_fields=fields)
    assert store.schema["group"] is None
    assert set(report["fields"]) == {*fields}
    assert "101 isn't among the feature_fields" in " ".join(said(store, "info"))


@pytest.mark.parametrize(
    "fields",
    [("853", "101", "206"), ("109_14", "205"), ("101",), ("150_14", "101", "508", "210", "301")],
)
def test_any_selection_in_any_order(tmp_path, fields):
    lines = some_text(rows=80)
    store, _ = converted(write(tmp_path / "raw", lines), tmp_path / "store", feature_fields=fields)
    check(store, lines, Chosen(fields, 2))
    columns = [c.name for c in store.tables["inter"].layout.columns[3:]]
    assert columns == [f for f in fields if f in ("205", "206", "207", "216", "301")]


def test_report(tmp_path):
    lines = some_text()
    _, report = converted(write(tmp_path / "raw", lines), tmp_path / "store", min_count=5)
    options = Chosen(ALL, 5)
    parts, common, vocabularies = read_plainly(lines, options)
    files = {(file["kind"], file["split"]): file for file in report["files"]}
    for split in raw.SPLITS:
        labels = [tuple(map(int, line.split(",")[1:3])) for line in lines["skeleton", split]]
        file = files["skeleton", split]
        assert file["rows"] == len(labels)
        assert file["clicks"] == sum(click for click, _ in labels)
        assert file["conversions"] == labels.count((1, 1))
        assert file["conversions_without_click"] == file["left_out"] == labels.count((0, 1)) > 0
        assert files["common", split]["rows"] == len(lines["common", split])
    for part, rows in parts.items():
        assert report["parts"][part] == {
            "rows": len(rows),
            "clicks": sum(row[0] for row in rows),
            "conversions": sum(row[1] for row in rows),
        }
    unmatched = sum(row[2] == 0 for row in parts["test"])
    assert report["joins"]["common"]["unmatched"]["test"] == unmatched
    for name, place in (("205", 3), ("853", 4), ("124", None), ("110_14", None)):
        bag = raw.FIELD_BY_NAME[name].is_bag
        for part, rows in parts.items():
            values = []
            for row in rows:
                single, bags = row[3:] if place else common[row[2]]
                values.append(
                    [i for i, _ in bags[name]] if bag else [*{name: single.get(name)}.values()]
                )
            values = [[i for i in v if i is not None] for v in values]
            flat = [i for v in values for i in v]
            field = report["fields"][name]
            assert field["unknown"][part] == sum(i not in vocabularies[name] for i in flat)
            assert field["lacking"][part] == sum(not v for v in values)
            assert field["values"][part] == len(flat)
            if part == "train":
                assert field["seen"] == len({*flat})
    text = (tmp_path / "store" / "report.md").read_text()
    for expected in ("sample_skeleton_train.csv", "110_14", f"{len(parts['test']):,}"):
        assert expected in text


def test_vocabulary_is_fitted_on_training_rows_only(tmp_path):
    train, test = (f"{n:x}" for n in (10, 11))
    lines = {place: [] for place in NAMES}
    lines["common", "train"] = [
        common_line(train, [("101", 1, "1.0")]),
        common_line("c", [("101", 3, 1)]),
    ]
    lines["common", "test"] = [common_line(test, [("101", 2, "1.0")])]
    samples = range(200)
    held_out = [n for n in samples if sample_hash(n) < 0.3 * 2**64]
    for n in samples:
        item = 7 if n in held_out else 8  # the one is in validation only
        lines["skeleton", "train"].append(skeleton_line(n, n % 2, 0, train, [("205", item, 1)]))
        lines["skeleton", "test"].append(skeleton_line(n, n % 2, 0, test, [("205", 9, 1)]))
    folder = write(tmp_path / "raw", lines)
    store, report = converted(
        folder, tmp_path / "store", feature_fields=("101", "205"), min_count=1, validation_share=0.3
    )
    assert list(store.vocabularies[0]) == ["[PAD]", "[OOV]", "1"]
    assert list(store.vocabularies[1]) == ["[PAD]", "[OOV]", "8"]
    assert store.schema["sizes"] == [200 - len(held_out), len(held_out), 200]
    field = report["fields"]["205"]
    assert field["unknown"] == {**field["values"], "train": 0}
    warnings = " ".join(said(store, "warning"))
    for part in ("valid", "test"):
        assert f"field 205: no value of {part} is in the vocabulary of train" in warnings


def test_min_count_counts_impressions_not_values(tmp_path):
    lines = {place: [] for place in NAMES}
    twice = [("853", 5, 1), ("853", 5, 1), ("853", 6, 1)]
    for split in raw.SPLITS:
        lines["common", split] = [common_line("a", [("101", 1, 1), ("109_14", 4, 2)])]
        lines["skeleton", split] = [
            skeleton_line(1, 1, 1, "a", twice),
            skeleton_line(2, 0, 0, "A", [("853", 6, 1)]),  # the same key in upper case
        ]
    folder = write(tmp_path / "raw", lines)
    store, _ = converted(
        folder, tmp_path / "store", feature_fields=("853", "101", "109_14"), validation_share=0
    )
    tokens = [list(vocabulary)[2:] for vocabulary in store.vocabularies]
    assert tokens == [["6"], ["1"], ["4"]]  # 5 is in one impression only; 1 and 4 in two
    assert store.schema["fields"][0]["scale"] == 1.0
    assert store.schema["fields"][2]["scale"] == 2.0


def test_validation_depends_on_the_sample_id_alone(tmp_path):
    lines = some_text(rows=300)
    tagged = {}
    for order in ("forward", "backward", "half"):
        chosen = {place: list(own) for place, own in lines.items()}
        train = chosen["skeleton", "train"]
        for n, line in enumerate(train):  # the item says which sample it was
            start = line.split(",")[:4]
            train[n] = ",".join([*start, "1", f"205\x02{start[0]}\x031.0"])
        if order == "backward":
            train.reverse()
        if order == "half":
            del train[::2]
        store, _ = converted(
            write(tmp_path / order, chosen),
            tmp_path / f"store-{order}",
            feature_fields=("101", "205"),
            min_count=1,
            validation_share=0.4,
            conversion_without_click="unconvert",
        )
        rows, held_out, _ = store.schema["sizes"]
        columns, _ = store.tables["inter"].gather(slice(0, rows))
        tokens = store.vocabularies[store.schema["fields"][1]["vocabulary"]]
        assert abs(held_out / (rows + held_out) - 0.4) < 0.1
        tagged[order] = {tokens[i] for i in columns["205"].tolist()}
    assert tagged["forward"] == tagged["backward"]
    assert tagged["half"] < tagged["forward"]


def test_block_boundaries_change_nothing(tmp_path, monkeypatch):
    folder = write(tmp_path / "raw", some_text(rows=150))
    converted(folder, tmp_path / "whole")
    for size in (1, 97, 4096):
        monkeypatch.setattr(lines_module, "BLOCK_BYTES", size)
        converted(folder, tmp_path / "small")
        assert digest(tmp_path / "small") == digest(tmp_path / "whole")


def test_line_by_line_the_same_comes_out(tmp_path, monkeypatch):
    folder = write(tmp_path / "raw", some_text(rows=150))
    converted(folder, tmp_path / "blocks")
    monkeypatch.setattr(lines_module.Text, "_read_quickly", lambda self, block: None)
    converted(folder, tmp_path / "lines")
    assert digest(tmp_path / "lines") == digest(tmp_path / "blocks")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lines_as_they_should_be_are_read_in_blocks(tmp_path, monkeypatch, end):
    """Else a conversion would take 20 times as long, and nobody would know why."""
    folder = write(tmp_path / "raw", some_text(rows=150), end)
    monkeypatch.setattr(lines_module.Text, "_read_exactly", None)
    _, report = converted(folder, tmp_path / "store")
    assert report["files"][-1]["rows"] == 150


def test_a_bad_line_leaves_the_others_to_the_quick_way(tmp_path, monkeypatch):
    lines = some_text(rows=2000)
    lines["skeleton", "train"][1234] = "bad"
    exactly, read = [], lines_module.Text._read_exactly
    monkeypatch.setattr(
        lines_module.Text,
        "_read_exactly",
        lambda self, text: exactly.append(len(text)) or read(self, text),
    )
    folder = write(tmp_path / "raw", lines)
    _, report = converted(folder, tmp_path / "store", on_bad_line="skip")
    (file,) = (f for f in report["files"] if f["name"] == "sample_skeleton_train.csv")
    assert file["malformed_places"][0].startswith("sample_skeleton_train.csv, line 1235: 1 comma")
    assert (file["rows"], file["malformed"]) == (2000, 1)
    assert len(exactly) == 1
    assert exactly[0] <= 1 << 14 < (folder / file["name"]).stat().st_size / 8


def test_line_ends(tmp_path):
    lines = some_text(rows=50)
    folder = write(tmp_path / "raw", lines)
    converted(folder, tmp_path / "plain")
    for name in NAMES.values():
        text = (folder / name).read_bytes().replace(b"\n", b"\r\n\n\r\n")
        (folder / name).write_bytes(text[: -len(b"\r\n\n\r\n")])
    _, report = converted(folder, tmp_path / "other")
    assert digest(tmp_path / "other") == digest(tmp_path / "plain")
    assert sum(file["malformed"] for file in report["files"]) == 0


# ------------------------------------------------------------------- packing


def pack(folder, names, form):
    for split in raw.SPLITS:
        own = [names["common", split], names["skeleton", split]]
        if form == "gz":
            for name in own:
                text = (folder / name).read_bytes()
                half = len(text) // 2  # two members, as parallel compressors write
                packed = gzip.compress(text[:half]) + gzip.compress(text[half:])
                (folder / f"{name}.gz").write_bytes(packed + bytes(512))
        else:
            with tarfile.open(folder / f"sample_{split}.tar.gz", "w:gz") as archive:
                for name in own if split == "train" else own[::-1]:
                    member = tarfile.TarInfo(f"sample/{name}")
                    member.size = (folder / name).stat().st_size
                    archive.addfile(member, io.BytesIO((folder / name).read_bytes()))
                    archive.addfile(tarfile.TarInfo(f"sample/._{name}"), io.BytesIO())
        for name in own:
            (folder / name).unlink()


@pytest.mark.parametrize("form", ["gz", "tar"])
def test_packing_changes_nothing(tmp_path, form):
    folder = write(tmp_path / "raw", some_text())
    converted(folder, tmp_path / "plain")
    pack(folder, NAMES, form)
    converted(folder, tmp_path / "packed")
    assert digest(tmp_path / "packed") == digest(tmp_path / "plain")


@pytest.mark.parametrize("form", ["gz", "tar"])
@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_damaged_files_are_named(tmp_path, form, damage):
    folder = write(tmp_path / "raw", some_text())
    pack(folder, NAMES, form)
    path = sorted(folder.iterdir())[-1]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-len(data) // 3 :]
    elif damage == "flip":
        data[len(data) // 2] ^= 0x55
    else:
        data[:] = b"<html>not found</html>"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=path.name):
        converted(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_archive_without_one_of_the_texts(tmp_path):
    folder = write(tmp_path / "raw", some_text(rows=5))
    for name, message in (("x.csv", "holds no sample_skeleton_test"), (None, "holds no common")):
        with tarfile.open(folder / "sample_test.tar.gz", "w:gz") as archive:
            for kind in ("common", "skeleton"):
                path = folder / NAMES[kind, "train" if name is None else "test"]
                archive.add(path, name if kind == "skeleton" and name else path.name)
        for own in NAMES.values():
            (folder / own).rename(folder / f"{own}.aside") if "test" in own else None
        with pytest.raises(UsageError, match=rf"sample_test\.tar\.gz {message}"):
            converted(folder, tmp_path / "store")
        for own in NAMES.values():
            (folder / f"{own}.aside").rename(folder / own) if "test" in own else None


def test_find_raw_says_what_is_missing(tmp_path):
    folder = write(tmp_path / "raw", some_text(rows=1))
    (folder / "sample_skeleton_test.csv").unlink()
    message = r"missing sample_skeleton_test\.csv .*sample_test\.tar\.gz.*common_features_train"
    with pytest.raises(UsageError, match=message):
        find_raw(folder)
    with pytest.raises(UsageError, match="not a folder"):
        find_raw(folder / "nowhere")
    (folder / "truth_test.npy").touch()
    (folder / "sample_skeleton_test.csv").touch()
    with pytest.raises(UsageError, match=r"truth_test\.npy is there"):
        find_raw(folder)


# ------------------------------------------------------------------- malformed lines

GOOD = "205\x0212\x031.0"
SKELETON_MISTAKES = [
    (f"1,0,0,ab,{GOOD}", "5 comma-separated parts instead of 6"),
    ("hello", "1 comma-separated parts instead of 6"),
    (f"1,0,0,ab,1,{GOOD},", "7 comma-separated parts instead of 6"),
    (f"x1,0,0,ab,1,{GOOD}", "sample_id is not a number"),
    (f"-1,0,0,ab,1,{GOOD}", "sample_id is not a number"),
    (f"{10**18},0,0,ab,1,{GOOD}", "sample_id is not a number"),
    (f"1,2,0,ab,1,{GOOD}", "click is not 0 or 1"),
    (f"1,01,0,ab,1,{GOOD}", "click is not 0 or 1"),
    (f"1,,0,ab,1,{GOOD}", "click is not 0 or 1"),
    (f"1,0,1.0,ab,1,{GOOD}", "purchase is not 0 or 1"),
    (f"1,0,0,,1,{GOOD}", "common_feature_index is not a hex string"),
    (f"1,0,0,abg,1,{GOOD}", "common_feature_index is not a hex string"),
    (f"1,0,0,{'a' * 33},1,{GOOD}", "common_feature_index is not a hex string"),
    (f"1,0,0,ab,one,{GOOD}", "feature_num is not a number"),
    (f"1,0,0,ab,2,{GOOD}", "feature_num is 2, but there are 1 features"),
    (f"1,0,0,ab,0,{GOOD}", "feature_num is 0, but there are 1 features"),
    ("1,0,0,ab,1,", "feature_num is 1, but there are 0 features"),
    (f"1,0,0,ab,2,{GOOD}\x01", "a feature is not FIELD"),
    ("1,0,0,ab,1,205\x0212", "a feature is not FIELD"),
    ("1,0,0,ab,1,205", "a feature is not FIELD"),
    ("1,0,0,ab,1,\x0212\x031.0", "a feature is not FIELD"),
    ("1,0,0,ab,1,205\x031\x021", "a feature is not FIELD"),
    ("1,0,0,ab,1,205\x02x\x031.0", "a feature id is not a decimal integer"),
    ("1,0,0,ab,1,205\x02-1\x031.0", "a feature id is not a decimal integer"),
    ("1,0,0,ab,1,205\x02\x031.0", "a feature id is not a decimal integer"),
    (f"1,0,0,ab,1,205\x02{10**18}\x031.0", "a feature id is not a decimal integer"),
    *(
        (f"1,0,0,ab,1,853\x0212\x03{value}", "a value is not a number")
        for value in ("", "nan", "inf", "-", ".", "1e", "1e+", "1.0.0", "0x1", "1_0", "1 ", "\t")
    ),
    *(
        (f"1,0,0,ab,1,853\x0212\x03{value}", "a value is beyond")
        for value in ("1e38", "-3e39", "1e999", "9" * 39, "0.001e41")
    ),
]
COMMON_MISTAKES = [
    ("ab,1", "2 comma-separated parts instead of 3"),
    ("ab,1,101\x021\x031.0,", "4 comma-separated parts instead of 3"),
    ("xyz,1,101\x021\x031.0", "common_feature_index is not a hex string"),
    ("ab,,101\x021\x031.0", "feature_num is not a number"),
    ("ab,3,101\x021\x031.0", "feature_num is 3, but there are 1 features"),
    ("ab,1,101\x02\x7f\x031.0", "a feature id is not a decimal integer"),
]


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [("skeleton", *m) for m in SKELETON_MISTAKES] + [("common", *m) for m in COMMON_MISTAKES],
)
def test_malformed_lines(tmp_path, kind, line, message):
    lines = some_text(rows=20, users=5)
    folder = write(tmp_path / "raw", lines)
    converted(folder, tmp_path / "good")
    bad = {place: list(own) for place, own in lines.items()}
    bad[kind, "train"][2:2] = ["", line]
    write(folder, bad)
    name = NAMES[kind, "train"]
    with pytest.raises(UsageError) as caught:
        converted(folder, tmp_path / "store")
    text = str(caught.value)
    assert text.startswith(f"{name}, line 4: {message}")
    assert text.isprintable()
    assert not (tmp_path / "store").exists()
    store, report = converted(folder, tmp_path / "store", on_bad_line="skip")
    assert digest(tmp_path / "store") == digest(tmp_path / "good")
    (file,) = (file for file in report["files"] if file["name"] == name)
    assert file["malformed"] == 1
    assert file["malformed_places"][0].startswith(f"{name}, line 4: {message}")
    assert any("1 malformed line" in warning for warning in said(store, "warning"))


def test_only_the_first_malformed_lines_are_quoted(tmp_path):
    lines = some_text(rows=20)
    lines["skeleton", "test"] += [f"{n},bad" for n in range(12)]
    _, report = converted(write(tmp_path / "raw", lines), tmp_path / "store", on_bad_line="skip")
    (file,) = (f for f in report["files"] if f["name"] == "sample_skeleton_test.csv")
    assert file["malformed"] == 12
    assert [p.split(":")[0] for p in file["malformed_places"]] == [
        f"sample_skeleton_test.csv, line {n}" for n in range(21, 26)
    ]


def test_line_numbers_while_hash_tables_grow(tmp_path, few_values):
    lines = some_text(rows=20)
    lines["skeleton", "test"] = [
        skeleton_line(n, 0, 0, f"{n:x}", [("205", n, 1), ("206", n, 1)]) for n in range(5000)
    ]
    lines["skeleton", "test"][4321] = "bad"
    lines["common", "train"] = [common_line(f"{n:x}", [("101", n, 1)]) for n in range(3000)]
    folder = write(tmp_path / "raw", lines)
    _, report = converted(folder, tmp_path / "store", on_bad_line="skip")
    (file,) = (f for f in report["files"] if f["name"] == "sample_skeleton_test.csv")
    assert file["malformed_places"][0].startswith("sample_skeleton_test.csv, line 4322: 1 comma")
    assert (file["rows"], report["parts"]["test"]["rows"]) == (5000, 4999)
    lines["skeleton", "test"].pop(4321)
    lines["common", "train"][2345] = "bad"
    with pytest.raises(UsageError, match=r"common_features_train\.csv, line 2346"):
        converted(write(folder, lines), tmp_path / "store")


def test_a_file_without_lines_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "_LONGEST_LINE", 1 << 12)
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 1 << 10)
    folder = write(tmp_path / "raw", some_text(rows=5))
    (folder / "sample_skeleton_train.csv").write_bytes(bytes(1 << 14))
    with pytest.raises(UsageError, match="no text"):
        converted(folder, tmp_path / "store")


# ------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "value",
    ["0", "-0.0", "0e99", "00000000000000000000000001.5", "1.00000005960464477539", "16777217",
     "0.1", "1.17549435e-38", "1e-45", "7e-46", "1e-400", "9.9999999e37", "5e-324", "1.0000",
     "123456789012345678", "9007199254740993", "9007199254740993.0000000001", "3.4e-5", "8.5e22",
     "0.0000000000000000000000000000000000000000000000000123e+60", "1.0000000596046448", "8.5e23",
     # beside the middle of two float32, where a float64 that is off by one bit shows
     "206126838747877642e-21", "950743650000000065e-11", "126136709119999992e-6"],
)  # fmt: skip
def test_weights_are_rounded_as_python_does(tmp_path, few_values, value):
    lines = some_text(rows=10)
    lines["skeleton", "train"] = [skeleton_line(1, 1, 1, "a", [("853", 3, value)])]
    store, _ = converted(
        write(tmp_path / "raw", lines), tmp_path / "store", min_count=1, validation_share=0
    )
    _, bags = store.tables["inter"].gather(slice(0, 1))
    assert bags.weights.numpy().tobytes() == np.float32(float(value)).tobytes()


# ------------------------------------------------------------------- rows that are left out


def test_conversion_without_click(tmp_path):
    lines = some_text(rows=20)
    lines["skeleton", "train"].insert(4, skeleton_line(99, 0, 1, "a", []))
    lines["skeleton", "train"] = [
        line for line in lines["skeleton", "train"] if ",0,1," not in line or line[:3] == "99,"
    ]
    number = next(n for n, line in enumerate(lines["skeleton", "train"], 1) if line[:3] == "99,")
    lines["skeleton", "test"] = [line for line in lines["skeleton", "test"] if ",0,1," not in line]
    folder = write(tmp_path / "raw", lines)
    expected = len(lines["skeleton", "train"])
    for mode, rows in (("drop", expected - 1), ("unconvert", expected)):
        store, report = converted(folder, tmp_path / mode, conversion_without_click=mode)
        assert sum(store.schema["sizes"][:2]) == rows
        purchases = store.tables["inter"].column("purchase", slice(None))
        assert int(purchases.sum()) == sum(f.get("conversions", 0) for f in report["files"])
        file = next(f for f in report["files"] if f["name"] == "sample_skeleton_train.csv")
        assert (file["conversions_without_click"], file["left_out"]) == (1, int(mode == "drop"))
    for on_bad_line in ("raise", "skip"):
        with pytest.raises(UsageError, match=f"line {number}: a purchase without a click"):
            converted(
                folder,
                tmp_path / "raise",
                conversion_without_click="raise",
                on_bad_line=on_bad_line,
            )


def test_duplicate_and_missing_keys(tmp_path, caplog):
    lines = some_text(rows=40)
    first = lines["common", "train"][0]
    key = first.split(",")[0]
    lines["common", "train"].append(common_line(key.upper(), [("101", 999, 1)]))
    lines["skeleton", "test"][:3] = [
        skeleton_line(n, 0, 0, k, []) for n, k in enumerate(("0" + key, "f" * 32, key + "0"))
    ]
    with caplog.at_level(logging.DEBUG):
        store, report = converted(write(tmp_path / "raw", lines), tmp_path / "store")
    check(store, lines, Chosen(ALL, 2))
    join = report["joins"]["common"]
    rows = sum(file["rows"] for file in report["files"] if file["kind"] == "common")
    assert (join["repeated"], join["rows"]) == (1, rows - 1)
    assert join["unmatched"]["test"] >= 3
    warnings = " ".join(said(store, "warning"))
    place = f"common_features_train.csv row {len(lines['common', 'train'])}"
    said_first = (
        "1 rows of 'common' repeat their common_feature_index: the first row of each counts"
    )
    assert f"{said_first} ({place})" in warnings
    assert f"the first where common_feature_index is 'train {key}'" in warnings
    assert "impressions (test) have no row in 'common' by common_feature_index" in warnings
    assert all(warning in caplog.text for warning in said(store, "warning"))


def test_keys_of_other_splits_do_not_join(tmp_path, few_values):
    lines = {place: [] for place in NAMES}
    for n, split in enumerate(raw.SPLITS):
        lines["common", split] = [common_line("a" * 32, [("101", n, 1)])]
        lines["skeleton", split] = [skeleton_line(1, 1, 0, "a" * 32, [])] * 2
    store, _ = converted(
        write(tmp_path / "raw", lines), tmp_path / "store", min_count=1, validation_share=0
    )
    assert store.tables["inter"].column(ROW, slice(None)).tolist() == [1, 1, 2, 2]


def test_keys_that_differ_in_leading_zeros(tmp_path, few_values):
    keys = ["0" * zeros + f"{n:x}" for n in range(16) for zeros in range(32)]
    lines = some_text(rows=1)
    lines["common", "train"] = [common_line(k, [("101", n, 1)]) for n, k in enumerate(keys)]
    lines["skeleton", "train"] = [skeleton_line(n, 1, 0, k, []) for n, k in enumerate(keys)]
    store, report = converted(
        write(tmp_path / "raw", lines), tmp_path / "store", validation_share=0
    )
    found = store.tables["inter"].column(ROW, slice(0, len(keys)))
    assert found.tolist() == list(range(1, len(keys) + 1))
    assert report["joins"]["common"]["unmatched"]["train"] == 0


def test_further_values_and_unknown_fields_are_counted(tmp_path):
    lines = some_text(rows=20)
    extra = [("205", 1, 1), ("205", 2, 1), ("205", 3, 1), ("999", 1, 1), ("101", 5, 1)]
    extra += [("averylongname", 1, 1)] * 2
    lines["skeleton", "train"].append(skeleton_line(7, 0, 0, "a", extra))
    store, report = converted(write(tmp_path / "raw", lines), tmp_path / "store")
    check(store, lines, Chosen(ALL, 2))
    (file,) = (f for f in report["files"] if f["name"] == "sample_skeleton_train.csv")
    assert file["further_values"] == {"205": 2}
    assert file["unknown_fields"] == {"999": 1, "101": 1, "others": 2}
    text = (tmp_path / "store" / "report.md").read_text()
    assert "field 999 is not known there, 1 values ignored" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace(",1,", ",0,", 1), "no click"),
        (lambda line: line.replace(",1,1,", ",1,0,"), "no conversion"),
        (lambda line: line.replace(",1,0,", ",1,1,"), "of the clicks convert"),
        (lambda line: line.replace(",0,0,", ",1,0,"), "of the rows are clicked"),
    ],
)
def test_what_can_not_be_right(tmp_path, few_values, change, message):
    rng = random.Random(1)
    lines = some_text(rows=0)
    for split in raw.SPLITS:
        key = lines["common", split][0].split(",")[0]
        lines["skeleton", split] = [
            skeleton_line(10 + n, int(n < 20), int(n < 2), key, some_features(rng, OTHER))
            for n in range(100)
        ]
    folder = write(tmp_path / "raw", lines)
    store, _ = converted(folder, tmp_path / "store")
    assert not any(message in warning for warning in said(store, "warning"))
    assert any("the official file has about 42,300,000" in note for note in said(store, "info"))
    lines["skeleton", "test"] = [
        ",".join([(head := line.split(",", 3))[0], change(f",{head[1]},{head[2]},")[1:-1], head[3]])
        for line in lines["skeleton", "test"]
    ]
    store, _ = converted(write(folder, lines), tmp_path / "store")
    assert any(message in warning for warning in said(store, "warning"))


@pytest.mark.parametrize("rows_at_once", [1, 7, 1 << 15])
def test_rows_with_one_sample_id_are_counted(tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(chunks_module, "_ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 1000)
    lines = some_text(rows=60)
    train, test = lines["skeleton", "train"], lines["skeleton", "test"]
    head = test[0].split(",", 1)[0]
    store, report = converted(write(tmp_path / "raw", lines), tmp_path / "store")
    assert not any("sample_id" in text for _, text in store.schema["notes"])  # one in both splits
    assert head == train[0].split(",", 1)[0]
    for place, sample in ((20, 8), (40, 8), (50, 5), (59, 5)):  # with other labels and features
        train[place] = ",".join([str(sample), *train[place].split(",")[1:]])
    train.insert(9, "broken")
    store, report = converted(
        write(tmp_path / "raw", lines), tmp_path / "store", on_bad_line="skip"
    )
    (told,) = (text for text in said(store, "warning") if "sample_id" in text)
    assert told == (
        "sample_skeleton_train.csv: 3 of 61 rows have the sample_id of an earlier one, and each "
        "counts as an impression; sample_id 5 in rows 52 and 61"
    )
    counted = [file["repeated_ids"] for file in report["files"] if file["kind"] == "skeleton"]
    assert counted == [3, 0]
    lines["skeleton", "train"] = sorted(train, key=lambda line: line.split(",")[0])
    store, _ = converted(write(tmp_path / "raw", lines), tmp_path / "store", on_bad_line="skip")
    (told,) = (text for text in said(store, "warning") if "sample_id" in text)
    assert "3 of 61 rows have the sample_id of an earlier one" in told


def test_repeated_sample_ids_among_such_as_count_upward():
    ids = SampleIds()
    ids.add(np.arange(10, dtype=np.uint64), np.arange(10))
    ids.add(np.arange(12, 20, dtype=np.uint64), np.arange(10, 18))
    assert ids.repeated() == 0
    ids.add(np.arange(15, 30, dtype=np.uint64), np.arange(20, 35))
    assert ids.repeated() == 5
    assert ids.place == "sample_id 15 in rows 14 and 21"


def test_no_rows(tmp_path):
    lines = some_text(rows=10)
    lines["skeleton", "test"] = []
    with pytest.raises(UsageError, match="no test impressions are left"):
        converted(write(tmp_path / "raw", lines), tmp_path / "store")


# ------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_fields": ("101", "109-14")}, "'109-14' .did you mean 109_14"),
        ({"feature_fields": ("101", "101")}, "feature_fields names a field twice"),
        ({"feature_fields": ("205",)}, "feature_fields needs a user field"),
        ({"feature_fields": ()}, "feature_fields needs a user field"),
        ({"feature_fields": "101"}, "feature_fields must be a list"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        Options(**{"feature_fields": ALL, **options})


def test_fields_may_come_as_numbers():
    assert Options([101, "205"]).feature_fields == ("101", "205")


# ------------------------------------------------------------------- killed midway

SLOW = """
import sys, time
from pathlib import Path
from recbole_escm2.data import build as module
from recbole_escm2.data.ali_ccp import lines, source
name = "_encoded" if sys.argv[3] == "reading" else "_append"
original = getattr(module._Build, name)
def slowed(self, *arguments):
    result = original(self, *arguments)
    print("here", flush=True)
    time.sleep(60)
    return result
setattr(module._Build, name, slowed)
lines.BLOCK_BYTES = 4096
read = source.read_raw(source.find_raw(Path(sys.argv[1])), source.Options(("101", "205", "853")))
module.build(*read, Path(sys.argv[2]), module.Rules())
"""


@pytest.mark.parametrize("phase", ["reading", "writing"])
def test_killed_midway(tmp_path, phase):
    lines = some_text()
    folder, target = write(tmp_path / "raw", lines), tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), str(target), phase], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline().startswith(b"here")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = [path for path in tmp_path.iterdir() if path.name != "raw"]
    assert left
    for path in left:
        with pytest.raises(NoStoreError):
            Store(path)
    store, _ = converted(folder, target)
    check(store, lines, Chosen(ALL, 2))
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "store"}


def test_an_older_store_stays_until_the_new_one_is_complete(tmp_path):
    lines = some_text(rows=30)
    folder = write(tmp_path / "raw", lines)
    converted(folder, tmp_path / "store")
    before = digest(tmp_path / "store")
    (folder / "sample_skeleton_test.csv").write_text("broken\n")
    with pytest.raises(UsageError):
        converted(folder, tmp_path / "store")
    assert digest(tmp_path / "store") == before


def test_progress_is_on_standard_error(tmp_path, capsys):
    folder = write(tmp_path / "raw", some_text(rows=10))
    convert(folder, tmp_path / "store", Chosen(), progress=True)
    shown = capsys.readouterr()
    assert "reading" in shown.err
    assert "writing" in shown.err
    assert shown.out == ""


# ------------------------------------------------------------------- random rows

numbers = st.one_of(
    st.sampled_from(VALUES),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-(10**20), 10**20, places=12, allow_nan=False).map(str),
).filter(lambda text: abs(Decimal(text)) < Decimal("1e38"))
names = st.sampled_from([*ALL, "1", "999", "14"])
feature = st.tuples(names, st.integers(0, 5) | st.integers(0, 10**18 - 1), numbers)
features = st.lists(feature, max_size=12)
key = st.sampled_from(["0", "00", "a", "A", "f" * 32, "0" * 31, "1" + "0" * 16])
common_rows = st.lists(st.builds(common_line, key, features), max_size=6)
impression = st.builds(
    skeleton_line, st.integers(0, 10**18 - 1), st.integers(0, 1), st.integers(0, 1), key, features
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    common=st.tuples(common_rows, common_rows),
    train=st.lists(impression, max_size=10),
    test=st.lists(impression, max_size=6),
    min_count=st.integers(1, 3),
    share=st.sampled_from([0, 0.5]),
)
def test_random_rows(tmp_path, few_values, common, train, test, min_count, share):
    lines = {
        ("common", "train"): common[0],
        ("common", "test"): common[1],
        ("skeleton", "train"): train,
        ("skeleton", "test"): test,
    }
    options = {
        "min_count": min_count,
        "validation_share": share,
        "conversion_without_click": "unconvert",
    }
    parts, rows, _ = read_plainly(lines, Chosen(ALL, **options))
    folder = write(tmp_path / "raw", lines)
    message = None
    if not parts["train"] or not parts["test"]:
        message = "impressions are left"
    elif len(rows) > 1 and not any(row[2] for own in parts.values() for row in own):
        message = "no impression has its common_feature_index in 'common'"
    if message:
        with pytest.raises(UsageError, match=message):
            converted(folder, tmp_path / "store", **options)
        return
    store, _ = converted(folder, tmp_path / "store", **options)
    check(store, lines, Chosen(ALL, **options))


# ------------------------------------------------------------------- simulated files


def test_simulated_files(tmp_path):
    simulate = pytest.importorskip("recbole_escm2.data.ali_ccp.simulate")
    folder = tmp_path / "raw"
    simulate.simulate(simulate.Simulation(rows=3000, seed=3), folder)
    store, _ = converted(folder, tmp_path / "store", {"extra": 1})
    lines = {place: (folder / name).read_text().splitlines() for place, name in NAMES.items()}
    check(store, lines, Chosen(ALL, 2))
    assert store.schema["extra"] == 1
    assert store.schema["simulated"] == json.loads((folder / "simulation.json").read_text())
    assert "imulated" in (tmp_path / "store" / "report.md").read_text()
    assert not any("official" in note for note in said(store, "info"))
    truth = []
    for split in raw.SPLITS:
        rows = np.load(folder / f"truth_{split}.npy")
        held_out = np.zeros(len(rows), bool)
        kept = np.ones(len(rows), bool)
        for n, line in enumerate(lines["skeleton", split]):
            sample, click, purchase, _ = line.split(",", 3)
            kept[n] = (click, purchase) != ("0", "1")
            held_out[n] = split == "train" and sample_hash(int(sample)) < 0.1 * 2**64
        truth += [rows[kept & ~held_out], rows[kept & held_out]]
    expected = np.concatenate(truth)
    table = store.tables["inter"]
    for place, name in enumerate(raw.TRUTH_COLUMNS):
        np.testing.assert_array_equal(table.column(name, slice(None)).numpy(), expected[:, place])
        assert name not in table.fields
    np.save(folder / "truth_test.npy", expected[:5])
    with pytest.raises(UsageError, match=r"truth_test\.npy has fewer rows"):
        converted(folder, tmp_path / "store")


def test_ids_that_a_bad_hash_would_put_into_one_place(tmp_path, few_values):
    lines = some_text(rows=1)
    lines["skeleton", "train"] = [
        skeleton_line(n, int(n % 3 == 0), 0, "a", [("205", n << 32, 1), ("210", n * 16, 1)])
        for n in range(20_000)
    ]
    folder = write(tmp_path / "raw", lines)
    _, report = converted(folder, tmp_path / "store", min_count=1, validation_share=0)
    assert report["fields"]["205"]["vocabulary"] == 20_000


# --------------------------------------------------------------------------- several processes


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def odd_text():
    """Lines of which some are no lines, some blank, and one has a field that isn't known."""
    lines = some_text(rows=300)
    train = lines["skeleton", "train"]
    train[40:40] = ["", "broken", "1,2,3"]
    train[90] = skeleton_line(9, 0, 0, "abc", [("999", 5, "1.0"), ("205", 5, "1.0")])
    train[200] = train[200].replace("1.0", "1.00000000000000000000", 1)
    lines["common", "test"][3] += "\r"
    return lines


def test_several_processes_make_the_bytes_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 5000)
    folder = write(tmp_path / "raw", odd_text())
    options = Options(ALL, on_bad_line="skip")
    reports, stores = [], []
    for workers in (0, 2):
        target = tmp_path / f"store-{workers}"
        reports.append(build(*read_raw(find_raw(folder), options, workers), target, Rules(2)))
        stores.append(files_of(target))
    assert reports[0] == reports[1]
    assert reports[0]["files"][1]["malformed"] == 2
    assert reports[0]["files"][1]["unknown_fields"] == {"999": 1}
    assert len(stores[0]) > 5
    assert stores[0] == stores[1]


def test_a_process_that_reads_takes_most_blocks(tmp_path, monkeypatch):
    """What isn't unusual is read by them, and only what is by the one that has the text."""
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 5000)
    folder = write(tmp_path / "raw", odd_text())
    here, quickly = [], lines_module.Text._read_quickly
    monkeypatch.setattr(
        lines_module.Text,
        "_read_quickly",
        lambda self, block: here.append(len(block)) or quickly(self, block),
    )
    _, chunks = read_raw(find_raw(folder), Options(ALL, on_bad_line="skip"), 2)
    assert sum(len(chunk.rows) for chunk in chunks) > 600
    assert 0 < sum(here) < 0.2 * sum(path.stat().st_size for path in folder.iterdir())


def test_several_processes_name_the_line_that_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 5000)
    folder = write(tmp_path / "raw", odd_text())
    told = []
    for workers in (0, 2):
        with pytest.raises(UsageError) as caught:
            build(*read_raw(find_raw(folder), Options(ALL), workers), tmp_path / "store", Rules())
        told.append(str(caught.value))
        assert not (tmp_path / "store").exists()
    assert told[0].startswith("sample_skeleton_train.csv, line 42: 1 comma-separated parts")
    assert told[0] == told[1]


def test_a_process_that_is_killed_ends_the_conversion_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 5000)
    folder = write(tmp_path / "raw", some_text())
    before = {own.pid for own in multiprocessing.active_children()}
    schema, chunks = read_raw(find_raw(folder), Options(ALL), 2)

    def killed():
        yield next(chunks)
        for own in multiprocessing.active_children():
            if own.pid not in before:
                own.kill()
                own.join()
        yield from chunks

    with pytest.raises(UsageError, match="reads the data has ended before its time"):
        build(schema, killed(), tmp_path / "store", Rules())
    assert not {own.pid for own in multiprocessing.active_children()} - before
    assert not (tmp_path / "store").exists()
