"""What `verify --deep` reads inside the data: ids, splits, counts in whole columns; texts and placement of a sample.

```
held-out files, then the others, a file at a time, without its texts:
  domain and split of its file ─► groups and texts held out ─► exclusions ─► bytes, tokens ─► its ids, folded into one sum
ids index ─► sorted, unique, and the same sum: so it names exactly the rows that are there
quarantine ─► records and bytes of each reason, as counted in the commit
sample (with `texts`: every document) ─► digest and length of the text, hash of the id
sample ─► text placed again by the stored rule
```

A file is read once its digest holds. So a text that contradicts its row was published so: a few show it, and digesting all of
them costs several times what all the rest does (measured: benchmarks/results/audit.md). Memory: the narrow columns of one data
file, the held-out groups and the exclusions.
"""

import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, Final

import polars as pl
import pyarrow as pa

from lmsplit.manifests.commit import Amount, FileEntry
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.findings import Finding
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.parquet import parquet_file, read_columns, read_footer
from lmsplit.manifests.placement import Encoder, is_unit
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.recheck import confirms
from lmsplit.manifests.sample import sample_rows
from lmsplit.manifests.statistics import splits_by_file

_REMEDY: Final = "do not train on it: make the manifest anew and report this"
_MAX_EACH: Final = 3
_SAMPLE_BYTES: Final = 1 << 26
"""Of texts that are read for the sample, at most but for a row group."""
_INDEX: Final = ["doc_id", "domain", "part", "row"]


def verify_contents(
    manifest: Manifest,
    sample: int,
    encoder: Encoder | None,
    wait: Callable[[FileEntry], None],
    beside: Callable[[], Iterator[Finding]],
    *,
    texts: bool = False,
) -> list[Finding]:
    """Check the contents of a manifest whose files and counts are sound.

    Args:
        manifest: the manifest.
        sample: of how many documents to check the text, and to place it again.
        encoder: the manifest's own; None places nothing.
        wait: called before a file is read; returns when its digest holds, and raises where it does not.
        beside: another check that reads files, called once the digests of all of them hold.
        texts: check the text of every document.

    Returns:
        What is wrong: at most three findings of a kind for a data file, for the index, and for the sample.

    Raises:
        DamagedError: a file cannot be read.
    """
    split_of = splits_by_file(manifest)
    for entry in manifest.body.files:
        if not entry.path.startswith("data/"):
            wait(entry)
    rows = _Rows(manifest)
    findings: list[Finding] = []
    heldout = [entry for entry in manifest.data_files() if split_of[entry.path] == "heldout"]
    others = [entry for entry in manifest.data_files() if split_of[entry.path] != "heldout"]

    def check(entry: FileEntry) -> list[Finding]:
        """Return what is wrong with the rows of one data file, once its digest holds."""
        wait(entry)
        found = list(_first(rows.check(entry, split_of[entry.path])))
        return found + (list(_first(_texts(_every_row(manifest, entry)))) if texts else [])

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # reading a column and looking through it lets other threads run
        for entries in (heldout, others):
            findings += chain.from_iterable(threads.map(check, entries))
        parts = (
            partial(_sampled, manifest, sample, encoder, texts=texts),
            rows.totals,
            partial(_aside, manifest),
            lambda: _first(_index(manifest, rows.ids, every_hash=texts)),
            beside,
        )
        findings += chain.from_iterable(threads.map(lambda part: list(part()), parts))
    return findings


def _sampled(manifest: Manifest, size: int, encoder: Encoder | None, *, texts: bool) -> Iterator[Finding]:
    """Check the texts of a sample, unless all are checked, and place it again."""
    columns = [*_TEXT, "domain", "distance", "margin"]
    drawn = sample_rows(manifest, size, columns, _SAMPLE_BYTES).rows if size else []
    if not texts:
        yield from _first(_texts(drawn))
    if encoder is not None:
        yield from _first(_placement(manifest, drawn, encoder))


