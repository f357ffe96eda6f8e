"""Columns of weights: checked as labels are, never features, in the batches of train alone."""

import numpy as np
import pytest
import recbole.config
import torch

from recbole_escm2.config import complete, restore_numpy_names
from recbole_escm2.data.labels import LARGEST
from recbole_escm2.errors import UsageError
from recbole_escm2.model.reference import LogisticRegression
from recbole_escm2.quick_start import run

N = 60
KEYS = {"CLICK_WEIGHT_FIELD": "cw", "CONVERSION_WEIGHT_FIELD": "vw"}


@pytest.fixture
def weighed(toy):
    toy.table["cw:float"] = [str(i % 4) for i in range(N)]
    toy.table["vw:token"] = [str(0.5 + i % 3) for i in range(N)]
    return toy


def test_weights_are_in_the_batches_of_train_and_no_features(weighed, features_of):
    train, valid, test = weighed.build(**KEYS)
    assert features_of(train) == {"user_id", "item_id", "row"}
    assert {"cw", "vw"} <= set(train[:2])
    assert not {"cw", "vw"} & {*valid[:2], *test[:2]}
    rows = np.array([int(token[1:]) for token in train.id2token("row", train.inter_feat["row"])])
    for field, weight in (("cw", rows % 4), ("vw", 0.5 + rows % 3)):
        assert np.allclose(train[:][field], weight / weight.mean(), rtol=1e-6)


def test_a_cvr_model_has_weights_of_mean_one_over_the_clicks(weighed):
    train = weighed.build("DeepFM", task="cvr", **KEYS)[0]
    assert torch.allclose(train[:]["vw"].mean(), torch.tensor(1.0))


def test_without_the_keys_a_column_is_what_it_was(weighed, features_of):
    assert "vw" in features_of(weighed.build()[0])


def test_one_column_may_weigh_both(weighed):
    train = weighed.build(CLICK_WEIGHT_FIELD="cw", CONVERSION_WEIGHT_FIELD="cw")[0]
    assert "cw" in train[:1]


@pytest.mark.parametrize("text", ["-1", "", "nan", "inf", "many", "1e31"])
def test_a_wrong_weight_has_a_place(weighed, text):
    weighed.table.loc[7, "cw:float"] = text
    with pytest.raises(UsageError, match=r"toy\.inter: column 'cw' must hold a weight, .*line 9"):
        weighed.dataset(**KEYS)
    assert LARGEST < 1e31


def test_a_missing_column_and_weights_of_nothing_are_refused(weighed):
    with pytest.raises(UsageError, match=r"has no column 'w' \(CLICK_WEIGHT_FIELD\)"):
        weighed.dataset(CLICK_WEIGHT_FIELD="w")
    weighed.table["cw:float"] = "0"
    weighed.write()
    with pytest.raises(UsageError, match="the weights 'cw' are 0 in all 48"):
        weighed.build(**KEYS)


def test_metrics_have_weights_where_they_are_to(weighed):
    assert weighed.build(**KEYS)[2].truth.click_weight is None
    train, _, test = weighed.build(**KEYS, weighted_metrics=True)
    rows = np.array([int(token[1:]) for token in test.id2token("row", test.inter_feat["row"])])
    assert test.truth.click_weight.tolist() == (rows % 4).tolist()
    assert np.allclose(test.truth.conversion_weight, 0.5 + rows % 3)
    of_train = train.truth.click_weight
    wanted = of_train[train.truth.click > 0].sum() / of_train.sum()
    assert test.truth.train_rate["ctr"] == pytest.approx(wanted)


def settings_of(toy):
    return {
        "data_path": str(toy.data_path),
        "output_dir": str(toy.data_path / "output"),
        "show_progress": False,
        "valid_metric": "CTR_LogLoss",
        "eval_args": {"split": {"RS": [3, 1, 1]}},
    }


@pytest.mark.parametrize("model", ["ESCM2_DR", "DeepFM", "LogisticRegression", "LightGBM"])
def test_a_weight_for_all_changes_no_run(weighed, model):
    weighed.table["cw:float"] = weighed.table["vw:token"] = "3"
    weighed.write()
    pair = {} if model == "ESCM2_DR" else {"task": "both", "valid_metric": "CTCVR_LogLoss"}
    if model in ("ESCM2_DR", "DeepFM"):
        pair["epochs"] = 2
    left_out = {"unload_col": {"inter": ["cw", "vw"]}}
    results = [
        run(model, "toy", config_dict={**settings_of(weighed), **pair, **more}, saved=False)
        for more in (left_out, KEYS, {**KEYS, "weighted_metrics": True})
    ]
    plain, trained, scored = (result["test_result"] for result in results)
    assert trained == plain
    assert scored.undefined["CTR_GAUC"].startswith("GAUC has no form for impressions that have")
    kept = [name for name in plain if name in scored]
    assert {"CTR_AUC", "CTCVR_LogLoss", "CVR_PCOC", "CTR_F1"} <= set(kept)
    assert [scored[name] for name in kept] == pytest.approx([plain[name] for name in kept])


def test_a_logistic_regression_with_whole_weights_is_that_of_rows_repeated(toy):
    weights = np.arange(N) // 3 % 3
    toy.table["cw:float"] = weights.astype(str)
    whole = toy.table[:40].loc[toy.table.index[:40].repeat(weights[:40])]
    fitted = []
    for penalty, table, key in (
        (1.0, toy.table[:40], "cw"),
        (float(weights[:40].mean()), whole, None),
    ):
        for name, part in (("train", table), ("valid", toy.table[40:50]), ("test", toy.table[50:])):
            toy.write(f"{name}.inter", part)
        config = toy.config(
            "LogisticRegression",
            benchmark_filename=["train", "valid", "test"],
            l2_penalty=penalty,
            CLICK_WEIGHT_FIELD=key,
            load_col={"inter": ["user_id", "item_id", "click", "conversion"]},
        )
        train = toy.dataset("LogisticRegression", **config.external_config_dict).build()[0]
        model = LogisticRegression(config, train)
        list(model.fit_steps(train))
        tokens = {t: i for i, t in enumerate(train.field2id_token["user_id"])}
        known = {t: float(model.weight[i]) for t, i in tokens.items() if t.startswith("u")}
        fitted.append(known | {"bias": float(model.bias)})
    assert fitted[0] == pytest.approx(fitted[1], abs=1e-3)


def test_click_weights_that_tell_of_the_click_are_warned_of(weighed, caplog):
    weighed.table["cw:float"] = np.where(weighed.table["click:float"] == "1", "5", "1")
    weighed.write()
    given = {**settings_of(weighed), "epochs": 1, "CLICK_WEIGHT_FIELD": "cw"}
    run("ESCM2_IPS", "toy", config_dict=given, saved=False)
    assert "other odds than those of a click" in caplog.text
    caplog.clear()
    run("ESMM", "toy", config_dict=given, saved=False)
    assert "other odds" not in caplog.text


@pytest.mark.parametrize("given", [{"CLICK_WEIGHT_FIELD": "w"}, {"pos_weight": {"ctr": 2}}])
def test_stock_recbole_trains_its_models_without_weights(data_path, monkeypatch, given):
    stock = recbole.config.Config
    monkeypatch.setattr("sys.argv", ["stock"])  # which it reads
    monkeypatch.setattr(stock, "compatibility_settings", lambda self: restore_numpy_names())
    config = stock("DeepFM", "tiny", config_dict={"data_path": str(data_path), **given})
    with pytest.raises(UsageError, match="stock RecBole trains DeepFM without weights"):
        complete(config)
