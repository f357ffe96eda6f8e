"""Metrics by group of impressions: by how popular the item is, a field, or a predicted probability.

What forms a group is known before the labels of the split that is scored: counts and values of
train, features, or what the model predicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recbole.utils import FeatureType

from recbole_escm2.data import EntireSpaceDataset
from recbole_escm2.errors import UsageError, did_you_mean
from recbole_escm2.evaluator.catalogue import Setting
from recbole_escm2.evaluator.intervals import intervals
from recbole_escm2.evaluator.predictions import Predictions
from recbole_escm2.output import csv_text, table, write_whole

Array = NDArray[Any]

#: Of the records of a run's groups, in its folder.
GROUPS_FILE = "groups-test.csv"
COUNTS = ("impressions", "clicks", "conversions")
POPULARITY, CLICKS, PCTR, PROPENSITY = "item_popularity", "item_clicks", "pctr", "propensity"
#: What isn't a field, and how many groups it makes.
OWN = {POPULARITY: 4, CLICKS: 4, PCTR: 10, PROPENSITY: 10}
#: Groups of a field: quantiles of numbers, and the most frequent tokens.
OF_NUMBERS, OF_TOKENS = 4, 10
#: Shown in text, of those that there are: the rest is in the CSV file.
SHOWN = (
    *("CTR_AUC", "CVR_AUC", "CTCVR_AUC", "CVR_AUC_ES"),
    *("CTR_PCOC", "CVR_PCOC", "CVR_PCOC_ES"),
)
_WIDTH = 100


@dataclass(frozen=True)
class Grouping:
    """The impressions of a split in groups.

    Attributes:
        by: what forms them, as the user wrote it.
        rule: how, in a sentence.
        names: of the groups in order, the same for every seed.
        about: of each group what it holds, thresholds for example; may be empty.
        index: the group of each impression, ``[|D|]``.
    """

    by: str
    rule: str
    names: Sequence[str]
    about: Sequence[str]
    index: Array


def parsed(by: str) -> tuple[str, int | None]:
    """Name and number of groups of ``NAME`` or ``NAME:N``."""
    name, _, count = by.partition(":")
    return name, int(count) if count else None


def check_groups(wanted: Sequence[str], part: EntireSpaceDataset) -> None:
    """Find out before training whether impressions can be put into groups.

    Args:
        wanted: config ``by``.
        part: any part of the data.

    Raises:
        UsageError: they can't; the message says why.
    """
    fields = [name for name in part.field2type if _is_single(part, name)]
    for by in wanted:
        name, _ = parsed(by)
        if name in (POPULARITY, CLICKS):
            if part.iid_field is None:
                raise UsageError(f"by: {name} needs an item column (ITEM_ID_FIELD)")
        elif name in part.field2type and name not in fields:
            raise UsageError(f"by: '{name}' has several values an impression, or is a label")
        elif name not in (*OWN, *fields):
            raise UsageError(
                f"by: data set '{part.dataset_name}' has no column '{name}'"
                f"{did_you_mean(name, [*OWN, *fields])}. Groups are formed by {', '.join(OWN)} or "
                f"by one of {', '.join(fields)}"
            )


def _is_single(part: EntireSpaceDataset, name: str) -> bool:
    labels = {column.field for column in part.label_columns} | {part.label_field}
    single = part.field2type[name] in (FeatureType.TOKEN, FeatureType.FLOAT)
    return single and name not in labels


def groupings(
    wanted: Sequence[str],
    train: EntireSpaceDataset,
    part: EntireSpaceDataset,
    predictions: Predictions,
) -> list[Grouping]:
    """The groups of a split; none by a task that the model doesn't predict.

    Args:
        wanted: config ``by``.
        train: whose counts and values thresholds are made of.
        part: the split.
        predictions: of its impressions.
    """
    made: list[Grouping | None] = []
    for by in wanted:
        name, count = parsed(by)
        if name in (POPULARITY, CLICKS):
            made.append(_by_item(by, count or OWN[name], train, part))
        elif name in (PCTR, PROPENSITY):
            made.append(_by_chance(by, count or OWN[name], part, predictions))
        elif part.field2type[name] == FeatureType.TOKEN:
            made.append(_by_token(by, name, count or OF_TOKENS, train, part))
        else:
            made.append(_by_number(by, name, count or OF_NUMBERS, train, part))
    return [grouping for grouping in made if grouping is not None]


def _by_item(by: str, count: int, train: EntireSpaceDataset, part: EntireSpaceDataset) -> Grouping:
    field, of_clicks = part.iid_field, parsed(by)[0] == CLICKS
    assert field is not None, "check_groups has seen it"
    vocabulary, least = part.field2id_token[field], int(part.config["min_count"] or 1)
    ids, own = train.values(field).numpy(), part.values(field).numpy()
    counted = ids[train.inter_feat.columnar(train.click_field) > 0] if of_clicks else ids
    times = np.bincount(counted, minlength=len(vocabulary))
    nobody = np.zeros(len(vocabulary), dtype=bool)
    nobody[[0, *([] if vocabulary.unknown is None else [vocabulary.unknown])]] = True
    times[nobody] = 0  # what rare items have together says nothing of one of them
    seen = times[ids]
    cuts = quantiles(seen[seen > 0], count)
    names, about, index = _of_quantiles(times[own], cuts, count)
    return Grouping(
        by,
        f"{'clicks' if of_clicks else 'impressions'} of the item in train, cut so that each group "
        "has about as many impressions of train; items without any are by themselves",
        ("none", *names),
        ("0" if least == 1 else f"0, or an item with fewer than {least} impressions", *about),
        np.where(times[own] > 0, index + 1, 0),
    )


def _by_chance(
    by: str, count: int, part: EntireSpaceDataset, predictions: Predictions
) -> Grouping | None:
    """By pCTR, or by the propensity of the data, or else pCTR; None where there is neither."""
    logged = predictions.truth.propensity
    if logged is None:
        logged = part.inter_feat.columnar(part.config["PROPENSITY_FIELD"])
    if parsed(by)[0] == PROPENSITY and logged is not None:
        values, what = logged, "the propensity of the data"
    elif "ctr" in predictions.score:
        values, what = predictions.of("ctr"), "the model's own pCTR"
    else:
        return None
    rule = f"{what}, in groups of as many impressions of this split each"
    return Grouping(by, rule, *_of_quantiles(values, quantiles(values, count), count))


def _by_token(
    by: str, field: str, count: int, train: EntireSpaceDataset, part: EntireSpaceDataset
) -> Grouping:
    tokens = part.field2id_token[field]
    times = np.bincount(train.values(field).numpy(), minlength=len(tokens))
    times[0] = 0
    ranked = np.argsort(-times, kind="stable")
    frequent = ranked[:count][times[ranked[:count]] > 0]
    place = np.full(len(tokens), len(frequent))
    place[frequent] = np.arange(len(frequent))
    place[0] = len(frequent) + 1
    return Grouping(
        by,
        f"the {len(frequent)} most frequent values of {field} in train",
        (*(str(tokens[own]) for own in frequent), "others", "no value"),
        [""] * (len(frequent) + 2),
        place[part.values(field).numpy()],
    )


def _by_number(
    by: str, field: str, count: int, train: EntireSpaceDataset, part: EntireSpaceDataset
) -> Grouping:
    known, values = (_numbers(one, field) for one in (train, part))
    several = np.unique(known[: 1 << 20])
    if len(several) <= count:
        several = np.unique(known)
    if len(several) <= count:
        names = [f"{value:.6g}" for value in several]
        at = np.searchsorted(several, values)
        there = several.take(at, mode="clip") == values
        index = np.where(there, at, len(several))
        rule = f"the values of {field} in train"
        return Grouping(by, rule, (*names, "others"), [""] * (len(names) + 1), index)
    rule = f"{field}, cut so that each group has about as many impressions of train"
    return Grouping(by, rule, *_of_quantiles(values, quantiles(known, count), count))


def _numbers(part: EntireSpaceDataset, field: str) -> Array:
    """A field of numbers as it was before it was standardised."""
    values = part.values(field).numpy()
    values = values[:, 0] if values.ndim == 2 else values  # RecBole's pairs of a number and 1
    (entry,) = (own for own in part.store.schema["fields"] if own["name"] == field)
    if "deviation" not in entry:
        return np.asarray(values, dtype=np.float64)
    return np.asarray(values.astype(np.float64) * entry["deviation"] + entry["mean"])


def quantiles(values: Array, count: int) -> Array:
    """Where to cut values into so many groups of about as many: the last value of each but one."""
    if not len(values):
        return np.zeros(count - 1)
    return np.quantile(values, np.arange(1, count) / count, method="inverted_cdf")


def _of_quantiles(
    values: Array, cuts: Array, count: int
) -> tuple[Sequence[str], Sequence[str], Array]:
    """Names, what they hold and the index of each value; a cut belongs to the group below it."""
    names = [f"{number} of {count}" for number in range(1, count + 1)]
    shown = [str(int(cut)) if cut == int(cut) else f"{cut:.4g}" for cut in cuts]
    lower = ["", *(f"> {cut}" for cut in shown)]
    upper = [*(f"\N{LESS-THAN OR EQUAL TO} {cut}" for cut in shown), ""]
    about = [", ".join(filter(None, ends)) for ends in zip(lower, upper, strict=True)]
    return names, about, np.searchsorted(cuts, values, side="left")


def by_group(
    made: Sequence[Grouping],
    predictions: Predictions,
    names: Sequence[str],
    setting: Setting,
    item: Array | None = None,
) -> list[dict[str, Any]]:
    """Counts, and metrics with their intervals, of each group that has an impression.

    Args:
        made: the groups.
        predictions: of the split.
        names: of metrics of ours.
        setting: of the metrics.
        item: ids of the items of the impressions, ``[|D|]``, where the data has them.

    Returns:
        For each grouping ``by``, ``rule`` and ``groups``; of each group ``group`` (its name),
        ``about``, the counts (clicks and conversions None where it isn't known what users would
        have clicked), ``metrics`` (value, low and high by name; the ends None where there is no
        interval), and ``undefined``, why a metric has no value there, by name.
    """
    content = []
    for grouping in made:
        groups = []
        for number, (name, about) in enumerate(zip(grouping.names, grouping.about, strict=True)):
            rows = np.flatnonzero(grouping.index == number)
            if rows.size:
                own = None if item is None else item[rows]
                numbers = _numbers_of(predictions.of_rows(rows), names, setting, own)
                groups.append({"group": name, "about": about, **numbers})
        content.append({"by": grouping.by, "rule": grouping.rule, "groups": groups})
    return content


def _numbers_of(
    own: Predictions, names: Sequence[str], setting: Setting, item: Array | None
) -> dict[str, Any]:
    known = own.truth.clicks_known
    counts = {k: n if known or k == COUNTS[0] else None for k, n in own.truth.counts().items()}
    result = intervals(own, names, setting, item=item)
    return {
        **counts,
        "metrics": {
            name: dict(zip(("value", "low", "high"), map(_finite, ends), strict=True))
            for name, ends in result.items()
        },
        "undefined": dict(result.undefined),
    }


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


# --------------------------------------------------------------------------- text and CSV


def groups_text(content: Sequence[Mapping[str, Any]], decimals: int = 3) -> str:
    """A table for each grouping: counts, and the metrics of :data:`SHOWN` with their intervals."""
    return "\n\n".join(_one_text(grouping, decimals) for grouping in content)


def _one_text(grouping: Mapping[str, Any], decimals: int) -> str:
    groups = grouping["groups"]
    shown = [name for name in SHOWN if any(name in group["metrics"] for group in groups)]
    rows = [
        [
            group_label(group),
            *("" if group[count] is None else f"{group[count]:,}" for count in COUNTS),
            *(value_text(group["metrics"].get(name), decimals) for name in shown),
        ]
        for group in groups
    ]
    heading = f"By {grouping['by']} ({grouping['rule']})"
    return f"{heading}\n\n{table(['group', *COUNTS, *shown], rows, _WIDTH)}"


def group_label(group: Mapping[str, Any]) -> str:
    """A group's name with what it holds."""
    return f"{group['group']} ({group['about']})" if group["about"] else str(group["group"])


