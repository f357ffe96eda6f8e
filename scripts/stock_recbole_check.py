"""Checks the package under RecBole's own quick_start; prove_stock_recbole.sh installs and runs it.

Run it in an empty folder. Prints a line for each fact; exits with 1 if one doesn't hold.
"""

import importlib
import json
import logging
import random
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

QUICK = {"epochs": 1, "impression_sample": 0.03, "show_progress": False}
TASKS = ("ctr", "cvr", "ctcvr")
failures = 0

BENCHMARK = """\
# dataset config
field_separator: "\\t"
seq_separator: " "
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
RATING_FIELD: rating
TIME_FIELD: timestamp
LABEL_FIELD: label
threshold: {'rating': 4}
load_col:
  inter: [user_id, item_id, rating, timestamp]
  user: [user_id, age, gender, occupation]
  item: [item_id, release_year, class]
normalize_all: True

# training and evaluation
epochs: 1
learner: adam
learning_rate: 5e-3
train_batch_size: 2048
eval_batch_size: 40960
train_neg_sample_args: ~
stopping_step: 10
eval_args:
  split: {'RS': [0.8, 0.1, 0.1]}
  order: RO
  group_by: ~
  mode: labeled
metrics: ['AUC', 'LogLoss']
valid_metric: AUC

# model, with keys of ours
embedding_size: 8
mlp_hidden_size: [32, 16]
dropout_prob: 0.2
counterfactual_weight: 0.5
propensity_floor: 0.05
predict_task: cvr
impression_sample: 0.03
show_progress: False
"""

OWN_MODEL = """\
from recbole.quick_start import run_recbole
from recbole_escm2 import register_model
from recbole_escm2.model import ESCM2_IPS

@register_model
class Mine(ESCM2_IPS):
    default_config = {"mlp_hidden_size": [8]}

result = run_recbole(model="Mine", dataset="ml-100k", config_dict={
    "epochs": 1, "impression_sample": 0.03, "show_progress": False})
assert 0 < result["test_result"]["CTCVR_AUC"] < 1
"""

STOCK_MODEL = """\
import json, sys
import_ours, model = sys.argv.pop() == "True", sys.argv.pop()
if import_ours:
    import recbole_escm2
from recbole.quick_start import run_recbole
result = run_recbole(model=model, dataset="ml-100k", saved=False, config_dict={
    "epochs": 1, "show_progress": False})
print(json.dumps(result["test_result"]))
"""


def check(fact, holds, shown=""):
    """Print whether a fact holds."""
    global failures
    failures += not holds
    print(f"{'ok  ' if holds else 'FAIL'}  {fact}" + (f": {shown}" if shown else ""), flush=True)


def close(left, right):
    return abs(left - right) < 1e-6


