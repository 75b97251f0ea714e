"""The example package, installed as a user would install it: one part of each kind, each at work.

The table "to add" of docs/architecture.md has a line for each; a line stands there only if its part works here.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cmrfed import PhantomConfig, write_phantom
from tests.federation_world import SIZE_PX, tiny_cohort
from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "cmrfed-example"
GROUPS = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
RECIPE = f"""
name: tiny
data: {{size_px: {SIZE_PX}, partition: {{sites: 3}}}}
mask:
  generator:
    process: {{kind: ddpm, prediction: sample}}
    backbone: {{channels: [8, 16], patch_px: 2, norm_groups: 4}}
    sampler: {{name: dpm++, steps: 2}}
  training: {{rounds: 1, local_steps: 2, batch_size: 4}}
image:
  generator:
    process: {{kind: cosmap}}
    backbone: {{kind: plain, width: 8}}
    sampler: {{name: quadratic, steps: 3}}
  training: {{rounds: 1, local_steps: 2, batch_size: 4}}
federation: {{strategy: {{name: median}}}}
synthesis: {{patients: 4, slices: [3, 4]}}
evaluation:
  utility: false
  fidelity: {{frd_slices: 0}}
  installed_metrics: [sharpness]
  attacks: {{installed: [centroid]}}
compute: {{threads: 1}}
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A folder into which the package was installed, without network."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    words = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(folder / "target")]
    command = [sys.executable, "-m", "pip", "install", *words, str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "target"


def cmrfed(target: Path, *words: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(target), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "cmrfed", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1100, env=os.environ | {"PYTHONPATH": path})


@pytest.fixture(scope="module")
def run(target, tmp_path_factory) -> Path:
    """The folder of a run that used all of them but the source."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    cohort = tiny_cohort(folder / "cohort", 36)
    words = ["--data", cohort.root, "--run-dir", folder / "run", "--tracker", f"csv={folder / 'numbers.csv'}"]
    done = cmrfed(target, "run", folder / "tiny.yaml", *words)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def found(run: Path, name: str) -> dict:
    metrics = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    return next(metric for metric in metrics if metric["id"] == name)


def a_source(run: Path, target: Path) -> None:
    scans, folder = run.parent / "scans", run.parent / "flat"
    write_phantom(scans, PhantomConfig(patients=2, sites=1, seed=0))
    folder.mkdir()
    for patient in sorted((scans / "site-0").glob("patient*")):
        frames = sorted(path for path in patient.glob("*_frame*.nii.gz") if "_gt" not in path.name)
        for phase, image in zip(("ED", "ES"), frames, strict=True):
            shutil.copy(image, folder / f"{patient.name}_{phase}.nii.gz")
            mask = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz"))
            shutil.copy(mask, folder / f"{patient.name}_{phase}_mask.nii.gz")
    done = cmrfed(target, "prepare", folder, run.parent / "prepared", "--source", "flat", "--size", 32)
    assert done.returncode == 0, done.stderr
    assert json.loads((run.parent / "prepared" / "cohort.json").read_text(encoding="utf-8"))["source"] == "flat"


def a_generator(run: Path, target: Path) -> None:
    saved = json.loads((run / "generators" / "image" / "generator.json").read_text(encoding="utf-8"))
    kinds = (saved["process"]["kind"], saved["backbone"], saved["sampler"]["name"])
    assert kinds == ("cosmap", {"kind": "plain", "width": 8}, "quadratic")
    assert (run / "synthetic" / "manifest.json").exists()


def a_metric(run: Path, target: Path) -> None:
    assert found(run, "fidelity.sharpness")["value"] > 0


def an_attack(run: Path, target: Path) -> None:
    control = found(run, "leakage.control.centroid.pixels")
    assert control["value"] is not None
    assert "leakage.auc.centroid.pixels" in (run / "evaluation" / "evaluation.json").read_text(encoding="utf-8")


def a_strategy(run: Path, target: Path) -> None:
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["experiment"]["federation"]["strategy"] == {
        "name": "median"
    }


def a_tracker(run: Path, target: Path) -> None:
    rows = list(csv.reader((run.parent / "numbers.csv").open(encoding="utf-8", newline="")))
    assert {row[1] for row in rows} >= {"mask/loss", "image/loss"}


PARTS = {
    "cmrfed.sources": a_source,
    "cmrfed.process_families": a_generator,
    "cmrfed.backbones": a_generator,
    "cmrfed.samplers": a_generator,
    "cmrfed.metrics": a_metric,
    "cmrfed.attacks": an_attack,
    "cmrfed.strategies": a_strategy,
    "cmrfed.trackers": a_tracker,
}


def test_the_example_has_one_part_of_each_kind_in_a_file_each():
    assert set(GROUPS) == set(PARTS)
    assert {len(parts) for parts in GROUPS.values()} == {1}
    files = [target.partition(":")[0].rpartition(".")[2] for parts in GROUPS.values() for target in parts.values()]
    for name in files:
        lines = (EXAMPLE / "cmrfed_example" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60, name
    assert len(set(files)) == len(PARTS)


def test_the_map_names_one_file_for_each_kind():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `(cmrfed\.\w+)` \|$", page, re.MULTILINE)
    assert {group for _, group in rows} == set(PARTS)
    for files, _ in rows:
        assert len(re.findall(r"`[^`]+\.py`", files)) == 1, files
        for file in re.findall(r"`([^`]+\.py)`", files):
            assert (EXAMPLE / "cmrfed_example" / file).exists(), file


@pytest.mark.parametrize("group", PARTS)
def test_the_part_works(group, run, target):
    PARTS[group](run, target)


def test_the_record_and_the_report_of_the_run_name_the_package_and_its_parts(run):
    parts = [f"{group}:{name}" for group, names in GROUPS.items() for name in names if group != "cmrfed.sources"]
    entry = {"name": "cmrfed-example", "version": "0.1.0", "parts": sorted(parts)}
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["plugins"] == [entry]
    assert "extended by plugins: cmrfed-example 0.1.0 (" in (run / "report.html").read_text(encoding="utf-8")


def test_all_its_parts_are_listed_and_can_be_used(target):
    done = cmrfed(target, "plugins", "--json")
    found = json.loads(done.stdout)
    assert {(part["group"], part["name"]) for part in found} == {(g, n) for g, names in GROUPS.items() for n in names}
    assert [part["problem"] for part in found] == [None] * len(found)


def test_without_the_package_its_names_are_unknown(tmp_path, call):
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    status, _, words = call("run", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "run", "--dry-run")
    assert status != 0
    for noun, name in (("process family", "cosmap"), ("backbone", "plain"), ("sampler", "quadratic")):
        assert f"there is no {noun} {name}" in words.replace("\n", " ")
