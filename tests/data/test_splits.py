"""Each row in one part, whatever splits D; what belongs together stays together."""

import logging
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_escm2.config import Config
from recbole_escm2.data import EntireSpaceDataset, save_table
from recbole_escm2.data.splits import Ordered, fold_of, seed_draws
from recbole_escm2.errors import UsageError

N = 60
DAY = 86_400
FIRST = datetime(2018, 1, 1, tzinfo=UTC).timestamp()  # float32 would be off by a minute from here
RANDOM = {"split": {"RS": [0.8, 0.1, 0.1]}}


def with_times(toy, times):
    toy.table["timestamp:float"] = [f"{time:.3f}" for time in times]
    return toy


@pytest.fixture
def daily(toy):
    """Row i of day i // 2, from 2018-01-01 to 2018-01-30: each moment is that of two rows."""
    return with_times(toy, [FIRST + DAY * (i // 2) for i in range(N)])


def by_time(*moments):
    return {"eval_args": {"split": {"TIME": list(moments)}}}


WAYS = {
    "dates": by_time("2018-01-21", "2018-01-26"),
    "numbers": by_time(FIRST + 20 * DAY, FIRST + 25 * DAY),
    "a date of a zone": by_time("2018-01-21T01:00+01:00", "2018-01-26 00:00"),
    "shares of the time": by_time(0.7, 0.15, 0.15),
    "order of time": {"eval_args": {"split": {"RS": [7, 2, 1]}, "order": "TO"}},
    "whole users": {"keep_together": "user_id", "eval_args": {"split": {"RS": [4, 1, 1]}}},
    "whole items": {"keep_together": "item_id", "eval_args": RANDOM},
    "folds": {"folds": 4},
    "folds of users": {
        "folds": 3,
        "keep_together": "user_id",
        "eval_args": {"split": RANDOM["split"]},
    },
}


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("way", WAYS)
def test_each_row_is_in_one_part(daily, rows_of, way, seed):
    parts = daily.build(seed=seed, **WAYS[way])
    assert all(len(part) for part in parts)
    assert sorted(rows_of(*parts)) == list(range(N))


@pytest.mark.parametrize("way", ["dates", "numbers", "a date of a zone"])
def test_an_impression_of_a_moment_is_after_it(daily, rows_of, way):
    train, valid, test = daily.build(**WAYS[way])
    assert rows_of(train) == list(range(40))
    assert rows_of(valid) == list(range(40, 50))
    assert rows_of(test) == list(range(50, 60))


def test_moments_are_exact_to_the_second(toy, rows_of):
    """Years after the first impression, where a float32 of seconds knows minutes alone."""
    at = datetime(2023, 6, 1, tzinfo=UTC).timestamp()
    times = (
        [FIRST + i for i in range(40)] + [at - 1, at, at + 1] + [at + 100 + i for i in range(17)]
    )
    parts = with_times(toy, times).build(**by_time("2023-06-01", at + 100.5))
    assert [rows_of(part)[0] for part in parts] == [0, 41, 44]


def test_shares_of_the_time_are_none_of_the_rows(toy, rows_of):
    times = [*range(50), *range(900, 1000, 10)]
    train, valid, test = with_times(toy, times).build(**by_time(0.5, 0.45, 0.05))
    assert [len(rows_of(part)) for part in (train, valid, test)] == [50, 5, 5]


def test_the_log_has_the_moments(daily, caplog):
    with caplog.at_level(logging.INFO):
        daily.build(**by_time("2018-01-21", "2018-01-26"))
        daily.build(**WAYS["order of time"])
    assert (
        "(timestamp): valid from 2018-01-21 00:00:00, test from 2018-01-26 00:00:00" in caplog.text
    )
    assert (
        "(timestamp): valid from 2018-01-22 00:00:00, test from 2018-01-28 00:00:00" in caplog.text
    )


@pytest.mark.parametrize("shares", [[7, 2, 1], [31, 9, 20], [1, 1, 1]])
def test_in_the_order_of_time_a_moment_is_in_one_part(toy, rows_of, shares):
    with_times(toy, [1000 - i // 7 for i in range(N)])
    parts = toy.build(eval_args={"split": {"RS": shares}, "order": "TO"})
    moments = [{i // 7 for i in rows_of(part)} for part in parts]
    assert moments == sorted(moments, key=min, reverse=True)
    assert sum(map(len, moments)) == len(set.union(*moments))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - N * share / sum(shares)) <= 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (by_time("2018-01-26", "2018-01-21"), "validation begins before test"),
        (
            by_time("2018-01-21", "2018-02-21"),
            "2018-02-21 has impressions on one side only.* to 20",
        ),
        (by_time("1999-01-01", "2018-01-21"), "1999-01-01 has impressions on one side only"),
        (by_time("soon"), "eval_args split must be"),
        (by_time(), "eval_args split must be"),
        (by_time(0.5, 0.5, 0.5, 0.5), "eval_args split must be"),
        ({"eval_args": {"split": {"TIME": [1, 2]}, "group_by": "user"}}, "TIME has the same"),
        ({"folds": 5, **by_time(0.8, 0.1, 0.1)}, "folds goes with a random split"),
        ({"folds": 5, "eval_args": {"order": "TO"}}, "folds goes with a random split"),
        ({"folds": 61}, "folds 61: there are 60 impressions"),
        ({"folds": 7, "keep_together": "user_id"}, "folds 7: there are 6 impressions, or groups"),
        ({"keep_together": "user_id", "eval_args": {"group_by": "user"}}, "goes with a random"),
        ({"keep_together": "session"}, "keep_together must name a column of tokens.*'session'"),
        ({"keep_together": "timestamp"}, "keep_together must name a column of tokens"),
        (
            {"keep_together": "user_id", "tuning_part": {"share": 0.5, "seed": 1, "role": "trial"}},
            "keep_together leaves no impressions that can be reserved for tuning",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(daily, settings, message):
    with pytest.raises(UsageError, match=message):
        daily.build(**settings)


@pytest.mark.parametrize("key", [{"folds": 3}, {"keep_together": "user_id"}])
def test_files_that_are_parts_are_not_split_again(toy, key):
    with pytest.raises(UsageError, match="does nothing where the data has parts of its own"):
        toy.build(**toy.write_parts(30, 40), **key)


def test_a_split_by_time_takes_a_time(toy):
    with pytest.raises(UsageError, match=r"split TIME needs the column 'timestamp' \(TIME_FIELD\)"):
        toy.build(**by_time(1))


# --- what belongs together -------------------------------------------------------------------


@pytest.mark.parametrize("column", ["user_id", "item_id"])
@pytest.mark.parametrize("folds", [None, 3])
def test_no_value_is_in_two_parts(toy, column, folds):
    seen = set()
    for seed in range(4):
        parts = toy.build(
            keep_together=column, folds=folds, seed=seed, eval_args={"split": {"RS": [3, 1, 2]}}
        )
        values = [set(part.inter_feat[column].tolist()) for part in parts]
        assert sum(map(len, values)) == len(set.union(*values))
        seen.add(tuple(sorted(values[2])))
    assert len(seen) > 1  # another seed, another test


def test_rare_users_that_share_an_id_are_told_apart(toy):
    """Of two users one is in train alone, although both are unknown to the vocabulary."""
    toy.table["user_id:token"] = [f"u{i // 2}" for i in range(N)]
    parts = toy.build(keep_together="user_id", min_count=3, eval_args={"split": {"RS": [1, 1, 1]}})
    assert [len(part) for part in parts] == [20, 20, 20]
    users = [set(part.truth.user) for part in parts]
    assert sum(map(len, users)) == len(set.union(*users)) == 30


def test_rows_without_a_value_are_rows_by_themselves(toy):
    toy.table["session:token"] = ["" if i % 2 else "s1" for i in range(N)]
    parts = toy.build(keep_together="session", eval_args={"split": {"RS": [4, 1, 1]}})
    of_session = [int((part.inter_feat["session"] > 0).sum()) for part in parts]
    assert sorted(of_session) == [0, 0, 30]
    assert sum(map(len, parts)) == N
    assert min(map(len, parts)) > 0


# --- folds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [{}, {"keep_together": "user_id"}])
@pytest.mark.parametrize("first", [0, 2020])
def test_the_tests_of_as_many_seeds_as_folds_are_all_impressions(toy, rows_of, together, first):
    tests = [toy.build(folds=5, seed=first + k, **together)[2] for k in range(5)]
    assert sorted(rows_of(*tests)) == list(range(N))
    again = toy.build(folds=5, seed=first + 5, **together)[2]
    assert rows_of(again) == rows_of(tests[0])


def test_of_the_rest_of_a_fold_eval_args_says_what_validates(toy):
    sizes = [len(part) for part in toy.build(folds=4, eval_args={"split": {"RS": [2, 1, 9]}})]
    assert sizes == [30, 15, 15]


def test_folds_without_a_share_to_train_on(toy):
    with pytest.raises(UsageError, match=r"^folds 4: .*\[0, 0, 1\]\} leaves nothing to train on$"):
        toy.build(folds=4, eval_args={"split": {"RS": [0, 0, 1]}})


def test_seeds_with_folds_draw_folds(toy):
    assert toy.build(folds=4)[0].seed_draws == "fold"
    assert seed_draws(toy.config(), presplit=True) == "weights"
    daily = toy.config(eval_args={"split": {"TIME": [1, 2]}})
    assert seed_draws(daily, presplit=False) == "weights"


# --- as functions ----------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(np.array)


def shuffled(seed):
    return np.random.default_rng(seed).permutation


@given(NUMBERS, st.lists(st.integers(0, 40), max_size=3), st.integers(0, 3))
def test_parts_have_each_row_once_and_cut_nothing(together, ends, seed):
    ends = sorted(min(end, len(together)) for end in ends)
    ordered = Ordered.at_random(together, len(together), shuffled(seed))
    parts = ordered.cut(ends)
    assert len(parts) == len(ends) + 1
    assert sorted(np.concatenate(parts)) == list(range(len(together)))
    values = [set(together[part]) - {0} for part in parts]
    assert sum(map(len, values)) == len(set.union(*values))
    wanted = np.diff([0, *ends, len(together)])
    if len(ordered.starts) >= len(parts):
        assert all(len(part) for part, size in zip(parts, wanted, strict=True) if size)
    if len(ordered.starts) == len(together):
        assert [len(part) for part in parts] == wanted.tolist()


@pytest.mark.parametrize(
    ("sizes", "ends", "parts"),
    [
        ([3, 3, 3], [4, 8], [3, 3, 3]),
        ([10, 1, 1], [4, 8], [10, 1, 1]),
        ([1, 1, 10], [4, 8], [1, 1, 10]),
        ([2, 2, 2, 2], [3, 5], [4, 2, 2]),
        ([5], [2, 3], [0, 0, 5]),  # more parts than groups
    ],
)
def test_parts_end_where_a_group_does(sizes, ends, parts):
    starts = np.cumsum([0, *sizes[:-1]])
    cut = Ordered(np.arange(sum(sizes)), starts).cut(ends)
    assert [len(part) for part in cut] == parts


@given(NUMBERS, st.integers(2, 4), st.integers(0, 9))
def test_folds_have_each_row_in_one_part(together, folds, seed):
    rows = len(together)

    def fold(seed):
        return fold_of(together, rows, folds, seed, lambda n: [n // 2], shuffled(seed))

    try:
        parts = fold(seed)
    except UsageError:
        assert np.count_nonzero(together == 0) + len(set(together) - {0}) < folds
        return
    assert sorted(np.concatenate(parts)) == list(range(rows))
    tests = [fold(k)[2] for k in range(folds)]
    assert sorted(np.concatenate(tests)) == list(range(rows))


# --- without validation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_args": {"split": {"RS": [0.8, 0, 0.2]}}},
        {"eval_args": {"split": {"RS": [0.8, 0, 0.2]}, "order": "TO"}},
        {"eval_args": {"split": {"RS": [0.8, 0, 0.2]}}, "keep_together": "user_id"},
        {"eval_args": {"split": {"RS": [1, 0, 1]}}, "folds": 5},
        {"eval_args": {"split": {"LS": "test_only"}}},
        by_time("2018-01-25"),
        by_time(0.8, 0, 0.2),
    ],
    ids=str,
)
def test_a_split_may_have_no_validation(daily, rows_of, settings):
    train, valid, test = daily.build(**settings)
    assert len(valid) == 0
    assert len(test) == (
        6 if "LS" in str(settings) else 10 if "user_id" in settings.values() else 12
    )
    assert sorted(rows_of(train, test)) == list(range(N))


@pytest.mark.parametrize("share", [None, 0.25])
def test_two_files_are_train_and_test(toy, rows_of, share):
    toy.write("one.inter", toy.table[:40])
    toy.write("two.inter", toy.table[40:])
    parts = toy.build(benchmark_filename=["one", "two"], validation_share=share, seed=3)
    assert [len(part) for part in parts] == ([40, 0, 20] if share is None else [30, 10, 20])
    assert sorted(rows_of(*parts[:2])) == list(range(40))
    assert rows_of(parts[2]) == list(range(40, 60))
    assert parts[0].seed_draws == "weights"


def test_two_tables_are_train_and_test(tmp_path):
    frame = pd.DataFrame({"item_id": [f"i{i % 7}" for i in range(40)], "click": [0, 1] * 20})
    parts = {"train": frame[:30], "test": frame[30:]}
    save_table(parts, "mine", tmp_path)
    config = Config(
        "DeepFM",
        "mine",
        config_dict={"data_path": str(tmp_path), "benchmark_filename": ["train", "test"]},
    )
    assert [len(part) for part in EntireSpaceDataset(config).build()] == [30, 0, 10]


def test_times_of_a_table_may_have_nanoseconds(tmp_path):
    first, step = pd.Timestamp("2020-01-01 00:00:00.123456789"), pd.Timedelta("1D")
    frame = pd.DataFrame(
        {"timestamp": [first + i * step for i in range(30)], "click": [0, 1, 1] * 10}
    )
    frame["conversion"], frame["item_id"] = frame["click"], "a"
    save_table(frame, "mine", tmp_path)
    given = {"data_path": str(tmp_path), **by_time("2020-01-11", "2020-01-21")}
    dataset = EntireSpaceDataset(Config("ESMM", "mine", config_dict=given))
    assert [len(part) for part in dataset.build()] == [10, 10, 10]


def test_a_share_of_train_needs_a_test_of_its_own(toy):
    with pytest.raises(
        UsageError, match=r"validation_share .*eval_args says it: split \{RS: \[0.8"
    ):
        toy.build(validation_share=0.1)
