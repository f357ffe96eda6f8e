"""The section of reference rows on a result page."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
reference_rows = pytest.importorskip("reference_rows", reason="needs the extra [benchmark]")

OWN = "## Reference rows\n\n| model |\n|---|\n| Constant |\n"
PAGE = "# A page\n\nText.\n\n## The settings\n\nMore.\n"
DATA = "\n## The data, as the first seed splits it\n\n| part |\n"


@pytest.mark.parametrize("page", [PAGE + DATA, PAGE])
def test_a_section_is_put_once_into_its_place(page):
    first = reference_rows.with_section(page, OWN)
    assert first.count("## Reference rows") == 1
    assert first.index("More.") < first.index("| Constant |")
    if DATA in page:
        assert first.index("| Constant |") < first.index("## The data")
    assert reference_rows.with_section(first, OWN) == first
    other = reference_rows.with_section(first, OWN.replace("Constant", "Oracle"))
    assert "Constant" not in other
    assert other.replace("Oracle", "Constant") == first
    for paragraph in page.split("\n\n"):
        assert paragraph.strip() in other


def test_a_table_has_what_rows_have():
    def row(label, **metrics):
        numbers = {name: {"mean": mean, "std": 0.01} for name, mean in metrics.items()}
        return {"label": label, "metrics": numbers, "share_of_lift": {}}

    rows = [row("Constant", CTR_AUC=0.5), row("LightGBM", CTR_AUC=0.75, CTCVR_AUC=0.7)]
    rows[1]["share_of_lift"] = {"CTCVR_AUC": 0.8}
    head, _, constant, trees = reference_rows.table({"rows": rows}).splitlines()
    assert head == r"| model | CTR\_AUC | CTCVR\_AUC | CTCVR\_AUC, share of lift |"
    assert constant == "| Constant | 0.5000 ± 0.0100 |  |  |"
    assert trees == "| LightGBM | 0.7500 ± 0.0100 | 0.7000 ± 0.0100 | 80.0% |"
