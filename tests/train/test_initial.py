"""Training begins with the weights of a checkpoint, on newer data whose ids are others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.errors import UsageError
from recbole_escm2.model import ESMM
from recbole_escm2.quick_start import run
from recbole_escm2.train.checkpoint import load_checkpoint
from recbole_escm2.train.initial import begin_with

#: Items i0 to i29, i30 being in no row; then i15 to i44.
DAYS = {"monday": range(30), "tuesday": range(15, 45)}


def write_day(folder: Path, name: str, items: range, hours: str = "hour") -> None:
    rng = np.random.default_rng(len(name))
    rows = 1500
    item, user = rng.choice([*items], rows), rng.integers(20, size=rows)
    click = rng.random(rows) < 0.4
    conversion = click & (rng.random(rows) < 0.5)
    columns = {
        "user_id:token": [f"u{u}" for u in user],
        "item_id:token": [f"i{i}" for i in item],
        f"{hours}:token": rng.integers(24, size=rows),
        "price:float": np.round(rng.random(rows), 3),
        "click:float": click.astype(int),
        "conversion:float": conversion.astype(int),
    }
    target = folder / name
    target.mkdir(parents=True)
    lines = zip(*([str(value) for value in values] for values in columns.values()), strict=True)
    text = "\n".join(["\t".join(columns), *("\t".join(line) for line in lines)])
    (target / f"{name}.inter").write_text(text + "\n")
    catalogue = [f"i{i}\tc{i % 3}\tt{i % 5} t{i % 7}" for i in [*items, items[-1] + 1]]
    header = "item_id:token\tcategory:token\ttags:token_seq"
    (target / f"{name}.item").write_text("\n".join([header, *catalogue]) + "\n")


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> Path:
    """A data_path with a day and the next."""
    folder = tmp_path_factory.mktemp("days")
    for name, items in DAYS.items():
        write_day(folder, name, items)
    write_day(folder, "wednesday", DAYS["monday"], hours="minute")
    return folder


@pytest.fixture
def given(days, tmp_path) -> dict[str, Any]:
    return {
        "data_path": str(days),
        "output_dir": str(tmp_path / "output"),
        "numerical_features": ["price"],
        "epochs": 2,
        "train_batch_size": 256,
        "embedding_size": 4,
        "show_progress": False,
    }


def made(given: dict[str, Any], name: str, model: Any = ESMM, **changes: Any) -> tuple[Any, Any]:
    """A new model and its train."""
    config = Config(model, name, config_dict={**given, **changes})
    train = prepare_data(config, EntireSpaceDataset(config))[0].dataset
    torch.manual_seed(1)
    new = config.model_class(config, train)
    if config["init_from"]:
        begin_with(new, config, train)
    return new, train


def table_of(model: Any, train: Any, field: str) -> dict[str, torch.Tensor]:
    """Rows of the table of single-valued fields, by token."""
    at = model.token_field_names.index(field)
    first = int(model.token_embedding_table.offsets[at])
    weight = model.token_embedding_table.embedding.weight.detach()
    return {token: weight[first + n] for n, token in enumerate(train.field2id_token[field])}


@pytest.mark.parametrize("model", ["ESMM", "DeepFM", "FFM"])
def test_old_ids_keep_their_rows_and_new_ones_begin_with_the_mean(given, model, caplog):
    own = {"mlp_hidden_size": [8]} if model != "FFM" else {}
    before = run(model, "monday", config_dict={**given, **own})["run_dir"]
    state = load_checkpoint(Path(before) / "checkpoint.pth")
    with caplog.at_level("INFO"):
        new, train = made(given, "tuesday", model, init_from=before, **own)
    assert re.search(r"item_id 16 ids kept, 15 new, 15 dropped", caplog.text)
    old, trained = made(given, "monday", model, **own)
    old.load_state_dict(state["state_dict"])
    rows, known = table_of(new, train, "item_id"), table_of(old, trained, "item_id")
    for token in (f"i{i}" for i in range(15, 31)):
        assert torch.equal(rows[token], known[token]), token
    counts = trained.train_ids["item_id"]
    mean = sum(known[token] * count for token, count in zip(known, counts, strict=True))
    for token in (f"i{i}" for i in range(31, 46)):
        assert torch.allclose(rows[token], (mean / counts.sum()).float(), atol=1e-6), token
    weights, was = new.state_dict(), state["state_dict"]
    tables = {n for n in was if was[n].shape != weights[n].shape} | {n for n in was if "token" in n}
    assert len(tables) < len(was)
    assert all(torch.equal(weights[name], was[name]) for name in was.keys() - tables)


def test_a_missing_value_has_no_part_in_the_mean(given, tmp_path):
    """Its row is that of no id, as where new rows are scored."""
    for name, later in (("early", 0), ("late", 12)):
        write_day(tmp_path, name, DAYS["monday"])
        file = tmp_path / name / f"{name}.inter"
        header, *lines = (line.split("\t") for line in file.read_text().splitlines())
        at = header.index("hour:token")
        for line in lines:
            line[at] = str(int(line[at]) + later) if int(line[at]) >= 6 else ""
        file.write_text("".join("\t".join(line) + "\n" for line in (header, *lines)))
    own = {**given, "data_path": str(tmp_path)}
    before = run("ESMM", "early", config_dict=own)["run_dir"]
    old, trained = made(own, "early")
    old.load_state_dict(load_checkpoint(Path(before) / "checkpoint.pth")["state_dict"])
    new, train = made(own, "late", init_from=before)
    rows, known = table_of(new, train, "hour"), table_of(old, trained, "hour")
    counts = trained.train_ids["hour"]
    assert counts[0] > 0
    _, *ids = zip(known, counts, strict=True)
    mean = sum(known[token] * count for token, count in ids) / counts[1:].sum()
    fresh = [token for token in rows if token not in known]
    assert fresh
    for token in fresh:
        assert torch.allclose(rows[token], mean.float(), atol=1e-6), token


def test_the_same_data_begins_as_the_checkpoint_is(given):
    before = run("ESMM", "monday", config_dict=given)["run_dir"]
    state = load_checkpoint(Path(before) / "checkpoint.pth")["state_dict"]
    new, _ = made(given, "monday", init_from=f"{before}/checkpoint.pth")
    assert new.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in new.state_dict().items())


def test_what_was_known_before_is_no_unseen_id(given):
    """Else validation would give it the mean, and scoring count it as unknown."""
    before = run("ESMM", "monday", config_dict=given)["run_dir"]
    _, train = made(given, "tuesday", init_from=before)
    _, alone = made(given, "tuesday")
    names = train.field2id_token["item_id"]
    kept = torch.tensor([name in {f"i{i}" for i in range(30)} for name in names])
    more = train.train_ids["item_id"] - alone.train_ids["item_id"]
    assert bool((more[kept] > 0).all())
    assert bool((more[~kept] == 0).all())
    assert train.seen_ids is None or train.seen_ids is train.train_ids


def test_unknown_tokens_row_is_where_new_ids_begin(given):
    """Rare tokens have it in training, which says most of a token that nobody has seen."""
    own = {"min_count": 45}
    before = run("ESMM", "monday", config_dict={**given, **own})["run_dir"]
    old, trained = made(given, "monday", **own)
    old.load_state_dict(load_checkpoint(Path(before) / "checkpoint.pth")["state_dict"])
    new, train = made(given, "tuesday", init_from=before, **own)
    rows, known = table_of(new, train, "item_id"), table_of(old, trained, "item_id")
    lacking = [token for token in rows if token not in known]
    assert lacking
    unknown = trained.field2id_token["item_id"][trained.field2id_token["item_id"].unknown]
    assert all(torch.equal(rows[token], known[unknown]) for token in lacking)


def test_it_learns_from_there(given):
    """A first epoch from a checkpoint is better than one from nothing."""
    own = {"learning_rate": 0.003, "epochs": 10, "stopping_step": 10}
    before = run("ESMM", "monday", config_dict={**given, **own})["run_dir"]
    losses = {}
    for start in (None, before):
        outcome = run("ESMM", "monday", config_dict={**given, "epochs": 1, "init_from": start})
        log = (Path(outcome["run_dir"]) / "run.log").read_text()
        losses[start] = float(re.search(r"epoch 0 train .*ctr (\S+),", log)[1])
        assert ("beginning with the weights of" in log) == (start is not None)
    assert losses[before] < losses[None]


def test_each_of_two_models_has_its_own(given):
    own = {"task": "both", "mlp_hidden_size": [8]}
    before = run("DeepFM", "monday", config_dict={**given, **own})["run_dir"]
    after = run("DeepFM", "tuesday", config_dict={**given, **own, "init_from": before})["run_dir"]
    log = (Path(after) / "run.log").read_text()
    for task in ("ctr", "cvr"):
        assert f"beginning with the weights of {before}/{task}/checkpoint.pth" in log
    file = f"{before}/ctr/checkpoint.pth"
    with pytest.raises(UsageError, match="must be the folder of a run of two models"):
        run("DeepFM", "tuesday", config_dict={**given, **own, "init_from": file})
    alone = {**given, "mlp_hidden_size": [8], "task": "cvr"}
    with pytest.raises(UsageError, match="it is of task ctr, not of cvr"):
        run("DeepFM", "tuesday", config_dict={**alone, "init_from": file})


class Own(ESMM):
    """Has a table of the items beside the features."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.beside = nn.Embedding(dataset.num("item_id"), 2)


