"""Who a site is to the other sites: the key of its node, and the public keys of the others, as they were provisioned.

Folder: a kit, or ``identity/`` below the folder of a simulated site::

    node/node.key         private key on P-384, in OpenSSH's format; the one by which the node is known to Flower
    peers/NAME.pub        public key of each site of the federation, in OpenSSH's format

Whoever stands between the sites can pass on other keys than they sent, but cannot sign them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import SSHPrivateKeyTypes

from cmrfed.core.artifacts import OWNER_ALONE, read_json, write_bytes
from cmrfed.core.errors import SiteRefused
from cmrfed.federation.messages import SAFE_NAME

_HASH = ec.ECDSA(hashes.SHA384())
_PURPOSE = b"cmrfed secure sum keys 1|"
"""Before all that is signed here: a signature that the key gave for anything else is none for this."""
_OWN = "identity"


class Identity:
    """The keys of a site: its own, and those of the others.

    Args:
        folder: With node/ and peers/.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_site(cls, root: Path) -> "Identity":
        """That of a simulated site, which has it in its folder, or of the kit around a deployed one."""
        return cls(root / _OWN if (root / _OWN).is_dir() else root.parent)

    def sign(self, statement: bytes) -> str:
        """Signature in hex (ECDSA, SHA-384).

        Raises:
            SiteRefused: The site has no key to sign with.
        """
        try:
            key = serialization.load_ssh_private_key((self.folder / "node" / "node.key").read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SiteRefused(
                "the site has no key to sign its part of a secure sum with",
                expected="node/node.key in its kit, on P-384",
                do="take part with the kit that was provisioned, or put the key of the node there",
            )
        return key.sign(_PURPOSE + statement, _HASH).hex()

    def verify(self, site: str, statement: bytes, signature: str) -> None:
        """Check that a site has signed a statement.

        Raises:
            SiteRefused: It has not, or its public key is not known here.
        """
        try:
            known = re.fullmatch(SAFE_NAME, site)  # a name comes from the server, and must lead nowhere else
            key = (
                serialization.load_ssh_public_key((self.folder / "peers" / f"{site}.pub").read_bytes())
                if known
                else None
            )
        except (OSError, ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise SiteRefused(
                f"the site cannot check who {site} is, and takes part in no secure sum with it",
                got=f"no public key peers/{site}.pub",
                expected="that of every site of the federation, as the kit has it",
                do="provision again, and send each site the folder peers/ of its new kit",
            )
        try:
            key.verify(bytes.fromhex(signature), _PURPOSE + statement, _HASH)
        except (InvalidSignature, ValueError):
            raise SiteRefused(
                f"the keys that came as those of {site} for a secure sum were not signed by {site}",
                got="another signature" if signature else "no signature",
                do="look who stands between the sites, or, where the site has a new key, provision again and send each "
                "site the folder peers/ of its new kit",
            ) from None


def make_identities(roots: Sequence[Path]) -> None:
    """Give simulated sites keys of their own, and each the public keys of all; keys that are there and whole stay."""
    public: dict[str, bytes] = {}
    for root in roots:
        name = read_json(root / "site.json")["name"]
        key = _own_key(root / _OWN / "node" / "node.key").public_key()
        public[name] = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"
    for root in roots:
        for name, data in public.items():
            write_bytes(root / _OWN / "peers" / f"{name}.pub", data)


def _own_key(path: Path) -> SSHPrivateKeyTypes:
    """The key in a file, or a new one where there is none, or one that a killed process had only begun to write."""
    try:
        return serialization.load_ssh_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError):
        key = ec.generate_private_key(ec.SECP384R1())
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    write_bytes(path, key.private_bytes(*formats), mode=OWNER_ALONE)
    return key
