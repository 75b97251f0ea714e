"""The mathematics of a secure sum: fixed point, masks that cancel, shares that give all or nothing."""

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfed.federation.secagg import arithmetic as secure_sum
from cmrfed.federation.secagg.arithmetic import (
    LIMIT,
    MAX_TOTAL_WEIGHT,
    add_mask,
    agree,
    decode,
    derive,
    encode,
    join,
    new_secret,
    public_key,
    seal,
    sign_of,
    split,
    unseal,
)


# --- fixed point --------------------------------------------------------------------------------
@given(
    st.lists(st.lists(st.floats(-LIMIT, LIMIT, width=32), min_size=4, max_size=4), min_size=1, max_size=6),
    st.lists(st.integers(1, 1000), min_size=6, max_size=6),
)
@settings(deadline=None)
def test_a_sum_of_encoded_numbers_is_the_weighted_mean_to_a_33rd_binary_place(rows, weights) -> None:
    weights = weights[: len(rows)]
    total = np.zeros(4, np.uint64)
    for row, weight in zip(rows, weights, strict=True):
        total += encode(np.array(row, np.float32), weight)
    mean = np.average(np.array(rows, np.float64), axis=0, weights=weights)
    assert np.abs(decode(total, sum(weights)) - mean).max() <= 2.0**-33 + 1e-14 * LIMIT


def test_the_largest_sum_stays_in_range() -> None:
    for sign in (1, -1):
        assert decode(encode(np.array([sign * LIMIT]), MAX_TOTAL_WEIGHT), MAX_TOTAL_WEIGHT) == sign * LIMIT


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 16.001, -17.0])
def test_what_is_out_of_range_is_refused_and_never_clipped(bad: float) -> None:
    with pytest.raises(ValueError, match=r"a number is .*, and the range is ±16"):
        encode(np.array([0.0, bad], np.float32), 1)


def test_a_mask_that_is_left_in_the_sum_is_noticed() -> None:
    numbers = encode(np.zeros(64), 1)
    add_mask(numbers, new_secret(), 1)
    with pytest.raises(ValueError, match="not every mask was taken out"):
        decode(numbers, 1)


# --- masks --------------------------------------------------------------------------------------
def test_a_mask_is_the_key_stream_of_its_seed_however_long_and_is_taken_out_again(monkeypatch) -> None:
    monkeypatch.setattr(secure_sum, "_CHUNK", 7)
    seed, numbers = bytes(range(32)), np.arange(50, dtype=np.uint64)
    add_mask(numbers, seed, 1)
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(400))
    assert np.array_equal(numbers, np.arange(50, dtype=np.uint64) + np.frombuffer(stream, "<u8"))
    add_mask(numbers, seed, -1)
    assert np.array_equal(numbers, np.arange(50))


def test_masked_numbers_look_like_chance() -> None:
    numbers = encode(np.full(100_000, 0.25), 1)
    add_mask(numbers, new_secret(), 1)
    ones = np.unpackbits(numbers.view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / 100_000**0.5


def test_pairs_add_opposite_signs() -> None:
    assert sign_of("a", "b") == -sign_of("b", "a") == 1


# --- keys ---------------------------------------------------------------------------------------
def test_two_sites_agree_on_one_secret_for_each_purpose() -> None:
    one, two, three = new_secret(), new_secret(), new_secret()
    assert agree(one, public_key(two), b"x") == agree(two, public_key(one), b"x")
    assert agree(one, public_key(two), b"x") != agree(one, public_key(two), b"y")
    assert agree(one, public_key(two), b"x") != agree(one, public_key(three), b"x")
    assert derive(one, b"x") != derive(one, b"y")


def test_a_key_that_would_make_a_known_secret_is_refused() -> None:
    with pytest.raises(ValueError, match=r".+"):
        agree(new_secret(), bytes(32), b"x")


def test_only_the_same_key_and_words_open_what_was_sealed() -> None:
    key = new_secret()
    sealed = seal(key, b"share", b"a to b")
    assert unseal(key, sealed, b"a to b") == b"share"
    assert seal(key, b"share", b"a to b") != sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for attempt in ((new_secret(), sealed, b"a to b"), (key, sealed, b"b to a"), (key, changed, b"a to b")):
        with pytest.raises(ValueError, match="cannot be opened"):
            unseal(*attempt)


# --- shares -------------------------------------------------------------------------------------
@given(st.binary(min_size=32, max_size=32), st.integers(2, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, more: int) -> None:
    shares = dict(enumerate(split(secret, threshold, threshold + more), 1))
    for places in combinations(shares, threshold):
        assert join({place: shares[place] for place in places}) == secret


def test_one_share_less_fits_every_secret() -> None:
    """With two of three shares, each secret is as possible as any other: some third share leads to it."""
    prime, shares = 2**521 - 1, split(new_secret(), 3, 3)
    for guess in (bytes(32), new_secret(), b"\xff" * 32):
        points = {
            1: int.from_bytes(shares[0], "big"),
            2: int.from_bytes(shares[1], "big"),
            0: int.from_bytes(guess, "big"),
        }
        third = 0
        for place, value in points.items():
            over = under = 1
            for other in points:
                if other != place:
                    over, under = over * (3 - other) % prime, under * (place - other) % prime
            third = (third + value * over * pow(under, -1, prime)) % prime
        assert join({1: shares[0], 2: shares[1], 3: third.to_bytes(66, "big")}) == guess


def test_fewer_or_wrong_shares_do_not_give_the_secret() -> None:
    secret = new_secret()
    shares = dict(enumerate(split(secret, 3, 5), 1))
    with pytest.raises(ValueError, match="do not belong together"):
        join({place: shares[place] for place in (1, 2)})
    with pytest.raises(ValueError, match="do not belong together"):
        join({1: shares[1], 2: shares[2], 3: shares[4]})
