"""What answers at once loads nothing that takes seconds to load, and training nothing that only others need."""

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


HELLO = """
import pathlib, tempfile
from client.client_app import app
from cmrfed.federation.flower import begin_run, name_message
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.privacy.policy import SitePolicy
from flwr.app import Context, Message, RecordDict

with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    SiteRecord(name="a", cohort="cohort").save(root)
    SitePolicy(epsilon_cap=8, delta=1e-3).save(root / "policy.yaml")
    begin_run(1)
    asked = Message(RecordDict(), 2, "query")
    name_message(asked, "1")
    reply = app(asked, Context(1, 2, {"site-root": folder}, RecordDict(), {}))
    assert '"name":"a"' in reply.content.config_records["site"]["info"]
"""
NETWORK = {"flwr", "cryptography"}
TRAINING = {*NETWORK, "torch", "diffusers", "scipy", "nibabel"}
"""SciPy comes with diffusers' U-Net."""
LARGER_CASES = {
    "a site says who it is": (HELLO, NETWORK),
    "supervisors, nodes and coordinators": (
        "import cmrfed.deploy.coordinator, cmrfed.deploy.node, cmrfed.deploy.site_node",
        NETWORK,
    ),
    "the points of a sweep are started": ("import cmrfed.sweep.work", set[str]()),
    "a report is written": ("import cmrfed.report.html", {*NETWORK, "matplotlib"}),
    "a server and a site train without privacy": (
        "import server.server_app, cmrfed.federation.site.site",
        TRAINING,
    ),
}
"""Name → code, and which of the heavy libraries it may load."""


@pytest.mark.parametrize(
    ("code", "needed"),
    [*((code, set()) for code in CASES.values()), *LARGER_CASES.values()],
    ids=[*CASES, *LARGER_CASES],
)
def test_heavy_libraries_are_not_loaded(code: str, needed: set[str]) -> None:
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", f"{code}\n{report}"], capture_output=True, encoding="utf-8", check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "cmrfed" in loaded
    assert not loaded & set(HEAVY) - needed
