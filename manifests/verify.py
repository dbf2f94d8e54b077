"""`verify`: is this manifest what its commit says? Every finding names its code, the place, what was expected, and a remedy.

```
always   commit digests ─► files and sizes ─► footers: rows, schema ─► counts: conservation, splits, domains ─► card, untracked
--deep   every file's SHA-256 ─► `deep`: texts, ids, splits, placement of a sample
```

Cost: one footer a file; with `--deep` one read of everything. It changes nothing.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.card import render_card
from lmsplit.manifests.commit import FileEntry, versions
from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.layout import CARD, COMMITS, FOLDERS, commit_path
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import Store, file_sha256, local_path


class Finding(NamedTuple):
    """One thing that is wrong."""

    code: str
    where: str
    expected: str
    found: str
    remedy: str


_RESTORE = "restore the file from a copy, or make the manifest anew"


def verify_manifest(location: str | Path, *, deep: bool = False, sample: int = 1000) -> list[Finding]:
    """Check a manifest.

    Args:
        location: as for `Manifest.open`.
        deep: read every file.
        sample: with `deep`, how many documents to place again.

    Returns:
        What is wrong; nothing for a sound manifest.

    Raises:
        ManifestError: there is no manifest at all.
    """
    try:
        manifest = Manifest.open(location)
    except ManifestError as error:
        if not versions(Store(local_path(str(location).rpartition("@")[0] or str(location)))) and not _is_directory(location):
            raise
        return [Finding("commit_damaged", str(location), "a whole commit", str(error), _RESTORE)]
    findings = list(_files(manifest))
    broken = {finding.where for finding in findings}
    if deep:
        findings += _digests(manifest, broken)
        broken = {finding.where for finding in findings}
    findings += _footers(manifest, broken)
    if not findings:
        findings += _counts(manifest)
        findings += _card(manifest)
        if deep:
            from lmsplit.manifests.deep import verify_contents

            findings += verify_contents(manifest, sample)
    return findings + list(_untracked(manifest))


def _is_directory(location: str | Path) -> bool:
    return (local_path(str(location)) / COMMITS).is_dir()


def _files(manifest: Manifest) -> Iterator[Finding]:
    for entry in manifest.body.files:
        path = manifest.store.path(entry.path)
        if not path.is_file():
            yield Finding("file_missing", entry.path, f"{entry.bytes} bytes", "no file", _RESTORE)
        elif (size := path.stat().st_size) != entry.bytes:
            yield Finding("file_size", entry.path, f"{entry.bytes} bytes", f"{size} bytes", _RESTORE)


def _digests(manifest: Manifest, broken: set[str]) -> list[Finding]:
    entries = [entry for entry in manifest.body.files if entry.path not in broken]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashlib lets other threads run
        found = threads.map(lambda entry: file_sha256(manifest.store.path(entry.path)), entries)
        return [
            Finding("file_digest", entry.path, f"sha256 {entry.sha256}", f"sha256 {sha256}", _RESTORE)
            for entry, sha256 in zip(entries, found, strict=True)
            if sha256 != entry.sha256
        ]


def _footers(manifest: Manifest, broken: set[str]) -> Iterator[Finding]:
    keep = pa.schema([(name, schema.type_named(kind)) for name, kind in manifest.body.columns.items()])
    by_folder = {"data": schema.documents(keep), "domains": schema.DOMAINS, "ids": schema.IDS, "quarantine": schema.QUARANTINE}
    for entry in manifest.body.files:
        expected = by_folder.get(entry.path.split("/")[0])
        if expected is not None and entry.path not in broken:
            yield from _footer(manifest, entry, expected)


def _footer(manifest: Manifest, entry: FileEntry, expected: pa.Schema) -> Iterator[Finding]:
    try:
        metadata = pq.read_metadata(manifest.store.path(entry.path))
        found = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        yield Finding("footer_damaged", entry.path, "a Parquet footer", str(error), _RESTORE)
        return
    if metadata.num_rows != entry.rows:
        yield Finding("file_rows", entry.path, f"{entry.rows} rows", f"{metadata.num_rows} rows", _RESTORE)
    if not found.equals(expected):
        names = [field.name for field in found if field not in list(expected)] or found.names
        yield Finding("file_schema", entry.path, "the schema of format version 1", f"other columns: {names}", _RESTORE)


def _counts(manifest: Manifest) -> Iterator[Finding]:
    """The conservation law, and that every table of counts agrees with the files."""
    body, domains = manifest.body, manifest.domains
    counts = body.counts
    if (other := counts.imbalance()) is not None:
        yield Finding("conservation", "commit", f"read {counts.read}", f"accounted for {other}", "report this")
    rows = {folder: sum(e.rows or 0 for e in body.files if e.path.startswith(f"{folder}/")) for folder in FOLDERS}
    aside = [*counts.quarantined.values(), *counts.duplicates.values()]
    published = counts.published.records
    for where, expected, found in (
        ("data", published, rows["data"]),
        ("ids", published, rows["ids"]),
        ("quarantine", sum(amount.records for amount in aside), rows["quarantine"]),
        ("splits", published, sum(body.splits.values())),
        ("domains", published, sum(domain.documents for domain in domains)),
        ("domains bytes", counts.text_bytes, sum(domain.num_bytes for domain in domains)),
        *((f"split {s}", body.splits.get(s, 0), sum(d.splits[s] for d in domains)) for s in schema.SPLITS),
        *((d.domain, d.documents, sum(e.rows or 0 for e in manifest.data_files(d.domain))) for d in domains),
    ):
        if expected != found:
            yield Finding("counts", where, str(expected), str(found), "make the manifest anew and report this")


def _card(manifest: Manifest) -> Iterator[Finding]:
    newest = versions(manifest.store)[-1] == manifest.version
    path = manifest.store.path(CARD)
    if newest and (not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != render_card(manifest)):
        yield Finding("card", CARD, "the card of the newest commit", "another text", "run lmsplit publish on it again")


def _untracked(manifest: Manifest) -> Iterator[Finding]:
    store = manifest.store
    known = {entry.path for entry in manifest.body.files} | {commit_path(version) for version in versions(store)}
    for older in versions(store):
        known |= {entry.path for entry in Manifest.open(f"{store.root}@{older}").body.files}
    for folder in FOLDERS:
        for path in sorted(store.path(folder).rglob("*")):
            name = path.relative_to(store.root).as_posix()
            if path.is_file() and name not in known:
                yield Finding("untracked", name, "only files that a commit names", "another file", "remove it")
