"""Places every document of a unit: read → encode → place → one piece, sorted by split and domain.

```
unit ─► records ─► minus duplicates ─► vectors ─► minus those without one ─► domain, distance, margin, split
     ─► piece: a row group per (split, domain)        and what was set aside, with the reason
```

One task per work unit; memory is one unit's documents. Placing needs nothing but the document and the rule, so new data lands by
the same rule later. It does *not* gather the domains' files.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests import encoder as encoders
from lmsplit.manifests import schema
from lmsplit.manifests.commit import Amount
from lmsplit.manifests.errors import InputError
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.placement import PLACED_BY_CENTROIDS, Encoder, PlacementFiles, PlacementRule, is_unit, parse_rule
from lmsplit.partition.hashing import chosen
from lmsplit.partition.ids import losers
from lmsplit.partition.planning import Planned
from lmsplit.partition.records import Batch
from lmsplit.partition.run import Run
from lmsplit.partition.scan import add_amounts, amounts_by_reason, concatenated, heldout_hashes

DUPLICATE_ID: Final = "duplicate_id"
ZERO_VECTOR: Final = "zero_vector"
TRAIN, HELDOUT = 0, 1
"""Positions in `schema.SPLITS`."""


@dataclass(frozen=True)
class Place:
    """The place stage.

    Args:
        run: the run.
        scan: name of the scan stage that counts.
    """

    run: Run
    scan: str
    name: str = "place"

    @property
    def num_tasks(self) -> int:
        """One per work unit."""
        return Planned(self.run).num_units

    @cached_property
    def _fit(self) -> dict[str, Any]:
        return self.run.receipt("fit", 0)

    @cached_property
    def _rule(self) -> tuple[PlacementRule, Encoder]:
        arrays, description = (self.run.store.read(entry["path"]) for entry in self._fit["files"])
        stored = parse_rule(PlacementFiles(description, arrays), self._fit["placement"])
        return stored.rule, encoders.build(stored.encoder, stored.encoder_arrays)

    @cached_property
    def _schema(self) -> pa.Schema:
        return document_schema(self.run)

    @cached_property
    def _losers(self) -> pl.DataFrame:
        return losers(self.run)

    def do(self, task: int) -> None:
        """Place one unit.

        Raises:
            InputError: the unit no longer holds the documents that the scan counted.
        """
        planned = Planned(self.run)
        repeated = self._losers.filter(self._losers["unit"] == task)["ordinal"].to_numpy()
        unit = _Unit(planned.configuration.seed, self._fit["heldout_fraction"], self._rule, self._schema, repeated)
        for batch in planned.read(task):
            unit.take(batch)
        if unit.read.model_dump() != self.run.receipt(self.scan, task)["read"]:
            raise InputError(f"unit {task} held other records when it was scanned: run the same command again to plan it anew")
        with self.run.store.spool() as documents, self.run.store.spool() as rejected:
            pieces = {}
            groups = write_piece(unit.table(), documents)
            if groups:
                pieces["documents"] = documents
            aside = concatenated(unit.rejected, schema.QUARANTINE)
            if aside.num_rows:
                pq.write_table(aside, rejected, compression="zstd", write_page_checksum=True)
                pieces["rejected"] = rejected
            self.run.finish(self.name, task, pieces, unit.facts() | {"groups": groups})


def document_schema(run: Run) -> pa.Schema:
    """Return the schema of the run's data files."""
    keep = pa.schema([(name, schema.type_named(kind)) for name, kind in Planned(run).keep])
    return schema.documents(keep, placement_sha256=run.receipt("fit", 0)["placement_sha256"])


