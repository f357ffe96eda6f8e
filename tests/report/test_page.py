import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from studies import VERSIONS, realistic, result, study_of

from recbole_escm2.experiment.study import Row
from recbole_escm2.report.layout import layout
from recbole_escm2.report.notes import MINUS
from recbole_escm2.report.page import (
    Weighed,
    page,
    settings,
    summary,
    versions,
    weighing,
    weight_warnings,
)
from recbole_escm2.report.write import report

ODD = ["<script>alert(1)</script>", "<b>bold</b>", 'a_b & 50% | "c"', "{{ 7 * 7 }}"]
COLUMNS = ["CTR_AUC", "CTR_LogLoss", "CVR_PCOC", "IEB"]
DASH = "\N{EN DASH}"
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements with their attributes and text, and whether every one is closed."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(markup)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))

    def of(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def study():
    return replace(realistic(seeds=(1, 2, 3)), columns=COLUMNS)


@pytest.fixture(scope="module")
def markup(study):
    return page(study)


@pytest.fixture(scope="module")
def parsed(markup):
    return Page(markup)


def inner(markup, tag):
    return re.findall(rf"<{tag}>(.*?)</{tag}>", markup, re.DOTALL)


class TestSafety:
    def test_nothing_comes_from_elsewhere(self, parsed):
        for tag, attributes in parsed.elements:
            assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
            assert "src" not in attributes or tag == "img"
            assert attributes.get("src", "data:").startswith("data:")
            assert (attributes.get("href") or "#").startswith("#")
            assert "style" not in attributes
            assert not any(name.startswith("on") for name in attributes)
            for value in attributes.values():
                assert all(found.startswith("#") for found in re.findall(r"url\((.)", value or ""))

    def test_style_sheet_asks_for_nothing(self, markup):
        (style,) = inner(markup, "style")
        assert "url(" not in style
        assert "@import" not in style
        (script,) = inner(markup, "script")
        assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval", script)

    def test_policy_lets_this_style_and_script_work_and_no_other(self, markup, parsed):
        policy = next(
            m["content"] for m in parsed.of("meta") if m.get("http-equiv", "").endswith("Policy")
        )
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "data:"
        for tag in ("style", "script"):
            (content,) = inner(markup, tag)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert rules[f"{tag}-src"] == f"'sha256-{digest}'"

    def test_odd_labels_are_harmless_everywhere(self):
        metrics = {"CTR_AUC": [0.7, 0.8], "CVR_PCOC": [1.0, 0.9]}
        study = study_of(dict.fromkeys(ODD, metrics), ODD[0], title=ODD[0], command=ODD[0])
        study = replace(
            study,
            rows=[Row(label, label, {"k": label}, {"k": label}) for label in ODD],
            shared={"key": ODD[0]},
            failures={(ODD[1], 2): ODD[0]},
            results={k: v for k, v in study.results.items() if k != (ODD[1], 2)},
        )
        markup = page(study)
        parsed = Page(markup)
        assert [tag for tag, _ in parsed.elements].count("script") == 1
        assert "alert(1)</script>" not in markup
        for label in ODD:
            assert label in parsed.text
        assert "49" not in parsed.text

    def test_ids_are_unique(self, parsed):
        ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
        assert len(ids) == len(set(ids)) > 12

    def test_is_the_same_each_time(self, study, markup):
        assert page(study) == markup


class TestContent:
    def test_every_number_of_the_table(self, study, markup, parsed):
        for entry in (entry for line in layout(study).lines for entry in line.entries):
            assert entry.mean.replace("-", MINUS) in parsed.text
            if entry.interval:
                assert f"<dd>{entry.interval}</dd>".replace("-", MINUS) in markup

    def test_cells_are_ordered_by_the_layout(self, study, parsed):
        found = [float(a["data-order"]) for a in parsed.of("td") if "value" in a.get("class", "")]
        assert found == [e.order for line in layout(study).lines for e in line.entries if e.mean]

    def test_says_all_that_the_caption_says(self, study, parsed):
        for note in layout(study).caption("Bold"):
            assert note in parsed.text
        for problem in layout(study).problems:
            assert str(problem) in parsed.text
        assert study.simulated in parsed.text
        assert study.command in parsed.text

    def test_has_every_section(self, parsed):
        ids = [attributes.get("id") for attributes in parsed.of("section")]
        assert ids == [
            *("results", "sweep", "learning", "calibration", "overlap", "data", "settings"),
            *("versions", "reading"),
        ]

    def test_links_lead_somewhere(self, parsed):
        ids = {attributes.get("id") for _, attributes in parsed.elements}
        for link in parsed.of("a"):
            assert link["href"][1:] in ids

    def test_pictures_are_described(self, parsed):
        drawings = parsed.of("img")
        assert len(drawings) > 20
        assert all(drawing["alt"] for drawing in drawings)
        assert len({drawing["alt"] for drawing in drawings}) == len(drawings)
        for drawing in drawings:
            kind, _, code = drawing["src"].partition(",")
            assert kind == "data:image/png;base64"
            assert base64.b64decode(code, validate=True).startswith(b"\x89PNG")

    def test_data(self, parsed):
        assert "12,801 to 12,803" in parsed.text
        assert "test40,0001,590753.975%4.717%" in parsed.text.replace(" ", "")

    def test_little_known(self):
        run = {"test_result": {"AUC": 0.5}, "simulated": None}
        study = replace(study_of({"a": {"AUC": [0.5]}}, "a"), results={("a", 1): run})
        parsed = Page(page(study))
        assert "0.5000" in parsed.text
        assert "Learning curves" not in parsed.text

    def test_nothing_has_run(self, study):
        parsed = Page(page(replace(study, results={}, failures={})))
        assert "0 of 54 runs have finished" in parsed.text
        assert "not run yet" in parsed.text


class TestSummary:
    def test_counts(self, study):
        verdicts = [
            c.comparison.verdict
            for row in study.table.values()
            for metric, c in row.items()
            if c.comparison and metric in ("CTCVR_AUC", "CVR_AUC_ES")
        ]
        found = summary(study)
        assert "18 rows (4 models with their settings) on ali-ccp-sim, each with 3 seeds" in found
        assert "53 of 54 runs have finished" in found
        assert len(verdicts) == 2 * 17
        assert f"Of {len(verdicts)} comparisons with DeepFM in CTCVR_AUC and CVR_AUC_ES" in found
        assert f"{verdicts.count('better')} better" in found

    def test_one_seed(self):
        study = study_of({"a": {"CTR_AUC": [0.5]}, "b": {"CTR_AUC": [0.6]}}, "a")
        assert "each with one seed; all 2 runs have finished." in summary(study)
        assert "No difference was tested" in summary(study)


class TestWeightWarnings:
    SOUND = {  # noqa: RUF012
        "clicks": 1000,
        "share_at_floor": 0.1,
        "effective_sample_size": 700.0,
        "mean_weight_unfloored": 1.0,
        "mean_weight": 0.95,
        "largest_weight": 10.0,
    }

    def warn(self, *changes):
        rows = [Weighed(f"m{n}", {**self.SOUND, **c}, 0.1) for n, c in enumerate(changes)]
        return weight_warnings(rows)

    def test_sound_weights_have_none(self):
        assert self.warn({}) == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"effective_sample_size": 960.0, "share_at_floor": 0.9},
                "nearly equal, with 90% of the clicks at the floor (0.1)",
            ),
            ({"effective_sample_size": 40.0}, "count as 40 equal ones"),
            (
                {"mean_weight_unfloored": 1.3, "mean_weight": 1.2},
                "pCTR is too small where clicks are",
            ),
            ({"mean_weight_unfloored": 0.7, "mean_weight": 0.7}, "adds up to only 0.70"),
            ({"mean_weight": 0.4}, "With the floor the weights add up to only 0.40"),
        ],
    )
    def test_each_kind(self, change, words):
        ((label, found),) = self.warn(change)
        assert label == "m0"
        assert words in found

    def test_a_kind_is_said_once_with_its_range(self):
        equal = {"effective_sample_size": 990.0}
        shares = [{**equal, "share_at_floor": share} for share in (0.6, 0.8)]
        ((labels, words),) = self.warn(*shares)
        assert labels == "All rows"
        assert "60% to 80% of the clicks" in words
        ((labels, _),) = self.warn(equal, {})
        assert labels == "m0"

    def test_numbers_are_means_over_seeds(self, study):
        found = next(row for row in weighing(study) if row.label == "ESCM2_IPS")
        runs = study.of("ESCM2_IPS").values()
        expected = sum(run["weights"]["share_at_floor"] for run in runs) / len(runs)
        assert found.numbers["share_at_floor"] == pytest.approx(expected)
        assert found.floor == 0.1
        assert "DeepFM" not in [row.label for row in weighing(study)]


