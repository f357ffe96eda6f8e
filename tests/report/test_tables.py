import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest
from studies import realistic, study_of

from recbole_escm2.experiment.study import Row, Study, Trial, Tuning
from recbole_escm2.report.layout import layout
from recbole_escm2.report.notes import decimals, humanise, p_value
from recbole_escm2.report.tables import (
    as_json,
    latex,
    latex_escape,
    markdown,
    markdown_escape,
    runs_csv,
    text,
    tidy_csv,
    trials_csv,
)

# By hand: CTR_AUC of "new" is larger by .010 .011 .012 (p = .003), LogLoss smaller by .02 .03 .04
# (p = .037), IEB's distance from 0 smaller by .09 .11 .10 (p = .003), PCOC's larger by .10 .12 .11
# (p = .003). Holm over the two that are primary, CTR_AUC and PCOC: .006, .006.
KNOWN = {
    "base": {
        "CTR_AUC": [0.700, 0.710, 0.720],
        "CTR_LogLoss": [0.30, 0.31, 0.32],
        "IEB": [0.10, 0.12, 0.11],
        "CVR_PCOC": [1.00, 1.01, 0.99],
    },
    "new": {
        "CTR_AUC": [0.710, 0.721, 0.732],
        "CTR_LogLoss": [0.28, 0.28, 0.28],
        "IEB": [-0.01, -0.01, -0.01],
        "CVR_PCOC": [0.90, 1.13, 0.88],
    },
}
ODD = ["<b>bold</b>", "a_b & 50% | c", "#1 $x$ ~ ^ \\ {y}", "=1+1", '"quoted", twice\nbroken']


@pytest.fixture
def known():
    return study_of(KNOWN, "base", primary=("CTR_AUC", "CVR_PCOC"))


def entry(study, label, metric):
    shown = layout(study)
    place = [heading.key for heading in shown.headings].index(metric)
    return next(line for line in shown.lines if line.label == label).entries[place]


def records(content):
    return list(csv.DictReader(io.StringIO(content)))


