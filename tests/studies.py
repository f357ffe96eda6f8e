"""Studies made of seeded numbers, with all that a real one's result files hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_escm2.experiment.study import DEFAULT_COLUMNS, Row, Study, Trial, Tuning

#: mean and spread over seeds of a model that is neither good nor bad
TYPICAL = {
    "CTR_AUC": (0.9479, 0.0007),
    "CTR_LogLoss": (0.1226, 0.0005),
    "CVR_AUC": (0.7790, 0.0060),
    "CVR_LogLoss": (0.5706, 0.0087),
    "CVR_PCOC": (1.0130, 0.0200),
    "CTCVR_AUC": (0.9520, 0.0010),
    "CTCVR_LogLoss": (0.0825, 0.0010),
    "CVR_AUC_ES": (0.7410, 0.0050),
    "CVR_LogLoss_ES": (0.5310, 0.0060),
    "CVR_MAE_ES": (0.1520, 0.0030),
    "IEB": (0.0610, 0.0040),
}
DATA = {
    "train": {"impressions": 8000, "clicks": 400, "conversions": 40},
    "valid": {"impressions": 1000, "clicks": 50, "conversions": 5},
    "test": {"impressions": 1000, "clicks": 50, "conversions": 5},
}
VERSIONS = {"python": "3.11.7", "recbole-escm2": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"}


def result(test: Mapping[str, float], **changes: Any) -> dict[str, Any]:
    """The least that a result file holds, with these test metrics."""
    return {
        "test_result": dict(test),
        "best_valid_result": dict(test),
        "best_valid_score": 0.9,
        "undefined": {},
        "decision_threshold": {},
        "seconds": 12.5,
        "epochs": 8,
        "best_epoch": 4,
        "parameters": 1_234_567,
        "simulated": None,
        "data": dict(DATA),
        "seed_draws": "world",
        "versions": dict(VERSIONS),
        "config": {},
        "valid_metric": "CTCVR_AUC",
        "threads": 2,
        "run_dir": "output/run",
        **changes,
    }


def study_of(
    values: Mapping[str, Mapping[str, Sequence[float | None]]], baseline: str, **changes: Any
) -> Study:
    """A study of values by label, metric and seed (1, 2, …); None: the run hasn't that metric."""
    count = max(len(seeds) for metrics in values.values() for seeds in metrics.values())
    seeds = list(range(1, count + 1))
    results = {}
    for label, metrics in values.items():
        for place, seed in enumerate(seeds):
            test = {m: v[place] for m, v in metrics.items() if place < len(v)}
            results[label, seed] = result({m: v for m, v in test.items() if v is not None})
    columns = list(dict.fromkeys(m for metrics in values.values() for m in metrics))
    return Study(
        **{
            "title": "A study",
            "command": "recbole-escm2 benchmark",
            "dataset": "tiny",
            "rows": [Row(label, label) for label in values],
            "seeds": seeds,
            "baseline": baseline,
            "columns": columns,
            "results": results,
            **changes,
        }
    )


def realistic(seeds: Sequence[int] = (1, 2, 3, 4, 5), sweep: bool = True) -> Study:
    """Six models on a simulated data set, two of them swept, and a run that failed."""
    rows = [
        Row("DeepFM", "DeepFM"),
        Row("ESMM", "ESMM"),
        Row("ESCM2_IPS", "ESCM2_IPS"),
        Row("ESCM2_DR", "ESCM2_DR"),
        Row("ESCM2_DR, label", "ESCM2_DR", {"imputation": "label"}),
        Row("IPS, wide towers", "ESCM2_IPS", {"mlp_hidden_size": [256, 128]}),
    ]
    if sweep:
        for model in ("ESCM2_IPS", "ESCM2_DR"):
            for weight in (0.0, 0.01, 0.1, 0.3, 1.0, 3.0):
                swept = {"counterfactual_weight": weight}
                rows.append(Row(f"{model} counterfactual_weight={weight:g}", model, swept, swept))
    results = {
        (row.label, seed): run(row, seed, place) for place, row in enumerate(rows) for seed in seeds
    }
    failed = ("ESCM2_DR, label", seeds[-1])
    del results[failed]
    return Study(
        title="ESCM² beside DeepFM on simulated impressions",
        command="recbole-escm2 benchmark --models=DeepFM,ESMM,ESCM2_IPS,ESCM2_DR "
        "--dataset=ali-ccp-sim --seeds=5 --sweep=counterfactual_weight=0,0.01,0.1,0.3,1,3",
        dataset="ali-ccp-sim",
        rows=rows,
        seeds=list(seeds),
        baseline="DeepFM",
        columns=list(DEFAULT_COLUMNS),
        results=results,
        failures={failed: "the loss is not finite after 214 steps of epoch 3"},
        shared={"epochs": 30, "train_batch_size": 4096},
        tuning=Tuning(3, 1, "CTCVR_AUC", {row.label: _tried(row.label) for row in rows}),
    )


def _tried(label: str) -> list[Trial]:
    """Trials of which the second is the best, or the row as it is, and the third failed."""
    chosen = {"learning_rate": 0.00251737386424, "mlp_hidden_size": [256, 128, 64]}
    second = 0.9 if label == "ESMM" else 0.96
    return [
        Trial({}, 0.95, True, "run0"),
        Trial(chosen, second, True, "run1"),
        Trial({"learning_rate": 0.01}, None, True, "run2", "the loss is not finite"),
    ]


