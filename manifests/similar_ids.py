"""Ids of a manifest that look like one that it does not have, so that a typo is found.

```
ids index, its first 2,000,000 ids ─► how much of beginning or end is shared, in eighths ─► best 200 ─► difflib ─► at most 5
```

Cost, bounded whatever the manifest's size: those ids are read and compared without regard to case, 64 Ki at a time, and difflib
compares 200. The index is in the order of a hash, so of a larger manifest they are a random part: there it is *not* certain that
a typo is found.
"""

import difflib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.parquet import parquet_file
from lmsplit.manifests.reader import Manifest

_MAX_READ: Final = 2_000_000
_MAX_COMPARED: Final = 200
_MAX_SIMILAR: Final = 5
_MAX_CHARACTERS: Final = 512
"""Of a longer id, the beginning stands for it: difflib's time grows with the square of the length."""
_PARTS: Final = 8
_BATCH_ROWS: Final = 65_536


def similar_ids(manifest: Manifest, doc_id: str) -> tuple[str, ...]:
    """Return ids that are there and look like `doc_id`, the most similar first; at most five, maybe none.

    Raises:
        DamagedError: the index is missing or cannot be read.
    """
    wanted = doc_id[:_MAX_CHARACTERS].encode("utf-8", "replace").decode().lower()
    ids: list[str] = []
    shared = np.zeros(0, np.int64)
    for batch in _ids(manifest):
        counts = _shared(batch, wanted)
        best = np.argsort(-counts, kind="stable")[:_MAX_COMPARED]
        ids += batch.take(pa.array(best)).to_pylist()
        shared = np.concatenate([shared, counts[best]])
        kept = np.argsort(-shared, kind="stable")[:_MAX_COMPARED].tolist()
        ids, shared = [ids[position] for position in kept], shared[kept]
    lowered = {each[:_MAX_CHARACTERS].lower(): each for each in ids}
    return tuple(lowered[each] for each in difflib.get_close_matches(wanted, lowered, _MAX_SIMILAR))


def _ids(manifest: Manifest) -> Iterator[pa.Array]:
    left = _MAX_READ
    for entry in manifest.body.files:
        if not entry.path.startswith("ids/"):
            continue
        try:
            with parquet_file(manifest.store, entry.path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=["doc_id"]):
                    yield batch.column(0).slice(0, left)
                    left -= batch.num_rows
                    if left <= 0:
                        return
        except (OSError, pa.ArrowException) as error:
            where = manifest.store.where(entry.path)
            raise DamagedError(entry.path, f"{where} cannot be read ({error}): run lmsplit verify --deep") from error


def _shared(ids: pa.Array, wanted: str) -> npt.NDArray[np.int64]:
    """Return of how many eighths of `wanted` each id has the same beginning, and of how many the same end, together."""
    lowered = pc.utf8_lower(ids)
    lengths = sorted({-(-len(wanted) * part // _PARTS) for part in range(1, _PARTS + 1)} - {0})
    counts = np.zeros(len(ids), np.int64)
    for length in lengths:
        for matched in (pc.starts_with(lowered, wanted[:length]), pc.ends_with(lowered, wanted[-length:])):
            counts += _as_numbers(matched)
    return counts


def _as_numbers(matched: Any) -> npt.NDArray[np.int64]:
    return np.asarray(matched.to_numpy(zero_copy_only=False), np.int64)
