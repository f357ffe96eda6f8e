"""Batches are on a device in time, and bad losses are named, without a wait in each step."""

import contextlib

import pytest
import torch
from elsewhere import ELSEWHERE, another_device, waits
from torch import Tensor

from recbole_escm2.bags import Bags
from recbole_escm2.data.batch import Batch
from recbole_escm2.errors import UsageError
from recbole_escm2.train.device import LOOK_EVERY, LossWatch, batches_on
from recbole_escm2.train.optimizer import RowAdam, summed_rows


def a_batch(number):
    bag = Bags(("tags",), torch.tensor([1, 2]), torch.ones(2), torch.tensor([[1, 1]]))
    return Batch({"label": torch.full((2,), float(number))}, {"tags": bag})


def test_on_the_cpu_a_batch_is_taken_when_its_step_comes():
    taken = []
    source = (taken.append(number) or a_batch(number) for number in range(3))
    batches = batches_on(torch.device("cpu"), source)
    next(batches)
    assert taken == [0]
    assert len(list(batches)) == 2


class FakeStream:
    """As much of a CUDA stream as is needed to see in which order things are asked of it."""

    def __init__(self, log):
        self.log = log

    def record_event(self):
        self.log.append("copy")
        return self.log.count("copy")

    def wait_event(self, event):
        self.log.append(f"wait for {event}")


def test_for_a_gpu_a_batch_is_copied_from_pinned_memory_before_the_step_before_it(monkeypatch):
    log, moved, held = [], [], []
    computing = FakeStream(log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(Tensor, "pin_memory", lambda values: values.clone())
    monkeypatch.setattr(Tensor, "record_stream", lambda values, stream: held.append(stream))

    def to(batch, device, selected_field=None, non_blocking=False):
        moved.append((device.type, non_blocking))
        return batch

    monkeypatch.setattr(Batch, "to", to)
    seen = []
    for batch in batches_on(torch.device("cuda", 0), map(a_batch, range(3))):
        log.append("step")
        seen.append(batch["label"].tolist())
    assert seen == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert moved == [("cuda", True)] * 3
    first = ["copy", "copy", "wait for 1", "step"]
    assert log == [*first, "copy", "wait for 2", "step", "wait for 3", "step"]
    assert held == [computing] * 3 * 4  # a column, and ids, weights and lengths of a bag


def test_a_source_that_fails_says_so_through_the_thread(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)

    def failing():
        raise UsageError("no such row")
        yield

    with pytest.raises(UsageError, match="no such row"):
        list(batches_on(torch.device("cuda", 0), failing()))


def losses_of(value, device):
    parts = {"ctr": torch.tensor(value).to(device), "cvr": torch.tensor(1.0).to(device)}
    return parts, torch.stack(list(parts.values())).sum()


def test_on_the_cpu_a_bad_loss_is_named_before_its_step():
    watch = LossWatch(torch.device("cpu"), epoch=2)
    watch.step = 1
    watch.saw(*losses_of(0.5, "cpu"))
    watch.step = 2
    with pytest.raises(UsageError, match=r"in step 2 of epoch 2 \(ctr nan, cvr 1\.0\)"):
        watch.saw(*losses_of(float("nan"), "cpu"))


def test_on_another_device_the_first_bad_loss_is_named_at_the_next_look():
    with another_device() as device, waits() as seen:
        watch = LossWatch(device, epoch=1)
        for watch.step in range(1, LOOK_EVERY):
            given = losses_of(float("inf") if watch.step > 6 else 0.5, device)
            seen.counting = True
            watch.saw(*given)
            seen.counting = False
        assert not seen.lines
        with pytest.raises(UsageError, match=r"in step 7 of epoch 1 \(ctr inf, cvr 1\.0\)"):
            watch.saw(*losses_of(0.5, device))
        watch.look()  # there is nothing left to look at


def test_all_losses_of_another_device_are_looked_at_every_so_often():
    with another_device() as device, waits() as seen:
        watch, given = LossWatch(device), losses_of(0.5, device)
        seen.counting = True
        for _ in range(3 * LOOK_EVERY):
            watch.saw(*given)
    looks = [count for line, count in seen.lines.items() if "device.py" in line]
    assert looks
    assert max(looks) == 3


@pytest.mark.parametrize("indices", [[5, 1, 5, 5, 0], [3, 3, 3], [2], []])
def test_rows_are_summed_elsewhere_as_on_the_cpu(indices):
    torch.manual_seed(0)
    values = torch.randn(len(indices), 4)
    sparse = torch.sparse_coo_tensor(torch.tensor([indices]).long(), values, (6, 4))
    rows, sums = summed_rows(sparse)
    with another_device():
        there, sums_there = summed_rows(sparse.to(ELSEWHERE))
        there, sums_there = there.cpu(), sums_there.cpu()
    assert len(there) == len(indices)
    assert there[: len(rows)].tolist() == rows.tolist()
    assert torch.equal(sums_there[: len(rows)], sums)
    for row, total in zip(there[len(rows) :], sums_there[len(rows) :], strict=True):
        assert row == rows[-1]  # the rest repeat the last one
        assert torch.equal(total, sums[-1])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_of_rows_takes_the_same_steps_elsewhere(weight_decay):
    torch.manual_seed(0)
    first = torch.randn(8, 3)
    steps = [[1, 1, 5], [0, 2], [5, 5, 5, 7], [1, 0]]
    gradients = [torch.randn(len(rows), 3) for rows in steps]

    def trained(device):
        table = first.clone().to(device).requires_grad_()
        optimizer = RowAdam([table], lr=0.1, weight_decay=weight_decay)
        optimizer.leave_out(table, torch.tensor([0]).to(device))
        for rows, values in zip(steps, gradients, strict=True):
            read = torch.tensor(rows).to(device)
            optimizer.wake(table, read)
            shape = first.shape
            table.grad = torch.sparse_coo_tensor(read.unsqueeze(0), values.to(device), shape)
            optimizer.step()
        optimizer.catch_up()
        return table.detach().cpu()

    here = trained("cpu")
    with another_device() as device:
        there = trained(device)
    assert torch.equal(here, there)
