"""Kinds of files: small valid ones, what the program reads of them, and what a plain reader reads.

Plain readers are as short as their formats' descriptions, share nothing with the program, and only
have to be right about what the program accepts.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuzzing.damage import damaged
from recbole_escm2.config import Config
from recbole_escm2.data.ali_ccp.files import find_raw, open_texts
from recbole_escm2.data.ali_ccp.lines import Text
from recbole_escm2.data.ali_ccp.raw import FIELDS, common_name, skeleton_name
from recbole_escm2.data.ali_ccp.source import Options, read_raw
from recbole_escm2.data.build import Rules, build
from recbole_escm2.data.open_store import open_store
from recbole_escm2.data.store import Store
from recbole_escm2.scoring.read import read as read_predictions

ROWS = 40


class Kind:
    """Files of one kind.

    Attributes:
        separator: between the cells of a line; none for what isn't text.
        pattern: of the files that are damaged.
    """

    separator = b""
    pattern = "*"

    def prepare(self, folder: Path) -> None:
        """Write valid files into an empty folder."""
        raise NotImplementedError

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """Damage one of the files; gives which."""
        files = sorted(path for path in folder.rglob(self.pattern) if path.is_file())
        path = draw.choice(files)
        path.write_bytes(damaged(path.read_bytes(), draw, self.separator))
        return path

    def read(self, folder: Path) -> Any:
        """What the program makes of the files."""
        raise NotImplementedError

    def reference(self, folder: Path) -> Any:
        """What is in them; None where nothing tells."""
        return None


def impressions() -> dict[str, list[Any]]:
    """Columns of a small log."""
    draw = random.Random(0)
    click = [int(draw.random() < 0.5) for _ in range(ROWS)]
    return {
        "user_id": [f"u{draw.randrange(6)}" for _ in range(ROWS)],
        "item_id": [f"i{draw.randrange(8)}" for _ in range(ROWS)],
        "hour": [f"{draw.randrange(24):02d}" for _ in range(ROWS)],
        "price": [round(draw.uniform(0, 9), 3) for _ in range(ROWS)],
        "click": click,
        "conversion": [int(o and draw.random() < 0.5) for o in click],
    }


#: Words for a missing number, such as the conversion of what wasn't clicked.
MISSING = ("", "NA", "null", "nan")
TOKENS = ("user_id", "item_id", "hour")
TYPES = {"price": "float", "click": "float", "conversion": "float"}


def settings(folder: Path) -> dict[str, Any]:
    """Of a run of a second on the log."""
    return {
        **{"data_path": str(folder), "store_dir": str(folder / "stores"), "epochs": 1},
        **{"output_dir": str(folder / "output"), "embedding_size": 2, "mlp_hidden_size": [2]},
        **{"numerical_features": ["price"], "metrics": ["CTR_AUC"], "valid_metric": "CTR_AUC"},
        **{
            "standardize": False,
            "show_progress": False,
            "reproducibility": False,
            "train_batch_size": 16,
        },
    }


def written(store: Store) -> list[tuple[Any, ...]] | None:
    """The rows of a store, decoded: tokens, labels, price; None where it has other columns."""
    table = store.tables["inter"]
    fields = {own["name"]: own for own in store.schema["fields"]}
    if not {*TOKENS, *TYPES} <= {*fields, *table.layout.columnar}:
        return None
    columns: list[list[Any]] = []
    for name in TOKENS:
        tokens = store.vocabularies[fields[name]["vocabulary"]]
        ids = table.column(name, slice(None)).tolist()
        columns.append([tokens[own] if own else None for own in ids])
    columns.append(table.column("price", slice(None))[:, 0].tolist())  # and 1, as RecBole has it
    columns += [table.column(name, slice(None)).tolist() for name in ("click", "conversion")]
    return list(zip(*columns, strict=True))


def labelled(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of a log as :func:`written` gives them: without conversions that have no click."""
    made = []
    for row in rows:
        price, click, conversion = (
            None if row[name] in (None, "") else float(row[name]) for name in TYPES
        )
        if conversion and not click:
            continue
        price = None if price is None else float(np.float32(price))
        made.append((*(row[name] or None for name in TOKENS), price, click, conversion))
    return made


class _Log(Kind):
    """A log as a data set."""

    def read(self, folder: Path) -> Any:
        return written(open_store(_config_in(folder)))


@cache
def _config_in(folder: Path) -> Config:
    return Config("ESMM", "log", config_dict=settings(folder))


def cells_of(content: bytes, separator: str) -> list[list[str]]:
    # What a column holds that nobody reads needn't be text.
    text = content.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
    # Not strict: a quote within a cell is read as spreadsheets and pandas do.
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


