"""What several tests share."""

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The folder of a real data set, or a skip that says where it was looked for."""
    root = Path(os.environ.get("CMRFED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"real data '{name}' not found in {root}; set CMRFED_DATA to its parent folder")
    return root / name
