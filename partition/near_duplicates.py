"""Finds training documents that nearly repeat a held-out one: MinHash nominates, the exact Jaccard similarity decides.

Similarity is |A ∩ B| / |A ∪ B| of the documents' sets of word 5-grams (Broder 1997, "On the resemblance and containment of
documents"). A document is compared only with the held-out ones that it shares a band key with, and then by the whole sets
(Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.3 and 3.4).

```
text ─► words ─► 64-bit hashes of 5-grams = set of shingles ─MinHash─► band keys
held out:  sets ─► documents file;  keys, sorted ─► bands file
training:  keys ─searchsorted─► nominated held-out documents ─exact Jaccard─► the most similar one, or none
```

A pair at the threshold is missed with a probability of at most 1 in 2,000, a more similar one more rarely; one below it is
never returned, but for a collision of 64-bit hashes. This does *not* find a held-out passage in a longer document (that is
containment), a translation or a paraphrase.

Cost: benchmarks/results/near_duplicates.md. Memory of a look-up: about 9 times the batch's text, also for one document of 64 MB.
The index is mapped from its files, so the processes of one node share it.

Shapes: N documents, B bands, K rows of a signature.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lmsplit.manifests.errors import InputError
from lmsplit.partition.hashing import keyed_hashes
from lmsplit.partition.shingles import FOLD, Hashes, Shingles, jaccard

FORMAT_VERSION: Final = 1
DOCUMENTS: Final = pa.schema([pa.field("doc_id", pa.string(), False), pa.field("shingles", pa.large_list(pa.uint64()), False)])
BANDS: Final = pa.schema([pa.field("key", pa.uint64(), False), pa.field("document", pa.int32(), False)])

_MISSED: Final = 0.0005
_MAX_ROWS: Final = 8
_SHINGLES: Final = 1 << 15  # hashed at a time: they stay in the second-level cache (measured: fastest of 2^13, 2^15, 2^17)
_CANDIDATES: Final = 256  # assumption: more than any document has but for boilerplate


class Banding(NamedTuple):
    """How a signature is cut: two documents meet when all rows of any one band agree."""

    num_bands: int
    num_rows: int


def banding(threshold: float) -> Banding:
    """Choose bands so that a pair exactly at the threshold meets with probability 0.9995 or more.

    A row agrees with probability s, the similarity, so one of B bands does with 1 - (1 - s^R)^B. R is the number of rows, up
    to 8, with threshold^R nearest to 1/3: fewer would nominate far less similar pairs, more would need many more bands.

    Args:
        threshold: Jaccard similarity, above 0 and up to 1. The number of bands grows as 7.6 / threshold below 0.5.

    Raises:
        ValueError: the threshold is outside (0, 1].

    Example:
        >>> banding(0.8)
        Banding(num_bands=20, num_rows=5)
        >>> 1 - (1 - 0.8**5) ** 20 >= 0.9995
        True
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}: expected a Jaccard similarity above 0 and up to 1, such as 0.8")
    if threshold == 1:
        return Banding(1, _MAX_ROWS)
    num_rows = min(max(round(math.log(1 / 3) / math.log(threshold)), 1), _MAX_ROWS)
    return Banding(math.ceil(math.log(_MISSED) / math.log1p(-(threshold**num_rows))), num_rows)


def band_keys(shingles: Shingles, threshold: float, seed: int) -> Hashes:
    """Return the (B, N) uint64 band keys of N documents.

    Row k of the signature is the least of a_k·h + b_k modulo 2^64 over a document's shingles h, a_k odd.

    Args:
        shingles: of the documents.
        threshold: decides the banding.
        seed: of the a_k and b_k.
    """
    num_bands, num_rows = banding(threshold)
    num_documents = len(shingles.offsets) - 1
    a_K, b_K = keyed_hashes(seed, "minhash", map(str, range(2 * num_bands * num_rows))).reshape(2, -1)
    signatures_KN = np.full((len(a_K), num_documents), 2**64 - 1, dtype=np.uint64)
    for begin in range(0, len(shingles.hashes), _SHINGLES):
        hashes = shingles.hashes[begin : begin + _SHINGLES]
        first = int(np.searchsorted(shingles.offsets, begin, side="right")) - 1
        last = int(np.searchsorted(shingles.offsets, begin + len(hashes)))
        starts = np.maximum(shingles.offsets[first:last] - begin, 0)
        for least_N, a, b in zip(signatures_KN[:, first:last], a_K | np.uint64(1), b_K, strict=True):
            np.minimum(least_N, np.minimum.reduceat(hashes * a + b, starts), out=least_N)
    keys_BN = np.zeros((num_bands, num_documents), dtype=np.uint64)
    for row in range(num_rows):
        keys_BN *= FOLD
        keys_BN += signatures_KN[row::num_rows]
    return keys_BN


