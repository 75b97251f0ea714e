"""Recipes by name, and what a wheel holds."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cmrfed.config.experiment import resolve
from cmrfed.config.recipes import configs_folder, find_recipe, find_shipped, find_sweep, shipped
from cmrfed.core.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_every_recipe_of_the_package_has_a_name_a_summary_and_can_be_used():
    found = list(shipped())
    assert {"demo", "acdc", "acdc-private", "acdc-families/ldm"} <= {each.name for each in found}
    for each in found:
        assert 10 < len(each.summary) < 130
        assert find_recipe(each.name) == each.path
        resolve(each.path)
    assert find_sweep("quick").is_file()


def test_a_file_of_ones_own_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == configs_folder() / "recipes" / "demo.yaml"
    Path("demo").write_text("name: mine")
    assert find_recipe("demo") == Path("demo")
    assert find_recipe("absent.yaml") == Path("absent.yaml"), "its absence is told by who reads it"


def test_what_is_neither_a_file_nor_a_name_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no file demoo.*did you mean demo\?"):
        find_recipe("demoo")
    with pytest.raises(ConfigError, match=r"one of .*quick.*cmrfed recipes"):
        find_sweep("zzz")


def test_the_command_lists_and_copies(call, tmp_path, monkeypatch):
    status, out, _ = call("recipes")
    assert status == 0
    assert "demo " in out
    assert "study " in out
    monkeypatch.chdir(tmp_path)
    assert call("recipes", "acdc-families/fm")[0] == 0
    assert Path("fm.yaml").read_bytes() == find_shipped("acdc-families/fm").read_bytes()
    status, _, err = call("recipes", "acdc-families/fm")
    assert status
    assert "fm.yaml exists" in err


def test_a_wheel_holds_one_package_with_recipes_and_templates(tmp_path):
    source = tmp_path / "source"
    for name in ("cmrfed", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cmrfed"}
    assert {"cmrfed/configs/recipes/demo.yaml", "cmrfed/configs/sites/policy.yaml", "cmrfed/report/report.html"} <= {
        *names
    }
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "cmrfed").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
