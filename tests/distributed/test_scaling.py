"""Bytes that a step sends are those of the formulas, counted under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import scaling  # noqa: E402


@pytest.mark.parametrize(("ranks", "batch"), [(2, 60), (3, 90)])
def test_what_is_sent_is_what_the_formula_says(tmp_path, ranks, batch):
    """Of whole tables, and of shards where TorchRec is installed, with other numbers of all."""
    shape = scaling.Case(batch, ranks, 0, 8 if ranks == 2 else 12, 3, ranks - 1, 4, 0, 6)
    scaling.write_data(tmp_path, 15 * batch, shape)
    found = scaling.count(ranks, tmp_path, shape)
    assert [*found] == scaling.placements_here()
    for placement, own in found.items():
        assert own["sent"] == scaling.formula(shape, placement, own), placement
    assert found["dense"]["sent"]["allreduce"] > 10 * found["sparse"]["sent"]["allreduce"] > 0


def test_distinct_ids_are_those_of_draws():
    """By Zipf's law: as many as there are, or as are drawn, and what draws give between."""
    assert scaling._distinct(10, 1e9) == pytest.approx(10)
    assert scaling._distinct(10**9, 1) == pytest.approx(1)
    rng = scaling.np.random.default_rng(0)
    share = 1 / scaling.np.arange(1, 5001)
    drawn = [len(set(rng.choice(5000, 3000, p=share / share.sum()).tolist())) for _ in range(20)]
    assert scaling._distinct(5000, 3000) == pytest.approx(sum(drawn) / 20, rel=0.01)


def test_the_page_has_the_scripts_tables():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    machines = scaling.Machines((10e-6, 200e9), (30e-6, 25e9), 78.0)
    assert scaling.asked_text(machines) in page
