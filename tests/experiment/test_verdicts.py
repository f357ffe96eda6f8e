"""How often a page calls a row better or worse that is neither, and one that is.

Everything between the predictions of a run and the marks of the page is the program's own. Only the
models are small: logistic regressions on about 2,000 simulated impressions, trained anew on
whatever a seed draws. One row sees one half of the features and the other row the other half;
nothing but the names of the halves differs, so that over all that could have been drawn the two are
equally good, though on one data set they never are.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from studies import DATA, result

from recbole_escm2.evaluator.influence import (
    Influence,
    TestRows,
    influence_values,
    read_influence,
)
from recbole_escm2.evaluator.metrics import auc
from recbole_escm2.evaluator.predictions import Predictions, Truth
from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.quick_start import run as train_and_test
from recbole_escm2.report.layout import layout
from recbole_escm2.report.page import page
from recbole_escm2.report.tables import as_json, latex, markdown, text, tidy_csv

Array = NDArray[Any]
PRIMARY = ("CTCVR_AUC", "CVR_AUC")
#: What each row sees: a half of the features, the same again, the other half, or all of them.
FIRST, SECOND, ALL = (0, 1), (2, 3), (0, 1, 2, 3)
NULL = {"ESMM": FIRST, "other": SECOND}
AGAIN = {"ESMM": FIRST, "again": FIRST}
EFFECT = {"ESMM": FIRST, "other": ALL}
KEPT = 0.7  # of its training rows, a row sees this share, its own with each seed
ROWS, USERS, ITEMS = 2000, 80, 60
TOLERATED = 0.065


@dataclass(frozen=True)
class Impressions:
    """Simulated ones; the two halves of the features are alike in distribution."""

    features: Array  # [rows, 4]
    click: Array
    conversion: Array
    user: Array
    item: Array

    def __getitem__(self, rows: Any) -> Impressions:
        return Impressions(*(column[rows] for column in vars(self).values()))


def draw(rng: np.random.Generator, rows: int) -> Impressions:
    """What users and items have in common makes rows alike that share one."""
    user, item = rng.integers(1, USERS + 1, rows), rng.integers(1, ITEMS + 1, rows)
    features = 0.6 * rng.normal(size=(USERS + 1, 4))[user]
    features += 0.6 * rng.normal(size=(ITEMS + 1, 4))[item]
    features += 0.5 * rng.normal(size=(rows, 4))
    logit = 0.6 * features.sum(1)
    click = rng.random(rows) < 1 / (1 + np.exp(-logit))
    conversion = rng.random(rows) < 1 / (1 + np.exp(1 - logit))
    return Impressions(features, click, conversion, user, item)


def with_halves_swapped(train: Impressions) -> Impressions:
    """Twice the rows, on which both halves of the features are equally good."""
    swapped = replace(train, features=train.features[:, [2, 3, 0, 1]])
    both = zip(vars(train).values(), vars(swapped).values(), strict=True)
    return Impressions(*(np.concatenate(columns) for columns in both))


def fit(features: Array, label: Array) -> Array:
    """A logistic regression by two steps of Newton's, with a little L2; intercept last."""
    x = np.column_stack([features, np.ones(len(features))])
    w = np.zeros(x.shape[1])
    for _ in range(2):
        p = 1 / (1 + np.exp(-(x @ w)))
        hessian = (x.T * (p * (1 - p))) @ x + np.eye(len(w))
        w += np.linalg.solve(hessian, x.T @ (label - p) - w)
    return w


def predict(features: Array, w: Array) -> Array:
    return 1 / (1 + np.exp(-(features @ w[:-1] + w[-1])))


def run(
    rng: np.random.Generator, train: Impressions, test: Impressions, seen: tuple[int, ...]
) -> Predictions:
    """Train a CTCVR and a CVR model on a part of train, and score test."""
    own = np.flatnonzero(rng.random(len(train.click)) < KEPT)
    x, clicked, converted = train.features[own][:, seen], train.click[own], train.conversion[own]
    ctcvr, cvr = fit(x, clicked & converted), fit(x[clicked], converted[clicked])
    on_test = test.features[:, seen]
    return Predictions(
        Truth(test.click, test.conversion, test.user),
        {"ctcvr": predict(on_test, ctcvr), "cvr": predict(on_test, cvr)},
    )


Parts = tuple[Impressions, Impressions]


