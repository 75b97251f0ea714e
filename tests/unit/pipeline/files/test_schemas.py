from pathlib import Path

import pytest

from cmrfed.core.artifacts import read_json
from cmrfed.pipeline.files.schemas import SCHEMAS

DOCS = Path(__file__).parents[4] / "docs"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_documentation_has_the_schemas_that_the_code_has(name: str) -> None:
    assert read_json(DOCS / name) == SCHEMAS[name], "python -m cmrfed.pipeline.files.schemas docs"
    assert SCHEMAS[name]["properties"]["schema_version"]["const"] == 2
