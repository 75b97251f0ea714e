"""What a benchmark lacks is one paragraph, before it starts."""

import os
import sys

import pytest

import benchmarks
from benchmarks import run_benchmark
from cmrfed.core.errors import ConfigError
from tests.support import ROOT


@pytest.mark.parametrize("package", ["einops", "opacus"])
def test_a_missing_package_is_named_before_anything_runs(monkeypatch, package):
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(SystemExit, match=rf"{package} not installed.*pip install -e '\.\[dev\]'") as stop:
        run_benchmark(lambda: pytest.fail("it has started"), "einops", "opacus")
    assert len(str(stop.value).splitlines()) == 1


def test_packages_of_the_project_itself_are_asked_for_too():
    benchmarks.refuse(benchmarks.missing(benchmarks.RUN_TIME))
    with pytest.raises(SystemExit, match=r"no_such_package not installed.*pip install -e '\.'"):
        benchmarks.refuse(benchmarks.missing(("torch", "no_such_package")))


def test_an_error_of_the_project_is_one_paragraph(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark"])

    def main() -> None:
        raise ConfigError("runs/x is no run", do="give a run")

    with pytest.raises(SystemExit, match=r"^error: runs/x is no run\. Do: give a run\.$"):
        run_benchmark(main)
    with pytest.raises(SystemExit, match=r"a file is missing\. Got: /no/such/file"):
        run_benchmark(lambda: os.unlink("/no/such/file"))


def test_every_benchmark_starts_in_this_way():
    paths = [path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "__init__.py"]
    assert len(paths) >= 12
    assert not [path.name for path in paths if "    run_benchmark(main" not in path.read_text(encoding="utf-8")]
