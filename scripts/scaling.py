"""Bytes that a training step sends, counted, and what they come to on other machines.

    python scripts/scaling.py [--ranks 2 3] [--link 10e-6:200e9] [--net 30e-6:25e9] [--memory 78]

Processes that torchrun starts train ESMM on data made here, and each operation of torch.distributed
is looked at as it is begun (gloo on CPUs): how many bytes leave a process in it. The sums are held
against the formulas below, and have to be equal. Then the formulas are asked about tables and
numbers of processes that aren't at hand, with a latency and a bandwidth as given.

Shards of tables are counted where TorchRec is installed (scripts/torchrec_environment.sh).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FLOAT, LONG = 4, 8  # bytes
PLACEMENTS = ("dense", "sparse", "table_wise", "column_wise")
_SHARDED = ("table_wise", "column_wise")
_NOT_COUNTED = "row_wise"  # which TorchRec's planner has for GPUs only
_COUNTED_STEP = 3  # from 1: DistributedDataParallel orders its buckets anew in the second one
_TIMED_STEPS = 5
_SIZES = 4  # numbers that say how much of what comes, from each process to each
_EXCHANGES = 6  # all-to-alls: those, lengths, ids, weights, embeddings and their gradients


class Case(NamedTuple):
    """A model and a batch.

    Attributes:
        batch: impressions of all processes together. ranks: of them.
        rows: of all tables. width: of the embeddings.
        single: fields of one id. bags: fields of several, each of ``bag`` ids in a row.
        dense: weights outside of the tables.
        columns: numbers a row of which every process makes the loss: labels and logits.
    """

    batch: int
    ranks: int
    rows: int
    width: int
    single: int
    bags: int
    bag: int
    dense: int
    columns: int

    @property
    def ids(self) -> int:
        """Ids a row."""
        return self.single + self.bags * self.bag

    @property
    def fields(self) -> int:
        """Token fields."""
        return self.single + self.bags


# --------------------------------------------------------------------------- the formulas


def reduced(numbers: float, ranks: int) -> float:
    """Bytes that all processes send to have the sum of float32 numbers on each: a ring."""
    return 2 * (ranks - 1) * numbers * FLOAT


def gathered(of_each: float, ranks: int) -> float:
    """Bytes that all processes send to have what each has, ``of_each`` bytes, on every other."""
    return ranks * (ranks - 1) * of_each


def step_bytes(
    case: Case, placement: str, distinct: float, shards: int | None = None
) -> dict[str, float]:
    """Bytes that leave the processes in a step, of all of them together, by what they are.

    Args:
        case: model and batch; of each process as many rows.
        placement: ``dense`` or ``sparse`` gradients of whole tables; shards of whole tables
            (``table_wise``), of columns or of rows.
        distinct: different rows of tables that the ids of a process name.
        shards: of all tables together; by default :func:`shards_of`.

    Returns:
        ``loss``: what the loss is made of; ``gradients``: of what is in every process; ``ids``, to
        the shards, with their weights, and a length a field and row; ``embeddings``, from them,
        and their gradients back.
    """
    own = case.batch / case.ranks
    found = {"loss": gathered(own * case.columns * FLOAT, case.ranks)}
    found["gradients"] = reduced(case.dense, case.ranks)
    if placement == "dense":
        found["gradients"] += reduced(case.rows * case.width, case.ranks)
        return found
    if placement == "sparse":
        found["gradients"] += gathered(distinct * (LONG + case.width * FLOAT), case.ranks)
        return found
    away = (case.ranks - 1) / case.ranks  # of a thing that each process has a part of
    pairs = case.batch * case.ids * (LONG + FLOAT)  # an id and its weight
    lengths = case.batch * case.fields * LONG
    vectors = case.batch * case.fields * case.width * FLOAT
    found["ids"] = case.ranks * (case.ranks - 1) * _SIZES * LONG
    if placement == "row_wise":  # each id to one shard, and from each a partial sum of each field
        found["ids"] += away * pairs + (case.ranks - 1) * lengths
        found["embeddings"] = 2 * (case.ranks - 1) * vectors
    else:
        copies = (shards_of(case, placement) if shards is None else shards) / case.fields
        found["ids"] += away * copies * (pairs + lengths)
        found["embeddings"] = 2 * away * vectors
    return found


def shards_of(case: Case, placement: str) -> int:
    """How many shards there are of all tables, as this package has TorchRec plan them."""
    if placement == "row_wise":
        return case.fields * case.ranks
    if placement != "column_wise":
        return case.fields
    narrowest = max(4, case.width // case.ranks // 4 * 4)
    return case.fields * (case.width // narrowest)


def gibibytes(case: Case, placement: str) -> float:
    """What tables, Adagrad's sums and gradients of the tables' size take of the fullest process."""
    whole = case.rows * case.width * FLOAT / 2**30
    if placement in ("dense", "sparse"):
        return whole * (3 if placement == "dense" else 2)
    shards = shards_of(case, placement)
    return 2 * whole * math.ceil(shards / case.ranks) / shards


def milliseconds(case: Case, placement: str, distinct: float, link: tuple[float, float]) -> float:
    """What sending takes the process that sends most, if nothing is computed meanwhile.

    Args:
        link: seconds a message, and bytes a second, of each process.
    """
    latency, bandwidth = link
    sent = step_bytes(case, placement, distinct)
    others, shards = case.ranks - 1, shards_of(case, placement)
    fullest = math.ceil(shards / case.ranks) * case.ranks / shards  # of the mean
    of_shards = sent.pop("ids", 0) + sent.pop("embeddings", 0)
    messages = 3 * others  # an all-gather, and a ring there and back
    messages += {"dense": 0, "sparse": 3 * others}.get(placement, _EXCHANGES * others)
    bytes_sent = (sum(sent.values()) + of_shards * fullest) / case.ranks
    return 1e3 * (latency * messages + bytes_sent / bandwidth)


def distinct_ids(case: Case) -> float:
    """Different ids in the rows of a process, where each field's follow Zipf's law."""
    rows = max(1, case.rows // case.fields)
    own = case.batch / case.ranks
    return sum(
        fields * _distinct(rows, own * drawn)
        for fields, drawn in ((case.single, 1), (case.bags, case.bag))
        if fields
    )


@cache
def _distinct(rows: int, drawn: float) -> float:
    """The mean number of different ones among so many draws, the n-th with probability ~ 1/n."""
    edges = np.unique(np.geomspace(1, rows + 1, 20_000).astype(np.int64))  # alike between two
    middle, many = (edges[:-1] + edges[1:] - 1) / 2, np.diff(edges)
    share = many / middle
    probability = share / share.sum() / many
    return float(many @ -np.expm1(drawn * np.log1p(-np.minimum(probability, 1 - 1e-12))))


# --------------------------------------------------------------------------- counting


class Counting(TorchDispatchMode):
    """Counts the bytes that leave this process, by the operation of torch.distributed.

    An all-reduce is taken for a ring's, and what it sends for the number that each process has of
    it in the mean; what is sent to oneself isn't counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").rstrip("_")
            self.calls[name] += 1
            self.sent[name] += _SENT[name](*args)
        return func(*args, **(kwargs or {}))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sent_by_all_reduce(tensors: list[Tensor], *_: Any) -> float:
    (tensor,), ranks = tensors, dist.get_world_size()
    if not tensor.is_sparse:
        return 2 * (ranks - 1) * _size(tensor) / ranks
    own = tensor.coalesce()  # gloo sends each its indices and values
    return (ranks - 1) * (_size(own.indices()) + _size(own.values()))


