"""Reads every document once, cheaply: counts, sets rejects aside, proposes the sample, lists the ids.

```
unit ─► records ─► rejected   records that are no documents, with the reason
                ├► notes      how many are documents, but odd ones; which files have no record
                ├► sample     documents whose H(seed, "sample", id) is below the planned threshold
                └► ids        (hash of id, id, ordinal) for the settling of duplicates
```

One task per work unit. Memory: the ids of a unit and its share of the sample. It does *not* encode and decides no split.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests.commit import Amount
from lmsplit.manifests.schema import QUARANTINE
from lmsplit.manifests.sentence import CHARACTERS_PER_TOKEN
from lmsplit.partition.config import Partition
from lmsplit.partition.hashing import chosen, heldout_hashes, id_hashes, keyed_hashes
from lmsplit.partition.lexical import MAX_CHARACTERS
from lmsplit.partition.planning import Planned
from lmsplit.partition.records import Batch
from lmsplit.partition.run import Run
from lmsplit.partition.tokens import TokenCounter

SAMPLE = pa.schema(
    [
        ("sample_hash", pa.uint64()),
        ("unit", pa.int64()),
        ("ordinal", pa.int64()),
        ("doc_id", pa.string()),
        ("heldout_hash", pa.uint64()),
        ("source", pa.string()),
        ("weight", pa.int64()),
        ("text", pa.string()),
    ]
)
"""`weight` is the length of the whole text, in tokens of the configured tokenizer or in bytes; `text` is its beginning."""
IDS = pa.schema(
    [
        ("id_hash", pa.uint64()),
        ("doc_id", pa.string()),
        ("unit", pa.int64()),
        ("ordinal", pa.int64()),
        ("source_path", pa.string()),
        ("source_row", pa.int64()),
    ]
)
"""`ordinal` counts the accepted documents of a unit, from 0: with the unit, it names a document for the whole run."""

NUL_CHARACTER: Final = "nul_character"
REPEATED_KEY: Final = "repeated_key"
EMPTY_FILE: Final = "empty_file"
_NOTES: Final = {
    NUL_CHARACTER: "documents have a NUL character in their text, which is kept: some programs end a text there",
    REPEATED_KEY: "documents come from JSON with a key more than once, of which the last value was taken",
    EMPTY_FILE: "input files have no record: leave them out if that is right",
}
_NAMED_FILES: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """The scan stage.

    Args:
        run: the run.
        name: `scan`, or `rescan`, which proposes more where the first came out short.
    """

    run: Run
    name: Literal["scan", "rescan"] = "scan"

    @property
    def num_tasks(self) -> int:
        """One per work unit; none of a second scan where the first is enough."""
        return Planned(self.run).num_units if self.name == "scan" or sample_is_short(self.run) else 0

    @cached_property
    def _counter(self) -> TokenCounter | None:
        return Planned(self.run).open_counter()

    def do(self, task: int) -> None:
        """Scan one unit."""
        planned = Planned(self.run)
        fraction = sample_fraction(self.run) if self.name == "scan" else wider_fraction(self.run)
        found = _Found(task, fraction, planned.configuration, self._counter)
        found.without_records = _paths(self.run, task)
        for batch in planned.read(task):
            found.take(batch)
        with self.run.store.spool() as rejected, self.run.store.spool() as sample, self.run.store.spool() as ids:
            pieces = {}
            for name, path, table in (
                ("rejected", rejected, concatenated(found.rejected, QUARANTINE)),
                ("sample", sample, concatenated(found.sample, SAMPLE)),
                ("ids", ids, concatenated(found.ids, IDS).sort_by([("id_hash", "ascending"), ("ordinal", "ascending")])),
            ):
                if table.num_rows:
                    pq.write_table(table, path, compression="zstd", write_page_checksum=True, row_group_size=65_536)
                    pieces[name] = path
            self.run.finish(self.name, task, pieces, found.facts())


def warn_of_notes(run: Run) -> dict[str, int]:
    """Warn of what a finished scan found odd: it is kept, and says that the input may not be what it should be.

    Args:
        run: the run.

    Returns:
        How many there are of each kind, without those of which there is none.
    """
    notes: Counter[str] = Counter()
    empty = {file["path"] for file in run.plan["files"]}
    for unit, receipt in enumerate(run.receipts("scan", len(run.plan["units"]))):
        notes.update(receipt["notes"])
        empty -= _paths(run, unit).difference(receipt["without_records"])
    notes[EMPTY_FILE] = len(empty)
    named = f" ({', '.join(sorted(empty)[:_NAMED_FILES])}{', …' if len(empty) > _NAMED_FILES else ''})"
    for note, number in (+notes).items():
        _log.warning("%d %s%s", number, _NOTES[note], named if note == EMPTY_FILE else "")
    return dict(+notes)


def _paths(run: Run, unit: int) -> set[str]:
    return {segment["path"] for segment in run.plan["units"][unit]}


def sample_fraction(run: Run) -> float:
    """Return the share of documents proposed for the sample: twice what is needed."""
    planned = Planned(run)
    return min(1.0, 2 * planned.configuration.wanted_sample() / max(planned.estimated_documents, 1))


def wider_fraction(run: Run) -> float:
    """Return the share that a second scan proposes: three times what is needed, of as many documents as the first one counted."""
    accepted = total(run, "scan", Planned(run).num_units, "accepted").records
    return min(1.0, (3 * wanted_sample(run, "scan") + 100) / max(accepted, 1))


def total(run: Run, stage: str, num_tasks: int, key: str) -> Amount:
    """Return the sum of an amount over a stage's receipts."""
    return sum((Amount.model_validate(receipt[key]) for receipt in run.receipts(stage, num_tasks)), Amount())


