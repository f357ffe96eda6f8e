"""Tables in shards of several processes, by torchrun: in the environment that
scripts/torchrec_environment.sh makes; elsewhere these are skipped.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.checkpoint import load_checkpoint

RANKS = Path(__file__).parent / "sharded_ranks.py"
pytestmark = pytest.mark.skipif(
    any(find_spec(module) is None for module in ("fbgemm_gpu", "torchrec")),
    reason="TorchRec isn't installed: scripts/torchrec_environment.sh makes an environment with it",
)


@pytest.fixture
def ranks(settings, tmp_path):
    """Runs a case of sharded_ranks.py on some processes, and gives what the first one found."""

    def do(case: str, processes: int, only=None, **changes):
        file = tmp_path / "settings.json"
        given = {**settings, "use_gpu": False} if only is None else only
        file.write_text(json.dumps({**given, **changes}))
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *start, str(RANKS), case, str(file)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=570,
            # Arrow's own allocator reserves a GiB that it doesn't use.
            env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "found.json").read_text())

    return do


@pytest.mark.parametrize("processes", [2, 3])
def test_shards_learn_what_whole_tables_learn(ranks, processes):
    """From equal weights, by elementwise Adagrad; with weighted values and a rank without rows."""
    width = 8 if processes == 2 else 12
    for case, found in ranks("steps", processes, embedding_size=width).items():
        assert found["at_first"] == 0, case  # as one process would have drawn them
        assert found["losses"] < 1e-6, case
        assert found["weights"] < 1e-5, case
        assert found["sums"] < 1e-6, case
        narrow = found["columns"] and max(found["columns"]) == 4
        assert narrow if case.startswith("column_wise") else set(found["columns"]) == {width}


def test_a_run_goes_on_and_each_takes_the_others_files(ranks, settings, places, tmp_path):
    changes = {"embedding_optimizer": "adagrad", "save_interval": 0, "train_batch_size": 512}
    found = ranks("runs", 2, **changes, embedding_placement="sharded")["runs"]
    whole, gone_on = found
    assert whole["test_result"] == gone_on["test_result"]
    log = (Path(gone_on["run_dir"]) / "run.log").read_text()
    assert log.count("going on with ") == 1
    files = [Path(one["run_dir"]) / "checkpoint.pth" for one in found]
    undisturbed, other = map(load_checkpoint, files)
    for name, value in undisturbed["state_dict"].items():
        assert value.equal(other["state_dict"][name]), name

    scored = evaluate_checkpoint(files[0], config_dict=places)["test_result"]
    assert scored == pytest.approx(whole["test_result"], abs=1e-6)
    alone = {**settings, **changes, "use_gpu": False}
    result = run("ESMM", "tiny", config_dict={**alone, "output_dir": str(tmp_path / "alone")})
    assert result["test_result"] == pytest.approx(whole["test_result"], abs=1e-3)

    (left,) = (tmp_path / "left").iterdir()  # killed on two processes, it goes on on one
    gone = run("ESMM", "tiny", config_dict={**alone, "output_dir": str(tmp_path / "left")})
    assert Path(gone["run_dir"]) == left
    assert gone["test_result"] == pytest.approx(whole["test_result"], abs=1e-3)


@pytest.fixture
def tall(tmp_path):
    """Settings of a run whose table, as large as its optimizer's, no process can hold.

    Of 320 MiB, as much again for Adagrad: 1.5 times what each of two processes may take.
    """
    room, width = (640 << 20) * 2 // 3, 1024
    ids = (320 << 20) // (4 * width)
    folder = tmp_path / "data" / "tall"
    folder.mkdir(parents=True)
    rows = [
        f"u{number % 9}\ti{number * 37 % ids}\t{number % 2}\t{number % 4 // 3}"
        for number in range(2000)
    ]
    header = "user_id:token\titem_id:token\tclick:float\tconversion:float"
    (folder / "tall.inter").write_text("\n".join([header, *rows]) + "\n")
    items = [f"i{number}\t{number % 7}" for number in range(ids)]
    (folder / "tall.item").write_text("\n".join(["item_id:token\tkind:token", *items]) + "\n")
    return {
        "data_path": str(tmp_path / "data"),
        "numerical_features": [],
        "embedding_size": width,
        "embedding_optimizer": "adagrad",
        "sparse_embedding": True,
        "save_interval": None,
        "epochs": 1,
        "room": room,
    }


def test_a_table_that_no_process_can_hold(ranks, tall):
    alone = ranks("limited", 1, **tall)
    assert "ESMM on tall doesn't fit into memory" in alone["said"]
    shared = ranks("limited", 2, **tall, embedding_placement="auto")
    log = (Path(shared["run_dir"]) / "run.log").read_text()
    assert "embedding_placement: sharded, since whole tables take 0.63 GiB" in log
    file = Path(shared["run_dir"]) / "checkpoint.pth"
    saved = load_checkpoint(file)
    assert (
        saved["state_dict"]["token_embedding_table.embedding.weight"].nbytes > tall["room"] * 0.74
    )
    assert saved["training_ended"]
    del saved
    places = {"data_path": tall["data_path"], "room": tall["room"]}
    only = {**places, "embedding_placement": "sharded", "checkpoint": str(file)}
    assert ranks("limited", 2, only=only)["test_result"] == shared["test_result"]


def test_a_run_whose_table_no_process_can_hold_goes_on(ranks, tall):
    steps = {"train_batch_size": 800, "save_interval": 0, "embedding_placement": "sharded"}
    assert ranks("limited", 2, **{**tall, **steps}, kill=1) == {}  # before the second step
    gone_on = ranks("limited", 2, **{**tall, **steps})
    assert "said" not in gone_on, gone_on["said"]
    assert (Path(gone_on["run_dir"]) / "run.log").read_text().count("going on with ") == 1
