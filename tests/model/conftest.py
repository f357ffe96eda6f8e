from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_escm2.config import Config, acting_settings
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.lookup import find_model
from recbole_escm2.train.run import Run
from recbole_escm2.train.trainer import EntireSpaceTrainer

SETTINGS = {
    "use_gpu": False,
    "state": "ERROR",
    "embedding_size": 4,
    "mlp_hidden_size": [16, 8],
    "train_batch_size": 64,
}
# Every kind of feature, from all three files: ids, a token sequence, a float, a discretised float.
SHOP = {
    "numerical_features": ["age", "price"],
    "normalize_field": ["age"],
    "discretization": {"price": {"method": "ED", "bucket": 4}},
}
# Impressions without user and item ids.
ROWS = {"USER_ID_FIELD": None, "ITEM_ID_FIELD": None}


def write(folder, suffix, header, rows):
    folder.mkdir(exist_ok=True)
    lines = [header, *rows]
    text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
    (folder / f"{folder.name}.{suffix}").write_text(text)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other on busy cores make tiny models ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def impressions_path(tmp_path_factory):
    """Atomic files of the data sets ``shop``, ``tokens`` (its labels declared so) and ``rows``.

    The first two have a logged propensity.
    """
    root = tmp_path_factory.mktemp("impressions")
    draw = np.random.default_rng(7)

    def tags():
        return " ".join(draw.choice(list("abcdef"), draw.integers(1, 4), replace=False))

    def labels(n):
        click = draw.random(n) < 0.4
        return np.stack([click, click & (draw.random(n) < 0.4)], axis=1).astype(int).tolist()

    users = [[f"u{i}", draw.integers(18, 70)] for i in range(20)]
    items = [[f"i{i}", tags(), round(draw.uniform(1, 9), 2)] for i in range(15)]
    pairs = [[f"u{draw.integers(20)}", f"i{draw.integers(15)}"] for _ in range(240)]
    logged = [round(0.05 + 0.9 * (n * 37 % 240) / 240, 4) for n in range(240)]
    shown = [[*p, *o_r, w] for p, o_r, w in zip(pairs, labels(240), logged, strict=True)]
    plain = [[tags(), f"k{draw.integers(5)}", round(draw.normal(), 3), *o_r] for o_r in labels(120)]
    for name, kind in {"shop": "float", "tokens": "token"}.items():
        header = ["user_id:token", "item_id:token", f"click:{kind}", f"conversion:{kind}"]
        header += [f"propensity:{kind}"]
        write(root / name, "inter", header, shown)
        write(root / name, "user", ["user_id:token", "age:float"], users)
        write(root / name, "item", ["item_id:token", "tags:token_seq", "price:float"], items)
    header = ["tags:token_seq", "kind:token", "x:float", "click:float", "conversion:float"]
    write(root / "rows", "inter", header, plain)
    return root


@pytest.fixture
def configure(impressions_path):
    """Config of a model on one of the data sets."""

    def configure(model, dataset="shop", **settings):
        own = ROWS if dataset == "rows" else SHOP
        backbone = settings.get("backbone", "separate")
        usual = acting_settings(find_model(model), {"backbone": backbone, **SETTINGS})
        usual.pop("backbone", None)
        config_dict = {**usual, **own, "data_path": str(impressions_path), **settings}
        return Config(model, dataset, config_dict=config_dict)

    return configure


@pytest.fixture
def build_acting(build):
    """As ``build``, with those of the settings that act on the model."""

    def build_acting(model, **settings):
        given = {"backbone": "separate", **settings}
        return build(model, **acting_settings(find_model(model), given))

    return build_acting


@pytest.fixture
def build(configure):
    """A model of the same initial weights each time, with its config, loaders and a batch."""

    def build(model, dataset="shop", **settings):
        config = configure(model, dataset, **settings)
        train, valid, _ = prepare_data(config, EntireSpaceDataset(config))
        torch.manual_seed(0)
        return SimpleNamespace(
            config=config,
            model=config.model_class(config, train.dataset),
            train=train,
            valid=valid,
            batch=next(iter(train)),
        )

    return build


@pytest.fixture
def trainer_of(tmp_path):
    """The real trainer of a model, with its files in a folder that goes away."""

    def trainer_of(built):
        return EntireSpaceTrainer(built.config, built.model, Run(tmp_path))

    return trainer_of
