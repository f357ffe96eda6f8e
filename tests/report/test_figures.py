import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from studies import realistic, study_of

from recbole_escm2.experiment.study import Row
from recbole_escm2.report import figures

ODD = "<script>$x_1$ & 50%"


@pytest.fixture(scope="module")
def study():
    return realistic()


def lines(ax):
    """Lines by colour, marker and data, without those of the legend."""
    return [line for line in ax.get_lines() if len(line.get_xdata())]


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_figures_leave_global_state_alone(study):
    before = dict(matplotlib.rcParams)
    figures.png(figures.dots(study, ["IEB"]))
    assert dict(matplotlib.rcParams) == before


class TestDots:
    def test_draws_means_intervals_and_seeds(self):
        values = {"base": {"CTR_AUC": [0.7, 0.71]}, "new": {"CTR_AUC": [0.8, 0.82]}}
        study = study_of(values, "base")
        (ax,) = figures.dots(study).axes
        drawn = {tuple(np.round(line.get_xdata(), 9)) for line in lines(ax)}
        for label in values:
            own = study.table[label]["CTR_AUC"].sample
            assert (round(own.low, 9), round(own.high, 9)) in drawn
            assert (round(own.mean, 9),) in drawn
        points = np.concatenate([c.get_offsets()[:, 0] for c in ax.collections])
        assert sorted(points) == pytest.approx([0.7, 0.71, 0.8, 0.82])

    def test_a_verdict_has_a_sign_of_its_own(self, study):
        study = replace(study, primary=("CTR_AUC",))
        (ax,) = figures.dots(study, ["CTR_AUC"]).axes
        worse = [
            row
            for row in study.table.values()
            if (c := row["CTR_AUC"].comparison) and c.verdict == "worse"
        ]
        drawn = [line for line in lines(ax) if line.get_marker() == "v"]
        assert len(drawn) == len(worse) > 0

    def test_labels_are_drawn_whole(self):
        labels = [f"self-normalised {word}" for word in ("propensity", "imputation", "IPS, joint")]
        metrics = ("IEB", "CVR_AUC", "CTR_AUC", "CTCVR_AUC", "CVR_AUC_ES")
        values = {label: {metric: [0.1, 0.2] for metric in metrics} for label in labels}
        figure = figures.dots(study_of(values, labels[0]))
        figures.png(figure)
        for ax in figure.axes:
            for text in ax.get_yticklabels():
                assert text.get_window_extent().x0 >= 0

    def test_single_seed_has_no_whisker(self):
        study = study_of({"a": {"CTR_AUC": [0.7]}, "b": {"CTR_AUC": [0.8]}}, "a")
        (ax,) = figures.dots(study).axes
        assert all(len(set(line.get_xdata())) == 1 for line in lines(ax))

    def test_nothing_to_draw(self, study):
        assert figures.dots(replace(study, results={})) is None


class TestLearningCurves:
    def test_mean_ends_where_the_first_seed_stopped(self, study):
        figure = figures.learning_curves(study, ["ESMM"])
        curves = [line for line in lines(figure.axes[0]) if len(line.get_xdata()) > 1]
        bold = [line for line in curves if line.get_linewidth() > 1]
        lengths = [len(run["trainings"][0]["epochs"]) for run in study.of("ESMM").values()]
        assert len(set(lengths)) > 1
        assert len(bold) == 1
        assert len(bold[0].get_xdata()) == min(lengths)
        first = [
            run["trainings"][0]["epochs"][0]["valid"]["CTCVR_AUC"]
            for run in study.of("ESMM").values()
        ]
        assert bold[0].get_ydata()[0] == pytest.approx(np.mean(first))

    def test_a_model_of_two_trainings_is_shown_by_its_own_metrics(self, study):
        panels = figures.learning_panels(study, ["DeepFM"])
        assert panels == ["CTR_AUC", "CVR_AUC", figures.LOSS]
        assert figures.learning_panels(study, ["ESMM"]) == ["CTCVR_AUC", figures.LOSS]

    def test_loss_is_the_sum_of_the_risks(self, study):
        one = replace(study, seeds=[1])
        figure = figures.learning_curves(one, ["ESCM2_DR"])
        epochs = one.results["ESCM2_DR", 1]["trainings"][0]["epochs"]
        assert set(epochs[0]["losses"]) == {"ctr", "ctcvr", "cvr"}
        expected = [sum(epoch["losses"].values()) for epoch in epochs]
        place = figures.learning_panels(one, ["ESCM2_DR"]).index(figures.LOSS)
        assert lines(figure.axes[place])[0].get_ydata() == pytest.approx(expected)

    def test_epochs_without_validation_are_left_out(self, study):
        run = study.results["ESMM", 1]
        training = run["trainings"][0]
        epochs = [
            {k: v for k, v in e.items() if k != "valid" or e["epoch"] % 2}
            for e in training["epochs"]
        ]
        key = ("ESMM", 1)
        changed = {key: {**run, "trainings": [{**training, "epochs": epochs}]}}
        figure = figures.learning_curves(replace(study, results=changed, seeds=[1]), ["ESMM"])
        drawn = lines(figure.axes[0])[0].get_xdata()
        assert list(drawn) == [e["epoch"] for e in epochs if "valid" in e]


