"""Documents to token rows of one fixed length, with a table that says which document lies where.

```
manifest ─selection─► documents ─token_files─► tokens/*.arrow   begin, tokens, end of each document
                                                    │ lengths
                                                    └─arrange─► pieces ─gather─► rows.arrow     (memory-mapped)
                                                                    └──────────► spans.parquet  (document → rows)
```

Every token is kept. The spans are in document order; each says that the tokens of `doc_id` from `token` on lie at
`[start, end)` of `row`, begin and end tokens counted. What was written is read back: it must hold as many rows, pieces and
tokens as were arranged.

A packed split is cached under a digest of all that it is made from, and appears whole or not at all. A pack that was killed
goes on where it stopped, a few million characters back; the bytes are the same. Cost: that of the tokenizer, and a few
seconds for each million documents. Memory: some 300 bytes for each document, three units of text, one batch of rows; the
token files are read where the rows need them, so a split larger than the memory wants a disk that is fast at random reads.
Disk: 4 bytes for each token, twice while it runs, before spans.

This does *not* keep the documents of a row from seeing each other: `seq_lengths` says where each one ends, for the trainer.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.train.arrange import Numbers, Pieces, Strategy, arrange
from lmsplit.train.config import Where
from lmsplit.train.directory import whole_directory, whole_file
from lmsplit.train.pack_progress import PackProgress
from lmsplit.train.selection import canonical, selected
from lmsplit.train.token_files import Document, TokenUnit, token_units
from lmsplit.train.tokenizer import DocumentEncoder

# Shapes: N documents, P pieces, R rows, U units.

VERSION: Final = 2
"""Part of the digest: raise it whenever the same arguments give other bytes, or other token files on the way."""
ROWS_SCHEMA: Final = pa.schema({"input_ids": pa.list_(pa.int32()), "seq_lengths": pa.list_(pa.int32())})
"""Nullable, though nothing is null: `datasets` maps a file of its own kind of schema as it is, and casts any other."""
SPANS_SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("token", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ]
)
_BATCH_TOKENS: Final = 1 << 20
_BATCH_SPANS: Final = 1 << 16
_TOKENS: Final = "tokens"
_RECORD: Final = "pack.json"

Report = Callable[[int, int], None]
"""Is told the numbers of documents and of tokens done."""


class Packing(NamedTuple):
    """How documents become rows."""

    max_length: int
    """Tokens in a row, at least 2."""
    strategy: Strategy = "bfd_split"
    """See `arrange`."""


@dataclass(frozen=True)
class Packed:
    """One packed split on disk; all rows but the last count as `max_length` positions."""

    directory: Path
    digest: str
    """What it was made from, 64 hexadecimal digits."""
    domain: str
    num_documents: int
    num_filtered: int
    """Documents of the split that `where` left out."""
    num_tokens: int
    """Begin and end tokens included."""
    num_bytes: int
    """UTF-8 bytes of the documents' text."""
    num_rows: int
    max_length: int
    strategy: Strategy

    @property
    def filled_fraction(self) -> float:
        """Share of the positions that hold a token, every row counted in full; 1 where there is no row."""
        return self.num_tokens / (self.num_rows * self.max_length) if self.num_rows else 1.0

    def rows(self) -> Dataset:
        """Return the rows as a memory-mapped data set: `input_ids`, and `seq_lengths` of the documents' pieces in each."""
        return Dataset.from_file(str(self.directory / "rows.arrow"))

    def spans(self) -> pa.Table:
        """Return the table `doc_id`, `token`, `row`, `start`, `end`, in document order."""
        return pq.read_table(self.directory / "spans.parquet")

    def row_lengths(self) -> Numbers:
        """Return the tokens in each row, as the file of rows has them; reads no token."""
        lengths = [pc.list_value_length(batch.column("input_ids")).to_numpy() for batch in _row_batches(self.directory)]
        return np.concatenate([np.zeros(0, np.int64), *lengths])


