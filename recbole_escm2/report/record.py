"""A study as few files of which it can be made again: every run, and what its verdicts take."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.influence import (
    Influence,
    NoInfluenceError,
    TestRows,
    read_arrays,
    write_arrays,
)
from recbole_escm2.experiment.study import Row, Screened, Screening, Study, Trial, Tuning
from recbole_escm2.keys import PLACE_KEYS
from recbole_escm2.limits import check_extent, read_json
from recbole_escm2.output import csv_text, to_builtins, unguarded, write_json, write_whole

#: A line a run: those of the table, and before them what was screened and tried.
RUNS_FILE = "runs.csv"
#: What isn't a run's.
STUDY_FILE = "study.json"
#: Where the test set is one for all seeds: what its rows contribute to a row's mean over seeds.
INFLUENCE_FILE = "influence.npz"

_FORMAT = 1
# of a run of the table: columns as its result file has them, and those that are JSON
_NUMBERS = ("seconds", "epochs", "parameters", "threads", "best_valid_score")
_TEXTS = ("valid_metric", "seed_draws", "processor")
_JSON = ("best_epoch", "settings", "versions", "data", "undefined", "final_fit", "test_pool")
# columns of a run's digests, by their names in its result file
_DIGESTS = {"code": "code", "data": "data_digest", "split": "split_digest"}
_COLUMNS = (
    *("phase", "row", "part", "seed", "state", "reason", "run", "chosen", "bigger", "worse"),
    *_TEXTS,
    *_NUMBERS,
    *(*_DIGESTS.values(), "models"),
    *_JSON,
)


# --------------------------------------------------------------------------- written


def write_record(study: Study, folder: Path) -> None:
    """Write a study's runs, what is the study's own, and influence values where it takes them.

    Args:
        study: finished or not.
        folder: where to; made if it isn't there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics = list(study.metrics)
    write_whole(folder / RUNS_FILE, csv_text([*_COLUMNS, *metrics], _lines(study)))
    write_json(folder / STUDY_FILE, _about(study))
    arrays = _influence_arrays(study)
    if arrays:
        write_arrays(folder / INFLUENCE_FILE, arrays)
    else:
        (folder / INFLUENCE_FILE).unlink(missing_ok=True)


def _lines(study: Study) -> Iterator[dict[str, Any]]:
    if study.screening is not None:
        for left in study.screening.left:
            for label, tried in left.by_part.items():
                yield from _trial_lines("screening", left.label, label, tried)
    if study.tuning is not None:
        screened = {} if study.screening is None else _screened_runs(study.screening)
        for label, tried in study.tuning.by_row.items():
            count = screened.get(label, 0)
            row_label = _row_of(study, label)
            yield from _trial_lines("screening", row_label, label, tried[:count])
            yield from _trial_lines("trial", row_label, label, tried[count:])
    for row in study.rows:
        for seed in study.seeds:
            if (row.label, seed) in study.results:
                yield _seed_line(row.label, seed, study.results[row.label, seed])
            elif (row.label, seed) in study.failures:
                reason = study.failures[row.label, seed]
                line = {"phase": "seed", "row": row.label, "seed": seed, "state": "failed"}
                yield {**line, "reason": reason}


def _screened_runs(screening: Screening) -> dict[str, int]:
    """How many of a row's trials, or of one of its two models', were screened."""
    return {label: len(tried) for row in screening.rows for label, tried in row.by_part.items()}


def _row_of(study: Study, label: str) -> str:
    """The row that a label of trials belongs to: its own, or one of its two models'."""
    labels = [row.label for row in study.rows]
    return label if label in labels else label.rpartition(",")[0]


def _trial_lines(
    phase: str, row: str, label: str, tried: Sequence[Trial]
) -> Iterator[dict[str, Any]]:
    for trial in tried:
        about = trial.about
        state = "pruned" if trial.pruned else "finished" if trial.score is not None else "failed"
        digests = about.get("digests", {})
        yield {
            **{"phase": phase, "row": row, "part": label if label != row else None},
            **{"state": state, "reason": trial.reason, "run": trial.run},
            "seed": (about.get("settings") or {}).get("seed"),
            "chosen": _json(trial.chosen),
            **{"bigger": int(trial.bigger), "worse": int(trial.worse)},
            **{"valid_metric": trial.metric, "best_valid_score": trial.score},
            **{name: about.get(name) for name in ("processor", "threads")},
            "seconds": trial.seconds,
            **_digests(digests),
            **{name: _json(about.get(name)) for name in ("settings", "versions")},
        }


def _seed_line(row: str, seed: int, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{"phase": "seed", "row": row, "seed": seed, "state": "finished"},
        **{name: result.get(name) for name in (*_TEXTS, *_NUMBERS)},
        **_digests(result.get("digests") or {}),
        "models": len(result.get("trainings") or [0]),
        **{name: _json(result.get(name)) for name in _JSON},
        **result["test_result"],
    }


def _digests(digests: Mapping[str, str]) -> dict[str, Any]:
    return {column: digests.get(name) for name, column in _DIGESTS.items()}


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(to_builtins(value), ensure_ascii=False)


