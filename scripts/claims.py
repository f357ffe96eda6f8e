"""Write results/claims.md: what holds of the paper's claims, where the truth is known.

Each claim is a benchmark, ``scripts/claims/*.yaml``, run on both data sets by the benchmark
command, so that what is finished isn't run again. Tables and verdicts are computed from its
reports; ``scripts/claims/conclusions.md``, where there is one, is what a person read out of them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import data_table, finished_report, first_data, markdown
from reference_rows import section, with_section

from recbole_escm2.experiment.statistics import ALPHA, compare, holm, sample
from recbole_escm2.experiment.study import Row, Study
from recbole_escm2.output import versions, write_whole
from recbole_escm2.report import figures

HERE = Path(__file__).parent
DATASETS: dict[str, dict[str, str]] = {
    "ml-100k-semi": {
        "impression_sample": "0.12",
        "eval_args": "{split: {RS: [0.5, 0.1, 0.4]}}",
    },
    "ali-ccp-sim": {"impression_sample": "0.5"},
}
#: For a try: fewer impressions, seeds and epochs.
QUICK = {"ml-100k-semi": {"impression_sample": "0.03"}, "ali-ccp-sim": {"impression_sample": "0.1"}}
SELECTION = {"ml-100k-semi": "0.0,1.0,2.0", "ali-ccp-sim": "0.0,0.5,0.9"}
COLUMNS = ("IEB", "CVR_AUC_ES", "CVR_LogLoss_ES", "CVR_MAE_ES", "CVR_AUC", "CTCVR_AUC", "PIP")
#: Of them, the panels of the pictures.
SHOWN = ("IEB", "CVR_AUC_ES", "CVR_MAE_ES", "CVR_AUC", "CTCVR_AUC", "PIP")
#: Of the picture on the README's front page.
FRONT = ("IEB", "CVR_AUC_ES", "CTCVR_AUC")
RATIOS = ("CVR_CRR", "CVR_CRR_True")
CLAIMS = {
    "main": (
        "a, b, c: bias, accuracy, dependence on the click",
        "ESMM over-estimates CVR (IEB > 0), and ESCM² doesn't; ESCM² is the better CVR model over "
        "the entire space; and pCVR depends on the click as the truth does (PIP near 0), which "
        "ESMM's may not.",
        ("metrics", "calibration", "overlap", "weights"),
    ),
    "counterfactual_weight": (
        "d: λc",
        "λc is useful in about 0.1 to 1; too large, and CTCVR falls. 0 is ESMM.",
        ("sweep",),
    ),
    "global_weight": (
        "d: λg",
        "λg of at least 1 helps both tasks.",
        ("sweep",),
    ),
    "propensity_floor": (
        "e: the propensity's floor",
        "At a click rate of a few percent a floor of 0.1 makes most weights equal, and IPS nearly "
        "naive. λc = 1 here, so that the weights matter.",
        ("sweep",),
    ),
    "forms": (
        "f: forms of the estimators",
        "Alternating steps make DR stable; imputing the label lets imputation reach r̂ on unclicked "
        "impressions; self-normalised weights vary less. λc = 1 and floor 0.01 here, so that the "
        "forms differ. The true propensity is a bound that only a simulation has.",
        ("metrics",),
    ),
    "selection_strength": (
        "g: the strength of the selection bias",
        "All of it matters more the stronger clicks select.",
        ("sweep",),
    ),
}
PAGE = """\
# What holds of the paper's claims, where the truth is known

Written by `{command}`, by way of `run_recbole_escm2.py --benchmark=scripts/claims/NAME.yaml`.
**Both data sets are simulated**: numbers on them say nothing about real clicks. They know the true
CTR and CVR of every impression, which no model reads. Each seed has a world of its own
(`simulation_seed`), the same for every row.

{conclusions}
## The data

{data}

Every model has its defaults (`properties/`), batch {batch}, Adam, early stopping on CTCVR_AUC of
validation, which real data would have too. Cells are means over seeds [95 % interval]; ▲ better and
▼ worse than the first row by a two-sided t test of the differences by seed, p < 0.05 after Holm's
correction over the comparisons of a table in its two primary metrics, CTCVR_AUC and CVR_AUC_ES.
Other columns have intervals and no verdict. CVR_…_ES, IEB and PIP are over all impressions against
the truth; CVR_AUC is over the clicks, which is all that real data shows.

{claims}
Versions: {versions}.
"""


@dataclass(frozen=True)
class Finished:
    """A finished benchmark: what its report holds, and its folder."""

    report: Mapping[str, Any]
    folder: Path

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """In the order of the table."""
        rows: Sequence[Mapping[str, Any]] = self.report["rows"]
        return rows

    @property
    def claimed(self) -> Sequence[Mapping[str, Any]]:
        """Those that something is claimed of: without the baseline's repetition."""
        return [row for row in self.rows if not row["aa"]]

    def mean(self, row: Mapping[str, Any], metric: str) -> float:
        """Of a test metric that the table needn't have."""
        return statistics.mean(run["test_result"][metric] for run in row["runs"].values())


