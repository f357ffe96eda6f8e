import pytest
import torch

from recbole_escm2.data import ImpressionLoader, prepare_data
from recbole_escm2.data.batch import position_dtype


@pytest.fixture
def train(toy):
    return toy.with_outcomes().build()[0]  # 48 impressions


def order(loader, epoch=0):
    loader.set_epoch(epoch)
    return torch.cat([batch["row"] for batch in loader]).tolist()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(48, [48]), (1000, [48]), (24, [24, 24]), (20, [20, 20, 8]), (47, [47, 1]), (1, [1] * 48)],
)
def test_every_row_once(train, batch_size, sizes, shuffle):
    loader = ImpressionLoader(train, batch_size, seed=3, shuffle=shuffle)
    assert [len(batch) for batch in loader] == sizes
    assert len(loader) == len(sizes)
    assert sorted(order(loader)) == sorted(train.inter_feat["row"].tolist())


def test_evaluation_keeps_the_order_of_rows(train):
    loader = ImpressionLoader(train, 20)
    assert order(loader, 0) == order(loader, 1) == train.inter_feat["row"].tolist()
    clicks = torch.cat([batch["click"] for batch in loader])
    assert clicks.tolist() == train.truth.click.tolist()


def test_order_depends_on_seed_and_epoch_alone(train):
    def of(seed, epoch):
        return order(ImpressionLoader(train, 20, seed, shuffle=True), epoch)

    first = of(seed=1, epoch=0)
    torch.manual_seed(5)
    torch.rand(3)
    loader = ImpressionLoader(train, 7, 1, shuffle=True)  # whatever the batch size
    order(loader, 4)
    assert order(loader, 0) == first == of(seed=1, epoch=0)
    orders = [of(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(set(map(tuple, [*orders, train.inter_feat["row"].tolist()]))) == 10


def test_largest_seed_is_a_seed(train):
    loader = ImpressionLoader(train, 20, seed=2**31 - 1, shuffle=True)
    assert sorted(order(loader, 10**6)) == sorted(train.inter_feat["row"].tolist())


def test_order_leaves_the_random_state_alone(train):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    order(ImpressionLoader(train, 20, seed=1, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_two_passes_at_once_do_not_disturb_each_other(train):
    loader = ImpressionLoader(train, 20, seed=1, shuffle=True)
    pairs = [(a["row"].tolist(), b["row"].tolist()) for a, b in zip(loader, loader, strict=True)]
    assert all(a == b for a, b in pairs)


def test_batches_hold_rows_whole(train):
    batches = list(ImpressionLoader(train, 20, seed=1, shuffle=True))
    together = {k: torch.cat([batch[k] for batch in batches]) for k in batches[0]}
    by_row = {row: i for i, row in enumerate(train.inter_feat["row"].tolist())}
    rows = [by_row[row] for row in together["row"].tolist()]
    expected = train[torch.tensor(rows)]
    assert set(together) == set(expected)
    assert all(torch.equal(together[name], expected[name]) for name in expected)


def test_tuple_form_is_recboles(train):
    for batch, *rest in ImpressionLoader(train, 20, with_placeholders=True):
        assert rest == [None, None, None]
        assert "click" in batch


@pytest.mark.parametrize("shuffle", [True, False])
def test_prepared_loaders(toy, shuffle):
    config = toy.config(train_batch_size=7, eval_batch_size=4, seed=11, shuffle=shuffle)
    train, valid, test = prepare_data(config, toy.dataset(seed=11))
    assert [len(loader.dataset) for loader in (train, valid, test)] == [48, 6, 6]
    assert [len(loader) for loader in (train, valid, test)] == [7, 2, 2]
    assert (order(train, 0) != order(train, 1)) == shuffle
    assert order(train) == order(ImpressionLoader(train.dataset, 48, 11, shuffle))
    for loader in (valid, test):
        rows = torch.cat([batch["row"] for batch, *_ in loader])
        assert torch.equal(rows, loader.dataset.inter_feat["row"])
        clicks = torch.cat([batch["click"] for batch, *_ in loader])
        assert clicks.tolist() == loader.dataset.truth.click.tolist()


def test_what_an_impression_keeps_in_memory(toy):
    """Its place in the store and in the order, four bytes each; no label of train."""
    parts = toy.with_outcomes().build()
    list(ImpressionLoader(parts[0], 20, shuffle=True))
    assert [part.inter_feat._rows.dtype for part in parts] == [torch.int32] * 3
    assert parts[0]._truth is None
    assert parts[1].truth is parts[1].truth is not None  # read once
    assert position_dtype(2**31 - 1) == torch.int32
    assert position_dtype(2**31) == torch.int64


def test_the_order_is_that_of_torchs_whole_numbers(train):
    drawn = torch.randperm(48, generator=torch.Generator().manual_seed(3 * 1_000_003 + 2))
    wanted = train.inter_feat["row"][drawn].tolist()
    assert order(ImpressionLoader(train, 20, seed=3, shuffle=True), 2) == wanted


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [(1, [3]), (2, [1, 2]), (3, [1, 1, 1]), (4, [1, 1, 1])],  # of batches; at most one a part
)
def test_parts_of_an_epoch_are_its_batches_in_its_order(train, parts, sizes):
    whole = ImpressionLoader(train, 20, seed=1, shuffle=True)
    cut = ImpressionLoader(train, 20, seed=1, shuffle=True, parts=parts)
    assert (cut.parts, cut.batches) == (len(sizes), 3)
    for epoch in (0, 1, 5):
        passes = []
        for part, size in enumerate(sizes):
            cut.set_epoch(epoch * len(sizes) + part)
            assert (cut.epoch, cut.part) == (epoch, part)
            assert len(cut) == size
            passes += [batch["row"].tolist() for batch in cut]
        whole.set_epoch(epoch)
        assert passes == [batch["row"].tolist() for batch in whole]
