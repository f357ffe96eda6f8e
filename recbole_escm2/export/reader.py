"""Raw rows as the inputs of an exported model, by its manifest: json and numpy are all it takes.

inputs = Reader("DIR").inputs({"user_id": ["7"], "age": [31.5], "tags": [["a", "b"]]})
onnxruntime.InferenceSession("DIR/model.onnx").run(None, inputs)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


class Reader:
    """Arrays by input, from a column of values for each field. None and NaN are no value; a list
    may be text with separators, and each of its tokens a pair of token and weight."""

    def __init__(self, folder: Any) -> None:
        files = (Path(folder) / name for name in ("manifest.json", "vocabularies.json"))
        self.manifest, tokens = (json.loads(file.read_text("utf-8")) for file in files)
        self.ids = [{token: id for id, token in enumerate(own, 1)} for own in tokens]

    def inputs(self, columns: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for field in self.manifest["fields"]:
            name, values = field["name"], columns[field["name"]]
            if field["type"].endswith("_seq"):
                lists = [self._pairs(own, field) for own in values]
                made[f"{name}.offsets"] = np.cumsum([0, *map(len, lists)])
                made[f"{name}.weights"] = [weight for own in lists for _, weight in own]
                name, values = f"{name}.values", [value for own in lists for value, _ in own]
            made[name] = [self._read(value, field) for value in values]
        wanted = {own["name"]: own["type"] for own in self.manifest["inputs"]}
        return {name: np.array(made[name], kind) for name, kind in wanted.items()}

    def _pairs(self, values: Any, field: Any) -> list[tuple[Any, float]]:
        if isinstance(values, str):
            values = [value for value in values.split(field["separator"]) if value]
        values = [] if _is_none(values) else values[: field["longest"]]
        pairs = [own if isinstance(own, tuple | list) else (own, None) for own in values]
        there = [own for own in pairs if "vocabulary" not in field or not _is_none(own[0])]
        return [(value, 1.0 if _is_none(weight) else weight) for value, weight in there]

    def _read(self, value: Any, field: Any) -> Any:
        if "vocabulary" not in field:
            return np.nan if value is None or value == "" else float(value)
        if isinstance(value, float | np.floating) and value % 1 == 0:  # 7.0 is the token 7
            value = int(value)
        text = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
        ids = self.ids[field["vocabulary"]]
        return 0 if _is_none(value) else ids.get(text, self.manifest["unknown_id"])


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and value != value)
