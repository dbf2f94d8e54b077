"""Documents to token rows of one fixed length, with a table that says which document lies where.

```
documents ─encode─► begin, tokens, end ─end to end─► rows of max_length ─► rows.arrow   (memory-mapped)
                                           └────────────────────────────► spans.parquet (document → rows)
```

Every token is kept: a document goes on in the next row, and the last row of a domain is shorter. The spans
are in document order; each says that tokens of `doc_id` lie at `[start, end)` of `row`, its begin and end
tokens included. What was written is read back, and its tokens must be as many as the documents had.

A packed split is cached under a digest of manifest, tokenizer, length, domain and split, and appears whole or
not at all. Memory: one batch of documents and of rows, whatever the size. Disk: 4 bytes for each token,
before spans.

Attention is *not* blocked between the documents of a row yet: a document sees the ones before it in its row.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.train.directory import whole_directory, write_whole
from lmsplit.train.tokenizer import DocumentEncoder

VERSION: Final = 1
ROWS_SCHEMA: Final = pa.schema([pa.field("input_ids", pa.list_(pa.int32()), nullable=False)])
SPANS_SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ]
)
_BATCH_DOCUMENTS: Final = 256
_BATCH_CHARACTERS: Final = 4_000_000
_BATCH_TOKENS: Final = 1 << 20
_BATCH_SPANS: Final = 1 << 16

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """One packed split on disk; rows count from 0 in the order of the documents."""

    directory: Path
    digest: str
    """What it was made from, 64 hexadecimal digits."""
    num_documents: int
    num_tokens: int
    """Begin and end tokens included."""
    num_bytes: int
    """UTF-8 bytes of the documents' text."""
    num_rows: int
    max_length: int

    def rows(self) -> Dataset:
        """Return the rows as a memory-mapped data set with the column `input_ids`."""
        return Dataset.from_file(str(self.directory / "rows.arrow"))

    def spans(self) -> pa.Table:
        """Return the table `doc_id`, `row`, `start`, `end`, in document order."""
        return pq.read_table(self.directory / "spans.parquet")

    def row_lengths(self) -> npt.NDArray[np.int64]:
        """Return each row's number of tokens; only the last one may be below `max_length`."""
        lengths_R = np.full(self.num_rows, self.max_length, np.int64)
        if self.num_rows:
            lengths_R[-1] = self.num_tokens - (self.num_rows - 1) * self.max_length
        return lengths_R


class RowWriter:
    """Wraps token sequences into rows and keeps account of where each one lies.

    Args:
        directory: receives `rows.arrow` and `spans.parquet`.
        max_length: tokens in a row.
    """

    def __init__(self, directory: Path, max_length: int) -> None:
        self._max_length = max_length
        self._pending: list[Ids] = []
        self._num_pending = 0
        self._located: list[tuple[str, int, int, int]] = []
        self.num_tokens = 0
        self._rows = pa.ipc.new_stream(str(directory / "rows.arrow"), ROWS_SCHEMA)
        self._spans = pq.ParquetWriter(directory / "spans.parquet", SPANS_SCHEMA, compression="zstd")

    def add(self, doc_ids: Sequence[str], documents: Sequence[Ids]) -> None:
        """Append documents, each with its begin and end tokens."""
        for doc_id, ids in zip(doc_ids, documents, strict=True):
            self._located += self._locate(doc_id, len(ids))
            self._pending.append(ids)
            self._num_pending += len(ids)
            self.num_tokens += len(ids)
        if self._num_pending >= max(_BATCH_TOKENS, self._max_length):
            self._write_rows(last=False)
        if len(self._located) >= _BATCH_SPANS:
            self._write_spans()

    def close(self) -> None:
        """Write what is left, the last row shorter than the others."""
        self._write_rows(last=True)
        self._write_spans()
        self._rows.close()
        self._spans.close()

    def _locate(self, doc_id: str, length: int) -> Iterator[tuple[str, int, int, int]]:
        begin, stop = self.num_tokens, self.num_tokens + length
        while begin < stop:
            row, start = divmod(begin, self._max_length)
            end = min(self._max_length, start + stop - begin)
            yield doc_id, row, start, end
            begin += end - start

    def _write_spans(self) -> None:
        columns = [list(column) for column in zip(*self._located, strict=True)] or [[]] * len(SPANS_SCHEMA)
        self._spans.write_table(pa.table(columns, schema=SPANS_SCHEMA))
        self._located = []

    def _write_rows(self, *, last: bool) -> None:
        flat = np.concatenate([*self._pending, np.zeros(0, np.int32)])
        whole = len(flat) // self._max_length * self._max_length
        edges = np.arange(0, whole + 1, self._max_length, dtype=np.int32)
        if last and whole < len(flat):
            edges = np.append(edges, np.int32(len(flat)))
        if len(edges) > 1:
            rows = pa.ListArray.from_arrays(pa.array(edges), pa.array(flat[: edges[-1]]))
            self._rows.write_batch(pa.record_batch([rows], schema=ROWS_SCHEMA))
        rest = flat[edges[-1] :]
        self._pending, self._num_pending = [rest], len(rest)


