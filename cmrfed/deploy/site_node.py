"""A site's side: start, watch and report."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmrfed.core.errors import CmrfedError, ConfigError
from cmrfed.core.owner import owned
from cmrfed.core.progress import say
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.certificates import days_left
from cmrfed.deploy.checks import probe
from cmrfed.deploy.inner import make_inner, nginx_command
from cmrfed.deploy.kit import SiteKit, read_site_kit
from cmrfed.deploy.node import UNAPPROVED, flower_environment
from cmrfed.deploy.supervisor import Supervisor, Worker
from cmrfed.federation.site.folder import SiteFolder
from cmrfed.privacy.ledger.journal import Journal
from cmrfed.privacy.policy import SitePolicy

PROBE_EVERY_S = 30.0
SHOWN = 15
"""Lines of the journal that `cmrfed site status` shows."""


def start(kit_folder: Path) -> None:
    """Run gate and node of a kit until asked to end; both are started again when they end.

    Raises:
        ConfigError: nginx is missing, or the folder is not the kit of a site.
        PrivacyError: The site's policy or its ledger cannot be used.
        InUse: The site takes part already.
    """
    kit = read_site_kit(kit_folder)
    with owned(kit_folder / "state", "the site"):
        _start(kit_folder, kit)


def _start(kit_folder: Path, kit: SiteKit) -> None:
    join(kit_folder)
    make_inner(kit_folder)
    gate = Worker("gate", nginx_command(kit_folder, "gate.conf"), _explain_gate)
    command = [sys.executable, "-m", "cmrfed", "site", "node", str(kit_folder), "--gate", f"localhost:{kit.gate_port}"]
    node = Worker("node", command, lambda said: _explain_node(kit_folder, said))
    watch = Watch(kit_folder)
    say(f"Site {kit.name} of {kit.federation}: taking part; Ctrl-C ends it.")
    Supervisor([gate, node], kit_folder / "state", {**os.environ, **flower_environment(kit_folder)}, watch.tick).run()


def join(kit_folder: Path) -> SiteFolder:
    """Make the site's ledger and journal, once; the policy that is there stays.

    Raises:
        ConfigError: site.json says that the site is simulated.
        PrivacyError: The policy or the ledger cannot be used.
    """
    folder = kit_folder / "site"
    record = SiteFolder.open(folder).record
    if record.simulated:
        raise ConfigError(f"{folder}/site.json says that the site is simulated", do="set simulated to false")
    policy = SitePolicy.load(folder / "policy.yaml")
    Journal(folder).start()
    return SiteFolder.register(folder, record, policy)


class Watch:
    """Tells, once each, that the coordinator is lost and that it is back, and what waits for approval."""

    def __init__(self, kit_folder: Path) -> None:
        self.folder, self.kit = kit_folder, read_site_kit(kit_folder)
        self._next, self._problem, self._waiting = 0.0, "", set[str]()

    def tick(self) -> None:
        """Look, now and then."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROBE_EVERY_S
        try:
            probe(self.folder, self.kit)
            problem = ""
        except (CmrfedError, OSError) as error:
            problem = str(error)
        if problem != self._problem:
            say(problem or "The coordinator answers again.")
            self._problem = problem
        for digest in set(Approvals(self.folder / "site").waiting()) - self._waiting:
            self._waiting.add(digest)
            say(f"{UNAPPROVED}: {digest}; read it, then: cmrfed site approve {self.folder} {digest}")


def _explain_gate(said: str) -> str | None:
    if "Address already in use" in said:
        return "its port is taken; set gate_port in kit.json to a free one, and in gate.conf"
    if "host not found" in said:
        return "the coordinator's name cannot be found; see that this machine resolves it"
    if "SSL_CTX_use_PrivateKey" in said or "key values mismatch" in said:
        return "tls/client.key is not the key of tls/client.crt; see cmrfed site check"
    return None


def _explain_node(kit_folder: Path, said: str) -> str | None:
    """What is known of the end of a node, by what Flower printed."""
    try:
        probe(kit_folder, read_site_kit(kit_folder))
    except (CmrfedError, OSError) as error:
        return str(error)
    if "[code: 2004]" in said:
        return (
            "the coordinator does not activate this node. After a crash it counts the old one as present for a minute: "
            "that passes by itself. Otherwise it does not know node/node.pub: the operator provisions the site again"
        )
    if "401 Unauthorized" in said:
        return "the coordinator does not accept the node's signature: see keys and clock in cmrfed site check"
    errors = [line for line in said.splitlines() if line.startswith("error:") or ":ERROR:" in line]
    return errors[-1][:500] if errors else None


def status_lines(kit_folder: Path) -> Iterator[str]:
    """The status of a site: certificate, approvals, and the last lines of its journal."""
    kit, site = read_site_kit(kit_folder), kit_folder / "site"
    yield f"{kit.name} of {kit.federation}, coordinator {kit.coordinator_host}:{kit.coordinator_port}"
    yield f"certificate: {days_left(kit_folder / 'tls' / 'client.crt'):.0f} days left"
    try:
        yield f"coordinator: {probe(kit_folder, kit).text}"
    except (CmrfedError, OSError) as error:
        yield f"coordinator: {error}"
    approvals = Approvals(site)
    yield from (f"approved: {digest}" for digest in approvals.digests())
    yield from (f"WAITS for approval since {since}: {digest}" for digest, since in approvals.waiting().items())
    entries = list(Journal(site).read())
    yield f"journal: {len(entries)} lines" + ("" if all(e.sound for e in entries) else "; IT WAS DAMAGED OR EDITED")
    yield from (f"  {e.time}  {e.kind:<12} {_body_text(e.body)}" for e in entries[-SHOWN:])


def _body_text(body: dict[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:16]}" for key, value in body.items())
