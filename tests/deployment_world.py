"""A deployed federation for tests: real kits, real processes, TLS on loopback, free ports, nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmrfed.core.artifacts import read_json
from cmrfed.core.processes import end_with_parent
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.bundle import installed_digest
from cmrfed.deploy.kit import CoordinatorSettings, Federation, SiteSettings
from cmrfed.deploy.provision import provision
from cmrfed.privacy.policy import SitePolicy
from tests.federation_world import OPEN, SIZE_PX, tiny_cohort, tiny_stage
from tests.flower_process import free_ports

SLACK = 3.0
"""How much longer things may take than on two idle cores; a wait ends as soon as it can."""
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
    reason="nginx is not installed: apt install nginx-light",
)


def make_federation(sites: int = 3, **site: Any) -> Federation:
    """A federation on loopback: site-0, site-1, ..."""
    ports = free_ports(3 + 3 * sites)
    coordinator = CoordinatorSettings(
        host="localhost", port=ports[0], listen="127.0.0.1", inner_port=ports[1], health_port=ports[2]
    )
    numbered = [
        SiteSettings(name=f"site-{i}", gate_port=a, node_port=b, health_port=c, **site)
        for i, (a, b, c) in enumerate(zip(ports[3::3], ports[4::3], ports[5::3], strict=True))
    ]
    return Federation(name="test", coordinator=coordinator, sites=tuple(numbered))


def write_recipe(path: Path, sites: int, rounds: int = 2, **federation: Any) -> Path:
    """A recipe of both stages with a tiny network."""
    stage = tiny_stage(rounds=rounds)
    plain = {
        "generator": {"backbone": stage.generator.backbone.model_dump(mode="json")},
        "training": stage.training.model_dump(mode="json", exclude={"augment"}),
    }
    data = {"size_px": SIZE_PX, "partition": {"sites": sites}}
    network = {"connect_timeout_s": 180, "round_timeout_s": 300, **federation}
    compute = {"threads": 1}
    recipe = {"name": "tiny", "data": data, "mask": plain, "image": plain, "federation": network, "compute": compute}
    path.write_text(yaml.safe_dump(recipe))
    return path


class Deployment:
    """Kits in a folder, and the processes that were started for them."""

    def __init__(self, folder: Path, sites: int = 3) -> None:
        self.folder, self.federation = folder, make_federation(sites)
        provision(self.federation, folder)
        self.coordinator = folder / "coordinator"
        self.sites = [folder / site.name for site in self.federation.sites]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for number, kit in enumerate(self.sites):
            self.give_data(kit, number)

    @staticmethod
    def give_data(kit: Path, number: int, policy: SitePolicy = OPEN) -> None:
        """A cohort of discs, of its own size at each site, and a policy."""
        tiny_cohort(kit / "site" / "cohort", 2 + number)
        policy.save(kit / "site" / "policy.yaml")

    def approve(self, digest: str | None = None) -> None:
        """At every site."""
        digest = digest or installed_digest()
        for kit in self.sites:
            Approvals(kit / "site").approve(digest)

    # --- processes ------------------------------------------------------------------------------
    def start(self, name: str) -> None:
        """Start the coordinator or a site, as its administrator would."""
        kind = "coordinator" if name == "coordinator" else "site"
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "cmrfed", kind, "start", str(self.folder / name)],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=end_with_parent,  # whatever ends the tests ends these too
            )

    def start_all(self) -> None:
        """The coordinator and every site."""
        for name in ("coordinator", *(kit.name for kit in self.sites)):
            self.start(name)

    def workers(self, name: str) -> list[int]:
        """Process numbers of all that runs for a kit, the supervisor last."""
        kit = str(self.folder / name)
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                home = f"FLWR_HOME={kit}/state/flwr".encode() in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if home or (kit in command and "start" in command):
                found.append(int(folder.name))
        own = self.processes[name].pid if name in self.processes else None
        return [pid for pid in found if pid != own] + ([own] if own in found else [])

    def kill(self, name: str) -> None:
        """kill -9 of everything that runs for a kit, the supervisor first: a power cut."""
        for pid in reversed(self.workers(name)):
            _signal(pid, signal.SIGKILL)
        self.processes.pop(name).wait()

    def worker(self, name: str, words: str) -> list[int]:
        """Process numbers of a kit whose command holds ``words``."""
        return [
            pid for pid in self.workers(name) if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        ]

    def end(self) -> None:
        """End everything."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in ("coordinator", *(kit.name for kit in self.sites)):
            for pid in self.workers(name):
                _signal(pid, signal.SIGKILL)

    # --- looking --------------------------------------------------------------------------------
    def said(self, name: str) -> str:
        """What the supervisor of a kit told its administrator."""
        path = self.folder / f"{name}.out"
        return path.read_text() if path.exists() else ""

    def rounds(self, stage: str, run: str = "tiny") -> int:
        """Finished rounds of a stage."""
        latest = self.coordinator / "runs" / run / stage / "LATEST"
        return int(read_json(latest)["round"]) if latest.exists() else 0

    def metrics(self, stage: str, number: int, run: str = "tiny") -> dict[str, Any]:
        """metrics.json of a round."""
        found: dict[str, Any] = read_json(
            self.coordinator / "runs" / run / stage / f"round-{number:04d}" / "metrics.json"
        )
        return found

    def record(self, run: str = "tiny") -> dict[str, Any]:
        """run.json of a run; empty before it began."""
        path = self.coordinator / "runs" / run / "run.json"
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        return found

    def finished(self, run: str = "tiny") -> bool:
        """Whether a run has finished."""
        return bool(self.record(run).get("finished"))

    def wait(self, until: Callable[[], bool], seconds: float = 240) -> None:
        """Wait for what takes at most so many seconds on two idle cores, or fail with all that was said."""
        deadline = time.monotonic() + SLACK * seconds
        while not until():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {SLACK * seconds:.0f} s for nothing\n{self.everything()}")
            time.sleep(0.3)

    def everything(self) -> str:
        """The end of every log."""
        logs = sorted([*self.folder.glob("*.out"), *self.folder.glob("*/state/*.log")])
        return "\n".join(
            f"== {path.relative_to(self.folder)}\n{path.read_text(errors='replace')[-1500:]}" for path in logs
        )

    def ready(self) -> None:
        """Wait until the coordinator takes runs."""
        self.wait(lambda: len(read_json_or(self.coordinator / "state" / "registered.json")) == len(self.sites), 120)


def read_json_or(path: Path) -> dict[str, Any]:
    """A JSON file, or an empty mapping."""
    return read_json(path) if path.exists() else {}


def _signal(pid: int, kind: int) -> None:
    try:
        os.kill(pid, kind)
    except ProcessLookupError:
        return


@contextmanager
def deployment(folder: Path, sites: int = 3) -> Iterator[Deployment]:
    """Kits in a folder; all processes are ended afterwards."""
    made = Deployment(folder, sites)
    try:
        yield made
    finally:
        made.end()