class TestCalibration:
    def test_wilson_is_scipys(self):
        low, high = figures.wilson(np.array([0.0, 0.03, 0.5, 1.0]), np.array([20, 100, 7, 12]))
        for place, (hits, rows) in enumerate([(0, 20), (3, 100), (None, 7), (12, 12)]):
            if hits is not None:
                expected = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
                assert (low[place], high[place]) == pytest.approx((expected.low, expected.high))

    def test_intervals_are_of_one_seeds_rows(self):
        bins = {"rows": [100, 100], "predicted": [0.1, 0.5], "observed": [0.2, 0.5]}
        study = study_of({"a": {"CTR_AUC": [0.7, 0.7, 0.7]}}, "a")
        runs = {key: {**run, "calibration": {"ctr": bins}} for key, run in study.results.items()}
        figure = figures.calibration(replace(study, results=runs), "ctr")
        (whiskers,) = figure.axes[0].collections
        low, high = figures.wilson(np.array([0.2, 0.5]), np.array([100, 100]))
        ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
        assert ends == pytest.approx(np.array([low, high]).T)

    def test_points_are_pooled_by_rows(self):
        study = study_of({"a": {"CTR_AUC": [0.7, 0.7]}}, "a")
        runs = {
            ("a", 1): {"rows": [100], "predicted": [0.4], "observed": [0.1]},
            ("a", 2): {"rows": [300], "predicted": [0.5], "observed": [0.5]},
        }
        runs = {k: {**study.results[k], "calibration": {"ctr": v}} for k, v in runs.items()}
        figure = figures.calibration(replace(study, results=runs), "ctr")
        points = [line for line in lines(figure.axes[0]) if line.get_marker() == "o"]
        assert points[0].get_xdata()[0] == pytest.approx(0.475)
        assert points[0].get_ydata()[0] == pytest.approx(0.4)

    @pytest.mark.parametrize("count", [2, 6, 40])
    def test_rows_stand_side_by_side_near_their_predictions(self, count):
        bins = {"rows": [100], "predicted": [0.5], "observed": [0.5]}
        study = study_of({f"m{n}": {"CTR_AUC": [0.7]} for n in range(count)}, "m0")
        runs = {key: {**run, "calibration": {"ctr": bins}} for key, run in study.results.items()}
        (ax,) = figures.calibration(replace(study, results=runs), "ctr").axes
        points = [line for line in lines(ax) if len(line.get_xdata()) == 1]
        shown = [line.get_transform().transform((0.5, 0.5))[0] for line in points]
        moved = (np.array(shown) - ax.transData.transform((0.5, 0.5))[0]) * 72 / figures.DPI
        assert len(set(np.round(moved, 6))) == count
        assert np.abs(moved).max() <= 4.5

    def test_a_bin_without_a_positive_is_hollow_on_a_logarithmic_axis(self):
        bins = {"rows": [90] * 3, "predicted": [0.001, 0.01, 0.1], "observed": [0, 0.01, 0.1]}
        study = study_of({"a": {"CTR_AUC": [0.7]}}, "a")
        runs = {key: {**run, "calibration": {"ctr": bins}} for key, run in study.results.items()}
        (ax,) = figures.calibration(replace(study, results=runs), "ctr").axes
        assert ax.get_xscale() == "log"
        hollow = [line for line in lines(ax) if line.get_markerfacecolor() == "none"]
        assert [len(line.get_xdata()) for line in hollow] == [1]


