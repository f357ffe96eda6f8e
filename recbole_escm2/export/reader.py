"""Raw rows as the inputs of an exported model, by its manifest: json and numpy are all it takes.

inputs = Reader("DIR").inputs({"user_id": ["7"], "age": [31.5], "tags": [["a", "b"]]})
onnxruntime.InferenceSession("DIR/model.onnx").run(None, inputs)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


class Reader:
    """Arrays by input, from a column of values for each field. None is no value; a list may be
    text with separators, and each of its tokens a pair with a weight."""

    def __init__(self, folder: Any) -> None:
        self.manifest = json.loads((Path(folder) / "manifest.json").read_text("utf-8"))
        vocabularies = json.loads((Path(folder) / "vocabularies.json").read_text("utf-8"))
        self.ids = [{token: id for id, token in enumerate(own, 1)} for own in vocabularies]

    def inputs(self, columns: Any) -> dict[str, Any]:
        made = {}
        for field in self.manifest["fields"]:
            name, column = field["name"], columns[field["name"]]
            if field["type"].endswith("_seq"):
                lists = [self._listed(values, field) for values in column]
                pairs = [value for own in lists for value in own]
                made[f"{name}.offsets"] = np.cumsum([0, *map(len, lists)]).astype(np.int64)
                made[f"{name}.weights"] = np.array([weight for _, weight in pairs], np.float32)
                name, column = f"{name}.values", [value for value, _ in pairs]
            if field["type"].startswith("token"):
                made[name] = np.array([self._id(value, field) for value in column], np.int64)
            else:
                made[name] = np.array([np.nan if v is None else v for v in column], np.float64)
        return {own["name"]: made[own["name"]] for own in self.manifest["inputs"]}

    def _id(self, value: Any, field: Any) -> int:
        if _is_none(value):
            return 0
        text = str(int(value)) if isinstance(value, float | np.floating) else str(value)
        text = text.lower() if isinstance(value, bool | np.bool_) else text
        unknown: int = self.manifest["unknown_id"]
        return self.ids[field["vocabulary"]].get(text, unknown)

    def _listed(self, values: Any, field: Any) -> list[tuple[Any, float]]:
        if isinstance(values, str):
            values = [value for value in values.split(field["separator"]) if value]
        values = [] if _is_none(values) else values
        pairs: list[Any] = [v if isinstance(v, tuple | list) else (v, None) for v in values]
        pairs = [(v, 1.0 if _is_none(w) else w) for v, w in pairs[: field["longest"]]]
        return [p for p in pairs if field["type"] == "float_seq" or not _is_none(p[0])]


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
