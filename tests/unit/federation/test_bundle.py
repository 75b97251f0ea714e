"""What Flower packs and ships to every site: code, never data."""

import zipfile
from io import BytesIO
from pathlib import Path

from flwr.cli.build import build_fab_from_files

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_bundle_holds_code_alone_whatever_lies_in_the_folder() -> None:
    code = [*REPOSITORY.glob("client/*.py"), *REPOSITORY.glob("server/*.py"), *REPOSITORY.glob("cmrfed/**/*.py")]
    names = {str(path.relative_to(REPOSITORY)) for path in code}
    files: dict[str, bytes | Path] = {name: REPOSITORY / name for name in [*names, "pyproject.toml", "LICENSE"]}
    data = ["hospital/cohort.json", "runs/a/sites/00/site.json", "cohorts/acdc/patients.jsonl", "notes.md"]
    files |= dict.fromkeys([*data, "cmrfed/data/patients.json"], b"{}")
    bundle, _ = build_fab_from_files(files)
    packed = set(zipfile.ZipFile(BytesIO(bundle)).namelist())
    assert packed == names | {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert len(bundle) < 2_000_000