def _sent_by_all_to_all(_: Tensor, own: Tensor, group: Any, into: Any, sizes: Any, *__: Any) -> int:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = list(sizes) or [len(own) // ranks] * ranks
    return (sum(rows) - rows[rank]) * (_size(own) // max(len(own), 1))


_SENT = {
    "allreduce": _sent_by_all_reduce,
    "allgather": lambda into, own, *_: (dist.get_world_size() - 1) * _size(own[0]),
    "alltoall_base": _sent_by_all_to_all,
}


# --------------------------------------------------------------------------- a process


def write_data(folder: Path, rows: int, shape: Case, ids: int | None = None) -> None:
    """A table of impressions.

    Args:
        folder: the data_path.
        rows: how many impressions.
        shape: how many fields of which kind.
        ids: that a field has. By default none stands twice, so that it is known how many ids of a
            batch are distinct.
    """
    import pyarrow as pa
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    click = rng.random(rows) < 0.3
    columns: dict[str, Any] = {
        "user_id" if not n else "item_id" if n == 1 else f"field{n}": rng.permutation(rows)
        % (ids or rows)
        for n in range(shape.single)
    }
    bag = shape.bag
    for n in range(shape.bags):
        values = pa.array(rng.permutation(rows * bag) % (ids or rows * bag))
        columns[f"bag{n}"] = pa.ListArray.from_arrays(
            np.arange(rows + 1, dtype=np.int32) * bag, values
        )
    columns |= {"click": click, "conversion": click & (rng.random(rows) < 0.3)}
    (folder / "made").mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), folder / "made" / "made.parquet")


