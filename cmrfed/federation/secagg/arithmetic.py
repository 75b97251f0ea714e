"""The mathematics of a sum whose terms nobody sees (Bonawitz et al., CCS 2017, double masking): pure functions.

Each term is a vector of uint64, hidden by one mask of its site's own and one for each other site; the latter cancel in
the sum. Secrets from which masks are made are shared out (Shamir), so that the masks of sites that have left can be
taken out again by as many sites as the threshold says, and by no fewer.
"""

import secrets
from collections.abc import Mapping

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FRACTION_BITS = 32
"""Fixed point: a term is off by at most 2^-33."""
LIMIT = 16.0
"""Largest magnitude of a number that can be encoded."""
MAX_TOTAL_WEIGHT = 2**26
"""Largest sum of all terms: 2^26 × 16 × 2^32 = 2^62 stays within a signed 64-bit number."""
SECRET_BYTES = 32

_PRIME = 2**521 - 1
"""A Mersenne prime above every secret."""
_SHARE_BYTES = 66
_NONCE_BYTES = 12
_CHUNK = 1 << 18
"""Numbers of a mask that are made at once: 2 MiB."""


# --- fixed point --------------------------------------------------------------------------------
def encode(values: np.ndarray, weight: int) -> np.ndarray:
    """Fixed-point numbers, modulo 2^64, times a weight.

    Args:
        values: Floating point (n,), within ± `LIMIT`.
        weight: 1 or more.

    Raises:
        ValueError: A value is not finite, or beyond the limit: it is never clipped in silence.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= LIMIT:  # NaN too
        raise ValueError(f"a number is {largest}, and the range is ±{LIMIT}")
    fixed = np.rint(values.astype(np.float64) * 2.0**FRACTION_BITS).astype(np.int64)
    return (fixed * weight).view(np.uint64)


def decode(total: np.ndarray, weight: int) -> np.ndarray:
    """The weighted mean, float64, of what was encoded with weights that add up to ``weight``.

    Raises:
        ValueError: No sum of encoded numbers looks like this: a mask is left in it.
    """
    mean = total.view(np.int64).astype(np.float64) / (weight * 2.0**FRACTION_BITS)
    if mean.size and float(np.abs(mean).max()) > LIMIT:
        raise ValueError(f"the sum leaves the range of ±{LIMIT}: not every mask was taken out")
    return mean


# --- masks --------------------------------------------------------------------------------------
def add_mask(into: np.ndarray, seed: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (-1) the key stream of a seed, in place, modulo 2^64.

    Args:
        into: uint64 (n,).
        seed: 32 bytes that make no other stream.
        sign: 1 or -1.
    """
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    for start in range(0, len(into), _CHUNK):
        part = into[start : start + _CHUNK]
        numbers = np.frombuffer(stream.update(bytes(8 * len(part))), "<u8")
        (np.add if sign > 0 else np.subtract)(part, numbers, out=part)


def sign_of(site: str, other: str) -> int:
    """Sign with which ``site`` adds the mask that it shares with ``other``; the other's sign is the opposite."""
    return 1 if site < other else -1


# --- keys ---------------------------------------------------------------------------------------
def new_secret() -> bytes:
    """32 bytes from the operating system: a private key, or the seed of a mask."""
    return secrets.token_bytes(SECRET_BYTES)


def public_key(private: bytes) -> bytes:
    """What others need to agree on a secret with the holder of a private key (X25519)."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """The secret that two sites have in common, for one purpose: both get the same.

    Raises:
        ValueError: The public key is not one.
    """
    common = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return derive(common, purpose)


def derive(secret: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose (HKDF-SHA256)."""
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=b"cmrfed secure sum 1|" + purpose).derive(secret)


def seal(key: bytes, text: bytes, about: bytes) -> bytes:
    """Encrypt so that only a holder of the key can read it, and only with the same ``about``."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What was sealed.

    Raises:
        ValueError: It was sealed with another key, or about something else, or was changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
    except InvalidTag:
        raise ValueError("what was sealed cannot be opened") from None


# --- shares -------------------------------------------------------------------------------------
def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret (Shamir): any ``threshold`` of them give it back, and fewer say nothing of it.

    Returns:
        ``count`` shares of 66 bytes; the one at index i belongs to place i + 1.
    """
    line = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    shares = []
    for place in range(1, count + 1):
        value = 0
        for factor in reversed(line):
            value = (value * place + factor) % _PRIME
        shares.append(value.to_bytes(_SHARE_BYTES, "big"))
    return shares


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of shares by place, as many as the threshold.

    Raises:
        ValueError: They do not belong together.
    """
    secret = 0
    for place, share in shares.items():
        over, under = 1, 1
        for other in shares:
            if other != place:
                over, under = over * other % _PRIME, under * (other - place) % _PRIME
        secret = (secret + int.from_bytes(share, "big") * over * pow(under, -1, _PRIME)) % _PRIME
    if secret >= 1 << (8 * SECRET_BYTES):
        raise ValueError("shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")
