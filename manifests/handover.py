"""Hands some domains over as a manifest of their own, which verifies, reads and trains as any other.

```
data files of the domains, plan, rule ─hard link, else a copy whose digest is checked─► the same names
domain table, ids, exclusions         ─filter────────────────────────────────────────► new files
                                      ─► commit 0, `exported_from` ─► card ─► renamed into place
```

The rule stays whole, so that every document is placed again alike; domains keep their names, so these have gaps. Quarantine and
kept vectors stay behind, and the gate's findings, which are on all domains: `read` is what is published. Nothing is signed or
encrypted: `exported_from` says which manifest it claims to come from.

Cost: the ids index once, one range of it in memory; data files are linked, or copied once where a link cannot be. A linked file
is checked for its size only: `lmsplit verify --deep` digests it.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import Amount, Body, Counts, ExportedFrom, FileEntry, digest, write_commit
from lmsplit.manifests.errors import ConfigurationError, DamagedError
from lmsplit.manifests.export import Progress, chosen_domains, new_directory
from lmsplit.manifests.layout import SHA_DIGITS, WORK, domains_path, exclusions_path, ids_path
from lmsplit.manifests.parquet import read_rows
from lmsplit.manifests.reader import Domain, Manifest, placement_files
from lmsplit.manifests.store import LocalStore, Store, file_sha256

_CHUNK_BYTES: Final = 1 << 20
_INDEX_ROWS: Final = 65_536
"""Rows of a row group of the index: a look-up reads one."""

_NO_LINK: Final = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK}


def export_manifest(manifest: Manifest, output: Path, domains: Sequence[str], progress: Progress | None = None) -> Manifest:
    """Make a manifest of some domains.

    Args:
        manifest: the manifest they are in.
        output: the directory to make.
        domains: their names, at least one.
        progress: called with the bytes of the files taken over since the last call.

    Returns:
        The new manifest, opened. The same manifest and domains always give the same body, with the same version of pyarrow.

    Raises:
        ConfigurationError: no domain is named, or `output` exists or cannot be there.
        ManifestError: there is no such domain.
        DamagedError: a file of the manifest is missing, or not what was published.
    """
    if not domains:
        raise ConfigurationError("a hand-over needs at least one domain: name those that lmsplit show lists")
    chosen = chosen_domains(manifest, domains)
    with new_directory(manifest, output) as building:
        store = LocalStore(building)
        carried = _carried(manifest, chosen)
        for entry in carried:
            _carry(manifest.store, store, entry)
            if progress is not None:
                progress(entry.bytes)
        table = _domain_table(manifest, store, chosen)
        files = [*carried, table, *_index(manifest, store, chosen), *_exclusions(manifest, store, chosen)]
        commit = write_commit(store, _body(manifest, chosen, files, table.path), 0)
        write_card(Manifest(store, 0, commit))
        store.remove(WORK)
    return Manifest.open(output if "@" not in output.name else f"{output}/")


def _body(manifest: Manifest, chosen: Sequence[Domain], files: Iterable[FileEntry], domains: str) -> Body:
    parent = manifest.body
    origin = ExportedFrom(commit=manifest.digest, domains=tuple(domain.domain for domain in chosen))
    text_bytes = sum(domain.num_bytes for domain in chosen)
    published = Amount(records=sum(domain.documents for domain in chosen), bytes=text_bytes)
    counted = parent.counts.tokens is not None
    return parent.model_copy(
        update={
            "parent": None,
            "run_id": digest(origin.model_dump(mode="json"))[:SHA_DIGITS],
            "files": tuple(sorted(files, key=lambda entry: entry.path)),
            "domains": domains,
            "counts": Counts(
                read=published,
                published=published,
                quarantined={},
                duplicates={},
                text_bytes=text_bytes,
                tokens=sum(domain.num_tokens or 0 for domain in chosen) if counted else None,
            ),
            "splits": {split: sum(domain.splits[split] for domain in chosen) for split in schema.SPLITS},
            "gate": None,
            "tombstones": (),
            "exported_from": origin,
        }
    )


def _carried(manifest: Manifest, chosen: Sequence[Domain]) -> list[FileEntry]:
    """Return the files that the new manifest has unchanged."""
    rule = placement_files(manifest.body)
    whole = {manifest.body.plan, rule["rule"], rule["arrays"]}
    entries = [entry for entry in manifest.body.files if entry.path in whole]
    return entries + [entry for domain in chosen for entry in manifest.data_files(domain.domain)]


def _carry(source: Store, target: LocalStore, entry: FileEntry) -> None:
    try:
        size = source.facts(entry.path).num_bytes
    except FileNotFoundError as error:
        raise _damaged(source, entry, f"{entry.bytes} bytes", "no file") from error
    if size != entry.bytes:
        raise _damaged(source, entry, f"{entry.bytes} bytes", f"{size} bytes")
    if not (isinstance(source, LocalStore) and _linked(source.path(entry.path), target.path(entry.path))):
        _copy(source, target, entry)


def _linked(origin: Path, path: Path) -> bool:
    """Link a file where the file systems allow it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin.resolve(), path)  # a downloaded manifest may be symbolic links
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def _copy(source: Store, target: LocalStore, entry: FileEntry) -> None:
    found = hashlib.sha256()
    with target.spool() as spooled:
        with source.open(entry.path) as reading, spooled.open("wb") as writing:
            while chunk := reading.read(_CHUNK_BYTES):
                found.update(chunk)
                writing.write(chunk)
        if found.hexdigest() != entry.sha256:
            raise _damaged(source, entry, f"sha256 {entry.sha256}", f"sha256 {found.hexdigest()}")
        target.put(spooled, entry.path)


