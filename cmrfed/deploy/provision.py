"""Start-up kits: one folder for the coordinator and one for each site, and the authority that made their certificates.

Folder::

    authority/          ca.key, ca.crt, revoked.crl: belongs to whoever provisions, and to no machine of the federation
    coordinator/        kit.json README.md proxy.conf compose.yaml tls/ sites/NAME.pub SHA256SUMS
    NAME/               kit.json README.md gate.conf compose.yaml tls/ node/ peers/ SHA256SUMS site/site.json
                        site/policy.yaml

Doing it again adds what is missing (a new site) and leaves keys, policies and all that sites changed as they are.
"""

import hashlib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from cryptography.hazmat.primitives.asymmetric import ec

from cmrfed.core.artifacts import OWNER_ALONE, write_bytes, write_text
from cmrfed.core.errors import ConfigError
from cmrfed.deploy.certificates import (
    Authority,
    days_left,
    is_address,
    public_key,
    read_certificate,
    read_node_key,
    requested_key,
    write_key,
    write_request,
)
from cmrfed.deploy.kit import CoordinatorKit, Federation, SiteKit, SiteSettings, write_kit
from cmrfed.federation.site.folder import SiteRecord

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - inside a container, whose network is internal
NAME_OF_AN_ADDRESS = "coordinator"
"""What nginx compares with the certificate of a coordinator that has no name: it knows names alone."""
CHECKED = ("kit.json", "README.md", "*.conf", "compose.yaml", "tls/*.crt", "tls/*.crl", "sites/*.pub", "peers/*.pub")
"""What SHA256SUMS covers: what whoever provisions has written, but for keys and for what is the site's to change."""


@dataclass(frozen=True)
class Made:
    """A kit, for whoever provisions: the digest of its SHA256SUMS is to be compared by telephone."""

    folder: Path
    digest: str
    days: float
    """Until its certificate expires."""


def provision(federation: Federation, out: Path, *, renew: bool = False) -> list[Made]:
    """Write or complete the kits of a federation.

    Args:
        federation: Who takes part.
        out: Folder of the kits.
        renew: Make certificates anew, for the keys that the old ones were made for.

    Raises:
        ConfigError: A site's own keys cannot be read, or a kit was made for another kind of keys.
    """
    authority = Authority.open(out / "authority", federation.name)
    made = [_site(federation, site, number, out, authority, renew) for number, site in enumerate(federation.sites)]
    made = [_with_peers(one, federation, out) for one in made]
    return [_coordinator(federation, out, authority, renew), *made]


def revoke(out: Path, site: str) -> Path:
    """Take back the certificate of a site; returns the list that the coordinator's kit now holds."""
    certificate = out / site / "tls" / "client.crt"
    if not certificate.exists():
        raise ConfigError(f"{out} has no kit of {site}", got=f"no {certificate}", do="name a site that was provisioned")
    authority = Authority(out / "authority")
    authority.revoke(certificate)
    target = out / "coordinator" / "tls" / "revoked.crl"
    write_bytes(target, (authority.folder / "revoked.crl").read_bytes())
    _sums(out / "coordinator")
    return target