class Atomic(_Log):
    """Atomic files: impressions, and the ages of users."""

    separator = b"\t"
    pattern = "log.*"

    def prepare(self, folder: Path) -> None:
        """``log.inter`` and ``log.user``."""
        columns = impressions()
        (folder / "log").mkdir()
        header = "\t".join(f"{name}:{TYPES.get(name, 'token')}" for name in columns)
        lines = ["\t".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        (folder / "log" / "log.inter").write_text("\n".join([header, *lines]) + "\n")
        users = "".join(f"u{n}\t{20 + n}\n" for n in range(6))
        (folder / "log" / "log.user").write_text(f"user_id:token\tage:float\n{users}")

    def reference(self, folder: Path) -> Any:
        """Lines of blanks aside, each is a row."""
        rows = cells_of((folder / "log" / "log.inter").read_bytes(), "\t")
        header = [name.partition(":") for name in rows[0]]
        if {name: kind for name, _, kind in header} != {
            n: TYPES.get(n, "token") for n in (*TOKENS, *TYPES)
        }:
            return None  # a log of other columns
        names = [name for name, _, _ in header]
        lines = [row for row in rows[1:] if "".join(row).strip(" ") or len(row) > 1]
        there = [dict(zip(names, row, strict=True)) for row in lines]
        users = cells_of((folder / "log" / "log.user").read_bytes(), "\t")
        if "user_id:token" not in users[0]:
            return None
        known = {row[users[0].index("user_id:token")] for row in users[1:] if row}
        return labelled([row for row in there if row["user_id"] in known])  # as RecBole does


class Csv(_Log):
    """A CSV table."""

    separator = b","
    pattern = "log.csv"

    def prepare(self, folder: Path) -> None:
        """``log.csv``."""
        columns = impressions()
        (folder / "log").mkdir()
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        (folder / "log" / "log.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")

    def reference(self, folder: Path) -> Any:
        """Each line is a row."""
        rows = cells_of((folder / "log" / "log.csv").read_bytes(), ",")
        if {*rows[0]} != {*TOKENS, *TYPES}:
            return None
        return labelled([dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row])


class Parquet(_Log):
    """A Parquet table, whose bytes are damaged."""

    pattern = "log.parquet"

    def prepare(self, folder: Path) -> None:
        """``log.parquet``."""
        (folder / "log").mkdir()
        pq.write_table(pa.table(impressions()), folder / "log" / "log.parquet")

    def reference(self, folder: Path) -> Any:
        """What pyarrow reads as a whole."""
        table = pq.read_table(folder / "log" / "log.parquet")
        if {*table.column_names} != {*TOKENS, *TYPES}:
            return None
        for name in TOKENS:
            table = table.set_column(
                table.column_names.index(name), name, table[name].cast(pa.string())
            )
        return labelled(table.to_pylist())


class Arrow(Parquet):
    """An Arrow file."""

    pattern = "log.arrow"

    def prepare(self, folder: Path) -> None:
        """``log.arrow``."""
        (folder / "log").mkdir()
        table = pa.table(impressions())
        with pa.ipc.new_file(str(folder / "log" / "log.arrow"), table.schema) as file:
            file.write_table(table)

    def reference(self, folder: Path) -> Any:
        """Nothing else reads it."""
        return None


class StoreFiles(_Log):
    """The files of a column store, whose source is sound."""

    pattern = "stores/**/*.*"

    def prepare(self, folder: Path) -> None:
        """A store beside ``log.csv``."""
        Csv().prepare(folder)
        self.read(folder)

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """One of its files, often its schema."""
        files = sorted(path for path in (folder / "stores").rglob("*") if path.is_file())
        path = draw.choice([*files, *(file for file in files if file.name == "schema.json")])
        separator = b":" if path.suffix == ".json" else b""
        path.write_bytes(damaged(path.read_bytes(), draw, separator))
        return path

    def reference(self, folder: Path) -> Any:
        """What it was made of."""
        return Csv().reference(folder)


class Raw(Kind):
    """The raw files of Ali-CCP."""

    separator = b"\x01"
    pattern = "*.csv"

    def prepare(self, folder: Path) -> None:
        """The four files."""
        draw = random.Random(0)

        def listed(origin: bool) -> str:
            own = [field for field in FIELDS if (field.origin == "user") == origin]
            features = [
                f"{field.name}\x02{draw.randrange(9)}\x03{draw.choice(('1.0', '0.69315'))}"
                for field in own
                for _ in range(2 if field.multi else 1)
            ]
            return f"{len(features)},{chr(1).join(features)}"

        for split in ("train", "test"):
            common = "".join(f"{n:032x},{listed(True)}\n" for n in range(4))
            (folder / common_name(split)).write_text(common)
            rows = "".join(
                f"{n},{n % 2},{int(n % 4 == 1)},{n % 4:032x},{listed(False)}\n" for n in range(12)
            )
            (folder / skeleton_name(split)).write_text(rows)

    def damage(self, folder: Path, draw: random.Random) -> Path:
        """One of the files, its cells by one of the separators."""
        self.separator = draw.choice((b"\x01", b"\x02", b"\x03", b","))
        return super().damage(folder, draw)

    def read(self, folder: Path) -> Any:
        """Each line with the features of known fields; and a store must come of it."""
        wanted = tuple(field.name for field in FIELDS)
        chosen = Options(wanted, 0.0)
        found = []
        for text in open_texts(find_raw(folder)):
            names = chosen.wanted(text.kind)
            for lines in Text(text, names, "raise", False).lines(lambda _: None):
                features: list[list[Any]] = [[] for _ in lines.number]
                for line, target, own, weight in zip(
                    lines.line, lines.target, lines.feature, lines.weight, strict=True
                ):
                    if target >= 0:
                        features[line].append((names[target], int(own), float(weight)))
                heads = zip(lines.sample, lines.click, lines.purchase, lines.key, strict=True)
                for (sample, click, purchase, key), own in zip(heads, features, strict=True):
                    head = int(sample), int(click), int(purchase), key.decode()
                    found.append((text.split, text.kind, *head, own))
        build(*read_raw(find_raw(folder), chosen), folder / "store", Rules(min_count=1))
        return found

    def reference(self, folder: Path) -> Any:
        """Each line that isn't blank, cut at its separators."""
        found = []
        for split in ("train", "test"):
            for kind, name in (("common", common_name), ("skeleton", skeleton_name)):
                known = {own.name for own in FIELDS if (own.origin == "user") == (kind == "common")}
                for line in (folder / name(split)).read_bytes().split(b"\n"):
                    cells = line.removesuffix(b"\r").decode("latin-1").split(",")
                    if cells == [""]:
                        continue
                    *head, key, _, listed = cells
                    numbers = [int(cell) for cell in head] or [0, 0, 0]
                    features = []
                    for feature in listed.split("\x01") if listed else []:
                        field, _, rest = feature.partition("\x02")
                        own, _, value = rest.partition("\x03")
                        if field in known:
                            features.append((field, int(own), float(np.float32(float(value)))))
                    found.append((split, kind, *numbers, key.lower(), features))
        return found


class Predictions(Kind):
    """A CSV file with labels and predictions, for ``score``."""

    separator = b","

    def prepare(self, folder: Path) -> None:
        """``p.csv``."""
        columns = impressions()
        draw = random.Random(1)
        columns["pctr"], columns["pcvr"] = ([draw.random() for _ in range(ROWS)] for _ in range(2))
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        (folder / "p.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")

    def read(self, folder: Path) -> Any:
        """Labels and predictions."""
        given = read_predictions(None, {"a": folder / "p.csv"}, {})
        own, truth = given.models.get("a"), next(iter(given.models.values())).truth
        if own is None or not {"ctr", "cvr"} <= own.score.keys() or truth.conversion is None:
            return None
        columns = truth.click, truth.conversion, own.score["ctr"], own.score["cvr"]
        return [tuple(map(float, row)) for row in zip(*columns, strict=True)]

    def reference(self, folder: Path) -> Any:
        """Each line is a row."""
        rows = cells_of((folder / "p.csv").read_bytes(), ",")
        wanted = ("click", "conversion", "pctr", "pcvr")
        if not {*wanted} <= {*rows[0]}:
            return None
        cells = (dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row)
        return [
            tuple(0.0 if row[name] in MISSING else float(row[name]) for name in wanted)
            for row in cells
        ]


class Yaml(Kind):
    """A file of settings."""

    separator = b":"
    text = """\
model: ESCM2_DR
dataset: log
data_path: here
epochs: 2
learning_rate: 1e-3
mlp_hidden_size: [8, 4]
metrics: [CTR_AUC, CVR_AUC]
valid_metric: CTR_AUC
eval_args: {split: {RS: [0.8, 0.1, 0.1]}, order: RO, group_by: null, mode: labeled}
numerical_features: [price]
load_col:
  inter: [user_id, item_id, hour, price, click, conversion]
clip_grad_norm: {max_norm: 1.0}
weight_decay: 0.0
seed: 3
show_progress: False
"""

    def prepare(self, folder: Path) -> None:
        """``a.yaml``."""
        (folder / "a.yaml").write_text(self.text)

    def read(self, folder: Path) -> Any:
        """Whether it makes a config."""
        config = Config(None, None, [str(folder / "a.yaml")])
        return config.model_class.__name__


#: By name, those that need no model; see :mod:`fuzzing.models` for others.
OF_DATA: dict[str, type[Kind]] = {
    **{"atomic": Atomic, "csv": Csv, "parquet": Parquet, "arrow": Arrow, "raw": Raw},
    **{"store": StoreFiles, "predictions": Predictions, "yaml": Yaml},
}
