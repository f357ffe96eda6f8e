"""Where embedding tables are, and why not elsewhere."""

import logging
import resource

import pytest

from recbole_escm2 import placement, threads
from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.placement import check_sharding, place_tables

SHARDS = {"embedding_optimizer": "adagrad", "embedding_size": 8, "use_gpu": False}


@pytest.fixture
def made(monkeypatch):
    """A config of one of two processes, with TorchRec installed."""
    monkeypatch.setattr(placement, "world_size", lambda: 2)
    monkeypatch.setattr(placement, "find_spec", lambda module: module)
    monkeypatch.setattr(placement, "import_module", lambda module: module)

    def make(**settings):
        return Config("ESMM", "none", config_dict={**SHARDS, **settings})

    return make


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embedding_optimizer": "adam"}, "no Adam on a CPU, .* set embedding_optimizer: adagrad"),
        ({"embedding_optimizer": None}, "has no Adam on a CPU"),
        ({"embedding_optimizer": None, "learner": "sgd"}, "adagrad or adam, got sgd"),
        ({"embedding_size": 6}, "an embedding_size that 4 divides, got 6"),
        ({"weight_decay": 0.1}, "doesn't go with weight_decay: a row is moved as its gradient"),
        ({"embedding_weight_decay": 0.1}, "doesn't go with embedding_weight_decay"),
        ({"weight_averaging": 0.5}, "doesn't go with weight_averaging"),
        ({"clip_grad_norm": {"max_norm": 1.0}}, "doesn't go with clip_grad_norm"),
        ({"enable_amp": True}, "doesn't go with enable_amp"),
        ({"init_from": "output"}, "doesn't go with init_from"),
    ],
)
def test_what_shards_do_not_go_with_is_refused_by_name(made, settings, words):
    made(embedding_placement="sharded")
    made(**settings)
    with pytest.raises(UsageError, match=f"^embedding_placement: sharded .*{words}"):
        made(embedding_placement="sharded", **settings)


def test_shards_need_processes_and_torchrec(made, monkeypatch):
    config = made()
    monkeypatch.setattr(placement, "world_size", lambda: 1)
    with pytest.raises(UsageError, match="among processes, and there is one: start it by torchrun"):
        check_sharding(config)
    monkeypatch.setattr(placement, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match="needs fbgemm_gpu, torchrec, which isn't installed"):
        check_sharding(config)


def test_a_penalty_by_default_gives_way_to_shards(made, caplog):
    settings = {**SHARDS, "embedding_placement": "sharded"}
    assert Config("ESMM", "coat", None, settings)["embedding_weight_decay"] == 0
    assert "ESMM trains without L2 on the embedding: embedding_placement: sharded" in caplog.text


def test_shards_are_for_tables_of_entire_space_models(made):
    config = made(embedding_placement="sharded")
    assert place_tables(config, 100, can_be_sharded=True) > 0
    with pytest.raises(UsageError, match=r"MLP backbones .* and ESMM with backbone separate isn't"):
        place_tables(config, 100, can_be_sharded=False)


def test_what_sets_logging_up_for_all_is_taken_back(caplog):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with placement.without_notes():
        root.addHandler(logging.StreamHandler())
        root.setLevel(logging.DEBUG)
        root.warning("a plan")
        root.error("a failure")
    root.warning("later")
    assert (root.handlers, root.level) == (handlers, level)
    assert caplog.messages == ["a failure", "later"]


@pytest.mark.parametrize(
    ("rows", "changes", "sharded", "said"),
    [
        (70, {}, False, "replicated, since whole tables take"),
        (90, {}, True, "sharded, since whole tables take"),
        (90, {"weight_averaging": 0.5}, False, "sharded doesn't go with weight_averaging"),
        (70, {"sparse_embedding": False}, True, "sharded, since"),  # with their gradients
    ],
)
def test_auto_goes_by_memory(made, monkeypatch, caplog, rows, changes, sharded, said):
    """Tables with Adagrad's sums, of 8 columns: 64 bytes a row, and 96 with dense gradients."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(placement, "free_memory", lambda processes: 2 * 80 * 64.0)
    config = made(**{"embedding_placement": "auto", "sparse_embedding": True, **changes})
    room = place_tables(config, rows, can_be_sharded=True)
    assert room == (int(0.9 * 2 * 80 * 64) if sharded else None)
    assert config["embedding_placement"] == ("sharded" if sharded else "replicated")
    assert said in caplog.text


def test_free_memory_is_of_the_machine_the_groups_and_the_limit(tmp_path, monkeypatch):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (groups / "job").mkdir(parents=True)
    no_limit = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda what: (no_limit, no_limit))
    assert threads.free_memory(2, proc, groups) == float("inf")
    (proc / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    assert threads.free_memory(2, proc, groups) == 8000 * 1024 / 2
    (proc / "self" / "cgroup").write_text("0::/job\n")
    (groups / "memory.max").write_text("max\n")
    (groups / "job" / "memory.max").write_text("6000\n")
    (groups / "job" / "memory.current").write_text("2000\n")
    assert threads.free_memory(2, proc, groups) == 2000
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2048, no_limit))
    (proc / "self" / "status").write_text("VmSize: 9 kB\nVmData:	1 kB\n")
    assert threads.free_memory(2, proc, groups) == 1024