def trainer_of(settings: dict[str, Any], placement: str) -> tuple[Any, Any]:
    """A trainer, and its batches."""
    from recbole.utils import init_seed

    from recbole_escm2.config import Config
    from recbole_escm2.data import EntireSpaceDataset, prepare_data
    from recbole_escm2.distributed import is_main, main_first
    from recbole_escm2.model import ESMM
    from recbole_escm2.model.draws import Draws
    from recbole_escm2.model.sharded import Room, shard
    from recbole_escm2.train.run import Run
    from recbole_escm2.train.trainer import EntireSpaceTrainer

    own = {"sparse_embedding": placement == "sparse"}
    if placement in _SHARDED:
        own = {"embedding_placement": "sharded", "embedding_optimizer": "adagrad"}
    config = Config("ESMM", "made", config_dict={**settings, **own})
    with main_first():
        data = EntireSpaceDataset(config)
    train = prepare_data(config, data)[0]
    init_seed(7, True)
    if placement in _SHARDED:
        with Draws() as draws:
            model = ESMM(config, train.dataset)
        room = Room(1 << 30, config["train_batch_size"], (placement,))
        shard(model, draws, ("adagrad", 0.01), room)
    else:
        model = ESMM(config, train.dataset)
    folder = Path(settings["output_dir"]) / placement
    folder.mkdir(parents=True, exist_ok=True)
    return EntireSpaceTrainer(config, model, Run(folder, written=is_main())), train


def counted(settings: dict[str, Any], placement: str) -> dict[str, Any]:
    """What a step sends and takes, in these processes."""
    from recbole_escm2.distributed import sum_over_ranks, world_size

    trainer, train = trainer_of(settings, placement)
    if world_size() > 1:
        trainer._parallel = trainer._in_parallel(train)
    trainer.model.train()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    count, taken = Counting(), []
    for step, batch in enumerate(train, start=1):
        started = time.process_time()
        if step == _COUNTED_STEP:
            with count:
                trainer._train_step(batch, None, scaler, {})
        elif step <= _COUNTED_STEP + _TIMED_STEPS:
            trainer._train_step(batch, None, scaler, {})
            taken.append(time.process_time() - started)
        else:
            break
    names = ("allreduce", "allgather", "alltoall_base")
    own = torch.tensor([float(count.sent[name]) for name in names], dtype=torch.float64)
    parameters = dict(trainer.model.named_parameters())
    tables = {n: p for n, p in parameters.items() if "embedding_table" in n}
    sharded = getattr(trainer.model, "sharded", None)
    shards = torch.tensor(float(len(list(sharded.shards())) if sharded else 0))
    return {
        "sent": dict(zip(names, sum_over_ranks(own).tolist(), strict=True)),
        "calls": dict(count.calls),
        "rows": sum(len(p) for p in tables.values()),
        "dense": sum(p.numel() for n, p in parameters.items() if n not in tables),
        "shards": int(sum_over_ranks(shards)),
        "cpu_seconds": min(taken),
    }


def process(folder: Path) -> None:
    """What torchrun starts: all placements that there are, one after the other."""
    from recbole_escm2.distributed import is_main, process_group, world_size

    torch.set_num_threads(1)
    settings = json.loads((folder / "settings.json").read_text())
    placements = settings.pop("placements")
    with process_group():
        found = {own: counted(settings, own) for own in placements}
        if is_main():
            (folder / f"found-{world_size()}.json").write_text(json.dumps(found))


