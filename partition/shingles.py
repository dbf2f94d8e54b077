"""Turns texts into sets of hashed word 5-grams, and says how similar two sets are.

```
text ─► words ─64-bit hashes─► 5-grams, hashed ─► set of shingles        |A ∩ B| / |A ∪ B|
```

Similarity is that of Broder 1997, "On the resemblance and containment of documents". Unicode is not normalised (NFC and NFD
differ).
Cost: with the look-up 12 to 22 MB/s on one thread (benchmarks/results/near_duplicates.md). Memory: about 9 times the texts.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from lmsplit.partition.hashing import keyed_hashes

Hashes = npt.NDArray[np.uint64]

WORDS_PER_SHINGLE: Final = 5  # as C4, FineWeb and datatrove's MinhashConfig
_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD: Final = rf"[{_UNSPACED}]|[[\w\p{{N}}]--[{_UNSPACED}]]+"  # Rust's \w has combining marks (Python's not), but not ½ or ²
_SPACE: Final = re.compile(r"\s")
_CHARACTERS: Final = 1 << 22  # cut into words at a time: several MB, so that a word's hash is computed once for many uses
FOLD: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_MIX: Final = np.uint64(0xD6E8FEB86659FD93)  # odd multiplier (assumption: any odd constant with mixed bits would do)


class Shingles(NamedTuple):
    """The shingle sets of N documents, none of them empty.

    Attributes:
        offsets: (N + 1,) int64; document n has `hashes[offsets[n] : offsets[n + 1]]`.
        hashes: uint64, ascending and without repeats inside each document.
    """

    offsets: npt.NDArray[np.int64]
    hashes: Hashes

    def of(self, document: int) -> Hashes:
        """Return the set of one document."""
        return self.hashes[self.offsets[document] : self.offsets[document + 1]]


def shingle(texts: Sequence[str]) -> Shingles:
    """Return the sets of hashed word 5-grams of texts.

    Words are runs of letters, marks, numbers and `_` in lower case; in scripts written without spaces (and Hangul) every
    character is a word. So punctuation, case and white space do not count. A text of fewer than five words is one shingle of
    all of them, a text without one is one shingle of itself, stripped: two empty texts are equal.

    Example:
        >>> first, second = "The cat sat on the mat.", "the cat  sat on the mat today"
        >>> shingles = shingle([first, second])
        >>> shingles.offsets.tolist()
        [0, 2, 5]
        >>> round(jaccard(shingles.of(0), shingles.of(1)), 4)
        0.6667
    """
    words, num_words_N = _hash_words(texts)
    grams = words[: len(words) - WORDS_PER_SHINGLE + 1].copy()
    for position in range(1, WORDS_PER_SHINGLE):
        grams *= FOLD
        grams += words[position : position + len(grams)]
    grams ^= grams >> np.uint64(29)
    grams *= _MIX
    grams ^= grams >> np.uint64(32)
    within = np.ones(len(grams), dtype=bool)  # not across two documents
    ends_N = np.cumsum(num_words_N)
    within[(ends_N[:-1, None] - np.arange(1, WORDS_PER_SHINGLE)).ravel()] = False
    return _distinct(grams[within], num_words_N - (WORDS_PER_SHINGLE - 1))


def _distinct(grams: Hashes, num_grams_N: npt.NDArray[np.int64]) -> Shingles:
    offsets = np.concatenate([[0], np.cumsum(num_grams_N)])
    for begin, end in pairwise(offsets.tolist()):
        grams[begin:end].sort()
    first = np.ones(len(grams), dtype=bool)
    first[1:] = grams[1:] != grams[:-1]
    first[offsets[:-1]] = True
    before = np.concatenate([[0], np.cumsum(first)])
    return Shingles(before[offsets], grams[first])


def _hash_words(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Return the hash of every word in order, at least five a text, and how many each text has."""
    parts, num_words_N = [np.empty(0, np.uint64)], np.zeros(len(texts), np.int64)
    for documents, pieces in _groups(texts):
        words = pl.Series(pieces, dtype=pl.String).str.to_lowercase().str.extract_all(_WORD)
        np.add.at(num_words_N, documents, words.list.len().to_numpy())
        encoded = words.explode().drop_nulls().to_arrow().dictionary_encode()
        parts.append(keyed_hashes(0, "word", encoded.dictionary.to_pylist())[encoded.indices.to_numpy()])
    hashes, ends_N = np.concatenate(parts), np.cumsum(num_words_N)
    missing_N = np.maximum(WORDS_PER_SHINGLE - num_words_N, 0)
    padding = np.zeros(int(missing_N.sum()), np.uint64)
    wordless = np.flatnonzero(num_words_N == 0).tolist()
    padding[np.cumsum(missing_N)[wordless] - WORDS_PER_SHINGLE] = keyed_hashes(0, "word", [texts[n].strip() for n in wordless])
    return np.insert(hashes, np.repeat(ends_N, missing_N), padding), num_words_N + missing_N


def _groups(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Cut texts into groups of pieces of bounded size, long texts at a space."""
    documents, pieces, num_characters = list[int](), list[str](), 0
    for document, text in enumerate(texts):
        begin = 0
        while begin < len(text):
            space = _SPACE.search(text, begin + _CHARACTERS)
            end = space.start() if space else len(text)
            documents.append(document)
            pieces.append(text[begin:end])
            num_characters += end - begin
            begin = end
            if num_characters >= _CHARACTERS:
                yield documents, pieces
                documents, pieces, num_characters = [], [], 0
    if pieces:
        yield documents, pieces


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return |A ∩ B| / |A ∪ B| of two sets, each ascending without repeats and not empty."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
