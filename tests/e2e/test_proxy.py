"""The coordinator's proxy and the site's checks, against a real nginx with a stand-in for the SuperLink behind it."""

import http.client
import http.server
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cmrfed.core.errors import ConfigError, FederationError
from cmrfed.deploy.certificates import Authority, public_key, read_certificate, write_key
from cmrfed.deploy.checks import _clock, check_site, probe
from cmrfed.deploy.inner import make_inner, nginx_command
from cmrfed.deploy.kit import Federation, read_site_kit
from cmrfed.deploy.provision import provision, revoke
from tests.deployment_world import Deployment, make_federation, needs_nginx

pytestmark = needs_nginx


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers everything and remembers the paths."""

    seen: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None: ...


@contextmanager
def coordinator(kits: Path, federation: Federation) -> Iterator[list[str]]:
    """A running proxy; yields the paths that reached what is behind it."""
    kit = kits / "coordinator"
    inner = make_inner(kit)
    seen: list[str] = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", federation.coordinator.inner_port), type("Handler", (Recorder,), {"seen": seen})
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(inner / "server.crt", inner / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (kit / "nginx.out").open("wb") as log:
        process = subprocess.Popen(nginx_command(kit, "proxy.conf"), stdout=log, stderr=log)
    try:
        _wait_for_port(federation.coordinator.port)
        yield seen
    finally:
        process.terminate()
        process.wait(60)
        server.shutdown()
        server.server_close()


def _wait_for_port(port: int) -> None:
    import socket

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("nginx did not start")


def call(federation: Federation, kits: Path, path: str, tls: Path | None, *, authority: Path | None = None) -> int:
    """POST to the proxy and return the status; ``tls`` has the client's certificate and key, None: it has none."""
    context = ssl.create_default_context(cafile=str(authority or kits / "authority" / "ca.crt"))
    if tls:
        context.load_cert_chain(tls / "client.crt", tls / "client.key")
    line = http.client.HTTPSConnection("localhost", federation.coordinator.port, timeout=60, context=context)
    try:
        line.request("POST", path, body=b"x")
        return line.getresponse().status
    finally:
        line.close()


def test_sites_reach_the_fleet_path_and_nothing_else(tmp_path: Path) -> None:
    federation = make_federation(1)
    provision(federation, tmp_path)
    tls = tmp_path / "site-0" / "tls"
    with coordinator(tmp_path, federation) as seen:
        assert call(federation, tmp_path, "/v1/fleet/pull-messages", tls) == 200
        refused = ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/pull-messages", "/", "/docs"]
        refused += ["/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/../control/start-run"]
        refused += ["/v1/fleet/%2e%2e/control/start-run", "//v1/control/start-run", "/v1/control/start-run?/v1/fleet/"]
        for path in refused:
            assert call(federation, tmp_path, path, tls) == 403, path
        assert seen == ["/v1/fleet/pull-messages"]


def test_a_stranger_with_only_the_authoritys_certificate_can_do_nothing(tmp_path: Path) -> None:
    federation = make_federation(1)
    provision(federation, tmp_path)
    other = tmp_path / "stranger"
    key = write_key(other / "client.key").public_key()
    Authority.open(tmp_path / "other-authority", "other")
    (other / "client.crt").write_bytes(Authority(tmp_path / "other-authority").issue("site-0", key, 5))
    with coordinator(tmp_path, federation) as seen:
        for path in ("/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/control/register-node", "/health"):
            assert call(federation, tmp_path, path, None) == 400  # no certificate
            assert call(federation, tmp_path, path, other) == 400  # one of another authority
        assert seen == []


def test_the_coordinators_own_certificate_is_no_ticket_for_a_site(tmp_path: Path) -> None:
    federation = make_federation(1)
    provision(federation, tmp_path)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for kind in ("crt", "key"):
        (wrong / f"client.{kind}").write_bytes((tmp_path / "coordinator" / "tls" / f"server.{kind}").read_bytes())
    with coordinator(tmp_path, federation) as seen:
        assert call(federation, tmp_path, "/v1/fleet/pull-messages", wrong) == 400
        assert seen == []


def test_a_revoked_site_is_refused_and_told_so(tmp_path: Path) -> None:
    federation = make_federation(2)
    provision(federation, tmp_path)
    revoke(tmp_path, "site-0")
    with coordinator(tmp_path, federation):
        kit = tmp_path / "site-0"
        with pytest.raises(FederationError, match=r"does not accept this site's certificate.*ask whoever provisioned"):
            probe(kit, read_site_kit(kit))
        assert "answers and accepts" in probe(tmp_path / "site-1", read_site_kit(tmp_path / "site-1")).text