def _about(study: Study) -> dict[str, Any]:
    tuning, screening = study.tuning, study.screening
    about = {name: getattr(study, name) for name in _OF_STUDY}
    about["shared"] = {k: v for k, v in study.shared.items() if k not in PLACE_KEYS}
    return {
        "format": _FORMAT,
        **about,
        "simulated": study.simulated,
        "rows": [asdict(row) for row in study.rows],
        "tuning": tuning and {name: getattr(tuning, name) for name in _OF_TUNING},
        "screening": screening
        and {
            **{"settings": screening.settings, "metric": screening.metric},
            "rows": [
                {name: getattr(row, name) for name in ("label", "model", "score", "why")}
                | {"trials": {label: len(tried) for label, tried in row.by_part.items()}}
                for row in screening.rows
            ],
        },
    }


_OF_STUDY = (
    *("title", "command", "dataset", "seeds", "baseline", "columns", "named", "primary"),
    *("shared", "protocol"),
)
_OF_TUNING = ("trials", "seed", "metric", "rows")


def _influence_arrays(study: Study) -> dict[str, Any]:
    """Test rows, and values by row and metric; nothing where a seed draws other test rows."""
    if study.draws.kind != "weights" or study.influence is None:
        return {}
    arrays: dict[str, Any] = {}
    for number, row in enumerate(study.rows):
        seeds = tuple(study.of(row.label))
        for metric in study.primary if seeds else ():
            try:
                mean = study.mean_influence(row.label, metric, seeds)
                rows = study.influence(row.label, seeds[0]).rows
            except NoInfluenceError:
                continue
            arrays[f"{metric} of {number}"] = mean.astype(np.float32)
            arrays |= {"digest": np.array(rows.digest), "click": rows.click}
            arrays |= {f"cluster{n}": ids for n, ids in enumerate(rows.clusters)}
    return arrays


# --------------------------------------------------------------------------- read


def read_record(folder: Path) -> Study:
    """The study of which :func:`write_record` wrote the files.

    Its influence values are means over seeds: comparisons over fewer seeds than a row has can't be
    made with them.

    Raises:
        UsageError: a file isn't there, or isn't what is written.
    """
    try:
        about = read_json(folder / STUDY_FILE)
        with open(folder / RUNS_FILE, newline="", encoding="utf-8") as file:
            lines = [
                {k: unguarded(v or "") for k, v in line.items()} for line in csv.DictReader(file)
            ]
        if about["format"] != _FORMAT:
            raise UsageError(f"{folder / STUDY_FILE} has format {about['format']}, not {_FORMAT}")
        return _study(folder, about, lines)
    except FileNotFoundError as error:
        raise UsageError(
            f"{error.filename} isn't there: a benchmark writes it into the folder record/ of its "
            "report"
        ) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(f"{folder} isn't what a benchmark writes: {error!r}") from error


def _study(folder: Path, about: Mapping[str, Any], lines: Sequence[Mapping[str, str]]) -> Study:
    rows = [Row(**row) for row in about["rows"]]
    seeds = [line for line in lines if line["phase"] == "seed"]
    metrics = [name for name in (lines[0] if lines else ()) if name not in _COLUMNS]
    by_label: dict[str, list[Trial]] = {}
    for line in lines:
        if line["phase"] != "seed":
            by_label.setdefault(line["part"] or line["row"], []).append(_trial(line))
    screening, tuning = about["screening"], about["tuning"]
    screened = [_screened(row, by_label) for row in screening["rows"]] if screening else []
    left = {label for row in screened if not row.why for label in row.by_part}
    if tuning:
        by_row = {label: tried for label, tried in by_label.items() if label not in left}
        tuning = Tuning(by_row=by_row, **tuning)
    results = {
        (line["row"], int(line["seed"])): _result(line, metrics, about["simulated"])
        for line in seeds
        if line["state"] == "finished"
    }
    failed = [line for line in seeds if line["state"] == "failed"]
    known = {name: about[name] for name in _OF_STUDY}
    known["primary"] = tuple(known["primary"])
    return Study(
        **known,
        rows=rows,
        results=results,
        failures={(line["row"], int(line["seed"])): line["reason"] for line in failed},
        tuning=tuning or None,
        screening=Screening(screening["settings"], screening["metric"], screened)
        if screening
        else None,
        influence=_kept(folder, rows),
    )


def _screened(row: Mapping[str, Any], by_label: Mapping[str, Sequence[Trial]]) -> Screened:
    tried = {label: list(by_label[label][:count]) for label, count in row["trials"].items()}
    return Screened(row["label"], row["model"], row["score"], row["why"], tried)


def _trial(line: Mapping[str, str]) -> Trial:
    known = {
        "processor": line["processor"],
        "threads": _number(line["threads"]),
        "versions": _of_json(line["versions"]),
    }
    about = {
        "settings": _of_json(line["settings"]),
        "digests": {name: line[column] for name, column in _DIGESTS.items() if line[column]},
        **{name: value for name, value in known.items() if value},
    }
    return Trial(
        chosen=_of_json(line["chosen"]),
        score=_number(line["best_valid_score"]),
        bigger=line["bigger"] == "1",
        run=line["run"],
        reason=line["reason"],
        metric=line["valid_metric"] or None,
        worse=line["worse"] == "1",
        pruned=line["state"] == "pruned",
        seconds=_number(line["seconds"]),
        about=about,
    )