def snapshot():
    """What an import might change: RecBole's registers and modules, the process, the folder."""
    import recbole.data.dataset
    import recbole.evaluator.register as register
    import recbole.trainer
    import recbole.utils

    held = {
        f"{module.__name__}.{name}": id(value)
        for module in (recbole.data.dataset, recbole.trainer, recbole.utils, register)
        for name, value in vars(module).items()
        if not name.startswith("__")
    }
    held |= {f"metric {name}": id(value) for name, value in register.metrics_dict.items()}
    removed_by_numpy = ("bool", "int", "float", "complex", "object", "str", "long", "unicode")
    process = {
        "files": sorted(map(str, Path().rglob("*"))),
        "log handlers": list(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "sys.argv": list(sys.argv),
        "sys.path": list(sys.path),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(np.random.get_state()),
        "Python's random state": random.getstate(),
        "numpy's names": [name for name in removed_by_numpy if name in vars(np)],
        "torch's threads and types": (torch.get_num_threads(), torch.get_default_dtype()),
    }
    return held, process


def registers():
    import recbole.data.dataset
    import recbole.evaluator.register as register
    import recbole.trainer

    return [
        len(entries)
        for entries in (
            register.metrics_dict,
            register.metric_types,
            register.metric_information,
            register.smaller_metrics,
            vars(recbole.data.dataset),
            vars(recbole.trainer),
            [name for name in sys.modules if name.startswith("recbole.model.")],
        )
    ]


def the_import():
    held, process = snapshot()
    import recbole_escm2

    held_after, process_after = snapshot()
    package = Path(recbole_escm2.__file__).parent
    check("the installed package is imported", "site-packages" in package.parts)
    replaced = [name for name in held if held_after.get(name) != held[name]]
    check("import replaces nothing of RecBole's", not replaced, ", ".join(replaced))
    for name in process:
        check(f"import leaves {name} alone", process[name] == process_after[name])
    before = registers()
    importlib.reload(recbole_escm2)
    recbole_escm2.register()
    check("importing and registering again adds nothing", registers() == before, str(before))


def run(model, files=None, **settings):
    """RecBole's run_recbole, with a fresh log; returns its result and our trainer."""
    from recbole.quick_start import run_recbole

    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    SEEN.clear()
    result = run_recbole(
        model=model, dataset="ml-100k", config_file_list=files, config_dict=settings
    )
    return result, SEEN.get("trainer")


SEEN = {}


def watch_trainers():
    """Note the trainer and the data of each run."""
    from recbole_escm2.train.trainer import EntireSpaceTrainer

    fit = EntireSpaceTrainer.fit

    def noting_fit(self, train_data, *args, **kwargs):
        SEEN.update(trainer=self, loader=train_data)
        return fit(self, train_data, *args, **kwargs)

    EntireSpaceTrainer.fit = noting_fit


def our_models():
    from recbole_escm2.data import EntireSpaceDataset
    from recbole_escm2.train.trainer import EntireSpaceTrainer

    for model in ("ESCM2_DR", "ESMM", "ESCM2_IPS"):
        result, trainer = run(model, **QUICK)
        test = result["test_result"]
        names = [f"{task.upper()}_{metric}" for task in TASKS for metric in ("AUC", "LogLoss")]
        check(
            f"run_recbole trains {model} and scores three tasks",
            type(trainer.model).__name__ == model and all(name in test for name in names),
            ", ".join(f"{name} {test[name]:.4f}" for name in names),
        )
        check(
            f"{model} has our trainer and data set",
            type(trainer) is EntireSpaceTrainer
            and type(SEEN["loader"]._dataset) is EntireSpaceDataset,
        )
        wanted = {
            "train_batch_size": 4096,
            "embedding_size": 16,
            "valid_metric": "CTCVR_AUC",
            "stopping_step": 3,
            "impressions": "pairs",
            "counterfactual_weight": 0.1,
            "epochs": 1,
        }
        got = {key: trainer.config[key] for key in wanted}
        held = SEEN["loader"].step, trainer.model.embedding_size, trainer.valid_metric
        check(
            f"{model} has our defaults where nothing was set",
            got == wanted and held == (4096, 16, "CTCVR_AUC"),
            str(got),
        )
        best = result["best_valid_score"], result["best_valid_result"]["CTCVR_AUC"]
        check(f"{model}'s best epoch is chosen by CTCVR_AUC", best[0] == best[1])
        log = max(Path("log", model).glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = [line for line in log.read_text().splitlines() if "sets its defaults" in line]
        said = len(lines) == 1 and "train_batch_size=4096" in lines[0]
        check(f"{model}'s log says once which defaults were set", said)
        check(f"{model}'s log gives settings of the user as such", " epochs=" not in lines[0])


def recbole_metrics():
    reference, _ = run("ESCM2_IPS", **QUICK)
    for task in TASKS:
        result, trainer = run(
            "ESCM2_IPS",
            predict_task=task,
            metrics=["AUC", "LogLoss"],
            valid_metric="AUC",
            **QUICK,
        )
        test = result["test_result"]
        check(
            f"AUC and LogLoss are {task.upper()}_AUC and {task.upper()}_LogLoss "
            f"with predict_task={task}",
            set(test) == {"AUC", "LogLoss"}
            and all(
                close(test[name], reference["test_result"][f"{task.upper()}_{name}"])
                for name in test
            ),
            str(test),
        )
        check(
            f"valid_metric AUC is {task.upper()}_AUC with predict_task={task}",
            trainer.valid_metric == "AUC"
            and close(
                result["best_valid_score"], reference["best_valid_result"][f"{task.upper()}_AUC"]
            ),
        )
    result, _ = run(
        "ESCM2_IPS",
        metrics=["AUC", "CTCVR_AUC", "ctr_ndcg@10", "CVR_LogLoss"],
        valid_metric="CVR_LogLoss",
        **QUICK,
    )
    test = result["test_result"]
    check(
        "RecBole's metrics and ours go together, in any case of letters",
        list(test) == ["AUC", "CTCVR_AUC", "CTR_NDCG@10", "CVR_LogLoss"]
        and close(test["AUC"], test["CTCVR_AUC"])
        and all(
            close(test[name], reference["test_result"][name]) for name in test if name != "AUC"
        ),
        str(test),
    )
    check("valid_metric CVR_LogLoss is better when smaller", result["valid_score_bigger"] is False)


def benchmark_file():
    Path("benchmark.yaml").write_text(BENCHMARK)
    result, trainer = run("ESCM2_IPS", files=["benchmark.yaml"])
    test, model = result["test_result"], trainer.model
    check(
        "a benchmark file of a context-aware model runs ESCM2_IPS",
        set(test) == {"AUC", "LogLoss"} and 0 < test["AUC"] < 1,
        str(test),
    )
    check(
        "what the file sets is in force, our keys too",
        (model.risk_weight["cvr"], model.propensity_floor, model.predict_task) == (0.5, 0.05, "cvr")
        and (model.embedding_size, SEEN["loader"].step) == (8, 2048)
        and trainer.optimizer.param_groups[0]["lr"] == 5e-3,
    )
    features = {*model.token_field_names, *model.token_seq_field_names, *model.float_field_names}
    check(
        "its rating and timestamp, known for clicks only, are no features",
        not features & {"rating", "timestamp", "label", "click", "conversion"},
        ", ".join(sorted(features)),
    )


def checkpoint():
    from recbole_escm2.quick_start import evaluate_checkpoint

    result, trainer = run("ESCM2_DR", **QUICK)
    again = evaluate_checkpoint(trainer.saved_model_file)["test_result"]
    different = [n for n, v in result["test_result"].items() if not close(again.get(n, 9), v)]
    check(
        "a checkpoint of run_recbole scores the same in our runner (--checkpoint --evaluate)",
        not different,
        ", ".join(different),
    )


def refusals():
    from recbole_escm2.errors import UsageError

    split = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None}
    for name, settings in {
        "negative sampling (it would copy click labels onto sampled items)": {
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}
        },
        "evaluation mode uni10": {"eval_args": {**split, "mode": "uni10"}},
    }.items():
        try:
            run("ESMM", **QUICK, **settings)
        except UsageError as error:
            check(f"{name} is refused", True, str(error))
        except Exception as error:
            check(f"{name} is refused with a message", False, f"{type(error).__name__}: {error}")
        else:
            check(f"{name} is refused", False, "it ran")


