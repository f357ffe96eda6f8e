"""What each process of test_sharded.py does, as torchrun starts it: sharded_ranks.py CASE SETTINGS.

SETTINGS is a JSON file; what the first process finds out goes into the file beside it, found.json.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from recbole.utils import init_seed
from torch import Tensor

from recbole_escm2.bags import Bags
from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, prepare_data
from recbole_escm2.distributed import (
    is_main,
    main_first,
    process_group,
    share_of,
    sum_over_ranks,
    world_size,
)
from recbole_escm2.errors import UsageError
from recbole_escm2.model import ESMM
from recbole_escm2.model.draws import Draws
from recbole_escm2.model.sharded import Room, shard
from recbole_escm2.quick_start import evaluate_checkpoint, run
from recbole_escm2.train.learned import learned, restore_learned
from recbole_escm2.train.optimizer import OptimizerGroup
from recbole_escm2.train.trainer import EntireSpaceTrainer

RATE = 0.05


class KilledError(Exception):
    """In place of a kill."""


def weighed(batch: Any, step: int) -> Any:
    """A batch whose tags have weights, which their place in the data decides."""
    bag = batch.bags["tags"]
    weights = (bag.ids * 37 + step * 11) % 10 / 10
    batch.bags["tags"] = Bags(bag.fields, bag.ids, weights, bag.lengths)
    return batch


def two_models(settings: dict[str, Any], kind: str) -> tuple[ESMM, ESMM, Any]:
    """One with whole tables, one with shards of them by a kind of sharding, and train."""
    config = Config("ESMM", "tiny", config_dict=settings)
    train = prepare_data(config, EntireSpaceDataset(config))[0].dataset
    init_seed(7, True)
    whole = ESMM(config, train)
    config["embedding_placement"] = "sharded"
    init_seed(7, True)
    with Draws() as draws:
        parts = ESMM(config, train)
    shard(parts, draws, ("adagrad", RATE), Room(1 << 30, 64, (kind,)))
    return whole, parts, train


def difference(whole: ESMM, parts: ESMM, optimizer: Any, folder: Path) -> float:
    """The greatest one of weights; on the first process, which has all of them then."""
    found = learned(parts, optimizer, folder)["state_dict"]
    if not is_main():
        return 0.0
    own = whole.state_dict()
    assert own.keys() == found.keys()
    return max(float((value - own[name]).abs().max()) for name, value in found.items())


def steps(settings: dict[str, Any], folder: Path, kind: str, pooling: str) -> dict[str, Any]:
    """Steps of both models on the same batches, one of which leaves a process without a row."""
    whole, parts, train = two_models({**settings, "bag_pooling": pooling}, kind)
    tables = [p for name, p in whole.named_parameters() if name.startswith("token")]
    others = [p for name, p in whole.named_parameters() if not name.startswith("token")]
    own = OptimizerGroup(torch.optim.Adagrad(tables, lr=RATE), torch.optim.Adam(others, lr=0.01))
    optimizer = torch.optim.Adam(parts.parameters(), lr=0.01)
    about: dict[str, Any] = {"at_first": difference(whole, parts, optimizer, folder)}
    losses: list[Tensor] = []
    for step in range(12):
        rows = torch.arange(61) + 61 * step if step != 3 else torch.arange(1)
        loss = sum(whole.calculate_loss(weighed(train[rows], step)))
        share = share_of(len(rows))
        some = rows[share.begin : max(share.end, share.begin + 1)]
        part = sum(parts.calculate_loss(weighed(train[some], step))) * share.weight
        losses.append(abs(loss - sum_over_ranks(part.detach()) / world_size()).detach())
        for each in (own, optimizer):
            each.zero_grad()
        loss.backward()
        part.backward()
        for parameter in parts.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()
        own.step()
        optimizer.step()
    about["losses"] = float(max(losses))
    about["weights"] = difference(whole, parts, optimizer, folder)
    about["columns"] = [s.weight.shape[1] for s in parts.sharded.shards()]
    # Each takes what the other has learned.
    of_parts = learned(parts, optimizer, folder)
    of_whole = learned(whole, own, folder)
    sums = [
        of_parts["optimizer"].get(n, of)["sum"] - of["sum"]
        for n, of in of_whole["optimizer"].items()
        if "sum" in of
    ]
    about["sums"] = max(float(each.abs().max()) for each in sums)
    assert restore_learned(parts, optimizer, of_whole) == []
    assert difference(whole, parts, optimizer, folder) == 0
    if is_main():
        assert restore_learned(whole, own, of_parts) == []
    difference(whole, parts, optimizer, folder)
    return about


def killed_run(settings: dict[str, Any], step: int, dataset: str = "tiny") -> None:
    """A run that fails before an optimizer step, on all processes."""
    optimize, number = EntireSpaceTrainer._optimize, itertools.count()

    def failing(self: Any, *arguments: Any) -> None:
        if next(number) == step:
            raise KilledError
        optimize(self, *arguments)

    EntireSpaceTrainer._optimize = failing
    try:
        run("ESMM", dataset, config_dict=settings)
    except KilledError:
        pass
    finally:
        EntireSpaceTrainer._optimize = optimize


def runs(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run with shards, one that is killed and goes on, and one that is killed."""
    places = {name: {**settings, "output_dir": str(folder / name)} for name in ("whole", "cut")}
    results = [run("ESMM", "tiny", config_dict=places["whole"])]
    killed_run(places["cut"], 9)
    results.append(run("ESMM", "tiny", config_dict=places["cut"]))
    killed_run({**settings, "output_dir": str(folder / "left")}, 9)
    return {"runs": [{k: r[k] for k in ("test_result", "run_dir")} for r in results]}


def limited(settings: dict[str, Any]) -> dict[str, Any]:
    """What may take so much memory, beside what the loaded programs and data take.

    A run, one that is killed before a step, or the scores of a checkpoint.
    """
    room, kill = settings.pop("room"), settings.pop("kill", None)
    checkpoint = settings.pop("checkpoint", None)
    import_module("torchrec")
    with main_first():
        prepare_data(*_data(settings))
    status = Path("/proc/self/status").read_text()
    taken = int(status.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (taken + room, taken + room))
    try:
        if kill is not None:
            killed_run(settings, kill, "tall")
            return {}
        if checkpoint:
            result = evaluate_checkpoint(checkpoint, config_dict=settings)
        else:
            result = run("ESMM", "tall", config_dict=settings)
    except UsageError as error:
        return {"said": str(error)}
    return {name: result[name] for name in ("test_result", "run_dir")}


def _data(settings: dict[str, Any]) -> tuple[Config, EntireSpaceDataset]:
    config = Config("ESMM", "tall", config_dict={**settings, "embedding_placement": "replicated"})
    return config, EntireSpaceDataset(config)


def main() -> None:
    case, file = sys.argv[1], Path(sys.argv[2])
    settings, folder = json.loads(file.read_text()), file.parent
    with process_group():
        if case == "runs":
            found = runs(settings, folder)
        elif case == "limited":
            found = limited(settings)
        else:
            found = {
                f"{kind} {pooling}": steps(settings, folder, kind, pooling)
                for kind, pooling in (("table_wise", "mean"), ("column_wise", "sum"))
            }
        if is_main():
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
