"""Places every document of a unit: read → encode → place → one piece, sorted by domain and split.

```
unit ─► records ─► minus duplicates ─► vectors (the sample's are there already) ─► minus those without one
     ─► domain, distance, margin · tokens · split: held out, a near-duplicate of one, or to train on
     ─► piece, by domain and split; what it holds      what was set aside, with the reason      why documents are excluded
```

One task per work unit; memory is one unit's documents, and ten times a block of 32 MB of them. Placing needs nothing but the
document, the rule and the held-out index, so new data lands by the same rule later. It does *not* gather the domains' files.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.commit import Amount
from lmsplit.manifests.errors import DamagedError, InputError
from lmsplit.manifests.layout import domain_name, embeddings_path
from lmsplit.manifests.placement import PLACED_BY_CENTROIDS, Encoder, Floats, PlacementRule, is_unit
from lmsplit.manifests.rule_files import PlacementFiles, parse_rule
from lmsplit.manifests.store import file_sha256
from lmsplit.partition.encode import build_encoder, known_vectors
from lmsplit.partition.hashing import chosen, heldout_hashes
from lmsplit.partition.heldout import open_index
from lmsplit.partition.ids import losers, ordinals_of
from lmsplit.partition.near_duplicates import NearDuplicateIndex
from lmsplit.partition.pieces import write_piece
from lmsplit.partition.planning import Planned
from lmsplit.partition.records import Batch
from lmsplit.partition.run import Run, describe
from lmsplit.partition.scan import add_amounts, amounts_by_reason, concatenated
from lmsplit.partition.shingles import shingle
from lmsplit.partition.tokens import TokenCounter

DUPLICATE_ID: Final = "duplicate_id"
ZERO_VECTOR: Final = "zero_vector"
TRAIN, HELDOUT, EXCLUDED = range(len(schema.SPLITS))
"""Positions in `schema.SPLITS`."""
BLOCK_DOCUMENTS: Final = 16_384
BLOCK_BYTES: Final = 32 * 2**20
"""Documents encoded and shingled at once: enough for full batches of every length, and bounded (assumption)."""


class Placer(NamedTuple):
    """What placing a document takes, beside the document."""

    seed: int
    heldout_fraction: float
    rule: PlacementRule
    encoder: Callable[[], Encoder]
    """Built when it is first needed: in a refit it hardly ever is."""
    near: NearDuplicateIndex | None
    """Held-out documents; None where near-duplicates of them are not searched for."""
    counter: TokenCounter | None
    document_schema: pa.Schema
    keep_embeddings: bool


@dataclass(frozen=True)
class Place:
    """The place stage.

    Args:
        run: the run.
    """

    run: Run
    name: str = "place"

    @property
    def num_tasks(self) -> int:
        """One per work unit."""
        return Planned(self.run).num_units

    @cached_property
    def _placer(self) -> Placer:
        configuration = Planned(self.run).configuration
        fit = self.run.receipt("fit", 0)
        arrays, description = (_read_checked(self.run, entry) for entry in fit["files"])
        stored = parse_rule(PlacementFiles(description, arrays), fit["placement"])
        return Placer(
            configuration.seed,
            fit["heldout_fraction"],
            stored.rule,
            cache(partial(build_encoder, self.run, stored.encoder, stored.encoder_arrays)),
            open_index(self.run),
            Planned(self.run).open_counter(),
            document_schema(self.run),
            configuration.keep_embeddings,
        )

    @cached_property
    def _losers(self) -> pl.DataFrame:
        return losers(self.run)

    def do(self, task: int) -> None:
        """Place one unit.

        Raises:
            InputError: the unit no longer holds the documents that the scan counted.
        """
        unit = _Unit(self._placer, ordinals_of(self._losers, task), *known_vectors(self.run, task))
        for block in _blocks(Planned(self.run).read(task)):
            unit.take(block)
        if unit.read.model_dump() != self.run.receipt("scan", task)["read"]:
            raise InputError(f"unit {task} held other records when it was scanned: run the same command again to plan it anew")
        with ExitStack() as stack:
            documents, groups, rejected, exclusions = (stack.enter_context(self.run.store.spool()) for _ in range(4))
            held = write_piece(unit.table(), documents)
            pieces = {"documents": documents} if held.num_rows else {}
            for name, path, rows in (
                ("groups", groups, held),
                ("rejected", rejected, concatenated(unit.rejected, schema.QUARANTINE)),
                ("exclusions", exclusions, concatenated(unit.exclusions, schema.EXCLUSIONS)),
            ):
                if rows.num_rows:
                    pq.write_table(rows, path, compression="zstd", write_page_checksum=True)
                    pieces[name] = path
            files = [self._keep(task, unit.kept, stack)] if unit.kept else []
            self.run.finish(self.name, task, pieces, unit.facts() | {"files": files})

    def _keep(self, task: int, kept: list[pa.RecordBatch], stack: ExitStack) -> dict[str, Any]:
        """Write the unit's vectors where the manifest has them; invisible until a commit names the file."""
        spooled = stack.enter_context(self.run.store.spool())
        table = pa.Table.from_batches(kept)
        pq.write_table(table, spooled, compression="zstd", write_page_checksum=True, row_group_size=max(table.num_rows, 1))
        sha256 = file_sha256(spooled)
        entry = describe(spooled, embeddings_path(task, sha256), sha256)
        self.run.store.put(spooled, entry["path"])
        return entry


