"""The commit: the one file that says what a manifest holds, and the protocol that publishes it.

```
data, ids, …  ──put──►  content-addressed files        (invisible: no commit names them)
commits/N.json ──put──►  create-only                    THE commit point
README.md      ──replace──►                             derived
```

A commit is `{body, body_sha256, created_at, actor, sha256}`. The body determines the manifest and holds nothing of when or
where it was made, so that two runs of the same work write the same body. `body_sha256` digests the canonical body,
`sha256` all the rest of the file. The file itself is canonical JSON and one newline, so that no bit of it is free.

Readers take the newest commit and follow its `files`; they never list directories.
"""

import datetime
import getpass
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lmsplit.manifests.errors import ConflictError, DamagedError, ManifestError
from lmsplit.manifests.layout import COMMITS, SHA_DIGITS, commit_path, commit_version
from lmsplit.manifests.schema import SCHEMA_VERSION
from lmsplit.manifests.store import Store


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(Record):
    """One file of the manifest."""

    # Of a known folder and without dots at the start of a part: a hostile commit cannot name a file outside.
    path: str = Field(
        pattern=r"^(plans|domains|placement|ids|data|quarantine|exclusions|embeddings)(/[0-9A-Za-z_-][0-9A-Za-z_.-]*)+$",
        description="POSIX path relative to the manifest",
    )
    bytes: int = Field(ge=0, description="size in bytes")
    rows: int | None = Field(ge=0, description="rows of a Parquet file, else null")
    sha256: Sha256 = Field(description="digest of the file, 64 hexadecimal digits")

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        digits = self.sha256[:SHA_DIGITS]
        if not self.path.partition(".")[0].endswith(digits):
            raise ValueError(f"{self.path} must be named by its digest, {digits}")
        return self


class Amount(Record):
    """So many records, of so many raw bytes (a JSONL line without its newline; the text of a Parquet row)."""

    records: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)

    def __add__(self, other: "Amount") -> "Amount":
        """Add records to records and bytes to bytes."""
        return Amount(records=self.records + other.records, bytes=self.bytes + other.bytes)


class Counts(Record):
    """The two sides of the conservation law: read = published + quarantined + duplicates."""

    read: Amount = Field(description="records read from the input")
    published: Amount = Field(description="records that became documents")
    quarantined: dict[str, Amount] = Field(description="records set aside, by reason")
    duplicates: dict[str, Amount] = Field(description="records set aside as duplicates, by rule")
    text_bytes: int = Field(ge=0, description="UTF-8 bytes of the published texts")
    tokens: int | None = Field(description="tokens of the published texts; null without a tokenizer")

    def imbalance(self) -> Amount | None:
        """Return both sides where they differ as an `Amount` of the right-hand side, or None when the law holds."""
        parts = [self.published, *self.quarantined.values(), *self.duplicates.values()]
        total = sum(parts, Amount())
        return None if total == self.read else total


class Balance(Record):
    """What bounding the largest domain took, and what it cost."""

    max_imbalance: float = Field(description="the bound asked for: the largest domain over the mean")
    sampling_error: float = Field(description="s: on the corpus, the largest domain may be larger than on the sample by 1 + 2s")
    cap: float = Field(description="the bound that the sample was balanced to: max_imbalance / (1 + 2s)")
    imbalance_before: float = Field(description="of the sample, before")
    coherence_before: float = Field(description="of the sample, before")


class GateFinding(Record):
    """A reason to look before training on the domains."""

    code: str = Field(description="a fixed word, such as imbalance")
    where: str = Field(description="a domain, or fit for all of them")
    expected: str = Field(description="what was expected, for people")
    found: str = Field(description="what was found, for people")
    remedy: str = Field(description="what to do, for people")


class Gate(Record):
    """What the quality gate measured and found."""

    imbalance: float = Field(description="size of the largest domain over the mean, in all splits")
    imbalance_by: Literal["tokens", "bytes"] = Field(description="what sizes are counted in: bytes without a tokenizer")
    coherence: float = Field(description="share of the sample vectors' variance that the domains explain, at most 1")
    stability: float | None = Field(
        description="adjusted Rand index between the domains of two halves of the sample; null where they are too small"
    )
    sample_documents: int = Field(description="documents that the rule was fitted on")
    sample_imbalance: float = Field(description="imbalance of the sample")
    balance: Balance | None = Field(description="what bounding the largest domain took; null where nothing had to be done")
    findings: tuple[GateFinding, ...] = Field(description="reasons to look, those on all domains first")


class ExportedFrom(Record):
    """Where the documents of a hand-over come from."""

    commit: Sha256 = Field(description="body_sha256 of the manifest that it was made from")
    domains: tuple[str, ...] = Field(min_length=1, description="the domains that were chosen, sorted")