def split(rng: np.random.Generator, shares: tuple[float, float]) -> Iterator[Parts]:
    """One data set, which each seed splits."""
    everything = draw(rng, ROWS)
    train, test = (round(share * ROWS) for share in shares)
    while True:
        order = rng.permutation(ROWS)
        yield everything[order[:train]], everything[order[-test:]]


def split_of_a_pool(rng: np.random.Generator) -> Iterator[Parts]:
    """Half of the data set is kept for tuning: seeds train on it, but test on the other half."""
    everything = draw(rng, ROWS)
    while True:
        pool = rng.permutation(ROWS // 2)
        test, rest = np.split(pool, [ROWS // 5])
        yield everything[np.append(rest, np.arange(ROWS // 2, ROWS))], everything[test]


def folds(rng: np.random.Generator) -> Iterator[Parts]:
    """One data set, of which each seed tests on another fifth."""
    everything = draw(rng, ROWS)
    parts = np.split(rng.permutation(ROWS), 5)
    for test in parts:
        yield everything[np.setdiff1d(np.arange(ROWS), test)], everything[test]


def weights(rng: np.random.Generator) -> Iterator[Parts]:
    """One training and one test set for all seeds."""
    train, test = with_halves_swapped(draw(rng, ROWS // 4)), draw(rng, ROWS // 2)
    while True:
        yield train, test


def world(rng: np.random.Generator) -> Iterator[Parts]:
    """All of it anew with each seed."""
    while True:
        everything = draw(rng, ROWS // 2)
        yield everything[: ROWS // 4], everything[ROWS // 4 :]


def study(case: str, number: int, rows: Mapping[str, tuple[int, ...]]) -> Study:
    """A study of five seeds.

    Args:
        case: one of :data:`CASES`.
        number: of the repetition.
        rows: what each row sees, by its label.
    """
    kind, drawn, pool = CASES[case]
    rng = np.random.default_rng([number, len(rows)])
    parts = drawn(rng)
    results, kept = {}, {}
    for seed, (train, test) in zip(range(1, 6), parts, strict=False):
        on = TestRows.of(Truth(test.click, test.conversion, test.user), test.item)
        for label, seen in rows.items():
            predictions = run(rng, train, test, seen)
            spaces = zip(PRIMARY, ("ctcvr", "cvr"), strict=True)
            values = {m: auc(predictions.scored(space).classes) for m, space in spaces}
            data = {
                name: {"impressions": len(part.click), "clicks": 1, "conversions": 1}
                for name, part in (("train", train), ("test", test))
            }
            results[label, seed] = result(values, seed_draws=kind, data=data, test_pool=pool)
            if kind == "weights":
                kept[label, seed] = Influence(on, influence_values(predictions, PRIMARY))
    return Study(
        title="A study",
        command="",
        dataset="simulated",
        rows=[Row(label, "ESMM", aa=label == "again") for label in rows],
        seeds=range(1, 6),
        baseline="ESMM",
        columns=PRIMARY,
        results=results,
        influence=lambda label, seed: kept[label, seed],
    )


#: What a seed draws, how, and from how many impressions test is drawn where not from all.
CASES: dict[str, tuple[str, Callable[[np.random.Generator], Iterator[Parts]], int | None]] = {
    "split 80/10/10": ("split", lambda rng: split(rng, (0.8, 0.1)), None),
    "split 50/10/40": ("split", lambda rng: split(rng, (0.5, 0.4)), None),
    "split of a pool": ("split", split_of_a_pool, ROWS // 2),
    "folds": ("fold", folds, None),
    "weights": ("weights", weights, None),
    "world": ("world", world, None),
}


def studies(case: str, rows: Mapping[str, tuple[int, ...]], count: int) -> Iterator[Study]:
    return (study(case, number, rows) for number in range(count))


def marked(one: Study, label: str) -> bool:
    """Whether the page marks a row in any of its columns."""
    (line,) = (line for line in layout(one).lines if line.label == label)
    return any(entry.mark for entry in line.entries)


def with_draws(one: Study, kind: str) -> Study:
    """The same study, judged as if its seeds drew something else."""
    results = {key: {**run, "seed_draws": kind} for key, run in one.results.items()}
    return replace(one, results=results)


@pytest.mark.parametrize("case", ["split 80/10/10", "folds", "weights", "world"])
def test_a_row_that_is_neither_better_nor_worse_is_seldom_called_so(case):
    false = np.mean([marked(one, "other") for one in studies(case, NULL, 1000)])
    assert false <= TOLERATED


@pytest.mark.parametrize("case", ["split 50/10/40", "split of a pool", "weights"])
def test_a_plain_t_test_calls_it_so_often(case):
    """The test above can fail: with the variance of independent seeds it would."""
    found = [
        (marked(one, "other"), marked(with_draws(one, "world"), "other"))
        for one in studies(case, NULL, 200)
    ]
    corrected, plain = np.mean(found, axis=0)
    assert corrected <= TOLERATED
    assert plain > 0.15


@pytest.mark.parametrize("case", CASES)
def test_a_row_that_is_better_is_found(case):
    found = [layout(one).lines[1].entries[0] for one in studies(case, EFFECT, 60)]
    assert np.mean([entry.mark == "▲" for entry in found]) >= 0.8


@pytest.mark.parametrize("case", CASES)
def test_a_row_that_is_the_baseline_again_seldom_gets_a_verdict(case):
    false = np.mean([marked(one, "again") for one in studies(case, AGAIN, 100)])
    assert false <= TOLERATED


# ---- what a page says


LABELS = ("ESMM", "LR", "ESMM again", "far")
VALUES = {
    "ESMM": (0.700, 0.710, 0.720, 0.706),
    "LR": (0.730, 0.741, 0.752, 0.736),
    "ESMM again": (0.701, 0.709, 0.721, 0.704),
    "far": (0.800, 0.811, 0.822, 0.807),
}


def known(values: Mapping[str, Any] = VALUES, **changes: Any) -> Study:
    """Four seeds of four rows, one of them a logistic regression and one the baseline again."""
    metrics = ("CTR_AUC", *PRIMARY)
    return Study(
        title="A study",
        command="",
        dataset="tiny",
        rows=[Row(label, label.split()[0], aa=label.endswith("again")) for label in values],
        seeds=[1, 2, 3, 4],
        baseline="ESMM",
        columns=metrics,
        results={
            (label, seed): result(dict.fromkeys(metrics, value), **changes)
            for label, seeds in values.items()
            for seed, value in enumerate(seeds, start=1)
        },
    )


def notes(one: Study) -> str:
    return " ".join(layout(one).notes)


def entries(one: Study, label: str) -> dict[str, Any]:
    shown = layout(one)
    (line,) = (line for line in shown.lines if line.label == label)
    return dict(zip((h.key for h in shown.headings), line.entries, strict=True))


class TestPage:
    def test_marks_are_of_primary_metrics_and_two_references(self):
        found = entries(known(), "far")
        assert [found[m].mark + found[m].rival_mark for m in PRIMARY] == ["▲△", "▲△"]
        assert (found["CTR_AUC"].mark, found["CTR_AUC"].baseline.p) == ("", "")
        assert found["CTR_AUC"].baseline.difference == "+0.1010"
        assert found["CTR_AUC"].baseline.interval != ""

    def test_every_format_has_the_same(self):
        one = known()
        cell = "0.8100 ± 0.0092"
        assert f"**{cell}** ▲△" in markdown(one)
        assert r"\textbf{0.8100 $\pm$ 0.0092}$^{\blacktriangle\vartriangle}$" in latex(one)
        assert f"{cell} *▲△" in text(one)
        assert 'aria-label="better than LR">△' in page(one)
        lines = {(r["row"], r["metric"]): r for r in csv.DictReader(io.StringIO(tidy_csv(one)))}
        (far,) = (row for row in as_json(one)["rows"] if row["label"] == "far")
        for metric, primary in (("CTR_AUC", False), *((m, True) for m in PRIMARY)):
            line, numbers = lines["far", metric], far["metrics"][metric]
            verdict = "better" if primary else None
            assert (numbers["verdict"], numbers["lr_verdict"]) == (verdict, verdict)
            assert (line["verdict"], line["lr_verdict"]) == (verdict or "", verdict or "")
            assert (line["primary"], numbers["primary"]) == (str(primary), primary)
            assert float(line["difference_low"]) == numbers["difference_low"]
        assert float(lines["far", "CVR_AUC"]["smallest"]) > 0
        assert as_json(one)["comparisons"] == 6
        assert lines["ESMM again", "CVR_AUC"]["aa"] == "True"

    def test_numbers_stay_in_line_whatever_the_marks(self):
        rows = [line for line in text(known()).splitlines() if "±" in line and "." in line]
        assert len({line.index("±") for line in rows if line.startswith(LABELS)}) == 1

    def test_notes_name_what_verdicts_are_about(self):
        said = notes(known())
        assert "the primary metrics alone, CTCVR_AUC and CVR_AUC, named in advance" in said
        assert "▼ worse than ESMM, △ better and ▽ worse than LR" in said
        # LR and far against ESMM, far against LR, each in two metrics; the A/A row isn't counted
        assert "correction over the 6 comparisons" in said
        assert "smallest difference from ESMM that could have been seen, with 80%" in said

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("split", "with n_test/n_train = 0.125, and t has n - 1"),
            ("fold", "Cross-validation: each seed tests on a fold of its own"),
            ("world", "(paired t test)"),
        ],
    )
    def test_notes_name_the_variance(self, kind, words):
        assert words in notes(known(seed_draws=kind))

    def test_a_result_file_that_says_nothing_is_of_a_split(self):
        one = known()
        results = {
            k: {n: v for n, v in r.items() if n != "seed_draws"} for k, r in one.results.items()
        }
        assert "Nadeau and Bengio" in notes(replace(one, results=results))

    def test_without_a_logistic_regression_there_is_one_reference(self):
        one = known({label: VALUES[label] for label in ("ESMM", "far")})
        assert "△" not in notes(one)
        assert "over the 2 comparisons" in notes(one)
        assert "No A/A row" in notes(one)
        assert "△" not in page(one)

    def test_a_logistic_regression_that_is_the_baseline_is_no_second_reference(self):
        one = replace(known(), baseline="LR")
        assert one.rival is None
        assert "△" not in notes(one)

    def test_primary_metrics_are_shown_whatever_the_columns(self):
        one = replace(known(), columns=["CTR_AUC"])
        assert one.shown == ["CTR_AUC", *PRIMARY]

    def test_the_entire_space_comes_first_where_it_is_defined(self):
        one = known()
        results = {
            k: {**r, "test_result": {**r["test_result"], "CVR_AUC_ES": 0.5}}
            for k, r in one.results.items()
        }
        assert replace(one, primary=(), results=results).primary == ("CTCVR_AUC", "CVR_AUC_ES")
        assert replace(one, primary=("CTR_AUC",)).primary == ("CTR_AUC",)

    def test_an_aa_row_without_a_verdict_is_said(self):
        assert (
            "ESMM again, on the same splits with other initial weights, got no verdict."
            in notes(known())
        )
        assert "(A/A)" in markdown(known())
        assert 'class="tag">A/A<' in page(known())

    @pytest.mark.parametrize("render", [markdown, latex, text, page])
    def test_an_aa_row_with_a_verdict_is_said_loudly(self, render):
        one = known({**VALUES, "ESMM again": VALUES["far"]})
        assert "GOT A VERDICT" in render(one)
        assert "distrust this page" in render(one)
        assert "GOT A VERDICT" not in render(known())

    def test_the_baseline_against_itself_alone_claims_nothing(self):
        said = notes(known({label: VALUES[label] for label in ("ESMM", "ESMM again")}))
        assert "got no verdict" in said
        assert "Holm" not in said
        assert "There is no verdict" not in said

    def test_a_single_seed_says_nothing_of_verdicts(self):
        one = replace(known(), seeds=[1])
        one = replace(one, results={k: r for k, r in one.results.items() if k[1] == 1})
        assert "Holm" not in notes(one)
        assert "A/A" not in notes(one)


class TestRefusals:
    """Where the variance can't be known there is no verdict, and the page says why."""

    def refused(self, one: Study) -> str:
        assert not any(e.mark or e.rival_mark for line in layout(one).lines for e in line.entries)
        assert "There is no verdict" in notes(one)
        assert "No difference could be tested" in page(one)
        return " ".join(map(str, layout(one).problems))

    def test_seeds_that_draw_different_things(self):
        one = known()
        results = dict(one.results)
        results["far", 1] = {**results["far", 1], "seed_draws": "split"}
        said = self.refused(replace(one, results=results))
        assert "seeds don't draw the same in all runs (split, world)" in said

    def test_seeds_that_draw_something_unknown(self):
        assert "what 'dice' draws anew" in self.refused(known(seed_draws="dice"))

    def test_splits_of_unknown_size(self):
        said = self.refused(known(seed_draws="split", data={}))
        assert "no verdict in CTCVR_AUC, CVR_AUC: a run doesn't say how large" in said

    def test_a_fixed_test_set_without_influence_values(self):
        assert "influence of single test rows isn't known" in self.refused(
            known(seed_draws="weights")
        )

    def fixed(self, change: Callable[[str, int, Influence], Influence]) -> Study:
        one = study("weights", 0, NULL)
        kept = {(label, s): change(label, s, one.influence(label, s)) for label, s in one.results}
        return replace(one, influence=lambda label, seed: kept[label, seed])

    def test_other_test_rows(self):
        def change(label, seed, own):
            if (label, seed) != ("other", 2):
                return own
            return replace(own, rows=replace(own.rows, digest="0" * 64))

        said = self.refused(self.fixed(change))
        assert (
            "other: no verdict in CTCVR_AUC, CVR_AUC: its runs weren't scored on the same" in said
        )

    def test_a_primary_metric_without_influence_values(self):
        one = replace(self.fixed(lambda label, seed, own: own), primary=("CTCVR_LogLoss",))
        test = {"CTCVR_LogLoss": 0.1}
        results = {k: {**r, "test_result": test} for k, r in one.results.items()}
        said = self.refused(replace(one, results=results))
        known = "CTR_AUC, CVR_AUC, CTCVR_AUC, CVR_AUC_ES, CTR_AUC_RI, CVR_AUC_RI, CTCVR_AUC_RI"
        assert f"known for {known} alone" in said


def test_verdicts_on_a_fixed_test_set_are_of_one_training_set():
    said = notes(study("weights", 0, NULL))
    assert "Verdicts are about models trained on this one training set." in said
    assert "Satterthwaite" in said


def test_test_rows_that_come_from_a_part_overlap_more():
    """As where half of the impressions are kept for tuning: no seed tests on them."""
    assert known(seed_draws="split", test_pool=10_000).draws.test_share == 1000 / 8000
    assert known(seed_draws="split", test_pool=5_000).draws.test_share == 1000 / 4000
    assert "all that test is drawn from" in known(seed_draws="split", test_pool=1000).draws.refused


def test_runs_on_a_test_file_keep_what_a_verdict_needs(data_path, tmp_path):
    """Real runs, through the files that they leave behind, to a verdict."""
    header, *lines = (data_path / "tiny" / "tiny.inter").read_text().splitlines()
    (tmp_path / "fixed").mkdir()
    for name, part in (
        ("train", lines[:800]),
        ("valid", lines[800:1000]),
        ("test", lines[1000:1500]),
    ):
        file = tmp_path / "fixed" / f"fixed.{name}.inter"
        file.write_text("\n".join([header, *part]) + "\n")
    settings = {
        "data_path": str(tmp_path),
        "benchmark_filename": ["train", "valid", "test"],
        "epochs": 1,
        "embedding_size": 4,
        "mlp_hidden_size": [8],
        "show_progress": False,
    }
    folders = {
        (model, seed): tmp_path / "runs" / f"{model}{seed}"
        for model in ("ESMM", "Naive")
        for seed in (1, 2)
    }
    results = {}
    for (model, seed), folder in folders.items():
        folder.mkdir(parents=True)
        train_and_test(
            model, "fixed", config_dict={**settings, "seed": seed}, saved=False, folder=folder
        )
        results[model, seed] = json.loads((folder / "result.json").read_text())
    one = Study(
        title="",
        command="",
        dataset="fixed",
        rows=[Row("ESMM", "ESMM"), Row("Naive", "Naive")],
        seeds=[1, 2],
        baseline="ESMM",
        columns=[],
        results=results,
        influence=lambda label, seed: read_influence(folders[label, seed]),
    )
    assert one.draws.kind == "weights"
    assert one.primary == ("CTCVR_AUC", "CVR_AUC_ES")
    assert layout(one).problems == ()
    of_seeds = with_draws(one, "world")
    for metric in one.primary:
        own, plain = (s.table["Naive"][metric].comparison for s in (one, of_seeds))
        assert own.verdict is not None
        # users, items and rows of test are in it
        assert own.estimate.error > plain.estimate.error
    rows = one.influence("Naive", 2).rows
    assert [len(ids) for ids in rows.clusters] == [500, 500]
    # and what says nothing about other runs isn't kept by a run alone
    alone = train_and_test(
        "ESMM", "fixed", config_dict={**settings, "output_dir": str(tmp_path / "out")}, saved=False
    )
    assert not list((tmp_path / "out").rglob("*.npz"))
    assert alone["test_result"]["CTCVR_AUC"] > 0


def test_clicks_alone_in_train_are_counted_in_clicks():
    train = {"impressions": 400, "clicks": 400, "conversions": 40}
    one = known(seed_draws="split", data={**DATA, "train": train})
    assert one.draws.test_share == pytest.approx(50 / 400)