class TestLayout:
    def test_numbers(self, known):
        found = entry(known, "new", "CTR_AUC")
        assert (found.mean, found.std) == ("0.7210", "0.0110")
        assert found.baseline.difference == "+0.0110"
        assert found.by_seed == ((1, "0.7100"), (2, "0.7210"), (3, "0.7320"))

    @pytest.mark.parametrize(
        ("metric", "verdict", "mark", "best"),
        [
            ("CTR_AUC", "better", "▲", "new"),
            ("CTR_LogLoss", None, "", "new"),
            ("IEB", None, "", "new"),
            ("CVR_PCOC", "worse", "▼", "base"),
        ],
    )
    def test_verdict_and_best_follow_the_direction(self, known, metric, verdict, mark, best):
        found = entry(known, "new", metric)
        assert (found.baseline.verdict, found.mark) == (verdict, mark)
        for label in KNOWN:
            assert entry(known, label, metric).best == (label == best)

    def test_difference_of_a_target_metric_is_of_the_distances(self, known):
        assert entry(known, "new", "IEB").baseline.difference == "-0.1000"
        assert entry(known, "new", "IEB").mean == "-0.0100"

    @pytest.mark.parametrize("metric", KNOWN["base"])
    def test_order_puts_the_best_first(self, known, metric):
        best = min(KNOWN, key=lambda label: entry(known, label, metric).order)
        assert entry(known, best, metric).best

    def test_headings_say_the_direction(self, known):
        shown = [str(heading) for heading in layout(known).headings]
        assert shown[:4] == ["CTR_AUC ↑", "CTR_LogLoss ↓", "IEB → 0", "CVR_PCOC → 1"]
        assert shown[4:] == ["time (s)", "epochs", "parameters"]

    def test_costs(self, known):
        found = [entry(known, "new", key).mean for key in ("seconds", "epochs", "parameters")]
        assert found == ["12.5", "8.0", "1.23 M"]

    def test_long_times_are_in_minutes_for_all_rows(self, known):
        results = {
            key: {**run, "seconds": 90.0 if key[0] == "new" else 1200.0}
            for key, run in known.results.items()
        }
        shown = layout(replace(known, results=results))
        assert "time (min)" in [heading.name for heading in shown.headings]
        assert [line.entries[-3].mean for line in shown.lines] == ["20.0", "1.5"]

    def test_one_seed_has_no_spread_and_no_test(self):
        study = study_of({"base": {"CTR_AUC": [0.7]}, "new": {"CTR_AUC": [0.8]}}, "base")
        found = entry(study, "new", "CTR_AUC")
        assert (found.value, found.interval, found.baseline.verdict, found.baseline.p) == (
            "0.8000",
            "",
            None,
            "",
        )
        notes = " ".join(layout(study).notes)
        assert "single seed (1)" in notes
        assert "no interval and no test" in notes
        assert "Holm" not in notes

    def test_notes_count_what_was_corrected_for(self, known):
        notes = " ".join(layout(known).notes)
        assert "over 3 seeds (1, 2, 3)" in notes
        assert "Holm's correction over the 2 comparisons" in notes
        assert "chosen by CTCVR_AUC" in notes

    @pytest.mark.parametrize(
        ("metric", "words"),
        [
            ("CTR_AUC", "CTR and CTCVR: over all impressions."),
            ("CVR_AUC", "CVR: over the clicked impressions, a sample that clicks have selected."),
            ("CVR_AUC_ES", "against their potential outcomes"),
        ],
    )
    def test_notes_say_what_metrics_are_over(self, metric, words):
        notes = " ".join(layout(study_of({"m": {metric: [0.7]}}, "m")).notes)
        assert words in notes
        assert ("clicked impressions" in notes) == (metric == "CVR_AUC")

    @pytest.mark.parametrize(
        ("metrics", "named"),
        [
            (["CVR_AUC_ES"], "CVR …_ES"),
            (["IEB"], "IEB"),
            (["PIP"], "PIP (also called FIP)"),
            (["PIP", "CVR_MAE_ES"], "CVR …_ES and PIP (also called FIP)"),
            (["CVR_AUC_ES", "IEB", "PIP"], "CVR …_ES, IEB and PIP (also called FIP)"),
        ],
    )
    def test_a_note_names_only_what_is_there(self, metrics, named):
        study = study_of({"m": {key: [0.7] for key in metrics}}, "m")
        assert [note for note in layout(study).notes if "potential outcomes" in note] == [
            f"{named}: over all impressions, against their potential outcomes."
        ]

    def test_caption_says_what_is_best_with_a_target_only_where_there_is_one(self, known):
        note = layout(known).caption("Bold")[-1]
        assert note == (
            "Bold: the best mean of its column (with a target: the smallest mean distance from it),"
            " which by itself says nothing about chance."
        )
        assert (
            "target"
            not in layout(replace(known, columns=["CTR_AUC"], primary=("CTR_AUC",))).caption(
                "Bold"
            )[-1]
        )

    def test_small_numbers_get_more_decimals(self):
        study = study_of({"a": {"CTCVR_LogLoss": [0.00121]}, "b": {"CTCVR_LogLoss": [0.001]}}, "a")
        assert decimals(study, "CTCVR_LogLoss") == 5
        assert entry(study, "a", "CTCVR_LogLoss").mean == "0.00121"

    def test_two_trainings_are_told(self, known):
        key = ("base", 1)
        apart = {**known.results[key], "trainings": [{"task": "ctr"}, {"task": "cvr"}]}
        notes = layout(replace(known, results={**known.results, key: apart})).notes
        assert any(note.startswith("base: two models") for note in notes)
        assert not any("two models" in note for note in layout(known).notes)

    def test_a_final_fit_is_told(self, known):
        key = ("base", 1)
        fitted = {**known.results[key], "final_fit": {"epochs": [3]}}
        notes = layout(replace(known, results={**known.results, key: fitted})).notes
        assert any(note.startswith("Final fit:") for note in notes)
        assert not any(note.startswith("Final fit:") for note in layout(known).notes)


