"""The wheel in a virtual environment of its own: a recipe by its name, in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import ROOT

SMALL = {
    "data.phantom.patients": 9,
    "data.size_px": 32,
    "mask.training.rounds": 1,
    "mask.training.local_steps": 2,
    "image.training.rounds": 1,
    "image.training.local_steps": 2,
    "synthesis.patients": 2,
    "evaluation.utility": "false",
    "evaluation.fidelity.frd_slices": 0,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The command of an environment that has the wheel, and what it depends on from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("cmrfed", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    subprocess.run(
        [*pip, "--python", venv / "bin" / "python", "install", *options, next(folder.glob("*.whl"))], check=True
    )
    return venv / "bin" / "cmrfed"


def call(command: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, (command, *words))), cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_a_recipe_runs_by_its_name_in_an_empty_folder(installed, tmp_path):
    code = "import cmrfed; print(cmrfed.__file__)"
    python = installed.with_name("python")
    assert str(installed.parents[1]) in call(python, tmp_path, "-c", code).stdout, "the wheel's, not the source tree's"
    assert "demo" in call(installed, tmp_path, "recipes").stdout
    assert list(tmp_path.iterdir()) == []
    changed = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    done = call(installed, tmp_path, "run", "demo", "--run-dir", "x", *changed)
    assert Path(done.stdout.strip()) == tmp_path / "x" / "report.html"
    assert (tmp_path / "x" / "report.html").stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
