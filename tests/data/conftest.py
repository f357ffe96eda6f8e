import numpy as np
import pandas as pd
import pytest
import torch
from recbole.utils import FeatureSource

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset

FEATURE_SOURCES = [
    FeatureSource.INTERACTION,
    FeatureSource.USER,
    FeatureSource.USER_ID,
    FeatureSource.ITEM,
    FeatureSource.ITEM_ID,
]
PARTS = ("train", "valid", "test")


class Toy:
    """Atomic files of a small data set: 6 users x 10 items, every pair an impression.

    ``table`` holds what goes into the files, all of it text; a test changes it first. The token
    column ``row`` tells impressions apart after any shuffle, filter and split.
    """

    def __init__(self, folder):
        self.data_path = folder
        self.folder = folder / "toy"
        self.folder.mkdir()
        pair = np.random.default_rng(3).permutation(60)
        n = np.arange(60)
        self.table = pd.DataFrame(
            {
                "user_id:token": [f"u{p // 10}" for p in pair],
                "item_id:token": [f"i{p % 10}" for p in pair],
                "row:token": [f"r{i}" for i in n],
                "click:float": (n % 3 == 0).astype(int).astype(str),
                "conversion:float": (n % 6 == 0).astype(int).astype(str),
            }
        )

    def with_outcomes(self):
        """Add potential outcomes that tell most rows apart."""
        n = np.arange(60)
        self.table["potential_conversion:float"] = (n % 6 < 2).astype(int).astype(str)
        self.table["true_ctr:float"] = [f"{(i + 1) / 64}" for i in n]
        self.table["true_cvr:float"] = [f"{(63 - i) / 64}" for i in n]
        return self

    def rename(self, **headers):
        """Give columns other headers: ``click="clicked:token"``."""
        by_field = {header.partition(":")[0]: header for header in self.table}
        self.table = self.table.rename(columns={by_field[k]: v for k, v in headers.items()})
        return self

    def file(self, suffix):
        return self.folder / f"toy.{suffix}"

    def write(self, suffix="inter", table=None):
        table = self.table if table is None else table
        table.to_csv(self.file(suffix), sep="\t", index=False)

    def write_parts(self, *ends):
        """Write the table as pre-split files and say so in the settings to use."""
        for name, start, end in zip(PARTS, (0, *ends), (*ends, 60), strict=True):
            self.write(f"{name}.inter", self.table[start:end])
        return {"benchmark_filename": list(PARTS)}

    def config(self, model="ESMM", **settings):
        return Config(model, "toy", config_dict={"data_path": str(self.data_path), **settings})

    def dataset(self, model="ESMM", **settings):
        if not any(self.folder.glob("*.inter")):
            self.write()
        return EntireSpaceDataset(self.config(model, **settings))

    def build(self, model="ESMM", **settings):
        return self.dataset(model, **settings).build()


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.fixture
def rows_of():
    """Numbers of the table's rows that splits hold, in their order."""

    def rows(*splits):
        ids = np.concatenate([split.inter_feat["row"].numpy() for split in splits])
        return [int(token[1:]) for token in splits[0].id2token("row", ids)]

    return rows


@pytest.fixture
def features_of():
    """Names of the features that any of RecBole's models would ask a data set for."""
    return lambda dataset: set(dataset.fields(source=FEATURE_SOURCES))


@pytest.fixture
def together():
    """All rows of some splits, joined, in the order of the row ids (or of another column)."""

    def collect(splits, key="row"):
        batches = [split[torch.arange(len(split))] for split in splits]
        columns = {k: torch.cat([batch[k] for batch in batches]) for k in batches[0]}
        order = columns[key].argsort()
        return {k: column[order] for k, column in columns.items()}

    return collect
