"""Tokenizes documents into token files, a unit at a time: what a killed pack has done stays done.

```
documents ─cut─► units of some 8 million characters ─encode, two at a time─► 000000.arrow, 000001.arrow, …
```

A unit is a run of documents, cut from the documents alone. Its file holds `doc_id`, `input_ids` (begin and end tokens
included) and `num_bytes`, is written under another name, flushed and renamed; a unit whose file is there is not encoded
again. Reading maps the files into memory, and keeps none of them open.

This does *not* arrange tokens in rows (see `pack`). Cost: that of the tokenizer, which runs on all cores for each batch; two
units at a time, so that it has work while the ids of one become an array (on two cores, processes of their own were no
faster). Memory: three units of text with their tokens. Disk: 4 bytes for each token.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lmsplit.train.directory import whole_file
from lmsplit.train.tokenizer import DocumentEncoder

UNIT_SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
    ]
)
_UNIT_CHARACTERS: Final = 8_000_000
_BATCH_CHARACTERS: Final = 1 << 20
_NUM_THREADS: Final = 2

Document = tuple[str, str]
"""Id and text."""
Ids = npt.NDArray[np.int32]


class TokenUnit(NamedTuple):
    """One unit's documents as token ids, mapped into memory."""

    doc_ids: Any
    """Arrow array of strings."""
    lengths_N: npt.NDArray[np.int64]
    """Tokens of each document."""
    tokens_T: Ids
    """Of all documents, end to end."""
    num_bytes: int
    """UTF-8 bytes of the texts."""


def token_units(documents: Iterable[Document], encoder: DocumentEncoder, directory: Path) -> Iterator[TokenUnit]:
    """Tokenize documents into files in `directory`, but for the units that it has already.

    Args:
        documents: the same ones, in the same order, whenever the directory is the same.
        encoder: the same one, too.
        directory: of the token files; made where it does not exist.

    Yields:
        The units, in order, as soon as they are written.
    """
    directory.mkdir(exist_ok=True)
    running: deque[Future[TokenUnit]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for number, unit in enumerate(batches(documents, _UNIT_CHARACTERS)):
            running.append(pool.submit(_token_unit, unit, encoder, directory / f"{number:06d}.arrow"))
            if len(running) > _NUM_THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def batches(documents: Iterable[Document], num_characters: int) -> Iterator[list[Document]]:
    """Cut documents into runs that end with the document that makes them as long as `num_characters`.

    >>> [len(batch) for batch in batches([("a", "12"), ("b", "3"), ("c", "456"), ("d", "")], 3)]
    [2, 1, 1]
    """
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= num_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _token_unit(documents: Sequence[Document], encoder: DocumentEncoder, path: Path) -> TokenUnit:
    if not path.exists():
        encoded = _encoded(documents, encoder)
        with whole_file(path) as partial, pa.ipc.new_file(str(partial), UNIT_SCHEMA) as writer:
            writer.write_batch(encoded)
    return _open(path)


def _encoded(documents: Sequence[Document], encoder: DocumentEncoder) -> Any:
    lengths: list[int] = []
    tokens: list[Ids] = []
    for batch in batches(documents, _BATCH_CHARACTERS):
        flat: list[int] = []
        for ids in encoder.encode([text for _, text in batch]):
            flat.append(encoder.begin_id)
            flat += ids
            flat.append(encoder.end_id)
            lengths.append(len(ids) + 2)
        tokens.append(np.array(flat, np.int32))
    edges = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    columns = [
        pa.array([doc_id for doc_id, _ in documents], pa.string()),
        pa.ListArray.from_arrays(pa.array(edges), pa.array(np.concatenate(tokens))),
        pa.array([len(text.encode()) for _, text in documents], pa.int64()),
    ]
    return pa.record_batch(columns, schema=UNIT_SCHEMA)


def _open(path: Path) -> TokenUnit:
    """Map a unit's file; Arrow closes the file here and keeps the mapping while an array needs it."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        batch = reader.get_batch(0)
    ids = batch.column("input_ids")
    lengths_N = np.diff(ids.offsets.to_numpy()).astype(np.int64)
    num_bytes = int(batch.column("num_bytes").to_numpy().sum())
    return TokenUnit(batch.column("doc_id"), lengths_N, ids.values.to_numpy(), num_bytes)
