"""What `verify --deep` reads inside the data: texts, ids, splits, and the placement of a sample.

```
held-out files, then the others:
  each row ─► text digest and length ─► tokens ─► domain and split of its file ─► its id, folded into one sum
held-out groups ─► no training row may share one; exclusions ─► an excluded row, for the sake of a held-out one
quarantine ─► records and bytes of each reason, as counted in the commit
ids index ─► sorted, unique, and the same sum: so it names exactly the rows that are there
sample ─► text placed again by the stored rule
```

Memory: one batch, the held-out groups and the exclusions. Cost: a SHA-256 of every text.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests.commit import Amount, FileEntry
from lmsplit.manifests.findings import Finding
from lmsplit.manifests.placement import Encoder, is_unit
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.statistics import splits_by_file

_REMEDY: Final = "do not train on it: make the manifest anew and report this"
_MAX_EACH: Final = 3


def verify_contents(manifest: Manifest, sample: int, encoder: Encoder | None) -> list[Finding]:
    """Check the contents of a manifest whose files and counts are sound.

    Args:
        manifest: the manifest.
        sample: how many documents to place again.
        encoder: the manifest's own; may be None where the sample is empty.

    Returns:
        What is wrong: at most three findings of a kind for a data file, for the index, and for the sample.
    """
    split_of = splits_by_file(manifest)
    rows = _Rows(manifest)
    findings: list[Finding] = []
    heldout_first = sorted(manifest.data_files(), key=lambda entry: split_of[entry.path] != "heldout")
    for entry in heldout_first:
        findings += _first(rows.check(entry, split_of[entry.path]))
    findings += _text_bytes(manifest, rows.text_bytes)
    findings += _tokens(manifest, rows)
    findings += _aside(manifest)
    findings += _first(_index(manifest, rows.id_sum))
    if encoder is not None:
        findings += _first(_placement(manifest, sample, encoder))
    return findings


def _first(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the first three findings of each code: one broken file must not drown the rest."""
    seen: Counter[str] = Counter()
    for finding in findings:
        seen[finding.code] += 1
        if seen[finding.code] <= _MAX_EACH:
            yield finding


def _text_bytes(manifest: Manifest, found: int) -> Iterator[Finding]:
    expected = manifest.body.counts.text_bytes
    if expected != found:
        yield Finding("counts", "text_bytes", f"{expected} bytes", f"{found} bytes", _REMEDY)


def _tokens(manifest: Manifest, rows: "_Rows") -> Iterator[Finding]:
    """A count in every row, which add up to the commit's, or in none."""
    expected = manifest.body.counts.tokens
    if expected is None and rows.num_counted:
        yield Finding("counts", "tokens", "null in every row", f"a number in {rows.num_counted} rows", _REMEDY)
    elif expected is not None and (rows.num_uncounted or rows.tokens != expected):
        found = f"{rows.tokens} tokens, null in {rows.num_uncounted} rows"
        yield Finding("counts", "tokens", f"{expected} tokens, null in 0 rows", found, _REMEDY)


def _aside(manifest: Manifest) -> Iterator[Finding]:
    counts = manifest.body.counts
    expected = {**counts.quarantined, **counts.duplicates}
    found: dict[str, Amount] = {}
    for entry in manifest.body.files:
        if entry.path.startswith("quarantine/"):
            for batch in _batches(manifest, entry, ["reason", "num_bytes"]):
                for reason, num_bytes in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    found[reason] = found.get(reason, Amount()) + Amount(records=1, bytes=num_bytes)
    for reason in sorted(expected.keys() | found.keys()):
        said, counted = expected.get(reason, Amount()), found.get(reason, Amount())
        if said != counted:
            yield Finding("counts", f"quarantine {reason}", str(said), str(counted), _REMEDY)


