"""New rows by torch-rechub's predict, with its own reading: pandas, PredictDataset, DataLoader.

An ESMM of the size that ``perf/predict.py`` trains; what it has learned doesn't matter for speed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from contender import BATCH, EMBEDDING, TOWER
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import ESMM
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import PredictDataset

sys.path.append(str(Path(__file__).absolute().parent.parent))
from synthetic import FIELDS

ITEM_FIELDS = ("205", "206", "207", "216")


def main() -> None:
    """Score a Parquet file, report."""
    torch.manual_seed(2022)
    features = {name: SparseFeature(name, n, embed_dim=EMBEDDING) for name, n in FIELDS.items()}
    tower = {"dims": TOWER, "activation": "relu", "dropout": 0}
    model = ESMM(
        [feature for name, feature in features.items() if name not in ITEM_FIELDS],
        [feature for name, feature in features.items() if name in ITEM_FIELDS],
        cvr_params=tower,
        ctr_params=tower,
    )
    trainer = MTLTrainer(model, task_types=["classification"] * 3, n_epoch=1)
    start = time.perf_counter()
    frame = pd.read_parquet(sys.argv[1])
    x = {name: frame[name].to_numpy() for name in FIELDS}
    loader = torch.utils.data.DataLoader(PredictDataset(x), batch_size=BATCH, shuffle=False)
    scores = np.array(trainer.predict(model, loader))
    seconds = time.perf_counter() - start
    assert scores.shape == (len(frame), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows_per_second": len(frame) / seconds, "peak_mb": peak}))


if __name__ == "__main__":
    main()