def pack_digest(manifest: str, tokenizer: str, packing: Packing, domain: str, split: str, where: Where | None = None) -> str:
    """Return the digest under which a packed split is cached.

    Args:
        manifest: digest of the manifest's commit.
        tokenizer: digest of the tokenizer.
        packing: length and strategy.
        domain: the domain's name.
        split: train, heldout or excluded.
        where: which documents; the order of columns and of values does not matter.
    """
    content = [VERSION, manifest, tokenizer, packing.strategy, packing.max_length, domain, split, canonical(where or {})]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def pack_split(
    manifest: Manifest,
    encoder: DocumentEncoder,
    packing: Packing,
    domain: str,
    split: str,
    cache: Path,
    where: Where | None = None,
) -> Packed:
    """Pack one split of one domain, go on with it, or open it where that was done before.

    Args:
        manifest: where the documents are.
        encoder: turns them into tokens.
        packing: length and strategy.
        domain: the domain's name.
        split: train, heldout or excluded.
        cache: directory of packed splits.
        where: only documents whose columns have one of the values listed; all when None. There may be none.

    Raises:
        ConfigurationError: `where` names a column that documents cannot be chosen by, or a value of another type.
        ManifestError: no such domain or split.
        ConflictError: another process is packing the same split now.
        LmsplitError: the rows read back are not those that were arranged.
    """
    num_documents = manifest.domain(domain).splits.get(split, 0)
    documents = selected(manifest, domain, split, where or {})
    directory = cache / pack_digest(manifest.digest, encoder.digest, packing, domain, split, where)
    if not directory.exists():
        with whole_directory(directory, resume=True) as partial:
            if not (partial / _RECORD).exists():  # else the former one was killed when all was done
                with PackProgress(f"pack {domain}", num_documents) as progress:
                    packed = pack_documents(documents, encoder, packing, partial, progress.update)
                about = {"version": VERSION, "manifest": manifest.digest, "tokenizer": encoder.digest, "split": split}
                about |= {"where": {name: list(values) for name, values in (where or {}).items()}}
                packed = replace(packed, domain=domain, num_filtered=num_documents - packed.num_documents)
                _write_record(partial / _RECORD, about | _counts(packed))
    return open_packed(directory)


def open_packed(directory: Path) -> Packed:
    """Open what `pack_split` published in `directory`."""
    about = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
    names = [name for name in Packed.__dataclass_fields__ if name not in {"directory", "digest"}]
    return Packed(directory=directory, digest=directory.name, **{name: about[name] for name in names})


def pack_documents(
    documents: Iterable[Document],
    encoder: DocumentEncoder,
    packing: Packing,
    directory: Path,
    report: Report = lambda _documents, _tokens: None,
) -> Packed:
    """Pack documents into `directory`.

    Args:
        documents: pairs of id and text.
        encoder: turns them into tokens.
        packing: length and strategy.
        directory: an empty one, or what a killed call with the same arguments left.
        report: is told how many documents and tokens are encoded so far.

    Raises:
        LmsplitError: the rows read back are not those that were arranged.
    """
    units: list[TokenUnit] = []
    num_documents = num_tokens = 0
    for unit in token_units(documents, encoder, directory / _TOKENS):
        units.append(unit)
        num_documents += len(unit.lengths_N)
        num_tokens += len(unit.tokens_T)
        report(num_documents, num_tokens)
    lengths_N = np.concatenate([np.zeros(0, np.int64), *(unit.lengths_N for unit in units)])
    pieces = arrange(lengths_N, *packing)
    num_rows = int(pieces.row_P.max(initial=-1)) + 1
    _write_rows(directory / "rows.arrow", _in_row_order(pieces), lengths_N, units, packing.max_length)
    _write_spans(directory / "spans.parquet", pieces, [unit.doc_ids for unit in units])
    expected = (num_rows, len(pieces.row_P), num_tokens)
    if (found := _read_back(directory)) != expected:
        raise LmsplitError(
            f"{directory}: {found} rows, pieces and tokens were read back, {expected} were written: "
            "the disk may be full or faulty; run the command again"
        )
    shutil.rmtree(directory / _TOKENS)
    num_bytes = sum(unit.num_bytes for unit in units)
    return Packed(directory, "", "", num_documents, 0, num_tokens, num_bytes, num_rows, *packing)


def _in_row_order(pieces: Pieces) -> Pieces:
    order_P = np.lexsort((pieces.start_P, pieces.row_P))
    return Pieces(*(column[order_P] for column in pieces))


