"""Make the repository importable from anywhere, ``tests.…`` included; no test fails for being slow."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.tiers import ENTRIES, LONGEST_S, MARKERS, cost_of, entry_of

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_AUDITS: dict[str, Any] = {}
COLLECTED = pytest.StashKey[list[str]]()
MARKED = pytest.StashKey[list[str]]()
"""Tests that carry a marker of a tier themselves."""
BEGAN = pytest.StashKey[float]()


def pytest_configure() -> None:
    """Collect no garbage while modules are loaded: what they hold stays."""
    gc.disable()


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def pytest_set_tiers(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what `tests.tiers` lists, before anything is left out, and remember what was collected."""
    config.stash[COLLECTED] = [item.nodeid for item in items]
    config.stash[MARKED] = [item.nodeid for item in items if any(map(item.get_closest_marker, ("slow", "nightly")))]
    for item in items:
        listed = entry_of(item.nodeid)
        for name in MARKERS[ENTRIES[listed].tier] if listed else ():
            item.add_marker(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every worker begin with its share of the slow tests, the longest first: none is then left to the end.

    pytest-xdist cuts the list into as many runs as there are workers; who is done takes from the end of another's.
    Tests of one module stay together, since they may share what is made once.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    costs = {module: cost_of(item.nodeid for item in group) for module, group in modules.items()}
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for module in sorted(modules, key=costs.__getitem__, reverse=True):
        least = loads.index(min(loads))
        shares[least] += modules[module]
        loads[least] += costs[module]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    ordered: list[pytest.Item] = []
    for worker, share in enumerate(shares):
        room = max((len(items) - len(ordered)) // (workers - worker) - len(share), 0)
        ordered += share + fast[:room]
        del fast[:room]
    items[:] = ordered + fast


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave out of every later collection of garbage what modules and tests hold for good; it is much."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note the CPU seconds of each test; one that is not listed and takes far too many fails as it ends."""
    item.stash[BEGAN] = sum(os.times()[:4])
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    seconds = sum(os.times()[:4]) - item.stash[BEGAN]
    item.user_properties.append(("cpu_s", f"{seconds:.2f}"))
    if seconds > LONGEST_S and not item.get_closest_marker("slow"):
        pytest.fail(f"a fast test took {seconds:.0f} CPU seconds: make it cheaper, or list it in tests/tiers.py")


@pytest.fixture(autouse=True)
def _no_plugin_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test loaded of other distributions is not in the records of this one's runs."""
    from cmrfed.core.settings import registry

    monkeypatch.setattr(registry, "_loaded", {})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where the machine lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # the caught error may hold a file open


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: exit status, standard output, standard error."""

    from cmrfed.cli.main import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cmrfed", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def kept_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one real audit of each stage serve all sites and settings: for tests of what comes after the audit.

    Not for tests that plant a fault or look at what is audited.
    """
    from cmrfed.training.audit import audit_training

    def kept(stage: str, *settings: Any) -> Any:
        if stage not in _AUDITS:
            _AUDITS[stage] = audit_training(stage, *settings)
        return _AUDITS[stage]

    monkeypatch.setattr("cmrfed.federation.site.audit.audit_training", kept)


@pytest.fixture
def fake_device() -> Iterator[Any]:
    """An accelerator that needs no hardware; see `tests.fake_device`."""
    from tests.fake_device import lend

    with lend() as device:
        yield device
