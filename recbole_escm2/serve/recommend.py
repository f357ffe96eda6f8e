"""The command ``recommend``: the best items of each user, of all or of given candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recbole_escm2.data.batch import Batch
from recbole_escm2.data.encoding import rows_of
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.serve.new_data import Files, NewData
from recbole_escm2.serve.output import check_target, writing
from recbole_escm2.serve.scorer import Scorer, fault_error, one_batch

# Candidates that wait until the best of each user are chosen among them.
_WAITING = 1 << 20


def recommend(options: Mapping[str, str]) -> int:
    """Write the best items of each user.

    Args:
        options: those that the command's help lists, as text.

    Raises:
        UsageError: something that the user can mend; the message says what.
    """
    needed = ("checkpoint", "out", *(() if "candidates" in options else ("users", "items")))
    for name in needed:
        if not options.get(name):
            raise UsageError(f"recommend needs --{name}=…")
    check_target("out", Path(options["out"]))
    k = options.get("k", "10")
    if not k.isdecimal() or int(k) < 1:
        raise UsageError(f"--k must be a whole number from 1 on, got {k!r}")
    own = options.get("model"), options.get("device")
    best = Best(Scorer(options["checkpoint"], *own), int(k), options.get("by"))
    if seen := options.get("seen"):
        best.leave_out(Path(seen))
    if "candidates" in options:
        sides = {kind: options[f"{kind}s"] for kind in ("user", "item") if f"{kind}s" in options}
        found = best.of_candidates(options["candidates"], sides)
    else:
        found = best.of_all(Path(options["users"]), Path(options["items"]))
    users, rows = 0, 0
    with writing(options["out"]) as output:
        for frame in found:
            users, rows = users + frame[best.user].nunique(), rows + len(frame)
            output.write(pa.RecordBatch.from_pandas(frame, preserve_index=False))
        if not rows:
            raise UsageError("no user has an item that is left to recommend")
    print(f"{rows:,} items for {users:,} users, by {best.by} ({options['out']})")
    return 0


class Best:
    """The best items of users, by a model.

    Args:
        scorer: of the model.
        k: how many a user.
        by: ``ctcvr``, ``ctr`` or ``cvr``; by default the first of them that is predicted.

    Attributes:
        user: the column of users.
        item: that of items.

    Raises:
        UsageError: the model doesn't predict that.
    """

    def __init__(self, scorer: Scorer, k: int, by: str | None = None) -> None:
        self.scorer, self.k = scorer, k
        self.by = by or next(t for t in ("ctcvr", "ctr", "cvr") if t in scorer.tasks)
        if self.by not in scorer.tasks:
            raise UsageError(
                f"--by={by}: the model predicts {', '.join(scorer.tasks)}"
                f"{did_you_mean(self.by, scorer.tasks)}"
            )
        self.files = Files(scorer)
        self.user, self.item = self.files.key("user"), self.files.key("item")
        self._seen = pd.MultiIndex.from_arrays([[], []])

    def leave_out(self, seen: Path) -> None:
        """Recommend no pair of a user and an item that stands in a file.

        Raises:
            UsageError: it can't be read, or lacks one of the two columns.
        """
        rows = self.files.whole(seen)
        self._seen = pd.MultiIndex.from_arrays(
            [self._ids(rows, name, seen) for name in (self.user, self.item)]
        )

    def _ids(self, rows: pa.Table, name: str, file: Path) -> NDArray[Any]:
        if name not in rows.column_names:
            raise UsageError(
                f"{file} has no column '{name}'; it has {', '.join(rows.column_names)}"
            )
        texts = one_batch(rows.select([name])).column(0).cast(pa.string())
        return np.asarray(texts.to_numpy(zero_copy_only=False))

    # ------------------------------------------------------------------ all pairs

    def of_all(self, users: Path, items: Path) -> Iterator[pd.DataFrame]:
        """Of all items, for some users at once: what is in memory is their pairs' scores.

        Raises:
            UsageError: a file can't be read, a feature stands in neither or in both, or a value
                can't be read; it says where.
        """
        tables = [self.files.whole(file) for file in (users, items)]
        columns = [own.column_names for own in tables]
        self.scorer.encoders[0].check_columns([*columns[0], *columns[1]], f"{users} with {items}")
        if twice := set(columns[0]) & set(columns[1]):
            raise UsageError(f"{users} and {items} both have a column '{min(twice)}'")
        of_user = self._ids(tables[0], self.user, users)
        of_item = self._ids(tables[1], self.item, items)
        sides = [self._encoded(own, f) for own, f in zip(tables, (users, items), strict=True)]
        names = pd.Index(of_user), pd.Index(of_item)
        if any(own.has_duplicates for own in names):
            raise UsageError(f"{users} and {items} must have each user and each item once")
        pairs = [own.get_indexer(self._seen.get_level_values(n)) for n, own in enumerate(names)]
        seen = np.stack(pairs)[:, (pairs[0] >= 0) & (pairs[1] >= 0)]
        seen = seen[:, np.argsort(seen[0], kind="stable")]
        step = max(1, self.scorer.block // len(of_item))
        for start in range(0, len(of_user), step):
            chosen = np.arange(start, min(start + step, len(of_user)))
            first, end = np.searchsorted(seen[0], [chosen[0], chosen[-1] + 1])
            yield self._block(chosen, of_user, of_item, sides, seen[:, first:end])

    def _encoded(self, rows: pa.Table, file: Path) -> list[Batch]:
        conformed, faults = self.scorer.encoders[0].conformed(one_batch(rows), str(file))
        if faults:
            raise fault_error(faults[0], f"{file}, row {faults[0].row + 1:,}")
        return [encoder.encode(conformed) for encoder in self.scorer.encoders]

    def _block(
        self,
        chosen: NDArray[np.int64],
        of_user: NDArray[Any],
        of_item: NDArray[Any],
        sides: list[list[Batch]],
        seen: NDArray[np.int64],
    ) -> pd.DataFrame:
        """The best items of some users, ``[users · k]`` rows or fewer."""
        items = len(of_item)
        row = torch.from_numpy(np.repeat(chosen, items))
        column = torch.arange(items).repeat(len(chosen))
        pairs = []
        for user, item in zip(*sides, strict=True):
            batch = rows_of(user, row)
            batch.add(rows_of(item, column))
            pairs.append(batch)
        scores, _ = self.scorer.probabilities(pairs, "the pairs")
        by = scores[self.by].reshape(len(chosen), items).copy()
        by[seen[0] - chosen[0], seen[1]] = -1.0
        best = np.argsort(-by, axis=1, kind="stable")[:, : self.k]
        left = np.take_along_axis(by, best, axis=1) >= 0
        rank = np.broadcast_to(np.arange(1, best.shape[1] + 1), best.shape)[left]
        pair = (np.arange(len(chosen))[:, None] * items + best)[left]
        return pd.DataFrame(
            {
                self.user: of_user[chosen][pair // items],
                self.item: of_item[pair % items],
                "rank": rank,
                **{f"p{task}": own[pair] for task, own in scores.items()},
            }
        )

    # ------------------------------------------------------------------ candidates

    def of_candidates(self, candidates: str, sides: Mapping[str, str]) -> Iterator[pd.DataFrame]:
        """Of given pairs of a user and an item; what is in memory is the best ones so far.

        Raises:
            UsageError: as :class:`NewData`.
        """
        new = NewData(candidates, self.scorer, [self.user, self.item], sides=sides)
        best: list[pd.DataFrame] = []
        chosen = 0
        for block in new.blocks():
            scores = self.scorer.score(block.rows, block.file)
            if scores.faults:
                raise fault_error(scores.faults[0], block.place(scores.faults[0].row))
            ids = {
                name: block.rows.column(name).cast(pa.string()).to_numpy(zero_copy_only=False)
                for name in (self.user, self.item)
            }
            frame = pd.DataFrame({**ids, **{f"p{task}": own for task, own in scores.of.items()}})
            if len(self._seen):
                pairs = pd.MultiIndex.from_arrays([frame[self.user], frame[self.item]])
                frame = frame[~pairs.isin(self._seen)]
            best.append(frame)
            if sum(map(len, best)) > max(_WAITING, 2 * chosen):  # else each block sorts them all
                best = [self._chosen(best)]
                chosen = len(best[0])
        if best:
            whole = self._chosen(best)
            whole.insert(2, "rank", whole.groupby(self.user, sort=False).cumcount() + 1)
            yield whole

    def _chosen(self, frames: list[pd.DataFrame]) -> pd.DataFrame:
        """The best of each user, users as they first come, of equal scores the first ones."""
        whole = pd.concat(frames, ignore_index=True)
        whole["place"] = pd.factorize(whole[self.user])[0]
        whole = whole.sort_values([f"p{self.by}"], ascending=False, kind="stable")
        whole = whole.drop_duplicates([self.user, self.item])
        whole = whole[whole.groupby(self.user, sort=False).cumcount() < self.k]
        return whole.sort_values("place", kind="stable").drop(columns="place")