def test_what_doesnt_fit_is_refused_by_its_name(given, days):
    before = run("ESMM", "monday", config_dict=given)["run_dir"]
    for changes, name, words in (
        ({"model": "ESCM2_IPS"}, "tuesday", "it is of model ESMM, not of ESCM2_IPS"),
        ({"mlp_hidden_size": [16]}, "tuesday", r"doesn't fit the model: it has towers\.ctr"),
        ({"embedding_size": 8}, "tuesday", r"token_embedding_table.* is float32 \[\d+, 4\] there"),
        ({}, "wednesday", r"its fields are .*hour \(token\).*here they are .*minute"),
        ({"init_from": before + "/none.pth"}, "tuesday", r"^init_from: .*No such file"),
        ({"model": "LogisticRegression"}, "tuesday", "^init_from: LogisticRegression is fitted"),
    ):
        model = changes.pop("model", "ESMM")
        changes = {"init_from": before, **changes}
        idle = ("embedding_size", "epochs", "train_batch_size")
        is_reference = model == "LogisticRegression"
        own = {k: v for k, v in given.items() if not (is_reference and k in idle)}
        with pytest.raises(UsageError, match=words):
            run(model, name, config_dict={**own, **changes})


def test_a_table_of_its_own_can_be_taken_where_no_id_has_changed(given):
    before = run(Own, "monday", config_dict=given)["run_dir"]
    new, _ = made(given, "monday", Own, init_from=before)
    state = load_checkpoint(Path(before) / "checkpoint.pth")["state_dict"]
    assert torch.equal(new.beside.weight, state["beside.weight"])
    with pytest.raises(UsageError, match=r"beside\.weight is a table that the model has made"):
        run(Own, "tuesday", config_dict={**given, "init_from": before})


def test_another_checkpoint_is_another_run(given):
    first, second = (
        run("ESMM", "monday", config_dict={**given, "seed": seed})["run_dir"] for seed in (1, 2)
    )
    names = {
        Path(run("ESMM", "tuesday", config_dict={**given, "init_from": start})["run_dir"]).name[:20]
        for start in (first, second, None)
    }
    assert len(names) == 3
