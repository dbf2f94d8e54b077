"""Keyed hashes: against hashlib by hand, uniform, and independent between purposes."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.partition.hashing import chosen, id_hashes, keyed_hashes

KEYS = [f"key {number}" for number in range(20_000)]


@given(
    st.integers(0, 2**63 - 1),
    st.text("abc", min_size=1, max_size=16),
    st.lists(st.text(st.characters(codec="utf-8")), max_size=4),
)
def test_keyed_hashes_are_blake2b_keyed_with_the_seed(seed: int, purpose: str, keys: list[str]) -> None:
    options = {"digest_size": 8, "key": seed.to_bytes(8, "big"), "person": purpose.encode()}
    expected = [int.from_bytes(hashlib.blake2b(key.encode(), **options).digest(), "big") for key in keys]
    found = keyed_hashes(seed, purpose, keys)
    assert found.dtype == np.uint64
    assert found.tolist() == expected


def test_id_hashes_are_the_first_eight_bytes_of_sha256() -> None:
    # FIPS 180-4's own example: SHA-256("abc") = ba7816bf 8f01cfea …
    assert id_hashes(["abc", "é"]).tolist() == [
        0xBA7816BF8F01CFEA,
        int.from_bytes(hashlib.sha256(b"\xc3\xa9").digest()[:8], "big"),
    ]


def test_hashes_are_uniform() -> None:
    counts = np.bincount((keyed_hashes(0, "sample", KEYS) >> np.uint64(60)).astype(np.int64), minlength=16)
    expected = len(KEYS) / 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 37.7  # 15 degrees of freedom: exceeded once in a thousand


def test_purposes_and_seeds_choose_independently() -> None:
    first = chosen(keyed_hashes(0, "sample", KEYS), 0.3)
    for other in (chosen(keyed_hashes(0, "heldout", KEYS), 0.3), chosen(keyed_hashes(1, "sample", KEYS), 0.3)):
        assert abs(other.mean() - 0.3) < 0.015
        assert abs((first & other).mean() - 0.09) < 0.01


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_larger_fraction_chooses_a_superset(values: list[int], one: float, other: float) -> None:
    hashes = np.array(values, dtype=np.uint64)
    small, large = (chosen(hashes, fraction) for fraction in sorted((one, other)))
    assert not (small & ~large).any()


def test_fraction_bounds_choose_nothing_and_everything() -> None:
    hashes = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    assert chosen(hashes, 0).tolist() == [False, False, False]
    assert chosen(hashes, 0.5).tolist() == [True, False, False]
    assert chosen(hashes, 1).tolist() == [True, True, True]