def _write_rows(path: Path, pieces: Pieces, lengths_N: Numbers, units: Sequence[TokenUnit], max_length: int) -> None:
    """Write rows in batches; the pieces are in the order of rows and positions."""
    num_rows = int(pieces.row_P[-1]) + 1 if len(pieces.row_P) else 0
    first_P = np.searchsorted(pieces.row_P, np.arange(num_rows + 1))
    begins_P = (np.cumsum(lengths_N) - lengths_N)[pieces.document_P] + pieces.offset_P
    unit_begins_U = np.cumsum([0, *(len(unit.tokens_T) for unit in units)])
    step = max(1, _BATCH_TOKENS // max_length)
    with pa.ipc.new_stream(str(path), ROWS_SCHEMA) as writer:
        for row in range(0, max(num_rows, 1), step):  # one empty batch where there is no row: `datasets` wants one
            edges_R = first_P[row : row + step + 1]
            batch = slice(edges_R[0], edges_R[-1])
            lengths_P = pieces.length_P[batch]
            tokens = np.concatenate([np.zeros(0, np.int32), *_gathered(begins_P[batch], lengths_P, unit_begins_U, units)])
            piece_edges_P = np.append(0, np.cumsum(lengths_P))
            columns = [_lists(piece_edges_P[edges_R - edges_R[0]], tokens), _lists(edges_R - edges_R[0], lengths_P)]
            writer.write_batch(pa.record_batch(columns, schema=ROWS_SCHEMA))


def _gathered(
    begins_P: Numbers, lengths_P: Numbers, unit_begins_U: Numbers, units: Sequence[TokenUnit]
) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the tokens of each piece; `begins_P` counts through all units end to end."""
    unit_P = np.searchsorted(unit_begins_U, begins_P, side="right") - 1
    for unit, begin, length in zip(unit_P.tolist(), (begins_P - unit_begins_U[unit_P]).tolist(), lengths_P.tolist(), strict=True):
        yield units[unit].tokens_T[begin : begin + length]


def _lists(edges: Numbers, values: npt.NDArray[Any]) -> Any:
    return pa.ListArray.from_arrays(pa.array(edges.astype(np.int32)), pa.array(values.astype(np.int32, copy=False)))


def _write_spans(path: Path, pieces: Pieces, doc_ids: Sequence[Any]) -> None:
    """Write the spans in batches; the pieces are in the order of the documents."""
    ids = pa.chunked_array(doc_ids, pa.string())
    with pq.ParquetWriter(path, SPANS_SCHEMA, compression="zstd") as writer:
        for begin in range(0, len(pieces.row_P), _BATCH_SPANS):
            document_P, offset_P, length_P, row_P, start_P = (column[begin : begin + _BATCH_SPANS] for column in pieces)
            near = ids.slice(document_P[0], document_P[-1] - document_P[0] + 1).combine_chunks()
            columns = [near.take(pa.array(document_P - document_P[0])), offset_P, row_P]
            columns += [start_P.astype(np.int32), (start_P + length_P).astype(np.int32)]
            writer.write_table(pa.table(columns, schema=SPANS_SCHEMA))


def _row_batches(directory: Path) -> Iterator[Any]:
    with pa.memory_map(str(directory / "rows.arrow")) as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def _read_back(directory: Path) -> tuple[int, int, int]:
    """Return rows, pieces and tokens as a plain Arrow reader finds them; the pieces must be as long as the tokens are many."""
    num_rows = num_pieces = num_tokens = 0
    for batch in _row_batches(directory):
        batch.validate(full=True)
        tokens, lengths = (column.flatten() for column in batch.columns)
        num_rows += batch.num_rows
        num_pieces += len(lengths)
        num_tokens += len(tokens) if len(tokens) == pc.sum(lengths).as_py() else 0
    num_spans = pq.read_metadata(directory / "spans.parquet").num_rows
    return num_rows, min(num_pieces, num_spans), num_tokens


def _write_record(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _counts(packed: Packed) -> dict[str, Any]:
    return {key: value for key, value in asdict(packed).items() if key not in {"directory", "digest"}}