class TestOverlapAndWeights:
    def test_counts_are_pooled(self, study):
        edges, clicked, unclicked = figures._pooled_overlap(study, study.rows[0])
        runs = study.of("DeepFM").values()
        assert clicked.sum() == sum(sum(run["overlap"]["clicked"]) for run in runs)
        assert len(edges) == len(clicked) + 1 == len(unclicked) + 1

    def test_floor_is_drawn_where_there_is_one(self, study):
        assert "floor 0.1" in texts(figures.overlap(study, ["ESCM2_IPS"]))
        assert "floor 0.1" not in texts(figures.overlap(study, ["DeepFM"]))

    def test_weights_are_of_counterfactual_models(self, study):
        assert figures.weights(study, ["DeepFM", "ESMM"]) is None
        assert len(figures.weights(study, ["ESCM2_IPS"]).axes) == 2

    @pytest.mark.parametrize(
        ("lightest", "heaviest", "shown"),
        [
            (9.1, 10, ["9.2", "9.4", "9.6", "9.8", "10"]),
            (4, 10, ["4", "5", "6", "7", "8", "9", "10"]),
            (1.6, 10, ["2", "3", "5", "7", "10"]),
            (1.05, 30, ["1", "2", "5", "10", "20"]),
            (1.5, 500, ["3", "10", "30", "100", "300"]),
            (1.5, 50_000, ["1", "10", "100", "1000", "10000"]),
        ],
    )
    def test_weights_are_seen_to_be_logarithmic(self, lightest, heaviest, shown):
        study = study_of({"a": {"CTR_AUC": [0.7]}}, "a")
        quantiles = {"q": [0, 1], "w": [lightest, heaviest]}
        run = {**study.results["a", 1], "weight_quantiles": quantiles}
        figure = figures.weights(replace(study, results={("a", 1): run}))
        figures.png(figure)
        (ax,) = figure.axes
        low, high = ax.get_ylim()
        labels = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        assert [text.get_text() for place, text in labels if low <= place <= high] == shown
        assert "logarithmic" in ax.get_ylabel()


class TestSweep:
    def swept(self, values, others=()):
        metrics = {f"m {v}": {"CTR_AUC": [0.7, 0.71 + n / 100]} for n, v in enumerate(values)}
        metrics |= {label: {"CTR_AUC": [0.6, 0.61]} for label in others}
        study = study_of(metrics, next(iter(metrics)))
        rows = [Row(f"m {v}", "m", {"key": v}, {"key": v}) for v in values]
        return replace(study, rows=[*rows, *(Row(label, label) for label in others)])

    def ticks(self, values):
        """Names of the ticks and where they stand on the page."""
        (ax,) = figures.sweep(self.swept(values), "key").axes
        places = ax.transData.transform([(tick, 0.7) for tick in ax.get_xticks()])[:, 0]
        return dict(zip([t.get_text() for t in ax.get_xticklabels()], places, strict=True))

    def test_decades_are_evenly_spaced_with_0_to_the_left(self):
        found = self.ticks([0, 0.01, 0.1, 1, 10])
        assert list(found) == ["0", "0.01", "0.1", "1", "10"]
        places = list(found.values())
        steps = np.diff(places)
        assert steps[1:] == pytest.approx(steps[-1])
        assert steps[0] == pytest.approx(steps[-1])  # the mean of the others

    def test_a_narrow_range_is_linear(self):
        (ax,) = figures.sweep(self.swept([0.0, 0.5, 1.0]), "key").axes
        assert ax.get_xscale() == "linear"
        assert list(ax.get_xticks()) == [0.0, 0.5, 1.0]

    @pytest.mark.parametrize("values", [["error", "label"], [True, False], [[64], [128, 64]]])
    def test_names_stand_side_by_side(self, values):
        (ax,) = figures.sweep(self.swept(values), "key").axes
        assert list(ax.get_xticks()) == [0, 1]
        assert len({text.get_text() for text in ax.get_xticklabels()}) == 2

    @pytest.mark.parametrize("values", [[1, 2, 4], [0, 0.01, 1], [0.01, 1]])
    def test_intervals_are_within_the_panel(self, values):
        study = self.swept(values, ["other"])
        (ax,) = figures.sweep(study, "key").axes
        low, high = ax.get_ylim()
        for row in study.table.values():
            assert low <= row["CTR_AUC"].sample.low
            assert row["CTR_AUC"].sample.high <= high
        left, right = ax.get_xlim()
        assert left < values[0]
        assert values[-1] < right

    def test_means_stand_at_their_values(self):
        study = self.swept([1, 2, 4])
        (ax,) = figures.sweep(study, "key").axes
        drawn = next(line for line in lines(ax) if line.get_marker() == "o")
        assert list(drawn.get_xdata()) == [1, 2, 4]
        means = [study.table[row.label]["CTR_AUC"].sample.mean for row in study.rows]
        assert list(drawn.get_ydata()) == pytest.approx(means)

    def test_a_model_that_was_not_swept_is_a_level_line(self):
        (ax,) = figures.sweep(self.swept([1, 2, 4], ["other"]), "key").axes
        level = [line for line in lines(ax) if list(line.get_ydata()) == [0.605, 0.605]]
        assert [list(line.get_xdata()) for line in level] == [[0, 1]]

    def test_no_sweep(self, study):
        assert figures.sweep(study, "nothing") is None

    def test_a_row_that_bears_its_models_name_is_no_second_line(self):
        study = self.swept([1, 2, 4])
        plain = replace(study, rows=[*study.rows, Row("m", "m")])
        (ax,) = figures.sweep(plain, "key").axes
        (before,) = figures.sweep(study, "key").axes
        assert len(lines(ax)) == len(lines(before))


