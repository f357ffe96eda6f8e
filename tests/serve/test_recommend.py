"""The command recommend: the best items, as scoring every pair by itself has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recbole_escm2
from recbole_escm2.command_line import main

IDS = ["user_id", "item_id"]


@pytest.fixture
def tables(done, tmp_path, monkeypatch):
    """Files of users (with an hour each), of items, and of what users have seen."""
    monkeypatch.chdir(tmp_path)
    users = done.frame[["user_id", "age"]].drop_duplicates().reset_index(drop=True)
    users["hour"] = (users.index % 24).astype(str)
    items = done.frame[["item_id", "category", "tags"]].drop_duplicates().reset_index(drop=True)
    seen = done.frame[IDS].drop_duplicates().head(700)
    users.to_parquet("users.parquet")
    items.to_csv("items.csv", index=False)
    seen.assign(further=1).to_csv("seen.csv", index=False)
    return users, items, seen


@pytest.fixture
def recommend(done, tables, capsys):
    """Runs the command in this process; returns its exit code, and what it says."""

    def call(*arguments: str, out: str = "best.parquet") -> tuple[int, str]:
        code = main(["recommend", f"--checkpoint={done.folder}", f"--out={out}", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


ALL = ("--users=users.parquet", "--items=items.csv")


def best_of(done, tables, by, k, without_seen):
    users, items, seen = tables
    pairs = users.merge(items, how="cross")
    scores = recbole_escm2.load(done.folder).predict(pairs)
    pairs = pd.concat([pairs, scores], axis=1)
    if without_seen:
        pairs = pairs.merge(seen.assign(seen=True), "left", IDS)
        pairs = pairs[pairs["seen"].isna()]
    pairs = pairs.sort_values(f"p{by}", ascending=False, kind="stable")
    return pairs.groupby("user_id").head(k)


@pytest.mark.parametrize(("by", "rows"), [("ctcvr", 1 << 16), ("cvr", 100)])
def test_the_best_of_all_items_without_those_seen(done, tables, recommend, monkeypatch, by, rows):
    """Whatever the size of a block, here of all users and of two at once."""
    monkeypatch.setattr("recbole_escm2.serve.scorer.ROWS", rows)
    code, said = recommend(*ALL, "--seen=seen.csv", "--k=5", f"--by={by}")
    assert code == 0, said
    got = pd.read_parquet("best.parquet")
    assert list(got) == [*IDS, "rank", "pctr", "pcvr", "pctcvr"]
    assert got["user_id"].drop_duplicates().tolist() == tables[0]["user_id"].tolist()
    assert (got["rank"] == got.groupby("user_id").cumcount() + 1).all()
    expected = best_of(done, tables, by, 5, without_seen=True)
    pairs = got.merge(expected, "left", IDS, suffixes=("", "_by_itself"))
    assert len(got) == len(expected)
    for _, own in pairs.groupby("user_id"):
        assert (own[f"p{by}"].diff().dropna() <= 0).all()
    assert np.allclose(pairs[f"p{by}"], pairs[f"p{by}_by_itself"], rtol=0, atol=1e-6)
    least = expected.groupby("user_id")[f"p{by}"].min()
    assert np.allclose(got.groupby("user_id")[f"p{by}"].min(), least, rtol=0, atol=1e-6)


@pytest.mark.parametrize("waiting", [1 << 20, 50])
def test_the_best_of_candidates_is_the_best_of_all_where_they_are_all(
    done, tables, recommend, monkeypatch, waiting
):
    monkeypatch.setattr("recbole_escm2.serve.recommend._WAITING", waiting)
    users, items, _ = tables
    pairs = users[["user_id"]].merge(items[["item_id"]], how="cross")
    pairs.sample(frac=1, random_state=0).to_csv("pairs.csv", index=False)
    code, said = recommend(*ALL, "--seen=seen.csv", "--k=3", "--candidates=pairs.csv")
    assert code == 0, said
    of_pairs = pd.read_parquet("best.parquet").sort_values(["user_id", "rank"])
    code, said = recommend(*ALL, "--seen=seen.csv", "--k=3", out="best.csv")
    assert code == 0, said
    of_all = pd.read_csv("best.csv").sort_values(["user_id", "rank"])
    assert of_pairs["user_id"].tolist() == of_all["user_id"].tolist()
    assert np.allclose(of_pairs["pctcvr"], of_all["pctcvr"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (ALL[:1], "recommend needs --items="),
        ((*ALL, "--k=0"), "--k must be a whole number from 1 on, got '0'"),
        ((*ALL, "--k=²"), "--k must be a whole number from 1 on, got '²'"),
        ((*ALL, "--by=ctcr"), "--by=ctcr: the model predicts ctr, cvr, ctcvr (did you mean"),
        ((*ALL, "--sen=a"), "recommend knows no --sen (did you mean seen?)"),
        (("--users=plain.csv", ALL[1]), "lacks the column hour, which the model reads"),
        (("--users=twice.csv", ALL[1]), "must have each user and each item once"),
        ((*ALL, "--seen=users.parquet"), "users.parquet has no column 'item_id'"),
    ],
)
def test_what_cant_be_done_is_said_in_one_line(tables, recommend, arguments, words):
    users, _, _ = tables
    users.drop(columns="hour").to_csv("plain.csv", index=False)
    pd.concat([users, users.head(1)]).to_csv("twice.csv", index=False)
    code, said = recommend(*arguments)
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not list(Path().glob("best*"))