def own_model():
    Path("own_model.py").write_text(OWN_MODEL)
    done = subprocess.run([sys.executable, "own_model.py"], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    check("a script's own model runs under @register_model", done.returncode == 0, last)


def stock_models():
    for model in ("DeepFM", "BPR"):
        outputs = []
        for import_ours in ("False", "True"):
            command = [sys.executable, "-c", STOCK_MODEL, model, import_ours]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
            outputs.append(done.stdout.strip().splitlines()[-1] if done.stdout else None)
        check(
            f"RecBole's {model} gives the same with and without the import",
            outputs[0] is not None and outputs[0] == outputs[1],
            outputs[1] or "it fails: see the log",
        )
        if outputs[1]:
            check(
                f"RecBole's {model} keeps RecBole's metrics",
                "_" not in "".join(json.loads(outputs[1])),
            )


def hyper_tuning():
    from recbole.quick_start import objective_function

    settings = {"dataset": "ml-100k", **QUICK, "counterfactual_weight": 0.5}
    result = objective_function({**settings, "model": "ESCM2_IPS"})
    check(
        "objective_function, which HyperTuning calls, runs ESCM2_IPS",
        result["model"] == "ESCM2_IPS" and "CTCVR_AUC" in result["test_result"],
        f"best_valid_score {result['best_valid_score']:.4f}",
    )
    try:
        objective_function({"model": "DeepFM", "dataset": "ml-100k", "epochs": 1})
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        print(f"note  objective_function fails for RecBole's own DeepFM ({reason}...)")


def default_run():
    started = time.perf_counter()
    result, trainer = run("ESCM2_DR", show_progress=False)
    auc = {name: result["test_result"][f"{name}_AUC"] for name in ("CTR", "CVR", "CTCVR")}
    check(
        "the default run learns: CTCVR_AUC > 0.9, CVR_AUC > 0.7",
        auc["CTCVR"] > 0.9 and auc["CVR"] > 0.7,
        ", ".join(f"{name}_AUC {value:.4f}" for name, value in auc.items())
        + f"; best epoch {trainer.best_epoch} of {len(trainer.train_loss_dict)}"
        + f"; {time.perf_counter() - started:.0f} s",
    )


def main(full):
    packages = ("recbole", "torch", "numpy", "pandas", "scipy", "ray", "setuptools")
    print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in packages))
    sections = [
        the_import,
        watch_trainers,
        our_models,
        recbole_metrics,
        benchmark_file,
        checkpoint,
        refusals,
        own_model,
        stock_models,
        hyper_tuning,
    ]
    for section in sections + [default_run] * full:
        try:
            section()
        except Exception as error:
            traceback.print_exc()
            check(f"{section.__name__} runs to its end", False, f"{type(error).__name__}: {error}")
    return 1 if failures else 0


if __name__ == "__main__":
    wants_full = "full" in sys.argv[1:]
    del sys.argv[1:]  # RecBole reads it as settings
    sys.exit(main(wants_full))