class TestSettings:
    def test_what_differs_leaves_out_what_is_the_runs_own(self, study):
        found = settings(study)
        assert set(found.differing) == {
            "model",
            "mlp_hidden_size",
            "counterfactual_weight",
            "imputation",
        }
        assert found.differing["imputation"]["ESCM2_DR, label"] == "label"
        assert found.differing["mlp_hidden_size"]["IPS, wide towers"] == "[256, 128]"
        assert found.complete["ESMM"]["learning_rate"] == "0.001"
        assert found.complete["ESMM"]["seed"] == "1 | 2 | 3"
        assert found.complete["ESMM"]["load_col"] == "none"
        assert found.shared == {"epochs": "30", "train_batch_size": "4096"}

    def configured(self, configs, **models):
        """A study of rows whose runs have these configs; a row's model is its label by default."""
        study = study_of({label: {"CTR_AUC": [0.7]} for label in configs}, next(iter(configs)))
        rows = [Row(label, models.get(label, label)) for label in configs]
        results = {(label, 1): result({"CTR_AUC": 0.7}, config=c) for label, c in configs.items()}
        return replace(study, rows=rows, results=results)

    def test_a_key_that_some_rows_lack_differs_only_among_those_that_have_it(self):
        of_ours = {"epochs": 3, "backbone": "separate"}
        configs = {
            "ESMM": {**of_ours, "dropout_prob": 0.1},
            "ESCM2_IPS": {**of_ours, "dropout_prob": 0.2},
            "DeepFM": {"epochs": 3},
        }
        assert settings(self.configured(configs)).differing == {
            "dropout_prob": {"ESMM": "0.1", "ESCM2_IPS": "0.2", "DeepFM": DASH}
        }

    def test_a_key_without_effect_on_a_model_is_a_dash(self):
        weights = {"ESMM": 0.1, "ESCM2_IPS": 0.2, "heavy": 0.3}
        configs = {label: {"counterfactual_weight": weight} for label, weight in weights.items()}
        study = self.configured(configs, heavy="ESCM2_IPS")
        assert settings(study).differing == {
            "counterfactual_weight": {"ESMM": DASH, "ESCM2_IPS": "0.2", "heavy": "0.3"}
        }
        assert settings(study).complete["ESMM"] == {"counterfactual_weight": "0.1"}
        del configs["heavy"]
        assert settings(self.configured(configs)).differing == {}

    def test_what_no_model_reads_is_shown(self):
        configs = {"ESMM": {"device": "cpu"}, "DeepFM": {"device": "cuda"}}
        assert settings(self.configured(configs)).differing["device"] == {
            "ESMM": "cpu",
            "DeepFM": "cuda",
        }

    def test_the_model_is_shown_only_where_a_label_does_not_say_it(self):
        configs = {"ESMM": {"model": "ESMM"}, "DeepFM": {"model": "DeepFM"}}
        assert settings(self.configured(configs)).differing == {}
        named = {"ESMM": configs["ESMM"], "deep": configs["DeepFM"]}
        assert settings(self.configured(named, deep="DeepFM")).differing == {
            "model": {"ESMM": "ESMM", "deep": "DeepFM"}
        }

    def test_floats_are_short_only_where_rows_are_compared(self):
        rates = {"ESMM": 0.00251737386424, "DeepFM": 0.001}
        configs = {k: {"learning_rate": v, "betas": [v, 0.999]} for k, v in rates.items()}
        found = settings(self.configured(configs))
        assert found.differing["learning_rate"] == {"ESMM": "0.002517", "DeepFM": "0.001"}
        assert found.differing["betas"]["ESMM"] == "[0.002517, 0.999]"
        assert found.complete["ESMM"]["learning_rate"] == "0.00251737386424"

    def test_mixed_versions_are_flagged(self, study):
        assert versions(study)["numpy"] == [("2.4.6", 53)]
        assert "Mixed versions" not in page(replace(study, seeds=[1], rows=study.rows[:1]))
        key = ("ESMM", 1)
        other = {**study.results[key], "versions": {**VERSIONS, "numpy": "1.26.4"}}
        mixed = replace(study, results={key: other, ("ESMM", 2): study.results["ESMM", 2]})
        assert versions(mixed)["numpy"] == [("1.26.4", 1), ("2.4.6", 1)]
        assert "Not all runs had the same numpy:" in page(mixed)