def value_text(number: Mapping[str, float | None] | None, decimals: int = 3) -> str:
    """A value with its interval; a dash where there is no value."""
    if number is None or number["value"] is None:
        return "\N{EN DASH}"
    value = f"{number['value']:.{decimals}f}"
    if number["low"] is None or number["high"] is None:
        return value
    return f"{value} ({number['low']:.{decimals}f} to {number['high']:.{decimals}f})"


def missing_notes(content: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why metrics of :data:`SHOWN` have no value in a group, as sentences."""
    notes = []
    for grouping in content:
        for group in grouping["groups"]:
            by_reason: dict[str, list[str]] = {}
            for name, reason in group["undefined"].items():
                if name in SHOWN:
                    by_reason.setdefault(reason, []).append(name)
            notes += [
                f"By {grouping['by']}, {group_label(group)}: no {', '.join(names)}, {reason}."
                for reason, names in by_reason.items()
            ]
    return notes


#: Columns of :func:`groups_csv`.
COLUMNS = ("by", "group", "about", *COUNTS, "metric", "value", "low", "high", "reason")


def group_lines(content: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each group and metric, with the counts of the group."""
    lines = []
    for grouping in content:
        for group in grouping["groups"]:
            head = {key: group[key] for key in ("group", "about", *COUNTS)}
            head["by"] = grouping["by"]
            for name, number in group["metrics"].items():
                lines.append({**head, "metric": name, **number})
            for name, reason in group["undefined"].items():
                lines.append({**head, "metric": name, "reason": reason})
    return lines


def keep_groups(folder: Path, content: Sequence[Mapping[str, Any]]) -> None:
    """Write all metrics of all groups into a run's folder as CSV."""
    write_whole(folder / GROUPS_FILE, csv_text(COLUMNS, group_lines(content)))
