"""The announced Python API: what it names, what importing it loads, and that its documentation runs."""

import ast
import doctest
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import cmrfed
from tests.support import ROOT

PAGE = ROOT / "docs" / "api.md"


def test_every_name_is_there_and_documented():
    assert set(cmrfed.__all__) <= set(dir(cmrfed))
    for name in set(cmrfed.__all__) - {"__version__"}:
        assert getattr(cmrfed, name).__doc__, name
        assert getattr(cmrfed, name).__module__.startswith("cmrfed."), name


def test_the_page_names_all_of_it():
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in cmrfed.__all__ if name != "__version__" and f"`{name}`" not in page] == []


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse((ROOT / "cmrfed" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == cmrfed._PLACES
    assert {*seen, "__version__"} == set(cmrfed.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cmrfed' has no attribute 'Chort'"):
        _ = cmrfed.Chort


def test_importing_the_package_loads_none_of_it():
    loaded = "[m for m in sys.modules if m.startswith(('cmrfed.', 'torch', 'numpy'))]"
    code = f"import sys, cmrfed; dir(cmrfed); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_run(tmp_path, capsys):
    globs = {"folder": tmp_path}
    failed, run = doctest.testfile(str(PAGE), module_relative=False, globs=globs, encoding="utf-8")
    assert run > 20
    assert not failed, capsys.readouterr().out


def test_what_is_drawn_without_a_run_claims_no_privacy_and_keeps_its_post_processing(tmp_path):
    tiny = cmrfed.GeneratorSettings.model_validate({"backbone": {"channels": [8, 16]}, "sampler": {"steps": 1}})
    mask, image = (cmrfed.build_generator(stage, size_px=16, settings=tiny) for stage in ("mask", "image"))
    config = cmrfed.SynthesisConfig(slices=(2, 3), mask_post_processing="largest_component")
    manifest = cmrfed.draw_dataset(mask, image, tmp_path / "set", patients=1, synthesis=config).manifest
    assert not manifest.privacy.differentially_private
    assert manifest.privacy.epsilon is None
    assert manifest.post_processed.method == "largest_component"
    assert manifest.post_processed.slices > 0


def test_a_latent_generator_is_not_built_without_its_autoencoder():
    with pytest.raises(cmrfed.CmrfedError, match="train a latent generator with a recipe"):
        cmrfed.build_generator("image", size_px=32, settings=cmrfed.GeneratorSettings(autoencoder={}))


def test_the_version_is_the_same_everywhere() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert {package, citation, newest[1]} == {cmrfed.__version__}
