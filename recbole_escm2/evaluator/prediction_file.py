"""What a model predicts for each impression of a split, and its metrics by user, as Parquet."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.evaluator.metrics import UndefinedMetricError, user_auc
from recbole_escm2.evaluator.predictions import NotPredictedError, Predictions
from recbole_escm2.metric_names import space_of
from recbole_escm2.output import replacing

Array = NDArray[Any]
#: Makes a block of a column: called with the first row and the one behind the last.
Block = Callable[[int, int], pa.Array]

#: The position of an impression in D, which is the same in all runs on one store.
ROW = "row"
_ROWS_AT_ONCE = 1 << 17
# AUC by user
_BY_USER = ("CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CVR_AUC_ES")


def predictions_file(folder: Path, split: str) -> Path:
    """Where a run keeps its predictions of a split."""
    return folder / f"predictions-{split}.parquet"


def user_metrics_file(folder: Path, split: str) -> Path:
    """Where a run keeps its metrics by user."""
    return folder / f"metrics-by-user-{split}.parquet"


def keep_predictions(
    folder: Path,
    split: str,
    part: EntireSpaceDataset,
    predictions: Predictions,
    propensity: Array | None = None,
) -> None:
    """Write the predictions of a split, and its metrics by user, into a run's folder.

    Args:
        folder: the run's.
        split: its name, ``valid`` or ``test``.
        part: its impressions.
        predictions: of a model, in the order of the impressions.
        propensity: by which the model weighs clicks, ``[|D|]``, where it weighs them.
    """
    file = predictions_file(folder, split)
    write_predictions(file, part, predictions, propensity)
    said = f"predictions of {len(part):,} impressions of {split} are in {file.name}"
    user = part.uid_field
    if user is None or predictions.truth.user is None:
        getLogger().info(f"{said}; the data has no user column, and so no metrics by user")
        return
    ids = part.values(user).numpy()
    table = metrics_by_user(predictions, user, ids, part.field2id_token[user])
    by_user = user_metrics_file(folder, split)
    with replacing(by_user) as stream:
        pq.write_table(table, stream)
    getLogger().info(f"{said}, metrics by user in {by_user.name}")


def write_predictions(
    file: Path,
    part: EntireSpaceDataset,
    predictions: Predictions,
    propensity: Array | None = None,
) -> None:
    """Write a line for each impression of a split, a block of them at a time.

    The columns: ``row`` (the impression's position in D), user and item as tokens, the labels by
    their fields (also potential conversions and true probabilities, where the data has them), then
    ``pctr``, ``pcvr`` and ``pctcvr`` as far as the model predicts them, and ``propensity``.

    Args:
        file: Parquet; replaced when all of it is written.
        part: the split.
        predictions: in the order of its impressions.
        propensity: ``[|D|]``.
    """
    columns = {ROW: _of(part.inter_feat.positions.numpy(), np.int64)}
    columns |= {**_ids(part), **_labels(part, predictions)}
    columns |= {f"p{task}": _of(values) for task, values in predictions.score.items()}
    if propensity is not None:
        columns["propensity"] = _of(propensity)
    kinds = pa.schema([(name, block(0, 0).type) for name, block in columns.items()])
    with replacing(file) as stream, pq.ParquetWriter(stream, kinds) as writer:
        for start in range(0, len(part), _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, len(part))
            blocks = [block(start, end) for block in columns.values()]
            writer.write_batch(pa.RecordBatch.from_arrays(blocks, schema=kinds))


def _of(values: Array, dtype: type = np.float32) -> Block:
    return lambda start, end: pa.array(np.asarray(values[start:end], dtype=dtype))


def _ids(part: EntireSpaceDataset) -> dict[str, Block]:
    """User and item, as far as the data has them; null where an impression has none."""

    def block_of(field: str) -> Block:
        tokens = pa.array(part.field2id_token[field][:].tolist(), pa.string())

        def block(start: int, end: int) -> pa.Array:
            ids = part.values(field, slice(start, end)).numpy()
            return tokens.take(pa.array(ids, mask=ids == 0))

        return block

    fields = [part.uid_field, part.iid_field]
    return {field: block_of(field) for field in fields if field is not None}


def _labels(part: EntireSpaceDataset, predictions: Predictions) -> dict[str, Block]:
    truth, config = predictions.truth, part.config
    outcomes = {
        "CLICK_FIELD": truth.click if truth.clicks_known else None,
        "CONVERSION_FIELD": truth.conversion,
        "POTENTIAL_CONVERSION_FIELD": truth.potential_conversion,
    }
    chances = {"TRUE_CTR_FIELD": truth.true_ctr, "TRUE_CVR_FIELD": truth.true_cvr}
    kinds = {np.int8: outcomes, np.float32: chances}
    return {
        config[key]: _of(values, kind)
        for kind, columns in kinds.items()
        for key, values in columns.items()
        if values is not None
    }


def metrics_by_user(predictions: Predictions, field: str, ids: Array, tokens: Any) -> pa.Table:
    """A line for each user: impressions, clicks, conversions, and the AUC of each task.

    An AUC is null for a user who has one class only. Impressions without a user id are left out.
    Users whom train doesn't know are told apart, and all called as the vocabulary calls them.

    Args:
        predictions: of a split.
        field: name of the user column.
        ids: of the users in their vocabulary, ``[|D|]``.
        tokens: by id.
    """
    truth = predictions.truth
    assert truth.user is not None, "whoever calls knows that the data has users"
    users, first, inverse = np.unique(truth.user, return_index=True, return_inverse=True)
    columns: dict[str, Any] = {field: pa.array([str(tokens[own]) for own in ids[first]])}
    columns["impressions"] = np.bincount(inverse)
    if truth.clicks_known:
        clicked = truth.click > 0
        columns["clicks"] = np.bincount(inverse[clicked], minlength=len(users))
        if truth.conversion is not None:
            converted = clicked & (truth.conversion > 0)
            columns["conversions"] = np.bincount(inverse[converted], minlength=len(users))
    for metric in _BY_USER:
        try:
            scored = predictions.scored(space_of(metric))
            areas, _ = user_auc(scored.ranking)
        except (UndefinedMetricError, NotPredictedError):
            continue
        assert scored.user is not None
        owner = np.searchsorted(users, scored.user)
        positives, rows = (np.bincount(owner, w, len(users)) for w in (scored.label, None))
        own = np.full(len(users), np.nan)
        own[(users != 0) & (positives > 0) & (positives < rows)] = areas
        columns[metric] = pa.array(own, from_pandas=True)
    return pa.table(columns).filter(pa.array(users != 0))
