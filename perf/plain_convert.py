"""The converter that one would write first: line by line, in plain Python and numpy.

It does what ``recbole_escm2.data.ali_ccp`` and the builder do with the same files: parses every
line into dicts, joins the common features, counts what the training impressions have, splits
by a hash of sample_id, and writes arrays of ids and weights. Common features are kept once, in
memory.

    python perf/plain_convert.py RAW TARGET
"""

from __future__ import annotations

import json
import resource
import sys
import time
from array import array
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from recbole_escm2.data.ali_ccp.raw import FIELDS, SPLITS, common_name, skeleton_name

MIN_COUNT = 12
VALIDATION_SHARE = 0.1
CHOSEN = {field.name for field in FIELDS if field.literature}
FEATURE, ID, VALUE = "\x01", "\x02", "\x03"


def parse(features: str, number: str) -> dict[str, list[tuple[str, float]]]:
    """Ids and weights by field."""
    parsed: dict[str, list[tuple[str, float]]] = defaultdict(list)
    parts = features.split(FEATURE)
    if len(parts) != int(number):
        raise ValueError(f"{len(parts)} features instead of {number}")
    for part in parts:
        field, rest = part.split(ID)
        name, value = rest.split(VALUE)
        if field in CHOSEN:
            parsed[field].append((name, float(value)))
    return parsed


def is_validation(sample: int) -> bool:
    """By a hash of sample_id (splitmix64)."""
    mask = (1 << 64) - 1
    z = ((sample ^ 0xA11CC95EED2018) + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) < VALIDATION_SHARE * 2**64


def main() -> None:
    """Convert, and print time and memory as JSON."""
    raw, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    rows: dict[str, list[dict[str, list[tuple[str, float]]]]] = defaultdict(list)
    labels: dict[str, list[tuple[int, int]]] = defaultdict(list)
    keys: dict[str, list[int]] = defaultdict(list)
    commons: list[dict[str, list[tuple[str, float]]]] = [{}]
    for split in SPLITS:
        place: dict[str, int] = {}
        with open(raw / common_name(split)) as file:
            for line in file:
                key, number, features = line.rstrip("\n").split(",")
                if key not in place:
                    place[key] = len(commons)
                    commons.append(parse(features, number))
        with open(raw / skeleton_name(split)) as file:
            for line in file:
                sample, click, purchase, key, number, features = line.rstrip("\n").split(",")
                if click == "0" and purchase == "1":
                    continue
                part = "validation" if split == "train" and is_validation(int(sample)) else split
                own, common = parse(features, number), place.get(key, 0)
                rows[part].append(own)
                labels[part].append((int(click), int(purchase)))
                keys[part].append(common)
                if part == "train":
                    for values in (own, commons[common]):
                        for field, pairs in values.items():
                            counts[field].update({name for name, _ in pairs})
    ids = {}
    for field, counter in counts.items():
        kept = sorted(
            (name for name, count in counter.items() if count >= MIN_COUNT),
            key=lambda name: (-counter[name], int(name)),
        )
        ids[field] = {name: number for number, name in enumerate(kept, start=2)}
        (target / f"vocabulary-{field}.json").write_text(json.dumps(kept))
    for part, content in [*rows.items(), ("common", commons)]:
        for field in CHOSEN:
            known = ids.get(field, {})
            numbers, weights, lengths = array("i"), array("f"), array("i")
            for row in content:
                pairs = row.get(field, ())
                numbers.extend(known.get(name, 1) for name, _ in pairs)
                weights.extend(weight for _, weight in pairs)
                lengths.append(len(pairs))
            for kind, column in (("ids", numbers), ("weights", weights), ("lengths", lengths)):
                np.save(target / f"{part}-{field}-{kind}.npy", np.array(column))
        if part in labels:
            np.save(target / f"{part}-labels.npy", np.array(labels[part], dtype=np.uint8))
            np.save(target / f"{part}-common.npy", np.array(keys[part], dtype=np.int32))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": peak}))


if __name__ == "__main__":
    main()