def _read_checked(run: Run, entry: Mapping[str, Any]) -> bytes:
    data = run.store.read(entry["path"])
    if (found := hashlib.sha256(data).hexdigest()) != entry["sha256"]:
        message = f"{run.store.where(entry['path'])} should have sha256 {entry['sha256']}, found {found}"
        raise DamagedError(entry["path"], f"{message}: remove it and {run.where('fit')}, and run the same command again")
    return data


def document_schema(run: Run) -> pa.Schema:
    """Return the schema of the run's data files."""
    keep = pa.schema([(name, schema.type_named(kind)) for name, kind in Planned(run).keep])
    return schema.documents(keep, placement_sha256=run.receipt("fit", 0)["placement_sha256"])


def _blocks(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    block: list[Batch] = []
    for batch in batches:
        block.append(batch)
        full = sum(each.documents.num_rows for each in block) >= BLOCK_DOCUMENTS
        if full or sum(each.num_bytes for each in block) >= BLOCK_BYTES:
            yield block
            block = []
    if block:
        yield block


class _Unit:
    """What a unit's placed documents are so far."""

    def __init__(self, placer: Placer, losers: npt.NDArray[np.int64], encoded: npt.NDArray[np.int64], encoded_ND: Floats) -> None:
        self._placer = placer
        self._losers = losers
        self._encoded = encoded
        self._encoded_ND = encoded_ND
        self._ordinal = 0
        self._placed: list[pa.Table] = []
        self.read = Amount()
        self._published = Amount()
        self._duplicates: dict[str, Amount] = {}
        self._quarantined: dict[str, Amount] = {}
        self.rejected: list[pa.RecordBatch] = []
        self.exclusions: list[pa.RecordBatch] = []
        self.kept: list[pa.RecordBatch] = []

    def take(self, block: list[Batch]) -> None:
        """Place consecutive batches, and set aside what has no place."""
        self.read += sum((Amount(records=batch.num_records, bytes=batch.num_bytes) for batch in block), Amount())
        documents = pa.Table.from_batches([batch.documents for batch in block])
        ordinals = np.arange(self._ordinal, self._ordinal + documents.num_rows)
        self._ordinal += documents.num_rows
        repeated = np.isin(ordinals, self._losers)
        self._duplicates = add_amounts(self._duplicates, self._set_aside(documents, repeated, DUPLICATE_ID))
        documents, ordinals = documents.filter(pa.array(~repeated)), ordinals[~repeated]
        embeddings_ND = self._encode(documents, ordinals)
        placeable = is_unit(embeddings_ND)
        self._quarantined = add_amounts(self._quarantined, self._set_aside(documents, ~placeable, ZERO_VECTOR))
        documents, embeddings_ND = documents.filter(pa.array(placeable)), embeddings_ND[placeable]
        self._published += _amount(documents)
        self._placed.append(self._place(documents, embeddings_ND))
        if self._placer.keep_embeddings and len(embeddings_ND):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_ND.ravel()), embeddings_ND.shape[1])
            columns = [documents["doc_id"].combine_chunks(), pa.array(ordinals[placeable]), vectors]
            self.kept.append(pa.record_batch(columns, schema=schema.embeddings(embeddings_ND.shape[1])))

    def _encode(self, documents: pa.Table, ordinals: npt.NDArray[np.int64]) -> Floats:
        known = np.isin(ordinals, self._encoded)
        if not known.any():
            return self._placer.encoder().encode(documents["text"].to_pylist())
        embeddings_ND = np.empty((len(ordinals), self._encoded_ND.shape[1]), np.float32)
        if not known.all():
            embeddings_ND[~known] = self._placer.encoder().encode(documents.filter(pa.array(~known))["text"].to_pylist())
        embeddings_ND[known] = self._encoded_ND[np.searchsorted(self._encoded, ordinals[known])]
        return embeddings_ND

    def _set_aside(self, documents: pa.Table, which: npt.NDArray[np.bool_], reason: str) -> dict[str, Amount]:
        if not which.any():
            return {}
        rows = documents.filter(pa.array(which))
        texts = [text.encode() for text in rows["text"].to_pylist()]
        columns = {
            "source_path": rows["source_path"].combine_chunks(),
            "source_row": rows["source_row"].combine_chunks(),
            "byte_offset": pa.nulls(len(texts), pa.int64()),
            "reason": [reason] * len(texts),
            "detail": [_DETAILS[reason]] * len(texts),
            "num_bytes": rows["record_bytes"].combine_chunks(),
            "sha256": [hashlib.sha256(text).hexdigest() for text in texts],
            "record": [text[:4096] for text in texts],
            "doc_id": rows["doc_id"].combine_chunks(),
        }
        aside = pa.record_batch(list(columns.values()), schema=schema.QUARANTINE)
        self.rejected.append(aside)
        return amounts_by_reason(aside)

    def _place(self, documents: pa.Table, embeddings_ND: Floats) -> pa.Table:
        placed = self._placer.rule.place(embeddings_ND)
        names = np.array([domain_name(k) for k in range(self._placer.rule.num_domains)])
        no_second = np.isnan(placed.second_distance)
        texts = documents["text"].to_pylist()
        encoded = [text.encode() for text in texts]
        counter = self._placer.counter
        computed = {
            "text_sha256": [hashlib.sha256(text).hexdigest() for text in encoded],
            "domain": names[placed.domain],
            "distance": placed.distance,
            "second_domain": pa.array(names[placed.second_domain], mask=no_second),
            "second_distance": pa.array(placed.second_distance, mask=no_second),
            "margin": pa.array(placed.margin, mask=no_second),
            "placed_by": [PLACED_BY_CENTROIDS] * len(texts),
            "confidence": pa.nulls(len(texts), pa.float32()),
            "num_bytes": [len(text) for text in encoded],
            "num_tokens": counter.count(texts) if counter else pa.nulls(len(texts), pa.int32()),
            "split": np.array(schema.SPLITS)[self._splits(documents, texts)],
        }
        names_in_order = self._placer.document_schema.names
        columns = [computed[name] if name in computed else documents[name] for name in names_in_order]
        return pa.table(columns, schema=self._placer.document_schema)

    def _splits(self, documents: pa.Table, texts: list[str]) -> npt.NDArray[np.int64]:
        heldout = chosen(heldout_hashes(self._placer.seed, documents), self._placer.heldout_fraction)
        splits = np.where(heldout, HELDOUT, TRAIN)
        index = self._placer.near
        if index is None:
            return splits
        others = np.flatnonzero(~heldout)
        matches = index.matches(shingle([texts[row] for row in others]))
        near = np.flatnonzero(matches.document >= 0)
        splits[others[near]] = EXCLUDED
        near_ids = documents["doc_id"].take(pa.array(others[near])).combine_chunks()
        heldout_ids = [index.doc_id(row) for row in matches.document[near].tolist()]
        self.exclusions.append(pa.record_batch([near_ids, heldout_ids, matches.similarity[near]], schema=schema.EXCLUSIONS))
        return splits

    def table(self) -> pa.Table:
        """Return the placed documents in the order of the input."""
        return pa.concat_tables(self._placed) if self._placed else self._placer.document_schema.empty_table()

    def facts(self) -> dict[str, Any]:
        """Return what the receipt says of the unit."""
        return {
            "documents": self._published.records,
            "published": self._published.model_dump(),
            "quarantined": {reason: amount.model_dump() for reason, amount in self._quarantined.items()},
            "duplicates": {rule: amount.model_dump() for rule, amount in self._duplicates.items()},
        }


_DETAILS: Final = {
    DUPLICATE_ID: "an earlier document has this id",
    ZERO_VECTOR: "the encoder finds nothing in the text: it gives no finite unit vector, so the text has no place",
}


def _amount(documents: pa.Table) -> Amount:
    return Amount(records=documents.num_rows, bytes=pc.sum(documents["record_bytes"]).as_py() or 0)
