"""Which of several events is the label; a log without conversions."""

import numpy as np
import pandas as pd
import pytest

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, save_table
from recbole_escm2.errors import UsageError
from recbole_escm2.model_names import MODEL_NAMES
from recbole_escm2.quick_start import run

N = 60
ANY = ["cart", "purchase"]


@pytest.fixture
def shop(toy):
    """Of the clicks of every third row some go into a cart, others are bought."""
    del toy.table["conversion:float"]
    n = np.arange(N)
    toy.table["cart:float"] = (n % 6 == 0).astype(int).astype(str)
    toy.table["purchase:token"] = (n % 9 == 0).astype(int).astype(str)
    return toy


def rows_with(part, column):
    ids = part.inter_feat["row"][part.truth.conversion > 0]
    return {int(token[1:]) for token in part.id2token("row", ids.numpy())}, column


def converted(parts):
    return set.union(*(rows_with(part, None)[0] for part in parts))


EVENTS = {
    "cart": {i for i in range(N) if i % 6 == 0},
    "purchase": {i for i in range(N) if i % 9 == 0},
}


@pytest.mark.parametrize("names", [["cart"], ["purchase"], ANY, "purchase"], ids=str)
def test_a_conversion_is_any_of_the_columns_named(shop, features_of, names):
    parts = shop.build(CONVERSION_FIELD=names, EVENT_FIELDS=["click", *ANY])
    chosen = [names] if isinstance(names, str) else names
    assert converted(parts) == set.union(*(EVENTS[name] for name in chosen))
    assert features_of(parts[0]) == {"user_id", "item_id", "row"}
    assert parts[0].conversion_field == "+".join(chosen)


def test_columns_that_a_label_is_any_of_are_no_features(shop, features_of):
    assert features_of(shop.build(CONVERSION_FIELD=ANY)[0]) == {"user_id", "item_id", "row"}


def test_without_event_fields_another_event_is_a_feature(shop, features_of):
    """Which is why there are event fields; and a list of columns to load may leave it out."""
    assert "purchase" in features_of(shop.build(CONVERSION_FIELD="cart")[0])
    loaded = {"inter": ["user_id", "item_id", "purchase"]}
    given = {"load_col": loaded, "EVENT_FIELDS": ["cart", "purchase"]}
    parts = shop.build(CONVERSION_FIELD="cart", **given)
    assert features_of(parts[0]) == {"user_id", "item_id"}


def test_a_click_is_any_of_several_too(shop, features_of):
    """A cart without a click is then one, and no conversion without a click."""
    shop.table["cart:float"] = (np.arange(N) % 6 == 1).astype(int).astype(str)
    parts = shop.build(CLICK_FIELD=["click", "cart"], CONVERSION_FIELD="cart")
    clicks = sum(int(part.truth.click.sum()) for part in parts)
    assert clicks == sum(i % 3 == 0 or i % 6 == 1 for i in range(N))
    assert converted(parts) == {i for i in range(N) if i % 6 == 1}
    assert "cart" not in features_of(parts[0])


@pytest.mark.parametrize("text", ["2", "", "yes"])
def test_each_of_the_columns_is_checked(shop, text):
    shop.table.loc[7, "purchase:token"] = text
    with pytest.raises(UsageError, match=r"toy\.inter: column 'purchase' must hold 0 or 1.*line 9"):
        shop.build(CONVERSION_FIELD=ANY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CONVERSION_FIELD": ["cart", "sale"]}, r"has no column 'sale' \(CONVERSION_FIELD\)"),
        ({"CONVERSION_FIELD": "cart", "EVENT_FIELDS": ["sale"]}, "EVENT_FIELDS.*sale"),
        (
            {"CONVERSION_FIELD": ["cart", "cart"]},
            "CONVERSION_FIELD must be the name of a column, or",
        ),
        ({"CONVERSION_FIELD": []}, "CONVERSION_FIELD must be the name of a column, or"),
    ],
)
def test_what_is_not_there_is_refused(shop, settings, message):
    with pytest.raises(UsageError, match=message):
        shop.build(**settings)