class TestGroups:
    def test_holds_every_row_once_in_panels_that_can_be_read(self, study):
        groups = figures.row_groups(study)
        assert [label for group in groups for label in group] == [r.label for r in study.rows]
        assert max(map(len, groups)) <= figures.LINES_PER_PANEL
        looks = {row.label: look for row, look in figures._looks(study, None)}
        for group in groups:
            assert len({looks[label]["color"] for label in group}) == len(group)
            assert len({looks[label]["marker"] for label in group}) == len(group)


class TestWrapping:
    @pytest.mark.parametrize(
        ("label", "expected"),
        [
            ("short", "short"),
            ("two words that are long", "two words\nthat are\nlong"),
            ("ESCM2 propensity_floor=0.1", "ESCM2\npropensity_\nfloor=0.1"),
            ("x" * 15, "x" * 12 + "\n" + "x" * 3),
            ("", ""),
        ],
    )
    def test_breaks_where_words_do(self, label, expected):
        assert figures._wrapped(label, 12) == expected

    def test_is_cut(self):
        assert figures._wrapped("one two three four five", 5).endswith("…")


class TestPng:
    def test_odd_labels_are_text(self):
        study = study_of({ODD: {"CTR_AUC": [0.7, 0.8]}, "b": {"CTR_AUC": [0.7, 0.9]}}, "b")
        figure = figures.dots(study)
        assert figures.png(figure).startswith(b"\x89PNG")
        assert ODD in [text.replace("\n", " ") for text in texts(figure)]

    def test_a_long_legend_is_drawn_whole(self, study):
        figure = figures.calibration(study, "ctr", figures.row_groups(study)[-1])
        image = Image.open(io.BytesIO(figures.png(figure)))
        margin = np.asarray(image.convert("L"))[:, [0, -1]]
        assert margin.min() == 255

    @pytest.mark.filterwarnings("error")
    def test_a_legend_of_many_rows_takes_no_room_from_the_panel(self, study):
        few, many = (figures.calibration(study, "cvr_es", rows) for rows in (["ESMM"], None))
        heights = []
        for figure in (few, many):
            figures.png(figure)
            heights.append(figure.axes[0].get_window_extent().height)
        assert heights[1] == pytest.approx(heights[0])

    def test_png_is_on_white_and_always_the_same(self, study):
        first, second = (figures.png(figures.overlap(study, ["DeepFM"])) for _ in range(2))
        assert first == second
        assert first.startswith(b"\x89PNG")
        assert b"Software" not in first


class TestLittleToShow:
    """A page of one row, of one value, of one bin or of one epoch is drawn without a warning."""

    def changed(self, study, **changes):
        results = {key: {**run, **changes} for key, run in study.results.items()}
        return replace(study, results=results)

    @pytest.fixture
    def alone(self, study):
        label = "ESCM2_IPS"
        (row,) = (row for row in study.rows if row.label == label)
        results = {key: run for key, run in study.results.items() if key == (label, 1)}
        return replace(study, rows=[row], seeds=[1], baseline=label, results=results, failures={})

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(
        "case", ["as it is", "constant", "one epoch", "equal weights", "a floor out of sight"]
    )
    def test_of_one_row(self, alone, case):
        (run,) = alone.results.values()
        if case == "constant":
            bin_of_all = {"rows": [100], "predicted": [0.1], "observed": [0.1]}
            curves = dict.fromkeys(figures.TASKS, bin_of_all)
            alone = self.changed(alone, calibration=curves)
        elif case == "a floor out of sight":
            bin_of_all = {"logit_edges": [-1.0, -0.8], "clicked": [5], "unclicked": [10]}
            config = {**run["config"], "propensity_floor": 0.01}
            alone = self.changed(alone, overlap=bin_of_all, config=config)
        elif case == "one epoch":
            trainings = [{**t, "epochs": t["epochs"][:1]} for t in run["trainings"]]
            alone = self.changed(alone, trainings=trainings)
        elif case == "equal weights":
            quantiles = run["weight_quantiles"]["q"]
            equal = {"q": quantiles, "w": [1.0] * len(quantiles)}
            alone = self.changed(alone, weight_quantiles=equal)
        drawn = [picture.draw() for picture in figures.pictures(alone)]
        assert all(figures.png(figure) for figure in drawn if figure is not None)
        assert sum(figure is not None for figure in drawn) >= 5

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0, 0.0]], ids=str)
    @pytest.mark.parametrize("rows", ["a", "ab"])
    def test_of_one_value(self, values, rows):
        study = study_of({row: {"CTR_AUC": values} for row in rows}, "a")
        assert figures.png(figures.dots(study))