class Body(Record):
    """What a manifest holds and how it was made; the same work gives the same body."""

    format: Literal["lmsplit-manifest"] = Field(default="lmsplit-manifest", description="always lmsplit-manifest")
    version: int = Field(default=SCHEMA_VERSION, description="format version; readers refuse one they do not know")
    parent: str | None = Field(description="body_sha256 of the commit before, null in commit 0")
    run_id: str = Field(description="digest of all that determines content")
    files: tuple[FileEntry, ...] = Field(description="every file of the manifest, sorted by path; the card is not one")
    configuration: dict[str, Any] = Field(description="the resolved configuration, content keys only")
    plan: str = Field(description="path of the plan")
    domains: str = Field(description="path of the domain table")
    placement: str = Field(description="path of the placement rule's description")
    encoder: dict[str, Any] = Field(description="name and digest of the encoder that the rule pins")
    columns: dict[str, str] = Field(description="kept columns of the data files and their Arrow types")
    counts: Counts = Field(description="both sides of the conservation law")
    splits: dict[str, int] = Field(description="documents by split")
    heldout_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the groups held out, frozen at commit 0; null where they were chosen otherwise",
    )
    software: dict[str, str] = Field(description="versions of the libraries that determine content")
    tier: str = Field(description="what is reproducible, in words: see Determinism")
    gate: Gate | None = Field(default=None, description="what the quality gate measured and found; null where not run")
    tombstones: tuple[dict[str, Any], ...] = Field(default=(), description="documents taken down since the parent")
    exported_from: ExportedFrom | None = Field(
        default=None, description="the manifest and domains that a hand-over was made from; absent in any other"
    )

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.exported_from is None:  # absent, not null: a body written before the key existed keeps its digest
            del content["exported_from"]
        return content

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        paths = [entry.path for entry in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files must be sorted by path, each once")
        if missing := {self.plan, self.domains, self.placement} - set(paths):
            raise ValueError(f"files must hold {', '.join(sorted(missing))}")
        return self


class Commit(Record):
    """A commit file: the body, its digest, and when and by whom it was published."""

    body: Body = Field(description="what the manifest holds: see below")
    body_sha256: Sha256 = Field(description="digest of the body's canonical JSON: the manifest's identity")
    created_at: str = Field(description="when it was published: UTC, ISO 8601")
    actor: str = Field(description="login name of whoever published")
    sha256: Sha256 = Field(description="digest of the canonical JSON of the other four keys")


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of `value`: sorted keys, no spaces, UTF-8, no NaN.

    >>> canonical({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def versions(store: Store) -> list[int]:
    """Return the numbers of the commits in `store`, oldest first.

    Raises:
        ManifestError: it cannot be read.
    """
    with _reached(store):
        names = store.entries(COMMITS)
    return sorted(v for v in map(commit_version, names) if v is not None)


def read_commit(store: Store, version: int | None = None) -> tuple[int, Commit]:
    """Read a commit and check every digest in it.

    Args:
        store: the manifest.
        version: which commit; the newest when None.

    Returns:
        The commit's number, and the commit.

    Raises:
        ManifestError: there is no such commit, its format version is unknown, or the store cannot be read.
        DamagedError: it is not what was published.
    """
    existing = versions(store)
    if not existing:
        said = f"{store.location} is not a manifest: it has no {COMMITS}/00000.json"
        raise ManifestError(f"{said} ({'' if store.is_local else 'does the bucket exist, and '}was the run published?)")
    wanted = existing[-1] if version is None else version
    if wanted not in existing:
        raise ManifestError(f"{store.location}@{wanted} does not exist: its commits are {existing[0]} to {existing[-1]}")
    name = commit_path(wanted)
    with _reached(store):
        data = store.read(name)
    return wanted, parse_commit(data, name)


@contextmanager
def _reached(store: Store) -> Iterator[None]:
    """Say what to do where a store refuses, or cannot be reached: each kind of store has errors of its own."""
    try:
        yield
    except OSError as error:
        said = f"{store.location} cannot be read ({error}): check its name and your access"
        credentials = "" if store.is_local else ", and the credentials in your environment or profile"
        raise ManifestError(said + credentials) from error


def parse_commit(data: bytes, name: str) -> Commit:
    """Parse a commit file's bytes and check every digest in it; see `read_commit`. `name` is its path, for errors."""
    try:
        raw = json.loads(data)
        if canonical(raw) + b"\n" != data:
            raise ValueError("it is not canonical JSON")
        rest = {key: value for key, value in raw.items() if key != "sha256"}
        for key, said, found in (
            ("sha256", raw["sha256"], digest(rest)),
            ("body_sha256", raw["body_sha256"], digest(raw["body"])),
        ):
            if said != found:
                raise ValueError(f"{key} says {said}, its content has {found}")
        version = raw["body"]["version"]
        if version == SCHEMA_VERSION:
            return Commit.model_validate_json(data, strict=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(name, f"{name} is damaged ({error}): restore it from a copy") from error
    raise ManifestError(f"{name} has format version {version}, this lmsplit reads {SCHEMA_VERSION}: upgrade lmsplit")


def write_commit(store: Store, body: Body, version: int) -> Commit:
    """Publish `body` as commit number `version`.

    Args:
        store: the manifest; every file of the body is there already.
        body: what the manifest holds.
        version: the commit's number, one above the parent's.

    Returns:
        The commit that now stands there: this one, or an earlier one with the same body.

    Raises:
        ConflictError: a commit of that number with another body exists.
    """
    content = body.model_dump(mode="json")
    body_sha256 = digest(content)
    rest = {
        "body": content,
        "body_sha256": body_sha256,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "actor": _actor(),
    }
    store.put_bytes(canonical(rest | {"sha256": digest(rest)}) + b"\n", commit_path(version))
    _, standing = read_commit(store, version)
    if standing.body_sha256 != body_sha256:
        raise ConflictError(
            f"{store.location} already holds commit {version} of run {standing.body.run_id} "
            f"(body {standing.body_sha256[:12]}, ours {body_sha256[:12]}): choose another output"
        )
    return standing


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
