"""The bundle: the code that a run sends to every site, and the digest by which its owner approves it.

It is made from the installed package, so that the same version gives the same bytes everywhere (Flower writes it
without compression and with fixed dates): a site can compare the digest of what it is asked to run with that of what
it has installed and can read.
"""

import hashlib
import tempfile
from importlib import metadata, util
from pathlib import Path

from cmrfed.core.errors import ConfigError
from cmrfed.federation.flower import build_bundle

PACKAGE = "cmrfed"
_PROJECT = """\
[project]
name = "cmrfed"
version = "{version}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "cmrfed"
fab-include = ["/cmrfed/**/*.py"]

[tool.flwr.app.components]
serverapp = "cmrfed.pipeline.server_app:app"
clientapp = "cmrfed.federation.client_app:app"

[tool.flwr.app.config]
recipe = ""
set = ""
run-dir = ""
data-root = ""
sites = ""
"""


def write_app(folder: Path) -> Path:
    """Write the installed code as a Flower app.

    Raises:
        ConfigError: The package is not installed.
    """
    found = util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"package {PACKAGE} is not installed", do="pip install the whole project")
    root = Path(next(iter(found.submodule_search_locations)))
    for source in sorted(root.rglob("*.py")):
        target = folder / PACKAGE / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (folder / "pyproject.toml").write_text(_PROJECT.format(version=metadata.version("cmrfed")), encoding="utf-8")
    return folder


def digest_bundle(app: Path) -> str:
    """SHA-256 of the bundle of an app, as Flower names it."""
    return hashlib.sha256(build_bundle(app)).hexdigest()


def installed_digest() -> str:
    """Digest of the bundle of what is installed here."""
    with tempfile.TemporaryDirectory() as folder:
        return digest_bundle(write_app(Path(folder) / "cmrfed"))
