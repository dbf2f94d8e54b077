"""Gathers the pieces into the domains' files: each output shard is written once, from the row groups that belong to it.

```
place's receipts ─► shards: per domain and split, the units' row groups in order, cut at shard_size
shard ─► data/<domain>/part-NNNNN-<sha>.parquet   and   its ids for the index
```

A file holds one split only, so that a reader who knows nothing of us can leave the held-out documents alone. Which shard holds
which rows follows from the receipts alone. Memory: one row group of the output (64k rows or 64 MB of text).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.layout import data_path, domain_name
from lmsplit.manifests.schema import IDS, SPLITS
from lmsplit.manifests.store import file_sha256
from lmsplit.partition.hashing import id_hashes
from lmsplit.partition.place import document_schema
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run, describe

ROW_GROUP_ROWS: Final = 65_536
ROW_GROUP_BYTES: Final = 64 * 10**6


@dataclass(frozen=True)
class Source:
    """A row group of a piece."""

    piece: str
    row_group: int
    text_bytes: int
    rows: int
    tokens: int | None


@dataclass(frozen=True)
class Shard:
    """One output file: the row groups it is made of, in order."""

    domain: str
    part: int
    split: str
    sources: tuple[Source, ...]
    distance_sum: float

    @property
    def rows(self) -> int:
        """Documents in it."""
        return sum(source.rows for source in self.sources)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of text in it."""
        return sum(source.text_bytes for source in self.sources)

    @property
    def tokens(self) -> int | None:
        """Tokens of text in it; None without a tokenizer."""
        return add_tokens(source.tokens for source in self.sources)


def add_tokens(counts: Iterable[int | None]) -> int | None:
    """Return the sum of token counts; None where they were not counted.

    >>> add_tokens([3, 4]), add_tokens([None, None])
    (7, None)
    """
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def plan_shards(placed: Iterable[dict[str, Any]], num_domains: int, shard_bytes: int) -> list[Shard]:
    """Cut the domains into output files.

    Args:
        placed: the place receipts, in the order of the units; `groups` says what each piece holds, row group by row group.
        num_domains: K.
        shard_bytes: a shard is closed once it holds so many bytes of text.

    Returns:
        The shards by domain, split and part; parts count through a domain's splits.
    """
    sources: dict[tuple[str, str], list[tuple[Source, float]]] = {}
    for receipt in placed:
        for index, group in enumerate(receipt["groups"]):
            path = receipt["pieces"]["documents"]["path"]
            source = Source(path, index, group["text_bytes"], group["rows"], group["tokens"])
            sources.setdefault((group["domain"], group["split"]), []).append((source, group["distance_sum"]))
    shards: list[Shard] = []
    for domain in map(domain_name, range(num_domains)):
        part = 0
        for split in SPLITS:
            for members in _cut(sources.get((domain, split), []), shard_bytes):
                chosen, sums = zip(*members, strict=True)
                shards.append(Shard(domain, part, split, chosen, float(np.sum(sums))))
                part += 1
    return shards


def _cut(sources: list[tuple[Source, float]], shard_bytes: int) -> Iterator[list[tuple[Source, float]]]:
    shard: list[tuple[Source, float]] = []
    size = 0
    for member in sources:
        shard.append(member)
        size += member[0].text_bytes
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


@dataclass(frozen=True)
class Gather:
    """The gather stage.

    Args:
        run: the run, placed.
    """

    run: Run
    name: str = "gather"

    @cached_property
    def shards(self) -> list[Shard]:
        """The output files to write."""
        planned = Planned(self.run)
        placed = self.run.receipts("place", planned.num_units)
        return plan_shards(placed, planned.configuration.domains, planned.configuration.shard_size)

    @property
    def num_tasks(self) -> int:
        """One per shard."""
        return len(self.shards)

    @cached_property
    def _schema(self) -> pa.Schema:
        return document_schema(self.run)

    def do(self, task: int) -> None:
        """Write one shard and its ids."""
        shard = self.shards[task]
        with self.run.store.spool() as data, self.run.store.spool() as ids:
            doc_ids = _write(self._row_groups(shard), self._schema, data)
            sha256 = file_sha256(data)
            entry = describe(data, data_path(shard.domain, shard.part, sha256), sha256)
            assert entry["rows"] == shard.rows, "a shard holds what its receipts say"
            self.run.store.put(data, entry["path"])
            pq.write_table(_id_table(shard, doc_ids), ids, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
            facts = {
                "documents": shard.rows,
                "domain": shard.domain,
                "split": shard.split,
                "text_bytes": shard.text_bytes,
                "tokens": shard.tokens,
                "distance_sum": shard.distance_sum,
                "files": [entry],
            }
            self.run.finish(self.name, task, {"ids": ids}, facts)

    def _row_groups(self, shard: Shard) -> Iterator[pa.Table]:
        for source in shard.sources:
            with pq.ParquetFile(self.run.store.path(source.piece), page_checksum_verification=True) as piece:
                yield piece.read_row_group(source.row_group)


def _write(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> list[str]:
    """Write tables as row groups of at least 64k rows or 64 MB; return the ids in order."""
    doc_ids: list[str] = []
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            doc_ids += table["doc_id"].to_pylist()
            waiting.append(table)
            full = sum(t.num_rows for t in waiting) >= ROW_GROUP_ROWS or sum(t.nbytes for t in waiting) >= ROW_GROUP_BYTES
            if full:
                _flush(writer, waiting, schema)
                waiting = []
        if waiting:
            _flush(writer, waiting, schema)
    return doc_ids


def _flush(writer: pq.ParquetWriter, tables: list[pa.Table], schema: pa.Schema) -> None:
    table = pa.concat_tables(tables).replace_schema_metadata(schema.metadata)
    writer.write_table(table, row_group_size=table.num_rows)


def _id_table(shard: Shard, doc_ids: list[str]) -> pa.Table:
    columns = {
        "id_hash": id_hashes(doc_ids),
        "doc_id": doc_ids,
        "domain": [shard.domain] * len(doc_ids),
        "part": np.full(len(doc_ids), shard.part, np.int32),
        "row": np.arange(len(doc_ids), dtype=np.int64),
    }
    return pa.table(columns, schema=IDS).sort_by([("id_hash", "ascending"), ("row", "ascending")])
