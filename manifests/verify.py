"""`verify`: is this manifest what its commit says? Every finding names its code, the place, what was expected, and a remedy.

```
always   commit digests ─► files and sizes ─► footers: rows, schema ─► counts: conservation, splits, domains ─► card, untracked
--deep   every file's SHA-256 ─► `deep`: texts, ids, splits, placement of a sample
```

Cost: one footer a file, and one pass over the narrow columns that the card counts (domain, source, licences, sizes); with
`--deep` one read of everything. It changes nothing.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Final, Self

import pyarrow as pa

from lmsplit.manifests import schema
from lmsplit.manifests.card import render_card
from lmsplit.manifests.commit import FileEntry, read_commit, versions
from lmsplit.manifests.deep import verify_contents
from lmsplit.manifests.errors import ConfigurationError, DamagedError
from lmsplit.manifests.findings import Finding
from lmsplit.manifests.layout import CARD, FOLDERS, commit_path
from lmsplit.manifests.parquet import read_footer
from lmsplit.manifests.placement import Encoder
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.statistics import splits_by_file
from lmsplit.manifests.store import Store, stream_sha256

_RESTORE: Final = "restore the file from a copy, or make the manifest anew"
_REPORT: Final = "make the manifest anew and report this"
_NO_TOKENS: Final = "null"
_OF_FILES: Final = frozenset({"file_damaged", "file_rows", "file_schema", "file_metadata"})
"""Findings on one file alone, which hold whatever the others are."""


def verify_manifest(
    location: str | Path,
    *,
    deep: bool = False,
    sample: int = 1000,
    texts: bool = False,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> list[Finding]:
    """Check a manifest.

    Args:
        location: as for `Manifest.open`.
        deep: read every file.
        sample: with `deep`, of how many documents to check the text and place it again; this needs the encoder's library, 0
            does not.
        texts: with `deep`, check the text of every document.
        model: directory of the encoder's model, where the manifest knows it by its digests alone.
        trust_remote_code: allow a model that needs it to run its own code.

    Returns:
        What is wrong; nothing for a sound manifest. What the files hold is reported only where all of them are sound.

    Raises:
        ManifestError: there is nothing to check: no manifest, no such commit, or one of an unknown format version.
        ConfigurationError: documents are to be placed again, and the encoder's model or library is not to be had here.
    """
    try:
        manifest = Manifest.open(location)
    except DamagedError as error:
        return [_damaged(error)]
    with _Digests(manifest, deep=deep) as digests:
        encoder, damage = _encoder(manifest, model, trust_remote_code) if deep and sample else (None, [])
        files = list(_files(manifest))
        findings = [*damage, *_footers(manifest, {finding.where for finding in files})]
        if not (files or findings):
            findings = _contents(manifest, encoder, digests, deep=deep, sample=sample, texts=texts)
        files += digests.findings({finding.where for finding in files})
    if files:  # what is read in a broken file, or after one, says nothing
        broken = {finding.where for finding in files}
        findings = [finding for finding in findings if finding.where not in broken and finding.code in _OF_FILES]
    return files + findings + list(_chain(manifest)) + list(_untracked(manifest))


class _Digests:
    """Digests the files in the background, those that are not documents first; contents are looked into as they prove sound."""

    def __init__(self, manifest: Manifest, *, deep: bool) -> None:
        self._manifest = manifest
        self._threads = ThreadPoolExecutor(os.cpu_count())  # hashlib lets other threads run
        entries = sorted(manifest.body.files, key=lambda entry: entry.path.startswith("data/")) if deep else []
        self._found = {entry.path: self._threads.submit(_sha256, manifest.store, entry.path) for entry in entries}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def wait(self, entry: FileEntry) -> None:
        """Wait until a file has proved sound.

        Raises:
            DamagedError: it is not.
        """
        if self._found[entry.path].result() != entry.sha256:
            raise DamagedError(entry.path, f"{entry.path} has another digest")

    def findings(self, broken: set[str]) -> list[Finding]:
        """Return a finding for each file of another digest, but for those that are known to be broken."""
        found = [(entry, self._found[entry.path]) for entry in self._manifest.body.files if entry.path in self._found]
        return [
            Finding("file_digest", entry.path, f"sha256 {entry.sha256}", f"sha256 {digest.result()}", _RESTORE)
            for entry, digest in found
            if entry.path not in broken and digest.result() != entry.sha256
        ]


def _sha256(store: Store, name: str) -> str:
    with store.open(name) as stream:
        return stream_sha256(stream)


def _encoder(manifest: Manifest, model: str | None, trust: bool) -> tuple[Encoder | None, list[Finding]]:
    """Build the encoder before anything is read: what is missing here should not be learned an hour later."""
    placement = [entry for entry in manifest.body.files if entry.path.startswith("placement/")]
    try:
        if any(_sha256(manifest.store, entry.path) != entry.sha256 for entry in placement):
            return None, []  # found again among all the files
    except (FileNotFoundError, IsADirectoryError):
        return None, []
    try:
        return manifest.encoder(model=model, trust_remote_code=trust), []
    except DamagedError as error:
        return None, [_damaged(error)]
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}. Or check all but the placement: --deep --sample 0") from error


def _contents(
    manifest: Manifest, encoder: Encoder | None, digests: _Digests, *, deep: bool, sample: int, texts: bool
) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings += _counts(manifest)
        card = partial(_card, manifest)
        findings += verify_contents(manifest, sample, encoder, digests.wait, card, texts=texts) if deep else card()
    except DamagedError as error:
        findings.append(_damaged(error))
    except Exception:  # whatever reading a broken file may lead to; where all are sound it is a fault of ours
        if not digests.findings(set()):
            raise
    return findings


def _damaged(error: DamagedError) -> Finding:
    return Finding("file_damaged", error.path, "the file that was published", str(error), _RESTORE)


def _files(manifest: Manifest) -> Iterator[Finding]:
    for entry in manifest.body.files:
        try:
            size = manifest.store.facts(entry.path).num_bytes
        except FileNotFoundError:
            yield Finding("file_missing", entry.path, f"{entry.bytes} bytes", "no file", _RESTORE)
            continue
        if size != entry.bytes:
            yield Finding("file_size", entry.path, f"{entry.bytes} bytes", f"{size} bytes", _RESTORE)


def _footers(manifest: Manifest, broken: set[str]) -> Iterator[Finding]:
    body = manifest.body
    keep = pa.schema([(name, schema.type_named(kind)) for name, kind in body.columns.items()])
    rule = next(entry.sha256 for entry in body.files if entry.path == body.placement)
    data = schema.documents(keep, placement_sha256=rule)
    by_folder = {"data": data, "domains": schema.DOMAINS, "ids": schema.IDS, "quarantine": schema.QUARANTINE}
    by_folder["exclusions"] = schema.EXCLUSIONS
    for entry in manifest.body.files:
        expected = by_folder.get(entry.path.split("/")[0])
        if expected is not None and entry.path not in broken:
            yield from _footer(manifest, entry, expected)


def _footer(manifest: Manifest, entry: FileEntry, expected: pa.Schema) -> Iterator[Finding]:
    try:
        metadata = read_footer(manifest.store, entry.path)
        found = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException, ValueError) as error:  # the last: a name that is no UTF-8
        yield Finding("file_damaged", entry.path, "a Parquet file", str(error), _RESTORE)
        return
    if metadata.num_rows != entry.rows:
        yield Finding("file_rows", entry.path, f"{entry.rows} rows", f"{metadata.num_rows} rows", _RESTORE)
    for expected_field, field in zip_longest(expected, found):
        if expected_field is None or field is None or field != expected_field:
            yield Finding("file_schema", entry.path, _described(expected_field), _described(field), _RESTORE)
            return
    if (found.metadata or {}) != (expected.metadata or {}):
        yield Finding("file_metadata", entry.path, str(expected.metadata), str(found.metadata), _RESTORE)


def _described(field: pa.Field | None) -> str:
    if field is None:
        return "no further column"
    return f"column {field.name}: {field.type}{'' if field.nullable else ' not null'}"


def _counts(manifest: Manifest) -> Iterator[Finding]:
    """The conservation law, and that every table of counts agrees with the files."""
    body, domains, split_of = manifest.body, manifest.domains, splits_by_file(manifest)
    counts = body.counts
    if (other := counts.imbalance()) is not None:
        yield Finding("conservation", "commit", f"read {counts.read}", f"accounted for {other}", _REPORT)
    rows = {folder: sum(e.rows or 0 for e in body.files if e.path.startswith(f"{folder}/")) for folder in FOLDERS}
    aside = [*counts.quarantined.values(), *counts.duplicates.values()]
    published = counts.published.records
    for where, expected, found in (
        ("data", published, rows["data"]),
        ("ids", published, rows["ids"]),
        ("quarantine", sum(amount.records for amount in aside), rows["quarantine"]),
        ("exclusions", body.splits.get("excluded", 0) if rows["exclusions"] else 0, rows["exclusions"]),
        ("splits", published, sum(body.splits.values())),
        ("domains", published, sum(domain.documents for domain in domains)),
        ("domains bytes", counts.text_bytes, sum(domain.num_bytes for domain in domains)),
        ("domains tokens", _NO_TOKENS if counts.tokens is None else counts.tokens, _tokens_of(domains)),
        *((f"split {s}", body.splits.get(s, 0), sum(d.splits[s] for d in domains)) for s in schema.SPLITS),
        *((f"files of split {s}", body.splits.get(s, 0), _rows_of_split(manifest, split_of, s)) for s in schema.SPLITS),
        *((d.domain, d.documents, sum(e.rows or 0 for e in manifest.data_files(d.domain))) for d in domains),
    ):
        if expected != found:
            yield Finding("counts", where, str(expected), str(found), _REPORT)


def _tokens_of(domains: Sequence[Domain]) -> int | str:
    """Return the domains' tokens; they are counted in every domain or in none."""
    counted = [domain.num_tokens for domain in domains if domain.num_tokens is not None]
    if counted and len(counted) < len(domains):
        return f"null in {len(domains) - len(counted)} of {len(domains)} domains"
    return sum(counted) if counted else _NO_TOKENS