def wanted_sample(run: Run, scan: str) -> int:
    """Return how many documents the sample should have, now that a scan has seen how long they are."""
    planned = Planned(run)
    receipts = run.receipts(scan, planned.num_units)
    weights = sum((Weights(**receipt["proposed"]) for receipt in receipts), Weights())
    return planned.configuration.wanted_sample(weights.spread)


def sample_is_short(run: Run) -> bool:
    """Return whether the first scan proposed fewer documents than the sample needs, though there are more."""
    planned = Planned(run)
    accepted = total(run, "scan", planned.num_units, "accepted")
    proposed = sum(receipt["pieces"].get("sample", {"rows": 0})["rows"] for receipt in run.receipts("scan", planned.num_units))
    # Held-out groups and losers are dropped from the proposals, at most a tenth and few.
    return bool(proposed < min(1.2 * wanted_sample(run, "scan"), accepted.records))


def counting_scan(run: Run) -> str:
    """Return the name of the scan that counts, once the first one is done."""
    return "rescan" if sample_is_short(run) else "scan"


def concatenated(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Return the batches as one table of the schema."""
    return pa.Table.from_batches(list(batches), schema)


class Weights(NamedTuple):
    """Moments of the weights of documents."""

    documents: int = 0
    sum: int = 0
    squares: int = 0

    @classmethod
    def of(cls, weights_N: npt.NDArray[np.int64]) -> "Weights":
        """Return the moments of so many weights."""
        return cls(len(weights_N), int(weights_N.sum()), sum(weight * weight for weight in weights_N.tolist()))

    def __add__(self, other: Any) -> "Weights":
        """Add the moments of other documents."""
        return Weights(*(left + right for left, right in zip(self, other, strict=True)))

    @property
    def spread(self) -> float:
        """1 + (standard deviation / mean)²; 1 without documents."""
        return self.documents * self.squares / self.sum**2 if self.sum else 1.0


class _Found:
    """What a scan of one unit has found so far."""

    def __init__(self, unit: int, fraction: float, configuration: Partition, counter: TokenCounter | None) -> None:
        self._unit = unit
        self._fraction = fraction
        self._seed = configuration.seed
        self._max_characters = max(MAX_CHARACTERS, CHARACTERS_PER_TOKEN * configuration.encoder.max_tokens)
        self._counter = counter
        self._weights = Weights()
        self._read = Amount()
        self._accepted = Amount()
        self._quarantined: dict[str, Amount] = {}
        self._notes: Counter[str] = Counter()
        self.without_records: set[str] = set()
        self.rejected: list[pa.RecordBatch] = []
        self.sample: list[pa.RecordBatch] = []
        self.ids: list[pa.RecordBatch] = []

    def take(self, batch: Batch) -> None:
        """Count a batch, and keep its rejects, ids and share of the sample."""
        documents = batch.documents
        first = self._accepted.records
        ids = documents["doc_id"].to_pylist()
        ordinals = np.arange(first, first + len(ids), dtype=np.int64)
        units = np.full(len(ids), self._unit, np.int64)
        self._read += Amount(records=batch.num_records, bytes=batch.num_bytes)
        self._accepted += Amount(records=len(ids), bytes=pc.sum(documents["record_bytes"]).as_py() or 0)
        self._reject(batch.rejected)
        self._note(batch)
        where = [documents[name] for name in ("source_path", "source_row")]
        self.ids.append(pa.record_batch([id_hashes(ids), documents["doc_id"], units, ordinals, *where], schema=IDS))
        hashes = keyed_hashes(self._seed, "sample", ids)
        picked = np.flatnonzero(chosen(hashes, self._fraction))
        rows = documents.take(picked)
        text = pc.utf8_slice_codeunits(rows["text"], 0, self._max_characters)
        heldout = heldout_hashes(self._seed, rows)
        weights = self._weigh(rows["text"])
        self._weights += Weights.of(weights)
        columns = [hashes[picked], units[picked], ordinals[picked], rows["doc_id"], heldout, rows["source"], weights, text]
        self.sample.append(pa.record_batch(columns, schema=SAMPLE))

    def _weigh(self, texts: pa.Array) -> npt.NDArray[np.int64]:
        if self._counter is None:
            return np.asarray(pc.binary_length(texts).to_numpy(zero_copy_only=False), np.int64)
        return np.asarray(self._counter.count(texts.to_pylist()), np.int64)

    def _reject(self, rejected: pa.RecordBatch) -> None:
        self._quarantined = add_amounts(self._quarantined, amounts_by_reason(rejected))
        if rejected.num_rows:
            self.rejected.append(rejected)

    def _note(self, batch: Batch) -> None:
        with_nul = pc.sum(pc.match_substring(batch.documents["text"], "\0")).as_py() or 0
        self._notes.update({NUL_CHARACTER: with_nul, REPEATED_KEY: batch.num_repeated_keys})
        for rows in (batch.documents, batch.rejected):
            self.without_records.difference_update(pc.unique(rows["source_path"]).to_pylist())

    def facts(self) -> dict[str, Any]:
        """Return what the receipt says of the unit."""
        return {
            "documents": self._accepted.records,
            "read": self._read.model_dump(),
            "accepted": self._accepted.model_dump(),
            "proposed": self._weights._asdict(),
            "quarantined": {reason: amount.model_dump() for reason, amount in sorted(self._quarantined.items())},
            "notes": dict(+self._notes),
            "without_records": sorted(self.without_records),
        }


def amounts_by_reason(rejected: pa.RecordBatch) -> dict[str, Amount]:
    """Return how many records, of how many raw bytes, were rejected for each reason."""
    records: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for reason, size in zip(rejected["reason"].to_pylist(), rejected["num_bytes"].to_pylist(), strict=True):
        records[reason] += 1
        num_bytes[reason] += size
    return {reason: Amount(records=records[reason], bytes=num_bytes[reason]) for reason in records}


def add_amounts(left: dict[str, Amount], right: dict[str, Amount]) -> dict[str, Amount]:
    """Add two tables of amounts."""
    return {key: left.get(key, Amount()) + right.get(key, Amount()) for key in sorted({*left, *right})}


def parse_amounts(values: Mapping[str, Any]) -> dict[str, Amount]:
    """Read a table of amounts from a receipt."""
    return {key: Amount.model_validate(value) for key, value in values.items()}
