"""The OpenAPI description of a server, with the fields of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_escm2.serve.http.rows import LISTED, wanted
from recbole_escm2.serve.http.served import LEAST, Told
from recbole_escm2.serve.http.service import Limits

_PROBABILITIES = {
    "pctr": "P(click)",
    "pcvr": "P(conversion | click), of every row, clicked or not",
    "pctcvr": "P(click and conversion)",
}
_TOKEN: dict[str, Any] = {"type": ["string", "integer", "boolean", "null"]}
_NUMBER: dict[str, Any] = {"type": ["number", "string", "boolean", "null"]}
_PAIR = {
    "type": "array",
    "prefixItems": [_TOKEN, {"type": ["number", "null"]}],
    "minItems": 2,
    "maxItems": 2,
}


def predict_operation(limits: Limits) -> dict[str, Any]:
    """What is said of POST /predict, by the names of :func:`described`."""
    refusals = {
        "400": "The body is no JSON.",
        "408": f"The body hasn't come within {limits.timeout:g} s.",
        "413": f"More than {limits.max_body:,} bytes or {limits.max_rows:,} rows.",
        "415": "The body is compressed.",
        "422": f"Rows that can't be scored; up to {LISTED} faults are listed, none is scored.",
        "503": f"Too many requests at once ({limits.max_requests}), no answer in time, or the "
        "process that scored has ended.",
    }
    answers = {code: _json_of("Refusal", why) for code, why in refusals.items()}
    return {
        "requestBody": {"required": True, **_json_of("Request")},
        "responses": {
            "200": _json_of("Answer", "A row of scores for each row, in order"),
            **answers,
        },
    }


def _json_of(name: str, description: str | None = None) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    content: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
    return content if description is None else {"description": description, **content}


def described(whole: dict[str, Any], told: Told, limits: Limits) -> dict[str, Any]:
    """A description with the schemas of rows, scores and refusals.

    Args:
        whole: the description without them.
        told: of the model whose fields rows have.
        limits: of requests.
    """
    fields = {own.name: _of_field(own, told) for own in told.features}
    row = _object(fields, "Labels of the training may stand in it, and are ignored.")
    scores = {
        **{name: _number(_PROBABILITIES[name]) for name in told.predicts},
        "support": {
            "type": ["number", "null"],
            "description": "The share of train's clicks whose pCTR is at most the row's; null "
            "where the model has no pCTR.",
        },
        "valid": {
            "type": ["boolean", "null"],
            "description": f"Whether support is at least {LEAST / 100:g}: below, clicks were "
            "hardly seen, and pCVR is a guess.",
        },
        "unknown": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Fields with a token that training didn't know.",
        },
    }
    fault = {
        "row": {"type": "integer", "description": "counted from 1"},
        "field": {"type": "string"},
        "value": {},
        "problem": {"type": "string"},
        "expected": {"type": "string"},
    }
    refusal = _object({"error": {"type": "string"}, "faults": _list(_object(fault))})
    refusal["required"] = ["error"]
    rows = {**_list(row), "maxItems": limits.max_rows}
    model = {"type": "string", "description": "Digest of the model that answered."}
    whole.setdefault("components", {}).setdefault("schemas", {}).update(
        Request=_object({"rows": rows}),
        Answer=_object({"model": model, "rows": _list(_object(scores))}),
        Refusal=refusal,
    )
    return whole


def _of_field(own: Any, told: Told) -> dict[str, Any]:
    one = _TOKEN if own.kind.startswith("token") else _NUMBER
    if own.kind.endswith("_seq"):
        items = {"anyOf": [one, _PAIR]} if own.weighted else one
        one = {"type": ["array", "null"], "items": items}
    return {**one, "description": wanted(own, told.features)}


def _object(properties: Mapping[str, Any], description: str = "") -> dict[str, Any]:
    found = {"type": "object", "properties": dict(properties), "required": [*properties]}
    return {**found, "description": description} if description else found


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


def _number(description: str) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "maximum": 1, "description": description}