def placements_here() -> list[str]:
    """Those that can be counted in this environment."""
    has_shards = all(find_spec(module) for module in ("torchrec", "fbgemm_gpu"))
    return [own for own in PLACEMENTS if has_shards or own not in _SHARDED]


def count(ranks: int, folder: Path, shape: Case, layers: Sequence[int] = (8,)) -> dict[str, Any]:
    """What each placement sends in a step of so many processes, counted, and the CPU time it takes.

    Args:
        ranks: processes. folder: with :func:`write_data`'s data.
        shape: batch and width. layers: of the towers.
    """
    settings = {
        **{"data_path": str(folder), "output_dir": str(folder / "output"), "use_gpu": False},
        **{"train_batch_size": shape.batch, "embedding_size": shape.width, "state": "error"},
        **{"mlp_hidden_size": list(layers), "show_progress": False, "epochs": 1},
        "placements": placements_here() if ranks > 1 else ["dense", "sparse"],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    subprocess.run(
        [sys.executable, *(start if ranks > 1 else ()), __file__, "--process", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=900,
    )
    found: dict[str, Any] = json.loads((folder / f"found-{ranks}.json").read_text())
    return found


def formula(shape: Case, placement: str, found: Mapping[str, Any]) -> dict[str, float]:
    """What :func:`count` is to have found: bytes by operation.

    Args:
        shape: model and batch.
        placement: of the tables.
        found: of the model, its rows, weights outside of the tables, and shards.
    """
    case = shape._replace(dense=found["dense"], rows=found["rows"])
    distinct = case.batch // case.ranks * case.ids  # the data has each id once
    sent = step_bytes(case, placement, distinct, found["shards"])
    return {
        "allreduce": sent["gradients"],
        "allgather": sent["loss"],
        "alltoall_base": sent.get("ids", 0.0) + sent.get("embeddings", 0.0),
    }


# --------------------------------------------------------------------------- what is asked

_SMALL = Case(60, 2, 0, 8, 3, 1, 4, 0, 6)
_SMALL_ROWS = 900
#: Two towers of 320, 200 and 80 over 18 fields of width 16; and over one of width 64 and 17 of it.
_TOWERS = 345_000


class Asked(NamedTuple):
    """A model and processes that aren't at hand, and what goes with them."""

    case: Case
    on_cards: bool


ASKED: Mapping[str, Asked] = {
    "Ali-CCP, 8 cards": Asked(Case(8 * 4096, 8, 1_280_000, 16, 14, 4, 125, _TOWERS, 6), True),
    "A table of a billion rows of 64 numbers, 64 cards": Asked(
        Case(64 * 4096, 64, 10**9, 64, 1, 0, 0, _TOWERS, 6), True
    ),
    "Ali-CCP, 8 machines without cards": Asked(
        Case(8 * 4096, 8, 1_280_000, 16, 14, 4, 125, _TOWERS, 6), False
    ),
}
_ROWS = (10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
_RANKS = (2, 8, 64)
_NAMES = {
    "dense": "whole, dense gradients",
    "sparse": "whole, sparse gradients",
    "table_wise": "shards of tables",
    "column_wise": "shards of columns",
    "row_wise": "shards of rows",
}


class Machines(NamedTuple):
    """Latency and bandwidth, between 8 cards of a machine and between machines; GiB of each."""

    link: tuple[float, float]
    net: tuple[float, float]
    memory: float

    def between(self, asked: Asked, ranks: int) -> tuple[float, float]:
        """Of so many processes."""
        return self.link if asked.on_cards and ranks <= 8 else self.net


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted_table(found: Mapping[tuple[int, str], Mapping[str, Any]]) -> str:
    """Bytes as they were counted, by processes and placement."""
    rows = []
    for (ranks, placement), own in found.items():
        sent = [f"{own['sent'][name]:,.0f}" for name in ("allgather", "allreduce", "alltoall_base")]
        calls = str(sum(own["calls"].values()))
        rows.append([f"{ranks}, {_NAMES[placement]}", *sent, calls])
    names = ("all-gather", "all-reduce", "all-to-all", "operations")
    return table(["processes, tables", *names], rows)


def asked_table(asked: Asked, machines: Machines) -> str:
    """What each placement of a model's tables takes."""
    case, rows = asked.case, []
    distinct = distinct_ids(case)
    for placement in (*PLACEMENTS, _NOT_COUNTED):
        memory = gibibytes(case, placement)
        sent = sum(step_bytes(case, placement, distinct).values()) / case.ranks / 2**20
        taken = milliseconds(case, placement, distinct, machines.between(asked, case.ranks))
        fits = "" if memory <= machines.memory else " (too much)"
        rows.append([_NAMES[placement], f"{memory:,.2f}{fits}", f"{sent:,.1f}", f"{taken:,.2f}"])
    return table(["tables", "GiB of the fullest", "MiB sent a process", "ms"], rows)


def winners_table(asked: Asked, machines: Machines) -> str:
    """The placement that sends for the least time among those that go and fit."""
    of_each = asked.case.batch // asked.case.ranks
    lines = []
    for rows in _ROWS:
        line = [f"{rows:,}"]
        for ranks in _RANKS:
            case = asked.case._replace(rows=rows, ranks=ranks, batch=of_each * ranks)
            distinct, link = distinct_ids(case), machines.between(asked, ranks)
            taken = {
                placement: milliseconds(case, placement, distinct, link)
                for placement in PLACEMENTS
                if gibibytes(case, placement) <= machines.memory
                and not (asked.on_cards and placement == "sparse")
            }
            best = min(taken, key=taken.__getitem__, default="")
            line.append(f"{_NAMES[best]}, {taken[best]:,.2f} ms" if best else "none fits")
        lines.append(line)
    return table(["rows of all tables", *(f"{ranks} processes" for ranks in _RANKS)], lines)


def asked_text(machines: Machines) -> str:
    """All that follows from the formulas."""
    parts = []
    for name, asked in ASKED.items():
        case = asked.case
        fields = f"{case.fields} field{'s' if case.fields > 1 else ''} of width {case.width}"
        parts.append(f"{name}:\n\n{asked_table(asked, machines)}")
        parts.append(
            f"The same model ({fields}, {case.ids} ids a row, {case.batch // case.ranks:,} rows a "
            "process) with other tables and processes, and the placement that sends for the least "
            f"time:\n\n{winners_table(asked, machines)}"
        )
    return "\n\n".join(parts)


def _link(text: str) -> tuple[float, float]:
    latency, bandwidth = map(float, text.split(":"))
    return latency, bandwidth


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3], help="processes to count")
    parser.add_argument(
        "--link", type=_link, default=(10e-6, 200e9), help="SECONDS:BYTES_A_SECOND in a machine"
    )
    parser.add_argument(
        "--net", type=_link, default=(30e-6, 25e9), help="the same between machines"
    )
    parser.add_argument("--memory", type=float, default=78.0, help="GiB of a process")
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def computing_text() -> str:
    """CPU time of a step of the model that is asked about, measured in one process."""
    shape = ASKED["Ali-CCP, 8 cards"].case._replace(ranks=1, batch=1024)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), 12 * shape.batch, shape, shape.rows // shape.fields)
        found = count(1, Path(folder), shape, (320, 200, 80))
    taken = ", ".join(f"{_NAMES[p]} {1e3 * own['cpu_seconds']:,.0f} ms" for p, own in found.items())
    return f"CPU time of a step of {shape.batch:,} rows of the first model below: {taken}"


def main() -> int:
    """Count, hold against the formulas, and print the tables; 1 where a count differs."""
    args = arguments()
    if args.process:
        process(args.process)
        return 0
    found: dict[tuple[int, str], dict[str, Any]] = {}
    differs = []
    for ranks in args.ranks:
        shape = _SMALL._replace(ranks=ranks)
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), _SMALL_ROWS, shape)
            for placement, own in count(ranks, Path(folder), shape).items():
                found[ranks, placement] = own
                if own["sent"] != formula(shape, placement, own):
                    differs.append(f"{ranks} processes, {placement}: {own}")
    print(f"Bytes that leave all processes in a step, counted:\n\n{counted_table(found)}\n")
    if args.ranks:
        print(f"{computing_text()}\n")
    print(asked_text(Machines(args.link, args.net, args.memory)))
    for line in differs:
        print(f"not the formula's: {line}", file=sys.stderr)
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