class TestMissing:
    @pytest.fixture
    def study(self, known):
        results = dict(known.results)
        del results["new", 3], results["base", 2]
        return replace(known, results=results, failures={("new", 3): "no memory\nleft"})

    def test_is_counted(self, study):
        assert [line.seeds for line in layout(study).lines] == ["2 of 3", "2 of 3"]

    def test_reasons(self, study):
        assert [str(problem) for problem in layout(study).problems] == [
            "base, seed 2: not run yet",
            "new, seed 3: failed: no memory left",
        ]

    @pytest.mark.parametrize("render", [markdown, latex, text])
    def test_is_seen_in_every_text(self, study, known, render):
        assert "2 of 3" in render(study)
        assert "no memory left" in render(study)
        assert "2 of 3" not in render(known)

    def test_is_seen_in_data(self, study):
        lines = [line for line in records(tidy_csv(study)) if line["metric"] == "CTR_AUC"]
        assert [(line["n"], line["seeds"]) for line in lines] == [("2", "3"), ("2", "3")]
        states = {(r["row"], r["seed"]): r["state"] for r in records(runs_csv(study))}
        assert states["new", "3"] == "failed"
        assert states["base", "2"] == "missing"
        assert {"row": "new", "seeds": [3], "reason": "failed: no memory left"} in as_json(study)[
            "problems"
        ]

    def test_undefined_metric_is_told_and_counted(self, known):
        key = ("new", 2)
        test = {m: v for m, v in known.results[key]["test_result"].items() if m != "IEB"}
        run = {**known.results[key], "test_result": test, "undefined": {"IEB": "no truth"}}
        study = replace(known, results={**known.results, key: run})
        assert entry(study, "new", "IEB").value.endswith("(n=2)")
        assert "new, seed 2: no IEB, no truth" in map(str, layout(study).problems)

    def test_a_named_metric_that_no_run_has_is_told_once(self, known):
        why = {"CVR_AUC_ES": "the data holds no potential conversions", "IEB": "no truth"}
        results = {key: {**run, "undefined": why} for key, run in known.results.items()}
        study = replace(known, results=results)
        said = "base, new: no CVR_AUC_ES, the data holds no potential conversions"
        assert said not in map(str, layout(study).problems)  # of the default columns
        problems = list(map(str, layout(replace(study, named=["CTR_AUC", "CVR_AUC_ES"])).problems))
        assert problems.count(said) == 1
        assert said in text(replace(study, named=["CVR_AUC_ES"]))

    @pytest.mark.parametrize("render", [markdown, latex, text, tidy_csv, runs_csv])
    def test_nothing_has_run(self, known, render):
        assert "base" in render(replace(known, results={}))


