"""The guard between node and coordinator, with callbacks in Flower's place."""

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal

from cmrfed.core.errors import FederationError
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.node import Guard, GuardedConnection
from cmrfed.privacy.ledger.journal import Journal

BUNDLE = b"the code"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


@dataclass
class Coordinator:
    """What the guard sees of the other side."""

    named: str = DIGEST
    bundle: bytes = BUNDLE
    requests: list[Message] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    pushed: int = 0
    confirmed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ask(self) -> None:
        about = Metadata(
            run_id=3,
            message_id="m1",
            src_node_id=1,
            dst_node_id=7,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=100.0,
            message_type="train",
        )
        self.requests.append(make_message(about, content=RecordDict()))

    def callbacks(self) -> tuple[Any, ...]:
        def send(message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
            self.sent.append(message)
            self.seconds.append(seconds)
            return {tree.object_id}, "session"

        def push(run: int, session: str, name: str, content: bytes) -> None:
            self.pushed += len(content)

        return (
            7,
            lambda: (self.requests.pop(0), None) if self.requests else None,
            send,
            lambda run: SimpleNamespace(fab_hash=self.named),
            lambda fab_hash, run: Fab(self.named, self.bundle, {}),
            lambda run, name: b"",
            push,
            lambda run, message: self.confirmed.append(message),
        )


def connected(folder: Path, coordinator: Coordinator) -> tuple[Guard, GuardedConnection]:
    Journal(folder).start()
    guard = Guard(folder)
    return guard, GuardedConnection(guard, coordinator.callbacks())


def kinds(folder: Path) -> list[str]:
    return [entry.kind for entry in Journal(folder).read()]


def test_a_request_with_approved_code_passes_and_is_noted(tmp_path: Path) -> None:
    coordinator = Coordinator()
    _, line = connected(tmp_path, coordinator)
    Approvals(tmp_path).approve(DIGEST)
    coordinator.ask()
    assert line.receive()[0].metadata.message_id == "m1"
    assert line.get_fab(DIGEST, 3).content == BUNDLE
    line.send(
        SimpleNamespace(metadata=SimpleNamespace(run_id=3, reply_to_message_id="m1"), has_error=lambda: False),
        SimpleNamespace(object_id="o"),
        1.0,
    )
    line.push(3, "session", "o", b"12345")
    assert kinds(tmp_path) == ["approved", "asked", "replied", "left"]
    assert list(Journal(tmp_path).read())[-1].body["bytes"] == 5
    assert coordinator.seconds == [0.0]  # how long a site trained tells of its patients


def test_unapproved_code_never_reaches_the_node_and_the_coordinator_learns_why(tmp_path: Path) -> None:
    coordinator = Coordinator()
    _, line = connected(tmp_path, coordinator)
    coordinator.ask()
    assert line.receive() is None
    (reply,) = coordinator.sent
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert f"not approved this code: at the site, cmrfed site approve KIT {DIGEST}" in reply.error.reason
    assert coordinator.pushed > 0
    assert coordinator.confirmed == ["m1"]
    assert kinds(tmp_path) == ["refused"]
    assert list(Approvals(tmp_path).waiting()) == [DIGEST]
    with pytest.raises(FederationError, match="past the owner's allow-list"):
        line.get_fab(DIGEST, 3)


def test_what_is_withdrawn_is_refused_from_the_next_request_on(tmp_path: Path) -> None:
    coordinator = Coordinator()
    _, line = connected(tmp_path, coordinator)
    Approvals(tmp_path).approve(DIGEST)
    coordinator.ask()
    assert line.receive()
    Approvals(tmp_path).approve(DIGEST, withdraw=True)
    coordinator.ask()
    assert line.receive() is None
    with pytest.raises(FederationError, match="past the owner's allow-list"):
        line.get_fab(DIGEST, 3)


def test_other_bytes_than_the_named_digest_are_refused(tmp_path: Path) -> None:
    coordinator = Coordinator(bundle=b"other code")
    _, line = connected(tmp_path, coordinator)
    Approvals(tmp_path).approve(DIGEST)
    coordinator.ask()
    with pytest.raises(FederationError, match="another bundle than it named"):
        line.receive()


def test_the_guard_is_really_in_flowers_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own connection function goes through the guard, and its store refuses what the guard has not seen."""
    monkeypatch.setattr(start_client_internal, "http_request_response", start_client_internal.http_request_response)
    monkeypatch.setattr(InMemoryCoreState, "store_fab", InMemoryCoreState.store_fab)
    coordinator, used = Coordinator(), []

    class Connection:
        def __enter__(self) -> tuple[Any, ...]:
            used.append(True)
            return coordinator.callbacks()

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(start_client_internal, "http_request_response", lambda *a, **k: Connection())
    Journal(tmp_path).start()
    guard = Guard(tmp_path)
    guard.install()
    coordinator.ask()
    options = {"root_certificates": None, "authentication_keys": None, "max_retries": None, "max_wait_time": None}
    with start_client_internal._init_connection(server_address="localhost:1", insecure=True, **options) as callbacks:
        assert callbacks[1]() is None  # refused: nothing is approved
    assert used
    assert kinds(tmp_path) == ["connected", "refused", "disconnected"]
    with pytest.raises(FederationError, match="past the owner's allow-list"):
        InMemoryCoreState.store_fab(None, Fab(DIGEST, BUNDLE, {}))


def test_another_flower_is_refused_instead_of_left_unguarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_client_internal, "_init_connection", lambda: None)
    with pytest.raises(FederationError, match="does not fit this version of Flower"):
        Guard(tmp_path).install()