def write_index(
    pieces: Iterable[tuple[Sequence[str], Shingles]], threshold: float, seed: int, documents: Path, bands: Path
) -> int:
    """Write the index of the held-out documents: two uncompressed Arrow IPC files, the same bytes for the same pieces.

    `documents` has a record batch for each piece (doc_id, shingles), `bands` one for each band (key ascending, document: a row
    of `documents`). Both carry format version, threshold and seed in the schema's metadata. A document whose whole set an
    earlier one has is left out: no look-up would return it. In memory are one piece and, of every document held out, its keys
    (16 bytes a band) and about 150 bytes.

    Args:
        pieces: ids and shingles of held-out documents, fewer than 2^31 in all.
        threshold: Jaccard similarity from which a document is a near-duplicate, above 0 and up to 1.
        seed: of the MinHash, 0 to 2^63 - 1.
        documents: file to write.
        bands: file to write.

    Returns:
        How many documents the index has.
    """
    metadata = {"format_version": str(FORMAT_VERSION), "threshold": repr(threshold), "seed": str(seed)}
    keys, seen, num_seen = [np.empty((banding(threshold).num_bands, 0), np.uint64)], dict[bytes, int](), 0
    with pa.OSFile(str(documents), "wb") as sink, pa.ipc.new_file(sink, DOCUMENTS.with_metadata(metadata)) as writer:
        for ids, shingles in pieces:
            digests = [hashlib.blake2b(shingles.of(n).tobytes(), digest_size=16).digest() for n in range(len(ids))]
            new = [seen.setdefault(digest, number) == number for number, digest in enumerate(digests, num_seen)]
            num_seen += len(ids)
            batch = pa.record_batch([pa.array(ids, pa.string()), pa.LargeListArray.from_arrays(*shingles)], schema=DOCUMENTS)
            batch = batch.filter(pa.array(new, pa.bool_()))
            writer.write_batch(batch)
            keys.append(band_keys(_sets(batch["shingles"]), threshold, seed))
    keys_BN = np.concatenate(keys, axis=1)
    with pa.OSFile(str(bands), "wb") as sink, pa.ipc.new_file(sink, BANDS.with_metadata(metadata)) as writer:
        for keys_N in keys_BN:
            order_N = np.argsort(keys_N, kind="stable")
            writer.write_batch(pa.record_batch([keys_N[order_N], order_N.astype(np.int32)], schema=BANDS))
    return int(keys_BN.shape[1])


def _sets(array: pa.LargeListArray) -> Shingles:
    return Shingles(array.offsets.to_numpy(), array.values.to_numpy())


def bytes_per_document(threshold: float, num_shingles: float) -> float:
    """Return the bytes of an indexed document: 12 a band, 8 a shingle, 12 of offsets; its id comes on top.

    Args:
        threshold: decides the bands.
        num_shingles: mean size of the sets; about one a word.
    """
    return 12 * banding(threshold).num_bands + 8 * num_shingles + 12


class Matches(NamedTuple):
    """Which held-out document each of N documents nearly repeats.

    Attributes:
        document: (N,) int64 row of the index, -1 where there is none.
        similarity: (N,) float32 Jaccard similarity to it, 0 where there is none.
    """

    document: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]