def _result(
    line: Mapping[str, str], metrics: Sequence[str], simulated: str | None
) -> dict[str, Any]:
    """What of a result file the tables are made of."""
    return {
        "test_result": {name: float(line[name]) for name in metrics if line[name]},
        **{name: _number(line[name]) for name in _NUMBERS},
        **{name: line[name] or None for name in _TEXTS},
        **{name: _of_json(line[name]) for name in _JSON},
        "digests": {name: line[column] for name, column in _DIGESTS.items()},
        "trainings": [{}] * int(line["models"]),
        "simulated": simulated,
    }


def _of_json(text: str) -> Any:
    value = json.loads(text) if text else None
    check_extent(value)
    return value


def _number(text: str) -> Any:
    """An int where it is written as one."""
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _kept(folder: Path, rows: Sequence[Row]) -> Any:
    """Called with label and seed: the row's mean over seeds, whichever the seed."""
    if not (folder / INFLUENCE_FILE).is_file():
        return None
    arrays = read_arrays(folder / INFLUENCE_FILE)
    clusters = tuple(arrays[name] for name in sorted(arrays) if name.startswith("cluster"))
    test_rows = TestRows(str(arrays["digest"]), arrays["click"], clusters)
    of_row: dict[str, dict[str, Any]] = {row.label: {} for row in rows}
    for name, values in arrays.items():
        metric, _, number = name.partition(" of ")
        if number:
            of_row[rows[int(number)].label][metric] = values

    def influence(label: str, seed: int) -> Influence:
        return Influence(test_rows, of_row[label])

    return influence


# --------------------------------------------------------------------------- a row more


def with_row(page: Study, own: Study, label: str) -> Study:
    """A study with a row of another one, which was made in the same way on the same data.

    Args:
        page: the study.
        own: the other one.
        label: the row's.

    Raises:
        UsageError: there is no such row, the study has one of its name, or something isn't the
            same; the message says what.
    """
    rows = {row.label: row for row in own.rows if not row.aa}
    if label not in rows:
        raise UsageError(f"there is no row '{label}'; there are {', '.join(rows)}")
    if any(row.label == label for row in page.rows):
        raise UsageError(f"the page has a row '{label}' already: give yours another name")
    _check_protocol(page, own, label)
    _check_data(page, own, label)
    tuning = page.tuning
    if tuning is not None and own.tuning is not None:
        tried = {k: t for k, t in own.tuning.by_row.items() if _row_of(own, k) == label}
        tuning = replace(tuning, by_row={**tuning.by_row, **tried})
    last = [row for row in page.rows if row.aa]
    theirs, ours = page.influence, own.influence

    def influence(of: str, seed: int) -> Influence:
        source = ours if of == label else theirs
        if source is None:
            raise NoInfluenceError("the influence of single test rows isn't known")
        return source(of, seed)

    return replace(
        page,
        rows=[*(row for row in page.rows if not row.aa), rows[label], *last],
        results={**page.results, **{(label, s): run for s, run in own.of(label).items()}},
        tuning=tuning,
        influence=influence if page.draws.kind == "weights" else None,
    )


def _check_protocol(page: Study, own: Study, label: str) -> None:
    theirs, ours = _protocol(page), _protocol(own)
    for key, value in theirs.items():
        if ours.get(key) != value:
            raise UsageError(
                f"'{label}' doesn't belong there: {key} is {ours.get(key)!r} in its benchmark, and "
                f"{value!r} on the page"
            )
    if other := sorted(ours.keys() - theirs.keys()):
        raise UsageError(
            f"'{label}' doesn't belong there: its benchmark sets {other[0]} ({ours[other[0]]!r}), "
            "which the page's rows don't have"
        )


def _protocol(study: Study) -> dict[str, Any]:
    """What has to be the same, one by one; keys of all rows by their own name."""
    protocol = dict(study.protocol)
    settings = protocol.pop("settings", None) or {}
    return {**protocol, "primary": [*study.primary], "seed_draws": study.draws.kind, **settings}


def _check_data(page: Study, own: Study, label: str) -> None:
    """Each seed has the page's data and split."""
    for seed in page.seeds:
        run = own.of(label).get(seed)
        if run is None:
            raise UsageError(f"'{label}' has no finished run of seed {seed}, as the page's rows do")
        known = next(runs[seed] for row in page.rows if seed in (runs := page.of(row.label)))
        for what in ("data", "split"):
            if run["digests"].get(what) != known["digests"].get(what):
                raise UsageError(
                    f"'{label}' doesn't belong there: its run of seed {seed} had another {what} "
                    f"(digest {run['digests'].get(what)}) than the page's "
                    f"({known['digests'].get(what)})"
                )
