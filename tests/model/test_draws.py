"""Initial weights of a table that isn't there: those that it would have, and so is all else."""

import pytest
import torch
from recbole.model.init import xavier_normal_initialization
from torch import nn

from recbole_escm2.errors import UsageError
from recbole_escm2.model import draws
from recbole_escm2.model.draws import Draws


def drawn(rows: int, width: int, fields: tuple[int, ...], device: str) -> tuple[nn.Embedding, list]:
    """A table as our models draw it, and what is drawn after each of its steps."""
    torch.manual_seed(3)
    with torch.device(device):
        table = nn.Embedding(rows, width)
    after = [torch.rand(3)]
    xavier_normal_initialization(table)
    after.append(torch.randn(5))
    for part in table.weight.split(fields) if fields else ():
        nn.init.normal_(part.detach(), std=0.3)
    return table, [*after, torch.randn(20)]


@pytest.mark.parametrize("piece", [1 << 20, 256])
@pytest.mark.parametrize("fields", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 4), (3, 4), (7, 1), (5, 16), (1001, 12)])
def test_they_are_those_of_a_table_that_is_there(rows, width, fields, piece, monkeypatch):
    monkeypatch.setattr(draws, "_PIECE", piece)
    parts = (rows // 3, rows - rows // 3) if fields else ()
    whole, after = drawn(rows, width, parts, "cpu")
    with Draws() as noted:
        table, others = drawn(rows, width, parts, "meta")
    assert table.weight.is_meta
    for expected, other in zip(after, others, strict=True):
        assert torch.equal(expected, other)
    found = torch.full((rows, width), torch.nan)
    for row, values in noted.rows(table.weight):
        assert values.numel() < 2 * piece + 16 * width
        found[row : row + len(values)] = values
    assert torch.equal(found, whole.weight)


def test_other_beginnings_are_refused():
    with torch.device("meta"):
        table = nn.Embedding(5, 4)
    with Draws(), pytest.raises(UsageError, match="begins with uniform_"):
        nn.init.uniform_(table.weight)
