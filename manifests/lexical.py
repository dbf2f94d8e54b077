"""The lexical encoder: hashed word 1- and 2-grams, TF-IDF weights and a truncated SVD, text to unit vector.

It is the recipe of c-BTM (arXiv 2303.14177, section 2.1), made stateless: a hash instead of a vocabulary. It needs numpy and the
standard library alone, so an auditor can place a text again with the base install.

```
text ─cut─► lower case ─► words ─CRC-32─► + pairs of neighbours ─► buckets
     ─► (1 + ln count)·idf ─► · projection ─► unit length
```

`README.md` (The lexical encoder) specifies every step to the bit.

Each text is encoded by itself, in one fixed order of additions, so its vector does not depend on the batch.
This does *not* fit anything: `lmsplit.partition.lexical` does.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.placement import DISTANCE_TOLERANCE, Floats, normalised

LEXICAL: Final = "lexical"
_WORD = re.compile(rb"[0-9a-z_\x80-\xff]{2,}")
_VISIBLE = re.compile(rb"\S")
_PAIR: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4): spreads the first word's bits
_BATCH: Final = 256
_FIRST: Final = np.array([True])
_MIX: Final = np.uint64(0xD6E8FEB86659FD93)  # odd multiplier (assumption: any odd constant with mixed bits would do)


class LexicalFeatures:
    """The stateless half of the lexical encoder: text → counted buckets.

    Args:
        num_buckets: size B of the feature space; a power of two.
        max_characters: only the text's first so many characters are read.
    """

    def __init__(self, num_buckets: int, max_characters: int) -> None:
        self.num_buckets = num_buckets
        self.max_characters = max_characters

    def _hashes(self, text: str) -> list[int]:
        data = text[: self.max_characters].lower().encode()
        # A text without one word (only punctuation, or single letters) still has a place: its visible bytes.
        return list(map(zlib.crc32, _WORD.findall(data) or _VISIBLE.findall(data)))

    def count(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the buckets that a text has, ascending, and how often."""
        hashes = self._hashes(text)
        words = np.fromiter(hashes, np.uint64, len(hashes))
        pairs = ((words[:-1] * _PAIR) ^ words[1:]) * _MIX >> np.uint64(32)
        buckets = (np.concatenate([words, pairs]) % np.uint64(self.num_buckets)).astype(np.int64)
        buckets.sort()  # np.unique takes twice as long for a text, and a prompt waits for it
        starts = np.concatenate([_FIRST, buckets[1:] != buckets[:-1]])[: len(buckets)].nonzero()[0]
        return buckets[starts], np.concatenate([starts[1:], [len(buckets)]]) - starts


class LexicalEncoder:
    """The fitted lexical encoder.

    Args:
        features: how text becomes counted buckets.
        idf_B: weight of each bucket, float32; 0 for a bucket to ignore.
        projection_BD: float16; computed with in float32.
    """

    def __init__(self, features: LexicalFeatures, idf_B: Floats, projection_BD: npt.NDArray[np.float16]) -> None:
        self.features = features
        self.idf_B = idf_B
        # In C order: a fitted projection comes transposed, and einsum's order of additions is that of the memory.
        self.projection_BD = np.ascontiguousarray(projection_BD, dtype=np.float32)
        self.tolerance = DISTANCE_TOLERANCE

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return unit rows (N, D), float32; a row of zeros where no feature of the text is known."""
        vectors_ND = np.zeros((len(texts), self.projection_BD.shape[1]), np.float32)
        for start in range(0, len(texts), _BATCH):
            counted = [self.features.count(text) for text in texts[start : start + _BATCH]]  # words and projection share no cache
            for vector_D, (buckets, counts) in zip(vectors_ND[start:], counted, strict=False):
                # The logarithm of float32 differs between kinds of CPU; that of float64, rounded, does not.
                weights = (1.0 + np.log(counts)).astype(np.float32) * self.idf_B.take(buckets)
                # einsum without BLAS: one order of additions for ever; gemv's depends on length, threads and library.
                np.einsum("f,fd->d", weights, self.projection_BD.take(buckets, axis=0), out=vector_D)
        return normalised(vectors_ND)


def describe_lexical(features: LexicalFeatures, dimensions: int) -> dict[str, Any]:
    """Return what pins a lexical encoder besides its arrays."""
    return {
        "kind": LEXICAL,
        "version": 1,
        "num_buckets": features.num_buckets,
        "max_characters": features.max_characters,
        "dimensions": dimensions,
        "precision": "float32",
        "backend": "numpy",
    }


def build_lexical(description: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> LexicalEncoder:
    """Build a lexical encoder from its stored form.

    Args:
        description: what `describe_lexical` returned.
        arrays: `idf_B` and `projection_BD`.

    Raises:
        ManifestError: the version is unknown, or an array is missing or misshapen.
    """
    if description.get("version") != 1:
        version = description.get("version")
        raise ManifestError(f"this manifest was placed by encoder 'lexical' version {version}: it needs a later lmsplit")
    try:
        features = LexicalFeatures(description["num_buckets"], description["max_characters"])
        idf_B, projection_BD = arrays["idf_B"], arrays["projection_BD"]
    except KeyError as error:
        raise ManifestError(f"the placement rule lacks {error} of its lexical encoder") from error
    kinds = tuple(str(array.dtype) for array in (idf_B, projection_BD))
    if kinds != ("float32", "float16"):
        raise ManifestError(f"the lexical encoder's arrays have types {kinds}: expected float32, float16")
    if idf_B.shape != (features.num_buckets,) or projection_BD.shape != (features.num_buckets, description["dimensions"]):
        raise ManifestError(f"the lexical encoder's arrays have shapes {idf_B.shape} and {projection_BD.shape}")
    return LexicalEncoder(features, idf_B, projection_BD)
