"""Keyed hashes: which documents are sampled or held out, decided by each document alone.

`H(seed, purpose, key)` is BLAKE2b keyed with the seed and personalised with the purpose (RFC 7693), 64 bits. Whether a
document is chosen depends on nothing but its own key, so neither order nor workers matter, and two purposes choose
independently.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

RANGE = 2**64


def keyed_hashes(seed: int, purpose: str, keys: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return H(seed, purpose, key) of each key.

    Args:
        seed: 0 to 2^63 - 1.
        purpose: at most 16 ASCII characters.
        keys: texts.

    Returns:
        (N,) uint64, uniform over 0 to 2^64 - 1.
    """
    keyed = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "big"), person=purpose.encode())
    values = []
    for key in keys:
        state = keyed.copy()
        state.update(key.encode())
        values.append(int.from_bytes(state.digest(), "big"))
    return np.array(values, dtype=np.uint64)


def heldout_hashes(seed: int, documents: pa.RecordBatch | pa.Table) -> npt.NDArray[np.uint64]:
    """Return H(seed, "heldout", group) of each document; without a group, its text stands for it.

    The two kinds of key have different first letters, so that a group is never taken for a text.
    """
    pairs = zip(documents["group"].to_pylist(), documents["text"].to_pylist(), strict=True)
    return keyed_hashes(seed, "heldout", (f"t{text}" if group is None else f"g{group}" for group, text in pairs))


def id_hashes(ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of each id's SHA-256, big-endian: the order of the ids index."""
    return np.array([int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "big") for i in ids], dtype=np.uint64)


def chosen(hashes: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Return which hashes lie below `fraction` of the range; a larger fraction chooses a superset."""
    if fraction >= 1:
        return np.ones(len(hashes), dtype=bool)
    return hashes < np.uint64(int(fraction * RANGE))
