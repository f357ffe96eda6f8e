"""The command line: RecBole's habits, without ``eval`` and without surprises."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_escm2.errors import (
    UsageError,
    did_you_mean,
    lacks_memory,
    one_line,
    system_message,
)
from recbole_escm2.extras import SERVER, require
from recbole_escm2.keys import KEYS, OFTEN, UNLISTED, recbole_keys, unknown_key
from recbole_escm2.model_names import MODEL_NAMES, REFERENCE_NAMES
from recbole_escm2.property_files import PROPERTIES, dataset_names, lines_of, recbole_properties
from recbole_escm2.threads import bound_spinning, threads_of

_HELP = """\
usage: {program} --model=NAME --dataset=NAME [--config_files="A.yaml B.yaml"] [--KEY=VALUE ...]
       {program} --model=NAME,NAME,... --dataset=NAME --seeds=N [--KEY=VALUE,VALUE,... ...]
       {program} search --model=NAME --dataset=NAME --trials=N     (more: {program} search --help)
       {program} --checkpoint=FILE --evaluate
       {program} predict --checkpoint=FILE --data=FILE --out=FILE   (more: predict --help)
       {program} recommend --checkpoint=FILE --users=FILE --items=FILE --out=FILE  (more: --help)
       {program} export --checkpoint=FILE --out=DIR     (more: {program} export --help)
       {program} serve --checkpoint=FILE --port=8080     (more: {program} serve --help)
       {program} simulate --rows=N --out=DIR      (more: {program} simulate --help)
       {program} score --predictions=FILE         (more: {program} score --help)

Trains a model on impressions with a click and a conversion label, stops early on validation, and
ends with a table of test metrics per task.

  --model=NAME         {ours},
                       any context-aware model of RecBole ({some}, ...),
                       a row to compare with ({reference}),
                       or path.to.module:ClassName
  --dataset=NAME       {datasets}, or a folder of RecBole atomic files in data_path
  --config_files=...   YAML files, separated by spaces; later ones win
  --KEY=VALUE          any config key, over what the files say (also: --KEY VALUE)
  --checkpoint=FILE    a checkpoint that a run has written ...
  --evaluate           ... to be scored again on its test split, with --data_path, --metrics and
                       the like; --model=path.to.module:ClassName where the model is your own
  --resume=FOLDER|False   which run to go on with, or that a new one is to begin: by itself a run
                       that was killed goes on where its progress was saved last
  --help, --version

Several models, several seeds or several values of a key (in any combination) are a benchmark. Its
runs are processes of their own, it goes on where it was stopped, and ends with tables and a page.
  --seeds=N            seeds from the config's on, or a list: --seeds=[1,5,9]
  --jobs=N             runs at once (1)
  --trials=N           tune each row first: as it is, and N-1 settings drawn at random from its
                       ranges (properties/model/MODEL.hyper, or CLASS.hyper beside your module);
                       the best on validation is what the seeds then run. Trials have a random
                       --tuning_share (0.5) of the impressions, drawn by --tuning_seed (1), on which
                       no seed tests; where each seed has a simulated world, one of their own
  --screen="{{settings: S, rows: M, keep: [ROW]}}"   before that, S of each row's trials; the best M
                       rows on validation go on, those of keep, the baseline and the logistic
                       regression by right
  --pruner=halving     end trials that are behind (with --screen; else none)
  --baseline=ROW       the row that the others are compared with (the first), as they are with a
                       logistic regression, the first row of model LogisticRegression, or of LR
  --aa_row=False       without the A/A row: the baseline again, with other training seeds on the
                       same splits, where there are two seeds and two rows
  --primary=METRIC,METRIC   what verdicts are about: CTCVR_AUC and CVR_AUC_ES, or CVR_AUC where
                       the data has no potential conversions; no other column has a verdict
  --columns=METRIC,... of the table, beside those; all metrics are in its CSV and JSON
  --name=NAME          of its folder in output_dir
  --saved=True         keep the checkpoints
  --fresh=True         do again what is done already
  --benchmark=FILE     the same in a YAML file: models (a list, or a mapping of names to settings),
                       dataset, seeds, sweep, baseline, primary, columns, the others of these, and
                       config keys of all rows

