"""What hosted continuous integration and the pages for contributors call is there."""

import os
import re

import pytest
import yaml

from tests.support import ROOT

WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
PAGES = ("CONTRIBUTING.md", "README.md", ".github/pull_request_template.md", ".ci/run")


def called(script: str) -> tuple[set[str], set[str]]:
    """The make targets and the scripts of this repository that a script calls."""
    targets = re.findall(r"(?:^|[;&|`]\s*|\s)make ([a-z][a-z-]*)", script)
    scripts = re.findall(r"\bbash ([\w./-]+)", script)
    return set(targets), set(scripts)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_runs_is_there(name):
    jobs = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))["jobs"]
    for title, job in jobs.items():
        script = "\n".join(step["run"] for step in job["steps"] if "run" in step)
        targets, scripts = called(script)
        assert targets or scripts, f"{title} checks nothing"
        assert targets <= TARGETS
        for script in scripts:
            assert os.access(ROOT / script, os.X_OK), script


def test_every_tier_runs_on_a_host():
    scripts = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS.values())
    scripts += (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert called(scripts)[0] >= {"test-fast", "test", "test-all"}


def test_every_make_target_that_is_named_is_there():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        targets = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE))
        assert targets <= TARGETS, page
        assert targets or page == "README.md"


def test_what_is_called_is_found():
    assert called("set -e; make test-fast && bash .ci/run\nmake docs") == ({"test-fast", "docs"}, {".ci/run"})
    assert called("apt-get install -y make") == (set(), set())
