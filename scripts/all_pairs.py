"""Train every variant on every backbone for a moment, and print what came of each pair.

One epoch on a small sample of ml-100k: whether a pair works, not how well.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from typing import Any

from recbole_escm2.errors import UsageError
from recbole_escm2.model import MODELS
from recbole_escm2.model.backbone import REFUSED, backbone_names
from recbole_escm2.output import table
from recbole_escm2.quick_start import run


def outcome(variant: str, backbone: str, settings: dict[str, Any]) -> str:
    """``ok``, the reason why the pair is refused, or the error that it ended in."""
    try:
        result = run(
            variant, "ml-100k", config_dict={**settings, "backbone": backbone}, saved=False
        )
    except UsageError as error:
        return f"refused: {error}"
    except Exception as error:  # the table is to show all pairs, the broken ones too
        return f"broken: {type(error).__name__}: {error}"
    aucs = [result["test_result"].get(f"{task}_AUC") for task in ("CTR", "CVR", "CTCVR")]
    missing = [auc for auc in aucs if auc is None or not 0 <= auc <= 1]
    return "broken: an AUC is missing" if missing else "ok"


def main() -> int:
    """Print the table; the exit code is 1 if a pair broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impression_sample", type=float, default=0.002, help="share of ml-100k")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    variants = [model.__name__ for model in MODELS]
    notes: dict[str, int] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "impression_sample": arguments.impression_sample,
            "epochs": 1,
            "train_batch_size": 512,
            "output_dir": folder,
            "show_progress": False,
            "state": "ERROR",
        }
        for backbone in [*backbone_names(), *REFUSED]:
            cells = [backbone]
            for variant in variants:
                said = outcome(variant, backbone, settings)
                word, _, reason = said.partition(": ")
                number = notes.setdefault(reason, len(notes) + 1) if reason else None
                cells.append(f"{word} [{number}]" if number else word)
                if word == "broken":
                    print(f"{variant} on {backbone}: {reason}", file=sys.stderr)
            rows.append(cells)
    print(table(["backbone", *variants], rows))
    for reason, number in notes.items():
        print(f"\n[{number}] {reason}")
    return int(any(cell.startswith("broken") for cells in rows for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
