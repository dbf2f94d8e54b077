"""Finds what became of one id: through the ids index to the document's row, or among what was set aside.

```
doc_id ─► id_hash ─► the one index file of its range ─► domain, part, row ─► the row group that holds the row ─► document
doc_id ─► quarantine/ ─► the records that were set aside under this id
```

Cost: the index is read by one row group, the data file by the wanted columns of one row group, up to the row. What was set aside
has no index: five short columns of it are read, of the row groups whose statistics admit the id. Nothing is cached. Page
checksums are verified, whole files are *not* digested (that is `verify --deep`).
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.manifests.commit import Body, FileEntry
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.layout import data_path, ids_path
from lmsplit.manifests.parquet import parquet_file, read_rows
from lmsplit.manifests.store import Store

Status = Literal["published", "quarantined", "duplicate", "unknown"]
"""What became of an id; later releases add `taken_down`."""

_HASHES: Final = 2**64
_BATCH_ROWS: Final = 1024  # decoded beyond the wanted row at most
_BUFFER_BYTES: Final = 1 << 20  # of each column, instead of its whole chunk in the row group


@dataclass(frozen=True)
class SetAside:
    """A record that was read and not published, as `quarantine/` has it.

    Attributes:
        reason: why, in a short fixed word.
        detail: why, in a sentence.
        source_path: input file, relative to the input root.
        source_row: row or line in it, from 0.
    """

    reason: str
    detail: str | None
    source_path: str
    source_row: int


@dataclass(frozen=True)
class Lookup:
    """What became of an id.

    Attributes:
        doc_id: the id that was asked for.
        status: `published` where a document has the id; else `quarantined` where a record with it was set aside for a reason of
            its own, `duplicate` where it was set aside for another's sake only; else `unknown`.
        domain: the document's domain; None unless published, as the next three.
        path: its data file, relative to the manifest.
        row: its row in that file, from 0.
        document: its columns by name, those that were asked for.
        set_aside: every record that was set aside under the id, in the order of the input, also where another one was published.
    """

    doc_id: str
    status: Status
    domain: str | None = None
    path: str | None = None
    row: int | None = None
    document: dict[str, Any] | None = None
    set_aside: tuple[SetAside, ...] = ()


class _Place(NamedTuple):
    entry: FileEntry
    domain: str
    row: int


def find(store: Store, body: Body, doc_id: str, columns: Sequence[str]) -> Lookup:
    """Look an id up: see `Manifest.find`.

    Args:
        store: the manifest.
        body: what its commit says.
        doc_id: the id.
        columns: existing columns of the document to read; of none, its data file is not opened.

    Raises:
        DamagedError: a file is missing, cannot be read, or the index leads to another document.
    """
    try:
        doc_id.encode()
    except UnicodeEncodeError:  # half a surrogate pair: no manifest can hold it
        return Lookup(doc_id, "unknown")
    aside = tuple(_set_aside(store, body, doc_id))
    place = _place(store, body, doc_id)
    if place is not None:
        document = _document(store, place, doc_id, columns) if columns else {}
        return Lookup(doc_id, "published", place.domain, place.entry.path, place.row, document, aside)
    if not aside:
        return Lookup(doc_id, "unknown")
    own = any(record.reason not in body.counts.duplicates for record in aside)
    return Lookup(doc_id, "quarantined" if own else "duplicate", set_aside=aside)


def _id_hash(doc_id: str) -> int:
    return int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big")


def _place(store: Store, body: Body, doc_id: str) -> _Place | None:
    """Where the index says that the document is; None: the index does not know the id."""
    index = [entry for entry in body.files if entry.path.startswith("ids/")]
    id_hash = _id_hash(doc_id)
    number = id_hash // -(-_HASHES // max(1, len(index)))
    entry = next((entry for entry in index if entry.path == ids_path(number, entry.sha256)), None)
    if entry is None:
        message = f"the commit of {store.location} names no index file number {number}: run lmsplit verify {store.location}"
        raise DamagedError("ids", message)
    wanted = (pc.field("id_hash") == pa.scalar(id_hash, pa.uint64())) & (pc.field("doc_id") == doc_id)
    rows = _rows(store, entry, ["id_hash", "doc_id", "domain", "part", "row"], wanted)
    if not rows:
        return None
    domain, part, row = rows[0]["domain"], rows[0]["part"], rows[0]["row"]
    for data in body.files:
        if data.path == data_path(domain, part, data.sha256):
            return _Place(data, domain, row)
    raise _misled(entry, store, f"{doc_id!r} is in part {part} of {domain}, which the commit does not name")


def _set_aside(store: Store, body: Body, doc_id: str) -> list[SetAside]:
    """Return the records set aside under the id; where none could be read, the place in the input stands for it."""
    wanted = pc.field("doc_id") == doc_id
    path, separator, row = doc_id.rpartition(":")
    if separator and re.fullmatch("0|[1-9][0-9]{0,17}", row):  # within int64
        there = (pc.field("source_path") == path) & (pc.field("source_row") == int(row))
        wanted |= pc.field("doc_id").is_null() & there
    columns = ["reason", "detail", "source_path", "source_row"]
    entries = [entry for entry in body.files if entry.path.startswith("quarantine/")]
    records = [record for entry in entries for record in _rows(store, entry, ["doc_id", *columns], wanted)]
    return [SetAside(**{name: record[name] for name in columns}) for record in records]


def _rows(store: Store, entry: FileEntry, columns: list[str], wanted: pc.Expression) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = read_rows(store, entry.path, columns, wanted).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(entry, store, error) from error
    return rows


def _document(store: Store, place: _Place, doc_id: str, columns: Sequence[str]) -> dict[str, Any]:
    try:
        found = _row(store, place, [*dict.fromkeys(["doc_id", *columns])])
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(place.entry, store, error) from error
    if found is None or found["doc_id"] != doc_id:
        instead = "which the file does not have" if found is None else f"which holds {found['doc_id']!r}"
        raise _misled(place.entry, store, f"{doc_id!r} is row {place.row}, {instead}")
    return {name: found[name] for name in columns}


def _row(store: Store, place: _Place, columns: list[str]) -> dict[str, Any] | None:
    """Read a row of a Parquet file; what follows it is not decoded, and of each column no more than a buffer is held."""
    with parquet_file(store, place.entry.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(accumulate(sizes))
        group = bisect_right(ends, place.row)
        if place.row < 0 or group == len(ends):
            return None
        left = place.row - (ends[group] - sizes[group])
        for batch in file.iter_batches(_BATCH_ROWS, [group], columns):
            if left < batch.num_rows:
                return dict(batch.slice(left, 1).to_pylist()[0])
            left -= batch.num_rows
    return None


def _unreadable(entry: FileEntry, store: Store, error: Exception) -> DamagedError:
    return DamagedError(entry.path, f"{store.where(entry.path)} cannot be read ({error}): run lmsplit verify --deep")


def _misled(entry: FileEntry, store: Store, what: str) -> DamagedError:
    return DamagedError(entry.path, f"{store.where(entry.path)}: the ids index says that {what}: run lmsplit verify --deep")