class _Rows:
    """Checks the rows of data files, and remembers held-out groups, the sum of the ids, the bytes of text and the tokens."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._heldout: set[str] = set()
        self.id_sum = 0
        self.text_bytes = 0
        reasons = _exclusions(manifest)
        self._has_reasons = reasons is not None
        self._reasons = reasons or {}
        self._near = set(self._reasons.values())
        self.tokens = 0
        self.num_counted = 0
        self.num_uncounted = 0

    def check(self, entry: FileEntry, split: str) -> Iterator[Finding]:
        """Yield what is wrong with the rows of one data file."""
        domain, part = entry.path.split("/")[1], int(entry.path.split("part-")[1].split("-")[0])
        row = 0
        columns = ["doc_id", "text", "group", "text_sha256", "domain", "num_bytes", "split"]
        for batch in _batches(self._manifest, entry, [*columns, "num_tokens"]):
            self._count(batch.column("num_tokens"))
            values = [batch.column(name).to_pylist() for name in columns]
            for doc_id, text, group, sha256, in_domain, num_bytes, in_split in zip(*values, strict=True):
                data = text.encode()
                where = f"{entry.path} row {row} ({doc_id})"
                if (found := hashlib.sha256(data).hexdigest()) != sha256:
                    yield Finding("text_digest", where, sha256, found, _REMEDY)
                if len(data) != num_bytes:
                    yield Finding("text_length", where, f"{num_bytes} bytes", f"{len(data)} bytes", _REMEDY)
                if (in_domain, in_split) != (domain, split):
                    yield Finding("wrong_file", where, f"{domain}, {split}", f"{in_domain}, {in_split}", _REMEDY)
                yield from self._excluded(where, doc_id, split)
                yield from self._leak(where, sha256 if group is None else f"group {group}", split)
                self.id_sum += _id_number(doc_id, domain, part, row)
                self.text_bytes += len(data)
                row += 1

    def _count(self, num_tokens: pa.Array) -> None:
        self.tokens += pc.sum(num_tokens).as_py() or 0
        self.num_uncounted += num_tokens.null_count
        self.num_counted += len(num_tokens) - num_tokens.null_count

    def _excluded(self, where: str, doc_id: str, split: str) -> Iterator[Finding]:
        """Every reason is that of an excluded document; where reasons are given at all, each of them has one."""
        if split == "excluded" and self._has_reasons and doc_id not in self._reasons:
            yield Finding("exclusions", where, "a row that says why it is excluded", "none", _REMEDY)
        if split != "excluded" and doc_id in self._reasons:
            yield Finding("exclusions", where, "split excluded", split, _REMEDY)
        if split != "heldout" and doc_id in self._near:
            yield Finding("exclusions", where, "split heldout, as others are excluded for it", split, _REMEDY)

    def _leak(self, where: str, key: str, split: str) -> Iterator[Finding]:
        if split == "heldout":
            self._heldout.add(key)
        elif split == "train" and key in self._heldout:
            yield Finding("heldout_leak", where, "no training document of a held-out group", key, _REMEDY)


def _exclusions(manifest: Manifest) -> dict[str, str] | None:
    """Return which held-out document each excluded one nearly repeats; None where the manifest does not say."""
    entries = [entry for entry in manifest.body.files if entry.path.startswith("exclusions/")]
    if not entries:
        return None
    pairs = (batch.to_pydict() for entry in entries for batch in _batches(manifest, entry, ["doc_id", "heldout_doc_id"]))
    return {doc_id: near for pair in pairs for doc_id, near in zip(pair["doc_id"], pair["heldout_doc_id"], strict=True)}


def _batches(manifest: Manifest, entry: FileEntry, columns: list[str]) -> Iterable[pa.RecordBatch]:
    with pq.ParquetFile(manifest.store.path(entry.path), page_checksum_verification=True) as file:
        yield from file.iter_batches(4096, columns=columns)


def _id_number(doc_id: str, domain: str, part: int, row: int) -> int:
    """A 128-bit number of an index row; equal sums of these mean equal sets of rows, but for 1 chance in 2^128."""
    key = f"{domain}\x00{part}\x00{row}\x00{doc_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")


def _index(manifest: Manifest, expected_sum: int) -> Iterator[Finding]:
    found_sum = 0
    last: tuple[int, str] = (-1, "")
    for entry in manifest.body.files:
        if not entry.path.startswith("ids/"):
            continue
        for batch in _batches(manifest, entry, ["id_hash", "doc_id", "domain", "part", "row"]):
            for id_hash, doc_id, domain, part, row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if (id_hash, doc_id) <= last:
                    yield Finding("ids_order", entry.path, "ids that rise and are unique", f"{doc_id} after {last[1]}", _REMEDY)
                if id_hash != int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big"):
                    yield Finding("ids_hash", entry.path, f"the hash of {doc_id}", str(id_hash), _REMEDY)
                last = (id_hash, doc_id)
                found_sum += _id_number(doc_id, domain, part, row)
    if found_sum != expected_sum:
        yield Finding("ids_rows", "ids", "every document with its place", "other documents or places", _REMEDY)


def _placement(manifest: Manifest, sample: int, encoder: Encoder) -> Iterator[Finding]:
    rows = _sample(manifest, sample)
    if not rows:
        return
    rule = manifest.rule()
    embeddings_ND = encoder.encode([row["text"] for row in rows])
    if not is_unit(embeddings_ND).all():
        yield Finding("placement", "data", "a unit vector for every text", "a text without one", _REMEDY)
        return
    placed = rule.place(embeddings_ND)
    for index, row in enumerate(rows):
        domain, distance = f"d{placed.domain[index]:05d}", float(placed.distance[index])
        near_tie = row["margin"] is not None and row["margin"] <= 2 * encoder.tolerance
        moved = domain != row["domain"] and not near_tie
        if moved or (abs(distance - row["distance"]) > encoder.tolerance and domain == row["domain"]):
            expected = f"{row['domain']} at {row['distance']:.6f}"
            yield Finding("placement", row["doc_id"], expected, f"{domain} at {distance:.6f}", _REMEDY)


def _sample(manifest: Manifest, size: int) -> list[dict[str, Any]]:
    """Draw rows at random over all files, the same for the same commit."""
    entries = manifest.data_files()
    offsets = np.cumsum([0, *(entry.rows or 0 for entry in entries)])
    generator = np.random.default_rng(int(manifest.digest[:16], 16))
    drawn = np.sort(generator.choice(offsets[-1], min(size, int(offsets[-1])), replace=False))
    rows: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        wanted = drawn[(drawn >= offsets[index]) & (drawn < offsets[index + 1])] - offsets[index]
        start = 0
        for batch in _batches(manifest, entry, ["doc_id", "text", "domain", "distance", "margin"]) if len(wanted) else ():
            inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
            rows += batch.take(pa.array(inside)).to_pylist()
            start += batch.num_rows
    return rows
