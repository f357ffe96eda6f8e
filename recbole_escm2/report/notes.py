"""What a report says in words: about a metric, about a study, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable

from recbole_escm2 import metric_names
from recbole_escm2.errors import printable
from recbole_escm2.evaluator.summary import scope_notes
from recbole_escm2.experiment.statistics import ALPHA, POWER
from recbole_escm2.experiment.study import Study, part_label
from recbole_escm2.report.lift import share_of_lift

BETTER, WORSE = "▲", "▼"
#: The same against the logistic regression.
RIVAL_BETTER, RIVAL_WORSE = "△", "▽"
MINUS = "\N{MINUS SIGN}"
_DECIMALS = 4
_ARROWS = {"higher": "↑", "lower": "↓"}


def direction(metric: str) -> str:
    """``↑``, ``↓`` or ``→ target``; nothing where no value is better by itself."""
    way = metric_names.direction(metric)
    return _ARROWS.get(way, way.replace("target", "→"))


def decimals(study: Study, metric: str) -> int:
    """Common decimals of a column: four, more where all of its means are small."""
    return decimals_of(row[metric].sample.mean for row in study.table.values() if metric in row)


def decimals_of(numbers: Iterable[float]) -> int:
    """Four, more where all of the numbers are small."""
    largest = max((abs(n) for n in numbers if math.isfinite(n)), default=0.0)
    if not largest:
        return _DECIMALS
    return min(10, max(_DECIMALS, 2 - math.floor(math.log10(largest))))


def one_line(label: str) -> str:
    """A label without line breaks, doubled blanks, and what a terminal acts on."""
    return printable(" ".join(label.split()))


def humanise(number: float) -> str:
    """A count in three digits: ``999``, ``12.3 k``, ``1.23 M``, ``4.56 G``."""
    for power, unit in ((0, ""), (3, " k"), (6, " M"), (9, " G")):
        scaled = number / 10**power
        if abs(float(f"{scaled:.3g}")) < 1000 or unit == " G":
            break
    if not unit and number == int(number):
        return str(int(number))
    whole = len(str(int(abs(float(f"{scaled:.3g}")))))
    return f"{scaled:.{max(0, 3 - whole)}f}{unit}"


def p_value(p: float) -> str:
    """A p value in two digits, ``< 0.0001`` below that."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def notes(study: Study) -> Iterable[str]:
    """What to know about the numbers of a study, in sentences."""
    seeds, runs = len(study.seeds), study.results.values()
    chosen = sorted({run["valid_metric"] for run in runs if run.get("valid_metric")})
    chosen_by = f" (chosen by {', '.join(chosen)})" if chosen else ""
    at_best = f"at the best epoch on validation{chosen_by}"
    if all("best_valid_score" in run and run["best_valid_score"] is None for run in runs):
        at_best = "after the last epoch, of a number fixed in advance (no validation)"
    if seeds == 1:
        yield (
            f"Test metrics of a single seed ({study.seeds[0]}) {at_best}: with one seed there is "
            "no interval and no test."
        )
    else:
        named = ", ".join(map(str, study.seeds))
        yield f"Test metrics {at_best}: mean ± standard deviation over {seeds} seeds ({named})."
    yield from _choice_notes(study)
    if seeds > 1:
        yield from _verdict_notes(study)
    arrows = [direction(metric) for metric in study.shown]
    words = [
        *(["↑ larger is better"] if "↑" in arrows else []),
        *(["↓ smaller is better"] if "↓" in arrows else []),
        *(["→ the nearer to the target the better"] if any("→" in a for a in arrows) else []),
    ]
    if words:
        yield ", ".join(words) + "."
    yield from scope_notes(study.shown)
    if any(share_of_lift(study, metric) for metric in study.primary):
        yield (
            "Share of lift: how far a row's mean is on the way from the constant prediction (0%) "
            "to the true probabilities (100%), which can't be had where rare ids can't be learned."
        )
    if study.bounds:
        yield f"{', '.join(map(one_line, study.bounds))}: no learners, and so without a verdict."
    yield from _run_notes(study)


def _choice_notes(study: Study) -> Iterable[str]:
    """How the rows of a study, and their settings, were chosen."""
    if (screening := study.screening) is not None:
        why = {
            kind: ", ".join(one_line(row.label) for row in screening.rows if row.why == kind)
            for kind in ("by right", "by validation")
        }
        on = "; ".join(f"{kind} {named}" for kind, named in why.items() if named)
        yield (
            f"Screened: each of {len(screening.rows)} rows was tried with {screening.settings} "
            f"settings on validation alone ({screening.metric}), before anything was tested. These "
            f"went on: {on}. The others have a score on validation, and no verdict."
        )
    if (tuning := study.tuning) is not None:
        yield (
            f"Tuned: a row has the settings that were best on validation ({tuning.metric}, seed "
            f"{tuning.seed}) of {tuning.trials} that were tried, its own and {tuning.trials - 1} "
            f"drawn at random from its ranges{tuning.rows and ', ' + tuning.rows}."
        )
        trials = [trial for tried in tuning.by_row.values() for trial in tried]
        if pruned := sum(trial.pruned for trial in trials):
            yield (
                f"{pruned} of the {len(trials)} trials were ended early, as at 4, 8, 16, … passes "
                "over train their best on validation wasn't in the upper half of the row's trials "
                "before them (successive halving)."
            )
        if any(part_label(row.label, "cvr") in tuning.by_row for row in study.rows):
            cvr = tuning.trials // 2
            yield (
                f"Where a row is two models, they have {tuning.trials} trainings together: "
                f"{tuning.trials - cvr} settings of the CTR model, chosen by its own metric, and "
                f"{cvr} of the CVR model, chosen by the product."
            )