class TestCsv:
    def test_tidy_round_trip(self, known):
        lines = {(r["row"], r["metric"]): r for r in records(tidy_csv(known))}
        assert len(lines) == 2 * 7
        for row, metric in [("base", "IEB"), ("new", "CTR_LogLoss")]:
            cell, line = known.table[row][metric], lines[row, metric]
            for name in ("mean", "std", "low", "high"):
                assert float(line[name]) == getattr(cell.sample, name)
        compared = known.table["new"]["CTR_AUC"].comparison
        line = lines["new", "CTR_AUC"]
        assert float(line["p"]) == compared.p
        assert float(line["p_adjusted"]) == compared.p_adjusted
        assert float(line["difference_low"]) == compared.low
        assert (line["verdict"], line["best"], line["pairs"]) == ("better", "True", "3")
        assert lines["base", "CTR_AUC"]["verdict"] == ""
        assert lines["base", "CVR_PCOC"]["direction"] == "target 1"
        assert lines["base", "CTR_LogLoss"]["direction"] == "lower"
        assert float(lines["new", "parameters"]["mean"]) == 1_234_567

    def test_runs_round_trip(self, known):
        lines = records(runs_csv(known))
        assert len(lines) == 6
        for line in lines:
            run = known.results[line["row"], int(line["seed"])]
            for metric, value in run["test_result"].items():
                assert float(line[metric]) == value
            assert (float(line["seconds"]), line["epochs"]) == (12.5, "8")

    def test_trials(self):
        lines = records(trials_csv(realistic(sweep=False).tuning))
        assert list(lines[0]) == [
            *("row", "trial", "valid_CTCVR_AUC", "chosen", "reason", "run"),
            *("learning_rate", "mlp_hidden_size"),
        ]
        found = [list(line.values()) for line in lines if line["row"] in ("ESMM", "ESCM2_IPS")]
        drawn = ["0.00251737386424", "[256, 128, 64]"]
        failed = ["", "0", "the loss is not finite", "run2", "0.01", ""]
        assert found == [
            ["ESMM", "0", "0.95", "1", "", "run0", "", ""],
            ["ESMM", "1", "0.9", "0", "", "run1", *drawn],
            ["ESMM", "2", *failed],
            ["ESCM2_IPS", "0", "0.95", "0", "", "run0", "", ""],
            ["ESCM2_IPS", "1", "0.96", "1", "", "run1", *drawn],
            ["ESCM2_IPS", "2", *failed],
        ]

    def test_a_trial_that_drew_none_is_told_from_one_that_drew_nothing(self):
        tried = [Trial({}, 0.5, True, "run0"), Trial({"k": None}, 0.5, True, "run1")]
        lines = records(trials_csv(Tuning(2, 1, "CTR_AUC", {"a": tried})))
        assert [line["k"] for line in lines] == ["", "None"]

    def test_odd_labels(self):
        study = study_of({label: {"CTR_AUC": [0.7, 0.8]} for label in ODD}, ODD[0])
        shown = [f"'{label}" if label == "=1+1" else label for label in ODD]
        assert [r["row"] for r in records(runs_csv(study))][::2] == shown
        assert [r["row"] for r in records(tidy_csv(study)) if r["metric"] == "CTR_AUC"] == shown


class TestJson:
    def test_round_trip(self):
        study = realistic()
        content = json.loads(json.dumps(as_json(study), allow_nan=False))
        assert [row["label"] for row in content["rows"]] == [row.label for row in study.rows]
        for row in content["rows"]:
            for metric, found in row["metrics"].items():
                cell = study.table[row["label"]][metric]
                assert found["mean"] == cell.sample.mean
                assert {int(s): v for s, v in found["values"].items()} == cell.sample.values
            for seed, run in row["runs"].items():
                assert run == study.results[row["label"], int(seed)]
        assert content["rows"][-1]["swept"] == {"counterfactual_weight": 3.0}
        assert content["simulated"] == study.simulated

    def test_what_is_not_finite_is_null(self):
        study = study_of({"a": {"CVR_PCOC": [math.inf]}}, "a")
        assert as_json(study)["rows"][0]["metrics"]["CVR_PCOC"]["mean"] is None
        json.dumps(as_json(study), allow_nan=False)


class TestMarkdown:
    def test_table(self, known):
        lines = markdown(known).splitlines()
        head = next(line for line in lines if line.startswith("| model"))
        new = next(line for line in lines if line.startswith("| new"))
        assert "CTR\\_AUC ↑" in head
        assert "| **0.7210 ± 0.0110** ▲ |" in new
        assert any(line.startswith("| base (baseline) |") for line in lines)
        assert "- Bold: the best mean" in markdown(known)

    def test_intervals(self, known):
        _, _, section = markdown(known).partition("## 95 % intervals of the means\n\n")
        head, _, base, new = section.partition("\n\n")[0].splitlines()
        assert head == "| model | CTR\\_AUC ↑ | CTR\\_LogLoss ↓ | IEB → 0 | CVR\\_PCOC → 1 |"
        assert base.startswith("| base (baseline) | 0.6852 to 0.7348 |")  # t(.975, 2) is 4.3027
        assert new.startswith("| new | 0.6937 to 0.7483 | 0.2800 to 0.2800 | -0.0100 to -0.0100 |")

    def test_intervals_stand_between_the_notes_and_what_was_chosen(self):
        page = markdown(realistic())
        places = [
            page.index(words)
            for words in (
                *("- Bold:", "## 95 % intervals", "## The settings that were chosen"),
                "## What is missing",
            )
        ]
        assert places == sorted(places)

    def test_a_single_seed_has_no_intervals(self):
        study = study_of({"a": {"CTR_AUC": [0.7]}, "b": {"CTR_AUC": [0.8]}}, "a")
        assert "intervals" not in markdown(study)

    @pytest.mark.parametrize("label", ODD)
    def test_odd_labels_are_one_cell_and_no_markup(self, label):
        study = study_of({label: {"CTR_AUC": [0.7, 0.8]}, "b": {"CTR_AUC": [0.7, 0.9]}}, "b")
        lines = markdown(study).splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("| model"))
        cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines[start : start + 4]]
        assert len(set(cells)) == 1
        assert "<b>" not in markdown(study)

    def test_simulated_is_said_first(self):
        page = markdown(realistic())
        assert 0 < page.index("Simulated, not Ali-CCP") < page.index("| model")

    def test_figures(self, known):
        page = markdown(known, {"All [metrics]": "figures/a.png"})
        assert "![All \\[metrics\\]](figures/a.png)" in page

    def test_escape(self):
        assert markdown_escape("a|b*c<d>&") == "a\\|b\\*c&lt;d&gt;&amp;"


