"""The site's Flower node, with the owner's allow-list and journal between it and the coordinator.

Flower has no hook for this, so the function that opens the node's connection is replaced by one that wraps it. Two
things make sure that the wrapper is in the path: a request is only let through with a bundle whose bytes were hashed
here and are on the list, and the node's store takes no other bundle, however it came.
"""

import hashlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Error, Message

from cmrfed.core.errors import FederationError
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.kit import read_site_kit
from cmrfed.federation.flower import Connect, ErrorCode, Fab, as_objects, guard_node, run_node
from cmrfed.privacy.ledger.journal import Journal

UNAPPROVED = "the site's owner has not approved this code"


class Guard:
    """What stands between node and coordinator.

    Args:
        folder: The site's folder, with its allow-list and its journal.
    """

    def __init__(self, folder: Path) -> None:
        self.approvals, self.journal = Approvals(folder), Journal(folder)
        self.checked: set[str] = set()
        """Digests of bundles whose bytes were hashed here and found on the list."""

    def install(self) -> None:
        """Put the guard into Flower's path.

        Raises:
            FederationError: This version of Flower has another path.
        """
        guard_node(self._around, self.demand)

    def demand(self, bundle: bytes) -> None:
        """Let a bundle pass that was checked.

        Raises:
            FederationError: It was not: the guard is not in the path.
        """
        digest = hashlib.sha256(bundle).hexdigest()
        if digest not in self.checked:
            self.journal.write("refused", bundle=digest, why="it reached the node past the allow-list")
            raise FederationError("a bundle reached the node past the owner's allow-list", got=digest)

    def allows(self, bundle: bytes) -> bool:
        """Whether a bundle is on the list; remembers the answer, or that it was asked for."""
        digest = hashlib.sha256(bundle).hexdigest()
        if digest in self.approvals.digests():
            self.checked.add(digest)
            return True
        self.checked.discard(digest)
        self.approvals.note(digest)
        return False

    def _around(self, connect: Connect) -> Connect:
        @contextmanager
        def guarded(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with connect(*args, **kwargs) as callbacks:
                self.journal.write("connected", node=str(callbacks[0]))
                yield GuardedConnection(self, callbacks).callbacks()
            self.journal.write("disconnected")

        return guarded


class GuardedConnection:
    """The callbacks of one connection (node id, receive, send, get_run, get_fab, pull, push, confirm), guarded."""

    def __init__(self, guard: Guard, callbacks: tuple[Any, ...]) -> None:
        self.guard, self.journal = guard, guard.journal
        (
            self.node, self._receive, self._send, self._get_run, self._get_fab, self._pull, self._push, self._confirm
        ) = callbacks  # fmt: skip
        self._bundles: dict[str, Fab] = {}
        self._left: dict[int, int] = {}
        """Bytes pushed, by run."""

    def callbacks(self) -> tuple[Any, ...]:
        """The same callbacks, guarded."""
        return (
            self.node, self.receive, self.send, self._get_run, self.get_fab, self._pull, self.push, self._confirm
        )  # fmt: skip

    def receive(self) -> Any:
        """The next request whose code is approved; others are answered here, and the node never learns of them."""
        pulled = self._receive()
        if pulled is None:
            return None
        about = pulled[0].metadata
        run = self._get_run(about.run_id)
        known = {
            "run": str(about.run_id),
            "request": about.message_id,
            "kind": about.message_type,
            "bundle": run.fab_hash,
        }
        if self.guard.allows(self._bundle(run.fab_hash, about.run_id).content):
            self.journal.write("asked", **known)
            return pulled
        self.journal.write("refused", **known, why="not approved")
        print(f"[code: unapproved] bundle {run.fab_hash} is not approved", flush=True)
        self._refuse(pulled[0], run.fab_hash)
        return None

    def get_fab(self, fab_hash: str, run_id: int) -> Fab:
        """A bundle that was checked.

        Raises:
            FederationError: It was not.
        """
        bundle = self._bundle(fab_hash, run_id)
        self.guard.demand(bundle.content)
        return bundle

    def send(self, message: Message, tree: Any, seconds: float) -> Any:
        """Send a reply, and note it; how long it took stays here, since that depends on the patients in the steps."""
        about, failed = message.metadata, message.has_error()
        self.journal.write("replied", run=str(about.run_id), request=about.reply_to_message_id, failed=failed)
        return self._send(message, tree, 0.0)

    def push(self, run_id: int, session: str, name: str, content: bytes) -> None:
        """Send a part of a reply, and note how many bytes left."""
        self._push(run_id, session, name, content)
        self._left[run_id] = self._left.get(run_id, 0) + len(content)
        self.journal.write("left", run=str(run_id), bytes=len(content), total=self._left[run_id])

    def _bundle(self, fab_hash: str, run_id: int) -> Fab:
        if fab_hash not in self._bundles:
            fab = self._get_fab(fab_hash, run_id)
            if hashlib.sha256(fab.content).hexdigest() != fab_hash:
                raise FederationError("the coordinator sent another bundle than it named", expected=fab_hash)
            self._bundles = {fab_hash: fab}
        return self._bundles[fab_hash]

    def _refuse(self, message: Message, digest: str) -> None:
        """Answer in the node's place: an error that names the bundle and what its owner can do."""
        reason = f"{UNAPPROVED}: at the site, cmrfed site approve KIT {digest}"
        reply = Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)
        with as_objects(reply) as (tree, parts):
            wanted, session = self._send(reply, tree, 0.0)
            for name, part in parts.items():
                if name in wanted:
                    self._push(message.metadata.run_id, session, name, part)
        self._confirm(message.metadata.run_id, message.metadata.message_id)


def main(kit_folder: Path, gate: str) -> None:
    """Run the node of a kit in this process until it ends.

    Args:
        kit_folder: The site's kit.
        gate: ``host:port`` of the site's gate.
    """
    kit, site = read_site_kit(kit_folder), kit_folder.absolute() / "site"
    Journal(site).start()
    Guard(site).install()
    arguments = [
        "--superlink", gate,
        "--root-certificates", str(kit_folder / "state" / "inner" / "ca.crt"),
        "--auth-supernode-private-key", str(kit_folder / "node" / "node.key"),
        "--port", str(kit.node_port),
        "--health-server-address", f"127.0.0.1:{kit.health_port}",
        "--node-config", f"site-root={toml_text(str(site))}",
    ]  # fmt: skip
    os.environ.update(flower_environment(kit_folder))
    try:
        run_node(arguments)
    except Exception:
        traceback.print_exc()
    os._exit(1)  # Flower's threads would keep a node alive that no longer works


def toml_text(text: str) -> str:
    """Text as TOML has it, and as Flower's commands find its end: with no quotation mark inside."""
    kept = (sign if sign not in '"\\' and (sign.isprintable() or sign > "\x9f") else _escaped(sign) for sign in text)
    return f'"{"".join(kept)}"'


def _escaped(sign: str) -> str:
    return f"\\u{ord(sign):04x}"


def flower_environment(kit_folder: Path) -> dict[str, str]:
    """Environment of Flower's programs: they find each other, and all that they keep stays in the kit."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(kit_folder.absolute() / "state" / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
