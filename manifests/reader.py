"""Opens a manifest and reads it: the domains, the documents, the rule. Follows the commit's `files`, never a listing.

Reading checks the commit's own digests and Parquet's page checksums; it does *not* digest whole files (that is `verify
--deep`). Documents stream: memory is one row group, whatever the manifest's size.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import encoder as encoders
from lmsplit.manifests.commit import Body, Commit, FileEntry, read_commit
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.lookup import Lookup, find
from lmsplit.manifests.parquet import parquet_file, read_rows, scan
from lmsplit.manifests.placement import Encoder, PlacementRule
from lmsplit.manifests.rule_files import PlacementFiles, StoredRule, parse_rule
from lmsplit.manifests.schema import FIXED_COLUMNS, SPLITS, documents, type_named
from lmsplit.manifests.store import LocalStore, Store, file_sha256, open_store

if TYPE_CHECKING:
    from lmsplit.manifests.difference import Diff
    from lmsplit.manifests.explanation import Explanation

PLACEMENT_INDEX = "placement-index.json"


@dataclass(frozen=True)
class Domain:
    """One domain of a manifest, as its domain table has it."""

    domain: str
    path: tuple[int, ...]
    """branches from the root of the tree; one number where domains are flat."""
    label: str
    keywords: tuple[str, ...]
    representatives: tuple[str, ...]
    excerpts: tuple[str, ...]
    documents: int
    num_bytes: int
    num_tokens: int | None
    splits: dict[str, int]
    mean_distance: float | None
    price: float


class Manifest:
    """A published manifest, opened at one commit. Make it with `Manifest.open`."""

    def __init__(self, store: Store, version: int, commit: Commit) -> None:
        self.store = store
        self.version = version
        self.commit = commit
        self._domains: tuple[Domain, ...] | None = None
        self._stored: StoredRule | None = None

    @classmethod
    def open(cls, location: str | Path) -> "Manifest":
        """Open a manifest.

        Args:
            location: its directory or URL, or `<either>@<number>` for an older commit (end it with / if its own name does so).

        Raises:
            ManifestError: there is no manifest, or no such commit, its format version is unknown, or the store cannot be read.
            DamagedError: its commit is not what was published.
            ConfigurationError: the URL cannot be used: see `open_store`.
        """
        directory, separator, version = str(location).rpartition("@")
        if separator and version.isdecimal():
            store = open_store(directory)
            return cls(store, *read_commit(store, int(version)))
        store = open_store(location)
        return cls(store, *read_commit(store))

    @property
    def body(self) -> Body:
        """What the commit says."""
        return self.commit.body

    @property
    def digest(self) -> str:
        """SHA-256 of the commit's body: the manifest's identity."""
        return self.commit.body_sha256

    @property
    def name(self) -> str:
        """What people call it: the last part of its path or URL."""
        location = self.store.location
        return Path(location).resolve().name if self.store.is_local else location.rpartition("/")[2]

    @property
    def schema(self) -> pa.Schema:
        """The columns of its data files."""
        return documents(pa.schema([(name, type_named(kind)) for name, kind in self.body.columns.items()]))

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Every domain, in the order of their names; read once.

        Raises:
            DamagedError: the domain table is missing or cannot be read.
        """
        if self._domains is None:
            self._domains = _read_domains(self.store, self.body.domains)
        return self._domains

    def domain(self, name: str) -> Domain:
        """Return one domain.

        Raises:
            ManifestError: there is none of that name.
        """
        for domain in self.domains:
            if domain.domain == name:
                return domain
        names = [domain.domain for domain in self.domains]
        raise ManifestError(f"{self.store.location} has no domain {name!r}: it has {names[0]} to {names[-1]}")

    def label(self, name: str) -> str | None:
        """Return the label of a domain; None of one that is not here, as a hand-over leaves domains of the rule behind."""
        return next((domain.label for domain in self.domains if domain.domain == name), None)

    def data_files(self, domain: str | None = None) -> list[FileEntry]:
        """Return the data files, of one domain or of all, in the order of their paths."""
        folder = f"data/{domain}/" if domain else "data/"
        return [entry for entry in self.body.files if entry.path.startswith(folder)]

    def documents(
        self, domain: str | None = None, split: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream documents.

        Args:
            domain: of this domain only.
            split: of this split only: train, heldout or excluded.
            columns: these columns only, in this order.

        Yields:
            Batches of at most 4,096 rows in the order of domain, part and row.

        Raises:
            ManifestError: no such domain, split or column.
            DamagedError: a file is missing or cannot be read.
        """
        if domain is not None:
            self.domain(domain)
        if split is not None and split not in SPLITS:
            raise ManifestError(f"there is no split {split!r}: expected one of {', '.join(SPLITS)}")
        self._check_columns(columns or ())
        for entry in self.data_files(domain):
            yield from self._read(entry, split, columns)

    def find(self, doc_id: str, columns: Sequence[str] | None = None) -> Lookup:
        """Find what became of an id: through the index for a document, among the quarantine's ids for what was set aside.

        Args:
            doc_id: the id; a record without one has `<source_path>:<source_row>`.
            columns: read these columns of the document only; all when None. With none, its data file is not opened.

        Raises:
            ManifestError: no such column.
            DamagedError: a file is missing, cannot be read, or the index leads to another document.
        """
        self._check_columns(columns or ())
        every = [*FIXED_COLUMNS, *self.body.columns]
        return find(self.store, self.body, doc_id, every if columns is None else columns)

    def _check_columns(self, columns: Sequence[str]) -> None:
        known = [*FIXED_COLUMNS, *self.body.columns]
        if unknown := [name for name in columns if name not in known]:
            raise ManifestError(f"{self.store.location} has no columns {unknown}: it has {', '.join(known)}")

    def _read(self, entry: FileEntry, split: str | None, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            with parquet_file(self.store, entry.path) as file:
                names = list(columns) if columns is not None else file.schema_arrow.names
                wanted = names if split is None else [*dict.fromkeys([*names, "split"])]
                groups = [g for g in range(file.num_row_groups) if split is None or _may_hold(file, g, split)]
                for batch in file.iter_batches(4096, row_groups=groups, columns=wanted):
                    if split is not None:
                        batch = batch.filter(pa.compute.equal(batch.column("split"), split))
                    if batch.num_rows:
                        yield batch.select(names)
        except (OSError, pa.ArrowException) as error:
            where = self.store.where(entry.path)
            raise DamagedError(entry.path, f"{where} cannot be read ({error}): run lmsplit verify --deep") from error

    def scan(self, domain: str | None = None) -> pl.LazyFrame:
        """Return every document, of one domain or of all, as a polars LazyFrame over the commit's files."""
        return scan(self.store, [entry.path for entry in self.data_files(domain)], self.schema)

    def explain(self, doc_id: str) -> "Explanation":
        """Say where a document is and why: see `lmsplit.manifests.explain`."""
        from lmsplit.manifests.explain import explain

        return explain(self, doc_id)

    def diff(self, other: "Manifest") -> "Diff":
        """Compare this manifest with another one, or another commit of it: see `lmsplit.manifests.diff`."""
        from lmsplit.manifests.diff import diff

        return diff(self, other)

    def _repr_html_(self) -> str:
        """Show the manifest as a table in a notebook."""
        from lmsplit.manifests.notebook import table

        return table(self)

    @property
    def stored_rule(self) -> StoredRule:
        """The placement rule with what pins its encoder; read and digest-checked once."""
        if self._stored is None:
            self._stored = _read_rule(self.store, self.body)
        return self._stored

    @property
    def encoder_name(self) -> str:
        """What encoded the texts, for people: `lexical`, or the model's hub id, or the beginning of its weights' digest."""
        about = self.body.encoder
        model = about.get("model") or (f"weights {about['weights_sha256'][:12]}" if "weights_sha256" in about else None)
        return str(about["kind"]) if model is None else f"{model} ({about['precision']}, {about['max_tokens']} tokens)"

    def rule(self) -> PlacementRule:
        """Return the placement rule."""
        return self.stored_rule.rule

    def encoder(self, *, exact: bool = False, model: str | None = None, trust_remote_code: bool = False) -> Encoder:
        """Build the encoder that the rule was fitted for.

        Args:
            exact: refuse a machine whose vectors would differ in the last bits from those in the manifest.
            model: directory of the model, where the manifest knows it by its digests alone.
            trust_remote_code: allow a model that needs it to run its own code.

        Raises:
            ManifestError: the stored form is damaged, or the model found is another one than pinned.
            ConfigurationError: the model, its library, or (if exact) the same arithmetic is not to be had here.
        """
        stored = self.stored_rule
        return encoders.build(
            stored.encoder, stored.encoder_arrays, exact=exact, model=model, trust_remote_code=trust_remote_code
        )

    def copy_placement(self, directory: Path) -> None:
        """Copy all that placing a text needs into `directory`: see `open_placement`."""
        directory.mkdir(parents=True, exist_ok=True)
        names = placement_files(self.body)
        index = {}
        for role, name in names.items():
            data = self.store.read(name)
            (directory / Path(name).name).write_bytes(data)
            index[role] = {"file": Path(name).name, "sha256": _entry(self.body, name).sha256}
        content = {"manifest": self.digest, "files": index}
        (directory / PLACEMENT_INDEX).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    def __repr__(self) -> str:
        return f"Manifest({self.store.location!r}@{self.version}, {len(self.domains)} domains)"


def placement_files(body: Body) -> dict[str, str]:
    """Return the paths of a rule's description (`rule`), its arrays (`arrays`) and the domain table (`domains`).

    Raises:
        ManifestError: the commit does not name one file of arrays.
    """
    arrays = [entry.path for entry in body.files if entry.path.startswith("placement/") and entry.path != body.placement]
    if len(arrays) != 1:
        raise ManifestError(f"the commit names {len(arrays)} files of arrays for its placement rule, expected 1")
    return {"rule": body.placement, "arrays": arrays[0], "domains": body.domains}


def placement_origin(directory: Path) -> str:
    """Return the digest of the manifest whose rule `Manifest.copy_placement` copied into `directory`.

    Raises:
        ManifestError: there is no copy.
    """
    try:
        return str(json.loads((directory / PLACEMENT_INDEX).read_text(encoding="utf-8"))["manifest"])
    except (OSError, ValueError, KeyError) as error:
        raise ManifestError(f"{directory} holds no placement rule: {error}") from error


def open_placement(
    directory: Path, model: str | None = None, *, trust_remote_code: bool = False
) -> tuple[PlacementRule, Encoder, tuple[Domain, ...]]:
    """Open a copy that `Manifest.copy_placement` made.

    Args:
        directory: the copy.
        model: directory of the encoder's model, where the rule knows it by its digests alone.
        trust_remote_code: allow a model that needs it to run its own code.

    Returns:
        The rule, its encoder (for a text at a time: see `encoder.build`), and the domains.

    Raises:
        ManifestError: a file is missing or its digest is not the one recorded.
        ConfigurationError: the encoder's model or library is not to be had here.
    """
    stored, domains = read_placement(directory)
    encoder = encoders.build(stored.encoder, stored.encoder_arrays, alone=True, model=model, trust_remote_code=trust_remote_code)
    return stored.rule, encoder, domains


def read_placement(directory: Path) -> tuple[StoredRule, tuple[Domain, ...]]:
    """Return the rule of a copy that `Manifest.copy_placement` made, and the domains, without an encoder.

    Raises:
        ManifestError: a file is missing or its digest is not the one recorded.
    """
    try:
        index = json.loads((directory / PLACEMENT_INDEX).read_text())["files"]
        paths = {role: directory / entry["file"] for role, entry in index.items()}
        for role, path in paths.items():
            if (found := file_sha256(path)) != index[role]["sha256"]:
                raise ManifestError(f"{path} should have sha256 {index[role]['sha256']}, found {found}: copy it again")
        stored = parse_rule(PlacementFiles(paths["rule"].read_bytes(), paths["arrays"].read_bytes()), str(paths["rule"]))
        domains = _read_domains(LocalStore(directory), index["domains"]["file"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{directory} holds no placement rule: {error}") from error
    return stored, domains


def _read_rule(store: Store, body: Body) -> StoredRule:
    names = placement_files(body)
    return parse_rule(PlacementFiles(_checked(store, body, names["rule"]), _checked(store, body, names["arrays"])), names["rule"])


def _checked(store: Store, body: Body, name: str) -> bytes:
    try:
        data = store.read(name)
    except FileNotFoundError as error:
        raise DamagedError(name, f"{store.where(name)} is missing: run lmsplit verify {store.location}") from error
    if (found := hashlib.sha256(data).hexdigest()) != _entry(body, name).sha256:
        where = store.where(name)
        raise DamagedError(name, f"{where} has sha256 {found}, the commit says another one: restore it from a copy")
    return data


def _entry(body: Body, path: str) -> FileEntry:
    return next(entry for entry in body.files if entry.path == path)


def _may_hold(file: pq.ParquetFile, group: int, split: str) -> bool:
    """Whether a row group's statistics allow the split; parts hold one split each, so this skips whole files."""
    column = file.schema_arrow.get_field_index("split")
    statistics = file.metadata.row_group(group).column(column).statistics
    return statistics is None or not statistics.has_min_max or statistics.min <= split <= statistics.max


def _read_domains(store: Store, name: str) -> tuple[Domain, ...]:
    try:
        return tuple(map(_domain, read_rows(store, name).to_pylist()))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DamagedError(name, f"{store.where(name)} cannot be read ({error}): run lmsplit verify --deep") from error


def _domain(row: dict[str, Any]) -> Domain:
    return Domain(
        domain=row["domain"],
        path=tuple(row["path"]),
        label=row["label"],
        keywords=tuple(row["keywords"]),
        representatives=tuple(row["representatives"]),
        excerpts=tuple(row["excerpts"]),
        documents=row["num_documents"],
        num_bytes=row["num_bytes"],
        num_tokens=row["num_tokens"],
        splits={split: row[f"num_{split}"] for split in SPLITS},
        mean_distance=row["mean_distance"],
        price=row["price"],
    )
