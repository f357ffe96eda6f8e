"""The metrics of a study by group of impressions: means, intervals, tables, picture, CSV."""

import csv
import io
import math

import numpy as np
import pytest
from scipy.stats import t as student
from studies import result

from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.report import groups, tables
from recbole_escm2.report.figures import by_group, pictures
from recbole_escm2.report.page import page
from recbole_escm2.report.write import report

AUC = {
    "A": {"1 of 2": [0.61, 0.65, 0.63], "2 of 2": [0.70, 0.72, 0.74]},
    "=B": {"1 of 2": [0.50, 0.52, None], "2 of 2": [0.71, 0.73, 0.72]},
}


def group(name, value, number):
    metrics = {"CTCVR_AUC": {"value": value, "low": 0.4, "high": 0.9}}
    missing = {"CTCVR_AUC": "no positive among 50 rows"}
    return {
        "group": name,
        "about": f"≤ {10 + number}" if name == "1 of 2" else "",
        "impressions": 1000 + number,
        "clicks": 50,
        "conversions": 5,
        "metrics": metrics if value is not None else {},
        "undefined": {} if value is not None else missing,
    }


def study(draws="world", seeds=3):
    results = {}
    for label, by_name in AUC.items():
        for n in range(seeds):
            own = [group(name, values[n], n) for name, values in by_name.items()]
            grouping = {"by": "item_clicks:2", "rule": "clicks of the item", "groups": own}
            results[label, n] = result(
                {"CTCVR_AUC": 0.7 + n / 100}, seed_draws=draws, groups=[grouping]
            )
    return Study(
        title="A study",
        command="make it",
        dataset="tiny",
        rows=[Row(label, label) for label in AUC],
        seeds=range(seeds),
        baseline="A",
        columns=["CTCVR_AUC"],
        results=results,
        primary=("CTCVR_AUC",),
    )


def half(values):
    return student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))


def test_the_mean_over_worlds_has_students_interval():
    first, second = groups.of_row(study(), "A", "item_clicks:2")
    values = AUC["A"]["1 of 2"]
    mean = first.means["CTCVR_AUC"]
    assert mean.mean == pytest.approx(np.mean(values))
    assert mean.high - mean.mean == pytest.approx(half(values))
    assert first.counts["impressions"] == (1000, 1002)
    assert first.about == ""  # other thresholds in each run
    assert (first.name, second.name) == ("1 of 2", "2 of 2")


def test_seeds_that_split_one_data_set_allow_for_what_they_share():
    whole, split = (
        groups.of_row(study(kind), "A", "item_clicks:2")[0].means["CTCVR_AUC"]
        for kind in ("world", "split")
    )
    assert split.high - split.low > whole.high - whole.low
    wider = math.sqrt((1 / 3 + 1000 / 8000) / (1 / 3))
    assert (split.high - split.low) / (whole.high - whole.low) == pytest.approx(wider)


def test_on_one_test_set_the_rows_are_a_part_of_the_interval():
    mean = groups.of_row(study("weights"), "A", "item_clicks:2")[0].means["CTCVR_AUC"]
    values = AUC["A"]["1 of 2"]
    rows = np.mean(values) - 0.4
    assert mean.mean - mean.low == pytest.approx(math.hypot(rows, half(values)))


def test_one_run_has_its_own_interval():
    mean = groups.of_row(study(seeds=1), "A", "item_clicks:2")[0].means["CTCVR_AUC"]
    assert (mean.low, mean.high) == pytest.approx((0.4, 0.9))
    assert "of one run" in groups.note(study(seeds=1))


def test_a_seed_without_a_value_is_left_out_and_counted():
    first, _ = groups.of_row(study(), "=B", "item_clicks:2")
    assert list(first.means["CTCVR_AUC"].values) == [0, 1]
    lines = [*csv.DictReader(io.StringIO(groups.csv(study())))]
    (line,) = (x for x in lines if x["row"] == "'=B" and x["group"] == "1 of 2")
    assert (line["n"], line["reason"]) == ("2", "no positive among 50 rows")
    assert line["impressions"] == "1000 to 1002"


def test_a_study_shows_its_groups_everywhere(tmp_path):
    shown = study()
    assert "By item_clicks:2 (clicks of the item)" in tables.text(shown)
    assert "0.630 (0.580 to 0.680)" in tables.text(shown)
    assert "## By item\\_clicks:2" in tables.markdown(shown)
    html = page(shown, [])
    assert '<section id="groups">' in html
    assert "There is no verdict about a group" in html
    assert "groups-item_clicks_2" in [picture.name for picture in pictures(shown)]
    paths = report(shown, tmp_path)
    assert paths["groups"].read_text().startswith("row,model,by,group,about,impressions")
    assert paths["figures/groups-item_clicks_2"].stat().st_size > 1000


def test_the_picture_has_a_line_for_each_row():
    (panel,) = by_group(study(), "item_clicks:2").axes
    assert [container.get_label() for container in panel.containers] == ["A", "=B"]
    heights = panel.containers[0].lines[0].get_ydata()
    assert np.allclose(heights, [np.mean(values) for values in AUC["A"].values()])
    low, high = panel.get_ylim()
    everything = [mean for group in AUC.values() for mean in map(_mean, group.values())]
    assert low < min(everything)
    assert high > max(everything)
    assert panel.get_xlim() == (-0.5, 1.5)


def _mean(values):
    return np.mean([value for value in values if value is not None])


def test_a_study_without_groups_says_nothing_of_them(tmp_path):
    shown = study()
    for run in shown.results.values():
        run.pop("groups")
    assert groups.text(shown) == ""
    assert "item_clicks" not in page(shown, [])
    assert "groups" not in report(shown, tmp_path)
    assert by_group(shown, "item_clicks:2") is None
