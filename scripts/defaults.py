"""Write results/defaults.md: what each option of training and form does alone, on four data sets.

An option is a benchmark, ``scripts/defaults/OPTION.yaml``, run on each data set by the benchmark
command, with trials for the learning rate of every row, so that what is finished isn't run again.

    python scripts/defaults.py run options coat  # or go on with it
    python scripts/defaults.py collect           # results/defaults/*.csv from the reports
    python scripts/defaults.py page              # results/defaults.md from those
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pages import markdown

from recbole_escm2.output import write_whole
from recbole_escm2.report.command import benchmark
from recbole_escm2.report.layout import MARKS

HERE = Path(os.path.relpath(Path(__file__).parent)) / "defaults"
OPTIONS = sorted(file.stem for file in HERE.glob("*.yaml"))
LOGISTIC_REGRESSION = "LogisticRegression"


class Data(NamedTuple):
    """What an option is tried on: a data set, and what is set for all rows; the rest is as in a
    first run."""

    name: str
    settings: Mapping[str, str]


_SHARES = {f"ali-ccp-sim-{percent}": f"0.{percent}" for percent in ("25", "50", "75")}
#: Each seed of ali-ccp-sim is a world of its own.
DATA: dict[str, Data] = {
    "ml-100k": Data("ml-100k", {"impression_sample": "0.1"}),
    "ml-100k-semi": Data("ml-100k-semi", {"impression_sample": "0.1"}),
    "ali-ccp-sim": Data("ali-ccp-sim", {}),
    "coat": Data("coat", {}),
    **{name: Data("ali-ccp-sim", {"interaction_share": share}) for name, share in _SHARES.items()},
}
#: Which data sets each option is about.
_PLACES: dict[str, Sequence[str]] = {
    "options": ("ml-100k", "ml-100k-semi", "ali-ccp-sim", "coat"),
    "candidates": ("ml-100k", "ml-100k-semi", "ali-ccp-sim", "coat"),
    "interaction": tuple(_SHARES),
    "family": ("ali-ccp-sim", "coat"),
}
WANTED = [(option, data) for option in OPTIONS for data in _PLACES[option]]
#: What each CSV file holds.
COLUMNS = {
    "comparisons": (
        *("option", "data", "row", "baseline", "settings", "seeds", "metric", "primary", "mean"),
        *("difference", "difference_low", "difference_high", "p_adjusted", "verdict", "smallest"),
        *("lr_difference", "lr_difference_low", "lr_difference_high", "lr_verdict"),
    ),
    "runs": (
        *("option", "data", "row", "seed", "settings", "best_epoch", "epochs", "seconds"),
        *("failure", "valid_CTCVR_AUC", "CTCVR_AUC", "CVR_AUC", "CVR_AUC_ES", "CTR_AUC"),
        *("CTCVR_LogLoss", "IEB"),
    ),
    "trials": ("option", "data", "row", "settings", "metric", "score", "chosen", "failure"),
}
PAGE = """\
# What learns what can be learned: L2, form and validation

Written by `python scripts/defaults.py page` from the [comparisons](defaults/comparisons.csv),
[runs](defaults/runs.csv) and [trials](defaults/trials.csv) that `scripts/defaults.py collect` took
from the reports of `python scripts/defaults.py run OPTION DATA`.

{conclusions}
## How it was compared

The model is `ESCM2_DR` with MLP towers; whatever a table doesn't name is the default, with
`ml-100k` and `ml-100k-semi` at a tenth of their impressions and a world of its own for each seed
of `ali-ccp-sim`. Unless a table says otherwise, every row, the baseline too, was tried at three
learning rates (0.0003, 0.001, 0.003) with a seed and impressions of its own, and has the one that
was best on validation (CTCVR_AUC); the seeds of the table test on other impressions, or on the
fixed test set. Cells are the difference from the baseline with its 95 % interval, by the rules of
[all pages](../docs/benchmarks.md); ▲ and ▼ are verdicts after Holm's correction over a table's
comparisons in its two primary metrics.

The first table of each option has the means over the seeds of each run's best CTCVR_AUC on
validation, which never saw test: a default is chosen by these. The second one is about test.
{sections}
## What was not run

{missing}
"""


# --------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> int:
    """The benchmark of an option on a data set, or what is missing of it; its exit code."""
    data = DATA[arguments.data]
    options = {
        "benchmark": str(HERE / f"{arguments.option}.yaml"),
        "dataset": data.name,
        "name": _name(arguments.option, arguments.data),
        "output_dir": str(arguments.output),
        "jobs": str(arguments.jobs),
        **data.settings,
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    return benchmark(options, ["python", "run_recbole_escm2.py", *words])


def _name(option: str, data: str) -> str:
    return f"defaults-{option}-{data}"


# --------------------------------------------------------------------------- collect


def collect(arguments: argparse.Namespace) -> int:
    """Write what all finished reports hold as three CSV files, which keep what else they have."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    there = set()
    for option, data in WANTED:
        file = arguments.output / _name(option, data) / "report.json"
        if file.is_file():
            there.add((option, data))
            report = json.loads(file.read_text(encoding="utf-8"))
            about = {"option": option, "data": data}
            found["comparisons"] += [about | row for row in _comparisons(report)]
            found["runs"] += [about | row for row in _runs(report)]
            found["trials"] += [about | row for row in _trials(report)]
    for name, rows in found.items():
        file = arguments.tables / f"{name}.csv"
        kept = [row for row in _read(file) if (row["option"], row["data"]) in set(WANTED) - there]
        write_whole(file, _csv(COLUMNS[name], [*kept, *rows]))
        print(f"{file}: {len(rows)} rows, and {len(kept)} from before")
    return 0


