"""Batches and bags: nothing stays behind on another device."""

import pytest
import torch

from recbole_escm2.bags import Bags
from recbole_escm2.data.batch import Batch


def bags(weighted):
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 4.0]) if weighted else None
    return Bags(("tags",), torch.tensor([7, 8, 9, 5, 6]), weights, torch.tensor([[3, 0, 2]]))


def devices(found):
    return {
        tensor.device.type
        for tensor in (found.ids, found.weights, found.lengths, found.offsets)
        if tensor is not None
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_bags_move_with_all_they_hold(weighted):
    moved = bags(weighted).to("meta")
    assert devices(moved) == {"meta"}
    assert (moved.weights is None) == (not weighted)
    assert devices(moved.scaled(2.0)) == {"meta"}
    assert all(devices(bag) == {"cpu"} for _, bag in bags(weighted).split())


def test_a_batch_moves_with_its_bags():
    batch = Batch({"user": torch.tensor([1, 2, 3])}, {"tags": bags(True)}, {"tags": 2})
    moved = batch.to("meta")
    assert moved["user"].device.type == "meta"
    assert devices(moved.bags["tags"]) == {"meta"}
    assert moved["tags"].shape == (3, 2)
    assert moved["tags"].device.type == "meta"
    some = batch.to("meta", selected_field=["user"])
    assert some["user"].device.type == "meta"
    assert devices(some.bags["tags"]) == {"cpu"}
    assert batch.to("cpu") is batch


def test_padding_keeps_the_heaviest_or_the_first():
    assert bags(True).padded(2).tolist() == [[8, 9], [0, 0], [6, 5]]
    assert bags(False).padded(2).tolist() == [[7, 8], [0, 0], [5, 6]]
    assert bags(False).padded(4).tolist() == [[7, 8, 9, 0], [0] * 4, [5, 6, 0, 0]]
