"""Keys and certificates of a federation: one authority, TLS certificates in its name, keys of Flower's nodes.

All keys are elliptic curve keys on P-384, which TLS 1.3 and Flower's node authentication both take. A private key is
written with mode 600, once, into the one folder that it belongs to; certificates are made from public keys alone, so
they can be renewed without it.
"""

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cmrfed.core.artifacts import write_bytes
from cmrfed.core.errors import ConfigError

AUTHORITY_YEARS = 10
CLOCK_SLACK = timedelta(minutes=10)
"""Certificates begin this long before they are made: clocks of hospitals differ."""
_PEM, _OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


# --- keys -----------------------------------------------------------------------------------------
def write_key(path: Path, *, openssh: bool = False) -> ec.EllipticCurvePrivateKey:
    """Make a private key and write it with mode 600; a file that is there is never replaced.

    Args:
        path: Where to; the public key of an OpenSSH key goes beside it, as ``.pub``.
        openssh: In the format that Flower's nodes read, and not in that of TLS.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    style = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(handle, "wb") as file:
        file.write(key.private_bytes(_PEM, style, serialization.NoEncryption()))
        file.flush()
        os.fsync(file.fileno())
    if openssh:
        public = key.public_key().public_bytes(_OPENSSH, serialization.PublicFormat.OpenSSH)
        write_bytes(path.with_suffix(".pub"), public + b"\n")
    return key


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key in the format of TLS.

    Raises:
        ConfigError: It is missing or no such key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"the private key {path} cannot be read", got=error, do="restore it from a backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is another kind of key", got=type(key).__name__, expected="one on P-384")
    return key


def read_node_key(path: Path) -> bytes:
    """Read the public key of a Flower node, in OpenSSH's format.

    Raises:
        ConfigError: It is missing, or not on P-384.
    """
    try:
        data = path.read_bytes()
        key = serialization.load_ssh_public_key(data)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the node key {path} cannot be read", got=error, expected="an OpenSSH public key on P-384"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise ConfigError(f"{path} is another kind of key", expected="an OpenSSH public key on P-384")
    return data


# --- authority --------------------------------------------------------------------------------------
class Authority:
    """The federation's own certificate authority, in a folder: ca.key, ca.crt, revoked.crl, revoked.txt.

    Whoever has the folder can admit anyone: it belongs on a machine that is not the coordinator.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.certificate = read_key(folder / "ca.key"), read_certificate(folder / "ca.crt")

    @classmethod
    def open(cls, folder: Path, federation: str) -> "Authority":
        """Open it, or make it where there is none."""
        if not (folder / "ca.key").exists():
            key = write_key(folder / "ca.key")
            name = _name(f"{federation} authority")
            made = _builder(name, name, key.public_key(), 365 * AUTHORITY_YEARS)
            made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            made = made.add_extension(_usage(signs=True), critical=True)
            made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            write_bytes(folder / "ca.crt", made.sign(key, hashes.SHA384()).public_bytes(_PEM))
            authority = cls(folder)
            authority.write_revoked()
        return cls(folder)

    def issue(
        self, name: str, key: ec.EllipticCurvePublicKey, days: int, *, server_names: tuple[str, ...] = ()
    ) -> bytes:
        """Make a certificate, as PEM: of a server where there are names that it answers to, else of a client.

        Args:
            name: Common name; a site's certificate names the site.
            key: Public key of the owner.
            days: Validity.
            server_names: Host names and addresses.
        """
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server_names else ExtendedKeyUsageOID.CLIENT_AUTH
        made = _builder(_name(name), self.certificate.subject, key, days)
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(_usage(signs=False), critical=True)
        made = made.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key(self.folder / "ca.crt"))
        made = made.add_extension(issuer, critical=False)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        if server_names:
            names = x509.SubjectAlternativeName([_host(name) for name in server_names])
            made = made.add_extension(names, critical=False)
        return made.sign(self.key, hashes.SHA384()).public_bytes(_PEM)

    def revoke(self, certificate: Path) -> None:
        """Take a certificate back: the coordinator's proxy refuses it once it has the new ``revoked.crl``."""
        serial = str(read_certificate(certificate).serial_number)
        known = self._revoked()
        if serial not in known:
            write_bytes(self.folder / "revoked.txt", "".join(f"{one}\n" for one in [*known, serial]).encode())
        self.write_revoked()

    def write_revoked(self) -> None:
        """Write the list of revoked certificates, valid as long as the authority itself."""
        now, end = datetime.now(UTC), self.certificate.not_valid_after_utc
        made = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        made = made.last_update(now - CLOCK_SLACK).next_update(end)
        for serial in self._revoked():
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial)).revocation_date(now).build()
            made = made.add_revoked_certificate(entry)
        write_bytes(self.folder / "revoked.crl", made.sign(self.key, hashes.SHA384()).public_bytes(_PEM))

    def _revoked(self) -> list[str]:
        path = self.folder / "revoked.txt"
        return path.read_text(encoding="utf-8").split() if path.exists() else []


# --- certificates -----------------------------------------------------------------------------------
def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        ConfigError: It is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificate {path} cannot be read", got=error, do="copy it again from the kit that was provisioned"
        ) from None


def days_left(path: Path) -> float:
    """Days until a certificate expires; negative when it has."""
    return (read_certificate(path).not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def public_key(certificate: Path) -> ec.EllipticCurvePublicKey:
    """The public key in a certificate, to renew it without the private one."""
    key = read_certificate(certificate).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{certificate} holds another kind of key", got=type(key).__name__, expected="one on P-384")
    return key


def write_request(path: Path, name: str, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a request for a certificate (CSR), for a key that never leaves the site."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA384())
    write_bytes(path, made.public_bytes(_PEM))


def requested_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The public key in a request, after a check that its owner has the private one.

    Raises:
        ConfigError: The request cannot be read, or its signature or its kind of key is wrong.
    """
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
        key, sound = request.public_key(), request.is_signature_valid
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the request {path} cannot be read", got=error, expected="a PEM file of `cmrfed site keys`"
        ) from None
    if not sound or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"the request {path} is not sound", expected="a request signed with its own key on P-384")
    return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    made = made.serial_number(x509.random_serial_number())
    return made.not_valid_before(now - CLOCK_SLACK).not_valid_after(now + timedelta(days=days))


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def is_address(text: str) -> bool:
    """Whether a host is given by its IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host(text: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(text)) if is_address(text) else x509.DNSName(text)