def make_own_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """At a site that keeps its own keys: make them, and what is to be sent: the request and the public node key."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", do="choose another folder: keys are never replaced")
    request = folder / f"{name}.csr"
    write_request(request, name, write_key(folder / "tls" / "client.key"))
    write_key(folder / "node" / "node.key", openssh=True)
    return request, folder / "node" / "node.pub"


# --- kits -------------------------------------------------------------------------------------------
def _coordinator(federation: Federation, out: Path, authority: Authority, renew: bool) -> Made:
    folder, settings = out / "coordinator", federation.coordinator
    folder.mkdir(parents=True, exist_ok=True)
    certificate = folder / "tls" / "server.crt"
    key = None if certificate.exists() else write_key(folder / "tls" / "server.key").public_key()
    if key or renew:
        owner = key or public_key(certificate)
        hosts = (settings.host, NAME_OF_AN_ADDRESS)
        issued = authority.issue(settings.host, owner, federation.validity_days, server_names=hosts)
        write_bytes(certificate, issued)
    for name in ("ca.crt", "revoked.crl"):
        write_bytes(folder / "tls" / name, (authority.folder / name).read_bytes())
    for site in federation.sites:
        write_bytes(folder / "sites" / f"{site.name}.pub", read_node_key(_node_key(out, site)))
    names = tuple(site.name for site in federation.sites)
    write_kit(folder, CoordinatorKit(federation=federation.name, coordinator=settings, sites=names))
    values = {"federation": federation.name, "expires": _expiry(certificate), **settings.model_dump()}
    _render(folder / "proxy.conf", "proxy.conf", values | {"upstream": f"{LOOPBACK}:{settings.inner_port}"})
    inside = {"upstream": f"superlink:{settings.inner_port}", "listen": EVERYWHERE}
    _render(folder / "proxy.compose.conf", "proxy.conf", values | inside)
    _render(folder / "compose.yaml", "compose-coordinator.yaml", values)
    _render(folder / "README.md", "README-coordinator.md", values)
    for empty in ("state", "runs"):
        (folder / empty).mkdir(exist_ok=True)
    return Made(folder, _sums(folder), days_left(certificate))


def _site(
    federation: Federation, site: SiteSettings, number: int, out: Path, authority: Authority, renew: bool
) -> Made:
    folder, certificate = out / site.name, out / site.name / "tls" / "client.crt"
    folder.mkdir(parents=True, exist_ok=True)
    key = None if certificate.exists() else _new_key(site, folder)
    if key or renew:
        issued = authority.issue(site.name, key or public_key(certificate), federation.validity_days)
        write_bytes(certificate, issued)
    write_bytes(folder / "tls" / "ca.crt", (authority.folder / "ca.crt").read_bytes())
    _site_folder(folder / "site", site, number)
    host, port = federation.coordinator.host, federation.coordinator.port
    kit = SiteKit(
        federation=federation.name, name=site.name, coordinator_host=host, coordinator_port=port,
        gate_port=site.gate_port, node_port=site.node_port, health_port=site.health_port,
    )  # fmt: skip
    write_kit(folder, kit)
    values = kit.model_dump() | {"port": site.gate_port, "tls_name": NAME_OF_AN_ADDRESS if is_address(host) else host}
    values |= {"expires": _expiry(certificate), "own_keys": bool(site.request)}
    _render(folder / "gate.conf", "gate.conf", values | {"listen": LOOPBACK})
    _render(folder / "gate.compose.conf", "gate.conf", values | {"listen": EVERYWHERE})
    _render(folder / "compose.yaml", "compose-site.yaml", values)
    _render(folder / "README.md", "README-site.md", values)
    (folder / "state").mkdir(exist_ok=True)
    return Made(folder, _sums(folder), days_left(certificate))


def _with_peers(made: Made, federation: Federation, out: Path) -> Made:
    """The kit of a site with the public node keys of all sites, by which it knows them in secure sums."""
    folder = made.folder / "peers"
    for gone in set(folder.glob("*.pub")) - {folder / f"{site.name}.pub" for site in federation.sites}:
        gone.unlink()
    for site in federation.sites:
        write_bytes(folder / f"{site.name}.pub", read_node_key(_node_key(out, site)))
    return replace(made, digest=_sums(made.folder))


def _new_key(site: SiteSettings, folder: Path) -> ec.EllipticCurvePublicKey:
    """The public key for a site's first certificate, and the key of its node."""
    if site.request:
        return requested_key(site.request)
    write_key(folder / "node" / "node.key", openssh=True)
    return write_key(folder / "tls" / "client.key").public_key()


def _node_key(out: Path, site: SiteSettings) -> Path:
    return site.node_key or out / site.name / "node" / "node.pub"


def _site_folder(folder: Path, site: SiteSettings, number: int) -> None:
    """What is the site's own to change; never written twice."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (folder / "site.json").exists():
        record: dict[str, Any] = {"name": site.name, "style": number, "cohort": "cohort", "device": site.device}
        SiteRecord(**record).save(folder)
    if not (folder / "policy.yaml").exists():
        write_text(folder / "policy.yaml", _template("policy.yaml"), OWNER_ALONE)


# --- files --------------------------------------------------------------------------------------------
def _template(name: str) -> str:
    return (resources.files("cmrfed.deploy") / "templates" / name).read_text(encoding="utf-8")


def _render(path: Path, template: str, values: dict[str, Any]) -> None:
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    write_text(path, engine.from_string(_template(template)).render(values))


def _expiry(certificate: Path) -> str:
    return f"{read_certificate(certificate).not_valid_after_utc:%Y-%m-%d}"


def _sums(folder: Path) -> str:
    """Write SHA256SUMS, and return the digest of that file."""
    files = sorted({path for pattern in CHECKED for path in folder.glob(pattern)})
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    write_text(folder / "SHA256SUMS", "".join(lines))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