def _rows_of_split(manifest: Manifest, split_of: dict[str, str], split: str) -> int:
    return sum(entry.rows or 0 for entry in manifest.data_files() if split_of[entry.path] == split)


def _card(manifest: Manifest) -> Iterator[Finding]:
    newest = versions(manifest.store)[-1] == manifest.version
    if newest and _read_card(manifest.store) != render_card(manifest).encode():
        yield Finding("card", CARD, "the card of the newest commit", "another text", "run lmsplit publish on it again")


def _read_card(store: Store) -> bytes | None:
    try:
        return store.read(CARD)
    except (FileNotFoundError, IsADirectoryError):
        return None


def _chain(manifest: Manifest) -> Iterator[Finding]:
    """Every commit names the one before it, from 0 up to the one that is checked."""
    parent: str | None = None
    existing = set(versions(manifest.store))
    for version in range(manifest.version + 1):
        name = commit_path(version)
        if version not in existing:
            yield Finding("commit_chain", name, "every commit from 0 on", "no file", _RESTORE)
            return
        try:
            commit = read_commit(manifest.store, version)[1]
        except DamagedError:
            return  # found again among what is untracked
        if commit.body.parent != parent:
            yield Finding("commit_chain", name, f"parent {parent}", f"parent {commit.body.parent}", _RESTORE)
            return
        parent = commit.body_sha256


def _untracked(manifest: Manifest) -> Iterator[Finding]:
    store = manifest.store
    known = {commit_path(version) for version in versions(store)}
    for version in versions(store):
        try:
            known |= {entry.path for entry in read_commit(store, version)[1].body.files}
        except DamagedError as error:  # another commit than the one we check; without it we do not know what is tracked
            yield _damaged(error)
            return
    for folder in FOLDERS:
        for name in store.walk(folder):
            if name not in known:
                yield Finding("untracked", name, "only files that a commit names", "another file", "remove it")
