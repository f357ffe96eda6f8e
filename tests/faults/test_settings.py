"""Mistakes in settings: each is said in one line with file, line and key, and nothing is left."""

import re

import pytest
from common import refused, small


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, r"'learning_rat' \(did you mean learning_rate\?\)"),
        ({"epochs": "many"}, "epochs must be a whole number >= 1, got 'many'"),
    ],
)
def test_values_are_refused(settings, message, data_path, tmp_path):
    said = refused(tmp_path, *small(data_path, **settings), unchanged=[data_path])
    assert re.search(message, said)