class TestLatex:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("a_b & 50%", r"a\_b \& 50\%"),
            ("#1 $x$", r"\#1 \$x\$"),
            ("{y} \\z", r"\{y\} \textbackslash{}z"),
            ("~^", r"\textasciitilde{}\textasciicircum{}"),
            ("<b>|", r"\textless{}b\textgreater{}\textbar{}"),
            ("[x] --no", "{[}x{]} {-}{-}no"),
            ("ESCM² ± ↑", r"ESCM\textsuperscript{2} $\pm$ $\uparrow$"),
        ],
    )
    def test_escape(self, words, expected):
        assert latex_escape(words) == expected

    def test_rows_have_as_many_cells_as_columns(self):
        study = study_of(dict.fromkeys(ODD, KNOWN["base"]), ODD[0])
        code = latex(study)
        columns = len(re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", code)[1])
        body = code[code.index(r"\toprule") : code.index(r"\bottomrule")]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + len(ODD)
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {columns}

    def test_braces_and_dollars_are_balanced(self):
        code = latex(realistic())
        bare = re.sub(r"\\[{}$%&#_\\]", "", code)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0

    def test_marks_and_minus(self, known):
        code = latex(known)
        assert r"\textbf{0.7210 $\pm$ 0.0110}$^{\blacktriangle}$" in code
        assert r"$-$0.0100" in code
        assert r"$^{\blacktriangledown}$" in code


class TestText:
    def test_numbers_stay_in_line(self, known):
        lines = text(known).splitlines()
        rows = [line for line in lines if line.startswith(("base", "new"))]
        assert len({line.index("±") for line in rows}) == 1
        assert "0.7210 ± 0.0110 *▲" in rows[1]
        assert "*: the best mean" in text(known)

    @pytest.mark.parametrize("width", [60, 90, 200])
    def test_fits_the_terminal_and_loses_nothing(self, known, width):
        found = text(known, width)
        table = found.split("\n\nTest metrics")[0]
        assert max(map(len, table.splitlines())) <= width
        for heading in layout(known).headings:
            assert str(heading) in table


class TestNumbers:
    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (0, "0"),
            (999, "999"),
            (1000, "1.00 k"),
            (12_345, "12.3 k"),
            (999_950, "1.00 M"),
            (1_234_567, "1.23 M"),
            (2e9, "2.00 G"),
        ],
    )
    def test_humanise(self, number, expected):
        assert humanise(number) == expected

    @pytest.mark.parametrize(
        ("p", "expected"), [(0.00001, "< 0.0001"), (0.0123, "0.012"), (0.5, "0.50"), (1.0, "1.00")]
    )
    def test_p_value(self, p, expected):
        assert p_value(p) == expected


def test_every_format_of_a_study_with_a_lone_row_and_little_known():
    run = {"test_result": {"AUC": 0.5}, "simulated": None}
    study = Study("t", "c", "d", [Row("a", "a")], [1], "a", ["AUC"], {("a", 1): run})
    for render in (markdown, latex, text, tidy_csv, runs_csv, as_json):
        assert render(study)
