"""What answers at once loads nothing that takes seconds to load."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchmetrics",
    "diffusers",
    "monai",
    "flwr",
    "opacus",
    "pandas",
    "matplotlib",
    "scipy",
    "skimage",
    "nibabel",
    "cryptography",
)
COMMANDS = """
import click, sys, typer
from cmrfed.cli.main import app, main

def run(*words):
    try:
        app([*words], standalone_mode=False)
    except click.exceptions.Exit:
        pass

def names(group, before=()):
    for name, command in group.commands.items():
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from names(command, (*before, name))

groups = typer.main.get_command(app)
"""
CASES = {
    "import cmrfed": "import cmrfed",
    "cmrfed --help": f"{COMMANDS}run('--help')",
    "cmrfed COMMAND --help": f"{COMMANDS}for words in names(groups): run(*words, '--help')",
    "cmrfed settings": f"{COMMANDS}run('settings'); run('settings', 'privacy')",
    "cmrfed recipes": f"{COMMANDS}run('recipes')",
    "a recipe is read": "from cmrfed.config.experiment import resolve; from cmrfed.config.recipes import find_recipe; "
    "resolve(find_recipe('acdc-private')).digest",
    "a policy is read": "from cmrfed.privacy.policy import SitePolicy; SitePolicy(epsilon_cap=8, delta=1e-3)",
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_heavy_libraries_are_not_loaded(code: str) -> None:
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", f"{code}\n{report}"], capture_output=True, encoding="utf-8", check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "cmrfed" in loaded
    assert not loaded & set(HEAVY)