def run(row: Row, seed: int, place: int) -> dict[str, Any]:
    """One run of a row."""
    rng = np.random.default_rng([seed, place])
    split = np.random.default_rng(seed)  # what all rows of a seed have in common
    causal, single = row.model.startswith("ESCM2"), row.model == "DeepFM"
    weight = float(row.settings.get("counterfactual_weight", 0.1))
    help_ = 0.0 if not causal else 0.012 * math.exp(-abs(math.log10(weight + 1e-3) + 0.5))
    test = {}
    for metric, (mean, spread) in TYPICAL.items():
        value = mean + spread * (0.8 * split.normal() + 0.4 * rng.normal())
        if metric.startswith("CVR") and "AUC" in metric:
            value += help_
        elif metric in ("IEB", "CVR_MAE_ES"):
            value -= 2 * help_
        elif metric == "CTR_AUC" and weight >= 1:
            value -= 0.002 * weight
        test[metric] = float(value)
    epochs = int(rng.integers(9, 14))
    return result(
        test,
        valid_metric="CTCVR_AUC",
        seconds=float(140 + 20 * place + rng.normal()),
        epochs=epochs * (2 if single else 1),
        best_epoch=epochs - 3,
        parameters=2_145_331 + 11_000 * place,
        simulated="ali-ccp-sim: Simulated, not Ali-CCP: numbers say nothing about the real data.",
        data={
            "train": {"impressions": 320_000, "clicks": 12_800 + seed, "conversions": 610},
            "valid": {"impressions": 40_000, "clicks": 1_600, "conversions": 77},
            "test": {"impressions": 40_000, "clicks": 1_590, "conversions": 75},
        },
        config={
            "model": row.model,
            "dataset": "ali-ccp-sim",
            "seed": seed,
            "embedding_size": 16,
            "mlp_hidden_size": [128, 64, 32],
            "learning_rate": 0.001,
            "train_batch_size": 4096,
            "load_col": None,
            **({"counterfactual_weight": 0.1, "propensity_floor": 0.1} if causal else {}),
            **({"imputation": "error"} if row.model == "ESCM2_DR" else {}),
            **row.settings,
            "run_dir": f"output/{place}-{seed}",
        },
        trainings=[
            _training(task, rng, epochs, causal) for task in (("ctr", "cvr") if single else (None,))
        ],
        calibration={
            task: _calibration(rng, rate, size, shift)
            for task, rate, size, shift in (
                ("ctr", 0.04, 40_000, 1.02),
                ("cvr", 0.5, 1_590, 1.05),
                ("ctcvr", 0.002, 40_000, 1.05),
                ("cvr_es", 0.4, 40_000, 1.12 if not causal else 1.04),
            )
        },
        overlap=_overlap(rng),
        weights=_weights(rng, 12_800) if causal else None,
        weight_quantiles=(
            {
                "q": [0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1],
                "w": [1.6, 2.4, 4.1, 6.0 + rng.normal() / 5, 8.8, 10, 10, 10],
            }
            if causal
            else None
        ),
    )


def _weights(rng: np.random.Generator, clicks: int) -> dict[str, float]:
    return {
        "clicks": clicks,
        "share_at_floor": float(0.62 + rng.normal() / 100),
        "effective_sample_size": float(clicks * (0.83 + rng.normal() / 100)),
        "mean_weight_unfloored": float(1.02 + rng.normal() / 50),
        "mean_weight": float(0.41 + rng.normal() / 100),
        "largest_weight": 10.0,
    }


def _training(
    task: str | None, rng: np.random.Generator, epochs: int, causal: bool
) -> dict[str, Any]:
    names = {None: ["CTR_AUC", "CVR_AUC", "CTCVR_AUC"], "ctr": ["CTR_AUC"], "cvr": ["CVR_AUC"]}
    losses = {None: ["ctr", "ctcvr"] + ["cvr"] * causal}.get(task, ["loss"])
    pace = rng.uniform(0.35, 0.5)
    records = []
    for epoch in range(epochs):
        left = math.exp(-pace * epoch)
        records.append(
            {
                "epoch": epoch,
                "seconds": float(8 + rng.normal() / 10),
                "losses": {n: float(0.12 + 0.2 * left + rng.normal() / 400) for n in losses},
                "valid": {
                    n: float(TYPICAL[n][0] - 0.08 * left + rng.normal() * TYPICAL[n][1] / 3)
                    for n in names[task]
                },
                "weights": _weights(rng, 1_600) if causal else None,
            }
        )
    return {"task": task, "best_epoch": epochs - 4, "seconds": 8.0 * epochs, "epochs": records}


def _calibration(
    rng: np.random.Generator, rate: float, size: int, shift: float
) -> dict[str, list[float]]:
    predicted = np.clip(rate * np.exp(np.linspace(-1.8, 1.2, 10)) * 0.75, 0, 0.95)
    rows = [size // 10] * 10
    observed = rng.binomial(size // 10, np.clip(predicted / shift, 0, 1)) / (size // 10)
    return {
        "rows": rows,
        "predicted": [float(p) for p in predicted],
        "observed": [float(o) for o in observed],
    }


def _overlap(rng: np.random.Generator) -> dict[str, Any]:
    edges = np.linspace(-9, 3, 61)
    return {
        "logit_edges": edges.tolist(),
        "clicked": np.histogram(rng.normal(-2.4, 0.9, 1_590), edges)[0].tolist(),
        "unclicked": np.histogram(rng.normal(-3.7, 1.1, 38_400), edges)[0].tolist(),
    }