def _first(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the first three findings of each code: one broken file must not drown the rest."""
    seen: Counter[str] = Counter()
    for finding in findings:
        seen[finding.code] += 1
        if seen[finding.code] <= _MAX_EACH:
            yield finding


class _Ids:
    """A sum over rows of (id, domain, part, row); equal sums mean equal sets of rows, but for 1 chance in 2^64.

    The hashes are seeded anew each time, so that nobody can choose rows whose sums are equal.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed
        self.sum = 0

    def empty(self) -> "_Ids":
        """Return a sum of nothing with the same seed."""
        return _Ids(self._seed)

    def of(self, rows: pl.DataFrame) -> int:
        """Return the sum over rows."""
        rows = rows.select(*(pl.col(name).cast(kind) for name, kind in zip(_INDEX, _INDEX_TYPES, strict=True)))
        return int(rows.hash_rows(self._seed).to_numpy().sum(dtype="uint64"))

    def add(self, part: int) -> None:
        """Add the sum over other rows."""
        self.sum = (self.sum + part) % 2**64


_INDEX_TYPES: Final = (pl.String, pl.String, pl.Int32, pl.Int64)


class _Rows:
    """Checks the rows of data files, in any threads; remembers held-out keys, the sum of the ids, bytes of text and tokens."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._heldout: list[pl.Series] = []
        self.ids = _Ids()
        reasons = _exclusions(manifest)
        self._has_reasons = reasons is not None
        self._reasons = pl.Series(list(reasons or {}), dtype=pl.String)
        self._near = pl.Series(list((reasons or {}).values()), dtype=pl.String).unique()
        self._sums: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check(self, entry: FileEntry, split: str) -> Iterator[Finding]:
        """Yield what is wrong with the rows of one data file."""
        domain, part = entry.path.split("/")[1], int(entry.path.split("part-")[1].split("-")[0])
        columns = ["doc_id", "group", "text_sha256", "num_bytes", "num_tokens"]
        rows = _read(self._manifest, entry, [*columns, *self._unlike(entry, domain, split)]).with_row_index("row")
        self._add(rows, self.ids.of(rows.with_columns(pl.lit(domain).alias("domain"), pl.lit(part).alias("part"))))
        if "domain" in rows.columns:
            for row in _some(rows, (pl.col("domain") != domain) | (pl.col("split") != split)):
                found = f"{row['domain']}, {row['split']}"
                yield Finding("wrong_file", _where(entry.path, row), f"{domain}, {split}", found, _REMEDY)
        yield from self._excluded(entry.path, rows, split)
        yield from self._leak(entry.path, rows, split)

    def _unlike(self, entry: FileEntry, domain: str, split: str) -> list[str]:
        """Return the columns to look into: none where the footer bounds both from both sides by what they should be."""
        metadata = read_footer(self._manifest.store, entry.path)
        names = metadata.schema.to_arrow_schema().names
        for name, value in (("domain", domain), ("split", split)):
            for group in range(metadata.num_row_groups):
                statistics = metadata.row_group(group).column(names.index(name)).statistics
                if statistics is None or not statistics.has_min_max or (statistics.min, statistics.max) != (value, value):
                    return ["domain", "split"]
        return []

    def _add(self, rows: pl.DataFrame, ids: int) -> None:
        tokens = rows["num_tokens"]
        sums = {"bytes": int(rows["num_bytes"].sum()), "tokens": int(tokens.sum()), "null": tokens.null_count()}
        with self._lock:
            self.ids.add(ids)
            self._sums.update({**sums, "rows": len(rows)})

    def _excluded(self, path: str, rows: pl.DataFrame, split: str) -> Iterator[Finding]:
        """Every reason is that of an excluded document; where reasons are given at all, each of them has one."""
        if not self._has_reasons:
            return
        given = pl.col("doc_id").is_in(self._reasons.implode())
        near = pl.col("doc_id").is_in(self._near.implode())
        if split == "excluded":
            for row in _some(rows, ~given):
                yield Finding("exclusions", _where(path, row), "a row that says why it is excluded", "none", _REMEDY)
        else:
            for row in _some(rows, given):
                yield Finding("exclusions", _where(path, row), "split excluded", split, _REMEDY)
        if split != "heldout":
            for row in _some(rows, near):
                expected = "split heldout, as others are excluded for it"
                yield Finding("exclusions", _where(path, row), expected, split, _REMEDY)

    def _leak(self, path: str, rows: pl.DataFrame, split: str) -> Iterator[Finding]:
        if split == "excluded":
            return
        keyed = rows.with_columns(pl.coalesce("group " + pl.col("group"), "text_sha256").alias("key"))
        if split == "heldout":
            with self._lock:
                self._heldout.append(keyed["key"].unique())
        elif self._heldout:
            for row in _some(keyed, pl.col("key").is_in(pl.concat(self._heldout).implode())):
                yield Finding("heldout_leak", _where(path, row), "no training document of a held-out group", row["key"], _REMEDY)

    def totals(self) -> Iterator[Finding]:
        """Bytes of text, and a count of tokens in every row that add up to the commit's, or in none."""
        counts, found = self._manifest.body.counts, self._sums
        if counts.text_bytes != found["bytes"]:
            yield Finding("counts", "text_bytes", f"{counts.text_bytes} bytes", f"{found['bytes']} bytes", _REMEDY)
        if counts.tokens is None:
            if counted := found["rows"] - found["null"]:
                yield Finding("counts", "tokens", "null in every row", f"a number in {counted} rows", _REMEDY)
        elif found["null"] or counts.tokens != found["tokens"]:
            expected = f"{counts.tokens} tokens, null in 0 rows"
            yield Finding("counts", "tokens", expected, f"{found['tokens']} tokens, null in {found['null']} rows", _REMEDY)


def _some(rows: pl.DataFrame, wrong: pl.Expr) -> list[dict[str, Any]]:
    return rows.filter(wrong).head(_MAX_EACH).to_dicts()


def _where(path: str, row: dict[str, Any]) -> str:
    return f"{path} row {row['row']} ({row['doc_id']})"


def _exclusions(manifest: Manifest) -> dict[str, str] | None:
    """Return which held-out document each excluded one nearly repeats; None where the manifest does not say."""
    entries = [entry for entry in manifest.body.files if entry.path.startswith("exclusions/")]
    if not entries:
        return None
    tables = (_read(manifest, entry, ["doc_id", "heldout_doc_id"]) for entry in entries)
    return {doc_id: near for table in tables for doc_id, near in table.iter_rows()}


_TEXT: Final = ["doc_id", "text", "text_sha256", "num_bytes"]


def _every_row(manifest: Manifest, entry: FileEntry) -> Iterator[dict[str, Any]]:
    row = 0
    with parquet_file(manifest.store, entry.path) as file:
        for batch in file.iter_batches(4096, columns=_TEXT):
            values = (batch.column(name).to_pylist() for name in _TEXT)
            for each in zip(*values, strict=True):
                yield {**dict(zip(_TEXT, each, strict=True)), "path": entry.path, "row": row}
                row += 1


def _texts(rows: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """Digest and length of each text."""
    for row in rows:
        data = row["text"].encode()
        if (found := hashlib.sha256(data).hexdigest()) != row["text_sha256"]:
            yield Finding("text_digest", _where(row["path"], row), row["text_sha256"], found, _REMEDY)
        if len(data) != row["num_bytes"]:
            yield Finding("text_length", _where(row["path"], row), f"{row['num_bytes']} bytes", f"{len(data)} bytes", _REMEDY)


def _aside(manifest: Manifest) -> Iterator[Finding]:
    counts = manifest.body.counts
    expected = {**counts.quarantined, **counts.duplicates}
    found: dict[str, Amount] = {}
    for entry in manifest.body.files:
        if entry.path.startswith("quarantine/"):
            sums = pl.len(), pl.col("num_bytes").sum()
            for reason, records, num_bytes in _read(manifest, entry, ["reason", "num_bytes"]).group_by("reason").agg(sums).rows():
                found[reason] = found.get(reason, Amount()) + Amount(records=records, bytes=num_bytes)
    for reason in sorted(expected.keys() | found.keys()):
        said, counted = expected.get(reason, Amount()), found.get(reason, Amount())
        if said != counted:
            yield Finding("counts", f"quarantine {reason}", str(said), str(counted), _REMEDY)


def _index(manifest: Manifest, expected: _Ids, *, every_hash: bool) -> Iterator[Finding]:
    found, last = expected.empty(), pl.DataFrame(schema={"id_hash": pl.UInt64, "doc_id": pl.String})
    for entry in manifest.body.files:
        if not entry.path.startswith("ids/"):
            continue
        rows = _read(manifest, entry, ["id_hash", *_INDEX])
        found.add(found.of(rows))
        ids = pl.concat([last, rows.select("id_hash", "doc_id")]).with_columns(pl.all().shift(1).name.prefix("last_"))
        equal = pl.col("id_hash") == pl.col("last_id_hash")
        for row in _some(
            ids, (pl.col("id_hash") < pl.col("last_id_hash")) | (equal & (pl.col("doc_id") <= pl.col("last_doc_id")))
        ):
            shown = f"{row['doc_id']} after {row['last_doc_id']}"
            yield Finding("ids_order", entry.path, "ids that rise and are unique", shown, _REMEDY)
        step = 1 if every_hash else max(1, len(rows) // _HASHES_OF_FILE)
        for id_hash, doc_id in rows.gather_every(step).select("id_hash", "doc_id").iter_rows():
            if id_hash != int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big"):
                yield Finding("ids_hash", entry.path, f"the hash of {doc_id}", str(id_hash), _REMEDY)
        last = rows.select("id_hash", "doc_id").tail(1)
    if found.sum != expected.sum:
        yield Finding("ids_rows", "ids", "every document with its place", "other documents or places", _REMEDY)


_HASHES_OF_FILE: Final = 1000
"""Ids of an index file whose hash is computed again, evenly chosen, unless all are."""


def _placement(manifest: Manifest, rows: list[dict[str, Any]], encoder: Encoder) -> Iterator[Finding]:
    if not rows:
        return
    embeddings_ND = encoder.encode([row["text"] for row in rows])
    if not is_unit(embeddings_ND).all():
        yield Finding("placement", "data", "a unit vector for every text", "a text without one", _REMEDY)
        return
    placed = manifest.rule().place(embeddings_ND)
    for index, row in enumerate(rows):
        domain, distance = domain_name(int(placed.domain[index])), float(placed.distance[index])
        if not confirms(row, domain, distance, encoder.tolerance):
            expected = f"{row['domain']} at {row['distance']:.6f}"
            yield Finding("placement", row["doc_id"], expected, f"{domain} at {distance:.6f}", _REMEDY)


def _read(manifest: Manifest, entry: FileEntry, columns: list[str]) -> pl.DataFrame:
    try:
        return read_columns(manifest.store, entry.path, columns)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        where = manifest.store.where(entry.path)
        raise DamagedError(entry.path, f"{where} cannot be read ({error}): restore it from a copy") from error