def run(name: str, dataset: str, arguments: argparse.Namespace) -> Finished:
    """A benchmark of the folder ``claims``, or what is missing of it."""
    folder = f"claims-{'quick-' if arguments.quick else ''}{dataset}-{name}"
    options = {
        "benchmark": str(HERE / "claims" / f"{name}.yaml"),
        "dataset": dataset,
        "name": folder,
        "columns": ",".join(COLUMNS),
        "metrics": f"[{', '.join([*COLUMNS, *RATIOS, 'CTR_AUC', 'CVR_PCOC'])}]",
        "output_dir": str(arguments.output),
        "jobs": str(arguments.jobs),
        "aa_row": str(name == "main"),
        **DATASETS[dataset],
    }
    if arguments.quick:
        options |= {"seeds": "2", "epochs": "2", **QUICK[dataset]}
    if name == "selection_strength":
        options["selection_strength"] = SELECTION[dataset]
    return Finished(*finished_report(options))


def table(finished: Finished, marked: bool = True) -> str:
    """Means, intervals and marks as Markdown."""
    rows = []
    for row in finished.rows:
        cells = [_cell(row["metrics"][m], marked) if m in row["metrics"] else "" for m in COLUMNS]
        again = " (A/A)" if row["aa"] and "A/A" not in row["label"] else ""
        rows.append([row["label"] + again, *cells])
    return markdown(["model", *COLUMNS], rows)


def study_of(finished: Finished) -> Study:
    """The study that a report was written of, as far as pictures need it."""
    report = finished.report
    rows = [
        Row(r["label"], r["model"], r["settings"], r["swept"], aa=r["aa"]) for r in finished.rows
    ]
    return Study(
        title=report["title"],
        command=report["command"],
        dataset=report["dataset"],
        rows=rows,
        seeds=report["seeds"],
        baseline=report["baseline"],
        columns=report["columns"],
        primary=tuple(report["primary"]),
        results={
            (row["label"], int(seed)): result
            for row in finished.rows
            for seed, result in row["runs"].items()
        },
    )


def draw(name: str, one: Finished, picture: str, target: Path) -> bool:
    """Draw a picture of a claim; whether there is anything to draw."""
    study = study_of(one)
    figure = {
        "metrics": lambda: figures.dots(study, SHOWN),
        "sweep": lambda: figures.sweep(study, name, SHOWN),
        "calibration": lambda: figures.calibration(study, "cvr_es"),
        "overlap": lambda: figures.overlap(study),
        "weights": lambda: figures.weights(study),
    }[picture]()
    if figure is not None:
        write_whole(target, figures.png(figure))
    return figure is not None


def _cell(numbers: Mapping[str, Any], marked: bool) -> str:
    mark = {"better": " ▲", "worse": " ▼"}.get(numbers.get("verdict") or "", "") if marked else ""
    interval = ""
    if numbers["low"] is not None:
        interval = f" [{numbers['low']:.4f}, {numbers['high']:.4f}]"
    return f"{numbers['mean']:.4f}{interval}{mark}"


def verdicts(name: str, finished: Finished) -> Iterable[str]:
    """What the intervals and tests say, in words."""
    if name == "main":
        yield from (_bias(row) for row in finished.claimed)
        yield _against_baseline(finished, "IEB", "|IEB|")
        for metric in ("CVR_AUC_ES", "CVR_LogLoss_ES", "CVR_MAE_ES", "CVR_AUC", "CTCVR_AUC"):
            yield _against_baseline(finished, metric, metric)
        yield _against_baseline(finished, "PIP", "|PIP|")
        ratios = ", ".join(
            f"{row['label']} {finished.mean(row, 'CVR_CRR'):.3f} "
            f"(the true CVR's: {finished.mean(row, 'CVR_CRR_True'):.3f})"
            for row in finished.claimed
        )
        yield f"Causal risk ratio of click on pCVR, matched on pCTR: {ratios}."
    if name == "selection_strength":
        yield from _within_strengths(finished)
    if name == "propensity_floor":
        yield "Weights on validation: " + "; ".join(map(_weights, finished.claimed)) + "."