def pack_digest(manifest: str, tokenizer: str, max_length: int, domain: str, split: str) -> str:
    """Return the digest under which a packed split is cached.

    Args:
        manifest: digest of the manifest's commit.
        tokenizer: digest of the tokenizer.
        max_length: tokens in a row.
        domain: the domain's name.
        split: train or heldout.
    """
    content = [VERSION, manifest, tokenizer, max_length, domain, split]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def pack_split(manifest: Manifest, encoder: DocumentEncoder, max_length: int, domain: str, split: str, cache: Path) -> Packed:
    """Pack one split of one domain, or open it where that was done before.

    Args:
        manifest: where the documents are.
        encoder: turns them into tokens.
        max_length: tokens in a row, at least 2.
        domain: the domain's name.
        split: train, heldout or excluded.
        cache: directory of packed splits.

    Raises:
        ConflictError: another process is packing the same split now.
        LmsplitError: the rows read back hold another number of tokens than the documents.
    """
    digest = pack_digest(manifest.digest, encoder.digest, max_length, domain, split)
    directory = cache / digest
    if not directory.exists():
        batches = manifest.documents(domain=domain, split=split, columns=["doc_id", "text"])
        documents = ((row["doc_id"], row["text"]) for batch in batches for row in batch.to_pylist())
        with whole_directory(directory) as partial:
            packed = pack_documents(documents, encoder, max_length, partial)
            about = {"version": VERSION, "manifest": manifest.digest, "tokenizer": encoder.digest}
            about |= {"domain": domain, "split": split}
            write_whole(partial / "pack.json", json.dumps(about | _counts(packed), indent=1) + "\n")
    return open_packed(directory)


def open_packed(directory: Path) -> Packed:
    """Open what `pack_split` published in `directory`."""
    about = json.loads((directory / "pack.json").read_text(encoding="utf-8"))
    counts = {key: about[key] for key in ("num_documents", "num_tokens", "num_bytes", "num_rows", "max_length")}
    return Packed(directory=directory, digest=directory.name, **counts)


def pack_documents(documents: Iterable[tuple[str, str]], encoder: DocumentEncoder, max_length: int, directory: Path) -> Packed:
    """Pack documents into `directory`.

    Args:
        documents: pairs of id and text.
        encoder: turns them into tokens.
        max_length: tokens in a row, at least 2.
        directory: an existing, empty directory.

    Raises:
        LmsplitError: the rows read back hold another number of tokens than the documents.
    """
    writer = RowWriter(directory, max_length)
    num_documents = num_bytes = 0
    for batch in _batched(documents):
        doc_ids, texts = zip(*batch, strict=True)
        ends = [encoder.begin_id, encoder.end_id]
        writer.add(doc_ids, [np.array([ends[0], *ids, ends[1]], np.int32) for ids in encoder.encode(texts)])
        num_documents += len(texts)
        num_bytes += sum(len(text.encode()) for text in texts)
    writer.close()
    num_rows, num_tokens = _read_back(directory)
    if num_tokens != writer.num_tokens:
        raise LmsplitError(
            f"{directory}: the rows hold {num_tokens} tokens, the documents {writer.num_tokens}: "
            "the disk may be full or faulty; run the command again"
        )
    return Packed(directory, "", num_documents, num_tokens, num_bytes, num_rows, max_length)


def _batched(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read_back(directory: Path) -> tuple[int, int]:
    """Return rows and tokens as a plain Arrow reader finds them."""
    num_rows = num_tokens = 0
    with pa.memory_map(str(directory / "rows.arrow")) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            num_rows += batch.num_rows
            num_tokens += len(batch.column(0).flatten())
    return num_rows, num_tokens


def _counts(packed: Packed) -> dict[str, Any]:
    values = asdict(packed)
    return {key: value for key, value in values.items() if key not in {"directory", "digest"}}