Often wanted keys with their defaults (all of ours, with comments, are in the properties folder:
{properties}; RecBole's keep their meaning):
{keys}
"""
_SIMULATE_HELP = """\
usage: {program} simulate --rows=N --out=DIR [--KEY=VALUE ...]

Writes made-up impressions in the raw format of Ali-CCP into a folder, with the true click and
conversion probabilities (truth_train.npy, truth_test.npy) and simulation.json beside them. They
try out whatever reads or learns from Ali-CCP; numbers measured on them say nothing about it.

{knobs}
"""
_KNOBS = {
    "out": "the folder; replaces an earlier simulation, but no other raw files",
    "rows": "impressions, of train and test together (about 450 bytes each)",
    "seed": "the same one gives the same files, byte for byte",
    "click_rate": "clicked impressions among all",
    "conversion_rate": "conversions among clicked impressions",
    "selection": "selection bias: correlation of the two logits, 0 to 1",
    "interaction_share": "share of the logits that is products of user and item, 0 to 1",
    "rows_per_user": "mean number of impressions of a common row",
    "behaviours": "mean number of weighted ids of a common row",
    "users": "size of the vocabulary of 101; by default it grows with rows",
    "items": "size of the vocabulary of 205; by default it grows with rows",
    "test_share": "share of the rows that goes to test",
    "conversions_without_click": "share of rows with click 0 and purchase 1",
}
_SEARCH_HELP = """\
usage: {program} search --model=NAME --dataset=NAME --trials=N [--KEY=VALUE ...]

Searches the settings of a model that are best on validation (valid_metric). Each trial is a run in
a process of its own. The search goes on where it was stopped, several at once share one study, and
the best settings are written as a config file that --config_files takes.

  --trials=N           how many, those of earlier starts included (20)
  --params_file=FILE   ranges in RecBole's format, a line each: name type range, with the types
                       choice [a, b], uniform low,high, quniform low,high,step and loguniform
                       low,high (natural logarithms). By default those that ship for the model; a
                       key that is set on the command line isn't searched
  --jobs=N             trials at once (1); with more than one their order, and so what is proposed
                       next, depends on their speed
  --sampler=tpe        or random
  --pruner=median      ends a trial that is below the median of the others at an epoch; or none
  --name=NAME          of its folder in output_dir (search-MODEL-DATASET)
  --storage=URL        of Optuna's storage (an SQLite file in that folder)
  any config key       of all trials
"""
_SCORE_HELP = """\
usage: {program} score --predictions=FILE,... [--labels=FILE] [--key=COLUMN,...] [--out=FOLDER]

Scores predictions, whoever made them: every metric with its 95 % interval, the models compared on
the same rows, calibration. Files are Parquet, CSV, Arrow or Feather; their needed columns have to
fit into memory (8 bytes a row and column, and a few times that for sorting).

  --predictions=FILE,...  with the columns pctr, pcvr and pctcvr, or some of them; a file a model,
                       named by its file or as NAME=FILE,NAME=FILE. One file with columns pctr_NAME,
                       pcvr_NAME, ... has several models. pctcvr is pctr times pcvr where it isn't
                       given
  --labels=FILE        with the columns click and conversion; also user_id, item_id,
                       potential_conversion and true_cvr, where they are known. By default they are
                       in the (first) file of predictions
  --key=COLUMN,...     columns that pair up the rows of two files; by default rows pair up in the
                       order in which they stand
  --out=FOLDER         for tables (CSV, JSON) and the page (HTML, which takes the extra benchmark)
  --baseline=NAME      the model that the others are compared with (the first)
  --primary=METRIC,METRIC   what verdicts are about: CTCVR_AUC and CVR_AUC_ES, or CVR_AUC without
                       potential conversions
  --metrics=METRIC,... instead of those of a run
  --topk=K,...         of NDCG@K and Recall@K (10)
  --decision_threshold=P  from which F1 and Recall predict a positive, of all tasks or by task,
                       {{ctr: P, cvr: P, ctcvr: P}}; by default the task's share of positives
                       in these rows
  --calibration_bins=N of ECE (10)
  --CLICK_FIELD=NAME   and CONVERSION_FIELD, USER_ID_FIELD, ITEM_ID_FIELD,
                       POTENTIAL_CONVERSION_FIELD, TRUE_CTR_FIELD, TRUE_CVR_FIELD, pctr, pcvr,
                       pctcvr: what a column is called
"""
_PREDICT_HELP = """\
usage: {program} predict --checkpoint=FILE --data=FILE --out=FILE [--KEY=VALUE ...]

Scores new rows with a checkpoint alone: pctr, pcvr and pctcvr (those that the model predicts) and
support (the share of train's clicks whose pCTR is at most the row's), a row in the order of the
data. Ends with how far the rows are from what the model was trained on, and with metrics where they
have labels; all of it is in OUT.json too.

  --checkpoint=FILE    a checkpoint, or the folder of a run (a pair of models: the run's)
  --data=FILE          Parquet, CSV, Arrow or Feather; an .inter file, with .user and .item beside
                       it; a folder of such parts, or of raw Ali-CCP files; - for standard input
                       (CSV, or a stream of Arrow's record batches)
  --out=FILE           .parquet, .csv, .arrow or .feather; - for standard output
  --columns=a,b        columns of the data to pass through
  --users=FILE         the features of users, where the data has only their ids
  --items=FILE         those of items
  --skip_bad_rows=True leave rows out that can't be scored, and count them; else they are an error
  --labels=False       without metrics, where the data has labels
  --page=FILE          all of that as an HTML page (pip install 'recbole-escm2[benchmark]')
  --metrics=[...]      those to compute
  --eval_batch_size=N  rows that the model scores at once
  --model=path.to.module:Class   where the model is your own
  --device=cpu         where to compute; by default a GPU where there is one
  --workers=N          processes that score, each with the model (1); the output is the same
"""
_RECOMMEND_HELP = """\
usage: {program} recommend --checkpoint=FILE --users=FILE --items=FILE --out=FILE [--KEY=VALUE ...]

Writes the best items of each user, a row each with its rank and its probabilities, of all items or
of given candidates, with a checkpoint alone.

  --checkpoint=FILE    a checkpoint, or the folder of a run (a pair of models: the run's)
  --users=FILE         each user once, with the features of users, and the context to recommend in
                       (features of impressions: an hour, a place); Parquet, CSV, Arrow or Feather
  --items=FILE         each item once, with the features of items
  --out=FILE           .parquet, .csv, .arrow or .feather
  --k=10               items a user
  --by=ctcvr           or ctr or cvr: the probability that ranks them
  --seen=FILE          pairs of a user and an item that aren't recommended
  --candidates=FILE    pairs of a user and an item to choose among, instead of all; features that
                       it doesn't have come from --users and --items
  --model=path.to.module:Class   where the model is your own
  --device=cpu         where to compute; by default a GPU where there is one
"""
_EXPORT_HELP = """\
usage: {program} export --checkpoint=FILE --out=DIR [--format=onnx] [--verify=True]

Writes a checkpoint's model as one artefact that runs without this package: ids and raw numbers in,
pctr, pcvr and pctcvr out, calibrated where the checkpoint's are. Beside it manifest.json (inputs,
vocabularies, what an unknown id gets, scales, versions, checksums), vocabularies.json, and
reader.py, which makes inputs of raw rows with numpy alone.

  --checkpoint=FILE    a checkpoint, or the folder of a run (a pair of models: the run's)
  --out=DIR            the folder; replaces an earlier export, but no other folder
  --format=onnx        for onnxruntime and others (pip install 'recbole-escm2[serve]'); torch, for
                       torch.export.load; or aoti, compiled by AOTInductor for this kind of machine,
                       which takes a C++ compiler
  --verify=True        run the artefact, and refuse it where it is farther than 1e-5 from the model
                       on random rows, unknown ids, empty lists, one row; False; or only: verify the
                       export that is in DIR (onnx)
  --model=path.to.module:Class   where the model is your own
"""
_SERVE_HELP = """\
usage: {program} serve --checkpoint=FILE [--port=8080] [--KEY=VALUE ...]

Answers requests over HTTP with the scores of a checkpoint: POST /predict takes rows as JSON, and
GET / is a page to try a row. GET /model has the fields, GET /openapi.json the whole interface, GET
/health and GET /metrics (for Prometheus) tell of the server. SIGTERM ends it when all that has come
is answered. Takes pip install 'recbole-escm2[serve]'.

  --checkpoint=FILE    a checkpoint, or the folder of a run (a pair of models: the run's)
  --port=8080          to listen at; 0 for one that is free, which the first line of output says
  --host=127.0.0.1     whom to listen for: this machine alone; 0.0.0.0 for all. There is no
                       password and no TLS: what is open to others belongs behind a proxy
  --watch=True         (or --watch) put the model in place when its checkpoint is replaced, and go
                       on with the old one where the new one is broken
  --examples=False     without values of train (frequent tokens, users among them) for the page
  --max_rows=10000     rows that a request may have
  --max_body=16000000  bytes that it may have
  --max_requests=64    requests at once
  --timeout=30         seconds in which a request must have come and be answered
  --workers=N          processes that score, each with the model (1)
  --eval_batch_size=N  rows that the model scores at once
  --model=path.to.module:Class   where the model is your own
  --device=cpu         where to compute; by default a GPU where there is one
"""
#: What stands alone, with the value that it then has.
_FLAGS = {
    **dict.fromkeys(("help", "version", "evaluate"), ""),
    **dict.fromkeys(("resume", "final_fit", "verify", "watch"), "True"),
}
_PROGRAM = "run_recbole_escm2.py"
_AS_MODULE = ("python", "-m", "recbole_escm2")


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Keys and text values of ``--key=value`` and ``--key value``; flags have an empty value.

    Raises:
        UsageError: an argument is neither, or a key is given twice with different values.
    """
    parsed: dict[str, str] = {}
    waiting: str | None = None
    for argument in arguments:
        if waiting is not None and not _is_option(argument):
            key, value = waiting, argument
            waiting = None
        elif waiting is not None:
            raise UsageError(f"--{waiting} needs a value: --{waiting}=VALUE")
        elif argument == "-h":
            key, value = "help", ""
        elif not _is_option(argument):
            raise UsageError(f"what is '{argument}'? Settings are written --key=value; see --help")
        else:
            key, equals, value = argument[2:].partition("=")
            if not equals and key in _FLAGS:
                value = _FLAGS[key]
            elif not equals:
                waiting = key
                continue
        if parsed.get(key, value) != value:
            raise UsageError(f"--{key} is given twice: {parsed[key]!r} and {value!r}")
        parsed[key] = value
    if waiting is not None:
        raise UsageError(f"--{waiting} needs a value: --{waiting}=VALUE")
    return parsed


def _is_option(argument: str) -> bool:
    return argument.startswith("--") and len(argument) > 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit code: 0, or 2 for a mistake that the caller can mend (said on standard error).
    """
    bound_spinning()
    try:
        # where another program calls this one, argv is that program's
        started = _AS_MODULE if arguments is not None else started_as(sys.argv[0])
        arguments = sys.argv[1:] if arguments is None else arguments
        with _joined():
            if arguments and arguments[0] in _COMMANDS:
                return _command(arguments[0], parse_arguments(arguments[1:]))
            return _main(parse_arguments(arguments), [*started, *arguments])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # which is flushed at the end
        return 1
    except OSError as error:
        print(f"error: {system_message(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        print(f"error: memory doesn't hold it: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """Where torchrun has started several processes they are one program: one of them speaks."""
    if "WORLD_SIZE" not in os.environ:  # torch needn't be loaded for a mistyped option
        yield
        return
    from recbole_escm2.distributed import process_group

    with process_group():
        yield


def _for_one_process(what: str) -> None:
    """Refuse what several processes would each do by itself."""
    if "WORLD_SIZE" in os.environ:
        from recbole_escm2.distributed import world_size

        if world_size() > 1:
            raise UsageError(f"{what} is done by one process: start it without torchrun")


def _command(name: str, options: dict[str, str]) -> int:
    about, do = _COMMANDS[name]
    if "help" not in options:
        _for_one_process(name)
        return do(options)
    print(about.format(program=_PROGRAM) if isinstance(about, str) else about())
    return 0


def started_as(program: str) -> Sequence[str]:
    """The words that start the program the way it was started.

    Args:
        program: the first of ``sys.argv``.
    """
    path = Path(program)
    if path.stem == "recbole-escm2":  # on Windows it ends in .exe
        return (path.stem,)
    return _AS_MODULE if path.name == "__main__.py" else ("python", program)


def _main(options: dict[str, str], command: Sequence[str]) -> int:
    if "version" in options:
        from recbole_escm2 import __version__

        print(f"recbole_escm2 {__version__}")
        return 0
    if "help" in options:
        print(_help())
        return 0
    _check_names(options)
    from recbole_escm2.experiment.request import is_benchmark

    if is_benchmark(options):
        _for_one_process("a benchmark")
        require("benchmark")
        from recbole_escm2.report.command import benchmark

        return benchmark(options, command)
    import torch

    from recbole_escm2.distributed import is_main
    from recbole_escm2.evaluator.summary import metric_lines
    from recbole_escm2.quick_start import evaluate_checkpoint, run, show

    torch.set_num_threads(threads_of())
    model, dataset = options.pop("model", None), options.pop("dataset", None)
    checkpoint = options.pop("checkpoint", None)
    if options.pop("evaluate", None) is not None:
        if checkpoint is None:
            raise UsageError("--evaluate needs --checkpoint=FILE")
        files = options.pop("config_files", "").split()
        outcome = evaluate_checkpoint(
            checkpoint, model, dataset, command_line=options, config_file_list=files
        )
    elif checkpoint is not None:
        raise UsageError("--checkpoint=FILE goes with --evaluate")
    else:
        files = options.pop("config_files", "").split()
        try:
            outcome = run(model, dataset, files, command_line=options)
        except KeyboardInterrupt:
            if is_main():
                print("stopped; the same command goes on from what was saved last", file=sys.stderr)
            return 130
    if is_main():
        print(show(outcome))
        print()
        print(metric_lines(outcome["test_result"]))
    return 0


def _check_names(options: Mapping[str, str]) -> None:
    """Refuse a mistyped option before torch is loaded.

    Only models of the user's own have keys that are neither declared here nor in RecBole's files.
    """
    models = options.get("model") or options.get("models")
    files = options.keys() & {"benchmark", "config_files", "checkpoint"}  # may name a model
    if ":" in (models or "") or (not models and files):
        return
    known = {*KEYS, *UNLISTED, "models", "sweep"}
    known.update(re.findall(r"--(\w+)", _HELP + _SEARCH_HELP))
    of_recbole = recbole_keys()
    for name in options:
        if name not in known and name not in of_recbole:
            raise UsageError(unknown_key(name, known))


def _help() -> str:
    return _HELP.format(
        program=_PROGRAM,
        ours=", ".join(MODEL_NAMES),
        reference=", ".join(REFERENCE_NAMES),
        some="DeepFM, DCNV2, AutoInt",
        datasets=", ".join(dataset_names()),
        properties=PROPERTIES,
        keys="\n".join(_often_wanted()),
    )


def _often_wanted() -> list[str]:
    """A few lines for each key that is often wanted: its default, and the beginning of its help."""
    models = PROPERTIES / "model"
    files = [
        PROPERTIES / "overall.yaml",
        *(models / f"{name}.yaml" for name in ("EntireSpaceRecommender", *MODEL_NAMES)),
        recbole_properties() / "overall.yaml",
    ]
    lines = lines_of(files)
    shown = []
    for name, key in KEYS.items():
        if OFTEN in key.about:
            default, text = lines[name]
            sentence = text.partition(") ")[2].partition(". ")[0].rstrip(".")
            option = f"  --{name}={default.replace(' ', '')}"
            shown.append(textwrap.fill(f"{option:35} {sentence}", 100, subsequent_indent=" " * 36))
    return shown


def _simulate_help() -> str:
    from recbole_escm2.data.ali_ccp.simulate import Simulation

    defaults = {field.name: field.default for field in dataclasses.fields(Simulation)}
    width = max(map(len, _KNOBS))
    knobs = [
        f"  --{name:{width}}  {text}"
        + (f" ({defaults[name]})" if isinstance(defaults.get(name), int | float) else "")
        for name, text in _KNOBS.items()
    ]
    return _SIMULATE_HELP.format(program=_PROGRAM, knobs="\n".join(knobs))


def _simulate(options: dict[str, str]) -> int:
    from tqdm import tqdm

    from recbole_escm2.data.ali_ccp.simulate import Simulation, simulate

    defaults = {field.name: field.default for field in dataclasses.fields(Simulation)}
    out = options.pop("out", None)
    if not out:
        raise UsageError("where to? simulate needs --out=DIR")
    if "rows" not in options:
        raise UsageError("how many impressions? simulate needs --rows=N")
    for name in options:
        if name not in defaults:
            raise UsageError(f"simulate knows no --{name}{did_you_mean(name, [*defaults, 'out'])}")
    simulation = Simulation(
        **{name: _number(name, text, defaults[name]) for name, text in options.items()}
    )

    with tqdm(disable=None, unit="lines", unit_scale=True, leave=False) as bar:  # terminals only

        def progress(name: str, done: int, lines: int) -> None:
            bar.set_description(name, refresh=False)
            bar.total, bar.n = lines, done
            bar.refresh()

        content = simulate(simulation, out, progress)
    print(_simulated(content, Path(out)))
    return 0


def _number(name: str, text: str, default: Any) -> Any:
    """A number from the command line, whole unless the default isn't."""
    try:
        return float(text) if isinstance(default, float) else int(text)
    except ValueError:
        kind = "number" if isinstance(default, float) else "whole number"
        raise UsageError(f"{name} must be a {kind}, got {text!r}") from None


def _simulated(content: dict[str, Any], out: Any) -> str:
    """What a simulation has written, as tables, and what to do next."""
    from recbole_escm2.output import table

    splits = content["splits"]
    counts = ("rows", "clicks", "conversions", "common_rows")
    raw_folder = "dataset/ali-ccp/raw"
    if out.absolute().as_posix().endswith(f"/{raw_folder}"):
        then = f"{out} is where the raw files of the data set ali-ccp belong."
    else:
        then = (
            f"To use them as the data set ali-ccp, put them in {raw_folder}/, or simulate there:"
            f" --out={raw_folder}"
        )
    return "\n\n".join(
        [
            table(
                ["split", *(name.replace("_", " ") for name in counts)],
                [[split, *(f"{splits[split][n]:,}" for n in counts)] for split in splits],
            ),
            table(["file", "bytes"], [[n, f"{size:,}"] for n, size in content["bytes"].items()]),
            f"{content['note']}\n{then}",
        ]
    )


def _search(options: dict[str, str]) -> int:
    _check_names(options)
    require("search")
    from recbole_escm2.experiment.search import search

    return search(options)


def _score(options: dict[str, str]) -> int:
    from recbole_escm2.scoring.command import score_command

    return score_command(options)


def _predict(options: dict[str, str]) -> int:
    _begin_scoring("predict", options, _PREDICT_HELP)
    from recbole_escm2.serve.predict import predict

    return predict(options)


def _recommend(options: dict[str, str]) -> int:
    _begin_scoring("recommend", options, _RECOMMEND_HELP)
    from recbole_escm2.serve.recommend import recommend

    return recommend(options)


def _export(options: dict[str, str]) -> int:
    _begin_scoring("export", options, _EXPORT_HELP)
    from recbole_escm2.export.command import export

    return export(options)


def _serve(options: dict[str, str]) -> int:
    require("serve", "serve", SERVER)
    _begin_scoring("serve", options, _SERVE_HELP)
    from recbole_escm2.serve.http.command import serve

    return serve(options)


def _begin_scoring(command: str, options: Mapping[str, str], text: str) -> None:
    """Refuse an option that a command's help doesn't name; then load torch."""
    known = re.findall(r"--(\w+)=", text)
    for name in options:
        if name not in known:
            raise UsageError(f"{command} knows no --{name}{did_you_mean(name, known)}")
    import torch

    torch.set_num_threads(threads_of())


#: What each command says of itself, and does.
_COMMANDS: dict[str, tuple[str | Callable[[], str], Callable[[dict[str, str]], int]]] = {
    "simulate": (_simulate_help, _simulate),
    "search": (_SEARCH_HELP, _search),
    "score": (_SCORE_HELP, _score),
    "predict": (_PREDICT_HELP, _predict),
    "recommend": (_RECOMMEND_HELP, _recommend),
    "export": (_EXPORT_HELP, _export),
    "serve": (_SERVE_HELP, _serve),
}