def _comparisons(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in report["rows"]:
        for metric, numbers in row["metrics"].items():
            about = {"row": row["label"], "metric": metric, "seeds": numbers["n"]}
            of_all = {"baseline": report["baseline"], "settings": _shown(row["settings"])}
            yield {**numbers, **about, **of_all}


def _runs(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    failures = {(p["row"], s): p["reason"] for p in report["problems"] for s in p["seeds"]}
    for row in report["rows"]:
        about = {"row": row["label"], "settings": _shown(row["settings"])}
        for seed in report["seeds"]:
            result = row["runs"].get(str(seed))
            if result is None:
                yield {**about, "seed": seed, "failure": failures.get((row["label"], seed), "?")}
                continue
            valid = result["best_valid_result"].get("CTCVR_AUC")
            kept = {key: result[key] for key in ("best_epoch", "epochs", "seconds")}
            yield {**about, **kept, **result["test_result"], "seed": seed, "valid_CTCVR_AUC": valid}


def _trials(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for label, trials in ((report["tuning"] or {}).get("by_row") or {}).items():
        scores = [trial["score"] for trial in trials if trial["score"] is not None]
        for trial in trials:
            bigger = max if trial["bigger"] else min
            yield {
                "row": label,
                "settings": _shown(trial["chosen"]) or "as it is",
                "metric": trial["metric"] or report["tuning"]["metric"],
                "score": trial["score"],
                "chosen": bool(scores) and trial["score"] == bigger(scores),
                "failure": trial["reason"],
            }


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if key != "task")


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --------------------------------------------------------------------------- page


def page(arguments: argparse.Namespace) -> int:
    """Write the page from the CSV files."""
    rows = _read(arguments.tables / "comparisons.csv")
    done = dict.fromkeys((row["option"], row["data"]) for row in rows)
    conclusions = HERE / "conclusions.md"
    runs = _read(arguments.tables / "runs.csv")
    there = [option for option in OPTIONS if any(o == option for o, _ in done)]
    sections = [_section(option, rows, runs) for option in there]
    missing = [f"- {option} on {data}" for option, data in WANTED if (option, data) not in done]
    text = PAGE.format(
        conclusions=conclusions.read_text(encoding="utf-8") if conclusions.is_file() else "",
        sections="\n".join(sections),
        missing="\n".join(missing) or "Nothing of what there are files for.",
    )
    write_whole(arguments.page, text)
    print(f"written to {arguments.page}")
    return 0


def _read(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _validation(option: str, runs: Sequence[Mapping[str, str]]) -> str:
    """The means of an option's rows on all data sets that it was run on."""
    scores: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run["option"] == option and run["valid_CTCVR_AUC"]:
            of_row = scores.setdefault(run["row"], {})
            of_row.setdefault(run["data"], []).append(float(run["valid_CTCVR_AUC"]))
    there = [data for data in DATA if any(data in of_row for of_row in scores.values())]
    cells = [
        [row, *(f"{fmean(of_row[data]):.4f}" if data in of_row else "" for data in there)]
        for row, of_row in scores.items()
    ]
    return markdown(["row", *there], cells)


def _section(
    option: str, rows: Sequence[Mapping[str, str]], runs: Sequence[Mapping[str, str]]
) -> str:
    """Differences in the primary metrics, from the baseline and from the logistic regression."""
    comment = (HERE / f"{option}.yaml").read_text(encoding="utf-8").partition("\nseeds")[0]
    about = " ".join(line.strip("# ") for line in comment.splitlines())
    validation = _validation(option, runs)
    header = ["data", "row", "seeds", "metric", "mean", "from the baseline"]
    header.append(f"from {LOGISTIC_REGRESSION}")
    cells = []
    for row in rows:
        if row["option"] == option and row["primary"] == "True":
            of_row = [row["data"], _label(row), row["seeds"], row["metric"], _number(row["mean"])]
            cells.append([*of_row, _difference(row, ""), _difference(row, "lr_")])
    return (
        f"\n## {option.replace('_', ' ')}\n\n{about}\n\n{validation}\n\n{markdown(header, cells)}\n"
    )


def _label(row: Mapping[str, str]) -> str:
    """The row, with the learning rate that was chosen for it."""
    chosen = [s for s in row["settings"].split(", ") if s.startswith("learning_rate")]
    return ", ".join([row["row"], *chosen])


def _number(text: str, sign: str = "") -> str:
    return f"{float(text):{sign}.4f}" if text else ""


def _difference(row: Mapping[str, str], of: str) -> str:
    names = (f"{of}difference", f"{of}difference_low", f"{of}difference_high")
    value, low, high = (_number(row[name], "+") for name in names)
    mark = MARKS.get(row[f"{of}verdict"], "")
    return f"{value} [{low}, {high}] {mark}".strip() if low else value


# --------------------------------------------------------------------------- command line


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="what is missing of an option on a data set")
    running.add_argument("option", choices=OPTIONS)
    running.add_argument("data", choices=DATA)
    running.add_argument("--jobs", type=int, default=1, help="runs at once")
    collecting = commands.add_parser("collect", help="CSV files from the reports")
    writing = commands.add_parser("page", help="results/defaults.md from the CSV files")
    writing.add_argument("--page", type=Path, default=Path("results/defaults.md"))
    for command, does in ((running, run), (collecting, collect), (writing, page)):
        command.set_defaults(does=does)
    for command in (running, collecting):
        command.add_argument("--output", type=Path, default=Path("output"), help="of the runs")
    for command in (collecting, writing):
        command.add_argument("--tables", type=Path, default=Path("results/defaults"))
    arguments = parser.parse_args()
    code: int = arguments.does(arguments)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