class _Unit:
    """What a unit's placed documents are so far."""

    def __init__(
        self,
        seed: int,
        heldout_fraction: float,
        rule: tuple[PlacementRule, Encoder],
        document_schema: pa.Schema,
        loser_ordinals: npt.NDArray[np.int64],
    ) -> None:
        self._seed = seed
        self._heldout_fraction = heldout_fraction
        self._rule, self._encoder = rule
        self._schema = document_schema
        self._losers = loser_ordinals
        self._ordinal = 0
        self._batches: list[pa.RecordBatch] = []
        self.read = Amount()
        self._published = Amount()
        self._duplicates: dict[str, Amount] = {}
        self._quarantined: dict[str, Amount] = {}
        self.rejected: list[pa.RecordBatch] = []

    def take(self, batch: Batch) -> None:
        """Place a batch, and set aside what has no place."""
        self.read += Amount(records=batch.num_records, bytes=batch.num_bytes)
        documents = batch.documents
        ordinals = np.arange(self._ordinal, self._ordinal + documents.num_rows)
        self._ordinal += documents.num_rows
        repeated = np.isin(ordinals, self._losers)
        self._duplicates = add_amounts(self._duplicates, self._set_aside(documents, repeated, DUPLICATE_ID))
        documents = documents.filter(pa.array(~repeated))
        embeddings_ND = self._encoder.encode(documents["text"].to_pylist())
        placeable = is_unit(embeddings_ND)
        self._quarantined = add_amounts(self._quarantined, self._set_aside(documents, ~placeable, ZERO_VECTOR))
        documents = documents.filter(pa.array(placeable))
        self._published += _amount(documents)
        self._batches.append(self._placed(documents, embeddings_ND[placeable]))

    def _set_aside(self, documents: pa.RecordBatch, which: npt.NDArray[np.bool_], reason: str) -> dict[str, Amount]:
        if not which.any():
            return {}
        rows = documents.filter(pa.array(which))
        texts = [text.encode() for text in rows["text"].to_pylist()]
        columns = {
            "source_path": rows["source_path"],
            "source_row": rows["source_row"],
            "byte_offset": pa.nulls(len(texts), pa.int64()),
            "reason": [reason] * len(texts),
            "detail": [_DETAILS[reason]] * len(texts),
            "num_bytes": rows["record_bytes"],
            "sha256": [hashlib.sha256(text).hexdigest() for text in texts],
            "record": [text[:4096] for text in texts],
            "doc_id": rows["doc_id"],
        }
        aside = pa.record_batch(list(columns.values()), schema=schema.QUARANTINE)
        self.rejected.append(aside)
        return amounts_by_reason(aside)

    def _placed(self, documents: pa.RecordBatch, embeddings_ND: npt.NDArray[np.float32]) -> pa.RecordBatch:
        placed = self._rule.place(embeddings_ND)
        names = np.array([domain_name(k) for k in range(self._rule.num_domains)])
        no_second = np.isnan(placed.second_distance)
        heldout = chosen(heldout_hashes(self._seed, documents), self._heldout_fraction)
        texts = [text.encode() for text in documents["text"].to_pylist()]
        computed = {
            "text_sha256": [hashlib.sha256(text).hexdigest() for text in texts],
            "domain": names[placed.domain],
            "distance": placed.distance,
            "second_domain": pa.array(names[placed.second_domain], mask=no_second),
            "second_distance": pa.array(placed.second_distance, mask=no_second),
            "margin": pa.array(placed.margin, mask=no_second),
            "placed_by": [PLACED_BY_CENTROIDS] * len(texts),
            "confidence": pa.nulls(len(texts), pa.float32()),
            "num_bytes": [len(text) for text in texts],
            "num_tokens": pa.nulls(len(texts), pa.int32()),
            "split": np.array(schema.SPLITS)[np.where(heldout, HELDOUT, TRAIN)],
        }
        columns = [computed[name] if name in computed else documents[name] for name in self._schema.names]
        return pa.record_batch([_array(column) for column in columns], schema=self._schema)

    def table(self) -> pa.Table:
        """Return the placed documents in the order of the input."""
        return pa.Table.from_batches(self._batches, self._schema)

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
    ZERO_VECTOR: "no feature of the text is known to the encoder, so it has no place",
}


def _amount(documents: pa.RecordBatch) -> Amount:
    return Amount(records=documents.num_rows, bytes=pc.sum(documents["record_bytes"]).as_py() or 0)


def _array(column: Any) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column)


def write_piece(table: pa.Table, path: Any) -> list[dict[str, Any]]:
    """Write a unit's documents, a row group per (split, domain), each in the order of the input.

    Args:
        table: the documents in the order of the input.
        path: where to write; nothing is written for an empty table.

    Returns:
        What each row group holds, in their order.
    """
    groups: list[dict[str, Any]] = []
    if not table.num_rows:
        return groups
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        for split, domain, rows in _grouped(table):
            writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
            groups.append(
                {
                    "split": split,
                    "domain": domain,
                    "rows": rows.num_rows,
                    "text_bytes": pc.sum(rows["num_bytes"]).as_py(),
                    "distance_sum": float(np.sum(rows["distance"].to_numpy(), dtype=np.float64)),
                }
            )
    return groups


def _grouped(table: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    splits, domains = table["split"].to_numpy(), table["domain"].to_numpy()
    order = np.lexsort((np.arange(table.num_rows), domains, splits))
    changes = np.flatnonzero((splits[order][1:] != splits[order][:-1]) | (domains[order][1:] != domains[order][:-1])) + 1
    for rows in np.split(order, changes):
        yield str(splits[rows[0]]), str(domains[rows[0]]), table.take(rows)
