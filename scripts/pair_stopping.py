"""What should stop the CVR model of a pair: rules, compared on more test data than they see.

A single-task model of RecBole's is trained on ali-ccp-sim as a CTR and a CVR model. The CVR model's
test predictions are kept epoch by epoch. Each part of the test impressions then serves as a
validation set of its own (by default a tenth, some forty conversions, as many as the real one has):
a rule keeps the epoch that is best on it, which is scored on all of test. Beside the rules stands
pCTR alone, which any product should beat.

    python scripts/pair_stopping.py --model=DeepFM --seeds=2020,2021,2022
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_escm2.config import Config, part_config
from recbole_escm2.evaluator.metrics import auc, class_scores, log_loss
from recbole_escm2.evaluator.predictions import Predictions, Truth
from recbole_escm2.keys import PAIR
from recbole_escm2.output import table
from recbole_escm2.train.run import Run
from recbole_escm2.train.training import Training

#: What keeps an epoch: of the product over all impressions, of pCVR over the clicked ones.
RULES = ("CTCVR_LogLoss", "CTCVR_AUC", "CVR_LogLoss", "CVR_AUC")
Array = NDArray[Any]


def predictions_by_epoch(settings: dict[str, Any], model: str, epochs: int) -> tuple[Any, ...]:
    """Labels of test, pCTR of the CTR model's best epoch, and pCVR after each of some epochs."""
    config = Config(model, "ali-ccp-sim", config_dict={**settings, "task": "both"})
    run = Run.of(config)
    with run.at_work(config):
        of_ctr, of_cvr = (part_config(config, task) for task in PAIR)
        ctr = Training(of_ctr, run.part("ctr"), "ctr")
        ctr.fit()
        _, of_test = ctr.score("test")
        cvr = Training(of_cvr, run.part("cvr"), "cvr")
        trainer, pcvr = cvr.trainer, []
        for epoch in range(epochs):
            trainer._train_epoch(cvr.splits["train"], epoch)
            trainer.evaluate(cvr.splits["test"], load_best_model=False)
            pcvr.append(trainer.eval_collector.predictions.of("cvr").copy())
    return of_test.truth, of_test.of("ctr"), pcvr


def score(truth: Truth, pctr: Array, pcvr: Array, rows: Array) -> dict[str, float]:
    """The metrics that the rules are made of, on some rows."""
    of_rows = Truth(truth.click[rows], truth.conversion[rows])
    scores = {"ctr": pctr[rows], "cvr": pcvr[rows], "ctcvr": pctr[rows] * pcvr[rows]}
    found = Predictions(of_rows, scores)
    values = {}
    for task in ("cvr", "ctcvr"):
        classes = found.scored(task).classes
        values[f"{task.upper()}_AUC"] = auc(classes)
        values[f"{task.upper()}_LogLoss"] = log_loss(classes)
    return values


def rules(truth: Truth, pctr: Array, pcvr: list[Array], parts: int) -> dict[str, list[int]]:
    """The epoch that each rule keeps, by the part of test that it looks at."""
    part_of = np.random.default_rng(0).integers(parts, size=len(pctr))
    kept: dict[str, list[int]] = {rule: [] for rule in RULES}
    for part in range(parts):
        rows = np.flatnonzero(part_of == part)
        scores = [score(truth, pctr, each, rows) for each in pcvr]
        for rule in RULES:
            values = [s[rule] for s in scores]
            best = np.argmin(values) if rule.endswith("LogLoss") else np.argmax(values)
            kept[rule].append(int(best))
    return kept


def main() -> None:
    """Print a table for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="DeepFM")
    parser.add_argument("--seeds", default="2020,2021,2022")
    parser.add_argument("--epochs", type=int, default=25, help="of the CVR model")
    parser.add_argument("--parts", type=int, default=10, help="of test")
    parser.add_argument("--impression_sample", type=float, default=0.5)
    parser.add_argument("--data_path", default="dataset")
    arguments = parser.parse_args()
    for seed in map(int, arguments.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "data_path": arguments.data_path,
                "output_dir": folder,
                "impression_sample": arguments.impression_sample,
                "train_batch_size": 1024,
                "epochs": 40,
                "seed": seed,
                "show_progress": False,
                "state": "ERROR",
            }
            truth, pctr, pcvr = predictions_by_epoch(settings, arguments.model, arguments.epochs)
        everything = np.arange(len(pctr))
        whole = [score(truth, pctr, each, everything) for each in pcvr]
        bought = (truth.click > 0) & (truth.conversion > 0)
        alone = auc(class_scores(bought, pctr))
        rows = [["pCTR alone", f"{alone:.4f}", "", "", ""]]
        for rule, kept in rules(truth, pctr, pcvr, arguments.parts).items():
            of_auc = [whole[epoch]["CTCVR_AUC"] for epoch in kept]
            of_loss = [whole[epoch]["CTCVR_LogLoss"] for epoch in kept]
            cells = [f"{np.mean(of_auc):.4f}", f"{min(of_auc):.4f}", f"{np.mean(of_loss):.5f}"]
            rows.append([rule, *cells, " ".join(map(str, kept))])
        head = ["kept by", "CTCVR_AUC", "worst", "CTCVR_LogLoss", "epochs"]
        print(f"{arguments.model}, seed {seed}", table(head, rows), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
