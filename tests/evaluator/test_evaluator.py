"""Metric names, the collector, what is left out, and what a run needs to know beforehand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict
from sklearn.metrics import log_loss, roc_auc_score

from recbole_escm2.config import Config
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.catalogue import SPECS
from recbole_escm2.evaluator.evaluator import (
    EntireSpaceCollector,
    EntireSpaceEvaluator,
    MetricResult,
)
from recbole_escm2.evaluator.predictions import Truth
from recbole_escm2.evaluator.summary import metric_table, scope_notes
from recbole_escm2.evaluator.weights import WeightDiagnostics
from recbole_escm2.metric_names import (
    ALL_TASKS,
    METRIC_NAMES,
    bigger_is_better,
    canonical_name,
    expand,
    is_metric,
    is_per_user,
    score_of,
    task_of,
)


def config_of(**changes):
    base = {
        "metrics": list(METRIC_NAMES),
        "valid_metric": "CTCVR_AUC",
        "topk": [1, 3],
        "decision_threshold": 0.5,
        "calibration_bins": 2,
        "metric_decimal_place": 4,
    }
    return {**base, **changes}


def evaluate(truth, scores, config=None, tasks=("ctr", "cvr", "ctcvr"), label_task="ctcvr"):
    collector = EntireSpaceCollector(tasks, label_task)
    collector.begin(truth)
    for batch in torch.tensor(scores, dtype=torch.float32).split(2):
        collector.eval_batch_collect(batch, None, None, None)
    return EntireSpaceEvaluator(config or config_of()).evaluate(collector.get_data_struct())


# click, conversion (with junk where there is no click), potential, true CVR, pctr, pcvr, user
ROWS = np.array(
    [
        [1, 1, 1, 0.9, 0.8, 0.9, 1],
        [1, 0, 0, 0.4, 0.6, 0.3, 1],
        [0, 1, 1, 0.8, 0.7, 0.6, 1],
        [0, 0, 0, 0.1, 0.1, 0.2, 2],
        [1, 0, 0, 0.2, 0.5, 0.8, 2],
        [0, 0, 1, 0.6, 0.2, 0.1, 2],
    ]
)
CLICK, CONVERSION, POTENTIAL, TRUE_CVR, PCTR, PCVR, _ = ROWS.T
USER = ROWS[:, -1].astype(int)


@pytest.fixture
def truth():
    return Truth(CLICK, CONVERSION, USER, POTENTIAL, None, TRUE_CVR)


@pytest.fixture
def scores():
    return np.stack([PCTR, PCVR, PCTR * PCVR], axis=1)


def test_each_task_is_scored_on_its_own_rows(truth, scores):
    result = evaluate(truth, scores)
    clicked = CLICK == 1
    assert result["CTR_AUC"] == pytest.approx(roc_auc_score(CLICK, PCTR))
    assert result["CVR_AUC"] == pytest.approx(roc_auc_score(CONVERSION[clicked], PCVR[clicked]))
    # o·r, so the conversion of the unclicked third row doesn't count
    assert result["CTCVR_AUC"] == pytest.approx(roc_auc_score([1, 0, 0, 0, 0, 0], PCTR * PCVR))
    assert result["CVR_LogLoss"] == pytest.approx(
        log_loss(CONVERSION[clicked], PCVR[clicked]), rel=1e-6
    )
    assert result["CVR_AUC_ES"] == pytest.approx(roc_auc_score(POTENTIAL, PCVR))
    # |.9-.9|, |.3-.4|, |.6-.8|, |.2-.1|, |.8-.2|, |.1-.6|
    assert result["CVR_MAE_ES"] == pytest.approx((0 + 0.1 + 0.2 + 0.1 + 0.6 + 0.5) / 6)
    assert result["IEB"] == pytest.approx(PCVR.mean() - TRUE_CVR.mean())
    assert result["CVR_Gap"] == pytest.approx(PCVR.mean() - 1 / 3)  # one conversion, three clicks
    assert result["CTR_PCOC"] == pytest.approx(PCTR.mean() / 0.5)
    assert result["CTR_Recall"] == 1  # every click at 0.5 or above
    assert result["CTR_F1"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    # user 1: 2 clicks in its top 3; user 2: 1 click, on top
    assert result["CTR_Recall@3"] == 1
    assert result["CTR_Recall@1"] == pytest.approx((1 / 2 + 1) / 2)


def test_all_metrics_are_computed_and_unrounded(truth, scores):
    result = evaluate(replace(truth, random_impressions=True), scores)
    assert set(result) | set(result.undefined) == set(expand(list(METRIC_NAMES), [1, 3]))
    assert any(round(value, 4) != value for value in result.values())
    assert all(isinstance(value, float) for value in result.values())


def test_recbole_metrics_score_the_task_of_predict(truth, scores):
    config = config_of(metrics=["AUC", "LogLoss", "MAE", "RMSE"], valid_metric="AUC")
    for task, ours in (("ctr", "CTR"), ("cvr", "CVR"), ("ctcvr", "CTCVR")):
        result = evaluate(truth, scores, config, label_task=task)
        reference = evaluate(truth, scores)
        assert result["AUC"] == pytest.approx(reference[f"{ours}_AUC"], abs=1e-12)
        assert result["LogLoss"] == pytest.approx(reference[f"{ours}_LogLoss"], abs=1e-6)


def test_recboles_label_is_made_when_it_is_asked_for(truth, scores):
    collector = EntireSpaceCollector(("ctr", "cvr", "ctcvr"), "cvr")
    collector.begin(truth)
    collector.eval_batch_collect(torch.tensor(scores), None, None, None)
    struct = collector.get_data_struct()
    assert "data.label" not in struct
    assert struct.get("data.label").tolist() == CONVERSION[CLICK == 1].tolist()
    assert struct.get("data.label").dtype == torch.float32
    assert struct.get("rec.score").tolist() == np.float32(PCVR[CLICK == 1]).tolist()
    with pytest.raises(IndexError):
        struct.get("rec.items")


def test_a_single_task_has_its_own_metrics_only(truth, scores):
    result = evaluate(truth, scores[:, 1:2], tasks=("cvr",), label_task="cvr")
    assert {task_of(name) for name in result} == {"cvr"}
    assert result["CVR_AUC"] == evaluate(truth, scores)["CVR_AUC"]


def test_without_potential_outcomes_their_metrics_are_missing(scores):
    result = evaluate(Truth(CLICK, CONVERSION, USER), scores)
    assert not [name for name in result if name.endswith("_ES") or name == "IEB"]
    assert "CVR_Gap" in result


def test_impressions_drawn_at_random_have_metrics_of_their_own(scores):
    found = evaluate(Truth(CLICK, CONVERSION, USER, random_impressions=True), scores)
    of_random = {name: value for name, value in found.items() if name.endswith("_RI")}
    wanted = {f"{task.upper()}_{name}_RI" for task in ALL_TASKS for name in ("AUC", "LogLoss")}
    assert wanted <= set(of_random)
    assert not [name for name in found if name.endswith("_ES") or name == "IEB"]
    for name, value in of_random.items():  # CVR over the clicked ones among them
        assert value == found[name.removesuffix("_RI")]
        assert bigger_is_better(name) == bigger_is_better(name.removesuffix("_RI"))
        assert is_per_user(name) == ("GAUC" in name)
    shown = metric_table(found).split()
    assert {"AUC_RI", "LogLoss_RI"} <= set(shown)
    assert any(note.startswith("…_RI: these impressions were drawn") for note in scope_notes(found))
    selected = evaluate(Truth(CLICK, CONVERSION, USER), scores)
    assert not [name for name in selected if name.endswith("_RI")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CVR_AUC_ES", "the data holds no potential conversions"),
        ("IEB", "the data doesn't hold the true CVR"),
        ("CTR_AUC_RI", "the data's impressions weren't drawn at random"),
    ],
)
def test_a_metric_that_is_named_and_has_no_truth_says_so(scores, name, reason):
    truth = Truth(CLICK, CONVERSION, USER)
    named = Config("ESMM", "toy", config_dict={"metrics": ["CTR_AUC", name.lower()]})
    result = evaluate(truth, scores, named)
    assert set(result) == {"CTR_AUC", "CTCVR_AUC"}  # and the valid metric
    assert result.undefined == {name: reason}
    by_default = evaluate(truth, scores, Config("ESMM", "toy"))
    assert "CTR_AUC" in by_default
    assert name not in by_default
    assert name not in by_default.undefined


def test_where_clicks_arent_known_only_conversions_are_scored(truth, scores):
    found = evaluate(replace(truth, clicks_known=False), scores)
    assert {name for name in found if not name.endswith("_ES")} == {"IEB"}
    assert found["CVR_AUC_ES"] == evaluate(truth, scores)["CVR_AUC_ES"]
    assert found.threshold == {}


def test_ieb_of_potential_conversions_is_that_of_their_mean(scores):
    found = evaluate(Truth(CLICK, CONVERSION, USER, POTENTIAL), scores)
    assert found["IEB"] == pytest.approx(PCVR.mean() - POTENTIAL.mean())
    assert "CVR_MAE_ES" not in found


def test_undefined_metrics_say_why_and_are_left_out(scores):
    result = evaluate(Truth(CLICK, np.zeros(6), None), scores)
    assert "CVR_AUC" not in result
    assert "positive" in result.undefined["CVR_AUC"]
    assert "CTR_AUC" in result
    assert "CTR_GAUC" not in result  # no user ids


def test_the_valid_metric_is_checked_before_training(truth):
    tasks = ("ctr", "cvr", "ctcvr")
    for name in ("CVR_AUC", "CTCVR_AUC", "CVR_GAUC", "CVR_PCOC", "AUC"):
        evaluator = EntireSpaceEvaluator(config_of(metrics=["CTR_AUC"], valid_metric=name))
        evaluator.check_defined(truth, tasks, "ctcvr")
        with pytest.raises(UsageError, match=f"valid_metric {name} has no value"):
            evaluator.check_defined(Truth(CLICK, np.zeros(6), USER), tasks, "ctcvr")
    evaluator = EntireSpaceEvaluator(config_of(valid_metric="IEB"))
    with pytest.raises(UsageError, match="true CVR"):
        evaluator.check_defined(Truth(CLICK, CONVERSION), tasks, "ctcvr")


def test_splits_do_not_mix(truth, scores):
    collector = EntireSpaceCollector(("ctr", "cvr", "ctcvr"), "ctcvr")
    evaluator = EntireSpaceEvaluator(config_of())
    results = []
    for _ in range(2):
        collector.begin(truth)
        collector.eval_batch_collect(torch.tensor(scores), None, None, None)
        results.append(evaluator.evaluate(collector.get_data_struct()))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", [*METRIC_NAMES, "CTR_NDCG@7", "CVR_Recall@20"])
def test_names_ignore_case_and_dashes(name):
    for spelled in (name.lower(), name.upper(), name.replace("_", "-"), f" {name} "):
        assert is_metric(spelled)
        assert canonical_name(spelled) == name


def test_ndcg_alone_means_every_k_of_topk():
    assert canonical_name("ctr_ndcg") == "CTR_NDCG@K"
    assert canonical_name("CTR_Recall") == "CTR_Recall"  # that one exists with a threshold too
    assert expand(["CTR_NDCG", "CVR_Recall@5", "CTR_AUC"], [1, 10]) == {
        "CTR_NDCG@1": 1,
        "CTR_NDCG@10": 10,
        "CVR_Recall@5": 5,
        "CTR_AUC": 0,
    }


@pytest.mark.parametrize(
    "name", ["CTR_AUK", "NDCG", "Recall", "CTR_NDCG@0", "CTR_NDCG@x", "CTR_AUC@3", "", "IEB_ES"]
)
def test_what_is_no_metric(name):
    assert not is_metric(name)


def test_directions():
    smaller = {name for name in METRIC_NAMES if not bigger_is_better(name)}
    assert smaller == {
        name for name in METRIC_NAMES if any(s in name for s in ("LogLoss", "ECE", "MAE", "PCOC"))
    } | {"IEB", "PIP", "CVR_Gap"}
    assert bigger_is_better("AUC")
    assert not bigger_is_better("LogLoss")
    assert {spec.target for spec in SPECS.values() if "PCOC" in spec.name} == {1.0}


def test_results_are_looked_up_in_any_case():
    result = MetricResult(CTR_AUC=0.5)
    assert result["ctr_auc"] == result["CTR-AUC"] == result.get("Ctr_Auc") == 0.5
    assert "ctr_auc" in result
    assert "cvr_auc" not in result
    assert result.get("cvr_auc") is None
    with pytest.raises(KeyError):
        result["nonsense"]


def diagnose(click, pctr, floor):
    return WeightDiagnostics.of(click, pctr, floor, np.maximum(pctr, floor))


def test_weight_diagnostics_by_hand():
    # clicks with pctr .5, .05, .2, and one impression without a click; floor .1
    found = diagnose(np.array([1, 1, 1, 0]), np.array([0.5, 0.05, 0.2, 0.9]), 0.1)
    assert found.clicks == 3
    assert found.share_at_floor == pytest.approx(1 / 3)
    assert found.mean_weight_unfloored == pytest.approx((2 + 20 + 5) / 4)
    assert found.mean_weight == pytest.approx((2 + 10 + 5) / 4)
    assert found.largest_weight == 10
    assert found.effective_sample_size == pytest.approx(17**2 / (4 + 100 + 25))
    assert found.propensity_ece == pytest.approx((0.5 + 0.95 + 0.8 + 0.9) / 4)
    assert diagnose(np.zeros(2), np.ones(2), 0.1) is None


def test_weights_that_cannot_be_trusted_are_said_to_be_so():
    clicked = np.ones(100)
    varied = np.linspace(0.2, 0.9, 100)
    assert diagnose(clicked, varied, 0.1).warning is None
    at_floor = diagnose(clicked, np.full(100, 0.01), 0.1).warning
    assert "nearly constant" in at_floor
    assert "100.0% at the floor" in at_floor
    few = np.append(np.full(99, 0.9), 1e-4)
    assert "a handful" in diagnose(clicked, few, 0.0).warning
    assert diagnose(np.ones(1), np.full(1, 0.5), 0.1).warning is None


def test_a_click_exactly_at_the_floor_is_not_moved_by_it():
    click, pctr = np.ones(4), np.array([0.25, 0.25, 0.125, 0.5])
    assert diagnose(click, pctr, 0.25).share_at_floor == 0.25
    assert diagnose(click, np.array([0.0, 0.5, 0.5, 0.5]), 0.0).share_at_floor == 0


@pytest.mark.parametrize(("at_floor", "advised"), [(20, False), (90, True)])
def test_a_smaller_floor_is_advised_where_most_clicks_are_at_it(at_floor, advised):
    pctr = np.append(np.full(at_floor, 0.09), np.full(100 - at_floor, 0.101))
    warning = diagnose(np.ones(100), pctr, 0.1).warning
    assert "nearly constant" in warning
    assert ("a smaller propensity_floor lets them differ" in warning) == advised


@pytest.mark.parametrize(
    ("propensities", "size", "words"),
    [
        ([0.0, *[0.5] * 99], 1, "a propensity of 0 gives 1 of 100 clicks an infinite weight"),
        ([0.0] * 100, 100, "a propensity of 0 gives 100 of 100 clicks an infinite weight"),
        ([np.nan, *[0.5] * 99], None, "some propensity weights are no numbers"),
        ([1e-200, *[0.5] * 99], 1, "a handful of impressions"),
    ],
)
def test_infinite_weights_and_those_that_are_no_numbers_warn(propensities, size, words):
    found = diagnose(np.ones(100), np.array(propensities), 0.0)
    assert words in found.warning
    if size is not None:
        assert found.effective_sample_size == pytest.approx(size)


# ------------------------------------------------------------------ per user, and the base rate


def test_impressions_without_a_user_are_no_users(truth, scores):
    """Their labels would make a third user, whose AUC is 0."""
    click = np.append(CLICK, [1, 0])
    more = np.append(scores, [[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]], axis=0)
    names = ["CTR_GAUC", "CTR_NDCG@K", "CTR_Recall@K", "CTR_AUC"]
    before = evaluate(truth, scores, config_of(metrics=names))
    longer = Truth(click, np.append(CONVERSION, [0, 0]), np.append(USER, [0, 0]))
    after = evaluate(longer, more, config_of(metrics=names))
    for name in ("CTR_GAUC", "CTR_NDCG@1", "CTR_NDCG@3", "CTR_Recall@3"):
        assert after[name] == before[name]
    assert after["CTR_AUC"] != before["CTR_AUC"]
    assert (before.without_user, after.without_user) == (0, 2)
    nobody = evaluate(Truth(CLICK, CONVERSION, np.zeros(6, int)), scores, config_of(metrics=names))
    assert nobody.undefined["CTR_GAUC"] == "no impression has a user id"


def test_the_base_rate_is_that_of_train(scores):
    train = Truth(np.array([1, 1, 0, 0, 0, 0, 0, 0]), np.array([1, 0, 1, 0, 0, 0, 0, 0]))
    rates = {"ctr": 0.25, "cvr": 0.5, "ctcvr": 0.125}
    assert train.base_rates() == rates  # a conversion without a click is none
    config = config_of(decision_threshold="base_rate")
    found = evaluate(Truth(CLICK, CONVERSION, train_rate=rates), scores, config)
    assert found.threshold == rates
    other = evaluate(Truth(1 - CLICK, CONVERSION, train_rate=rates), scores, config)
    assert other.threshold == rates  # whatever the labels that are scored
    # from pCTR 0.25 on: four impressions, three of them clicked
    assert found["CTR_F1"] == pytest.approx(2 * 3 / (4 + 3))
    unknown = evaluate(Truth(CLICK, CONVERSION), scores, config)
    assert "share of positives in train isn't known" in unknown.undefined["CTR_Recall"]
    assert unknown.threshold == {}


def test_the_distance_of_a_ratio_is_that_of_its_logarithm():
    assert score_of("CTR_PCOC", 0.5) == score_of("CTR_PCOC", 2.0) == pytest.approx(np.log(2))
    assert score_of("CVR_PCOC_ES", 1.0) == 0
    worst = [score_of("CTR_PCOC", value) for value in (0.0, np.inf, 1e-300, 1e300)]
    assert all(np.isfinite(worst))
    assert min(worst[:2]) > max(worst[2:])
    assert score_of("IEB", -0.5) == score_of("IEB", 0.5) == 0.5  # a difference
    assert score_of("CTR_AUC", 0.7) == 0.7


def test_gauc_says_that_it_is_not_recboles():
    assert any("RecBole's own GAUC weights by positives" in t for t in scope_notes(["CTR_GAUC"]))
    assert not any("GAUC" in text for text in scope_notes(["CTR_AUC"]))


def test_our_metrics_under_recboles_own_collector_say_what_is_missing():
    metric = metrics_dict["ctr_auc"](config_of())
    with pytest.raises(ValueError, match="not with RecBole's own Trainer"):
        metric.calculate_metric(DataStruct())


def test_causal_risk_ratios_are_no_metrics_of_the_clicks():
    assert scope_notes(["CVR_CRR", "CVR_CRR_True"]) == []
    assert scope_notes(["CVR_AUC"]) == [
        "CVR: over the clicked impressions, a sample that clicks have selected."
    ]


def test_pip_is_fip_too():
    """Its name in the extended version of the paper, wherever a metric is named."""
    assert (canonical_name("FIP"), canonical_name("fip")) == ("PIP", "PIP")
    assert MetricResult(PIP=0.2)["FIP"] == 0.2
    settings = {"metrics": ["FIP", "IEB", "PIP"], "valid_metric": "FIP", "primary": ["fip"]}
    config = Config("ESMM", "ml-100k", config_dict=settings)
    assert config["metrics"] == ["PIP", "IEB"]
    assert (config["valid_metric"], config["primary"]) == ("PIP", ["PIP"])
    assert metrics_dict["fip"] is not None
    assert "PIP (also called FIP)" in " ".join(scope_notes(["PIP"]))