def _run_notes(study: Study) -> Iterable[str]:
    """How the runs of a study have come to what is scored, and in what time."""
    runs = study.results.values()
    if single := _two_models(study):
        yield (
            f"{', '.join(single)}: two models, one of clicks over all impressions and one of "
            "conversions over clicked ones; pCTCVR is their product."
        )
    if any(run.get("final_fit") for run in runs):
        yield (
            "Final fit: once validation had chosen the epochs, a model was trained anew for as "
            "many on train and validation, and that is what test scores."
        )
    if any(run.get("seconds") is not None for run in runs):
        threads = sorted({run["threads"] for run in runs if run.get("threads")})
        many = "" if threads == [1] else "s"
        on = f" on {' or '.join(map(str, threads))} thread{many}" if threads else ""
        yield f"Time: training and evaluation of a run{on}; time, epochs and parameters are means."


def _verdict_notes(study: Study) -> Iterable[str]:
    """What the verdicts of a study with several seeds are about, and what they rest on."""
    baseline, primary = one_line(study.baseline), " and ".join(study.primary)
    if study.verdicts:
        rival = one_line(study.rival) if study.rival else ""
        also = f", {RIVAL_BETTER} better and {RIVAL_WORSE} worse than {rival}" if rival else ""
        yield (
            f"Verdicts are about the primary metrics alone, {primary}, named in advance: {BETTER} "
            f"better and {WORSE} worse than {baseline}{also}; two-sided t test of the differences "
            f"by seed, p < {ALPHA:.2g} after Holm's correction over the {len(study.verdicts)} "
            "comparisons of this table. Other columns have intervals and no verdict."
        )
    elif any(label not in study.again for label, *_ in study.comparisons):
        yield f"There is no verdict, neither in {primary}, the primary metrics, nor elsewhere."
    if not study.draws.refused:
        yield _VARIANCES[study.draws.kind].format(share=study.draws.test_share)
    smallest = [f"{m} {reach}" for m in study.primary if (reach := _smallest(study, m))]
    if smallest:
        yield (
            f"The smallest difference from {baseline} that could have been seen, with "
            f"{POWER:.0%} power in the first of Holm's tests: {', '.join(smallest)}."
        )
    if study.comparisons:
        yield from aa_notes(study) or ["No A/A row: none is the baseline again by another chance."]


_VARIANCES = {
    "split": (
        "Seeds split one data set, so that their training rows overlap, and so do their test rows. "
        "Intervals and tests allow for that: the variance of a mean over n seeds is s²(1/n + "
        "n_test/n_train), with n_test/n_train = {share:.3g}, and t has n - 1 degrees of freedom "
        "(Nadeau and Bengio, 2003). They are about training on other data of this kind and size."
    ),
    "fold": (
        "Cross-validation: each seed tests on a fold of its own of one partition, and trains on "
        "the others, so that training rows overlap. Intervals and tests allow for that: the "
        "variance of a mean over n folds is s²(1/n + n_test/n_train), with n_test/n_train = "
        "{share:.3g}, and t has n - 1 degrees of freedom (Nadeau and Bengio, 2003; for folds "
        "Bouckaert and Frank, 2004). They are about training on other data of this kind and size."
    ),
    "weights": (
        "All seeds have one test set; they draw initial weights, and the validation rows where the "
        "data doesn't have any of its own. The variance of a primary metric, or of a difference in "
        "it, is s²/n over the seeds plus that of the test rows, from their influence values summed "
        "by user and by item where the data has them, which more seeds don't make smaller; t has "
        "Satterthwaite's degrees of freedom. Verdicts are about models trained on this one "
        "training set. The intervals of other columns hold for other initial weights on the same "
        "test rows."
    ),
    "world": (
        "Each seed draws a new world: the variance of a mean over n seeds is s²/n, and t has n - 1 "
        "degrees of freedom (paired t test). What the worlds have in common, such as users and "
        "items that a simulation keeps, isn't varied."
    ),
}


def _smallest(study: Study, metric: str) -> str:
    """The smallest difference from the baseline that could have been seen, or its range."""
    digits = decimals(study, metric)
    reaches = [
        compared.smallest
        for _, other, of, compared in study.verdicts
        if of == metric and other == study.baseline and compared.smallest is not None
    ]
    if not reaches:
        return ""
    return " to ".join(dict.fromkeys(f"{end:.{digits}f}" for end in (min(reaches), max(reaches))))


def aa_notes(study: Study) -> list[str]:
    """Whether a row that is the baseline again got a verdict."""
    said = []
    for label in study.again:
        what = (
            f"A/A: {one_line(study.baseline)} again, on the same splits with other initial weights"
        )
        verdicts = {
            m: c.verdict for row, _, m, c in study.comparisons if row == label and c.verdict
        }
        wrong = [f"{verdict} in {m}" for m, verdict in verdicts.items() if verdict != "undecided"]
        if wrong:
            said.append(
                f"{what}, GOT A VERDICT ({', '.join(wrong)}): distrust this page. Chance alone "
                "does that to one page in twenty."
            )
        else:
            said.append(f"{what}, {'got no verdict' if verdicts else 'could not be tested'}.")
    return said


def _two_models(study: Study) -> list[str]:
    return [
        one_line(row.label)
        for row in study.rows
        if any(len(run.get("trainings") or ()) > 1 for run in study.of(row.label).values())
    ]
