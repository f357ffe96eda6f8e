"""The command line: RecBole's habits, without ``eval`` and without surprises."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from recbole_escm2.errors import UsageError

_HELP = """\
usage: {program} --model=NAME --dataset=NAME [--config_files="A.yaml B.yaml"] [--KEY=VALUE ...]
       {program} --checkpoint=FILE --evaluate

Trains a model on impressions with a click and a conversion label, stops early on validation, and
ends with a table of test metrics per task.

  --model=NAME         {ours},
                       any context-aware model of RecBole ({some}, ...),
                       or path.to.module:ClassName
  --dataset=NAME       {datasets}, or a folder of RecBole atomic files in data_path
  --config_files=...   YAML files, separated by spaces; later ones win
  --KEY=VALUE          any config key, over what the files say (also: --KEY VALUE)
  --checkpoint=FILE    a checkpoint that a run has written ...
  --evaluate           ... to be scored again on its test split
  --help, --version

Often wanted keys (all of ours, with comments, are in the properties folder:
{properties}; RecBole's keep their meaning):
  --epochs, --seed, --learning_rate, --train_batch_size, --embedding_size, --mlp_hidden_size,
  --valid_metric=CTCVR_AUC         what chooses the best epoch
  --task=ctr|cvr|ctcvr             what a model of RecBole's own learns
  --counterfactual_weight, --global_weight, --propensity_floor   of ESCM2_IPS and ESCM2_DR
  --imputation=error|label, --imputation_schedule=joint|alternate   of ESCM2_DR
  --CLICK_FIELD, --CONVERSION_FIELD   the label columns of your own data
  --output_dir=output              each run makes one folder in it
"""
_FLAGS = ("help", "version", "evaluate")


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
                value = ""
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
    try:
        return _main(parse_arguments(sys.argv[1:] if arguments is None else arguments))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _main(options: dict[str, str]) -> int:
    if "version" in options:
        from recbole_escm2 import __version__

        print(f"recbole_escm2 {__version__}")
        return 0
    if "help" in options:
        print(_help())
        return 0
    from recbole_escm2.output import metric_lines
    from recbole_escm2.quick_start import evaluate_checkpoint, run, show

    model, dataset = options.pop("model", None), options.pop("dataset", None)
    checkpoint = options.pop("checkpoint", None)
    if options.pop("evaluate", None) is not None:
        if checkpoint is None:
            raise UsageError("--evaluate needs --checkpoint=FILE")
        outcome = evaluate_checkpoint(checkpoint, model, dataset, command_line=options)
    elif checkpoint is not None:
        raise UsageError("--checkpoint=FILE goes with --evaluate")
    else:
        files = options.pop("config_files", "").split()
        outcome = run(model, dataset, files, command_line=options)
    print(show(outcome))
    print()
    print(metric_lines(outcome["test_result"]))
    return 0


def _help() -> str:
    from recbole_escm2.config import PROPERTIES, dataset_names
    from recbole_escm2.model.lookup import MODELS

    return _HELP.format(
        program="run_recbole_escm2.py",
        ours=", ".join(model.__name__ for model in MODELS),
        some="DeepFM, DCNV2, AutoInt",
        datasets=", ".join(dataset_names()),
        properties=PROPERTIES,
    )