def _damaged(source: Store, entry: FileEntry, expected: str, found: str) -> DamagedError:
    message = f"{source.where(entry.path)} should have {expected}, found {found}: run lmsplit verify {source.location} --deep"
    return DamagedError(entry.path, message)


def _domain_table(manifest: Manifest, store: LocalStore, chosen: Sequence[Domain]) -> FileEntry:
    entry = next(entry for entry in manifest.body.files if entry.path == manifest.body.domains)
    names = pa.array([domain.domain for domain in chosen])
    tables = _filtered(manifest, entry, schema.DOMAINS, pc.field("domain").isin(names))
    return _written(store, tables, schema.DOMAINS, domains_path)


def _index(manifest: Manifest, store: LocalStore, chosen: Sequence[Domain]) -> Iterator[FileEntry]:
    """Write the index with the ranges that the manifest has: what is filtered stays sorted."""
    wanted = pc.field("domain").isin(pa.array([domain.domain for domain in chosen]))
    for entry in manifest.body.files:
        if entry.path.startswith("ids/"):
            number = int(entry.path.removeprefix("ids/").split("-")[0])
            tables = _filtered(manifest, entry, schema.IDS, wanted)
            yield _written(store, tables, schema.IDS, partial(ids_path, number))


def _exclusions(manifest: Manifest, store: LocalStore, chosen: Sequence[Domain]) -> Iterator[FileEntry]:
    """Write why documents are excluded; the held-out ones that they nearly repeat may be in domains that stay behind."""
    entries = [entry for entry in manifest.body.files if entry.path.startswith("exclusions/")]
    if not entries or not any(domain.splits["excluded"] for domain in chosen):
        return
    batches = (batch for domain in chosen for batch in manifest.documents(domain.domain, "excluded", ["doc_id"]))
    wanted = pc.field("doc_id").isin(
        pa.array([doc_id for batch in batches for doc_id in batch["doc_id"].to_pylist()], pa.string())
    )
    tables = (table for entry in entries for table in _filtered(manifest, entry, schema.EXCLUSIONS, wanted))
    yield _written(store, tables, schema.EXCLUSIONS, partial(exclusions_path, 0))


def _filtered(manifest: Manifest, entry: FileEntry, columns: pa.Schema, wanted: pc.Expression) -> Iterator[pa.Table]:
    try:
        yield read_rows(manifest.store, entry.path, columns.names, wanted).cast(columns)
    except (OSError, pa.ArrowException, ValueError) as error:
        where = manifest.store.where(entry.path)
        raise DamagedError(entry.path, f"{where} cannot be read ({error}): run lmsplit verify --deep") from error


def _written(store: LocalStore, tables: Iterable[pa.Table], columns: pa.Schema, path_of: Callable[[str], str]) -> FileEntry:
    rows = 0
    with store.spool() as spooled:
        with pq.ParquetWriter(spooled, columns, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=_INDEX_ROWS)
                rows += table.num_rows
        sha256 = file_sha256(spooled)
        entry = FileEntry(path=path_of(sha256), bytes=spooled.stat().st_size, rows=rows, sha256=sha256)
        store.put(spooled, entry.path)
    return entry