def _expire(kits: Path, certificate: Path) -> None:
    """Replace a certificate by one that has expired."""
    authority, old, now = Authority(kits / "authority"), read_certificate(certificate), datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).serial_number(7)
    made = made.public_key(public_key(certificate)).not_valid_before(now - timedelta(days=9))
    made = made.not_valid_after(now - timedelta(days=2))
    for extension in old.extensions:
        made = made.add_extension(extension.value, extension.critical)
    signed = made.sign(authority.key, hashes.SHA384())
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def test_an_expired_certificate_is_named_on_both_sides(tmp_path: Path) -> None:
    federation = make_federation(2)
    provision(federation, tmp_path)
    kit = tmp_path / "site-0"
    _expire(tmp_path, kit / "tls" / "client.crt")
    with coordinator(tmp_path, federation) as seen:
        assert call(federation, tmp_path, "/v1/fleet/pull-messages", kit / "tls") == 400
        assert seen == []
        lines = {line.what: line for line in check_site(kit)}
        assert not lines["certificate"].fine
        assert "expired. Got: 2 days ago" in lines["certificate"].text
        assert "cmrfed provision --renew" in lines["certificate"].text
        assert not lines["connection"].fine
    _expire(tmp_path, tmp_path / "coordinator" / "tls" / "server.crt")
    with (
        coordinator(tmp_path, federation),
        pytest.raises(FederationError, match=r"is not believed. Got: certificate has expired.*the operator renews it"),
    ):
        probe(tmp_path / "site-1", read_site_kit(tmp_path / "site-1"))


def test_a_coordinator_that_is_not_there_or_speaks_no_tls_is_named(tmp_path: Path) -> None:
    federation = make_federation(1)
    provision(federation, tmp_path)
    kit = tmp_path / "site-0"
    with pytest.raises(FederationError, match=r"cannot be reached.*refused.*firewall"):
        probe(kit, read_site_kit(kit))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", federation.coordinator.port), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(FederationError, match=r"TLS with .* failed.*speaks TLS"):
            probe(kit, read_site_kit(kit))
    finally:
        server.shutdown()
        server.server_close()
    about = json.loads((kit / "kit.json").read_text()) | {"coordinator_host": "nowhere.invalid"}
    (kit / "kit.json").write_text(json.dumps(about))
    with pytest.raises(FederationError, match="its name cannot be found"):
        probe(kit, read_site_kit(kit))


@pytest.mark.parametrize("ahead", [4.5, 3600.0, -301.0])
def test_a_clock_that_flower_would_refuse_is_named(ahead: float) -> None:
    with pytest.raises(ConfigError, match=r"clock is wrong.*Got: [+-]\d+ s.*NTP"):
        _clock(ahead)
    assert "from the coordinator's" in _clock(-200.0)


def test_the_clocks_difference_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(1)
    provision(federation, tmp_path)
    kit = tmp_path / "site-0"
    with coordinator(tmp_path, federation):
        assert abs(probe(kit, read_site_kit(kit)).ahead_s) < 3
        late = format_datetime(datetime.now(UTC) - timedelta(seconds=60))
        monkeypatch.setattr(http.client.HTTPResponse, "getheader", lambda self, name, default=None: late)
        assert 57 < probe(kit, read_site_kit(kit)).ahead_s < 63


def test_a_ready_site_passes_every_check_and_each_fault_has_its_line(tmp_path: Path) -> None:
    made = Deployment(tmp_path, sites=1)
    kit = made.sites[0]
    with coordinator(tmp_path, made.federation):
        assert [line for line in check_site(kit) if not line.fine] == []
        (kit / "tls" / "client.key").chmod(0o644)
        (kit / "site" / "policy.yaml").write_text("epsilon_cap: -1\n")
        (kit / "site" / "cohort" / "cohort.json").unlink()
        wrong = {line.what: line.text for line in check_site(kit) if not line.fine}
    assert "can be read by others. Got: 644. Do: chmod 600" in wrong["keys"]
    assert "policy.yaml cannot be followed" in wrong["policy"]
    assert "there is no cohort" in wrong["data"]
    assert "cmrfed prepare" in wrong["data"]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    made = Deployment(tmp_path, sites=1)
    (made.sites[0] / "node" / "node.key").unlink()
    lines = {line.what: line.text for line in check_site(made.sites[0]) if not line.fine}
    assert "node.key is missing" in lines["keys"]