class NearDuplicateIndex:
    """The held-out documents, mapped from the files that `write_index` wrote; opening reads nothing but their footers.

    Args:
        documents: file of ids and shingles.
        bands: file of band keys.

    Raises:
        InputError: the files are of another format version, or not of one index.
    """

    def __init__(self, documents: Path, bands: Path) -> None:
        self._documents = pa.ipc.open_file(pa.memory_map(str(documents))).read_all()
        tables = pa.ipc.open_file(pa.memory_map(str(bands)))
        facts = self._documents.schema.metadata or {}
        if facts.get(b"format_version") != str(FORMAT_VERSION).encode():
            found = facts.get(b"format_version", b"none").decode()
            raise InputError(f"{documents} has index format {found}, expected {FORMAT_VERSION}: build the index again")
        self.threshold, self.seed = float(facts[b"threshold"]), int(facts[b"seed"])
        batches = [tables.get_batch(band) for band in range(tables.num_record_batches)]
        sizes = {len(self._documents), *map(len, batches)}
        if tables.schema.metadata != facts or len(sizes) > 1:
            raise InputError(f"{bands} and {documents} are of different indexes: build the index again")
        self._keys = [batch["key"].to_numpy() for batch in batches]
        self._rows = [batch["document"].to_numpy() for batch in batches]
        chunks = self._documents["shingles"].chunks
        self._chunks, self._starts = [_sets(chunk) for chunk in chunks], np.cumsum([0, *map(len, chunks)]).tolist()

    def __len__(self) -> int:
        return len(self._documents)

    def doc_id(self, document: int) -> str:
        """Return the id of the document in a row of the index."""
        return str(self._documents["doc_id"][document])

    def shingles(self, document: int) -> Hashes:
        """Return the set of the document in a row of the index."""
        chunk = bisect_right(self._starts, document) - 1
        return self._chunks[chunk].of(document - self._starts[chunk])

    def matches(self, shingles: Shingles) -> Matches:
        """Find for each document the held-out one of highest similarity, the lowest row of several.

        Of more than 256 nominated documents (boilerplate), those that share the most bands are compared first and the search
        ends with the first match past the 256th: whether there is a match stays exact, only which one it is may not.

        Args:
            shingles: of the documents to look up.
        """
        keys_BN = band_keys(shingles, self.threshold, self.seed)
        document_N = np.full(keys_BN.shape[1], -1, np.int64)
        similarity_N = np.zeros(keys_BN.shape[1], np.float32)
        for looked_up, nominated in self._nominate(keys_BN):
            document_N[looked_up], similarity_N[looked_up] = self._best(shingles.of(looked_up), nominated)
        return Matches(document_N, similarity_N)

    def _nominate(self, keys_BN: Hashes) -> Iterator[tuple[int, list[int]]]:
        """Yield each document that shares a key, and the rows it shares one with: most bands first, then the lowest row."""
        left_BN = np.zeros(keys_BN.shape, np.int64)
        met_BN = np.zeros(keys_BN.shape, bool)
        for band, keys in enumerate(self._keys if len(self) else []):
            left_BN[band] = np.searchsorted(keys, keys_BN[band])
            met_BN[band] = keys[np.minimum(left_BN[band], len(keys) - 1)] == keys_BN[band]
        for looked_up in np.flatnonzero(met_BN.any(axis=0)).tolist():
            runs = []
            for band in np.flatnonzero(met_BN[:, looked_up]).tolist():
                right = np.searchsorted(self._keys[band], keys_BN[band, looked_up], side="right")
                runs.append(self._rows[band][left_BN[band, looked_up] : right])
            rows, num_bands = np.unique(np.concatenate(runs), return_counts=True)
            yield looked_up, rows[np.argsort(-num_bands, kind="stable")].tolist()

    def _best(self, hashes: Hashes, nominated: list[int]) -> tuple[int, float]:
        best, highest = -1, 0.0
        for compared, row in enumerate(nominated):
            if highest == 1 or (best >= 0 and compared >= _CANDIDATES):
                break
            own, other = len(hashes), len(held := self.shingles(row))
            if min(own, other) < self.threshold * max(own, other):  # sets of such sizes cannot share enough
                continue
            similarity = jaccard(hashes, held)
            if similarity >= self.threshold and (similarity, -row) > (highest, -best):
                best, highest = row, similarity
        return best, highest
