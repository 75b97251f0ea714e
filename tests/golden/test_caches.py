"""Caches are named by version numbers, so a number must rise when what is cached becomes another, and only then."""

import json

import numpy as np
import pytest

from tests.golden.caches import OUTPUTS, STORED, made, same


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_changes_with_its_version_alone(name, tmp_path):
    stored, (version, place, _) = json.loads(STORED.read_text(encoding="utf-8"))[name], OUTPUTS[name]
    again = "python -m tests.golden.caches"
    assert stored["version"] == version, f"{place} has risen: store its output with {again}"
    assert same(made(name, tmp_path), stored["output"]), f"the output is another: raise {place}, then {again}"


def test_a_small_change_is_seen_and_rounding_is_not():
    stored = json.loads(STORED.read_text(encoding="utf-8"))["public patients"]["output"]
    rounded = {key: (np.asarray(values) * (1 + 1e-6)).tolist() for key, values in stored.items()}
    assert same(rounded, stored)
    brighter = stored | {"means": [value + 0.01 for value in stored["means"]]}
    assert not same(brighter, stored)
    assert not same(stored | {"pixels": [value + 5 for value in stored["pixels"]]}, stored)