def test_published_data_has_its_own_events():
    with pytest.raises(UsageError, match="for atomic files and tables, not for coat"):
        Config("ESMM", "coat", config_dict={"CONVERSION_FIELD": ANY})


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_tables_have_several_events(tmp_path, suffix):
    n = np.arange(N)
    frame = pd.DataFrame({"item_id": n % 7, "click": n % 3 == 0})
    frame["cart"], frame["purchase"] = n % 6 == 0, (n % 9 == 0).astype(int)
    save_table(frame, "mine", tmp_path)
    if suffix == "csv":
        (tmp_path / "mine" / "mine.parquet").unlink()
        frame.to_csv(tmp_path / "mine" / "mine.csv", index=False)

    def dataset(**settings):
        given = {"data_path": str(tmp_path), **settings}
        return EntireSpaceDataset(Config("ESMM", "mine", config_dict=given))

    both = dataset(CONVERSION_FIELD=ANY)
    assert both.counts()["conversions"] == len(EVENTS["cart"] | EVENTS["purchase"])
    assert list(both.field2id_token) == ["item_id"]
    one = dataset(CONVERSION_FIELD="purchase", EVENT_FIELDS=["click", *ANY])
    assert one.counts()["conversions"] == len(EVENTS["purchase"])
    assert list(one.field2id_token) == ["item_id"]
    with pytest.raises(UsageError, match="'sale'"):
        dataset(CONVERSION_FIELD=["cart", "sale"])
    frame["cart"] = frame["cart"].astype(int)
    frame.loc[3, "cart"] = 2
    (tmp_path / "mine" / f"mine.{suffix}").unlink()
    save_table(frame, "mine", tmp_path)
    with pytest.raises(UsageError, match=r"column 'cart' must hold 0 or 1.*row 4 has '2'"):
        dataset(CONVERSION_FIELD=ANY)


@pytest.mark.parametrize("of_click", [True, False])
def test_an_event_after_the_click_is_pointed_at(tmp_path, caplog, of_click):
    rng = np.random.default_rng(0)
    click, some = rng.random(3000) < 0.4, rng.random(3000) < 0.5
    frame = pd.DataFrame({"item_id": rng.integers(20, size=3000), "click": click})
    frame["cart"] = (click & some) if of_click else some
    frame["conversion"] = click & (rng.random(3000) < 0.4)
    save_table(frame, "mine", tmp_path)
    given = {"data_path": str(tmp_path)}
    EntireSpaceDataset(Config("ESMM", "mine", config_dict=given))
    assert ("with one value of 'cart' is clicked: if it is an event" in caplog.text) == of_click
    caplog.clear()
    EntireSpaceDataset(Config("ESMM", "mine", config_dict={**given, "EVENT_FIELDS": ["cart"]}))
    assert "cart" not in caplog.text


# --- clicks alone ----------------------------------------------------------------------------


@pytest.fixture
def clicks(toy):
    del toy.table["conversion:float"]
    return toy


@pytest.mark.parametrize("field", ["conversion", None])
@pytest.mark.parametrize("model", ["DeepFM", "LR", "LogisticRegression", "Constant"])
def test_clicks_alone_are_learned(clicks, model, field):
    clicks.write()
    given = {
        "data_path": str(clicks.data_path),
        "output_dir": str(clicks.data_path / "output"),
        "eval_args": {"split": {"RS": [3, 1, 1]}},
        "valid_metric": "CTR_LogLoss",
        "show_progress": False,
    }
    given |= {} if field else {"CONVERSION_FIELD": None}
    given |= {"epochs": 1} if model in ("DeepFM", "LR") else {}
    result = run(model, "toy", config_dict=given, saved=False)["test_result"]
    assert 0 < result["CTR_LogLoss"] < 2
    assert not any(name.startswith(("CVR", "CTCVR")) for name in result)


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_entire_space_models_refuse_clicks_alone(clicks, model):
    with pytest.raises(UsageError, match=r"no column 'conversion' \(CONVERSION_FIELD\)"):
        clicks.dataset(model)
    clicks.dataset("DeepFM")  # whose store an entire-space model then opens
    with pytest.raises(UsageError, match=f"{model} learns ctr, cvr, ctcvr. Clicks alone are"):
        clicks.dataset(model)


def test_a_conversion_that_is_named_has_to_be_there(clicks):
    with pytest.raises(UsageError, match=r"has no column 'bought' \(CONVERSION_FIELD\)"):
        clicks.dataset("DeepFM", CONVERSION_FIELD="bought")


@pytest.mark.parametrize("task", ["cvr", "ctcvr", "both"])
def test_other_tasks_refuse_clicks_alone(clicks, task):
    with pytest.raises(UsageError, match=r"no column 'conversion' \(CONVERSION_FIELD\)"):
        clicks.dataset("DeepFM", task=task)