class TestTuning:
    def test_what_was_chosen_is_shown(self, study):
        shown = page(study)
        section = shown[shown.index("Chosen by tuning</h3>") : shown.index("Where rows differ")]
        section = section.replace("<wbr>", "")
        assert "0.9500</td><td>0.9600" in section
        assert "learning_rate=0.00252, mlp_hidden_size=[256, 128, 64]" in section
        assert section.count("as it was</td>") == 1  # ESMM's
        assert "of 3 that were tried, its own and 2 drawn at random" in shown

    def test_nothing_is_said_without(self, study):
        shown = page(replace(study, tuning=None))
        assert "Chosen by tuning" not in shown
        assert "Tuned:" not in shown


class TestReport:
    @pytest.fixture(scope="class")
    def written(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("out") / "made" / "here"
        study = realistic(seeds=(1, 2), sweep=False)
        return study, folder, report(study, folder)

    def test_all_paths_exist_and_nothing_else(self, written):
        _, folder, paths = written
        found = {path for path in folder.rglob("*") if path.is_file()}
        assert found == {*paths.values(), folder / "record" / "study.json"}
        kinds = {"html", "markdown", "latex", "text", "csv", "runs", "trials", "json"}
        assert kinds <= set(paths)
        assert all(path.stat().st_size for path in paths.values())

    def test_pictures(self, written):
        _, _, paths = written
        names = {name for name in paths if name.startswith("figures/")}
        assert names == {
            *("figures/metrics", "figures/learning", "figures/overlap", "figures/weights"),
            *(f"figures/calibration-{task}" for task in ("ctr", "cvr", "ctcvr", "cvr_es")),
        }
        for name in names:
            assert paths[name].read_bytes().startswith(b"\x89PNG")

    def test_markdown_shows_the_pictures_beside_it(self, written):
        _, folder, paths = written
        shown = re.findall(r"!\[.*?\]\((.*?)\)", paths["markdown"].read_text(encoding="utf-8"))
        assert len(shown) == 8
        assert all((folder / path).is_file() for path in shown)

    def test_json_is_strict(self, written):
        study, _, paths = written
        content = json.loads(
            paths["json"].read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)
        )
        assert content["title"] == study.title

    def test_again_gives_the_same(self, written, tmp_path):
        study, _, paths = written
        for name, path in report(study, tmp_path).items():
            assert path.read_bytes() == paths[name].read_bytes(), name

    def test_without_tuning_there_are_no_trials(self, tmp_path):
        assert "trials" not in report(study_of({"a": {"CTR_AUC": [0.7]}}, "a"), tmp_path)
        assert not (tmp_path / "trials.csv").exists()

    def test_sweep_has_its_picture(self, tmp_path):
        runs = {("a", 1): result({"CTR_AUC": 0.7}), ("b", 1): result({"CTR_AUC": 0.8})}
        rows = [Row("a", "m", {"k/1": 1}, {"k/1": 1}), Row("b", "m", {"k/1": 2}, {"k/1": 2})]
        study = replace(study_of({"a": {"CTR_AUC": [0]}}, "a"), rows=rows, results=runs)
        assert report(study, tmp_path)["figures/sweep-k_1"].is_file()