def _within_strengths(finished: Finished) -> Iterable[str]:
    """Each model against ESMM on the same data, in the primary metrics, corrected over these."""
    rows = {(r["swept"]["selection_strength"], r["model"]): r["metrics"] for r in finished.claimed}
    draws = study_of(finished).draws
    if draws.kind == "weights":
        yield "One test set for all seeds: nothing is tested without the influence of its rows."
        return
    compared = {}
    for (strength, model), metrics in rows.items():
        for metric in finished.report["primary"]:
            ours, theirs = (
                sample({int(seed): v for seed, v in m[metric]["values"].items()})
                for m in (metrics, rows[strength, "ESMM"])
            )
            found = compare(metric, ours, theirs, draws) if model != "ESMM" else None
            if found is not None and found.p is not None:
                compared[strength, model, metric] = found
    corrected = dict(zip(compared, holm([c.p or 0.0 for c in compared.values()]), strict=True))
    for strength in dict.fromkeys(key[0] for key in compared):
        said = []
        for key, found in compared.items():
            if key[0] == strength and corrected[key] < ALPHA:
                verdict = "better" if found.gain else "worse"
                said.append(f"{key[1]} {verdict} in {key[2]} ({found.difference:+.4f})")
        yield f"Strength {strength}, against ESMM: {'; '.join(said) or 'no difference seen'}."


def _bias(row: Mapping[str, Any]) -> str:
    numbers = row["metrics"]["IEB"]
    return f"{row['label']}: IEB {numbers['mean']:+.4f}{_interval(numbers, '')}."


def _against_baseline(finished: Finished, metric: str, shown: str) -> str:
    """The differences; a verdict where the metric is a primary one."""
    first, *others = finished.claimed
    said = []
    for row in others:
        numbers = row["metrics"][metric]
        difference = f"{numbers['difference']:+.4f}{_interval(numbers, 'difference_')}"
        if numbers["verdict"] is None:
            said.append(f"{row['label']} {difference}")
            continue
        verdict = {"undecided": "no difference seen"}.get(numbers["verdict"], numbers["verdict"])
        said.append(f"{row['label']} {verdict} ({difference}, p {numbers['p_adjusted']:.2g})")
    return f"{shown} against {first['label']}: {'; '.join(said)}."


def _interval(numbers: Mapping[str, Any], of: str) -> str:
    low, high = numbers[f"{of}low"], numbers[f"{of}high"]
    return "" if low is None else f" [{low:+.4f}, {high:+.4f}]"


def _weights(row: Mapping[str, Any]) -> str:
    found = [run["weights"] for run in row["runs"].values()]
    at_floor = statistics.mean(w["share_at_floor"] for w in found)
    kept = statistics.mean(w["effective_sample_size"] / w["clicks"] for w in found)
    return f"{row['label']}: {at_floor:.0%} of the clicks at the floor, effective sample {kept:.0%}"


def _section(name: str, finished: Mapping[str, Finished], pictures: Path) -> str:
    heading, claim, drawn = CLAIMS[name]
    lines = [f"## {heading}", "", f"Claimed: {claim}", ""]
    for dataset, one in finished.items():
        # Another strength is other data: to be compared with ESMM on it, not with the first row.
        marked = name != "selection_strength"
        lines += [f"### {dataset}, {len(one.report['seeds'])} seeds", "", table(one, marked), ""]
        lines += [f"- {said}" for said in verdicts(name, one)]
        for picture in drawn:
            target = pictures / f"{dataset}-{name}-{picture}.png"
            if draw(name, one, picture, target):
                alt = f"{heading}, {dataset}: {picture}"
                lines += ["", f"![{alt}]({pictures.name}/{target.name})"]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a try of everything, in minutes")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--page", type=Path, help="results/claims.md, of a try output/claims.md")
    parser.add_argument("--only", choices=CLAIMS, action="append", help="this claim; repeatable")
    arguments = parser.parse_args()
    a_try = arguments.quick or arguments.only
    arguments.page = arguments.page or Path("output" if a_try else "results") / "claims.md"
    pictures = arguments.page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    finished = {
        name: {dataset: run(name, dataset, arguments) for dataset in DATASETS}
        for name in arguments.only or CLAIMS
    }
    first = next(iter(finished.values()))
    any_run = next(iter(next(iter(first.values())).rows[0]["runs"].values()))
    file = HERE / "claims" / "conclusions.md"
    conclusions = file.read_text(encoding="utf-8") if file.is_file() else ""
    page = PAGE.format(
        command="python scripts/claims.py" + (" --quick" if arguments.quick else ""),
        conclusions="" if arguments.quick else conclusions,
        data=data_table({dataset: first_data(one.report) for dataset, one in first.items()}),
        batch=f"{any_run['config']['train_batch_size']:,}",
        claims="\n".join(_section(name, found, pictures) for name, found in finished.items()),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    if not a_try:
        page = with_section(page, section("claims", arguments))
    write_whole(arguments.page, page)
    if "counterfactual_weight" in finished:
        one = finished["counterfactual_weight"]["ali-ccp-sim"]
        front = figures.sweep(study_of(one), "counterfactual_weight", FRONT)
        assert front is not None
        write_whole(pictures / "front.png", figures.png(front))
    print(f"written to {arguments.page}")


if __name__ == "__main__":
    main()
